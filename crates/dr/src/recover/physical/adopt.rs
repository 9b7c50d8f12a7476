//! The recovered cluster takes the place of the other one in the archive: only when that one is proved to be stopped.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgark_engine::error::{EngineError, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{MOMENT, Physical, Place, conf, fact, postmaster};
use crate::recover::application::list;
use crate::recover::machine::{At, Failure, State, Step};
use crate::recover::report::ARCHIVES;
use crate::recover::steps::{ADOPT, REPLAY};
use crate::service::State as ServiceState;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Doing it once more does no harm.
pub struct Adopt(pub Rc<Physical>);

/// What `pg_wal/archive_status` says of the timeline that began with the promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Archiving {
    /// Nothing waits, and nothing of it was archived: it is not configured.
    Off,
    Waits,
    Done,
}

impl Step for Adopt {
    fn name(&self) -> &'static str {
        ADOPT
    }

    fn what(&self) -> String {
        match (self.0.place, &self.0.fence) {
            (Place::New, None) => {
                "leave archiving off: no fence is configured, so that nothing proves the one that is replaced stopped"
                    .into()
            }
            _ => {
                "archive again, on the new timeline, when the one that is replaced is still proved to be stopped".into()
            }
        }
    }

    fn deadline(&self) -> Duration {
        self.0.archive_within + MOMENT
    }

    /// The service is back, whatever becomes of the archive: what fails here is told, loudly.
    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        match self.adopt(at) {
            Err(EngineError::Cancelled) => Err(EngineError::Cancelled),
            Err(e) => {
                let told = format!("ARCHIVING IS OFF: {} {e}", e.code());
                at.ctx.progress.note(&told);
                Ok(json!({"told": told, "warnings": [told]}))
            }
            adopted => adopted,
        }
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        failure.is_abandoned() && failure.step == ADOPT
    }

    /// The service is back, and nothing of that is changed: only how it is is told.
    fn undo(&mut self, _: &At<'_>) -> Result<Value> {
        let archives = !conf::is_held(self.0.dir())?;
        let told = if archives { "archiving had been switched on, and stays so" } else { "archiving stays off" };
        Ok(
            json!({"told": told, ARCHIVES: archives, "left": list(archives.then(|| "the recovered cluster archives".to_owned()))}),
        )
    }

    fn state(&self) -> State {
        State::Restored
    }
}

impl Adopt {
    fn adopt(&self, at: &At<'_>) -> Result<Value> {
        let dir = self.0.dir();
        let history = history(at);
        if archiving(dir, history.as_deref()) == Archiving::Off {
            let told = "it archives nothing: archive_mode is off in it";
            return Ok(json!({"told": told, "warnings": [told]}));
        }
        if let Some(why) = self.not_alone(at) {
            let told = format!("ARCHIVING IS OFF: {why}");
            at.ctx.progress.note(&told);
            let how = how(dir, self.0.place);
            return Ok(json!({"told": told, "warnings": [told], "left": [how]}));
        }
        conf::release(dir)?;
        self.reload(dir)?;
        let until = Instant::now() + self.0.archive_within;
        loop {
            match archiving(dir, history.as_deref()) {
                Archiving::Done => {
                    return Ok(
                        json!({"told": "it archives: the history of its timeline is in the archive", "left": self.left()}),
                    );
                }
                _ if Instant::now() >= until => break,
                _ => {}
            }
            at.ctx.check_cancelled()?;
            std::thread::sleep(LOOK_EVERY);
        }
        let told = format!(
            "archiving is on, and after {} s nothing of the new timeline was archived",
            self.0.archive_within.as_secs_f32()
        );
        Ok(
            json!({"told": told, "warnings": [format!("{told}: look at the server's log, and at archive_command")], "left": self.left()}),
        )
    }

    /// Why the other one may be writing, too.
    fn not_alone(&self, at: &At<'_>) -> Option<String> {
        if self.0.place == Place::Own {
            return None;
        }
        let Some(fence) = &self.0.fence else {
            return Some("no fence is configured: nothing proves that the server that was replaced is stopped".into());
        };
        if !self.0.is_fenced(at) {
            return Some("the server that was replaced was not proved to be stopped".into());
        }
        let seen = fence.look(at.ctx);
        (seen.state != ServiceState::Stopped)
            .then(|| format!("the server that was replaced is not stopped any more: {}", seen.detail))
    }

    fn reload(&self, dir: &Path) -> Result<()> {
        let running = postmaster::running(dir);
        let pid = running.and_then(|r| i32::try_from(r.pid).ok()).and_then(Pid::from_raw);
        let gone = || EngineError::failed("E-RECOVER-SERVER", "the recovered server is gone", "look at its log");
        kill_process(pid.ok_or_else(gone)?, Signal::HUP).map_err(|_| gone())
    }

    /// What the settings of pgark itself still say.
    fn left(&self) -> Vec<String> {
        let dir = self.0.dir().display();
        match self.0.place {
            Place::Own => vec![],
            Place::New => vec![format!(
                "pgark.toml still names the server that was replaced: set pgdata = \"{dir}\" and the new host and port, and take a full backup"
            )],
        }
    }
}

/// How archiving is switched on by hand.
fn how(dir: &Path, place: Place) -> String {
    let when = match place {
        Place::New => "when the old one is stopped for good",
        // There is no other one.
        Place::Own => "when it runs",
    };
    format!(
        "the recovered cluster archives nothing, and its WAL piles up in {}: {when}, 'ALTER SYSTEM RESET archive_command', 'ALTER SYSTEM RESET archive_library' and 'SELECT pg_reload_conf()' in it",
        dir.join("pg_wal").display()
    )
}

/// The same of a cluster that would archive, and is kept from it until it is adopted.
pub fn held(dir: &Path, place: Place, timeline: u32) -> Option<String> {
    (archiving(dir, Some(history_of(timeline).as_str())) != Archiving::Off).then(|| how(dir, place))
}

/// The file that the promotion wrote.
fn history(at: &At<'_>) -> Option<String> {
    fact(at, REPLAY, "timeline")?.as_str()?.parse().ok().map(history_of)
}

fn history_of(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

fn archiving(dir: &Path, history: Option<&str>) -> Archiving {
    let status = dir.join("pg_wal/archive_status");
    let is = |ending: &str| history.is_some_and(|name| status.join(format!("{name}{ending}")).exists());
    let waits = || {
        fs::read_dir(&status)
            .is_ok_and(|all| all.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".ready")))
    };
    match (is(".ready"), is(".done")) {
        (true, _) => Archiving::Waits,
        (_, true) => Archiving::Done,
        _ if waits() => Archiving::Waits,
        _ => Archiving::Off,
    }
}
