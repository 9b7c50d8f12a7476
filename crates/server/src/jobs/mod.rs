//! Jobs: what was asked for, written down before it is acknowledged, and run as child processes of this program.
//!
//! Invariant: a job whose state is final is over, and says truthfully how. A job that is not is run by exactly one process, or by
//! none yet: server and child agree on that by one file that only one of them can make (`child`).

pub mod child;
pub mod handed;
mod request;
mod run;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use request::{BackupType, Kind, Lane, Request};
pub use run::{Program, Runner, RunnerOptions};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Somebody else has to say yes
    WaitingForApproval,
    Queued,
    Running,
    /// It ended with 0
    Done,
    /// It ended with 3: done, with warnings
    Warnings,
    Failed,
    Cancelled,
    /// It took longer than its deadline, and was stopped
    TimedOut,
    /// Its process is gone, and nobody knows how it ended
    Interrupted,
}

const STATES: [JobState; 9] = [
    JobState::WaitingForApproval,
    JobState::Queued,
    JobState::Running,
    JobState::Done,
    JobState::Warnings,
    JobState::Failed,
    JobState::Cancelled,
    JobState::TimedOut,
    JobState::Interrupted,
];

impl JobState {
    pub fn word(self) -> &'static str {
        match self {
            JobState::WaitingForApproval => "waiting_for_approval",
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Warnings => "warnings",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::TimedOut => "timed_out",
            JobState::Interrupted => "interrupted",
        }
    }

    pub fn is_final(self) -> bool {
        !matches!(self, JobState::WaitingForApproval | JobState::Queued | JobState::Running)
    }

    pub fn succeeded(self) -> bool {
        matches!(self, JobState::Done | JobState::Warnings)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<JobState, String> {
        STATES.into_iter().find(|s| s.word() == text).ok_or_else(|| format!("'{text}' is no state of a job"))
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub cluster: String,
    pub request: Request,
    /// Whose name, or which schedule.
    pub requested_by: String,
    /// Who that is, told apart from all others; of a schedule nobody.
    pub requester: Option<String>,
    /// Somebody else has to say yes before then.
    pub approve_until: Option<Timestamp>,
    pub schedule: Option<String>,
    /// Not sooner.
    pub not_before: Timestamp,
    pub deadline_s: u64,
    /// How often it is tried again.
    pub retries: u8,
    /// The same key of the same caller is the same job.
    pub idempotency: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Job {
    pub id: String,
    pub cluster: String,
    pub request: Request,
    pub state: JobState,
    pub requested_by: String,
    #[serde(skip)]
    pub requester: Option<String>,
    pub approve_until: Option<Timestamp>,
    pub approved_by: Option<String>,
    pub schedule: Option<String>,
    /// The job whose failure this one makes up for.
    pub retry_of: Option<String>,
    pub attempt: u32,
    pub retries_left: u32,
    pub not_before: Timestamp,
    pub deadline_s: u64,
    pub created: Timestamp,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub cancel_requested: Option<Timestamp>,
    pub exit_code: Option<i32>,
    pub error_code: Option<String>,
    pub message: Option<String>,
    #[serde(skip)]
    pub process: Option<Process>,
}

/// A process, told apart from later ones of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Since the machine was started (field 22 of /proc/PID/stat).
    pub ticks: u64,
    pub boot: String,
}

impl Job {
    /// What it printed: the document of the command, or its failure. `null` as long as there is none.
    pub fn result(&self, state: &crate::State) -> Value {
        let text = std::fs::read(state.job_dir(&self.id).join(child::RESULT)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    }

    /// The end of what it logged.
    pub fn log(&self, state: &crate::State) -> String {
        child::tail(&state.job_dir(&self.id).join(child::LOG))
    }

    /// The last line of its log.
    pub fn progress(&self, state: &crate::State) -> Option<String> {
        self.log(state).lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
    }
}
