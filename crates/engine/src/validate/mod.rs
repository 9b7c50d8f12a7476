//! "Restored" means equal to the source. A database is compared with the truth that was taken with its backup, its storage is read, and
//! the questions of its administrators are asked.
//!
//! Invariants: nothing is changed in the database; what could not be checked is in the report as not checked, with the reason.

mod checks;
mod compare;
pub(crate) mod render;
mod report;
mod storage;

use std::io::BufRead;
use std::time::{Duration, Instant};

pub use checks::UserCheck;
pub(crate) use checks::ask_all;
pub use compare::{Contents, Expectations};
pub use render::{html_text, markdown_text, to_html, to_markdown};
pub use report::{Against, Check, CheckKind, Outcome, Report, SCHEMA, Tally};

use pgark_repo::names::BackupId;

use crate::cluster::{AskAs, ConnectOptions, Examiners};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::truth::{self, Header, TruthOptions, TruthReader};

#[derive(Debug, Clone)]
pub struct ValidateOptions {
    pub database: String,
    /// Where the truth comes from.
    pub backup: Option<BackupId>,
    /// The database that it was made from, by whose name checks are asked, too.
    pub made_from: Option<String>,
    pub expect: Expectations,
    /// Sessions that read at the same time.
    pub jobs: usize,
    /// How long each part may take.
    pub within: Duration,
    pub examiners: Examiners,
    /// Why, when they are off.
    pub unexamined: &'static str,
    /// Of all databases; those of the validated one, or of the one it was made from, are asked.
    pub checks: Vec<UserCheck>,
    pub ask_as: AskAs,
    /// How long one question may take.
    pub check_within: Duration,
}

/// Validates one database, against a truth if there is one.
///
/// # Errors
/// When the database cannot be reached or the truth is damaged. What is wrong with the database is in the report.
pub fn validate<R: BufRead>(
    connect: &ConnectOptions,
    recorded: Option<TruthReader<R>>,
    options: &ValidateOptions,
    ctx: &Ctx,
) -> Result<Report> {
    let (began, started) = (Instant::now(), ctx.now());
    let hashed = recorded.as_ref().is_some_and(|r| r.header().hashed);
    let hashes = hashed && options.expect.contents != Contents::LeftOut;
    let looking = TruthOptions { hashes, jobs: options.jobs, within: options.within };
    let mut comparison = compare::Comparison::new(recorded, options.expect.clone());
    truth::observe(connect, &options.database, &looking, ctx, &mut comparison)?;
    let (live, against, mut checks) = comparison.finish()?;
    let live = live.ok_or_else(|| EngineError::failed("E-VALIDATE", "the database told nothing of itself", ""))?;
    checks.extend(storage::examine(connect, options, ctx)?);
    checks.extend(checks::ask_all(connect, options, against.as_ref(), ctx)?);
    let against = against.map(|Header { database, taken, server_version_num, size_bytes, .. }| Against {
        backup: options.backup.clone(),
        database,
        taken,
        server_version_num,
        size_bytes,
    });
    Ok(Report {
        schema: SCHEMA,
        database: live.database,
        server_version_num: live.server_version_num,
        size_bytes: live.size_bytes,
        started,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        against,
        outcome: Report::judge(&checks),
        checks,
    })
}
