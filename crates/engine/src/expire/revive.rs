//! Bringing back what has expired while it is in its grace: a backup, and the WAL from it on.
//!
//! Invariant: what is taken back was not being removed. That a removal begins is a change of the catalog, as the revival is.
//! The head takes the WAL back first: between the two it holds more than it has to.

use jiff::Timestamp;
use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize, TimelineId};
use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, WalExpiry};
use pgark_repo::gc;
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::wal::head::{intersect, merged, subtract};
use pgark_repo::wal::{SegmentRange, WalArchive};
use pgark_repo::{RepoError, Repository};

use super::presence::Look;
use super::wal::Archive;
use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::keep::Mark;

#[derive(Clone, Debug)]
pub struct RevivePlan {
    pub entry: BackupEntry,
    /// WAL that comes back with it.
    pub wal: Vec<SegmentRange>,
    /// The last segment of unbroken WAL from it on, once that is back; None where it needs none.
    pub reaches: Option<SegmentName>,
    /// WAL from it on that is gone: moments in it, and after it from this backup, cannot be reached.
    pub gone: Vec<SegmentRange>,
    pub segment_size: SegmentSize,
}

/// Looks at everything and changes nothing. `until` is when its mark ends; None: when somebody says so.
pub fn plan(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    until: Option<Timestamp>,
    ctx: &Ctx,
) -> Result<RevivePlan> {
    if let Some(until) = until {
        crate::keep::check(&Mark::KeepUntil(until), ctx.now())?;
    }
    let catalog = CatalogStore::new(repo, cluster).read()?;
    let entry = expired_entry(&catalog, id)?;
    let lineage = catalog
        .lineage_of(entry.system_id)
        .ok_or_else(|| RepoError::corrupt(&catalog.cluster, format!("backup {id} is of a system it does not list")))?;
    let mut look = Look::new(repo, cluster, ctx)?;
    let what = match look.missing(&entry)? {
        None => look.damaged(id)?,
        missing => missing,
    };
    if let Some(what) = what {
        return Err(gone(id, &what));
    }
    let segment_size = lineage.segment_size;
    let Some(physical) = entry.as_physical() else {
        return Ok(RevivePlan { entry, wal: vec![], reaches: None, gone: vec![], segment_size });
    };
    let mut archive = Archive::load(repo, cluster, &catalog, lineage)?;
    let (first, _) = physical.segments(lineage.segment_size);
    let of_system: Vec<&WalExpiry> = catalog.wal_expiries.iter().filter(|e| e.system_id == entry.system_id).collect();
    let wanted = from_on(&archive, &of_system, first);
    archive.head.revive(u64::MAX, &wanted);
    let present = WalArchive::new(repo, cluster, entry.system_id).present(&archive.head, lineage.segment_size)?;
    let wal = common(&wanted, &present);
    archive.head = present;
    if !archive.has_wal_of(&physical) {
        return Err(gone(id, "WAL that it needs to become consistent was removed"));
    }
    let span = archive.head.timeline(physical.timeline);
    let last = span.and_then(|s| s.unbroken_to(first)).ok_or_else(|| gone(id, "its WAL was removed"))?;
    let removed = archive.head.timelines().iter().flat_map(|t| {
        let absent = wanted.iter().filter(|r| r.timeline == t.timeline).map(|r| (r.first.0, r.last.0));
        let absent = subtract(&merged(absent.collect()), &t.ranges);
        let expired = intersect(&t.expired, &[(first.0, u64::MAX)]).collect::<Vec<_>>();
        merged([absent, expired].concat()).into_iter().map(|r| range(t.timeline, r)).collect::<Vec<_>>()
    });
    let reaches = Some(SegmentName { timeline: physical.timeline, segment: last });
    Ok(RevivePlan { wal, reaches, gone: removed.collect(), segment_size, entry })
}

/// Lists the backup again, kept until that moment or until somebody says otherwise: the rules that gave it up would give it
/// up again.
pub fn run(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    until: Option<Timestamp>,
    ctx: &Ctx,
) -> Result<RevivePlan> {
    let catalog = CatalogStore::new(repo, cluster);
    let claim = catalog.claim_expiry(ctx.now())?;
    let kept = KeptClaim::new(claim.clone(), ctx);
    let outcome = (|| -> Result<RevivePlan> {
        gc::apply_pending(repo, &catalog)?;
        // Under the claim nothing begins to be removed.
        let plan = plan(repo, cluster, id, until, ctx)?;
        WalArchive::new(repo, cluster, plan.entry.system_id).revive(claim.fence(), &plan.wal)?;
        kept.check()?;
        let entry = claim.revive(id, until, &plan.wal)?;
        Ok(RevivePlan { entry, ..plan })
    })();
    drop(kept);
    let released = claim.release();
    let done = outcome?;
    released?;
    Ok(done)
}

/// Why a backup that is not listed cannot be used, as far as that is known.
pub fn not_listed(catalog: &Catalog, id: &BackupId) -> EngineError {
    match catalog.expired(id) {
        Some(e) => EngineError::refused(
            "E-BACKUP-EXPIRED",
            format!("backup {id} expired at {}; its objects are there until {}", e.since, e.due),
            format!("'pgark unexpire {id}' brings it back"),
        ),
        None => RepoError::NoBackup { cluster: catalog.cluster.to_string(), id: id.to_string() }.into(),
    }
}

fn expired_entry(catalog: &Catalog, id: &BackupId) -> Result<BackupEntry> {
    if catalog.backup(id).is_some() {
        return Err(EngineError::refused(
            "E-UNEXPIRE-LISTED",
            format!("backup {id} has not expired"),
            format!("'pgark keep {id}' protects it"),
        ));
    }
    match catalog.expired(id) {
        Some(e) => e.entry.as_deref().cloned().ok_or_else(|| gone(id, "the catalog has not kept its entry")),
        None if catalog.removing.contains(id) => Err(gone(id, "it was deleted, and its objects are removed")),
        None => Err(not_listed(catalog, id)),
    }
}

fn gone(id: &BackupId, what: &str) -> EngineError {
    EngineError::refused(
        "E-UNEXPIRE-GONE",
        format!("backup {id} cannot be brought back: {what}"),
        "another repository may still have it: 'pgark replicate --from REPO --to REPO ID'",
    )
}

/// What has expired from this segment on, on every timeline, and is not being removed.
fn from_on(archive: &Archive, expiries: &[&WalExpiry], first: SegmentNo) -> Vec<SegmentRange> {
    let of = |removing: bool, timeline: TimelineId| {
        let ranges = expiries.iter().filter(|e| e.removing == removing).flat_map(|e| &e.ranges);
        merged(ranges.filter(|r| r.timeline == timeline).map(|r| (r.first.0, r.last.0)).collect())
    };
    let mut out = vec![];
    for t in archive.head.timelines() {
        let waiting = subtract(&of(false, t.timeline), &of(true, t.timeline));
        let expired: Vec<(u64, u64)> = intersect(&t.expired, &waiting).collect();
        out.extend(intersect(&expired, &[(first.0, u64::MAX)]).map(|r| range(t.timeline, r)));
    }
    out
}

/// What of these the head has.
fn common(ranges: &[SegmentRange], head: &pgark_repo::wal::WalHead) -> Vec<SegmentRange> {
    let of = |r: &SegmentRange| {
        let there = head.timeline(r.timeline).map(|t| t.ranges.clone()).unwrap_or_default();
        let both: Vec<(u64, u64)> = intersect(&there, &[(r.first.0, r.last.0)]).collect();
        both.into_iter().map(|b| range(r.timeline, b)).collect::<Vec<_>>()
    };
    ranges.iter().flat_map(of).collect()
}

fn range(timeline: TimelineId, (first, last): (u64, u64)) -> SegmentRange {
    SegmentRange { timeline, first: SegmentNo(first), last: SegmentNo(last) }
}
