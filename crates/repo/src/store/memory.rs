//! A store in memory, for tests and as the model the other stores are compared with. Durability is the only
//! promise of `Store` it cannot keep. A name is either an object or a directory, as in a file system, so that
//! a layout which would not work there fails here too.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::name::check_prefix;
use super::{ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};

#[derive(Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<Objects>>,
    clock: Option<Arc<Clock>>,
    name: String,
}

type Clock = dyn Fn() -> SystemTime + Send + Sync;

type Objects = BTreeMap<ObjectName, Stored>;

struct Stored {
    bytes: Vec<u8>,
    modified: Option<SystemTime>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that dates its objects, by a clock of its own.
    pub fn with_clock(clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        MemoryStore { clock: Some(Arc::new(clock)), ..Self::default() }
    }

    /// One that is told from others by its URL.
    pub fn called(name: &str) -> Self {
        MemoryStore { name: name.to_owned(), ..Self::default() }
    }

    fn now(&self) -> Option<SystemTime> {
        self.clock.as_ref().map(|clock| clock())
    }

    /// Changes an object behind the store's back, as a failing disk or an attacker would.
    pub fn damage(&self, name: &ObjectName, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), StoreError> {
        match lock(&self.objects).get_mut(name) {
            Some(stored) => {
                change(&mut stored.bytes);
                Ok(())
            }
            None => Err(StoreError::not_found(name)),
        }
    }

    fn with<T>(&self, name: &ObjectName, look: impl FnOnce(&Stored) -> Result<T, StoreError>) -> Result<T, StoreError> {
        lock(&self.objects).get(name).map_or_else(|| Err(StoreError::not_found(name)), look)
    }

    /// The objects below a prefix as they are now: a visitor may use the store while it is called.
    fn below(&self, prefix: &str) -> Result<Vec<ObjectStat>, StoreError> {
        check_prefix(prefix)?;
        let objects = lock(&self.objects);
        Ok(objects.iter().filter(|(name, _)| is_below(prefix, name)).map(|(name, s)| s.stat(name)).collect())
    }
}

impl Stored {
    fn stat(&self, name: &ObjectName) -> ObjectStat {
        ObjectStat { name: name.clone(), size: self.bytes.len() as u64, modified: self.modified }
    }
}

fn lock(objects: &Mutex<Objects>) -> MutexGuard<'_, Objects> {
    // No operation leaves the map half changed, so a panic elsewhere does not spoil it.
    objects.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_below(prefix: &str, name: &ObjectName) -> bool {
    prefix.is_empty() || name.as_str().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

fn insert(
    objects: &Mutex<Objects>,
    name: &ObjectName,
    bytes: Vec<u8>,
    modified: Option<SystemTime>,
) -> Result<(), StoreError> {
    let mut objects = lock(objects);
    if objects.contains_key(name) {
        return Err(StoreError::already_exists(name));
    }
    let mut parent = name.parent();
    while let Ok(above) = ObjectName::parse(parent) {
        if objects.contains_key(&above) {
            return Err(StoreError::io("create", name, io::ErrorKind::NotADirectory.into()));
        }
        parent = parent.rsplit_once('/').map_or("", |(up, _)| up);
    }
    if objects.keys().any(|other| is_below(name.as_str(), other)) {
        return Err(StoreError::io("create", name, io::ErrorKind::IsADirectory.into()));
    }
    objects.insert(name.clone(), Stored { bytes, modified });
    Ok(())
}

impl Store for MemoryStore {
    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        insert(&self.objects, name, bytes.to_vec(), self.now())
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let (objects, clock) = (Arc::clone(&self.objects), self.clock.clone());
        Ok(Box::new(MemoryWriter { objects, clock, name: name.clone(), bytes: vec![] }))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.with(name, |stored| match stored.bytes.len() as u64 {
            size if size > max => Err(StoreError::TooLarge { object: name.to_string(), size, max }),
            _ => Ok(stored.bytes.clone()),
        })
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.with(name, |stored| {
            let wanted = offset.saturating_add(buf.len() as u64);
            let from = usize::try_from(offset).ok();
            let bytes = from.and_then(|from| stored.bytes.get(from..from.checked_add(buf.len())?));
            let size = stored.bytes.len() as u64;
            let bytes = bytes.ok_or_else(|| StoreError::Truncated { object: name.to_string(), size, wanted })?;
            buf.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.with(name, |stored| Ok(stored.stat(name)))
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.below(prefix)?.into_iter().try_for_each(visit)
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let skip = if prefix.is_empty() { 0 } else { prefix.len() + 1 };
        let objects = self.below(prefix)?;
        let dirs = objects.iter().filter_map(|o| o.name.as_str().get(skip..)?.split_once('/'));
        Ok(dirs.map(|(dir, _)| dir.to_owned()).collect::<std::collections::BTreeSet<_>>().into_iter().collect())
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        lock(&self.objects).remove(name).map(drop).ok_or_else(|| StoreError::not_found(name))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    fn has_own_clock(&self) -> bool {
        self.clock.is_some()
    }

    fn url(&self) -> String {
        format!("memory:{}", self.name)
    }

    fn sweep_abandoned(&self, _older_than: Duration) -> Result<u64, StoreError> {
        Ok(0) // a writer that is gone has taken its bytes along
    }
}

struct MemoryWriter {
    objects: Arc<Mutex<Objects>>,
    clock: Option<Arc<Clock>>,
    name: ObjectName,
    bytes: Vec<u8>,
}

impl ObjectWriter for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn written(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        insert(&self.objects, &self.name, self.bytes, self.clock.map(|clock| clock()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(s: &str) -> ObjectName {
        ObjectName::parse(s).unwrap()
    }

    #[test]
    fn memory_store_conforms() {
        super::super::conformance::conformance(&|| Arc::new(MemoryStore::new()));
    }

    #[test]
    fn a_name_is_an_object_or_a_directory() {
        let store = MemoryStore::new();
        store.put_new(&name("a/b"), b"1").unwrap();
        assert!(matches!(store.put_new(&name("a"), b""), Err(StoreError::Io { .. })));
        assert!(matches!(store.put_new(&name("a/b/c/d"), b""), Err(StoreError::Io { .. })));
        store.put_new(&name("ab"), b"").unwrap();
    }

    #[test]
    fn damage_is_seen_by_readers() {
        let store = MemoryStore::new();
        store.put_new(&name("a"), b"1").unwrap();
        store.damage(&name("a"), |b| b.push(b'2')).unwrap();
        assert_eq!(store.read(&name("a"), 10).unwrap(), b"12");
        assert!(store.damage(&name("b"), |_| ()).unwrap_err().is_not_found());
    }
}
