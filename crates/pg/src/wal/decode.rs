//! What a record means for recovery: transaction ends, restore points, checkpoints, `wal_level` and full-page writes.
//!
//! Invariant: `Ok(None)` says that the record is of another kind; a record of the kind that cannot be read is an error,
//! never `None`.

use crate::bytes::{array, i32_at, i64_at, u8_at, u32_at, u64_at};
use crate::major::Major;
use crate::relpath::{Fork, RelFork};
use crate::value::{Lsn, PgTimestamp, TimelineId};

use super::record::{DecodeError, Record, rmgr};

/// The info codes of the XLOG resource manager (catalog/pg_control.h).
mod xlog {
    pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
    pub const CHECKPOINT_ONLINE: u8 = 0x10;
    pub const PARAMETER_CHANGE: u8 = 0x60;
    pub const RESTORE_POINT: u8 = 0x70;
    pub const FPW_CHANGE: u8 = 0x80;
    pub const END_OF_RECOVERY: u8 = 0x90;
    /// 17 and later.
    pub const CHECKPOINT_REDO: u8 = 0xE0;
}

/// The info codes and flags of the XACT resource manager (access/xact.h).
mod xact {
    pub const OP_MASK: u8 = 0x70;
    pub const COMMIT: u8 = 0x00;
    pub const ABORT: u8 = 0x20;
    pub const COMMIT_PREPARED: u8 = 0x30;
    pub const ABORT_PREPARED: u8 = 0x40;
    pub const HAS_INFO: u8 = 0x80;

    pub const HAS_DBINFO: u32 = 1 << 0;
    pub const HAS_SUBXACTS: u32 = 1 << 1;
    pub const HAS_RELFILELOCATORS: u32 = 1 << 2;
    pub const HAS_INVALS: u32 = 1 << 3;
    pub const HAS_TWOPHASE: u32 = 1 << 4;
    /// 15 and later.
    pub const HAS_DROPPED_STATS: u32 = 1 << 8;
}

/// `MAXFNAMELEN`
const RESTORE_POINT_NAME_BYTES: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TransactionEndKind {
    Commit,
    Abort,
    CommitPrepared,
    AbortPrepared,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransactionEnd {
    pub kind: TransactionEndKind,
    /// The transaction that ended: for a prepared one, its own number, not that of the session that finished it.
    pub xid: u32,
    pub time: PgTimestamp,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RestorePoint {
    pub time: PgTimestamp,
    pub name: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Checkpoint {
    pub redo: Lsn,
    pub timeline: TimelineId,
    pub prev_timeline: TimelineId,
    pub full_page_writes: bool,
    /// 17 and later.
    pub wal_level: Option<i32>,
    /// Seconds since 1970.
    pub time: i64,
    pub shutdown: bool,
}

impl Record<'_> {
    /// Commit or abort, also of a prepared transaction (`ParseCommitRecord`, `ParseAbortRecord` in xactdesc.c).
    pub fn transaction_end(&self) -> Result<Option<TransactionEnd>, DecodeError> {
        if self.rmgr != rmgr::XACT {
            return Ok(None);
        }
        let kind = match self.info & xact::OP_MASK {
            xact::COMMIT => TransactionEndKind::Commit,
            xact::ABORT => TransactionEndKind::Abort,
            xact::COMMIT_PREPARED => TransactionEndKind::CommitPrepared,
            xact::ABORT_PREPARED => TransactionEndKind::AbortPrepared,
            _ => return Ok(None),
        };
        let data = self.main_data()?;
        let short = || self.error("transaction end is cut short");
        let time = PgTimestamp(i64_at(data, 0).ok_or_else(short)?);
        let xid = match kind {
            TransactionEndKind::Commit | TransactionEndKind::Abort => self.xid,
            TransactionEndKind::CommitPrepared | TransactionEndKind::AbortPrepared => {
                self.prepared_xid(data).ok_or_else(|| self.error("no transaction number of a prepared transaction"))?
            }
        };
        Ok(Some(TransactionEnd { kind, xid, time }))
    }

    /// Relations, as main forks, whose files go with this end of a transaction.
    pub fn dropped_relations(&self) -> Result<Vec<RelFork>, DecodeError> {
        let ends = matches!(
            self.info & xact::OP_MASK,
            xact::COMMIT | xact::ABORT | xact::COMMIT_PREPARED | xact::ABORT_PREPARED
        );
        if self.rmgr != rmgr::XACT || !ends || self.info & xact::HAS_INFO == 0 {
            return Ok(vec![]);
        }
        let data = self.main_data()?;
        let short = || self.error("end of a transaction is cut short");
        let field = |at: usize| u32_at(data, at).ok_or_else(short);
        let xinfo = field(8)?;
        if xinfo & xact::HAS_RELFILELOCATORS == 0 {
            return Ok(vec![]);
        }
        let count = |at| Ok(usize::try_from(field(at)?).unwrap_or(usize::MAX).min(data.len()));
        let mut at = 12;
        if xinfo & xact::HAS_DBINFO != 0 {
            at += 8;
        }
        if xinfo & xact::HAS_SUBXACTS != 0 {
            at += 4 + 4 * count(at)?;
        }
        let first = at + 4;
        (0..count(at)?)
            .map(|n| first + 12 * n)
            .map(|at| Ok(RelFork { spc: field(at)?, db: field(at + 4)?, rel: field(at + 8)?, fork: Fork::Main }))
            .collect()
    }

    /// The subtransactions that end with this transaction.
    pub fn subtransactions(&self) -> Result<Vec<u32>, DecodeError> {
        if self.rmgr != rmgr::XACT || self.info & xact::HAS_INFO == 0 || self.transaction_end()?.is_none() {
            return Ok(vec![]);
        }
        let data = self.main_data()?;
        let field = |at: usize| u32_at(data, at).ok_or_else(|| self.error("end of a transaction is cut short"));
        let xinfo = field(8)?;
        if xinfo & xact::HAS_SUBXACTS == 0 {
            return Ok(vec![]);
        }
        let at = if xinfo & xact::HAS_DBINFO == 0 { 12 } else { 20 };
        let count = usize::try_from(field(at)?).unwrap_or(usize::MAX).min(data.len());
        (0..count).map(|n| field(at + 4 + 4 * n)).collect()
    }

    /// Steps over the optional parts before `xl_xact_twophase`.
    fn prepared_xid(&self, data: &[u8]) -> Option<u32> {
        if self.info & xact::HAS_INFO == 0 {
            return None;
        }
        let xinfo = u32_at(data, 8)?;
        if xinfo & xact::HAS_TWOPHASE == 0 {
            return None;
        }
        let mut offset = 12usize;
        if xinfo & xact::HAS_DBINFO != 0 {
            offset += 8;
        }
        // The object number of dropped statistics has grown to 64 bits in 18.
        let stats_item = if self.major >= Major::V18 { 16 } else { 12 };
        for (flag, item_bytes) in [
            (xact::HAS_SUBXACTS, 4),
            (xact::HAS_RELFILELOCATORS, 12),
            (xact::HAS_DROPPED_STATS, stats_item),
            (xact::HAS_INVALS, 16),
        ] {
            if xinfo & flag != 0 {
                let count = usize::try_from(i32_at(data, offset)?).ok()?;
                offset = offset.checked_add(4)?.checked_add(count.checked_mul(item_bytes)?)?;
            }
        }
        u32_at(data, offset)
    }

    pub fn restore_point(&self) -> Result<Option<RestorePoint>, DecodeError> {
        if !self.is_xlog(xlog::RESTORE_POINT) {
            return Ok(None);
        }
        let data = self.main_data()?;
        let short = || self.error("restore point is cut short");
        let time = PgTimestamp(i64_at(data, 0).ok_or_else(short)?);
        let name: [u8; RESTORE_POINT_NAME_BYTES] = array(data, 8).ok_or_else(short)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        Ok(Some(RestorePoint { time, name }))
    }

    /// Where a tablespace is made (`xl_tblspc_create_rec` in commands/tablespace.h); empty for one inside the data directory.
    /// Replay makes it there, too, and removes what it finds in its place.
    pub fn tablespace_made(&self) -> Result<Option<Vec<u8>>, DecodeError> {
        const CREATE: u8 = 0x00;
        if self.rmgr != rmgr::TBLSPC || self.op() != CREATE {
            return Ok(None);
        }
        let path = self.main_data()?.get(4..).ok_or_else(|| self.error("tablespace record is cut short"))?;
        Ok(Some(path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()))
    }

    /// An online or shutdown checkpoint: `CheckPoint` in catalog/pg_control.h.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, DecodeError> {
        let shutdown = self.is_xlog(xlog::CHECKPOINT_SHUTDOWN);
        if !shutdown && !self.is_xlog(xlog::CHECKPOINT_ONLINE) {
            return Ok(None);
        }
        let data = self.main_data()?;
        let short = || self.error("checkpoint is cut short");
        let timeline = |at| {
            let number = u32_at(data, at).ok_or_else(short)?;
            TimelineId::new(number).ok_or_else(|| self.error("checkpoint of timeline 0"))
        };
        let wal_level = if self.major >= Major::V17 { Some(i32_at(data, 20).ok_or_else(short)?) } else { None };
        Ok(Some(Checkpoint {
            redo: Lsn(u64_at(data, 0).ok_or_else(short)?),
            timeline: timeline(8)?,
            prev_timeline: timeline(12)?,
            full_page_writes: u8_at(data, 16).ok_or_else(short)? != 0,
            wal_level,
            time: i64_at(data, 64).ok_or_else(short)?,
            shutdown,
        }))
    }

    /// The `wal_level` that the record states: 0 minimal, 1 replica, 2 logical. A parameter change on every version;
    /// from 17 on also checkpoints and the end of recovery.
    pub fn wal_level_change(&self) -> Result<Option<i32>, DecodeError> {
        if self.rmgr != rmgr::XLOG {
            return Ok(None);
        }
        let since_17 = self.major >= Major::V17;
        let offset = match self.op() {
            xlog::PARAMETER_CHANGE => 20,
            xlog::CHECKPOINT_SHUTDOWN | xlog::CHECKPOINT_ONLINE if since_17 => 20,
            xlog::END_OF_RECOVERY if since_17 => 16,
            xlog::CHECKPOINT_REDO if since_17 => 0,
            _ => return Ok(None),
        };
        let level = i32_at(self.main_data()?, offset).ok_or_else(|| self.error("wal_level is cut short"))?;
        Ok(Some(level))
    }

    /// The state of `full_page_writes` that the record announces.
    pub fn full_page_writes_change(&self) -> Result<Option<bool>, DecodeError> {
        if let Some(checkpoint) = self.checkpoint()? {
            return Ok(Some(checkpoint.full_page_writes));
        }
        if !self.is_xlog(xlog::FPW_CHANGE) {
            return Ok(None);
        }
        let on = u8_at(self.main_data()?, 0).ok_or_else(|| self.error("full_page_writes change is cut short"))?;
        Ok(Some(on != 0))
    }

    fn is_xlog(&self, op: u8) -> bool {
        self.rmgr == rmgr::XLOG && self.op() == op
    }
}
