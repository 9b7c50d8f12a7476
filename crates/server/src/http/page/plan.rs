//! How a restore to a moment would be done: the plan that the command line makes, the command, and the form that does it.

use std::time::Duration;

use axum::http::StatusCode;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use maud::{Markup, html};
use serde_json::Value;

use super::parts::{self, Text, number, word};
use super::{Page, Place, confirmation, csrf, may, of_cluster, path, trouble};
use crate::access::Right;
use crate::http::api::Made;
use crate::http::{Answer, Api, Asked, Problem, knowledge};
use crate::known::{list, time};

/// Then one sees that it is under way.
pub(super) const WAITS: Duration = Duration::from_millis(1500);

/// What the form of the timeline says, in words of the API.
pub(super) struct Wanted {
    pub query: Vec<(String, String)>,
    pub said: String,
}

/// A civil time without a zone is one of UTC, as the form says.
fn moment_of(text: &str) -> Option<Timestamp> {
    let civil = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp());
    text.parse().ok().or_else(civil)
}

pub(super) fn wanted(asked: &Asked<'_>) -> Result<Wanted, Problem> {
    let given = |key: &str| asked.query(key).map(str::trim).filter(|value| !value.is_empty());
    let mut query = vec![];
    let mut said = vec![];
    if let Some(text) = given("time") {
        let at = moment_of(text).ok_or_else(|| Problem::wrong("that is no moment such as 2026-01-02 03:04:05"))?;
        query.push(("target_time".to_owned(), at.to_string()));
        said.push(format!("to {} UTC", at.strftime("%Y-%m-%d %H:%M:%S")));
    }
    for (key, name, words) in [
        ("lsn", "target_lsn", "to position"),
        ("name", "target_name", "to restore point"),
        ("backup", "backup", "of backup"),
    ] {
        if let Some(value) = given(key) {
            query.push((name.to_owned(), value.to_owned()));
            said.push(format!("{words} {value}"));
        }
    }
    Ok(Wanted { query, said: if said.is_empty() { "to the end of the archive".into() } else { said.join(", ") } })
}

pub fn plan(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let mut wanted = wanted(asked)?;
    if let Some(to) = asked.query("to").map(str::trim).filter(|to| !to.is_empty()) {
        wanted.query.push(("to".to_owned(), to.to_owned()));
        wanted.said.push_str(&format!(", into {to}"));
    }
    let found = knowledge::plan_within(api, &asked.again(wanted.query.clone()), WAITS);
    let body = html! {
        (of_cluster(name, "/plan"))
        h1 { "Restore " (Text(&wanted.said)) }
        @match &found {
            Ok(Answer::Json(StatusCode::ACCEPTED, _)) => {
                p.progress role="status" data-reload { span.spinner aria-hidden="true" {} "The plan is being worked out from the repository." }
                p { a href="" { "Look again" } }
            },
            Ok(Answer::Json(_, value)) => (ready(value, &wanted, asked, name)),
            Ok(_) => (trouble(&Problem::not_found())),
            Err(problem) => {
                p { (parts::pill(parts::Tone::Bad, "This cannot be done")) }
                (trouble(problem))
                p { "Nothing was changed. The timeline shows which moments can be recovered." }
            },
        }
        p { a href={ "/clusters/" (parts::segment(name)) "#plan-h" } { "Choose another moment" } }
    };
    Page { title: "Plan of a restore", place: Place::Clusters, body }.shown(asked)
}

fn ready(value: &Value, wanted: &Wanted, asked: &Asked<'_>, cluster: &str) -> Markup {
    let plan = value.get("plan").unwrap_or(&Value::Null);
    let (resolved, wal) = (plan.get("resolved").unwrap_or(&Value::Null), plan.get("wal").unwrap_or(&Value::Null));
    let command: Vec<String> = list(value, "command").iter().filter_map(Value::as_str).map(quoted).collect();
    let notes = list(plan, "notes");
    let words = |(key, value): &(String, String)| {
        let key = key.strip_prefix("target_").unwrap_or(key);
        format!("{key}={}", parts::segment(value))
    };
    // The same moment, for the other way to it.
    let moment: Vec<String> = wanted.query.iter().filter(|(key, _)| key != "to").map(words).collect();
    html! {
        p { (parts::pill(parts::Tone::Good, "This can be done")) " Nothing is changed by looking." }
        dl.facts {
            div { dt { "Ends at" } dd { @match time(resolved, "time") {
                Some(at) => (parts::moment(at)),
                // A restore point and a position have no time of their own.
                None if wanted.query.iter().any(|(key, _)| key.starts_with("target_")) => "the position beside, whose time is not known",
                None => "the end of the archive",
            } } }
            div { dt { "Position" } dd { code { (Text(word(resolved, "lsn"))) } @if let Some(n) = number(resolved, "timeline") { ", timeline " (n) } } }
            div { dt { "From backup" } dd { (Text(word(plan, "backup"))) } }
            div { dt { "WAL" } dd { code { (Text(word(wal, "from"))) } " to " code { (Text(word(wal, "to"))) } } }
        }
        @if !notes.is_empty() {
            h2 { "Notes" }
            ul { @for note in notes { li { (Text(note.as_str().unwrap_or_default())) } } }
        }
        h2 #command-h { "The command" }
        p { "It does the same, on any machine that has the settings and the key; DIR is a directory that is empty or not there yet." }
        pre.command tabindex="0" role="region" aria-labelledby="command-h" { code data-copied { (Text(&command.join(" "))) } }
        p { button.quiet type="button" data-copy hidden { "Copy" } }
        p {
            "A restore brings back data, and leaves what runs alone. To stop the application, replace the cluster and start both again: "
            a href={ "/clusters/" (parts::segment(cluster)) "/recover?" (moment.join("&")) } { "the guided recovery to this moment" } "."
        }
        @if may(asked, Right::Recover, cluster) {
            section aria-labelledby="do-h" {
                h2 #do-h { "Restore on this server" }
                form.stacked method="post" action={ "/clusters/" (parts::segment(cluster)) "/jobs" } {
                    (csrf(asked))
                    input type="hidden" name="job" value="restore";
                    @for (key, value) in wanted.query.iter().filter(|(key, _)| key != "to") { input type="hidden" name=(key) value=(value); }
                    label for="to" { "Directory on this server (empty, or not there yet)" }
                    input #to type="text" name="to" required pattern="/.*" placeholder="/var/lib/postgresql/restored" spellcheck="false"
                        value=[wanted.query.iter().find(|(key, _)| key == "to").map(|(_, value)| value)];
                    p { "This restores " (Text(cluster)) " " (Text(&wanted.said)) " into this directory." }
                    (confirmation(cluster))
                    button.danger type="submit" { "Restore" }
                }
            }
        } @else {
            p.help { "To start it here takes the role recovery-operator." }
        }
    }
}

/// As a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '=' | '+');
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_the_form_are_of_utc() {
        for (text, at) in [
            ("2026-01-02T03:04:05", Some("2026-01-02T03:04:05Z")),
            ("2026-01-02T03:04", Some("2026-01-02T03:04:00Z")),
            ("2026-01-02T03:04:05+02:00", Some("2026-01-02T01:04:05Z")),
            ("yesterday", None),
        ] {
            assert_eq!(moment_of(text).map(|t| t.to_string()).as_deref(), at, "{text}");
        }
    }

    #[test]
    fn a_command_can_be_pasted() {
        assert_eq!(quoted("--to=/a/b"), "--to=/a/b");
        assert_eq!(quoted("--target-name=it's; rm"), "'--target-name=it'\\''s; rm'");
    }
}
