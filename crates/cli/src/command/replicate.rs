//! `replicate`.

use clap::Args;
use pgark_engine::replicate::{self, ReplicateOptions, ReplicatePlan, ReplicateReport, Which};
use serde_json::{Value, json};

use super::Outcome;
use super::context::{Context, engine_failure, named};
use super::delete::parse_id;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes};
use crate::store::Missing;

#[derive(Debug, Args)]
pub struct ReplicateArgs {
    /// One backup and all WAL; everything that is missing when left out
    id: Option<String>,
    /// Repository to read, by name, path or URL
    #[arg(long, value_name = "NAME|URL")]
    from: String,
    /// Repository to complete; an empty place becomes a copy with the same key ring
    #[arg(long, value_name = "NAME|URL")]
    to: String,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn run(args: ReplicateArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if !global.repo.is_empty() {
        return Err(Failure::usage(
            "E-REPO-CHOICE",
            "replicate takes its repositories from --from and --to, not --repo",
        ));
    }
    let mut both = global.clone();
    both.repo = vec![args.from, args.to];
    let context = Context::new(&both)?;
    context.stop_on_signals()?;
    let repos = context.settings.selected_repos()?;
    let [from, to] = repos.as_slice() else {
        return Err(Failure::usage("E-REPO-CHOICE", "replicate needs two repositories"));
    };
    let which = args.id.as_deref().map(parse_id).transpose()?.map_or(Which::Missing, Which::One);
    let source = context.open_repository(from).map_err(|f| named(f, &from.name, 2))?;
    let missing = if args.dry_run.dry_run { Missing::Refuse } else { Missing::Create };
    if missing == Missing::Create {
        context.refuse_nested(to)?;
    }
    let target = context.open_copy(&source, to, missing).map_err(|f| named(f, &to.name, 2))?;
    let options = ReplicateOptions { cluster: context.cluster()?, which, jobs: context.jobs() };
    let plan = replicate::plan(&source, target.as_ref(), &options).map_err(engine_failure)?;
    let Some(target) = target.filter(|_| !args.dry_run.dry_run) else {
        output::result(global.form(), &planned(&plan), || plan_text(&plan))?;
        return Ok(Exit::Done);
    };
    let report = replicate::run(&source, &target, &options, &plan, &context.ctx).map_err(engine_failure)?;
    output::result(global.form(), &document(&report), || text(&report))?;
    Ok(if report.failed.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn ids<'a>(all: impl IntoIterator<Item = &'a pgark_repo::names::BackupId>) -> Vec<String> {
    all.into_iter().map(ToString::to_string).collect()
}

fn planned(plan: &ReplicatePlan) -> Value {
    json!({"schema": SCHEMA, "dry_run": true, "backups": ids(plan.backups.iter().map(|b| &b.id)), "incomplete": ids(plan.lost.iter().map(|(b, _)| &b.id)),
        "segments": plan.segments()})
}

fn plan_text(plan: &ReplicatePlan) -> String {
    if plan.is_empty() {
        return "nothing is missing\n".into();
    }
    let mut out = format!("would copy {} WAL segments and {} backups\n", plan.segments(), plan.backups.len());
    for (b, objects) in &plan.lost {
        out += &format!("  {}  has lost {} objects\n", b.id, objects.len());
    }
    for b in &plan.backups {
        out += &format!("  {}  at most {}\n", b.id, human_bytes(b.stored_bytes));
    }
    out
}

fn document(r: &ReplicateReport) -> Value {
    let failed: Vec<Value> = r.failed.iter().map(|(what, why)| json!({"what": what, "why": why})).collect();
    json!({"schema": SCHEMA, "dry_run": false, "backups": ids(&r.backups), "completed": ids(&r.mended), "segments": r.segments, "objects": r.objects,
        "bytes": r.bytes, "failed": failed})
}

fn text(r: &ReplicateReport) -> String {
    let mut out = String::new();
    for (what, why) in &r.failed {
        out += &format!("NOT COPIED: {what}: {why}\n");
    }
    for id in &r.mended {
        out += &format!("completed {id}, which had lost objects\n");
    }
    if r.objects == 0 && r.backups.is_empty() && r.failed.is_empty() {
        return "nothing was missing\n".into();
    }
    out += &format!(
        "copied {} backups and {} WAL segments: {} objects, {}\n",
        r.backups.len(),
        r.segments,
        r.objects,
        human_bytes(r.bytes)
    );
    out
}
