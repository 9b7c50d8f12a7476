//! Pushing ahead: PostgreSQL calls `archive_command` for one segment after another, and waits each time. While one is
//! pushed, those that are ready behind it are pushed beside it; their own calls then find them done.
//!
//! Invariant: a segment counts as done only if it was durable and acknowledged, and its file is still the one that was
//! pushed. Losing what is remembered costs time and nothing else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgark_pg::names::{RawSegment, WalFileName};
use pgark_pg::value::SegmentName;
use pgark_repo::wal::Pushed;
use serde::{Deserialize, Serialize};

use crate::error::{EngineError, Result};

/// Segments pushed by one call.
const BATCH_MAX: usize = 32;
/// No further segment is begun after this time: PostgreSQL waits for the call to end.
const BATCH_TIME: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Ahead {
    /// Where what was pushed ahead is remembered; private to the user.
    pub memory: Option<PathBuf>,
}

/// Which file was pushed: a file that is written to, replaced or renamed is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let path = std::path::absolute(path).ok()?;
        let m = fs::metadata(&path).ok()?;
        Some(Identity {
            path,
            device: m.dev(),
            inode: m.ino(),
            size: m.len(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        })
    }
}

/// A segment, and the number of its copy in each repository.
pub type Done = (SegmentName, Vec<Option<u32>>);

/// Makes the archives know of segments and their copies.
pub type Acknowledge<'a> = dyn Fn(&[Done]) -> Result<()> + 'a;

/// Pushes one segment with so many threads, of which there is one when others are pushed beside it; returns what to
/// acknowledge.
pub type PushOne<'a> = dyn Fn(&Path, &RawSegment, usize) -> Result<(Pushed, Done)> + Sync + 'a;

impl Ahead {
    /// Whether an earlier call has pushed this very file.
    pub fn has(&self, path: &Path) -> bool {
        let known = Identity::of(path);
        known.is_some_and(|identity| self.remembered().contains(&identity))
    }

    fn remembered(&self) -> Vec<Identity> {
        let text = self.memory.as_ref().and_then(|p| fs::read(p).ok());
        text.and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default()
    }

    /// Pushes this segment and those that are ready behind it, and acknowledges them together.
    pub fn push(
        &self,
        path: &Path,
        raw: &RawSegment,
        jobs: usize,
        push_one: &PushOne<'_>,
        acknowledge: &Acknowledge<'_>,
    ) -> Result<Pushed> {
        let mut batch = vec![(path.to_owned(), *raw)];
        batch.extend(ready_after(path, raw));
        let identities: Vec<Option<Identity>> = batch.iter().map(|(p, _)| Identity::of(p)).collect();
        let mut done = push_all(&batch, jobs, push_one);
        // What PostgreSQL asked for decides; of the others only those without a hole before them count.
        let (outcome, first) = done.remove(0).unwrap_or(Err(EngineError::Cancelled))?;
        let mut acknowledged = vec![first];
        for result in done {
            match result {
                Some(Ok((_, segment))) => acknowledged.push(segment),
                // Its own call will say what is wrong with it.
                Some(Err(e)) => {
                    tracing::debug!(%e, "a segment that was pushed ahead failed");
                    break;
                }
                None => break,
            }
        }
        acknowledge(&acknowledged)?;
        if acknowledged.len() > 1 {
            let kept: Vec<Identity> = identities.into_iter().take(acknowledged.len()).skip(1).flatten().collect();
            if let Err(e) = self.remember(&kept) {
                tracing::debug!(%e, "what was pushed ahead is not remembered");
            }
        }
        Ok(outcome)
    }

    fn remember(&self, kept: &[Identity]) -> std::io::Result<()> {
        let Some(path) = &self.memory else { return Ok(()) };
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let temp = path.with_extension(format!("{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        fs::rename(&temp, path)
    }
}

#[allow(clippy::type_complexity)]
fn push_all(
    batch: &[(PathBuf, RawSegment)],
    jobs: usize,
    push_one: &PushOne<'_>,
) -> Vec<Option<Result<(Pushed, Done)>>> {
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    // Several segments share the threads; a single one has them for itself.
    let threads = if batch.len() == 1 { jobs } else { 1 };
    let results: Mutex<Vec<Option<Result<_>>>> = Mutex::new(batch.iter().map(|_| None).collect());
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some((path, raw)) = batch.get(n) else { return };
            if n > 0 && began.elapsed() > BATCH_TIME {
                return;
            }
            let result = push_one(path, raw, threads);
            let failed = result.is_err();
            if let Some(slot) = results.lock().expect("no thread panics with the lock").get_mut(n) {
                *slot = Some(result);
            }
            if failed {
                next.store(batch.len(), Ordering::Relaxed);
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..jobs.min(batch.len()) {
            scope.spawn(work);
        }
        work();
    });
    results.into_inner().expect("the threads are gone")
}

/// Whether PostgreSQL has more to archive behind this segment.
pub fn is_backlog(path: &Path) -> bool {
    match path.file_name().and_then(|n| n.to_str()).map(WalFileName::parse) {
        Some(Ok(WalFileName::Segment(raw))) => !ready_after(path, &raw).is_empty(),
        _ => false,
    }
}

/// The segments that PostgreSQL will ask for next, in its order.
fn ready_after(path: &Path, raw: &RawSegment) -> Vec<(PathBuf, RawSegment)> {
    let Some(dir) = path.parent() else { return vec![] };
    let Ok(listing) = fs::read_dir(dir.join("archive_status")) else { return vec![] };
    let mut ready: Vec<(String, RawSegment)> = listing
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?.strip_suffix(".ready")?.to_owned();
            match WalFileName::parse(&name) {
                Ok(WalFileName::Segment(other)) if other.timeline == raw.timeline => Some((name, other)),
                _ => None,
            }
        })
        .collect();
    let own = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    ready.retain(|(name, _)| name.as_str() > own);
    ready.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    ready.into_iter().take(BATCH_MAX - 1).map(|(name, raw)| (dir.join(name), raw)).collect()
}
