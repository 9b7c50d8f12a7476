//! For stores that wrap another one: whatever such a store does not do itself, the one below does. The trait has defaults for
//! plain stores; a layer that forgot one would hide what is below it.

/// Methods of `Store` that go to `self.inner()` as they are.
macro_rules! forward_to_inner {
    ($($method:ident)*) => { $($crate::store::forward::forward_to_inner!(@ $method);)* };
    (@ put_new) => {
        fn put_new(&self, name: &$crate::store::ObjectName, bytes: &[u8]) -> Result<(), $crate::store::StoreError> {
            self.inner().put_new(name, bytes)
        }
    };
    (@ create) => {
        fn create(
            &self,
            name: &$crate::store::ObjectName,
        ) -> Result<Box<dyn $crate::store::ObjectWriter>, $crate::store::StoreError> {
            self.inner().create(name)
        }
    };
    (@ read) => {
        fn read(&self, name: &$crate::store::ObjectName, max: u64) -> Result<Vec<u8>, $crate::store::StoreError> {
            self.inner().read(name, max)
        }
    };
    (@ read_at) => {
        fn read_at(
            &self,
            name: &$crate::store::ObjectName,
            offset: u64,
            buf: &mut [u8],
        ) -> Result<(), $crate::store::StoreError> {
            self.inner().read_at(name, offset, buf)
        }
    };
    (@ stat) => {
        fn stat(
            &self,
            name: &$crate::store::ObjectName,
        ) -> Result<$crate::store::ObjectStat, $crate::store::StoreError> {
            self.inner().stat(name)
        }
    };
    (@ list) => {
        fn list(&self, prefix: &str, visit: &mut $crate::store::Visit<'_>) -> Result<(), $crate::store::StoreError> {
            self.inner().list(prefix, visit)
        }
    };
    (@ list_dirs) => {
        fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, $crate::store::StoreError> {
            self.inner().list_dirs(prefix)
        }
    };
    (@ delete) => {
        fn delete(&self, name: &$crate::store::ObjectName) -> Result<(), $crate::store::StoreError> {
            self.inner().delete(name)
        }
    };
    (@ discard) => {
        fn discard(&self, name: &$crate::store::ObjectName) -> Result<(), $crate::store::StoreError> {
            self.inner().discard(name)
        }
    };
    (@ free_bytes) => {
        fn free_bytes(&self) -> Result<Option<u64>, $crate::store::StoreError> {
            self.inner().free_bytes()
        }
    };
    (@ url) => {
        fn url(&self) -> String {
            self.inner().url()
        }
    };
    (@ sweep_abandoned) => {
        fn sweep_abandoned(&self, older_than: std::time::Duration) -> Result<u64, $crate::store::StoreError> {
            self.inner().sweep_abandoned(older_than)
        }
    };
    (@ weaknesses) => {
        fn weaknesses(&self) -> Vec<String> {
            self.inner().weaknesses()
        }
    };
    (@ space) => {
        fn space(&self) -> Result<Option<$crate::store::Space>, $crate::store::StoreError> {
            self.inner().space()
        }
    };
    (@ may_archive) => {
        fn may_archive(&self) -> bool {
            self.inner().may_archive()
        }
    };
    (@ heal) => {
        fn heal(&self, name: &$crate::store::ObjectName) -> bool {
            self.inner().heal(name)
        }
    };
    (@ notices) => {
        fn notices(&self) -> Vec<String> {
            self.inner().notices()
        }
    };
    (@ parity) => {
        fn parity(&self) -> Option<$crate::parity::Percent> {
            self.inner().parity()
        }
    };
    (@ probe) => {
        fn probe(&self) -> Vec<$crate::store::Capability> {
            self.inner().probe()
        }
    };
    (@ object_lock) => {
        fn object_lock(&self) -> Option<&dyn $crate::store::ObjectLock> {
            self.inner().object_lock()
        }
    };
    (@ has_own_clock) => {
        fn has_own_clock(&self) -> bool {
            self.inner().has_own_clock()
        }
    };
    (@ may_delete) => {
        fn may_delete(&self) -> bool {
            self.inner().may_delete()
        }
    };
}

pub(crate) use forward_to_inner;
