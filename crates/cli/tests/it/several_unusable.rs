//! Several repositories, one of which is reached and cannot be used: the others go on, and what is wrong is said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgark_testkit::{ObjectServer, ObjectServerKind, objects_under, skip};

use crate::several::Two;

/// Both copies of what a register says now, and of what it said before.
fn ruin(repo: &Path, register: &str) {
    let all = objects_under(&repo.join("clusters/main"));
    let in_register = |p: &&std::path::PathBuf| {
        let dir = p.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        dir.trim_end_matches("-mirror") == register
    };
    let found: Vec<_> = all.iter().filter(in_register).collect();
    assert!(found.len() >= 2, "{found:?}");
    for path in found {
        let mut bytes = fs::read(path).expect("an object");
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0x5a);
        fs::write(path, bytes).expect("damage");
    }
}

fn push(two: &Two) -> pgark_testkit::Outcome {
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let segment = two.site.cluster.psql("select pg_walfile_name(pg_switch_wal())");
    let file = two.site.cluster.data_dir().join("pg_wal").join(segment);
    let config = two.config.display().to_string();
    two.site.elsewhere.run(["archive-push", "--alone", "--config", &config, &file.display().to_string()])
}

#[test]
fn a_ruined_catalog_or_head_of_one_repository_does_not_stop_the_other() {
    for (name, register) in [("a", "catalog"), ("b", "catalog"), ("a", "head"), ("b", "head")] {
        let Some(two) = Two::new(&format!("ruin-{name}-{register}"), false) else { return };
        two.backup().expect_code(0);
        let (ruined, whole) = if name == "a" { (&two.a, "b") } else { (&two.b, "a") };
        ruin(ruined, register);
        let pushed = push(&two).expect_code(0);
        assert!(pushed.stderr.contains(&format!("repository {name} lacks")), "{name} {register}: {pushed}");
        assert!(pushed.stderr.contains("is damaged"), "{name} {register}: {pushed}");
        // PostgreSQL's own archiver gets on, too.
        let latest = two.site.archive_all();
        two.assert_restores_from(whole, "r", &latest);

        let info = two.site.elsewhere.run(["info", "--json"]);
        match (name, register) {
            ("a", "catalog") => {
                let said = info.expect_code(3);
                assert!(said.stderr.contains("repository a: ") && said.stderr.contains("reading from repository b"));
                assert_eq!(said.json()["passed_over"][0]["code"], "E-REPO-DAMAGED", "{said}");
                assert_eq!(said.json()["clusters"][0]["backups"].as_array().map(Vec::len), Some(1), "{said}");
                let missed = two.backup().expect_code(3);
                assert_eq!(missed.json()["repos"][1], serde_json::json!({"name": "a", "ok": false}), "{missed}");
                let listed = two.site.elsewhere.run(["wal", "list"]).expect_code(0);
                assert!(listed.stderr.contains("reading from repository b"), "{listed}");
            }
            ("b", _) => drop(info.expect_code(0)),
            // What can be restored is not known: shown as that, and not as fine.
            _ => {
                let said = info.expect_code(3).json();
                let problems = said["clusters"][0]["problems"].to_string();
                assert!(problems.contains("the recoverable windows are unknown"), "{said}");
                let shown = two.site.elsewhere.run(["info"]).expect_code(3);
                assert!(shown.stdout.contains("PROBLEM: the recoverable windows are unknown"), "{shown}");
            }
        }
        let checked = two.site.pgark.run(["check", "--json"]).expect_code(1);
        let all = checked.json()["checks"].as_array().expect("checks").clone();
        assert!(all.iter().any(|f| f["repository"] == name && f["verdict"] == "FAILED"), "{checked}");
        assert!(all.iter().any(|f| f["repository"] == whole && f["name"] == "archiving" && f["verdict"] == "ok"));
    }
}

#[test]
fn a_first_repository_that_cannot_be_listed_does_not_stop_the_other() {
    let Some(two) = Two::new("unlisted", false) else { return };
    let first = two.backup().expect_code(0).json();
    let id = first["id"].as_str().expect("an id");
    let packs = two.a.join(format!("clusters/main/backups/{id}/packs"));
    let mode = |mode: u32| fs::set_permissions(&packs, fs::Permissions::from_mode(mode)).expect("a mode");
    mode(0o000);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    two.site.archive_all();
    let missed = two.backup().expect_code(3);
    let fared = serde_json::json!([{"name": "b", "ok": true}, {"name": "a", "ok": false}]);
    assert_eq!(missed.json()["repos"], fared, "{missed}");
    assert!(missed.stderr.contains("repository a cannot take the backup: E-REPO-DENIED"), "{missed}");
    mode(0o700);
    let latest = two.site.archive_all();
    assert_eq!(two.only("b").json(["verify"])["ok"], true);
    two.assert_restores_from("b", "r", &latest);

    // What is no object hides nothing else that is wrong, and is put right with it.
    let pack = packs.join("000001");
    fs::remove_file(&pack).expect("remove");
    std::os::unix::fs::symlink("/etc/hostname", &pack).expect("a link");
    let record = two.a.join(format!("clusters/main/backups/{id}/record"));
    let mut bytes = fs::read(&record).expect("an object");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&record, bytes).expect("damage");
    let found = two.only("a").run(["verify", "--json"]).expect_code(20).json()["problems"].to_string();
    assert!(found.contains("/packs/000001") && found.contains("/record"), "{found}");
    let mut rounds = 0;
    while two.only("a").run(["verify", "--repair"]).code != Some(0) {
        rounds += 1;
        assert!(rounds < 4, "{}", two.only("a").run(["verify"]));
    }
    assert!(pack.symlink_metadata().expect("there").is_file());
    two.site.elsewhere.run(["replicate", "--from", "b", "--to", "a"]).expect_code(0);
    two.assert_restores_from("a", "ra", &latest);
}

/// As a rule of the bucket leaves it that does not spare them.
#[test]
fn books_that_must_be_thawed_in_one_repository_do_not_stop_the_other() {
    let store = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let Some(mut two) = Two::new("frozen", false) else { return };
    let text = fs::read_to_string(&two.config).expect("read");
    let text = text.replace(&two.b.display().to_string(), &store.url("prod"));
    fs::write(&two.config, text).expect("write");
    let mut variables = String::new();
    for (name, value) in store.environment() {
        variables += &format!("{name}={value} ");
        two.site.elsewhere = two.site.elsewhere.env(&name, &value);
        two.site.pgark = two.site.pgark.env(&name, &value);
    }
    let command = two.site.cluster.psql("show archive_command");
    two.site.cluster.psql(&format!("alter system set archive_command = 'env {variables}{command}'"));
    two.site.cluster.psql("select pg_reload_conf()");
    two.site.elsewhere.run(["replicate", "--from", "a", "--to", "b"]).expect_code(0);
    two.backup().expect_code(0);
    let books = store.keys("prod/clusters/main/catalog");
    assert!(books.len() >= 2, "{books:?}");
    books.iter().for_each(|key| store.archive(key));

    let pushed = push(&two).expect_code(0);
    assert!(pushed.stderr.contains("repository b") && pushed.stderr.contains("E-REPO-ARCHIVED"), "{pushed}");
    let latest = two.site.archive_all();
    let missed = two.backup().expect_code(3);
    assert_eq!(missed.json()["repos"][1], serde_json::json!({"name": "b", "ok": false}), "{missed}");
    two.site.elsewhere.run(["info"]).expect_code(0);
    two.assert_restores_from("a", "r", &latest);
}

#[test]
fn a_repository_of_its_own_in_the_place_of_a_copy_does_not_stop_the_other() {
    for name in ["a", "b"] {
        let Some(two) = Two::new(&format!("alien-{name}"), false) else { return };
        two.backup().expect_code(0);
        let (replaced, whole) = if name == "a" { (&two.a, "b") } else { (&two.b, "a") };
        fs::rename(replaced, replaced.with_extension("away")).expect("rename");
        // The same passphrase, and another cluster under the same name.
        let other = pgark_testkit::TestCluster::builder(&two.site.server).start(&two.site.scratch, "other");
        let lone = pgark_testkit::Pgark::new(crate::site::BINARY, &two.site.scratch, replaced).on(&other);
        lone.run(["init"]).expect_code(0);

        let pushed = push(&two).expect_code(0);
        assert!(pushed.stderr.contains("WARNING"), "{pushed}");
        let latest = two.site.archive_all();
        two.assert_restores_from(whole, "r", &latest);
        let wal = objects_under(&replaced.join("clusters/main"));
        assert!(wal.iter().all(|p| p.file_name().is_none_or(|f| f.len() != 24)), "{wal:?}");

        fs::remove_dir_all(replaced).expect("remove");
        fs::rename(replaced.with_extension("away"), replaced).expect("rename");
        let (from, to) = (whole, name);
        two.site.elsewhere.run(["replicate", "--from", from, "--to", to]).expect_code(0);
        two.assert_restores_from(name, "r2", &latest);
    }
}

#[test]
fn a_required_repository_that_cannot_be_used_stops_the_others() {
    let Some(two) = Two::new("ruin-required", true) else { return };
    two.backup().expect_code(0);
    ruin(&two.b, "head");
    let pushed = push(&two).expect_code(20);
    assert!(pushed.stderr.contains("repository b"), "{pushed}");
}

#[test]
fn an_archive_that_is_gone_is_told_by_a_restore_that_does_without_it() {
    let Some(two) = Two::new("nowal", false) else { return };
    two.backup().expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let latest = two.site.archive_all();
    fs::remove_dir_all(two.a.join("clusters/main/wal")).expect("remove");
    let (path, outcome) = two.site.try_restore("r", &latest, &["--json"]);
    let outcome = outcome.expect_code(3);
    assert!(outcome.stderr.contains("repository a: ") && outcome.stderr.contains("WAL archive is gone"), "{outcome}");
    let recovered = pgark_testkit::Recovered::start(&two.site.server, &two.site.scratch, &path);
    two.site.ledger.assert_exact(&recovered.expect(pgark_testkit::Ending::Promoted), &latest, 1);
}

#[test]
fn a_prefix_that_is_no_name_is_wrong_usage() {
    let Some(two) = Two::new("prefix", false) else { return };
    let passphrase = two.site.elsewhere.passphrase_file().display().to_string();
    let words = ["init", "--repo", "s3://bucket/a/./b", "--passphrase-file", &passphrase];
    let refused = two.site.elsewhere.run(words);
    assert!(refused.code == Some(2) && refused.stderr.contains("prefix"), "{refused}");
}
