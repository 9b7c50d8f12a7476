//! Charts of a cluster: size, duration, throughput, success, storage, cost.

use jiff::Timestamp;
use maud::{Markup, html};
use serde_json::Value;

use super::chart::{Chart, Form};
use super::parts::{self, Text, Tone, bytes, bytes_of, duration, empty, number, pill, word};
use super::{Page, Place, age, kind_of, of_cluster, path, told};
use crate::http::api::Made;
use crate::http::{Api, Asked, knowledge};
use crate::known::{list, time};

pub fn charts(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let series = told(knowledge::series(api, asked))?;
    let room = told(knowledge::capacity(api, asked))?;
    let chosen = asked.query("kind").unwrap_or("physical");
    let backups: Vec<&Value> = list(&series, "backups").iter().filter(|b| word(b, "kind") == chosen).collect();
    let of_backups = |key: &str| -> Vec<(Timestamp, String, u64)> {
        let point =
            |b: &&Value| Some((time(b, "finished")?, format!("{} ({})", word(b, "id"), kind_of(b)), number(b, key)?));
        backups.iter().filter_map(point).collect()
    };
    let chart = |name: &str, title: &str, form: Form, key: &str, shown: fn(u64) -> String| {
        Chart { name, title, of: "backups", form, points: of_backups(key), shown, full: 0 }.markup()
    };
    let body = html! {
        (of_cluster(name, "/charts"))
        h1 { "Charts of " (Text(name)) }
        (age(&series, asked))
        nav.spans aria-label="Kinds of backups" {
            ul {
                @for kind in ["physical", "logical", "files", "system"] {
                    li { a href={ "?kind=" (kind) } aria-current=[(kind == chosen).then_some("true")] { (kind) } }
                }
            }
        }
        div.charts {
            (chart("size", "Size of what was backed up", Form::Line, "size_bytes", bytes))
            (chart("stored", "Added to the repository", Form::Bars, "stored_bytes", bytes))
            (chart("duration", "Duration", Form::Bars, "duration_ms", duration))
            (chart("throughput", "Throughput", Form::Bars, "bytes_per_s", |n| format!("{}/s", bytes(n))))
            (success(&series))
        }
        section aria-labelledby="room-h" {
            h2 #room-h { "Storage and cost" }
            (storage(&room, asked))
        }
    };
    Page { title: &format!("Charts of {name}"), place: Place::Clusters, body }.shown(asked)
}

/// Of the backups that this server ran.
fn success(series: &Value) -> Markup {
    let point = |day: &Value| {
        let (done, failed) = (number(day, "succeeded")?, number(day, "failed")?);
        let all = (done + failed > 0).then_some(done + failed)?;
        let at = format!("{}T00:00:00Z", word(day, "day")).parse().ok()?;
        Some((at, format!("{done} of {all}"), done * 100 / all))
    };
    Chart {
        name: "success",
        title: "Backups that succeeded, by day (run by this server, 90 days)",
        of: "days",
        form: Form::Bars,
        points: list(series, "days").iter().filter_map(point).collect(),
        shown: |n| format!("{n} %"),
        full: 100,
    }
    .markup()
}

fn storage(room: &Value, asked: &Asked<'_>) -> Markup {
    let repository = room.get("repository").unwrap_or(&Value::Null);
    let part = |key: &str| repository.get(key).unwrap_or(&Value::Null);
    let (used, free, growth, forecast) = (part("used"), part("free"), part("growth"), part("forecast"));
    let samples = list(room, "samples");
    let sampled = |key: &str| -> Vec<(Timestamp, String, u64)> {
        samples.iter().filter_map(|s| Some((time(s, "at")?, String::new(), number(s, key)?))).collect()
    };
    let cents = |n: u64| format!("{}.{:02}", n / 100, n % 100);
    let priced = samples.iter().filter_map(|s| {
        let month = s.get("month")?.as_f64()? * 100.0;
        Some((time(s, "at")?, word(s, "currency").to_owned(), format!("{month:.0}").parse().ok()?))
    });
    let cost = part("cost");
    html! {
        (age(room, asked))
        @if repository.is_object() {
            dl.facts {
                div { dt { "Repository" } dd { (Text(word(repository, "name"))) } }
                div { dt { "Used" } dd { (bytes_of(used, "bytes")) @if !parts::is(used, "complete") { " at least: counting was stopped" } } }
                div { dt { "Free" } dd { (free_room(free)) } }
                div { dt { "Growth" } dd {
                    @match growth.get("bytes_per_day").and_then(Value::as_i64) {
                        Some(n) => { @if n < 0 { "−" } (bytes(n.unsigned_abs())) " a day" },
                        None => span.unknown { (Text(word(growth, "method"))) },
                    }
                } }
                div { dt { "Full" } dd {
                    @match time(forecast, "full_at") { Some(at) => { "about " (parts::moment(at)) }, None => (Text(word(forecast, "why"))) }
                } }
                @if let Some(month) = cost.get("storage_month").and_then(Value::as_f64) {
                    div { dt { "Storage of a month" } dd { (format!("{month:.2} ")) (Text(word(cost, "currency"))) " (estimated)" } }
                }
                @if let Some(month) = cost.get("requests_month").and_then(Value::as_f64) {
                    div { dt { "Requests of a month" } dd { (format!("{month:.2} ")) (Text(word(cost, "currency"))) " (estimated)" } }
                }
            }
            @if !word(repository, "problem").is_empty() { div.notice.warn { p { (Text(word(repository, "problem"))) } } }
        }
        div.charts {
            (Chart { name: "used", title: "Used in the repository", of: "samples", form: Form::Line, points: sampled("used_bytes"), shown: bytes, full: 0 }.markup())
            @if samples.iter().any(|s| number(s, "free_bytes").is_some()) {
                (Chart { name: "free", title: "Free in the repository", of: "samples", form: Form::Line, points: sampled("free_bytes"), shown: bytes, full: 0 }.markup())
            }
            @if cost.is_object() || samples.iter().any(|s| s.get("month").is_some_and(Value::is_number)) {
                (Chart { name: "cost", title: "Cost of storage in a month", of: "samples", form: Form::Line, points: priced.collect(), shown: cents, full: 0 }.markup())
            } @else {
                figure.chart { figcaption { "Cost" } (empty("No prices are set: prices = \"NAME\" in the repository’s section, and [prices.NAME].")) }
            }
        }
    }
}

fn free_room(free: &Value) -> Markup {
    html! {
        @if parts::is(free, "unlimited") { "has no end" }
        @else if let Some(n) = number(free, "bytes") {
            (bytes(n))
            @if let Some(all) = number(free, "total_bytes").filter(|all| *all > 0) {
                @let percent = u64::try_from(u128::from(n) * 100 / u128::from(all)).unwrap_or(0);
                " of " (bytes(all)) " " (pill(if percent < 20 { Tone::Bad } else { Tone::Good }, &format!("{percent} %")))
            }
        } @else { (parts::unknown()) " " (Text(word(free, "why"))) }
    }
}
