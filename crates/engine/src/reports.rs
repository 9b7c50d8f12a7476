//! Reports in the repository: what a validation found, how they are read again, when they go.
//!
//! Invariant: a difference between what was restored and what was backed up is stored as an incident, whoever asked.

use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::Claim;
use pgark_repo::names::ClusterName;
use pgark_repo::report::{self, NewReport, ReportId, Severity, StoredReport};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::expire::policy;
use crate::validate::{Outcome, Report};

/// What health care asks for: six years, and leap days.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(2192 * 24 * 3600);

/// What was validated, and what became of it.
pub struct Validated<'a> {
    /// `restore`, `validate`; a `drill` stores its own.
    pub what: &'static str,
    /// As it is called in the backup.
    pub database: &'a str,
    /// As it is called on the server.
    pub called: &'a str,
    pub report: &'a Report,
}

/// Stores what a validation found.
pub fn store(repo: &Repository, cluster: &ClusterName, of: &Validated<'_>, ctx: &Ctx) -> Result<ReportId> {
    let failed: Vec<&str> =
        of.report.checks.iter().filter(|c| c.outcome == Outcome::Failed).map(|c| c.name.as_str()).collect();
    let open = of.report.not_compared_with().join(", ");
    let (severity, found) = match of.report.outcome {
        Outcome::Ok if open.is_empty() => (Severity::Info, "is what was backed up".to_owned()),
        Outcome::Ok => {
            (Severity::Info, format!("is what was backed up as far as it was compared; not compared: {open}"))
        }
        Outcome::NotChecked => (Severity::Warning, "was not checked completely".to_owned()),
        Outcome::Failed => (Severity::Incident, format!("is NOT what was backed up: {}", failed.join(", "))),
    };
    let backup = of.report.against.as_ref().and_then(|a| a.backup.clone());
    let new = NewReport {
        what: of.what,
        severity,
        backup,
        database: Some(of.database.to_owned()),
        summary: format!("'{}', called '{}', {found}", of.database.escape_debug(), of.called.escape_debug()),
        report: serde_json::to_value(of.report).map_err(|e| {
            EngineError::failed("E-REPORT-STORE", format!("the report cannot be written as JSON: {e}"), "")
        })?,
    };
    Ok(StoredReport::store(repo, cluster, new, ctx.now())?.id)
}

/// That it could not be stored, in words.
pub fn not_stored(e: &EngineError) -> String {
    format!("E-REPORT-STORE the report of the validation is not in the repository: {}: {e}", e.code())
}

/// One, or the newest.
pub fn load(repo: &Repository, cluster: &ClusterName, id: Option<&ReportId>) -> Result<StoredReport> {
    let none = |what: String| EngineError::refused("E-REPORT-NONE", what, "'pgark report list' shows what there is");
    let id = match id {
        Some(id) => id.clone(),
        None => report::list(repo, cluster)?.pop().ok_or_else(|| none(format!("there is no report of '{cluster}'")))?,
    };
    match StoredReport::load(repo, cluster, &id) {
        Ok((report, _)) => Ok(report),
        Err(e) if e.is_not_found() => Err(none(format!("there is no report {id}"))),
        Err(e) => Err(e.into()),
    }
}

/// One of a list: a damaged one is told in its place.
pub type Listed = (ReportId, std::result::Result<StoredReport, EngineError>);

/// The newest ones, the newest first; older ones are not opened.
pub fn newest(repo: &Repository, cluster: &ClusterName, most: usize, ctx: &Ctx) -> Result<Vec<Listed>> {
    let mut out = vec![];
    for id in report::list(repo, cluster)?.into_iter().rev().take(most) {
        ctx.check_cancelled()?;
        match StoredReport::load(repo, cluster, &id) {
            Ok((report, _)) => out.push((id, Ok(report))),
            Err(e) if e.is_damage() => out.push((id, Err(e.into()))),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(out)
}

/// Removes those that are six years older than the newest backup, by clocks that are not in doubt: where no backups are made any
/// more, nothing grows old.
pub(crate) fn remove_old(
    repo: &Repository,
    cluster: &ClusterName,
    newest: Option<Timestamp>,
    claim: &Claim,
) -> Result<u64> {
    let Some(before) = newest.map(|newest| policy::before(newest, KEPT_FOR)) else { return Ok(0) };
    let mut removed = 0;
    for id in report::list(repo, cluster)? {
        if id.time().is_none_or(|time| time >= before) {
            continue;
        }
        claim.check()?;
        report::remove(repo, cluster, &id)?;
        removed += 1;
    }
    Ok(removed)
}
