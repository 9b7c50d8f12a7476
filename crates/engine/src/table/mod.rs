//! One table out of a physical backup, at any moment, beside the live one: a scratch cluster is recovered to that moment, the table is
//! dumped, and loaded under another name, in one transaction.
//!
//! Invariants: nothing in the live database is changed but that a table appears, whole and compared with the scratch one; an object that
//! is there is never touched. The scratch cluster listens on a private socket alone, loads no libraries that its configuration names,
//! archives nothing, and is gone at the end, however this ends.

mod carry;
pub mod from_dump;
mod over;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cluster::{ConnectOptions, NAME_BYTES_MAX, TableName, TableSession};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::tools::{self, ToolOptions, Tools};
use crate::restore::{self, RestoreOptions, RestorePlan, run as restoring};
use crate::scratch::server::{self, Isolation};
use crate::scratch::{self, Scratch, tablespaces};
use crate::sources::Sources;
use over::Carry;
pub use report::{ForeignKeyReport, LeftOutReport, SequenceReport, TableReport};

/// Of the names that are made of the original's.
const SUFFIX: &str = "_rescued";

/// Which table, and what it is to be called; names as SQL writes them.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub table: String,
    pub schema: Option<String>,
    pub database: String,
    pub rename_to: Option<String>,
}

#[derive(Debug, Clone)]
pub struct TableOptions {
    pub wanted: Wanted,
    /// Backup, target and timeline; where it goes and what is done at the end is decided here.
    pub restore: RestoreOptions,
    /// The directory in which the scratch cluster is made.
    pub scratch_base: PathBuf,
    /// Programs of the server; searched for when None.
    pub bin: Option<PathBuf>,
    /// Programs that dump and restore, by the live server's version.
    pub tools: ToolOptions,
    /// How long recovery, and each step after it, may take.
    pub within: Duration,
}

/// What is going to happen. Nothing was written yet.
#[derive(Debug, Clone)]
pub struct TablePlan {
    pub table: TableName,
    pub rescued: TableName,
    pub restore: RestorePlan,
    pub tools: Tools,
    /// Said to the person who restores.
    pub warnings: Vec<String>,
    superuser: String,
}

/// Looks at the live database and at the repository; writes nothing.
pub fn plan(options: &TableOptions, live: &ConnectOptions, sources: &Sources) -> Result<TablePlan> {
    if rustix::process::geteuid().is_root() {
        return Err(EngineError::refused(
            "E-ROOT",
            "PostgreSQL does not run as root, and the scratch cluster would be root's",
            "run this as the postgres user",
        ));
    }
    let session = TableSession::open(live, &options.wanted.database)?;
    let (table, rescued) = free_place(&options.wanted, &session)?;
    let major = session.connection().version_num() / 10_000;
    let mut warnings = vec![];
    let tools = tools::find(&options.tools, major, &mut warnings)?;
    let restore = restore::plan(&options.restore, sources, &[])?;
    let backup_major = restore.record.version_num / 10_000;
    if backup_major > major {
        return Err(EngineError::refused(
            "E-TABLE-VERSION",
            format!("the backup is of PostgreSQL {backup_major}, the live server is PostgreSQL {major}"),
            "a table can be carried to the same or to a newer major version",
        ));
    }
    restore::start::find_server(options.bin.as_deref(), backup_major).map_err(|searched| {
        let searched: Vec<String> = searched.iter().map(|p| p.display().to_string()).collect();
        EngineError::refused(
            "E-PG-BIN",
            format!("no PostgreSQL {backup_major} server in {}", searched.join(", ")),
            "install it, or say where it is with --pg-bin",
        )
    })?;
    server::room(
        &options.scratch_base,
        restore.record.totals.size_bytes.saturating_add(server::SPARE_BYTES),
        "choose another directory with --scratch-dir",
    )?;
    Ok(TablePlan { table, rescued, restore, tools, warnings, superuser: session.bootstrap_superuser()? })
}

/// The table's name, and the one it is to have, which nothing has in the live database.
fn free_place(wanted: &Wanted, session: &TableSession) -> Result<(TableName, TableName)> {
    let (table, rescued) = names(wanted, session)?;
    if !session.schema_exists(&rescued.schema)? {
        return Err(EngineError::refused(
            "E-TABLE-SCHEMA",
            format!("there is no schema {} in the live database", rescued.schema),
            "create it first, or name another table",
        ));
    }
    if session.name_is_taken(&rescued)? {
        return Err(EngineError::refused(
            "E-TABLE-EXISTS",
            format!("{rescued} is there already"),
            "choose another name with --as, or drop or rename what is there; nothing was changed",
        ));
    }
    Ok((table, rescued))
}

fn names(wanted: &Wanted, session: &TableSession) -> Result<(TableName, TableName)> {
    let wrong = |text: &str, why: &str| {
        EngineError::refused(
            "E-TABLE-NAME",
            format!("'{text}' is not the name of a table: {why}"),
            "names are written as in SQL: app.orders, or '\"Odd name\"' with its quotes",
        )
    };
    let parse = |text: &str| session.parse_name(text).map_err(|e| wrong(text, &e.to_string()));
    let one = |text: &str| match parse(text)?.as_slice() {
        [name] => Ok(name.clone()),
        parts => Err(wrong(text, &format!("it has {} parts", parts.len()))),
    };
    let given = wanted.schema.as_deref().map(one).transpose()?;
    let (schema, name) = match (given, parse(&wanted.table)?.as_slice()) {
        (Some(schema), [name]) => (schema, name.clone()),
        (None, [schema, name]) => (schema.clone(), name.clone()),
        (None, [name]) => ("public".to_owned(), name.clone()),
        (_, parts) => return Err(wrong(&wanted.table, &format!("it has {} parts", parts.len()))),
    };
    let rescued = match wanted.rename_to.as_deref() {
        Some(text) => one(text)?,
        None => with_suffix(&name, SUFFIX),
    };
    if rescued.len() > NAME_BYTES_MAX || rescued.is_empty() {
        return Err(wrong(&rescued, "a name has 1 to 63 bytes"));
    }
    Ok((TableName { schema: schema.clone(), name }, TableName { schema, name: rescued }))
}

/// Cut so that it stays a name of PostgreSQL's length.
fn with_suffix(name: &str, suffix: &str) -> String {
    let room = NAME_BYTES_MAX - suffix.len();
    let end = (0..=room.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{suffix}", name.get(..end).unwrap_or_default())
}

/// Restores, recovers, dumps, loads, compares. `announce` is called with the plan of the restore before anything of it is written.
pub fn run(
    options: &TableOptions,
    plan: &TablePlan,
    live: &ConnectOptions,
    sources: &Sources,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
) -> Result<TableReport> {
    for gone in scratch::sweep(&options.scratch_base)? {
        ctx.progress.note(&format!("removed {}, which an interrupted run had left", gone.display()));
    }
    let scratch = Scratch::make(&options.scratch_base, &options.restore.program)?;
    let outcome = in_scratch(options, plan, live, sources, ctx, announce, &scratch);
    ctx.progress.note("removing the scratch cluster");
    let ended = scratch.end();
    let report = outcome?;
    ended?;
    Ok(report)
}

fn in_scratch(
    options: &TableOptions,
    plan: &TablePlan,
    live: &ConnectOptions,
    sources: &Sources,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
    scratch: &Scratch,
) -> Result<TableReport> {
    let began = Instant::now();
    let (connect, reached) = recover(options, plan, sources, ctx, announce, scratch)?;
    let recovery_ms = millis(began.elapsed());
    let there = TableSession::open(&connect, &options.wanted.database)?;
    there.connection().interrupt_by(ctx.cancel_flag());
    let here = TableSession::open(live, &options.wanted.database)?;
    here.connection().interrupt_by(ctx.cancel_flag());
    let carry = Carry {
        table: &plan.table,
        rescued: &plan.rescued,
        tools: &plan.tools,
        dir: scratch.dir(),
        within: options.within,
    };
    let found = carry.look(&there, &here)?;
    if found.unlogged {
        return Err(EngineError::refused(
            "E-TABLE-UNLOGGED",
            format!("{} is unlogged: physical backups do not hold its rows", plan.table),
            "",
        ));
    }
    let report = carry.over(&there, &here, found, ctx)?;
    Ok(TableReport { reached, recovery_ms, duration_ms: millis(began.elapsed()), ..report })
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// The cluster as it was at that moment, running. Returns how to connect to it, and where recovery ended.
fn recover(
    options: &TableOptions,
    plan: &TablePlan,
    sources: &Sources,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
    scratch: &Scratch,
) -> Result<(ConnectOptions, String)> {
    let within = server::into(scratch, &plan.restore.record, &options.restore);
    let (restored, _) = restoring::run(&within, sources, ctx, announce)?;
    tablespaces::refuse_made_by_replay(&restored, &within.cluster, sources)?;
    let how = Isolation { bin: options.bin.clone(), within: options.within, libraries: &[] };
    let (connect, started) = server::recover(scratch, &restored, &plan.superuser, &how, ctx)?;
    Ok((connect, started.reached.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(with_suffix("orders", SUFFIX), "orders_rescued");
        let long = "é".repeat(31) + "x";
        let cut = with_suffix(&long, SUFFIX);
        assert_eq!(cut, "é".repeat(27) + SUFFIX);
        assert!(cut.len() <= NAME_BYTES_MAX);
    }
}
