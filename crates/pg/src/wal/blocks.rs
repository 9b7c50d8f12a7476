//! The block references of a record: `XLogRecordBlockHeader` and its companions (access/xlogrecord.h).
//!
//! Invariant: the iterator checks what `DecodeXLogRecord` (xlogreader.c) checks, with the image flags of the record's
//! own major: bit 0x02 means *compressed* up to 14 and *apply* from 15 on. Headers and data must fill the record exactly.

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::major::Major;
use crate::relpath::{Fork, RelFork};
use crate::value::BlockNo;

use super::record::{DecodeError, RECORD_HEADER_BYTES, Record};

const MAX_BLOCK_ID: u8 = 32;
const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
/// 14 and later.
const ID_TOPLEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;
const PAGE_BYTES: u16 = 8192;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRef {
    pub id: u8,
    pub rel: RelFork,
    pub block: BlockNo,
    pub image: Option<BlockImage>,
    /// The redo function initialises the page from nothing.
    pub will_init: bool,
    /// Bytes of data that belong to this block.
    pub data_bytes: u16,
}

/// A full-page image in the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockImage {
    pub bytes: u16,
    pub compressed: bool,
    /// Replay restores the page from the image; otherwise it is there for consistency checks alone.
    pub apply: bool,
}

fn image_compressed(major: Major, info: u8) -> bool {
    let mask = if major >= Major::V15 { 0x04 | 0x08 | 0x10 } else { 0x02 };
    info & mask != 0
}

fn image_apply(major: Major, info: u8) -> bool {
    let mask = if major >= Major::V15 { 0x02 } else { 0x04 };
    info & mask != 0
}

#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    record: Record<'a>,
    offset: usize,
    /// Bytes of data announced so far; they follow the headers.
    data: usize,
    main: usize,
    last_rel: Option<RelFork>,
    last_id: Option<u8>,
    done: bool,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(record: Record<'a>) -> Self {
        Self { record, offset: RECORD_HEADER_BYTES, data: 0, main: 0, last_rel: None, last_id: None, done: false }
    }

    /// Only right after the iterator has ended without an error.
    pub(super) fn main_data(&self) -> &'a [u8] {
        let at = self.record.body.len().saturating_sub(self.main);
        self.record.body.get(at..).unwrap_or_default()
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        let value = u8_at(self.record.body, self.offset).ok_or_else(|| self.short())?;
        self.offset += 1;
        Ok(value)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        let value = u16_at(self.record.body, self.offset).ok_or_else(|| self.short())?;
        self.offset += 2;
        Ok(value)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        let value = u32_at(self.record.body, self.offset).ok_or_else(|| self.short())?;
        self.offset += 4;
        Ok(value)
    }

    fn short(&self) -> DecodeError {
        self.record.error("headers run past the end of the record")
    }

    /// Whether only data is left. The loop condition of `DecodeXLogRecord`.
    fn headers_left(&self) -> bool {
        self.record.body.len().saturating_sub(self.offset) > self.data
    }

    /// The next block, or `None` after the last header.
    fn advance(&mut self) -> Result<Option<BlockRef>, DecodeError> {
        while self.headers_left() {
            match self.u8()? {
                ID_DATA_SHORT => {
                    self.main = usize::from(self.u8()?);
                    return self.finish();
                }
                ID_DATA_LONG => {
                    let length = self.u32()?;
                    self.main = usize::try_from(length).map_err(|_| self.short())?;
                    return self.finish();
                }
                ID_ORIGIN => {
                    self.u16()?;
                }
                ID_TOPLEVEL_XID if self.record.major >= Major::V14 => {
                    self.u32()?;
                }
                id @ 0..=MAX_BLOCK_ID => return self.block(id).map(Some),
                _ => return Err(self.record.error("unknown block id")),
            }
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<Option<BlockRef>, DecodeError> {
        let announced = self.data.checked_add(self.main);
        let left = self.record.body.len().checked_sub(self.offset);
        if announced.is_none() || announced != left {
            return Err(self.record.error("headers and data do not fill the record"));
        }
        Ok(None)
    }

    fn block(&mut self, id: u8) -> Result<BlockRef, DecodeError> {
        if self.last_id.is_some_and(|last| id <= last) {
            return Err(self.record.error("block ids are out of order"));
        }
        self.last_id = Some(id);
        let flags = self.u8()?;
        let fork = Fork::from_number(flags & FORK_MASK).ok_or_else(|| self.record.error("unknown fork"))?;
        let data_bytes = self.u16()?;
        if (flags & HAS_DATA != 0) != (data_bytes != 0) {
            return Err(self.record.error("block data flag and length disagree"));
        }
        self.data += usize::from(data_bytes);
        let image = if flags & HAS_IMAGE != 0 { Some(self.image()?) } else { None };
        let rel = if flags & SAME_REL != 0 {
            // The locator of the block before, with a fork of its own.
            let last = self.last_rel.ok_or_else(|| self.record.error("same relation as no block before"))?;
            RelFork { fork, ..last }
        } else {
            RelFork { spc: self.u32()?, db: self.u32()?, rel: self.u32()?, fork }
        };
        self.last_rel = Some(rel);
        let block = BlockNo(self.u32()?);
        Ok(BlockRef { id, rel, block, image, will_init: flags & WILL_INIT != 0, data_bytes })
    }

    fn image(&mut self) -> Result<BlockImage, DecodeError> {
        let bytes = self.u16()?;
        let hole_offset = self.u16()?;
        let info = self.u8()?;
        let major = self.record.major;
        let compressed = image_compressed(major, info);
        let has_hole = info & IMAGE_HAS_HOLE != 0;
        let hole = match (compressed, has_hole) {
            (true, true) => self.u16()?,
            (true, false) => 0,
            (false, _) => PAGE_BYTES.checked_sub(bytes).ok_or_else(|| self.record.error("image larger than a page"))?,
        };
        let hole_agrees =
            if has_hole { hole_offset != 0 && hole != 0 && bytes != PAGE_BYTES } else { hole_offset == 0 && hole == 0 };
        let length_agrees = if compressed { bytes < PAGE_BYTES } else { has_hole || bytes == PAGE_BYTES };
        if !hole_agrees || !length_agrees {
            return Err(self.record.error("page image with an impossible hole or length"));
        }
        self.data += usize::from(bytes);
        Ok(BlockImage { bytes, compressed, apply: image_apply(major, info) })
    }
}

impl Iterator for Blocks<'_> {
    type Item = Result<BlockRef, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
