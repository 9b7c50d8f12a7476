//! Restoring over an existing cluster.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pgark_testkit::{
    Ending, Recovered, Server, StopMode, Target, assert_same_state, assert_sound, give_to_postgres, state_of,
};
use serde_json::Value;

use crate::site::Site;

fn delta(site: &Site, to: &Path, latest: &Target) -> Value {
    let arguments = site.restore_arguments(to, latest, &["--delta", "--json"]);
    site.elsewhere.run(arguments).expect_code(0).json()
}

fn number(document: &Value, field: &str) -> u64 {
    document[field].as_u64().unwrap_or_else(|| panic!("no {field}: {document}"))
}

/// A file of the table `t`, relative to the data directory.
fn file_of_t(site: &Site) -> String {
    site.cluster.psql("select pg_relation_filepath('t')")
}

/// A full backup and an incremental one of a changed table, and rows after both.
fn site_with_data(server: &Server) -> Site {
    let site = Site::small(server, "delta");
    site.cluster.psql("create table t as select g id, repeat(md5(g::text), 20) m from generate_series(1,40000) g");
    site.pgark.backup("full");
    site.cluster.psql("update t set m = 'changed' where id % 500 = 0");
    site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 5);
    site
}

#[test]
fn a_delta_restore_writes_what_differs_and_removes_what_does_not_belong() {
    let server = installed_or_skip!();
    let site = site_with_data(&server);
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let table = file_of_t(&site);
    let (to, outcome) = site.try_restore("r", &latest, &[]);
    outcome.expect_code(0);

    // Damage, cut off, remove, add; and the remains of a server that was running.
    let file = fs::OpenOptions::new().write(true).open(to.join(&table)).expect("open");
    file.write_all_at(&[0xAB; 300_000], 3_000_000).expect("write");
    drop(file);
    let cut = fs::OpenOptions::new().write(true).open(to.join("base/1/1259")).expect("open");
    cut.set_len(8192).expect("cut");
    fs::remove_file(to.join("PG_VERSION")).expect("remove");
    fs::remove_dir_all(to.join("pg_xact")).expect("remove");
    fs::write(to.join("base/1/999999"), "extra").expect("write");
    fs::create_dir_all(to.join("base/777/deep")).expect("create");
    fs::write(to.join("base/777/deep/file"), "extra").expect("write");
    fs::write(to.join("standby.signal"), "").expect("write");
    fs::create_dir_all(to.join("log")).expect("create");
    fs::write(to.join("log/server.log"), "what happened").expect("write");
    fs::write(to.join("pg_wal/000000010000000000000099"), "transactions that no archive has").expect("write");
    for path in ["base/777/deep/file", "base/777/deep", "base/777", "log/server.log", "log"] {
        give_to_postgres(&to.join(path));
    }

    let document = delta(&site, &to, &latest);
    let (written, restored) = (number(&document, "bytes_written"), number(&document, "bytes_restored"));
    assert!(written * 4 < restored, "{written} of {restored} bytes were written");
    assert!(!to.join("base/1/999999").exists() && !to.join("base/777").exists() && !to.join("standby.signal").exists());
    assert_eq!(fs::read_to_string(to.join("log/server.log")).expect("the log stays"), "what happened");
    let kept = to.join("pgark-old-wal.1/000000010000000000000099");
    assert_eq!(fs::read_to_string(kept).expect("the old WAL stays"), "transactions that no archive has");

    let recovered = Recovered::start(&server, &site.scratch, &to).expect(Ending::Promoted);
    assert_same_state(&state, &state_of(&recovered), "after the delta restore");
    assert_sound(&recovered, server.major(), "after the delta restore");
    recovered.verify_checksums();
}

#[test]
fn a_stopped_cluster_goes_back_in_place() {
    let server = installed_or_skip!();
    let mut site =
        Site::new(&server, "inplace", |b| b.wal_segsize_mb(1).tablespace("ts1", "ts1").conf("autovacuum = off"));
    site.cluster
        .psql("create table t tablespace ts1 as select g id, repeat(md5(g::text), 9) m from generate_series(1,9000) g");
    site.pgark.backup("full");
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let lsn = site.cluster.psql("select pg_current_wal_lsn()");
    site.cluster.psql("drop table t");
    site.archive_all();
    let to = site.cluster.data_dir().to_owned();
    let target = Target::Lsn(lsn);
    let arguments = site.restore_arguments(&to, &target, &["--delta"]);

    site.elsewhere.run(arguments.clone()).expect_code(4);
    assert!(to.join("postmaster.pid").exists(), "a running cluster was touched");
    site.cluster.stop(StopMode::Fast);
    // Another cluster's backup does not go over it.
    let other = Site::small(&server, "other");
    other.pgark.backup("full");
    let refused = other.elsewhere.run(["restore", "--to", &to.display().to_string(), "--delta"]).expect_code(4);
    assert!(refused.stderr.contains("E-DELTA-TARGET"), "{refused}");
    drop((other, latest));

    site.elsewhere.run(arguments).expect_code(0);
    let recovered = Recovered::start(&server, &site.scratch, &to).expect(Ending::Promoted);
    assert_same_state(&state, &state_of(&recovered), "in place");
}

#[test]
fn an_interrupted_delta_restore_cannot_be_started_and_can_be_repeated() {
    let server = installed_or_skip!();
    if let Err(why) = pgark_testkit::strace_works() {
        pgark_testkit::skip!("{why}");
    }
    let site = site_with_data(&server);
    let state = state_of(&site.cluster);
    let latest = site.archive_all();
    let (to, outcome) = site.try_restore("r", &latest, &[]);
    outcome.expect_code(0);
    let whole = site.scratch.join("whole");
    let copy = |from: &Path, to: &Path| {
        let mut cp = pgark_testkit::as_postgres("cp");
        assert!(cp.arg("-a").arg(from).arg(to).status().expect("cp").success());
    };
    copy(&to, &whole);
    let arguments = site.restore_arguments(&to, &latest, &["--delta"]);
    let points = pgark_testkit::points_of(&site.elsewhere, &site.scratch, &arguments);
    let visited = if crate::site::full_sweep() { points } else { crate::site::sample(&points, 12) };
    let mut killed = 0;
    for point in visited {
        fs::remove_dir_all(&to).expect("remove");
        copy(&whole, &to);
        fs::remove_file(to.join(file_of_t(&site))).expect("remove");
        let outcome = pgark_testkit::traced(&site.elsewhere, point, pgark_testkit::Fault::Kill, &arguments);
        killed += u32::from(!outcome.succeeded());
        // Before its first change the directory is the old one, which has lost a table; after it, it must not start.
        if to.join("pgark-restore.incomplete").exists() {
            let control = fs::read(to.join("global/pg_control")).expect("pg_control");
            let pristine = fs::read(whole.join("global/pg_control")).expect("pg_control");
            assert_eq!(control, pristine, "what was restored before was poisoned, and stays so");
        }
        site.elsewhere.run(arguments.clone()).expect_code(0);
        let recovered = Recovered::start(&server, &site.scratch, &to).expect(Ending::Promoted);
        assert_same_state(&state, &state_of(&recovered), "after the repetition");
    }
    assert!(killed > 5, "only {killed} of the kills hit the restore");
}

#[test]
fn several_restores_run_at_once() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "at-once");
    site.ledger.write_rows(&site.cluster, 5);
    let first = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 5);
    let second = site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 5);
    let latest = site.archive_all();
    let wanted = [("r1", &first), ("r2", &second), ("r3", &first), ("r4", &second)];
    std::thread::scope(|scope| {
        let all = wanted.map(|(name, id)| {
            let (site, latest) = (&site, &latest);
            scope.spawn(move || site.try_restore(name, latest, &[id.as_str(), "--json"]).1)
        });
        // None of them keeps another from starting, nor a backup from being taken beside them.
        site.pgark.backup("incr");
        for one in all {
            one.join().expect("a restore").expect_code(0);
        }
    });
    for (name, _) in wanted {
        let recovered =
            Recovered::start(&site.server, &site.scratch, &site.scratch.join(name)).expect(Ending::Promoted);
        site.ledger.assert_exact(&recovered, &latest, 1);
    }
}
