//! The steps that stop, start and ask the application.

use std::time::{Duration, Instant};

use pgark_engine::cluster::{ConnectOptions, Connection};
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use serde_json::{Value, json};

use super::Ask;
use super::machine::{At, Effect, Failure, State, Step, said};
use super::steps::{ADOPT, ANSWERS_WITHIN, MARGIN, READY, REPOINT, RESTORE, SMOKE, START, STOP};
use crate::journal::{Event, Line};
use crate::service::{Proof, Seen, Service, State as ServiceState};

/// Between two tries of a probe.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether the application is stopped before, or goes on until it points to the new database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Stopped,
    Repointed,
}

/// Stops the application, and proves it; or leaves it running.
pub struct StopService {
    pub service: Service,
    pub until: Until,
    /// How the application is started again on what it pointed to before; None: it is not.
    pub way_back: Option<WayBack>,
}

/// Back to the database that was there before, when it is there.
#[derive(Clone)]
pub struct WayBack {
    pub old: ConnectOptions,
    /// Of these steps, the failure leads back.
    pub after: &'static [&'static str],
}

impl WayBack {
    pub fn answers(&self) -> bool {
        Connection::open(&self.old, ANSWERS_WITHIN).is_ok()
    }
}

impl Step for StopService {
    fn name(&self) -> &'static str {
        STOP
    }

    fn what(&self) -> String {
        let Service { kind, stop_within, force, .. } = &self.service;
        if self.until == Until::Repointed {
            return format!("leave {kind} running until it points to the new database");
        }
        let force = if *force { ", then kill it" } else { "" };
        format!("stop {kind} within {} s{force}, and prove it", stop_within.as_secs_f32())
    }

    fn deadline(&self) -> Duration {
        self.service.stop_within * 2 + self.service.start_within + self.service.steady_for + MARGIN
    }

    fn before(&mut self, at: &At<'_>) -> Result<Value> {
        Ok(json!({"seen": self.service.look(at.ctx)}))
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        if self.until == Until::Repointed {
            return Ok(json!({"told": "it goes on", "seen": at.before.get("seen")}));
        }
        let proof = self.service.stop(at.ctx)?;
        Ok(with_seen(&proof, at.before))
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        if self.until == Until::Repointed {
            return Ok(said(acted));
        }
        let seen = self.service.look(at.ctx);
        Ok(match acted {
            Some(facts) if seen.state == ServiceState::Stopped => Effect::Took(facts.clone()),
            Some(_) => Effect::Unknown(format!("afterwards it is seen as: {}", seen.detail)),
            // Stopping it once more does no harm, and proves it.
            None => Effect::None,
        })
    }

    fn lost(&mut self, at: &At<'_>) -> Result<Option<String>> {
        // Then the steps that follow look themselves, and start it.
        if self.until == Until::Repointed || begun(at.lines, START) > 0 || at.done.contains_key(RESTORE) {
            return Ok(None);
        }
        let seen = self.service.look(at.ctx);
        Ok((seen.state != ServiceState::Stopped).then(|| format!("it is not stopped any more: {}", seen.detail)))
    }

    fn goes_back(&self, failure: &Failure, done: bool) -> bool {
        done && self.way_back.as_ref().is_some_and(|way| way.after.contains(&failure.step.as_str()))
            && !failure.is_abandoned()
    }

    /// Starts it on the database that it points to again.
    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        let before = seen_first(at.lines, STOP);
        let ran = before.as_ref().is_none_or(|seen| seen.state == ServiceState::Running);
        let now = self.service.look(at.ctx);
        if now.state == ServiceState::Running {
            return Ok(json!({"told": format!("it runs, on the database of before: {}", now.detail)}));
        }
        if at.lines.iter().any(|l| matches!(&l.event, Event::Left { step, .. } if step == REPOINT)) {
            return Ok(json!({"told": "not started again: what it points to could not be put back",
                "left": ["the application is stopped: put back what it points to, then start it"]}));
        }
        let answers = self.way_back.as_ref().is_some_and(WayBack::answers);
        if !ran || !answers {
            let why = if ran { "the database that it points to does not answer" } else { "it did not run before" };
            return Ok(json!({"told": format!("not started again: {why}")}));
        }
        let proof = self.service.start(before.as_ref(), at.ctx)?;
        Ok(json!({"told": format!("runs again, on the database of before: {}", proof.seen.detail),
            "left": ["the application runs on the database that it pointed to before"]}))
    }

    fn state(&self) -> State {
        State::NotStopped
    }
}

/// What its manager says of it, before anything is touched: of one that does not tell, nothing could be proved.
pub fn answers(service: &Service, ctx: &Ctx) -> Result<String> {
    let seen = service.look(ctx);
    if seen.state != ServiceState::Unknown {
        return Ok(format!("{}: {}", service.kind, seen.detail));
    }
    Err(EngineError::refused(
        "E-RECOVER-SERVICE",
        format!("{} does not tell its state, so that nothing could be proved: {}", service.kind, seen.detail),
        "see that status in [clusters.NAME.recover.service] (or server) ends with 0 when it runs, with 1 to 3 when not; nothing was changed",
    ))
}

fn begun(lines: &[Line], step: &str) -> usize {
    lines.iter().filter(|l| matches!(&l.event, Event::Begins { step: s, .. } if s == step)).count()
}

/// What was seen of it before it was told anything: a second look sees it half stopped.
pub fn seen_first(lines: &[Line], step: &str) -> Option<Seen> {
    let seen = lines.iter().find_map(|l| match &l.event {
        Event::Begins { step: s, facts } if s == step => facts.get("seen").cloned(),
        _ => None,
    });
    seen.and_then(|seen| serde_json::from_value(seen).ok())
}

/// A watchdog, or somebody who means well, may have started it again: then it is stopped once more, and that is told.
pub fn still_stopped(service: &Service, ctx: &Ctx) -> Result<Option<String>> {
    let seen = service.look(ctx);
    if seen.state == ServiceState::Stopped {
        return Ok(None);
    }
    let told = format!("somebody started {} in the meantime: it was stopped once more", service.kind);
    ctx.progress.note(&told);
    service.stop(ctx)?;
    Ok(Some(told))
}

/// What was seen before goes along: how many there were, for those that are scaled.
fn with_seen(proof: &Proof, before: &Value) -> Value {
    let how = if proof.forced { "killed" } else { "stopped" };
    let ports: Vec<String> = proof.closed.iter().map(ToString::to_string).collect();
    let ports = if ports.is_empty() { String::new() } else { format!("; nobody listens on {}", ports.join(", ")) };
    let told = format!("{how}: {}{ports}", proof.seen.detail);
    json!({"told": told, "seen": before.get("seen"), "proof": proof})
}

/// Starts the application, and watches it for a while.
pub struct StartService {
    pub service: Service,
    /// It may be running until now, and then is to begin anew.
    pub until: Until,
    /// Whether a failure of what comes after it stops it again.
    pub rolls_back: bool,
}

impl Step for StartService {
    fn name(&self) -> &'static str {
        START
    }

    fn what(&self) -> String {
        format!(
            "start {} within {} s, and see it run for {} s",
            self.service.kind,
            self.service.start_within.as_secs_f32(),
            self.service.steady_for.as_secs_f32()
        )
    }

    fn deadline(&self) -> Duration {
        self.service.start_within * 2 + self.service.steady_for + MARGIN
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let before = seen_first(at.lines, STOP);
        if self.until == Until::Repointed {
            let proof = self.service.restart(before.as_ref(), at.ctx)?;
            return Ok(json!({"told": format!("runs anew: {}", proof.seen.detail), "proof": proof}));
        }
        // What was started meanwhile may know the database of before.
        let again = if begun(at.lines, START) > 1 { None } else { still_stopped(&self.service, at.ctx)? };
        let proof = self.service.start(before.as_ref(), at.ctx)?;
        Ok(json!({"told": format!("runs: {}", proof.seen.detail), "proof": proof, "warnings": list(again)}))
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        let seen = self.service.look(at.ctx);
        Ok(match acted {
            Some(facts) if seen.state == ServiceState::Running => Effect::Took(facts.clone()),
            Some(_) => Effect::Unknown(format!("afterwards it is seen as: {}", seen.detail)),
            None if seen.state == ServiceState::Running && self.until == Until::Stopped => {
                let told = format!("runs, since before this was gone on with: {}", self.service.stays(at.ctx)?.detail);
                Effect::Took(json!({"told": told}))
            }
            None => Effect::None,
        })
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        let step = failure.step.as_str();
        // When only the archive is missing, the service is back.
        (failure.is_abandoned() && step != ADOPT) || (self.rolls_back && [START, READY, SMOKE].contains(&step))
    }

    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        let proof = self.service.stop(at.ctx)?;
        Ok(with_seen(&proof, &Value::Null))
    }

    fn state(&self) -> State {
        if self.rolls_back { State::RolledBack } else { State::NotStarted }
    }
}

/// For facts: what there is of it.
pub fn list(told: impl IntoIterator<Item = String>) -> Value {
    let all: Vec<String> = told.into_iter().collect();
    if all.is_empty() { Value::Null } else { json!(all) }
}

/// Asks until the application is ready, or whether it works.
pub struct Questions {
    pub name: &'static str,
    pub asks: Vec<Ask>,
    pub rolls_back: bool,
}

impl Questions {
    fn ask(ask: &Ask, ctx: &Ctx) -> Result<Value> {
        let (until, mut tries) = (Instant::now() + ask.within, 0_u32);
        loop {
            ctx.check_cancelled()?;
            let found = ask.probe.try_once(ask.each)?;
            tries += 1;
            if found.ok {
                return Ok(json!({"probe": ask.probe.to_string(), "found": found, "tries": tries}));
            }
            if Instant::now() + PAUSE >= until {
                return Err(EngineError::failed(
                    "E-RECOVER-PROBE",
                    format!("{}: {} (tried {tries} times)", ask.probe, found.why.join("; ")),
                    "look at the application's own log",
                ));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Step for Questions {
    fn name(&self) -> &'static str {
        self.name
    }

    fn what(&self) -> String {
        let all: Vec<String> = self.asks.iter().map(|a| a.probe.to_string()).collect();
        format!("ask {}", all.join(", "))
    }

    fn deadline(&self) -> Duration {
        self.asks.iter().map(|a| a.within + a.each).sum::<Duration>() + MARGIN
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let found = self.asks.iter().map(|a| Questions::ask(a, at.ctx)).collect::<Result<Vec<_>>>()?;
        let told: Vec<String> = found
            .iter()
            .map(|f| {
                let of = |pointer: &str| f.pointer(pointer).cloned().unwrap_or(Value::Null);
                let status = of("/found/status").as_u64().map(|s| format!("status {s}, ")).unwrap_or_default();
                format!("{}: {status}{} ms", of("/probe").as_str().unwrap_or("?"), of("/found/latency_ms"))
            })
            .collect();
        Ok(json!({"told": told.join("; "), "probes": found}))
    }

    fn state(&self) -> State {
        if self.rolls_back { State::RolledBack } else { State::NotStarted }
    }
}
