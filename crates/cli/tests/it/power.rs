//! Power cuts: what was acknowledged is there, bit for bit, after the power comes back.

use std::fs;

use pgark_testkit::{LoopFs, Scratch, Target, skip};

use crate::site::{Site, full_sweep};

#[test]
fn every_acknowledged_push_survives_a_power_cut_right_after_it() {
    let server = installed_or_skip!();
    let mut disk = match LoopFs::new(192) {
        Ok(disk) => disk,
        Err(why) => skip!("{why}"),
    };
    let repo = disk.dir("repo");
    let shape = |builder: pgark_testkit::ClusterBuilder| builder.wal_segsize_mb(1).conf("wal_keep_size = 1GB");
    let site = Site::with_repo(&server, Scratch::new("power"), &repo, shape);
    site.ledger.write_rows(&site.cluster, 3);
    site.pgark.backup("full");
    disk.cut_power();
    disk.restore_power();
    // The archiver would push for us otherwise; from here on the test does.
    site.cluster.psql("alter system set archive_command = '/bin/false'");
    site.cluster.reload();
    site.elsewhere.run(["verify"]).expect_code(0);

    let mut archived = String::new();
    let mut pushed = Vec::new();
    for _ in 0..if full_sweep() { 50 } else { 6 } {
        site.ledger.write_rows(&site.cluster, 1);
        archived = site.cluster.psql("select pg_current_wal_insert_lsn()");
        site.cluster.psql("select pg_switch_wal()");
        for segment in waiting_segments(&site) {
            let path = site.cluster.data_dir().join("pg_wal").join(&segment);
            site.pgark.run(["archive-push".as_ref(), path.as_os_str()]).expect_code(0);
            disk.cut_power();
            disk.restore_power();
            mark_done(&site, &segment);
            pushed.push(segment);
        }
        for segment in &pushed {
            let got = site.scratch.join("got");
            site.elsewhere.run(["archive-get".as_ref(), segment.as_ref(), got.as_os_str()]).expect_code(0);
            let path = site.cluster.data_dir().join("pg_wal").join(segment);
            assert!(fs::read(&got).expect("got") == fs::read(&path).expect("segment"), "{segment} changed");
            fs::remove_file(&got).expect("remove");
        }
    }
    assert!(pushed.len() >= 6);
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &Target::Latest { archived }, 1, &[]);
}

/// The segments that PostgreSQL wants archived, oldest first.
fn waiting_segments(site: &Site) -> Vec<String> {
    let status = site.cluster.data_dir().join("pg_wal/archive_status");
    let mut names: Vec<String> = fs::read_dir(status)
        .expect("archive_status")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Says to PostgreSQL what its archiver would after an exit code of 0.
fn mark_done(site: &Site, segment: &str) {
    let status = site.cluster.data_dir().join("pg_wal/archive_status");
    fs::rename(status.join(format!("{segment}.ready")), status.join(format!("{segment}.done")))
        .expect("archive status");
}

#[test]
fn a_power_cut_during_a_backup_costs_only_that_backup() {
    let server = installed_or_skip!();
    let mut disk = match LoopFs::new(192) {
        Ok(disk) => disk,
        Err(why) => skip!("{why}"),
    };
    let repo = disk.dir("repo");
    let site = Site::with_repo(&server, Scratch::new("cut"), &repo, |builder| builder.wal_segsize_mb(1));
    site.ledger.write_rows(&site.cluster, 3);
    let first = site.pgark.backup("full");
    let latest = site.archive_all();

    let before = pgark_testkit::objects_under(&repo).len();
    let mut running = site.pgark.command(["backup", "--type", "full"]).spawn().expect("start a backup");
    // The moment is the first new object, which makes the cut fall into the work and not before or after it.
    pgark_testkit::wait_until("the backup writes or ends", std::time::Duration::from_secs(60), || {
        let more = pgark_testkit::objects_under(&repo).len() > before;
        (more || running.try_wait().ok().flatten().is_some()).then_some(())
    });
    disk.cut_power();
    let status = running.wait().expect("the backup ends");
    disk.restore_power();
    let info = site.pgark.json(["info"]);
    let complete: Vec<_> = info["clusters"][0]["backups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|backup| backup["complete"] == true)
        .collect();
    assert!(complete.iter().any(|backup| backup["id"] == first.as_str()), "{info}");
    assert_eq!(complete.len(), if status.success() { 2 } else { 1 }, "{status}: {info}");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.pgark.backup("full");
    site.assert_restores("r", &latest, 1, &[&first]);
}
