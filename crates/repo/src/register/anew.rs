//! The same value written anew: under another key, in another form, or so that what was there before goes away.

use super::Register;
use crate::crypto::{Form, HEADER_BYTES, generation_of};
use crate::error::Result;
use crate::store::StoreError;

impl Register {
    /// Writes the value once more when the version before the newest has another one, so that this goes away. For what
    /// must not stay at hand. False when some of it is still there: the store keeps what is deleted, or denies it.
    pub fn retire_older(&self, open: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let Some((newest, ())) = self.read_with(open)? else { return Ok(true) };
        if !self.has_older_values(&newest)? {
            return Ok(true);
        }
        self.update_with(open, |current, _| Ok(current.map(|v| v.value.clone())))?;
        let newest = self.read_with(open)?.map(|(version, ())| version);
        Ok(!newest.map_or(Ok(false), |n| self.has_older_values(&n))?)
    }

    /// Makes every version that can still be read one of this generation of the key, by writing the value anew. False when
    /// an older one is still there: the store keeps what is deleted, or denies it.
    pub fn seal_anew(&self, generation: u32) -> Result<bool> {
        // The first makes the newest version, the second the one before it.
        for _ in 0..2 {
            if self.newest_number()?.is_none() || self.is_sealed_under(generation)? {
                return Ok(true);
            }
            self.update(|current| Ok(current.map(|v| v.value.clone())))?;
        }
        self.is_sealed_under(generation)
    }

    fn is_sealed_under(&self, generation: u32) -> Result<bool> {
        for dir in self.dirs() {
            for number in self.numbers(&dir)? {
                let mut header = [0; HEADER_BYTES];
                match self.store.read_at(&Self::name(&dir, number)?, 0, &mut header) {
                    Ok(()) if generation_of(&header).is_some_and(|g| g < generation) => return Ok(false),
                    Ok(()) | Err(StoreError::NotFound { .. } | StoreError::Truncated { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(true)
    }

    /// Makes the newest version and the one before it ones that the cluster's writer can read, by writing the value anew.
    pub fn open_to_writer(&self) -> Result<()> {
        for _ in 0..2 {
            let Some(newest) = self.read()? else { return Ok(()) };
            if newest.form == Form::Writer && self.is_of_form(newest.number - 1, Form::Writer)? {
                return Ok(());
            }
            self.update(|current| Ok(current.map(|v| v.value.clone())))?;
        }
        Ok(())
    }

    /// True also of what is not there, or damaged.
    fn is_of_form(&self, number: u64, form: Form) -> Result<bool> {
        for dir in self.dirs() {
            match self.read_copy(&Self::name(&dir, number)?, number) {
                Ok(version) if version.form != form => return Ok(false),
                Ok(_) => {}
                Err(e) if e.is_damage() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}
