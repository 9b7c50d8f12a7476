//! What was found missing or damaged in one repository, by a verification or on the way of a restore, replaced by the same
//! bytes of another copy of it.
//!
//! Invariant: an object is removed only when it was just seen to be damaged, and when the bytes that replace it were read as
//! a whole and found to be exactly those that were written once. What cannot be replaced stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pgark_pg::names::WalFileName;
use pgark_pg::value::{SegmentSize, SystemId};
use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, JobKind};
use pgark_repo::crypto::ObjectKind;
use pgark_repo::limits::SIDE_FILE_BYTES_MAX;
use pgark_repo::manifest::packs_of;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{BackupRecord, manifest_reader};
use pgark_repo::store::ObjectName;
use pgark_repo::stream::{Fingerprint, open_bytes};
use pgark_repo::wal::WalArchive;

use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::rebuild;
use crate::replicate::objects::read_exactly;
use crate::several::Member;
use crate::sources::{Sources, TroubleKind, joined};
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

/// What a repair takes the right bytes from.
pub struct RepairFrom<'a> {
    pub others: &'a [Member],
    /// The cluster's own directory: its unchanged pages are asked when no other repository can help.
    pub data: Option<&'a Path>,
}

/// Replaces what `found` says is missing or damaged in `repo`.
pub fn repair(
    repo: &Repository,
    from: &RepairFrom<'_>,
    cluster: &ClusterName,
    found: &VerifyReport,
    ctx: &Ctx,
) -> Result<RepairReport> {
    let others = from.others;
    let catalog = CatalogStore::new(repo, cluster);
    let listed = catalog.read()?;
    let lineages = lineages_of(&listed);
    let expected = expected(repo, others, cluster, &listed.backups);
    let mut report = RepairReport::default();
    for problem in found.problems.iter().filter(|p| matches!(p.kind, ProblemKind::Missing | ProblemKind::Damaged)) {
        ctx.check_cancelled()?;
        // Nobody may delete what is being mended.
        let mut pins = vec![];
        for id in &problem.backups {
            let pin = catalog.claim(JobKind::Restore, id, ctx.now())?;
            pins.push((KeptClaim::new(pin.clone(), ctx), pin));
        }
        let outcome = match ObjectName::parse(&problem.object) {
            Ok(name) => {
                let wanted = wanted(&name, cluster, &lineages, &expected);
                mend_one(repo, others, cluster, &wanted, &name).or_else(|why| match from.data {
                    Some(data) => from_data(repo, others, cluster, problem, &wanted, &name, data)
                        .map_err(|e| format!("{why}; {}: {e}", data.display())),
                    None => Err(why),
                })
            }
            Err(_) => Err("it is no single object".to_owned()),
        };
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

/// What became of an object that was missing or damaged.
#[derive(Clone, Debug)]
pub struct Mended {
    pub repository: String,
    pub object: String,
    /// The repository that the bytes came from, or why it could not be mended.
    pub outcome: std::result::Result<String, String>,
}

/// Puts back what a reader met missing or damaged. `backup` is what was read, and protected from deletion.
pub fn mend(sources: &Sources, cluster: &ClusterName, backup: Option<&BackupId>, ctx: &Ctx) -> Vec<Mended> {
    let members = sources.members();
    let objects = objects_in_trouble(sources);
    if objects.is_empty() {
        return vec![];
    }
    let catalogs = sources.catalogs(cluster).unwrap_or_default();
    let listed = joined(&catalogs);
    let lineages = listed.as_ref().map(lineages_of).unwrap_or_default();
    let entries: Vec<BackupEntry> =
        listed.iter().flat_map(|c| &c.backups).filter(|b| Some(&b.id) == backup).cloned().collect();
    let mut mended = vec![];
    for (n, member) in &members {
        let own: Vec<&ObjectName> = objects.iter().filter(|(k, _)| k == n).map(|(_, name)| name).collect();
        if own.is_empty() {
            continue;
        }
        let others: Vec<Member> = members.iter().filter(|(k, _)| k != n).map(|(_, m)| m.clone()).collect();
        let expected = expected(&member.repo, &others, cluster, &entries);
        for name in own {
            let wanted = wanted(name, cluster, &lineages, &expected);
            let outcome = match ctx.check_cancelled() {
                Ok(()) => mend_one(&member.repo, &others, cluster, &wanted, name),
                Err(e) => Err(e.to_string()),
            };
            mended.push(Mended { repository: member.name.clone(), object: name.to_string(), outcome });
        }
    }
    mended
}

/// As `mend` for who holds the keys to the WAL alone.
pub fn mend_wal(sources: &Sources, cluster: &ClusterName, system_id: SystemId, size: SegmentSize) -> Vec<Mended> {
    let members = sources.members();
    let one = |(n, name): (usize, ObjectName)| {
        let member = members.iter().find(|(k, _)| *k == n).map(|(_, m)| m)?;
        let others: Vec<Member> = members.iter().filter(|(k, _)| *k != n).map(|(_, m)| m.clone()).collect();
        let wanted = wanted(&name, cluster, &[(system_id, size)], &BTreeMap::new());
        let outcome = mend_one(&member.repo, &others, cluster, &wanted, &name);
        Some(Mended { repository: member.name.clone(), object: name.to_string(), outcome })
    };
    objects_in_trouble(sources).into_iter().filter_map(one).collect()
}

/// Without the registers: each of them is put back by its next change.
fn objects_in_trouble(sources: &Sources) -> Vec<(usize, ObjectName)> {
    let is_register = |name: &str| {
        let parent = name.rsplit('/').nth(1).unwrap_or_default();
        ["keyring", "catalog", "head"].contains(&parent.trim_end_matches("-mirror"))
    };
    let found = sources.troubles().into_iter().filter(|t| t.kind != TroubleKind::Away);
    let named = found.filter_map(|t| Some((t.source, ObjectName::parse(&t.object?).ok()?)));
    named.filter(|(_, name)| !is_register(name.as_str())).collect()
}

fn lineages_of(listed: &Catalog) -> Vec<(SystemId, SegmentSize)> {
    listed.lineages.iter().map(|l| (l.system_id, l.segment_size)).collect()
}

/// What packs, manifests and records of these backups must be; as far as one of the repositories can tell.
fn expected(
    repo: &Repository,
    others: &[Member],
    cluster: &ClusterName,
    backups: &[BackupEntry],
) -> BTreeMap<ObjectName, Fingerprint> {
    let mut all = BTreeMap::new();
    for entry in backups {
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

/// How the bytes of an object are recognised.
enum Wanted {
    Exactly(Fingerprint),
    /// A segment has no fingerprint elsewhere: it is authenticated by itself, as a whole, and under its own name.
    Segment(SystemId, SegmentSize),
    History,
    Nothing,
}

fn wanted(
    name: &ObjectName,
    cluster: &ClusterName,
    lineages: &[(SystemId, SegmentSize)],
    expected: &BTreeMap<ObjectName, Fingerprint>,
) -> Wanted {
    if let Some(print) = expected.get(name) {
        return Wanted::Exactly(print.clone());
    }
    for (system_id, size) in lineages {
        let place = names::WalPlace { cluster: cluster.clone(), system_id: *system_id };
        if !name.as_str().starts_with(&format!("{}/", place.dir())) {
            continue;
        }
        return match WalFileName::parse(name.basename()) {
            Ok(WalFileName::History(timeline)) if place.history(timeline) == *name => Wanted::History,
            _ if names::segment_copy(name.basename(), *size).is_some() => Wanted::Segment(*system_id, *size),
            _ => Wanted::Nothing,
        };
    }
    Wanted::Nothing
}

/// Returns the name of the repository that the bytes came from.
fn mend_one(
    repo: &Repository,
    others: &[Member],
    cluster: &ClusterName,
    wanted: &Wanted,
    name: &ObjectName,
) -> std::result::Result<String, String> {
    let mut why = vec![];
    for member in others {
        let bytes = whole(&member.repo, cluster, name, wanted);
        match bytes.and_then(|bytes| replace_damaged(repo, cluster, name, wanted, &bytes)) {
            Ok(()) => return Ok(member.name.clone()),
            Err(e) => why.push(format!("{}: {e}", member.name)),
        }
    }
    Err(if why.is_empty() { "there is no other repository".to_owned() } else { why.join("; ") })
}

/// A damaged pack made whole by the pages that the data directory still has as they were.
fn from_data(
    repo: &Repository,
    others: &[Member],
    cluster: &ClusterName,
    problem: &Problem,
    wanted: &Wanted,
    name: &ObjectName,
    data: &Path,
) -> Result<String> {
    let Wanted::Exactly(print) = wanted else { return Err(not_repairable("it holds no pages")) };
    if !name.parent().ends_with("/packs") || print.size > OBJECT_BYTES_MAX {
        return Err(not_repairable("it holds no pages, or is too large to be held in memory"));
    }
    let books: Vec<&Repository> = std::iter::once(repo).chain(others.iter().map(|m| &m.repo)).collect();
    let users = problem.backups.iter().cloned().collect();
    let bytes = rebuild::pack(repo, &books, cluster, &users, name, print, data)?;
    replace_damaged(repo, cluster, name, wanted, &bytes)?;
    Ok(format!("the data directory {}", data.display()))
}

/// All bytes of an object, when they are what was written.
fn whole(repo: &Repository, cluster: &ClusterName, name: &ObjectName, wanted: &Wanted) -> Result<Vec<u8>> {
    let read = |max| repo.store().read(name, max).map_err(RepoError::from);
    match wanted {
        Wanted::Exactly(print) if print.size > OBJECT_BYTES_MAX => {
            Err(not_repairable("it is too large to be held in memory"))
        }
        Wanted::Exactly(print) => read_exactly(repo.store(), name, print),
        Wanted::Segment(system_id, size) => {
            let archive = WalArchive::new(repo, cluster, *system_id);
            let bytes = read(OBJECT_BYTES_MAX)?;
            let mut reader = archive.open_bytes(name, bytes.clone())?;
            let segment = names::segment_copy(name.basename(), *size).map(|(segment, _)| segment);
            if Some(reader.index.segment_name()) != segment {
                return Err(RepoError::corrupt(name, "the index is of another segment").into());
            }
            while reader.next()?.is_some() {}
            Ok(bytes)
        }
        Wanted::History => {
            let bytes = read(2 * SIDE_FILE_BYTES_MAX as u64)?;
            open_bytes(repo.keys(), ObjectKind::WalSideFile, name, bytes.clone(), SIDE_FILE_BYTES_MAX)?;
            Ok(bytes)
        }
        Wanted::Nothing => Err(not_repairable("it is neither of a backup nor a wal segment")),
    }
}

fn not_repairable(why: &str) -> EngineError {
    EngineError::failed("E-REPAIR", why, "")
}

/// Leaves alone what is whole after all: somebody else may have mended it, or what was read was not what is there.
fn replace_damaged(
    repo: &Repository,
    cluster: &ClusterName,
    name: &ObjectName,
    wanted: &Wanted,
    bytes: &[u8],
) -> Result<()> {
    match whole(repo, cluster, name, wanted) {
        Ok(_) => Ok(()),
        Err(e) if e.is_damage() => replace(repo, name, bytes),
        // Whether it is damaged cannot be told, so it stays.
        Err(e) => Err(e),
    }
}

/// The bytes are in memory: between the removal and the creation nothing else is needed.
fn replace(repo: &Repository, name: &ObjectName, bytes: &[u8]) -> Result<()> {
    let store = repo.store();
    match store.delete(name) {
        Ok(()) => {}
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(RepoError::from(e).into()),
    }
    match store.put_new(name, bytes) {
        Ok(()) => {}
        // Somebody else mends it too; what is there now is looked at below.
        Err(e) if e.is_already_exists() => {}
        Err(e) => return Err(RepoError::from(e).into()),
    }
    let stored = store.read(name, bytes.len() as u64).map_err(RepoError::from)?;
    if stored == bytes {
        Ok(())
    } else {
        Err(RepoError::corrupt(name, "it reads differently from what was written").into())
    }
}
