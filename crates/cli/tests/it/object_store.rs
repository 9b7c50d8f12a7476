//! A repository in an object store, from `init` to a restored server that fetches its WAL there.

use std::path::Path;

use pgark_testkit::{FaultyHttp, HttpFault, ObjectServer, ObjectServerKind, Pgark, Scratch, Server, Target, skip};

use crate::site::{BINARY, Site};

/// A site whose repository lies on this server.
fn site_on(server: &Server, store: &ObjectServer, label: &str) -> Site {
    let scratch = Scratch::new(label);
    let mut elsewhere =
        Pgark::new(BINARY, &scratch, Path::new(&store.url_by(store.address(), "prod/pg", "&timeout=5")));
    for (name, value) in store.environment() {
        elsewhere = elsewhere.env(&name, value);
    }
    Site::with_pgark(server, scratch, elsewhere, |builder| builder.wal_segsize_mb(1).conf("autovacuum = off"))
}

fn survives_on(kind: ObjectServerKind, label: &str) {
    let server = installed_or_skip!();
    let mut store = match ObjectServer::start(kind) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let site = site_on(&server, &store, label);
    let checked = site.pgark.run(["check", "--json"]);
    assert!(matches!(checked.code, Some(0 | 3)), "{checked}");
    let findings = checked.json()["checks"].to_string();
    assert!(findings.contains("is not overwritten") && !findings.contains("\"failed\""), "{checked}");

    // Enough for packs that are uploaded in parts.
    site.cluster
        .psql("create table filler as select md5(g::text) || md5((-g)::text) as m from generate_series(1,300000) g");
    let full = site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 20);
    let middle = Target::Time { at: site.ledger.last().after, inclusive: true };
    site.ledger.write_rows(&site.cluster, 20);
    let incr = site.pgark.backup("incr");
    site.ledger.write_rows(&site.cluster, 20);
    let latest = site.archive_all();
    assert_ne!(full, incr);

    site.assert_restores("latest", &latest, 1, &[]);
    site.assert_restores("middle", &middle, 1, &[]);
    site.assert_restores("old", &latest, 1, &[&full]);
    let verified = site.elsewhere.json(["verify"]);
    assert_eq!(verified["ok"], true, "{verified}");
    site.pgark.run(["delete", &full, "--yes"]).expect_code(0);
    site.assert_restores("after-delete", &latest, 1, &[]);

    // A store that is gone is an error of its own: not an empty repository, and not the end of the archive.
    store.kill();
    let info = site.elsewhere.run(["info"]);
    assert_eq!(info.code, Some(1), "{info}");
    assert!(info.stderr.contains("E-REPO-IO"), "{info}");
}

#[test]
fn a_cluster_survives_in_a_bucket_of_moto() {
    survives_on(ObjectServerKind::Moto, "moto");
}

#[test]
fn a_cluster_survives_in_a_bucket_that_checks_signatures() {
    survives_on(ObjectServerKind::S3s, "s3s");
}

#[test]
fn a_cluster_survives_in_a_container_of_azurite() {
    survives_on(ObjectServerKind::Azurite, "azurite");
}

#[test]
fn a_cluster_survives_in_a_bucket_of_google_cloud_storage() {
    survives_on(ObjectServerKind::Gcs, "gcs");
}

#[test]
fn a_wrong_key_is_told_as_such() {
    let store = match ObjectServer::start(ObjectServerKind::S3s) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("s3key");
    let pgark = Pgark::new(BINARY, &scratch, Path::new(&store.url("prod")))
        .env("AWS_ACCESS_KEY_ID", "test-access-key")
        .env("AWS_SECRET_ACCESS_KEY", "another-secret");
    let outcome = pgark.run(["info"]);
    assert!(outcome.stderr.contains("E-REPO-DENIED"), "{outcome}");
    assert!(outcome.stderr.contains("SignatureDoesNotMatch"), "{outcome}");
    assert!(!outcome.stderr.contains("another-secret"), "{outcome}");
}

/// Nothing is asked of any store for these.
#[test]
fn what_a_url_says_of_a_store_is_looked_at_wherever_the_url_stands() {
    let scratch = Scratch::new("s3url");
    let refused = |url: &str| {
        let pgark = Pgark::new(BINARY, &scratch, Path::new(url));
        for words in [&["info"][..], &["init", "--dry-run"]] {
            let outcome = pgark.run(words).expect_code(2);
            assert!(outcome.stderr.contains("E-REPO-OPTIONS") && !outcome.stderr.contains("E-INTERNAL"), "{outcome}");
        }
        pgark.run(["info"]).stderr
    };
    for class in ["GLACIER", "DEEP_ARCHIVE", "glacier"] {
        let said = refused(&format!("s3://b/p?storage_class={class}"));
        assert!(said.contains("cannot be read at once") && said.contains("HINT: "), "{said}");
    }
    refused("az://b/p?account=a&storage_class=Archive");
    for host in ["127.0.0.1:9000", "127.0.0.1", "[::1]:9000"] {
        let said = refused(&format!("s3://b/p?endpoint=http://{host}&path_style=false"));
        assert!(said.contains("IP address"), "{said}");
    }
}

#[test]
fn credentials_that_nobody_gave_are_not_a_refusal_of_the_store() {
    let proxy = FaultyHttp::before(([127, 0, 0, 1], 1).into());
    proxy.fail("", "", usize::MAX, HttpFault::Answer(403, "no".into()));
    let scratch = Scratch::new("s3none");
    for url in ["s3://b/p?timeout=1", "gs://b/p?timeout=1"] {
        // Everything that leaves this machine is refused on the way, as behind a firewall.
        let proxied = format!("{url}&proxy=http://{}", proxy.address());
        let told = Pgark::new(BINARY, &scratch, Path::new(&proxied)).run(["info"]);
        assert!(told.stderr.contains("E-REPO-DENIED"), "{told}");
        assert!(told.stderr.contains("no credentials were found"), "{told}");
    }
}

#[test]
fn a_missing_bucket_is_not_an_empty_repository() {
    let store = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(store) => store,
        Err(why) => skip!("{why}"),
    };
    let scratch = Scratch::new("bucket");
    let url = store.url("prod").replace("s3://backups/", "s3://missing/");
    let mut pgark = Pgark::new(BINARY, &scratch, Path::new(&url));
    for (name, value) in store.environment() {
        pgark = pgark.env(&name, value);
    }
    let outcome = pgark.run(["info"]);
    assert_eq!(outcome.code, Some(1), "{outcome}");
    assert!(outcome.stderr.contains("bucket"), "{outcome}");
}
