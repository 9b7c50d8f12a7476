//! Copies between repositories: whichever of two is destroyed, the other restores everything it was given.

use std::path::Path;

use pgark_testkit::{
    Fault, ObjectServer, ObjectServerKind, Pgark, Point, objects_under, points_of, skip, strace_works, traced,
};

use crate::site::{BINARY, Site, sample};

/// A full backup, an incremental one that rests on it, WAL behind both.
fn site_with_two_backups(label: &str) -> Option<(Site, String, String)> {
    let server = match pgark_testkit::Server::installed() {
        Ok(server) => server,
        Err(why) => {
            assert!(!pgark_testkit::demanded(), "{why}");
            return None;
        }
    };
    let site = Site::small(&server, label);
    site.cluster.psql("create table t as select g, md5(g::text) m from generate_series(1, 20000) g");
    let full = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 5);
    let incr = site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 5);
    Some((site, full, incr))
}

fn at(site: &Site, repo: &str) -> Pgark {
    Pgark::new(BINARY, &site.scratch, Path::new(repo))
}

fn replicate(site: &Site, from: &str, to: &str, more: &[&str]) -> serde_json::Value {
    site.elsewhere.clone().without_env("PGARK_REPO").json([&["replicate", "--from", from, "--to", to], more].concat())
}

#[test]
fn a_copy_restores_when_the_first_repository_is_gone() {
    let Some((site, full, incr)) = site_with_two_backups("repl") else { return };
    site.archive_all();
    let from = site.elsewhere.repo().display().to_string();
    let to = site.scratch.join("copy").display().to_string();

    let planned = replicate(&site, &from, &to, &["--dry-run"]);
    assert_eq!(planned["backups"].as_array().map(Vec::len), Some(2), "{planned}");
    assert!(!Path::new(&to).exists(), "a dry run makes nothing");

    let done = replicate(&site, &from, &to, &[]);
    assert_eq!(done["backups"], serde_json::json!([full, incr]), "{done}");
    assert_eq!(done["segments"], planned["segments"], "{done}");
    let again = replicate(&site, &from, &to, &[]);
    assert_eq!((again["objects"].as_u64(), again["segments"].as_u64()), (Some(0), Some(0)), "{again}");

    // More of everything, and only that is copied.
    site.ledger.write_rows(&site.cluster, 5);
    let third = site.pgark.backup("incr");
    let newest = site.archive_all();
    let more = replicate(&site, &from, &to, &[]);
    assert_eq!(more["backups"], serde_json::json!([third]), "{more}");

    // Each of them stands alone, in the copy too: what a deleted one leaves is what others need.
    let copy = at(&site, &to);
    assert_eq!(copy.json(["verify"])["ok"], true);
    copy.run(["delete", &full, "--yes"]).expect_code(0);
    assert_eq!(copy.json(["verify"])["ok"], true);
    std::fs::remove_dir_all(&from).expect("the first repository is destroyed");
    let moved = Site { elsewhere: copy.clone(), ..site };
    moved.assert_restores("r-newest", &newest, 1, &[]);
    moved.assert_restores("r-incr", &newest, 1, &[&incr]);
    copy.run(["delete", &incr, "--yes"]).expect_code(0);
    moved.assert_restores("r-third", &newest, 1, &[&third]);
    assert_eq!(copy.json(["verify"])["ok"], true);
}

#[test]
fn an_incremental_backup_alone_brings_what_it_rests_on() {
    let Some((site, full, incr)) = site_with_two_backups("repl1") else { return };
    let latest = site.archive_all();
    let from = site.elsewhere.repo().display().to_string();
    let to = site.scratch.join("copy").display().to_string();
    let done = replicate(&site, &from, &to, &[&incr]);
    assert_eq!(done["backups"], serde_json::json!([incr]), "{done}");
    let copy = at(&site, &to);
    assert_eq!(copy.json(["verify"])["ok"], true);
    // Its base can follow.
    let rest = replicate(&site, &from, &to, &[]);
    assert_eq!(rest["backups"], serde_json::json!([full]), "{rest}");
    // And back, into a third place.
    let third = site.scratch.join("third").display().to_string();
    replicate(&site, &to, &third, &[]);
    let moved = Site { elsewhere: at(&site, &third), ..site };
    moved.assert_restores("r-third", &latest, 1, &[&incr]);
    moved.elsewhere.run(["delete", &incr, "--yes"]).expect_code(0);
    moved.elsewhere.run(["delete", &full, "--yes", "--last"]).expect_code(0);
    // Directories go with their last object.
    let left = Path::new(&third).join("clusters/main/backups");
    assert!(!left.exists(), "packs that nobody needs are left: {:?}", objects_under(&left));
}

#[test]
fn a_damaged_pack_keeps_its_backups_from_being_listed_in_the_copy() {
    let Some((site, full, incr)) = site_with_two_backups("repl2") else { return };
    site.archive_all();
    let from = site.elsewhere.repo().to_owned();
    let to = site.scratch.join("copy");
    let pack = from.join(format!("clusters/main/backups/{incr}/packs/000001"));
    let mut bytes = std::fs::read(&pack).expect("the pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).expect("damage");
    let outcome = site.elsewhere.clone().without_env("PGARK_REPO").run([
        "replicate",
        "--json",
        "--from",
        &from.display().to_string(),
        "--to",
        &to.display().to_string(),
    ]);
    let done = outcome.expect_code(3).json();
    assert_eq!(done["backups"], serde_json::json!([full]), "{done}");
    assert_eq!(done["failed"][0]["what"], serde_json::json!(incr), "{done}");
    let copy = at(&site, &to.display().to_string());
    let info = copy.json(["info"]);
    let complete = |b: &serde_json::Value| b["complete"] == true;
    let backups = info["clusters"][0]["backups"].as_array().expect("backups");
    assert_eq!(backups.iter().filter(|b| complete(b)).count(), 1, "{info}");
    assert_eq!(copy.json(["verify", &full])["ok"], true);
}

#[test]
fn what_a_copy_has_lost_comes_back() {
    let Some((site, full, incr)) = site_with_two_backups("repl6") else { return };
    site.archive_all();
    let from = site.elsewhere.repo().display().to_string();
    let to = site.scratch.join("copy");
    let target = to.display().to_string();
    replicate(&site, &from, &target, &[]);
    let segments = |repo: &Path| {
        let all = objects_under(&repo.join("clusters/main/wal")).into_iter();
        let mut found: Vec<_> = all.filter(|p| p.file_name().is_some_and(|f| f.len() == 24)).collect();
        found.sort();
        found
    };
    let lost = segments(&to).pop().expect("a segment");
    std::fs::remove_file(&lost).expect("remove");
    std::fs::remove_file(to.join(format!("clusters/main/backups/{full}/packs/000001"))).expect("remove");
    std::fs::remove_file(to.join(format!("clusters/main/backups/{incr}/record"))).expect("remove");
    let copy = at(&site, &target);
    assert_eq!(copy.run(["verify"]).code, Some(20));
    let planned = replicate(&site, &from, &target, &["--dry-run"]);
    assert_eq!(planned["incomplete"], serde_json::json!([full, incr]), "{planned}");
    let done = replicate(&site, &from, &target, &[]);
    assert_eq!(done["completed"], serde_json::json!([full, incr]), "{done}");
    assert_eq!(done["segments"], 1, "{done}");
    assert_eq!(copy.json(["verify"])["ok"], true);

    // A segment that was lost can also be archived again.
    let lost = segments(site.elsewhere.repo()).pop().expect("a segment");
    let name = lost.file_name().expect("a name").to_string_lossy().into_owned();
    let file = site.scratch.join(&name);
    copy.run(["archive-get", &name, &file.display().to_string()]).expect_code(0);
    std::fs::remove_file(&lost).expect("remove");
    site.pgark.run(["archive-push", &file.display().to_string(), "--alone"]).expect_code(0);
    assert_eq!(site.elsewhere.json(["verify"])["ok"], true);
}

/// Neither the beginning of a segment that a longer one has replaced is missed in a copy, nor the old WAL of a backup that comes back.
#[test]
fn a_backup_that_a_copy_gave_up_comes_back_with_its_wal() {
    let Some((site, full, incr)) = site_with_two_backups("repl7") else { return };
    site.cluster.psql("select pg_logical_emit_message(true, 'test', 'the segment exists')");
    site.cluster.psql("checkpoint");
    let unfinished = site.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    let path = site.cluster.data_dir().join("pg_wal").join(&unfinished);
    site.pgark.run(["archive-push", "--alone", &path.display().to_string()]).expect_code(0);
    site.ledger.write_rows(&site.cluster, 5);
    site.archive_all();
    let from = site.elsewhere.repo().to_owned();
    let replaced = objects_under(&from).into_iter().filter(|p| p.to_string_lossy().ends_with(".r1"));
    assert_eq!(replaced.count(), 1);
    let from = from.display().to_string();
    let to = site.scratch.join("copy").display().to_string();
    replicate(&site, &from, &to, &[]);
    let copy = at(&site, &to);
    assert_eq!(copy.json(["verify"])["ok"], true);

    let expire = |grace| copy.run(["expire", "--yes", "--keep-last", "1", "--gc-grace", grace]).expect_code(0);
    expire("1d");
    let plain = site.elsewhere.clone().without_env("PGARK_REPO");
    let refused = plain.run(["replicate", "--from", &from, "--to", &to, &full]).expect_code(4);
    assert!(refused.stderr.contains("E-BACKUP-EXPIRED") && refused.stderr.contains("unexpire"), "{refused}");
    let waits = expire("1d").stdout;
    assert!(waits.contains("nothing more expires") && waits.contains("1 backups and"), "{waits}");
    expire("0s");
    // What is newer comes first, as it does every day.
    site.ledger.write_rows(&site.cluster, 5);
    let third = site.pgark.backup("incr");
    let newest = site.archive_all();
    let done = replicate(&site, &from, &to, &[]);
    assert_eq!(done["backups"], serde_json::json!([full, third]), "{done}");
    assert_eq!(
        (done["failed"].as_array().map(Vec::len), done["segments"].as_u64() > Some(1)),
        (Some(0), true),
        "{done}"
    );
    let again = replicate(&site, &from, &to, &[]);
    assert_eq!((again["objects"].as_u64(), again["segments"].as_u64()), (Some(0), Some(0)), "{again}");
    assert_eq!(copy.json(["verify"])["ok"], true);
    let moved = Site { elsewhere: copy.clone(), ..site };
    moved.assert_restores("r-full", &newest, 1, &[&full]);
    moved.assert_restores("r-incr", &newest, 1, &[&incr]);
}

#[test]
fn a_repository_of_another_key_is_left_alone() {
    let Some((site, ..)) = site_with_two_backups("repl3") else { return };
    let from = site.elsewhere.repo().display().to_string();
    let other = site.scratch.join("other").display().to_string();
    at(&site, &other).on(&site.cluster).run(["init"]).expect_code(0);
    let outcome = site.elsewhere.clone().without_env("PGARK_REPO").run(["replicate", "--from", &from, "--to", &other]);
    assert_eq!(outcome.code, Some(12), "{outcome}");
    let same = site.elsewhere.clone().without_env("PGARK_REPO").run(["replicate", "--from", &from, "--to", &from]);
    assert_eq!(same.code, Some(2), "{same}");
}

#[test]
fn a_copy_goes_from_a_directory_into_a_bucket_and_back() {
    let store = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let Some((mut site, _, incr)) = site_with_two_backups("repl4") else { return };
    let latest = site.archive_all();
    for (name, value) in store.environment() {
        site.elsewhere = site.elsewhere.env(&name, value);
    }
    let from = site.elsewhere.repo().display().to_string();
    replicate(&site, &from, &store.url("copy"), &[]);
    // The bucket has no object lock, and is asked for it.
    let text = format!(
        "[repos.locked]\nurl = '{}'\npassphrase_file = '{}'\nlock = 'compliance'\nlock_days = 7\n",
        store.url("locked"),
        site.elsewhere.passphrase_file().display()
    );
    let config = site.scratch.file("locked.toml", text.as_bytes(), 0o600).display().to_string();
    let plain = site.elsewhere.clone().without_env("PGARK_REPO");
    let refused = plain.run(["--config", &config, "replicate", "--from", &from, "--to", "locked"]).expect_code(4);
    assert!(refused.stderr.contains("E-LOCK-BUCKET") && refused.stderr.contains("HINT: "), "{refused}");
    std::fs::remove_dir_all(&from).expect("the first repository is destroyed");
    let back = site.scratch.join("back").display().to_string();
    replicate(&site, &store.url("copy"), &back, &[]);
    let moved = Site { elsewhere: at(&site, &back), ..site };
    assert_eq!(moved.elsewhere.json(["verify"])["ok"], true);
    moved.assert_restores("r-back", &latest, 1, &[&incr]);
}

/// The second copy of a register is made after the first: of the version of the kill it can be missing, until versions go on.
fn assert_whole(copy: &Pgark, verify: &[&str], point: Point) {
    let found = copy.run([verify, &["--json"]].concat()).json();
    let problems = found["problems"].as_array().cloned().unwrap_or_default();
    let lost = |p: &&serde_json::Value| !p["object"].as_str().is_some_and(|o| o.contains("-mirror/"));
    assert_eq!(problems.iter().find(lost), None, "{point:?}");
}

/// Killed at any system call, the copy lists only what is whole, and the next run completes it.
#[test]
fn a_replication_that_is_killed_anywhere_can_be_repeated() {
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let Some((site, full, incr)) = site_with_two_backups("repl5") else { return };
    site.archive_all();
    let from = site.elsewhere.repo().display().to_string();
    let plain = site.elsewhere.clone().without_env("PGARK_REPO");
    let words = |to: &str| ["replicate", "-j", "1", "--from", &from, "--to", to].map(str::to_owned);
    let first = site.scratch.join("k-all").display().to_string();
    let points: Vec<Point> = points_of(&plain, &site.scratch, &words(&first));
    assert!(points.len() > 100, "{} points", points.len());
    for (n, point) in sample(&points, 12).into_iter().enumerate() {
        let to = site.scratch.join(format!("k-{n}")).display().to_string();
        traced(&plain, point, Fault::Kill, &words(&to));
        let copy = at(&site, &to);
        let info = copy.run(["info", "--json"]);
        if info.code == Some(0) {
            assert_whole(&copy, &["verify", "--quick"], point);
        }
        let done = replicate(&site, &from, &to, &[]);
        assert!(done["failed"].as_array().is_some_and(Vec::is_empty), "{point:?}: {done}");
        let listed = copy.json(["info"])["clusters"][0]["backups"].to_string();
        assert!(listed.contains(&full) && listed.contains(&incr), "{point:?}: {listed}");
        assert_whole(&copy, &["verify"], point);
        std::fs::remove_dir_all(&to).expect("remove");
    }
}
