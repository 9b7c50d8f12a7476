//! Retention with real backups and WAL: what stays restores, what went is refused, and space comes back.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgark_testkit::{Fault, LoopFs, Pgark, Scratch, Target, points_of, skip, strace_works, traced, wait_until};
use serde_json::Value;

use crate::site::{BINARY, Site, sample, strings};

/// Backups with some rows before each, and the moment at which each restores to.
struct Past {
    ids: Vec<String>,
    targets: Vec<Target>,
}

fn past(site: &Site, backups: usize) -> Past {
    past_of(site, backups, "incr")
}

fn past_of(site: &Site, backups: usize, later: &str) -> Past {
    let mut past = Past { ids: vec![], targets: vec![] };
    for n in 0..backups {
        site.ledger.write_rows(&site.cluster, 3);
        past.ids.push(site.pgark.backup(if n == 0 { "full" } else { later }));
        site.ledger.write_rows(&site.cluster, 3);
        past.targets.push(Target::Lsn(site.cluster.psql("select pg_current_wal_insert_lsn()")));
        site.cluster.switch_and_archive();
    }
    past
}

fn bytes_of(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let meta = entry.metadata().expect("stat");
        total += if meta.is_dir() { bytes_of(&entry.path()) } else { meta.len() };
    }
    total
}

fn listed(pgark: &Pgark) -> Vec<String> {
    let info = pgark.json(["info"]);
    let backups = info["clusters"][0]["backups"].as_array().expect("backups");
    let complete = backups.iter().filter(|b| b["complete"] == true);
    complete.map(|b| b["id"].as_str().expect("id").to_owned()).collect()
}

fn expire(pgark: &Pgark, more: &[&str]) -> Value {
    pgark.json([&["expire", "--yes"], more].concat())
}

#[test]
fn what_stays_restores_what_went_is_refused_and_space_comes_back() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "expire");
    let past = past(&site, 4);
    let rules = ["--keep-last", "2", "--gc-grace", "0s"];
    let before = bytes_of(site.elsewhere.repo());

    let dry = site.elsewhere.json([&["expire", "--dry-run"], &rules[..]].concat());
    assert_eq!(listed(&site.elsewhere), past.ids, "a dry run changed something");
    let explained = site.elsewhere.run([&["expire", "--explain"], &rules[..]].concat()).expect_code(0);
    for id in &past.ids {
        assert!(explained.stdout.contains(id.as_str()), "{explained}");
    }
    assert!(explained.stdout.contains("lost then") && explained.stdout.contains("goes:"), "{explained}");
    // Without a terminal nothing is removed unasked.
    let unasked = site.elsewhere.run([&["expire"], &rules[..]].concat()).expect_code(4);
    assert!(unasked.stderr.contains("E-CONFIRM"), "{unasked}");
    assert_eq!(listed(&site.elsewhere), past.ids);

    let done = expire(&site.elsewhere, &rules);
    for key in ["kept", "expired", "backups", "wal"] {
        assert_eq!(done[key], dry[key], "the run did something else than the dry run said");
    }
    assert_eq!(strings(&done["expired"]), past.ids[..2]);
    assert_eq!(listed(&site.elsewhere), past.ids[2..]);
    assert!(done["removed"]["bytes"].as_u64() > Some(0), "{done}");
    let after = bytes_of(site.elsewhere.repo());
    assert!(after < before, "{before} {after}");
    let verify = site.elsewhere.json(["verify"]);
    assert_eq!(verify["ok"], true, "{verify}");
    let info = site.elsewhere.json(["info"]);
    assert_eq!(info["clusters"][0]["gaps"].as_array().map(Vec::len), Some(0), "{info}");

    // Inside the window recovery goes to any moment, outside of it nothing is written.
    site.assert_restores("inside", &past.targets[2], 1, &[]);
    site.assert_restores("latest", &past.targets[3], 1, &[]);
    let (to, refused) = site.try_restore("outside", &past.targets[0], &[]);
    assert_eq!(refused.code, Some(4), "{refused}");
    assert!(!to.exists());

    // The server goes on, also from what the expiry left: increments, archiving, restores.
    site.ledger.write_rows(&site.cluster, 2);
    site.pgark.backup("incr");
    let latest = site.archive_all();
    site.assert_restores("later", &latest, 1, &[]);
    assert!(!expire(&site.elsewhere, &["--keep-last", "3", "--gc-grace", "0s"])["done"].as_bool().expect("done"));
}

#[test]
fn an_old_backup_that_is_kept_restores_alone_and_says_what_has_expired() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "hold");
    let past = past(&site, 5);
    site.elsewhere.run(["keep", &past.ids[0], "--legal-hold", "case 4711"]).expect_code(0);
    site.elsewhere.run(["unkeep", &past.ids[0]]).expect_code(0);
    site.elsewhere.run(["delete", &past.ids[0], "--yes"]).expect_code(4);
    // WAL stays from one of the newest on, whatever is held.
    expire(&site.elsewhere, &["--keep-last", "1", "--wal", "1s", "--gc-grace", "0s"]);
    let stay = listed(&site.elsewhere);
    assert!(stay.contains(&past.ids[0]) && stay.contains(&past.ids[4]), "{stay:?}");
    assert!(!stay.contains(&past.ids[1]), "{stay:?}");
    site.elsewhere.run(["verify"]).expect_code(0);

    let stop = site.elsewhere.backup_info(&past.ids[0])["lsn_stop"].as_str().expect("lsn_stop").to_owned();
    site.assert_restores("held", &Target::Immediate { lsn_stop: stop }, 1, &[&past.ids[0]]);
    let to = site.scratch.join("no");
    let latest = site.elsewhere.run(["restore", &past.ids[0], "--to", to.to_str().expect("UTF-8")]).expect_code(4);
    assert!(latest.stderr.contains("E-WAL-EXPIRED") && latest.stderr.contains("--target-immediate"), "{latest}");
    let list = site.elsewhere.run(["wal", "list"]).expect_code(0);
    assert!(list.stdout.contains("have expired") && !list.stdout.contains("GAP"), "{list}");
    // Never 1, which PostgreSQL takes for the end of the archive.
    let wal = site.elsewhere.json(["wal", "list"]);
    let expired = wal["timelines"][0]["expired"][0]["first"].as_str().expect("an expired segment").to_owned();
    let got = site.scratch.join("got");
    let fetched = site.elsewhere.run(["archive-get", &expired, got.to_str().expect("UTF-8")]);
    assert_eq!(fetched.code, Some(126), "{fetched}");
    assert!(fetched.stderr.contains("E-WAL-EXPIRED"), "{fetched}");

    site.elsewhere.run(["unkeep", &past.ids[0], "--lift-hold", "case 4711"]).expect_code(0);
    expire(&site.elsewhere, &["--keep-last", "1", "--wal", "1s", "--gc-grace", "0s"]);
    assert!(!listed(&site.elsewhere).contains(&past.ids[0]));
    site.assert_restores("newest", &past.targets[4], 1, &[]);
}

#[test]
fn the_policy_comes_from_the_configuration_and_the_grace_is_kept() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "policy");
    let past = past(&site, 3);
    let none = site.elsewhere.run(["expire", "--yes"]).expect_code(4);
    assert!(none.stderr.contains("E-EXPIRE-POLICY"), "{none}");
    let config = format!(
        "[repos.r]\nurl = '{}'\n[clusters.main]\nrepos = ['r']\n[clusters.main.retention]\nkeep_last = 1\n\
         time_zone = 'Europe/Berlin'\n",
        site.elsewhere.repo().display()
    );
    let file = site.scratch.file("pgark.toml", config.as_bytes(), 0o644);
    let configured = site.elsewhere.clone().without_env("PGARK_REPO").env("PGARK_CONFIG", &file);
    let before = bytes_of(site.elsewhere.repo());
    let done = expire(&configured, &[]);
    assert_eq!(strings(&done["expired"]), past.ids[..2]);
    assert_eq!(done["removed"]["backups_waiting"], 2, "{done}");
    assert!(bytes_of(site.elsewhere.repo()) + 100_000 > before, "it went before its grace was over");
    let verify = site.elsewhere.run(["verify"]).expect_code(0);
    assert!(verify.stdout.contains("have expired"), "{verify}");
    let info = site.elsewhere.run(["info"]).expect_code(0);
    assert!(info.stdout.contains("2 backups and"), "{info}");
    expire(&configured, &["--gc-grace", "0s"]);
    assert!(bytes_of(site.elsewhere.repo()) < before);
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &past.targets[2], 1, &[]);
}

/// The program itself, stopped and killed at its system calls.
#[test]
fn an_expiry_that_is_killed_anywhere_leaves_everything_listed_whole() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let site = Site::small(&server, "kill-exp");
    let past = past(&site, 3);
    let saved = site.scratch.join("template");
    let repo = site.elsewhere.repo().to_owned();
    let copy = |from: &Path, to: &Path| {
        let mut command = pgark_testkit::as_postgres("cp");
        assert!(command.arg("-a").arg(from).arg(to).status().expect("cp").success());
    };
    copy(&repo, &saved);
    let put_back = || {
        fs::remove_dir_all(&repo).expect("remove");
        copy(&saved, &repo);
    };
    let words = ["expire", "--yes", "--keep-last", "1", "--gc-grace", "0s"];
    let points = points_of(&site.elsewhere, &site.scratch, &words);
    let mut killed = 0;
    for (n, point) in sample(&points, 24).into_iter().enumerate() {
        put_back();
        let outcome = traced(&site.elsewhere, point, Fault::Kill, &words);
        killed += u32::from(!outcome.succeeded());
        site.elsewhere.run(["verify"]).expect_code(0);
        assert!(listed(&site.elsewhere).contains(&past.ids[2]), "{point:?}");
        site.elsewhere.run(words).expect_code(0);
        assert_eq!(listed(&site.elsewhere), past.ids[2..], "{point:?}");
        site.elsewhere.run(["verify"]).expect_code(0);
        if n % 8 == 0 {
            site.assert_restores(&format!("r{n}"), &past.targets[2], 1, &[]);
        }
    }
    assert!(killed > 5, "only {killed} of the kills hit the expiry");
}

#[test]
fn expire_works_on_a_file_system_that_is_full_and_makes_room() {
    let server = installed_or_skip!();
    let disk = match LoopFs::new(96) {
        Ok(disk) => disk,
        Err(why) => skip!("{why}"),
    };
    let repo = disk.dir("repo");
    let shape = |b: pgark_testkit::ClusterBuilder| b.wal_segsize_mb(1).conf("autovacuum = off");
    let site = Site::with_repo(&server, Scratch::new("full-exp"), &repo, shape);
    let past = past_of(&site, 3, "full");
    disk.fill_leaving(256 << 10);
    fill_to_the_last_block(disk.path());
    assert!(!site.pgark.run(["backup", "--type", "full"]).succeeded(), "there was room for a backup");
    let free = || {
        let stat = rustix_free(disk.path());
        assert!(stat.is_some());
        stat.unwrap_or(0)
    };
    let before = free();
    // The grace is longer than a full disk can wait.
    let done = expire(&site.elsewhere, &["--keep-last", "1"]);
    assert_eq!(done["removed"]["repository_was_full"], true, "{done}");
    assert_eq!(listed(&site.elsewhere), past.ids[2..]);
    assert!(free() > before + 1_000_000, "no room was made: {before} {}", free());
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &past.targets[2], 1, &[]);

    // A copy has one version of its head, and nothing older that could make way.
    let copy = Pgark::new(BINARY, &site.scratch, &disk.path().join("copy"));
    fs::remove_file(disk.path().join("ballast")).expect("remove");
    site.pgark.backup("full");
    let latest = site.archive_all();
    let plain = site.elsewhere.clone().without_env("PGARK_REPO");
    let (from, to) = (repo.display().to_string(), copy.repo().display().to_string());
    plain.run(["replicate", "--from", &from, "--to", &to]).expect_code(0);
    fs::remove_dir_all(&repo).expect("the first one makes room");
    disk.fill_leaving(256 << 10);
    fill_to_the_last_block(disk.path());
    let before = free();
    let done = expire(&copy, &["--keep-last", "1"]);
    assert_eq!(strings(&done["expired"]), past.ids[2..], "{done}");
    assert!(free() > before + 1_000_000, "no room was made: {before} {}", free());
    copy.run(["verify"]).expect_code(0);
    let moved = Site { elsewhere: copy, ..site };
    moved.assert_restores("r-copy", &latest, 1, &[]);
}

/// Small files until not even one byte fits.
fn fill_to_the_last_block(dir: &Path) {
    for n in 0..100_000 {
        let file = dir.join(format!("small-{n}"));
        if !file.exists() && fs::write(file, [1; 4096]).is_err() {
            return;
        }
    }
    panic!("the file system is never full");
}

fn rustix_free(dir: &Path) -> Option<u64> {
    let output = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().nth(1)?.trim().parse().ok()
}

/// A stopped process goes on after another expiry and a backup have come and gone.
#[test]
fn an_expiry_that_is_frozen_and_thawed_does_no_harm_beside_backups_and_restores() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "frozen");
    let past = past(&site, 4);
    let words = ["expire", "--yes", "--keep-last", "2", "--gc-grace", "0s"];
    for delay_ms in [5, 20, 40, 80] {
        let mut command = site.elsewhere.command(words);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start pgark");
        std::thread::sleep(Duration::from_millis(delay_ms));
        let pid = child.id().to_string();
        let signal = |name: &str| {
            // It may have ended already.
            let _ = std::process::Command::new("kill").args([name, &pid]).stderr(Stdio::null()).status();
        };
        signal("-STOP");
        // A backup and a restore need no claim that a stopped expiry could hold.
        site.ledger.write_rows(&site.cluster, 1);
        let id = site.pgark.backup("incr");
        let latest = site.archive_all();
        site.assert_restores(&format!("r{delay_ms}"), &latest, 1, &[&id]);
        signal("-CONT");
        wait_until("the thawed expiry ends", Duration::from_secs(60), || child.try_wait().expect("wait").map(drop));
        site.elsewhere.run(["verify"]).expect_code(0);
        assert!(listed(&site.elsewhere).contains(&id));
    }
    site.elsewhere.run(words).expect_code(0);
    assert_eq!(listed(&site.elsewhere).len(), 2);
    assert!(!listed(&site.elsewhere).contains(&past.ids[0]));
    site.elsewhere.run(["verify"]).expect_code(0);
    site.ledger.write_rows(&site.cluster, 1);
    let latest = site.archive_all();
    site.assert_restores("last", &latest, 1, &[]);
}

#[test]
fn an_expiry_beside_a_running_backup_leaves_it_what_it_builds_on() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "beside");
    let past = past(&site, 3);
    let mut command = site.pgark.command(["backup", "--type", "full", "--limit-rate", "4MB", "--json"]);
    let mut backup = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start pgark");
    let running = || {
        let info = site.elsewhere.json(["info"]);
        let backups = info["clusters"][0]["backups"].as_array().cloned().unwrap_or_default();
        backups.iter().any(|b| b["running"] == true).then_some(())
    };
    wait_until("the backup runs", Duration::from_secs(60), running);
    let done = expire(&site.elsewhere, &["--keep-last", "1", "--gc-grace", "0s"]);
    assert_eq!(strings(&done["expired"]), past.ids[..2]);
    assert!(running().is_some(), "the backup was over too early for this test");
    let ended = wait_until("the backup ends", Duration::from_secs(120), || backup.try_wait().expect("wait"));
    assert_eq!(ended.code(), Some(0));
    assert_eq!(listed(&site.elsewhere).len(), 2);
    site.elsewhere.run(["verify"]).expect_code(0);
    let latest = site.archive_all();
    site.assert_restores("r", &latest, 1, &[]);
}
