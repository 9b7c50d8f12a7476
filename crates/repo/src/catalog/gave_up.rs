//! Which backups a repository had and gave up by itself, after nothing else of them is on record: so that nobody takes
//! them for what it never got from the repositories beside it.

use serde::{Deserialize, Serialize};

use super::Catalog;
use crate::names::BackupId;

/// More are told by their age.
const IDS_MAX: usize = 2000;

/// Backups that were taken off the list and are not to come back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaveUp {
    /// Of those with a lower id none is missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<BackupId>,
    /// In order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<BackupId>,
}

impl Catalog {
    /// Whether a backup that is not listed here was once, or may have been.
    pub fn has_given_up(&self, id: &BackupId) -> bool {
        let on_record = match &self.gave_up {
            Some(known) => known.below.as_ref().is_some_and(|b| id < b) || known.ids.binary_search(id).is_ok(),
            // Of the time before that was written down: only what is newer than all there is was certainly never here.
            None => self.backups.last().is_some_and(|newest| *id < newest.id),
        };
        on_record || self.expired(id).is_some()
    }

    /// It goes from the list for good.
    pub(super) fn give_up(&mut self, id: &BackupId) {
        let newest = self.backups.last().map(|b| b.id.clone());
        let known = self.gave_up.get_or_insert_with(|| GaveUp { below: newest, ids: vec![] });
        if let Err(at) = known.ids.binary_search(id) {
            known.ids.insert(at, id.clone());
        }
        let surplus = known.ids.len().saturating_sub(IDS_MAX);
        known.ids.drain(..surplus);
        if surplus > 0 {
            known.below = known.below.take().max(known.ids.first().cloned());
        }
    }

    /// Somebody brings it back.
    pub(super) fn take_back(&mut self, id: &BackupId) {
        if let Some(known) = &mut self.gave_up {
            known.ids.retain(|known| known != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClusterName;

    fn id(n: usize) -> BackupId {
        let at = jiff::Timestamp::from_second(1_700_000_000 + i64::try_from(n).expect("small")).expect("a time");
        BackupId::new(at, 'F')
    }

    #[test]
    fn what_was_given_up_is_known_however_much_it_was_and_nothing_else_is() {
        let mut catalog = Catalog::empty(ClusterName::parse("main").expect("a name"));
        assert!(!catalog.has_given_up(&id(1)));
        (10..10 + IDS_MAX).rev().for_each(|n| catalog.give_up(&id(n)));
        assert!(!catalog.has_given_up(&id(1)), "it was never here");
        (5000..5010).for_each(|n| catalog.give_up(&id(n)));
        let gone = [1, 10, 19, 20, 5009].map(|n| catalog.has_given_up(&id(n)));
        assert!(gone.iter().all(|gone| *gone), "{gone:?}");
        assert!(!catalog.has_given_up(&id(4999)) && !catalog.has_given_up(&id(5010)));
        catalog.take_back(&id(5009));
        assert!(!catalog.has_given_up(&id(5009)));
        assert_eq!(catalog.gave_up.map(|g| g.ids.len()), Some(IDS_MAX - 1));
    }
}
