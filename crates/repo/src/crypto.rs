//! Keys and sealing. One master key per generation; a key per domain from it; a key per object from that,
//! bound to the object's name. Who holds which is in `key_set`; what a host may make that reads nothing, in `writer`.
//! Without encryption the same places hold keyed checksums instead of tags, so that every reader authenticates or checks in
//! the same way.
//!
//! Invariant: a nonce is used once per object key: it is made of a purpose and a position that only grows.

pub mod key_set;
pub mod writer;
#[cfg(test)]
mod writer_tests;

use aws_lc_rs::{aead, hkdf};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{RepoError, Result};

pub use key_set::{KeySet, Keys, Renew};
pub use writer::{Form, OpenedWriter, WriterKeys};

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
    Audit = 9,
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
            ObjectKind::Pack | ObjectKind::Manifest | ObjectKind::BackupRecord => Domain::Data,
            ObjectKind::Report | ObjectKind::Audit => Domain::Data,
            ObjectKind::WalSegment | ObjectKind::WalSideFile | ObjectKind::WalHead => Domain::Wal,
            ObjectKind::Catalog => Domain::Catalog,
        }
    }

    /// The highest version that we read.
    pub fn version(self) -> u8 {
        Form::Writer as u8
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

/// What a host remembers of a key that it has seen: it tells keys apart and gives none away.
pub fn mark(key: &Key32) -> Key32 {
    derive(&key.0, b"", &[b"pgark v1 seen key"])
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

/// The generation that an object's header names. Not authenticated; None for what is not an object of ours.
pub fn generation_of(header: &[u8; HEADER_BYTES]) -> Option<u32> {
    let field = [header[12], header[13], header[14], header[15]];
    header.starts_with(MAGIC).then(|| u32::from_le_bytes(field))
}

/// The form that an object's header names. Not authenticated; None for what is not an object of ours, or of a form that we
/// do not know.
pub fn form_of(header: &[u8; HEADER_BYTES]) -> Option<Form> {
    Form::from_version(header[9]).filter(|_| header.starts_with(MAGIC))
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
    /// What the cluster's writer may know of the object. Position: 0. Sealed with a key of its own.
    Facts = 6,
}

/// Seals and opens the parts of one object.
pub struct ObjectKey {
    cipher: Cipher,
    facts: Option<FactsKey>,
}

/// Opens what an object says to the writer of its cluster, and nothing else.
pub struct FactsKey(Cipher);

enum Cipher {
    Plain(Key32),
    Aead(Box<aead::LessSafeKey>),
}

impl Cipher {
    fn new(algorithm: Algorithm, key: Key32) -> Self {
        let suite = match algorithm {
            Algorithm::None => return Cipher::Plain(key),
            Algorithm::Aes256Gcm => &aead::AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let unbound = aead::UnboundKey::new(suite, &key.0).expect("32-byte keys fit both ciphers");
        Cipher::Aead(Box::new(aead::LessSafeKey::new(unbound)))
    }

    fn seal(&self, purpose: Purpose, position: u64, aad: &[u8], buf: &mut Vec<u8>, from: usize) {
        let nonce = nonce(purpose, position);
        match self {
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

    fn open(&self, purpose: Purpose, position: u64, aad: &[u8], buf: &mut [u8]) -> Option<usize> {
        let nonce = nonce(purpose, position);
        let len = buf.len().checked_sub(TAG_BYTES)?;
        match self {
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

impl ObjectKey {
    /// With its commitment.
    fn committed(algorithm: Algorithm, key: Key32) -> (Self, [u8; 32]) {
        let commitment = blake3::derive_key("pgark v1 key commitment", &key.0);
        (ObjectKey { cipher: Cipher::new(algorithm, key), facts: None }, commitment)
    }

    /// Whether the first block of the object is for the writer of its cluster.
    pub fn has_facts(&self) -> bool {
        self.facts.is_some()
    }

    fn cipher(&self, purpose: Purpose) -> &Cipher {
        match (purpose, &self.facts) {
            (Purpose::Facts, Some(FactsKey(facts))) => facts,
            (Purpose::Facts, None) => unreachable!("asked for only where there are facts"),
            _ => &self.cipher,
        }
    }

    /// Encrypts `buf[from..]` in place and appends the tag.
    pub fn seal(&self, purpose: Purpose, position: u64, aad: &[u8], buf: &mut Vec<u8>, from: usize) {
        self.cipher(purpose).seal(purpose, position, aad, buf, from);
    }

    /// Checks the tag at the end of `buf` and decrypts in place; returns the plaintext's length.
    pub fn open(&self, purpose: Purpose, position: u64, aad: &[u8], buf: &mut [u8]) -> Option<usize> {
        self.cipher(purpose).open(purpose, position, aad, buf)
    }
}

impl FactsKey {
    fn new(algorithm: Algorithm, key: Key32) -> Self {
        FactsKey(Cipher::new(algorithm, key))
    }

    /// As `ObjectKey::open`.
    pub fn open(&self, aad: &[u8], buf: &mut [u8]) -> Option<usize> {
        self.0.open(Purpose::Facts, 0, aad, buf)
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
