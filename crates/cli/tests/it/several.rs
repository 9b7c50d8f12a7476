//! Two repositories at once: each has its own success, one that is away costs a warning, and is completed later.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pgark_testkit::{Ledger, Outcome, Pgark, Scratch, Target, TestCluster, wait_until};
use serde_json::{Value, json};

use crate::site::{BINARY, Site};

/// A site whose repositories `a` and `b` are configured, `b` required or not.
pub struct Two {
    pub site: Site,
    pub config: PathBuf,
    pub a: PathBuf,
    pub b: PathBuf,
}

impl Two {
    pub fn new(label: &str, required: bool) -> Option<Two> {
        let server = match pgark_testkit::Server::installed() {
            Ok(server) => server,
            Err(why) => {
                assert!(!pgark_testkit::demanded(), "{why}");
                return None;
            }
        };
        let scratch = Scratch::new(label);
        let (a, b) = (scratch.join("a"), scratch.join("b"));
        let passphrase = scratch.file("passphrase", b"correct horse battery staple\n", 0o600);
        let repo = |name: &str, path: &Path| {
            format!("[repos.{name}]\nurl = \"{}\"\npassphrase_file = \"{}\"\n", path.display(), passphrase.display())
        };
        let text = format!(
            "{}{}required = {required}\n[clusters.main]\nrepos = [\"a\", \"b\"]\n",
            repo("a", &a),
            repo("b", &b)
        );
        let config = scratch.file("pgark.toml", text.as_bytes(), 0o600);
        let elsewhere = Pgark::new(BINARY, &scratch, &a)
            .without_env("PGARK_REPO")
            .without_env("PGARK_PASSPHRASE_FILE")
            .env("PGARK_CONFIG", &config);
        let command = format!("{} archive-push --config {} \"%p\"", elsewhere.binary().display(), config.display());
        let builder = TestCluster::builder(&server).archive_command(command);
        let cluster = builder.wal_segsize_mb(1).conf("autovacuum = off").start(&scratch, "c");
        let pgark = elsewhere.on(&cluster);
        pgark.run(["init"]).expect_code(0);
        let ledger = Ledger::create(&cluster);
        Some(Two { site: Site { cluster, ledger, pgark, elsewhere, server, scratch }, config, a, b })
    }

    pub fn backup(&self) -> Outcome {
        self.site.pgark.run(["backup", "--json"])
    }

    /// Looks at one repository alone.
    pub fn only(&self, name: &str) -> Pgark {
        self.site.elsewhere.clone().env("PGARK_REPO", name)
    }

    pub fn assert_restores_from(&self, name: &str, to: &str, latest: &Target) {
        let (path, outcome) = {
            let to = self.site.scratch.join(to);
            let words = self.site.restore_arguments(&to, latest, &[]);
            (to, self.only(name).run(words))
        };
        outcome.expect_code(0);
        let recovered = pgark_testkit::Recovered::start(&self.site.server, &self.site.scratch, &path)
            .expect(pgark_testkit::Ending::Promoted);
        self.site.ledger.assert_exact(&recovered, latest, 1);
    }
}

fn ids(info: &Value) -> Vec<String> {
    let backups = info["clusters"][0]["backups"].as_array().cloned().unwrap_or_default();
    backups.iter().filter(|b| b["complete"] == true).map(|b| b["id"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_backup_and_its_wal_go_into_both_repositories() {
    let Some(two) = Two::new("two", false) else { return };
    let checked = two.site.pgark.run(["check", "--json"]);
    assert!(matches!(checked.code, Some(0 | 3)), "{checked}");
    let found = checked.json()["checks"].clone();
    let arrived = |name: &str| {
        let all = found.as_array().expect("checks").iter();
        all.filter(|f| f["name"] == "archiving" && f["repository"] == name && f["verdict"] == "ok").count()
    };
    assert_eq!((arrived("a"), arrived("b")), (1, 1), "{checked}");

    let first = two.backup().expect_code(0).json();
    assert_eq!(first["repos"], json!([{"name": "a", "ok": true}, {"name": "b", "ok": true}]), "{first}");
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let second = two.backup().expect_code(0).json();
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    for name in ["a", "b"] {
        assert_eq!(ids(&two.only(name).json(["info"])).len(), 2, "{name}");
        assert_eq!(two.only(name).json(["verify"])["ok"], true, "{name}");
    }
    // Packs are the same bytes.
    let pack = |repo: &Path| {
        let id = second["id"].as_str().expect("an id");
        fs::read(repo.join(format!("clusters/main/backups/{id}/packs/000001"))).expect("a pack")
    };
    assert!(pack(&two.a) == pack(&two.b));
    fs::remove_dir_all(&two.a).expect("the first is destroyed");
    two.assert_restores_from("b", "r-b", &latest);
}

#[test]
fn a_repository_that_is_away_is_completed_by_the_next_backup() {
    let Some(two) = Two::new("two1", false) else { return };
    two.backup().expect_code(0);
    let parked = two.b.with_extension("parked");
    fs::rename(&two.b, &parked).expect("b goes away");
    two.site.ledger.write_rows(&two.site.cluster, 5);
    two.site.archive_all();
    let missed = two.backup().expect_code(3);
    assert_eq!(missed.json()["repos"][1], json!({"name": "b", "ok": false}), "{missed}");
    assert!(missed.stderr.contains("repository b is away"), "{missed}");
    let checked = two.site.pgark.run(["check", "--json"]);
    assert_eq!(checked.code, Some(1), "{checked}");

    fs::rename(&parked, &two.b).expect("b comes back");
    let lacking = two.site.pgark.run(["check", "--json"]).expect_code(3).json();
    let all = lacking["checks"].as_array().expect("checks").iter();
    let newest: Vec<_> = all.filter(|f| f["name"] == "newest backup").collect();
    let said: Vec<_> = newest.iter().map(|f| (f["repository"].as_str(), f["verdict"].as_str())).collect();
    assert_eq!(said, [(Some("a"), Some("ok")), (Some("b"), Some("warning"))], "{lacking}");
    two.site.ledger.write_rows(&two.site.cluster, 5);
    two.backup().expect_code(0);
    let latest = two.site.archive_all();
    assert_eq!(ids(&two.only("b").json(["info"])).len(), 3);
    assert_eq!(two.only("b").json(["verify"])["ok"], true);
    two.assert_restores_from("b", "r-b", &latest);
    let nothing = two.site.elsewhere.json(["replicate", "--from", "a", "--to", "b"]);
    assert_eq!(nothing["objects"], 0, "{nothing}");
}

#[test]
fn work_goes_on_while_the_first_repository_is_away() {
    let Some(two) = Two::new("two2", false) else { return };
    two.backup().expect_code(0);
    let parked = two.a.with_extension("parked");
    fs::rename(&two.a, &parked).expect("a goes away");
    two.site.ledger.write_rows(&two.site.cluster, 5);
    two.site.archive_all();
    two.backup().expect_code(3);
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    let info = two.site.elsewhere.run(["info", "--json"]).expect_code(0);
    assert_eq!(ids(&info.json()).len(), 2, "{info}");
    assert!(info.stderr.contains("reading from repository b"), "{info}");
    two.assert_restores_from("b", "r-b", &latest);

    fs::rename(&parked, &two.a).expect("a comes back");
    let done = two.site.elsewhere.json(["replicate", "--from", "b", "--to", "a"]);
    assert_eq!(done["backups"].as_array().map(Vec::len), Some(1), "{done}");
    assert_eq!(two.only("a").json(["verify"])["ok"], true);
    two.assert_restores_from("a", "r-a", &latest);
    two.backup().expect_code(0);
}

#[test]
fn a_backup_whose_first_repository_goes_away_meanwhile_is_taken_anew_into_the_other() {
    let Some(two) = Two::new("two5", false) else { return };
    two.backup().expect_code(0);
    let command = two.site.cluster.psql("show archive_command");
    let archive_by = |command: &str| {
        two.site.cluster.psql(&format!("alter system set archive_command = '{}'", command.replace('\'', "\'\'")));
        two.site.cluster.reload();
    };
    // It waits for its WAL when the first one goes away.
    archive_by("false");
    let words = ["backup", "--type", "full", "--json", "--archive-timeout", "5s"];
    let mut backup = two.site.pgark.command(words);
    let backup = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
    let under_way = || {
        let all = fs::read_dir(two.a.join("clusters/main/backups")).expect("listed").flatten();
        (all.filter(|b| b.path().join("packs").exists()).count() == 2).then_some(())
    };
    wait_until("packs of the second backup", Duration::from_secs(60), under_way);
    fs::rename(&two.a, two.a.with_extension("parked")).expect("a goes away");
    archive_by(&command);
    let ended = backup.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("repository a went away in the middle of the backup"), "{said}");
    let made: Value = serde_json::from_slice(&ended.stdout).expect("a document");
    assert_eq!(made["repos"], json!([{"name": "b", "ok": true}, {"name": "a", "ok": false}]), "{made}");
    let latest = two.site.archive_all();
    assert_eq!(two.only("b").json(["verify"])["ok"], true);
    two.assert_restores_from("b", "r-b", &latest);

    fs::rename(two.a.with_extension("parked"), &two.a).expect("a comes back");
    two.site.elsewhere.run(["replicate", "--from", "b", "--to", "a"]).expect_code(0);
    assert_eq!(two.only("a").json(["verify"])["ok"], true);
}

#[test]
fn what_expires_goes_in_each_repository_and_one_that_is_away_holds_up_no_other() {
    let Some(two) = Two::new("two6", false) else { return };
    let taken: Vec<String> =
        (0..3).map(|_| two.backup().expect_code(0).json()["id"].as_str().expect("an id").to_owned()).collect();
    let words = ["expire", "--keep-last", "2", "--gc-grace", "0s"];
    let planned = two.site.elsewhere.json([&words[..], &["--dry-run"]].concat());
    let named: Vec<_> = planned["repositories"].as_array().expect("each").iter().map(|r| r["name"].clone()).collect();
    assert_eq!(named, ["a", "b"], "{planned}");
    let parked = two.a.with_extension("parked");
    fs::rename(&two.a, &parked).expect("a goes away");
    let done = two.site.elsewhere.run([&words[..], &["--yes", "--json"]].concat()).expect_code(10).json();
    assert_eq!(done["repositories"][0]["error"]["code"], "E-REPO-NONE", "{done}");
    assert_eq!(done["repositories"][1]["expired"], json!([taken[0]]), "{done}");
    fs::rename(&parked, &two.a).expect("a comes back");
    let shown = two.site.elsewhere.run(["expire", "--keep-last", "2", "--gc-grace", "0s", "--yes"]).expect_code(0);
    assert!(shown.stdout.starts_with("repository a:") && shown.stdout.contains("\nrepository b:"), "{shown}");
    for name in ["a", "b"] {
        assert_eq!(ids(&two.only(name).json(["info"])), taken[1..], "{name}");
        assert_eq!(two.only(name).json(["verify"])["ok"], true, "{name}");
    }
}

#[test]
fn what_is_kept_is_kept_in_every_repository() {
    let Some(two) = Two::new("two7", false) else { return };
    let id = two.backup().expect_code(0).json()["id"].as_str().expect("an id").to_owned();
    two.backup().expect_code(0);
    let stays = |name: &str| {
        let info = two.only(name).json(["info"]);
        info["clusters"][0]["backups"][0]["kept"].as_bool().expect("a backup that says so")
    };
    // One that is marked in one repository alone is marked by what brings the copy up.
    two.only("a").run(["keep", &id]).expect_code(0);
    two.only("a").run(["keep", &id, "--legal-hold", "a case"]).expect_code(0);
    assert!(stays("a") && !stays("b"));
    let brought = two.site.elsewhere.json(["replicate", "--from", "a", "--to", "b"]);
    assert_eq!(brought["marked"], json!([id]), "{brought}");
    assert!(stays("b"));
    let again = two.site.elsewhere.run(["replicate", "--from", "a", "--to", "b"]).expect_code(0);
    assert_eq!(again.stdout, "nothing was missing\n");
    let words = ["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes", "--json"];
    two.site.elsewhere.run(words).expect_code(0);
    assert_eq!(ids(&two.only("b").json(["info"])).len(), 2);

    two.site.elsewhere.run(["unkeep", &id, "--lift-hold", "a case"]).expect_code(0);
    let lifted = two.site.elsewhere.json(["unkeep", &id]);
    assert_eq!(lifted["repos"], json!(["a", "b"]), "{lifted}");
    assert!(!stays("a") && !stays("b"));
    // Where it is not, there is nothing to mark; where nothing can be read, that is said.
    two.only("b").run(["delete", &id, "--yes"]).expect_code(0);
    let there = two.site.elsewhere.json(["keep", &id]);
    assert_eq!(there["repos"], json!(["a"]), "{there}");
    fs::rename(&two.b, two.b.with_extension("parked")).expect("b goes away");
    let away = two.site.elsewhere.run(["unkeep", &id]).expect_code(3);
    assert!(away.stderr.contains("in repository b it stays as it is: E-REPO-NONE"), "{away}");
}

#[test]
fn what_is_damaged_in_one_repository_is_repaired_from_the_other() {
    let Some(two) = Two::new("two4", false) else { return };
    two.site.cluster.psql("create table t as select g, md5(g::text) m from generate_series(1, 20000) g");
    let full = two.backup().expect_code(0).json();
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let incr = two.backup().expect_code(0).json();
    let latest = two.site.archive_all();
    let place = |id: &Value, rest: &str| {
        two.a.join(format!("clusters/main/backups/{}/{rest}", id["id"].as_str().unwrap_or("")))
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).expect("an object");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 8;
        fs::write(path, bytes).expect("damage");
    };
    let wal = |n: usize| {
        let all = pgark_testkit::objects_under(&two.a.join("clusters/main/wal"));
        let segments: Vec<_> = all.into_iter().filter(|p| p.file_name().is_some_and(|f| f.len() == 24)).collect();
        segments.get(n).cloned().expect("a segment")
    };
    flip(&place(&full, "packs/000001"));
    fs::remove_file(place(&incr, "packs/000001")).expect("remove");
    fs::remove_file(place(&incr, "record")).expect("remove");
    flip(&place(&full, "manifest"));
    flip(&wal(1));
    fs::remove_file(wal(2)).expect("remove");
    // What nobody can bring, and nobody needs: a file for people, and the books before the newest.
    let is_history = |p: &PathBuf| p.extension().is_some_and(|e| e == "backup");
    let mut histories = pgark_testkit::objects_under(&two.a.join("clusters/main/wal")).into_iter().filter(is_history);
    let history = histories.next().expect("a backup history file");
    flip(&history);
    fs::remove_file(two.b.join(history.strip_prefix(&two.a).expect("below a"))).expect("remove");
    let mut versions = pgark_testkit::objects_under(&two.a.join("clusters/main/catalog"));
    versions.sort();
    let before = versions.get(versions.len() - 2).expect("two versions").clone();
    flip(&before);
    fs::remove_file(two.a.join("clusters/main/catalog-mirror").join(before.file_name().expect("a name")))
        .expect("remove");

    let only = two.only("a");
    let found = only.run(["verify", "--json"]).expect_code(20).json();
    assert!(found["problems"].as_array().is_some_and(|p| p.len() >= 4), "{found}");
    // Nobody to repair from: nothing is touched.
    let itself = only.run(["verify", "--repair", "--from", "a", "--json"]).expect_code(2);
    assert!(itself.stdout.contains("E-REPO-CHOICE"), "{itself}");
    let mut rounds = 0;
    loop {
        // A damaged record or manifest hides what lies behind it until it is whole.
        let done = only.run(["verify", "--repair", "--json"]);
        rounds += 1;
        if done.code == Some(0) {
            break;
        }
        assert!(rounds < 4, "{done}");
    }
    assert_eq!(only.json(["verify"])["ok"], true);
    fs::remove_dir_all(&two.b).expect("the other is destroyed");
    two.assert_restores_from("a", "r-a", &latest);
}

#[test]
fn a_required_repository_that_is_away_fails_everything() {
    let Some(two) = Two::new("two3", true) else { return };
    two.backup().expect_code(0);
    fs::rename(&two.b, two.b.with_extension("parked")).expect("b goes away");
    let outcome = two.backup();
    assert_eq!(outcome.code, Some(10), "{outcome}");
    let segment = two.site.cluster.psql("select pg_walfile_name(pg_switch_wal())");
    let file = two.site.cluster.data_dir().join("pg_wal").join(segment);
    let config = two.config.display().to_string();
    let pushed = two.site.elsewhere.run(["archive-push", "--config", &config, &file.display().to_string()]);
    assert_eq!(pushed.code, Some(10), "{pushed}");
    // What is well is told all the same.
    let checked = two.site.pgark.run(["check", "--no-switch", "--json"]).expect_code(1).json();
    let of = |name: &str, verdict: &str| {
        let all = checked["checks"].as_array().into_iter().flatten();
        all.filter(|f| f["repository"] == name && f["verdict"] == verdict).count()
    };
    assert!(of("a", "ok") > 0 && of("b", "FAILED") == 1 && of("b", "ok") == 0, "{checked}");
}
