//! Several copies of one repository to read from. Whoever reads asks one; when that one does not answer, or what it has is
//! missing or damaged, the next one is asked, and what was wrong is remembered: for the report, and to be mended.
//!
//! Invariant: what is taken from any of them was authenticated by its reader. A repository that does not answer is never
//! taken for one that does not have what is asked for.

mod opening;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::names::ClusterName;
use pgark_repo::{RepoError, Repository};

use crate::error::{EngineError, Result};
use crate::several::{Member, is_away};

use opening::{Inner, NO_COPY, Slot, State, lock};
pub use opening::{Open, Source, Unopened};

/// So long one repository is waited for before the next one is asked as well.
pub const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    Missing,
    Damaged,
    /// It could not be reached or read.
    Away,
    /// What it has is of another history of the cluster.
    Foreign,
}

/// What was wrong with one repository while another one had what was needed.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub repository: String,
    pub kind: TroubleKind,
    /// None: the repository as a whole.
    pub object: Option<String>,
    pub what: String,
    pub(crate) source: usize,
}

#[derive(Clone)]
pub struct Sources {
    inner: Arc<Inner>,
    /// None: all of them.
    only: Option<Arc<[usize]>>,
}

/// The answers to one question.
pub(crate) struct Asked<T> {
    /// The first that was good enough.
    pub found: Option<(usize, T)>,
    pub rest: Vec<(usize, T)>,
    /// Of those who failed, what counts most.
    pub failed: Option<EngineError>,
    /// Names of those who did not answer and might know.
    pub silent: Vec<String>,
}

impl Sources {
    pub fn one(repo: Repository) -> Self {
        let name = repo.store().url();
        Sources::opened(vec![Member { name, repo, required: true }])
    }

    /// The first one is asked first.
    pub fn opened(members: Vec<Member>) -> Self {
        let slots = members.into_iter().map(|m| Slot {
            name: m.name,
            remote: false,
            witness: true,
            open: None,
            state: Mutex::new(State::Open(m.repo)),
            opening: Mutex::default(),
            away: AtomicBool::new(false),
            late: AtomicBool::new(false),
        });
        Sources::of(slots.collect())
    }

    /// Opened when they are needed, local ones first, otherwise in this order.
    pub fn new(sources: Vec<Source>) -> Self {
        let slots = sources.into_iter().map(|s| Slot {
            name: s.name,
            remote: s.remote,
            witness: s.witness,
            open: Some(s.open),
            state: Mutex::new(State::New),
            opening: Mutex::default(),
            away: AtomicBool::new(false),
            late: AtomicBool::new(false),
        });
        Sources::of(slots.collect())
    }

    fn of(slots: Vec<Slot>) -> Self {
        let mut order: Vec<usize> = (0..slots.len()).collect();
        order.sort_by_key(|n| slots.get(*n).is_some_and(|s| s.remote));
        let inner = Inner { slots, order: Mutex::new(order), troubles: Mutex::default() };
        Sources { inner: Arc::new(inner), only: None }
    }

    /// Those of these numbers. What is wrong with them is remembered in common.
    #[must_use]
    pub fn only(&self, numbers: &[usize]) -> Self {
        Sources { inner: self.inner.clone(), only: Some(numbers.into()) }
    }

    pub fn len(&self) -> usize {
        self.inner.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inner.slots.is_empty()
    }

    /// Opens all of them side by side and orders them by how soon they answered, local ones first. One that has not answered
    /// in time is left for later, when another one has.
    ///
    /// # Errors
    /// When none can be opened.
    pub fn open_all(&self) -> Result<()> {
        let count = self.len();
        let (send, receive) = channel();
        let began = Instant::now();
        for n in 0..count {
            let (inner, send) = (self.inner.clone(), send.clone());
            // Nobody listens any more to one that is late.
            thread::spawn(move || send.send((n, inner.repo(n).is_ok(), began.elapsed())).unwrap_or_default());
        }
        drop(send);
        let mut answered: Vec<(usize, bool, Duration)> = vec![];
        while answered.len() < count {
            let somebody = answered.iter().any(|(_, ok, _)| *ok);
            let got = match somebody {
                true => receive.recv_timeout(PATIENCE.saturating_sub(began.elapsed())),
                false => receive.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match got {
                Ok(answer) => answered.push(answer),
                Err(_) => break,
            }
        }
        for n in 0..count {
            match answered.iter().find(|a| a.0 == n) {
                Some((_, true, _)) => {}
                Some(_) => self.open_again(n),
                None => {
                    self.slot(n).away.store(true, Ordering::Relaxed);
                    let what = format!("it did not answer within {} s", PATIENCE.as_secs());
                    self.remember(n, TroubleKind::Away, None, what);
                }
            }
        }
        self.expel_others();
        let took = |n: usize| answered.iter().find(|a| a.0 == n).map_or(Duration::MAX, |a| a.2);
        let key = |n: &usize| {
            let remote = self.slot(*n).remote;
            (remote, if remote { took(*n) } else { Duration::ZERO }, *n)
        };
        lock(&self.inner.order).sort_by_key(key);
        match (0..count).any(|n| self.inner.opened(n).is_some()) {
            true => Ok(()),
            false => Err(EngineError::failed("E-REPO-AWAY", "no repository can be opened", "")),
        }
    }

    /// With the keys of one that is open, or given up.
    fn open_again(&self, n: usize) {
        let slot = self.slot(n);
        let failed = match &*lock(&slot.state) {
            State::Failed(e) => e.clone(),
            State::New | State::Open(_) => return,
        };
        let why = match (&failed, &slot.open, self.inner.any_opened(n)) {
            (Unopened::Key(_), Some(open), Some(other)) => match open(Some(&other)) {
                Ok(repo) => {
                    *lock(&slot.state) = State::Open(repo);
                    return;
                }
                Err(Unopened::Key(why) | Unopened::Other(why)) => why,
            },
            (Unopened::Key(why) | Unopened::Other(why), ..) => why.clone(),
        };
        slot.away.store(true, Ordering::Relaxed);
        self.remember(n, TroubleKind::Away, None, why);
    }

    /// A repository of its own is no copy: nothing of it is used.
    fn expel_others(&self) {
        let mut first: Option<String> = None;
        for n in 0..self.len() {
            let Some(repo) = self.inner.opened(n) else { continue };
            match &first {
                None => first = Some(repo.id().to_owned()),
                Some(id) if id == repo.id() => {}
                Some(_) => {
                    *lock(&self.slot(n).state) = State::Failed(Unopened::Other(NO_COPY.into()));
                    self.slot(n).away.store(true, Ordering::Relaxed);
                    self.remember(n, TroubleKind::Away, None, NO_COPY.into());
                }
            }
        }
    }

    fn slot(&self, n: usize) -> &Slot {
        self.inner.slots.get(n).expect("numbers come from here")
    }

    pub fn name(&self, n: usize) -> &str {
        &self.slot(n).name
    }

    /// Whom to ask, in turn. Those who are away come only when nobody else is left.
    pub fn order(&self) -> Vec<usize> {
        let mut all = lock(&self.inner.order).clone();
        all.retain(|n| self.only.as_ref().is_none_or(|only| only.contains(n)));
        let is = |flag: fn(&Slot) -> &AtomicBool, n: &usize| flag(self.slot(*n)).load(Ordering::Relaxed);
        let mut here: Vec<usize> = all.iter().copied().filter(|n| !is(|s| &s.away, n)).collect();
        here.sort_by_key(|n| is(|s| &s.late, n));
        if here.is_empty() { all } else { here }
    }

    /// The repository of this number, opened when it was not yet.
    pub fn repo(&self, n: usize) -> Result<Repository> {
        self.inner.repo(n)
    }

    /// Those that are open, the ones to ask first in front.
    pub fn members(&self) -> Vec<(usize, Member)> {
        let member = |n: usize| {
            Some((n, Member { name: self.name(n).to_owned(), repo: self.inner.opened(n)?, required: false }))
        };
        self.order().into_iter().filter_map(member).collect()
    }

    /// The one that is asked first.
    pub fn first(&self) -> Result<Repository> {
        let mut failed = None;
        for n in self.order() {
            match self.repo(n) {
                Ok(repo) => return Ok(repo),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        Err(failed.unwrap_or_else(nobody))
    }

    /// What the stores of those that are open had to say, each line once.
    pub fn notices(&self) -> Vec<String> {
        let opened = (0..self.len()).filter_map(|n| Some((n, self.inner.opened(n)?)));
        let said = |(n, repo): (usize, Repository)| {
            let lines = repo.store().notices();
            match self.len() {
                1 => lines,
                _ => lines.into_iter().map(|line| format!("repository {}: {line}", self.name(n))).collect(),
            }
        };
        opened.flat_map(said).collect()
    }

    pub fn troubles(&self) -> Vec<Trouble> {
        lock(&self.inner.troubles).clone()
    }

    /// What makes this failure worth telling when there are several.
    pub(crate) fn named(&self, n: usize, e: EngineError) -> EngineError {
        if self.len() < 2 { e } else { e.in_repository(self.name(n)) }
    }

    /// Whether another repository may help; then what was wrong is remembered.
    pub(crate) fn passes(&self, n: usize, e: &EngineError) -> bool {
        if self.len() < 2 {
            return false;
        }
        let (kind, object) = match e.repo() {
            Some(
                RepoError::Corrupt { object, .. }
                | RepoError::Unsupported { object, .. }
                | RepoError::NewerKey { object, .. },
            ) => (TroubleKind::Damaged, Some(object.clone())),
            Some(e @ RepoError::Store(store)) if e.is_damage() => {
                let kind = if store.is_not_found() { TroubleKind::Missing } else { TroubleKind::Damaged };
                (kind, store.object().map(str::to_owned))
            }
            _ if is_away(e) => (TroubleKind::Away, None),
            _ => return false,
        };
        if kind == TroubleKind::Away {
            self.slot(n).away.store(true, Ordering::Relaxed);
        }
        self.remember(n, kind, object, e.to_string());
        true
    }

    pub(crate) fn remember(&self, n: usize, kind: TroubleKind, object: Option<String>, what: String) {
        let mut troubles = lock(&self.inner.troubles);
        if !troubles.iter().any(|t| t.source == n && t.object == object) {
            let repository = self.name(n).to_owned();
            tracing::info!(target: "pgark", repository, what, "another repository is asked");
            troubles.push(Trouble { repository, kind, object, what, source: n });
        }
    }

    /// The first success, in turn.
    pub(crate) fn each<T>(&self, mut run: impl FnMut(usize, &Repository) -> Result<T>) -> Result<T> {
        let mut failed = None;
        for n in self.order() {
            match self.repo(n).and_then(|repo| run(n, &repo)) {
                Ok(value) => return Ok(value),
                Err(e) if self.passes(n, &e) => failed = worse(failed, self.named(n, e)),
                Err(e) => return Err(self.named(n, e)),
            }
        }
        Err(failed.unwrap_or_else(nobody))
    }

    /// Asks one after another, and the next one also when the one before lets us wait, until an answer is accepted. Nobody
    /// is given up before the time that its store has; but when somebody has answered, those who need not (in `hurry`:
    /// nobody needs to).
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        skip: &BTreeSet<usize>,
        hurry: bool,
        job: impl Fn(&Repository) -> Result<T> + Send + Sync + 'static,
        accept: impl Fn(&T) -> bool,
    ) -> Result<Asked<T>> {
        let mut asked = Asked { found: None, rest: vec![], failed: None, silent: vec![] };
        let mut waiting: Vec<usize> = self.order().into_iter().filter(|n| !skip.contains(n)).collect();
        waiting.reverse();
        asked.silent = self.silent(&waiting, skip);
        if self.len() == 1 {
            if let Some(n) = waiting.pop() {
                let answer = job(&self.repo(n)?)?;
                if accept(&answer) { asked.found = Some((n, answer)) } else { asked.rest.push((n, answer)) }
            }
            return Ok(asked);
        }
        let job = Arc::new(job);
        let (send, receive) = channel();
        let mut running: Vec<usize> = vec![];
        let mut go_on = true;
        loop {
            if let Some(n) = waiting.pop_if(|_| go_on) {
                self.start(n, &job, &send);
                running.push(n);
            }
            if running.is_empty() {
                return Ok(asked);
            }
            let needed = asked.rest.is_empty() || (!hurry && running.iter().any(|n| self.slot(*n).witness));
            let got = match waiting.is_empty() && needed {
                true => receive.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => receive.recv_timeout(PATIENCE),
            };
            go_on = true;
            match got {
                Ok((n, outcome)) => {
                    running.retain(|r| *r != n);
                    match outcome {
                        Ok(answer) if accept(&answer) => {
                            asked.found = Some((n, answer));
                            return Ok(asked);
                        }
                        Ok(answer) => asked.rest.push((n, answer)),
                        Err(e) if self.passes(n, &e) => {
                            if is_away(&e) && self.slot(n).witness {
                                asked.silent.push(self.name(n).to_owned());
                            }
                            asked.failed = worse(asked.failed.take(), self.named(n, e));
                        }
                        Err(e) => return Err(self.named(n, e)),
                    }
                }
                Err(_) => {
                    running.iter().for_each(|n| self.slot(*n).late.store(true, Ordering::Relaxed));
                    if waiting.is_empty() {
                        return Ok(asked);
                    }
                }
            }
        }
    }

    /// Witnesses that are known to be away and are not even asked.
    fn silent(&self, asked: &[usize], skip: &BTreeSet<usize>) -> Vec<String> {
        let out = |n: &usize| !asked.contains(n) && !skip.contains(n) && self.slot(*n).witness;
        (0..self.len()).filter(out).map(|n| self.name(n).to_owned()).collect()
    }

    fn start<T: Send + 'static>(
        &self,
        n: usize,
        job: &Arc<impl Fn(&Repository) -> Result<T> + Send + Sync + 'static>,
        send: &std::sync::mpsc::Sender<(usize, Result<T>)>,
    ) {
        let (inner, job, send) = (self.inner.clone(), job.clone(), send.clone());
        thread::spawn(move || {
            let run = || inner.repo(n).and_then(|repo| job(&repo));
            let outcome = catch_unwind(AssertUnwindSafe(run));
            let outcome = outcome.unwrap_or_else(|_| Err(EngineError::failed("E-SYSTEM", "a thread panicked", "")));
            // Nobody listens any more to one that is late.
            send.send((n, outcome)).unwrap_or_default();
        });
    }

    /// The books of the first that answers.
    pub fn catalog(&self, cluster: &ClusterName) -> Result<Catalog> {
        let cluster = cluster.clone();
        let read = move |repo: &Repository| Ok(CatalogStore::new(repo, &cluster).read()?);
        let asked = self.ask(&BTreeSet::new(), false, read, |_| true)?;
        asked.found.map(|(_, catalog)| catalog).ok_or_else(|| asked.failed.unwrap_or_else(nobody))
    }

    /// The books of every repository that has this cluster.
    pub fn catalogs(&self, cluster: &ClusterName) -> Result<Vec<(usize, Catalog)>> {
        let (mut found, mut failed) = (vec![], None);
        for n in self.order() {
            let read = self.repo(n).and_then(|repo| Ok(CatalogStore::new(&repo, cluster).read()?));
            match read {
                Ok(catalog) => found.push((n, catalog)),
                Err(e) if self.passes(n, &e) => failed = worse(failed, self.named(n, e)),
                Err(e) if self.len() > 1 && matches!(e.repo(), Some(RepoError::NoCluster { .. })) => {
                    failed = failed.or(Some(e));
                }
                Err(e) => return Err(self.named(n, e)),
            }
        }
        if found.is_empty() { Err(failed.unwrap_or_else(nobody)) } else { Ok(found) }
    }
}

/// All backups that any of them lists; of one that several list, the entry of the first.
pub fn joined(catalogs: &[(usize, Catalog)]) -> Option<Catalog> {
    let mut all = catalogs.first()?.1.clone();
    for (_, other) in catalogs {
        // One that was away when a cluster was registered anew knows fewer.
        if other.lineages.len() > all.lineages.len() {
            all.lineages.clone_from(&other.lineages);
        }
        for entry in &other.backups {
            if all.backup(&entry.id).is_none() {
                all.backups.push(entry.clone());
            }
        }
    }
    all.backups.sort_by(|a, b| a.id.cmp(&b.id));
    Some(all)
}

/// Damage says more than silence.
fn worse(before: Option<EngineError>, now: EngineError) -> Option<EngineError> {
    match before {
        Some(before) if before.is_damage() || !now.is_damage() => Some(before),
        _ => Some(now),
    }
}

fn nobody() -> EngineError {
    EngineError::failed("E-REPO-NONE", "there is no repository to read from", "check --repo")
}
