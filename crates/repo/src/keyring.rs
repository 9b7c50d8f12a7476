//! The key ring: the one object that is readable without a key. It says what the repository is and holds the
//! master key, wrapped once per slot. Losing it is losing the repository, so it exists twice.
//!
//! Invariant: after a slot opened, the ring's authentication code must match; what the ring says can raise
//! what the client demands, never lower it.

use std::io::Write;
use std::sync::Arc;

use argon2::{Algorithm as Argon2Algorithm, Argon2, Params, Version as Argon2Version};
use aws_lc_rs::aead;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{Algorithm, Key32, KeySet, derive, fill_random, hex, hex_bytes};
use crate::error::{RepoError, Result};
use crate::limits::KEYRING_SLOTS_MAX;
use crate::names::KEYRING;
use crate::register::Register;
use crate::store::Store;

const FORMAT: &str = "pgark-repository";
const FORMAT_VERSION: u32 = 1;

/// What we write, and what we accept from a ring: not so weak that the passphrase is easily guessed, not so
/// strong that opening exhausts the machine.
const KDF_MEMORY_KIB: u32 = 64 * 1024;
const KDF_PASSES: u32 = 3;
const KDF_LANES: u32 = 4;
const KDF_MEMORY_KIB_RANGE: std::ops::RangeInclusive<u32> = 19 * 1024..=1024 * 1024;
const KDF_PASSES_RANGE: std::ops::RangeInclusive<u32> = 2..=16;
const KDF_LANES_RANGE: std::ops::RangeInclusive<u32> = 1..=16;

/// What opens a repository.
#[derive(Default, Clone)]
pub struct Unlock {
    pub passphrase: Option<Zeroizing<Vec<u8>>>,
    /// Text of age identities (`AGE-SECRET-KEY-…`), one per line, `#` comments allowed.
    pub age_identities: Option<Zeroizing<String>>,
}

impl Unlock {
    pub fn passphrase(p: &[u8]) -> Self {
        Unlock { passphrase: Some(Zeroizing::new(p.to_vec())), age_identities: None }
    }

    pub fn is_empty(&self) -> bool {
        self.passphrase.is_none() && self.age_identities.is_none()
    }
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unlock(…)")
    }
}

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
    slots: Vec<Slot>,
    /// Master keys of earlier generations, wrapped under the newest.
    previous: Vec<Previous>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slot {
    id: String,
    created: jiff::Timestamp,
    #[serde(flatten)]
    kind: SlotKind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum SlotKind {
    Passphrase {
        kdf: String,
        memory_kib: u32,
        passes: u32,
        lanes: u32,
        #[serde(with = "hex_bytes")]
        salt: Vec<u8>,
        #[serde(with = "hex_bytes")]
        wrapped: Vec<u8>,
    },
    Age {
        recipient: String,
        #[serde(with = "hex_bytes")]
        wrapped: Vec<u8>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Previous {
    generation: u32,
    #[serde(with = "hex_bytes")]
    wrapped: Vec<u8>,
}

/// A slot as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotInfo {
    pub id: String,
    pub kind: &'static str,
    pub created: jiff::Timestamp,
    pub recipient: Option<String>,
}

/// A ring that was opened.
pub struct Keyring {
    body: Body,
    masters: Vec<(u32, Key32)>,
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
}

impl Keyring {
    pub fn create(new: &NewKeys) -> Result<Self> {
        let mut id = vec![0u8; 16];
        fill_random(&mut id)?;
        let mut body = Body {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            repository_id: id,
            created: now(),
            encryption: new.encryption,
            generation: 0,
            slots: vec![],
            previous: vec![],
        };
        if new.encryption == Algorithm::None {
            return Ok(Keyring { body, masters: vec![] });
        }
        let master = Key32::random()?;
        body.generation = 1;
        let mut ring = Keyring { body, masters: vec![(1, master)] };
        if let Some(p) = &new.unlock.passphrase {
            ring.add_passphrase(p)?;
        }
        for r in &new.age_recipients {
            ring.add_age(r)?;
        }
        if ring.body.slots.is_empty() {
            return Err(RepoError::KeyRequired);
        }
        Ok(ring)
    }

    fn new_slot(&mut self, kind: SlotKind) -> Result<()> {
        if self.body.slots.len() >= KEYRING_SLOTS_MAX {
            let value = format!("a key ring has at most {KEYRING_SLOTS_MAX} slots");
            return Err(RepoError::Invalid { what: "slot", value });
        }
        let mut id = [0u8; 4];
        fill_random(&mut id)?;
        self.body.slots.push(Slot { id: hex(&id), created: now(), kind });
        Ok(())
    }

    fn newest_master(&self) -> &Key32 {
        &self.masters.last().expect("encrypted rings have a master key").1
    }

    pub fn add_passphrase(&mut self, passphrase: &[u8]) -> Result<()> {
        if passphrase.is_empty() {
            return Err(RepoError::Invalid { what: "passphrase", value: "it is empty".into() });
        }
        let mut salt = vec![0u8; 16];
        fill_random(&mut salt)?;
        let kek = argon2id(passphrase, &salt, KDF_MEMORY_KIB, KDF_PASSES, KDF_LANES)?;
        let wrapped = wrap(&kek, &self.body.repository_id, self.newest_master());
        self.new_slot(SlotKind::Passphrase {
            kdf: "argon2id".into(),
            memory_kib: KDF_MEMORY_KIB,
            passes: KDF_PASSES,
            lanes: KDF_LANES,
            salt,
            wrapped,
        })
    }

    pub fn add_age(&mut self, recipient: &str) -> Result<()> {
        let bad = |e: &dyn std::fmt::Display| RepoError::Invalid { what: "age recipient", value: e.to_string() };
        let to: age::x25519::Recipient = recipient.trim().parse().map_err(|e: &str| bad(&e))?;
        let mut plain = Zeroizing::new(self.body.repository_id.clone());
        plain.extend_from_slice(&self.newest_master().0);
        let wrapped = age::encrypt(&to, &plain).map_err(|e| bad(&e))?;
        self.new_slot(SlotKind::Age { recipient: to.to_string(), wrapped })
    }

    /// Opens with whatever fits. `demanded` is true when the client has a key configured: then a ring that
    /// claims to need none is refused.
    pub fn open(bytes: &[u8], unlock: &Unlock) -> Result<Self> {
        let (body, body_text, mac) = parse(bytes)?;
        if body.encryption == Algorithm::None {
            if !unlock.is_empty() {
                return Err(RepoError::EncryptionStripped);
            }
            if mac != blake3::hash(body_text).to_hex().as_str() {
                return Err(RepoError::corrupt(KEYRING, "its checksum does not match"));
            }
            return Ok(Keyring { body, masters: vec![] });
        }
        if unlock.is_empty() {
            return Err(RepoError::KeyRequired);
        }
        let master = open_slots(&body, unlock)?;
        Self::with_master(body, body_text, &mac, master)
    }

    /// Opens with a master key that was unwrapped before (a key cache).
    pub fn open_with_master(bytes: &[u8], master: Key32) -> Result<Self> {
        let (body, body_text, mac) = parse(bytes)?;
        if body.encryption == Algorithm::None {
            return Err(RepoError::EncryptionStripped);
        }
        Self::with_master(body, body_text, &mac, master)
    }

    fn with_master(body: Body, body_text: &[u8], mac: &str, master: Key32) -> Result<Self> {
        if mac != ring_mac(&master, body_text) {
            return Err(RepoError::corrupt(KEYRING, "it was changed by somebody without the key"));
        }
        let mut masters = vec![];
        for p in &body.previous {
            let old = unwrap(&master, &body.repository_id, &p.wrapped)
                .ok_or_else(|| RepoError::corrupt(KEYRING, "an earlier key does not open"))?;
            masters.push((p.generation, old));
        }
        masters.push((body.generation, master));
        Ok(Keyring { body, masters })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let text = serde_json::to_string(&self.body).expect("a ring is plain data");
        let mac = match self.masters.last() {
            Some((_, m)) => ring_mac(m, text.as_bytes()),
            None => blake3::hash(text.as_bytes()).to_hex().to_string(),
        };
        format!("{text}\n{mac}\n").into_bytes()
    }

    pub fn keys(&self) -> KeySet {
        match self.body.encryption {
            Algorithm::None => KeySet::unencrypted(),
            a => KeySet::from_masters(a, &self.masters),
        }
    }

    pub fn newest_key(&self) -> Option<&Key32> {
        self.masters.last().map(|(_, k)| k)
    }

    pub fn repository_id(&self) -> String {
        hex(&self.body.repository_id)
    }

    pub fn encryption(&self) -> Algorithm {
        self.body.encryption
    }

    pub fn slots(&self) -> Vec<SlotInfo> {
        let info = |s: &Slot| {
            let (kind, recipient) = match &s.kind {
                SlotKind::Passphrase { .. } => ("passphrase", None),
                SlotKind::Age { recipient, .. } => ("age", Some(recipient.clone())),
            };
            SlotInfo { id: s.id.clone(), kind, created: s.created, recipient }
        };
        self.body.slots.iter().map(info).collect()
    }
}

/// A master key wrapped for a cache beside a passphrase file, so that not every call pays for the slow key
/// derivation. Bound to this very ring: a changed ring makes the cache worthless. Whoever can read the cache and
/// guess the passphrase can check a guess quickly, so it is made only where the passphrase itself lies in a file of
/// the same owner.
pub fn seal_for_cache(passphrase: &[u8], ring: &[u8], master: &Key32) -> Vec<u8> {
    wrap(&cache_key(passphrase, ring), b"cache", master)
}

pub fn open_from_cache(passphrase: &[u8], ring: &[u8], cached: &[u8]) -> Option<Key32> {
    unwrap(&cache_key(passphrase, ring), b"cache", cached)
}

/// What to call the cached key of this ring.
pub fn ring_name(ring: &[u8]) -> String {
    blake3::hash(ring).to_hex().as_str().chars().take(32).collect()
}

fn cache_key(passphrase: &[u8], ring: &[u8]) -> Key32 {
    derive(passphrase, blake3::hash(ring).as_bytes(), &[b"pgark v1 key cache"])
}

/// What can be read of a ring before it is opened. Not authenticated.
pub fn peek_repository_id(bytes: &[u8]) -> Result<String> {
    Ok(hex(&parse(bytes)?.0.repository_id))
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
    Ok((body, body_text, mac.to_owned()))
}

fn open_slots(body: &Body, unlock: &Unlock) -> Result<Key32> {
    let mut why = String::from("no slot of the kind that was given");
    for slot in &body.slots {
        match (&slot.kind, unlock) {
            (
                SlotKind::Passphrase { memory_kib, passes, lanes, salt, wrapped, .. },
                Unlock { passphrase: Some(p), .. },
            ) => {
                let fine = KDF_MEMORY_KIB_RANGE.contains(memory_kib)
                    && KDF_PASSES_RANGE.contains(passes)
                    && KDF_LANES_RANGE.contains(lanes);
                if !fine {
                    return Err(RepoError::corrupt(KEYRING, "key derivation parameters outside of what is safe"));
                }
                let kek = argon2id(p, salt, *memory_kib, *passes, *lanes)?;
                match unwrap(&kek, &body.repository_id, wrapped) {
                    Some(master) => return Ok(master),
                    None => why = "wrong passphrase".into(),
                }
            }
            (SlotKind::Age { wrapped, .. }, Unlock { age_identities: Some(text), .. }) => {
                match open_age(text, wrapped, &body.repository_id) {
                    Some(master) => return Ok(master),
                    None => why = "none of the age identities fits".into(),
                }
            }
            _ => {}
        }
    }
    Err(RepoError::WrongKey { why })
}

fn open_age(identities: &str, wrapped: &[u8], repository_id: &[u8]) -> Option<Key32> {
    let lines = identities.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    for identity in lines.filter_map(|l| l.parse::<age::x25519::Identity>().ok()) {
        if let Ok(plain) = age::decrypt(&identity, wrapped) {
            let plain = Zeroizing::new(plain);
            let key = plain.strip_prefix(repository_id)?;
            return Some(Key32(key.try_into().ok()?));
        }
    }
    None
}

fn argon2id(passphrase: &[u8], salt: &[u8], memory_kib: u32, passes: u32, lanes: u32) -> Result<Key32> {
    let failed = |e: argon2::Error| RepoError::Invalid { what: "key derivation", value: e.to_string() };
    let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
    let mut out = [0u8; 32];
    Argon2::new(Argon2Algorithm::Argon2id, Argon2Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut out)
        .map_err(failed)?;
    Ok(Key32(out))
}

/// A wrapping key is used once: its salt is random, so a fixed nonce is right.
fn wrapping_cipher(kek: &Key32) -> aead::LessSafeKey {
    let unbound = aead::UnboundKey::new(&aead::AES_256_GCM, &kek.0).expect("32 bytes");
    aead::LessSafeKey::new(unbound)
}

fn wrapping_key(kek: &Key32, salt: &[u8]) -> Key32 {
    derive(&kek.0, salt, &[b"pgark v1 key wrap"])
}

fn wrap(kek: &Key32, repository_id: &[u8], master: &Key32) -> Vec<u8> {
    let mut salt = [0u8; 16];
    fill_random(&mut salt).expect("random numbers were available a moment ago");
    let mut sealed = master.0.to_vec();
    let nonce = aead::Nonce::assume_unique_for_key([0; 12]);
    wrapping_cipher(&wrapping_key(kek, &salt))
        .seal_in_place_append_tag(nonce, aead::Aad::from(repository_id), &mut sealed)
        .expect("32 bytes are below the cipher's limit");
    let mut out = salt.to_vec();
    out.write_all(&sealed).expect("memory");
    out
}

fn unwrap(kek: &Key32, repository_id: &[u8], wrapped: &[u8]) -> Option<Key32> {
    let (salt, sealed) = wrapped.split_at_checked(16)?;
    let mut sealed = sealed.to_vec();
    let nonce = aead::Nonce::assume_unique_for_key([0; 12]);
    let cipher = wrapping_cipher(&wrapping_key(kek, salt));
    let plain = cipher.open_in_place(nonce, aead::Aad::from(repository_id), &mut sealed).ok()?;
    Some(Key32((&*plain).try_into().ok()?))
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

    fn new_keys(passphrase: &[u8], recipients: Vec<String>) -> NewKeys {
        NewKeys { encryption: Algorithm::Aes256Gcm, unlock: Unlock::passphrase(passphrase), age_recipients: recipients }
    }

    #[test]
    fn each_slot_opens_the_same_key_and_a_wrong_one_does_not() {
        let identity = age::x25519::Identity::generate();
        let ring = Keyring::create(&new_keys(b"correct", vec![identity.to_public().to_string()])).unwrap();
        let bytes = ring.to_bytes();
        let by_pass = Keyring::open(&bytes, &Unlock::passphrase(b"correct")).unwrap();
        use age::secrecy::ExposeSecret;
        let secret = identity.to_string().expose_secret().to_owned();
        let by_age =
            Keyring::open(&bytes, &Unlock { passphrase: None, age_identities: Some(Zeroizing::new(secret)) }).unwrap();
        assert!(by_pass.newest_key() == by_age.newest_key() && by_pass.newest_key() == ring.newest_key());
        assert!(matches!(Keyring::open(&bytes, &Unlock::passphrase(b"wrong")), Err(RepoError::WrongKey { .. })));
        assert!(matches!(Keyring::open(&bytes, &Unlock::default()), Err(RepoError::KeyRequired)));
    }

    #[test]
    fn a_cached_key_opens_with_its_passphrase_and_ring_only() {
        let master = Key32([5; 32]);
        let cached = seal_for_cache(b"p", b"ring", &master);
        assert!(open_from_cache(b"p", b"ring", &cached) == Some(master));
        assert!(open_from_cache(b"q", b"ring", &cached).is_none());
        assert!(open_from_cache(b"p", b"other ring", &cached).is_none());
        assert!(open_from_cache(b"p", b"ring", &cached[..20]).is_none());
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
        let none = NewKeys { encryption: Algorithm::None, unlock: Unlock::default(), age_recipients: vec![] };
        let bytes = Keyring::create(&none).unwrap().to_bytes();
        assert!(Keyring::open(&bytes, &Unlock::default()).is_ok());
        assert!(matches!(Keyring::open(&bytes, &Unlock::passphrase(b"p")), Err(RepoError::EncryptionStripped)));
    }
}
