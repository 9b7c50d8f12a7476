//! Sealing anew: whatever goes wrong, everything reads; what waits, waits; and in the end the old key opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pgark_engine::keys::{self, Mode, RotateOptions, RunningRestores};
use pgark_engine::reencrypt::retire::{RetireOptions, Retired, prove, retire};
use pgark_engine::reencrypt::{self, ReencryptOptions, ReencryptReport};
use pgark_engine::replicate::lacking::lacks;
use pgark_engine::replicate::{self, ReplicateOptions, Which};
use pgark_engine::verify::{Depth, Problem, ProblemKind, VerifyOptions, verify};
use pgark_engine::{Ctx, EngineError};
use pgark_pg::wal::Changes;
use pgark_repo::catalog::{CatalogStore, JobKind, PacksOf};
use pgark_repo::crypto::{Algorithm, HEADER_BYTES, KeySet, ObjectKind, generation_of};
use pgark_repo::keyring::{self, Keyring, NewKeys, Unlock};
use pgark_repo::names::{self, BackupId};
use pgark_repo::record::BackupRecord;
use pgark_repo::repository::Rekeyed;
use pgark_repo::seals;
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, LocalStore, MemoryStore, ObjectName, Store};
use pgark_repo::wal::SegmentData;
use pgark_repo::{RepoError, Repository};

use crate::sample::{self, Tree, archive, backup_id, cluster, segment, segment_size};
use crate::stores::PausingStore;

const SEED: u64 = 20_261_121;
const DAY: i64 = 86_400;
const KINDS: [ObjectKind; 9] = [
    ObjectKind::Pack,
    ObjectKind::Manifest,
    ObjectKind::BackupRecord,
    ObjectKind::WalSegment,
    ObjectKind::WalSideFile,
    ObjectKind::WalHead,
    ObjectKind::Catalog,
    ObjectKind::Report,
    ObjectKind::Audit,
];

type Trees = BTreeMap<BackupId, Tree>;

pub fn secrets() -> NewKeys {
    static IDENTITY: OnceLock<String> = OnceLock::new();
    let identity = IDENTITY.get_or_init(|| {
        use age::secrecy::ExposeSecret;
        age::x25519::Identity::generate().to_string().expose_secret().to_owned()
    });
    sample::new_keys(Algorithm::Aes256Gcm, None, identity)
}

fn unlock() -> Unlock {
    secrets().unlock
}

fn open(store: &Arc<dyn Store>) -> Repository {
    Repository::open(store.clone(), &unlock()).unwrap()
}

fn on_day(n: i64) -> Ctx {
    let mut ctx = Ctx::silent();
    ctx.clock = Arc::new(move || sample::at(n * DAY));
    ctx
}

fn rotate(store: &Arc<dyn Store>) {
    let unlock = unlock();
    let running_restores = RunningRestores::Allow;
    let options = RotateOptions { unlock: &unlock, passphrases: &[], drop: &[], running_restores };
    keys::rotate(store, &options, Mode::Run, &on_day(0)).unwrap();
}

/// Two generations: backups 1 and 2 and most of the WAL under the first, backup 3 and a segment under the second. Backup 1 is
/// deleted, but for a pack that the second needs; something was refused, and something interrupted.
struct Template {
    store: Arc<MemoryStore>,
    trees: Trees,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let memory = Arc::new(MemoryStore::new());
        let store: Arc<dyn Store> = memory.clone();
        let repo = sample::init(store.clone(), &secrets());
        let mut trees = sample::fill(&repo, 2).unwrap();
        let catalog = CatalogStore::new(&repo, &cluster());
        catalog
            .update(|c| {
                c.backups[1].needs = vec![PacksOf { backup: backup_id(1), packs: vec![(1, 1)] }];
                Ok(Some(()))
            })
            .unwrap();
        let claim = catalog.claim(JobKind::Delete, &backup_id(1), sample::at(0)).unwrap();
        claim.unlist().unwrap();
        claim.release().unwrap();
        catalog.sweep().unwrap();
        trees.remove(&backup_id(1)).unwrap();
        let bytes = sample::wal_segment(&segment(4), 99);
        let index = sample::index_of(&segment(4), &bytes);
        let file = segment(4).format(segment_size());
        archive(&repo).keep_conflict(&file, &index, &mut SegmentData::Memory(&bytes)).unwrap();
        let claim = catalog.claim(JobKind::Backup, &backup_id(7), sample::at(0)).unwrap();
        sample::write_backup(&repo, &backup_id(7)).unwrap();
        claim.abandon(true).unwrap();
        rotate(&store);
        let repo = open(&store);
        let claim = catalog.claim(JobKind::Backup, &backup_id(8), sample::at(0)).unwrap();
        let (entry, tree) = sample::write_backup(&repo, &backup_id(8)).unwrap();
        // The interrupted one stays on record, as if another had been interrupted since.
        catalog
            .update(|c| {
                c.backups.push(entry.clone());
                c.jobs.clear();
                Ok(Some(()))
            })
            .unwrap();
        drop(claim);
        trees.insert(entry.id, tree);
        sample::push_wal(&repo, &[5, 6]).unwrap();
        Template { store: memory, trees }
    })
}

fn copy_of(store: &dyn Store) -> MemoryStore {
    let copy = MemoryStore::new();
    for name in objects(store) {
        copy.put_new(&name, &store.read(&name, u64::MAX).unwrap()).unwrap();
    }
    copy
}

fn fresh() -> Arc<dyn Store> {
    Arc::new(copy_of(&*template().store))
}

fn objects(store: &dyn Store) -> Vec<ObjectName> {
    let mut names = vec![];
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        names.push(stat.name);
        Ok(())
    };
    store.list("", &mut visit).unwrap();
    names
}

fn generations(store: &dyn Store) -> BTreeMap<u32, Vec<String>> {
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    // What is under no key of the ring: the ring itself, and the extractor, which has to be read by everybody.
    let sealed = |name: &str| !name.starts_with("keyring") && !name.starts_with("rescue/");
    for name in objects(store).into_iter().filter(|n| sealed(n.as_str())) {
        let mut header = [0; HEADER_BYTES];
        store.read_at(&name, 0, &mut header).unwrap();
        found.entry(generation_of(&header).unwrap()).or_default().push(name.to_string());
    }
    found
}

/// The segments of the sample do not continue each other, and one was refused.
fn is_of_the_sample(problem: &Problem) -> bool {
    problem.kind == ProblemKind::Broken || problem.object.contains("/conflicts/")
}

/// Each listed backup, its packs in places of others, every acknowledged segment, every small file.
fn everything_reads(store: &Arc<dyn Store>, place: &str) {
    let repo = open(store);
    let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
    for (id, tree) in &template().trees {
        let entry = catalog.backup(id).unwrap_or_else(|| panic!("{place}: {id} is not listed any more"));
        let read = sample::read_backup(&repo, entry).unwrap_or_else(|e| panic!("{place}: {id}: {e}"));
        assert!(read.1 == *tree, "{place}: {id} came back different");
    }
    let shared = names::pack(&cluster(), &backup_id(1), 1);
    pgark_repo::pack::read_whole(repo.store(), repo.keys(), &shared).unwrap_or_else(|e| panic!("{place}: {e}"));
    let wal = archive(&repo);
    let head = wal.head().unwrap();
    assert!([2, 3, 4, 5, 6].iter().all(|n| head.timeline(segment(*n).timeline).unwrap().contains(segment(*n).segment)));
    for span in head.timelines() {
        for n in span.ranges.iter().flat_map(|(a, b)| *a..=*b) {
            let read = sample::read_segment(&wal, &segment(n)).unwrap_or_else(|e| panic!("{place}: segment {n}: {e}"));
            assert!(read.1 == sample::wal_segment(&segment(n), n), "{place}: segment {n} came back different");
        }
    }
    assert_eq!(wal.side_file(&sample::history_file()).unwrap(), sample::HISTORY, "{place}");
    assert_eq!(wal.side_file(&sample::backup_history_file()).unwrap(), sample::BACKUP_HISTORY, "{place}");
    let mut partial = wal.open_object(&sample::partial_object()).unwrap_or_else(|e| panic!("{place}: {e}"));
    while partial.next().unwrap().is_some() {}
    let options = VerifyOptions { cluster: cluster(), only: None, depth: Depth::Quick, jobs: 2 };
    for problem in verify(&options, &repo, &on_day(0)).unwrap().problems {
        assert!(is_of_the_sample(&problem) || problem.object.contains("-mirror/"), "{place}: {problem:?}");
    }
}

fn reencrypt_as(repo: &Repository, grace_days: i64, ctx: &Ctx) -> Result<ReencryptReport, EngineError> {
    let grace = Duration::from_secs(u64::try_from(grace_days * DAY).unwrap());
    let options = ReencryptOptions { jobs: 2, grace };
    let plan = reencrypt::plan(repo, &options, ctx)?;
    reencrypt::run(repo, &options, &plan, ctx)
}

fn reencrypt_now(store: &Arc<dyn Store>) -> Result<ReencryptReport, EngineError> {
    reencrypt_as(&Repository::open(store.clone(), &unlock())?, 0, &on_day(0))
}

fn retire_now(store: &Arc<dyn Store>, mode: Mode) -> Result<Retired, EngineError> {
    let unlock = unlock();
    retire(store, &RetireOptions { unlock: &unlock, jobs: 2, grace: Duration::ZERO }, mode, &Ctx::silent())
}

/// What the old master key alone opens, whatever its owner makes of the headers.
fn opened_by_the_old_key(store: &dyn Store, old: &KeySet) -> Vec<String> {
    let mut opened = vec![];
    for seal in objects(store).into_iter().filter(|n| !n.as_str().starts_with("keyring")) {
        let mut header = [0; HEADER_BYTES];
        store.read_at(&seal, 0, &mut header).unwrap();
        let mut forged = header;
        forged[12..16].copy_from_slice(&1u32.to_le_bytes());
        let name = names::split_seal(&seal).map_or_else(|| seal.clone(), |(name, _)| name);
        let opens = |header: &[u8]| {
            KINDS.iter().any(|kind| [&seal, &name].iter().any(|n| old.open_object(header, *kind, n).is_ok()))
        };
        if opens(&header) || opens(&forged) {
            opened.push(seal.to_string());
        }
    }
    opened
}

fn old_keys(store: &Arc<dyn Store>) -> (Vec<(u32, pgark_repo::crypto::Key32)>, KeySet) {
    let ring = keyring::read(store, &unlock()).unwrap();
    let first = vec![ring.masters()[0].clone()];
    let content = pgark_repo::crypto::content_key(&first[0].1);
    (first.clone(), KeySet::from_masters(Algorithm::Aes256Gcm, &first, &content))
}

#[test]
fn everything_comes_under_the_newest_key_and_the_old_one_opens_nothing() {
    let store = fresh();
    let (old, old_set) = old_keys(&store);
    let before = opened_by_the_old_key(&*store, &old_set);
    assert!(before.len() > 15, "the old key opened {before:?}");
    everything_reads(&store, "before");
    let record = |store: &Arc<dyn Store>| {
        let repo = open(store);
        let entry = CatalogStore::new(&repo, &cluster()).read().unwrap().backups[0].clone();
        BackupRecord::load(&repo, &cluster(), &entry.id, &entry.record).unwrap().manifest
    };
    let print = record(&store);
    let refused = retire_now(&store, Mode::Run).unwrap_err();
    assert_eq!((refused.code(), refused.class()), ("E-KEY-IN-USE", pgark_engine::FailureClass::Refused));
    let plan = retire_now(&store, Mode::Plan).unwrap();
    assert_eq!((plan.generations, plan.proof.old_count() > 15), (vec![1], true));

    let planned = reencrypt::plan(&open(&store), &ReencryptOptions { jobs: 1, grace: Duration::ZERO }, &on_day(0));
    let planned = planned.unwrap();
    let report = reencrypt_now(&store).unwrap();
    assert_eq!(report.failed, vec![]);
    assert_eq!((report.sealed.objects, report.sealed.bytes), (planned.clusters[0].old.objects, planned.needed_bytes()));
    assert_eq!(
        (report.removed.objects, report.removed.bytes),
        (planned.clusters[0].old.objects, planned.clusters[0].old.bytes)
    );
    everything_reads(&store, "reencrypted");
    assert_eq!(generations(&*store).keys().copied().collect::<Vec<_>>(), [2], "{:?}", generations(&*store));
    assert_eq!(record(&store), print, "the books say the same as before");

    let done = retire_now(&store, Mode::Run).unwrap();
    assert_eq!((&done.generations[..], done.older_rings_gone, done.proof.old_count()), (&[1][..], true, 0));
    everything_reads(&store, "retired");
    assert_eq!(keys::list(&store, &unlock()).unwrap().older_generations, Vec::<u32>::new());
    assert_eq!(opened_by_the_old_key(&*store, &old_set), Vec::<String>::new());
    for ring in objects(&*store).iter().filter(|n| n.as_str().starts_with("keyring")) {
        let bytes = store.read(ring, 1 << 20).unwrap();
        assert!(Keyring::open_with_masters(&bytes, &old).is_err(), "{ring}");
        let ring = Keyring::open(&bytes, &unlock()).unwrap();
        assert!(ring.masters().iter().all(|m| m.1 != old[0].1), "a ring that still has the old key");
    }
    // Once more changes nothing, and a second generation goes the same way: from later seals to later ones.
    let nothing = reencrypt_now(&store).unwrap();
    assert_eq!((nothing.sealed.objects, nothing.removed.objects), (0, 0));
    rotate(&store);
    let third = reencrypt_now(&store).unwrap();
    assert!(third.sealed.objects > report.sealed.objects, "{third:?}");
    everything_reads(&store, "a third generation");
    assert_eq!(generations(&*store).keys().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(record(&store), print);
    assert_eq!(retire_now(&store, Mode::Run).unwrap().generations, [2]);
    everything_reads(&store, "two retired");
}

/// True when every point of a sweep is to be visited.
pub fn full_sweep() -> bool {
    std::env::var("PGARK_SWEEP").is_ok_and(|v| v == "full")
}

/// Every operation in a full sweep, otherwise so many spread over all.
fn visited(nth: u64, fault: usize) -> bool {
    full_sweep() || (nth + fault as u64 * 3).is_multiple_of(17) || nth < 4
}

#[test]
fn reencryption_and_retirement_can_be_interrupted_anywhere() {
    let faults = [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseReply, Fault::Fail, Fault::NoSpace];
    let both = |store: &Arc<dyn Store>| -> Result<(), EngineError> {
        reencrypt_now(store)?;
        retire_now(store, Mode::Run).map(drop)
    };
    for (number, fault) in faults.into_iter().enumerate() {
        let (mut injected, mut nth) = (0, 0);
        loop {
            nth += 1;
            if !visited(nth, number) {
                continue;
            }
            let place = format!("{fault:?} at operation {nth}, seed {SEED}");
            let inner = fresh();
            let faulty = Arc::new(FaultStore::new(inner.clone(), SEED));
            faulty.inject(Op::ALL, When::Nth(nth), fault);
            let store: Arc<dyn Store> = faulty.clone();
            let first = both(&store);
            if faulty.count(Op::ALL) < nth {
                first.unwrap_or_else(|e| panic!("{place}: failed without a fault: {e}"));
                break;
            }
            injected += 1;
            everything_reads(&inner, &place);
            faulty.heal();
            both(&store).unwrap_or_else(|e| panic!("{place}: the next run fails: {e}"));
            everything_reads(&inner, &place);
            assert_eq!(generations(&*inner).keys().copied().collect::<Vec<_>>(), [2], "{place}");
        }
        assert!(injected > 10, "{fault:?} was injected {injected} times");
        println!("reencrypt and retire: {fault:?} at {injected} of {} operations, 0 divergences", nth - 1);
    }
}

#[test]
fn older_seals_wait_for_the_grace_and_for_jobs_that_began_before() {
    let store = fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let restore = catalog.claim(JobKind::Restore, &backup_id(2), sample::at(0)).unwrap();
    let first = reencrypt_as(&repo, 1, &on_day(0)).unwrap();
    assert!(first.sealed.objects > 10 && first.removed.objects == 0, "{first:?}");
    assert!(first.waits_for[0].1.contains("grace"), "{first:?}");
    let planned = reencrypt::plan(&repo, &ReencryptOptions { jobs: 1, grace: Duration::ZERO }, &on_day(0)).unwrap();
    assert_eq!((planned.needed_bytes(), planned.clusters[0].superseded.objects), (0, first.sealed.objects));
    everything_reads(&store, "both seals");
    restore.renew(sample::at(3 * DAY)).unwrap();
    let second = reencrypt_as(&repo, 1, &on_day(3)).unwrap();
    assert_eq!((second.sealed.objects, second.removed.objects), (0, 0));
    assert!(second.waits_for[0].1.contains("restore"), "{second:?}");
    restore.release().unwrap();
    // One that began after everything was sealed anew reads the newer seals.
    let later = catalog.claim(JobKind::Restore, &backup_id(2), sample::at(3 * DAY)).unwrap();
    let third = reencrypt_as(&repo, 1, &on_day(3)).unwrap();
    assert_eq!((third.sealed.objects, third.removed.objects), (0, first.sealed.objects));
    later.release().unwrap();
    everything_reads(&store, "one seal");
}

#[test]
fn what_is_archived_and_backed_up_meanwhile_is_not_lost() {
    for nth in [1, 8, 20, 45, 80, 120, 160, 200, 250, 300, 340] {
        let store = fresh();
        let writer = open(&store);
        let meanwhile = move || {
            sample::push_wal(&writer, &[7]).unwrap();
            let catalog = CatalogStore::new(&writer, &cluster());
            let claim = catalog.claim(JobKind::Backup, &backup_id(9), sample::at(0)).unwrap();
            let (entry, _) = sample::write_backup(&writer, &backup_id(9)).unwrap();
            claim.commit_backup(&entry).unwrap();
        };
        let pausing = Arc::new(PausingStore::new(store.clone(), nth, meanwhile));
        let slow: Arc<dyn Store> = pausing.clone();
        let repo = Repository::open(slow.clone(), &unlock()).unwrap();
        let report = reencrypt_as(&repo, 0, &on_day(0)).unwrap();
        assert!(pausing.operations() > nth, "{} operations", pausing.operations());
        assert_eq!(report.failed, vec![], "{nth}");
        everything_reads(&store, &format!("{nth}"));
        reencrypt_now(&store).unwrap();
        retire_now(&store, Mode::Run).unwrap();
        everything_reads(&store, &format!("{nth}, retired"));
        let repo = open(&store);
        sample::read_segment(&archive(&repo), &segment(7)).unwrap();
        let listed = CatalogStore::new(&repo, &cluster()).read().unwrap();
        sample::read_backup(&repo, listed.backup(&backup_id(9)).unwrap()).unwrap();
    }
}

#[test]
fn one_at_a_time_and_nothing_is_deleted_meanwhile() {
    let store = fresh();
    let repo = open(&store);
    let catalog = CatalogStore::new(&repo, &cluster());
    let deletion = catalog.claim(JobKind::Delete, &backup_id(2), sample::at(0)).unwrap();
    assert_eq!(reencrypt_now(&store).unwrap_err().code(), "E-LOCKED");
    deletion.release().unwrap();
    let sealing = catalog.claim_reencryption(sample::at(0)).unwrap();
    assert!(matches!(catalog.claim_expiry(sample::at(0)), Err(RepoError::Busy { .. })));
    assert!(matches!(catalog.claim(JobKind::Delete, &backup_id(2), sample::at(0)), Err(RepoError::Busy { .. })));
    assert_eq!(retire_now(&store, Mode::Run).unwrap_err().code(), "E-KEY-IN-USE");
    let backup = catalog.claim(JobKind::Backup, &backup_id(9), sample::at(0)).unwrap();
    backup.abandon(false).unwrap();
    sealing.release().unwrap();
    // A backup that runs may not know of the new key yet, nor does a command that began just before the rotation.
    reencrypt_now(&store).unwrap();
    let now = jiff::Timestamp::now();
    let backup = catalog.claim(JobKind::Backup, &backup_id(9), now).unwrap();
    assert_eq!(retire_now(&store, Mode::Run).unwrap_err().code(), "E-LOCKED");
    backup.abandon(false).unwrap();
    let unlock = unlock();
    let young = RetireOptions { unlock: &unlock, jobs: 1, grace: Duration::from_secs(3600) };
    assert_eq!(retire(&store, &young, Mode::Run, &Ctx::silent()).unwrap_err().code(), "E-KEY-YOUNG");
    retire_now(&store, Mode::Run).unwrap();
}

fn flip(store: &dyn Store, name: &ObjectName) {
    let mut bytes = store.read(name, u64::MAX).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.delete(name).unwrap();
    store.put_new(name, &bytes).unwrap();
}

#[test]
fn what_is_damaged_is_told_and_its_key_stays() {
    let store = fresh();
    let pack = names::pack(&cluster(), &backup_id(2), 1);
    flip(&*store, &pack);
    let report = reencrypt_now(&store).unwrap();
    assert_eq!(report.failed.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), [pack.as_str()]);
    assert_eq!(generations(&*store)[&1], [pack.as_str()]);
    let refused = retire_now(&store, Mode::Run).unwrap_err();
    assert_eq!(refused.code(), "E-KEY-IN-USE");
    assert!(refused.to_string().contains(pack.as_str()), "{refused}");
}

#[test]
fn a_newer_seal_that_does_not_read_back_never_costs_the_older_one() {
    let store = fresh();
    reencrypt_as(&open(&store), 1, &on_day(0)).unwrap();
    let pack = names::pack(&cluster(), &backup_id(2), 1);
    let manifest = names::manifest(&cluster(), &backup_id(2));
    let wal = archive(&open(&store)).place().segment(&segment(3), segment_size(), 0).unwrap();
    for name in [&pack, &manifest, &wal] {
        flip(&*store, &names::later_seal(name, 2).unwrap());
    }
    let report = reencrypt_as(&open(&store), 1, &on_day(3)).unwrap();
    let failed: BTreeSet<&str> = report.failed.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(failed, BTreeSet::from([pack.as_str(), manifest.as_str(), wal.as_str()]));
    everything_reads(&store, "the older ones are still there");
    assert_eq!(reencrypt_as(&open(&store), 1, &on_day(4)).unwrap().sealed.objects, 3);
    assert_eq!(reencrypt_as(&open(&store), 1, &on_day(8)).unwrap().removed.objects, 3);
    everything_reads(&store, "sealed anew at last");
    retire_now(&store, Mode::Run).unwrap();
}

#[test]
fn a_seal_is_believed_under_its_own_name_alone() {
    let store = fresh();
    reencrypt_as(&open(&store), 1, &on_day(0)).unwrap();
    let repo = open(&store);
    let print = |n: u32| {
        let name = names::later_seal(&names::pack(&cluster(), &backup_id(2), n), 2).unwrap();
        (name.clone(), seals::print_of(repo.bare_store(), repo.keys(), &name))
    };
    let (first, of_first) = print(0);
    let (second, of_second) = print(1);
    let bytes = store.read(&first, u64::MAX).unwrap();
    assert_ne!(of_first.unwrap(), of_second.unwrap());
    let instead = |name: &ObjectName, bytes: &[u8]| {
        store.delete(name).unwrap();
        store.put_new(name, bytes).unwrap();
    };
    instead(&second, &bytes);
    assert!(print(1).1.unwrap_err().is_damage(), "another pack under this name");
    // What says of which object it was made is sealed too, and so are its length and each byte before it.
    for cut in [1, 40, seals::TAIL_BYTES, seals::TAIL_BYTES + 1] {
        instead(&first, &bytes[..bytes.len() - cut]);
        assert!(print(0).1.unwrap_err().is_damage(), "cut by {cut}");
    }
    for at in bytes.len() - seals::TAIL_BYTES..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        instead(&first, &changed);
        assert!(print(0).1.unwrap_err().is_damage(), "byte {at}");
    }
    instead(&first, &[]);
    assert!(print(0).1.unwrap_err().is_damage(), "empty");
}

#[test]
fn a_name_is_taken_as_long_as_one_seal_of_it_is_there() {
    let store = fresh();
    reencrypt_now(&store).unwrap();
    let repo = open(&store);
    let object = archive(&repo).place().segment(&segment(3), segment_size(), 0).unwrap();
    assert!(store.stat(&object).unwrap_err().is_not_found() && repo.store().stat(&object).is_ok());
    assert!(repo.store().put_new(&object, b"other bytes").unwrap_err().is_already_exists());
    let mut writer = repo.store().create(&object).unwrap();
    writer.write(b"other bytes").unwrap();
    assert!(writer.finish().unwrap_err().is_already_exists());
    // The same again is success, as ever; other content is refused.
    sample::push_wal(&repo, &[3]).unwrap();
    let other = sample::wal_segment(&segment(3), 99);
    let index = sample::index_of(&segment(3), &other);
    let refused = archive(&repo).push_segment(&index, &Changes::default(), &mut SegmentData::Memory(&other));
    assert!(matches!(refused, Err(RepoError::Conflict { .. })));
    let history = archive(&repo).push_side_file(&sample::history_file(), b"another");
    assert!(matches!(history, Err(RepoError::Conflict { .. })));
    repo.store().delete(&object).unwrap();
    assert!(repo.store().stat(&object).unwrap_err().is_not_found());
    assert!(repo.store().delete(&object).unwrap_err().is_not_found());
    // A deleted backup goes with all its seals.
    let catalog = CatalogStore::new(&repo, &cluster());
    let claim = catalog.claim(JobKind::Delete, &backup_id(2), sample::at(0)).unwrap();
    claim.unlist().unwrap();
    claim.release().unwrap();
    (0..2).for_each(|_| drop(catalog.sweep().unwrap()));
    let left: Vec<ObjectName> =
        objects(&*store).into_iter().filter(|n| n.as_str().contains(backup_id(2).as_str())).collect();
    assert_eq!(left, vec![]);
}

#[test]
fn a_process_that_opened_the_repository_long_ago_reads_and_writes_on() {
    let store = fresh();
    // Two rotations behind at the end: it holds generations 1 and 2.
    let long_ago = open(&store);
    rotate(&store);
    reencrypt_now(&store).unwrap();
    let pack = names::pack(&cluster(), &backup_id(2), 1);
    assert!(store.stat(&pack).unwrap_err().is_not_found(), "its seal of generation 3 is all there is");
    pgark_repo::pack::read_whole(long_ago.store(), long_ago.keys(), &pack).unwrap();
    retire_now(&store, Mode::Run).unwrap();
    sample::push_wal(&long_ago, &[7]).unwrap();
    assert_eq!(long_ago.keys().generation(), 3);
    everything_reads(&store, "long ago");
}

/// A directory that goes away with its owner.
pub struct Directory(std::path::PathBuf);

impl Directory {
    pub fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pgark-reencrypt-{label}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(LocalStore::create(&self.0).unwrap())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Whatever stays is in the system's directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn copies_are_sealed_anew_by_themselves_and_still_complete_each_other() {
    let (second, third) = (Directory::new("second"), Directory::new("third"));
    let (from, to) = (fresh(), second.store());
    let options = || ReplicateOptions { cluster: cluster(), which: Which::Missing, jobs: 2 };
    let replicate = |from: &Repository, to: &Repository| {
        let plan = replicate::plan(from, Some(to), &options())?;
        let report = replicate::run(from, to, &options(), &plan, &on_day(0))?;
        assert_eq!(report.failed, vec![]);
        Ok::<_, EngineError>(report)
    };
    // Backup 1's pack belongs to nobody that the copy would get; the sample's manifests name their own packs alone.
    let source = open(&from);
    let (copy, _) = source.open_copy(to.clone()).unwrap();
    replicate(&source, &copy).unwrap();
    let whole = |store: &Arc<dyn Store>, place: &str| {
        let repo = open(store);
        let options = VerifyOptions { cluster: cluster(), only: None, depth: Depth::Full, jobs: 2 };
        let found = verify(&options, &repo, &on_day(0)).unwrap().problems;
        assert!(found.iter().all(is_of_the_sample), "{place}: {found:?}");
    };
    whole(&to, "a copy");
    reencrypt_now(&from).unwrap();
    whole(&from, "sealed anew");
    // Both have the same backups, whatever seals they are under.
    assert!(replicate::plan(&open(&from), Some(&open(&to)), &options()).unwrap().is_empty());
    // What the copy has lost comes as the source has it.
    let pack = names::pack(&cluster(), &backup_id(2), 1);
    to.delete(&pack).unwrap();
    let mended = replicate(&open(&from), &open(&to)).unwrap();
    assert_eq!(mended.mended, [backup_id(2)]);
    assert!(to.stat(&names::later_seal(&pack, 2).unwrap()).is_ok());
    whole(&to, "mended");
    // A new copy of what was sealed anew.
    let third = third.store();
    let (other, _) = open(&from).open_copy(third.clone()).unwrap();
    replicate(&open(&from), &other).unwrap();
    whole(&third, "a copy of later seals");
    assert_eq!(generations(&*third).keys().copied().collect::<Vec<_>>(), [2]);
    // Who has given the old key up cannot read what is still under it.
    retire_now(&from, Mode::Run).unwrap();
    assert_eq!(replicate::plan(&open(&to), Some(&open(&from)), &options()).err().unwrap().code(), "E-REPLICATE-KEYS");
    assert!(replicate::plan(&open(&from), Some(&open(&to)), &options()).unwrap().is_empty());
    let apart = |from, to| lacks(&open(from), &open(to), &cluster()).unwrap().keys_apart;
    assert!(apart(&to, &from) && !apart(&from, &to));
    reencrypt_now(&to).unwrap();
    retire_now(&to, Mode::Run).unwrap();
    assert!(replicate::plan(&open(&to), Some(&open(&from)), &options()).unwrap().is_empty());
    whole(&to, "retired");
}

#[test]
fn a_copy_that_missed_the_rotation_keeps_the_ring_that_opens_it() {
    let first: Arc<dyn Store> = Arc::new(MemoryStore::new());
    sample::fill(&sample::init(first.clone(), &secrets()), 1).unwrap();
    let behind: Arc<dyn Store> = Arc::new(copy_of(&*first));
    rotate(&first);
    reencrypt_now(&first).unwrap();
    retire_now(&first, Mode::Run).unwrap();
    let before = Repository::ring_bytes(&behind).unwrap();
    let refused = open(&first).open_copy(behind.clone()).err().unwrap();
    assert!(matches!(&refused, RepoError::WrongKey { why } if why.contains("given up")), "{refused}");
    assert!(Repository::ring_bytes(&behind).unwrap() == before);
    // Behind by one, with a ring that has what was given up.
    let store = fresh();
    let behind: Arc<dyn Store> = Arc::new(copy_of(&*store));
    reencrypt_now(&store).unwrap();
    retire_now(&store, Mode::Run).unwrap();
    rotate(&store);
    let refused = open(&store).open_copy(behind.clone()).err().unwrap();
    assert!(matches!(&refused, RepoError::WrongKey { why } if why.contains("given up")), "{refused}");
    assert_eq!(keys::list(&behind, &unlock()).unwrap().older_generations, [1]);
    everything_reads(&behind, "behind");
}

#[test]
fn it_says_how_much_room_it_needs_and_does_not_begin_without() {
    let store = fresh();
    let (repo, options) = (open(&store), ReencryptOptions { jobs: 1, grace: Duration::ZERO });
    let mut plan = reencrypt::plan(&repo, &options, &on_day(0)).unwrap();
    assert!(plan.needed_bytes() > 10_000, "{plan:?}");
    plan.free_bytes = Some(plan.needed_bytes());
    let before = objects(&*store);
    assert_eq!(reencrypt::run(&repo, &options, &plan, &on_day(0)).unwrap_err().code(), "E-REENCRYPT-SPACE");
    assert_eq!(objects(&*store), before);
    assert_eq!(prove(&repo, 1, &on_day(0)).unwrap().old_count(), generations(&*store)[&1].len() as u64);
}

#[test]
fn a_repository_without_encryption_has_nothing_to_seal() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let new = sample::new_keys(Algorithm::None, None, "");
    let repo = sample::init(store.clone(), &new);
    let plan = reencrypt::plan(&repo, &ReencryptOptions { jobs: 1, grace: Duration::ZERO }, &on_day(0));
    assert_eq!(plan.err().unwrap().code(), "E-KEY-UNENCRYPTED");
    let options = RetireOptions { unlock: &new.unlock, jobs: 1, grace: Duration::ZERO };
    assert_eq!(retire(&store, &options, Mode::Run, &Ctx::silent()).unwrap_err().code(), "E-KEY-UNENCRYPTED");
}

pub fn other_secrets() -> NewKeys {
    static IDENTITY: OnceLock<String> = OnceLock::new();
    let identity = IDENTITY.get_or_init(|| {
        use age::secrecy::ExposeSecret;
        age::x25519::Identity::generate().to_string().expose_secret().to_owned()
    });
    sample::new_keys(Algorithm::Aes256Gcm, None, identity)
}

#[test]
fn a_copy_can_have_keys_of_its_own() {
    let directory = Directory::new("rekeyed");
    let (from, to) = (fresh(), directory.store());
    let other = other_secrets();
    let options = || ReplicateOptions { cluster: cluster(), which: Which::Missing, jobs: 2 };
    // Each a day later, when the claims of what was cut off are dead.
    let day = std::cell::Cell::new(0);
    let run = |from: &Repository, to: &Repository| -> Result<u64, EngineError> {
        day.set(day.get() + 1);
        let plan = replicate::plan(from, Some(to), &options())?;
        let report = replicate::run(from, to, &options(), &plan, &on_day(day.get()))?;
        assert_eq!(report.failed, vec![]);
        Ok(report.objects)
    };
    let open_other = || Repository::open(to.clone(), &other.unlock).unwrap();
    let whole = |place: &str| {
        let options = VerifyOptions { cluster: cluster(), only: None, depth: Depth::Full, jobs: 2 };
        let found = verify(&options, &open_other(), &on_day(0)).unwrap().problems;
        assert!(found.iter().all(is_of_the_sample), "{place}: {found:?}");
        let listed = CatalogStore::new(&open_other(), &cluster()).read().unwrap();
        for (id, tree) in &template().trees {
            assert!(
                sample::read_backup(&open_other(), listed.backup(id).unwrap()).unwrap().1 == *tree,
                "{place}: {id}"
            );
        }
    };
    let source = open(&from);
    assert!(source.open_rekeyed(to.clone(), &other, Rekeyed::Leave).unwrap().is_none());
    // Cut off at several places, it goes on where it was.
    for nth in [3, 9, 15, 22, 40] {
        let faulty = Arc::new(FaultStore::new(to.clone(), SEED));
        faulty.inject(Op::ALL, When::Nth(nth), Fault::CrashAfter);
        let store: Arc<dyn Store> = faulty.clone();
        if let Ok(Some(copy)) = source.open_rekeyed(store, &other, Rekeyed::Make) {
            assert!(run(&source, &copy).is_err(), "{nth}");
        }
        assert!(faulty.crashed(), "{nth}");
    }
    let copy = source.open_rekeyed(to.clone(), &other, Rekeyed::Make).unwrap().unwrap();
    run(&source, &copy).unwrap();
    whole("rekeyed");
    assert!(replicate::plan(&source, Some(&copy), &options()).unwrap().is_empty());

    // Neither the secrets nor the keys of the source open anything there, nor the other way round.
    assert!(matches!(Repository::open(to.clone(), &unlock()), Err(RepoError::WrongKey { .. })));
    assert!(matches!(Repository::open(from.clone(), &other.unlock), Err(RepoError::WrongKey { .. })));
    let masters = keyring::read(&from, &unlock()).unwrap().masters().to_vec();
    let content = pgark_repo::crypto::content_key(&masters[0].1);
    let of_source = KeySet::from_masters(Algorithm::Aes256Gcm, &masters, &content);
    assert_eq!(opened_by_the_old_key(&*to, &of_source), Vec::<String>::new());
    assert!(copy.keys().shares_content_ids(source.keys()) && copy.id() != source.id());

    // New backups and WAL follow, also when either has sealed its own anew since.
    reencrypt_now(&from).unwrap();
    retire_now(&from, Mode::Run).unwrap();
    sample::push_wal(&open(&from), &[7]).unwrap();
    assert_eq!(run(&open(&from), &open_other()).unwrap(), 1);
    let running_restores = RunningRestores::Allow;
    let rotation = RotateOptions { unlock: &other.unlock, passphrases: &[], drop: &[], running_restores };
    keys::rotate(&to, &rotation, Mode::Run, &on_day(0)).unwrap();
    reencrypt_as(&open_other(), 0, &on_day(20)).unwrap();
    let retiring = RetireOptions { unlock: &other.unlock, jobs: 1, grace: Duration::ZERO };
    assert_eq!(retire(&to, &retiring, Mode::Run, &Ctx::silent()).unwrap().generations, [2]);
    whole("rotated");
    assert!(replicate::plan(&open(&from), Some(&open_other()), &options()).unwrap().is_empty());
    // What it lost comes under its own key.
    let pack = names::pack(&cluster(), &backup_id(2), 1);
    open_other().store().delete(&pack).unwrap();
    run(&open(&from), &open_other()).unwrap();
    whole("mended");
    assert_eq!(opened_by_the_old_key(&*to, &of_source), Vec::<String>::new());

    // A repository that is no copy at all.
    let stranger = Directory::new("stranger");
    sample::init(stranger.store(), &other);
    let refused = open(&from).open_rekeyed(stranger.store(), &other, Rekeyed::Make).err().unwrap();
    assert!(matches!(refused, RepoError::WrongKey { .. }), "{refused}");
    let unrelated = Repository::open(stranger.store(), &other.unlock).unwrap();
    assert_eq!(replicate::plan(&open(&from), Some(&unrelated), &options()).err().unwrap().code(), "E-REPLICATE-OTHER");
}

#[test]
fn a_key_that_something_came_under_meanwhile_is_put_back() {
    let sealed = fresh();
    let (_, old) = old_keys(&sealed);
    reencrypt_now(&sealed).unwrap();
    let name = archive(&open(&sealed)).place().history(sample::timeline(9));
    // Whoever writes it began before the rotation and never met the new key.
    let late = pgark_repo::stream::seal_bytes(&old, ObjectKind::WalSideFile, &name, b"late").unwrap();
    let (mut put_back, mut refused_first, mut nth) = (0, 0, 0);
    loop {
        nth += 1;
        let store: Arc<dyn Store> = Arc::new(copy_of(&*sealed));
        let (inner, late, object) = (store.clone(), late.clone(), name.clone());
        let pausing = Arc::new(PausingStore::new(store.clone(), nth, move || inner.put_new(&object, &late).unwrap()));
        let slow: Arc<dyn Store> = pausing.clone();
        let outcome = retire_now(&slow, Mode::Run);
        if pausing.operations() < nth {
            outcome.unwrap();
            break;
        }
        let generations = keys::list(&store, &unlock()).unwrap().older_generations;
        match outcome {
            Err(e) => {
                assert_eq!((e.code(), &generations[..]), ("E-KEY-IN-USE", &[1][..]), "{nth}");
                assert_eq!(archive(&open(&store)).history(sample::timeline(9)).unwrap(), b"late", "{nth}");
                if e.to_string().contains("put back") {
                    put_back += 1
                } else {
                    refused_first += 1
                }
                // Sealed anew, it is in nobody's way.
                reencrypt_now(&store).unwrap();
                retire_now(&store, Mode::Run).unwrap();
                assert_eq!(archive(&open(&store)).history(sample::timeline(9)).unwrap(), b"late", "{nth}");
            }
            // It came after the last look: nobody was told that it is stored, and nothing else is hurt.
            Ok(_) => {
                assert!(generations.is_empty(), "{nth}");
                store.delete(&name).unwrap();
            }
        }
        everything_reads(&store, &format!("{nth}"));
    }
    assert!(put_back > 10 && refused_first > 10, "{put_back} put back, {refused_first} refused before");
}
