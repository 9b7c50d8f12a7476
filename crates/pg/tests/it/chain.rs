//! All records of a directory of WAL segments, those across segment boundaries included.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pgark_pg::wal::{
    OwnedRecord, Record, SegmentExpect, SegmentScan, Tail, TransactionEnd, join_crossing, scan_segment,
};
use pgark_pg::{Lsn, SegmentSize, SystemId, WalFileName};

/// One record as both we and `pg_waldump` can describe it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub prev: Lsn,
    pub end: Option<Lsn>,
    pub bytes: usize,
    pub xid: u32,
    /// `spc/db/rel fork block image`
    pub blocks: Vec<String>,
    pub transaction: Option<TransactionEnd>,
}

pub struct Chain {
    /// By start. A record too large to be joined has no `end`.
    pub records: BTreeMap<Lsn, Seen>,
    pub scans: Vec<SegmentScan>,
    pub joined: usize,
}

fn describe(record: &Record<'_>) -> Seen {
    let blocks = record.blocks().map(|block| {
        let block = block.unwrap();
        let image = block.image.map_or("", |image| if image.apply { " FPW" } else { " FPW for WAL verification" });
        let rel = block.rel;
        format!("{}/{}/{} {:?} {}{image}", rel.spc, rel.db, rel.rel, rel.fork, block.block.0)
    });
    Seen {
        prev: record.prev,
        end: Some(record.end),
        bytes: record.body.len(),
        xid: record.xid,
        blocks: blocks.collect(),
        transaction: record.transaction_end().unwrap(),
    }
}

/// Walks every segment in `dir`, in order, and checks that each continues the one before.
pub fn read(dir: &Path, size: SegmentSize, system_id: SystemId) -> Chain {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| matches!(WalFileName::parse(name), Ok(WalFileName::Segment(_))));
    names.sort();
    let mut chain = Chain { records: BTreeMap::new(), scans: Vec::new(), joined: 0 };
    for name in names {
        let Ok(WalFileName::Segment(raw)) = WalFileName::parse(&name) else { panic!("{name}") };
        let expect = SegmentExpect {
            timeline: raw.timeline,
            segment: raw.number(size).unwrap(),
            size,
            system_id: Some(system_id),
        };
        let mut sink = |record: &Record<'_>| {
            chain.records.insert(record.start, describe(record));
        };
        let Ok(scan) = scan_segment(&fs::read(dir.join(&name)).unwrap(), expect, &mut sink) else {
            // Segments that were created ahead and are not yet written.
            break;
        };
        chain.append(scan);
    }
    chain
}

impl Chain {
    fn append(&mut self, scan: SegmentScan) {
        assert_eq!(scan.undecodable, 0, "{:?}", scan.first_undecodable);
        if let Some(before) = self.scans.last() {
            assert!(!matches!(before.tail, Tail::Ended { .. }), "{:?} before {:?}", before.tail, scan.first_record);
            if let Some(owned) = crossing(before, &scan) {
                let record = owned.as_record().unwrap();
                self.records.insert(owned.start, describe(&record));
                self.joined += 1;
            } else if let Tail::Crossing { start, total_len, data } = &before.tail {
                let seen = Seen {
                    prev: Lsn(u64::from_le_bytes(data[8..16].try_into().unwrap())),
                    end: None,
                    bytes: *total_len as usize,
                    xid: u32::from_le_bytes(data[4..8].try_into().unwrap()),
                    blocks: Vec::new(),
                    transaction: None,
                };
                self.records.insert(*start, seen);
            }
        }
        self.scans.push(scan);
    }

    /// Every record names the one before it.
    pub fn assert_linked(&self) {
        let pairs = self.records.iter().zip(self.records.iter().skip(1));
        for ((start, seen), (next, after)) in pairs {
            assert_eq!(after.prev, *start);
            let Some(end) = seen.end else { continue };
            // The next record follows directly, or after the header of a page or a segment.
            let gap = next.0 - end.0;
            let header = if end.0 % self.scans[0].segment_size.bytes() == 0 { 40 } else { 24 };
            assert_eq!(gap, if end.0 % 8192 == 0 { header } else { 0 }, "after {start}");
        }
    }
}

fn crossing(before: &SegmentScan, scan: &SegmentScan) -> Option<OwnedRecord> {
    join_crossing(&before.tail, scan.leading.as_ref()?, before.major).unwrap()
}
