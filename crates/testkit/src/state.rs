//! The whole logical state of a cluster as text, to compare a restored one with its source; and checks of what queries
//! do not show.

use crate::cluster::TestCluster;
use crate::recovered::Recovered;

/// A server that answers.
pub trait Ask {
    fn ask(&self, database: &str, sql: &str) -> String;
}

impl Ask for TestCluster {
    fn ask(&self, database: &str, sql: &str) -> String {
        self.psql_db(database, sql)
    }
}

impl Ask for Recovered {
    fn ask(&self, database: &str, sql: &str) -> String {
        self.psql_db(database, sql)
    }
}

const DATABASES: &str = "select datname from pg_database where datallowconn order by 1";

/// A hash of the rows of every permanent table, catalogs too, read by sequential scans. Sequences may run ahead after a
/// recovery, so they are left out.
const TABLES: &str = "
set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off; set max_parallel_workers_per_gather = 0;
select format('select %L, count(*), md5(coalesce(string_agg(h, '''' order by h), '''')) from (select md5(t::text) h from %s t) x',
              c.oid::regclass, c.oid::regclass)
from pg_class c join pg_namespace n on n.oid = relnamespace
where relkind in ('r', 'm') and relpersistence = 'p' and nspname <> 'information_schema'
order by c.oid::regclass::text \\gexec
";

pub fn state_of(server: &dyn Ask) -> String {
    let mut state = String::new();
    for database in server.ask("postgres", DATABASES).lines() {
        state.push_str(&format!("database {database}\n{}\n", server.ask(database, TABLES)));
    }
    state
}

/// The lines in which two states differ.
pub fn assert_same_state(expected: &str, found: &str, what: &str) {
    if expected == found {
        return;
    }
    let other: std::collections::BTreeSet<&str> = found.lines().collect();
    let missing: Vec<&str> = expected.lines().filter(|line| !other.contains(line)).collect();
    panic!(
        "{what}: {} lines differ, expected among others: {:#?}",
        missing.len(),
        missing.get(..5).unwrap_or(&missing)
    );
}

const VISIBILITY: &str = "
create extension if not exists pg_visibility;
select coalesce(string_agg(format('%s: %s visible, %s frozen', c.oid::regclass, v, f), '; '), '')
from pg_class c,
     lateral (select count(*) v from pg_check_visible(c.oid)) x,
     lateral (select count(*) f from pg_check_frozen(c.oid)) y
where relkind in ('r', 'm', 't') and relpersistence = 'p' and v + f > 0
";

const INDEXES: &str = "
create extension if not exists amcheck;
select count(bt_index_check(i.indexrelid, true))
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
where a.amname = 'btree' and c.relpersistence = 'p' and i.indisvalid
";

const HEAPS: &str = "
select coalesce(string_agg(format('%s: %s', c.oid::regclass, msg), '; '), '')
from pg_class c, lateral verify_heapam(c.oid) where relkind in ('r', 'm', 't') and relpersistence = 'p'
";

/// Visibility maps that lie, B-tree indexes that miss rows, damaged heaps: in every database.
pub fn assert_sound(server: &dyn Ask, major: u32, what: &str) {
    for database in server.ask("postgres", DATABASES).lines() {
        if database == "template1" {
            continue;
        }
        assert_eq!(server.ask(database, VISIBILITY), "", "{what}, {database}: the visibility map lies");
        let indexes = server.ask(database, INDEXES);
        assert!(indexes.parse::<u32>().is_ok_and(|n| n > 50), "{what}, {database}: {indexes}");
        if major >= 14 {
            assert_eq!(server.ask(database, HEAPS), "", "{what}, {database}: a heap is damaged");
        }
    }
}
