//! Every configuration of `examples/`, under the server: what is typed elsewhere is asked for over HTTP.

use std::fs;
use std::path::Path;

use pgark_testkit::{ObjectServer, ObjectServerKind, Pgark, skip};
use serde_json::{Value, json};

use crate::files::{app, facts, wanted};
use crate::recover::Imaging;
use crate::recover_cluster::Cutover;
use crate::serve::{Serving, ended, token, until};
use crate::site::Site;

/// A server with the example's settings, and one who may do everything.
struct Served {
    serving: Serving,
    admin: String,
    viewer: String,
}

impl Served {
    /// `scratch` has the settings in `pgark.toml`.
    fn new(scratch: &Path, pgark: &Pgark) -> Served {
        let config = scratch.join("pgark.toml");
        let text = fs::read_to_string(&config).expect("settings");
        // What is asked for here runs alone.
        let often = ["*/5 * * * *", "*/15 * * * *", "* * * * *"];
        let text = often.iter().fold(text, |text, cron| text.replace(&format!("\"{cron}\""), "\"0 0 29 2 *\""));
        let state = scratch.join("server");
        fs::write(&config, format!("{text}\n[server]\nstate_dir = \"{}\"\n", state.display())).expect("written");
        pgark.run(["config", "check"]).expect_code(0);
        pgark.run(["alert", "test"]).expect_code(0);
        let told = fs::read_to_string(scratch.join("told")).expect("somebody was told");
        assert!(told.contains("\"test\""), "{told}");
        let (admin, viewer) = (token(pgark, "admin", &[]), token(pgark, "viewer", &[]));
        Served { serving: Serving::start(pgark), admin, viewer }
    }

    fn get(&self, path: &str) -> Value {
        let (status, found) = self.serving.ask("GET", path, &self.viewer, "");
        assert_eq!(status, 200, "{path}: {found}");
        found
    }

    /// The document of a job that succeeded.
    fn done(&self, body: &Value) -> Value {
        let job = self.job(body);
        assert_eq!(job["state"], "done", "{body}: {job}");
        job["result"].clone()
    }

    fn job(&self, body: &Value) -> Value {
        let (status, job) = self.serving.ask("POST", "/api/v1/clusters/main/jobs", &self.admin, &body.to_string());
        assert_eq!(status, 202, "{body}: {job}");
        ended(&self.serving, &self.admin, job["id"].as_str().expect("an id"))
    }

    /// What the first screen says, once it says this.
    fn cluster(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(what, || Some(self.get("/api/v1/clusters/main")).filter(|c| is_so(c)))
    }

    /// The newest report of this command, as it is stored.
    fn report(&self, command: &str) -> Value {
        let listed = until("the report", || {
            let all = self.get("/api/v1/clusters/main/reports");
            all["reports"].as_array()?.iter().find(|r| r["what"] == command).cloned()
        });
        let path = format!("/api/v1/clusters/main/reports/{}", listed["id"].as_str().expect("an id"));
        until("its text", || {
            let (status, report) = self.serving.ask("GET", &path, &self.viewer, "");
            assert!(matches!(status, 200 | 202), "{report}");
            (status == 200).then_some(report)
        })
    }
}

#[test]
fn an_imaging_service_is_recovered_by_a_job() {
    let Some(imaging) = Imaging::new("serveimaging") else { skip!("no PostgreSQL server is installed") };
    let pgark = imaging.pgark(&[]);
    let served = Served::new(imaging.site.scratch.path(), &pgark);
    let backup = served.done(&json!({"job": "backup", "kind": "logical"}));
    imaging.psql("delete from studies where i > 10");
    imaging.app.calls();

    // Not without its name, and not by one who may only look.
    let asked = json!({"job": "recover", "reason": "studies are gone"});
    let jobs = "/api/v1/clusters/main/jobs";
    assert_eq!(served.serving.ask("POST", jobs, &served.admin, &asked.to_string()).0, 409);
    let asked = json!({"job": "recover", "reason": "studies are gone", "confirm": "main"});
    assert_eq!(served.serving.ask("POST", jobs, &served.viewer, &asked.to_string()).0, 403);
    let report = served.done(&asked);
    assert_eq!((&report["state"], &report["backup"]), (&json!("restored"), &backup["id"]), "{report}");
    assert_eq!(imaging.psql("select count(*) from studies"), "500");
    assert_eq!(imaging.app.calls(), ["stop", "start", "tell"]);
    assert!(imaging.app.runs());
    assert_eq!(served.report("recover")["report"]["id"], report["id"]);
    served.serving.drained();
}

#[test]
fn a_lost_cluster_is_cut_over_by_a_job() {
    let Some(cutover) = Cutover::new("servecutover") else { skip!("no PostgreSQL server is installed") };
    let pgark = cutover.pgark(&[]);
    let served = Served::new(cutover.site.scratch.path(), &pgark);
    let backup = served.done(&json!({"job": "backup", "type": "full"}));
    cutover
        .site
        .cluster
        .psql_db("transformation", "insert into jobs select 1000 + i, 'new' from generate_series(1, 50) i");
    cutover.site.archive_all();
    let known = served.cluster("the backup", |c| c["can_recover"] == true);
    assert_eq!(known["meets_rpo"], true, "{known}");
    // Who restores does not say where the application goes: who looks after it says yes.
    let (operator, app) = (token(&pgark, "recovery-operator", &[]), token(&pgark, "app-admin", &["-c", "main"]));
    let asked = json!({"job": "recover", "reason": "moved", "confirm": "main"}).to_string();
    let (status, job) = served.serving.ask("POST", "/api/v1/clusters/main/jobs", &operator, &asked);
    assert_eq!((status, &job["state"]), (202, &json!("waiting_for_approval")), "{job}");
    let id = job["id"].as_str().expect("an id");
    let approve = |by: &str| served.serving.ask("POST", &format!("/api/v1/jobs/{id}/approve"), by, "");
    assert_eq!(approve(&operator).0, 403);
    assert_eq!(approve(&app).0, 200);
    let job = ended(&served.serving, &app, id);
    assert_eq!((&job["state"], &job["approved_by"]), (&json!("done"), &json!("token app-admin")), "{job}");
    let report = &job["result"];
    assert_eq!((&report["state"], &report["backup"]), (&json!("restored"), &backup["id"]), "{report}");
    assert_eq!(cutover.ask_new("select count(*) from jobs"), "550");
    assert!(cutover.app.runs());
    served.serving.drained();
}

#[test]
fn three_tiers_are_backed_up_and_rehearsed_by_jobs() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "servethree");
    let (pgark, _) = crate::drill::three_tiers(&site);
    site.cluster.psql("alter system set archive_timeout = '5min'");
    site.cluster.reload();
    let served = Served::new(site.scratch.path(), &pgark);
    let schedules = served.get("/api/v1/schedules")["schedules"].clone();
    let monthly = schedules.as_array().into_iter().flatten().find(|s| s["request"]["job"] == "drill").cloned();
    assert!(monthly.is_some_and(|s| s["next"].as_array().is_some_and(|n| !n.is_empty())), "{schedules}");
    let backup = served.done(&json!({"job": "backup", "type": "full"}));
    served.done(&json!({"job": "backup", "kind": "logical"}));
    served.cluster("the backup", |c| c["can_recover"] == true && c["standing"] != "good");
    let held = served.done(&json!({"job": "drill"}));
    assert_eq!((&held["verdict"], &held["backup"]), (&json!("green"), &backup["id"]), "{held}");
    served.cluster("the proof", |c| c["standing"] == "good");
    until("its report", || (served.get("/api/v1/clusters/main/drills")["drills"][0]["what"] == "drill").then_some(()));

    // What went wrong since is found by the next one, and seen on the first screen.
    site.cluster.psql_db(
        "bioverse",
        "alter table samples drop constraint samples_patient_fkey; delete from patients where id = 5",
    );
    let late = served.done(&json!({"job": "backup", "type": "full"}));
    let bad = served.job(&json!({"job": "drill", "backup": late["id"]}));
    assert_eq!((&bad["state"], &bad["result"]["verdict"]), (&json!("failed"), &json!("red")), "{bad}");
    served.cluster("the failed rehearsal", |c| c["standing"] != "good");
    served.serving.drained();
}

#[test]
fn a_pharmacy_is_in_two_places_by_jobs() {
    let server = installed_or_skip!();
    let store = match ObjectServer::start(ObjectServerKind::S3s) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let (site, _) = crate::pharmacy::configured(&server, &store);
    site.cluster.psql("create role pharmacist login password 'x'");
    site.cluster.psql("create role pgark_check login; grant pg_read_all_data to pgark_check");
    site.cluster.psql("create database pharmacy owner pharmacist");
    site.cluster.psql_db("pharmacy", crate::pharmacy::DATABASE);
    let served = Served::new(site.scratch.path(), &site.pgark);
    let (base, dump) = (
        served.done(&json!({"job": "backup", "type": "full"})),
        served.done(&json!({"job": "backup", "kind": "logical"})),
    );
    for made in [&base, &dump] {
        assert!(made["repos"].as_array().is_some_and(|r| r.len() == 2 && r.iter().all(|r| r["ok"] == true)), "{made}");
    }
    assert_eq!(served.done(&json!({"job": "drill"}))["verdict"], "green");
    served.done(&json!({"job": "verify"}));
    let known = served.cluster("what was proved", |c| c["standing"] == "good");
    assert_eq!(known["can_recover"], true, "{known}");
    let to = site.scratch.join("restored");
    served.done(&json!({"job": "restore", "backup": base["id"], "to": to, "confirm": "main"}));
    assert!(to.join("PG_VERSION").exists());
    served.serving.drained();
}

#[test]
fn a_whole_system_is_backed_up_lost_and_restored_by_its_own_interface() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "servesystem");
    let app = app(&site);
    let up = app.join("uploads");
    site.cluster.psql("create role radio login password 'x'");
    site.cluster.psql("create database radiology_db owner radio");
    let rows = "select count(*), md5(string_agg(s::text, ',' order by i)) from studies s";
    site.cluster
        .psql_db("radiology_db", "create table studies as select i, md5(i::text) m from generate_series(1, 5000) i");
    let pgark = crate::system::configured(&site, &app);
    let served = Served::new(site.scratch.path(), &pgark);
    let ask = |method: &str, path: &str, body: &Value, code: u16| {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = served.serving.ask(method, path, &served.admin, &text);
        assert_eq!(status, code, "{method} {path}: {answer}");
        answer
    };
    assert_eq!(ask("GET", "/api/backups/status/health", &Value::Null, 200)["status"], "warning");
    let made = ask("POST", "/api/backups/create-sync", &Value::Null, 200);
    let name = made["backup"]["backup_name"].as_str().expect("a name").to_owned();
    assert!(made["backup"]["success"] == true && name.starts_with("radiology_backup_"), "{made}");
    let (wanted, table) = (wanted(&up), site.cluster.psql_db("radiology_db", rows));
    // What was not read yet is told as an error, which is no list.
    let list = || served.serving.ask("GET", "/api/backups/list", &served.admin, "").1;
    let listed = until("the backup in the list", || {
        let all = list();
        all.as_array()?.iter().find(|b| b["backup_name"] == name.as_str()).cloned()
    });
    assert_eq!(ask("GET", &format!("/api/backups/{name}"), &Value::Null, 200), listed);
    let verified = ask("POST", &format!("/api/backups/verify/{name}"), &Value::Null, 200);
    assert_eq!(verified["verification"]["success"], true, "{verified}");
    assert_eq!(ask("GET", "/api/backups/status/health", &Value::Null, 200)["status"], "healthy");
    let known = served.cluster("what was read", |c| c["can_recover"] == true);
    assert_eq!(
        (&known["recoverable_by"], &known["recoverable_until"]),
        (&json!("backup"), &listed["datetime"]),
        "{known}"
    );

    site.cluster.psql("drop database radiology_db");
    fs::remove_dir_all(&app).expect("everything");
    ask("POST", "/api/backups/restore", &json!({"backup_name": name}), 400);
    let begun = ask("POST", "/api/backups/restore", &json!({"backup_name": name, "confirm": true}), 200);
    let job = ended(&served.serving, &served.admin, begun["job_id"].as_str().expect("a job"));
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!(site.cluster.psql_db("radiology_db", rows), table);
    assert_eq!(facts(&up), wanted);

    // A second one, and the first is given up.
    let begun = ask("POST", "/api/backups/create", &Value::Null, 200);
    assert_eq!(begun["status"], "processing", "{begun}");
    assert_eq!(ended(&served.serving, &served.admin, begun["job_id"].as_str().expect("a job"))["state"], "done");
    until("two backups", || (list().as_array()?.len() >= 2).then_some(()));
    ask("DELETE", &format!("/api/backups/{name}"), &Value::Null, 200);
    until("its end", || {
        let all = list();
        all.as_array()?.iter().all(|b| b["backup_name"] != name.as_str()).then_some(())
    });
    served.serving.drained();
}
