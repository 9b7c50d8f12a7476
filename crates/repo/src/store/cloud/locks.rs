//! Versions and object lock of a bucket: what it can do, each thing tried, and the locks of a repository's objects.

use std::ops::ControlFlow;
use std::time::Duration;

use jiff::Timestamp;
use object_store::{PutOptions, PutPayload};

use super::control::{Control, Listed, Retain};
use super::{CloudKind, CloudStore, Conditional, Inner};
use crate::store::lock::{LockPolicy, ObjectLock, ObjectVersion, Retention, VisitVersions};
use crate::store::{Ability, Capability, ObjectName, StoreError, StoreErrorKind};

/// How long the object is locked that shows whether locks hold.
const PROBE_LOCK: Duration = Duration::from_secs(90);
/// What earlier probes left, locked then, goes when it is older.
const PROBES_OLD: Duration = Duration::from_secs(600);
pub(super) const PROBE_DIR: &str = "probe";

/// The bucket's requests, where objects are locked.
pub(super) struct Locking {
    pub policy: LockPolicy,
}

impl CloudStore {
    fn locking(&self) -> Option<(&Control, LockPolicy)> {
        self.inner.control.as_ref().zip(self.inner.lock.as_ref().map(|l| l.policy))
    }

    pub(super) fn capabilities(&self) -> Vec<Capability> {
        let mut all: Vec<Capability> = self.inner.single_writer().into_iter().collect();
        all.extend(self.of_versions());
        all
    }

    fn of_versions(&self) -> Vec<Capability> {
        let inner = &self.inner;
        let Some(control) = &inner.control else {
            let cloud = if inner.kind == CloudKind::Azure { "Azure" } else { "Google Cloud Storage" };
            let why = format!("pgark does not speak {cloud}'s requests for it yet");
            return [Capability::VERSIONS, Capability::LOCK]
                .map(|name| Capability::new(name, Ability::NotChecked, why.clone()))
                .into();
        };
        let (versions, may_delete) = inner.probe_versions(control);
        let lock = match versions.state {
            Ability::Yes => inner.probe_lock(control, may_delete),
            _ => Capability::new(Capability::LOCK, versions.state, format!("it needs versions: {}", versions.reason)),
        };
        vec![versions, lock]
    }
}

impl Inner {
    fn probe_name(what: &str) -> Result<ObjectName, StoreError> {
        let random =
            getrandom::u64().map_err(|e| StoreError::io("probe", what, std::io::Error::other(e.to_string())))?;
        ObjectName::parse(&format!("{PROBE_DIR}/{what}-{}-{random:016x}", std::process::id()))
    }

    /// Whether what was deleted can still be had; and whether these credentials may remove versions for good.
    fn probe_versions(&self, control: &Control) -> (Capability, bool) {
        let of = |state, reason: String| (Capability::new(Capability::VERSIONS, state, reason), false);
        let asked =
            self.attempts.run(0, || control.has_versions()).map_err(|e| e.about("ask for versions of", &self.url));
        match asked {
            Ok(true) => {}
            Ok(false) => return of(Ability::No, "the bucket does not keep them".into()),
            Err(e) => return of(Ability::NotChecked, e.to_string()),
        }
        let tried = || -> Result<(bool, bool), StoreError> {
            let name = Self::probe_name("versions")?;
            self.put_locked(&name, None)?;
            self.remove(&name)?;
            let versions = self.versions_of(control, &name)?;
            let kept = versions.iter().any(|v| v.size.is_some());
            let mut may_delete = true;
            for version in &versions {
                may_delete &= self.delete_version(control, version)?;
            }
            self.remove_old_probes(control)?;
            Ok((kept, may_delete))
        };
        match tried() {
            Ok((true, may_delete)) => {
                let also = if may_delete { "; these credentials may remove versions for good" } else { "" };
                let reason = format!("an object that was deleted is still there as a version{also}");
                (Capability::new(Capability::VERSIONS, Ability::Yes, reason), may_delete)
            }
            Ok((false, _)) => of(Ability::No, "the bucket claims to keep them, and a deleted object is gone".into()),
            Err(e) => of(Ability::NotChecked, e.to_string()),
        }
    }

    /// Whether a locked version can be removed all the same.
    fn probe_lock(&self, control: &Control, may_delete: bool) -> Capability {
        let of = |state, reason: String| Capability::new(Capability::LOCK, state, reason);
        let asked =
            self.attempts.run(0, || control.has_object_lock()).map_err(|e| e.about("ask for the lock of", &self.url));
        let policy = match (asked, &self.lock) {
            (Ok(false), _) => return of(Ability::No, "it is not enabled for the bucket".into()),
            (Err(e), _) => return of(Ability::NotChecked, e.to_string()),
            (Ok(true), None) => {
                let why =
                    "the bucket says that it has it; no lock is configured for this repository, so it was not tried";
                return of(Ability::NotChecked, why.into());
            }
            (Ok(true), Some(locking)) => locking.policy,
        };
        let until = Timestamp::now().checked_add(PROBE_LOCK).unwrap_or(Timestamp::MAX);
        let wanted = Retention { mode: policy.mode(), until };
        let tried = || -> Result<(Option<Retention>, bool), StoreError> {
            let name = Self::probe_name("lock")?;
            self.put_locked(&name, Some(wanted))?;
            let told = self.retention(control, &name, None)?;
            let mut all_kept = true;
            for version in self.versions_of(control, &name)?.iter().filter(|v| v.size.is_some()) {
                let removed = self.delete_version(control, version)?;
                let left = self.versions_of(control, &name)?;
                all_kept &= !removed && left.iter().any(|v| v.id == version.id);
            }
            self.remove(&name)?;
            Ok((told, all_kept))
        };
        match tried() {
            Ok((_, false)) => {
                of(Ability::No, "the store took the lock, and then let the locked version be removed".into())
            }
            Ok((told, true))
                if !told.is_some_and(|t| t.mode == wanted.mode && t.until.as_second() >= until.as_second()) =>
            {
                of(Ability::No, "the store took the lock, and does not say that the object is locked".into())
            }
            Ok((_, true)) if may_delete => {
                of(Ability::Yes, format!("a version that is locked ({}) could not be removed", policy.mode()))
            }
            Ok((_, true)) => {
                let why =
                    "the lock is there; these credentials may not remove any version, so it was not tried against them";
                of(Ability::NotChecked, why.into())
            }
            Err(e) => of(Ability::NotChecked, e.to_string()),
        }
    }

    fn put_locked(&self, name: &ObjectName, lock: Option<Retention>) -> Result<(), StoreError> {
        let path = self.path(name.as_str())?;
        let put = || {
            let mut options = PutOptions { mode: self.put_mode(), ..Default::default() };
            if let Some(lock) = lock {
                options.extensions.insert(Retain(lock));
            }
            self.client.put_opts(&path, PutPayload::from_static(b"probe"), options)
        };
        self.attempts.run(0, put).map(drop).map_err(|e| e.about("create", name))
    }

    fn versions_of(&self, control: &Control, name: &ObjectName) -> Result<Vec<Listed>, StoreError> {
        let key = self.path(name.as_str())?.to_string();
        let mut found = vec![];
        self.each_key(control, &key, &mut |versions| {
            if versions.first().is_some_and(|v| v.key == key) {
                found = versions.to_vec();
            }
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// False when the store refuses.
    fn delete_version(&self, control: &Control, version: &Listed) -> Result<bool, StoreError> {
        let deleted = self.attempts.run(0, || control.delete_version(&version.key, &version.id));
        match deleted.map_err(|e| e.about("delete", &version.key)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == StoreErrorKind::Denied => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn remove_old_probes(&self, control: &Control) -> Result<(), StoreError> {
        let old = Timestamp::now().checked_sub(PROBES_OLD).unwrap_or(Timestamp::MIN);
        let mut found = vec![];
        self.each_key(control, &self.key_prefix(PROBE_DIR)?, &mut |versions| {
            found.extend(versions.iter().filter(|v| v.modified < old).cloned());
            Ok(ControlFlow::Continue(()))
        })?;
        for version in found {
            // Refused while it is locked; then the next one removes it.
            self.delete_version(control, &version)?;
        }
        Ok(())
    }

    fn retention(
        &self,
        control: &Control,
        name: &ObjectName,
        version: Option<&str>,
    ) -> Result<Option<Retention>, StoreError> {
        let key = self.path(name.as_str())?.to_string();
        self.attempts.run(0, || control.retention(&key, version)).map_err(|e| e.about("ask for the lock of", name))
    }

    /// For an object that was put together of parts: not every store heeds the lock that an upload begins with.
    pub(super) fn ensure_locked(&self, name: &ObjectName, version: Option<&str>) -> Result<(), StoreError> {
        let (Some(control), Some(Locking { policy })) = (&self.control, &self.lock) else { return Ok(()) };
        let now = Timestamp::now();
        let is_locked =
            |told: Option<Retention>| told.is_some_and(|t| t.mode >= policy.mode() && t.until >= policy.at_least(now));
        if is_locked(self.retention(control, name, version)?) {
            return Ok(());
        }
        let key = self.path(name.as_str())?.to_string();
        let wanted = Retention { mode: policy.mode(), until: policy.until(now) };
        let retain = || control.retain(&key, version, wanted);
        self.attempts.run(0, retain).map_err(|e| e.about("lock", name))?;
        if is_locked(self.retention(control, name, version)?) {
            return Ok(());
        }
        let why = "the store took the lock, and does not say that the object is locked";
        Err(StoreError::io("lock", name, std::io::Error::other(why)))
    }

    /// Single-writer mode, which creating a name twice does not show: it looks before.
    fn single_writer(&self) -> Option<Capability> {
        (self.conditional == Conditional::SingleWriter).then(|| {
            let why =
                "conditional_writes=false: only ONE host may work with this repository at a time, archiving included";
            Capability::new(Capability::CREATE, Ability::No, why)
        })
    }
}

impl ObjectLock for CloudStore {
    fn policy(&self) -> LockPolicy {
        self.locking().expect("offered only where objects are locked").1
    }

    fn versions(&self, prefix: &str, visit: &mut VisitVersions<'_>) -> Result<(), StoreError> {
        let (control, _) = self.locking().expect("offered only where objects are locked");
        self.inner.each_key(control, &self.inner.key_prefix(prefix)?, &mut |versions| {
            let mut found = Vec::with_capacity(versions.len());
            for v in versions {
                let path = object_store::path::Path::parse(&v.key)
                    .map_err(|e| StoreError::io("list", &v.key, std::io::Error::other(e)))?;
                let Some(name) = self.inner.relative(&path)? else { continue };
                let (id, size, modified, is_latest) = (v.id.clone(), v.size, v.modified, v.is_latest);
                found.push(ObjectVersion { name, id, size, modified, is_latest });
            }
            if !found.is_empty() {
                visit(&found)?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn retention(&self, name: &ObjectName, version: Option<&str>) -> Result<Option<Retention>, StoreError> {
        let (control, _) = self.locking().expect("offered only where objects are locked");
        self.inner.retention(control, name, version)
    }

    fn retain(&self, name: &ObjectName, version: &str, retention: Retention) -> Result<(), StoreError> {
        let (control, _) = self.locking().expect("offered only where objects are locked");
        let key = self.inner.path(name.as_str())?.to_string();
        let retain = || control.retain(&key, Some(version), retention);
        self.inner.attempts.run(0, retain).map_err(|e| e.about("lock", name))
    }
}
