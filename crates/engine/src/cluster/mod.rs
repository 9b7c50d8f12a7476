//! Everything this program says to a running PostgreSQL, and the only place that says it.
//!
//! Invariants: every call ends by a deadline; a session is pinned to known settings before its first question;
//! names travel as parameters or literal connection keywords, never inside a statement or a connection string;
//! no message and no `Debug` output carries a secret.
//! It does not know what a repository is, and it does not wait for WAL to be archived.

mod assertion;
mod backup_session;
mod connection;
mod content;
mod database;
mod inspect;
mod libpq;
mod objects;
mod objects_sql;
mod options;
mod plannable;
pub mod provision;
mod row;
mod rows_text;
mod snapshot;
mod soundness;
mod table;
mod text;

use std::time::{Duration, Instant};

pub use assertion::{AskAs, Question, Questioner, Reply};
pub use backup_session::{BackupSession, StoppedBackup};
pub use connection::Connection;
pub use content::{Answer, ContentReader, Reading, RowsHash, Subject, Task, tasks};
pub use database::{DatabaseFacts, Globals, Membership, Role, TablespaceFacts, databases, globals, system_id};
pub use inspect::{
    ArchiverStats, Database, Inspection, PauseState, RecoveryState, Rights, Tablespace, Unavailable,
    create_restore_point, forget_recovery, inspect, promote, recovery_state, switch_wal,
};
pub use libpq::{Notice, ResultFormat};
pub use objects::{
    DatabaseState, HIDDEN, NORMAL, ObjectFacts, ObjectKind, database_state, each_object, has_foreign_options,
    is_of_version_2, is_of_version_3, is_printed, is_type_of_version_2,
};
pub use options::{ConnectOptions, Handover, MEET_DAMAGE};
pub use row::Row;
pub use snapshot::{SnapshotId, SnapshotSession};
pub use soundness::{Examined, Examiners, Finding, examine};
pub use table::{
    Companion, ForeignKey, Found, KeyState, LeftOut, NAME_BYTES_MAX, SequenceState, TableName, TableSession,
};

/// The moment by which a call has to have ended, on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// A wait longer than this is the same as for ever; it keeps the arithmetic from overflowing.
const DEADLINE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Deadline {
    pub fn after(wait: Duration) -> Self {
        Self(Instant::now() + wait.min(DEADLINE_MAX))
    }

    /// What is left of it; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }
}

/// What went wrong in talking to PostgreSQL, by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// No session came about, and trying again later may help.
    #[error("postgresql cannot be reached: {message}")]
    Unreachable { message: String },

    /// Authentication failed, or the role lacks a right.
    #[error("postgresql denies it: {message}")]
    Denied { sqlstate: Option<String>, message: String },

    /// A server, or something in front of it, that this program does not work with.
    #[error("unsupported server: {message}")]
    Unsupported { message: String },

    /// The server answered with an error.
    #[error("postgresql reports {sqlstate}: {message}")]
    Query { sqlstate: String, message: String },

    /// The session is gone, and with it everything that was open in it.
    #[error("the session with postgresql was lost: {message}")]
    Lost { message: String },

    /// No answer in time. The statement was asked to cancel; its effect is unknown.
    #[error("no answer from postgresql in time: {doing}")]
    Timeout { doing: &'static str },

    /// The session or the cluster behind it is not the one the backup was started with.
    #[error("{what} changed during the backup: it was {before}, now it is {after}")]
    Changed { what: &'static str, before: String, after: String },

    /// The server answered something that cannot be understood.
    #[error("unexpected answer from postgresql: {message}")]
    Unexpected { message: String },

    /// The request itself cannot be made.
    #[error("invalid request: {message}")]
    Invalid { message: String },
}

impl ClusterError {
    /// The stable code under which the error is reported.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "E-PG-UNREACHABLE",
            Self::Denied { .. } => "E-PG-DENIED",
            Self::Unsupported { .. } => "E-PG-UNSUPPORTED",
            Self::Query { .. } => "E-PG-QUERY",
            Self::Lost { .. } => "E-PG-LOST",
            Self::Timeout { .. } => "E-PG-TIMEOUT",
            Self::Changed { .. } => "E-PG-CHANGED",
            Self::Unexpected { .. } => "E-PG-UNEXPECTED",
            Self::Invalid { .. } => "E-PG-INVALID",
        }
    }

    /// What to do next, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some("check host, port and that the server runs: 'pgark check' tries it again"),
            Self::Denied { .. } => Some("check the password file, pg_hba.conf and the rights of the role"),
            Self::Unsupported { .. } => {
                Some("connect straight to a PostgreSQL 13 to 18 server, without a connection pooler")
            }
            Self::Lost { .. } | Self::Changed { .. } => Some("the backup is not usable: run it again"),
            Self::Timeout { .. } => Some("look at pg_stat_activity and the server log, then try again"),
            Self::Query { .. } | Self::Unexpected { .. } | Self::Invalid { .. } => None,
        }
    }
}
