//! What is asked most reads nothing: it does not matter how much is known of how many clusters.

use super::*;

/// Behind the server's back. Whoever reads a document from here on fails.
fn garble(bench: &Bench) {
    let database = rusqlite::Connection::open(bench.scratch.join("state/server.sqlite")).expect("opened");
    let garbled = database.execute("update documents set document = 'no document'", []).expect("changed");
    assert!(garbled > 0);
}

fn info(name: &str) -> Value {
    let at = Timestamp::now().to_string();
    json!({"clusters": [{"name": name, "pg_version": "15.1", "gaps": [], "problems": [],
        "windows": [{"timeline": 1, "from_time": at, "to_time": at}],
        "backups": [{"id": "20260101-010203F", "kind": "physical", "type": "full", "complete": true, "damaged": null, "finished": at}]}],
        "repository": {"name": "main", "used": {"bytes": 5, "complete": true, "clusters": [{"name": "a"}, {"name": "b"}]}}})
}

#[test]
fn the_first_screen_the_list_and_the_metrics_read_no_document() {
    let bench = bench("many");
    let (state, now) = (&bench.api.state, Timestamp::now());
    for name in ["a", "b"] {
        state.keep_document("info", name, &info(name), now).expect("kept");
    }
    state.keep_document("space", "a", &info("b"), now).expect("kept");
    garble(&bench);
    let admin = bench.token(Role::Admin, None);
    let ask = |path: &str| bench.ask(route("GET", path), &[("cluster", "a")], Some(&admin), "");
    assert_eq!(ask("/api/v1/clusters/{cluster}/windows").0, 503, "it is read where more than facts is shown");
    for path in ["/", "/api/v1/clusters", "/metrics"] {
        let (status, shown) = ask(path);
        assert_eq!(status, 200, "{path}: {shown}");
        assert!(shown.to_string().contains("15.1") || path == "/metrics", "{path}: {shown}");
    }
    // That it could not be read again is known without reading what was known before.
    state.document_failed("info", "a", "E-STORE away", now).expect("kept");
    let (_, list) = ask("/api/v1/clusters");
    assert_eq!(list["clusters"][0]["standing"], "unknown", "{list}");
    assert_eq!(list["clusters"][0]["source"]["error"], "E-STORE away", "{list}");
    assert_eq!(list["clusters"][1]["pg_version"], "15.1", "{list}");
    let metrics = ask("/metrics").1;
    let metrics = metrics.as_str().expect("text");
    for line in [
        "pgark_repo_readable{cluster=\"a\"} 0.0",
        "pgark_backups{cluster=\"b\"} 1.0",
        "pgark_wal_gap_segments{cluster=\"b\"} 0.0",
        "pgark_repo_used_bytes{cluster=\"b\"} 5.0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn what_is_new_is_on_the_first_screen_at_once() {
    let bench = bench("at-once");
    let admin = bench.token(Role::Admin, None);
    let own = bench.token(Role::Viewer, Some("b"));
    let screen = |token: &str| {
        let page = bench.ask(route("GET", "/"), &[], Some(token), "").1;
        page.as_str().expect("a page").to_owned()
    };
    for version in 1..50 {
        let mut known = info("a");
        known["clusters"][0]["pg_version"] = format!("{version}.0").into();
        bench.api.state.keep_document("info", "a", &known, Timestamp::now()).expect("kept");
        let shown = screen(&admin);
        assert!(shown.contains(&format!("PostgreSQL {version}.0<")), "{version}: {shown}");
        assert!(screen(&admin).contains("/clusters/a") && !screen(&own).contains("/clusters/a"));
    }
    bench.api.state.document_failed("info", "a", "E-STORE away", Timestamp::now()).expect("kept");
    assert!(screen(&admin).contains("E-STORE away"));
    let without =
        Config { clusters: bench.api.config.get().clusters.iter().skip(1).cloned().collect(), ..Config::default() };
    bench.api.config.set(without);
    assert!(!screen(&admin).contains("/clusters/a"), "the settings were read again");
}

#[test]
fn the_room_of_a_repository_is_said_of_all_clusters_in_it_and_of_others_nothing() {
    let bench = bench("rooms");
    let state = &bench.api.state;
    state.keep_document("space", "a", &info("a"), Timestamp::now()).expect("kept");
    let capacity = |token: &str| {
        let route = route("GET", "/api/v1/clusters/{cluster}/capacity");
        bench.ask(route, &[("cluster", "b")], Some(token), "").1
    };
    let (admin, own) = (bench.token(Role::Admin, None), bench.token(Role::Viewer, Some("b")));
    assert_eq!(capacity(&admin)["repository"]["used"]["clusters"], json!([{"name": "a"}, {"name": "b"}]));
    let shown = capacity(&own);
    assert_eq!((&shown["cluster"], &shown["repository"]["used"]["clusters"]), (&json!("b"), &json!([{"name": "b"}])));
    state.document_failed("space", "a", "E-CLUSTER-UNKNOWN there is no cluster 'a'", Timestamp::now()).expect("kept");
    assert_eq!(capacity(&own)["source"]["error"], "E-CLUSTER-UNKNOWN");
    assert!(capacity(&admin)["source"]["error"].to_string().contains("no cluster 'a'"));
}
