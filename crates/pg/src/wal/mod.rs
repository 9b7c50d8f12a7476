//! The write-ahead log: one segment in, page by page; its records and a summary out.
//!
//! Invariant: a record reaches the sink only if it lies whole in the segment, its CRC-32C is right and its `xl_prev`
//! points at the record before it. Memory is bounded by the largest such record, never by the segment. Where valid WAL
//! stops is a finding (`Tail`), not an error; `WalError` means that the bytes are not the expected segment at all.
//! A record that crosses into the next segment is handed out in two parts and assembled by `join_crossing`.

mod activity;
mod assemble;
mod blocks;
mod changes;
mod decode;
mod join;
mod page;
mod record;
mod scan;
mod walker;

#[cfg(test)]
mod builder;
#[cfg(test)]
mod tests;

pub use activity::{Activity, DatabaseEvent, Finish, TableWork, TransactionWork};
pub use assemble::{Assembly, assemble};
pub use blocks::{BlockImage, BlockRef, Blocks};
pub use changes::{Changes, DatabaseDir, RelationChanges};
pub use decode::{Checkpoint, RestorePoint, TransactionEnd, TransactionEndKind};
pub use join::{JoinError, join_crossing};
pub use record::{DecodeError, OwnedRecord, Record, rmgr};
pub use scan::{Leading, SegmentScan, Tail, WalError};
pub use walker::{RecordSink, SegmentExpect, Walker, scan_segment};

/// `XLOG_BLCKSZ` of every build we support; a segment that says otherwise is refused.
pub const WAL_PAGE_SIZE: usize = 8192;

/// How much of a record that crosses a segment boundary is kept on each side.
pub const CROSSING_BYTES_MAX: usize = 64 << 10;

/// Restore points listed per segment; beyond it `SegmentScan::restore_points_overflow` is set.
pub const RESTORE_POINTS_MAX: usize = 10_000;

/// `XLogRecordMaxSize` (access/xlogrecord.h, 16 and later) allows 1020 MiB; older versions are limited by palloc to
/// 1 GiB. A larger length is not a record.
pub(crate) const RECORD_BYTES_MAX: u32 = 1 << 30;

/// Rounds up to eight bytes; `None` past the end of the number range.
pub(crate) fn maxalign(position: u64) -> Option<u64> {
    position.checked_next_multiple_of(8)
}
