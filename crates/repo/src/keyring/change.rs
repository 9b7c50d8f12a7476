//! Changing the ring of a repository: read, changed, proven to open, written; and the older ring is made to go away,
//! because slots that were removed still open it.

use std::sync::Arc;

use super::slot::SlotInfo;
use super::{Keyring, SlotError, Unlock, parse, register};
use crate::crypto::Key32;
use crate::error::{RepoError, Result};
use crate::limits::KEYRING_BYTES_MAX;
use crate::store::Store;

/// What a change came to.
pub enum Change<T> {
    Write(T),
    /// It is as it should be.
    Leave(T),
}

/// Reads the ring, opened with what is at hand.
pub fn read(store: &Arc<dyn Store>, unlock: &Unlock) -> Result<Keyring> {
    let found = register(store.clone()).read_with(&mut |bytes| Keyring::open(bytes, unlock))?;
    found.map(|(_, ring)| ring).ok_or_else(|| RepoError::NoRepository { url: store.url() })
}

/// Changes the ring. `change` runs again when somebody else was faster.
///
/// # Errors
/// `SlotError::LockedOut` when what opened the ring would not open it any more; nothing is written then.
pub fn edit<T>(
    store: &Arc<dyn Store>,
    unlock: &Unlock,
    mut change: impl FnMut(&mut Keyring) -> Result<Change<T>>,
) -> Result<T> {
    let mut outcome = None;
    register(store.clone()).update_with(&mut |bytes| Keyring::open(bytes, unlock), |_, ring| {
        let mut ring = ring.ok_or_else(|| RepoError::NoRepository { url: store.url() })?;
        match change(&mut ring)? {
            Change::Leave(value) => {
                outcome = Some(value);
                Ok(None)
            }
            Change::Write(value) => {
                outcome = Some(value);
                proven_bytes(&ring, unlock).map(Some)
            }
        }
    })?;
    Ok(outcome.expect("the change ran, or there was an error"))
}

/// The ring as it will be stored, opened once more with what is at hand.
pub fn proven_bytes(ring: &Keyring, unlock: &Unlock) -> Result<Vec<u8>> {
    let bytes = ring.to_bytes();
    if bytes.len() as u64 > KEYRING_BYTES_MAX {
        return Err(SlotError::TooLarge.into());
    }
    match Keyring::open(&bytes, unlock) {
        Ok(again) if again.masters() == ring.masters() => Ok(bytes),
        Ok(_) | Err(RepoError::WrongKey { .. } | RepoError::KeyRequired) => Err(SlotError::LockedOut.into()),
        Err(e) => Err(e),
    }
}

/// Makes older rings go away. False when some can still be read, because the store keeps what is deleted.
pub fn retire_older(store: &Arc<dyn Store>, unlock: &Unlock) -> Result<bool> {
    register(store.clone()).retire_older(&mut |bytes| Keyring::open(bytes, unlock).map(drop))
}

/// Slots that the newest ring does not have and an older one, which can still be read, has. What is said of them is not
/// authenticated. `masters`: of the newest ring.
pub fn left_over(store: &Arc<dyn Store>, masters: &[(u32, Key32)]) -> Result<Vec<SlotInfo>> {
    if masters.is_empty() {
        return Ok(vec![]);
    }
    let register = register(store.clone());
    let newest = register.read_with(&mut |bytes| Keyring::open_with_masters(bytes, masters))?;
    let Some((newest, ring)) = newest else { return Ok(vec![]) };
    let now = ring.slots();
    let mut left: Vec<SlotInfo> = vec![];
    for older in register.older(&newest)? {
        // Damage in an old ring concerns `verify`; nothing can be opened with it.
        let Ok((body, _, _)) = parse(&older.value) else { continue };
        for slot in body.slots {
            if now.iter().all(|s| s.id != slot.id) && left.iter().all(|s| s.id != slot.id) {
                left.push(slot.info());
            }
        }
    }
    Ok(left)
}
