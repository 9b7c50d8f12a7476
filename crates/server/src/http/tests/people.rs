//! Users and sessions, limits of guessing, the second person, and that no secret is told.

use super::*;
use crate::jobs::{JobState, Program, Runner, RunnerOptions};

const PASSWORD: &str = "canary password of ada";

fn cookie_of(signed_in: &Value) -> String {
    let cookie = signed_in["cookie"].as_str().expect("a cookie");
    cookie.split(';').next().expect("its value").to_owned()
}

impl Bench {
    fn sign_in(&self, name: &str, password: &str) -> (u16, Value) {
        let body = json!({"name": name, "password": password}).to_string();
        self.ask(route("POST", "/api/v1/session"), &[], None, &body)
    }

    pub(super) fn with(&self, change: impl FnOnce(&mut Config)) {
        let mut config = (*self.api.config.get()).clone();
        change(&mut config);
        self.api.config.set(config);
    }
}

#[test]
fn users_sign_in_ask_and_sign_out() {
    let bench = bench("sessions");
    let now = Timestamp::now();
    bench.api.state.add_user("ada", Role::Operator, Some("a"), PASSWORD.as_bytes(), now).expect("added");
    let (status, signed_in) = bench.sign_in("ada", PASSWORD);
    assert_eq!((status, &signed_in["role"]), (200, &json!("operator")), "{signed_in}");
    let flags = signed_in["cookie"].as_str().expect("a cookie");
    assert!(flags.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200"), "{flags}");
    assert!(!signed_in.to_string().contains(PASSWORD));
    let cookie = ("cookie", cookie_of(&signed_in));
    let ask = |method: &str, path: &str, more: &[(&'static str, &str)], body: &str| {
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let headers: Vec<_> = [cookie.clone()].into_iter().chain(more).collect();
        let own = if path.contains("{cluster}") { vec![("cluster", "a")] } else { vec![] };
        bench.ask_with(route(method, path), &own, &headers, "", body)
    };
    let (status, me) = ask("GET", "/api/v1/me", &[], "");
    assert_eq!((status, &me["name"], &me["cluster"]), (200, &json!("ada"), &json!("a")), "{me}");
    // What changes something has to come from a page of ours; reading does not.
    let jobs = "/api/v1/clusters/{cluster}/jobs";
    let check = r#"{"job": "check"}"#;
    assert_eq!(ask("POST", jobs, &[], check).0, 403);
    assert_eq!(ask("POST", jobs, &[("sec-fetch-site", "cross-site")], check).0, 403);
    assert_eq!(ask("POST", jobs, &[("sec-fetch-site", "same-site"), ("origin", "http://localhost")], check).0, 403);
    assert_eq!(ask("POST", jobs, &[("sec-fetch-site", "none")], check).0, 403);
    assert_eq!(ask("POST", jobs, &[("origin", "http://evil.example")], check).0, 403);
    assert_eq!(ask("POST", jobs, &[("origin", "http://localhost:7432")], check).0, 202);
    let (status, job) = ask("POST", jobs, &[("sec-fetch-site", "same-origin")], check);
    assert_eq!((status, &job["requested_by"]), (202, &json!("user ada")), "{job}");
    // A token that is wrong is not made up for by a cookie that is right.
    assert_eq!(ask("GET", "/api/v1/me", &[("authorization", "Bearer pgark_nobody")], "").0, 401);
    assert_eq!(ask("GET", "/api/v1/users", &[], "").0, 403);
    let admin = bench.token(Role::Admin, None);
    let users = bench.ask(route("GET", "/api/v1/users"), &[], Some(&admin), "").1;
    assert_eq!(users["users"][0]["name"], "ada", "{users}");
    let (status, out) = ask("DELETE", "/api/v1/session", &[("sec-fetch-site", "same-origin")], "");
    assert!(status == 200 && out["cookie"].as_str().is_some_and(|c| c.contains("Max-Age=0")), "{out}");
    assert_eq!(ask("GET", "/api/v1/me", &[], "").0, 401);
    // Behind a proxy that is trusted: its word for whom it asks, and that this was under TLS.
    bench.with(|config| config.web.trusted_proxies = vec![Ipv4Addr::LOCALHOST.into()]);
    bench.with(|config| config.web.names = vec!["backup.example.org".into()]);
    let body = json!({"name": "ada", "password": PASSWORD}).to_string();
    let forwarded = [
        ("host", "backup.example.org"),
        ("origin", "https://backup.example.org"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "192.0.2.1, 198.51.100.7"),
    ];
    let forwarded: Vec<_> = forwarded.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let (status, value) = bench.ask_with(route("POST", "/api/v1/session"), &[], &forwarded, "", &body);
    assert!(status == 200 && value["cookie"].as_str().is_some_and(|c| c.ends_with("; Secure")), "{value}");
}

#[test]
fn guessing_is_answered_alike_and_ends_soon() {
    let bench = bench("guessing");
    let now = Timestamp::now();
    bench.api.state.add_user("ada", Role::Admin, None, PASSWORD.as_bytes(), now).expect("added");
    let (unknown, wrong) = (bench.sign_in("nobody", "a wrong password"), bench.sign_in("ada", "a wrong password"));
    assert_eq!((unknown.0, &unknown), (401, &wrong), "the answer is the same");
    assert_eq!(bench.ask(route("POST", "/api/v1/session"), &[], None, r#"{"name": "ada"}"#).0, 400);
    let statuses: Vec<u16> = (0..6).map(|_| bench.sign_in("ada", "a wrong password").0).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 429, 429]);
    assert_eq!(bench.sign_in("ada", PASSWORD).0, 429, "the right one neither, so that guessing tells nothing");
    // Nobody else is locked out: not from another address, and not the host, where a token is made.
    let elsewhere = Bench { peer: Peer { address: Ipv4Addr::new(192, 0, 2, 9).into(), ..bench.peer.clone() }, ..bench };
    let (status, session) = elsewhere.sign_in("ada", PASSWORD);
    assert_eq!(status, 200, "{session}");
    let admin = elsewhere.token(Role::Admin, None);
    let me = route("GET", "/api/v1/me");
    let guesses: Vec<u16> = (0..30).map(|n| elsewhere.ask(me, &[], Some(&format!("pgark_{n}")), "").0).collect();
    assert!(guesses.starts_with(&[401; 20]) && guesses.ends_with(&[429; 5]), "{guesses:?}");
    // Who has a token or a session is locked out by nobody's guesses, not even from the same address; a password is.
    assert_eq!(elsewhere.ask(me, &[], Some(&admin), "").0, 200);
    let signed_in = [("cookie", cookie_of(&session))];
    assert_eq!(elsewhere.ask_with(me, &[], &signed_in, "", "").0, 200);
    assert_eq!(elsewhere.ask_with(me, &[], &[("cookie", "pgark_session=pgark_guess".to_owned())], "", "").0, 429);
    assert_eq!(elsewhere.ask(me, &[], Some("pgark_guess"), "").0, 429, "and guessing is no easier for that");
    assert_eq!(elsewhere.sign_in("ada", PASSWORD).0, 429);
    let host =
        Bench { peer: Peer { address: Ipv4Addr::new(192, 0, 2, 10).into(), ..elsewhere.peer.clone() }, ..elsewhere };
    assert_eq!(host.ask(me, &[], Some(&admin), "").0, 200);
}

#[test]
fn what_restores_waits_for_a_second_person() {
    let bench = bench("second");
    bench.with(|config| config.web.require_second_person = true);
    let now = Timestamp::now();
    let token = |role: Role, cluster: Option<&str>| bench.token(role, cluster);
    let (one, two) = (token(Role::RecoveryOperator, Some("a")), token(Role::RecoveryOperator, Some("a")));
    let jobs = route("POST", "/api/v1/clusters/{cluster}/jobs");
    let start = |token: &str, body: &str| bench.ask(jobs, &[("cluster", "a")], Some(token), body);
    let restore = r#"{"job": "restore", "to": "/new", "confirm": "a"}"#;
    for unconfirmed in ["true", "\"b\"", "\"\"", "null"] {
        let body = restore.replace("\"a\"", unconfirmed);
        let (status, problem) = start(&one, &body);
        assert_eq!((status, &problem["code"]), (409, &json!("E-CONFIRM")), "{body}");
    }
    assert_eq!(start(&one, r#"{"job": "check"}"#).1["state"], "queued", "what harms nobody waits for nobody");
    let (status, job) = start(&one, restore);
    assert_eq!((status, &job["state"]), (202, &json!("waiting_for_approval")), "{job}");
    let id = job["id"].as_str().expect("an id").to_owned();
    let approve = |id: &str, token: &str| {
        let (status, value) = bench.ask(route("POST", "/api/v1/jobs/{job}/approve"), &[("job", id)], Some(token), "");
        (status, value["code"].as_str().unwrap_or_default().to_owned())
    };
    // It does not begin by itself.
    let program = Program { binary: "/bin/false".into(), words: vec![], settings: Shared::default() };
    let options = RunnerOptions { running_max: 4 };
    let mut runner = Runner::take_over(bench.api.state.clone(), program, options, now).expect("taken over");
    let state_of = |id: &str| bench.api.state.job(id).expect("there").state;
    runner.turn(true, now).expect("a turn");
    assert_eq!(state_of(&id), JobState::WaitingForApproval);
    assert_eq!(approve(&id, &one), (403, "E-APPROVAL-SELF".into()));
    assert_eq!(approve(&id, &token(Role::Operator, Some("a"))).0, 403);
    assert_eq!(approve(&id, &token(Role::Admin, Some("b"))).0, 404);
    assert_eq!(approve(&id, &two), (200, String::new()));
    assert_eq!(approve(&id, &two), (409, "E-APPROVAL-STATE".into()));
    let approved = bench.api.state.job(&id).expect("there");
    assert_eq!((approved.state, approved.approved_by.as_deref()), (JobState::Queued, Some("token t")));
    runner.turn(true, Timestamp::now()).expect("a turn");
    let asked = crate::state::asked_by(&bench.api.state.job_dir(&id)).expect("for the audit trail");
    assert_eq!(asked, ("token t".to_owned(), Some("token t".to_owned())));
    // Not in time, and cancelled.
    let late = start(&one, restore).1["id"].as_str().expect("an id").to_owned();
    let dropped = start(&one, restore).1["id"].as_str().expect("an id").to_owned();
    let cancel = bench.ask(route("POST", "/api/v1/jobs/{job}/cancel"), &[("job", &dropped)], Some(&two), "");
    assert_eq!((cancel.0, &cancel.1["state"]), (200, &json!("cancelled")));
    let then = Timestamp::now() + jiff::SignedDuration::from_mins(61);
    assert_eq!(bench.api.state.approve_job(&late, "token t", then).expect("asked").approved_by, None);
    runner.turn(false, then).expect("a turn");
    let ended = bench.api.state.job(&late).expect("there");
    assert_eq!((ended.state, ended.error_code.as_deref()), (JobState::Cancelled, Some("E-APPROVAL")));
    assert_eq!(approve(&late, &two).0, 409);
}

#[test]
fn a_recovery_that_points_an_application_elsewhere_waits_for_who_looks_after_it() {
    let bench = bench("repoints");
    bench.with(|config| config.clusters[0].repoints = true);
    let token = |role: Role, cluster: Option<&str>| bench.token(role, cluster);
    let (operator, app, admin) =
        (token(Role::RecoveryOperator, None), token(Role::AppAdmin, Some("a")), token(Role::Admin, None));
    let jobs = route("POST", "/api/v1/clusters/{cluster}/jobs");
    let start = |token: &str, cluster: &str, body: &str| {
        let body = body.replace("CLUSTER", cluster);
        bench.ask(jobs, &[("cluster", cluster)], Some(token), &body)
    };
    let approve = |job: &Value, token: &str| {
        let id = job["id"].as_str().expect("an id");
        let (status, value) = bench.ask(route("POST", "/api/v1/jobs/{job}/approve"), &[("job", id)], Some(token), "");
        (status, value["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |code: &str| (403, code.to_owned());
    let recover = r#"{"job": "recover", "confirm": "CLUSTER"}"#;
    let restore = r#"{"job": "restore", "to": "/new", "confirm": "CLUSTER"}"#;
    // Who looks after the application recovers no database, and is asked when one is.
    assert_eq!(start(&app, "a", recover).0, 403);
    let (status, job) = start(&operator, "a", recover);
    let waits = (&job["state"], &job["waits_for"]);
    assert_eq!((status, waits), (202, (&json!("waiting_for_approval"), &json!(["app-admin", "admin"]))), "{job}");
    assert_eq!(approve(&job, &token(Role::RecoveryOperator, None)), refused("E-NOT-ALLOWED"));
    assert_eq!(approve(&job, &token(Role::AppAdmin, Some("b"))).0, 404);
    assert_eq!(approve(&job, &app), (200, String::new()));
    let approved = bench.api.state.job(job["id"].as_str().expect("an id")).expect("there");
    assert_eq!((approved.state, approved.approved_by.as_deref()), (JobState::Queued, Some("token t")));
    // Nothing waits that points nowhere, nor for somebody who may both.
    assert_eq!(start(&operator, "a", restore).1["state"], "queued");
    assert_eq!(start(&operator, "b", recover).1["state"], "queued");
    let job = start(&admin, "a", recover).1;
    assert_eq!((&job["state"], &job["waits_for"]), (&json!("queued"), &Value::Null), "{job}");
    // With a second person: of those who may say where the application goes. Of a restore they are none.
    bench.with(|config| config.web.require_second_person = true);
    let job = start(&admin, "a", recover).1;
    assert_eq!(approve(&job, &admin), refused("E-APPROVAL-SELF"));
    assert_eq!(approve(&job, &operator), refused("E-NOT-ALLOWED"));
    assert_eq!(approve(&job, &app).0, 200);
    let job = start(&operator, "a", restore).1;
    assert_eq!(job["waits_for"], json!(["recovery-operator", "admin"]), "{job}");
    assert_eq!(approve(&job, &app), refused("E-NOT-ALLOWED"));
    assert_eq!(approve(&job, &admin).0, 200);
}

/// Asked for at the same moment, as by clients that got no answer.
#[test]
fn one_key_makes_one_job_however_many_ask() {
    let bench = bench("idempotency");
    let bearer = ("authorization", format!("Bearer {}", bench.token(Role::Operator, Some("a"))));
    let headers = [bearer, ("idempotency-key", "k".to_owned())];
    let jobs = route("POST", "/api/v1/clusters/{cluster}/jobs");
    let ids: std::collections::HashSet<String> = std::thread::scope(|scope| {
        let ask = || {
            let (status, job) = bench.ask_with(jobs, &[("cluster", "a")], &headers, "", r#"{"job": "check"}"#);
            assert_eq!(status, 202, "{job}");
            job["id"].as_str().expect("an id").to_owned()
        };
        let all: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|t| t.join().expect("answered")).collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    // Another caller's key is another one.
    let other = ("authorization", format!("Bearer {}", bench.token(Role::Operator, Some("a"))));
    let job = bench.ask_with(jobs, &[("cluster", "a")], &[other, headers[1].clone()], "", r#"{"job": "check"}"#).1;
    assert!(!ids.contains(job["id"].as_str().expect("an id")));
}

#[test]
fn no_answer_and_no_file_holds_a_secret() {
    let bench = bench("canary");
    let now = Timestamp::now();
    bench.api.state.add_user("ada", Role::Admin, None, PASSWORD.as_bytes(), now).expect("added");
    let session = cookie_of(&bench.sign_in("ada", PASSWORD).1);
    let session = session.split_once('=').expect("a value").1.to_owned();
    let token = bench.token(Role::Admin, None);
    let own = bench.job("a");
    let secrets = [PASSWORD, &token, &session];
    let told = |what: &str, value: &Value| {
        let text = value.to_string();
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "{what}: {text}");
    };
    for route in ROUTES.iter().filter(|r| !r.path.ends_with("create-sync")) {
        let path = [
            ("cluster", "a"),
            ("job", own.as_str()),
            ("token", "t"),
            ("backup", "b"),
            ("report", "r"),
            ("backup_name", "b"),
        ];
        let path: Vec<_> = path.into_iter().filter(|(name, _)| route.path.contains(&format!("{{{name}}}"))).collect();
        let body = format!(r#"{{"name": "x", "password": "{PASSWORD}", "token": "{token}"}}"#);
        for body in [body.as_str(), "", body.get(1..).unwrap_or_default()] {
            told(route.path, &bench.ask(route, &path, Some(&token), body).1);
        }
    }
    told("a wrong password", &bench.sign_in("ada", &format!("{PASSWORD} ")).1);
    let dir = bench.api.state.dir();
    for entry in std::fs::read_dir(dir).expect("listed").flatten().filter(|e| e.path().is_file()) {
        let bytes = std::fs::read(entry.path()).expect("readable");
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{} holds {secret}", entry.path().display());
        }
    }
}
