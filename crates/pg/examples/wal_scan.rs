//! Walks WAL segments and prints what was found: `wal_scan SEGMENT_BYTES FILE…`. For looking into a segment by hand and
//! for measuring the walker.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pgark_pg::wal::{Record, SegmentExpect, SegmentScan, scan_segment};
use pgark_pg::{SegmentName, SegmentSize};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let size = arguments.next().and_then(|text| text.parse().ok()).and_then(|bytes| SegmentSize::new(bytes).ok());
    let Some(size) = size else {
        eprintln!("usage: wal_scan SEGMENT_BYTES FILE…");
        return ExitCode::FAILURE;
    };
    let (mut bytes, mut records, mut blocks, mut time) = (0usize, 0, 0usize, Duration::ZERO);
    for path in arguments {
        match scan(Path::new(&path), size, &mut blocks) {
            Ok((scan, length, took)) => {
                println!("{path}: {} records up to {}, {:?}", scan.records, scan.end, scan.tail);
                (bytes, records, time) = (bytes + length, records + scan.records, time + took);
            }
            Err(reason) => {
                eprintln!("{path}: {reason}");
                return ExitCode::FAILURE;
            }
        }
    }
    let rate = bytes as f64 / time.as_secs_f64() / 1e9;
    println!("{bytes} bytes, {records} records, {blocks} block references, {rate:.2} GB/s");
    ExitCode::SUCCESS
}

fn scan(path: &Path, size: SegmentSize, blocks: &mut usize) -> Result<(SegmentScan, usize, Duration), String> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("no file name")?;
    let SegmentName { timeline, segment } = SegmentName::parse(name, size).map_err(|error| error.to_string())?;
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let expect = SegmentExpect { timeline, segment, size, system_id: None };
    let started = Instant::now();
    let mut sink = |record: &Record<'_>| *blocks += record.blocks().count();
    let scan = scan_segment(&bytes, expect, &mut sink).map_err(|error| error.to_string())?;
    Ok((scan, bytes.len(), started.elapsed()))
}
