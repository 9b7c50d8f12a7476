//! What the server remembers: jobs, tokens, users, how far each schedule was looked at, and a copy of what the repositories say.
//!
//! One SQLite database in a directory that only its owner reads. A change is on the disk when its function returns. The commands
//! `job` and `token` use the same database beside a running server, or without one.

mod documents;
mod jobs;
mod leaving;
mod lost;
mod people;
mod prune;
mod samples;
mod sessions;
mod tokens;
pub mod users;
mod written;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

pub use documents::Document;
pub use jobs::{Filter, Outcome};
pub use lost::Lost;
pub use prune::Keep;
pub use samples::Sample;
pub use written::asked_by;
pub(crate) use written::write_job;

use crate::known::Known;

const FILE: &str = "server.sqlite";
/// How long one process waits for the other's transaction.
const BUSY: Duration = Duration::from_secs(10);
const VERSION: i64 = 2;
/// Of a job's directory, and what it logs.
const ROOM_BYTES: usize = 64 * 1024;

const SCHEMA: &str = "
create table jobs (
    id text primary key, request text not null, cluster text not null, state text not null, requested_by text not null,
    schedule text, retry_of text, attempt integer not null, retries_left integer not null, idempotency text unique,
    not_before text not null, deadline_s integer not null, created text not null, started text, finished text, pid integer, ticks integer,
    boot text, cancel_requested text, exit_code integer, error_code text, message text
) strict;
create index jobs_by_state on jobs (state, created);
create index jobs_by_cluster on jobs (cluster, created);
create table tokens (
    id text primary key, hash blob not null unique, name text not null, role text not null, cluster text, created text not null,
    expires text, revoked text, last_used text
) strict;
create table schedules (name text primary key, first_seen text not null, considered text not null) strict;
create table documents (
    kind text not null, cluster text not null, document text not null, refreshed text not null, failed text, error text,
    primary key (kind, cluster)
) strict;
";

/// From version 1 to 2.
const APPROVALS: &str = "
alter table jobs add column requester text;
alter table jobs add column approve_until text;
alter table jobs add column approved_by text;
";

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state directory {path} cannot be used: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("there is no state database {0}")]
    Missing(PathBuf),
    #[error("another server works with {0}")]
    InUse(PathBuf),
    #[error("the state database is of version {found}, and this program knows {VERSION}")]
    Version { found: i64 },
    #[error("the state database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("the state database holds what cannot be: {0}")]
    Content(String),
    #[error("there is no {what} '{id}'")]
    NotFound { what: &'static str, id: String },
    #[error("there is a {what} '{id}' already")]
    Exists { what: &'static str, id: String },
    #[error("the state database {0} was removed or exchanged while the server ran")]
    Gone(PathBuf),
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl StateError {
    /// Nothing can be written down: the disk is full, or takes nothing any longer. What is there can still be read.
    pub fn is_unwritable(&self) -> bool {
        use rusqlite::ErrorCode::{DiskFull, ReadOnly, SystemIoFailure};
        use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match self {
            StateError::Database(e) => matches!(e.sqlite_error_code(), Some(DiskFull | ReadOnly | SystemIoFailure)),
            StateError::Directory { source, .. } => {
                matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
            }
            _ => false,
        }
    }
}

pub type Result<T, E = StateError> = std::result::Result<T, E>;

/// To be cloned freely; all clones are one pair of connections.
#[derive(Clone)]
pub struct State {
    dir: PathBuf,
    inode: u64,
    connection: Arc<Mutex<Connection>>,
    /// For what is a copy of what repositories say: nobody waits for the disk before it is there, nor for those who do.
    copies: Arc<Mutex<Connection>>,
    /// By kind and cluster, made of its document. Taken before `copies`, never after it.
    known: Arc<Mutex<Facts>>,
    /// Counts changes of that.
    version: Arc<AtomicU64>,
    /// What each document that was kept holds: what is the same is not written again. Taken before `copies`, never after it.
    kept: Arc<Mutex<Contents>>,
}

type Facts = HashMap<(&'static str, String), Arc<Known>>;
type Contents = HashMap<(&'static str, String), blake3::Hash>;

impl State {
    /// Opens the database, made when it is missing.
    ///
    /// # Errors
    /// When the directory cannot be used, or the database is another program's.
    pub fn open(dir: &Path) -> Result<State> {
        let failed = |source| StateError::Directory { path: dir.to_owned(), source };
        make_directory(dir).map_err(failed)?;
        let file = dir.join(FILE);
        // SQLite gives its companions the mode of the database.
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&file).map_err(failed)?;
        let inode = opened.metadata().map_err(failed)?.ino();
        let mut connection = connected(&file, "full")?;
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 => change.execute_batch(&[SCHEMA, APPROVALS].concat())?,
            1 => change.execute_batch(APPROVALS)?,
            VERSION => {}
            found => return Err(StateError::Version { found }),
        }
        // A full disk is no reason not to start: what is right already is not written again.
        if found != VERSION {
            change.pragma_update(None, "user_version", VERSION)?;
        }
        let later = [users::SCHEMA, sessions::SCHEMA, people::SCHEMA, leaving::SCHEMA, samples::SCHEMA, prune::SCHEMA];
        change.execute_batch(&later.concat())?;
        change.commit()?;
        let copies = connected(&file, "normal")?;
        let shared = |connection| Arc::new(Mutex::new(connection));
        let (connection, copies) = (shared(connection), shared(copies));
        let (known, version, kept) = Default::default();
        Ok(State { dir: dir.to_owned(), inode, connection, copies, known, version, kept })
    }

    /// As `open`, for who only looks: nothing is made.
    ///
    /// # Errors
    /// Also `Missing`.
    pub fn open_existing(dir: &Path) -> Result<State> {
        let file = dir.join(FILE);
        if file.exists() { State::open(dir) } else { Err(StateError::Missing(file)) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn jobs_dir(&self) -> PathBuf {
        self.dir.join("jobs")
    }

    /// Where what a job writes is kept.
    pub fn job_dir(&self, id: &str) -> PathBuf {
        self.jobs_dir().join(id)
    }

    /// One server per directory, as long as the lock lives.
    ///
    /// # Errors
    /// `InUse` when there is one.
    pub fn lock(dir: &Path) -> Result<File> {
        make_directory(dir).map_err(|source| StateError::Directory { path: dir.to_owned(), source })?;
        let path = dir.join("lock");
        let failed = |source| StateError::Directory { path: path.clone(), source };
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(StateError::Directory { path, source }),
        }
    }

    /// Whether the database is still the file that was opened: somebody may have removed it, and what is written is lost.
    ///
    /// # Errors
    /// `Gone` when it is not.
    pub fn is_there(&self) -> Result<()> {
        match std::fs::metadata(self.dir.join(FILE)) {
            Ok(found) if found.ino() == self.inode => Ok(()),
            _ => Err(StateError::Gone(self.dir.join(FILE))),
        }
    }

    /// Whether there is room for what jobs and look-ups write, beside what the database has taken already.
    ///
    /// # Errors
    /// When there is none (`is_unwritable`).
    pub fn has_room(&self) -> Result<()> {
        let path = self.dir.join("room");
        let mut open = OpenOptions::new();
        let written = open.create(true).truncate(true).write(true).mode(0o600).open(&path).and_then(|mut file| {
            file.write_all(&[0; ROOM_BYTES])?;
            file.sync_all()
        });
        // It was made to be written, and holds nothing.
        let _ = std::fs::remove_file(&path);
        written.map_err(|source| StateError::Directory { path: self.dir.clone(), source })
    }

    /// As with a disk that takes nothing.
    #[cfg(test)]
    pub fn takes_nothing(&self, whether: bool) {
        for connection in [self.connection(), self.copies()] {
            connection.pragma_update(None, "query_only", whether).expect("changed");
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that was open when somebody panicked was rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copies(&self) -> MutexGuard<'_, Connection> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `synchronous` as SQLite means it for a database with a write-ahead log: with `normal` the newest changes can be lost with the
/// power, and nothing else.
fn connected(file: &Path, synchronous: &str) -> Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// Made for its owner alone; one that others can read is refused rather than changed.
fn make_directory(dir: &Path) -> std::io::Result<()> {
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    if std::fs::metadata(dir)?.permissions().mode() & 0o077 != 0 {
        return Err(std::io::Error::other("others than its owner have rights in it (chmod 700)"));
    }
    Ok(())
}

/// Sortable: the time, then what makes it unique.
fn new_id(now: Timestamp) -> Result<String> {
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random)?;
    let random: String = random.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{}-{random}", now.strftime("%Y%m%d-%H%M%S")))
}

/// When something was used last: nobody is turned away because that cannot be written down.
fn by_the_way(done: rusqlite::Result<usize>) -> Result<()> {
    match done.map_err(StateError::from) {
        // The loop of the server finds the same, and says so.
        Err(e) if e.is_unwritable() => Ok(()),
        done => done.map(|_| ()),
    }
}

fn time(text: &str) -> Result<Timestamp> {
    text.parse().map_err(|_| StateError::Content(format!("'{text}' as a time")))
}

fn optional_time(text: Option<String>) -> Result<Option<Timestamp>> {
    text.map(|t| time(&t)).transpose()
}

/// So that times are compared as texts: always of the same length.
fn text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
