//! A store that measures how much its callers want at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgark_repo::store::{ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};

/// Remembers the largest piece of memory that somebody wanted filled, or was ready to take.
pub struct Meter {
    inner: Arc<dyn Store>,
    largest: AtomicU64,
}

impl Meter {
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Meter { inner, largest: AtomicU64::new(0) })
    }

    pub fn largest(&self) -> u64 {
        self.largest.load(Ordering::SeqCst)
    }
}

impl Store for Meter {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.put_new(name, bytes)
    }
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        self.inner.create(name)
    }
    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.largest.fetch_max(max, Ordering::SeqCst);
        self.inner.read(name, max)
    }
    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.largest.fetch_max(buf.len() as u64, Ordering::SeqCst);
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
        self.inner.delete(name)
    }
    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        self.inner.free_bytes()
    }
    fn has_own_clock(&self) -> bool {
        self.inner.has_own_clock()
    }
    fn url(&self) -> String {
        self.inner.url()
    }
    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.inner.sweep_abandoned(older_than)
    }
}
