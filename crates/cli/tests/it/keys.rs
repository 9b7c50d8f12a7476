//! The keys of a repository: who opens it, and a new master key while everything runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pgark_testkit::{
    Ending, Fault, Outcome, Pgark, Recovered, Scratch, Target, assert_same_state, objects_under, points_of,
    repository_tree, skip, state_of, strace_works, traced, wait_until,
};
use serde_json::Value;

use crate::crash::{Template, quiet_site, visited};
use crate::site::{BINARY, Site, strings};

const IDENTITY: &str = "AGE-SECRET-KEY-1U0CHDP2NQ3N4A3L0ZDVFQM64P03A4673MEHMKNTQUH9NWC4QCVKSTL4ZRP";
const RECIPIENT: &str = "age1up7jlexn7tc3sja3e22hhh4npqul7q5e8sauvfqlmvv5l0kh9prqxpj29d";
/// Of an identity that nobody has.
const OTHER_RECIPIENT: &str = "age1vgd6k5n5vhktywlz9rrlpd0afjxz90tk7nykl7pssg4rncdnuf3q84k2mk";
pub const FIRST: &str = "correct horse battery staple";
pub const SECOND: &str = "canary second passphrase";

/// Opens with another passphrase than the site's.
pub fn with_passphrase(pgark: &Pgark, scratch: &Scratch, name: &str, passphrase: &str) -> (Pgark, PathBuf) {
    let file = scratch.file(name, format!("{passphrase}\n").as_bytes(), 0o600);
    (pgark.clone().env("PGARK_PASSPHRASE_FILE", &file), file)
}

fn slots(pgark: &Pgark) -> Vec<Value> {
    pgark.json(["key", "list"])["slots"].as_array().expect("slots").clone()
}

fn id_of(slot: &Value) -> String {
    slot["id"].as_str().unwrap_or_else(|| panic!("{slot}")).to_owned()
}

pub fn slot_of(pgark: &Pgark, kind: &str) -> String {
    let slots = slots(pgark);
    id_of(slots.iter().rfind(|s| s["kind"] == kind).unwrap_or_else(|| panic!("{slots:?}")))
}

#[track_caller]
pub fn refused(outcome: Outcome, code: i32, name: &str) {
    let outcome = outcome.expect_code(code);
    assert!(outcome.stderr.contains(name) && outcome.stderr.contains("HINT"), "{outcome}");
    no_secret(&outcome);
}

fn no_secret(outcome: &Outcome) {
    for secret in [FIRST, SECOND, IDENTITY] {
        assert!(!outcome.stdout.contains(secret) && !outcome.stderr.contains(secret), "{outcome}");
    }
}

#[test]
fn slots_are_listed_added_and_removed() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "slots");
    let (first, scratch) = (&site.pgark, &site.scratch);
    let (second, file) = with_passphrase(first, scratch, "second", SECOND);
    let file = file.to_str().expect("text");
    refused(second.run(["key", "list"]), 12, "E-KEY-WRONG");

    let before = repository_tree(first.repo());
    let add = ["key", "add", "--new-passphrase-file", file, "--label", "in the safe"];
    first.run([&add[..], &["--dry-run"]].concat()).expect_code(0);
    before.assert_same(&repository_tree(first.repo()), "a dry run");
    let added = first.json(add);
    assert_eq!((&added["added"], &added["slot"]["opened"]), (&true.into(), &true.into()), "{added}");
    assert_eq!(first.json(add)["added"], false, "once more changes nothing");
    first.json(["key", "add", "--age-recipient", RECIPIENT]);
    refused(first.run(["key", "add"]), 2, "E-KEY-NEW");
    refused(first.run(["key", "add", "--age-recipient", RECIPIENT, "--new-passphrase-file", file]), 2, "E-USAGE");
    first.run(["key", "add", "--age-recipient", "age1nonsense"]).expect_code(2);
    first.run(["key", "add", "--new-passphrase-file", file, "--label", "two\nlines"]).expect_code(0);
    first.run(["key", "add", "--age-recipient", OTHER_RECIPIENT, "--label", "two\nlines"]).expect_code(2);
    no_secret(&first.run(["key", "add", "-vv", "--new-passphrase-file", file]));

    let text = second.run(["key", "list"]).expect_code(0);
    no_secret(&text);
    assert!(text.stdout.contains("in the safe") && text.stdout.contains(RECIPIENT), "{text}");
    let opened: Vec<bool> = slots(&second).iter().map(|s| s["opened"] == true).collect();
    assert_eq!(opened, [false, true, false]);
    let identity = scratch.file("identity", IDENTITY.as_bytes(), 0o600);
    let by_age = first.clone().without_env("PGARK_PASSPHRASE_FILE").env("PGARK_AGE_IDENTITY_FILE", identity);
    assert_eq!(slots(&by_age).len(), 3);

    // From the environment, which no child inherits.
    let third = first.clone().env("PGARK_NEW_PASSPHRASE", "the third one");
    assert_eq!(third.json(["key", "add", "--label", "third"])["added"], true);

    let old = id_of(&slots(first)[0]);
    refused(first.run(["key", "remove", &old, "--yes"]), 4, "E-KEY-SLOT-UNPROVEN");
    refused(second.run(["key", "remove", "ffffffff", "--yes"]), 4, "E-KEY-SLOT-NONE");
    refused(second.run(["key", "remove", &old]), 4, "E-CONFIRM");
    second.run(["key", "remove", &old, "--dry-run"]).expect_code(0);
    assert_eq!(slots(&second).len(), 4);
    let removed = second.json(["key", "remove", &old, "--yes"]);
    assert_eq!((&removed["removed"], &removed["older_rings_gone"]), (&true.into(), &true.into()), "{removed}");
    refused(first.run(["info"]), 12, "E-KEY-WRONG");
    refused(second.run(["key", "remove", &old, "--yes"]), 4, "E-KEY-SLOT-NONE");
    for slot in slots(&second).iter().filter(|s| s["opened"] == false) {
        second.json(["key", "remove", &id_of(slot), "--yes"]);
    }
    let last = id_of(&slots(&second)[0]);
    refused(second.run(["key", "remove", &last, "--yes"]), 4, "E-KEY-SLOT-LAST");
    assert!(site.elsewhere.run(["verify"]).code == Some(12));
    second.run(["verify"]).expect_code(0);
}

pub fn rotate(pgark: &Pgark, more: &[&str]) -> Value {
    pgark.json([&["key", "rotate", "--yes"], more].concat())
}

/// Generations in the headers of the objects below a directory of the repository.
pub fn generations(pgark: &Pgark, below: &str) -> Vec<u32> {
    let mut found: Vec<u32> = objects_under(&pgark.repo().join(below))
        .into_iter()
        .filter_map(|path| fs::read(path).ok()?.get(12..16)?.try_into().ok().map(u32::from_le_bytes))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn backups_and_wal_go_on_over_a_rotation_and_both_sides_restore() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "rotate");
    site.cluster.psql("create table t as select g i, repeat(md5(g::text), 5) m from generate_series(1, 20000) g");
    site.ledger.write_rows(&site.cluster, 3);
    let full = site.pgark.backup("full");
    site.cluster.psql("update t set m = 'before' where i % 900 = 0");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    let before = Target::Time { at: site.ledger.last().committed, inclusive: true };

    let plan = site.pgark.json(["key", "rotate", "--dry-run"]);
    assert_eq!((&plan["generation"], &plan["rotated"]), (&2.into(), &false.into()));
    assert_eq!(site.pgark.json(["key", "list"])["generation"], 1);
    refused(site.pgark.run(["key", "rotate"]), 4, "E-CONFIRM");
    let rotated = rotate(&site.pgark, &[]);
    assert_eq!((&rotated["generation"], &rotated["older_rings_gone"]), (&2.into(), &true.into()), "{rotated}");
    assert_eq!(site.pgark.json(["key", "list"])["older_generations"], serde_json::json!([1]));

    // The server archives with a cached key of the old ring.
    site.cluster.psql("update t set m = 'after' where i % 1100 = 0");
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    assert_eq!(generations(&site.pgark, "clusters/main/wal"), [1, 2]);
    let incr = site.pgark.json(["backup"]);
    assert_eq!((&incr["type"], &incr["base"]["method"]), (&"incr".into(), &"blocks".into()), "{incr}");
    let bytes = |what: &str| incr[what].as_u64().expect("bytes");
    let size = bytes("size_bytes");
    assert!(bytes("read_bytes") * 2 < size && bytes("stored_bytes") * 10 < size, "it took everything: {incr}");
    let incr = incr["id"].as_str().expect("id").to_owned();
    assert_eq!(generations(&site.pgark, &format!("clusters/main/backups/{full}")), [1]);
    assert_eq!(generations(&site.pgark, &format!("clusters/main/backups/{incr}")), [2]);
    // Compared block by block with contents of the old generation: nothing is said to have changed.
    let compared = site.pgark.json(["backup", "--verify-incremental"]);
    assert_eq!(compared["verify_incremental"]["wrong"], 0, "{compared}");
    let state = state_of(&site.cluster);
    let after = site.archive_all();

    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("old-data", &before, 1, &[&full]);
    let recovered = site.restore("old-backup", &after, &[&full]);
    assert_same_state(&state, &state_of(&recovered), "recovered");
    let second = site.restore("new-backup", &after, &[&incr]);
    assert_same_state(&state, &state_of(&second), "second");
    drop((recovered, second));

    // The chunks of the first generation outlive their backup, and a second rotation.
    site.pgark.run(["delete", &full, "--yes"]).expect_code(0);
    rotate(&site.pgark, &[]);
    let all_new = site.pgark.backup("full");
    assert_eq!(generations(&site.pgark, &format!("clusters/main/backups/{all_new}")), [3]);
    site.elsewhere.run(["verify"]).expect_code(0);
    let third = site.restore("third", &after, &[&incr]);
    assert_same_state(&state, &state_of(&third), "third");
    assert_eq!(site.pgark.json(["key", "list"])["older_generations"], serde_json::json!([1, 2]));
}

#[test]
fn a_rotation_needs_every_secret_or_the_word_that_a_slot_goes() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "locked");
    let (second, file) = with_passphrase(&site.pgark, &site.scratch, "second", SECOND);
    let file = file.to_str().expect("text");
    site.pgark.json(["key", "add", "--new-passphrase-file", file]);
    site.pgark.json(["key", "add", "--age-recipient", RECIPIENT]);
    let first = id_of(&slots(&site.pgark)[0]);
    let before = repository_tree(site.pgark.repo());
    refused(site.pgark.run(["key", "rotate", "--yes"]), 4, "E-KEY-SLOT-LOCKED");
    refused(site.pgark.run(["key", "rotate", "--yes", "--drop-slot", "ffffffff"]), 4, "E-KEY-SLOT-NONE");
    refused(
        site.pgark.run(["key", "rotate", "--yes", "--drop-slot", &first, "--slot-passphrase-file", file]),
        4,
        "E-KEY-LOCKED-OUT",
    );
    before.assert_same(&repository_tree(site.pgark.repo()), "refusals");
    rotate(&site.pgark, &["--slot-passphrase-file", file]);
    assert_eq!(second.json(["key", "list"])["generation"], 2);
    let rotated = rotate(&second, &["--drop-slot", &first]);
    assert_eq!(rotated["dropped"][0]["id"], *first);
    refused(site.pgark.run(["info"]), 12, "E-KEY-WRONG");
    let identity = site.scratch.file("identity", IDENTITY.as_bytes(), 0o600);
    let by_age = second.clone().without_env("PGARK_PASSPHRASE_FILE").env("PGARK_AGE_IDENTITY_FILE", identity);
    assert_eq!(by_age.json(["key", "list"])["generation"], 3);
    by_age.run(["verify"]).expect_code(0);
}

#[test]
fn a_backup_that_runs_during_a_rotation_ends_well() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "during");
    site.cluster.psql("create table t as select g i, repeat(md5(g::text), 20) m from generate_series(1, 60000) g");
    site.ledger.write_rows(&site.cluster, 3);
    let running = site.pgark.command(["backup", "--type", "full", "--limit-rate", "3MB", "--json"]);
    let mut running = { running }.stdout(std::process::Stdio::piped()).spawn().expect("start");
    wait_until("the backup has begun to write", std::time::Duration::from_secs(60), || {
        let dir = site.pgark.repo().join("clusters/main/backups");
        fs::read_dir(dir).ok()?.next().map(drop)
    });
    // However slow this machine is, the rotation overtakes it.
    let tell = |signal: &str| {
        let told = std::process::Command::new("kill").args([signal, &running.id().to_string()]).status();
        assert!(told.expect("kill").success());
    };
    tell("-STOP");
    let rotated = rotate(&site.pgark, &[]);
    let jobs = strings(&rotated["running"]);
    assert!(jobs.iter().any(|job| job.contains("backup")), "the rotation did not meet the backup: {rotated}");
    // The head is of the new generation before the backup waits for its WAL in it.
    site.ledger.write_rows(&site.cluster, 3);
    site.cluster.switch_and_archive();
    tell("-CONT");
    assert!(running.try_wait().expect("wait").is_none(), "the backup was too fast to prove anything");
    let output = running.wait_with_output().expect("the backup ends");
    assert!(output.status.success(), "{output:?}");
    let backup: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let id = backup["id"].as_str().expect("id");
    let latest = site.archive_all();
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("r", &latest, 1, &[id]);
}

#[test]
fn a_recovery_that_a_rotation_overtakes_stops_with_the_reason_and_goes_on_with_new_keys() {
    let server = installed_or_skip!();
    let (site, _, latest) = quiet_site("overtaken", &server);
    let (to, outcome) = site.try_restore("r", &latest, &[]);
    outcome.expect_code(0);
    rotate(&site.pgark, &[]);
    // Until something is archived under the new key, the old one is enough; then the head is of the new one.
    site.ledger.write_rows(&site.cluster, 1);
    site.cluster.switch_and_archive();
    let stopped = Recovered::start(&site.server, &site.scratch, &to);
    assert_eq!(stopped.ending(), Ending::Down);
    assert!(stopped.log().contains("E-KEY-NEWER"), "{}", stopped.log());
    drop(stopped);

    let directory = to.to_str().expect("text");
    site.elsewhere.run(["key", "renew", directory, "--dry-run"]).expect_code(0);
    let renewed = site.elsewhere.json(["key", "renew", directory]);
    assert_eq!((&renewed["generation_before"], &renewed["generation"]), (&1.into(), &2.into()));
    let meta = fs::metadata(to.join("pgark-restore.key")).expect("key file");
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
    site.ledger.assert_exact(&recovered, &latest, 1);

    // The file of another repository is not touched.
    let other = site.scratch.dir("other-repo");
    let elsewhere = Pgark::new(BINARY, &site.scratch, &other).on(&site.cluster);
    elsewhere.run(["init"]).expect_code(0);
    let (to, outcome) = site.try_restore("r2", &latest, &[]);
    outcome.expect_code(0);
    refused(elsewhere.run(["key", "renew", to.to_str().expect("text")]), 4, "E-RESTORE-FILE");
}

/// A killed change may leave its second copy out, which is told; the next run puts it in place.
fn whole_but_for_the_mirror(verified: &Outcome, what: &str) {
    let document = verified.json();
    for problem in document["problems"].as_array().expect("problems") {
        let object = problem["object"].as_str().unwrap_or_default();
        assert!(object.starts_with("keyring-mirror/") && problem["kind"] == "missing", "{what}: {verified}");
    }
    assert_eq!(document["ok"].as_bool(), Some(verified.code == Some(0)), "{what}: {verified}");
}

/// The site's repository with an age slot, opened by it.
pub fn opened_by_age(site: &Site) -> Pgark {
    site.elsewhere.json(["key", "add", "--age-recipient", RECIPIENT]);
    let identity = site.scratch.file("identity", IDENTITY.as_bytes(), 0o600);
    site.elsewhere.clone().without_env("PGARK_PASSPHRASE_FILE").env("PGARK_AGE_IDENTITY_FILE", identity)
}

/// Kills a command at its system calls: everything opens and is whole all the time, and the next run succeeds.
pub fn kill_anywhere(site: &Site, pgark: &Pgark, arguments: &[&str]) {
    let template = Template::of(site);
    let points = points_of(pgark, &site.scratch, arguments);
    assert!(points.iter().any(|p| matches!(p.syscall, "fsync" | "fdatasync" | "syncfs")), "{arguments:?}");
    let mut killed = 0;
    for point in visited(&points, 8) {
        template.put_back();
        let outcome = traced(pgark, point, Fault::Kill, arguments);
        killed += u32::from(!outcome.succeeded());
        whole_but_for_the_mirror(&pgark.run(["verify", "--json"]), &format!("{arguments:?} killed at {point:?}"));
        pgark.run(arguments).expect_code(0);
        pgark.run(["verify"]).expect_code(0);
        assert_eq!(pgark.json(["key", "list"])["removed_but_readable"], serde_json::json!([]), "{point:?}");
    }
    assert!(killed > 5, "only {killed} kills hit {arguments:?}");
    fs::remove_dir_all(site.scratch.join("template")).expect("remove");
}

#[test]
fn adding_and_rotating_keys_can_be_killed_anywhere() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, id, latest) = quiet_site("kill-keys", &server);
    // Without a passphrase slot, no run pays for slow key derivations.
    let by_age = opened_by_age(&site);
    by_age.json(["key", "remove", &slot_of(&by_age, "passphrase"), "--yes"]);
    kill_anywhere(&site, &by_age, &["key", "add", "--age-recipient", OTHER_RECIPIENT]);
    assert_eq!(slots(&by_age).len(), 2);
    kill_anywhere(&site, &by_age, &["key", "rotate", "--yes"]);
    assert!(by_age.json(["key", "list"])["generation"].as_u64() > Some(1));
    assert_restores_by(&by_age, &site, &latest, &id);
}

/// What was backed up is all there, as seen through one of the slots.
pub fn assert_restores_by(pgark: &Pgark, site: &Site, latest: &Target, id: &str) {
    let to = site.scratch.join("end");
    pgark.run(site.restore_arguments(&to, latest, &[id])).expect_code(0);
    let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
    site.ledger.assert_exact(&recovered, latest, 1);
}

#[test]
fn a_removal_that_is_killed_anywhere_ends_with_the_next_one() {
    let server = installed_or_skip!();
    if let Err(why) = strace_works() {
        skip!("{why}");
    }
    let (site, id, latest) = quiet_site("kill-remove", &server);
    let second = opened_by_age(&site);
    let old = slot_of(&second, "passphrase");
    let template = Template::of(&site);
    let remove = ["key", "remove", &old, "--yes"];
    let points = points_of(&second, &site.scratch, &remove);
    let mut killed = 0;
    for point in visited(&points, 16) {
        template.put_back();
        let outcome = traced(&second, point, Fault::Kill, &remove);
        killed += u32::from(!outcome.succeeded());
        whole_but_for_the_mirror(&second.run(["verify", "--json"]), &format!("killed at {point:?}"));
        // 4 when nothing was left to do: the slot and every ring with it are gone.
        let again = second.run(remove);
        assert!(matches!(again.code, Some(0 | 4)), "{point:?}: {again}");
        assert_eq!(second.json(["key", "list"])["removed_but_readable"], serde_json::json!([]), "{point:?}");
        assert_eq!(site.elsewhere.run(["info"]).code, Some(12), "{point:?}");
        second.run(["verify"]).expect_code(0);
        let left = objects_under(&second.repo().join("keyring"));
        assert!(!left.is_empty());
        for ring in left {
            assert!(!fs::read_to_string(&ring).expect("ring").contains(&old), "{point:?}: {}", ring.display());
        }
    }
    assert!(killed > 5, "only {killed} kills hit the removal");
    assert_restores_by(&second, &site, &latest, &id);
}

#[test]
fn a_server_whose_passphrase_was_removed_keeps_its_wal() {
    let server = installed_or_skip!();
    let (site, id, _) = quiet_site("keeps-wal", &server);
    let (second, file) = with_passphrase(&site.elsewhere, &site.scratch, "second", SECOND);
    let old = slot_of(&site.elsewhere, "passphrase");
    site.elsewhere.json(["key", "add", "--new-passphrase-file", file.to_str().expect("text")]);
    second.json(["key", "remove", &old, "--yes"]);
    site.ledger.write_rows(&site.cluster, 2);
    let archived = site.cluster.psql("select pg_current_wal_insert_lsn()");
    let segment = site.cluster.psql("select pg_walfile_name(pg_switch_wal())");
    wait_until("archiving has failed", std::time::Duration::from_secs(60), || {
        (site.cluster.psql("select failed_count > 0 from pg_stat_archiver") == "t").then_some(())
    });
    assert!(site.cluster.log().contains("E-KEY-WRONG"), "{}", site.cluster.log());
    assert!(site.cluster.data_dir().join("pg_wal").join(&segment).exists());
    // The new passphrase in the old place is all that is needed.
    fs::write(site.elsewhere.passphrase_file(), format!("{SECOND}\n")).expect("write");
    site.cluster.wait_archived(&segment);
    site.assert_restores("r", &Target::Latest { archived }, 1, &[&id]);
}

#[test]
fn a_key_ring_that_was_set_back_or_exchanged_is_noticed_by_a_host_that_saw_the_other() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "set-back");
    let cache = site.scratch.dir("cache");
    let host = site.pgark.clone().env("PGARK_CACHE_DIR", &cache);
    host.run(["info"]).expect_code(0);
    let repo = host.repo();
    let old = fs::read(repo.join("keyring/0000000000000001")).expect("the first ring");
    rotate(&host, &[]);
    host.run(["info"]).expect_code(0);
    // Its owner would not: a secret of ours opens it, and what is written from now on would be under the old key.
    let set_back = ["keyring/00000000000000ff", "keyring-mirror/00000000000000ff"].map(|name| repo.join(name));
    for path in &set_back {
        fs::write(path, &old).expect("write");
        pgark_testkit::give_to_postgres(path);
    }
    refused(host.run(["info"]), 12, "E-KEY-OLDER");
    refused(host.run(["backup"]), 12, "E-KEY-OLDER");
    refused(host.run(["key", "add", "--age-recipient", RECIPIENT]), 12, "E-KEY-OLDER");
    refused(host.run(["init"]), 12, "E-KEY-OLDER");
    // Who sees it for the first time cannot know.
    assert_eq!(site.pgark.json(["key", "list"])["generation"], 1);
    set_back.iter().for_each(|path| fs::remove_file(path).expect("remove"));
    host.run(["backup"]).expect_code(0);

    fs::rename(repo, site.scratch.join("away")).expect("rename");
    site.pgark.run(["init"]).expect_code(0);
    refused(host.run(["info"]), 12, "E-KEY-REPLACED");
    fs::remove_dir_all(cache.join("seen")).expect("remove");
    host.run(["info"]).expect_code(0);
    // Who makes a repository anew in the old place knows.
    fs::remove_dir_all(repo).expect("remove");
    refused(host.run(["init"]), 4, "E-REPO-GONE");
    assert!(!repo.exists(), "nothing is made in the place of what is not mounted");
    fs::remove_dir_all(cache.join("seen")).expect("remove");
    host.run(["init"]).expect_code(0);
    host.run(["info"]).expect_code(0);
}

#[test]
fn an_older_ring_that_a_removed_slot_opens_is_told_until_it_is_gone() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "left-over");
    let by_age = site.pgark.clone().without_env("PGARK_PASSPHRASE_FILE");
    let identity = site.scratch.file("identity", IDENTITY.as_bytes(), 0o600);
    let by_age = by_age.env("PGARK_AGE_IDENTITY_FILE", identity);
    site.pgark.json(["key", "add", "--age-recipient", RECIPIENT]);
    let old = slot_of(&site.pgark, "passphrase");
    let with_both = fs::read(site.pgark.repo().join("keyring/0000000000000002")).expect("ring");
    by_age.json(["key", "remove", &old, "--yes"]);
    let findings = |of: &Pgark| {
        let checked = of.run(["check", "--no-switch", "--json"]).json();
        let found = checked["checks"].as_array().expect("checks").iter().find(|c| c["name"] == "removed keys").cloned();
        found.unwrap_or_else(|| panic!("{checked}"))
    };
    assert_eq!(findings(&by_age)["verdict"], "ok");
    // What a store leaves that refuses to delete.
    let stale = site.pgark.repo().join("keyring/0000000000000002");
    fs::write(&stale, with_both).expect("write");
    pgark_testkit::give_to_postgres(&stale);
    let listed = by_age.run(["key", "list"]).expect_code(3);
    assert!(listed.stderr.contains(&old), "{listed}");
    let found = findings(&by_age);
    assert!(found["verdict"] == "warning" && found["message"].as_str().is_some_and(|m| m.contains(&old)), "{found}");
    by_age.run(["key", "remove", &old, "--yes"]).expect_code(0);
    by_age.run(["key", "list"]).expect_code(0);
    assert!(!stale.exists());
    by_age.run(["verify"]).expect_code(0);
}
