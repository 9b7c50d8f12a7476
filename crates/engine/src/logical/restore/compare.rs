//! What was loaded is compared with what was backed up, before it takes its place.

use std::io::{BufReader, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use pgark_repo::record::DatabaseDump;

use super::run::Restore;
use super::{DatabasePlan, Validation};
use crate::cluster::Examiners;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{PartReader, Source, nameless};
use crate::truth::{Scope, TruthReader};
use crate::validate::{Contents, Expectations, Report, ValidateOptions, validate};

/// The truth that was stored with a dump, as it lies here.
pub enum StoredTruth {
    Here(BufReader<std::fs::File>),
    /// Nothing can be compared, and why.
    None(String),
}

/// A truth that is damaged does not make the dump a worse one: what it would tell is not checked then.
pub fn fetch_truth(source: &Source<'_>, dump: &DatabaseDump, scratch: &Path, ctx: &Ctx) -> Result<StoredTruth> {
    let Some(part) = &dump.truth else {
        return Ok(StoredTruth::None("the backup was taken without a truth".into()));
    };
    let failed = |e| EngineError::file("writing a temporary file in", scratch, e);
    let mut file = nameless(scratch).map_err(failed)?;
    let read = PartReader::new(source)?.read(&part.path, ctx, &mut |bytes| {
        file.write_all(bytes).map_err(failed)?;
        Ok(ControlFlow::Continue(()))
    });
    match read {
        Ok(bytes) if bytes == part.bytes => {}
        Ok(_) => return Ok(StoredTruth::None("the truth in the backup is not as long as it was".into())),
        Err(e) if e.is_damage() => return Ok(StoredTruth::None(format!("the truth in the backup is damaged: {e}"))),
        Err(e) => return Err(e),
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(StoredTruth::Here(BufReader::new(file)))
}

impl Restore<'_> {
    pub(super) fn compare(
        &self,
        plan: &DatabasePlan,
        how: &Validation,
        truth: StoredTruth,
        scope: Option<Scope>,
        settings_left: bool,
    ) -> Result<Report> {
        self.ctx.progress.note(&format!("comparing '{}' with the backup", plan.loading));
        let options = ValidateOptions {
            database: plan.loading.clone(),
            backup: Some(self.plan.record.id.clone()),
            made_from: Some(plan.dump.name.clone()),
            expect: Expectations { physical: false, contents: Contents::IfHashed, scope, settings_left },
            jobs: self.options.jobs,
            within: how.within,
            examiners: Examiners::Off,
            unexamined: "not after a restore: every page and every index was made a moment ago; 'pgark validate' reads them",
            checks: how.checks.clone(),
            ask_as: how.ask_as.clone(),
            check_within: how.check_within,
        };
        let (recorded, lacking) = match truth {
            StoredTruth::Here(file) => (Some(TruthReader::open(file)?), None),
            StoredTruth::None(why) => (None, Some(why)),
        };
        let mut report = validate(&self.options.connect, recorded, &options, self.ctx)?;
        if let Some(why) = lacking {
            report.not_compared(&why);
        }
        Ok(report)
    }

    /// It stays where it is: loading it may have taken hours.
    pub(super) fn not_compared(&self, plan: &DatabasePlan, because: &EngineError) -> EngineError {
        let (shown, loading) = (plan.to.escape_debug(), &plan.loading);
        let state = if plan.replaces {
            format!("database '{shown}' is as it was")
        } else {
            format!("there is no database '{shown}'")
        };
        EngineError::failed(
            because.code(),
            format!(
                "what was restored could not be compared with the backup, and was left as '{loading}'; {state}: {because}"
            ),
            format!(
                "'pgark validate --database {loading} --against {}' compares it; then rename it, or drop it and restore with --no-validate",
                self.plan.record.id
            ),
        )
    }
}
