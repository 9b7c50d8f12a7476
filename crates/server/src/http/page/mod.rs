//! The dashboard: pages for people, made here of what the handlers of the API answer.
//!
//! Invariants: a page knows nothing that the API would not tell the same caller, and what its forms do goes through the handlers
//! of the API. Nothing gets into a page but through `maud`, which escapes it; what others have named is shown as `Text`. There is
//! no script and no style in a page, so that the policy of the server forbids both. Without its script every page still works.

pub mod alerts;
pub mod assets;
pub mod backups;
mod chart;
pub mod charts;
pub mod clusters;
pub mod jobs;
pub mod oidc;
mod parts;
pub mod plan;
pub mod recover;
pub mod reports;
pub mod sign;
mod timeline;
pub mod tokens;
pub mod watch;

use axum::http::{StatusCode, Uri};
use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::api::Made;
use super::{Answer, Asked, Problem};
use crate::access::{Caller, Grant, Right};
use parts::{Text, segment, word};

/// Where one is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Clusters,
    Jobs,
    Alerts,
    Schedules,
    Settings,
    Tokens,
    Elsewhere,
}

const PLACES: [(Place, &str, &str); 6] = [
    (Place::Clusters, "/", "Clusters"),
    (Place::Jobs, "/jobs", "Jobs"),
    (Place::Alerts, "/alerts", "Alerts"),
    (Place::Schedules, "/schedules", "Schedules"),
    (Place::Settings, "/settings", "Settings"),
    (Place::Tokens, "/tokens", "Tokens"),
];

pub struct Page<'a> {
    pub title: &'a str,
    pub place: Place,
    pub body: Markup,
}

/// What a handler of the API answered.
fn told(made: Made) -> Result<Value, Problem> {
    match made? {
        Answer::Json(_, value) => Ok(value),
        _ => Err(Problem::not_found()),
    }
}

impl Page<'_> {
    fn shown(self, asked: &Asked<'_>) -> Made {
        Ok(answer(StatusCode::OK, whole(&self, Some(asked)), vec![]))
    }
}

/// Nobody is led to where they may not go.
fn leads_to(place: Place, caller: &Caller) -> bool {
    place != Place::Tokens || caller.may(Right::Administer, None)
}

/// As a tooltip.
fn roles(caller: &Caller) -> String {
    let one = |grant: &Grant| match &grant.cluster {
        Some(cluster) => format!("{} of {cluster}", grant.role),
        None => grant.role.to_string(),
    };
    caller.grants.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn answer(status: StatusCode, html: Markup, cookies: Vec<String>) -> Answer {
    Answer::Page { status, html: html.into_string(), cookies }
}

fn whole(page: &Page<'_>, asked: Option<&Asked<'_>>) -> Markup {
    let caller = asked.and_then(|a| a.caller);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (Text(page.title)) " – pgark" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/app.css";
                script src="/assets/app.js" {}
            }
            body data-live[caller.is_some()] {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/" { img src="/assets/icon.svg" alt="" width="24" height="24"; "pgark" }
                    @if let Some(caller) = caller {
                        nav aria-label="Main" {
                            ul {
                                @for (place, to, name) in PLACES.into_iter().filter(|(place, ..)| leads_to(*place, caller)) {
                                    li { a href=(to) aria-current=[(place == page.place).then_some("page")] { (name) } }
                                }
                            }
                        }
                        div.who {
                            span.live data-live-state hidden { "live" }
                            button.quiet type="button" data-theme-button hidden { "Theme" }
                            span.caller title=(roles(caller)) { (Text(&caller.name)) }
                            @if let Some(csrf) = asked.and_then(|a| a.session).map(|s| &s.csrf) {
                                form method="post" action="/sign-out" {
                                    input type="hidden" name="csrf" value=(csrf);
                                    button.quiet type="submit" { "Sign out" }
                                }
                            } @else {
                                a href="/sign-in" { "Sign in" }
                            }
                        }
                    } @else {
                        div.who { button.quiet type="button" data-theme-button hidden { "Theme" } }
                    }
                }
                main #main tabindex="-1" { (page.body) }
                div.hidden role="status" aria-live="polite" data-announce {}
                footer {
                    "pgark " (env!("CARGO_PKG_VERSION")) ". Times are UTC."
                    @if let Some(asked) = asked { " Made " (parts::moment(asked.now)) "." }
                }
            }
        }
    }
}

/// Why there is no page. Who is not signed in is asked to.
pub fn problem(problem: &Problem, uri: &Uri) -> Answer {
    if problem.status == StatusCode::UNAUTHORIZED {
        return Answer::Goto { to: sign::asking_for(uri), cookies: vec![] };
    }
    let title = match problem.status {
        StatusCode::NOT_FOUND => "There is nothing here",
        StatusCode::FORBIDDEN => "That is not allowed",
        StatusCode::BAD_REQUEST | StatusCode::CONFLICT => "That cannot be done like this",
        StatusCode::UNPROCESSABLE_ENTITY => "That cannot be done",
        _ => "The server cannot answer",
    };
    let body = html! {
        h1 { (title) }
        (trouble(problem))
        p { a href="/" { "All clusters" } }
    };
    answer(problem.status, whole(&Page { title, place: Place::Elsewhere, body }, None), vec![])
}

/// Code, words and hint of what went wrong.
fn trouble(problem: &Problem) -> Markup {
    html! {
        div.notice.bad role="alert" {
            p { strong { (Text(&problem.code)) } " " (Text(&problem.message)) }
            @if let Some(hint) = &problem.hint { p { "Hint: " (Text(hint)) } }
        }
    }
}

/// The way back, and the pages of a cluster.
fn of_cluster(cluster: &str, here: &str) -> Markup {
    let at = format!("/clusters/{}", segment(cluster));
    let pages = [
        ("", "Overview"),
        ("/backups", "Backups"),
        ("/charts", "Charts"),
        ("/reports", "Drills and reports"),
        ("/audit", "Audit"),
    ];
    html! {
        p.crumbs { a href="/" { "Clusters" } " / " a href=(at) { (Text(cluster)) } }
        nav.tabs aria-label="Cluster" {
            ul {
                @for (page, name) in pages {
                    li { a href={ (at) (page) } aria-current=[(page == here).then_some("page")] { (name) } }
                }
            }
        }
    }
}

/// How old what is shown is. Nothing that was not read is passed off as empty.
fn age(value: &Value, asked: &Asked<'_>) -> Markup {
    let source = value.get("source").unwrap_or(&Value::Null);
    let refreshed = crate::known::time(source, "refreshed");
    let error = source.get("error").and_then(Value::as_str);
    html! {
        @match (refreshed, error) {
            (Some(at), None) => p.age { "As of " (parts::since(at, asked.now)) "." },
            (Some(at), Some(error)) => div.notice.warn role="status" {
                p { strong { "This is old. " } "It was read " (parts::since(at, asked.now)) "; since then: " (Text(error)) }
            },
            (None, Some(error)) => div.notice.bad role="status" {
                p { strong { "This could not be read: " } (Text(error)) }
            },
            (None, None) => div.notice role="status" {
                p { strong { "This was not read yet. " } "The server is looking; it comes within a minute or two." }
            },
        }
    }
}

/// In place of a list without entries: that there are none, or that nobody knows yet.
fn nothing(value: &Value, words: &str) -> Markup {
    parts::empty(if was_read(value) { words } else { "Not known: it was not read yet." })
}

fn was_read(value: &Value) -> bool {
    value.get("source").and_then(|source| crate::known::time(source, "refreshed")).is_some()
}

/// Whether the caller may, for what is offered; whether it is done, the handlers decide.
fn may(asked: &Asked<'_>, right: Right, cluster: &str) -> bool {
    asked.session.is_some() && asked.caller.is_some_and(|c| c.may(right, Some(cluster)))
}

/// The hidden field that each form has.
fn csrf(asked: &Asked<'_>) -> Markup {
    html! { input type="hidden" name="csrf" value=(asked.session.map_or("", |s| s.csrf.as_str())); }
}

/// A button that starts a job.
fn job_button(asked: &Asked<'_>, cluster: &str, fields: &[(&str, &str)], name: &str) -> Markup {
    html! {
        form.inline method="post" action={ "/clusters/" (segment(cluster)) "/jobs" } {
            (csrf(asked))
            @for (key, value) in fields { input type="hidden" name=(key) value=(value); }
            button type="submit" { (name) }
        }
    }
}

/// So that nobody confirms what they do not look at.
fn confirmation(cluster: &str) -> Markup {
    html! {
        label for="confirm" { "To confirm, type the name of the cluster: " strong { (Text(cluster)) } }
        input #confirm type="text" name="confirm" required autocomplete="off" autocapitalize="off" spellcheck="false";
    }
}

/// The pages that a list has: the next one begins after this id.
fn older(to: &str, before: Option<&str>) -> Markup {
    html! { @if let Some(before) = before { p { a href={ (to) (segment(before)) } { "Older ones" } } } }
}

fn path<'a>(asked: &'a Asked<'_>, name: &str) -> &'a str {
    asked.path(name).unwrap_or_default()
}

fn kind_of(backup: &Value) -> String {
    match word(backup, "kind") {
        "physical" => format!("physical, {}", word(backup, "type")),
        kind => kind.to_owned(),
    }
}
