//! `/api/backups`: the interface of the backup service that a system had before, field for field.
//!
//! Names are `PREFIX_YYYYMMDD_HHMMSS`, made of the prefix of the settings and the id of the backup.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::new_job;
use super::{Answer, Api, Asked, Problem, Turn};
use crate::access::Right;
use crate::jobs::{Job, JobState, Kind, Request};
use crate::known::{of_cluster, time};
use crate::serve::{ClusterConfig, SystemConfig};

/// How long an answer that waits for its job waits.
const WAITS: Duration = Duration::from_secs(3600);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Answers that wait for their jobs at the same time: others have to be given meanwhile.
const WAITING_MAX: usize = 8;
/// No backup for so long is no longer healthy.
const STALE_H: f64 = 48.0;

type Made = Result<Answer, Problem>;

/// The cluster that is meant: the one with a system, or the one that is named.
struct Place {
    cluster: ClusterConfig,
    system: SystemConfig,
}

fn place(api: &Api, asked: &Asked<'_>) -> Result<Place, Problem> {
    let caller = asked.caller()?;
    let config = api.config.get();
    let wanted = |c: &&ClusterConfig| c.system.is_some() && caller.sees(&c.name);
    let wanted = |c: &&ClusterConfig| wanted(c) && asked.query("cluster").is_none_or(|name| name == c.name);
    let mut found = config.clusters.iter().filter(wanted);
    let (Some(cluster), None) = (found.next(), found.next()) else {
        return Err(Problem::wrong("not exactly one cluster has a system: name one with ?cluster="));
    };
    if !caller.may(Right::Administer, Some(&cluster.name)) {
        return Err(Problem::not_allowed());
    }
    let system = cluster.system.clone().ok_or_else(Problem::not_found)?;
    Ok(Place { cluster: cluster.clone(), system })
}

fn answer(value: Value) -> Made {
    Ok(Answer::Json(StatusCode::OK, value))
}

impl Place {
    fn name(&self, id: &str) -> String {
        let stamp = id.get(..15).unwrap_or(id).replace('-', "_");
        format!("{}_{stamp}", self.system.prefix)
    }

    /// The newest first.
    fn backups(&self, api: &Api) -> Result<Vec<Value>, Problem> {
        let info = api.state.document("info", &self.cluster.name)?;
        let found = info.as_ref().map_or(&Value::Null, |d| of_cluster(&d.document, &self.cluster.name));
        let mut all = found.get("backups").and_then(Value::as_array).cloned().unwrap_or_default();
        all.retain(|b| b.get("kind").is_some_and(|k| k == "system") && b.get("complete") == Some(&Value::Bool(true)));
        all.sort_by_key(|b| std::cmp::Reverse(id(b).to_owned()));
        Ok(all)
    }

    /// An answer has no field for its age, so that there is none when it is old.
    fn is_known(&self, api: &Api, asked: &Asked<'_>) -> Result<(), Problem> {
        let known = api.state.known("info", &self.cluster.name)?;
        let Some(why) = known.why_old(asked.now) else { return Ok(()) };
        let message = format!("which backups there are is not known at the moment: {why}");
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "E-SERVER-LOOK", message)
            .hint(format!("GET /api/v1/clusters/{}/backups has what was read last, and when", self.cluster.name)))
    }

    fn backup(&self, api: &Api, name: &str) -> Result<Value, Problem> {
        let found = self.backups(api)?.into_iter().find(|b| self.name(id(b)) == name);
        found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "E-BACKUP-UNKNOWN", "there is no such backup"))
    }

    fn shown(&self, backup: &Value) -> Value {
        let id = id(backup);
        let started = time(backup, "started").or_else(|| time(backup, "finished"));
        json!({
            "backup_name": self.name(id),
            "timestamp": id.get(..15).unwrap_or(id).replace('-', "_"),
            "datetime": started,
            "archive_path": format!("{}#{id}", self.system.directory),
            "size_mb": megabytes(backup, "stored_bytes"),
            "database_size_mb": megabytes(backup, "database_bytes"),
        })
    }
}

fn id(backup: &Value) -> &str {
    backup.get("id").and_then(Value::as_str).unwrap_or_default()
}

/// Of 1024 × 1024 bytes, to two places, as the service before had them.
fn megabytes(value: &Value, key: &str) -> f64 {
    let bytes = value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let hundredths = u128::from(bytes) * 100 / (1024 * 1024);
    f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0
}

fn backup_request() -> Request {
    Request::Backup { kind: Some(Kind::System), backup_type: None, repo: None }
}

pub fn create(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    let job = new_job(api, asked, &place.cluster.name, backup_request(), false)?;
    answer(json!({"message": "Backup started in background", "status": "processing", "job_id": job.id}))
}

pub fn create_sync(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    let _turn = Turn::take(&api.waiting, WAITING_MAX)?;
    let job = new_job(api, asked, &place.cluster.name, backup_request(), false)?;
    let result = finished(api, &job)?;
    let name = place.name(id(&result));
    let part = |pointer: &str| result.pointer(pointer).cloned().unwrap_or(Value::Null);
    let size_mb = megabytes(&result, "stored_bytes");
    let datetime = part("/started");
    let paths: Vec<Value> = part("/files/paths").as_array().cloned().unwrap_or_default();
    let of = |section: &str| -> Vec<Value> {
        let own = paths.iter().filter(|p| p.get("section").is_some_and(|s| s == section));
        own.filter_map(|p| p.get("path").cloned()).collect()
    };
    let (files, directories) = (of("config"), of("files"));
    let metadata = json!({
        "backup_name": name,
        "timestamp": id(&result).get(..15).unwrap_or_default().replace('-', "_"),
        "datetime": datetime,
        "database": {"success": true, "file": part("/logical/databases/0/name"), "size_mb": megabytes(&result, "size_bytes")},
        "configuration": {"success": true, "files_count": files.len(), "files": files},
        "files": {"success": true, "directories_count": directories.len(), "directories": directories},
        "backup_size_mb": size_mb,
    });
    let archive_path = format!("{}#{}", place.system.directory, id(&result));
    answer(json!({
        "message": "Backup created successfully",
        "backup": {"success": true, "backup_name": name, "archive_path": archive_path, "size_mb": size_mb, "metadata": metadata},
    }))
}

pub fn list(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    place.is_known(api, asked)?;
    answer(place.backups(api)?.iter().map(|b| place.shown(b)).collect())
}

pub fn one(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    place.is_known(api, asked)?;
    answer(place.shown(&place.backup(api, asked.path("backup_name").unwrap_or_default())?))
}

pub fn delete(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    let name = asked.path("backup_name").unwrap_or_default();
    let backup = place.backup(api, name)?;
    let request = Request::Delete { backup: id(&backup).to_owned(), repo: None };
    let _turn = Turn::take(&api.waiting, WAITING_MAX)?;
    let job = new_job(api, asked, &place.cluster.name, request, true)?;
    finished(api, &job)?;
    answer(json!({"message": format!("Backup {name} deleted successfully")}))
}

pub fn verify(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    let name = asked.path("backup_name").unwrap_or_default();
    let backup = place.backup(api, name)?;
    let request = Request::Verify { backup: Some(id(&backup).to_owned()), quick: false, repo: None };
    let _turn = Turn::take(&api.waiting, WAITING_MAX)?;
    let job = new_job(api, asked, &place.cluster.name, request, false)?;
    let result = finished(api, &job)?;
    answer(json!({
        "message": "Backup verification passed",
        "verification": {
            "success": true,
            "backup_name": name,
            "backup_date": time(&backup, "started"),
            "total_files": result.get("objects_checked"),
            "database_backup": true,
            "size_mb": megabytes(&backup, "stored_bytes"),
        },
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restore {
    backup_name: String,
    #[serde(default = "yes")]
    restore_database: bool,
    #[serde(default = "yes")]
    restore_config: bool,
    #[serde(default = "yes")]
    restore_files: bool,
    #[serde(default)]
    confirm: bool,
}

fn yes() -> bool {
    true
}

pub fn restore(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    let wanted: Restore = serde_json::from_value(asked.body.clone()).map_err(|e| Problem::wrong(e.to_string()))?;
    if !wanted.confirm {
        return Err(Problem::wrong("a restore replaces what is there: it needs \"confirm\": true"));
    }
    let (database, config, files) = (wanted.restore_database, wanted.restore_config, wanted.restore_files);
    if !(database || config || files) {
        return Err(Problem::wrong("none of database, config and files is to be restored"));
    }
    let backup = place.backup(api, &wanted.backup_name)?;
    let request = Request::RestoreSystem { backup: id(&backup).to_owned(), database, config, files };
    let job = new_job(api, asked, &place.cluster.name, request, true)?;
    let message = match job.state {
        JobState::WaitingForApproval => "Restore waits for approval by somebody else",
        _ => "Restore started in background",
    };
    answer(json!({
        "message": message,
        "backup_name": wanted.backup_name,
        "backup_date": time(&backup, "started"),
        "status": "processing",
        "warning": "What is there now is backed up first, and then replaced",
        "job_id": job.id,
    }))
}

pub fn health(api: &Api, asked: &Asked<'_>) -> Made {
    let place = place(api, asked)?;
    let known = api.state.known("info", &place.cluster.name)?;
    let backups = place.backups(api)?;
    let newest = backups.first();
    let hours = newest.and_then(|b| time(b, "finished")).map(|at| hours_since(at, asked.now));
    let bytes: u64 = backups.iter().filter_map(|b| b.get("stored_bytes")?.as_u64()).sum();
    let is_known = known.why_old(asked.now).is_none();
    let status = match (place.system.enabled, hours) {
        (false, _) => "disabled",
        (true, Some(hours)) if hours <= STALE_H && is_known => "healthy",
        (true, _) => "warning",
    };
    // Nothing was counted before it was read.
    let was_read = known.refreshed.is_some();
    let shown = newest.map(|b| {
        let shown = place.shown(b);
        json!({"backup_name": shown["backup_name"], "datetime": shown["datetime"], "size_mb": shown["size_mb"]})
    });
    answer(json!({
        "backup_enabled": place.system.enabled,
        "backup_directory": place.system.directory,
        "total_backups": was_read.then_some(backups.len()),
        "total_size_mb": was_read.then(|| megabytes(&json!({"n": bytes}), "n")),
        "retention_days": place.system.retention_days,
        "max_backups": place.system.max_backups,
        "most_recent_backup": shown,
        "hours_since_last_backup": hours,
        "remote_backup_enabled": place.system.remote,
        "status": status,
    }))
}

fn hours_since(at: Timestamp, now: Timestamp) -> f64 {
    (now.duration_since(at).as_secs_f64() / 36.0).round() / 100.0
}

/// What the job printed, when it has succeeded.
fn finished(api: &Api, job: &Job) -> Result<Value, Problem> {
    let begun = Instant::now();
    loop {
        let job = api.state.job(&job.id)?;
        if job.state.succeeded() {
            return Ok(job.result(&api.state));
        }
        if job.state.is_final() {
            let message = job.message.unwrap_or_else(|| format!("the job is {}", job.state));
            return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "E-JOB-FAILED", message));
        }
        if job.state == JobState::WaitingForApproval {
            let message = format!("job {} waits for approval by somebody else", job.id);
            return Err(Problem::new(StatusCode::CONFLICT, "E-APPROVAL", message)
                .hint("POST /api/v1/jobs/JOB/approve, with another token"));
        }
        if begun.elapsed() > WAITS {
            let message = format!("job {} goes on", job.id);
            return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "E-JOB-RUNS", message));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
