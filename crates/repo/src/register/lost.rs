//! A register of whose newest version no copy can be read: what is left of it, and a new version in its place.

use super::{Register, Version};
use crate::error::{RepoError, Result};

/// What a register that lost its newest version still has.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Of the version that cannot be read; 0 when there is none at all.
    newest: u64,
    /// The version before it.
    pub before: Option<Version>,
    pub why: String,
}

impl Register {
    /// None when the newest version can be read.
    ///
    /// # Errors
    /// What is no loss: a store that does not answer, a key that does not open it, a newer format.
    pub fn lost(&self, open: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Option<Lost>> {
        let why = match self.read_with(open) {
            Ok(Some(_)) => return Ok(None),
            Ok(None) => return Ok(Some(Lost { newest: 0, before: None, why: "there is none".into() })),
            Err(e) if is_loss(&e) => e.to_string(),
            Err(e) => return Err(e),
        };
        let newest = self.newest_number()?.unwrap_or(0);
        let before = match newest.checked_sub(1).filter(|n| *n > 0).map(|n| self.read_number(n, open)) {
            None => None,
            Some(Ok((version, ()))) => Some(version),
            Some(Err(e)) if is_loss(&e) => None,
            Some(Err(e)) => return Err(e),
        };
        Ok(Some(Lost { newest, before, why }))
    }

    /// Puts `value` in the place of what was lost. Whoever built on the lost version finds that its change does not count.
    /// False when what is there is not what was seen: it can be read again, or somebody else changed it.
    pub fn replace_lost(&self, lost: &Lost, open: &mut dyn FnMut(&[u8]) -> Result<()>, value: Vec<u8>) -> Result<bool> {
        // A medium that failed for a while may be back.
        if self.lost(open)?.is_none_or(|now| now.newest != lost.newest || now.before != lost.before) {
            return Ok(false);
        }
        let form = lost.before.as_ref().map_or(crate::crypto::Form::Readers, |v| v.form);
        let marks = lost.before.as_ref().map(|v| v.marks.clone()).unwrap_or_default();
        let passed = Version { number: lost.newest, value: vec![], marks, form };
        let next = self.successor(Some(&passed), value)?;
        if !self.create_version(&next)? {
            return Ok(false);
        }
        // Once more, so that the version before the newest is one that can be read.
        self.update(|current| Ok(current.map(|v| v.value.clone())))?;
        Ok(true)
    }
}

fn is_loss(e: &RepoError) -> bool {
    e.is_damage() && !matches!(e, RepoError::Unsupported { .. } | RepoError::NewerKey { .. })
}
