//! The rehearsal of a physical backup: files and WAL, to any moment.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::BackupId;

use super::examine::{Cluster, Truths};
use super::{
    DrillOptions, Report, StepKind, Which, any_of, ended_early, hold_in_scratch, is_finding, prepare, record_proof,
};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::{self, RestoreOptions, RestorePlan, Target, run as restoring};
use crate::scratch::{self, Scratch, server, tablespaces};
use crate::sources::{Sources, joined};

pub struct PhysicalDrill {
    pub common: DrillOptions,
    /// Target and timeline, and what the recovering server needs; the rest is decided here.
    pub restore: RestoreOptions,
    /// None: everything that is archived; of a random backup, its own end.
    pub target: Option<Target>,
    /// Truths of databases at the target.
    pub truths: Vec<PathBuf>,
}

impl PhysicalDrill {
    fn target(&self) -> Target {
        match (&self.target, &self.common.which) {
            (Some(target), _) => target.clone(),
            // Its WAL need not reach to this day.
            (None, Which::Random) => Target::Immediate,
            (None, _) => Target::Latest,
        }
    }
}

/// Which backup would be taken, and where recovery would end. Writes nothing.
pub fn plan(drill: &PhysicalDrill, sources: &Sources, ctx: &Ctx) -> Result<RestorePlan> {
    let backup: Option<BackupId> = match &drill.common.which {
        Which::Latest => None,
        Which::Named(id) => Some(id.clone()),
        Which::Random => {
            let catalogs = sources.catalogs(&drill.common.cluster)?;
            let all = joined(&catalogs).expect("there is at least one");
            Some(any_of(all.backups.iter().filter(|b| b.physical.is_some()), ctx.now())?)
        }
    };
    let options = RestoreOptions { backup, target: drill.target(), ..drill.restore.clone() };
    restore::plan(&options, sources, &[])
}

/// Rehearses. `announce` is shown the plan before anything is written.
///
/// # Errors
/// Where no rehearsal could be held. That a recovery failed is in the report.
pub fn run(
    drill: &PhysicalDrill,
    sources: &Sources,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
) -> Result<Report> {
    let options = &drill.common;
    named_is_there(options, sources)?;
    let mut truths = Truths::open(&drill.truths)?;
    prepare(options, ctx)?;
    let mut report = options.report(BackupKind::Physical, drill.target().to_string(), ctx);
    let plan = match plan(drill, sources, ctx) {
        Ok(plan) => plan,
        Err(e) if is_finding(&e) => return Ok(ended_early(report, &e)),
        Err(e) => return Err(e),
    };
    announce(&plan);
    report.backup = Some(plan.backup.id.clone());
    report.backup_finished = Some(plan.backup.finished);
    report.server_version_num = Some(plan.record.version_num);
    for note in &plan.notes {
        // A newer backup could not be used: whoever needs it will find that out.
        if note.starts_with("DEGRADED") {
            report.fail("E-DRILL-DEGRADED", note)
        } else {
            report.notes.push(note.clone())
        }
    }
    if let Err(e) = fits(options, &plan) {
        return Ok(ended_early(report, &e));
    }
    match tablespaces::made_by_replay(&plan, &options.cluster, sources) {
        Ok(None) => {}
        Ok(Some(place)) => {
            report.not_checked(format!(
                "recovery: a tablespace was made in {place} after the backup began, and recovery would work in that directory; \
                 rehearse a later backup, or an earlier target"
            ));
            report.conclude(Duration::ZERO);
            return Ok(report);
        }
        Err(e) if is_finding(&e) => return Ok(ended_early(report, &e)),
        Err(e) => return Err(e),
    }
    let report = hold_in_scratch(options, report, ctx, |scratch, report| {
        rehearse(drill, &plan, sources, ctx, scratch, report, &mut truths)
    })?;
    Ok(proven(options, &plan, sources, report))
}

/// A name that somebody mistyped says nothing about recovery.
fn named_is_there(options: &DrillOptions, sources: &Sources) -> Result<()> {
    let Which::Named(id) = &options.which else { return Ok(()) };
    let catalogs = sources.catalogs(&options.cluster)?;
    let all = joined(&catalogs).expect("there is at least one");
    let entry = all.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&all, id))?;
    if entry.physical.is_some() {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-BACKUP-KIND",
        format!("{id} is a {} backup", entry.kind),
        format!("rehearse it with --kind {}", entry.kind),
    ))
}

/// Whether this machine can do it at all.
fn fits(options: &DrillOptions, plan: &RestorePlan) -> Result<()> {
    server::programs_of(options.bin.as_deref(), plan.record.version_num / 10_000)?;
    let needed = plan.record.totals.size_bytes.saturating_add(server::SPARE_BYTES);
    server::room(&options.base, needed, "choose another directory with --dir or drill.dir")
}

fn rehearse(
    drill: &PhysicalDrill,
    plan: &RestorePlan,
    sources: &Sources,
    ctx: &Ctx,
    scratch: &Scratch,
    report: &mut Report,
    truths: &mut Truths,
) -> Result<()> {
    let options = &drill.common;
    // This one and no other: that an older one would do is no proof of it.
    let wanted =
        RestoreOptions { backup: Some(plan.backup.id.clone()), target: drill.target(), ..drill.restore.clone() };
    let wanted = server::into(scratch, &plan.record, &wanted);
    let began = Instant::now();
    let (restored, done) = restoring::run(&wanted, sources, ctx, &mut |_| {})?;
    report.step(StepKind::Restore, began.elapsed(), done.bytes_restored);
    report.notes.extend(done.warnings);
    report.notes.extend(sources.notices());
    for trouble in done.troubles {
        report.not_checked(format!(
            "repository {}: {}; another repository had it, and that one was rehearsed",
            trouble.repository, trouble.what
        ));
    }
    let superuser = scratch::bootstrap_superuser(&scratch.data())?;
    let began = Instant::now();
    let (connect, started) = server::recover(scratch, &restored, &superuser, &options.isolation(), ctx)?;
    let wal = restored.stop.end.0.saturating_sub(restored.backup.lsn_start.0);
    report.step(StepKind::Recover, began.elapsed(), wal);
    report.reached = Some(started.reached.to_string());
    if let Err(e) = restoring::record_replay(sources, &options.cluster, &restored) {
        report.notes.push(format!("that the backup was recovered could not be recorded: {e}"));
    }
    measure(&drill.target(), &restored, started.last_replayed, report);
    let began = Instant::now();
    let looked = Cluster { options, connect: &connect, ctx }.examine(truths, report);
    report.step(StepKind::Check, began.elapsed(), 0);
    looked
}

/// How old what was recovered is. A server on which nothing happens looks like one whose WAL does not arrive: then nothing is proven.
fn measure(target: &Target, restored: &RestorePlan, last_replayed: Option<Timestamp>, report: &mut Report) {
    let recovered_to = last_replayed.map_or(restored.backup.stopped, |t| t.max(restored.backup.stopped));
    report.recovered_to = Some(recovered_to);
    let until = match target {
        Target::Latest => report.started,
        Target::Time { at, .. } => *at,
        // No moment was asked for.
        _ => return,
    };
    let age = until.duration_since(recovered_to);
    report.rpo.measured_ms = Some(Duration::try_from(age).map_or(0, super::report::millis));
    if report.rpo.is_missed() && matches!(target, Target::Latest) {
        let ms = report.rpo.measured_ms.unwrap_or(0);
        report.not_checked(format!(
            "rpo: the last commit that was recovered is {ms} ms old, which is more than the rpo; either nothing was committed \
             since, or its WAL is not in the repository"
        ));
    }
}

/// The backup rises on the ladder of evidence, wherever it was read from.
fn proven(options: &DrillOptions, plan: &RestorePlan, sources: &Sources, mut report: Report) -> Report {
    if report.verdict != super::Verdict::Green {
        return report;
    }
    let recorded = sources
        .only(&plan.holders)
        .each(|_, repo| record_proof(repo, &options.cluster, &plan.backup.id, report.started));
    if let Err(e) = recorded {
        report.notes.push(format!("that the backup is proven could not be recorded: {e}"));
    }
    report
}
