//! Drills, and the reports of everything that was restored or compared.

use std::time::Duration;

use axum::http::StatusCode;
use maud::{Markup, html};
use serde_json::Value;

use super::parts::{
    self, Text, Tone, bytes, duration, empty, number, outcome, pill, segment, since, tree, verdict, word,
};
use super::{Page, Place, age, job_button, may, nothing, of_cluster, path, told, trouble};
use crate::access::Right;
use crate::http::api::{self, Made};
use crate::http::{Answer, Api, Asked, knowledge};
use crate::known::{list, time};

const WAITS: Duration = Duration::from_millis(1500);

pub fn all(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let reports = told(api::reports(api, asked))?;
    let drills = told(api::drills(api, asked))?;
    let drill = drills.get("drill").unwrap_or(&Value::Null);
    let last = drill.get("last").unwrap_or(&Value::Null);
    let body = html! {
        (of_cluster(name, "/reports"))
        h1 { "Drills and reports of " (Text(name)) }
        div #state data-live-part {
            (age(&reports, asked))
            dl.answers {
                div { dt { "Last drill" } dd {
                    @if last.is_object() {
                        (verdict(word(last, "verdict")))
                        span.sub { @if let Some(at) = time(last, "time") { (since(at, asked.now)) } }
                    } @else { (never(drill)) }
                } }
                div { dt { "Last green one" } dd {
                    @match time(drill, "last_green") { Some(at) => (since(at, asked.now)), None => (never(drill)) }
                } }
                @for forecast in list(drill, "forecasts") {
                    div { dt { "Expected, " (Text(word(forecast, "kind"))) } dd {
                        "about " (duration(number(forecast, "expected_ms").unwrap_or(0)))
                        span.sub { (duration(number(forecast, "least_ms").unwrap_or(0))) " to " (duration(number(forecast, "most_ms").unwrap_or(0)))
                            ", confidence " (Text(word(forecast, "confidence"))) }
                    } }
                }
            }
            @if may(asked, Right::Operate, name) {
                div.buttons {
                    (job_button(asked, name, &[("job", "drill")], "Rehearse a recovery"))
                    (job_button(asked, name, &[("job", "drill"), ("backup", "random")], "Rehearse a random backup"))
                }
            }
            h2 { "Reports" }
            @let found = list(&reports, "reports");
            @if found.is_empty() { (nothing(&reports, "There are no reports.")) } @else {
                table.cards {
                    caption.hidden { "Reports, the newest first" }
                    thead { tr { th scope="col" { "Written" } th scope="col" { "Of" } th scope="col" { "Says" } th scope="col" { "Backup" } th scope="col" { "" span.hidden { "Severity" } } } }
                    tbody { @for report in found { (row(report, name, asked)) } }
                }
            }
        }
    };
    Page { title: &format!("Drills and reports of {name}"), place: Place::Clusters, body }.shown(asked)
}

/// Unless nobody knows yet.
fn never(drill: &Value) -> Markup {
    if drill.is_object() {
        html! { span.unknown { "never" } }
    } else {
        parts::unknown()
    }
}

fn row(report: &Value, cluster: &str, asked: &Asked<'_>) -> Markup {
    let id = word(report, "id");
    html! {
        tr {
            th scope="row" {
                a href={ "/clusters/" (segment(cluster)) "/reports/" (segment(id)) } {
                    @match time(report, "written") { Some(at) => (since(at, asked.now)), None => (Text(id)) }
                }
            }
            td data-name="Of" { (Text(word(report, "what"))) }
            td data-name="Says" {
                @if word(report, "damaged").is_empty() { (Text(word(report, "summary"))) } @else { strong.bad { "cannot be read: " (Text(word(report, "damaged"))) } }
            }
            td data-name="Backup" { (Text(word(report, "backup"))) }
            td data-name="Severity" { (severity(word(report, "severity"))) }
        }
    }
}

fn severity(word: &str) -> Markup {
    match word {
        "info" => pill(Tone::Good, "info"),
        "warning" => pill(Tone::Warn, "warning"),
        "incident" | "critical" => pill(Tone::Bad, word),
        _ => pill(Tone::Unknown, "not known"),
    }
}

pub fn one(api: &Api, asked: &Asked<'_>) -> Made {
    let (name, id) = (path(asked, "cluster"), path(asked, "report"));
    let title = format!("Report {id}");
    let body = html! {
        (of_cluster(name, "/reports"))
        @match knowledge::report_within(api, asked, WAITS) {
            Ok(Answer::Json(StatusCode::ACCEPTED, _)) => {
                h1 { (Text(&title)) }
                p.progress role="status" data-reload { span.spinner aria-hidden="true" {} "The report is being read from the repository." }
                p { a href="" { "Look again" } }
            },
            Ok(Answer::Json(_, stored)) => (shown(&stored, asked)),
            Ok(_) => (empty("There is no report.")),
            Err(problem) => { h1 { (Text(&title)) } (trouble(&problem)) },
        }
    };
    Page { title: &title, place: Place::Clusters, body }.shown(asked)
}

fn shown(stored: &Value, asked: &Asked<'_>) -> Markup {
    let report = stored.get("report").unwrap_or(&Value::Null);
    let title = format!("{} of {}", word(stored, "what"), word(stored, "id"));
    html! {
        div.heading { h1 { (Text(&title)) } (severity(word(stored, "severity"))) }
        p.lead { (Text(word(stored, "summary"))) }
        p.age { "Written " @if let Some(at) = time(stored, "written") { (since(at, asked.now)) } "." }
        @if word(stored, "what") == "drill" { (drill(report)) }
        details.what open[word(stored, "what") != "drill"] { summary { "The whole report" } (tree(report)) }
    }
}

fn drill(report: &Value) -> Markup {
    let objective = |key: &str| {
        let of = report.get(key).unwrap_or(&Value::Null);
        let (target, measured) = (number(of, "target_ms"), number(of, "measured_ms"));
        html! {
            @match measured { Some(ms) => (duration(ms)), None => span.unknown { "not measured" } }
            @match (target, measured) {
                (None, _) => span.sub { "none is set" },
                (Some(t), Some(m)) if m <= t => span.sub { "of " (duration(t)) ": kept" },
                (Some(t), Some(_)) => span.sub { strong.bad { "of " (duration(t)) ": missed" } },
                (Some(t), None) => span.sub { "of " (duration(t)) ": not checked" },
            }
        }
    };
    let databases = list(report, "databases");
    html! {
        dl.answers {
            div { dt { "Verdict" } dd { (verdict(word(report, "verdict"))) } }
            div { dt { "Recovery took (RTO)" } dd { (objective("rto")) } }
            div { dt { "Would have lost (RPO)" } dd { (objective("rpo")) } }
            div { dt { "Backup" } dd { (Text(word(report, "backup"))) span.sub { (Text(word(report, "target"))) } } }
        }
        (lines("Why it is red", list(report, "reasons")))
        (lines("What was not checked", list(report, "not_checked")))
        (lines("Notes", list(report, "notes")))
        h2 { "Steps" }
        table {
            caption.hidden { "Steps of the drill" }
            thead { tr { th scope="col" { "Step" } th.n scope="col" { "Took" } th.n scope="col" { "Bytes" } } }
            tbody {
                @for step in list(report, "steps") {
                    tr { th scope="row" { (Text(word(step, "step"))) } td.n { (duration(number(step, "duration_ms").unwrap_or(0))) } td.n { (bytes(number(step, "bytes").unwrap_or(0))) } }
                }
            }
        }
        h2 { "Checks" }
        div.scroll tabindex="0" role="region" aria-label="Checks" {
            table {
                caption.hidden { "Checks of the drill" }
                thead { tr { th scope="col" { "Of" } th scope="col" { "Check" } th scope="col" { "Outcome" } th.n scope="col" { "Checked" } th scope="col" { "Remarks" } } }
                tbody {
                    @for check in list(report, "checks") { (check_row("cluster", check)) }
                    @for database in databases {
                        @let name = database.get("database").map_or(String::new(), |d| d.as_str().map_or_else(|| d.to_string(), str::to_owned));
                        @for check in list(database, "checks") { (check_row(&name, check)) }
                    }
                }
            }
        }
    }
}

fn check_row(of: &str, check: &Value) -> Markup {
    let remarks =
        ["details", "reasons", "notes"].into_iter().flat_map(|key| list(check, key)).filter_map(Value::as_str);
    html! {
        tr {
            td { (Text(of)) }
            th scope="row" { (Text(word(check, "name"))) }
            td { (outcome(word(check, "outcome"))) @if parts::is(check, "expected") { span.sub { "as asked for" } } }
            td.n { (number(check, "checked").unwrap_or(0)) @let failed = number(check, "failed").unwrap_or(0); @if failed > 0 { ", " (failed) " wrong" } }
            td { @for remark in remarks { span.sub { (Text(remark)) } } }
        }
    }
}

fn lines(title: &str, all: &[Value]) -> Markup {
    html! {
        @if !all.is_empty() {
            h2 { (title) }
            ul {
                @for one in all {
                    li {
                        @match one { Value::String(s) => (Text(s)), other => { strong { (Text(word(other, "code"))) } " " (Text(word(other, "what"))) } }
                    }
                }
            }
        }
    }
}
