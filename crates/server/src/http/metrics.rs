//! `/metrics`: what is known of the clusters (`crate::metrics`), and the jobs and schedules of this server.

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Answer, Api, Asked, Problem};
use crate::metrics::{self, Seconds, seconds};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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

pub fn metrics(api: &Api, asked: &Asked<'_>) -> Result<Answer, Problem> {
    let config = api.config.get();
    let mut known = vec![];
    for cluster in config.clusters.iter().filter(|c| asked.sees(&c.name)) {
        // What is in the repository is counted less often, and by itself.
        let of_info = api.state.known("info", &cluster.name)?;
        let space = api.state.known("space", &config.room_of(cluster))?;
        let room = of_info.figures.room.with_counted(&space.figures.room);
        known.push((cluster, of_info, room));
    }
    let mut registry = metrics::of_clusters(&known);
    of_jobs(api, asked, &mut registry)?;
    let text = metrics::text(&registry)
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "E-INTERNAL", e.to_string()))?;
    Ok(Answer::Text(OPENMETRICS, text))
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
        let is_open = matches!(result.as_str(), "waiting_for_approval" | "queued" | "running");
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
