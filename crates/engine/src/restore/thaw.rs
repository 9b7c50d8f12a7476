//! Whether what a restore reads can be read at once, asked before it writes.
//!
//! A rule of the bucket moves the packs of one backup together, so the first and the last that are needed of each
//! directory are tried, by a byte each.

use std::collections::BTreeMap;

use pgark_repo::Repository;
use pgark_repo::catalog::BackupEntry;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::store::{Store, StoreError};

use crate::error::{EngineError, Result};
use crate::sources::Sources;

/// Directories that are named in the message.
const NAMED_MAX: usize = 5;

/// Those of `holders` from which the backup can be read at once.
///
/// # Errors
/// `E-REPO-ARCHIVED`, refused, with what has to be thawed, when there is none.
pub fn check(sources: &Sources, holders: &[usize], cluster: &ClusterName, entry: &BackupEntry) -> Result<Vec<usize>> {
    let (mut at_once, mut archived) = (vec![], None);
    for n in holders {
        match sources.repo(*n).and_then(|repo| check_one(&repo, cluster, entry)) {
            Err(e) if e.code() == "E-REPO-ARCHIVED" => archived = archived.or(Some(sources.named(*n, e))),
            // What is wrong with it otherwise shows when it is read.
            Err(e) if sources.passes(*n, &e) => at_once.push(*n),
            Err(e) => return Err(sources.named(*n, e)),
            Ok(()) => at_once.push(*n),
        }
    }
    match archived {
        Some(e) if at_once.is_empty() => Err(e),
        _ => Ok(at_once),
    }
}

fn check_one(repo: &Repository, cluster: &ClusterName, entry: &BackupEntry) -> Result<()> {
    let store = repo.store().as_ref();
    if !store.may_archive() {
        return Ok(());
    }
    let mut frozen: Vec<(String, u64)> = vec![];
    for (backup, packs) in needed(store, cluster, entry)? {
        let ends = [packs.first(), packs.last()];
        let mut archived = false;
        for (first, _) in ends.into_iter().flatten() {
            archived |= is_archived(store, cluster, &backup, *first)?;
        }
        if archived {
            let count = packs.iter().map(|(a, b)| u64::from(b - a) + 1).sum();
            frozen.push((format!("{}/packs/", names::backup_dir(cluster, &backup)), count));
        }
    }
    if frozen.is_empty() {
        return Ok(());
    }
    let count: u64 = frozen.iter().map(|f| f.1).sum();
    let mut named: Vec<String> = frozen.iter().take(NAMED_MAX).map(|(dir, n)| format!("{dir} ({n})")).collect();
    if frozen.len() > NAMED_MAX {
        named.push(format!("and {} more directories", frozen.len() - NAMED_MAX));
    }
    Err(EngineError::refused(
        "E-REPO-ARCHIVED",
        format!(
            "backup {} needs {count} packs that are archived and cannot be read at once: {}",
            entry.id,
            named.join(", ")
        ),
        "thaw them with the store's own tools, wait until that is done and run the restore again: docs/capacity.md tells \
         how; nothing was written",
    ))
}

/// Runs of pack numbers by the backup that wrote them.
fn needed(
    store: &dyn Store,
    cluster: &ClusterName,
    entry: &BackupEntry,
) -> Result<BTreeMap<BackupId, Vec<(u32, u32)>>> {
    let mut own: Vec<(u32, u32)> = vec![];
    store.list(&format!("{}/packs", names::backup_dir(cluster, &entry.id)), &mut |stat| {
        own.extend(names::pack_of(&stat.name).map(|n| (n, n)));
        Ok(())
    })?;
    let mut all: BTreeMap<BackupId, Vec<(u32, u32)>> =
        entry.needs.iter().map(|n| (n.backup.clone(), n.packs.clone())).collect();
    all.entry(entry.id.clone()).or_default().extend(own);
    Ok(all)
}

/// What is missing or cannot be reached is for the restore itself to tell.
fn is_archived(store: &dyn Store, cluster: &ClusterName, backup: &BackupId, pack: u32) -> Result<bool> {
    match store.read_at(&names::pack(cluster, backup, pack), 0, &mut [0]) {
        Err(StoreError::Archived { .. }) => Ok(true),
        Err(StoreError::NotFound { .. } | StoreError::Truncated { .. }) | Ok(()) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
