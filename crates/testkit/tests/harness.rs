//! The harness against itself: PostgreSQL's own tools stand in for the product, so a failure here is the harness's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgark_testkit::{
    Ending, Ledger, LoopFs, Pgbench, Recovered, Scratch, Server, StopMode, Target, TestCluster, as_postgres,
    majors_asked_for, skip,
};

fn run(mut command: Command) {
    let output = command.output().expect("run a tool");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A copy of the stopped cluster, with its stop position.
fn cold_copy(cluster: &mut TestCluster, to: &Path) {
    cluster.stop(StopMode::Fast);
    let mut copy = as_postgres("cp");
    copy.arg("-a").arg(cluster.data_dir()).arg(to);
    run(copy);
    cluster.start();
}

fn restored(scratch: &Scratch, base: &Path, archive: &Path, name: &str, setting: &str) -> PathBuf {
    let data = scratch.join(name);
    let mut copy = as_postgres("cp");
    copy.arg("-a").arg(base).arg(&data);
    run(copy);
    let conf = format!(
        "archive_mode = off\nrestore_command = 'cp \"{}/%f\" \"%p\"'\nrecovery_target_action = 'promote'\n{setting}\n",
        archive.display()
    );
    let path = data.join("postgresql.conf");
    let old = fs::read_to_string(&path).expect("postgresql.conf");
    fs::write(&path, old + &conf).expect("postgresql.conf");
    fs::write(data.join("recovery.signal"), b"").expect("recovery.signal");
    data
}

#[test]
fn every_target_of_the_ledger_agrees_with_plain_postgresql() {
    for major in majors_asked_for() {
        let server = match Server::of_major(major) {
            Ok(server) => server,
            Err(why) => skip!("PostgreSQL {major}: {why}"),
        };
        let scratch = Scratch::new("harness");
        let archive = scratch.dir("archive");
        let command = format!("cp \"%p\" \"{}/%f\"", archive.display());
        let mut cluster = TestCluster::builder(&server).wal_segsize_mb(1).archive_command(command).start(&scratch, "c");
        Pgbench::load(&cluster, 1);
        let ledger = Ledger::create(&cluster);
        ledger.write_rows(&cluster, 3);
        let base = scratch.join("base");
        cold_copy(&mut cluster, &base);

        let mut pgbench = Pgbench::run(&cluster, 100);
        let writer = ledger.write_to(&cluster);
        writer.wait_for_more(30);
        let by_time = ledger.last();
        writer.restore_point("half way");
        writer.wait_for_more(30);
        writer.stop();
        assert!(pgbench.is_running());
        drop(pgbench);
        let archived = cluster.psql("select pg_current_wal_insert_lsn()");
        cluster.switch_and_archive();
        ledger.write_rows(&cluster, 5);
        cluster.stop(StopMode::Immediate);

        let row = ledger.middle_from(20);
        let cases = [
            (
                Target::Time { at: by_time.after.clone(), inclusive: true },
                format!("recovery_target_time = '{}'", by_time.after.replace('Z', "+00")),
            ),
            (
                Target::Xid { xid: row.xid, inclusive: false },
                format!("recovery_target_xid = '{}'\nrecovery_target_inclusive = off", row.xid),
            ),
            (Target::Lsn(row.lsn_after.clone()), format!("recovery_target_lsn = '{}'", row.lsn_after)),
            (Target::Name("half way".into()), "recovery_target_name = 'half way'".into()),
            (Target::Latest { archived }, String::new()),
        ];
        for (number, (target, setting)) in cases.iter().enumerate() {
            let data = restored(&scratch, &base, &archive, &format!("r{number}"), setting);
            let recovered = Recovered::start(&server, &scratch, &data).expect(Ending::Promoted);
            ledger.assert_exact(&recovered, target, 1);
            assert!(!ledger.expected(target, 1).must.is_empty());
        }
        let last = Recovered::start(&server, &scratch, &restored(&scratch, &base, &archive, "c0", ""));
        assert_eq!(last.amcheck(), server.major() == 15);
        last.verify_checksums();
    }
}

#[test]
fn a_restore_that_is_one_row_short_is_noticed() {
    let server = match Server::installed() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("short");
    let mut cluster = TestCluster::builder(&server).start(&scratch, "c");
    let ledger = Ledger::create(&cluster);
    ledger.write_rows(&cluster, 3);
    let copy = scratch.join("copy");
    cold_copy(&mut cluster, &copy);
    ledger.write_rows(&cluster, 1);
    let archived = cluster.psql("select pg_current_wal_insert_lsn()");
    cluster.stop(StopMode::Fast);
    let recovered = Recovered::start(&server, &scratch, &copy).expect(Ending::Promoted);
    let compare = || ledger.assert_exact(&recovered, &Target::Latest { archived }, 1);
    let complaint = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compare)).expect_err("one row is missing");
    let text = complaint.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.contains("4 rows expected, 3 found; missing [4]"), "{text}");
}

#[test]
fn a_directory_without_pg_control_is_reported_as_down() {
    let server = match Server::installed() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("down");
    let mut cluster = TestCluster::builder(&server).start(&scratch, "c");
    let copy = scratch.join("copy");
    cold_copy(&mut cluster, &copy);
    fs::remove_file(copy.join("global/pg_control")).expect("pg_control");
    assert_eq!(Recovered::start(&server, &scratch, &copy).ending(), Ending::Down);
}

#[test]
fn a_standby_follows_and_is_promoted_to_the_next_timeline() {
    let server = match Server::installed() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("standby");
    let mut primary = TestCluster::builder(&server).start(&scratch, "p");
    let ledger = Ledger::create(&primary);
    let standby = primary.standby(&scratch, "s");
    ledger.write_rows(&primary, 2);
    standby.wait_caught_up(&primary);
    primary.kill();
    standby.promote();
    ledger.write_rows(&standby, 1);
    assert_eq!(ledger.rows().iter().map(|row| row.timeline).collect::<Vec<_>>(), [1, 1, 2]);
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_loses_the_rest() {
    let mut disk = match LoopFs::new(32) {
        Ok(disk) => disk,
        Err(why) => skip!("{why}"),
    };
    let dir = disk.dir("d");
    let synced = fs::File::create(dir.join("synced")).expect("create");
    std::io::Write::write_all(&mut &synced, b"kept").expect("write");
    synced.sync_all().expect("fsync");
    fs::File::open(&dir).expect("open").sync_all().expect("fsync the directory");
    fs::write(dir.join("lazy"), b"lost").expect("write");
    drop(synced);
    disk.cut_power();
    assert!(fs::write(dir.join("later"), b"no").is_err());
    disk.restore_power();
    assert_eq!(fs::read(dir.join("synced")).expect("read"), b"kept");
    assert_ne!(fs::read(dir.join("lazy")).ok(), Some(b"lost".to_vec()));
    disk.fill_leaving(4096);
    assert!(fs::write(dir.join("big"), vec![1; 1 << 20]).is_err());
}
