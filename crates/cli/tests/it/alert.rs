//! Alerts against real receivers: each gets what it understands, nothing that was raised is lost, and no command fails of it.

use std::fs;
use std::time::Duration;

use pgark_testkit::{
    Alertmanager, Certificate, MailServer, Outcome, Pgark, Receiver, Scratch, give_to_postgres, objects_under,
    wait_until,
};
use serde_json::Value;

use crate::site::{BINARY, Site};

const LIMIT: Duration = Duration::from_secs(60);

/// A host with settings and without a repository: commands fail there, which is what people are told of.
struct Host {
    pgark: Pgark,
    scratch: Scratch,
}

impl Host {
    fn new(label: &str) -> Host {
        let scratch = Scratch::new(label);
        let pgark = Pgark::new(BINARY, &scratch, &scratch.join("repo")).without_env("PGARK_REPO");
        Host { pgark, scratch }
    }

    fn secret(&self, name: &str, text: &str) -> String {
        let path = self.scratch.join(name);
        if path.exists() {
            fs::remove_file(&path).expect("an old secret");
        }
        self.scratch.file(name, format!("{text}\n").as_bytes(), 0o600).display().to_string()
    }

    /// With these sinks, and no repository where one is configured.
    fn with(&self, alerts: &str) -> Pgark {
        let text = format!(
            "[repos.main]\nurl = '{}'\n[clusters.main]\nrepos = ['main']\n{alerts}",
            self.scratch.join("repo").display()
        );
        let path = self.scratch.join("pgark.toml");
        fs::write(&path, text).expect("settings");
        give_to_postgres(&path);
        self.pgark.clone().env("PGARK_CONFIG", path)
    }
}

fn alerts(pgark: &Pgark, more: &[&str]) -> Vec<Value> {
    pgark.json([&["alert", "list"], more].concat())["alerts"].as_array().expect("alerts").clone()
}

fn sent(outcome: Outcome) -> Value {
    outcome.json()
}

/// A drill without a repository: it fails, and the same way each time.
fn failing(pgark: &Pgark) -> Outcome {
    pgark.run(["backup", "--type", "full"]).expect_code(10)
}

#[test]
fn every_receiver_gets_what_it_understands() {
    let host = Host::new("alertshapes");
    let receiver = Receiver::start();
    let pgark = host.with(&format!(
        "[alerts.sinks.slack]\nkind = 'slack'\nurl_file = '{slack}'\n\
         [alerts.sinks.teams]\nkind = 'teams'\nurl_file = '{teams}'\n\
         [alerts.sinks.pd]\nkind = 'pagerduty'\nurl = '{pd}'\ntoken_file = '{token}'\n\
         [alerts.sinks.og]\nkind = 'opsgenie'\nurl = '{og}'\ntoken_command = ['cat', '{token}']\n\
         [alerts.sinks.hook]\nkind = 'webhook'\nurl = '{hook}'\nsecret_file = '{token}'\nseverity = 'critical'\n",
        slack = host.secret("slack", &receiver.url("/slack/geheim-canary")),
        teams = host.secret("teams", &receiver.url("/teams")),
        pd = receiver.url("/pd"),
        og = receiver.url("/og"),
        hook = receiver.url("/hook"),
        token = host.secret("token", "token-canary"),
    ));
    let outcome = failing(&pgark);
    let of = |path: &str, all: &[pgark_testkit::Received]| -> Vec<pgark_testkit::Received> {
        all.iter().filter(|r| r.path.starts_with(path)).cloned().collect()
    };
    let all = receiver.take();
    assert_eq!(all.len(), 5, "{all:?} {outcome}");
    assert!(!outcome.stderr.contains("canary") && !outcome.stdout.contains("canary"), "{outcome}");
    let id = alerts(&pgark, &[])[0]["id"].as_str().expect("an id").to_owned();
    let slack = of("/slack", &all)[0].json();
    assert!(slack["text"].as_str().is_some_and(|t| t.contains("CRITICAL main: backup failed")), "{slack}");
    assert_eq!(slack["attachments"][0]["fields"][0]["value"], "main", "{slack}");
    let teams = of("/teams", &all)[0].json();
    assert_eq!(teams["attachments"][0]["contentType"], "application/vnd.microsoft.card.adaptive");
    assert_eq!(teams["attachments"][0]["content"]["body"][0]["color"], "attention", "{teams}");
    let pd = of("/pd", &all)[0].json();
    assert_eq!((&pd["event_action"], &pd["dedup_key"]), (&"trigger".into(), &id.as_str().into()), "{pd}");
    assert_eq!((&pd["routing_key"], &pd["payload"]["severity"]), (&"token-canary".into(), &"critical".into()), "{pd}");
    assert!(pd["payload"]["source"].is_string() && pd["payload"]["summary"].is_string(), "{pd}");
    let og = of("/og", &all)[0].clone();
    assert_eq!((og.path.as_str(), og.headers["authorization"].as_str()), ("/og/v2/alerts", "GenieKey token-canary"));
    assert_eq!((&og.json()["alias"], &og.json()["priority"]), (&id.as_str().into(), &"P1".into()));
    let hook = of("/hook", &all)[0].clone();
    let document = hook.json();
    assert_eq!((&document["event"], &document["rule"]), (&"firing".into(), &"backup-failed".into()), "{document}");
    assert_eq!(hook.headers["x-pgark-signature"], signature(&host, &hook), "signed over time and body");
    // The same trouble again is no news.
    failing(&pgark);
    assert!(receiver.take().is_empty());
    assert_eq!(alerts(&pgark, &[])[0]["count"], 2);
    // Somebody looks after it, and then it is over: told once, to those who knew.
    pgark.run(["alert", "ack", &id]).expect_code(0);
    let all = receiver.take();
    assert_eq!(of("/pd", &all)[0].json()["event_action"], "acknowledge");
    assert_eq!(of("/og", &all)[0].path, format!("/og/v2/alerts/{id}/acknowledge?identifierType=alias"));
    pgark.run(["alert", "ack", &id]).expect_code(0);
    assert!(receiver.take().is_empty(), "once is enough");
    pgark.run(["alert", "close", &id]).expect_code(0);
    let all = receiver.take();
    assert_eq!(all.len(), 5, "{all:?}");
    assert_eq!(
        of("/pd", &all)[0].json(),
        serde_json::json!({"routing_key": "token-canary", "event_action": "resolve", "dedup_key": id})
    );
    assert_eq!(of("/og", &all)[0].path, format!("/og/v2/alerts/{id}/close?identifierType=alias"));
    assert!(of("/slack", &all)[0].json()["text"].as_str().is_some_and(|t| t.contains("RESOLVED")));
    pgark.run(["alert", "close", &id]).expect_code(4);
    assert!(alerts(&pgark, &[]).is_empty());
    assert_eq!(alerts(&pgark, &["--history", "5"])[0]["id"], id.as_str());
    // Secrets are read when they are used, and are in no file of ours.
    for path in objects_under(&host.scratch.join("state")) {
        let text = fs::read(&path).expect("a file");
        assert!(!text.windows(6).any(|w| w == b"canary"), "{}", path.display());
    }
    // A test is told to the one that is named, and is over at once.
    pgark.run(["alert", "test", "pd"]).expect_code(0);
    assert_eq!(receiver.take().len(), 1);
    pgark.run(["alert", "test", "nobody"]).expect_code(2);
    receiver.answer(&[302, 500, 500, 500, 500]);
    let outcome = pgark.run(["alert", "test"]).expect_code(1);
    assert!(outcome.stderr.contains("E-ALERT-SEND"), "{outcome}");
    assert_eq!(receiver.take().len(), 5, "a redirect is not followed");
}

fn signature(host: &Host, hook: &pgark_testkit::Received) -> String {
    let mut signed = format!("{}.", hook.headers["x-pgark-timestamp"]).into_bytes();
    signed.extend(&hook.body);
    let path = host.scratch.file("signed", &signed, 0o600);
    let made =
        std::process::Command::new("openssl").args(["dgst", "-sha256", "-hmac", "token-canary"]).arg(path).output();
    let text = String::from_utf8(made.expect("openssl").stdout).expect("text");
    format!("sha256={}", text.rsplit(' ').next().expect("a sum").trim())
}

#[test]
fn what_was_raised_survives_receivers_that_fail_and_being_killed() {
    let host = Host::new("alertoutbox");
    let receiver = Receiver::start();
    let later = Receiver::start();
    let told = host.scratch.dir("told").join("told");
    let script = format!("#!/bin/sh\ncat >> '{}'; head -c 3000000 /dev/zero; exit 0\n", told.display());
    let command = host.scratch.file("tell", script.as_bytes(), 0o755);
    let hangs = host.scratch.file("hangs", b"#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.02; done 2>/dev/null\n", 0o755);
    let settings = |more: &str| {
        format!(
            "[alerts]\n{more}\n[alerts.sinks.hook]\nkind = 'webhook'\nurl = '{}'\n\
             [alerts.sinks.later]\nkind = 'webhook'\nurl = '{}'\n\
             [alerts.sinks.cmd]\nkind = 'command'\ncommand = ['{}']\n",
            receiver.url("/"),
            later.url("/"),
            command.display()
        )
    };
    let two = "escalation = [{after = '0s', sinks = ['hook', 'cmd']}, {after = '1s', sinks = ['later']}]";
    let pgark = host.with(&settings(two));
    receiver.answer(&[503, 503]);
    let outcome = failing(&pgark);
    assert!(outcome.stderr.contains("E-ALERT-SEND sink hook") && outcome.stderr.contains("503"), "{outcome}");
    // The command got it; what it says does not matter, and secrets are not in its environment.
    let document: Value = serde_json::from_slice(&fs::read(&told).expect("told")).expect("JSON");
    assert_eq!(document["event"], "firing");
    // It is tried again, not at once.
    assert_eq!(sent(pgark.run(["alert", "send", "--json"]))["waiting"], 1);
    assert_eq!(receiver.take().len(), 1);
    let again = pgark.run(["alert", "send", "--now", "--json"]).expect_code(3).json();
    assert_eq!((&again["delivered"], &again["waiting"]), (&0.into(), &1.into()), "{again}");
    let delivery = &alerts(&pgark, &[])[0]["deliveries"][1];
    assert_eq!((&delivery["sink"], &delivery["attempts"]), (&"hook".into(), &2.into()), "{delivery}");
    // A process that dies between writing down and telling loses nothing.
    let dying = host.with(&format!(
        "{}[alerts.sinks.dead]\nkind = 'command'\ncommand = ['{}']\ntimeout = '60s'\n",
        settings("escalation = [{after = '0s', sinks = ['dead', 'hook']}]"),
        hangs.display()
    ));
    let mut child = dying.command(["verify", "-q"]).spawn().expect("a program");
    let is_there = || alerts(&pgark, &[]).into_iter().find(|a| a["rule"] == "verify-failed");
    wait_until("the alert is written down", LIMIT, is_there);
    child.kill().and_then(|()| child.wait()).expect("killed");
    receiver.take();
    let pgark = host.with(&settings(two));
    assert_eq!(
        sent(pgark.run(["alert", "send", "--now", "--json"]))["waiting"],
        1,
        "the one that is gone from the settings"
    );
    let all = receiver.take();
    let rules: Vec<Value> = all.iter().map(|r| r.json()["rule"].clone()).collect();
    assert!(rules.contains(&"backup-failed".into()) && rules.contains(&"verify-failed".into()), "{rules:?}");
    // After a while others are told, unless somebody looks after it.
    let open = alerts(&pgark, &[]);
    let of = |rule: &str| open.iter().find(|a| a["rule"] == rule).expect("open")["id"].as_str().expect("id").to_owned();
    pgark.run(["alert", "ack", &of("verify-failed")]).expect_code(0);
    wait_until("a second is over", LIMIT, || {
        let outcome = pgark.run(["alert", "run", "--no-check", "--json"]).expect_code(3);
        assert!(outcome.stderr.contains("repository main"), "what was not looked at is told: {outcome}");
        let told: Vec<Value> = later.take().iter().map(|r| r.json()["rule"].clone()).collect();
        (!told.is_empty()).then_some(told)
    })
    .iter()
    .for_each(|rule| assert_ne!(*rule, "verify-failed"));
    // What cannot be written down changes no result either.
    let closed = pgark.clone().env("PGARK_STATE_DIR", "/proc/nowhere");
    assert!(failing(&closed).stderr.contains("E-ALERT-STATE"));
    for (wrong, why) in [
        ("[alerts.sinks.x]\nkind = 'email'\n", "it needs host"),
        ("[alerts.sinks.x]\nkind = 'webhook'\n", "it needs url"),
        ("[alerts.sinks.x]\nkind = 'command'\ncommand = ['true']\nhost = 'h'\n", "another kind"),
        ("[alerts]\nescalation = [{after = '0s', sinks = ['nobody']}]\n", "no sink 'nobody'"),
        ("[alerts]\nescalation = [{after = '5m', sinks = []}]\n", "after 0s"),
        (
            "[alerts.sinks.x]\nkind = 'email'\nhost = 'mail.example'\nfrom = 'a@b.c'\nto = ['a@b.c']\ntls = 'none'\n",
            "without TLS",
        ),
        ("[alerts.sinks.x]\nkind = 'webhook'\nurl = 'http://x'\nsecret = 'a'\nsecret_file = '/b'\n", "one is enough"),
    ] {
        let outcome = host.with(wrong).run(["config", "check"]).expect_code(2);
        assert!(outcome.stderr.contains(why) && outcome.stderr.contains("pgark.toml"), "{why}: {outcome}");
    }
}

#[test]
fn mail_goes_out_encrypted_and_alertmanager_tells_of_the_beginning_and_the_end() {
    let host = Host::new("alertmail");
    let tls = Certificate::of_localhost(&host.scratch);
    let login = ("pgark", "mail-canary");
    let start = |wrapped, refuses| MailServer::start(&host.scratch, &tls, wrapped, login, refuses);
    let (wrapped, starttls) = match (start(true, 0), start(false, 1)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(why), _) | (_, Err(why)) => pgark_testkit::skip!("{why}"),
    };
    let receiver = Receiver::start();
    let manager = match Alertmanager::start(&host.scratch, &receiver.url("/from-alertmanager")) {
        Ok(manager) => manager,
        Err(why) => pgark_testkit::skip!("{why}"),
    };
    let password = host.secret("mail-password", login.1);
    let mail = |name: &str, port: u16, tls_word: &str, password: &str| {
        format!(
            "[alerts.sinks.{name}]\nkind = 'email'\nhost = 'localhost'\nport = {port}\ntls = '{tls_word}'\nuser = 'pgark'\n\
             password_file = '{password}'\nfrom = 'pgark@example.org'\nto = ['dba@example.org', 'Ops <ops@example.org>']\nca_file = '{}'\n",
            tls.authority.display()
        )
    };
    let sinks = mail("wrapped", wrapped.port, "tls", &password)
        + &mail("starttls", starttls.port, "starttls", &password)
        + &format!("[alerts.sinks.am]\nkind = 'alertmanager'\nurl = '{}'\n", manager.url());
    let pgark = host.with(&sinks);
    let outcome = failing(&pgark);
    assert!(outcome.stderr.contains("sink starttls") && outcome.stderr.contains("451"), "{outcome}");
    let first = wrapped.mails();
    assert_eq!(first.len(), 1, "{outcome}");
    assert!(first[0].encrypted && first[0].user.as_deref() == Some("pgark"), "{first:?}");
    assert_eq!(first[0].to, ["dba@example.org", "ops@example.org"]);
    assert!(first[0].text.contains("Subject: [pgark] CRITICAL main: backup failed"), "{first:?}");
    // Refused for the time being: the next try is taken.
    assert!(starttls.mails().is_empty());
    pgark.run(["alert", "send", "--now"]).expect_code(0);
    assert_eq!(starttls.mails().len(), 1);
    assert!(starttls.mails()[0].encrypted);
    // Alertmanager has it, and tells others.
    let told = |status: &str| {
        let status = status.to_owned();
        wait_until("Alertmanager tells its webhook", LIMIT, || {
            receiver.take().into_iter().map(|r| r.json()).find(|n| n["status"] == status.as_str())
        })
    };
    let body = told("firing");
    let labels = &body["alerts"][0]["labels"];
    assert_eq!((&labels["cluster"], &labels["rule"]), (&"main".into(), &"backup-failed".into()), "{body}");
    assert_eq!(manager.alerts().len(), 1);
    // What it posts opens an incident, once; what has ended opens none.
    let posted = host.scratch.file("posted.json", body.to_string().as_bytes(), 0o644).display().to_string();
    let opened = pgark.json(["incident", "open", "--alertmanager", &posted]);
    let incident = opened["incidents"][0]["incident"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(
        (&opened["incidents"][0]["new"], &opened["incidents"][0]["incident"]["declared"]),
        (&true.into(), &body["alerts"][0]["startsAt"].as_str().map(in_utc).into()),
        "{opened}"
    );
    assert_eq!(pgark.json(["incident", "open", "--alertmanager", &posted])["incidents"][0]["new"], false);
    assert!(told("firing")["alerts"][0]["labels"]["rule"].is_string());
    assert_eq!(wrapped.mails().len(), 2, "people are told of it, once");
    pgark.run(["incident", "close", &incident, "--note", "it is back"]).expect_code(0);
    pgark.run(["incident", "close", &incident]).expect_code(4);
    assert!(pgark.run(["incident", "show", &incident]).expect_code(0).stdout.contains("it is back"));
    let id = alerts(&pgark, &[]).iter().find(|a| a["rule"] == "backup-failed").expect("open")["id"].clone();
    pgark.run(["alert", "close", id.as_str().expect("text")]).expect_code(0);
    let resolved = told("resolved").to_string();
    let posted = host.scratch.file("resolved.json", resolved.as_bytes(), 0o644).display().to_string();
    assert_eq!(pgark.json(["incident", "open", "--alertmanager", &posted])["incidents"], serde_json::json!([]));
    for (n, wrong) in [
        "{}",
        "[]",
        "not json",
        r#"{"version":"3","alerts":[]}"#,
        r#"{"version":"4","alerts":[{"status":"firing","labels":{"cluster":"../x"},"startsAt":"2026-01-01T00:00:00Z"}]}"#,
        r#"{"version":"4","alerts":[{"status":"firing","labels":{"cluster":"other"},"startsAt":"2026-01-01T00:00:00Z"}]}"#,
    ]
    .into_iter()
    .enumerate()
    {
        let path = host.scratch.file(&format!("wrong{n}.json"), wrong.as_bytes(), 0o644).display().to_string();
        pgark.run(["incident", "open", "--alertmanager", &path]).expect_code(4);
    }
    // One that is known here is opened, whatever else fires; the other one is told.
    let both = r#"{"version":"4","alerts":[
        {"status":"firing","labels":{"cluster":"other"},"startsAt":"2026-01-01T00:00:00Z"},
        {"status":"firing","labels":{"cluster":"main"},"startsAt":"0001-01-01T00:00:00Z"}]}"#;
    let both = host.scratch.file("both.json", both.as_bytes(), 0o644).display().to_string();
    let outcome = pgark.run(["incident", "open", "--json", "--alertmanager", &both]).expect_code(3);
    assert_eq!(outcome.json()["incidents"].as_array().map(Vec::len), Some(1), "{outcome}");
    // A sender that wrote no time: now.
    let declared = outcome.json()["incidents"][0]["incident"]["declared"].to_string();
    assert!(!declared.contains("0001-"), "{outcome}");
    assert!(outcome.stderr.contains("E-INCIDENT-CLUSTER"), "{outcome}");
    // A wrong password is no reason to send it in the open, nor shown.
    let wrong = host.secret("wrong-password", "wrong-canary");
    let outcome = host.with(&mail("wrapped", wrapped.port, "tls", &wrong)).run(["alert", "test"]).expect_code(1);
    assert!(outcome.stderr.contains("535") && !outcome.stderr.contains("canary"), "{outcome}");
}

fn in_utc(text: &str) -> String {
    text.parse::<jiff::Timestamp>().expect("a time").to_string()
}

#[test]
fn the_books_raise_and_resolve_alerts_and_a_missing_call_is_missed() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "alertrules");
    let receiver = Receiver::start();
    let settings = |limit: &str| {
        let text = format!(
            "[repos.main]\nurl = '{}'\npassphrase_file = '{}'\n[clusters.main]\nrepos = ['main']\nrto = '4h'\n\
             [alerts]\nno_backup_for = '{limit}'\nping_url = '{}'\ndisabled = ['rto', 'settings', 'pg_wal', 'clock', 'free-space', 'data-checksums']\n\
             [alerts.sinks.hook]\nkind = 'webhook'\nurl = '{}'\n",
            site.pgark.repo().display(),
            site.pgark.passphrase_file().display(),
            receiver.url("/ping"),
            receiver.url("/hook")
        );
        let path = site.scratch.join("pgark.toml");
        fs::write(&path, text).expect("settings");
        give_to_postgres(&path);
        site.pgark.clone().without_env("PGARK_REPO").env("PGARK_CONFIG", path)
    };
    let pgark = settings("48h");
    let rules = |all: &[pgark_testkit::Received]| -> Vec<(String, String)> {
        let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let hooks = all.iter().filter(|r| r.path == "/hook").map(|r| r.json());
        hooks.map(|d| (word(&d["rule"]), word(&d["event"]))).collect()
    };
    let run = |pgark: &Pgark, code: i32| pgark.run(["alert", "run", "--json"]).expect_code(code);
    run(&pgark, 0);
    let all = receiver.take();
    assert!(rules(&all).contains(&("no-backup".into(), "firing".into())), "{:?}", rules(&all));
    assert!(all.iter().any(|r| r.path == "/ping"), "everything was looked at");
    pgark.run(["backup", "--type", "full", "-q"]).expect_code(0);
    receiver.take();
    run(&pgark, 0);
    assert_eq!(rules(&receiver.take()), [("no-backup".to_owned(), "resolved".to_owned())]);
    run(&pgark, 0);
    assert!(rules(&receiver.take()).is_empty(), "told once");
    // A backup that fails, and then one that does not.
    let gone = site.scratch.join("gone");
    fs::rename(site.pgark.repo(), &gone).expect("taken away");
    pgark.run(["backup", "-q"]).expect_code(10);
    assert_eq!(rules(&receiver.take()), [("backup-failed".to_owned(), "firing".to_owned())]);
    run(&pgark, 3);
    let all = receiver.take();
    assert!(rules(&all).contains(&("repository".into(), "firing".into())), "{:?}", rules(&all));
    assert!(all.iter().all(|r| r.path != "/ping"), "who was to be called is not called");
    fs::rename(&gone, site.pgark.repo()).expect("brought back");
    pgark.run(["backup", "-q"]).expect_code(0);
    assert_eq!(rules(&receiver.take()), [("backup-failed".to_owned(), "resolved".to_owned())]);
    run(&pgark, 0);
    assert!(rules(&receiver.take()).contains(&("repository".into(), "resolved".into())));
    // The same settings, and a limit that is over. Ages are told in whole seconds: the one of the backup has to be over.
    std::thread::sleep(Duration::from_secs(1));
    run(&settings("1ms"), 0);
    assert!(rules(&receiver.take()).contains(&("no-backup".into(), "firing".into())));
}
