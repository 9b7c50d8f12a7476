//! The step that points the application to the new database, and back.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use pgark_engine::error::{EngineError, Result};
use serde_json::{Value, json};

use super::Recovery;
use super::application::{Until, list, still_stopped};
use super::machine::{At, Effect, Failure, State, Step};
use super::steps::{READY, REPOINT, SMOKE, START};
use crate::journal::{Event, Line};
use crate::repoint::{Stands, Turn};

const EACH_WITHIN: Duration = Duration::from_secs(120);
/// A fact of its failure.
const BEGUN: &str = "begun";
/// Failures that lead back to the database of before.
pub const LEADS_BACK: &[&str] = &[REPOINT, START, READY, SMOKE];

pub struct Repoint {
    pub recovery: Rc<Recovery>,
    pub turns: Vec<Turn>,
    pub until: Until,
}

impl Repoint {
    fn kept_as(&self) -> &str {
        &self.recovery.opening.id
    }

    /// Where is kept what is no file.
    fn kept(&self, n: usize) -> PathBuf {
        let opening = &self.recovery.opening;
        self.recovery.dir.join(format!("recovery-{}-{}.kept-{n}.json", opening.cluster, opening.id))
    }

    /// Whether all can be turned. Changes nothing.
    pub fn plan(&self, at: &At<'_>) -> Result<Vec<Value>> {
        let plan = |(n, turn): (usize, &Turn)| turn.plan(self.kept_as(), &self.kept(n), at.ctx);
        self.turns.iter().enumerate().map(plan).collect()
    }

    fn planned<'v>(&self, before: &'v Value) -> Result<Vec<&'v Value>> {
        let all: Vec<&Value> = before.get("turns").and_then(Value::as_array).into_iter().flatten().collect();
        if all.len() == self.turns.len() {
            return Ok(all);
        }
        Err(EngineError::refused(
            "E-RECOVER-CHANGED",
            "[clusters.NAME.recover.repoint] says something else than when the recovery began",
            "make the settings what they were, and go on",
        ))
    }

    /// How many of them it came to, when it was seen to fail.
    fn begun(&self, lines: &[Line]) -> usize {
        let failed = lines.iter().rev().find_map(|l| match &l.event {
            Event::Failed { step, facts, .. } if step == REPOINT => facts.get(BEGUN)?.as_u64(),
            _ => None,
        });
        failed.and_then(|n| usize::try_from(n).ok()).unwrap_or(self.turns.len())
    }

    fn told(&self) -> String {
        self.turns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Step for Repoint {
    fn name(&self) -> &'static str {
        REPOINT
    }

    fn what(&self) -> String {
        format!("point the application to the new database: {}; what was there is kept", self.told())
    }

    fn deadline(&self) -> Duration {
        EACH_WITHIN * u32::try_from(self.turns.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    fn before(&mut self, at: &At<'_>) -> Result<Value> {
        let again = match (&self.recovery.service, self.until) {
            (Some(service), Until::Stopped) => still_stopped(service, at.ctx)?,
            _ => None,
        };
        Ok(json!({"turns": self.plan(at)?, "again": again}))
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        for (n, (turn, planned)) in self.turns.iter().zip(self.planned(at.before)?).enumerate() {
            // Those behind one that fails are not taken back: a command may not bear that.
            *at.notes.borrow_mut() = json!({BEGUN: n + 1});
            turn.turn(planned, self.kept_as(), at.ctx)?;
        }
        let again = at.before.get("again").and_then(Value::as_str).map(str::to_owned);
        Ok(json!({"told": format!("it points to the new database: {}", self.told()), "warnings": list(again)}))
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        let mut all = vec![];
        for (turn, planned) in self.turns.iter().zip(self.planned(at.before)?) {
            all.push(turn.stands(planned, acted.is_some(), at.ctx)?);
        }
        if let Some(Stands::Other(why)) = all.iter().find(|s| matches!(s, Stands::Other(_))) {
            return Ok(Effect::Unknown(why.clone()));
        }
        let new = all.iter().filter(|s| **s == Stands::New).count();
        let told = || json!({"told": format!("it points to the new database: {}", self.told())});
        Ok(match new {
            n if n == all.len() => Effect::Took(acted.cloned().unwrap_or_else(told)),
            0 => Effect::None,
            _ => Effect::Partly,
        })
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        LEADS_BACK.contains(&failure.step.as_str())
    }

    /// In reverse order. One that cannot be taken back keeps none of the others.
    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        let mut failed: Vec<EngineError> = vec![];
        let begun = self.begun(at.lines);
        for (turn, planned) in self.turns.iter().zip(self.planned(at.before)?).take(begun).rev() {
            match turn.take_back(planned, at.ctx) {
                Ok(()) => {}
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(e) => failed.push(e),
            }
        }
        let why: Vec<String> = failed.iter().map(ToString::to_string).collect();
        match failed.into_iter().next() {
            Some(only) if why.len() == 1 => Err(only),
            Some(first) => Err(EngineError::failed(first.code(), why.join("; "), first.hint().unwrap_or_default())),
            None => Ok(json!({"told": format!("it points to the database of before: {}", self.told())})),
        }
    }

    fn state(&self) -> State {
        State::RolledBack
    }
}
