//! Retention when somebody is mistaken: a policy, a deletion, a flag.

use std::fs;
use std::path::Path;

use pgark_testkit::{Pgark, Target, skip};
use serde_json::Value;

use crate::site::{Site, strings};

fn listed(pgark: &Pgark) -> Vec<String> {
    let info = pgark.json(["info"]);
    let backups = info["clusters"][0]["backups"].as_array().expect("backups");
    backups.iter().map(|b| b["id"].as_str().expect("id").to_owned()).collect()
}

/// Backups, and a moment after each.
fn past(site: &Site, types: &[&str]) -> Vec<(String, Target)> {
    let one = |kind: &&str| {
        site.ledger.write_rows(&site.cluster, 3);
        let id = site.pgark.backup(kind);
        site.ledger.write_rows(&site.cluster, 3);
        let target = Target::Lsn(site.cluster.psql("select pg_current_wal_insert_lsn()"));
        site.cluster.switch_and_archive();
        (id, target)
    };
    types.iter().map(one).collect()
}

fn files_in(dir: &Path) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir(dir).expect("list").flatten() {
        count += if entry.file_type().expect("type").is_dir() { files_in(&entry.path()) } else { 1 };
    }
    count
}

#[test]
fn what_expired_by_mistake_comes_back_and_restores() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "unexpire");
    let past = past(&site, &["full", "incr", "incr", "full"]);
    let ids: Vec<&str> = past.iter().map(|(id, _)| id.as_str()).collect();
    let done = site.elsewhere.json(["expire", "--yes", "--keep-last", "1"]);
    assert_eq!(strings(&done["expired"]), ids[..3]);
    let (to, refused) = site.try_restore("gone", &past[1].1, &[]);
    assert!(refused.code == Some(4) && !to.exists(), "{refused}");
    let kept = site.elsewhere.run(["keep", ids[1]]).expect_code(4);
    assert!(kept.stderr.contains("E-BACKUP-EXPIRED") && kept.stderr.contains("pgark unexpire"), "{kept}");
    let info = site.elsewhere.run(["info"]).expect_code(0);
    assert!(info.stdout.contains(&format!("pgark unexpire {}", ids[1])), "{info}");

    let tried = site.elsewhere.json(["unexpire", ids[1], "--dry-run"]);
    let done = site.elsewhere.json(["unexpire", ids[1]]);
    assert_eq!((&tried["wal"], &tried["reaches"]), (&done["wal"], &done["reaches"]));
    assert_eq!(done["gone"].as_array().map(Vec::len), Some(0), "{done}");
    assert_eq!(listed(&site.elsewhere), [ids[1], ids[3]]);
    site.elsewhere.run(["verify"]).expect_code(0);
    for n in [1, 2, 3] {
        site.assert_restores(&format!("r{n}"), &past[n].1, 1, &[]);
    }
    // The rules do not take it again, nor what it shares with the full one that is going.
    site.elsewhere.run(["expire", "--yes", "--keep-last", "1", "--gc-grace", "0s"]).expect_code(0);
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("again", &past[2].1, 1, &[]);
    let late = site.elsewhere.run(["unexpire", ids[2]]).expect_code(4);
    assert!(late.stderr.contains("E-BACKUP-NONE") || late.stderr.contains("E-UNEXPIRE-GONE"), "{late}");
}

#[test]
fn a_deletion_removes_as_many_objects_as_it_says() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "delete");
    let past = past(&site, &["full", "incr", "full"]);
    let backups = site.elsewhere.repo().join("clusters/main/backups");
    for (id, _) in &past[..2] {
        let before = files_in(&backups);
        let said = site.elsewhere.json(["delete", id, "--dry-run"]);
        let done = site.elsewhere.json(["delete", id, "--yes"]);
        assert_eq!(said["objects"], done["objects"]);
        assert_eq!(Value::from(before - files_in(&backups)), done["objects"], "{done}");
        site.elsewhere.run(["verify"]).expect_code(0);
    }
    site.assert_restores("r", &past[2].1, 1, &[]);
}

#[test]
fn quiet_says_what_scripts_need_and_a_number_that_is_none_is_told() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "quiet");
    let first = site.pgark.run(["backup", "-q"]).expect_code(0);
    assert_eq!(first.stdout.lines().collect::<Vec<_>>(), listed(&site.pgark));
    let second = site.pgark.run(["backup", "-q"]).expect_code(0).stdout.trim().to_owned();
    for words in [vec!["keep", &second, "-q"], vec!["expire", "-q", "--yes", "--keep-last", "1"]] {
        let outcome = site.elsewhere.run(&words).expect_code(0);
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""), "{words:?}");
    }
    assert_eq!(listed(&site.elsewhere), [second]);
    let shown = site.elsewhere.run(["expire", "-q", "--dry-run", "--keep-last", "1"]).expect_code(0);
    assert!(shown.stdout.contains("stays"), "{shown}");
    for flag in ["--keep-last", "--keep-daily", "--max-backups", "--min-backups"] {
        for wrong in ["-3", "1.5", "many", "99999999999"] {
            let refused = site.elsewhere.run(["expire", flag, wrong]).expect_code(2);
            let told = refused.stderr.contains("E-EXPIRE-NUMBER") && refused.stderr.contains(flag);
            assert!(told && refused.stderr.contains("HINT"), "{refused}");
        }
    }
}

/// Debian's place of libfaketime, under the architecture's directory.
fn faketime() -> Option<std::path::PathBuf> {
    let libraries = fs::read_dir("/usr/lib").ok()?.flatten();
    libraries.map(|dir| dir.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

/// The clock of the machine itself is wrong, as the program sees it.
#[test]
fn a_clock_of_another_year_expires_nothing_and_the_right_one_goes_on() {
    let server = installed_or_skip!();
    let Some(library) = faketime() else { skip!("libfaketime is not installed") };
    let site = Site::small(&server, "faketime");
    let past = past(&site, &["full", "incr", "full"]);
    let ids: Vec<&str> = past.iter().map(|(id, _)| id.as_str()).collect();
    let objects = || files_in(&site.elsewhere.repo().join("clusters/main/backups"));
    let before = objects();
    let policy = ["--window", "7d", "--wal", "7d"];
    for (jump, code) in [("+3650d", "E-EXPIRE-CLOCKS"), ("+40d", "E-EXPIRE-CLOCKS"), ("-3650d", "E-EXPIRE-CLOCK")] {
        let wrong = site.elsewhere.with_clock(&site.scratch, &library, jump);
        let refused = wrong.run([&["expire", "--yes"][..], &policy].concat()).expect_code(4);
        assert!(refused.stderr.contains(code), "{jump}: {refused}");
        assert_eq!(
            (listed(&site.elsewhere), objects()),
            (ids.iter().map(ToString::to_string).collect(), before),
            "{jump}"
        );
    }
    let done = site.elsewhere.json([&["expire", "--yes"][..], &policy].concat());
    assert_eq!(done["expired"], Value::Array(vec![]), "nothing is that old: {done}");
    assert_eq!(listed(&site.elsewhere), ids);
    site.assert_restores("r", &past[1].1, 1, &[]);
}
