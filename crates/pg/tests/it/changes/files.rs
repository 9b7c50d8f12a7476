//! The main forks on disk, block by block, before and after.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::Path;

use pgark_pg::wal::{Changes, DatabaseDir};
use pgark_pg::{Fork, RelFork};

use super::oracle::{Rel, relation_of};

const BLOCK_BYTES: usize = 8192;

pub struct Files {
    /// A hash of each block.
    blocks: BTreeMap<Rel, Vec<u64>>,
    /// Their main fork is made anew from the init fork, not from WAL.
    unlogged: BTreeSet<Rel>,
}

impl Files {
    /// Of a cluster that is shut down.
    pub fn read(data: &Path) -> Self {
        let mut files = Self { blocks: BTreeMap::new(), unlogged: BTreeSet::new() };
        let mut dirs: Vec<_> = ["base", "global", "pg_tblspc"].map(String::from).into();
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(data.join(&dir)).unwrap() {
                let path = format!("{dir}/{}", entry.unwrap().file_name().into_string().unwrap());
                // A tablespace is a symbolic link, which this follows.
                if fs::metadata(data.join(&path)).unwrap().is_dir() {
                    dirs.push(path);
                } else {
                    files.add(data, &path);
                }
            }
        }
        assert!(files.blocks.len() > 500, "{} relations", files.blocks.len());
        files
    }

    fn add(&mut self, data: &Path, path: &str) {
        let Some((rel, fork)) = relation_of(path) else { return };
        match fork {
            "" => {
                let bytes = fs::read(data.join(path)).unwrap();
                assert_eq!(bytes.len() % BLOCK_BYTES, 0, "{path}");
                let hash = |block: &[u8]| {
                    let mut hasher = DefaultHasher::new();
                    block.hash(&mut hasher);
                    hasher.finish()
                };
                self.blocks.insert(rel, bytes.chunks(BLOCK_BYTES).map(hash).collect());
            }
            "init" => drop(self.unlogged.insert(rel)),
            _ => {}
        }
    }
}

/// Every block that was there before and has another content now is in `changes`, and every relation that came, went or
/// became shorter has a limit; returns how many blocks differ. The first blocks of the relations in `inexact` change
/// without WAL.
pub fn assert_covered(before: &Files, after: &Files, changes: &Changes, inexact: &BTreeSet<Rel>) -> usize {
    let mut differing = 0;
    let (nothing, mut limited) = (Vec::new(), 0);
    let rels: BTreeSet<&Rel> = before.blocks.keys().chain(after.blocks.keys()).collect();
    for rel in rels {
        let &(spc, db, number) = rel;
        let unlogged = before.unlogged.contains(rel) || after.unlogged.contains(rel);
        if unlogged || changes.databases.contains(&DatabaseDir { spc, db }) {
            continue;
        }
        let name = format!("{spc}/{db}/{number}");
        let known = changes.relations.get(&RelFork { spc, db, rel: number, fork: Fork::Main });
        let [then, now] = [before, after].map(|files| files.blocks.get(rel));
        let shortest = match (then, now) {
            (Some(then), Some(now)) => then.len().min(now.len()),
            _ => 0,
        };
        if now.is_none() || then.is_none_or(|then| then.len() > shortest) {
            let limit = known.and_then(|known| known.limit).unwrap_or_else(|| panic!("{name} has no limit"));
            assert!(limit as usize <= shortest, "{name} was cut to {shortest} blocks, its limit is {limit}");
            limited += 1;
        }
        let [then, now] = [then, now].map(|blocks| blocks.unwrap_or(&nothing));
        for (block, _) in (0u32..).zip(then.iter().zip(now)).filter(|(_, (then, now))| then != now) {
            differing += 1;
            let excused = block == 0 && inexact.contains(rel);
            assert!(
                excused || known.is_some_and(|known| known.contains(block)),
                "block {block} of {name} differs in its file, but Changes has {}",
                known.map_or("not even the relation".to_owned(), |known| format!("limit {:?} without it", known.limit))
            );
        }
    }
    assert!(differing > 1000 && limited > 20, "{differing} {limited}: the workload left too little behind");
    differing
}
