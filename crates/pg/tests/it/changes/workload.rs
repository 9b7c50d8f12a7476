//! Work that changes relation files in all the ways that PostgreSQL has: rows under every index type while pgbench
//! runs, rewrites, truncations, creations that are rolled back, two-phase commits, whole databases.

use std::collections::BTreeSet;
use std::time::Duration;

use pgark_pg::Lsn;
use pgark_testkit::{Pgbench, Scratch, Server, TestCluster, wait_until};

use super::oracle::{Rel, relation_of};

/// Each makes more than 150,000 records; two differ in what they compress and where they move things.
pub const ROUNDS: u32 = 2;
pub const ROUNDS_FULL: u32 = 5;

/// Databases and relations that are there before the stretch of WAL begins.
const PREPARE: &str = "
create table every(id int primary key, t text, v int[], p point, r int4range, h int);
create index on every using hash (h);
create index on every using gin (v);
create index on every using gist (p);
create index on every using gist (r);
create index every_spgist on every using spgist (t);
create index on every using brin (id) with (pages_per_range = 4);
insert into every select g, md5(g::text), array[g % 100, g % 7], point(g % 1000, g / 1000), int4range(g, g + 10), g
    from generate_series(1, 3000) g;
create table tail as select g id, repeat('x', 200) t from generate_series(1, 5000) g;
create table emptied as select * from tail;
create table rewritten as select * from tail;
create unlogged table unlogged as select * from tail;
create table elsewhere tablespace space as select * from tail;
create materialized view view as select count(*), min(t) from every;
create sequence numbers;
select pg_replication_origin_create('elsewhere') > 0;
create table untouched as select * from tail;
checkpoint;
";

/// Rows, and everything that rewrites them.
const ROWS: &str = "
create schema r{r}; set search_path = r{r}, public;
set wal_compression = {compression};
insert into every select g, md5(g::text), array[g % 100, g % 7], point(g % 1000, g / 1000), int4range(g, g + 10), g
    from generate_series({r} * 100000, {r} * 100000 + 12000) g;
update every set h = h + 1, t = md5(t) where id % 5 = 0;
delete from every where id % 3 = 0;
vacuum (freeze) every;
checkpoint;
create table copy as select * from every;
create index on copy(id); create index on copy using gin (v); create index on copy using spgist (t);
create table pieces(a int, b text) partition by range (a);
create table pieces1 partition of pieces for values from (0) to (10);
insert into pieces select g % 10, string_agg(md5(g::text || n), '')
    from generate_series(1, 50) g, generate_series(1, 300) n group by g;
select setval('numbers', {r} * 1000), nextval('numbers');
refresh materialized view view;
vacuum full copy;
cluster copy using copy_id_idx;
update pgbench_accounts set filler = 'x' where aid % 211 = {r};
delete from pgbench_accounts where aid between {r} * 5000 and {r} * 5000 + 2000; vacuum pgbench_accounts;
reindex table rewritten;
alter table rewritten alter id type {type};
alter table copy set tablespace space; alter table elsewhere set tablespace pg_default;
alter table elsewhere set tablespace space;
create unlogged table mine as select * from tail; alter table mine set logged; alter table copy set unlogged;
create temp table own as select * from tail;
insert into unlogged select * from tail;
vacuum full pg_class; vacuum full pg_database; reindex table pg_attribute;
select pg_logical_emit_message(false, 'big', repeat(md5('a'), 100000)) is null;
select pg_switch_wal() is null;
";

/// Truncations, and files that come and go with transactions of every ending.
const ENDINGS: &str = "
set search_path = r{r}, public;
select pg_replication_origin_session_setup('elsewhere') is null;
truncate emptied; insert into emptied select * from tail;
begin; create table filled(id int primary key); insert into filled select 1; truncate filled;
copy filled from program 'seq 1 2000' with (freeze); commit;
begin; create table kept as select 1 a; savepoint a; create table lost as select * from tail;
insert into kept values (2); rollback to a; savepoint b; create table nested as select * from tail;
savepoint c; drop table rewritten; truncate every; rollback to c; savepoint d; insert into every(id) values (-{r});
release d; release b; commit;
begin; savepoint a; drop table nested; savepoint b; create table nested as select 1 a; release b; rollback to a; commit;
drop table nested;
create table victim as select * from tail;
begin; create table made as select * from tail; savepoint a; drop table victim; release a;
prepare transaction 'kept-{r}';
begin; create table unmade as select * from tail; savepoint s; create table unmade2(a int primary key);
insert into pgbench_history(tid, bid, aid, delta) values (1, 1, 1, 1); prepare transaction 'not-{r}';
begin; create table gone as select * from tail; savepoint a; create index on gone(id); release a;
select 'middle ' || pg_current_wal_insert_lsn(); rollback;
checkpoint;
rollback prepared 'not-{r}';
commit prepared 'kept-{r}';
do $$ begin
    create table inner1();
    begin create table inner2 as select * from tail; raise 'away';
    exception when others then create table inner3 as select * from tail; end;
end $$;
";

pub fn cluster(server: &Server, scratch: &Scratch) -> TestCluster {
    TestCluster::builder(server)
        .wal_segsize_mb(1)
        .tablespace("space", "space")
        .conf("wal_level = logical")
        .conf("wal_keep_size = '64GB'")
        .conf("max_wal_size = '64GB'")
        .conf("shared_buffers = '128MB'")
        .conf("synchronous_commit = off")
        .conf("max_prepared_transactions = 10")
        .start(scratch, "c")
}

pub fn prepare(cluster: &TestCluster) {
    Pgbench::load(cluster, 10);
    cluster.psql(PREPARE);
    for database in ["old", "moved"] {
        cluster.psql(&format!("create database {database}"));
        cluster.psql_db(database, "create table t as select generate_series(1, 1000) a");
    }
}

/// Returns a place in the last round: transactions are open there that have created and dropped files.
pub fn run(cluster: &TestCluster, rounds: u32) -> Lsn {
    let history = || cluster.psql("select count(*) from pgbench_history where delta <> 0").parse::<u64>().unwrap();
    let before = history();
    cut_tail(cluster);
    let pgbench = Pgbench::run(cluster, 500);
    cluster.psql("drop database old");
    let mut middle = None;
    for round in 1..=rounds {
        // Large images cross segments as they are, small ones as PostgreSQL compresses them.
        let (compression, wide) = if round.is_multiple_of(2) { ("on", "int") } else { ("off", "bigint") };
        for script in [ROWS, ENDINGS] {
            let script = script.replace("{r}", &round.to_string());
            let said = cluster.psql(&script.replace("{compression}", compression).replace("{type}", wide));
            middle = said.lines().find_map(|line| line.strip_prefix("middle ")).map(|lsn| lsn.parse().unwrap());
        }
        databases(cluster, round);
        cluster.psql("checkpoint");
    }
    drop(pgbench);
    assert!(history() > before, "pgbench did nothing meanwhile");
    middle.unwrap()
}

/// Leaves the first blocks of a table, cuts the rest off, and writes beyond the cut.
fn cut_tail(cluster: &TestCluster) {
    cluster.psql("delete from tail where id > 1000");
    // A transaction of the server's own may still see the rows, or be in the way of the lock.
    wait_until("vacuum cuts the table off", Duration::from_secs(60), || {
        cluster.psql("vacuum tail");
        (cluster.psql("select pg_relation_size('tail') < 50 * 8192") == "t").then_some(())
    });
    cluster.psql("insert into tail select g, repeat('y', 200) from generate_series(1001, 4000) g");
}

fn databases(cluster: &TestCluster, round: u32) {
    let strategies: &[&str] =
        if cluster.server().major() >= 15 { &[" strategy file_copy", " strategy wal_log"] } else { &["", ""] };
    for (n, strategy) in strategies.iter().enumerate() {
        let name = format!("d{round}_{n}");
        cluster.psql(&format!("create database {name}{strategy}"));
        cluster.psql_db(
            &name,
            "create table t as select generate_series(1, 2000) a; create index on t(a);
             create table u() tablespace space",
        );
    }
    cluster.psql(&format!("drop database d{round}_{}", round % 2));
    let to = if round.is_multiple_of(2) { "pg_default" } else { "space" };
    cluster.psql(&format!("alter database moved set tablespace {to}"));
    cluster.psql_db("moved", &format!("create table t{round} as select generate_series(1, 1000) a"));
}

/// SP-GiST notes in the metapage, its first block, which pages it used last: a hint, and never logged
/// (`SpGistUpdateMetaPage`).
pub fn first_blocks_changed_without_wal(cluster: &TestCluster) -> BTreeSet<Rel> {
    let paths = cluster.psql(
        "select pg_relation_filepath(c.oid) from pg_class c join pg_am a on a.oid = c.relam where a.amname = 'spgist'",
    );
    let rels: BTreeSet<Rel> = paths.lines().map(|path| relation_of(path).unwrap().0).collect();
    assert!(!rels.is_empty());
    rels
}
