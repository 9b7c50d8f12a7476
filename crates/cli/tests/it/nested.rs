//! A repository is made neither inside another one nor around one.

use std::path::Path;

use pgark_testkit::{ObjectServer, ObjectServerKind, Pgark, skip};

use crate::site::{BINARY, Site};

fn assert_nested(pgark: &Pgark, words: &[&str]) {
    let outcome = pgark.run(words);
    assert_eq!(outcome.code, Some(4), "{outcome}");
    assert!(outcome.stderr.contains("E-REPO-NESTED"), "{outcome}");
}

#[test]
fn a_directory_inside_or_around_a_repository_is_refused() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "nest");
    let own = site.elsewhere.repo().to_owned();
    let at = |repo: &Path| Pgark::new(BINARY, &site.scratch, repo).on(&site.cluster);
    for inside in ["sub", "clusters/main", "clusters/main/wal/deep/er"] {
        let there = own.join(inside).exists();
        assert_nested(&at(&own.join(inside)), &["init"]);
        assert_eq!(own.join(inside).exists(), there, "{inside} was made");
    }
    let around = own.parent().expect("the scratch directory");
    assert_nested(&at(around), &["init"]);
    assert!(!around.join("keyring").exists());
    let plain = site.elsewhere.clone().without_env("PGARK_REPO");
    let (from, to) = (own.display().to_string(), own.join("copy").display().to_string());
    assert_nested(&plain, &["replicate", "--from", &from, "--to", &to]);
    // Two that are new, one in the other.
    let (first, second) =
        (site.scratch.join("n1").display().to_string(), site.scratch.join("n1/n2").display().to_string());
    assert_nested(&site.pgark.clone().without_env("PGARK_REPO"), &["init", "--repo", &first, "--repo", &second]);
    // Side by side, and the same again.
    at(&site.scratch.join("repo2")).run(["init"]).expect_code(0);
    site.pgark.run(["init"]).expect_code(0);
    assert_eq!(site.elsewhere.json(["verify"])["ok"], true);
}

#[test]
fn a_prefix_inside_or_around_a_repository_is_refused() {
    let store = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let server = installed_or_skip!();
    let site = Site::small(&server, "nest2");
    let at = |prefix: &str| {
        let mut pgark = Pgark::new(BINARY, &site.scratch, Path::new(&store.url(prefix))).on(&site.cluster);
        for (name, value) in store.environment() {
            pgark = pgark.env(&name, value);
        }
        pgark
    };
    at("prod/pg").run(["init"]).expect_code(0);
    assert_nested(&at("prod/pg/more"), &["init"]);
    assert_nested(&at("prod/pg/clusters/main/x"), &["init"]);
    assert_nested(&at("prod"), &["init"]);
    at("prod/pg2").run(["init"]).expect_code(0);
    at("prod/pg").run(["init"]).expect_code(0);
}
