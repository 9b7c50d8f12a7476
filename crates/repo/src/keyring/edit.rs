//! Changes of a ring in memory: slots come and go, and the master key gets a successor.
//!
//! Invariant: whatever is changed, no slot is lost that was not named to go, and every master key stays in the ring but
//! those that are retired, which nothing may need any more.

use zeroize::Zeroizing;

use super::slot::{Attempt, Slot, SlotInfo, SlotKind, WriterPart, check_label, for_age, for_command, for_passphrase};
use super::unlock::Unlock;
use super::wrap::wrap;
use super::{
    FORMAT_VERSION, Keyring, Previous, Wrapped, content_key_data, given_up, kept, now, writer_keys_do_not_open,
};
use crate::crypto::{Key32, WriterKeys, fill_random, hex};
use crate::error::{RepoError, Result};
use crate::limits::{KEYRING_BYTES_MAX, KEYRING_GENERATIONS_MAX, KEYRING_SLOTS_MAX};
use crate::names::ClusterName;

/// Why slots or keys were not changed. Nothing was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("there is no slot {id}")]
    None { id: String },
    #[error("slot {id} is the last one")]
    Last { id: String },
    #[error("nothing that was given opens another slot than {id}")]
    Unproven { id: String },
    #[error("the secrets of these slots were not given: {slots}")]
    Locked { slots: String },
    #[error("the changed key ring would not open with what was given")]
    LockedOut,
    #[error("a key ring has at most {KEYRING_SLOTS_MAX} slots")]
    TooMany,
    #[error("the key was rotated {KEYRING_GENERATIONS_MAX} times; the ring holds no more generations")]
    TooOften,
    #[error("the repository is not encrypted: it has no keys")]
    NotEncrypted,
    #[error("the key ring would be larger than {KEYRING_BYTES_MAX} bytes")]
    TooLarge,
    #[error("what was given opens slot {slot} already, which does not open the same")]
    Taken { slot: String },
}

/// What a new slot is opened with.
pub enum SlotSecret<'a> {
    Passphrase(&'a [u8]),
    /// An age recipient.
    Age(&'a str),
    /// The name of a configured key command.
    Command(&'a str, &'a Unlock),
}

impl SlotSecret<'_> {
    fn wrapping(&self, repository_id: &[u8], key: &Key32) -> Result<SlotKind> {
        match self {
            SlotSecret::Passphrase(passphrase) => for_passphrase(repository_id, key, passphrase),
            SlotSecret::Age(recipient) => for_age(repository_id, key, recipient),
            SlotSecret::Command(name, unlock) => {
                let commands = unlock.commands.as_deref().filter(|c| c.knows(name));
                for_command(repository_id, key, name, commands.ok_or_else(|| unknown_command(name))?)
            }
        }
    }
}

/// What a rotation may use to wrap the new master key.
#[derive(Clone, Copy)]
pub struct Secrets<'a> {
    pub unlock: &'a Unlock,
    /// Passphrases of further slots.
    pub passphrases: &'a [Zeroizing<Vec<u8>>],
}

/// What of a writer's slot outlasts a change of the generations.
struct Outlasting {
    slot_key: Key32,
    /// Of all generations that its host may have seen, ascending.
    marks: Vec<(u32, Key32)>,
}

/// What becomes of a slot in a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFate {
    pub slot: SlotInfo,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It gets the new key.
    Rewrapped,
    /// It was named to go.
    Dropped,
    /// Its secret was not given.
    Locked,
}

impl Keyring {
    /// The slot that a passphrase opens already.
    pub fn slot_of_passphrase(&self, passphrase: &[u8]) -> Result<Option<SlotInfo>> {
        for slot in &self.body.slots {
            if slot.kind.open_with_passphrase(&self.body.repository_id, passphrase)?.is_some() {
                return Ok(Some(slot.info()));
            }
        }
        Ok(None)
    }

    /// Every slot that something given opens. A key command that fails proves nothing.
    pub fn proven(&self, unlock: &Unlock) -> Result<Vec<String>> {
        let mut proven = vec![];
        for slot in &self.body.slots {
            match slot.kind.try_open(&self.body.repository_id, unlock) {
                Ok(Attempt::Opened(key)) if self.is_key_of(slot, &key)? => proven.push(slot.id.clone()),
                Ok(_) | Err(RepoError::KeyCommand { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(proven)
    }

    fn is_key_of(&self, slot: &Slot, key: &Key32) -> Result<bool> {
        match &slot.writer {
            None => Ok(Some(key) == self.newest_key()),
            Some(part) => Ok(part.open(&self.body.repository_id, key)?.is_some()),
        }
    }

    pub fn add_passphrase(&mut self, passphrase: &[u8], label: Option<&str>) -> Result<SlotInfo> {
        self.add_reader(&SlotSecret::Passphrase(passphrase), label)
    }

    pub fn add_age(&mut self, recipient: &str, label: Option<&str>) -> Result<SlotInfo> {
        self.add_reader(&SlotSecret::Age(recipient), label)
    }

    pub fn add_command(&mut self, name: &str, unlock: &Unlock, label: Option<&str>) -> Result<SlotInfo> {
        self.add_reader(&SlotSecret::Command(name, unlock), label)
    }

    /// A slot that opens everything.
    pub fn add_reader(&mut self, secret: &SlotSecret<'_>, label: Option<&str>) -> Result<SlotInfo> {
        let kind = secret.wrapping(&self.body.repository_id, self.newest()?)?;
        self.add_slot(kind, label, None)
    }

    /// A slot that reads nothing and writes to one cluster.
    pub fn add_writer(
        &mut self,
        cluster: &ClusterName,
        secret: &SlotSecret<'_>,
        label: Option<&str>,
    ) -> Result<SlotInfo> {
        let (id, slot_key) = (&self.body.repository_id, Key32::random()?);
        // A host that comes to have another slot knows what it saw with the one before.
        let held = self.outlasting()?.into_iter().zip(&self.body.slots);
        let of_cluster = |slot: &Slot| slot.writer.as_ref().is_some_and(|w| w.cluster == *cluster);
        let known =
            held.filter(|(_, slot)| of_cluster(slot)).find_map(|(held, _)| Some(held?.marks)).unwrap_or_default();
        let keys = self.writer_keys(cluster)?.with_given_up(known);
        let part = WriterPart::new(id, self.newest()?, &slot_key, &keys)?;
        let kind = secret.wrapping(id, &slot_key)?;
        let slot = self.add_slot(kind, label, Some(part))?;
        self.body.version = FORMAT_VERSION;
        Ok(slot)
    }

    fn writer_keys(&self, cluster: &ClusterName) -> Result<WriterKeys> {
        let keys = self.current_keys().and_then(|keys| WriterKeys::of(&keys, cluster));
        keys.ok_or(RepoError::Slot(SlotError::NotEncrypted))
    }

    /// Of the writers' slots, in the order of the slots.
    fn outlasting(&self) -> Result<Vec<Option<Outlasting>>> {
        let (master, id) = (self.newest()?, &self.body.repository_id);
        let one = |slot: &Slot| {
            let Some(part) = &slot.writer else { return Ok(None) };
            let slot_key = part.slot_key(id, master)?;
            let keys = part.open(id, &slot_key)?.ok_or_else(writer_keys_do_not_open)?;
            Ok(Some(Outlasting { slot_key, marks: keys.marks() }))
        };
        self.body.slots.iter().map(one).collect()
    }

    /// Marks of all generations that a host may have seen, ascending.
    fn marks(&self) -> Vec<(u32, Key32)> {
        self.current_keys().map(|keys| keys.marks()).unwrap_or_default()
    }

    /// Keeps the marks of generations that the ring has no more; and gives each writer's slot the keys of those that it has.
    /// `known` and `held` are what `marks` and `outlasting` said before the change.
    fn renew(&mut self, known: Vec<(u32, Key32)>, held: &[Option<Outlasting>]) -> Result<()> {
        let first = self.masters.first().map_or(self.body.generation, |(generation, _)| *generation);
        self.given_up = kept(known, first);
        self.body.given_up = given_up::seal(&self.body.repository_id, self.newest()?, &self.given_up)?;
        let mut parts = vec![];
        for (slot, held) in self.body.slots.iter().zip(held) {
            let part = match (&slot.writer, held) {
                (Some(part), Some(held)) => {
                    let keys = self.writer_keys(&part.cluster)?.with_given_up(held.marks.clone());
                    Some(WriterPart::new(&self.body.repository_id, self.newest()?, &held.slot_key, &keys)?)
                }
                _ => None,
            };
            parts.push(part);
        }
        for (slot, part) in self.body.slots.iter_mut().zip(parts) {
            slot.writer = part;
        }
        Ok(())
    }

    fn newest(&self) -> Result<&Key32> {
        if self.is_writers() {
            return Err(RepoError::WriteOnly { what: "the key ring".into() });
        }
        self.newest_key().ok_or(RepoError::Slot(SlotError::NotEncrypted))
    }

    fn add_slot(&mut self, kind: SlotKind, label: Option<&str>, writer: Option<WriterPart>) -> Result<SlotInfo> {
        if self.body.slots.len() >= KEYRING_SLOTS_MAX {
            return Err(SlotError::TooMany.into());
        }
        label.map_or(Ok(()), check_label)?;
        let mut id = [0u8; 4];
        loop {
            fill_random(&mut id)?;
            if self.body.slots.iter().all(|s| s.id != hex(&id)) {
                break;
            }
        }
        let slot = Slot { id: hex(&id), created: now(), label: label.map(str::to_owned), kind, writer };
        let info = slot.info();
        self.body.slots.push(slot);
        Ok(info)
    }

    /// Takes a slot away. `proven` are the slots that something at hand opens: one of them must stay.
    pub fn remove_slot(&mut self, id: &str, proven: &[String]) -> Result<SlotInfo> {
        self.newest()?;
        let at = self.body.slots.iter().position(|s| s.id == id);
        let at = at.ok_or_else(|| SlotError::None { id: id.to_owned() })?;
        // A writer's slot keeps nothing readable.
        let others = |s: &&Slot| s.id != id && s.writer.is_none();
        if !self.body.slots.iter().any(|s| others(&s)) {
            return Err(SlotError::Last { id: id.to_owned() }.into());
        }
        if !self.body.slots.iter().filter(others).any(|s| proven.contains(&s.id)) {
            return Err(SlotError::Unproven { id: id.to_owned() }.into());
        }
        Ok(self.body.slots.remove(at).info())
    }

    /// What a rotation with these secrets would make of each slot.
    pub fn fates(&self, given: Secrets<'_>, drop: &[String]) -> Result<Vec<SlotFate>> {
        self.newest()?;
        if let Some(id) = drop.iter().find(|id| self.body.slots.iter().all(|s| s.id != **id)) {
            return Err(SlotError::None { id: id.clone() }.into());
        }
        let fate = |slot: &Slot| -> Result<SlotFate> {
            let fate = match &slot.kind {
                _ if drop.contains(&slot.id) => Fate::Dropped,
                _ if slot.writer.is_some() => Fate::Rewrapped,
                SlotKind::Age { .. } => Fate::Rewrapped,
                SlotKind::Passphrase { .. } if self.passphrase_of(slot, given)?.is_some() => Fate::Rewrapped,
                SlotKind::Command { command, .. } if knows(given.unlock, command) => Fate::Rewrapped,
                _ => Fate::Locked,
            };
            Ok(SlotFate { slot: slot.info(), fate })
        };
        let fates = self.body.slots.iter().map(fate).collect::<Result<Vec<_>>>()?;
        let mut reads = fates.iter().filter(|f| f.slot.writer.is_none());
        if reads.clone().all(|f| f.fate == Fate::Dropped)
            && let Some(last) = reads.next_back()
        {
            return Err(SlotError::Last { id: last.slot.id.clone() }.into());
        }
        Ok(fates)
    }

    fn passphrase_of<'a>(&self, slot: &Slot, given: Secrets<'a>) -> Result<Option<&'a Zeroizing<Vec<u8>>>> {
        for passphrase in given.unlock.passphrase.iter().chain(given.passphrases) {
            if slot.kind.open_with_passphrase(&self.body.repository_id, passphrase)?.is_some() {
                return Ok(Some(passphrase));
            }
        }
        Ok(None)
    }

    /// Makes a new master key for new data. Earlier ones stay, wrapped under it; each slot gets it or was named to go.
    ///
    /// # Errors
    /// `SlotError::Locked` when that is impossible for a slot; `KeyCommand` when a program does not wrap it.
    pub fn rotate(&mut self, given: Secrets<'_>, drop: &[String]) -> Result<Vec<SlotFate>> {
        let fates = self.fates(given, drop)?;
        let locked: Vec<String> = fates.iter().filter(|f| f.fate == Fate::Locked).map(|f| f.slot.describe()).collect();
        if !locked.is_empty() {
            return Err(SlotError::Locked { slots: locked.join(", ") }.into());
        }
        if self.masters.len() >= KEYRING_GENERATIONS_MAX {
            return Err(SlotError::TooOften.into());
        }
        let id = self.body.repository_id.clone();
        let master = Key32::random()?;
        let (known, mut slots, mut held) = (self.marks(), vec![], vec![]);
        for (slot, own) in self.body.slots.iter().zip(self.outlasting()?).filter(|(s, _)| !drop.contains(&s.id)) {
            let kind = if own.is_some() { slot.kind.clone() } else { self.rewrap(slot, &master, given)? };
            slots.push(Slot { kind, ..slot.clone() });
            held.push(own);
        }
        let previous = |(generation, old): &(u32, Key32)| {
            Ok(Previous { generation: *generation, wrapped: wrap(&master, &id, old)? })
        };
        let previous = self.masters.iter().map(previous).collect::<Result<Vec<_>>>()?;
        let content = self.content.as_ref().ok_or(SlotError::NotEncrypted)?;
        let content_key = Wrapped(wrap(&master, &content_key_data(&id), content)?);
        let generation = self.body.generation.checked_add(1).ok_or(SlotError::TooOften)?;
        self.body.slots = slots;
        self.body.previous = previous;
        self.body.content_key = Some(content_key);
        self.body.generation = generation;
        self.body.rotated = Some(now());
        self.masters.push((generation, master));
        self.renew(known, &held)?;
        Ok(fates)
    }

    /// Gives up every master key but the newest, and returns them; their marks stay. Only for who has seen that nothing is
    /// sealed under them.
    pub fn retire(&mut self) -> Result<Vec<(u32, Key32)>> {
        let (known, held) = (self.marks(), self.outlasting()?);
        let newest = self.masters.pop().ok_or(SlotError::NotEncrypted)?;
        let retired = std::mem::replace(&mut self.masters, vec![newest]);
        self.body.previous.clear();
        self.renew(known, &held)?;
        Ok(retired)
    }

    /// Takes back master keys that were retired too early.
    pub fn readmit(&mut self, retired: &[(u32, Key32)]) -> Result<()> {
        let (newest, marks, held) = (self.newest()?.clone(), self.marks(), self.outlasting()?);
        let known = |generation: u32| self.masters.iter().any(|(g, _)| *g == generation);
        let mut all: Vec<(u32, Key32)> = retired.iter().filter(|(g, _)| !known(*g)).cloned().collect();
        for (generation, old) in &all {
            let wrapped = wrap(&newest, &self.body.repository_id, old)?;
            self.body.previous.push(Previous { generation: *generation, wrapped });
        }
        self.body.previous.sort_by_key(|p| p.generation);
        all.append(&mut self.masters);
        all.sort_by_key(|(generation, _)| *generation);
        self.masters = all;
        self.renew(marks, &held)
    }

    fn rewrap(&self, slot: &Slot, master: &Key32, given: Secrets<'_>) -> Result<SlotKind> {
        let id = &self.body.repository_id;
        let locked = || SlotError::Locked { slots: slot.info().describe() };
        match &slot.kind {
            SlotKind::Age { recipient, .. } => for_age(id, master, recipient),
            SlotKind::Passphrase { .. } => {
                let passphrase = self.passphrase_of(slot, given)?.ok_or_else(locked)?;
                for_passphrase(id, master, passphrase)
            }
            SlotKind::Command { command, .. } => {
                let commands = given.unlock.commands.as_deref().ok_or_else(locked)?;
                for_command(id, master, command, commands)
            }
        }
    }
}

impl SlotInfo {
    pub fn describe(&self) -> String {
        let more = self.label.as_ref().or(self.recipient.as_ref()).or(self.command.as_ref());
        let kind = match &self.writer {
            Some(cluster) => format!("{}, writer of {cluster}", self.kind),
            None => self.kind.to_owned(),
        };
        match more {
            Some(more) => format!("{} ({kind}, {more})", self.id),
            None => format!("{} ({kind})", self.id),
        }
    }
}

fn knows(unlock: &Unlock, command: &str) -> bool {
    unlock.commands.as_deref().is_some_and(|c| c.knows(command))
}

fn unknown_command(name: &str) -> RepoError {
    RepoError::KeyCommand { name: name.to_owned(), why: "no key command of this name is configured".into() }
}
