//! Several repositories when somebody is mistaken, or a disk is: what must not be said, and what must not be put in place.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_testkit::{Ending, Recovered, StopMode, Target, as_postgres, objects_under, wait_until};
use serde_json::Value;

use crate::several::Two;
use crate::site::Site;

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    fs::write(path, bytes).expect("damage");
}

fn one_named(repo: &Path, part: &str) -> PathBuf {
    let all = objects_under(&repo.join("clusters/main"));
    all.into_iter().find(|p| p.to_string_lossy().contains(part)).unwrap_or_else(|| panic!("no {part}"))
}

fn problems(report: &Value) -> &Vec<Value> {
    report["problems"].as_array().expect("problems")
}

#[test]
fn wal_that_a_backup_needs_is_missed_whatever_the_head_says() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "ownwal");
    site.ledger.write_rows(&site.cluster, 3);
    let first = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 3);
    let second = site.pgark.backup("full");
    site.archive_all();
    let repo = site.elsewhere.repo();
    let wal = repo.join("clusters/main/wal");

    // An older head, an empty one, and no archive at all.
    let head = objects_under(&wal).into_iter().find(|p| p.to_string_lossy().contains("/head/")).expect("a head");
    let head = head.parent().expect("a directory").to_owned();
    let aside = site.scratch.join("aside");
    fs::rename(&wal, &aside).expect("rename");
    for quick in [&["--quick"][..], &[]] {
        let report = site.elsewhere.run([&["verify", "--json"][..], quick].concat()).expect_code(20).json();
        let hurt: Vec<&str> = problems(&report)
            .iter()
            .flat_map(|p| p["backups"].as_array().expect("ids"))
            .filter_map(Value::as_str)
            .collect();
        assert!(hurt.contains(&first.as_str()) && hurt.contains(&second.as_str()), "{report}");
    }
    fs::rename(&aside, &wal).expect("rename");
    site.elsewhere.run(["verify"]).expect_code(0);
    for dir in [head.clone(), head.with_file_name("head-mirror")] {
        fs::rename(&dir, dir.with_extension("gone")).expect("rename");
    }
    site.elsewhere.run(["verify", "--json"]).expect_code(20);
    for dir in [head.clone(), head.with_file_name("head-mirror")] {
        fs::rename(dir.with_extension("gone"), &dir).expect("rename");
    }
    site.elsewhere.run(["verify"]).expect_code(0);
}

#[test]
fn a_backup_whose_wal_is_gone_replaces_no_other() {
    let server = installed_or_skip!();
    for harm in ["removed", "cut", "seen by a quick verification"] {
        let site = Site::small(&server, "expirewal");
        site.ledger.write_rows(&site.cluster, 3);
        let good = site.pgark.backup("full");
        let before = Target::Lsn(site.cluster.psql("select pg_current_wal_insert_lsn()"));
        site.archive_all();
        site.ledger.write_rows(&site.cluster, 3);
        let bad = site.pgark.json(["backup", "--type", "full"]);
        site.archive_all();
        let start = bad["lsn_start"].as_str().expect("lsn");
        let segment = site.cluster.psql(&format!("select pg_walfile_name('{start}'::pg_lsn)"));
        let object = one_named(site.elsewhere.repo(), &segment);
        match harm {
            "cut" => fs::OpenOptions::new().write(true).open(&object).and_then(|f| f.set_len(100)).expect("cut"),
            _ => fs::remove_file(&object).expect("remove"),
        }
        if harm.starts_with("seen") {
            site.elsewhere.run(["verify", "--quick"]).expect_code(20);
        }
        let tried = site.elsewhere.run(["expire", "--dry-run", "--keep-last", "1"]).expect_code(3);
        let done = site.elsewhere.run(["expire", "--yes", "--keep-last", "1", "--gc-grace", "0s"]).expect_code(3);
        for outcome in [&tried, &done] {
            assert!(outcome.to_string().contains("does not count"), "{harm}: {outcome}");
        }
        let (to, restored) = site.try_restore("r", &before, &[&good]);
        assert!(matches!(restored.code, Some(0 | 3)), "{harm}: {restored}");
        let recovered = Recovered::start(&site.server, &site.scratch, &to).expect(Ending::Promoted);
        site.ledger.assert_exact(&recovered, &before, 1);
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(as_postgres("cp").arg("-a").arg(from).arg(to).status().expect("cp").success());
}

#[test]
fn what_the_other_repository_has_of_another_history_is_not_put_in_place() {
    let Some(mut two) = Two::new("foreign", false) else { return };
    two.backup().expect_code(0);
    let away = |repo: &Path| repo.with_extension("away");
    let data = two.site.cluster.data_dir().to_owned();
    let (snapshot, own_data) = (data.with_extension("snapshot"), data.with_extension("own"));
    two.site.cluster.stop(StopMode::Fast);
    copy(&data, &snapshot);
    // The cluster goes on, and the first repository has it.
    fs::rename(&two.b, away(&two.b)).expect("rename");
    two.site.cluster.start();
    let mut segments = vec![];
    for _ in 0..3 {
        two.site.ledger.write_rows(&two.site.cluster, 3);
        segments.push(two.site.cluster.switch_and_archive());
    }
    two.site.cluster.stop(StopMode::Fast);
    // So does its clone, which the second one has.
    fs::rename(away(&two.b), &two.b).expect("rename");
    fs::rename(&two.a, away(&two.a)).expect("rename");
    fs::rename(&data, &own_data).expect("rename");
    fs::rename(&snapshot, &data).expect("rename");
    two.site.cluster.start();
    for n in 0..2 {
        two.site.cluster.psql(&format!("create table of_the_clone_{n} as select generate_series(1, 500)"));
        two.site.cluster.switch_and_archive();
    }
    two.site.cluster.stop(StopMode::Fast);
    fs::rename(away(&two.a), &two.a).expect("rename");

    let damaged = segments.get(1).expect("three of them");
    let own = one_named(&two.a, damaged);
    flip(&own);
    let before = fs::read(&own).expect("own");
    assert!(one_named(&two.b, damaged).exists());
    let report = two.only("a").run(["verify", "--repair"]).expect_code(20);
    assert!(report.stderr.contains("of another history"), "{report}");
    let dest = two.site.scratch.join("got");
    let got = two.site.elsewhere.run(["archive-get", damaged, dest.to_str().expect("text")]);
    assert_eq!(fs::read(&own).expect("own"), before, "the damaged bytes stay: {got}");
    assert!(got.code == Some(126) && !dest.exists(), "and the foreign ones are not delivered: {got}");
    assert!(!got.stderr.contains("taken from another"), "{got}");
    // The segment behind: whoever is asked first, it does not continue what the clone wrote.
    let last = segments.last().expect("three of them");
    let words = ["archive-get", "--repo", "b", "--repo", "a", "--alone", last, dest.to_str().expect("text")];
    let got = two.site.elsewhere.run(words);
    assert!(got.code == Some(126) && got.stderr.contains("E-WAL-OTHER-HISTORY") && !dest.exists(), "{got}");
    // Whoever restores has to say which of both histories is meant.
    let latest = Target::Latest { archived: "0/0".into() };
    let (to, refused) = two.site.try_restore("mixed", &latest, &[]);
    assert!(refused.code == Some(4) && refused.stderr.contains("E-WAL-OTHER-HISTORY") && !to.exists(), "{refused}");
    let copied = two.site.elsewhere.run(["replicate", "--from", "a", "--to", "b", "--json"]).expect_code(3);
    assert!(copied.json()["failed"].to_string().contains("E-WAL-OTHER-HISTORY"), "{copied}");
    assert!(!objects_under(&two.b.join("clusters/main/wal")).iter().any(|p| p.ends_with(last)), "{copied}");
}

#[test]
fn a_missing_or_damaged_copy_of_a_register_is_written_anew_by_a_repair() {
    let Some(two) = Two::new("regcopy", false) else { return };
    two.backup().expect_code(0);
    let a = two.only("a");
    for dir in ["keyring", "keyring-mirror"] {
        for harm in ["removed", "damaged"] {
            let path = objects_under(&two.a.join(dir)).pop().expect("a copy");
            let whole = fs::read(&path).expect("a copy");
            match harm {
                "removed" => fs::remove_file(&path).expect("remove"),
                _ => fs::write(&path, &whole[..whole.len() / 2]).expect("cut"),
            }
            let now = fs::read(&path).ok();
            let found = a.run(["verify", "--json"]).expect_code(20);
            assert!(problems(&found.json())[0]["what"].as_str().is_some_and(|w| w.contains("--repair")), "{found}");
            let planned = a.run(["verify", "--repair", "--dry-run"]).expect_code(20);
            assert!(planned.stdout.contains("COULD BE REPAIRED") && fs::read(&path).ok() == now, "{planned}");
            let done = a.run(["verify", "--repair", "--json"]).expect_code(0);
            assert_eq!(done.json()["repaired"].as_array().map(Vec::len), Some(1), "{dir} {harm}: {done}");
            assert!(fs::read(&path).expect("a copy") == whole);
            a.run(["verify"]).expect_code(0);
        }
    }
    // What a verification puts on record makes the newest version one of before.
    let system = fs::read_dir(two.a.join("clusters/main/wal")).expect("wal").next().expect("a system").expect("entry");
    let head = format!("clusters/main/wal/{}/head", system.file_name().display());
    for dir in ["clusters/main/catalog", "clusters/main/catalog-mirror", &head, &format!("{head}-mirror")] {
        let path = objects_under(&two.a.join(dir)).pop().expect("a copy");
        let whole = fs::read(&path).expect("a copy");
        fs::write(&path, &whole[..whole.len() / 2]).expect("cut");
        let done = a.run(["verify", "--repair", "--json"]).expect_code(0).json();
        assert_eq!(done["repaired"].as_array().map(Vec::len), Some(1), "{dir}: {done}");
        a.run(["verify"]).expect_code(0);
    }
    two.site.ledger.write_rows(&two.site.cluster, 3);
    two.backup().expect_code(0);
}

#[test]
fn a_copy_whose_key_was_rotated_alone_is_told_as_that() {
    let Some(two) = Two::new("alonekey", false) else { return };
    two.backup().expect_code(0);
    let lone = pgark_testkit::Pgark::new(crate::site::BINARY, &two.site.scratch, &two.b);
    lone.run(["key", "rotate", "--yes"]).expect_code(0);
    let refused = two.site.elsewhere.run(["replicate", "--from", "a", "--to", "b"]).expect_code(12);
    assert!(refused.stderr.contains("was rotated alone") && refused.stderr.contains("replicate --from"), "{refused}");
    assert!(!refused.stderr.contains("damaged"), "{refused}");
    two.backup().expect_code(3);
    two.site.elsewhere.run(["replicate", "--from", "b", "--to", "a"]).expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    two.backup().expect_code(0);
    let latest = two.site.archive_all();
    two.assert_restores_from("a", "r", &latest);
    two.assert_restores_from("b", "r2", &latest);
}

#[test]
fn one_place_is_not_two_copies_and_a_copy_gets_no_key_of_its_own() {
    let Some(two) = Two::new("twice", false) else { return };
    two.backup().expect_code(0);
    let link = two.site.scratch.join("link");
    std::os::unix::fs::symlink(&two.a, &link).expect("link");
    let refused = two.site.elsewhere.run(["replicate", "--from", "a", "--to", link.to_str().expect("text")]);
    assert!(refused.code == Some(4) && refused.stderr.contains("E-REPO-TWICE"), "{refused}");
    let refused = two.site.elsewhere.run(["key", "rotate", "--repo", "b", "--yes"]);
    assert!(refused.code == Some(4) && refused.stderr.contains("E-KEY-FIRST"), "{refused}");
    two.site.elsewhere.run(["key", "rotate", "--repo", "a", "--yes"]).expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    two.backup().expect_code(0);
    let latest = two.site.archive_all();
    two.assert_restores_from("b", "r", &latest);
}

#[test]
fn what_is_done_to_the_slots_of_one_copy_is_told_of_the_other_and_loses_none() {
    let Some(two) = Two::new("slots", false) else { return };
    two.backup().expect_code(0);
    let (here, scratch) = (&two.site.pgark, &two.site.scratch);
    let file = |name: &str, text: &str| scratch.file(name, text.as_bytes(), 0o600).display().to_string();
    let slots = |repo: &str| here.json(["key", "list", "--repo", repo])["slots"].as_array().expect("slots").clone();
    let id = |slot: &Value| slot["id"].as_str().expect("id").to_owned();
    let replicate = ["replicate", "--from", "a", "--to", "b"];

    // A passphrase is changed, in the first repository alone: hosts have the new one, and it opens no copy.
    let old = file("old", &fs::read_to_string(scratch.join("passphrase")).expect("passphrase"));
    let new = file("new", "another horse\n");
    let first = id(&slots("a")[0]);
    let added = here.run(["key", "add", "--repo", "a", "--new-passphrase-file", &new, "--json"]).expect_code(0);
    assert!(added.json()["copies_without"] == serde_json::json!(["b"]), "{added}");
    file("passphrase", "another horse\n");
    let removed = here.run(["key", "remove", &first, "--repo", "a", "--yes"]).expect_code(0);
    assert!(removed.stderr.contains(&format!("'pgark key remove {first} --repo b'")), "{removed}");
    let finding = || {
        let checked = here.run(["check", "--no-switch", "--json"]).json();
        let all = checked["checks"].as_array().expect("checks").clone();
        let told = |c: &Value| c["name"] == "key" && c["repository"] == "b" && c["verdict"] != "ok";
        all.into_iter().find(told).map(|c| c["verdict"].clone())
    };
    assert_eq!(finding(), Some("warning".into()));
    let told = two.site.elsewhere.run(replicate).expect_code(3);
    assert!(told.stderr.contains("its own secret does not open it") && told.stdout.contains("b alone has"), "{told}");
    two.backup().expect_code(3);
    here.run(["key", "add", "--repo", "b", "--passphrase-file", &old, "--new-passphrase-file", &new]).expect_code(0);
    here.run(["key", "remove", &first, "--repo", "b", "--yes"]).expect_code(0);
    assert_eq!(finding(), None);

    // A slot of the copy alone does not go with a rotation of the other.
    let paper = file("paper", "on paper\n");
    here.run(["key", "add", "--repo", "b", "--new-passphrase-file", &paper, "--label", "paper"]).expect_code(0);
    let alone = id(slots("b").iter().find(|slot| slot["label"] == "paper").expect("a slot"));
    let drop = format!("--drop-slot {alone}");
    let rotated = here.run(["key", "rotate", "--repo", "a", "--yes"]).expect_code(0);
    assert!(rotated.stderr.contains(&drop), "{rotated}");
    let refused = two.site.elsewhere.run(replicate).expect_code(12);
    assert!(refused.stderr.contains("E-KEY-SLOT-COPY") && refused.stderr.contains(&alone), "{refused}");
    let kept = two.backup().expect_code(3);
    assert!(kept.stderr.contains("E-KEY-SLOT-COPY"), "{kept}");
    here.run(["info", "--repo", "b", "--passphrase-file", &paper]).expect_code(0);
    here.run(["key", "add", "--repo", "a", "--new-passphrase-file", &paper]).expect_code(0);
    let words = replicate.into_iter().chain(drop.split(' '));
    two.site.elsewhere.run(words).expect_code(0);
    here.run(["info", "--repo", "b", "--passphrase-file", &paper]).expect_code(0);
    two.backup().expect_code(0);
    let latest = two.site.archive_all();
    two.assert_restores_from("b", "r", &latest);
}

#[test]
fn one_damaged_copy_of_a_key_ring_stops_nothing() {
    let Some(two) = Two::new("ringcopy", false) else { return };
    let ring = |repo: &Path| objects_under(&repo.join("keyring")).pop().expect("a ring");
    for repo in [&two.b, &two.a] {
        let path = ring(repo);
        let whole = fs::read(&path).expect("ring");
        fs::write(&path, &whole[..100]).expect("cut");
        two.site.ledger.write_rows(&two.site.cluster, 2);
        two.backup().expect_code(0);
        two.site.pgark.run(["init"]).expect_code(0);
        fs::write(&path, &whole).expect("mend");
    }
    let latest = two.site.archive_all();
    two.assert_restores_from("b", "r", &latest);
}

#[test]
fn a_first_repository_that_is_gone_becomes_a_copy_of_the_other_again() {
    let Some(two) = Two::new("regrown", false) else { return };
    two.backup().expect_code(0);
    // What is archived meanwhile may be put there while it goes.
    wait_until("the first repository is gone", Duration::from_secs(30), || {
        let _ = fs::remove_dir_all(&two.a);
        (!two.a.exists()).then_some(())
    });
    let said = two.site.pgark.run(["init"]).expect_code(0);
    assert!(said.stderr.contains("is a copy of b now"), "{said}");
    two.site.elsewhere.run(["replicate", "--from", "b", "--to", "a"]).expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    two.backup().expect_code(0);
    let latest = two.site.archive_all();
    two.assert_restores_from("a", "r", &latest);

    // A ring alone that is lost is not replaced by one that opens nothing.
    for dir in ["keyring", "keyring-mirror"] {
        fs::remove_dir_all(two.a.join(dir)).expect("remove");
    }
    let alone = two.site.pgark.clone().env("PGARK_REPO", "a");
    let refused = alone.run(["init"]);
    assert!(refused.code == Some(20) && refused.stderr.contains("replicate"), "{refused}");
    assert!(!two.a.join("keyring").exists() || objects_under(&two.a.join("keyring")).is_empty());
    two.site.elsewhere.run(["replicate", "--from", "b", "--to", "a"]).expect_code(0);
    two.only("a").run(["verify"]).expect_code(0);
}

#[test]
fn a_copy_that_missed_a_rotation_gives_back_what_opens_here() {
    let Some(two) = Two::new("oldseals", false) else { return };
    let full = two.backup().expect_code(0).json();
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let latest = two.site.archive_all();
    let a = two.only("a");
    a.run(["key", "rotate", "--yes"]).expect_code(0);
    // Without the newest key, the other one would be cut off.
    let refused = a.run(["key", "retire", "--grace", "0s", "--yes"]).expect_code(4);
    assert!(refused.stderr.contains("E-KEY-COPY") && refused.stderr.contains("--from a --to b"), "{refused}");
    two.site.elsewhere.run(["replicate", "--from", "a", "--to", "b"]).expect_code(0);
    a.run(["key", "reencrypt", "--grace", "0s", "--yes"]).expect_code(0);
    a.run(["key", "retire", "--grace", "0s", "--yes"]).expect_code(0);
    // What the copy holds is under the older key still: a recovering server reads each with the keys of its own ring.
    let (both, restored) = two.site.try_restore("both", &latest, &[]);
    restored.expect_code(0);
    two.only("b").run(["key", "renew", both.to_str().expect("text")]).expect_code(0);
    let recovered = Recovered::start(&two.site.server, &two.site.scratch, &both).expect(Ending::Promoted);
    two.site.ledger.assert_exact(&recovered, &latest, 1);
    drop(recovered);
    let id = full["id"].as_str().expect("id");
    for part in ["manifest.g2", "record.g2", "packs/000001.g2"] {
        flip(&two.a.join(format!("clusters/main/backups/{id}/{part}")));
    }
    a.run(["verify", "--repair"]).expect_code(0);
    a.run(["verify"]).expect_code(0);
    two.assert_restores_from("a", "r", &latest);
}
