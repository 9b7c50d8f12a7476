//! Where bytes lie. A store keeps immutable objects under names: there is no rename, no append, no overwrite.
//!
//! Invariant: when `put_new` or `finish` returns Ok, the object and its name survive a power cut, and at most
//! one writer ever gets Ok for a name. Nothing of an object is visible before that. A store knows nothing of
//! what is in the objects; whatever it returns is untrusted.

use std::io;
use std::time::{Duration, SystemTime};

pub mod cloud;
pub mod conformance;
pub mod fault;
mod local;
mod memory;
mod name;
mod sftp;

pub use cloud::{CloudKind, CloudOptions, CloudStore};
pub use fault::FaultStore;
pub use local::LocalStore;
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

    /// Fills `buf` from `offset`, or fails: `Truncated` when the object ends before.
    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError>;

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

    /// For messages; holds no secret.
    fn url(&self) -> String;

    /// Removes what writers that died have left behind, if it is at least that old; returns how many.
    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError>;

    /// Whether `ObjectStat::modified` is told by a clock that is certainly not this machine's.
    fn has_own_clock(&self) -> bool {
        false
    }

    /// Where this store cannot keep what the trait promises, in words for an administrator.
    fn weaknesses(&self) -> Vec<String> {
        vec![]
    }
}

/// An object being written. Dropped without `finish`, it leaves nothing.
pub trait ObjectWriter: Send {
    /// After an error the object cannot be finished any more.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Bytes accepted so far.
    fn written(&self) -> u64;

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
    #[error("'{name}' is not a valid object name: {why}")]
    InvalidName { name: String, why: &'static str },
    #[error("the store is read-only")]
    ReadOnly,
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
    InvalidName,
    ReadOnly,
    Io,
}

impl StoreError {
    /// The bytes or the name could not be forced to the disk: they may be lost although they can be read now, and
    /// asking again proves nothing.
    pub fn is_durability(&self) -> bool {
        matches!(self, StoreError::Io { operation, .. } if operation.starts_with("fsync"))
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
            StoreError::InvalidName { .. } => StoreErrorKind::InvalidName,
            StoreError::ReadOnly => StoreErrorKind::ReadOnly,
            StoreError::Io { .. } => StoreErrorKind::Io,
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

    pub(crate) fn already_exists(object: impl ToString) -> Self {
        StoreError::AlreadyExists { object: object.to_string() }
    }

    /// For what the system said, which is neither about space nor about permission.
    pub(crate) fn io(operation: &'static str, object: impl ToString, source: io::Error) -> Self {
        StoreError::Io { operation, object: object.to_string(), source }
    }
}
