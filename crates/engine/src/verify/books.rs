//! What somebody can verify who may write to a cluster and not read it: the books, and that what they name is there.
//!
//! Invariant: what could not be opened is counted and told, and no backup counts as checked.

use pgark_repo::catalog::BackupEntry;
use pgark_repo::store::ObjectName;
use pgark_repo::{RepoError, names};

use super::{ProblemKind, Verify};
use crate::error::Result;

/// Content that was not opened, because a writer's secret does not open it.
#[derive(Default)]
pub(super) struct Unopened {
    backups: u64,
    wal: u64,
}

impl Verify<'_> {
    pub(super) fn by_books(&self) -> bool {
        self.report.by_books
    }

    /// Record and manifest are there, and the record has the size that the catalog knows.
    pub(super) fn presence_of_backups(&mut self, backups: &[&BackupEntry]) -> Result<()> {
        for entry in backups {
            self.ctx.check_cancelled()?;
            let (cluster, id) = (&self.options.cluster, &entry.id);
            let sizes = [(names::record(cluster, id), Some(entry.record.size)), (names::manifest(cluster, id), None)];
            for (name, size) in sizes {
                self.claimed.insert(&name);
                self.report.objects_checked += 1;
                match self.repo.store().stat(&name) {
                    Ok(found) if size.is_none_or(|size| size == found.size) => {}
                    Ok(found) => {
                        let what = format!("{} bytes, {} were written", found.size, entry.record.size);
                        self.problem(name.as_str(), ProblemKind::Damaged, what, vec![id.clone()], vec![]);
                    }
                    Err(e) if e.is_not_found() => {
                        self.problem(name.as_str(), ProblemKind::Missing, e, vec![id.clone()], vec![]);
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            self.unopened.backups += 1;
        }
        Ok(())
    }

    /// A writer's "cannot be opened" is no finding, if the object is there.
    pub(super) fn opened<T>(
        &mut self,
        object: &ObjectName,
        outcome: Result<T, RepoError>,
    ) -> Result<Option<T>, RepoError> {
        match outcome {
            Err(RepoError::WriteOnly { .. }) => {
                self.repo.store().stat(object)?;
                self.unopened.wal += 1;
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// What nobody has looked at.
    pub(super) fn report_unopened(&mut self) {
        if !self.by_books() {
            return;
        }
        let Unopened { backups, wal } = self.unopened;
        let notes = &mut self.report.notes;
        notes.push(
            "the secret at hand is a writer's: no content was opened, and objects that nobody accounts for were not looked for"
                .into(),
        );
        if backups > 0 {
            notes.push(format!(
                "{backups} backups were not checked, but that their record and manifest are there; their packs were not looked at"
            ));
        }
        if wal > 0 {
            notes.push(format!(
                "{wal} WAL files are there, and were stored when the cluster had no writer: not checked"
            ));
        }
    }
}
