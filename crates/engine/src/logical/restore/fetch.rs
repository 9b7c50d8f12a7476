//! What is restored, out of the repository: compared, and here, before the server is told anything.

use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use pgark_repo::Repository;
use pgark_repo::names::BackupId;
use pgark_repo::record::DatabaseDump;

use super::compare::{StoredTruth, fetch_truth};
use super::{RestoreOptions, RestorePlan};
use crate::cluster::Globals;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::dump::dump_path;
use crate::logical::select::{Selected, Selection, select};
use crate::logical::toc::TocBeginning;
use crate::parts::{PartReader, Source, nameless};

const GLOBALS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What was read from the repository, compared, and now lies here.
pub(super) struct Fetched {
    pub dump: Option<std::fs::File>,
    pub truth: Option<StoredTruth>,
    pub globals: Option<Globals>,
}

pub(super) fn fetch(options: &RestoreOptions, repo: &Repository, ctx: &Ctx, plan: &RestorePlan) -> Result<Fetched> {
    let source = Source { repo, cluster: &options.cluster, record: &plan.record };
    let globals = match plan.record.globals.as_ref().filter(|_| plan.globals) {
        Some(part) => Some(fetch_globals(&source, &part.path, ctx)?),
        None => None,
    };
    if let (Some(wanted), Some(planned)) = (&options.database, &plan.database)
        && !wanted.selection.is_everything()
    {
        check_selection(&source, &planned.dump, &wanted.selection, ctx)?;
    }
    let dump = plan.database.as_ref().map(|d| fetch_dump(&source, &d.dump, &options.scratch, ctx)).transpose()?;
    let wanted = plan.database.as_ref().filter(|_| options.validate.is_some());
    let truth = wanted.map(|d| fetch_truth(&source, &d.dump, &options.scratch, ctx)).transpose()?;
    Ok(Fetched { dump, truth, globals })
}

/// By the beginning of the dump, before all of it is read.
fn check_selection(source: &Source<'_>, dump: &DatabaseDump, selection: &Selection, ctx: &Ctx) -> Result<()> {
    let mut toc = TocBeginning::default();
    PartReader::new(source)?.read(&dump_path(&dump.path), ctx, &mut |bytes| {
        toc.push(bytes);
        Ok(if toc.is_complete() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    // What is not understood is told when it was read as a whole: it may be damaged.
    match toc.finish() {
        Ok(toc) => all_are_there(&source.record.id, select(&toc, selection)).map(drop),
        Err(_) => Ok(()),
    }
}

/// What was chosen, when nothing of it is missing.
pub(super) fn all_are_there(backup: &BackupId, chosen: Selected) -> Result<Selected> {
    if chosen.missing.is_empty() {
        return Ok(chosen);
    }
    Err(EngineError::refused(
        "E-SELECT-NONE",
        format!("backup {backup} has no {}", chosen.missing.join(", no ")),
        "names are taken as they are: TABLE or SCHEMA.TABLE, in the case in which they were created",
    ))
}

pub(crate) fn fetch_globals(source: &Source<'_>, path: &str, ctx: &Ctx) -> Result<Globals> {
    let mut text = vec![];
    PartReader::new(source)?.read(path, ctx, &mut |bytes| {
        text.extend_from_slice(bytes);
        Ok(if text.len() > GLOBALS_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let globals: Globals = serde_json::from_slice(&text).map_err(|e| {
        EngineError::Repo(pgark_repo::RepoError::corrupt(format!("globals of backup {}", source.record.id), e))
    })?;
    Ok(globals)
}

/// Into a file without a name, which is gone whatever happens. Seekable, so that `pg_restore` can work in parallel.
pub(crate) fn fetch_dump(source: &Source<'_>, dump: &DatabaseDump, scratch: &Path, ctx: &Ctx) -> Result<std::fs::File> {
    let failed = |what| move |e: std::io::Error| EngineError::file(what, scratch, e);
    let space = rustix::fs::statvfs(scratch).map_err(|e| failed("looking for room in")(e.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < dump.dump_bytes {
        return Err(EngineError::refused(
            "E-SCRATCH-SPACE",
            format!("{} has {free} bytes free, and the dump takes {}", scratch.display(), dump.dump_bytes),
            "name a directory with more room: logical.scratch in pgark.toml, or TMPDIR; nothing was changed",
        ));
    }
    let mut file = std::io::BufWriter::new(nameless(scratch).map_err(failed("making a temporary file in"))?);
    ctx.progress.begin(&format!("reading the dump of '{}'", dump.name.escape_debug()), Some(dump.dump_bytes));
    let read = PartReader::new(source)?.read(&dump_path(&dump.path), ctx, &mut |bytes| {
        ctx.progress.advance(bytes.len() as u64);
        file.write_all(bytes).map_err(failed("writing a temporary file in"))?;
        Ok(ControlFlow::Continue(()))
    });
    ctx.progress.end();
    if read? != dump.dump_bytes {
        let what = format!("dump of '{}' in backup {}", dump.name.escape_debug(), source.record.id);
        return Err(pgark_repo::RepoError::corrupt(what, "not as long as it was").into());
    }
    let mut file = file.into_inner().map_err(|e| failed("writing a temporary file in")(e.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(failed("reading a temporary file in"))?;
    Ok(file)
}
