//! `drill`: a recovery is rehearsed, and what came of it is shown and stored.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pgark_engine::drill::logical::{self, LogicalDrill, LogicalPlan};
use pgark_engine::drill::physical::{self, PhysicalDrill};
use pgark_engine::drill::{self, DrillOptions, Objective, Report, StepKind, Verdict, Which};
use pgark_engine::restore::{ArchiveMode, RestoreOptions, RestorePlan, Target, TargetAction};
use pgark_repo::Repository;

use super::Outcome;
use super::backup_logical::tool_options;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use super::readers::{Readers, Taken, tell};
use super::restore::describe;
use super::restore_table::own_program;
use super::target::TargetArgs;
use super::validate::{CHECK_WITHIN, configured_checks};
use crate::args::{DryRunArgs, GlobalArgs, PriorityArgs, RateArgs};
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::output::{self, human_bytes, human_duration, timestamp};
use crate::settings::schema::{Drill, DrillBackup, DrillKind};
use crate::settings::units::Span;
use crate::settings::validate::is_library;

/// How long recovery may take when nothing else is said.
const WITHIN: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Which backup: an id, 'latest' (the newest one that reaches the target) or 'random' (any of the last 31 days)
    /// [setting: drill.backup] [default: latest]
    #[arg(long, value_name = "ID|latest|random")]
    backup: Option<String>,
    /// What is rehearsed [setting: drill.kind] [default: physical]
    #[arg(long, value_name = "KIND")]
    kind: Option<DrillKind>,
    /// In which directory; it needs as much room as the whole original
    /// [setting: drill.dir] [default: scratch_dir, or the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    /// Compare a database with this file, which 'pgark truth' wrote at the target; repeatable
    #[arg(long, value_name = "FILE")]
    truth: Vec<PathBuf>,
    /// Load this library at the start of the server, although functions of others run then; repeatable
    /// [setting: drill.libraries]
    #[arg(long, value_name = "NAME")]
    library: Vec<String>,
    /// Directory with the programs of the server [setting: drill.pg_bin]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// How long recovery may take, and reading each database [setting: drill.timeout] [default: 24h]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// How long one check may take
    #[arg(long, value_name = "TIME", default_value = "60s")]
    check_timeout: Span,
    #[command(flatten)]
    rate: RateArgs,
    #[command(flatten)]
    priority: PriorityArgs,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn run(args: &DrillArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let mut context = Context::new(global)?;
    let settings = context.cluster_settings()?.clone();
    args.priority.apply()?;
    args.rate.apply(settings.bandwidth_limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let configured = settings.drill.clone();
    let common = common(args, configured.as_ref(), &context)?;
    match args.kind.or(configured.and_then(|d| d.kind)).unwrap_or_default() {
        DrillKind::Physical => run_physical(args, common, &context, global),
        DrillKind::Logical => run_logical(args, common, &context, global),
    }
}

fn common(args: &DrillArgs, configured: Option<&Drill>, context: &Context) -> Result<DrillOptions, Failure> {
    let settings = context.cluster_settings()?;
    let which = match (args.backup.as_deref(), configured.and_then(|d| d.backup)) {
        (Some("random"), _) | (None, Some(DrillBackup::Random)) => Which::Random,
        (Some("latest"), _) | (None, _) => Which::Latest,
        (Some(id), _) => Which::Named(parse_id(id)?),
    };
    let dir = args.dir.clone().or(configured.map(|d| d.dir.clone())).or(settings.scratch_dir.clone());
    let dir = dir.unwrap_or_else(std::env::temp_dir);
    let base = std::path::absolute(&dir).map_err(|e| Failure::usage("E-TARGET-PATH", format!("--dir: {e}")))?;
    if let Some(wrong) = args.library.iter().find(|name| !is_library(name)) {
        return Err(Failure::usage("E-LIBRARY", format!("'{}' cannot be the name of a library", escape(wrong)))
            .hint("names as in shared_preload_libraries, without a path: pg_stat_statements"));
    }
    let mut libraries = configured.map(|d| d.libraries.clone()).unwrap_or_default();
    libraries.extend(args.library.iter().cloned());
    Ok(DrillOptions {
        cluster: context.cluster()?,
        which,
        base,
        program: own_program()?,
        bin: args.pg_bin.clone().or(configured.and_then(|d| d.pg_bin.clone())),
        jobs: context.jobs(),
        within: args.timeout.or(configured.and_then(|d| d.timeout)).map_or(WITHIN, |span| span.0),
        libraries,
        checks: configured_checks(context)?,
        check_within: if args.check_timeout.0.is_zero() { CHECK_WITHIN } else { args.check_timeout.0 },
        rpo: settings.rpo,
        rto: settings.rto,
    })
}

impl DrillArgs {
    fn target(&self) -> Result<Option<Target>, Failure> {
        Ok(Some(self.target.target()?).filter(|target| *target != Target::Latest))
    }
}

fn run_physical(
    args: &DrillArgs,
    common: DrillOptions,
    context: &Context,
    global: &GlobalArgs,
) -> Result<Outcome, Failure> {
    let readers = Readers::opened(context)?;
    let sources = &readers.sources;
    let restore = RestoreOptions {
        cluster: common.cluster.clone(),
        backup: None,
        to: common.base.clone(),
        target: Target::Latest,
        timeline: args.target.timeline()?,
        action: TargetAction::Promote,
        tablespace_map: vec![],
        archive_mode: ArchiveMode::Off,
        delta: false,
        jobs: common.jobs,
        program: common.program.clone(),
        places: readers.places(context)?,
    };
    let drill = PhysicalDrill { common, restore, target: args.target()?, truths: args.truth.clone() };
    let base = drill.common.base.display().to_string();
    if args.dry_run.dry_run {
        let plan = physical::plan(&drill, sources, &context.ctx).map_err(|e| readers.failure(e))?;
        tell(&sources.troubles(), &[], Taken::Unknown);
        let document = serde_json::json!({"schema": SCHEMA, "kind": "physical", "backup": plan.backup.id.to_string(),
            "target": plan.target.to_string(), "end": plan.stop.end.to_string(), "dir": base,
            "size_bytes": plan.record.totals.size_bytes});
        output::result(global.form(), &document, || format!("would rehearse in {base}\n{}", describe(&plan)))?;
        return Ok(Exit::Done);
    }
    let mut announce = |plan: &RestorePlan| {
        if !global.quiet {
            describe(plan).lines().for_each(|line| context.ctx.progress.note(line));
        }
    };
    let held = physical::run(&drill, sources, &context.ctx, &mut announce);
    let report = held.map_err(|e| readers.failure(e))?;
    let first = sources.first().map_err(|e| readers.failure(e))?;
    conclude(&report, &first, context, global)
}

fn run_logical(
    args: &DrillArgs,
    common: DrillOptions,
    context: &Context,
    global: &GlobalArgs,
) -> Result<Outcome, Failure> {
    if args.target()?.is_some() || args.target.target_exclusive || !args.truth.is_empty() {
        return Err(Failure::usage(
            "E-KIND",
            "a dump is of one moment, and holds its truth: targets and --truth are for physical backups",
        )
        .hint("choose the dump with --backup ID, or leave --kind logical out"));
    }
    let (_, repo) = context.open_first()?;
    let repo = repo.healing();
    let logical = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let tools = tool_options(args.pg_bin.as_ref(), &logical);
    let drill = LogicalDrill { common, tools };
    let base = drill.common.base.display().to_string();
    let planned = |plan: &LogicalPlan| {
        let names: Vec<String> = plan.record.databases.iter().map(|d| format!("'{}'", d.name.escape_debug())).collect();
        format!(
            "  backup    {} (finished {})\n  databases {}\n",
            plan.entry.id,
            timestamp(plan.entry.finished),
            names.join(", ")
        )
    };
    if args.dry_run.dry_run {
        let plan = logical::plan(&drill, &repo, &context.ctx).map_err(engine_failure)?;
        let document = serde_json::json!({"schema": SCHEMA, "kind": plan.entry.kind.as_str(),
            "backup": plan.entry.id.to_string(), "dir": base, "size_bytes": plan.entry.size_bytes,
            "databases": plan.record.databases.iter().map(|d| &d.name).collect::<Vec<_>>()});
        output::result(global.form(), &document, || format!("would rehearse in {base}\n{}", planned(&plan)))?;
        return Ok(Exit::Done);
    }
    let mut announce = |plan: &LogicalPlan| {
        if !global.quiet {
            planned(plan).lines().for_each(|line| context.ctx.progress.note(line));
        }
    };
    let report = logical::run(&drill, &repo, &context.ctx, &mut announce).map_err(engine_failure)?;
    repo.store().notices().iter().for_each(|notice| output::warning(notice));
    conclude(&report, &repo, context, global)
}

/// Stores it and shows it. A report that could not be stored takes nothing from what was found.
fn conclude(report: &Report, repo: &Repository, context: &Context, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let stored = drill::store(repo, report, &context.ctx);
    if let Err(e) = &stored {
        output::warning(&format!("E-REPORT-STORE the report of the drill is not in the repository: {}: {e}", e.code()));
    }
    let id = stored.ok().map(|id| id.to_string());
    report.backup.iter().for_each(|backup| context.trail().about("backup", backup));
    id.iter().for_each(|id| context.trail().about("report", id));
    context.trail().about("verdict", report.verdict.as_str());
    let mut document = serde_json::to_value(report)
        .map_err(|e| Failure::failed("E-INTERNAL", format!("the report cannot be written as JSON: {e}")))?;
    document["schema"] = SCHEMA.into();
    document["report"] = id.clone().into();
    if !(global.says_nothing() && report.verdict == Verdict::Green) {
        output::result(global.form(), &document, || text(report, id.as_deref()))?;
    }
    Ok(match report.verdict {
        Verdict::Red => Exit::ValidationFailed,
        Verdict::NotProven => Exit::Warnings,
        Verdict::Green if id.is_none() => Exit::Warnings,
        Verdict::Green => Exit::Done,
    })
}

fn objective(name: &str, of: &Objective) -> String {
    let span = |ms: u64| human_duration(Duration::from_millis(ms));
    let measured = of.measured_ms.map_or("not measured".to_owned(), span);
    let against = match of.target_ms {
        None => "no target is set".to_owned(),
        Some(target) if of.is_missed() => format!("target {}, MISSED", span(target)),
        Some(target) if of.measured_ms.is_some() => format!("target {}, kept", span(target)),
        Some(target) => format!("target {}", span(target)),
    };
    format!("  {name:<9} {measured} ({against})\n")
}

fn text(report: &Report, stored: Option<&str>) -> String {
    let backup = report.backup.as_ref().map_or("no backup".to_owned(), ToString::to_string);
    let word = report.verdict.as_str().to_uppercase();
    let mut out = format!("{word}: drill of {backup} to {}\n", report.target);
    for kind in [StepKind::Restore, StepKind::Recover, StepKind::Check] {
        let Some((ms, bytes)) = report.of(kind) else { continue };
        let bytes = if bytes > 0 { format!(" for {}", human_bytes(bytes)) } else { String::new() };
        out += &format!("  {:<9} {}{bytes}\n", kind.as_str(), human_duration(Duration::from_millis(ms)));
    }
    out += &objective("rpo", &report.rpo);
    out += &objective("rto", &report.rto);
    if let Some(at) = report.recovered_to {
        out += &format!("  recovered to what was committed by {}\n", timestamp(at));
    }
    let checks = report.databases.iter().map(|d| d.checks.len()).sum::<usize>() + report.checks.len();
    out += &format!("  {checks} checks in {} databases\n", report.databases.len());
    let mut lines = |head: &str, all: &mut dyn Iterator<Item = String>| {
        all.for_each(|line| out += &format!("  {head}: {}\n", escape(&line)));
    };
    lines("RED", &mut report.reasons.iter().map(|r| format!("{} {}", r.code, r.what)));
    lines("not checked", &mut report.not_checked.iter().cloned());
    lines("note", &mut report.notes.iter().cloned());
    if let Some(id) = stored {
        out += &format!("the repository has this as report {id}\n");
    }
    out
}
