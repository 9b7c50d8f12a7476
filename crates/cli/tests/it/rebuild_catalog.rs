//! No copy of the catalog can be read any more: backups are listed again from their records, and nothing is given up that
//! was not known to be.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::site::{Site, strings};

fn catalog_dirs(site: &Site) -> [PathBuf; 2] {
    ["catalog", "catalog-mirror"].map(|dir| site.scratch.join(format!("repo/clusters/main/{dir}")))
}

/// Both copies of the newest version.
fn flip_newest(site: &Site) {
    for dir in catalog_dirs(site) {
        let mut versions: Vec<PathBuf> = fs::read_dir(dir).expect("a catalog").flatten().map(|e| e.path()).collect();
        versions.sort();
        let newest = versions.last().expect("a version");
        let mut bytes = fs::read(newest).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(newest, bytes).expect("write");
    }
}

fn remove_catalog(site: &Site) {
    for dir in catalog_dirs(site) {
        fs::remove_dir_all(dir).expect("remove");
    }
}

fn listed(site: &Site) -> Vec<String> {
    let info = site.elsewhere.json(["info"]);
    info["clusters"][0]["backups"]
        .as_array()
        .expect("backups")
        .iter()
        .map(|b| b["id"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn rebuild(site: &Site, code: i32) -> Value {
    site.elsewhere.run(["rebuild-catalog", "--yes", "--json"]).expect_code(code).json()
}

#[test]
fn backups_are_listed_again_after_every_loss_of_the_catalog() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "relist");
    site.ledger.write_rows(&site.cluster, 3);
    let full = site.pgark.backup("full");
    site.elsewhere.run(["keep", &full]).expect_code(0);
    site.ledger.write_rows(&site.cluster, 3);
    let incr = site.pgark.backup("incr");
    let dump = site.pgark.json(["backup", "--kind", "logical", "--database", "postgres"]);
    let dump = dump["id"].as_str().expect("an id").to_owned();
    let all = vec![full.clone(), incr.clone(), dump.clone()];
    site.ledger.write_rows(&site.cluster, 3);
    let latest = site.archive_all();

    // Nothing is wrong: nothing is done.
    let nothing = rebuild(&site, 0);
    assert_eq!((&nothing["lost"], &nothing["listed"]), (&Value::Null, &json!([])), "{nothing}");

    // The newest version is damaged twice, the one before it is there: marks come back with it.
    flip_newest(&site);
    let info = site.elsewhere.run(["info", "--json"]).expect_code(20).json();
    assert!(info["error"]["hint"].as_str().is_some_and(|hint| hint.contains("rebuild-catalog")), "{info}");
    site.elsewhere.run(["rebuild-catalog"]).expect_code(4);
    let shown = site.elsewhere.run(["rebuild-catalog", "--dry-run", "--json"]).expect_code(0).json();
    assert_eq!((&shown["dry_run"], &shown["from_version_before"]), (&json!(true), &json!(true)), "{shown}");
    site.elsewhere.run(["info"]).expect_code(20);
    rebuild(&site, 0);
    assert_eq!(listed(&site), all);
    assert_eq!(site.elsewhere.backup_info(&full)["kept"], true);
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("before", &latest, 1, &[]);

    // Nothing of it is there.
    remove_catalog(&site);
    site.elsewhere.run(["info"]).expect_code(4);
    let anew = rebuild(&site, 0);
    assert_eq!((strings(&anew["listed"]), &anew["from_version_before"]), (all.clone(), &json!(false)), "{anew}");
    site.elsewhere.run(["verify"]).expect_code(0);
    site.assert_restores("anew", &latest, 1, &[]);
    // A hold keeps them all, and work goes on from them.
    site.elsewhere.run(["expire", "--keep-last", "1", "--gc-grace", "0s", "--yes"]);
    assert_eq!(listed(&site), all);
    site.ledger.write_rows(&site.cluster, 3);
    let next = site.pgark.json(["backup"]);
    assert_eq!(next["base"]["backup"], json!(incr), "{next}");
    let next = next["id"].as_str().expect("an id").to_owned();
    let latest = site.archive_all();

    // Somebody registered the cluster anew before; one backup has lost a pack.
    remove_catalog(&site);
    site.pgark.run(["init"]).expect_code(0);
    assert_eq!(listed(&site), Vec::<String>::new());
    let pack = site.scratch.join(format!("repo/clusters/main/backups/{dump}/packs/000001"));
    fs::remove_file(pack).expect("remove");
    let found = rebuild(&site, 3);
    assert_eq!(strings(&found["listed"]), [full, incr, next], "{found}");
    assert_eq!((&found["lost"], &found["left"][0]["id"]), (&Value::Null, &json!(dump)), "{found}");
    site.assert_restores("registered", &latest, 1, &[]);

    // Another passphrase opens nothing, and that is no loss of the catalog.
    let wrong = site.scratch.file("wrong", b"another one\n", 0o600);
    let wrong = site.elsewhere.clone().env("PGARK_PASSPHRASE_FILE", &wrong);
    wrong.run(["rebuild-catalog", "--yes"]).expect_code(12);
}
