//! `delete ID`.

use clap::Args;
use pgark_engine::delete::{self, LastBackup};
use pgark_repo::names::BackupId;

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use crate::args::{ConfirmArgs, DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes};

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The backup
    id: String,
    /// Also when it is the only one
    #[arg(long)]
    last: bool,
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

pub fn run(args: DeleteArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let id = parse_id(&args.id)?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let cluster = context.cluster()?;
    let last = if args.last { LastBackup::Allow } else { LastBackup::Refuse };
    let plan = delete::plan(&repo, &cluster, &id, last, &context.ctx).map_err(engine_failure)?;
    let others = match plan.kept {
        0 => String::new(),
        n => format!(" ({n} packs stay, other backups need them)"),
    };
    let what = format!(
        "backup {id}: {} objects, {}{others}; {} backups remain",
        plan.objects,
        human_bytes(plan.bytes),
        plan.remaining
    );
    let document = |deleted: bool| {
        serde_json::json!({"schema": SCHEMA, "id": id.to_string(), "deleted": deleted, "objects": plan.objects,
            "bytes": plan.bytes, "packs_kept": plan.kept, "remaining": plan.remaining})
    };
    if args.dry_run.dry_run {
        output::result(global.form(), &document(false), || format!("would delete {what}\n"))?;
        return Ok(Exit::Done);
    }
    confirm(&args.confirm, &format!("delete {what}"))?;
    delete::run(&repo, &cluster, &plan, &context.ctx).map_err(engine_failure)?;
    global.report(&document(true), || match plan.is_done() {
        true => format!("backup {id} is deleted already: there was nothing left to remove{others}\n"),
        false => format!("deleted {what}\n"),
    })?;
    Ok(Exit::Done)
}

pub fn parse_id(text: &str) -> Result<BackupId, Failure> {
    BackupId::parse(text).map_err(|e| {
        Failure::usage("E-BACKUP-ID", e.to_string()).hint("ids look like 20260822-031500F; 'pgark info' lists them")
    })
}
