//! The OpenAPI document, made of the table of routes.

use serde_json::{Map, Value, json};

use super::routes::{ROUTES, Route};
use super::session::COOKIE;
use crate::access::{ROLES, Right, Role};

/// What every route may say.
const LIMITS: [(&str, &str); 6] = [
    ("408", "The request is too slow"),
    ("413", "The request is too large"),
    ("414", "The address is too long"),
    ("421", "The request is for another host"),
    ("429", "Too many requests; Retry-After has the seconds"),
    ("431", "The head of the request is too large"),
];

pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES.iter().filter(|r| !r.page) {
        let entry = paths.entry(route.path).or_insert_with(|| json!({}));
        entry[route.method().as_str().to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pgark",
            "version": "1",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
            "description": "Times are RFC 3339 in UTC, sizes are bytes unless a name says otherwise. What is known of repositories has its age in 'source'.",
        },
        "servers": [{"url": "http://127.0.0.1:7432"}],
        "paths": paths,
        "components": {"securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            "certificate": {"type": "mutualTLS"},
        }, "schemas": schemas()},
    })
}

fn operation(route: &Route) -> Value {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let query = |name: &&str| {
        let kind = if *name == "limit" {
            json!({"type": "integer", "minimum": 1, "maximum": 1000})
        } else {
            json!({"type": "string"})
        };
        json!({"name": name, "in": "query", "required": false, "schema": kind})
    };
    parameters.extend(route.query.iter().map(query));
    if route.starts_a_job {
        parameters.push(json!({"name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same key gives the job that it made first", "schema": {"type": "string", "maxLength": 128}}));
    }
    let roles: Vec<Role> = ROLES.into_iter().filter(|role| role.may(route.right)).collect();
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let failure =
        |what: &str| json!({"description": what, "content": {"application/json": {"schema": schema("Failure")}}});
    let status = match (route.starts_a_job, route.answer) {
        (true, _) => "202",
        (_, "NewToken") => "201",
        _ => "200",
    };
    let kind = match route.answer {
        "Metrics" => "application/openmetrics-text",
        "Events" => "text/event-stream",
        _ => "application/json",
    };
    let mut responses = Map::new();
    responses.insert(
        status.into(),
        json!({"description": route.summary, "content": {kind: {"schema": schema(route.answer)}}}),
    );
    responses.insert("400".into(), failure("The request is wrong"));
    responses.insert("404".into(), failure("There is no such thing, or the token does not see it"));
    responses
        .insert("403".into(), failure("The role does not allow it, or the request comes from somebody else's page"));
    for (status, what) in LIMITS {
        responses.insert(status.into(), failure(what));
    }
    responses.insert("503".into(), failure("The server cannot answer at the moment"));
    if route.right != Right::Anyone {
        responses.insert("401".into(), failure("There is no valid token, session or certificate"));
    }
    if route.answer == "Session" {
        responses.insert("401".into(), failure("The name or the password is wrong"));
    }
    if route.answer == "Job" && !route.starts_a_job || route.answer == "Message" {
        responses.insert("409".into(), failure("The job is in another state, or waits for approval"));
    }
    if route.answer == "Backup" {
        responses.insert("422".into(), failure("Which backups there are was not read yet"));
    }
    if matches!(route.answer, "Report" | "RestorePlan" | "RecoverPlan") {
        let underway = json!({"application/json": {"schema": schema("Underway")}});
        responses.insert("202".into(), json!({"description": "It is being looked up: ask again", "content": underway}));
        responses.insert("422".into(), failure("The command that looks it up failed, with this code"));
    }
    if route.starts_a_job {
        let asked = if route.body.is_some() { "It has to be confirmed" } else { "What it is about is over" };
        responses.insert("409".into(), failure(asked));
        let what = "The Idempotency-Key was used for another request, or what it is about was not read yet";
        responses.insert("422".into(), failure(what));
    }
    let id: String = route.path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut operation = json!({
        "operationId": format!("{}{id}", route.method().as_str().to_lowercase()),
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
        "security": if route.right == Right::Anyone { json!([]) } else { json!([{"token": []}, {"session": []}, {"certificate": []}]) },
        "x-roles": if route.right == Right::Anyone { json!([]) } else { json!(roles) },
    });
    if let Some(body) = route.body {
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema(body)}}});
    }
    operation
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

/// Null says that it is not known whether there are any.
fn unless_unread(of: Value) -> Value {
    json!({"type": ["array", "null"], "items": of, "description": "null: it was not read yet, source says why"})
}

fn listing(key: &str, source: &Value) -> Value {
    object(
        &["schema", "cluster", "source", key],
        json!({"schema": {"const": 1}, "cluster": {"type": "string"}, "source": source, key: unless_unread(json!({"type": "object"}))}),
    )
}

fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let time = || json!({"type": ["string", "null"], "format": "date-time"});
    let number = || json!({"type": ["integer", "null"]});
    let flag = || json!({"type": ["boolean", "null"]});
    let any = || json!({});
    let list = |of: Value| json!({"type": "array", "items": of});
    let named = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let source = named("Source");
    let listing = |key: &str| listing(key, &source);
    let roles: Vec<&str> = ROLES.iter().map(|r| r.word()).collect();
    let system = json!({"backup_name": text(), "timestamp": text(), "datetime": time(), "archive_path": text(),
        "size_mb": {"type": "number"}, "database_size_mb": {"type": "number"}});
    let system_keys = ["backup_name", "timestamp", "datetime", "archive_path", "size_mb", "database_size_mb"];
    let mut schemas = json!({
        "Failure": object(&["schema", "error"], json!({"schema": {"const": 1},
            "error": object(&["code", "message", "hint"], json!({"code": text(), "message": text(), "hint": {"type": ["string", "null"]}}))})),
        "Source": object(&["refreshed", "failed", "error"], json!({"refreshed": time(), "failed": time(), "error": {"type": ["string", "null"]}})),
        "Health": object(&["schema", "status"], json!({"schema": {"const": 1}, "status": {"const": "ok"}})),
        "Metrics": text(),
        "Document": {"type": "object"},
        "Me": object(&["schema", "name", "role", "cluster", "grants", "rights"], json!({"schema": {"const": 1}, "name": text(),
            "role": {"enum": roles}, "cluster": {"type": ["string", "null"]}, "rights": list(text()),
            "grants": list(object(&["role", "cluster"], json!({"role": {"enum": roles}, "cluster": {"type": ["string", "null"]}})))})),
        "Cluster": object(&["name", "standing", "can_recover", "source"], json!({"schema": {"const": 1}, "name": text(), "pg_version": any(),
            "standing": {"enum": ["good", "not_proven", "at_risk", "unknown", "not_recoverable"]}, "reasons": list(text()),
            "can_recover": flag(), "recoverable_from": time(), "recoverable_until": time(),
            "recoverable_by": {"enum": ["wal", "backup", null]}, "recoverable_backup": {"type": ["string", "null"]},
            "recoverable_databases": {"type": ["array", "null"], "description": "where there are dumps alone: of which databases, each with its newest dump",
                "items": object(&["database", "backup", "time", "partial"],
                    json!({"database": text(), "backup": text(), "time": time(), "partial": {"type": "boolean"}}))}, "rpo_s": number(),
            "loss_s": number(), "meets_rpo": flag(), "rto_ms": number(), "expected_ms": number(), "meets_rto": flag(), "proven": any(),
            "last_drill": any(), "last_backup": time(), "backups": number(), "gaps": number(),
            "problems": list(text()), "source": source})),
        "Clusters": object(&["schema", "clusters"], json!({"schema": {"const": 1}, "clusters": list(named("Cluster"))})),
        "Windows": object(&["schema", "cluster", "source", "windows", "gaps"], json!({"schema": {"const": 1}, "cluster": text(),
            "source": source, "windows": unless_unread(json!({"type": "object"})), "gaps": unless_unread(json!({"type": "object"}))})),
        "Backup": object(&["schema", "id"], json!({"schema": {"const": 1}, "id": text()})),
        "Backups": listing("backups"),
        "Wal": listing("timelines"),
        "Reports": listing("reports"),
        "Drills": listing("drills"),
        "NewJob": object(&["job"], json!({
            "job": {"enum": ["backup", "verify", "expire", "check", "alerts", "replicate", "drill", "delete", "restore", "restore_system", "recover", "acknowledge"]},
            "kind": {"enum": ["physical", "logical", "files", "system"]}, "type": {"enum": ["full", "incr", "diff"]},
            "repo": text(), "from": text(), "to": text(), "backup": text(), "quick": {"type": "boolean"},
            "target_time": {"type": "string", "format": "date-time"}, "target_lsn": text(), "target_name": text(),
            "database": {"type": "boolean"}, "config": {"type": "boolean"}, "files": {"type": "boolean"}, "reason": text(), "alert": text(),
            "confirm": {"type": "string", "description": "the name of the cluster"}})),
        "Job": object(&["id", "cluster", "request", "state"], json!({"schema": {"const": 1}, "id": text(), "cluster": text(),
            "request": {"type": "object"},
            "state": {"enum": ["waiting_for_approval", "queued", "running", "done", "warnings", "failed", "cancelled", "timed_out", "interrupted"]},
            "requested_by": text(), "waits_for": {"type": "array", "items": {"enum": roles}, "description": "roles that may approve it, while it waits"}, "approve_until": time(), "approved_by": {"type": ["string", "null"]}, "created": time(), "started": time(), "finished": time(), "exit_code": number(),
            "error_code": {"type": ["string", "null"]}, "message": {"type": ["string", "null"]},
            "progress": {"type": ["string", "null"]}, "result": any(), "log": text()})),
        "Jobs": object(&["schema", "jobs"], json!({"schema": {"const": 1}, "jobs": list(named("Job"))})),
        "Schedules": object(&["schema", "schedules"], json!({"schema": {"const": 1}, "schedules": list(json!({"type": "object"}))})),
        "Message": object(&["message"], json!({"message": text()})),
        "SystemBackup": object(&system_keys, system),
        "SystemBackups": list(named("SystemBackup")),
        "SystemRestore": object(&["backup_name", "confirm"], json!({"backup_name": text(), "restore_database": {"type": "boolean"},
            "restore_config": {"type": "boolean"}, "restore_files": {"type": "boolean"}, "confirm": {"const": true}})),
        "SystemHealth": object(&["backup_enabled", "backup_directory", "total_backups", "total_size_mb", "status"], json!({
            "backup_enabled": {"type": "boolean"}, "backup_directory": text(), "total_backups": number(),
            "total_size_mb": {"type": ["number", "null"]}, "retention_days": number(), "max_backups": number(), "most_recent_backup": any(),
            "hours_since_last_backup": {"type": ["number", "null"]}, "remote_backup_enabled": {"type": "boolean"}, "status": text()})),
    });
    for more in [of_people(), of_knowledge()] {
        if let (Some(all), Value::Object(more)) = (schemas.as_object_mut(), more) {
            all.extend(more);
        }
    }
    schemas
}

fn of_people() -> Value {
    let text = || json!({"type": "string"});
    let time = || json!({"type": ["string", "null"], "format": "date-time"});
    let list = |of: Value| json!({"type": "array", "items": of});
    let named = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let roles: Vec<&str> = ROLES.iter().map(|r| r.word()).collect();
    let clusters = json!({"type": ["array", "null"], "items": text(), "description": "null: every cluster"});
    let token = json!({"schema": {"const": 1}, "id": text(), "name": text(), "role": {"enum": roles}, "clusters": clusters,
        "created": time(), "expires": time(), "revoked": time(), "last_used": time()});
    let mut new_token = token.clone();
    new_token["token"] = text();
    json!({
        "Tokens": object(&["schema", "tokens"], json!({"schema": {"const": 1}, "tokens": list(named("Token"))})),
        "Token": object(&["id", "name", "role"], token),
        "NewToken": object(&["id", "name", "role", "token"], new_token),
        "TokenRequest": object(&["name", "role"], json!({"name": text(), "role": {"enum": roles}, "cluster": text(),
            "clusters": {"type": "array", "items": text(), "minItems": 1, "maxItems": 100, "description": "instead of cluster; every one without either"}, "expires": time()})),
        "SignIn": object(&["name", "password"], json!({"name": text(), "password": {"type": "string", "format": "password"}})),
        "Session": object(&["schema", "name", "role", "cluster"], json!({"schema": {"const": 1}, "name": text(), "role": {"enum": roles},
            "cluster": {"type": ["string", "null"]}})),
        "SignedOut": object(&["schema", "status", "end_session"], json!({"schema": {"const": 1}, "status": {"const": "ok"},
            "end_session": {"type": ["string", "null"], "format": "uri"}})),
        "Users": object(&["schema", "users"], json!({"schema": {"const": 1}, "users": list(object(&["name", "role"], json!({
            "name": text(), "role": {"enum": roles}, "cluster": {"type": ["string", "null"]}, "created": time(), "changed": time(),
            "last_used": time()})))})),
    })
}

/// Of what is known beside clusters, backups and jobs.
fn of_knowledge() -> Value {
    let text = || json!({"type": "string"});
    let time = || json!({"type": ["string", "null"], "format": "date-time"});
    let number = || json!({"type": ["integer", "null"]});
    let any = || json!({});
    let list = |of: Value| json!({"type": "array", "items": of});
    let source = json!({"$ref": "#/components/schemas/Source"});
    let listing = |key: &str| listing(key, &source);
    json!({
        "Report": object(&["schema", "id"], json!({"schema": {"const": 1}, "id": text(), "severity": {"enum": ["info", "warning", "incident"]},
            "what": text(), "written": time(), "backup": any(), "database": any(), "summary": text(), "report": {"type": "object"}})),
        "Underway": object(&["schema", "state"], json!({"schema": {"const": 1}, "state": {"const": "underway"}})),
        "History": listing("events"),
        "Audit": listing("events"),
        "Capacity": object(&["schema", "cluster", "source", "repository", "samples"], json!({"schema": {"const": 1},
            "cluster": text(), "source": source, "repository": any(), "samples": list(object(&["at", "used_bytes"],
            json!({"at": time(), "used_bytes": {"type": "integer"}, "free_bytes": number(), "month": {"type": ["number", "null"]},
                "currency": {"type": ["string", "null"]}})))})),
        "Series": object(&["schema", "cluster", "source", "backups", "days"], json!({"schema": {"const": 1}, "cluster": text(),
            "source": source, "backups": unless_unread(object(&["id", "kind"], json!({"id": text(), "kind": text(), "type": text(),
                "finished": time(), "size_bytes": number(), "stored_bytes": number(), "duration_ms": number(),
                "bytes_per_s": number()}))),
            "days": list(object(&["day", "succeeded", "failed"], json!({"day": text(), "succeeded": {"type": "integer"},
                "failed": {"type": "integer"}})))})),
        "RestorePlan": object(&["schema", "cluster", "plan", "command"], json!({"schema": {"const": 1}, "cluster": text(),
            "plan": {"type": "object"}, "command": list(text())})),
        "RecoverPlan": object(&["schema", "cluster", "plan", "command"], json!({"schema": {"const": 1}, "cluster": text(),
            "plan": {"type": "object"}, "command": list(text())})),
        "Alerts": object(&["schema", "source", "alerts"], json!({"schema": {"const": 1}, "source": source,
            "alerts": unless_unread(json!({"type": "object"}))})),
        "Incidents": object(&["schema", "source", "incidents"], json!({"schema": {"const": 1}, "source": source,
            "incidents": unless_unread(json!({"type": "object"}))})),
        "Settings": object(&["schema", "source", "settings", "changed_since"], json!({"schema": {"const": 1}, "source": source,
            "settings": unless_unread(object(&["key", "origin"], json!({"key": text(), "value": any(), "origin": text()}))),
            "changed_since": {"type": ["array", "null"], "items": text(), "description": "files that are not as they were when these settings were read; they count after a reload"}})),
        "Events": text()
    })
}
