//! A register: one value that changes, kept in a store of immutable objects. Each version is an object whose
//! name is its number; whoever creates the next number has changed the value. That is all the atomicity that
//! is asked of a store. The value before the newest stays, and a mirror holds a second copy of both.
//!
//! Invariant: a version, once created, never changes; a reader sees the newest version or an error, never a
//! mixture; an update that reported success is part of every later value.
//!
//! Because old versions are pruned, a number alone does not say that a version counts: a writer that slept
//! could create one that was passed long ago. So each sealed version carries the marks of those it was built
//! on, and a writer that is not the newest looks for its own mark in the newest.

mod anew;
mod check;
mod lost;
mod staged;

use std::sync::Arc;
use std::time::Duration;

use crate::crypto::{Form, KeySet, ObjectKind, fill_random, form_of};
use crate::error::{RepoError, Result};
use crate::limits::{
    KEYRING_BYTES_MAX, REGISTER_BYTES_MAX, REGISTER_MARKS_MAX, REGISTER_RETRIES, REGISTER_VALUE_BYTES_MAX,
};
use crate::manifest::bytes::Cursor;
use crate::store::{ObjectName, ObjectWriter, Store, StoreError};
use crate::stream::{open_bytes, seal_bytes_in};

pub use check::RegisterProblem;
pub use lost::Lost;
pub use staged::Staged;

/// Whether a register has a second copy of its own, or is witnessed by other objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    Yes,
    No,
}

#[derive(Clone)]
pub struct Register {
    store: Arc<dyn Store>,
    /// None for the key ring, which authenticates itself.
    seal: Option<(KeySet, ObjectKind)>,
    dir: String,
    mirror: Mirror,
    /// For changes that make room on a full disk.
    thrifty: bool,
}

/// Random, so that no two versions have the same.
type Mark = [u8; 8];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub number: u64,
    pub value: Vec<u8>,
    /// Its own mark, then those of the versions it was built on, newest first. Empty in a plain register.
    marks: Vec<Mark>,
    /// A register stays of the form for a writer once it has it, also where a process that began earlier changes it.
    form: Form,
}

impl Register {
    pub fn sealed(store: Arc<dyn Store>, keys: &KeySet, kind: ObjectKind, dir: String, mirror: Mirror) -> Self {
        Register { store, seal: Some((keys.clone(), kind)), dir, mirror, thrifty: false }
    }

    pub fn plain(store: Arc<dyn Store>, dir: String) -> Self {
        Register { store, seal: None, dir, mirror: Mirror::Yes, thrifty: false }
    }

    /// For a change that makes room: on a full disk it is made at the expense of older versions, and with one copy. The
    /// next change puts the other in place.
    pub fn thrifty(self) -> Self {
        Register { thrifty: true, ..self }
    }

    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// Where its copies are.
    pub fn dirs(&self) -> Vec<String> {
        match self.mirror {
            Mirror::Yes => vec![self.dir.clone(), format!("{}-mirror", self.dir)],
            Mirror::No => vec![self.dir.clone()],
        }
    }

    fn name(dir: &str, number: u64) -> Result<ObjectName> {
        Ok(ObjectName::parse(&format!("{dir}/{number:016x}"))?)
    }

    fn numbers(&self, dir: &str) -> Result<Vec<u64>> {
        let mut out = vec![];
        self.store.list(dir, &mut |stat| {
            let last = stat.name.as_str().rsplit('/').next().unwrap_or_default();
            let digits = last.len() == 16 && last.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            out.extend(digits.then(|| u64::from_str_radix(last, 16).ok()).flatten());
            Ok(())
        })?;
        out.sort_unstable();
        Ok(out)
    }

    /// When the newest version was written, by the store's clock; None where that does not tell.
    pub fn written(&self) -> Result<Option<std::time::SystemTime>> {
        let mut newest = None;
        self.store.list(&self.dir, &mut |stat| {
            // Numbers have one length, so the last name is the newest.
            newest = stat.modified;
            Ok(())
        })?;
        Ok(newest)
    }

    fn newest_number(&self) -> Result<Option<u64>> {
        let mut newest = None;
        for dir in self.dirs() {
            newest = newest.max(self.numbers(&dir)?.pop());
        }
        Ok(newest)
    }

    /// The newest version, from the copy that is whole.
    pub fn read(&self) -> Result<Option<Version>> {
        Ok(self.read_with(&mut |_| Ok(()))?.map(|(version, ())| version))
    }

    /// As `read`, from a copy whose value satisfies `open` too.
    pub fn read_with<T>(&self, open: &mut dyn FnMut(&[u8]) -> Result<T>) -> Result<Option<(Version, T)>> {
        for _ in 0..REGISTER_RETRIES {
            let Some(number) = self.newest_number()? else { return Ok(None) };
            match self.read_number(number, open) {
                // Superseded and pruned between the listing and the reading.
                Err(e) if e.is_not_found() && self.newest_number()? != Some(number) => {}
                other => return other.map(Some),
            }
        }
        Err(self.too_busy())
    }

    fn too_busy(&self) -> RepoError {
        RepoError::Busy { what: self.dir.clone(), holder: "many writers at once".into() }
    }

    fn read_number<T>(&self, number: u64, open: &mut dyn FnMut(&[u8]) -> Result<T>) -> Result<(Version, T)> {
        let mut failure = None;
        let mut refused = None;
        for dir in self.dirs() {
            let copy = self.read_copy(&Self::name(&dir, number)?, number);
            if copy.as_ref().is_ok_and(|v| refused.as_ref() == Some(v)) {
                continue;
            }
            let opened = copy.and_then(|version| match open(&version.value) {
                Ok(value) => Ok((version, value)),
                Err(e) => {
                    refused = Some(version);
                    Err(e)
                }
            });
            match opened {
                Ok(found) => return Ok(found),
                // A damaged key ring may look like one of another key.
                Err(e) if e.is_damage() || matches!(e, RepoError::WrongKey { .. }) => {
                    if failure.as_ref().is_none_or(RepoError::is_not_found) {
                        failure = Some(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(failure.expect("there is at least one copy"))
    }

    fn read_copy(&self, name: &ObjectName, number: u64) -> Result<Version> {
        let Some((keys, kind)) = &self.seal else {
            let value = self.store.read(name, KEYRING_BYTES_MAX)?;
            return Ok(Version { number, value, marks: vec![], form: Form::Readers });
        };
        let bytes = self.store.read(name, REGISTER_BYTES_MAX)?;
        let form = bytes.first_chunk().and_then(form_of).unwrap_or(Form::Readers);
        let plain = open_bytes(keys, *kind, name, bytes, REGISTER_VALUE_BYTES_MAX)?;
        let mut c = Cursor::new(&plain);
        let marks = c.byte().map(usize::from).filter(|n| (1..=REGISTER_MARKS_MAX).contains(n));
        let marks = marks.and_then(|n| (0..n).map(|_| c.array()).collect::<Option<Vec<Mark>>>());
        let marks = marks.ok_or_else(|| RepoError::corrupt(name, "its marks do not parse"))?;
        let value = c.take(c.remaining()).unwrap_or_default().to_vec();
        Ok(Version { number, value, marks, form })
    }

    /// Changes the value. `change` gets the newest one (None: there is none yet) and returns the next, or None
    /// to leave it; it runs again when somebody else was faster. Returns the value that is now in force.
    pub fn update(
        &self,
        mut change: impl FnMut(Option<&Version>) -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<Version>> {
        self.update_with(&mut |_| Ok(()), |version, _| change(version))
    }

    /// As `update`, on a copy whose value satisfies `open`; `change` gets what that made of it too.
    pub fn update_with<T>(
        &self,
        open: &mut dyn FnMut(&[u8]) -> Result<T>,
        mut change: impl FnMut(Option<&Version>, Option<T>) -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<Version>> {
        for attempt in 0..REGISTER_RETRIES {
            let (current, opened) = self.read_with(open)?.unzip();
            let value = change(current.as_ref(), opened)?;
            if let Some(version) = &current {
                self.complete(version)?;
            }
            let Some(value) = value else { return Ok(current) };
            let next = self.successor(current.as_ref(), value)?;
            let mut created = self.create_version(&next);
            let mut squeezed = false;
            while self.thrifty
                && created.as_ref().is_err_and(RepoError::is_no_space)
                && current.as_ref().is_some_and(|version| self.make_room(version))
            {
                squeezed = true;
                created = self.create_version(&next);
            }
            if created? {
                if squeezed
                    && let Some(version) = &current
                    && let Err(e) = self.complete(version)
                {
                    tracing::debug!(%e, "the version before has one copy for now");
                }
                return Ok(Some(next));
            }
            std::thread::sleep(Duration::from_millis(u64::from(attempt.min(50))));
        }
        Err(self.too_busy())
    }

    /// The versions before this one that can still be read, damaged ones left out.
    pub fn older(&self, newest: &Version) -> Result<Vec<Version>> {
        let mut older: Vec<Version> = vec![];
        for dir in self.dirs() {
            for number in self.numbers(&dir)?.into_iter().filter(|n| *n < newest.number) {
                match self.read_copy(&Self::name(&dir, number)?, number) {
                    Ok(version) if !older.contains(&version) => older.push(version),
                    Ok(_) => {}
                    Err(e) if e.is_damage() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(older)
    }

    fn has_older_values(&self, newest: &Version) -> Result<bool> {
        Ok(self.older(newest)?.iter().any(|v| v.value != newest.value))
    }

    fn successor(&self, current: Option<&Version>, value: Vec<u8>) -> Result<Version> {
        let number = current.map_or(Some(1), |v| v.number.checked_add(1));
        let number = number.ok_or_else(|| RepoError::corrupt(&self.dir, "its numbers are used up"))?;
        let mut marks = vec![];
        if self.seal.is_some() {
            let mut own = Mark::default();
            fill_random(&mut own)?;
            marks.push(own);
            marks.extend(current.iter().flat_map(|v| &v.marks).take(REGISTER_MARKS_MAX - 1));
        }
        let form = match (&self.seal, current) {
            (_, Some(Version { form: Form::Writer, .. })) => Form::Writer,
            (Some((keys, _)), _) => keys.form_of_new(&Self::name(&self.dir, number)?),
            (None, _) => Form::Readers,
        };
        Ok(Version { number, value, marks, form })
    }

    /// On a full disk the versions before the one in force go, which are kept for people alone: otherwise nothing could be
    /// put on record that makes room. (The one in force stays: it will be the one before the newest, whose absence
    /// would look like a fall back.) Where there are none, its second copy goes, for as long as the disk is full. Returns
    /// whether anything went.
    fn make_room(&self, in_force: &Version) -> bool {
        let old = |n: &u64| *n < in_force.number;
        let removed = |dir: &String| -> Result<bool> {
            let mut any = false;
            for number in self.numbers(dir)?.into_iter().filter(old) {
                any |= self.store.discard(&Self::name(dir, number)?).is_ok();
            }
            Ok(any)
        };
        // What fails here shows again in the second attempt.
        let any = self.dirs().iter().map(|dir| removed(dir).unwrap_or(false)).fold(false, |any, one| any | one);
        any || self.give_up_second_copy(in_force).unwrap_or(false)
    }

    /// Only when the first can be read.
    fn give_up_second_copy(&self, in_force: &Version) -> Result<bool> {
        let dirs = self.dirs();
        let [first, second] = dirs.as_slice() else { return Ok(false) };
        if self.read_copy(&Self::name(first, in_force.number)?, in_force.number)? != *in_force {
            return Ok(false);
        }
        let second = Self::name(second, in_force.number)?;
        // Some stores do not say that there was nothing to remove.
        self.store.stat(&second)?;
        Ok(self.store.discard(&second).is_ok())
    }

    /// False when somebody else was faster.
    fn create_version(&self, next: &Version) -> Result<bool> {
        self.put_version(next, vec![])
    }

    /// `ready` are the copies where they lie ready.
    fn put_version(&self, next: &Version, ready: Vec<Box<dyn ObjectWriter>>) -> Result<bool> {
        let mut ready = ready.into_iter();
        let mut put = |name: &ObjectName| match ready.next() {
            Some(copy) => Ok::<_, RepoError>(copy.finish()),
            None => Ok(self.store.put_new(name, &self.encode(name, next)?)),
        };
        let mut dirs = self.dirs().into_iter();
        match put(&Self::name(&dirs.next().expect("never empty"), next.number)?)? {
            Ok(()) => {}
            // The reply to our own creation may have been lost: then the newest version bears our mark.
            Err(StoreError::AlreadyExists { .. }) => {
                if !self.is_in_force(next)? {
                    return Ok(false);
                }
            }
            // What could not be made durable is never taken for done, however it looks now.
            Err(e) if e.is_durability() => return Err(e.into()),
            Err(e) => {
                if !self.is_in_force(next).unwrap_or(false) {
                    return Err(e.into());
                }
            }
        }
        for dir in dirs {
            let name = Self::name(&dir, next.number)?;
            let outcome = put(&name)?;
            self.is_copied(&name, next, outcome)?;
        }
        self.settle(next)
    }

    /// Whether what we created counts, and if it is the newest, the end of what it replaces.
    fn settle(&self, next: &Version) -> Result<bool> {
        let dirs = self.dirs();
        let lists = dirs.iter().map(|dir| self.numbers(dir)).collect::<Result<Vec<_>>>()?;
        let newest = lists.iter().filter_map(|l| l.last().copied()).max();
        if newest.is_none_or(|n| n > next.number) {
            return self.is_in_force(next);
        }
        if !self.store.may_delete() {
            return Ok(true);
        }
        for (dir, numbers) in dirs.iter().zip(lists) {
            for old in numbers.into_iter().filter(|n| n.saturating_add(1) < next.number) {
                match self.store.discard(&Self::name(dir, old)?) {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    // Old versions are rubbish; the change is in force whether they go now or later.
                    Err(e) => tracing::debug!(%e, "an old register version stays"),
                }
            }
        }
        Ok(true)
    }

    /// Whether the newest version is this one or was built on it.
    fn is_in_force(&self, ours: &Version) -> Result<bool> {
        let unknown = || RepoError::Fenced {
            what: self.dir.clone(),
            why: "others changed it meanwhile, and whether this change was kept is not known".into(),
        };
        let Some(newest) = self.read()? else { return Ok(false) };
        let Some(own) = ours.marks.first() else {
            // Without marks, only the newest version tells, by its value; who wrote an equal one does not matter.
            return if newest.number == ours.number { Ok(newest.value == ours.value) } else { Err(unknown()) };
        };
        if newest.marks.contains(own) {
            return Ok(true);
        }
        let built_since = newest.number.saturating_sub(ours.number);
        if built_since >= REGISTER_MARKS_MAX as u64 { Err(unknown()) } else { Ok(false) }
    }

    fn put_copy(&self, dir: &str, version: &Version) -> Result<()> {
        let name = Self::name(dir, version.number)?;
        let outcome = self.store.put_new(&name, &self.encode(&name, version)?);
        self.is_copied(&name, version, outcome)
    }

    /// Whether a second copy is there, by what writing it came to.
    fn is_copied(&self, name: &ObjectName, version: &Version, outcome: Result<(), StoreError>) -> Result<()> {
        match outcome {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(e) if e.is_durability() => Err(e.into()),
            Err(e @ StoreError::NoSpace { .. }) if self.thrifty => {
                tracing::debug!(%e, "a register has one copy for now");
                Ok(())
            }
            Err(e) => match self.read_copy(name, version.number) {
                Ok(there) if there == *version => Ok(()),
                _ => Err(e.into()),
            },
        }
    }

    /// Puts back the copies that a crash between the first and the second left out.
    pub fn complete(&self, version: &Version) -> Result<()> {
        if self.mirror == Mirror::No {
            return Ok(());
        }
        for dir in self.dirs() {
            match self.store.stat(&Self::name(&dir, version.number)?) {
                Ok(_) => {}
                Err(StoreError::NotFound { .. }) => match self.put_copy(&dir, version) {
                    Err(RepoError::Store(e @ (StoreError::Denied { .. } | StoreError::ReadOnly))) => {
                        tracing::debug!(%e, "a missing register copy stays missing");
                    }
                    other => other?,
                },
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn encode(&self, name: &ObjectName, version: &Version) -> Result<Vec<u8>> {
        let Some((keys, kind)) = &self.seal else { return Ok(version.value.clone()) };
        let mut plain = vec![u8::try_from(version.marks.len()).expect("marks are bounded")];
        plain.extend(version.marks.iter().flatten());
        plain.extend_from_slice(&version.value);
        seal_bytes_in(version.form, keys, *kind, name, &plain)
    }

    /// Removes versions that are not needed any more, which a client that may not remove anything has left. Returns how
    /// many.
    pub fn prune(&self) -> Result<u64> {
        let mut removed = 0;
        let Some(newest) = self.newest_number()? else { return Ok(removed) };
        for dir in self.dirs() {
            for old in self.numbers(&dir)?.into_iter().filter(|n| n.saturating_add(1) < newest) {
                match self.store.discard(&Self::name(&dir, old)?) {
                    Ok(()) => removed += 1,
                    Err(StoreError::NotFound { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(removed)
    }

    /// Names that belong to this register, for those who look for strangers.
    pub fn owns(&self, object: &str) -> bool {
        self.dirs().iter().any(|d| object.strip_prefix(d.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }
}
