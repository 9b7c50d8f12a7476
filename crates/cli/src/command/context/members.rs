//! Several repositories of one cluster: opened together, one to read from, copies of each other, and those that are passed over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgark_engine::several::Member;
use pgark_engine::sources::PATIENCE;
use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::CopySlots;
use pgark_repo::names::ClusterName;
use pgark_repo::store::Store;

use super::{Context, Opener, engine_failure, explain_lock, no_repository, place_of, trail_opened};
use crate::failure::{Exit, Failure};
use crate::output;
use crate::settings::RepoSettings;
use crate::settings::repo_url::Scheme;
use crate::store::{self, Missing};

impl Context {
    /// All selected repositories, opened; the first that can be is the one to read from. One that cannot be used and is not
    /// required is passed over with a warning; so is one, but the first, that does not answer in time.
    ///
    /// # Errors
    /// When none can be opened, or a required one cannot.
    pub fn open_members(&self, patience: Option<Duration>) -> Result<Opened, Failure> {
        self.open_members_of(self.settings.selected_repos()?, patience, |_| Ok(()))
    }

    /// As `open_members`, where each is looked at: a required one that cannot be used is passed over, too.
    ///
    /// # Errors
    /// When none can be opened.
    pub fn open_members_to_look(&self) -> Result<Opened, Failure> {
        let mut all = self.settings.selected_repos()?;
        let required: Vec<String> = all.iter().filter(|s| s.required).map(|s| s.name.clone()).collect();
        all.iter_mut().for_each(|settings| settings.required = false);
        let mut opened = self.open_members_of(all, None, |_| Ok(()))?;
        opened.members.iter_mut().for_each(|member| member.required = required.contains(&member.name));
        Ok(opened)
    }

    /// Whether the selected repository of this name can be opened at this moment, and its books be read.
    pub fn can_be_read(&self, name: &str) -> Result<bool, Failure> {
        let cluster = self.cluster()?;
        let all = self.settings.selected_repos()?;
        let found = all.iter().find(|settings| settings.name == name).ok_or_else(no_repository)?;
        Ok(self.open_repository(found).and_then(|repo| has_books(&repo, &cluster)).is_ok())
    }

    /// As `open_members`; and the one to read from has the books of the cluster.
    pub fn open_members_with_books(&self, patience: Option<Duration>) -> Result<Opened, Failure> {
        let cluster = self.cluster()?;
        let all = self.settings.selected_repos()?;
        if all.len() < 2 {
            return self.open_members(patience);
        }
        self.open_members_of(all, patience, |repo| has_books(repo, &cluster))
    }

    /// Those that were passed over, without those that were opened: for when it turns out that none of these can be used, and
    /// the others were compared with the wrong one.
    pub fn open_left_out(&self, opened: &Opened, patience: Option<Duration>) -> Result<Opened, Failure> {
        let mut all = self.settings.selected_repos()?;
        all.retain(|s| !opened.members.iter().any(|m| m.name == s.name));
        self.open_members_of(all, patience, |_| Ok(()))
    }

    fn open_members_of(
        &self,
        all: Vec<RepoSettings>,
        patience: Option<Duration>,
        usable_as_first: impl Fn(&Repository) -> Result<(), Failure>,
    ) -> Result<Opened, Failure> {
        let mut opened = Opened { members: vec![], away: vec![] };
        let count = all.len().max(self.settings.selected_repos()?.len());
        for settings in &all {
            let repo = match opened.members.first() {
                None => self.open_repository(settings).and_then(|repo| usable_as_first(&repo).map(|()| repo)),
                // Writing waits for the first one as long as it takes: what it lacks has to be completed later.
                Some(first) => match first.repo.keys().writes_only() {
                    None => {
                        let opener = self.opener(settings);
                        open_member(&first.repo, &opener, patience).inspect(|copy| self.accept(copy))
                    }
                    Some(_) => self.open_copy_as_writer(&first.repo, settings, patience),
                },
            };
            // A copy is opened with the key of the first, which may be the one that does not answer.
            let repo = match (repo, opened.members.first()) {
                (Err(failure), Some(first)) if is_away(&failure) && !first.required && !answers(first) => {
                    let alone = self.open_repository(settings).and_then(|repo| usable_as_first(&repo).map(|()| repo));
                    if alone.is_ok() {
                        let first = opened.members.remove(0);
                        opened.away.push((first.name, failure));
                    }
                    alone
                }
                (repo, _) => repo,
            };
            match repo {
                Ok(repo) => {
                    trail_opened(&self.trail, settings, &repo);
                    opened.members.push(Member { name: settings.name.clone(), repo, required: settings.required })
                }
                Err(failure) if is_its_own(&failure) && !settings.required && count > 1 => {
                    self.trail.away(&settings.name, &place_of(settings), &failure.to_string());
                    opened.away.push((settings.name.clone(), failure));
                }
                Err(failure) => return Err(named(failure, &settings.name, count)),
            }
        }
        if opened.members.is_empty() {
            return Err(none_of(opened.away.into_iter().map(|(name, failure)| named(failure, &name, count)).collect()));
        }
        for (name, failure) in &opened.away {
            output::warning(&left_out(name, failure));
        }
        Ok(opened)
    }

    /// A writer's slot has a key of its own in each copy, and the same secret.
    fn open_copy_as_writer(
        &self,
        of: &Repository,
        settings: &RepoSettings,
        patience: Option<Duration>,
    ) -> Result<Repository, Failure> {
        let opener = self.opener(settings);
        let copy = in_time(settings, patience, move || opener.open())?;
        if copy.id() == of.id() && copy.keys().writes_only().is_some() {
            return Ok(copy);
        }
        let message = format!("{} is no copy of {} that the same secret writes to", settings.url, of.store().url());
        Err(Failure::new("E-KEY-WRONG", Exit::WrongKey, message)
            .hint("'pgark key add --writer --repo …' makes a slot for the same secret in each copy"))
    }

    /// Other repositories that are copies of this one: the one that was named, or all others of the selection and of the
    /// cluster that can be reached.
    pub fn open_others(&self, repo: &Repository, named: Option<&str>) -> Result<Vec<Member>, Failure> {
        let candidates = match named {
            Some(text) => vec![self.settings.repo(text)?],
            None => self.settings.repos_of_cluster(),
        };
        let mut others = vec![];
        let is_itself = |settings: &RepoSettings| {
            self.open_store(settings, Missing::Refuse).is_ok_and(|store| store.url() == repo.store().url())
        };
        for settings in candidates {
            // Opening a copy completes its key ring: this one is just being looked at.
            if is_itself(&settings) {
                continue;
            }
            let copy = match self.open_copy(repo, &settings, Missing::Refuse) {
                Err(failure) if failure.exit == Exit::WrongKey && repo.encryption() != Algorithm::None => {
                    self.open_rekeyed_of(repo, &settings, failure).map(Some)
                }
                copy => copy,
            };
            match copy {
                Ok(Some(copy)) => {
                    others.push(Member { name: settings.name.clone(), repo: copy, required: false });
                }
                Ok(None) => {}
                Err(failure) if named.is_none() => {
                    output::warning(&format!("repository {}: {}: {}", settings.name, failure.code, failure.message));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(others)
    }

    /// Where the cluster's other repositories lie, unopened; and those that cannot be reached.
    pub fn other_stores(&self, than: &dyn Store) -> (Vec<NamedStore>, Vec<(String, Failure)>) {
        let (mut others, mut silent) = (vec![], vec![]);
        for settings in self.settings.repos_of_cluster() {
            match self.open_store(&settings, Missing::Refuse) {
                Ok(store) if store.url() == than.url() => {}
                Ok(store) => others.push((settings.name, store)),
                Err(failure) if failure.exit == Exit::NoRepository => {}
                Err(failure) => silent.push((settings.name, failure)),
            }
        }
        (others, silent)
    }

    /// A copy of `repo` with keys of its own, or what `repo` is such a copy of; opened with its own secret.
    fn open_rekeyed_of(
        &self,
        repo: &Repository,
        settings: &RepoSettings,
        not_the_same: Failure,
    ) -> Result<Repository, Failure> {
        let opened = self.open_repository(settings);
        match opened {
            Ok(other) if other.id() != repo.id() && other.keys().shares_content_ids(repo.keys()) => Ok(other),
            Ok(_) => Err(not_the_same),
            Err(own) => Err(Failure {
                message: format!("{}; with its own secret: {}: {}", not_the_same.message, own.code, own.message),
                ..not_the_same
            }),
        }
    }

    /// The first repository that can be opened, to read from. One that lets us wait does so only until another one answers.
    pub fn open_first(&self) -> Result<(RepoSettings, Repository), Failure> {
        let found = self.first_that(|_| Ok(()))?;
        Ok((found.settings, found.repo))
    }

    /// As `open_first`, the first that has the books of the cluster.
    pub fn open_first_with_books(&self) -> Result<Repository, Failure> {
        let cluster = self.cluster()?;
        Ok(self.first_that(move |repo| has_books(repo, &cluster))?.repo)
    }

    /// The first repository that can be opened and that `look` makes something of. One that cannot be used is passed over with
    /// a warning, when there are several.
    pub fn first_that<T: Send + 'static>(
        &self,
        look: impl Fn(&Repository) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<FirstOf<T>, Failure> {
        let all = self.settings.selected_repos()?;
        if let [only] = all.as_slice() {
            let repo = self.open_repository(only)?;
            let seen = look(&repo)?;
            return Ok(FirstOf { settings: only.clone(), repo, seen, passed_over: vec![] });
        }
        let look = Arc::new(look);
        let (send, receive) = std::sync::mpsc::channel();
        let start = |opener: Opener, n: usize| {
            let (send, look) = (send.clone(), look.clone());
            // A thread that is given up ends with the program.
            std::thread::spawn(move || {
                let found = opener.open().and_then(|repo| look(&repo).map(|seen| (repo, seen)));
                send.send((n, found)).unwrap_or_default();
            });
        };
        let (mut next, mut running) = (0, 0);
        let (mut passed_over, mut late) = (vec![], None::<String>);
        loop {
            if running == 0 {
                let Some(settings) = all.get(next) else { break };
                start(self.opener(settings), next);
                (next, running) = (next + 1, 1);
            }
            let got = match next < all.len() {
                true => receive.recv_timeout(PATIENCE),
                false => receive.recv().map_err(|_| std::sync::mpsc::RecvTimeoutError::Disconnected),
            };
            let settings = |n: usize| all.get(n).cloned().ok_or_else(no_repository);
            match got {
                Ok((n, Ok((repo, seen)))) => {
                    let settings = settings(n)?;
                    let said = passed_over.iter().map(|f: &Failure| format!("{}: {}", f.code, f.message)).chain(late);
                    let said: Vec<String> = said.collect();
                    if !said.is_empty() {
                        output::warning(&format!("{}; reading from repository {}", said.join("; "), settings.name));
                    }
                    return Ok(FirstOf { settings, repo, seen, passed_over });
                }
                Ok((n, Err(failure))) => {
                    running -= 1;
                    let failure = named(failure, &settings(n)?.name, all.len());
                    if !is_its_own(&failure) {
                        return Err(failure);
                    }
                    passed_over.push(failure);
                }
                Err(_) => {
                    let waited = settings(next - 1)?.name;
                    late = Some(format!("repository {waited} did not answer within {} s", PATIENCE.as_secs()));
                    start(self.opener(&settings(next)?), next);
                    (next, running) = (next + 1, running + 1);
                }
            }
        }
        Err(none_of(passed_over))
    }

    /// The same repository in another place, which is made when there is none and that is allowed.
    pub fn open_copy(
        &self,
        of: &Repository,
        settings: &RepoSettings,
        missing: Missing,
    ) -> Result<Option<Repository>, Failure> {
        self.open_copy_dropping(of, settings, missing, &[])
    }

    /// As `open_copy`; slots of the copy that are named go, where a newer key ring has nothing for them.
    pub fn open_copy_dropping(
        &self,
        of: &Repository,
        settings: &RepoSettings,
        missing: Missing,
        drop: &[String],
    ) -> Result<Option<Repository>, Failure> {
        let copy = open_copy(of, &self.opener(settings), missing, drop)?;
        if let Some(copy) = &copy {
            self.accept(copy);
            trail_opened(&self.trail, settings, copy);
        }
        Ok(copy)
    }

    /// Why a copy would not open by itself, if it does not: it was opened with the keys of another one.
    pub fn not_opened_alone(&self, settings: &RepoSettings) -> Option<Failure> {
        self.opener(settings).open_with_own_secret().err()
    }

    /// Warns of each copy that would not open by itself. Returns what was said.
    pub fn warn_of_closed_copies(&self, copies: &[Member]) -> Result<Vec<String>, Failure> {
        let all = self.settings.selected_repos()?;
        let said = |copy: &Member| {
            let failure = self.not_opened_alone(all.iter().find(|settings| settings.name == copy.name)?)?;
            Some(format!("repository {}: {}", copy.name, closed_alone(&failure)))
        };
        let said: Vec<String> = copies.iter().filter_map(said).collect();
        said.iter().for_each(|warning| output::warning(warning));
        Ok(said)
    }

    fn accept(&self, copy: &Repository) {
        if let Some(pin) = self.key_pin(&**copy.store()) {
            pin.accept_copy(copy);
        }
    }
}

/// One place under two names is not two copies.
pub fn refuse_same_place(all: &[RepoSettings]) -> Result<(), Failure> {
    let mut seen: Vec<(PathBuf, &str)> = vec![];
    let local = all.iter().filter(|s| s.url.scheme == Scheme::File);
    for settings in local {
        // What is not there yet has no other name.
        let Ok(path) = std::fs::canonicalize(&settings.url.path) else { continue };
        if let Some((_, other)) = seen.iter().find(|(p, _)| *p == path) {
            let message =
                format!("repositories {other} and {} are the same directory: {}", settings.name, path.display());
            return Err(Failure::refused("E-REPO-TWICE", message).hint("a copy lies in a place of its own"));
        }
        seen.push((path, &settings.name));
    }
    Ok(())
}

/// Why none of several repositories can be used. Each has a reason of its own; where one of them is there at all, nobody is sent
/// to make another one in the place of what is missing.
pub fn none_of(failures: Vec<Failure>) -> Failure {
    let several = failures.len() > 1;
    let is_there = |f: &&Failure| f.code != "E-REPO-NONE";
    let mut hints: Vec<String> = failures.iter().filter(is_there).filter_map(|f| f.hint.clone()).collect();
    hints.dedup();
    let some_is_there = failures.iter().any(|f| is_there(&f));
    let rest: String = failures.iter().skip(1).map(|f| format!("; {}: {}", f.code, f.message)).collect();
    let Some(mut first) = failures.into_iter().next() else { return no_repository() };
    if several && some_is_there {
        first.hint = (!hints.is_empty()).then(|| hints.join("; "));
    }
    first.message += &rest;
    first
}

/// What is said of a copy that was opened with the keys of another one, and not with its own secret.
pub fn closed_alone(failure: &Failure) -> String {
    format!(
        "its own secret does not open it, and without the others nothing of it can be read ({}: {}): 'pgark key add --repo' gives this \
         secret a slot there",
        failure.code, failure.message
    )
}

/// Of several repositories, the one that failed is named.
pub fn named(failure: Failure, repository: &str, of: usize) -> Failure {
    if of < 2 || failure.message.starts_with("repository ") {
        return failure;
    }
    Failure { message: format!("repository {repository}: {}", failure.message), ..failure }
}

fn open_copy(
    of: &Repository,
    opener: &Opener,
    missing: Missing,
    drop_slots: &[String],
) -> Result<Option<Repository>, Failure> {
    let store = match store::open_as(&opener.settings, &opener.access, missing) {
        Err(e) if e.exit == Exit::NoRepository && missing == Missing::Refuse => return Ok(None),
        opened => opened?,
    };
    if missing == Missing::Refuse {
        match Repository::ring_bytes(&store) {
            Err(pgark_repo::RepoError::NoRepository { .. }) => return Ok(None),
            found => drop(found.map_err(|e| engine_failure(e.into()))?),
        }
    }
    // A secret that cannot be had proves nothing.
    let slots = CopySlots { own: &|| opener.unlock().unwrap_or_default(), drop: drop_slots };
    let opened = of.open_copy_with(store.clone(), &slots).map_err(|e| engine_failure(e.into()));
    let explained = |failure| if missing == Missing::Create { explain_lock(&*store, failure) } else { failure };
    Ok(Some(opened.map_err(explained)?.0))
}

/// As `open_copy`, and an error when there is none, or no answer in time. A thread that is given up ends with the program.
pub fn open_member(of: &Repository, opener: &Opener, patience: Option<Duration>) -> Result<Repository, Failure> {
    let settings = &opener.settings;
    let open = {
        let (of, opener) = (of.clone(), opener.clone());
        move || open_copy(&of, &opener, Missing::Refuse, &[])
    };
    let found = in_time(settings, patience, open);
    let none = || pgark_repo::RepoError::NoRepository { url: settings.url.to_string() };
    found?.ok_or_else(|| {
        engine_failure(none().into()).hint("'pgark init' or 'pgark replicate' makes it a copy of the first")
    })
}

/// What `open` gives, unless it takes too long and the repository is not required.
fn in_time<T: Send + 'static>(
    settings: &RepoSettings,
    patience: Option<Duration>,
    open: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let Some(patience) = patience.filter(|_| !settings.required) else { return open() };
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(open()));
    let message = format!("{} did not answer within {} s", settings.url, patience.as_secs());
    receive.recv_timeout(patience).unwrap_or_else(|_| Err(Failure::failed("E-REPO-IO", message)))
}

/// A repository to read from, and what was found in it.
pub struct FirstOf<T> {
    pub settings: RepoSettings,
    pub repo: Repository,
    pub seen: T,
    /// Why those before it could not be used; each names its repository.
    pub passed_over: Vec<Failure>,
}

/// Repositories of one command.
pub struct Opened {
    /// At least one.
    pub members: Vec<Member>,
    /// Those that could not be opened, and why.
    pub away: Vec<(String, Failure)>,
}

/// A store, and the name of its repository.
pub type NamedStore = (String, Arc<dyn Store>);

impl Opened {
    /// The one to read from, and to write into first.
    pub fn first(&self) -> &Member {
        self.members.first().expect("there is at least one")
    }

    pub fn is_several(&self) -> bool {
        self.members.len() + self.away.len() > 1
    }
}

fn answers(member: &Member) -> bool {
    Repository::ring_bytes(member.repo.store()).is_ok()
}

/// Whether the repository could not be reached, so that the same may succeed later. What it refuses is another matter.
pub fn is_away(failure: &Failure) -> bool {
    AWAY.contains(&&*failure.code)
}

/// Whether it is this repository's own matter, as the engine has it: others can be used without it.
pub fn is_its_own(failure: &Failure) -> bool {
    let closed = matches!(failure.exit, Exit::WrongKey | Exit::Damage | Exit::NoRepository);
    closed || is_away(failure) || OTHER.contains(&&*failure.code)
}

/// Of repositories that are of other clusters, and of those whose books must be thawed.
const OTHER: &[&str] = &["E-CLUSTER-NONE", "E-WAL-SYSTEM", "E-REPO-ARCHIVED"];

/// What is said of a repository that is passed over.
pub fn left_out(name: &str, failure: &Failure) -> String {
    let state = if is_away(failure) { "is away" } else { "cannot be used" };
    format!("repository {name} {state}: {}: {}", failure.code, failure.message)
}

fn has_books(repo: &Repository, cluster: &ClusterName) -> Result<(), Failure> {
    CatalogStore::new(repo, cluster).read().map(drop).map_err(|e| engine_failure(e.into()))
}

/// Codes of failures to reach, to open or to write the repository: a vault that is away comes back too.
const AWAY: &[&str] = &[
    "E-KEY-COMMAND",
    "E-REPO-NONE",
    "E-REPO-IO",
    "E-REPO-SPACE",
    "E-REPO-READONLY",
    "E-REPO-DENIED",
    "E-SFTP-UNREACHABLE",
    "E-SFTP-LOST",
    "E-SFTP-TIMEOUT",
];
