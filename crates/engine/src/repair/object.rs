//! One object that is missing or damaged, and right bytes for it.
//!
//! Invariant: an object is removed only when it was just seen to be damaged, and when the bytes that replace it were read as
//! a whole and found to be exactly those that were written once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use pgark_pg::names::WalFileName;
use pgark_pg::value::{SegmentSize, SystemId};
use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, Catalog};
use pgark_repo::crypto::{Algorithm, ObjectKind, generation_of};
use pgark_repo::limits::SIDE_FILE_BYTES_MAX;
use pgark_repo::manifest::packs_of;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{Record, manifest_reader};
use pgark_repo::report::StoredReport;
use pgark_repo::seals::{Place, TAIL_BYTES, origin_of_bytes, seal_into};
use pgark_repo::store::{MemoryStore, ObjectName, Store};
use pgark_repo::stream::{Fingerprint, open_bytes};
use pgark_repo::wal::WalArchive;

use crate::archive::kinship::Beside;
use crate::error::{EngineError, Result};
use crate::rebuild;
use crate::repair::Act;
use crate::replicate::objects::read_exactly;
use crate::several::Member;

/// Larger objects are not replaced: they would have to be held in memory.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// What is said of right bytes.
pub(super) struct Known<'a> {
    pub cluster: &'a ClusterName,
    pub lineages: &'a [(SystemId, SegmentSize)],
    /// Of packs, manifests and records.
    pub expected: &'a BTreeMap<ObjectName, Fingerprint>,
    pub act: Act,
}

pub(super) fn lineages_of(listed: &Catalog) -> Vec<(SystemId, SegmentSize)> {
    listed.lineages.iter().map(|l| (l.system_id, l.segment_size)).collect()
}

/// What packs, manifests and records of these backups must be; as far as one of the repositories can tell.
pub(super) fn expected(
    sources: &[Member],
    cluster: &ClusterName,
    backups: &[BackupEntry],
) -> BTreeMap<ObjectName, Fingerprint> {
    let mut all = BTreeMap::new();
    for entry in backups {
        all.insert(names::record(cluster, &entry.id), entry.record.clone());
        // One of them may have the record alone, another one the manifest.
        let record = sources.iter().find_map(|m| Record::load(&m.repo, cluster, &entry.id, &entry.record).ok());
        let Some(record) = record else { continue };
        all.insert(names::manifest(cluster, &entry.id), record.manifest().clone());
        let packs = sources.iter().find_map(|m| packs_by(&m.repo, cluster, &entry.id, record.manifest()).ok());
        all.extend(packs.into_iter().flatten());
    }
    all
}

/// By the fingerprints in the catalog of the repository that is mended, whichever repository the books are read from.
fn packs_by(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    manifest: &Fingerprint,
) -> Result<Vec<(ObjectName, Fingerprint)>> {
    let (uses, print) = packs_of(manifest_reader(repo, cluster, id)?)?;
    if print != *manifest {
        return Err(RepoError::corrupt(names::manifest(cluster, id), "not what was written").into());
    }
    Ok(uses.into_iter().map(|u| (names::pack(cluster, &u.id.backup, u.id.number), u.fingerprint)).collect())
}

/// Returns the name of the source that the bytes came from.
pub(super) fn from_others(
    repo: &Repository,
    others: &[Member],
    known: &Known<'_>,
    name: &ObjectName,
) -> std::result::Result<String, Vec<String>> {
    let mut why = vec![];
    for source in others {
        let right = whole(&source.repo, name, known).and_then(|right| under_keys_of(repo, &source.repo, name, right));
        let right = right.and_then(|right| belongs(repo, &source.repo, name, &right, known).map(|()| right));
        match right {
            Ok((seal, bytes)) => {
                // What fails now is not the source's doing.
                let replaced = replace_damaged(repo, name, &seal, &bytes, known);
                return replaced
                    .map(|()| source.name.clone())
                    .map_err(|e| vec![format!("it could not be written: {e}")]);
            }
            Err(e) => why.push(format!("{}: {e}", source.name)),
        }
    }
    Err(why)
}

/// A copy that missed a rotation has seals whose key this repository may have retired, and one with keys of its own has no
/// other: such an object is sealed anew.
fn under_keys_of(
    repo: &Repository,
    source: &Repository,
    name: &ObjectName,
    right: (ObjectName, Vec<u8>),
) -> Result<(ObjectName, Vec<u8>)> {
    let generation = right.1.first_chunk().and_then(generation_of);
    let same_keys = repo.id() == source.id() || repo.id().is_empty();
    let is_held = same_keys && generation.is_some_and(|g| repo.keys().generations().contains(&g));
    if repo.keys().algorithm() == Algorithm::None || is_held {
        return Ok(right);
    }
    // What is sealed anew is never under the first key.
    if repo.keys().generation() < 2 {
        return Err(not_repairable(
            "it is under other keys there, and can be sealed anew here when the key was rotated: 'pgark key rotate'",
        ));
    }
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let place = Place { store: &memory, keys: repo.keys() };
    seal_into(&Place { store: source.store(), keys: source.keys() }, &place, name, None)?;
    let mut sealed = None;
    memory
        .list("", &mut |stat| {
            sealed = Some(stat.name);
            Ok(())
        })
        .map_err(RepoError::from)?;
    let sealed = sealed.ok_or_else(|| not_repairable("it could not be sealed anew"))?;
    let bytes = memory.read(&sealed, OBJECT_BYTES_MAX).map_err(RepoError::from)?;
    Ok((sealed, bytes))
}

/// WAL of another history may lie in the copy under the same name: what is put back belongs beside what is here.
fn belongs(
    repo: &Repository,
    source: &Repository,
    name: &ObjectName,
    right: &(ObjectName, Vec<u8>),
    known: &Known<'_>,
) -> Result<()> {
    if known.expected.contains_key(name) {
        return Ok(());
    }
    for (system_id, size) in known.lineages {
        let archive = WalArchive::new(repo, known.cluster, *system_id);
        if names::segment_copy(name.basename(), *size).is_none()
            || !name.as_str().starts_with(&format!("{}/", archive.place().dir()))
        {
            continue;
        }
        let (seal, bytes) = right;
        let own = if seal == name {
            bytes.as_slice()
        } else {
            bytes.split_last_chunk::<TAIL_BYTES>().map_or(bytes.as_slice(), |b| b.0)
        };
        let index = archive.open_bytes(name, own.to_vec())?.index;
        let theirs = WalArchive::new(source, known.cluster, *system_id);
        Beside::of(&archive, *size)?.admit(&Beside::of(&theirs, *size)?, &index)?;
    }
    Ok(())
}

/// A damaged pack made whole by the pages that the data directory still has as they were.
pub(super) fn from_data(
    repo: &Repository,
    books: &[&Repository],
    users: &BTreeSet<BackupId>,
    known: &Known<'_>,
    name: &ObjectName,
    data: &Path,
) -> Result<()> {
    let print = known.expected.get(name).filter(|_| name.parent().ends_with("/packs"));
    let print = print.ok_or_else(|| not_repairable("it holds no pages"))?;
    if print.size > OBJECT_BYTES_MAX {
        return Err(not_repairable("it is too large to be held in memory"));
    }
    let (seal, bytes) = rebuild::pack(repo, books, known.cluster, users, name, print, data)?;
    replace_damaged(repo, name, &seal, &bytes, known)
}

/// The names that an object may lie under, the newest seal first.
pub(super) fn seals_of(repo: &Repository, name: &ObjectName) -> Vec<ObjectName> {
    let generations = repo.keys().generations().into_iter().rev().filter(|g| *g > 1);
    let later = generations.filter_map(|g| names::later_seal(name, g).ok());
    later.chain([name.clone()]).collect()
}

/// Puts in place what an interrupted repair has healed of this seal; None where there is no such thing.
pub(super) fn complete(
    repo: &Repository,
    name: &ObjectName,
    seal: &ObjectName,
    known: &Known<'_>,
) -> Option<Result<()>> {
    let beside = names::healed(seal).ok()?;
    let bytes = repo.bare_store().read(&beside, OBJECT_BYTES_MAX).ok()?;
    match known.expected.get(name) {
        Some(print) => (origin_of_bytes(repo.keys(), seal, &bytes).ok()? == *print).then_some(())?,
        None => authenticate_alone(repo, name, seal, &bytes, known).ok()?,
    }
    if known.act == Act::LookOnly {
        return Some(Ok(()));
    }
    let removed = |()| Ok(repo.bare_store().delete(&beside).map_err(RepoError::from)?);
    Some(replace(repo, name, seal, &bytes).and_then(removed))
}

/// The bytes of an object, authenticated as a whole, and the name under which they belong: that of one of its seals.
pub(super) fn whole(from: &Repository, name: &ObjectName, known: &Known<'_>) -> Result<(ObjectName, Vec<u8>)> {
    if let Some(print) = known.expected.get(name) {
        if print.size > OBJECT_BYTES_MAX {
            return Err(not_repairable("it is too large to be held in memory"));
        }
        return read_exactly(from, name, print);
    }
    let seal = from.store().find(name).map_err(RepoError::from)?.name;
    let bytes = from.bare_store().read(&seal, OBJECT_BYTES_MAX).map_err(RepoError::from)?;
    authenticate_alone(from, name, &seal, &bytes, known)?;
    Ok((seal, bytes))
}

/// A report, or a file of the WAL archive, has no fingerprint elsewhere: it is authenticated by itself, as a whole, and under
/// its own name.
fn authenticate_alone(
    repo: &Repository,
    name: &ObjectName,
    seal: &ObjectName,
    bytes: &[u8],
    known: &Known<'_>,
) -> Result<()> {
    origin_of_bytes(repo.keys(), seal, bytes)?;
    let bytes = if seal == name { bytes } else { bytes.split_last_chunk::<TAIL_BYTES>().map_or(bytes, |(b, _)| b) };
    if name.parent() == names::reports_dir(known.cluster) {
        return Ok(StoredReport::check(repo, known.cluster, name, bytes.to_vec())?);
    }
    for (system_id, size) in known.lineages {
        let archive = WalArchive::new(repo, known.cluster, *system_id);
        if !name.as_str().starts_with(&format!("{}/", archive.place().dir())) {
            continue;
        }
        let (kind, max) = (ObjectKind::WalSideFile, SIDE_FILE_BYTES_MAX);
        let segment = names::segment_copy(name.basename(), *size).map(|(segment, _)| segment);
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
    Err(not_repairable("it is neither of a backup nor of the wal archive, nor a report"))
}

fn not_repairable(why: &str) -> EngineError {
    EngineError::failed("E-REPAIR", why, "")
}

/// No other copy of the bytes exists than what is damaged: they must lie durably beside it before it goes.
pub(super) fn heal(repo: &Repository, name: &ObjectName, seal: &ObjectName, bytes: &[u8]) -> Result<()> {
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

/// Leaves alone what is whole after all: somebody else may have mended it, or what was read was not what is there.
fn replace_damaged(
    repo: &Repository,
    name: &ObjectName,
    seal: &ObjectName,
    bytes: &[u8],
    known: &Known<'_>,
) -> Result<()> {
    match whole(repo, name, known) {
        Ok(_) => Ok(()),
        Err(e) if e.is_damage() && known.act == Act::LookOnly => Ok(()),
        Err(e) if e.is_damage() => replace(repo, name, seal, bytes),
        // Whether it is damaged cannot be told, so it stays.
        Err(e) => Err(e),
    }
}

/// The bytes are in memory and lie elsewhere: between the removal and the creation nothing else is needed.
fn replace(repo: &Repository, name: &ObjectName, seal: &ObjectName, bytes: &[u8]) -> Result<()> {
    let store = repo.store();
    match store.delete(name) {
        Ok(()) => {}
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(RepoError::from(e).into()),
    }
    match store.put_new(seal, bytes) {
        Ok(()) => {}
        // Somebody else mends it too; what is there now is looked at below.
        Err(e) if e.is_already_exists() => {}
        Err(e) => return Err(RepoError::from(e).into()),
    }
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
