//! What a connected server says about itself, and the few things it is asked to do apart from a backup.
//!
//! Invariant: a right that the role lacks costs the fields that need it and nothing else; each such field is named in
//! `Inspection::unavailable`. A lost session or a missed deadline is always an error.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use pgark_pg::{Lsn, Major, PgTimestamp, SegmentSize, SystemId, TimelineId};

use super::row::Row;
use super::{ClusterError, Connection, Deadline};

/// What a call to `pg_promote` may take beyond the wait it was asked for.
const PROMOTE_MARGIN: Duration = Duration::from_secs(10);

/// What a backup relies on to be dealing with one and the same cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub system_id: SystemId,
    pub timeline: TimelineId,
    pub in_recovery: bool,
    pub backend_pid: i32,
    pub segment_size: SegmentSize,
}

impl Identity {
    pub fn expect_same(&self, now: &Self) -> Result<(), ClusterError> {
        let changed = |what, before: String, after: String| Err(ClusterError::Changed { what, before, after });
        if self.system_id != now.system_id {
            return changed("the system identifier", self.system_id.to_string(), now.system_id.to_string());
        }
        if self.in_recovery != now.in_recovery {
            return Err(promoted(self.in_recovery, now.in_recovery));
        }
        if self.timeline != now.timeline {
            return changed("the timeline", self.timeline.to_string(), now.timeline.to_string());
        }
        if self.backend_pid != now.backend_pid {
            return changed("the server process", self.backend_pid.to_string(), now.backend_pid.to_string());
        }
        Ok(())
    }
}

pub(super) fn promoted(before: bool, after: bool) -> ClusterError {
    let role = |in_recovery| if in_recovery { "standby" } else { "primary" }.to_owned();
    ClusterError::Changed { what: "the role of the server", before: role(before), after: role(after) }
}

/// The timeline of a primary is that of the WAL it writes (pg_control knows it only after a checkpoint); that of a
/// standby is the newest that pg_control has seen replayed.
pub(super) fn identity(conn: &Connection, deadline: Deadline) -> Result<Identity, ClusterError> {
    let row = conn.query_one_by(
        "SELECT (SELECT system_identifier FROM pg_control_system()) AS system_id, \
                (SELECT bytes_per_wal_segment FROM pg_control_init()) AS segment_bytes, \
                pg_is_in_recovery() AS in_recovery, pg_backend_pid() AS backend_pid, \
                CASE WHEN pg_is_in_recovery() \
                     THEN (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline) \
                           FROM pg_control_checkpoint() AS c, pg_control_recovery() AS r)::bigint \
                     ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint \
                END AS timeline",
        &[],
        deadline,
    )?;
    let timeline = TimelineId::new(row.parse("timeline")?)
        .ok_or_else(|| ClusterError::Unexpected { message: "timeline 0".to_owned() })?;
    let segment_size = SegmentSize::new(row.parse("segment_bytes")?)
        .map_err(|error| ClusterError::Unexpected { message: error.to_string() })?;
    Ok(Identity {
        // PostgreSQL shows its unsigned number as a signed one.
        system_id: SystemId(row.parse::<i64>("system_id")?.cast_unsigned()),
        timeline,
        in_recovery: row.flag("in_recovery")?,
        backend_pid: row.parse("backend_pid")?,
        segment_size,
    })
}

/// A field that could not be learned, with PostgreSQL's reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    pub field: String,
    pub reason: String,
}

/// The state of a server. `None` means: not visible to this role (see `unavailable`) or unknown to this major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    pub version_num: u32,
    pub major: Major,
    pub server_version: Option<String>,
    pub system_id: Option<SystemId>,
    pub timeline: Option<TimelineId>,
    pub in_recovery: bool,
    /// The end of the WAL written by a primary, or replayed by a standby.
    pub lsn: Option<Lsn>,
    pub block_size_bytes: Option<u32>,
    pub wal_segment_size: Option<SegmentSize>,
    pub data_directory: Option<PathBuf>,
    pub config_file: Option<PathBuf>,
    pub hba_file: Option<PathBuf>,
    pub ident_file: Option<PathBuf>,
    /// As configured: a comma-separated list.
    pub unix_socket_directories: Option<String>,
    pub port: Option<u16>,
    pub wal_level: Option<String>,
    pub archive_mode: Option<String>,
    /// `(disabled)` while `archive_mode` is off.
    pub archive_command: Option<String>,
    /// 15 and later.
    pub archive_library: Option<String>,
    pub full_page_writes: Option<bool>,
    pub data_checksums: Option<bool>,
    pub max_wal_size_bytes: Option<u64>,
    pub rights: Option<Rights>,
    pub tablespaces: Option<Vec<Tablespace>>,
    pub databases: Option<Vec<Database>>,
    pub archiver: Option<ArchiverStats>,
    pub unavailable: Vec<Unavailable>,
}

/// What the connected role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    pub role: Vec<u8>,
    pub superuser: bool,
    pub replication: bool,
    pub read_all_settings: bool,
    pub read_all_stats: bool,
    /// May start and stop a backup.
    pub backup: bool,
    pub switch_wal: bool,
    pub create_restore_point: bool,
    pub promote: bool,
    /// May list and read files of the server, for backups without access to its directory.
    pub read_files: bool,
}

/// Names and locations are PostgreSQL's bytes, in whatever encoding they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    pub name: Vec<u8>,
    /// `None` for the built-in ones, which lie in the data directory, and where it could not be read.
    pub location: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    pub oid: u32,
    pub name: Vec<u8>,
    pub is_template: bool,
    pub allow_connections: bool,
    pub tablespace_oid: u32,
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiverStats {
    pub archived_count: u64,
    pub last_archived_wal: Option<String>,
    pub last_archived_time: Option<PgTimestamp>,
    pub failed_count: u64,
    pub last_failed_wal: Option<String>,
    pub last_failed_time: Option<PgTimestamp>,
    pub stats_reset: Option<PgTimestamp>,
}

/// Asks a server for everything `Inspection` holds.
pub fn inspect(conn: &Connection) -> Result<Inspection, ClusterError> {
    conn.with_raw_bytes(|conn| {
        let mut unavailable = Vec::new();
        let identity = known(&mut unavailable, "identity", identity(conn, conn.default_deadline()))?;
        let in_recovery = match &identity {
            Some(identity) => identity.in_recovery,
            None => conn.query_one("SELECT pg_is_in_recovery() AS in_recovery", &[])?.flag("in_recovery")?,
        };
        let settings = Settings::read(conn, &mut unavailable)?;
        Ok(Inspection {
            version_num: conn.version_num(),
            major: conn.major(),
            server_version: settings.text("server_version"),
            system_id: identity.as_ref().map(|i| i.system_id),
            timeline: identity.as_ref().map(|i| i.timeline),
            in_recovery,
            lsn: known(&mut unavailable, "lsn", wal_position(conn))?,
            block_size_bytes: settings.number("block_size")?,
            wal_segment_size: identity.as_ref().map(|i| i.segment_size),
            data_directory: settings.path("data_directory"),
            config_file: settings.path("config_file"),
            hba_file: settings.path("hba_file"),
            ident_file: settings.path("ident_file"),
            unix_socket_directories: settings.text("unix_socket_directories"),
            port: settings.number("port")?,
            wal_level: settings.text("wal_level"),
            archive_mode: settings.text("archive_mode"),
            archive_command: settings.text("archive_command"),
            archive_library: settings.text("archive_library"),
            full_page_writes: settings.text("full_page_writes").map(|v| v == "on"),
            data_checksums: settings.text("data_checksums").map(|v| v == "on"),
            // PostgreSQL counts it in MiB.
            max_wal_size_bytes: settings.number::<u64>("max_wal_size")?.map(|mib| mib.saturating_mul(1 << 20)),
            rights: known(&mut unavailable, "rights", rights(conn))?,
            tablespaces: tablespaces(conn, &mut unavailable)?,
            databases: known(&mut unavailable, "databases", databases(conn))?,
            archiver: known(&mut unavailable, "archiver", archiver(conn))?,
            unavailable,
        })
    })
}

/// Turns a refusal of the server into a missing field; any other error stays one.
fn known<T>(
    unavailable: &mut Vec<Unavailable>,
    field: &str,
    answer: Result<T, ClusterError>,
) -> Result<Option<T>, ClusterError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. })) => {
            unavailable.push(Unavailable { field: field.to_owned(), reason: error.to_string() });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Rows of `pg_settings`, which leaves out what the role may not see.
struct Settings(HashMap<String, Vec<u8>>);

impl Settings {
    const NAMES: [&str; 15] = [
        "server_version",
        "data_directory",
        "config_file",
        "hba_file",
        "ident_file",
        "block_size",
        "wal_level",
        "archive_mode",
        "archive_command",
        "full_page_writes",
        "data_checksums",
        "max_wal_size",
        "unix_socket_directories",
        "port",
        "archive_library",
    ];

    fn read(conn: &Connection, unavailable: &mut Vec<Unavailable>) -> Result<Self, ClusterError> {
        let wanted = format!("{{{}}}", Self::NAMES.join(","));
        let sql = "SELECT name, setting FROM pg_settings WHERE name = ANY ($1::text[])";
        let mut found = HashMap::new();
        for row in conn.query(sql, &[&wanted])? {
            if let Some(value) = row.bytes("setting")? {
                found.insert(row.text("name")?.to_owned(), value.to_vec());
            }
        }
        for name in Self::NAMES {
            let exists = name != "archive_library" || conn.major() >= Major::V15;
            if exists && !found.contains_key(name) {
                let reason = "not visible: the role needs pg_read_all_settings".to_owned();
                unavailable.push(Unavailable { field: name.to_owned(), reason });
            }
        }
        Ok(Self(found))
    }

    /// For people to read and for fixed words; bytes that are not UTF-8 are replaced.
    fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).map(|value| path(value))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ClusterError> {
        let number = self
            .text(name)
            .map(|value| value.parse().map_err(|_| ClusterError::Unexpected { message: format!("{name} = {value}") }));
        number.transpose()
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn wal_position(conn: &Connection) -> Result<Lsn, ClusterError> {
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text \
               AS lsn";
    conn.query_one(sql, &[])?.parse("lsn")
}

fn rights(conn: &Connection) -> Result<Rights, ClusterError> {
    let (start, stop) = match conn.major() {
        Major::V13 | Major::V14 => ("pg_start_backup(text,boolean,boolean)", "pg_stop_backup(boolean,boolean)"),
        _ => ("pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"),
    };
    let row = conn.query_one(
        "SELECT r.rolname AS role, r.rolsuper AS superuser, r.rolreplication AS replication, \
                pg_has_role('pg_read_all_settings', 'USAGE') AS read_all_settings, \
                pg_has_role('pg_read_all_stats', 'USAGE') AS read_all_stats, \
                has_function_privilege($1, 'EXECUTE') AND has_function_privilege($2, 'EXECUTE') AS backup, \
                has_function_privilege('pg_switch_wal()', 'EXECUTE') AS switch_wal, \
                has_function_privilege('pg_create_restore_point(text)', 'EXECUTE') AS create_restore_point, \
                has_function_privilege('pg_promote(boolean,integer)', 'EXECUTE') AS promote, \
                has_function_privilege('pg_ls_dir(text,boolean,boolean)', 'EXECUTE') \
                AND has_function_privilege('pg_stat_file(text,boolean)', 'EXECUTE') \
                AND has_function_privilege('pg_read_binary_file(text,bigint,bigint,boolean)', 'EXECUTE') AS read_files \
         FROM pg_roles AS r WHERE r.rolname = current_user",
        &[start, stop],
    )?;
    Ok(Rights {
        role: row.bytes("role")?.unwrap_or_default().to_vec(),
        superuser: row.flag("superuser")?,
        replication: row.flag("replication")?,
        read_all_settings: row.flag("read_all_settings")?,
        read_all_stats: row.flag("read_all_stats")?,
        backup: row.flag("backup")?,
        switch_wal: row.flag("switch_wal")?,
        create_restore_point: row.flag("create_restore_point")?,
        promote: row.flag("promote")?,
        read_files: row.flag("read_files")?,
    })
}

/// Asks for each location by itself: one broken link in `pg_tblspc` must not hide the others.
fn tablespaces(conn: &Connection, unavailable: &mut Vec<Unavailable>) -> Result<Option<Vec<Tablespace>>, ClusterError> {
    let answer = conn.query("SELECT oid, spcname AS name FROM pg_tablespace ORDER BY oid", &[]);
    let Some(rows) = known(unavailable, "tablespaces", answer)? else { return Ok(None) };
    let mut tablespaces = Vec::with_capacity(rows.len());
    for row in rows {
        let oid: u32 = row.parse("oid")?;
        let sql = "SELECT pg_tablespace_location($1::oid) AS location";
        let answer = conn.query_one(sql, &[&oid.to_string()]);
        let location = known(unavailable, &format!("location of tablespace {oid}"), answer)?;
        let location = match &location {
            Some(found) => found.bytes("location")?.filter(|bytes| !bytes.is_empty()).map(path),
            None => None,
        };
        tablespaces.push(Tablespace { oid, name: row.bytes("name")?.unwrap_or_default().to_vec(), location });
    }
    Ok(Some(tablespaces))
}

fn databases(conn: &Connection) -> Result<Vec<Database>, ClusterError> {
    let sql = "SELECT oid, datname AS name, datistemplate AS is_template, datallowconn AS allow_connections, \
                      dattablespace AS tablespace_oid FROM pg_database ORDER BY oid";
    let database = |row: Row| {
        Ok(Database {
            oid: row.parse("oid")?,
            name: row.bytes("name")?.unwrap_or_default().to_vec(),
            is_template: row.flag("is_template")?,
            allow_connections: row.flag("allow_connections")?,
            tablespace_oid: row.parse("tablespace_oid")?,
        })
    };
    conn.query(sql, &[])?.into_iter().map(database).collect()
}

fn archiver(conn: &Connection) -> Result<ArchiverStats, ClusterError> {
    let row = conn.query_one(
        "SELECT archived_count, last_archived_wal, failed_count, last_failed_wal, \
                (extract(epoch FROM last_archived_time) * 1000000)::bigint AS last_archived_time, \
                (extract(epoch FROM last_failed_time) * 1000000)::bigint AS last_failed_time, \
                (extract(epoch FROM stats_reset) * 1000000)::bigint AS stats_reset FROM pg_stat_archiver",
        &[],
    )?;
    Ok(ArchiverStats {
        archived_count: row.parse("archived_count")?,
        last_archived_wal: row.opt_parse("last_archived_wal")?,
        last_archived_time: timestamp(&row, "last_archived_time")?,
        failed_count: row.parse("failed_count")?,
        last_failed_wal: row.opt_parse("last_failed_wal")?,
        last_failed_time: timestamp(&row, "last_failed_time")?,
        stats_reset: timestamp(&row, "stats_reset")?,
    })
}

/// A column of microseconds since 1970.
fn timestamp(row: &Row, column: &str) -> Result<Option<PgTimestamp>, ClusterError> {
    Ok(row.opt_parse(column)?.map(PgTimestamp::from_unix_micros))
}

/// Whether replay stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseState {
    NotPaused,
    /// Asked for, but WAL may still be applied. 14 and later.
    Requested,
    /// On 13 the server cannot tell a request from its fulfilment: true at a recovery target, early after
    /// `pg_wal_replay_pause()`.
    Paused,
}

/// How far recovery has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryState {
    pub in_recovery: bool,
    pub replay_lsn: Option<Lsn>,
    /// Only with streaming replication.
    pub receive_lsn: Option<Lsn>,
    /// `None` when the server is not in recovery.
    pub pause: Option<PauseState>,
    /// The commit or abort time of the last transaction that was replayed.
    pub last_replayed_time: Option<PgTimestamp>,
}

pub fn recovery_state(conn: &Connection) -> Result<RecoveryState, ClusterError> {
    let pause = match conn.major() {
        Major::V13 => "CASE WHEN pg_is_wal_replay_paused() THEN 'paused' ELSE 'not paused' END",
        _ => "pg_get_wal_replay_pause_state()",
    };
    let sql = format!(
        "SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_replay_lsn()::text AS replay_lsn, \
                pg_last_wal_receive_lsn()::text AS receive_lsn, \
                (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint AS replayed_micros, \
                CASE WHEN pg_is_in_recovery() THEN {pause} END AS pause"
    );
    let row = match conn.query_one(&sql, &[]) {
        // Recovery ended between the two halves of the CASE; the second time it has ended for both.
        Err(ClusterError::Query { sqlstate, .. }) if sqlstate == "55000" => conn.query_one(&sql, &[])?,
        answer => answer?,
    };
    let pause = match row.opt_text("pause")? {
        None => None,
        Some("not paused") => Some(PauseState::NotPaused),
        Some("pause requested") => Some(PauseState::Requested),
        Some("paused") => Some(PauseState::Paused),
        Some(other) => return Err(ClusterError::Unexpected { message: format!("pause state {other}") }),
    };
    Ok(RecoveryState {
        in_recovery: row.flag("in_recovery")?,
        replay_lsn: row.opt_parse("replay_lsn")?,
        receive_lsn: row.opt_parse("receive_lsn")?,
        pause,
        last_replayed_time: timestamp(&row, "replayed_micros")?,
    })
}

/// Ends recovery and waits until the server takes writes.
pub fn promote(conn: &Connection, wait: Duration) -> Result<(), ClusterError> {
    let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX).max(1).to_string();
    let deadline = Deadline::after(wait.saturating_add(PROMOTE_MARGIN));
    let row = conn.query_one_by("SELECT pg_promote(true, $1::integer) AS promoted", &[&seconds], deadline)?;
    if row.flag("promoted")? { Ok(()) } else { Err(ClusterError::Timeout { doing: "waiting for the promotion" }) }
}

/// What a restore set for the recovery must not act on a standby that is made of this cluster some day.
const FORGET_RECOVERY: [&str; 8] = [
    "ALTER SYSTEM RESET restore_command",
    "ALTER SYSTEM RESET recovery_end_command",
    "ALTER SYSTEM RESET recovery_target",
    "ALTER SYSTEM RESET recovery_target_lsn",
    "ALTER SYSTEM RESET recovery_target_inclusive",
    "ALTER SYSTEM RESET recovery_target_timeline",
    "ALTER SYSTEM RESET recovery_target_action",
    "SELECT pg_reload_conf()",
];

/// Takes the recovery's settings out of `postgresql.auto.conf`; for a cluster that was promoted.
pub fn forget_recovery(conn: &Connection) -> Result<(), ClusterError> {
    FORGET_RECOVERY.iter().try_for_each(|sql| conn.query(sql, &[]).map(drop))
}

/// Returns where the restore point lies. PostgreSQL refuses names of more than 63 bytes.
pub fn create_restore_point(conn: &Connection, name: &str) -> Result<Lsn, ClusterError> {
    conn.query_one("SELECT pg_create_restore_point($1::text)::text AS lsn", &[name])?.parse("lsn")
}

/// Closes the current WAL segment of a primary and returns the end of what was written to it.
pub fn switch_wal(conn: &Connection) -> Result<Lsn, ClusterError> {
    conn.query_one("SELECT pg_switch_wal()::text AS lsn", &[])?.parse("lsn")
}
