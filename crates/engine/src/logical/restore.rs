//! A database back from its dump. It is loaded beside what is there, under a name of its own, and takes its place only when all
//! of it is in: until then nothing of the old one was touched.
//!
//! Invariant: nothing is sent to the server before the whole dump was read from the repository and compared. The first failure
//! ends it, and what was loaded so far is removed.

use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pgark_pg::dump_toc::{DumpToc, TocProblem};
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, CatalogStore, Claim, Needs};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{DatabaseDump, PartsRecord};

use super::child::{self, Running};
use super::dump::dump_path;
use super::select::{Selected, Selection, select};
use super::tools::{self, ToolOptions, Tools};
use super::{LogicalOptions, Wanted};
use crate::backup::claim::KeptClaim;
use crate::cluster::provision::{self, AppliedGlobals};
use crate::cluster::{ConnectOptions, Connection, Globals};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{PartReader, Source, nameless};
use crate::restore::run::claim_to_read;

/// How long sessions may take to end.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);
/// The annotation of a backup that was taken before a restore replaced the database.
pub const SAFETY: &str = "safety";
const GLOBALS_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Clone)]
pub struct RestoreOptions {
    pub cluster: ClusterName,
    /// None: the newest that has what is wanted; where that is damaged, the one before.
    pub backup: Option<BackupId>,
    pub connect: ConnectOptions,
    pub connect_timeout: Duration,
    /// None: globals alone.
    pub database: Option<RestoreDatabase>,
    pub globals: bool,
    pub tools: ToolOptions,
    pub scratch: PathBuf,
    pub jobs: usize,
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
    let by = dumped.and_then(|d| d.dumped_by.split('.').next()?.parse().ok()).unwrap_or(major);
    // Its programs must read the dump and speak to the server.
    let tools = tools::find(&options.tools, major.max(by), &mut notes)?;
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

fn choose(
    options: &RestoreOptions,
    repo: &Repository,
    avoid: &[BackupId],
    notes: &mut Vec<String>,
) -> Result<PartsRecord> {
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    if let Some(id) = &options.backup {
        let entry = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, id))?;
        if entry.kind == BackupKind::Physical {
            return Err(EngineError::refused(
                "E-BACKUP-KIND",
                format!("{id} is a physical backup"),
                "restore it without --kind, into a directory; 'pgark info' lists the logical ones",
            ));
        }
        crate::restore::thaw::check_one(repo, &options.cluster, entry)?;
        let record = PartsRecord::load(repo, &options.cluster, id, &entry.record)?;
        Source { repo, cluster: &options.cluster, record: &record }.check()?;
        return Ok(record);
    }
    let mut passed: Vec<String> = vec![];
    // What was taken just before a restore is the state that was to be left behind: it is used when it is named.
    let ordinary = |b: &&BackupEntry| b.kind == BackupKind::Logical && !b.annotations.contains_key(SAFETY);
    for entry in catalog.backups.iter().rev().filter(ordinary).filter(|b| !avoid.contains(&b.id)) {
        let looked = PartsRecord::load(repo, &options.cluster, &entry.id, &entry.record).map_err(EngineError::from);
        let looked = looked.and_then(|record| {
            if !has_wanted(options, &record) {
                return Ok(None);
            }
            crate::restore::thaw::check_one(repo, &options.cluster, entry)?;
            Source { repo, cluster: &options.cluster, record: &record }.check()?;
            Ok(Some(record))
        });
        match looked {
            Ok(Some(record)) => {
                notes.append(&mut passed);
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
    let but = if damaged > 0 { format!("; {damaged} that could have it are damaged") } else { String::new() };
    Err(EngineError::refused(
        "E-BACKUP-NONE",
        format!("no logical backup of '{}' has {what}{but}", options.cluster),
        "'pgark info' lists the backups, 'pgark info ID' what is in one",
    ))
}

fn has_wanted(options: &RestoreOptions, record: &PartsRecord) -> bool {
    let database = options.database.as_ref().is_none_or(|d| record.database(&d.name).is_some());
    database && (!options.globals || record.globals.is_some())
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
    if there && matches!(wanted.replace, Replace::Refuse) {
        return Err(EngineError::refused(
            "E-DATABASE-EXISTS",
            format!("database '{shown}' exists"),
            "give another name with --to-database, or --in-place to replace it",
        ));
    }
    let (loading, aside) = (format!("pgark_restore_{}", record.id), format!("pgark_replaced_{}", record.id));
    for name in [Some(&loading), Some(&aside).filter(|_| there)].into_iter().flatten() {
        if provision::database_exists(admin, name)? {
            return Err(EngineError::refused(
                "E-DATABASE-EXISTS",
                format!("database '{name}' exists: an earlier restore left it, or one is running"),
                format!("look at it, and remove it with: drop database \"{name}\""),
            ));
        }
    }
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

/// Restores. `announce` is shown the plan before anything is written, and again when another backup had to be taken.
pub fn run(
    options: &RestoreOptions,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
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
                let report = Restore { options, repo, ctx, plan: &plan }.run(fetched)?;
                return Ok((plan, report));
            }
        }
    }
}

/// What was read from the repository, compared, and now lies here.
struct Fetched {
    dump: Option<std::fs::File>,
    globals: Option<Globals>,
}

fn fetch(options: &RestoreOptions, repo: &Repository, ctx: &Ctx, plan: &RestorePlan) -> Result<Fetched> {
    let source = Source { repo, cluster: &options.cluster, record: &plan.record };
    let globals = match plan.record.globals.as_ref().filter(|_| plan.globals) {
        Some(part) => Some(fetch_globals(&source, &part.path, ctx)?),
        None => None,
    };
    let dump = plan.database.as_ref().map(|d| fetch_dump(&source, &d.dump, &options.scratch, ctx)).transpose()?;
    Ok(Fetched { dump, globals })
}

fn fetch_globals(source: &Source<'_>, path: &str, ctx: &Ctx) -> Result<Globals> {
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
fn fetch_dump(source: &Source<'_>, dump: &DatabaseDump, scratch: &Path, ctx: &Ctx) -> Result<std::fs::File> {
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

struct Restore<'a> {
    options: &'a RestoreOptions,
    repo: &'a Repository,
    ctx: &'a Ctx,
    plan: &'a RestorePlan,
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
            self.database(plan, dump, &admin, &mut report)?;
        }
        Ok(report)
    }

    fn database(
        &self,
        plan: &DatabasePlan,
        dump: std::fs::File,
        admin: &Connection,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let chosen = self.chosen(&dump, report)?;
        if plan.replaces {
            report.safety = self.safety_backup(plan)?;
        }
        provision::create_database(admin, &plan.loading, &plan.dump, plan.tablespace.as_deref())?;
        if let Err(e) = self.load_and_place(plan, dump, chosen.as_ref(), admin, report) {
            return Err(self.undo(plan, admin, e));
        }
        report.bytes_restored = plan.dump.dump_bytes;
        Ok(())
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
        let report = super::run(&options, self.repo, self.ctx).map_err(|e| {
            EngineError::failed(
                "E-SAFETY-BACKUP",
                format!("the database as it is now could not be backed up, and was not touched: {}: {e}", e.code()),
                "see to that first, or go on without it: --no-safety-backup",
            )
        })?;
        Ok(Some(report.entry.id))
    }

    fn load_and_place(
        &self,
        plan: &DatabasePlan,
        dump: std::fs::File,
        chosen: Option<&ListFile>,
        admin: &Connection,
        report: &mut RestoreReport,
    ) -> Result<()> {
        report.warnings.extend(self.load(plan, dump, chosen)?);
        let left = provision::finish_database(admin, &plan.loading, &plan.dump)?;
        report.warnings.extend(left.into_iter().map(|l| format!("not restored: {l}")));
        // What was restored is to be compared with what was backed up here, while nobody uses it yet.
        if !plan.replaces {
            return Ok(provision::rename_database(admin, &plan.loading, &plan.to)?);
        }
        if !provision::close_database(admin, &plan.to, SESSIONS_WITHIN)? {
            return Err(EngineError::failed(
                "E-DATABASE-IN-USE",
                format!("sessions in '{}' did not end within {} s", plan.to.escape_debug(), SESSIONS_WITHIN.as_secs()),
                "end them, or stop what uses the database, and try again",
            ));
        }
        if let Err(e) = provision::swap_databases(admin, &plan.to, &plan.aside, &plan.loading) {
            provision::open_database(admin, &plan.to)?;
            return Err(e.into());
        }
        // From here on the restored database is in place, and nothing is undone.
        match &self.options.database {
            Some(RestoreDatabase { replace: Replace::Replace { old: Old::Keep, .. }, .. }) => {
                report.kept = Some(plan.aside.clone());
            }
            _ => {
                if let Err(e) = provision::drop_database(admin, &plan.aside) {
                    report.warnings.push(format!("the old database is there as '{}': {e}", plan.aside));
                    report.kept = Some(plan.aside.clone());
                }
            }
        }
        Ok(())
    }

    /// The list of entries to restore, where not all of them are.
    fn chosen(&self, dump: &std::fs::File, report: &mut RestoreReport) -> Result<Option<ListFile>> {
        let selection = self.options.database.as_ref().map(|d| &d.selection).filter(|s| !s.is_everything());
        let Some(selection) = selection else { return Ok(None) };
        let Selected { ids, left_out, missing } = select(&read_toc(dump)?, selection);
        if !missing.is_empty() {
            return Err(EngineError::refused(
                "E-SELECT-NONE",
                format!("backup {} has no {}", self.plan.record.id, missing.join(", no ")),
                "names are taken as they are: TABLE or SCHEMA.TABLE, in the case in which they were created",
            ));
        }
        report
            .warnings
            .extend(left_out.into_iter().map(|what| format!("not restored: {what}: its other table is not")));
        Ok(Some(ListFile::write(&self.options.scratch, &ids)?))
    }

    /// Returns what the program remarked.
    fn load(&self, plan: &DatabasePlan, dump: std::fs::File, chosen: Option<&ListFile>) -> Result<Vec<String>> {
        let shown = plan.to.escape_debug();
        self.ctx.progress.note(&format!("loading '{shown}' as '{}'", plan.loading));
        let to = self.options.connect.to_database(&plan.loading);
        let handover = Connection::open(&to, self.options.connect_timeout)?.handover();
        let mut command = child::command(&self.plan.tools.restore, &handover, &plan.loading)?;
        command.arg("--exit-on-error");
        command.arg(format!("--jobs={}", self.options.jobs.max(1)));
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

/// A table of contents is not longer than this.
const TOC_BYTES_MAX: usize = 1024 * 1024 * 1024;

fn read_toc(dump: &std::fs::File) -> Result<DumpToc> {
    use std::os::unix::fs::FileExt;
    let failed = |e: std::io::Error| EngineError::file("reading the table of contents of", "the dump", e);
    let length = usize::try_from(dump.metadata().map_err(failed)?.len()).unwrap_or(usize::MAX);
    let mut want = 1024 * 1024;
    loop {
        let mut bytes = vec![0; want.min(length)];
        dump.read_exact_at(&mut bytes, 0).map_err(failed)?;
        match DumpToc::parse(&bytes) {
            Ok(toc) => return Ok(toc),
            Err(TocProblem::Short) if want < length && want < TOC_BYTES_MAX => want *= 4,
            Err(problem) => {
                return Err(EngineError::failed(
                    "E-DUMP-UNREADABLE",
                    format!("the table of contents of the dump is not understood: {problem:?}"),
                    "restore the whole database, or use a newer pgark",
                ));
            }
        }
    }
}

/// Numbers of entries for `pg_restore`; removed when it is dropped.
struct ListFile(PathBuf);

impl ListFile {
    fn write(dir: &Path, ids: &[u32]) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut random = [0u8; 16];
        getrandom::fill(&mut random)
            .map_err(|e| EngineError::file("making a name in", dir, std::io::Error::other(e.to_string())))?;
        let path = dir.join(format!(".pgark-list-{}", pgark_repo::crypto::hex(&random)));
        let failed = |e| EngineError::file("writing", &path, e);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let list = ListFile(path.clone());
        let text: String = ids.iter().map(|id| format!("{id};\n")).collect();
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(list)
    }
}

impl Drop for ListFile {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.0) {
            tracing::warn!(%e, "a list of entries stays in {}", self.0.display());
        }
    }
}
