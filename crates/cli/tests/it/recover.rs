//! Guided recovery of `examples/imaging.toml`: a real application on a real database, stopped, restored under, and started; in a
//! world that lies, and struck in the middle.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgark_testkit::{
    Application, Damage, Damaged, Fault, Mood, Outcome, Pgark, Point, objects_under, strace_works, traced, wait_until,
};
use serde_json::Value;

use crate::site::{Site, alerts_into, writes};

const EXAMPLE: &str = include_str!("../../../../examples/imaging.toml");

const SECONDS: Duration = Duration::from_secs(60);

pub struct Imaging {
    pub app: Application,
    pub site: Site,
    reports: PathBuf,
}

impl Imaging {
    pub fn new(label: &str) -> Option<Imaging> {
        let server = pgark_testkit::Server::installed().ok()?;
        let site = Site::small(&server, label);
        site.cluster.psql("create database imaging");
        site.cluster.psql("create role pgark_check login");
        site.cluster.psql_db(
            "imaging",
            "create table studies as select i, 'study ' || i as name from generate_series(1, 500) i; grant select on studies to pgark_check",
        );
        let settings = format!(
            "DB_HOST={}\nDB_PORT={}\nDB_NAME=imaging\n",
            site.cluster.socket_dir().display(),
            site.cluster.port()
        );
        let app = Application::new(&site.scratch, "app", &settings, "studies");
        app.start();
        let reports = site.scratch.dir("reports");
        Some(Imaging { app, site, reports })
    }

    /// The example with the places of this test, and these replacements.
    pub fn pgark(&self, more: &[(&str, &str)]) -> Pgark {
        let (site, program) = (&self.site, self.app.program().display().to_string());
        let address = format!("127.0.0.1:{}", self.app.port());
        let places = [
            ("/mnt/backup/imaging", site.pgark.repo().display().to_string()),
            ("/etc/pgark/passphrase", site.pgark.passphrase_file().display().to_string()),
            ("/var/run/postgresql", site.cluster.socket_dir().display().to_string()),
            ("port = 5432", format!("port = {}", site.cluster.port())),
            ("/var/log/pgark", self.reports.display().to_string()),
            ("/usr/local/bin/imaging", program.clone()),
            ("[\"/usr/local/bin/tell-administrators\"]", format!("[\"{program}\", \"tell\"]")),
            ("127.0.0.1:8042", address),
            ("steady_for = \"5s\"", "steady_for = \"1s\"".to_owned()),
        ];
        let places = places.iter().map(|(from, to)| (*from, to.as_str())).chain(more.iter().copied());
        let text = places.fold(EXAMPLE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let text = alerts_into(&site.scratch.join("told"), &text);
        let config = site.scratch.file("pgark.toml", text.as_bytes(), 0o600);
        let bare = ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE"];
        bare.iter().fold(site.pgark.clone(), |pgark, name| pgark.without_env(name)).env("PGARK_CONFIG", config)
    }

    fn back_up(&self, pgark: &Pgark) -> String {
        pgark.json(["backup", "--kind", "logical"])["id"].as_str().expect("an id").to_owned()
    }

    pub fn psql(&self, sql: &str) -> String {
        self.site.cluster.psql_db("imaging", sql)
    }

    fn databases(&self, like: &str) -> Vec<String> {
        let sql = format!("select datname from pg_database where datname like '{like}' order by 1");
        self.site.cluster.psql(&sql).lines().map(str::to_owned).collect()
    }

    /// What earlier recoveries left on purpose.
    fn tidy_up(&self) {
        for name in [self.databases("pgark_replaced%"), self.databases("pgark_restore%")].concat() {
            self.site.cluster.psql(&format!("drop database \"{name}\""));
        }
        self.app.be(None);
        if !self.app.runs() {
            self.app.start();
        }
        self.app.calls();
    }
}

fn site_config(imaging: &Imaging) -> String {
    imaging.site.scratch.join("pgark.toml").display().to_string()
}

fn recover(pgark: &Pgark, more: &[&str]) -> Outcome {
    pgark.run([&["recover", "--json", "--yes"], more].concat())
}

fn steps(report: &Value) -> Vec<(&str, &str)> {
    let word = |step: &'_ Value, name: &str| -> &'_ str { step[name].as_str().unwrap_or("?").to_owned().leak() };
    report["steps"].as_array().into_iter().flatten().map(|s| (word(s, "name"), word(s, "outcome"))).collect()
}

fn outcome_of(report: &Value, step: &str) -> String {
    steps(report).into_iter().find(|(name, _)| *name == step).map_or("absent", |(_, outcome)| outcome).to_owned()
}

macro_rules! imaging_or_skip {
    ($label:expr) => {
        match Imaging::new($label) {
            Some(imaging) => imaging,
            None => pgark_testkit::skip!("no PostgreSQL server is installed"),
        }
    };
}

#[test]
fn an_imaging_service_is_recovered_end_to_end() {
    let imaging = imaging_or_skip!("recover");
    let (pgark, app) = (imaging.pgark(&[]), &imaging.app);
    let first = imaging.back_up(&pgark);

    // The plan: nothing was measured, nothing is touched.
    let plan = pgark.run(["recover", "--plan", "--json"]).expect_code(0).json();
    assert_eq!((&plan["backup"], &plan["complete"]), (&first.as_str().into(), &false.into()), "{plan}");
    assert!(plan["steps"].as_array().is_some_and(|s| s.len() == 12 && s.iter().all(|s| s["expected_ms"].is_null())));
    assert!(pgark.run(["recover", "--plan"]).expect_code(0).stdout.contains("unknown"));
    pgark.run(["recover", "--json"]).expect_code(4);
    pgark.run(["recover", "--resume", "--yes"]).expect_code(4);
    let nobody = imaging.pgark(&[("operators = [\"postgres\", \"root\"]", "operators = [\"somebody\"]")]);
    let refused = recover(&nobody, &[]).expect_code(4).json();
    assert_eq!((&refused["state"], &refused["failure"]["code"]), (&"refused".into(), &"E-RECOVER-OPERATOR".into()));
    assert_eq!(app.calls(), ["tell"], "{refused}");
    assert!(app.runs() && imaging.databases("pgark%").is_empty());

    // The written procedure is of this configuration.
    let text = imaging.pgark(&[]).run(["runbook", "render"]).expect_code(0).stdout;
    let config = site_config(&imaging);
    for wanted in [
        "# Recovery of main",
        "## Corruption",
        "## Accidental deletion",
        "## Loss of everything",
        "## Ransomware",
        "+49 30 555 0142",
        &format!("pgark recover ID --declared 'TIME' --reason 'accidental deletion' -c main --config {config}"),
        "| unknown |",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    let page = imaging.site.scratch.join("reports/runbook.html");
    let words = ["runbook", "render", "--format", "html", "--to", &page.display().to_string()].map(str::to_owned);
    imaging.pgark(&[]).run(&words).expect_code(0);
    assert!(fs::read_to_string(&page).expect("a page").contains("<h2>Ransomware</h2>"));
    imaging.pgark(&[]).run(&words).expect_code(1);

    // The disaster, and the way back.
    let pgark = imaging.pgark(&[]);
    imaging.psql("delete from studies where i > 10; create table made_since (i int)");
    let report = recover(&pgark, &["--reason", "studies are gone"]).expect_code(0).json();
    assert_eq!((&report["state"], &report["backup"]), (&"restored".into(), &first.as_str().into()), "{report}");
    assert!(steps(&report).iter().all(|(name, outcome)| *outcome == "done" || *name == "notify"), "{report}");
    assert_eq!((&report["rpo"]["met"], &report["rto"]["met"]), (&true.into(), &true.into()), "{report}");
    assert_eq!(report["validation"]["outcome"], "ok", "{report}");
    assert_eq!(app.calls(), ["stop", "start", "tell"]);
    assert!(app.runs() && app.told().contains("\"studies are gone\"") && app.told().contains("\"restored\""));
    assert_eq!(imaging.psql("select count(*) from studies"), "500");
    let kept = imaging.databases("pgark%");
    assert!(kept.len() == 1 && kept[0].starts_with(&format!("pgark_replaced_{first}_")), "{kept:?}");
    let file = report["report_file"].as_str().expect("files");
    let read = |ending: &str| fs::read_to_string(format!("{file}.{ending}")).expect("a report");
    assert_eq!(serde_json::from_str::<Value>(&read("json")).expect("JSON")["id"], report["id"]);
    assert!(read("md").contains("# Recovery: RESTORED") && read("md").contains("studies are gone"));
    assert!(read("html").contains("RESTORED") && read("html").contains("objective 4h 0m met"));
    let stored = report["stored"].as_str().expect("stored");
    let shown = pgark.run(["report", "show", stored]).expect_code(0).stdout;
    assert!(shown.contains("# Recovery: RESTORED"), "{shown}");
    assert!(!imaging.reports.join("recovery-main.journal").exists());

    // The next one knows how long it takes, takes the older backup when the newer is damaged, and says what is lost with it.
    let measured = pgark.run(["recover", "--plan", "--json"]).json();
    let known = measured["steps"].as_array().into_iter().flatten().filter(|s| s["expected_ms"].is_u64());
    assert!(known.count() >= 8, "{measured}");
    imaging.tidy_up();
    imaging.psql("insert into studies select 1000 + i, 'new' from generate_series(1, 300) i");
    let second = imaging.back_up(&pgark);
    let strict = imaging.pgark(&[("rpo = \"24h\"", "rpo = \"1ms\""), ("rto = \"4h\"", "rto = \"10ms\"")]);
    let packs: Vec<PathBuf> = objects_under(&pgark.repo().join(format!("clusters/main/backups/{second}")));
    let largest = packs.iter().max_by_key(|p| fs::metadata(p).map(|m| m.len()).unwrap_or(0)).expect("objects").clone();
    let _damage = Damaged::apply(&largest, &Damage::FlipBit { per_mille: 500 });
    // The clock runs since somebody declared it.
    let incident =
        strict.json(["incident", "open", "--reason", "the disk is gone"])["incidents"][0]["incident"].clone();
    let report = recover(&strict, &[]).expect_code(3).json();
    assert_eq!(report["declared"], incident["declared"], "{report} {incident}");
    assert!(report["reason"].as_str().is_some_and(|r| r.contains("the disk is gone")), "{report}");
    let told = strict.json(["audit", "show", "--last", "1"])["events"][0].clone();
    let missed = |a: &Value| a["what"] == "rto" && a["id"] == "missed";
    assert!(
        told["command"] == "recover" && told["end"]["about"].as_array().is_some_and(|a| a.iter().any(missed)),
        "{told}"
    );
    strict.run(["incident", "close", incident["id"].as_str().expect("an id")]).expect_code(0);
    assert_eq!((&report["state"], &report["backup"]), (&"restored".into(), &first.as_str().into()), "{report}");
    assert_eq!((&report["rpo"]["met"], &report["rto"]["met"]), (&false.into(), &false.into()), "{report}");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("DEGRADED") && warnings.contains("recovery point objective was missed"), "{warnings}");
    let file = report["report_file"].as_str().expect("files");
    assert!(fs::read_to_string(format!("{file}.md")).expect("a report").contains("## Post-mortem"));
    assert_eq!(app.calls(), ["stop", "tell", "start", "tell"], "that the objective is missed is told at once");
    assert_eq!(imaging.psql("select count(*) from studies"), "500");
}

#[test]
fn a_world_that_lies_gets_the_right_verdict() {
    let imaging = imaging_or_skip!("recover-lies");
    let (pgark, app) = (imaging.pgark(&[("stop_timeout = \"30s\"", "stop_timeout = \"2s\"")]), &imaging.app);
    imaging.back_up(&pgark);
    imaging.psql("delete from studies where i > 10");
    let oid = || imaging.site.cluster.psql("select oid from pg_database where datname = 'imaging'");
    let live = oid();

    // It says that it stopped, and lives.
    app.be(Some(Mood::Stubborn));
    let report = recover(&pgark, &[]).expect_code(1).json();
    assert_eq!((&report["state"], &report["failure"]["code"]), (&"not_stopped".into(), &"E-SERVICE-STOP".into()));
    assert_eq!(outcome_of(&report, "restore"), "not_reached");
    assert!(app.runs() && oid() == live && imaging.databases("pgark%").is_empty());
    assert_eq!(app.calls(), ["stop", "tell"], "nothing is started");
    imaging.tidy_up();

    // Validation hangs: the old database serves on, closed to nobody, and the application is not started.
    let slow = imaging.pgark(&[
        ("select count(*) > 0 from studies", "select pg_sleep(3600) is null"),
        ("restore_timeout = \"3h\"", "check_timeout = \"2s\""),
        ("[\"postgres\", \"root\"]", "[]"),
    ]);
    let report = recover(&slow, &[]).expect_code(21).json();
    assert_eq!((&report["state"], &report["failure"]["code"]), (&"halted".into(), &"E-RECOVER-VALIDATION".into()));
    assert!(oid() == live && !app.runs());
    assert_eq!(app.calls(), ["stop", "tell"], "{report}");
    imaging.tidy_up();

    // A watchdog starts the application while the dump is loaded: it is stopped once more before names are exchanged.
    let slow = imaging.pgark(&[("select count(*) > 0 from studies", "select count(*) > 0 from studies, pg_sleep(3)")]);
    let words = ["recover", "--json", "--yes", "--no-safety-backup"];
    let running = slow.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
    wait_until("the database to be loaded", SECONDS, || {
        (!imaging.databases("pgark_restore%").is_empty()).then_some(())
    });
    app.start();
    let output = running.wait_with_output().expect("its end");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!((output.status.code(), &report["state"]), (Some(3), &"restored".into()), "{report}");
    assert!(report["warnings"].to_string().contains("somebody started"), "{report}");
    assert_eq!(app.calls(), ["stop", "stop", "start", "tell"]);
    assert_eq!(imaging.psql("select count(*) from studies"), "500");
    imaging.tidy_up();
    imaging.psql("delete from studies where i > 10");
    let live = oid();

    // What was restored is not what the administrators expect.
    let wrong = imaging.pgark(&[("select count(*) > 0 from studies", "select count(*) = 10 from studies")]);
    let report = recover(&wrong, &["--no-safety-backup"]).expect_code(21).json();
    assert_eq!((&report["state"], &report["validation"]["outcome"]), (&"halted".into(), &"failed".into()), "{report}");
    assert_eq!(outcome_of(&report, "safety_backup"), "absent");
    assert!(oid() == live && !app.runs() && imaging.databases("pgark_restore%").len() == 1);
    assert_eq!(imaging.psql("select count(*) from studies"), "10");
    let listed = wrong.run(["report", "list", "--severity", "incident"]).expect_code(0).stdout;
    assert!(listed.contains("recover") && listed.contains("NOT restored"), "{listed}");
    imaging.tidy_up();

    // It starts and dies after three seconds; meanwhile whoever is told floods, and fails.
    let flooded = imaging.pgark(&[
        ("steady_for = \"1s\"", "steady_for = \"5s\""),
        (&format!("\"{}\", \"tell\"", app.program().display()), &format!("\"{}\", \"flood\"", app.program().display())),
    ]);
    app.be(Some(Mood::DiesAfter(Duration::from_secs(3))));
    let report = recover(&flooded, &[]).expect_code(1).json();
    assert_eq!((&report["state"], &report["failure"]["code"]), (&"not_started".into(), &"E-SERVICE-START".into()));
    assert_eq!(outcome_of(&report, "restore"), "done");
    assert!(report["warnings"].to_string().contains("E-RECOVER-NOTIFY"), "{report}");
    assert_eq!(imaging.psql("select count(*) from studies"), "500");
    assert_eq!(app.calls(), ["stop", "start", "flood"]);
    imaging.tidy_up();

    // It runs and answers that it failed. That nobody could be told changes nothing about a good one.
    app.be(Some(Mood::Confused));
    let report = recover(&imaging.pgark(&[]), &[]).expect_code(1).json();
    assert_eq!((&report["state"], &report["failure"]["step"]), (&"not_started".into(), &"smoke".into()), "{report}");
    assert!(report["failure"]["why"].as_str().is_some_and(|why| why.contains("status 500")), "{report}");
    imaging.tidy_up();
    imaging.site.cluster.psql("drop database imaging with (force)");
    let report = recover(&flooded, &[]).expect_code(0).json();
    assert_eq!(report["state"], "restored", "{report}");
    assert_eq!(imaging.psql("select count(*) from studies"), "500");
    assert!(imaging.databases("pgark%").is_empty(), "there was nothing to keep: {report}");
}

/// The journal is what this program syncs with `fdatasync` in its first thread.
#[test]
fn killed_at_a_write_of_the_journal_it_goes_on_to_its_end() {
    if let Err(why) = strace_works() {
        pgark_testkit::skip!("{why}");
    }
    let imaging = imaging_or_skip!("recover-killed");
    let (pgark, app) = (imaging.pgark(&[]), &imaging.app);
    imaging.back_up(&pgark);
    let words = ["recover", "--json", "--yes", "--no-safety-backup"];
    let (mut killed, mut ended) = (0, false);
    for when in writes(&[4, 7, 10, 13]) {
        imaging.tidy_up();
        imaging.psql("delete from studies where i > 10");
        let outcome = traced(&pgark, Point { syscall: "fdatasync", when }, Fault::Kill, &words);
        if outcome.succeeded() {
            ended = true;
            break;
        }
        killed += 1;
        let journal = imaging.reports.join("recovery-main.journal");
        if !journal.exists() {
            continue;
        }
        // Nobody begins another one meanwhile.
        let refused = pgark.run(["recover", "--yes"]);
        if refused.stderr.contains("E-RECOVER-UNFINISHED") {
            assert_eq!(refused.code, Some(4), "{refused}");
            let report = pgark.run(["recover", "--resume", "--yes", "--json"]).expect_code(0).json();
            assert_eq!(report["state"], "restored", "at {when}: {report}");
            assert_eq!(report["resumed"].as_array().map(Vec::len), Some(1), "{report}");
        } else {
            // Killed behind its last line: it had ended, and that was another one.
            refused.expect_code(0);
            assert_eq!(
                (imaging.psql("select count(*) from studies"), app.runs()),
                ("500".to_owned(), true),
                "at {when}"
            );
            ended = true;
            break;
        }
        assert_eq!(imaging.psql("select count(*) from studies"), "500", "at {when}");
        let calls = app.calls();
        assert!(calls.iter().filter(|c| *c == "start").count() == 1, "at {when}: {calls:?}");
        assert!(calls.iter().filter(|c| *c == "tell").count() <= 1, "at {when}: {calls:?}");
        assert!(app.runs() && imaging.databases("pgark_restore%").is_empty(), "at {when}");
    }
    assert!(killed >= 4 || ended, "only {killed} points");

    // Killed while it loads, and about when it exchanges: nothing of it is done twice, and what was there is kept once. Whoever
    // started the application meanwhile has it stopped again.
    for like in ["pgark\\_restore%", "pgark\\_replaced%"] {
        imaging.tidy_up();
        imaging.psql("delete from studies where i > 10");
        let mut running = pgark.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        // It may be too fast to be seen; then it ends well.
        let mut seen = || !imaging.databases(like).is_empty() || running.try_wait().expect("a state").is_some();
        wait_until("the database", SECONDS, || seen().then_some(()));
        running.kill().expect("kill");
        running.wait().expect("its end");
        let loading = imaging.databases("pgark\\_replaced%").is_empty();
        if imaging.reports.join("recovery-main.journal").exists() {
            if loading {
                app.start();
            }
            let outcome = pgark.run(["recover", "--resume", "--yes", "--json"]);
            assert!(outcome.succeeded(), "{like}: {outcome}");
            let report = outcome.json();
            assert_eq!(report["state"], "restored", "{like}: {report}");
            let stops = app.calls().iter().filter(|c| *c == "stop").count();
            assert_eq!(stops, if loading { 2 } else { 1 }, "{like}: {report}");
        }
        assert_eq!(imaging.psql("select count(*) from studies"), "500", "{like}");
        assert!(app.runs() && imaging.databases("pgark\\_restore%").is_empty(), "{like}");
        let kept = imaging.databases("pgark\\_replaced%");
        assert_eq!(kept.len(), 1, "{like}");
        imaging.site.cluster.psql(&format!("alter database \"{}\" allow_connections true", kept[0]));
        assert_eq!(imaging.site.cluster.psql_db(&kept[0], "select count(*) from studies"), "10", "{like}");
    }

    // Asked to stop in the middle of starting the application: nothing has failed, and it is gone on with.
    imaging.tidy_up();
    imaging.psql("delete from studies where i > 10");
    let patient = imaging.pgark(&[("steady_for = \"1s\"", "steady_for = \"6s\"")]);
    let mut running = patient.command(words).stdout(Stdio::null()).spawn().expect("it runs");
    wait_until("the application to stop", SECONDS, || (!app.runs()).then_some(()));
    wait_until("the application to start", SECONDS, || app.runs().then_some(()));
    let told = Command::new("kill").args(["-TERM", &running.id().to_string()]).status().expect("kill");
    assert!(told.success() && running.wait().expect("its end").code() == Some(5));
    let report = patient.run(["recover", "--resume", "--yes", "--json"]).expect_code(0).json();
    assert_eq!(
        (&report["state"], app.calls().join(" ")),
        (&"restored".into(), "stop start tell".to_owned()),
        "{report}"
    );

    // Given up: what was there before serves on, and nothing is started.
    imaging.tidy_up();
    imaging.psql("delete from studies where i > 10");
    let outcome = traced(&pgark, Point { syscall: "fdatasync", when: 9 }, Fault::Kill, &words);
    assert!(!outcome.succeeded(), "{outcome}");
    // By one at a time: whoever holds the journal is at it.
    let held = fs::File::open(imaging.reports.join("recovery-main.journal")).expect("the journal");
    held.lock().expect("nobody is at it any more");
    for wish in ["--resume", "--abandon"] {
        let other = pgark.run(["recover", wish, "--yes", "--json"]).expect_code(4).json();
        assert_eq!(other["error"]["code"], "E-RECOVERY-RUNNING", "{other}");
    }
    drop(held);
    let report = pgark.run(["recover", "--abandon", "--yes", "--json"]).expect_code(5).json();
    assert_eq!((&report["state"], &report["in_place"]), (&"abandoned".into(), &false.into()), "{report}");
    assert!(!app.runs() && imaging.databases("pgark_restore%").is_empty(), "{report}");
    assert_eq!(imaging.psql("select count(*) from studies"), "10");

    // Given up when what was restored is in its place already: that is said, and where the old one is.
    imaging.tidy_up();
    let mut running = patient.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    let exchanged = || !imaging.databases("pgark\\_replaced%").is_empty();
    wait_until("the database", SECONDS, || exchanged().then_some(()));
    running.kill().expect("kill");
    running.wait().expect("its end");
    let report = patient.run(["recover", "--abandon", "--yes", "--json"]).expect_code(5).json();
    assert_eq!((&report["state"], &report["in_place"]), (&"abandoned".into(), &true.into()), "{report}");
    assert!(!app.runs() && imaging.psql("select count(*) from studies") == "500", "{report}");
    let left = report["left"].to_string();
    assert!(left.contains("pgark_replaced_") && left.contains("when the application is started"), "{report}");
    let listed = pgark.run(["report", "list", "--severity", "incident"]).expect_code(0).stdout;
    assert!(listed.contains("restored, and the service is NOT back (abandoned)"), "{listed}");
}
