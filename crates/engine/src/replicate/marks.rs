//! Marks of backups that both repositories list: what one protects, its copies protect. None is ever lifted by a copy.

use pgark_repo::catalog::{BackupEntry, CatalogStore};
use pgark_repo::names::BackupId;

use crate::error::Result;

/// The copy's entry with all marks, when it lacks one.
pub(super) fn missing(source: &BackupEntry, there: &BackupEntry) -> Option<BackupEntry> {
    let mut marked = there.clone();
    add(source, &mut marked);
    (marked != *there).then_some(marked)
}

fn add(from: &BackupEntry, to: &mut BackupEntry) {
    to.kept |= from.kept;
    to.kept_until = to.kept_until.max(from.kept_until);
    let lacks = |reason: &str| to.holds.iter().all(|hold| hold.reason != reason);
    let holds: Vec<_> = from.holds.iter().filter(|hold| lacks(&hold.reason)).cloned().collect();
    to.holds.extend(holds);
}

/// In one change. Returns which got any.
pub(super) fn copy(catalog: &CatalogStore, marked: &[BackupEntry]) -> Result<Vec<BackupId>> {
    if marked.is_empty() {
        return Ok(vec![]);
    }
    let done = catalog.update(|c| {
        let mut done = vec![];
        for entry in &mut c.backups {
            let before = entry.clone();
            if let Some(marked) = marked.iter().find(|marked| marked.id == entry.id) {
                add(marked, entry);
            }
            if *entry != before {
                done.push(entry.id.clone());
            }
        }
        Ok((!done.is_empty()).then_some(done))
    })?;
    Ok(done.unwrap_or_default())
}
