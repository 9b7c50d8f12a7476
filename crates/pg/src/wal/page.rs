//! The header of a WAL page: `XLogPageHeaderData` and `XLogLongPageHeaderData` (access/xlog_internal.h).
//!
//! Invariant: `PageHeader::check` accepts what `XLogReaderValidatePageHeader` (xlogreader.c) accepts at that position.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::value::Lsn;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

pub(super) const SHORT_HEADER_BYTES: usize = 24;
pub(super) const LONG_HEADER_BYTES: usize = 40;

#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub magic: u16,
    pub info: u16,
    pub timeline: u32,
    pub address: Lsn,
    /// `xlp_rem_len`: bytes of a record from earlier pages that are still to come, this page included.
    pub remaining: u32,
}

/// What the first page of a segment says in addition.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongPart {
    pub system_id: u64,
    pub segment_bytes: u32,
    pub page_bytes: u32,
}

/// What a page in the middle of a segment must say.
pub(super) struct PageExpect {
    pub magic: u16,
    pub address: Lsn,
    pub timeline_min: u32,
    pub timeline_max: u32,
}

impl PageHeader {
    pub fn parse(page: &[u8]) -> Option<Self> {
        Some(Self {
            magic: u16_at(page, 0)?,
            info: u16_at(page, 2)?,
            timeline: u32_at(page, 4)?,
            address: Lsn(u64_at(page, 8)?),
            remaining: u32_at(page, 16)?,
        })
    }

    /// The reason why the page does not continue the WAL, if it does not.
    pub fn check(&self, expect: &PageExpect) -> Result<(), String> {
        if self.magic != expect.magic {
            return Err(format!("page at {} has magic {:04X}", expect.address, self.magic));
        }
        if self.address != expect.address {
            return Err(format!("page at {} carries the address {}", expect.address, self.address));
        }
        if !self.flags_known() || self.is_long() {
            return Err(format!("page at {} has flags {:04X}", expect.address, self.info));
        }
        if !(expect.timeline_min..=expect.timeline_max).contains(&self.timeline) {
            return Err(format!("page at {} is of timeline {}", expect.address, self.timeline));
        }
        Ok(())
    }

    pub fn flags_known(&self) -> bool {
        self.info & !ALL_FLAGS == 0
    }

    pub fn is_long(&self) -> bool {
        self.info & LONG_HEADER != 0
    }

    pub fn continues_record(&self) -> bool {
        self.info & FIRST_IS_CONTRECORD != 0
    }

    /// After a crash the server gave up the record that the previous page began and started a new one here.
    pub fn overwrites_record(&self) -> bool {
        self.info & FIRST_IS_OVERWRITE_CONTRECORD != 0
    }

    pub fn len(&self) -> usize {
        if self.is_long() { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }
}

impl LongPart {
    pub fn parse(page: &[u8]) -> Option<Self> {
        Some(Self { system_id: u64_at(page, 24)?, segment_bytes: u32_at(page, 32)?, page_bytes: u32_at(page, 36)? })
    }
}
