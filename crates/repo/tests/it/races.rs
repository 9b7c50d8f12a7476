//! Several writers at once: of a register, none of whose changes may be lost, and of one name, which one gets.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use pgark_pg::value::SegmentNo;
use pgark_pg::wal::Changes;
use pgark_repo::Repository;
use pgark_repo::catalog::{CLAIM_TTL_SECONDS, CatalogStore, JobKind};
use pgark_repo::crypto::Algorithm;
use pgark_repo::error::RepoError;
use pgark_repo::names::BackupId;
use pgark_repo::store::{LocalStore, MemoryStore, Store};
use pgark_repo::wal::{Pushed, SegmentData};

use crate::common::{TestDir, keys};
use crate::sample::{self, archive, backup_id, cluster, segment, timeline};

/// So few that no writer can sleep through more changes than a version remembers.
const CATALOG_CHANGES: u32 = 56;
/// Acknowledging can be repeated, so there may be any number.
const SEGMENTS_EACH: u32 = 40;

fn repository(store: Arc<dyn Store>) -> Repository {
    let repo = sample::init(store, &keys(Algorithm::Aes256Gcm));
    CatalogStore::new(&repo, &cluster()).register(&sample::lineage(), false).unwrap();
    repo
}

/// A different identifier for each number.
fn mark(n: u32) -> BackupId {
    BackupId::parse(&format!("20260101-{n:06}F")).unwrap()
}

fn add_mark(catalog: &CatalogStore, n: u32) {
    let added = catalog.update(|c| {
        c.removing.push(mark(n));
        Ok(Some(()))
    });
    added.unwrap().expect("the change returns a value");
}

fn writers(count: u32, run: impl Fn(u32) + Sync) {
    let barrier = Barrier::new(count as usize);
    std::thread::scope(|scope| {
        for writer in 0..count {
            let (barrier, run) = (&barrier, &run);
            scope.spawn(move || {
                barrier.wait();
                run(writer);
            });
        }
    });
}

fn no_change_of_the_catalog_is_lost(store: Arc<dyn Store>, count: u32) {
    let repo = repository(store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let each = CATALOG_CHANGES / count;
    writers(count, |w| (0..each).for_each(|i| add_mark(&catalog, w * 1000 + i)));
    let kept = catalog.read().unwrap().removing;
    let expected: BTreeSet<_> = (0..count).flat_map(|w| (0..each).map(move |i| mark(w * 1000 + i))).collect();
    assert_eq!(kept.len(), expected.len(), "a change was lost or made twice");
    assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), expected);
    assert!(catalog.check().unwrap().is_empty());
}

fn no_acknowledged_segment_is_lost(store: Arc<dyn Store>, count: u32) {
    let repo = repository(store);
    let archive = archive(&repo);
    writers(count, |w| {
        for i in 0..SEGMENTS_EACH {
            let own = (segment(u64::from(i * count + w)), 0);
            // What lies ready is passed by others again and again.
            let staged = if i % 2 == 0 { None } else { archive.stage(own.0, own.1).ok().flatten() };
            archive.acknowledge_staged(staged, &[own]).unwrap();
        }
    });
    let head = archive.head().unwrap();
    assert_eq!(head.timeline(timeline(1)).unwrap().ranges, [(0, u64::from(count * SEGMENTS_EACH) - 1)]);
}

#[test]
fn writers_in_memory_lose_no_change() {
    for count in [2, 8] {
        no_change_of_the_catalog_is_lost(Arc::new(MemoryStore::new()), count);
        no_acknowledged_segment_is_lost(Arc::new(MemoryStore::new()), count);
    }
}

#[test]
fn writers_in_a_directory_lose_no_change() {
    for count in [2, 8] {
        let (one, two) = (TestDir::new(), TestDir::new());
        no_change_of_the_catalog_is_lost(Arc::new(LocalStore::open(&one.0).unwrap()), count);
        no_acknowledged_segment_is_lost(Arc::new(LocalStore::open(&two.0).unwrap()), count);
    }
}

#[test]
fn a_head_that_lies_ready_counts_when_it_is_put_and_never_for_other_segments() {
    let dir = TestDir::new();
    let repo = repository(Arc::new(LocalStore::open(&dir.0).unwrap()));
    let archive = archive(&repo);
    let (one, two, three) = ((segment(1), 0), (segment(2), 0), (segment(3), 0));
    let has = |n: u64| archive.head().unwrap().timeline(timeline(1)).is_some_and(|t| t.contains(segment(n).segment));

    drop(archive.stage(one.0, one.1).unwrap().expect("the head does not know it"));
    let staged = archive.stage(one.0, one.1).unwrap();
    assert!(!has(1), "it counts before it is put");
    archive.acknowledge_staged(staged, &[one]).unwrap();
    assert!(has(1));
    assert!(archive.stage(one.0, one.1).unwrap().is_none(), "there is nothing to change");

    // Prepared for one segment, and another one was stored; then passed by somebody else.
    let staged = archive.stage(two.0, two.1).unwrap();
    archive.acknowledge_staged(staged, &[three]).unwrap();
    assert!(has(3) && !has(2));
    let staged = archive.stage(two.0, two.1).unwrap();
    archive.acknowledge(&[(segment(4), 0)]).unwrap();
    archive.acknowledge_staged(staged, &[two]).unwrap();
    assert!(has(1) && has(2) && has(3) && has(4));
    assert!(archive.head_register().check().unwrap().is_empty());
    assert_eq!(repo.store().sweep_abandoned(std::time::Duration::ZERO).unwrap(), 0, "something was left");
}

/// Between a writer's reading and its writing, others get so far that the number it goes for was used and pruned.
#[test]
fn a_writer_that_slept_does_not_think_that_it_won() {
    for passed in 1..6 {
        let repo = repository(Arc::new(MemoryStore::new()));
        let catalog = CatalogStore::new(&repo, &cluster());
        let slept = AtomicBool::new(false);
        let changed = catalog.update(|c| {
            if !slept.swap(true, Ordering::SeqCst) {
                (0..passed).for_each(|n| add_mark(&catalog, n));
            }
            c.removing.push(mark(99));
            Ok(Some(()))
        });
        changed.unwrap();
        let kept = catalog.read().unwrap().removing;
        let expected: Vec<_> = (0..passed).chain([99]).map(mark).collect();
        assert_eq!(kept, expected, "after {passed} changes by others");
    }
}

/// So far behind that the newest version does not reach back to it: failure, because success is not known.
#[test]
fn a_writer_that_slept_through_very_many_changes_is_told() {
    let repo = repository(Arc::new(MemoryStore::new()));
    let catalog = CatalogStore::new(&repo, &cluster());
    let slept = AtomicBool::new(false);
    let changed = catalog.update(|c| {
        if !slept.swap(true, Ordering::SeqCst) {
            (0..100).for_each(|n| add_mark(&catalog, n));
        }
        c.removing.push(mark(999));
        Ok(Some(()))
    });
    assert!(matches!(changed, Err(RepoError::Fenced { .. })), "{changed:?}");
    assert_eq!(catalog.read().unwrap().removing.len(), 100);
}

/// The story of the sleeping writer with what it is about: a backup must not be taken for committed.
#[test]
fn a_commit_after_a_long_sleep_is_refused() {
    let repo = repository(Arc::new(MemoryStore::new()));
    let catalog = CatalogStore::new(&repo, &cluster());
    let claim = catalog.claim(JobKind::Backup, &backup_id(1), sample::at(0)).unwrap();
    let (entry, _) = sample::write_backup(&repo, &backup_id(1)).unwrap();
    let late = sample::at(CLAIM_TTL_SECONDS + 1);
    let next = catalog.claim(JobKind::Backup, &backup_id(2), late).unwrap();
    (0..5).for_each(|_| next.renew(late).unwrap());
    assert!(matches!(claim.commit_backup(&entry), Err(RepoError::Fenced { .. })));
    assert!(catalog.read().unwrap().backups.is_empty());
}

#[test]
fn one_of_eight_claims_is_granted() {
    let repo = repository(Arc::new(MemoryStore::new()));
    let catalog = CatalogStore::new(&repo, &cluster());
    let granted = std::sync::Mutex::new(vec![]);
    writers(8, |w| match catalog.claim(JobKind::Backup, &backup_id(w), sample::at(0)) {
        Ok(claim) => granted.lock().unwrap().push(claim.backup().clone()),
        Err(e) => assert!(matches!(e, RepoError::Busy { .. }), "{e}"),
    });
    let granted = granted.into_inner().unwrap();
    assert_eq!(granted.len(), 1, "{granted:?}");
    assert_eq!(catalog.read().unwrap().jobs.len(), 1);
}

#[test]
fn one_of_eight_makes_the_repository() {
    for round in 0..10 {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let ids = std::sync::Mutex::new(BTreeSet::new());
        writers(8, |_| {
            let repo = sample::init(store.clone(), &keys(Algorithm::Aes256Gcm));
            ids.lock().unwrap().insert(repo.id().to_owned());
        });
        assert_eq!(ids.into_inner().unwrap().len(), 1, "round {round}: they opened different repositories");
    }
}

#[test]
fn the_same_segment_pushed_by_eight_is_stored_once() {
    let repo = repository(Arc::new(MemoryStore::new()));
    let archive = archive(&repo);
    let bytes = sample::wal_segment(&segment(7), 7);
    let index = sample::index_of(&segment(7), &bytes);
    let stored = std::sync::Mutex::new(0);
    writers(8, |_| {
        match archive.push_segment(&index, &Changes::default(), &mut SegmentData::Memory(&bytes)).unwrap().0 {
            Pushed::Stored => *stored.lock().unwrap() += 1,
            Pushed::AlreadyThere => {}
            Pushed::SameRecords | Pushed::Longer => panic!("they are the same bytes"),
        }
    });
    assert_eq!(stored.into_inner().unwrap(), 1);
    assert_eq!(index.segment, SegmentNo(7));
    assert!(sample::read_segment(&archive, &segment(7)).unwrap().1 == bytes);
}
