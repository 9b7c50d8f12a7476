//! Alerts and incidents; and who looks after which.

use maud::{Markup, html};
use serde_json::Value;

use super::parts::{self, Text, Tone, number, pill, segment, since, word};
use super::{Page, Place, age, csrf, may, nothing, told};
use crate::access::Right;
use crate::http::api::{self, Made};
use crate::http::{Answer, Api, Asked, acknowledge as handler, knowledge};
use crate::known::{list, time};

/// Of the newest jobs, those that write down who looks after what.
const JOBS_LOOKED_AT: usize = 100;

pub fn alerts(api: &Api, asked: &Asked<'_>) -> Made {
    let alerts = told(knowledge::alerts(api, asked))?;
    let incidents = told(knowledge::incidents(api, asked))?;
    let newest = ("limit".to_owned(), JOBS_LOOKED_AT.to_string());
    let jobs = told(api::jobs(api, &asked.again(vec![newest])))?;
    let shown =
        Shown { read: alerts.get("source").and_then(|s| time(s, "refreshed")), jobs: list(&jobs, "jobs"), asked };
    let is_over = |a: &&Value| time(a, "resolved").is_some();
    let (mut over, open): (Vec<&Value>, Vec<&Value>) = list(&alerts, "alerts").iter().partition(is_over);
    over.sort_by_key(|a| std::cmp::Reverse(time(a, "resolved")));
    let body = html! {
        h1 { "Alerts" }
        div #state data-live-part {
            (age(&alerts, asked))
            h2 { "Open" }
            @if open.is_empty() { (nothing(&alerts, "Nothing is open.")) } @else { (shown.table(&open, "Open alerts")) }
            h2 { "Incidents" }
            (age(&incidents, asked))
            @let found = list(&incidents, "incidents");
            @if found.is_empty() { (nothing(&incidents, "No incident was declared.")) } @else { (incident_table(found, asked)) }
            h2 { "Over" }
            @if over.is_empty() { (nothing(&alerts, "None is remembered.")) } @else { (shown.table(&over, "Alerts that are over")) }
        }
    };
    Page { title: "Alerts", place: Place::Alerts, body }.shown(asked)
}

/// The button.
pub fn acknowledge(api: &Api, asked: &Asked<'_>) -> Made {
    told(handler::acknowledge(api, asked))?;
    Ok(Answer::Goto { to: "/alerts".into(), cookies: vec![] })
}

fn incident_table(incidents: &[Value], asked: &Asked<'_>) -> Markup {
    html! {
        table.cards {
            caption.hidden { "Incidents, the newest first" }
            thead { tr { th scope="col" { "Declared" } th scope="col" { "Cluster" } th scope="col" { "State" } th scope="col" { "Reason" } th scope="col" { "By" } } }
            tbody {
                @for incident in incidents.iter().rev() {
                    tr {
                        th scope="row" { @match time(incident, "declared") { Some(at) => (since(at, asked.now)), None => (Text(word(incident, "id"))) } }
                        td data-name="Cluster" { (Text(word(incident, "cluster"))) }
                        td data-name="State" {
                            @match incident.get("closed").and_then(|c| time(c, "at")) {
                                Some(at) => div { (pill(Tone::Good, "closed")) span.sub { (parts::moment(at)) } },
                                None => (pill(Tone::Bad, "open")),
                            }
                        }
                        td data-name="Reason" { (Text(word(incident, "reason"))) }
                        td data-name="By" { (Text(word(incident, "by"))) }
                    }
                }
            }
        }
    }
}

/// What is known when the alerts are shown.
struct Shown<'a> {
    /// When the list of alerts was printed: jobs that ended after that are not in it.
    read: Option<jiff::Timestamp>,
    jobs: &'a [Value],
    asked: &'a Asked<'a>,
}

impl Shown<'_> {
    fn table(&self, alerts: &[&Value], name: &str) -> Markup {
        html! {
            table.cards {
                caption.hidden { (name) }
                thead { tr { th scope="col" { "Since" } th scope="col" { "Cluster" } th scope="col" { "Severity" } th scope="col" { "What" } th scope="col" { "Told" } th scope="col" { "Looked after by" } } }
                tbody { @for alert in alerts { (self.row(alert)) } }
            }
        }
    }

    fn row(&self, alert: &Value) -> Markup {
        html! {
            tr {
                th scope="row" { @if let Some(at) = time(alert, "opened") { (since(at, self.asked.now)) } }
                td data-name="Cluster" { (Text(word(alert, "cluster"))) }
                td data-name="Severity" {
                    @match (time(alert, "resolved"), word(alert, "severity")) {
                        (Some(_), _) => (pill(Tone::Good, "over")),
                        (None, "info") => (pill(Tone::Unknown, "info")),
                        (None, "warning") => (pill(Tone::Warn, "warning")),
                        (None, other) => (pill(Tone::Bad, other)),
                    }
                }
                td data-name="What" {
                    div {
                        (Text(word(alert, "summary")))
                        @if let Some(at) = time(alert, "resolved") { span.sub { "over " (parts::ago(at, self.asked.now)) } }
                    }
                }
                td data-name="Told" { div { (told_to(alert)) } }
                td data-name="Looked after by" { div { (self.care(alert)) } }
            }
        }
    }

    /// The newest job that was to write down that somebody looks after it.
    fn job_of(&self, alert: &str) -> Option<&Value> {
        let is_of = |job: &&Value| {
            let request = job.get("request").unwrap_or(&Value::Null);
            word(request, "job") == "acknowledge" && word(request, "alert") == alert
        };
        self.jobs.iter().find(is_of)
    }

    /// Who looks after it; or the button, for who may.
    fn care(&self, alert: &Value) -> Markup {
        let (id, cluster) = (word(alert, "id"), word(alert, "cluster"));
        if let Some(care) = alert.get("acknowledged").filter(|care| care.is_object()) {
            return html! {
                (Text(word(care, "by")))
                @if let Some(at) = time(care, "at") { span.sub { (parts::ago(at, self.asked.now)) } }
            };
        }
        let job = self.job_of(id).unwrap_or(&Value::Null);
        let is_newer = time(job, "finished").is_some_and(|at| self.read.is_none_or(|read| at >= read));
        html! {
            @match word(job, "state") {
                "queued" | "running" => (pill(Tone::Busy, "being written down")),
                "done" | "warnings" if is_newer => (Text(word(job, "requested_by"))),
                state => {
                    @if matches!(state, "failed" | "timed_out" | "interrupted") && time(alert, "resolved").is_none() {
                        span.sub { a href={ "/jobs/" (segment(word(job, "id"))) } { strong.bad { "This was not written down" } } }
                    }
                    @if time(alert, "resolved").is_none() && !id.is_empty() && may(self.asked, Right::Operate, cluster) {
                        form.inline method="post" action={ "/alerts/" (segment(id)) "/acknowledge" } {
                            (csrf(self.asked))
                            button type="submit" { "I look after it" span.hidden { ": " (Text(word(alert, "summary"))) } }
                        }
                    } @else {
                        span.unknown { "nobody" }
                    }
                }
            }
        }
    }
}

fn told_to(alert: &Value) -> Markup {
    let deliveries = list(alert, "deliveries");
    let told = deliveries.iter().filter(|d| time(d, "delivered").is_some()).count();
    let waiting = number(alert, "waiting").unwrap_or(0);
    html! {
        @if deliveries.is_empty() { span.unknown { "nobody" } } @else { (told) }
        @if waiting > 0 { span.sub { (waiting) " waiting" } }
    }
}
