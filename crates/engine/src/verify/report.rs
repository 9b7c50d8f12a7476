//! What a verification was asked and what it found.

use std::collections::HashSet;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, TimelineId};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::store::ObjectName;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every byte.
    Full,
    /// Presence and size of what is listed; says nothing about content.
    Quick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    Missing,
    Damaged,
    /// Stored, and claimed by nothing that is listed.
    Unexpected,
    /// WAL that was never archived although earlier and later WAL was.
    Gap,
    /// Neighbouring WAL that does not belong together.
    Broken,
    /// Two different segments were pushed under one name.
    Conflict,
}

#[derive(Clone, Debug)]
pub struct Problem {
    pub object: String,
    pub kind: ProblemKind,
    pub what: String,
    /// Backups that cannot be restored any more.
    pub backups: Vec<BackupId>,
    /// Targets that cannot be reached any more.
    pub windows: Vec<LostWindow>,
}

/// What could not be read to be checked: neither right nor wrong.
#[derive(Clone, Debug)]
pub struct Unchecked {
    pub object: String,
    pub why: String,
    /// Backups that need it.
    pub backups: Vec<BackupId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostWindow {
    pub timeline: TimelineId,
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub from_time: Option<Timestamp>,
    pub to_time: Option<Timestamp>,
}

/// Names of objects, of which there may be millions: only their hashes are kept.
#[derive(Clone, Debug, Default)]
pub struct Names(HashSet<[u8; 16]>);

impl Names {
    fn key(name: &str) -> [u8; 16] {
        let hash = blake3::hash(name.as_bytes());
        *hash.as_bytes().first_chunk().expect("a hash is longer")
    }

    pub fn insert(&mut self, name: impl AsRef<str>) {
        self.0.insert(Self::key(name.as_ref()));
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(&Self::key(name))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// By a writer, who opens no content.
    pub by_books: bool,
    pub objects_checked: u64,
    pub bytes_checked: u64,
    pub backups_checked: Vec<BackupId>,
    pub problems: Vec<Problem>,
    /// Packs that the store has archived: present, and not to be read before they are thawed.
    pub unchecked: Vec<Unchecked>,
    /// Objects with parity; in a full verification, with sound parity.
    pub parity_present: u64,
    /// Whole objects without parity, where it is to be written.
    pub parity_missing: Vec<ObjectName>,
    /// Names of all objects that something listed needs, or that belong to the books.
    pub accounted: Names,
    /// Healed bytes that an interrupted repair left beside objects that are whole.
    pub leftovers: Vec<String>,
    /// What is no damage and worth knowing.
    pub notes: Vec<String>,
}

impl VerifyReport {
    /// The notes, and what there is to be said of leftovers.
    pub fn remarks(&self) -> Vec<String> {
        let left = self.leftovers.iter().map(|object| {
            format!("{object} was left by a repair that was interrupted, and is needed no more: 'pgark verify --repair' removes it")
        });
        self.notes.iter().cloned().chain(left).collect()
    }
}

#[derive(Clone)]
pub struct VerifyOptions {
    pub cluster: ClusterName,
    /// One backup and its WAL; otherwise everything.
    pub only: Option<BackupId>,
    pub depth: Depth,
    pub jobs: usize,
}
