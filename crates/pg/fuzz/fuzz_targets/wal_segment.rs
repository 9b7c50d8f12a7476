//! WAL segments: raw, and with a right first page header and right checksums, so that the decoders are reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::wal::{Changes, Record, SegmentExpect, scan_segment};
use pgark_pg::{Major, SegmentNo, SegmentSize, TimelineId};

#[path = "crc.rs"]
mod crc;

fn walk(bytes: &[u8]) {
    let expect = SegmentExpect {
        timeline: TimelineId::FIRST,
        segment: SegmentNo(1),
        size: SegmentSize::new(1 << 20).expect("a valid size"),
        system_id: None,
    };
    let mut changes = Changes::default();
    let mut sink = |record: &Record<'_>| {
        changes.add(record);
        assert!(record.blocks().count() <= 34);
        let _ = (record.transaction_end(), record.restore_point(), record.checkpoint());
        let _ = (record.wal_level_change(), record.full_page_writes_change());
    };
    if let Ok(scan) = scan_segment(bytes, expect, &mut sink) {
        assert!(scan.end.0 >= 1 << 20 && scan.end.0 <= 2 << 20);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    bytes.resize(bytes.len().next_multiple_of(8192).clamp(8192, 1 << 20), 0);
    walk(&bytes);
    let major = Major::ALL[usize::from(*first) % Major::ALL.len()];
    bytes[0..2].copy_from_slice(&major.wal_magic().to_le_bytes());
    bytes[2..4].copy_from_slice(&(2 | u16::from(first & 0x08 != 0)).to_le_bytes());
    bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&(1u64 << 20).to_le_bytes());
    bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    seal_records(&mut bytes);
    walk(&bytes);
});

/// Links and seals the records of the first page.
fn seal_records(bytes: &mut [u8]) {
    let (mut at, mut previous) = (40usize, 0u64);
    while at + 24 <= 8192 {
        let total = u32::from_le_bytes([bytes[at], bytes[at + 1], 0, 0]) as usize % 1024;
        let total = total.max(24);
        if at + total > 8192 {
            return;
        }
        bytes[at..at + 4].copy_from_slice(&(total as u32).to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&previous.to_le_bytes());
        let sum = crc::crc32c(&[&bytes[at + 24..at + total], &bytes[at..at + 20]]);
        bytes[at + 20..at + 24].copy_from_slice(&sum.to_le_bytes());
        previous = (1 << 20) + at as u64;
        at = (at + total).next_multiple_of(8);
    }
}
