//! A store from which this client removes nothing, whatever it is asked for. What is left undone by that is left to
//! a client without this restriction.
//!
//! Invariant: no call of this type removes or replaces an object. It restrains us, not who has our credentials.

use std::sync::Arc;
use std::time::Duration;

use super::forward::forward_to_inner;
use super::{Ability, Capability, ObjectLock, ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};

pub struct AppendOnlyStore {
    inner: Arc<dyn Store>,
}

impl AppendOnlyStore {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        AppendOnlyStore { inner }
    }

    fn inner(&self) -> &dyn Store {
        &*self.inner
    }
}

impl Store for AppendOnlyStore {
    forward_to_inner!(has_own_clock space may_archive heal notices parity);

    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.put_new(name, bytes)
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        self.inner.create(name)
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.inner.read(name, max)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(name, offset, buf)
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.inner.stat(name)
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.inner.list(prefix, visit)
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.inner.list_dirs(prefix)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        Err(StoreError::AppendOnly { object: name.to_string() })
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        self.inner.free_bytes()
    }

    fn url(&self) -> String {
        self.inner.url()
    }

    /// Nothing: also a temporary file may be one that somebody else is writing.
    fn sweep_abandoned(&self, _older_than: Duration) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn weaknesses(&self) -> Vec<String> {
        self.inner.weaknesses()
    }

    /// Probing removes what it wrote.
    fn probe(&self) -> Vec<Capability> {
        let why = "append_only: what would have to be removed again is not tried";
        [Capability::VERSIONS, Capability::LOCK].map(|name| Capability::new(name, Ability::NotChecked, why)).into()
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.inner.object_lock()
    }

    fn may_delete(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryStore, StoreErrorKind};

    #[test]
    fn nothing_is_removed_and_nothing_replaced() {
        let inner = Arc::new(MemoryStore::new());
        let store = AppendOnlyStore::new(inner.clone());
        let name = ObjectName::parse("a/x").unwrap();
        store.put_new(&name, b"x").unwrap();
        for refused in [store.delete(&name), store.discard(&name)] {
            assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::AppendOnly);
        }
        assert_eq!(store.put_new(&name, b"y").unwrap_err().kind(), StoreErrorKind::AlreadyExists);
        assert_eq!(inner.read(&name, 10).unwrap(), b"x");
        assert!(!store.may_delete() && inner.may_delete());
    }
}
