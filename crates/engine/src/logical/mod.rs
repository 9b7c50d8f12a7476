//! Logical backups: dumps of databases by PostgreSQL's own programs, streamed into the repository, and back.
//!
//! Invariant: the catalog lists a backup only when every program ended well, every dump was read back and understood, and all of
//! it is durable. Nothing of a database's content or name is ever part of a shell command, of an option or of SQL text that is
//! not quoted by the server. psql is not used.

pub mod against;
pub(crate) mod child;
mod dump;
mod finish;
pub mod restore;
pub mod select;
mod system;
mod toc;
pub mod tools;
mod truth;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, Catalog, CatalogStore, Claim, Reading};
use pgark_repo::codec::Compression;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{DatabaseDump, FilesPart, GlobalsPart, PartsRecord};

use crate::backup::claim::KeptClaim;
use crate::backup::job::{BackupJob, new_id};
use crate::cluster::{self, ClusterError, ConnectOptions, Connection, DatabaseFacts};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::files::{FilesOptions, Root, check_base, look_at_roots, roots_in};
use crate::parts::{self, Finished, Parent, Writer, WriterOptions};
use tools::{ToolOptions, Tools};
pub use truth::Truth;

/// The part that holds what belongs to no database.
pub const GLOBALS: &str = "globals.json";

#[derive(Clone)]
pub struct LogicalOptions {
    pub cluster: ClusterName,
    pub connect: ConnectOptions,
    pub connect_timeout: Duration,
    pub databases: Wanted,
    pub globals: bool,
    /// Patterns as `pg_dump` takes them; empty: everything.
    pub schemas: Vec<String>,
    pub tables: Vec<String>,
    pub tools: ToolOptions,
    pub truth: Truth,
    /// How long `pg_dump` waits for a lock before it gives up.
    pub lock_wait: Duration,
    /// Where what does not fit into memory goes.
    pub scratch: PathBuf,
    pub jobs: usize,
    pub compression: Compression,
    pub keep: bool,
    pub annotations: BTreeMap<String, String>,
    /// With files beside the databases it is a backup of a system.
    pub files: Option<FilesOptions>,
}

impl LogicalOptions {
    fn kind(&self) -> BackupKind {
        if self.files.is_some() { BackupKind::System } else { BackupKind::Logical }
    }

    /// Of its ids.
    fn letter(&self) -> char {
        if self.files.is_some() { 'S' } else { 'L' }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These, each once.
    Named(Vec<String>),
    /// All that take connections, but for templates.
    All,
}

#[derive(Clone, Debug)]
pub struct LogicalPlan {
    pub id: BackupId,
    pub databases: Vec<DatabaseFacts>,
    pub globals: bool,
    /// Whose content would be taken over.
    pub base: Option<BackupId>,
    pub tools: Tools,
    /// Of a system: its files, and what of them is not there.
    pub roots: Vec<Root>,
    pub missing: Vec<Root>,
    pub warnings: Vec<String>,
    /// Databases that are left out, where all are wanted, and need no attention.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct LogicalReport {
    pub entry: BackupEntry,
    pub databases: Vec<DatabaseDump>,
    pub globals: Option<GlobalsPart>,
    pub files: Option<FilesPart>,
    pub base: Option<BackupId>,
    /// Bytes of dumps that no earlier backup had.
    pub new_bytes: u64,
    pub tools: Tools,
    pub warnings: Vec<String>,
    /// As in the plan.
    pub notes: Vec<String>,
}

/// What the server says before anything is begun.
struct Server {
    system_id: pgark_pg::value::SystemId,
    version_num: u32,
    from_standby: bool,
    databases: Vec<DatabaseFacts>,
    globals: Option<cluster::Globals>,
    tools: Tools,
    notes: Vec<String>,
}

/// Where nobody names a database, libpq takes that of the user's name, which need not be there: then one that is wanted will do.
fn first_session(options: &LogicalOptions) -> Result<Connection> {
    let opened = Connection::open(&options.connect, options.connect_timeout);
    let wanted = match &options.databases {
        Wanted::Named(names) => names.first().map_or("postgres", String::as_str),
        Wanted::All => "postgres",
    };
    match opened {
        Err(ClusterError::Query { sqlstate, .. }) if sqlstate == NO_DATABASE && !options.connect.has("dbname") => {
            Ok(Connection::open(&options.connect.to_database(wanted), options.connect_timeout)?)
        }
        opened => Ok(opened?),
    }
}

/// `invalid_catalog_name`.
const NO_DATABASE: &str = "3D000";

impl Server {
    fn ask(options: &LogicalOptions, catalog: &Catalog, warnings: &mut Vec<String>) -> Result<Self> {
        let conn = first_session(options)?;
        let system_id = cluster::system_id(&conn)?;
        if catalog.lineage().is_none_or(|l| l.system_id != system_id) {
            return Err(EngineError::refused(
                "E-CLUSTER-SYSTEM",
                format!(
                    "'{}' is registered with another system identifier than this cluster's {system_id}",
                    options.cluster
                ),
                "use another --cluster name, or 'pgark init --adopt' after an upgrade",
            ));
        }
        let there = cluster::databases(&conn)?;
        let notes = match options.databases {
            Wanted::All => tell_left_out(&there, warnings),
            Wanted::Named(_) => vec![],
        };
        let databases = choose(there, &options.databases)?;
        let globals = if options.globals { Some(cluster::globals(&conn)?) } else { None };
        if globals.as_ref().is_some_and(|g| !g.passwords) {
            warnings.push("passwords of roles are not in the backup: only a superuser can read them".to_owned());
        }
        let server = conn.major().number();
        let tools = tools::find(&options.tools, server, warnings)?;
        if !tools.load_into(server) {
            warnings.push(format!(
                "{} is {}: what it dumps goes into PostgreSQL 17 and newer, and not back into this server, which is {server}; \
                 install postgresql-client-{server}",
                tools.dump.display(),
                tools.version
            ));
        }
        let from_standby = conn.query_one("SELECT pg_is_in_recovery() AS standby", &[])?.flag("standby")?;
        Ok(Server { system_id, version_num: conn.version_num(), from_standby, databases, globals, tools, notes })
    }
}

/// Databases that a restore made for a while, or put aside.
pub fn is_remains(name: &str) -> bool {
    ["pgark_restore_", "pgark_replaced_", "pgark_table_"].iter().any(|begin| name.starts_with(begin))
}

/// Of all databases. What restores left is their own affair.
fn why_left_out(database: &DatabaseFacts) -> Option<&'static str> {
    if is_remains(&database.name) {
        Some("a restore left it; drop it when nobody needs it")
    } else if database.is_template {
        Some("it is a template")
    } else if !database.allow_connections {
        Some("it takes no connections")
    } else {
        None
    }
}

/// Returns what is as expected; the rest are warnings.
fn tell_left_out(there: &[DatabaseFacts], warnings: &mut Vec<String>) -> Vec<String> {
    let mut notes = vec![];
    for database in there {
        let Some(why) = why_left_out(database) else { continue };
        let text = format!("database '{}' is not in the backup: {why}", database.name.escape_debug());
        let expected =
            matches!(database.name.as_str(), "template0" | "template1") || database.name.starts_with("pgark_");
        if expected { notes.push(text) } else { warnings.push(text) }
    }
    notes
}

fn choose(there: Vec<DatabaseFacts>, wanted: &Wanted) -> Result<Vec<DatabaseFacts>> {
    let chosen: Vec<DatabaseFacts> = match wanted {
        Wanted::All => there.into_iter().filter(|d| why_left_out(d).is_none()).collect(),
        Wanted::Named(names) => {
            for name in names {
                let found = there.iter().find(|d| d.name == *name);
                let why = match found {
                    Some(d) if d.allow_connections => continue,
                    Some(_) => "takes no connections",
                    None => "does not exist",
                };
                let known: Vec<String> = there.iter().map(|d| format!("'{}'", d.name.escape_debug())).collect();
                return Err(EngineError::refused(
                    "E-DATABASE-NONE",
                    format!("database '{}' {why}", name.escape_debug()),
                    format!("there are {}", known.join(", ")),
                ));
            }
            there.into_iter().filter(|d| names.contains(&d.name)).collect()
        }
    };
    if chosen.is_empty() {
        return Err(EngineError::refused(
            "E-DATABASE-NONE",
            "no database is named",
            "give --database NAME or --all-databases, or set databases in [clusters.NAME.logical]",
        ));
    }
    Ok(chosen)
}

/// Looks at everything and changes nothing.
pub fn plan(options: &LogicalOptions, repo: &Repository, ctx: &Ctx) -> Result<LogicalPlan> {
    let store = CatalogStore::new(repo, &options.cluster);
    let catalog = store.read()?;
    let mut warnings = vec![];
    let (roots, missing) = roots(options)?;
    let server = Server::ask(options, &catalog, &mut warnings)?;
    let parent = parent(options, repo, &catalog, &server, &roots, &mut warnings)?;
    warnings.extend(missing.iter().map(|root| format!("{} is not there", root.as_path().display())));
    Ok(LogicalPlan {
        roots,
        missing,
        id: new_id(&store, ctx.now(), options.letter())?,
        databases: server.databases,
        globals: server.globals.is_some(),
        base: parent.map(|p| p.record.id),
        tools: server.tools,
        warnings,
        notes: server.notes,
    })
}

/// Of a system; looked at before the server is asked for anything.
fn roots(options: &LogicalOptions) -> Result<(Vec<Root>, Vec<Root>)> {
    options.files.as_ref().map_or(Ok(Default::default()), look_at_roots)
}

fn parent(
    options: &LogicalOptions,
    repo: &Repository,
    catalog: &Catalog,
    server: &Server,
    roots: &[Root],
    notes: &mut Vec<String>,
) -> Result<Option<Parent>> {
    let counts = |record: &PartsRecord| {
        let paths = server.databases.iter().map(dump::path_of);
        paths.filter(|path| record.databases.iter().any(|d| d.path == *path)).count() + roots_in(record, roots)
    };
    parts::choose_parent(repo, &options.cluster, catalog, options.kind(), &counts, notes)
}

pub fn run(options: &LogicalOptions, repo: &Repository, ctx: &Ctx) -> Result<LogicalReport> {
    let mut avoid = vec![];
    loop {
        let mut warnings = avoid.iter().map(not_built_upon).collect();
        match attempt(options, repo, ctx, &avoid, &mut warnings)? {
            Attempt::Done(report) => return Ok(*report),
            // Each time one backup less is built upon, in the end none.
            Attempt::BuiltUponDamage(base, e) => {
                ctx.progress.note(&format!("{e}: storing anew what was taken over from {base}"));
                avoid.push(base);
            }
        }
    }
}

fn not_built_upon(base: &BackupId) -> String {
    format!(
        "backup {base} is damaged, as what was taken over from it showed: it was stored anew; 'pgark verify' finds what else is"
    )
}

enum Attempt {
    Done(Box<LogicalReport>),
    /// What was stored cannot be read back, and part of it was taken over from this backup.
    BuiltUponDamage(BackupId, EngineError),
}

fn attempt(
    options: &LogicalOptions,
    repo: &Repository,
    ctx: &Ctx,
    avoid: &[BackupId],
    warnings: &mut Vec<String>,
) -> Result<Attempt> {
    let store = CatalogStore::new(repo, &options.cluster);
    let started = ctx.now();
    let mut catalog = store.read()?;
    let (roots, _) = roots(options)?;
    let server = Server::ask(options, &catalog, warnings)?;
    catalog.backups.retain(|b| !avoid.contains(&b.id));
    let parent = parent(options, repo, &catalog, &server, &roots, warnings)?;
    let id = new_id(&store, started, options.letter())?;
    let base = parent.as_ref().map(|p| p.record.id.clone());
    let begun = BackupJob::begin(&store, repo, ctx, &id, base.clone(), started)?;
    let (claim, kept) = (&begun.claim, &begun.kept);
    let job = Job { options, repo, ctx, claim, kept, server: &server, parent: parent.as_ref(), started };
    let outcome = job.under_claim(warnings);
    let concluded = begun.conclude(outcome, |report| &report.entry);
    match (concluded, base) {
        (Ok((mut report, more)), _) => {
            report.warnings.extend(more);
            Ok(Attempt::Done(Box::new(report)))
        }
        (Err(e), Some(base)) if e.is_damage() => Ok(Attempt::BuiltUponDamage(base, e)),
        (Err(e), _) => Err(e),
    }
}

struct Job<'a> {
    options: &'a LogicalOptions,
    repo: &'a Repository,
    ctx: &'a Ctx,
    claim: &'a Claim,
    kept: &'a KeptClaim,
    server: &'a Server,
    parent: Option<&'a Parent>,
    started: Timestamp,
}

/// One database, dumped.
struct Dumped {
    facts: DatabaseDump,
    parts: Vec<Finished>,
    warnings: Vec<String>,
}

impl Job<'_> {
    /// Everything between the claim and the commit.
    fn under_claim(&self, warnings: &mut Vec<String>) -> Result<(LogicalReport, Reading)> {
        let id = self.claim.backup();
        check_base(self.repo, &self.options.cluster, self.parent)?;
        let options = WriterOptions {
            compression: self.options.compression,
            scratch: self.options.scratch.clone(),
            jobs: self.workers(),
        };
        let writer = Writer::new(self.ctx, self.repo, &self.options.cluster, id, self.parent, options);
        self.ctx.progress.begin(&format!("{} backup", self.options.kind()), None);
        let dumped = self.dump_all(&writer);
        let globals = dumped.as_ref().map_or(Ok(None), |_| self.globals(&writer));
        self.ctx.progress.end();
        let (dumped, globals) = (dumped?, globals?);
        self.kept.check()?;
        let (mut databases, mut all, mut new_bytes) = (vec![], vec![], 0);
        for mut one in dumped {
            warnings.append(&mut one.warnings);
            new_bytes += one.parts.iter().map(|p| p.new_bytes).sum::<u64>();
            databases.push(one.facts);
            all.append(&mut one.parts);
        }
        let globals = globals.map(|(facts, part)| {
            all.push(part);
            facts
        });
        let (list, files) = match &self.options.files {
            None => (writer.manifest(all)?, None),
            Some(files) => {
                let (list, part, new) = self.with_files(files, &writer, all, warnings)?;
                new_bytes += new;
                (list, Some(part))
            }
        };
        self.kept.check()?;
        let mut record = self.record(databases, globals, files, &list, warnings);
        self.read_back(&mut record)?;
        let report = self.store_record(record, list, new_bytes)?;
        let reading = crate::clock::with_object(self.repo, &names::record(&self.options.cluster, id), self.ctx)?;
        self.kept.check()?;
        Ok((report, reading))
    }

    fn workers(&self) -> usize {
        self.options.jobs.clamp(1, self.server.databases.len().max(1))
    }

    /// Several databases at a time, the largest first, in the order of the server's list.
    fn dump_all(&self, writer: &Writer<'_>) -> Result<Vec<Dumped>> {
        let databases = &self.server.databases;
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let done: Mutex<Vec<(usize, Dumped)>> = Mutex::default();
        let work = || -> Result<()> {
            let mut sink = writer.sink()?;
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Err(EngineError::Cancelled);
                }
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(database) = databases.get(n) else { break };
                let one = self.dump(database, &mut sink, &stop)?;
                done.lock().expect("no thread panics with the lock").push((n, one));
            }
            sink.finish()
        };
        // Those that stop because another failed have nothing to say, whatever they ended with.
        let failed: Mutex<Option<EngineError>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..self.workers() {
                scope.spawn(|| {
                    if let Err(e) = work() {
                        failed.lock().expect("no thread panics with the lock").get_or_insert(e);
                        stop.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        if let Some(e) = failed.into_inner().expect("the threads are gone") {
            return Err(e);
        }
        let mut done = done.into_inner().expect("the threads are gone");
        done.sort_by_key(|(n, _)| *n);
        Ok(done.into_iter().map(|(_, one)| one).collect())
    }

    fn globals(&self, writer: &Writer<'_>) -> Result<Option<(GlobalsPart, Finished)>> {
        let Some(globals) = &self.server.globals else { return Ok(None) };
        let text = serde_json::to_vec_pretty(globals).expect("globals are plain data");
        let mut sink = writer.sink()?;
        let mut once = Some(text);
        let part = sink.write(GLOBALS, self.ctx.now(), &mut || Ok(once.take()))?;
        sink.finish()?;
        let facts = GlobalsPart {
            path: GLOBALS.into(),
            roles: globals.roles.len() as u64,
            tablespaces: globals.tablespaces.len() as u64,
            passwords: globals.passwords,
        };
        Ok(Some((facts, part)))
    }
}
