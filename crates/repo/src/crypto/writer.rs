//! Sealing for clusters that have a writer: a host that adds WAL and backups and reads neither. Its objects are of header
//! version 2. *Books* (registers, and the small files beside WAL) have a key that the writer holds, of its own cluster
//! alone. *Content* (packs, manifests, records, segments) is sealed to the public key of those who hold the domain's key.
//! A segment also carries *facts*, which the writer can read again: enough to tell whether what it pushes is there.
//!
//! Invariant: a [`WriterKeys`] holds no key from which content opens; a key of one cluster neither opens nor makes anything
//! of another.

use aws_lc_rs::agreement;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Algorithm, Domain, Key32, Keys, ObjectKind, derive, mark};
use crate::error::{RepoError, Result};
use crate::keyring::kept;
use crate::names::ClusterName;

/// Whom an object is sealed for; the version in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// For the holders of the domain's key alone.
    Readers = 1,
    /// So that the cluster's writer can make it, and read what it has to.
    Writer = 2,
}

impl Form {
    /// None for versions that we do not know.
    pub fn from_version(version: u8) -> Option<Self> {
        match version {
            1 => Some(Form::Readers),
            2 => Some(Form::Writer),
            _ => None,
        }
    }
}

impl ObjectKind {
    /// What a writer reads again. It says which backups and WAL there are, and holds nothing of the database's content.
    pub fn is_books(self) -> bool {
        match self {
            ObjectKind::WalSideFile | ObjectKind::WalHead | ObjectKind::Catalog => true,
            ObjectKind::Pack
            | ObjectKind::Manifest
            | ObjectKind::BackupRecord
            | ObjectKind::WalSegment
            | ObjectKind::Report
            | ObjectKind::Audit => false,
        }
    }

    /// Whether its first block says what a writer needs to know of it.
    pub fn has_facts(self) -> bool {
        matches!(self, ObjectKind::WalSegment | ObjectKind::Audit)
    }
}

/// The part of a domain's key that belongs to one cluster.
pub(super) fn cluster_key(domain: &Key32, cluster: &str) -> Key32 {
    derive(&domain.0, b"", &[b"pgark v2 cluster ", cluster.as_bytes()])
}

fn private_key(domain: &Key32) -> Key32 {
    derive(&domain.0, b"", &[b"pgark v2 reader"])
}

/// Public key for what the holders of this domain's key can open.
pub(super) fn reader_of(domain: &Key32) -> [u8; 32] {
    public_of(&private_key(domain))
}

fn x25519(secret: &Key32) -> agreement::PrivateKey {
    agreement::PrivateKey::from_private_key(&agreement::X25519, &secret.0).expect("any 32 bytes are a key")
}

fn public_of(secret: &Key32) -> [u8; 32] {
    let public = x25519(secret).compute_public_key().expect("a private key has a public key");
    public.as_ref().try_into().expect("32 bytes")
}

/// None for a public key with which everybody agrees on the same secret.
fn agree(secret: &Key32, public: &[u8; 32]) -> Option<Key32> {
    let public = agreement::UnparsedPublicKey::new(&agreement::X25519, &public[..]);
    let shared = agreement::agree(&x25519(secret), public, (), |shared| {
        let shared: [u8; 32] = shared.try_into().map_err(|_| ())?;
        Ok(Key32(shared))
    });
    shared.ok().filter(|s| s.0 != [0; 32])
}

/// What follows from a header and a name; the header up to the key commitment.
pub(super) struct Bound<'a> {
    pub header: &'a [u8],
    pub name: &'a str,
}

pub(super) fn books_key(cluster: &Key32, bound: &Bound<'_>) -> Key32 {
    derive(&cluster.0, b"", &[b"pgark v2 books ", bound.header, bound.name.as_bytes()])
}

pub(super) fn facts_key(cluster: &Key32, bound: &Bound<'_>) -> Key32 {
    derive(&cluster.0, b"", &[b"pgark v2 facts ", bound.header, bound.name.as_bytes()])
}

/// The cluster's key is part of it, so that nobody but its writer makes what opens under a name of the cluster.
fn content_key(shared: &Key32, cluster: &Key32, reader: &[u8; 32], bound: &Bound<'_>) -> Key32 {
    let secret = Zeroizing::new([shared.0, cluster.0].concat());
    derive(&secret, b"", &[b"pgark v2 object ", bound.header, reader, bound.name.as_bytes()])
}

/// A secret that is used for one object, and its public part, which lies in the header.
pub(super) struct Ephemeral {
    secret: Key32,
    pub public: [u8; 32],
}

impl Ephemeral {
    pub fn new() -> Result<Self> {
        let secret = Key32::random()?;
        Ok(Ephemeral { public: public_of(&secret), secret })
    }

    pub fn key_for(&self, reader: &[u8; 32], cluster: &Key32, bound: &Bound<'_>) -> Result<Key32> {
        let shared = agree(&self.secret, reader);
        let shared = shared.ok_or(RepoError::Invalid { what: "public key of readers", value: super::hex(reader) })?;
        Ok(content_key(&shared, cluster, reader, bound))
    }
}

/// The other side of `Ephemeral::key_for`; None for a public key that nobody makes.
pub(super) fn opening_key(domain: &Key32, ephemeral: &[u8; 32], cluster: &Key32, bound: &Bound<'_>) -> Option<Key32> {
    let shared = agree(&private_key(domain), ephemeral)?;
    Some(content_key(&shared, cluster, &reader_of(domain), bound))
}

/// What a writer of one cluster holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterKeys {
    pub cluster: ClusterName,
    pub encryption: Algorithm,
    content: HexKey,
    /// Ascending; the last is for new objects.
    pub(super) generations: Vec<WriterGeneration>,
    /// Of generations that were given up, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    given_up: Vec<WriterMark>,
}

/// The mark of the cluster key by which a writer's host knows the ring.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WriterMark {
    generation: u32,
    mark: HexKey,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WriterGeneration {
    pub generation: u32,
    /// The cluster's keys.
    data: HexKey,
    wal: HexKey,
    catalog: HexKey,
    /// Public keys of the readers. Not secret, and told to nobody who does not need them.
    data_reader: HexKey,
    wal_reader: HexKey,
}

#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct HexKey([u8; 32]);

impl TryFrom<String> for HexKey {
    type Error = &'static str;
    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        let bytes = super::unhex(&text).and_then(|b| b.try_into().ok());
        bytes.map(HexKey).ok_or("not a key")
    }
}

impl From<HexKey> for String {
    fn from(key: HexKey) -> String {
        super::hex(&key.0)
    }
}

impl HexKey {
    fn key(&self) -> Key32 {
        Key32(self.0)
    }
}

impl std::fmt::Debug for WriterKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriterKeys({})", self.cluster)
    }
}

impl WriterKeys {
    /// Of every generation that these keys have. None for who does not hold all domains.
    pub fn of(keys: &Keys, cluster: &ClusterName) -> Option<Self> {
        let one = |(generation, _): &(u32, Key32)| {
            let domain = |d| keys.domain_key(*generation, d);
            let (data, wal, catalog) = (domain(Domain::Data)?, domain(Domain::Wal)?, domain(Domain::Catalog)?);
            let own = |key: &Key32| HexKey(cluster_key(key, cluster.as_str()).0);
            Some(WriterGeneration {
                generation: *generation,
                data: own(data),
                wal: own(wal),
                catalog: own(catalog),
                data_reader: HexKey(reader_of(data)),
                wal_reader: HexKey(reader_of(wal)),
            })
        };
        let generations = keys.masters.iter().map(one).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())?;
        let (encryption, content) = (keys.algorithm, HexKey(keys.content.as_ref()?.0));
        Some(WriterKeys { cluster: cluster.clone(), encryption, content, generations, given_up: vec![] })
    }

    /// With the marks of what came before: those that `known` has, ascending, of generations that were given up.
    pub fn with_given_up(self, known: Vec<(u32, Key32)>) -> Self {
        let first = self.generations.first().map_or(0, |g| g.generation);
        let one = |(generation, mark): (u32, Key32)| WriterMark { generation, mark: HexKey(mark.0) };
        let given_up = kept(known, first).into_iter().map(one).collect();
        WriterKeys { given_up, ..self }
    }

    pub(super) fn given_up(&self) -> Vec<(u32, Key32)> {
        self.given_up.iter().map(|m| (m.generation, m.mark.key())).collect()
    }

    /// Of all generations that this writer's host may have seen, ascending.
    pub fn marks(&self) -> Vec<(u32, Key32)> {
        let held = self.generations.iter().map(|g| (g.generation, mark(&g.catalog.key())));
        self.given_up().into_iter().chain(held).collect()
    }

    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(self).expect("keys are plain data"))
    }

    /// # Errors
    /// What is wrong with bytes that no ring of ours holds.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let keys: WriterKeys =
            serde_json::from_slice(bytes).map_err(|e| format!("a writer's keys do not parse: {e}"))?;
        let generations =
            || keys.given_up.iter().map(|m| m.generation).chain(keys.generations.iter().map(|g| g.generation));
        let ascending = generations().zip(generations().skip(1)).all(|(a, b)| a < b);
        if !ascending || keys.generations.is_empty() || keys.encryption == Algorithm::None {
            return Err("a writer's keys contradict themselves".into());
        }
        Ok(keys)
    }

    /// Of the key for new objects.
    pub fn generation(&self) -> u32 {
        self.generations.last().map_or(0, |g| g.generation)
    }

    pub(super) fn content_id_key(&self) -> Key32 {
        self.content.key()
    }

    pub(super) fn find(&self, generation: u32) -> Option<&WriterGeneration> {
        self.generations.iter().find(|g| g.generation == generation)
    }
}

/// A writer's slot that was opened.
#[derive(Clone)]
pub struct OpenedWriter {
    pub keys: WriterKeys,
    /// What the slot's secret unwraps.
    pub slot_key: Key32,
    /// The slot's id.
    pub slot: String,
}

impl WriterGeneration {
    pub fn cluster_key(&self, domain: Domain) -> Key32 {
        match domain {
            Domain::Data => self.data.key(),
            Domain::Wal => self.wal.key(),
            Domain::Catalog => self.catalog.key(),
        }
    }

    /// None for the domain that has no content.
    pub fn reader(&self, domain: Domain) -> Option<[u8; 32]> {
        match domain {
            Domain::Data => Some(self.data_reader.0),
            Domain::Wal => Some(self.wal_reader.0),
            Domain::Catalog => None,
        }
    }
}
