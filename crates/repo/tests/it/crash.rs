//! The power goes, the disk fills up or a reply is lost at each single operation of each sequence that writes.
//! Afterwards everything committed earlier reads back exactly, the same sequence succeeds without help, and
//! once more changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pgark_pg::wal::Changes;
use pgark_repo::Repository;
use pgark_repo::catalog::{CLAIM_TTL_SECONDS, CatalogStore, JobKind};
use pgark_repo::crypto::Algorithm;
use pgark_repo::error::{RepoError, Result};
use pgark_repo::keyring::Unlock;
use pgark_repo::names::{self, BackupId};
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, LocalStore, MemoryStore, Store};
use pgark_repo::wal::SegmentData;

use crate::common::{TestDir, keys, name, objects};
use crate::sample::{self, Tree, archive, backup_id, cluster, read_backup, segment};

const SEED: u64 = 20_260_822;
pub const FAULTS: [Fault; 5] = [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseReply, Fault::Fail, Fault::NoSpace];
/// More operations than any sequence has: a sweep that gets here does not end.
const OPERATIONS_MAX: u64 = 2000;

/// How often a sequence ran before; a later run happens later, and names its backup differently.
pub type Attempt = u32;

pub type Sequence<'a> = dyn Fn(&Arc<dyn Store>, Attempt) -> Result<()> + 'a;
pub type Trees = BTreeMap<BackupId, Tree>;

pub struct Scenario<'a> {
    pub name: &'a str,
    /// What was there before: never disturbed.
    pub before: &'a dyn Fn(&Arc<dyn Store>) -> Trees,
    pub sequence: &'a Sequence<'a>,
    /// Holds once the sequence has succeeded.
    pub after: &'a dyn Fn(&Arc<dyn Store>),
    /// Whether one more run leaves the very same objects.
    pub repeats_exactly: bool,
}

impl Scenario<'_> {
    pub fn sweep(&self, make: &dyn Fn() -> Arc<dyn Store>, faults: &[Fault]) {
        for &fault in faults {
            let mut reached = 0;
            for nth in 1..OPERATIONS_MAX {
                if !self.fault_at(make(), fault, nth) {
                    break;
                }
                reached = nth;
            }
            assert!(reached > 2, "{}: {fault:?} was never injected", self.name);
            assert!(reached + 1 < OPERATIONS_MAX, "{}: the sweep does not end", self.name);
        }
    }

    /// False when the sequence has fewer operations.
    fn fault_at(&self, inner: Arc<dyn Store>, fault: Fault, nth: u64) -> bool {
        let place = format!("{}: {fault:?} at operation {nth}, seed {SEED}", self.name);
        let trees = (self.before)(&inner);
        let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
        faulty.inject(Op::ALL, When::Nth(nth), fault);
        let store: Arc<dyn Store> = faulty.clone();
        let first = (self.sequence)(&store, 0);
        let due = faulty.count(Op::ALL) >= nth;
        if !due {
            first.unwrap_or_else(|e| panic!("{place}: failed without a fault: {e}"));
            return false;
        }
        committed_backups_are_whole(&inner, &trees, &place);
        faulty.heal();
        (self.sequence)(&store, 1).unwrap_or_else(|e| panic!("{place}: the next run fails: {e}"));
        committed_backups_are_whole(&inner, &trees, &place);
        (self.after)(&inner);
        if self.repeats_exactly {
            let before = contents(&*inner);
            (self.sequence)(&store, 1).unwrap_or_else(|e| panic!("{place}: a repetition fails: {e}"));
            assert!(contents(&*inner) == before, "{place}: a repetition changes something");
        }
        true
    }
}

fn contents(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
    objects(store).into_iter().map(|n| (n.to_string(), store.read(&n, u64::MAX).unwrap())).collect()
}

pub fn open(store: &Arc<dyn Store>) -> Result<Repository> {
    Repository::open(store.clone(), &keys(Algorithm::Aes256Gcm).unlock)
}

pub fn committed_backups_are_whole(store: &Arc<dyn Store>, earlier: &Trees, place: &str) {
    if earlier.is_empty() {
        return;
    }
    let repo = open(store).unwrap_or_else(|e| panic!("{place}: {e}"));
    let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap_or_else(|e| panic!("{place}: {e}"));
    for (id, tree) in earlier {
        let entry = catalog.backup(id).unwrap_or_else(|| panic!("{place}: {id} is not listed any more"));
        let read = read_backup(&repo, entry).unwrap_or_else(|e| panic!("{place}: {id}: {e}"));
        assert!(read.1 == *tree, "{place}: {id} came back different");
    }
    for entry in &catalog.backups {
        read_backup(&repo, entry).unwrap_or_else(|e| panic!("{place}: listed {} is not whole: {e}", entry.id));
    }
    let head = archive(&repo).head().unwrap_or_else(|e| panic!("{place}: {e}"));
    for span in head.timelines() {
        for n in span.ranges.iter().flat_map(|(a, b)| *a..=*b) {
            let read = sample::read_segment(&archive(&repo), &segment(n));
            let bytes = read.unwrap_or_else(|e| panic!("{place}: acknowledged segment {n}: {e}")).1;
            assert!(bytes == sample::wal_segment(&segment(n), n), "{place}: segment {n} came back different");
        }
    }
}

pub fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

fn nothing(_: &Arc<dyn Store>) -> Trees {
    BTreeMap::new()
}

pub fn one_backup(store: &Arc<dyn Store>) -> Trees {
    sample::fill(&sample::init(store.clone(), &keys(Algorithm::Aes256Gcm)), 1).unwrap()
}

#[test]
fn init_can_be_interrupted_anywhere() {
    Scenario {
        name: "init",
        before: &nothing,
        sequence: &|store, _| Repository::init(store.clone(), &keys(Algorithm::Aes256Gcm)).map(drop),
        after: &|store| {
            let repo = open(store).unwrap();
            assert!(repo.check_keyring().unwrap().is_empty(), "one of the two key rings is missing");
            assert!(matches!(Repository::open(store.clone(), &Unlock::default()), Err(RepoError::KeyRequired)));
        },
        repeats_exactly: true,
    }
    .sweep(&memory, &FAULTS);
}

#[test]
fn registration_can_be_interrupted_anywhere() {
    Scenario {
        name: "register",
        before: &|store| {
            sample::init(store.clone(), &keys(Algorithm::Aes256Gcm));
            BTreeMap::new()
        },
        sequence: &|store, _| {
            CatalogStore::new(&open(store)?, &cluster()).register(&sample::lineage(), false).map(drop)
        },
        after: &|store| {
            let catalog = CatalogStore::new(&open(store).unwrap(), &cluster());
            assert_eq!(catalog.read().unwrap().lineages, [sample::lineage()]);
            assert!(catalog.check().unwrap().is_empty(), "one of the two catalogs is missing");
        },
        repeats_exactly: true,
    }
    .sweep(&memory, &FAULTS);
}

/// As `pgark backup` does it: what is left over is removed, then a new backup is made under a claim.
pub fn backup(store: &Arc<dyn Store>, attempt: Attempt) -> Result<()> {
    let repo = open(store)?;
    let catalog = CatalogStore::new(&repo, &cluster());
    let id = backup_id(10 + attempt);
    if catalog.read()?.backup(&id).is_none() {
        // A claim of a process that died elsewhere lasts until it was not renewed in time.
        let now = sample::at(100 + i64::from(attempt) * (CLAIM_TTL_SECONDS + 1));
        let claim = catalog.claim(JobKind::Backup, &id, now)?;
        let written = sample::write_backup(&repo, &id);
        let (entry, _) = match written {
            Ok(w) => w,
            Err(e) => {
                // As the engine does: what cannot be given up now is found by the next one.
                let _ = claim.abandon(false);
                return Err(e);
            }
        };
        claim.renew(now)?;
        claim.commit_backup(&entry)?;
    }
    // One pass removes, the next one sees that nothing is left.
    catalog.sweep()?;
    catalog.sweep()?;
    Ok(())
}

fn only_listed_backups_have_objects(store: &Arc<dyn Store>) {
    let repo = open(store).unwrap();
    let store_of = CatalogStore::new(&repo, &cluster());
    let catalog = store_of.read().unwrap();
    assert!(catalog.jobs.is_empty() && catalog.removing.is_empty(), "{:?} {:?}", catalog.jobs, catalog.removing);
    let listed: Vec<_> = catalog.backups.iter().map(|b| b.id.to_string()).collect();
    let dir = names::backups_dir(&cluster());
    let found = objects(&**store).into_iter().filter_map(|n| {
        let below = n.as_str().strip_prefix(&dir)?.strip_prefix('/')?;
        below.split('/').next().map(str::to_owned)
    });
    assert_eq!(found.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(), listed);
    assert!(store_of.check().unwrap().is_empty());
}

fn backup_scenario() -> Scenario<'static> {
    Scenario {
        name: "backup",
        before: &one_backup,
        sequence: &backup,
        after: &|store| {
            only_listed_backups_have_objects(store);
            let catalog = CatalogStore::new(&open(store).unwrap(), &cluster()).read().unwrap();
            assert!(catalog.backup(&backup_id(11)).is_some());
        },
        repeats_exactly: true,
    }
}

#[test]
fn a_backup_can_be_interrupted_anywhere() {
    backup_scenario().sweep(&memory, &FAULTS);
}

#[test]
fn a_backup_into_a_directory_can_be_interrupted_anywhere() {
    let dir = TestDir::new();
    let count = std::cell::Cell::new(0);
    let make = || {
        count.set(count.get() + 1);
        let store: Arc<dyn Store> = Arc::new(LocalStore::create(dir.0.join(count.get().to_string())).unwrap());
        store
    };
    backup_scenario().sweep(&make, &[Fault::CrashBefore, Fault::CrashAfter]);
}

#[test]
fn giving_up_can_be_interrupted_anywhere() {
    Scenario {
        name: "abandon",
        before: &one_backup,
        sequence: &|store, attempt| {
            let repo = open(store)?;
            let catalog = CatalogStore::new(&repo, &cluster());
            let id = backup_id(10 + attempt);
            let now = sample::at(100 + i64::from(attempt) * (CLAIM_TTL_SECONDS + 1));
            if attempt < 2 {
                let claim = catalog.claim(JobKind::Backup, &id, now)?;
                sample::write_backup(&repo, &id)?;
                claim.abandon(false)?;
            }
            catalog.sweep()?;
            catalog.sweep().map(drop)
        },
        after: &only_listed_backups_have_objects,
        repeats_exactly: false,
    }
    .sweep(&memory, &FAULTS);
}

#[test]
fn a_deletion_can_be_interrupted_anywhere() {
    Scenario {
        name: "delete",
        before: &|store| {
            let repo = sample::init(store.clone(), &keys(Algorithm::Aes256Gcm));
            let mut trees = sample::fill(&repo, 2).unwrap();
            trees.remove(&backup_id(2));
            trees
        },
        sequence: &|store, attempt| {
            let catalog = CatalogStore::new(&open(store)?, &cluster());
            let now = sample::at(100 + i64::from(attempt) * (CLAIM_TTL_SECONDS + 1));
            match catalog.claim(JobKind::Delete, &backup_id(2), now) {
                Ok(claim) => {
                    claim.unlist()?;
                    catalog.sweep()?;
                    catalog.sweep()?;
                    claim.release()
                }
                // It was deleted before.
                Err(RepoError::NoBackup { .. }) => Ok(()),
                Err(e) => Err(e),
            }
        },
        after: &|store| {
            let catalog = CatalogStore::new(&open(store).unwrap(), &cluster()).read().unwrap();
            assert!(catalog.backup(&backup_id(2)).is_none() && catalog.removing.is_empty());
            let left = objects(&**store).into_iter().filter(|n| n.as_str().contains(backup_id(2).as_str()));
            assert_eq!(left.count(), 0);
        },
        repeats_exactly: false,
    }
    .sweep(&memory, &FAULTS);
}

pub fn push(store: &Arc<dyn Store>, _: Attempt) -> Result<()> {
    sample::push_wal(&open(store)?, &[5, 6])
}

fn wal_scenario() -> Scenario<'static> {
    Scenario {
        name: "archive-push",
        before: &one_backup,
        sequence: &push,
        after: &|store| {
            let archive = archive(&open(store).unwrap());
            assert_eq!(archive.head().unwrap().timeline(sample::timeline(1)).unwrap().ranges, [(2, 6)]);
            assert!(archive.head_register().check().unwrap().is_empty());
        },
        repeats_exactly: true,
    }
}

#[test]
fn a_push_can_be_interrupted_anywhere() {
    wal_scenario().sweep(&memory, &FAULTS);
}

#[test]
fn a_push_into_a_directory_can_be_interrupted_anywhere() {
    let dir = TestDir::new();
    let count = std::cell::Cell::new(0);
    let make = || {
        count.set(count.get() + 1);
        let store: Arc<dyn Store> = Arc::new(LocalStore::create(dir.0.join(count.get().to_string())).unwrap());
        store
    };
    wal_scenario().sweep(&make, &[Fault::CrashAfter]);
}

#[test]
fn a_push_of_a_side_file_can_be_interrupted_anywhere() {
    Scenario {
        name: "side files",
        before: &|store| {
            let repo = sample::init(store.clone(), &keys(Algorithm::Aes256Gcm));
            CatalogStore::new(&repo, &cluster()).register(&sample::lineage(), false).unwrap();
            BTreeMap::new()
        },
        sequence: &|store, _| sample::push_side_files(&open(store)?),
        after: &|store| {
            let archive = archive(&open(store).unwrap());
            assert_eq!(archive.history(sample::timeline(2)).unwrap(), sample::HISTORY);
            assert_eq!(archive.side_file(&sample::backup_history_file()).unwrap(), sample::BACKUP_HISTORY);
            assert!(archive.head().unwrap().timeline(sample::timeline(2)).unwrap().history);
        },
        repeats_exactly: true,
    }
    .sweep(&memory, &FAULTS);
}

#[test]
fn a_lost_reply_to_a_change_of_the_catalog_is_no_failure() {
    // The reply to the one operation that decides is lost: the change is found to be in force.
    let inner = memory();
    one_backup(&inner);
    let faulty = Arc::new(FaultStore::new(inner, SEED));
    let store: Arc<dyn Store> = faulty.clone();
    let repo = open(&store).unwrap();
    let catalog = CatalogStore::new(&repo, &cluster());
    let claim = catalog.claim(JobKind::Backup, &backup_id(7), sample::at(100)).unwrap();
    let (entry, _) = sample::write_backup(&repo, &backup_id(7)).unwrap();
    faulty.inject(&[Op::PutNew], When::Nth(1), Fault::LoseReply);
    faulty.inject(&[Op::PutNew], When::Nth(2), Fault::LoseReply);
    claim.commit_backup(&entry).unwrap();
    assert_eq!(catalog.read().unwrap().backups.len(), 2);
    assert!(catalog.check().unwrap().is_empty());
}

#[test]
fn a_name_that_is_taken_by_other_wal_is_refused() {
    let store = memory();
    one_backup(&store);
    let archive = archive(&open(&store).unwrap());
    let other = sample::wal_segment(&segment(2), 77);
    let pushed = archive.push_segment(
        &sample::index_of(&segment(2), &other),
        &Changes::default(),
        &mut SegmentData::Memory(&other),
    );
    assert!(matches!(pushed, Err(RepoError::Conflict { .. })), "{pushed:?}");
    let pushed = archive.push_side_file(&sample::history_file(), b"another history");
    assert!(matches!(pushed, Err(RepoError::Conflict { .. })), "{pushed:?}");
    assert!(sample::read_segment(&archive, &segment(2)).unwrap().1 == sample::wal_segment(&segment(2), 2));
}

#[test]
fn an_identifier_in_use_cannot_be_claimed_for_another_backup() {
    let store = memory();
    let trees = one_backup(&store);
    let catalog = CatalogStore::new(&open(&store).unwrap(), &cluster());
    let again = catalog.claim(JobKind::Backup, &backup_id(1), sample::at(100)).err();
    assert!(matches!(again, Some(RepoError::Conflict { .. })), "{again:?}");
    catalog.sweep().unwrap();
    committed_backups_are_whole(&store, &trees, "after a refused claim");
    catalog.claim(JobKind::Backup, &backup_id(3), sample::at(100)).unwrap().abandon(false).unwrap();
    let remains = catalog.claim(JobKind::Backup, &backup_id(3), sample::at(101)).err();
    assert!(matches!(remains, Some(RepoError::Conflict { .. })), "{remains:?}");
    assert!(store.stat(&name("keyring/0000000000000001")).is_ok());
}
