//! `export`: a backup as a tar that needs PostgreSQL and nothing else.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use pgark_engine::export::system::{self, SystemExportOptions};
use pgark_engine::export::{self, Destination, ExportOptions, ExportPlan, ExportReport, Packing};
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::BackupId;
use serde::Serialize;

use super::Outcome;
use super::backup_logical::{scratch, tool_options};
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes};

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A backup's id; 'latest' or nothing for the newest physical one, or the newest where none is
    id: Option<String>,
    /// The file to write: F.tar, F.tar.gz or F.tar.zst; '-' for standard output
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// How the tar is compressed; by default as the file's name says, and not at all on standard output
    #[arg(long, value_name = "FORM")]
    format: Option<FormatArg>,
    #[command(flatten)]
    dry_run: DryRunArgs,
    /// The directory of pg_restore, which writes the dumps of a system as SQL
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Tar,
    TarGz,
    TarZst,
}

#[derive(Serialize)]
struct ExportDocument {
    schema: u32,
    backup: String,
    to: String,
    directory: String,
    pg_version: u32,
    timeline: u32,
    lsn_start: String,
    lsn_stop: String,
    wal: Vec<String>,
    tablespaces: Vec<u32>,
    notes: Vec<String>,
    /// Of the cluster, without WAL.
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<WrittenDocument>,
}

#[derive(Serialize)]
struct WrittenDocument {
    files: u64,
    content_bytes: u64,
    file_bytes: u64,
    sha256: String,
    warnings: Vec<String>,
}

pub fn run(args: ExportArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let to_stdout = args.to == Path::new("-");
    if to_stdout && global.json && !args.dry_run.dry_run {
        return Err(Failure::usage("E-EXPORT-STDOUT", "standard output cannot hold both the export and a document")
            .hint("give a file, or leave --json out"));
    }
    let packing = packing(&args, to_stdout)?;
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let backup = match args.id.as_deref() {
        None | Some("latest") => {
            let repo = context.open_first_with_books()?;
            export::newest_other(&repo, &context.cluster()?).map_err(engine_failure)?
        }
        Some(id) => Some(parse_id(id)?),
    };
    if let Some(id) = backup.clone().filter(|id| id.kind() != BackupKind::Physical) {
        return run_system(&args, &context, id, packing, global);
    }
    let dir = args.to.parent().filter(|d| !to_stdout && !d.as_os_str().is_empty());
    let spool = match (to_stdout, dir) {
        (true, _) => std::env::temp_dir(),
        (false, dir) => dir.unwrap_or(Path::new(".")).to_owned(),
    };
    let options = ExportOptions { cluster: context.cluster()?, backup, packing, spool };
    if !to_stdout {
        export::check_free(&args.to).map_err(engine_failure)?;
    }
    let repo = context.open_first_with_books()?;
    let plan = export::plan(&options, &repo).map_err(engine_failure)?;
    context.trail().about("backup", &plan.restore.backup.id);
    let mut document = document(&plan, &args);
    let degraded = plan.restore.notes.iter().any(|n| n.starts_with("DEGRADED"));
    plan.restore.notes.iter().for_each(|note| output::warning(note));
    if args.dry_run.dry_run {
        output::result(global.form(), &document, || format!("would export to {}\n{}", document.to, describe(&plan)))?;
        return Ok(Exit::Done);
    }
    if !global.quiet {
        describe(&plan).lines().for_each(|line| context.ctx.progress.note(line));
    }
    output::warning("an export is not encrypted: whoever reads it reads the database");
    let to = match to_stdout {
        true => Destination::Stream(RefCell::new(Box::new(std::io::stdout().lock()))),
        false => Destination::File(args.to.clone()),
    };
    let report = export::run(&options, &plan, &to, &repo, &context.ctx).map_err(engine_failure)?;
    report.warnings.iter().for_each(|w| output::warning(w));
    let left_out = !report.warnings.is_empty();
    let done = done(&document, &report);
    if to_stdout {
        done.lines().for_each(|line| context.ctx.progress.note(line));
    } else {
        document.written = Some(WrittenDocument {
            files: report.files,
            content_bytes: report.bytes,
            file_bytes: report.size,
            sha256: report.sha256,
            warnings: report.warnings,
        });
        global.report(&document, || done)?;
    }
    Ok(if degraded || left_out { Exit::Warnings } else { Exit::Done })
}

/// Of every kind but physical: a tar with dumps as SQL, and files.
fn run_system(
    args: &ExportArgs,
    context: &Context,
    backup: BackupId,
    packing: Packing,
    global: &GlobalArgs,
) -> Result<Outcome, Failure> {
    let cluster = context.cluster()?;
    let logical = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let prefix = context.cluster_settings()?.system.as_ref().and_then(|s| s.prefix.clone());
    let options = SystemExportOptions {
        prefix: prefix.unwrap_or_else(|| cluster.to_string()),
        cluster,
        backup,
        packing,
        tools: tool_options(args.pg_bin.as_ref(), &logical),
        scratch: scratch(&logical),
    };
    let to_stdout = args.to == Path::new("-");
    if !to_stdout {
        export::check_free(&args.to).map_err(engine_failure)?;
    }
    let (_, repo) = context.open_first()?;
    let plan = system::plan(&options, &repo).map_err(engine_failure)?;
    let record = &plan.record;
    let mut document = serde_json::json!({
        "schema": SCHEMA, "backup": record.id.to_string(), "kind": record.kind.as_str(), "to": args.to.to_string_lossy(),
        "directory": plan.name, "databases": record.databases.iter().map(|d| &d.name).collect::<Vec<_>>(),
        "size_bytes": record.totals.size_bytes,
    });
    if args.dry_run.dry_run {
        let shown = || format!("would export backup {} to {} as {}\n", record.id, args.to.display(), plan.name);
        output::result(global.form(), &document, shown)?;
        return Ok(Exit::Done);
    }
    output::warning("an export is not encrypted: whoever reads it reads the databases and the files");
    let to = match to_stdout {
        true => Destination::Stream(RefCell::new(Box::new(std::io::stdout().lock()))),
        false => Destination::File(args.to.clone()),
    };
    let report = system::run(&options, &plan, &to, &repo, &context.ctx).map_err(engine_failure)?;
    report.warnings.iter().for_each(|w| output::warning(w));
    let done = format!(
        "exported backup {} to {}: {} files, {}, in {}\n  sha256 {}\n  everything is in {}/\n",
        record.id,
        args.to.display(),
        report.files,
        human_bytes(report.bytes),
        human_bytes(report.size),
        report.sha256,
        plan.name
    );
    if to_stdout {
        done.lines().for_each(|line| context.ctx.progress.note(line));
    } else {
        document["written"] = serde_json::json!({"files": report.files, "content_bytes": report.bytes,
            "file_bytes": report.size, "sha256": report.sha256, "warnings": report.warnings});
        global.report(&document, || done)?;
    }
    Ok(if report.warnings.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn packing(args: &ExportArgs, to_stdout: bool) -> Result<Packing, Failure> {
    let given = args.format.map(|f| match f {
        FormatArg::Tar => Packing::Tar,
        FormatArg::TarGz => Packing::Gzip,
        FormatArg::TarZst => Packing::Zstd,
    });
    let by_name = || match to_stdout {
        true => Some(Packing::Tar),
        false => args.to.file_name().and_then(|n| Packing::of_name(&n.to_string_lossy())),
    };
    given.or_else(by_name).ok_or_else(|| {
        Failure::usage("E-EXPORT-FORMAT", format!("{} does not say what it is to be", args.to.display()))
            .hint("let the name end in .tar, .tar.gz or .tar.zst, or give --format")
    })
}

fn document(plan: &ExportPlan, args: &ExportArgs) -> ExportDocument {
    let record = &plan.restore.record;
    ExportDocument {
        schema: SCHEMA,
        backup: record.id.to_string(),
        to: args.to.to_string_lossy().into_owned(),
        directory: plan.top.clone(),
        pg_version: record.version_num,
        timeline: record.timeline.get(),
        lsn_start: record.lsn_start.to_string(),
        lsn_stop: record.lsn_stop.to_string(),
        wal: plan.wal.iter().map(|n| n.format(record.segment_size)).collect(),
        tablespaces: record.tablespaces.iter().filter(|t| !t.in_place).map(|t| t.oid).collect(),
        notes: plan.restore.notes.clone(),
        size_bytes: record.totals.size_bytes,
        written: None,
    }
}

fn describe(plan: &ExportPlan) -> String {
    let record = &plan.restore.record;
    format!(
        "  backup    {} of PostgreSQL {} ({}, {} files)\n  state     consistent at {} on timeline {}, with {} wal segments\n  inside    {}/data and {} tablespaces\n",
        record.id,
        record.version_num / 10_000,
        human_bytes(record.totals.size_bytes),
        record.totals.files,
        record.lsn_stop,
        record.timeline,
        plan.wal.len(),
        plan.top,
        record.tablespaces.iter().filter(|t| !t.in_place).count(),
    )
}

fn done(document: &ExportDocument, report: &ExportReport) -> String {
    format!(
        "exported backup {} to {}: {} files, {}, in {}\n  sha256 {}\n  unpack it, then: pg_verifybackup {top}/data && pg_ctl -D {top}/data start\n",
        document.backup,
        document.to,
        report.files,
        human_bytes(report.bytes),
        human_bytes(report.size),
        report.sha256,
        top = document.directory,
    )
}
