//! WAL that a stopped server wrote and that was not archived any more: its last transactions.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use pgark_pg::names::WalFileName;

use super::segment::open;
use crate::error::{EngineError, Result};

/// `XLogLongPageHeaderData` in access/xlog_internal.h.
const LONG_HEADER_BYTES: usize = 40;
const XLP_LONG_HEADER: u16 = 0x02;

/// In the order in which they are to be archived.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// The server waited for them to be archived.
    pub ready: Vec<PathBuf>,
    /// It was still writing to them. Segments that only wait to be written again are not among them.
    pub unfinished: Vec<PathBuf>,
}

impl Leftovers {
    /// Of the segments. One that was promoted may not have written it down anywhere else yet.
    pub fn newest_timeline(&self) -> Option<u32> {
        let names = self.ready.iter().chain(&self.unfinished).filter_map(|p| p.file_name()?.to_str());
        let timeline = |name| match WalFileName::parse(name) {
            Ok(WalFileName::Segment(raw)) => Some(raw.timeline.get()),
            _ => None,
        };
        names.filter_map(timeline).max()
    }
}

/// What `pg_wal` of a server that is stopped holds and the archive may lack.
pub fn leftovers(wal: &Path) -> Result<Leftovers> {
    let mut found = Leftovers::default();
    let status = wal.join("archive_status");
    for (name, path) in files(wal)? {
        let has = |ending: &str| status.join(format!("{name}{ending}")).exists();
        if has(".done") {
            continue;
        }
        match WalFileName::parse(&name) {
            Ok(_) if has(".ready") => found.ready.push(path),
            Ok(WalFileName::Segment(_)) if written_as(&path)?.as_deref() == Some(name.as_str()) => {
                found.unfinished.push(path);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// A timeline's history comes before its segments.
fn files(wal: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |e| EngineError::file("listing", wal, e);
    let mut all = vec![];
    for entry in std::fs::read_dir(wal).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            all.push((name, entry.path()));
        }
    }
    all.sort_by_key(|(name, _)| {
        let later = !name.ends_with(".history");
        (name.get(..8).unwrap_or_default().to_owned(), later, name.clone())
    });
    Ok(all)
}

/// The name under which its first page was written; None when nothing was written to it yet.
fn written_as(path: &Path) -> Result<Option<String>> {
    let mut header = [0_u8; LONG_HEADER_BYTES];
    match open(path)?.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(EngineError::file("reading", path, e)),
    }
    Ok(name_in(&header))
}

fn name_in(header: &[u8; LONG_HEADER_BYTES]) -> Option<String> {
    let u32_at = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let info = u16::from_le_bytes(header.get(2..4)?.try_into().ok()?);
    let (timeline, size) = (u32_at(4)?, u64::from(u32_at(32)?));
    let address = u64::from_le_bytes(header.get(8..16)?.try_into().ok()?);
    if info & XLP_LONG_HEADER == 0 || timeline == 0 || !size.is_power_of_two() || size < 1 << 20 {
        return None;
    }
    let (number, per_id) = (address / size, (1_u64 << 32) / size);
    Some(format!("{timeline:08X}{:08X}{:08X}", number / per_id, number % per_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(timeline: u32, address: u64, size: u32) -> Vec<u8> {
        let mut page = vec![0; 8192];
        page[2..4].copy_from_slice(&XLP_LONG_HEADER.to_le_bytes());
        page[4..8].copy_from_slice(&timeline.to_le_bytes());
        page[8..16].copy_from_slice(&address.to_le_bytes());
        page[32..36].copy_from_slice(&size.to_le_bytes());
        page
    }

    #[test]
    fn what_waits_and_what_was_being_written() {
        let dir = std::env::temp_dir().join(format!("pgark-salvage-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("archive_status")).expect("made");
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).expect("written");
        let mb = 1 << 20;
        put("000000020000000000000003", &page(2, 3 * u64::from(mb), mb));
        put("archive_status/000000020000000000000003.done", b"");
        put("000000020000000000000004", &page(2, 4 * u64::from(mb), mb));
        put("archive_status/000000020000000000000004.ready", b"");
        put("00000002.history", b"1\t0/3000000\tx\n");
        put("archive_status/00000002.history.ready", b"");
        put("000000020000000000000005", &page(2, 5 * u64::from(mb), mb));
        // Made ready for later out of an old one, or of nothing.
        put("000000020000000000000006", &page(2, 2 * u64::from(mb), mb));
        put("000000020000000000000007", &[0; 8192]);
        put("000000020000000000000008", b"");
        put("xlogtemp.17", b"");
        let found = leftovers(&dir).expect("readable");
        let names = |all: &[PathBuf]| all.iter().map(|p| p.file_name().expect("a name").to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&found.ready), ["00000002.history", "000000020000000000000004"]);
        assert_eq!(names(&found.unfinished), ["000000020000000000000005"]);
        assert_eq!(found.newest_timeline(), Some(2));
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
