//! Removing one backup. It stops being listed first; its objects go after that.

use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, JobKind};
use pgark_repo::names::{BackupId, ClusterName, backup_dir};

use crate::backup::job::remove_remains;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

#[derive(Clone, Debug)]
pub struct DeletePlan {
    pub id: BackupId,
    pub objects: u64,
    pub bytes: u64,
    /// Complete backups that would be left.
    pub remaining: usize,
    pub listed: bool,
}

/// What may the caller take responsibility for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBackup {
    Refuse,
    Allow,
}

pub fn plan(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    last: LastBackup,
    ctx: &Ctx,
) -> Result<DeletePlan> {
    let catalog = CatalogStore::new(repo, cluster).read()?;
    let listed = catalog.backup(id);
    if listed.is_none() && !catalog.has_remains(id) && !catalog.jobs.iter().any(|j| j.backup.as_ref() == Some(id)) {
        return Err(pgark_repo::RepoError::NoBackup { cluster: cluster.to_string(), id: id.to_string() }.into());
    }
    if let Some(hold) = listed.and_then(|b| b.holds.first()) {
        return Err(EngineError::refused(
            "E-BACKUP-HELD",
            format!("backup {id} is under a legal hold since {}: {}", hold.since, hold.reason),
            format!("'pgark unkeep {id} --lift-hold REASON' lifts it"),
        ));
    }
    if listed.is_some_and(|b| b.is_held(ctx.now())) {
        return Err(EngineError::refused(
            "E-BACKUP-KEPT",
            format!("backup {id} is marked to be kept"),
            format!("'pgark unkeep {id}' removes the mark"),
        ));
    }
    if let Some(user) = catalog.backups.iter().find(|b| b.id != *id && b.needs.iter().any(|n| n.backup == *id)) {
        tracing::debug!(user = %user.id, "packs of this backup are needed by another one and stay");
    }
    let remaining = catalog.backups.iter().filter(|b| b.id != *id).count();
    if listed.is_some() && remaining == 0 && last == LastBackup::Refuse {
        return Err(EngineError::refused(
            "E-BACKUP-LAST",
            format!("{id} is the only backup of '{cluster}'"),
            "take another backup first, or repeat with --last",
        ));
    }
    let (mut objects, mut bytes) = (0, 0);
    repo.store()
        .list(&backup_dir(cluster, id), &mut |stat| {
            objects += 1;
            bytes += stat.size;
            Ok(())
        })
        .map_err(pgark_repo::RepoError::from)?;
    Ok(DeletePlan { id: id.clone(), objects, bytes, remaining, listed: listed.is_some() })
}

pub fn run(repo: &Repository, cluster: &ClusterName, plan: &DeletePlan, ctx: &Ctx) -> Result<()> {
    crate::error::refuse_append_only(repo)?;
    let catalog = CatalogStore::new(repo, cluster).thrifty();
    if plan.listed {
        let claim = catalog.claim(JobKind::Delete, &plan.id, ctx.now())?;
        claim.unlist()?;
        remove_remains(&catalog)?;
        claim.release()?;
    } else {
        remove_remains(&catalog)?;
    }
    Ok(())
}
