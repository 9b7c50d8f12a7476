//! A store that fails as told, around any other store: what a test needs to stand where the disk fills up, the
//! network loses a reply, or the power goes. The same seed and rules give the same faults.
//!
//! It changes what goes through it only by a fault that is due; without rules it is the store it wraps.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::forward::forward_to_inner;
use super::{ObjectName, ObjectStat, ObjectWriter, Space, Store, StoreError, Visit};

/// An operation on a store or on a writer it gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    PutNew,
    Create,
    Write,
    Finish,
    Read,
    ReadAt,
    Stat,
    List,
    ListDirs,
    Delete,
    FreeBytes,
    Sweep,
}

impl Op {
    pub const ALL: &[Op] = &[
        Op::PutNew,
        Op::Create,
        Op::Write,
        Op::Finish,
        Op::Read,
        Op::ReadAt,
        Op::Stat,
        Op::List,
        Op::ListDirs,
        Op::Delete,
        Op::FreeBytes,
        Op::Sweep,
    ];
    /// What puts bytes into the store.
    pub const WRITES: &[Op] = &[Op::PutNew, Op::Create, Op::Write, Op::Finish];
    /// What changes which objects there are.
    pub const COMMITS: &[Op] = &[Op::PutNew, Op::Finish, Op::Delete];
    /// What returns an object's bytes.
    pub const READS: &[Op] = &[Op::Read, Op::ReadAt];

    fn verb(self) -> &'static str {
        match self {
            Op::PutNew => "put",
            Op::Create => "create",
            Op::Write => "write",
            Op::Finish => "finish",
            Op::Read => "read",
            Op::ReadAt => "read part of",
            Op::Stat => "stat",
            Op::List => "list",
            Op::ListDirs => "list directories of",
            Op::Delete => "delete",
            Op::FreeBytes => "measure",
            Op::Sweep => "sweep",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails without effect.
    Fail,
    /// Takes effect, then reports failure: the reply was lost.
    LoseReply,
    /// Fails without effect for want of space.
    NoSpace,
    /// One bit of what was read is wrong.
    FlipBit,
    /// `read` returns too few bytes; `read_at`, which cannot, reports `Truncated`.
    Truncate,
    /// The process or machine dies: this operation has no effect, and none after it works.
    CrashBefore,
    /// The same, but the operation still takes effect.
    CrashAfter,
}

/// Which of the operations a rule is about, counted from 1 when the rule was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Nth(u64),
    From(u64),
    /// Each one with this chance, by the seed.
    PerThousand(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub op: Op,
    /// The object, or the prefix of a list.
    pub object: String,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The wrapped store itself reported an error.
    Refused,
    Injected(Fault),
    /// It came after a crash.
    Dead,
}

pub struct FaultStore {
    inner: Arc<dyn Store>,
    state: Arc<State>,
}

type Hide = dyn Fn(&str) -> bool + Send + Sync;

struct State(Mutex<Script>);

struct Script {
    random: u64,
    rules: Vec<Rule>,
    hide: Option<Arc<Hide>>,
    crashed: bool,
    log: Vec<LogEntry>,
}

struct Rule {
    ops: Vec<Op>,
    when: When,
    fault: Fault,
    seen: u64,
}

impl FaultStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    pub fn new(inner: Arc<dyn Store>, seed: u64) -> Self {
        let script = Script { random: seed, rules: vec![], hide: None, crashed: false, log: vec![] };
        FaultStore { inner, state: Arc::new(State(Mutex::new(script))) }
    }

    /// Another store of the same process: the operations of both are counted together, and both die at once.
    pub fn beside(&self, inner: Arc<dyn Store>) -> Self {
        FaultStore { inner, state: Arc::clone(&self.state) }
    }

    /// Adds a rule. When several are due for one operation, the one made first decides.
    pub fn inject(&self, ops: &[Op], when: When, fault: Fault) {
        self.state.script().rules.push(Rule { ops: ops.to_vec(), when, fault, seen: 0 });
    }

    /// `list` and `list_dirs` leave out what this says, given the full name.
    pub fn hide(&self, hidden: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.state.script().hide = Some(Arc::new(hidden));
    }

    /// Forgets rules, hidden names and a crash; keeps the log. What a restarted process finds.
    pub fn heal(&self) {
        let mut script = self.state.script();
        (script.rules, script.hide, script.crashed) = (vec![], None, false);
    }

    pub fn crashed(&self) -> bool {
        self.state.script().crashed
    }

    /// Every operation since the beginning or since `clear_log`, in the order in which they began to matter.
    pub fn log(&self) -> Vec<LogEntry> {
        self.state.script().log.clone()
    }

    pub fn clear_log(&self) {
        self.state.script().log.clear();
    }

    /// How many operations of these kinds the log holds: the number of points at which a sweep can fail.
    pub fn count(&self, ops: &[Op]) -> u64 {
        self.state.script().log.iter().filter(|entry| ops.contains(&entry.op)).count() as u64
    }

    fn hidden(&self) -> Option<Arc<Hide>> {
        self.state.script().hide.clone()
    }
}

impl State {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one operation under the rules. `spoil` is what bit flips and truncation do to its result.
    fn run<T>(
        &self,
        op: Op,
        object: &str,
        act: impl FnOnce() -> Result<T, StoreError>,
        spoil: impl FnOnce(T, Fault, u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let decision = self.script().decide(op);
        let injected = || StoreError::io(op.verb(), object, io::Error::other("injected fault"));
        let (result, outcome) = match decision {
            Decision::Dead => (Err(injected()), Outcome::Dead),
            Decision::Go => {
                let result = act();
                let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Refused };
                (result, outcome)
            }
            Decision::Inject(fault, random) => {
                let result = match fault {
                    Fault::Fail | Fault::CrashBefore => Err(injected()),
                    Fault::NoSpace => {
                        let source = io::ErrorKind::StorageFull.into();
                        Err(StoreError::NoSpace { object: object.to_owned(), source })
                    }
                    Fault::LoseReply | Fault::CrashAfter => act().and_then(|_| Err(injected())),
                    Fault::FlipBit | Fault::Truncate => act().and_then(|value| spoil(value, fault, random)),
                };
                (result, Outcome::Injected(fault))
            }
        };
        self.script().log.push(LogEntry { op, object: object.to_owned(), outcome });
        result
    }

    fn run_plain<T>(&self, op: Op, object: &str, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.run(op, object, act, |value, _, _| Ok(value))
    }
}

enum Decision {
    Go,
    Inject(Fault, u64),
    Dead,
}

impl Script {
    fn decide(&mut self, op: Op) -> Decision {
        if self.crashed {
            return Decision::Dead;
        }
        let mut due = None;
        for rule in self.rules.iter_mut().filter(|rule| rule.ops.contains(&op)) {
            rule.seen += 1;
            let hit = match rule.when {
                When::Nth(n) => rule.seen == n,
                When::From(n) => rule.seen >= n,
                When::PerThousand(chance) => next_random(&mut self.random) % 1000 < u64::from(chance),
            };
            due = due.or(hit.then_some(rule.fault));
        }
        match due {
            None => Decision::Go,
            Some(fault) => {
                self.crashed = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
                Decision::Inject(fault, next_random(&mut self.random))
            }
        }
    }
}

/// splitmix64
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A place in `len` items; None in none.
fn pick(random: u64, len: usize) -> Option<usize> {
    let place = random.checked_rem(len as u64)?;
    usize::try_from(place).ok()
}

fn flip_bit(bytes: &mut [u8], random: u64) {
    let place = pick(random >> 3, bytes.len());
    if let Some(byte) = place.and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1 << (random & 7);
    }
}

fn spoil_bytes(mut bytes: Vec<u8>, fault: Fault, random: u64) -> Result<Vec<u8>, StoreError> {
    match fault {
        Fault::Truncate => bytes.truncate(pick(random, bytes.len()).unwrap_or(0)),
        _ => flip_bit(&mut bytes, random),
    }
    Ok(bytes)
}

impl Store for FaultStore {
    forward_to_inner!(notices parity probe object_lock may_delete);

    fn put_new(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.state.run_plain(Op::PutNew, name.as_str(), || self.inner.put_new(name, bytes))
    }

    fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let inner = self.state.run_plain(Op::Create, name.as_str(), || self.inner.create(name))?;
        let state = Arc::clone(&self.state);
        Ok(Box::new(FaultWriter { inner: Some(inner), state, name: name.clone(), written: 0 }))
    }

    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        self.state.run(Op::Read, name.as_str(), || self.inner.read(name, max), spoil_bytes)
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let wanted = offset.saturating_add(buf.len() as u64);
        let read = || self.inner.read_at(name, offset, buf).map(|()| buf);
        let spoil = |buf, fault, random| match fault {
            Fault::Truncate => Err(StoreError::Truncated { object: name.to_string(), size: offset, wanted }),
            _ => {
                let buf: &mut [u8] = buf;
                flip_bit(buf, random);
                Ok(buf)
            }
        };
        self.state.run(Op::ReadAt, name.as_str(), read, spoil).map(|_| ())
    }

    fn stat(&self, name: &ObjectName) -> Result<ObjectStat, StoreError> {
        self.state.run_plain(Op::Stat, name.as_str(), || self.inner.stat(name))
    }

    fn list(&self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let hidden = self.hidden();
        let mut shown = |stat: ObjectStat| match &hidden {
            Some(hide) if hide(stat.name.as_str()) => Ok(()),
            _ => visit(stat),
        };
        self.state.run_plain(Op::List, prefix, || self.inner.list(prefix, &mut shown))
    }

    fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut dirs = self.state.run_plain(Op::ListDirs, prefix, || self.inner.list_dirs(prefix))?;
        if let Some(hide) = self.hidden() {
            dirs.retain(|dir| !hide(&if prefix.is_empty() { dir.clone() } else { format!("{prefix}/{dir}") }));
        }
        Ok(dirs)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.state.run_plain(Op::Delete, name.as_str(), || self.inner.delete(name))
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        self.state.run_plain(Op::FreeBytes, "", || self.inner.free_bytes())
    }

    fn space(&self) -> Result<Option<Space>, StoreError> {
        self.state.run_plain(Op::FreeBytes, "", || self.inner.space())
    }

    fn has_own_clock(&self) -> bool {
        self.inner.has_own_clock()
    }

    fn url(&self) -> String {
        self.inner.url()
    }

    fn may_archive(&self) -> bool {
        self.inner.may_archive()
    }

    fn sweep_abandoned(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.state.run_plain(Op::Sweep, "", || self.inner.sweep_abandoned(older_than))
    }

    fn weaknesses(&self) -> Vec<String> {
        self.inner.weaknesses()
    }
}

struct FaultWriter {
    /// None once finished, or spoiled by an injected fault.
    inner: Option<Box<dyn ObjectWriter>>,
    state: Arc<State>,
    name: ObjectName,
    written: u64,
}

impl FaultWriter {
    fn spoiled(&self, op: Op) -> StoreError {
        StoreError::io(op.verb(), &self.name, io::Error::other("an earlier write failed"))
    }

    /// A dead process tidies nothing up, a living one that has failed does.
    fn give_up(&mut self) {
        match self.inner.take() {
            Some(inner) if self.state.script().crashed => std::mem::forget(inner),
            other => drop(other),
        }
    }
}

impl ObjectWriter for FaultWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(mut inner) = self.inner.take() else { return Err(self.spoiled(Op::Write)) };
        let result = self.state.run_plain(Op::Write, self.name.as_str(), || inner.write(bytes));
        self.inner = Some(inner);
        match result {
            Ok(()) => self.written += bytes.len() as u64,
            Err(_) => self.give_up(),
        }
        result
    }

    fn written(&self) -> u64 {
        self.written
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        let Some(mut inner) = self.inner.take() else { return Err(self.spoiled(Op::Write)) };
        let result = self.state.run_plain(Op::Write, self.name.as_str(), || inner.settle());
        self.inner = Some(inner);
        if result.is_err() {
            self.give_up();
        }
        result
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let Some(inner) = self.inner.take() else { return Err(self.spoiled(Op::Finish)) };
        let mut waiting = Some(inner);
        let act = || waiting.take().map_or(Ok(()), ObjectWriter::finish);
        let result = self.state.run_plain(Op::Finish, self.name.as_str(), act);
        self.inner = waiting; // still there when the fault came first
        result
    }
}

impl Drop for FaultWriter {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests;
