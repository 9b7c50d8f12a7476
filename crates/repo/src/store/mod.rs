//! Where bytes lie. A store keeps immutable objects under names: there is no rename, no append, no overwrite.
//!
//! Invariant: when `put_new` or `finish` returns Ok, the object and its name survive a power cut, and at most
//! one writer ever gets Ok for a name. Nothing of an object is visible before that. A store knows nothing of
//! what is in the objects; whatever it returns is untrusted.

use std::io;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::parity::Percent;

mod append_only;
pub mod cloud;
pub mod conformance;
pub mod fault;
pub(crate) mod forward;
mod local;
pub mod lock;
mod memory;
mod name;
mod sftp;

pub use append_only::AppendOnlyStore;
pub use cloud::{CloudKind, CloudOptions, CloudStore, PastStore};
pub use fault::FaultStore;
pub use local::LocalStore;
pub use lock::{LockMode, LockPolicy, ObjectLock, Retention};
pub use memory::MemoryStore;
pub use name::{NAME_BYTES_MAX, ObjectName, PART_BYTES_MAX};
pub use sftp::{SftpFailure, SftpOptions, SftpPlace, SftpStore};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    pub name: ObjectName,
    pub size: u64,
    /// By the store's clock, which may be wrong.
    pub modified: Option<SystemTime>,
}

/// Of the file system behind a store, for whoever this process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    /// What is used by anybody, and what is free.
    pub total_bytes: Option<u64>,
    /// Files that can still be made; None where they have no number of their own.
    pub free_files: Option<u64>,
}

/// Called for each object by `Store::list`; its error ends the listing and is returned.
pub type Visit<'a> = dyn FnMut(ObjectStat) -> Result<(), StoreError> + 'a;

pub trait Store: Send + Sync {
    /// Writes one object, durable before it returns. `AlreadyExists` when the name is taken; what lies there is
    /// then durable too, and unchanged. After any other error the name may or may not hold exactly `bytes`.
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError>;

    /// Starts an object that is written in pieces. Whether the name is free is decided by `finish`.
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError>;

    /// The whole object. `TooLarge` when it has more than `max` bytes, decided before anything is allocated.
    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError>;

    /// Fills `buf` from `offset`, or fails: `Truncated` when the object ends before. Reads exactly what has this name;
    /// `find` says which that should be.
    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError>;

    /// Where an object is to be read with `read_at`: by the name in what is returned, which may be another one where
    /// objects have several seals (`crate::seals`).
    fn find(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.stat(name)
    }

    /// Every object below the directory-like `prefix` (`""`: all), sorted by the bytes of the name. A missing
    /// prefix is an empty list; whatever else keeps us from seeing an object is an error.
    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// The immediate "directories" below `prefix`, sorted, the last part only. One that is being filled or was
    /// left behind by a crash may be listed without holding an object.
    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Removes an object, durably. `NotFound` is an error.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// Removes an object that is rubbish: whether it comes back after a power cut does not matter.
    fn discard(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.delete(name)
    }

    /// Bytes that can still be written, where the store can tell.
    fn free_bytes(&self) -> Result<Option<u64>, StoreError>;

    /// How large what is behind the store is, where the store can tell.
    fn space(&self) -> Result<Option<Space>, StoreError> {
        let known = |free_bytes| Space { free_bytes, total_bytes: None, free_files: None };
        Ok(self.free_bytes()?.map(known))
    }

    /// For messages; holds no secret.
    fn url(&self) -> String;

    /// Removes what writers that died have left behind, if it is at least that old; returns how many.
    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError>;

    /// Whether objects may lie in a class in which they cannot be read at once.
    fn may_archive(&self) -> bool {
        false
    }

    /// Whether `ObjectStat::modified` is told by a clock that is certainly not this machine's.
    fn has_own_clock(&self) -> bool {
        false
    }

    /// Where this store cannot keep what the trait promises, in words for an administrator.
    fn weaknesses(&self) -> Vec<String> {
        vec![]
    }

    /// Told by a reader for whom an object's seals do not open. True: it reads differently now, and is worth another try.
    fn heal(&self, _name: &ObjectName) -> bool {
        false
    }

    /// What somebody should know although nothing failed, since the last call.
    fn notices(&self) -> Vec<String> {
        vec![]
    }

    /// The parity that is written beside new objects.
    fn parity(&self) -> Option<Percent> {
        None
    }
    /// What the store can do beyond the trait, each thing tried. Writes and removes below `probe/`.
    fn probe(&self) -> Vec<Capability> {
        vec![]
    }

    /// None: what is written here is not locked.
    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        None
    }

    /// Whether this client may remove anything here. Where it may not, removing is left to another one.
    fn may_delete(&self) -> bool {
        true
    }
}

/// Something that stores have or have not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    pub name: &'static str,
    pub state: Ability,
    /// What was seen.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    Yes,
    No,
    /// Could not be found out, or was not tried.
    NotChecked,
}

impl Capability {
    /// Creating a name only when it is free.
    pub const CREATE: &'static str = "conditional create";
    pub const VERSIONS: &'static str = "object versions";
    pub const LOCK: &'static str = "object lock";

    pub fn new(name: &'static str, state: Ability, reason: impl Into<String>) -> Self {
        Capability { name, state, reason: reason.into() }
    }

    /// What a file system has of these.
    pub(crate) fn of_a_directory() -> Vec<Self> {
        let none = |name, why| Capability::new(name, Ability::No, why);
        vec![
            none(Capability::VERSIONS, "a directory keeps one version of a file; snapshots are the administrator's"),
            none(Capability::LOCK, "a directory has none"),
        ]
    }
}

/// An object being written. Dropped without `finish`, it leaves nothing.
pub trait ObjectWriter: Send {
    /// After an error the object cannot be finished any more.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Bytes accepted so far.
    fn written(&self) -> u64;

    /// Makes durable what was written so far, so that `finish` takes less time. Nothing where that makes no difference.
    /// After an error the object cannot be finished any more.
    fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Commits, with the guarantees and errors of `Store::put_new`.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{object} does not exist")]
    NotFound { object: String },
    #[error("{object} already exists")]
    AlreadyExists { object: String },
    #[error("{object} has {size} bytes, at most {max} are accepted")]
    TooLarge { object: String, size: u64, max: u64 },
    #[error("{object} ends at byte {size}, bytes up to {wanted} were expected")]
    Truncated { object: String, size: u64, wanted: u64 },
    #[error("no space left for {object}: {source}")]
    NoSpace { object: String, source: io::Error },
    #[error("access to {object} is denied: {source}")]
    Denied { object: String, source: io::Error },
    /// It is there, in a class that must be thawed before reading.
    #[error("{object} is archived and cannot be read before it is thawed: {source}")]
    Archived { object: String, source: io::Error },
    #[error("'{name}' is not a valid object name: {why}")]
    InvalidName { name: String, why: &'static str },
    /// Somebody put a link, a pipe or the like where an object or a directory belongs. It is never followed or read; a list ends with
    /// it when everything else was visited.
    #[error("{object} is no object: {what}")]
    Strange { object: String, what: &'static str },
    #[error("the store is read-only")]
    ReadOnly,
    #[error("{object} is not removed: this client only appends to the repository")]
    AppendOnly { object: String },
    #[error("{operation} {object} failed: {source}")]
    Io { operation: &'static str, object: String, source: io::Error },
}

/// `StoreError` without its particulars, by what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    NotFound,
    AlreadyExists,
    TooLarge,
    Truncated,
    NoSpace,
    Denied,
    Archived,
    InvalidName,
    ReadOnly,
    AppendOnly,
    Io,
}

impl StoreError {
    /// The bytes or the name could not be forced to the disk: they may be lost although they can be read now, and
    /// asking again proves nothing.
    pub fn is_durability(&self) -> bool {
        matches!(self, StoreError::Io { operation, .. } if operation.starts_with("fsync"))
    }

    /// The medium does not give the bytes of an object that is there: sectors of it are damaged.
    pub fn is_unreadable(&self) -> bool {
        // What file systems answer for a bad sector, a failed checksum, and metadata that contradict each other.
        const BAD: [Errno; 3] = [Errno::IO, Errno::BADMSG, Errno::UCLEAN];
        let StoreError::Io { operation: "read", source, .. } = self else { return false };
        Errno::from_io_error(source).is_some_and(|e| BAD.contains(&e))
    }

    /// Why the server behind the store cannot be used, where that is what failed.
    pub fn told(&self) -> Option<&SftpFailure> {
        match self {
            StoreError::Io { source, .. } => source.get_ref().and_then(|inner| inner.downcast_ref()),
            _ => None,
        }
    }

    /// The object or path it is about.
    pub fn object(&self) -> Option<&str> {
        match self {
            StoreError::NotFound { object }
            | StoreError::AlreadyExists { object }
            | StoreError::TooLarge { object, .. }
            | StoreError::Truncated { object, .. }
            | StoreError::NoSpace { object, .. }
            | StoreError::Denied { object, .. }
            | StoreError::Archived { object, .. }
            | StoreError::Strange { object, .. }
            | StoreError::AppendOnly { object }
            | StoreError::Io { object, .. } => Some(object),
            StoreError::InvalidName { name, .. } => Some(name),
            StoreError::ReadOnly => None,
        }
    }

    pub fn kind(&self) -> StoreErrorKind {
        match self {
            StoreError::NotFound { .. } => StoreErrorKind::NotFound,
            StoreError::AlreadyExists { .. } => StoreErrorKind::AlreadyExists,
            StoreError::TooLarge { .. } => StoreErrorKind::TooLarge,
            StoreError::Truncated { .. } => StoreErrorKind::Truncated,
            StoreError::NoSpace { .. } => StoreErrorKind::NoSpace,
            StoreError::Denied { .. } => StoreErrorKind::Denied,
            StoreError::Archived { .. } => StoreErrorKind::Archived,
            StoreError::InvalidName { .. } => StoreErrorKind::InvalidName,
            StoreError::ReadOnly => StoreErrorKind::ReadOnly,
            StoreError::AppendOnly { .. } => StoreErrorKind::AppendOnly,
            StoreError::Strange { .. } | StoreError::Io { .. } => StoreErrorKind::Io,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.kind() == StoreErrorKind::NotFound
    }

    pub fn is_already_exists(&self) -> bool {
        self.kind() == StoreErrorKind::AlreadyExists
    }

    pub(crate) fn not_found(object: impl ToString) -> Self {
        StoreError::NotFound { object: object.to_string() }
    }

    pub(crate) fn strange(object: impl ToString, what: &'static str) -> Self {
        StoreError::Strange { object: object.to_string(), what }
    }

    pub(crate) fn already_exists(object: impl ToString) -> Self {
        StoreError::AlreadyExists { object: object.to_string() }
    }

    /// For what the system said, which is neither about space nor about permission.
    pub(crate) fn io(operation: &'static str, object: impl ToString, source: io::Error) -> Self {
        StoreError::Io { operation, object: object.to_string(), source }
    }
}
