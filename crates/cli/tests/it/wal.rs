//! What `wal list` and `wal history` tell of a cluster where things went wrong, and that the way back they name works.

use pgark_testkit::{Ending, Recovered, Server};
use serde_json::Value;

use crate::site::Site;

fn events(site: &Site) -> Vec<Value> {
    let document = site.elsewhere.json(["wal", "history"]);
    assert_eq!(document["not_listed"], 0, "{document}");
    document["events"].as_array().expect("events").clone()
}

/// The one event of this kind in this transaction.
fn event<'a>(events: &'a [Value], kind: &str, xid: &str) -> &'a Value {
    let xid: u64 = xid.parse().expect("a number");
    let found: Vec<&Value> = events.iter().filter(|e| e["kind"] == kind && e["xid"] == xid).collect();
    assert_eq!(found.len(), 1, "{kind} by {xid}: {events:#?}");
    found[0]
}

/// Runs statements in one transaction and returns its number.
fn transaction(site: &Site, sql: &str) -> String {
    let out = site.cluster.psql(&format!("begin; select txid_current() % (2^32)::bigint; {sql}; commit"));
    out.lines().find(|line| line.chars().all(|c| c.is_ascii_digit())).expect("a transaction number").to_owned()
}

fn filenode(site: &Site, table: &str) -> Value {
    site.cluster.psql(&format!("select pg_relation_filenode('{table}')")).parse::<u64>().expect("a number").into()
}

fn touches(event: &Value, filenode: &Value) -> bool {
    event["relations"].as_array().is_some_and(|all| all.iter().any(|r| r["relfilenode"] == *filenode))
}

fn table(site: &Site, name: &str, rows: u32) {
    site.cluster.psql(&format!(
        "create table {name} as select i, repeat('x', 20) as t from generate_series(1, {rows}) i; \
         create index on {name} (i)"
    ));
}

fn history_is_told(server: &Server) {
    let site = Site::small(server, &format!("wal-{}", server.major()));
    for name in ["gone", "emptied", "packed", "thinned", "changed", "below", "kept"] {
        table(&site, name, 4000);
    }
    table(&site, "wide", 30_000);
    site.pgark.backup("full");
    let (gone, emptied, wide) = (filenode(&site, "gone"), filenode(&site, "emptied"), filenode(&site, "wide"));
    site.cluster.psql("select pg_create_restore_point('before it all')");
    let thinned = transaction(&site, "delete from thinned where i <= 3000");
    let changed = transaction(&site, "update changed set t = 'y'");
    // Its records fill more than one segment.
    let spread = transaction(&site, "delete from wide");
    let below = transaction(
        &site,
        "do $$ begin begin delete from below; exception when division_by_zero then null; end; end $$",
    );
    let truncated = transaction(&site, "truncate emptied");
    site.cluster.psql("vacuum full packed");
    site.cluster.psql("begin; drop table kept; delete from changed; rollback");
    site.cluster.psql("create database other");
    site.cluster.psql("drop database other");
    let dropped = transaction(&site, "drop table gone");
    site.archive_all();

    let mut events = events(&site);
    let begin = events.iter().position(|e| e["kind"] == "restore_point").expect("the restore point");
    // Before it is what initdb did.
    events.drain(..begin);
    // A record on the border of two segments is counted in neither.
    let nearly = |event: &Value, rows: u64| (rows - 3..=rows).contains(&event["rows"].as_u64().unwrap_or(0));
    for (kind, xid, rows) in [("delete", &thinned, 3000), ("update", &changed, 4000), ("delete", &below, 4000)] {
        assert!(nearly(event(&events, kind, xid), rows), "{kind} {rows}: {events:#?}");
    }
    let spread = event(&events, "delete", &spread);
    assert!(touches(spread, &wide) && spread["rows"].as_u64() >= Some(25_000), "{spread}");
    assert!(touches(event(&events, "truncate", &truncated), &emptied));
    let drop = event(&events, "drop", &dropped);
    assert!(touches(drop, &gone), "{drop}");
    let kinds = |kind: &str| events.iter().filter(|e| e["kind"] == kind).count();
    assert_eq!((kinds("restore_point"), kinds("rewrite"), kinds("drop_database")), (1, 1, 1), "{events:#?}");
    // What was rolled back is not told.
    assert_eq!((kinds("create_database"), kinds("drop"), kinds("delete")), (1, 1, 3), "{events:#?}");
    assert!(events.iter().all(|e| e["time"].is_string()), "{events:#?}");

    let flags = crate::site::strings(&drop["restore_before"]);
    assert_rows_before(&site, "before-drop", &flags, "gone");
    // The server marks a database invalid before it drops it: the way back leads to before that, too.
    let flags =
        crate::site::strings(&events.iter().find(|e| e["kind"] == "drop_database").expect("it")["restore_before"]);
    assert_database_before(&site, "before-dropdb", &flags);
    let flags = crate::site::strings(&spread["restore_before"]);
    assert_rows_before(&site, "before-delete", &flags, "wide");
    assert_commits(&site);
}

fn assert_database_before(site: &Site, name: &str, flags: &[String]) {
    let to = site.scratch.join(name);
    let mut words = vec!["restore", "--to", to.to_str().expect("UTF-8"), "--target-action", "promote"];
    words.extend(flags.iter().map(String::as_str));
    site.elsewhere.run(words).expect_code(0);
    let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
    assert_eq!(recovered.psql_db("other", "select 1"), "1");
}

/// The flags that an event names lead to a cluster in which it has not happened.
fn assert_rows_before(site: &Site, name: &str, flags: &[String], table: &str) {
    let to = site.scratch.join(name);
    let mut words = vec!["restore", "--to", to.to_str().expect("UTF-8"), "--target-action", "promote"];
    words.extend(flags.iter().map(String::as_str));
    site.elsewhere.run(words).expect_code(0);
    let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
    let rows: u32 = recovered.psql(&format!("select count(*) from {table}")).parse().expect("a count");
    assert_eq!(rows, if table == "wide" { 30_000 } else { 4000 });
}

/// Counted by period, and from a moment on.
fn assert_commits(site: &Site) {
    let commits = |document: &Value| -> u64 {
        let periods = document["periods"].as_array().expect("periods");
        periods.iter().filter_map(|p| p["commits"].as_u64()).sum()
    };
    let before = commits(&site.elsewhere.json(["wal", "history"]));
    let moment = site.cluster.psql(
        "select to_char(clock_timestamp() at time zone 'UTC' + interval '1 minute', \
                                    'YYYY-MM-DD\"T\"HH24:MI:00\"Z\"')",
    );
    site.ledger.write_rows(&site.cluster, 25);
    site.archive_all();
    let after = commits(&site.elsewhere.json(["wal", "history", "--period", "minute"]));
    assert!((25..60).contains(&(after - before)), "{before} and {after}");
    let later = site.elsewhere.json(["wal", "history", "--from", &moment]);
    assert_eq!(commits(&later), 0, "{later}");
    site.elsewhere.run(["wal", "history", "--from", "yesterday"]).expect_code(2);
}

#[test]
fn history_tells_what_went_wrong_and_the_way_back() {
    for server in majors_or_skip!() {
        history_is_told(&server);
    }
}

#[test]
fn the_archive_is_listed_with_its_gaps() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "wal-list");
    site.pgark.backup("full");
    for _ in 0..3 {
        site.ledger.write_rows(&site.cluster, 1);
        site.archive_all();
    }
    let list = || site.elsewhere.json(["wal", "list", "--segments"]);
    let before = list();
    let timeline = &before["timelines"][0];
    let segments = before["segments"].as_array().expect("segments").len() as u64;
    assert_eq!(timeline["ranges"][0]["segments"], segments, "{before}");
    assert_eq!(timeline["gaps"].as_array().map(Vec::len), Some(0), "{before}");
    assert!(timeline["ranges"][0]["to_time"].is_string(), "{before}");
    // The server loses a segment before it is archived.
    site.cluster.psql("alter system set archive_command = '/bin/true'");
    site.cluster.reload();
    site.ledger.write_rows(&site.cluster, 1);
    let lost = site.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    site.cluster.switch_and_archive();
    site.cluster.psql("alter system reset archive_command");
    site.cluster.reload();
    site.ledger.write_rows(&site.cluster, 1);
    site.archive_all();
    let after = list();
    let gaps = after["timelines"][0]["gaps"].as_array().expect("gaps").clone();
    assert_eq!(gaps.len(), 1, "{after}");
    assert!(gaps[0]["first"] == *lost || gaps[0]["segments"].as_u64() > Some(1), "{after}");
    let text = site.elsewhere.run(["wal", "list"]).expect_code(0).stdout;
    assert!(text.contains("WAL GAP"), "{text}");
    assert!(events(&site).iter().any(|e| e["kind"] == "gap"));
}
