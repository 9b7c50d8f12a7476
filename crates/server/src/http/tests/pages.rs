//! The dashboard: that nothing in it is a script, who may do what with it, and what of the host it shows to whom.

use super::*;
use crate::jobs::JobState;
use crate::serve::CertificateRule;

/// All of it that a page may show, in words that want to be more than words.
const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{202e}\u{1b}[31m{{x}}";

const NAMED: &str = "20260101-010203F";

fn hostile(bench: &Bench) -> String {
    let now = Timestamp::now();
    let at = now.to_string();
    let backup = json!({"id": HOSTILE, "kind": HOSTILE, "type": HOSTILE, "complete": true, "started": at, "finished": at,
        "size_bytes": 5, "stored_bytes": 5, "evidence": HOSTILE, "annotations": {HOSTILE: HOSTILE}, "holds": [{"reason": HOSTILE}]});
    // One that can be asked for.
    let mut named = backup.clone();
    named["id"] = NAMED.into();
    let info = json!({"clusters": [{"name": "a", "pg_version": HOSTILE, "gaps": [], "problems": [HOSTILE],
        "windows": [{"timeline": 1, "from_time": at, "to_time": at}], "backups": [backup, named],
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
    bench.api.state.create_token(HOSTILE, Role::Viewer, Some(HOSTILE), None, Timestamp::now()).expect("made");
    let path = [("cluster", "a"), ("job", job.as_str()), ("backup", NAMED), ("report", "20260101-000000-00000000")];
    // What leads to a provider and back is not there without one (`oidc`).
    let is_page = |r: &&Route| !r.path.starts_with("/assets") && !r.path.starts_with("/sign-in/oidc");
    for route in ROUTES.iter().filter(|r| r.page && r.method() == Method::GET).filter(is_page) {
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

/// Somebody with a browser, who has signed in.
pub(super) struct Visitor<'a> {
    bench: &'a Bench,
    pub(super) cookie: String,
}

pub(super) fn pair(cookie: &Value) -> String {
    cookie.as_str().and_then(|c| c.split(';').next()).expect("a cookie").to_owned()
}

fn field(page: &str, name: &str) -> String {
    let field = page.split(&format!("name=\"{name}\" value=\"")).nth(1).expect("the field");
    field.split('"').next().expect("its value").to_owned()
}

pub(super) const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");

pub(super) fn headers(cookie: &str, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    [("cookie", cookie.to_owned())].into_iter().chain(more).collect()
}

/// The word of the form that signs in, and its cookie.
fn sign_in_form(bench: &Bench) -> (String, String) {
    let host = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost:7432"))]);
    let (route, uri) = (route("GET", "/sign-in"), Uri::from_static("/sign-in"));
    let made = answer(&bench.api, &bench.peer, route, vec![], &uri, &host, b"");
    let Ok(Answer::Page { html, cookies, .. }) = made else { panic!("no form") };
    (field(&html, "word"), pair(&json!(cookies[0])))
}

fn sign_in(bench: &Bench, fields: &str) -> (u16, Value) {
    let (word, cookie) = sign_in_form(bench);
    let body = format!("word={word}&next=%2Fjobs&{fields}");
    bench.ask_with(route("POST", "/sign-in"), &[], &headers(&cookie, &[OWN]), "", &body)
}

impl<'a> Visitor<'a> {
    pub(super) fn new(bench: &'a Bench, fields: &str) -> Visitor<'a> {
        let (status, signed) = sign_in(bench, fields);
        assert_eq!((status, &signed["to"]), (303, &json!("/jobs")), "{signed}");
        Visitor { bench, cookie: pair(&signed["cookies"][0]) }
    }

    pub(super) fn get(&self, path: &str, names: &[(&str, &str)]) -> (u16, Value) {
        self.bench.ask_with(route("GET", path), names, &headers(&self.cookie, &[]), "", "")
    }

    pub(super) fn page(&self, path: &str, names: &[(&str, &str)]) -> String {
        let (status, page) = self.get(path, names);
        assert_eq!(status, 200, "{path}: {page}");
        page.as_str().expect("a page").to_owned()
    }

    pub(super) fn post(
        &self,
        path: &str,
        names: &[(&str, &str)],
        more: &[(&'static str, &str)],
        body: &str,
    ) -> (u16, Value) {
        self.bench.ask_with(route("POST", path), names, &headers(&self.cookie, more), "", body)
    }

    /// As the form of a page does it.
    pub(super) fn sends(&self, path: &str, names: &[(&str, &str)], fields: &str) -> (u16, Value) {
        let word = field(&self.page("/jobs", &[]), "csrf");
        self.post(path, names, &[OWN], &format!("{fields}&csrf={word}"))
    }
}

pub(super) const CLUSTER: &[(&str, &str)] = &[("cluster", "a")];
pub(super) const JOBS: &str = "/clusters/{cluster}/jobs";

#[test]
fn a_session_reads_and_its_forms_carry_its_word() {
    let bench = bench("signed");
    let token = bench.token(Role::Operator, Some("a"));
    // The form that signs in is ours, or nothing comes of it.
    let (_, form) = sign_in_form(&bench);
    for (cookie, word) in [(form.as_str(), "guess"), (form.as_str(), ""), ("pgark_form=", ""), ("pgark_form=x", "y")] {
        let body = format!("word={word}&token={token}");
        let (status, why) = bench.ask_with(route("POST", "/sign-in"), &[], &headers(cookie, &[OWN]), "", &body);
        assert_eq!((status, &why["code"]), (403, &json!("E-FORM")), "{cookie} {word}");
    }
    let (status, page) = sign_in(&bench, "token=pgark_nobody");
    assert!(status == 403 && page.as_str().is_some_and(|page| page.contains("E-TOKEN")), "{status} {page}");
    let visitor = Visitor::new(&bench, &format!("token={token}"));
    let csrf = field(&visitor.page("/clusters/{cluster}", CLUSTER), "csrf");
    let secret = visitor.cookie.split_once('=').expect("a value").1;
    assert!(!csrf.contains(secret) && !secret.contains(&csrf));
    assert_eq!(visitor.get("/api/v1/clusters", &[]).0, 200);
    // A form takes both: that a browser says it is of ours, and the word.
    let right = format!("job=check&csrf={csrf}");
    for forged in ["job=check", "job=check&csrf=", "job=check&csrf=guess"] {
        let (status, why) = visitor.post(JOBS, CLUSTER, &[OWN], forged);
        assert_eq!((status, &why["code"]), (403, &json!("E-FORM")), "{forged}");
    }
    let foreign: [&[(&'static str, &str)]; 3] =
        [&[], &[("origin", "http://evil.example")], &[("sec-fetch-site", "cross-site")]];
    for foreign in foreign {
        let (status, why) = visitor.post(JOBS, CLUSTER, foreign, &right);
        assert_eq!((status, &why["code"]), (403, &json!("E-ORIGIN")), "{foreign:?}");
    }
    let other = Visitor::new(&bench, &format!("token={token}"));
    assert_eq!(other.post(JOBS, CLUSTER, &[OWN], &right).0, 403, "the word of another session");
    let (status, gone) = visitor.post(JOBS, CLUSTER, &[OWN], &right);
    assert!(status == 303 && gone["to"].as_str().is_some_and(|to| to.starts_with("/jobs/")), "{status} {gone}");
    // The API takes the cookie from a page of ours alone.
    let api = "/api/v1/clusters/{cluster}/jobs";
    assert_eq!(visitor.post(api, CLUSTER, &[], r#"{"job": "check"}"#).0, 403);
    assert_eq!(visitor.post(api, CLUSTER, &[OWN], r#"{"job": "check"}"#).0, 202);
    // The same rights as by the API.
    assert_eq!(visitor.sends(JOBS, CLUSTER, "job=restore&to=%2Fnew&confirm=a").0, 403);
    assert_eq!(visitor.get("/clusters/{cluster}", &[("cluster", "b")]).0, 404);
    assert_eq!(visitor.sends("/sign-out", &[], "").0, 303);
    assert_eq!(visitor.get("/api/v1/clusters", &[]).0, 401);
    assert_eq!(other.get("/api/v1/clusters", &[]).0, 200, "the other one goes on");
    // With the token the session is over.
    let tokens = bench.api.state.tokens().expect("listed");
    bench.api.state.revoke_token(&tokens[0].id, Timestamp::now()).expect("revoked");
    assert_eq!(other.get("/api/v1/clusters", &[]).0, 401);
    // Who is not signed in is sent to the form, and back afterwards.
    let nobody = Problem::new(StatusCode::UNAUTHORIZED, "E-TOKEN", "x");
    let sent = page::problem(&nobody, &Uri::from_static("/clusters/a"));
    assert!(matches!(sent, Answer::Goto { to, .. } if to == "/sign-in?next=%2Fclusters%2Fa"));
    // A certificate reads pages; its forms have no word.
    bench.with(|config| {
        let rule = CertificateRule { subject: "CN=x".into(), role: Role::Admin, cluster: None };
        config.web.certificates = vec![rule];
    });
    let peer = Peer { subject: Some("CN=x".into()), ..bench.peer.clone() };
    let ask = |method: &str, path: &str, body: &str| bench.asked(&peer, route(method, path), CLUSTER, &[], "", body);
    let (status, page) = ask("GET", "/clusters/{cluster}", "");
    assert!(status == 200 && !page.as_str().expect("a page").contains("method=\"post\""), "{page}");
    assert_eq!(ask("POST", JOBS, "job=check").1["code"], "E-FORM");
}

#[test]
fn people_sign_in_on_the_page_and_approve_what_others_asked_for() {
    let bench = bench("approved");
    let now = Timestamp::now();
    bench.api.state.add_user("ada", Role::RecoveryOperator, Some("a"), b"canary password", now).expect("added");
    bench.with(|config| config.web.require_second_person = true);
    let (status, page) = sign_in(&bench, "name=ada&password=wrong+password");
    let page = page.as_str().expect("a page");
    assert!(status == 403 && page.contains("E-SIGN-IN") && !page.contains("wrong password"), "{status} {page}");
    let ada = Visitor::new(&bench, "name=ada&password=canary+password");
    for confirm in ["", "&confirm=yes", "&confirm=b"] {
        let (status, why) = ada.sends(JOBS, CLUSTER, &format!("job=restore&to=%2Fnew{confirm}"));
        assert_eq!((status, &why["code"]), (409, &json!("E-CONFIRM")), "{confirm}");
    }
    let (status, gone) = ada.sends(JOBS, CLUSTER, "job=restore&to=%2Fnew&confirm=a");
    assert_eq!(status, 303, "{gone}");
    let id = gone["to"].as_str().and_then(|to| to.strip_prefix("/jobs/")).expect("a job").to_owned();
    let job = &[("job", id.as_str())];
    let shown = ada.page("/jobs/{job}", job);
    assert!(shown.contains("waiting for approval") && shown.contains("somebody else has to"), "{shown}");
    assert!(!shown.contains("/approve\"") && shown.contains("/cancel\""), "{shown}");
    assert_eq!(ada.sends("/jobs/{job}/approve", job, "").1["code"], "E-APPROVAL-SELF");
    let operator = Visitor::new(&bench, &format!("token={}", bench.token(Role::Operator, Some("a"))));
    assert!(!operator.page("/jobs/{job}", job).contains("/approve\""));
    assert_eq!(operator.sends("/jobs/{job}/approve", job, "").0, 403);
    let second = Visitor::new(&bench, &format!("token={}", bench.token(Role::RecoveryOperator, Some("a"))));
    assert!(second.page("/jobs/{job}", job).contains("/approve\""));
    assert_eq!(second.post("/jobs/{job}/approve", job, &[OWN], "csrf=guess").0, 403);
    let (status, gone) = second.sends("/jobs/{job}/approve", job, "");
    assert_eq!((status, &gone["to"]), (303, &json!(format!("/jobs/{id}"))));
    let approved = bench.api.state.job(&id).expect("there");
    assert_eq!((approved.state, approved.approved_by.as_deref()), (JobState::Queued, Some("token t")));
    assert!(ada.page("/jobs/{job}", job).contains("Approved by"));
    // One that points an application elsewhere is approved by who looks after it, and the page says so.
    bench.with(|config| config.clusters[0].repoints = true);
    let (status, gone) = ada.sends(JOBS, CLUSTER, "job=recover&confirm=a");
    assert_eq!(status, 303, "{gone}");
    let id = gone["to"].as_str().and_then(|to| to.strip_prefix("/jobs/")).expect("a job").to_owned();
    let job = &[("job", id.as_str())];
    assert!(ada.page("/jobs/{job}", job).contains("the role app-admin or admin"));
    assert!(!second.page("/jobs/{job}", job).contains("/approve\""));
    let app = Visitor::new(&bench, &format!("token={}", bench.token(Role::AppAdmin, Some("a"))));
    assert!(app.page("/jobs/{job}", job).contains("/approve\""));
    assert_eq!(app.sends("/jobs/{job}/approve", job, "").0, 303);
    // Guessing on the page is counted as elsewhere.
    let statuses: Vec<u16> = (0..6).map(|_| sign_in(&bench, "name=ada&password=wrong").0).collect();
    assert_eq!(statuses, [403, 403, 403, 403, 429, 429]);
    // Under TLS what a browser keeps is kept for TLS.
    let over = Bench { peer: Peer { is_tls: true, ..bench.peer.clone() }, ..bench };
    let (_, signed) = sign_in(&over, &format!("token={}", over.token(Role::Viewer, None)));
    assert!(signed["cookies"][0].as_str().is_some_and(|c| c.ends_with("; Secure")), "{signed}");
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
