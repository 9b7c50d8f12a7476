//! A record that crosses segment boundaries, put together from the segments themselves. For records too large for
//! `join_crossing`, or ones that fill a segment between two others.

use crate::bytes::u32_at;
use crate::major::Major;
use crate::value::Lsn;

use super::page::PageHeader;
use super::record::{OwnedRecord, RecordHeader, plausible_length};
use super::{WAL_PAGE_SIZE, maxalign};

/// What came out of the bytes that were there.
#[derive(Debug, PartialEq)]
pub enum Assembly {
    Whole(OwnedRecord),
    /// More segments are needed.
    Unfinished,
    /// The bytes do not hold this record.
    Broken(&'static str),
}

/// Reads the record at `start` from `bytes`, which begin at `base`, the start of a segment, and hold whole pages.
pub fn assemble(bytes: &[u8], base: Lsn, start: Lsn, major: Major) -> Assembly {
    let Some(at) = start.0.checked_sub(base.0).and_then(|n| usize::try_from(n).ok()) else {
        return Assembly::Broken("it begins before the bytes that are there");
    };
    let Some(total) = u32_at(bytes.get(at..).unwrap_or_default(), 0).filter(|t| plausible_length(*t)) else {
        return Assembly::Broken("no record begins there");
    };
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    let mut body: Vec<u8> = Vec::with_capacity(total.min(bytes.len()));
    let mut from = at;
    loop {
        let page_end = (from / WAL_PAGE_SIZE + 1) * WAL_PAGE_SIZE;
        let take = (total - body.len()).min(page_end - from);
        let Some(part) = bytes.get(from..from + take) else { return Assembly::Unfinished };
        body.extend_from_slice(part);
        if body.len() == total {
            from += take;
            break;
        }
        let Some(page) = bytes.get(page_end..page_end + WAL_PAGE_SIZE) else { return Assembly::Unfinished };
        let Some(header) = PageHeader::parse(page) else { return Assembly::Broken("a page header does not parse") };
        let left = u32::try_from(total - body.len()).unwrap_or(u32::MAX);
        if !header.continues_record() || header.remaining != left {
            return Assembly::Broken("the next page does not continue it");
        }
        from = page_end + header.len();
    }
    if !RecordHeader::parse(&body).is_some_and(|header| header.crc_holds(&body)) {
        return Assembly::Broken("its checksum is wrong");
    }
    let end = maxalign(base.0.saturating_add(u64::try_from(from).unwrap_or(u64::MAX)));
    Assembly::Whole(OwnedRecord { start, end: Lsn(end.unwrap_or(u64::MAX)), body, major })
}
