//! `restore --kind system`: databases, configuration and files of one backup, or any of them.

use std::time::Instant;

use pgark_engine::EngineError;
use pgark_engine::files::restore as files;
use pgark_engine::logical::restore::{self as databases, Old, Replace, RestoreDatabase, is_damage};
use pgark_engine::logical::select::Selection;
use pgark_engine::validate::Outcome as Verdict;
use pgark_repo::Repository;
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::BackupId;
use pgark_repo::record::{PartsRecord, Section};

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use super::restore::RestoreArgs;
use super::{restore_files, restore_logical};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;

/// What is wanted of the system.
struct Chosen {
    database: bool,
    sections: Vec<Section>,
}

impl Chosen {
    /// All three when none is named.
    fn of(args: &RestoreArgs) -> Self {
        let (database, config, files) = (args.logical.database.is_some(), args.files.config_files, args.files.files);
        let all = !database && !config && !files;
        let mut sections = vec![];
        if all || config {
            sections.push(Section::Config);
        }
        if all || files {
            sections.push(Section::Files);
        }
        // A selection of files is one of files.
        Chosen { database: (all && args.files.path.is_empty()) || database, sections }
    }
}

/// One run: everything is made from the options each time, because another backup may have other databases.
struct Run<'a> {
    args: &'a RestoreArgs,
    context: &'a Context,
    chosen: Chosen,
    files: files::RestoreOptions,
    repo: Repository,
}

pub fn run(args: &RestoreArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let mut context = Context::new(global)?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    if args.files.undo.is_some() {
        return Err(Failure::usage("E-KIND", "--undo is for files")
            .hint("add --kind files; databases are not changed by halves"));
    }
    let chosen = Chosen::of(args);
    check(args, &chosen)?;
    let files = files_options(args, &context, &chosen)?;
    let (_, repo) = context.open_first()?;
    let run = Run { args, context: &context, chosen, files, repo: repo.healing() };
    if args.dry_run.dry_run {
        return run.dry(global);
    }
    if args.logical.in_place {
        confirm(&args.confirm, "replace what is there by what is in the backup")?;
    }
    let mut avoid = vec![];
    loop {
        match run.once(global, &avoid) {
            Err((Some(id), e)) if is_damage(&e) && run.files.backup.is_none() => {
                context.ctx.progress.note(&format!("DEGRADED: backup {id} is damaged: {e}"));
                avoid.push(id);
            }
            Err((_, e)) => return Err(engine_failure(e)),
            Ok(outcome) => return outcome,
        }
    }
}

fn check(args: &RestoreArgs, chosen: &Chosen) -> Result<(), Failure> {
    let given = &args.logical;
    if !given.schema.is_empty() || !given.table.is_empty() {
        return Err(Failure::usage("E-KIND", "single tables of a system are restored from its dump alone")
            .hint("restore ID --kind logical --database NAME --to-database NEW --table T"));
    }
    if chosen.database && !given.in_place && given.to_database.is_none() {
        return Err(Failure::usage("E-DATABASE-TO", "where the database is to go is not said").hint(
            "give --to-database NEW, or --in-place to replace it; or name --config-files and --files for these alone",
        ));
    }
    Ok(())
}

fn files_options(args: &RestoreArgs, context: &Context, chosen: &Chosen) -> Result<files::RestoreOptions, Failure> {
    let sections = chosen.sections.clone();
    if sections.is_empty() {
        let (base, _) = restore_logical::common(args, context)?;
        let destination = files::Destination::InPlace { safety: None, old: files::Old::Remove };
        return Ok(files::RestoreOptions {
            cluster: base.cluster,
            backup: base.backup,
            kind: BackupKind::System,
            series: None,
            sections,
            paths: vec![],
            destination,
        });
    }
    restore_files::options(args, context, BackupKind::System, sections)
}

type Tried = Result<Result<Outcome, Failure>, (Option<BackupId>, EngineError)>;

impl Run<'_> {
    fn dry(&self, global: &GlobalArgs) -> Result<Outcome, Failure> {
        let plan = files::plan(&self.files, &self.repo, &[]).map_err(engine_failure)?;
        let mut text = format!("would restore\n{}", restore_files::describe(&self.files, &plan));
        let mut dumps = vec![];
        for options in self.databases(&plan.record)? {
            let of_database = databases::plan(&options, &self.repo, &[]).map_err(engine_failure)?;
            text += &restore_logical::describe(&of_database);
            dumps.push(restore_logical::document(&of_database, None));
        }
        let document = serde_json::json!({
            "schema": SCHEMA, "kind": "system", "backup": plan.record.id.to_string(), "databases": dumps,
            "files": restore_files::document(&self.files, &plan, None),
        });
        output::result(global.form(), &document, || text)?;
        Ok(Exit::Done)
    }

    /// Files are read and compared first, then the databases are restored, then the files go in their place: what fails up to
    /// then leaves the files as they were.
    fn once(&self, global: &GlobalArgs, avoid: &[BackupId]) -> Tried {
        let ctx = &self.context.ctx;
        let began = Instant::now();
        let plan = files::plan(&self.files, &self.repo, avoid).map_err(|e| (None, e))?;
        let id = plan.record.id.clone();
        let failed = |e: EngineError| (Some(id.clone()), e);
        let note = |text: String| {
            if !global.quiet {
                text.lines().for_each(|line| ctx.progress.note(line));
            }
        };
        note(restore_files::describe(&self.files, &plan));
        let wanted = match self.databases(&plan.record) {
            Ok(wanted) => wanted,
            Err(failure) => return Ok(Err(failure)),
        };
        let staged = match plan.roots.is_empty() {
            true => None,
            false => Some(files::stage(&self.files, &plan, &self.repo, ctx).map_err(failed)?),
        };
        let (mut warnings, mut text, mut dumps) = (vec![], String::new(), vec![]);
        let mut worst = None;
        for (n, options) in wanted.iter().enumerate() {
            let mut announce = |plan: &databases::RestorePlan| note(restore_logical::describe(plan));
            let restored = databases::run(options, &self.repo, ctx, &mut announce);
            let (of_database, report) = match restored {
                Ok(done) => done,
                // From the second on something was changed: another backup would not fit to what is there.
                Err(e) if n > 0 => return Ok(Err(engine_failure(e))),
                Err(e) => return Err(failed(e)),
            };
            text += &restore_logical::done_text(&of_database, &report, began.elapsed());
            dumps.push(restore_logical::document(&of_database, Some((&report, began.elapsed()))));
            warnings.extend(report.warnings);
            match report.validation.map(|v| v.outcome) {
                Some(Verdict::Failed) => {
                    worst = Some(Verdict::Failed);
                    break;
                }
                Some(Verdict::NotChecked) => worst = Some(Verdict::NotChecked),
                Some(Verdict::Ok) | None => {}
            }
        }
        let mut of_files = serde_json::Value::Null;
        if worst == Some(Verdict::Failed) {
            // What was staged goes with its value.
            if staged.is_some() {
                text += "\nthe files are as they were\n";
            }
        } else if let Some(staged) = staged {
            let report = match staged.place(&self.files, &plan, &self.repo, ctx) {
                Ok(report) => report,
                Err(e) => return Ok(Err(files_failed(e, &dumps))),
            };
            text += &restore_files::done_text(&plan, &report, began.elapsed());
            of_files = restore_files::document(&self.files, &plan, Some((&report, began.elapsed())));
            warnings.extend(report.warnings);
        }
        warnings.extend(self.repo.store().notices());
        warnings.iter().for_each(|w| output::warning(w));
        let degraded = plan.notes.iter().any(|n| n.starts_with("DEGRADED"));
        let document = serde_json::json!({
            "schema": SCHEMA, "kind": "system", "backup": id.to_string(), "databases": dumps, "files": of_files,
            "duration_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), "notes": plan.notes,
            "warnings": warnings,
        });
        let shown = global.report(&document, || text);
        let outcome = match worst {
            Some(Verdict::Failed) => Exit::ValidationFailed,
            None if warnings.is_empty() && !degraded => Exit::Done,
            _ => Exit::Warnings,
        };
        Ok(shown.map(|()| outcome))
    }

    /// What is to be done for each of the databases.
    fn databases(&self, record: &PartsRecord) -> Result<Vec<databases::RestoreOptions>, Failure> {
        if !self.chosen.database {
            return Ok(vec![]);
        }
        let given = &self.args.logical;
        let (base, safety) = restore_logical::common(self.args, self.context)?;
        let named = given.database.as_deref().filter(|name| !name.is_empty());
        let names: Vec<&str> = match named {
            Some(name) => vec![name],
            None => record.databases.iter().map(|d| d.name.as_str()).collect(),
        };
        if names.len() > 1 && given.to_database.is_some() {
            return Err(Failure::usage("E-DATABASE-TO", "the backup has several databases, and one new name is given")
                .hint("give --database NAME as well"));
        }
        let one = |(n, name): (usize, &str)| {
            let to = given.to_database.clone().unwrap_or_else(|| name.to_owned());
            let replace = if to == name {
                let old = if given.keep_old { Old::Keep } else { Old::Drop };
                Replace::Replace { safety: (!given.no_safety_backup).then(|| Box::new(safety.clone())), old }
            } else {
                Replace::Refuse
            };
            let database = RestoreDatabase { name: name.to_owned(), to, replace, selection: Selection::default() };
            databases::RestoreOptions {
                not_after: None,
                run: None,
                backup: Some(record.id.clone()),
                database: Some(database),
                // Those that are missing: on a new machine the owner of the database is among them.
                globals: n == 0 && record.globals.is_some(),
                ..base.clone()
            }
        };
        Ok(names.into_iter().enumerate().map(one).collect())
    }
}

/// Databases that are in place already stay.
fn files_failed(e: EngineError, dumps: &[serde_json::Value]) -> Failure {
    let mut failure = engine_failure(e);
    if !dumps.is_empty() {
        failure.message += "; the files are as they were, and the databases are restored";
    }
    failure
}
