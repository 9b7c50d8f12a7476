//! Starting jobs, watching them, ending them.
//!
//! One thread takes turns. Everything it needs to go on after it was killed is in the database and in the directories of the
//! jobs; the processes of jobs do not end with the server.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::child::{self, Claim};
use super::{Job, JobState, Lane, Process, handed};
use crate::serve::Shared;
use crate::state::{Outcome, Result, State, write_job};

/// After a polite signal; backups that were told to stop remove nothing and are quick.
const KILLED_AFTER: SignedDuration = SignedDuration::from_secs(120);
/// Before the second try; twice as long before each further one.
const RETRY_AFTER: Duration = Duration::from_secs(60);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// This program, as it is to be run for jobs.
#[derive(Clone, Debug)]
pub struct Program {
    pub binary: PathBuf,
    /// Where what the settings do not hold is: secrets, and files that the command line named.
    pub words: Vec<String>,
    /// What is in force when it starts is what it goes by.
    pub settings: Shared,
}

impl Program {
    /// Without a terminal, in a process group of its own, so that what is sent to the server does not reach it.
    ///
    /// # Errors
    /// When there is no room for another open file.
    pub fn command(&self, words: &[String]) -> std::io::Result<Command> {
        let mut command = Command::new(&self.binary);
        command.args(words).args(&self.words).arg("--json").process_group(0);
        match &self.settings.get().handed {
            Some(handed) => command.arg(handed::FLAG).stdin(handed.stdin()?),
            None => command.stdin(Stdio::null()),
        };
        // A PostgreSQL that a job starts would tell our service manager that it is ready.
        for name in crate::notify::VARIABLES {
            command.env_remove(name);
        }
        Ok(command)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct RunnerOptions {
    /// At the same time.
    pub running_max: usize,
}

pub struct Runner {
    state: State,
    program: Program,
    options: RunnerOptions,
    /// Those that this server started; others are watched by their number.
    children: HashMap<String, Child>,
    /// When each was told to end.
    told: HashMap<String, Timestamp>,
}

impl Runner {
    /// Takes over what an earlier server left: processes that still run are watched on, jobs that never got one are over.
    pub fn take_over(state: State, program: Program, options: RunnerOptions, now: Timestamp) -> Result<Runner> {
        let runner = Runner { state, program, options, children: HashMap::new(), told: HashMap::new() };
        for job in runner.state.open_jobs()?.iter().filter(|j| j.state == JobState::Running) {
            let dir = runner.state.job_dir(&job.id);
            match child::claim(&dir, &Claim::Revoked) {
                Ok(Some(Claim::Process(process))) => runner.state.job_has_process(&job.id, &process)?,
                Ok(None | Some(Claim::Revoked)) => {
                    runner.ends(job, interrupted("the server ended before the job had begun"), now, now)?;
                }
                // Of a job that an older version had only just written down.
                Err(e) if e.kind() == ErrorKind::NotFound && job.process.is_none() => {
                    runner.ends(job, interrupted("the server ended before the job had begun"), now, now)?;
                }
                Err(e) => {
                    let why = format!("the directory of the job cannot be used: {e}");
                    runner.ends(job, interrupted(&why), now, now)?;
                }
            }
        }
        Ok(runner)
    }

    /// Looks after every job that is not over. Gives how many run.
    pub fn turn(&mut self, may_start: bool, now: Timestamp) -> Result<usize> {
        for id in self.state.end_unapproved(now)? {
            tracing::warn!(target: "pgark", job = %id, "nobody approved the job in time");
        }
        let open = self.state.open_jobs()?;
        let mut busy: HashSet<(String, Lane)> = HashSet::new();
        let mut running = 0;
        for job in open.iter().filter(|j| j.state == JobState::Running) {
            if self.look_after(job, now)? {
                running += 1;
                busy.insert((job.cluster.clone(), job.request.lane()));
            }
        }
        for job in open.iter().filter(|j| may_start && j.state == JobState::Queued && j.not_before <= now) {
            let lane = job.request.lane();
            let has_place = lane == Lane::Prompt || running < self.options.running_max;
            if has_place && busy.insert((job.cluster.clone(), lane)) {
                running += usize::from(self.start(job, now)?);
            }
        }
        Ok(running)
    }

    /// Whether it still runs.
    fn look_after(&mut self, job: &Job, now: Timestamp) -> Result<bool> {
        if let Some((outcome, at)) = self.outcome(job, now) {
            // In this order: what cannot be written down now is at the next turn.
            self.ends(job, outcome, at, now)?;
            self.children.remove(&job.id);
            self.told.remove(&job.id);
            return Ok(false);
        }
        let deadline = SignedDuration::from_secs(i64::try_from(job.deadline_s).unwrap_or(i64::MAX));
        let too_long = job.started.is_some_and(|at| now.duration_since(at) > deadline);
        if job.cancel_requested.is_some() || too_long {
            self.tell_to_end(job, now);
        }
        Ok(true)
    }

    /// How it ended, and when, if it did.
    fn outcome(&mut self, job: &Job, now: Timestamp) -> Option<(Outcome, Timestamp)> {
        let dir = self.state.job_dir(&job.id);
        if let Some(child) = self.children.get_mut(&job.id) {
            return match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some((judged(job, &dir, &Ending::of(status), now), now)),
                Err(e) => Some((interrupted(&format!("its process cannot be watched: {e}")), now)),
            };
        }
        if job.process.as_ref().is_some_and(Process::is_alive) {
            return None;
        }
        // Of a process that is not ours only what it wrote down is known.
        let (ending, at) = match child::ended(&dir) {
            Some(end) => (Ending::Code(end.code), end.at.filter(|at| *at <= now).unwrap_or(now)),
            None => (Ending::Gone("its process is gone, without having said how it ended".into()), now),
        };
        Some((judged(job, &dir, &ending, at), at))
    }

    fn tell_to_end(&mut self, job: &Job, now: Timestamp) {
        let own = self.children.get(&job.id).map(|c| c.id().cast_signed());
        let process = job.process.as_ref().filter(|p| p.is_alive()).map(|p| p.pid);
        let Some(pid) = own.or(process).and_then(Pid::from_raw) else { return };
        // One that has just ended is seen at the next turn.
        match self.told.get(&job.id) {
            None => {
                tracing::info!(target: "pgark", job = %job.id, "the job is told to end");
                let _ = kill_process(pid, Signal::TERM);
                self.told.insert(job.id.clone(), now);
            }
            Some(at) if now.duration_since(*at) > KILLED_AFTER => {
                tracing::warn!(target: "pgark", job = %job.id, "the job does not end, and is killed");
                let _ = kill_process_group(pid, Signal::KILL);
            }
            Some(_) => {}
        }
    }

    fn start(&mut self, job: &Job, now: Timestamp) -> Result<bool> {
        if !self.state.job_starts(&job.id, now)? {
            return Ok(false);
        }
        let job = self.state.job(&job.id)?;
        let spawned = self.spawn(&job);
        match spawned {
            Ok(child) => {
                tracing::info!(target: "pgark", job = %job.id, cluster = %job.cluster, what = job.request.word(), "a job begins");
                let process = child::process(child.id().cast_signed());
                // It is ours from now on, whether or not that can be written down.
                self.children.insert(job.id.clone(), child);
                if let Some(process) = process {
                    self.state.job_has_process(&job.id, &process)?;
                }
                Ok(true)
            }
            Err(why) => {
                self.ends(&job, failed("E-JOB-START", &why), now, now)?;
                Ok(false)
            }
        }
    }

    fn spawn(&self, job: &Job) -> Result<Child, String> {
        let words = job.request.words(&job.cluster)?;
        let dir = self.state.job_dir(&job.id);
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        write_job(&dir, job).map_err(io)?;
        let result = new_file(&dir.join(child::RESULT)).map_err(io)?;
        let log = new_file(&dir.join(child::LOG)).map_err(io)?;
        File::open(&dir).and_then(|d| d.sync_all()).map_err(io)?;
        let mut command = self.program.command(&words).map_err(|e| format!("its settings: {e}"))?;
        let mut flag = std::ffi::OsString::from(format!("{}=", child::DIR_FLAG));
        flag.push(&dir);
        command.arg(flag).stdout(result).stderr(log);
        command.spawn().map_err(|e| format!("{}: {e}", self.program.binary.display()))
    }

    fn ends(&self, job: &Job, outcome: Outcome, at: Timestamp, now: Timestamp) -> Result<()> {
        let again = matches!(outcome.state, JobState::Failed | JobState::TimedOut | JobState::Interrupted)
            && job.request.can_be_tried_again();
        let pause = RETRY_AFTER.saturating_mul(1 << (job.attempt.saturating_sub(1)).min(16)).min(RETRY_AFTER_MAX);
        let retry_at = now.checked_add(pause).ok().filter(|_| again);
        let ended = self.state.job_ended(&job.id, &outcome, at, retry_at, now)?;
        let (id, state) = (&ended.id, ended.state);
        if state.succeeded() {
            tracing::info!(target: "pgark", job = %id, %state, "a job is over");
        } else {
            let message = ended.message.unwrap_or_default();
            tracing::warn!(target: "pgark", job = %id, %state, message, "a job is over");
        }
        Ok(())
    }
}

enum Ending {
    Code(i32),
    Gone(String),
}

impl Ending {
    fn of(status: ExitStatus) -> Ending {
        match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Code(code),
            (None, signal) => Ending::Gone(format!("its process was ended by signal {}", signal.unwrap_or(0))),
        }
    }
}

fn judged(job: &Job, dir: &Path, ending: &Ending, now: Timestamp) -> Outcome {
    let deadline = SignedDuration::from_secs(i64::try_from(job.deadline_s).unwrap_or(i64::MAX));
    let too_long = job.started.is_some_and(|at| now.duration_since(at) > deadline);
    let stopped = if job.cancel_requested.is_some() {
        Some(JobState::Cancelled)
    } else if too_long {
        Some(JobState::TimedOut)
    } else {
        None
    };
    let said = std::fs::read(dir.join(child::RESULT)).ok();
    let said: Option<serde_json::Value> = said.and_then(|text| serde_json::from_slice(&text).ok());
    let error = |key: &str| Some(said.as_ref()?.get("error")?.get(key)?.as_str()?.to_owned());
    let late = (stopped == Some(JobState::TimedOut))
        .then(|| format!("it was not done within its deadline of {} s, and was stopped", job.deadline_s));
    match ending {
        Ending::Gone(why) => Outcome {
            state: stopped.unwrap_or(JobState::Interrupted),
            exit_code: None,
            error_code: None,
            message: late.or(Some(why.clone())),
        },
        Ending::Code(code) => Outcome {
            state: match code {
                0 => JobState::Done,
                3 => JobState::Warnings,
                5 => stopped.unwrap_or(JobState::Cancelled),
                _ => JobState::Failed,
            },
            exit_code: Some(*code),
            error_code: error("code"),
            message: late.filter(|_| *code == 5).or_else(|| error("message")).or_else(|| first_failed(said.as_ref()?)),
        },
    }
}

/// Of `check`, which prints no error: the first line that says FAILED, without that word.
fn first_failed(said: &serde_json::Value) -> Option<String> {
    let text = |check: &serde_json::Value, key: &str| check.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let all = said.get("checks")?.as_array()?;
    let failed = all.iter().find(|check| text(check, "verdict").as_deref() == Some("FAILED"))?;
    let repository = text(failed, "repository").map(|name| format!("repository {name}: ")).unwrap_or_default();
    Some(format!("{}: {repository}{}", text(failed, "name")?, text(failed, "message")?))
}

fn interrupted(why: &str) -> Outcome {
    Outcome { state: JobState::Interrupted, exit_code: None, error_code: None, message: Some(why.to_owned()) }
}

fn failed(code: &str, why: &str) -> Outcome {
    Outcome { state: JobState::Failed, exit_code: None, error_code: Some(code.into()), message: Some(why.to_owned()) }
}

fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{NewJob, Request};

    #[test]
    fn a_check_that_failed_says_what_did() {
        let scratch = pgark_testkit::Scratch::new("judged");
        let (state, now) = (State::open(&scratch.join("state")).expect("opened"), Timestamp::now());
        let new = NewJob {
            cluster: "a".into(),
            request: Request::Check {},
            requested_by: "token t".into(),
            requester: None,
            approve_until: None,
            schedule: None,
            not_before: now,
            deadline_s: 60,
            retries: 0,
            idempotency: None,
        };
        let job = state.add_job(&new, now).expect("added");
        let dir = state.job_dir(&job.id);
        let judged = |code: i32, said: &str| {
            std::fs::write(dir.join(child::RESULT), said).expect("written");
            let outcome = judged(&job, &dir, &Ending::Code(code), now);
            (outcome.state, outcome.message)
        };
        let check =
            |name: &str, verdict: &str| format!(r#"{{"name": "{name}", "verdict": "{verdict}", "message": "m"}}"#);
        let said = |all: &[String]| format!(r#"{{"ok": false, "checks": [{}]}}"#, all.join(","));
        let all =
            [check("key", "ok"), check("place", "warning"), check("archiving", "FAILED"), check("room", "FAILED")];
        assert_eq!(judged(1, &said(&all)), (JobState::Failed, Some("archiving: m".into())));
        let of_one = check("room", "FAILED").replace("\"message\"", "\"repository\": \"off\", \"message\"");
        assert_eq!(judged(1, &said(&[of_one])), (JobState::Failed, Some("room: repository off: m".into())));
        assert_eq!(judged(3, &said(&all[..2])), (JobState::Warnings, None));
        let error = r#"{"error": {"code": "E-X", "message": "why"}, "checks": [{"verdict": "FAILED"}]}"#;
        assert_eq!(judged(1, error), (JobState::Failed, Some("why".into())));
    }
}
