//! Retention in a repository: a dry run equals the run; it may be cut off, stopped or repeated anywhere; it works beside
//! backups and restores and on a full disk; and nothing goes because of what a clock or a listing says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::archive::get::{Fetched, GetOptions, get};
use pgark_engine::archive::{Archives, check_kept};
use pgark_engine::expire::policy::Policy;
use pgark_engine::expire::{self, ExpireOptions, ExpirePlan, Gap};
use pgark_engine::keep::{Change, Mark, mark};
use pgark_engine::{Ctx, EngineError, delete};
use pgark_pg::value::Lsn;
use pgark_pg::wal::Changes;
use pgark_repo::catalog::{BackupEntry, CLAIM_TTL_SECONDS, CatalogStore, Claim, Evidence, JobKind, Needs, WalNeed};
use pgark_repo::crypto::Algorithm;
use pgark_repo::names::BackupId;
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, MemoryStore, ObjectName, Store};
use pgark_repo::wal::SegmentData;
use pgark_repo::{RepoError, Repository};

use crate::sample::{self, Tree, archive, backup_id, cluster, segment, segment_size, timeline};
use crate::stores::{PausingStore, SmallStore, used};

const DAY: i64 = 86_400;
const SEED: u64 = 20_261_121;
const BACKUPS: u32 = 5;
/// Backup n starts in this segment, and ends in it.
const fn segment_of(n: u32) -> u64 {
    2 + 4 * n as u64
}
const LAST_SEGMENT: u64 = 26;

type Trees = BTreeMap<BackupId, Tree>;

fn keys() -> pgark_repo::keyring::NewKeys {
    sample::new_keys(Algorithm::None, None, "")
}

fn open(store: &Arc<dyn Store>) -> Repository {
    Repository::open(store.clone(), &keys().unlock).unwrap()
}

/// A repository on `store` that was opened through `inner`, so that opening it is no operation.
fn open_quietly(store: &Arc<dyn Store>, inner: &Arc<dyn Store>) -> Repository {
    Repository::open_for_wal(store.clone(), open(inner).keys().clone())
}

fn day(n: u32) -> Timestamp {
    sample::at(i64::from(n) * DAY)
}

fn at_time(seconds: i64) -> Ctx {
    let mut ctx = Ctx::silent();
    ctx.clock = Arc::new(move || sample::at(seconds));
    ctx
}

/// Some time after the last backup.
fn evening() -> Ctx {
    at_time(i64::from(BACKUPS) * DAY + 3600)
}

fn committed(repo: &Repository, n: u32, claim: Claim) -> (BackupEntry, Tree) {
    let (mut entry, tree) = sample::write_backup(repo, &backup_id(n)).unwrap();
    complete(&mut entry, n);
    claim.commit_backup(&entry).unwrap();
    (entry, tree)
}

fn complete(entry: &mut BackupEntry, n: u32) {
    let start = segment_of(n) << 20;
    (entry.lsn_start, entry.lsn_stop) = (Lsn(start + 0x28), Lsn(start + 0x138));
    (entry.started, entry.finished, entry.stopped) = (day(n), day(n), day(n));
    entry.bad_blocks = 0;
}

fn fill(store: &Arc<dyn Store>) -> Trees {
    let (repo, _) = Repository::init(store.clone(), &keys()).unwrap();
    let catalog = CatalogStore::new(&repo, &cluster());
    catalog.register(&sample::lineage(), false).unwrap();
    let mut trees = Trees::new();
    for n in 1..=BACKUPS {
        let claim = catalog.claim(JobKind::Backup, &backup_id(n), day(n)).unwrap();
        let (entry, tree) = committed(&repo, n, claim);
        trees.insert(entry.id, tree);
    }
    sample::push_wal(&repo, &(2..=LAST_SEGMENT).collect::<Vec<_>>()).unwrap();
    let bytes = sample::wal_segment(&segment(3), 3);
    archive(&repo).push_partial(&sample::index_of(&segment(3), &bytes), &mut SegmentData::Memory(&bytes)).unwrap();
    archive(&repo).push_side_file(&sample::backup_history_file(), sample::BACKUP_HISTORY).unwrap();
    trees
}

/// Changes something that a plan rests on.
type Changing<'a> = &'a dyn Fn(&Repository, &Ctx);

/// The same repository as often as it is wanted.
struct Template {
    store: Arc<dyn Store>,
    trees: Trees,
}

impl Template {
    fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let trees = fill(&store);
        Template { store, trees }
    }

    fn copy(&self) -> MemoryStore {
        let copy = MemoryStore::new();
        for name in objects(&self.store) {
            copy.put_new(&name, &self.store.read(&name, u64::MAX).unwrap()).unwrap();
        }
        copy
    }

    fn fresh(&self) -> Arc<dyn Store> {
        Arc::new(self.copy())
    }
}

fn objects(store: &Arc<dyn Store>) -> Vec<ObjectName> {
    let mut names = vec![];
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        names.push(stat.name);
        Ok(())
    };
    store.list("", &mut visit).unwrap();
    names
}

fn contents(store: &Arc<dyn Store>) -> Vec<(String, Vec<u8>)> {
    objects(store).into_iter().map(|n| (n.to_string(), store.read(&n, u64::MAX).unwrap())).collect()
}

fn options(policy: Policy, grace: Duration) -> ExpireOptions {
    ExpireOptions { cluster: cluster(), policy, grace, gap: Gap::Refuse }
}

/// Two backups stay, and WAL from the first of them on.
fn last_two() -> Policy {
    Policy { keep_last: 2, ..Policy::none() }
}

fn at_once() -> ExpireOptions {
    options(last_two(), Duration::ZERO)
}

fn expire_now(store: &Arc<dyn Store>, ctx: &Ctx) -> Result<ExpirePlan, EngineError> {
    let repo = Repository::open(store.clone(), &keys().unlock)?;
    let plan = expire::plan(&at_once(), &repo, ctx)?;
    expire::run(&at_once(), &plan, &repo, ctx)?;
    Ok(plan)
}

fn listed(store: &Arc<dyn Store>) -> Vec<BackupId> {
    let catalog = CatalogStore::new(&open(store), &cluster()).read().unwrap();
    catalog.backups.into_iter().map(|b| b.id).collect()
}

fn ids(numbers: impl IntoIterator<Item = u32>) -> Vec<BackupId> {
    numbers.into_iter().map(backup_id).collect()
}

fn archived(store: &Arc<dyn Store>) -> Vec<(u64, u64)> {
    archive(&open(store)).head().unwrap().timeline(timeline(1)).unwrap().ranges.clone()
}

/// Whatever is listed restores: files, and WAL from start to stop; and whatever the head names is there.
fn everything_listed_is_whole(store: &Arc<dyn Store>, trees: &Trees, place: &str) {
    let repo = open(store);
    let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
    let newest = backup_id(BACKUPS);
    assert!(catalog.backup(&newest).is_some(), "{place}: the newest is not listed");
    let head = archive(&repo).head().unwrap();
    let span = head.timeline(timeline(1)).unwrap();
    for b in &catalog.backups {
        let (_, tree) = sample::read_backup(&repo, b).unwrap_or_else(|e| panic!("{place}: {}: {e}", b.id));
        assert!(trees.get(&b.id).is_none_or(|t| *t == tree), "{place}: {} came back different", b.id);
        let (first, last) = b.segments(segment_size());
        assert!((first.0..=last.0).all(|n| span.contains(segment(n).segment)), "{place}: WAL of {} is gone", b.id);
    }
    for n in span.ranges.iter().flat_map(|(a, b)| *a..=*b) {
        let read = sample::read_segment(&archive(&repo), &segment(n));
        let bytes = read.unwrap_or_else(|e| panic!("{place}: segment {n}: {e}")).1;
        assert!(bytes == sample::wal_segment(&segment(n), n), "{place}: segment {n} came back different");
    }
    assert!(span.gaps().is_empty(), "{place}: what expired became a gap");
}

/// Nothing is left to be done, and nothing of what expired is left.
fn settled(store: &Arc<dyn Store>, place: &str) {
    assert_eq!(listed(store), ids([4, 5]), "{place}");
    assert_eq!(archived(store), [(segment_of(4), LAST_SEGMENT)], "{place}");
    let catalog = CatalogStore::new(&open(store), &cluster()).read().unwrap();
    assert!(catalog.expired.is_empty() && catalog.wal_expiries.is_empty() && catalog.removing.is_empty(), "{place}");
    for name in objects(store) {
        let of_backup = ids([1, 2, 3]).iter().any(|id| name.as_str().contains(id.as_str()));
        let old_wal = (2..segment_of(4)).any(|n| name.as_str().contains(&segment(n).format(segment_size())));
        assert!(!of_backup && !old_wal, "{place}: {name} is still there");
    }
}

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
        let meanwhile = {
            let (inner, place) = (inner.clone(), place.clone());
            move || {
                // So long that the claim of the one that is stopped has run out.
                let later = i64::from(BACKUPS) * DAY + 3600 + CLAIM_TTL_SECONDS + 1;
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
        let outcome = expire::run(&at_once(), &plan, &open_quietly(&store, &inner), &evening());
        if pausing.operations() < nth {
            outcome.unwrap();
            break;
        }
        match outcome {
            Ok(_) => finished += 1,
            Err(EngineError::Repo(RepoError::Fenced { .. } | RepoError::Busy { .. })) => fenced += 1,
            Err(e) if e.code() == "E-REPO-MISSING" => fenced += 1,
            Err(e) => panic!("{place}: {e}"),
        }
        everything_listed_is_whole(&inner, &template.trees, &place);
        assert!(listed(&inner).contains(&backup_id(9)), "{place}");
        assert_eq!(archived(&inner), [(2, LAST_SEGMENT)], "{place}: what was pushed again is archived again");
    }
    assert!(fenced > 30 && finished > 3, "{fenced} {finished}");
}

#[test]
fn a_backup_that_was_taken_for_dead_cannot_commit_what_expired_meanwhile() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let began = i64::from(BACKUPS) * DAY;
    let needs = Needs { base: Some(backup_id(1)), wal: None };
    let sleeper = catalog.claim_with(JobKind::Backup, &backup_id(9), needs, sample::at(began)).unwrap();
    let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
    complete(&mut entry, 1);

    // While it is alive, what it builds on stays.
    let plan = expire_now(&store, &at_time(began + 10)).unwrap();
    assert_eq!(plan.going().map(|f| f.entry.id.clone()).collect::<Vec<_>>(), ids([2, 3]));
    // Then it is taken for dead, and everything goes.
    expire_now(&store, &at_time(began + CLAIM_TTL_SECONDS + 11)).unwrap();
    assert_eq!(listed(&store), ids([4, 5]));
    assert!(matches!(sleeper.commit_backup(&entry), Err(RepoError::Fenced { .. })));
}

#[test]
fn wal_of_a_running_backup_stays_and_one_whose_wal_expired_is_not_committed() {
    let template = Template::new();
    for told in [true, false] {
        let store = template.fresh();
        let repo = open(&store);
        let catalog = CatalogStore::new(&repo, &cluster());
        let claim = catalog.claim(JobKind::Backup, &backup_id(9), evening().now()).unwrap();
        let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
        // As one of a standby may, it starts before the newest backup.
        complete(&mut entry, 2);
        entry.id = backup_id(9);
        if told {
            let (system_id, from) = (sample::SYSTEM, entry.lsn_start);
            claim.need_wal(WalNeed { system_id, timeline: timeline(1), from, to: None }).unwrap();
        }
        expire_now(&store, &evening()).unwrap();
        let first = archived(&store)[0].0;
        if told {
            assert_eq!(first, segment_of(2));
            claim.commit_backup(&entry).unwrap();
            everything_listed_is_whole(&store, &template.trees, "with the new one");
        } else {
            assert_eq!(first, segment_of(4));
            assert!(matches!(claim.commit_backup(&entry), Err(RepoError::Expired { .. })));
        }
    }
}

#[test]
fn what_a_restore_reads_stays_until_it_ends() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let ctx = evening();
    let plan = expire::plan(&at_once(), &repo, &ctx).unwrap();
    let wal = WalNeed {
        system_id: sample::SYSTEM,
        timeline: timeline(1),
        from: Lsn((segment_of(1) << 20) + 0x28),
        to: Some(Lsn(segment_of(2) << 20)),
    };
    let needs = Needs { base: None, wal: Some(wal) };
    let restore = catalog.claim_with(JobKind::Restore, &backup_id(1), needs, ctx.now()).unwrap();
    // The plan was made before: it is refused as a whole.
    let late = expire::run(&at_once(), &plan, &repo, &ctx).unwrap_err();
    assert_eq!(late.code(), "E-LOCKED", "{late}");
    assert_eq!(listed(&store), ids(1..=5));
    expire_now(&store, &ctx).unwrap();
    assert_eq!(listed(&store), ids([1, 4, 5]));
    assert_eq!(archived(&store)[0].0, segment_of(1));
    everything_listed_is_whole(&store, &template.trees, "beside a restore");
    restore.release().unwrap();
    expire_now(&store, &ctx).unwrap();
    settled(&store, "after the restore");
}

#[test]
fn what_changed_since_the_plan_stops_the_run() {
    let template = Template::new();
    let changes: [Changing<'_>; 3] = [
        &|repo, ctx| drop(mark(repo, &cluster(), &backup_id(2), &Mark::Keep, Change::Make, ctx).unwrap()),
        &|repo, ctx| {
            let plan = delete::plan(repo, &cluster(), &backup_id(5), delete::LastBackup::Refuse, ctx).unwrap();
            delete::run(repo, &cluster(), &plan, ctx).unwrap();
        },
        &|repo, _| {
            let catalog = CatalogStore::new(repo, &cluster());
            let proven = catalog.update(|c| {
                c.backups[1].evidence = Evidence::Replayed;
                Ok(Some(()))
            });
            proven.unwrap().unwrap();
        },
    ];
    for change in changes {
        let store = template.fresh();
        let (repo, ctx) = (open(&store), evening());
        let plan = expire::plan(&at_once(), &repo, &ctx).unwrap();
        change(&repo, &ctx);
        let before = listed(&store);
        let refused = expire::run(&at_once(), &plan, &repo, &ctx).unwrap_err();
        assert_eq!(refused.code(), "E-LOCKED", "{refused}");
        assert_eq!(listed(&store), before);
        assert_eq!(archived(&store), [(2, LAST_SEGMENT)]);
    }
}

#[test]
fn clocks_delete_nothing() {
    let template = Template::new();
    let week = Policy { window: Some(Duration::from_secs(7 * 86_400)), ..Policy::none() };
    let week = options(week, Duration::from_secs(86_400));
    for ahead in [0, 400 * DAY, 36_000 * DAY] {
        let store = template.fresh();
        let ctx = at_time(i64::from(BACKUPS) * DAY + 60 + ahead);
        let plan = expire::plan(&week, &open(&store), &ctx).unwrap();
        assert_eq!(plan.going().count(), 0, "{ahead}");
        // WAL from before the first backup serves nothing.
        assert_eq!(plan.segments_going(), segment_of(1) - 2, "{ahead}");
    }
    // A backup that was taken by a clock that jumped, and an expiry by the same.
    let store = template.fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let jumped = i64::from(BACKUPS) * DAY + 400 * DAY;
    let claim = catalog.claim(JobKind::Backup, &backup_id(9), sample::at(jumped)).unwrap();
    let (mut entry, _) = sample::write_backup(&repo, &backup_id(9)).unwrap();
    complete(&mut entry, 5);
    (entry.id, entry.finished, entry.stopped) = (backup_id(9), sample::at(jumped), sample::at(jumped));
    claim.commit_backup(&entry).unwrap();
    let refused = expire::plan(&week, &repo, &at_time(jumped + 60)).unwrap_err();
    assert_eq!(refused.code(), "E-EXPIRE-GAP", "{refused}");
    let accepted = ExpireOptions { gap: Gap::Accept, ..week.clone() };
    assert_eq!(expire::plan(&accepted, &repo, &at_time(jumped + 60)).unwrap().going().count(), 4);

    // Set back: all backups are from the future.
    let store = template.fresh();
    let before = contents(&store);
    let refused = expire::plan(&at_once(), &open(&store), &at_time(0)).unwrap_err();
    assert_eq!(refused.code(), "E-EXPIRE-CLOCK", "{refused}");
    assert!(contents(&store) == before);

    // What expired in truth waits, too, when the clock jumps.
    let grace = options(last_two(), Duration::from_secs(86_400));
    let repo = open(&store);
    let run = |ctx: &Ctx| {
        let plan = expire::plan(&grace, &repo, ctx).unwrap();
        expire::run(&grace, &plan, &repo, ctx).unwrap();
        plan
    };
    run(&evening());
    assert_eq!(listed(&store), ids([4, 5]));
    let kept = objects(&store).into_iter().filter(|n| n.as_str().contains(backup_id(1).as_str())).count();
    assert!(kept > 2, "what has just expired is there for its grace");
    let plan = run(&at_time(400 * DAY));
    assert!(plan.notes.iter().any(|n| n.contains("clock")), "{:?}", plan.notes);
    assert_eq!(objects(&store).into_iter().filter(|n| n.as_str().contains(backup_id(1).as_str())).count(), kept);
    run(&at_time(i64::from(BACKUPS) * DAY + 2 * DAY));
    settled(&store, "after the grace");
}

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
    for spare in [0, 1, 50, 300, 1000, 3000, 20_000] {
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

#[test]
fn expired_wal_is_never_the_end_of_the_archive() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    expire_now(&store, &evening()).unwrap();
    let dir = std::env::temp_dir().join(format!("pgark-engine-it-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let dest = dir.join("got");
    let archive = archive(&repo);
    let fetch = |n: u64| {
        let options =
            GetOptions { segment_size: segment_size(), planned_end: None, newest_timeline: None, prefetch: None };
        get(&Archives::one(&archive), &segment(n).format(segment_size()), &dest, &options)
    };
    assert_eq!(fetch(3).unwrap_err().code(), "E-WAL-EXPIRED");
    // A restore that was planned before is told once it has pinned its backup.
    let kept = |n: u64| check_kept(&repo, &cluster(), sample::SYSTEM, &[segment(n)], segment_size());
    assert_eq!(kept(3).unwrap_err().code(), "E-WAL-EXPIRED");
    kept(LAST_SEGMENT).unwrap();
    assert_eq!(fetch(LAST_SEGMENT).unwrap(), Fetched::Delivered);
    assert_eq!(fetch(LAST_SEGMENT + 1).unwrap(), Fetched::Absent);
    // A timeline of which everything has expired is still known.
    let number = CatalogStore::new(&repo, &cluster()).read().unwrap().fence + 1;
    let all = pgark_repo::wal::SegmentRange {
        timeline: timeline(1),
        first: segment(0).segment,
        last: segment(LAST_SEGMENT).segment,
    };
    archive.expire(number, &[all]).unwrap();
    assert_eq!(fetch(segment_of(5)).unwrap(), Fetched::Delivered, "it is there until it is removed");
    archive.expire(number + 1, &[all]).unwrap();
    assert_eq!(fetch(3).unwrap_err().code(), "E-WAL-EXPIRED");
    assert_eq!(fetch(LAST_SEGMENT + 1).unwrap(), Fetched::Absent);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_segment_that_expired_is_archived_again_under_another_name_and_other_wal_is_refused() {
    let template = Template::new();
    let store = template.fresh();
    let repo = open(&store);
    let options = options(last_two(), Duration::from_secs(86_400));
    let plan = expire::plan(&options, &repo, &evening()).unwrap();
    expire::run(&options, &plan, &repo, &evening()).unwrap();
    let archive = archive(&repo);
    let push = |n: u64, seed: u64| {
        let bytes = sample::wal_segment(&segment(n), seed);
        let index = sample::index_of(&segment(n), &bytes);
        let head = archive.head().unwrap();
        archive.push_segment_after(&head, &index, &Changes::default(), &mut SegmentData::Memory(&bytes))
    };
    // In its grace the old one is there to be compared with.
    assert!(matches!(push(3, 77), Err(RepoError::Conflict { .. })));
    let (_, copy) = push(3, 3).unwrap();
    assert_eq!(copy, 1);
    // Under the old name nobody is told that it is archived.
    assert!(matches!(archive.acknowledge(&[(segment(3), 0)]), Err(RepoError::Expired { .. })));
    archive.acknowledge(&[(segment(3), copy)]).unwrap();
    let ctx = at_time(i64::from(BACKUPS) * DAY + 2 * DAY);
    // It goes again with the next run, and with it both copies.
    let plan = expire::plan(&options, &repo, &ctx).unwrap();
    assert_eq!(plan.segments_going(), 1);
    expire::run(&options, &plan, &repo, &ctx).unwrap();
    assert_eq!(push(3, 3).unwrap().1, 2);
    archive.acknowledge(&[(segment(3), 2)]).unwrap();
    everything_listed_is_whole(&store, &template.trees, "archived twice again");
}

#[test]
fn without_a_policy_nothing_expires() {
    let template = Template::new();
    let store = template.fresh();
    let none = options(Policy { min_backups: 1, ..Policy::none() }, Duration::ZERO);
    let refused = expire::plan(&none, &open(&store), &evening()).unwrap_err();
    assert_eq!(refused.code(), "E-EXPIRE-POLICY");
}

#[test]
fn a_legal_hold_is_lifted_by_its_reason_alone() {
    let template = Template::new();
    let store = template.fresh();
    let (repo, ctx) = (open(&store), evening());
    let id = backup_id(1);
    let set = |what: Mark| mark(&repo, &cluster(), &id, &what, Change::Make, &ctx);
    set(Mark::Hold("case 4711".into())).unwrap();
    set(Mark::Hold("case 4712".into())).unwrap();
    set(Mark::Keep).unwrap();
    assert_eq!(set(Mark::Unkeep).unwrap().holds.len(), 2);
    let refused = delete::plan(&repo, &cluster(), &id, delete::LastBackup::Refuse, &ctx).unwrap_err();
    assert_eq!(refused.code(), "E-BACKUP-HELD");
    expire_now(&store, &ctx).unwrap();
    assert_eq!(listed(&store), ids([1, 4, 5]));
    assert_eq!(set(Mark::LiftHold("case".into())).unwrap_err().code(), "E-HOLD-UNKNOWN");
    set(Mark::LiftHold("case 4711".into())).unwrap();
    expire_now(&store, &ctx).unwrap();
    assert_eq!(listed(&store), ids([1, 4, 5]), "the other hold is there");
    set(Mark::LiftHold("case 4712".into())).unwrap();
    expire_now(&store, &ctx).unwrap();
    settled(&store, "after the holds");
    let past = mark(&repo, &cluster(), &backup_id(5), &Mark::KeepUntil(day(1)), Change::Make, &ctx).unwrap_err();
    assert_eq!(past.code(), "E-KEEP-UNTIL");
}
