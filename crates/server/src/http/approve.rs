//! Saying yes: what restores or removes may have to be approved by somebody else than who asked for it, and what points an
//! application to another database has to be by somebody who may say where it goes.

use axum::http::StatusCode;

use super::api::{Made, ok, own_job, shown};
use super::{Api, Asked, Problem};
use crate::access::Right;
use crate::jobs::{JobState, Request};

/// What it takes to say yes to it. Looked up when it is asked for, since settings change.
pub fn right_to_approve(api: &Api, request: &Request, cluster: &str) -> Right {
    match request {
        Request::Recover { .. } => right_to_recover(api, cluster),
        _ => Right::Recover,
    }
}

/// What it takes to say yes to a guided recovery.
pub fn right_to_recover(api: &Api, cluster: &str) -> Right {
    match api.config.get().clusters.iter().any(|c| c.name == cluster && c.repoints) {
        true => Right::Repoint,
        false => Right::Recover,
    }
}

pub fn approve_job(api: &Api, asked: &Asked<'_>) -> Made {
    let job = own_job(api, asked, Right::View)?;
    let caller = asked.caller()?;
    if job.state != JobState::WaitingForApproval {
        let message = format!("the job does not wait for approval: it is {}", job.state);
        return Err(Problem::new(StatusCode::CONFLICT, "E-APPROVAL-STATE", message));
    }
    let right = right_to_approve(api, &job.request, &job.cluster);
    if !caller.may(right, Some(&job.cluster)) {
        return Err(match right {
            Right::Repoint => Problem::not_allowed()
                .hint("it points an application to another database: app-admin or admin of the cluster approves it"),
            _ => Problem::not_allowed(),
        });
    }
    if job.requester.as_deref() == Some(&caller.identity()) {
        let message = "who asked for it does not approve it";
        return Err(Problem::new(StatusCode::FORBIDDEN, "E-APPROVAL-SELF", message)
            .hint("somebody else whose role allows it does, with a token, user or certificate of their own"));
    }
    let approved = api.state.approve_job(&job.id, &caller.shown(), asked.now)?;
    if approved.approved_by.is_none() {
        let message = format!("it is too late: the job is {}", approved.state);
        return Err(Problem::new(StatusCode::CONFLICT, "E-APPROVAL-STATE", message));
    }
    tracing::warn!(target: "pgark", job = %job.id, cluster = %job.cluster, by = caller.shown(), "a job was approved");
    ok(shown(&approved, true, api))
}
