//! The walk itself: pages in, records out.
//!
//! Invariant: see the parent module. The walker never looks back at a page, so a segment can be walked while it is read
//! from a pipe, decrypted or decompressed.

use std::mem;

use crate::bytes::u32_at;
use crate::major::Major;
use crate::value::{Lsn, SegmentNo, SegmentSize, SystemId, TimelineId};

use super::page::{LongPart, PageExpect, PageHeader, SHORT_HEADER_BYTES};
use super::record::{RECORD_HEADER_BYTES, Record, RecordHeader, plausible_length};
use super::scan::{Leading, SegmentScan, Tail, WalError};
use super::{CROSSING_BYTES_MAX, RECORD_BYTES_MAX, WAL_PAGE_SIZE, maxalign};

const PAGE_BYTES: u64 = 8192;

/// What the segment should be, from its file name and from `pg_control`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentExpect {
    pub timeline: TimelineId,
    pub segment: SegmentNo,
    pub size: SegmentSize,
    /// `None` if the cluster is not known yet.
    pub system_id: Option<SystemId>,
}

pub trait RecordSink {
    fn record(&mut self, rec: &Record<'_>);
}

/// A sink that drops the records, where only the scan is wanted.
impl RecordSink for () {
    fn record(&mut self, _: &Record<'_>) {}
}

/// Hands each record to both.
impl<A: RecordSink, B: RecordSink> RecordSink for (A, B) {
    fn record(&mut self, rec: &Record<'_>) {
        self.0.record(rec);
        self.1.record(rec);
    }
}

impl<F: FnMut(&Record<'_>)> RecordSink for F {
    fn record(&mut self, rec: &Record<'_>) {
        self(rec);
    }
}

/// Walks a whole segment that is in memory.
pub fn scan_segment(bytes: &[u8], expect: SegmentExpect, sink: &mut dyn RecordSink) -> Result<SegmentScan, WalError> {
    let mut walker = Walker::new(expect);
    walker.feed(bytes, sink)?;
    walker.finish()
}

#[derive(Debug)]
pub struct Walker {
    expect: SegmentExpect,
    next_page: Lsn,
    segment_end: Lsn,
    walk: Option<Walk>,
}

impl Walker {
    pub fn new(expect: SegmentExpect) -> Self {
        let (next_page, segment_end) = (expect.segment.start(expect.size), expect.segment.end(expect.size));
        Self { expect, next_page, segment_end, walk: None }
    }

    /// Takes the next whole pages of the segment, any number of them.
    pub fn feed(&mut self, pages: &[u8], sink: &mut dyn RecordSink) -> Result<(), WalError> {
        let (pages, rest) = pages.as_chunks::<WAL_PAGE_SIZE>();
        if !rest.is_empty() {
            return Err(WalError::PartialPage { bytes: pages.len() * WAL_PAGE_SIZE + rest.len() });
        }
        for page in pages {
            let at = self.next_page;
            if at >= self.segment_end {
                return Err(WalError::TooLong);
            }
            self.next_page = Lsn(at.0.saturating_add(PAGE_BYTES));
            match &mut self.walk {
                Some(walk) => walk.page(page, at, sink),
                None => self.walk.insert(Walk::begin(page, &self.expect)?).first_page(page, at, sink),
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Result<SegmentScan, WalError> {
        let walk = self.walk.ok_or(WalError::Empty)?;
        Ok(walk.finish(self.next_page, self.next_page >= self.segment_end))
    }
}

/// What the next page must bring.
#[derive(Debug)]
enum State {
    /// A new record.
    Between,
    /// More of a record that began in an earlier segment.
    Leading { remaining: u32 },
    /// More of a record that ends in this segment; the buffer holds what there is.
    Record { start: Lsn, total: u32 },
    /// More of a record that ends in a later segment; the buffer holds its beginning.
    Crossing { start: Lsn, total: u32, taken: u32 },
    /// Nothing: the valid WAL is over.
    Done(Tail),
}

#[derive(Debug)]
struct Walk {
    scan: SegmentScan,
    state: State,
    /// Where the next record is expected.
    position: Lsn,
    timeline: TimelineId,
    /// Pages carry timelines that never fall.
    page_timeline: u32,
    previous: Option<Lsn>,
    buffer: Vec<u8>,
}

impl Walk {
    /// Checks that the first page is that of the expected segment.
    fn begin(page: &[u8; WAL_PAGE_SIZE], expect: &SegmentExpect) -> Result<Self, WalError> {
        let (Some(header), Some(long)) = (PageHeader::parse(page), LongPart::parse(page)) else {
            return Err(WalError::Empty);
        };
        let start = expect.segment.start(expect.size);
        let major = Major::from_wal_magic(header.magic).ok_or(WalError::Magic { found: header.magic })?;
        if !header.flags_known() || !header.is_long() {
            return Err(WalError::Flags { found: header.info });
        }
        if u64::from(long.page_bytes) != PAGE_BYTES {
            return Err(WalError::PageSize { found: long.page_bytes });
        }
        let system_id = SystemId(long.system_id);
        if let Some(expected) = expect.system_id.filter(|expected| *expected != system_id) {
            return Err(WalError::System { expected, found: system_id });
        }
        if u64::from(long.segment_bytes) != expect.size.bytes() {
            return Err(WalError::SegmentSize { expected: expect.size.bytes(), found: long.segment_bytes });
        }
        if header.address != start {
            return Err(WalError::Address { expected: start, found: header.address });
        }
        let timeline = TimelineId::new(header.timeline)
            .filter(|timeline| *timeline <= expect.timeline)
            .ok_or(WalError::Timeline { expected: expect.timeline, found: header.timeline })?;
        Ok(Self {
            scan: SegmentScan::new(major, system_id, timeline, expect),
            state: State::Between,
            position: start,
            timeline: expect.timeline,
            page_timeline: header.timeline,
            previous: None,
            buffer: Vec::new(),
        })
    }

    fn first_page(&mut self, page: &[u8; WAL_PAGE_SIZE], at: Lsn, sink: &mut dyn RecordSink) {
        let Some(header) = PageHeader::parse(page) else {
            return;
        };
        self.scan.overwrites_crossing = header.overwrites_record();
        if header.continues_record() {
            if header.remaining == 0 || header.remaining > RECORD_BYTES_MAX {
                return self.ended(format!("first page says that {} bytes of a record remain", header.remaining));
            }
            self.state = State::Leading { remaining: header.remaining };
            let (data, total_remaining) = (Vec::new(), header.remaining);
            self.scan.leading = Some(Leading { total_remaining, data, complete: false, end: None });
        }
        self.content(page, &header, at, sink);
    }

    fn page(&mut self, page: &[u8; WAL_PAGE_SIZE], at: Lsn, sink: &mut dyn RecordSink) {
        let expect = PageExpect {
            magic: self.scan.major.wal_magic(),
            address: at,
            timeline_min: self.page_timeline,
            timeline_max: self.timeline.get(),
        };
        if let State::Done(tail) = &self.state {
            let wanted = matches!(tail, Tail::Ended { .. }) && self.scan.wal_after_end.is_none();
            if wanted && holds_wal(page, &expect) {
                self.scan.wal_after_end = Some(at);
            }
            return;
        }
        let checked = PageHeader::parse(page).ok_or_else(|| "page is cut short".to_string());
        let header = match checked.and_then(|header| header.check(&expect).map(|()| header)) {
            Ok(header) => header,
            Err(reason) => return self.ended(reason),
        };
        self.page_timeline = header.timeline;
        if header.overwrites_record() && !matches!(self.state, State::Between) {
            // After a crash: the record begun before was given up, and the last whole one is the predecessor.
            self.state = State::Between;
            self.position = at;
        }
        self.content(page, &header, at, sink);
    }

    /// What follows the page header: the rest of a record, then whole records, then the beginning of one.
    fn content(&mut self, page: &[u8; WAL_PAGE_SIZE], header: &PageHeader, at: Lsn, sink: &mut dyn RecordSink) {
        if let Err(reason) = self.check_continuation(header, at) {
            return self.ended(reason);
        }
        let mut offset = header.len();
        if header.continues_record() {
            let length = usize::try_from(header.remaining).unwrap_or(usize::MAX).min(WAL_PAGE_SIZE - offset);
            let Some(part) = page.get(offset..offset + length) else {
                return;
            };
            let end = Lsn(maxalign(at.0.saturating_add(as_u64(offset + length))).unwrap_or(u64::MAX));
            self.take_part(part, end, sink);
            offset = (offset + length).next_multiple_of(8);
        }
        while offset < WAL_PAGE_SIZE && matches!(self.state, State::Between) {
            offset = self.record_at(page, offset, at, sink);
        }
    }

    fn check_continuation(&self, header: &PageHeader, at: Lsn) -> Result<(), String> {
        let expected = match &self.state {
            State::Between | State::Done(_) => 0,
            State::Leading { remaining } => *remaining,
            State::Record { total, .. } => total.saturating_sub(length_u32(&self.buffer)),
            State::Crossing { total, taken, .. } => total.saturating_sub(*taken),
        };
        match (expected, header.continues_record()) {
            (0, false) => Ok(()),
            (0, true) => Err(format!("page at {at} continues a record that did not begin")),
            (_, false) => Err(format!("page at {at} does not continue the record before it")),
            (_, true) if header.remaining == expected => Ok(()),
            (_, true) => Err(format!("page at {at} says that {} bytes remain, not {expected}", header.remaining)),
        }
    }

    /// The next part of the record under way; `end` is where the record ends if this is its last part.
    fn take_part(&mut self, part: &[u8], end: Lsn, sink: &mut dyn RecordSink) {
        let bytes = length_u32(part);
        match &mut self.state {
            State::Leading { remaining } => {
                *remaining = remaining.saturating_sub(bytes);
                let over = *remaining == 0;
                self.take_leading(part, over, end);
            }
            State::Record { start, total } => {
                let (start, total) = (*start, *total);
                self.buffer.extend_from_slice(part);
                if length_u32(&self.buffer) < total {
                    self.check_head(start);
                    return;
                }
                let buffer = mem::take(&mut self.buffer);
                self.state = State::Between;
                self.whole(&buffer, start, end, sink);
                self.buffer = buffer;
            }
            State::Crossing { start, taken, .. } => {
                let start = *start;
                *taken = taken.saturating_add(bytes);
                append_limited(&mut self.buffer, part);
                self.check_head(start);
            }
            State::Between | State::Done(_) => {}
        }
    }

    fn take_leading(&mut self, part: &[u8], over: bool, end: Lsn) {
        if let Some(leading) = &mut self.scan.leading {
            append_limited(&mut leading.data, part);
            if over {
                leading.complete = leading.total_remaining == length_u32(&leading.data);
                leading.end = Some(end);
            }
        }
        if over {
            self.state = State::Between;
            self.position = end;
            self.scan.end = end;
        }
    }

    /// Reads the record that begins at `offset`; returns the offset of the next.
    fn record_at(&mut self, page: &[u8; WAL_PAGE_SIZE], offset: usize, at: Lsn, sink: &mut dyn RecordSink) -> usize {
        let start = Lsn(at.0.saturating_add(as_u64(offset)));
        self.position = start;
        let rest = page.get(offset..).unwrap_or_default();
        // The length lies whole on this page, because records begin at multiples of eight.
        let total = u32_at(rest, 0).unwrap_or_default();
        if total == 0 {
            self.ended("no record: its length is zero".to_string());
            return WAL_PAGE_SIZE;
        }
        if !plausible_length(total) {
            self.ended(format!("no record has {total} bytes"));
            return WAL_PAGE_SIZE;
        }
        let length = usize::try_from(total).unwrap_or(usize::MAX);
        if let Some(body) = rest.get(..length) {
            let next = (offset + length).next_multiple_of(8);
            self.whole(body, start, Lsn(at.0.saturating_add(as_u64(next))), sink);
            return next;
        }
        self.buffer.clear();
        append_limited(&mut self.buffer, rest);
        let pages_after = self.scan.segment_end.0.saturating_sub(at.0) / PAGE_BYTES;
        let room = pages_after.saturating_sub(1) * (PAGE_BYTES - as_u64(SHORT_HEADER_BYTES)) + as_u64(rest.len());
        self.state = if u64::from(total) > room {
            State::Crossing { start, total, taken: length_u32(rest) }
        } else {
            State::Record { start, total }
        };
        self.check_head(start);
        WAL_PAGE_SIZE
    }

    /// As soon as the header of an unfinished record is there, so that old bytes are not gathered as one huge record.
    fn check_head(&mut self, start: Lsn) {
        if let Some(head) = self.buffer.get(..RECORD_HEADER_BYTES)
            && let Some(header) = RecordHeader::parse(head)
            && let Err(reason) = self.check_link(&header, start)
        {
            self.ended(reason);
        }
    }

    fn check_link(&self, header: &RecordHeader, start: Lsn) -> Result<(), String> {
        match self.previous {
            Some(previous) if header.prev != previous => {
                Err(format!("record at {start} follows {}, not {previous}", header.prev))
            }
            None if header.prev >= start => Err(format!("record at {start} follows {}", header.prev)),
            _ => Ok(()),
        }
    }

    /// A record with all its bytes: checks and delivers it.
    fn whole(&mut self, body: &[u8], start: Lsn, end: Lsn, sink: &mut dyn RecordSink) {
        let Some(header) = RecordHeader::parse(body) else {
            return self.ended(format!("record at {start} is shorter than its header"));
        };
        if let Err(reason) = self.check_link(&header, start) {
            return self.ended(reason);
        }
        if !header.crc_holds(body) {
            return self.ended(format!("record at {start} has a wrong checksum"));
        }
        let end = if header.is_switch() { self.scan.segment_end } else { end };
        if let Some(record) = Record::from_body(body, start, end, self.scan.major) {
            self.scan.note(&record);
            sink.record(&record);
        }
        self.previous = Some(start);
        self.position = end;
        if header.is_switch() {
            self.state = State::Done(Tail::Switch);
        }
    }

    fn ended(&mut self, reason: String) {
        let at = match &self.state {
            State::Record { start, .. } | State::Crossing { start, .. } => *start,
            State::Between | State::Leading { .. } | State::Done(_) => self.position,
        };
        self.buffer = Vec::new();
        self.state = State::Done(Tail::Ended { at, reason });
    }

    fn finish(mut self, input_end: Lsn, filled: bool) -> SegmentScan {
        if !filled && !matches!(self.state, State::Done(_)) {
            self.ended(format!("input ends at {input_end}"));
        }
        if matches!(self.state, State::Leading { .. }) {
            self.scan.end = self.scan.segment_end;
        }
        self.scan.tail = match self.state {
            State::Between | State::Leading { .. } => Tail::Filled,
            State::Crossing { start, total, .. } => Tail::Crossing { start, total_len: total, data: self.buffer },
            State::Record { start, .. } => {
                Tail::Ended { at: start, reason: "record does not fit its segment".to_string() }
            }
            State::Done(tail) => tail,
        };
        self.scan
    }
}

/// Whether a page was written as WAL of this very place: a recycled segment's pages carry their old addresses, and the
/// pages after a segment switch have headers and nothing else.
fn holds_wal(page: &[u8; WAL_PAGE_SIZE], expect: &PageExpect) -> bool {
    let header = PageHeader::parse(page).filter(|header| header.check(expect).is_ok());
    let content = header.and_then(|header| page.get(header.len()..));
    content.is_some_and(|content| content.iter().any(|byte| *byte != 0))
}

/// Keeps at most `CROSSING_BYTES_MAX`.
fn append_limited(buffer: &mut Vec<u8>, part: &[u8]) {
    let room = CROSSING_BYTES_MAX.saturating_sub(buffer.len()).min(part.len());
    buffer.extend_from_slice(part.get(..room).unwrap_or_default());
}

/// Lossless: `usize` has at most 64 bits.
fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn length_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
