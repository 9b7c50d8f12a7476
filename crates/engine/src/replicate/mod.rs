//! Copies what one repository of a cluster has and another lacks: WAL first, then backups, oldest first, object by object as
//! they are. The database is not needed.
//!
//! Both repositories have the same key ring, so an object that opens in one opens in the other; or the copy has keys of its own,
//! and what is copied is sealed anew on the way. Each has its own catalog and head: a backup is listed in the copy only when all it needs is durable there, its WAL included, and what one of them
//! deletes stays in the other.

pub mod lacking;
mod marks;
pub(crate) mod objects;
mod reports;
pub(crate) mod wal;

use std::collections::{BTreeMap, BTreeSet};

use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, Claim, Evidence, JobKind, Lineage, Needs, WalNeed};
use pgark_repo::crypto::Algorithm;
use pgark_repo::manifest::{ManifestReader, PackId, PackUse, packs_of};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::Record;
use pgark_repo::report::ReportId;
use pgark_repo::store::{ObjectName, ObjectStat};
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository};

use crate::backup::claim::KeptClaim;
use crate::backup::job::{give_up, remove_remains};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::run::claim_to_read;
use wal::WalToCopy;

pub struct ReplicateOptions {
    pub cluster: ClusterName,
    pub which: Which,
    pub jobs: usize,
}

/// Backups that are copied.
#[derive(Clone, Debug)]
pub enum Which {
    /// All that are missing.
    Missing,
    One(BackupId),
    /// Later ones than the newest of the copy: older ones that it deleted do not come back.
    Newer,
}

impl Which {
    fn takes(&self, entry: &BackupEntry, target: Option<&Catalog>) -> bool {
        match self {
            // What the copy's own retention gave up does not come back unasked.
            Which::Missing => target.is_none_or(|t| !t.expired.iter().any(|e| e.backup == entry.id)),
            Which::One(id) => entry.id == *id,
            Which::Newer => target.and_then(|t| t.backups.last()).is_none_or(|last| entry.id > last.id),
        }
    }
}

/// What the copy lacks.
pub struct ReplicatePlan {
    pub lineages: Vec<Lineage>,
    pub wal: Vec<WalToCopy>,
    /// Oldest first.
    pub backups: Vec<BackupEntry>,
    /// Backups that both list, and the objects that the copy has lost.
    pub lost: Vec<(BackupEntry, Vec<(ObjectName, Fingerprint)>)>,
    /// Backups that both list, of which the source cannot tell what they consist of, and why.
    pub unreadable: Vec<(BackupId, String)>,
    /// Backups that both list, as they are to be protected in the copy as well.
    pub marks: Vec<BackupEntry>,
    pub reports: Vec<ReportId>,
}

impl ReplicatePlan {
    pub fn segments(&self) -> u64 {
        self.wal.iter().map(|w| w.segments.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.segments() == 0
            && self.backups.is_empty()
            && self.lost.is_empty()
            && self.unreadable.is_empty()
            && self.marks.is_empty()
            && self.reports.is_empty()
            && self.wal.iter().all(|w| w.histories.is_empty())
    }
}

#[derive(Clone, Debug, Default)]
pub struct ReplicateReport {
    pub backups: Vec<BackupId>,
    /// Backups that were listed and had lost objects.
    pub mended: Vec<BackupId>,
    /// Backups that were listed and got marks.
    pub marked: Vec<BackupId>,
    pub segments: u64,
    pub reports: u64,
    /// Of the audit trail.
    pub events: u64,
    pub objects: u64,
    pub bytes: u64,
    /// What could not be copied, and why; everything else was.
    pub failed: Vec<(String, String)>,
}

/// # Errors
/// Repositories that are not copies of each other, and what cannot be read.
/// Without `to`, everything is missing.
pub fn plan(from: &Repository, to: Option<&Repository>, options: &ReplicateOptions) -> Result<ReplicatePlan> {
    to.map_or(Ok(()), |to| check_same(from, to))?;
    let source = CatalogStore::new(from, &options.cluster).read()?;
    let target = match to {
        Some(to) => CatalogStore::new(to, &options.cluster).try_read()?,
        None => None,
    };
    let has = |e: &BackupEntry| -> Result<bool> {
        match target.as_ref().and_then(|t| t.backup(&e.id)) {
            None => Ok(false),
            Some(there) if there.record == e.record => Ok(true),
            Some(_) => Err(another(&e.id)),
        }
    };
    let mut backups = vec![];
    let mut both = vec![];
    for entry in source.backups.iter().filter(|e| options.which.takes(e, target.as_ref())) {
        match has(entry)? {
            true => both.push(entry),
            false => backups.push(entry.clone()),
        }
    }
    let listed = |e: &BackupEntry| target.as_ref().and_then(|t| t.backup(&e.id));
    let marks = both.iter().filter_map(|e| marks::missing(e, listed(e)?)).collect();
    let (mut incomplete, mut unreadable) = (vec![], vec![]);
    if let (Some(to), Which::Missing | Which::One(_)) = (to, &options.which) {
        let there = objects_there(to, &options.cluster)?;
        for entry in both {
            match lost(from, &options.cluster, entry, &there) {
                Ok(objects) if objects.is_empty() => {}
                Ok(objects) => incomplete.push((entry.clone(), objects)),
                Err(e) if is_about_one(&e) => unreadable.push((entry.id.clone(), e.to_string())),
                Err(e) => return Err(e),
            }
        }
    }
    if let Which::One(id) = &options.which {
        if source.backup(id).is_none() {
            return Err(RepoError::NoBackup { cluster: options.cluster.to_string(), id: id.to_string() }.into());
        }
        if let Some((to, expired)) = to.zip(target.as_ref().and_then(|t| t.expired(id))) {
            return Err(EngineError::refused(
                "E-BACKUP-EXPIRED",
                format!("backup {id} expired in {} and is there until {}", to.store().url(), expired.due),
                format!("'pgark unexpire {id}' brings it back there"),
            ));
        }
    }
    let mut wal = vec![];
    for lineage in &source.lineages {
        let of_lineage = backups.iter().filter(|b| b.system_id == lineage.system_id);
        let begins = of_lineage.filter_map(|b| Some(b.as_physical()?.segments(lineage.segment_size).0));
        wal.push(wal::to_copy(from, to, &options.cluster, lineage, begins.min())?);
    }
    let reports = reports::missing(from, to, options)?;
    Ok(ReplicatePlan { lineages: source.lineages, wal, backups, lost: incomplete, unreadable, marks, reports })
}

/// Whether one copy has given up a key that the other one still holds.
fn keys_apart(from: &Repository, to: &Repository) -> bool {
    let there = to.keys().generations();
    from.id() == to.id() && from.keys().generations().iter().any(|g| !there.contains(g))
}

fn check_same(from: &Repository, to: &Repository) -> Result<()> {
    if from.store().url() == to.store().url() {
        return Err(EngineError::refused("E-REPLICATE-SAME", "both are the same repository", "name two repositories"));
    }
    if from.id() == to.id() && !keys_apart(from, to) {
        return Ok(());
    }
    if from.id() != to.id() && from.encryption() != Algorithm::None && from.keys().shares_content_ids(to.keys()) {
        return Ok(());
    }
    if from.id() == to.id() {
        return Err(EngineError::refused(
            "E-REPLICATE-KEYS",
            format!("{} has given up a key that {} still holds", to.store().url(), from.store().url()),
            format!("run 'pgark key reencrypt', then 'pgark key retire' with --repo {}", from.store().url()),
        ));
    }
    Err(EngineError::refused(
        "E-REPLICATE-OTHER",
        format!("{} is not a copy of {}: it has a key of its own", to.store().url(), from.store().url()),
        "replicate into an empty place, which then gets the same key ring",
    ))
}

fn another(id: &BackupId) -> EngineError {
    EngineError::refused(
        "E-REPLICATE-CONFLICT",
        format!("both repositories have a backup {id}, and it is not the same one"),
        "they were written to independently of each other: delete the one that is not wanted",
    )
}

/// Copies what the plan names. What one backup needs and cannot be copied leaves the others alone.
pub fn run(
    from: &Repository,
    to: &Repository,
    options: &ReplicateOptions,
    plan: &ReplicatePlan,
    ctx: &Ctx,
) -> Result<ReplicateReport> {
    let catalog = CatalogStore::new(to, &options.cluster);
    // The one in force last comes last.
    for lineage in &plan.lineages {
        catalog.register(lineage, true)?;
    }
    // Before the copy's retention comes.
    let marked = marks::copy(&catalog, &plan.marks)?;
    remove_remains(&catalog)?;
    let failed = plan.unreadable.iter().map(|(id, why)| (id.to_string(), why.clone())).collect();
    let mut report = ReplicateReport { failed, marked, ..ReplicateReport::default() };
    for part in &plan.wal {
        wal::copy(from, to, &options.cluster, part, options.jobs, ctx, &mut report)?;
    }
    for (entry, objects) in &plan.lost {
        ctx.check_cancelled()?;
        match mend(from, to, options, entry, objects, ctx) {
            Ok((count, bytes)) => {
                report.objects += count;
                report.bytes += bytes;
                report.mended.push(entry.id.clone());
            }
            Err(e) if is_about_one(&e) => report.failed.push((entry.id.to_string(), e.to_string())),
            Err(e) => return Err(e),
        }
    }
    for entry in &plan.backups {
        ctx.check_cancelled()?;
        match backup(from, to, options, entry, ctx, &mut report) {
            Ok(()) => report.backups.push(entry.id.clone()),
            Err(e) if is_about_one(&e) => report.failed.push((entry.id.to_string(), e.to_string())),
            Err(e) => return Err(e),
        }
    }
    reports::copy(from, to, options, &plan.reports, ctx, &mut report)?;
    crate::rescue::place(&**to.store()).map_err(|e| e.in_repository(&to.store().url()))?;
    report.events = crate::audit::copy(from, to, &options.cluster, ctx)?;
    Ok(report)
}

/// Brings back what a listed backup has lost; nobody deletes it meanwhile.
fn mend(
    from: &Repository,
    to: &Repository,
    options: &ReplicateOptions,
    entry: &BackupEntry,
    objects: &[(ObjectName, Fingerprint)],
    ctx: &Ctx,
) -> Result<(u64, u64)> {
    let pin = CatalogStore::new(to, &options.cluster).claim(JobKind::Restore, &entry.id, ctx.now())?;
    let kept = KeptClaim::new(pin.clone(), ctx);
    let total = objects.iter().map(|(_, print)| print.size).sum();
    ctx.progress.begin(&format!("lost objects of {}", entry.id), Some(total));
    let copied = objects::copy_all(from, to, objects, options.jobs, ctx);
    ctx.progress.end_as(copied.is_ok());
    drop(kept);
    if let Err(e) = pin.release() {
        tracing::warn!(%e, "the claim in the copy ends by itself");
    }
    copied
}

/// Damage, absence, and what stands in its place concern one backup; a store that does not answer concerns all.
fn is_about_one(e: &EngineError) -> bool {
    match e.repo() {
        // Its retention may give it up while others are copied.
        Some(e) => {
            let gone = matches!(e, RepoError::NoBackup { .. } | RepoError::Expired { .. });
            gone || e.is_damage() || e.is_not_found() || matches!(e, RepoError::Conflict { .. })
        }
        None => e.code() == "E-REPLICATE-WAL",
    }
}

fn backup(
    from: &Repository,
    to: &Repository,
    options: &ReplicateOptions,
    entry: &BackupEntry,
    ctx: &Ctx,
    report: &mut ReplicateReport,
) -> Result<()> {
    let (cluster, id) = (&options.cluster, &entry.id);
    let (source, target) = (CatalogStore::new(from, cluster), CatalogStore::new(to, cluster));
    // Before anything is written that would be of no use.
    check_wal(from, to, cluster, entry)?;
    // As a restore, so that nobody deletes it meanwhile.
    let wal = entry.as_physical().map(|physical| WalNeed {
        system_id: physical.system_id,
        timeline: physical.timeline,
        from: physical.lsn_start,
        to: Some(physical.lsn_stop),
    });
    let needs = Needs { base: None, wal };
    let reading = claim_to_read(&source, id, needs, ctx)?;
    let outcome = (|| {
        let known = target.read()?;
        let writing = target.claim_copy(id, ctx.now())?;
        writing.house(&entry.needs)?;
        let kept = KeptClaim::new(writing.clone(), ctx);
        let kept_source = reading.clone().map(|claim| KeptClaim::new(claim, ctx));
        let copied = objects_of(from, to, options, entry, &known, ctx, report)
            .and_then(|()| check_wal(from, to, cluster, entry))
            .and_then(|()| kept.check())
            .and_then(|()| kept_source.as_ref().map_or(Ok(()), KeptClaim::check));
        drop((kept, kept_source));
        match copied {
            Ok(()) => {
                let entry = BackupEntry { evidence: Evidence::Stored, drilled: None, ..entry.clone() };
                Ok(writing.commit_backup(&entry)?)
            }
            Err(e) => {
                // The next run goes on from what was copied, unless others need the room, WAL before all.
                give_up(&target, writing, &e);
                Err(e)
            }
        }
    })();
    if let Some(Err(e)) = reading.map(Claim::release) {
        tracing::warn!(%e, "the claim in the source ends by itself");
    }
    outcome
}

/// Packs, then the manifest, then the record: the order in which a backup writes them.
fn objects_of(
    from: &Repository,
    to: &Repository,
    options: &ReplicateOptions,
    entry: &BackupEntry,
    known: &Catalog,
    ctx: &Ctx,
    report: &mut ReplicateReport,
) -> Result<()> {
    let (cluster, id) = (&options.cluster, &entry.id);
    let record = Record::load(from, cluster, id, &entry.record)?;
    let reader = ManifestReader::open(from.store().clone(), from.keys(), &names::manifest(cluster, id))?;
    let (uses, print) = packs_of(reader)?;
    if print != *record.manifest() {
        return Err(RepoError::corrupt(names::manifest(cluster, id), "not the manifest that this backup wrote").into());
    }
    let there = packs_there(to, cluster, known, &objects_there(to, cluster)?)?;
    let mut wanted: BTreeMap<ObjectName, Fingerprint> = BTreeMap::new();
    for PackUse { id, fingerprint, .. } in uses.into_iter().filter(|u| !there.contains(&u.id)) {
        wanted.insert(names::pack(cluster, &id.backup, id.number), fingerprint);
    }
    let total = wanted.values().map(|f| f.size).sum();
    ctx.progress.begin(&format!("copy of {id}"), Some(total));
    let copied = objects::copy_all(from, to, &wanted.into_iter().collect::<Vec<_>>(), options.jobs, ctx);
    ctx.progress.end_as(copied.is_ok());
    let (objects, bytes) = copied?;
    let rest = [(names::manifest(cluster, id), print), (names::record(cluster, id), entry.record.clone())];
    for (name, print) in &rest {
        objects::copy(from, to, name, print, ctx)?;
        report.bytes += print.size;
    }
    report.objects += objects + rest.len() as u64;
    report.bytes += bytes;
    Ok(())
}

/// Objects of backups that the copy has by a listing, with their sizes.
fn objects_there(to: &Repository, cluster: &ClusterName) -> Result<BTreeMap<ObjectName, u64>> {
    let mut there = BTreeMap::new();
    let mut visit = |stat: ObjectStat| {
        there.insert(stat.name, stat.size);
        Ok(())
    };
    to.store().list(&names::backups_dir(cluster), &mut visit).map_err(RepoError::from)?;
    Ok(there)
}

/// Packs that listed backups of the copy rest on, and that are there: their content was checked when those were committed.
fn packs_there(
    to: &Repository,
    cluster: &ClusterName,
    known: &Catalog,
    there: &BTreeMap<ObjectName, u64>,
) -> Result<BTreeSet<PackId>> {
    let mut packs = BTreeSet::new();
    for backup in &known.backups {
        let reader = ManifestReader::open(to.store().clone(), to.keys(), &names::manifest(cluster, &backup.id));
        // A damaged or lost manifest vouches for nothing.
        let uses = match reader.and_then(packs_of) {
            Ok((uses, _)) => uses,
            Err(e) if e.is_damage() || e.is_not_found() => continue,
            Err(e) => return Err(e.into()),
        };
        let is_there =
            |u: &PackUse| there.get(&names::pack(cluster, &u.id.backup, u.id.number)) == Some(&u.fingerprint.size);
        packs.extend(uses.into_iter().filter(is_there).map(|u| u.id));
    }
    Ok(packs)
}

/// Objects of a backup that both list, which the copy has lost.
fn lost(
    from: &Repository,
    cluster: &ClusterName,
    entry: &BackupEntry,
    there: &BTreeMap<ObjectName, u64>,
) -> Result<Vec<(ObjectName, Fingerprint)>> {
    let record = Record::load(from, cluster, &entry.id, &entry.record)?;
    let reader = ManifestReader::open(from.store().clone(), from.keys(), &names::manifest(cluster, &entry.id))?;
    let packs = packs_of(reader)?.0.into_iter();
    let mut all: Vec<(ObjectName, Fingerprint)> =
        packs.map(|u| (names::pack(cluster, &u.id.backup, u.id.number), u.fingerprint)).collect();
    all.push((names::manifest(cluster, &entry.id), record.manifest().clone()));
    all.push((names::record(cluster, &entry.id), entry.record.clone()));
    all.retain(|(name, _)| !there.contains_key(name));
    Ok(all)
}

/// The backup's own WAL must be in the copy before it is listed.
fn check_wal(from: &Repository, to: &Repository, cluster: &ClusterName, entry: &BackupEntry) -> Result<()> {
    let Some(physical) = entry.as_physical() else { return Ok(()) };
    let archive = WalArchive::new(to, cluster, entry.system_id);
    if let Some(name) = wal::missing(&archive, &physical, to)? {
        return Err(EngineError::failed(
            "E-REPLICATE-WAL",
            format!("the copy has no wal segment {name}, which {} needs", entry.id),
            "'pgark verify' of the source shows whether it is there",
        ));
    }
    let source = WalArchive::new(from, cluster, entry.system_id);
    match wal::of_other_history(&source, &archive, &physical, to)? {
        None => Ok(()),
        Some(name) => Err(EngineError::failed(
            "E-REPLICATE-WAL",
            format!("wal segment {name} of the copy is of another history than that of {}", entry.id),
            "the server was set back or cloned, and each repository archived one of both: find out which is right",
        )),
    }
}
