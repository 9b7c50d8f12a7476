//! What a restore took, from its beginning until the database was there: kept as a report, for forecasts.
//!
//! Invariant: only whole restores count, whose recovery was watched to its planned end. One that wrote what differed, or whose
//! server somebody started later, measures something else.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use pgark_pg::value::Lsn;
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::report::{NewReport, ReportId, Severity, StoredReport};
use serde::{Deserialize, Serialize};

use super::RestorePlan;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::sources::Sources;
use crate::validate::render::{CSS, html, markdown};

/// How such reports are called.
pub const WHAT: &str = "restored";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    pub backup: BackupId,
    /// Where recovery ended.
    pub reached: String,
    pub started: Timestamp,
    /// Files, from the repository.
    pub restore: Took,
    /// WAL, until the server had come to the end.
    pub recover: Took,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    pub duration_ms: u64,
    pub bytes: u64,
}

impl Took {
    pub fn new(duration: Duration, bytes: u64) -> Self {
        Took { duration_ms: duration.as_millis().try_into().unwrap_or(u64::MAX), bytes }
    }
}

impl Timed {
    pub fn new(plan: &RestorePlan, reached: Lsn, started: Timestamp, restore: Took, recover: Duration) -> Self {
        let wal = reached.0.saturating_sub(plan.backup.lsn_start.0);
        let recover = Took::new(recover, wal);
        Timed { backup: plan.backup.id.clone(), reached: reached.to_string(), started, restore, recover }
    }

    /// In the first repository that the backup was read from.
    pub fn store(&self, sources: &Sources, plan: &RestorePlan, cluster: &ClusterName, ctx: &Ctx) -> Result<ReportId> {
        let new = NewReport {
            what: WHAT,
            severity: Severity::Info,
            backup: Some(self.backup.clone()),
            database: None,
            summary: self.summary(),
            report: serde_json::to_value(self).map_err(|e| {
                EngineError::failed("E-REPORT-STORE", format!("the report cannot be written as JSON: {e}"), "")
            })?,
        };
        let repo = sources.only(&plan.holders).first()?;
        Ok(StoredReport::store(&repo, cluster, new, ctx.now())?.id)
    }

    fn summary(&self) -> String {
        format!(
            "recovered to {}; {}, {}",
            self.reached,
            self.of("restored", self.restore),
            self.of("replayed", self.recover)
        )
    }

    fn of(&self, what: &str, took: Took) -> String {
        format!("{what} {} bytes in {:.1} s", took.bytes, Duration::from_millis(took.duration_ms).as_secs_f64())
    }

    fn facts(&self) -> [(&'static str, String); 5] {
        [
            ("Backup", self.backup.to_string()),
            ("Begun", self.started.to_string()),
            ("Files", self.of("restored", self.restore)),
            ("WAL", self.of("replayed", self.recover)),
            ("Recovered to", self.reached.clone()),
        ]
    }
}

pub fn to_markdown(timed: &Timed) -> String {
    let mut out = "# A restore\n\n".to_owned();
    for (name, value) in timed.facts() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "- {name}: {}", markdown(&value));
    }
    out
}

pub fn to_html(timed: &Timed) -> String {
    let rows = timed.facts().map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", html(&value)));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>A restore</title><style>{CSS}</style></head>\n\
         <body><h1>A restore</h1>\n<table>\n{}</table></body></html>\n",
        rows.concat()
    )
}
