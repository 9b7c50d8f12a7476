//! What the plan says is done: the dump is fetched, loaded beside what is there, compared, and put in its place.

use std::io::{Seek, SeekFrom};
use std::process::Stdio;

use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, Claim, Needs};

use super::compare::StoredTruth;
use super::fetch::{Fetched, all_are_there, fetch};
use super::list::{ListFile, read_toc};
use super::schemas;
use super::{DatabasePlan, RestoreOptions, RestorePlan, RestoreReport, admin, exists, is_damage, is_partial, plan};
use crate::backup::claim::KeptClaim;
use crate::cluster::Connection;
use crate::cluster::provision;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::child::{self, Running};
use crate::logical::select::{LeftKey, Selected, Selection, select};
use crate::reports::{self, Validated};
use crate::restore::run::claim_to_read;
use crate::truth::Scope;
use crate::validate;
use crate::verify::note_damage;

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

/// Foreign keys are left out; types and functions cannot be.
const OF_PARTS: &str = "the backup holds only parts of the database: what they are made of must be in it, too; name its schemas or tables \
                        when you take it, or restore these parts out of a backup of the whole";

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
            Err(e) if is_damage(&e) => {
                // So that nobody builds upon it or counts on it; a repository that takes no note of it still gives what it has.
                if let Err(why) = note_damage(&catalog, &plan.record.id, ctx.now()) {
                    ctx.progress.note(&format!("that backup {} is damaged could not be noted: {why}", plan.record.id));
                }
                if options.backup.is_some() {
                    return Err(e);
                }
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
    pub repo: &'a Repository,
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

    /// What of the dump was asked for, where that is not all of it.
    fn parts(&self) -> Option<&Selection> {
        self.options.database.as_ref().map(|d| &d.selection).filter(|s| !s.is_everything())
    }

    /// The list of entries to restore, where not all of them are: also of a dump of parts, which may have foreign keys to tables that it
    /// does not hold.
    fn chosen(&self, plan: &DatabasePlan, dump: &std::fs::File, report: &mut RestoreReport) -> Result<Option<Chosen>> {
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
            let failed = child::failure("E-RESTORE-FAILED", "pg_restore", &format!("to load '{shown}'"), status, &said);
            return Err(match is_partial(&plan.dump) {
                true => EngineError::failed(failed.code(), failed.to_string(), OF_PARTS),
                false => failed,
            });
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
