//! A physical backup as a tar that starts with PostgreSQL's own means: data directory, tablespaces, the WAL that makes
//! it consistent, and PostgreSQL's own list of checksums.
//!
//! Invariant: what comes out is compared with the manifest before it is written. `pg_control` is the last entry, so
//! what was cut short does not start; the same backup gives the same bytes.

mod content;
pub(crate) mod facts;
mod output;
mod pack;
mod pg_manifest;
mod readme;
mod stream;
pub mod system;
mod tar;
mod write;

use std::path::{Path, PathBuf};

use pgark_pg::value::SegmentName;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupKind, CatalogStore};
use pgark_repo::names::{BackupId, ClusterName};

use crate::archive;
use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::Result;
use crate::logical::restore::SAFETY;
use crate::restore::{
    ArchiveMode, RestoreOptions, RestorePlan, Target, TargetAction, TimelineChoice, plan as restoring, run::pin,
};
use crate::sources::Sources;

pub use output::Destination;
pub use pack::Packing;

pub struct ExportOptions {
    pub cluster: ClusterName,
    /// None: the newest.
    pub backup: Option<BackupId>,
    pub packing: Packing,
    /// Where a file without a name may grow; it holds names and checksums, about 200 bytes for each file of the backup.
    pub spool: PathBuf,
}

/// What is exported.
pub struct ExportPlan {
    pub restore: RestorePlan,
    /// The WAL that goes along: from the backup's start to its end.
    pub wal: Vec<SegmentName>,
    /// The directory in which everything lies in the tar.
    pub top: String,
}

#[derive(Clone, Debug, Default)]
pub struct ExportReport {
    pub files: u64,
    /// Content of all files, WAL included.
    pub bytes: u64,
    /// What was written, compressed.
    pub size: u64,
    pub sha256: String,
    pub warnings: Vec<String>,
}

/// Of a cluster without physical backups: the newest of its other ones, but for those that were taken before a restore.
pub fn newest_other(repo: &Repository, cluster: &ClusterName) -> Result<Option<BackupId>> {
    let catalog = CatalogStore::new(repo, cluster).read()?;
    if catalog.backups.iter().any(|b| b.kind == BackupKind::Physical) {
        return Ok(None);
    }
    let ordinary = catalog.backups.iter().rfind(|b| !b.annotations.contains_key(SAFETY));
    Ok(ordinary.map(|b| b.id.clone()))
}

/// Finds the backup and its WAL, and checks that the WAL is whole; writes nothing.
pub fn plan(options: &ExportOptions, repo: &Repository) -> Result<ExportPlan> {
    // As a restore to the end of the backup, which is what somebody does with an export.
    let restore = RestoreOptions {
        cluster: options.cluster.clone(),
        backup: options.backup.clone(),
        to: PathBuf::new(),
        target: Target::Immediate,
        timeline: TimelineChoice::Current,
        action: TargetAction::Promote,
        tablespace_map: vec![],
        archive_mode: ArchiveMode::Off,
        delta: false,
        jobs: 1,
        program: PathBuf::new(),
        places: vec![],
    };
    let restore = restoring(&restore, &Sources::one(repo.clone()), &[])?;
    let wal = restore.path.segments(restore.backup.lsn_start, restore.backup.lsn_stop);
    let top = format!("{}-{}", options.cluster, restore.backup.id);
    Ok(ExportPlan { restore, wal, top })
}

/// Writes the tar. A file appears under its name when it is whole and durable.
pub fn run(
    options: &ExportOptions,
    plan: &ExportPlan,
    to: &Destination,
    repo: &Repository,
    ctx: &Ctx,
) -> Result<ExportReport> {
    let claims = pin(&Sources::one(repo.clone()), &options.cluster, &plan.restore, ctx)?;
    let kept: Vec<KeptClaim> = claims.iter().map(|claim| KeptClaim::new(claim.clone(), ctx)).collect();
    let outcome = (|| {
        // Between the plan and the pin something may have expired.
        let record = &plan.restore.record;
        archive::check_kept(repo, &options.cluster, record.system_id, &plan.wal, record.segment_size)?;
        to.write(&mut |out| write::write(options, plan, out, repo, ctx))
    })();
    drop(kept);
    for claim in claims {
        if let Err(e) = claim.release() {
            tracing::debug!(%e, "the claim on the backup was not released");
        }
    }
    outcome
}

/// Whether there is something already; to be asked before anything is read.
pub fn check_free(to: &Path) -> Result<()> {
    output::check_free(to)
}
