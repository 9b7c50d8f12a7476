//! Several repositories in one operation: each has its own success. One that is away, or in a state of its own that nothing
//! can be written to, is passed over, said aloud, and completed later; what is wrong with the operation itself is a failure
//! of the whole.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pgark_repo::catalog::CatalogStore;
use pgark_repo::names::BackupId;
use pgark_repo::store::StoreErrorKind;
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::replicate::{self, ReplicateOptions, Which};

/// A repository that takes part.
#[derive(Clone)]
pub struct Member {
    pub name: String,
    pub repo: Repository,
    /// The operation fails when this one does.
    pub required: bool,
}

/// Who is still there. Used by several threads.
pub(crate) struct Present<'a> {
    members: &'a [Member],
    away: Mutex<Vec<(usize, EngineError)>>,
}

/// Whether a repository could not be reached or written to, so that the same may succeed later.
pub fn is_away(e: &EngineError) -> bool {
    match e.repo() {
        None => e.code() == "E-REPO-AWAY",
        Some(RepoError::NoRepository { .. }) => true,
        Some(RepoError::Store(e)) => matches!(
            e.kind(),
            StoreErrorKind::Io | StoreErrorKind::NoSpace | StoreErrorKind::ReadOnly | StoreErrorKind::Denied
        ),
        _ => false,
    }
}

/// Whether it is this repository's own matter: it is away, damaged, frozen, of another key or of another cluster. What others are
/// given does not depend on it.
pub fn is_its_own(e: &EngineError) -> bool {
    let of_its_own = |e: &RepoError| {
        let closed = matches!(
            e,
            RepoError::WrongKey { .. }
                | RepoError::CopySlots { .. }
                | RepoError::KeyRequired
                | RepoError::EncryptionStripped
                | RepoError::KeyCommand { .. }
                | RepoError::NoCluster { .. }
        );
        let frozen = matches!(e, RepoError::Store(e) if e.kind() == StoreErrorKind::Archived);
        closed || frozen || e.is_damage()
    };
    is_away(e) || e.repo().is_some_and(of_its_own) || e.code() == OTHER_CLUSTER
}

/// Of WAL that is not of the cluster which the repository has under this name.
pub(crate) const OTHER_CLUSTER: &str = "E-WAL-SYSTEM";

impl<'a> Present<'a> {
    pub fn new(members: &'a [Member]) -> Self {
        Present { members, away: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, EngineError)>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_here(&self, member: usize) -> bool {
        !self.lock().iter().any(|(n, _)| *n == member)
    }

    /// The value, or None when this repository is left out from here on.
    pub fn keep<T>(&self, member: usize, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(e) if is_its_own(&e) && !self.members.get(member).is_some_and(|m| m.required) => {
                if self.is_here(member) {
                    self.lock().push((member, e));
                }
                Ok(None)
            }
            Err(e) => Err(self.named(member, e)),
        }
    }

    /// With the name of the repository, when there are several.
    fn named(&self, member: usize, e: EngineError) -> EngineError {
        match self.members.get(member) {
            Some(m) if self.members.len() > 1 => e.in_repository(&m.name),
            _ => e,
        }
    }

    /// The same with each that is there; the first value counts.
    pub fn each<T, U>(&self, all: &[U], mut run: impl FnMut(&U) -> Result<T>) -> Result<T>
    where
        U: HasMember,
    {
        let mut first = None;
        for one in all.iter().filter(|one| self.is_here(one.member())) {
            let value = self.keep(one.member(), run(one))?;
            first = first.or(value);
        }
        first.ok_or_else(|| self.nobody())
    }

    pub fn somebody(&self) -> Result<()> {
        if self.lock().len() < self.members.len() { Ok(()) } else { Err(self.nobody()) }
    }

    /// The failure of the first repository, when all are left out.
    pub fn nobody(&self) -> EngineError {
        let mut away = self.lock();
        if away.is_empty() {
            return EngineError::failed("E-REPO-NONE", "no repository took it", "check --repo");
        }
        let (member, e) = away.remove(0);
        drop(away);
        self.named(member, e)
    }

    pub fn away(self) -> Vec<(String, EngineError)> {
        let away = self.away.into_inner().unwrap_or_else(PoisonError::into_inner);
        let name = |n: usize| self.members.get(n).map(|m| m.name.clone()).unwrap_or_default();
        away.into_iter().map(|(n, e)| (name(n), e)).collect()
    }
}

pub(crate) trait HasMember {
    fn member(&self) -> usize;
}

/// Brings a backup that lies in the first repository, and what the others lack besides, into them. Returns for each of the
/// others why it does not have the backup.
pub fn complete(
    members: &[Member],
    options: &ReplicateOptions,
    backup: &BackupId,
    ctx: &Ctx,
) -> Vec<(String, Option<String>)> {
    let Some((first, others)) = members.split_first() else { return vec![] };
    let one = |member: &Member| -> Result<Option<String>> {
        let options = ReplicateOptions { cluster: options.cluster.clone(), which: Which::Newer, jobs: options.jobs };
        let plan = replicate::plan(&first.repo, Some(&member.repo), &options)?;
        let report = replicate::run(&first.repo, &member.repo, &options, &plan, ctx)?;
        let why: Vec<String> = report.failed.into_iter().map(|(what, why)| format!("{what}: {why}")).collect();
        let listed = CatalogStore::new(&member.repo, &options.cluster).read()?.backup(backup).is_some();
        Ok((!listed || !why.is_empty()).then(|| why.join("; ")))
    };
    let why = |member: &Member| one(member).unwrap_or_else(|e| Some(e.to_string()));
    others.iter().map(|member| (member.name.clone(), why(member))).collect()
}
