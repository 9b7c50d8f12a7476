//! Two repositories, of which one is destroyed or damaged at any moment: nothing is lost, and both are whole again after
//! `replicate` and `verify --repair`. The seed is in every message; `PGARK_TEST_SEED` sets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgark_testkit::{Ending, Outcome, Recovered, objects_under};
use serde_json::Value;

use crate::several::Two;
use crate::site::full_sweep;

/// xorshift64*
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

#[derive(Debug, Clone, Copy)]
enum During {
    Backup,
    Archive,
    Restore,
    Replicate,
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Destroyed,
    Flipped,
    Removed,
}

fn seed() -> u64 {
    let given = std::env::var("PGARK_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.subsec_nanos().into());
    given.unwrap_or_else(now).max(1)
}

/// A pack, manifest, record or segment.
fn some_object(repo: &Path, chance: &mut Chance) -> Option<PathBuf> {
    let all: Vec<PathBuf> = objects_under(&repo.join("clusters/main"))
        .into_iter()
        .filter(|p| {
            let parent = p.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let register = ["catalog", "head"].contains(&parent.trim_end_matches("-mirror"));
            !register && !name.starts_with('.') && !name.ends_with(".backup")
        })
        .collect();
    let n = chance.below(u64::try_from(all.len()).ok().filter(|n| *n > 0)?);
    all.get(usize::try_from(n).ok()?).cloned()
}

/// Returns whether anything was there to harm.
fn harm(repo: &Path, what: Harm, chance: &mut Chance) -> bool {
    match what {
        // What is being written into it meanwhile may keep a directory alive for a moment.
        Harm::Destroyed => (0..200).any(|_| fs::remove_dir_all(repo).is_ok() || !repo.exists()),
        Harm::Removed => some_object(repo, chance).is_some_and(|object| fs::remove_file(object).is_ok()),
        Harm::Flipped => some_object(repo, chance).is_some_and(|object| {
            let Ok(mut bytes) = fs::read(&object) else { return false };
            let at = usize::try_from(chance.below(bytes.len().max(1) as u64)).unwrap_or(0);
            bytes.get_mut(at).is_some_and(|byte| {
                *byte ^= 1 << chance.below(8);
                true
            }) && fs::write(&object, bytes).is_ok()
        }),
    }
}

fn act(two: &Two, during: During, round: u64, latest: &pgark_testkit::Target) -> Outcome {
    match during {
        During::Backup => two.backup(),
        During::Archive => {
            two.site.ledger.write_rows(&two.site.cluster, 3);
            two.site.archive_all();
            two.site.elsewhere.run(["info"])
        }
        During::Restore => two.site.try_restore(&format!("during-{round}"), latest, &[]).1,
        During::Replicate => two.site.elsewhere.run(["replicate", "--from", "a", "--to", "b"]),
    }
}

#[test]
fn either_of_two_repositories_can_be_lost_at_any_moment() {
    let Some(two) = Two::new("two-of-two", false) else { return };
    let seed = seed();
    let mut chance = Chance(seed);
    two.site.cluster.psql("create table t as select g, md5(g::text) m from generate_series(1, 20000) g");
    two.backup().expect_code(0);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let mut latest = two.site.archive_all();
    let rounds = if full_sweep() { 40 } else { 6 };
    for round in 0..rounds {
        let during = [During::Backup, During::Archive, During::Restore, During::Replicate]
            [usize::try_from(round % 4).unwrap_or(0)];
        let what = [Harm::Destroyed, Harm::Flipped, Harm::Removed][usize::try_from(chance.below(3)).unwrap_or(0)];
        let (victim, other) = if chance.below(2) == 0 { ("a", "b") } else { ("b", "a") };
        let place = if victim == "a" { &two.a } else { &two.b };
        let pause = Duration::from_millis(chance.below(if matches!(during, During::Archive) { 400 } else { 1500 }));
        let case = format!("seed {seed}, round {round}: {victim} {what:?} during {during:?} after {pause:?}");
        two.site.ledger.write_rows(&two.site.cluster, 3);
        let outcome = std::thread::scope(|scope| {
            let acting = scope.spawn(|| act(&two, during, round, &latest));
            std::thread::sleep(pause);
            harm(place, what, &mut chance);
            acting.join().expect("the action panicked")
        });
        // It may fail, and it must say so; a restore that says nothing must be right.
        if matches!(during, During::Restore) {
            let path = two.site.scratch.join(format!("during-{round}"));
            if matches!(outcome.code, Some(0 | 3)) {
                let recovered = Recovered::start(&two.site.server, &two.site.scratch, &path).expect(Ending::Promoted);
                two.site.ledger.assert_exact(&recovered, &latest, 1);
            }
            fs::remove_dir_all(&path).unwrap_or_default();
        }
        // Work goes on with what is left.
        two.site.ledger.write_rows(&two.site.cluster, 3);
        latest = two.site.archive_all();
        let (path, restored) = two.site.try_restore(&format!("after-{round}"), &latest, &[]);
        assert!(matches!(restored.code, Some(0 | 3)), "{case}: {restored}");
        let recovered = Recovered::start(&two.site.server, &two.site.scratch, &path).expect(Ending::Promoted);
        two.site.ledger.assert_exact(&recovered, &latest, 1);
        drop(recovered);
        fs::remove_dir_all(&path).expect("remove");
        // And what was harmed is made whole.
        let copied = two.site.elsewhere.run(["replicate", "--from", other, "--to", victim]);
        assert!(matches!(copied.code, Some(0 | 3)), "{case}: {copied}");
        give_up_the_only_copy(&two, victim, &outcome, &case);
        assert_whole(&two, victim, &case);
        let back = two.site.elsewhere.run(["replicate", "--from", victim, "--to", other]);
        assert_eq!(back.code, Some(0), "{case}: {back}");
        assert_whole(&two, other, &case);
    }
    // Each alone, when the other is gone for good.
    two.assert_restores_from("b", "r-b", &latest);
    fs::remove_dir_all(&two.b).expect("b is destroyed");
    two.assert_restores_from("a", "r-a", &latest);
}

/// The manifest is harmed as soon as the record, the last object before the commit, is there. When that is too late the second
/// repository has it, and both are whole again.
#[test]
fn a_backup_that_is_harmed_before_it_is_copied_is_told_and_costs_no_other() {
    let Some(two) = Two::new("two-copied", false) else { return };
    two.backup().expect_code(0);
    let before = backups_of(&two.a);
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let outcome = std::thread::scope(|scope| {
        let acting = scope.spawn(|| two.backup());
        while !acting.is_finished() {
            let Some(made) = backups_of(&two.a).into_iter().find(|p| !before.contains(p)) else { continue };
            if made.join("record").exists() {
                let mut bytes = fs::read(made.join("manifest")).expect("a manifest");
                bytes[100] ^= 1;
                fs::write(made.join("manifest"), bytes).expect("harmed");
                break;
            }
        }
        acting.join().expect("the backup panicked")
    });
    let case = format!("{outcome}");
    assert!(matches!(outcome.code, Some(0 | 3)), "{case}");
    two.site.ledger.write_rows(&two.site.cluster, 3);
    let latest = two.site.archive_all();
    give_up_the_only_copy(&two, "a", &outcome, &case);
    assert_whole(&two, "a", &case);
    for (from, to) in [("a", "b"), ("b", "a")] {
        two.site.elsewhere.run(["replicate", "--from", from, "--to", to]).expect_code(0);
    }
    assert_whole(&two, "b", &case);
    two.assert_restores_from("a", "r-a", &latest);
    two.assert_restores_from("b", "r-b", &latest);
}

fn backups_of(repo: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(repo.join("clusters/main/backups")).into_iter().flatten();
    listed.flatten().map(|e| e.path()).filter(|p| p.join("manifest").exists()).collect()
}

/// A new backup lies in the first repository before the others get it. When it is harmed there before that, the command has
/// said that the other one does not have it, and the administrator gives it up; no other backup may be lost.
fn give_up_the_only_copy(two: &Two, victim: &str, outcome: &Outcome, case: &str) {
    let made: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
    let repos = made["repos"].as_array().cloned().unwrap_or_default();
    if victim != "a" || outcome.code != Some(3) || !repos.iter().any(|r| r["name"] == "b" && r["ok"] == false) {
        return;
    }
    let id = made["id"].as_str().expect("the backup that was made");
    two.only(victim).run(["verify", "--repair", "--json"]);
    let found = two.only(victim).run(["verify", "--json"]).json();
    let problems = found["problems"].as_array().cloned().unwrap_or_default();
    let is_its = |p: &Value| p["backups"].as_array().is_some_and(|b| b.iter().any(|b| b == id));
    if problems.iter().any(is_its) {
        let gone = two.only(victim).run(["delete", "--yes", id]);
        assert!(matches!(gone.code, Some(0 | 3)), "{case}: {gone}");
    }
}

/// After a repair, which may need several rounds: a damaged manifest hides what lies behind it.
fn assert_whole(two: &Two, name: &str, case: &str) {
    let only = two.only(name);
    for _ in 0..4 {
        if only.run(["verify", "--repair", "--json"]).code == Some(0) {
            break;
        }
    }
    let found = only.run(["verify", "--json"]);
    let problems = found.json()["problems"].as_array().cloned().unwrap_or_default();
    // The other copy of a register is put back by its next change.
    let object = |p: &Value| p["object"].as_str().unwrap_or_default().to_owned();
    let lost: Vec<String> = problems
        .iter()
        .filter(|p| p["kind"] != "unexpected")
        .map(object)
        .filter(|o| !o.contains("-mirror/") && !o.contains("/catalog/") && !o.contains("/head/"))
        .collect();
    assert!(lost.is_empty(), "{case}: {name} lacks {lost:?}\n{found}");
}
