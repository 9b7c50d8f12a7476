//! What was given up while a verification ran, which may have been stopped in the middle for any time: its objects are gone
//! by right, and nothing of it is damage.

use std::collections::{BTreeMap, BTreeSet};

use pgark_pg::value::{SegmentSize, SystemId};
use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::names::{self, BackupId};
use pgark_repo::store::ObjectName;
use pgark_repo::wal::{WalArchive, WalHead};

use super::{Problem, ProblemKind, Verify};
use crate::error::Result;

type Heads = BTreeMap<SystemId, (String, SegmentSize, WalHead)>;

impl Verify<'_> {
    /// Takes what is no problem any more from the report, by the books as they are now.
    pub(super) fn settle_with_the_present(
        &mut self,
        store: &CatalogStore,
        damaged: &mut BTreeSet<BackupId>,
    ) -> Result<()> {
        if self.report.problems.is_empty() {
            return Ok(());
        }
        let now = store.read()?;
        let gone: BTreeSet<BackupId> =
            self.catalog.backups.iter().map(|b| &b.id).filter(|id| now.backup(id).is_none()).cloned().collect();
        let heads = self.heads(&now)?;
        damaged.retain(|id| !gone.contains(id));
        let mut settled = 0u64;
        for mut problem in std::mem::take(&mut self.report.problems) {
            let had_backups = !problem.backups.is_empty();
            problem.backups.retain(|id| !gone.contains(id));
            let is_gone = had_backups && problem.backups.is_empty() && problem.windows.is_empty();
            if is_gone || has_expired(&problem, &heads) {
                settled += 1;
            } else {
                self.report.problems.push(problem);
            }
        }
        if settled > 0 {
            let ids: Vec<String> = gone.iter().map(ToString::to_string).collect();
            let of = if ids.is_empty() { String::new() } else { format!("; backups that went: {}", ids.join(", ")) };
            self.report.notes.push(format!("{settled} objects were given up while this ran, and are not missing{of}"));
        }
        Ok(())
    }

    fn heads(&self, now: &Catalog) -> Result<Heads> {
        let mut heads = Heads::new();
        for lineage in &now.lineages {
            let wal = WalArchive::new(self.repo, &self.options.cluster, lineage.system_id);
            match wal.head() {
                Ok(head) => {
                    let dir = format!("{}/", wal.place().dir());
                    drop(heads.insert(lineage.system_id, (dir, lineage.segment_size, head)));
                }
                // Reported with the registers.
                Err(e) if e.is_damage() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(heads)
    }
}

/// Whether it is a WAL segment that the archive has given up.
fn has_expired(problem: &Problem, heads: &Heads) -> bool {
    if matches!(problem.kind, ProblemKind::Unexpected | ProblemKind::Conflict) {
        return false;
    }
    let Ok(object) = ObjectName::parse(&problem.object) else { return false };
    heads.values().filter(|(dir, ..)| object.as_str().starts_with(dir)).any(|(_, size, head)| {
        let segment = names::segment_copy(names::principal(object.basename()), *size);
        segment.is_some_and(|(name, copy)| {
            head.timeline(name.timeline).is_some_and(|t| t.is_expired(name.segment)) && copy < head.expired_below(&name)
        })
    })
}
