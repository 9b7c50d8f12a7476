//! Damage is believed when it is seen twice: memory, disks and the way to a store fail too, and what they spoil on its way
//! lies there whole.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use pgark_repo::RepoError;

use super::Verify;

/// Objects that were read wrong, and right directly after. Used by several threads.
#[derive(Default)]
pub(super) struct Unsteady(Mutex<BTreeSet<String>>);

impl Unsteady {
    pub fn read<T>(&self, object: &str, mut read: impl FnMut() -> Result<T, RepoError>) -> Result<T, RepoError> {
        match read() {
            Err(e) if e.is_damage() && !e.is_not_found() => {
                let again = read()?;
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(object.to_owned());
                Ok(again)
            }
            other => other,
        }
    }
}

impl Verify<'_> {
    pub(super) fn report_unsteady(&mut self) {
        let found = std::mem::take(&mut self.unsteady).0.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.report.notes.extend(found.into_iter().map(|object| {
            format!(
                "{object} was read wrong once and right directly after: it is whole; look at the memory and disks of this \
                 machine, and at the way to the repository"
            )
        }));
    }
}
