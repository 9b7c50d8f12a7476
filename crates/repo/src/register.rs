//! A register: one value that changes, kept in a store of immutable objects. Each version is an object whose
//! name is its number; whoever creates the next number has changed the value. That is all the atomicity that
//! is asked of a store. The value before the newest stays, and a mirror holds a second copy of both.
//!
//! Invariant: a version, once created, never changes; a reader sees the newest version or an error, never a
//! mixture.

use std::sync::Arc;
use std::time::Duration;

use crate::crypto::{KeySet, ObjectKind};
use crate::error::{RepoError, Result};
use crate::limits::{REGISTER_BYTES_MAX, REGISTER_RETRIES, REGISTER_VALUE_BYTES_MAX};
use crate::store::{ObjectName, Store, StoreError};
use crate::stream::{open_bytes, seal_bytes};

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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub number: u64,
    pub value: Vec<u8>,
}

/// Something a check found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterProblem {
    pub object: String,
    pub what: String,
    pub missing: bool,
}

impl Register {
    pub fn sealed(store: Arc<dyn Store>, keys: &KeySet, kind: ObjectKind, dir: String, mirror: Mirror) -> Self {
        Register { store, seal: Some((keys.clone(), kind)), dir, mirror }
    }

    pub fn plain(store: Arc<dyn Store>, dir: String) -> Self {
        Register { store, seal: None, dir, mirror: Mirror::Yes }
    }

    fn dirs(&self) -> Vec<String> {
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
            if last.len() == 16
                && let Ok(n) = u64::from_str_radix(last, 16)
            {
                out.push(n);
            }
            Ok(())
        })?;
        out.sort_unstable();
        Ok(out)
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
        for _ in 0..REGISTER_RETRIES {
            let Some(number) = self.newest_number()? else { return Ok(None) };
            match self.read_number(number) {
                // Superseded and pruned between the listing and the reading.
                Err(e) if e.is_not_found() && self.newest_number()? != Some(number) => {}
                other => return other.map(Some),
            }
        }
        Err(RepoError::Busy { what: self.dir.clone(), holder: "many writers at once".into() })
    }

    fn read_number(&self, number: u64) -> Result<Version> {
        let mut failure = None;
        for dir in self.dirs() {
            match self.read_copy(&Self::name(&dir, number)?) {
                Ok(value) => return Ok(Version { number, value }),
                Err(e) if e.is_damage() => {
                    if failure.as_ref().is_none_or(RepoError::is_not_found) {
                        failure = Some(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(failure.expect("there is at least one copy"))
    }

    fn read_copy(&self, name: &ObjectName) -> Result<Vec<u8>> {
        let bytes = self.store.read(name, REGISTER_BYTES_MAX)?;
        match &self.seal {
            Some((keys, kind)) => open_bytes(keys, *kind, name, bytes, REGISTER_VALUE_BYTES_MAX),
            None => Ok(bytes),
        }
    }

    /// Changes the value. `change` gets the newest one (None: there is none yet) and returns the next, or None
    /// to leave it; it runs again when somebody else was faster. Returns the value that is now in force.
    pub fn update(
        &self,
        mut change: impl FnMut(Option<&Version>) -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<Version>> {
        for attempt in 0..REGISTER_RETRIES {
            let current = self.read()?;
            let Some(value) = change(current.as_ref())? else { return Ok(current) };
            let number = current.map_or(1, |v| v.number + 1);
            if self.create_version(number, &value)? {
                self.prune(number)?;
                return Ok(Some(Version { number, value }));
            }
            std::thread::sleep(Duration::from_millis(u64::from(attempt.min(50))));
        }
        Err(RepoError::Busy { what: self.dir.clone(), holder: "many writers at once".into() })
    }

    /// False when the number was taken by somebody else.
    fn create_version(&self, number: u64, value: &[u8]) -> Result<bool> {
        let mut dirs = self.dirs().into_iter();
        let primary = Self::name(&dirs.next().expect("never empty"), number)?;
        let bytes = self.encode(&primary, value)?;
        match self.store.put_new(&primary, &bytes) {
            Ok(()) => {}
            // The reply to our own creation may have been lost: sealed bytes are recognisably ours.
            Err(StoreError::AlreadyExists { .. }) => match self.store.read(&primary, REGISTER_BYTES_MAX) {
                Ok(theirs) if theirs == bytes && self.seal.is_some() => {}
                Ok(_) | Err(StoreError::NotFound { .. }) => return Ok(false),
                Err(e) => return Err(e.into()),
            },
            Err(e) => return Err(e.into()),
        }
        for dir in dirs {
            let copy = Self::name(&dir, number)?;
            match self.store.put_new(&copy, &self.encode(&copy, value)?) {
                Ok(()) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn encode(&self, name: &ObjectName, value: &[u8]) -> Result<Vec<u8>> {
        match &self.seal {
            Some((keys, kind)) => seal_bytes(keys, *kind, name, value),
            None => Ok(value.to_vec()),
        }
    }

    /// Old versions are rubbish; a store that keeps them all the same is as good.
    fn prune(&self, newest: u64) -> Result<()> {
        for dir in self.dirs() {
            for n in self.numbers(&dir)?.into_iter().filter(|n| n.saturating_add(1) < newest) {
                match self.store.delete(&Self::name(&dir, n)?) {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(e @ (StoreError::Denied { .. } | StoreError::ReadOnly { .. })) => {
                        tracing::debug!(%e, "an old register version stays");
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    /// Every copy of the newest version and of the one before, opened. Empty when all is well.
    pub fn check(&self) -> Result<Vec<RegisterProblem>> {
        self.check_with(&mut |_| Ok(()))
    }

    /// As `check`, and each value must satisfy `open` too.
    pub fn check_with(&self, open: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Vec<RegisterProblem>> {
        let mut problems = vec![];
        let Some(newest) = self.newest_number()? else { return Ok(problems) };
        for dir in self.dirs() {
            for number in newest.saturating_sub(1).max(1)..=newest {
                let name = Self::name(&dir, number)?;
                match self.read_copy(&name).and_then(|v| open(&v)) {
                    Ok(()) => {}
                    Err(e) if e.is_damage() => problems.push(RegisterProblem {
                        object: name.to_string(),
                        missing: e.is_not_found(),
                        what: e.to_string(),
                    }),
                    Err(e) => return Err(e),
                }
            }
        }
        if problems.is_empty() && self.newest_number()? != Some(newest) {
            return self.check_with(open);
        }
        Ok(problems)
    }

    /// Names that belong to this register, for those who look for strangers.
    pub fn owns(&self, object: &str) -> bool {
        self.dirs().iter().any(|d| object.strip_prefix(d.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }
}
