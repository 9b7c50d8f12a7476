//! The changed blocks of records in any order, and one record that crosses into the next segment, however it is put
//! together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::wal::{
    Assembly, Changes, OwnedRecord, Record, SegmentExpect, Tail, assemble, join_crossing, rmgr, scan_segment,
};
use pgark_pg::{Fork, Lsn, Major, SegmentNo, SegmentSize, TimelineId};

#[path = "crc.rs"]
mod crc;

const SEGMENT: usize = 1 << 20;
const PAGE: usize = 8192;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let major = Major::ALL[usize::from(*first) % Major::ALL.len()];
    single_records(major, rest);
    crossing(major, rest);
});

/// Each stretch of the input is one record: its length, kind, info, then what follows the header.
fn single_records(major: Major, mut rest: &[u8]) {
    let (mut forth, mut parts) = (Changes::default(), Vec::new());
    while let [length, kind, info, after @ ..] = rest {
        let (body, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let managers = [rmgr::XLOG, rmgr::XACT, rmgr::SMGR, rmgr::DBASE, rmgr::RELMAP, 10, 11];
        let record = owned(major, managers[usize::from(*kind) % managers.len()], *info, body);
        let record = record.as_record().expect("a whole header");
        let mut part = Changes::default();
        part.add(&record);
        forth.add(&record);
        assert!(part.relations.keys().all(|rel| rel.fork == Fork::Main));
        for block in record.blocks().flatten().filter(|block| block.rel.fork == Fork::Main) {
            let whole = record.blocks().all(|block| block.is_ok());
            assert!(!whole || part.relations[&block.rel].contains(block.block.0));
        }
        parts.push(part);
    }
    let mut back = Changes::default();
    parts.iter().rev().for_each(|part| back.merge(part));
    assert_eq!(back.relations, forth.relations);
    assert_eq!(back.databases, forth.databases);
    assert_eq!(back.unusable.is_some(), forth.unusable.is_some());
}

fn owned(major: Major, rmgr: u8, info: u8, body: &[u8]) -> OwnedRecord {
    let mut bytes = vec![0; 24];
    bytes[0..4].copy_from_slice(&(24 + body.len() as u32).to_le_bytes());
    bytes[16..18].copy_from_slice(&[info, rmgr]);
    bytes.extend(body);
    OwnedRecord { start: Lsn(8), end: Lsn(16), body: bytes, major }
}

/// One record with a right checksum from the first segment's last page to the next segment: joined from what a scan
/// keeps, and assembled from the bytes. The first byte may damage the header of the page between.
fn crossing(major: Major, rest: &[u8]) {
    let [damage, at, rest @ ..] = rest else { return };
    let rest = &rest[..rest.len().min(2 * PAGE)];
    let start = SEGMENT - PAGE + 24 + 8 * usize::from(*at);
    let mut record = owned(major, rmgr::SMGR, 0x10, rest).body;
    record.resize(record.len().max(SEGMENT - start + 1), 0);
    let total = record.len();
    record[0..4].copy_from_slice(&(total as u32).to_le_bytes());
    let sum = crc::crc32c(&[&record[24..], &record[..20]]);
    record[20..24].copy_from_slice(&sum.to_le_bytes());
    let (head, tail) = record.split_at(SEGMENT - start);
    let mut bytes = vec![0; SEGMENT + PAGE];
    for page in [0, SEGMENT - PAGE, SEGMENT] {
        let remaining = if page == SEGMENT { tail.len() } else { 0 };
        header(&mut bytes[page..], major, SEGMENT + page, remaining, page % SEGMENT == 0);
    }
    bytes[start..SEGMENT].copy_from_slice(head);
    let room = tail.len().min(PAGE - 40);
    bytes[SEGMENT + 40..SEGMENT + 40 + room].copy_from_slice(&tail[..room]);
    if damage & 0x80 != 0 {
        bytes[SEGMENT + usize::from(damage & 0x3F)] ^= damage | 1;
    }
    let base = Lsn(SEGMENT as u64);
    let assembled = assemble(&bytes, base, Lsn((SEGMENT + start) as u64), major);
    let whole = damage & 0x80 == 0 && room == tail.len();
    // Damage where nobody looks does no harm: what comes out is the record, or nothing.
    match &assembled {
        Assembly::Whole(out) => assert_eq!(out.body, record),
        other => assert!(!whole, "{other:?}"),
    }
    let crossing =
        Tail::Crossing { start: Lsn((SEGMENT + start) as u64), total_len: total as u32, data: head.to_vec() };
    let expect = SegmentExpect {
        timeline: TimelineId::FIRST,
        segment: SegmentNo(2),
        size: SegmentSize::new(SEGMENT as u64).expect("a valid size"),
        system_id: None,
    };
    let mut sink = |_: &Record<'_>| {};
    let Ok(scan) = scan_segment(&bytes[SEGMENT..], expect, &mut sink) else { return };
    let Some(leading) = scan.leading else { return };
    match join_crossing(&crossing, &leading, major) {
        Ok(Some(joined)) => assert_eq!(joined.body, record),
        other => assert!(!whole, "{other:?}"),
    }
}

fn header(page: &mut [u8], major: Major, address: usize, remaining: usize, long: bool) {
    let info = u16::from(remaining > 0) | if long { 2 } else { 0 };
    page[0..2].copy_from_slice(&major.wal_magic().to_le_bytes());
    page[2..4].copy_from_slice(&info.to_le_bytes());
    page[4..8].copy_from_slice(&1u32.to_le_bytes());
    page[8..16].copy_from_slice(&(address as u64).to_le_bytes());
    page[16..20].copy_from_slice(&(remaining as u32).to_le_bytes());
    if long {
        page[32..36].copy_from_slice(&(SEGMENT as u32).to_le_bytes());
        page[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
    }
}
