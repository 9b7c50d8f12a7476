//! The audit trail, schedules, settings.

use maud::{Markup, html};
use serde_json::Value;

use super::parts::{self, Text, Tone, empty, pill, segment, since, tree, word};
use super::{Page, Place, age, nothing, of_cluster, path, told};
use crate::http::api::{self, Made};
use crate::http::{Api, Asked, knowledge};
use crate::known::{list, time};

pub fn audit(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let value = told(knowledge::audit(api, asked))?;
    let events = list(&value, "events");
    let damaged = list(&value, "damaged");
    let body = html! {
        (of_cluster(name, "/audit"))
        h1 { "Audit trail of " (Text(name)) }
        div #state data-live-part {
            (age(&value, asked))
            p.help { "‘pgark audit verify’ proves that none is missing, changed or exchanged." }
            @for line in damaged { div.notice.bad { p { (Text(line.as_str().unwrap_or_default())) } } }
            @if events.is_empty() { (nothing(&value, "Nothing of the trail is known.")) } @else {
                table.cards {
                    caption.hidden { "What was tried, the newest first" }
                    thead { tr { th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "Command" } th scope="col" { "Came of it" } th scope="col" { "Arguments" } } }
                    tbody { @for event in events.iter().rev() { (event_row(event, asked)) } }
                }
            }
        }
    };
    Page { title: &format!("Audit trail of {name}"), place: Place::Clusters, body }.shown(asked)
}

fn event_row(event: &Value, asked: &Asked<'_>) -> Markup {
    let end = event.get("end").unwrap_or(&Value::Null);
    let who = format!("{}@{}", word(event, "user"), word(event, "host"));
    let arguments: Vec<&str> = list(event, "arguments").iter().filter_map(Value::as_str).collect();
    html! {
        tr {
            th scope="row" { @if let Some(at) = time(event, "at") { (since(at, asked.now)) } }
            td data-name="Who" { div { (Text(&who)) @if !word(event, "sudo_user").is_empty() { span.sub { (Text(word(event, "sudo_user"))) } } } }
            td data-name="Command" { (Text(word(event, "command"))) }
            td data-name="Came of it" {
                @match (parts::is(event, "ended"), end.get("exit_code").and_then(Value::as_i64)) {
                    (_, Some(0)) => (pill(Tone::Good, "done")),
                    (_, Some(3)) => (pill(Tone::Warn, "warnings")),
                    (_, Some(code)) => div { (pill(Tone::Bad, &format!("exit {code}"))) span.sub { (Text(word(end, "error"))) } },
                    (true, None) => "",
                    (false, None) => (pill(Tone::Unknown, "no end: killed, or running")),
                }
            }
            td.break data-name="Arguments" { code { (Text(&arguments.join(" "))) } }
        }
    }
}

pub fn schedules(api: &Api, asked: &Asked<'_>) -> Made {
    let value = told(api::schedules(api, asked))?;
    let all = list(&value, "schedules");
    let body = html! {
        h1 { "Schedules" }
        div #state data-live-part {
            @if all.is_empty() { (empty("No schedule is set: [[schedules]] in pgark.toml makes one.")) } @else {
                table.cards {
                    caption.hidden { "Schedules and when they run next" }
                    thead { tr { th scope="col" { "Schedule" } th scope="col" { "Cluster" } th scope="col" { "Does" } th scope="col" { "Next" } th scope="col" { "Last success" } } }
                    tbody {
                        @for schedule in all {
                            tr {
                                th scope="row" { (Text(word(schedule, "name"))) span.sub { (Text(word(schedule, "time_zone"))) } }
                                td data-name="Cluster" { a href={ "/clusters/" (segment(word(schedule, "cluster"))) } { (Text(word(schedule, "cluster"))) } }
                                td data-name="Does" { (Text(&super::jobs::what(schedule.get("request").unwrap_or(&Value::Null)))) }
                                td data-name="Next" {
                                    div {
                                        @let next = list(schedule, "next").first().and_then(Value::as_str).and_then(|t| t.parse().ok());
                                        @if parts::is(schedule, "running") { (pill(Tone::Busy, "runs now")) " " }
                                        @match next { Some(at) => (since(at, asked.now)), None => "never" }
                                    }
                                }
                                td data-name="Last success" {
                                    div {
                                        @match time(schedule, "last_success") { Some(at) => (since(at, asked.now)), None => span.unknown { "none yet" } }
                                        @if time(schedule, "overdue_since").is_some() { " " (pill(Tone::Bad, "overdue")) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    Page { title: "Schedules", place: Place::Schedules, body }.shown(asked)
}

pub fn settings(api: &Api, asked: &Asked<'_>) -> Made {
    let value = told(knowledge::settings(api, asked))?;
    let all = list(&value, "settings");
    let set = |s: &&Value| s.get("value").is_some_and(|v| !v.is_null());
    let only_set = asked.query("all").is_none();
    let body = html! {
        h1 { "Settings in effect" }
        p { "The server and its jobs go by these. Secrets are not shown. They are changed in the files, or where the last column says, and count after a reload." }
        (age(&value, asked))
        @for file in list(&value, "changed_since").iter().filter_map(Value::as_str) {
            div.notice.warn role="status" {
                p { strong { "The file has changed since: " } code { (Text(file)) } ". What it says now counts after a reload (SIGHUP); the server's log says what is wrong when that changes nothing." }
            }
        }
        nav.spans aria-label="Which settings" {
            ul {
                li { a href="/settings" aria-current=[only_set.then_some("true")] { "that have a value" } }
                li { a href="/settings?all=1" aria-current=[(!only_set).then_some("true")] { "all" } }
            }
        }
        @if all.is_empty() { (nothing(&value, "There are none.")) } @else {
            table.cards {
                caption.hidden { "Settings" }
                thead { tr { th scope="col" { "Setting" } th scope="col" { "Value" } th scope="col" { "From" } } }
                tbody {
                    @for setting in all.iter().filter(|s| !only_set || set(s)) {
                        tr {
                            th.break scope="row" { code { (Text(word(setting, "key"))) } }
                            td.break data-name="Value" { (tree(setting.get("value").unwrap_or(&Value::Null))) }
                            td.break data-name="From" { (Text(word(setting, "origin"))) }
                        }
                    }
                }
            }
        }
    };
    Page { title: "Settings", place: Place::Settings, body }.shown(asked)
}
