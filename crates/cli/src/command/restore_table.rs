//! `restore-table`: one table as it was, beside the live one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use pgark_engine::cluster::TableName;
use pgark_engine::logical::restore as logical;
use pgark_engine::restore::{ArchiveMode, RestoreOptions, RestorePlan, TargetAction};
use pgark_engine::scratch;
use pgark_engine::table::from_dump::{self, DumpTableOptions, DumpTablePlan};
use pgark_engine::table::{self, TableOptions, TablePlan, TableReport, Wanted};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Outcome;
use super::backup_logical::{scratch as scratch_of, tool_options};
use super::context::{CONNECT_TIMEOUT, Context, engine_failure};
use super::delete::parse_id;
use super::readers::{Readers, Taken, tell};
use super::restore::describe;
use super::restore_logical;
use super::target::TargetArgs;
use super::truth::ServerArgs;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA, escape};
use crate::output::{self, human_bytes, human_duration};
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct RestoreTableArgs {
    /// The table, as SQL writes its name: orders, app.orders, '"Odd name"'. Without a schema it is in public
    table: String,
    /// The database it was in, and into which it is loaded
    #[arg(long, value_name = "NAME")]
    database: String,
    /// The schema of the table
    #[arg(long, value_name = "NAME")]
    schema: Option<String>,
    /// Out of a physical backup, at any moment; or out of a logical one, as it was when that was taken
    #[arg(long, value_enum, default_value = "physical")]
    kind: KindArg,
    /// Name of the rescued table, in the same schema [default: TABLE_rescued]
    #[arg(long = "as", value_name = "NAME")]
    rename_to: Option<String>,
    /// The backup to begin with; by default the newest one that reaches the target, or that holds the database
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Where a cluster is made for a while, which needs as much room as the whole original
    /// [setting: scratch_dir] [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    scratch_dir: Option<PathBuf>,
    /// Directory with postgres, pg_dump and pg_restore
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// How long recovery, and each step after it, may take
    #[arg(long, value_name = "TIME", default_value = "24h")]
    timeout: Span,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Physical,
    Logical,
}

/// Hidden: waits beside `restore-table` or `drill` until that has ended, and removes its scratch cluster.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    dir: PathBuf,
}

#[derive(Serialize)]
struct RestoreTableDocument<'a> {
    schema: u32,
    database: &'a str,
    table: String,
    rescued: String,
    backup: String,
    target: String,
    scratch_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<&'a TableReport>,
}

pub fn keep(args: &KeeperArgs) -> Result<Outcome, Failure> {
    // Who ends a whole service ends the command as well: what that leaves is still to be removed.
    let nobody = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, nobody.clone())
            .map_err(|e| Failure::failed("E-SYSTEM", format!("signals cannot be caught: {e}")))?;
    }
    scratch::keep(&args.dir, std::io::stdin().lock()).map_err(engine_failure)?;
    Ok(Exit::Done)
}

pub fn run(args: &RestoreTableArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    match args.kind {
        KindArg::Physical => run_physical(args, global),
        KindArg::Logical => run_logical(args, global),
    }
}

fn run_logical(args: &RestoreTableArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if args.target.is_given() || args.target.target_exclusive {
        return Err(Failure::usage("E-KIND", "a dump is of one moment, and a target is for physical backups")
            .hint("choose the dump with --backup ID, or leave --kind logical out"));
    }
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let (_, repo) = context.open_first()?;
    let repo = repo.healing();
    let live = args.server.apply(context.connect_options()?);
    let options = dump_options(args, &context)?;
    let plan = from_dump::plan(&options, &live, &repo).map_err(engine_failure)?;
    context.trail().about("backup", &plan.restore.record.id);
    let mut document = RestoreTableDocument {
        schema: SCHEMA,
        database: &args.database,
        table: plan.table.to_string(),
        rescued: plan.rescued.to_string(),
        backup: plan.restore.record.id.to_string(),
        target: "the moment of the dump".to_owned(),
        scratch_dir: options.scratch_base.display().to_string(),
        report: None,
    };
    let planned = |plan: &DumpTablePlan| {
        format!(
            "  table     {} as {}\n{}  by way of database '{}', removed at the end\n",
            escape(&plan.table.to_string()),
            escape(&plan.rescued.to_string()),
            restore_logical::describe(&plan.restore),
            plan.aside
        )
    };
    if args.dry_run.dry_run {
        output::result(global.form(), &document, || format!("would do this\n{}", planned(&plan)))?;
        return Ok(Exit::Done);
    }
    if !global.quiet {
        planned(&plan).lines().for_each(|line| context.ctx.progress.note(line));
    }
    let mut degraded = false;
    let mut announce = |plan: &logical::RestorePlan| degraded = plan.notes.iter().any(|n| n.starts_with("DEGRADED"));
    let run = from_dump::run(&options, &plan, &live, &repo, &context.ctx, &mut announce);
    let notices = repo.store().notices();
    notices.iter().for_each(|notice| output::warning(notice));
    let report = run.map_err(engine_failure)?;
    document.report = Some(&report);
    if !global.says_nothing() {
        output::result(global.form(), &document, || done(&plan.rescued, &plan.table, &report))?;
    }
    let unsure = report.foreign_keys.iter().any(|key| key.orphans != Some(0));
    Ok(if degraded || unsure || !notices.is_empty() { Exit::Warnings } else { Exit::Done })
}

fn wanted(args: &RestoreTableArgs) -> Wanted {
    Wanted {
        table: args.table.clone(),
        schema: args.schema.clone(),
        database: args.database.clone(),
        rename_to: args.rename_to.clone(),
    }
}

fn dump_options(args: &RestoreTableArgs, context: &Context) -> Result<DumpTableOptions, Failure> {
    let configured = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let connect = args.server.apply(context.connect_options()?);
    let restore = logical::RestoreOptions {
        not_after: None,
        run: None,
        cluster: context.cluster()?,
        backup: args.backup.as_deref().map(parse_id).transpose()?,
        connect,
        connect_timeout: CONNECT_TIMEOUT,
        database: None,
        globals: false,
        tools: tool_options(args.pg_bin.as_ref(), &configured),
        scratch: scratch_of(&configured),
        jobs: context.jobs(),
        validate: Some(logical::Validation {
            checks: vec![],
            ask_as: super::validate::ask_as(None, context)?,
            check_within: super::validate::CHECK_WITHIN,
            within: args.timeout.0,
        }),
    };
    Ok(DumpTableOptions {
        wanted: wanted(args),
        restore,
        scratch_base: scratch_base(args, context)?,
        program: own_program()?,
        within: args.timeout.0,
    })
}

pub fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| Failure::failed("E-SYSTEM", format!("this program's path: {e}")))
}

fn scratch_base(args: &RestoreTableArgs, context: &Context) -> Result<PathBuf, Failure> {
    let configured = context.cluster_settings()?.scratch_dir.clone();
    let base = args.scratch_dir.clone().or(configured).unwrap_or_else(std::env::temp_dir);
    let base =
        std::path::absolute(&base).map_err(|e| Failure::usage("E-TARGET-PATH", format!("--scratch-dir: {e}")))?;
    match base.is_dir() {
        true => Ok(base),
        false => Err(Failure::refused("E-SCRATCH-DIR", format!("{} is no directory", base.display()))
            .hint("make it, or choose another one with --scratch-dir")),
    }
}

fn run_physical(args: &RestoreTableArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let live = args.server.apply(context.connect_options()?);
    let readers = Readers::opened(&context)?;
    let sources = &readers.sources;
    let mut options = options(args, &context)?;
    options.restore.places = readers.places(&context)?;
    let plan = table::plan(&options, &live, sources).map_err(|e| readers.failure(e))?;
    context.trail().about("backup", &plan.restore.backup.id);
    plan.warnings.iter().for_each(|w| output::warning(w));
    let mut document = RestoreTableDocument {
        schema: SCHEMA,
        database: &args.database,
        table: plan.table.to_string(),
        rescued: plan.rescued.to_string(),
        backup: plan.restore.backup.id.to_string(),
        target: plan.restore.target.to_string(),
        scratch_dir: options.scratch_base.display().to_string(),
        report: None,
    };
    if args.dry_run.dry_run {
        tell(&sources.troubles(), &[], Taken::Unknown);
        output::result(global.form(), &document, || format!("would do this\n{}", planned(&plan, &options)))?;
        return Ok(Exit::Done);
    }
    if !global.quiet {
        planned(&plan, &options).lines().for_each(|line| context.ctx.progress.note(line));
    }
    let mut degraded = false;
    let mut announce = |plan: &RestorePlan| degraded = plan.notes.iter().any(|n| n.starts_with("DEGRADED"));
    let run = table::run(&options, &plan, &live, sources, &context.ctx, &mut announce);
    let (notices, troubles) = (sources.notices(), sources.troubles());
    notices.iter().for_each(|notice| output::warning(notice));
    tell(&troubles, &[], if run.is_ok() { Taken::FromAnother } else { Taken::Unknown });
    let report = run.map_err(|e| readers.failure(e))?;
    document.report = Some(&report);
    if !global.says_nothing() {
        output::result(global.form(), &document, || done(&plan.rescued, &plan.table, &report))?;
    }
    let unsure = report.foreign_keys.iter().any(|key| key.orphans != Some(0));
    let healed = !notices.is_empty() || !troubles.is_empty();
    Ok(if degraded || unsure || healed || !plan.warnings.is_empty() { Exit::Warnings } else { Exit::Done })
}

fn options(args: &RestoreTableArgs, context: &Context) -> Result<TableOptions, Failure> {
    let program = own_program()?;
    let base = scratch_base(args, context)?;
    let logical = context.cluster_settings()?.logical.clone().unwrap_or_default();
    Ok(TableOptions {
        wanted: wanted(args),
        restore: RestoreOptions {
            cluster: context.cluster()?,
            backup: args.backup.as_deref().map(parse_id).transpose()?,
            to: base.clone(),
            target: args.target.target()?,
            timeline: args.target.timeline()?,
            action: TargetAction::Promote,
            tablespace_map: vec![],
            archive_mode: ArchiveMode::Off,
            delta: false,
            jobs: context.jobs(),
            program,
            places: vec![],
        },
        scratch_base: base,
        bin: args.pg_bin.clone(),
        tools: tool_options(args.pg_bin.as_ref(), &logical),
        within: args.timeout.0,
    })
}

fn planned(plan: &TablePlan, options: &TableOptions) -> String {
    format!(
        "  table     {} as {}\n{}  scratch   a cluster of {} in {}, removed at the end\n",
        escape(&plan.table.to_string()),
        escape(&plan.rescued.to_string()),
        describe(&plan.restore),
        human_bytes(plan.restore.record.totals.size_bytes),
        options.scratch_base.display()
    )
}

fn done(rescued: &TableName, table: &TableName, report: &TableReport) -> String {
    let took = human_duration(std::time::Duration::from_millis(report.duration_ms));
    let mut out = format!(
        "{}: {} rows of {}, compared with what was restored, in {took}\n",
        escape(&rescued.to_string()),
        report.rows,
        escape(&table.to_string())
    );
    let mut line = |text: String| out += &format!("  {}\n", escape(&text));
    if !report.owner_kept {
        line(format!("its owner {} is not there any more: it is yours", report.owner));
    }
    for key in &report.foreign_keys {
        let state = match (key.orphans, &key.not_checked) {
            (Some(0), _) => "every row has its counterpart".to_owned(),
            (Some(n), _) => format!("{n} rows have no counterpart"),
            (None, why) => format!("not checked: {}", why.as_deref().unwrap_or("no reason given")),
        };
        line(format!("foreign key {} to {} was left out; {state}", key.name, key.refers_to));
    }
    for s in &report.sequences {
        let furthest = s.furthest.as_deref().unwrap_or("nothing");
        let live = s.live_last_value.as_ref().map_or(String::new(), |v| format!("; the live table's stands at {v}"));
        line(format!(
            "sequence {} of column {} stands at {}, the column has {furthest}{live}",
            s.sequence, s.column, s.last_value
        ));
    }
    for left in report.left_out.iter().filter(|left| left.what != "foreign key") {
        line(format!("left out: {} {}", left.what, left.name));
    }
    report.notes.iter().for_each(|note| line(note.clone()));
    out
}
