//! One physical backup as PostgreSQL sees it: `pg_backup_start` … `pg_backup_stop` in one session.
//!
//! Invariant: a `StoppedBackup` exists only when start and stop happened in the same session of the same cluster,
//! in the same state of recovery and on the same timeline. Dropping a `BackupSession` closes its session, upon which
//! PostgreSQL leaves backup mode by itself. Waiting until the WAL is archived is not done here, and not left to
//! PostgreSQL either, which would wait for ever on a failing `archive_command`.

use pgark_pg::{
    BackupFrom, BackupLabel, Lsn, Major, PgTimestamp, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId,
};

use super::inspect::{self, Identity};
use super::libpq::Notice;
use super::{ClusterError, Connection, Deadline};

/// PostgreSQL refuses longer labels (MAXPGPATH).
const LABEL_BYTES_MAX: usize = 1023;

/// A backup that was started and not yet stopped.
#[derive(Debug)]
pub struct BackupSession {
    conn: Connection,
    identity: Identity,
    start_lsn: Lsn,
}

/// What PostgreSQL handed out at the end of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedBackup {
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// To be restored byte for byte as `backup_label`.
    pub backup_label: Vec<u8>,
    /// To be restored byte for byte as `tablespace_map`; `None` when there are no tablespaces.
    pub tablespace_map: Option<Vec<u8>>,
    /// Where the backup starts, from its label. On a standby this may lie before `timeline`.
    pub start_timeline: TimelineId,
    /// The timeline of the cluster at start and stop.
    pub timeline: TimelineId,
    /// Taken from a standby.
    pub in_recovery: bool,
    /// By the clock of the server.
    pub stop_time: PgTimestamp,
    /// What the server remarked during the backup.
    pub notices: Vec<Notice>,
}

impl BackupSession {
    /// Starts a backup. Without `fast` PostgreSQL spreads its checkpoint, which may take minutes; the deadline has to
    /// allow for that. The label goes into `backup_label` and may not hold control characters.
    pub fn start(conn: Connection, label: &str, fast: bool, deadline: Deadline) -> Result<Self, ClusterError> {
        check_label(label)?;
        // From here on bytes are not converted: label and tablespace map have to arrive as PostgreSQL writes them.
        conn.use_raw_bytes()?;
        let identity = inspect::identity(&conn, deadline)?;
        if conn.announced_backend_pid() != identity.backend_pid {
            return Err(ClusterError::Unsupported {
                message: "statements reach another server process than the one that was connected to".to_owned(),
            });
        }
        let sql = match conn.major() {
            Major::V13 | Major::V14 => "SELECT pg_start_backup($1::text, $2::boolean, false)::text AS lsn",
            _ => "SELECT pg_backup_start($1::text, $2::boolean)::text AS lsn",
        };
        let row = conn.query_one_by(sql, &[label, if fast { "true" } else { "false" }], deadline)?;
        let session = Self { start_lsn: row.parse("lsn")?, identity, conn };
        session.check_alive_by(deadline)?;
        Ok(session)
    }

    pub fn system_id(&self) -> SystemId {
        self.identity.system_id
    }

    /// The timeline of the cluster when the backup started.
    pub fn timeline(&self) -> TimelineId {
        self.identity.timeline
    }

    /// The backup is taken from a standby.
    pub fn in_recovery(&self) -> bool {
        self.identity.in_recovery
    }

    pub fn segment_size(&self) -> SegmentSize {
        self.identity.segment_size
    }

    pub fn backend_pid(&self) -> i32 {
        self.identity.backend_pid
    }

    /// The redo location of the backup: WAL from here on is needed.
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// The name of the WAL file that holds `start_lsn`. PostgreSQL cannot be asked for it on a standby.
    pub fn start_wal_file(&self) -> String {
        let size = self.identity.segment_size;
        let segment = SegmentNo::containing(self.start_lsn, size);
        SegmentName { timeline: self.identity.timeline, segment }.format(size)
    }

    /// Still the same session, cluster, role and timeline. An error means that the backup is lost.
    pub fn check_alive(&self) -> Result<(), ClusterError> {
        self.check_alive_by(self.conn.default_deadline())
    }

    fn check_alive_by(&self, deadline: Deadline) -> Result<(), ClusterError> {
        self.identity.expect_same(&inspect::identity(&self.conn, deadline)?)
    }

    /// Stops the backup without waiting for the archive. Whatever fails here, the backup is lost.
    pub fn stop(self, deadline: Deadline) -> Result<StoppedBackup, ClusterError> {
        self.check_alive_by(deadline)?;
        let call = match self.conn.major() {
            Major::V13 | Major::V14 => "pg_stop_backup(false, false)",
            _ => "pg_backup_stop(false)",
        };
        let sql = format!(
            "SELECT b.lsn::text AS lsn, b.labelfile AS label, b.spcmapfile AS map, \
                    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS stop_micros FROM {call} AS b"
        );
        let row = self.conn.query_one_by(&sql, &[], deadline)?;
        self.check_alive_by(deadline)?;
        let backup_label = row.bytes("label")?.unwrap_or_default().to_vec();
        let label = self.check_backup_label(&backup_label)?;
        let stop_lsn: Lsn = row.parse("lsn")?;
        if stop_lsn < self.start_lsn {
            return Err(ClusterError::Unexpected {
                message: format!("the backup stops at {stop_lsn}, before its start at {}", self.start_lsn),
            });
        }
        Ok(StoppedBackup {
            start_lsn: self.start_lsn,
            stop_lsn,
            backup_label,
            tablespace_map: row.bytes("map")?.filter(|map| !map.is_empty()).map(<[u8]>::to_vec),
            start_timeline: label.start_timeline,
            timeline: self.identity.timeline,
            in_recovery: self.identity.in_recovery,
            stop_time: PgTimestamp::from_unix_micros(row.parse("stop_micros")?),
            notices: self.conn.take_notices(),
        })
    }

    /// The label has to be that of this very backup.
    fn check_backup_label(&self, content: &[u8]) -> Result<BackupLabel, ClusterError> {
        let label = BackupLabel::parse(content)
            .map_err(|error| ClusterError::Unexpected { message: format!("backup_label: {error}") })?;
        if label.start != self.start_lsn {
            return Err(ClusterError::Changed {
                what: "the start of the backup",
                before: self.start_lsn.to_string(),
                after: label.start.to_string(),
            });
        }
        let from_standby = matches!(label.from, BackupFrom::Standby);
        if from_standby != self.identity.in_recovery {
            return Err(inspect::promoted(self.identity.in_recovery, from_standby));
        }
        Ok(label)
    }
}

fn check_label(label: &str) -> Result<(), ClusterError> {
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(ClusterError::Invalid {
            message: format!("a backup label has 1 to {LABEL_BYTES_MAX} bytes and no control characters"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_would_forge_lines_of_backup_label_are_refused() {
        assert!(check_label("pgark 20260101-000000F").is_ok());
        for label in ["", "x\nSTART TIMELINE: 9", "a\0b", &"x".repeat(LABEL_BYTES_MAX + 1)] {
            assert!(matches!(check_label(label), Err(ClusterError::Invalid { .. })), "{label:?}");
        }
    }
}
