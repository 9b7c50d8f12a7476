//! The server as its users have it: a process that answers on the loopback, jobs that outlive it, tokens.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use pgark_testkit::{Pgark, Scratch};
use serde_json::{Value, json};

use crate::site::{BINARY, Site};

const LIMIT: Duration = Duration::from_secs(120);

/// A running server, killed when the test ends.
pub struct Serving {
    child: Child,
    pub address: String,
}

impl Serving {
    pub fn start(pgark: &Pgark) -> Serving {
        Serving::with_log(pgark, Stdio::null())
    }

    /// What it logs is kept.
    pub fn logged(pgark: &Pgark, log: &Path) -> Serving {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        Serving::with_log(pgark, log.into())
    }

    fn with_log(pgark: &Pgark, log: Stdio) -> Serving {
        let words = ["serve", "--listen", "127.0.0.1:0", "--json", "-v"];
        let mut command = pgark.command(words);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let document: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        Serving { child, address: document["listening"].as_str().expect("an address").to_owned() }
    }

    pub fn ask(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.raw(method, path, &format!("Authorization: Bearer {token}\r\n"), body);
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub fn raw(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.heads(method, path, headers, body);
        (status, body)
    }

    /// Status, head and body.
    pub fn heads(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}",
            self.address
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, head.to_owned(), body.to_owned())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        rustix::process::kill_process(pid, signal).expect("sent");
    }

    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    pub fn drained(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.child.wait().expect("ended");
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // One that was waited for is no longer there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The site with a configuration file that holds all the environment said.
pub fn configured(site: &Site, more: &str) -> (Pgark, PathBuf) {
    let state = site.scratch.join("server");
    let cluster = &site.cluster;
    let text = format!(
        "[repos.main]\nurl = \"{}\"\npassphrase_file = \"{}\"\n[clusters.main]\npgdata = \"{}\"\nhost = \"{}\"\nport = {}\n\
         user = \"postgres\"\ndbname = \"postgres\"\nrepos = [\"main\"]\nrpo = \"1h\"\nrto = \"4h\"\n[clusters.other]\nrepos = [\"main\"]\n\
         [server]\nstate_dir = \"{}\"\n{more}",
        site.pgark.repo().display(),
        site.pgark.passphrase_file().display(),
        cluster.data_dir().display(),
        cluster.socket_dir().display(),
        cluster.port(),
        state.display(),
    );
    let config = site.scratch.file("pgark.toml", text.as_bytes(), 0o600);
    let bare =
        ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGARK_CLUSTER", "PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE"];
    let pgark = bare.iter().fold(site.pgark.clone(), |pgark, name| pgark.without_env(name));
    (pgark.env("PGARK_CONFIG", &config), config)
}

pub fn token(pgark: &Pgark, role: &str, more: &[&str]) -> String {
    let document = pgark.json([&["token", "create", "--role", role, "--name", role], more].concat());
    document["token"].as_str().expect("a token").to_owned()
}

pub fn ended(serving: &Serving, token: &str, id: &str) -> Value {
    until("the end of the job", || {
        let (status, job) = serving.ask("GET", &format!("/api/v1/jobs/{id}"), token, "");
        assert_eq!(status, 200, "{job}");
        (!matches!(job["state"].as_str(), Some("queued" | "running"))).then_some(job)
    })
}

#[test]
fn jobs_are_asked_for_run_and_outlive_the_server() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "serve");
    // Due every minute, and at once after a minute has begun; of the other cluster, which has nothing: it fails, and says so.
    let schedule = "[[schedules]]\njob = \"verify\"\ncluster = \"other\"\ncron = \"* * * * *\"\n";
    let (pgark, config) = configured(&site, schedule);
    let admin = token(&pgark, "admin", &[]);
    let viewer = token(&pgark, "viewer", &["-c", "other"]);
    let state = site.scratch.join("server");
    assert_eq!(fs::metadata(&state).expect("there").permissions().mode() & 0o777, 0o700);
    let serving = Serving::start(&pgark);
    pgark.run(["serve", "--listen", "127.0.0.1:0"]).expect_code(11);
    pgark.run(["serve", "--listen", "0.0.0.0:0"]).expect_code(4);

    // Nobody without a token; each sees its own.
    assert_eq!(serving.raw("GET", "/health/live", "", "").0, 200);
    assert_eq!(serving.raw("GET", "/api/v1/clusters", "", "").0, 401);
    assert_eq!(serving.ask("GET", "/api/v1/clusters/main", &viewer, "").0, 404);
    assert_eq!(serving.ask("POST", "/api/v1/clusters/other/jobs", &viewer, r#"{"job": "check"}"#).0, 403);
    assert_eq!(serving.raw("GET", "/no/such/page", "", "").0, 404);
    assert_eq!(serving.raw("DELETE", "/health/live", "", "").0, 405);
    assert_eq!(serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, &"x".repeat(64 * 1024 + 1)).0, 413);

    // A backup by request: its id at once, its document when it is done, and the first screen knows it.
    let (status, job) =
        serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, r#"{"job": "backup", "type": "full"}"#);
    assert_eq!((status, &job["state"]), (202, &json!("queued")), "{job}");
    let job = ended(&serving, &admin, job["id"].as_str().expect("an id"));
    assert_eq!(job["state"], "done", "{job}");
    let backup = job["result"]["id"].as_str().expect("a backup").to_owned();
    let known = until("the backup on the first screen", || {
        let (_, all) = serving.ask("GET", "/api/v1/clusters", &admin, "");
        let main = all["clusters"].as_array()?.iter().find(|c| c["name"] == "main")?.clone();
        (main["can_recover"] == true).then_some(main)
    });
    assert_eq!(known["meets_rpo"], true, "{known}");
    let (_, backups) = serving.ask("GET", "/api/v1/clusters/main/backups", &admin, "");
    assert_eq!(backups["backups"][0]["id"], backup.as_str(), "{backups}");
    let (_, metrics) = serving.raw("GET", "/metrics", &format!("Authorization: Bearer {admin}\r\n"), "");
    assert!(metrics.contains("pgark_job_runs_total{cluster=\"main\",job=\"backup\",result=\"done\"} 1"), "{metrics}");
    assert!(!metrics.contains(&backup), "{metrics}");

    // What fails says why, in the words of the command.
    let (_, wrong) =
        serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, r#"{"job": "verify", "backup": "20200101-000000F"}"#);
    let wrong = ended(&serving, &admin, wrong["id"].as_str().expect("an id"));
    assert_eq!(wrong["state"], "failed", "{wrong}");
    assert!(wrong["error_code"].as_str().is_some_and(|code| code.starts_with("E-")), "{wrong}");

    // A job that runs when the server is killed runs on, and the next server says how it ended.
    let slow = site.scratch.join("slow");
    hold_archive(&site, &slow);
    let (_, job) = serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, r#"{"job": "backup", "type": "full"}"#);
    let id = job["id"].as_str().expect("an id").to_owned();
    let show = |pgark: &Pgark| pgark.json(["job", "show", &id]);
    until("the process", || state.join("jobs").join(&id).join("started").exists().then_some(()));
    serving.kill();
    assert_eq!(show(&pgark)["job"]["state"], "running");
    let serving = Serving::start(&pgark);
    assert_eq!(show(&pgark)["job"]["state"], "running");
    let_archive(&site, &slow);
    assert_eq!(ended(&serving, &admin, &id)["state"], "done");

    // Cancelled from the command line, beside the server.
    hold_archive(&site, &slow);
    let (_, job) = serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, r#"{"job": "backup", "type": "full"}"#);
    let id = job["id"].as_str().expect("an id").to_owned();
    until("the process", || state.join("jobs").join(&id).join("started").exists().then_some(()));
    pgark.run(["job", "cancel", &id]).expect_code(0);
    assert_eq!(ended(&serving, &admin, &id)["state"], "cancelled");
    let_archive(&site, &slow);

    // The server and the job's process are killed: nobody claims that it ended well.
    hold_archive(&site, &slow);
    let (_, job) = serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, r#"{"job": "backup", "type": "full"}"#);
    let id = job["id"].as_str().expect("an id").to_owned();
    let started = state.join("jobs").join(&id).join("started");
    until("the process", || started.exists().then_some(()));
    let claim: Value = serde_json::from_slice(&fs::read(&started).expect("a claim")).expect("JSON");
    serving.kill();
    let pid = claim["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("one"), rustix::process::Signal::KILL)
        .expect("killed");
    let serving = Serving::start(&pgark);
    assert_eq!(ended(&serving, &admin, &id)["state"], "interrupted");
    let_archive(&site, &slow);

    // The schedule came round by now, or does within a minute.
    let scheduled = until("the schedule", || {
        let (_, jobs) = serving.ask("GET", "/api/v1/jobs?cluster=other", &viewer, "");
        jobs["jobs"].as_array()?.iter().find(|j| j["schedule"] == "verify-other").cloned()
    });
    assert_eq!(scheduled["requested_by"], "schedule verify-other");

    // Settings with a mistake change nothing, right ones do.
    let text = fs::read_to_string(&config).expect("readable");
    let schedules =
        |serving: &Serving| serving.ask("GET", "/api/v1/schedules", &admin, "").1["schedules"].as_array().map(Vec::len);
    fs::write(&config, format!("{text}\n[[schedules]]\njob = \"drill\"\ncluster = \"main\"\ncron = \"x\"\n"))
        .expect("written");
    serving.signal(rustix::process::Signal::HUP);
    // Jobs and looks go by those in force, and it is said which file waits.
    fs::write(&config, format!("{text}\n[[schedules\n")).expect("written");
    serving.signal(rustix::process::Signal::HUP);
    until("the file that waits", || {
        let (_, settings) = serving.ask("GET", "/api/v1/settings", &admin, "");
        (settings["changed_since"] == json!([config.display().to_string()])).then_some(())
    });
    let broken = pgark.run(["info"]).expect_code(2);
    assert!(broken.stderr.contains("E-CONFIG-SYNTAX"), "{broken}");
    let verify = json!({"job": "verify", "backup": backup, "quick": true}).to_string();
    let (status, job) = serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, &verify);
    assert_eq!(status, 202, "{job}");
    let job = ended(&serving, &admin, job["id"].as_str().expect("an id"));
    assert_eq!((&job["state"], &job["result"]["error"]), (&json!("done"), &Value::Null), "{job}");
    fs::write(
        &config,
        text.replace("* * * * *", "0 0 1 1 *")
            + "\n[[schedules]]\njob = \"check\"\ncluster = \"main\"\ncron = \"@yearly\"\n",
    )
    .expect("written");
    serving.signal(rustix::process::Signal::HUP);
    until("the new schedule", || (schedules(&serving) == Some(2)).then_some(()));

    // No secret is found in what the server keeps, nor the token.
    serving.drained();
    let outcome = pgark.run(["job", "list"]).expect_code(0);
    assert!(outcome.stdout.contains("interrupted") && outcome.stdout.contains("cancelled"), "{outcome}");
    for (path, bytes) in files_under(&state) {
        for secret in ["correct horse battery staple", admin.as_str(), viewer.as_str()] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{} holds a secret", path.display());
        }
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o077, 0, "{}", path.display());
    }
}

/// While `gate` is there, WAL does not arrive, and backups wait for it.
fn hold_archive(site: &Site, gate: &Path) {
    let command = site.pgark.archive_command();
    if !site.cluster.psql("show archive_command").starts_with("test ! -e") {
        let value = format!("test ! -e {} && {command}", gate.display()).replace('\'', "''");
        site.cluster.psql(&format!("alter system set archive_command = '{value}'"));
        site.cluster.psql("select pg_reload_conf()");
        until("the setting", || site.cluster.psql("show archive_command").starts_with("test ! -e").then_some(()));
    }
    fs::write(gate, "").expect("the gate");
}

fn let_archive(site: &Site, gate: &Path) {
    fs::remove_file(gate).expect("the gate was closed");
    // The archiver sleeps for a minute after failures, unless there is something new.
    site.cluster.switch_and_archive();
}

pub fn files_under(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files_under(&path)),
            false => found.push((path.clone(), fs::read(&path).expect("readable"))),
        }
    }
    found
}

/// Without any server or repository.
#[test]
fn tokens_are_told_once_and_schedules_are_listed() {
    let scratch = Scratch::new("tokens");
    let state = scratch.join("server");
    let text = format!(
        "[repos.main]\nurl = \"/nowhere\"\n[clusters.main]\n[server]\nstate_dir = \"{}\"\n[[schedules]]\njob = \"backup\"\n\
         cluster = \"main\"\ncron = \"30 2 * * *\"\ntime_zone = \"Europe/Berlin\"\n",
        state.display()
    );
    let config = scratch.file("pgark.toml", text.as_bytes(), 0o644);
    let pgark =
        Pgark::new(BINARY, &scratch, &scratch.join("repo")).without_env("PGARK_CLUSTER").env("PGARK_CONFIG", config);
    let made = pgark.json([
        "token",
        "create",
        "--role",
        "recovery-operator",
        "--name",
        "on-call",
        "-c",
        "main",
        "--expires",
        "90d",
    ]);
    let token = made["token"].as_str().expect("a token").to_owned();
    let list = pgark.json(["token", "list"]);
    assert_eq!(list["tokens"][0]["id"], made["id"], "{list}");
    assert!(!list.to_string().contains(&token), "{list}");
    pgark.run(["token", "create", "--role", "root", "--name", "x"]).expect_code(2);
    pgark.run(["token", "create", "--role", "viewer", "--name", "x", "-c", "mian"]).expect_code(2);
    let revoked = pgark.json(["token", "revoke", made["id"].as_str().expect("an id")]);
    assert!(revoked["revoked"].is_string(), "{revoked}");
    pgark.run(["token", "revoke", "nobody"]).expect_code(4);
    pgark.run(["job", "show", "20260101-000000-00000000"]).expect_code(4);

    let next = pgark.json(["schedule", "list", "--after", "2026-03-28T12:00:00Z", "--count", "1"]);
    assert_eq!(next["schedules"][0]["next"][0]["local"], "Sun 2026-03-29 03:00:00 +02:00", "{next}");
    // A directory that others can read is not used.
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).expect("mode");
    pgark.run(["token", "list"]).expect_code(1);
}
