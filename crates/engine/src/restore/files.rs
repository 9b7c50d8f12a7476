//! Writing a backup's files. Everything is opened relative to the target without following links, and
//! `pg_control` appears last: until then PostgreSQL refuses to start on the directory.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use pgark_pg::control::ControlFile;
use pgark_pg::exclude::required_dirs;
use pgark_repo::record::BackupRecord;
use pgark_repo::{RepoError, names};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::delta;
use super::roots::{Roots, open_beneath};
use super::settings::{RESTORE_FILE, RestoreFile, auto_conf, sets};
use super::space::PlacedTablespace;
use super::write::write_files;
use super::{RestoreOptions, RestorePlan, RestoreReport};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::sources::Sources;

/// Present while a restore is under way; says which tablespaces are part of it.
pub const INCOMPLETE: &str = "pgark-restore.incomplete";
const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
pub fn run(
    options: &RestoreOptions,
    plan: &RestorePlan,
    places: &[PlacedTablespace],
    sources: &Sources,
    ctx: &Ctx,
) -> Result<RestoreReport> {
    let over = options.delta && delta::check(&options.to, &plan.record)?;
    let roots = Roots::create(&options.to, places, &plan.record)?;
    if over {
        delta::prepare(&roots, places, sources, &options.cluster, &plan.record, ctx)?;
    }
    ctx.progress.begin("restore", Some(plan.record.totals.size_bytes));
    let mut report = write_files(options, plan, sources, ctx, &roots, over)?;
    ctx.progress.end();
    roots.link_tablespaces(places)?;
    for dir in required_dirs(major(&plan.record)?) {
        roots.make_dir(dir.as_bytes(), 0o700)?;
    }
    write_settings(options, plan, sources, &roots)?;
    ctx.progress.note("waiting for the disk");
    roots.sync()?;
    complete(plan, &roots)?;
    report.bytes_restored += plan.record.pg_control.len() as u64;
    report.bytes_written += plan.record.pg_control.len() as u64;
    Ok(report)
}

/// Whether the directory holds the remains of a restore that did not finish, and nothing that was ever started.
/// Returns the tablespace directories that were part of it.
pub fn unfinished(to: &Path) -> Option<Vec<PathBuf>> {
    let marker = fs::read(to.join(INCOMPLETE)).ok()?;
    let locations: Vec<PathBuf> = serde_json::from_slice(&marker).ok()?;
    let never_started = match fs::read(to.join("global/pg_control")) {
        Ok(bytes) => ControlFile::parse(&bytes).is_ok_and(|c| c.is_poisoned()),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    never_started.then_some(locations)
}

/// Empties a directory without following links.
pub fn empty_dir(path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| EngineError::file("removing the remains of a restore from", path, e);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let mut marker = None;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == INCOMPLETE {
            marker = Some(entry.path());
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        } else {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    // Last, so that an interruption leaves what can be recognised again.
    marker.map_or(Ok(()), fs::remove_file).map_err(failed)
}

pub(crate) fn major(record: &BackupRecord) -> Result<pgark_pg::Major> {
    pgark_pg::Major::from_version_num(record.version_num).ok_or_else(|| {
        EngineError::failed(
            "E-PG-UNSUPPORTED",
            format!("the backup is of PostgreSQL {}", record.version_num),
            "use a newer pgark",
        )
    })
}

fn write_settings(options: &RestoreOptions, plan: &RestorePlan, sources: &Sources, roots: &Roots) -> Result<()> {
    let mut original = vec![];
    match roots.open(AUTO_CONF, OFlags::RDONLY, 0) {
        Ok(mut f) => drop(f.read_to_end(&mut original).map_err(|e| roots.error("reading", AUTO_CONF, e))?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(roots.error("reading", AUTO_CONF, e)),
    }
    let content = auto_conf(&original, options, plan)?;
    roots.replace(AUTO_CONF, &content)?;
    roots.write_file(b"recovery.signal", b"", 0o600)?;
    roots.write_file(b"backup_label", &plan.record.backup_label, 0o600)?;
    let repo = sources.first()?;
    let file = RestoreFile::new(plan, options, repo.store().url(), repo.keys());
    roots.write_file(RESTORE_FILE.as_bytes(), &file.to_bytes(), 0o600)?;
    for config in &plan.record.config_files {
        let there = roots.open(config.name.as_bytes(), OFlags::RDONLY, 0).is_ok();
        if !there && ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].contains(&config.name.as_str()) {
            roots.write_file(config.name.as_bytes(), &local_config(&config.name, &config.content), 0o600)?;
        }
    }
    Ok(())
}

/// Settings that name files of the source's machine: in a copy they would make PostgreSQL use the original's.
const NAMES_FILES: [&str; 7] =
    ["data_directory", "hba_file", "ident_file", "external_pid_file", "include", "include_dir", "include_if_exists"];

/// A configuration that lay elsewhere, for use inside the data directory: PostgreSQL's own places apply.
pub(crate) fn local_config(name: &str, content: &[u8]) -> Vec<u8> {
    if name != "postgresql.conf" {
        return content.to_vec();
    }
    let mut out =
        b"# Restored by pgark from outside the data directory; settings that name files elsewhere are off.\n".to_vec();
    for line in content.split_inclusive(|b| *b == b'\n') {
        if NAMES_FILES.iter().any(|n| sets(line, n)) {
            out.extend_from_slice(b"#pgark# ");
        }
        out.extend_from_slice(line);
    }
    out
}

/// The moment at which the directory becomes a cluster. The checkpoint in `pg_control` is made invalid: only
/// `backup_label` knows where recovery must begin, and without it PostgreSQL must not start.
fn complete(plan: &RestorePlan, roots: &Roots) -> Result<()> {
    let control = ControlFile::poison(&plan.record.pg_control)
        .map_err(|e| RepoError::corrupt(names::record(&plan.record.cluster, &plan.backup.id), e))?;
    let temp: &[u8] = b"global/pg_control.pgark-tmp";
    let path: &[u8] = b"global/pg_control";
    roots.replace(temp, &control)?;
    let failed = |e: rustix::io::Errno| roots.error("writing", path, e);
    let file = roots.open(temp, OFlags::RDONLY, 0).map_err(|e| roots.error("writing", path, e))?;
    rustix::fs::fsync(&file).map_err(failed)?;
    let global = open_beneath(roots.main.as_fd(), b"global", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
        .map_err(|e| roots.error("writing", path, e))?;
    rustix::fs::renameat(&global, "pg_control.pgark-tmp", &global, "pg_control").map_err(failed)?;
    rustix::fs::fsync(&global).map_err(failed)?;
    rustix::fs::unlinkat(&roots.main, INCOMPLETE, AtFlags::empty()).map_err(failed)?;
    rustix::fs::fsync(&roots.main).map_err(failed)
}
