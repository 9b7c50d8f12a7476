//! WAL segments fetched before recovery asks for them: while one is fetched, the next ones are fetched beside it, into a
//! directory next to where PostgreSQL wants its file.
//!
//! Invariant: a file is handed out only under the name and with the content that the archive's index has at that
//! moment; it was made durable before it got its name, and is compared with that content again when it is handed out.
//! Losing the directory costs time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use pgark_pg::value::{Lsn, SegmentName, SegmentNo, SegmentSize};
use pgark_repo::wal::{Ending, SegmentReader, WalIndex};

use super::archives::Archives;
use crate::error::{EngineError, Result};

const DIRECTORY: &str = "pgark-prefetch";
/// Segments, and bytes, fetched ahead by one call: PostgreSQL waits for it.
const AHEAD_MAX: u64 = 7;
const AHEAD_BYTES_MAX: u64 = 112 * 1024 * 1024;

pub struct Prefetch {
    dir: PathBuf,
    wal_dir: PathBuf,
    pub threads: usize,
}

impl Prefetch {
    /// None when the destination is in no directory.
    pub fn beside(dest: &Path, threads: usize) -> Option<Self> {
        let wal_dir = match dest.parent()? {
            dir if dir.as_os_str().is_empty() => Path::new("."),
            dir => dir,
        };
        Some(Prefetch { dir: wal_dir.join(DIRECTORY), wal_dir: wal_dir.to_owned(), threads })
    }

    fn path(&self, index: &WalIndex) -> PathBuf {
        self.dir.join(format!("{}.{}", index.segment_name().format(index.segment_size), index.content))
    }

    /// Puts the segment to `dest` if it is here with the content that the index names.
    pub fn take(&self, index: &WalIndex, dest: &Path) -> io::Result<bool> {
        let path = self.path(index);
        match fs::symlink_metadata(&path) {
            Ok(m) if m.is_file() && m.len() == index.segment_size.bytes() => {}
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        }
        // It may have lain here for long.
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&path)?)?;
        if hasher.finalize().to_hex().as_str() != index.content {
            return Ok(false);
        }
        fs::rename(&path, dest)?;
        // Gone when it was the last one; otherwise it stays.
        let _in_use = fs::remove_dir(&self.dir);
        Ok(true)
    }

    /// What is left is of no use any more.
    pub fn clear(&self) {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => tracing::debug!(%e, "prefetched wal stays"),
            _ => {}
        }
    }

    /// The segments to be fetched beside this one. Only who reads on from the segment before is served in advance.
    fn next(&self, archives: &Archives, name: &SegmentName, size: SegmentSize, end: Option<Lsn>) -> Vec<SegmentName> {
        let before = name.segment.0.checked_sub(1).map(|n| SegmentName { segment: SegmentNo(n), ..*name });
        let reads_on = before.is_some_and(|b| self.wal_dir.join(b.format(size)).exists());
        if !reads_on {
            return vec![];
        }
        let Ok(head) = archives.near_head() else { return vec![] };
        let last = head.timeline(name.timeline).and_then(|t| t.unbroken_to(name.segment));
        let count = AHEAD_MAX.min(AHEAD_BYTES_MAX / size.bytes());
        (1..=count)
            .map(|n| SegmentName { segment: SegmentNo(name.segment.0 + n), ..*name })
            .take_while(|s| last.is_some_and(|l| s.segment <= l) && end.is_none_or(|e| s.segment.start(size) < e))
            .collect()
    }

    /// Runs `deliver` for the segment that is wanted, and fetches the next ones meanwhile. Whatever becomes of those, their
    /// own calls will say.
    pub fn beside_delivery<T>(
        &self,
        archives: &Archives,
        name: &SegmentName,
        size: SegmentSize,
        end: Option<Lsn>,
        deliver: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        // What is here was for somebody else's way through the WAL.
        self.clear();
        let mut next = self.next(archives, name, size, end);
        next.reverse();
        if next.is_empty() {
            return deliver();
        }
        let helpers = self.threads.saturating_sub(1).min(next.len());
        let queue = Mutex::new(next);
        let fetch = || {
            loop {
                let Some(name) = queue.lock().expect("no thread panics with the lock").pop() else { return };
                match self.fetch(archives, &name, size) {
                    Ok(true) => {}
                    Ok(false) => queue.lock().expect("no thread panics with the lock").clear(),
                    Err(e) => {
                        tracing::debug!(%e, "a wal segment could not be prefetched");
                        queue.lock().expect("no thread panics with the lock").clear();
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(fetch);
            }
            let delivered = deliver();
            if delivered.is_ok() {
                fetch();
            } else {
                queue.lock().expect("no thread panics with the lock").clear();
            }
            delivered
        })
    }

    /// False for a segment that a longer one may replace: nothing is fetched beyond it.
    fn fetch(&self, archives: &Archives, name: &SegmentName, size: SegmentSize) -> Result<bool> {
        let fetched = archives.with_segment(name, size, &mut |reader| {
            if reader.index.ending == Ending::Ended {
                return Ok(false);
            }
            let path = self.path(&reader.index);
            let failed = |e: io::Error| EngineError::file("prefetching into", &path, e);
            match DirBuilder::new().mode(0o700).create(&self.dir) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(e)),
                _ => {}
            }
            let temp = path.with_extension("tmp");
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temp).map_err(failed)?;
            match copy(reader, &mut file, &path) {
                Ok(()) => fs::rename(&temp, &path).map(|()| true).map_err(failed),
                Err(e) => {
                    fs::remove_file(&temp).map_err(failed)?;
                    Err(e)
                }
            }
        })?;
        Ok(fetched.unwrap_or(false))
    }
}

fn copy(reader: &mut SegmentReader, file: &mut File, path: &Path) -> Result<()> {
    let failed = |e: io::Error| EngineError::file("prefetching into", path, e);
    while let Some(bytes) = reader.next()? {
        file.write_all(bytes).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}
