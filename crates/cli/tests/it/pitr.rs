//! Every kind of target, row-exact, while other sessions write.

use pgark_testkit::{Pgbench, Server, Target};

use crate::site::Site;

#[test]
fn restores_to_every_kind_of_target_are_row_exact_while_pgbench_runs() {
    for server in majors_or_skip!() {
        every_kind_of_target(&server);
    }
}

fn every_kind_of_target(server: &Server) {
    let site = Site::new(server, "pitr", |builder| builder);
    Pgbench::load(&site.cluster, 1);
    site.ledger.write_rows(&site.cluster, 3);

    let mut pgbench = Pgbench::run(&site.cluster, 150);
    let writer = site.ledger.write_to(&site.cluster);
    writer.wait_for_more(20);
    let full = site.pgark.backup("full");
    writer.wait_for_more(20);
    let in_full = site.ledger.last();
    writer.restore_point("between the backups");
    writer.wait_for_more(20);
    let before_incremental = site.ledger.last();
    let incremental = site.pgark.backup("incr");
    writer.wait_for_more(40);
    let in_incremental = site.ledger.middle_from(before_incremental.id + 20);
    writer.wait_for_more(5);
    assert!(pgbench.is_running(), "pgbench ended early, so nothing ran beside the ledger");
    drop(pgbench);
    writer.stop();
    let latest = site.archive_all();
    // These rows are acknowledged but not archived: no restore may show them.
    site.ledger.write_rows(&site.cluster, 4);

    let stop_of = |id: &str| site.pgark.backup_info(id)["lsn_stop"].as_str().expect("lsn_stop").to_owned();
    let cases: [(&str, Target, Vec<&str>); 9] = [
        ("time", Target::Time { at: in_full.after.clone(), inclusive: true }, vec![]),
        ("time-x", Target::Time { at: in_incremental.committed.clone(), inclusive: false }, vec![]),
        ("lsn", Target::Lsn(in_incremental.lsn_after.clone()), vec![]),
        ("xid", Target::Xid { xid: in_incremental.xid, inclusive: true }, vec![]),
        ("xid-x", Target::Xid { xid: in_full.xid, inclusive: false }, vec![]),
        ("name", Target::Name("between the backups".into()), vec![]),
        ("now", Target::Immediate { lsn_stop: stop_of(&full) }, vec![&full]),
        ("now-i", Target::Immediate { lsn_stop: stop_of(&incremental) }, vec![&incremental]),
        ("full-end", latest.clone(), vec![&full]),
    ];
    for (name, target, more) in &cases {
        site.assert_restores(name, target, 1, more);
    }
    the_newest_state_is_sound(&site, &latest);
}

/// Beyond the ledger: pgbench's own books balance, every heap and index is sound, every page checksum is right.
fn the_newest_state_is_sound(site: &Site, latest: &Target) {
    let recovered = site.restore("latest", latest, &[]);
    site.ledger.assert_exact(&recovered, latest, 1);
    let sums = recovered.psql(
        "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), \
         (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)",
    );
    let mut each = sums.split('|');
    let first = each.next();
    assert!(each.all(|sum| Some(sum) == first), "pgbench's balances disagree: {sums}");
    recovered.amcheck();
    recovered.verify_checksums();
}

#[test]
fn a_restore_to_the_very_time_of_a_commit_includes_it_unless_exclusive() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "exact");
    site.ledger.write_rows(&site.cluster, 5);
    site.pgark.backup("full");
    // Nobody else writes, so a commit's time belongs to one commit.
    site.ledger.write_rows(&site.cluster, 9);
    site.archive_all();
    let row = site.ledger.middle_from(6);
    site.assert_restores("in", &Target::Time { at: row.committed.clone(), inclusive: true }, 1, &[]);
    site.assert_restores("out", &Target::Time { at: row.committed, inclusive: false }, 1, &[]);
}

#[test]
fn a_restore_of_a_restore_recovers_again() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "again");
    site.ledger.write_rows(&site.cluster, 5);
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 5);
    let latest = site.archive_all();
    for name in ["first", "second"] {
        let recovered = site.restore(name, &latest, &[]);
        site.ledger.assert_exact(&recovered, &latest, 1);
        // A copy must not archive into the lineage it came from.
        recovered.psql("insert into ledger values (1000, md5('1000')); select pg_switch_wal()");
        assert_ne!(recovered.psql("show archive_mode"), "on", "a restored copy archives");
    }
    site.elsewhere.run(["verify"]).expect_code(0);
}
