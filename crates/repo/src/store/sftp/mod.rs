//! A store in a directory of an SFTP server, reached through the system's ssh client: one file per object, mode 0600,
//! in directories of mode 0700; the layout is that of a local store.
//!
//! Invariant: a file under an object's name is complete and was synced on the server before it got that name; it
//! never changes. A server that cannot sync a file, or cannot give a name without replacing what has it, is refused.
//! What is lost when a server cannot sync directories is told by `weaknesses`.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use self::failure::Fail;
pub use self::failure::SftpFailure;
use self::files::{OpenFile, OpenFiles};
pub use self::options::{SftpOptions, SftpPlace};
use self::pool::Pool;
use self::session::Session;
use self::tree::{Tree, failed, is_passing, read_failed, shown, strange};
use self::wire::{Attributes, Entry, FileKind, Request, Status, kind};
use self::writer::SftpWriter;
use super::name::{below, check_prefix};
use super::{Capability, ObjectName, ObjectStat, ObjectWriter, Space, Store, StoreError, Visit};

mod connection;
mod failure;
mod files;
mod options;
mod pool;
mod session;
mod ssh;
mod tree;
mod wire;
mod writer;

/// What marks a file as unfinished; object names cannot start with a dot.
const TEMP_PREFIX: &str = ".tmp-";
/// How often an operation that can be repeated is tried again after its connection was lost.
const RETRIES: u32 = 2;

pub struct SftpStore {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    tree: Tree,
    files: OpenFiles,
    /// Temporary files of writers of this process, which a sweep leaves alone.
    living: Mutex<HashSet<String>>,
}

impl SftpStore {
    /// The store in an existing directory of the server. `NotFound` when there is none.
    pub fn open(options: SftpOptions) -> Result<Self, StoreError> {
        SftpStore::start(options, false)
    }

    /// Makes the directory, and those above it, where they are missing.
    pub fn create(options: SftpOptions) -> Result<Self, StoreError> {
        SftpStore::start(options, true)
    }

    fn start(options: SftpOptions, make: bool) -> Result<Self, StoreError> {
        let (path, url, append_only) = (options.path.clone(), options.place().to_owned(), options.append_only);
        let pool = Pool::new(options);
        let session = pool.session(pool.deadline()).map_err(|e| failed("connect to", &url, e.into()))?;
        for extension in ["fsync@openssh.com", "hardlink@openssh.com"] {
            if !session.connection().offers(extension) {
                return Err(failed("open", &url, SftpFailure::lacking(extension).into()));
            }
        }
        if make {
            make_root(&session, &path)?;
        }
        let root = session.realpath(&path).map_err(|fail| read_failed("open", &url, fail))?;
        let attributes = session.lstat(&root).map_err(|fail| read_failed("open", &url, fail))?;
        if attributes.kind() != FileKind::Directory {
            return Err(StoreError::io("open", &url, io::Error::other("not a directory")));
        }
        let syncs_dirs = syncs_dirs(&session, &root).map_err(|fail| failed("open", &url, fail))?;
        if make && syncs_dirs {
            let above: Vec<_> = ancestors(&root).collect();
            // Those that we may not open, we have not made.
            for dir in &above {
                match session.sync_dirs(std::slice::from_ref(dir)) {
                    Err(fail) if !fail.is_status(Status::PERMISSION_DENIED) => {
                        return Err(failed("fsync directory of", dir, fail));
                    }
                    _ => {}
                }
            }
        }
        drop(session);
        let tree = Tree::new(&root, syncs_dirs, append_only);
        let inner = Inner { pool, tree, files: OpenFiles::default(), living: Mutex::default() };
        Ok(SftpStore { inner: Arc::new(inner) })
    }

    fn removed(&self, name: &ObjectName, durably: bool) -> Result<(), StoreError> {
        let inner = &*self.inner;
        inner.files.forget(name);
        let path = inner.tree.path(name.as_str());
        let mut asked = false;
        inner.retry("delete", name, |session| {
            if inner.tree.look(session, name.as_str())?.is_none_or(|found| found.kind() != FileKind::Regular) && !asked
            {
                return Err(StoreError::not_found(name));
            }
            match session.done(&Request::of(kind::REMOVE, &path)) {
                // The answer to an earlier request was lost.
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && asked => {}
                other => {
                    asked = true;
                    other.map_err(|fail| read_failed("delete", name, fail))?;
                }
            }
            if durably {
                inner.tree.sync_removal(session, name)?;
                inner.tree.prune(session, name.parent());
            }
            Ok(())
        })
    }
}

impl Store for SftpStore {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        // The bytes are all here, so what can fail for want of a connection before the name is given is begun anew.
        let mut attempts = 0..RETRIES;
        loop {
            let mut writer = SftpWriter::create(&self.inner, name)?;
            match writer.write(bytes).and_then(|()| Box::new(writer).finish()) {
                Err(e) if is_passing(&e) && attempts.next().is_some() => {}
                other => return other,
            }
        }
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Ok(Box::new(SftpWriter::create(&self.inner, name)?))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.inner.retry("read", name, |session| {
            let file = self.inner.open_file(session, name)?;
            if file.size > max {
                return Err(StoreError::TooLarge { object: name.to_string(), size: file.size, max });
            }
            let no_memory = || StoreError::io("read", name, io::ErrorKind::OutOfMemory.into());
            let len = usize::try_from(file.size).map_err(|_| no_memory())?;
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(len).map_err(|_| no_memory())?;
            bytes.resize(len, 0);
            read_exact(session, &file, 0, &mut bytes)?;
            Ok(bytes)
        })
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let inner = &*self.inner;
        if let Some(file) = inner.files.find(name) {
            // A file can be read only where it was opened.
            match read_exact(&inner.pool.session_on(&file.connection), &file, offset, buf) {
                Err(e) if is_passing(&e) => inner.files.forget(name),
                other => return other,
            }
        }
        inner.retry("read", name, |session| {
            let file = Arc::new(inner.open_file(session, name)?);
            read_exact(session, &file, offset, buf)?;
            inner.files.keep(&file);
            Ok(())
        })
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.inner.retry("stat", name, |session| {
            let found = self.inner.tree.look(session, name.as_str())?;
            object_stat(name, &found.ok_or_else(|| StoreError::not_found(name))?)
        })
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        check_prefix(prefix)?;
        let mut strange = None;
        self.inner.list_below(prefix, visit, &mut strange)?;
        strange.map_or(Ok(()), Err)
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix(prefix)?;
        let entries = self.inner.entries(prefix)?.0;
        let mut dirs = vec![];
        for entry in entries {
            let name = below(prefix, &entry.name)?;
            match entry.attributes.kind() {
                FileKind::Directory => dirs.push(entry.name),
                FileKind::Regular => {}
                // It may be in the place of a directory.
                kind => return Err(StoreError::strange(name, strange(kind))),
            }
        }
        dirs.sort();
        Ok(dirs)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.removed(name, true)
    }

    fn discard(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.removed(name, false)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.space()?.map(|space| space.free_bytes))
    }

    fn space(&self) -> Result<Option<Space>, StoreError> {
        let url = self.inner.pool.options().place();
        let root = self.inner.tree.path("");
        self.inner.retry("stat", url, |session| {
            let space = session.space(&root).map_err(|fail| failed("stat", url, fail))?;
            Ok(space.map(|space| Space {
                free_bytes: space.free_bytes,
                total_bytes: Some(space.total_bytes),
                free_files: (space.files > 0).then_some(space.free_files),
            }))
        })
    }

    fn has_own_clock(&self) -> bool {
        true
    }

    fn url(&self) -> String {
        self.inner.pool.options().url.clone()
    }

    fn probe(&self) -> Vec<Capability> {
        Capability::of_a_directory()
    }

    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError> {
        match self.inner.server_time()? {
            Some(now) => self.inner.sweep_below("", now, older_than),
            None => Ok(0), // without dates nothing has an age
        }
    }

    fn weaknesses(&self) -> Vec<String> {
        if self.inner.tree.syncs_dirs {
            return vec![];
        }
        vec![
            "the SFTP server cannot force directories to its disk: objects stored shortly before a power cut of the \
              server may be missing afterwards"
                .to_owned(),
        ]
    }
}

impl Inner {
    fn retry<T>(
        &self,
        operation: &'static str,
        object: impl ToString,
        run: impl FnMut(&Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.retrying(operation, object, run).map(|(_, value)| value)
    }

    /// Runs what can be repeated, on another connection when one is lost.
    fn retrying<T>(
        &self,
        operation: &'static str,
        object: impl ToString,
        mut run: impl FnMut(&Session) -> Result<T, StoreError>,
    ) -> Result<(Session, T), StoreError> {
        let deadline = self.pool.deadline();
        let mut attempts = 0..RETRIES;
        loop {
            let session = self.pool.session_again(deadline);
            let session = session.map_err(|e| failed(operation, object.to_string(), e.into()))?;
            match run(&session) {
                Ok(value) => return Ok((session, value)),
                Err(e) if is_passing(&e) && attempts.next().is_some() => {
                    tracing::debug!(target: "pgark", "{operation} is tried again: {e}");
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn open_file(&self, session: &Session, name: &ObjectName) -> Result<OpenFile, StoreError> {
        // Before it is opened: a pipe would stop the server.
        let found = self.tree.look(session, name.as_str())?.ok_or_else(|| StoreError::not_found(name))?;
        object_stat(name, &found)?;
        let path = self.tree.path(name.as_str());
        let handle = session.open(&path, wire::READ, None).map_err(|fail| read_failed("open", name, fail))?;
        let connection = Arc::clone(session.connection());
        let mut file = OpenFile { name: name.clone(), connection, handle, size: 0 };
        let stat = session.fstat(&file.handle).map_err(|fail| read_failed("stat", name, fail))?;
        file.size = object_stat(name, &stat)?.size;
        Ok(file)
    }

    /// `strange` is the first thing that is no object; everything else is visited.
    fn list_below(
        &self,
        prefix: &str,
        visit: &mut Visit<'_>,
        strange: &mut Option<StoreError>,
    ) -> Result<(), StoreError> {
        let mut objects = vec![];
        for entry in self.entries(prefix)?.0 {
            objects.push((below(prefix, &entry.name)?, entry.attributes));
        }
        // A directory sorts as its objects do: by the slash that follows.
        objects.sort_by(|(a, aa), (b, ba)| sort_key(a, aa).cmp(sort_key(b, ba)));
        for (name, attributes) in objects {
            match attributes.kind() {
                FileKind::Directory => self.list_below(name.as_str(), visit, strange)?,
                _ => match object_stat(&name, &attributes) {
                    Err(e @ StoreError::Strange { .. }) => drop(strange.get_or_insert(e)),
                    plain => visit(plain?)?,
                },
            }
        }
        Ok(())
    }

    /// What a directory holds, and the temporary files in it. Nothing when there is no such directory.
    fn entries(&self, prefix: &str) -> Result<(Vec<Entry>, Vec<Entry>), StoreError> {
        let object = shown(prefix);
        let path = self.tree.path(prefix);
        let is_dir = |found: Option<Attributes>| found.is_some_and(|found| found.kind() == FileKind::Directory);
        let found = self.retry("list", object, |session| {
            if !is_dir(self.tree.look(session, prefix)?) {
                return Ok(vec![]);
            }
            match session.entries(&path) {
                // Removed meanwhile, so it was empty; if it is still there, it cannot be read.
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && !is_dir(self.tree.look(session, prefix)?) => {
                    Ok(vec![])
                }
                other => other.map_err(|fail| failed("list", object, fail)),
            }
        })?;
        let (mut entries, mut temps) = (vec![], vec![]);
        for mut entry in found {
            if entry.name.starts_with(TEMP_PREFIX) {
                temps.push(entry);
                continue;
            }
            if entry.name.starts_with('.') {
                continue;
            }
            if entry.attributes.kind() == FileKind::Unknown || entry.attributes.size.is_none() {
                let path = format!("{}/{}", path.trim_end_matches('/'), entry.name);
                let told = self.retry("list", object, |session| match session.lstat(&path) {
                    Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => Ok(None),
                    other => other.map(Some).map_err(|fail| failed("list", object, fail)),
                })?;
                let Some(attributes) = told else { continue };
                entry.attributes = attributes;
            }
            match entry.attributes.kind() {
                kind @ FileKind::Unknown => {
                    let path = if prefix.is_empty() { entry.name } else { format!("{prefix}/{}", entry.name) };
                    return Err(StoreError::io("list", path.escape_debug(), io::Error::other(strange(kind))));
                }
                _ => entries.push(entry),
            }
        }
        Ok((entries, temps))
    }

    /// The server's clock, which is the one that its files are dated by.
    fn server_time(&self) -> Result<Option<u32>, StoreError> {
        let name = ObjectName::parse("clock")?;
        self.retry("sweep", &name, |session| {
            let (path, handle) = self.tree.create_file(session, &name, &writer::temp_name(&name)?)?;
            let stat = session.fstat(&handle);
            session.close(handle);
            session.done(&Request::of(kind::REMOVE, &path)).map_err(|fail| failed("sweep", &name, fail))?;
            let times = stat.map_err(|fail| failed("sweep", &name, fail))?.times;
            Ok(times.map(|(_, modified)| modified))
        })
    }

    fn sweep_below(&self, prefix: &str, now: u32, older_than: Duration) -> Result<u64, StoreError> {
        let (entries, temps) = self.entries(prefix)?;
        let mut swept = 0;
        for temp in temps {
            let modified = temp.attributes.times.map(|(_, modified)| modified);
            // A file from the future has no age: it stays until the clock has passed it.
            let age = modified.and_then(|then| now.checked_sub(then)).map(|age| Duration::from_secs(age.into()));
            let plain = temp.attributes.kind() == FileKind::Regular;
            if !plain || age.is_none_or(|age| age < older_than) || self.living().contains(&temp.name) {
                continue;
            }
            let path = format!("{}/{}", self.tree.path(prefix).trim_end_matches('/'), temp.name);
            swept += self.retry("sweep", shown(prefix), |session| {
                match session.done(&Request::of(kind::REMOVE, &path)) {
                    Ok(()) => Ok(1),
                    Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => Ok(0), // its writer has removed it
                    Err(fail) => Err(failed("sweep", shown(prefix), fail)),
                }
            })?;
        }
        for entry in entries.iter().filter(|entry| entry.attributes.kind() == FileKind::Directory) {
            swept += self.sweep_below(below(prefix, &entry.name)?.as_str(), now, older_than)?;
        }
        if swept > 0 {
            self.retry("sweep", shown(prefix), |session| {
                self.tree.prune(session, prefix);
                Ok(())
            })?;
        }
        Ok(swept)
    }

    /// True when there was one.
    fn remove_temp(&self, session: &Session, name: &ObjectName, temp: &str) -> bool {
        let parent = name.parent();
        let path = self.tree.path(&if parent.is_empty() { temp.to_owned() } else { format!("{parent}/{temp}") });
        session.done(&Request::of(kind::REMOVE, &path)).is_ok()
    }

    fn lives(&self, temp: &str) {
        self.living().insert(temp.to_owned());
    }

    fn died(&self, temp: &str) {
        self.living().remove(temp);
    }

    fn living(&self) -> MutexGuard<'_, HashSet<String>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_exact(session: &Session, file: &OpenFile, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
    let wanted = offset.saturating_add(buf.len() as u64);
    if wanted > file.size {
        return Err(StoreError::Truncated { object: file.name.to_string(), size: file.size, wanted });
    }
    let n = session.read_at(&file.handle, offset, buf).map_err(|fail| failed("read", &file.name, fail))?;
    if n < buf.len() {
        // It was longer when it was opened: somebody cut it.
        let size = offset.saturating_add(n as u64);
        return Err(StoreError::Truncated { object: file.name.to_string(), size, wanted });
    }
    Ok(())
}

fn object_stat(name: &ObjectName, attributes: &Attributes) -> Result<ObjectStat, StoreError> {
    match attributes.kind() {
        FileKind::Regular => {
            let no_size = || StoreError::io("stat", name, io::Error::other("the server does not tell its size"));
            let size = attributes.size.ok_or_else(no_size)?;
            let modified = attributes.times.map(|(_, modified)| Duration::from_secs(modified.into()));
            let modified = modified.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
            Ok(ObjectStat { name: name.clone(), size, modified })
        }
        FileKind::Directory => Err(StoreError::not_found(name)),
        kind @ FileKind::Unknown => Err(StoreError::io("stat", name, io::Error::other(strange(kind)))),
        kind => Err(StoreError::strange(name, strange(kind))),
    }
}

fn sort_key(name: &ObjectName, attributes: &Attributes) -> impl Iterator<Item = u8> {
    let slash = if attributes.kind() == FileKind::Directory { "/" } else { "" };
    name.as_str().bytes().chain(slash.bytes())
}

/// Whether the server can force a directory to the disk: tried, as no server announces it.
fn syncs_dirs(session: &Session, root: &str) -> Result<bool, Fail> {
    match session.sync_dirs(&[root.to_owned()]) {
        Ok(()) => Ok(true),
        Err(Fail::Status(_)) => Ok(false),
        Err(fail) => Err(fail),
    }
}

fn make_root(session: &Session, path: &str) -> Result<(), StoreError> {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    for dir in ends.filter_map(|end| path.get(..end)).filter(|dir| dir.len() > 1) {
        // Links in the way to the root are the administrator's.
        if session.realpath(dir).is_ok_and(|real| session.lstat(&real).is_ok()) {
            continue;
        }
        match session.done(&Request::of(kind::MKDIR, dir).mode(Some(0o700))) {
            // Another process may have made it a moment ago.
            Err(fail) if fail.is_status(Status::FAILURE) && session.lstat(dir).is_ok() => {}
            other => other.map_err(|fail| failed("create", dir, fail))?,
        }
    }
    Ok(())
}

fn ancestors(path: &str) -> impl Iterator<Item = String> {
    std::iter::successors(path.rsplit_once('/').map(|(above, _)| above), |dir| {
        dir.rsplit_once('/').map(|(above, _)| above)
    })
    .map(|dir| if dir.is_empty() { "/".to_owned() } else { dir.to_owned() })
}
