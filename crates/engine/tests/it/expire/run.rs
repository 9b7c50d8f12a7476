//! A dry run equals the run, which may be cut off, stopped or repeated anywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use pgark_engine::{EngineError, expire};
use pgark_pg::wal::Changes;
use pgark_repo::RepoError;
use pgark_repo::catalog::{CLAIM_TTL_SECONDS, CatalogStore, JobKind};
use pgark_repo::names::BackupId;
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, ObjectName, Store};
use pgark_repo::wal::SegmentData;

use super::*;
use crate::stores::PausingStore;

#[test]
fn a_run_does_what_the_dry_run_said_and_once_more_does_nothing() {
    let template = Template::new();
    let store = template.fresh();
    let before = contents(&store);
    let repo = open(&store);
    let plan = expire::plan(&at_once(), &repo, &evening()).unwrap();
    assert!(contents(&store) == before, "a plan changed something");
    let going: Vec<BackupId> = plan.going().map(|f| f.entry.id.clone()).collect();
    assert_eq!(going, ids([1, 2, 3]));
    assert_eq!(plan.segments_going(), segment_of(4) - 2);
    let report = expire::run(&at_once(), &plan, &repo, &evening()).unwrap();
    settled(&store, "after the run");
    everything_listed_is_whole(&store, &template.trees, "after the run");
    let gone: usize = before.iter().filter(|(n, _)| store.stat(&ObjectName::parse(n).unwrap()).is_err()).count();
    assert!(report.collected.objects as usize >= gone - 8, "{report:?} {gone}");
    let again = expire::plan(&at_once(), &repo, &evening()).unwrap();
    assert!(!again.changes(), "{again:#?}");
}

#[test]
fn an_expiry_can_be_interrupted_anywhere() {
    let template = Template::new();
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseReply, Fault::Fail, Fault::NoSpace] {
        let mut points = 0;
        for nth in 1..5000 {
            let place = format!("{fault:?} at operation {nth}, seed {SEED}");
            let inner = template.fresh();
            let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
            faulty.inject(Op::ALL, When::Nth(nth), fault);
            let store: Arc<dyn Store> = faulty.clone();
            let outcome = expire_now(&store, &evening());
            if faulty.count(Op::ALL) < nth {
                outcome.unwrap_or_else(|e| panic!("{place}: failed without a fault: {e}"));
                points = nth - 1;
                break;
            }
            everything_listed_is_whole(&inner, &template.trees, &place);
            // Twice: who comes after a claim that was lost with its process waits for it to run out.
            let later = at_time(i64::from(BACKUPS) * DAY + 3600 + CLAIM_TTL_SECONDS + 1);
            expire_now(&inner, &later).unwrap_or_else(|e| panic!("{place}: the next run fails: {e}"));
            everything_listed_is_whole(&inner, &template.trees, &place);
            settled(&inner, &place);
        }
        assert!(points > 100, "{fault:?}: only {points} points");
        println!("expire: {fault:?} at each of {points} operations, 0 divergences");
    }
}

/// Pushes what expired again, as a server does that had not heard of it.
fn push_again(store: &Arc<dyn Store>) {
    let repo = open(store);
    let archive = archive(&repo);
    for n in 2..segment_of(4) {
        let head = archive.head().unwrap();
        let bytes = sample::wal_segment(&segment(n), n);
        let index = sample::index_of(&segment(n), &bytes);
        if archive.is_archived(&head, &index).unwrap() {
            continue;
        }
        let pushed =
            archive.push_segment_after(&head, &index, &Changes::default(), &mut SegmentData::Memory(&bytes)).unwrap();
        archive.acknowledge(&[(segment(n), pushed.1)]).unwrap();
    }
}

#[test]
fn an_expiry_that_is_stopped_anywhere_and_goes_on_later_removes_nothing_that_others_made_since() {
    let template = Template::new();
    let (mut fenced, mut finished) = (0, 0);
    for nth in 1..5000 {
        let place = format!("stopped at operation {nth}");
        let inner = template.fresh();
        let wall = Arc::new(AtomicI64::new(i64::from(BACKUPS) * DAY + 3600));
        let meanwhile = {
            let (inner, place, wall) = (inner.clone(), place.clone(), wall.clone());
            move || {
                // So long that the claim of the one that is stopped has run out.
                let later = i64::from(BACKUPS) * DAY + 3600 + CLAIM_TTL_SECONDS + 1;
                wall.store(later, Ordering::Relaxed);
                expire_now(&inner, &at_time(later)).unwrap_or_else(|e| panic!("{place}: the other fails: {e}"));
                push_again(&inner);
                let repo = open(&inner);
                let catalog = CatalogStore::new(&repo, &cluster());
                let claim = catalog.claim(JobKind::Backup, &backup_id(9), sample::at(later)).unwrap();
                let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
                complete(&mut entry, 5);
                entry.id = backup_id(9);
                claim.commit_backup(&entry).unwrap();
            }
        };
        let pausing = Arc::new(PausingStore::new(inner.clone(), nth, meanwhile));
        let store: Arc<dyn Store> = pausing.clone();
        let plan = expire::plan(&at_once(), &open(&inner), &evening()).unwrap();
        let mut ctx = evening();
        ctx.clock = Arc::new(move || sample::at(wall.load(Ordering::Relaxed)));
        let outcome = expire::run(&at_once(), &plan, &open_quietly(&store, &inner), &ctx);
        if pausing.operations() < nth {
            outcome.unwrap();
            break;
        }
        match outcome {
            Ok(_) => finished += 1,
            Err(EngineError::Repo(RepoError::Fenced { .. } | RepoError::Busy { .. })) => fenced += 1,
            Err(e) if e.code() == "E-REPO-MISSING" => fenced += 1,
            // It looked at the clock before it was stopped, and at what the other wrote later after that.
            Err(e) if e.code() == "E-EXPIRE-CLOCK" => fenced += 1,
            Err(e) => panic!("{place}: {e}"),
        }
        everything_listed_is_whole(&inner, &template.trees, &place);
        assert!(listed(&inner).contains(&backup_id(9)), "{place}");
        assert_eq!(archived(&inner), [(2, LAST_SEGMENT)], "{place}: what was pushed again is archived again");
    }
    assert!(fenced > 30 && finished > 3, "{fenced} {finished}");
}
