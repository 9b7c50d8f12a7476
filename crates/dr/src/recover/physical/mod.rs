//! A whole cluster back, to a new instance or in its own place: the steps around the restore of its files and WAL.
//!
//! Invariants: until it was validated nobody but this program reaches the restored cluster, and what was there before is there;
//! it archives nothing before the one that it replaces is proved to be stopped.

mod adopt;
mod branch;
mod bring;
mod conf;
mod fence;
mod ground;
mod postmaster;
mod prove;
mod serve;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::archive::spool::Spool;
use pgark_engine::cluster::{AskAs, ConnectOptions, Examiners, MEET_DAMAGE};
use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::plan::DAMAGED_IN_SOURCE;
use pgark_engine::restore::reach::reach;
use pgark_engine::restore::{self, RestoreOptions, RestorePlan, Target};
use pgark_engine::scratch::bootstrap_superuser;
use pgark_engine::scratch::server::programs_of;
use pgark_engine::sources::Sources;
use pgark_engine::validate::UserCheck;
use serde_json::{Value, json};

use super::application::{StopService, Until, WayBack};
use super::machine::{At, Failure, Step};
use super::repointing::{LEADS_BACK, Repoint};
use super::steps::{self, FENCE, SALVAGE};
use super::{Goal, Recovery};
use crate::repoint::Turn;
use crate::service::{Seen, Service, State as ServiceState};

const MOMENT: Duration = Duration::from_secs(300);
/// How long a server of ours may take to end in order.
const STOPS_WITHIN: Duration = Duration::from_secs(300);
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Beside whatever else there is.
    New,
    /// Where the cluster is that is recovered; that one is kept under another name.
    Own,
}

/// What the steps have in common.
pub struct Physical {
    pub recovery: Rc<Recovery>,
    pub sources: Rc<Sources>,
    /// Backup, target and directory. Its WAL is held, and it does not open by itself.
    pub options: RestoreOptions,
    pub place: Place,
    /// Of a new instance.
    pub port: Option<u16>,
    pub socket_dir: Option<PathBuf>,
    /// Programs of the server; searched for when None.
    pub bin: Option<PathBuf>,
    pub restore_within: Duration,
    /// How long recovery may take until its planned end.
    pub replay_within: Duration,
    /// What the recovered cluster is started by.
    pub server: Service,
    /// What the one is stopped by that is replaced.
    pub fence: Option<Service>,
    /// Whether nothing goes on when that cannot be proved to be stopped.
    pub fence_required: bool,
    /// Whether it is started again when the application goes back to it.
    pub restart_old: bool,
    /// How the one is reached that is replaced, and how the recovered one.
    pub old: ConnectOptions,
    pub new: ConnectOptions,
    /// The data directory of the one that is replaced, when it is on this host.
    pub old_data: Option<PathBuf>,
    pub spool: Option<Spool>,
    pub examination: Examination,
    pub turns: Vec<Turn>,
    pub until: Until,
    /// How long it is waited for that WAL of the recovered cluster is archived.
    pub archive_within: Duration,
}

/// How the recovered cluster is looked at before anybody uses it.
pub struct Examination {
    pub checks: Vec<UserCheck>,
    pub ask_as: AskAs,
    pub check_within: Duration,
    pub within: Duration,
    pub examiners: Examiners,
    pub truths: Vec<PathBuf>,
    pub jobs: usize,
}

/// All of them, in their order.
pub fn all(physical: Physical) -> Vec<Box<dyn Step>> {
    let (recovery, until) = (physical.recovery.clone(), physical.until);
    let (turns, fences) = (physical.turns.clone(), physical.fence.is_some());
    let way_back = (!turns.is_empty()).then(|| WayBack { old: physical.old.clone(), after: LEADS_BACK });
    let (place, salvages) = (physical.place, physical.old_data.is_some() || physical.spool.is_some());
    let physical = Rc::new(physical);
    let mut all: Vec<Box<dyn Step>> =
        vec![Box::new(ground::Preflight(physical.clone())), Box::new(steps::Authorise(recovery.clone()))];
    if let Some(service) = &recovery.service {
        all.push(Box::new(StopService { service: service.clone(), until, way_back }));
    }
    if fences {
        all.push(Box::new(fence::Fence(physical.clone())));
    }
    if salvages {
        all.push(Box::new(fence::Salvage(physical.clone())));
    }
    let chosen = physical.clone();
    let judge = move |at: &At<'_>| chosen.judged(&chosen.plan()?, at);
    all.extend(steps::choose(&recovery, format!(", target {}", physical.options.target), judge));
    if place == Place::Own {
        all.push(Box::new(fence::Aside(physical.clone())));
    }
    all.push(Box::new(bring::Restore(physical.clone())));
    all.push(Box::new(bring::Replay::new(physical.clone())));
    all.push(Box::new(prove::Validate(physical.clone())));
    all.push(Box::new(serve::Serve(physical.clone())));
    let rolls_back = !turns.is_empty();
    if rolls_back {
        all.push(Box::new(Repoint { recovery: recovery.clone(), turns, until }));
    }
    all.extend(steps::after_restore(&recovery, until, rolls_back));
    all.push(Box::new(adopt::Adopt(physical)));
    all
}

impl Physical {
    pub fn dir(&self) -> &Path {
        &self.options.to
    }

    pub fn plan(&self) -> Result<RestorePlan> {
        restore::plan(&self.options, &self.sources, &[])
    }

    /// What would be restored, and how old it is. Nothing is changed by asking.
    pub fn foreseen(&self) -> Result<(RestorePlan, Timestamp)> {
        let plan = self.plan()?;
        branch::before(self, &plan)?;
        let point = reach(&plan, &self.options.cluster, &self.sources)?;
        Ok((plan, point))
    }

    fn programs(&self, version_num: u32) -> Result<PathBuf> {
        programs_of(self.bin.as_deref(), version_num / 10_000)
    }

    /// Whether the one that is replaced was proved to be stopped, by what its step has found.
    fn is_fenced(&self, at: &At<'_>) -> bool {
        at.done.get(FENCE).and_then(|f| f.get("fenced")).and_then(Value::as_bool) == Some(true)
    }

    /// How old what can be restored is, and whether that is in the bounds.
    fn judged(&self, plan: &RestorePlan, at: &At<'_>) -> Result<Value> {
        let opening = &self.recovery.opening;
        let salvaged = at.done.get(SALVAGE).and_then(|f| f.get("complete")).and_then(Value::as_bool) == Some(true);
        let told = |note: &&String| note.starts_with("DEGRADED") || note.ends_with(DAMAGED_IN_SOURCE);
        let mut warnings: Vec<String> = plan.notes.iter().filter(told).cloned().collect();
        let left_out = branch::left_out(self, plan, at)?;
        let everything = salvaged && plan.target == Target::Latest && left_out.is_none();
        let point = match &left_out {
            // It wrote nothing after that.
            None if everything => Some(opening.declared),
            None => Some(reach(plan, &self.options.cluster, &self.sources)?),
            Some(left_out) => left_out.point,
        };
        warnings.extend(left_out.map(|l| l.why));
        if !everything && point.is_some_and(|point| point > opening.declared) {
            warnings.push("what is restored is newer than the declaration: it may hold what this is to undo".into());
        }
        let rpo = point.map(|point| Goal::judge(opening.rpo_ms, point, opening.declared));
        let old = match point.zip(rpo) {
            _ if everything => "all that was written to it".to_owned(),
            None => "how much is lost with it is not known".to_owned(),
            Some((point, rpo)) => {
                format!("what was committed until {}, {}", point.strftime("%Y-%m-%dT%H:%M:%SZ"), rpo.lost())
            }
        };
        let told = format!("backup {} and WAL up to {}: {old}", plan.backup.id, plan.stop.end);
        Ok(json!({"told": told, "backup": plan.backup.id.to_string(), "recovery_point": point, "rpo": rpo,
            "bytes": plan.record.totals.size_bytes, "end": plan.stop.end.to_string(), "warnings": warnings}))
    }

    /// Of the server that nobody else reaches.
    fn private(&self, version_num: u32) -> Result<Private> {
        let dir = self.dir();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        conf::open_door(dir)?;
        let mut settings: Vec<(String, String)> = PRIVATE.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
        settings.extend(restore::settings::hold(version_num).into_iter().map(|(n, v)| (n.to_owned(), v)));
        if version_num >= 170_000 {
            // Those of logins would run for us, too.
            settings.push(("event_triggers".into(), "off".into()));
        }
        settings.push(("hba_file".into(), text(&dir.join(conf::HBA))));
        settings.push(("data_directory".into(), text(dir)));
        let superuser = bootstrap_superuser(dir)?;
        let keywords = [
            ("host", text(dir)),
            ("port", PRIVATE_PORT.to_string()),
            ("dbname", "postgres".to_owned()),
            ("user", superuser.clone()),
            // What a database sets, it sets for sessions that do not say otherwise.
            ("options", MEET_DAMAGE.to_owned()),
            ("sslmode", "disable".to_owned()),
            ("gssencmode", "disable".to_owned()),
        ];
        let connect = ConnectOptions::new(keywords.map(|(n, v)| (n.to_owned(), v)));
        Ok(Private { settings, superuser, connect })
    }
}

struct Private {
    settings: Vec<(String, String)>,
    superuser: String,
    connect: ConnectOptions,
}

/// It names a socket in the data directory, and nothing else.
const PRIVATE_PORT: u16 = 5432;
/// A socket's name must fit into `sun_path`, together with `/.s.PGSQL.5432.lock`.
const DIR_BYTES_MAX: usize = 85;
/// Nobody from outside comes in, and nothing goes out: no sessions, no subscriptions, no jobs, no waiting for standbys.
const PRIVATE: [(&str, &str); 15] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("unix_socket_group", ""),
    ("ssl", "off"),
    ("autovacuum", "off"),
    ("max_logical_replication_workers", "0"),
    ("synchronous_standby_names", ""),
    ("primary_conninfo", ""),
    ("cron.launch_active_jobs", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("logging_collector", "off"),
    // Damage must be met as what it is.
    ("ignore_checksum_failure", "off"),
    ("zero_damaged_pages", "off"),
    ("ignore_invalid_pages", "off"),
];

/// Whether this failure came before the recovered cluster was found right, so that what was there is put back.
fn before_it_was_right(failure: &Failure) -> bool {
    use steps::{ASIDE, CHOOSE, ESCALATE, REPLAY, RESTORE, VALIDATE};
    [SALVAGE, CHOOSE, ESCALATE, ASIDE, RESTORE, REPLAY, VALIDATE].contains(&failure.step.as_str())
}

fn ran(seen: Option<&Seen>) -> bool {
    seen.is_some_and(|seen| matches!(seen.state, ServiceState::Running | ServiceState::Changing))
}

/// Facts of an earlier step.
fn fact<'a>(at: &'a At<'_>, step: &str, name: &str) -> Option<&'a Value> {
    at.done.get(step)?.get(name)
}

fn lost(step: &str) -> EngineError {
    EngineError::failed("E-INTERNAL", format!("the journal does not say what step {step} found"), "")
}
