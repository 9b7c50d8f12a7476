//! A next version that lies ready: durable already, and without its names. What is left to do takes two names.

use super::{Register, Version};
use crate::error::Result;
use crate::store::ObjectWriter;

/// Dropped without `put`, it leaves nothing.
pub struct Staged {
    register: Register,
    next: Version,
    copies: Vec<Box<dyn ObjectWriter>>,
}

impl Register {
    /// As `update`, but for the change itself, which `Staged::put` makes. None where `change` leaves the value.
    pub fn stage(&self, change: impl FnOnce(Option<&Version>) -> Result<Option<Vec<u8>>>) -> Result<Option<Staged>> {
        let current = self.read()?;
        let Some(value) = change(current.as_ref())? else { return Ok(None) };
        if let Some(version) = &current {
            self.complete(version)?;
        }
        let next = self.successor(current.as_ref(), value)?;
        let mut copies = vec![];
        for dir in self.dirs() {
            let name = Self::name(&dir, next.number)?;
            let mut copy = self.store.create(&name)?;
            copy.write(&self.encode(&name, &next)?)?;
            copy.settle()?;
            copies.push(copy);
        }
        Ok(Some(Staged { register: self.clone(), next, copies }))
    }
}

impl Staged {
    /// False when somebody else has changed the register since: nothing of this change is in force then.
    pub fn put(self) -> Result<bool> {
        self.register.put_version(&self.next, self.copies)
    }
}
