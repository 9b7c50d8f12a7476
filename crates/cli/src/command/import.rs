//! `import`: a base backup that lies in a directory becomes a backup in the repository.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use pgark_engine::backup::import::{self, ImportOptions, ImportPlan};

use super::Outcome;
use super::backup::{annotations, compression};
use super::context::{Context, engine_failure};
use super::documents::{BackupDocument, RepoOutcome};
use crate::args::{DryRunArgs, GlobalArgs, RateArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// An unpacked export, or a directory that pg_basebackup wrote: plain format, with backup_manifest and WAL
    directory: PathBuf,
    /// Never remove it by retention
    #[arg(long)]
    keep: bool,
    /// A note kept with the backup; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    annotate: Vec<String>,
    /// none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "CODEC", default_value = "zstd:1")]
    compress: String,
    #[command(flatten)]
    rate: RateArgs,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn run(args: ImportArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let mut context = Context::new(global)?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let options = ImportOptions {
        cluster: context.cluster()?,
        from: args.directory,
        jobs: context.jobs(),
        compression: compression(&args.compress)?,
        keep: args.keep,
        annotations: annotations(&args.annotate)?,
    };
    // Into one: 'replicate' brings it into others.
    let settings = context.one_repo_settings()?;
    let repo = context.open_repository(&settings)?;
    let plan = import::plan(&options, &repo, &context.ctx).map_err(engine_failure)?;
    if args.dry_run.dry_run {
        let size = plan.control.segment_size;
        let document = serde_json::json!({
            "schema": SCHEMA, "id": plan.id.to_string(), "cluster": options.cluster.to_string(), "registers": plan.registers,
            "system_id": plan.control.system_id.to_string(), "timeline": plan.timeline.get(),
            "lsn_start": plan.lsn_start.to_string(), "lsn_stop": plan.lsn_stop.to_string(),
            "wal": plan.wal.iter().map(|n| n.format(size)).collect::<Vec<_>>(),
            "size_bytes": plan.size_bytes, "files": plan.files,
        });
        output::result(global.form(), &document, || format!("would import {}", describe(&plan)))?;
        return Ok(Exit::Done);
    }
    if !global.quiet {
        context.ctx.progress.note(&format!("importing {}", describe(&plan)));
    }
    let began = Instant::now();
    let report = import::run(&options, &plan, &repo, &context.ctx).map_err(engine_failure)?;
    report.warnings.iter().for_each(|w| output::warning(w));
    let entry = &report.entry;
    let repos = vec![RepoOutcome { name: settings.name, ok: true }];
    let document = BackupDocument::new(options.cluster.as_str(), &report, repos, vec![]);
    output::result(global.form(), &document, || {
        format!(
            "{}\n  imported: {} read, {} stored, {} to {} on timeline {}, in {}\n",
            entry.id,
            human_bytes(entry.read_bytes),
            human_bytes(entry.stored_bytes),
            entry.lsn_start,
            entry.lsn_stop,
            entry.timeline,
            human_duration(began.elapsed())
        )
    })?;
    Ok(if report.warnings.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn describe(plan: &ImportPlan) -> String {
    format!(
        "{}: {} in {} files, system identifier {}, consistent at {} on timeline {}, {} wal segments{}",
        plan.data.display(),
        human_bytes(plan.size_bytes),
        plan.files,
        plan.control.system_id,
        plan.lsn_stop,
        plan.timeline,
        plan.wal.len(),
        if plan.registers { "; the cluster's name is new here" } else { "" }
    )
}
