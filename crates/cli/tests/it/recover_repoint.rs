//! Guided recovery of a cluster whose application is pointed to by a ConfigMap, a Secret and a command: there, and back; and
//! nothing that is secret is in anything that is told or written down.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgark_testkit::{Mood, Outcome, Pgark};
use serde_json::{Value, json};

use crate::recover_cluster::{Cutover, EXAMPLE, PORT, outcome_of};

const PASSWORD: &str = "hunter2-of-the-application";

/// The Secret is two files, of which the application's port comes; the ConfigMap is one value. `refuses` is the mood of a server that
/// quotes what it refuses.
const KUBECTL: &str = r#"#!/bin/sh
cd 'APP' || exit 9
case "$*" in *get*) ;; *) echo "kubectl $*" >> calls;; esac
up() { if [ -e "$1" ]; then echo 1; else echo 0; fi; }
entry() { printf %s "$text" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
is_of() { case "$text" in *"\"resourceVersion\":\"$1\""*) ;; *) echo "Error from server (Conflict)" >&2; exit 1;; esac; }
case "$*" in
*'get pods'*) if [ -e running ]; then echo '{"items":[{"status":{"phase":"Running"}}]}'; else echo '{"items":[]}'; fi;;
*'get --output=json -- deploy/'*) printf '{"spec":{"replicas":%s,"selector":{"matchLabels":{"app":"x"}}},"status":{"replicas":%s,"readyReplicas":%s}}' "$(up wanted)" "$(up running)" "$(up running)";;
*'get --output=json -- configmap/'*) printf '{"metadata":{"resourceVersion":"7"},"data":{"DB_PORT":"%s","other":"stays"}}' "$(cat port)";;
*'get --output=json -- secret/'*) printf '{"metadata":{"resourceVersion":"8"},"data":{"db.env":"%s","url":"%s","other":"c3RheXM="}}' "$(base64 -w0 db.env)" "$(base64 -w0 url)";;
*patch*configmap/*) text=$(cat); is_of 7; entry DB_PORT > port;;
*patch*secret/*) text=$(cat); is_of 8
    if [ -e refuses ]; then echo "Error from server (BadRequest): error found in #10 byte of ...|$(entry url)|..." >&2; exit 1; fi
    entry db.env | base64 -d > db.env; entry url | base64 -d > url; sed -i "s|^DB_PORT=.*|$(grep '^DB_PORT=' db.env)|" app.env;;
*--replicas=0*) rm -f wanted;;
*scale*) touch wanted;;
*) exit 1;;
esac
"#;

const POINT: &str = r#"#!/bin/sh
cd 'APP' || exit 9
case "$1" in
to) echo 'point to' >> calls; cat > pointed;;
back) echo 'point back' >> calls; rm pointed;;
status) [ -e pointed ];;
esac
"#;

const REPOINT: &str = r#"[[clusters.main.recover.repoint]]
kubernetes = "configmap/transformation-engine"
namespace = "production"
entry = "DB_PORT"
set = "port"

[[clusters.main.recover.repoint]]
kubernetes = "secret/transformation-engine"
namespace = "production"
entry = "db.env"
key = ["DB_PORT"]
set = "port"

[[clusters.main.recover.repoint]]
kubernetes = "secret/transformation-engine"
namespace = "production"
entry = "url"

[[clusters.main.recover.repoint]]
command = ["APP/point", "to"]
back = ["APP/point", "back"]
status = ["APP/point", "status"]

"#;

struct Pointed {
    cutover: Cutover,
    dir: PathBuf,
    /// As they were: the port, the file and the address of the Secret, the settings of the application.
    before: [(&'static str, String); 4],
}

impl Pointed {
    fn new(label: &str) -> Option<Pointed> {
        let cutover = Cutover::new(label)?;
        let (app, port) = (cutover.app.settings(), cutover.site.cluster.port());
        let dir = app.parent().expect("a directory").to_owned();
        let before = [
            ("port", port.to_string()),
            ("db.env", format!("# turned in May\nDB_PORT={port}\nDB_PASSWORD={PASSWORD}\n")),
            ("url", format!("postgres://app:{PASSWORD}@db-1.internal:{port}/transformation?application_name=x")),
            ("app.env", cutover.settings.clone()),
        ];
        for (name, content) in &before[..3] {
            cutover.site.scratch.file(&format!("app/{name}"), content.as_bytes(), 0o600);
        }
        let own = |script: &str| script.replace("APP", &dir.display().to_string());
        cutover.site.scratch.file("bin/kubectl", own(KUBECTL).as_bytes(), 0o755);
        cutover.site.scratch.file("app/point", own(POINT).as_bytes(), 0o755);
        Some(Pointed { cutover, dir, before })
    }

    fn pgark(&self) -> Pgark {
        let repoint = &EXAMPLE[EXAMPLE.find("[[clusters.main.recover.repoint]]").expect("there")..];
        let repoint = &repoint[..repoint.find("[[clusters.main.recover.ready]]").expect("there")];
        self.cutover.pgark(&[(repoint, &REPOINT.replace("APP", &self.dir.display().to_string()))])
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The old database serves, and everything points to it, byte for byte.
    fn assert_back(&self, report: &Value) {
        assert_eq!(report["state"], "rolled_back", "{report}");
        assert_eq!(outcome_of(report, "fence"), "undone", "{report}");
        for (name, content) in &self.before {
            assert_eq!(&self.text(name), content, "{name}: {report}");
        }
        assert!(!self.dir.join("pointed").exists() && self.cutover.app.runs(), "{report}");
        assert_eq!(self.cutover.jobs(), "500", "{report}");
    }

    /// Neither the password nor an entry, as it was and as it is, is in what was said, told, written down or given as an argument. What is
    /// kept for the way back is for its owner alone.
    fn assert_secret(&self, outcome: &Outcome, calls: &[String], pgark: &Pgark) {
        let mut all = vec![
            ("output".to_owned(), outcome.to_string()),
            ("arguments".to_owned(), calls.join("\n")),
            ("notification".to_owned(), self.cutover.app.told()),
            ("stored report".to_owned(), pgark.run(["report", "show", "latest", "--json"]).expect_code(0).stdout),
            ("records".to_owned(), pgark.run(["audit", "show", "--json"]).expect_code(0).stdout),
            ("settings".to_owned(), pgark.run(["recover", "--plan", "--json"]).to_string()),
        ];
        let mut kept = 0;
        for path in files(&self.cutover.reports) {
            let text = String::from_utf8_lossy(&fs::read(&path).expect("a file")).into_owned();
            if path.to_string_lossy().contains(".kept-") && text.contains("db.env") {
                assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
                kept += 1;
            } else {
                all.push((path.display().to_string(), text));
            }
        }
        assert!(kept > 0, "nothing is kept for the way back: {outcome}");
        let mut secrets = vec![PASSWORD.to_owned()];
        for name in ["db.env", "url"] {
            secrets.push(encoded(&self.text(name)));
            secrets.extend(self.before.iter().filter(|(n, _)| *n == name).map(|(_, content)| encoded(content)));
        }
        for (place, text) in &all {
            for secret in &secrets {
                assert!(!text.contains(secret), "{secret} is in {place}:\n{text}");
            }
        }
        let journal = |(place, text): &(String, String)| place.ends_with(".journal") && text.contains("kept-");
        assert!(all.iter().any(journal), "the journal was looked at");
    }
}

fn encoded(text: &str) -> String {
    use std::io::Write;
    let mut base64 = Command::new("base64")
        .arg("-w0")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("base64");
    base64.stdin.take().expect("its input").write_all(text.as_bytes()).expect("written");
    String::from_utf8(base64.wait_with_output().expect("its output").stdout).expect("text")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("listed").map(|e| e.expect("an entry").path()).filter(|p| p.is_file()).collect()
}

#[test]
fn what_points_to_the_database_is_turned_and_comes_back_and_secrets_stay_secret() {
    let Some(pointed) = Pointed::new("pointed") else {
        pgark_testkit::skip!("no PostgreSQL server is installed");
    };
    let (pgark, cutover) = (pointed.pgark(), &pointed.cutover);
    // Its standbys will not follow a new instance.
    cutover.site.cluster.psql("alter system set synchronous_commit = local");
    cutover.site.cluster.psql("alter system set synchronous_standby_names = 's_one'");
    cutover.site.cluster.reload();
    pgark.json(["backup"]);
    cutover.site.archive_all();
    let recover = || pgark.run(["recover", "--json", "--yes", "-vv"]);
    let kubectl = |what: &str| format!("kubectl --namespace=production {what}");
    let patch =
        |name: &str| kubectl(&format!("patch --type=merge --patch-file=/dev/stdin -- {name}/transformation-engine"));
    let scale = |n: u32| kubectl(&format!("scale --replicas={n} -- deploy/transformation-engine"));
    let (old, new) = ("postgresql@16-main.service", "postgresql@16-recovered.service");
    let (stop, start) = (|unit: &str| format!("stop {unit}"), |unit: &str| format!("start {unit}"));

    // The second of three is refused: the first comes back, and the third, which nobody asked, is not told to.
    fs::write(pointed.dir.join("refuses"), "").expect("it refuses");
    let outcome = recover().expect_code(1);
    let report = outcome.json();
    assert_eq!(report["failure"]["code"], "E-REPOINT-KUBERNETES", "{report}");
    assert!(report["failure"]["why"].to_string().contains("is not repeated"), "{report}");
    pointed.assert_back(&report);
    let calls = cutover.app.calls();
    let there = [scale(0), stop(old), start(new), patch("configmap"), patch("secret")];
    assert_eq!(calls, [&there[..], &[patch("configmap"), stop(new), start(old), scale(1), "tell".into()]].concat());
    pointed.assert_secret(&outcome, &calls, &pgark);
    fs::remove_file(pointed.dir.join("refuses")).expect("no more");
    cutover.tidy_up();

    // The application answers with 500: all three come back, in reverse order.
    cutover.app.be(Some(Mood::Confused));
    let outcome = recover().expect_code(1);
    let report = outcome.json();
    assert_eq!(report["failure"]["step"], "smoke", "{report}");
    assert!(report["failure"]["why"].to_string().contains("status 500"), "{report}");
    pointed.assert_back(&report);
    let calls = cutover.app.calls();
    let back = ["point back".to_owned(), patch("secret"), patch("configmap"), stop(new), start(old), scale(1)];
    let turned = ["point to".to_owned(), scale(1), scale(0)];
    assert_eq!(calls, [&there[..], &turned, &back, &["tell".to_owned()]].concat());
    pointed.assert_secret(&outcome, &calls, &pgark);
    cutover.tidy_up();

    // It answers: all three point to the new one, and nothing else in them has changed.
    let outcome = recover();
    let report = outcome.json();
    assert_eq!(report["state"], "restored", "{outcome}");
    let old_port = cutover.site.cluster.port().to_string();
    let of = |name: &str| pointed.before.iter().find(|(n, _)| *n == name).map(|(_, content)| content.as_str());
    assert_eq!(pointed.text("port"), PORT.to_string());
    assert_eq!(Some(pointed.text("db.env")), of("db.env").map(|t| t.replace(&old_port, &PORT.to_string())));
    let url = pointed.text("url");
    let host = cutover.site.cluster.socket_dir().display().to_string().replace('/', "%2F");
    assert_eq!(url, format!("postgres://app:{PASSWORD}@{host}:{PORT}/transformation?application_name=x"));
    let told: Value = serde_json::from_str(&pointed.text("pointed")).expect("JSON");
    assert_eq!(told, json!({"host": cutover.site.cluster.socket_dir(), "port": PORT}));
    assert!(cutover.app.runs() && cutover.ask_new("select count(*) from jobs") == "500", "{report}");
    assert_eq!(cutover.ask_new("show synchronous_standby_names"), "", "{report}");
    let how = "ALTER SYSTEM SET synchronous_standby_names = 's_one'";
    assert!(report["warnings"].to_string().contains(how), "{report}");
    let calls = cutover.app.calls();
    assert_eq!(calls, [&there[..], &["point to".to_owned(), scale(1), "tell".into()]].concat());
    pointed.assert_secret(&outcome, &calls, &pgark);
}
