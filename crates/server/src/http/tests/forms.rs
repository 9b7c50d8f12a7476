//! What is asked for on pages beside jobs: alerts that somebody looks after, tokens, guided recoveries.

use super::pages::{CLUSTER, JOBS, OWN, Visitor, headers};
use super::*;
use crate::jobs::{Job, JobState, Program};
use crate::state::{Filter, Outcome};

fn visitor<'a>(bench: &'a Bench, role: Role, cluster: Option<&str>) -> Visitor<'a> {
    Visitor::new(bench, &format!("token={}", bench.token(role, cluster)))
}

fn newest_job(bench: &Bench) -> Job {
    let filter = Filter { limit: 1, ..Filter::default() };
    bench.api.state.jobs(&filter).expect("listed").remove(0)
}

#[test]
fn somebody_looks_after_an_alert_and_it_is_seen_at_once() {
    const ACKNOWLEDGE: &str = "/alerts/{alert}/acknowledge";
    let bench = bench("looked-after");
    let now = Timestamp::now();
    let state = &bench.api.state;
    let after = |seconds: i64| now + jiff::SignedDuration::from_secs(seconds);
    let keep = |at: Timestamp| {
        let alert = |id: &str, cluster: &str| json!({"id": id, "cluster": cluster, "opened": now.to_string(), "severity": "critical", "summary": "s"});
        let mut over = alert("three", "a");
        over["resolved"] = now.to_string().into();
        let alerts = json!({"alerts": [alert("one", "a"), alert("two", "b"), over]});
        state.keep_document("alerts", "", &alerts, at).expect("kept");
    };
    keep(now);
    let operator = visitor(&bench, Role::Operator, Some("a"));
    let page = operator.page("/alerts", &[]);
    assert!(page.contains("/alerts/one/acknowledge") && !page.contains("/alerts/three/acknowledge"), "{page}");
    assert!(!page.contains("/alerts/two"), "it is another cluster's: {page}");
    let viewer = visitor(&bench, Role::Viewer, Some("a"));
    assert!(!viewer.page("/alerts", &[]).contains("/acknowledge"));
    let one = &[("alert", "one")];
    assert_eq!(viewer.sends(ACKNOWLEDGE, one, "").0, 403);
    assert_eq!(operator.post(ACKNOWLEDGE, one, &[OWN], "csrf=guess").1["code"], "E-FORM");
    for (id, status) in [("two", 404), ("nine", 404), ("three", 409), ("one", 303)] {
        let (found, why) = operator.sends(ACKNOWLEDGE, &[("alert", id)], "");
        assert_eq!(found, status, "{id}: {why}");
    }
    let job = newest_job(&bench);
    let asked = (job.request.clone(), job.cluster.as_str(), job.requested_by.as_str());
    assert_eq!(asked, (Request::Acknowledge { alert: "one".into() }, "a", "token t"));
    assert!(viewer.page("/alerts", &[]).contains("being written down"));
    let ends = |id: &str, found: JobState, at: Timestamp| {
        let outcome = Outcome { state: found, exit_code: Some(0), error_code: None, message: None };
        state.job_ends(id, &outcome, None, at).expect("ended");
    };
    // The list of alerts is older than that, and says nothing of it yet.
    ends(&job.id, JobState::Done, after(1));
    let page = operator.page("/alerts", &[]);
    assert!(page.contains("token t") && !page.contains("/alerts/one/acknowledge"), "{page}");
    // It became worse meanwhile: nobody looks after that.
    keep(after(2));
    assert!(operator.page("/alerts", &[]).contains("/alerts/one/acknowledge"));
    let api = "/api/v1/alerts/{alert}/acknowledge";
    let (status, job) = operator.post(api, one, &[OWN], "");
    assert_eq!((status, &job["request"]), (202, &json!({"job": "acknowledge", "alert": "one"})), "{job}");
    ends(job["id"].as_str().expect("an id"), JobState::Failed, after(3));
    let page = operator.page("/alerts", &[]);
    assert!(page.contains("This was not written down") && page.contains("/alerts/one/acknowledge"), "{page}");
}

#[test]
fn a_token_is_made_on_its_page_shown_once_and_taken_back() {
    let bench = bench("tokens-page");
    let admin = visitor(&bench, Role::Admin, None);
    for (role, cluster) in [(Role::Operator, None), (Role::Admin, Some("a"))] {
        let other = visitor(&bench, role, cluster);
        assert!(!other.page("/alerts", &[]).contains("href=\"/tokens\""), "{role}");
        assert_eq!(other.get("/tokens", &[]).0, 403, "{role}");
        assert_eq!(other.sends("/tokens", &[], "name=n&role=admin&lasts=1").0, 403, "{role}");
    }
    assert!(admin.page("/alerts", &[]).contains("href=\"/tokens\""));
    let fields = "name=grafana&role=viewer&scope=some&cluster=a&cluster=b&lasts=30";
    assert_eq!(admin.post("/tokens", &[], &[OWN], fields).1["code"], "E-FORM");
    let before = bench.api.state.tokens().expect("listed").len();
    for wrong in [
        "name=x&role=viewer&scope=all",
        "name=x&role=viewer&lasts=1",
        "name=x&role=king&scope=all&lasts=1",
        "name=&role=viewer&scope=all&lasts=1",
        "name=x+y&role=viewer&scope=all&lasts=1",
        "name=x&role=viewer&scope=some&lasts=1",
        "name=x&role=viewer&scope=some&cluster=a&cluster=nowhere&lasts=1",
        "name=x&role=viewer&scope=all&lasts=0",
        "name=x&role=viewer&scope=all&lasts=-1",
    ] {
        let (status, page) = admin.sends("/tokens", &[], wrong);
        assert!(status == 400 && page.to_string().contains("E-REQUEST"), "{wrong}: {status} {page}");
    }
    assert_eq!(bench.api.state.tokens().expect("listed").len(), before);
    let (status, page) = admin.sends("/tokens", &[], fields);
    let page = page.as_str().expect("a page");
    assert_eq!(status, 201, "{page}");
    let token = page.split("data-copied>").nth(1).and_then(|rest| rest.split('<').next()).expect("the token");
    let me = || bench.ask(route("GET", "/api/v1/me"), &[], Some(token), "");
    assert_eq!(me().1["grants"], json!([{"role": "viewer", "cluster": "a"}, {"role": "viewer", "cluster": "b"}]));
    let all = bench.ask(route("GET", "/api/v1/clusters"), &[], Some(token), "").1;
    assert_eq!(all["clusters"].as_array().map(Vec::len), Some(2), "{all}");
    assert_eq!(bench.ask(route("GET", "/api/v1/tokens"), &[], Some(token), "").0, 403);
    let found = bench.api.state.tokens().expect("listed").into_iter().find(|t| t.name == "grafana").expect("there");
    let lasts = found.expires.expect("it ends").duration_since(Timestamp::now()).as_hours();
    assert!((30 * 24 - 1..=30 * 24).contains(&lasts), "{lasts}");
    assert_eq!(found.clusters, Some(vec!["a".to_owned(), "b".to_owned()]));
    let list = admin.page("/tokens", &[]);
    assert!(list.contains("grafana") && list.contains("you are signed in with it") && !list.contains(token), "{list}");
    let revoke = "/tokens/{token}/revoke";
    assert_eq!(admin.sends(revoke, &[("token", "none")], "").0, 404);
    let (status, gone) = admin.sends(revoke, &[("token", found.id.as_str())], "");
    assert_eq!((status, &gone["to"]), (303, &json!("/tokens")));
    assert_eq!(me().0, 401);
    assert!(admin.page("/tokens", &[]).contains("Revoked or expired (1)"));
}

#[test]
fn a_recovery_begins_with_its_plan_and_is_confirmed() {
    const PAGE: &str = "/clusters/{cluster}/recover";
    let mut bench = bench("recover-page");
    // What the command prints: of a restore point that is not there, that it cannot begin.
    let plan = |more: Value| {
        let mut plan = json!({"schema": 1, "cluster": "a", "kind": "physical", "database": null, "place": "/srv/new",
            "backup": "20260101-010203F", "recovery_point": "2026-01-02T03:04:05Z", "problem": null, "unfinished": null,
            "rto_ms": 60_000, "expected_ms": 120_000, "complete": true,
            "steps": [{"step": "replay", "what": "replay the WAL", "expected_ms": 120_000, "measured": 2}]});
        plan.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        plan
    };
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--plan*name=gone*|*name=gone*--plan*) echo '{}';; *--plan*) echo '{}';; *) echo '{{}}';; esac\n",
        plan(json!({"problem": "E-TARGET-NAME it is not there", "unfinished": "r-1"})),
        plan(json!({}))
    );
    let binary = bench.scratch.file("print", script.as_bytes(), 0o755);
    bench.api.lookups = Lookups::new(
        Some(Program { binary, words: vec![], settings: Shared::default() }),
        bench.scratch.dir("lookups"),
    );
    bench.with(|config| config.web.require_second_person = true);
    let recoverer = visitor(&bench, Role::RecoveryOperator, Some("a"));
    let operator = visitor(&bench, Role::Operator, Some("a"));
    let shown = |who: &Visitor<'_>, query: &str| {
        let asked = || bench.ask_with(route("GET", PAGE), CLUSTER, &headers(&who.cookie, &[]), query, "");
        // The page says that it is under way when that takes long.
        let begun = std::time::Instant::now();
        loop {
            let (status, page) = asked();
            let page = page.as_str().unwrap_or_else(|| panic!("{status} {page}")).to_owned();
            assert!(status == 200 && begun.elapsed() < Duration::from_secs(60), "{status} {page}");
            if !page.contains("is being worked out") {
                return page;
            }
        }
    };
    let page = shown(&recoverer, "time=2026-01-02T03:04:05");
    for part in [
        "/srv/new",
        "replay the WAL",
        "would be missed",
        "--target-time=2026-01-02T03:04:05Z",
        "name=\"target_time\" value=\"2026-01-02T03:04:05Z\"",
        "A second person has to say yes within 1 h",
        "name=\"confirm\"",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let page = shown(&operator, "");
    assert!(page.contains("to the newest moment") && page.contains("takes the role recovery-operator"), "{page}");
    assert!(!page.contains("name=\"confirm\""), "{page}");
    // Who restores does not say by that where an application goes, and is told so before.
    bench.with(|config| {
        config.web.require_second_person = false;
        config.clusters.iter_mut().for_each(|cluster| cluster.repoints = cluster.name == "a");
    });
    let (page, admin) = (shown(&recoverer, ""), visitor(&bench, Role::Admin, Some("a")));
    assert!(page.contains("the role app-admin or admin has to say yes within 1 h"), "{page}");
    assert!(!shown(&admin, "").contains("has to say yes"), "an admin says so by asking");
    bench.with(|config| {
        config.web.require_second_person = true;
        config.clusters.iter_mut().for_each(|cluster| cluster.repoints = false);
    });
    let page = shown(&recoverer, "name=gone");
    for part in ["This cannot begin now", "E-TARGET-NAME it is not there", "recover --resume -c a"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("name=\"confirm\""), "{page}");
    assert_eq!(bench.ask_with(route("GET", PAGE), CLUSTER, &headers(&operator.cookie, &[]), "time=soon", "").0, 400);
    let api = route("GET", "/api/v1/clusters/{cluster}/recover-plan");
    assert_eq!(bench.ask_with(api, CLUSTER, &headers(&operator.cookie, &[]), "target_time=soon", "").0, 400);
    let (status, found) = bench.ask_with(api, CLUSTER, &headers(&operator.cookie, &[]), "target_name=p", "");
    assert_eq!((status, &found["plan"]["backup"]), (200, &json!("20260101-010203F")), "{found}");
    assert_eq!(found["command"], json!(["pgark", "recover", "--target-name=p", "--cluster=a"]));
    // The same form as for every job, with the same answers.
    let asked = "job=recover&target_time=2026-01-02T03%3A04%3A05Z&reason=the+disk+is+gone";
    assert_eq!(operator.sends(JOBS, CLUSTER, &format!("{asked}&confirm=a")).0, 403);
    assert_eq!(recoverer.sends(JOBS, CLUSTER, asked).1["code"], "E-CONFIRM");
    assert_eq!(recoverer.sends(JOBS, CLUSTER, &format!("{asked}&confirm=a")).0, 303);
    let job = newest_job(&bench);
    assert_eq!(job.state, JobState::WaitingForApproval);
    assert_eq!(
        job.request.words("a").expect("words").join(" "),
        "recover --target-time=2026-01-02T03:04:05Z --reason=the disk is gone --yes --cluster=a"
    );
}
