//! A store from which this client removes nothing, whatever it is asked for. What is left undone by that is left to
//! a client without this restriction.
//!
//! Invariant: no call of this type removes or replaces an object. It restrains us, not who has our credentials.

use std::sync::Arc;
use std::time::Duration;

use super::forward::forward_to_inner;
use super::{Ability, Capability, ObjectName, Store, StoreError};

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
    forward_to_inner!(put_new create read read_at stat list list_dirs free_bytes url weaknesses object_lock has_own_clock space may_archive heal notices parity);

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        Err(StoreError::AppendOnly { object: name.to_string() })
    }

    /// Nothing: also a temporary file may be one that somebody else is writing.
    fn sweep_abandoned(&self, _older_than: Duration) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// Probing removes what it wrote.
    fn probe(&self) -> Vec<Capability> {
        let why = "this client removes nothing, and what would have to be removed again is not tried";
        [Capability::VERSIONS, Capability::LOCK].map(|name| Capability::new(name, Ability::NotChecked, why)).into()
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
