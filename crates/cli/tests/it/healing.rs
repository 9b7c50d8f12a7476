//! Reading from several repositories: what one of them lacks comes from another, is told, and is put back.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgark_testkit::{Ending, Outcome, Pgark, Recovered, Target, objects_under};
use serde_json::Value;

use crate::several::Two;
use crate::site::BINARY;

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    fs::write(path, bytes).expect("damage");
}

fn segments(repo: &Path) -> Vec<PathBuf> {
    let all = objects_under(&repo.join("clusters/main/wal")).into_iter();
    all.filter(|p| p.file_name().is_some_and(|f| f.len() == 24)).collect()
}

fn id(backup: &Value) -> &str {
    backup["id"].as_str().expect("an id")
}

/// From all repositories of the configuration.
fn restore(two: &Two, name: &str, latest: &Target, more: &[&str]) -> (PathBuf, Outcome) {
    two.site.try_restore(name, latest, &[more, &["--json"]].concat())
}

fn assert_recovers(two: &Two, path: &Path, latest: &Target) {
    let recovered = Recovered::start(&two.site.server, &two.site.scratch, path).expect(Ending::Promoted);
    two.site.ledger.assert_exact(&recovered, latest, 1);
}

/// What a restore says of an object: its repository, and whether it is whole again.
fn told(document: &Value, object: &str) -> Option<(String, bool)> {
    let all = document["repositories"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|t| t["object"].as_str().is_some_and(|o| o.contains(object)))?;
    Some((found["repository"].as_str()?.to_owned(), found["repaired"].as_bool()?))
}

#[test]
fn a_restore_takes_from_the_other_what_is_damaged_and_puts_it_back() {
    let Some(two) = Two::new("heal1", false) else { return };
    two.site.cluster.psql("create table t as select g, md5(g::text) m from generate_series(1, 20000) g");
    let full = two.backup().expect_code(0).json();
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let incr = two.backup().expect_code(0).json();
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    let place =
        |repo: &Path, backup: &Value, rest: &str| repo.join(format!("clusters/main/backups/{}/{rest}", id(backup)));
    // Not one of both is whole any more.
    flip(&place(&two.a, &full, "packs/000001"));
    fs::remove_file(place(&two.a, &incr, "record")).expect("remove");
    flip(&place(&two.a, &incr, "manifest"));
    fs::remove_file(place(&two.b, &incr, "packs/000001")).expect("remove");
    let whole = fs::read(place(&two.b, &full, "packs/000001")).expect("a pack");

    let (path, outcome) = restore(&two, "r", &latest, &[]);
    let outcome = outcome.expect_code(3);
    let document = outcome.json();
    assert_eq!(document["backup"], id(&incr), "{document}");
    let repaired =
        |repo: &str, object: String| assert_eq!(told(&document, &object), Some((repo.to_owned(), true)), "{document}");
    repaired("a", format!("{}/packs/000001", id(&full)));
    repaired("a", format!("{}/record", id(&incr)));
    repaired("a", format!("{}/manifest", id(&incr)));
    assert!(outcome.stderr.contains("repository a: "), "{outcome}");
    assert!(fs::read(place(&two.a, &full, "packs/000001")).expect("a pack") == whole, "the same bytes");
    assert_recovers(&two, &path, &latest);
    assert_eq!(two.only("a").json(["verify"])["ok"], true);

    // What is right is left alone, and nothing is told.
    let (path, outcome) = restore(&two, "r2", &latest, &["--delta"]);
    assert!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
    assert_recovers(&two, &path, &latest);
}

#[test]
fn damage_in_both_takes_an_older_backup() {
    let Some(two) = Two::new("heal2", false) else { return };
    let full = two.backup().expect_code(0).json();
    two.site.cluster.psql("create table t as select g, md5(g::text) m from generate_series(1, 20000) g");
    let second = two.backup().expect_code(0).json();
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    for repo in [&two.a, &two.b] {
        flip(&repo.join(format!("clusters/main/backups/{}/packs/000001", id(&second))));
    }
    let (path, outcome) = restore(&two, "r", &latest, &[]);
    let document = outcome.expect_code(3).json();
    assert_eq!(document["backup"], id(&full), "{document}");
    assert_recovers(&two, &path, &latest);
}

#[test]
fn recovery_knows_all_repositories_and_puts_wal_back() {
    let Some(two) = Two::new("heal3", false) else { return };
    two.backup().expect_code(0);
    for _ in 0..4 {
        two.site.ledger.write_rows(&two.site.cluster, 5);
        two.site.archive_all();
    }
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    let (path, outcome) = restore(&two, "r", &latest, &[]);
    outcome.expect_code(0);
    let (other, outcome) = restore(&two, "r2", &latest, &[]);
    outcome.expect_code(0);
    // After the plan, so that only the recovering server meets it.
    let all = segments(&two.a);
    let [.., third, second, last] = all.as_slice() else { panic!("{all:?}") };
    let whole = fs::read(second).expect("a segment");
    flip(second);
    fs::remove_file(third).expect("remove");
    flip(last);
    assert_recovers(&two, &path, &latest);
    assert!(fs::read(second).expect("a segment") == whole || second_is_sound(&two), "put back");
    assert_eq!(two.only("a").json(["verify"])["ok"], true);

    // Destroyed between the restore and the recovery: its end asks for a history that nobody can have.
    fs::remove_dir_all(&two.a).expect("a is destroyed");
    assert_recovers(&two, &other, &latest);
}

/// Each repository seals a segment for itself: the bytes may differ, the content must not.
fn second_is_sound(two: &Two) -> bool {
    two.only("a").json(["verify"])["ok"] == true
}

#[test]
fn a_first_repository_that_lags_does_not_make_a_restore_short() {
    let Some(two) = Two::new("heal4", false) else { return };
    two.backup().expect_code(0);
    let parked = two.a.with_extension("parked");
    fs::rename(&two.a, &parked).expect("a goes away");
    two.site.ledger.write_rows(&two.site.cluster, 5);
    two.site.archive_all();
    let second = two.backup().expect_code(3).json();
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    fs::rename(&parked, &two.a).expect("a comes back, and lags");
    let (path, outcome) = restore(&two, "r", &latest, &[]);
    let document = outcome.expect_code(0).json();
    assert_eq!(document["backup"], id(&second), "{document}");
    assert_recovers(&two, &path, &latest);
}

#[test]
fn only_all_repositories_together_can_say_that_the_archive_ends() {
    let Some(two) = Two::new("heal5", false) else { return };
    let parked = two.a.with_extension("parked");
    two.site.ledger.write_rows(&two.site.cluster, 1);
    two.site.archive_all();
    fs::rename(&two.a, &parked).expect("a goes away");
    two.site.ledger.write_rows(&two.site.cluster, 1);
    let last = two.site.cluster.switch_and_archive();
    fs::rename(&parked, &two.a).expect("a comes back, and lags");
    let number = u64::from_str_radix(&last[16..], 16).expect("a segment");
    let next = format!("{}{:08X}", &last[..16], number + 1);
    let got = two.site.scratch.join("got");
    let file = got.display().to_string();
    let get = |name: &str, to: &str| two.site.elsewhere.run(["archive-get", "--alone", name, to]);

    // In the second alone.
    get(&last, &file).expect_code(0);
    // In neither.
    assert_eq!(get(&next, &file).code, Some(1));
    // Whoever is away may have it.
    let parked_b = two.b.with_extension("parked");
    for (repo, parked, name) in [(&two.a, &parked, "a"), (&two.b, &parked_b, "b")] {
        fs::rename(repo, parked).expect("it goes away");
        let outcome = get(&next, &file);
        assert_eq!(outcome.code, Some(126), "{outcome}");
        let said = outcome.stderr.contains("E-WAL-UNKNOWN") && outcome.stderr.contains(&format!("repository {name}"));
        assert!(said, "{outcome}");
        // A standby asks again.
        let data = two.site.scratch.dir(format!("standby-{name}"));
        let pg_wal = two.site.scratch.dir(format!("standby-{name}/pg_wal"));
        fs::write(data.join("standby.signal"), b"").expect("a signal file");
        assert_eq!(get(&next, &pg_wal.join("RECOVERYXLOG").display().to_string()).code, Some(1));
        fs::rename(parked, repo).expect("it comes back");
    }
    // With everything away nothing is known.
    fs::rename(&two.a, &parked).expect("a goes away");
    fs::rename(&two.b, &parked_b).expect("b goes away");
    let outcome = get(&next, &file);
    assert_eq!(outcome.code, Some(126), "{outcome}");
}

#[test]
fn a_first_repository_that_never_answers_is_waited_for_seconds() {
    let Some(two) = Two::new("heal6", false) else { return };
    two.backup().expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 5);
    let latest = two.site.archive_all();
    // Takes connections and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "s3://bucket/prefix?endpoint=http://{}&allow_http=true&region=us-east-1&path_style=true",
        mute.local_addr().expect("an address")
    );
    let text = fs::read_to_string(&two.config).expect("the configuration");
    let passphrase = two.site.scratch.join("passphrase").display().to_string();
    let text = text.replace(
        "[clusters.main]\nrepos = [\"a\", \"b\"]",
        &format!("[repos.mute]\nurl = \"{url}\"\npassphrase_file = \"{passphrase}\"\n[clusters.main]\nrepos = [\"mute\", \"a\"]"),
    );
    assert!(text.contains("mute"), "{text}");
    let config = two.site.scratch.file("mute.toml", text.as_bytes(), 0o600);
    let elsewhere = Pgark::new(BINARY, &two.site.scratch, &two.a)
        .without_env("PGARK_REPO")
        .without_env("PGARK_PASSPHRASE_FILE")
        .env("PGARK_CONFIG", &config)
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "x");
    let timed = |words: Vec<String>, code: i32| {
        let began = Instant::now();
        let outcome = elsewhere.run(words);
        assert_eq!(outcome.code, Some(code), "{outcome}");
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}: {outcome}", began.elapsed());
        outcome
    };
    let info = timed(vec!["info".into()], 0);
    assert!(info.stderr.contains("mute did not answer within"), "{info}");
    let path = two.site.scratch.join("r");
    let restored = timed(two.site.restore_arguments(&path, &latest, &[]), 3);
    assert!(restored.stderr.contains("repository mute: it did not answer within"), "{restored}");
    // A local one is asked before a remote one.
    let began = Instant::now();
    let segment = segments(&two.a).pop().expect("a segment");
    let name = segment.file_name().expect("a name").to_string_lossy().into_owned();
    let to = two.site.scratch.join("got").display().to_string();
    elsewhere.run(["archive-get", "--alone", &name, &to]).expect_code(0);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(mute);
}
