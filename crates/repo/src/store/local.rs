//! A store in a directory of a file system: one file per object, mode 0600, in directories of mode 0700.
//!
//! Invariant: a file under an object's name is complete and was fsynced before it got that name; it never
//! changes. Names starting with a dot are not objects: `.tmp-…` are files being written.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use self::root::{Root, Sys, file_type, fsync_dir};
use self::writer::{LocalWriter, TEMP_PREFIX};
use super::name::{below, check_prefix};
use super::{Capability, ObjectName, ObjectStat, ObjectWriter, Space, Store, StoreError, Visit};

mod root;
#[cfg(test)]
mod tests;
mod writer;

pub struct LocalStore {
    root: Arc<Root>,
}

impl LocalStore {
    /// The store in an existing directory, given by its absolute path. `NotFound` when there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = absolute(path.as_ref())?;
        let root = Root::open(path).map_err(|e| read_error("open", path.display(), e))?;
        Ok(LocalStore { root: Arc::new(root) })
    }

    /// Makes the directory, and those above it, where they are missing; durably.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = absolute(path.as_ref())?;
        let missing = path.ancestors().take_while(|dir| !dir.exists()).collect::<Vec<_>>();
        for dir in missing.iter().rev() {
            make_root_dir(dir).map_err(|e| path_error("create", dir, e))?;
        }
        // Another process may have made it a moment ago; a directory we cannot open, we have not made.
        match path.parent().map(sync_dir) {
            Some(Err(e)) if !missing.is_empty() || e.kind() != io::ErrorKind::PermissionDenied => {
                return Err(path_error("fsync directory of", path, e));
            }
            _ => {}
        }
        Self::open(path)
    }

    /// Opens an object's file and says how long it is. A directory is no object, a link is not followed.
    fn open_object(&self, name: &ObjectName) -> Result<(OwnedFd, u64), StoreError> {
        // Without O_NONBLOCK somebody's FIFO would stop us here.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.root.open_at(name.as_str(), flags).map_err(|e| read_error("open", name, e))?;
        let stat = fs::fstat(&file).map_err(|e| system_error("stat", name, e))?;
        Ok((file, object_stat(name, &stat)?.size))
    }

    fn read_once(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        let (file, size) = self.open_object(name)?;
        if size > max {
            return Err(StoreError::TooLarge { object: name.to_string(), size, max });
        }
        let no_memory = || StoreError::io("read", name, io::ErrorKind::OutOfMemory.into());
        let len = usize::try_from(size).map_err(|_| no_memory())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| no_memory())?;
        bytes.resize(len, 0);
        read_exact(&file, name, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_at_once(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let (file, size) = self.open_object(name)?;
        let wanted = offset.saturating_add(buf.len() as u64);
        if wanted > size {
            return Err(StoreError::Truncated { object: name.to_string(), size, wanted });
        }
        read_exact(&file, name, offset, buf)
    }

    fn parent_dir(&self, name: &ObjectName) -> Result<OwnedFd, StoreError> {
        self.root.dir(name.parent()).map_err(|e| read_error("open directory of", name, e))
    }

    /// `strange` is the first thing that is no object; everything else is visited.
    fn list_below(
        &self,
        prefix: &str,
        visit: &mut Visit<'_>,
        strange: &mut Option<StoreError>,
    ) -> Result<(), StoreError> {
        let Some((dir, entries)) = self.entries(prefix)? else { return Ok(()) };
        let mut objects = vec![];
        for entry in entries {
            objects.push((below(prefix, &entry.name)?, entry.kind));
        }
        // A directory sorts as its objects do: by the slash that follows.
        objects.sort_by(|(a, ak), (b, bk)| sort_key(a, *ak).cmp(sort_key(b, *bk)));
        for (name, kind) in objects {
            if kind == FileType::Directory {
                self.list_below(name.as_str(), visit, strange)?;
                continue;
            }
            match fs::statat(&dir, name.basename(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {} // deleted since we read the directory
                Err(e) => return Err(system_error("stat", name, e)),
                Ok(stat) => match object_stat(&name, &stat) {
                    Err(e @ StoreError::Strange { .. }) => drop(strange.get_or_insert(e)),
                    plain => visit(plain?)?,
                },
            }
        }
        Ok(())
    }

    /// What a directory holds, apart from dotted names; None when there is no such directory.
    fn entries(&self, prefix: &str) -> Result<Option<(OwnedFd, Vec<Entry>)>, StoreError> {
        again_when_stale(|| self.entries_once(prefix))
    }

    fn entries_once(&self, prefix: &str) -> Result<Option<(OwnedFd, Vec<Entry>)>, StoreError> {
        let failed = |e| system_error("list", shown(prefix), e);
        let dir = match self.root.dir(prefix) {
            // An object of that name is no directory.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut entries = vec![];
        for entry in fs::Dir::read_from(&dir).map_err(failed)? {
            let entry = match entry {
                Err(Errno::NOENT) => return Ok(None), // removed while we read it, so it was empty
                other => other.map_err(failed)?,
            };
            if entry.file_name().to_bytes().starts_with(b".") {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(kind) = entry_kind(&dir, &entry).map_err(failed)? {
                entries.push(Entry { name, kind });
            }
        }
        Ok(Some((dir, entries)))
    }

    fn sweep_below(&self, prefix: &str, older_than: Duration) -> Result<u64, StoreError> {
        let Some((dir, entries)) = self.entries(prefix)? else { return Ok(0) };
        let mut swept = sweep_dir(&dir, older_than).map_err(|e| system_error("sweep", shown(prefix), e))?;
        for entry in entries.iter().filter(|e| e.kind == FileType::Directory) {
            swept += self.sweep_below(below(prefix, &entry.name)?.as_str(), older_than)?;
        }
        if swept > 0 {
            self.root.prune(prefix).map_err(|e| system_error("sweep", shown(prefix), e))?;
        }
        Ok(swept)
    }
}

struct Entry {
    name: String,
    kind: FileType,
}

impl Store for LocalStore {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut writer = self.create(name)?;
        writer.write(bytes)?;
        writer.finish()
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Ok(Box::new(LocalWriter::create(&self.root, name)?))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        again_when_stale(|| self.read_once(name, max))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        again_when_stale(|| self.read_at_once(name, offset, buf))
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        again_when_stale(|| {
            let dir = self.parent_dir(name)?;
            let stat = fs::statat(&dir, name.basename(), AtFlags::SYMLINK_NOFOLLOW);
            object_stat(name, &stat.map_err(|e| read_error("stat", name, e))?)
        })
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        check_prefix(prefix)?;
        let mut strange = None;
        self.list_below(prefix, visit, &mut strange)?;
        strange.map_or(Ok(()), Err)
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix(prefix)?;
        let entries = self.entries(prefix)?.map_or_else(Vec::new, |(_, entries)| entries);
        let mut dirs = vec![];
        for entry in entries {
            let name = below(prefix, &entry.name)?;
            match entry.kind {
                FileType::Directory => dirs.push(entry.name),
                FileType::RegularFile => {}
                // It may be in the place of a directory.
                FileType::Symlink => return Err(StoreError::strange(name, LINK)),
                _ => return Err(StoreError::strange(name, NOT_REGULAR)),
            }
        }
        dirs.sort();
        Ok(dirs)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        match self.stat(name) {
            // It can be removed for what it is.
            Ok(_) | Err(StoreError::Strange { .. }) => {}
            Err(e) => return Err(e),
        }
        let dir = self.parent_dir(name)?;
        fs::unlinkat(&dir, name.basename(), AtFlags::empty()).map_err(|e| read_error("delete", name, e))?;
        fsync_dir(&dir).map_err(|e| system_error("fsync directory of", name, e))?;
        self.root.prune(name.parent()).map_err(|e| system_error("remove directory of", name, e))
    }

    fn discard(&self, name: &ObjectName) -> Result<(), StoreError> {
        let dir = self.parent_dir(name)?;
        fs::unlinkat(&dir, name.basename(), AtFlags::empty()).map_err(|e| read_error("delete", name, e))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.space()?.map(|space| space.free_bytes))
    }

    fn space(&self) -> Result<Option<Space>, StoreError> {
        let root = self.root.dir("").map_err(|e| system_error("open", self.url(), e))?;
        let stat = fs::fstatvfs(&root).map_err(|e| system_error("stat", self.url(), e))?;
        // What is reserved for root counts as neither used nor free, as `df` reckons.
        let usable = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_add(stat.f_bavail);
        Ok(Some(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: Some(usable.saturating_mul(stat.f_frsize)),
            free_files: (stat.f_files > 0).then_some(stat.f_favail),
        }))
    }

    fn url(&self) -> String {
        format!("file://{}", self.root.path().display())
    }

    fn probe(&self) -> Vec<Capability> {
        Capability::of_a_directory()
    }

    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.sweep_below("", older_than)
    }
}

fn sweep_dir(dir: &OwnedFd, older_than: Duration) -> Sys<u64> {
    let mut swept = 0;
    for entry in fs::Dir::read_from(dir)? {
        let entry = match entry {
            Err(Errno::NOENT) => break,
            other => other?,
        };
        if entry.file_name().to_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            match sweep_temp(dir, entry.file_name(), older_than) {
                Ok(true) => swept += 1,
                Ok(false) | Err(Errno::NOENT) => {} // in use, or its writer has removed it
                Err(e) => return Err(e),
            }
        }
    }
    Ok(swept)
}

/// Removes a temporary file unless it is young, its writer holds it, or it is not a file at all.
fn sweep_temp(dir: &OwnedFd, temp: &std::ffi::CStr, older_than: Duration) -> Sys<bool> {
    let stat = fs::statat(dir, temp, AtFlags::SYMLINK_NOFOLLOW)?;
    // A file from the future has no age: it stays until the clock has passed it.
    let age = modified(&stat).and_then(|then| SystemTime::now().duration_since(then).ok());
    if file_type(&stat) != FileType::RegularFile || age.is_none_or(|age| age < older_than) {
        return Ok(false);
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::openat(dir, temp, flags, Mode::empty())?;
    if fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Ok(false);
    }
    fs::unlinkat(dir, temp, AtFlags::empty())?;
    Ok(true)
}

/// What an entry is, without following it; None when it is gone.
fn entry_kind(dir: &OwnedFd, entry: &fs::DirEntry) -> Sys<Option<FileType>> {
    match entry.file_type() {
        FileType::Unknown => match fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            stat => Ok(Some(file_type(&stat?))),
        },
        known => Ok(Some(known)),
    }
}

fn sort_key(name: &ObjectName, kind: FileType) -> impl Iterator<Item = u8> {
    let slash = if kind == FileType::Directory { "/" } else { "" };
    name.as_str().bytes().chain(slash.bytes())
}

const LINK: &str = "a symbolic link is in the way; links are not followed";
const NOT_REGULAR: &str = "not a regular file";

fn object_stat(name: &ObjectName, stat: &fs::Stat) -> Result<ObjectStat, StoreError> {
    match file_type(stat) {
        FileType::RegularFile => {
            let no_size = |_| StoreError::io("stat", name, io::Error::other("negative size"));
            let size = u64::try_from(stat.st_size).map_err(no_size)?;
            Ok(ObjectStat { name: name.clone(), size, modified: modified(stat) })
        }
        FileType::Directory => Err(StoreError::not_found(name)),
        FileType::Symlink => Err(StoreError::strange(name, LINK)),
        _ => Err(StoreError::strange(name, NOT_REGULAR)),
    }
}

fn modified(stat: &fs::Stat) -> Option<SystemTime> {
    let seconds = u64::try_from(stat.st_mtime).ok()?;
    let nanos = u32::try_from(stat.st_mtime_nsec).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// A network file system says `ESTALE` of what another host has removed or replaced since it was opened. Opened again, it is there or
/// it is not.
fn again_when_stale<T>(mut read: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let is_stale = |e: &StoreError| match e {
        StoreError::Io { source, .. } => Errno::from_io_error(source) == Some(Errno::STALE),
        _ => false,
    };
    match read() {
        Err(e) if is_stale(&e) => read(),
        other => other,
    }
}

/// The caller has seen that the file is long enough; if it no longer is, somebody cut it.
fn read_exact(file: &OwnedFd, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
    let wanted = offset.saturating_add(buf.len() as u64);
    let (mut at, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let n = match rustix::io::pread(file, &mut *rest, at) {
            Err(Errno::INTR) => continue,
            other => other.map_err(|e| system_error("read", name, e))?,
        };
        if n == 0 {
            return Err(StoreError::Truncated { object: name.to_string(), size: at, wanted });
        }
        at += n as u64;
        rest = rest.split_at_mut(n).1;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<&Path, StoreError> {
    if path.is_absolute() {
        return Ok(path);
    }
    let why = io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path");
    Err(StoreError::io("open", path.display(), why))
}

fn make_root_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    dir.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = fs::open(dir, root::DIR_FLAGS, Mode::empty())?;
    Ok(fsync_dir(&dir)?)
}

fn shown(prefix: &str) -> &str {
    if prefix.is_empty() { "the store" } else { prefix }
}

fn path_error(operation: &'static str, path: &Path, e: io::Error) -> StoreError {
    match Errno::from_io_error(&e) {
        Some(errno) => system_error(operation, path.display(), errno),
        None => StoreError::io(operation, path.display(), e),
    }
}

/// What the system said about an object that should be there.
fn read_error(operation: &'static str, object: impl ToString, e: Errno) -> StoreError {
    match e {
        // ENOTDIR: an object lies where a directory would have to be.
        Errno::NOENT | Errno::NOTDIR => StoreError::not_found(object),
        Errno::LOOP => StoreError::strange(object, LINK),
        // A socket cannot be opened.
        Errno::NXIO => StoreError::strange(object, NOT_REGULAR),
        _ => system_error(operation, object, e),
    }
}

fn system_error(operation: &'static str, object: impl ToString, e: Errno) -> StoreError {
    let (object, source) = (object.to_string(), io::Error::from(e));
    match e {
        Errno::NOSPC | Errno::DQUOT => StoreError::NoSpace { object, source },
        Errno::ACCESS | Errno::PERM => StoreError::Denied { object, source },
        Errno::ROFS => StoreError::ReadOnly,
        _ => StoreError::Io { operation, object, source },
    }
}
