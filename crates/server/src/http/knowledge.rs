//! What the server knows beside backups: alerts, the audit trail, settings, room and cost, what happened in the WAL; and what it
//! looks up when it is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use pgark_repo::report::ReportId;
use serde_json::{Value, json};

use super::api::{Made, listed, ok, part};
use super::{Answer, Api, Asked, Problem};
use crate::access::Right;
use crate::jobs::Request;
use crate::known::{list, read, source, time};
use crate::lookup::Found;
use crate::refresh::HOST;

/// How long a program waits for what is looked up.
const WAITS: Duration = Duration::from_secs(10);
/// A report is never changed.
const REPORT_FRESH: Duration = Duration::from_secs(3600);
const PLAN_FRESH: Duration = Duration::from_secs(30);
/// Days of which failures are counted.
const DAYS: SignedDuration = SignedDuration::from_hours(90 * 24);

/// A list that is of the host as a whole; shown of it is what is about clusters that the caller sees. Null before it was read once.
fn of_host(api: &Api, asked: &Asked<'_>, kind: &str, key: &str, about: impl Fn(&Value) -> Option<&str>) -> Made {
    let found = api.state.document(kind, HOST)?;
    let sees_all = asked.caller()?.sees_all();
    let shown = |one: &&Value| sees_all || about(one).is_some_and(|cluster| asked.sees(cluster));
    let shown = read(found.as_ref()).map(|document| list(document, key).iter().filter(shown).collect::<Vec<_>>());
    ok(json!({"source": source(found.as_ref()), key: shown}))
}

pub fn alerts(api: &Api, asked: &Asked<'_>) -> Made {
    of_host(api, asked, "alerts", "alerts", |alert| alert.get("cluster")?.as_str())
}

pub fn incidents(api: &Api, asked: &Asked<'_>) -> Made {
    of_host(api, asked, "incidents", "incidents", |incident| incident.get("cluster")?.as_str())
}

pub fn settings(api: &Api, asked: &Asked<'_>) -> Made {
    let of_cluster = |one: &Value| {
        let key = one.get("key")?.as_str()?.strip_prefix("clusters.")?;
        let names = api.config.get();
        names
            .clusters
            .iter()
            .filter(|c| key.strip_prefix(&c.name).is_some_and(|k| k.starts_with('.')))
            // A name may begin like another one.
            .max_by_key(|c| c.name.len())
            .map(|c| c.name.clone())
    };
    let found = api.state.document("settings", HOST)?;
    let read = read(found.as_ref());
    let sees_all = asked.caller()?.sees_all();
    let shown = |one: &&Value| sees_all || of_cluster(one).is_some_and(|cluster| asked.sees(&cluster));
    let shown = read.map(|document| list(document, "settings").iter().filter(shown).collect::<Vec<_>>());
    let changed = read.map(|document| list(document, "changed_since"));
    ok(json!({"source": source(found.as_ref()), "settings": shown, "changed_since": changed}))
}

pub fn history(api: &Api, asked: &Asked<'_>) -> Made {
    ok(listed(api, asked, "history", "events")?)
}

/// Of what concerns a repository as a whole, other clusters' events are not for those who see one cluster alone.
pub fn audit(api: &Api, asked: &Asked<'_>) -> Made {
    let mut value = listed(api, asked, "audit", "events")?;
    if !asked.caller()?.sees_all()
        && let Some(events) = value.get_mut("events").and_then(Value::as_array_mut)
    {
        events.retain(|event| event.get("cluster").and_then(Value::as_str).is_some_and(|cluster| asked.sees(cluster)));
    }
    ok(value)
}

pub fn capacity(api: &Api, asked: &Asked<'_>) -> Made {
    let name = asked.path("cluster").unwrap_or_default();
    let config = api.config.get();
    let cluster = config.clusters.iter().find(|c| c.name == name).ok_or_else(Problem::not_found)?;
    let found = api.state.document("space", &config.room_of(cluster))?;
    let mut source = source(found.as_ref());
    let mut room = found.and_then(|mut d| d.document.get_mut("repository").map(Value::take)).unwrap_or(Value::Null);
    let samples = match room.get("name").and_then(Value::as_str) {
        Some(name) => api.state.samples(name)?,
        None => vec![],
    };
    // What others have in the same repository is not for those who see one cluster alone.
    if !asked.caller()?.sees_all() {
        let of = |one: &Value, key: &str| one.get(key).and_then(Value::as_str).is_some_and(|name| asked.sees(name));
        // It was looked up for another one of them, perhaps.
        if let Some(code) = source["error"].as_str().and_then(|error| error.split(' ').next()).map(str::to_owned) {
            source["error"] = code.into();
        }
        for pointer in ["/used/clusters", "/cost/restores"] {
            if let Some(all) = room.pointer_mut(pointer).and_then(Value::as_array_mut) {
                all.retain(|one| ["name", "cluster"].iter().any(|key| of(one, key)));
            }
        }
    }
    ok(json!({"cluster": name, "source": source, "repository": room, "samples": samples}))
}

pub fn series(api: &Api, asked: &Asked<'_>) -> Made {
    let (value, _) = part(api, asked, &["backups"])?;
    let backups = value["backups"].as_array().map(|all| all.iter().filter_map(measured).collect::<Vec<_>>());
    let since = asked.now.saturating_sub(DAYS).unwrap_or(Timestamp::MIN);
    let mut days: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (day, state, count) in api.state.backup_days(asked.path("cluster").unwrap_or_default(), since)? {
        let (succeeded, failed) = days.entry(day).or_default();
        match state.as_str() {
            "done" | "warnings" => *succeeded += count,
            // Who cancels has not failed.
            "cancelled" => {}
            _ => *failed += count,
        }
    }
    let days = days.iter().map(|(day, (done, failed))| json!({"day": day, "succeeded": done, "failed": failed}));
    ok(
        json!({"cluster": value["cluster"], "source": value["source"], "backups": backups, "days": days.collect::<Vec<_>>()}),
    )
}

fn measured(backup: &Value) -> Option<Value> {
    if backup.get("complete") != Some(&Value::Bool(true)) {
        return None;
    }
    let finished = time(backup, "finished")?;
    let took = time(backup, "started").map(|at| finished.duration_since(at).as_millis().max(0));
    let size = backup.get("size_bytes").and_then(Value::as_u64);
    let speed = took.filter(|ms| *ms > 0).zip(size).map(|(ms, bytes)| i128::from(bytes) * 1000 / ms);
    let speed = speed.and_then(|n| u64::try_from(n).ok());
    let took = took.and_then(|ms| u64::try_from(ms).ok());
    Some(
        json!({"id": backup["id"], "kind": backup["kind"], "type": backup["type"], "finished": finished, "size_bytes": size,
        "stored_bytes": backup["stored_bytes"], "duration_ms": took, "bytes_per_s": speed}),
    )
}

/// What is looked up, or that it is under way.
fn looked_up(api: &Api, words: &[String], fresh: Duration, wait: Duration) -> Result<Option<Value>, Problem> {
    match api.lookups.find(words, fresh, wait) {
        Found::Over(Ok(document)) => Ok(Some(Value::clone(&document))),
        Found::Over(Err(why)) => Err(Problem::said(why)),
        Found::Underway => Ok(None),
        Found::Busy => {
            let message = "too much is being looked up at the moment: try again";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "E-SERVER-BUSY", message))
        }
    }
}

fn underway() -> Answer {
    Answer::Json(StatusCode::ACCEPTED, json!({"schema": 1, "state": "underway"}))
}

pub fn report(api: &Api, asked: &Asked<'_>) -> Made {
    report_within(api, asked, WAITS)
}

pub fn report_within(api: &Api, asked: &Asked<'_>, wait: Duration) -> Made {
    let id = asked.path("report").unwrap_or_default();
    let id = ReportId::parse(id).map_err(|_| Problem::not_found())?;
    let cluster = asked.path("cluster").unwrap_or_default();
    let words = ["report".to_owned(), "show".into(), id.to_string(), format!("--cluster={cluster}")];
    match looked_up(api, &words, REPORT_FRESH, wait)? {
        Some(document) => ok(document),
        None => Ok(underway()),
    }
}

pub fn restore_plan(api: &Api, asked: &Asked<'_>) -> Made {
    plan_within(api, asked, WAITS)
}

/// The same command that would restore, with `--dry-run`.
pub fn plan_within(api: &Api, asked: &Asked<'_>, wait: Duration) -> Made {
    let cluster = asked.path("cluster").unwrap_or_default();
    let given = |name: &str| asked.query(name).filter(|value| !value.is_empty());
    // Where something is on this host is only for those who may write there.
    if given("to").is_some() && !asked.caller()?.may(Right::Recover, Some(cluster)) {
        return Err(Problem::not_allowed());
    }
    let nowhere = api.state.dir().join("a-new-directory");
    let request = Request::Restore {
        backup: given("backup").map(str::to_owned),
        to: given("to").map_or(nowhere, Into::into),
        target_time: moment(asked)?,
        target_lsn: given("target_lsn").map(str::to_owned),
        target_name: given("target_name").map(str::to_owned),
    };
    let mut command = request.words(cluster).map_err(Problem::wrong)?;
    command.retain(|word| word != "--yes");
    let mut words = command.clone();
    words.push("--dry-run".into());
    let Some(plan) = looked_up(api, &words, PLAN_FRESH, wait)? else { return Ok(underway()) };
    command.insert(0, "pgark".into());
    if given("to").is_none() {
        command.iter_mut().filter(|w| w.starts_with("--to=")).for_each(|w| *w = "--to=DIR".into());
    }
    ok(json!({"cluster": cluster, "plan": plan, "command": command}))
}

/// None where nothing says so.
fn moment(asked: &Asked<'_>) -> Result<Option<Timestamp>, Problem> {
    let given = asked.query("target_time").filter(|value| !value.is_empty());
    let moment = given.map(str::parse::<Timestamp>).transpose();
    moment.map_err(|_| Problem::wrong("target_time is no moment such as 2026-01-02T03:04:05Z"))
}

pub fn recover_plan(api: &Api, asked: &Asked<'_>) -> Made {
    recover_within(api, asked, WAITS)
}

/// The same command that would recover, with `--plan`.
pub fn recover_within(api: &Api, asked: &Asked<'_>, wait: Duration) -> Made {
    let cluster = asked.path("cluster").unwrap_or_default();
    let given = |name: &str| asked.query(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let request = Request::Recover {
        backup: given("backup"),
        reason: None,
        target_time: moment(asked)?,
        target_lsn: given("target_lsn"),
        target_name: given("target_name"),
    };
    let mut command = request.words(cluster).map_err(Problem::wrong)?;
    command.retain(|word| word != "--yes");
    let mut words = command.clone();
    words.push("--plan".into());
    let Some(plan) = looked_up(api, &words, PLAN_FRESH, wait)? else { return Ok(underway()) };
    command.insert(0, "pgark".into());
    ok(json!({"cluster": cluster, "plan": plan, "command": command}))
}

pub fn events(api: &Api, asked: &Asked<'_>) -> Made {
    let last = asked.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let listening = api.events.listen(asked.caller()?.clone(), last);
    let many = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "E-SERVER-BUSY", "too many listen already");
    listening.map(Answer::Events).ok_or_else(many)
}
