//! The walker against WAL that we write ourselves: every way a segment can begin and end.

use proptest::prelude::*;

use super::builder::{Builder, SEGMENT_BYTES, SYSTEM, commit, expect, seal, size};
use super::*;
use crate::major::Major;
use crate::relpath::{Fork, RelFork};
use crate::value::{Lsn, PgTimestamp, SegmentNo, SystemId, TimelineId};

const XACT: u8 = rmgr::XACT;
const SEG: u64 = SEGMENT_BYTES as u64;

fn scan(bytes: &[u8], segment: u64) -> SegmentScan {
    scan_segment(bytes, expect(segment), &mut ()).unwrap()
}

#[test]
fn records_arrive_in_order_with_their_ends() {
    let mut wal = Builder::new(Major::V15, 5);
    let mut starts = Vec::new();
    for number in 0..3000u32 {
        let main = vec![1; (number as usize * 37) % 9000];
        starts.push(wal.record(10, 0, number, &main));
    }
    let mut seen = Vec::new();
    let mut previous: Option<(Lsn, Lsn)> = None;
    for (bytes, segment) in wal.segments().iter().zip(5..) {
        let mut sink = |record: &Record<'_>| {
            if let Some((start, end)) = previous
                && SegmentNo::containing(start, size()) == SegmentNo::containing(record.start, size())
                && SegmentNo::containing(end, size()) == SegmentNo(segment)
            {
                let header = if end.0 % SEG == 0 { 40 } else { 24 };
                let expected = if end.0 % 8192 == 0 { end.0 + header } else { end.0 };
                assert_eq!(record.start, Lsn(expected));
            }
            previous = Some((record.start, record.end));
            seen.push(record.start);
        };
        let scan = scan_segment(bytes, expect(segment), &mut sink).unwrap();
        if let Tail::Crossing { start, .. } = scan.tail {
            seen.push(start);
        }
        assert_eq!(scan.undecodable, 0);
    }
    assert_eq!(seen, starts);
}

#[test]
fn pages_may_come_in_any_portions() {
    let mut wal = Builder::new(Major::V14, 1);
    for number in 0..200u32 {
        wal.record(10, 0, number, &vec![2; number as usize * 50]);
    }
    let segment = &wal.segments()[0];
    let whole = scan(segment, 1);
    for pages in [1, 3, 128] {
        let mut walker = Walker::new(expect(1));
        for part in segment.chunks(pages * WAL_PAGE_SIZE) {
            walker.feed(part, &mut ()).unwrap();
        }
        assert_eq!(walker.finish().unwrap(), whole);
    }
}

#[test]
fn a_record_across_segments_is_assembled() {
    for left in [8, 16, 24, 32, 200] {
        let mut wal = Builder::new(Major::V16, 7);
        wal.fill_segment(left);
        let start = wal.record(XACT, 0, 77, &commit(4242));
        wal.record(XACT, 0, 78, &commit(4243));
        let segments = wal.segments();
        let (first, second) =
            (scan(&segments[0], 7), scan(segments.get(1).unwrap_or(&segments[0]), 7 + (left < 40) as u64));
        if left >= 40 {
            assert_eq!(first.transaction_ends, 2, "both fit");
            continue;
        }
        assert!(matches!(first.tail, Tail::Crossing { start: at, .. } if at == start), "{left}");
        let leading = second.leading.as_ref().unwrap();
        let joined = join_crossing(&first.tail, leading, first.major).unwrap().unwrap();
        let record = joined.as_record().unwrap();
        assert_eq!(record.start, start);
        assert_eq!(Some(record.end), leading.end);
        assert_eq!(record.prev, first.last_record.unwrap().0);
        assert_eq!(record.transaction_end().unwrap().unwrap().time, PgTimestamp(4242));
        assert_eq!(second.first_prev, start);
        assert_eq!(second.first_time, Some(PgTimestamp(4243)));
    }
}

#[test]
fn parts_that_do_not_belong_together_are_not_joined() {
    let build = |main: u8, bytes: usize| {
        let mut wal = Builder::new(Major::V15, 1);
        wal.fill_segment(64);
        wal.record(10, 0, 0, &vec![main; bytes]);
        let segments = wal.segments();
        (scan(&segments[0], 1), scan(&segments[1], 2))
    };
    let (a, b) = (build(1, 500), build(2, 500));
    let other = build(1, 600);
    let joined = join_crossing(&a.0.tail, a.1.leading.as_ref().unwrap(), Major::V15).unwrap();
    assert_eq!(joined.unwrap().body.len(), 529);
    let wrong = join_crossing(&a.0.tail, b.1.leading.as_ref().unwrap(), Major::V15);
    assert!(matches!(wrong, Err(JoinError::Checksum { .. })));
    let wrong = join_crossing(&a.0.tail, other.1.leading.as_ref().unwrap(), Major::V15);
    assert!(matches!(wrong, Err(JoinError::Length { .. })));
    assert_eq!(join_crossing(&Tail::Filled, a.1.leading.as_ref().unwrap(), Major::V15), Ok(None));
}

#[test]
fn a_record_larger_than_a_segment_spans_it_whole() {
    let mut wal = Builder::new(Major::V15, 1);
    wal.record(10, 0, 0, &[1; 100]);
    let big = wal.record(10, 0, 0, &vec![3; 3 * SEGMENT_BYTES]);
    let after = wal.record(XACT, 0, 5, &commit(1));
    let scans: Vec<_> = wal.segments().iter().zip(1..).map(|(bytes, segment)| scan(bytes, segment)).collect();
    assert_eq!(scans.len(), 4);
    let Tail::Crossing { start, data, .. } = &scans[0].tail else { panic!("{:?}", scans[0].tail) };
    assert_eq!((*start, data.len()), (big, CROSSING_BYTES_MAX));
    for middle in &scans[1..3] {
        let leading = middle.leading.as_ref().unwrap();
        assert_eq!((leading.complete, leading.end, leading.data.len()), (false, None, CROSSING_BYTES_MAX));
        assert_eq!((middle.records, middle.first_record), (0, None));
        assert_eq!((&middle.tail, middle.end), (&Tail::Filled, middle.segment_end));
    }
    let last = &scans[3];
    assert!(last.leading.as_ref().unwrap().end.is_some());
    assert_eq!((last.first_record, last.first_prev), (Some(after), big));
    assert_eq!(join_crossing(&scans[0].tail, last.leading.as_ref().unwrap(), Major::V15), Ok(None));
}

#[test]
fn a_leading_part_that_breaks_off_has_no_end() {
    let mut wal = Builder::new(Major::V15, 1);
    wal.fill_segment(64);
    wal.record(10, 0, 0, &[3; 100_000]);
    wal.record(10, 0, 0, &[3; 100]);
    let segment = &wal.segments()[1];
    let whole = scan(segment, 2);
    assert!(matches!(whole.leading, Some(Leading { complete: false, end: Some(_), .. })), "larger than what is kept");
    assert_eq!(whole.records, 1);
    let mut broken = segment.clone();
    broken[3 * WAL_PAGE_SIZE..].fill(0);
    let broken = scan(&broken, 2);
    assert_eq!(broken.leading.unwrap().end, None);
    assert!(matches!(broken.tail, Tail::Ended { at, .. } if at == Lsn(2 * SEG) && at == broken.end));
    // The server gives the record up on the fourth page: what follows is walked.
    let mut other = Builder::new(Major::V15, 2);
    other.fill_page(0);
    other.fill_page(0);
    other.fill_page(48);
    other.abandoned(&[1; 100]);
    let after = other.write(&other.encode(10, 0, 0, &[9; 10]));
    let mut given_up = segment.clone();
    given_up[3 * WAL_PAGE_SIZE..].copy_from_slice(&other.segments()[0][3 * WAL_PAGE_SIZE..]);
    let given_up = scan(&given_up, 2);
    assert_eq!((given_up.leading.unwrap().end, given_up.first_record), (None, Some(after)));
}

#[test]
fn a_segment_filled_to_its_last_byte_has_no_crossing() {
    let mut wal = Builder::new(Major::V15, 1);
    wal.fill_segment(0);
    wal.record(10, 0, 0, &[1]);
    let segments = wal.segments();
    let first = scan(&segments[0], 1);
    assert_eq!((&first.tail, first.end), (&Tail::Filled, Lsn(2 * SEG)));
    let second = scan(&segments[1], 2);
    assert_eq!((second.leading, second.first_prev), (None, first.last_record.unwrap().0));
}

#[test]
fn a_switch_ends_at_the_segment_end_wherever_it_stands() {
    for left in [0usize, 24, 32, 4000] {
        let mut wal = Builder::new(Major::V17, 1);
        wal.fill_segment(left);
        let switch = wal.switch();
        let segment = u64::from(left == 0) + 1;
        let scan = scan(&wal.segments()[left.eq(&0) as usize], segment);
        assert_eq!(scan.tail, Tail::Switch, "{left}");
        assert_eq!(scan.last_record, Some((switch, Lsn((segment + 1) * SEG))));
        assert_eq!(scan.end, Lsn((segment + 1) * SEG));
    }
}

#[test]
fn a_switch_across_the_boundary_is_told_to_the_second_segment() {
    let mut wal = Builder::new(Major::V15, 1);
    wal.fill_segment(8);
    wal.switch();
    let segments = wal.segments();
    let (first, mut second) = (scan(&segments[0], 1), scan(&segments[1], 2));
    let joined = join_crossing(&first.tail, second.leading.as_ref().unwrap(), first.major).unwrap().unwrap();
    assert!(joined.as_record().unwrap().is_switch());
    assert!(matches!(second.tail, Tail::Ended { .. }));
    second.leading_was_switch();
    assert_eq!((second.tail, second.end), (Tail::Switch, Lsn(3 * SEG)));
}

#[test]
fn an_overwritten_record_is_forgotten_and_the_chain_goes_on() {
    let mut wal = Builder::new(Major::V15, 1);
    let before = wal.record(10, 0, 0, &[1; 100]);
    wal.abandoned(&[2; 20_000]);
    let after = wal.record(rmgr::XLOG, 0xD0, 0, &[0; 16]);
    let scan = scan(&wal.segments()[0], 1);
    assert_eq!((scan.records, scan.first_record), (2, Some(before)));
    assert_eq!(scan.last_record.unwrap().0, after);
    assert!(!scan.overwrites_crossing);
}

#[test]
fn an_overwritten_crossing_is_said_by_the_second_segment() {
    let mut wal = Builder::new(Major::V13, 1);
    wal.fill_segment(80);
    let previous = wal.record(10, 0, 0, &[1; 6]);
    wal.abandoned(&[2; 20_000]);
    wal.record(rmgr::XLOG, 0xD0, 0, &[0; 16]);
    let segments = wal.segments();
    let (first, second) = (scan(&segments[0], 1), scan(&segments[1], 2));
    assert!(matches!(first.tail, Tail::Crossing { .. }));
    assert!(second.overwrites_crossing && second.leading.is_none());
    assert_eq!(second.first_prev, previous);
}

#[test]
fn bytes_of_another_segment_are_refused() {
    let mut wal = Builder::new(Major::V15, 9);
    wal.record(10, 0, 0, &[1]);
    let good = wal.segments().remove(0);
    let check = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        scan_segment(&bytes, expect(9), &mut ()).unwrap_err()
    };
    assert_eq!(check(0, &[0, 0]), WalError::Magic { found: 0 });
    assert_eq!(check(2, &[0]), WalError::Flags { found: 0 });
    assert_eq!(check(4, &[4]), WalError::Timeline { expected: TimelineId::new(3).unwrap(), found: 4 });
    assert_eq!(check(4, &[0]), WalError::Timeline { expected: TimelineId::new(3).unwrap(), found: 0 });
    assert!(matches!(check(24, &[0]), WalError::System { found: SystemId(found), .. } if found != SYSTEM.0));
    assert!(matches!(check(32, &[0, 0, 0x20]), WalError::SegmentSize { .. }));
    assert_eq!(check(36, &[0, 0x40]), WalError::PageSize { found: 0x4000 });
    let renamed = scan_segment(&good, expect(10), &mut ()).unwrap_err();
    assert_eq!(renamed, WalError::Address { expected: Lsn(10 * SEG), found: Lsn(9 * SEG) });
    assert_eq!(scan_segment(&[], expect(9), &mut ()), Err(WalError::Empty));
    assert_eq!(scan_segment(&good[..8191], expect(9), &mut ()), Err(WalError::PartialPage { bytes: 8191 }));
    let long = [good.clone(), good.clone()].concat();
    assert_eq!(scan_segment(&long, expect(9), &mut ()), Err(WalError::TooLong));
}

#[test]
fn the_parents_timeline_is_accepted_and_may_rise_but_not_fall() {
    let mut wal = Builder::new(Major::V15, 1);
    for _ in 0..300 {
        wal.record(10, 0, 0, &[1; 100]);
    }
    let good = wal.segments().remove(0);
    let with = |timelines: [u8; 3]| {
        let mut bytes = good.clone();
        for (page, timeline) in timelines.iter().enumerate() {
            bytes[page * WAL_PAGE_SIZE + 4] = *timeline;
        }
        scan(&bytes, 1)
    };
    let scan = with([1, 2, 3]);
    assert_eq!((scan.first_page_timeline.get(), scan.records), (1, 300));
    for bad in [[2, 1, 3], [1, 4, 4]] {
        let scan = with(bad);
        assert!(scan.records < 100 && matches!(scan.tail, Tail::Ended { .. }), "{bad:?}");
    }
}

#[test]
fn old_bytes_after_the_end_are_not_taken_for_wal() {
    let mut wal = Builder::new(Major::V15, 4);
    for number in 0..100 {
        wal.record(10, 0, number, &[1; 200]);
    }
    let fresh = wal.segments().remove(0);
    let written = wal.bytes.len();
    let page_end = written.next_multiple_of(WAL_PAGE_SIZE);
    // A recycled segment: its pages carry an older address.
    let mut old = Builder::new(Major::V15, 2);
    old.fill_segment(0);
    let mut bytes = old.segments().remove(0);
    bytes[..written].copy_from_slice(&fresh[..written]);
    let scan_old = scan(&bytes, 4);
    assert_eq!((scan_old.records, scan_old.wal_after_end), (100, None));
    assert!(matches!(scan_old.tail, Tail::Ended { at, .. } if at == scan_old.end && at.0 == 4 * SEG + written as u64));
    bytes[..page_end].copy_from_slice(&fresh[..page_end]);
    assert_eq!(scan(&bytes, 4).records, 100);
}

#[test]
fn a_record_with_a_wrong_checksum_ends_the_wal_before_it() {
    let mut wal = Builder::new(Major::V15, 1);
    let starts: Vec<_> = (0..50).map(|number| wal.record(10, 0, number, &[1; 900])).collect();
    let mut bytes = wal.segments().remove(0);
    bytes[(starts[20].0 - SEG) as usize + 30] ^= 1;
    let damaged = scan(&bytes, 1);
    assert_eq!(damaged.records, 20);
    assert!(matches!(damaged.tail, Tail::Ended { at, .. } if at == starts[20]));
    // What follows was written as WAL of this segment, so this is no unfinished one.
    let next_page = (starts[20].0 / 8192 + 1) * 8192;
    assert_eq!(damaged.wal_after_end, Some(Lsn(next_page)));
    bytes[(next_page - SEG) as usize..].fill(0);
    assert_eq!(scan(&bytes, 1).wal_after_end, None);
}

#[test]
fn what_recovery_needs_is_collected() {
    let mut wal = Builder::new(Major::V17, 1);
    wal.record(XACT, 0, 900, &commit(50));
    // A prepared transaction: database, two subtransactions, one dropped statistic, then the number.
    let mut main = commit(20);
    main.extend(0x0000_0113u32.to_le_bytes());
    main.extend([0; 8]);
    main.extend(2u32.to_le_bytes());
    main.extend([9; 8]);
    main.extend(1u32.to_le_bytes());
    main.extend([8; 12]);
    main.extend(801u32.to_le_bytes());
    wal.record(XACT, 0x80 | 0x30, 0, &main);
    let mut point = commit(60);
    point.extend([b'n'; 5]);
    point.resize(72, 0);
    let at = wal.record(rmgr::XLOG, 0x70, 0, &point);
    wal.record(rmgr::XLOG, 0x80, 0, &[0]);
    wal.record(rmgr::XLOG, 0xE0, 0, &0i32.to_le_bytes());
    wal.record(XACT, 0x20, 0, &commit(40));
    wal.record(XACT, 0x30, 0, &commit(40));
    let scan = scan(&wal.segments()[0], 1);
    assert_eq!((scan.records, scan.transaction_ends), (7, 3));
    assert_eq!((scan.first_time, scan.last_time), (Some(PgTimestamp(50)), Some(PgTimestamp(40))));
    assert_eq!((scan.min_time, scan.max_time), (Some(PgTimestamp(20)), Some(PgTimestamp(50))));
    assert_eq!((scan.min_xid, scan.max_xid), (Some(801), Some(900)));
    let (start, _, time, name) = &scan.restore_points[0];
    assert_eq!((*start, *time, name.as_slice()), (at, PgTimestamp(60), &b"nnnnn"[..]));
    assert_eq!((scan.min_wal_level, scan.full_page_writes_off), (Some(0), true));
    assert_eq!(scan.undecodable, 1, "a prepared end without its number");
}

#[test]
fn image_flags_are_those_of_the_major() {
    // One block with an uncompressed image with a hole; 0x02 is "apply" from 15 on and "compressed" before.
    let record = |info: u8, hole_length: Option<u16>| {
        let mut body = vec![0; 24];
        body[17] = 10;
        body.extend([0, 0x10, 0, 0]);
        body.extend(100u16.to_le_bytes());
        body.extend(40u16.to_le_bytes());
        body.push(info);
        body.extend(hole_length.iter().flat_map(|hole| hole.to_le_bytes()));
        body.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
        body.extend([7; 100]);
        let total = body.len() as u32;
        body[..4].copy_from_slice(&total.to_le_bytes());
        seal(&mut body);
        body
    };
    let image = |body: &[u8], major| {
        let record = Record::from_body(body, Lsn(40), Lsn(80), major).unwrap();
        let blocks: Result<Vec<_>, _> = record.blocks().collect();
        blocks.map(|blocks| (blocks.len(), blocks[0].block.0, blocks[0].image.unwrap()))
    };
    let plain = record(0x03, None);
    assert_eq!(image(&plain, Major::V15), Ok((1, 4, BlockImage { bytes: 100, compressed: false, apply: true })));
    assert!(image(&plain, Major::V14).is_err(), "14 reads two bytes more");
    let old = record(0x07, Some(3000));
    assert_eq!(image(&old, Major::V14), Ok((1, 4, BlockImage { bytes: 100, compressed: true, apply: true })));
    let new = record(0x0B, Some(3000));
    assert_eq!(image(&new, Major::V18), Ok((1, 4, BlockImage { bytes: 100, compressed: true, apply: true })));
}

fn sample() -> Vec<u8> {
    let mut wal = Builder::new(Major::V15, 2);
    for number in 0..60u32 {
        wal.record(XACT, 0, number + 3, &commit(i64::from(number)));
        wal.record(10, 0, number, &vec![5; number as usize * 30]);
    }
    wal.bytes.resize(wal.bytes.len().next_multiple_of(WAL_PAGE_SIZE), 0);
    wal.bytes
}

/// Walks, decodes everything, and keeps the records that came out.
fn exhaust(bytes: &[u8]) -> Option<(SegmentScan, Vec<Vec<u8>>)> {
    let mut bodies = Vec::new();
    let mut sink = |record: &Record<'_>| {
        let _ = record.blocks().count();
        let _ = (record.transaction_end(), record.restore_point(), record.checkpoint());
        let _ = (record.wal_level_change(), record.full_page_writes_change());
        bodies.push(record.body.to_vec());
    };
    let scan = scan_segment(bytes, expect(2), &mut sink).ok()?;
    Some((scan, bodies))
}

proptest! {
    #[test]
    fn a_flipped_bit_never_changes_a_delivered_record(bit in 0usize..(7 * 8192 * 8)) {
        let good = sample();
        let (_, expected) = exhaust(&good).unwrap();
        let mut bytes = good.clone();
        let at = (bit / 8) % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
        if let Some((_, bodies)) = exhaust(&bytes) {
            prop_assert!(expected.starts_with(&bodies));
        }
    }

    #[test]
    fn truncated_input_ends_where_it_ends(pages in 1usize..6) {
        let good = sample();
        let (_, expected) = exhaust(&good).unwrap();
        let (scan, bodies) = exhaust(&good[..pages * WAL_PAGE_SIZE]).unwrap();
        prop_assert!(expected.starts_with(&bodies));
        let ended = matches!(scan.tail, Tail::Ended { .. });
        prop_assert!(ended);
    }

    #[test]
    fn random_pages_after_a_good_header_are_safe(noise in proptest::collection::vec(any::<u8>(), 2 * 8192 - 40)) {
        let mut bytes = sample()[..40].to_vec();
        bytes.extend(noise);
        let (scan, _) = exhaust(&bytes).unwrap();
        prop_assert_eq!(scan.records, 0);
    }

    #[test]
    fn a_hostile_record_with_a_right_checksum_is_safe(inside in proptest::collection::vec(any::<u8>(), 0..300), rmgr in 0u8..8, info: u8, major in 0usize..6) {
        let mut body = vec![0; 24];
        body[16] = info;
        body[17] = rmgr;
        body.extend(inside);
        let total = body.len() as u32;
        body[..4].copy_from_slice(&total.to_le_bytes());
        seal(&mut body);
        let record = Record::from_body(&body, Lsn(8), Lsn(16), Major::ALL[major]).unwrap();
        prop_assert!(record.blocks().count() <= 34);
        let _ = (record.transaction_end(), record.restore_point(), record.checkpoint());
        let _ = (record.wal_level_change(), record.full_page_writes_change());
    }
}

/// A storage record: creation, or truncation to a block.
fn storage(wal: &mut Builder, rel: u32, truncate_to: Option<u32>) {
    let words: Vec<u32> = match truncate_to {
        None => vec![1663, 5, rel, 0],
        Some(block) => vec![block, 1663, 5, rel, 1],
    };
    let main: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    wal.record(rmgr::SMGR, if truncate_to.is_some() { 0x21 } else { 0x11 }, 7, &main);
}

/// A record with one block reference and no data.
fn touch(wal: &mut Builder, rel: u32, fork: u8, block: u32) {
    let mut body = wal.encode(10, 0, 7, &[]);
    body.truncate(24);
    body.extend([0, fork, 0, 0]);
    for word in [1663, 5, rel, block] {
        body.extend(u32::to_le_bytes(word));
    }
    let total = body.len() as u32;
    body[..4].copy_from_slice(&total.to_le_bytes());
    seal(&mut body);
    wal.write(&body);
}

fn main_fork(rel: u32) -> RelFork {
    RelFork { spc: 1663, db: 5, rel, fork: Fork::Main }
}

#[test]
fn drops_and_databases_are_changes_of_everything_they_held() {
    for (major, drop) in [(Major::V13, 0x11), (Major::V14, 0x11), (Major::V15, 0x21), (Major::V18, 0x21)] {
        let mut wal = Builder::new(major, 1);
        touch(&mut wal, 20, 0, 9);
        touch(&mut wal, 20, 2, 3);
        // A commit with a database, a subtransaction and two dropped relations.
        let mut main = 77i64.to_le_bytes().to_vec();
        for word in [0b111u32, 5, 1663, 1, 900, 2, 1663, 5, 20, 1663, 5, 21] {
            main.extend(word.to_le_bytes());
        }
        wal.record(XACT, 0x81, 7, &main);
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        wal.record(rmgr::DBASE, drop, 7, &words(&[44, 2, 1663, 9999]));
        wal.record(rmgr::DBASE, 0x01, 7, &words(&[55, 1663, 1, 1663]));
        let mut changes = Changes::default();
        scan_segment(&wal.segments()[0], expect(1), &mut changes).unwrap();
        assert_eq!(changes.unusable, None, "{major:?}");
        assert_eq!(changes.relations.keys().copied().collect::<Vec<_>>(), [main_fork(20), main_fork(21)]);
        assert!(changes.relations.values().all(|r| r.limit == Some(0) && r.blocks.is_empty()), "{major:?}");
        let dir = |spc, db| DatabaseDir { spc, db };
        assert_eq!(changes.databases.into_iter().collect::<Vec<_>>(), [dir(1663, 44), dir(1663, 55), dir(9999, 44)]);
    }
}

#[test]
fn what_is_not_understood_makes_the_stretch_unusable() {
    let of = |rmgr: u8, info: u8, main: &[u8]| {
        let mut wal = Builder::new(Major::V16, 1);
        wal.record(rmgr, info, 7, main);
        let mut changes = Changes::default();
        scan_segment(&wal.segments()[0], expect(1), &mut changes).unwrap();
        changes.unusable
    };
    assert_eq!(of(200, 0, &[0; 20]), None, "an extension's ordinary record");
    for (number, info) in [(200, 0x01), (10, 0x01), (rmgr::SMGR, 0x31), (rmgr::DBASE, 0x31)] {
        assert!(of(number, info, &[0; 20]).is_some(), "{number} {info:02X}");
    }
    for (number, info) in [(rmgr::SMGR, 0x11), (rmgr::SMGR, 0x21), (rmgr::DBASE, 0x01), (rmgr::DBASE, 0x21)] {
        assert!(of(number, info, &[0; 3]).is_some(), "{number} {info:02X} cut short");
    }
}

#[test]
fn a_record_larger_than_a_segment_is_assembled_from_three() {
    let mut wal = Builder::new(Major::V15, 3);
    wal.fill_segment(64);
    let start = wal.record(XACT, 0, 5, &vec![3; SEGMENT_BYTES + 9000]);
    wal.record(10, 0, 0, &[1; 10]);
    let base = Lsn(3 * SEG);
    let all: Vec<u8> = wal.segments().concat();
    assert_eq!(assemble(&all[..SEGMENT_BYTES], base, start, Major::V15), Assembly::Unfinished);
    assert_eq!(assemble(&all[..2 * SEGMENT_BYTES], base, start, Major::V15), Assembly::Unfinished);
    let Assembly::Whole(record) = assemble(&all, base, start, Major::V15) else { panic!("not assembled") };
    let third = scan(&wal.segments()[2], 5);
    assert_eq!((Some(record.end), record.body.len()), (third.leading.unwrap().end, SEGMENT_BYTES + 9000 + 24 + 5));
    let mut damaged = all.clone();
    damaged[SEGMENT_BYTES + 5000] ^= 1;
    assert!(matches!(assemble(&damaged, base, start, Major::V15), Assembly::Broken(_)));
    assert!(matches!(assemble(&all, base, Lsn(start.0 + 8), Major::V15), Assembly::Broken(_)));
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Touch(u32, u32),
    Create(u32),
    Truncate(u32, u32),
}

fn changes_of(steps: &[Change]) -> Changes {
    let mut wal = Builder::new(Major::V17, 1);
    wal.record(10, 0, 0, &[1; 10]);
    for step in steps {
        match *step {
            Change::Touch(rel, block) => touch(&mut wal, rel, 0, block),
            Change::Create(rel) => storage(&mut wal, rel, None),
            Change::Truncate(rel, block) => storage(&mut wal, rel, Some(block)),
        }
    }
    let mut changes = Changes::default();
    assert_eq!(scan_segment(&wal.segments()[0], expect(1), &mut changes).unwrap().undecodable, 0);
    assert_eq!(changes.unusable, None);
    changes
}

fn change() -> impl Strategy<Value = Change> {
    let (rel, block) = (1u32..4, 0u32..40);
    prop_oneof![
        6 => (rel.clone(), block.clone()).prop_map(|(r, b)| Change::Touch(r, b)),
        1 => rel.clone().prop_map(Change::Create),
        1 => (rel, block).prop_map(|(r, b)| Change::Truncate(r, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_name_every_block_that_may_differ_and_merge_in_any_order(
        steps in proptest::collection::vec(change(), 0..60), cut in 0usize..60,
    ) {
        let whole = changes_of(&steps);
        let (first, second) = steps.split_at(cut.min(steps.len()));
        let (first, second) = (changes_of(first), changes_of(second));
        for (a, b) in [(&first, &second), (&second, &first)] {
            let mut merged = a.clone();
            merged.merge(b);
            prop_assert_eq!(&merged, &whole);
        }
        for rel in 1..4 {
            let touched = |block| steps.iter().any(|s| matches!(s, Change::Touch(r, b) if (*r, *b) == (rel, block)));
            let limit = steps.iter().filter_map(|s| match s {
                Change::Create(r) if *r == rel => Some(0),
                Change::Truncate(r, b) if *r == rel => Some(*b),
                _ => None,
            }).min();
            for block in 0..41 {
                let said = whole.relations.get(&main_fork(rel)).is_some_and(|r| r.contains(block));
                prop_assert_eq!(said, touched(block) || limit.is_some_and(|l| block >= l), "{} {}", rel, block);
            }
        }
    }
}
