//! From settings to what the engine takes: an opened repository, connection options, a context.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgark_dr::trail::Trail;
use pgark_engine::cluster::ConnectOptions;
use pgark_engine::several::Member;
use pgark_engine::sources::PATIENCE;
use pgark_engine::{Ctx, EngineError, FailureClass};
use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::Unlock;
use pgark_repo::names::ClusterName;
use pgark_repo::store::{Ability, Capability, Store};
use zeroize::Zeroizing;

use crate::args::{ConfirmArgs, GlobalArgs};
use crate::failure::{Exit, Failure};
use crate::key_cache::{self, KeyCache};
use crate::key_commands::ConfiguredCommands;
use crate::key_pin::KeyPin;
use crate::secret::{Secret, SecretSource};
use crate::settings::repo_url::{AS_OF, Scheme};
use crate::settings::{ClusterSettings, RepoSettings, Settings, files::Environment};
use crate::store::{self, Access, Missing};
use crate::{output, progress};

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Context {
    pub settings: Settings,
    pub ctx: Ctx,
    cache_dir: Option<PathBuf>,
    trail: Trail,
    age_identity: SecretSource,
    access: Access,
    new_passphrase_file: Option<PathBuf>,
    new_passphrase: Option<Secret>,
    /// Whether the command does something for who opens the repository with a writer's secret.
    admits_writers: bool,
}

impl Context {
    pub fn new(global: &GlobalArgs) -> Result<Self, Failure> {
        let environment = Environment::from_process();
        let settings = Settings::load(&global.overrides()?, &environment)?;
        settings.warnings.iter().for_each(|w| output::warning(w));
        let home = environment.get_os("HOME").map(|h| Path::new(h).join(".cache/pgark"));
        let cache_dir = environment.get_os("PGARK_CACHE_DIR").map(PathBuf::from).or(home);
        let identity = environment.get_os("PGARK_AGE_IDENTITY_FILE").map(PathBuf::from);
        let identity = global.age_identity_file.clone().or(identity);
        let age_identity = identity.map_or(SecretSource::None, SecretSource::File);
        let access = Access::from_environment(&environment);
        let new_passphrase = environment.get_os("PGARK_NEW_PASSPHRASE").map(|v| Secret::new(v.as_bytes().to_vec()));
        let new_passphrase_file = environment.get_os("PGARK_NEW_PASSPHRASE_FILE").map(PathBuf::from);
        let ctx = Ctx::new(progress::for_stderr(global.quiet));
        let admits_writers = false;
        global.notices.configure(&settings);
        let trail = global.trail.clone();
        let places = settings.selected_repos().unwrap_or_default();
        let places: Vec<(String, String)> = places.iter().map(|r| (r.name.clone(), place_of(r))).collect();
        trail.begin(settings.state_dir.as_deref(), &settings.selected_cluster.value, &places);
        Ok(Context {
            settings,
            ctx,
            cache_dir,
            trail,
            age_identity,
            access,
            new_passphrase_file,
            new_passphrase,
            admits_writers,
        })
    }

    /// For a command that archives, backs up, or shows books. Every other one refuses a writer's secret before it does anything.
    pub fn admitting_writers(self) -> Self {
        Context { admits_writers: true, ..self }
    }

    /// The first interrupt asks the operation to stop at the next safe point, a second one ends the program.
    pub fn stop_on_signals(&self) -> Result<(), Failure> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let flag = self.ctx.cancel_flag();
        for signal in [SIGINT, SIGTERM] {
            let exit = i32::from(Exit::Cancelled.code());
            signal_hook::flag::register_conditional_shutdown(signal, exit, flag.clone())
                .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
                .map_err(|e| Failure::failed("E-SYSTEM", format!("signals cannot be handled: {e}")))?;
        }
        Ok(())
    }

    pub fn cluster_settings(&self) -> Result<&ClusterSettings, Failure> {
        self.settings.cluster()
    }

    pub fn cluster(&self) -> Result<ClusterName, Failure> {
        ClusterName::parse(&self.cluster_settings()?.name).map_err(|e| {
            Failure::usage("E-CLUSTER-NAME", e.to_string())
                .hint("letters, digits, '.', '_' and '-', at most 64, not beginning with '.' or '-'")
        })
    }

    pub fn jobs(&self) -> usize {
        self.settings.jobs.value.get().try_into().unwrap_or(1)
    }

    /// The repository to read from.
    pub fn repo_settings(&self) -> Result<RepoSettings, Failure> {
        let mut all = self.settings.selected_repos()?;
        if all.is_empty() {
            return Err(no_repository());
        }
        Ok(all.remove(0))
    }

    /// The one repository of a command that changes or removes what lies in it: each keeps what it keeps.
    pub fn one_repo_settings(&self) -> Result<RepoSettings, Failure> {
        let all = self.settings.selected_repos()?;
        if all.len() > 1 {
            return Err(Failure::refused(
                "E-REPO-SEVERAL",
                "this command works on one repository, and several are selected",
            )
            .hint("choose one with --repo"));
        }
        self.repo_settings()
    }

    pub fn open_store(&self, settings: &RepoSettings, missing: Missing) -> Result<Arc<dyn Store>, Failure> {
        store::open_as(settings, &self.access, missing)
    }

    /// Variables that a recovering server needs to read from this repository.
    pub fn access_to_keep(&self, settings: &RepoSettings) -> Result<Vec<(String, String)>, Failure> {
        self.access.for_url(&settings.url)
    }

    pub fn open_repository(&self, settings: &RepoSettings) -> Result<Repository, Failure> {
        self.opener(settings).open()
    }

    /// What opens this repository, on any thread.
    pub fn opener(&self, settings: &RepoSettings) -> Opener {
        Opener {
            settings: settings.clone(),
            access: self.access.clone(),
            cache_dir: self.cache_dir.clone(),
            age_identity: self.age_identity.clone(),
            trail: self.trail.clone(),
            admits_writers: self.admits_writers,
        }
    }

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
                        open_member(&first.repo, settings, &self.access, patience).inspect(|copy| self.accept(copy))
                    }
                    Some(_) => self.open_copy_as_writer(&first.repo, settings, patience),
                },
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

    /// Before a repository is made there.
    pub fn refuse_nested(&self, settings: &RepoSettings) -> Result<(), Failure> {
        crate::nested::refuse_nested(&settings.url, &self.access)
    }

    /// The same repository in another place, which is made when there is none and that is allowed.
    pub fn open_copy(
        &self,
        of: &Repository,
        settings: &RepoSettings,
        missing: Missing,
    ) -> Result<Option<Repository>, Failure> {
        let copy = open_copy(of, settings, &self.access, missing)?;
        if let Some(copy) = &copy {
            self.accept(copy);
            trail_opened(&self.trail, settings, copy);
        }
        Ok(copy)
    }

    fn accept(&self, copy: &Repository) {
        if let Some(pin) = self.key_pin(&**copy.store()) {
            pin.accept_copy(copy);
        }
    }

    /// For a repository that was opened in a way of its own.
    pub fn opened(&self, settings: &RepoSettings, repo: &Repository) {
        trail_opened(&self.trail, settings, repo);
    }

    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Where this user's host keeps what may be lost.
    pub fn cache_dir(&self) -> Option<&Path> {
        self.cache_dir.as_deref()
    }

    pub fn key_pin(&self, store: &dyn Store) -> Option<KeyPin> {
        KeyPin::find(self.cache_dir.as_deref(), &store.url())
    }

    /// Where `archive-push` remembers what it pushed ahead into this repository.
    pub fn push_memory(&self, url: String, cluster: &ClusterName) -> Option<PathBuf> {
        let place = blake3::hash(format!("{url}\n{cluster}").as_bytes()).to_hex();
        Some(self.cache_dir.as_ref()?.join("ahead").join(place.get(..32)?))
    }

    pub fn key_cache(&self, settings: &RepoSettings, unlock: &Unlock) -> Option<KeyCache> {
        self.opener(settings).key_cache(unlock)
    }

    pub fn unlock(&self, settings: &RepoSettings) -> Result<Unlock, Failure> {
        self.opener(settings).unlock()
    }

    /// What the environment says a new slot is opened with.
    pub fn new_passphrase(&self) -> Result<SecretSource, Failure> {
        match (&self.new_passphrase_file, &self.new_passphrase) {
            (Some(_), Some(_)) => Err(Failure::usage(
                "E-SECRET-CHOICE",
                "the variables PGARK_NEW_PASSPHRASE_FILE and PGARK_NEW_PASSPHRASE are both set, and only one can be meant",
            )),
            (Some(path), None) => Ok(SecretSource::File(path.clone())),
            (None, Some(value)) => {
                Ok(SecretSource::Environment { variable: "PGARK_NEW_PASSPHRASE".into(), value: value.clone() })
            }
            (None, None) => Ok(SecretSource::None),
        }
    }

    pub fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        let cluster = self.cluster_settings()?;
        let mut keywords = cluster.libpq.clone();
        for (name, source) in &cluster.libpq_secrets {
            if let Some(secret) = source.read()? {
                let value = secret.expose_str().ok_or_else(|| {
                    Failure::failed("E-SECRET-TEXT", format!("the value for {name} is not valid UTF-8"))
                })?;
                keywords.push((name.clone(), value.to_owned()));
            }
        }
        Ok(ConnectOptions::new(keywords))
    }

    pub fn pgdata(&self) -> Result<PathBuf, Failure> {
        self.cluster_settings()?.pgdata.clone().ok_or_else(|| {
            Failure::usage("E-PGDATA", "the data directory of the cluster is not known")
                .hint("give --pgdata, set PGDATA, or set pgdata for the cluster in pgark.toml")
        })
    }
}

/// Where a repository is, however it is looked at.
pub fn place_of(settings: &RepoSettings) -> String {
    settings.url.without(AS_OF).to_string()
}

/// As it was in the past, a repository takes nothing.
fn trail_opened(trail: &Trail, settings: &RepoSettings, repo: &Repository) {
    if settings.url.option(AS_OF).is_none() {
        trail.opened(&settings.name, &place_of(settings), repo);
    }
}

/// All that it takes to open one repository.
#[derive(Clone)]
pub struct Opener {
    pub settings: RepoSettings,
    access: Access,
    cache_dir: Option<PathBuf>,
    trail: Trail,
    age_identity: SecretSource,
    /// As that of the context.
    admits_writers: bool,
}

impl Opener {
    pub fn open(&self) -> Result<Repository, Failure> {
        let opened = self.open_only();
        match &opened {
            Ok(repo) => trail_opened(&self.trail, &self.settings, repo),
            Err(failure) => self.trail.away(&self.settings.name, &place_of(&self.settings), &failure.to_string()),
        }
        opened
    }

    fn open_only(&self) -> Result<Repository, Failure> {
        let store = store::open_as(&self.settings, &self.access, Missing::Refuse)?;
        let unlock = self.unlock()?;
        let cache = self.key_cache(&unlock);
        let pin = KeyPin::find(self.cache_dir.as_deref(), &store.url());
        let open = || -> Result<Repository, Failure> {
            let repo = key_cache::open(store.clone(), &unlock, cache.as_ref()).map_err(|e| engine_failure(e.into()))?;
            pin.as_ref().map_or(Ok(()), |pin| pin.check(&repo))?;
            if !self.admits_writers {
                repo.require_reader("what this command needs").map_err(|e| engine_failure(e.into()))?;
            }
            Ok(repo)
        };
        match open() {
            // Another process may have seen a rotation between our reading and our looking.
            Err(failure) if failure.code == "E-KEY-OLDER" => open(),
            opened => opened,
        }
    }

    /// With the keys of another copy.
    pub fn open_as_copy(&self, of: &Repository) -> Result<Repository, Failure> {
        let copy = open_member(of, &self.settings, &self.access, None)?;
        trail_opened(&self.trail, &self.settings, &copy);
        Ok(copy)
    }

    fn key_cache(&self, unlock: &Unlock) -> Option<KeyCache> {
        match (&self.settings.passphrase, &unlock.passphrase) {
            // A passphrase that is on no disk must not become guessable from one.
            (SecretSource::File(_), Some(p)) => KeyCache::find(self.cache_dir.as_deref(), p),
            _ => None,
        }
    }

    fn unlock(&self) -> Result<Unlock, Failure> {
        let passphrase = self.settings.passphrase.read()?.map(|s| Zeroizing::new(s.expose().to_vec()));
        let identity = self.age_identity.read()?;
        let age_identities = match identity.as_ref().map(|s| s.expose_str()) {
            None => None,
            Some(Some(text)) if holds_identity(text) => Some(Zeroizing::new(text.to_owned())),
            Some(Some(_)) => {
                return Err(Failure::usage("E-KEY-IDENTITY", "the age identity file holds no identity")
                    .hint("a line of it begins with AGE-SECRET-KEY-1, as age-keygen writes it"));
            }
            Some(None) => return Err(Failure::usage("E-SECRET-TEXT", "the age identity file is not text")),
        };
        Ok(Unlock { passphrase, age_identities, commands: ConfiguredCommands::of(&self.settings.key_commands) })
    }
}

fn holds_identity(text: &str) -> bool {
    text.lines().any(|line| line.trim().to_ascii_uppercase().starts_with("AGE-SECRET-KEY-1"))
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

fn no_repository() -> Failure {
    Failure::usage("E-REPO-CHOICE", "no repository is configured").hint(CHOOSE_REPO)
}

const CHOOSE_REPO: &str = "give --repo with a path or URL, or set it in pgark.toml";

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

/// Of several repositories, the one that failed is named.
pub fn named(failure: Failure, repository: &str, of: usize) -> Failure {
    if of < 2 || failure.message.starts_with("repository ") {
        return failure;
    }
    Failure { message: format!("repository {repository}: {}", failure.message), ..failure }
}

fn open_copy(
    of: &Repository,
    settings: &RepoSettings,
    access: &Access,
    missing: Missing,
) -> Result<Option<Repository>, Failure> {
    let store = match store::open_as(settings, access, missing) {
        Err(e) if e.exit == Exit::NoRepository && missing == Missing::Refuse => return Ok(None),
        opened => opened?,
    };
    if missing == Missing::Refuse {
        match Repository::ring_bytes(&store) {
            Err(pgark_repo::RepoError::NoRepository { .. }) => return Ok(None),
            found => drop(found.map_err(|e| engine_failure(e.into()))?),
        }
    }
    let opened = of.open_copy(store.clone()).map_err(|e| engine_failure(e.into()));
    let explained = |failure| if missing == Missing::Create { explain_lock(&*store, failure) } else { failure };
    Ok(Some(opened.map_err(explained)?.0))
}

/// Stores refuse the first object that is to be locked in words of their own, where the bucket has no object lock.
pub fn explain_lock(store: &dyn Store, failure: Failure) -> Failure {
    if store.object_lock().is_none() || failure.exit != Exit::Failed {
        return failure;
    }
    let lock = store.probe().into_iter().find(|c| c.name == Capability::LOCK && c.state == Ability::No);
    let Some(Capability { reason, .. }) = lock else { return failure };
    let message = format!("'lock' is set for {}, and the bucket has no object lock: {reason}", store.url());
    Failure::refused("E-LOCK-BUCKET", message)
        .hint("make a bucket with object lock, or take lock and lock_days out of the repository's settings")
}

/// As `open_copy`, and an error when there is none, or no answer in time. A thread that is given up ends with the program.
fn open_member(
    of: &Repository,
    settings: &RepoSettings,
    access: &Access,
    patience: Option<Duration>,
) -> Result<Repository, Failure> {
    let open = {
        let (of, settings, access) = (of.clone(), settings.clone(), access.clone());
        move || open_copy(&of, &settings, &access, Missing::Refuse)
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

/// The engine's verdict as exit code and message.
pub fn engine_failure(e: EngineError) -> Failure {
    let exit = match e.class() {
        FailureClass::Failed => Exit::Failed,
        FailureClass::Refused => Exit::Refused,
        FailureClass::Cancelled => Exit::Cancelled,
        FailureClass::NoRepository => Exit::NoRepository,
        FailureClass::Locked => Exit::Locked,
        FailureClass::WrongKey => Exit::WrongKey,
        FailureClass::Damaged => Exit::Damage,
    };
    let failure = Failure::new(e.code(), exit, e.to_string());
    match e.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Asks on a terminal; without one `--yes` is needed.
pub fn confirm(confirm: &ConfirmArgs, question: &str) -> Result<(), Failure> {
    if confirm.yes {
        return Ok(());
    }
    let declined = || Failure::new("E-CANCELLED", Exit::Cancelled, "nothing was changed");
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(
            Failure::refused("E-CONFIRM", format!("{question}: this needs a confirmation")).hint("repeat with --yes")
        );
    }
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match (asked, read) {
        (Ok(()), Ok(_)) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(declined()),
    }
}
