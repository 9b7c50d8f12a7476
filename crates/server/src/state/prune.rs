//! The history of jobs does not grow for ever.

use std::io::ErrorKind;

use jiff::{SignedDuration, Timestamp};
use rusqlite::params;

use super::{Result, State, text};

/// An idempotency key, and what somebody has just looked at, stays for so long, however many jobs there are.
const STAYS: SignedDuration = SignedDuration::from_hours(24);
/// So that nobody waits for long; the rest goes with the next turn.
const AT_ONCE: u32 = 500;

/// How much of the history is kept: what is within both.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub days: u32,
    pub jobs: u32,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { days: 90, jobs: 10_000 }
    }
}

/// How jobs ended that are forgotten: a counter only grows. A table that came later, and that programs without it pass over.
pub const SCHEMA: &str = "
create table if not exists forgotten_jobs (
    cluster text not null, job text not null, state text not null, count integer not null, primary key (cluster, job, state)
) strict;
";

impl State {
    /// Forgets jobs that are over, with what they wrote. Not the last one of each schedule that succeeded, by which it is told when
    /// the schedule is overdue. Gives how many.
    pub fn prune_jobs(&self, keep: Keep, now: Timestamp) -> Result<usize> {
        let before = |span: SignedDuration| now.checked_sub(span).unwrap_or(Timestamp::MIN);
        let days = before(SignedDuration::from_hours(24 * i64::from(keep.days)));
        let query = "select id from jobs where state not in ('waiting_for_approval', 'queued', 'running') and finished < ?1
            and (finished < ?2 or rowid <= (select rowid from jobs order by rowid desc limit 1 offset ?3))
            and rowid not in (select max(rowid) from jobs where schedule is not null and state in ('done', 'warnings') group by schedule)
            order by rowid limit ?4";
        let ids: Vec<String> = {
            let connection = self.connection();
            let mut query = connection.prepare(query)?;
            let rows =
                query.query_map(params![text(before(STAYS)), text(days), keep.jobs, AT_ONCE], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        for id in &ids {
            // The directory first: one without a job would be taken for what is left of a lost database.
            match std::fs::remove_dir_all(self.job_dir(id)) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    tracing::warn!(target: "pgark", job = %id, error = %e, "what a job wrote cannot be removed");
                    continue;
                }
                _ => {
                    let mut connection = self.connection();
                    let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                    change.execute(
                        "insert into forgotten_jobs select cluster, json_extract(request, '$.job'), state, 1 from jobs where id = ?1
                         on conflict do update set count = count + 1",
                        [id],
                    )?;
                    change.execute("delete from jobs where id = ?1", [id])?;
                    change.commit()?;
                }
            };
        }
        Ok(ids.len())
    }
}
