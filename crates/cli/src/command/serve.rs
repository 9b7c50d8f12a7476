//! `serve`: schedules, jobs, and what is known of the clusters.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::Args;
use jiff::Timestamp;
use pgark_server::http::tls::TlsError;
use pgark_server::http::{Serving, ServingError};
use pgark_server::jobs::{BackupType, Kind, Program, Request};
use pgark_server::lookup::Lookups;
use pgark_server::notify::Manager;
use pgark_server::schedule::Scheduled;
use pgark_server::serve::{self, ClusterConfig, Config, Options, Shared, Signals, SystemConfig};
use pgark_server::state::Lost;
use pgark_server::{State, StateError};

use super::Outcome;
use super::context::Context;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;
use crate::secret::SecretSource;
use crate::settings::files::Environment;
use crate::settings::schedule::{Job, Schedule};
use crate::settings::units::Span;
use crate::settings::{ClusterSettings, Settings, schema};

const RUNNING: u16 = 4;
const DRAIN: &str = "10m";

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port [setting: server.listen] [default: 127.0.0.1:7432]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    state: StateArgs,
    /// Jobs that run at the same time
    #[arg(long, value_name = "N", default_value_t = RUNNING, value_parser = clap::value_parser!(u16).range(1..=256))]
    running: u16,
    /// How long running jobs are waited for when the server is told to end; then they run on without it
    #[arg(long, value_name = "TIME", default_value = DRAIN)]
    drain: Span,
}

#[derive(Debug, Args)]
pub struct StateArgs {
    /// Where the server keeps its jobs and tokens [setting: server.state_dir]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    fn dir<'a>(&'a self, settings: &'a Settings) -> &'a Path {
        self.state_dir.as_ref().unwrap_or(&settings.server.state_dir)
    }

    pub fn open(&self, settings: &Settings) -> Result<State, Failure> {
        State::open(self.dir(settings)).map_err(state_failure)
    }

    /// For who makes nothing new: of a database that is not there nothing can be said, and an empty one says what is not true.
    pub fn open_existing(&self, settings: &Settings) -> Result<State, Failure> {
        State::open_existing(self.dir(settings)).map_err(state_failure)
    }
}

pub fn state_failure(error: StateError) -> Failure {
    let message = error.to_string();
    if error.is_unwritable() {
        return Failure::failed("E-SERVER-STATE", message)
            .hint("the disk of the state directory is full, or takes nothing: make room there; nothing is lost, jobs that run go on");
    }
    match error {
        StateError::Directory { .. } => Failure::failed("E-SERVER-STATE", message)
            .hint("state_dir in [server], or --state-dir, names a directory of the user that the server runs as"),
        StateError::Missing(_) => Failure::failed("E-SERVER-STATE", message).hint(
            "'pgark serve' makes it when it starts, and reads jobs again from their directories; state_dir in [server], or \
             --state-dir, says where it is",
        ),
        StateError::InUse(_) => Failure::new("E-SERVER-RUNS", Exit::Locked, message),
        StateError::Version { .. } => Failure::failed("E-SERVER-STATE", message).hint(
            "the directory can be removed when no job runs: tokens and the history of jobs are lost, backups are not",
        ),
        StateError::NotFound { what, .. } => Failure::refused(format!("E-{}-UNKNOWN", what.to_uppercase()), message),
        StateError::Exists { what, .. } => Failure::refused(format!("E-{}-EXISTS", what.to_uppercase()), message),
        StateError::Gone(_) => Failure::failed("E-SERVER-STATE", message)
            .hint("start the server again: it reads again what can be read; tokens and users are made anew"),
        StateError::Database(_) | StateError::Content(_) => Failure::failed("E-SERVER-STATE", message)
            .hint("if it is damaged, 'pgark serve' puts it aside when it starts, and says what is lost"),
        StateError::Random(_) => Failure::failed("E-SERVER-STATE", message),
    }
}

pub fn run(args: &ServeArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let settings = &context.settings;
    let listen = args.listen.unwrap_or(settings.server.listen);
    let is_reached = !listen.ip().is_loopback();
    if is_reached && settings.server.tls.is_none() {
        return Err(reached(listen, "without encryption").hint(
            "give [server.tls] a certificate and a key; or listen on 127.0.0.1, and put a proxy with TLS before it",
        ));
    }
    let dir = args.state.dir(settings);
    let _lock = State::lock(dir).map_err(state_failure)?;
    let (state, lost) = State::open_or_rebuild(dir).map_err(state_failure)?;
    tell_what_is_lost(&lost);
    if is_reached && !somebody_may_ask(settings, &state)? {
        return Err(reached(listen, "and nobody could sign in")
            .hint("'pgark user add' or 'pgark token create' first, or [[server.tls.clients]] or [server.oidc]"));
    }
    check_oidc(settings)?;
    let config = Shared::new(in_force(settings)?);
    let signals = watched_signals()?;
    let options =
        Options { program: program(global, config.clone())?, running_max: args.running.into(), drain: args.drain.0 };
    let mut reload = || {
        let overrides = global.overrides().map_err(|f| f.to_string())?;
        let settings = Settings::load(&overrides, &Environment::from_process()).map_err(|f| f.to_string())?;
        check_oidc(&settings).and_then(|()| in_force(&settings)).map_err(|f| f.to_string())
    };
    let lookups = Lookups::new(Some(options.program.clone()), state.dir().to_owned());
    let serving = Serving::start(listen, state.clone(), config.clone(), lookups).map_err(|e| match e {
        ServingError::Listen(e) => Failure::failed("E-SERVER-LISTEN", format!("{listen} cannot be listened on: {e}")),
        ServingError::Tls(e) => tls_failure(&e),
    })?;
    let scheme = if settings.server.tls.is_some() { "https" } else { "http" };
    let document = serde_json::json!({"schema": SCHEMA, "listening": serving.address(), "scheme": scheme, "state_dir": state.dir()});
    output::result(global.form(), &document, || format!("listening on {scheme}://{}\n", serving.address()))?;
    let mut manager = Manager::from_environment()
        .map_err(|e| Failure::failed("E-SYSTEM", format!("NOTIFY_SOCKET names no socket: {e}")))?;
    let left =
        serve::run(&state, &config, &options, &signals, &serving, &mut manager, &mut reload).map_err(state_failure)?;
    if left > 0 {
        output::warning(&format!("{left} jobs run on; the next server takes them over"));
    }
    Ok(Exit::Done)
}

fn reached(listen: SocketAddr, how: &str) -> Failure {
    Failure::refused("E-SERVER-LISTEN", format!("{listen} can be reached from elsewhere, {how}"))
}

fn somebody_may_ask(settings: &Settings, state: &State) -> Result<bool, Failure> {
    let by_certificate = settings.server.tls.as_ref().is_some_and(|tls| !tls.clients.is_empty());
    Ok(by_certificate
        || settings.server.oidc.is_some()
        || state.somebody_may_ask(Timestamp::now()).map_err(state_failure)?)
}

/// A secret or certificates that could not be used when somebody signs in. The provider is not asked.
pub fn check_oidc(settings: &Settings) -> Result<(), Failure> {
    let Some(section) = &settings.server.oidc else { return Ok(()) };
    if let Some(file) = &section.client_secret_file {
        let secret = SecretSource::File(file.clone()).read()?;
        if secret.is_none_or(|secret| secret.expose_str().is_none()) {
            let message = format!("the secret in {} is no text", file.display());
            return Err(
                Failure::usage("E-SERVER-OIDC", message).hint("the file holds what the provider gave, on one line")
            );
        }
    }
    section.config().check().map_err(|why| {
        Failure::usage("E-SERVER-OIDC", why)
            .hint("client_secret_file and ca_file in [server.oidc] name files that can be used")
    })
}

pub fn tls_failure(error: &TlsError) -> Failure {
    let failure = Failure::usage("E-SERVER-TLS", error.to_string());
    match error {
        TlsError::Mode(path) => {
            Failure { exit: Exit::Refused, ..failure }.hint(format!("chmod 0600 '{}'", path.display()))
        }
        _ => failure.hint("certificate, key and client_ca in [server.tls] name files in PEM"),
    }
}

/// Plainly, since people have to do something.
fn tell_what_is_lost(lost: &Lost) {
    if let Some((aside, why)) = &lost.aside {
        let aside = aside.display();
        output::warning(&format!("E-SERVER-STATE the state database was damaged ({why}) and is now {aside}"));
    }
    if lost.is_something() {
        let (jobs, unknown) = (lost.jobs, lost.unknown);
        let unknown = if unknown > 0 { format!(", {unknown} could not be read") } else { String::new() };
        output::warning(&format!(
            "E-SERVER-STATE the state was begun anew: {jobs} jobs were read again from their directories{unknown}; tokens, users and \
             sessions are lost, make them again with 'pgark token create' and 'pgark user add'; schedules count from now; backups \
             are untouched"
        ));
    }
}

/// A job gets the settings that are in force when it begins; what they do not hold, from the same places as the server.
pub fn program(global: &GlobalArgs, settings: Shared) -> Result<Program, Failure> {
    let binary = std::env::current_exe()
        .map_err(|e| Failure::failed("E-SYSTEM", format!("the program does not know where it lies: {e}")))?;
    let mut words = vec![];
    let files = [("--config", &global.config), ("--passphrase-file", &global.passphrase_file)];
    let files = files.into_iter().chain([("--age-identity-file", &global.age_identity_file)]);
    for (flag, file) in files {
        if let Some(file) = file {
            let file = std::path::absolute(file).ok().and_then(|f| f.to_str().map(str::to_owned));
            let file = file.ok_or_else(|| Failure::usage("E-USAGE", format!("{flag} names a path that is no text")))?;
            words.push(format!("{flag}={file}"));
        }
    }
    words.extend(global.repo.iter().map(|repo| format!("--repo={repo}")));
    words.extend(global.jobs.map(|n| format!("--jobs={n}")));
    Ok(Program { binary, words, settings })
}

fn watched_signals() -> Result<Arc<Signals>, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let failed = |e: std::io::Error| Failure::failed("E-SYSTEM", format!("signals cannot be handled: {e}"));
    let signals = Arc::new(Signals::default());
    let mut received = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed)?;
    let told = Arc::clone(&signals);
    let watch = move || {
        for signal in received.forever() {
            if signal == SIGHUP {
                told.reload.store(true, Ordering::SeqCst);
            } else {
                told.end.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(failed)?;
    Ok(signals)
}

/// With themselves, for its processes.
fn in_force(settings: &Settings) -> Result<Config, Failure> {
    Ok(Config { handed: Some(settings.texts.handed()?), ..config(settings)? })
}

pub fn config(settings: &Settings) -> Result<Config, Failure> {
    let schedules = settings.schedules.iter().map(scheduled).collect::<Result<_, _>>()?;
    let clusters = settings.clusters.values().map(|c| cluster(c, settings)).collect();
    let server = &settings.server;
    Ok(Config { clusters, schedules, web: server.web(), tls: server.tls_files(), keep: server.keep(), handed: None })
}

fn cluster(cluster: &ClusterSettings, settings: &Settings) -> ClusterConfig {
    let repos = cluster.repos.iter().filter_map(|name| settings.repos.get(name));
    let repos: Vec<_> = if cluster.repos.is_empty() { settings.repos.values().collect() } else { repos.collect() };
    let urls: Vec<String> = repos.iter().map(|repo| repo.url.to_string()).collect();
    let rules = cluster.retention.rules(schema::Kind::System);
    let system = cluster.system.as_ref().map(|system| SystemConfig {
        prefix: system.prefix.clone().unwrap_or_else(|| "backup".into()),
        directory: urls.first().cloned().unwrap_or_default(),
        remote: urls.iter().any(|url| url.contains("://")) || urls.len() > 1,
        enabled: cluster.backups_enabled,
        retention_days: rules.keep_days,
        max_backups: rules.max_backups,
    });
    ClusterConfig {
        name: cluster.name.clone(),
        repos: own_repos(cluster, settings),
        rpo: cluster.rpo,
        rto: cluster.rto,
        system,
        is_priced: repos.first().is_some_and(|repo| repo.space.prices.is_some()),
        repoints: cluster.recover.as_ref().is_some_and(|recover| !recover.repoint.is_empty()),
    }
}

/// By name: those that it says; or the only one that there is, as commands take it.
fn own_repos(cluster: &ClusterSettings, settings: &Settings) -> Vec<String> {
    let mut all = settings.repos.keys();
    match (cluster.repos.as_slice(), all.next(), all.next()) {
        ([], Some(only), None) => vec![only.clone()],
        (own, ..) => own.to_vec(),
    }
}

fn scheduled(schedule: &Schedule) -> Result<Scheduled, Failure> {
    let plan = schedule.plan().map_err(|e| {
        Failure::usage("E-CONFIG-VALUE", format!("schedule '{}': {}: {}", schedule.name(), e.key, e.message))
    })?;
    let kind = schedule.kind.map(|kind| match kind {
        schema::Kind::Physical => Kind::Physical,
        schema::Kind::Logical => Kind::Logical,
        schema::Kind::Files => Kind::Files,
        schema::Kind::System => Kind::System,
    });
    let backup_type = schedule.backup_type.map(|t| match t {
        schema::BackupType::Full => BackupType::Full,
        schema::BackupType::Incr => BackupType::Incr,
        schema::BackupType::Diff => BackupType::Diff,
    });
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let request = match schedule.job {
        Job::Backup => Request::Backup { kind, backup_type, repo: schedule.repo.clone() },
        Job::Verify => Request::Verify { backup: None, quick: false, repo: schedule.repo.clone() },
        Job::Expire => Request::Expire { repo: schedule.repo.clone() },
        Job::Check => Request::Check {},
        Job::Replicate => Request::Replicate { from: name(&schedule.from), to: name(&schedule.to) },
        Job::Drill => Request::Drill { kind, backup: None },
        Job::Alerts => Request::Alerts {},
    };
    Ok(Scheduled { plan, cluster: schedule.cluster.clone(), request, retries: schedule.retries.unwrap_or(0) })
}
