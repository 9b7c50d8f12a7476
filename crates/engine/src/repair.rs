//! `verify --repair`: what a verification found missing or damaged in one repository, replaced by the same bytes of another
//! copy of it.
//!
//! Invariant: a damaged object is removed only when the bytes that replace it were read as a whole and found to be exactly
//! those that were written once. What cannot be replaced stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, JobKind};
use pgark_repo::manifest::packs_of;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{BackupRecord, manifest_reader};
use pgark_repo::store::ObjectName;
use pgark_repo::stream::Fingerprint;
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
    /// Backups that were affected and should be verified again.
    pub backups: BTreeSet<BackupId>,
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
    let expected = expected(repo, others, cluster, &listed);
    let mut report = RepairReport::default();
    for problem in found.problems.iter().filter(|p| matches!(p.kind, ProblemKind::Missing | ProblemKind::Damaged)) {
        ctx.check_cancelled()?;
        // Nobody may delete what is being mended.
        let mut pins = vec![];
        for id in &problem.backups {
            let pin = catalog.claim(JobKind::Restore, id, ctx.now())?;
            pins.push((KeptClaim::new(pin.clone(), ctx), pin));
        }
        let outcome = one(repo, others, cluster, &listed, &expected, problem);
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
    Ok(report)
}

/// What packs, manifests and records of listed backups must be; as far as one of the repositories can tell.
fn expected(
    repo: &Repository,
    others: &[Member],
    cluster: &ClusterName,
    listed: &Catalog,
) -> BTreeMap<ObjectName, Fingerprint> {
    let mut all = BTreeMap::new();
    for entry in &listed.backups {
        all.insert(names::record(cluster, &entry.id), entry.record.clone());
        let from = std::iter::once(repo).chain(others.iter().map(|m| &m.repo));
        if let Some((manifest, packs)) = from.filter_map(|r| read_books(r, cluster, entry).ok()).next() {
            all.insert(names::manifest(cluster, &entry.id), manifest);
            all.extend(packs);
        }
    }
    all
}

type Books = (Fingerprint, Vec<(ObjectName, Fingerprint)>);

/// By the fingerprints in the catalog of the repository that is mended, whichever repository the books are read from.
fn read_books(repo: &Repository, cluster: &ClusterName, entry: &BackupEntry) -> Result<Books> {
    let record = BackupRecord::load(repo, cluster, &entry.id, &entry.record)?;
    let (uses, print) = packs_of(manifest_reader(repo, cluster, &entry.id)?)?;
    if print != record.manifest {
        return Err(RepoError::corrupt(names::manifest(cluster, &entry.id), "not what was written").into());
    }
    let packs = uses.into_iter().map(|u| (names::pack(cluster, &u.id.backup, u.id.number), u.fingerprint));
    Ok((print, packs.collect()))
}

/// Returns the name of the repository that the bytes came from.
fn one(
    repo: &Repository,
    others: &[Member],
    cluster: &ClusterName,
    listed: &Catalog,
    expected: &BTreeMap<ObjectName, Fingerprint>,
    problem: &Problem,
) -> std::result::Result<String, String> {
    let name = ObjectName::parse(&problem.object).map_err(|_| "it is no single object".to_owned())?;
    let mut why = vec![];
    for member in others {
        let bytes = match expected.get(&name) {
            Some(print) => whole_object(&member.repo, &name, print),
            None => whole_segment(&member.repo, cluster, listed, &name),
        };
        match bytes.and_then(|bytes| replace(repo, &name, &bytes)) {
            Ok(()) => return Ok(member.name.clone()),
            Err(e) => why.push(format!("{}: {e}", member.name)),
        }
    }
    Err(if why.is_empty() { "there is no other repository".to_owned() } else { why.join("; ") })
}

fn whole_object(repo: &Repository, name: &ObjectName, print: &Fingerprint) -> Result<Vec<u8>> {
    if print.size > OBJECT_BYTES_MAX {
        return Err(not_repairable("it is too large to be held in memory"));
    }
    read_exactly(repo.store(), name, print)
}

/// A segment has no fingerprint elsewhere: it is authenticated by itself, as a whole, and under its own name.
fn whole_segment(repo: &Repository, cluster: &ClusterName, listed: &Catalog, name: &ObjectName) -> Result<Vec<u8>> {
    for lineage in &listed.lineages {
        let archive = WalArchive::new(repo, cluster, lineage.system_id);
        let Some((segment, _)) = names::segment_copy(name.basename(), lineage.segment_size)
            .filter(|_| name.as_str().starts_with(&format!("{}/", archive.place().dir())))
        else {
            continue;
        };
        let bytes = repo.store().read(name, OBJECT_BYTES_MAX).map_err(RepoError::from)?;
        let mut reader = archive.open_bytes(name, bytes.clone())?;
        if reader.index.segment_name() != segment {
            return Err(RepoError::corrupt(name, "the index is of another segment").into());
        }
        while reader.next()?.is_some() {}
        return Ok(bytes);
    }
    Err(not_repairable("it is neither of a backup nor a wal segment"))
}

fn not_repairable(why: &str) -> EngineError {
    EngineError::failed("E-REPAIR", why, "")
}

/// The bytes are in memory: between the removal and the creation nothing else is needed.
fn replace(repo: &Repository, name: &ObjectName, bytes: &[u8]) -> Result<()> {
    let store = repo.store();
    match store.delete(name) {
        Ok(()) => {}
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(RepoError::from(e).into()),
    }
    store.put_new(name, bytes).map_err(RepoError::from)?;
    let stored = store.read(name, bytes.len() as u64).map_err(RepoError::from)?;
    if stored == bytes {
        Ok(())
    } else {
        Err(RepoError::corrupt(name, "it reads differently from what was written").into())
    }
}
