//! What a job is, in its own directory: there before anybody is told of the job, and written again whenever its state changes, so that
//! it can be had again without the database.
//!
//! Invariant: the database comes first, except for a new job. What is written here is never newer than that, and of a job that is
//! acknowledged something is always written.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Result, State, StateError};
use crate::jobs::child::write_whole;
use crate::jobs::{Job, JobState, Request};

const FILE: &str = "job";

/// What older versions left out may be missing: they wrote it down when the job began, and not again.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    pub id: String,
    pub cluster: String,
    pub request: Request,
    #[serde(default = "running")]
    pub state: JobState,
    pub requested_by: String,
    #[serde(default)]
    pub requester: Option<String>,
    #[serde(default)]
    pub approve_until: Option<Timestamp>,
    #[serde(default)]
    pub approved_by: Option<String>,
    #[serde(default)]
    pub schedule: Option<String>,
    #[serde(default)]
    pub retry_of: Option<String>,
    pub attempt: u32,
    #[serde(default)]
    pub retries_left: u32,
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    pub deadline_s: u64,
    pub created: Timestamp,
    #[serde(default)]
    pub started: Option<Timestamp>,
    #[serde(default)]
    pub finished: Option<Timestamp>,
    #[serde(default)]
    pub cancel_requested: Option<Timestamp>,
    #[serde(default)]
    pub exit_code: Option<i32>,
    #[serde(default)]
    pub error_code: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
}

fn running() -> JobState {
    JobState::Running
}

impl Written {
    fn of(job: &Job) -> Written {
        let job = job.clone();
        Written {
            id: job.id,
            cluster: job.cluster,
            request: job.request,
            state: job.state,
            requested_by: job.requested_by,
            requester: job.requester,
            approve_until: job.approve_until,
            approved_by: job.approved_by,
            schedule: job.schedule,
            retry_of: job.retry_of,
            attempt: job.attempt,
            retries_left: job.retries_left,
            not_before: Some(job.not_before),
            deadline_s: job.deadline_s,
            created: job.created,
            started: job.started,
            finished: job.finished,
            cancel_requested: job.cancel_requested,
            exit_code: job.exit_code,
            error_code: job.error_code,
            message: job.message,
        }
    }

    pub fn read(dir: &Path) -> Option<Written> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }
}

/// On the disk when this returns, as a whole.
pub(crate) fn write_job(dir: &Path, job: &Job) -> std::io::Result<()> {
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        dir.parent().map_or(Ok(()), |all| File::open(all)?.sync_all())?;
    }
    let text = serde_json::to_vec(&Written::of(job)).map_err(std::io::Error::other)?;
    write_whole(dir, FILE, &text, |from, to| fs::rename(from, to))
}

impl State {
    /// Before the job is in the database: whoever is told of it finds it again. What cannot be written down is not accepted.
    pub(super) fn write_new(&self, job: &Job) -> Result<()> {
        let path = self.job_dir(&job.id);
        write_job(&path, job).map_err(|source| {
            self.unwrite(&job.id);
            StateError::Directory { path, source }
        })
    }

    /// Of a job that nobody was told of.
    pub(super) fn unwrite(&self, id: &str) {
        // What cannot be removed is an empty directory, or a job that was asked for and not acknowledged.
        let _ = fs::remove_dir_all(self.job_dir(id));
    }

    /// After the database has it. That the directory says less does not hold up the job.
    pub(super) fn write_again(&self, job: &Job) {
        if let Err(e) = write_job(&self.job_dir(&job.id), job) {
            tracing::warn!(target: "pgark", job = %job.id, error = %e, "the directory of the job is behind the database");
        }
    }
}

/// Who asked for the job that runs in this directory, and who said yes to it.
pub fn asked_by(dir: &Path) -> Option<(String, Option<String>)> {
    Written::read(dir).map(|written| (written.requested_by, written.approved_by))
}
