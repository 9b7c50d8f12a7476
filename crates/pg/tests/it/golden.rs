//! Files that real servers wrote, kept under `testdata`; see the README there. They are added to, never regenerated.

use std::fs;
use std::path::Path;

use pgark_pg::wal::{Record, SegmentExpect, SegmentScan, Tail, WAL_PAGE_SIZE, scan_segment};
use pgark_pg::{
    BlockNo, ControlError, ControlFile, ControlState, Lsn, Major, PageVerdict, PgTimestamp, SegmentNo, SegmentSize,
    SystemId, TimelineId, check_page, page_lsn,
};
use proptest::prelude::*;

const SYSTEMS: [(u32, u64, &str); 6] = [
    (13, 7_710_459_803_331_692_776, "0/1E00028"),
    (14, 7_710_459_811_243_858_297, "0/1F00028"),
    (15, 7_710_459_796_062_234_726, "0/1D00028"),
    (16, 7_710_459_818_038_401_523, "0/1D00028"),
    (17, 7_710_459_824_995_097_173, "0/1D00028"),
    (18, 7_710_459_832_055_691_959, "0/1D00028"),
];

fn file(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
}

#[test]
fn control_files_of_every_version_are_read() {
    for (version, system, checkpoint) in SYSTEMS {
        let control = ControlFile::parse(&file(&format!("pg_control.{version}"))).unwrap();
        assert_eq!(control.major, Major::from_number(version).unwrap());
        assert_eq!(control.system_id, SystemId(system));
        assert_eq!((control.state, control.checkpoint), (ControlState::ShutDown, checkpoint.parse().unwrap()));
        assert_eq!(control.checkpoint_redo, control.checkpoint);
        assert_eq!((control.checkpoint_timeline, control.prev_timeline), (TimelineId::FIRST, TimelineId::FIRST));
        assert!(control.full_page_writes && !control.backup_end_required && !control.track_commit_timestamp);
        assert_eq!((control.min_recovery_point, control.min_recovery_timeline), (Lsn::INVALID, 0));
        assert_eq!((control.wal_level, control.max_connections, control.max_prepared_xacts), (1, 100, 7));
        assert_eq!(
            (control.block_size, control.wal_block_size, control.relation_segment_blocks),
            (8192, 8192, 131_072)
        );
        assert_eq!((control.segment_size.bytes(), control.data_checksum_version), (1 << 20, 1));
        // 2026-11-21 03:21:58 to 03:22:10 UTC
        assert!((1_795_231_318..1_795_231_330).contains(&control.time), "{}", control.time);
        assert!((control.time - 5..=control.time).contains(&control.checkpoint_time));
    }
}

#[test]
fn a_poisoned_control_file_differs_in_checkpoint_and_crc_alone() {
    for (version, ..) in SYSTEMS {
        let good = file(&format!("pg_control.{version}"));
        let poisoned = ControlFile::poison(&good).unwrap();
        let control = ControlFile::parse(&poisoned).unwrap();
        assert!(control.is_poisoned());
        let checkpoint = ControlFile::parse(&good).unwrap().checkpoint;
        assert_eq!(ControlFile { checkpoint, ..control }, ControlFile::parse(&good).unwrap());
        assert_eq!(poisoned.len(), good.len());
        let crc = if version == 18 { 292..296 } else { 288..292 };
        let differs = |at: &usize| good[*at] != poisoned[*at];
        assert!((0..good.len()).filter(differs).all(|at| (32..40).contains(&at) || crc.contains(&at)));
    }
}

#[test]
fn every_damaged_byte_of_a_control_file_is_seen() {
    for (version, ..) in SYSTEMS {
        let good = file(&format!("pg_control.{version}"));
        let covered = if version == 18 { 296 } else { 292 };
        for at in 0..covered {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            assert!(ControlFile::parse(&bytes).is_err(), "{version} byte {at}");
            assert!(ControlFile::parse(&good[..at]).is_err());
            assert!(ControlFile::poison(&good[..at]).is_err());
        }
        assert_eq!(ControlFile::parse(&[]), Err(ControlError::TooShort(0)));
    }
}

#[test]
fn a_page_of_a_real_table_has_its_checksum_at_its_own_place_only() {
    let page = file("page.1259.3");
    let lsn = page_lsn(&page).unwrap();
    let after = lsn.checked_add(1).unwrap();
    assert_eq!(check_page(&page, BlockNo(3), after), PageVerdict::Ok);
    assert!(matches!(check_page(&page, BlockNo(4), after), PageVerdict::Bad { .. }));
    assert!(matches!(check_page(&page, BlockNo(3 + 131_072), after), PageVerdict::Bad { .. }));
    assert_eq!(check_page(&page, BlockNo(4), lsn), PageVerdict::NotChecked);
}

fn wal(version: u32) -> (Vec<u8>, SegmentExpect) {
    let segment = match version {
        13 => 0x0B,
        14 => 0x0C,
        _ => 0x0A,
    };
    let system_id = SYSTEMS.iter().find(|row| row.0 == version).map(|row| SystemId(row.1));
    let size = SegmentSize::new(1 << 20).unwrap();
    let expect = SegmentExpect { timeline: TimelineId::FIRST, segment: SegmentNo(segment), size, system_id };
    (file(&format!("wal.{version}")), expect)
}

struct Walked {
    scan: SegmentScan,
    /// start, prev, length, xid
    records: Vec<(Lsn, Lsn, usize, u32)>,
    images: usize,
}

fn walk(bytes: &[u8], expect: SegmentExpect) -> Walked {
    let mut records = Vec::new();
    let mut images = 0;
    let mut sink = |record: &Record<'_>| {
        records.push((record.start, record.prev, record.body.len(), record.xid));
        for block in record.blocks() {
            images += usize::from(block.unwrap().image.is_some_and(|image| image.compressed && image.apply));
        }
    };
    let scan = scan_segment(bytes, expect, &mut sink).unwrap();
    Walked { scan, records, images }
}

#[test]
fn wal_of_every_version_is_walked_to_the_end_of_the_input() {
    for (version, ..) in SYSTEMS {
        let (bytes, expect) = wal(version);
        let Walked { scan, records, images } = walk(&bytes, expect);
        assert_eq!(scan.major, Major::from_number(version).unwrap());
        assert_eq!((scan.undecodable, scan.leading.is_none()), (0, true));
        assert!(records.len() > 90 && records.len() as u64 == scan.records, "{version}: {}", records.len());
        assert!(images > 5, "{version}: {images}");
        let names: Vec<_> = scan.restore_points.iter().map(|point| point.3.as_slice()).collect();
        assert_eq!(names, [b"before the update"]);
        assert!(scan.transaction_ends >= 3);
        // The input is cut in the middle of a segment, so the walk ends less than a record before its end.
        let input_end = expect.segment.start(expect.size).0 + bytes.len() as u64;
        assert!(
            matches!(&scan.tail, Tail::Ended { at, .. } if *at == scan.end && input_end - at.0 < 8192),
            "{:?}",
            scan.tail
        );
    }
}

#[test]
fn records_of_15_are_those_of_pg_waldump() {
    let (bytes, expect) = wal(15);
    let Walked { scan, records, .. } = walk(&bytes, expect);
    let text = String::from_utf8(file("waldump.15.txt")).unwrap();
    let dumped = text.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[0].parse().unwrap(), words[1].parse().unwrap(), words[2].parse().unwrap(), words[3].parse().unwrap())
    });
    // pg_waldump had the whole segment and read the record that the input cuts off.
    let dumped: Vec<(Lsn, Lsn, usize, u32)> = dumped.filter(|record: &(Lsn, _, _, _)| record.0 < scan.end).collect();
    assert_eq!(records, dumped);
    // 2026-11-21 03:21:57.804859 UTC, the first commit.
    assert_eq!(scan.first_time, Some(PgTimestamp::from_unix_micros(1_795_231_317_804_859)));
    assert_eq!(scan.min_xid, Some(724));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn real_wal_with_a_flipped_bit_delivers_a_prefix(version in 13u32..=18, at in 0usize..32_768, bit in 0u32..8) {
        let (mut bytes, expect) = wal(version);
        let good = walk(&bytes, expect).records;
        bytes[at] ^= 1 << bit;
        let mut records = Vec::new();
        let mut sink = |record: &Record<'_>| {
            records.push((record.start, record.prev, record.body.len(), record.xid));
        };
        if scan_segment(&bytes, expect, &mut sink).is_ok() {
            prop_assert!(good.starts_with(&records));
        } else {
            prop_assert!(at < 40, "only the first page header can make the segment foreign");
        }
    }

    #[test]
    fn real_wal_with_pages_replaced_by_noise_ends_there(version in 13u32..=18, page in 1usize..4, seed: [u8; 32]) {
        let (mut bytes, expect) = wal(version);
        let good = walk(&bytes, expect).records;
        for (at, byte) in bytes.iter_mut().enumerate().skip(page * WAL_PAGE_SIZE).take(WAL_PAGE_SIZE) {
            *byte = seed[at % 32] ^ at.to_le_bytes()[1];
        }
        let walked = walk(&bytes, expect);
        prop_assert!(good.starts_with(&walked.records) && walked.records.len() < good.len());
        let ended = matches!(walked.scan.tail, Tail::Ended { .. });
        prop_assert!(ended);
    }
}
