//! For stores that wrap another one: whatever such a store does not do itself, the one below does. The trait has defaults for
//! plain stores; a layer that forgot one would hide what is below it.

/// Methods of `Store` that go to `self.inner()` as they are.
macro_rules! forward_to_inner {
    ($($method:ident)*) => { $($crate::store::forward::forward_to_inner!(@ $method);)* };
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
