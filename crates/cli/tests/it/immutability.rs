//! What an attacker with everything that the backup host has cannot take away: object lock, versions, append-only accounts.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use pgark_testkit::{
    ObjectServer, Outcome, Pgark, Scratch, Server, Sshd, StoredVersion, Subsystem, give_to_postgres, skip,
};

use crate::site::{BINARY, Site};

/// A site whose repository has these settings, in a file that the server's archiving reads too.
fn site_with(server: &Server, label: &str, url: &str, settings: &str, access: &[(String, String)]) -> Site {
    let scratch = Scratch::new(label);
    let config = scratch.file("pgark.toml", format!("[repos.main]\nurl = '{url}'\n{settings}").as_bytes(), 0o644);
    give_to_postgres(&config);
    let mut elsewhere = Pgark::new(BINARY, &scratch, Path::new(url)).env("PGARK_CONFIG", &config);
    for (name, value) in access {
        elsewhere = elsewhere.env(name, value);
    }
    Site::with_pgark(server, scratch, elsewhere, |builder| builder.wal_segsize_mb(1).conf("autovacuum = off"))
}

fn locking_site(server: &Server, store: &ObjectServer, label: &str, days: u32) -> Site {
    let url = store.url_by(store.address(), "prod/pg", "&timeout=5");
    site_with(server, label, &url, &format!("lock = 'compliance'\nlock_days = {days}\n"), &store.environment())
}

fn finding(checked: &Outcome, name: &str) -> String {
    let checks = checked.json()["checks"].clone();
    let found = checks.as_array().into_iter().flatten().find(|c| c["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {checked}"))["verdict"].as_str().unwrap_or_default().to_owned()
}

fn ability(checked: &Outcome, name: &str) -> String {
    let all = checked.json()["capabilities"].clone();
    let found = all.as_array().into_iter().flatten().find(|c| c["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {checked}"))["state"].as_str().unwrap_or_default().to_owned()
}

fn in_the_repository(store: &ObjectServer) -> Vec<StoredVersion> {
    let mut versions = store.versions();
    versions.retain(|v| v.key.starts_with("prod/pg/") && !v.is_marker && !v.key.contains("/probe/"));
    versions
}

/// Versions are told apart by the second in which they were made.
fn a_second_later() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    std::thread::sleep(Duration::from_millis(1100));
    now
}

#[test]
fn a_locked_repository_survives_whoever_has_the_credentials() {
    let server = installed_or_skip!();
    let store = match ObjectServer::start_locking() {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let site = locking_site(&server, &store, "locked", 7);
    // Enough for a pack that is uploaded in parts.
    site.cluster
        .psql("create table filler as select md5(g::text) || md5((-g)::text) as m from generate_series(1,300000) g");
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 20);
    let backed_up = site.pgark.json(["backup", "--type", "incr"]);
    assert_eq!(backed_up["locks"][0]["ok"], true, "{backed_up}");
    site.ledger.write_rows(&site.cluster, 20);
    let latest = site.archive_all();
    let checked = site.pgark.run(["check", "--json"]);
    assert_eq!(finding(&checked, "object lock"), "ok", "{checked}");
    assert_eq!(finding(&checked, "locks"), "ok", "{checked}");
    assert_eq!(ability(&checked, "object versions"), "yes", "{checked}");
    assert_eq!(ability(&checked, "object lock"), "yes", "{checked}");
    assert_eq!(ability(&checked, "conditional create"), "yes", "{checked}");
    let before = a_second_later();

    // Everything in the repository is locked, and nobody can remove it.
    let versions = in_the_repository(&store);
    assert!(versions.len() > 20, "{}", versions.len());
    for v in &versions {
        let (mode, until) = store.lock_of(v).unwrap_or_else(|| panic!("{v:?} is not locked"));
        assert_eq!(mode, "COMPLIANCE", "{v:?}");
        let until: jiff::Timestamp = until.parse().expect("a date");
        assert!(until.as_second() > before.as_second() + 7 * 24 * 3600, "{v:?} until {until}");
        assert_eq!(store.delete_version(v), 403, "{v:?}");
    }
    let unlocked = store.versions();
    let unlocked = unlocked.iter().find(|v| v.key.contains("/probe/") && v.is_marker).expect("what check left");
    assert_eq!(store.delete_version(unlocked), 204, "only locks protect");
    let keys: BTreeSet<String> = store.versions().into_iter().map(|v| v.key).collect();
    for key in &keys {
        assert_eq!(store.overwrite(key, "pay us"), 200, "{key}");
        assert_eq!(store.delete(key), 204, "{key}");
    }
    let gone = site.elsewhere.run(["info"]);
    assert_eq!(gone.code, Some(10), "{gone}");

    // As of before the attack everything is there: verified, restored, with WAL that recovery fetches from the past.
    let time = before.to_string();
    let look = ["--repo-target-time", &time];
    site.elsewhere.run(["verify", look[0], look[1]]).expect_code(0);
    site.assert_restores("after", &latest, 1, &look);
    // A new repository is made of it, and archiving and backups go on there.
    let new = site.scratch.dir("new");
    let past = format!("{}&as_of={time}", site.elsewhere.repo().display());
    site.elsewhere.run(["replicate", "--from", &past, "--to", &new.display().to_string()]).expect_code(0);
    let new = site.elsewhere.clone().env("PGARK_REPO", &new);
    new.run(["verify"]).expect_code(0);
}

#[test]
fn locks_are_extended_and_what_somebody_deleted_is_told() {
    let server = installed_or_skip!();
    let store = match ObjectServer::start_locking() {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let site = locking_site(&server, &store, "extended", 2);
    site.pgark.backup("full");
    site.archive_all();
    let old = in_the_repository(&store);

    // The policy becomes longer: everything that backups need follows with the next run.
    let config = site.scratch.join("pgark.toml");
    let text = std::fs::read_to_string(&config).expect("the settings");
    std::fs::write(&config, text.replace("lock_days = 2", "lock_days = 40")).expect("new settings");
    let checked = site.pgark.run(["check", "--no-switch", "--json"]);
    assert_eq!(finding(&checked, "locks"), "warning", "{checked}");
    let second = site.pgark.json(["backup", "--type", "incr"]);
    assert_eq!(second["locks"][0]["ok"], true, "{second}");
    let extended = second["locks"][0]["extended"].as_u64().expect("a number");
    assert!(extended > 5, "{second}");
    let needed = |key: &str| key.contains("/packs/") || key.contains("/manifest") || key.contains("/wal/");
    let now = jiff::Timestamp::now().as_second();
    for v in old.iter().filter(|v| needed(&v.key) && !v.key.contains("/head")) {
        let until: jiff::Timestamp = store.lock_of(v).expect("a lock").1.parse().expect("a date");
        assert!(until.as_second() > now + 40 * 24 * 3600, "{v:?} until {until}");
    }
    // A run that has nothing to extend says so.
    let expired = site.pgark.json(["expire", "--keep-last", "9", "--yes"]);
    assert_eq!(expired["locks"][0]["extended"], 0, "{expired}");
    assert_eq!(expired["locks"][0]["ok"], true, "{expired}");

    // What retention removes stays with the store until its lock ends, and that is said.
    let expired = site.pgark.run(["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"]).expect_code(0);
    assert!(expired.stdout.contains("not before"), "{expired}");
    site.ledger.write_rows(&site.cluster, 20);
    let latest = site.archive_all();
    site.assert_restores("r", &latest, 1, &[]);

    // Somebody deletes a pack, and puts something over another object.
    let listed = in_the_repository(&store);
    let pack = listed.iter().rfind(|v| v.key.contains("/packs/")).expect("a pack");
    let manifest = listed.iter().rfind(|v| v.key.ends_with("/manifest")).expect("a manifest");
    assert_eq!(store.delete(&pack.key), 204);
    assert_eq!(store.overwrite(&manifest.key, "pay us"), 200);
    let told = site.pgark.run(["expire", "--keep-last", "1", "--yes"]);
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.stderr.contains("E-LOCK") && told.stderr.contains("was deleted"), "{told}");
    assert!(told.stderr.contains("put over"), "{told}");
}

#[test]
fn only_buckets_with_versions_have_a_past() {
    let scratch = Scratch::new("nopast");
    let repo = scratch.dir("repo");
    let pgark = Pgark::new(BINARY, &scratch, &repo);
    let refused = pgark.run(["info", "--repo-target-time", "2026-01-01T00:00:00Z"]).expect_code(2);
    assert!(refused.stderr.contains("keeps no versions"), "{refused}");
    let refused = pgark.run(["info", "--repo", "s3://bucket/x?as_of=tomorrow"]).expect_code(2);
    assert!(refused.stderr.contains("no moment"), "{refused}");
    let refused = pgark.run(["info", "--repo", "s3://bucket/x?as_of=2999-01-01T00:00:00Z"]).expect_code(2);
    assert!(refused.stderr.contains("not come yet"), "{refused}");
}

/// Everything an append-only client does, and what it leaves to another one.
fn appends_only(site: &Site) -> pgark_testkit::Target {
    let full = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 20);
    site.archive_all();
    site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 20);
    let latest = site.archive_all();
    let checked = site.pgark.run(["check", "--json"]);
    assert_eq!(finding(&checked, "append only"), "ok", "{checked}");
    assert_eq!(finding(&checked, "conditional create"), "ok", "{checked}");
    let checked = site.pgark.run(["check", "--json"]);
    assert_eq!(finding(&checked, "conditional create"), "ok", "once more: {checked}");
    let expire = ["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"];
    for words in [&["delete", &full, "--yes"][..], &expire, &["key", "reencrypt", "--yes"]] {
        let refused = site.pgark.run(words).expect_code(4);
        assert!(refused.stderr.contains("E-REPO-APPEND-ONLY"), "{refused}");
    }
    site.pgark.run(["expire", "--keep-last", "1", "--dry-run"]).expect_code(0);
    latest
}

fn files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = vec![];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("list").map(|e| e.expect("entry")) {
            match entry.file_type().expect("type").is_dir() {
                true => dirs.push(entry.path()),
                false => found.push((entry.path(), std::fs::read(entry.path()).expect("read"))),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn an_append_only_client_removes_nothing_and_another_one_tidies_up() {
    let server = installed_or_skip!();
    let place = Scratch::new("appendonly-repo");
    let repo = place.dir("repo");
    let site = site_with(&server, "appendonly", &repo.display().to_string(), "append_only = true\n", &[]);
    let latest = appends_only(&site);
    let head = |all: &[(std::path::PathBuf, Vec<u8>)]| {
        all.iter().filter(|(p, _)| p.to_string_lossy().contains("/head/")).count()
    };
    let left = files(&repo);
    assert!(head(&left) > 2, "old versions of the head stay: {}", head(&left));
    // The host that may remove has no append_only.
    let other = site.elsewhere.clone().without_env("PGARK_CONFIG");
    other.run(["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"]).expect_code(0);
    assert_eq!(head(&files(&repo)), 2);
    other.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
}

#[test]
fn an_append_only_account_of_an_sftp_server_keeps_what_it_has() {
    let server = installed_or_skip!();
    let place = Scratch::new("appendssh");
    let sshd = match Sshd::start(&place, Subsystem::AppendOnly) {
        Ok(sshd) => sshd,
        Err(why) => skip!("{why}"),
    };
    let repo = place.join("repo");
    let site = site_with(&server, "appendsftp", &sshd.url(&repo, "&timeout=10"), "append_only = true\n", &[]);
    let latest = appends_only(&site);

    let before = files(&repo);
    let (object, _) = before.iter().rfind(|(p, _)| p.ends_with("manifest")).expect("a manifest");
    let object = object.display();
    let payload = place.file("payload", b"pay us", 0o644);
    let (payload, dir) = (payload.display(), repo.display());
    for command in [
        format!("rm {object}"),
        format!("rename {object} {object}.gone"),
        format!("rename -l {object} {object}.gone"),
        format!("rename {dir}/clusters {dir}/gone"),
        format!("chmod 600 {object}"),
        format!("put {payload} {object}"),
        format!("put -a {payload} {object}"),
        format!("rmdir {dir}/clusters"),
        format!("symlink {payload} {object}"),
    ] {
        let (code, words) = sshd.sftp(&command);
        assert_eq!(code, Some(1), "{command}: {words}");
    }
    let now = files(&repo);
    assert!(before == now, "something changed on the server");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
    // On the server itself, its administrator tidies up.
    let on_the_server = site.elsewhere.clone().without_env("PGARK_CONFIG").env("PGARK_REPO", &repo);
    on_the_server.run(["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"]).expect_code(0);
    site.assert_restores("r2", &latest, 1, &[]);
}

/// Sets attributes of everything below a directory, and takes them away with its end.
struct Attributes<'a>(&'a Path);

impl Attributes<'_> {
    /// What an administrator's job does: directories that only grow, files that stay.
    fn set(&self) -> bool {
        self.chattr("d", "+a") && self.chattr("f", "+i")
    }

    fn chattr(&self, what: &str, how: &str) -> bool {
        let mut find = std::process::Command::new("find");
        find.arg(self.0).args(["-type", what, "-exec", "chattr", how, "{}", "+"]);
        find.status().expect("find runs").success()
    }
}

impl Drop for Attributes<'_> {
    fn drop(&mut self) {
        self.chattr("d", "-a");
        self.chattr("f", "-i");
    }
}

#[test]
fn directories_that_only_grow_are_survived() {
    if !pgark_testkit::is_root() {
        skip!("only root sets attributes of files");
    }
    let server = installed_or_skip!();
    let place = Scratch::new("growonly");
    let repo = place.dir("repo");
    let site = site_with(&server, "growonly-site", &repo.display().to_string(), "append_only = true\n", &[]);
    site.pgark.backup("full");
    site.archive_all();
    let attributes = Attributes(&repo);
    if !attributes.set() {
        skip!("this file system has no attributes");
    }
    let before = files(&repo);
    for (path, _) in &before {
        assert!(std::fs::remove_file(path).is_err() && std::fs::write(path, "pay us").is_err(), "{}", path.display());
    }
    site.ledger.write_rows(&site.cluster, 20);
    site.archive_all();
    site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 20);
    let latest = site.archive_all();
    let now = files(&repo);
    assert!(before.iter().all(|file| now.contains(file)));
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[]);
}
