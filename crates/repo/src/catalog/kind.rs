//! What a backup holds, and what that means for its entry.
//!
//! Invariant: WAL positions belong to physical backups alone. Code that works with them takes a `PhysicalBackup`, so that no
//! other kind can be mistaken for one.

use std::fmt;
use std::ops::Deref;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, SegmentNo, SegmentSize, TimelineId};
use serde::{Deserialize, Serialize};

use super::BackupEntry;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupKind {
    /// The files of the data directory; with WAL, any moment after it.
    Physical,
    /// Dumps of databases.
    Logical,
    /// Directories and files beside the database.
    Files,
    /// A dump and files together.
    System,
}

impl BackupKind {
    pub const ALL: [BackupKind; 4] = [BackupKind::Physical, BackupKind::Logical, BackupKind::Files, BackupKind::System];

    /// As users and documents call it.
    pub fn as_str(self) -> &'static str {
        match self {
            BackupKind::Physical => "physical",
            BackupKind::Logical => "logical",
            BackupKind::Files => "files",
            BackupKind::System => "system",
        }
    }
}

impl fmt::Display for BackupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a physical backup stands in the WAL, and what was noticed of its pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalFacts {
    pub lsn_start: Lsn,
    pub lsn_stop: Lsn,
    /// When the server said that the backup is at its end, by the server's clock: no earlier moment can be restored.
    pub stopped: Timestamp,
    pub timeline: TimelineId,
    pub bad_blocks: u64,
    pub from_standby: bool,
}

/// An entry that is known to be of a physical backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalBackup {
    pub entry: BackupEntry,
    pub lsn_start: Lsn,
    pub lsn_stop: Lsn,
    pub stopped: Timestamp,
    pub timeline: TimelineId,
    pub bad_blocks: u64,
    pub from_standby: bool,
}

impl Deref for PhysicalBackup {
    type Target = BackupEntry;

    fn deref(&self) -> &BackupEntry {
        &self.entry
    }
}

impl PhysicalBackup {
    /// The first and the last segment without which it is not consistent.
    pub fn segments(&self, size: SegmentSize) -> (SegmentNo, SegmentNo) {
        let last = self.lsn_stop.0.saturating_sub(1).max(self.lsn_start.0);
        (SegmentNo::containing(self.lsn_start, size), SegmentNo::containing(Lsn(last), size))
    }
}

impl BackupEntry {
    /// None for the other kinds.
    pub fn as_physical(&self) -> Option<PhysicalBackup> {
        let PhysicalFacts { lsn_start, lsn_stop, stopped, timeline, bad_blocks, from_standby } =
            self.physical.clone()?;
        Some(PhysicalBackup { entry: self.clone(), lsn_start, lsn_stop, stopped, timeline, bad_blocks, from_standby })
    }

    /// Pages that were damaged in the source. Other kinds do not see pages.
    pub fn bad_blocks(&self) -> u64 {
        self.physical.as_ref().map_or(0, |p| p.bad_blocks)
    }

    pub(super) fn has_the_facts_of_its_kind(&self) -> bool {
        self.physical.is_some() == (self.kind == BackupKind::Physical)
    }
}
