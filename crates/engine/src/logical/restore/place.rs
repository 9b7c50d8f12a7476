//! The last step: what was loaded takes its name, and with it the place of the database that has it.
//!
//! Invariant: until both names are exchanged, in one transaction, everything is as before.

use std::time::Duration;

use pgark_repo::names::BackupId;

use super::run::Restore;
use super::{DatabasePlan, Old, Replace, RestoreDatabase, RestoreReport, SAFETY, admin, exists};
use crate::cluster::provision;
use crate::cluster::{ClusterError, Connection};
use crate::error::{EngineError, Result};
use crate::logical::{Wanted, run as back_up};

/// How long sessions may take to end.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);

const IN_USE_HINT: &str = "end them, or stop what uses the database, and try again; sessions of superusers are ended by superusers \
                           alone, those of other roles by members of pg_signal_backend too";

impl Restore<'_> {
    pub(super) fn safety_backup(&self, plan: &DatabasePlan) -> Result<Option<BackupId>> {
        let Some(RestoreDatabase { replace: Replace::Replace { safety: Some(options), .. }, .. }) =
            &self.options.database
        else {
            return Ok(None);
        };
        self.ctx.progress.note(&format!("backing up '{}' as it is now", plan.to.escape_debug()));
        let mut options = options.clone();
        options.databases = Wanted::Named(vec![plan.to.clone()]);
        options.annotations.insert(SAFETY.into(), format!("before the restore of {}", self.plan.record.id));
        let report = back_up(&options, self.repo, self.ctx).map_err(|e| {
            EngineError::failed(
                "E-SAFETY-BACKUP",
                format!("the database as it is now could not be backed up, and was not touched: {}: {e}", e.code()),
                "see to that first, or go on without it: --no-safety-backup",
            )
        })?;
        Ok(Some(report.entry.id))
    }

    /// Nothing is wrong with it as far as is known: it takes its name, and the old one goes.
    pub(super) fn place(&self, plan: &DatabasePlan, admin: &Connection, report: &mut RestoreReport) -> Result<()> {
        if !plan.replaces {
            return provision::rename_database(admin, &plan.loading, &plan.to).map_err(|e| {
                match provision::is_taken(&e) {
                    true => exists(&plan.to, "was made by somebody else meanwhile"),
                    false => e.into(),
                }
            });
        }
        let wanted = self.options.database.as_ref().map(|d| &d.replace);
        let keep = matches!(wanted, Some(Replace::Replace { old: Old::Keep, .. }));
        self.swap(plan, keep)?;
        // From here on the restored database is in place, and nothing is undone.
        if keep {
            report.kept = Some(plan.aside.clone());
        } else if let Err(e) = provision::drop_database(admin, &plan.aside) {
            report.warnings.push(format!("the old database is there as '{}': {e}", plan.aside));
            report.kept = Some(plan.aside.clone());
        }
        Ok(())
    }

    /// In sessions of its own, which a wish to stop interrupts: until the last moment everything is as before.
    fn swap(&self, plan: &DatabasePlan, keep: bool) -> Result<()> {
        let shown = plan.to.escape_debug();
        self.ctx.progress.note(&format!("ending the sessions in '{shown}', and putting the restored one in its place"));
        let (conn, ender) = (admin(self.options)?, admin(self.options)?);
        let stop = self.ctx.cancel_flag();
        conn.interrupt_by(stop.clone());
        let (old, aside, new) = (plan.to.as_str(), plan.aside.as_str(), plan.loading.as_str());
        let swap = provision::Swap { old, aside, keep, new, within: SESSIONS_WITHIN, stop: &stop };
        match provision::swap_databases(&conn, ender, &swap) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.ctx.check_cancelled()?;
                Err(EngineError::failed(
                    "E-DATABASE-IN-USE",
                    format!("sessions in '{shown}' did not end within {} s", SESSIONS_WITHIN.as_secs()),
                    IN_USE_HINT,
                ))
            }
            Err(e @ ClusterError::Denied { .. }) => Err(EngineError::failed(
                "E-DATABASE-IN-USE",
                format!("sessions in '{shown}' cannot be ended: {e}"),
                IN_USE_HINT,
            )),
            Err(e) => {
                self.ctx.check_cancelled()?;
                Err(e.into())
            }
        }
    }
}
