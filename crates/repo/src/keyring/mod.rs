//! The key ring: the one object that is readable without a key. It says what the repository is and holds the
//! master key, wrapped once per slot. Losing it is losing the repository, so it exists twice.
//!
//! Invariant: after a slot opened, the ring's authentication code must match; what the ring says can raise
//! what the client demands, never lower it. A writer's slot opens no key for that code: what it opens authenticates itself.
//! Every master key that sealed something which is still there stays in the ring.

mod cache;
mod carry;
mod change;
mod edit;
mod given_up;
mod slot;
mod unlock;
mod wrap;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::crypto::{Algorithm, Key32, KeySet, Keys, OpenedWriter, content_key, derive, fill_random, hex, hex_bytes};
use crate::error::{RepoError, Result};
use crate::limits::{KEYRING_GENERATIONS_MAX, KEYRING_SLOTS_MAX};
use crate::names::KEYRING;
use crate::register::Register;
use crate::store::Store;
use given_up::GivenUp;
use slot::{Attempt, Slot, SlotKind};
use wrap::{unwrap, wrap};

pub use cache::{open_from_cache, ring_name, seal_for_cache};
pub use carry::{CopySlots, is_under, of_copy};
pub use change::{Change, edit, left_over, read, retire_older};
pub use edit::{Fate, Secrets, SlotError, SlotFate, SlotSecret};
pub(crate) use given_up::kept;
pub use slot::SlotInfo;
pub use unlock::{KeyCommands, Unlock};

const FORMAT: &str = "pgark-repository";
/// With a writer's slot, which programs of version 1 would take for one that opens everything.
const FORMAT_VERSION: u32 = 2;
const FORMAT_VERSION_WITHOUT_WRITERS: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Body {
    format: String,
    version: u32,
    #[serde(with = "hex_bytes")]
    repository_id: Vec<u8>,
    created: jiff::Timestamp,
    encryption: Algorithm,
    /// Of the master key that seals new data.
    generation: u32,
    /// When that key was made, if it is not the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotated: Option<jiff::Timestamp>,
    slots: Vec<Slot>,
    /// Master keys of earlier generations, wrapped under the newest.
    previous: Vec<Previous>,
    /// Of generations before those, which were given up: for hosts that have seen nothing since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    given_up: Vec<GivenUp>,
    /// The key of content ids, wrapped under the newest master key. It is that of the first generation and stays, so that
    /// equal content is still recognised. Absent: it follows from the only master key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_key: Option<Wrapped>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Previous {
    generation: u32,
    #[serde(with = "hex_bytes")]
    wrapped: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Wrapped(#[serde(with = "hex_bytes")] Vec<u8>);

/// A ring that was opened.
pub struct Keyring {
    body: Body,
    /// By generation, ascending; empty without encryption.
    masters: Vec<(u32, Key32)>,
    /// Marks of master keys that were given up, by generation, ascending.
    given_up: Vec<(u32, Key32)>,
    content: Option<Key32>,
    opened_by: Option<String>,
    /// What a writer's slot opened to; there are no master keys then.
    writer: Option<OpenedWriter>,
}

pub fn register(store: Arc<dyn Store>) -> Register {
    Register::plain(store, KEYRING.to_owned())
}

/// What a new repository is protected with.
#[derive(Clone, Debug)]
pub struct NewKeys {
    pub encryption: Algorithm,
    pub unlock: Unlock,
    /// Public keys (`age1…`) whose owners can open the repository too.
    pub age_recipients: Vec<String>,
    /// Names of key commands of `unlock` that get a slot.
    pub key_commands: Vec<String>,
}

impl Keyring {
    pub fn create(new: &NewKeys) -> Result<Self> {
        Self::create_with(new, None)
    }

    /// For a copy of a repository under keys of its own. It has the content-id key of the other, and begins with the second
    /// generation, because all that is copied becomes a later seal.
    pub fn create_rekeyed(new: &NewKeys, content: &Key32) -> Result<Self> {
        if new.encryption == Algorithm::None {
            return Err(RepoError::Slot(SlotError::NotEncrypted));
        }
        Self::create_with(new, Some(content))
    }

    fn create_with(new: &NewKeys, content: Option<&Key32>) -> Result<Self> {
        let mut id = vec![0u8; 16];
        fill_random(&mut id)?;
        let body = Body {
            format: FORMAT.into(),
            version: FORMAT_VERSION_WITHOUT_WRITERS,
            repository_id: id,
            created: now(),
            encryption: new.encryption,
            generation: 0,
            rotated: None,
            slots: vec![],
            previous: vec![],
            given_up: vec![],
            content_key: None,
        };
        let mut ring = Self::without_keys(body);
        if new.encryption == Algorithm::None {
            return Ok(ring);
        }
        let master = Key32::random()?;
        ring.body.generation = if content.is_some() { 2 } else { 1 };
        if let Some(content) = content {
            let wrapped = wrap(&master, &content_key_data(&ring.body.repository_id), content)?;
            ring.body.content_key = Some(Wrapped(wrapped));
        }
        ring.content = Some(content.cloned().unwrap_or_else(|| content_key(&master)));
        ring.masters = vec![(ring.body.generation, master)];
        if let Some(p) = &new.unlock.passphrase {
            ring.add_passphrase(p, None)?;
        }
        for r in &new.age_recipients {
            ring.add_age(r, None)?;
        }
        for name in &new.key_commands {
            ring.add_command(name, &new.unlock, None)?;
        }
        if ring.body.slots.is_empty() {
            return Err(RepoError::KeyRequired);
        }
        Ok(ring)
    }

    fn without_keys(body: Body) -> Self {
        Keyring { body, masters: vec![], given_up: vec![], content: None, opened_by: None, writer: None }
    }

    /// Opens with whatever fits. A client that has a key configured refuses a ring that claims to need none.
    pub fn open(bytes: &[u8], unlock: &Unlock) -> Result<Self> {
        let (body, body_text, mac) = parse(bytes)?;
        if body.encryption == Algorithm::None {
            if !unlock.is_empty() {
                return Err(RepoError::EncryptionStripped);
            }
            if mac != blake3::hash(body_text).to_hex().as_str() {
                return Err(RepoError::corrupt(KEYRING, "its checksum does not match"));
            }
            return Ok(Self::without_keys(body));
        }
        if unlock.is_empty() {
            return Err(RepoError::KeyRequired);
        }
        let (slot, key) = open_slots(&body, unlock)?;
        let id = slot.id.clone();
        if let Some(part) = &slot.writer {
            let keys = part.open(&body.repository_id, &key)?.ok_or_else(writer_keys_do_not_open)?;
            return Self::with_writer(body, OpenedWriter { keys, slot_key: key, slot: id });
        }
        let mut ring = Self::with_master(body, body_text, &mac, key)?;
        ring.opened_by = Some(id);
        Ok(ring)
    }

    /// Opens with a key that was unwrapped before (a key cache): a master key, or that of a writer's slot.
    pub fn open_with_master(bytes: &[u8], key: Key32) -> Result<Self> {
        let (body, body_text, mac) = parse(bytes)?;
        if body.encryption == Algorithm::None {
            return Err(RepoError::EncryptionStripped);
        }
        for (slot, part) in body.slots.iter().filter_map(|s| Some((s, s.writer.as_ref()?))) {
            if let Some(keys) = part.open(&body.repository_id, &key)? {
                let slot = slot.id.clone();
                return Self::with_writer(body, OpenedWriter { keys, slot_key: key, slot });
            }
        }
        Self::with_master(body, body_text, &mac, key)
    }

    /// Opens with what was opened before.
    ///
    /// # Errors
    /// `WrongKey` to a writer when its slot is not there, as in a ring from before.
    pub fn open_held(bytes: &[u8], held: &Keys) -> Result<Self> {
        match (held.writer(), held.masters()) {
            (Some(writer), _) => {
                let (body, _, _) = parse(bytes)?;
                let slot = body.slots.iter().find(|s| s.id == writer.slot);
                let gone = || RepoError::WrongKey { why: "the slot of this writer is not there".into() };
                let part = slot.and_then(|s| s.writer.as_ref()).ok_or_else(gone)?;
                let keys = part.open(&body.repository_id, &writer.slot_key)?.ok_or_else(writer_keys_do_not_open)?;
                Self::with_writer(body, OpenedWriter { keys, ..writer.clone() })
            }
            (None, []) => Self::open(bytes, &Unlock::default()),
            (None, masters) => Self::open_with_masters(bytes, masters),
        }
    }

    /// A writer cannot check the ring's code. It takes nothing from it but what its slot has authenticated.
    fn with_writer(body: Body, writer: OpenedWriter) -> Result<Self> {
        if body.encryption != writer.keys.encryption || body.generation != writer.keys.generation() {
            return Err(RepoError::corrupt(KEYRING, "it is not the ring that its writer's keys were made for"));
        }
        let opened_by = Some(writer.slot.clone());
        Ok(Keyring { opened_by, writer: Some(writer), ..Self::without_keys(body) })
    }

    /// Opens with that one of these master keys which was the newest when the ring was written.
    pub fn open_with_masters(bytes: &[u8], masters: &[(u32, Key32)]) -> Result<Self> {
        let (body, body_text, mac) = parse(bytes)?;
        let held = masters.iter().find(|(generation, _)| *generation == body.generation);
        let (_, master) = held.ok_or_else(|| {
            let why = format!("it says that its key is of generation {}, which is not known", body.generation);
            RepoError::corrupt(KEYRING, why)
        })?;
        Self::with_master(body, body_text, &mac, master.clone())
    }

    fn with_master(body: Body, body_text: &[u8], mac: &str, master: Key32) -> Result<Self> {
        if mac != ring_mac(&master, body_text) {
            return Err(RepoError::corrupt(KEYRING, "it was changed by somebody without the key"));
        }
        let bad = |what: &str| RepoError::corrupt(KEYRING, what);
        let mut masters: Vec<(u32, Key32)> = vec![];
        for p in &body.previous {
            let old = unwrap(&master, &body.repository_id, &p.wrapped);
            let old = old.ok_or_else(|| bad("an earlier key does not open"))?;
            let ascending = masters.last().is_none_or(|(before, _)| *before < p.generation);
            if !ascending || p.generation >= body.generation {
                return Err(bad("its generations are not in order"));
            }
            masters.push((p.generation, old));
        }
        let content = match &body.content_key {
            Some(Wrapped(wrapped)) => unwrap(&master, &content_key_data(&body.repository_id), wrapped)
                .ok_or_else(|| bad("the key of content ids does not open"))?,
            None if masters.is_empty() => content_key(&master),
            None => return Err(bad("it has several generations and no key of content ids")),
        };
        let first = masters.first().map_or(body.generation, |(generation, _)| *generation);
        let given_up = given_up::open(&body.repository_id, &master, &body.given_up, first)?;
        masters.push((body.generation, master));
        Ok(Keyring { masters, given_up, content: Some(content), ..Self::without_keys(body) })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        assert!(self.writer.is_none(), "a writer does not change the ring");
        let text = serde_json::to_string(&self.body).expect("a ring is plain data");
        let mac = match self.masters.last() {
            Some((_, m)) => ring_mac(m, text.as_bytes()),
            None => blake3::hash(text.as_bytes()).to_hex().to_string(),
        };
        format!("{text}\n{mac}\n").into_bytes()
    }

    pub fn keys(&self) -> KeySet {
        self.current_keys().map_or_else(KeySet::unencrypted, KeySet::from)
    }

    /// None without encryption.
    pub fn current_keys(&self) -> Option<Keys> {
        if let Some(writer) = &self.writer {
            return Some(Keys::of_writer(writer.clone()));
        }
        let content = self.content.as_ref().filter(|_| self.body.encryption != Algorithm::None)?;
        let written = self.body.slots.iter().filter_map(|s| s.writer.as_ref()).map(|w| w.cluster.clone());
        let keys = Keys::from_masters(self.body.encryption, &self.masters, content).with_written(written);
        Some(keys.with_given_up(self.given_up.clone()))
    }

    /// Whether it was opened by a slot that reads nothing.
    pub fn is_writers(&self) -> bool {
        self.writer.is_some()
    }

    pub fn newest_key(&self) -> Option<&Key32> {
        self.masters.last().map(|(_, k)| k)
    }

    /// Every master key, by generation.
    pub fn masters(&self) -> &[(u32, Key32)] {
        &self.masters
    }

    pub fn repository_id(&self) -> String {
        hex(&self.body.repository_id)
    }

    pub fn encryption(&self) -> Algorithm {
        self.body.encryption
    }

    /// Of the newest master key; 0 without encryption.
    pub fn generation(&self) -> u32 {
        self.body.generation
    }

    /// When the newest master key was made.
    pub fn newest_since(&self) -> jiff::Timestamp {
        self.body.rotated.unwrap_or(self.body.created)
    }

    pub fn slots(&self) -> Vec<SlotInfo> {
        self.body.slots.iter().map(Slot::info).collect()
    }

    /// The slot that opened this ring; none when a key cache did.
    pub fn opened_by(&self) -> Option<&str> {
        self.opened_by.as_deref()
    }
}

fn writer_keys_do_not_open() -> RepoError {
    RepoError::corrupt(KEYRING, "the keys of a writer do not open")
}

/// So that a wrapped master key cannot stand for it, nor the other way round.
fn content_key_data(repository_id: &[u8]) -> Vec<u8> {
    [repository_id, b"content id"].concat()
}

/// What can be read of a ring before it is opened. Not authenticated.
pub fn peek_repository_id(bytes: &[u8]) -> Result<String> {
    Ok(hex(&parse(bytes)?.0.repository_id))
}

/// As `peek_repository_id`: of the newest master key.
pub fn peek_generation(bytes: &[u8]) -> Result<u32> {
    Ok(parse(bytes)?.0.generation)
}

/// As `peek_repository_id`: of the oldest master key that was not given up.
pub fn peek_oldest_generation(bytes: &[u8]) -> Result<u32> {
    let body = parse(bytes)?.0;
    Ok(body.previous.iter().map(|p| p.generation).min().unwrap_or(body.generation))
}

fn parse(bytes: &[u8]) -> Result<(Body, &[u8], String)> {
    let bad = |what: &str| RepoError::corrupt(KEYRING, what);
    let text = bytes.strip_suffix(b"\n").ok_or_else(|| bad("truncated"))?;
    let cut = text.iter().position(|b| *b == b'\n').ok_or_else(|| bad("truncated"))?;
    let (body_text, mac) = (&text[..cut], &text[cut + 1..]);
    let mac = std::str::from_utf8(mac).map_err(|_| bad("its authentication code does not parse"))?;
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let head: Head = serde_json::from_slice(body_text).map_err(|e| bad(&format!("does not parse: {e}")))?;
    if head.format != FORMAT {
        return Err(bad("not a pgark key ring"));
    }
    if head.version > FORMAT_VERSION {
        let known = FORMAT_VERSION;
        return Err(RepoError::Unsupported { object: KEYRING.into(), found: head.version, known });
    }
    let body: Body = serde_json::from_slice(body_text).map_err(|e| bad(&format!("does not parse: {e}")))?;
    if body.slots.len() > KEYRING_SLOTS_MAX {
        return Err(bad("it has more slots than any we write"));
    }
    if body.previous.len() >= KEYRING_GENERATIONS_MAX {
        return Err(bad("it has more generations of keys than any we write"));
    }
    Ok((body, body_text, mac.to_owned()))
}

/// The slot that opens, and what it holds. What opens everything is tried before what is a writer's; of these, what costs
/// least is first.
fn open_slots<'b>(body: &'b Body, unlock: &Unlock) -> Result<(&'b Slot, Key32)> {
    let mut why = String::from("no slot of the kind that was given");
    let mut failed = None;
    let rank = |kind: &SlotKind| match kind {
        SlotKind::Age { .. } => 0,
        SlotKind::Passphrase { .. } => 1,
        SlotKind::Command { .. } => 2,
    };
    let mut slots: Vec<&Slot> = body.slots.iter().collect();
    slots.sort_by_key(|s| (s.writer.is_some(), rank(&s.kind)));
    for slot in slots {
        match slot.kind.try_open(&body.repository_id, unlock) {
            Ok(Attempt::Opened(master)) => return Ok((slot, master)),
            Ok(Attempt::Wrong(reason)) => why = reason.into(),
            Ok(Attempt::NothingGiven) => {}
            // A vault that is away says nothing about the other slots.
            Err(e @ RepoError::KeyCommand { .. }) => failed = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(failed.unwrap_or(RepoError::WrongKey { why }))
}

fn ring_mac(master: &Key32, body: &[u8]) -> String {
    let key = derive(&master.0, b"", &[b"pgark v1 key ring"]);
    blake3::keyed_hash(&key.0, body).to_hex().to_string()
}

fn now() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_keys(passphrase: &[u8], age_recipients: Vec<String>) -> NewKeys {
        let unlock = Unlock::passphrase(passphrase);
        NewKeys { encryption: Algorithm::Aes256Gcm, unlock, age_recipients, key_commands: vec![] }
    }

    #[test]
    fn each_slot_opens_the_same_key_and_a_wrong_one_does_not() {
        let identity = age::x25519::Identity::generate();
        let ring = Keyring::create(&new_keys(b"correct", vec![identity.to_public().to_string()])).unwrap();
        let bytes = ring.to_bytes();
        let by_pass = Keyring::open(&bytes, &Unlock::passphrase(b"correct")).unwrap();
        use age::secrecy::ExposeSecret;
        let secret = identity.to_string().expose_secret().to_owned();
        let by_age = Keyring::open(&bytes, &Unlock::age_identities(&secret)).unwrap();
        assert!(by_pass.newest_key() == by_age.newest_key() && by_pass.newest_key() == ring.newest_key());
        assert!(matches!(Keyring::open(&bytes, &Unlock::passphrase(b"wrong")), Err(RepoError::WrongKey { .. })));
        assert!(matches!(Keyring::open(&bytes, &Unlock::default()), Err(RepoError::KeyRequired)));
    }

    #[test]
    fn a_changed_ring_is_refused() {
        let bytes = Keyring::create(&new_keys(b"p", vec![])).unwrap().to_bytes();
        let text = String::from_utf8(bytes).unwrap();
        let changed = text.replace("\"generation\":1", "\"generation\":2");
        assert_ne!(changed, text);
        assert!(Keyring::open(changed.as_bytes(), &Unlock::passphrase(b"p")).is_err());
        let weak = text.replace("\"memory_kib\":65536", "\"memory_kib\":8");
        assert!(matches!(Keyring::open(weak.as_bytes(), &Unlock::passphrase(b"p")), Err(RepoError::Corrupt { .. })));
    }

    #[test]
    fn a_ring_without_encryption_is_refused_by_a_client_with_a_key() {
        let none = NewKeys {
            encryption: Algorithm::None,
            unlock: Unlock::default(),
            age_recipients: vec![],
            key_commands: vec![],
        };
        let bytes = Keyring::create(&none).unwrap().to_bytes();
        assert!(Keyring::open(&bytes, &Unlock::default()).is_ok());
        assert!(matches!(Keyring::open(&bytes, &Unlock::passphrase(b"p")), Err(RepoError::EncryptionStripped)));
    }
}
