//! One WAL record: `XLogRecord` (access/xlogrecord.h) and its body.
//!
//! Invariant: a `Record` handed to a sink has a right CRC and a body as long as its header says. Its inside is decoded
//! on demand and may still be refused.

use crate::bytes::{u8_at, u32_at, u64_at};
use crate::major::Major;
use crate::value::Lsn;

use super::RECORD_BYTES_MAX;
use super::blocks::Blocks;

/// Resource managers whose records we decode (access/rmgrlist.h); the numbers are the same from 13 to 18.
pub mod rmgr {
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const SMGR: u8 = 2;
    pub const DBASE: u8 = 4;
    pub const TBLSPC: u8 = 5;
    pub const RELMAP: u8 = 7;
    pub const HEAP: u8 = 10;
    /// Extensions register their own from here on, since 15.
    pub const CUSTOM_MIN: u8 = 128;
}

/// `SizeOfXLogRecord`
pub(super) const RECORD_HEADER_BYTES: usize = 24;
const HEADER_BYTES_U32: u32 = 24;
const CRC_OFFSET: usize = 20;

const XLOG_SWITCH: u8 = 0x40;

/// A record whose CRC is right but whose inside breaks PostgreSQL's rules, or is newer than our knowledge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("wal record at {start} (resource manager {rmgr}, info {info:02X}): {reason}")]
pub struct DecodeError {
    pub start: Lsn,
    pub rmgr: u8,
    pub info: u8,
    pub reason: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Where the record begins, after any page header.
    pub start: Lsn,
    /// Where the next record begins (before its page header, if there is one); for a segment switch, the segment's end.
    pub end: Lsn,
    /// `xl_prev`: the start of the record before.
    pub prev: Lsn,
    pub rmgr: u8,
    pub info: u8,
    /// 0 = no transaction.
    pub xid: u32,
    /// The whole record with its 24-byte header, without page headers.
    pub body: &'a [u8],
    pub major: Major,
}

/// A record assembled from two segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnedRecord {
    pub start: Lsn,
    pub end: Lsn,
    pub body: Vec<u8>,
    pub major: Major,
}

impl OwnedRecord {
    pub fn as_record(&self) -> Result<Record<'_>, DecodeError> {
        Record::from_body(&self.body, self.start, self.end, self.major).ok_or(DecodeError {
            start: self.start,
            rmgr: 0,
            info: 0,
            reason: "shorter than a record header",
        })
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    pub prev: Lsn,
    pub rmgr: u8,
    pub info: u8,
    pub xid: u32,
    crc: u32,
}

impl RecordHeader {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            xid: u32_at(bytes, 4)?,
            prev: Lsn(u64_at(bytes, 8)?),
            info: u8_at(bytes, 16)?,
            rmgr: u8_at(bytes, 17)?,
            crc: u32_at(bytes, CRC_OFFSET)?,
        })
    }

    pub fn is_switch(&self) -> bool {
        self.rmgr == rmgr::XLOG && self.info & 0xF0 == XLOG_SWITCH
    }

    /// The CRC covers the body first and the header, up to the CRC itself, last.
    pub fn crc_holds(&self, whole: &[u8]) -> bool {
        let (Some(body), Some(head)) = (whole.get(RECORD_HEADER_BYTES..), whole.get(..CRC_OFFSET)) else {
            return false;
        };
        crc32c::crc32c_append(crc32c::crc32c(body), head) == self.crc
    }
}

/// A possible `xl_tot_len`.
pub(super) fn plausible_length(total: u32) -> bool {
    (HEADER_BYTES_U32..=RECORD_BYTES_MAX).contains(&total)
}

impl<'a> Record<'a> {
    pub(super) fn from_body(body: &'a [u8], start: Lsn, end: Lsn, major: Major) -> Option<Self> {
        let header = RecordHeader::parse(body)?;
        Some(Self { start, end, prev: header.prev, rmgr: header.rmgr, info: header.info, xid: header.xid, body, major })
    }

    /// `XLR_RMGR_INFO_MASK`: the part of `info` that belongs to the resource manager.
    pub fn op(&self) -> u8 {
        self.info & 0xF0
    }

    /// `XLR_SPECIAL_REL_UPDATE`: changes relation files in a way that block references do not show.
    pub fn special_rel_update(&self) -> bool {
        self.info & 0x01 != 0
    }

    pub fn is_switch(&self) -> bool {
        self.rmgr == rmgr::XLOG && self.op() == XLOG_SWITCH
    }

    /// The blocks the record refers to, in order. Yields one error and ends if the headers break the rules of
    /// `DecodeXLogRecord` (xlogreader.c).
    pub fn blocks(&self) -> Blocks<'a> {
        Blocks::new(*self)
    }

    /// The part of the body that belongs to the record itself, not to a block.
    pub fn main_data(&self) -> Result<&'a [u8], DecodeError> {
        let mut blocks = self.blocks();
        for block in blocks.by_ref() {
            block?;
        }
        Ok(blocks.main_data())
    }

    pub(super) fn error(&self, reason: &'static str) -> DecodeError {
        DecodeError { start: self.start, rmgr: self.rmgr, info: self.info, reason }
    }
}
