//! A state database that is damaged or gone: it is put aside, and jobs are read again from their directories (`written`).
//!
//! Tokens, users and how far schedules were looked at cannot be had again; that is said, and never guessed.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, params};

use super::written::Written;
use super::{BUSY, FILE, Result, State, StateError, text};
use crate::jobs::{JobState, child};

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
            (lost.jobs, lost.unknown) = state.read_jobs_again(Timestamp::now())?;
        }
        Ok((state, lost))
    }

    /// As they wrote down that they stood. What runs, or began to, is left to who takes over: they find out whether it still does,
    /// and how it ended.
    fn read_jobs_again(&self, now: Timestamp) -> Result<(usize, usize)> {
        let Ok(entries) = fs::read_dir(self.jobs_dir()) else { return Ok((0, 0)) };
        let (mut found, mut given_up, mut unknown) = (vec![], vec![], 0);
        for entry in entries.flatten() {
            match Written::read(&entry.path()).filter(|w| entry.file_name() == *w.id) {
                Some(written) => {
                    given_up.extend((written.state == JobState::WaitingForApproval).then(|| written.id.clone()));
                    found.push(truly(written, &entry.path(), now));
                }
                None => unknown += 1,
            }
        }
        found.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for written in &found {
            insert(&change, written)?;
            // Known for as long as it had jobs, so that one that is overdue stays so; what it missed is not made up for.
            let schedule =
                "insert into schedules (name, first_seen, considered) values (?1, ?2, ?3) on conflict do nothing";
            if let Some(name) = &written.schedule {
                change.execute(schedule, params![name, text(written.created), text(now)])?;
            }
        }
        change.commit()?;
        for id in &given_up {
            self.write_again(&super::jobs::one(&connection, id)?);
        }
        Ok((found.len(), unknown))
    }
}

/// What became of it, as far as that is known before somebody looks.
fn truly(written: Written, dir: &Path, now: Timestamp) -> Written {
    match written.state {
        // It had its turn, and nobody wrote that down any more.
        JobState::Queued if child::is_claimed(dir) => {
            Written { state: JobState::Running, started: Some(written.created), ..written }
        }
        // Tokens were lost: who asks and who approves could be one and the same, with a new one.
        JobState::WaitingForApproval => Written {
            state: JobState::Cancelled,
            finished: Some(now),
            error_code: Some("E-APPROVAL".into()),
            message: Some("the state of the server was lost before somebody approved it: ask for it again".into()),
            ..written
        },
        JobState::Running => Written { started: written.started.or(Some(written.created)), ..written },
        _ => written,
    }
}

fn insert(change: &Connection, w: &Written) -> Result<()> {
    let request = serde_json::to_string(&w.request).map_err(|e| StateError::Content(e.to_string()))?;
    change.execute(
        "insert into jobs (id, request, cluster, state, requested_by, requester, approve_until, approved_by, schedule, retry_of,
         attempt, retries_left, not_before, deadline_s, created, started, finished, cancel_requested, exit_code, error_code, message)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
        params![
            w.id,
            request,
            w.cluster,
            w.state.word(),
            w.requested_by,
            w.requester,
            w.approve_until.map(text),
            w.approved_by,
            w.schedule,
            w.retry_of,
            w.attempt,
            w.retries_left,
            text(w.not_before.unwrap_or(w.created)),
            i64::try_from(w.deadline_s).unwrap_or(i64::MAX),
            text(w.created),
            w.started.map(text),
            w.finished.map(text),
            w.cancel_requested.map(text),
            w.exit_code,
            w.error_code,
            w.message
        ],
    )?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::jobs::{Job, NewJob, Program, Request, Runner, RunnerOptions};
    use crate::serve::Shared;
    use crate::state::{Filter, Keep, Outcome, write_job};
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
        assert!(state.job_starts(&job.id, now).expect("started"));
        fs::create_dir_all(state.job_dir("what-is-this")).expect("made");
        write_job(&state.job_dir(&job.id), &state.job(&job.id).expect("there")).expect("written");
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
        let program = Program { binary: "/bin/false".into(), words: vec![], settings: Shared::default() };
        Runner::take_over(state.clone(), program, RunnerOptions { running_max: 1 }, now).expect("taken over");
        let found = state.job(&job.id).expect("there");
        assert_eq!((found.state, found.requested_by.as_str()), (JobState::Interrupted, "token t"));
        state.is_there().expect("it is");
        fs::remove_file(dir.join(FILE)).expect("removed");
        assert!(matches!(state.is_there(), Err(StateError::Gone(_))));
    }

    #[test]
    fn without_the_database_jobs_stand_where_they_stood() {
        let scratch = pgark_testkit::Scratch::new("lost-jobs");
        let dir = scratch.join("state");
        let now = Timestamp::now();
        let ago = |minutes: i64| now - SignedDuration::from_mins(minutes);
        let state = State::open(&dir).expect("opened");
        let add = |new: &NewJob| state.add_job(new, ago(50)).expect("added");
        let approve_until = Some(now + SignedDuration::from_hours(1));
        let restore = NewJob { approve_until, requester: Some("token:t".into()), ..new_job(None, now) };
        let (queued, waiting, approved) = (add(&new_job(None, now)), add(&restore), add(&restore));
        state.approve_job(&approved.id, "token u", now).expect("approved");
        let given_up = add(&new_job(None, now));
        state.cancel_job(&given_up.id, ago(5)).expect("cancelled");
        let nightly = add(&NewJob { retries: 2, ..new_job(Some("nightly"), now) });
        let outcome = |state: JobState| Outcome {
            state,
            exit_code: Some(1),
            error_code: Some("E-X".into()),
            message: Some("m".into()),
        };
        let ends = |job: &Job, state_: JobState, retry_at: Option<Timestamp>| {
            state.job_ended(&job.id, &outcome(state_), ago(40), retry_at, now).expect("ended");
        };
        ends(&nightly, JobState::Failed, Some(now));
        let done = add(&new_job(Some("nightly"), now));
        ends(&done, JobState::Done, None);
        // Its process ended while nobody looked, and said so.
        let alone = add(&new_job(None, now));
        assert!(state.job_starts(&alone.id, ago(30)).expect("started"));
        let at = state.job_dir(&alone.id);
        write_job(&at, &state.job(&alone.id).expect("there")).expect("written");
        fs::write(at.join("started"), r#"{"process": {"pid": 1, "ticks": 0, "boot": "another"}}"#).expect("written");
        fs::write(at.join("ended"), format!(r#"{{"code": 0, "at": "{}"}}"#, ago(20))).expect("written");
        let all = |state: &State| {
            let all = state.jobs(&Filter { limit: 100, ..Filter::default() }).expect("listed");
            all.into_iter().map(|job| (job.id.clone(), job)).collect::<std::collections::BTreeMap<_, _>>()
        };
        let before = all(&state);
        drop(state);
        fs::remove_file(dir.join(FILE)).expect("removed");
        for companion in COMPANIONS {
            let _ = fs::remove_file(dir.join(format!("{FILE}{companion}")));
        }
        assert!(matches!(State::open_existing(&dir), Err(StateError::Missing(_))));
        assert!(!dir.join(FILE).exists(), "who only looks makes nothing");
        let (state, lost) = State::open_or_rebuild(&dir).expect("opened");
        assert_eq!((lost.jobs, lost.unknown), (before.len(), 0));
        let program = Program { binary: "/bin/false".into(), words: vec![], settings: Shared::default() };
        let options = RunnerOptions { running_max: 0 };
        Runner::take_over(state.clone(), program, options, now).and_then(|mut r| r.turn(true, now)).expect("a turn");
        let after = all(&state);
        for (id, job) in &before {
            let shown = |job: &Job| serde_json::to_value(job).expect("JSON");
            let found = &after[id];
            if [&waiting.id, &alone.id].contains(&id) {
                continue;
            }
            assert_eq!(shown(found), shown(job), "{id}");
            assert_eq!(found.requester, job.requester);
        }
        assert_eq!((after[&queued.id].state, after[&approved.id].state), (JobState::Queued, JobState::Queued));
        assert_eq!(after[&given_up.id].state, JobState::Cancelled);
        assert!(after.values().any(|job| job.retry_of.as_ref() == Some(&nightly.id)), "the next try is not lost");
        // Who may say yes to it cannot be told any longer from who asked.
        let found = &after[&waiting.id];
        assert_eq!((found.state, found.error_code.as_deref()), (JobState::Cancelled, Some("E-APPROVAL")));
        let (found, ended) = (&after[&alone.id], ago(20));
        assert_eq!((found.state, found.exit_code), (JobState::Done, Some(0)));
        assert!(found.finished.is_some_and(|at| ended.duration_since(at).as_secs() == 0), "{:?}", found.finished);
        // A schedule is known for as long as it was, and succeeded when it did.
        let last = state.last_success("nightly").expect("asked").expect("it did");
        assert_eq!((&last.id, last.finished), (&done.id, before[&done.id].finished));
        assert!(state.schedule("nightly", now).expect("known").0 <= ago(49));
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
