//! The jobs that look after a repository, killed before and after each single write to a store. Whatever a kill leaves, all that
//! is listed is whole; the next run succeeds without help, and ends where a run ends that nobody killed.
//!
//! `PGARK_SWEEP=full` visits every write, otherwise some spread over all. Each sweep prints its figures.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pgark_engine::keys::{self, Mode, RotateOptions, RunningRestores};
use pgark_engine::replicate::{self, ReplicateOptions, Which};
use pgark_repo::RepoError;
use pgark_repo::catalog::CLAIM_TTL_SECONDS;
use pgark_repo::keyring::Unlock;
use pgark_repo::repository::Rekeyed;
use pgark_repo::store::FaultStore;
use pgark_repo::store::fault::{Fault, Op, When};

use super::clocks::at_time_up;
use super::*;
use crate::reencrypt::{full_sweep, other_secrets, secrets};

const KILLS: [Fault; 2] = [Fault::CrashBefore, Fault::CrashAfter];
const WRITES: [Op; 5] = [Op::PutNew, Op::Create, Op::Write, Op::Finish, Op::Delete];
/// So many writes are visited unless all are.
const VISITED: usize = 12;
const END: i64 = BACKUPS as i64 * DAY;

/// The repository that a job works on, and the one that it copies into.
type Stores = Vec<Arc<dyn Store>>;
type Job<'a> = &'a dyn Fn(&Stores, i64) -> Result<(), EngineError>;

struct Sweep<'a> {
    name: &'a str,
    /// What the job finds.
    before: &'a dyn Fn() -> Stores,
    /// At so many seconds after the first run.
    job: Job<'a>,
    /// Holds at any moment.
    whole: &'a dyn Fn(&Stores, &str),
    /// Holds when it has ended.
    done: &'a dyn Fn(&Stores, &str),
}

impl Sweep<'_> {
    fn run(&self) {
        let (writes, reference) = self.undisturbed();
        let step = if full_sweep() { 1 } else { (writes / VISITED).max(1) };
        let (mut tried, mut divergences) = (0, vec![]);
        for kill in KILLS {
            for nth in (1..=writes).step_by(step) {
                let place = format!("{}: {kill:?} at write {nth} of {writes}, seed {SEED}", self.name);
                let killed = catch_unwind(AssertUnwindSafe(|| self.killed_at(kill, nth as u64, &reference, &place)));
                match killed {
                    Ok(()) => tried += 1,
                    // The panic has been printed.
                    Err(_) => divergences.push(place),
                }
            }
        }
        println!("{}: {writes} writes, killed {tried} times, {} divergences", self.name, divergences.len());
        assert!(divergences.is_empty(), "{divergences:#?}");
        assert!(tried > 5, "{}: {tried}", self.name);
    }

    /// How often it writes, and what is there afterwards.
    fn undisturbed(&self) -> (usize, Vec<BTreeSet<String>>) {
        let stores = (self.before)();
        let (faulty, seen) = mortal(&stores);
        (self.job)(&seen, 0).unwrap();
        (self.done)(&stores, self.name);
        (usize::try_from(faulty.count(&WRITES)).unwrap(), stores.iter().map(content).collect())
    }

    fn killed_at(&self, kill: Fault, nth: u64, reference: &[BTreeSet<String>], place: &str) {
        let stores = (self.before)();
        let (faulty, seen) = mortal(&stores);
        faulty.inject(&WRITES, When::Nth(nth), kill);
        let outcome = (self.job)(&seen, 0);
        assert!(faulty.crashed(), "{place}: it lived: {:?}", outcome.err());
        (self.whole)(&stores, place);
        // Who comes after a process that died waits until its claim has run out.
        (self.job)(&stores, CLAIM_TTL_SECONDS + 1).unwrap_or_else(|e| panic!("{place}: the next run fails: {e}"));
        (self.whole)(&stores, place);
        (self.done)(&stores, place);
        let found: Vec<_> = stores.iter().map(content).collect();
        assert!(found == reference, "{place}: it ends elsewhere: {found:#?} instead of {reference:#?}");
    }
}

/// As one process sees them, which can be killed.
fn mortal(stores: &Stores) -> (Arc<FaultStore>, Stores) {
    let faulty = Arc::new(FaultStore::new(stores[0].clone(), SEED));
    let mut seen: Stores = vec![faulty.clone()];
    seen.extend(stores[1..].iter().map(|store| Arc::new(faulty.beside(store.clone())) as Arc<dyn Store>));
    (faulty, seen)
}

/// All objects but the versions of registers, of which there are more after a kill.
fn content(store: &Arc<dyn Store>) -> BTreeSet<String> {
    let of_register = |name: &str| {
        let dir = name.rsplit('/').nth(1).unwrap_or_default();
        matches!(dir.trim_end_matches("-mirror"), "keyring" | "catalog" | "head")
    };
    objects(store).iter().map(ToString::to_string).filter(|name| !of_register(name)).collect()
}

fn opened(store: &Arc<dyn Store>, unlock: &Unlock) -> Repository {
    Repository::open(store.clone(), unlock).unwrap()
}

#[test]
fn an_expiry_that_is_killed_at_any_write_is_gone_on_with() {
    let template = Template::new();
    Sweep {
        name: "expire",
        before: &|| vec![template.fresh()],
        job: &|stores, later| expire_now(&stores[0], &at_time(END + 3600 + later)).map(drop),
        whole: &|stores, place| everything_listed_is_whole(&stores[0], &template.trees, place),
        done: &|stores, place| settled(&stores[0], place),
    }
    .run();
}

#[test]
fn a_removal_of_what_has_expired_that_is_killed_at_any_write_is_gone_on_with() {
    let template = Template::new();
    let grace = options(last_two(), Duration::from_secs(86_400));
    let (repo, ctx) = (open(&template.store), at_time_up(END + 3600, END + 3600));
    let plan = expire::plan(&grace, &repo, &ctx).unwrap();
    expire::run(&grace, &plan, &repo, &ctx).unwrap();
    assert!(content(&template.store).iter().any(|name| name.contains(backup_id(1).as_str())), "it waits for its grace");
    Sweep {
        name: "gc",
        before: &|| vec![template.fresh()],
        job: &|stores, later| {
            let now = END + 2 * DAY + later;
            let repo = Repository::open(stores[0].clone(), &super::keys().unlock)?;
            expire::remove_due(&repo, &cluster(), &at_time_up(now, now))
        },
        whole: &|stores, place| everything_listed_is_whole(&stores[0], &template.trees, place),
        done: &|stores, place| settled(&stores[0], place),
    }
    .run();
}

#[test]
fn a_rotation_that_is_killed_at_any_write_leaves_everything_readable() {
    let template = Template::with(&secrets());
    let unlock = secrets().unlock;
    Sweep {
        name: "key rotate",
        before: &|| vec![template.fresh()],
        job: &|stores, later| {
            let running_restores = RunningRestores::Allow;
            let options = RotateOptions { unlock: &unlock, passphrases: &[], drop: &[], running_restores };
            keys::rotate(&stores[0], &options, Mode::Run, &at_time(END + later)).map(drop)
        },
        whole: &|stores, place| {
            let repo = opened(&stores[0], &unlock);
            assert_eq!(CatalogStore::new(&repo, &cluster()).read().unwrap().backups.len(), 5, "{place}");
            listed_is_whole(&repo, &template.trees, place);
        },
        done: &|stores, place| {
            let repo = opened(&stores[0], &unlock);
            assert!(repo.check_keyring().unwrap().is_empty(), "{place}: a copy of the key ring is not whole");
            // Once more where the kill came after the new key was in force.
            assert!(matches!(repo.keys().generation(), 2 | 3), "{place}: {}", repo.keys().generation());
        },
    }
    .run();
}

fn all() -> ReplicateOptions {
    ReplicateOptions { cluster: cluster(), which: Which::Missing, jobs: 1 }
}

fn copied(from: &Repository, to: &Repository, later: i64) -> Result<(), EngineError> {
    let plan = replicate::plan(from, Some(to), &all())?;
    let report = replicate::run(from, to, &all(), &plan, &at_time(END + 3600 + later))?;
    assert_eq!(report.failed, vec![]);
    Ok(())
}

/// What the source has is untouched, and what the copy lists is whole; it may not be there yet.
fn both_are_whole(stores: &Stores, unlocks: [&Unlock; 2], trees: &Trees, place: &str) {
    let source = opened(&stores[0], unlocks[0]);
    assert_eq!(CatalogStore::new(&source, &cluster()).read().unwrap().backups.len(), 5, "{place}");
    listed_is_whole(&source, trees, place);
    match Repository::open(stores[1].clone(), unlocks[1]) {
        Err(RepoError::NoRepository { .. }) => {}
        Err(e) => panic!("{place}: the copy: {e}"),
        Ok(copy) => {
            if CatalogStore::new(&copy, &cluster()).try_read().unwrap().is_some() {
                listed_is_whole(&copy, trees, place);
            }
        }
    }
}

fn nothing_is_missing(from: &Repository, to: &Repository, place: &str) {
    assert!(replicate::plan(from, Some(to), &all()).unwrap().is_empty(), "{place}: something is missing");
    let listed = |repo: &Repository| CatalogStore::new(repo, &cluster()).read().unwrap();
    let ids = |repo: &Repository| listed(repo).backups.into_iter().map(|b| b.id).collect::<Vec<_>>();
    assert_eq!(ids(from), ids(to), "{place}");
    assert!(listed(to).jobs.is_empty() && listed(to).removing.is_empty(), "{place}: {:?}", listed(to).jobs);
}

#[test]
fn a_replication_that_is_killed_at_any_write_is_gone_on_with() {
    let template = Template::with(&secrets());
    let unlock = secrets().unlock;
    Sweep {
        name: "replicate",
        before: &|| vec![template.fresh(), Arc::new(MemoryStore::called("copy"))],
        job: &|stores, later| {
            let source = Repository::open(stores[0].clone(), &unlock)?;
            let (copy, _) = source.open_copy(stores[1].clone())?;
            copied(&source, &copy, later)
        },
        whole: &|stores, place| both_are_whole(stores, [&unlock, &unlock], &template.trees, place),
        done: &|stores, place| nothing_is_missing(&opened(&stores[0], &unlock), &opened(&stores[1], &unlock), place),
    }
    .run();
}

#[test]
fn a_replication_to_other_keys_that_is_killed_at_any_write_is_gone_on_with() {
    let template = Template::with(&secrets());
    let (unlock, other) = (secrets().unlock, other_secrets());
    Sweep {
        name: "replicate --rekey",
        before: &|| vec![template.fresh(), Arc::new(MemoryStore::called("rekeyed"))],
        job: &|stores, later| {
            let source = Repository::open(stores[0].clone(), &unlock)?;
            let copy = source.open_rekeyed(stores[1].clone(), &other, Rekeyed::Make)?.unwrap();
            copied(&source, &copy, later)
        },
        whole: &|stores, place| both_are_whole(stores, [&unlock, &other.unlock], &template.trees, place),
        done: &|stores, place| {
            nothing_is_missing(&opened(&stores[0], &unlock), &opened(&stores[1], &other.unlock), place);
            // Nothing of it opens with the keys of the source.
            assert!(matches!(Repository::open(stores[1].clone(), &unlock), Err(RepoError::WrongKey { .. })), "{place}");
        },
    }
    .run();
}
