//! The audit trail of one command: an attempt before anything is done, its end after, in every repository it works on.
//!
//! Invariant: nothing that goes wrong here fails the command. A record that a repository does not take waits on this host and
//! goes there with the next command that opens it, which is told once; one that is lost is told each time. What it deliberately does not know: what commands do.

pub(crate) mod files;
mod memory;
mod spool;
mod words;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use pgark_engine::files::owners::Owners;
use pgark_repo::audit::{Event, Journal, JournalName, What, Who};
use pgark_repo::{RepoError, Repository};

pub use memory::{contradiction, forget, remembered};
use spool::Spool;
pub use spool::{Waits, waits};
pub use words::without_secrets;

/// What is attempted.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub command: String,
    /// As given; secrets are taken out here.
    pub arguments: Vec<String>,
    /// Of the repository as a whole, whatever cluster was named.
    pub of_repository: bool,
    pub sudo_user: Option<String>,
}

/// Shared by everything that opens repositories for one command. Without an attempt it does nothing.
#[derive(Clone, Default)]
pub struct Trail {
    shared: Option<Arc<Shared>>,
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trail(…)")
    }
}

struct Shared {
    attempt: Attempt,
    began: Instant,
    begun: Mutex<Option<Begun>>,
    places: Mutex<Vec<Arc<Slot>>>,
    about: Mutex<Vec<(String, String)>>,
    warnings: Mutex<Vec<String>>,
}

/// Once the settings are known.
#[derive(Clone, Debug)]
struct Begun {
    state_dir: Option<PathBuf>,
    journal: JournalName,
    event: Event,
}

struct Slot {
    url: String,
    place: Mutex<Place>,
}

/// A repository that the record is for.
struct Place {
    url: String,
    name: String,
    repo: Option<Repository>,
    /// Why it is not there, where something was tried.
    trouble: Option<String>,
    /// What the repository has not got and no file holds.
    held: Vec<Event>,
    /// Its journal is not what this host remembers, which was told: once, at the beginning or at the end.
    is_cut: bool,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub exit_code: u8,
    pub error: Option<String>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who runs this process.
pub fn who(sudo_user: Option<String>) -> Who {
    let uid = rustix::process::getuid().as_raw();
    let user = String::from_utf8_lossy(&Owners::of_this_machine().user(uid)).into_owned();
    Who {
        user,
        uid,
        sudo_user,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
    }
}

impl Trail {
    pub fn of(attempt: Attempt) -> Self {
        let shared = Shared {
            attempt,
            began: Instant::now(),
            begun: Mutex::default(),
            places: Mutex::default(),
            about: Mutex::default(),
            warnings: Mutex::default(),
        };
        Trail { shared: Some(Arc::new(shared)) }
    }

    /// Writes down on this host that it is attempted, for each of the repositories (name, URL). Only the first call counts.
    pub fn begin(&self, state_dir: Option<&Path>, cluster: &str, repos: &[(String, String)]) {
        let Some(shared) = &self.shared else { return };
        let mut begun = locked(&shared.begun);
        if begun.is_some() {
            return;
        }
        let journal = match shared.attempt.of_repository {
            true => Ok(JournalName::Repository),
            false => JournalName::parse(cluster),
        };
        let arguments = without_secrets(&shared.attempt.arguments);
        let what = What::Attempt { command: shared.attempt.command.clone(), arguments };
        let who = who(shared.attempt.sudo_user.clone());
        let made = journal
            .and_then(|journal| Ok((journal, Event::new(Timestamp::now(), Some(cluster.to_owned()), who, what)?)));
        let (journal, event) = match made {
            Ok(made) => made,
            Err(e) => return shared.warn(format!("E-AUDIT-LOST the audit trail does not get this command: {e}")),
        };
        let found = Begun { state_dir: state_dir.map(Path::to_owned), journal, event };
        let mut places = locked(&shared.places);
        for (name, url) in repos {
            places.push(Slot::of(name, url, &found));
        }
        *begun = Some(found);
    }

    /// Appends what waits for this repository, which somebody has just opened.
    pub fn opened(&self, name: &str, url: &str, repo: &Repository) {
        let Some((shared, begun)) = self.begun() else { return };
        let slot = shared.slot(name, url, &begun);
        let mut place = locked(&slot.place);
        if place.repo.is_some() {
            return;
        }
        place.repo = Some(repo.clone());
        place.append(&begun, shared);
    }

    /// That it could not be opened.
    pub fn away(&self, name: &str, url: &str, why: &str) {
        let Some((shared, begun)) = self.begun() else { return };
        locked(&shared.slot(name, url, &begun).place).trouble = Some(why.to_owned());
    }

    /// An id of something that it made, removed or read.
    pub fn about(&self, what: &str, id: impl ToString) {
        let Some(shared) = &self.shared else { return };
        let pair = (what.to_owned(), id.to_string());
        let mut about = locked(&shared.about);
        if !about.contains(&pair) && about.len() < words::ABOUT_MAX {
            about.push(pair);
        }
    }

    /// Whether that was told.
    pub fn has_told(&self, what: &str, id: &str) -> bool {
        self.shared.as_ref().is_some_and(|s| locked(&s.about).iter().any(|(w, i)| w == what && i == id))
    }

    /// Writes down how it ended; returns what people are to be told about the trail.
    pub fn end(&self, ended: &Ended) -> Vec<String> {
        let Some(shared) = &self.shared else { return vec![] };
        if let Some((_, begun)) = self.begun() {
            let what = What::End {
                attempt: begun.event.id.clone(),
                command: shared.attempt.command.clone(),
                exit_code: ended.exit_code,
                error: ended.error.clone(),
                about: locked(&shared.about).clone(),
                took_ms: u64::try_from(shared.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            let end = Event::new(Timestamp::now(), begun.event.cluster.clone(), begun.event.who.clone(), what);
            let places = locked(&shared.places).clone();
            for slot in places {
                match (&end, slot.place.try_lock()) {
                    (Ok(end), Ok(mut place)) => place.finish(end, &begun, shared),
                    (Ok(end), Err(_)) => slot.keep(end, &begun, shared),
                    (Err(e), _) => shared.warn(format!("E-AUDIT-LOST the audit trail does not get the end: {e}")),
                }
            }
        }
        std::mem::take(&mut *locked(&shared.warnings))
    }

    fn begun(&self) -> Option<(&Shared, Begun)> {
        let shared = self.shared.as_deref()?;
        let begun = locked(&shared.begun).clone()?;
        Some((shared, begun))
    }
}

impl Shared {
    fn warn(&self, what: String) {
        locked(&self.warnings).push(what);
    }

    /// Once, until all that waits was taken.
    fn warn_spooled(&self, spool: Option<Spool>, until: &str) {
        if spool.is_none_or(|spool| spool.is_first_to_tell()) {
            let more = "what follows it is told by 'pgark check' alone";
            self.warn(format!("E-AUDIT-SPOOLED the audit record waits on this host until {until}; {more}"));
        }
    }

    fn slot(&self, name: &str, url: &str, begun: &Begun) -> Arc<Slot> {
        let mut places = locked(&self.places);
        if let Some(found) = places.iter().find(|slot| slot.url == url) {
            return found.clone();
        }
        let new = Slot::of(name, url, begun);
        places.push(new.clone());
        new
    }
}

impl Slot {
    fn of(name: &str, url: &str, begun: &Begun) -> Arc<Slot> {
        Arc::new(Slot { url: url.to_owned(), place: Mutex::new(Place::new(name, url, begun)) })
    }

    /// Somebody who was given up still waits for this repository, and holds its place.
    fn keep(&self, end: &Event, begun: &Begun, shared: &Shared) {
        let spool = begun.state_dir.as_deref().map(|dir| Spool::of(dir, &self.url, &begun.journal));
        let kept = match &spool {
            Some(spool) => spool.put(end).map_err(|e| e.to_string()),
            None => Err("this host has no place for it".to_owned()),
        };
        match kept {
            Ok(()) => shared.warn_spooled(spool, &format!("repository {} answers", self.url)),
            Err(why) => shared.warn(format!("E-AUDIT-LOST repository {} does not answer, and {why}", self.url)),
        }
    }
}

impl Place {
    fn new(name: &str, url: &str, begun: &Begun) -> Self {
        let mut place = Place {
            url: url.to_owned(),
            name: name.to_owned(),
            repo: None,
            trouble: None,
            held: vec![],
            is_cut: false,
        };
        place.keep(&begun.event, begun);
        place
    }

    fn spool(&self, begun: &Begun) -> Option<Spool> {
        begun.state_dir.as_deref().map(|dir| Spool::of(dir, &self.url, &begun.journal))
    }

    /// On the disk, or else in memory.
    fn keep(&mut self, event: &Event, begun: &Begun) {
        let kept = self.spool(begun).map(|spool| spool.put(event));
        match kept {
            Some(Ok(())) => {}
            Some(Err(e)) => {
                self.trouble.get_or_insert(e.to_string());
                self.held.push(event.clone());
            }
            None => self.held.push(event.clone()),
        }
    }

    /// All that waits, oldest first.
    fn append(&mut self, begun: &Begun, shared: &Shared) {
        let Some(repo) = self.repo.clone() else { return };
        match self.try_append(&repo, begun, shared) {
            Ok(()) => self.trouble = None,
            Err(e) => self.trouble = Some(e.to_string()),
        }
    }

    fn try_append(&mut self, repo: &Repository, begun: &Begun, shared: &Shared) -> Result<(), Trouble> {
        // A writer has one journal that it can append to, whatever it tries.
        let own = repo.keys().writes_only().map(JournalName::Cluster);
        let name = own.unwrap_or_else(|| begun.journal.clone());
        let journal = Journal::new(repo, name.clone());
        let spool = self.spool(begun).filter(Spool::exists);
        let held_by_us = spool.as_ref().map(Spool::lock).transpose()?;
        let waiting = spool.as_ref().map(Spool::waiting).transpose()?.unwrap_or_default();
        if waiting.is_empty() && self.held.is_empty() {
            return Ok(());
        }
        let mut head = journal.head()?;
        let memory = begun.state_dir.as_deref().map(|dir| memory::Memory::of(dir, repo, &self.url, &name));
        let is_cut = memory.as_ref().and_then(|m| m.contradicts(&journal, head.as_ref()));
        if let (Some(what), false) = (&is_cut, std::mem::replace(&mut self.is_cut, is_cut.is_some())) {
            shared.warn(format!(
                "E-AUDIT-CUT the audit trail in repository {}: {what}; see 'pgark audit verify'",
                self.name
            ));
        }
        let mut at = |event: &Event| -> Result<(), RepoError> {
            head = Some(journal.append(event, head.as_ref())?);
            Ok(())
        };
        for (path, event) in waiting {
            at(&event)?;
            spool::remove(&path)?;
        }
        while let Some(event) = self.held.first() {
            at(event)?;
            self.held.remove(0);
        }
        spool.as_ref().map_or(Ok(()), Spool::settled)?;
        drop(held_by_us);
        // What contradicts it stays remembered until somebody has looked at it.
        if let (Some(memory), Some(head), None) = (memory, &head, is_cut) {
            memory.keep(head);
        }
        Ok(())
    }

    fn finish(&mut self, end: &Event, begun: &Begun, shared: &Shared) {
        if self.repo.is_some() && self.trouble.is_none() {
            self.held.push(end.clone());
            self.append(begun, shared);
            for event in std::mem::take(&mut self.held) {
                self.keep(&event, begun);
            }
        } else {
            self.keep(end, begun);
        }
        let Some(why) = &self.trouble else { return };
        let name = &self.name;
        match self.held.is_empty() {
            true => shared.warn_spooled(self.spool(begun), &format!("repository {name} takes it: {why}")),
            false => shared.warn(format!(
                "E-AUDIT-LOST repository {name} did not take the audit record, and this host has no place for it: {why}"
            )),
        }
    }
}

/// Why a record was not appended.
#[derive(Debug)]
enum Trouble {
    Repo(RepoError),
    Io(std::io::Error),
}

impl From<RepoError> for Trouble {
    fn from(e: RepoError) -> Self {
        Trouble::Repo(e)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(e: std::io::Error) -> Self {
        Trouble::Io(e)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Repo(e) => e.fmt(f),
            Trouble::Io(e) => write!(f, "waiting records: {e}"),
        }
    }
}
