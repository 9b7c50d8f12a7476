//! An opened repository: a store and the keys to it.

use std::sync::Arc;

use crate::crypto::{Algorithm, Key32, KeySet, Keys, Renew};
use crate::error::{RepoError, Result};
use crate::keyring::{self, CopySlots, Keyring, NewKeys, SlotError, SlotInfo, Unlock};
use crate::names::{CLUSTERS, ClusterName, KEYRING};
use crate::parity::HealingStore;
use crate::register::RegisterProblem;
use crate::seals;
use crate::store::{AppendOnlyStore, Store};

#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    /// Without the view on seals.
    bare: Arc<dyn Store>,
    /// As `store`, and old versions of registers may go.
    books: Arc<dyn Store>,
    keys: KeySet,
    id: String,
    slots: Vec<SlotInfo>,
}

/// Whether `init` made the repository or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

/// What to do where there is no re-keyed copy yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rekeyed {
    Make,
    Leave,
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
            // A new key would open nothing of what lies there.
            let mut there = None;
            store.list(CLUSTERS, &mut |stat| {
                there.get_or_insert(stat.name);
                Ok(())
            })?;
            if let Some(name) = there {
                return Err(RepoError::corrupt(
                    "keyring",
                    format!("it is missing, although {name} is there: 'pgark replicate' from a copy brings it back"),
                ));
            }
            created = Created::Now;
            Ok(Some(Keyring::create(new)?.to_bytes()))
        })?;
        let ring = Self::open_ring(&store, &mut |bytes| Keyring::open(bytes, &new.unlock))?;
        Ok((Self::from_ring(store, &ring, &new.unlock), created))
    }

    pub fn open(store: Arc<dyn Store>, unlock: &Unlock) -> Result<Self> {
        let ring = Self::open_ring(&store, &mut |bytes| Keyring::open(bytes, unlock))?;
        Ok(Self::from_ring(store, &ring, unlock))
    }

    /// Opens what `ring_bytes` found with a key that was unwrapped earlier; the ring's authentication code is checked all the same. `unlock`
    /// is used when the key was rotated meanwhile.
    pub fn open_with_master(store: Arc<dyn Store>, ring: &[u8], master: Key32, unlock: &Unlock) -> Result<Self> {
        let ring = Keyring::open_with_master(ring, master)?;
        Ok(Self::from_ring(store, &ring, unlock))
    }

    /// Opens a copy of this repository in another store. Where there is none it gets our key ring; one with an older key
    /// gets the newer ring, unless a slot of its own would go with that. What is there and of another key is left alone.
    ///
    /// # Errors
    /// `WrongKey` for a repository that is not a copy of this one; `CopySlots` for one that keeps its older ring for the sake of
    /// its slots.
    pub fn open_copy(&self, store: Arc<dyn Store>) -> Result<(Self, Created)> {
        self.open_copy_with(store, &CopySlots::default())
    }

    /// As `open_copy`, with what is said of the slots of the copy.
    pub fn open_copy_with(&self, store: Arc<dyn Store>, slots: &CopySlots<'_>) -> Result<(Self, Created)> {
        let keys = self.keys.current();
        // A writer opens each copy with its secret, for its slot has another key there; it makes none.
        self.require_reader("a copy of the repository")?;
        let open = |bytes: &[u8]| match keys.masters() {
            [] => Keyring::open(bytes, &Unlock::default()),
            masters if keyring::peek_generation(bytes)? < masters.first().map_or(0, |(oldest, _)| *oldest) => {
                Err(self.retired_too_early(&*store))
            }
            masters => Keyring::open_with_masters(bytes, masters),
        };
        let (ring, ours) = keyring::register(self.store.clone())
            .read_with(&mut |bytes| open(bytes))?
            .ok_or_else(|| RepoError::NoRepository { url: self.store.url() })?;
        let mut created = Created::Before;
        // One damaged copy of the ring is not the ring.
        let mut open_there = |bytes: &[u8]| {
            if keyring::peek_repository_id(bytes)? != self.id {
                let why = format!("{} is a repository of its own, and not a copy of {}", store.url(), self.store.url());
                return Err(RepoError::WrongKey { why });
            }
            let (newest, theirs) = (keys.masters().last().map_or(0, |(g, _)| *g), keyring::peek_generation(bytes)?);
            if theirs > newest && newest > 0 {
                return Err(match keyring::peek_oldest_generation(bytes)? {
                    oldest if oldest > newest => self.rotated_and_retired_alone(&*store, theirs, newest),
                    _ => self.rotated_alone(&*store, theirs, newest),
                });
            }
            let is_held = keys.masters().iter().any(|(generation, _)| *generation == theirs);
            if theirs > 1 && is_held && !keyring::is_under(bytes, keys.masters())? {
                return Err(self.rotated_apart(&*store, theirs));
            }
            open(bytes)
        };
        keyring::register(store.clone()).update_with(&mut open_there, |current, there| {
            let is_older = match &there {
                None => true,
                Some(there) => {
                    let is_older = there.generation() < ours.generation();
                    // A key that was retired here may be all that opens what is there.
                    if is_older && there.masters().iter().any(|m| !ours.masters().contains(m)) {
                        return Err(self.retired_too_early(&*store));
                    }
                    if is_older {
                        self.refuse_lost_slots(&*store, &ours.lacking_of(there, slots)?)?;
                    }
                    is_older
                }
            };
            created = if current.is_none() { Created::Now } else { Created::Before };
            Ok(is_older.then(|| ring.value.clone()))
        })?;
        if !slots.drop.is_empty()
            && !keyring::register(store.clone()).retire_older(&mut |bytes| open(bytes).map(drop))?
        {
            tracing::debug!("an older key ring of the copy can still be read");
        }
        let opened = Self::open_ring(&store, &mut |bytes| open(bytes))?;
        Ok((Self::from_ring(store, &opened, &Unlock::default()), created))
    }

    fn refuse_lost_slots(&self, store: &dyn Store, lost: &[SlotInfo]) -> Result<()> {
        if lost.is_empty() {
            return Ok(());
        }
        let slots = lost.iter().map(SlotInfo::describe).collect::<Vec<_>>().join(", ");
        Err(RepoError::CopySlots { here: self.store.url(), there: store.url(), slots })
    }

    /// By what its ring says; nobody can say here whether that is true.
    fn rotated_alone(&self, store: &dyn Store, theirs: u32, ours: u32) -> RepoError {
        let (here, there) = (self.store.url(), store.url());
        RepoError::WrongKey {
            why: format!(
                "the key of {there} was rotated alone: it is of generation {theirs}, that of {here} of {ours}. 'pgark replicate \
                 --from {there} --to {here}' brings the newer key ring to {here}"
            ),
        }
    }

    /// As `rotated_alone`; and what opens this one was given up there.
    fn rotated_and_retired_alone(&self, store: &dyn Store, theirs: u32, ours: u32) -> RepoError {
        let (here, there) = (self.store.url(), store.url());
        RepoError::WrongKey {
            why: format!(
                "the key of {there} was rotated alone, and the older one given up there: it is of generation {theirs}, that of {here} \
                 of {ours}. They are copies of each other no more: when {there} has all that is wanted, move {here} away, and 'pgark \
                 replicate --from {there} --to {here}' makes it anew"
            ),
        }
    }

    /// Of a ring that is of a generation which is held, and not under its key.
    fn rotated_apart(&self, store: &dyn Store, generation: u32) -> RepoError {
        let (here, there) = (self.store.url(), store.url());
        RepoError::WrongKey {
            why: format!(
                "generation {generation} of the key is another one in {there} than in {here}: both were rotated, each on its own, and \
                 cannot be joined. Leave both key rings as they are; 'pgark replicate' from the one that is to go on into a new place makes \
                 a copy. When nobody rotated them, somebody without the key changed the ring of {there}"
            ),
        }
    }

    fn retired_too_early(&self, store: &dyn Store) -> RepoError {
        let (here, there) = (self.store.url(), store.url());
        RepoError::WrongKey {
            why: format!("{there} has objects under older keys, which the key ring of {here} has given up already"),
        }
    }

    /// Opens a copy of this repository that has keys of its own. Where there is none it is made, if `missing` says so;
    /// nothing that opens this one opens it, but what `new` shares with it.
    ///
    /// # Errors
    /// `WrongKey` for a repository that is no such copy.
    pub fn open_rekeyed(&self, store: Arc<dyn Store>, new: &NewKeys, missing: Rekeyed) -> Result<Option<Self>> {
        let content = self.keys.content_key().filter(|_| self.encryption() != Algorithm::None);
        let content = content.ok_or(RepoError::Slot(SlotError::NotEncrypted))?;
        if missing == Rekeyed::Make {
            keyring::register(store.clone()).update(|current| match current {
                Some(_) => Ok(None),
                None => Ok(Some(Keyring::create_rekeyed(new, &content)?.to_bytes())),
            })?;
        }
        let opened = match Self::open(store.clone(), &new.unlock) {
            Err(RepoError::NoRepository { .. }) if missing == Rekeyed::Leave => return Ok(None),
            other => other?,
        };
        if opened.id == self.id || !opened.keys.shares_content_ids(&self.keys) {
            let why = format!("{} is no copy of {} with keys of its own", store.url(), self.store.url());
            return Err(RepoError::WrongKey { why });
        }
        Ok(Some(opened))
    }

    /// Only opening tells a whole copy of the ring from a damaged one.
    fn open_ring(store: &Arc<dyn Store>, open: &mut dyn FnMut(&[u8]) -> Result<Keyring>) -> Result<Keyring> {
        let found = keyring::register(store.clone()).read_with(open)?;
        found.map(|(_, ring)| ring).ok_or_else(|| RepoError::NoRepository { url: store.url() })
    }

    /// Opens for fetching WAL only, with keys that a restore left beside a recovering server.
    pub fn open_for_wal(store: Arc<dyn Store>, keys: KeySet) -> Self {
        Self::new(store, keys, String::new(), vec![])
    }

    /// The key ring as stored, from the first copy that is there. Not authenticated.
    pub fn ring_bytes(store: &Arc<dyn Store>) -> Result<Vec<u8>> {
        let version = keyring::register(store.clone()).read()?;
        Ok(version.ok_or_else(|| RepoError::NoRepository { url: store.url() })?.value)
    }

    fn from_ring(store: Arc<dyn Store>, ring: &Keyring, unlock: &Unlock) -> Self {
        let keys = match ring.encryption() {
            Algorithm::None => ring.keys(),
            _ => ring.keys().renewed_by(renewal(store.clone(), unlock.clone(), ring.repository_id())),
        };
        Self::new(store, keys, ring.repository_id(), ring.slots())
    }

    fn new(store: Arc<dyn Store>, keys: KeySet, id: String, slots: Vec<SlotInfo>) -> Self {
        let books = seals::view(&store, &keys);
        let bare: Arc<dyn Store> = match keys.writes_only() {
            None => store,
            Some(_) => Arc::new(AppendOnlyStore::new(store)),
        };
        Repository { store: seals::view(&bare, &keys), bare, books, keys, id, slots }
    }

    /// To read from when something is to be had although it is damaged: what parity heals reads as it was written, and
    /// the store's notices tell of it.
    pub fn healing(&self) -> Self {
        let bare: Arc<dyn Store> = Arc::new(HealingStore::new(self.bare.clone()));
        Repository { store: seals::view(&bare, &self.keys), bare, ..self.clone() }
    }

    /// Objects by their names, each read from the newest of its seals.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What lies in the store, each seal of an object by itself.
    pub fn bare_store(&self) -> &Arc<dyn Store> {
        &self.bare
    }

    /// Where registers are. A writer removes nothing but old versions of these, where the store lets it.
    pub(crate) fn books(&self) -> &Arc<dyn Store> {
        &self.books
    }

    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// For what has to read, or changes what others wrote.
    ///
    /// # Errors
    /// `WriteOnly` when the repository was opened with the secret of a writer.
    pub fn require_reader(&self, what: &str) -> Result<()> {
        match self.keys.writes_only() {
            None => Ok(()),
            Some(_) => Err(RepoError::WriteOnly { what: what.to_owned() }),
        }
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

    /// What a key cache may keep. None for holders of the WAL keys alone, and without encryption.
    pub fn cacheable(&self) -> Option<Key32> {
        self.keys.current().cacheable().cloned()
    }

    /// The newest master key. None for holders of a part, and without encryption.
    pub fn master(&self) -> Option<Key32> {
        self.keys.current().masters().last().map(|(_, k)| k.clone())
    }

    /// Every copy of the key ring, opened with the keys that we hold.
    pub fn check_keyring(&self) -> Result<Vec<RegisterProblem>> {
        keyring::register(self.store.clone()).check_with(&mut self.opens_ring())
    }

    /// Writes copies of the key ring anew that are missing or damaged, as the other copy has them. Returns their names.
    pub fn mend_keyring(&self) -> Result<Vec<String>> {
        keyring::register(self.books.clone()).mend(&mut self.opens_ring())
    }

    fn opens_ring(&self) -> impl FnMut(&[u8]) -> Result<()> + use<> {
        let keys = self.keys.current();
        move |bytes| match Keyring::open_held(bytes, &keys) {
            // The ring before the newest may be from before this writer.
            Err(RepoError::WrongKey { .. }) if keys.writer().is_some() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// How a job that runs while the key is rotated gets at the new one: as it got at the old one. A ring that does not
/// carry on what we hold is somebody else's, whatever opens it.
fn renewal(store: Arc<dyn Store>, unlock: Unlock, id: String) -> Box<Renew> {
    Box::new(move |held: &Keys| {
        let ring = Repository::open_ring(&store, &mut |bytes| match Keyring::open_held(bytes, held) {
            // Of a generation that we hold: nothing is new, and no slow key derivation is spent on it.
            Ok(ring) => Ok(ring),
            Err(_) => Keyring::open(bytes, &unlock),
        })?;
        if held.writer().is_some() {
            return newer_for_writer(held, &ring, &id);
        }
        // The newest that we hold was never given up while we run; older ones may have been, and then none before it is
        // there.
        let kept_from = ring.masters().first().map(|(generation, _)| *generation);
        let retired = |m: &(u32, Key32)| kept_from.is_some_and(|first| m.0 < first);
        let newest_held = held.masters().last().is_some_and(|m| ring.masters().contains(m));
        let older_held = held.masters().iter().all(|m| retired(m) || ring.masters().contains(m));
        let carried_on = ring.repository_id() == id && newest_held && older_held;
        if !carried_on {
            return Err(RepoError::corrupt(
                KEYRING,
                "it was replaced by that of another repository, or by an older one, or the key that this process began with \
                 was retired meanwhile",
            ));
        }
        let newest = |masters: &[(u32, Key32)]| masters.last().map(|(generation, _)| *generation);
        let newer = newest(ring.masters()) > newest(held.masters());
        Ok(newer.then(|| ring.current_keys()).flatten())
    })
}

/// Who makes a writer's keys holds a master key, and has wrapped them under the key of the writer's slot.
fn newer_for_writer(held: &Keys, ring: &Keyring, id: &str) -> Result<Option<Keys>> {
    let found = ring.current_keys().filter(|_| ring.repository_id() == id);
    let slot_key = |k: &Keys| k.writer().map(|w| w.slot_key.clone());
    let found = found.filter(|found| slot_key(found) == slot_key(held));
    let replaced = || RepoError::corrupt(KEYRING, "it was replaced, or the slot of this writer was removed meanwhile");
    let found = found.ok_or_else(replaced)?;
    let generation = |k: &Keys| k.writer().map(|w| w.keys.generation());
    let newer = generation(&found) > generation(held);
    Ok(newer.then_some(found))
}
