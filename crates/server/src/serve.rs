//! The loop: schedules become jobs, jobs run, what is shown is kept fresh; until it is told to end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::access::Role;
use crate::http::Serving;
use crate::http::tls::TlsFiles;
use crate::jobs::handed::Handed;
use crate::jobs::{JobState, Program, Runner, RunnerOptions};
use crate::notify::Manager;
use crate::oidc::OidcConfig;
use crate::refresh::{Refresher, TICK};
use crate::schedule::{self, Scheduled};
use crate::state::{Filter, Keep, Result, State};

/// How often schedules are looked at.
const SCHEDULES_EVERY: SignedDuration = SignedDuration::from_secs(1);
/// How often the history of jobs is looked through, and whether the database is still there.
const HISTORY_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// Newly ended jobs that are looked for at once.
const ENDED_MAX: usize = 50;

/// What of the settings the server works by.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub clusters: Vec<ClusterConfig>,
    pub schedules: Vec<Scheduled>,
    pub web: WebConfig,
    /// Without it answers are given in the clear.
    pub tls: Option<TlsFiles>,
    pub keep: Keep,
    /// Themselves, as processes get them. Without it these read the files.
    pub handed: Option<Handed>,
}

impl Config {
    /// Under whose name it is kept what was said of the room of this cluster's repository.
    pub fn room_of(&self, cluster: &ClusterConfig) -> String {
        let first = self.clusters.iter().find(|other| other.shares_room(cluster));
        first.unwrap_or(cluster).name.clone()
    }
}

/// Who may ask, how, and how often.
#[derive(Clone, Debug)]
pub struct WebConfig {
    /// That the server is asked by, beside its addresses.
    pub names: Vec<String>,
    /// Whose word for whom they ask is taken.
    pub trusted_proxies: Vec<IpAddr>,
    /// Of an address, and of a caller. Read when the server starts.
    pub requests_per_second: u32,
    /// What subjects of verified certificates may do.
    pub certificates: Vec<CertificateRule>,
    /// What restores or removes waits until somebody else says yes.
    pub require_second_person: bool,
    pub approve_within: Duration,
    /// How long one who has signed in stays so.
    pub session: Duration,
    /// Who else signs people in.
    pub oidc: Option<OidcConfig>,
}

impl Default for WebConfig {
    fn default() -> WebConfig {
        WebConfig {
            names: vec![],
            trusted_proxies: vec![],
            requests_per_second: 200,
            certificates: vec![],
            require_second_person: false,
            approve_within: Duration::from_secs(3600),
            session: Duration::from_secs(12 * 3600),
            oidc: None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct CertificateRule {
    /// RFC 4514.
    pub subject: String,
    pub role: Role,
    /// None: every cluster.
    pub cluster: Option<String>,
}

#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub name: String,
    pub repos: Vec<String>,
    pub rpo: Option<Duration>,
    pub rto: Option<Duration>,
    pub system: Option<SystemConfig>,
    /// What its repository costs can be said.
    pub is_priced: bool,
    /// A recovery points its application to another database.
    pub repoints: bool,
}

impl ClusterConfig {
    /// What is said of the room of one's repository holds for the other's.
    pub fn shares_room(&self, other: &ClusterConfig) -> bool {
        self.repos == other.repos && self.is_priced == other.is_priced
    }
}

/// Of clusters, those that stand for all others with the same repositories: the first of each.
pub fn rooms(clusters: &[ClusterConfig]) -> impl Iterator<Item = &ClusterConfig> {
    let first = |c: &ClusterConfig| clusters.iter().find(|other| other.shares_room(c)).map(|first| &first.name);
    clusters.iter().filter(move |c| first(c) == Some(&c.name))
}

/// Of a system: what `/api/backups` says of it.
#[derive(Clone, Debug)]
pub struct SystemConfig {
    pub prefix: String,
    pub directory: String,
    pub remote: bool,
    pub enabled: bool,
    pub retention_days: Option<u32>,
    pub max_backups: Option<u32>,
}

/// The settings in force, which a reload exchanges.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<RwLock<Arc<Config>>>);

impl Shared {
    pub fn new(config: Config) -> Shared {
        Shared(Arc::new(RwLock::new(Arc::new(config))))
    }

    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, config: Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub program: Program,
    pub running_max: usize,
    /// How long running jobs are waited for when the server is told to end; then they run on without it.
    pub drain: Duration,
}

/// What was sent to this process.
#[derive(Debug, Default)]
pub struct Signals {
    /// The first one drains, a second one leaves at once.
    pub end: AtomicUsize,
    pub reload: AtomicBool,
}

/// Until it is told to end. Gives how many jobs run on. As long as nothing can be written down, it answers what it knows, and tries
/// again.
///
/// # Errors
/// When the state database cannot be used any longer.
pub fn run(
    state: &State,
    config: &Shared,
    options: &Options,
    signals: &Signals,
    serving: &Serving,
    manager: &mut Manager,
    reload: &mut dyn FnMut() -> Result<Config, String>,
) -> Result<usize> {
    let runner_options = RunnerOptions { running_max: options.running_max };
    let runner = Runner::take_over(state.clone(), options.program.clone(), runner_options, Timestamp::now())?;
    let refresher = Refresher::new(state.clone(), options.program.clone());
    schedule::settle(state, &config.get().schedules)?;
    let (looked, pruned, seen) = (Timestamp::MIN, Timestamp::MIN, ended(state)?);
    let listening = format!("listening on {}", serving.address());
    manager.ready(&listening);
    let mut rounds =
        Rounds { state, config, signals, serving, runner, refresher, looked, pruned, drains_until: None, seen };
    loop {
        let now = Timestamp::now();
        manager.alive();
        let mut settled = Ok(());
        if signals.reload.swap(false, Ordering::SeqCst) {
            manager.reloading();
            settled = reloaded(state, config, serving, reload());
            rounds.refresher.settings_wanted();
            manager.ready(&listening);
        }
        if signals.end.load(Ordering::SeqCst) > 0 && rounds.drains_until.is_none() {
            manager.stopping("waiting for running jobs");
            rounds.drains(now.checked_add(options.drain).unwrap_or(now));
        }
        match settled.and_then(|()| rounds.turn(now)) {
            Ok(None) => {}
            Ok(Some(left)) => return Ok(left),
            Err(e) if e.is_unwritable() && !rounds.is_to_leave(now) => {
                state.is_there()?;
                if serving.unwritten() {
                    tracing::error!(target: "pgark", error = %e, "nothing can be written down: what is known is answered, and it is tried again");
                }
            }
            Err(e) => return Err(e),
        }
        std::thread::sleep(TICK);
    }
}

/// What the loop looks after, and how far it is.
struct Rounds<'a> {
    state: &'a State,
    config: &'a Shared,
    signals: &'a Signals,
    serving: &'a Serving,
    runner: Runner,
    refresher: Refresher,
    looked: Timestamp,
    pruned: Timestamp,
    drains_until: Option<Timestamp>,
    /// Jobs that were over already.
    seen: HashMap<String, String>,
}

impl Rounds<'_> {
    fn drains(&mut self, until: Timestamp) {
        tracing::info!(target: "pgark", "told to end: no job begins, those that run are waited for");
        self.drains_until = Some(until);
        self.serving.drains();
        self.refresher.stop();
    }

    /// However many jobs run.
    fn is_to_leave(&self, now: Timestamp) -> bool {
        self.drains_until.is_some_and(|until| self.signals.end.load(Ordering::SeqCst) > 1 || now >= until)
    }

    /// Gives how many jobs run on when it is over. What could not be written down is done in a later one.
    fn turn(&mut self, now: Timestamp) -> Result<Option<usize>> {
        let Rounds { state, config, .. } = *self;
        let draining = self.drains_until.is_some();
        if !draining && now.duration_since(self.looked).abs() >= SCHEDULES_EVERY {
            self.looked = now;
            schedule::turn(state, &config.get().schedules, now)?;
        }
        if now.duration_since(self.pruned).abs() >= HISTORY_EVERY {
            self.pruned = now;
            state.is_there()?;
            state.has_room()?;
            state.prune_jobs(config.get().keep, now)?;
        }
        let running = self.runner.turn(!draining, now)?;
        if draining && running == 0 || self.is_to_leave(now) {
            return Ok(Some(running));
        }
        let events = self.serving.events();
        if !draining {
            let over = ended(state)?;
            for (id, cluster) in over.iter().filter(|(id, _)| !self.seen.contains_key(*id)) {
                tracing::debug!(target: "pgark", job = %id, "what is known of the cluster is looked up again");
                self.refresher.wanted(cluster);
            }
            self.seen = over;
            for changed in self.refresher.turn(&config.get().clusters, now)? {
                events.known(&changed);
            }
        }
        events.turn(state, now)?;
        Ok(None)
    }
}

/// Jobs that are over, of the newest.
fn ended(state: &State) -> Result<HashMap<String, String>> {
    let filter = Filter { limit: ENDED_MAX, ..Filter::default() };
    let jobs = state.jobs(&filter)?;
    Ok(jobs.into_iter().filter(|j| JobState::is_final(j.state)).map(|j| (j.id, j.cluster)).collect())
}

/// Settings with a mistake change nothing.
fn reloaded(state: &State, config: &Shared, serving: &Serving, loaded: Result<Config, String>) -> Result<()> {
    match loaded.and_then(|loaded| serving.reload(&loaded).map(|()| loaded)) {
        Ok(loaded) => {
            let (clusters, schedules) = (loaded.clusters.len(), loaded.schedules.len());
            let settled = schedule::settle(state, &loaded.schedules);
            config.set(loaded);
            tracing::warn!(target: "pgark", clusters, schedules, "the settings were read again");
            settled
        }
        Err(why) => {
            tracing::error!(target: "pgark", why, "the settings are not right, those in force stay");
            Ok(())
        }
    }
}
