//! Reports that lie in the repository. No backup needs one; a damaged one is told all the same.

use pgark_repo::names;
use pgark_repo::report::{self, StoredReport};

use super::{Depth, ProblemKind, Verify};
use crate::error::Result;

impl Verify<'_> {
    pub(super) fn reports(&mut self) -> Result<()> {
        let cluster = &self.options.cluster;
        for id in report::list(self.repo, cluster)? {
            self.ctx.check_cancelled()?;
            let name = names::report(cluster, &id);
            self.claimed.insert(&name);
            self.report.objects_checked += 1;
            if self.options.depth == Depth::Quick {
                continue;
            }
            match StoredReport::load(self.repo, cluster, &id) {
                Ok((_, print)) => self.report.bytes_checked += print.size,
                // Removed since it was listed.
                Err(e) if e.is_not_found() => {}
                Err(e) if e.is_damage() => self.problem(name.as_str(), ProblemKind::Damaged, e, vec![], vec![]),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
