//! What has expired is brought back, or it is said that it is gone.

use std::sync::Arc;
use std::time::Duration;

use pgark_engine::expire::revive;
use pgark_engine::keep::{Change, Mark, mark};
use pgark_engine::{EngineError, delete, expire};
use pgark_repo::RepoError;
use pgark_repo::catalog::{CLAIM_TTL_SECONDS, CatalogStore};
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, ObjectName, Store};

use super::*;
use crate::stores::PausingStore;

fn in_grace() -> ExpireOptions {
    options(last_two(), Duration::from_secs(86_400))
}

fn expire_with_grace(store: &Arc<dyn Store>, ctx: &Ctx) {
    let repo = open(store);
    let plan = expire::plan(&in_grace(), &repo, ctx).unwrap();
    expire::run(&in_grace(), &plan, &repo, ctx).unwrap();
}

fn bring_back(store: &Arc<dyn Store>, n: u32, ctx: &Ctx) -> Result<revive::RevivePlan, EngineError> {
    revive::run(&Repository::open(store.clone(), &keys().unlock)?, &cluster(), &backup_id(n), None, ctx)
}

fn later(seconds: i64) -> Ctx {
    at_time(i64::from(BACKUPS) * DAY + 3600 + seconds)
}

#[test]
fn a_backup_comes_back_with_its_wal_and_the_rules_do_not_take_it_again() {
    let template = Template::new();
    let store = template.fresh();
    expire_with_grace(&store, &evening());
    assert_eq!(listed(&store), ids([4, 5]));
    let before = contents(&store);
    let planned = revive::plan(&open(&store), &cluster(), &backup_id(2), None, &later(60)).unwrap();
    assert!(contents(&store) == before, "a plan changed something");
    let done = bring_back(&store, 2, &later(60)).unwrap();
    assert_eq!((&done.wal, &done.gone), (&planned.wal, &planned.gone));
    assert!(done.gone.is_empty() && done.reaches == Some(segment(LAST_SEGMENT)), "{done:?}");
    assert_eq!(listed(&store), ids([2, 4, 5]));
    assert_eq!(archived(&store), [(segment_of(2), LAST_SEGMENT)]);
    everything_listed_is_whole(&store, &template.trees, "brought back");
    // The next run, and the end of the grace, leave it alone; the others go.
    expire_with_grace(&store, &later(120));
    expire_with_grace(&store, &later(2 * DAY));
    assert_eq!(listed(&store), ids([2, 4, 5]));
    assert_eq!(archived(&store), [(segment_of(2), LAST_SEGMENT)]);
    everything_listed_is_whole(&store, &template.trees, "after the grace");
    let gone = |n: u32| !objects(&store).iter().any(|o| o.as_str().contains(backup_id(n).as_str()));
    assert!(gone(1) && gone(3) && !gone(2));
    // Until its mark is taken away.
    mark(&open(&store), &cluster(), &backup_id(2), &Mark::Unkeep, Change::Make, &later(2 * DAY)).unwrap();
    expire_now(&store, &later(2 * DAY + 60)).unwrap();
    settled(&store, "in the end");
}

#[test]
fn what_cannot_come_back_says_so_and_an_expired_one_is_not_unknown() {
    let template = Template::new();
    let store = template.fresh();
    let code = |r: Result<revive::RevivePlan, EngineError>| r.unwrap_err().code();
    assert_eq!(code(bring_back(&store, 2, &evening())), "E-UNEXPIRE-LISTED");
    assert_eq!(code(bring_back(&store, 8, &evening())), "E-BACKUP-NONE");
    expire_with_grace(&store, &evening());
    let kept = mark(&open(&store), &cluster(), &backup_id(2), &Mark::Keep, Change::Make, &evening());
    assert_eq!(kept.unwrap_err().code(), "E-BACKUP-EXPIRED");
    // A pack is gone, by some other hand.
    let dir = pgark_repo::names::backup_dir(&cluster(), &backup_id(1));
    store.delete(&ObjectName::parse(&format!("{dir}/packs/000001")).unwrap()).unwrap();
    assert_eq!(code(bring_back(&store, 1, &later(60))), "E-UNEXPIRE-GONE");
    // WAL from some segment on: the backup comes back, and says how far it goes.
    let lost = segment_of(3) + 2;
    let wal = archive(&open(&store));
    let object = wal.object_of(&wal.head().unwrap(), &segment(lost), segment_size()).unwrap();
    store.delete(&object).unwrap();
    let done = bring_back(&store, 3, &later(60)).unwrap();
    assert_eq!(done.reaches, Some(segment(lost - 1)));
    assert_eq!(done.gone.len(), 1, "{done:?}");
    assert_eq!(archived(&store), [(segment_of(3), lost - 1), (lost + 1, LAST_SEGMENT)]);
    everything_listed_is_whole(&store, &template.trees, "with less WAL");
    // And once the removal is over.
    expire_with_grace(&store, &later(2 * DAY));
    assert!(matches!(bring_back(&store, 2, &later(2 * DAY)), Err(EngineError::Repo(RepoError::NoBackup { .. }))));
}

#[test]
fn a_revival_can_be_interrupted_anywhere() {
    let template = Template::new();
    let expired = template.fresh();
    expire_with_grace(&expired, &evening());
    let expired = Template { store: expired, trees: template.trees };
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseReply, Fault::Fail, Fault::NoSpace] {
        let mut points = 0;
        for nth in 1..5000 {
            let place = format!("{fault:?} at operation {nth}, seed {SEED}");
            let inner = expired.fresh();
            let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
            faulty.inject(Op::ALL, When::Nth(nth), fault);
            let store: Arc<dyn Store> = faulty.clone();
            let outcome = bring_back(&store, 2, &later(60));
            if faulty.count(Op::ALL) < nth {
                outcome.unwrap_or_else(|e| panic!("{place}: failed without a fault: {e}"));
                points = nth - 1;
                break;
            }
            everything_listed_is_whole(&inner, &expired.trees, &place);
            let after = later(60 + CLAIM_TTL_SECONDS + 1);
            match bring_back(&inner, 2, &after) {
                Ok(_) => {}
                Err(e) if e.code() == "E-UNEXPIRE-LISTED" => {}
                Err(e) => panic!("{place}: the next one fails: {e}"),
            }
            assert_eq!(listed(&inner), ids([2, 4, 5]), "{place}");
            assert_eq!(archived(&inner), [(segment_of(2), LAST_SEGMENT)], "{place}");
            everything_listed_is_whole(&inner, &expired.trees, &place);
            expire_now(&inner, &later(2 * DAY)).unwrap_or_else(|e| panic!("{place}: no expiry any more: {e}"));
            everything_listed_is_whole(&inner, &expired.trees, &place);
        }
        assert!(points > 30, "{fault:?}: only {points} points");
    }
}

#[test]
fn an_expiry_that_goes_on_late_removes_nothing_that_came_back() {
    let template = Template::new();
    let (mut revived, mut too_late) = (0, 0);
    for nth in 1..5000 {
        let place = format!("stopped at operation {nth}");
        let inner = template.fresh();
        expire_with_grace(&inner, &evening());
        let meanwhile = {
            let inner = inner.clone();
            move || {
                // So long that the claim of the one that is stopped has run out; a refusal is an answer, too.
                let outcome = bring_back(&inner, 2, &later(600 + CLAIM_TTL_SECONDS));
                if let Err(e) = outcome {
                    assert!(["E-UNEXPIRE-GONE", "E-BACKUP-NONE"].contains(&e.code()), "{e}");
                }
            }
        };
        let pausing = Arc::new(PausingStore::new(inner.clone(), nth, meanwhile));
        let store: Arc<dyn Store> = pausing.clone();
        // It waits for no grace, so everything is due.
        let hasty = ExpireOptions { hurry: Some(Duration::ZERO), ..in_grace() };
        let plan = expire::plan(&hasty, &open(&inner), &later(60)).unwrap();
        let outcome = expire::run(&hasty, &plan, &open_quietly(&store, &inner), &later(60));
        if pausing.operations() < nth {
            outcome.unwrap();
            break;
        }
        if let Err(e) = outcome {
            assert!(["E-LOCK-LOST", "E-LOCKED", "E-REPO-MISSING"].contains(&e.code()), "{place}: {e}");
        }
        everything_listed_is_whole(&inner, &template.trees, &place);
        *(if listed(&inner).contains(&backup_id(2)) { &mut revived } else { &mut too_late }) += 1;
    }
    assert!(revived > 10 && too_late > 10, "{revived} {too_late}");
}

#[test]
fn deleting_an_expired_one_removes_it_at_once_and_counts_what_it_removes() {
    let template = Template::new();
    let store = template.fresh();
    expire_with_grace(&store, &evening());
    let before = objects(&store).len() as u64;
    let (repo, ctx) = (open(&store), later(60));
    let plan = delete::plan(&repo, &cluster(), &backup_id(2), delete::LastBackup::Refuse, &ctx).unwrap();
    delete::run(&repo, &cluster(), &plan, &ctx).unwrap();
    // The catalog has as many versions as before.
    assert_eq!(before - objects(&store).len() as u64, plan.objects);
    assert_eq!(plan.objects, 4);
    let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
    assert_eq!(catalog.expired.len(), 2);
}
