//! The first screen, and the page of one cluster.

use maud::{Markup, html};
use serde_json::Value;

use super::parts::{self, Text, Tone, bytes_of, duration, empty, number, pill, segment, since, unknown, word};
use super::timeline::{Span, is_reachable, timeline};
use super::{Page, Place, age, job_button, jobs, kind_of, may, of_cluster, path, told, was_read};
use crate::access::Right;
use crate::http::api::{self, Made};
use crate::http::{Api, Asked, Problem, knowledge};
use crate::known::{list, time};

const JOBS_SHOWN: usize = 8;
const BACKUPS_SHOWN: usize = 6;
/// Of a cluster; the API has all.
const DATABASES_SHOWN: usize = 6;

/// The worst first.
const STANDINGS: [(&str, Tone, &str); 5] = [
    ("not_recoverable", Tone::Bad, "Not recoverable"),
    ("unknown", Tone::Unknown, "Not known"),
    ("at_risk", Tone::Warn, "At risk"),
    ("not_proven", Tone::Warn, "Not proven"),
    ("good", Tone::Good, "Recoverable"),
];

fn standing(cluster: &Value) -> (usize, Tone, &'static str) {
    let found = STANDINGS.iter().position(|(name, ..)| *name == word(cluster, "standing")).unwrap_or(1);
    STANDINGS.get(found).map_or((1, Tone::Unknown, "Not known"), |(_, tone, words)| (found, *tone, *words))
}

pub fn all(api: &Api, asked: &Asked<'_>) -> Made {
    let state = match asked.caller()?.sees_all() {
        true => api.standings.or_made(api, asked.now, || standings(api, asked))?,
        false => standings(api, asked)?,
    };
    let jobs = told(api::jobs(api, &asked.again(vec![newest_jobs()])))?;
    let body = html! {
        h1 { "Can we recover?" }
        div #state data-live-part { (state) }
        section #jobs data-live-part aria-labelledby="jobs-h" {
            h2 #jobs-h { "Newest jobs" }
            (jobs::table(list(&jobs, "jobs").iter(), asked, true))
            p { a href="/jobs" { "All jobs" } }
        }
    };
    Page { title: "Clusters", place: Place::Clusters, body }.shown(asked)
}

/// The same for all who see the same clusters: there is nothing in it of who asks.
fn standings(api: &Api, asked: &Asked<'_>) -> Result<Markup, Problem> {
    let value = told(api::clusters(api, asked))?;
    let mut clusters: Vec<&Value> = list(&value, "clusters").iter().collect();
    clusters.sort_by(|a, b| (standing(a).0, word(a, "name")).cmp(&(standing(b).0, word(b, "name"))));
    if clusters.is_empty() {
        return Ok(empty("No cluster is configured: [clusters.NAME] in pgark.toml names one."));
    }
    Ok(html! {
        (counts(&clusters))
        table.cards {
            caption.hidden { "Clusters, the worst first" }
            thead {
                tr {
                    th scope="col" { "Cluster" }
                    th scope="col" { "Can we recover?" }
                    th scope="col" { "To when?" }
                    th scope="col" { "How long would it take?" }
                    th scope="col" { "Proven when?" }
                }
            }
            tbody { @for cluster in &clusters { (row(cluster, asked)) } }
        }
    })
}

fn newest_jobs() -> (String, String) {
    ("limit".into(), JOBS_SHOWN.to_string())
}

fn counts(clusters: &[&Value]) -> Markup {
    html! {
        ul.counts aria-label="How many clusters stand how" {
            @for (n, (_, tone, words)) in STANDINGS.iter().enumerate() {
                @let count = clusters.iter().filter(|c| standing(c).0 == n).count();
                @if count > 0 { li { strong { (count) } " " (pill(*tone, words)) } }
            }
        }
    }
}

fn row(cluster: &Value, asked: &Asked<'_>) -> Markup {
    let (_, tone, words) = standing(cluster);
    let reasons = list(cluster, "reasons");
    html! {
        tr class=(tone.class()) {
            th scope="row" {
                a href={ "/clusters/" (segment(word(cluster, "name"))) } { (Text(word(cluster, "name"))) }
                @let version = word(cluster, "pg_version");
                @if !version.is_empty() { span.sub { "PostgreSQL " (Text(version)) } }
            }
            td data-name="Can we recover?" {
                div {
                    (pill(tone, words))
                    @if let Some(reason) = reasons.first().and_then(Value::as_str) {
                        span.sub {
                            (Text(reason))
                            @if reasons.len() > 1 { " (and " (reasons.len() - 1) " more)" }
                        }
                    }
                }
            }
            td data-name="To when?" { div { (to_when(cluster, asked)) } }
            td data-name="How long would it take?" { div { (how_long(cluster)) } }
            td data-name="Proven when?" { div { (proven(cluster, asked)) } }
        }
    }
}

fn to_when(cluster: &Value, asked: &Asked<'_>) -> Markup {
    let until = time(cluster, "recoverable_until");
    let rpo = number(cluster, "rpo_s").map(|s| duration(s.saturating_mul(1000)));
    let meets_rpo = cluster.get("meets_rpo").and_then(Value::as_bool);
    let Some(until) = until else {
        return match cluster.get("can_recover").and_then(Value::as_bool) {
            Some(false) => html! { strong.bad { "no moment" } },
            _ => unknown(),
        };
    };
    html! {
        (parts::moment(until))
        span.sub {
            @match (number(cluster, "loss_s").map(|s| duration(s.saturating_mul(1000))), rpo, meets_rpo) {
                (Some(loss), Some(rpo), Some(true)) => { "loses " (loss) ", RPO " (rpo) ": kept" },
                (Some(loss), Some(rpo), _) => { strong.bad { "loses " (loss) ", RPO " (rpo) ": missed" } },
                (Some(_), None, _) => { (parts::ago(until, asked.now)) ", no RPO is set" },
                (None, rpo, _) => {
                    "as it was read"
                    @if let Some(read) = cluster.get("source").and_then(|s| time(s, "refreshed")) { " " (parts::ago(read, asked.now)) }
                    @if let Some(rpo) = rpo { "; RPO " (rpo) ": not known" }
                },
            }
        }
        @let backup = word(cluster, "recoverable_backup");
        @if !backup.is_empty() {
            span.sub {
                "what backup "
                a href={ "/clusters/" (segment(word(cluster, "name"))) "/backups/" (segment(backup)) } { (Text(backup)) }
                " holds, and nothing else"
            }
            (databases(list(cluster, "recoverable_databases"), asked))
        }
    }
}

/// Of which the dumps are, where there is nothing but dumps.
fn databases(all: &[Value], asked: &Asked<'_>) -> Markup {
    html! {
        @for dump in all.iter().take(DATABASES_SHOWN) {
            span.sub {
                @if parts::is(dump, "partial") { "parts of " }
                "database " strong { (Text(word(dump, "database"))) }
                @if let Some(at) = time(dump, "time") { ", as it was " (parts::ago(at, asked.now)) }
            }
        }
        @if all.len() > DATABASES_SHOWN { span.sub { "and " (all.len() - DATABASES_SHOWN) " more databases" } }
    }
}

fn how_long(cluster: &Value) -> Markup {
    let rto = number(cluster, "rto_ms").map(duration);
    html! {
        @match number(cluster, "expected_ms") {
            Some(ms) => { "about " (duration(ms)) },
            None if was_read(cluster) => span.unknown { "not measured" },
            None => (unknown()),
        }
        span.sub {
            @match (rto, cluster.get("meets_rto").and_then(Value::as_bool)) {
                (Some(rto), Some(true)) => { "RTO " (rto) ": kept" },
                (Some(rto), Some(false)) => strong.bad { "RTO " (rto) ": missed" },
                (Some(rto), None) => { "RTO " (rto) ": not checked" },
                (None, _) => "no RTO is set",
            }
        }
    }
}

fn proven(cluster: &Value, asked: &Asked<'_>) -> Markup {
    let drill = cluster.get("last_drill").unwrap_or(&Value::Null);
    html! {
        @match cluster.get("proven").and_then(|p| time(p, "time")) {
            Some(at) => { (parts::moment(at)) span.sub { (parts::ago(at, asked.now)) } },
            None if was_read(cluster) => span.unknown { "never" },
            None => (unknown()),
        }
        @if word(drill, "verdict") == "red" { span.sub { strong.bad { "the last drill was red" } } }
    }
}

pub fn one(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let cluster = told(api::cluster(api, asked))?;
    let info = told(api::windows(api, asked))?;
    let backups = told(api::backups(api, asked))?;
    let wal = told(api::wal(api, asked))?;
    let drills = told(api::drills(api, asked))?;
    let history = told(knowledge::history(api, asked))?;
    let jobs = told(api::jobs_of(api, &asked.again(vec![newest_jobs()]), Some(name)))?;
    let (_, tone, words) = standing(&cluster);
    let newest: Vec<&Value> = list(&backups, "backups").iter().take(BACKUPS_SHOWN).collect();
    let body = html! {
        (of_cluster(name, ""))
        div #state data-live-part {
            div.heading {
                h1 { (Text(name)) }
                (pill(tone, words))
            }
            (age(&cluster, asked))
            @if !list(&cluster, "reasons").is_empty() {
                ul.reasons { @for reason in list(&cluster, "reasons") { li { (Text(reason.as_str().unwrap_or_default())) } } }
            }
            dl.answers {
                div { dt { "Can we recover?" } dd { (can(&cluster)) } }
                div { dt { "To when?" } dd { (to_when(&cluster, asked)) } }
                div { dt { "How long would it take?" } dd { (how_long(&cluster)) } }
                div { dt { "Proven when?" } dd { (proven(&cluster, asked)) } }
            }
        }
        section aria-labelledby="plan-h" {
            h2 #plan-h { "Restore to a moment" }
            @if !has_no_moments(&info) {
                p { "Choose a moment: click in the timeline, or type it. You see the plan first; nothing is restored by looking." }
            }
            (timeline(&Span::of(asked, &info, &backups), &info, &backups, &wal, &drills, &history, asked))
            @if has_no_moments(&info) {
                p.empty {
                    "There is no moment to choose: that takes a physical backup with its WAL. Each backup of another kind restores what it holds: "
                    a href={ "/clusters/" (segment(name)) "/backups" } { "all backups" } "."
                }
            } @else {
                form.plan method="get" action={ "/clusters/" (segment(name)) "/plan" } {
                    label for="moment" { "Moment (UTC)" }
                    input #moment type="datetime-local" name="time" step="1" required data-moment
                        value=[newest_moment(&info).map(|at| at.strftime("%Y-%m-%dT%H:%M:%S").to_string())];
                    button.primary type="submit" { "Show the plan" }
                    button type="submit" formaction={ "/clusters/" (segment(name)) "/recover" } { "Plan a guided recovery" }
                }
            }
            p.help {
                "A restore brings back data into a directory. A guided recovery stops the application, replaces the cluster and starts both again: "
                a href={ "/clusters/" (segment(name)) "/recover" } { "its plan to the newest moment" } "."
            }
        }
        @if may(asked, Right::Operate, name) {
            section aria-labelledby="do-h" {
                h2 #do-h { "Do" }
                div.buttons {
                    (job_button(asked, name, &[("job", "backup")], "Back up now"))
                    (job_button(asked, name, &[("job", "backup"), ("type", "full")], "Full backup"))
                    (job_button(asked, name, &[("job", "verify")], "Verify everything"))
                    (job_button(asked, name, &[("job", "drill")], "Rehearse a recovery"))
                    (job_button(asked, name, &[("job", "check")], "Check the set-up"))
                }
            }
        }
        section #backups data-live-part aria-labelledby="backups-h" {
            h2 #backups-h { "Newest backups" }
            (super::backups::table(&backups, newest.into_iter(), name, asked))
            p { a href={ "/clusters/" (segment(name)) "/backups" } { "All backups" } }
        }
        section #jobs data-live-part aria-labelledby="jobs-h" {
            h2 #jobs-h { "Newest jobs" }
            (jobs::table(list(&jobs, "jobs").iter(), asked, false))
        }
    };
    Page { title: name, place: Place::Clusters, body }.shown(asked)
}

/// It was read, and there are none. Before that the plan itself says what can be.
fn has_no_moments(info: &Value) -> bool {
    was_read(info) && list(info, "windows").is_empty()
}

/// The last one that a restore to a time can reach, where a whole second does: a backup may end after the last transaction, and
/// time stands still there.
fn newest_moment(info: &Value) -> Option<jiff::Timestamp> {
    let newest = list(info, "windows").iter().filter_map(|w| time(w, "to_time")).max()?;
    is_reachable(list(info, "windows"), newest).then_some(newest)
}

fn can(cluster: &Value) -> Markup {
    let gaps = number(cluster, "gaps").unwrap_or(0);
    html! {
        @match cluster.get("can_recover").and_then(Value::as_bool) {
            Some(true) => "yes",
            Some(false) => strong.bad { "no" },
            None => (unknown()),
        }
        span.sub {
            @match time(cluster, "recoverable_from") { Some(at) => { "from " (parts::moment(at)) }, None => "" }
            @if gaps > 0 { " " strong.bad { (gaps) @if gaps == 1 { " gap" } @else { " gaps" } " in the WAL" } }
        }
    }
}

/// For tables of backups elsewhere.
pub fn backup_cells(backup: &Value, cluster: &str, asked: &Asked<'_>) -> Markup {
    let id = word(backup, "id");
    html! {
        th scope="row" { a href={ "/clusters/" (segment(cluster)) "/backups/" (segment(id)) } { (Text(id)) } }
        td data-name="Kind" { (Text(&kind_of(backup))) }
        td data-name="Finished" {
            @match time(backup, "finished") { Some(at) => (since(at, asked.now)), None => (unknown()) }
        }
        td.n data-name="Size" { (bytes_of(backup, "size_bytes")) }
        td.n data-name="Stored" { (bytes_of(backup, "stored_bytes")) }
    }
}
