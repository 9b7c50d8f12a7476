//! The dashboard in a real browser, as somebody uses it: sign in, see how things stand, plan a restore from the timeline, run a
//! backup and watch it, read what a drill found; and whether those who do not see it, or have no mouse, can use it too.

use std::path::PathBuf;

use pgark_testkit::{Browser, as_postgres, connection_string};
use serde_json::{Value, json};

use crate::recover_cluster::Instance;
use crate::serve::{Serving, configured, token, until};
use crate::site::Site;

const NARROW: u32 = 390;
const WIDE: u32 = 1280;

/// A browser on a running server, and what was found on the way.
struct Visit<'a> {
    browser: Browser,
    serving: &'a Serving,
    faults: Vec<String>,
}

impl Visit<'_> {
    fn open(&self, path: &str) {
        self.browser.open(&format!("http://{}{path}", self.serving.address));
    }

    /// Looks for faults, light and dark, wide and narrow; with PGARK_TEST_PICTURES=DIR it also takes pictures.
    fn examine(&mut self, name: &str) {
        let pictures = std::env::var_os("PGARK_TEST_PICTURES").map(PathBuf::from);
        for (width, theme) in [(WIDE, "dark"), (NARROW, "light"), (WIDE, "light")] {
            self.browser.surroundings(width, theme);
            let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
            if self.browser.value(overflow).as_i64() != Some(0) {
                self.faults.push(format!("{name}, {width}: the page is wider than the window"));
            }
            if (width, theme) != (NARROW, "light") {
                let found = self.browser.serious_faults();
                self.faults.extend(found.into_iter().map(|fault| format!("{name}, {theme}: {fault}")));
            }
            if let Some(dir) = &pictures {
                std::fs::write(dir.join(format!("{name}-{theme}-{width}.png")), self.browser.picture())
                    .expect("written");
            }
        }
    }
}

#[test]
fn somebody_signs_in_plans_a_restore_and_watches_a_backup() {
    let server = installed_or_skip!();
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(why) => pgark_testkit::skip!("{why}"),
    };
    let site = Site::small(&server, "dashboard");
    let dir = site.scratch.dir("drill");
    pgark_testkit::give_to_postgres(&dir);
    let more = format!(
        "[local]\nstate_dir = \"{}\"\n[clusters.main.drill]\ndir = \"{}\"\n[[schedules]]\njob = \"backup\"\ncluster = \"main\"\n\
         cron = \"@yearly\"\n",
        site.scratch.join("local").display(),
        dir.display()
    );
    let (pgark, _) = configured(&site, &more);
    let first = site.pgark.backup("full");
    // The form knows moments by the second: the last one is to lie after the backup.
    site.cluster.psql("select pg_sleep(1.1)");
    site.cluster.psql("create table t as select generate_series(1, 1000) as n");
    site.cluster.psql("select pg_create_restore_point('before the release')");
    site.archive_all();
    let password = site.scratch.file("password", b"canary of a password", 0o600).display().to_string();
    pgark.run(["user", "add", "ada", "--role", "operator", "--password-file", &password]).expect_code(0);
    let recovery = token(&pgark, "recovery-operator", &["-c", "main"]);
    let serving = Serving::start(&pgark);
    let mut visit = Visit { browser, serving: &serving, faults: vec![] };

    // Nobody sees anything who is not signed in, and everybody is brought to where they wanted to go.
    visit.open("/jobs");
    assert!(visit.browser.url().ends_with("/sign-in?next=%2Fjobs"), "{}", visit.browser.url());
    visit.examine("sign-in");
    visit.browser.type_into("#token", "pgark_wrong");
    visit.browser.press("Sign in with the token");
    visit.browser.wait_for("E-TOKEN");
    visit.browser.type_into("#name", "ada");
    visit.browser.type_into("#password", "canary of a password");
    visit.browser.press("Sign in");
    visit.browser.wait_for("There are no jobs.");
    assert_eq!(visit.browser.value("document.cookie"), "", "no script sees the session");

    // The first screen comes to know the cluster without being reloaded.
    visit.open("/");
    visit.browser.wait_for("Not proven");
    assert!(visit.browser.text().contains("RPO 1 h: kept"), "{}", visit.browser.text());
    assert!(visit.browser.text().contains("RTO 4 h: not checked"), "{}", visit.browser.text());
    visit.examine("first");

    // A backup is started, and seen to end, on its page.
    visit.browser.press("main");
    visit.browser.wait_for(&first);
    visit.browser.press("Full backup");
    visit.browser.wait_for("What it printed");
    visit.examine("job");
    let link = visit.browser.value("document.querySelector('#result-h ~ p a').getAttribute('href')");
    let link = link.as_str().expect("a link to the backup").to_owned();
    visit.open("/clusters/main/backups");
    visit.browser.wait_for(link.rsplit('/').next().expect("an id"));
    visit.open(&link);
    visit.browser.wait_for("Everything that is known of it");
    visit.examine("backup");

    // A drill; its report is read from the repository.
    visit.open("/clusters/main/reports");
    visit.browser.press("Rehearse a recovery");
    visit.browser.wait_for("Exit code");
    visit.open("/clusters/main/reports");
    until("the report", || (visit.browser.value("document.querySelectorAll('tbody th a').length") != 0).then_some(()));
    visit.browser.value("document.querySelector('tbody th a').click()");
    visit.browser.wait_for("Recovery took (RTO)");
    assert!(visit.browser.text().contains("Checks"), "{}", visit.browser.text());
    visit.examine("report");

    // A click in the timeline is a moment in the form; the plan says how, and who may, and where it cannot be.
    visit.open("/clusters/main");
    visit.browser.wait_for("Newest backups");
    visit.examine("cluster");
    let ends = visit.browser.value("document.querySelector('[data-moment]').value");
    visit.browser.click("[data-timeline]");
    let clicked = visit.browser.value("document.querySelector('[data-moment]').value");
    assert_ne!(ends, clicked, "the click chose a moment");
    visit.browser.press("Show the plan");
    visit.browser.wait_for("E-");
    assert!(visit.browser.text().contains("This cannot be done"), "{}", visit.browser.text());
    visit.browser.value("history.back()");
    visit.browser.wait_for("Newest backups");
    visit.browser.value(&format!("document.querySelector('[data-moment]').value = {ends}"));
    visit.browser.press("Show the plan");
    visit.browser.wait_for("This can be done");
    assert!(visit.browser.text().contains("pgark restore --to=DIR --target-time="), "{}", visit.browser.text());
    assert!(visit.browser.text().contains("takes the role recovery-operator"), "{}", visit.browser.text());
    visit.examine("plan");

    for (name, path) in [
        ("jobs", "/jobs"),
        ("backups", "/clusters/main/backups"),
        ("charts", "/clusters/main/charts"),
        ("audit", "/clusters/main/audit"),
        ("alerts", "/alerts"),
        ("schedules", "/schedules"),
        ("settings", "/settings"),
    ] {
        visit.open(path);
        visit.examine(name);
    }
    for secret in ["correct horse battery staple", "canary of a password"] {
        assert!(!visit.browser.text().contains(secret), "settings show a secret");
    }

    // Another one, who may restore: by restore point, into a new directory, through the same form.
    visit.browser.click(".who form button");
    visit.browser.wait_for("Sign in");
    visit.browser.type_into("#token", &recovery);
    visit.browser.press("Sign in with the token");
    visit.browser.wait_for("Can we recover?");
    visit.open("/clusters/main/plan?name=before%20the%20release");
    visit.browser.wait_for("Restore on this server");
    let to = site.scratch.join("restored");
    visit.browser.type_into("#to", &to.display().to_string());
    visit.browser.type_into("#confirm", "other");
    visit.browser.click("button.danger");
    visit.browser.wait_for("E-CONFIRM");
    visit.browser.value("history.back()");
    visit.browser.wait_for("Restore on this server");
    visit.browser.value("document.querySelectorAll('#to, #confirm').forEach((field) => { field.value = ''; })");
    visit.browser.type_into("#to", &to.display().to_string());
    visit.browser.type_into("#confirm", "main");
    visit.examine("restore");
    visit.browser.click("button.danger");
    visit.browser.wait_for("Exit code");
    assert!(to.join("PG_VERSION").exists(), "{}", visit.browser.text());

    let complaints = visit.browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(visit.faults.is_empty(), "{:#?}", visit.faults);
    drop(visit);
    serving.drained();
}

#[test]
fn somebody_looks_after_an_alert_makes_a_token_and_recovers_with_a_second_person() {
    let server = installed_or_skip!();
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(why) => pgark_testkit::skip!("{why}"),
    };
    let site = Site::small(&server, "dashboard-recover");
    let new = Instance { pg_ctl: server.program("pg_ctl"), data: site.scratch.join("recovered") };
    let (socket_dir, port) = (site.cluster.socket_dir(), site.cluster.port() + 1);
    let more = format!(
        "require_second_person = true\n[local]\nstate_dir = \"{}\"\n[alerts.sinks.all]\nkind = \"command\"\ncommand = [\"/bin/true\"]\n\
         [clusters.main.recover]\nkind = \"physical\"\nto = \"{}\"\nport = {port}\nsocket_dir = \"{}\"\nreport_dir = \"{}\"\n\
         [clusters.main.recover.server]\nsteady_for = \"1s\"\n",
        site.scratch.join("local").display(),
        new.data.display(),
        socket_dir.display(),
        site.scratch.dir("reports").display(),
    );
    let (pgark, _) = configured(&site, &more);
    site.pgark.backup("full");
    site.cluster.psql("select pg_sleep(1.1)");
    site.cluster.psql("create table t as select generate_series(1, 1000) as n");
    site.cluster.psql("select pg_create_restore_point('before the release')");
    site.cluster.psql("drop table t");
    site.archive_all();
    pgark.run(["incident", "open", "--reason", "the release dropped a table"]).expect_code(0);
    let admin = token(&pgark, "admin", &[]);
    let serving = Serving::start(&pgark);
    let mut visit = Visit { browser, serving: &serving, faults: vec![] };

    // Somebody looks after it: one button, and others see who.
    visit.open("/alerts");
    visit.browser.type_into("#token", &admin);
    visit.browser.press("Sign in with the token");
    visit.browser.wait_for("I look after it");
    visit.examine("alert");
    visit.browser.press("I look after it");
    visit.browser.wait_for("token admin");
    let alerts = pgark.json(["alert", "list"]);
    assert_eq!(alerts["alerts"][0]["acknowledged"]["by"], "token admin", "{alerts}");
    visit.examine("alert-looked-after");

    // A token for somebody else, which is shown once.
    visit.open("/tokens");
    visit.browser.type_into("#name", "second");
    visit.browser.value("document.querySelector('#role').value = 'recovery-operator'");
    visit.browser.click("input[name=cluster][value=main]");
    visit.examine("tokens");
    visit.browser.press("Make the token");
    visit.browser.wait_for("It is shown this once");
    visit.examine("token");
    let second = visit.browser.value("document.querySelector('#token').textContent");
    let second = second.as_str().expect("a token").to_owned();
    visit.open("/tokens");
    assert!(visit.browser.text().contains("second") && !visit.browser.text().contains(&second));

    // From the cluster's page to a plan; from the moment of a restore point to another one, and on.
    visit.open("/clusters/main");
    visit.browser.wait_for("Newest backups");
    visit.browser.press("Plan a guided recovery");
    visit.browser.wait_for("This can be done");
    let to = visit.browser.value("document.querySelector('input[name=target_time]').value");
    assert!(to.as_str().is_some_and(|to| to.ends_with('Z')), "{to}");
    let link = "[...document.querySelectorAll('details tbody a')].find((a) => a.getAttribute('href').includes('recover?name='))";
    until("the restore point", || {
        visit.open("/clusters/main");
        let href = visit.browser.value(&format!("{link}?.getAttribute('href') ?? ''"));
        (href == "/clusters/main/recover?name=before%20the%20release").then_some(())
    });
    visit.open("/clusters/main/recover?name=before%20the%20release");
    visit.browser.wait_for("A second person has to say yes");
    visit.examine("recover");
    visit.browser.type_into("#reason", "the release dropped a table");
    visit.browser.type_into("#confirm", "main");
    visit.browser.click("button.danger");
    visit.browser.wait_for("somebody else has to");
    assert!(!new.data.exists(), "nothing has begun");
    let job = visit.browser.url().replace(&format!("http://{}", serving.address), "");

    // The second person, with the token that was just made.
    visit.browser.click(".who form button");
    visit.browser.wait_for("With a token");
    visit.browser.type_into("#token", &second);
    visit.browser.press("Sign in with the token");
    visit.browser.wait_for("Can we recover?");
    visit.open(&job);
    visit.browser.press("Approve this job");
    visit.browser.wait_for("Exit code");
    visit.examine("recovered");
    let mut psql = as_postgres(server.program("psql"));
    psql.args(["-XAtq", "-c", "select count(*) from t", "-d", &connection_string(socket_dir, port, "postgres")]);
    let output = psql.output().expect("psql");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(said, "1000", "{} {}", String::from_utf8_lossy(&output.stderr), visit.browser.text());

    // Who it was stands in the audit trail.
    let trail = pgark.json(["audit", "show"]);
    let about = |command: &str| {
        let of = |e: &&Value| e["command"] == command;
        let event = trail["events"].as_array().into_iter().flatten().rfind(of).unwrap_or_else(|| panic!("{trail}"));
        event["end"]["about"].as_array().expect("ids").clone()
    };
    let is = |what: &str, id: &str| json!({"what": what, "id": id});
    assert!(about("alert").contains(&is("requested_by", "token admin")), "{trail}");
    for said in [is("requested_by", "token admin"), is("approved_by", "token second")] {
        assert!(about("recover").contains(&said), "{trail}");
    }
    let complaints = visit.browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(visit.faults.is_empty(), "{:#?}", visit.faults);
    drop(visit);
    serving.drained();
}
