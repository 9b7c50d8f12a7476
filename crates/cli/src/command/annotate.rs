//! `annotate`: notes on a backup, shown by `info`.

use clap::Args;
use pgark_engine::keep;

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;

#[derive(Debug, Args)]
pub struct AnnotateArgs {
    /// The backup
    id: String,
    /// KEY=VALUE sets a note, KEY= takes it away
    #[arg(required = true, value_name = "KEY=VALUE")]
    notes: Vec<String>,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn run(args: &AnnotateArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let id = parse_id(&args.id)?;
    let mut notes = vec![];
    for note in &args.notes {
        let (key, value) = note.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
            Failure::usage("E-ANNOTATION", format!("'{note}' is not KEY=VALUE")).hint("KEY= takes a note away")
        })?;
        notes.push((key.to_owned(), value.to_owned()));
    }
    let context = Context::new(global)?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let change = if args.dry_run.dry_run { keep::Change::Try } else { keep::Change::Make };
    let now = keep::annotate(&repo, &context.cluster()?, &id, &notes, change).map_err(engine_failure)?;
    let document = serde_json::json!({"schema": SCHEMA, "id": id.to_string(), "annotations": now,
        "dry_run": args.dry_run.dry_run});
    output::result(global.form(), &document, || {
        let shown: Vec<String> =
            now.iter().map(|(k, v)| format!("{}={}", k.escape_debug(), v.escape_debug())).collect();
        let would = if args.dry_run.dry_run { "would have" } else { "has" };
        format!("backup {id} {would} {}\n", if shown.is_empty() { "no notes".to_owned() } else { shown.join(", ") })
    })?;
    Ok(Exit::Done)
}
