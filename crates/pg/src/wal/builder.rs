//! Writes WAL for tests, as the server would: page headers, records across pages and segments, switches, overwritten
//! records.

use crate::major::Major;
use crate::value::{Lsn, SegmentNo, SegmentSize, SystemId, TimelineId};

use super::WAL_PAGE_SIZE;
use super::walker::SegmentExpect;

pub(super) const SYSTEM: SystemId = SystemId(0x1122_3344_5566_7788);
pub(super) const SEGMENT_BYTES: usize = 1 << 20;

pub(super) fn size() -> SegmentSize {
    SegmentSize::new(SEGMENT_BYTES as u64).unwrap()
}

pub(super) fn expect(segment: u64) -> SegmentExpect {
    SegmentExpect {
        timeline: TimelineId::new(3).unwrap(),
        segment: SegmentNo(segment),
        size: size(),
        system_id: Some(SYSTEM),
    }
}

pub(super) struct Builder {
    major: Major,
    base: u64,
    /// All bytes from `base` on.
    pub bytes: Vec<u8>,
    previous: u64,
}

impl Builder {
    pub fn new(major: Major, segment: u64) -> Self {
        let base = segment * SEGMENT_BYTES as u64;
        Self { major, base, bytes: Vec::new(), previous: base.saturating_sub(100) }
    }

    fn at(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn page_header(&mut self, info: u16, remaining: u32) {
        let at = self.at();
        let long = self.bytes.len().is_multiple_of(SEGMENT_BYTES);
        let info = info | if long { 2 } else { 0 };
        self.bytes.extend(self.major.wal_magic().to_le_bytes());
        self.bytes.extend(info.to_le_bytes());
        self.bytes.extend(3u32.to_le_bytes());
        self.bytes.extend(at.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(SYSTEM.0.to_le_bytes());
            self.bytes.extend((SEGMENT_BYTES as u32).to_le_bytes());
            self.bytes.extend((WAL_PAGE_SIZE as u32).to_le_bytes());
        }
    }

    fn page_left(&self) -> usize {
        WAL_PAGE_SIZE - self.bytes.len() % WAL_PAGE_SIZE
    }

    fn between(&mut self) {
        if self.bytes.len().is_multiple_of(WAL_PAGE_SIZE) {
            self.page_header(0, 0);
        }
    }

    /// A record's bytes, with main data only.
    pub fn encode(&self, rmgr: u8, info: u8, xid: u32, main: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        let head = if main.len() > 255 { 5 } else { 2 };
        body.extend(((24 + head + main.len()) as u32).to_le_bytes());
        body.extend(xid.to_le_bytes());
        body.extend(self.previous.to_le_bytes());
        body.extend([info, rmgr, 0, 0, 0, 0, 0, 0]);
        if main.len() > 255 {
            body.push(254);
            body.extend((main.len() as u32).to_le_bytes());
        } else {
            body.extend([255, main.len() as u8]);
        }
        body.extend(main);
        seal(&mut body);
        body
    }

    pub fn record(&mut self, rmgr: u8, info: u8, xid: u32, main: &[u8]) -> Lsn {
        self.between();
        let body = self.encode(rmgr, info, xid, main);
        self.write(&body)
    }

    /// Writes a record that is already encoded.
    pub fn write(&mut self, body: &[u8]) -> Lsn {
        self.between();
        let start = self.at();
        let mut rest = body;
        loop {
            let (part, after) = rest.split_at(self.page_left().min(rest.len()));
            self.bytes.extend(part);
            rest = after;
            if rest.is_empty() {
                break;
            }
            self.page_header(1, rest.len() as u32);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = start;
        Lsn(start)
    }

    /// Writes the beginning of a record up to the end of this page, then gives it up on the next page.
    pub fn abandoned(&mut self, main: &[u8]) {
        self.between();
        let body = self.encode(2, 0, 1, main);
        assert!(body.len() > self.page_left(), "it must cross a page");
        let part = body[..self.page_left()].to_vec();
        self.bytes.extend(part);
        self.page_header(8, 0);
    }

    /// A record that fills the page to its last byte but `left`.
    pub fn fill_page(&mut self, left: usize) {
        self.between();
        if self.page_left() < 24 + 5 + 256 + left {
            self.record(9, 0, 0, &[0; 200]);
            self.between();
        }
        let main = self.page_left() - left - 24 - 5;
        self.record(9, 0, 0, &vec![7; main]);
        assert_eq!(self.bytes.len() % WAL_PAGE_SIZE, (WAL_PAGE_SIZE - left) % WAL_PAGE_SIZE);
    }

    /// Fills the segment so that `left` bytes remain.
    pub fn fill_segment(&mut self, left: usize) {
        self.between();
        while SEGMENT_BYTES - self.bytes.len() % SEGMENT_BYTES > WAL_PAGE_SIZE {
            self.fill_page(0);
            self.between();
        }
        self.fill_page(left);
    }

    pub fn switch(&mut self) -> Lsn {
        self.between();
        let mut body = vec![24, 0, 0, 0, 0, 0, 0, 0];
        body.extend(self.previous.to_le_bytes());
        body.extend([0x40, 0, 0, 0, 0, 0, 0, 0]);
        seal(&mut body);
        let start = self.write(&body);
        self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT_BYTES), 0);
        start
    }

    /// Each segment, the last one padded with zeros.
    pub fn segments(&self) -> Vec<Vec<u8>> {
        let segments = self.bytes.chunks(SEGMENT_BYTES);
        segments
            .map(|part| {
                let mut segment = part.to_vec();
                segment.resize(SEGMENT_BYTES, 0);
                segment
            })
            .collect()
    }
}

/// Puts the right CRC into a record.
pub(super) fn seal(body: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body[24..]), &body[..20]);
    body[20..24].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn commit(time: i64) -> Vec<u8> {
    time.to_le_bytes().to_vec()
}
