//! One table out of a logical backup, beside the live one or in the place of one that is gone: what it needs is loaded into a
//! database of its own on the same server, and carried over from there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::over::Carry;
use super::report::left_key_report;
use super::{LeftOutReport, TableReport, Wanted, free_place, millis};
use crate::cluster::provision;
use crate::cluster::{ConnectOptions, Connection, Deadline, TableName, TableSession};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::restore::{self as dumps, Replace, RestoreDatabase, RestoreOptions, RestorePlan};
use crate::logical::select::Selection;
use crate::scratch::{self, Scratch};
use crate::validate::Outcome;
use pgark_repo::Repository;

#[derive(Clone)]
pub struct DumpTableOptions {
    pub wanted: Wanted,
    /// Backup, connection and programs; what is restored is decided here.
    pub restore: RestoreOptions,
    pub scratch_base: PathBuf,
    /// This program, which removes the scratch directory when we cannot.
    pub program: PathBuf,
    /// How long each step may take.
    pub within: Duration,
}

pub struct DumpTablePlan {
    pub table: TableName,
    pub rescued: TableName,
    pub restore: RestorePlan,
    /// The database that is made for a while.
    pub aside: String,
    options: RestoreOptions,
}

/// Looks at the live database and at the repository; changes nothing.
pub fn plan(options: &DumpTableOptions, live: &ConnectOptions, repo: &Repository) -> Result<DumpTablePlan> {
    let session = TableSession::open(live, &options.wanted.database)?;
    let (table, rescued) = free_place(&options.wanted, &session)?;
    let aside = format!("pgark_table_{}", std::process::id());
    let database = RestoreDatabase {
        name: options.wanted.database.clone(),
        to: aside.clone(),
        replace: Replace::Refuse,
        selection: Selection { schemas: vec![], tables: vec![format!("{}.{}", table.schema, table.name)] },
    };
    let restore_options =
        RestoreOptions { database: Some(database), globals: false, connect: live.clone(), ..options.restore.clone() };
    let restore = dumps::plan(&restore_options, repo, &[])?;
    Ok(DumpTablePlan { table, rescued, restore, aside, options: restore_options })
}

pub fn run(
    options: &DumpTableOptions,
    plan: &DumpTablePlan,
    live: &ConnectOptions,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
) -> Result<TableReport> {
    for gone in scratch::sweep(&options.scratch_base)? {
        ctx.progress.note(&format!("removed {}, which an interrupted run had left", gone.display()));
    }
    let began = Instant::now();
    let scratch = Scratch::make(&options.scratch_base, &options.program)?;
    let carried = through(options, plan, live, repo, ctx, announce, &scratch);
    // Somebody else's, when it was taken.
    let dropped = match &carried {
        Err(e) if e.code() == "E-DATABASE-EXISTS" => Ok(()),
        _ => drop_aside(plan, live, options),
    };
    let ended = scratch.end();
    if let (Err(_), Err(e)) = (&carried, &dropped) {
        ctx.progress.note(&e.to_string());
    }
    let report = carried?;
    dropped?;
    ended?;
    Ok(TableReport { duration_ms: millis(began.elapsed()), ..report })
}

fn through(
    options: &DumpTableOptions,
    plan: &DumpTablePlan,
    live: &ConnectOptions,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
    scratch: &Scratch,
) -> Result<TableReport> {
    let began = Instant::now();
    let (restored, mut report) = dumps::run(&plan.options, repo, ctx, announce).map_err(by_sql_name)?;
    if let Some(left) = report.not_placed {
        return Err(EngineError::failed(
            "E-TABLE-DIFFERS",
            format!("what was loaded is not what was backed up, and was left as database '{}'", left.escape_debug()),
            "'pgark report list' shows what is different; drop that database when you have looked at it",
        ));
    }
    let recovery_ms = millis(began.elapsed());
    let there = TableSession::open(live, &plan.aside)?;
    there.connection().interrupt_by(ctx.cancel_flag());
    let here = TableSession::open(live, &options.wanted.database)?;
    here.connection().interrupt_by(ctx.cancel_flag());
    let carry = Carry {
        table: &plan.table,
        rescued: &plan.rescued,
        tools: &restored.tools,
        dir: scratch.dir(),
        within: options.within,
    };
    let found = carry.look(&there, &here)?;
    let compared = report.validation.map(|v| (v.outcome, v.not_compared_with().join(", ")));
    let (keys, mut remarks) = (std::mem::take(&mut report.keys_left_out), report.warnings);
    // Told below, with the rows that they are about.
    remarks.retain(|remark| keys.iter().all(|key| key.warning() != *remark));
    let mut report = carry.over(&there, &here, found, ctx)?;
    let encoding = restored.database.as_ref().map_or("", |d| d.dump.encoding.as_str());
    for key in &keys {
        let key = left_key_report(&here, &carry, key, encoding, Deadline::after(options.within))?;
        let (name, definition) = (key.name.clone(), key.definition.clone());
        report.left_out.push(LeftOutReport { what: "foreign key".to_owned(), name, definition });
        report.foreign_keys.push(key);
    }
    report.notes.extend(restored.notes.iter().cloned().chain(remarks));
    report.notes.push(match compared {
        Some((Outcome::Ok, open)) if open.is_empty() => "what was loaded is what the backup says it held".to_owned(),
        Some((Outcome::Ok, open)) => {
            format!("what was loaded is what the backup says it held, as far as it was compared; not compared: {open}")
        }
        _ => "what was loaded was not compared with what the backup says it held".to_owned(),
    });
    let reached = restored.database.map(|d| d.dump.taken.to_string()).unwrap_or_default();
    Ok(TableReport { reached, recovery_ms, ..report })
}

/// Selections take names as they are; here a name was written as in SQL.
fn by_sql_name(e: EngineError) -> EngineError {
    match e {
        EngineError::Refused { code: "E-SELECT-NONE", message, .. } => EngineError::refused(
            "E-SELECT-NONE",
            message,
            "a name without quotes is read in lower case, as SQL does; write '\"Odd name\"' with its quotes, and its schema before it",
        ),
        other => other,
    }
}

fn drop_aside(plan: &DumpTablePlan, live: &ConnectOptions, options: &DumpTableOptions) -> Result<()> {
    let admin = Connection::open(&live.to_database("postgres"), options.restore.connect_timeout)?;
    let there = "SELECT 1 AS one FROM pg_catalog.pg_database WHERE datname = $1";
    if admin.query(there, &[&plan.aside])?.is_empty() {
        return Ok(());
    }
    provision::drop_database(&admin, &plan.aside).map_err(|e| {
        EngineError::failed(
            "E-TABLE-ASIDE",
            format!("the database '{}', which was made for a while, is still there: {e}", plan.aside),
            "drop it",
        )
    })
}
