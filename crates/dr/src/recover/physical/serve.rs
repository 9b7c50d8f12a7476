//! The recovered cluster at its address, by its own service; and proof that it is this one that answers.
//!
//! Invariant: who answers is known by its process, never by its address: another cluster, or another copy of this one, that answers
//! there is a failure, at any moment of a while.

use std::rc::Rc;
use std::time::{Duration, Instant};

use pgark_engine::cluster::Connection;
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::state::{Lies, state};
use serde_json::{Value, json};

use super::postmaster::{self, Running};
use super::{CONNECTS_WITHIN, MOMENT, Physical, Place, STOPS_WITHIN, conf};
use crate::recover::machine::{At, Failure, State, Step};
use crate::recover::repointing::LEADS_BACK;
use crate::recover::steps::SERVE;
use crate::service::State as ServiceState;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Who it is, whatever its address says.
const IDENTITY: &str = "SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_id, \
                        (SELECT timeline_id::text FROM pg_control_checkpoint()) AS timeline, \
                        pg_is_in_recovery() AS in_recovery, pg_backend_pid()::text AS backend, \
                        host(inet_server_addr()) AS address";

/// One that was cut off runs again: what runs is looked at, and not started twice.
pub struct Serve(pub Rc<Physical>);

impl Step for Serve {
    fn name(&self) -> &'static str {
        SERVE
    }

    fn what(&self) -> String {
        let server = &self.0.server;
        format!(
            "start {} within {} s, see it run for {} s, and that it is this cluster which answers",
            server.kind,
            server.start_within.as_secs_f32(),
            server.steady_for.as_secs_f32()
        )
    }

    fn deadline(&self) -> Duration {
        let server = &self.0.server;
        server.start_within * 2 + server.stop_within * 2 + server.steady_for + STOPS_WITHIN + MOMENT
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let dir = self.0.dir();
        if is_private(dir) || self.0.server.look(at.ctx).state != ServiceState::Running {
            postmaster::stop(dir, STOPS_WITHIN, at.ctx)?;
        }
        conf::close_door(dir)?;
        if !conf::is_held(dir)? {
            return Err(EngineError::failed(
                "E-RECOVER-ARCHIVING",
                format!("{} would archive: somebody has taken archive_command = '' out of its settings", dir.display()),
                "nothing was started; put it back, and go on by hand",
            ));
        }
        let nobody_else = &mut || self.nobody_else();
        let detail = match postmaster::running(dir) {
            Some(_) => self.0.server.stays_seeing(nobody_else, at.ctx)?.detail,
            None => self.0.server.start_seeing(None, nobody_else, at.ctx)?.seen.detail,
        };
        let mut facts = self.who(at.ctx)?;
        let told = facts.get("told").and_then(Value::as_str).unwrap_or_default();
        facts["told"] = format!("runs: {detail}; {told}").into();
        Ok(facts)
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        // Two that take writes are never left running.
        let leads_back = self.0.place == Place::New && LEADS_BACK.contains(&failure.step.as_str());
        leads_back || failure.step == SERVE
    }

    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        let proof = self.0.server.stop(at.ctx)?;
        postmaster::stop(self.0.dir(), STOPS_WITHIN, at.ctx)?;
        let left = match self.0.place {
            // Where it is was said when it was restored.
            Place::New => "the recovered cluster is stopped; it was found right".to_owned(),
            Place::Own => {
                format!("the recovered cluster is in {}, stopped; it was found right", self.0.dir().display())
            }
        };
        Ok(json!({"told": format!("the recovered cluster is stopped: {}", proof.seen.detail), "left": [left]}))
    }

    fn state(&self) -> State {
        match self.0.place {
            Place::Own => State::NotStarted,
            Place::New => State::Halted,
        }
    }
}

/// It was started with settings of ours.
fn is_private(dir: &std::path::Path) -> bool {
    std::fs::read_to_string(dir.join("postmaster.opts")).is_ok_and(|opts| opts.contains(conf::HBA))
}

/// What a session says of the server at its other end.
struct Answer {
    system_id: String,
    timeline: String,
    in_recovery: bool,
    /// The server's own process, if the one that answered runs on this host.
    server: Option<u32>,
    /// Where it listens; None for a socket in a directory.
    address: Option<String>,
}

impl Answer {
    /// Why it is not the cluster that works in the directory, as process `pid`.
    fn mistaken(&self, system_id: &str, pid: u32) -> Option<String> {
        let place = self.address.as_ref().map(|a| format!(" ({})", a.escape_debug())).unwrap_or_default();
        if self.system_id != system_id {
            let found = self.system_id.escape_debug();
            return Some(format!("another cluster answers at its address{place}: {found}, and not {system_id}"));
        }
        if self.server != Some(pid) {
            let who = match self.server {
                Some(other) => format!("process {other}, and not {pid}"),
                None => format!("one that does not run on this host, and not process {pid}"),
            };
            let timeline = self.timeline.escape_debug();
            return Some(format!(
                "another copy of this cluster answers at its address{place}: {who}; it is on timeline {timeline}"
            ));
        }
        self.in_recovery.then(|| "it is in recovery".to_owned())
    }
}

impl Serve {
    /// That it is the recovered cluster which answers at its address.
    fn who(&self, ctx: &Ctx) -> Result<Value> {
        let running = self.ready(ctx)?;
        if let Some(port) = self.0.port.filter(|port| running.port.is_some_and(|p| p != *port)) {
            return Err(other(&format!("it listens on port {}, and not on {port}", running.port.unwrap_or(0))));
        }
        let system_id = self.system_id()?;
        match self.ask() {
            Ok(answer) => {
                answer.mistaken(&system_id, running.pid).map_or(Ok(()), |why| Err(other(&why)))?;
                let timeline = answer.timeline;
                Ok(json!({"told": format!(
                    "process {}, system identifier {system_id}, timeline {timeline}",
                    running.pid
                )}))
            }
            // Whoever may not ask it knows its process.
            Err(e) => Ok(json!({
                "told": format!("process {}; it could not be asked: {e}", running.pid),
                "warnings": [format!("who answers at the address of the recovered cluster could not be asked: {e}")],
            })),
        }
    }

    /// The same while it is watched: it may not be that far yet, but nobody else answers.
    fn nobody_else(&self) -> Result<()> {
        let Some(running) = postmaster::running(self.0.dir()).filter(|running| running.ready) else { return Ok(()) };
        let Ok(answer) = self.ask() else { return Ok(()) };
        answer.mistaken(&self.system_id()?, running.pid).map_or(Ok(()), |why| Err(other(&why)))
    }

    /// As its directory has it.
    fn system_id(&self) -> Result<String> {
        match state(self.0.dir())? {
            Lies::Open { system_id, .. } => Ok(system_id.to_string()),
            _ => Err(other("its directory is not that of an open cluster")),
        }
    }

    /// The server in its directory, as soon as it takes connections.
    fn ready(&self, ctx: &Ctx) -> Result<Running> {
        let until = Instant::now() + self.0.server.start_within;
        loop {
            match postmaster::running(self.0.dir()) {
                Some(running) if running.ready => return Ok(running),
                _ if Instant::now() >= until => {
                    return Err(other("no server that takes connections works in its directory"));
                }
                _ => {}
            }
            ctx.check_cancelled()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn ask(&self) -> Result<Answer> {
        let conn = Connection::open(&self.0.new, CONNECTS_WITHIN)?;
        let row = conn.query_one(IDENTITY, &[])?;
        Ok(Answer {
            system_id: row.text("system_id")?.to_owned(),
            timeline: row.text("timeline")?.to_owned(),
            in_recovery: row.flag("in_recovery")?,
            // As long as the session is open, its process is there.
            server: row.text("backend")?.parse().ok().and_then(postmaster::parent),
            address: row.opt_text("address")?.map(str::to_owned),
        })
    }
}

fn other(why: &str) -> EngineError {
    EngineError::failed("E-RECOVER-SERVER", why, "look at its log, and at [clusters.NAME.recover]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_is_told_from_another_cluster_and_from_another_copy() {
        let own = || Answer {
            system_id: "7300".into(),
            timeline: "2".into(),
            in_recovery: false,
            server: Some(41),
            address: Some("10.0.0.7".into()),
        };
        assert_eq!(own().mistaken("7300", 41), None);
        let why = |answer: Answer| answer.mistaken("7300", 41).expect("it is not");
        let another = why(Answer { system_id: "7301".into(), ..own() });
        assert!(another.contains("another cluster answers") && another.contains("7301, and not 7300"), "{another}");
        // The old data directory, on this host and on another one: its system identifier is the same.
        let old = why(Answer { server: Some(17), timeline: "1".into(), ..own() });
        assert!(old.contains("process 17, and not 41") && old.contains("timeline 1"), "{old}");
        let far = why(Answer { server: None, ..own() });
        assert!(far.contains("does not run on this host") && far.contains("10.0.0.7"), "{far}");
        assert_eq!(why(Answer { in_recovery: true, ..own() }), "it is in recovery");
    }
}
