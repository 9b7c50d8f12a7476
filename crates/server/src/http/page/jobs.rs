//! Jobs: what runs, what came of the others; started and cancelled here as by the API.

use axum::http::StatusCode;
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::parts::{self, Text, duration, empty, job_state, number, segment, since, tree, word};
use super::{Page, Place, csrf, may, older, told};
use crate::access::Right;
use crate::http::api::{self, Made, job_of};
use crate::http::approve::{approve_job, right_to_approve};
use crate::http::{Answer, Api, Asked, Problem};
use crate::jobs::{Job, JobState};
use crate::known::{list, time};

const STATES: [&str; 9] = [
    "waiting_for_approval",
    "queued",
    "running",
    "done",
    "warnings",
    "failed",
    "cancelled",
    "timed_out",
    "interrupted",
];

/// Fields of a form that are words of a job, or confirm it.
const WORDS: [&str; 12] = [
    "job",
    "kind",
    "type",
    "repo",
    "backup",
    "from",
    "to",
    "target_time",
    "target_lsn",
    "target_name",
    "reason",
    "confirm",
];

pub fn all(api: &Api, asked: &Asked<'_>) -> Made {
    let value = told(api::jobs(api, asked))?;
    let jobs = list(&value, "jobs");
    let chosen = asked.query("state").unwrap_or_default();
    let last = (jobs.len() >= api::limit(asked)?).then(|| jobs.last().map(|j| word(j, "id"))).flatten();
    let body = html! {
        h1 { "Jobs" }
        form.filter method="get" action="/jobs" {
            label for="job-state" { "State" }
            select #job-state name="state" {
                @for state in STATES { option value=(state) selected[state == chosen] { (state.replace('_', " ")) } }
            }
            button type="submit" { "Show" }
            @if !chosen.is_empty() { a href="/jobs" { "All states" } }
        }
        div #list data-live-part { (table(jobs.iter(), asked, true)) }
        (older(&format!("/jobs?{}before=", if chosen.is_empty() { String::new() } else { format!("state={chosen}&") }), last))
    };
    Page { title: "Jobs", place: Place::Jobs, body }.shown(asked)
}

/// What it does, as one says it.
pub fn what(request: &Value) -> String {
    let mut words = vec![word(request, "job").replace('_', " ")];
    for key in ["kind", "type", "backup", "target_time", "target_lsn", "target_name", "alert"] {
        if !word(request, key).is_empty() {
            words.push(word(request, key).to_owned());
        }
    }
    words.join(", ")
}

pub fn table<'a>(jobs: impl Iterator<Item = &'a Value>, asked: &Asked<'_>, with_cluster: bool) -> Markup {
    let mut jobs = jobs.peekable();
    if jobs.peek().is_none() {
        return empty("There are no jobs.");
    }
    html! {
        table.cards {
            caption.hidden { "Jobs, the newest first" }
            thead {
                tr {
                    th scope="col" { "Job" }
                    @if with_cluster { th scope="col" { "Cluster" } }
                    th scope="col" { "State" }
                    th scope="col" { "Asked for" }
                    th scope="col" { "Took" }
                    th scope="col" { "By" }
                }
            }
            tbody {
                @for job in jobs {
                    tr {
                        th scope="row" {
                            a href={ "/jobs/" (segment(word(job, "id"))) } {
                                (Text(&what(job.get("request").unwrap_or(&Value::Null)))) span.hidden { " " (word(job, "id")) }
                            }
                        }
                        @if with_cluster {
                            td data-name="Cluster" { a href={ "/clusters/" (segment(word(job, "cluster"))) } { (Text(word(job, "cluster"))) } }
                        }
                        td data-name="State" {
                            div {
                                (job_state(word(job, "state")))
                                span.sub data-job-progress=(word(job, "id")) { (Text(word(job, "progress"))) }
                                @if !word(job, "error_code").is_empty() { span.sub { (Text(word(job, "error_code"))) } }
                            }
                        }
                        td data-name="Asked for" { @if let Some(at) = time(job, "created") { (since(at, asked.now)) } }
                        td data-name="Took" { (took(job, asked)) }
                        td data-name="By" { (Text(word(job, "requested_by"))) }
                    }
                }
            }
        }
    }
}

fn took(job: &Value, asked: &Asked<'_>) -> Markup {
    let Some(started) = time(job, "started") else { return html! {} };
    let ms = time(job, "finished").unwrap_or(asked.now).duration_since(started).as_millis();
    html! { (duration(u64::try_from(ms).unwrap_or(0))) }
}

pub fn one(api: &Api, asked: &Asked<'_>) -> Made {
    let own = api::own_job(api, asked, Right::View)?;
    let job = api::shown(&own, true, api);
    let (id, cluster, state) = (word(&job, "id"), word(&job, "cluster"), word(&job, "state"));
    let request = job.get("request").unwrap_or(&Value::Null);
    let open = !own.state.is_final();
    let right = own.request.right();
    let title = format!("{} of {cluster}", what(request));
    let body = html! {
        p.crumbs { a href="/jobs" { "Jobs" } " / " a href={ "/clusters/" (segment(cluster)) } { (Text(cluster)) } }
        div #job data-live-part data-job=(id) data-job-open[open] {
            div.heading { h1 { (Text(&title)) } (job_state(state)) }
            @if open {
                p.progress { span.spinner aria-hidden="true" {} span data-job-progress=(id) { (Text(progress(&job, state))) } }
            }
            @if !word(&job, "message").is_empty() {
                div.notice.bad role="status" { p { strong { (Text(word(&job, "error_code"))) } " " (Text(word(&job, "message"))) } }
            }
            dl.facts {
                div { dt { "Id" } dd { code { (id) } } }
                div { dt { "By" } dd { (Text(word(&job, "requested_by"))) } }
                @if !word(&job, "approved_by").is_empty() { div { dt { "Approved by" } dd { (Text(word(&job, "approved_by"))) } } }
                div { dt { "Asked for" } dd { @if let Some(at) = time(&job, "created") { (since(at, asked.now)) } } }
                div { dt { "Begun" } dd { @match time(&job, "started") { Some(at) => (parts::moment(at)), None => "not yet" } } }
                div { dt { "Over" } dd { @match time(&job, "finished") { Some(at) => (parts::moment(at)), None => "not yet" } } }
                div { dt { "Took" } dd { (took(&job, asked)) } }
                @if let Some(code) = job.get("exit_code").and_then(Value::as_i64) { div { dt { "Exit code" } dd { (code) } } }
                @if number(&job, "attempt").unwrap_or(1) > 1 { div { dt { "Attempt" } dd { (number(&job, "attempt").unwrap_or(1)) } } }
            }
            @if own.state == JobState::WaitingForApproval { (approval(api, &own, asked)) }
            @if open && may(asked, right, cluster) {
                @if time(&job, "cancel_requested").is_some() {
                    p.notice.warn role="status" { "It was told to end, and stops at its next safe point." }
                } @else {
                    form.inline method="post" action={ "/jobs/" (segment(id)) "/cancel" } {
                        (csrf(asked))
                        button.danger type="submit" { "Cancel this job" }
                    }
                }
            }
            @let result = job.get("result").unwrap_or(&Value::Null);
            @if !open && result.is_object() && result.get("error").is_none() {
                section aria-labelledby="result-h" {
                    h2 #result-h { "Result" }
                    @if word(request, "job") == "backup" && !word(result, "id").is_empty() {
                        p { a href={ "/clusters/" (segment(cluster)) "/backups/" (segment(word(result, "id"))) } { "Backup " (Text(word(result, "id"))) } }
                    }
                    details.what open { summary { "What it printed" } (tree(result)) }
                }
            }
            section aria-labelledby="log-h" {
                h2 #log-h { "Log" }
                @let log = word(&job, "log");
                @if log.is_empty() { (empty("Nothing is logged yet.")) } @else {
                    pre.log tabindex="0" role="region" aria-label="Log" { (Text(log)) }
                }
            }
        }
    };
    Page { title: &title, place: Place::Jobs, body }.shown(asked)
}

fn progress<'a>(job: &'a Value, state: &str) -> &'a str {
    match (word(job, "progress"), state) {
        ("", "waiting_for_approval") => "It waits until somebody else says yes.",
        ("", "queued") => "It waits for its turn.",
        ("", _) => "It has begun.",
        (progress, _) => progress,
    }
}

/// Who may say yes, and until when; with the button for who may.
fn approval(api: &Api, job: &Job, asked: &Asked<'_>) -> Markup {
    let right = right_to_approve(api, &job.request, &job.cluster);
    let is_own = asked.caller.is_some_and(|c| job.requester.as_deref() == Some(&c.identity()));
    html! {
        div.notice.warn role="status" {
            p {
                @if right == Right::Repoint {
                    "This points an application to another database, and begins when somebody with the role app-admin or admin has approved it"
                } @else {
                    "This restores or removes something, and begins when a second person has approved it"
                }
                @if let Some(until) = job.approve_until { ", until " (parts::moment(until)) }
                "."
            }
            @if is_own { p { "You have asked for it yourself: somebody else has to." } }
        }
        @if !is_own && may(asked, right, &job.cluster) {
            form.inline method="post" action={ "/jobs/" (segment(&job.id)) "/approve" } {
                (csrf(asked))
                button.danger type="submit" { "Approve this job" }
            }
        }
    }
}

/// The form of a job, whatever page it was on.
pub fn create(api: &Api, asked: &Asked<'_>) -> Made {
    let mut body = Map::new();
    for key in WORDS {
        if let Some(value) = asked.field(key) {
            body.insert(key.into(), value.into());
        }
    }
    for key in ["quick", "database", "config", "files"] {
        if asked.field(key).is_some() {
            body.insert(key.into(), true.into());
        }
    }
    let job = job_of(api, asked, body.into())?;
    Ok(Answer::Goto { to: format!("/jobs/{}", segment(&job.id)), cookies: vec![] })
}

pub fn cancel(api: &Api, asked: &Asked<'_>) -> Made {
    back_to(&told(api::cancel_job(api, asked))?)
}

pub fn approve(api: &Api, asked: &Asked<'_>) -> Made {
    back_to(&told(approve_job(api, asked))?)
}

fn back_to(job: &Value) -> Made {
    match word(job, "id") {
        "" => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "E-INTERNAL", "the job has no id")),
        id => Ok(Answer::Goto { to: format!("/jobs/{}", segment(id)), cookies: vec![] }),
    }
}
