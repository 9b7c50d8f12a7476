//! `restore --kind files`, and the files of `--kind system`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use pgark_engine::files::FilesJob;
use pgark_engine::files::restore::{self, Destination, Old, RestoreOptions, RestorePlan, RestoreReport, Undone};
use pgark_repo::catalog::BackupKind;
use pgark_repo::codec::Compression;
use pgark_repo::record::Section;

use super::Outcome;
use super::backup_files::{FilesArgs, files_options, path};
use super::backup_logical::scratch;
use super::context::{Context, confirm, engine_failure};
use super::delete::parse_id;
use super::restore::RestoreArgs;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};

#[derive(Debug, Args)]
#[command(next_help_heading = "Backups of files and systems")]
pub struct FilesRestoreArgs {
    /// The configuration files; of a system, a bare --config says the same
    #[arg(long)]
    pub(super) config_files: bool,
    /// The directories of the application
    #[arg(long)]
    pub(super) files: bool,
    /// Only what matches this pattern: of a name, of a path, '/srv/app/uploads/2025/**'; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub(super) path: Vec<String>,
    /// Put everything back as it was before a restore in place that was interrupted: the directory .pgark-restore-… that it left
    #[arg(long, value_name = "DIR", conflicts_with_all = ["id", "to", "in_place", "path", "config_files", "files"])]
    pub(super) undo: Option<PathBuf>,
}

impl FilesRestoreArgs {
    pub fn refuse_others(&self) -> Result<(), Failure> {
        let given = [
            ("--config-files", self.config_files),
            ("--files", self.files),
            ("--path", !self.path.is_empty()),
            ("--undo", self.undo.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Failure::usage("E-KIND", format!("{flag} is for backups of files and systems"))
                .hint("add --kind files or --kind system")),
        }
    }

    /// None named: both.
    pub(super) fn sections(&self) -> Vec<Section> {
        match (self.config_files, self.files) {
            (true, false) => vec![Section::Config],
            (false, true) => vec![Section::Files],
            _ => vec![Section::Config, Section::Files],
        }
    }
}

pub fn run(args: &RestoreArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    refuse_databases(args)?;
    if let Some(staging) = &args.files.undo {
        return undo(staging, args, global);
    }
    let mut context = Context::new(global)?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let options = options(args, &context, BackupKind::Files, args.files.sections())?;
    let (_, repo) = context.open_first()?;
    let repo = repo.healing();
    if args.dry_run.dry_run {
        let plan = restore::plan(&options, &repo, &[]).map_err(engine_failure)?;
        let shown = || format!("would restore\n{}", describe(&options, &plan));
        output::result(global.form(), &document(&options, &plan, None), shown)?;
        return Ok(Exit::Done);
    }
    if matches!(options.destination, Destination::InPlace { .. }) {
        confirm(&args.confirm, "replace the files that are there by those of the backup")?;
    }
    let began = Instant::now();
    let quiet = global.quiet;
    let mut announce = |plan: &RestorePlan| {
        if !quiet {
            describe(&options, plan).lines().for_each(|line| context.ctx.progress.note(line));
        }
    };
    let restored = restore::run(&options, &repo, &context.ctx, &mut announce);
    let notices = repo.store().notices();
    notices.iter().for_each(|notice| output::warning(notice));
    let (plan, report) = restored.map_err(engine_failure)?;
    context.trail().about("backup", &plan.record.id);
    report.warnings.iter().for_each(|w| output::warning(w));
    let took = began.elapsed();
    let done = document(&options, &plan, Some((&report, took)));
    global.report(&done, || done_text(&plan, &report, took))?;
    let degraded = plan.notes.iter().any(|n| n.starts_with("DEGRADED"));
    let clean = report.warnings.is_empty() && notices.is_empty() && !degraded;
    Ok(if clean { Exit::Done } else { Exit::Warnings })
}

fn undo(staging: &Path, args: &RestoreArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if args.dry_run.dry_run {
        return Err(Failure::usage("E-FILES-UNDO", "what is to be put back is not shown before it is done")
            .hint("leave --dry-run out"));
    }
    let staging = std::path::absolute(staging).map_err(|e| Failure::usage("E-FILES-UNDO", e.to_string()))?;
    confirm(&args.confirm, "put the files back as they were before the interrupted restore")?;
    let undone = restore::undo(&staging).map_err(engine_failure)?;
    let (state, names, kept) = match &undone {
        Undone::NotBegun => ("not_begun", 0, vec![]),
        Undone::PutBack { names, kept } => ("put_back", *names, kept.clone()),
        Undone::WasPlaced { kept } => ("was_placed", 0, kept.clone()),
    };
    let document = serde_json::json!({
        "schema": SCHEMA, "kind": "files", "undone": state, "put_back": names,
        "kept": kept.iter().map(|p| p.to_string_lossy().into_owned()).collect::<Vec<_>>(),
    });
    global.report(&document, || match &undone {
        Undone::NotBegun => "the restore had touched nothing; what it had written beside is removed\n".to_owned(),
        Undone::PutBack { names, kept } => {
            let places = kept.iter().map(|path| {
                format!("  what had been restored is in {}: remove it when nobody wrote into it\n", path.display())
            });
            format!(
                "everything is as it was before the restore; {names} names were put back\n{}",
                places.collect::<String>()
            )
        }
        Undone::WasPlaced { kept } => {
            let places = kept.iter().map(|path| format!("  what was replaced is in {}\n", path.display()));
            format!("the restore had put everything in place, and that stays\n{}", places.collect::<String>())
        }
    })?;
    Ok(Exit::Done)
}

fn refuse_databases(args: &RestoreArgs) -> Result<(), Failure> {
    let given = &args.logical;
    let given = [
        ("--database", given.database.is_some()),
        ("--to-database", given.to_database.is_some()),
        ("--globals", given.globals),
        ("--schema", !given.schema.is_empty()),
        ("--table", !given.table.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Failure::usage("E-KIND", format!("{flag} is for databases, and these are files"))
            .hint("a backup of --kind system has both")),
    }
}

pub(super) fn options(
    args: &RestoreArgs,
    context: &Context,
    kind: BackupKind,
    sections: Vec<Section>,
) -> Result<RestoreOptions, Failure> {
    let destination = match (&args.to, args.logical.in_place) {
        (Some(_), true) => {
            return Err(Failure::usage("E-FILES-TO", "--to and --in-place say different things"));
        }
        (Some(to), false) => {
            let to = std::path::absolute(to).map_err(|e| Failure::usage("E-FILES-TO", e.to_string()))?;
            Destination::Directory(to)
        }
        (None, false) => {
            return Err(Failure::usage("E-FILES-TO", "where the files are to go is not said")
                .hint("give --to DIR, or --in-place to put them where they were"));
        }
        (None, true) => Destination::InPlace {
            safety: if args.logical.no_safety_backup { None } else { Some(Box::new(safety(context)?)) },
            old: if args.logical.keep_old { Old::Keep } else { Old::Remove },
        },
    };
    let configured = files_options(&FilesArgs::default(), context)?;
    Ok(RestoreOptions {
        cluster: context.cluster()?,
        series: (kind == BackupKind::Files).then(|| configured.series()),
        backup: args.id.as_ref().filter(|id| *id != "latest").map(|id| parse_id(id)).transpose()?,
        kind,
        sections,
        paths: args.files.path.clone(),
        destination,
    })
}

/// How what is there is backed up; what of it, the backup says.
fn safety(context: &Context) -> Result<FilesJob, Failure> {
    Ok(FilesJob {
        cluster: context.cluster()?,
        files: files_options(&FilesArgs::default(), context)?,
        scratch: scratch(&context.cluster_settings()?.logical.clone().unwrap_or_default()),
        compression: Compression::DEFAULT,
        keep: false,
        annotations: Default::default(),
    })
}

pub(super) fn describe(options: &RestoreOptions, plan: &RestorePlan) -> String {
    let mut out = format!("  backup {} of {}\n", plan.record.id, output::timestamp(plan.record.started));
    for root in &plan.roots {
        out += &match &options.destination {
            Destination::Directory(to) => {
                let place = to.join(root.section.as_str());
                format!("  {} into {}{}\n", path(&root.path), place.display(), path(&root.path))
            }
            Destination::InPlace { .. } => format!("  {} in its place\n", path(&root.path)),
        };
    }
    for pattern in &options.paths {
        out += &format!("  only what matches {pattern}\n");
    }
    for note in &plan.notes {
        out += &format!("  {note}\n");
    }
    out
}

pub(super) fn done_text(plan: &RestorePlan, report: &RestoreReport, took: Duration) -> String {
    let w = &report.written;
    let mut out = format!(
        "restored {} files ({}), {} directories, {} symbolic links, {} further hard links from backup {} in {}\n",
        w.files,
        human_bytes(w.bytes),
        w.directories,
        w.symlinks,
        w.hard_links,
        plan.record.id,
        human_duration(took)
    );
    if report.replaced > 0 {
        out += &format!("  {} names were there and were replaced\n", report.replaced);
    }
    if report.others > 0 {
        out += &format!("  {} names beside them are not in the backup and stay\n", report.others);
    }
    if let Some(id) = &report.safety {
        out += &format!("  the files as they were before are in backup {id}\n");
    }
    for kept in &report.kept {
        out += &format!("  what was replaced is in {}\n", kept.display());
    }
    out
}

pub(super) fn document(
    options: &RestoreOptions,
    plan: &RestorePlan,
    done: Option<(&RestoreReport, Duration)>,
) -> serde_json::Value {
    let to = match &options.destination {
        Destination::Directory(to) => Some(to.to_string_lossy().into_owned()),
        Destination::InPlace { .. } => None,
    };
    let roots = plan.roots.iter().map(|r| {
        serde_json::json!({"section": r.section.as_str(), "path": String::from_utf8_lossy(&r.path),
            "directory": r.is_directory})
    });
    let mut document = serde_json::json!({
        "schema": SCHEMA, "kind": plan.record.kind.as_str(), "backup": plan.record.id.to_string(), "to": to,
        "in_place": to.is_none(), "paths": roots.collect::<Vec<_>>(), "patterns": options.paths, "notes": plan.notes,
    });
    if let (Some((report, took)), Some(fields)) = (done, document.as_object_mut()) {
        let w = &report.written;
        let more = serde_json::json!({
            "files": w.files, "directories": w.directories, "symlinks": w.symlinks, "hard_links": w.hard_links,
            "bytes_restored": w.bytes, "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "replaced": report.replaced, "others": report.others,
            "safety_backup": report.safety.as_ref().map(ToString::to_string),
            "kept": report.kept.iter().map(|p| p.to_string_lossy().into_owned()).collect::<Vec<_>>(),
            "warnings": report.warnings,
        });
        fields.extend(more.as_object().cloned().unwrap_or_default());
    }
    document
}
