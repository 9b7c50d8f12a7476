//! Restoring a cluster: resolve the target, choose the backup, check that the WAL reaches it, and only then
//! write. Recovery has an explicit end that we chose; it is compared with what was reached before the cluster
//! opens for writing.

mod books;
pub mod branch;
mod delta;
pub mod files;
pub mod plan;
pub mod reach;
pub mod renew;
pub mod resolve;
pub mod roots;
pub mod run;
pub mod settings;
pub mod space;
pub mod start;
pub mod state;
pub(crate) mod thaw;
pub mod timed;
pub mod walk;
mod window;
pub mod write;

use std::path::PathBuf;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, TimelineId};
use pgark_repo::names::{BackupId, ClusterName};
use serde::{Deserialize, Serialize};

use self::settings::WalKeys;
use crate::repair::Mended;
use crate::sources::Trouble;

pub use plan::{RestorePlan, plan};
pub use start::{StartOptions, Started};

/// Where recovery is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All that is archived.
    Latest,
    Time {
        at: Timestamp,
        bound: Bound,
    },
    Lsn {
        lsn: Lsn,
        bound: Bound,
    },
    Xid {
        xid: u32,
        bound: Bound,
    },
    Name(String),
    /// As soon as the backup is consistent.
    Immediate,
}

/// Whether what lies exactly on the target is part of the result, as `recovery_target_inclusive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Inclusive,
    Exclusive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimelineChoice {
    Latest,
    /// The one the backup was taken on.
    Current,
    Number(TimelineId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    Pause,
    Promote,
    Shutdown,
}

impl TargetAction {
    pub fn as_str(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveMode {
    /// As configured: only for the cluster's own directory.
    Keep,
    /// A copy must not archive into the history of the original.
    Off,
    /// As configured, but nothing is handed over: WAL waits in `pg_wal` until somebody takes the setting back.
    Held,
}

/// OLD=NEW as it was given. Both may contain '=', so every way to read it is kept; the backup's tablespaces decide.
#[derive(Clone, Debug)]
pub struct TablespaceMap {
    pub given: String,
    pub readings: Vec<(String, PathBuf)>,
}

#[derive(Clone, Debug)]
pub struct RestoreOptions {
    pub cluster: ClusterName,
    /// None: the newest one that serves the target.
    pub backup: Option<BackupId>,
    pub to: PathBuf,
    pub target: Target,
    pub timeline: TimelineChoice,
    pub action: TargetAction,
    /// Old location (or OID) → new location.
    pub tablespace_map: Vec<TablespaceMap>,
    pub archive_mode: ArchiveMode,
    /// Over an existing cluster: what is right already is not written again.
    pub delta: bool,
    pub jobs: usize,
    /// This program's path, for `restore_command`.
    pub program: PathBuf,
    /// All repositories, the ones that are away too, and what the recovering server needs to read them.
    pub places: Vec<ReadFrom>,
}

/// A repository, for a recovering server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFrom {
    /// Its URL.
    pub repository: String,
    #[serde(default)]
    pub access: AccessVariables,
    /// The plan was made with it: WAL that nobody else has may be there.
    #[serde(default)]
    pub witness: bool,
    /// To the WAL, by its own key ring: copies give their older keys up one after the other. None: those of the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<WalKeys>,
}

/// Variables that give access to a store. They may hold secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessVariables(pub Vec<(String, String)>);

impl std::fmt::Debug for AccessVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[derive(Clone, Debug)]
pub struct RestoreReport {
    pub bytes_restored: u64,
    /// Of those, bytes that had to be fetched and written; all of them, but for a delta restore.
    pub bytes_written: u64,
    pub files: u64,
    pub warnings: Vec<String>,
    /// What one repository lacked and another one had.
    pub troubles: Vec<Trouble>,
    /// What became of that.
    pub mended: Vec<Mended>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bound = |b: &Bound| if *b == Bound::Exclusive { " (exclusive)" } else { "" };
        match self {
            Target::Latest => f.write_str("latest"),
            Target::Time { at, bound: b } => write!(f, "time {at}{}", bound(b)),
            Target::Lsn { lsn, bound: b } => write!(f, "lsn {lsn}{}", bound(b)),
            Target::Xid { xid, bound: b } => write!(f, "xid {xid}{}", bound(b)),
            Target::Name(n) => write!(f, "restore point '{n}'"),
            Target::Immediate => f.write_str("immediate"),
        }
    }
}
