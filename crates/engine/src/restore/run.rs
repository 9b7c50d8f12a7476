//! A restore from plan to directory, falling back to an older backup when the newest turns out to be damaged.

use std::path::Path;

use pgark_repo::RepoError;
use pgark_repo::catalog::{CatalogStore, Claim, Evidence, JobKind, Needs, WalNeed};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::store::StoreErrorKind;
use pgark_repo::wal::WalHead;

use super::files::{self, empty_dir, unfinished};
use super::space::{PlacedTablespace, check_target, running_postmaster};
use super::thaw;
use super::{RestoreOptions, RestorePlan, RestoreReport, plan};
use crate::archive;
use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, FailureClass, Result};
use crate::repair;
use crate::sources::Sources;

/// Plans and checks the target; writes nothing.
pub fn prepare(options: &RestoreOptions, sources: &Sources, avoid: &[BackupId]) -> Result<(RestorePlan, Remains)> {
    let mut plan = plan(options, sources, avoid)?;
    plan.holders = thaw::check(sources, &plan.holders, &options.cluster, &plan.backup)?;
    let remains = if options.delta { Remains { found: None } } else { Remains::of(&options.to) };
    if remains.found.is_none() {
        check_target(options, &plan)?;
    }
    Ok((plan, remains))
}

/// What an interrupted restore left at the target; it is removed before the next one writes.
pub struct Remains {
    found: Option<Vec<std::path::PathBuf>>,
}

impl Remains {
    fn of(to: &Path) -> Self {
        let link = std::fs::symlink_metadata(to).is_ok_and(|m| m.file_type().is_symlink());
        let found = if link || running_postmaster(to).is_some() { None } else { unfinished(to) };
        Remains { found }
    }

    pub fn are_there(&self) -> bool {
        self.found.is_some()
    }

    fn remove(&self, to: &Path) -> Result<()> {
        let Some(tablespaces) = &self.found else { return Ok(()) };
        for location in tablespaces {
            // Only what that restore made: a data directory's part, never anything else.
            remove_version_dirs(location)?;
        }
        empty_dir(to)
    }
}

fn remove_version_dirs(location: &Path) -> Result<()> {
    let failed = |e: std::io::Error| EngineError::file("removing the remains of a restore from", location, e);
    let entries = match std::fs::read_dir(location) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("PG_") && entry.file_type().map_err(failed)?.is_dir();
        if ours {
            std::fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Restores. `announce` is called with each plan before anything of it is written.
pub fn run(
    options: &RestoreOptions,
    sources: &Sources,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
) -> Result<(RestorePlan, RestoreReport)> {
    let mut avoid: Vec<BackupId> = vec![];
    loop {
        let (plan, remains) = prepare(options, sources, &avoid)?;
        announce(&plan);
        if remains.are_there() {
            ctx.progress.note("removing what an interrupted restore left in the target directory");
            remains.remove(&options.to)?;
        }
        let places = check_target(options, &plan)?;
        match write(options, &plan, &places, sources, ctx) {
            Ok(report) => return Ok((plan, report)),
            Err(e) if e.class() == FailureClass::Damaged && options.backup.is_none() => {
                ctx.progress
                    .note(&format!("DEGRADED: backup {} is damaged ({e}): trying an older one", plan.backup.id));
                avoid.push(plan.backup.id.clone());
                if !options.delta {
                    Remains::of(&options.to).remove(&options.to)?;
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn write(
    options: &RestoreOptions,
    plan: &RestorePlan,
    places: &[PlacedTablespace],
    sources: &Sources,
    ctx: &Ctx,
) -> Result<RestoreReport> {
    let holders = sources.only(&plan.holders);
    let claims = pin(&holders, &options.cluster, plan, ctx)?;
    let kept: Vec<KeptClaim> = claims.iter().map(|claim| KeptClaim::new(claim.clone(), ctx)).collect();
    // Between the plan and the pin something may have expired.
    let outcome = still_there(sources, &options.cluster, plan)
        .and_then(|()| files::run(options, plan, places, &holders, ctx))
        .map(|report| mended(report, &options.cluster, plan, sources, ctx));
    drop(kept);
    for claim in claims {
        // The files are written either way; a claim that cannot be given back runs out by itself.
        if let Err(e) = claim.release() {
            tracing::debug!(%e, "the claim on the backup was not released");
        }
    }
    outcome
}

/// Keeps the backup from being deleted meanwhile, in each repository that lists it. One that is read-only needs no pin.
pub(crate) fn pin(sources: &Sources, cluster: &ClusterName, plan: &RestorePlan, ctx: &Ctx) -> Result<Vec<Claim>> {
    let wal = WalNeed {
        system_id: plan.backup.system_id,
        timeline: plan.path.target(),
        from: plan.backup.lsn_start,
        to: Some(plan.stop.read_to),
    };
    let needs = Needs { base: None, wal: Some(wal) };
    let (mut claims, mut failed, mut unprotected) = (vec![], None, 0);
    for n in sources.order() {
        let claim = sources
            .repo(n)
            .and_then(|repo| claim_to_read(&CatalogStore::new(&repo, cluster), &plan.backup.id, needs.clone(), ctx));
        match claim {
            Ok(Some(claim)) => claims.push(claim),
            Ok(None) => unprotected += 1,
            // It may be another one that has this backup.
            Err(e) => {
                sources.passes(n, &e);
                failed = failed.or(Some(sources.named(n, e)));
            }
        }
    }
    match failed {
        Some(e) if claims.is_empty() && unprotected == 0 => Err(e),
        _ => Ok(claims),
    }
}

/// The claim of who reads a backup; None from a repository that cannot be written to.
pub(crate) fn claim_to_read(catalog: &CatalogStore, id: &BackupId, needs: Needs, ctx: &Ctx) -> Result<Option<Claim>> {
    match catalog.claim_with(JobKind::Restore, id, needs, ctx.now()) {
        Ok(c) => Ok(Some(c)),
        Err(RepoError::Store(e))
            if matches!(e.kind(), StoreErrorKind::Denied | StoreErrorKind::ReadOnly | StoreErrorKind::NoSpace) =>
        {
            ctx.progress
                .note("the repository cannot be written to: the backup is not protected against deletion meanwhile");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Whether the WAL that recovery needs is kept, in one repository or another.
fn still_there(sources: &Sources, cluster: &ClusterName, plan: &RestorePlan) -> Result<()> {
    let (mut heads, mut failed) = (vec![], None);
    for n in sources.order() {
        let head = sources.repo(n).and_then(|repo| archive::kept_head(&repo, cluster, plan.backup.system_id));
        match head {
            Ok(head) => heads.push(head),
            Err(e) if sources.len() > 1 => {
                sources.passes(n, &e);
                failed = failed.or(Some(sources.named(n, e)));
            }
            Err(e) => return Err(e),
        }
    }
    match failed {
        Some(e) if heads.is_empty() => Err(e),
        _ => {
            let names = plan.path.segments(plan.backup.lsn_start, plan.stop.read_to);
            archive::all_kept(&WalHead::joined(&heads), &names, plan.record.segment_size)
        }
    }
}

/// What was missing or damaged in one repository is put back from another while the backup is protected. That it fails is
/// told, and no failure of the restore.
fn mended(
    report: RestoreReport,
    cluster: &ClusterName,
    plan: &RestorePlan,
    sources: &Sources,
    ctx: &Ctx,
) -> RestoreReport {
    let mended = repair::mend(sources, cluster, Some(&plan.backup.id), ctx);
    RestoreReport { troubles: sources.troubles(), mended, ..report }
}

/// Records that this backup was recovered to its planned end, where it was read from.
pub fn record_replay(sources: &Sources, cluster: &ClusterName, plan: &RestorePlan) -> Result<()> {
    let id = &plan.backup.id;
    sources.only(&plan.holders).each(|_, repo| {
        CatalogStore::new(repo, cluster).update(|c| {
            let entry = c.backups.iter_mut().find(|b| b.id == *id && b.evidence < Evidence::Replayed);
            Ok(entry.map(|b| b.evidence = Evidence::Replayed))
        })?;
        Ok(())
    })
}
