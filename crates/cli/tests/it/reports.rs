//! Reports of restores and validations lie in the repository, and are looked after like everything else there.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pgark_testkit::{Damage, Damaged, Outcome, Pgark, give_to_postgres, objects_under};
use serde_json::Value;

use crate::site::Site;

fn filled(label: &str, server: &pgark_testkit::Server) -> (Site, String) {
    let site = Site::small(server, label);
    site.cluster.psql("create database app");
    site.cluster.psql_db("app", "create table \"<b>|t\" as select i from generate_series(1, 100) i");
    let document = site.pgark.json(["backup", "--kind", "logical", "--database", "app"]);
    let id = document["id"].as_str().expect("an id").to_owned();
    (site, id)
}

fn restore(site: &Site, to: &str) -> Outcome {
    site.pgark.run(["restore", "--kind", "logical", "--database", "app", "--to-database", to, "--json"])
}

fn listed(pgark: &Pgark, more: &[&str]) -> Vec<Value> {
    let document = pgark.json([&["report", "list"], more].concat());
    document["reports"].as_array().cloned().unwrap_or_default()
}

#[test]
fn what_a_restore_and_a_validation_found_is_kept_and_shown() {
    let server = installed_or_skip!();
    let (site, backup) = filled("reports", &server);
    assert!(listed(&site.pgark, &[]).is_empty());
    site.pgark.run(["report", "show", "latest"]).expect_code(4);
    let document = restore(&site, "dst").expect_code(0).json();
    let first = document["report"].as_str().expect("a report").to_owned();
    site.cluster.psql_db("dst", "insert into \"<b>|t\" values (101)");
    let words =
        ["validate", "--database", "dst", "--against", "latest", "--source", "app", "--amcheck", "off", "--json"];
    let document = site.pgark.run(words).expect_code(21).json();
    let second = document["reports"][0].as_str().expect("a report").to_owned();

    let all = listed(&site.pgark, &[]);
    let told: Vec<_> = all.iter().map(|r| (r["id"].as_str(), r["severity"].as_str(), r["what"].as_str())).collect();
    let expected = [
        (Some(second.as_str()), Some("incident"), Some("validate")),
        (Some(first.as_str()), Some("info"), Some("restore")),
    ];
    assert!(told == expected || first > second, "{all:?}");
    assert!(all.iter().all(|r| r["backup"] == backup.as_str() && r["database"] == "app"), "{all:?}");
    let incidents = listed(&site.pgark, &["--severity", "incident"]);
    assert_eq!(incidents.len(), 1);
    assert!(
        incidents[0]["summary"]
            .as_str()
            .is_some_and(|s| s.contains("'dst'") && s.contains("NOT") && s.contains("rows"))
    );

    let show = |format: &str| site.pgark.run(["report", "show", &second, "--format", format]).expect_code(0).stdout;
    let json: Value = serde_json::from_str(&show("json")).expect("JSON");
    assert_eq!((&json["severity"], &json["report"]["outcome"]), (&"incident".into(), &"failed".into()));
    assert!(show("md").contains("101 rows, were 100") && show("html").contains("101 rows, were 100"));
    assert!(!show("html").contains("<b>"), "names stay text");
    assert_eq!(site.pgark.json(["report", "show", &second])["id"], second.as_str());
    for (id, code) in [("nonsense", 2), ("20200101-000000-00000000", 4)] {
        site.pgark.run(["report", "show", id]).expect_code(code);
    }
    // Sealed, accounted for, and nothing else says what it says.
    site.pgark.run(["verify"]).expect_code(0);
    site.pgark.run(["verify", "--quick"]).expect_code(0);
    let object = site.pgark.repo().join(format!("clusters/main/reports/{second}"));
    let bytes = fs::read(&object).expect("the object");
    assert!(!bytes.windows(8).any(|w| w == b"incident"), "it is sealed");
    {
        let _damage = Damaged::apply(&object, &Damage::FlipBit { per_mille: 500 });
        let outcome = site.pgark.run(["verify", "--json"]).expect_code(20).json();
        let problem = &outcome["problems"][0];
        assert!(problem["object"].as_str().is_some_and(|o| o.ends_with(&second)), "{outcome}");
        assert_eq!(problem["backups"].as_array().map(Vec::len), Some(0), "no backup needs it: {outcome}");
        site.pgark.run(["report", "show", &second]).expect_code(20);
        let outcome = site.pgark.run(["report", "list", "--severity", "incident", "--json"]).expect_code(3);
        assert!(outcome.json()["reports"][0]["damaged"].is_string(), "{outcome}");
    }
    site.pgark.run(["verify"]).expect_code(0);
}

#[test]
fn copies_and_new_keys_hold_reports() {
    let server = installed_or_skip!();
    let (site, _) = filled("reportcopies", &server);
    let document = restore(&site, "dst").expect_code(0).json();
    let id = document["report"].as_str().expect("a report");
    let from = site.pgark.repo().display().to_string();
    let (copy, rekeyed) = (site.scratch.join("copy"), site.scratch.join("rekeyed"));
    site.pgark.run(["replicate", "--from", &from, "--to", &copy.display().to_string()]).expect_code(0);
    let elsewhere = site.pgark.clone().env("PGARK_REPO", &copy);
    assert_eq!(listed(&elsewhere, &[])[0]["id"], id);
    elsewhere.run(["verify"]).expect_code(0);
    // Once more there is nothing to copy.
    let again = site.pgark.json(["replicate", "--from", &from, "--to", &copy.display().to_string()]);
    assert_eq!(again["objects"], 0, "{again}");
    // A damaged one is taken from where it is whole.
    let stored = copy.join(format!("clusters/main/reports/{id}"));
    let whole = fs::read(&stored).expect("the report");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 4;
    fs::write(&stored, &damaged).expect("damage");
    elsewhere.run(["verify"]).expect_code(20);
    elsewhere.run(["verify", "--repair", "--from", &from]).expect_code(0);
    assert!(fs::read(&stored).expect("the report") == whole);

    site.pgark.run(["key", "rotate", "--yes"]).expect_code(0);
    site.pgark.run(["key", "reencrypt", "--yes", "--grace", "0s"]).expect_code(0);
    site.pgark.run(["key", "retire", "--yes", "--grace", "0s"]).expect_code(0);
    assert_eq!(site.pgark.json(["report", "show", id])["id"], id);
    assert_eq!(listed(&site.pgark, &[]).len(), 1);
    site.pgark.run(["verify"]).expect_code(0);
    assert!(
        objects_under(&site.pgark.repo().join("clusters/main/reports"))
            .iter()
            .all(|p| p.to_string_lossy().contains(".g"))
    );

    let to = rekeyed.display().to_string();
    let secret = site.scratch.file("other-passphrase", b"another passphrase that is long enough\n", 0o600);
    give_to_postgres(&secret);
    let words =
        ["replicate", "--from", &from, "--to", &to, "--rekey", "--new-passphrase-file", &secret.display().to_string()];
    let outcome = site.pgark.run(words);
    if outcome.succeeded() {
        let elsewhere = site.pgark.clone().env("PGARK_REPO", &rekeyed).env("PGARK_PASSPHRASE_FILE", &secret);
        assert_eq!(listed(&elsewhere, &[])[0]["id"], id);
        elsewhere.run(["verify"]).expect_code(0);
    } else {
        panic!("{outcome}");
    }
}

#[test]
fn a_report_that_cannot_be_stored_is_told() {
    let server = installed_or_skip!();
    let (site, _) = filled("unstored", &server);
    let dir = site.pgark.repo().join("clusters/main/reports");
    fs::create_dir(&dir).expect("a directory");
    // Empty ones are tidied away.
    fs::write(dir.join("something"), "").expect("a file");
    give_to_postgres(&dir);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).expect("mode");
    let outcome = restore(&site, "dst").expect_code(3);
    let document = outcome.json();
    assert_eq!((&document["placed"], &document["report"]), (&true.into(), &Value::Null), "{outcome}");
    assert!(outcome.stderr.contains("E-REPORT-STORE"), "{outcome}");
    let words = ["validate", "--database", "dst", "--against", "latest", "--source", "app", "--amcheck", "off"];
    assert!(site.pgark.run(words).expect_code(3).stderr.contains("E-REPORT-STORE"));
    site.cluster.psql_db("dst", "insert into \"<b>|t\" values (101)");
    site.pgark.run(words).expect_code(21);
}
