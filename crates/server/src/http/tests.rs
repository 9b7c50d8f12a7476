mod forms;
mod fuzzed;
mod many;
mod oidc;
mod pages;
mod people;
mod unread;
mod wire;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use axum::http::HeaderValue;
use pgark_testkit::Scratch;
use serde_json::json;

use super::routes::{ROUTES, Route};
use super::*;
use crate::access::{ROLES, Role};
use crate::jobs::{BackupType, Kind, Request};
use crate::serve::{ClusterConfig, Config, SystemConfig};

struct Bench {
    api: Api,
    peer: Peer,
    scratch: Scratch,
}

fn bench(label: &str) -> Bench {
    let scratch = Scratch::new(label);
    let dir = scratch.join("state");
    std::fs::create_dir(&dir).expect("made");
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
    let state = State::open(&dir).expect("opened");
    let system = SystemConfig {
        prefix: "radiology_backup".into(),
        directory: "/srv/backups".into(),
        remote: false,
        enabled: true,
        retention_days: Some(30),
        max_backups: Some(50),
    };
    let cluster = |name: &str, system: Option<SystemConfig>| ClusterConfig {
        name: name.into(),
        repos: vec![],
        rpo: Some(Duration::from_secs(3600)),
        rto: Some(Duration::from_secs(4 * 3600)),
        system,
        is_priced: false,
        repoints: false,
    };
    let clusters = vec![cluster("a", Some(system)), cluster("b", None)];
    let config = Shared::new(Config { clusters, ..Config::default() });
    let local = "127.0.0.1:7432".parse().expect("an address");
    let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), local, is_tls: false, subject: None };
    Bench { api: Api::new(state, config, Lookups::new(None, dir)), peer, scratch }
}

impl Bench {
    fn token(&self, role: Role, cluster: Option<&str>) -> String {
        let made = self.api.state.create_token("t", role, cluster, None, Timestamp::now());
        made.expect("made").0.expose().to_owned()
    }

    fn job(&self, cluster: &str) -> String {
        let new = crate::jobs::NewJob {
            cluster: cluster.into(),
            request: Request::Backup { kind: Some(Kind::Physical), backup_type: Some(BackupType::Full), repo: None },
            requested_by: "test".into(),
            requester: None,
            approve_until: None,
            schedule: None,
            not_before: Timestamp::now(),
            deadline_s: 60,
            retries: 0,
            idempotency: None,
        };
        self.api.state.add_job(&new, Timestamp::now()).expect("added").id
    }

    fn ask(&self, route: &Route, path: &[(&str, &str)], token: Option<&str>, body: &str) -> (u16, Value) {
        self.ask_from(&self.peer, route, path, token, body)
    }

    fn ask_from(
        &self,
        peer: &Peer,
        route: &Route,
        path: &[(&str, &str)],
        token: Option<&str>,
        body: &str,
    ) -> (u16, Value) {
        let token = token.map(|token| ("authorization", format!("Bearer {token}")));
        self.asked(peer, route, path, &token.into_iter().collect::<Vec<_>>(), "", body)
    }

    fn ask_with(
        &self,
        route: &Route,
        path: &[(&str, &str)],
        more: &[(&'static str, String)],
        query: &str,
        body: &str,
    ) -> (u16, Value) {
        self.asked(&self.peer, route, path, more, query, body)
    }

    fn asked(
        &self,
        peer: &Peer,
        route: &Route,
        path: &[(&str, &str)],
        more: &[(&'static str, String)],
        query: &str,
        body: &str,
    ) -> (u16, Value) {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("127.0.0.1:7432"));
        for (name, value) in more {
            headers.insert(*name, value.parse().expect("a header"));
        }
        let path = path.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let uri: Uri = format!("/x?{query}").parse().expect("a query");
        match answer(&self.api, peer, route, path, &uri, &headers, body.as_bytes()) {
            Ok(Answer::Json(status, value)) => (status.as_u16(), value),
            Ok(Answer::Text(_, text)) => (200, text.into()),
            Ok(Answer::Cookie(mut value, cookie)) => {
                value["cookie"] = cookie.into();
                (200, value)
            }
            Ok(Answer::Page { status, html, .. }) => (status.as_u16(), html.into()),
            Ok(Answer::Goto { to, cookies }) => (303, json!({"to": to, "cookies": cookies})),
            Ok(Answer::Asset(_, text)) => (200, text.into()),
            Ok(Answer::Events(_)) => (200, Value::Null),
            Err(problem) => (problem.status.as_u16(), json!({"code": problem.code, "message": problem.message})),
        }
    }
}

fn route(method: &str, path: &str) -> &'static Route {
    ROUTES.iter().find(|r| r.method() == method && r.path == path).unwrap_or_else(|| panic!("{method} {path}"))
}

/// Something that would be well-formed for every route that could wait for a job without it.
fn body(route: &Route) -> &'static str {
    if route.page {
        return "job=check";
    }
    match route.body {
        Some("NewJob") => r#"{"job": "check"}"#,
        Some("TokenRequest") => r#"{"name": "n", "role": "viewer"}"#,
        _ => "",
    }
}

#[test]
fn every_route_takes_what_the_table_says_and_no_less() {
    let bench = bench("routes");
    let own = bench.job("a");
    let alerts = json!({"alerts": [{"id": "one", "cluster": "a", "summary": "s"}]});
    bench.api.state.keep_document("alerts", "", &alerts, Timestamp::now()).expect("kept");
    for (at, route) in ROUTES.iter().filter(|r| r.right != Right::Anyone).enumerate() {
        let path = [
            ("cluster", "a"),
            ("job", own.as_str()),
            ("token", "none"),
            ("alert", "one"),
            ("backup", "none"),
            ("report", "none"),
            ("backup_name", "none"),
        ];
        let path: Vec<_> = path.into_iter().filter(|(name, _)| route.path.contains(&format!("{{{name}}}"))).collect();
        let shown = format!("{} {}", route.method(), route.path);
        for (n, wrong) in [None, Some("pgark_nobody"), Some("")].into_iter().enumerate() {
            // Each from an address of its own, since who guesses is soon not answered.
            let address = Ipv4Addr::new(192, 0, u8::try_from(n).expect("small"), u8::try_from(at).expect("small"));
            let peer = Peer { address: address.into(), ..bench.peer.clone() };
            assert_eq!(bench.ask_from(&peer, route, &path, wrong, body(route)).0, 401, "{shown} {wrong:?}");
        }
        for role in ROLES {
            // Answered when the job is done, which nobody does here.
            if route.path.ends_with("create-sync") && role.may(route.right) {
                continue;
            }
            let (status, value) = bench.ask(route, &path, Some(&bench.token(role, None)), body(route));
            assert_eq!(status == 403, !role.may(route.right), "{shown} as {role}: {status} {value}");
            assert_ne!(status, 401, "{shown} as {role}");
        }
        // Nor does any other role of another cluster get further than its own role.
        for role in ROLES {
            let stranger = bench.token(role, Some("b"));
            let (status, value) = bench.ask(route, &path, Some(&stranger), body(route));
            let has_changed = route.method() != Method::GET && (200..400).contains(&status);
            let signs_out = matches!(route.path, "/api/v1/session" | "/sign-out");
            assert!(!has_changed || signs_out, "{shown} as {role} of b: {status} {value}");
        }
        // A token of another cluster learns not even that this one is there.
        let stranger = bench.token(Role::Admin, Some("b"));
        let (status, value) = bench.ask(route, &path, Some(&stranger), body(route));
        let of_a_cluster = ["{cluster}", "{job}", "{alert}"].iter().any(|name| route.path.contains(name));
        if of_a_cluster {
            assert_eq!(status, 404, "{shown} from b: {value}");
        }
        assert!(!value.to_string().contains("\"a\""), "{shown} from b tells of a: {value}");
        assert!(!value.to_string().contains("/clusters/a\\"), "{shown} from b leads to a: {value}");
        if route.right == Right::Administer {
            assert!(matches!(status, 400 | 403 | 404), "{shown} from b: {status}");
        }
    }
}

#[test]
fn pages_of_others_and_other_hosts_are_not_answered() {
    let bench = bench("hosts");
    let live = route("GET", "/health/live");
    let ask = |more: &[(&'static str, &str)]| {
        let more: Vec<_> = more.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        bench.ask_with(live, &[], &more, "", "").0
    };
    assert_eq!(ask(&[]), 200);
    assert_eq!(ask(&[("host", "localhost:7432")]), 200);
    for host in ["evil.example", "evil.example:7432", "127.0.0.1.evil.example", "127.0.0.1:80", ""] {
        assert_eq!(ask(&[("host", host)]), 421, "{host}");
    }
    assert_eq!(ask(&[("origin", "http://127.0.0.1:7432")]), 200);
    for origin in [
        "http://evil.example",
        "null",
        "https://127.0.0.1:7432",
        "http://127.0.0.1:80",
        "http://127.0.0.1",
        "http://localhost",
    ] {
        assert_eq!(ask(&[("origin", origin)]), 403, "{origin}");
    }
    // Behind a proxy at the port of the scheme both have none.
    assert_eq!(ask(&[("host", "localhost"), ("origin", "http://localhost")]), 200);
}

#[test]
fn a_job_is_asked_for_once_and_restores_twice() {
    let bench = bench("asked");
    let jobs = route("POST", "/api/v1/clusters/{cluster}/jobs");
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let operator = bench.token(Role::Operator, Some("a"));
    let key = |key: &str| vec![bearer(&operator), ("idempotency-key", key.to_owned())];
    let post = |more: &[(&'static str, String)], body: &str| bench.ask_with(jobs, &[("cluster", "a")], more, "", body);
    let (status, first) = post(&key("k1"), r#"{"job": "backup"}"#);
    assert_eq!((status, &first["state"]), (202, &json!("queued")), "{first}");
    assert_eq!(post(&key("k1"), r#"{"job": "backup"}"#).1["id"], first["id"]);
    assert_eq!(post(&key("k1"), r#"{"job": "check"}"#).0, 422);
    assert_ne!(post(&key("k2"), r#"{"job": "backup"}"#).1["id"], first["id"]);
    // What restores is for others, and is confirmed.
    let restore = r#"{"job": "restore", "to": "/new"}"#;
    assert_eq!(post(&[bearer(&operator)], restore).0, 403);
    let recovery = [bearer(&bench.token(Role::RecoveryOperator, Some("a")))];
    assert_eq!(post(&recovery, restore).0, 409);
    assert_eq!(post(&recovery, r#"{"job": "restore", "to": "/new", "confirm": "a"}"#).0, 202);
    for wrong in [r#"{"job": "demo"}"#, "[]", "{", r#"{"job": "delete", "backup": "--last", "confirm": "a"}"#] {
        assert_eq!(post(&recovery, wrong).0, 400, "{wrong}");
    }
    // One who may not restore does not stop a restore.
    let list = bench.ask_with(route("GET", "/api/v1/jobs"), &[], &[bearer(&operator)], "limit=1", "").1;
    let id = list["jobs"][0]["id"].as_str().expect("the restore").to_owned();
    let cancel = route("POST", "/api/v1/jobs/{job}/cancel");
    assert_eq!(bench.ask_with(cancel, &[("job", &id)], &[bearer(&operator)], "", "").0, 403);
    let (status, job) = bench.ask_with(cancel, &[("job", &id)], &recovery, "", "");
    assert_eq!((status, &job["state"]), (200, &json!("cancelled")));
}

#[test]
fn a_job_names_repositories_of_its_own_cluster_alone() {
    let bench = bench("repos");
    let mut config = (*bench.api.config.get()).clone();
    config.clusters[0].repos = vec!["main".into(), "off".into()];
    config.clusters[1].repos = vec!["other".into()];
    bench.api.config.set(config);
    let jobs = route("POST", "/api/v1/clusters/{cluster}/jobs");
    let token = bench.token(Role::Admin, None);
    let ask = |cluster: &str, body: &str| bench.ask(jobs, &[("cluster", cluster)], Some(&token), body);
    for body in [
        r#"{"job": "replicate", "from": "main", "to": "other"}"#,
        r#"{"job": "replicate", "from": "other", "to": "main"}"#,
        r#"{"job": "backup", "repo": "other"}"#,
        r#"{"job": "verify", "repo": "other"}"#,
        r#"{"job": "expire", "repo": "nowhere"}"#,
        r#"{"job": "delete", "backup": "20260101-010203F", "repo": "other", "confirm": "a"}"#,
    ] {
        let (status, problem) = ask("a", body);
        assert_eq!((status, &problem["code"]), (400, &json!("E-REQUEST")), "{body}");
        assert!(problem["message"].as_str().is_some_and(|m| m.contains("no repository of this cluster")), "{problem}");
    }
    assert!(bench.api.state.open_jobs().expect("listed").is_empty());
    assert_eq!(ask("a", r#"{"job": "replicate", "from": "main", "to": "off"}"#).0, 202);
    assert_eq!(ask("b", r#"{"job": "backup", "repo": "other"}"#).0, 202);
    assert_eq!(ask("b", r#"{"job": "backup"}"#).0, 202);
}

#[test]
fn tokens_end() {
    let bench = bench("tokens");
    let now = Timestamp::now();
    let me = route("GET", "/api/v1/me");
    let in_an_hour = now + jiff::SignedDuration::from_hours(1);
    let state = &bench.api.state;
    let (token, record) = state.create_token("n", Role::Viewer, None, Some(in_an_hour), now).expect("made");
    assert_eq!(bench.ask(me, &[], Some(token.expose()), "").0, 200);
    assert_eq!(state.caller(token.expose(), in_an_hour).expect("readable"), None);
    state.revoke_token(&record.id, now).expect("revoked");
    assert_eq!(bench.ask(me, &[], Some(token.expose()), "").0, 401);
    assert!(!format!("{:?}", state.tokens().expect("listed")).contains(token.expose()));
}

#[test]
fn what_is_known_of_a_cluster_is_shown_with_its_age() {
    let bench = bench("known");
    let viewer = bench.token(Role::Viewer, Some("a"));
    let clusters = || bench.ask(route("GET", "/api/v1/clusters"), &[], Some(&viewer), "").1;
    let nothing = clusters();
    assert_eq!(nothing["clusters"].as_array().map(Vec::len), Some(1), "{nothing}");
    // Nobody has looked: neither yes, nor no, nor none.
    for field in ["can_recover", "meets_rpo", "meets_rto", "loss_s", "backups", "gaps", "recoverable_until"] {
        assert_eq!(nothing["clusters"][0].get(field), Some(&Value::Null), "{field}: {nothing}");
    }
    let page = || {
        let page = bench.ask(route("GET", "/clusters/{cluster}"), &[("cluster", "a")], Some(&viewer), "").1;
        page.as_str().expect("a page").to_owned()
    };
    let is_good = |page: &str| page.contains("<dd>yes") || page.contains(": kept");
    assert!(!is_good(&page()), "{}", page());
    let admin = bench.token(Role::Admin, None);
    let list = || bench.ask(route("GET", "/api/backups/list"), &[], Some(&admin), "");
    let health = || bench.ask(route("GET", "/api/backups/status/health"), &[], Some(&admin), "").1;
    assert_eq!((list().0, &list().1["code"]), (422, &json!("E-SERVER-LOOK")));
    assert_eq!((&health()["status"], &health()["total_backups"]), (&json!("warning"), &Value::Null));
    let now = Timestamp::now();
    let ago = |minutes: i64| (now - jiff::SignedDuration::from_mins(minutes)).to_string();
    let until: Timestamp = ago(30).parse().expect("a time");
    let backup = |id: &str, kind: &str, minutes: i64| {
        json!({"id": id, "kind": kind, "type": "full", "complete": true, "damaged": null,
        "started": ago(minutes + 1), "finished": ago(minutes), "stored_bytes": 5 * 1024 * 1024, "database_bytes": 3_145_728,
        "drilled": if kind == "physical" { Some(ago(9)) } else { None }})
    };
    let info = json!({"clusters": [{"name": "a", "pg_version": "15.1", "gaps": [{"segments": 3}], "problems": [],
        "windows": [{"timeline": 1, "from_time": ago(600), "to_time": ago(30)}],
        "drill": {"last": null, "last_green": ago(9), "forecasts": [{"expected_ms": 60_000}]},
        "backups": [backup("20260101-010203F", "physical", 600), backup("20260102-010203S", "system", 90)]}],
        "repository": {"used": {"bytes": 0, "complete": false}, "free": {"bytes": 7}}});
    bench.api.state.keep_document("info", "a", &info, now).expect("kept");
    let space = json!({"repository": {"used": {"bytes": 5, "complete": true}, "free": {"bytes": 9}}});
    bench.api.state.keep_document("space", "a", &space, now).expect("kept");
    let known = &clusters()["clusters"][0];
    assert_eq!(known["can_recover"], true);
    assert_eq!((&known["meets_rpo"], &known["meets_rto"]), (&json!(true), &json!(true)), "{known}");
    // By WAL, whatever was dumped since; and the same moment everywhere.
    assert_eq!((&known["recoverable_by"], &known["recoverable_until"]), (&json!("wal"), &json!(ago(30))), "{known}");
    assert!(is_good(&page()), "{}", page());
    assert_eq!(known["proven"]["backup"], "20260101-010203F");
    bench.api.state.document_failed("info", "a", "E-STORE away", now).expect("kept");
    let stale = &clusters()["clusters"][0];
    assert_eq!((&stale["can_recover"], &stale["source"]["error"]), (&Value::Null, &json!("E-STORE away")));
    assert_eq!((&stale["meets_rpo"], &stale["meets_rto"]), (&Value::Null, &Value::Null), "{stale}");
    assert_eq!((&stale["recoverable_until"], &stale["backups"]), (&json!(ago(30)), &json!(2)), "as it was read");
    assert!(!is_good(&page()) && page().contains("as it was read"), "{}", page());
    assert_eq!((list().0, &list().1["code"]), (422, &json!("E-SERVER-LOOK")));
    assert_eq!((&health()["status"], &health()["total_backups"]), (&json!("warning"), &json!(1)));

    let metrics = bench.ask(route("GET", "/metrics"), &[], Some(&viewer), "").1;
    let metrics = metrics.as_str().expect("text");
    for line in [
        "pgark_backups{cluster=\"a\"} 2.0",
        "pgark_wal_gap_segments{cluster=\"a\"} 3.0",
        "pgark_repo_readable{cluster=\"a\"} 0.0",
        "pgark_recovery_expected_seconds{cluster=\"a\"} 60.0",
        "pgark_rto_seconds{cluster=\"a\"} 14400.0",
        "pgark_repo_used_bytes{cluster=\"a\"} 5.0",
        "pgark_repo_free_bytes{cluster=\"a\"} 7.0",
        &format!("pgark_recovery_window_end_timestamp_seconds{{cluster=\"a\"}} {}", until.as_second()),
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("cluster=\"b\"") && !metrics.contains("20260101"), "{metrics}");

    bench.api.state.keep_document("info", "a", &info, now).expect("kept");
    let list = list().1;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["backup_name"], "radiology_backup_20260102_010203");
    assert_eq!((&list[0]["size_mb"], &list[0]["database_size_mb"]), (&json!(5.0), &json!(3.0)));
    let health = health();
    assert_eq!((&health["status"], &health["total_backups"]), (&json!("healthy"), &json!(1)), "{health}");
    assert_eq!(health["hours_since_last_backup"], 1.5);
    let restore = route("POST", "/api/backups/restore");
    let asked = r#"{"backup_name": "radiology_backup_20260102_010203", "restore_files": false"#;
    assert_eq!(bench.ask(restore, &[], Some(&admin), &format!("{asked}}}")).0, 400);
    let (status, started) = bench.ask(restore, &[], Some(&admin), &format!("{asked}, \"confirm\": true}}"));
    assert_eq!((status, &started["status"]), (200, &json!("processing")), "{started}");
    let job = bench.api.state.job(started["job_id"].as_str().expect("an id")).expect("there");
    assert_eq!(
        job.request.words("a").expect("words").join(" "),
        "restore 20260102-010203S --kind=system --in-place --yes --config-files --database --cluster=a"
    );
}

/// Which role may ask for what, on a cluster of its own and on others.
fn roles_document() -> String {
    let mut text = String::from(
        "# Routes and roles\n\nMade of the table that the router is made of; a test compares both (`PGARK_TEST_WRITE=1` writes this anew). What is not here is not there.\n\
         A token, user or certificate of one cluster has these rights on that cluster alone; of others it gets 404, and 403 for what is about no cluster and changes\n\
         something. Jobs that restore or remove need `recovery-operator` or `admin`, whatever the route says; who says yes to one needs the same, and `app-admin` or `admin`\n\
         for a recovery that points an application to another database.\n\n| | route | without | ",
    );
    text += &ROLES.map(|role| role.word()).join(" | ");
    text += &format!(" |\n|{}\n", "---|".repeat(ROLES.len() + 3));
    for route in ROUTES {
        let yes = |may: bool| if may { "yes" } else { "" };
        let of_anyone = yes(route.right == Right::Anyone);
        let may = ROLES.map(|role| yes(role.may(route.right))).join(" | ");
        text += &format!("| {} | `{}` | {of_anyone} | {may} |\n", route.method(), route.path);
    }
    text
}

#[test]
fn the_committed_table_of_roles_is_the_one_that_holds() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/api-roles.md");
    let holds = roles_document();
    if std::env::var_os("PGARK_TEST_WRITE").is_some() {
        std::fs::write(&path, &holds).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("docs/api-roles.md");
    assert!(committed == holds, "docs/api-roles.md differs from the routes: PGARK_TEST_WRITE=1 writes it");
}

/// `PGARK_TEST_WRITE=1` writes it anew.
#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let served = serde_json::to_string_pretty(&openapi()).expect("JSON") + "\n";
    if std::env::var_os("PGARK_TEST_WRITE").is_some() {
        std::fs::write(&path, &served).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("docs/openapi.json");
    assert!(committed == served, "docs/openapi.json differs from the routes: PGARK_TEST_WRITE=1 writes it");
    let document = openapi();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for route in ROUTES.iter().filter(|r| !r.page) {
        for name in [Some(route.answer), route.body].into_iter().flatten() {
            assert!(schemas.contains_key(name), "{}: {name}", route.path);
        }
        assert!(!route.summary.is_empty(), "{}", route.path);
    }
}
