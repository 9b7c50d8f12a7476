//! `/metrics`: gauges made of what is known at the moment of the question.
//!
//! Labels are names of the settings and a few words, never ids: the number of series does not grow with time.

use std::sync::atomic::AtomicU64;

use axum::http::StatusCode;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde_json::Value;

use super::{Answer, Api, Asked, Problem};
use crate::known::{of_cluster, time};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCluster {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    cluster: String,
    kind: String,
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfJob {
    cluster: String,
    job: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSchedule {
    cluster: String,
    schedule: String,
}

type Seconds = Gauge<f64, AtomicU64>;

struct Clusters<'a>(&'a mut Registry);

impl Clusters<'_> {
    fn family(&mut self, name: &str, help: &str) -> Family<OfCluster, Seconds> {
        let family = Family::<OfCluster, Seconds>::default();
        self.0.register(name, help, family.clone());
        family
    }
}

pub fn metrics(api: &Api, asked: &Asked<'_>) -> Result<Answer, Problem> {
    let mut registry = Registry::with_prefix("pgark");
    let build = Info::new(vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    registry.register("build", "Version of the program", build);
    of_clusters(api, asked, &mut registry)?;
    of_jobs(api, asked, &mut registry)?;
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "E-INTERNAL", e.to_string()))?;
    Ok(Answer::Text(OPENMETRICS, text))
}

fn of_clusters(api: &Api, asked: &Asked<'_>, registry: &mut Registry) -> Result<(), Problem> {
    let last = Family::<OfKind, Seconds>::default();
    let last_size = Family::<OfKind, Seconds>::default();
    let last_duration = Family::<OfKind, Seconds>::default();
    let name = "backup_last_success_timestamp_seconds";
    registry.register(name, "When the newest backup was finished", last.clone());
    registry.register("backup_last_stored_bytes", "What the newest backup added to the repository", last_size.clone());
    registry.register("backup_last_duration_seconds", "How long the newest backup took", last_duration.clone());
    let mut clusters = Clusters(registry);
    let up = clusters.family("repo_readable", "Whether the repository could be read at the last look");
    let looked = clusters.family("repo_last_read_timestamp_seconds", "When the repository was read last");
    let from = clusters.family("recovery_window_start_timestamp_seconds", "The earliest moment that can be recovered");
    let until = clusters.family("recovery_window_end_timestamp_seconds", "The latest moment that can be recovered");
    let gaps = clusters.family("wal_gap_segments", "Missing WAL segments between those that are there");
    let backups = clusters.family("backups", "Complete backups");
    let rpo = clusters.family("rpo_seconds", "The loss that is accepted");
    let rto = clusters.family("rto_seconds", "How long a recovery may take");
    let expected = clusters.family("recovery_expected_seconds", "How long a recovery would take, by the drills");
    let drilled = clusters.family("restore_drill_last_success_timestamp_seconds", "When a drill was green last");
    let config = api.config.get();
    for cluster in config.clusters.iter().filter(|c| asked.sees(&c.name)) {
        let label = OfCluster { cluster: cluster.name.clone() };
        let set = |family: &Family<OfCluster, Seconds>, value: Option<f64>| {
            if let Some(value) = value {
                family.get_or_create(&label).set(value);
            }
        };
        set(&rpo, cluster.rpo.map(|d| d.as_secs_f64()));
        set(&rto, cluster.rto.map(|d| d.as_secs_f64()));
        let Some(info) = api.state.document("info", &cluster.name)? else { continue };
        set(&up, Some(f64::from(u8::from(info.failed.is_none()))));
        if info.document.is_null() {
            continue;
        }
        set(&looked, Some(seconds(info.refreshed)));
        let found = of_cluster(&info, &cluster.name);
        let list = |key: &str| found.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        set(&from, list("windows").iter().filter_map(|w| time(w, "from_time")).min().map(seconds));
        set(&until, list("windows").iter().filter_map(|w| time(w, "to_time")).max().map(seconds));
        set(&gaps, Some(list("gaps").iter().filter_map(|g| g.get("segments")?.as_f64()).sum()));
        let complete: Vec<&Value> =
            list("backups").iter().filter(|b| b.get("complete") == Some(&Value::Bool(true))).collect();
        set(&backups, u32::try_from(complete.len()).ok().map(f64::from));
        let forecasts = found.pointer("/drill/forecasts").and_then(Value::as_array);
        let slowest = forecasts.into_iter().flatten().filter_map(|f| f.get("expected_ms")?.as_f64()).reduce(f64::max);
        set(&expected, slowest.map(|ms| ms / 1000.0));
        set(&drilled, found.get("drill").and_then(|d| time(d, "last_green")).map(seconds));
        // In the order of their ids: the last one of each kind stays.
        for backup in complete {
            let word = |key: &str| backup.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let Some(finished) = time(backup, "finished") else { continue };
            let label = OfKind { cluster: cluster.name.clone(), kind: word("kind"), r#type: word("type") };
            let newest = last.get_or_create(&label).get() <= seconds(finished);
            if newest {
                last.get_or_create(&label).set(seconds(finished));
                last_size.get_or_create(&label).set(backup.get("stored_bytes").and_then(Value::as_f64).unwrap_or(0.0));
                let took = time(backup, "started").map_or(0.0, |at| seconds(finished) - seconds(at));
                last_duration.get_or_create(&label).set(took);
            }
        }
    }
    Ok(())
}

fn of_jobs(api: &Api, asked: &Asked<'_>, registry: &mut Registry) -> Result<(), Problem> {
    let runs = Family::<OfJob, Counter>::default();
    let open = Family::<OfJob, Gauge>::default();
    registry.register("job_runs", "Jobs that are over, by how they ended", runs.clone());
    registry.register("jobs_open", "Jobs that wait or run", open.clone());
    for (cluster, job, result, count) in api.state.job_counts()? {
        if !asked.sees(&cluster) {
            continue;
        }
        let is_open = matches!(result.as_str(), "queued" | "running");
        let label = OfJob { cluster, job, result };
        if is_open {
            open.get_or_create(&label).set(count);
        } else {
            runs.get_or_create(&label).inc_by(u64::try_from(count).unwrap_or(0));
        }
    }
    let next = Family::<OfSchedule, Seconds>::default();
    let overdue = Family::<OfSchedule, Seconds>::default();
    registry.register("schedule_next_timestamp_seconds", "When the schedule runs next", next.clone());
    registry.register("schedule_overdue", "Whether a successful run is overdue", overdue.clone());
    let config = api.config.get();
    for schedule in config.schedules.iter().filter(|s| asked.sees(&s.cluster)) {
        let name = schedule.plan.name();
        let label = OfSchedule { cluster: schedule.cluster.clone(), schedule: name.to_owned() };
        if let Some(at) = schedule.plan.next_after(asked.now) {
            next.get_or_create(&label).set(seconds(at));
        }
        let (first_seen, _) = api.state.schedule(name, asked.now)?;
        let success = api.state.last_success(name)?.map(|j| j.created);
        let late = schedule.plan.overdue(first_seen, success, asked.now).is_some();
        overdue.get_or_create(&label).set(f64::from(u8::from(late)));
    }
    Ok(())
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}
