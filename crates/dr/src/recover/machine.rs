//! A recovery as a list of steps, each written down before it runs, so that whatever stops it leaves it where it can go on.
//!
//! Invariants: a step runs only after the journal says so; it is done only when looking says that it took effect; after a
//! failure nothing goes forward any more, and what has a way back is taken back in reverse order. What a step does is its own:
//! this module knows names, not databases.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::journal::{Event, Journal, Line};

/// How often it is looked whether a step has run out of time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where steps are written down. After an error of it, nothing more may be done.
pub trait Log {
    fn append(&mut self, at: Timestamp, event: Event) -> Result<()>;
    fn lines(&self) -> &[Line];
}

impl Log for Journal {
    fn append(&mut self, at: Timestamp, event: Event) -> Result<()> {
        Journal::append(self, at, event)
    }

    fn lines(&self) -> &[Line] {
        Journal::lines(self)
    }
}

/// What everything ended in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has not ended.
    UnderWay,
    /// The service is back.
    Restored,
    /// Nothing was changed.
    Refused,
    /// The application could not be stopped; data was not touched.
    NotStopped,
    /// The application is stopped; what was there before is kept.
    Halted,
    /// The database is restored; the application is not up, or not well.
    NotStarted,
    /// The application points again to where it pointed before.
    RolledBack,
    /// Somebody gave it up; what could be was taken back.
    Abandoned,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::UnderWay => "under_way",
            State::Restored => "restored",
            State::Refused => "refused",
            State::NotStopped => "not_stopped",
            State::Halted => "halted",
            State::NotStarted => "not_started",
            State::RolledBack => "rolled_back",
            State::Abandoned => "abandoned",
        }
    }
}

/// What looking at a step's effect found.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// It took effect; with what proves it.
    Took(Value),
    /// It did not; it may run (again).
    None,
    /// A part of it: to be taken back before it runs again.
    Partly,
    /// It may have, and must not run twice.
    Unknown(String),
}

/// What a step said, where nothing else is looked at.
pub fn said(acted: Option<&Value>) -> Effect {
    acted.map_or(Effect::None, |facts| Effect::Took(facts.clone()))
}

/// What is known when a step runs.
pub struct At<'a> {
    pub ctx: &'a Ctx,
    /// What was written down before it ran.
    pub before: &'a Value,
    /// Of the steps that are done.
    pub done: &'a BTreeMap<String, Value>,
    pub lines: &'a [Line],
    pub failure: Option<&'a Failure>,
    /// What it comes to, as far as is known.
    pub state: State,
    /// What has to be known although the step fails.
    pub notes: &'a RefCell<Value>,
}

pub trait Step {
    fn name(&self) -> &'static str;

    /// One line for people: what is about to be done.
    fn what(&self) -> String;

    fn deadline(&self) -> Duration;

    /// What has to be known afterwards, whatever happens in between. Changes nothing.
    fn before(&mut self, _at: &At<'_>) -> Result<Value> {
        Ok(Value::Null)
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value>;

    /// Whether it took effect. `acted` is what `act` said, and None when nobody knows how far it came. A step that does not look counts by
    /// what it said, and runs again when it was cut off: it does no harm twice.
    fn check(&mut self, _at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        Ok(said(acted))
    }

    /// Asked of a step that is done when a recovery goes on: why it has to be done again, if it has to.
    fn lost(&mut self, _at: &At<'_>) -> Result<Option<String>> {
        Ok(None)
    }

    /// Whether it is taken back after this failure, perhaps its own. `done`: it had come to its end.
    fn goes_back(&self, _failure: &Failure, _done: bool) -> bool {
        false
    }

    /// Takes it back. May be called again after it was cut off, and then does the rest.
    fn undo(&mut self, _at: &At<'_>) -> Result<Value> {
        Ok(Value::Null)
    }

    /// What a failure of this step ends in.
    fn state(&self) -> State;
}

/// Why nothing goes forward any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub step: String,
    pub code: String,
    pub why: String,
    pub hint: Option<String>,
}

pub const ABANDONED: &str = "E-RECOVER-ABANDONED";

impl Failure {
    pub fn is_abandoned(&self) -> bool {
        self.code == ABANDONED
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    GoOn,
    Abandon,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub state: State,
    pub failure: Option<Failure>,
    /// The failure as it happened, when that was just now.
    pub error: Option<EngineError>,
}

pub struct Machine<'a> {
    pub log: &'a mut dyn Log,
    pub ctx: &'a Ctx,
    pub steps: Vec<Box<dyn Step>>,
    /// Run at the end of all, whatever it is. That one fails changes nothing.
    pub last: Vec<Box<dyn Step>>,
}

impl Machine<'_> {
    /// Goes on from wherever the journal says that it is.
    ///
    /// # Errors
    /// When it was cancelled or the journal cannot be written: then it can be gone on with. How steps end is in what is returned.
    pub fn run(&mut self, wish: Wish) -> Result<Ended> {
        let mut error = None;
        let over = self.log.lines().iter().any(|l| matches!(l.event, Event::Ended { .. }));
        if wish == Wish::Abandon && !over && failure(self.log.lines(), &self.steps).is_none() {
            // Where all are done there is nothing to give up: it ends as what it is.
            let open = self.steps.iter().find(|s| !is_done(self.log.lines(), s.name()));
            if let Some(step) = open.map(|s| s.name()) {
                let given_up = EngineError::failed(ABANDONED, "it was given up", "");
                self.failed(step, &given_up)?;
            }
        }
        if !over && failure(self.log.lines(), &self.steps).is_none() {
            self.see_what_holds()?;
        }
        for n in 0..self.steps.len() {
            if failure(self.log.lines(), &self.steps).is_some() {
                break;
            }
            error = self.forward(n)?;
        }
        let failure = failure(self.log.lines(), &self.steps);
        if let Some(failure) = &failure {
            self.back(failure)?;
        }
        let state = state(failure.as_ref(), &self.steps);
        self.finish(failure.as_ref(), state)?;
        if !over {
            let why = failure.as_ref().map_or_else(String::new, |f| format!("{}: {}", f.code, f.why));
            self.append(Event::Ended { state: state.as_str().into(), why })?;
        }
        Ok(Ended { state, failure, error })
    }

    fn append(&mut self, event: Event) -> Result<()> {
        self.log.append((self.ctx.clock)(), event)
    }

    fn failed(&mut self, step: &str, e: &EngineError) -> Result<()> {
        self.append(failed_event(step, e, Value::Null))
    }

    /// What was done may have been undone by others since: a machine that came up again starts what it starts.
    fn see_what_holds(&mut self) -> Result<()> {
        let done = done(self.log.lines());
        for step in self.steps.iter_mut().filter(|s| done.contains_key(s.name())) {
            let at = At {
                ctx: self.ctx,
                before: &Value::Null,
                done: &done,
                lines: self.log.lines(),
                failure: None,
                state: State::UnderWay,
                notes: &RefCell::default(),
            };
            if let Some(why) = within(self.ctx, step.deadline(), |ctx| step.lost(&At { ctx, ..at }))? {
                self.ctx.progress.note(&format!("{}: {why}", step.name()));
                let event = Event::Undone { step: step.name().to_owned(), facts: json!({"told": why}) };
                self.log.append((self.ctx.clock)(), event)?;
            }
        }
        Ok(())
    }

    /// One step, to its end. Returns why it failed.
    fn forward(&mut self, n: usize) -> Result<Option<EngineError>> {
        let Some(step) = self.steps.get_mut(n) else { return Ok(None) };
        one(self.log, self.ctx, step.as_mut(), (None, State::UnderWay))
    }

    fn back(&mut self, failure: &Failure) -> Result<()> {
        let state = state(Some(failure), &self.steps);
        for step in self.steps.iter_mut().rev() {
            let Some(before) = begun(self.log.lines(), step.name()) else { continue };
            if !step.goes_back(failure, is_done(self.log.lines(), step.name())) {
                continue;
            }
            self.ctx.progress.note(&format!("taking back: {}", step.what()));
            // The wish to stop is over by now: what was begun is taken back.
            let done = done(self.log.lines());
            let (lines, notes) = (self.log.lines(), RefCell::default());
            let failure = Some(failure);
            let at = At { ctx: self.ctx, before: &before, done: &done, lines, failure, state, notes: &notes };
            let name = step.name().to_owned();
            let event = match within(self.ctx, step.deadline(), |ctx| step.undo(&At { ctx, ..at })) {
                Ok(facts) => Event::Undone { step: name, facts },
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(e) => {
                    self.ctx.progress.note(&format!("NOT taken back: {}: {e}", e.code()));
                    Event::Left { step: name, why: format!("{}: {e}", e.code()) }
                }
            };
            self.log.append((self.ctx.clock)(), event)?;
        }
        Ok(())
    }

    fn finish(&mut self, failure: Option<&Failure>, state: State) -> Result<()> {
        for step in &mut self.last {
            let failed = |l: &Line| matches!(&l.event, Event::Failed { step: s, .. } if s == step.name());
            if !self.log.lines().iter().any(failed) {
                one(self.log, self.ctx, step.as_mut(), (failure, state))?;
            }
        }
        Ok(())
    }
}

/// From what the journal says of a step to its end.
fn one(
    log: &mut dyn Log,
    ctx: &Ctx,
    step: &mut dyn Step,
    (failure, state): (Option<&Failure>, State),
) -> Result<Option<EngineError>> {
    let name = step.name().to_owned();
    if is_done(log.lines(), &name) {
        return Ok(None);
    }
    let (done, notes) = (done(log.lines()), RefCell::new(Value::Null));
    if let Some(before) = begun(log.lines(), &name) {
        // It was cut off.
        let at = At { ctx, before: &before, done: &done, lines: log.lines(), failure, state, notes: &notes };
        let found = within(ctx, step.deadline(), |ctx| {
            let at = At { ctx, ..at };
            let found = step.check(&at, None)?;
            Ok(if found == Effect::Partly { (found, step.undo(&at)?) } else { (found, Value::Null) })
        });
        let event = match found {
            Ok((Effect::Took(facts), _)) => Event::Done { step: name.clone(), facts },
            Ok((Effect::None, _)) => Event::Undone { step: name.clone(), facts: json!({"told": "it had not begun"}) },
            Ok((Effect::Partly, facts)) => Event::Undone { step: name.clone(), facts },
            // Who is told to stop sees nothing for certain.
            Ok(_) if ctx.check_cancelled().is_err() => return Err(EngineError::Cancelled),
            Ok((Effect::Unknown(why), _)) => return fail(log, ctx, &name, unknown(&name, &why), &notes),
            // Nothing was done yet, and it can be looked at again: perhaps the server is not up.
            Err(e) => return Err(e),
        };
        let is_done = matches!(event, Event::Done { .. });
        log.append((ctx.clock)(), event)?;
        if is_done {
            return Ok(None);
        }
    }
    ctx.check_cancelled()?;
    ctx.progress.note(&format!("{name}: {}", step.what()));
    let at = At { ctx, before: &Value::Null, done: &done, lines: log.lines(), failure, state, notes: &notes };
    let before = match step.before(&at) {
        Ok(before) => before,
        Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
        Err(e) => return fail(log, ctx, &name, e, &notes),
    };
    log.append((ctx.clock)(), Event::Begins { step: name.clone(), facts: before.clone() })?;
    let at = At { ctx, before: &before, done: &done, lines: log.lines(), failure, state, notes: &notes };
    let found = within(ctx, step.deadline(), |ctx| {
        let at = At { ctx, ..at };
        let acted = step.act(&at)?;
        step.check(&at, Some(&acted))
    });
    match found {
        Ok(Effect::Took(facts)) => {
            log.append((ctx.clock)(), Event::Done { step: name, facts })?;
            Ok(None)
        }
        Ok(_) if ctx.check_cancelled().is_err() => Err(EngineError::Cancelled),
        Ok(other) => fail(log, ctx, &name, no_effect(&name, &other), &notes),
        // As if it had been killed: whoever goes on looks how far it came.
        Err(EngineError::Cancelled) => Err(EngineError::Cancelled),
        Err(e) => fail(log, ctx, &name, e, &notes),
    }
}

fn fail(
    log: &mut dyn Log,
    ctx: &Ctx,
    name: &str,
    e: EngineError,
    notes: &RefCell<Value>,
) -> Result<Option<EngineError>> {
    ctx.progress.note(&format!("{name} FAILED: {} {e}", e.code()));
    log.append((ctx.clock)(), failed_event(name, &e, notes.take()))?;
    Ok(Some(e))
}

fn failed_event(step: &str, e: &EngineError, facts: Value) -> Event {
    Event::Failed { step: step.into(), code: e.code().into(), why: e.to_string(), hint: e.hint(), facts }
}

fn unknown(name: &str, why: &str) -> EngineError {
    EngineError::failed(
        "E-RECOVER-UNKNOWN",
        format!("step {name} was cut off, and whether it took effect is not known: {why}"),
        "it is not done a second time: look at it, then begin a new recovery from the state that things are in",
    )
}

fn no_effect(name: &str, found: &Effect) -> EngineError {
    let why = match found {
        Effect::Unknown(why) => why.as_str(),
        Effect::Partly => "only a part of it is there",
        Effect::None | Effect::Took(_) => "nothing of it is there",
    };
    EngineError::failed("E-RECOVER-EFFECT", format!("step {name} says that it is done, and {why}"), "")
}

/// Runs it, and asks it to stop when its time is over or everything is to stop.
pub fn within<T>(ctx: &Ctx, deadline: Duration, work: impl FnOnce(&Ctx) -> Result<T>) -> Result<T> {
    let mut own = ctx.aside();
    own.progress = ctx.progress.clone();
    let (until, late, flag) = (Instant::now() + deadline, AtomicBool::new(false), own.cancel_flag());
    let found = std::thread::scope(|scope| {
        let (ended, waiting) = sync_channel::<()>(0);
        let late = &late;
        scope.spawn(move || {
            while waiting.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let over = Instant::now() >= until;
                if over {
                    late.store(true, Ordering::Relaxed);
                }
                if over || ctx.check_cancelled().is_err() {
                    flag.store(true, Ordering::Relaxed);
                }
            }
        });
        let found = work(&own);
        drop(ended);
        found
    });
    match found {
        // What fails while everything is told to stop, fails of that.
        Err(_) if ctx.check_cancelled().is_err() => Err(EngineError::Cancelled),
        Err(e) if late.load(Ordering::Relaxed) => {
            let said = if matches!(e, EngineError::Cancelled) { String::new() } else { format!(": {e}") };
            Err(EngineError::failed(
                "E-RECOVER-DEADLINE",
                format!("it was not done after {} s, and was stopped{said}", deadline.as_secs_f32()),
                e.hint().unwrap_or_default(),
            ))
        }
        found => found,
    }
}

/// What a failure ends in.
pub fn state(failure: Option<&Failure>, steps: &[Box<dyn Step>]) -> State {
    match failure {
        None => State::Restored,
        Some(f) if f.is_abandoned() => State::Abandoned,
        Some(f) => steps.iter().find(|s| s.name() == f.step).map_or(State::Halted, |s| s.state()),
    }
}

/// The failure of a step, which ends all going forward.
fn failure(lines: &[Line], steps: &[Box<dyn Step>]) -> Option<Failure> {
    lines.iter().find_map(|l| match &l.event {
        Event::Failed { step, code, why, hint, .. } if steps.iter().any(|s| s.name() == step) => {
            Some(Failure { step: step.clone(), code: code.clone(), why: why.clone(), hint: hint.clone() })
        }
        _ => None,
    })
}

fn of<'l>(lines: &'l [Line], step: &str) -> impl Iterator<Item = &'l Event> {
    let step = step.to_owned();
    lines.iter().rev().map(|l| &l.event).filter(move |e| e.step() == Some(&step))
}

fn is_done(lines: &[Line], step: &str) -> bool {
    matches!(of(lines, step).next(), Some(Event::Done { .. }))
}

/// What was written before it ran, unless it was taken back since.
fn begun(lines: &[Line], step: &str) -> Option<Value> {
    of(lines, step)
        .take_while(|e| !matches!(e, Event::Undone { .. } | Event::Left { .. }))
        .find_map(|e| if let Event::Begins { facts, .. } = e { Some(facts.clone()) } else { None })
}

/// What the steps that are done have found.
pub fn done(lines: &[Line]) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for line in lines {
        match &line.event {
            Event::Done { step, facts } => drop(all.insert(step.clone(), facts.clone())),
            Event::Undone { step, .. } => drop(all.remove(step)),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests;
