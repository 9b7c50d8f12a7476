//! The changes of a stretch of WAL by our own walker: segment by segment and merged, as an incremental backup has them.

use std::fs;
use std::path::Path;

use pgark_pg::wal::{
    Assembly, Changes, OwnedRecord, Record, SegmentExpect, SegmentScan, Tail, assemble, join_crossing, scan_segment,
};
use pgark_pg::{ControlFile, Lsn, SegmentName, SegmentNo, TimelineId};

pub struct Walked {
    pub changes: Changes,
    pub records: usize,
    pub segments: usize,
    /// Records across a boundary that came from what the two scans keep of them.
    pub joined: usize,
    /// Those that had to be read from the segments themselves.
    pub assembled: usize,
}

/// A record that goes on in a later segment, with all bytes since the one that it began in.
struct Open {
    base: Lsn,
    start: Lsn,
    tail: Tail,
    segments: usize,
    bytes: Vec<u8>,
}

struct Walk {
    begin: Lsn,
    end: Lsn,
    /// Of each segment.
    parts: Vec<Changes>,
    /// Of all records, one after the other.
    whole: Changes,
    records: usize,
    joined: usize,
    assembled: usize,
}

/// Of the records that start in `[begin, end)`.
pub fn walk(pg_wal: &Path, control: &ControlFile, begin: Lsn, end: Lsn) -> Walked {
    let size = control.segment_size;
    let [first, last] = [begin, end].map(|lsn| SegmentNo::containing(lsn, size));
    let mut walk =
        Walk { begin, end, parts: Vec::new(), whole: Changes::default(), records: 0, joined: 0, assembled: 0 };
    let mut open: Option<Open> = None;
    for number in first.0..=last.0 {
        let (timeline, segment) = (TimelineId::FIRST, SegmentNo(number));
        let bytes = fs::read(pg_wal.join(SegmentName { timeline, segment }.format(size))).unwrap();
        let expect = SegmentExpect { timeline, segment, size, system_id: Some(control.system_id) };
        let mut part = Changes::default();
        let mut sink = |record: &Record<'_>| walk.add(&mut part, record);
        let scan = scan_segment(&bytes, expect, &mut sink).unwrap();
        assert_eq!((scan.undecodable, scan.major), (0, control.major), "{:?}", scan.first_undecodable);
        let closed;
        (open, closed) = walk.close(open, &bytes, &scan, &mut part);
        let ended = matches!(scan.tail, Tail::Ended { .. }) && !closed.is_some_and(|record| is_switch(&record));
        assert_eq!(ended, number == last.0, "segment {number}: {:?}", scan.tail);
        if let Tail::Crossing { start, .. } = scan.tail {
            assert!(open.is_none());
            open = Some(Open { base: segment.start(size), start, tail: scan.tail, segments: 1, bytes });
        }
        walk.parts.push(part);
    }
    walk.finish()
}

fn is_switch(record: &OwnedRecord) -> bool {
    record.as_record().unwrap().is_switch()
}

impl Walk {
    fn add(&mut self, part: &mut Changes, record: &Record<'_>) {
        if (self.begin..self.end).contains(&record.start) {
            self.records += 1;
            part.add(record);
            self.whole.add(record);
        }
    }

    /// Finishes the record that is open, if it ends in this segment.
    fn close(
        &mut self,
        open: Option<Open>,
        bytes: &[u8],
        scan: &SegmentScan,
        part: &mut Changes,
    ) -> (Option<Open>, Option<OwnedRecord>) {
        let Some(mut open) = open else { return (None, None) };
        open.bytes.extend_from_slice(bytes);
        open.segments += 1;
        let record = match assemble(&open.bytes, open.base, open.start, scan.major) {
            Assembly::Whole(record) => record,
            Assembly::Unfinished => return (Some(open), None),
            Assembly::Broken(why) => panic!("the record at {}: {why}", open.start),
        };
        let joined = (open.segments == 2)
            .then(|| join_crossing(&open.tail, scan.leading.as_ref().unwrap(), scan.major).unwrap())
            .flatten();
        match joined {
            Some(joined) => {
                assert_eq!(joined, record);
                self.joined += 1;
            }
            None => self.assembled += 1,
        }
        self.add(part, &record.as_record().unwrap());
        (None, Some(record))
    }

    fn finish(self) -> Walked {
        let merged = |parts: &mut dyn Iterator<Item = &Changes>| {
            let mut all = Changes::default();
            parts.for_each(|part| all.merge(part));
            all
        };
        let changes = merged(&mut self.parts.iter());
        assert_eq!(changes.unusable, None);
        // Not `assert_eq`: they are too large to print.
        assert!(changes == merged(&mut self.parts.iter().rev()), "the order of merging matters");
        assert!(changes == self.whole, "merging the segments gives another result than walking on");
        let (segments, records) = (self.parts.len(), self.records);
        Walked { changes, records, segments, joined: self.joined, assembled: self.assembled }
    }
}
