//! Stores that fail, hide, are damaged or full.

use std::sync::Arc;
use std::time::Duration;

use pgark_engine::expire;
use pgark_engine::expire::policy::Policy;
use pgark_repo::names;
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, ObjectName, Store};

use super::*;
use crate::stores::{SmallStore, used};

#[test]
fn a_listing_or_a_read_that_fails_stops_it() {
    let template = Template::new();
    let mut stopped = 0;
    for op in [Op::List, Op::Read, Op::ReadAt, Op::Stat, Op::ListDirs] {
        for nth in 1..200 {
            let inner = template.fresh();
            let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
            let store: Arc<dyn Store> = faulty.clone();
            let repo = open(&store);
            faulty.inject(&[op], When::Nth(nth), Fault::Fail);
            faulty.clear_log();
            let before = contents(&inner);
            let plan = expire::plan(&at_once(), &repo, &evening());
            if faulty.count(&[op]) < nth {
                break;
            }
            assert!(plan.is_err(), "{op:?} {nth}");
            assert!(contents(&inner) == before);
            stopped += 1;
        }
    }
    assert!(stopped > 10, "{stopped}");
}

#[test]
fn what_a_listing_hides_does_not_go_and_does_not_count() {
    let template = Template::new();
    let inner = template.fresh();
    let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
    let store: Arc<dyn Store> = faulty.clone();
    faulty.hide(|name| {
        name.contains(&format!("{}/packs", backup_id(5))) || name.contains(&format!("{}/packs", backup_id(2)))
    });
    let plan = expire_now(&store, &evening()).unwrap();
    assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
    // 3 and 4 are the last two that can be seen.
    assert_eq!(listed(&inner), ids([2, 3, 4, 5]));
    everything_listed_is_whole(&inner, &template.trees, "with hidden packs");
    // When nothing at all can be seen, nothing at all goes.
    let inner = template.fresh();
    let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
    let store: Arc<dyn Store> = faulty.clone();
    faulty.hide(|name| name.contains("/packs"));
    expire_now(&store, &evening()).unwrap();
    assert_eq!(listed(&inner), ids(1..=5));
    assert_eq!(archived(&inner), [(2, LAST_SEGMENT)]);
}

#[test]
fn an_expiry_works_on_a_full_disk_and_makes_room() {
    let template = Template::new();
    for spare in (0..4096).step_by(256).chain([1, 50, 20_000]) {
        let copy = template.copy();
        let full = used(&copy);
        let small = Arc::new(SmallStore::new(copy, full + spare));
        let store: Arc<dyn Store> = small.clone();
        // Without this the store would take anything.
        assert!(store.create(&ObjectName::parse("x").unwrap()).is_err());
        let repo = open(&store);
        let options = options(last_two(), Duration::from_secs(86_400));
        let plan = expire::plan(&options, &repo, &evening()).unwrap();
        let report = expire::run(&options, &plan, &repo, &evening()).unwrap_or_else(|e| panic!("{spare} spare: {e}"));
        assert!(report.was_full);
        settled(&store, &format!("{spare} spare"));
        everything_listed_is_whole(&store, &template.trees, "on a full disk");
        assert!(small.used() < full, "{spare} spare: no room was made");
    }
}

/// The least that can go: WAL of before the first backup. It must make room too, and an expiry after it again.
#[test]
fn an_expiry_of_wal_alone_works_on_a_full_disk_however_often() {
    let template = Template::new();
    for spare in (0..2048).step_by(128) {
        let copy = template.copy();
        let full = used(&copy);
        let small = Arc::new(SmallStore::new(copy, full + spare));
        let store: Arc<dyn Store> = small.clone();
        let policies = [Policy { max_backups: Some(100), ..Policy::none() }, last_two()];
        for (policy, first) in policies.into_iter().zip([segment_of(1), segment_of(4)]) {
            let before = small.used();
            let options = options(policy, Duration::from_secs(86_400));
            let repo = open(&store);
            let plan = expire::plan(&options, &repo, &evening()).unwrap();
            expire::run(&options, &plan, &repo, &evening()).unwrap_or_else(|e| panic!("{spare} spare: {e}"));
            assert_eq!(archived(&store), [(first, LAST_SEGMENT)], "{spare} spare");
            assert!(small.used() < before, "{spare} spare");
            // Others use up what was made room for.
            small.shrink_to_what_is_used();
        }
        settled(&store, &format!("{spare} spare"));
        everything_listed_is_whole(&store, &template.trees, "on a full disk");
    }
}

/// Objects take whole blocks, and the head has no older version to give up.
#[test]
fn an_expiry_works_where_not_one_block_is_free() {
    let template = Template::new();
    let everything = Policy { max_backups: Some(100), ..Policy::none() };
    for (policy, first) in [(everything, segment_of(1)), (last_two(), segment_of(4))] {
        for spare in 0..6 {
            let small = Arc::new(SmallStore::in_blocks(template.copy(), 4096, spare));
            let store: Arc<dyn Store> = small.clone();
            let before = small.used();
            let repo = open(&store);
            let options = options(policy.clone(), Duration::from_secs(86_400));
            let plan = expire::plan(&options, &repo, &evening()).unwrap();
            expire::run(&options, &plan, &repo, &evening()).unwrap_or_else(|e| panic!("{spare} spare: {e}"));
            assert_eq!(archived(&store), [(first, LAST_SEGMENT)], "{spare} spare");
            assert!(small.used() < before, "{spare} spare");
            everything_listed_is_whole(&store, &template.trees, "on a full disk");
            let catalog = CatalogStore::new(&repo, &cluster());
            let books = [catalog.register_of_books().check(), archive(&repo).head_register().check()];
            assert!(books.iter().all(|found| found.as_ref().is_ok_and(Vec::is_empty)), "{spare} spare: {books:?}");
        }
    }
}

#[test]
fn an_expiry_that_a_full_disk_stopped_is_gone_on_with_and_what_waits_is_told() {
    let template = Template::new();
    let options = options(last_two(), Duration::from_secs(86_400));
    let run = |store: Arc<dyn Store>| {
        let repo = open(&store);
        let plan = expire::plan(&options, &repo, &evening()).unwrap();
        expire::run(&options, &plan, &repo, &evening())
    };
    let watched = Arc::new(FaultStore::new(template.fresh(), SEED));
    run(watched.clone()).unwrap();
    let puts = watched.log().into_iter().filter(|e| e.op == Op::PutNew);
    let nth = puts.take_while(|e| !e.object.contains("/head/")).count() as u64 + 1;

    let inner = template.fresh();
    let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
    faulty.inject(&[Op::PutNew], When::From(nth), Fault::NoSpace);
    let stopped = run(faulty).unwrap_err();
    assert_eq!(stopped.code(), "E-REPO-SPACE");
    assert!(stopped.hint().is_some_and(|h| h.contains("run it again")), "{stopped:?}");
    everything_listed_is_whole(&inner, &template.trees, "stopped");

    // There is room again: the head follows, and the objects wait for their grace.
    let plan = expire::plan(&options, &open(&inner), &evening()).unwrap();
    assert!(plan.going().next().is_none() && plan.changes() && plan.earlier.unfinished, "{:?}", plan.earlier);
    run(inner.clone()).unwrap();
    assert_eq!(archived(&inner), [(segment_of(4), LAST_SEGMENT)]);
    let plan = expire::plan(&options, &open(&inner), &evening()).unwrap();
    assert!(!plan.changes() && plan.earlier.backups_waiting == 3, "{:?}", plan.earlier);
    assert_eq!(plan.earlier.waiting_until, Some(sample::at(i64::from(BACKUPS + 1) * DAY + 3600)));

    // On a disk that has filled up since, they do not.
    let waiting = Template { store: inner, trees: template.trees };
    let store: Arc<dyn Store> = Arc::new(SmallStore::in_blocks(waiting.copy(), 4096, 0));
    let plan = expire::plan(&options, &open(&store), &evening()).unwrap();
    assert!(plan.changes() && plan.earlier.backups_due == 3 && plan.is_full, "{:?}", plan.earlier);
    run(store.clone()).unwrap();
    settled(&store, "on a full disk");
}

#[test]
fn without_a_policy_nothing_expires() {
    let template = Template::new();
    let store = template.fresh();
    let none = options(Policy { min_backups: 1, ..Policy::none() }, Duration::ZERO);
    let refused = expire::plan(&none, &open(&store), &evening()).unwrap_err();
    assert_eq!(refused.code(), "E-EXPIRE-POLICY");
}

/// How a store spoils an object.
type Damage<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));

#[test]
fn damage_that_nobody_has_looked_for_does_not_count_as_a_backup() {
    let template = Template::new();
    let id = backup_id(BACKUPS);
    let damages: [Damage<'_>; 5] = [
        ("manifest", &|b| b[60] ^= 1),
        ("manifest", &|b| *b.last_mut().unwrap() ^= 1),
        ("manifest", &|b| b.truncate(100)),
        ("packs/000000", &|b| b.truncate(b.len() - 1)),
        ("packs/000001", &|b| b.push(0)),
    ];
    for (object, damage) in damages {
        let copy = template.copy();
        let dir = names::backup_dir(&cluster(), &id);
        copy.damage(&ObjectName::parse(&format!("{dir}/{object}")).unwrap(), damage).unwrap();
        let store: Arc<dyn Store> = Arc::new(copy);
        let plan = expire_now(&store, &evening()).unwrap();
        assert_eq!(plan.notes.len(), 1, "{object}: {:?}", plan.notes);
        assert!(plan.notes[0].contains(id.as_str()), "{:?}", plan.notes);
        // The last two that are whole, and the damaged one, which somebody has to look at.
        assert_eq!(listed(&store), ids([3, 4, 5]), "{object}");
        assert_eq!(archived(&store), [(segment_of(3), LAST_SEGMENT)], "{object}");
    }
}

#[test]
fn everything_is_listed_once_and_manifests_are_read_only_when_something_would_go() {
    let template = Template::new();
    let inner = template.fresh();
    let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
    let store: Arc<dyn Store> = faulty.clone();
    let repo = open(&store);
    let read_by = |policy: Policy| {
        faulty.clear_log();
        expire::plan(&options(policy, Duration::ZERO), &repo, &evening()).unwrap();
        let log = faulty.log();
        let of = |op: Op| log.iter().filter(move |e| e.op == op);
        let lists = of(Op::List).filter(|e| e.object.starts_with("clusters/main/backups")).count();
        assert_eq!(lists, 1);
        let manifests = log.iter().filter(|e| Op::READS.contains(&e.op) && e.object.ends_with("/manifest"));
        let mut names: Vec<String> = manifests.map(|e| e.object.clone()).collect();
        names.dedup();
        names.len()
    };
    assert_eq!(read_by(last_two()), 2);
    assert_eq!(read_by(Policy { max_backups: Some(100), ..Policy::none() }), 1, "WAL before the first backup goes");
    expire_now(&inner, &evening()).unwrap();
    assert_eq!(read_by(last_two()), 0);
}
