//! The truth that was stored with a backup, for a database that was restored from it, however that was done.

use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::PathBuf;

use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, Claim, Needs};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{DatabaseDump, PartsRecord};

use super::dump::dump_path;
use super::restore::compare::{StoredTruth, fetch_truth};
use super::restore::{SAFETY, is_partial, not_parts};
use super::select::{Selected, Selection, select};
use super::toc::TocBeginning;
use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{PartReader, Source};
use crate::restore::run::claim_to_read;
use crate::truth::{Scope, TruthReader};

pub struct AgainstOptions {
    pub cluster: ClusterName,
    /// None: the newest that holds the database.
    pub backup: Option<BackupId>,
    /// As it is called in the backup.
    pub database: String,
    /// The only one in the backup will do, too.
    pub or_only: bool,
    /// What of it was restored.
    pub selection: Selection,
    pub scratch: PathBuf,
}

pub struct Against {
    pub backup: BackupId,
    /// As it is called there.
    pub database: String,
    pub truth: TruthReader<BufReader<std::fs::File>>,
    pub scope: Option<Scope>,
}

/// Reads it out of the repository.
///
/// # Errors
/// Also when there is no truth in the backup: nothing older is taken in its place.
pub fn open(options: &AgainstOptions, repo: &Repository, ctx: &Ctx) -> Result<Against> {
    let (record, at) = choose(options, repo)?;
    let dump = record.databases.get(at).expect("found there");
    let catalog = CatalogStore::new(repo, &options.cluster);
    let claim = claim_to_read(&catalog, &record.id, Needs::default(), ctx)?;
    let kept = claim.clone().map(|claim| KeptClaim::new(claim, ctx));
    let read = read(options, repo, &record, dump, ctx);
    drop(kept);
    if let Some(Err(e)) = claim.map(Claim::release) {
        tracing::warn!(%e, "the claim ends by itself");
    }
    read
}

fn read(
    options: &AgainstOptions,
    repo: &Repository,
    record: &PartsRecord,
    dump: &DatabaseDump,
    ctx: &Ctx,
) -> Result<Against> {
    let source = Source { repo, cluster: &options.cluster, record };
    let truth = match fetch_truth(&source, dump, &options.scratch, ctx)? {
        StoredTruth::Here(file) => TruthReader::open(file)?,
        StoredTruth::None(why) => {
            return Err(EngineError::refused(
                "E-TRUTH-NONE",
                format!("'{}' cannot be compared with backup {}: {why}", dump.name.escape_debug(), record.id),
                "name another backup: 'pgark info ID' shows whether it has a truth",
            ));
        }
    };
    // A dump of parts has foreign keys that no load can make.
    let whole = options.selection.is_everything() && !is_partial(dump);
    let scope = if whole { None } else { Some(selected(options, &source, dump, ctx)?) };
    Ok(Against { backup: record.id.clone(), database: dump.name.clone(), truth, scope })
}

fn choose(options: &AgainstOptions, repo: &Repository) -> Result<(PartsRecord, usize)> {
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let find = |record: &PartsRecord| {
        let named = record.databases.iter().position(|d| d.name == options.database);
        named.or_else(|| (options.or_only && record.databases.len() == 1).then_some(0))
    };
    let none = |which: String, there: String| {
        let what = format!("{which} holds database '{}'", options.database.escape_debug());
        EngineError::refused(
            "E-DATABASE-NONE",
            what,
            format!("name it as it is called in the backup: --source NAME{there}"),
        )
    };
    if let Some(id) = &options.backup {
        let entry = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, id))?;
        not_parts(entry)?;
        let record = PartsRecord::load(repo, &options.cluster, id, &entry.record)?;
        let there: Vec<String> = record.databases.iter().map(|d| format!("'{}'", d.name.escape_debug())).collect();
        let at = find(&record)
            .ok_or_else(|| none(format!("nothing in backup {id}"), format!("; it holds {}", there.join(", "))))?;
        return Ok((record, at));
    }
    let ordinary = |e: &&pgark_repo::catalog::BackupEntry| e.physical.is_none() && !e.annotations.contains_key(SAFETY);
    for entry in catalog.backups.iter().rev().filter(ordinary) {
        let record = PartsRecord::load(repo, &options.cluster, &entry.id, &entry.record)?;
        // Parts of a database are compared with the backup that is named.
        if let Some(at) = find(&record).filter(|at| record.databases.get(*at).is_some_and(|d| !is_partial(d))) {
            return Ok((record, at));
        }
    }
    Err(none(format!("no logical backup of '{}'", options.cluster), String::new()))
}

/// By the table of contents, which is at the beginning of the dump.
fn selected(options: &AgainstOptions, source: &Source<'_>, dump: &DatabaseDump, ctx: &Ctx) -> Result<Scope> {
    let mut toc = TocBeginning::default();
    PartReader::new(source)?.read(&dump_path(&dump.path), ctx, &mut |bytes| {
        toc.push(bytes);
        Ok(if toc.is_complete() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let toc = toc.finish().map_err(|problem| {
        let what = format!("the table of contents of the dump is not understood: {problem:?}");
        EngineError::failed("E-DUMP-UNREADABLE", what, "compare the whole database, or use a newer pgark")
    })?;
    let Selected { ids, missing, .. } = select(&toc, &options.selection);
    if !missing.is_empty() {
        return Err(EngineError::refused(
            "E-SELECT-NONE",
            format!("backup {} has no {}", source.record.id, missing.join(", no ")),
            "names are taken as they are: TABLE or SCHEMA.TABLE, in the case in which they were created",
        ));
    }
    Ok(Scope::of(&toc, Some(&ids), &dump.encoding))
}
