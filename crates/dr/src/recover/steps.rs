//! The steps that every recovery has, whatever it restores.

use std::rc::Rc;
use std::time::Duration;

use pgark_engine::error::{EngineError, Result};
use serde_json::{Value, json};

use super::Recovery;
use super::application::{Questions, StartService, Until};
use super::machine::{At, Effect, State, Step};
use super::report::{Report, span};
use crate::program;

pub const PREFLIGHT: &str = "preflight";
pub const AUTHORISE: &str = "authorise";
pub const STOP: &str = "stop";
pub const SAFETY: &str = "safety_backup";
pub const CHOOSE: &str = "choose";
pub const RESTORE: &str = "restore";
pub const FENCE: &str = "fence";
pub const SALVAGE: &str = "salvage";
pub const ASIDE: &str = "aside";
pub const REPLAY: &str = "replay";
pub const VALIDATE: &str = "validate";
pub const SERVE: &str = "serve";
pub const REPOINT: &str = "repoint";
pub const ADOPT: &str = "adopt";
pub const START: &str = "start";
pub const READY: &str = "ready";
pub const SMOKE: &str = "smoke";
pub const ESCALATE: &str = "escalate";
pub const NOTIFY: &str = "notify";
pub const REPORT: &str = "report";

/// Above what the service itself is given, so that its own verdict comes first.
pub const MARGIN: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_secs(60);
/// Looking for backups and WAL in slow repositories.
const CHOOSES_WITHIN: Duration = Duration::from_secs(1200);
/// How long a database may take to answer that is there.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Whether this one, `NAME@HOST`, is among those who may recover. Nobody listed: everybody.
pub fn allow(operators: &[String], by: &str, cluster: &str) -> Result<()> {
    let name = by.split('@').next().unwrap_or_default();
    if operators.is_empty() || operators.iter().any(|o| o == name) {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-RECOVER-OPERATOR",
        format!("'{name}' may not recover '{cluster}'"),
        "operators in [clusters.NAME.recover] says who may; nothing was changed",
    ))
}

/// Who may begin this.
pub struct Authorise(pub Rc<Recovery>);

impl Step for Authorise {
    fn name(&self) -> &'static str {
        AUTHORISE
    }

    fn what(&self) -> String {
        match self.0.operators.as_slice() {
            [] => "note who recovers, and why".into(),
            some => format!("see that it is one of: {}", some.join(", ")),
        }
    }

    fn deadline(&self) -> Duration {
        MOMENT
    }

    fn act(&mut self, _: &At<'_>) -> Result<Value> {
        let by = &self.0.opening.by;
        allow(&self.0.operators, by, self.0.cluster.as_str())?;
        let why = self.0.opening.reason.as_deref().unwrap_or("no reason given");
        Ok(json!({"told": format!("by {by}: {why}")}))
    }

    fn state(&self) -> State {
        State::Refused
    }
}

/// Which backup, to which moment, and how much is lost with it.
struct Choose<J> {
    recovery: Rc<Recovery>,
    /// `, target latest`, where there is one.
    target: String,
    judge: J,
}

impl<J: Fn(&At<'_>) -> Result<Value>> Step for Choose<J> {
    fn name(&self) -> &'static str {
        CHOOSE
    }

    fn what(&self) -> String {
        let opening = &self.recovery.opening;
        let rpo = opening.rpo_ms.map(|ms| format!(", and compare its age with {}", span(ms))).unwrap_or_default();
        let newest = || "the newest backup that can be used".to_owned();
        let from = opening.backup.as_ref().map_or_else(newest, |id| format!("backup {id}"));
        format!("take {from}{}{rpo}", self.target)
    }

    fn deadline(&self) -> Duration {
        CHOOSES_WITHIN
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let chosen = (self.judge)(at)?;
        if let Some(told) = chosen.get("told").and_then(Value::as_str) {
            at.ctx.progress.note(told);
        }
        Ok(chosen)
    }

    fn state(&self) -> State {
        State::Halted
    }
}

/// Tells at once that more is lost than may be: whoever decides about that should not learn it after hours.
pub struct Escalate(pub Rc<Recovery>);

impl Step for Escalate {
    fn name(&self) -> &'static str {
        ESCALATE
    }

    fn what(&self) -> String {
        let command = self.0.notify.as_ref().and_then(|n| n.command.first());
        format!(
            "if the recovery point objective is missed, tell it at once, by {}",
            command.map_or("?", String::as_str)
        )
    }

    fn deadline(&self) -> Duration {
        self.0.notify.as_ref().map_or(MOMENT, |n| n.within) + MARGIN
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let met = at.done.get(CHOOSE).and_then(|f| f.pointer("/rpo/met")).and_then(Value::as_bool);
        if met != Some(false) {
            return Ok(json!({"told": "there is nothing to tell"}));
        }
        Ok(match tell(&self.0, at) {
            Ok(told) => json!({"told": format!("that the objective is missed was told: {told}")}),
            Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
            // It holds nothing up.
            Err(e) => json!({"told": e.to_string(), "warnings": [format!("{}: {} {e}", NOTIFY, e.code())]}),
        })
    }

    fn check(&mut self, _: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        Ok(Effect::Took(
            acted.cloned().unwrap_or_else(|| json!({"told": "it may have been told before this was cut off"})),
        ))
    }

    fn state(&self) -> State {
        State::Halted
    }
}

fn tell(recovery: &Recovery, at: &At<'_>) -> Result<String> {
    let Some(notify) = &recovery.notify else { return Ok("nobody is configured".into()) };
    let report = Report::at(recovery, at);
    let text = serde_json::to_vec(&report)
        .map_err(|e| EngineError::failed("E-INTERNAL", format!("the report cannot be written as JSON: {e}"), ""))?;
    let hidden: Vec<&str> = notify.hidden.clone();
    let ended = program::run_told(&notify.command, &hidden, notify.within, text, at.ctx);
    at.ctx.check_cancelled()?;
    if ended.succeeded() {
        return Ok(ended.told());
    }
    Err(EngineError::failed(
        "E-RECOVER-NOTIFY",
        format!("nobody was told: {}: {}", notify.command.first().map_or("?", String::as_str), ended.told()),
        "notify in [clusters.NAME.recover] is the command; this changes nothing about the recovery",
    ))
}

/// Tells somebody how it went. Once: a pager that rings twice for one thing is not believed.
pub struct TellSomebody(pub Rc<Recovery>);

impl Step for TellSomebody {
    fn name(&self) -> &'static str {
        NOTIFY
    }

    fn what(&self) -> String {
        let command = self.0.notify.as_ref().and_then(|n| n.command.first());
        format!("tell how it went, by {}", command.map_or("?", String::as_str))
    }

    fn deadline(&self) -> Duration {
        self.0.notify.as_ref().map_or(MOMENT, |n| n.within) + MARGIN
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        Ok(json!({"told": tell(&self.0, at)?}))
    }

    fn check(&mut self, _: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        Ok(match acted {
            Some(facts) => Effect::Took(facts.clone()),
            None => Effect::Unknown("the command may have run".into()),
        })
    }

    fn state(&self) -> State {
        State::Restored
    }
}

/// Writes the report into files and the repository.
pub struct WriteReport(pub Rc<Recovery>);

impl Step for WriteReport {
    fn name(&self) -> &'static str {
        REPORT
    }

    fn what(&self) -> String {
        format!("write the report into {} and into the repository", self.0.dir.display())
    }

    fn deadline(&self) -> Duration {
        MOMENT * 10
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let report = Report::at(&self.0, at);
        let base = report.write(&self.0.dir)?;
        let told = format!("{}.json, .md and .html", base.display());
        let stored = match report.already_stored(&self.0, at.ctx)? {
            Some(id) => Ok(id),
            None => report.store(&self.0, at.ctx),
        };
        Ok(match stored {
            Ok(id) => json!({"told": format!("{told}; report {id} of the repository"), "file": base, "stored": id}),
            // The files are there: that is told, and the recovery is what it is.
            Err(e) => {
                json!({"told": told, "file": base, "warnings": [format!("E-REPORT-STORE the report is not in the repository: {}: {e}", e.code())]})
            }
        })
    }

    fn state(&self) -> State {
        State::Restored
    }
}

/// Choosing, by what judges what there is to choose from, and telling at once when that is too old.
pub fn choose(
    recovery: &Rc<Recovery>,
    target: String,
    judge: impl Fn(&At<'_>) -> Result<Value> + 'static,
) -> Vec<Box<dyn Step>> {
    let mut all: Vec<Box<dyn Step>> = vec![Box::new(Choose { recovery: recovery.clone(), target, judge })];
    if recovery.notify.is_some() && recovery.opening.rpo_ms.is_some() {
        all.push(Box::new(Escalate(recovery.clone())));
    }
    all
}

/// The steps that begin after the data is restored, and those at the end of everything.
pub fn after_restore(recovery: &Rc<Recovery>, until: Until, rolls_back: bool) -> Vec<Box<dyn Step>> {
    let mut all: Vec<Box<dyn Step>> = vec![];
    if let Some(service) = &recovery.service {
        all.push(Box::new(StartService { service: service.clone(), until, rolls_back }));
    }
    for (name, asks) in [(READY, &recovery.ready), (SMOKE, &recovery.smoke)] {
        if !asks.is_empty() {
            all.push(Box::new(Questions { name, asks: asks.clone(), rolls_back }));
        }
    }
    all
}

pub fn at_the_end(recovery: &Rc<Recovery>) -> Vec<Box<dyn Step>> {
    let mut all: Vec<Box<dyn Step>> = vec![];
    if recovery.notify.is_some() {
        all.push(Box::new(TellSomebody(recovery.clone())));
    }
    all.push(Box::new(WriteReport(recovery.clone())));
    all
}
