//! `verify --repair`: what a verification found missing or damaged in one repository, replaced by the same bytes, made again
//! from its parity or taken from another copy of the repository. Parity that is missing or damaged is written anew.
//!
//! Invariant: a damaged object is removed only when the bytes that replace it were read as a whole and found to be exactly
//! those that were written once, and when they lie durably elsewhere. What cannot be replaced stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use pgark_pg::names::WalFileName;
use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, JobKind};
use pgark_repo::crypto::ObjectKind;
use pgark_repo::limits::SIDE_FILE_BYTES_MAX;
use pgark_repo::manifest::packs_of;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::parity;
use pgark_repo::record::{Record, manifest_reader};
use pgark_repo::seals::{TAIL_BYTES, origin_of_bytes};
use pgark_repo::store::ObjectName;
use pgark_repo::stream::{Fingerprint, open_bytes};
use pgark_repo::wal::WalArchive;

use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::replicate::objects::read_exactly;
use crate::several::Member;
use crate::verify::{Problem, ProblemKind, VerifyReport};

/// Larger objects are not replaced: they would have to be held in memory.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// Objects that are whole again.
    pub repaired: Vec<String>,
    /// What could not be repaired, and why.
    pub left: Vec<(String, String)>,
    /// Objects that have parity now.
    pub protected: Vec<ObjectName>,
    /// Backups that were affected and should be verified again.
    pub backups: BTreeSet<BackupId>,
}

impl RepairReport {
    /// There was neither parity nor another repository to take anything from.
    pub fn had_no_source(&self) -> bool {
        let nothing_done = self.repaired.is_empty() && self.protected.is_empty();
        nothing_done && self.left.iter().all(|(_, why)| why == NO_SOURCE)
    }
}

/// Replaces what `found` says is missing or damaged in `repo`.
pub fn repair(
    repo: &Repository,
    others: &[Member],
    cluster: &ClusterName,
    found: &VerifyReport,
    ctx: &Ctx,
) -> Result<RepairReport> {
    crate::error::refuse_append_only(repo)?;
    let catalog = CatalogStore::new(repo, cluster);
    let listed = catalog.read()?;
    let sources = sources(repo, others);
    let expected = expected(&sources, cluster, &listed);
    let known = Known { cluster, listed: &listed, expected: &expected };
    let mut report = RepairReport::default();
    for problem in found.problems.iter().filter(|p| matches!(p.kind, ProblemKind::Missing | ProblemKind::Damaged)) {
        ctx.check_cancelled()?;
        // Nobody may delete what is being mended.
        let mut pins = vec![];
        for id in &problem.backups {
            let pin = catalog.claim(JobKind::Restore, id, ctx.now())?;
            pins.push((KeptClaim::new(pin.clone(), ctx), pin));
        }
        let outcome = one(repo, &sources, &known, problem);
        for (kept, pin) in pins {
            drop(kept);
            if let Err(e) = pin.release() {
                tracing::warn!(%e, "the claim ends by itself");
            }
        }
        match outcome {
            Ok(from) => {
                tracing::info!(object = problem.object, from, "repaired");
                report.repaired.push(problem.object.clone());
                report.backups.extend(problem.backups.iter().cloned());
            }
            Err(why) => report.left.push((problem.object.clone(), why)),
        }
    }
    remove_leftovers(repo, found, &mut report);
    for name in &found.parity_missing {
        ctx.check_cancelled()?;
        match write_parity(repo, name) {
            Ok(()) => report.protected.push(name.clone()),
            Err(why) => report.left.push((names::parity(name).map_or(name.to_string(), |p| p.to_string()), why)),
        }
    }
    Ok(report)
}

/// Where right bytes may come from, in the order in which they are asked.
fn sources(repo: &Repository, others: &[Member]) -> Vec<Member> {
    let parity = Member { name: PARITY.into(), repo: repo.healing(), required: false };
    std::iter::once(parity).chain(others.iter().cloned()).collect()
}

const NO_SOURCE: &str = "it has no parity, and there is no other repository";

/// Of the source that needs no other repository.
const PARITY: &str = "its parity";

/// What the verified bytes give. An object that is gone meanwhile needs none.
fn write_parity(repo: &Repository, name: &ObjectName) -> std::result::Result<(), String> {
    let store = &**repo.bare_store();
    let percent = store.parity().ok_or("no parity is configured for this repository")?;
    parity::protect(store, name, percent).map_err(|e| e.to_string())
}

/// Healed bytes that an interrupted repair left beside objects that are whole.
fn remove_leftovers(repo: &Repository, found: &VerifyReport, report: &mut RepairReport) {
    for problem in found.problems.iter().filter(|p| p.kind == ProblemKind::Unexpected) {
        let Some(_) = names::healed_from(&problem.object) else { continue };
        let principal = names::principal(&problem.object);
        let damaged = found.problems.iter().any(|p| p.object == principal);
        if damaged && !report.repaired.iter().any(|object| object == principal) {
            continue;
        }
        let removed = ObjectName::parse(&problem.object).and_then(|name| repo.store().delete(&name));
        match removed {
            Ok(()) => report.repaired.push(problem.object.clone()),
            // The repair of the object has just taken it away.
            Err(e) if e.is_not_found() => report.repaired.push(problem.object.clone()),
            Err(e) => report.left.push((problem.object.clone(), e.to_string())),
        }
    }
}

/// What the repository's books say of right bytes.
struct Known<'a> {
    cluster: &'a ClusterName,
    listed: &'a Catalog,
    expected: &'a BTreeMap<ObjectName, Fingerprint>,
}

/// What packs, manifests and records of listed backups must be; as far as one of the repositories can tell.
fn expected(sources: &[Member], cluster: &ClusterName, listed: &Catalog) -> BTreeMap<ObjectName, Fingerprint> {
    let mut all = BTreeMap::new();
    for entry in &listed.backups {
        all.insert(names::record(cluster, &entry.id), entry.record.clone());
        if let Some((manifest, packs)) = sources.iter().find_map(|m| read_books(&m.repo, cluster, entry).ok()) {
            all.insert(names::manifest(cluster, &entry.id), manifest);
            all.extend(packs);
        }
    }
    all
}

type Books = (Fingerprint, Vec<(ObjectName, Fingerprint)>);

/// By the fingerprints in the catalog of the repository that is mended, whichever repository the books are read from.
fn read_books(repo: &Repository, cluster: &ClusterName, entry: &BackupEntry) -> Result<Books> {
    let record = Record::load(repo, cluster, &entry.id, &entry.record)?;
    let (uses, print) = packs_of(manifest_reader(repo, cluster, &entry.id)?)?;
    if print != *record.manifest() {
        return Err(RepoError::corrupt(names::manifest(cluster, &entry.id), "not what was written").into());
    }
    let packs = uses.into_iter().map(|u| (names::pack(cluster, &u.id.backup, u.id.number), u.fingerprint));
    Ok((print, packs.collect()))
}

/// Returns where the bytes came from.
fn one(
    repo: &Repository,
    sources: &[Member],
    known: &Known<'_>,
    problem: &Problem,
) -> std::result::Result<String, String> {
    let name = ObjectName::parse(&problem.object).map_err(|_| "it is no single object".to_owned())?;
    if let Some(protected) = names::protected_by(name.as_str()) {
        let protected = ObjectName::parse(protected).map_err(|e| e.to_string())?;
        return write_parity(repo, &protected).map(|()| "the object that it protects".to_owned());
    }
    let mut why = vec![];
    for seal in seals_of(repo, &name) {
        // An interrupted repair has got so far.
        match complete(repo, &name, &seal, known) {
            Some(Ok(())) => return Ok("an interrupted repair".to_owned()),
            Some(Err(e)) => why.push(e.to_string()),
            None => {}
        }
    }
    for source in sources {
        let only_place = source.name == PARITY;
        if only_place {
            let heals = source.repo.store().heal(&name);
            let said = source.repo.store().notices();
            if !heals {
                why.extend(said);
                continue;
            }
        }
        let replaced = whole(&source.repo, &name, known).and_then(|(seal, bytes)| match only_place {
            true => heal(repo, &name, &seal, &bytes),
            false => replace(repo, &name, &seal, &bytes),
        });
        match replaced {
            Ok(()) => return Ok(source.name.clone()),
            Err(e) => why.push(format!("{}: {e}", source.name)),
        }
    }
    Err(if why.is_empty() { NO_SOURCE.to_owned() } else { why.join("; ") })
}

/// The names that an object may lie under, the newest seal first.
fn seals_of(repo: &Repository, name: &ObjectName) -> Vec<ObjectName> {
    let generations = repo.keys().generations().into_iter().rev().filter(|g| *g > 1);
    let later = generations.filter_map(|g| names::later_seal(name, g).ok());
    later.chain([name.clone()]).collect()
}

/// Puts in place what an interrupted repair has healed of this seal; None where there is no such thing.
fn complete(repo: &Repository, name: &ObjectName, seal: &ObjectName, known: &Known<'_>) -> Option<Result<()>> {
    let beside = names::healed(seal).ok()?;
    let bytes = repo.bare_store().read(&beside, OBJECT_BYTES_MAX).ok()?;
    match known.expected.get(name) {
        Some(print) => (origin_of_bytes(repo.keys(), seal, &bytes).ok()? == *print).then_some(())?,
        None => authenticate_wal(repo, name, seal, &bytes, known).ok()?,
    }
    let removed = |()| Ok(repo.bare_store().delete(&beside).map_err(RepoError::from)?);
    Some(replace(repo, name, seal, &bytes).and_then(removed))
}

/// The bytes of an object, authenticated as a whole, and the name under which they belong: that of one of its seals.
fn whole(from: &Repository, name: &ObjectName, known: &Known<'_>) -> Result<(ObjectName, Vec<u8>)> {
    if let Some(print) = known.expected.get(name) {
        if print.size > OBJECT_BYTES_MAX {
            return Err(not_repairable("it is too large to be held in memory"));
        }
        return read_exactly(from, name, print);
    }
    let seal = from.store().find(name).map_err(RepoError::from)?.name;
    let bytes = from.bare_store().read(&seal, OBJECT_BYTES_MAX).map_err(RepoError::from)?;
    authenticate_wal(from, name, &seal, &bytes, known)?;
    Ok((seal, bytes))
}

/// A file of the WAL archive has no fingerprint elsewhere: it is authenticated by itself, as a whole, and under its own name.
fn authenticate_wal(
    repo: &Repository,
    name: &ObjectName,
    seal: &ObjectName,
    bytes: &[u8],
    known: &Known<'_>,
) -> Result<()> {
    origin_of_bytes(repo.keys(), seal, bytes)?;
    let bytes = if seal == name { bytes } else { bytes.split_last_chunk::<TAIL_BYTES>().map_or(bytes, |(b, _)| b) };
    for lineage in &known.listed.lineages {
        let archive = WalArchive::new(repo, known.cluster, lineage.system_id);
        if !name.as_str().starts_with(&format!("{}/", archive.place().dir())) {
            continue;
        }
        let (kind, max) = (ObjectKind::WalSideFile, SIDE_FILE_BYTES_MAX);
        let segment = names::segment_copy(name.basename(), lineage.segment_size).map(|(segment, _)| segment);
        match WalFileName::parse(names::without_copy(name.basename())) {
            Ok(WalFileName::History(_) | WalFileName::BackupHistory { .. }) => {
                open_bytes(repo.keys(), kind, name, bytes.to_vec(), max)?;
            }
            Ok(WalFileName::Segment(_) | WalFileName::Partial(_)) => {
                let mut reader = archive.open_bytes(name, bytes.to_vec())?;
                if segment.is_some_and(|segment| reader.index.segment_name() != segment) {
                    return Err(RepoError::corrupt(name, "the index is of another segment").into());
                }
                while reader.next()?.is_some() {}
            }
            Err(_) => break,
        }
        return Ok(());
    }
    Err(not_repairable("it is neither of a backup nor of the wal archive"))
}

fn not_repairable(why: &str) -> EngineError {
    EngineError::failed("E-REPAIR", why, "")
}

/// No other copy of the bytes exists than what is damaged: they must lie durably beside it before it goes.
fn heal(repo: &Repository, name: &ObjectName, seal: &ObjectName, bytes: &[u8]) -> Result<()> {
    let beside = names::healed(seal).map_err(RepoError::from)?;
    let store = repo.bare_store();
    let lies_there = || store.read(&beside, bytes.len() as u64).is_ok_and(|there| there == bytes);
    if !lies_there() {
        match store.delete(&beside) {
            Ok(()) => {}
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(RepoError::from(e).into()),
        }
        store.put_new(&beside, bytes).map_err(RepoError::from)?;
        if !lies_there() {
            return Err(RepoError::corrupt(&beside, "it reads differently from what was written").into());
        }
    }
    replace(repo, name, seal, bytes)?;
    Ok(store.delete(&beside).map_err(RepoError::from)?)
}

/// The bytes are in memory and lie elsewhere: between the removal and the creation nothing else is needed.
fn replace(repo: &Repository, name: &ObjectName, seal: &ObjectName, bytes: &[u8]) -> Result<()> {
    let store = repo.store();
    match store.delete(name) {
        Ok(()) => {}
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(RepoError::from(e).into()),
    }
    store.put_new(seal, bytes).map_err(RepoError::from)?;
    let stored = repo.bare_store().read(seal, bytes.len() as u64).map_err(RepoError::from)?;
    if stored == bytes {
        Ok(())
    } else {
        Err(RepoError::corrupt(name, "it reads differently from what was written").into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgark_repo::crypto::KeySet;
    use pgark_repo::parity::{ParityStore, Percent};
    use pgark_repo::store::fault::{Fault, FaultStore, Op, When};
    use pgark_repo::store::{MemoryStore, Store};

    use super::*;

    /// Wherever a repair from parity is interrupted, the bytes lie somewhere: healed, or as damaged as they were.
    #[test]
    fn an_interrupted_repair_from_parity_loses_nothing() {
        let name = ObjectName::parse("clusters/c/backups/20260101-000000F/packs/000001").unwrap();
        let beside = names::healed(&name).unwrap();
        let good = blake3::hash(b"a").as_bytes().repeat(4096);
        let mut interrupted = 0;
        for nth in 1.. {
            for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::NoSpace] {
                let memory = Arc::new(MemoryStore::new());
                let parity = |store: Arc<dyn Store>| Arc::new(ParityStore::new(store, Percent::new(5).unwrap()));
                parity(memory.clone()).put_new(&name, &good).unwrap();
                memory.damage(&name, |bytes| bytes[5000] ^= 1).unwrap();
                let damaged = memory.read(&name, u64::MAX).unwrap();
                let faulty = Arc::new(FaultStore::new(memory.clone(), 1));
                faulty.inject(Op::ALL, When::Nth(nth), fault);
                let repo = Repository::open_for_wal(parity(faulty.clone()), KeySet::unencrypted());
                let outcome = heal(&repo, &name, &name, &good);
                let read = |name: &ObjectName| memory.read(name, u64::MAX).unwrap_or_default();
                let (there, healed) = (read(&name), read(&beside));
                assert!(there == good || healed == good || there == damaged, "{nth} {fault:?}");
                interrupted += u32::from(outcome.is_err());
                // It is completed from what it left.
                let repo = Repository::open_for_wal(parity(memory.clone()), KeySet::unencrypted());
                heal(&repo, &name, &name, &good).unwrap();
                assert!(read(&name) == good && read(&beside).is_empty(), "{nth} {fault:?}");
                if outcome.is_ok() && faulty.count(Op::ALL) < nth {
                    assert!(interrupted > 10, "{interrupted}");
                    return;
                }
            }
        }
    }
}
