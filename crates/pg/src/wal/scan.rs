//! What a walk over one segment found out.
//!
//! Invariant: the numbers cover the records that lie whole in the segment; the two that cross its edges are in `leading`
//! and `tail`.

use crate::major::Major;
use crate::value::{Lsn, PgTimestamp, SegmentSize, SystemId, TimelineId};

use super::RESTORE_POINTS_MAX;
use super::record::{DecodeError, Record, rmgr};
use super::walker::SegmentExpect;

/// The bytes are not the segment they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    #[error("wal page magic {found:04X} is not of a supported PostgreSQL (13 to 18)")]
    Magic { found: u16 },
    #[error(
        "wal segment should begin at {expected}, its first page says {found}: renamed, or recycled and not written"
    )]
    Address { expected: Lsn, found: Lsn },
    #[error("wal segment should be of timeline {expected}, its first page says {found}")]
    Timeline { expected: TimelineId, found: u32 },
    #[error("wal segment is of system {found}, not {expected}")]
    System { expected: SystemId, found: SystemId },
    #[error("wal segments have {expected} bytes here, this one says {found}")]
    SegmentSize { expected: u64, found: u32 },
    #[error("wal page size {found} is not supported")]
    PageSize { found: u32 },
    #[error("first page of the wal segment has flags {found:04X}")]
    Flags { found: u16 },
    #[error("wal input of {bytes} bytes is not a number of whole pages")]
    PartialPage { bytes: usize },
    #[error("wal input is longer than the segment")]
    TooLong,
    #[error("wal input is empty")]
    Empty,
}

/// The end of a record that began in an earlier segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leading {
    /// `xlp_rem_len` of the first page: bytes of the record from here on, perhaps more than this segment holds.
    pub total_remaining: u32,
    /// The first of them, at most `CROSSING_BYTES_MAX`.
    pub data: Vec<u8>,
    /// The record ends in this segment and `data` holds all that was remaining.
    pub complete: bool,
    /// Where the record ends, rounded up to eight bytes; `None` if it does not end in the valid part of this segment.
    pub end: Option<Lsn>,
}

/// How the valid WAL of the segment ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tail {
    /// Valid up to the last byte, and no record that begins here goes on in the next segment. (If one that began
    /// earlier does, `SegmentScan::leading` has no `end`.)
    Filled,
    /// The last record goes on in the next segment. `data` holds the first bytes, at most `CROSSING_BYTES_MAX`; it is
    /// not verified before `join_crossing`.
    Crossing { start: Lsn, total_len: u32, data: Vec<u8> },
    /// A segment switch: the rest is padding.
    Switch,
    /// No valid record begins at `at`.
    Ended { at: Lsn, reason: String },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentScan {
    pub major: Major,
    pub system_id: SystemId,
    /// Less than the segment's timeline where a new timeline took over the bytes of its parent.
    pub first_page_timeline: TimelineId,
    pub segment_size: SegmentSize,
    pub segment_end: Lsn,
    pub leading: Option<Leading>,
    /// The first page gives up the record that the previous segment began (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`): a
    /// `Tail::Crossing` before this segment is not to be joined.
    pub overwrites_crossing: bool,
    pub first_record: Option<Lsn>,
    /// `xl_prev` of the first record; invalid if there is none.
    pub first_prev: Lsn,
    /// Start and end.
    pub last_record: Option<(Lsn, Lsn)>,
    /// The end of the last whole record; after a switch the segment's end; if no record ends here, the end of
    /// `leading`, or else the segment's start (its end if `leading` fills it).
    pub end: Lsn,
    pub tail: Tail,
    /// After a `Tail::Ended`, the first later page that has content under a header of this segment: what lies before it
    /// is damaged, not unwritten.
    pub wal_after_end: Option<Lsn>,
    pub records: u64,
    pub transaction_ends: u64,
    /// In WAL order.
    pub first_time: Option<PgTimestamp>,
    pub last_time: Option<PgTimestamp>,
    pub min_time: Option<PgTimestamp>,
    pub max_time: Option<PgTimestamp>,
    /// Compared as plain numbers: around a wraparound they span everything.
    pub min_xid: Option<u32>,
    pub max_xid: Option<u32>,
    /// Start and end of the record, time, name; at most `RESTORE_POINTS_MAX`.
    pub restore_points: Vec<(Lsn, Lsn, PgTimestamp, Vec<u8>)>,
    pub restore_points_overflow: bool,
    /// The time of the last checkpoint record, seconds since 1970.
    pub checkpoints_last_time: Option<i64>,
    pub min_wal_level: Option<i32>,
    /// A record says that `full_page_writes` is or becomes off.
    pub full_page_writes_off: bool,
    /// Records with a right CRC that we could not decode, and the first of them. Not 0 = do not plan from this segment.
    pub undecodable: u64,
    pub first_undecodable: Option<DecodeError>,
}

impl SegmentScan {
    pub(super) fn new(major: Major, system_id: SystemId, timeline: TimelineId, expect: &SegmentExpect) -> Self {
        Self {
            major,
            system_id,
            first_page_timeline: timeline,
            segment_size: expect.size,
            segment_end: expect.segment.end(expect.size),
            leading: None,
            overwrites_crossing: false,
            first_record: None,
            first_prev: Lsn::INVALID,
            last_record: None,
            end: expect.segment.start(expect.size),
            tail: Tail::Filled,
            wal_after_end: None,
            records: 0,
            transaction_ends: 0,
            first_time: None,
            last_time: None,
            min_time: None,
            max_time: None,
            min_xid: None,
            max_xid: None,
            restore_points: Vec::new(),
            restore_points_overflow: false,
            checkpoints_last_time: None,
            min_wal_level: None,
            full_page_writes_off: false,
            undecodable: 0,
            first_undecodable: None,
        }
    }

    /// To be called when `join_crossing` shows that the record which ends in `leading` is a segment switch: the walker
    /// cannot see that from its last bytes and took the padding for the end of the WAL.
    pub fn leading_was_switch(&mut self) {
        self.tail = Tail::Switch;
        self.end = self.segment_end;
    }

    pub(super) fn note(&mut self, record: &Record<'_>) {
        self.records += 1;
        if self.first_record.is_none() {
            self.first_record = Some(record.start);
            self.first_prev = record.prev;
        }
        self.last_record = Some((record.start, record.end));
        self.end = record.end;
        let decoded = match record.rmgr {
            rmgr::XACT => self.note_transaction(record),
            rmgr::XLOG => self.note_xlog(record),
            _ => Ok(()),
        };
        if let Err(error) = decoded {
            self.undecodable += 1;
            self.first_undecodable.get_or_insert(error);
        }
    }

    fn note_transaction(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let Some(end) = record.transaction_end()? else {
            return Ok(());
        };
        self.transaction_ends += 1;
        self.first_time.get_or_insert(end.time);
        self.last_time = Some(end.time);
        self.min_time = Some(self.min_time.map_or(end.time, |time| time.min(end.time)));
        self.max_time = Some(self.max_time.map_or(end.time, |time| time.max(end.time)));
        if end.xid != 0 {
            self.min_xid = Some(self.min_xid.map_or(end.xid, |xid| xid.min(end.xid)));
            self.max_xid = Some(self.max_xid.map_or(end.xid, |xid| xid.max(end.xid)));
        }
        Ok(())
    }

    fn note_xlog(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        if let Some(level) = record.wal_level_change()? {
            self.min_wal_level = Some(self.min_wal_level.map_or(level, |min| min.min(level)));
        }
        if record.full_page_writes_change()? == Some(false) {
            self.full_page_writes_off = true;
        }
        if let Some(checkpoint) = record.checkpoint()? {
            self.checkpoints_last_time = Some(checkpoint.time);
        }
        if let Some(point) = record.restore_point()? {
            if self.restore_points.len() < RESTORE_POINTS_MAX {
                self.restore_points.push((record.start, record.end, point.time, point.name));
            } else {
                self.restore_points_overflow = true;
            }
        }
        Ok(())
    }
}
