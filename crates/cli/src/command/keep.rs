//! `keep` and `unkeep`: a backup that nothing removes until somebody says otherwise.

use clap::Args;
use pgark_engine::EngineError;
use pgark_repo::RepoError;
use pgark_repo::catalog::CatalogStore;

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;

#[derive(Debug, Args)]
pub struct KeepArgs {
    /// The backup
    id: String,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

#[derive(Debug, Args)]
pub struct UnkeepArgs {
    /// The backup
    id: String,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn keep(args: KeepArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    mark(&args.id, true, args.dry_run, global)
}

pub fn unkeep(args: UnkeepArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    mark(&args.id, false, args.dry_run, global)
}

fn mark(id: &str, kept: bool, dry_run: DryRunArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let id = parse_id(id)?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let cluster = context.cluster()?;
    let catalog = CatalogStore::new(&repo, &cluster);
    let none = || RepoError::NoBackup { cluster: cluster.to_string(), id: id.to_string() };
    let failed = |e: RepoError| engine_failure(EngineError::from(e));
    if dry_run.dry_run {
        catalog.read().map_err(failed)?.backup(&id).ok_or_else(none).map_err(failed)?;
    } else {
        catalog
            .update(|c| {
                let entry = c.backups.iter_mut().find(|b| b.id == id).ok_or_else(none)?;
                entry.kept = kept;
                Ok(Some(()))
            })
            .map_err(failed)?;
    }
    let document =
        serde_json::json!({"schema": SCHEMA, "id": id.to_string(), "kept": kept, "dry_run": dry_run.dry_run});
    output::result(global.form(), &document, || {
        let would = if dry_run.dry_run { "would be " } else { "is " };
        format!("backup {id} {would}{}\n", if kept { "kept until 'pgark unkeep'" } else { "kept no longer" })
    })?;
    Ok(Exit::Done)
}
