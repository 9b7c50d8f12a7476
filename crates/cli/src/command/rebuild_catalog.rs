//! `rebuild-catalog`: lists backups that no catalog lists any more, from their own records.

use clap::Args;
use pgark_engine::relist::{self, HOLD, Plan};
use serde_json::json;

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use crate::args::{ConfirmArgs, DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, timestamp};

#[derive(Debug, Args)]
pub struct RebuildCatalogArgs {
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

pub fn run(args: RebuildCatalogArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let cluster = context.cluster()?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let plan = relist::plan(&repo, &cluster, &context.ctx).map_err(engine_failure)?;
    let make = !args.dry_run.dry_run && !plan.is_empty();
    if make {
        let question = format!("list {} backups anew ('--dry-run' says which)", plan.found.len());
        confirm(&args.confirm, &question)?;
        relist::run(&repo, &cluster, &plan).map_err(engine_failure)?;
    }
    let done = if make { "is" } else { "would be" };
    output::result(global.form(), &document(&plan, make), || text(&plan, done))?;
    let is_all = plan.left.is_empty() && plan.notes.is_empty();
    Ok(if is_all { Exit::Done } else { Exit::Warnings })
}

fn document(plan: &Plan, done: bool) -> serde_json::Value {
    let left: Vec<_> = plan.left.iter().map(|(id, why)| json!({"id": id.to_string(), "why": why})).collect();
    let found: Vec<String> = plan.found.iter().map(|b| b.id.to_string()).collect();
    json!({"schema": SCHEMA, "dry_run": !done, "lost": plan.lost, "from_version_before": plan.lost.is_some() && plan.has_before,
        "listed": found, "left": left, "notes": plan.notes})
}

fn text(plan: &Plan, is: &str) -> String {
    let mut out = match (&plan.lost, plan.has_before) {
        (None, _) => "the catalog can be read\n".to_owned(),
        (Some(why), true) => format!("the catalog is lost ({why}); it {is} as it was before its last change\n"),
        (Some(why), false) => format!("the catalog is lost ({why}), and so is the version before; it {is} made anew\n"),
    };
    for b in &plan.found {
        let size = human_bytes(b.size_bytes);
        out += &format!("  {}  {}  {}  {size}  {is} listed again\n", b.id, b.kind, timestamp(b.finished));
    }
    for (id, why) in &plan.left {
        out += &format!("  {id}  NOT LISTED: {why}\n");
    }
    for note in &plan.notes {
        out += &format!("NOTE: {note}\n");
    }
    if plan.found.is_empty() {
        out += "no backup lies there that is not listed\n";
    } else {
        out += &format!(
            "Marks, notes and proofs of these are not known. A legal hold ({HOLD}) keeps them until you lift it: 'pgark unkeep ID \
             --lift-hold \"{HOLD}\"'. One that you had deleted may be among them. Run 'pgark verify'.\n"
        );
    }
    out
}
