//! `backup --kind logical`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use pgark_engine::logical::tools::{OldClient, ToolOptions};
use pgark_engine::logical::{self, LogicalOptions, LogicalPlan, LogicalReport, Truth, Wanted};

use super::Outcome;
use super::backup::{BackupArgs, annotations, compression, into_others, take_into_first};
use super::backup_files;
use super::context::{CONNECT_TIMEOUT, Context, engine_failure};
use super::documents::BackupDocument;
use super::locks::Locked;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};
use crate::settings::schema::{Kind, Logical, TruthSetting};

/// How long a dump waits for a lock when nothing else is said.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
#[command(next_help_heading = "Logical backups")]
pub struct LogicalArgs {
    /// A database to dump; repeatable
    #[arg(long, value_name = "NAME", num_args = 1.., action = clap::ArgAction::Append, allow_hyphen_values = false)]
    database: Vec<String>,
    /// Every database that takes connections, but for templates
    #[arg(long, conflicts_with = "database")]
    all_databases: bool,
    /// Roles with their passwords, tablespaces and settings as well
    #[arg(long)]
    globals: bool,
    /// Only what matches this pattern of pg_dump's; repeatable
    #[arg(long, value_name = "PATTERN")]
    schema: Vec<String>,
    /// Only tables that match this pattern of pg_dump's; repeatable
    #[arg(long, value_name = "PATTERN")]
    table: Vec<String>,
    /// What is written down of each database, to compare a restored one with; counting reads every table
    /// [default: counts] [setting: logical.truth]
    #[arg(long, value_name = "WHAT", hide_default_value = true)]
    truth: Option<TruthSetting>,
    /// The directory of pg_dump and pg_restore
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

impl LogicalArgs {
    pub fn refuse_for_physical(&self) -> Result<(), Failure> {
        self.refuse("add --kind logical; a physical backup holds all databases")
    }

    pub fn refuse_for_files(&self) -> Result<(), Failure> {
        self.refuse("a backup of files asks no database; --kind system has both")
    }

    fn refuse(&self, hint: &str) -> Result<(), Failure> {
        let given = [
            ("--database", !self.database.is_empty()),
            ("--all-databases", self.all_databases),
            ("--globals", self.globals),
            ("--schema", !self.schema.is_empty()),
            ("--table", !self.table.is_empty()),
            ("--truth", self.truth.is_some()),
            ("--pg-bin", self.pg_bin.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Failure::usage("E-KIND", format!("{flag} is for logical backups")).hint(hint)),
        }
    }
}

pub fn run(args: &BackupArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let mut context = Context::new(global)?;
    super::backup::refuse_switched_off(&context)?;
    args.priority.apply()?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let options = options(args, &context)?;
    let mut opened = context.open_members_with_books(None)?;
    if args.dry_run.dry_run {
        let plan = logical::plan(&options, &opened.first().repo, &context.ctx).map_err(engine_failure)?;
        plan.warnings.iter().for_each(|w| output::warning(w));
        output::result(global.form(), &plan_document(&options, &plan), || plan_text(&options, &plan))?;
        return Ok(Exit::Done);
    }
    let began = Instant::now();
    let mut report = take_into_first(&context, &mut opened, |opened| {
        logical::run(&options, &opened.first().repo, &context.ctx).map_err(engine_failure)
    })?;
    report.warnings.iter().for_each(|w| output::warning(w));
    context.trail().about("backup", &report.entry.id);
    let others = into_others(&context, &opened, &report.entry.id)?;
    for notice in opened.members.iter().flat_map(|m| m.repo.store().notices()) {
        output::warning(&notice);
        report.warnings.push(notice);
    }
    let locked = super::locks::extend_all(&opened.members, &options.cluster, &context.ctx);
    let all_have_it = others.all_have_all() && locked.iter().all(Locked::is_fine);
    let document = BackupDocument::logical(options.cluster.as_str(), &report, others.outcomes, others.lacking)
        .locked(locked.iter().map(Locked::document).collect(), locked.iter().flat_map(Locked::warnings));
    output::result(global.form(), &document, || {
        if global.quiet {
            return format!("{}\n", report.entry.id);
        }
        text(&report, began.elapsed()) + &locked.iter().map(Locked::text).collect::<String>()
    })?;
    match others.required {
        Some(failure) => Err(failure),
        None if report.warnings.is_empty() && all_have_it => Ok(Exit::Done),
        None => Ok(Exit::Warnings),
    }
}

fn text(report: &LogicalReport, took: Duration) -> String {
    let entry = &report.entry;
    let mut out = format!(
        "{}\n  {} {} by pg_dump {}, {} of it new, {} stored, in {}\n",
        entry.id,
        human_bytes(entry.size_bytes),
        if report.files.is_some() { "with files, databases dumped" } else { "dumped" },
        report.tools.version,
        human_bytes(report.new_bytes),
        human_bytes(entry.stored_bytes),
        human_duration(took)
    );
    for d in &report.databases {
        let (name, bytes) = (d.name.escape_debug(), human_bytes(d.dump_bytes));
        let truth = match &d.truth {
            Some(t) if t.hashed => format!("{} rows counted and hashed", t.rows),
            Some(t) => format!("{} rows counted", t.rows),
            None => "nothing to compare with".to_owned(),
        };
        out +=
            &format!("  '{name}': {bytes}, {} tables, {truth}, as of {}\n", d.table_data, output::timestamp(d.taken));
    }
    if let Some(files) = &report.files {
        out += &backup_files::contents(files);
    }
    if let Some(g) = &report.globals {
        let passwords = if g.passwords { "with passwords" } else { "without passwords" };
        out += &format!("  globals: {} roles {passwords}, {} tablespaces\n", g.roles, g.tablespaces);
    }
    report.notes.iter().for_each(|note| out += &format!("  {note}\n"));
    out
}

fn plan_document(options: &LogicalOptions, plan: &LogicalPlan) -> serde_json::Value {
    serde_json::json!({
        "schema": SCHEMA, "id": plan.id.to_string(), "cluster": options.cluster.to_string(),
        "kind": plan.id.kind().as_str(), "paths": backup_files::roots(&plan.roots),
        "missing": backup_files::roots(&plan.missing),
        "databases": plan.databases.iter().map(|d| &d.name).collect::<Vec<_>>(), "globals": plan.globals,
        "compared_with": plan.base.as_ref().map(ToString::to_string), "pg_dump": plan.tools.dump.to_string_lossy(),
        "pg_dump_version": plan.tools.version.to_string(), "warnings": plan.warnings, "notes": plan.notes,
    })
}

fn plan_text(options: &LogicalOptions, plan: &LogicalPlan) -> String {
    let names: Vec<String> = plan.databases.iter().map(|d| format!("'{}'", d.name.escape_debug())).collect();
    let globals = if plan.globals { ", and globals" } else { "" };
    let kind = plan.id.kind();
    let mut out = format!(
        "would take the {kind} backup {} of '{}': {}{globals}, with {} ({})\n",
        plan.id,
        options.cluster,
        names.join(", "),
        plan.tools.dump.display(),
        plan.tools.version
    );
    for root in &plan.roots {
        out += &format!("  {} {}\n", root.section.as_str(), root.as_path().display());
    }
    plan.notes.iter().for_each(|note| out += &format!("  {note}\n"));
    out
}

/// Flags over the settings; a selection on the command line replaces the configured one.
fn options(args: &BackupArgs, context: &Context) -> Result<LogicalOptions, Failure> {
    let configured = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let system = context.cluster_settings()?.system.clone().unwrap_or_default();
    let given = &args.logical;
    let is_system = args.kind == Kind::System;
    let files = if is_system { Some(backup_files::files_options(&args.files, context)?) } else { None };
    let of_system = system.database.clone().filter(|_| is_system);
    let databases = if given.all_databases {
        Wanted::All
    } else if !given.database.is_empty() {
        Wanted::Named(given.database.clone())
    } else if let Some(name) = of_system {
        Wanted::Named(vec![name])
    } else if configured.all_databases {
        Wanted::All
    } else {
        Wanted::Named(configured.databases.clone())
    };
    let narrowed = !given.schema.is_empty() || !given.table.is_empty();
    let chosen = |flag: &[String], setting: &[String]| if narrowed { flag.to_vec() } else { setting.to_vec() };
    Ok(LogicalOptions {
        cluster: context.cluster()?,
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        databases,
        globals: given.globals || configured.globals || is_system && system.globals != Some(false),
        schemas: chosen(&given.schema, &configured.schemas),
        tables: chosen(&given.table, &configured.tables),
        truth: truth(given.truth, &configured),
        tools: tool_options(given.pg_bin.as_ref(), &configured),
        lock_wait: configured.lock_wait.map_or(LOCK_WAIT, |s| s.0),
        scratch: scratch(&configured),
        jobs: context.jobs(),
        compression: compression(&args.compress)?,
        keep: args.keep,
        annotations: annotations(&args.annotate)?,
        files,
    })
}

pub fn truth(flag: Option<TruthSetting>, configured: &Logical) -> Truth {
    match flag.or(configured.truth) {
        Some(TruthSetting::None) => Truth::None,
        Some(TruthSetting::Hashes) => Truth::Hashes,
        Some(TruthSetting::Counts) | None => Truth::Counts,
    }
}

pub fn tool_options(flag: Option<&PathBuf>, configured: &Logical) -> ToolOptions {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ToolOptions {
        dir: flag.or(configured.pg_bin.as_ref()).cloned(),
        path: std::env::split_paths(&path).collect(),
        old: if configured.allow_old_client { OldClient::Accept } else { OldClient::Refuse },
    }
}

pub fn scratch(configured: &Logical) -> PathBuf {
    configured.scratch.clone().unwrap_or_else(std::env::temp_dir)
}
