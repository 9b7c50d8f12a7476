//! The list of what is in a data directory, as a sorted walk. Only one directory's names are in memory per
//! level. PostgreSQL goes on writing meanwhile: what vanishes is recorded, what cannot be read is an error.
//!
//! It does not open files and follows no link but those of tablespaces and of `pg_wal`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgark_pg::exclude::{DirRule, dir_rule, file_excluded};
use pgark_pg::major::Major;
use pgark_pg::relpath::{Fork, PathClass, RelFork, RelSegment, classify};
use pgark_repo::record::TablespaceLink;

use crate::error::{EngineError, Result};

/// One thing found, in manifest order.
#[derive(Clone, Debug)]
pub enum Found {
    Directory {
        path: Vec<u8>,
        mode: u32,
    },
    Symlink {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    File(FoundFile),
    /// Was in the listing and is gone.
    Vanished(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct FoundFile {
    /// Relative to the data directory.
    pub path: Vec<u8>,
    pub mode: u32,
    pub size: u64,
    pub modified_ns: i64,
    /// For files of relations whose pages carry checksums.
    pub relation: Option<RelSegment>,
}

/// What the walk noticed besides the files.
#[derive(Clone, Debug, Default)]
pub struct Noticed {
    pub tablespaces: Vec<TablespaceLink>,
    pub warnings: Vec<String>,
}

/// Directories whose loss makes a cluster worthless: a link in their place is refused, not skipped.
const ESSENTIAL: [&[u8]; 8] =
    [b"base", b"global", b"pg_xact", b"pg_multixact", b"pg_commit_ts", b"pg_twophase", b"pg_logical", b"pg_tblspc"];

const PG_CONTROL: &[u8] = b"global/pg_control";

pub struct Scan<'a> {
    pgdata: &'a Path,
    major: Major,
    noticed: Noticed,
}

type Emit<'e> = dyn FnMut(Found) -> Result<()> + 'e;

/// Walks `pgdata` and calls `emit` for everything that belongs into a backup except `pg_control`.
pub fn scan(pgdata: &Path, major: Major, emit: &mut Emit<'_>) -> Result<Noticed> {
    let mut s = Scan { pgdata, major, noticed: Noticed::default() };
    s.directory(b"", emit)?;
    Ok(s.noticed)
}

impl Scan<'_> {
    fn full(&self, path: &[u8]) -> PathBuf {
        self.pgdata.join(OsString::from_vec(path.to_vec()))
    }

    /// Names of a directory, sorted; None when it vanished.
    fn names(&self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
        let full = self.full(path);
        let listing = match fs::read_dir(&full) {
            Ok(l) => l,
            Err(e) if e.kind() == ErrorKind::NotFound && !path.is_empty() => return Ok(None),
            Err(e) => return Err(EngineError::file("listing", full, e)),
        };
        let mut names = vec![];
        for entry in listing {
            // A listing that breaks off is not a short directory.
            let entry = entry.map_err(|e| EngineError::file("listing", &full, e))?;
            names.push(entry.file_name().into_vec());
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    fn metadata(&self, path: &[u8]) -> Result<Option<Metadata>> {
        let full = self.full(path);
        match fs::symlink_metadata(&full) {
            Ok(m) => Ok(Some(m)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(EngineError::file("reading the attributes of", full, e)),
        }
    }

    fn directory(&mut self, path: &[u8], emit: &mut Emit<'_>) -> Result<()> {
        let Some(names) = self.names(path)? else { return Ok(()) };
        let unlogged = unlogged_relations(path, &names);
        for name in names {
            let child = join(path, &name);
            let Some(meta) = self.metadata(&child)? else {
                if !file_excluded(&child) {
                    emit(Found::Vanished(child))?;
                }
                continue;
            };
            let kind = meta.file_type();
            if kind.is_dir() {
                self.subdirectory(&child, &meta, emit)?;
            } else if kind.is_symlink() {
                self.link(&child, emit)?;
            } else if kind.is_file() {
                self.file(child, &meta, &unlogged, emit)?;
            } else if !file_excluded(&child) {
                // Sockets, pipes and devices hold nothing to back up.
                tracing::debug!(path = %show(&child), "not a file: left out");
            }
        }
        Ok(())
    }

    fn subdirectory(&mut self, path: &[u8], meta: &Metadata, emit: &mut Emit<'_>) -> Result<()> {
        if in_tblspc(path)
            && let Some(oid) = tablespace_oid(path)
        {
            self.noticed.tablespaces.push(TablespaceLink { oid, location: vec![], in_place: true });
        }
        let rule = dir_rule(path, self.major);
        if rule == DirRule::Excluded {
            return Ok(());
        }
        emit(Found::Directory { path: path.to_vec(), mode: meta.mode() & 0o7777 })?;
        if rule == DirRule::Include { self.directory(path, emit) } else { Ok(()) }
    }

    fn link(&mut self, path: &[u8], emit: &mut Emit<'_>) -> Result<()> {
        if path != b"pg_wal" && file_excluded(path) {
            return Ok(());
        }
        let full = self.full(path);
        let target = match fs::read_link(&full) {
            Ok(t) => t.into_os_string().into_vec(),
            Err(e) if e.kind() == ErrorKind::NotFound => return emit(Found::Vanished(path.to_vec())),
            Err(e) => return Err(EngineError::file("reading the link", full, e)),
        };
        if path == b"pg_wal" {
            // The restored cluster gets a directory; its contents are not part of a backup.
            return emit(Found::Directory { path: path.to_vec(), mode: 0o700 });
        }
        if in_tblspc(path)
            && let Some(oid) = tablespace_oid(path)
        {
            self.noticed.tablespaces.push(TablespaceLink { oid, location: target, in_place: false });
            emit(Found::Directory { path: path.to_vec(), mode: 0o700 })?;
            return self.tablespace(path, emit);
        }
        let top = path.split(|b| *b == b'/').next().unwrap_or_default();
        if ESSENTIAL.contains(&top) {
            return Err(EngineError::failed(
                "E-BACKUP-LINK",
                format!("{} is a symbolic link: what it points to would be missing from the backup", full.display()),
                "PostgreSQL supports links for pg_wal and tablespaces only: move the files back in place of the link",
            ));
        }
        if fs::metadata(&full).is_ok() {
            self.noticed.warnings.push(format!(
                "{} is a symbolic link to {}, which is not part of the backup",
                show(path),
                show(&target)
            ));
        }
        emit(Found::Symlink { path: path.to_vec(), target })
    }

    /// Of a tablespace's directory only the part of this version belongs to the cluster.
    fn tablespace(&mut self, path: &[u8], emit: &mut Emit<'_>) -> Result<()> {
        let version = join(path, self.major.tablespace_dir().as_bytes());
        match self.metadata(&version)? {
            Some(meta) if meta.is_dir() => self.subdirectory(&version, &meta, emit),
            Some(_) => Err(EngineError::failed(
                "E-BACKUP-TABLESPACE",
                format!("{} is not a directory", self.full(&version).display()),
                "check the tablespace",
            )),
            None => Ok(()),
        }
    }

    fn file(&mut self, path: Vec<u8>, meta: &Metadata, unlogged: &HashSet<u32>, emit: &mut Emit<'_>) -> Result<()> {
        if file_excluded(&path) || path == PG_CONTROL {
            return Ok(());
        }
        let relation = match classify(&path) {
            PathClass::TempRelation => return Ok(()),
            PathClass::Relation(r) if r.rel.fork != Fork::Init && unlogged.contains(&r.rel.rel) => return Ok(()),
            PathClass::Relation(r) => Some(r),
            _ => None,
        };
        emit(Found::File(FoundFile {
            path,
            mode: meta.mode() & 0o7777,
            size: meta.len(),
            modified_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
            relation,
        }))
    }
}

/// Relations of this directory that have an init fork: after a crash or a restore PostgreSQL starts them empty.
fn unlogged_relations(dir: &[u8], names: &[Vec<u8>]) -> HashSet<u32> {
    let init_of = |name: &Vec<u8>| match classify(&join(dir, name)) {
        PathClass::Relation(RelSegment { rel: RelFork { rel, fork: Fork::Init, .. }, .. }) => Some(rel),
        _ => None,
    };
    names.iter().filter_map(init_of).collect()
}

fn in_tblspc(path: &[u8]) -> bool {
    path.starts_with(b"pg_tblspc/") && path.iter().filter(|b| **b == b'/').count() == 1
}

fn tablespace_oid(path: &[u8]) -> Option<u32> {
    std::str::from_utf8(path.strip_prefix(b"pg_tblspc/")?).ok()?.parse().ok()
}

pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// A path for messages.
pub fn show(path: &[u8]) -> String {
    std::ffi::OsStr::from_bytes(path).to_string_lossy().escape_debug().to_string()
}
