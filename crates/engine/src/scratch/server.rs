//! The server of a scratch cluster: one that was recovered, or a new one.
//!
//! Invariants: whatever its configuration says, it listens on a private socket alone, archives nothing, replicates nothing, runs no
//! jobs, loads no library that was not allowed, and has the memory of a small server. Its tablespaces lie in the scratch directory.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pgark_repo::record::BackupRecord;

use super::Scratch;
use crate::cluster::{ConnectOptions, Connection, MEET_DAMAGE};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::child::{self, Running};
use crate::restore::start::{self, find_server};
use crate::restore::{ArchiveMode, RestoreOptions, RestorePlan, StartOptions, Started, TablespaceMap, TargetAction};

/// For WAL and what PostgreSQL writes while it recovers.
pub const SPARE_BYTES: u64 = 64 << 20;
/// Of a cluster that was just made.
const START_WITHIN: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Who owns a new cluster.
const SUPERUSER: &str = "postgres";

/// What the server gets, whatever its configuration says. Settings that a standby must have as large as its primary are left alone.
const SETTINGS: [(&str, &str); 28] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("autovacuum", "off"),
    ("max_logical_replication_workers", "0"),
    ("synchronous_standby_names", ""),
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    ("work_mem", "16MB"),
    ("maintenance_work_mem", "64MB"),
    ("max_parallel_maintenance_workers", "0"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("jit", "off"),
    // Damage must be met as what it is.
    ("ignore_checksum_failure", "off"),
    ("zero_damaged_pages", "off"),
    ("ignore_invalid_pages", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("log_min_messages", "warning"),
    ("log_statement", "none"),
];

/// How a scratch server is started.
#[derive(Debug, Clone)]
pub struct Isolation<'a> {
    /// Programs of the server; searched for when None.
    pub bin: Option<PathBuf>,
    /// How long recovery may take.
    pub within: Duration,
    /// Of `shared_preload_libraries`, those that are loaded all the same.
    pub libraries: &'a [String],
}

/// The same restore, into the scratch directory.
pub fn into(scratch: &Scratch, record: &BackupRecord, options: &RestoreOptions) -> RestoreOptions {
    let maps = record.tablespaces.iter().filter(|t| !t.in_place).map(|t| TablespaceMap {
        given: t.oid.to_string(),
        readings: vec![(t.oid.to_string(), scratch.tablespace(t.oid))],
    });
    RestoreOptions {
        to: scratch.data(),
        action: TargetAction::Promote,
        tablespace_map: maps.collect(),
        archive_mode: ArchiveMode::Off,
        delta: false,
        ..options.clone()
    }
}

/// Recovers what was restored to its planned end, and opens it.
pub fn recover(
    scratch: &Scratch,
    restored: &RestorePlan,
    superuser: &str,
    how: &Isolation<'_>,
    ctx: &Ctx,
) -> Result<(ConnectOptions, Started)> {
    let start = StartOptions {
        bin: how.bin.clone(),
        port: None,
        socket_dir: Some(scratch.socket_dir()),
        within: how.within,
        settings: settings(scratch, restored.record.version_num, how)?,
        role: Some(superuser.to_owned()),
    };
    let started = start::start(&scratch.data(), restored, TargetAction::Promote, &start, ctx)?;
    Ok((connect_options(&started.socket_dir, started.port, superuser), started))
}

/// Makes a new cluster of this major version there, and starts it.
pub fn make(scratch: &Scratch, major: u32, how: &Isolation<'_>, ctx: &Ctx) -> Result<ConnectOptions> {
    let bin = programs_of(how.bin.as_deref(), major)?;
    let flags = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"];
    let mut command = child::plain(&bin.join("initdb"));
    command.args(flags).arg(format!("--username={SUPERUSER}")).arg("-D").arg(scratch.data());
    command.current_dir(scratch.dir()).stdout(Stdio::null());
    let (status, said) = Running::start(command)?.wait_for(ctx)?;
    if !status.success() {
        return Err(child::failure("E-PG-PROGRAM", "initdb", "to make a scratch cluster", status, &said));
    }
    let settings = settings(scratch, major.saturating_mul(10_000), how)?;
    let connect = connect_options(&scratch.socket_dir(), 5432, SUPERUSER);
    start::start_new(&bin, &scratch.data(), &scratch.socket_dir(), &settings, START_WITHIN, &connect, ctx)?;
    Ok(connect)
}

/// The programs of a server of this major version.
pub fn programs_of(given: Option<&Path>, major: u32) -> Result<PathBuf> {
    find_server(given, major).map_err(|searched| {
        let searched: Vec<String> = searched.iter().map(|p| p.display().to_string()).collect();
        EngineError::refused(
            "E-PG-BIN",
            format!("no PostgreSQL {major} server in {}", searched.join(", ")),
            "install it, or say where it is with --pg-bin",
        )
    })
}

fn settings(scratch: &Scratch, version_num: u32, how: &Isolation<'_>) -> Result<Vec<(String, String)>> {
    let hba = scratch.dir().join("pg_hba.conf");
    std::fs::write(&hba, "local all all trust\n").map_err(|e| EngineError::file("writing", &hba, e))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut all: Vec<(String, String)> =
        SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    all.push(("shared_preload_libraries".to_owned(), how.libraries.join(",")));
    all.push(("hba_file".to_owned(), text(&hba)));
    all.push(("data_directory".to_owned(), text(&scratch.data())));
    if version_num < 150_000 {
        // The original may keep its statistics outside of its directory.
        all.push(("stats_temp_directory".to_owned(), "pg_stat_tmp".to_owned()));
    }
    if version_num < 160_000 {
        all.push(("promote_trigger_file".to_owned(), String::new()));
    }
    if version_num >= 170_000 {
        all.push(("event_triggers".to_owned(), "off".to_owned()));
    }
    Ok(all)
}

fn connect_options(socket_dir: &Path, port: u16, superuser: &str) -> ConnectOptions {
    // What a database or a role sets, it sets for sessions that do not say otherwise.
    let options = format!(
        "-c session_preload_libraries= -c local_preload_libraries= -c session_replication_role=replica -c statement_timeout=0 \
         -c lock_timeout=0 {MEET_DAMAGE}"
    );
    let keywords = [
        ("host", socket_dir.to_string_lossy().into_owned()),
        ("port", port.to_string()),
        ("dbname", "postgres".to_owned()),
        ("user", superuser.to_owned()),
        ("options", options),
        ("sslmode", "disable".to_owned()),
        ("gssencmode", "disable".to_owned()),
    ];
    ConnectOptions::new(keywords.map(|(name, value)| (name.to_owned(), value)))
}

/// A session in a scratch server.
pub fn session(connect: &ConnectOptions, ctx: &Ctx) -> Result<Connection> {
    let conn = Connection::open(connect, CONNECT_TIMEOUT)?;
    conn.interrupt_by(ctx.cancel_flag());
    Ok(conn)
}

/// Refuses where so many bytes have no room.
pub fn room(dir: &Path, needed: u64, hint: &str) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| EngineError::file("looking at", dir, e))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-TARGET-SPACE",
        format!("{} has {free} bytes free, about {needed} are needed", dir.display()),
        format!("free space there or {hint}; nothing was changed"),
    ))
}
