//! Clocks that jump, are behind, or contradict each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use pgark_engine::expire::policy::Policy;
use pgark_engine::expire::{self, ExpireOptions, Gap};
use pgark_engine::keep::{Change, Mark, mark};
use pgark_engine::{clock, delete};
use pgark_repo::catalog::{CatalogStore, Doubt, JobKind, Reading, Uptime, Witness};
use pgark_repo::names;
use pgark_repo::store::{MemoryStore, Store};

use super::*;

const END: i64 = BACKUPS as i64 * DAY;

fn week() -> ExpireOptions {
    let policy = Policy { window: Some(Duration::from_secs(7 * 86_400)), ..Policy::none() };
    options(policy, Duration::from_secs(86_400))
}

/// As `at_time`, on a machine that was started long ago, when the true time is this.
pub fn at_time_up(wall: i64, truth: i64) -> Ctx {
    let mut ctx = at_time(wall);
    ctx.uptime = Arc::new(move || Some(Uptime { boot: "first".into(), seconds: truth }));
    ctx
}

/// Takes backup n by the clocks of this context.
fn back_up(store: &Arc<dyn Store>, n: u32, ctx: &Ctx) -> Option<Doubt> {
    let repo = open(store);
    let claim = CatalogStore::new(&repo, &cluster()).claim(JobKind::Backup, &backup_id(n), ctx.now()).unwrap();
    let (mut entry, _) = sample::write_backup(&repo, &backup_id(n)).unwrap();
    complete(&mut entry, 5);
    (entry.id, entry.finished) = (backup_id(n), ctx.now());
    entry.physical.as_mut().unwrap().stopped = ctx.now();
    let record = names::record(&cluster(), &entry.id);
    claim.commit_backup_at(&entry, &clock::with_object(&repo, &record, ctx).unwrap()).unwrap()
}

fn refused(store: &Arc<dyn Store>, options: &ExpireOptions, ctx: &Ctx) -> &'static str {
    expire::plan(options, &open(store), ctx).unwrap_err().code()
}

fn going(store: &Arc<dyn Store>, options: &ExpireOptions, ctx: &Ctx) -> usize {
    expire::plan(options, &open(store), ctx).unwrap().going().count()
}

#[test]
fn a_clock_that_is_ahead_makes_nothing_older_while_no_backup_is_taken_by_it() {
    let template = Template::new();
    for ahead in [0, 20 * DAY, 400 * DAY, 36_000 * DAY] {
        let store = template.fresh();
        let plan = expire::plan(&week(), &open(&store), &at_time(END + 60 + ahead)).unwrap();
        assert_eq!(plan.going().count(), 0, "{ahead}");
        // WAL from before the first backup serves nothing.
        assert_eq!(plan.segments_going(), segment_of(1) - 2, "{ahead}");
    }
}

#[test]
fn a_clock_that_is_set_back_stops_it() {
    let store = Template::new().fresh();
    let before = contents(&store);
    assert_eq!(refused(&store, &at_once(), &at_time(0)), "E-EXPIRE-CLOCK");
    assert!(contents(&store) == before);
}

#[test]
fn a_long_time_that_nothing_confirms_is_refused_until_somebody_says_that_it_passed() {
    let store = Template::new().fresh();
    let jumped = END + 400 * DAY;
    for n in 0..5 {
        let ctx = at_time(jumped + i64::from(n) * DAY);
        assert_eq!(back_up(&store, 9 + n, &ctx).map(|d| d.by), Some(Witness::Nothing), "{n}");
        assert_eq!(refused(&store, &week(), &ctx), "E-EXPIRE-GAP", "after {n} more backups");
    }
    let ctx = at_time(jumped + 4 * DAY + 60);
    let accepted = ExpireOptions { gap: Gap::Accept, ..week() };
    // The five of before, but for the one that the window begins with.
    let plan = expire::plan(&accepted, &open(&store), &ctx).unwrap();
    assert_eq!(plan.going().count(), 4);
    assert!(plan.accepts.is_some());
    // A plan alone puts nothing on record.
    assert_eq!(refused(&store, &week(), &ctx), "E-EXPIRE-GAP");
    expire::run(&accepted, &plan, &open(&store), &ctx).unwrap();
    assert_eq!(listed(&store), ids([5, 9, 10, 11, 12, 13]));
    assert_eq!(going(&store, &week(), &at_time(jumped + 5 * DAY)), 0);
    assert_eq!(back_up(&store, 20, &at_time(jumped + 5 * DAY)), None);
}

#[test]
fn a_jump_of_days_is_noticed_by_the_time_since_the_machine_was_started() {
    let store = Template::new().fresh();
    assert_eq!(back_up(&store, 9, &at_time_up(END + DAY, END + DAY)), None);
    let ahead = 20 * DAY;
    for n in 2..6 {
        let truth = END + i64::from(n) * DAY;
        let ctx = at_time_up(truth + ahead, truth);
        assert_eq!(back_up(&store, 8 + n, &ctx).map(|d| d.by), Some(Witness::Uptime));
        assert_eq!(refused(&store, &week(), &ctx), "E-EXPIRE-CLOCKS");
        // A month before or after, on another machine: it is on record.
        assert_eq!(refused(&store, &week(), &at_time(truth + 60)), "E-EXPIRE-CLOCKS");
    }
    // The clock is set right, and a backup sees that. Its window begins with the first of them all.
    let ctx = at_time_up(END + 6 * DAY, END + 6 * DAY);
    assert_eq!(back_up(&store, 20, &ctx), None);
    let plan = expire::plan(&week(), &open(&store), &ctx).unwrap();
    let gone: Vec<_> = plan.going().map(|f| f.entry.id.clone()).collect();
    assert_eq!(gone, ids([1, 2, 3]), "{plan:#?}");
}

#[test]
fn a_store_with_another_clock_is_believed_before_ours() {
    let truth = Arc::new(AtomicI64::new(END + 60));
    let dated = {
        let truth = truth.clone();
        MemoryStore::with_clock(move || SystemTime::from(sample::at(truth.load(Ordering::Relaxed))))
    };
    let template = Template::new();
    for name in objects(&template.store) {
        dated.put_new(&name, &template.store.read(&name, u64::MAX).unwrap()).unwrap();
    }
    let store: Arc<dyn Store> = Arc::new(dated);
    // No backup was taken by the wrong clock: the run itself sees it, before anything goes.
    let ahead = at_time(END + 60 + 2 * DAY);
    let plan = expire::plan(&at_once(), &open(&store), &ahead).unwrap();
    assert_eq!(plan.going().count(), 3);
    // Who only looks is told the same, and leaves nothing.
    let (before, mut shown) = (objects(&store), plan.clone());
    let asked = |shown: &mut expire::ExpirePlan, ctx: &Ctx| {
        expire::ask_the_store(shown, &cluster(), Gap::Refuse, &open(&store), ctx)
    };
    assert_eq!(asked(&mut shown, &ahead).unwrap_err().code(), "E-EXPIRE-CLOCKS");
    asked(&mut shown, &at_time(END + 60)).unwrap();
    assert_eq!((objects(&store), &shown.notes), (before, &plan.notes));
    let refusal = expire::run(&at_once(), &plan, &open(&store), &ahead).unwrap_err();
    assert_eq!(refusal.code(), "E-EXPIRE-CLOCKS");
    assert_eq!(listed(&store), ids(1..=5));
    assert_eq!(archived(&store), [(2, LAST_SEGMENT)]);

    // Backups by the wrong clock have the store's time.
    truth.store(END + DAY, Ordering::Relaxed);
    let doubt = back_up(&store, 9, &at_time(END + 21 * DAY)).unwrap();
    assert_eq!(doubt.by, Witness::Store);
    assert_eq!(refused(&store, &week(), &at_time(END + 21 * DAY)), "E-EXPIRE-CLOCKS");
    let entry = CatalogStore::new(&open(&store), &cluster()).read().unwrap().backup(&backup_id(9)).unwrap().clone();
    assert_eq!(entry.time(), sample::at(END + DAY));
    // A long time is confirmed by the store.
    truth.store(END + 90 * DAY, Ordering::Relaxed);
    assert_eq!(back_up(&store, 10, &at_time(END + 90 * DAY)), None);
    assert_eq!(going(&store, &week(), &at_time(END + 90 * DAY)), 5);
}

#[test]
fn what_has_expired_waits_for_its_grace_by_a_clock_that_is_not_in_doubt() {
    let store = Template::new().fresh();
    let grace = options(last_two(), Duration::from_secs(86_400));
    let run = |ctx: &Ctx| {
        let repo = open(&store);
        let plan = expire::plan(&grace, &repo, ctx).unwrap();
        expire::run(&grace, &plan, &repo, ctx).unwrap();
        plan
    };
    let there = || objects(&store).into_iter().filter(|n| n.as_str().contains(backup_id(1).as_str())).count();
    run(&at_time_up(END + 3600, END + 3600));
    assert_eq!(listed(&store), ids([4, 5]));
    let kept = there();
    assert!(kept > 2, "what has just expired is there for its grace");
    // Far ahead on another machine, two days ahead on this one.
    let plan = run(&at_time(END + 400 * DAY));
    assert!(plan.notes.iter().any(|n| n.contains("clock")), "{:?}", plan.notes);
    assert_eq!(refused(&store, &grace, &at_time_up(END + 2 * DAY, END + 7200)), "E-EXPIRE-CLOCKS");
    expire::remove_due(&open(&store), &cluster(), &at_time_up(END + 2 * DAY, END + 7200)).unwrap();
    expire::remove_due(&open(&store), &cluster(), &at_time(END + 400 * DAY)).unwrap();
    assert_eq!(there(), kept);
    run(&at_time_up(END + 2 * DAY, END + 2 * DAY));
    settled(&store, "after the grace");
}

#[test]
fn a_mark_until_a_moment_ends_alike_for_deleting_and_expiring() {
    let store = Template::new().fresh();
    let repo = open(&store);
    let id = backup_id(1);
    mark(&repo, &cluster(), &id, &Mark::KeepUntil(sample::at(END + DAY / 2)), Change::Make, &evening()).unwrap();
    let deletes = |ctx: &Ctx| delete::plan(&repo, &cluster(), &id, delete::LastBackup::Refuse, ctx).map(drop);
    let expires = |ctx: &Ctx| {
        let plan = expire::plan(&at_once(), &repo, ctx).unwrap();
        plan.going().any(|f| f.entry.id == id)
    };
    // The clock alone ends no mark.
    for ctx in [evening(), at_time(END + DAY), at_time(END + 400 * DAY)] {
        assert_eq!(deletes(&ctx).unwrap_err().code(), "E-BACKUP-KEPT");
        assert!(!expires(&ctx));
    }
    assert_eq!(back_up(&store, 9, &at_time(END + DAY)), None);
    let ctx = at_time(END + DAY + 60);
    deletes(&ctx).unwrap();
    assert!(expires(&ctx));
}

#[test]
fn an_accepted_clock_is_the_one_that_was_looked_at() {
    let wall = sample::at(END);
    let reading = Reading { wall, uptime: None, store: None, server: Some(sample::at(END + 7200)) };
    let store = Template::new().fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let claim = catalog.claim(JobKind::Backup, &backup_id(9), wall).unwrap();
    let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
    complete(&mut entry, 5);
    entry.id = backup_id(9);
    assert_eq!(claim.commit_backup_at(&entry, &reading).unwrap().map(|d| d.by), Some(Witness::Server));
    assert_eq!(refused(&store, &week(), &at_time(END + 60)), "E-EXPIRE-CLOCKS");
    let accepted = ExpireOptions { gap: Gap::Accept, ..week() };
    let plan = expire::plan(&accepted, &repo, &at_time(END + 60)).unwrap();
    assert!(plan.changes(), "that it is accepted is a change");
    expire::run(&accepted, &plan, &repo, &at_time(END + 60)).unwrap();
    // The server may stay as far ahead as it is.
    let later = |server: i64| Reading {
        wall: sample::at(END + DAY),
        server: Some(sample::at(END + DAY + server)),
        ..reading.clone()
    };
    let known = catalog.read().unwrap();
    assert_eq!(known.judge(&later(7200)).doubt, None);
    assert_eq!(known.judge(&later(0)).doubt.map(|d| d.by), Some(Witness::Server));
}
