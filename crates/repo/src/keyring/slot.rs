//! A slot: one way to the newest master key, or to the keys of a cluster's writer. It holds them wrapped, and nothing that
//! has to be secret.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::unlock::{KeyCommands, Unlock};
use super::wrap::{KdfCost, argon2id, unwrap, unwrap_bytes, wrap, wrap_bytes};
use crate::crypto::{Key32, WriterKeys, fill_random, hex, hex_bytes, unhex};
use crate::error::{RepoError, Result};
use crate::limits::{KEY_COMMAND_NAME_MAX, KEY_LABEL_CHARS_MAX, WRAPPED_KEY_BYTES_MAX, WRITER_KEYS_BYTES_MAX};
use crate::names::{ClusterName, KEYRING};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slot {
    pub id: String,
    pub created: jiff::Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(flatten)]
    pub kind: SlotKind,
    /// The slot of a writer: what `kind` wraps is no master key but a key of this slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<WriterPart>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WriterPart {
    pub cluster: ClusterName,
    /// The slot's key under the newest master key, so that a rotation needs no secret of the slot.
    #[serde(with = "hex_bytes")]
    pub key: Vec<u8>,
    /// What the slot's key opens: the writer's keys of every generation.
    #[serde(with = "hex_bytes")]
    pub keys: Vec<u8>,
}

impl WriterPart {
    pub fn new(repository_id: &[u8], master: &Key32, slot_key: &Key32, keys: &WriterKeys) -> Result<Self> {
        Ok(WriterPart {
            cluster: keys.cluster.clone(),
            key: wrap(master, &writer_data(repository_id, "writer slot"), slot_key)?,
            keys: wrap_bytes(slot_key, &writer_data(repository_id, "writer keys"), &keys.to_bytes())?,
        })
    }

    pub fn slot_key(&self, repository_id: &[u8], master: &Key32) -> Result<Key32> {
        unwrap(master, &writer_data(repository_id, "writer slot"), &self.key)
            .ok_or_else(|| RepoError::corrupt(KEYRING, "the key of a writer's slot does not open"))
    }

    /// None for a key that is not that of this slot.
    pub fn open(&self, repository_id: &[u8], slot_key: &Key32) -> Result<Option<WriterKeys>> {
        if self.keys.len() > WRITER_KEYS_BYTES_MAX {
            return Err(RepoError::corrupt(KEYRING, "a writer's keys are larger than any we write"));
        }
        let Some(plain) = unwrap_bytes(slot_key, &writer_data(repository_id, "writer keys"), &self.keys) else {
            return Ok(None);
        };
        WriterKeys::from_bytes(&plain).map(Some).map_err(|e| RepoError::corrupt(KEYRING, e))
    }
}

/// So that what is wrapped here cannot stand for another key.
fn writer_data(repository_id: &[u8], what: &str) -> Vec<u8> {
    [repository_id, what.as_bytes()].concat()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SlotKind {
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
    /// Wrapped by a program that the client's configuration has under this name.
    Command {
        command: String,
        #[serde(with = "hex_bytes")]
        wrapped: Vec<u8>,
    },
}

/// A slot as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotInfo {
    pub id: String,
    pub kind: &'static str,
    pub label: Option<String>,
    pub created: jiff::Timestamp,
    /// Of an age slot.
    pub recipient: Option<String>,
    /// The configured name, of a command slot.
    pub command: Option<String>,
    /// Of a slot that reads nothing: the cluster that it writes to.
    pub writer: Option<ClusterName>,
}

impl Slot {
    pub fn info(&self) -> SlotInfo {
        let (kind, recipient, command) = match &self.kind {
            SlotKind::Passphrase { .. } => ("passphrase", None, None),
            SlotKind::Age { recipient, .. } => ("age", Some(recipient.clone()), None),
            SlotKind::Command { command, .. } => ("command", None, Some(command.clone())),
        };
        let (id, label, created) = (self.id.clone(), self.label.clone(), self.created);
        let writer = self.writer.as_ref().map(|w| w.cluster.clone());
        SlotInfo { id, kind, label, created, recipient, command, writer }
    }
}

/// Whether something that was given opens a slot.
pub enum Attempt {
    Opened(Key32),
    /// It is of the right kind and does not fit.
    Wrong(&'static str),
    /// Nothing of this kind was given.
    NothingGiven,
}

impl SlotKind {
    pub fn try_open(&self, repository_id: &[u8], unlock: &Unlock) -> Result<Attempt> {
        Ok(match (self, unlock) {
            (SlotKind::Passphrase { .. }, Unlock { passphrase: Some(p), .. }) => {
                match self.open_with_passphrase(repository_id, p)? {
                    Some(master) => Attempt::Opened(master),
                    None => Attempt::Wrong("wrong passphrase"),
                }
            }
            (SlotKind::Age { wrapped, .. }, Unlock { age_identities: Some(text), .. }) => {
                match open_age(text, wrapped, repository_id) {
                    Some(master) => Attempt::Opened(master),
                    None => Attempt::Wrong("none of the age identities fits"),
                }
            }
            (SlotKind::Command { command, wrapped }, Unlock { commands: Some(c), .. }) if c.knows(command) => {
                if wrapped.len() > WRAPPED_KEY_BYTES_MAX {
                    return Err(RepoError::corrupt(KEYRING, "a wrapped key that is larger than any we write"));
                }
                let plain = c.unwrap(command, wrapped)?;
                match from_command_text(&plain, repository_id) {
                    Some(master) => Attempt::Opened(master),
                    None => Attempt::Wrong("what the key command returned is not a key of this repository"),
                }
            }
            _ => Attempt::NothingGiven,
        })
    }

    pub fn open_with_passphrase(&self, repository_id: &[u8], passphrase: &[u8]) -> Result<Option<Key32>> {
        let SlotKind::Passphrase { kdf, memory_kib, passes, lanes, salt, wrapped } = self else { return Ok(None) };
        if kdf != "argon2id" {
            return Err(RepoError::corrupt(KEYRING, "a key derivation that we do not know"));
        }
        let cost = KdfCost { memory_kib: *memory_kib, passes: *passes, lanes: *lanes };
        cost.check()?;
        Ok(unwrap(&argon2id(passphrase, salt, cost)?, repository_id, wrapped))
    }
}

pub fn for_passphrase(repository_id: &[u8], master: &Key32, passphrase: &[u8]) -> Result<SlotKind> {
    if passphrase.is_empty() {
        return Err(RepoError::Invalid { what: "passphrase", value: "it is empty".into() });
    }
    let mut salt = vec![0u8; 16];
    fill_random(&mut salt)?;
    let cost = KdfCost::WRITTEN;
    let wrapped = wrap(&argon2id(passphrase, &salt, cost)?, repository_id, master)?;
    let KdfCost { memory_kib, passes, lanes } = cost;
    Ok(SlotKind::Passphrase { kdf: "argon2id".into(), memory_kib, passes, lanes, salt, wrapped })
}

pub fn for_age(repository_id: &[u8], master: &Key32, recipient: &str) -> Result<SlotKind> {
    let bad = |e: &dyn std::fmt::Display| RepoError::Invalid { what: "age recipient", value: e.to_string() };
    let to: age::x25519::Recipient = recipient.trim().parse().map_err(|e: &str| bad(&e))?;
    let mut plain = Zeroizing::new(Vec::with_capacity(64));
    plain.extend_from_slice(repository_id);
    plain.extend_from_slice(&master.0);
    let wrapped = age::encrypt(&to, &plain).map_err(|e| bad(&e))?;
    Ok(SlotKind::Age { recipient: to.to_string(), wrapped })
}

/// The program has to give back what it wrapped before the slot is worth anything.
pub fn for_command(repository_id: &[u8], master: &Key32, name: &str, commands: &dyn KeyCommands) -> Result<SlotKind> {
    let invalid = |value: String| RepoError::Invalid { what: "name of a key command", value };
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > KEY_COMMAND_NAME_MAX || !name.chars().all(fine) {
        return Err(invalid(name.to_owned()));
    }
    let failed = |why: &str| RepoError::KeyCommand { name: name.to_owned(), why: why.to_owned() };
    let wrapped = commands.wrap(name, &command_text(repository_id, master))?;
    if wrapped.is_empty() || wrapped.len() > WRAPPED_KEY_BYTES_MAX {
        return Err(failed(&format!("it made {} bytes; 1 to {WRAPPED_KEY_BYTES_MAX} are accepted", wrapped.len())));
    }
    let back = commands.unwrap(name, &wrapped)?;
    if from_command_text(&back, repository_id).as_ref() != Some(master) {
        return Err(failed("unwrapping does not give back what was wrapped"));
    }
    Ok(SlotKind::Command { command: name.to_owned(), wrapped })
}

/// Hex, because some vaults take text alone. It is also valid base64, which others demand.
fn command_text(repository_id: &[u8], master: &Key32) -> Zeroizing<Vec<u8>> {
    let id = hex(repository_id);
    let key = Zeroizing::new(hex(&master.0));
    let mut text = Zeroizing::new(Vec::with_capacity(id.len() + key.len()));
    text.extend_from_slice(id.as_bytes());
    text.extend_from_slice(key.as_bytes());
    text
}

fn from_command_text(text: &[u8], repository_id: &[u8]) -> Option<Key32> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches(['\r', '\n']);
    let bytes = Zeroizing::new(unhex(text)?);
    Some(Key32(bytes.strip_prefix(repository_id)?.try_into().ok()?))
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

pub fn check_label(label: &str) -> Result<()> {
    let fine = !label.trim().is_empty()
        && label.chars().count() <= KEY_LABEL_CHARS_MAX
        && !label.chars().any(char::is_control);
    if fine {
        return Ok(());
    }
    let value = format!("1 to {KEY_LABEL_CHARS_MAX} characters on one line");
    Err(RepoError::Invalid { what: "label", value })
}
