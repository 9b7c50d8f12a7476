//! Restoring over an existing cluster: what is right already stays, what does not belong there goes.
//!
//! Invariant: from the first change on the directory cannot be started until the restore is complete. The old cluster's
//! WAL is put aside, not removed: it may hold transactions that no archive has.

use std::cmp::Ordering;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use pgark_pg::control::ControlFile;
use pgark_repo::manifest::{Item, path_order};
use pgark_repo::names::ClusterName;
use pgark_repo::record::BackupRecord;
use rustix::fs::{AtFlags, OFlags};

use super::books::Books;
use super::files::INCOMPLETE;
use super::roots::Roots;
use super::space::{PlacedTablespace, running_postmaster};
use crate::backup::scan::{join, show};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::sources::Sources;

/// Where an old `pg_wal` goes; a number is appended. Backups leave these directories out.
const OLD_WAL: &str = "pgark-old-wal";
const PG_CONTROL: &[u8] = b"global/pg_control";
/// Server logs may be all that tells what happened.
const LOGS: [&[u8]; 2] = [b"log", b"pg_log"];

/// Whether there is something that a restore may be laid over: a stopped cluster of the same identity, or what an
/// interrupted restore left of one. False when the directory is absent or empty.
pub fn check(to: &Path, record: &BackupRecord) -> Result<bool> {
    let refused = |what: String, hint: &str| Err(EngineError::refused("E-DELTA-TARGET", what, hint));
    let shown = to.display();
    match fs::symlink_metadata(to) {
        Ok(m) if m.is_dir() => {}
        Ok(_) => return refused(format!("{shown} is not a directory"), "give the directory itself, not a link to it"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(EngineError::file("looking at", to, e)),
    }
    if fs::read_dir(to).map_err(|e| EngineError::file("listing", to, e))?.next().is_none() {
        return Ok(false);
    }
    if let Some(pid) = running_postmaster(to) {
        return Err(EngineError::refused(
            "E-TARGET-RUNNING",
            format!("{shown} is the data directory of a running PostgreSQL (process {pid})"),
            "stop that server first",
        ));
    }
    let control = match fs::read(to.join("global/pg_control")) {
        Ok(bytes) => ControlFile::parse(&bytes).ok(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(EngineError::file("reading", to.join("global/pg_control"), e)),
    };
    match control {
        Some(c) if c.system_id == record.system_id => Ok(true),
        Some(c) => refused(
            format!(
                "{shown} is a cluster with system identifier {}, the backup is of {}",
                c.system_id, record.system_id
            ),
            "--delta is for a directory of the same cluster; nothing was changed",
        ),
        None if to.join(INCOMPLETE).exists() => Ok(true),
        None => refused(
            format!("{shown} is not empty and is no PostgreSQL cluster"),
            "give the directory of the cluster, or one that is empty; nothing was changed",
        ),
    }
}

/// Whether the old cluster's own link leads to this tablespace directory.
pub fn is_own_tablespace(to: &Path, place: &PlacedTablespace) -> bool {
    fs::read_link(to.join(format!("pg_tblspc/{}", place.oid))).is_ok_and(|target| target == place.location)
}

/// Makes the directory unstartable and removes what the backup does not have.
pub fn prepare(
    roots: &Roots,
    places: &[PlacedTablespace],
    sources: &Sources,
    cluster: &ClusterName,
    record: &BackupRecord,
    ctx: &Ctx,
) -> Result<()> {
    poison(roots)?;
    put_wal_aside(roots, ctx)?;
    for place in places {
        unlink(roots, format!("pg_tblspc/{}", place.oid).as_bytes())?;
    }
    let mut extras = Extras { roots, places, ctx, removed: 0 };
    let mut manifest = Books::open(sources, cluster, &record.id)?;
    let mut walk = Walk::new();
    extras.list(b"", &mut walk)?;
    while let Some(item) = manifest.next_item()? {
        ctx.check_cancelled()?;
        match &item {
            Item::Directory(d) => extras.up_to(&mut walk, &d.path, Kind::Directory)?,
            Item::FileStart(f) => extras.up_to(&mut walk, &f.path, Kind::File)?,
            _ => {}
        }
    }
    while let Some(path) = walk.take() {
        extras.remove(&path)?;
    }
    if extras.removed > 0 {
        ctx.progress.note(&format!("removed {} files and directories that are not in the backup", extras.removed));
    }
    Ok(())
}

/// As at the end of every restore: without `backup_label`, PostgreSQL must not start on this.
fn poison(roots: &Roots) -> Result<()> {
    let mut file = match roots.open(PG_CONTROL, OFlags::RDONLY, 0) {
        Ok(f) => f,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(roots.error("reading", PG_CONTROL, e)),
    };
    let mut bytes = vec![];
    std::io::Read::read_to_end(&mut file, &mut bytes).map_err(|e| roots.error("reading", PG_CONTROL, e))?;
    if let Ok(poisoned) = ControlFile::poison(&bytes) {
        let file = roots.open(PG_CONTROL, OFlags::WRONLY, 0).map_err(|e| roots.error("writing", PG_CONTROL, e))?;
        let failed = |e: std::io::Error| roots.error("writing", PG_CONTROL, e);
        std::os::unix::fs::FileExt::write_all_at(&file, &poisoned, 0).map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}

fn put_wal_aside(roots: &Roots, ctx: &Ctx) -> Result<()> {
    let failed = |e: rustix::io::Errno| roots.error("putting aside", b"pg_wal", e);
    let holds_wal = |dir: &Path| -> std::io::Result<bool> {
        for entry in fs::read_dir(dir)? {
            if pgark_pg::names::WalFileName::parse(&entry?.file_name().to_string_lossy()).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match holds_wal(&roots.path.join("pg_wal")) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(roots.error("listing", b"pg_wal", e)),
    }
    let mut n = 1;
    let name = loop {
        let name = format!("{OLD_WAL}.{n}");
        if fs::symlink_metadata(roots.path.join(&name)).is_err() {
            break name;
        }
        n += 1;
    };
    rustix::fs::renameat(&roots.main, "pg_wal", &roots.main, &*name).map_err(failed)?;
    rustix::fs::fsync(&roots.main).map_err(failed)?;
    ctx.progress.note(&format!(
        "the old cluster's WAL is kept in {}: remove it when nothing in it is needed any more",
        roots.path.join(name).display()
    ));
    Ok(())
}

fn unlink(roots: &Roots, path: &[u8]) -> Result<()> {
    let full = roots.path.join(std::ffi::OsStr::from_bytes(path));
    if !fs::symlink_metadata(&full).is_ok_and(|m| m.file_type().is_symlink()) {
        return Ok(());
    }
    rustix::fs::unlinkat(&roots.main, path, AtFlags::empty()).map_err(|e| roots.error("removing", path, e))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Other,
}

/// What is still to come of a sorted walk, the next one last.
struct Walk {
    rest: Vec<(Vec<u8>, Kind)>,
}

impl Walk {
    fn new() -> Self {
        Walk { rest: vec![] }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        self.rest.pop().map(|(path, _)| path)
    }
}

struct Extras<'a> {
    roots: &'a Roots,
    places: &'a [PlacedTablespace],
    ctx: &'a Ctx,
    removed: u64,
}

impl Extras<'_> {
    fn full(&self, path: &[u8]) -> PathBuf {
        for place in self.places {
            let prefix = format!("pg_tblspc/{}", place.oid).into_bytes();
            if path == prefix {
                return place.location.clone();
            }
            if let Some(rest) = path.strip_prefix(&prefix[..]).and_then(|r| r.strip_prefix(b"/")) {
                return place.location.join(std::ffi::OsStr::from_bytes(rest));
            }
        }
        self.roots.path.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Puts the entries of a directory on the walk.
    fn list(&self, dir: &[u8], walk: &mut Walk) -> Result<()> {
        let full = self.full(dir);
        let failed = |e| EngineError::file("listing", &full, e);
        let mut entries = vec![];
        let listing = match fs::read_dir(&full) {
            Ok(l) => l,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        for entry in listing {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let kind = match kind {
                k if k.is_dir() => Kind::Directory,
                k if k.is_file() => Kind::File,
                _ => Kind::Other,
            };
            entries.push((join(dir, &entry.file_name().into_vec()), kind));
        }
        if dir == b"pg_tblspc" {
            // The links are gone already; what they led to is walked as part of the cluster.
            let links = self.places.iter().map(|p| (format!("pg_tblspc/{}", p.oid).into_bytes(), Kind::Directory));
            entries.retain(|(path, _)| !self.places.iter().any(|p| format!("pg_tblspc/{}", p.oid).as_bytes() == path));
            entries.extend(links);
        }
        entries.sort_unstable_by(|a, b| path_order(&b.0, &a.0));
        walk.rest.extend(entries);
        Ok(())
    }

    /// Removes what comes before `path`, and what is there in its place and of another kind.
    fn up_to(&mut self, walk: &mut Walk, path: &[u8], kind: Kind) -> Result<()> {
        while let Some((next, found)) = walk.rest.last() {
            let found = *found;
            match path_order(next, path) {
                Ordering::Greater => return Ok(()),
                Ordering::Less => {
                    if let Some(extra) = walk.take() {
                        self.remove(&extra)?;
                    }
                }
                Ordering::Equal => {
                    walk.take();
                    if found != kind {
                        return self.remove(path);
                    }
                    return if kind == Kind::Directory { self.list(path, walk) } else { Ok(()) };
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let top = path.split(|b| *b == b'/').next().unwrap_or_default();
        let ours = path == INCOMPLETE.as_bytes() || path == PG_CONTROL || top.starts_with(OLD_WAL.as_bytes());
        if ours || LOGS.contains(&top) {
            return Ok(());
        }
        self.ctx.check_cancelled()?;
        let full = self.full(path);
        let failed = |e: std::io::Error| EngineError::file("removing", &full, e);
        let meta = fs::symlink_metadata(&full).map_err(failed)?;
        tracing::debug!(path = %show(path), "not in the backup: removed");
        self.removed += 1;
        if meta.is_dir() { fs::remove_dir_all(&full).map_err(failed) } else { fs::remove_file(&full).map_err(failed) }
    }
}
