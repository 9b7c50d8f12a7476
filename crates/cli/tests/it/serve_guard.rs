//! The server under those who should not, and under kill -9: users, certificates, the second person, a damaged database, every
//! moment of a job. No PostgreSQL: the jobs fail at once, and say why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgark_testkit::{Certificate, Pgark, Scratch, TlsClient, give_to_postgres};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::serve::{Serving, ended, files_under, token, until};
use crate::site::BINARY;

const PASSPHRASE: &str = "canary of the passphrase";
const DATABASE_PASSWORD: &str = "canary of the database";
const PASSWORD: &str = "canary of a user";

struct Place {
    scratch: Scratch,
    pgark: Pgark,
    state: PathBuf,
    config: PathBuf,
}

/// A configuration with secrets in it, and a repository that is not there.
fn place(label: &str, more: &str) -> Place {
    let scratch = Scratch::new(label);
    let state = scratch.join("server");
    let text = format!(
        "[repos.main]\nurl = \"{}\"\npassphrase = \"{PASSPHRASE}\"\n[clusters.main]\nhost = \"/nowhere\"\npassword = \"{DATABASE_PASSWORD}\"\n\
         [clusters.other]\n[server]\nstate_dir = \"{}\"\n{more}",
        scratch.join("absent").display(),
        state.display()
    );
    let config = scratch.file("pgark.toml", text.as_bytes(), 0o600);
    let pgark = Pgark::new(BINARY, &scratch, &scratch.join("repo"));
    let bare = ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGARK_CLUSTER"];
    let pgark = bare.iter().fold(pgark, |pgark, name| pgark.without_env(name)).env("PGARK_CONFIG", &config);
    Place { scratch, pgark, state, config }
}

fn secret(place: &Place, name: &str, text: &str) -> String {
    place.scratch.file(name, text.as_bytes(), 0o600).display().to_string()
}

/// Signs in, and gives the cookie.
fn sign_in(serving: &Serving, name: &str, password: &str) -> (u16, String) {
    let body = json!({"name": name, "password": password}).to_string();
    let (status, head, _) = serving.heads("POST", "/api/v1/session", "", &body);
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_default();
    (status, cookie.split(';').next().unwrap_or_default().to_owned())
}

#[test]
fn users_sign_in_a_second_person_says_yes_and_no_secret_is_left_anywhere() {
    let place = place("serve-guard", "require_second_person = true\n");
    let pgark = &place.pgark;
    // Passwords come from files that others cannot read, and are no short ones.
    let file = secret(&place, "password", PASSWORD);
    let short = secret(&place, "short", "short");
    let add =
        |name: &str, role: &str, file: &str| pgark.run(["user", "add", name, "--role", role, "--password-file", file]);
    let open = place.scratch.file("open", b"a long enough password", 0o644).display().to_string();
    assert!(add("ada", "admin", &open).expect_code(4).stderr.contains("E-SECRET-MODE"));
    assert!(add("ada", "admin", &short).expect_code(2).stderr.contains("E-USER-PASSWORD"));
    assert!(pgark.run(["user", "add", "ada", "--role", "admin"]).expect_code(2).stderr.contains("E-USER-PASSWORD"));
    assert!(add("../ada", "admin", &file).expect_code(2).stderr.contains("E-USER-NAME"));
    add("ada", "recovery-operator", &file).expect_code(0);
    assert!(add("ada", "viewer", &file).expect_code(4).stderr.contains("E-USER-EXISTS"));
    add("grace", "admin", &file).expect_code(0);
    assert!(pgark.run(["user", "remove", "nobody"]).expect_code(4).stderr.contains("E-USER-UNKNOWN"));
    let list = pgark.json(["user", "list"]);
    assert_eq!((&list["users"][0]["name"], &list["users"][1]["role"]), (&json!("ada"), &json!("admin")), "{list}");
    let operator = token(pgark, "operator", &["-c", "main"]);

    let log = place.scratch.join("log");
    let serving = Serving::logged(pgark, &log);
    assert_eq!(sign_in(&serving, "ada", "canary of nobody").0, 401);
    let (status, ada) = sign_in(&serving, "ada", PASSWORD);
    assert_eq!(status, 200);
    let (_, grace) = sign_in(&serving, "grace", PASSWORD);
    let ask = |method: &str, path: &str, cookie: &str, body: &str| {
        let headers = format!("Cookie: {cookie}\r\nSec-Fetch-Site: same-origin\r\n");
        let (status, text) = serving.raw(method, path, &headers, body);
        (status, serde_json::from_str::<Value>(&text).expect("JSON"))
    };
    assert_eq!(ask("GET", "/api/v1/me", &ada, "").1["name"], "ada");
    let recover = r#"{"job": "recover", "confirm": "main"}"#;
    let (status, job) = ask("POST", "/api/v1/clusters/main/jobs", &ada, recover);
    assert_eq!((status, &job["state"]), (202, &json!("waiting_for_approval")), "{job}");
    let id = job["id"].as_str().expect("an id").to_owned();
    let approve = format!("/api/v1/jobs/{id}/approve");
    assert_eq!(ask("POST", &approve, &ada, "").0, 403);
    assert_eq!(serving.ask("POST", &approve, &operator, "").0, 403);
    // A server that is killed forgets neither the job, nor who is signed in.
    serving.kill();
    let serving = Serving::logged(pgark, &log);
    let ask = |method: &str, path: &str, cookie: &str, body: &str| {
        let headers = format!("Cookie: {cookie}\r\nSec-Fetch-Site: same-origin\r\n");
        let (status, text) = serving.raw(method, path, &headers, body);
        (status, serde_json::from_str::<Value>(&text).expect("JSON"))
    };
    assert_eq!(ask("GET", &format!("/api/v1/jobs/{id}"), &ada, "").1["state"], "waiting_for_approval");
    let (status, job) = ask("POST", &approve, &grace, "");
    assert_eq!((status, &job["approved_by"]), (200, &json!("user grace")), "{job}");
    let job = until("the end", || {
        let (_, job) = ask("GET", &format!("/api/v1/jobs/{id}"), &ada, "");
        (job["state"] == "failed").then_some(job)
    });
    assert!(job["error_code"].as_str().is_some_and(|code| code.starts_with("E-")), "{job}");
    assert_eq!(job["requested_by"], "user ada", "{job}");

    // Another password, and out; removed, and out.
    pgark
        .run(["user", "passwd", "ada", "--password-file", &secret(&place, "next", "another canary of ada")])
        .expect_code(0);
    assert_eq!(ask("GET", "/api/v1/me", &ada, "").0, 401);
    assert_eq!(sign_in(&serving, "ada", PASSWORD).0, 401);
    let (status, ada) = sign_in(&serving, "ada", "another canary of ada");
    assert_eq!(status, 200);
    pgark.run(["user", "remove", "ada"]).expect_code(0);
    assert_eq!(ask("GET", "/api/v1/me", &ada, "").0, 401);

    let secrets = [PASSPHRASE, DATABASE_PASSWORD, PASSWORD, "another canary of ada", "canary of nobody", &operator];
    let cookies = [&ada, &grace].map(|cookie| cookie.split_once('=').map_or("", |(_, value)| value));
    let holds = |bytes: &[u8]| {
        let all = secrets.iter().chain(&cookies);
        all.copied().find(|secret| bytes.windows(secret.len()).any(|w| w == secret.as_bytes()))
    };
    for path in ["/api/v1/jobs", "/api/v1/clusters", "/api/v1/users", "/api/v1/tokens", "/metrics", "/api/v1/schedules"]
    {
        let (_, text) = serving.raw("GET", path, &format!("Cookie: {grace}\r\n"), "");
        assert_eq!(holds(text.as_bytes()), None, "{path}: {text}");
    }
    serving.drained();
    for (path, bytes) in files_under(&place.state).into_iter().chain([(log.clone(), fs::read(&log).expect("a log"))]) {
        assert_eq!(holds(&bytes), None, "{}", path.display());
    }
    let shown = pgark.run(["config", "explain"]).expect_code(0);
    assert_eq!(holds(shown.stdout.as_bytes()), None, "{shown}");
}

#[test]
fn an_address_that_others_reach_takes_tls_and_somebody_who_may_ask() {
    let place = place("serve-listen", "");
    let pgark = &place.pgark;
    let refused = |what: &str| {
        let outcome = pgark.run(["serve", "--listen", "0.0.0.0:0"]).expect_code(4);
        assert!(outcome.stderr.contains("E-SERVER-LISTEN") && outcome.stderr.contains(what), "{outcome}");
    };
    refused("without encryption");
    let text = fs::read_to_string(&place.config).expect("readable");
    let write = |tls: &str| fs::write(&place.config, format!("{text}{tls}")).expect("written");
    let own = Certificate::of_localhost(&place.scratch);
    let (certificate, key) = (own.certificate.display(), own.key.display());
    write(&format!("[server.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n"));
    refused("nobody could sign in");
    let mode = |mode: u32| fs::set_permissions(&own.key, fs::Permissions::from_mode(mode)).expect("mode");
    mode(0o644);
    let wrong = |words: &[&str], code: i32, what: &str| {
        let outcome = pgark.run(words).expect_code(code);
        assert!(outcome.stderr.contains(what) && outcome.stderr.contains("HINT"), "{outcome}");
    };
    wrong(&["config", "check"], 4, "E-SERVER-TLS");
    wrong(&["serve", "--listen", "127.0.0.1:0"], 4, "E-SERVER-TLS");
    mode(0o600);
    pgark.run(["config", "check"]).expect_code(0);
    write("[server.tls]\ncertificate = \"/nowhere.crt\"\nkey = \"/nowhere.key\"\n");
    wrong(&["config", "check"], 2, "E-SERVER-TLS");
    write("[server.tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient = \"/ca\"\n");
    wrong(&["config", "check"], 2, "pgark.toml:13:1");
}

#[test]
fn certificates_are_exchanged_while_it_runs_and_cookies_are_for_tls_alone() {
    let (place, elsewhere) = (place("serve-tls", ""), Scratch::new("serve-tls-new"));
    let (old, new) = (Certificate::of_localhost(&place.scratch), Certificate::of_localhost(&elsewhere));
    let install = |name: &str, from: &Path, mode: u32| {
        place.scratch.file(name, &fs::read(from).expect("made"), mode).display().to_string()
    };
    let (certificate, key) = (install("server.crt", &old.certificate, 0o644), install("server.key", &old.key, 0o600));
    let text = fs::read_to_string(&place.config).expect("readable");
    let tls = format!("[server.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n");
    fs::write(&place.config, text + &tls).expect("written");
    let file = secret(&place, "password", PASSWORD);
    place.pgark.run(["user", "add", "ada", "--role", "viewer", "--password-file", &file]).expect_code(0);
    let log = place.scratch.join("log");
    let serving = Serving::logged(&place.pgark, &log);
    let connect = |authority: &Path| TlsClient::connect(&serving.address, authority);

    // What a browser keeps is sent by it over TLS alone, to no script, and with no other site's request.
    let mut first = connect(&old.authority);
    let body = json!({"name": "ada", "password": PASSWORD}).to_string();
    let (status, head, _) = first.ask("POST", "/api/v1/session", "", &body).expect("an answer");
    let kept = |head: &str| {
        let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
        cookie.split_once("; ").map(|(pair, rest)| (pair.to_owned(), rest.to_owned())).expect("what it is for")
    };
    let (cookie, is_for) = kept(&head);
    assert!(status == 200 && cookie.starts_with("pgark_session="), "{head}");
    assert_eq!(is_for, "Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure");
    let (_, head, _) = first.ask("GET", "/sign-in", "", "").expect("a page");
    assert_eq!(kept(&head).1, "Path=/sign-in; HttpOnly; SameSite=Strict; Secure");
    let me = |client: &mut TlsClient| {
        client.ask("GET", "/api/v1/me", &format!("Cookie: {cookie}\r\n"), "").map(|(status, ..)| status)
    };
    assert_eq!((me(&mut first), me(&mut connect(&new.authority))), (Some(200), None));

    // What is broken changes nothing, and is told.
    let reload = |what: &str| {
        serving.signal(Signal::HUP);
        until(what, || fs::read_to_string(&log).expect("a log").contains(what).then_some(()));
    };
    install("server.crt", &new.certificate, 0o644);
    reload("the certificate and the key do not go together");
    place.pgark.run(["config", "check"]).expect_code(2);
    place.scratch.file("server.crt", b"no certificate", 0o644);
    reload("server.crt holds no certificate in PEM");
    assert!(fs::read_to_string(&log).expect("a log").contains("those in force stay"));
    assert_eq!((me(&mut first), me(&mut connect(&old.authority))), (Some(200), Some(200)));
    assert_eq!(me(&mut connect(&new.authority)), None);

    // What is right counts for new connections; those that are there go on.
    install("server.crt", &new.certificate, 0o644);
    install("server.key", &new.key, 0o600);
    reload("the settings were read again");
    assert_eq!((me(&mut connect(&new.authority)), me(&mut connect(&old.authority))), (Some(200), None));
    assert_eq!(me(&mut first), Some(200));
    // And are no reason to stay signed in.
    let headers = format!("Cookie: {cookie}\r\nSec-Fetch-Site: same-origin\r\n");
    let (status, head, _) = first.ask("DELETE", "/api/v1/session", &headers, "").expect("an answer");
    let gone = ("pgark_session=".to_owned(), "Path=/; HttpOnly; SameSite=Strict; Max-Age=0; Secure".to_owned());
    assert_eq!((status, kept(&head)), (200, gone));
    assert_eq!((me(&mut first), me(&mut connect(&new.authority))), (Some(401), Some(401)));
    serving.drained();
}

#[test]
fn a_damaged_database_is_put_aside_and_said_and_jobs_are_read_again() {
    let place = place("serve-damaged", "");
    let pgark = &place.pgark;
    let admin = token(pgark, "admin", &[]);
    let log = place.scratch.join("log");
    let serving = Serving::logged(pgark, &log);
    let (_, job) = serving.ask("POST", "/api/v1/clusters/main/jobs", &admin, r#"{"job": "verify"}"#);
    let job = ended(&serving, &admin, job["id"].as_str().expect("an id"));
    serving.drained();
    let database = place.state.join("server.sqlite");
    for companion in ["-wal", "-shm"] {
        let _ = fs::remove_file(place.state.join(format!("server.sqlite{companion}")));
    }
    // Who only looks is told that it is gone, and makes none.
    fs::remove_file(&database).expect("removed");
    let outcome = pgark.run(["job", "list"]).expect_code(1);
    assert!(outcome.stderr.contains("E-SERVER-STATE there is no state database"), "{outcome}");
    assert!(!database.exists(), "{outcome}");
    fs::write(&database, "no database ".repeat(1000)).expect("damaged");
    give_to_postgres(&database);
    let outcome = pgark.run(["token", "list"]).expect_code(1);
    assert!(outcome.stderr.contains("E-SERVER-STATE") && outcome.stderr.contains("puts it aside"), "{outcome}");
    let serving = Serving::logged(pgark, &log);
    let said = fs::read_to_string(&log).expect("a log");
    for part in
        ["was damaged", "1 jobs were read again", "tokens, users and sessions are lost", "backups are untouched"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(serving.ask("GET", "/api/v1/me", &admin, "").0, 401);
    let admin = token(pgark, "admin", &[]);
    let again = ended(&serving, &admin, job["id"].as_str().expect("an id"));
    for key in ["id", "state", "error_code", "requested_by", "created", "exit_code", "started", "finished"] {
        assert_eq!(again[key], job[key], "{key}");
    }
}

/// Where a job is when the server is killed.
const MOMENTS: [&str; 5] = ["asked for", "a directory", "begun", "ended", "over"];

fn is_reached(moment: &str, dir: &Path, state: &str) -> bool {
    match moment {
        "asked for" => true,
        "a directory" => dir.exists(),
        "begun" => dir.join("started").exists(),
        "ended" => dir.join("ended").exists(),
        _ => !matches!(state, "queued" | "running"),
    }
}

#[test]
fn whenever_the_server_is_killed_its_jobs_end_truthfully_and_once() {
    let place = place("serve-killed", "");
    let admin = token(&place.pgark, "admin", &[]);
    let dir = |id: &str| place.state.join("jobs").join(id);
    let mut told: Vec<String> = vec![];
    for moment in MOMENTS {
        let serving = Serving::start(&place.pgark);
        // The second waits for the first.
        let ids: Vec<String> = (0..2)
            .map(|n| {
                let headers = format!("Authorization: Bearer {admin}\r\nIdempotency-Key: {moment} {n}\r\n");
                let post = || serving.raw("POST", "/api/v1/clusters/main/jobs", &headers, r#"{"job": "verify"}"#);
                let (status, text) = post();
                assert_eq!(status, 202, "{text}");
                // Who got no answer asks again.
                let id =
                    |text: &str| serde_json::from_str::<Value>(text).expect("JSON")["id"].as_str().map(str::to_owned);
                assert_eq!(id(&post().1), id(&text));
                id(&text).expect("an id")
            })
            .collect();
        until(moment, || {
            let (_, job) = serving.ask("GET", &format!("/api/v1/jobs/{}", ids[0]), &admin, "");
            is_reached(moment, &dir(&ids[0]), job["state"].as_str().unwrap_or_default()).then_some(())
        });
        serving.kill();
        told.extend(ids);
    }
    let serving = Serving::start(&place.pgark);
    for id in &told {
        let job = ended(&serving, &admin, id);
        let wrote = fs::read(dir(id).join("ended")).ok();
        let wrote: Option<Value> = wrote.map(|text| serde_json::from_slice(&text).expect("JSON"));
        match job["state"].as_str() {
            Some("failed") => assert_eq!(job["exit_code"], wrote.expect("it said so")["code"], "{job}"),
            // Nobody had begun it, or nobody knows: then it has said nothing.
            Some("interrupted") => assert!(wrote.is_none() && job["exit_code"].is_null(), "{job}"),
            _ => panic!("{job}"),
        }
    }
    let (_, all) = serving.ask("GET", "/api/v1/jobs?limit=1000", &admin, "");
    let retried = all["jobs"].as_array().expect("jobs").iter().filter(|j| j["retry_of"].is_string()).count();
    assert_eq!(all["jobs"].as_array().map(Vec::len), Some(told.len() + retried), "each is there once");
    serving.signal(Signal::HUP);
    serving.drained();
}
