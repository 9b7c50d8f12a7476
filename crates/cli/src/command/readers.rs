//! The repositories of a command that reads: all that are selected, as one source.

use std::sync::{Arc, Mutex, PoisonError};

use pgark_engine::EngineError;
use pgark_engine::repair::Mended;
use pgark_engine::restore::{AccessVariables, ReadFrom};
use pgark_engine::several::Member;
use pgark_engine::sources::{Source, Sources, Trouble, TroubleKind, Unopened};

use super::context::{Context, engine_failure, named, none_of};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::RepoSettings;
use crate::settings::repo_url::Scheme;

/// Lines about single objects; with more it is the whole repository.
const WARNINGS_MAX: usize = 20;

pub struct Readers {
    pub sources: Sources,
    settings: Vec<RepoSettings>,
    failures: Arc<Mutex<Vec<(usize, Failure)>>>,
}

impl Readers {
    /// Not opened yet, unless there is one alone.
    pub fn new(context: &Context) -> Result<Self, Failure> {
        let settings = context.settings.selected_repos()?;
        let failures: Arc<Mutex<Vec<(usize, Failure)>>> = Arc::default();
        if settings.is_empty() {
            context.repo_settings()?;
        }
        if let [only] = settings.as_slice() {
            let member =
                Member { name: only.name.clone(), repo: context.open_repository(only)?.healing(), required: true };
            return Ok(Readers { sources: Sources::opened(vec![member]), settings, failures });
        }
        let source = |(n, one): (usize, &RepoSettings)| {
            let (opener, failures) = (context.opener(one), failures.clone());
            let open = move |of: Option<&pgark_repo::Repository>| {
                let opened = of.map_or_else(|| opener.open(), |of| opener.open_as_copy(of));
                opened.map(|repo| repo.healing()).map_err(|failure| {
                    let why = format!("{}: {}", failure.code, failure.message);
                    let is_key = failure.exit == Exit::WrongKey;
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push((n, failure));
                    if is_key { Unopened::Key(why) } else { Unopened::Other(why) }
                })
            };
            Source {
                name: one.name.clone(),
                remote: one.url.scheme != Scheme::File,
                witness: true,
                open: Box::new(open),
            }
        };
        let sources = Sources::new(settings.iter().enumerate().map(source).collect());
        Ok(Readers { sources, settings, failures })
    }

    /// All that answer in time.
    pub fn opened(context: &Context) -> Result<Self, Failure> {
        let readers = Readers::new(context)?;
        readers.sources.open_all().map_err(|e| readers.failure(e))?;
        Ok(readers)
    }

    /// When none could be opened, why not.
    pub fn failure(&self, e: EngineError) -> Failure {
        let none_open = self.sources.members().is_empty();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.sort_by_key(|(n, _)| *n);
        if failures.is_empty() || !none_open {
            return engine_failure(e);
        }
        let one = |(n, failure): &(usize, Failure)| {
            let name = self.settings.get(*n).map(|s| s.name.clone()).unwrap_or_default();
            named(failure.clone(), &name, self.settings.len())
        };
        none_of(failures.iter().map(one).collect())
    }

    /// For a server that recovers by itself: every repository, also one that is away just now.
    pub fn places(&self, context: &Context) -> Result<Vec<ReadFrom>, Failure> {
        let members = self.sources.members();
        let mut places = vec![];
        for (n, settings) in self.settings.iter().enumerate() {
            let member = members.iter().find(|(k, _)| *k == n).map(|(_, m)| m);
            let opened = member.map(|m| m.repo.store().url());
            let access = match context.access_to_keep(settings) {
                Ok(access) => AccessVariables(access),
                // Whatever could not be found out for one that is away keeps nothing from being restored.
                Err(_) if opened.is_none() => continue,
                Err(failure) => return Err(failure),
            };
            let by_settings = || match settings.url.scheme {
                Scheme::File => {
                    let path =
                        std::path::absolute(&settings.url.path).unwrap_or_else(|_| settings.url.path.clone().into());
                    format!("file://{}", path.display())
                }
                _ => settings.url.to_string(),
            };
            let (witness, keys) = (opened.is_some(), member.map(|m| m.repo.keys().into()));
            places.push(ReadFrom { repository: opened.unwrap_or_else(by_settings), access, witness, keys });
        }
        Ok(places)
    }
}

/// Whether what one repository lacked was found elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    FromAnother,
    /// The operation failed, or was only planned.
    Unknown,
}

/// Says which repository lacked what, and what became of it.
pub fn tell(troubles: &[Trouble], mended: &[Mended], taken: Taken) {
    for trouble in troubles.iter().take(WARNINGS_MAX) {
        let done =
            mended.iter().find(|m| m.repository == trouble.repository && Some(&m.object) == trouble.object.as_ref());
        let taken = match (trouble.kind, taken) {
            (TroubleKind::Missing | TroubleKind::Damaged, Taken::FromAnother) => "; taken from another repository",
            _ => "",
        };
        let then = match done.map(|m| &m.outcome) {
            Some(Ok(from)) => format!(", put back from {from}"),
            Some(Err(why)) => format!(", not put back: {why}"),
            None => String::new(),
        };
        output::warning(&format!("repository {}: {}{taken}{then}", trouble.repository, trouble.what));
    }
    if troubles.len() > WARNINGS_MAX {
        output::warning(&format!("{} more of this kind", troubles.len() - WARNINGS_MAX));
    }
}
