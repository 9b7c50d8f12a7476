//! Retention in a repository: a dry run equals the run; it may be cut off, stopped or repeated anywhere; it works beside
//! backups and restores and on a full disk; and nothing goes because of what a clock or a listing says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::expire::policy::Policy;
use pgark_engine::expire::{self, ExpireOptions, ExpirePlan, Gap};
use pgark_engine::{Ctx, EngineError};
use pgark_pg::value::Lsn;
use pgark_pg::wal::Changes;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, CatalogStore, Claim, JobKind};
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::NewKeys;
use pgark_repo::names::BackupId;
use pgark_repo::store::{MemoryStore, ObjectName, Store};
use pgark_repo::wal::SegmentData;

use crate::sample::{self, Tree, archive, backup_id, cluster, segment, segment_size, timeline};

mod beside;
mod clocks;
mod copies;
mod kills;
mod reports;
mod revive;
mod run;
mod steady;
mod store;
mod wal;

const DAY: i64 = 86_400;
const SEED: u64 = 20_261_121;
const BACKUPS: u32 = 5;
/// Backup n starts in this segment, and ends in it.
const fn segment_of(n: u32) -> u64 {
    2 + 4 * n as u64
}
const LAST_SEGMENT: u64 = 26;

type Trees = BTreeMap<BackupId, Tree>;

fn keys() -> NewKeys {
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
    ctx.uptime = Arc::new(|| None);
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

/// In one step, as a copy does: then the head has no version but the first.
fn push_wal(repo: &Repository) {
    let archive = archive(repo);
    let pushed = (2..=LAST_SEGMENT).map(|n| {
        let bytes = sample::wal_segment(&segment(n), n);
        let index = sample::index_of(&segment(n), &bytes);
        let (_, copy) = archive.push_segment(&index, &Changes::default(), &mut SegmentData::Memory(&bytes)).unwrap();
        (segment(n), copy)
    });
    archive.acknowledge(&pushed.collect::<Vec<_>>()).unwrap();
}

fn complete(entry: &mut BackupEntry, n: u32) {
    let start = segment_of(n) << 20;
    let facts = entry.physical.as_mut().unwrap();
    (facts.lsn_start, facts.lsn_stop) = (Lsn(start + 0x28), Lsn(start + 0x138));
    (facts.stopped, facts.bad_blocks) = (day(n), 0);
    (entry.started, entry.finished) = (day(n), day(n));
}

fn fill(store: &Arc<dyn Store>, keys: &NewKeys) -> Trees {
    let (repo, _) = Repository::init(store.clone(), keys).unwrap();
    let catalog = CatalogStore::new(&repo, &cluster());
    catalog.register(&sample::lineage(), false).unwrap();
    let mut trees = Trees::new();
    for n in 1..=BACKUPS {
        let claim = catalog.claim(JobKind::Backup, &backup_id(n), day(n)).unwrap();
        let (entry, tree) = committed(&repo, n, claim);
        trees.insert(entry.id, tree);
    }
    push_wal(&repo);
    let bytes = sample::wal_segment(&segment(3), 3);
    archive(&repo).push_partial(&sample::index_of(&segment(3), &bytes), &mut SegmentData::Memory(&bytes)).unwrap();
    archive(&repo).push_side_file(&sample::backup_history_file(), sample::BACKUP_HISTORY).unwrap();
    trees
}

/// The same repository as often as it is wanted.
struct Template {
    store: Arc<dyn Store>,
    trees: Trees,
}

impl Template {
    fn new() -> Self {
        Template::with(&keys())
    }

    fn with(keys: &NewKeys) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let trees = fill(&store, keys);
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
    ExpireOptions { cluster: cluster(), policy, others: vec![], only: None, grace, hurry: None, gap: Gap::Refuse }
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

/// `listed_is_whole`, and the newest is listed.
fn everything_listed_is_whole(store: &Arc<dyn Store>, trees: &Trees, place: &str) {
    let repo = open(store);
    let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
    assert!(catalog.backup(&backup_id(BACKUPS)).is_some(), "{place}: the newest is not listed");
    listed_is_whole(&repo, trees, place);
}

/// Whatever is listed restores: files, and WAL from start to stop; and whatever the head names is there.
fn listed_is_whole(repo: &Repository, trees: &Trees, place: &str) {
    let catalog = CatalogStore::new(repo, &cluster()).read().unwrap();
    let head = archive(repo).head().unwrap();
    let span = head.timeline(timeline(1));
    for b in &catalog.backups {
        let (_, tree) = sample::read_backup(repo, b).unwrap_or_else(|e| panic!("{place}: {}: {e}", b.id));
        assert!(trees.get(&b.id).is_none_or(|t| *t == tree), "{place}: {} came back different", b.id);
        let (first, last) = b.as_physical().unwrap().segments(segment_size());
        let archived = |n: u64| span.is_some_and(|s| s.contains(segment(n).segment));
        assert!((first.0..=last.0).all(archived), "{place}: WAL of {} is gone", b.id);
    }
    for n in span.into_iter().flat_map(|s| &s.ranges).flat_map(|(a, b)| *a..=*b) {
        let read = sample::read_segment(&archive(repo), &segment(n));
        let bytes = read.unwrap_or_else(|e| panic!("{place}: segment {n}: {e}")).1;
        assert!(bytes == sample::wal_segment(&segment(n), n), "{place}: segment {n} came back different");
    }
    assert!(span.is_none_or(|s| s.gaps().is_empty()), "{place}: what expired became a gap");
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
