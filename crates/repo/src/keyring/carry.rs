//! A ring that takes the place of an older one in a copy of the repository.
//!
//! Invariant: no slot of the copy goes that was not named to go.

use std::sync::Arc;

use super::slot::SlotInfo;
use super::unlock::Unlock;
use super::{Keyring, parse, register, ring_mac};
use crate::crypto::Key32;
use crate::error::Result;
use crate::store::Store;

/// What becomes of slots that a copy alone has.
pub struct CopySlots<'a> {
    /// What opens the copy by itself. Asked for only when slots differ.
    pub own: &'a dyn Fn() -> Unlock,
    /// Slots that go.
    pub drop: &'a [String],
}

impl Default for CopySlots<'_> {
    fn default() -> Self {
        CopySlots { own: &Unlock::default, drop: &[] }
    }
}

impl SlotInfo {
    /// Whether who opens the one opens the other, as far as that can be told without a secret.
    pub fn is_as(&self, other: &SlotInfo) -> bool {
        let same_owner = self.recipient.is_some() && self.recipient == other.recipient;
        let same_program = self.command.is_some() && self.command == other.command;
        self.writer == other.writer && (self.id == other.id || same_owner || same_program)
    }
}

impl Keyring {
    /// Slots of `there` that would go if this ring took its place: their secrets have none here.
    pub fn lacking_of(&self, there: &Keyring, copy: &CopySlots<'_>) -> Result<Vec<SlotInfo>> {
        let here = self.slots();
        let mut lacking = there.slots();
        lacking.retain(|slot| !copy.drop.contains(&slot.id) && !here.iter().any(|own| own.is_as(slot)));
        if lacking.is_empty() {
            return Ok(lacking);
        }
        // The same passphrase, given to each by itself.
        if let Some(passphrase) = (copy.own)().passphrase
            && let Some(slot) = there.slot_of_passphrase(&passphrase)?
            && self.slot_of_passphrase(&passphrase)?.is_some_and(|own| own.writer == slot.writer)
        {
            lacking.retain(|other| other.id != slot.id);
        }
        Ok(lacking)
    }
}

/// The ring of a copy, opened with the master keys of another one; None where there is none.
pub fn of_copy(store: &Arc<dyn Store>, masters: &[(u32, Key32)]) -> Result<Option<Keyring>> {
    let found = register(store.clone()).read_with(&mut |bytes| Keyring::open_with_masters(bytes, masters))?;
    Ok(found.map(|(_, ring)| ring))
}

/// Whether a ring is under the key that is held of its generation. False too for one that was changed without the key.
pub fn is_under(bytes: &[u8], masters: &[(u32, Key32)]) -> Result<bool> {
    let (body, text, mac) = parse(bytes)?;
    let held = masters.iter().find(|(generation, _)| *generation == body.generation);
    Ok(held.is_some_and(|(_, master)| mac == ring_mac(master, text)))
}
