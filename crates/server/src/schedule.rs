//! From schedules that are due to jobs.

use std::collections::HashSet;

use jiff::Timestamp;
use pgark_dr::schedule::{Due, Past, Schedule};

use crate::jobs::{NewJob, Request};
use crate::state::{Result, State};

/// A schedule of the settings.
#[derive(Clone, Debug)]
pub struct Scheduled {
    pub plan: Schedule,
    pub cluster: String,
    pub request: Request,
    pub retries: u8,
}

/// Forgets schedules that are no longer there: one that comes back later has missed nothing.
pub fn settle(state: &State, schedules: &[Scheduled]) -> Result<()> {
    let names: HashSet<&str> = schedules.iter().map(|s| s.plan.name()).collect();
    state.forget_schedules(|name| names.contains(name))
}

/// Makes the jobs that are due. Gives how many.
pub fn turn(state: &State, schedules: &[Scheduled], now: Timestamp) -> Result<usize> {
    let mut made = 0;
    for schedule in schedules {
        let name = schedule.plan.name();
        let (_, considered) = state.schedule(name, now)?;
        let past = Past { considered, running: state.schedule_runs(name)? };
        match schedule.plan.due(past, now) {
            Due::Now { planned, passed_over, late } => {
                let new = NewJob {
                    cluster: schedule.cluster.clone(),
                    request: schedule.request.clone(),
                    requested_by: format!("schedule {name}"),
                    requester: None,
                    approve_until: None,
                    schedule: Some(name.to_owned()),
                    not_before: now,
                    deadline_s: schedule.plan.deadline().as_secs(),
                    retries: schedule.retries,
                    idempotency: None,
                };
                let job = state.add_scheduled(&new, name, now, now)?;
                tracing::info!(target: "pgark", schedule = name, job = %job.id, %planned, passed_over, late, "a schedule is due");
                made += 1;
            }
            Due::PassOver { missed, .. } => {
                tracing::warn!(target: "pgark", schedule = name, missed, "runs were missed, and are not made up for");
                state.consider_schedule(name, now)?;
            }
            Due::Running | Due::Blackout { .. } | Due::Later { .. } => {}
        }
    }
    Ok(made)
}
