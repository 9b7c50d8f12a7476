//! The moment at which a restored database takes the place of the old one: however the restore ends there, the old one serves on, open
//! to everybody; and two restores of one backup do not meet.

use std::process::{Child, Stdio};
use std::time::Duration;

use pgark_testkit::{as_postgres, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::site::{Site, strings};

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("the process is there");
}

/// A session that does not end while it is stopped, as one would that waits for a disk.
struct Stuck {
    psql: Child,
    backend: u32,
}

impl Stuck {
    fn begin(site: &Site) -> Stuck {
        let mut psql = as_postgres(site.server.program("psql"));
        psql.arg(format!("--dbname={}", site.cluster.connection_string("app")));
        psql.args(["-c", "select pg_sleep(600)"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let psql = psql.spawn().expect("psql");
        let asked = "select pid from pg_stat_activity where datname = 'app' and query = 'select pg_sleep(600)'";
        let backend =
            wait_until("the session is there", Duration::from_secs(30), || site.cluster.psql(asked).parse().ok());
        signal(backend, Signal::STOP);
        Stuck { psql, backend }
    }

    fn end(mut self) {
        signal(self.backend, Signal::CONT);
        self.psql.wait().expect("psql");
    }
}

#[test]
fn a_restore_that_is_stopped_while_it_ends_sessions_leaves_the_database_open() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "swap");
    let cluster = &site.cluster;
    cluster.psql("create database app");
    cluster.psql_db("app", "create table t as select generate_series(1, 100) i");
    site.pgark.run(["backup", "--kind", "logical", "--database", "app"]).expect_code(0);
    cluster.psql_db("app", "insert into t values (101)");
    let state = "select datallowconn, oid from pg_database where datname = 'app'";
    let before = cluster.psql(state);
    let left = "select string_agg(datname, ',') from pg_database where datname like 'pgark%'";
    let restore = [
        "restore",
        "--kind",
        "logical",
        "--database",
        "app",
        "--in-place",
        "--yes",
        "--no-safety-backup",
        "--keep-old",
        "--json",
    ];

    for (how, code) in [(Signal::TERM, Some(5)), (Signal::INT, Some(5)), (Signal::KILL, None)] {
        let stuck = Stuck::begin(&site);
        let mut command = site.pgark.command(restore);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pgark");
        let ending =
            "select pid from pg_stat_activity where query like 'ALTER DATABASE app RENAME TO %' and state = 'active'";
        let session: u32 =
            wait_until("sessions are being ended", Duration::from_secs(60), || cluster.psql(ending).parse().ok());
        signal(child.id(), how);
        // The server notices a client that is gone when it has an answer for it. The stopped session goes on after that alone.
        wait_until("the session of the restore is gone", Duration::from_secs(60), || {
            let there = format!("select count(*) from pg_stat_activity where pid = {session}");
            (cluster.psql(&there) == "0").then_some(())
        });
        stuck.end();
        let output = child.wait_with_output().expect("pgark");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), code, "{how:?}: {said}");
        assert_eq!(cluster.psql(state), before, "{how:?}");
        assert_eq!(cluster.psql_db("app", "select count(*) from t"), "101", "{how:?}");
        let loaded = cluster.psql(left);
        assert_eq!(loaded.is_empty(), code.is_some(), "{how:?} leaves {loaded:?}: {said}");
    }

    // What the killed one left is told, and in nobody's way.
    let loaded = cluster.psql(left);
    let document = site.pgark.run(restore).expect_code(0).json();
    assert!(strings(&document["notes"]).iter().any(|note| note.contains(&loaded)), "{document}");
    assert_eq!(cluster.psql_db("app", "select count(*) from t"), "100");
    let kept = document["old_database"].as_str().expect("it was kept").to_owned();
    assert_eq!(cluster.psql(&format!("select datallowconn from pg_database where datname = '{kept}'")), "f");

    // Two restores of one backup at the same time, while sessions come back as they are ended.
    let mut noise = as_postgres(server.program("psql"));
    noise.arg(format!("--dbname={}", cluster.connection_string("app")));
    noise.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).args(["-c", "select pg_sleep(600)"]);
    let mut noise = noise.spawn().expect("psql");
    let begin = |to: &[&str]| {
        let words = ["restore", "--kind", "logical", "--database", "app", "--yes", "--no-safety-backup", "--json"];
        let mut command = site.pgark.command([&words[..], to].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pgark")
    };
    let both = [begin(&["--to-database", "one"]), begin(&["--in-place"])];
    for child in both {
        let output = child.wait_with_output().expect("pgark");
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(output.status.code(), Some(0), "{document}");
    }
    // It is ended already, unless it came when all was over.
    noise.kill().expect("kill");
    noise.wait().expect("psql");
    // A name that somebody took is told as such.
    let outcome =
        site.pgark.run(["restore", "--kind", "logical", "--database", "app", "--to-database", "one", "--json"]);
    assert_eq!(outcome.expect_code(4).json()["error"]["code"], "E-DATABASE-EXISTS");
    // Nothing is there to be replaced: nobody is asked.
    cluster.psql("drop database app");
    site.pgark.run(["restore", "--kind", "logical", "--database", "app", "--in-place"]).expect_code(0);
    assert_eq!(cluster.psql_db("app", "select count(*) from t"), "100");
    let refused = site.pgark.run(["restore", "--kind", "logical", "--to-database", "x", "--json"]).expect_code(4);
    assert_eq!(refused.json()["error"]["code"], "E-DATABASE-NONE");
    // What the dump does not have is known from its beginning: nothing is brought here, there would be no place for it.
    let nowhere = site.pgark.clone().env("TMPDIR", "/nowhere");
    let one = |table: &str| {
        let words =
            ["restore", "--kind", "logical", "--database", "app", "--to-database", "x", "--json", "--table", table];
        nowhere.run(words)
    };
    assert_eq!(one("nope").expect_code(4).json()["error"]["code"], "E-SELECT-NONE");
    assert_ne!(one("t").expect_code(1).json()["error"]["code"], "E-SELECT-NONE");
}
