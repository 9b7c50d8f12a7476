//! The rehearsal of a logical backup: its databases are loaded into a new cluster of the same major version, and compared with what was
//! written down when they were dumped.

use std::time::{Duration, Instant};

use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, Catalog, CatalogStore};
use pgark_repo::names::BackupId;
use pgark_repo::record::{DatabaseDump, PartsRecord};

use super::examine::Cluster;
use super::{
    DrillOptions, Report, StepKind, Verdict, Which, any_of, ended_early, hold_in_scratch, is_finding, prepare,
    record_proof, report,
};
use crate::cluster::{ConnectOptions, Globals, TablespaceFacts, provision};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::against::{self, Against, AgainstOptions};
use crate::logical::restore::{self, Replace, RestoreDatabase, RestoreOptions, SAFETY};
use crate::logical::select::Selection;
use crate::logical::tools::ToolOptions;
use crate::parts::Source;
use crate::scratch::Scratch;
use crate::scratch::server::{self, session};
use crate::validate::{CheckKind, Tally, UserCheck, ValidateOptions, validate};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A loaded database takes more room than it did when it was dumped: its indexes are built, and WAL is written meanwhile.
const ROOM_FACTOR: u64 = 2;

pub struct LogicalDrill {
    pub common: DrillOptions,
    /// The programs that load a dump.
    pub tools: ToolOptions,
}

/// What is going to be rehearsed.
pub struct LogicalPlan {
    pub entry: BackupEntry,
    pub record: PartsRecord,
}

/// Which backup would be taken. Writes nothing.
pub fn plan(drill: &LogicalDrill, repo: &Repository, ctx: &Ctx) -> Result<LogicalPlan> {
    let options = &drill.common;
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let id = choose(&options.which, &catalog, ctx)?;
    let entry = catalog.backup(&id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, &id))?.clone();
    let record = PartsRecord::load(repo, &options.cluster, &id, &entry.record)?;
    if record.databases.is_empty() {
        return Err(EngineError::refused(
            "E-BACKUP-KIND",
            format!("backup {id} holds no database"),
            "choose another backup",
        ));
    }
    Source { repo, cluster: &options.cluster, record: &record }.check()?;
    Ok(LogicalPlan { entry, record })
}

fn choose(which: &Which, catalog: &Catalog, ctx: &Ctx) -> Result<BackupId> {
    let dumped = |b: &&BackupEntry| {
        matches!(b.kind, BackupKind::Logical | BackupKind::System) && !b.annotations.contains_key(SAFETY)
    };
    match which {
        Which::Named(id) => Ok(id.clone()),
        Which::Random => any_of(catalog.backups.iter().filter(dumped), ctx.now()),
        Which::Latest => catalog.backups.iter().rfind(dumped).map(|b| b.id.clone()).ok_or_else(|| {
            EngineError::refused(
                "E-BACKUP-NONE",
                format!("there is no logical backup of '{}'", catalog.cluster),
                "take one with 'pgark backup --kind logical'",
            )
        }),
    }
}

/// Rehearses. `announce` is shown the plan before anything is written.
///
/// # Errors
/// Where no rehearsal could be held. That the dump could not be loaded is in the report.
pub fn run(
    drill: &LogicalDrill,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&LogicalPlan),
) -> Result<Report> {
    let options = &drill.common;
    named_is_there(options, repo)?;
    prepare(options, ctx)?;
    let mut report = options.report(BackupKind::Logical, "the moment of the dump".to_owned(), ctx);
    let plan = match plan(drill, repo, ctx) {
        Ok(plan) => plan,
        Err(e) if is_finding(&e) => return Ok(ended_early(report, &e)),
        Err(e) => return Err(e),
    };
    announce(&plan);
    report.kind = plan.entry.kind;
    report.backup = Some(plan.entry.id.clone());
    report.backup_finished = Some(plan.entry.finished);
    report.server_version_num = Some(plan.entry.version_num);
    if let Some(at) = plan.entry.damaged {
        report.fail("E-DRILL-DEGRADED", format!("backup {} was found damaged at {at}", plan.entry.id));
    }
    if let Err(e) = fits(options, &plan) {
        return Ok(ended_early(report, &e));
    }
    let mut report = hold_in_scratch(options, report, ctx, |scratch, report| {
        Rehearsal { drill, plan: &plan, repo, ctx, scratch }.hold(report)
    })?;
    if report.verdict == Verdict::Green
        && let Err(e) = record_proof(repo, &options.cluster, &plan.entry.id, report.started)
    {
        report.notes.push(format!("that the backup is proven could not be recorded: {e}"));
    }
    Ok(report)
}

fn named_is_there(options: &DrillOptions, repo: &Repository) -> Result<()> {
    let Which::Named(id) = &options.which else { return Ok(()) };
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let entry = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, id))?;
    if matches!(entry.kind, BackupKind::Logical | BackupKind::System) {
        return Ok(());
    }
    let hint = if entry.physical.is_some() { "rehearse it without --kind" } else { "it holds no database" };
    Err(EngineError::refused("E-BACKUP-KIND", format!("{id} is a {} backup", entry.kind), hint))
}

fn fits(options: &DrillOptions, plan: &LogicalPlan) -> Result<()> {
    server::programs_of(options.bin.as_deref(), plan.entry.version_num / 10_000)?;
    let bytes =
        plan.record.databases.iter().map(|d| d.size_bytes.unwrap_or(0).max(d.dump_bytes)).fold(0, u64::saturating_add);
    let needed = bytes.saturating_mul(ROOM_FACTOR).saturating_add(server::SPARE_BYTES);
    server::room(&options.base, needed, "choose another directory with --dir or drill.dir")
}

struct Rehearsal<'a> {
    drill: &'a LogicalDrill,
    plan: &'a LogicalPlan,
    repo: &'a Repository,
    ctx: &'a Ctx,
    scratch: &'a Scratch,
}

impl Rehearsal<'_> {
    fn hold(&self, report: &mut Report) -> Result<()> {
        let options = &self.drill.common;
        let began = Instant::now();
        self.ctx.progress.note("making a cluster for the rehearsal");
        let connect = server::make(self.scratch, self.plan.entry.version_num / 10_000, &options.isolation(), self.ctx)?;
        self.globals(&connect, report)?;
        report.step(StepKind::Recover, began.elapsed(), 0);
        let mut loaded = vec![];
        for dump in &self.plan.record.databases {
            let name = self.load(&connect, dump, report)?;
            loaded.push((dump, name));
        }
        report.reached = Some("the end of the dump".to_owned());
        self.measure(report);
        let began = Instant::now();
        let looked = self.examine(&connect, &loaded, report);
        report.step(StepKind::Check, began.elapsed(), 0);
        looked
    }

    /// Roles; and tablespaces, in the directory of the rehearsal.
    fn globals(&self, connect: &ConnectOptions, report: &mut Report) -> Result<()> {
        let Some(part) = &self.plan.record.globals else {
            report.notes.push("the backup holds no globals: roles are those of a new cluster".to_owned());
            return Ok(());
        };
        let source = Source { repo: self.repo, cluster: &self.drill.common.cluster, record: &self.plan.record };
        let globals = restore::fetch_globals(&source, &part.path, self.ctx)?;
        let mut tablespaces = vec![];
        for (n, facts) in (0u32..).zip(globals.tablespaces) {
            let place = self.scratch.tablespace(n);
            std::fs::create_dir(&place).map_err(|e| EngineError::file("making", &place, e))?;
            tablespaces.push(TablespaceFacts { location: text(&place)?, ..facts });
        }
        let globals = Globals { tablespaces, ..globals };
        let applied = provision::apply_globals(&session(connect, self.ctx)?, &globals)?;
        let mut tally = Tally::new("roles and tablespaces", CheckKind::Catalog);
        (0..applied.created.len().saturating_add(applied.present.len())).for_each(|_| tally.ok());
        applied.failed.into_iter().for_each(|failed| tally.failed(failed));
        report.check(tally.finish());
        Ok(())
    }

    /// Returns the name it has in the new cluster.
    fn load(&self, connect: &ConnectOptions, dump: &DatabaseDump, report: &mut Report) -> Result<String> {
        let began = Instant::now();
        let taken = provision::database_exists(&session(connect, self.ctx)?, &dump.name)?;
        let to = if taken { format!("pgark_drill_{}", dump.name) } else { dump.name.clone() };
        let options = RestoreOptions {
            not_after: None,
            run: None,
            cluster: self.drill.common.cluster.clone(),
            backup: Some(self.plan.entry.id.clone()),
            connect: connect.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            database: Some(RestoreDatabase {
                name: dump.name.clone(),
                to: to.clone(),
                replace: Replace::Refuse,
                selection: Selection { schemas: vec![], tables: vec![] },
            }),
            globals: false,
            tools: self.drill.tools.clone(),
            scratch: self.scratch.dir().to_owned(),
            jobs: self.drill.common.jobs,
            // It is compared here, with its storage.
            validate: None,
        };
        let (plan, done) = restore::run(&options, self.repo, self.ctx, &mut |_| {})?;
        report.step(StepKind::Restore, began.elapsed(), dump.dump_bytes);
        report.notes.extend(plan.notes);
        for warning in done.warnings {
            report.not_checked(format!("database '{}': {warning}", dump.name.escape_debug()));
        }
        Ok(to)
    }

    fn examine(&self, connect: &ConnectOptions, loaded: &[(&DatabaseDump, String)], report: &mut Report) -> Result<()> {
        let options = &self.drill.common;
        let cluster = Cluster { options, connect, ctx: self.ctx };
        let checks = self.placed(report);
        for (dump, name) in loaded {
            let mut how = cluster.how(name, &checks, false);
            (how.backup, how.made_from) = (Some(self.plan.entry.id.clone()), Some(dump.name.clone()));
            let wanted = AgainstOptions {
                cluster: options.cluster.clone(),
                backup: Some(self.plan.entry.id.clone()),
                database: dump.name.clone(),
                or_only: false,
                selection: Selection { schemas: vec![], tables: vec![] },
                scratch: self.scratch.dir().to_owned(),
            };
            let compared = |how: &ValidateOptions| match against::open(&wanted, self.repo, self.ctx) {
                Ok(Against { truth, .. }) => validate(connect, Some(truth), how, self.ctx),
                Err(e) if e.code() == "E-TRUTH-NONE" => {
                    let mut alone = validate(connect, None::<crate::truth::TruthReader<&[u8]>>, how, self.ctx)?;
                    alone.not_compared(&e.to_string());
                    Ok(alone)
                }
                Err(e) => Err(e),
            };
            cluster.one(&how, compared, report)?;
        }
        Ok(())
    }

    /// Checks of the databases that were dumped. Others are not of this backup.
    fn placed(&self, report: &mut Report) -> Vec<UserCheck> {
        let databases = &self.plan.record.databases;
        let mut placed = vec![];
        for check in &self.drill.common.checks {
            match (&check.database, databases.as_slice()) {
                (Some(name), _) if databases.iter().any(|d| d.name == *name) => placed.push(check.clone()),
                (Some(name), _) => report.notes.push(format!(
                    "check '{}' was not asked: database '{}' is not in this backup",
                    check.name.escape_debug(),
                    name.escape_debug()
                )),
                (None, [only]) => placed.push(UserCheck { database: Some(only.name.clone()), ..check.clone() }),
                (None, several) => report.not_checked(format!(
                    "check '{}': it names no database, and the backup has {}",
                    check.name.escape_debug(),
                    several.len()
                )),
            }
        }
        if self.drill.common.checks.is_empty() {
            report.notes.push("no checks of your own are configured".to_owned());
        }
        placed
    }

    /// A dump is as old as it is.
    fn measure(&self, found: &mut Report) {
        let Some(taken) = self.plan.record.databases.iter().map(|d| d.taken).min() else { return };
        found.recovered_to = Some(taken);
        if self.drill.common.which != Which::Latest {
            return;
        }
        found.rpo.measured_ms = Some(Duration::try_from(found.started.duration_since(taken)).map_or(0, report::millis));
        if found.rpo.is_missed() {
            let (ms, target) = (found.rpo.measured_ms.unwrap_or(0), found.rpo.target_ms.unwrap_or(0));
            found.fail("E-DRILL-RPO", format!("the newest dump is {ms} ms old, and the rpo is {target} ms"));
        }
    }
}

fn text(path: &std::path::Path) -> Result<String> {
    let not_utf8 =
        || EngineError::refused("E-DRILL-DIR", format!("{} is not UTF-8", path.display()), "choose another with --dir");
    path.to_str().map(str::to_owned).ok_or_else(not_utf8)
}
