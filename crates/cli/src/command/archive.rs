//! `archive-push` and `archive-get`: what PostgreSQL calls, silently when all is well.

use std::path::PathBuf;

use clap::Args;
use pgark_engine::EngineError;
use pgark_engine::archive::Archives;
use pgark_engine::archive::ahead::{Ahead, is_backlog};
use pgark_engine::archive::early::Early;
use pgark_engine::archive::get::{Fetched, GetOptions, get as fetch, is_standby};
use pgark_engine::archive::prefetch::Prefetch;
use pgark_engine::archive::pressure::Pressure;
use pgark_engine::archive::push::{Damaged, PushOptions, PushReport, push_to_all};
use pgark_engine::archive::spool::Spool;
use pgark_engine::repair::mend_wal;
use pgark_engine::restore::ReadFrom;
use pgark_engine::restore::settings::RestoreFile;
use pgark_engine::several::{Member, is_its_own};
use pgark_engine::sources::{Source, Sources, Unopened};
use pgark_pg::value::SystemId;
use pgark_repo::Repository;
use pgark_repo::codec::{Compression, Recheck, WalEncoding};
use pgark_repo::names::ClusterName;
use pgark_repo::wal::Pushed;

use super::Outcome;
use super::context::{Context, Opened, engine_failure, is_away};
use super::readers::{Readers, Taken, tell};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;
use crate::settings::units::ByteSize;
use crate::store::{self, Access};

#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file, as PostgreSQL's %p
    path: PathBuf,
    /// none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "CODEC", default_value = "zstd:1")]
    compress: String,
    /// Archive a segment although a place in it is damaged; by hand, never in archive_command
    #[arg(long)]
    accept_damaged: bool,
    /// This file alone; otherwise the segments that are ready behind it are pushed beside it
    #[arg(long)]
    alone: bool,
    /// Where WAL waits while the repository cannot be reached; then it is on this machine alone [setting: wal_spool]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Bytes that may wait there [setting: wal_spool_max] [default: 10GB]
    #[arg(long, value_name = "SIZE")]
    spool_max: Option<ByteSize>,
}

/// So long `archive_command` waits for a second repository before it goes on without it.
const OTHERS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Unless the setting says otherwise.
const SPOOL_BYTES: u64 = 10_000_000_000;

pub fn push(args: PushArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    push_file(&args, global).inspect_err(|_| say_pressure(&args.path))
}

fn push_file(args: &PushArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?.admitting_writers();
    let settings = context.cluster_settings()?;
    let max_bytes = args.spool_max.map(|size| size.0).or(settings.wal_spool_max).unwrap_or(SPOOL_BYTES);
    let spool = args.spool.clone().or_else(|| settings.wal_spool.clone()).map(|dir| Spool { dir, max_bytes });
    match (push_to_repository(args, global, &context, spool.as_ref()), spool) {
        (Err(failure), Some(spool)) if is_away(&failure) => {
            spool.keep(&args.path).map_err(|e| {
                output::warning(&format!("{}: {}", failure.code, failure.message));
                engine_failure(e)
            })?;
            output::warning(&format!(
                "{} waits in the spool {}, on this machine alone: {}: {}",
                args.path.display(),
                spool.dir.display(),
                failure.code,
                failure.message
            ));
            pushed(global, &file_name(&args.path), "spooled")
        }
        (outcome, _) => outcome,
    }
}

/// The spool of the settings.
pub fn spool_of(context: &Context) -> Result<Option<Spool>, Failure> {
    let settings = context.cluster_settings()?;
    let max_bytes = settings.wal_spool_max.unwrap_or(SPOOL_BYTES);
    Ok(settings.wal_spool.clone().map(|dir| Spool { dir, max_bytes }))
}

/// Brings what waits in the spool into the repository: PostgreSQL does not ask for it again. That it fails is no
/// failure of whoever called; what waits is told by `check`.
pub fn drain_spool(context: &Context, members: &[Member]) -> Result<(), Failure> {
    let (Some(spool), cluster) = (spool_of(context)?, context.cluster()?) else { return Ok(()) };
    let mut push = |path: &std::path::Path| {
        let options = PushOptions {
            path,
            encoding: WalEncoding { compression: Compression::DEFAULT, recheck: Recheck::Yes },
            damaged: Damaged::Refuse,
            jobs: context.jobs(),
            ahead: None,
        };
        push_to_all(members, &cluster, &options, None).map(drop)
    };
    if let Err(e) = spool.drain(&mut push) {
        output::warning(&format!("WAL stays in the spool: {e}"));
    }
    Ok(())
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn push_to_repository(
    args: &PushArgs,
    global: &GlobalArgs,
    context: &Context,
    spool: Option<&Spool>,
) -> Result<Outcome, Failure> {
    let recheck = match context.cluster_settings()?.wal_recheck {
        true => Recheck::Yes,
        false => Recheck::No,
    };
    let encoding = WalEncoding { compression: super::backup::compression(&args.compress)?, recheck };
    // In a backlog an earlier call may have pushed this segment.
    let early = match args.alone || !is_backlog(&args.path) {
        true => Early::start(&args.path, encoding, context.jobs()),
        false => None,
    };
    let opened = context.open_members(Some(OTHERS_PATIENCE))?;
    let job = Job { args, context, cluster: context.cluster()?, encoding, spool };
    match job.push(&opened, early) {
        // The one that the others were compared with is of no use: perhaps they are.
        Err(e) if is_its_own(&e) && !opened.away.is_empty() && opened.members.iter().all(|m| !m.required) => {
            let refused = engine_failure(e);
            let Ok(others) = context.open_left_out(&opened, Some(OTHERS_PATIENCE)) else { return Err(refused) };
            output::warning(&format!("{}: {}", refused.code, refused.message));
            told(global, &others.members, &job.push(&others, None).map_err(engine_failure)?)
        }
        outcome => told(global, &opened.members, &outcome.map_err(engine_failure)?),
    }
}

/// What one call of `archive_command` is to do, in whichever repositories.
struct Job<'a> {
    args: &'a PushArgs,
    context: &'a Context,
    cluster: ClusterName,
    encoding: WalEncoding,
    spool: Option<&'a Spool>,
}

impl Job<'_> {
    fn push(&self, into: &Opened, early: Option<Early>) -> Result<PushReport, EngineError> {
        let (args, members) = (self.args, &into.members);
        let ahead = !args.accept_damaged && !args.alone;
        let options = PushOptions {
            path: &args.path,
            encoding: self.encoding,
            damaged: if args.accept_damaged { Damaged::Accept } else { Damaged::Refuse },
            jobs: self.context.jobs(),
            ahead: ahead.then(|| Ahead { memory: self.context.push_memory(places(members), &self.cluster) }),
        };
        if let Some(spool) = self.spool {
            // What waits there comes before this file.
            let mut push = |path: &std::path::Path| {
                push_to_all(members, &self.cluster, &PushOptions { path, ahead: None, ..options }, None).map(drop)
            };
            spool.drain(&mut push)?;
        }
        push_to_all(members, &self.cluster, &options, early)
    }
}

fn told(global: &GlobalArgs, members: &[Member], report: &PushReport) -> Result<Outcome, Failure> {
    members.iter().flat_map(|m| m.repo.store().notices()).for_each(|notice| output::warning(&notice));
    for (name, why) in &report.away {
        output::warning(&format!("repository {name} lacks {}: {}: {why}", report.file, why.code()));
    }
    let outcome = match report.outcome {
        Pushed::Stored => "stored",
        Pushed::AlreadyThere => "already_there",
        Pushed::SameRecords => "same_records",
        Pushed::Longer => "longer",
    };
    pushed(global, &report.file, outcome)
}

fn pushed(global: &GlobalArgs, file: &str, outcome: &str) -> Result<Outcome, Failure> {
    tracing::info!(target: "pgark", file, outcome, "archived");
    if global.json {
        let document = serde_json::json!({"schema": SCHEMA, "file": file, "outcome": outcome});
        output::result(global.form(), &document, String::new)?;
    }
    Ok(Exit::Done)
}

/// What was pushed ahead is known for these repositories together.
fn places(members: &[Member]) -> String {
    members.iter().map(|m| m.repo.store().url()).collect::<Vec<_>>().join(" ")
}

/// PostgreSQL's log shows this with every attempt that fails.
fn say_pressure(path: &std::path::Path) {
    if let Some(found) = path.parent().and_then(|dir| Pressure::measure(dir).ok())
        && found.waiting > 1
    {
        output::warning(&found.to_string());
    }
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// The file's name, as PostgreSQL's %f
    name: String,
    /// Where it goes, as PostgreSQL's %p
    dest: PathBuf,
    /// This segment alone; otherwise recovery that reads on finds the next ones fetched beside it
    #[arg(long)]
    alone: bool,
    /// What a restore wrote for the recovering server; no other setting is needed with it
    #[arg(long, value_name = "FILE")]
    restore_file: Option<PathBuf>,
}

/// 0 delivered, 1 provably beyond the end of the archive, 126 for everything else.
pub fn get(args: GetArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let threads = global.jobs.map_or_else(cores, |n| n.get() as usize);
    let prefetch = if args.alone { None } else { Prefetch::beside(&args.dest, threads) };
    let (asked, options) = match &args.restore_file {
        Some(path) => {
            let file = RestoreFile::read(path).map_err(engine_failure)?;
            let options = GetOptions {
                segment_size: file.segment_size,
                planned_end: Some(file.planned_end),
                newest_timeline: file.newest_timeline,
                prefetch,
            };
            (recovering(&file)?, options)
        }
        None => {
            let context = Context::new(global)?;
            let (readers, cluster) = (Readers::new(&context)?, context.cluster()?);
            let catalog = readers.sources.catalog(&cluster).map_err(|e| readers.failure(e))?;
            let lineage =
                catalog.lineage().ok_or_else(|| Failure::failed("E-CLUSTER-NONE", "the cluster has no lineage"))?;
            let options =
                GetOptions { segment_size: lineage.segment_size, planned_end: None, newest_timeline: None, prefetch };
            let archives = Archives::new(&readers.sources, &cluster, lineage.system_id);
            // A standby asks again, and streams; ending its server because one repository is away would not make it safer.
            let archives = if is_standby(&args.dest) { archives.ignoring_silence() } else { archives };
            (Asked { archives, sources: readers.sources, cluster, system_id: lineage.system_id }, options)
        }
    };
    let fetched = fetch(&asked.archives, &args.name, &args.dest, &options);
    // In PostgreSQL's log: the exit code can only tell it whether it has the file.
    asked.sources.notices().iter().for_each(|notice| output::warning(notice));
    let troubles = asked.sources.troubles();
    if !troubles.is_empty() {
        let mended = mend_wal(&asked.sources, &asked.cluster, asked.system_id, options.segment_size);
        let taken = match &fetched {
            Ok(Fetched::Delivered) => Taken::FromAnother,
            Ok(Fetched::Absent) | Err(_) => Taken::Unknown,
        };
        tell(&troubles, &mended, taken);
    }
    match fetched.map_err(engine_failure)? {
        Fetched::Delivered => Ok(Exit::Done),
        Fetched::Absent => {
            tracing::info!(target: "pgark", file = args.name, "beyond the end of the archive");
            Ok(Exit::Failed)
        }
    }
}

/// Where a call of `archive-get` looks.
struct Asked {
    archives: Archives,
    sources: Sources,
    cluster: ClusterName,
    system_id: SystemId,
}

/// By what a restore left beside the recovering server.
fn recovering(file: &RestoreFile) -> Result<Asked, Failure> {
    let source = |place: ReadFrom| -> Result<Source, Failure> {
        let keys = file.keys_of(&place).map_err(engine_failure)?;
        let url = place.repository;
        let access = Access::kept(place.access.0);
        let open = {
            let url = url.clone();
            move |_: Option<&Repository>| {
                let store = store::by_url(&url, &access)
                    .map_err(|failure| Unopened::Other(format!("{}: {}", failure.code, failure.message)))?;
                Ok(Repository::open_for_wal(store, keys.clone()).healing())
            }
        };
        let remote = !url.starts_with("file:") && !url.starts_with('/');
        Ok(Source { name: url, remote, witness: place.witness, open: Box::new(open) })
    };
    let places = file.places();
    let sources = match places.as_slice() {
        // Its own failure is the answer.
        [only] => {
            let store = store::by_url(&only.repository, &Access::kept(only.access.0.clone()))?;
            Sources::one(Repository::open_for_wal(store, file.keys_of(only).map_err(engine_failure)?).healing())
        }
        _ => Sources::new(places.into_iter().map(source).collect::<Result<_, _>>()?),
    };
    let archives = Archives::new(&sources, &file.cluster, file.system_id).never_empty();
    Ok(Asked { archives, sources, cluster: file.cluster.clone(), system_id: file.system_id })
}
