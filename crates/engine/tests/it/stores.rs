//! Stores that a test can stop in the middle, or fill.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgark_repo::store::{MemoryStore, ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};

/// What goes on while a process is stopped.
type Meanwhile = Box<dyn FnOnce() + Send>;

/// Stops before one of its operations, and goes on afterwards as if nothing had been.
pub struct PausingStore {
    inner: Arc<dyn Store>,
    state: Mutex<(u64, u64, Option<Meanwhile>)>,
}

impl PausingStore {
    pub fn new(inner: Arc<dyn Store>, nth: u64, meanwhile: impl FnOnce() + Send + 'static) -> Self {
        PausingStore { inner, state: Mutex::new((0, nth, Some(Box::new(meanwhile)))) }
    }

    pub fn operations(&self) -> u64 {
        self.state.lock().unwrap().0
    }

    fn pause(&self) {
        let due = {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            if state.0 == state.1 { state.2.take() } else { None }
        };
        if let Some(meanwhile) = due {
            meanwhile();
        }
    }
}

impl Store for PausingStore {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.pause();
        self.inner.put_new(name, bytes)
    }
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        self.pause();
        self.inner.create(name)
    }
    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.pause();
        self.inner.read(name, max)
    }
    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.pause();
        self.inner.read_at(name, offset, buf)
    }
    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.pause();
        self.inner.stat(name)
    }
    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.pause();
        self.inner.list(prefix, visit)
    }
    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.pause();
        self.inner.list_dirs(prefix)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.pause();
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

/// Has so much room and no more.
pub struct SmallStore {
    inner: MemoryStore,
    capacity: AtomicU64,
    /// Every object takes a multiple of this.
    block: u64,
}

impl SmallStore {
    pub fn new(inner: MemoryStore, capacity: u64) -> Self {
        SmallStore { inner, capacity: AtomicU64::new(capacity), block: 1 }
    }

    /// As a file system, with so many blocks to spare.
    pub fn in_blocks(inner: MemoryStore, block: u64, spare: u64) -> Self {
        let capacity = AtomicU64::new(used_in_blocks(&inner, block) + spare * block);
        SmallStore { inner, capacity, block }
    }

    pub fn used(&self) -> u64 {
        used_in_blocks(&self.inner, self.block)
    }

    pub fn shrink_to_what_is_used(&self) {
        self.capacity.store(self.used(), Ordering::Relaxed);
    }
}

pub fn used(store: &dyn Store) -> u64 {
    used_in_blocks(store, 1)
}

fn used_in_blocks(store: &dyn Store, block: u64) -> u64 {
    let mut used = 0;
    let mut add = |stat: ObjectStat| {
        used += stat.size.next_multiple_of(block);
        Ok(())
    };
    store.list("", &mut add).unwrap();
    used
}

impl Store for SmallStore {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        if self.used() + (bytes.len() as u64).next_multiple_of(self.block) > self.capacity.load(Ordering::Relaxed) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(StoreError::NoSpace { object: name.to_string(), source });
        }
        self.inner.put_new(name, bytes)
    }
    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(StoreError::NoSpace { object: name.to_string(), source })
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
        self.inner.delete(name)
    }
    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(Some(self.capacity.load(Ordering::Relaxed).saturating_sub(self.used())))
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
