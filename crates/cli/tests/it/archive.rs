//! What may be pushed beside finished segments, and what is left behind when a recovery is over.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use pgark_testkit::{Server, as_postgres, give_to_postgres, wait_until};
use serde_json::Value;

use crate::site::Site;

/// Stops the server that `restore --start` left running, also when the test fails.
struct Running<'a>(&'a Server, PathBuf);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut stop = as_postgres(self.0.program("pg_ctl"));
        stop.args(["stop", "-m", "immediate", "-D"]).arg(&self.1);
        if self.1.join("postmaster.pid").exists() && !stop.status().is_ok_and(|s| s.success()) {
            eprintln!("the server in {} does not stop", self.1.display());
        }
    }
}

/// A copy of a WAL file under its own name in a new directory.
fn copy_of_wal(site: &Site, segment: &str, directory: &str) -> PathBuf {
    let to = site.scratch.dir(directory).join(segment);
    fs::copy(site.cluster.data_dir().join("pg_wal").join(segment), &to).expect("copy");
    give_to_postgres(&to);
    to
}

fn push(site: &Site, path: &Path, more: &[&str]) -> pgark_testkit::Outcome {
    let path = path.display().to_string();
    site.elsewhere.run([&["archive-push", path.as_str(), "--json"], more].concat())
}

fn outcome_of(outcome: pgark_testkit::Outcome) -> String {
    outcome.expect_code(0).json()["outcome"].as_str().expect("an outcome").to_owned()
}

fn current_segment(site: &Site) -> String {
    site.cluster.psql("select pg_logical_emit_message(true, 'test', 'the segment exists')");
    site.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())")
}

#[test]
fn a_segment_that_was_pushed_unfinished_is_replaced_by_the_finished_one() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "unfinished");
    site.pgark.backup("full");
    site.cluster.switch_and_archive();
    let segment = current_segment(&site);
    for round in ["early", "later"] {
        site.ledger.write_rows(&site.cluster, 1);
        site.cluster.psql("checkpoint");
        let copy = copy_of_wal(&site, &segment, round);
        assert_eq!(outcome_of(push(&site, &copy, &[])), if round == "early" { "stored" } else { "longer" });
        assert_eq!(outcome_of(push(&site, &copy, &[])), "already_there");
    }
    site.ledger.write_rows(&site.cluster, 1);
    let latest = site.archive_all();
    let early = site.scratch.join("early").join(&segment);
    assert_eq!(outcome_of(push(&site, &early, &[])), "already_there");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
}

#[test]
fn a_segment_with_a_damaged_place_is_refused_until_somebody_accepts_it() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "damaged");
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 2);
    site.cluster.switch_and_archive();
    let segment = current_segment(&site);
    site.cluster
        .psql("select count(pg_logical_emit_message(false, 'test', repeat('x', 900))) from generate_series(1, 200)");
    site.cluster.psql("checkpoint");
    let copy = copy_of_wal(&site, &segment, "x");
    let file = fs::OpenOptions::new().write(true).open(&copy).expect("open");
    file.write_all_at(b"damage", 9000).expect("write");
    let refused = push(&site, &copy, &[]).expect_code(4);
    assert!(refused.stdout.contains("E-WAL-DAMAGED"), "{refused}");
    assert_eq!(outcome_of(push(&site, &copy, &["--accept-damaged"])), "stored");
    // PostgreSQL's own copy is a good one, and longer.
    let latest = site.archive_all();
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
}

#[test]
fn what_is_no_wal_file_is_refused_at_once() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "nowal");
    let fifo = site.scratch.dir("x").join("000000010000000000000009");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    push(&site, &fifo, &[]).expect_code(4);
    let empty = site.scratch.join("x/00000002.history");
    fs::write(&empty, "").expect("write");
    push(&site, &empty, &[]).expect_code(4);
}

#[test]
fn a_promoted_cluster_keeps_neither_the_keys_nor_the_settings_of_its_recovery() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "after");
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();
    let by_hand = site.restore("hand", &latest, &[]);
    let key = by_hand.data_dir().join("pgark-restore.key");
    wait_until("the key is removed", std::time::Duration::from_secs(30), || (!key.exists()).then_some(()));
    drop(by_hand);

    let running = Running(&server, site.scratch.join("started"));
    let (to, outcome) = site.try_restore("started", &latest, &["--start", "--port", "54999", "--json"]);
    let document: Value = outcome.expect_code(0).json();
    assert_eq!(document["started"]["promoted"], true, "{document}");
    // What it took is kept, and is what a recovery is expected to take. Of the one that was started by hand nothing is known.
    let reports = site.pgark.run(["report", "list", "--json"]).expect_code(0).json();
    assert_eq!(reports["reports"].as_array().map(Vec::len), Some(1), "{reports}");
    let kept = site.pgark.run(["report", "show", "latest", "--format", "json"]).expect_code(0).json();
    assert_eq!((&kept["what"], &kept["severity"]), (&"restored".into(), &"info".into()), "{kept}");
    assert_eq!(kept["report"]["restore"]["bytes"], document["bytes_restored"], "{kept}");
    assert_eq!(kept["report"]["reached"], document["started"]["reached"], "{kept}");
    for format in ["md", "html"] {
        let shown = site.pgark.run(["report", "show", "latest", "--format", format]).expect_code(0);
        assert!(shown.stdout.contains("replayed"), "{}", shown.stdout);
    }
    let info = site.pgark.run(["info", "--json"]).expect_code(0).json();
    let forecast = &info["clusters"][0]["drill"]["forecasts"][0];
    assert_eq!((&forecast["kind"], &forecast["measurements"]), (&"physical".into(), &1.into()), "{info}");
    let settings = fs::read_to_string(to.join("postgresql.auto.conf")).expect("settings");
    assert!(!settings.contains("restore_command") && !settings.contains("recovery_target"), "{settings}");
    assert!(settings.contains("archive_mode = 'off'"), "{settings}");
    assert!(!to.join("pgark-restore.key").exists());
    drop(running);
}

#[test]
fn ids_order_backups_whatever_was_interrupted_between() {
    let server: Server = installed_or_skip!();
    let site = Site::small(&server, "ids");
    let first = site.pgark.backup("full");
    // Abandoned: its id must not come again.
    site.pgark.run(["backup", "--archive-timeout", "0s", "--type", "full"]);
    let ids: Vec<String> = (0..3).map(|_| site.pgark.backup("full")).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(ids, sorted);
    assert!(ids.iter().all(|id| *id > first));
}

/// Segments archived since, in order.
fn archived_since(site: &Site, first: &str) -> Vec<String> {
    let list = site.elsewhere.json(["wal", "list", "--segments"]);
    let names =
        list["segments"].as_array().expect("segments").iter().map(|s| s["name"].as_str().expect("a name").to_owned());
    names.filter(|name| name.as_str() >= first).collect()
}

#[test]
fn recovery_that_reads_on_finds_the_next_segments_fetched() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "prefetch");
    let first = current_segment(&site);
    for _ in 0..12 {
        site.ledger.write_rows(&site.cluster, 1);
        site.archive_all();
    }
    let names = archived_since(&site, &first);
    assert!(names.len() >= 12, "{names:?}");
    let wal = site.scratch.dir("wal");
    let ahead = wal.join("pgark-prefetch");
    let fetched = || fs::read_dir(&ahead).map_or(0, |found| found.flatten().count());
    let get = |name: &str, more: &[&str]| {
        let dest = wal.join("RECOVERYXLOG");
        let words = [&["archive-get", name, dest.to_str().expect("UTF-8")], more].concat();
        site.elsewhere.run(words).expect_code(0);
        // As PostgreSQL does it.
        fs::rename(&dest, wal.join(name)).expect("rename");
    };
    let same = |name: &str| {
        let original = fs::read(site.cluster.data_dir().join("pg_wal").join(name));
        // PostgreSQL recycles what is archived.
        original.map_or(true, |bytes| bytes == fs::read(wal.join(name)).expect("read"))
    };
    get(&names[0], &[]);
    assert_eq!(fetched(), 0, "nobody reads on yet");
    get(&names[1], &[]);
    assert_eq!(fetched(), 7);
    // What is there is handed out without the repository's data.
    let object = find(site.elsewhere.repo(), &names[2]);
    let aside = site.scratch.join("aside");
    let whole = fs::metadata(&object).expect("metadata").len();
    fs::copy(&object, &aside).expect("copy");
    fs::OpenOptions::new().write(true).open(&object).expect("open").set_len(whole - 1).expect("truncate");
    get(&names[2], &[]);
    fs::copy(&aside, &object).expect("copy back");
    assert_eq!(fetched(), 6);
    assert!(names[..3].iter().all(|name| same(name)));
    // Somebody else's way: it starts anew, and another content under the name is not taken.
    for file in fs::read_dir(&ahead).expect("list").flatten() {
        let name = file.file_name().into_string().expect("UTF-8");
        fs::rename(file.path(), ahead.join(format!("{}.0000", &name[..24]))).expect("rename");
    }
    get(&names[3], &[]);
    assert_eq!(fetched(), 7);
    // Nor is one that was damaged where it lies.
    for file in fs::read_dir(&ahead).expect("list").flatten() {
        let file = fs::OpenOptions::new().write(true).open(file.path()).expect("open");
        file.write_all_at(b"damage", 9000).expect("write");
    }
    get(&names[4], &[]);
    let again = wal.join("again").display().to_string();
    site.elsewhere.run(["archive-get", &names[4], &again, "--alone"]).expect_code(0);
    assert!(fs::read(wal.join(&names[4])).expect("read") == fs::read(&again).expect("read"), "damage was handed out");
    get(&names[11], &["--alone"]);
    assert_eq!(fetched(), 7);
    let beyond = wal.join("RECOVERYXLOG");
    site.elsewhere.run(["archive-get", "0000000100000000000000FF", beyond.to_str().expect("UTF-8")]).expect_code(1);
    assert!(!ahead.exists(), "at the end of the archive nothing is left");
}

fn find(directory: &Path, name: &str) -> PathBuf {
    let entries = fs::read_dir(directory).expect("list").flatten().map(|entry| entry.path());
    let mut found = entries.filter_map(|path| match path.is_dir() {
        true => Some(path).filter(|p| contains(p, name)).map(|p| find(&p, name)),
        false => Some(path).filter(|p| p.file_name().is_some_and(|n| n == name)),
    });
    found.next().expect("the object")
}

fn contains(directory: &Path, name: &str) -> bool {
    fs::read_dir(directory).expect("list").flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() { contains(&path, name) } else { path.file_name().is_some_and(|n| n == name) }
    })
}

#[test]
fn wal_waits_in_a_bounded_spool_while_the_repository_is_away() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "spool");
    site.pgark.backup("full");
    let spool = site.scratch.join("spool");
    let spool_flags = format!(" --spool {} --spool-max 3MiB", spool.display());
    site.cluster
        .psql(&format!("alter system set archive_command = '{}{spool_flags}'", site.elsewhere.archive_command()));
    site.cluster.reload();
    let waiting = || fs::read_dir(&spool).map_or(0, |found| found.flatten().count());
    let write = || {
        site.ledger.write_rows(&site.cluster, 1);
        site.cluster.psql("select pg_switch_wal()");
    };
    let (repo, away) = (site.elsewhere.repo().to_owned(), site.scratch.join("away"));
    fs::rename(&repo, &away).expect("rename");
    for _ in 0..5 {
        write();
    }
    // Three fit; the others stay with PostgreSQL.
    wait_until("the spool is full", std::time::Duration::from_secs(60), || {
        let refused = site.cluster.psql("select failed_count > 0 from pg_stat_archiver") == "t";
        (waiting() == 3 && refused).then_some(())
    });
    let modes = fs::metadata(&spool).expect("metadata").mode() & 0o77;
    assert_eq!(modes, 0, "others can reach the spool");
    fs::rename(&away, &repo).expect("rename back");
    write();
    let latest = site.archive_all();
    wait_until("the spool is empty", std::time::Duration::from_secs(120), || (waiting() == 0).then_some(()));
    let listed = site.elsewhere.json(["wal", "list"]);
    assert_eq!(listed["timelines"][0]["gaps"].as_array().map(Vec::len), Some(0), "{listed}");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
    // What the repository refuses, the spool does not take.
    let junk = site.scratch.dir("x").join("0000000100000000000000F0");
    fs::write(&junk, vec![7; 1 << 20]).expect("write");
    give_to_postgres(&junk);
    push(&site, &junk, &["--spool", spool.to_str().expect("UTF-8")]).expect_code(4);
    assert_eq!(waiting(), 0);
}

#[test]
fn a_push_that_fails_says_how_long_the_server_can_go_on() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "pressure");
    site.cluster.psql("alter system set archive_command = '/bin/false'");
    site.cluster.reload();
    for _ in 0..3 {
        site.ledger.write_rows(&site.cluster, 1);
        site.cluster.psql("select pg_switch_wal()");
    }
    let status = site.cluster.data_dir().join("pg_wal/archive_status");
    let ready = fs::read_dir(&status).expect("list").flatten().map(|e| e.file_name().into_string().expect("UTF-8"));
    let ready = ready.filter_map(|n| n.strip_suffix(".ready").map(str::to_owned)).min().expect("one that waits");
    let path = site.cluster.data_dir().join("pg_wal").join(ready).display().to_string();
    let nowhere = site.scratch.join("nowhere").display().to_string();
    let failed = site.elsewhere.run(["archive-push", &path, "--repo", &nowhere]);
    assert!(!failed.succeeded() && failed.stderr.contains("segments wait for archiving"), "{failed}");
    let checked = site.pgark.run(["check", "--json", "--no-switch"]).json();
    let findings = checked["checks"].as_array().or(checked["findings"].as_array()).expect("findings");
    let found = findings.iter().find(|f| f["name"] == "pg_wal").unwrap_or_else(|| panic!("{checked}"));
    assert!(found["message"].as_str().is_some_and(|m| m.contains("segments wait")), "{found}");
}
