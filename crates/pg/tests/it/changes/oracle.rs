//! What PostgreSQL's tools print of the records, and the rules of an incremental backup applied to it: the main fork
//! alone; a relation created, dropped or cut off has a limit; what lies at or beyond the limit is not listed.
//!
//! Invariant: nothing here uses the crate under test beyond the LSN that the tools are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use pgark_pg::Lsn;
use pgark_testkit::{TestCluster, as_postgres};

/// Tablespace, database, relation file number.
pub type Rel = (u32, u32, u32);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub limit: Option<u32>,
    pub blocks: BTreeSet<u32>,
}

#[derive(Default)]
pub struct Oracle {
    pub relations: BTreeMap<Rel, Said>,
    pub databases: BTreeSet<(u32, u32)>,
    pub records: usize,
    /// How often each kind of record that is not just a block reference occurred.
    seen: BTreeMap<&'static str, usize>,
}

/// The relation and the fork (empty for the main fork) of a path such as `base/5/16384_init`.
pub fn relation_of(path: &str) -> Option<(Rel, &str)> {
    let parts: Vec<&str> = path.split('/').collect();
    let (spc, db, name) = match parts.as_slice() {
        ["global", name] => (1664, 0, *name),
        ["base", db, name] => (1663, db.parse().ok()?, *name),
        ["pg_tblspc", spc, _, db, name] => (spc.parse().ok()?, db.parse().ok()?, *name),
        _ => return None,
    };
    // Relations of more than 1 GiB have further files; the workload makes none.
    assert!(!(name.starts_with(|c: char| c.is_ascii_digit()) && name.contains('.')), "{path}");
    let (number, fork) = name.split_once('_').unwrap_or((name, ""));
    Some(((spc, db, number.parse().ok()?), fork))
}

fn numbers<const N: usize>(text: &str) -> [u32; N] {
    let numbers: Vec<u32> = text.split('/').map(|n| n.parse().unwrap_or_else(|_| panic!("{text}"))).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{text}"))
}

/// Which of its tools this PostgreSQL brings.
pub enum Tool {
    Waldump,
    /// The extension, of 16 and later; the cluster runs meanwhile.
    Walinspect,
}

impl Tool {
    pub fn of(cluster: &mut TestCluster) -> Option<Self> {
        if cluster.server().program("pg_waldump").exists() {
            return Some(Self::Waldump);
        }
        (cluster.server().major() >= 16).then(|| {
            cluster.start();
            cluster.psql("create extension pg_walinspect");
            Self::Walinspect
        })
    }

    /// What it says of the records that lie in `[begin, end)`.
    pub fn ask(&self, cluster: &TestCluster, begin: Lsn, end: Lsn) -> Oracle {
        match self {
            Self::Waldump => Oracle::of_waldump(cluster, begin, end),
            Self::Walinspect => Oracle::of_walinspect(cluster, begin, end),
        }
    }
}

impl Oracle {
    fn of_waldump(cluster: &TestCluster, begin: Lsn, end: Lsn) -> Self {
        let mut command = as_postgres(cluster.server().program("pg_waldump"));
        command.arg("-p").arg(cluster.data_dir().join("pg_wal")).args([
            "-s",
            &begin.to_string(),
            "-e",
            &end.to_string(),
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut oracle = Self::default();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            oracle.line(&line.unwrap());
        }
        assert!(child.wait().unwrap().success());
        oracle.settle()
    }

    /// `rmgr: Heap len (rec/tot): …, desc: INSERT off 3, blkref #0: rel 1663/5/1249 fork vm blk 0 FPW`
    fn line(&mut self, line: &str) {
        let rest = line.strip_prefix("rmgr: ").unwrap_or_else(|| panic!("{line}"));
        let (manager, _) = rest.split_once("len (rec/tot):").unwrap();
        let (_, desc) = rest.split_once(", desc: ").unwrap();
        let mut parts = desc.split("blkref #");
        self.records += 1;
        self.special(manager.trim_end(), parts.next().unwrap().trim_end_matches([' ', ',', ';']));
        for part in parts {
            let (rel, block) = part.split_once(" blk ").unwrap_or_else(|| panic!("{line}"));
            let (_, rel) = rel.split_once(": rel ").unwrap_or_else(|| panic!("{line}"));
            if rel.contains(" fork ") && !rel.ends_with(" fork main") {
                continue;
            }
            let digits = block.find(|c: char| !c.is_ascii_digit()).unwrap_or(block.len());
            let [spc, db, number] = numbers(rel.split(' ').next().unwrap());
            self.block((spc, db, number), block[..digits].parse().unwrap());
        }
    }

    fn of_walinspect(cluster: &TestCluster, begin: Lsn, end: Lsn) -> Self {
        let records = format!("pg_get_wal_records_info('{begin}', '{end}')");
        let mut oracle = Self {
            records: cluster.psql(&format!("select count(*) from {records}")).parse().unwrap(),
            ..Self::default()
        };
        let blocks = cluster.psql(&format!(
            "select distinct reltablespace || '/' || reldatabase || '/' || relfilenode || '/' || relblocknumber
             from pg_get_wal_block_info('{begin}', '{end}', false) where relforknumber = 0"
        ));
        for line in blocks.lines() {
            let [spc, db, number, block] = numbers(line);
            oracle.block((spc, db, number), block);
        }
        let specials = cluster.psql(&format!(
            "select resource_manager || '|' || record_type || ' ' || description from {records}
             where resource_manager in ('Storage', 'Database', 'Transaction')"
        ));
        for line in specials.lines() {
            let (manager, said) = line.split_once('|').unwrap();
            oracle.special(manager, said);
        }
        oracle.settle()
    }

    fn block(&mut self, rel: Rel, block: u32) {
        self.relations.entry(rel).or_default().blocks.insert(block);
    }

    fn limit(&mut self, rel: Rel, limit: u32) {
        let said = self.relations.entry(rel).or_default();
        said.limit = Some(said.limit.map_or(limit, |known| known.min(limit)));
    }

    fn count(&mut self, kind: &'static str) {
        *self.seen.entry(kind).or_default() += 1;
    }

    /// What a record does beyond its block references; `said` begins with the kind of record.
    fn special(&mut self, manager: &str, said: &str) {
        let words: Vec<&str> = said.split_whitespace().collect();
        match (manager, words.as_slice()) {
            ("Storage", ["CREATE", path]) => {
                let (rel, fork) = relation_of(path).unwrap_or_else(|| panic!("{said}"));
                if fork.is_empty() {
                    self.limit(rel, 0);
                }
                self.count(if path.starts_with("pg_tblspc") { "create in a tablespace" } else { "create" });
            }
            ("Storage", ["TRUNCATE", path, "to", blocks, "blocks", "flags", flags]) => {
                let (rel, fork) = relation_of(path).unwrap_or_else(|| panic!("{said}"));
                assert_eq!(fork, "", "{said}");
                let (blocks, flags) = (blocks.parse().unwrap(), flags.parse::<u32>().unwrap());
                // SMGR_TRUNCATE_HEAP
                if flags & 1 != 0 {
                    self.limit(rel, blocks);
                }
                self.count(if blocks == 0 { "truncate to nothing" } else { "truncate" });
            }
            ("Storage", _) => panic!("{said}"),
            ("Database", ["CREATE" | "CREATE_FILE_COPY", "copy", "dir", _, "to", dir]) => {
                self.database(dir);
                self.count("copy a database");
            }
            ("Database", ["CREATE_WAL_LOG", "create", "dir", dir]) => {
                self.database(dir);
                self.count("create a database");
            }
            ("Database", ["DROP", "dir", dirs @ ..]) => {
                dirs.iter().for_each(|dir| self.database(dir));
                self.count("drop a database");
            }
            ("Database", _) => panic!("{said}"),
            ("Transaction", ["COMMIT", ..]) => self.end_of_transaction("commit", said),
            ("Transaction", ["ABORT", ..]) => self.end_of_transaction("abort", said),
            ("Transaction", ["COMMIT_PREPARED", ..]) => self.end_of_transaction("commit prepared", said),
            ("Transaction", ["ABORT_PREPARED", ..]) => self.end_of_transaction("abort prepared", said),
            _ => {}
        }
    }

    fn database(&mut self, dir: &str) {
        let [spc, db] = numbers(dir);
        self.databases.insert((spc, db));
    }

    /// `COMMIT 2026-03-01 …; rels: base/5/16384 base/5/16387; subxacts: 741; inval msgs: …`
    fn end_of_transaction(&mut self, kind: &'static str, said: &str) {
        let Some((_, rels)) = said.split_once("; rels: ") else { return };
        for path in rels.split(';').next().unwrap().split_whitespace() {
            let (rel, fork) = relation_of(path).unwrap_or_else(|| panic!("{said}"));
            assert_eq!(fork, "", "{said}");
            self.limit(rel, 0);
        }
        self.count(kind);
    }

    /// What is at or beyond a limit is not listed, whenever it was written.
    fn settle(mut self) -> Self {
        for said in self.relations.values_mut() {
            said.blocks.retain(|block| said.limit.is_none_or(|limit| *block < limit));
        }
        self
    }

    /// That the workload had in it what these tests are for.
    pub fn assert_seen_everything(&self, major: u32) {
        self.assert_seen(&["create", "create in a tablespace", "truncate", "truncate to nothing"]);
        self.assert_seen(&["copy a database", "drop a database", "commit", "abort"]);
        self.assert_seen(if major >= 15 { &["create a database"] } else { &[] });
        assert!(self.relations.values().any(|said| said.limit.is_some_and(|l| l > 0) && !said.blocks.is_empty()));
    }

    pub fn assert_seen(&self, kinds: &[&str]) {
        for kind in kinds {
            assert!(self.seen.contains_key(kind), "no record of the kind '{kind}' in {:?}", self.seen);
        }
    }
}
