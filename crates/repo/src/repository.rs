//! An opened repository: a store and the keys to it.

use std::sync::Arc;

use crate::crypto::{Algorithm, Key32, KeySet};
use crate::error::{RepoError, Result};
use crate::keyring::{self, Keyring, NewKeys, SlotInfo, Unlock};
use crate::names::{CLUSTERS, ClusterName};
use crate::register::RegisterProblem;
use crate::store::Store;

#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    keys: KeySet,
    id: String,
    slots: Vec<SlotInfo>,
    /// None for holders of the WAL keys alone, and without encryption.
    master: Option<Key32>,
}

/// Whether `init` made the repository or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

impl Repository {
    /// Makes the repository when there is none; otherwise opens it, and refuses when what is asked for is not
    /// what is there.
    pub fn init(store: Arc<dyn Store>, new: &NewKeys) -> Result<(Self, Created)> {
        let register = keyring::register(store.clone());
        let mut created = Created::Before;
        register.update(|current| {
            if current.is_some() {
                created = Created::Before;
                return Ok(None);
            }
            created = Created::Now;
            Ok(Some(Keyring::create(new)?.to_bytes()))
        })?;
        let ring = Self::open_ring(&store, &mut |bytes| Keyring::open(bytes, &new.unlock))?;
        Ok((Self::from_ring(store, &ring), created))
    }

    pub fn open(store: Arc<dyn Store>, unlock: &Unlock) -> Result<Self> {
        let ring = Self::open_ring(&store, &mut |bytes| Keyring::open(bytes, unlock))?;
        Ok(Self::from_ring(store, &ring))
    }

    /// Opens with a key that was unwrapped earlier; the ring's authentication code is checked all the same.
    pub fn open_with_master(store: Arc<dyn Store>, master: Key32) -> Result<Self> {
        let ring = Self::open_ring(&store, &mut |bytes| Keyring::open_with_master(bytes, master.clone()))?;
        Ok(Self::from_ring(store, &ring))
    }

    /// Only opening tells a whole copy of the ring from a damaged one.
    fn open_ring(store: &Arc<dyn Store>, open: &mut dyn FnMut(&[u8]) -> Result<Keyring>) -> Result<Keyring> {
        let found = keyring::register(store.clone()).read_with(open)?;
        found.map(|(_, ring)| ring).ok_or_else(|| RepoError::NoRepository { url: store.url() })
    }

    /// Opens for fetching WAL only, with keys that a restore left beside a recovering server.
    pub fn open_for_wal(store: Arc<dyn Store>, keys: KeySet) -> Self {
        Repository { store, keys, id: String::new(), slots: vec![], master: None }
    }

    /// The key ring as stored, from the first copy that is there. Not authenticated.
    pub fn ring_bytes(store: &Arc<dyn Store>) -> Result<Vec<u8>> {
        let version = keyring::register(store.clone()).read()?;
        Ok(version.ok_or_else(|| RepoError::NoRepository { url: store.url() })?.value)
    }

    fn from_ring(store: Arc<dyn Store>, ring: &Keyring) -> Self {
        let master = ring.newest_key().cloned();
        Repository { store, keys: ring.keys(), id: ring.repository_id(), slots: ring.slots(), master }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn encryption(&self) -> Algorithm {
        self.keys.algorithm()
    }

    pub fn slots(&self) -> &[SlotInfo] {
        &self.slots
    }

    pub fn clusters(&self) -> Result<Vec<ClusterName>> {
        self.store.list_dirs(CLUSTERS)?.iter().map(|n| ClusterName::parse(n)).collect()
    }

    /// The newest master key, for a key cache.
    pub fn master(&self) -> Option<&Key32> {
        self.master.as_ref()
    }

    /// Every copy of the key ring, opened with the key that we hold.
    pub fn check_keyring(&self) -> Result<Vec<RegisterProblem>> {
        keyring::register(self.store.clone()).check_with(&mut |bytes| match &self.master {
            Some(m) => Keyring::open_with_master(bytes, m.clone()).map(drop),
            None => Keyring::open(bytes, &Unlock::default()).map(drop),
        })
    }
}
