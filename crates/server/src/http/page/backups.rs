//! Backups, and what is known of each.

use maud::{Markup, html};
use serde_json::Value;

use super::parts::{
    Text, Tone, bytes, bytes_of, duration, is, moment, number, pill, segment, since, tree, unknown, word,
};
use super::{Page, Place, age, confirmation, csrf, job_button, kind_of, may, nothing, of_cluster, older, path, told};
use crate::access::Right;
use crate::http::api::{self, Made};
use crate::http::{Api, Asked};
use crate::known::{list, time};

const KINDS: [&str; 4] = ["physical", "logical", "files", "system"];

pub fn all(api: &Api, asked: &Asked<'_>) -> Made {
    let name = path(asked, "cluster");
    let value = told(api::backups(api, asked))?;
    let backups = list(&value, "backups");
    let chosen = asked.query("kind").unwrap_or_default();
    let last = (backups.len() >= api::limit(asked)?).then(|| backups.last().map(|b| word(b, "id"))).flatten();
    let here = format!("/clusters/{}/backups?", segment(name));
    let of_kind = if chosen.is_empty() { String::new() } else { format!("kind={}&", segment(chosen)) };
    let body = html! {
        (of_cluster(name, "/backups"))
        h1 { "Backups of " (Text(name)) }
        div #list data-live-part {
            (age(&value, asked))
            nav.spans aria-label="Kinds of backups" {
                ul {
                    li { a href=(here) aria-current=[chosen.is_empty().then_some("true")] { "all" } }
                    @for kind in KINDS {
                        li { a href={ (here) "kind=" (kind) } aria-current=[(kind == chosen).then_some("true")] { (kind) } }
                    }
                }
            }
            (table(&value, backups.iter(), name, asked))
        }
        (older(&format!("{here}{of_kind}before="), last))
    };
    Page { title: &format!("Backups of {name}"), place: Place::Clusters, body }.shown(asked)
}

/// Of what the API answered, these.
pub fn table<'a>(answer: &Value, backups: impl Iterator<Item = &'a Value>, cluster: &str, asked: &Asked<'_>) -> Markup {
    let mut backups = backups.peekable();
    if backups.peek().is_none() {
        return nothing(answer, "There are no backups.");
    }
    html! {
        table.cards {
            caption.hidden { "Backups, the newest first" }
            thead {
                tr {
                    th scope="col" { "Backup" } th scope="col" { "Kind" } th scope="col" { "Finished" }
                    th.n scope="col" { "Size" } th.n scope="col" { "Stored" } th scope="col" { "Proven" }
                }
            }
            tbody {
                @for backup in backups {
                    tr {
                        (super::clusters::backup_cells(backup, cluster, asked))
                        td data-name="Proven" { div { (evidence(backup)) (marks(backup)) } }
                    }
                }
            }
        }
    }
}

/// How far it was proven that it restores.
fn evidence(backup: &Value) -> Markup {
    if time(backup, "damaged").is_some() {
        return pill(Tone::Bad, "damaged");
    }
    if !is(backup, "complete") {
        return if is(backup, "running") { pill(Tone::Busy, "running") } else { pill(Tone::Bad, "incomplete") };
    }
    match word(backup, "evidence") {
        "drilled" => pill(Tone::Good, "drilled"),
        "replayed" => pill(Tone::Good, "replayed"),
        "started" => pill(Tone::Good, "started"),
        "authenticated" => pill(Tone::Warn, "read, not restored"),
        "stored" => pill(Tone::Unknown, "stored, not checked"),
        _ => pill(Tone::Unknown, "not checked"),
    }
}

fn marks(backup: &Value) -> Markup {
    let holds = list(backup, "holds");
    html! {
        @if is(backup, "kept") { span.sub { "kept" } }
        @if let Some(until) = time(backup, "kept_until") { span.sub { "kept until " (moment(until)) } }
        @if !holds.is_empty() { span.sub { "legal hold" } }
        @let bad = number(backup, "bad_blocks").unwrap_or(0);
        @if bad > 0 { span.sub { strong.bad { (bad) " damaged pages in the source" } } }
    }
}

pub fn one(api: &Api, asked: &Asked<'_>) -> Made {
    let (name, backup) = (path(asked, "cluster"), told(api::backup(api, asked))?);
    let id = word(&backup, "id");
    let physical = word(&backup, "kind") == "physical";
    let took = time(&backup, "finished").zip(time(&backup, "started"));
    let took = took.and_then(|(b, a)| u64::try_from(b.duration_since(a).as_millis()).ok());
    let body = html! {
        (of_cluster(name, "/backups"))
        div.heading { h1 { "Backup " (Text(id)) } (evidence(&backup)) }
        dl.facts {
            div { dt { "Kind" } dd { (Text(&kind_of(&backup))) } }
            div { dt { "Begun" } dd { @match time(&backup, "started") { Some(at) => (since(at, asked.now)), None => (unknown()) } } }
            div { dt { "Finished" } dd { @match time(&backup, "finished") { Some(at) => (since(at, asked.now)), None => (unknown()) } } }
            div { dt { "Took" } dd { @match took { Some(ms) => (duration(ms)), None => (unknown()) } } }
            div { dt { "Size" } dd { (bytes_of(&backup, "size_bytes")) } }
            div { dt { "Stored" } dd { (bytes_of(&backup, "stored_bytes")) } }
            @if let Some(n) = number(&backup, "database_bytes") { div { dt { "On the server" } dd { (bytes(n)) } } }
            div { dt { "Drilled" } dd { @match time(&backup, "drilled") { Some(at) => (since(at, asked.now)), None => span.unknown { "never" } } } }
            @if physical {
                div { dt { "WAL" } dd { code { (Text(word(&backup, "lsn_start"))) } " to " code { (Text(word(&backup, "lsn_stop"))) } } }
                @if let Some(n) = number(&backup, "timeline") { div { dt { "Timeline" } dd { (n) } } }
            }
        }
        (marks(&backup))
        @if may(asked, Right::Operate, name) {
            section aria-labelledby="do-h" {
                h2 #do-h { "Do" }
                div.buttons {
                    (job_button(asked, name, &[("job", "verify"), ("backup", id)], "Verify this backup"))
                    @if physical { (job_button(asked, name, &[("job", "drill"), ("backup", id)], "Rehearse its recovery")) }
                }
            }
        }
        @if physical && is(&backup, "complete") {
            p { a href={ "/clusters/" (segment(name)) "/plan?backup=" (segment(id)) } { "Plan a restore of this backup" } }
        }
        @if is(&backup, "complete") && matches!(word(&backup, "kind"), "physical" | "logical") {
            p { a href={ "/clusters/" (segment(name)) "/recover?backup=" (segment(id)) } { "Plan a guided recovery from this backup" } }
        }
        @if may(asked, Right::Recover, name) {
            details.what {
                summary { "Remove this backup" }
                form.stacked method="post" action={ "/clusters/" (segment(name)) "/jobs" } {
                    (csrf(asked))
                    input type="hidden" name="job" value="delete";
                    input type="hidden" name="backup" value=(id);
                    p.help { "It can be brought back with ‘pgark unexpire’ until it is cleaned up." }
                    (confirmation(name))
                    button.danger type="submit" { "Remove it" }
                }
            }
        }
        details.what { summary { "Everything that is known of it" } (tree(&backup)) }
    };
    Page { title: id, place: Place::Clusters, body }.shown(asked)
}
