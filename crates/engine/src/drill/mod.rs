//! A rehearsal: a backup is restored into a directory of its own, started where nobody but us reaches it, recovered to the target,
//! read, compared and asked; then it is removed. What came of it is a report, and the backup's place on the ladder of evidence.
//!
//! Invariants: the production cluster, its archive and its slots are not touched, and nothing stays behind, however this ends. What was
//! not checked is never green. What keeps a recovery from succeeding makes the rehearsal red; what only keeps the rehearsal from being
//! held is an error.

mod examine;
pub mod forecast;
pub mod logical;
pub mod physical;
mod render;
pub mod report;

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, CatalogStore, Evidence};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::report::{NewReport, ReportId, Severity, StoredReport};

pub use render::{to_html, to_markdown};
pub use report::{Objective, Reason, Report, Step, StepKind, Verdict};

use crate::ctx::Ctx;
use crate::error::{EngineError, FailureClass, Result};
use crate::expire::policy;
use crate::foreign;
use crate::scratch::server::Isolation;
use crate::scratch::{self, Scratch};
use crate::validate::UserCheck;

/// Of which a random one is taken.
const RANDOM_WITHIN: Duration = Duration::from_secs(31 * 24 * 3600);
/// Under which name reports of rehearsals are stored.
pub const WHAT: &str = "drill";

/// Which backup is rehearsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The newest one that serves the target.
    Latest,
    /// Any of the last 31 days that is not known to be damaged.
    Random,
    Named(BackupId),
}

/// What all rehearsals need to know.
#[derive(Debug, Clone)]
pub struct DrillOptions {
    pub cluster: ClusterName,
    pub which: Which,
    /// In which the directory of the rehearsal is made. It is made itself where it is missing.
    pub base: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// Programs of the server; searched for when None.
    pub bin: Option<PathBuf>,
    pub jobs: usize,
    /// How long recovery may take, and reading each database.
    pub within: Duration,
    /// Libraries that the server may load at its start.
    pub libraries: Vec<String>,
    pub checks: Vec<UserCheck>,
    pub check_within: Duration,
    pub rpo: Option<Duration>,
    pub rto: Option<Duration>,
}

impl DrillOptions {
    fn isolation(&self) -> Isolation<'_> {
        Isolation { bin: self.bin.clone(), within: self.within, libraries: &self.libraries }
    }

    fn report(&self, kind: BackupKind, target: String, ctx: &Ctx) -> Report {
        let ms = |span: Option<Duration>| span.map(report::millis);
        let mut report = Report::new(&self.cluster, kind, target, ctx.now());
        (report.rpo.target_ms, report.rto.target_ms) = (ms(self.rpo), ms(self.rto));
        report
    }
}

/// Looks at the place for a rehearsal, and clears what an earlier one left there.
fn prepare(options: &DrillOptions, ctx: &Ctx) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Err(EngineError::refused(
            "E-ROOT",
            "PostgreSQL does not run as root, and the rehearsed cluster would be root's",
            "run this as the postgres user",
        ));
    }
    foreign::refuse(&options.base, "E-DRILL-DIR")?;
    match DirBuilder::new().mode(0o700).create(&options.base) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(EngineError::refused(
                "E-DRILL-DIR",
                format!("{} cannot be made: {e}", options.base.display()),
                "name a directory for drills with --dir or drill.dir",
            ));
        }
        _ => {}
    }
    private(&options.base)?;
    for gone in scratch::sweep(&options.base)? {
        ctx.progress.note(&format!("removed {}, which an interrupted run had left", gone.display()));
    }
    Ok(())
}

/// Nobody else may exchange what lies in it.
fn private(base: &Path) -> Result<()> {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let meta = std::fs::metadata(base).map_err(|e| EngineError::file("looking at", base, e))?;
    let shared = meta.mode() & OTHERS_WRITE != 0 && meta.mode() & STICKY == 0;
    let foreign = meta.uid() != rustix::process::geteuid().as_raw()
        && rustix::fs::access(base, rustix::fs::Access::WRITE_OK).is_err();
    if meta.is_dir() && !shared && !foreign {
        return Ok(());
    }
    let why = if !meta.is_dir() {
        "is no directory"
    } else if shared {
        "lets others write into it"
    } else {
        "belongs to another user"
    };
    Err(EngineError::refused(
        "E-DRILL-DIR",
        format!("{} {why}", base.display()),
        "name a directory of your own with --dir or drill.dir",
    ))
}

/// Whether an error says that this backup could not have been recovered here; another one only says that nothing was tried.
fn is_finding(e: &EngineError) -> bool {
    matches!(e.class(), FailureClass::Damaged | FailureClass::Failed | FailureClass::Refused)
}

/// Holds a rehearsal in a directory of its own, which is gone afterwards. What `hold` finds goes into the report.
fn hold_in_scratch(
    options: &DrillOptions,
    mut report: Report,
    ctx: &Ctx,
    hold: impl FnOnce(&Scratch, &mut Report) -> Result<()>,
) -> Result<Report> {
    let began = Instant::now();
    let scratch = Scratch::make(&options.base, &options.program)?;
    let outcome = hold(&scratch, &mut report);
    ctx.progress.note("removing the rehearsed cluster");
    let ended = scratch.end();
    match outcome {
        Ok(()) => {}
        Err(e) if is_finding(&e) => report.failed_by("", &e),
        Err(e) => return Err(e),
    }
    if let Err(e) = ended {
        report.failed_by("", &e);
    }
    report.conclude(began.elapsed());
    Ok(report)
}

/// A red one, which ended before anything was written.
fn ended_early(mut report: Report, error: &EngineError) -> Report {
    report.failed_by("", error);
    report.conclude(Duration::ZERO);
    report
}

/// One of these backups by chance: of the last 31 days and not known to be damaged.
fn any_of<'e>(entries: impl Iterator<Item = &'e BackupEntry>, now: Timestamp) -> Result<BackupId> {
    let since = policy::before(now, RANDOM_WITHIN);
    let ids: Vec<&BackupId> = entries.filter(|b| b.finished >= since && b.damaged.is_none()).map(|b| &b.id).collect();
    let none = || {
        EngineError::refused(
            "E-BACKUP-NONE",
            "no backup of the last 31 days is there, or each is known to be damaged",
            "'pgark info' lists the backups",
        )
    };
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|e| EngineError::failed("E-SYSTEM", format!("no random bytes: {e}"), ""))?;
    let count = u64::try_from(ids.len()).unwrap_or(0);
    let at = u64::from_le_bytes(random).checked_rem(count).ok_or_else(none)?;
    let chosen = usize::try_from(at).ok().and_then(|at| ids.get(at).copied());
    chosen.cloned().ok_or_else(none)
}

/// That a rehearsal proved this backup.
fn record_proof(repo: &Repository, cluster: &ClusterName, id: &BackupId, at: Timestamp) -> Result<()> {
    CatalogStore::new(repo, cluster).update(|c| {
        let entry = c.backups.iter_mut().find(|b| b.id == *id);
        Ok(entry.map(|b| {
            b.evidence = b.evidence.max(Evidence::Drilled);
            b.drilled = b.drilled.max(Some(at));
        }))
    })?;
    Ok(())
}

/// Stores the report of a rehearsal.
pub fn store(repo: &Repository, report: &Report, ctx: &Ctx) -> Result<ReportId> {
    let new = NewReport {
        what: WHAT,
        severity: match report.verdict {
            Verdict::Green => Severity::Info,
            Verdict::NotProven => Severity::Warning,
            Verdict::Red => Severity::Incident,
        },
        backup: report.backup.clone(),
        database: None,
        summary: report.summary(),
        report: serde_json::to_value(report).map_err(|e| {
            EngineError::failed("E-REPORT-STORE", format!("the report cannot be written as JSON: {e}"), "")
        })?,
    };
    Ok(StoredReport::store(repo, &report.cluster, new, ctx.now())?.id)
}
