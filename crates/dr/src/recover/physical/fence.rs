//! The server that is replaced: stopped and proved stopped, its last WAL saved, its directory put aside.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pgark_engine::archive::push::{Damaged, PushOptions, push_to_all};
use pgark_engine::archive::salvage::leftovers;
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::branch::Position;
use pgark_engine::several::Member;
use pgark_repo::codec::{Compression, Recheck, WalEncoding};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ground::{places, works_in};
use super::{MOMENT, Physical, Place, STOPS_WITHIN, before_it_was_right, branch, fact, postmaster, ran};
use crate::recover::application::seen_first;
use crate::recover::machine::{At, Effect, Failure, State, Step};
use crate::recover::repointing::LEADS_BACK;
use crate::recover::steps::{ANSWERS_WITHIN, ASIDE, FENCE, PREFLIGHT, SALVAGE, SERVE};
use crate::service::{Service, State as ServiceState};

/// Stops the server that is replaced, and proves it by its service manager, its processes and its address. Doing so once more does no
/// harm.
pub struct Fence(pub Rc<Physical>);

impl Fence {
    fn service(&self) -> &Service {
        self.0.fence.as_ref().unwrap_or(&self.0.server)
    }

    /// What speaks against its being stopped, whatever its service manager says.
    fn lives(&self) -> Option<String> {
        if let Some(pid) = self.0.old_data.as_deref().and_then(works_in) {
            return Some(format!("process {pid} works in its data directory"));
        }
        postmaster::listens(&self.0.old, ANSWERS_WITHIN).then(|| "somebody listens at its address".into())
    }

    fn stop(&self, at: &At<'_>) -> Result<String> {
        let proof = self.service().stop(at.ctx)?;
        if let Some(why) = self.lives() {
            return Err(EngineError::failed(
                "E-RECOVER-FENCE",
                format!("{} says that it is stopped ({}), and {why}", self.service().kind, proof.seen.detail),
                "stop it by hand, and begin again",
            ));
        }
        let how = if proof.forced { "killed" } else { "stopped" };
        Ok(format!("{how}: {}; nobody works in its directory, nobody listens at its address", proof.seen.detail))
    }
}

impl Step for Fence {
    fn name(&self) -> &'static str {
        FENCE
    }

    fn what(&self) -> String {
        let service = self.service();
        let or = match (self.0.place, self.0.fence_required) {
            (Place::New, false) => "; if that fails, go on, and archive nothing",
            _ => "",
        };
        format!(
            "stop the server that is replaced, {}, within {} s, and prove it{or}",
            service.kind,
            service.stop_within.as_secs_f32()
        )
    }

    fn deadline(&self) -> Duration {
        let service = self.service();
        service.stop_within * 2 + service.start_within + service.steady_for + MOMENT
    }

    fn before(&mut self, at: &At<'_>) -> Result<Value> {
        Ok(json!({"seen": self.service().look(at.ctx)}))
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let required = self.0.place == Place::Own || self.0.fence_required;
        match self.stop(at) {
            Ok(told) => Ok(json!({"told": told, "fenced": true})),
            Err(EngineError::Cancelled) => Err(EngineError::Cancelled),
            Err(e) if required => Err(e),
            Err(e) => {
                let told = format!("the server that is replaced is NOT proved to be stopped: {e}");
                at.ctx.progress.note(&told);
                Ok(json!({"told": told, "fenced": false, "warnings": [told]}))
            }
        }
    }

    fn lost(&mut self, at: &At<'_>) -> Result<Option<String>> {
        // In its own place, what runs from then on is the recovered one.
        let own = self.0.place == Place::Own && at.lines.iter().any(|l| l.event.step() == Some(SERVE));
        if own || !self.0.is_fenced(at) {
            return Ok(None);
        }
        let seen = self.service().look(at.ctx);
        Ok((seen.state != ServiceState::Stopped).then(|| format!("it is not stopped any more: {}", seen.detail)))
    }

    fn goes_back(&self, failure: &Failure, done: bool) -> bool {
        // Whether it was stopped is not known.
        if !done {
            return failure.is_abandoned() && failure.step == FENCE;
        }
        match self.0.place {
            Place::Own => before_it_was_right(failure),
            Place::New => self.0.restart_old && LEADS_BACK.contains(&failure.step.as_str()),
        }
    }

    /// Starts it again, when it ran before.
    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        let before = seen_first(at.lines, FENCE);
        let answered = fact(at, PREFLIGHT, "old_answers").and_then(Value::as_bool) == Some(true);
        if !ran(before.as_ref()) || (self.0.place == Place::New && !answered) {
            return Ok(json!({"told": "it did not run before, or did not answer: it is not started"}));
        }
        let now = self.service().look(at.ctx);
        if now.state == ServiceState::Running {
            return Ok(json!({"told": format!("it runs: {}", now.detail)}));
        }
        let proof = self.service().start(before.as_ref(), at.ctx)?;
        Ok(json!({"told": format!("it runs again: {}", proof.seen.detail),
            "left": ["the server that was to be replaced runs again, as it was"]}))
    }

    fn state(&self) -> State {
        State::NotStopped
    }
}

/// Brings into the repositories what WAL the server left that is replaced; what is there already, not twice.
pub struct Salvage(pub Rc<Physical>);

impl Salvage {
    fn push(&self, path: &Path, members: &[Member]) -> Result<()> {
        let options = PushOptions {
            path,
            encoding: WalEncoding { compression: Compression::DEFAULT, recheck: Recheck::Yes },
            damaged: Damaged::Refuse,
            jobs: self.0.options.jobs,
            ahead: None,
        };
        push_to_all(members, &self.0.options.cluster, &options, None).map(drop)
    }

    fn out_of_spool(&self, members: &[Member], found: &mut Found) {
        let Some(spool) = &self.0.spool else { return };
        match spool.drain(&mut |path| self.push(path, members)) {
            Ok(n) => found.pushed += n,
            Err(e) => found.failed(format!("WAL stays in the spool {}: {e}", spool.dir.display())),
        }
    }

    fn out_of_wal(&self, data: &Path, members: &[Member], found: &mut Found, ctx: &Ctx) -> Result<()> {
        if let Some(pid) = works_in(data) {
            found.failed(format!(
                "the server that is replaced still runs (process {pid}): what it writes now is not in it"
            ));
            return Ok(());
        }
        let left = match leftovers(&data.join("pg_wal")) {
            Ok(left) => left,
            Err(e) => {
                found.failed(format!("WAL of the server that is replaced cannot be read: {e}"));
                return Ok(());
            }
        };
        match branch::stopped_at(data, &left) {
            Ok(position) => found.server = Some(position),
            Err(e) => found.failed(format!("on which timeline the replaced server was is not known: {e}")),
        }
        for path in left.ready.iter().chain(&left.unfinished) {
            ctx.check_cancelled()?;
            match self.push(path, members) {
                Ok(()) => found.pushed += 1,
                Err(e) => found.failed(format!("{} is not in the archive: {}: {e}", path.display(), e.code())),
            }
        }
        found.read = true;
        Ok(())
    }
}

#[derive(Default)]
struct Found {
    pushed: u64,
    /// The server is stopped, and its WAL was looked through.
    read: bool,
    /// Where it stood then.
    server: Option<Position>,
    warnings: Vec<String>,
}

impl Found {
    fn failed(&mut self, why: String) {
        self.warnings.push(why);
    }
}

impl Step for Salvage {
    fn name(&self) -> &'static str {
        SALVAGE
    }

    fn what(&self) -> String {
        "archive the WAL that is on this host alone, as far as it can be read".into()
    }

    fn deadline(&self) -> Duration {
        self.0.restore_within
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let members: Vec<Member> = self.0.sources.members().into_iter().map(|(_, member)| member).collect();
        let mut found = Found::default();
        self.out_of_spool(&members, &mut found);
        if let Some(data) = &self.0.old_data {
            self.out_of_wal(data, &members, &mut found, at.ctx)?;
        }
        // Only of one that was shown to be stopped nothing is missing behind the end.
        let complete = found.read && found.warnings.is_empty() && self.0.is_fenced(at);
        let all = if complete { ", which is all there was" } else { "" };
        let told = format!("{} files of WAL that waited here are archived{all}", found.pushed);
        Ok(json!({"told": told, "complete": complete, "server": found.server, "warnings": found.warnings}))
    }

    fn state(&self) -> State {
        State::Halted
    }
}

/// Gives the data directory and its tablespaces another name, under which they stay.
pub struct Aside(pub Rc<Physical>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Moved {
    from: PathBuf,
    to: PathBuf,
    /// Where what was restored goes when the old one comes back.
    failed: PathBuf,
}

fn beside(path: &Path, word: &str, id: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".pgark-{word}-{id}"));
    path.with_file_name(name)
}

fn moved(before: &Value) -> Vec<Moved> {
    serde_json::from_value(before.get("moved").cloned().unwrap_or_default()).unwrap_or_default()
}

/// Never over something that is there.
fn rename(from: &Path, to: &Path) -> Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(|e| EngineError::file("renaming", from, e))?;
    let above = to.parent().unwrap_or(Path::new("/"));
    File::open(above).and_then(|d| d.sync_all()).map_err(|e| EngineError::file("syncing", above, e))
}

fn is_there(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(EngineError::file("looking at", path, e)),
    }
}

impl Step for Aside {
    fn name(&self) -> &'static str {
        ASIDE
    }

    fn what(&self) -> String {
        let data = self.0.dir();
        let aside = beside(data, "before", &self.0.recovery.opening.id);
        format!("rename {} to {}, where it stays", data.display(), aside.display())
    }

    fn deadline(&self) -> Duration {
        MOMENT
    }

    fn before(&mut self, _: &At<'_>) -> Result<Value> {
        let id = &self.0.recovery.opening.id;
        let of = |from: PathBuf| Moved { to: beside(&from, "before", id), failed: beside(&from, "failed", id), from };
        let all: Vec<Moved> = places(self.0.dir())?.into_iter().map(of).collect();
        Ok(json!({"moved": all}))
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        // The last look before anything of it changes.
        if let Some(pid) = works_in(self.0.dir()) {
            return Err(EngineError::failed(
                "E-RECOVER-FENCE",
                format!("process {pid} works in {}: somebody started the server again", self.0.dir().display()),
                "see what starts it, and begin again; nothing of it was changed",
            ));
        }
        let all = moved(at.before);
        // The data directory goes first, and comes back last: without it nothing starts there.
        for one in &all {
            rename(&one.from, &one.to)?;
        }
        let left: Vec<String> = all
            .iter()
            .map(|m| {
                format!(
                    "what was in {} before is in {}; remove it when nothing of it is needed any more",
                    m.from.display(),
                    m.to.display()
                )
            })
            .collect();
        Ok(json!({"told": format!("{} directories have another name", all.len()), "left": left}))
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        let (all, mut gone) = (moved(at.before), 0);
        for one in &all {
            gone += usize::from(is_there(&one.to)?);
        }
        Ok(match gone {
            n if n == all.len() => match acted {
                Some(facts) => Effect::Took(facts.clone()),
                None => Effect::Took(json!({"told": "they have another name since before this was gone on with",
                    "left": all.iter().map(|m| format!("what was in {} before is in {}", m.from.display(), m.to.display())).collect::<Vec<_>>()})),
            },
            0 => Effect::None,
            _ => Effect::Partly,
        })
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        before_it_was_right(failure)
    }

    /// What was restored gives way, and stays under a name of its own.
    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        postmaster::stop(self.0.dir(), STOPS_WITHIN, at.ctx)?;
        let mut left = vec![];
        for one in moved(at.before).into_iter().rev() {
            if !is_there(&one.to)? {
                continue;
            }
            if is_there(&one.from)? {
                rename(&one.from, &one.failed)?;
            }
            rename(&one.to, &one.from)?;
        }
        for one in moved(at.before) {
            if is_there(&one.failed)? {
                left.push(format!(
                    "what was restored, and is not used, is in {}: to be looked at, and removed",
                    one.failed.display()
                ));
            }
        }
        Ok(json!({"told": format!("{} is what it was", self.0.dir().display()), "left": left}))
    }

    fn state(&self) -> State {
        State::Halted
    }
}
