//! The audit trail. No backup needs it; what is wrong with it is told all the same.

use pgark_repo::audit::{self, Journal};
use pgark_repo::names;

use super::{Depth, ProblemKind, Verify};
use crate::audit::journals_of;
use crate::error::Result;

impl Verify<'_> {
    pub(super) fn trail(&mut self) -> Result<()> {
        for name in journals_of(&self.options.cluster) {
            self.ctx.check_cancelled()?;
            let journal = Journal::new(self.repo, name.clone());
            if self.options.depth == Depth::Quick {
                self.report.objects_checked += journal.numbers()?.len() as u64;
                continue;
            }
            let checked = audit::check(&journal, &[], &mut |_| Ok(()))?;
            self.report.objects_checked += checked.records;
            self.report.bytes_checked += checked.bytes;
            for fault in checked.faults {
                let object = fault.strange.unwrap_or_else(|| names::audit_record(&name, fault.number));
                let what = format!("audit trail: {}", fault.what);
                self.problem(object.as_str(), ProblemKind::Damaged, what, vec![], vec![]);
            }
        }
        Ok(())
    }
}
