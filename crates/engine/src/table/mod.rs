//! One table out of a physical backup, at any moment, beside the live one: a scratch cluster is recovered to that moment, the table is
//! dumped, and loaded under another name, in one transaction.
//!
//! Invariants: nothing in the live database is changed but that a table appears, whole and compared with the scratch one; an object that
//! is there is never touched. The scratch cluster listens on a private socket alone, loads no libraries that its configuration names,
//! archives nothing, and is gone at the end, however this ends.

pub mod programs;
pub mod scratch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cluster::{
    Answer, Companion, ConnectOptions, Deadline, ForeignKey, Found, KeyState, LeftOut, NAME_BYTES_MAX, RowsHash,
    SequenceState, TableName, TableSession,
};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::{self, RestoreOptions, RestorePlan, StartOptions, TablespaceMap, TargetAction, run as restoring};
use crate::sources::Sources;
use scratch::Scratch;

/// Of the names that are made of the original's.
const SUFFIX: &str = "_rescued";
/// For WAL and what PostgreSQL writes while it recovers.
const SPARE_BYTES: u64 = 64 << 20;
/// What the scratch server gets, whatever its configuration says. Libraries of extensions, jobs and replication stay away; it has the
/// memory of a small server. Settings that a standby must have as large as its primary are left alone.
const ISOLATION: [(&str, &str); 20] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("ssl", "off"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("autovacuum", "off"),
    ("max_logical_replication_workers", "0"),
    ("synchronous_standby_names", ""),
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("jit", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("log_min_messages", "warning"),
];

#[derive(Debug, Clone)]
pub struct TableOptions {
    /// Names as SQL writes them.
    pub table: String,
    pub schema: Option<String>,
    pub database: String,
    pub rename_to: Option<String>,
    /// Backup, target and timeline; where it goes and what is done at the end is decided here.
    pub restore: RestoreOptions,
    /// The directory in which the scratch cluster is made.
    pub scratch_base: PathBuf,
    /// Server and client programs; searched for when None.
    pub bin: Option<PathBuf>,
    /// How long recovery, and each step after it, may take.
    pub within: Duration,
}

/// What is going to happen. Nothing was written yet.
#[derive(Debug, Clone)]
pub struct TablePlan {
    pub table: TableName,
    pub rescued: TableName,
    pub restore: RestorePlan,
    /// The live server's major version, whose programs are used.
    pub major: u32,
    pub clients: PathBuf,
    superuser: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub rows: u64,
    pub text_bytes: u64,
    pub dump_bytes: u64,
    pub reached: String,
    pub owner: String,
    /// Whether the owner of the original exists and owns the rescued table.
    pub owner_kept: bool,
    pub foreign_keys: Vec<ForeignKeyReport>,
    pub sequences: Vec<SequenceReport>,
    pub left_out: Vec<LeftOutReport>,
    pub notes: Vec<String>,
    pub recovery_ms: u64,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct ForeignKeyReport {
    pub name: String,
    pub definition: String,
    pub refers_to: String,
    /// Rows without a counterpart in the live database; None when that could not be found out.
    pub orphans: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_checked: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SequenceReport {
    pub column: String,
    pub sequence: String,
    pub last_value: String,
    pub furthest: Option<String>,
    /// The sequence of the live table of the original's name, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_last_value: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LeftOutReport {
    pub what: String,
    pub name: String,
    pub definition: String,
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
    let session = TableSession::open(live, &options.database)?;
    let (table, rescued) = names(options, &session)?;
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
    let major = session.connection().version_num() / 10_000;
    let clients = programs::find_clients(options.bin.as_deref(), major)?;
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
    room(&options.scratch_base, restore.record.totals.size_bytes.saturating_add(SPARE_BYTES))?;
    Ok(TablePlan { table, rescued, restore, major, clients, superuser: session.bootstrap_superuser()? })
}

fn names(options: &TableOptions, session: &TableSession) -> Result<(TableName, TableName)> {
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
    let given = options.schema.as_deref().map(one).transpose()?;
    let (schema, name) = match (given, parse(&options.table)?.as_slice()) {
        (Some(schema), [name]) => (schema, name.clone()),
        (None, [schema, name]) => (schema.clone(), name.clone()),
        (None, [name]) => ("public".to_owned(), name.clone()),
        (_, parts) => return Err(wrong(&options.table, &format!("it has {} parts", parts.len()))),
    };
    let rescued = match options.rename_to.as_deref() {
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
    let deadline = || Deadline::after(options.within);
    let (connect, reached) = recover(options, plan, sources, ctx, announce, scratch)?;
    let recovery_ms = millis(began.elapsed());
    let there = TableSession::open(&connect, &options.database)?;
    there.connection().interrupt_by(ctx.cancel_flag());
    let here = TableSession::open(live, &options.database)?;
    here.connection().interrupt_by(ctx.cancel_flag());
    let found = look(&there, &here, plan, scratch)?;
    let keys = there.foreign_keys(found.oid)?;
    ctx.progress.note("taking the table out of the scratch cluster");
    let (source, left_out, notes) = take_out(&there, &here, plan, &found, deadline())?;
    let before = rows_of(&there, &source, deadline())?;
    let dump = dump(&there, plan, &source, scratch, ctx)?;
    let dump_bytes = std::fs::metadata(&dump).map_err(|e| EngineError::file("looking at", &dump, e))?.len();
    let owner_kept = here.role_exists(&found.owner)?;
    ctx.progress.note("loading it into the live database");
    load(&here, plan, &dump, owner_kept, scratch, ctx)?;
    let after = rows_of(&here, &plan.rescued, deadline())?;
    if before != after {
        here.drop_table(&plan.rescued, deadline())?;
        return Err(EngineError::failed(
            "E-TABLE-DIFFERS",
            format!(
                "{} was loaded with other rows than it was dumped with: {} and {}",
                plan.rescued, after.0, before.0
            ),
            "it was dropped again; please report this",
        ));
    }
    let foreign_keys = keys.iter().map(|key| key_report(&here, plan, key, deadline())).collect::<Result<_>>()?;
    Ok(TableReport {
        rows: before.0,
        text_bytes: before.1.text_bytes,
        dump_bytes,
        reached,
        owner: found.owner,
        owner_kept,
        foreign_keys,
        sequences: sequences(&here, plan)?,
        left_out: left_out.into_iter().map(report_left_out).collect(),
        notes,
        recovery_ms,
        duration_ms: millis(began.elapsed()),
    })
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

fn report_left_out(left: LeftOut) -> LeftOutReport {
    LeftOutReport { what: left.what.to_owned(), name: left.name, definition: left.definition }
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
    let maps = plan.restore.record.tablespaces.iter().filter(|t| !t.in_place).map(|t| TablespaceMap {
        given: t.oid.to_string(),
        readings: vec![(t.oid.to_string(), scratch.tablespace(t.oid))],
    });
    let restore = RestoreOptions {
        to: scratch.data(),
        action: TargetAction::Promote,
        tablespace_map: maps.collect(),
        archive_mode: restore::ArchiveMode::Off,
        delta: false,
        ..options.restore.clone()
    };
    let (restored, _) = restoring::run(&restore, sources, ctx, announce)?;
    let hba = scratch.dir().join("pg_hba.conf");
    std::fs::write(&hba, "local all all trust\n").map_err(|e| EngineError::file("writing", &hba, e))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut settings: Vec<(String, String)> =
        ISOLATION.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    settings.push(("hba_file".to_owned(), text(&hba)));
    settings.push(("data_directory".to_owned(), text(&restore.to)));
    if restored.record.version_num >= 170_000 {
        settings.push(("event_triggers".to_owned(), "off".to_owned()));
    }
    let start = StartOptions {
        bin: options.bin.clone(),
        port: None,
        socket_dir: Some(scratch.socket_dir()),
        within: options.within,
        settings,
        role: Some(plan.superuser.clone()),
    };
    let started = restore::start::start(&restore.to, &restored, TargetAction::Promote, &start, ctx)?;
    // What a database or a role sets, it sets for sessions that do not say otherwise.
    let options = "-c session_preload_libraries= -c local_preload_libraries= -c session_replication_role=replica \
                   -c statement_timeout=0 -c lock_timeout=0";
    let keywords = [
        ("host", text(&started.socket_dir)),
        ("port", started.port.to_string()),
        ("user", plan.superuser.clone()),
        ("options", options.to_owned()),
        ("sslmode", "disable".to_owned()),
        ("gssencmode", "disable".to_owned()),
    ];
    let connect = ConnectOptions::new(keywords.map(|(name, value)| (name.to_owned(), value)));
    Ok((connect, started.reached.to_string()))
}

/// The table as it was then, if the live database can take it.
fn look(there: &TableSession, here: &TableSession, plan: &TablePlan, scratch: &Scratch) -> Result<Found> {
    let found = there.find(&plan.table)?.ok_or_else(|| {
        EngineError::refused(
            "E-TABLE-NONE",
            format!("there was no table {} at that moment", plan.table),
            "choose another moment: 'pgark wal history' tells when tables were dropped",
        )
    })?;
    if found.unlogged {
        return Err(EngineError::refused(
            "E-TABLE-UNLOGGED",
            format!("{} is unlogged: physical backups do not hold its rows", plan.table),
            "",
        ));
    }
    let unknown = here.unknown_types(&there.column_types(found.oid)?)?;
    if !unknown.is_empty() {
        return Err(EngineError::refused(
            "E-TABLE-TYPE",
            format!("the live database has no type {}", unknown.join(", ")),
            "create it first, as it was then; nothing was changed",
        ));
    }
    // A copy of it, and the dump.
    let needed = found.size_bytes.saturating_mul(if found.must_copy { 2 } else { 1 });
    room(scratch.dir(), needed)?;
    Ok(found)
}

fn room(dir: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| EngineError::file("looking at", dir, e))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-TARGET-SPACE",
        format!("{} has {free} bytes free, about {needed} are needed", dir.display()),
        "free space there or choose another directory with --scratch-dir; nothing was changed",
    ))
}

/// Under the names it is to have, without what hangs on it. Returns its place in the scratch cluster.
fn take_out(
    there: &TableSession,
    here: &TableSession,
    plan: &TablePlan,
    found: &Found,
    deadline: Deadline,
) -> Result<(TableName, Vec<LeftOut>, Vec<String>)> {
    there.still()?;
    let mut notes = vec![];
    let source = plan.rescued.clone();
    if there.name_is_taken(&source)? {
        // At that moment something had the name; it is in nobody's way in a scratch cluster.
        let aside = free_name(there, here, &source.schema, &source.name)?;
        there.rename(Companion::Table, &source.schema, &source.name, &aside, deadline)?;
    }
    if found.must_copy {
        let left_out = there.surroundings(found.oid, &plan.table)?;
        there.copy_into_plain(&plan.table, &plan.rescued.name, &found.owner, deadline)?;
        notes.push(
            "it is partitioned, has or is a child, or is a materialized view: its rows are in one plain table without defaults".to_owned(),
        );
        return Ok((source, left_out, notes));
    }
    let left_out = there.strip(&plan.table, found.oid, deadline)?;
    for (kind, schema, name) in there.companions(found.oid)? {
        let free = free_name(there, here, &schema, &name)?;
        there.rename(kind, &schema, &name, &free, deadline)?;
    }
    there.rename(Companion::Table, &plan.table.schema, &plan.table.name, &source.name, deadline)?;
    notes.push("nobody but its owner may read it: what was granted on the original was not granted on it".to_owned());
    Ok((source, left_out, notes))
}

/// A name for something that comes along, free in both databases.
fn free_name(there: &TableSession, here: &TableSession, schema: &str, name: &str) -> Result<String> {
    for n in 1..1000 {
        let suffix = if n == 1 { SUFFIX.to_owned() } else { format!("{SUFFIX}{n}") };
        let candidate = TableName { schema: schema.to_owned(), name: with_suffix(name, &suffix) };
        if !there.name_is_taken(&candidate)? && !here.name_is_taken(&candidate)? {
            return Ok(candidate.name);
        }
    }
    Err(EngineError::refused(
        "E-TABLE-EXISTS",
        format!("no free name like {name}{SUFFIX}"),
        "drop what was rescued earlier",
    ))
}

fn rows_of(session: &TableSession, table: &TableName, deadline: Deadline) -> Result<(u64, RowsHash)> {
    match session.rows(table, deadline)? {
        Answer::Rows { rows, hash: Some(hash) } => Ok((rows, hash)),
        _ => Err(EngineError::failed("E-TABLE-ROWS", format!("the rows of {table} could not be counted"), "")),
    }
}

fn dump(there: &TableSession, plan: &TablePlan, source: &TableName, scratch: &Scratch, ctx: &Ctx) -> Result<PathBuf> {
    let file = scratch.dir().join("table.dump");
    let connection = programs::connection_of(there.connection(), plan.major, scratch.dir())?;
    let pattern = programs::exact_pattern(&source.schema, &source.name);
    let mut arguments: Vec<OsString> = [
        "--format=custom",
        "--compress=1",
        "--no-sync",
        "--strict-names",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        "--no-security-labels",
        "--no-tablespaces",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(format!("--table={pattern}").into());
    arguments.push(format!("--file={}", file.display()).into());
    arguments.push(format!("--dbname={connection}").into());
    programs::run(&plan.clients.join("pg_dump"), &arguments, scratch.dir(), ctx)?;
    // What the list says is what would be loaded: this one table, and what belongs to it.
    let list = ["--list".into(), "--".into(), file.clone().into_os_string()];
    let listed = programs::run(&plan.clients.join("pg_restore"), &list, scratch.dir(), ctx)?;
    let tables = listed
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("TABLE") && !line.contains(" TABLE DATA "))
        .count();
    if tables != 1 {
        return Err(EngineError::failed(
            "E-TABLE-DUMP",
            format!("the dump holds {tables} tables instead of one"),
            "please report this",
        ));
    }
    Ok(file)
}

fn load(
    here: &TableSession,
    plan: &TablePlan,
    dump: &Path,
    owner_kept: bool,
    scratch: &Scratch,
    ctx: &Ctx,
) -> Result<()> {
    let dir = scratch.dir().join("live");
    std::fs::create_dir(&dir).map_err(|e| EngineError::file("making", &dir, e))?;
    let connection = programs::connection_of(here.connection(), plan.major, &dir)?;
    let mut arguments: Vec<OsString> =
        ["--single-transaction", "--exit-on-error", "--no-privileges", "--no-tablespaces"].map(OsString::from).to_vec();
    if !owner_kept {
        arguments.push("--no-owner".into());
    }
    arguments.push(format!("--dbname={connection}").into());
    arguments.push("--".into());
    arguments.push(dump.as_os_str().to_owned());
    programs::run(&plan.clients.join("pg_restore"), &arguments, scratch.dir(), ctx).map(drop)
}

fn key_report(here: &TableSession, plan: &TablePlan, key: &ForeignKey, deadline: Deadline) -> Result<ForeignKeyReport> {
    let (orphans, not_checked) = match here.orphans(&plan.rescued, key, deadline)? {
        KeyState::Checked { orphans } => (Some(orphans), None),
        KeyState::NotChecked { reason } => (None, Some(reason)),
    };
    Ok(ForeignKeyReport {
        name: key.name.clone(),
        definition: key.definition.clone(),
        refers_to: key.refers_to.to_string(),
        orphans,
        not_checked,
    })
}

fn sequences(here: &TableSession, plan: &TablePlan) -> Result<Vec<SequenceReport>> {
    let live = here.sequences(&plan.table)?;
    let report = |state: SequenceState| {
        let of_live = live.iter().find(|l| l.column == state.column);
        SequenceReport {
            live_last_value: of_live.map(|l| l.last_value.clone()),
            column: state.column,
            sequence: state.sequence,
            last_value: state.last_value,
            furthest: state.furthest,
        }
    };
    Ok(here.sequences(&plan.rescued)?.into_iter().map(report).collect())
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
