//! A database back from its dump. It is loaded beside what is there, under a name of its own, and takes its place only when all
//! of it is in and was compared with what was backed up: until then nothing of the old one was touched.
//!
//! Invariant: nothing is sent to the server before the whole dump was read from the repository and compared. The first failure
//! ends it, and what was loaded so far is removed.

pub(super) mod compare;
mod fetch;
mod list;
mod place;
mod run;
mod schemas;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, CatalogStore};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{DatabaseDump, PartsRecord};
use pgark_repo::report::ReportId;

use super::LogicalOptions;
use super::select::{LeftKey, Selection, told_outside};
use super::tools::{self, ToolOptions, Tools};
use crate::cluster::provision::{self, AppliedGlobals};
use crate::cluster::{AskAs, ConnectOptions, Connection};
use crate::error::{EngineError, Result};
use crate::parts::Source;
use crate::validate::{Report, UserCheck};

pub(crate) use fetch::{fetch_dump, fetch_globals};
pub(crate) use list::read_toc;
pub use run::{run, run_until};

/// The annotation of a backup that was taken before a restore replaced the database.
pub const SAFETY: &str = "safety";
#[derive(Clone)]
pub struct RestoreOptions {
    pub cluster: ClusterName,
    /// None: the newest that has what is wanted; where that is damaged, the one before.
    pub backup: Option<BackupId>,
    /// Of those, none that was taken later.
    pub not_after: Option<Timestamp>,
    /// The end of the names that this restore gives; None: one of its own.
    pub run: Option<String>,
    pub connect: ConnectOptions,
    pub connect_timeout: Duration,
    /// None: globals alone.
    pub database: Option<RestoreDatabase>,
    pub globals: bool,
    pub tools: ToolOptions,
    pub scratch: PathBuf,
    pub jobs: usize,
    /// How what was loaded is compared with the backup; None: not at all.
    pub validate: Option<Validation>,
}

/// What is asked of a database before it takes its place.
#[derive(Clone)]
pub struct Validation {
    pub checks: Vec<UserCheck>,
    pub ask_as: AskAs,
    /// How long one check may take.
    pub check_within: Duration,
    /// How long reading all of it may take.
    pub within: Duration,
}

#[derive(Clone)]
pub struct RestoreDatabase {
    pub name: String,
    /// Its new name; the same as the old one replaces it.
    pub to: String,
    pub replace: Replace,
    /// Of the dump; into a new database alone.
    pub selection: Selection,
}

/// What may happen to a database that is there already.
#[derive(Clone)]
pub enum Replace {
    /// It must not be there.
    Refuse,
    /// It is replaced; before that, it is backed up with these options, where there are some.
    Replace { safety: Option<Box<LogicalOptions>>, old: Old },
}

/// What becomes of the database that was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    Drop,
    /// It stays under another name, without connections.
    Keep,
}

#[derive(Clone, Debug)]
pub struct RestorePlan {
    pub record: PartsRecord,
    pub database: Option<DatabasePlan>,
    pub globals: bool,
    pub tools: Tools,
    /// Said to the person who restores.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct DatabasePlan {
    pub dump: DatabaseDump,
    pub to: String,
    /// Under which it is loaded, and under which the old one steps aside.
    pub loading: String,
    pub aside: String,
    /// Whether there is one to be replaced.
    pub replaces: bool,
    pub tablespace: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    pub bytes_restored: u64,
    pub safety: Option<BackupId>,
    /// The old database, where it was kept.
    pub kept: Option<String>,
    pub globals: Option<AppliedGlobals>,
    /// What comparing it with the backup found; None when that was declined.
    pub validation: Option<Report>,
    /// Under which the repository has that.
    pub stored: Option<ReportId>,
    /// Under this name it stayed, because it is not what was backed up.
    pub not_placed: Option<String>,
    /// Foreign keys of what was selected to what was not; `warnings` tell of them too.
    pub keys_left_out: Vec<LeftKey>,
    pub warnings: Vec<String>,
}

/// Looks at everything and changes nothing.
pub fn plan(options: &RestoreOptions, repo: &Repository, avoid: &[BackupId]) -> Result<RestorePlan> {
    let mut notes: Vec<String> =
        avoid.iter().map(|id| format!("DEGRADED: backup {id} is damaged and was not used")).collect();
    let record = choose(options, repo, avoid, &mut notes)?;
    let admin = admin(options)?;
    let major = admin.major().number();
    let dumped = options.database.as_ref().map(|d| find_database(&record, &d.name)).transpose()?;
    let by = dumped.and_then(made_by).unwrap_or(major);
    if !tools::dump_fits(by, major) {
        let instead = newest_that_fits(options, repo, avoid, major)?;
        return Err(tools::no_program_for(by, major, instead.as_ref().map(BackupId::as_str)));
    }
    // Its programs must read the dump and speak to the server.
    let tools = tools::find(&options.tools, major.max(by), &mut notes)?;
    if dumped.is_some() {
        tools.check_load_into(major)?;
    }
    if options.globals && record.globals.is_none() {
        return Err(EngineError::refused(
            "E-GLOBALS-NONE",
            format!("backup {} holds no globals", record.id),
            "restore without --globals, or choose a backup that was taken with them",
        ));
    }
    let database = match (&options.database, dumped) {
        (Some(wanted), Some(dump)) => Some(plan_database(options, &admin, &record, wanted, dump, &mut notes)?),
        _ => None,
    };
    Ok(RestorePlan { database, globals: options.globals, tools, notes, record })
}

fn made_by(dump: &DatabaseDump) -> Option<u32> {
    dump.dumped_by.split('.').next()?.parse().ok()
}

/// The newest backup of the same database whose dump can be loaded into a server of this major.
fn newest_that_fits(
    options: &RestoreOptions,
    repo: &Repository,
    avoid: &[BackupId],
    major: u32,
) -> Result<Option<BackupId>> {
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let fits = |entry: &&BackupEntry| {
        let record = PartsRecord::load(repo, &options.cluster, &entry.id, &entry.record).ok();
        let dump =
            record.as_ref().zip(options.database.as_ref()).and_then(|(r, wanted)| find_database(r, &wanted.name).ok());
        dump.and_then(made_by).is_some_and(|by| tools::dump_fits(by, major))
    };
    let ordinary = |b: &&BackupEntry| b.kind == BackupKind::Logical && !b.annotations.contains_key(SAFETY);
    let mut listed = catalog.backups.iter().rev().filter(ordinary).filter(|b| !avoid.contains(&b.id));
    Ok(listed.find(fits).map(|b| b.id.clone()))
}

fn choose(
    options: &RestoreOptions,
    repo: &Repository,
    avoid: &[BackupId],
    notes: &mut Vec<String>,
) -> Result<PartsRecord> {
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    if let Some(id) = &options.backup {
        let entry = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, id))?;
        not_parts(entry)?;
        crate::restore::thaw::check_one(repo, &options.cluster, entry)?;
        let record = PartsRecord::load(repo, &options.cluster, id, &entry.record)?;
        Source { repo, cluster: &options.cluster, record: &record }.check()?;
        return Ok(record);
    }
    let (mut passed, mut later): (Vec<String>, Vec<String>) = (vec![], vec![]);
    // What was taken just before a restore is the state that was to be left behind: it is used when it is named.
    let ordinary = |b: &&BackupEntry| b.kind == BackupKind::Logical && !b.annotations.contains_key(SAFETY);
    for entry in catalog.backups.iter().rev().filter(ordinary).filter(|b| !avoid.contains(&b.id)) {
        let looked = PartsRecord::load(repo, &options.cluster, &entry.id, &entry.record).map_err(EngineError::from);
        let looked = looked.and_then(|record| {
            if !has_wanted(options, &record) {
                return Ok(None);
            }
            if options.not_after.is_some_and(|latest| taken(options, &record) > latest) {
                later.push(entry.id.to_string());
                return Ok(None);
            }
            crate::restore::thaw::check_one(repo, &options.cluster, entry)?;
            Source { repo, cluster: &options.cluster, record: &record }.check()?;
            Ok(Some(record))
        });
        match looked {
            Ok(Some(record)) => {
                notes.append(&mut passed);
                if let Some(latest) = options.not_after.filter(|_| !later.is_empty()) {
                    notes.push(format!("taken after {latest}, and not used: {}", later.join(", ")));
                }
                return Ok(record);
            }
            Ok(None) => {}
            Err(e) if is_damage(&e) => {
                passed.push(format!("DEGRADED: backup {} is damaged and was not used: {e}", entry.id));
            }
            Err(e) => return Err(e),
        }
    }
    let what = match &options.database {
        Some(d) => format!("database '{}'", d.name.escape_debug()),
        None => "globals".to_owned(),
    };
    let damaged = avoid.len() + passed.len();
    let mut but = if damaged > 0 { format!("; {damaged} that could have it are damaged") } else { String::new() };
    if let Some(latest) = options.not_after.filter(|_| !later.is_empty()) {
        but += &format!("; taken after {latest}, so that they have to be named to be used: {}", later.join(", "));
    }
    Err(EngineError::refused(
        "E-BACKUP-NONE",
        format!("no logical backup of '{}' has {what}{but}", options.cluster),
        "'pgark info' lists the backups, 'pgark info ID' what is in one",
    ))
}

pub(super) fn not_parts(entry: &BackupEntry) -> Result<()> {
    if entry.kind != BackupKind::Physical {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-BACKUP-KIND",
        format!("{} is a physical backup", entry.id),
        "restore it without --kind, into a directory; 'pgark info' lists the logical ones",
    ))
}

/// A dump of parts is used when it is named.
fn has_wanted(options: &RestoreOptions, record: &PartsRecord) -> bool {
    let whole = |name: &str| record.database(name).is_some_and(|d| !is_partial(d));
    let database = options.database.as_ref().is_none_or(|d| whole(&d.name));
    database && (!options.globals || record.globals.is_some())
}

/// Whether single schemas or tables were dumped.
pub(crate) fn is_partial(dump: &DatabaseDump) -> bool {
    !dump.schemas.is_empty() || !dump.tables.is_empty()
}

/// So that another backup may help.
pub fn is_damage(e: &EngineError) -> bool {
    matches!(e, EngineError::Repo(e) if e.is_damage())
}

fn find_database<'r>(record: &'r PartsRecord, name: &str) -> Result<&'r DatabaseDump> {
    record.database(name).ok_or_else(|| {
        let there: Vec<String> = record.databases.iter().map(|d| format!("'{}'", d.name.escape_debug())).collect();
        EngineError::refused(
            "E-DATABASE-NONE",
            format!("backup {} holds no database '{}'", record.id, name.escape_debug()),
            format!("it holds {}", there.join(", ")),
        )
    })
}

/// As of when a backup has what is wanted.
fn taken(options: &RestoreOptions, record: &PartsRecord) -> Timestamp {
    let dump = options.database.as_ref().and_then(|wanted| record.database(&wanted.name));
    dump.map_or(record.started, |dump| dump.taken)
}

/// Tells one restore of a backup from the next.
pub fn run_tag() -> Result<String> {
    let mut random = [0u8; 4];
    getrandom::fill(&mut random).map_err(|e| EngineError::failed("E-RANDOM", format!("no random numbers: {e}"), ""))?;
    Ok(pgark_repo::crypto::hex(&random))
}

pub(super) fn exists(name: &str, how: &str) -> EngineError {
    EngineError::refused(
        "E-DATABASE-EXISTS",
        format!("database '{}' {how}", name.escape_debug()),
        "give another name with --to-database, or --in-place to replace it",
    )
}

/// A session in a database that is not the one to be replaced.
fn admin(options: &RestoreOptions) -> Result<Connection> {
    let target = options.database.as_ref().map(|d| d.to.as_str());
    let name = if target == Some("postgres") { "template1" } else { "postgres" };
    Ok(Connection::open(&options.connect.to_database(name), options.connect_timeout)?)
}

fn plan_database(
    options: &RestoreOptions,
    admin: &Connection,
    record: &PartsRecord,
    wanted: &RestoreDatabase,
    dump: &DatabaseDump,
    notes: &mut Vec<String>,
) -> Result<DatabasePlan> {
    let to = &wanted.to;
    let shown = to.escape_debug();
    if to.is_empty() || to.len() > 63 {
        return Err(EngineError::refused(
            "E-DATABASE-NAME",
            format!("'{shown}' is no name of a database"),
            "1 to 63 bytes",
        ));
    }
    let there = provision::database_exists(admin, to)?;
    if is_partial(dump) {
        let parts: Vec<String> =
            dump.schemas.iter().chain(&dump.tables).map(|p| format!("'{}'", p.escape_debug())).collect();
        let parts = parts.join(", ");
        if there && matches!(wanted.replace, Replace::Replace { .. }) {
            return Err(EngineError::refused(
                "E-BACKUP-PARTIAL",
                format!(
                    "backup {} holds only {parts} of '{}', and would replace all of it",
                    record.id,
                    dump.name.escape_debug()
                ),
                "restore it under another name with --to-database, or choose a backup of the whole database; nothing was changed",
            ));
        }
        notes.push(format!("the backup holds only parts of the database: {parts}"));
        notes.extend(told_outside(&dump.name, &dump.keys_outside));
    }
    if there && matches!(wanted.replace, Replace::Refuse) {
        return Err(exists(to, "exists"));
    }
    for name in provision::remains(admin)? {
        notes.push(format!(
            "database '{}' is there: an earlier restore left it, or one is running; drop it when nobody needs it",
            name.escape_debug()
        ));
    }
    let run = options.run.clone().map_or_else(run_tag, Ok)?;
    let (loading, aside) =
        (format!("pgark_restore_{}_{run}", record.id), format!("pgark_replaced_{}_{run}", record.id));
    if there {
        let obstacles = provision::obstacles(admin, to)?;
        if !obstacles.is_empty() {
            return Err(EngineError::refused(
                "E-DATABASE-IN-USE",
                format!("database '{shown}' cannot be replaced: {}", obstacles.join(", ")),
                "finish or remove them first; nothing was changed",
            ));
        }
    }
    let roles_follow = options.globals && record.globals.is_some();
    if !roles_follow && !provision::role_exists(admin, &dump.owner)? {
        return Err(EngineError::refused(
            "E-ROLE-NONE",
            format!("role '{}', the owner of the database, does not exist here", dump.owner.escape_debug()),
            "restore --globals as well, or create the role",
        ));
    }
    let tablespace = Some(dump.tablespace.clone()).filter(|t| t != "pg_default");
    let tablespace = match tablespace {
        Some(t) if !provision::tablespace_exists(admin, &t)? => {
            notes
                .push(format!("tablespace '{}' is not here: the database goes into the default one", t.escape_debug()));
            None
        }
        other => other,
    };
    Ok(DatabasePlan { dump: dump.clone(), to: to.clone(), loading, aside, replaces: there, tablespace })
}
