//! A store whose damaged objects read as they were written, as far as their parity reaches. Healing happens in memory, when
//! a reader asks for it: only who opens the seals knows that something is wrong.
//!
//! Writing, deleting and listing are those of the store underneath. Whoever vouches for what is stored (a verification, a
//! writer that wants to rely on it) must not read through this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::heal::{HealError, Healed, heal};
use crate::limits::HEALED_BYTES_MAX;
use crate::store::forward::forward_to_inner;
use crate::store::{ObjectName, ObjectStat, Store, StoreError};

pub struct HealingStore {
    inner: Arc<dyn Store>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    healed: BTreeMap<ObjectName, Arc<Healed>>,
    /// Oldest first; what is forgotten is healed again when it is needed.
    order: Vec<ObjectName>,
    hopeless: BTreeSet<ObjectName>,
    said: Vec<String>,
}

impl HealingStore {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        HealingStore { inner, state: Mutex::default() }
    }

    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn healed(&self, name: &ObjectName) -> Option<Arc<Healed>> {
        self.lock().healed.get(name).cloned()
    }
}

impl State {
    fn remember(&mut self, name: &ObjectName, healed: Healed) {
        let shards = healed.shards.len();
        let what =
            format!("{name} is damaged in the repository and was healed in memory from its parity ({shards} sectors)");
        if !self.said.contains(&what) {
            self.said.push(what);
        }
        self.healed.insert(name.clone(), Arc::new(healed));
        self.order.push(name.clone());
        while self.healed.len() > 1 && self.healed.values().map(|h| h.bytes()).sum::<usize>() > HEALED_BYTES_MAX {
            self.healed.remove(&self.order.remove(0));
        }
    }
}

/// Reads a range as healed, without touching what is damaged.
fn read_healed(
    store: &dyn Store,
    name: &ObjectName,
    healed: &Healed,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), StoreError> {
    let end = offset.saturating_add(buf.len() as u64);
    if end > healed.size {
        return Err(StoreError::Truncated { object: name.to_string(), size: healed.size, wanted: end });
    }
    let before = healed.shards.range(..offset).next_back();
    let mut shards: Vec<(u64, &[u8])> = before.into_iter().map(|(at, s)| (*at, s.as_slice())).collect();
    shards.extend(healed.shards.range(offset..end).map(|(at, s)| (*at, s.as_slice())));
    let (mut at, mut rest) = (offset, buf);
    for (start, shard) in shards {
        let stop = start + shard.len() as u64;
        if stop <= at {
            continue;
        }
        let len = |n: u64| usize::try_from(n).expect("within the buffer");
        let (sound, later) = rest.split_at_mut(len(start.saturating_sub(at)));
        if !sound.is_empty() {
            store.read_at(name, at, sound)?;
        }
        at = at.max(start);
        let (now, later) = later.split_at_mut(len(stop.min(end) - at));
        now.copy_from_slice(&shard[len(at - start)..][..now.len()]);
        at += now.len() as u64;
        rest = later;
    }
    if rest.is_empty() { Ok(()) } else { store.read_at(name, at, rest) }
}

impl Store for HealingStore {
    forward_to_inner!(put_new create list list_dirs delete discard free_bytes url sweep_abandoned weaknesses has_own_clock space may_archive parity probe object_lock may_delete);

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        let Some(healed) = self.healed(name) else { return self.inner.read(name, max) };
        if healed.size > max {
            return Err(StoreError::TooLarge { object: name.to_string(), size: healed.size, max });
        }
        let no_memory = || StoreError::io("read", name, std::io::ErrorKind::OutOfMemory.into());
        let len = usize::try_from(healed.size).map_err(|_| no_memory())?;
        let mut bytes = vec![];
        bytes.try_reserve_exact(len).map_err(|_| no_memory())?;
        bytes.resize(len, 0);
        read_healed(&*self.inner, name, &healed, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        match self.healed(name) {
            Some(healed) => read_healed(&*self.inner, name, &healed, offset, buf),
            None => self.inner.read_at(name, offset, buf),
        }
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        match self.healed(name) {
            Some(healed) => Ok(ObjectStat { name: name.clone(), size: healed.size, modified: None }),
            None => self.inner.stat(name),
        }
    }

    fn heal(&self, name: &ObjectName) -> bool {
        // One at a time: it takes memory, and several threads often meet the same damage.
        let mut state = self.lock();
        if state.healed.contains_key(name) {
            return true;
        }
        if state.hopeless.contains(name) {
            return false;
        }
        match heal(&*self.inner, name) {
            Ok(healed) => {
                state.remember(name, healed);
                true
            }
            Err(why) => {
                state.hopeless.insert(name.clone());
                if !matches!(why, HealError::NoParity) {
                    state.said.push(format!("{name} is damaged and its parity does not heal it: {why}"));
                }
                false
            }
        }
    }

    fn notices(&self) -> Vec<String> {
        let said = std::mem::take(&mut self.lock().said);
        said.into_iter().chain(self.inner.notices()).collect()
    }
}
