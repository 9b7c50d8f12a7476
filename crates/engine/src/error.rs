//! How an operation fails: what happened, what kind of failure that is for the caller, a stable code, and what
//! to do next.

use std::path::{Path, PathBuf};

use pgark_repo::keyring::SlotError;
use pgark_repo::store::StoreErrorKind;
use pgark_repo::{RepoError, names};

use crate::cluster::ClusterError;

pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// What the caller should conclude; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    Failed,
    /// A safety rule said no; nothing was changed.
    Refused,
    Cancelled,
    NoRepository,
    Locked,
    WrongKey,
    Damaged,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    /// Nothing was changed.
    #[error("{message}")]
    Refused { code: &'static str, message: String, hint: String },
    #[error("{message}")]
    Failed { code: &'static str, message: String, hint: String },
    #[error("cancelled")]
    Cancelled,
    /// Which one of several repositories it is about.
    #[error("repository {name}: {source}")]
    In { name: String, source: Box<EngineError> },
}

impl From<pgark_repo::store::StoreError> for EngineError {
    fn from(e: pgark_repo::store::StoreError) -> Self {
        EngineError::Repo(e.into())
    }
}

impl EngineError {
    pub fn file(what: &'static str, path: impl AsRef<Path>, source: impl Into<std::io::Error>) -> Self {
        EngineError::File { what, path: path.as_ref().to_owned(), source: source.into() }
    }

    pub fn refused(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        EngineError::Refused { code, message: message.into(), hint: hint.into() }
    }

    pub fn failed(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        EngineError::Failed { code, message: message.into(), hint: hint.into() }
    }

    #[must_use]
    pub fn in_repository(self, name: &str) -> Self {
        match self {
            // It concerns no repository, or says already which.
            e @ (EngineError::Cancelled | EngineError::File { .. } | EngineError::In { .. }) => e,
            e => EngineError::In { name: name.to_owned(), source: Box::new(e) },
        }
    }

    /// What a repository said.
    pub fn repo(&self) -> Option<&RepoError> {
        match self {
            EngineError::Repo(e) => Some(e),
            EngineError::In { source, .. } => source.repo(),
            _ => None,
        }
    }

    /// As `RepoError::is_damage`.
    pub fn is_damage(&self) -> bool {
        self.repo().is_some_and(RepoError::is_damage)
    }

    pub fn class(&self) -> FailureClass {
        match self {
            EngineError::In { source, .. } => source.class(),
            EngineError::Cancelled => FailureClass::Cancelled,
            EngineError::Refused { .. } => FailureClass::Refused,
            EngineError::Repo(e) => repo_class(e),
            EngineError::Cluster(_) | EngineError::File { .. } | EngineError::Failed { .. } => FailureClass::Failed,
        }
    }

    pub fn code(&self) -> &'static str {
        match self {
            EngineError::In { source, .. } => source.code(),
            EngineError::Cancelled => "E-CANCELLED",
            EngineError::Refused { code, .. } | EngineError::Failed { code, .. } => code,
            EngineError::Cluster(e) => e.code(),
            EngineError::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => "E-SPACE",
            EngineError::File { .. } => "E-FILE",
            EngineError::Repo(e) => repo_code(e),
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            EngineError::In { source, .. } => source.hint(),
            EngineError::Refused { hint, .. } | EngineError::Failed { hint, .. } => {
                (!hint.is_empty()).then(|| hint.clone())
            }
            EngineError::Cluster(e) => e.hint().map(str::to_owned),
            EngineError::File { source, .. } => file_hint(source).map(str::to_owned),
            EngineError::Repo(e) => repo_hint(e).map(str::to_owned),
            EngineError::Cancelled => None,
        }
    }
}

/// For what removes or replaces: another host does that.
pub(crate) fn refuse_append_only(repo: &pgark_repo::Repository) -> Result<()> {
    if repo.store().may_delete() {
        return Ok(());
    }
    let url = repo.store().url();
    Err(EngineError::refused(
        "E-REPO-APPEND-ONLY",
        format!("nothing is removed from {url}: this client only appends to it, or looks at its past"),
        "run this on the host that may remove, whose configuration has no append_only for this repository",
    ))
}

fn repo_class(e: &RepoError) -> FailureClass {
    match e {
        RepoError::NoRepository { .. } => FailureClass::NoRepository,
        RepoError::KeyRequired
        | RepoError::WrongKey { .. }
        | RepoError::CopySlots { .. }
        | RepoError::NewerKey { .. }
        | RepoError::EncryptionStripped => FailureClass::WrongKey,
        RepoError::Slot(_) | RepoError::WriteOnly { .. } => FailureClass::Refused,
        RepoError::Busy { .. } | RepoError::Fenced { .. } | RepoError::Expired { .. } => FailureClass::Locked,
        RepoError::Conflict { .. } => FailureClass::Refused,
        RepoError::NoCluster { .. } | RepoError::NoBackup { .. } => FailureClass::Refused,
        e if e.is_damage() => FailureClass::Damaged,
        _ => FailureClass::Failed,
    }
}

/// What the repository calls it.
const AGE_RECIPIENT: &str = "age recipient";

fn repo_code(e: &RepoError) -> &'static str {
    match e {
        RepoError::Store(e) if e.told().is_some() => e.told().map_or("E-REPO-IO", |told| told.code),
        RepoError::Store(e) => match e.kind() {
            StoreErrorKind::NotFound => "E-REPO-MISSING",
            StoreErrorKind::NoSpace => "E-REPO-SPACE",
            StoreErrorKind::Denied => "E-REPO-DENIED",
            StoreErrorKind::Archived => "E-REPO-ARCHIVED",
            StoreErrorKind::ReadOnly => "E-REPO-READONLY",
            StoreErrorKind::AppendOnly => "E-REPO-APPEND-ONLY",
            StoreErrorKind::Truncated | StoreErrorKind::TooLarge => "E-REPO-DAMAGED",
            StoreErrorKind::AlreadyExists => "E-REPO-EXISTS",
            StoreErrorKind::InvalidName => "E-REPO-NAME",
            StoreErrorKind::Io => "E-REPO-IO",
        },
        RepoError::Corrupt { .. } => "E-REPO-DAMAGED",
        RepoError::NoRepository { .. } => "E-REPO-NONE",
        RepoError::NoCluster { .. } => "E-CLUSTER-NONE",
        RepoError::KeyRequired => "E-KEY-REQUIRED",
        RepoError::WrongKey { .. } => "E-KEY-WRONG",
        RepoError::CopySlots { .. } => "E-KEY-SLOT-COPY",
        RepoError::NewerKey { .. } => "E-KEY-NEWER",
        RepoError::WriteOnly { .. } => "E-KEY-WRITER",
        RepoError::EncryptionStripped => "E-KEY-STRIPPED",
        RepoError::KeyCommand { .. } => "E-KEY-COMMAND",
        RepoError::Slot(e) => slot_code(e),
        RepoError::Unsupported { .. } => "E-REPO-VERSION",
        RepoError::Busy { .. } => "E-LOCKED",
        RepoError::Fenced { .. } => "E-LOCK-LOST",
        RepoError::Conflict { .. } => "E-WAL-CONFLICT",
        RepoError::Expired { .. } => "E-WAL-EXPIRED",
        RepoError::NoBackup { .. } => "E-BACKUP-NONE",
        RepoError::Invalid { what: AGE_RECIPIENT, .. } => "E-KEY-RECIPIENT",
        RepoError::Invalid { .. } => "E-INVALID",
        RepoError::Altered => "E-ENCODE",
        RepoError::System { .. } => "E-SYSTEM",
    }
}

fn repo_hint(e: &RepoError) -> Option<&'static str> {
    Some(match e {
        RepoError::Store(e) if e.told().is_some() => return e.told().map(|told| told.hint),
        RepoError::Store(e) => match e.kind() {
            StoreErrorKind::NoSpace => {
                "free space in the repository: 'pgark expire --gc-grace 0s' removes what the policy gives up, at once"
            }
            StoreErrorKind::Denied => {
                "check owner and permissions of the repository, or the credentials for the object store, and which user runs this"
            }
            StoreErrorKind::Archived => {
                "thaw it with the store's own tools and wait until that is done: docs/capacity.md tells how"
            }
            StoreErrorKind::NotFound | StoreErrorKind::Truncated => "'pgark verify' tells what else is affected",
            _ => return None,
        },
        RepoError::Corrupt { object, .. } if names::is_of_catalog(object) => {
            "when 'pgark verify --repair' finds no whole copy: 'pgark rebuild-catalog' lists the backups from their records"
        }
        RepoError::Corrupt { object, .. } if object.starts_with(names::KEYRING) => {
            "the key ring lies in keyring/ and again in keyring-mirror/: put whole objects of these back by hand, saved ones, or those of \
             a copy that follows this repository; keep a ring that still opens; on a bucket that keeps versions, --repo-target-time reads an earlier state. docs/operations.md tells more"
        }
        RepoError::Corrupt { .. } => "'pgark verify' tells which backups and time windows are affected",
        RepoError::NoRepository { url } if url.contains("as_of=") => {
            "there was no repository at that moment, or it was elsewhere: name a later one"
        }
        RepoError::NoRepository { .. } => "check --repo, or create the repository with 'pgark init'",
        RepoError::NoCluster { .. } => {
            "check --cluster, or register the cluster with 'pgark init'; when its catalog was lost: 'pgark rebuild-catalog'"
        }
        RepoError::KeyRequired => "give --passphrase-file, PGARK_PASSPHRASE_FILE or PGARK_PASSPHRASE_COMMAND",
        RepoError::WrongKey { .. } => "check that this is a key of this repository: it may have been removed since",
        RepoError::CopySlots { .. } => {
            "'pgark key add --repo' gives the secret a slot in the newer one, where it has none; then 'pgark replicate --drop-slot ID' \
             brings the newer key ring there, and these slots go"
        }
        RepoError::NewerKey { .. } => {
            "the key was rotated: 'pgark key renew DIR' gives a recovering server the new keys; otherwise the object is damaged"
        }
        RepoError::WriteOnly { .. } => {
            "a writer's secret archives and backs up; it opens no content, nor what was stored before 'pgark key add --writer'. Run \
             this with a secret that opens everything"
        }
        RepoError::KeyCommand { .. } => {
            "check key_commands of this repository in pgark.toml, and run the program by hand"
        }
        RepoError::Slot(e) => slot_hint(e),
        RepoError::EncryptionStripped => {
            "somebody may have replaced the repository; without a configured passphrase it can be opened as it is"
        }
        RepoError::Unsupported { .. } => "use a newer pgark",
        RepoError::Busy { .. } => "wait for it to finish; a claim of a dead process is taken over by itself",
        RepoError::Fenced { .. } | RepoError::Expired { .. } => "run the command again",
        RepoError::Conflict { .. } => {
            "two servers may be writing the same timeline: find out which one is right before you go on"
        }
        RepoError::NoBackup { .. } => "'pgark info' lists the backups",
        RepoError::Invalid { what: AGE_RECIPIENT, .. } => {
            "an age recipient is a public key, age1 and 58 more characters: 'age-keygen -y FILE' prints the one of an identity"
        }
        RepoError::Altered => "test the machine's memory; nothing wrong was stored",
        _ => return None,
    })
}

fn slot_code(e: &SlotError) -> &'static str {
    match e {
        SlotError::None { .. } => "E-KEY-SLOT-NONE",
        SlotError::Last { .. } => "E-KEY-SLOT-LAST",
        SlotError::Unproven { .. } => "E-KEY-SLOT-UNPROVEN",
        SlotError::Locked { .. } => "E-KEY-SLOT-LOCKED",
        SlotError::LockedOut => "E-KEY-LOCKED-OUT",
        SlotError::TooMany | SlotError::TooOften => "E-KEY-SLOTS-MAX",
        SlotError::NotEncrypted => "E-KEY-UNENCRYPTED",
        SlotError::TooLarge => "E-KEY-SLOTS-MAX",
        SlotError::Taken { .. } => "E-KEY-SLOT-TAKEN",
    }
}

fn slot_hint(e: &SlotError) -> &'static str {
    match e {
        SlotError::None { .. } => "'pgark key list' shows the slots",
        SlotError::Last { .. } => "'pgark key add' makes another one first: without a slot nothing can be restored",
        SlotError::Unproven { .. } => {
            "give the secret of a slot that stays (--passphrase-file, --age-identity-file or a configured key command)"
        }
        SlotError::Locked { .. } => {
            "give passphrases with --slot-passphrase-file FILE, configure the key command, or let them go with --drop-slot ID"
        }
        SlotError::LockedOut => "give the secret of a slot that stays",
        SlotError::TooMany => "'pgark key remove' takes one away",
        SlotError::TooOften => "replicate into a new repository",
        SlotError::TooLarge => "'pgark key retire' gives older keys up; 'pgark key remove' takes slots away",
        SlotError::Taken { .. } => {
            "a slot that reads and one that only writes need secrets of their own: give another one"
        }
        SlotError::NotEncrypted => {
            "encryption is chosen when a repository is created: make a new one with 'pgark init'"
        }
    }
}

fn file_hint(e: &std::io::Error) -> Option<&'static str> {
    match e.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Some("run this as the operating system user that owns the data directory (usually postgres)")
        }
        std::io::ErrorKind::NotFound => Some("check the path: every directory on the way must be there"),
        std::io::ErrorKind::StorageFull => Some("free space there, then run the command again"),
        _ => None,
    }
}
