//! What can go wrong with a repository, by what the caller can do about it.

use crate::keyring::SlotError;
use crate::store::{ObjectName, Store, StoreError};

pub type Result<T, E = RepoError> = std::result::Result<T, E>;

/// Tries once more when what was read is damaged: what lies between the medium and us fails too; and again, where the store
/// could heal the object.
pub(crate) fn with_healing<T>(store: &dyn Store, name: &ObjectName, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let first = match read() {
        Err(e) if e.is_damage() => e,
        other => return other,
    };
    if !first.is_not_found() {
        match read() {
            Err(e) if e.is_damage() => {}
            other => return other.inspect(|_| say_unsteady(name, &first)),
        }
    }
    if store.heal(name) { read() } else { Err(first) }
}

/// For whoever looks after the machine.
pub(crate) fn say_unsteady(object: impl std::fmt::Display, first: &RepoError) {
    tracing::warn!(%object, error = %first, "read wrong once and right directly after");
}

#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{object} is damaged: {what}")]
    Corrupt { object: String, what: String },
    #[error("no pgark repository at {url}")]
    NoRepository { url: String },
    #[error("no cluster '{cluster}' in {url}")]
    NoCluster { url: String, cluster: String },
    #[error("the repository is encrypted and no passphrase was given")]
    KeyRequired,
    #[error("the key does not open this repository: {why}")]
    WrongKey { why: String },
    /// Of a copy, which was left as it is.
    #[error("the newer key ring of {here} has nothing for these slots of {there}, which would go: {slots}")]
    CopySlots { here: String, there: String, slots: String },
    #[error("the repository is not encrypted although a key is configured for it")]
    EncryptionStripped,
    /// The secret at hand is that of a writer. Nothing was changed.
    #[error("{what} is not open to a writer's secret")]
    WriteOnly { what: String },
    /// To a holder of this key set alone; nobody can say here whether the header tells the truth.
    #[error("{object} is sealed under generation {generation} of the key, and the keys that are held end at {known}")]
    NewerKey { object: String, generation: u32, known: u32 },
    /// Nothing was changed.
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("key command '{name}': {why}")]
    KeyCommand { name: String, why: String },
    #[error("{object} has format version {found}, this program knows up to {known}")]
    Unsupported { object: String, found: u32, known: u32 },
    #[error("{what} is in use by {holder}")]
    Busy { what: String, holder: String },
    #[error("lost the claim on {what}: {why}")]
    Fenced { what: String, why: String },
    /// Retention took it away meanwhile.
    #[error("{what} expired meanwhile")]
    Expired { what: String },
    #[error("{object} already exists with different content")]
    Conflict { object: String },
    #[error("no backup '{id}' of cluster '{cluster}'")]
    NoBackup { cluster: String, id: String },
    #[error("invalid {what}: {value}")]
    Invalid { what: &'static str, value: String },
    /// Nothing of it was stored.
    #[error("compressed data does not decode to what was read: the memory or processor of this machine is faulty")]
    Altered,
    #[error("system failure: {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
}

impl RepoError {
    pub fn corrupt(object: impl std::fmt::Display, what: impl std::fmt::Display) -> Self {
        RepoError::Corrupt { object: object.to_string(), what: what.to_string() }
    }

    /// The object is not there (as opposed to: we could not find out).
    pub fn is_not_found(&self) -> bool {
        matches!(self, RepoError::Store(StoreError::NotFound { .. }))
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, RepoError::Store(StoreError::AlreadyExists { .. }))
    }

    pub fn is_no_space(&self) -> bool {
        matches!(self, RepoError::Store(StoreError::NoSpace { .. }))
    }

    /// The bytes are there and wrong, cannot be read from their medium, or are gone: damage, as opposed to trouble on the way to them.
    pub fn is_damage(&self) -> bool {
        match self {
            RepoError::Corrupt { .. } | RepoError::Unsupported { .. } | RepoError::NewerKey { .. } => true,
            RepoError::Store(e) => {
                let gone = StoreError::is_not_found(e);
                gone || e.is_unreadable()
                    || matches!(
                        e,
                        StoreError::Truncated { .. } | StoreError::TooLarge { .. } | StoreError::Strange { .. }
                    )
            }
            _ => false,
        }
    }
}
