//! The cluster a backup is taken of: connected to, compared with the directory and with the repository.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgark_pg::control::ControlFile;
use pgark_pg::history::TimelineHistory;
use pgark_pg::names::WalFileName;
use pgark_pg::value::TimelineId;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::record::{ConfigFile, Owner};
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository};

use super::BackupOptions;
use super::scan::{Found, Noticed, scan};
use crate::archive::push::push_side_file;
use crate::cluster::{Connection, Inspection, inspect};
use crate::error::{EngineError, Result};

pub struct SourceCluster {
    pub connection: Connection,
    pub pgdata: PathBuf,
    pub control: ControlFile,
    pub version_num: u32,
    pub timeline: TimelineId,
    pub owner: Owner,
    pub config_files: Vec<ConfigFile>,
}

/// Reads of a torn `pg_control` before we give up on it.
const CONTROL_TRIES: u32 = 100;
/// Configuration files are small; a larger one is not a configuration file.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;

impl SourceCluster {
    pub fn connect(options: &BackupOptions, repo: &Repository) -> Result<Self> {
        let control = parse_control(&options.pgdata, &read_control(&options.pgdata)?)?;
        let connection = Connection::open(&options.connect, options.connect_timeout)?;
        let found = inspect(&connection)?;
        check_same_cluster(&options.pgdata, &control, &found)?;
        check_archiving(&found)?;
        let catalog = CatalogStore::new(repo, &options.cluster).read()?;
        match catalog.lineage() {
            Some(l) if l.system_id == control.system_id => {}
            _ => return Err(other_lineage(&options.cluster, &control)),
        }
        let owner = owner(&options.pgdata)?;
        let config_files = outside_config(&found, &options.pgdata)?;
        let timeline = found.timeline.unwrap_or(control.checkpoint_timeline);
        let version_num = found.version_num;
        Ok(SourceCluster {
            connection,
            pgdata: options.pgdata.clone(),
            control,
            version_num,
            timeline,
            owner,
            config_files,
        })
    }

    /// Bytes and files that a backup would read now.
    pub fn measure(&self) -> Result<(u64, u64, Noticed)> {
        let (mut bytes, mut files) = (0u64, 0u64);
        let noticed = scan(&self.pgdata, self.control.major, &mut |found| {
            if let Found::File(f) = found {
                bytes = bytes.saturating_add(f.size);
                files += 1;
            }
            Ok(())
        })?;
        Ok((bytes, files, noticed))
    }
}

/// The file is written in one piece by PostgreSQL but may be read torn: again until its checksum is right.
pub fn read_control(pgdata: &Path) -> Result<Vec<u8>> {
    let path = pgdata.join("global/pg_control");
    let mut last = None;
    for _ in 0..CONTROL_TRIES {
        let bytes = fs::read(&path).map_err(|e| EngineError::file("reading", &path, e))?;
        match ControlFile::parse(&bytes) {
            Ok(_) => return Ok(bytes),
            Err(e) => last = Some(e),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let why = last.map(|e| e.to_string()).unwrap_or_default();
    Err(EngineError::refused(
        "E-CONTROL",
        format!("{}: {why}", path.display()),
        "is this the data directory of a PostgreSQL 13 to 18 cluster?",
    ))
}

pub fn parse_control(pgdata: &Path, bytes: &[u8]) -> Result<ControlFile> {
    let control = ControlFile::parse(bytes)
        .map_err(|e| EngineError::refused("E-CONTROL", format!("{}: {e}", pgdata.display()), ""))?;
    if control.block_size != 8192 || control.wal_block_size != 8192 {
        return Err(EngineError::refused(
            "E-BLOCK-SIZE",
            format!(
                "the cluster has pages of {} and wal pages of {} bytes",
                control.block_size, control.wal_block_size
            ),
            "pgark supports PostgreSQL built with the standard 8192 bytes",
        ));
    }
    Ok(control)
}

fn check_same_cluster(pgdata: &Path, control: &ControlFile, found: &Inspection) -> Result<()> {
    let server = found.system_id.ok_or_else(|| {
        EngineError::refused(
            "E-PG-RIGHTS",
            "the connected role may not read the system identifier",
            "grant it pg_monitor, or EXECUTE on pg_control_system()",
        )
    })?;
    let directory_differs = match &found.data_directory {
        // Two copies of one cluster have the same system identifier: the directory tells them apart.
        Some(dir) => fs::canonicalize(dir).ok().zip(fs::canonicalize(pgdata).ok()).is_some_and(|(a, b)| a != b),
        None => false,
    };
    if server == control.system_id && !directory_differs {
        return Ok(());
    }
    let dir = found.data_directory.as_ref().map(|d| format!(" ({})", d.display())).unwrap_or_default();
    Err(EngineError::refused(
        "E-CLUSTER-MISMATCH",
        format!("the connected server{dir} does not run on {}", pgdata.display()),
        "check --pgdata against the host and port of the connection",
    ))
}

fn check_archiving(found: &Inspection) -> Result<()> {
    let refuse = |message: &str, hint: &str| Err(EngineError::refused("E-ARCHIVE-OFF", message, hint));
    if found.wal_level.as_deref() == Some("minimal") {
        return refuse("wal_level is minimal: its WAL cannot restore a backup", "set wal_level = replica and restart");
    }
    if found.archive_mode.as_deref() == Some("off") {
        return refuse(
            "archive_mode is off: a backup without its WAL cannot be restored",
            "'pgark init' prints the settings to add to postgresql.conf; archive_mode needs a restart",
        );
    }
    let no = |v: &Option<String>| v.as_deref().is_some_and(str::is_empty);
    if no(&found.archive_command) && found.archive_library.as_deref().is_none_or(str::is_empty) {
        return refuse(
            "archive_command is empty: WAL piles up and does not reach the repository",
            "'pgark init' prints the archive_command to set",
        );
    }
    Ok(())
}

pub fn other_lineage(cluster: &pgark_repo::names::ClusterName, control: &ControlFile) -> EngineError {
    EngineError::refused(
        "E-CLUSTER-SYSTEM",
        format!("'{cluster}' is registered with another system identifier than this cluster's {}", control.system_id),
        "use another --cluster name, or 'pgark init --adopt' after an upgrade",
    )
}

pub fn owner(pgdata: &Path) -> Result<Owner> {
    let meta = fs::metadata(pgdata).map_err(|e| EngineError::file("reading the attributes of", pgdata, e))?;
    Ok(Owner { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o7777 })
}

/// Configuration that lies elsewhere (as in Debian's layout) is kept with the backup.
fn outside_config(found: &Inspection, pgdata: &Path) -> Result<Vec<ConfigFile>> {
    let files = [
        ("postgresql.conf", &found.config_file),
        ("pg_hba.conf", &found.hba_file),
        ("pg_ident.conf", &found.ident_file),
    ];
    let mut out = vec![];
    for (name, path) in files {
        let Some(path) = path else { continue };
        let inside =
            fs::canonicalize(path).ok().zip(fs::canonicalize(pgdata).ok()).is_some_and(|(f, d)| f.starts_with(d));
        let small = fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= CONFIG_BYTES_MAX);
        if inside || !small {
            continue;
        }
        match fs::read(path) {
            Ok(content) => {
                out.push(ConfigFile { name: name.into(), path: path.to_string_lossy().into_owned(), content });
            }
            Err(e) => {
                tracing::warn!(path = %path.display(), %e, "a configuration file outside the data directory is not kept")
            }
        }
    }
    Ok(out)
}

/// Every history file the server has: a restore needs them, and PostgreSQL archives each only once.
pub fn push_histories(pgdata: &Path, wal: &WalArchive) -> Result<()> {
    let dir = pgdata.join("pg_wal");
    let listing = fs::read_dir(&dir).map_err(|e| EngineError::file("listing", &dir, e))?;
    for entry in listing {
        let entry = entry.map_err(|e| EngineError::file("listing", &dir, e))?;
        let file_name = entry.file_name();
        let Some(name @ WalFileName::History(_)) = file_name.to_str().and_then(|n| WalFileName::parse(n).ok()) else {
            continue;
        };
        match fs::read(entry.path()) {
            Ok(bytes) => match push_side_file(wal, &name, &bytes) {
                // Archived when the cluster had no writer: it is there, and a writer cannot compare it.
                Err(EngineError::Repo(RepoError::WriteOnly { .. })) if wal.has_history(&name)? => {}
                pushed => drop(pushed?),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(EngineError::file("reading", entry.path(), e)),
        }
    }
    Ok(())
}

/// The history of a timeline as archived; where a writer cannot read that, as the server has it.
pub fn history(pgdata: &Path, wal: &WalArchive, timeline: TimelineId) -> Result<TimelineHistory> {
    let archived = crate::archive::history(wal, timeline);
    if !matches!(archived, Err(EngineError::Repo(RepoError::WriteOnly { .. }))) {
        return archived;
    }
    let path = pgdata.join("pg_wal").join(format!("{}.history", timeline.hex()));
    let bytes = fs::read(&path).map_err(|e| EngineError::file("reading", &path, e))?;
    TimelineHistory::parse(timeline, &bytes).map_err(|e| {
        EngineError::failed("E-HISTORY", format!("{} does not parse: {e}", path.display()), "check the server's pg_wal")
    })
}

/// For the message when WAL does not arrive.
pub fn describe_archiver(connection: &Connection) -> String {
    let stats = inspect(connection).ok().and_then(|i| i.archiver);
    match stats {
        Some(s) => match (s.last_failed_wal, s.last_archived_wal) {
            (Some(f), a) => format!(
                " (PostgreSQL reports {} failed attempts, the last with {f}; last archived: {})",
                s.failed_count,
                a.unwrap_or_else(|| "none".into())
            ),
            (None, Some(a)) => format!(" (PostgreSQL reports no failure; last archived: {a})"),
            (None, None) => " (PostgreSQL reports that nothing was archived yet)".into(),
        },
        None => String::new(),
    }
}
