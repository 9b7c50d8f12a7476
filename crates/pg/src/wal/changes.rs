//! Which blocks a stretch of WAL changes, so that an incremental backup reads those and no others.
//!
//! Invariant: a block of a main fork whose file content may differ from what it was before the stretch is in the set of
//! its relation, or at or beyond the relation's limit, or in a database that is listed; else the stretch is unusable
//! and says why. Free space maps, visibility maps and init forks are not tracked: visibility maps are changed without
//! being referred to, so nobody may plan with any of them. Merging is the same in any order.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use crate::bytes::u32_at;
use crate::major::Major;
use crate::relpath::{Fork, RelFork};

use super::record::{DecodeError, Record, rmgr};
use super::walker::RecordSink;

/// The info codes of the SMGR resource manager (catalog/storage_xlog.h).
mod smgr {
    pub const CREATE: u8 = 0x10;
    pub const TRUNCATE: u8 = 0x20;
    pub const TRUNCATE_HEAP: u32 = 0x01;
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RelationChanges {
    /// The relation was created, dropped or cut off at this block: whatever lies from there on is new.
    pub limit: Option<u32>,
    pub blocks: RoaringBitmap,
}

/// A database's directory in one tablespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DatabaseDir {
    pub spc: u32,
    pub db: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// By main fork.
    pub relations: BTreeMap<RelFork, RelationChanges>,
    /// Created, copied or dropped as a whole, without naming relations.
    pub databases: BTreeSet<DatabaseDir>,
    /// Why nobody may plan with this stretch; the first reason.
    pub unusable: Option<String>,
}

impl RelationChanges {
    fn limit(&mut self, limit: u32) {
        let limit = self.limit.map_or(limit, |l| l.min(limit));
        self.limit = Some(limit);
        self.blocks.remove_range(limit..);
    }

    /// Whether the file's block may differ.
    pub fn contains(&self, block: u32) -> bool {
        self.blocks.contains(block) || self.limit.is_some_and(|limit| block >= limit)
    }

    fn merge(&mut self, other: &RelationChanges) {
        self.blocks |= &other.blocks;
        if let Some(limit) = self.limit.into_iter().chain(other.limit).min() {
            self.limit(limit);
        }
    }
}

impl Changes {
    pub fn merge(&mut self, other: &Changes) {
        for (rel, changes) in &other.relations {
            self.relations.entry(*rel).or_default().merge(changes);
        }
        self.databases.extend(&other.databases);
        if self.unusable.is_none() {
            self.unusable.clone_from(&other.unusable);
        }
    }

    pub fn add(&mut self, record: &Record<'_>) {
        if let Err(e) = self.try_add(record) {
            self.unusable.get_or_insert_with(|| e.to_string());
        }
    }

    fn try_add(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let mut blocks = record.blocks();
        for block in blocks.by_ref() {
            let block = block?;
            if block.rel.fork == Fork::Main {
                let relation = self.relations.entry(block.rel).or_default();
                if relation.limit.is_none_or(|limit| block.block.0 < limit) {
                    relation.blocks.insert(block.block.0);
                }
            }
        }
        let data = blocks.main_data();
        match record.rmgr {
            rmgr::SMGR => self.storage(record, data),
            rmgr::DBASE => {
                self.databases.extend(database_dirs(record)?.1);
                Ok(())
            }
            rmgr::XACT => {
                for rel in record.dropped_relations()? {
                    self.limit(rel, 0);
                }
                Ok(())
            }
            _ if record.special_rel_update() => {
                Err(record.error("changes relation files in a way that is not known here"))
            }
            _ => Ok(()),
        }
    }

    fn limit(&mut self, rel: RelFork, limit: u32) {
        self.relations.entry(rel).or_default().limit(limit);
    }

    fn storage(&mut self, record: &Record<'_>, data: &[u8]) -> Result<(), DecodeError> {
        let short = || record.error("storage record is cut short");
        let field = |at| u32_at(data, at).ok_or_else(short);
        let rel = |at| Ok(RelFork { spc: field(at)?, db: field(at + 4)?, rel: field(at + 8)?, fork: Fork::Main });
        match record.op() {
            smgr::CREATE => {
                if let Some(created) = created_relation(record)? {
                    self.limit(created, 0);
                }
                Ok(())
            }
            smgr::TRUNCATE => {
                if field(16)? & smgr::TRUNCATE_HEAP != 0 {
                    self.limit(rel(4)?, field(0)?);
                }
                Ok(())
            }
            _ => Err(record.error("unknown storage record")),
        }
    }
}

/// What a record says of whole databases: whether it drops their directories, and which. `xl_dbase_create_rec`,
/// `xl_dbase_create_file_copy_rec`, `xl_dbase_create_wal_log_rec`, `xl_dbase_drop_rec` (commands/dbcommands_xlog.h);
/// the codes moved in 15.
pub(super) fn database_dirs(record: &Record<'_>) -> Result<(bool, Vec<DatabaseDir>), DecodeError> {
    let data = record.main_data()?;
    let field = |at| u32_at(data, at).ok_or_else(|| record.error("database record is cut short"));
    let drop = if record.major >= Major::V15 { 0x20 } else { 0x10 };
    match record.op() {
        op if op == drop => {
            let db = field(0)?;
            let count = usize::try_from(field(4)?).unwrap_or(usize::MAX).min(data.len());
            let dirs: Result<_, _> = (0..count).map(|n| Ok(DatabaseDir { spc: field(8 + 4 * n)?, db })).collect();
            Ok((true, dirs?))
        }
        0x00 | 0x10 => Ok((false, vec![DatabaseDir { spc: field(4)?, db: field(0)? }])),
        _ => Err(record.error("unknown database record")),
    }
}

/// The main fork that a storage record creates.
pub(super) fn created_relation(record: &Record<'_>) -> Result<Option<RelFork>, DecodeError> {
    let data = record.main_data()?;
    let field = |at| u32_at(data, at).ok_or_else(|| record.error("storage record is cut short"));
    if record.op() != smgr::CREATE || field(12)? != u32::from(Fork::Main.number()) {
        return Ok(None);
    }
    Ok(Some(RelFork { spc: field(0)?, db: field(4)?, rel: field(8)?, fork: Fork::Main }))
}

impl RecordSink for Changes {
    fn record(&mut self, rec: &Record<'_>) {
        self.add(rec);
    }
}
