//! A guided recovery: its plan, as the command line makes it, and the form that begins it.

use axum::http::StatusCode;
use maud::{Markup, html};
use serde_json::Value;

use super::parts::{self, Text, Tone, duration, number, pill, segment, since, unknown, word};
use super::plan::{WAITS, Wanted, quoted, wanted};
use super::{Page, Place, confirmation, csrf, may, of_cluster, path, trouble};
use crate::access::Right;
use crate::http::api::Made;
use crate::http::approve::right_to_recover;
use crate::http::{Answer, Api, Asked, Problem, knowledge};
use crate::known::{list, time};

/// As the command line takes it (`jobs::Request`).
const REASON_CHARS_MAX: &str = "1000";

pub fn plan(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let wanted = wanted(asked)?;
    let found = knowledge::recover_within(api, &asked.again(wanted.query.clone()), WAITS);
    let body = html! {
        (of_cluster(name, "/recover"))
        h1 { "Guided recovery of " (Text(name)) }
        p.lead { "The plan of a recovery " @if wanted.query.is_empty() { "to the newest moment" } @else { (Text(&wanted.said)) } "." }
        @match &found {
            Ok(Answer::Json(StatusCode::ACCEPTED, _)) => {
                p.progress role="status" data-reload { span.spinner aria-hidden="true" {} "The plan is being worked out from the repository." }
                p { a href="" { "Look again" } }
            },
            Ok(Answer::Json(_, value)) => (shown(api, value, &wanted, asked, name)),
            Ok(_) => (trouble(&Problem::not_found())),
            Err(problem) => {
                p { (pill(Tone::Bad, "This cannot be done")) }
                (trouble(problem))
                p { "Nothing was changed." }
                @if !wanted.query.is_empty() { p { a href={ "/clusters/" (segment(name)) "/recover" } { "The plan to the newest moment" } } }
            },
        }
        p { a href={ "/clusters/" (segment(name)) "#plan-h" } { "Choose another moment" } }
    };
    Page { title: &format!("Guided recovery of {name}"), place: Place::Clusters, body }.shown(asked)
}

fn shown(api: &Api, value: &Value, wanted: &Wanted, asked: &Asked<'_>, cluster: &str) -> Markup {
    let plan = value.get("plan").unwrap_or(&Value::Null);
    let (problem, unfinished) = (word(plan, "problem"), word(plan, "unfinished"));
    let can_begin = problem.is_empty() && unfinished.is_empty();
    let command: Vec<String> = list(value, "command").iter().filter_map(Value::as_str).map(quoted).collect();
    html! {
        p {
            @if can_begin { (pill(Tone::Good, "This can be done")) } @else { (pill(Tone::Bad, "This cannot begin now")) }
            " Nothing is changed by looking."
        }
        @if !problem.is_empty() { div.notice.bad role="alert" { p { (Text(problem)) } } }
        @if !unfinished.is_empty() {
            div.notice.warn role="alert" {
                p { "Recovery " code { (Text(unfinished)) } " was cut off and has not ended. On the server, "
                    code { "pgark recover --resume -c " (cluster) } " goes on with it, and " code { "pgark recover --abandon -c " (cluster) } " takes back what can be." }
            }
        }
        (facts(plan, asked))
        h2 #steps-h { "Steps" }
        (steps(list(plan, "steps")))
        h2 #command-h { "The command" }
        p { "It does the same on the server; it asks first, or takes " code { "--yes" } "." }
        pre.command tabindex="0" role="region" aria-labelledby="command-h" { code data-copied { (Text(&command.join(" "))) } }
        p { button.quiet type="button" data-copy hidden { "Copy" } }
        @if can_begin { (begin(api, plan, wanted, asked, cluster)) }
    }
}

/// What is replaced with what, and how long that is likely to take.
fn facts(plan: &Value, asked: &Asked<'_>) -> Markup {
    let (expected, rto) = (number(plan, "expected_ms").unwrap_or(0), number(plan, "rto_ms"));
    let is_complete = parts::is(plan, "complete");
    html! {
        dl.facts {
            @if !word(plan, "database").is_empty() { div { dt { "Replaces database" } dd { (Text(word(plan, "database"))) } } }
            @if !word(plan, "place").is_empty() { div { dt { "Recovers into" } dd { code { (Text(word(plan, "place"))) } } } }
            div { dt { "From backup" } dd { @if word(plan, "backup").is_empty() { (unknown()) } @else { (Text(word(plan, "backup"))) } } }
            div { dt { "To" } dd { @match time(plan, "recovery_point") { Some(at) => (since(at, asked.now)), None => (unknown()) } } }
            div { dt { "Takes" } dd {
                @match (expected, is_complete) {
                    (0, false) => span.unknown { "not measured" },
                    (ms, true) => { "about " (duration(ms)) },
                    (ms, false) => { "about " (duration(ms)) ", and the steps that were never measured" },
                }
            } }
            div { dt { "RTO" } dd {
                @match rto {
                    Some(rto) if is_complete && expected > rto => { strong.bad { (duration(rto)) ": would be missed" } },
                    Some(rto) if is_complete => { (duration(rto)) ": would be kept" },
                    Some(rto) => { (duration(rto)) ", not checked" },
                    None => "none is set",
                }
            } }
        }
    }
}

fn steps(steps: &[Value]) -> Markup {
    html! {
        table.cards {
            caption.hidden { "Steps of the recovery, in their order" }
            thead { tr { th scope="col" { "Step" } th scope="col" { "Does" } th.n scope="col" { "Takes" } } }
            tbody {
                @for step in steps {
                    tr {
                        th scope="row" { (Text(word(step, "step"))) }
                        td.break data-name="Does" { (Text(word(step, "what"))) }
                        td.n data-name="Takes" { @match number(step, "expected_ms") { Some(ms) => (duration(ms)), None => span.unknown { "not measured" } } }
                    }
                }
            }
        }
    }
}

/// For who may: what it does, said once more, and what is asked for.
fn begin(api: &Api, plan: &Value, wanted: &Wanted, asked: &Asked<'_>, cluster: &str) -> Markup {
    if !may(asked, Right::Recover, cluster) {
        return html! { p.help { "To begin it here takes the role recovery-operator." } };
    }
    let (config, right) = (api.config.get(), right_to_recover(api, cluster));
    let who = match right {
        Right::Repoint => "It points an application elsewhere: somebody else with the role app-admin or admin",
        _ => "A second person",
    };
    let replaces = match (word(plan, "database"), word(plan, "place")) {
        ("", "") => cluster,
        ("", place) => place,
        (database, _) => database,
    };
    html! {
        section aria-labelledby="do-h" {
            h2 #do-h { "Begin it on this server" }
            form.stacked method="post" action={ "/clusters/" (segment(cluster)) "/jobs" } {
                (csrf(asked))
                input type="hidden" name="job" value="recover";
                @for (key, value) in &wanted.query { input type="hidden" name=(key) value=(value); }
                label for="reason" { "Why, for the report and the audit trail (may be left empty)" }
                input #reason type="text" name="reason" maxlength=(REASON_CHARS_MAX) autocomplete="off";
                p { "This stops what is to be stopped, and recovers " (Text(cluster)) " into " (Text(replaces)) "." }
                @if config.web.require_second_person || !may(asked, right, cluster) {
                    @let within = u64::try_from(config.web.approve_within.as_millis()).unwrap_or(u64::MAX);
                    p { strong { (who) " has to say yes within " (duration(within)) "." } " Nothing begins before that." }
                }
                (confirmation(cluster))
                button.danger type="submit" { "Recover" }
            }
        }
    }
}
