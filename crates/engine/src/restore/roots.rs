//! The directories a restore writes to, held open. Everything is opened relative to them without following links.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use pgark_repo::record::BackupRecord;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::files::INCOMPLETE;
use super::space::PlacedTablespace;
use crate::backup::scan::show;
use crate::error::{EngineError, Result};

/// The directories that are written to, held open.
pub struct Roots {
    pub path: PathBuf,
    pub main: OwnedFd,
    tablespaces: HashMap<u32, (PathBuf, OwnedFd)>,
    owner: Option<(u32, u32)>,
}

impl Roots {
    pub fn create(to: &Path, places: &[PlacedTablespace], record: &BackupRecord) -> Result<Self> {
        let owner = owner_for_root(to, record);
        let main = open_root(to, record.owner.mode, owner)?;
        let mut roots = Roots { path: to.to_owned(), main, tablespaces: HashMap::new(), owner };
        let locations: Vec<&Path> = places.iter().map(|p| p.location.as_path()).collect();
        let marker = serde_json::to_vec(&locations).map_err(|e| {
            EngineError::failed(
                "E-TABLESPACE-PATH",
                format!("a tablespace path is not valid UTF-8: {e}"),
                "map it with --tablespace-map",
            )
        })?;
        roots.replace(INCOMPLETE.as_bytes(), &marker)?;
        rustix::fs::fsync(&roots.main).map_err(|e| EngineError::file("syncing", to, e))?;
        for p in places {
            let fd = open_root(&p.location, 0o700, owner)?;
            roots.tablespaces.insert(p.oid, (p.location.clone(), fd));
        }
        Ok(roots)
    }

    /// The directory that holds `path`, and the path from there.
    fn locate<'p>(&self, path: &'p [u8]) -> (BorrowedFd<'_>, &'p [u8]) {
        let below = path.strip_prefix(b"pg_tblspc/").and_then(|rest| {
            let cut = rest.iter().position(|b| *b == b'/')?;
            let oid: u32 = std::str::from_utf8(&rest[..cut]).ok()?.parse().ok()?;
            let (_, fd) = self.tablespaces.get(&oid)?;
            Some((fd.as_fd(), &rest[cut + 1..]))
        });
        below.unwrap_or((self.main.as_fd(), path))
    }

    pub fn error(&self, what: &'static str, path: &[u8], e: impl Into<std::io::Error>) -> EngineError {
        EngineError::file(what, self.path.join(show(path)), e)
    }

    pub fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> std::io::Result<File> {
        let (root, rel) = self.locate(path);
        Ok(File::from(open_beneath(root, rel, flags, Mode::from_raw_mode(mode))?))
    }

    pub fn create_file(&self, path: &[u8]) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.open(path, flags, 0o600).map_err(|e| self.error("creating", path, e))
    }

    /// For a restore over what is there: readable, and kept if it exists.
    pub fn open_or_create(&self, path: &[u8]) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        self.open(path, flags, 0o600).map_err(|e| self.error("opening", path, e))
    }

    pub fn set_mode(&self, file: &File, path: &[u8], mode: u32) -> Result<()> {
        let failed = |e: rustix::io::Errno| self.error("setting the attributes of", path, e);
        // Neither set-id bits nor access for others belong into a data directory.
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o750)).map_err(failed)?;
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        }
        Ok(())
    }

    pub fn write_file(&self, path: &[u8], content: &[u8], mode: u32) -> Result<()> {
        let mut file = self.create_file(path)?;
        file.write_all(content).map_err(|e| self.error("writing", path, e))?;
        self.set_mode(&file, path, mode)
    }

    pub fn make_dir(&self, path: &[u8], mode: u32) -> Result<()> {
        let (root, rel) = self.locate(path);
        let failed = |e: rustix::io::Errno| self.error("creating the directory", path, e);
        let (parent, name) = match rel.iter().rposition(|b| *b == b'/') {
            Some(i) => {
                (open_beneath(root, &rel[..i], OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()), &rel[i + 1..])
            }
            None => (open_beneath(root, b".", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()), rel),
        };
        let parent = parent.map_err(|e| self.error("creating the directory", path, e))?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let dir = open_beneath(parent.as_fd(), name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(|e| self.error("creating the directory", path, e))?;
        self.set_mode(&File::from(dir), path, mode | 0o700)
    }

    /// Replaces a file that the backup brought.
    pub fn replace(&self, path: &[u8], content: &[u8]) -> Result<()> {
        let (root, rel) = self.locate(path);
        match rustix::fs::unlinkat(root, rel, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => self.write_file(path, content, 0o600),
            Err(e) => Err(self.error("replacing", path, e)),
        }
    }

    pub fn link_tablespaces(&self, places: &[PlacedTablespace]) -> Result<()> {
        for p in places {
            let path = format!("pg_tblspc/{}", p.oid);
            let failed = |e: rustix::io::Errno| self.error("linking the tablespace", path.as_bytes(), e);
            let dir = open_beneath(self.main.as_fd(), b"pg_tblspc", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
                .map_err(|e| self.error("linking the tablespace", path.as_bytes(), e))?;
            let name = p.oid.to_string();
            // The backup lists the link's place as a directory; it was made empty.
            match rustix::fs::unlinkat(&dir, &*name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(failed(e)),
            }
            rustix::fs::symlinkat(&p.location, &dir, &*name).map_err(failed)?;
        }
        Ok(())
    }

    /// Everything written so far is on the disk, or this fails.
    pub fn sync(&self) -> Result<()> {
        let all = self.tablespaces.values().map(|(p, fd)| (p, fd)).chain([(&self.path, &self.main)]);
        for (path, fd) in all {
            rustix::fs::syncfs(fd).map_err(|e| EngineError::file("syncing", path, e))?;
        }
        Ok(())
    }
}

/// Who will own the files when root restores: whoever owns the directory, or did when it was backed up.
fn owner_for_root(to: &Path, record: &BackupRecord) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let existing = fs::metadata(to).ok().map(|m| (m.uid(), m.gid())).filter(|(uid, _)| *uid != 0);
    Some(existing.unwrap_or((record.owner.uid, record.owner.gid)))
}

fn open_root(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| EngineError::file("preparing", path, e);
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode((mode & 0o750) | 0o700)).map_err(failed)?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(fd)
}

pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags, mode, resolve) {
            // The kernel could not be sure that nobody renamed a directory meanwhile.
            Err(rustix::io::Errno::AGAIN) => {}
            Err(rustix::io::Errno::NOSYS) => return open_step_by_step(root, path, flags, mode),
            other => return Ok(other?),
        }
    }
}

/// For kernels before 5.6: each part opened without following a link. Paths have no `..`: manifests are checked.
fn open_step_by_step(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> std::io::Result<OwnedFd> {
    let dir_flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.split(|b| *b == b'/').peekable();
    while let Some(part) = parts.next() {
        let here = at.as_ref().map_or(root, |fd| fd.as_fd());
        let next = if parts.peek().is_some() {
            rustix::fs::openat(here, part, dir_flags, Mode::empty())?
        } else {
            rustix::fs::openat(here, part, flags, mode)?
        };
        at = Some(next);
    }
    at.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))
}
