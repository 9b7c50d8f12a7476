//! What was written beside goes in its place, name by name: each is exchanged with what is there, so that no name is ever
//! missing, and exchanged back when anything fails. What is there and not in the backup stays.
//!
//! Invariant: the steps are known before the first is done, and whether one was done can be seen by what has its name.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use pgark_repo::manifest::Attributes;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
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
/// What an undone restore had put in place.
pub const UNDONE: &str = ".pgark-undone-";
const DEPTH_MAX: usize = 700;
/// Where something waits during an exchange in three steps.
const ASIDE: &[u8] = b".pgark-aside";

/// A directory of the live tree, and beside it the directory whose entries go into it.
pub struct Placing<'a> {
    pub live: &'a File,
    pub staged: &'a File,
    /// For errors.
    pub path: &'a Path,
    pub owners: &'a Owners,
    /// Whether the directory itself is part of the backup.
    pub with_top: bool,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    pub not: NotApplied,
    /// Names of the live tree that the backup does not have.
    pub others: u64,
    /// Names that were there and were exchanged, and those of them that were directories.
    pub replaced: u64,
    pub directories_replaced: u64,
    /// Whether something could not be put back: what was there is in the staging.
    pub stuck: bool,
}

/// What one step does, and what it takes to find out later whether it was done. Paths are those below the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// What follows goes into this directory, which is there; with what it has before.
    Enter {
        path: Vec<u8>,
        mode: u32,
        before: Attributes,
    },
    /// Nothing of this name is there; by the number that the new one has on its file system.
    Move {
        path: Vec<u8>,
        new: u64,
    },
    Exchange {
        path: Vec<u8>,
        new: u64,
        directory: bool,
    },
    /// The directory takes over what the backup says of it.
    Leave {
        path: Vec<u8>,
        mode: u32,
        attributes: Attributes,
    },
}

impl Step {
    fn path(&self) -> &[u8] {
        match self {
            Step::Enter { path, .. }
            | Step::Move { path, .. }
            | Step::Exchange { path, .. }
            | Step::Leave { path, .. } => path,
        }
    }
}

impl<'a> Placing<'a> {
    pub fn new(live: &'a File, staged: &'a File, path: &'a Path, owners: &'a Owners, with_top: bool) -> Self {
        Placing {
            live,
            staged,
            path,
            owners,
            with_top,
            steps: vec![],
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

    /// Looks at both sides and changes nothing.
    pub fn plan(&mut self) -> Result<()> {
        self.plan_dir(b"", 0)
    }

    /// Puts everything in place, or leaves everything as it was.
    pub fn place(&mut self) -> Result<()> {
        let steps = std::mem::take(&mut self.steps);
        let done = steps.iter().try_for_each(|step| self.step(step));
        self.steps = steps;
        done.map_err(|e| self.undo(e))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Enter { .. } => Ok(()),
            Step::Move { path, .. } => self.rename(path, true).map_err(|e| self.failed_io("putting in place", path, e)),
            Step::Exchange { path, directory, .. } => {
                self.exchange(path).map_err(|e| self.failed_io("putting in place", path, e))?;
                self.replaced += 1;
                self.directories_replaced += u64::from(*directory);
                Ok(())
            }
            Step::Leave { path, mode, attributes } => {
                let live = open_dir(self.live, path).map_err(|e| self.failed_io("opening", path, e))?;
                let applied = apply_to_open(&live, *mode, attributes, self.owners, &mut self.not);
                applied.map_err(|e| self.failed_io("setting the attributes of", path, e))
            }
        }
    }

    /// Everything that was done, backwards. Returns the error with what could not be undone.
    pub fn undo(&mut self, because: EngineError) -> EngineError {
        match self.put_back() {
            Ok(_) => because,
            Err((path, e)) => EngineError::failed(
                because.code(),
                format!("{because}; and {} could not be put back: {e}", path.display()),
                format!("what was replaced is in {}<id>, below {}", STAGING, self.path.display()),
            ),
        }
    }

    /// Undoes every step that was done, whoever did it; one that was not is passed over. Returns how many names went back.
    ///
    /// # Errors
    /// The path that could not be put back; `stuck` is set then.
    pub fn put_back(&mut self) -> std::result::Result<u64, (PathBuf, std::io::Error)> {
        let mut names = 0;
        for step in self.steps.iter().rev() {
            let undone = match step {
                Step::Leave { .. } => Ok(false),
                Step::Enter { path, mode, before } => {
                    let mut not = NotApplied::default();
                    let dir = open_dir(self.live, path);
                    dir.and_then(|dir| apply_to_open(&dir, *mode, before, self.owners, &mut not)).map(|()| false)
                }
                Step::Move { path, new } => self.take_back(path, *new),
                Step::Exchange { path, new, .. } => self.exchange_back(path, *new),
            };
            match undone {
                Ok(done) => names += u64::from(done),
                Err(e) => {
                    self.stuck = true;
                    return Err((self.path.join(show(step.path())), e));
                }
            }
        }
        Ok(names)
    }

    /// Whether any step was done.
    pub fn is_begun(&self) -> std::io::Result<bool> {
        for step in &self.steps {
            if let Step::Move { path, new } | Step::Exchange { path, new, .. } = step
                && self.number(self.staged, path)? != Some(*new)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take_back(&self, path: &[u8], new: u64) -> std::io::Result<bool> {
        match (self.number(self.live, path)?, self.number(self.staged, path)?) {
            (Some(live), None) if live == new => self.rename(path, false).map(|()| true),
            (None, Some(staged)) if staged == new => Ok(false),
            _ => Err(somebody_else()),
        }
    }

    /// Also out of the midst of an exchange in three steps.
    fn exchange_back(&self, path: &[u8], new: u64) -> std::io::Result<bool> {
        let aside = self.number(self.staged, ASIDE)?;
        let ((live, name), (staged, _)) = (parent(self.live, path)?, parent(self.staged, path)?);
        let rename =
            |from: &File, name: &[u8], to: &File, as_name: &[u8]| Ok(rustix::fs::renameat(from, name, to, as_name)?);
        match (self.number(self.live, path)?, self.number(self.staged, path)?, aside) {
            (Some(l), Some(_), _) if l == new => self.exchange(path).map(|()| true),
            (Some(l), None, Some(_)) if l == new => {
                rename(&live, name, &staged, name)?;
                rename(self.staged, ASIDE, &live, name).map(|()| true)
            }
            (None, Some(s), Some(_)) if s == new => rename(self.staged, ASIDE, &live, name).map(|()| true),
            (None, Some(_), Some(a)) if a == new => {
                rename(&staged, name, &live, name)?;
                rename(self.staged, ASIDE, &staged, name).map(|()| true)
            }
            (Some(_), None, Some(a)) if a == new => rename(self.staged, ASIDE, &staged, name).map(|()| true),
            (Some(_), Some(s), _) if s == new => Ok(false),
            _ => Err(somebody_else()),
        }
    }

    /// By which a file system knows what has this name.
    fn number(&self, top: &File, below: &[u8]) -> std::io::Result<Option<u64>> {
        let (dir, name) = match parent(top, below) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_ino)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
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

    fn plan_dir(&mut self, below: &[u8], depth: usize) -> Result<()> {
        let Some((live, staged)) = self.pair(below)? else {
            return Err(self.failed_io("opening", below, std::io::ErrorKind::NotFound.into()));
        };
        let new_names = names(staged.as_fd()).map_err(|e| self.failed("listing", below, e))?;
        let old_names = names(live.as_fd()).map_err(|e| self.failed("listing", below, e))?;
        let (attributes, as_mode) = self.attributes_of(below, &staged)?;
        // Undone last: its time changes with what is put back into it.
        let (before, mode) = self.attributes_of(below, &live)?;
        self.steps.push(Step::Enter { path: below.to_vec(), mode, before });
        let is_other = |n: &&Vec<u8>| !n.starts_with(STAGING.as_bytes()) && new_names.binary_search(*n).is_err();
        self.others += old_names.iter().filter(is_other).count() as u64;
        for name in &new_names {
            let path = join(below, name);
            let Some(new) = self.stat(self.staged, &path)? else { continue };
            match self.stat(self.live, &path)? {
                None => self.steps.push(Step::Move { path, new: new.st_ino }),
                Some(old) if is_directory(&new) && is_directory(&old) && depth < DEPTH_MAX => {
                    self.plan_dir(&path, depth + 1)?;
                }
                Some(old) => {
                    self.steps.push(Step::Exchange { path, new: new.st_ino, directory: is_directory(&old) });
                }
            }
        }
        // What is above the roots, or holds a root that is a file, is none of the backup's.
        if !below.is_empty() || self.with_top {
            self.steps.push(Step::Leave { path: below.to_vec(), mode: as_mode, attributes });
        }
        Ok(())
    }

    /// Before anything is moved: its time goes with that.
    fn attributes_of(&self, below: &[u8], dir: &File) -> Result<(Attributes, u32)> {
        use std::os::unix::fs::MetadataExt;
        let meta = dir.metadata().map_err(|e| self.failed_io("looking at", below, e))?;
        Ok((of_open(dir, &meta, self.owners).0, meta.mode() & 0o7777))
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
                rustix::fs::renameat(&live, name, self.staged, ASIDE)?;
                if let Err(e) = rustix::fs::renameat(&staged, name, &live, name) {
                    rustix::fs::renameat(self.staged, ASIDE, &live, name)?;
                    return Err(e.into());
                }
                Ok(rustix::fs::renameat(self.staged, ASIDE, &staged, name)?)
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

fn somebody_else() -> std::io::Error {
    std::io::Error::other("it is neither what was there before nor what was restored: somebody else changed it")
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

/// A new directory for the owner alone, which nobody else works with while it is open.
pub fn make_staging(at: &File, name: &str, path: &Path) -> Result<File> {
    let shown: PathBuf = path.join(name);
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => open_staging(at, name, path),
        Err(Errno::EXIST) => {
            open_staging(at, name, path)?;
            Err(EngineError::refused(
                "E-FILES-REMAINS",
                format!("{} is there: an earlier restore was interrupted", shown.display()),
                format!(
                    "it may hold the only copy of files that were replaced: do not remove it; 'pgark restore --kind files --undo {}' puts everything back as it was",
                    shown.display()
                ),
            ))
        }
        Err(e) => Err(EngineError::file("creating the directory", shown, e)),
    }
}

pub fn open_staging(at: &File, name: &str, path: &Path) -> Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let shown = path.join(name);
    let dir = rustix::fs::openat(at, name, flags, Mode::empty());
    let dir = File::from(dir.map_err(|e| EngineError::file("opening", &shown, e))?);
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(EngineError::refused(
            "E-FILES-BUSY",
            format!("a restore is at work in {}", shown.display()),
            "wait until it has ended",
        )),
        // Not every file system has locks.
        Ok(()) | Err(Errno::NOSYS | Errno::NOTSUP | Errno::INVAL | Errno::NOLCK) => Ok(dir),
        Err(e) => Err(EngineError::file("locking", &shown, e)),
    }
}
