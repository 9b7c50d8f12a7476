//! The parity half of a verification: beside each object that was found whole, is its parity there, and is it what the
//! object's bytes give?

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pgark_repo::parity::{self, HealError, ParityState};
use pgark_repo::store::{ObjectName, StoreError};
use pgark_repo::{RepoError, Repository, names};

use super::{Depth, Names, ProblemKind, Verify};
use crate::error::Result;

/// What the store lists, and what was found of it. Used by several threads.
pub(super) struct ParityFindings {
    present: Names,
    depth: Depth,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    whole: u64,
    missing: BTreeSet<ObjectName>,
    damaged: BTreeSet<ObjectName>,
}

impl ParityFindings {
    pub fn list(repo: &Repository, dir: &str, depth: Depth) -> Result<Self> {
        let mut present = Names::default();
        let mut visit = |stat: pgark_repo::store::ObjectStat| {
            if names::protected_by(stat.name.as_str()).is_some() {
                present.insert(&stat.name);
            }
            Ok(())
        };
        match repo.store().list(dir, &mut visit) {
            // Told of with the other strangers.
            Ok(()) | Err(StoreError::Strange { .. }) => {}
            Err(e) => return Err(RepoError::from(e).into()),
        }
        Ok(ParityFindings { present, depth, found: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_present(&self, name: &ObjectName) -> bool {
        names::parity(name).is_ok_and(|parity| self.present.contains(parity.as_str()))
    }

    /// To be called when an object was found whole: its bytes are likely to be in memory still.
    pub fn check(&self, repo: &Repository, name: &ObjectName) -> std::result::Result<(), RepoError> {
        let nothing_to_see = self.present.is_empty() && repo.store().parity().is_none();
        if nothing_to_see || !names::deserves_parity(name) {
            return Ok(());
        }
        let name = &repo.store().find(name)?.name;
        let state = match (self.is_present(name), self.depth) {
            (false, _) => ParityState::Missing,
            (true, Depth::Quick) => ParityState::Whole,
            (true, Depth::Full) => parity::check(&**repo.bare_store(), name)?,
        };
        let mut found = self.lock();
        match state {
            ParityState::Whole => found.whole += 1,
            ParityState::Missing => drop(found.missing.insert(name.clone())),
            ParityState::Damaged => drop(found.damaged.insert(name.clone())),
        }
        Ok(())
    }

    /// What can be done about a damaged object, in words; nothing where it has no parity.
    fn hope(&self, repo: &Repository, object: &str) -> Option<String> {
        let name = ObjectName::parse(object).ok()?;
        let seal = repo.store().find(&name).map_or(name, |found| found.name);
        if !self.is_present(&seal) {
            return None;
        }
        match parity::heal(&**repo.bare_store(), &seal) {
            Ok(_) => Some("its parity can heal it, with --repair".into()),
            Err(HealError::NoParity) => None,
            Err(why) => Some(format!("its parity does not heal it: {why}")),
        }
    }
}

impl Verify<'_> {
    /// Says of the damage whether it can be healed, and reports parity itself.
    pub(super) fn report_parity(&mut self) {
        let store = self.repo.store().clone();
        if self.options.depth == Depth::Full {
            let damaged = |kind| matches!(kind, ProblemKind::Missing | ProblemKind::Damaged);
            for problem in self.report.problems.iter_mut().filter(|p| damaged(p.kind)) {
                if let Some(hope) = self.parity.hope(self.repo, &problem.object) {
                    problem.what += &format!("; {hope}");
                }
            }
        }
        let found = std::mem::take(&mut *self.parity.lock());
        for name in found.damaged {
            let what = "not the parity of this object's bytes; the object itself is whole";
            match names::parity(&name) {
                Ok(parity) => self.problem(parity.as_str(), ProblemKind::Damaged, what, vec![], vec![]),
                Err(e) => self.problem(name.as_str(), ProblemKind::Damaged, e, vec![], vec![]),
            }
        }
        self.report.parity_present = found.whole;
        if store.parity().is_some() {
            self.report.parity_missing = found.missing.into_iter().collect();
        }
    }

    /// Whether this is the parity, or a healed copy, of an object that the verification has met. When it belongs to no
    /// object that is there, it is a stranger.
    pub(super) fn is_companion(&mut self, object: &str) -> Result<bool> {
        let principal = names::principal(object);
        if principal == object {
            return Ok(false);
        }
        if names::healed_from(object).is_some() {
            let doubtful = self.report.problems.iter().any(|p| p.object == principal)
                || self.report.unchecked.iter().any(|u| u.object == principal);
            // Beside an object of which every byte was compared just now it has served.
            let served = self.options.depth == Depth::Full && self.claimed.contains(principal) && !doubtful;
            if served {
                self.report.leftovers.push(object.to_owned());
            }
            return Ok(served);
        }
        if self.claimed.contains(principal) {
            return Ok(true);
        }
        // It may have come after what was listed before.
        let name = ObjectName::parse(principal).map_err(RepoError::from)?;
        match self.repo.store().stat(&name) {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(RepoError::from(e).into()),
        }
    }
}

/// What to say of an object that nothing accounts for.
pub(super) fn stranger(object: &str) -> &'static str {
    if names::healed_from(object).is_some() {
        "left by a repair that was interrupted: 'pgark verify --repair' completes it"
    } else if names::protected_by(object).is_some() {
        "the parity of an object that is not there"
    } else {
        "nothing that is listed accounts for this object: the catalog lost an entry, or somebody put it here"
    }
}
