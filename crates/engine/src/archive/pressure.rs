//! How much WAL waits for archiving, and how long the server can go on if nothing of it is archived.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use pgark_pg::names::WalFileName;

/// Segments finished within less time say nothing about the rate.
const SPAN_MIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Finished segments that are not archived.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// How long the oldest of them has waited.
    pub oldest_waits: Option<Duration>,
    /// Of the file system of `pg_wal`.
    pub free_bytes: u64,
    /// At which WAL was finished lately.
    pub bytes_per_second: Option<f64>,
}

impl Pressure {
    /// Looks at a `pg_wal`; asks nobody.
    pub fn measure(wal_dir: &Path) -> io::Result<Self> {
        let mut finished = vec![];
        let (mut waiting, mut waiting_bytes) = (0, 0);
        let mut ready_since: Option<SystemTime> = None;
        for entry in fs::read_dir(wal_dir.join("archive_status"))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((segment, state)) = name.to_str().and_then(|n| n.rsplit_once('.')) else { continue };
            if !matches!(WalFileName::parse(segment), Ok(WalFileName::Segment(_))) {
                continue;
            }
            match fs::metadata(wal_dir.join(segment)) {
                Ok(m) => {
                    finished.push((m.modified()?, m.len()));
                    if state == "ready" {
                        // Since it was finished; its last write may be much older.
                        let since = match entry.metadata() {
                            Ok(ready) => ready.modified()?,
                            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                            Err(e) => return Err(e),
                        };
                        waiting += 1;
                        waiting_bytes += m.len();
                        ready_since = Some(ready_since.map_or(since, |oldest| oldest.min(since)));
                    }
                }
                // Archived and removed since.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let stat = rustix::fs::statvfs(wal_dir)?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        // A clock that was set back makes it no age at all.
        let oldest_waits = ready_since.map(|since| SystemTime::now().duration_since(since).unwrap_or_default());
        Ok(Pressure { waiting, waiting_bytes, oldest_waits, free_bytes, bytes_per_second: rate(&mut finished) })
    }

    /// When the file system is full if nothing is archived from now on. None: that cannot be told.
    pub fn until_full(&self) -> Option<Duration> {
        let rate = self.bytes_per_second.filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(self.free_bytes as f64 / rate).ok()
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        write!(f, "{} segments wait for archiving ({:.0} MB), ", self.waiting, mb(self.waiting_bytes))?;
        write!(f, "{:.0} MB are free for pg_wal", mb(self.free_bytes))?;
        match (self.until_full(), self.bytes_per_second) {
            (Some(left), Some(rate)) => {
                let minutes = left.as_secs() / 60;
                let left = match minutes {
                    0..120 => format!("{minutes} minutes"),
                    120..2880 => format!("{} hours", minutes / 60),
                    _ => format!("{} days", minutes / 1440),
                };
                write!(f, ", enough for {left} without archiving at the latest {:.2} MB/s", rate / 1e6)
            }
            _ => Ok(()),
        }
    }
}

/// From when each segment was finished, and its length.
fn rate(finished: &mut [(SystemTime, u64)]) -> Option<f64> {
    finished.sort_unstable();
    let [(first, _), rest @ ..] = &*finished else { return None };
    let span = rest.last()?.0.duration_since(*first).ok().filter(|span| *span >= SPAN_MIN)?;
    Some(rest.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_what_was_finished_after_the_first_segment() {
        let at = |seconds: u64, bytes: u64| (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), bytes);
        assert_eq!(rate(&mut []), None);
        assert_eq!(rate(&mut [at(5, 16)]), None);
        assert_eq!(rate(&mut [at(5, 16), at(5, 16)]), None, "in no time");
        assert_eq!(rate(&mut [at(9, 16), at(5, 16), at(7, 16)]), Some(8.0));
        let pressure =
            Pressure { waiting: 3, waiting_bytes: 48, oldest_waits: None, free_bytes: 80, bytes_per_second: Some(8.0) };
        assert_eq!(pressure.until_full(), Some(Duration::from_secs(10)));
        assert_eq!(Pressure { bytes_per_second: None, ..pressure }.until_full(), None);
        assert_eq!(Pressure { bytes_per_second: Some(0.0), ..pressure }.until_full(), None);
    }
}
