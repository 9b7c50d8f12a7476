//! The key rings of the copies of a repository, beside its own: slots are made and removed in each by itself.
//!
//! What is found here is told to people; nothing is decided by it. A ring that the keys at hand do not open is left out.

use std::sync::Arc;

use pgark_repo::keyring::{self, CopySlots, Keyring, SlotInfo, Unlock};
use pgark_repo::store::Store;

use super::NewSlot;
use crate::error::Result;

pub struct CopyRing {
    /// Of the repository.
    pub name: String,
    ring: Keyring,
}

impl CopyRing {
    /// Whether older keys were not retired there.
    pub fn holds_older_keys(&self) -> bool {
        self.ring.masters().len() > 1
    }
}

/// Of those among `others` that are copies of the repository in `store`.
pub fn rings_of(store: &Arc<dyn Store>, unlock: &Unlock, others: &[(String, Arc<dyn Store>)]) -> Result<Vec<CopyRing>> {
    let own = keyring::read(store, unlock)?;
    let of_copy = |(name, other): &(String, Arc<dyn Store>)| {
        let ring = keyring::of_copy(other, own.masters()).ok().flatten()?;
        (ring.repository_id() == own.repository_id()).then(|| CopyRing { name: name.clone(), ring })
    };
    Ok(others.iter().filter_map(of_copy).collect())
}

/// Names of the copies that what was added here does not open.
pub fn lacking(copies: &[CopyRing], new: &NewSlot, slot: &SlotInfo) -> Result<Vec<String>> {
    let mut lacking = vec![];
    for copy in copies {
        let has = match new {
            NewSlot::Passphrase(p) => copy.ring.slot_of_passphrase(p)?.is_some(),
            NewSlot::Age(_) | NewSlot::Command(_) => copy.ring.slots().iter().any(|other| other.is_as(slot)),
        };
        if !has {
            lacking.push(copy.name.clone());
        }
    }
    Ok(lacking)
}

/// Slots of copies that what was removed here still opens, as far as that can be told without a secret.
pub fn still_there(copies: &[CopyRing], removed: &SlotInfo) -> Vec<(String, SlotInfo)> {
    let of = |copy: &CopyRing| {
        let same = copy.ring.slots().into_iter().filter(|other| other.is_as(removed));
        same.map(|slot| (copy.name.clone(), slot)).collect::<Vec<_>>()
    };
    copies.iter().flat_map(of).collect()
}

/// Slots for whose sake a copy does not get the ring of the repository in `store`.
pub fn in_the_way(
    store: &Arc<dyn Store>,
    unlock: &Unlock,
    copies: &[CopyRing],
) -> Result<Vec<(String, Vec<SlotInfo>)>> {
    let own = keyring::read(store, unlock)?;
    let slots = CopySlots { own: &|| unlock.clone(), drop: &[] };
    let mut found = vec![];
    for copy in copies.iter().filter(|copy| copy.ring.generation() < own.generation()) {
        let lacking = own.lacking_of(&copy.ring, &slots)?;
        if !lacking.is_empty() {
            found.push((copy.name.clone(), lacking));
        }
    }
    Ok(found)
}
