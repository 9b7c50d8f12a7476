//! What an administrator looks for in the WAL after an accident: how many transactions committed when, and which ones
//! dropped, rewrote, deleted or updated a lot.
//!
//! Invariant: it states facts about one stretch of WAL; what they mean together (a drop, a truncate) is judged by whoever
//! has the whole transaction. Memory is bounded by the transactions that are open at a time, `TABLES_MAX` tables each;
//! totals count what is not listed. Nothing here decides what a backup reads.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};

use crate::bytes::u16_at;
use crate::relpath::{Fork, GLOBAL_TABLESPACE, RelFork};
use crate::value::{Lsn, PgTimestamp};

use super::changes::{created_relation, database_dirs};
use super::decode::TransactionEndKind;
use super::record::{DecodeError, Record, rmgr};
use super::walker::RecordSink;

/// Tables listed of one transaction.
const TABLES_MAX: usize = 16;
/// Transactions, and database events, listed of one stretch.
const LISTED_MAX: usize = 256;
/// Numbers below belong to the system catalogs of a new cluster (`FirstNormalObjectId`).
const FIRST_NORMAL_OBJECT: u32 = 16384;
const MINUTE: i64 = 60_000_000;

/// The info codes of the heap's resource manager (access/heapam_xlog.h).
mod heap {
    pub const OP_MASK: u8 = 0x70;
    pub const DELETE: u8 = 0x10;
    pub const UPDATE: u8 = 0x20;
    pub const HOT_UPDATE: u8 = 0x40;
    pub const INPLACE: u8 = 0x70;
}

/// How far before its deletion a row of `pg_database` is marked invalid, at most: PostgreSQL does the one right after
/// the other, but not alone.
const INVALIDATED_BYTES_MAX: u64 = 1024 * 1024;
/// Drops of databases that may be under way at a time.
const INVALIDATED_MAX: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Committed transactions by minute since 2000-01-01 UTC.
    pub commits: BTreeMap<i64, u64>,
    pub transactions: Vec<TransactionWork>,
    pub databases: Vec<DatabaseEvent>,
    /// Transactions and database events that would have been listed if there were not so many.
    #[serde(default)]
    pub not_listed: u64,
    #[serde(skip)]
    open: HashMap<u32, TransactionWork, BuildHasherDefault<XidHasher>>,
    /// Open transactions that have created files.
    #[serde(skip)]
    creating: usize,
    /// The last row of a shared table that was changed in place.
    #[serde(skip)]
    in_place: Option<(Row, Lsn)>,
    /// Transactions that deleted such a row, and where it had been changed: what they drop is unusable from there on.
    #[serde(skip)]
    invalidated: Vec<(u32, Lsn)>,
}

/// What one transaction did in one stretch of WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionWork {
    pub xid: u32,
    /// Its first record that is counted here.
    pub from: Lsn,
    /// Its commit; None when it goes on after this stretch.
    pub commit: Option<Finish>,
    pub deleted: u64,
    pub updated: u64,
    /// Relation files created, dropped, and references to pages of the created ones.
    pub created: u64,
    pub dropped: u64,
    pub written: u64,
    /// The first `TABLES_MAX` tables and indexes of those.
    pub tables: Vec<TableWork>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// Start of the commit record.
    pub lsn: Lsn,
    /// Microseconds since 2000-01-01 UTC.
    pub time: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableWork {
    pub spc: u32,
    pub db: u32,
    pub rel: u32,
    #[serde(default)]
    pub deleted: u64,
    #[serde(default)]
    pub updated: u64,
    #[serde(default)]
    pub created: bool,
    #[serde(default)]
    pub dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseEvent {
    pub dropped: bool,
    pub spc: u32,
    pub db: u32,
    pub xid: u32,
    /// Start of the record; a drop takes effect here, before its transaction commits. Where PostgreSQL marks the
    /// database invalid before, the start of that record.
    pub lsn: Lsn,
}

/// A row by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    rel: u32,
    block: u32,
    offset: u16,
}

/// Transaction numbers are dense; multiplying spreads them well enough.
#[derive(Clone, Debug, Default)]
struct XidHasher(u64);

impl Hasher for XidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl TransactionWork {
    fn table(&mut self, rel: &RelFork) -> Option<&mut TableWork> {
        let same = |t: &TableWork| t.rel == rel.rel && t.db == rel.db && t.spc == rel.spc;
        match self.tables.iter().position(same) {
            Some(at) => self.tables.get_mut(at),
            None if self.tables.len() < TABLES_MAX => {
                let (spc, db, rel) = (rel.spc, rel.db, rel.rel);
                self.tables.push(TableWork { spc, db, rel, ..TableWork::default() });
                self.tables.last_mut()
            }
            None => None,
        }
    }

    /// Adds what the same transaction, or one below it, did elsewhere.
    pub fn merge(&mut self, other: &TransactionWork) {
        self.from = if self.from == Lsn::INVALID { other.from } else { self.from.min(other.from) };
        self.commit = self.commit.or(other.commit);
        self.deleted += other.deleted;
        self.updated += other.updated;
        self.created += other.created;
        self.dropped += other.dropped;
        self.written += other.written;
        for t in &other.tables {
            let rel = RelFork { spc: t.spc, db: t.db, rel: t.rel, fork: Fork::Main };
            if let Some(own) = self.table(&rel) {
                own.deleted += t.deleted;
                own.updated += t.updated;
                own.created |= t.created;
                own.dropped |= t.dropped;
            }
        }
    }

    fn is_notable(&self) -> bool {
        let unfinished = self.commit.is_none() && self.created > 0;
        self.dropped > 0 || self.deleted.max(self.updated) >= Activity::MASS_ROWS || unfinished
    }
}

impl Activity {
    /// A transaction that deletes or updates so many rows in one stretch is listed.
    pub const MASS_ROWS: u64 = 1000;

    fn try_add(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        match record.rmgr {
            rmgr::HEAP => self.heap(record)?,
            rmgr::XACT => return self.transaction(record),
            rmgr::SMGR => {
                if let Some(rel) = created_relation(record)?
                    && record.xid != 0
                {
                    let work = self.work(record);
                    let first = work.created == 0;
                    work.created += 1;
                    if let Some(table) = work.table(&rel) {
                        table.created = true;
                    }
                    self.creating += usize::from(first);
                }
            }
            rmgr::DBASE => {
                let (dropped, dirs) = database_dirs(record)?;
                let marked = self.invalidated.iter().find(|(xid, _)| dropped && *xid == record.xid);
                let lsn = marked.map_or(record.start, |(_, lsn)| *lsn);
                for dir in dirs {
                    let event = DatabaseEvent { dropped, spc: dir.spc, db: dir.db, xid: record.xid, lsn };
                    if self.databases.len() < LISTED_MAX {
                        self.databases.push(event);
                    } else {
                        self.not_listed += 1;
                    }
                }
            }
            _ => {}
        }
        if self.creating > 0 { self.written(record) } else { Ok(()) }
    }

    fn work(&mut self, record: &Record<'_>) -> &mut TransactionWork {
        let (xid, from) = (record.xid, record.start);
        self.open.entry(xid).or_insert_with(|| TransactionWork { xid, from, ..TransactionWork::default() })
    }

    fn heap(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let op = record.info & heap::OP_MASK;
        if matches!(op, heap::INPLACE | heap::DELETE) {
            self.shared_row(record, op)?;
        }
        let (deleted, updated) = match op {
            heap::DELETE => (1, 0),
            heap::UPDATE | heap::HOT_UPDATE => (0, 1),
            _ => return Ok(()),
        };
        let Some(block) = record.blocks().next().transpose()? else { return Ok(()) };
        if record.xid == 0 || block.rel.rel < FIRST_NORMAL_OBJECT {
            return Ok(());
        }
        let work = self.work(record);
        work.deleted += deleted;
        work.updated += updated;
        if let Some(table) = work.table(&block.rel) {
            table.deleted += deleted;
            table.updated += updated;
        }
        Ok(())
    }

    /// `dropdb` (commands/dbcommands.c) marks the row of the database invalid in place, then deletes it. The marking
    /// belongs to no transaction, so a recovery that stops between the two leaves an unusable database.
    fn shared_row(&mut self, record: &Record<'_>, op: u8) -> Result<(), DecodeError> {
        let Some(block) = record.blocks().next().transpose()? else { return Ok(()) };
        if block.rel.spc != GLOBAL_TABLESPACE {
            return Ok(());
        }
        // `xl_heap_inplace` begins with the offset, `xl_heap_delete` with xmax and the offset.
        let at = if op == heap::INPLACE { 0 } else { 4 };
        let Some(offset) = u16_at(record.main_data()?, at) else { return Ok(()) };
        let row = Row { rel: block.rel.rel, block: block.block.0, offset };
        match self.in_place {
            _ if op == heap::INPLACE => self.in_place = Some((row, record.start)),
            Some((marked, lsn)) if marked == row && record.start.0 - lsn.0 <= INVALIDATED_BYTES_MAX => {
                self.invalidated.truncate(INVALIDATED_MAX - 1);
                self.invalidated.insert(0, (record.xid, lsn));
            }
            _ => {}
        }
        Ok(())
    }

    /// Counts what a transaction writes into files that it has created.
    fn written(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let Some(work) = self.open.get_mut(&record.xid).filter(|work| work.created > 0) else { return Ok(()) };
        for block in record.blocks() {
            let rel = block?.rel;
            let ours = work.tables.iter().any(|t| t.created && (t.rel, t.db, t.spc) == (rel.rel, rel.db, rel.spc));
            work.written += u64::from(ours);
        }
        Ok(())
    }

    fn transaction(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let Some(end) = record.transaction_end()? else { return Ok(()) };
        let mut work = self.take(end.xid).unwrap_or_default();
        if !self.open.is_empty() {
            for sub in record.subtransactions()? {
                if let Some(below) = self.take(sub) {
                    work.merge(&below);
                }
            }
        }
        if !matches!(end.kind, TransactionEndKind::Commit | TransactionEndKind::CommitPrepared) {
            return Ok(());
        }
        *self.commits.entry(end.time.0.div_euclid(MINUTE)).or_default() += 1;
        for rel in record.dropped_relations()? {
            work.dropped += 1;
            if let Some(table) = work.table(&rel) {
                table.dropped = true;
            }
        }
        work.xid = end.xid;
        if work.from == Lsn::INVALID {
            work.from = record.start;
        }
        work.commit = Some(Finish { lsn: record.start, time: end.time.0 });
        self.list(work);
        Ok(())
    }

    fn take(&mut self, xid: u32) -> Option<TransactionWork> {
        let work = self.open.remove(&xid)?;
        self.creating -= usize::from(work.created > 0);
        Some(work)
    }

    fn list(&mut self, work: TransactionWork) {
        if !work.is_notable() {
        } else if self.transactions.len() < LISTED_MAX {
            self.transactions.push(work);
        } else {
            self.not_listed += 1;
        }
    }

    /// To be called at the end of the stretch: lists what goes on after it.
    pub fn finish(mut self) -> Self {
        let mut open: Vec<TransactionWork> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_unstable_by_key(|work| (work.from, work.xid));
        open.into_iter().for_each(|work| self.list(work));
        self.creating = 0;
        self
    }

    /// The time of a minute of `commits`.
    pub fn minute(minute: i64) -> PgTimestamp {
        PgTimestamp(minute.saturating_mul(MINUTE))
    }
}

/// A record that cannot be decoded is counted by the scan; here it says nothing.
impl RecordSink for Activity {
    fn record(&mut self, rec: &Record<'_>) {
        let _undecodable = self.try_add(rec);
    }
}
