//! `drill`: what is right stays green, what is wrong turns red for the right reason, what was not checked is neither; and nothing of
//! production is touched, nothing runs on, nothing stays.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pgark_testkit::{
    Damage, Damaged, LoopFs, Outcome, Pgark, Server, StopMode, Tree, give_to_postgres, objects_under, tree_of,
    wait_until,
};
use serde_json::Value;

use crate::site::{Site, alerts_into, strings};

const DATABASE: &str = "it's app";

/// A site with a place for rehearsals, in which somebody left something.
struct Stage {
    site: Site,
    dir: PathBuf,
    foreign: PathBuf,
    disk: Option<LoopFs>,
}

impl Stage {
    fn new(server: &Server, label: &str) -> Stage {
        let site = Site::new(server, label, |b| {
            b.wal_segsize_mb(1)
                .checksums(false)
                .tablespace("slow", "slow")
                .conf("autovacuum = off")
                .conf("full_page_writes = off")
        });
        let dir = site.scratch.dir("d");
        let foreign = site.scratch.dir("d/pgark-scratch-000000000001");
        site.scratch.file("d/pgark-scratch-000000000001/theirs", b"precious", 0o600);
        Stage { site, dir, foreign, disk: LoopFs::new(32).ok() }
    }

    fn config(&self, settings: &str) -> Pgark {
        let path = self.site.scratch.join("pgark.toml");
        if path.exists() {
            fs::remove_file(&path).expect("removed");
        }
        let text = format!("[clusters.main]\n{settings}\n[clusters.main.drill]\ndir = \"{}\"\n", self.dir.display());
        self.site.scratch.file("pgark.toml", text.as_bytes(), 0o600);
        self.site.elsewhere.clone().env("PGARK_CONFIG", &path)
    }

    /// Rehearses with these settings, as a machine that knows the repository alone.
    fn drill(&self, settings: &str, flags: &[&str], code: i32) -> Value {
        let outcome = self.config(settings).run([&["drill", "--json"], flags].concat());
        self.nothing_is_left(&outcome);
        let document = outcome.clone().expect_code(code).json();
        assert_eq!(document["schema"], 1, "{outcome}");
        assert!(document["report"].is_string(), "no report\n{outcome}");
        document
    }

    fn green(&self, settings: &str, flags: &[&str]) -> Value {
        let document = self.drill(settings, flags, 0);
        assert_eq!(
            (&document["verdict"], &document["reasons"], &document["not_checked"]),
            (&"green".into(), &Value::Null, &Value::Null),
            "{document}"
        );
        document
    }

    /// Red, and each of these is among the reasons.
    fn red(&self, settings: &str, flags: &[&str], why: &[(&str, &str)]) -> Value {
        let document = self.drill(settings, flags, 21);
        assert_eq!(document["verdict"], "red", "{document}");
        for (code, what) in why {
            assert!(
                reasons(&document).iter().any(|(c, w)| c == code && w.contains(what)),
                "{code} {what} is not in {document:#}"
            );
        }
        document
    }

    fn nothing_is_left(&self, after: &Outcome) {
        let left: Vec<_> = fs::read_dir(&self.dir).expect("listed").filter_map(Result::ok).map(|e| e.path()).collect();
        assert_eq!(left, std::slice::from_ref(&self.foreign), "{after}");
        assert_eq!(fs::read(self.foreign.join("theirs")).expect("there"), b"precious");
        assert!(processes_in(&self.dir).is_empty(), "processes stay\n{after}");
    }

    fn object(&self, below: &str, largest: bool) -> PathBuf {
        let mut all = objects_under(&self.site.pgark.repo().join(below));
        all.sort_by_key(|path| fs::metadata(path).map(|m| m.len()).unwrap_or(0));
        if largest { all.pop().expect("an object") } else { all.remove(0) }
    }
}

fn reasons(document: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    document["reasons"].as_array().into_iter().flatten().map(|r| (text(&r["code"]), text(&r["what"]))).collect()
}

fn processes_in(dir: &Path) -> Vec<PathBuf> {
    let there = |entry: fs::DirEntry| {
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        cwd.starts_with(dir).then(|| entry.path())
    };
    fs::read_dir("/proc").expect("/proc").filter_map(Result::ok).filter_map(there).collect()
}

/// Everything of production: the data directory with its slots, a tablespace, the archive, the backups.
fn production(stage: &Stage) -> Vec<(&'static str, Tree)> {
    let repo = stage.site.pgark.repo();
    vec![
        ("the data directory", tree_of(stage.site.cluster.data_dir())),
        ("the tablespace", tree_of(&stage.site.cluster.socket_dir().join("slow"))),
        ("the archive", tree_of(&repo.join("clusters/main/wal"))),
        ("the backups", tree_of(&repo.join("clusters/main/backups"))),
    ]
}

fn assert_untouched(before: &[(&'static str, Tree)], stage: &Stage) {
    for ((what, before), (_, now)) in before.iter().zip(production(stage)) {
        before.assert_same(&now, what);
    }
}

fn fill(site: &Site) {
    site.cluster.psql(&format!(
        "create database \"{DATABASE}\"; create role clerk; select pg_create_physical_replication_slot('kept', true)"
    ));
    site.cluster.psql_db(
        DATABASE,
        "create table orders (id serial primary key, amount int, note text); \
         insert into orders (amount, note) select i, repeat('x', i % 50) from generate_series(1, 3000) i; \
         create table slow (id int primary key using index tablespace slow, t text) tablespace slow; \
         insert into slow select i, 'slow' from generate_series(1, 500) i; alter table slow owner to clerk; \
         create extension pg_trgm; create materialized view sums as select sum(amount) from orders; create unlogged table fleeting (i int); \
         create publication p for table orders; \
         create subscription s connection 'host=/nowhere dbname=x' publication p with (connect = false); vacuum analyze",
    );
}

/// Whatever is defined or dropped in a server that archives nothing fails: the rehearsed one, and not production.
const TRAPS: &str = "create function trap() returns event_trigger language plpgsql as $f$ begin \
    if pg_catalog.current_setting('archive_mode') = 'off' then raise exception 'an event trigger fired'; end if; end $f$; \
    create event trigger usual on ddl_command_start execute function trap(); \
    create event trigger \"of all\" on ddl_command_start execute function trap(); alter event trigger \"of all\" enable always; \
    create event trigger copies on ddl_command_end execute function trap(); alter event trigger copies enable replica";

const CHECK: &str = "rto = \"1h\"\nrpo = \"1d\"\n[[clusters.main.checks]]\nname = \"orders\"\ndatabase = \"it's app\"\n\
                     sql = \"select count(*) >= 3000 from orders\"\nexpect = \"t\"\n";

/// Five rehearsals of whole backups, and then every way in which one can go wrong that needs no damaged cluster.
#[test]
fn whole_backups_stay_green_and_defects_of_the_repository_and_the_machine_turn_it_red() {
    let server = installed_or_skip!();
    let mut stage = Stage::new(&server, "drill");
    fill(&stage.site);
    assert_ne!(stage.site.cluster.psql("show archive_mode"), "off");
    stage.site.cluster.psql_db(DATABASE, TRAPS);
    let first = stage.site.pgark.backup("full");
    let words = ["truth", "--database", DATABASE, "--hash", "--to"];
    let truth = |stage: &Stage, name: &str| {
        let file = stage.site.scratch.join(name);
        stage.site.pgark.run([&words[..], &[&file.display().to_string()]].concat()).expect_code(0);
        file.display().to_string()
    };
    let early = truth(&stage, "early");
    stage.site.cluster.psql_db(DATABASE, "insert into orders (amount) select 7 from generate_series(1, 50)");
    let second = stage.site.pgark.backup("full");
    stage
        .site
        .cluster
        .psql_db(DATABASE, "insert into orders (amount) values (8); select pg_create_restore_point('before')");
    let at = stage.site.cluster.psql("select clock_timestamp()");
    stage.site.cluster.psql("select pg_sleep(0.02)");
    stage.site.cluster.psql_db(DATABASE, "delete from orders where amount = 7");
    let late = truth(&stage, "late");
    stage.site.cluster.switch_and_archive();
    stage.site.cluster.stop(StopMode::Fast);
    let before = production(&stage);
    let abandoned = stage.site.scratch.dir("d/pgark-scratch-000000000002");
    stage.site.scratch.file(
        "d/pgark-scratch-000000000002/pgark-scratch.json",
        b"{\"pgark_scratch\":1,\"pid\":1}",
        0o600,
    );

    // 1: the newest, to the end of the archive, compared with a truth. No server of production runs.
    let found = stage.green(CHECK, &["--truth", &late]);
    assert!(!abandoned.exists(), "what an earlier one left was not removed");
    assert_eq!(found["backup"], second.as_str(), "{found}");
    assert!(found["rto"]["measured_ms"].as_u64().is_some_and(|ms| ms > 0 && ms < 3_600_000), "{found}");
    assert!(found["rpo"]["measured_ms"].as_u64().is_some_and(|ms| ms < 86_400_000), "{found}");
    let names: Vec<&str> =
        found["databases"].as_array().into_iter().flatten().filter_map(|d| d["database"].as_str()).collect();
    assert_eq!(names.len(), 3, "{found}");
    let app =
        found["databases"].as_array().into_iter().flatten().find(|d| d["database"] == DATABASE).expect("the database");
    for wanted in ["orders", "contents", "tables are whole (amcheck)", "libraries of functions are installed"] {
        let check = app["checks"].as_array().into_iter().flatten().find(|c| c["name"] == wanted);
        assert!(check.is_some_and(|c| c["outcome"] == "ok" && c["checked"].as_u64() > Some(0)), "{wanted}: {app:#}");
    }
    let entry = stage.site.elsewhere.backup_info(&second);
    assert_eq!(entry["evidence"], "drilled", "{entry}");
    assert!(entry["drilled"].is_string(), "{entry}");
    assert_eq!(stage.site.elsewhere.backup_info(&first)["evidence"], "stored");
    // 2 to 5: a moment, a restore point, an older backup by itself, a random one.
    let found = stage.green(CHECK, &["--target-time", &at]);
    assert!(found["rpo"]["measured_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{found}");
    stage.green(CHECK, &["--target-name", "before"]);
    let found = stage.green(CHECK, &["--backup", &first, "--target-immediate", "--truth", &early]);
    assert_eq!(found["backup"], first.as_str(), "{found}");
    let found = stage.green(CHECK, &["--backup", "random"]);
    assert!(
        [&first, &second].iter().any(|id| found["backup"] == id.as_str()) && found["target"] == "immediate",
        "{found}"
    );
    assert_untouched(&before, &stage);
    killed(&stage);
    reported(&stage, &found);

    wrong_questions(&stage, &early);
    wrong_targets(&stage, &second);
    wrong_machine(&mut stage, &server);
    assert_untouched(&before, &stage);
    wrong_repository(&stage, &second);
}

/// Killed in the middle, it leaves nothing.
fn killed(stage: &Stage) {
    let mut child =
        stage.config("").command(["drill"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    let started = || {
        let mut all = fs::read_dir(&stage.dir).expect("listed").filter_map(Result::ok);
        all.any(|e| e.path().join("data/postmaster.pid").exists()).then_some(())
    };
    wait_until("the rehearsed server runs", Duration::from_secs(60), started);
    child.kill().expect("killed");
    child.wait().expect("ended");
    wait_until("the keeper has removed the rehearsal", Duration::from_secs(60), || {
        let left = fs::read_dir(&stage.dir).expect("listed").count();
        (left == 1 && processes_in(&stage.dir).is_empty()).then_some(())
    });
}

/// In the repository, in `info`, for people.
fn reported(stage: &Stage, last: &Value) {
    let pgark = stage.config(CHECK);
    let list = pgark.json(["report", "list"]);
    let newest = &list["reports"][0];
    assert_eq!(
        (&newest["id"], &newest["what"], &newest["severity"]),
        (&last["report"], &"drill".into(), &"info".into()),
        "{list}"
    );
    let shown = pgark.run(["report", "show", "latest"]).expect_code(0);
    assert!(shown.stdout.starts_with("# Drill: green\n") && shown.stdout.contains("RTO"), "{shown}");
    let page = pgark.run(["report", "show", "latest", "--format", "html"]).expect_code(0);
    assert!(page.stdout.contains("<h1>Drill: <span class=\"ok\">green"), "{page}");
    let info = pgark.json(["info"]);
    let drill = &info["clusters"][0]["drill"];
    assert_eq!((&drill["last"]["report"], &drill["last"]["verdict"]), (&last["report"], &"green".into()), "{info:#}");
    let forecast = &drill["forecasts"][0];
    assert_eq!((&forecast["kind"], &forecast["measurements"]), (&"physical".into(), &5.into()), "{info:#}");
    assert_eq!((&forecast["rto_ms"], &forecast["meets_rto"]), (&3_600_000.into(), &true.into()), "{info:#}");
    assert!(forecast["least_ms"].as_u64() <= forecast["expected_ms"].as_u64(), "{info:#}");
    let text = pgark.run(["info"]).expect_code(0);
    assert!(text.stdout.contains("last drill: green") && text.stdout.contains("rto 1h"), "{text}");
}

/// What is asked and compared.
fn wrong_questions(stage: &Stage, early: &str) {
    let check = |name: &str, database: &str, expect: &str| {
        format!(
            "[[clusters.main.checks]]\nname = \"{name}\"\n{database}sql = \"select count(*) from orders\"\nexpect = \"{expect}\"\n"
        )
    };
    let several =
        [check("fails", "database = \"it's app\"\n", "1"), check("gone", "database = \"sales\"\n", "1")].concat();
    let found = stage.red(
        &several,
        &["--truth", early],
        &[
            ("E-DRILL-CHECK", "fails: the answer is '3000', expected is '1'"),
            ("E-DRILL-CHECK", "gone: there is no database 'sales'"),
            ("E-DRILL-CHECK", "contents: "),
        ],
    );
    assert_eq!(found["rto"]["target_ms"], Value::Null, "{found}");
    // Neither red nor green: nothing newer than the rpo was seen.
    let found = stage.drill("rpo = \"1ms\"\n", &[], 3);
    assert!(
        found["verdict"] == "not_proven" && strings(&found["not_checked"]).iter().any(|w| w.starts_with("rpo: ")),
        "{found}"
    );
    stage.red("rto = \"1ms\"\n", &["--target-immediate"], &[("E-DRILL-RTO", "restoring and recovering took")]);
    let lenient = stage.config("").run(["drill", "--truth", "/nowhere", "--json"]).expect_code(1);
    assert_eq!(lenient.json()["error"]["code"], "E-FILE", "{lenient}");
}

/// Where recovery is to end, and from what.
fn wrong_targets(stage: &Stage, second: &str) {
    stage.red("", &["--target-time", "2100-01-01 00:00:00+00"], &[("E-TARGET-BEYOND", "2100-01-01")]);
    stage.red("", &["--target-name", "nobody set it"], &[("E-TARGET-UNKNOWN", "nobody set it")]);
    stage.red("", &["--backup", second, "--target-time", "2000-01-01 00:00:00+00"], &[("E-TARGET-BEFORE", second)]);
    stage.red("", &["--kind", "logical"], &[("E-BACKUP-NONE", "there is no logical backup")]);
    let base = stage.site.cluster.data_dir().join("base").display().to_string();
    let repo = stage.site.pgark.repo().display().to_string();
    for (flags, code, exit) in [
        (&["--dir", base.as_str()][..], "E-DRILL-DIR", 4),
        (&["--dir", repo.as_str()], "E-DRILL-DIR", 4),
        (&["--backup", "20200101-000000F"][..], "E-BACKUP-NONE", 4),
        (&["--backup", "yesterday"], "E-BACKUP-ID", 2),
        (&["--library", "../evil"], "E-LIBRARY", 2),
        (&["--kind", "logical", "--target-immediate"], "E-KIND", 2),
        (&["--dir", "/nowhere/at/all"], "E-DRILL-DIR", 4),
    ] {
        let outcome = stage.config("").run([&["drill", "--json"], flags].concat()).expect_code(exit);
        assert_eq!(outcome.json()["error"]["code"], code, "{outcome}");
        stage.nothing_is_left(&outcome);
    }
    let plan = stage.config("").json(["drill", "--dry-run"]);
    assert_eq!(plan["backup"], second, "{plan}");
}

/// Programs in a directory of their own: each of these names runs this script, the others are the real ones.
fn programs(stage: &Stage, server: &Server, name: &str, replaced: &[(&str, String)]) -> String {
    let dir = stage.site.scratch.dir(name);
    for program in ["postgres", "initdb", "pg_dump", "pg_restore"] {
        let real = server.program(program);
        let own = replaced.iter().find(|(n, _)| *n == program).map(|(_, script)| script.clone());
        let script = own.unwrap_or_else(|| format!("exec '{}' \"$@\"", real.display()));
        let script =
            format!("#!/bin/sh\ncase \"$1\" in --version|-V) exec '{}' --version;; esac\n{script}\n", real.display());
        stage.site.scratch.file(&format!("{name}/{program}"), script.as_bytes(), 0o755);
    }
    dir.display().to_string()
}

/// What the machine of the rehearsal has.
fn wrong_machine(stage: &mut Stage, server: &Server) {
    let other = stage.site.scratch.dir("other");
    stage.site.scratch.file("other/postgres", b"#!/bin/sh\necho postgres \"(PostgreSQL)\" 9.6.1\n", 0o755);
    stage.red("", &["--pg-bin", &other.display().to_string()], &[("E-PG-BIN", "no PostgreSQL")]);
    let dies = programs(stage, server, "dies", &[("postgres", "echo 'FATAL:  no memory left' >&2; exit 1".into())]);
    stage.red("", &["--pg-bin", &dies], &[("E-RECOVERY", "no memory left")]);
    let hangs = programs(stage, server, "hangs", &[("postgres", "exec sleep 600".into())]);
    stage.red("", &["--pg-bin", &hangs, "--timeout", "1s"], &[("E-RECOVERY-TIMEOUT", "within 1 s")]);
    let opens = format!(
        "rm -f data/recovery.signal \"$2/recovery.signal\"; exec '{}' \"$@\"",
        server.program("postgres").display()
    );
    let opens = programs(stage, server, "opens", &[("postgres", opens)]);
    stage.red("", &["--pg-bin", &opens], &[("E-RECOVERY", "")]);
    stage.red("", &["--library", "nobody_has_it"], &[("E-RECOVERY", "nobody_has_it")]);
    match &stage.disk {
        Some(disk) => {
            let small = disk.dir("drill").display().to_string();
            stage.red("", &["--dir", &small], &[("E-TARGET-SPACE", "bytes free")]);
        }
        None => eprintln!("SKIPPED: no small disk here"),
    }
    let shared = stage.site.scratch.dir("shared");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).expect("mode");
    let outcome = stage.config("").run(["drill", "--json", "--dir", &shared.display().to_string()]).expect_code(4);
    assert_eq!(outcome.json()["error"]["code"], "E-DRILL-DIR", "{outcome}");
}

/// What lies in the repository.
fn wrong_repository(stage: &Stage, second: &str) {
    let pack = stage.object(&format!("clusters/main/backups/{second}"), true);
    let flipped = Damaged::apply(&pack, &Damage::FlipBit { per_mille: 500 });
    stage.red("", &[], &[("E-REPO-DAMAGED", "")]);
    drop(flipped);
    let gone = Damaged::apply(&pack, &Damage::Delete);
    stage.red("", &[], &[("E-REPO-MISSING", "")]);
    drop(gone);
    // The last segment is needed to come to the end, and so is each before it.
    let mut segments = objects_under(&stage.site.pgark.repo().join("clusters/main/wal"));
    segments.retain(|path| {
        path.file_name().is_some_and(|name| name.len() >= 24 && !name.to_string_lossy().contains("history"))
    });
    let last = segments.last().expect("a segment").clone();
    let lost = Damaged::apply(&last, &Damage::Delete);
    let found = stage.red("", &[], &[]);
    assert!(reasons(&found).iter().any(|(code, _)| code == "E-WAL-GAP" || code == "E-REPO-MISSING"), "{found:#}");
    drop(lost);
    let worn = Damaged::apply(&last, &Damage::FlipBit { per_mille: 500 });
    let found = stage.red("", &[], &[]);
    assert!(reasons(&found).iter().any(|(code, _)| code == "E-REPO-DAMAGED" || code == "E-RECOVERY"), "{found:#}");
    drop(worn);
    // A newer backup that is known to be damaged is no reason to be content with an older one.
    let gone = Damaged::apply(&pack, &Damage::Delete);
    stage.site.elsewhere.run(["verify"]).expect_code(20);
    drop(gone);
    stage.red("", &[], &[("E-DRILL-DEGRADED", second)]);
}

fn file_of(stage: &Stage, relation: &str) -> PathBuf {
    let path = stage.site.cluster.psql_db(DATABASE, &format!("select pg_relation_filepath('{relation}')"));
    stage.site.cluster.data_dir().join(path)
}

/// Damage that backups take along: only who reads the restored cluster finds it.
#[test]
fn defects_inside_the_cluster_turn_it_red_each_for_its_own_reason() {
    let server = installed_or_skip!();
    let mut stage = Stage::new(&server, "drillbad");
    fill(&stage.site);
    stage.site.cluster.psql_db(
        DATABASE,
        "create table one (i int primary key); insert into one select generate_series(1, 200); \
         create table two (i int primary key); insert into two select generate_series(1001, 1200); \
         create table stale (i int); insert into stale select generate_series(1, 100); \
         create function f(text) returns text[] language c strict as '$libdir/pg_trgm', 'show_trgm'; \
         update pg_proc set probin = '$libdir/went_away' where proname = 'f'; \
         create table broken (i int); insert into broken select generate_series(1, 100); \
         create table cut (t text primary key); insert into cut select repeat('v', 100) || i from generate_series(1, 500) i; \
         create table emptied (t text); insert into emptied select repeat('v', 100) || i from generate_series(1, 500) i; \
         select setval('orders_id_seq', 5); update pg_index set indisvalid = false where indexrelid = 'slow_pkey'::regclass",
    );
    stage.site.cluster.psql_db(DATABASE, "vacuum (freeze, disable_page_skipping) stale, cut, emptied");
    stage
        .site
        .cluster
        .psql("create database closed; update pg_database set datallowconn = false where datname = 'closed'");
    let (one, two) = (file_of(&stage, "one_pkey"), file_of(&stage, "two_pkey"));
    let (stale, broken) =
        (file_of(&stage, "stale").with_extension("").display().to_string() + "_vm", file_of(&stage, "broken"));
    let (cut, emptied) = (file_of(&stage, "cut"), file_of(&stage, "emptied"));
    stage.site.cluster.stop(StopMode::Fast);
    let map = fs::read(&stale).expect("the map");
    stage.site.cluster.start();
    stage.site.cluster.psql_db(DATABASE, "delete from stale where i = 7");
    stage.site.cluster.stop(StopMode::Fast);
    fs::write(&stale, map).expect("written");
    fs::copy(&one, &two).expect("copied");
    give_to_postgres(&two);
    // A page of each that nobody misses: the last ones, and one in the middle.
    let open = |path: &Path| fs::OpenOptions::new().write(true).open(path).expect("opened");
    open(&cut).set_len(2 * 8192).expect("cut");
    open(&emptied).write_all_at(&[0; 8192], 8192).expect("written");
    // The second row is said to be longer than its page.
    let file = fs::OpenOptions::new().write(true).open(&broken).expect("opened");
    file.write_all_at(&0x0ffe_9fc0u32.to_le_bytes(), 28).expect("written");
    stage.site.cluster.start();
    // Whoever connects would need it.
    let libraries = |what: &str| format!("alter database \"{DATABASE}\" {what}");
    stage.site.cluster.psql(&libraries("set session_preload_libraries = 'nobody_has_it'"));
    let id = stage.site.pgark.backup("full");
    stage.site.cluster.psql(&libraries("reset session_preload_libraries"));
    let before = stage.site.elsewhere.backup_info(&id);
    let found = stage.red(
        CHECK,
        &["--target-immediate"],
        &[
            ("E-DRILL-CHECK", "B-tree indexes agree with their tables (amcheck): "),
            ("E-DRILL-CHECK", "two_pkey"),
            ("E-DRILL-CHECK", "visibility maps are right (pg_visibility): "),
            ("E-DRILL-CHECK", "public.stale: "),
            ("E-DRILL-CHECK", "libraries of functions are installed: $libdir/went_away"),
            ("E-DRILL-CHECK", "tables are whole (amcheck): public.broken"),
            ("E-DRILL-CHECK", "indexes lead to as many rows as tables have: public.cut"),
            ("E-DRILL-CHECK", "public.emptied: "),
            ("E-DRILL-CHECK", "sequences are ahead of their columns"),
            ("E-DRILL-CHECK", "indexes are valid"),
        ],
    );
    let unchecked = strings(&found["not_checked"]);
    assert!(unchecked.len() == 1 && unchecked.iter().all(|w| w.contains("'closed'")), "{found:#}");
    // That it was recovered is known; that it is proven is not.
    assert_eq!(
        (&before["evidence"], &stage.site.elsewhere.backup_info(&id)["evidence"]),
        (&"stored".into(), &"replayed".into())
    );
    let info = stage.config("").json(["info"]);
    assert_eq!(info["clusters"][0]["drill"]["last"]["verdict"], "red", "{info:#}");
    let list = stage.config("").json(["report", "list", "--severity", "incident"]);
    assert_eq!(list["reports"].as_array().map(Vec::len), Some(1), "{list}");

    // Recovery would make this tablespace where production has it, and empty it first.
    let fresh = stage.site.cluster.create_tablespace("fresh", "fresh");
    stage
        .site
        .cluster
        .psql_db(DATABASE, "create table kept (i int) tablespace fresh; insert into kept values (1); checkpoint");
    stage.site.archive_all();
    let there = tree_of(&fresh);
    let found = stage.drill("", &["--backup", &id], 3);
    assert_eq!(found["verdict"], "not_proven", "{found}");
    assert!(strings(&found["not_checked"]).iter().any(|w| w.contains(&fresh.display().to_string())), "{found:#}");
    there.assert_same(&tree_of(&fresh), "a tablespace of production");
}

/// Dumps: loaded into a new cluster, compared with their truth.
#[test]
fn dumps_are_rehearsed_in_a_cluster_of_their_own() {
    let server = installed_or_skip!();
    let mut stage = Stage::new(&server, "drilldump");
    fill(&stage.site);
    stage
        .site
        .cluster
        .psql_db(DATABASE, "alter subscription s set (slot_name = none); drop subscription s; drop publication p");
    let backup = |more: &[&str]| {
        let words = ["backup", "--kind", "logical", "--json", "--database", DATABASE];
        let document = stage.site.pgark.run([&words[..], more].concat()).expect_code(0).json();
        document["id"].as_str().expect("an id").to_owned()
    };
    let lonely = backup(&["--truth", "hashes"]);
    let blind = backup(&["--globals", "--truth", "none"]);
    let whole = backup(&["--globals", "--truth", "hashes"]);
    stage.site.cluster.stop(StopMode::Fast);
    let before = production(&stage);
    let logical = |more: &[&'static str]| [&["--kind", "logical"][..], more].concat();

    let found = stage.green(CHECK, &logical(&[]));
    assert_eq!(found["backup"], whole.as_str(), "{found}");
    let app = &found["databases"][0];
    for wanted in ["contents", "rows", "B-tree indexes agree with their tables (amcheck)", "orders"] {
        let check = app["checks"].as_array().into_iter().flatten().find(|c| c["name"] == wanted);
        assert!(check.is_some_and(|c| c["outcome"] == "ok"), "{wanted}: {app:#}");
    }
    assert_eq!(stage.site.elsewhere.backup_info(&whole)["evidence"], "drilled");
    let random = stage.config(CHECK).run(["drill", "--json", "--kind", "logical", "--backup", "random"]);
    assert!([lonely.as_str(), &blind, &whole].iter().any(|id| random.json()["backup"] == *id), "{random}");

    // Nothing to compare with: neither red nor green.
    let found = stage.drill(CHECK, &["--kind", "logical", "--backup", &blind], 3);
    assert!(strings(&found["not_checked"]).iter().any(|w| w.contains("without a truth")), "{found:#}");
    assert_eq!(stage.site.elsewhere.backup_info(&blind)["evidence"], "stored");
    // Roles and tablespaces are not in a new cluster, and not in the backup.
    stage.red(CHECK, &["--kind", "logical", "--backup", &lonely], &[("E-ROLE-NONE", "'clerk'")]);
    stage.red("rpo = \"1ms\"\n", &logical(&[]), &[("E-DRILL-RPO", "the newest dump is")]);
    let wrong = CHECK.replace(">= 3000", ">= 30000");
    stage.red(&wrong, &logical(&[]), &[("E-DRILL-CHECK", "orders: the answer is 'f'")]);
    // Programs that say that they have done it.
    let lies = programs(&stage, &server, "lies", &[("pg_restore", "exit 0".into())]);
    stage.red(CHECK, &["--kind", "logical", "--pg-bin", &lies], &[("E-DRILL-CHECK", "table public.orders is missing")]);
    let broken = programs(&stage, &server, "broken", &[("initdb", "echo no room for it >&2; exit 1".into())]);
    stage.red(CHECK, &["--kind", "logical", "--pg-bin", &broken], &[("E-PG-PROGRAM", "no room for it")]);
    let dead = programs(
        &stage,
        &server,
        "dead",
        &[(
            "postgres",
            "case \"$1\" in --*) exec REAL \"$@\";; -D) exit 7;; esac; exec REAL \"$@\""
                .replace("REAL", &server.program("postgres").display().to_string()),
        )],
    );
    stage.red(CHECK, &["--kind", "logical", "--pg-bin", &dead], &[("E-START", "ended while it started")]);
    assert_untouched(&before, &stage);
    let pack = stage.object(&format!("clusters/main/backups/{lonely}"), true);
    let flipped = Damaged::apply(&pack, &Damage::FlipBit { per_mille: 500 });
    let found = stage.red(CHECK, &["--kind", "logical", "--backup", &lonely], &[]);
    assert!(reasons(&found).iter().any(|(code, _)| code == "E-REPO-DAMAGED"), "{found:#}");
    drop(flipped);
}

const EXAMPLE: &str = include_str!("../../../../examples/three-tier.toml");

/// `examples/three-tier.toml` with the places of this test, its text, and a database like that of its checks.
pub fn three_tiers(site: &Site) -> (Pgark, String) {
    let places = [
        ("\"/var/lib/pgark\"", format!("\"{}\"", site.pgark.repo().display())),
        ("\"/etc/pgark/passphrase\"", format!("\"{}\"", site.pgark.passphrase_file().display())),
        ("\"/var/run/postgresql\"", format!("\"{}\"", site.cluster.socket_dir().display())),
        ("\"/var/lib/pgark-drill\"", format!("\"{}\"", site.scratch.join("drill").display())),
        ("\"/var/lib/postgresql/16/main\"", format!("\"{}\"", site.cluster.data_dir().display())),
        ("port = 5432", format!("port = {}", site.cluster.port())),
    ];
    let text = places.iter().fold(EXAMPLE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let text = alerts_into(&site.scratch.join("told"), &text);
    let config = site.scratch.file("pgark.toml", text.as_bytes(), 0o600);
    let bare = ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA"];
    let pgark =
        bare.iter().fold(site.pgark.clone(), |pgark, name| pgark.without_env(name)).env("PGARK_CONFIG", &config);
    site.cluster.psql("create database bioverse");
    site.cluster.psql_db(
        "bioverse",
        "create table patients (id int primary key); insert into patients select generate_series(1, 100); \
         create table samples (id serial primary key, patient int references patients); \
         insert into samples (patient) select i % 100 + 1 from generate_series(1, 500) i",
    );
    (pgark, text)
}

/// Its monthly rehearsal, which needs no flag.
#[test]
fn the_three_tiers_are_rehearsed_as_their_configuration_says() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "three");
    let dir = site.scratch.join("drill");
    let (pgark, text) = three_tiers(&site);
    // Whoever wants to write there has to say so; rehearsals and tables that come back are not kept from it.
    site.cluster.psql("alter database bioverse set default_transaction_read_only = on");
    pgark.run(["config", "check"]).expect_code(0);
    let physical = pgark.backup("full");
    pgark.json(["backup", "--kind", "logical"]);

    // A promise without a proof is called out.
    let finding = |name: &str| {
        let checked = pgark.run(["check", "--json"]).json();
        checked["checks"].as_array().into_iter().flatten().find(|c| c["name"] == name).cloned().unwrap_or(Value::Null)
    };
    assert_eq!((&finding("drill")["verdict"], &finding("rto")["verdict"]), (&"warning".into(), &"not checked".into()));
    assert_eq!(finding("rpo")["verdict"], "warning", "archive_timeout is off in this cluster");
    site.cluster.psql("alter system set archive_timeout = '5min'");
    site.cluster.reload();
    assert_eq!(finding("rpo")["verdict"], "ok");

    let held = pgark.json(["drill"]);
    assert_eq!(
        (&held["verdict"], &held["backup"], &held["target"]),
        (&"green".into(), &physical.as_str().into(), &"immediate".into()),
        "{held}"
    );
    assert_eq!(fs::read_dir(&dir).expect("made").count(), 0);
    site.archive_all();
    pgark.run(["restore-table", "patients", "--database", "bioverse", "--json"]).expect_code(0);
    let shown = pgark.run(["report", "show", "latest"]).expect_code(0);
    assert!(shown.stdout.contains("every sample has a patient | ok"), "{shown}");
    assert_eq!((&finding("drill")["verdict"], &finding("rto")["verdict"]), (&"ok".into(), &"ok".into()));
    // From one first Sunday to the next are 35 days at most, and then comes the deadline of its schedule.
    let drill = finding("drill");
    assert!(drill["message"].to_string().contains("one is due every 36 days"), "{drill}");

    // The rehearsal of the next month finds what went wrong since, and says so until it is mended.
    site.cluster.psql("alter database bioverse reset default_transaction_read_only");
    site.cluster.psql_db(
        "bioverse",
        "alter table samples drop constraint samples_patient_fkey; delete from patients where id = 5",
    );
    let bad = pgark.backup("full");
    let held = pgark.run(["drill", "--backup", &bad, "--json"]).expect_code(21).json();
    assert!(reasons(&held).iter().any(|(_, what)| what.contains("every sample has a patient")), "{held}");
    let drill = finding("drill");
    assert!(drill["verdict"] == "FAILED" && drill["message"].to_string().contains("every sample"), "{drill}");
    pgark.run(["check", "--nagios"]).expect_code(2);
    // A promise that nobody can keep.
    let hasty = site.scratch.file("hasty.toml", text.replace("rto = \"4h\"", "rto = \"1ms\"").as_bytes(), 0o600);
    let info = pgark.clone().env("PGARK_CONFIG", &hasty).json(["info"]);
    assert_eq!(info["clusters"][0]["drill"]["forecasts"][0]["meets_rto"], false, "{info:#}");
}
