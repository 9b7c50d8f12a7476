//! The directory an SFTP store lives in: paths, what lies at them, making and removing directories.
//!
//! The protocol has only paths, so every part of a path is looked at before the whole of it is used: a symbolic link
//! that is there leads nowhere. One that is put there in between is not noticed; whoever can do that has the account.

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::failure::{Fail, SftpFailure};
use super::session::{Handle, Session};
use super::wire::{self, Attributes, FileKind, Request, Status, kind};
use crate::store::{ObjectName, StoreError};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The account itself cannot open it for writing any more; what is open stays writable.
const FILE_MODE_APPEND_ONLY: u32 = 0o400;
/// How often a directory that vanishes under us is made again.
const ATTEMPTS: u32 = 100;
/// How often a failure is taken for a directory that was there for a moment.
const FAILURES_MAX: u32 = 10;
/// Directories remembered as made durable before we start over: bounds memory, not correctness.
const DURABLE_DIRS_MAX: usize = 4096;
/// With less than this a write that failed has failed for want of space.
const SPACE_BYTES_MIN: u64 = 1024 * 1024;

pub(super) struct Tree {
    /// Absolute and without links when the store was opened; empty for `/`.
    root: String,
    /// The server forces directories to the disk.
    pub(super) syncs_dirs: bool,
    /// Nothing is changed that is there.
    pub(super) append_only: bool,
    durable_dirs: Mutex<HashSet<String>>,
}

impl Tree {
    pub(super) fn new(root: &str, syncs_dirs: bool, append_only: bool) -> Self {
        let root = root.trim_end_matches('/').to_owned();
        Tree { root, syncs_dirs, append_only, durable_dirs: Mutex::default() }
    }

    pub(super) fn file_mode(&self) -> u32 {
        if self.append_only { FILE_MODE_APPEND_ONLY } else { FILE_MODE }
    }

    pub(super) fn path(&self, relative: &str) -> String {
        match (relative, self.root.as_str()) {
            ("", "") => "/".to_owned(),
            ("", root) => root.to_owned(),
            (relative, root) => format!("{root}/{relative}"),
        }
    }

    /// The root, and every directory from below it to `relative`.
    fn steps(&self, relative: &str) -> Vec<String> {
        let mut steps = vec![self.path("")];
        if !relative.is_empty() {
            let ends = relative.match_indices('/').map(|(at, _)| at).chain([relative.len()]);
            steps.extend(ends.filter_map(|end| relative.get(..end)).map(|part| self.path(part)));
        }
        steps
    }

    /// What lies at `relative`; None when there is nothing, or an object where a directory would have to be. A link
    /// on the way or at its end is an error.
    pub(super) fn look(&self, session: &Session, relative: &str) -> Result<Option<Attributes>, StoreError> {
        let object = shown(relative);
        let steps = self.steps(relative);
        let last = steps.len() - 1;
        let found = session.lstat_all(&steps).map_err(|fail| failed("stat", object, fail))?;
        for (index, step) in found.into_iter().enumerate() {
            let attributes = match step {
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && index > 0 => return Ok(None),
                other => other.map_err(|fail| failed("stat", object, fail))?,
            };
            match attributes.kind() {
                FileKind::Directory | FileKind::Regular if index == last => return Ok(Some(attributes)),
                FileKind::Directory => {}
                FileKind::Regular => return Ok(None),
                kind @ FileKind::Unknown => {
                    return Err(StoreError::io("stat", object, io::Error::other(strange(kind))));
                }
                kind => return Err(StoreError::strange(object, strange(kind))),
            }
        }
        Ok(None)
    }

    /// Opens a new file of ours, in a durable directory, which is made where it is missing.
    pub(super) fn create_file(
        &self,
        session: &Session,
        name: &ObjectName,
        temp: &str,
    ) -> Result<(String, Handle), StoreError> {
        let dir = name.parent();
        let path = self.path(&if dir.is_empty() { temp.to_owned() } else { format!("{dir}/{temp}") });
        let mut attempts = 0..ATTEMPTS;
        loop {
            attempts.next();
            self.make_dir(session, name, dir)?;
            match session.open(&path, wire::WRITE | wire::CREATE | wire::EXCLUSIVE, Some(self.file_mode())) {
                Ok(handle) => return Ok((path, handle)),
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && !attempts.is_empty() => self.forget(dir),
                Err(fail) => return Err(self.write_failed(session, "create", name, fail)),
            }
        }
    }

    fn make_dir(&self, session: &Session, name: &ObjectName, dir: &str) -> Result<(), StoreError> {
        let steps = self.steps(dir);
        let mut missing = None;
        let found = session.lstat_all(&steps).map_err(|fail| failed("stat", name, fail))?;
        for (index, step) in found.into_iter().enumerate() {
            match step {
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && index > 0 => {
                    missing = Some(index);
                    break;
                }
                other => require_dir(name, &other.map_err(|fail| failed("stat", name, fail))?)?,
            }
        }
        if missing.is_none() && (dir.is_empty() || self.durable().contains(dir)) {
            return Ok(());
        }
        for step in steps.get(missing.unwrap_or(steps.len())..).unwrap_or_default() {
            if !self.make_one(session, name, step)? {
                return Ok(()); // its parent is gone again: the caller will notice, and come back
            }
        }
        // Also when others made it: they may not have come to this.
        match session.sync_dirs(if self.syncs_dirs { &steps } else { &[] }) {
            Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => return Ok(()), // the same again
            other => other.map_err(|fail| failed("fsync directory of", name, fail))?,
        }
        let mut durable = self.durable();
        if durable.len() >= DURABLE_DIRS_MAX {
            durable.clear();
        }
        durable.insert(dir.to_owned());
        Ok(())
    }

    /// False when the directory above is gone.
    fn make_one(&self, session: &Session, name: &ObjectName, path: &str) -> Result<bool, StoreError> {
        let failed = |fail| failed("create directory of", name, fail);
        let mut attempts = 1..FAILURES_MAX;
        loop {
            let fail = match session.done(&Request::of(kind::MKDIR, path).mode(Some(DIR_MODE))) {
                // A server may be told to give other modes; if it insists, its administrator decides who may read.
                Ok(()) => match session.done(&Request::of(kind::SETSTAT, path).mode(Some(DIR_MODE))) {
                    Err(fail @ Fail::Connection(_)) => return Err(failed(fail)),
                    _ => return Ok(true),
                },
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => return Ok(false),
                Err(fail) => fail,
            };
            // Of a name that is taken it says no more than "failure".
            if fail.is_status(Status::FAILURE) {
                match session.lstat(path) {
                    Ok(there) => return require_dir(name, &there).map(|()| true),
                    Err(gone) if !gone.is_status(Status::NO_SUCH_FILE) => return Err(failed(gone)),
                    // Taken and removed since, or there is another reason, which will stay.
                    Err(_) if attempts.next().is_some() => continue,
                    Err(_) => {}
                }
            }
            return Err(self.write_failed(session, "create directory of", name, fail));
        }
    }

    /// Forces to the disk what `dir` holds, and its own entry in every directory above: somebody may have removed
    /// and made them again since we looked.
    pub(super) fn sync(&self, session: &Session, name: &ObjectName, dir: &str) -> Result<(), StoreError> {
        if !self.syncs_dirs {
            return Ok(());
        }
        session.sync_dirs(&self.steps(dir)).map_err(|fail| failed("fsync directory of", name, fail))
    }

    /// The same after something was removed from the object's directory, which may itself be gone by now.
    pub(super) fn sync_removal(&self, session: &Session, name: &ObjectName) -> Result<(), StoreError> {
        if !self.syncs_dirs {
            return Ok(());
        }
        let mut dir = name.parent();
        loop {
            match session.sync_dirs(&self.steps(dir)) {
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) && !dir.is_empty() => {
                    dir = dir.rsplit_once('/').map_or("", |(above, _)| above);
                }
                other => return other.map_err(|fail| failed("fsync directory of", name, fail)),
            }
        }
    }

    /// Removes directories that became empty, from `relative` up to but not including the root. One that stays is
    /// in use, or harmless.
    pub(super) fn prune(&self, session: &Session, relative: &str) {
        let mut rest = relative;
        while !rest.is_empty() {
            match session.done(&Request::of(kind::RMDIR, &self.path(rest))) {
                Ok(()) => self.forget(rest),
                Err(fail) if fail.is_status(Status::NO_SUCH_FILE) => self.forget(rest),
                Err(_) => return,
            }
            rest = rest.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }

    fn forget(&self, dir: &str) {
        self.durable().remove(dir);
    }

    fn durable(&self) -> MutexGuard<'_, HashSet<String>> {
        self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// OpenSSH says "failure" for a full disk and for much else, so its file system is asked.
    pub(super) fn write_failed(
        &self,
        session: &Session,
        operation: &'static str,
        object: impl ToString,
        fail: Fail,
    ) -> StoreError {
        if fail.is_status(Status::FAILURE)
            && let Ok(Some(space)) = session.space(&self.path(""))
        {
            if space.read_only {
                return StoreError::ReadOnly;
            }
            if space.free_bytes < SPACE_BYTES_MIN || (space.files > 0 && space.free_files == 0) {
                return StoreError::NoSpace { object: object.to_string(), source: fail.into() };
            }
        }
        failed(operation, object, fail)
    }
}

fn require_dir(name: &ObjectName, attributes: &Attributes) -> Result<(), StoreError> {
    let why = match attributes.kind() {
        FileKind::Directory => return Ok(()),
        FileKind::Regular => "an object lies where its directory would have to be",
        kind => strange(kind),
    };
    Err(StoreError::io("create directory of", name, io::Error::other(why)))
}

pub(super) fn strange(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Link => "a symbolic link is in the way; links are not followed",
        FileKind::Unknown => "the server does not tell what kind of file it is",
        _ => "not a regular file",
    }
}

pub(super) fn shown(prefix: &str) -> &str {
    if prefix.is_empty() { "the store" } else { prefix }
}

/// What the server or the connection said about something that need not be an object.
pub(super) fn failed(operation: &'static str, object: impl ToString, fail: Fail) -> StoreError {
    if fail.is_status(Status::PERMISSION_DENIED) {
        return StoreError::Denied { object: object.to_string(), source: fail.into() };
    }
    StoreError::io(operation, object, fail.into())
}

/// The same about an object that should be there.
pub(super) fn read_failed(operation: &'static str, object: impl ToString, fail: Fail) -> StoreError {
    if fail.is_status(Status::NO_SUCH_FILE) { StoreError::not_found(object) } else { failed(operation, object, fail) }
}

/// Another connection may do better.
pub(super) fn is_passing(error: &StoreError) -> bool {
    error.told().is_some_and(|failure: &SftpFailure| failure.passing)
}
