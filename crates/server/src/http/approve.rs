//! The second person: what restores or removes may have to be said yes to by somebody else than who asked for it.

use axum::http::StatusCode;

use super::api::{Made, ok, own_job, shown};
use super::{Api, Asked, Problem};
use crate::access::Right;
use crate::jobs::JobState;

pub fn approve_job(api: &Api, asked: &Asked<'_>) -> Made {
    let job = own_job(api, asked, Right::Recover)?;
    let caller = asked.caller()?;
    if job.state != JobState::WaitingForApproval {
        let message = format!("the job does not wait for approval: it is {}", job.state);
        return Err(Problem::new(StatusCode::CONFLICT, "E-APPROVAL-STATE", message));
    }
    if job.requester.as_deref() == Some(&caller.identity()) {
        let message = "who asked for it does not approve it";
        return Err(Problem::new(StatusCode::FORBIDDEN, "E-APPROVAL-SELF", message)
            .hint("somebody else with the right to restore does, with a token, user or certificate of their own"));
    }
    let approved = api.state.approve_job(&job.id, &caller.shown(), asked.now)?;
    if approved.approved_by.is_none() {
        let message = format!("it is too late: the job is {}", approved.state);
        return Err(Problem::new(StatusCode::CONFLICT, "E-APPROVAL-STATE", message));
    }
    tracing::warn!(target: "pgark", job = %job.id, cluster = %job.cluster, by = caller.shown(), "a job was approved");
    ok(shown(&approved, true, api))
}
