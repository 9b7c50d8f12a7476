//! A state database that is damaged or gone: it is put aside, and jobs are read again from what they wrote themselves.
//!
//! Tokens, users and how far schedules were looked at cannot be had again; that is said, and never guessed.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, params};
use serde::{Deserialize, Serialize};

use super::{BUSY, FILE, Result, State, StateError, text};
use crate::jobs::{Job, Request};

/// What a job is, in its own directory.
const WHAT: &str = "job";
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];

/// What was found when the database was opened.
#[derive(Debug, Default)]
pub struct Lost {
    /// Where the damaged one is now, and what is wrong with it.
    pub aside: Option<(PathBuf, String)>,
    /// Jobs that were read again.
    pub jobs: usize,
    /// Directories of jobs that tell nothing.
    pub unknown: usize,
}

impl Lost {
    pub fn is_something(&self) -> bool {
        self.aside.is_some() || self.jobs + self.unknown > 0
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    id: String,
    cluster: String,
    request: Request,
    requested_by: String,
    #[serde(default)]
    approved_by: Option<String>,
    #[serde(default)]
    schedule: Option<String>,
    attempt: u32,
    deadline_s: u64,
    created: Timestamp,
    started: Timestamp,
}

/// Before its process is made: who asked is for the audit trail too.
pub(crate) fn write_job(dir: &Path, job: &Job, now: Timestamp) -> std::io::Result<()> {
    let written = Written {
        id: job.id.clone(),
        cluster: job.cluster.clone(),
        request: job.request.clone(),
        requested_by: job.requested_by.clone(),
        approved_by: job.approved_by.clone(),
        schedule: job.schedule.clone(),
        attempt: job.attempt,
        deadline_s: job.deadline_s,
        created: job.created,
        started: job.started.unwrap_or(now),
    };
    let text = serde_json::to_vec(&written).map_err(std::io::Error::other)?;
    let file = dir.join(WHAT);
    fs::write(&file, text)?;
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    fs::File::open(&file)?.sync_all()
}

impl State {
    /// As `open`, for the one who holds the directory alone: what cannot be read is put aside, and begun anew.
    ///
    /// # Errors
    /// As `open`; a database of another version is nobody's damage.
    pub fn open_or_rebuild(dir: &Path) -> Result<(State, Lost)> {
        let mut lost = Lost::default();
        if let Some(why) = damage(&dir.join(FILE)) {
            lost.aside = Some((put_aside(dir)?, why));
        }
        let state = State::open(dir)?;
        let is_new: bool =
            state.connection().query_row("select not exists (select 1 from jobs)", [], |row| row.get(0))?;
        if is_new {
            (lost.jobs, lost.unknown) = state.read_jobs_again()?;
        }
        Ok((state, lost))
    }

    /// As running: who takes over finds out whether they are, and how they ended.
    fn read_jobs_again(&self) -> Result<(usize, usize)> {
        let Ok(entries) = fs::read_dir(self.jobs_dir()) else { return Ok((0, 0)) };
        let (mut found, mut unknown) = (vec![], 0);
        for entry in entries.flatten() {
            let written = fs::read(entry.path().join(WHAT)).ok();
            let written: Option<Written> = written.and_then(|text| serde_json::from_slice(&text).ok());
            match written.filter(|w| entry.file_name() == *w.id) {
                Some(written) => found.push(written),
                None => unknown += 1,
            }
        }
        found.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for w in &found {
            let request = serde_json::to_string(&w.request).map_err(|e| StateError::Content(e.to_string()))?;
            let deadline_s = i64::try_from(w.deadline_s).unwrap_or(i64::MAX);
            change.execute(
                "insert into jobs (id, request, cluster, state, requested_by, approved_by, schedule, attempt, retries_left,
                 not_before, deadline_s, created, started) values (?1, ?2, ?3, 'running', ?4, ?5, ?6, ?7, 0, ?8, ?9, ?8, ?10)",
                params![
                    w.id,
                    request,
                    w.cluster,
                    w.requested_by,
                    w.approved_by,
                    w.schedule,
                    w.attempt,
                    text(w.created),
                    deadline_s,
                    text(w.started)
                ],
            )?;
        }
        change.commit()?;
        Ok((found.len(), unknown))
    }
}

/// What is wrong with the file, if it is there and is no whole database.
fn damage(file: &Path) -> Option<String> {
    if !file.exists() {
        return None;
    }
    let look = || -> rusqlite::Result<String> {
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(BUSY)?;
        connection.query_row("pragma quick_check(1)", [], |row| row.get(0))
    };
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match look() {
        Ok(said) => (said != "ok").then_some(said),
        // Whatever else is wrong, such as rights, is said by who opens it.
        Err(e) => matches!(e.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)).then(|| e.to_string()),
    }
}

fn put_aside(dir: &Path) -> Result<PathBuf> {
    let failed = |source| StateError::Directory { path: dir.to_owned(), source };
    let to = dir.join(format!("{FILE}.damaged-{}", Timestamp::now().strftime("%Y%m%d-%H%M%S")));
    for companion in COMPANIONS {
        let (from, mut to) = (dir.join(format!("{FILE}{companion}")), to.clone().into_os_string());
        to.push(companion);
        if from.exists() {
            fs::rename(from, to).map_err(failed)?;
        }
    }
    fs::rename(dir.join(FILE), &to).map_err(failed)?;
    Ok(to)
}

/// Who asked for the job that runs in this directory, and who said yes to it.
pub fn asked_by(dir: &Path) -> Option<(String, Option<String>)> {
    let written: Written = serde_json::from_slice(&fs::read(dir.join(WHAT)).ok()?).ok()?;
    Some((written.requested_by, written.approved_by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::jobs::{JobState, NewJob, Program, Runner, RunnerOptions};
    use crate::state::{Filter, Keep, Outcome};
    use jiff::SignedDuration;

    fn new_job(schedule: Option<&str>, now: Timestamp) -> NewJob {
        NewJob {
            cluster: "a".into(),
            request: Request::Check {},
            requested_by: "token t".into(),
            requester: None,
            approve_until: None,
            schedule: schedule.map(str::to_owned),
            not_before: now,
            deadline_s: 60,
            retries: 0,
            idempotency: None,
        }
    }

    #[test]
    fn a_damaged_database_is_put_aside_and_jobs_are_read_again() {
        let scratch = pgark_testkit::Scratch::new("lost");
        let dir = scratch.join("state");
        let now = Timestamp::now();
        let state = State::open(&dir).expect("opened");
        state.create_token("n", Role::Admin, None, None, now).expect("made");
        let job = state.add_job(&new_job(None, now), now).expect("added");
        fs::create_dir_all(state.job_dir(&job.id)).expect("made");
        fs::create_dir_all(state.job_dir("what-is-this")).expect("made");
        write_job(&state.job_dir(&job.id), &job, now).expect("written");
        drop(state);
        // Whole ones are left alone.
        let (state, lost) = State::open_or_rebuild(&dir).expect("opened");
        assert!(!lost.is_something(), "{lost:?}");
        drop(state);
        fs::write(dir.join(FILE), "no database ".repeat(1000)).expect("written");
        let (state, lost) = State::open_or_rebuild(&dir).expect("opened");
        assert!(lost.aside.as_ref().is_some_and(|(path, _)| path.exists()), "{lost:?}");
        assert_eq!((lost.jobs, lost.unknown), (1, 1));
        assert!(state.tokens().expect("listed").is_empty());
        // Nobody had begun it, and nobody will.
        let program = Program { binary: "/bin/false".into(), words: vec![] };
        Runner::take_over(state.clone(), program, RunnerOptions { running_max: 1 }, now).expect("taken over");
        let found = state.job(&job.id).expect("there");
        assert_eq!((found.state, found.requested_by.as_str()), (JobState::Interrupted, "token t"));
        state.is_there().expect("it is");
        fs::remove_file(dir.join(FILE)).expect("removed");
        assert!(matches!(state.is_there(), Err(StateError::Gone(_))));
    }

    #[test]
    fn the_history_is_kept_by_days_and_by_number() {
        let scratch = pgark_testkit::Scratch::new("prune");
        let state = State::open(&scratch.join("state")).expect("opened");
        let now = Timestamp::now();
        let ago = |days: i64| now - SignedDuration::from_hours(24 * days);
        let over = |schedule: Option<&str>, state_: JobState, days: i64| {
            let job = state.add_job(&new_job(schedule, ago(days)), ago(days)).expect("added");
            let outcome = Outcome { state: state_, exit_code: None, error_code: None, message: None };
            state.job_ends(&job.id, &outcome, None, ago(days)).expect("ended");
            fs::create_dir_all(state.job_dir(&job.id)).expect("made");
            job.id
        };
        let nightly = over(Some("nightly"), JobState::Done, 100);
        let old = over(Some("nightly"), JobState::Failed, 99);
        let waiting = state.add_job(&new_job(None, ago(98)), ago(98)).expect("added").id;
        let many: Vec<String> = (0..5).map(|n| over(None, JobState::Done, 9 - n)).collect();
        let today = over(None, JobState::Done, 0);
        let left = || -> Vec<String> {
            let all = state.jobs(&Filter { limit: 100, ..Filter::default() }).expect("listed");
            all.into_iter().rev().map(|j| j.id).collect()
        };
        assert_eq!(state.prune_jobs(Keep { days: 90, jobs: 1000 }, now).expect("pruned"), 1);
        assert!(!left().contains(&old) && !state.job_dir(&old).exists());
        assert_eq!(state.prune_jobs(Keep { days: 90, jobs: 3 }, now).expect("pruned"), 3);
        let kept = [&[nightly, waiting], &many[3..], &[today]].concat();
        assert_eq!(left(), kept);
        // Of the last day nothing goes, however little is kept.
        assert_eq!(state.prune_jobs(Keep { days: 1, jobs: 1 }, now).expect("pruned"), 2);
        assert_eq!(left().len(), 3);
        assert_eq!(state.prune_jobs(Keep { days: 1, jobs: 1 }, now).expect("pruned"), 0);
    }
}
