//! Records that wait on this host for a repository: one small file each, fsynced, with a name that sorts by time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_repo::audit::{Event, JournalName};
use pgark_repo::limits::AUDIT_BYTES_MAX;
use rustix::fs::{FlockOperation, flock};

use super::files::{give, make_private, write_durably};

/// Beyond that many, the oldest stay and nothing comes on top.
const FILES_MAX: usize = 10_000;
/// How long somebody else may append before we leave ours to the next command.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Lies beside records of which somebody was told.
const TOLD: &str = "told";

pub(super) struct Spool {
    dir: PathBuf,
}

/// What waits on this host for one repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    pub records: usize,
    /// Time of the oldest.
    pub since: Option<Timestamp>,
    /// The repository did not take it. Otherwise it waits for the next command that opens it.
    pub was_refused: bool,
}

/// # Errors
/// When it cannot be looked at.
pub fn waits(state_dir: &Path, url: &str, journal: &JournalName) -> io::Result<Waits> {
    let spool = Spool::of(state_dir, url, journal);
    if !spool.exists() {
        return Ok(Waits::default());
    }
    let all = spool.waiting()?;
    let since = all.first().map(|(_, event)| event.at);
    Ok(Waits { records: all.len(), since, was_refused: spool.dir.join(TOLD).exists() })
}

/// Of a repository and a journal in it.
pub(super) fn place_of(url: &str, journal: &JournalName) -> String {
    blake3::hash(format!("{url}\n{journal}").as_bytes()).to_hex().as_str().chars().take(32).collect()
}

impl Spool {
    pub fn of(state_dir: &Path, url: &str, journal: &JournalName) -> Self {
        Spool { dir: state_dir.join("audit").join(place_of(url, journal)) }
    }

    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Durable when this returns.
    pub fn put(&self, event: &Event) -> io::Result<()> {
        make_private(&self.dir)?;
        if fs::read_dir(&self.dir)?.count() > FILES_MAX {
            return Err(io::Error::other(format!("{FILES_MAX} records wait in {} already", self.dir.display())));
        }
        let name = format!("{:020}-{}", event.at.as_nanosecond(), event.id);
        write_durably(&self.dir.join(format!("{name}.json")), &serde_json::to_vec(event)?)
    }

    /// True for the first who has to tell that records wait here. Who cannot know tells it again.
    pub fn is_first_to_tell(&self) -> bool {
        let path = self.dir.join(TOLD);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|_| give(&path));
        !made.is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists)
    }

    /// Nothing waits any more.
    pub fn settled(&self) -> io::Result<()> {
        remove(&self.dir.join(TOLD))
    }

    /// Held until it is dropped.
    pub fn lock(&self) -> io::Result<File> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        give(&path)?;
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(io::Error::other("another command is appending")),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Oldest first. What is not whole was never finished.
    pub fn waiting(&self) -> io::Result<Vec<(PathBuf, Event)>> {
        let mut all = vec![];
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json") {
                match fs::read(&path) {
                    // Somebody without a lock for it, or an administrator, took it away.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Ok(text) if text.len() <= AUDIT_BYTES_MAX => {
                        let event: Event = serde_json::from_slice(&text)
                            .map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
                        all.push((path, event));
                    }
                    Ok(_) => return Err(io::Error::other(format!("{} is too large", path.display()))),
                    Err(e) => return Err(e),
                }
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }
}

/// It need not be there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
