//! The recovered cluster at its address, by its own service; and proof that it is this one that answers.

use std::rc::Rc;
use std::time::{Duration, Instant};

use pgark_engine::cluster::Connection;
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::state::{Lies, state};
use serde_json::{Value, json};

use super::{CONNECTS_WITHIN, MOMENT, Physical, Place, STOPS_WITHIN, conf, postmaster};
use crate::recover::machine::{At, Failure, State, Step};
use crate::recover::repointing::LEADS_BACK;
use crate::recover::steps::SERVE;
use crate::service::State as ServiceState;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Who it is, whatever its address says.
const IDENTITY: &str = "SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_id, \
                        (SELECT timeline_id::text FROM pg_control_checkpoint()) AS timeline, \
                        pg_is_in_recovery() AS in_recovery";

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
        let detail = match postmaster::running(dir) {
            Some(_) => self.0.server.stays(at.ctx)?.detail,
            None => self.0.server.start(None, at.ctx)?.seen.detail,
        };
        let who = self.who(at.ctx)?;
        Ok(json!({"told": format!("runs: {detail}; {who}")}))
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

impl Serve {
    /// That it is the recovered cluster which answers at its address.
    fn who(&self, ctx: &Ctx) -> Result<String> {
        let dir = self.0.dir();
        let until = Instant::now() + self.0.server.start_within;
        let running = loop {
            match postmaster::running(dir) {
                Some(running) if running.ready => break running,
                _ if Instant::now() >= until => {
                    return Err(other("no server that takes connections works in its directory"));
                }
                _ => {}
            }
            ctx.check_cancelled()?;
            std::thread::sleep(LOOK_EVERY);
        };
        if let Some(port) = self.0.port.filter(|port| running.port.is_some_and(|p| p != *port)) {
            return Err(other(&format!("it listens on port {}, and not on {port}", running.port.unwrap_or(0))));
        }
        let Lies::Open { system_id, .. } = state(dir)? else {
            return Err(other("its directory is not that of an open cluster"));
        };
        let answer = Connection::open(&self.0.new, CONNECTS_WITHIN).and_then(|conn| {
            let row = conn.query_one(IDENTITY, &[])?;
            Ok((row.text("system_id")?.to_owned(), row.text("timeline")?.to_owned(), row.flag("in_recovery")?))
        });
        match answer {
            Ok((id, ..)) if id != system_id.to_string() => {
                Err(other(&format!("another cluster answers at its address: {id}, and not {system_id}")))
            }
            Ok((.., true)) => Err(other("it is in recovery")),
            Ok((_, timeline, _)) => {
                Ok(format!("process {}, system identifier {system_id}, timeline {timeline}", running.pid))
            }
            // Whoever may not ask it knows its process.
            Err(e) => Ok(format!("process {}; it could not be asked: {e}", running.pid)),
        }
    }
}

fn other(why: &str) -> EngineError {
    EngineError::failed("E-RECOVER-SERVER", why, "look at its log, and at [clusters.NAME.recover]")
}
