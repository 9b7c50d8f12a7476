//! Jobs.

use jiff::Timestamp;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, params_from_iter};

use super::{Result, State, StateError, new_id, optional_time, text, time};
use crate::jobs::{Job, JobState, NewJob, Process};

const COLUMNS: &str = "id, request, cluster, state, requested_by, schedule, retry_of, attempt, retries_left, not_before, deadline_s, \
                       created, started, finished, pid, ticks, boot, cancel_requested, exit_code, error_code, message, requester, \
                       approve_until, approved_by";
pub const LIST_MAX: usize = 1000;

/// Which jobs are listed; the newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those of any of these; None: of every cluster.
    pub clusters: Option<Vec<String>>,
    pub state: Option<JobState>,
    /// Started before this one was created: for the next page.
    pub before: Option<String>,
    pub limit: usize,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: JobState,
    pub exit_code: Option<i32>,
    pub error_code: Option<String>,
    pub message: Option<String>,
}

impl State {
    /// On the disk when this returns. The same idempotency key gives the job that it made first.
    pub fn add_job(&self, new: &NewJob, now: Timestamp) -> Result<Job> {
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let known: Option<String> = match &new.idempotency {
            Some(key) => {
                change.query_row("select id from jobs where idempotency = ?1", [key], |r| r.get(0)).optional()?
            }
            None => None,
        };
        if let Some(id) = known {
            return one(&change, &id);
        }
        let job = insert(&change, new, None, 1, now)?;
        self.accepted(change, &job)?;
        Ok(job)
    }

    /// First its directory, then the database: a job that is acknowledged survives the loss of either.
    fn accepted(&self, change: Transaction<'_>, job: &Job) -> Result<()> {
        self.write_new(job)?;
        change.commit().inspect_err(|_| self.unwrite(&job.id))?;
        Ok(())
    }

    /// The job of a schedule, together with how far the schedule was considered: neither without the other.
    pub fn add_scheduled(&self, new: &NewJob, schedule: &str, considered: Timestamp, now: Timestamp) -> Result<Job> {
        let mut connection = self.connection();
        let change = connection.transaction()?;
        let job = insert(&change, new, None, 1, now)?;
        change.execute("update schedules set considered = ?2 where name = ?1", params![schedule, text(considered)])?;
        self.accepted(change, &job)?;
        Ok(job)
    }

    pub fn job(&self, id: &str) -> Result<Job> {
        one(&self.connection(), id)
    }

    pub fn jobs(&self, filter: &Filter) -> Result<Vec<Job>> {
        let mut query = format!("select {COLUMNS} from jobs where true");
        let mut values: Vec<Sql> = vec![];
        let clusters = filter.clusters.as_ref().map(|all| serde_json::json!(all).to_string());
        let given = [
            (" and cluster in (select value from json_each(?))", clusters),
            (" and state = ?", filter.state.map(|s| s.word().to_owned())),
            (" and rowid < (select rowid from jobs where id = ?)", filter.before.clone()),
        ];
        for (condition, value) in given {
            if let Some(value) = value {
                query.push_str(condition);
                values.push(value.into());
            }
        }
        query.push_str(&format!(" order by rowid desc limit {}", filter.limit.min(LIST_MAX)));
        many(&self.connection(), &query, values)
    }

    /// Those that are not over, the oldest first.
    pub fn open_jobs(&self) -> Result<Vec<Job>> {
        let open = "'waiting_for_approval', 'queued', 'running'";
        let query = format!("select {COLUMNS} from jobs where state in ({open}) order by rowid");
        many(&self.connection(), &query, vec![])
    }

    pub fn schedule_runs(&self, schedule: &str) -> Result<bool> {
        let query = "select exists (select 1 from jobs where schedule = ?1 and state in ('queued', 'running'))";
        Ok(self.connection().query_row(query, [schedule], |row| row.get(0))?)
    }

    /// The newest job of a schedule that succeeded.
    pub fn last_success(&self, schedule: &str) -> Result<Option<Job>> {
        let query = format!(
            "select {COLUMNS} from jobs where schedule = ?1 and state in ('done', 'warnings') order by rowid desc limit 1"
        );
        Ok(many(&self.connection(), &query, vec![schedule.to_owned().into()])?.pop())
    }

    /// How often jobs of each kind ended in each way, forgotten ones too.
    pub fn job_counts(&self) -> Result<Vec<(String, String, String, i64)>> {
        let connection = self.connection();
        let mut query = connection.prepare(
            "select cluster, job, state, sum(count) from (
                select cluster, json_extract(request, '$.job') as job, state, count(*) as count from jobs group by 1, 2, 3
                union all select cluster, job, state, count from forgotten_jobs) group by 1, 2, 3 order by 1, 2, 3",
        )?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many backups of the cluster ended in each way, by the day (UTC) they were asked for on.
    pub fn backup_days(&self, cluster: &str, since: Timestamp) -> Result<Vec<(String, String, i64)>> {
        let connection = self.connection();
        let mut query = connection.prepare(
            "select substr(created, 1, 10), state, count(*) from jobs where cluster = ?1 and created >= ?2
             and json_extract(request, '$.job') = 'backup' and finished is not null group by 1, 2 order by 1, 2",
        )?;
        let rows = query.query_map(params![cluster, text(since)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Before its process is made.
    pub fn job_starts(&self, id: &str, now: Timestamp) -> Result<bool> {
        let change = "update jobs set state = 'running', started = ?2 where id = ?1 and state = 'queued' and cancel_requested is null";
        Ok(self.connection().execute(change, params![id, text(now)])? == 1)
    }

    pub fn job_has_process(&self, id: &str, process: &Process) -> Result<()> {
        let change = "update jobs set pid = ?2, ticks = ?3, boot = ?4 where id = ?1";
        let ticks = i64::try_from(process.ticks).unwrap_or(i64::MAX);
        self.connection().execute(change, params![id, process.pid, ticks, process.boot])?;
        Ok(())
    }

    /// The job begins as soon as there is room for it; unchanged when it does not wait for approval, or no longer.
    pub fn approve_job(&self, id: &str, by: &str, now: Timestamp) -> Result<Job> {
        let change = "update jobs set state = 'queued', approved_by = ?2
            where id = ?1 and state = 'waiting_for_approval' and approve_until > ?3";
        let connection = self.connection();
        let changed = connection.execute(change, params![id, by, text(now)])?;
        let job = one(&connection, id)?;
        if changed == 1 {
            self.write_again(&job);
        }
        Ok(job)
    }

    /// Jobs that nobody approved in time are over. Gives them.
    pub fn end_unapproved(&self, now: Timestamp) -> Result<Vec<String>> {
        let connection = self.connection();
        let mut change = connection.prepare(
            "update jobs set state = 'cancelled', finished = ?1, error_code = 'E-APPROVAL', message = 'nobody approved it in time'
             where state = 'waiting_for_approval' and approve_until <= ?1 returning id",
        )?;
        let ids = change.query_map([text(now)], |row| row.get(0))?;
        let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
        for id in &ids {
            self.write_again(&one(&connection, id)?);
        }
        Ok(ids)
    }

    /// One that waits is cancelled at once; of one that runs it is asked.
    pub fn cancel_job(&self, id: &str, now: Timestamp) -> Result<Job> {
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let asked = "update jobs set cancel_requested = coalesce(cancel_requested, ?2) where id = ?1 and state in ('waiting_for_approval', 'queued', 'running')";
        change.execute(asked, params![id, text(now)])?;
        let done = "update jobs set state = 'cancelled', finished = ?2 where id = ?1 and state in ('waiting_for_approval', 'queued')";
        let is_over = change.execute(done, params![id, text(now)])? == 1;
        let job = one(&change, id)?;
        change.commit()?;
        if is_over {
            self.write_again(&job);
        }
        Ok(job)
    }

    /// As `job_ended`, now.
    pub fn job_ends(&self, id: &str, outcome: &Outcome, retry_at: Option<Timestamp>, now: Timestamp) -> Result<Job> {
        self.job_ended(id, outcome, now, retry_at, now)
    }

    /// How it ended; and, in the same change, the next try when there is one, and that its schedule passes over what became due
    /// while it ran. A final state is never changed. `at` is when it ended, which may be found out later: what became due after that
    /// was missed. So was what became due since the start of one that was interrupted.
    pub fn job_ended(
        &self,
        id: &str,
        outcome: &Outcome,
        at: Timestamp,
        retry_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Job> {
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let ended = "update jobs set state = ?2, finished = ?3, exit_code = ?4, error_code = ?5, message = ?6
            where id = ?1 and state in ('queued', 'running')";
        let Outcome { state, exit_code, error_code, message } = outcome;
        let changed = change.execute(ended, params![id, state.word(), text(at), exit_code, error_code, message])?;
        let job = one(&change, id)?;
        let mut again = None;
        if changed == 1 {
            if let (Some(not_before), 1..) = (retry_at, job.retries_left) {
                let next = NewJob {
                    cluster: job.cluster.clone(),
                    request: job.request.clone(),
                    requested_by: job.requested_by.clone(),
                    requester: job.requester.clone(),
                    approve_until: None,
                    schedule: job.schedule.clone(),
                    not_before,
                    deadline_s: job.deadline_s,
                    retries: u8::try_from(job.retries_left - 1).unwrap_or(u8::MAX),
                    idempotency: None,
                };
                again = Some(insert(&change, &next, Some(&job.id), job.attempt + 1, now)?);
            }
            if let Some(schedule) = job.schedule.as_ref().filter(|_| *state != JobState::Interrupted) {
                change.execute("update schedules set considered = ?2 where name = ?1", params![schedule, text(at)])?;
            }
        }
        match &again {
            Some(again) => self.accepted(change, again)?,
            None => change.commit()?,
        }
        if changed == 1 {
            self.write_again(&job);
        }
        Ok(job)
    }
}

fn insert(change: &Transaction<'_>, new: &NewJob, retry_of: Option<&str>, attempt: u32, now: Timestamp) -> Result<Job> {
    let id = new_id(now)?;
    let request = serde_json::to_string(&new.request).map_err(|e| StateError::Content(e.to_string()))?;
    let state = if new.approve_until.is_some() { JobState::WaitingForApproval } else { JobState::Queued };
    change.execute(
        "insert into jobs (id, request, cluster, state, requested_by, schedule, retry_of, attempt, retries_left, idempotency,
         not_before, deadline_s, created, requester, approve_until)
         values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        params![
            id,
            request,
            new.cluster,
            state.word(),
            new.requested_by,
            new.schedule,
            retry_of,
            attempt,
            new.retries,
            new.idempotency,
            text(new.not_before),
            i64::try_from(new.deadline_s).unwrap_or(i64::MAX),
            text(now),
            new.requester,
            new.approve_until.map(text)
        ],
    )?;
    one(change, &id)
}

pub(super) fn one(connection: &Connection, id: &str) -> Result<Job> {
    let query = format!("select {COLUMNS} from jobs where id = ?1");
    let found = many(connection, &query, vec![id.to_owned().into()])?.pop();
    found.ok_or_else(|| StateError::NotFound { what: "job", id: id.escape_debug().to_string() })
}

fn many(connection: &Connection, query: &str, values: Vec<Sql>) -> Result<Vec<Job>> {
    let mut query = connection.prepare(query)?;
    let mut rows = query.query(params_from_iter(values))?;
    let mut jobs = vec![];
    while let Some(row) = rows.next()? {
        jobs.push(job(row)?);
    }
    Ok(jobs)
}

fn job(row: &Row<'_>) -> Result<Job> {
    let request: String = row.get("request")?;
    let state: String = row.get("state")?;
    let process = match (row.get("pid")?, row.get::<_, Option<i64>>("ticks")?, row.get("boot")?) {
        (Some(pid), Some(ticks), Some(boot)) => Some(Process { pid, ticks: u64::try_from(ticks).unwrap_or(0), boot }),
        _ => None,
    };
    let moment = |name: &str| -> Result<Timestamp> { time(&row.get::<_, String>(name)?) };
    let maybe = |name: &str| -> Result<Option<Timestamp>> { optional_time(row.get(name)?) };
    Ok(Job {
        id: row.get("id")?,
        cluster: row.get("cluster")?,
        request: serde_json::from_str(&request).map_err(|e| StateError::Content(e.to_string()))?,
        state: state.parse().map_err(StateError::Content)?,
        requested_by: row.get("requested_by")?,
        requester: row.get("requester")?,
        approve_until: maybe("approve_until")?,
        approved_by: row.get("approved_by")?,
        schedule: row.get("schedule")?,
        retry_of: row.get("retry_of")?,
        attempt: row.get("attempt")?,
        retries_left: row.get("retries_left")?,
        not_before: moment("not_before")?,
        deadline_s: u64::try_from(row.get::<_, i64>("deadline_s")?).unwrap_or(0),
        created: moment("created")?,
        started: maybe("started")?,
        finished: maybe("finished")?,
        cancel_requested: maybe("cancel_requested")?,
        exit_code: row.get("exit_code")?,
        error_code: row.get("error_code")?,
        message: row.get("message")?,
        process,
    })
}
