//! From settings to what the engine takes: an opened repository, connection options, a context.

mod members;

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgark_dr::trail::Trail;
use pgark_engine::cluster::ConnectOptions;
use pgark_engine::{Ctx, EngineError, FailureClass};
use pgark_repo::Repository;
use pgark_repo::keyring::Unlock;
use pgark_repo::names::ClusterName;
use pgark_repo::store::{Ability, Capability, Store};
use zeroize::Zeroizing;

use members::open_member;
pub use members::{FirstOf, Opened, closed_alone, is_away, is_its_own, left_out, named, none_of, refuse_same_place};

use crate::args::{ConfirmArgs, GlobalArgs};
use crate::failure::{Exit, Failure};
use crate::key_cache::{self, KeyCache};
use crate::key_commands::ConfiguredCommands;
use crate::key_pin::KeyPin;
use crate::secret::{Secret, SecretSource};
use crate::settings::repo_url::AS_OF;
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
            .hint("choose one with --repo; marks, and slots of the key ring, are changed in each copy by itself"));
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

    /// Before a repository is made there.
    pub fn refuse_nested(&self, settings: &RepoSettings) -> Result<(), Failure> {
        crate::nested::refuse_nested(&settings.url, &self.access)
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
        // A refusal is on record as well.
        opened.and_then(|repo| self.admitted(repo))
    }

    fn admitted(&self, repo: Repository) -> Result<Repository, Failure> {
        if !self.admits_writers {
            repo.require_reader("what this command needs").map_err(|e| engine_failure(e.into()))?;
        }
        Ok(repo)
    }

    fn open_only(&self) -> Result<Repository, Failure> {
        let store = store::open_as(&self.settings, &self.access, Missing::Refuse)?;
        let unlock = self.unlock()?;
        let cache = self.key_cache(&unlock);
        let pin = KeyPin::find(self.cache_dir.as_deref(), &store.url());
        let open = || -> Result<Repository, Failure> {
            let repo = key_cache::open(store.clone(), &unlock, cache.as_ref()).map_err(|e| engine_failure(e.into()))?;
            pin.as_ref().map_or(Ok(()), |pin| pin.check(&repo))?;
            Ok(repo)
        };
        match open() {
            // Another process may have seen a rotation between our reading and our looking.
            Err(failure) if failure.code == "E-KEY-OLDER" => open(),
            opened => opened,
        }
    }

    /// With what is configured for it alone. What this host has seen of it is not asked.
    fn open_with_own_secret(&self) -> Result<Repository, Failure> {
        let store = store::open_as(&self.settings, &self.access, Missing::Refuse)?;
        let unlock = self.unlock()?;
        let cache = self.key_cache(&unlock);
        key_cache::open(store, &unlock, cache.as_ref()).map_err(|e| engine_failure(e.into()))
    }

    /// With the keys of another copy.
    pub fn open_as_copy(&self, of: &Repository) -> Result<Repository, Failure> {
        let copy = open_member(of, self, None)?;
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

pub fn no_repository() -> Failure {
    Failure::usage("E-REPO-CHOICE", "no repository is configured").hint(CHOOSE_REPO)
}

const CHOOSE_REPO: &str = "give --repo with a path or URL, or set it in pgark.toml";

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
