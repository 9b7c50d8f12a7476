//! PostgreSQL takes a `restore_command` that exits 1 to 125 for the end of the archive and opens the database short.
//! Whatever happens to the archive, a restored cluster never accepts writes with fewer rows than were archived.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgark_testkit::{Damage, Damaged, Ending, Outcome, Recovered, Server, Target, objects_under, tree_of};

use crate::site::Site;

/// Twelve rows, each in a segment of its own, all archived after one full backup.
struct Recipe {
    site: Site,
    latest: Target,
    segments: Vec<String>,
}

impl Recipe {
    fn new(server: &Server) -> Recipe {
        let site = Site::small(server, "short");
        site.pgark.backup("full");
        let mut segments = Vec::new();
        let mut archived = String::new();
        for _ in 0..12 {
            site.ledger.write_rows(&site.cluster, 1);
            archived = site.cluster.psql("select pg_current_wal_insert_lsn()");
            segments.push(site.cluster.switch_and_archive());
        }
        Recipe { site, latest: Target::Latest { archived }, segments }
    }

    fn ninth(&self) -> &str {
        self.segments.get(8).expect("twelve segments")
    }

    /// The stored object of one segment.
    fn object(&self, segment: &str) -> PathBuf {
        object_of(self.site.elsewhere.repo(), segment)
    }
}

/// WAL objects carry the name of their segment, so that a person can find them.
pub fn object_of(repo: &Path, segment: &str) -> PathBuf {
    let mut found = objects_under(repo);
    found.retain(|path| path.to_string_lossy().contains(segment));
    assert_eq!(found.len(), 1, "objects of segment {segment}: {found:?}");
    found.pop().expect("one object")
}

/// Exact, or closed: never open for writes with rows missing.
fn assert_exact_or_closed(recipe: &Recipe, what: &str, directory: &Path) -> Ending {
    let recovered = Recovered::start(&recipe.site.server, &recipe.site.scratch, directory);
    if recovered.ending() == Ending::Promoted {
        recipe.site.ledger.assert_exact(&recovered, &recipe.latest, 1);
    }
    eprintln!("{what}: {:?}", recovered.ending());
    recovered.ending()
}

fn ways_to_lose_the_ninth(recipe: &Recipe) -> Vec<(&'static str, PathBuf, Damage)> {
    let ninth = recipe.object(recipe.ninth());
    let tenth = recipe.object(recipe.segments.get(9).expect("twelve segments"));
    vec![
        ("deleted", ninth.clone(), Damage::Delete),
        ("head flipped", ninth.clone(), Damage::FlipBit { per_mille: 0 }),
        ("middle flipped", ninth.clone(), Damage::FlipBit { per_mille: 500 }),
        ("tail flipped", ninth.clone(), Damage::FlipBit { per_mille: 1000 }),
        ("halved", ninth.clone(), Damage::Truncate { per_mille: 500 }),
        ("emptied", ninth.clone(), Damage::Truncate { per_mille: 0 }),
        ("swapped", ninth, Damage::SwapWith(tenth)),
    ]
}

#[test]
fn no_lost_or_damaged_segment_lets_a_restore_open_short() {
    let server = installed_or_skip!();
    let recipe = Recipe::new(&server);
    let (good, outcome) = recipe.site.try_restore("good", &recipe.latest, &[]);
    outcome.expect_code(0);
    for (number, (what, object, damage)) in ways_to_lose_the_ninth(&recipe).into_iter().enumerate() {
        // Damaged after the restore was planned and written, before the server asks for the segment.
        let late = copy_of(&recipe, &good, &format!("late{number}"));
        let damaged = Damaged::apply(&object, &damage);
        let ending = assert_exact_or_closed(&recipe, what, &late);
        assert_ne!(ending, Ending::Promoted, "{what}: the segment is lost, yet the restore claims to be whole");

        // Damaged before the restore: refused, or at least never open short.
        let (to, outcome) = recipe.site.try_restore(&format!("early{number}"), &recipe.latest, &[]);
        if outcome.succeeded() {
            assert_exact_or_closed(&recipe, what, &to);
        } else {
            assert!(outcome.failed_cleanly(), "{what}: {outcome}");
        }
        drop(damaged);
        fs::remove_dir_all(&late).expect("remove");
    }
    assert_eq!(assert_exact_or_closed(&recipe, "undamaged", &good), Ending::Promoted);
}

fn copy_of(recipe: &Recipe, good: &Path, name: &str) -> PathBuf {
    let to = recipe.site.scratch.join(name);
    let mut copy = pgark_testkit::as_postgres("cp");
    copy.arg("-a").arg(good).arg(&to);
    assert!(copy.status().expect("cp").success());
    // What a restore wrote about its own place must follow the copy.
    let (from, into) = (good.display().to_string(), to.display().to_string());
    for name in ["postgresql.auto.conf", "postgresql.conf"] {
        let path = to.join(name);
        let text = fs::read_to_string(&path).expect("configuration");
        fs::write(&path, text.replace(&from, &into)).expect("configuration");
    }
    to
}

#[test]
fn a_repository_that_goes_away_keeps_the_restored_cluster_closed() {
    let server = installed_or_skip!();
    let recipe = Recipe::new(&server);
    let (good, outcome) = recipe.site.try_restore("good", &recipe.latest, &[]);
    outcome.expect_code(0);
    let repo = recipe.site.elsewhere.repo().to_owned();
    let away = recipe.site.scratch.join("away");

    let late = copy_of(&recipe, &good, "moved");
    fs::rename(&repo, &away).expect("move the repository away");
    assert_eq!(assert_exact_or_closed(&recipe, "repository moved away", &late), Ending::Down);
    fs::rename(&away, &repo).expect("move the repository back");

    let late = copy_of(&recipe, &good, "locked");
    let mode = fs::metadata(&repo).expect("metadata").permissions();
    fs::set_permissions(&repo, fs::Permissions::from_mode(0o000)).expect("mode");
    assert_eq!(assert_exact_or_closed(&recipe, "repository not readable", &late), Ending::Down);
    fs::set_permissions(&repo, mode).expect("mode");

    let late = copy_of(&recipe, &good, "empty");
    fs::rename(&repo, &away).expect("move the repository away");
    recipe.site.scratch.dir("repo");
    assert_eq!(assert_exact_or_closed(&recipe, "an empty directory instead", &late), Ending::Down);
    fs::remove_dir(&repo).expect("remove");
    fs::rename(&away, &repo).expect("move the repository back");
    assert_eq!(assert_exact_or_closed(&recipe, "repository back again", &late), Ending::Promoted);
}

#[test]
fn damage_beyond_the_target_does_not_refuse_the_restore() {
    let server = installed_or_skip!();
    let recipe = Recipe::new(&server);
    let fifth = recipe.site.ledger.middle_from(4);
    assert!(fifth.id < 9);
    let target = Target::Xid { xid: fifth.xid, inclusive: true };
    // PostgreSQL reads ahead, so it asks for the segment behind its target too.
    let next = recipe.segments.get(usize::try_from(fifth.id).expect("small")).expect("twelve segments");
    let damaged = Damaged::apply(&recipe.object(next), &Damage::Delete);
    recipe.site.assert_restores("before", &target, 1, &[]);
    drop(damaged);
}

/// Runs `archive-get` and checks that nothing appears under the destination unless it delivered.
fn get(recipe: &Recipe, pgark: &pgark_testkit::Pgark, name: &str) -> Outcome {
    let to = recipe.site.scratch.join("got");
    let before = tree_of(&to);
    let outcome = pgark.run(["archive-get".as_ref(), name.as_ref(), to.as_os_str()]);
    if outcome.succeeded() {
        fs::remove_file(&to).expect("what was delivered");
    } else {
        before.assert_same(&tree_of(&to), "archive-get failed, yet its destination");
    }
    outcome
}

fn assert_hard_failure(what: &str, outcome: &Outcome) {
    assert!(outcome.code.is_none_or(|code| code >= 126), "{what} reads as the end of the archive: {outcome}");
    assert!(!outcome.stderr.contains("panicked at"), "{what}: {outcome}");
}

#[test]
fn archive_get_says_absent_only_beyond_the_end_of_the_archive() {
    let server = installed_or_skip!();
    let recipe = Recipe::new(&server);
    let pgark = &recipe.site.elsewhere;
    get(&recipe, pgark, recipe.ninth()).expect_code(0);
    get(&recipe, pgark, "0000000100000000000000FF").expect_code(1);
    get(&recipe, pgark, "00000002.history").expect_code(1);
    for (what, object, damage) in ways_to_lose_the_ninth(&recipe) {
        let damaged = Damaged::apply(&object, &damage);
        assert_hard_failure(what, &get(&recipe, pgark, recipe.ninth()));
        drop(damaged);
    }
    let ninth = recipe.ninth();
    let wrong = recipe.site.scratch.file("wrong", b"not the passphrase\n", 0o600);
    assert_hard_failure("wrong key", &get(&recipe, &pgark.clone().env("PGARK_PASSPHRASE_FILE", wrong), ninth));
    assert_hard_failure("no key", &get(&recipe, &pgark.clone().without_env("PGARK_PASSPHRASE_FILE"), ninth));
    let nowhere = recipe.site.scratch.join("nowhere");
    assert_hard_failure("no repository", &get(&recipe, &pgark.clone().env("PGARK_REPO", nowhere), ninth));
    assert_hard_failure("other cluster", &get(&recipe, &pgark.clone().env("PGARK_CLUSTER", "other"), ninth));
    assert_hard_failure("bad name", &get(&recipe, pgark, "../../etc/passwd"));
    assert_hard_failure("no arguments", &pgark.run(["archive-get"]));
    assert_hard_failure("unknown flag", &pgark.run(["archive-get", "--no-such-flag", ninth, "x"]));
    let unwritable = recipe.site.scratch.join("no such directory/got");
    assert_hard_failure("no destination", &pgark.run(["archive-get".as_ref(), ninth.as_ref(), unwritable.as_os_str()]));
}

#[test]
fn archive_push_refuses_what_is_not_this_clusters_segment() {
    let server = installed_or_skip!();
    let recipe = Recipe::new(&server);
    let site = &recipe.site;
    let good = site.scratch.join(recipe.ninth());
    site.elsewhere.run(["archive-get".as_ref(), recipe.ninth().as_ref(), good.as_os_str()]).expect_code(0);
    let bytes = fs::read(&good).expect("segment");
    let other = pgark_testkit::TestCluster::builder(&server).wal_segsize_mb(1).start(&site.scratch, "other");
    let foreign = other.psql("select pg_walfile_name(pg_current_wal_lsn())");
    other.psql("select pg_switch_wal()");
    let foreign = fs::read(other.data_dir().join("pg_wal").join(foreign)).expect("segment");
    let repo = tree_of(site.elsewhere.repo());
    let cases: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("truncated", bytes.get(..bytes.len() / 2).expect("half")),
        ("garbage", &vec![0x5a; bytes.len()]),
        ("another cluster's", &foreign),
        ("renamed", &bytes),
    ];
    for (what, content) in cases {
        // A name that is free, so that only the content can be the reason.
        let path = site.scratch.file("000000010000000000000077", content, 0o600);
        let outcome = site.pgark.run(["archive-push".as_ref(), path.as_os_str()]);
        assert!(!outcome.succeeded() && outcome.failed_cleanly(), "{what}: {outcome}");
    }
    repo.assert_same(&tree_of(site.elsewhere.repo()), "the repository after refused pushes");
}
