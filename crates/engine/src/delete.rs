//! Removing one backup. It stops being listed first; its objects go after that.

use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore, JobKind};
use pgark_repo::names::{BackupId, ClusterName, backup_dir, pack_of};

use crate::backup::job::remove_remains;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

#[derive(Clone, Debug)]
pub struct DeletePlan {
    pub id: BackupId,
    pub objects: u64,
    pub bytes: u64,
    /// Its packs that stay, because other backups need them.
    pub kept: u64,
    /// Complete backups of its kind that would be left.
    pub remaining: usize,
    /// Or in its grace, which ends now.
    pub listed: bool,
}

impl DeletePlan {
    /// Whether it is not listed, and nothing of it is left that goes.
    pub fn is_done(&self) -> bool {
        !self.listed && self.objects == 0
    }
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
    if let Some(entry) = listed.filter(|b| b.is_held(catalog.time_of_marks(ctx.now()))) {
        let until = entry.kept_until.filter(|_| !entry.kept);
        let how_long = until.map_or_else(String::new, |t| format!(" until a backup has been made after {t}"));
        return Err(EngineError::refused(
            "E-BACKUP-KEPT",
            format!("backup {id} is marked to be kept{how_long}"),
            format!("'pgark unkeep {id}' removes the mark"),
        ));
    }
    // One of another kind is no substitute.
    let remaining = catalog.backups.iter().filter(|b| b.id != *id && b.kind == id.kind()).count();
    if listed.is_some() && remaining == 0 && last == LastBackup::Refuse {
        return Err(EngineError::refused(
            "E-BACKUP-LAST",
            format!("{id} is the only {} backup of '{cluster}'", id.kind()),
            "take another backup first, or repeat with --last",
        ));
    }
    let found = ObjectsGone::count(repo, cluster, &catalog, id)?;
    let listed = listed.is_some() || catalog.expired(id).is_some();
    Ok(DeletePlan { id: id.clone(), objects: found.objects, bytes: found.bytes, kept: found.kept, remaining, listed })
}

/// What goes with a backup: its objects without packs that others need, and packs of backups that were deleted before
/// which it alone needs.
#[derive(Default)]
struct ObjectsGone {
    objects: u64,
    bytes: u64,
    kept: u64,
}

impl ObjectsGone {
    fn count(repo: &Repository, cluster: &ClusterName, catalog: &Catalog, id: &BackupId) -> Result<Self> {
        let mut after = catalog.clone();
        after.backups.retain(|b| b.id != *id);
        after.expired.retain(|e| e.backup != *id);
        let mut found = ObjectsGone::default();
        found.look(repo, cluster, id, &|number| !after.is_needed(id, number))?;
        for of in catalog.backup(id).iter().flat_map(|b| &b.needs).filter(|of| catalog.removing.contains(&of.backup)) {
            let mut packs = ObjectsGone::default();
            // Nothing but packs is left of it.
            let goes = |number| of.contains(number) && !after.is_needed(&of.backup, number);
            packs.look(repo, cluster, &of.backup, &goes)?;
            found.objects += packs.objects;
            found.bytes += packs.bytes;
        }
        Ok(found)
    }

    fn look(
        &mut self,
        repo: &Repository,
        cluster: &ClusterName,
        id: &BackupId,
        goes: &dyn Fn(u32) -> bool,
    ) -> Result<()> {
        repo.store().list(&backup_dir(cluster, id), &mut |stat| {
            if pack_of(&stat.name).is_some_and(|number| !goes(number)) {
                self.kept += 1;
            } else {
                self.objects += 1;
                self.bytes += stat.size;
            }
            Ok(())
        })?;
        Ok(())
    }
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
