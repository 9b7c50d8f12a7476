//! One flipped bit, one truncation, one deletion, one swap in each object of a repository in turn: `verify` finds it
//! and names what it touches and nothing else, and a restore is exact or refused.
//!
//! What a damaged object touches is not taken from the product's word: a backup is touched when it cannot be restored
//! by its id any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pgark_testkit::{Damage, Damaged, Ending, Recovered, Target, objects_under};
use serde_json::Value;

use crate::never_short::object_of;
use crate::site::{Site, full_sweep, strings};

/// Two backups that share most of their content, WAL between and after them.
struct Vault {
    site: Site,
    backups: Vec<String>,
    stops: Vec<String>,
    latest: Target,
    between: String,
    /// The segment in which the first backup starts: nothing needs an older one.
    first_needed: String,
}

impl Vault {
    fn new(server: &pgark_testkit::Server) -> Vault {
        let site = Site::small(server, "tamper");
        site.ledger.write_rows(&site.cluster, 3);
        let first = site.pgark.backup("full");
        site.ledger.write_rows(&site.cluster, 3);
        let between = site.cluster.switch_and_archive();
        site.cluster.psql("create table later as select i, md5(i::text) from generate_series(1, 2000) i");
        let second = site.pgark.backup("incr");
        site.ledger.write_rows(&site.cluster, 3);
        let latest = site.archive_all();
        // From here on nothing may change the repository but the test.
        site.cluster.psql("alter system set archive_command = '/bin/false'");
        site.cluster.reload();
        let backups = vec![first, second];
        let stop = |id: &String| site.pgark.backup_info(id)["lsn_stop"].as_str().expect("lsn_stop").to_owned();
        let stops = backups.iter().map(stop).collect();
        let start = site.pgark.backup_info(&backups[0])["lsn_start"].as_str().expect("lsn_start").to_owned();
        let first_needed = site.cluster.psql(&format!("select pg_walfile_name('{start}')"));
        Vault { site, backups, stops, latest, between, first_needed }
    }

    /// Not so WAL from before the first backup and the history files of backups, which nobody replays: a change to
    /// them is damage, but that they are gone breaks no promise. That the end of the audit trail is gone shows where
    /// somebody remembers it, which `audit` tests.
    fn is_needed(&self, object: &Path) -> bool {
        if object.components().any(|part| part.as_os_str() == "audit") {
            return false;
        }
        let name = object.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let segment = name.get(..24).filter(|word| word.chars().all(|letter| letter.is_ascii_hexdigit()));
        !name.contains(".backup") && segment.is_none_or(|segment| segment >= self.first_needed.as_str())
    }

    /// What `verify` reports, or nothing when the damage is to what opens the repository at all: then it is said with
    /// the exit code for a missing repository or a wrong key.
    fn verify(&self, what: &str) -> Option<Value> {
        let outcome = self.site.elsewhere.run(["verify", "--json"]);
        if matches!(outcome.code, Some(10 | 12)) {
            assert!(outcome.json()["error"]["code"].is_string(), "{what}: {outcome}");
            return None;
        }
        assert_eq!(outcome.code, Some(20), "{what}: verify found no damage\n{outcome}");
        let document = outcome.json();
        assert_eq!(document["ok"], false, "{what}: {document}");
        assert!(document["problems"].as_array().is_some_and(|list| !list.is_empty()), "{what}: {document}");
        Some(document)
    }

    /// The backups that cannot be restored by their id, each refused cleanly.
    fn lost(&self, what: &str) -> BTreeSet<String> {
        let mut lost = BTreeSet::new();
        for (id, stop) in self.backups.iter().zip(&self.stops) {
            let (to, outcome) = self.site.try_restore("probe", &Target::Immediate { lsn_stop: stop.clone() }, &[id]);
            if !outcome.succeeded() {
                assert!(outcome.failed_cleanly(), "{what}: {outcome}");
                lost.insert(id.clone());
            }
            remove(&to);
        }
        lost
    }

    /// A restore of the newest state is exact, or it is refused and cannot be started.
    fn exact_or_refused(&self, what: &str) {
        let (to, outcome) = self.site.try_restore("newest", &self.latest, &[]);
        if outcome.succeeded() {
            let recovered = Recovered::start(&self.site.server, &self.site.scratch, &to);
            if recovered.ending() == Ending::Promoted {
                self.site.ledger.assert_exact(&recovered, &self.latest, 1);
            }
        } else {
            assert!(outcome.failed_cleanly(), "{what}: {outcome}");
            if to.join("PG_VERSION").exists() {
                let recovered = Recovered::start(&self.site.server, &self.site.scratch, &to);
                assert_eq!(recovered.ending(), Ending::Down, "{what}: an aborted restore started");
            }
        }
        remove(&to);
    }
}

fn remove(directory: &Path) {
    if directory.exists() {
        fs::remove_dir_all(directory).expect("remove");
    }
}

/// Objects of one kind have names that differ in digits and hexadecimal alone.
fn kind_of(repo: &Path, object: &Path) -> String {
    let relative = object.strip_prefix(repo).unwrap_or(object).to_string_lossy().into_owned();
    let mut kind = String::new();
    for word in relative.split_inclusive(['/', '.', '-', '_']) {
        let number = word.trim_end_matches(['/', '.', '-', '_']);
        let is_number =
            !number.is_empty() && number.chars().all(|letter| letter.is_ascii_hexdigit() || "FILS".contains(letter));
        kind.push_str(if is_number && number.len() > 1 { "#" } else { word });
    }
    kind
}

/// Every object in a full sweep, else the first and the last two of each kind.
fn chosen(repo: &Path) -> Vec<PathBuf> {
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for object in objects_under(repo) {
        kinds.entry(kind_of(repo, &object)).or_default().push(object);
    }
    let pick = |list: Vec<PathBuf>| if full_sweep() { list } else { crate::site::sample(&list, 3) };
    kinds.into_values().flat_map(pick).collect()
}

fn damages(object: &Path, all: &[PathBuf]) -> Vec<Damage> {
    let mut damages: Vec<Damage> = [0, 37, 500, 963, 1000].map(|per_mille| Damage::FlipBit { per_mille }).into();
    damages.extend([Damage::Truncate { per_mille: 0 }, Damage::Truncate { per_mille: 999 }, Damage::Delete]);
    // A neighbour is the likeliest object to be taken for this one.
    let content = fs::read(object).expect("object");
    let neighbour = all.iter().find(|other| {
        *other != object && other.parent() == object.parent() && fs::read(other).is_ok_and(|bytes| bytes != content)
    });
    damages.extend(neighbour.map(|other| Damage::SwapWith(other.clone())));
    if content.is_empty() {
        damages.retain(|damage| matches!(damage, Damage::Delete));
    }
    damages
}

#[test]
fn verify_finds_every_damage_to_every_object() {
    let server = installed_or_skip!();
    let vault = Vault::new(&server);
    vault.site.elsewhere.run(["verify"]).expect_code(0);
    let repo = vault.site.elsewhere.repo();
    let all = objects_under(repo);
    let mut reported = 0;
    let mut objects = chosen(repo);
    // What a verification finds wrong with a backup goes on record in the catalog, whose objects then are others.
    objects.sort_by_key(|object| !object.display().to_string().contains("/catalog"));
    for object in objects {
        let shown = object.strip_prefix(repo).unwrap_or(&object).display().to_string();
        for damage in damages(&object, &all) {
            if damage == Damage::Delete && !vault.is_needed(&object) {
                continue;
            }
            let damaged = Damaged::apply(&object, &damage);
            if let Some(document) = vault.verify(&format!("{shown} {damage:?}")) {
                for problem in document["problems"].as_array().into_iter().flatten() {
                    assert!(problem["object"].is_string() && problem["kind"].is_string(), "{problem}");
                }
                reported += 1;
            }
            drop(damaged);
        }
    }
    assert!(reported > 30, "only {reported} reports: the repository is not what this test expects");
    vault.site.elsewhere.run(["verify"]).expect_code(0);
}

fn named_in(document: &Value) -> BTreeSet<String> {
    let problems = document["problems"].as_array().into_iter().flatten();
    problems.flat_map(|problem| strings(&problem["backups"])).collect()
}

#[test]
fn verify_names_the_lost_backups_and_no_other_and_a_restore_is_exact_or_refused() {
    let server = installed_or_skip!();
    let vault = Vault::new(&server);
    let repo = vault.site.elsewhere.repo();
    assert!(vault.lost("undamaged").is_empty());
    let mut sets = BTreeSet::new();
    for object in chosen(repo).into_iter().filter(|object| vault.is_needed(object)) {
        // Each restore leaves a newer version of the catalog, and the oldest goes.
        if !object.exists() {
            continue;
        }
        let shown = object.strip_prefix(repo).unwrap_or(&object).display().to_string();
        let damaged = Damaged::apply(&object, &Damage::Delete);
        let lost = vault.lost(&shown);
        if let Some(document) = vault.verify(&shown) {
            assert_eq!(
                named_in(&document),
                lost,
                "{shown}: verify names other backups than those that are lost\n{document}"
            );
        } else {
            assert_eq!(lost.len(), vault.backups.len(), "{shown}: the repository does not open, yet backups restore");
        }
        vault.exact_or_refused(&shown);
        sets.insert(lost);
        drop(damaged);
    }
    assert!(sets.len() > 1, "every object touches the same backups, so naming them was not tested");
    assert!(vault.lost("undamaged again").is_empty());
}

#[test]
fn a_lost_segment_between_backups_costs_a_window_but_no_backup() {
    let server = installed_or_skip!();
    let vault = Vault::new(&server);
    let object = object_of(vault.site.elsewhere.repo(), &vault.between);
    let damaged = Damaged::apply(&object, &Damage::Delete);
    let document = vault.verify("a segment between the backups").expect("the repository still opens");
    let problems = document["problems"].as_array().cloned().unwrap_or_default();
    assert!(problems.iter().all(|problem| strings(&problem["backups"]).is_empty()), "{document}");
    let windows: Vec<&Value> =
        problems.iter().flat_map(|problem| problem["windows"].as_array().into_iter().flatten()).collect();
    // What is lost begins with the segment and ends where the second backup makes a new beginning.
    let [window] = windows.as_slice() else { panic!("not one window: {document}") };
    let start = vault.site.cluster.psql(&format!(
        "select '0/0'::pg_lsn + ('x' || substr('{0}', 9, 8))::bit(32)::bigint * 4294967296
             + ('x' || substr('{0}', 17, 8))::bit(32)::bigint * 1048576",
        vault.between
    ));
    assert_eq!(window["from_lsn"], start.as_str(), "{document}");
    assert_eq!(window["to_lsn"], vault.stops[1].as_str(), "{document}");
    let time = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no time: {document}")).to_owned();
    let second = vault.site.pgark.backup_info(&vault.backups[1]);
    assert_eq!(time(&window["to_time"]), time(&second["finished"]), "{document}");
    assert!(time(&window["from_time"]) < time(&second["started"]), "{document}");
    let info = vault.site.elsewhere.json(["info"]);
    let cluster = &info["clusters"][0];
    assert!(cluster["gaps"].as_array().is_some_and(|gaps| !gaps.is_empty()), "no gap is shown: {info}");
    assert!(cluster["windows"].as_array().is_some_and(|list| list.len() == 2), "the window is not split: {info}");
    assert_ends_are_planned(&vault.site, cluster);
    // Both backups stand, and the newest state is reached from the second one.
    assert!(vault.lost("a segment between the backups").is_empty());
    let recovered = vault.site.restore("newest", &vault.latest, &[]);
    vault.site.ledger.assert_exact(&recovered, &vault.latest, 1);
    drop(recovered);
    // From the first backup alone the newest state cannot be reached, and that is said before anything is written.
    let first = vault.backups.first().expect("two backups");
    let (to, outcome) = vault.site.try_restore("first", &vault.latest, &[first]);
    assert!(outcome.failed_cleanly() && !to.exists(), "{outcome}");
    drop(damaged);
}

#[test]
fn a_damaged_newest_backup_falls_back_to_the_older_one_for_the_same_target() {
    let server = installed_or_skip!();
    let vault = Vault::new(&server);
    let newest = vault.backups.last().expect("two backups");
    let mut own = objects_under(vault.site.elsewhere.repo());
    own.retain(|path| path.to_string_lossy().contains(newest.as_str()));
    let object = own.first().unwrap_or_else(|| panic!("no object carries the id {newest}"));
    let damaged = Damaged::apply(object, &Damage::FlipBit { per_mille: 500 });
    let (to, outcome) = vault.site.try_restore("r", &vault.latest, &["--json"]);
    // Degraded, but done: either code is a success, and the report says which backup was used.
    assert!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
    assert_eq!(outcome.json()["backup"], vault.backups.first().expect("two backups").as_str(), "{outcome}");
    assert!(outcome.stderr.contains(newest.as_str()), "the fallback is not mentioned: {outcome}");
    let recovered = Recovered::start(&vault.site.server, &vault.site.scratch, &to).expect(Ending::Promoted);
    vault.site.ledger.assert_exact(&recovered, &vault.latest, 1);
    drop(damaged);
}

/// What `info` calls the ends of a window, `restore` takes as targets.
fn assert_ends_are_planned(site: &Site, cluster: &Value) {
    let to = site.scratch.path().join("window");
    for window in cluster["windows"].as_array().expect("windows") {
        for end in ["from_time", "to_time"] {
            let moment = window[end].as_str().unwrap_or_else(|| panic!("no {end}: {window}"));
            let timeline = window["timeline"].to_string();
            let to = to.to_str().expect("a readable path");
            let plan = ["restore", "--to", to, "--target-time", moment, "--target-timeline", &timeline, "--dry-run"];
            let outcome = site.elsewhere.run(plan);
            assert_eq!(outcome.code, Some(0), "{end} of {window}: {outcome}");
        }
    }
}

#[test]
fn a_backup_that_is_known_to_be_damaged_is_neither_promised_nor_planned_with() {
    let server = installed_or_skip!();
    let vault = Vault::new(&server);
    let [older, newest] = vault.backups.as_slice() else { panic!("not two backups: {:?}", vault.backups) };
    let cluster = |when: &str| {
        let info = vault.site.elsewhere.json(["info"]);
        let cluster = info["clusters"][0].clone();
        assert_eq!(cluster["windows"].as_array().map(Vec::len), Some(1), "{when}: {info}");
        assert_ends_are_planned(&vault.site, &cluster);
        cluster["windows"][0].clone()
    };
    let window_of = |window: &Value| strings(&window["backups"]);
    assert_eq!(window_of(&cluster("whole")), [older.clone(), newest.clone()]);
    let mut own = objects_under(vault.site.elsewhere.repo());
    own.retain(|path| path.to_string_lossy().contains(newest.as_str()));
    let damaged: Vec<Damaged> = own.iter().map(|o| Damaged::apply(o, &Damage::FlipBit { per_mille: 500 })).collect();
    vault.site.elsewhere.run(["verify"]).expect_code(20);
    assert_eq!(window_of(&cluster("damaged")), std::slice::from_ref(older));
    let to = vault.site.scratch.path().join("planned");
    let arguments = vault.site.restore_arguments(&to, &vault.latest, &["--dry-run", "--json"]);
    let planned = vault.site.elsewhere.run(&arguments);
    assert!(matches!(planned.code, Some(0 | 3)), "{planned}");
    assert_eq!(planned.json()["backup"], older.as_str(), "{planned}");
    drop(damaged);
}

#[test]
fn quick_verification_says_that_it_was_quick() {
    let server = installed_or_skip!();
    let vault = Vault::new(&server);
    let quick = vault.site.elsewhere.json(["verify", "--quick"]);
    assert_eq!(quick["depth"], "quick");
    let full = vault.site.elsewhere.json(["verify"]);
    assert_eq!(full["depth"], "full");
    assert!(full["bytes_checked"].as_u64() > quick["bytes_checked"].as_u64(), "{full} {quick}");
    let object = object_of(vault.site.elsewhere.repo(), &vault.between);
    let damaged = Damaged::apply(&object, &Damage::Truncate { per_mille: 999 });
    vault.site.elsewhere.run(["verify", "--quick"]).expect_code(20);
    drop(damaged);
}
