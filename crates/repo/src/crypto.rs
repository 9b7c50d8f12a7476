//! Keys and sealing. One master key per generation; a key per domain from it; a key per object from that,
//! bound to the object's name. Without encryption the same places hold keyed checksums instead of tags, so
//! that every reader authenticates or checks in the same way.
//!
//! Invariant: a nonce is used once per object key: it is made of a purpose and a position that only grows.

use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::{aead, hkdf};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{RepoError, Result};
use crate::store::ObjectName;

pub const TAG_BYTES: usize = 16;
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"PGARKOBJ";

/// What an object is. The number is part of its key, so an object of one kind never opens as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    Pack = 1,
    Manifest = 2,
    BackupRecord = 3,
    WalSegment = 4,
    WalSideFile = 5,
    WalHead = 6,
    Catalog = 7,
    Report = 8,
}

/// Which part of the master key opens an object: a restored cluster gets the WAL part alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    Data,
    Wal,
    Catalog,
}

impl ObjectKind {
    pub fn domain(self) -> Domain {
        match self {
            ObjectKind::Pack | ObjectKind::Manifest | ObjectKind::BackupRecord | ObjectKind::Report => Domain::Data,
            ObjectKind::WalSegment | ObjectKind::WalSideFile | ObjectKind::WalHead => Domain::Wal,
            ObjectKind::Catalog => Domain::Catalog,
        }
    }

    /// The version of the body that we write, and the highest that we read.
    pub fn version(self) -> u8 {
        1
    }
}

impl Domain {
    pub const ALL: [Domain; 3] = [Domain::Data, Domain::Wal, Domain::Catalog];

    pub fn name(self) -> &'static str {
        match self {
            Domain::Data => "data",
            Domain::Wal => "wal",
            Domain::Catalog => "catalog",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Algorithm {
    /// Keyed checksums only: detects damage, hides and authenticates nothing.
    #[serde(rename = "none")]
    None = 0,
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm = 1,
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305 = 2,
}

impl Algorithm {
    fn from_byte(b: u8) -> Option<Self> {
        match b {
            0 => Some(Algorithm::None),
            1 => Some(Algorithm::Aes256Gcm),
            2 => Some(Algorithm::ChaCha20Poly1305),
            _ => None,
        }
    }
}

/// 32 secret bytes that are wiped when dropped and never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
pub struct Key32(pub [u8; 32]);

impl std::fmt::Debug for Key32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key32(…)")
    }
}

impl Key32 {
    pub fn random() -> Result<Self> {
        let mut k = [0u8; 32];
        fill_random(&mut k)?;
        Ok(Key32(k))
    }
}

pub fn fill_random(buf: &mut [u8]) -> Result<()> {
    getrandom::fill(buf)
        .map_err(|e| RepoError::System { what: "random numbers", source: std::io::Error::other(e.to_string()) })
}

/// HKDF-SHA256: 32 bytes for `info`, which must be unique to the use.
pub fn derive(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Key32 {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let mut out = [0u8; 32];
    let done = prk.expand(info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut out));
    assert!(done.is_ok(), "HKDF of 32 bytes cannot fail");
    Key32(out)
}

/// Identifies a chunk's plaintext within one repository: keyed BLAKE3, 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 16]);

impl std::fmt::Debug for ContentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// The key of content ids that follows from the first master key.
pub fn content_key(master: &Key32) -> Key32 {
    derive(&master.0, b"", &[b"pgark v1 content id"])
}

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
    algorithm: Algorithm,
    generation: u32,
    /// (generation, domain) → key; empty without encryption.
    domains: Vec<(u32, Domain, Key32)>,
    content: Option<Key32>,
    /// By generation, ascending; empty for holders of a part, and without encryption.
    masters: Vec<(u32, Key32)>,
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
        Keys { algorithm, generation, domains, content: Some(content.clone()), masters: masters.to_vec() }
    }

    pub fn masters(&self) -> &[(u32, Key32)] {
        &self.masters
    }

    fn domain_key(&self, generation: u32, domain: Domain) -> Option<&Key32> {
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
        Keys { algorithm: Algorithm::None, generation: 0, domains: vec![], content, masters: vec![] }.into()
    }

    /// As `Keys::from_masters`.
    pub fn from_masters(algorithm: Algorithm, masters: &[(u32, Key32)], content: &Key32) -> Self {
        Keys::from_masters(algorithm, masters, content).into()
    }

    /// Only what a recovering server needs to fetch WAL.
    pub fn from_wal_keys(algorithm: Algorithm, generation: u32, keys: &[(u32, Key32)]) -> Self {
        let domains = keys.iter().map(|(g, k)| (*g, Domain::Wal, k.clone())).collect();
        Keys { algorithm, generation, domains, content: None, masters: vec![] }.into()
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

    /// Of the keys that are held, ascending; empty without encryption.
    pub fn generations(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.current().domains.iter().map(|(generation, _, _)| *generation).collect();
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

    /// The key of a domain; looked for in the key ring when it is newer than all that are held.
    fn domain_key(&self, generation: u32, domain: Domain, name: &ObjectName) -> Result<Key32> {
        let keys = self.current();
        if let Some(key) = keys.domain_key(generation, domain) {
            return Ok(key.clone());
        }
        if generation <= keys.generation {
            return Err(no_key(&keys, generation, domain, name));
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
        let found = current.domain_key(generation, domain).cloned();
        found.ok_or_else(|| no_key(&current, generation, domain, name))
    }

    /// A fresh object: its header, and the key that seals its parts.
    pub fn new_object(&self, kind: ObjectKind, name: &ObjectName) -> Result<([u8; HEADER_BYTES], ObjectKey)> {
        let mut h = [0u8; HEADER_BYTES];
        h[..8].copy_from_slice(MAGIC);
        h[8] = kind as u8;
        h[9] = kind.version();
        let keys = self.current();
        h[10] = keys.algorithm as u8;
        h[12..16].copy_from_slice(&keys.generation.to_le_bytes());
        fill_random(&mut h[16..32])?;
        let (key, commitment) = self.object_key(&h, kind, keys.algorithm, keys.generation, name)?;
        h[32..].copy_from_slice(&commitment);
        Ok((h, key))
    }

    /// Checks a header against the name and kind that we asked for. What the header says about encryption
    /// never lowers what we demand: an unencrypted object in an encrypted repository is damage.
    pub fn open_object(&self, header: &[u8], kind: ObjectKind, name: &ObjectName) -> Result<ObjectKey> {
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
        let generation = u32::from_le_bytes([h[12], h[13], h[14], h[15]]);
        let (key, commitment) = self.object_key(h, kind, algorithm, generation, name)?;
        if commitment[..] != h[32..] {
            return Err(bad("header damaged, or the object of another name or repository"));
        }
        // Only now is the version known to be what was written.
        if h[9] > kind.version() {
            let (found, known) = (h[9].into(), kind.version().into());
            return Err(RepoError::Unsupported { object: name.to_string(), found, known });
        }
        Ok(key)
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
        let commitment = blake3::derive_key("pgark v1 key commitment", &key.0);
        Ok((ObjectKey::new(algorithm, key), commitment))
    }
}

/// The generation that an object's header names. Not authenticated; None for what is not an object of ours.
pub fn generation_of(header: &[u8; HEADER_BYTES]) -> Option<u32> {
    let field = [header[12], header[13], header[14], header[15]];
    header.starts_with(MAGIC).then(|| u32::from_le_bytes(field))
}

/// A holder of other generations' keys should hold this one too, so it does not exist: the header lies.
fn no_key(keys: &Keys, generation: u32, domain: Domain, name: &ObjectName) -> RepoError {
    let why = format!("it needs the {} key of generation {generation}, which the key ring lacks", domain.name());
    if keys.domains.iter().any(|(_, d, _)| *d == domain) {
        RepoError::corrupt(name, why)
    } else {
        RepoError::WrongKey { why: format!("{name}: {why}") }
    }
}

/// What a nonce is for; with the position it is unique within an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Position: the frame's offset in the pack.
    Frame = 1,
    /// Position: the block's number in the stream.
    Block = 2,
    /// Position: the number of the last block, so that a cut stream cannot look whole.
    LastBlock = 3,
    /// Position: the table's offset in the pack.
    TableOfContents = 4,
    /// Of an object that was sealed anew: which object it was. Position: its size without this part.
    Origin = 5,
}

/// Seals and opens the parts of one object.
pub struct ObjectKey {
    cipher: Cipher,
}

enum Cipher {
    Plain(Key32),
    Aead(Box<aead::LessSafeKey>),
}

impl ObjectKey {
    fn new(algorithm: Algorithm, key: Key32) -> Self {
        let suite = match algorithm {
            Algorithm::None => return ObjectKey { cipher: Cipher::Plain(key) },
            Algorithm::Aes256Gcm => &aead::AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let unbound = aead::UnboundKey::new(suite, &key.0).expect("32-byte keys fit both ciphers");
        ObjectKey { cipher: Cipher::Aead(Box::new(aead::LessSafeKey::new(unbound))) }
    }

    /// Encrypts `buf[from..]` in place and appends the tag.
    pub fn seal(&self, purpose: Purpose, position: u64, aad: &[u8], buf: &mut Vec<u8>, from: usize) {
        let nonce = nonce(purpose, position);
        match &self.cipher {
            Cipher::Plain(key) => {
                let tag = checksum(key, &nonce, aad, &buf[from..]);
                buf.extend_from_slice(&tag);
            }
            Cipher::Aead(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), &mut buf[from..]);
                buf.extend_from_slice(tag.expect("plaintext is far below the cipher's limit").as_ref());
            }
        }
    }

    /// Checks the tag at the end of `buf` and decrypts in place; returns the plaintext's length.
    pub fn open(&self, purpose: Purpose, position: u64, aad: &[u8], buf: &mut [u8]) -> Option<usize> {
        let nonce = nonce(purpose, position);
        let len = buf.len().checked_sub(TAG_BYTES)?;
        match &self.cipher {
            Cipher::Plain(key) => {
                let (data, tag) = buf.split_at(len);
                (checksum(key, &nonce, aad, data) == *tag).then_some(len)
            }
            Cipher::Aead(key) => {
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, aead::Aad::from(aad), buf).ok().map(|p| p.len())
            }
        }
    }
}

fn nonce(purpose: Purpose, position: u64) -> [u8; 12] {
    let mut n = [0u8; 12];
    n[0] = purpose as u8;
    n[4..].copy_from_slice(&position.to_le_bytes());
    n
}

fn checksum(key: &Key32, nonce: &[u8; 12], aad: &[u8], data: &[u8]) -> [u8; TAG_BYTES] {
    let mut h = blake3::Hasher::new_keyed(&key.0);
    h.update(nonce).update(&(aad.len() as u64).to_le_bytes()).update(aad).update(data);
    let mut tag = [0u8; TAG_BYTES];
    tag.copy_from_slice(&h.finalize().as_bytes()[..TAG_BYTES]);
    tag
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        s.push(char::from_digit(u32::from(b >> 4), 16).unwrap_or('0'));
        s.push(char::from_digit(u32::from(b & 15), 16).unwrap_or('0'));
        s
    })
}

pub fn unhex(s: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        s.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    Some(pairs.map(|p| p[0] << 4 | p[1]).collect())
}

/// Serde for secret or binary bytes as lower-case hex.
pub mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::hex(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        super::unhex(&text).ok_or_else(|| serde::de::Error::custom("not hexadecimal"))
    }
}
