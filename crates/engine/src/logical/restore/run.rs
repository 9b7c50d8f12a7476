//! What the plan says is done: the dump is fetched, loaded beside what is there, and put in its place.

use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, Claim, Needs};
use pgark_repo::names::BackupId;
use pgark_repo::record::DatabaseDump;

use super::compare::{StoredTruth, fetch_truth};
use super::list::{ListFile, read_toc};
use super::schemas;
use super::{
    DatabasePlan, Old, Replace, RestoreDatabase, RestoreOptions, RestorePlan, RestoreReport, SAFETY, admin, exists,
    is_damage, is_partial, plan,
};
use crate::backup::claim::KeptClaim;
use crate::cluster::provision;
use crate::cluster::{Connection, Globals};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::child::{self, Running};
use crate::logical::dump::dump_path;
use crate::logical::select::{LeftKey, Selected, Selection, select};
use crate::logical::toc::TocBeginning;
use crate::logical::{Wanted, run as back_up};
use crate::parts::{PartReader, Source, nameless};
use crate::reports::{self, Validated};
use crate::restore::run::claim_to_read;
use crate::truth::Scope;
use crate::validate;

/// How long sessions may take to end.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);
/// Entries whose owner is set when they are loaded.
const OWNED: [&[u8]; 11] = [
    b"AGGREGATE",
    b"DOMAIN",
    b"FOREIGN TABLE",
    b"FUNCTION",
    b"MATERIALIZED VIEW",
    b"PROCEDURE",
    b"SCHEMA",
    b"SEQUENCE",
    b"TABLE",
    b"TYPE",
    b"VIEW",
];
const GLOBALS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Restores. `announce` is shown the plan before anything is written, and again when another backup had to be taken.
pub fn run(
    options: &RestoreOptions,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
) -> Result<(RestorePlan, RestoreReport)> {
    run_until(options, repo, ctx, announce, &|_| Ok(()))
}

/// The same; `may_place` is asked just before what was restored takes its place, and keeps it from that by an error.
pub fn run_until(
    options: &RestoreOptions,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
    may_place: &dyn Fn(&Ctx) -> Result<()>,
) -> Result<(RestorePlan, RestoreReport)> {
    let mut avoid = vec![];
    loop {
        let plan = plan(options, repo, &avoid)?;
        announce(&plan);
        let catalog = CatalogStore::new(repo, &options.cluster);
        let claim = claim_to_read(&catalog, &plan.record.id, Needs::default(), ctx)?;
        let kept = claim.clone().map(|claim| KeptClaim::new(claim, ctx));
        let fetched = fetch(options, repo, ctx, &plan);
        drop(kept);
        if let Some(Err(e)) = claim.map(Claim::release) {
            tracing::warn!(%e, "the claim ends by itself");
        }
        match fetched {
            // Nothing was written yet: an older backup may be whole.
            Err(e) if is_damage(&e) && options.backup.is_none() => {
                ctx.progress.note(&format!("DEGRADED: backup {} is damaged: {e}", plan.record.id));
                avoid.push(plan.record.id);
            }
            Err(e) => return Err(e),
            Ok(fetched) => {
                let mut report = Restore { options, repo, ctx, plan: &plan, may_place }.run(fetched)?;
                store_report(options, repo, ctx, &plan, &mut report);
                return Ok((plan, report));
            }
        }
    }
}

/// A report that cannot be stored takes nothing from the restore; it is told.
fn store_report(
    options: &RestoreOptions,
    repo: &Repository,
    ctx: &Ctx,
    plan: &RestorePlan,
    report: &mut RestoreReport,
) {
    let (Some(database), Some(found)) = (&plan.database, &report.validation) else { return };
    let called = report.not_placed.as_ref().unwrap_or(&database.to);
    let of = Validated { what: "restore", database: &database.dump.name, called, report: found };
    match reports::store(repo, &options.cluster, &of, ctx) {
        Ok(id) => report.stored = Some(id),
        Err(e) => report.warnings.push(reports::not_stored(&e)),
    }
}

/// What was read from the repository, compared, and now lies here.
struct Fetched {
    dump: Option<std::fs::File>,
    truth: Option<StoredTruth>,
    globals: Option<Globals>,
}

fn fetch(options: &RestoreOptions, repo: &Repository, ctx: &Ctx, plan: &RestorePlan) -> Result<Fetched> {
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
fn all_are_there(backup: &BackupId, chosen: Selected) -> Result<Selected> {
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

/// For a program that starts to read there.
fn from_the_beginning(file: &std::fs::File) -> std::io::Result<std::fs::File> {
    let mut again = file.try_clone()?;
    again.seek(SeekFrom::Start(0))?;
    Ok(again)
}

/// `pg_restore --jobs` attaches indexes of partitions side by side, and the server ends one of two that wait for each other.
fn is_deadlock(e: &EngineError) -> bool {
    e.code() == "E-RESTORE-FAILED" && e.to_string().contains("deadlock detected")
}

/// What of a dump is restored.
struct Chosen {
    list: ListFile,
    scope: Scope,
}

/// What was not restored before may be why the database could not be.
fn with_globals(e: EngineError, failed: &[String]) -> EngineError {
    match e {
        EngineError::Failed { code, message, hint } if !failed.is_empty() => {
            let message = format!("{message}; not restored before that: {}", failed.join("; "));
            EngineError::Failed { code, message, hint }
        }
        EngineError::Refused { code, message, hint } if !failed.is_empty() => {
            let message = format!("{message}; not restored before that: {}", failed.join("; "));
            EngineError::Refused { code, message, hint }
        }
        other => other,
    }
}

pub(super) struct Restore<'a> {
    pub options: &'a RestoreOptions,
    repo: &'a Repository,
    pub ctx: &'a Ctx,
    pub plan: &'a RestorePlan,
    may_place: &'a dyn Fn(&Ctx) -> Result<()>,
}

impl Restore<'_> {
    fn run(&self, fetched: Fetched) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        let admin = admin(self.options)?;
        if let Some(globals) = &fetched.globals {
            let applied = provision::apply_globals(&admin, globals)?;
            report.warnings.extend(applied.failed.iter().map(|f| format!("not restored: {f}")));
            report.globals = Some(applied);
        }
        if let (Some(plan), Some(dump)) = (&self.plan.database, fetched.dump) {
            let loaded = self.database(plan, dump, fetched.truth, &admin, &mut report);
            loaded.map_err(|e| with_globals(e, report.globals.as_ref().map_or(&[], |g| g.failed.as_slice())))?;
        }
        Ok(report)
    }

    fn database(
        &self,
        plan: &DatabasePlan,
        dump: std::fs::File,
        truth: Option<StoredTruth>,
        admin: &Connection,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let chosen = self.chosen(plan, &dump, report)?;
        self.owners_are_there(plan, &dump, admin)?;
        let schemas = self.lacking_schemas(plan, &dump, report)?;
        if plan.replaces {
            report.safety = self.safety_backup(plan)?;
        }
        let undo = |e| self.undo(plan, admin, e);
        let list = chosen.as_ref().map(|c| &c.list);
        let create = || {
            self.create(plan, self.parts().is_none(), admin)?;
            self.make_schemas(plan, &schemas).map_err(undo)
        };
        create()?;
        let mut loaded = self.load(plan, &dump, list, self.options.jobs);
        if loaded.as_ref().is_err_and(|e| self.options.jobs > 1 && is_deadlock(e)) {
            self.ctx.progress.note("its own workers locked each other out: loading again with one");
            provision::drop_database(admin, &plan.loading).map_err(|e| undo(e.into()))?;
            create()?;
            loaded = self.load(plan, &dump, list, 1);
        }
        report.warnings.extend(loaded.map_err(undo)?);
        report.bytes_restored = plan.dump.dump_bytes;
        let left = provision::finish_database(admin, &plan.loading, &plan.dump).map_err(|e| undo(e.into()))?;
        let settings_left = !left.is_empty();
        report.warnings.extend(left.into_iter().map(|l| format!("not restored: {l}")));
        if let (Some(how), Some(truth)) = (&self.options.validate, truth) {
            let scope = chosen.map(|c| c.scope);
            let found = match self.compare(plan, how, truth, scope, settings_left) {
                Ok(found) => found,
                Err(EngineError::Cancelled) => return Err(undo(EngineError::Cancelled)),
                Err(e) => return Err(self.not_compared(plan, &e)),
            };
            let is_right = found.outcome != validate::Outcome::Failed;
            report.validation = Some(found);
            if !is_right {
                report.not_placed = Some(plan.loading.clone());
                return Ok(());
            }
        }
        (self.may_place)(self.ctx).and_then(|()| self.place(plan, admin, report)).map_err(undo)
    }

    /// The empty database that the dump goes into; `whole`: all of it.
    fn create(&self, plan: &DatabasePlan, whole: bool, admin: &Connection) -> Result<()> {
        provision::create_database(admin, &plan.loading, &plan.dump, plan.tablespace.as_deref()).map_err(|e| {
            match provision::is_taken(&e) {
                true => exists(&plan.loading, "was made by somebody else at the same moment"),
                false => e.into(),
            }
        })?;
        if whole && plan.dump.without_public {
            let to = self.options.connect.to_database(&plan.loading);
            let dropped = Connection::open(&to, self.options.connect_timeout)
                .and_then(|conn| provision::drop_public_schema(&conn));
            dropped.map_err(|e| self.undo(plan, admin, e.into()))?;
        }
        Ok(())
    }

    fn lacking_schemas(
        &self,
        plan: &DatabasePlan,
        dump: &std::fs::File,
        report: &mut RestoreReport,
    ) -> Result<Vec<String>> {
        if plan.dump.tables.is_empty() {
            return Ok(vec![]);
        }
        let lacking = schemas::lacking(&read_toc(dump)?, self.parts());
        report.warnings.extend(lacking.iter().map(|name| {
            let name = name.escape_debug();
            format!("not in this dump of single tables: schema '{name}'; it was made, without its owner and rights")
        }));
        Ok(lacking)
    }

    fn make_schemas(&self, plan: &DatabasePlan, schemas: &[String]) -> Result<()> {
        if schemas.is_empty() {
            return Ok(());
        }
        let to = self.options.connect.to_database(&plan.loading);
        let conn = Connection::open(&to, self.options.connect_timeout)?;
        schemas.iter().try_for_each(|name| Ok(provision::create_schema(&conn, name)?))
    }

    fn safety_backup(&self, plan: &DatabasePlan) -> Result<Option<BackupId>> {
        let Some(RestoreDatabase { replace: Replace::Replace { safety: Some(options), .. }, .. }) =
            &self.options.database
        else {
            return Ok(None);
        };
        self.ctx.progress.note(&format!("backing up '{}' as it is now", plan.to.escape_debug()));
        let mut options = options.clone();
        options.databases = Wanted::Named(vec![plan.to.clone()]);
        options.annotations.insert(SAFETY.into(), format!("before the restore of {}", self.plan.record.id));
        let report = back_up(&options, self.repo, self.ctx).map_err(|e| {
            EngineError::failed(
                "E-SAFETY-BACKUP",
                format!("the database as it is now could not be backed up, and was not touched: {}: {e}", e.code()),
                "see to that first, or go on without it: --no-safety-backup",
            )
        })?;
        Ok(Some(report.entry.id))
    }

    /// Nothing is wrong with it as far as is known: it takes its name, and the old one goes.
    fn place(&self, plan: &DatabasePlan, admin: &Connection, report: &mut RestoreReport) -> Result<()> {
        if !plan.replaces {
            return provision::rename_database(admin, &plan.loading, &plan.to).map_err(|e| {
                match provision::is_taken(&e) {
                    true => exists(&plan.to, "was made by somebody else meanwhile"),
                    false => e.into(),
                }
            });
        }
        let wanted = self.options.database.as_ref().map(|d| &d.replace);
        let keep = matches!(wanted, Some(Replace::Replace { old: Old::Keep, .. }));
        self.swap(plan, keep)?;
        // From here on the restored database is in place, and nothing is undone.
        if keep {
            report.kept = Some(plan.aside.clone());
        } else if let Err(e) = provision::drop_database(admin, &plan.aside) {
            report.warnings.push(format!("the old database is there as '{}': {e}", plan.aside));
            report.kept = Some(plan.aside.clone());
        }
        Ok(())
    }

    /// In sessions of its own, which a wish to stop interrupts: until the last moment everything is as before.
    fn swap(&self, plan: &DatabasePlan, keep: bool) -> Result<()> {
        let shown = plan.to.escape_debug();
        self.ctx.progress.note(&format!("ending the sessions in '{shown}', and putting the restored one in its place"));
        let (conn, ender) = (admin(self.options)?, admin(self.options)?);
        let stop = self.ctx.cancel_flag();
        conn.interrupt_by(stop.clone());
        let (old, aside, new) = (plan.to.as_str(), plan.aside.as_str(), plan.loading.as_str());
        let swap = provision::Swap { old, aside, keep, new, within: SESSIONS_WITHIN, stop: &stop };
        match provision::swap_databases(&conn, ender, &swap) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.ctx.check_cancelled()?;
                Err(EngineError::failed(
                    "E-DATABASE-IN-USE",
                    format!("sessions in '{shown}' did not end within {} s", SESSIONS_WITHIN.as_secs()),
                    "end them, or stop what uses the database, and try again",
                ))
            }
            Err(e) => {
                self.ctx.check_cancelled()?;
                Err(e.into())
            }
        }
    }

    /// What of the dump was asked for, where that is not all of it.
    fn parts(&self) -> Option<&Selection> {
        self.options.database.as_ref().map(|d| &d.selection).filter(|s| !s.is_everything())
    }

    /// The list of entries to restore, where not all of them are: also of a dump of parts, which may have foreign keys to tables that it
    /// does not hold.
    fn chosen(
        &self,
        plan: &DatabasePlan,
        dump: &std::fs::File,
        report: &mut RestoreReport,
    ) -> Result<Option<Chosen>> {
        let everything = Selection::default();
        let selection = match self.parts() {
            Some(parts) => parts,
            None if is_partial(&plan.dump) => &everything,
            None => return Ok(None),
        };
        let toc = read_toc(dump)?;
        let Selected { ids, left_out, .. } = all_are_there(&self.plan.record.id, select(&toc, selection))?;
        if selection.is_everything() && left_out.is_empty() {
            return Ok(None);
        }
        report.warnings.extend(left_out.iter().map(LeftKey::warning));
        report.keys_left_out = left_out;
        let scope = Scope::of(&toc, Some(&ids), &plan.dump.encoding);
        Ok(Some(Chosen { list: ListFile::write(&self.options.scratch, &ids)?, scope }))
    }

    /// Before anything is loaded: `pg_restore` would end at the first one.
    fn owners_are_there(&self, plan: &DatabasePlan, dump: &std::fs::File, admin: &Connection) -> Result<()> {
        let toc = read_toc(dump)?;
        let chosen = self.parts().map(|parts| select(&toc, parts).ids);
        let is_chosen = |id: &u32| chosen.as_ref().is_none_or(|ids| ids.contains(id));
        let owned = toc.entries.iter().filter(|e| OWNED.contains(&e.kind.as_slice()) && is_chosen(&e.id));
        let owners: std::collections::BTreeSet<&[u8]> = owned.map(|e| e.owner.as_slice()).collect();
        let mut missing = vec![];
        for owner in owners {
            // Names in another encoding are for `pg_restore`, which converts them.
            let Some(owner) = std::str::from_utf8(owner).ok().filter(|o| o.is_ascii() || plan.dump.encoding == "UTF8")
            else {
                continue;
            };
            if !owner.is_empty() && !provision::role_exists(admin, owner)? {
                missing.push(format!("'{}'", owner.escape_debug()));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(EngineError::refused(
            "E-ROLE-NONE",
            format!("roles that own something in the dump do not exist here: {}", missing.join(", ")),
            "restore --globals as well, or create them; nothing was loaded",
        ))
    }

    /// Returns what the program remarked.
    fn load(
        &self,
        plan: &DatabasePlan,
        dump: &std::fs::File,
        chosen: Option<&ListFile>,
        jobs: usize,
    ) -> Result<Vec<String>> {
        let dump = from_the_beginning(dump).map_err(|e| EngineError::file("reading", &self.options.scratch, e))?;
        let shown = plan.to.escape_debug();
        self.ctx.progress.note(&format!("loading '{shown}' as '{}'", plan.loading));
        let to = self.options.connect.to_database(&plan.loading);
        let handover = Connection::open(&to, self.options.connect_timeout)?.handover_to_write()?;
        let mut command = child::command(&self.plan.tools.restore, &handover, &plan.loading)?;
        command.arg("--exit-on-error");
        command.arg(format!("--jobs={}", jobs.max(1)));
        if let Some(list) = chosen {
            command.arg(format!("--use-list={}", list.0.display()));
        }
        // Opened again by each worker.
        command.args(["--", "/dev/stdin"]).stdin(Stdio::from(dump)).stdout(Stdio::null());
        let (status, said) = Running::start(command)?.wait_for(self.ctx)?;
        if !status.success() {
            return Err(child::failure("E-RESTORE-FAILED", "pg_restore", &format!("to load '{shown}'"), status, &said));
        }
        Ok(said.lines)
    }

    /// Removes what was loaded, and says in what state things are.
    fn undo(&self, plan: &DatabasePlan, admin: &Connection, because: EngineError) -> EngineError {
        let dropped = provision::drop_database(admin, &plan.loading);
        let shown = plan.to.escape_debug();
        let state = match (dropped, plan.replaces) {
            (Ok(()), true) => format!("database '{shown}' is as it was"),
            (Ok(()), false) => format!("there is no database '{shown}'"),
            (Err(e), _) => {
                format!("what was loaded so far is in database '{}', which could not be removed: {e}", plan.loading)
            }
        };
        if matches!(because, EngineError::Cancelled) {
            self.ctx.progress.note(&state);
            return because;
        }
        let hint = because.hint().unwrap_or_default();
        EngineError::failed(because.code(), format!("{because}; {state}"), hint)
    }
}
