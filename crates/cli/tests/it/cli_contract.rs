//! What scripts rely on: exit codes, JSON, dry runs, file modes, closed pipes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgark_testkit::{Pgark, Scratch, Target, objects_under, repository_tree, wait_until};
use serde_json::Value;

use crate::site::{BINARY, Site};

fn keys_of(document: &Value, keys: &[&str]) {
    for key in keys {
        assert!(document.get(key).is_some(), "no {key:?} in {document}");
    }
}

/// A program with a repository that does not exist.
fn without_repository() -> (Scratch, Pgark) {
    let scratch = Scratch::new("cli");
    let repo = scratch.join("nowhere");
    let pgark = Pgark::new(BINARY, &scratch, &repo);
    (scratch, pgark)
}

#[test]
fn usage_errors_end_with_2_and_a_missing_repository_with_10() {
    let (_scratch, pgark) = without_repository();
    pgark.run(["no-such-command"]).expect_code(2);
    pgark.run(["backup", "--no-such-flag"]).expect_code(2);
    pgark.run(["backup", "--type", "sideways"]).expect_code(2);
    pgark.run(["info"]).expect_code(10);
    pgark.run(["verify"]).expect_code(10);
    let outcome = pgark.run(["info", "--json"]).expect_code(10);
    keys_of(&outcome.json()["error"], &["code", "message", "hint"]);
    pgark.run(["--help"]).expect_code(0);
    pgark.run(["--version"]).expect_code(0);
}

#[test]
fn a_passphrase_on_the_command_line_is_refused() {
    let (_scratch, pgark) = without_repository();
    let outcome = pgark.run(["info", "--passphrase", "canary-secret"]).expect_code(2);
    assert!(!outcome.stderr.contains("canary-secret") && !outcome.stdout.contains("canary-secret"), "{outcome}");
}

#[test]
fn completions_and_the_manual_are_printed() {
    let (_scratch, pgark) = without_repository();
    for shell in ["bash", "zsh", "fish"] {
        let outcome = pgark.run(["completions", shell]).expect_code(0);
        assert!(outcome.stdout.contains("archive-push"), "{shell}: {outcome}");
    }
    let outcome = pgark.run(["man"]).expect_code(0);
    assert!(outcome.stdout.contains(".TH"), "{outcome}");
}

#[test]
fn output_to_a_closed_pipe_is_no_panic() {
    let (_scratch, pgark) = without_repository();
    for words in [&["--help"][..], &["man"], &["completions", "bash"], &["info", "--json"]] {
        let mut command = pgark.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start pgark");
        // Nobody reads: the reading end is closed before the program can write.
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("pgark ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked at") && output.status.code() != Some(101), "{words:?}: {stderr}");
    }
}

#[test]
fn a_full_disk_behind_the_log_changes_no_result_and_one_behind_the_result_is_said() {
    let (_scratch, pgark) = without_repository();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = pgark.command(["info", "--json", "-vv"]).stderr(full()).output().expect("pgark runs");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.code() == Some(10) && said["error"]["code"].is_string(), "{said}");
    let output = pgark.command(["man"]).stdout(full()).output().expect("pgark runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("E-OUTPUT"), "{said}");
}

#[test]
fn the_json_of_every_command_has_the_documented_fields() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "json");
    site.ledger.write_rows(&site.cluster, 3);
    let backup = site.pgark.json(["backup", "--type", "full", "--annotate", "why=test"]);
    keys_of(&backup, &["id", "cluster", "kind", "type", "started", "finished", "lsn_start", "lsn_stop", "timeline"]);
    keys_of(&backup, &["size_bytes", "read_bytes", "stored_bytes", "repos", "warnings"]);
    assert_eq!(
        (&backup["cluster"], &backup["kind"], &backup["type"]),
        (&"main".into(), &"physical".into(), &"full".into())
    );
    assert_eq!(backup["repos"][0]["ok"], true, "{backup}");
    let id = backup["id"].as_str().expect("id");
    let shape: String = id.chars().map(|letter| if letter.is_ascii_digit() { '9' } else { letter }).collect();
    assert_eq!(shape, "99999999-999999F", "{id}");
    let started = backup["started"].as_str().expect("started");
    assert!(started.contains('T') && started.ends_with('Z'), "{started}");
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();

    let info = site.elsewhere.json(["info"]);
    let cluster = &info["clusters"][0];
    keys_of(cluster, &["name", "system_id", "pg_version", "windows", "gaps", "backups"]);
    keys_of(&cluster["windows"][0], &["timeline", "from_time", "to_time", "from_lsn", "to_lsn"]);
    let listed = &cluster["backups"][0];
    keys_of(listed, &["id", "kind", "type", "started", "finished", "complete", "lsn_start", "lsn_stop", "timeline"]);
    keys_of(listed, &["size_bytes", "stored_bytes", "kept", "evidence", "annotations"]);
    assert_eq!((&listed["complete"], &listed["annotations"]["why"]), (&true.into(), &"test".into()));

    let verify = site.elsewhere.json(["verify"]);
    keys_of(&verify, &["ok", "depth", "objects_checked", "bytes_checked", "problems"]);
    assert_eq!(verify["ok"], true);
    assert!(verify["objects_checked"].as_u64() > Some(2), "{verify}");

    restore_documents(&site, &latest, id);
}

fn restore_documents(site: &Site, latest: &Target, id: &str) {
    let to = site.scratch.join("r");
    let dry = site.elsewhere.json(site.restore_arguments(&to, latest, &["--dry-run"]));
    assert!(!to.exists(), "a dry run wrote");
    let real = site.elsewhere.json(site.restore_arguments(&to, latest, &[]));
    for document in [&dry, &real] {
        keys_of(document, &["backup", "target", "resolved", "wal"]);
        keys_of(&document["resolved"], &["time", "lsn", "timeline"]);
        keys_of(&document["wal"], &["from", "to"]);
        assert_eq!(document["backup"], id);
    }
    assert_eq!(dry["resolved"], real["resolved"], "the dry run showed another plan");
    assert!(dry.get("bytes_restored").is_none() && dry.get("duration_ms").is_none(), "{dry}");
    assert!(real["bytes_restored"].as_u64() > Some(1 << 20), "{real}");
    keys_of(&real, &["duration_ms"]);
}

#[test]
fn a_dry_run_changes_nothing_and_init_is_idempotent() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "dry");
    site.ledger.write_rows(&site.cluster, 3);
    let id = site.pgark.backup("full");
    site.archive_all();
    site.cluster.psql("alter system set archive_command = '/bin/false'");
    site.cluster.reload();
    let repo = || repository_tree(site.elsewhere.repo());
    let before = repo();
    // At the very end of a segment the name is that of the old one, until anything is written.
    site.cluster.psql("select pg_logical_emit_message(false, 'test', '')");
    let segment = site.cluster.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    site.pgark.run(["backup", "--type", "full", "--dry-run"]).expect_code(0);
    before.assert_same(&repo(), "after backup --dry-run");
    let delete = site.pgark.run(["delete", id.as_str(), "--dry-run"]);
    assert!(matches!(delete.code, Some(0 | 4)), "{delete}");
    before.assert_same(&repo(), "after delete --dry-run");
    site.pgark.run(["init", "--dry-run"]).expect_code(0);
    before.assert_same(&repo(), "after init --dry-run");
    site.pgark.run(["init"]).expect_code(0);
    before.assert_same(&repo(), "after a second init");
    let now = site.cluster.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    assert_eq!(now, segment, "a dry run moved the WAL");
}

#[test]
fn a_wrong_key_ends_with_12_and_tells_nothing() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "key");
    site.ledger.write_rows(&site.cluster, 1);
    site.pgark.backup("full");
    let wrong = site.scratch.file("wrong", b"canary-not-the-passphrase\n", 0o600);
    let pgark = site.pgark.clone().env("PGARK_PASSPHRASE_FILE", wrong);
    for words in [&["info"][..], &["verify"], &["backup", "--type", "full"]] {
        let outcome = pgark.run(words).expect_code(12);
        assert!(!outcome.stderr.contains("canary") && !outcome.stdout.contains("canary"), "{outcome}");
    }
}

/// Files and directories that others than their owner may use in any way.
fn open_to_others(dir: &Path) -> Vec<String> {
    let (mut found, mut waiting) = (vec![], vec![dir.to_owned()]);
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        if !meta.is_symlink() && meta.mode() & 0o077 != 0 {
            found.push(format!("{} has mode {:o}", path.display(), meta.mode()));
        }
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
    }
    found
}

/// Although whoever calls it takes no rights away from new files.
#[test]
fn nothing_in_the_repository_or_a_restore_is_open_to_others_and_no_secret_is_written_down() {
    let server = installed_or_skip!();
    let scratch = Scratch::new("modes");
    let loose = Pgark::new(BINARY, &scratch, &scratch.join("repo"))
        .after(&scratch, "loose", "umask 000")
        .env("PGARK_CACHE_DIR", scratch.join("cache"));
    let site = Site::with_pgark(&server, scratch, loose, |b| b.wal_segsize_mb(1).conf("autovacuum = off"));
    site.cluster.psql("create table canary as select 'canary-in-a-table'::text as word");
    site.pgark.backup("full");
    let latest = site.archive_all();
    for object in objects_under(site.elsewhere.repo()) {
        let bytes = fs::read(&object).expect("object");
        for secret in [&b"canary-in-a-table"[..], b"correct horse battery staple"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{} tells a secret", object.display());
        }
    }
    let (to, outcome) = site.try_restore("r", &latest, &[]);
    outcome.expect_code(0);
    for dir in [site.elsewhere.repo(), &to, &site.scratch.join("cache"), &site.scratch.join("state")] {
        assert_eq!(open_to_others(dir), Vec::<String>::new());
    }
    let conf = fs::read_to_string(to.join("postgresql.auto.conf")).expect("configuration");
    assert!(!conf.contains("correct horse"), "the passphrase is in the configuration");
    memory_is_private(&site);
}

/// The kernel gives what may not be dumped to root: no core of it is written, and no other program of its user looks into it.
fn memory_is_private(site: &Site) {
    let waits = b"#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.02; done 2>/dev/null\n";
    let waits = site.scratch.file("waits", waits, 0o755);
    let waiting = site.elsewhere.clone().without_env("PGARK_PASSPHRASE_FILE").env("PGARK_PASSPHRASE_COMMAND", &waits);
    let mut command = waiting.command(["info"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a program");
    let proc = Path::new("/proc").join(child.id().to_string());
    wait_until("it may not be dumped", Duration::from_secs(60), || {
        let name = fs::read_to_string(proc.join("comm")).expect("it waits");
        let owner = fs::metadata(proc.join("environ")).expect("it waits").uid();
        (name.trim() == "pgark" && owner == 0).then_some(())
    });
    child.kill().and_then(|()| child.wait()).expect("killed");
}
