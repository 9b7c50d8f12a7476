//! Incremental backups: they read what changed, restore to the same state as a full one, and stand alone.

use std::os::unix::fs::FileExt;

use pgark_testkit::{
    Recovered, Server, StopMode, Target, as_postgres, assert_same_state, assert_sound, state_of, wait_until,
};
use serde_json::Value;

use crate::site::Site;

fn take(site: &Site, more: &[&str]) -> Value {
    let outcome = site.pgark.run([&["backup", "--json"], more].concat());
    assert!(matches!(outcome.code, Some(0)), "{outcome}");
    outcome.json()
}

fn id_of(backup: &Value) -> &str {
    backup["id"].as_str().expect("an id")
}

fn assert_by_blocks(backup: &Value) {
    assert_eq!(backup["type"], "incr", "{backup}");
    assert_eq!(backup["base"]["method"], "blocks", "{backup}");
    assert!(id_of(backup).ends_with('I'), "{backup}");
}

/// What was archived last; the source is quiet from here on.
fn archived(site: &Site) -> (Target, String) {
    let state = state_of(&site.cluster);
    (site.archive_all(), state)
}

fn restored(site: &Site, name: &str, backup: &str, latest: &Target) -> Recovered {
    let spaces = site.cluster.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'ts1'");
    let map = format!("{spaces}={}", site.scratch.join(format!("ts-{name}")).display());
    let more: &[&str] = if spaces.is_empty() { &[backup] } else { &[backup, "--tablespace-map", &map] };
    site.restore(name, latest, more)
}

fn assert_restores_the_state(site: &Site, name: &str, backup: &str, latest: &Target, state: &str) {
    let recovered = restored(site, name, backup, latest);
    assert_same_state(state, &state_of(&recovered), &format!("{name} from {backup}"));
    assert_sound(&recovered, site.server.major(), name);
    let directory = recovered.data_dir().to_owned();
    recovered.verify_checksums();
    std::fs::remove_dir_all(directory).expect("remove");
}

const TABLES: &str = "
create table t_vm(id int primary key, v text);
insert into t_vm select g, repeat('x',100) from generate_series(1,20000) g;
create table t_trunc as select g id, md5(g::text) m from generate_series(1,20000) g; create index on t_trunc(id);
create table t_tail as select g id, repeat('y',200) m from generate_series(1,20000) g;
create table t_full as select g id, md5(g::text) m from generate_series(1,20000) g;
create table t_ts(id int, m text) tablespace ts1; insert into t_ts select g, md5(g::text) from generate_series(1,15000) g;
create table t_mv as select g id, md5(g::text) m from generate_series(1,10000) g;
create unlogged table t_unl as select g id from generate_series(1,10000) g; create index on t_unl(id);
create unlogged table t_log as select g id, md5(g::text) m from generate_series(1,5000) g;
create table t_idx(id int, a int[], p point, t tsvector);
insert into t_idx select g, array[g%10,g%100], point(g,g), to_tsvector('simple', 'w'||g||' k'||g%50) from generate_series(1,8000) g;
create index on t_idx using gin(a); create index on t_idx using gist(p); create index on t_idx using brin(id);
create index on t_idx using hash(id); create index on t_idx using spgist(p); create index on t_idx using gin(t);
create table t_still as select g id, repeat(md5(g::text), 20) m from generate_series(1,30000) g;
create sequence sq;
vacuum (freeze, analyze);
";

/// Everything that changes files in a way of its own.
fn upheaval(n: usize) -> String {
    let space = if n.is_multiple_of(2) { "ts1" } else { "pg_default" };
    format!(
        "update t_vm set v = 'changed {n}' where id % 4000 = {n};
begin; truncate t_trunc; copy t_trunc from program 'seq 1 9{n}00 | sed s/\\$/\\\\tz/' with (freeze); commit;
delete from t_tail where id > 5000; vacuum t_tail; insert into t_tail select g, repeat('{n}', 150) from generate_series(5001, 12000) g;
vacuum full t_full; cluster t_vm using t_vm_pkey; vacuum t_vm; update t_vm set v = 'c{n}' where id = 7;
update t_ts set m = 'q{n}' where id < 500; alter table t_mv set tablespace {space};
create table t_new{n} as select g id, md5(g::text) m from generate_series(1,9000) g; create index on t_new{n}(m);
delete from t_new{n} where id % 3 = 0; vacuum t_new{n};
drop table if exists t_new{before};
insert into t_unl select generate_series(1,1000);
alter table t_log set logged; update t_log set m = '{n}' where id % 50 = {n}; alter table t_log set unlogged;
insert into t_idx select g, array[g%10,g%100], point(g,g), to_tsvector('simple', 'w'||g||' k'||g%50) from generate_series(8001,10000) g;
delete from t_idx where id % 7 = 0; vacuum t_idx;
select count(nextval('sq')) from generate_series(1,100);
vacuum full pg_class; vacuum full pg_database; reindex table pg_attribute;
begin; create table tp{n}(a int); insert into tp{n} select generate_series(1,3000); prepare transaction 'p{n}';
commit prepared 'p{n}';
begin; create table gone(a int); insert into gone select generate_series(1,3000); rollback;
begin; insert into t_still select g, 'new' from generate_series(1,10) g; prepare transaction 'open{n}';
select pg_switch_wal();
create table copy{n} as select * from t_still where id % 9 = {n}; drop table copy{n};
rollback prepared 'open{n}';
",
        before = n.saturating_sub(2)
    )
}

fn databases(site: &Site, n: usize) {
    let cluster = &site.cluster;
    if n > 0 {
        cluster.psql(&format!("drop database db_fc{}", n - 1));
    }
    if site.server.major() >= 15 {
        cluster.psql(&format!("create database db_fc{n} strategy file_copy"));
        cluster.psql(&format!("create database db_wl{n} strategy wal_log"));
    } else {
        cluster.psql(&format!("create database db_fc{n}"));
    }
    cluster.psql_db(&format!("db_fc{n}"), "create table x as select generate_series(1,1000) i");
}

#[test]
fn a_chain_of_ten_through_every_upheaval_is_equal_to_a_full_backup() {
    for server in majors_or_skip!() {
        chain_of_ten(&server);
    }
}

fn chain_of_ten(server: &Server) {
    let site = Site::new(server, "chain", |builder| {
        builder
            .wal_segsize_mb(1)
            .checksums(true)
            .tablespace("ts1", "ts1")
            .conf("autovacuum = off")
            .conf("max_prepared_transactions = 5")
            .conf("wal_compression = on")
            .conf("max_wal_size = 1GB")
    });
    site.cluster.psql(TABLES);
    take(&site, &["--type", "full"]);
    let mut links = vec![];
    for n in 0..10 {
        site.cluster.psql(&upheaval(n));
        databases(&site, n);
        let more: &[&str] = if n.is_multiple_of(2) { &["--verify-incremental"] } else { &[] };
        let backup = take(&site, more);
        assert_by_blocks(&backup);
        if n.is_multiple_of(2) {
            assert_eq!(backup["verify_incremental"]["wrong"], 0, "{backup}");
            assert!(backup["verify_incremental"]["pages"].as_u64() > Some(1000), "{backup}");
        }
        assert!(backup["read_bytes"].as_u64() < backup["size_bytes"].as_u64(), "{backup}");
        links.push(id_of(&backup).to_owned());
    }
    let full = take(&site, &["--type", "full"]);
    site.cluster.psql("update t_vm set v = 'after the backups' where id = 77");
    let (latest, state) = archived(&site);
    site.elsewhere.run(["verify"]).expect_code(0);
    assert_restores_the_state(&site, "full", id_of(&full), &latest, &state);
    assert_restores_the_state(&site, "last", links.last().expect("ten links"), &latest, &state);
    assert_restores_the_state(&site, "middle", &links[4], &latest, &state);
}

#[test]
fn an_unchanged_cluster_is_hardly_read_and_hardly_stored() {
    let server = installed_or_skip!();
    let site = Site::new(&server, "still", |builder| builder.conf("autovacuum = off"));
    site.cluster.psql("create table t as select g id, repeat(md5(g::text), 20) m from generate_series(1,60000) g");
    site.cluster.psql("vacuum (freeze, analyze)");
    let full = take(&site, &["--type", "full"]);
    let first = take(&site, &[]);
    let second = take(&site, &[]);
    for backup in [&first, &second] {
        assert_by_blocks(backup);
    }
    let number = |backup: &Value, field: &str| backup[field].as_u64().expect("a number");
    let (read, size) = (number(&second, "read_bytes"), number(&second, "size_bytes"));
    // What is left are visibility and free space maps, and files that are no relations.
    assert!(read * 10 < size, "{read} of {size} bytes were read");
    assert!(number(&second, "stored_bytes") * 20 < number(&full, "stored_bytes"), "{second}");
}

#[test]
fn any_backup_can_be_deleted_and_the_others_still_restore() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "delete");
    site.cluster.psql("create table t as select g id, repeat(md5(g::text), 9) m from generate_series(1,20000) g");
    let mut ids = vec![id_of(&take(&site, &["--type", "full"])).to_owned()];
    for n in 0..9 {
        site.ledger.write_rows(&site.cluster, 3);
        site.cluster.psql(&format!("update t set m = 'x{n}' where id % 400 = {n}"));
        ids.push(id_of(&take(&site, &[])).to_owned());
    }
    let (latest, state) = archived(&site);
    // The full one, one in the middle, two neighbours.
    for gone in [0, 4, 6, 7] {
        site.elsewhere.run(["delete", "--yes", &ids[gone]]).expect_code(0);
    }
    let again = site.elsewhere.run(["delete", "--yes", &ids[0]]).expect_code(0);
    assert!(again.stdout.contains("is deleted already") && again.stdout.contains("packs stay"), "{again}");
    let gone = site.elsewhere.run(["unexpire", &ids[0]]).expect_code(4);
    assert!(gone.stderr.contains("it was deleted"), "{gone}");
    site.elsewhere.run(["verify"]).expect_code(0);
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| ![0, 4, 6, 7].contains(n)) {
        assert_restores_the_state(&site, &format!("r{n}"), id, &latest, &state);
    }
    // One stands alone in the end, and what no other needs goes with its backup.
    for gone in [1, 2, 3, 5, 8] {
        site.elsewhere.run(["delete", "--yes", &ids[gone]]).expect_code(0);
    }
    assert_restores_the_state(&site, "alone", &ids[9], &latest, &state);
    let full = take(&site, &["--type", "full"]);
    site.elsewhere.run(["delete", "--yes", &ids[9]]).expect_code(0);
    let left = pgark_testkit::objects_under(site.elsewhere.repo());
    let foreign: Vec<_> = left
        .iter()
        .map(|path| path.to_string_lossy().into_owned())
        .filter(|path| path.contains("/backups/") && !path.contains(id_of(&full)))
        .collect();
    assert!(foreign.is_empty(), "left behind: {foreign:?}");
    site.elsewhere.run(["verify"]).expect_code(0);
}

/// What the last backup says about why it read everything.
fn reason_of(backup: &Value) -> String {
    assert_eq!(backup["type"], "incr", "{backup}");
    assert_eq!(backup["base"]["method"], "contents", "{backup}");
    backup["base"]["reason"].as_str().expect("a reason").to_owned()
}

#[test]
fn where_the_wal_cannot_tell_everything_is_read_and_the_reason_given() {
    let server = installed_or_skip!();
    let mut site = Site::small(&server, "reasons");
    site.cluster.psql("create table t as select g id, md5(g::text) m from generate_series(1,5000) g");
    take(&site, &["--type", "full"]);

    // A segment that is gone.
    site.ledger.write_rows(&site.cluster, 2);
    let lost = site.cluster.switch_and_archive();
    let object = crate::never_short::object_of(site.elsewhere.repo(), &lost);
    let damaged = pgark_testkit::Damaged::apply(&object, &pgark_testkit::Damage::Delete);
    site.cluster.psql("update t set m = 'after the loss' where id % 100 = 0");
    let reason = reason_of(&take(&site, &[]));
    assert!(reason.contains(&lost), "{reason}");
    drop(damaged);

    // A stretch without a full log of changes.
    let restart = |site: &mut Site, line: &str| {
        site.cluster.append_conf(line);
        site.cluster.stop(pgark_testkit::StopMode::Fast);
        site.cluster.start();
    };
    restart(&mut site, "wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off");
    site.cluster.psql("begin; truncate t; copy t from program 'seq 1 3000 | sed s/\\$/\\\\tz/'; commit");
    restart(&mut site, "wal_level = replica\nmax_wal_senders = 10\narchive_mode = on");
    site.cluster.switch_and_archive();
    let backup = take(&site, &[]);
    let reason = reason_of(&backup);
    assert!(reason.contains("wal_level") || reason.contains("archived"), "{reason}");
    let (latest, state) = archived(&site);
    assert_restores_the_state(&site, "minimal", id_of(&backup), &latest, &state);

    // Checksums switched on, which changes every page without WAL.
    site.cluster.stop(pgark_testkit::StopMode::Fast);
    let mut switch = as_postgres(server.program("pg_checksums"));
    switch.args(["--disable", "-D"]).arg(site.cluster.data_dir());
    assert!(switch.status().expect("pg_checksums").success());
    site.cluster.start();
    let backup = take(&site, &[]);
    assert!(reason_of(&backup).contains("checksums"), "{backup}");
    let (latest, state) = archived(&site);
    assert_restores_the_state(&site, "checksums", id_of(&backup), &latest, &state);
    // And from here on it goes by blocks again.
    site.cluster.psql("update t set m = 'again' where id = 5");
    assert_by_blocks(&take(&site, &[]));
}

#[test]
fn a_page_that_changes_without_wal_is_noticed_and_taken_as_it_is() {
    let server = installed_or_skip!();
    let mut site = Site::new(&server, "no-wal", |builder| {
        builder.wal_segsize_mb(1).checksums(false).conf("autovacuum = off").conf("wal_log_hints = off")
    });
    site.cluster
        .psql("create table t as select g i, repeat('x', 200) t from generate_series(1, 20000) g; vacuum freeze t");
    site.cluster.psql("create table unseen as select i from t");
    let path = site.cluster.psql("select pg_relation_filepath('t')");
    take(&site, &["--type", "full"]);
    // Whoever reads rows first sets hint bits, which changes pages without WAL and is no alarm.
    site.cluster.psql("select count(*) from unseen; checkpoint");
    let hinted = take(&site, &["--verify-incremental"]);
    assert_by_blocks(&hinted);
    assert_eq!(hinted["verify_incremental"]["wrong"], 0, "{hinted}");
    assert!(hinted["verify_incremental"]["hints"].as_u64() > Some(0), "{hinted}");

    site.cluster.stop(StopMode::Fast);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(site.cluster.data_dir().join(path));
    let file = file.expect("open");
    // A little further in the WAL, as if it had been logged, and other text in the last row.
    let mut lsn = [0];
    file.read_exact_at(&mut lsn, 17 * 8192 + 5).expect("read");
    file.write_all_at(&[lsn[0] ^ 0x10], 17 * 8192 + 5).expect("write");
    file.write_all_at(b"Q", 18 * 8192 - 20).expect("write");
    site.cluster.start();
    let outcome = site.pgark.run(["backup", "--verify-incremental", "--json"]).expect_code(3);
    let alarmed = outcome.json();
    assert_eq!(alarmed["verify_incremental"]["wrong"], 1, "{alarmed}");
    assert!(alarmed["warnings"][0].as_str().is_some_and(|w| w.contains("block 17")), "{alarmed}");
    let (latest, state) = archived(&site);
    assert!(site.cluster.psql("select count(*) from t where t like '%Q%'") == "1");
    let recovered = restored(&site, "r", id_of(&alarmed), &latest);
    assert_same_state(&state, &state_of(&recovered), "with the page that changed");
}

/// Starts a slow backup and kills it once its first pack is stored.
fn interrupted(site: &Site, number: usize) {
    let packs = |site: &Site| {
        let backups = site.elsewhere.repo().join("clusters/main/backups");
        let Ok(dirs) = std::fs::read_dir(backups) else { return 0 };
        let packs = dirs.flatten().filter_map(|d| std::fs::read_dir(d.path().join("packs")).ok());
        let names = packs.flatten().flatten().map(|f| f.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).count()
    };
    let slowly = ["backup", "--type", "full", "--limit-rate", "60MB", "--compress", "none", "-j", "1"];
    let mut child = site.pgark.command(slowly).spawn().expect("spawn");
    wait_until("a pack is stored", std::time::Duration::from_secs(120), || {
        assert!(child.try_wait().expect("wait").is_none(), "the backup ended before it could be interrupted");
        (packs(site) >= number).then_some(())
    });
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn an_interrupted_backup_is_resumed_by_content() {
    let server = installed_or_skip!();
    let site = Site::new(&server, "resume", |builder| builder.conf("autovacuum = off"));
    site.cluster.psql(
        "create table t as select g i, (select string_agg(md5(g::text || n), '') from generate_series(1, 50) n) t \
         from generate_series(1, 120000) g; vacuum freeze t; checkpoint",
    );
    interrupted(&site, 1);
    // The next one finds the first pack, and is interrupted after one more.
    interrupted(&site, 2);
    let listed = site.pgark.json(["info"])["clusters"][0]["backups"].clone();
    assert!(
        listed.as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|b| b["complete"] == false)),
        "{listed}"
    );
    site.cluster.psql("update t set t = 'new' where i % 1000 = 0");
    let backup = take(&site, &["--type", "full", "--compress", "none", "-j", "1"]);
    assert_eq!(backup["resumed"]["backups"].as_array().map(Vec::len), Some(2), "{backup}");
    assert!(backup["resumed"]["stored_bytes"].as_u64() > Some(100_000_000), "{backup}");
    let (stored, size) = (backup["stored_bytes"].as_u64(), backup["size_bytes"].as_u64().map(|n| n - 100_000_000));
    assert!(stored < size, "{backup}");
    site.elsewhere.run(["verify"]).expect_code(0);
    let (latest, state) = archived(&site);
    assert_restores_the_state(&site, "resumed", id_of(&backup), &latest, &state);
    // What it took over of the interrupted ones stays as long as it does.
    let next = take(&site, &[]);
    site.pgark.run(["delete", id_of(&backup), "--yes"]).expect_code(0);
    site.elsewhere.run(["verify"]).expect_code(0);
    let (latest, state) = archived(&site);
    assert_restores_the_state(&site, "next", id_of(&next), &latest, &state);
}

#[test]
fn what_is_left_in_packs_of_deleted_backups_is_stored_anew_so_that_they_can_go() {
    let server = installed_or_skip!();
    let site = Site::new(&server, "worn", |builder| builder.conf("autovacuum = off"));
    site.cluster.psql(
        "create table t as select g i, (select string_agg(md5(g::text || n), '') from generate_series(1, 50) n) t \
         from generate_series(1, 60000) g; vacuum freeze t",
    );
    let packs_of = |id: &str| {
        let packs = site.elsewhere.repo().join("clusters/main/backups").join(id).join("packs");
        std::fs::read_dir(packs).map_or(0, |found| found.flatten().count())
    };
    let first = id_of(&take(&site, &["--type", "full"])).to_owned();
    site.cluster.psql("delete from t where i > 1500; vacuum t; insert into t select i, t || t from t; vacuum freeze t");
    let second = id_of(&take(&site, &[])).to_owned();
    site.pgark.run(["delete", &first, "--yes"]).expect_code(0);
    assert!(packs_of(&first) > 0, "the second one needs some of the first one's packs");
    let third = take(&site, &["--verify-incremental"]);
    assert_by_blocks(&third);
    site.pgark.run(["delete", &second, "--yes"]).expect_code(0);
    assert_eq!(packs_of(&first), 0, "nothing needs the first one's packs any more");
    site.elsewhere.run(["verify"]).expect_code(0);
    let (latest, state) = archived(&site);
    assert_restores_the_state(&site, "worn", id_of(&third), &latest, &state);
}
