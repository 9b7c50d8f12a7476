//! Opening the repositories of a source, each when it is first asked, and once.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pgark_repo::Repository;

use super::Trouble;
use crate::error::{EngineError, Result};

pub(super) const NO_COPY: &str = "it is a repository of its own, and no copy of the others";

/// Why a repository could not be opened.
#[derive(Clone, Debug)]
pub enum Unopened {
    /// The keys at hand do not open it. Those of another copy may.
    Key(String),
    Other(String),
}

/// Opens a repository, with the keys of another copy of it where one is given.
pub type Open = dyn Fn(Option<&Repository>) -> std::result::Result<Repository, Unopened> + Send + Sync;

/// A repository to read from, opened when it is first asked.
pub struct Source {
    pub name: String,
    pub remote: bool,
    /// Whether it must be asked before something is said to be in no repository.
    pub witness: bool,
    pub open: Box<Open>,
}

pub(super) struct Inner {
    pub(super) slots: Vec<Slot>,
    /// The ones to ask first in front.
    pub(super) order: Mutex<Vec<usize>>,
    pub(super) troubles: Mutex<Vec<Trouble>>,
}

pub(super) struct Slot {
    pub(super) name: String,
    pub(super) remote: bool,
    pub(super) witness: bool,
    pub(super) open: Option<Box<Open>>,
    pub(super) state: Mutex<State>,
    /// Held while it is being opened, which may take its time.
    pub(super) opening: Mutex<()>,
    pub(super) away: AtomicBool,
    /// It let somebody wait: the others are asked before it.
    pub(super) late: AtomicBool,
}

pub(super) enum State {
    New,
    Open(Repository),
    Failed(Unopened),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn opened(&self, n: usize) -> Option<Repository> {
        match &*lock(&self.slots.get(n)?.state) {
            State::Open(repo) => Some(repo.clone()),
            State::New | State::Failed(_) => None,
        }
    }

    /// Another one than `n` that is open.
    pub(super) fn any_opened(&self, n: usize) -> Option<Repository> {
        (0..self.slots.len()).filter(|k| *k != n).find_map(|k| self.opened(k))
    }

    pub(super) fn repo(&self, n: usize) -> Result<Repository> {
        let slot = self.slots.get(n).expect("numbers come from here");
        if let Some(known) = slot.known() {
            return known;
        }
        let _one_at_a_time = lock(&slot.opening);
        if let Some(known) = slot.known() {
            return known;
        }
        let other = self.any_opened(n);
        let open = slot.open.as_ref().expect("what is not open can be opened");
        let opened = match (open(None), &other) {
            (Err(Unopened::Key(_)), Some(other)) => open(Some(other)),
            (opened, _) => opened,
        };
        *lock(&slot.state) = match (opened, other) {
            (Ok(repo), Some(other)) if repo.id() != other.id() => State::Failed(Unopened::Other(NO_COPY.into())),
            (Ok(repo), _) => State::Open(repo),
            (Err(e), _) => State::Failed(e),
        };
        slot.known().expect("it was just found out")
    }
}

impl Slot {
    /// None: nobody has tried to open it yet.
    fn known(&self) -> Option<Result<Repository>> {
        match &*lock(&self.state) {
            State::New => None,
            State::Open(repo) => Some(Ok(repo.clone())),
            State::Failed(Unopened::Key(why) | Unopened::Other(why)) => {
                Some(Err(EngineError::failed("E-REPO-AWAY", why.clone(), "")))
            }
        }
    }
}
