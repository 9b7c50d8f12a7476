//! Guided recovery of `examples/cutover.toml`: a cluster lost, restored to a new instance and in its own place, the application
//! pointed to it and back, by managers that write down what they were told; in a world that lies, and struck in the middle.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pgark_testkit::{
    Application, Fault, Mood, Outcome, Pgark, Point, StopMode, as_postgres, killed_alone, strace_works, traced,
    wait_until,
};
use serde_json::Value;

use crate::site::{Site, alerts_into, full_sweep, strings, writes};

pub const EXAMPLE: &str = include_str!("../../../../examples/cutover.toml");
const SECONDS: Duration = Duration::from_secs(120);
pub const PORT: u16 = 5433;

/// Managers that do what they are told, and write it down: a deployment whose ConfigMap is `app.env`, and two units.
const KUBECTL: &str = r#"#!/bin/sh
cd 'APP' || exit 9
case "$*" in *get*) ;; *) echo "kubectl $*" >> calls;; esac
of() { sed -n "s/^$1=//p" app.env; }
up() { if [ -e "$1" ]; then echo 1; else echo 0; fi; }
case "$*" in
*'get pods'*) if [ -e running ]; then echo '{"items":[{"status":{"phase":"Running"}}]}'; else echo '{"items":[]}'; fi;;
*'get --output=json -- configmap/'*) printf '{"metadata":{"resourceVersion":"7"},"data":{"DB_HOST":"%s","DB_PORT":"%s"}}' "$(of DB_HOST)" "$(of DB_PORT)";;
*'get --output=json -- deploy/'*) printf '{"spec":{"replicas":%s,"selector":{"matchLabels":{"app":"x"}}},"status":{"replicas":%s,"readyReplicas":%s}}' "$(up wanted)" "$(up running)" "$(up running)";;
*patch*) text=$(cat); for key in DB_HOST DB_PORT; do
    value=$(printf %s "$text" | sed -n "s/.*\"$key\":\"\([^\"]*\)\".*/\1/p"); sed -i "s|^$key=.*|$key=$value|" app.env; done;;
*--replicas=0*) rm -f wanted;;
*scale*) touch wanted;;
*) exit 1;;
esac
"#;
const SYSTEMCTL: &str = r#"#!/bin/sh
for unit; do :; done
case "$unit" in *recovered*) data='NEW'; lies=/nowhere;; *) data='OLD'; lies='APP/lies';; esac
case "$*" in
*show*) pid=$(head -1 "$data/postmaster.pid" 2>/dev/null)
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && [ ! -e "$lies" ]; then a=active; else a=inactive; pid=0; fi
    printf 'LoadState=loaded\nActiveState=%s\nSubState=x\nMainPID=%s\nInvocationID=%s\n' $a $pid $pid; exit 0;;
*' stop '*) echo "stop $unit" >> 'APP/calls'; [ -e "$lies" ] || PGCTL stop -D "$data" -m fast -w -s;;
*' start '*) echo "start $unit" >> 'APP/calls'; PGCTL start -D "$data" -w -s -l "$data.log";;
esac
"#;

/// A failing test leaves no server behind.
pub struct Instance {
    pub pg_ctl: PathBuf,
    pub data: PathBuf,
}

impl Instance {
    fn remove(&self) {
        let mut stop = as_postgres(&self.pg_ctl);
        drop(stop.args(["stop", "-s", "-m", "immediate", "-D"]).arg(&self.data).stderr(Stdio::null()).status());
        if self.data.exists() {
            fs::remove_dir_all(&self.data).expect("removed");
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.remove();
    }
}

pub struct Cutover {
    pub app: Application,
    new: Instance,
    pub site: Site,
    pub reports: PathBuf,
    bin: PathBuf,
    /// Of the application, as they were.
    pub settings: String,
}

impl Cutover {
    pub fn new(label: &str) -> Option<Cutover> {
        let server = pgark_testkit::Server::installed().ok()?;
        let site = Site::small(&server, label);
        site.cluster.psql("create database transformation");
        site.cluster.psql("create role pgark_check login");
        let table = "create table jobs as select i, 'job ' || i as name from generate_series(1, 500) i; grant select on jobs to pgark_check";
        site.cluster.psql_db("transformation", table);
        let settings = format!(
            "# where the database is\nDB_HOST={}\n\nDB_PORT={}\n# its name\nDB_NAME=transformation\n",
            site.cluster.socket_dir().display(),
            site.cluster.port()
        );
        let app = Application::new(&site.scratch, "app", &settings, "jobs");
        app.start();
        let new = Instance { pg_ctl: server.program("pg_ctl"), data: site.scratch.join("recovered") };
        let (reports, bin) = (site.scratch.dir("reports"), site.scratch.dir("bin"));
        let app_dir = app.settings().parent().expect("a directory").display().to_string();
        for (name, script) in [("kubectl", KUBECTL), ("systemctl", SYSTEMCTL)] {
            let script = script
                .replace("APP", &app_dir)
                .replace("NEW", &new.data.display().to_string())
                .replace("OLD", &site.cluster.data_dir().display().to_string())
                .replace("PGCTL", &new.pg_ctl.display().to_string());
            site.scratch.file(&format!("bin/{name}"), script.as_bytes(), 0o755);
        }
        Some(Cutover { app, new, site, reports, bin, settings })
    }

    /// The example with the places of this test, and these replacements.
    pub fn pgark(&self, more: &[(&str, &str)]) -> Pgark {
        let site = &self.site;
        let socket_dir = site.cluster.socket_dir().display().to_string();
        let places = [
            ("/mnt/backup/transformation", site.pgark.repo().display().to_string()),
            ("/etc/pgark/passphrase", site.pgark.passphrase_file().display().to_string()),
            ("/var/lib/postgresql/16/main", site.cluster.data_dir().display().to_string()),
            ("/var/lib/postgresql/16/recovered", self.new.data.display().to_string()),
            ("/var/run/postgresql", socket_dir.clone()),
            ("port = 5432", format!("port = {}", site.cluster.port())),
            ("db-2.internal", socket_dir),
            ("/var/log/pgark", self.reports.display().to_string()),
            ("\"recovery-operator\"", "\"root\"".to_owned()),
            ("[\"/usr/local/bin/tell-on-call\"]", format!("[\"{}\", \"tell\"]", self.app.program().display())),
            ("127.0.0.1:8080", format!("127.0.0.1:{}", self.app.port())),
            ("max_latency = \"500ms\"", "max_latency = \"20s\"".to_owned()),
            ("steady_for = \"5s\"", "steady_for = \"1s\"".to_owned()),
        ];
        let places = places.iter().map(|(from, to)| (*from, to.as_str())).chain(more.iter().copied());
        let text = places.fold(EXAMPLE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let text = alerts_into(&site.scratch.join("told"), &text);
        let config = site.scratch.file("pgark.toml", text.as_bytes(), 0o600);
        let bare = ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA"];
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.bin.display());
        let pgark = bare.iter().fold(site.pgark.clone(), |pgark, name| pgark.without_env(name));
        pgark.env("PGARK_CONFIG", config).env("PATH", path)
    }

    /// The same for a file instead of the ConfigMap.
    fn by_file(&self, more: &[(&str, &str)]) -> Pgark {
        let object = "kubernetes = \"configmap/transformation-engine\"\nnamespace = \"production\"\n";
        let file = format!("file = \"{}\"\n", self.app.settings().display());
        let all = [
            (object, file.as_str()),
            ("entry = \"DB_HOST\"", "key = [\"DB_HOST\"]"),
            ("entry = \"DB_PORT\"", "key = [\"DB_PORT\"]"),
        ];
        self.pgark(&[&all, more].concat())
    }

    /// The same in its own place, without anything to point to.
    fn in_place(&self, more: &[(&str, &str)]) -> Pgark {
        let repoint = &EXAMPLE[EXAMPLE.find("[[clusters.main.recover.repoint]]").expect("there")..];
        let repoint = &repoint[..repoint.find("[[clusters.main.recover.ready]]").expect("there")];
        let to = format!("to = \"{}\"", self.new.data.display());
        let address =
            format!("port = 5433\nsocket_dir = \"{0}\"\naddress = \"{0}\"", self.site.cluster.socket_dir().display());
        let fence = &EXAMPLE[EXAMPLE.find("[clusters.main.recover.fence]").expect("there")..];
        let fence = &fence[..fence.find("[clusters.main.recover.service]").expect("there")];
        let all = [
            (repoint, ""),
            (fence, ""),
            (to.as_str(), "in_place = true"),
            (address.as_str(), "check_timeout = \"30s\""),
            ("postgresql@16-recovered.service", "postgresql@16-main.service"),
        ];
        self.pgark(&[&all, more].concat())
    }

    /// As before a recovery to a new instance: the old one serves, and the application asks it.
    fn as_before(&self) {
        self.tidy_up();
        fs::write(self.app.settings(), &self.settings).expect("settings");
        if !self.old_serves() {
            self.start_old();
        }
        self.app.restart();
    }

    fn old_serves(&self) -> bool {
        self.site.cluster.data_dir().join("postmaster.pid").exists()
    }

    fn start_old(&self) {
        let mut start = as_postgres(&self.new.pg_ctl);
        start.args(["start", "-s", "-w", "-l", "/dev/null", "-D"]).arg(self.site.cluster.data_dir());
        assert!(start.status().expect("pg_ctl").success());
    }

    pub fn jobs(&self) -> String {
        self.site.cluster.psql_db("transformation", "select count(*) from jobs")
    }

    /// Directories that recoveries have put aside.
    fn aside(&self, word: &str) -> Vec<PathBuf> {
        let above = self.site.cluster.data_dir().parent().expect("a directory").to_owned();
        let all = fs::read_dir(above).expect("listed").flatten().map(|e| e.path());
        all.filter(|p| p.display().to_string().contains(&format!(".pgark-{word}-"))).collect()
    }

    pub fn tidy_up(&self) {
        self.new.remove();
        for path in [self.aside("before"), self.aside("failed")].concat() {
            fs::remove_dir_all(path).expect("removed");
        }
        self.app.be(None);
        self.app.calls();
    }

    fn address_of_new(&self) -> String {
        pgark_testkit::connection_string(self.site.cluster.socket_dir(), PORT, "transformation")
    }

    pub fn ask_new(&self, sql: &str) -> String {
        let mut psql = as_postgres("/usr/lib/postgresql/15/bin/psql");
        let output = psql.args(["-XAtq", "-c", sql, "-d", &self.address_of_new()]).output().expect("psql");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn recover(pgark: &Pgark, more: &[&str]) -> Outcome {
    pgark.run([&["recover", "--json", "--yes"], more].concat())
}

/// Goes on with one that was killed. One that was killed behind its last line has ended, and that is said: None.
fn gone_on_with(pgark: &Pgark, at: &str) -> Option<Value> {
    let outcome = pgark.run(["recover", "--resume", "--yes", "--json"]);
    let report = outcome.json();
    if report["error"]["code"] == "E-RECOVER-NONE" {
        assert!(report["error"]["message"].to_string().contains("has ended: restored"), "{at}: {outcome}");
        return None;
    }
    assert!(outcome.succeeded() && report["state"] == "restored", "{at}: {outcome}");
    Some(report)
}

pub fn outcome_of(report: &Value, step: &str) -> String {
    let steps = report["steps"].as_array().into_iter().flatten();
    steps.filter(|s| s["name"] == step).find_map(|s| s["outcome"].as_str()).unwrap_or("absent").to_owned()
}

macro_rules! cutover_or_skip {
    ($label:expr) => {
        match Cutover::new($label) {
            Some(cutover) => cutover,
            None => pgark_testkit::skip!("no PostgreSQL server is installed"),
        }
    };
}

#[test]
fn a_lost_cluster_comes_back_as_a_new_instance_and_the_application_is_pointed_to_it() {
    let mut cutover = cutover_or_skip!("cutover");
    let pgark = cutover.pgark(&[]);
    let backup = pgark.json(["backup"])["id"].as_str().expect("an id").to_owned();
    cutover
        .site
        .cluster
        .psql_db("transformation", "insert into jobs select 1000 + i, 'new' from generate_series(1, 50) i");
    cutover.site.archive_all();

    // What it would do, and what it refuses, changes nothing.
    let plan = pgark.run(["recover", "--plan", "--json"]).expect_code(0).json();
    assert_eq!((&plan["backup"], &plan["kind"]), (&backup.as_str().into(), &"physical".into()), "{plan}");
    let names: Vec<&str> = plan["steps"].as_array().into_iter().flatten().filter_map(|s| s["step"].as_str()).collect();
    assert_eq!(
        names,
        [
            "preflight",
            "authorise",
            "stop",
            "fence",
            "salvage",
            "choose",
            "escalate",
            "restore",
            "replay",
            "validate",
            "serve",
            "repoint",
            "start",
            "ready",
            "smoke",
            "adopt",
            "notify",
            "report"
        ]
    );
    let report = recover(&pgark, &["--target-lsn", "F/0"]).expect_code(4).json();
    assert_eq!(
        (&report["state"], &report["failure"]["code"]),
        (&"refused".into(), &"E-TARGET-BEYOND".into()),
        "{report}"
    );
    let text = pgark.run(["runbook", "render"]).expect_code(0).stdout;
    for wanted in [
        "a new instance",
        "pgark recover --target-time 'MOMENT' --declared 'TIME'",
        "It points again to where it pointed before",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    assert!(cutover.app.runs() && !cutover.new.data.exists());
    assert_eq!(cutover.app.calls(), ["tell"]);

    // The application answers with 500 on the new instance: back to the old one, byte for byte, and everything runs as before.
    cutover.app.be(Some(Mood::Confused));
    let report = recover(&cutover.by_file(&[]), &[]).expect_code(1).json();
    assert_eq!((&report["state"], &report["failure"]["step"]), (&"rolled_back".into(), &"smoke".into()), "{report}");
    assert!(report["failure"]["why"].as_str().is_some_and(|why| why.contains("status 500")), "{report}");
    for step in ["repoint", "start", "serve", "fence", "stop"] {
        assert_eq!(outcome_of(&report, step), "undone", "{step}: {report}");
    }
    assert_eq!(fs::read_to_string(cutover.app.settings()).expect("settings"), cutover.settings);
    assert!(cutover.app.runs() && cutover.jobs() == "550", "{report}");
    assert!(!cutover.new.data.join("postmaster.pid").exists() && cutover.new.data.exists());
    assert_eq!(outcome_of(&report, "adopt"), "not_reached");
    assert_eq!(report["left"].to_string().matches("the recovered cluster is in").count(), 1, "{report}");
    cutover.tidy_up();

    // The old one says that it stopped, and lives: the new one serves, and archives nothing.
    fs::write(cutover.app.settings().with_file_name("lies"), "").expect("it lies");
    let by_pg_ctl = cutover.by_file(&[("systemd = \"postgresql@16-recovered.service\"\n", "")]);
    let report = recover(&by_pg_ctl, &[]).expect_code(3).json();
    assert_eq!(report["state"], "restored", "{report}");
    assert!(report["warnings"].to_string().contains("ARCHIVING IS OFF"), "{report}");
    assert_eq!(cutover.ask_new("show archive_command"), "");
    assert_eq!((cutover.ask_new("select count(*) from jobs").as_str(), cutover.jobs().as_str()), ("550", "550"));
    fs::remove_file(cutover.app.settings().with_file_name("lies")).expect("no more");
    fs::write(cutover.app.settings(), &cutover.settings).expect("settings");
    cutover.tidy_up();

    // It is gone, with WAL that was not archived any more: nothing is lost.
    cutover.site.cluster.psql_db("transformation", "insert into jobs values (2000, 'the last one')");
    cutover.site.cluster.stop(StopMode::Immediate);
    let outcome = recover(&cutover.pgark(&[]), &["--reason", "it is gone", "--declared-at", "2026-01-01T00:00:00Z"]);
    let report = outcome.expect_code(3).json();
    assert_eq!((&report["state"], &report["backup"]), (&"restored".into(), &backup.as_str().into()), "{report}");
    assert_eq!((&report["rpo"]["met"], &report["rto"]["met"]), (&true.into(), &false.into()), "{report}");
    assert_eq!(cutover.ask_new("select count(*) from jobs"), "551");
    let found: Vec<&str> =
        report["validations"].as_array().into_iter().flatten().filter_map(|v| v["outcome"].as_str()).collect();
    assert!(found.len() >= 2 && found.iter().all(|o| *o == "ok"), "{report}");
    let settings = fs::read_to_string(cutover.app.settings()).expect("settings");
    assert!(settings.contains(&format!("\nDB_PORT={PORT}\n")) && settings.contains("# its name"), "{settings}");
    let calls = cutover.app.calls();
    let order = [
        "kubectl --namespace=production scale --replicas=0 -- deploy/transformation-engine",
        "stop postgresql@16-main.service",
        "start postgresql@16-recovered.service",
        "kubectl --namespace=production patch --type=merge --patch-file=/dev/stdin -- configmap/transformation-engine",
        "kubectl --namespace=production scale --replicas=1 -- deploy/transformation-engine",
        "tell",
    ];
    assert_eq!(calls, order);
    // The archive goes on, on a timeline of its own.
    assert_eq!(cutover.ask_new("select timeline_id > 1 from pg_control_checkpoint()"), "t");
    assert!(cutover.ask_new("show archive_command").contains("archive-push"));
    let archived = || cutover.ask_new("select last_archived_wal like '00000002%' from pg_stat_archiver") == "t";
    wait_until("the archive to go on", SECONDS, || archived().then_some(()));
    let file = report["report_file"].as_str().expect("files");
    assert!(fs::read_to_string(format!("{file}.md")).expect("a report").contains("## Post-mortem"));
    assert!(cutover.app.told().contains("\"it is gone\""));
    assert!(!strings(&report["left"]).is_empty());
}

#[test]
fn in_its_own_place_the_old_one_stays_until_the_new_one_was_found_right() {
    let cutover = cutover_or_skip!("inplace");
    let pgark = cutover.in_place(&[]);
    pgark.json(["backup"]);
    cutover.site.archive_all();
    let before = cutover.site.cluster.psql("select pg_current_wal_insert_lsn()");
    cutover.site.cluster.psql_db("transformation", "delete from jobs where i > 10");
    cutover.site.archive_all();

    // It says that it stopped, and lives: no data is touched.
    fs::write(cutover.app.settings().with_file_name("lies"), "").expect("it lies");
    let report = recover(&pgark, &[]).expect_code(1).json();
    assert_eq!(
        (&report["state"], &report["failure"]["code"]),
        (&"not_stopped".into(), &"E-RECOVER-FENCE".into()),
        "{report}"
    );
    assert!(cutover.jobs() == "10" && cutover.aside("before").is_empty());
    fs::remove_file(cutover.app.settings().with_file_name("lies")).expect("no more");
    cutover.app.start();

    // Validation hangs, and is stopped: what was there comes back, and runs; the application does not.
    let hangs = cutover.in_place(&[
        ("check_timeout = \"30s\"", "check_timeout = \"2s\""),
        ("select count(*) > 0 from jobs", "select pg_sleep(3600) is null"),
    ]);
    let report = recover(&hangs, &[]).expect_code(21).json();
    assert_eq!(
        (&report["state"], &report["failure"]["code"]),
        (&"halted".into(), &"E-RECOVER-VALIDATION".into()),
        "{report}"
    );
    assert_eq!(
        (outcome_of(&report, "aside"), outcome_of(&report, "fence")),
        ("undone".into(), "undone".into()),
        "{report}"
    );
    assert!(cutover.jobs() == "10" && !cutover.app.runs(), "{report}");
    assert!(cutover.aside("before").is_empty() && cutover.aside("failed").len() == 1);
    cutover.tidy_up();
    cutover.app.start();

    // It starts, and dies after three seconds: the data is restored and right.
    let steady = cutover.in_place(&[("steady_for = \"1s\"", "steady_for = \"5s\"")]);
    cutover.app.be(Some(Mood::DiesAfter(Duration::from_secs(3))));
    let report = recover(&steady, &["--target-lsn", &before]).expect_code(1).json();
    assert_eq!(
        (&report["state"], &report["failure"]["code"]),
        (&"not_started".into(), &"E-SERVICE-START".into()),
        "{report}"
    );
    assert!(cutover.jobs() == "500" && cutover.aside("before").len() == 1, "{report}");
    // It takes writes, and archives nothing: that is told, and how to switch it on.
    assert!(report["warnings"].to_string().contains("ARCHIVING IS OFF"), "{report}");
    let left = report["left"].to_string();
    assert!(left.contains("when it runs, 'ALTER SYSTEM RESET archive_command"), "{report}");
    assert!(left.contains("the service is back when") == (outcome_of(&report, "serve") != "done"), "{report}");
    assert_eq!(cutover.site.cluster.psql("show archive_command"), "");
    cutover.tidy_up();
    cutover.app.start();

    // To the end of what there is, on the timeline that this began.
    cutover.site.cluster.psql_db("transformation", "insert into jobs values (3000, 'after')");
    let report = recover(&cutover.in_place(&[]), &[]);
    let report = report.json();
    assert_eq!(report["state"], "restored", "{report}");
    assert_eq!((cutover.jobs().as_str(), outcome_of(&report, "adopt").as_str()), ("501", "done"), "{report}");
    assert!(cutover.site.cluster.psql("show archive_command").contains("archive-push"));
    assert!(cutover.app.runs() && cutover.aside("before").len() == 1);

    // The one that was put aside comes back, and goes on: the archive has a newer timeline, and only who asks knows which one is meant.
    let timeline = cutover.site.cluster.psql("select timeline_id from pg_control_checkpoint()");
    let (data, before) = (cutover.site.cluster.data_dir().to_owned(), cutover.aside("before").remove(0));
    let pg_ctl = |how: &[&str]| {
        let mut pg_ctl = as_postgres(&cutover.new.pg_ctl);
        pg_ctl.args(how).args(["-s", "-w", "-l", "/dev/null", "-D"]).arg(&data);
        assert!(pg_ctl.status().expect("pg_ctl").success(), "{how:?}");
    };
    pg_ctl(&["stop", "-m", "fast"]);
    let tried = cutover.site.scratch.join("tried");
    fs::rename(&data, &tried).expect("away");
    fs::rename(before, &data).expect("back");
    pg_ctl(&["start"]);
    // It was never adopted: the recovery before this one ended too early.
    cutover.site.cluster.psql("alter system reset archive_command");
    cutover.site.cluster.reload();
    let own = cutover.site.cluster.psql("select timeline_id from pg_control_checkpoint()");
    assert!(own.parse::<u32>().ok() < timeline.parse().ok(), "{own} {timeline}");
    cutover.site.cluster.psql_db("transformation", "insert into jobs values (4000, 'on the old one')");
    cutover.site.archive_all();
    let rows = cutover.jobs();
    let report = recover(&cutover.in_place(&[]), &[]).expect_code(4).json();
    assert_eq!(
        (&report["state"], &report["failure"]["code"]),
        (&"refused".into(), &"E-TARGET-AMBIGUOUS".into()),
        "{report}"
    );
    assert!(report["failure"]["hint"].to_string().contains(&format!("--target-timeline {own}")), "{report}");
    assert!(cutover.jobs() == rows && cutover.app.runs(), "{report}");
    // Its own: nothing is lost. That of the archive: what is lost is said, with its age.
    let report = recover(&cutover.in_place(&[]), &["--target-timeline", &own]).json();
    assert_eq!(
        (report["state"].as_str(), report["rpo"]["measured_ms"].as_u64()),
        (Some("restored"), Some(0)),
        "{report}"
    );
    assert_eq!(cutover.jobs(), rows, "{report}");
    let report = recover(&cutover.in_place(&[]), &["--target-timeline", &timeline]).expect_code(3).json();
    assert_eq!(report["state"], "restored", "{report}");
    assert!(report["warnings"].to_string().contains("is NOT restored"), "{report}");
    assert!(report["rpo"]["measured_ms"].as_u64() != Some(0), "{report}");
    assert_eq!(cutover.jobs(), "501", "{report}");
}

/// The journal is what this program syncs with `fdatasync` in its first thread.
#[test]
fn killed_in_the_middle_of_a_cluster_it_goes_on_to_its_end() {
    if let Err(why) = strace_works() {
        pgark_testkit::skip!("{why}");
    }
    let cutover = cutover_or_skip!("inplace-killed");
    let pgark = cutover.in_place(&[]);
    pgark.json(["backup"]);
    let words = ["recover", "--json", "--yes"];
    let resume = |what: &str, rows: &str| {
        let journal = cutover.reports.join("recovery-main.journal");
        if journal.exists() {
            assert!(
                cutover.site.cluster.data_dir().join("PG_VERSION").exists() || cutover.aside("before").len() == 1,
                "{what}: what was there is gone"
            );
            gone_on_with(&pgark, what);
        }
        assert_eq!(cutover.jobs(), rows, "{what}");
        assert!(cutover.site.cluster.psql("show archive_command").contains("archive-push"), "{what}");
        assert!(cutover.app.runs(), "{what}");
        assert!(cutover.aside("before").len() == 1 && cutover.aside("failed").is_empty(), "{what}");
        let calls = cutover.app.calls();
        let starts = calls.iter().filter(|c| c.contains("--replicas=1")).count();
        assert!(starts == 1 && calls.iter().filter(|c| *c == "tell").count() <= 1, "{what}: {calls:?}");
        cutover.tidy_up();
    };
    let mut rows = 500;
    // Of the first thread alone: the servers that it starts live on.
    for when in writes(&[9, 17, 21, 33]) {
        rows += 1;
        cutover.site.cluster.psql_db("transformation", &format!("insert into jobs values ({rows}, 'more')"));
        let outcome = killed_alone(&pgark, Point { syscall: "fdatasync", when }, &words);
        let is_over = outcome.succeeded();
        assert!(!is_over || full_sweep(), "it ended before {when}: {outcome}");
        if !is_over && cutover.aside("before").is_empty() && !cutover.reports.join("recovery-main.journal").exists() {
            // Before its first line: nothing was begun.
            continue;
        }
        resume(&format!("at {when}"), &rows.to_string());
        if is_over {
            break;
        }
    }

    // Killed when something of a step is there already: the directory put aside, files restored, a server that recovers, one that serves.
    let data = cutover.site.cluster.data_dir().to_owned();
    let serves = || {
        let opts = fs::read_to_string(data.join("postmaster.opts")).unwrap_or_default();
        !cutover.aside("before").is_empty() && !opts.is_empty() && !opts.contains("pgark-hba.conf")
    };
    let seen: [(&str, &dyn Fn() -> bool); 4] = [
        ("aside", &|| !cutover.aside("before").is_empty()),
        ("files", &|| data.join("pgark-restore.incomplete").exists()),
        ("replay", &|| data.join("pgark-recovery.pid").exists()),
        ("serve", &serves),
    ];
    for (what, is_there) in seen {
        rows += 1;
        cutover.site.cluster.psql_db("transformation", &format!("insert into jobs values ({rows}, 'more')"));
        let mut running = pgark.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        // It may be too fast to be seen; then it ends well.
        let mut over = || is_there() || running.try_wait().expect("a state").is_some();
        wait_until(what, SECONDS, || over().then_some(()));
        running.kill().expect("kill");
        running.wait().expect("its end");
        resume(what, &rows.to_string());
    }

    // Given up in the middle: what was there is there, and runs; the application does not.
    cutover.site.cluster.psql_db("transformation", "insert into jobs values (9999, 'last')");
    let outcome = traced(&pgark, Point { syscall: "fdatasync", when: 21 }, Fault::Kill, &words);
    assert!(!outcome.succeeded(), "{outcome}");
    let report = pgark.run(["recover", "--abandon", "--yes", "--json"]).expect_code(5).json();
    assert_eq!(report["state"], "abandoned", "{report}");
    assert_eq!(cutover.jobs(), (rows + 1).to_string());
    assert!(!cutover.app.runs() && cutover.aside("before").is_empty());
}

/// Between two of them lies one step, or a part of one; of the first thread alone, so that the servers it starts live on.
#[test]
fn killed_on_its_way_to_a_new_instance_it_goes_on_or_is_given_up() {
    if let Err(why) = strace_works() {
        pgark_testkit::skip!("{why}");
    }
    let cutover = cutover_or_skip!("cutover-killed");
    let pgark = cutover.by_file(&[]);
    pgark.json(["backup"]);
    // Before the segment ends: what comes behind its end is not archived.
    let before = cutover.site.cluster.psql("select pg_current_wal_insert_lsn()");
    cutover.site.archive_all();
    let words = ["recover", "--json", "--yes", "--target-timeline", "1", "--target-lsn", &before];
    let journal = cutover.reports.join("recovery-main.journal");
    let old = cutover.site.cluster.data_dir().join("PG_VERSION");
    // Whether it was killed there; false: it had ended before.
    let strike = |when: u32| {
        cutover.as_before();
        let outcome = killed_alone(&pgark, Point { syscall: "fdatasync", when }, &words);
        assert!(old.exists() && !outcome.stdout.contains("refused"), "at {when}: {outcome}");
        assert!(!outcome.succeeded() || full_sweep(), "it ended before {when}: {outcome}");
        !outcome.succeeded()
    };
    for when in writes(&[14, 27, 31, 33]) {
        // Gone on with.
        if !strike(when) {
            break;
        }
        if !journal.exists() {
            continue;
        }
        gone_on_with(&pgark, &format!("at {when}"));
        assert_eq!(cutover.ask_new("select count(*) from jobs"), "500", "at {when}");
        assert!(cutover.ask_new("show archive_command").contains("archive-push"), "at {when}");
        let settings = fs::read_to_string(cutover.app.settings()).expect("settings");
        assert!(settings.contains(&format!("\nDB_PORT={PORT}\n")), "at {when}: {settings}");
        let calls = cutover.app.calls();
        let starts = calls.iter().filter(|c| c.contains("--replicas=1")).count();
        assert!(starts == 1 && calls.iter().filter(|c| *c == "tell").count() <= 1, "at {when}: {calls:?}");
        assert!(cutover.app.runs() && old.exists() && !old.with_file_name("postmaster.pid").exists(), "at {when}");

        // Given up: the old one is as it was, nothing points to the new one, and nobody has started the application.
        strike(when);
        if !journal.exists() {
            continue;
        }
        let outcome = pgark.run(["recover", "--abandon", "--yes", "--json"]);
        let report = outcome.json();
        let points_to_new = || cutover.ask_new("select count(*) from jobs") == "500" && cutover.app.runs();
        match report["failure"]["step"].as_str() {
            // There was nothing left to be given up, or nothing but telling of it.
            None if report["error"]["code"] == "E-RECOVER-NONE" || report["state"] == "restored" => {
                assert!(points_to_new(), "at {when}: {report}");
                continue;
            }
            // The service was back: it stays, and archives nothing.
            Some("adopt") => {
                assert!(outcome.code == Some(5) && points_to_new(), "at {when}: {report}");
                assert!(report["left"].to_string().contains("ALTER SYSTEM RESET"), "at {when}: {report}");
                let listed = pgark.run(["report", "list"]).expect_code(0).stdout;
                assert!(listed.contains("restored, and not adopted (abandoned)"), "at {when}: {listed}");
                continue;
            }
            _ => assert_eq!((&report["state"], outcome.code), (&"abandoned".into(), Some(5)), "at {when}: {report}"),
        }
        assert_eq!(fs::read_to_string(cutover.app.settings()).expect("settings"), cutover.settings, "at {when}");
        // One that was fenced stays so until somebody starts it.
        let stays_stopped = report["left"].to_string().contains("stays stopped");
        assert_eq!(cutover.old_serves(), !stays_stopped, "at {when}: {report}");
        if stays_stopped {
            cutover.start_old();
        }
        assert_eq!(cutover.jobs(), "500", "at {when}: {report}");
        assert!(!cutover.new.data.join("postmaster.pid").exists(), "at {when}: {report}");
        // In the middle of that step it may go either way.
        let stopped = outcome_of(&report, "stop") == "done";
        assert!(!cutover.app.runs() || !stopped, "at {when}: {report}");
    }
    cutover.as_before();
}
