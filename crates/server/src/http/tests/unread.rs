//! What nobody has looked at yet, and what is known of a part alone.

use super::*;

#[test]
fn what_was_never_read_is_not_none() {
    const LISTS: [(&str, &str, &[&str]); 12] = [
        ("info", "/api/v1/clusters/{cluster}/windows", &["windows", "gaps"]),
        ("info", "/api/v1/clusters/{cluster}/backups", &["backups"]),
        ("info", "/api/v1/clusters/{cluster}/series", &["backups"]),
        ("wal", "/api/v1/clusters/{cluster}/wal", &["timelines"]),
        ("reports", "/api/v1/clusters/{cluster}/reports", &["reports"]),
        ("reports", "/api/v1/clusters/{cluster}/drills", &["drills"]),
        ("history", "/api/v1/clusters/{cluster}/history", &["events"]),
        ("audit", "/api/v1/clusters/{cluster}/audit", &["events"]),
        ("space", "/api/v1/clusters/{cluster}/capacity", &["repository"]),
        ("alerts", "/api/v1/alerts", &["alerts"]),
        ("incidents", "/api/v1/incidents", &["incidents"]),
        ("settings", "/api/v1/settings", &["settings", "changed_since"]),
    ];
    const PAGES: [&str; 6] = [
        "/clusters/{cluster}",
        "/clusters/{cluster}/backups",
        "/clusters/{cluster}/reports",
        "/clusters/{cluster}/audit",
        "/alerts",
        "/settings",
    ];
    const NONE: [&str; 7] = [
        "There are no backups",
        "There are no reports",
        "Nothing is open",
        "No incident was declared",
        "There are none",
        ">never<",
        ">not measured<",
    ];
    let bench = bench("unread");
    let (state, now) = (&bench.api.state, Timestamp::now());
    let admin = bench.token(Role::Admin, None);
    let ask = |path: &str| bench.ask(route("GET", path), &[("cluster", "a"), ("backup", "none")], Some(&admin), "");
    let one = || {
        let (status, problem) = ask("/api/v1/clusters/{cluster}/backups/{backup}");
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    };
    let of_host = |kind: &str| matches!(kind, "alerts" | "incidents" | "settings");
    // Before anybody looked, and when nobody could.
    for error in [None, Some("E-STORE away")] {
        for (kind, path, keys) in LISTS {
            if let Some(error) = error {
                state.document_failed(kind, if of_host(kind) { "" } else { "a" }, error, now).expect("kept");
            }
            let (status, answer) = ask(path);
            assert_eq!((status, &answer["source"]["refreshed"]), (200, &Value::Null), "{path} {answer}");
            assert_eq!(answer["source"]["error"].as_str(), error, "{path}");
            for key in keys {
                assert_eq!(answer.get(*key), Some(&Value::Null), "{path} {answer}");
            }
        }
        assert_eq!(one(), (422, "E-SERVER-LOOK".into()));
        for path in PAGES {
            let page = ask(path).1.as_str().expect("a page").to_owned();
            assert!(NONE.iter().all(|words| !page.contains(words)), "{path} {page}");
        }
    }
    let acknowledge = route("POST", "/api/v1/alerts/{alert}/acknowledge");
    assert_eq!(bench.ask(acknowledge, &[("alert", "one")], Some(&admin), "").0, 422);
    // None is what was read.
    for (kind, path, keys) in LISTS.into_iter().filter(|(kind, ..)| *kind != "space") {
        let document = json!({"clusters": [{"name": "a"}]});
        state.keep_document(kind, if of_host(kind) { "" } else { "a" }, &document, now).expect("kept");
        let (_, answer) = ask(path);
        for key in keys {
            assert_eq!(answer.get(*key), Some(&json!([])), "{path} {answer}");
        }
    }
    assert_eq!(one(), (404, "E-NOT-FOUND".into()));
    assert!(ask("/alerts").1.as_str().is_some_and(|page| page.contains("Nothing is open")));
}

#[test]
fn dumps_say_of_which_databases_they_are() {
    let bench = bench("dumps");
    let (now, viewer) = (Timestamp::now(), bench.token(Role::Viewer, Some("a")));
    let cluster = |kind: &str, databases: Value| {
        let backup = json!({"id": "20260101-010203L", "kind": kind, "complete": true, "damaged": null, "started": now, "finished": now});
        json!({"clusters": [{"name": "a", "windows": [], "backups": [backup], "databases": databases, "problems": []}]})
    };
    let shown = |document: &Value| {
        bench.api.state.keep_document("info", "a", document, now).expect("kept");
        let (_, answer) = bench.ask(route("GET", "/api/v1/clusters/{cluster}"), &[("cluster", "a")], Some(&viewer), "");
        let (_, page) = bench.ask(route("GET", "/"), &[], Some(&viewer), "");
        (answer["recoverable_databases"].clone(), page.as_str().expect("a page").to_owned())
    };
    let line = |name: &str, partial: bool| json!({"database": name, "backup": "20260101-010203L", "time": now, "partial": partial});
    let both = json!([line("lab", true), line("<pharmacy>", false)]);
    let (answer, page) = shown(&cluster("logical", both.clone()));
    assert_eq!(answer, both);
    assert!(page.contains("parts of database <strong>lab") && page.contains("<strong>&lt;pharmacy&gt;"), "{page}");
    // A program of before did not say; and nothing is said of them beside a physical backup.
    assert_eq!(shown(&cluster("logical", Value::Null)).0, Value::Null);
    assert_eq!(shown(&cluster("physical", both)).0, Value::Null);
}
