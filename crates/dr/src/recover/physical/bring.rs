//! Files and WAL: the cluster as it was at the moment that was asked for, with nobody let in.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::files::{empty_dir, unfinished};
use pgark_engine::restore::start::{remove_secret, start};
use pgark_engine::restore::state::{Lies, state};
use pgark_engine::restore::{
    self, RestoreOptions, RestorePlan, RestoreReport, StartOptions, Started, Target, TargetAction, run as restoring,
};
use pgark_repo::names::BackupId;
use serde_json::{Value, json};

use super::{MOMENT, Physical, Place, Private, STOPS_WITHIN, adopt, conf, fact, ground, lost, postmaster};
use crate::recover::machine::{At, Effect, Failure, State, Step};
use crate::recover::report::HELD;
use crate::recover::steps::{REPLAY, RESTORE};

/// Recovery ended by itself; it ended, but not where it should.
const ENDED: &str = "E-RECOVERY";
const ELSEWHERE: &str = "E-RECOVERY-END";

/// Writes the files of the backup.
pub struct Restore(pub Rc<Physical>);

impl Step for Restore {
    fn name(&self) -> &'static str {
        RESTORE
    }

    fn what(&self) -> String {
        format!("restore into {}; an older backup when this one is damaged", self.0.dir().display())
    }

    fn deadline(&self) -> Duration {
        self.0.restore_within
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let (plan, report) = files(&self.0, &self.0.options, at)?;
        let mut facts = self.0.judged(&plan, at)?;
        let Some(fields) = facts.as_object_mut() else { return Ok(facts) };
        fields.insert("told".into(), json!(format!("{} files of backup {}", report.files, plan.backup.id)));
        if let Some(Value::Array(warnings)) = fields.get_mut("warnings") {
            warnings.extend(report.warnings.iter().map(|w| json!(w)));
            warnings.extend(report.troubles.iter().map(|t| json!(format!("repository {}: {}", t.repository, t.what))));
        }
        if self.0.place == Place::New {
            fields.insert("left".into(), json!([format!("the recovered cluster is in {}", self.0.dir().display())]));
        }
        Ok(facts)
    }

    fn check(&mut self, _: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        if let Some(facts) = acted {
            return Ok(Effect::Took(facts.clone()));
        }
        let dir = self.0.dir();
        Ok(match state(dir)? {
            // What an interrupted restore left is removed by the next one.
            Lies::Nothing => Effect::None,
            // It is whole, but how it became so was not written down.
            Lies::Restored => Effect::Partly,
            Lies::Recovering | Lies::Open { .. } => {
                Effect::Unknown(format!("a server has been started in {} meanwhile", dir.display()))
            }
        })
    }

    fn goes_back(&self, failure: &Failure, done: bool) -> bool {
        failure.is_abandoned() && !done && self.0.place == Place::New
    }

    /// Removes what was written, of a directory that was empty when it began and in which no server has run.
    fn undo(&mut self, _: &At<'_>) -> Result<Value> {
        let dir = self.0.dir();
        match state(dir)? {
            Lies::Restored => {}
            Lies::Nothing if unfinished(dir).is_some() => {}
            Lies::Nothing => return Ok(json!({"told": "nothing of it was there"})),
            Lies::Recovering | Lies::Open { .. } => {
                return Err(EngineError::refused(
                    "E-RECOVER-PLACE",
                    format!("a server has been started in {}", dir.display()),
                    "look at it, and remove it by hand",
                ));
            }
        }
        empty(dir)?;
        Ok(json!({"told": format!("{} is empty again", dir.display())}))
    }

    fn state(&self) -> State {
        State::Halted
    }
}

/// The files of a backup, with the settings of the instance that they are to become.
fn files(physical: &Physical, options: &RestoreOptions, at: &At<'_>) -> Result<(RestorePlan, RestoreReport)> {
    let mut announce = |plan: &RestorePlan| at.ctx.progress.note(&format!("backup {}", plan.backup.id));
    let restored = restoring::run(options, &physical.sources, at.ctx, &mut announce)?;
    if physical.place == Place::New {
        let mut own = vec![];
        own.extend(physical.port.map(|port| ("port", port.to_string())));
        own.extend(physical.socket_dir.as_ref().map(|d| ("unix_socket_directories", d.to_string_lossy().into_owned())));
        conf::set(physical.dir(), &own)?;
        conf::wait_for_nobody(physical.dir())?;
    }
    Ok(restored)
}

/// Its tablespaces first, so that an interruption leaves what leads to them.
fn empty(dir: &Path) -> Result<()> {
    ground::places(dir)?.iter().rev().try_for_each(|place| empty_dir(place))
}

/// Replays WAL to the planned end, opens the cluster on a timeline of its own, and stops it again.
pub struct Replay {
    physical: Rc<Physical>,
    /// That it is whole again is recorded once.
    plan: RefCell<Option<RestorePlan>>,
}

impl Replay {
    pub fn new(physical: Rc<Physical>) -> Self {
        Replay { physical, plan: RefCell::default() }
    }

    /// The plan of what lies there: its end is the one that was written into its settings.
    fn plan(&self, at: &At<'_>) -> Result<RestorePlan> {
        let of = |name: &str| fact(at, RESTORE, name).and_then(Value::as_str).ok_or_else(|| lost(RESTORE));
        let id = BackupId::parse(of("backup")?).map_err(|e| EngineError::failed("E-INTERNAL", e.to_string(), ""))?;
        // This one is always reached, whatever has become of the WAL behind it since.
        let options = RestoreOptions { backup: Some(id), target: Target::Immediate, ..self.physical.options.clone() };
        let mut plan = restore::plan(&options, &self.physical.sources, &[])?;
        plan.stop.end = of("end")?.parse().map_err(|_| lost(RESTORE))?;
        Ok(plan)
    }

    fn start(&self, plan: RestorePlan, at: &At<'_>) -> Result<(RestorePlan, Started)> {
        let (dir, version) = (self.physical.dir(), plan.record.version_num);
        let Private { settings, superuser, .. } = self.physical.private(version)?;
        let options = StartOptions {
            bin: Some(self.physical.programs(version)?),
            port: Some(super::PRIVATE_PORT),
            socket_dir: Some(dir.to_owned()),
            within: self.physical.replay_within,
            settings,
            role: Some(superuser),
        };
        let started = start(dir, &plan, TargetAction::Promote, &options, at.ctx)?;
        Ok((plan, started))
    }

    /// From the files of the same backup, since what lies there leads nowhere.
    fn anew(&self, at: &At<'_>) -> Result<(RestorePlan, Started)> {
        at.ctx.progress.note("recovery cannot go on from where it was cut off: the files are written anew");
        let dir = self.physical.dir();
        postmaster::stop(dir, STOPS_WITHIN, at.ctx)?;
        empty(dir)?;
        let backup = Some(self.plan(at)?.backup.id.clone());
        let (plan, _) = files(&self.physical, &RestoreOptions { backup, ..self.physical.options.clone() }, at)?;
        self.start(plan, at)
    }
}

impl Step for Replay {
    fn name(&self) -> &'static str {
        REPLAY
    }

    fn what(&self) -> String {
        "replay WAL to the planned end and open the cluster, on a socket that nobody else reaches; nothing is archived"
            .into()
    }

    fn deadline(&self) -> Duration {
        self.physical.replay_within * 2 + self.physical.restore_within + STOPS_WITHIN * 2 + MOMENT
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let dir = self.physical.dir();
        postmaster::stop(dir, STOPS_WITHIN, at.ctx)?;
        let (plan, started) = match state(dir)? {
            Lies::Recovering => match self.start(self.plan(at)?, at) {
                // PostgreSQL does not find an end again that it had reached already when it was stopped.
                Err(e) if [ENDED, ELSEWHERE].contains(&e.code()) => self.anew(at)?,
                started => started?,
            },
            // Files were being written anew when this was cut off.
            Lies::Nothing => self.anew(at)?,
            Lies::Restored | Lies::Open { .. } => self.start(self.plan(at)?, at)?,
        };
        postmaster::stop(dir, STOPS_WITHIN, at.ctx)?;
        *self.plan.borrow_mut() = Some(plan);
        Ok(json!({"told": format!("recovered to {}, as planned, and opened", started.reached),
            "reached": started.reached.to_string(), "last_replayed": started.last_replayed}))
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        let dir = self.physical.dir();
        // One that was left there when this was cut off.
        postmaster::stop(dir, STOPS_WITHIN, at.ctx)?;
        let Lies::Open { timeline, .. } = state(dir)? else { return Ok(Effect::None) };
        conf::forget_recovery(dir)?;
        remove_secret(dir)?;
        let mut facts = acted.cloned().unwrap_or_else(|| {
            // It opens only at the planned end, and after that was compared.
            json!({"told": "it had reached the planned end and was open before this was gone on with"})
        });
        if let Some(fields) = facts.as_object_mut() {
            fields.insert("timeline".into(), json!(timeline.to_string()));
            fields.insert(HELD.into(), json!(adopt::held(dir, self.physical.place, timeline.get())));
            if let Some(plan) = self.plan.take()
                && let Err(e) = restoring::record_replay(&self.physical.sources, &self.physical.options.cluster, &plan)
            {
                fields.insert(
                    "warnings".into(),
                    json!([format!("that the backup was recovered could not be recorded: {e}")]),
                );
            }
        }
        Ok(Effect::Took(facts))
    }

    /// Nothing goes on running when it is given up.
    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        failure.step == REPLAY
    }

    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        postmaster::stop(self.physical.dir(), STOPS_WITHIN, at.ctx)?;
        Ok(json!({"told": "no server runs in it"}))
    }

    fn state(&self) -> State {
        State::Halted
    }
}
