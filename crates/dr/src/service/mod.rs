//! Stopping and starting the application, and proving that it happened.
//!
//! What a service manager answers to "stop" is not believed: its state is asked for afterwards, again and again until the
//! deadline, and the ports that the application listens on have to be closed. What has started has to stay up for a while,
//! as one and the same process.

mod kind;

use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use serde::{Deserialize, Serialize};

use crate::program::{self, Ended};
pub use kind::{Kind, PgCtl};

/// How often the state is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// One question to the service manager.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// How long what was killed may take to be gone.
const DIES_WITHIN: Duration = Duration::from_secs(10);
const CONNECTS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Service {
    pub kind: Kind,
    pub stop_within: Duration,
    pub start_within: Duration,
    /// So long what has started must be seen running, as the same process.
    pub steady_for: Duration,
    /// Whether what does not stop may be killed.
    pub force: bool,
    /// Open while the application runs, closed when it does not.
    pub ports: Vec<SocketAddr>,
    /// Variables of the environment that its programs do not get.
    pub hidden: Vec<&'static str>,
    /// Where goes what the command says that starts it, and the application, if that is its child.
    pub start_log: PathBuf,
}

/// Looks at what has started, by other means than its service.
pub type See<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What was seen of a service at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub state: State,
    /// Changes with each start, where the service manager tells such a thing.
    pub identity: Option<String>,
    /// How many there are to be, where that is how it is stopped.
    pub replicas: Option<u32>,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// On its way up or down, or restarted again and again.
    Changing,
    Stopped,
    /// The service manager gave no answer that can be read.
    Unknown,
}

impl Seen {
    fn unknown(detail: impl Into<String>) -> Seen {
        Seen { state: State::Unknown, identity: None, replicas: None, detail: detail.into() }
    }
}

/// What was done and what was seen afterwards; goes into the journal and the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof {
    pub commands: Vec<String>,
    pub seen: Seen,
    pub closed: Vec<SocketAddr>,
    pub open: Vec<SocketAddr>,
    pub took_ms: u64,
    pub forced: bool,
}

impl Service {
    /// What it is now. The ports are not asked.
    pub fn look(&self, ctx: &Ctx) -> Seen {
        let argv = self.kind.status();
        let ended = program::run(&argv, &self.hidden, ANSWERS_WITHIN, ctx);
        let seen = self.kind.judge(&ended);
        match (&self.kind, seen.state) {
            (Kind::Kubernetes { .. }, State::Stopped) => self.without_pods(seen, &ended, ctx),
            _ => seen,
        }
    }

    /// Pods that are told to end work on until they have ended.
    fn without_pods(&self, seen: Seen, answer: &Ended, ctx: &Ctx) -> Seen {
        let Some(argv) = self.kind.pods(answer) else {
            return Seen {
                state: State::Unknown,
                detail: format!("{}; it does not say which pods are its", seen.detail),
                ..seen
            };
        };
        let listed = program::run(&argv, &self.hidden, ANSWERS_WITHIN, ctx);
        match kind::pods_there(&listed).filter(|_| listed.succeeded()) {
            Some(0) => seen,
            Some(n) => {
                Seen { state: State::Changing, detail: format!("{}, {n} pods have not ended", seen.detail), ..seen }
            }
            None => Seen {
                state: State::Unknown,
                detail: format!("{}; its pods cannot be listed ({})", seen.detail, listed.told()),
                ..seen
            },
        }
    }

    /// Stops it, and returns when it is proved to be stopped. On an error it may be running still.
    pub fn stop(&self, ctx: &Ctx) -> Result<Proof> {
        let began = Instant::now();
        let mut commands = vec![self.command(&self.kind.stop(self.stop_within, self.force), self.stop_within, ctx)?];
        let (mut seen, mut open) =
            self.until(began + self.stop_within, ctx, |seen, open| seen.state == State::Stopped && open.is_empty())?;
        let mut forced = false;
        if (seen.state != State::Stopped || !open.is_empty()) && self.force {
            let Some(kill) = self.kind.kill(&seen) else {
                return Err(self.not_stopped(&seen, &open, &commands, "and there is no command that would force it"));
            };
            forced = true;
            commands.push(self.command(&kill, DIES_WITHIN, ctx)?);
            (seen, open) = self.until(Instant::now() + DIES_WITHIN, ctx, |seen, open| {
                seen.state == State::Stopped && open.is_empty()
            })?;
        }
        if seen.state != State::Stopped || !open.is_empty() {
            return Err(self.not_stopped(&seen, &open, &commands, ""));
        }
        Ok(Proof { commands, seen, closed: self.ports.clone(), open, took_ms: millis(began.elapsed()), forced })
    }

    /// Starts it, and returns when it has been running for a while. `before` is what was seen before it was stopped.
    pub fn start(&self, before: Option<&Seen>, ctx: &Ctx) -> Result<Proof> {
        self.start_seeing(before, &mut || Ok(()), ctx)
    }

    /// The same; as long as it is watched, `see` is asked again and again, and its first failure is that of the start.
    pub fn start_seeing(&self, before: Option<&Seen>, see: See<'_>, ctx: &Ctx) -> Result<Proof> {
        self.come_up(&self.kind.start(before), see, ctx)
    }

    /// The same for one that may be running, and then is to begin anew.
    pub fn restart(&self, before: Option<&Seen>, ctx: &Ctx) -> Result<Proof> {
        match self.kind.restart() {
            Some(argv) => self.come_up(&argv, &mut || Ok(()), ctx),
            None => self.stop(ctx).and_then(|_| self.start(before, ctx)),
        }
    }

    fn come_up(&self, argv: &[String], see: See<'_>, ctx: &Ctx) -> Result<Proof> {
        let began = Instant::now();
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.start_log);
        let log = log.map_err(|e| EngineError::file("opening", &self.start_log, e))?;
        let ended = program::run_and_leave(argv, &self.hidden, self.start_within, log, ctx);
        let commands = vec![self.told(argv, &ended, ctx)?];
        let (seen, open) = self.until(began + self.start_within, ctx, |seen, open| self.is_up(seen, open))?;
        if !self.is_up(&seen, &open) {
            return Err(self.not_started(&seen, &open, &commands, "does not run"));
        }
        let (seen, open) = self.watch(seen.identity, &commands, see, ctx)?;
        let took_ms = millis(began.elapsed());
        Ok(Proof { commands, seen, closed: vec![], open, took_ms, forced: false })
    }

    /// That what runs keeps running, as it has to after a start that nobody saw the end of.
    pub fn stays(&self, ctx: &Ctx) -> Result<Seen> {
        self.stays_seeing(&mut || Ok(()), ctx)
    }

    /// The same, with `see` as for `start_seeing`.
    pub fn stays_seeing(&self, see: See<'_>, ctx: &Ctx) -> Result<Seen> {
        let seen = self.look(ctx);
        self.watch(seen.identity, &[], see, ctx).map(|(seen, _)| seen)
    }

    /// Sees it running for a while, as one and the same process.
    fn watch(
        &self,
        first: Option<String>,
        commands: &[String],
        see: See<'_>,
        ctx: &Ctx,
    ) -> Result<(Seen, Vec<SocketAddr>)> {
        let until = Instant::now() + self.steady_for;
        loop {
            let (seen, open) = (self.look(ctx), self.open_ports());
            if !self.is_up(&seen, &open) {
                return Err(self.not_started(&seen, &open, commands, "did not stay up"));
            }
            if seen.identity != first {
                let was = first.as_deref().unwrap_or("?");
                let why = format!("was restarted meanwhile ({was} before)");
                return Err(self.not_started(&seen, &open, commands, &why));
            }
            see()?;
            if Instant::now() >= until {
                return Ok((seen, open));
            }
            ctx.check_cancelled()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn is_up(&self, seen: &Seen, open: &[SocketAddr]) -> bool {
        seen.state == State::Running && open.len() == self.ports.len()
    }

    /// Looks until it is so, or the time has come; what was seen last.
    fn until(
        &self,
        until: Instant,
        ctx: &Ctx,
        so: impl Fn(&Seen, &[SocketAddr]) -> bool,
    ) -> Result<(Seen, Vec<SocketAddr>)> {
        loop {
            let (seen, open) = (self.look(ctx), self.open_ports());
            if so(&seen, &open) || Instant::now() >= until {
                return Ok((seen, open));
            }
            ctx.check_cancelled()?;
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Its exit code is told and not believed, but for a program that is not there.
    fn command(&self, argv: &[String], within: Duration, ctx: &Ctx) -> Result<String> {
        self.told(argv, &program::run(argv, &self.hidden, within, ctx), ctx)
    }

    fn told(&self, argv: &[String], ended: &Ended, ctx: &Ctx) -> Result<String> {
        ctx.check_cancelled()?;
        if let program::How::NotStarted(why) = &ended.how {
            return Err(EngineError::failed(
                "E-SERVICE-COMMAND",
                format!("the command for {} was not started: {why}", self.kind),
                "look at [clusters.NAME.recover.service]",
            ));
        }
        // Arguments may hold secrets, and this goes into reports.
        let program = argv.first().map_or("?", |p| p.rsplit('/').next().unwrap_or(p));
        Ok(format!("{program}: {}", ended.told()))
    }

    fn open_ports(&self) -> Vec<SocketAddr> {
        let open = |at: &&SocketAddr| TcpStream::connect_timeout(at, CONNECTS_WITHIN).is_ok();
        self.ports.iter().filter(open).copied().collect()
    }

    fn not_stopped(&self, seen: &Seen, open: &[SocketAddr], commands: &[String], why: &str) -> EngineError {
        EngineError::failed(
            "E-SERVICE-STOP",
            format!(
                "{} is not stopped after {} s: {}{}; {} {why}",
                self.kind,
                self.stop_within.as_secs_f32(),
                seen.detail,
                listens(open),
                commands.join("; ")
            )
            .trim_end()
            .to_owned(),
            match self.force {
                false => "stop it by hand and go on, or allow force = true in [clusters.NAME.recover.service]",
                true => "stop it by hand and go on; what forces it is kill in [clusters.NAME.recover.service]",
            },
        )
    }

    fn not_started(&self, seen: &Seen, open: &[SocketAddr], commands: &[String], what: &str) -> EngineError {
        let closed: Vec<_> = self.ports.iter().filter(|p| !open.contains(p)).map(ToString::to_string).collect();
        let closed =
            if closed.is_empty() { String::new() } else { format!(", nobody listens on {}", closed.join(", ")) };
        EngineError::failed(
            "E-SERVICE-START",
            format!("{} {what}: {}{closed}; {}", self.kind, seen.detail, commands.join("; ")),
            format!("look at its own log, and at {}", self.start_log.display()),
        )
    }
}

fn listens(open: &[SocketAddr]) -> String {
    if open.is_empty() {
        return String::new();
    }
    format!(", somebody listens on {}", open.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Of a command that ended badly, why.
fn no_answer(ended: &Ended) -> Seen {
    Seen::unknown(format!("no answer ({})", ended.told()))
}

#[cfg(test)]
mod tests;
