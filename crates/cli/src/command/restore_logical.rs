//! `restore --kind logical`.

use std::time::{Duration, Instant};

use clap::Args;
use pgark_engine::logical::restore::{
    self, Old, Replace, RestoreDatabase, RestoreOptions, RestorePlan, RestoreReport, Validation,
};
use pgark_engine::logical::select::Selection;
use pgark_engine::logical::{LogicalOptions, Wanted};
use pgark_engine::validate::Outcome as Verdict;
use pgark_repo::codec::Compression;

use super::Outcome;
use super::backup_logical::{LOCK_WAIT, scratch, tool_options, truth};
use super::context::{CONNECT_TIMEOUT, Context, confirm, engine_failure};
use super::delete::parse_id;
use super::restore::RestoreArgs;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};
use crate::settings::units::Span;

#[derive(Debug, Args)]
#[command(next_help_heading = "Logical backups")]
pub struct LogicalRestoreArgs {
    /// The database to restore; of a system without a name: all of its databases
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    pub(super) database: Option<String>,
    /// Its name when it is restored; the same as --database replaces it
    #[arg(long, value_name = "NEW")]
    pub(super) to_database: Option<String>,
    /// Replace the database of the same name; of files and systems: put everything where it was
    #[arg(long)]
    pub(super) in_place: bool,
    /// Do not back up what is replaced
    #[arg(long)]
    pub(super) no_safety_backup: bool,
    /// Keep what is replaced: a database under another name and without connections, files beside the new ones
    #[arg(long)]
    pub(super) keep_old: bool,
    /// Only this schema, into a new database; repeatable
    #[arg(long, value_name = "SCHEMA", requires = "database")]
    pub(super) schema: Vec<String>,
    /// Only this table or SCHEMA.TABLE, with all that belongs to it, into a new database; repeatable
    #[arg(long, value_name = "TABLE", requires = "database")]
    pub(super) table: Vec<String>,
    /// Do not compare what was restored with what was backed up
    #[arg(long)]
    no_validate: bool,
    /// How long comparing may take
    #[arg(long, value_name = "TIME", default_value = "24h")]
    validate_timeout: Span,
    /// Make the roles and tablespaces that are missing; what is there stays as it is
    #[arg(long)]
    pub(super) globals: bool,
}

impl LogicalRestoreArgs {
    pub fn refuse_for_physical(&self) -> Result<(), Failure> {
        let given = [
            ("--database", self.database.is_some()),
            ("--to-database", self.to_database.is_some()),
            ("--in-place", self.in_place),
            ("--no-safety-backup", self.no_safety_backup),
            ("--keep-old", self.keep_old),
            ("--no-validate", self.no_validate),
            ("--globals", self.globals),
            ("--schema", !self.schema.is_empty()),
            ("--table", !self.table.is_empty()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => {
                Err(Failure::usage("E-KIND", format!("{flag} is for logical backups")).hint("add --kind logical"))
            }
        }
    }
}

pub fn run(args: &RestoreArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let mut context = Context::new(global)?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let mut options = options(args, &context)?;
    let repo = context.open_first_with_books()?;
    let repo = repo.healing();
    if args.dry_run.dry_run {
        let mut plan = restore::plan(&options, &repo, &[]).map_err(engine_failure)?;
        plan.notes.push(not_read(args.id.as_deref()).to_owned());
        output::result(global.form(), &document(&plan, None), || format!("would restore\n{}", describe(&plan)))?;
        return Ok(Exit::Done);
    }
    if options.database.as_ref().is_some_and(|d| matches!(d.replace, Replace::Replace { .. })) {
        let plan = restore::plan(&options, &repo, &[]).map_err(engine_failure)?;
        let replaces = plan.database.is_some_and(|d| d.replaces);
        if let Some(database) = &mut options.database {
            match replaces {
                true => confirm(&args.confirm, &format!("replace database '{}'", database.to.escape_debug()))?,
                // Nobody was asked about one that is made meanwhile.
                false => database.replace = Replace::Refuse,
            }
        }
    }
    let began = Instant::now();
    let quiet = global.quiet;
    let mut announce = |plan: &RestorePlan| {
        if !quiet {
            describe(plan).lines().for_each(|line| context.ctx.progress.note(line));
        }
    };
    let restored = restore::run(&options, &repo, &context.ctx, &mut announce);
    let notices = repo.store().notices();
    notices.iter().for_each(|notice| output::warning(notice));
    let (plan, report) = restored.map_err(engine_failure)?;
    context.trail().about("backup", &plan.record.id);
    report.stored.iter().for_each(|id| context.trail().about("report", id));
    report.warnings.iter().for_each(|w| output::warning(w));
    let took = began.elapsed();
    let degraded = plan.notes.iter().any(|n| n.starts_with("DEGRADED"));
    let verdict = report.validation.as_ref().map(|v| v.outcome);
    let told = document(&plan, Some((&report, took)));
    let text = || done_text(&plan, &report, took);
    match verdict {
        None | Some(Verdict::Ok) => global.report(&told, text)?,
        // `--quiet` hides no difference.
        Some(_) => output::result(global.form(), &told, text)?,
    }
    if verdict == Some(Verdict::Failed) {
        return Ok(Exit::ValidationFailed);
    }
    let clean = report.warnings.is_empty() && notices.is_empty() && !degraded && verdict != Some(Verdict::NotChecked);
    Ok(if clean { Exit::Done } else { Exit::Warnings })
}

/// What a plan cannot tell.
pub(super) fn not_read(backup: Option<&str>) -> &'static str {
    match backup {
        None | Some("latest") => {
            "the contents of the backup were not read: if they are damaged, the restore takes the next older one and ends with 3"
        }
        Some(_) => "the contents of the backup were not read: if they are damaged, the restore ends with 20",
    }
}

pub(super) fn describe(plan: &RestorePlan) -> String {
    let mut out = format!("  backup {} of {}\n", plan.record.id, output::timestamp(plan.record.started));
    if let Some(d) = &plan.database {
        let (name, to) = (d.dump.name.escape_debug(), d.to.escape_debug());
        let dump = &d.dump;
        out += &format!(
            "  database '{name}' as of {}: {}, owner '{}', {}\n",
            output::timestamp(dump.taken),
            human_bytes(dump.dump_bytes),
            dump.owner.escape_debug(),
            dump.encoding
        );
        out += &match d.replaces {
            true => format!("  loaded as '{}', then in the place of '{to}'\n", d.loading),
            false => format!("  loaded as '{}', then called '{to}'\n", d.loading),
        };
    }
    if let Some(g) = plan.record.globals.as_ref().filter(|_| plan.globals) {
        out += &format!("  those of {} roles and {} tablespaces that are missing\n", g.roles, g.tablespaces);
    }
    out += &format!("  with {} ({})\n", plan.tools.restore.display(), plan.tools.version);
    for note in &plan.notes {
        out += &format!("  {note}\n");
    }
    out
}

pub(super) fn done_text(plan: &RestorePlan, report: &RestoreReport, took: Duration) -> String {
    let mut out = String::new();
    if let (Some(d), Some(left)) = (&plan.database, &report.not_placed) {
        let state = if d.replaces { "is as it was" } else { "was not made" };
        out += &format!(
            "what was restored of '{}' from backup {} is NOT what was backed up, and was left as '{left}'\n  database '{}' {state}\n",
            d.dump.name.escape_debug(),
            plan.record.id,
            d.to.escape_debug(),
        );
    } else if let Some(d) = &plan.database {
        out += &format!(
            "restored database '{}' ({}) from backup {} as '{}' in {}\n",
            d.dump.name.escape_debug(),
            human_bytes(report.bytes_restored),
            plan.record.id,
            d.to.escape_debug(),
            human_duration(took)
        );
    }
    match (&report.validation, &plan.database) {
        (Some(found), _) => {
            out += &super::validate::text(found);
            out.extend(report.stored.iter().map(|id| format!("\nthe repository has this as report {id}\n")));
        }
        (None, Some(_)) => out += "  it was not compared with the backup\n",
        (None, None) => {}
    }
    if let Some(id) = &report.safety {
        out += &format!("  as it was before, it is in backup {id}\n");
    }
    if let Some(name) = &report.kept {
        out += &format!("  the database that was replaced is there as '{name}', without connections\n");
    }
    if let Some(g) = &report.globals {
        out += &format!("  globals: {} made, {} were there\n", g.created.len(), g.present.len());
    }
    out
}

pub(super) fn document(plan: &RestorePlan, done: Option<(&RestoreReport, Duration)>) -> serde_json::Value {
    let mut document = serde_json::json!({
        "schema": SCHEMA, "kind": plan.record.kind.as_str(), "backup": plan.record.id.to_string(),
        "database": plan.database.as_ref().map(|d| serde_json::json!({
            "name": d.dump.name, "to": d.to, "as_of": d.dump.taken, "replaces": d.replaces,
            "dump_bytes": d.dump.dump_bytes, "owner": d.dump.owner})),
        "globals": plan.globals, "pg_restore": plan.tools.restore.to_string_lossy(),
        "pg_restore_version": plan.tools.version.to_string(), "notes": plan.notes,
    });
    if let (Some((report, took)), Some(fields)) = (done, document.as_object_mut()) {
        let applied = report.globals.as_ref();
        let more = serde_json::json!({
            "bytes_restored": report.bytes_restored, "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "safety_backup": report.safety.as_ref().map(ToString::to_string), "old_database": report.kept,
            "globals_created": applied.map(|g| &g.created), "globals_present": applied.map(|g| &g.present),
            "validation": report.validation, "placed": plan.database.is_some() && report.not_placed.is_none(),
            "left_as": report.not_placed, "report": report.stored.as_ref().map(ToString::to_string), "warnings": report.warnings,
        });
        fields.extend(more.as_object().cloned().unwrap_or_default());
    }
    document
}

/// What all restores of databases have in common: without a database; and how what is replaced is backed up.
pub(super) fn common(args: &RestoreArgs, context: &Context) -> Result<(RestoreOptions, LogicalOptions), Failure> {
    let configured = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let connect = context.connect_options()?;
    let tools = tool_options(args.pg_bin.as_ref(), &configured);
    let scratch = scratch(&configured);
    let safety = LogicalOptions {
        cluster: context.cluster()?,
        connect: connect.clone(),
        connect_timeout: CONNECT_TIMEOUT,
        databases: Wanted::Named(vec![]),
        globals: false,
        schemas: vec![],
        tables: vec![],
        tools: tools.clone(),
        lock_wait: configured.lock_wait.map_or(LOCK_WAIT, |s| s.0),
        scratch: scratch.clone(),
        jobs: context.jobs(),
        compression: Compression::DEFAULT,
        truth: truth(None, &configured),
        keep: false,
        annotations: Default::default(),
        files: None,
    };
    let options = RestoreOptions {
        not_after: None,
        run: None,
        cluster: context.cluster()?,
        backup: args.id.as_ref().filter(|id| *id != "latest").map(|id| parse_id(id)).transpose()?,
        connect,
        connect_timeout: CONNECT_TIMEOUT,
        database: None,
        globals: false,
        tools,
        scratch,
        jobs: context.jobs(),
        validate: if args.logical.no_validate { None } else { Some(validation(&args.logical, context)?) },
    };
    Ok((options, safety))
}

fn options(args: &RestoreArgs, context: &Context) -> Result<RestoreOptions, Failure> {
    let given = &args.logical;
    if given.database.is_none() && !given.globals || given.database.as_deref() == Some("") {
        return Err(Failure::refused("E-DATABASE-NONE", "nothing to restore is named")
            .hint("give --database NAME, or --globals"));
    }
    if given.database.is_none() && (given.in_place || given.to_database.is_some()) {
        return Err(Failure::refused("E-DATABASE-NONE", "which database is not said").hint("give --database NAME"));
    }
    if given.in_place && given.to_database.is_some() {
        return Err(Failure::usage("E-DATABASE-TO", "--in-place and --to-database say different things"));
    }
    let (options, safety) = common(args, context)?;
    let database = given.database.as_ref().map(|name| {
        let to = match (&given.to_database, given.in_place) {
            (Some(to), _) => to.clone(),
            (None, true) => name.clone(),
            (None, false) => {
                return Err(Failure::usage("E-DATABASE-TO", "where the database is to go is not said")
                    .hint("give --to-database NEW, or --in-place to replace it"));
            }
        };
        let selection = Selection { schemas: given.schema.clone(), tables: given.table.clone() };
        if to == *name && !selection.is_everything() {
            return Err(Failure::refused("E-SELECT-PLACE", "a part of a database cannot take the place of the whole")
                .hint("give --to-database NEW, and copy from there what you need"));
        }
        let replace = if to == *name {
            let old = if given.keep_old { Old::Keep } else { Old::Drop };
            Replace::Replace { safety: (!given.no_safety_backup).then(|| Box::new(safety)), old }
        } else {
            Replace::Refuse
        };
        Ok(RestoreDatabase { name: name.clone(), to, replace, selection })
    });
    Ok(RestoreOptions { database: database.transpose()?, globals: given.globals, ..options })
}

fn validation(given: &LogicalRestoreArgs, context: &Context) -> Result<Validation, Failure> {
    Ok(Validation {
        checks: super::validate::configured_checks(context)?,
        ask_as: super::validate::ask_as(None, context)?,
        check_within: super::validate::CHECK_WITHIN,
        within: given.validate_timeout.0,
    })
}

/// Options of another kind of restore that were given all the same.
pub fn refuse_others(args: &RestoreArgs) -> Result<(), Failure> {
    let given: [(&str, bool); 4] = [
        ("--to", args.to.is_some()),
        ("--delta", args.delta),
        ("--start", args.start),
        ("a target", args.has_target()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Failure::usage("E-KIND", format!("{flag} is for physical backups"))
            .hint("a dump is of one moment; restore a physical backup for any other")),
    }
}
