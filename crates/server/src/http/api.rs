//! `/health` and `/api/v1`.

use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use std::sync::atomic::Ordering;

use super::approve::right_to_approve;
use super::{Answer, Api, Asked, Problem};
use crate::access::{RIGHTS, ROLES, Right, Role};
use crate::jobs::{Job, JobState, NewJob, Request};
use crate::known::{Means, of_cluster, read, source, whole_seconds};
use crate::serve::ClusterConfig;
use crate::state::{Filter, StateError};

const SCHEMA: u32 = 1;
/// For jobs that nobody's schedule bounds.
const DEADLINE_S: u64 = 24 * 60 * 60;
const LIST: usize = 100;
const LIST_MAX: usize = 1000;
const NAME_CHARS_MAX: usize = 63;
const TOKEN_CLUSTERS_MAX: usize = 100;
/// RFC drafts leave it open; ours and a caller's own prefix stay short.
const KEY_CHARS_MAX: usize = 128;
const RUNS_SHOWN: usize = 3;

pub type Made = Result<Answer, Problem>;

pub fn ok(mut document: Value) -> Made {
    if let Some(fields) = document.as_object_mut() {
        fields.insert("schema".into(), SCHEMA.into());
    }
    Ok(Answer::Json(StatusCode::OK, document))
}

pub fn live(_: &Api, _: &Asked<'_>) -> Made {
    ok(json!({"status": "ok"}))
}

pub fn ready(api: &Api, asked: &Asked<'_>) -> Made {
    api.state.caller("", asked.now)?;
    match api.ready.load(Ordering::SeqCst) {
        true if api.unwritten.is_now() => Err(Problem::unwritable()),
        true => ok(json!({"status": "ok"})),
        false => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "E-SERVER-DRAINS", "the server is about to end")),
    }
}

pub fn openapi(_: &Api, _: &Asked<'_>) -> Made {
    Ok(Answer::Json(StatusCode::OK, super::openapi()))
}

pub fn me(_: &Api, asked: &Asked<'_>) -> Made {
    let caller = asked.caller()?;
    let rights: Vec<Right> = RIGHTS.into_iter().filter(|right| caller.may_somewhere(*right)).collect();
    let own = caller.strongest();
    let (role, cluster) = (own.map(|o| o.role), own.and_then(|o| o.cluster.as_deref()));
    ok(json!({"name": caller.name, "role": role, "cluster": cluster, "grants": caller.grants, "rights": rights}))
}

pub fn clusters(api: &Api, asked: &Asked<'_>) -> Made {
    let config = api.config.get();
    let seen = config.clusters.iter().filter(|c| asked.sees(&c.name));
    let all = seen.map(|c| summary(api, c, asked.now)).collect::<Result<Vec<_>, _>>()?;
    ok(json!({"clusters": all}))
}

pub fn cluster(api: &Api, asked: &Asked<'_>) -> Made {
    let config = api.config.get();
    let name = asked.path("cluster").unwrap_or_default();
    let cluster = config.clusters.iter().find(|c| c.name == name).ok_or_else(Problem::not_found)?;
    ok(summary(api, cluster, asked.now)?)
}

/// Can we recover, to when, how long would it take, proven when.
fn summary(api: &Api, cluster: &ClusterConfig, now: Timestamp) -> Result<Value, StateError> {
    let known = api.state.known("info", &cluster.name)?;
    let (standing, reasons) = known.standing(cluster.rpo, cluster.rto, now);
    let (by, backup) = match &known.means {
        Means::None => (None, None),
        Means::Wal => (Some("wal"), None),
        Means::Backup(id) => (Some("backup"), Some(id)),
    };
    // Nothing was counted before it was read.
    let counted = |number: usize| known.refreshed.map(|_| number);
    let rto_ms = cluster.rto.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    Ok(json!({
        "name": cluster.name,
        "pg_version": known.pg_version,
        "standing": standing,
        "reasons": reasons,
        "can_recover": known.can_recover(now),
        "recoverable_from": known.from,
        "recoverable_until": known.until,
        "recoverable_by": by,
        "recoverable_backup": backup,
        "recoverable_databases": backup.and(known.databases.as_array()),
        "rpo_s": cluster.rpo.map(whole_seconds),
        "loss_s": known.loss_s(now),
        "meets_rpo": cluster.rpo.and_then(|rpo| known.meets_rpo(rpo, now)),
        "rto_ms": rto_ms,
        "expected_ms": known.expected_ms,
        "meets_rto": cluster.rto.and_then(|rto| known.meets_rto(rto, now)),
        "proven": known.proven.as_ref().map(|(at, id)| json!({"time": at, "backup": id})),
        "last_drill": known.last_drill,
        "last_backup": known.last_backup,
        "backups": counted(known.backups),
        "gaps": counted(known.gaps),
        "problems": known.problems,
        "source": {"refreshed": known.refreshed, "failed": known.failed, "error": known.error},
    }))
}

/// Parts of what `info` said of the cluster; null before it was read once, for nobody knows whether there are any.
pub fn part(api: &Api, asked: &Asked<'_>, keys: &[&str]) -> Result<(Value, Value), Problem> {
    let name = asked.path("cluster").unwrap_or_default();
    let info = api.state.document("info", name)?;
    let read = read(info.as_ref());
    let found = read.map_or(&Value::Null, |document| of_cluster(document, name));
    let mut fields = json!({"cluster": name, "source": source(info.as_ref())});
    for key in keys {
        fields[*key] = read.map_or(Value::Null, |_| found.get(*key).cloned().unwrap_or_else(|| json!([])));
    }
    Ok((fields, found.clone()))
}

pub fn windows(api: &Api, asked: &Asked<'_>) -> Made {
    ok(part(api, asked, &["windows", "gaps"])?.0)
}

pub fn backups(api: &Api, asked: &Asked<'_>) -> Made {
    let (mut fields, _) = part(api, asked, &["backups"])?;
    let limit = limit(asked)?;
    let id = |b: &Value| b.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(all) = fields["backups"].as_array_mut() else { return ok(fields) };
    all.retain(|b| asked.query("kind").is_none_or(|kind| b.get("kind").is_some_and(|k| k == kind)));
    all.retain(|b| asked.query("before").is_none_or(|before| id(b).as_str() < before));
    all.sort_by_key(|b| std::cmp::Reverse(id(b)));
    all.truncate(limit);
    ok(fields)
}

pub fn backup(api: &Api, asked: &Asked<'_>) -> Made {
    let (fields, _) = part(api, asked, &["backups"])?;
    let wanted = asked.path("backup").unwrap_or_default();
    let all =
        fields["backups"].as_array().ok_or_else(|| Problem::unread("which backups there are", &fields["source"]))?;
    let found = all.iter().find(|b| b.get("id").is_some_and(|id| id == wanted));
    ok(found.cloned().ok_or_else(Problem::not_found)?)
}

/// A list that a command printed, under this key, with what else it said; null before it was read once.
pub fn listed(api: &Api, asked: &Asked<'_>, kind: &str, key: &str) -> Result<Value, Problem> {
    let name = asked.path("cluster").unwrap_or_default();
    let found = api.state.document(kind, name)?;
    let read = read(found.as_ref());
    let mut value = read.cloned().filter(Value::is_object).unwrap_or_else(|| json!({}));
    value["cluster"] = name.into();
    value["source"] = source(found.as_ref());
    if value.get(key).is_none() {
        value[key] = read.map_or(Value::Null, |_| json!([]));
    }
    Ok(value)
}

pub fn wal(api: &Api, asked: &Asked<'_>) -> Made {
    ok(listed(api, asked, "wal", "timelines")?)
}

pub fn reports(api: &Api, asked: &Asked<'_>) -> Made {
    ok(listed(api, asked, "reports", "reports")?)
}

pub fn drills(api: &Api, asked: &Asked<'_>) -> Made {
    let value = listed(api, asked, "reports", "reports")?;
    let drills = value["reports"]
        .as_array()
        .map(|all| all.iter().filter(|r| r.get("what").is_some_and(|what| what == "drill")).collect::<Vec<_>>());
    let (_, found) = part(api, asked, &[])?;
    ok(json!({"cluster": value["cluster"], "source": value["source"], "drills": drills, "drill": found.get("drill")}))
}

pub fn limit(asked: &Asked<'_>) -> Result<usize, Problem> {
    match asked.query("limit").map(str::parse) {
        None => Ok(LIST),
        Some(Ok(n @ 1..=LIST_MAX)) => Ok(n),
        Some(_) => Err(Problem::wrong(format!("limit is between 1 and {LIST_MAX}"))),
    }
}

pub fn jobs(api: &Api, asked: &Asked<'_>) -> Made {
    jobs_of(api, asked, asked.query("cluster"))
}

pub fn jobs_of(api: &Api, asked: &Asked<'_>, cluster: Option<&str>) -> Made {
    let caller = asked.caller()?;
    let state = asked.query("state").map(str::parse::<JobState>).transpose().map_err(Problem::wrong)?;
    let clusters = match cluster {
        Some(cluster) if !caller.sees(cluster) => return Err(Problem::not_found()),
        Some(cluster) => Some(vec![cluster.to_owned()]),
        None => caller.clusters(),
    };
    let filter = Filter { clusters, state, before: asked.query("before").map(str::to_owned), limit: limit(asked)? };
    let jobs = api.state.jobs(&filter)?;
    ok(json!({"jobs": jobs.iter().map(|job| shown(job, false, api)).collect::<Vec<_>>()}))
}

pub fn shown(job: &Job, whole: bool, api: &Api) -> Value {
    let mut value = serde_json::to_value(job).unwrap_or(Value::Null);
    if job.state == JobState::Running {
        value["progress"] = job.progress(&api.state).into();
    }
    if job.state == JobState::WaitingForApproval {
        let right = right_to_approve(api, &job.request, &job.cluster);
        value["waits_for"] = json!(ROLES.into_iter().filter(|role| role.may(right)).collect::<Vec<_>>());
    }
    if whole {
        value["result"] = job.result(&api.state);
        value["log"] = job.log(&api.state).into();
    }
    value
}

/// A job of a cluster that the caller may do this with; of others it is not even said that they are there.
pub fn own_job(api: &Api, asked: &Asked<'_>, right: Right) -> Result<Job, Problem> {
    let caller = asked.caller()?;
    let job = api.state.job(asked.path("job").unwrap_or_default())?;
    match (caller.sees(&job.cluster), caller.may(right, Some(&job.cluster))) {
        (false, _) => Err(Problem::not_found()),
        (true, false) => Err(Problem::not_allowed()),
        (true, true) => Ok(job),
    }
}

pub fn job(api: &Api, asked: &Asked<'_>) -> Made {
    let job = own_job(api, asked, Right::View)?;
    ok(shown(&job, true, api))
}

pub fn cancel_job(api: &Api, asked: &Asked<'_>) -> Made {
    let job = own_job(api, asked, Right::Operate)?;
    // Who may not start a restore does not stop one half-way either.
    if !asked.caller()?.may(job.request.right(), Some(&job.cluster)) {
        return Err(Problem::not_allowed());
    }
    let job = api.state.cancel_job(&job.id, asked.now)?;
    ok(shown(&job, true, api))
}

pub fn create_job(api: &Api, asked: &Asked<'_>) -> Made {
    let job = job_of(api, asked, asked.body.clone())?;
    Ok(accepted(&job, api))
}

/// It is written down, and has not begun.
pub fn accepted(job: &Job, api: &Api) -> Answer {
    let mut value = shown(job, false, api);
    value["schema"] = SCHEMA.into();
    Answer::Json(StatusCode::ACCEPTED, value)
}

/// A job of the cluster of the path, as this document says.
pub fn job_of(api: &Api, asked: &Asked<'_>, mut body: Value) -> Result<Job, Problem> {
    let cluster = asked.path("cluster").unwrap_or_default();
    let fields = body.as_object_mut().ok_or_else(|| Problem::wrong("the body is no object"))?;
    let confirm = fields.remove("confirm");
    let request: Request = serde_json::from_value(body).map_err(|e| Problem::wrong(e.to_string()))?;
    // By its name, so that nobody confirms what they do not look at.
    let confirmed = confirm.is_some_and(|word| word == cluster);
    new_job(api, asked, cluster, request, confirmed)
}

/// Written down before it is answered.
pub fn new_job(api: &Api, asked: &Asked<'_>, cluster: &str, request: Request, confirmed: bool) -> Result<Job, Problem> {
    let caller = asked.caller()?;
    if !caller.may(request.right(), Some(cluster)) {
        return Err(Problem::not_allowed());
    }
    request.words(cluster).map_err(Problem::wrong)?;
    if request.needs_confirmation() && !confirmed {
        let message = "this replaces or removes something, and has to be confirmed";
        return Err(Problem::new(StatusCode::CONFLICT, "E-CONFIRM", message)
            .hint(format!("send it again with \"confirm\": \"{cluster}\", the name of the cluster")));
    }
    let idempotency = match asked.headers.get("idempotency-key").map(|v| v.to_str()) {
        None => None,
        Some(Ok(key)) if !key.is_empty() && key.len() <= KEY_CHARS_MAX => Some(format!("{}:{key}", caller.identity())),
        Some(_) => return Err(Problem::wrong("an Idempotency-Key has 1 to 128 characters of ASCII")),
    };
    let config = api.config.get();
    let own = config.clusters.iter().find(|c| c.name == cluster).map_or(&[][..], |c| &c.repos);
    if let Some(other) = request.repos().into_iter().find(|name| !own.iter().any(|repo| repo == name)) {
        let message = format!("'{other}' is no repository of this cluster");
        let all = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
        return Err(Problem::wrong(message).hint(format!("repos in [clusters.{cluster}] has those that are: {all}")));
    }
    let web = &config.web;
    // Who restores does not say by that where an application goes.
    let is_allowed =
        !request.needs_confirmation() || caller.may(right_to_approve(api, &request, cluster), Some(cluster));
    let needs_approval = !is_allowed || web.require_second_person && request.needs_confirmation();
    let approve_until = asked.now.checked_add(web.approve_within).unwrap_or(asked.now);
    let new = NewJob {
        cluster: cluster.to_owned(),
        request: request.clone(),
        requested_by: caller.shown(),
        requester: Some(caller.identity()),
        approve_until: needs_approval.then_some(approve_until),
        schedule: None,
        not_before: asked.now,
        deadline_s: DEADLINE_S,
        retries: 0,
        idempotency,
    };
    let job = api.state.add_job(&new, asked.now)?;
    if job.request != request || job.cluster != cluster {
        let message = "this Idempotency-Key was used for another request";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "E-IDEMPOTENCY", message));
    }
    Ok(job)
}

pub fn schedules(api: &Api, asked: &Asked<'_>) -> Made {
    let config = api.config.get();
    let mut all = vec![];
    for schedule in config.schedules.iter().filter(|s| asked.sees(&s.cluster)) {
        let name = schedule.plan.name();
        let (first_seen, _) = api.state.schedule(name, asked.now)?;
        let success = api.state.last_success(name)?;
        let overdue = schedule.plan.overdue(first_seen, success.as_ref().map(|j| j.created), asked.now);
        all.push(json!({
            "name": name, "cluster": schedule.cluster, "request": schedule.request,
            "time_zone": schedule.plan.zone().iana_name(), "next": schedule.plan.upcoming(asked.now, RUNS_SHOWN),
            "running": api.state.schedule_runs(name)?, "last_success": success.and_then(|j| j.finished), "overdue_since": overdue,
        }));
    }
    ok(json!({"schedules": all}))
}

pub fn tokens(api: &Api, _: &Asked<'_>) -> Made {
    ok(json!({"tokens": api.state.tokens()?}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    name: String,
    role: Role,
    /// One,
    cluster: Option<String>,
    /// or several; every cluster without either.
    clusters: Option<Vec<String>>,
    expires: Option<Timestamp>,
}

impl TokenRequest {
    fn clusters(&self) -> Result<Option<Vec<String>>, Problem> {
        match (&self.cluster, &self.clusters) {
            (None, None) => Ok(None),
            (Some(one), None) => Ok(Some(vec![one.clone()])),
            (None, Some(all)) if !all.is_empty() && all.len() <= TOKEN_CLUSTERS_MAX => Ok(Some(all.clone())),
            (None, Some(_)) => Err(Problem::wrong(format!(
                "'clusters' names 1 to {TOKEN_CLUSTERS_MAX} of them; without it the token is for every one"
            ))),
            (Some(_), Some(_)) => Err(Problem::wrong("either 'cluster' or 'clusters' is given")),
        }
    }
}

pub fn create_token(api: &Api, asked: &Asked<'_>) -> Made {
    let wanted: TokenRequest = serde_json::from_value(asked.body.clone()).map_err(|e| Problem::wrong(e.to_string()))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if wanted.name.is_empty() || wanted.name.len() > NAME_CHARS_MAX || !wanted.name.chars().all(allowed) {
        return Err(Problem::wrong("a name has 1 to 63 letters, digits, '-', '_' and '.'"));
    }
    let (config, clusters) = (api.config.get(), wanted.clusters()?);
    let is_known = |name: &String| config.clusters.iter().any(|c| c.name == *name);
    if !clusters.iter().flatten().all(is_known) {
        return Err(Problem::wrong("there is no such cluster"));
    }
    if wanted.expires.is_some_and(|at| at <= asked.now) {
        return Err(Problem::wrong("it has expired already"));
    }
    let (token, record) =
        api.state.create_token_for(&wanted.name, wanted.role, clusters.as_deref(), wanted.expires, asked.now)?;
    let (by, clusters) = (asked.caller()?.shown(), clusters.map_or_else(|| "all".to_owned(), |all| all.join(", ")));
    tracing::warn!(target: "pgark", id = %record.id, name = %record.name, role = %record.role, clusters, by, "a token was made");
    let mut value = serde_json::to_value(record).unwrap_or(Value::Null);
    value["token"] = token.expose().into();
    value["schema"] = SCHEMA.into();
    Ok(Answer::Json(StatusCode::CREATED, value))
}

pub fn revoke_token(api: &Api, asked: &Asked<'_>) -> Made {
    let record = api.state.revoke_token(asked.path("token").unwrap_or_default(), asked.now)?;
    let by = asked.caller()?.shown();
    tracing::warn!(target: "pgark", id = %record.id, name = %record.name, by, "a token was revoked");
    ok(serde_json::to_value(record).unwrap_or(Value::Null))
}
