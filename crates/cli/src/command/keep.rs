//! `keep` and `unkeep`: backups that nothing removes until somebody says otherwise, or until a moment.

use clap::Args;
use jiff::Timestamp;
use pgark_engine::keep::{Change, Mark, mark};

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use super::target::parse_moment;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, timestamp};

#[derive(Debug, Args)]
pub struct KeepArgs {
    /// The backup
    id: String,
    /// Only until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Put it under a legal hold of this reason, which 'unkeep' alone does not lift
    #[arg(long, value_name = "REASON", conflicts_with = "until", alias = "hold")]
    legal_hold: Option<String>,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

#[derive(Debug, Args)]
pub struct UnkeepArgs {
    /// The backup
    id: String,
    /// Lift the legal hold of exactly this reason, and nothing else
    #[arg(long, value_name = "REASON")]
    lift_hold: Option<String>,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn keep(args: KeepArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let what = match (args.until, args.legal_hold) {
        (_, Some(reason)) => Mark::Hold(reason),
        (Some(until), None) => Mark::KeepUntil(whole_seconds(parse_moment(&until)?)),
        (None, None) => Mark::Keep,
    };
    run(&args.id, &what, args.dry_run, global)
}

pub fn unkeep(args: UnkeepArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let what = args.lift_hold.map_or(Mark::Unkeep, Mark::LiftHold);
    run(&args.id, &what, args.dry_run, global)
}

pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn run(id: &str, what: &Mark, dry_run: DryRunArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let id = parse_id(id)?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let change = if dry_run.dry_run { Change::Try } else { Change::Make };
    let entry = mark(&repo, &context.cluster()?, &id, what, change, &context.ctx).map_err(engine_failure)?;
    let document = serde_json::json!({"schema": SCHEMA, "id": id.to_string(), "kept": entry.kept,
        "kept_until": entry.kept_until, "holds": super::documents::holds(&entry), "dry_run": dry_run.dry_run});
    if global.says_nothing() && !dry_run.dry_run {
        return Ok(Exit::Done);
    }
    output::result(global.form(), &document, || {
        let would = if dry_run.dry_run { "would be " } else { "is " };
        let mut marks = vec![];
        if entry.kept {
            marks.push("kept until 'pgark unkeep'".to_owned());
        }
        marks.extend(entry.kept_until.map(|until| format!("kept until {}", timestamp(until))));
        marks.extend(entry.holds.iter().map(|h| format!("under a legal hold ({})", h.reason.escape_debug())));
        let marks = if marks.is_empty() { "kept no longer".to_owned() } else { marks.join(", and ") };
        format!("backup {id} {would}{marks}\n")
    })?;
    Ok(Exit::Done)
}
