use std::path::PathBuf;

use axum::http::HeaderValue;
use pgark_testkit::Scratch;

use super::routes::{ROUTES, Route};
use super::*;
use crate::access::{ROLES, Role};
use crate::jobs::{BackupType, Kind, Request};
use crate::serve::{ClusterConfig, Config, SystemConfig};

struct Bench {
    api: Api,
    _scratch: Scratch,
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
    };
    let clusters = vec![cluster("a", Some(system)), cluster("b", None)];
    let config = Shared::new(Config { clusters, schedules: vec![] });
    let listen = "127.0.0.1:7432".parse().expect("an address");
    let lookups = Lookups::new(None, dir);
    let (events, sessions, ready) = (Events::default(), Sessions::default(), Arc::new(AtomicBool::new(true)));
    Bench { api: Api { state, config, lookups, events, sessions, listen, ready }, _scratch: scratch }
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
            schedule: None,
            not_before: Timestamp::now(),
            deadline_s: 60,
            retries: 0,
            idempotency: None,
        };
        self.api.state.add_job(&new, Timestamp::now()).expect("added").id
    }

    fn ask(&self, route: &Route, path: &[(&str, &str)], token: Option<&str>, body: &str) -> (u16, Value) {
        let token = token.map(|token| ("authorization", format!("Bearer {token}")));
        self.ask_with(route, path, &token.into_iter().collect::<Vec<_>>(), "", body)
    }

    fn ask_with(
        &self,
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
        match answer(&self.api, route, path, &uri, &headers, body.as_bytes()) {
            Ok(Answer::Json(status, value)) => (status.as_u16(), value),
            Ok(Answer::Text(_, text)) => (200, text.into()),
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
    for route in ROUTES.iter().filter(|r| r.right != Right::Anyone) {
        let path = [
            ("cluster", "a"),
            ("job", own.as_str()),
            ("token", "none"),
            ("backup", "none"),
            ("report", "none"),
            ("backup_name", "none"),
        ];
        let path: Vec<_> = path.into_iter().filter(|(name, _)| route.path.contains(&format!("{{{name}}}"))).collect();
        let shown = format!("{} {}", route.method(), route.path);
        for wrong in [None, Some("pgark_nobody"), Some("")] {
            assert_eq!(bench.ask(route, &path, wrong, body(route)).0, 401, "{shown} {wrong:?}");
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
        // A token of another cluster learns not even that this one is there.
        let stranger = bench.token(Role::Admin, Some("b"));
        let (status, value) = bench.ask(route, &path, Some(&stranger), body(route));
        let of_a_cluster = route.path.contains("{cluster}") || route.path.contains("{job}");
        if of_a_cluster {
            assert_eq!(status, 404, "{shown} from b: {value}");
        }
        assert!(!value.to_string().contains("\"a\""), "{shown} from b tells of a: {value}");
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
    for origin in ["http://evil.example", "null", "https://127.0.0.1:7432", "http://127.0.0.1:80"] {
        assert_eq!(ask(&[("origin", origin)]), 403, "{origin}");
    }
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
    assert_eq!(post(&recovery, r#"{"job": "restore", "to": "/new", "confirm": true}"#).0, 202);
    for wrong in [r#"{"job": "demo"}"#, "[]", "{", r#"{"job": "delete", "backup": "--last", "confirm": true}"#] {
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
    assert_eq!(nothing["clusters"][0]["can_recover"], false);
    assert_eq!(nothing["clusters"][0]["meets_rpo"], false);
    let now = Timestamp::now();
    let ago = |minutes: i64| (now - jiff::SignedDuration::from_mins(minutes)).to_string();
    let backup = |id: &str, kind: &str, minutes: i64| {
        json!({"id": id, "kind": kind, "type": "full", "complete": true, "damaged": null,
        "started": ago(minutes + 1), "finished": ago(minutes), "stored_bytes": 5 * 1024 * 1024, "database_bytes": 3_145_728,
        "drilled": if kind == "physical" { Some(ago(9)) } else { None }})
    };
    let info = json!({"clusters": [{"name": "a", "pg_version": "15.1", "gaps": [{"segments": 3}], "problems": [],
        "windows": [{"timeline": 1, "from_time": ago(600), "to_time": ago(30)}],
        "drill": {"last": null, "last_green": ago(9), "forecasts": [{"expected_ms": 60_000}]},
        "backups": [backup("20260101-010203F", "physical", 600), backup("20260102-010203S", "system", 90)]}]});
    bench.api.state.keep_document("info", "a", &info, now).expect("kept");
    let known = &clusters()["clusters"][0];
    assert_eq!(known["can_recover"], true);
    assert_eq!((&known["meets_rpo"], &known["meets_rto"]), (&json!(true), &json!(true)), "{known}");
    assert_eq!(known["proven"]["backup"], "20260101-010203F");
    bench.api.state.document_failed("info", "a", "E-STORE away", now).expect("kept");
    let stale = &clusters()["clusters"][0];
    assert_eq!((&stale["can_recover"], &stale["source"]["error"]), (&json!(true), &json!("E-STORE away")));

    let metrics = bench.ask(route("GET", "/metrics"), &[], Some(&viewer), "").1;
    let metrics = metrics.as_str().expect("text");
    for line in [
        "pgark_backups{cluster=\"a\"} 2.0",
        "pgark_wal_gap_segments{cluster=\"a\"} 3.0",
        "pgark_repo_readable{cluster=\"a\"} 0.0",
        "pgark_recovery_expected_seconds{cluster=\"a\"} 60.0",
        "pgark_rto_seconds{cluster=\"a\"} 14400.0",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("cluster=\"b\"") && !metrics.contains("20260101"), "{metrics}");

    let admin = bench.token(Role::Admin, None);
    let list = bench.ask(route("GET", "/api/backups/list"), &[], Some(&admin), "").1;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["backup_name"], "radiology_backup_20260102_010203");
    assert_eq!((&list[0]["size_mb"], &list[0]["database_size_mb"]), (&json!(5.0), &json!(3.0)));
    let health = bench.ask(route("GET", "/api/backups/status/health"), &[], Some(&admin), "").1;
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

/// All of it that a page may show, in words that want to be more than words.
const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{202e}\u{1b}[31m{{x}}";

fn hostile(bench: &Bench) -> String {
    let now = Timestamp::now();
    let at = now.to_string();
    let backup = json!({"id": HOSTILE, "kind": HOSTILE, "type": HOSTILE, "complete": true, "started": at, "finished": at,
        "size_bytes": 5, "stored_bytes": 5, "evidence": HOSTILE, "annotations": {HOSTILE: HOSTILE}, "holds": [{"reason": HOSTILE}]});
    let info = json!({"clusters": [{"name": "a", "pg_version": HOSTILE, "gaps": [], "problems": [HOSTILE],
        "windows": [{"timeline": 1, "from_time": at, "to_time": at}], "backups": [backup],
        "drill": {"last": {"verdict": HOSTILE, "time": at, "summary": HOSTILE}, "forecasts": [{"kind": HOSTILE, "expected_ms": 5}]}}],
        "repository": {"name": HOSTILE, "problem": HOSTILE, "used": {"bytes": 5}, "free": {"why": HOSTILE},
            "growth": {"method": HOSTILE}, "forecast": {"why": HOSTILE}, "cost": {"currency": HOSTILE, "storage_month": 1.5}}});
    let state = &bench.api.state;
    for (kind, cluster, document) in [
        ("info", "a", info.clone()),
        ("space", "a", info),
        ("wal", "a", json!({"timelines": [{"ranges": [{"from_time": at, "to_time": at}]}]})),
        (
            "reports",
            "a",
            json!({"reports": [{"id": HOSTILE, "what": "drill", "written": at, "summary": HOSTILE, "severity": HOSTILE}]}),
        ),
        (
            "audit",
            "a",
            json!({"events": [{"at": at, "cluster": "a", "user": HOSTILE, "host": HOSTILE, "command": HOSTILE,
            "arguments": [HOSTILE], "end": {"exit_code": 1, "error": HOSTILE}}], "damaged": [HOSTILE]}),
        ),
        ("history", "a", json!({"events": [{"kind": "restore_point", "time": at, "name": HOSTILE, "lsn": HOSTILE}]})),
        (
            "alerts",
            "",
            json!({"alerts": [{"cluster": "a", "opened": at, "severity": HOSTILE, "summary": HOSTILE,
            "acknowledged": {"by": HOSTILE}}]}),
        ),
        ("incidents", "", json!({"incidents": [{"cluster": "a", "declared": at, "by": HOSTILE, "reason": HOSTILE}]})),
        (
            "settings",
            "",
            json!({"settings": [{"key": "clusters.a.rpo", "value": {HOSTILE: [HOSTILE]}, "origin": HOSTILE}]}),
        ),
    ] {
        state.keep_document(kind, cluster, &document, now).expect("kept");
    }
    let job = bench.job("a");
    let outcome = crate::state::Outcome {
        state: crate::jobs::JobState::Failed,
        exit_code: Some(1),
        error_code: Some(HOSTILE.into()),
        message: Some(HOSTILE.into()),
    };
    state.job_ends(&job, &outcome, None, now).expect("ended");
    std::fs::create_dir_all(state.job_dir(&job)).expect("made");
    std::fs::write(state.job_dir(&job).join("log"), HOSTILE).expect("written");
    std::fs::write(state.job_dir(&job).join("result"), json!({HOSTILE: HOSTILE}).to_string()).expect("written");
    job
}

#[test]
fn pages_hold_no_script_whatever_others_have_written() {
    let bench = bench("pages");
    let job = hostile(&bench);
    let admin = bench.token(Role::Admin, None);
    let path = [("cluster", "a"), ("job", job.as_str()), ("backup", HOSTILE), ("report", "20260101-000000-00000000")];
    for route in ROUTES.iter().filter(|r| r.page && r.method() == Method::GET && !r.path.starts_with("/assets")) {
        let (status, page) = bench.ask(route, &path, Some(&admin), "");
        let page = page.as_str().unwrap_or_else(|| panic!("{}: {status} {page}", route.path));
        assert_eq!(status, 200, "{}", route.path);
        for wrong in
            ["<script>", "<img src=x", "\u{202e}", "\u{1b}", " style=", "<style", "javascript:", "http://", "https://"]
        {
            assert!(!page.contains(wrong), "{} has {wrong}: {page}", route.path);
        }
        assert_eq!(page.matches("<script").count(), 1, "{}", route.path);
        assert_eq!(page.matches("<h1").count(), 1, "{} has one heading", route.path);
        assert!(page.contains("<main") && page.contains("lang=\"en\""), "{}", route.path);
        let problem = page::problem(&Problem::wrong(HOSTILE), &Uri::from_static("/x"));
        let Answer::Page { html, .. } = problem else { panic!("no page") };
        assert!(!html.contains("<script>"), "{html}");
    }
    // They were there to be escaped.
    let shown = bench.ask(route("GET", "/clusters/{cluster}"), &path, Some(&admin), "").1;
    assert!(shown.as_str().is_some_and(|page| page.contains("&lt;script&gt;")), "{shown}");
}

#[test]
fn headers_forbid_what_pages_do_not_have() {
    let page = Answer::Page { status: StatusCode::OK, html: String::new(), cookies: vec!["a=b".into()] };
    let response = written(Ok(page));
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let policy = header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!((header("x-frame-options").as_str(), header("cache-control").as_str()), ("DENY", "no-store"));
    assert_eq!(header("set-cookie"), "a=b");
}

#[test]
fn a_session_reads_and_its_forms_carry_its_word() {
    let bench = bench("signed");
    let token = bench.token(Role::Operator, Some("a"));
    let pair = |cookie: &Value| cookie.as_str().and_then(|c| c.split(';').next()).expect("a cookie").to_owned();
    let find = |page: &str, name: &str| {
        let field = page.split(&format!("name=\"{name}\" value=\"")).nth(1).expect("the field");
        field.split('"').next().expect("its value").to_owned()
    };
    // The form that signs in is ours, or nothing comes of it.
    let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost:7432"))]);
    let made = answer(&bench.api, route("GET", "/sign-in"), vec![], &Uri::from_static("/sign-in"), &headers, b"");
    let Ok(Answer::Page { html, cookies, .. }) = made else { panic!("no form") };
    let form = ("cookie", pair(&json!(cookies[0])));
    let post = |cookie: &(&'static str, String), token: &str, word: &str| {
        let body = format!("word={word}&token={token}&next=%2Fjobs");
        bench.ask_with(route("POST", "/sign-in"), &[], std::slice::from_ref(cookie), "", &body)
    };
    assert_eq!(post(&form, &token, "guess").0, 403);
    assert_eq!(post(&("cookie", "pgark_form=".into()), &token, "").0, 403);
    assert_eq!(post(&form, "pgark_nobody", &find(&html, "word")).0, 403);
    let (status, signed) = post(&form, &token, &find(&html, "word"));
    assert_eq!((status, &signed["to"]), (303, &json!("/jobs")), "{signed}");
    let cookie = ("cookie", pair(&signed["cookies"][0]));
    let with = |more: &[(&'static str, String)], method: &str, path: &str, body: &str| {
        let more = [std::slice::from_ref(&cookie), more].concat();
        bench.ask_with(route(method, path), &[("cluster", "a")], &more, "", body)
    };
    let (status, page) = with(&[], "GET", "/clusters/{cluster}", "");
    assert_eq!(status, 200, "{page}");
    let csrf = find(page.as_str().expect("a page"), "csrf");
    assert_eq!(with(&[], "GET", "/api/v1/clusters", "").0, 200);
    assert_eq!(with(&[], "POST", "/api/v1/clusters/{cluster}/jobs", r#"{"job": "check"}"#).0, 401, "a cookie alone");
    for forged in ["job=check", "job=check&csrf=", "job=check&csrf=guess"] {
        assert_eq!(with(&[], "POST", "/clusters/{cluster}/jobs", forged).0, 403, "{forged}");
    }
    let right = format!("job=check&csrf={csrf}");
    assert_eq!(with(&[("origin", "http://evil.example".into())], "POST", "/clusters/{cluster}/jobs", &right).0, 403);
    let (status, gone) = with(&[], "POST", "/clusters/{cluster}/jobs", &right);
    assert!(status == 303 && gone["to"].as_str().is_some_and(|to| to.starts_with("/jobs/")), "{status} {gone}");
    // The same rights as by the API.
    let restore = format!("job=restore&to=%2Fnew&confirm=yes&csrf={csrf}");
    assert_eq!(with(&[], "POST", "/clusters/{cluster}/jobs", &restore).0, 403);
    assert_eq!(
        bench.ask_with(route("GET", "/clusters/{cluster}"), &[("cluster", "b")], &[cookie.clone()], "", "").0,
        404
    );
    assert_eq!(with(&[], "POST", "/sign-out", &format!("csrf={csrf}")).0, 303);
    assert_eq!(with(&[], "GET", "/api/v1/clusters", "").0, 401);
    // Who is not signed in is sent to the form, and back afterwards.
    let nobody = Problem::new(StatusCode::UNAUTHORIZED, "E-TOKEN", "x");
    let sent = page::problem(&nobody, &Uri::from_static("/clusters/a"));
    assert!(matches!(sent, Answer::Goto { to, .. } if to == "/sign-in?next=%2Fclusters%2Fa"));
}

#[test]
fn what_is_of_the_host_is_shown_to_each_as_far_as_it_is_theirs() {
    let bench = bench("host");
    let now = Timestamp::now();
    let of = |cluster: &str| json!({"cluster": cluster, "summary": "s"});
    let alerts = json!({"alerts": [of("a"), of("b")]});
    bench.api.state.keep_document("alerts", "", &alerts, now).expect("kept");
    let setting = |key: &str| json!({"key": key, "value": 1, "origin": "o"});
    let settings = json!({"settings": [setting("clusters.a.rpo"), setting("clusters.ab.rpo"), setting("repos.x.url")]});
    bench.api.state.keep_document("settings", "", &settings, now).expect("kept");
    let event = |cluster: Value| json!({"cluster": cluster, "command": "c"});
    let audit = json!({"events": [event(json!("a")), event(json!("b")), event(Value::Null)]});
    bench.api.state.keep_document("audit", "a", &audit, now).expect("kept");
    for (cluster, counts) in [(None, [2, 3, 3]), (Some("a"), [1, 1, 1])] {
        let token = bench.token(Role::Viewer, cluster);
        let count = |path: &str, key: &str| {
            let value = bench.ask(route("GET", path), &[("cluster", "a")], Some(&token), "").1;
            value[key].as_array().map_or(0, Vec::len)
        };
        let found = [
            count("/api/v1/alerts", "alerts"),
            count("/api/v1/settings", "settings"),
            count("/api/v1/clusters/{cluster}/audit", "events"),
        ];
        assert_eq!(found, counts, "{cluster:?}");
    }
    // A directory of this host is no business of those who may not write there.
    let viewer = bench.token(Role::Viewer, None);
    let plan = route("GET", "/api/v1/clusters/{cluster}/restore-plan");
    let bearer = [("authorization", format!("Bearer {viewer}"))];
    let ask = |query: &str| bench.ask_with(plan, &[("cluster", "a")], &bearer, query, "").0;
    assert_eq!((ask("to=/etc"), ask("target_time=x"), ask("target_lsn=0/1")), (403, 400, 422));
}
