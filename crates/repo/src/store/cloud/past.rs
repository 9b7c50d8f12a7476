//! A bucket that keeps versions, as it was at a moment: what was deleted or overwritten since is there as it was, what came
//! since is not. Nothing can be written.
//!
//! Invariant: the moment has passed, so what was seen once stays so; that alone allows to remember it.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::control::{Control, Listed, Marker};
use super::{CloudOptions, Inner, open};
use crate::store::name::check_prefix;
use crate::store::{Ability, Capability, ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};

/// Versions that are remembered.
const KNOWN_MAX: usize = 100_000;

pub struct PastStore {
    inner: Inner,
    at: Timestamp,
    known: Mutex<HashMap<ObjectName, Found>>,
}

#[derive(Clone, Debug)]
struct Found {
    version: String,
    stat: ObjectStat,
}

impl PastStore {
    /// Prepares the client; nothing is asked of the store yet.
    ///
    /// # Errors
    /// What the options cannot mean.
    pub fn open(options: CloudOptions, at: Timestamp) -> Result<Self, StoreError> {
        Ok(PastStore { inner: open::open(options)?, at, known: Mutex::default() })
    }

    fn control(&self) -> Result<&Control, StoreError> {
        self.inner.control.as_ref().ok_or_else(|| {
            let why = "versions are read from the S3 protocol alone";
            StoreError::io("list", &self.inner.url, std::io::Error::other(why))
        })
    }

    /// What was read under a key then, of its versions, newest first.
    fn choose<'v>(&self, versions: &'v [Listed]) -> Option<&'v Listed> {
        versions.iter().find(|v| v.modified <= self.at).filter(|v| v.size.is_some())
    }

    fn found(&self, version: &Listed) -> Result<Option<Found>, StoreError> {
        let path = object_store::path::Path::parse(&version.key)
            .map_err(|e| StoreError::io("list", &version.key, std::io::Error::other(e)))?;
        let Some(name) = self.inner.relative(&path)? else { return Ok(None) };
        let stat = ObjectStat { name, size: version.size.unwrap_or(0), modified: Some(version.modified.into()) };
        Ok(Some(Found { version: version.id.clone(), stat }))
    }

    fn remember(&self, found: &Found) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(found.stat.name.clone(), found.clone());
    }

    fn look_up(&self, name: &ObjectName) -> Result<Found, StoreError> {
        if let Some(found) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(found.clone());
        }
        let key = self.inner.path(name.as_str())?.to_string();
        let mut found = None;
        // Other keys that begin with this one sort behind it.
        self.inner.each_key(self.control()?, &key, &mut |versions| {
            if versions.first().is_some_and(|v| v.key == key) {
                found = self.choose(versions).map(|v| self.found(v)).transpose()?.flatten();
            }
            Ok(ControlFlow::Break(()))
        })?;
        let found = found.ok_or_else(|| StoreError::not_found(name))?;
        self.remember(&found);
        Ok(found)
    }
}

/// Called with all versions of a key.
type VisitKey<'a> = dyn FnMut(&[Listed]) -> Result<ControlFlow<()>, StoreError> + 'a;

impl Inner {
    /// The versions of one key after the other; keys ascend, versions come newest first.
    pub(super) fn each_key(&self, control: &Control, prefix: &str, visit: &mut VisitKey<'_>) -> Result<(), StoreError> {
        let mut after: Option<Marker> = None;
        let mut group: Vec<Listed> = vec![];
        loop {
            let page = self.attempts.run(0, || control.versions(prefix, false, after.as_ref()));
            let page = page.map_err(|e| e.about_list(self.place(prefix)))?;
            for entry in page.entries {
                if group.last().is_some_and(|last| last.key != entry.key) {
                    if group.last().is_some_and(|last| last.key > entry.key) {
                        let why = "the store's list is not in the order of the names";
                        return Err(StoreError::io("list", entry.key, std::io::Error::other(why)));
                    }
                    if visit(&group)?.is_break() {
                        return Ok(());
                    }
                    group.clear();
                }
                group.push(entry);
            }
            match page.next {
                None => break,
                Some(next) if Some(&next) == after.as_ref() => {
                    let why = "the store's list of versions does not go on";
                    return Err(StoreError::io("list", prefix, std::io::Error::other(why)));
                }
                next => after = next,
            }
        }
        if !group.is_empty() {
            let _last: ControlFlow<()> = visit(&group)?;
        }
        Ok(())
    }

    /// The keys below a directory-like prefix begin with this.
    pub(super) fn key_prefix(&self, prefix: &str) -> Result<String, StoreError> {
        let path = self.path(prefix)?.to_string();
        Ok(if path.is_empty() { path } else { format!("{path}/") })
    }
}

impl Store for PastStore {
    fn put_new(&self, _name: &ObjectName, _bytes: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    fn create(&self, _name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        Err(StoreError::ReadOnly)
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        let found = self.look_up(name)?;
        if found.stat.size > max {
            return Err(StoreError::TooLarge { object: name.to_string(), size: found.stat.size, max });
        }
        self.inner.read_version(name, max, Some(&found.version))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let found = self.look_up(name)?;
        let wanted = offset.saturating_add(buf.len() as u64);
        if wanted > found.stat.size {
            return Err(StoreError::Truncated { object: name.to_string(), size: found.stat.size, wanted });
        }
        if buf.is_empty() {
            return Ok(());
        }
        self.inner.read_version_at(name, offset, buf, Some(&found.version))
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.look_up(name).map(|found| found.stat)
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        check_prefix(prefix)?;
        self.inner.each_key(self.control()?, &self.inner.key_prefix(prefix)?, &mut |versions| {
            if let Some(found) = self.choose(versions).map(|v| self.found(v)).transpose()?.flatten() {
                self.remember(&found);
                visit(found.stat)?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix(prefix)?;
        let (control, key) = (self.control()?, self.inner.key_prefix(prefix)?);
        let mut after: Option<Marker> = None;
        let mut dirs = BTreeMap::new();
        loop {
            let page = self.inner.attempts.run(0, || control.versions(&key, true, after.as_ref()));
            let page = page.map_err(|e| e.about_list(self.inner.place(prefix)))?;
            for dir in page.directories {
                let rest = dir.strip_prefix(&key).and_then(|r| r.strip_suffix('/'));
                if let Some(rest) = rest.filter(|r| !r.starts_with('.')) {
                    dirs.insert(ObjectName::parse(rest)?.basename().to_owned(), ());
                }
            }
            match page.next {
                None => return Ok(dirs.into_keys().collect()),
                Some(next) if Some(&next) == after.as_ref() => {
                    let why = "the store's list of versions does not go on";
                    return Err(StoreError::io("list", prefix, std::io::Error::other(why)));
                }
                next => after = next,
            }
        }
    }

    fn delete(&self, _name: &ObjectName) -> Result<(), StoreError> {
        Err(StoreError::ReadOnly)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    fn url(&self) -> String {
        self.inner.url.clone()
    }

    fn sweep_abandoned(&self, _older_than: Duration) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn probe(&self) -> Vec<Capability> {
        let why = format!("the repository is looked at as it was at {}", self.at);
        [Capability::VERSIONS, Capability::LOCK]
            .map(|name| Capability::new(name, Ability::NotChecked, why.clone()))
            .into()
    }

    fn may_delete(&self) -> bool {
        false
    }
}
