//! Measures the WAL walker on whole segments: `wal_speed FILE…` reads all of them once for each of its works and prints
//! wall and CPU seconds as JSON. Read a segment before, so that it comes from the page cache.

use std::fmt::Display;
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use pgark_pg::wal::{Activity, Changes, RecordSink, SegmentExpect, Tail, Walker};
use pgark_pg::{SegmentName, SegmentSize};

/// As much as `archive-push` reads at a time.
const READ_BYTES: usize = 256 * 1024;

/// Whole records, and bytes read, of all segments.
#[derive(Default)]
struct Seen {
    bytes: u64,
    records: u64,
}

fn main() -> ExitCode {
    match measure(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("wal_speed: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn measure(paths: &[String]) -> Result<String, String> {
    if paths.is_empty() {
        return Err("usage: wal_speed FILE…".into());
    }
    let (read, _) = timed(paths, |path| Ok(Seen { bytes: each_block(path, |_| Ok(()))?, records: 0 }))?;
    let (walk, walked) = timed(paths, |path| walk_segment(path, &mut ()))?;
    let (index, indexed) = timed(paths, |path| {
        let mut sink = <(Changes, Activity)>::default();
        let seen = walk_segment(path, &mut sink)?;
        let (changes, activity) = sink;
        black_box(activity.finish());
        changes.unusable.map_or(Ok(seen), |reason| Err(format!("{path}: {reason}")))
    })?;
    if walked.records != indexed.records || walked.records == 0 {
        return Err(format!("{} records once and {} the other time", walked.records, indexed.records));
    }
    let (segments, bytes, records) = (paths.len(), walked.bytes, walked.records);
    Ok(format!(
        r#"{{"segments": {segments}, "bytes": {bytes}, "records": {records}, "read": {read}, "walk": {walk}, "index": {index}}}"#
    ))
}

fn timed(paths: &[String], mut work: impl FnMut(&str) -> Result<Seen, String>) -> Result<(String, Seen), String> {
    let (wall, cpu) = (Instant::now(), cpu_nanoseconds()?);
    let mut total = Seen::default();
    for path in paths {
        let seen = work(path)?;
        total.bytes += seen.bytes;
        total.records += seen.records;
    }
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), (cpu_nanoseconds()? - cpu) as f64 / 1e9);
    Ok((format!(r#"{{"wall": {wall}, "cpu": {cpu}}}"#), total))
}

/// What the kernel has charged to the only thread.
fn cpu_nanoseconds() -> Result<u64, String> {
    let file = "/proc/self/schedstat";
    let text = std::fs::read_to_string(file).map_err(of(file))?;
    text.split(' ').next().and_then(|n| n.parse().ok()).ok_or_else(|| format!("{file} holds {text:?}"))
}

fn walk_segment(path: &str, sink: &mut dyn RecordSink) -> Result<Seen, String> {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).ok_or("no file name")?;
    let size = SegmentSize::new(std::fs::metadata(path).map_err(of(path))?.len()).map_err(of(path))?;
    let SegmentName { timeline, segment } = SegmentName::parse(name, size).map_err(of(path))?;
    let mut walker = Walker::new(SegmentExpect { timeline, segment, size, system_id: None });
    let bytes = each_block(path, |block| walker.feed(block, sink).map_err(of(path)))?;
    let scan = walker.finish().map_err(of(path))?;
    match scan.tail {
        // What comes after the end of the valid WAL is hardly looked at: its bytes would make the walker look faster.
        Tail::Ended { at, reason } => Err(format!("{path}: the valid WAL ends at {at}: {reason}")),
        _ => Ok(Seen { bytes, records: scan.records }),
    }
}

fn each_block(path: &str, mut take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<u64, String> {
    let mut file = File::open(path).map_err(of(path))?;
    let length = file.metadata().map_err(of(path))?.len();
    let (mut block, mut bytes) = (vec![0; READ_BYTES], 0);
    while bytes < length {
        file.read_exact(&mut block).map_err(of(path))?;
        take(black_box(&block))?;
        bytes += block.len() as u64;
    }
    Ok(bytes)
}

fn of<E: Display>(path: &str) -> impl Fn(E) -> String {
    move |error| format!("{path}: {error}")
}
