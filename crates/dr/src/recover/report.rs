//! What a recovery did, made of its journal: also after it was cut off and gone on with by somebody else.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::reports;
use pgark_engine::validate;
use pgark_repo::names::BackupId;
use pgark_repo::report::{NewReport, Severity, StoredReport};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::application::seen_first;
use super::machine::{At, Failure, State, done};
use super::steps::{ADOPT, ASIDE, CHOOSE, FENCE, NOTIFY, REPLAY, REPORT, RESTORE, SERVE, START, STOP, VALIDATE};
use super::{Goal, Opening, Recovery, WHAT};
use crate::journal::{Event, Line};
use crate::service::State as ServiceState;

pub const SCHEMA: u32 = 1;
const MODE: u32 = 0o640;
/// Facts of steps: what is there now that somebody has to know of.
const LEFT: &str = "left";
/// A fact of the `restore` of a dump that failed or was given up: what was restored took its place all the same.
pub const PLACED: &str = "placed";
/// A fact of `replay`: how archiving is switched on in the recovered cluster, which does not archive until it is adopted.
pub const HELD: &str = "held";
/// A fact of `adopt` that was given up: whether the recovered cluster archives.
pub const ARCHIVES: &str = "archives";
/// Reports that are looked through for one that was stored before a crash.
const LOOKED_THROUGH: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    Done,
    Failed,
    /// Taken back afterwards.
    Undone,
    /// It was to be taken back and could not be.
    Left,
    /// It has begun; more is not known.
    Begun,
    NotReached,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    pub name: String,
    pub what: String,
    pub outcome: StepOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// For people: what was found, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    /// Of the recovery.
    pub id: String,
    pub cluster: String,
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The directory that a cluster was restored into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PathBuf>,
    pub state: State,
    /// The service is back.
    pub restored: bool,
    /// What was restored, and was found right, stands where the database or the cluster was before.
    #[serde(default)]
    pub in_place: bool,
    pub began: Timestamp,
    pub declared: Timestamp,
    pub ended: Timestamp,
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// The moment that the data is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_point: Option<Timestamp>,
    /// None when no recovery point was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Goal>,
    /// None when the service is not back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<Goal>,
    /// Bytes that were restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_restored: Option<u64>,
    pub steps: Vec<StepReport>,
    /// By whom it was gone on with after it was cut off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<Resumed>,
    pub warnings: Vec<String>,
    /// What is there now that somebody has to know of.
    pub left: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<validate::Report>,
    /// Of a whole cluster, one for each database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validations: Vec<validate::Report>,
    /// Of the journal's line before the last one: nothing up to there was taken away.
    pub journal_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    pub at: Timestamp,
    pub by: String,
}

impl Report {
    /// As things are when this step runs.
    pub fn at(recovery: &Recovery, at: &At<'_>) -> Report {
        Report::made(&recovery.opening, at.lines, at.failure, at.state, (at.ctx.clock)())
    }

    pub fn made(opening: &Opening, lines: &[Line], failure: Option<&Failure>, state: State, now: Timestamp) -> Report {
        let found = done(lines);
        let restored = state == State::Restored;
        let of = |name: &str| -> Option<Value> {
            let failed = lines.iter().rev().find_map(|l| match &l.event {
                Event::Failed { step, facts, .. } if step == RESTORE => facts.get(name).cloned(),
                _ => None,
            });
            let from = |step: &str| found.get(step)?.get(name).filter(|v| !v.is_null()).cloned();
            from(RESTORE).or(failed).or_else(|| from(CHOOSE))
        };
        let read = |name: &str| of(name).and_then(|v| serde_json::from_value(v).ok());
        let recovery_point = of("recovery_point").and_then(|v| serde_json::from_value::<Timestamp>(v).ok());
        let rpo = recovery_point.map(|point| Goal::judge(opening.rpo_ms, point, opening.declared));
        let is_back = restored || failure.is_some_and(|f| f.step == ADOPT);
        let ended = ended_at(opening, lines).filter(|_| is_back).unwrap_or(now);
        let rto = is_back.then(|| Goal::judge(opening.rto_ms, opening.declared, ended));
        // It cannot tell of itself.
        let planned = opening.steps.iter().filter(|s| s.name != REPORT);
        let steps = planned.map(|s| step(&s.name, &s.what, lines)).collect();
        let mut warnings = gathered(lines, "warnings");
        warnings.extend(lines.iter().filter_map(|l| match &l.event {
            Event::Left { step, why } => Some(format!("step {step} could not be taken back: {why}")),
            // What fails at the end of all changes nothing, and is told.
            Event::Failed { step, code, why, .. } if failure.is_none_or(|f| f.step != *step) => {
                Some(format!("{step}: {code} {why}"))
            }
            _ => None,
        }));
        let mut left = gathered(lines, LEFT);
        let in_place = stands_in_place(opening, lines, &found);
        if let Some(failure) = failure {
            if !lines.iter().any(archives) {
                held_back(opening, &found, &mut warnings, &mut left);
            }
            stays_stopped(&found, lines, &mut left);
            application_stopped(&found, lines, state, &mut left);
            left.extend(comes_back(opening, &found, (failure, state), in_place).map(str::to_owned));
        }
        if rpo.is_some_and(|g| g.missed()) {
            warnings.insert(0, missed("recovery point", rpo, "old"));
        }
        if rto.is_some_and(|g| g.missed()) {
            warnings.insert(0, missed("recovery time", rto, "taken"));
        }
        Report {
            schema: SCHEMA,
            id: opening.id.clone(),
            cluster: opening.cluster.clone(),
            kind: opening.kind.clone(),
            database: opening.database.clone(),
            place: opening.place.clone(),
            state,
            restored,
            in_place,
            began: opening.began,
            declared: opening.declared,
            ended,
            by: opening.by.clone(),
            reason: opening.reason.clone(),
            failure: failure.cloned(),
            backup: read("backup"),
            recovery_point,
            rpo,
            rto,
            bytes_restored: of("bytes").and_then(|b| b.as_u64()),
            steps,
            resumed: resumed(lines),
            warnings,
            left,
            validation: of("validation").and_then(|v| serde_json::from_value(v).ok()),
            validations: found_by(VALIDATE, "validations", lines).unwrap_or_default(),
            journal_hash: lines.last().map(|l| l.after.clone()).unwrap_or_default(),
        }
    }

    /// One line.
    pub fn summary(&self) -> String {
        let of = match &self.database {
            Some(database) => format!("'{}' of {}", database.escape_debug(), self.cluster),
            None => self.cluster.clone(),
        };
        let rto = self.rto.map(|g| format!(" in {}", span(g.measured_ms))).unwrap_or_default();
        let validation = match self.validated() {
            Some(validate::Outcome::Ok) => ", validation ok",
            Some(validate::Outcome::Failed) => ", validation FAILED",
            Some(validate::Outcome::NotChecked) => ", validation not complete",
            None => "",
        };
        match &self.failure {
            None if !self.restored => format!("{of} is being recovered"),
            None => format!("{of} restored{rto}{validation}"),
            Some(f) => {
                // The data is there then, and right.
                let what = match self.state == State::NotStarted || self.in_place {
                    _ if self.serves() => "restored, and not adopted",
                    true => "restored, and the service is NOT back",
                    false => "NOT restored",
                };
                format!("{of} {what} ({}): step {} failed: {}{validation}", self.state.as_str(), f.step, f.code)
            }
        }
    }

    /// Whether the database is what was restored. What was chosen and did not take its place has lost nothing.
    pub fn took_place(&self) -> bool {
        matches!(self.state, State::UnderWay | State::Restored | State::NotStarted) || self.in_place || self.serves()
    }

    /// Whether the application had answered on it when this ended: only adopting it was left.
    pub fn serves(&self) -> bool {
        self.failure.as_ref().is_some_and(|f| f.step == ADOPT)
    }

    /// The worst that was found.
    fn validated(&self) -> Option<validate::Outcome> {
        let all: Vec<_> = self.validation.iter().chain(&self.validations).map(|v| v.outcome).collect();
        let worst = [validate::Outcome::Failed, validate::Outcome::NotChecked, validate::Outcome::Ok];
        worst.into_iter().find(|outcome| all.contains(outcome))
    }

    pub fn severity(&self) -> Severity {
        match (self.restored, self.warnings.is_empty()) {
            (true, true) => Severity::Info,
            (true, false) => Severity::Warning,
            // That nothing was begun is no incident of ours.
            (false, _) if self.state == State::Refused => Severity::Warning,
            (false, _) => Severity::Incident,
        }
    }

    /// Writes three files, and returns their name without its ending.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let base = dir.join(format!("recovery-{}-{}", self.cluster, self.id));
        let json = serde_json::to_string_pretty(self)
            .map_err(|e| EngineError::failed("E-INTERNAL", format!("the report cannot be written as JSON: {e}"), ""))?;
        for (ending, text) in [("json", json + "\n"), ("md", super::to_markdown(self)), ("html", super::to_html(self))]
        {
            let path = with(&base, ending);
            // As a whole, or not at all.
            let new = with(&base, "new");
            let mut options = OpenOptions::new();
            let file = options.create(true).write(true).truncate(true).mode(MODE).open(&new);
            file.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
                .and_then(|()| std::fs::rename(&new, &path))
                .map_err(|e| EngineError::file("writing", &path, e))?;
        }
        Ok(base)
    }

    pub fn store(&self, recovery: &Recovery, ctx: &Ctx) -> Result<String> {
        let new = NewReport {
            what: WHAT,
            severity: self.severity(),
            backup: self.backup.clone(),
            database: self.database.clone(),
            summary: self.summary(),
            report: serde_json::to_value(self).map_err(|e| {
                EngineError::failed("E-REPORT-STORE", format!("the report cannot be written as JSON: {e}"), "")
            })?,
        };
        Ok(StoredReport::store(&recovery.repo, &recovery.cluster, new, ctx.now())?.id.to_string())
    }

    /// Its id, when it was stored before this was cut off.
    pub fn already_stored(&self, recovery: &Recovery, ctx: &Ctx) -> Result<Option<String>> {
        if self.resumed.is_empty() {
            return Ok(None);
        }
        let newest = reports::newest(&recovery.repo, &recovery.cluster, LOOKED_THROUGH, ctx)?;
        let same = newest.iter().find(|(_, found)| {
            found.as_ref().is_ok_and(|r| r.what == WHAT && r.report.get("id").and_then(Value::as_str) == Some(&self.id))
        });
        Ok(same.map(|(id, _)| id.to_string()))
    }
}

fn with(base: &Path, ending: &str) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Adopting it was given up when it archived already.
fn archives(line: &Line) -> bool {
    matches!(&line.event, Event::Undone { step, facts } if step == ADOPT && facts.get(ARCHIVES) == Some(&Value::Bool(true)))
}

/// A recovered cluster that was not adopted archives nothing, and nobody would see it.
fn held_back(opening: &Opening, found: &BTreeMap<String, Value>, warnings: &mut Vec<String>, left: &mut Vec<String>) {
    let how = found.get(REPLAY).and_then(|f| f.get(HELD)).and_then(Value::as_str);
    // One that was not found right is to serve nobody.
    let Some(how) = how.filter(|_| !found.contains_key(ADOPT) && was_found_right(opening, found)) else { return };
    let in_place = opening.steps.iter().any(|s| s.name == ASIDE);
    match (in_place, found.contains_key(ASIDE)) {
        // What was there before is back.
        (true, false) => return,
        (true, true) => warnings.push("ARCHIVING IS OFF: the recovered cluster was not adopted".into()),
        (false, _) => {}
    }
    left.push(how.to_owned());
}

fn was_found_right(opening: &Opening, found: &BTreeMap<String, Value>) -> bool {
    found.contains_key(VALIDATE) || !opening.steps.iter().any(|s| s.name == VALIDATE)
}

fn stands_in_place(opening: &Opening, lines: &[Line], found: &BTreeMap<String, Value>) -> bool {
    if opening.database.is_none() {
        return found.contains_key(ASIDE) && found.contains_key(REPLAY) && was_found_right(opening, found);
    }
    let placed = |l: &Line| match &l.event {
        Event::Failed { step, facts, .. } | Event::Undone { step, facts } if step == RESTORE => {
            facts.get(PLACED).and_then(Value::as_bool) == Some(true)
        }
        _ => false,
    };
    found.contains_key(RESTORE) || lines.iter().any(placed)
}

/// What is missing to the service, where what was restored stays in the place of what was there before it.
fn comes_back(
    opening: &Opening,
    found: &BTreeMap<String, Value>,
    (failure, state): (&Failure, State),
    in_place: bool,
) -> Option<&'static str> {
    match (in_place, &opening.database) {
        // The application answers.
        _ if failure.step == ADOPT => None,
        (true, Some(_)) if state == State::Abandoned || failure.step == RESTORE => {
            Some("the restored database is in its place: the service is back when the application is started")
        }
        (true, None) if !found.contains_key(SERVE) => Some(
            "the service is back when the server is started on the recovered cluster, and then the application; to go \
             back instead, with the server stopped, give the directory that was put aside its name again",
        ),
        (true, None) if state == State::Abandoned => {
            Some("the recovered cluster runs: the service is back when the application is started")
        }
        _ => None,
    }
}

/// A server that was stopped and is not started again.
fn stays_stopped(found: &BTreeMap<String, Value>, lines: &[Line], left: &mut Vec<String>) {
    let fence = found.get(FENCE).filter(|f| f.get("fenced").and_then(Value::as_bool) == Some(true));
    let ran = seen_first(lines, FENCE).is_some_and(|seen| seen.state == ServiceState::Running);
    // In its own place, it is the recovered one that runs or does not.
    if fence.is_some() && ran && !found.contains_key(ASIDE) {
        left.push("the server that was to be replaced was stopped, and stays stopped: nobody else starts it".into());
    }
}

/// An application that was stopped, of a recovery that was given up before it was started again.
fn application_stopped(found: &BTreeMap<String, Value>, lines: &[Line], state: State, left: &mut Vec<String>) {
    let ran = seen_first(lines, STOP).is_some_and(|seen| seen.state == ServiceState::Running);
    let goes_on = found.get(STOP).and_then(|f| f.get("told")).is_some_and(|told| told == "it goes on");
    let started = lines.iter().any(|l| matches!(&l.event, Event::Begins { step, .. } if step == START));
    if state == State::Abandoned && ran && !goes_on && !started && found.contains_key(STOP) {
        left.push("the application was stopped, and stays stopped: start it when its database is right".into());
    }
}

fn missed(what: &str, goal: Option<Goal>, measured: &str) -> String {
    let Some(goal) = goal else { return String::new() };
    let target = goal.target_ms.map(span).unwrap_or_default();
    format!("the {what} objective was missed: {target} is the target, {} {measured}", span(goal.measured_ms))
}

/// `1d 2h`, `3m 20s`, `4.1 s`.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}.{} s", ms % 1000 / 100),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// When the last of the planned steps was done.
fn ended_at(opening: &Opening, lines: &[Line]) -> Option<Timestamp> {
    // The application had answered before its database was adopted by the archive.
    let last = |step: &str| [REPORT, NOTIFY, ADOPT].contains(&step);
    let planned = |step: &str| opening.steps.iter().any(|s| s.name == step && !last(step));
    lines.iter().rev().find_map(|l| match &l.event {
        Event::Done { step, .. } if planned(step) => Some(l.at),
        _ => None,
    })
}

fn resumed(lines: &[Line]) -> Vec<Resumed> {
    let of = |l: &Line| match &l.event {
        Event::Resumed { by } => Some(Resumed { at: l.at, by: by.clone() }),
        _ => None,
    };
    lines.iter().filter_map(of).collect()
}

/// What a step found, although it failed.
fn found_by<T: serde::de::DeserializeOwned>(step: &str, name: &str, lines: &[Line]) -> Option<T> {
    let facts = lines.iter().rev().find_map(|l| match &l.event {
        Event::Done { step: s, facts } | Event::Failed { step: s, facts, .. } if s == step => facts.get(name),
        _ => None,
    });
    facts.and_then(|found| serde_json::from_value(found.clone()).ok())
}

fn gathered(lines: &[Line], name: &str) -> Vec<String> {
    let mut all: Vec<String> = vec![];
    for (n, line) in lines.iter().enumerate() {
        // Of what was taken back, nothing is where it was left.
        let undone = |l: &Line| matches!(&l.event, Event::Undone { step, .. } if line.event.step() == Some(step));
        if name == LEFT && matches!(line.event, Event::Done { .. }) && lines.iter().skip(n).any(undone) {
            continue;
        }
        let (Event::Done { facts, .. } | Event::Failed { facts, .. } | Event::Undone { facts, .. }) = &line.event
        else {
            continue;
        };
        let words = facts.get(name).and_then(Value::as_array).into_iter().flatten();
        for word in words.filter_map(Value::as_str) {
            if !all.iter().any(|w| w == word) {
                all.push(word.to_owned());
            }
        }
    }
    all
}

fn step(name: &str, what: &str, lines: &[Line]) -> StepReport {
    let own: Vec<&Line> = lines.iter().filter(|l| l.event.step() == Some(name)).collect();
    let started = own.iter().rev().find(|l| matches!(l.event, Event::Begins { .. })).map(|l| l.at);
    let (mut outcome, mut told, mut code, mut until) = (StepOutcome::NotReached, None, None, None);
    for line in own {
        let text = |facts: &Value| facts.get("told").and_then(Value::as_str).map(str::to_owned);
        match &line.event {
            Event::Begins { .. } => (outcome, until) = (StepOutcome::Begun, None),
            Event::Done { facts, .. } => (outcome, told, until) = (StepOutcome::Done, text(facts), Some(line.at)),
            Event::Failed { code: c, why, .. } => {
                (outcome, told, code, until) = (StepOutcome::Failed, Some(why.clone()), Some(c.clone()), Some(line.at));
            }
            // A step that failed stays one that failed, whatever was tidied up after it.
            Event::Undone { .. } | Event::Left { .. } if outcome == StepOutcome::Failed => {}
            Event::Undone { facts, .. } => (outcome, told) = (StepOutcome::Undone, text(facts).or(told)),
            Event::Left { why, .. } => (outcome, told) = (StepOutcome::Left, Some(why.clone())),
            _ => {}
        }
    }
    let took = |from: Timestamp, to: Timestamp| {
        u64::try_from(to.as_millisecond().saturating_sub(from.as_millisecond())).unwrap_or(0)
    };
    let took_ms = started.zip(until).map(|(from, to)| took(from, to));
    StepReport { name: name.into(), what: what.into(), outcome, started, took_ms, told, code }
}

#[cfg(test)]
mod tests;
