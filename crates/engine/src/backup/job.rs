//! A backup as a job: its id, how it begins, and what becomes of it.

use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupType, CatalogStore, Claim, JobKind, Needs, Reading};
use pgark_repo::names::BackupId;

use super::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Temporary files of dead processes go when they are older; live ones are recognised besides.
pub(crate) const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A backup under way: what it is listed by, and what keeps others away meanwhile.
pub(crate) struct BackupJob<'a> {
    catalog: &'a CatalogStore,
    repo: &'a Repository,
    ctx: &'a Ctx,
    pub claim: Claim,
    pub kept: KeptClaim,
}

impl<'a> BackupJob<'a> {
    /// The claim for a new backup; what dead ones left goes.
    pub fn begin(
        catalog: &'a CatalogStore,
        repo: &'a Repository,
        ctx: &'a Ctx,
        id: &BackupId,
        base: Option<BackupId>,
        started: Timestamp,
    ) -> Result<Self> {
        let claim = catalog.claim_with(JobKind::Backup, id, Needs { base, wal: None }, started)?;
        remove_remains(catalog)?;
        repo.store().sweep_abandoned(ABANDONED_AFTER)?;
        let kept = KeptClaim::new(claim.clone(), ctx);
        Ok(BackupJob { catalog, repo, ctx, claim, kept })
    }

    /// Lists the backup, with warnings that take nothing from it; or gives it up.
    pub fn conclude<R>(
        self,
        outcome: Result<(R, Reading)>,
        entry: impl FnOnce(&R) -> &BackupEntry,
    ) -> Result<(R, Vec<String>)> {
        let BackupJob { catalog, repo, ctx, claim, kept } = self;
        drop(kept);
        let (report, reading) = match outcome {
            Ok(done) => done,
            Err(e) => {
                give_up(catalog, claim, &e);
                return Err(e);
            }
        };
        let mut warnings = vec![];
        if let Some(doubt) = claim.commit_backup_at(entry(&report), &reading)? {
            warnings.push(format!(
                "{}. Until the clocks agree, backups count as no younger than is certain, and nothing expires",
                crate::clock::describe(&doubt)
            ));
        }
        // The backup is there; what cannot be removed now waits for the next one.
        if let Err(e) = crate::expire::remove_due(repo, catalog.cluster(), ctx) {
            warnings.push(format!("what has expired could not be removed: {e}"));
        }
        Ok((report, warnings))
    }
}

/// The id for a backup of this moment; later than every one that was given out, so that ids order backups even when
/// several are made within a second or the clock is set back.
pub(crate) fn new_id(catalog: &CatalogStore, now: Timestamp, letter: char) -> Result<BackupId> {
    let known = catalog.read()?;
    let listed = known.backups.iter().map(|b| &b.id);
    let given_out = listed
        .chain(&known.removing)
        .chain(&known.interrupted)
        .chain(known.expired.iter().map(|e| &e.backup))
        .chain(known.jobs.iter().filter_map(|j| j.backup.as_ref()))
        .chain(&known.last_id);
    let last = given_out.filter_map(BackupId::time).map(|t| t.as_second().saturating_add(1)).max();
    let second = now.as_second().max(last.unwrap_or(i64::MIN));
    let at = Timestamp::from_second(second).map_err(|e| {
        EngineError::failed("E-CLOCK", format!("the clock says {now}: {e}"), "set the clock of this machine")
    })?;
    Ok(BackupId::new(at, letter))
}

/// Of the ids of physical backups.
pub(super) fn letter(backup_type: BackupType) -> char {
    match backup_type {
        BackupType::Full => 'F',
        BackupType::Incremental => 'I',
    }
}

/// What interrupted backups left. Two passes: the second sees that nothing is left.
pub fn remove_remains(catalog: &CatalogStore) -> Result<()> {
    catalog.sweep()?;
    catalog.sweep()?;
    Ok(())
}

/// The backup failed; its error is what counts. What it has stored stays for the next one, unless the room is needed.
/// What cannot be cleaned up now is cleaned up by the next one.
pub(crate) fn give_up(catalog: &CatalogStore, claim: Claim, because: &EngineError) {
    // Refused for want of room before it wrote anything: there is nothing to keep and nothing to remove.
    if matches!(because, EngineError::Refused { code: "E-REPO-SPACE", .. }) {
        if let Err(e) = claim.release() {
            tracing::warn!(%e, "the claim of the refused backup stays until it is taken for dead");
        }
        return;
    }
    let keep = !is_full(because);
    let cleaned = claim.abandon(keep).map_err(EngineError::from).and_then(|()| remove_remains(catalog));
    if let Err(e) = cleaned {
        tracing::warn!(%e, "the remains of the failed backup stay until the next one");
    }
}

fn is_full(error: &EngineError) -> bool {
    // Servers tell it in words of their own.
    if error.repo().is_some_and(pgark_repo::RepoError::is_no_space) {
        return true;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        let kind = e.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = e.source();
    }
    false
}
