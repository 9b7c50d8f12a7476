//! `keep` and `unkeep`: backups that nothing removes until somebody says otherwise, or until a moment.

use clap::Args;
use jiff::Timestamp;
use pgark_engine::keep::{Change, Mark, mark};
use pgark_repo::catalog::BackupEntry;

use super::Outcome;
use super::context::{Context, engine_failure, no_repository};
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

/// In each repository that lists the backup: what protects it in one alone does not protect it in the others.
fn run(id: &str, what: &Mark, dry_run: DryRunArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let (id, cluster) = (parse_id(id)?, context.cluster()?);
    let change = if dry_run.dry_run { Change::Try } else { Change::Make };
    let all = context.settings.selected_repos()?;
    let mut marked: Vec<(&str, BackupEntry)> = vec![];
    let mut failed: Vec<(&str, Failure)> = vec![];
    for settings in &all {
        let marked_there = context
            .open_repository(settings)
            .and_then(|repo| mark(&repo, &cluster, &id, what, change, &context.ctx).map_err(engine_failure));
        match marked_there {
            Ok(entry) => marked.push((&settings.name, entry)),
            Err(failure) => failed.push((&settings.name, failure)),
        }
    }
    // Where none has it, what the first one says is what there is to say.
    let Some((_, entry)) = marked.first() else {
        return Err(failed.into_iter().next().map_or_else(no_repository, |(_, failure)| failure));
    };
    let not_there = |failure: &Failure| failure.code == "E-BACKUP-NONE" || failure.code == "E-BACKUP-EXPIRED";
    failed.retain(|(_, failure)| !not_there(failure));
    let warnings: Vec<String> = failed
        .iter()
        .map(|(name, f)| format!("in repository {name} it stays as it is: {}: {}", f.code, f.message))
        .collect();
    warnings.iter().for_each(|warning| output::warning(warning));
    let exit = if warnings.is_empty() { Exit::Done } else { Exit::Warnings };
    let names: Vec<&str> = marked.iter().map(|(name, _)| *name).collect();
    let document = serde_json::json!({"schema": SCHEMA, "id": id.to_string(), "kept": entry.kept,
        "kept_until": entry.kept_until, "holds": super::documents::holds(entry), "dry_run": dry_run.dry_run,
        "repos": names, "warnings": warnings});
    if global.says_nothing() && !dry_run.dry_run {
        return Ok(exit);
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
        let places = if all.len() > 1 { format!(" in {}", names.join(" and ")) } else { String::new() };
        format!("backup {id} {would}{marks}{places}\n")
    })?;
    Ok(exit)
}
