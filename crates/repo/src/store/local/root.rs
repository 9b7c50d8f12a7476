//! The directory a local store lives in. Everything below it is reached from one open directory without ever
//! following a symbolic link, so that whoever can plant names in the store cannot lead us out of it.
//!
//! Invariant: a directory returned by `make_dir` is entered durably in its parent, and that one in its own, up
//! to the root, no matter who made them. A file in it proves that, since files are made only in such directories.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

pub(super) type Sys<T> = rustix::io::Result<T>;

pub(super) const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const DIR_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// How often a directory that vanishes under us is made again, or an interrupted look-up repeated.
const ATTEMPTS: u32 = 100;
/// Directories remembered as durable before we start over: bounds memory, not correctness.
const DURABLE_DIRS_MAX: usize = 4096;

pub(super) struct Root {
    fd: OwnedFd,
    path: PathBuf,
    lookup: Lookup,
    /// Whose everything becomes that root makes here: it belongs to whoever the directory belongs to.
    owner: Option<(fs::Uid, fs::Gid)>,
    /// Directories whose entry in every parent we have seen fsynced.
    durable_dirs: Mutex<HashMap<String, DirIdentity>>,
    /// Cleared when the file system turns out to have no hard links.
    hard_links: AtomicBool,
}

/// Who keeps a path from leading out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The kernel, by `openat2`.
    Kernel,
    /// We, one part at a time: for kernels and sandboxes that refuse `openat2`.
    Parts,
}

/// Tells a directory from one that was removed and made again under the same name and inode number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct DirIdentity {
    device: (u32, u32),
    inode: u64,
    born: (i64, u32),
}

impl Root {
    pub(super) fn open(path: &Path) -> Sys<Self> {
        let fd = fs::open(path, DIR_FLAGS, Mode::empty())?;
        let lookup = match fs::openat2(&fd, ".", DIR_FLAGS, Mode::empty(), beneath()) {
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => Lookup::Parts,
            _ => Lookup::Kernel,
        };
        let owner = owner_for_root(&fd)?;
        let (durable_dirs, hard_links) = (Mutex::default(), AtomicBool::new(true));
        Ok(Root { fd, path: path.to_owned(), lookup, owner, durable_dirs, hard_links })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(test)]
    pub(super) fn set_lookup(&mut self, lookup: Lookup) {
        self.lookup = lookup;
    }

    #[cfg(test)]
    pub(super) fn knows_durable(&self, relative: &str) -> bool {
        self.dir(relative).is_ok_and(|dir| self.known_durable(relative, &dir))
    }

    pub(super) fn hard_links(&self) -> bool {
        self.hard_links.load(Ordering::Relaxed)
    }

    pub(super) fn without_hard_links(&self) {
        self.hard_links.store(false, Ordering::Relaxed);
    }

    /// Opens an existing file or directory; `""` is the root. A symbolic link anywhere is `ELOOP`.
    pub(super) fn open_at(&self, relative: &str, flags: OFlags) -> Sys<OwnedFd> {
        let relative = if relative.is_empty() { "." } else { relative };
        match self.lookup {
            Lookup::Kernel => open_by_kernel(&self.fd, relative, flags | OFlags::CLOEXEC),
            Lookup::Parts => open_by_parts(&self.fd, relative, flags),
        }
    }

    pub(super) fn dir(&self, relative: &str) -> Sys<OwnedFd> {
        self.open_at(relative, DIR_FLAGS)
    }

    /// A new file of ours in a durable directory. Retries when `prune` removes the directory in between.
    pub(super) fn create_file(&self, dir: &str, file: &str) -> Sys<(OwnedFd, OwnedFd)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || {
            let dir = self.make_dir(dir)?;
            let file = fs::openat(&dir, file, flags, FILE_MODE)?;
            if Mode::from_raw_mode(fs::fstat(&file)?.st_mode) != FILE_MODE {
                mode_set(fs::fchmod(&file, FILE_MODE))?; // the umask has taken away more than we can bear
            }
            self.give(&file)?;
            Ok((dir, file))
        };
        // On NFS another host may have removed it.
        let vanished = |e: &Sys<_>| matches!(e, Err(Errno::NOENT | Errno::STALE));
        (1..ATTEMPTS).map(|_| create()).find(|made| !vanished(made)).unwrap_or_else(create)
    }

    fn make_dir(&self, relative: &str) -> Sys<OwnedFd> {
        match self.dir(relative) {
            Ok(dir) if relative.is_empty() || self.known_durable(relative, &dir) => return Ok(dir),
            Ok(dir) if holds_file(&dir)? => {
                self.remember_durable(relative, &dir);
                return Ok(dir);
            }
            // Another writer may have made it and not have come to its fsync.
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let mut dir = self.dir("")?;
        for part in relative.split('/') {
            match fs::mkdirat(&dir, part, DIR_MODE) {
                Ok(()) => mode_set(fs::chmodat(&dir, part, DIR_MODE, AtFlags::empty()))?,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            let child = open_part(dir.as_fd(), part, DIR_FLAGS)?;
            self.give(&child)?;
            fsync_dir(&dir)?;
            dir = child;
        }
        self.remember_durable(relative, &dir);
        Ok(dir)
    }

    /// What root has made is its owner's.
    fn give(&self, made: &OwnedFd) -> Sys<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        if fs::fstat(made)?.st_uid != 0 {
            return Ok(());
        }
        mode_set(fs::fchown(made, Some(uid), Some(gid)))
    }

    /// Removes directories that became empty, from `relative` up to but not including the root. Some of them may
    /// be gone, or never have been made.
    pub(super) fn prune(&self, relative: &str) -> Sys<()> {
        let mut rest = relative;
        while !rest.is_empty() {
            let (above, last) = rest.rsplit_once('/').unwrap_or(("", rest));
            match self.remove_empty_dir(above, last) {
                Ok(()) | Err(Errno::NOENT) => rest = above,
                // In use again, or a mount point.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn remove_empty_dir(&self, parent: &str, name: &str) -> Sys<()> {
        let parent = self.dir(parent)?;
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
        fsync_dir(&parent)
    }

    fn known_durable(&self, relative: &str, dir: &OwnedFd) -> bool {
        let identity = identity(dir);
        identity.is_some() && self.durable_dirs().get(relative).copied() == identity
    }

    fn remember_durable(&self, relative: &str, dir: &OwnedFd) {
        if let Some(identity) = identity(dir) {
            let mut known = self.durable_dirs();
            if known.len() >= DURABLE_DIRS_MAX {
                known.clear();
            }
            known.insert(relative.to_owned(), identity);
        }
    }

    fn durable_dirs(&self) -> MutexGuard<'_, HashMap<String, DirIdentity>> {
        self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever has made a file here has entered the directory durably before: `create_file` begins with that.
fn holds_file(dir: &OwnedFd) -> Sys<bool> {
    for entry in fs::Dir::read_from(dir)? {
        match entry {
            Ok(entry) if entry.file_type() == FileType::RegularFile => return Ok(true),
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(false), // removed while we read it
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

fn open_by_kernel(root: &OwnedFd, relative: &str, flags: OFlags) -> Sys<OwnedFd> {
    let open = || fs::openat2(root, relative, flags, Mode::empty(), beneath());
    // EAGAIN: something was renamed while the kernel walked, and it cannot vouch for the result.
    let settled = |r: &Sys<_>| !matches!(r, Err(Errno::AGAIN | Errno::INTR));
    (1..ATTEMPTS).map(|_| open()).find(settled).unwrap_or_else(open)
}

fn open_by_parts(root: &OwnedFd, relative: &str, flags: OFlags) -> Sys<OwnedFd> {
    let Some((parents, last)) = relative.rsplit_once('/') else {
        return open_part(root.as_fd(), relative, flags);
    };
    let mut dir = open_part(root.as_fd(), ".", DIR_FLAGS)?;
    for part in parents.split('/') {
        dir = open_part(dir.as_fd(), part, DIR_FLAGS)?;
    }
    open_part(dir.as_fd(), last, flags)
}

fn open_part(dir: std::os::fd::BorrowedFd<'_>, part: &str, flags: OFlags) -> Sys<OwnedFd> {
    match fs::openat(dir, part, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        // Of a symbolic link the kernel says that it is no directory, which would read as "nothing there".
        Err(Errno::NOTDIR) => match file_type(&fs::statat(dir, part, AtFlags::SYMLINK_NOFOLLOW)?) {
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NOTDIR),
        },
        other => other,
    }
}

/// Whom the store belongs to, when we are root and it is not root's.
fn owner_for_root(dir: &OwnedFd) -> Sys<Option<(fs::Uid, fs::Gid)>> {
    let stat = fs::fstat(dir)?;
    let gives = rustix::process::geteuid().is_root() && stat.st_uid != 0;
    Ok(gives.then(|| (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid))))
}

/// It is ours, so a refusal means that the file system keeps no modes; then the mount decides who may read.
fn mode_set(result: Sys<()>) -> Sys<()> {
    match result {
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

pub(super) fn file_type(stat: &fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Never called again for the same change after an error: the kernel may report a lost write only once.
pub(super) fn fsync_dir(dir: &OwnedFd) -> Sys<()> {
    match fs::fsync(dir) {
        // Some network file systems have no fsync for directories (PostgreSQL's fsync_fname agrees).
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

fn identity(dir: &OwnedFd) -> Option<DirIdentity> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = fs::statx(dir, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted).then_some(DirIdentity {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
    })
}
