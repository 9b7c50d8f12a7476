//! Who holds which keys, and what key an object has by its header and name.
//!
//! Invariant: what a header says never lowers what is demanded; a writer holds no key of a domain, so whatever opens content
//! ends with an error for it.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use super::writer::{Bound, Ephemeral, books_key, cluster_key, facts_key, opening_key, reader_of};
use super::{
    Algorithm, Cipher, ContentId, Domain, FactsKey, Form, HEADER_BYTES, Key32, MAGIC, ObjectKey, ObjectKind,
    OpenedWriter, derive, fill_random, mark,
};
use crate::error::{RepoError, Result};
use crate::names::{self, ClusterName};
use crate::store::ObjectName;

/// The keys of one repository, or of that part of it which the holder may open. Clones share them: when one of them
/// meets an object of a newer generation, all get the keys that were added to the key ring since.
#[derive(Clone)]
pub struct KeySet {
    shared: Arc<Shared>,
}

struct Shared {
    current: RwLock<Arc<Keys>>,
    /// Reads the key ring again; None for holders of a part.
    renew: Option<Box<Renew>>,
}

/// Gets the keys that are held; gives the keys of the ring as it is now, or None when it has not changed.
pub type Renew = dyn Fn(&Keys) -> Result<Option<Keys>> + Send + Sync;

/// What a [`KeySet`] holds at one moment.
pub struct Keys {
    pub(super) algorithm: Algorithm,
    generation: u32,
    /// (generation, domain) → key; empty without encryption.
    pub(super) domains: Vec<(u32, Domain, Key32)>,
    pub(super) content: Option<Key32>,
    /// By generation, ascending; empty for holders of a part, and without encryption.
    pub(super) masters: Vec<(u32, Key32)>,
    /// Clusters that have a writer: what is made for them is of its form.
    written: BTreeSet<ClusterName>,
    /// Marks of earlier `identities` whose keys are gone, by generation, ascending.
    given_up: Vec<(u32, Key32)>,
    /// Of a writer, which holds none of the above but the content-id key.
    writer: Option<OpenedWriter>,
}

impl Keys {
    /// `masters`: every generation, the one for new data last.
    pub fn from_masters(algorithm: Algorithm, masters: &[(u32, Key32)], content: &Key32) -> Self {
        assert!(algorithm != Algorithm::None && !masters.is_empty(), "encryption needs a master key");
        let mut domains = vec![];
        for (generation, master) in masters {
            for d in Domain::ALL {
                let key = derive(&master.0, b"", &[b"pgark v1 domain ", d.name().as_bytes()]);
                domains.push((*generation, d, key));
            }
        }
        let generation = masters[masters.len() - 1].0;
        let (content, masters) = (Some(content.clone()), masters.to_vec());
        let (written, given_up) = Default::default();
        Keys { algorithm, generation, domains, content, masters, written, given_up, writer: None }
    }

    /// What a writer's slot opens to.
    pub fn of_writer(writer: OpenedWriter) -> Self {
        Keys {
            algorithm: writer.keys.encryption,
            generation: writer.keys.generation(),
            domains: vec![],
            content: Some(writer.keys.content_id_key()),
            masters: vec![],
            written: BTreeSet::new(),
            given_up: writer.keys.given_up(),
            writer: Some(writer),
        }
    }

    /// Who makes objects of these clusters makes them so that their writers can go on.
    pub fn with_written(self, clusters: impl IntoIterator<Item = ClusterName>) -> Self {
        Keys { written: clusters.into_iter().collect(), ..self }
    }

    /// Of keys that the ring has not any more.
    pub fn with_given_up(self, marks: Vec<(u32, Key32)>) -> Self {
        Keys { given_up: marks, ..self }
    }

    /// The marks by which a host knows what it has seen, ascending: of the keys that are held, and of those before them that
    /// were given up.
    pub fn marks(&self) -> Vec<(u32, Key32)> {
        let held = self.identities();
        self.given_up.iter().cloned().chain(held.iter().map(|(g, key)| (*g, mark(key)))).collect()
    }

    pub fn writer(&self) -> Option<&OpenedWriter> {
        self.writer.as_ref()
    }

    /// A secret per generation that tells repositories apart: what a host remembers of them is made of these.
    fn identities(&self) -> Vec<(u32, Key32)> {
        match &self.writer {
            None => self.masters.clone(),
            Some(w) => w.keys.generations.iter().map(|g| (g.generation, g.cluster_key(Domain::Catalog))).collect(),
        }
    }

    /// What a cache may keep, so that a slot need not be opened again: the newest master key, or that of a writer's slot.
    pub fn cacheable(&self) -> Option<&Key32> {
        let slot = self.writer.as_ref().map(|w| &w.slot_key);
        slot.or_else(|| self.masters.last().map(|(_, k)| k))
    }

    pub fn masters(&self) -> &[(u32, Key32)] {
        &self.masters
    }

    pub(super) fn domain_key(&self, generation: u32, domain: Domain) -> Option<&Key32> {
        self.domains.iter().find(|(g, d, _)| *g == generation && *d == domain).map(|(_, _, k)| k)
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeySet({:?}, generation {})", self.algorithm(), self.generation())
    }
}

impl From<Keys> for KeySet {
    fn from(keys: Keys) -> Self {
        KeySet { shared: Arc::new(Shared { current: RwLock::new(Arc::new(keys)), renew: None }) }
    }
}

impl KeySet {
    pub fn unencrypted() -> Self {
        let content = Key32(blake3::derive_key("pgark v1 content id without encryption", b""));
        let content = Some(content);
        let (domains, masters, written, given_up) = Default::default();
        let algorithm = Algorithm::None;
        Keys { algorithm, generation: 0, domains, content, masters, written, given_up, writer: None }.into()
    }

    /// As `Keys::from_masters`.
    pub fn from_masters(algorithm: Algorithm, masters: &[(u32, Key32)], content: &Key32) -> Self {
        Keys::from_masters(algorithm, masters, content).into()
    }

    /// Only what a recovering server needs to fetch WAL.
    pub fn from_wal_keys(algorithm: Algorithm, generation: u32, keys: &[(u32, Key32)]) -> Self {
        let domains = keys.iter().map(|(g, k)| (*g, Domain::Wal, k.clone())).collect();
        let (masters, written, given_up) = Default::default();
        Keys { algorithm, generation, domains, content: None, masters, written, given_up, writer: None }.into()
    }

    /// The same keys, which look for newer ones when an object needs them.
    pub fn renewed_by(&self, renew: Box<Renew>) -> Self {
        KeySet { shared: Arc::new(Shared { current: RwLock::new(self.current()), renew: Some(renew) }) }
    }

    /// What is held now.
    pub fn current(&self) -> Arc<Keys> {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn wal_keys(&self) -> Vec<(u32, Key32)> {
        let keys = self.current();
        keys.domains.iter().filter(|(_, d, _)| *d == Domain::Wal).map(|(g, _, k)| (*g, k.clone())).collect()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.current().algorithm
    }

    pub fn generation(&self) -> u32 {
        self.current().generation
    }

    /// Whether both call equal content by the same ids: only then can objects of one be objects of the other.
    pub fn shares_content_ids(&self, other: &KeySet) -> bool {
        self.current().content == other.current().content
    }

    pub(crate) fn content_key(&self) -> Option<Key32> {
        self.current().content.clone()
    }

    /// The cluster that the holder may write to, if it may not read.
    pub fn writes_only(&self) -> Option<ClusterName> {
        self.current().writer.as_ref().map(|w| w.keys.cluster.clone())
    }

    /// Of the keys that are held, ascending; empty without encryption.
    pub fn generations(&self) -> Vec<u32> {
        let keys = self.current();
        let writer = keys.writer.iter().flat_map(|w| &w.keys.generations).map(|g| g.generation);
        let mut all: Vec<u32> = keys.domains.iter().map(|(generation, _, _)| *generation).chain(writer).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn content_id(&self, plain: &[u8]) -> ContentId {
        let keys = self.current();
        let key = keys.content.as_ref().expect("content ids are asked for only by holders of the data key");
        let hash = blake3::keyed_hash(&key.0, plain);
        let mut id = [0u8; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        ContentId(id)
    }

    /// What is held of a generation; looked for in the key ring when it is newer than all that are held.
    fn find<T>(&self, generation: u32, name: &ObjectName, find: &dyn Fn(&Keys) -> Result<Option<T>>) -> Result<T> {
        let keys = self.current();
        if let Some(found) = find(&keys)? {
            return Ok(found);
        }
        if generation <= keys.generation {
            return Err(no_key(&keys, generation, name));
        }
        let Some(renew) = &self.shared.renew else {
            let known = keys.generation;
            return Err(RepoError::NewerKey { object: name.to_string(), generation, known });
        };
        // One at a time; the next one finds what the first one found.
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.generation < generation
            && let Some(newer) = renew(&current)?
        {
            *current = Arc::new(newer);
        }
        find(&current)?.ok_or_else(|| no_key(&current, generation, name))
    }

    /// # Errors
    /// `WriteOnly` for a writer: it holds no such key.
    fn domain_key(&self, generation: u32, domain: Domain, name: &ObjectName) -> Result<Key32> {
        self.find(generation, name, &|keys| {
            if keys.writer.is_some() {
                return Err(RepoError::WriteOnly { what: name.to_string() });
            }
            let held = keys.domain_key(generation, domain).cloned();
            if held.is_none() && !keys.domains.is_empty() && keys.domains.iter().all(|(_, d, _)| *d != domain) {
                let why = format!("it needs the {} key of generation {generation}, which is not held", domain.name());
                return Err(RepoError::WrongKey { why: format!("{name}: {why}") });
            }
            Ok(held)
        })
    }

    /// The cluster's key, and for whom its content is sealed.
    fn cluster_keys(&self, generation: u32, domain: Domain, name: &ObjectName) -> Result<(Key32, Option<[u8; 32]>)> {
        let cluster = names::cluster_of(name)
            .ok_or_else(|| RepoError::corrupt(name, "of a form that objects of a cluster have, and in no cluster"))?;
        if let Some(own) = self.writes_only() {
            if own.as_str() != cluster {
                return Err(RepoError::WriteOnly { what: name.to_string() });
            }
            return self.find(generation, name, &|keys| {
                let found = keys.writer.as_ref().and_then(|w| w.keys.find(generation));
                Ok(found.map(|g| (g.cluster_key(domain), g.reader(domain))))
            });
        }
        let key = self.domain_key(generation, domain, name)?;
        Ok((cluster_key(&key, cluster), Some(reader_of(&key))))
    }

    /// The form of what is made under this name.
    pub fn form_of_new(&self, name: &ObjectName) -> Form {
        let keys = self.current();
        let written = names::cluster_of(name).is_some_and(|c| keys.written.iter().any(|w| w.as_str() == c));
        if keys.writer.is_some() || written { Form::Writer } else { Form::Readers }
    }

    /// A fresh object: its header, and the key that seals its parts.
    pub fn new_object(&self, kind: ObjectKind, name: &ObjectName) -> Result<([u8; HEADER_BYTES], ObjectKey)> {
        self.new_object_in(self.form_of_new(name), kind, name)
    }

    /// As `new_object`, whoever writes to the cluster.
    ///
    /// # Errors
    /// `WriteOnly` when the holder of these keys cannot make it.
    pub fn new_object_in(
        &self,
        form: Form,
        kind: ObjectKind,
        name: &ObjectName,
    ) -> Result<([u8; HEADER_BYTES], ObjectKey)> {
        let mut h = [0u8; HEADER_BYTES];
        h[..8].copy_from_slice(MAGIC);
        h[8] = kind as u8;
        h[9] = form as u8;
        let keys = self.current();
        let (algorithm, generation) = (keys.algorithm, keys.generation);
        h[10] = algorithm as u8;
        h[12..16].copy_from_slice(&generation.to_le_bytes());
        if form == Form::Writer && !kind.is_books() {
            let ephemeral = Ephemeral::new()?;
            h[16..48].copy_from_slice(&ephemeral.public);
            let (cluster, reader) = self.cluster_keys(generation, kind.domain(), name)?;
            let reader = reader.ok_or_else(|| RepoError::corrupt(name, "content of a domain that has none"))?;
            let bound = Bound { header: &h[..48], name: name.as_str() };
            let key = ephemeral.key_for(&reader, &cluster, &bound)?;
            let facts = kind.has_facts().then(|| FactsKey::new(algorithm, facts_key(&cluster, &bound)));
            h[48..].copy_from_slice(&writer_commitment(&key));
            return Ok((h, ObjectKey { cipher: Cipher::new(algorithm, key), facts }));
        }
        fill_random(&mut h[16..32])?;
        let (key, commitment) = match form {
            Form::Readers => self.object_key(&h, kind, algorithm, generation, name)?,
            Form::Writer => self.books_key(&h, kind, algorithm, generation, name)?,
        };
        h[32..].copy_from_slice(&commitment);
        Ok((h, key))
    }

    /// Checks a header against the name and kind that we asked for. What the header says about encryption
    /// never lowers what we demand: an unencrypted object in an encrypted repository is damage.
    pub fn open_object(&self, header: &[u8], kind: ObjectKind, name: &ObjectName) -> Result<ObjectKey> {
        let (h, algorithm, generation) = self.check_header(header, kind, name)?;
        if h[9] == Form::Writer as u8 && !kind.is_books() {
            return self.open_content(h, kind, algorithm, generation, name);
        }
        let (key, commitment) = match Form::from_version(h[9]) {
            Some(Form::Writer) => self.books_key(h, kind, algorithm, generation, name)?,
            // Of a version that we do not know: whether it is one is known with the commitment.
            Some(Form::Readers) | None => self.object_key(h, kind, algorithm, generation, name)?,
        };
        if commitment[..] != h[32..] {
            return Err(RepoError::corrupt(name, OTHER_OBJECT));
        }
        // Only now is the version known to be what was written.
        if h[9] > kind.version() {
            let (found, known) = (h[9].into(), kind.version().into());
            return Err(RepoError::Unsupported { object: name.to_string(), found, known });
        }
        Ok(key)
    }

    /// What everybody may know of a header before a key is asked for.
    fn check_header<'h>(
        &self,
        header: &'h [u8],
        kind: ObjectKind,
        name: &ObjectName,
    ) -> Result<(&'h [u8; HEADER_BYTES], Algorithm, u32)> {
        let bad = |what: &str| RepoError::corrupt(name, what);
        let h: &[u8; HEADER_BYTES] = header.try_into().map_err(|_| bad("shorter than its header"))?;
        if &h[..8] != MAGIC {
            return Err(bad("not a pgark object"));
        }
        if h[8] != kind as u8 {
            return Err(bad("an object of another kind under this name"));
        }
        let algorithm = Algorithm::from_byte(h[10]).ok_or_else(|| bad("unknown cipher"))?;
        if (algorithm == Algorithm::None) != (self.algorithm() == Algorithm::None) {
            return Err(bad("its encryption differs from the repository's"));
        }
        if algorithm == Algorithm::None && h[9] == Form::Writer as u8 {
            return Err(bad("of a form that only encrypted objects have"));
        }
        let generation = u32::from_le_bytes([h[12], h[13], h[14], h[15]]);
        Ok((h, algorithm, generation))
    }

    fn open_content(
        &self,
        h: &[u8; HEADER_BYTES],
        kind: ObjectKind,
        algorithm: Algorithm,
        generation: u32,
        name: &ObjectName,
    ) -> Result<ObjectKey> {
        let other = || RepoError::corrupt(name, OTHER_OBJECT);
        let domain = self.domain_key(generation, kind.domain(), name)?;
        let (cluster, _) = self.cluster_keys(generation, kind.domain(), name)?;
        let bound = Bound { header: &h[..48], name: name.as_str() };
        let ephemeral = h[16..48].try_into().map_err(|_| other())?;
        let key = opening_key(&domain, &ephemeral, &cluster, &bound).ok_or_else(other)?;
        if writer_commitment(&key) != h[48..] {
            return Err(other());
        }
        let facts = kind.has_facts().then(|| FactsKey::new(algorithm, facts_key(&cluster, &bound)));
        Ok(ObjectKey { cipher: Cipher::new(algorithm, key), facts })
    }

    /// What a writer can open of an object that carries facts.
    ///
    /// # Errors
    /// `WriteOnly` for an object without them.
    pub fn open_facts(&self, header: &[u8], kind: ObjectKind, name: &ObjectName) -> Result<FactsKey> {
        let (h, algorithm, generation) = self.check_header(header, kind, name)?;
        if h[9] != Form::Writer as u8 || !kind.has_facts() {
            return Err(RepoError::WriteOnly { what: name.to_string() });
        }
        let (cluster, _) = self.cluster_keys(generation, kind.domain(), name)?;
        let bound = Bound { header: &h[..48], name: name.as_str() };
        Ok(FactsKey::new(algorithm, facts_key(&cluster, &bound)))
    }

    fn books_key(
        &self,
        header: &[u8; HEADER_BYTES],
        kind: ObjectKind,
        algorithm: Algorithm,
        generation: u32,
        name: &ObjectName,
    ) -> Result<(ObjectKey, [u8; 32])> {
        let (cluster, _) = self.cluster_keys(generation, kind.domain(), name)?;
        let key = books_key(&cluster, &Bound { header: &header[..32], name: name.as_str() });
        Ok(ObjectKey::committed(algorithm, key))
    }

    fn object_key(
        &self,
        header: &[u8; HEADER_BYTES],
        kind: ObjectKind,
        algorithm: Algorithm,
        generation: u32,
        name: &ObjectName,
    ) -> Result<(ObjectKey, [u8; 32])> {
        let public = &header[..32];
        let key = match algorithm {
            Algorithm::None => {
                let mut h = blake3::Hasher::new_derive_key("pgark v1 unencrypted object");
                h.update(public).update(name.as_str().as_bytes());
                Key32(*h.finalize().as_bytes())
            }
            _ => {
                let domain = self.domain_key(generation, kind.domain(), name)?;
                derive(&domain.0, &header[16..32], &[b"pgark v1 object ", public, name.as_str().as_bytes()])
            }
        };
        Ok(ObjectKey::committed(algorithm, key))
    }
}

const OTHER_OBJECT: &str = "header damaged, or the object of another name or repository";

/// Half as long as that of other objects, to make room for the public key.
fn writer_commitment(key: &Key32) -> [u8; 16] {
    let whole = blake3::derive_key("pgark v2 key commitment", &key.0);
    let mut half = [0; 16];
    half.copy_from_slice(&whole[..16]);
    half
}

/// A holder of other generations' keys should hold this one too, so it does not exist: the header lies.
fn no_key(keys: &Keys, generation: u32, name: &ObjectName) -> RepoError {
    let why = format!("it needs the key of generation {generation}, which the key ring lacks");
    if keys.domains.is_empty() && keys.writer.is_none() {
        RepoError::WrongKey { why: format!("{name}: {why}") }
    } else {
        RepoError::corrupt(name, why)
    }
}
