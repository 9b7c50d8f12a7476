//! A promotion between backup and target, with the old primary alive afterwards.

use std::fs;

use pgark_testkit::{Server, Target};

use crate::site::Site;

#[test]
fn restores_across_a_promotion_follow_the_timeline_that_was_asked_for() {
    for server in majors_or_skip!() {
        across_a_promotion(&server);
    }
}

fn across_a_promotion(server: &Server) {
    let mut site = Site::small(server, "timeline");
    let standby = site.cluster.standby(&site.scratch, "s");
    site.ledger.write_rows(&site.cluster, 10);
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 10);
    site.cluster.switch_and_archive();
    site.ledger.write_rows(&site.cluster, 10);
    let on_first = site.ledger.middle_from(11);

    // The old primary dies in the middle of a segment; the standby goes on as timeline 2.
    standby.wait_caught_up(&site.cluster);
    site.cluster.kill();
    standby.promote();
    let history =
        fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).expect("history of timeline 2");
    let switch = history.split_whitespace().nth(1).expect("the switch point");
    site.ledger.branch(2, 1, switch);
    site.ledger.write_rows(&standby, 15);
    let on_second = site.ledger.middle_from(36);
    let archived = standby.psql("select pg_current_wal_insert_lsn()");
    standby.switch_and_archive();
    let latest_second = Target::Latest { archived };

    // The old primary comes back and writes on timeline 1, beyond the switch point.
    site.cluster.start();
    site.ledger.write_rows(&site.cluster, 5);
    let latest_first = site.archive_all();

    site.assert_restores("tl2", &latest_second, 2, &["--target-timeline", "2"]);
    site.assert_restores("newest", &latest_second, 2, &["--target-timeline", "latest"]);
    site.assert_restores("tl1", &latest_first, 1, &["--target-timeline", "1"]);
    site.assert_restores("lsn2", &Target::Lsn(on_second.lsn_after), 2, &["--target-timeline", "2"]);
    let before = Target::Time { at: on_first.after, inclusive: true };
    site.assert_restores("time1", &before, 2, &["--target-timeline", "2"]);
    let xid = Target::Xid { xid: on_second.xid, inclusive: true };
    site.assert_restores("xid2", &xid, 2, &["--target-timeline", "2"]);

    // A backup of the new primary stands on timeline 2 from the start.
    let pgark = site.elsewhere.on(&standby);
    let incremental = ["backup", "--verify-incremental", "--json"];
    let promoted = pgark.run(incremental).expect_code(0).json();
    assert_eq!(promoted["timeline"], 2, "{promoted}");
    assert_eq!(promoted["base"]["method"], "blocks", "{promoted}");
    assert_eq!(promoted["verify_incremental"]["wrong"], 0, "{promoted}");
    site.ledger.write_rows(&standby, 3);
    let archived = standby.psql("select pg_current_wal_insert_lsn()");
    standby.switch_and_archive();
    site.assert_restores("after", &Target::Latest { archived }, 2, &["--target-timeline", "2"]);

    // The newest backup is of a timeline that the old primary knows nothing of: it says so and reads everything.
    let old = site.pgark.run(incremental).expect_code(0).json();
    assert_eq!((&old["timeline"], &old["base"]["method"]), (&1.into(), &"contents".into()), "{old}");
    assert!(old["base"]["reason"].as_str().is_some_and(|why| why.contains("timeline 2")), "{old}");
    site.ledger.write_rows(&site.cluster, 3);
    let latest_first = site.archive_all();
    let id = old["id"].as_str().expect("an id");
    site.assert_restores("old", &latest_first, 1, &["--target-timeline", "1", id]);
    site.elsewhere.run(["verify"]).expect_code(0);
}

#[test]
fn two_primaries_on_one_timeline_cannot_replace_each_others_segments() {
    let server = installed_or_skip!();
    let mut site = Site::small(&server, "brain");
    site.pgark.backup("full");
    // A twin of the same system id, cut off from the original, still on timeline 1.
    let twin = site.cluster.standby(&site.scratch, "t");
    site.cluster.stop(pgark_testkit::StopMode::Fast);
    let mut twin = twin;
    twin.stop(pgark_testkit::StopMode::Fast);
    fs::remove_file(twin.data_dir().join("standby.signal")).expect("standby.signal");
    twin.append_conf("archive_command = '/bin/false'");
    site.cluster.start();
    twin.start();
    site.ledger.write_rows(&site.cluster, 3);
    let segment = site.cluster.switch_and_archive();
    twin.psql("create table other (i int); insert into other select generate_series(1, 1000)");
    let other = twin.psql("select pg_walfile_name(pg_switch_wal())");
    assert_eq!(segment, other, "the twins must disagree about one segment");

    let stored = |name: &str| {
        let to = site.scratch.join(name);
        site.elsewhere.run(["archive-get".as_ref(), segment.as_ref(), to.as_os_str()]).expect_code(0);
        fs::read(to).expect("the segment")
    };
    let before = stored("before");
    let path = twin.data_dir().join("pg_wal").join(&other);
    let push = site.elsewhere.run(["archive-push".as_ref(), path.as_os_str()]);
    assert!(!push.succeeded() && push.failed_cleanly(), "different bytes under one name were accepted: {push}");
    assert!(before == stored("after"), "the first segment was replaced");
    let own = site.cluster.data_dir().join("pg_wal").join(&segment);
    if own.exists() {
        // The same bytes again are no conflict: PostgreSQL pushes again after a crash.
        site.elsewhere.run(["archive-push".as_ref(), own.as_os_str()]).expect_code(0);
    }
}

#[test]
fn a_backup_of_a_standby_restores_like_one_of_the_primary() {
    let server = installed_or_skip!();
    let mut site = Site::small(&server, "standby");
    site.ledger.write_rows(&site.cluster, 5);
    let standby = site.cluster.standby(&site.scratch, "s");
    let pgark = site.elsewhere.on(&standby);
    let backup = std::thread::scope(|scope| {
        let backup = scope.spawn(|| pgark.backup("full"));
        // A standby cannot end its WAL segment: the primary does, sooner or later.
        while !backup.is_finished() {
            site.ledger.write_rows(&site.cluster, 1);
            site.cluster.switch_and_archive();
        }
        backup.join().expect("the backup")
    });
    let info = pgark.backup_info(&backup);
    assert_eq!(info["from_standby"], true, "{info}");
    site.ledger.write_rows(&site.cluster, 5);
    let latest = site.archive_all();
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
    let immediate = Target::Immediate { lsn_stop: info["lsn_stop"].as_str().expect("lsn_stop").to_owned() };
    site.assert_restores("i", &immediate, 1, &[&backup]);
}

#[test]
fn a_server_that_was_set_back_to_an_earlier_copy_is_noticed() {
    let server = installed_or_skip!();
    let mut site = Site::small(&server, "set-back");
    site.ledger.write_rows(&site.cluster, 3);
    site.pgark.backup("full");
    site.cluster.stop(pgark_testkit::StopMode::Fast);
    let (data, copy) = (site.cluster.data_dir().to_owned(), site.scratch.join("copy"));
    let mut command = pgark_testkit::as_postgres("cp");
    assert!(command.arg("-a").arg(&data).arg(&copy).status().expect("cp").success());
    site.cluster.start();
    for _ in 0..4 {
        site.ledger.write_rows(&site.cluster, 2);
        site.archive_all();
    }
    let latest = site.archive_all();
    site.cluster.stop(pgark_testkit::StopMode::Immediate);
    fs::remove_dir_all(&data).expect("remove");
    fs::rename(&copy, &data).expect("rename");
    // The same identity, the same timeline, other WAL under names that the archive has.
    site.cluster.start();
    site.cluster.psql("create table other as select generate_series(1, 5000) i");
    for kind in ["full", "incr"] {
        let refused = site.pgark.run(["backup", "--type", kind, "--json"]).expect_code(4);
        assert!(refused.stdout.contains("E-WAL-OTHER-HISTORY"), "{refused}");
    }
    let checked = site.pgark.run(["check", "--json"]);
    let document = checked.json();
    let archiving = document["checks"].as_array().expect("checks").iter().find(|c| c["name"] == "archiving");
    assert_eq!(archiving.expect("archiving")["verdict"], "FAILED", "{checked}");
    // What there was before is as good as ever.
    site.assert_restores("before", &latest, 1, &[]);
}
