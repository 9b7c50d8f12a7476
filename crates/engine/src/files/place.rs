//! What was written beside goes in its place, name by name: each is exchanged with what is there, so that no name is ever
//! missing, and exchanged back when anything fails. What is there and not in the backup stays.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use pgark_repo::manifest::Attributes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::attributes::{NotApplied, apply_to_open, of_open};
use super::owners::Owners;
use super::scan::{device, names};
use crate::backup::scan::{join, show};
use crate::error::{EngineError, Result};
use crate::restore::roots::open_beneath;

/// What directories that a restore makes begin with; backups leave them out.
pub const STAGING: &str = ".pgark-restore-";
pub const REPLACED: &str = ".pgark-replaced-";
const DEPTH_MAX: usize = 700;

/// A directory of the live tree, and beside it the directory whose entries go into it.
pub struct Placing<'a> {
    pub live: &'a File,
    pub staged: &'a File,
    /// For errors.
    pub path: &'a Path,
    pub owners: &'a Owners,
    /// Whether the directory itself is part of the backup.
    pub with_top: bool,
    done: Vec<Done>,
    pub not: NotApplied,
    /// Names of the live tree that the backup does not have.
    pub others: u64,
    /// Names that were there and were exchanged, and those of them that were directories.
    pub replaced: u64,
    pub directories_replaced: u64,
    /// Whether something could not be put back: what was there is in the staging.
    pub stuck: bool,
}

/// One step, to be undone.
enum Done {
    Moved(Vec<u8>),
    Exchanged(Vec<u8>),
    /// What a directory had before.
    Attributes(Vec<u8>, u32, Attributes),
}

impl<'a> Placing<'a> {
    pub fn new(live: &'a File, staged: &'a File, path: &'a Path, owners: &'a Owners, with_top: bool) -> Self {
        Placing {
            live,
            staged,
            path,
            owners,
            with_top,
            done: vec![],
            not: NotApplied::default(),
            others: 0,
            replaced: 0,
            directories_replaced: 0,
            stuck: false,
        }
    }

    /// Whether everything can be renamed into place: another file system mounted on a directory of the tree stands against it.
    pub fn check(&self) -> Result<()> {
        let device_of = |dir: &File| rustix::fs::fstat(dir).map(|s| device(&s));
        let device = device_of(self.live).map_err(|e| self.failed("looking at", b"", e))?;
        self.check_dir(b"", device, 0)
    }

    fn check_dir(&self, below: &[u8], home: u64, depth: usize) -> Result<()> {
        let Some((_, staged)) = self.pair(below)? else { return Ok(()) };
        for name in names(staged.as_fd()).map_err(|e| self.failed("listing", below, e))? {
            let path = join(below, &name);
            let (Some(new), Some(old)) = (self.stat(self.staged, &path)?, self.stat(self.live, &path)?) else {
                continue;
            };
            if !(is_directory(&new) && is_directory(&old)) {
                continue;
            }
            if device(&old) != home || depth > DEPTH_MAX {
                return Err(EngineError::refused(
                    "E-FILES-MOUNT",
                    format!("another file system is mounted on {}", self.path.join(show(&path)).display()),
                    "restore with --to DIR and copy from there; nothing was changed",
                ));
            }
            self.check_dir(&path, home, depth + 1)?;
        }
        Ok(())
    }

    /// Puts everything in place, or leaves everything as it was.
    pub fn place(&mut self) -> Result<()> {
        match self.merge(b"", 0) {
            Ok(()) => Ok(()),
            Err(e) => Err(self.undo(e)),
        }
    }

    /// Everything that was done, backwards. Returns the error with what could not be undone.
    pub fn undo(&mut self, because: EngineError) -> EngineError {
        while let Some(done) = self.done.pop() {
            let (path, undone) = match done {
                Done::Moved(path) => (path.clone(), self.rename(&path, false)),
                Done::Exchanged(path) => (path.clone(), self.exchange(&path)),
                Done::Attributes(path, mode, before) => {
                    let mut not = NotApplied::default();
                    let dir = open_dir(self.live, &path);
                    (path, dir.and_then(|dir| apply_to_open(&dir, mode, &before, self.owners, &mut not)))
                }
            };
            if let Err(e) = undone {
                self.stuck = true;
                let shown = self.path.join(show(&path)).display().to_string();
                return EngineError::failed(
                    because.code(),
                    format!("{because}; and {shown} could not be put back: {e}"),
                    format!("what was replaced is in {}<id>, below {}", STAGING, self.path.display()),
                );
            }
        }
        because
    }

    /// Both directories; None when the live one is not there.
    fn pair(&self, below: &[u8]) -> Result<Option<(File, File)>> {
        let open = |top: &File| open_dir(top, below);
        let staged = open(self.staged).map_err(|e| self.failed_io("opening", below, e))?;
        match open(self.live) {
            Ok(live) => Ok(Some((live, staged))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed_io("opening", below, e)),
        }
    }

    fn merge(&mut self, below: &[u8], depth: usize) -> Result<()> {
        let Some((live, staged)) = self.pair(below)? else {
            return Err(self.failed_io("opening", below, std::io::ErrorKind::NotFound.into()));
        };
        let new_names = names(staged.as_fd()).map_err(|e| self.failed("listing", below, e))?;
        let old_names = names(live.as_fd()).map_err(|e| self.failed("listing", below, e))?;
        let staged_as = self.attributes_of(below, &staged)?;
        // Undone last: its time changes with what is put back into it.
        let (before, mode) = self.attributes_of(below, &live)?;
        self.done.push(Done::Attributes(below.to_vec(), mode, before));
        let is_other = |n: &&Vec<u8>| !n.starts_with(STAGING.as_bytes()) && new_names.binary_search(*n).is_err();
        self.others += old_names.iter().filter(is_other).count() as u64;
        for name in &new_names {
            let path = join(below, name);
            let Some(new) = self.stat(self.staged, &path)? else { continue };
            match self.stat(self.live, &path)? {
                None => {
                    self.rename(&path, true).map_err(|e| self.failed_io("putting in place", &path, e))?;
                    self.done.push(Done::Moved(path));
                }
                Some(old) if is_directory(&new) && is_directory(&old) && depth < DEPTH_MAX => {
                    self.merge(&path, depth + 1)?;
                }
                Some(old) => {
                    self.exchange(&path).map_err(|e| self.failed_io("putting in place", &path, e))?;
                    self.replaced += 1;
                    self.directories_replaced += u64::from(is_directory(&old));
                    self.done.push(Done::Exchanged(path));
                }
            }
        }
        // What is above the roots, or holds a root that is a file, is none of the backup's.
        if below.is_empty() && !self.with_top { Ok(()) } else { self.take_over(below, staged_as) }
    }

    /// Before anything is moved: its time goes with that.
    fn attributes_of(&self, below: &[u8], dir: &File) -> Result<(Attributes, u32)> {
        use std::os::unix::fs::MetadataExt;
        let meta = dir.metadata().map_err(|e| self.failed_io("looking at", below, e))?;
        Ok((of_open(dir, &meta, self.owners).0, meta.mode() & 0o7777))
    }

    /// A directory that is there takes over what the backup says of it.
    fn take_over(&mut self, below: &[u8], (attributes, mode): (Attributes, u32)) -> Result<()> {
        let live = open_dir(self.live, below).map_err(|e| self.failed_io("opening", below, e))?;
        let applied = apply_to_open(&live, mode, &attributes, self.owners, &mut self.not);
        applied.map_err(|e| self.failed_io("setting the attributes of", below, e))
    }

    fn stat(&self, top: &File, below: &[u8]) -> Result<Option<Stat>> {
        let (dir, name) = match parent(top, below) {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.failed_io("opening the directory of", below, e)),
        };
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("looking at", below, e)),
        }
    }

    fn rename(&self, below: &[u8], forward: bool) -> std::io::Result<()> {
        let (from, to) = if forward { (self.staged, self.live) } else { (self.live, self.staged) };
        let ((from, name), (to, _)) = (parent(from, below)?, parent(to, below)?);
        match rustix::fs::renameat_with(&from, name, &to, name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(rustix::fs::renameat(&from, name, &to, name)?),
            other => Ok(other?),
        }
    }

    /// Its own opposite.
    fn exchange(&self, below: &[u8]) -> std::io::Result<()> {
        let ((live, name), (staged, _)) = (parent(self.live, below)?, parent(self.staged, below)?);
        match rustix::fs::renameat_with(&staged, name, &live, name, RenameFlags::EXCHANGE) {
            // File systems that cannot: in three steps.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                let aside: &[u8] = b".pgark-aside";
                rustix::fs::renameat(&live, name, self.staged, aside)?;
                if let Err(e) = rustix::fs::renameat(&staged, name, &live, name) {
                    rustix::fs::renameat(self.staged, aside, &live, name)?;
                    return Err(e.into());
                }
                Ok(rustix::fs::renameat(self.staged, aside, &staged, name)?)
            }
            other => Ok(other?),
        }
    }

    fn failed(&self, what: &'static str, below: &[u8], e: Errno) -> EngineError {
        self.failed_io(what, below, e.into())
    }

    fn failed_io(&self, what: &'static str, below: &[u8], e: std::io::Error) -> EngineError {
        let path = if below.is_empty() { self.path.to_owned() } else { self.path.join(show(below)) };
        EngineError::file(what, path, e)
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub fn open_dir(top: &File, below: &[u8]) -> std::io::Result<File> {
    let path = if below.is_empty() { b".".as_slice() } else { below };
    Ok(File::from(open_beneath(top.as_fd(), path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?))
}

/// The directory that holds it, and its name there.
fn parent<'p>(top: &File, below: &'p [u8]) -> std::io::Result<(File, &'p [u8])> {
    match below.iter().rposition(|b| *b == b'/') {
        Some(cut) => {
            Ok((open_dir(top, below.get(..cut).unwrap_or_default())?, below.get(cut + 1..).unwrap_or_default()))
        }
        None => Ok((open_dir(top, b"")?, below)),
    }
}

/// Removes something with all that is in it; follows no link.
pub fn remove_tree(at: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        // Without the right to read it, its owner can give itself that.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(at, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(at, name, flags, Mode::empty())?
        }
        other => other?,
    };
    // What was restored into it may have no right to write.
    let _not_ours = rustix::fs::fchmod(&dir, Mode::RWXU);
    for entry in names(dir.as_fd())? {
        remove_tree(dir.as_fd(), &entry)?;
    }
    rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// A new directory for the owner alone.
pub fn make_staging(at: &File, name: &str, path: &Path) -> Result<File> {
    let shown: PathBuf = path.join(name);
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            return Err(EngineError::refused(
                "E-FILES-REMAINS",
                format!("{} is there: an earlier restore was interrupted, or one is running", shown.display()),
                "it may hold the only copy of files that were replaced, beside restored ones that were not yet put in place: move it away, do not remove it, and try again",
            ));
        }
        Err(e) => return Err(EngineError::file("creating the directory", shown, e)),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(at, name, flags, Mode::empty());
    Ok(File::from(dir.map_err(|e| EngineError::file("opening", shown, e))?))
}
