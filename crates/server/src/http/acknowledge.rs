//! Somebody looks after an alert. It is a job of the alert's cluster: written down before it is answered, done by the command that one
//! would type, and in the audit trail with who asked for it.

use axum::http::StatusCode;
use serde_json::Value;

use super::api::{Made, accepted, new_job};
use super::{Api, Asked, Problem};
use crate::jobs::Request;
use crate::known::{list, read, source, time};
use crate::refresh::HOST;

pub fn acknowledge(api: &Api, asked: &Asked<'_>) -> Made {
    let id = asked.path("alert").unwrap_or_default();
    let known = api.state.document("alerts", HOST)?;
    let unread = || Problem::unread("which alerts there are", &source(known.as_ref()));
    let all = list(read(known.as_ref()).ok_or_else(unread)?, "alerts");
    let of = |alert: &Value| alert.get("cluster").and_then(Value::as_str).unwrap_or_default().to_owned();
    // Of those that the caller does not see it is not even said that they are there.
    let mut seen = all.iter().filter(|alert| asked.sees(&of(alert)));
    let alert = seen.find(|alert| alert.get("id").is_some_and(|own| own == id)).ok_or_else(unknown)?;
    if time(alert, "resolved").is_some() {
        let message = "the alert is over: there is nothing to look after";
        return Err(Problem::new(StatusCode::CONFLICT, "E-ALERT-NONE", message)
            .hint("if it comes back, it is another alert, which nobody looks after yet"));
    }
    let job = new_job(api, asked, &of(alert), Request::Acknowledge { alert: id.to_owned() }, false)?;
    Ok(accepted(&job, api))
}

fn unknown() -> Problem {
    Problem::not_found().hint("GET /api/v1/alerts has them, as they were within the last minute")
}
