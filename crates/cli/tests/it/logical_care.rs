//! Logical backups in the care of everything else: retention, crashes, copies, new keys; and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgark_testkit::{Outcome, Pgark, as_postgres, give_to_postgres, objects_under, wait_until};
use serde_json::Value;

use crate::site::Site;

fn dump(site: &Site) -> String {
    let document = site.pgark.json(["backup", "--kind", "logical", "--database", "app"]);
    document["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}

fn site(label: &str, server: &pgark_testkit::Server) -> Site {
    let site = Site::small(server, label);
    site.cluster.psql("create database app");
    site.cluster.psql_db("app", "create table t as select i, md5(i::text) m from generate_series(1, 20000) i");
    site
}

fn listed(pgark: &Pgark) -> Vec<String> {
    let info = pgark.json(["info"]);
    let lines = info["clusters"][0]["backups"].as_array().cloned().unwrap_or_default();
    lines.iter().filter(|b| b["complete"] == true).filter_map(|b| b["id"].as_str().map(str::to_owned)).collect()
}

fn segments(pgark: &Pgark) -> usize {
    let is_segment =
        |p: &std::path::PathBuf| p.to_string_lossy().contains("/wal/") && !p.to_string_lossy().contains("/head");
    objects_under(pgark.repo()).iter().filter(|p| is_segment(p)).count()
}

fn counted(site: &Site, pgark: &Pgark, backup: &str, to: &str) -> String {
    let words = ["restore", backup, "--kind", "logical", "--database", "app", "--to-database", to];
    pgark.run(words).expect_code(0);
    site.cluster.psql_db(to, "select count(*) || ' ' || count(*) filter (where m = md5(i::text)) from t")
}

fn failed(outcome: Outcome, code: i32, name: &str) {
    let outcome = outcome.expect_code(code);
    assert!(outcome.stdout.contains(name) || outcome.stderr.contains(name), "{name} is not said\n{outcome}");
}

/// Not so files that were being written when their writer was killed: they go after a day.
fn objects_of(repo: &Path, id: &str) -> usize {
    let dir = format!("/backups/{id}/");
    let is_one = |p: &str| p.contains(&dir) && !p.contains(".tmp-");
    objects_under(repo).iter().filter(|p| is_one(&p.to_string_lossy())).count()
}

#[test]
fn each_kind_is_kept_by_its_own_rules_and_wal_by_physical_backups_alone() {
    let server = installed_or_skip!();
    let site = site("kinds", &server);
    site.ledger.write_rows(&site.cluster, 2);
    let full = site.pgark.backup("full");
    let logical: Vec<String> = (0..3).map(|_| dump(&site)).collect();
    site.ledger.write_rows(&site.cluster, 2);
    let latest = site.archive_all();
    let second = site.pgark.backup("full");
    let newest = dump(&site);
    site.cluster.switch_and_archive();
    let wal = segments(&site.pgark);

    // Dumps do not count among physical backups, nor these among dumps.
    let expire =
        |more: &[&str]| site.pgark.run([&["expire", "--yes", "--gc-grace", "0s"], more].concat()).expect_code(0);
    expire(&["--kind", "logical", "--keep-last", "2"]);
    assert_eq!(listed(&site.pgark), [full.clone(), logical[2].clone(), second.clone(), newest.clone()]);
    assert_eq!(segments(&site.pgark), wal, "dumps say nothing of WAL");
    let config = site.scratch.file(
        "pgark.toml",
        b"[clusters.main.retention.logical]\nkeep_last = 1\n[clusters.main.retention.physical]\nkeep_last = 2\n",
        0o600,
    );
    let configured = site.pgark.clone().env("PGARK_CONFIG", &config);
    configured.run(["expire", "--yes", "--gc-grace", "0s"]).expect_code(0);
    assert_eq!(listed(&site.pgark), [full.clone(), second.clone(), newest.clone()]);
    site.assert_restores("r", &latest, 1, &[]);
    expire(&["--keep-last", "1"]);
    assert_eq!(listed(&site.pgark), [second.clone(), newest.clone()]);
    assert!(segments(&site.pgark) < wal, "WAL goes with the physical backup that needed it");
    failed(site.pgark.run(["delete", &newest, "--yes"]), 4, "E-BACKUP-LAST");
    failed(site.pgark.run(["delete", &second, "--yes"]), 4, "E-BACKUP-LAST");
    let info = site.pgark.json(["info"]);
    for window in info["clusters"][0]["windows"].as_array().into_iter().flatten() {
        assert!(!window["backups"].to_string().contains('L'), "{window}");
    }
    assert_eq!(counted(&site, &site.pgark, &newest, "back"), "20000 20000");
    // A dump is no target of a recovery, and a physical backup no dump.
    let to = site.scratch.join("x").display().to_string();
    failed(site.pgark.run(["restore", &newest, "--kind", "physical", "--to", &to]), 4, "E-BACKUP-KIND");
    let words = ["restore", &second, "--kind", "logical", "--database", "app", "--to-database", "x"];
    failed(site.pgark.run(words), 4, "E-BACKUP-KIND");
    site.pgark.run(["verify"]).expect_code(0);
}

#[test]
fn a_backup_that_is_killed_is_not_listed_and_its_room_comes_back() {
    let server = installed_or_skip!();
    let site = site("killed", &server);
    // Incompressible, so that packs are written long before the end.
    site.cluster.psql_db(
        "app",
        "create table noise as select i, (select string_agg(md5(i::text || j::text), '') from generate_series(1, 60) j) m
         from generate_series(1, 60000) i",
    );
    let first = dump(&site);
    site.cluster.psql_db("app", "update noise set m = reverse(m)");
    for _ in 0..3 {
        let mut command = site.pgark.command(["backup", "--kind", "logical", "--database", "app"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgark");
        let dirs = || fs::read_dir(site.pgark.repo().join("clusters/main/backups")).map_or(0, Iterator::count);
        let before = dirs();
        wait_until("something of the backup is stored", Duration::from_secs(60), || (dirs() > before).then_some(()));
        child.kill().expect("SIGKILL");
        child.wait().expect("it is gone");
        assert_eq!(listed(&site.pgark), std::slice::from_ref(&first));
        // pg_dump notices that nobody reads any more.
        wait_until("pg_dump is gone", Duration::from_secs(60), || {
            (site.cluster.psql("select count(*) from pg_stat_activity where application_name = 'pgark'") == "0")
                .then_some(())
        });
    }
    let second = dump(&site);
    assert_eq!(listed(&site.pgark), [first.clone(), second.clone()]);
    let third = dump(&site);
    let dirs = fs::read_dir(site.pgark.repo().join("clusters/main/backups")).expect("backups").flatten();
    let with_objects: Vec<String> = dirs
        .map(|d| d.file_name().to_string_lossy().into_owned())
        .filter(|id| objects_of(site.pgark.repo(), id) > 0)
        .collect();
    assert_eq!(with_objects.len(), 3, "remains of the killed ones are gone: {with_objects:?}, {third}");
    assert_eq!(counted(&site, &site.pgark, &second, "back"), "20000 20000");
    site.pgark.run(["verify"]).expect_code(0);
}

#[test]
fn copies_and_new_keys_hold_dumps_as_they_hold_everything_else() {
    let server = installed_or_skip!();
    let site = site("copied", &server);
    let first = dump(&site);
    site.cluster.psql_db("app", "update t set m = 'x' where i > 19000");
    let second = dump(&site);
    let copy = site.scratch.join("copy");
    let to = copy.display().to_string();
    let from = site.pgark.repo().display().to_string();
    site.pgark.run(["replicate", "--from", &from, "--to", &to]).expect_code(0);
    let elsewhere = site.pgark.clone().env("PGARK_REPO", &copy);
    elsewhere.run(["verify"]).expect_code(0);
    assert_eq!(listed(&elsewhere), [first.clone(), second.clone()]);
    assert_eq!(counted(&site, &elsewhere, &second, "copied"), "20000 19000");
    // In both at once.
    let both =
        site.pgark.run(["backup", "--kind", "logical", "--database", "app", "--json", "--repo", &from, "--repo", &to]);
    let third = both.expect_code(0).json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(counted(&site, &elsewhere, &third, "both"), "20000 19000");

    site.pgark.run(["key", "rotate", "--yes"]).expect_code(0);
    let document: Value = site.pgark.json(["key", "reencrypt", "--yes", "--grace", "0s"]);
    assert!(document.is_object());
    site.pgark.run(["key", "retire", "--yes", "--grace", "0s"]).expect_code(0);
    site.pgark.run(["verify"]).expect_code(0);
    assert_eq!(counted(&site, &site.pgark, &first, "old_key"), "20000 20000");
    let fourth = dump(&site);
    let told = site.pgark.json(["info", &fourth]);
    assert_eq!(told["compared_with"], third.as_str(), "equal content is recognised over rotations: {told}");
    assert!(told["stored_bytes"].as_u64().is_some_and(|n| n < 40_000), "{told}");
}

#[test]
fn a_load_whose_workers_lock_each_other_out_is_made_again_with_one() {
    let server = installed_or_skip!();
    let site = site("deadlock", &server);
    dump(&site);
    let seen = site.scratch.dir("seen").join("jobs");
    // Some of it is loaded when it happens.
    let real = server.program("pg_restore").display().to_string();
    let script = format!(
        "case \"$*\" in *--version*|*--list*) exec {real} \"$@\";; esac\necho \"$*\" >> {}\n\
         case \"$*\" in *--jobs=1*) exec {real} \"$@\";; esac\n{real} \"$@\" || exit 9\n\
         echo 'pg_restore: error: could not execute query: ERROR:  deadlock detected' >&2; exit 1",
        seen.display()
    );
    let pg_dump = format!("exec {} \"$@\"", server.program("pg_dump").display());
    let bin = programs(&site, "deadlock", &[("pg_dump", &pg_dump), ("pg_restore", &script)]);
    let words =
        ["restore", "--kind", "logical", "--database", "app", "--to-database", "again", "--pg-bin", &bin, "-j", "3"];
    site.pgark.run(words).expect_code(0);
    assert_eq!(site.cluster.psql_db("again", "select count(*) from t"), "20000");
    let seen = fs::read_to_string(seen).expect("it was run");
    assert_eq!(seen.lines().count(), 2, "{seen}");
    assert!(seen.contains("--jobs=3") && seen.contains("--jobs=1"), "{seen}");
}

/// With Python and PostgreSQL's programs alone.
#[test]
fn the_program_in_the_repository_gets_dumps_out_without_pgark() {
    let server = installed_or_skip!();
    let site = site("rescued", &server);
    site.cluster.psql("create database \"odd = name\"");
    let document = site.pgark.json(["backup", "--kind", "logical", "--all-databases", "--globals"]);
    let id = document["id"].as_str().expect("an id");
    let is_it = |p: &std::path::PathBuf| p.to_string_lossy().contains("/rescue/") && p.ends_with("extract.py");
    let program = objects_under(site.pgark.repo()).into_iter().find(is_it).expect("extract.py in the repository");
    let to = site.scratch.join("out");
    let run = |words: &[&str]| {
        let mut command = as_postgres("/usr/bin/python3");
        command.arg(&program).arg("--repo").arg(site.pgark.repo());
        command.arg("--passphrase-file").arg(site.pgark.passphrase_file()).args(words);
        let output = command.output().expect("python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(run(&["list"]).contains(&format!("{id}  logical")));
    run(&["backup", id, "--to", &to.display().to_string()]);
    let dump = to.join("database/app/dump");
    assert!(to.join("database/odd%20%3D%20name/dump").is_file() && to.join("globals.json").is_file());
    site.cluster.psql("create database back");
    let mut command = as_postgres(server.program("pg_restore"));
    command.arg(format!("--dbname={}", site.cluster.connection_string("back"))).arg("--exit-on-error").arg(&dump);
    assert!(command.status().expect("pg_restore").success());
    let count = site.cluster.psql_db("back", "select count(*) from t where m = md5(i::text)");
    assert_eq!(count, "20000");
}

/// A directory with programs that are no more than these scripts.
fn programs(site: &Site, name: &str, scripts: &[(&str, &str)]) -> String {
    let dir = site.scratch.dir(name);
    for (program, script) in scripts {
        let path = dir.join(program);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        give_to_postgres(&path);
    }
    dir.display().to_string()
}

#[test]
fn what_does_not_end_well_is_an_error_and_nothing_is_listed() {
    let server = installed_or_skip!();
    let site = site("ends", &server);
    let real = server.program("pg_dump").display().to_string();
    let restore = format!("exec {} \"$@\"", server.program("pg_restore").display());
    let version = format!("case \"$1\" in --version) exec {real} --version;; esac");
    let cases = [
        ("empty", "exit 0".to_owned(), "E-DUMP-EMPTY"),
        ("short", format!("{real} \"$@\" | head -c 700"), "E-DUMP-UNREADABLE"),
        ("nonsense", "echo SELECT 1".to_owned(), "E-DUMP-EMPTY"),
        ("status", format!("{real} \"$@\"; exit 3"), "E-DUMP-FAILED"),
        ("killed", format!("{real} \"$@\" | head -c 100000; kill -9 $$"), "E-DUMP-FAILED"),
    ];
    for (name, script, code) in &cases {
        let bin = programs(&site, name, &[("pg_dump", &format!("{version}\n{script}")), ("pg_restore", &restore)]);
        failed(site.pgark.run(["backup", "--kind", "logical", "--database", "app", "--pg-bin", &bin]), 1, code);
        assert!(listed(&site.pgark).is_empty(), "{name}");
    }
    // A remark is no failure, and is not passed over.
    let remark = format!("{version}\necho 'pg_dump: warning: odd' >&2; exec {real} \"$@\"");
    let bin = programs(&site, "remark", &[("pg_dump", &remark), ("pg_restore", &restore)]);
    failed(site.pgark.run(["backup", "--kind", "logical", "--database", "app", "--pg-bin", &bin]), 3, "warning: odd");
    assert_eq!(listed(&site.pgark).len(), 1);
    // Programs that do not fit, or have holes.
    let old = |v: &str| format!("echo \"pg_dump (PostgreSQL) {v}\"");
    for (v, code) in [("14.19", "E-CLIENT-NONE"), ("15.13", "E-CLIENT-UNSAFE")] {
        let bin = programs(&site, v, &[("pg_dump", &old(v)), ("pg_restore", &old(v))]);
        failed(site.pgark.run(["backup", "--kind", "logical", "--database", "app", "--pg-bin", &bin]), 4, code);
    }
    failed(site.pgark.run(["backup", "--kind", "logical", "--database", "nowhere"]), 4, "E-DATABASE-NONE");
    failed(site.pgark.run(["backup", "--kind", "logical"]), 4, "E-DATABASE-NONE");
    failed(site.pgark.run(["backup", "--database", "app"]), 2, "E-KIND");
    assert_eq!(listed(&site.pgark).len(), 1);
}

#[test]
fn a_dump_does_not_wait_for_a_lock_for_ever_and_no_variable_leads_it_astray() {
    let server = installed_or_skip!();
    let site = site("astray", &server);
    let config =
        site.scratch.file("pgark.toml", b"[clusters.main.logical]\nlock_wait = \"1s\"\ndatabases = [\"app\"]\n", 0o600);
    let mut other = as_postgres("/usr/lib/postgresql/15/bin/psql");
    other.arg(format!("--dbname={}", site.cluster.connection_string("app")));
    other.args(["-c", "begin; lock table t; select pg_sleep(600)"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut other = other.spawn().expect("psql");
    wait_until("the lock is held", Duration::from_secs(30), || {
        let held = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 't'::regclass";
        (site.cluster.psql_db("app", held) == "1").then_some(())
    });
    let configured = site.pgark.clone().env("PGARK_CONFIG", &config);
    failed(configured.run(["backup", "--kind", "logical"]), 1, "E-DUMP-FAILED");
    assert!(listed(&site.pgark).is_empty());
    site.cluster.psql("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'app'");
    other.wait().expect("psql");
    let astray = configured
        .env("PGOPTIONS", "-c search_path=nowhere -c statement_timeout=1")
        .env("PGAPPNAME", "x")
        .env("PGCLIENTENCODING", "LATIN1");
    astray.run(["backup", "--kind", "logical"]).expect_code(0);
    assert_eq!(counted(&site, &site.pgark, "latest", "back"), "20000 20000");
}

/// Dumps of parts, of other databases, and those taken before a restore, are no reason for a whole dump to go, nor taken for one.
#[test]
fn only_a_dump_of_the_same_things_stands_in_for_another() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "logical-series");
    for name in ["app", "other"] {
        site.cluster.psql(&format!("create database {name}"));
        site.cluster.psql_db(name, "create table a as select 1 i; create table b as select 2 i");
    }
    let dump = |words: &[&str]| {
        let document = site.pgark.json([&["backup", "--kind", "logical"], words].concat());
        document["id"].as_str().expect("an id").to_owned()
    };
    let restore = |words: &[&str]| {
        let words = [&["restore"], words, &["--kind", "logical", "--database", "app", "--in-place", "--yes"]].concat();
        site.pgark.run(words)
    };
    let whole = dump(&["--database", "app"]);
    let part = dump(&["--database", "app", "--table", "a"]);
    let other = dump(&["--database", "other"]);
    site.cluster.psql_db("app", "drop table b");
    failed(restore(&[&part]), 4, "E-BACKUP-PARTIAL");
    restore(&["latest"]).expect_code(0);
    assert_eq!(site.cluster.psql_db("app", "select i from b"), "2");
    let expire = || {
        site.pgark.run(["expire", "--kind", "logical", "--keep-last", "1", "--gc-grace", "0s", "--yes"]).expect_code(0);
        listed(&site.pgark)
    };
    let all = expire();
    for id in [&whole, &part, &other] {
        assert!(all.contains(id), "{id} is gone: {all:?}");
    }
    assert_eq!(all.len(), 4, "and what was taken before the restore: {all:?}");
    let again = dump(&["--database", "app"]);
    let all = expire();
    assert!(!all.contains(&whole) && all.contains(&again) && all.contains(&part) && all.contains(&other), "{all:?}");
    site.pgark.run(["verify"]).expect_code(0);
    // A dump of a single table has not even its schema.
    site.cluster.psql_db("app", "create schema \"it's odd\"; create table \"it's odd\".t as select 3 i");
    let one = dump(&["--database", "app", "--table", "\"it's odd\".t"]);
    let words = ["restore", &one, "--kind", "logical", "--database", "app", "--to-database", "one", "--json"];
    let document = site.pgark.run(words).expect_code(3).json();
    assert!(document["warnings"].to_string().contains("; it was made, without its owner and rights"), "{document}");
    assert_eq!(document["validation"]["outcome"], "ok", "{document}");
    assert_eq!(site.cluster.psql_db("one", "select i from \"it's odd\".t"), "3");
    foreign_keys_to_what_was_not_dumped(&site);
}

/// `pg_dump` writes them all the same: said when the dump is taken, kept with it, and left out when it is restored.
fn foreign_keys_to_what_was_not_dumped(site: &Site) {
    site.cluster.psql_db(
        "app",
        "create table far (id int primary key); insert into far values (1); \
         create table near (id int primary key, far int references far, near int references near); insert into near values (7, 1, 7)",
    );
    let document = site.pgark.json(["backup", "--kind", "logical", "--database", "app", "--table", "near"]);
    let key = serde_json::json!([{"name": "near_far_fkey", "table": "public.near", "refers_to": "public.far"}]);
    assert_eq!(document["logical"]["databases"][0]["keys_outside"], key, "{document}");
    assert!(
        document["logical"]["notes"].to_string().contains("near_far_fkey of public.near to public.far"),
        "{document}"
    );
    let id = document["id"].as_str().expect("an id");
    assert!(site.pgark.json(["info", id]).to_string().contains("near_far_fkey"));
    let words = ["restore", id, "--kind", "logical", "--database", "app", "--to-database", "near", "--json"];
    let document = site.pgark.run(words).expect_code(3).json();
    let left = "not restored: foreign key near_far_fkey of table public.near: public.far, which it refers to, is not in the backup";
    assert!(document["warnings"].to_string().contains(left), "{document}");
    assert_eq!(document["validation"]["outcome"], "ok", "{document}");
    let said = "near_far_fkey of public.near: both of its tables would have to be restored";
    assert!(document["validation"].to_string().contains(said), "{document}");
    let keys = "select string_agg(conname, ',' order by conname), (select far from near) from pg_constraint where conrelid = 'near'::regclass";
    assert_eq!(site.cluster.psql_db("near", keys), "near_near_fkey,near_pkey|1");
    let words = ["validate", "--database", "near", "--against", id, "--source", "app", "--amcheck", "off", "--json"];
    let report = site.pgark.run(words).expect_code(0).json();
    assert!(report.to_string().contains(said), "{report}");
    // What a table is made of is not in its dump either, and cannot be left out.
    site.cluster.psql_db("app", "create type mood as enum ('a'); create table moody (m mood)");
    let document = site.pgark.json(["backup", "--kind", "logical", "--database", "app", "--table", "moody"]);
    let id = document["id"].as_str().expect("an id");
    let words = ["restore", id, "--kind", "logical", "--database", "app", "--to-database", "moody", "--json"];
    let error = site.pgark.run(words).expect_code(1).json()["error"].clone();
    assert_eq!(error["code"], "E-RESTORE-FAILED", "{error}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("holds only parts")), "{error}");
    let left = "select count(*) from pg_database where datname ~ 'moody|^pgark_restore'";
    assert_eq!(site.cluster.psql(left), "0");
}
