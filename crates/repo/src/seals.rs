//! Seals of an object. What was written under an older master key can be sealed anew: the same content, under the newest
//! key, beside the old one, as `NAME.gN`, N being the generation of that key. Whoever asks for an object by its name gets
//! the newest seal that is there, so the books need not know: names, sizes and fingerprints stay those of the object
//! as it was first written.
//!
//! Invariant: a later seal says of which bytes it was made, and that is sealed with it. So long as one seal of an object
//! is there, the object is there; nothing but its deletion takes the last one away.

use std::sync::Arc;

use crate::crypto::{Form, HEADER_BYTES, KeySet, ObjectKey, ObjectKind, Purpose, TAG_BYTES};
use crate::error::{RepoError, Result};
use crate::manifest::bytes::Cursor;
use crate::names;
use crate::store::forward::forward_to_inner;
use crate::store::{ObjectName, ObjectStat, ObjectWriter, Store, StoreError, Visit};
use crate::stream::Fingerprint;

const TAIL_MAGIC: &[u8; 8] = b"PGARKORG";
const HASH_BYTES: usize = 32;
/// What a later seal has more than the object: magic, and sealed: size and hash of the object as it was first written.
pub const TAIL_BYTES: usize = TAIL_MAGIC.len() + 8 + HASH_BYTES + TAG_BYTES;

/// A store in which each object is found by its name, whichever of its seals are there.
pub fn view(store: &Arc<dyn Store>, keys: &KeySet) -> Arc<dyn Store> {
    Arc::new(View { inner: store.clone(), keys: keys.clone(), look: Look::Newest })
}

struct View {
    inner: Arc<dyn Store>,
    keys: KeySet,
    look: Look,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// The newest seal of the object.
    Newest,
    /// The seal of this very name.
    Exact,
}

impl View {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    /// Generations under which an object may have been sealed anew, newest first.
    fn later(&self) -> Vec<u32> {
        self.keys.generations().into_iter().rev().filter(|g| *g > 1).collect()
    }

    fn stat_later(&self, name: &ObjectName, generation: u32) -> Result<Option<ObjectStat>, StoreError> {
        match self.inner.stat(&later_seal(name, generation)?) {
            Ok(stat) => without_tail(stat).map(Some),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The newest seal.
    fn newest(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        if names::split_seal(name).is_some() {
            return without_tail(self.inner.stat(name)?);
        }
        if names::lasting_kind(name).is_none() || self.look == Look::Exact {
            return self.inner.stat(name);
        }
        for generation in self.later() {
            if let Some(stat) = self.stat_later(name, generation)? {
                return Ok(stat);
            }
        }
        match self.inner.stat(name) {
            Err(e) if e.is_not_found() => {
                // The key may have been rotated since ours were read, and everything sealed anew.
                let next = self.keys.generation().checked_add(1).filter(|g| *g > 1);
                let found = next.map_or(Ok(None), |g| self.stat_later(name, g))?;
                found.ok_or(e)
            }
            other => other,
        }
    }

    /// The name of the newest seal, also of one that is damaged so that it cannot be read.
    fn newest_name(&self, name: &ObjectName) -> ObjectName {
        if names::lasting_kind(name).is_none() || names::split_seal(name).is_some() || self.look == Look::Exact {
            return name.clone();
        }
        let seals = self.later().into_iter().filter_map(|generation| later_seal(name, generation).ok());
        let there = seals.into_iter().find(|seal| self.inner.stat(seal).is_ok());
        there.unwrap_or_else(|| name.clone())
    }

    fn is_sealed_anew(&self, name: &ObjectName) -> Result<bool, StoreError> {
        if names::lasting_kind(name).is_none() || names::split_seal(name).is_some() {
            return Ok(false);
        }
        for generation in self.later() {
            if self.stat_later(name, generation)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove(
        &self,
        name: &ObjectName,
        delete: &dyn Fn(&ObjectName) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if names::lasting_kind(name).is_none() || names::split_seal(name).is_some() {
            return delete(name);
        }
        let mut all = vec![name.clone()];
        let next = self.keys.generation().checked_add(1);
        for generation in self.later().into_iter().rev().chain(next.filter(|g| *g > 1)) {
            all.push(later_seal(name, generation)?);
        }
        let mut outcome = Err(StoreError::not_found(name));
        for seal in all {
            match delete(&seal) {
                Ok(()) => outcome = Ok(()),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        outcome
    }
}

fn later_seal(name: &ObjectName, generation: u32) -> Result<ObjectName, StoreError> {
    ObjectName::parse(&format!("{name}.g{generation}"))
}

/// As what is sealed in it has it: shorter by the tail.
fn without_tail(stat: ObjectStat) -> Result<ObjectStat, StoreError> {
    let size = stat.size.checked_sub(TAIL_BYTES as u64);
    let short = || StoreError::Truncated {
        object: stat.name.to_string(),
        size: stat.size,
        wanted: (HEADER_BYTES + TAIL_BYTES) as u64,
    };
    Ok(ObjectStat { size: size.ok_or_else(short)?, ..stat })
}

impl Store for View {
    forward_to_inner!(read_at list_dirs free_bytes url sweep_abandoned weaknesses notices parity has_own_clock space may_archive probe object_lock may_delete);

    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        if self.is_sealed_anew(name)? {
            return Err(StoreError::already_exists(name));
        }
        self.inner.put_new(name, bytes)
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let inner = self.inner.create(name)?;
        if names::lasting_kind(name).is_none() || self.later().is_empty() {
            return Ok(inner);
        }
        let view = View { inner: self.inner.clone(), keys: self.keys.clone(), look: self.look };
        Ok(Box::new(Writer { inner, view, name: name.clone() }))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        if names::lasting_kind(name).is_none() && names::split_seal(name).is_none() {
            return self.inner.read(name, max);
        }
        let found = self.newest(name)?;
        if names::split_seal(&found.name).is_none() {
            return self.inner.read(name, max);
        }
        if found.size > max {
            return Err(StoreError::TooLarge { object: name.to_string(), size: found.size, max });
        }
        let mut bytes = self.inner.read(&found.name, found.size.saturating_add(TAIL_BYTES as u64))?;
        bytes.truncate(bytes.len().saturating_sub(TAIL_BYTES));
        Ok(bytes)
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        Ok(ObjectStat { name: name.clone(), ..self.newest(name)? })
    }

    fn find(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.newest(name)
    }

    /// An object with several seals is listed once for each, by its own name.
    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.inner.list(prefix, &mut |stat| match names::split_seal(&stat.name) {
            None => visit(stat),
            // One that is shorter than its tail has no content: the reader finds out.
            Some((name, _)) => {
                let size = stat.size.saturating_sub(TAIL_BYTES as u64);
                visit(ObjectStat { name, size, ..stat })
            }
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.remove(name, &|seal| self.inner.delete(seal))
    }

    fn discard(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.remove(name, &|seal| self.inner.discard(seal))
    }

    fn heal(&self, name: &ObjectName) -> bool {
        self.inner.heal(&self.newest_name(name))
    }
}

/// An object whose name is free only when no seal of it is there.
struct Writer {
    inner: Box<dyn ObjectWriter>,
    view: View,
    name: ObjectName,
}

impl ObjectWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.write(bytes)
    }

    fn written(&self) -> u64 {
        self.inner.written()
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.inner.settle()
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        if self.view.is_sealed_anew(&self.name)? {
            return Err(StoreError::already_exists(&self.name));
        }
        self.inner.finish()
    }
}

/// Which object a later seal was made of, by its tail. `actual`: size and hash of the seal without its tail.
pub(crate) fn origin(
    key: &ObjectKey,
    object: &impl ToString,
    actual: &Fingerprint,
    tail: &[u8; TAIL_BYTES],
) -> Result<Fingerprint> {
    let bad = || RepoError::corrupt(object.to_string(), "it does not say which object was sealed anew");
    let (magic, sealed) = tail.split_at(TAIL_MAGIC.len());
    let mut sealed = sealed.to_vec();
    let n = key.open(Purpose::Origin, actual.size, &bound_to(actual)?, &mut sealed);
    let n = n.filter(|_| magic == TAIL_MAGIC).ok_or_else(bad)?;
    let mut c = Cursor::new(sealed.get(..n).unwrap_or_default());
    let fields = (|| Some((c.u64()?, c.array::<HASH_BYTES>()?)))();
    let (size, hash) = fields.filter(|_| c.is_empty()).ok_or_else(bad)?;
    Ok(Fingerprint { size, blake3: crate::crypto::hex(&hash) })
}

fn bound_to(print: &Fingerprint) -> Result<Vec<u8>> {
    Ok([&print.size.to_le_bytes()[..], &hash_of(print)?].concat())
}

fn hash_of(print: &Fingerprint) -> Result<[u8; HASH_BYTES]> {
    let hash = crate::crypto::unhex(&print.blake3).and_then(|h| h.try_into().ok());
    hash.ok_or_else(|| RepoError::Invalid { what: "fingerprint", value: print.blake3.clone() })
}

/// What became of an object that was to be sealed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anew {
    /// Stored so many bytes.
    Sealed(u64),
    /// Somebody else had done it.
    There,
}

/// Seals the pieces of one object anew: same places, same lengths, another key.
pub(crate) struct AnewWriter {
    writer: Box<dyn ObjectWriter>,
    key: ObjectKey,
    hasher: blake3::Hasher,
    size: u64,
}

impl AnewWriter {
    /// Nothing under the object's own name is touched. `form` is that of the object: its parts stay what they are.
    pub(crate) fn create(to: &Place<'_>, form: Form, kind: ObjectKind, name: &ObjectName) -> Result<Self> {
        let (header, key) = to.keys.new_object_in(form, kind, name)?;
        let generation = crate::crypto::generation_of(&header).filter(|g| *g > 1);
        let generation = generation.ok_or_else(|| RepoError::Invalid { what: "seal", value: name.to_string() })?;
        let writer = to.store.create(&names::later_seal(name, generation)?)?;
        let mut anew = AnewWriter { writer, key, hasher: blake3::Hasher::new(), size: 0 };
        anew.put(&header)?;
        Ok(anew)
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// `plain` holds ciphertext afterwards.
    pub(crate) fn seal(&mut self, purpose: Purpose, position: u64, aad: &[u8], plain: &mut Vec<u8>) -> Result<()> {
        self.key.seal(purpose, position, aad, plain, 0);
        self.put(plain)
    }

    /// `origin`: what the object was when it was first written.
    pub(crate) fn finish(mut self, origin: &Fingerprint) -> Result<Anew> {
        let print = Fingerprint { size: self.size, blake3: self.hasher.finalize().to_hex().to_string() };
        let mut tail = bound_to(origin)?;
        self.key.seal(Purpose::Origin, print.size, &bound_to(&print)?, &mut tail, 0);
        self.writer.write(TAIL_MAGIC)?;
        self.writer.write(&tail)?;
        match self.writer.finish() {
            Ok(()) => Ok(Anew::Sealed(print.size + TAIL_BYTES as u64)),
            Err(StoreError::AlreadyExists { .. }) => Ok(Anew::There),
            Err(e) => Err(e.into()),
        }
    }
}

/// Seals an object anew under the newest key. What is there stays; read it back before that goes.
///
/// # Errors
/// Damage of the object as it is; nothing was written then.
pub fn seal_anew(store: &Arc<dyn Store>, keys: &KeySet, name: &ObjectName) -> Result<Anew> {
    seal_into(&Place { store, keys }, &Place { store, keys }, name, None)
}

/// A repository as a place of seals; its store is a view.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub store: &'a Arc<dyn Store>,
    pub keys: &'a KeySet,
}

/// As `seal_anew`, into another place and under the newest key there. `expected`: what the object must be.
pub fn seal_into(from: &Place<'_>, to: &Place<'_>, name: &ObjectName, expected: Option<&Fingerprint>) -> Result<Anew> {
    let (anew, origin) = match kind_of(name)? {
        ObjectKind::Pack => crate::pack::seal_into(from, to, name)?,
        kind => crate::stream::seal_into(from, to, kind, name)?,
    };
    if expected.is_some_and(|e| *e != origin) {
        return Err(RepoError::corrupt(name, "not what was written"));
    }
    anew.finish(&origin)
}

/// Reads the seal of this very name from front to back, authenticates every byte of it, and says which object it is. `bare`
/// is no view.
pub fn print_of(bare: &Arc<dyn Store>, keys: &KeySet, seal: &ObjectName) -> Result<Fingerprint> {
    let store: &Arc<dyn Store> =
        &(Arc::new(View { inner: bare.clone(), keys: keys.clone(), look: Look::Exact }) as Arc<dyn Store>);
    let name = names::split_seal(seal).map_or_else(|| seal.clone(), |(name, _)| name);
    match kind_of(&name)? {
        ObjectKind::Pack => Ok(crate::pack::read_whole_at(store, keys, &name, seal)?.0),
        kind => crate::stream::print_of(store, keys, kind, &name, seal),
    }
}

fn kind_of(name: &ObjectName) -> Result<ObjectKind> {
    let kind = names::lasting_kind(name);
    kind.ok_or_else(|| RepoError::Invalid {
        what: "name of an object that can be sealed anew",
        value: name.to_string(),
    })
}

/// Which object a seal is that has these bytes, its tail included: itself, when it is the first seal.
///
/// # Errors
/// `Corrupt` for bytes that are no such seal.
pub fn origin_of_bytes(keys: &KeySet, seal: &ObjectName, bytes: &[u8]) -> Result<Fingerprint> {
    let hashed =
        |bytes: &[u8]| Fingerprint { size: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() };
    let Some((name, _)) = names::split_seal(seal) else { return Ok(hashed(bytes)) };
    let short = || RepoError::corrupt(seal, "it is too short for a later seal");
    let (header, (object, tail)) =
        bytes.first_chunk::<HEADER_BYTES>().zip(bytes.split_last_chunk::<TAIL_BYTES>()).ok_or_else(short)?;
    let key = keys.open_object(header, kind_of(&name)?, &name)?;
    origin(&key, &name, &hashed(object), tail)
}

/// Which object a seal is that has these bytes, without its tail: itself, when it is the first seal. The bytes of a later
/// one are authenticated by that.
pub fn origin_of(store: &Arc<dyn Store>, keys: &KeySet, seal: &ObjectName, actual: Fingerprint) -> Result<Fingerprint> {
    let Some((name, _)) = names::split_seal(seal) else { return Ok(actual) };
    let (mut header, mut tail) = ([0; HEADER_BYTES], [0; TAIL_BYTES]);
    store.read_at(seal, 0, &mut header)?;
    store.read_at(seal, actual.size, &mut tail)?;
    let key = keys.open_object(&header, kind_of(&name)?, &name)?;
    origin(&key, &name, &actual, &tail)
}

/// Bytes that a seal of this name has after its object.
pub fn tail_of(seal: &ObjectName) -> u64 {
    if names::split_seal(seal).is_some() { TAIL_BYTES as u64 } else { 0 }
}
