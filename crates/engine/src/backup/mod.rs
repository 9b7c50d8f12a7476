//! A physical backup of a running cluster, read beside the server.
//!
//! Invariant: the catalog lists the backup only after everything it needs has been stored durably: packs,
//! manifest, record, and its WAL from start to stop, unbroken.

pub mod assemble;
pub mod base;
mod cache;
mod changed;
pub(crate) mod claim;
mod compose;
pub mod copy;
mod dispatch;
mod finish;
pub mod import;
pub(crate) mod job;
mod pg_list;
pub mod plan;
pub mod recheck;
mod remains;
pub mod room;
pub mod scan;
pub mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, TimelineId};
use pgark_pg::wal::Changes;
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupType, CatalogStore, Claim, PhysicalBackup, Reading, WalNeed};
use pgark_repo::codec::Compression;
use pgark_repo::manifest::{Item, ManifestWriter};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{Base, Method};
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::WalArchive;

use crate::archive::{self, WalPath};
use crate::cluster::{BackupSession, ConnectOptions, Connection, Deadline, StoppedBackup};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::resolve::to_timestamp;
use assemble::Summary;
use base::{Before, Parent, Wanted};
use changed::Stretch;
use claim::KeptClaim;
use copy::CopyShared;
use finish::write_record;
pub(crate) use job::ABANDONED_AFTER;
use job::{BackupJob, letter, new_id};
use recheck::Rechecked;
use remains::Remains;
use room::{Need, Ratio, RoomOptions};
use scan::Noticed;
use source::SourceCluster;

/// How long PostgreSQL's checkpoint at the start may take.
const START_DEADLINE: Duration = Duration::from_secs(3600);
const STOP_DEADLINE: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub struct BackupOptions {
    pub cluster: ClusterName,
    pub pgdata: PathBuf,
    pub connect: ConnectOptions,
    pub connect_timeout: Duration,
    pub wanted: Wanted,
    pub jobs: usize,
    pub compression: Compression,
    /// Read and compare also what the WAL says has not changed.
    pub verify_incremental: bool,
    pub keep: bool,
    pub annotations: BTreeMap<String, String>,
    /// How long to wait at the end until the last WAL segment has arrived.
    pub archive_timeout: Duration,
    pub room: RoomOptions,
}

/// What a backup would do.
#[derive(Clone, Debug)]
pub struct BackupPlan {
    pub id: BackupId,
    pub backup_type: BackupType,
    /// The backup that it would take over from.
    pub base: Option<BackupId>,
    pub timeline: TimelineId,
    pub size_bytes: u64,
    pub files: u64,
    pub tablespaces: usize,
    /// What it would add to the repository; of an incremental one that is known when its changes are.
    pub need: Option<Need>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct BackupReport {
    pub entry: PhysicalBackup,
    pub vanished_files: u64,
    pub base: Option<Base>,
    /// Why a backup that was to be incremental is a full one.
    pub full_because: Option<String>,
    /// What `verify_incremental` found, where there was something to compare with.
    pub rechecked: Option<Rechecked>,
    pub resumed: Resumed,
    pub warnings: Vec<String>,
}

/// What could be used of interrupted backups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    pub backups: Vec<BackupId>,
    /// Stored bytes.
    pub bytes: u64,
}

/// What a backup rests on: an earlier one, or the reason why it is a full one although another was wanted.
enum Ground {
    Full(Option<String>),
    On(Box<Parent>),
}

impl Ground {
    fn choose(
        options: &BackupOptions,
        repo: &Repository,
        source: &SourceCluster,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        if options.wanted == Wanted::Full {
            return Ok(Ground::Full(None));
        }
        if repo.keys().writes_only().is_some() {
            return Ok(Ground::Full(Some(
                "the secret at hand is a writer's, which cannot read earlier backups".into(),
            )));
        }
        let catalog = CatalogStore::new(repo, &options.cluster).read()?;
        let chosen = base::choose(options.wanted, repo, &options.cluster, &catalog, &source.control, warnings)?;
        Ok(match chosen {
            Ok(parent) => Ground::On(Box::new(parent)),
            Err(reason) => Ground::Full(Some(reason)),
        })
    }

    fn backup_type(&self) -> BackupType {
        match self {
            Ground::Full(_) => BackupType::Full,
            Ground::On(_) => BackupType::Incremental,
        }
    }

    fn full_because(&self) -> Option<String> {
        match self {
            Ground::Full(reason) => reason.clone(),
            Ground::On(_) => None,
        }
    }

    fn parent(&self) -> Option<&Parent> {
        match self {
            Ground::Full(_) => None,
            Ground::On(parent) => Some(parent),
        }
    }
}

/// Looks at everything and changes nothing.
pub fn plan(options: &BackupOptions, repo: &Repository, ctx: &Ctx) -> Result<BackupPlan> {
    let source = SourceCluster::connect(options, repo)?;
    let (size_bytes, files, mut noticed) = source.measure()?;
    let ground = Ground::choose(options, repo, &source, &mut noticed.warnings)?;
    let mut estimate = Estimate::make(options, repo, &source, &ground, size_bytes, ctx)?;
    noticed.warnings.extend(estimate.check_before(options, repo, ctx)?);
    Ok(BackupPlan {
        need: estimate.full,
        id: new_id(&CatalogStore::new(repo, &options.cluster), ctx.now(), letter(ground.backup_type()))?,
        backup_type: ground.backup_type(),
        base: ground.parent().map(|p| p.record.id.clone()),
        timeline: source.timeline,
        size_bytes,
        files,
        tablespaces: noticed.tablespaces.len(),
        warnings: noticed.warnings,
    })
}

pub fn run(options: &BackupOptions, repo: &Repository, ctx: &Ctx) -> Result<BackupReport> {
    let source = SourceCluster::connect(options, repo)?;
    let catalog = CatalogStore::new(repo, &options.cluster);
    let started = ctx.now();
    let mut warnings = vec![];
    let ground = Ground::choose(options, repo, &source, &mut warnings)?;
    let (total, _, _) = source.measure()?;
    let mut estimate = Estimate::make(options, repo, &source, &ground, total, ctx)?;
    warnings.extend(estimate.check_before(options, repo, ctx)?);
    let id = new_id(&catalog, started, letter(ground.backup_type()))?;
    let base = ground.parent().map(|p| p.record.id.clone());
    let begun = BackupJob::begin(&catalog, repo, ctx, &id, base, started)?;
    let outcome = under_claim(options, repo, ctx, source, &ground, &estimate, &begun.claim, &begun.kept, started);
    let (mut report, more) = begun.conclude(outcome, |report| &report.entry)?;
    report.warnings.extend(more);
    if let Ground::Full(reason) = ground {
        report.full_because = reason;
    }
    report.warnings.extend(warnings);
    report.warnings.dedup();
    Ok(report)
}

/// Everything between the claim and the commit.
#[allow(clippy::too_many_arguments)]
fn under_claim(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    source: SourceCluster,
    ground: &Ground,
    estimate: &Estimate,
    claim: &Claim,
    kept: &KeptClaim,
    started: Timestamp,
) -> Result<(BackupReport, Reading)> {
    let id = claim.backup();
    check_still_listed(repo, options, ground)?;
    let archiver = Connection::open(&options.connect, options.connect_timeout)?;
    ctx.progress.note("starting: waiting for PostgreSQL's checkpoint");
    let label = format!("pgark {id}");
    let session = BackupSession::start(source.connection, &label, true, Deadline::after(START_DEADLINE))?;
    let system_id = source.control.system_id;
    claim.need_wal(WalNeed { system_id, timeline: session.timeline(), from: session.start_lsn(), to: None })?;
    let source = SourceFacts {
        pgdata: &options.pgdata,
        control: &source.control,
        owner: source.owner,
        config_files: source.config_files,
        version_num: source.version_num,
    };

    let (base, before) = match ground.parent() {
        Some(parent) => {
            let (base, before) = take_over(options, repo, ctx, parent, &session, &source)?;
            estimate.check_changes(options, repo, &source, before.changes.as_ref(), ctx)?;
            (Some(base), Some(before))
        }
        None => (None, None),
    };
    ctx.progress.begin("backup", Some(estimate.total));
    let copied = copy_files(options, repo, ctx, id, session.start_lsn(), &source, before, ground, kept)?;
    ctx.progress.end();
    kept.check()?;
    let pg_control = source::read_control(&options.pgdata)?;
    let stopped = session.stop(Deadline::after(STOP_DEADLINE))?;
    let server_ahead = to_timestamp(stopped.stop_time).duration_since(ctx.now());
    ctx.progress.note("waiting for the last WAL segment to arrive");
    wait_for_wal(options, repo, ctx, &source, &stopped, &archiver)?;
    kept.check()?;
    let because = ground.full_because().filter(|_| repo.keys().writes_only().is_some());
    let report =
        write_record(options, repo, ctx, claim, &source, started, &copied, &stopped, pg_control, base, because)?;
    let mut reading = crate::clock::with_object(repo, &names::record(&options.cluster, id), ctx)?;
    reading.server = reading.wall.checked_add(server_ahead).ok();
    kept.check()?;
    Ok((report, reading))
}

/// What the backup will take.
struct Estimate {
    /// Of the data directory.
    total: u64,
    ratio: Ratio,
    /// None for an incremental one.
    full: Option<Need>,
    /// There is room for everything, whatever has changed.
    ample: bool,
}

impl Estimate {
    fn make(
        options: &BackupOptions,
        repo: &Repository,
        source: &SourceCluster,
        ground: &Ground,
        total: u64,
        ctx: &Ctx,
    ) -> Result<Self> {
        let catalog = CatalogStore::new(repo, &options.cluster).read()?;
        let ratio = room::ratio(source, &catalog, total, options.compression, ctx)?;
        let full = match ground {
            Ground::Full(_) => Some(room::full_need(repo, &catalog, total, &ratio, ctx)?),
            Ground::On(_) => None,
        };
        Ok(Estimate { total, ratio, full, ample: false })
    }

    /// Of an incremental backup only that there is room at all.
    fn check_before(&mut self, options: &BackupOptions, repo: &Repository, ctx: &Ctx) -> Result<Vec<String>> {
        if let Some(need) = &self.full {
            return room::check(need, &options.room, repo, &options.cluster, ctx);
        }
        let most = Need { bytes: self.ratio.of(self.total), how: "everything".into() };
        self.ample = room::fits(&most, &options.room, repo, &options.cluster, ctx)?;
        if self.ample {
            return Ok(vec![]);
        }
        let least = Need { bytes: 0, how: "its changes are not known yet".into() };
        room::check(&least, &options.room, repo, &options.cluster, ctx)
    }

    /// What changed is known now, and nothing of the backup is written yet. Where everything is read and compared it stays
    /// unknown.
    fn check_changes(
        &self,
        options: &BackupOptions,
        repo: &Repository,
        source: &SourceFacts<'_>,
        changes: Option<&Changes>,
        ctx: &Ctx,
    ) -> Result<()> {
        let Some(changes) = changes.filter(|_| !self.ample) else { return Ok(()) };
        let need = room::incremental_need(source.pgdata, source.control, changes, &self.ratio)?;
        for warning in room::check(&need, &options.room, repo, &options.cluster, ctx)? {
            ctx.progress.note(&warning);
        }
        Ok(())
    }
}

/// Between the choice and the claim the earlier backup may have been deleted.
fn check_still_listed(repo: &Repository, options: &BackupOptions, ground: &Ground) -> Result<()> {
    let Some(parent) = ground.parent() else { return Ok(()) };
    let id = &parent.record.id;
    match CatalogStore::new(repo, &options.cluster).read()?.backup(id) {
        Some(_) => Ok(()),
        None => Err(EngineError::failed(
            "E-BACKUP-BASE",
            format!("backup {id} was deleted while this one was about to build on it"),
            "run the backup again",
        )),
    }
}

/// Finds out what changed since the earlier backup, as well as it can be known.
fn take_over(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    parent: &Parent,
    session: &BackupSession,
    source: &SourceFacts<'_>,
) -> Result<(Base, Before)> {
    let wal = WalArchive::new(repo, &options.cluster, source.control.system_id);
    source::push_histories(source.pgdata, &wal)?;
    ctx.progress.note(&format!("looking at the WAL since backup {}", parent.record.id));
    let stretch = Stretch {
        ctx,
        wal: &wal,
        pgdata: source.pgdata,
        control: source.control,
        from: &parent.record,
        to: session.start_lsn(),
        timeline: session.timeline(),
        jobs: options.jobs,
    };
    let (method, reason, changes) = match stretch.changes()? {
        Ok(changes) => (Method::Blocks, None, Some(changes)),
        Err(reason) => {
            ctx.progress.note(&format!("everything is read and compared: {reason}"));
            (Method::Contents, Some(reason), None)
        }
    };
    let before = Before::open(repo, &options.cluster, parent, changes)?;
    Ok((Base { backup: parent.record.id.clone(), method, reason }, before))
}

/// What later steps need of the source once its connection has gone into the session.
struct SourceFacts<'a> {
    pgdata: &'a std::path::Path,
    control: &'a pgark_pg::ControlFile,
    owner: pgark_repo::record::Owner,
    config_files: Vec<pgark_repo::record::ConfigFile>,
    version_num: u32,
}

struct Copied {
    resumed: Resumed,
    summary: Summary,
    noticed: Noticed,
    rechecked: Option<Rechecked>,
    manifest: Fingerprint,
    packs: Vec<(u32, Fingerprint)>,
}

#[allow(clippy::too_many_arguments)]
fn copy_files(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    id: &BackupId,
    start: Lsn,
    source: &SourceFacts<'_>,
    before: Option<Before>,
    ground: &Ground,
    kept: &KeptClaim,
) -> Result<Copied> {
    let others = before.as_ref().map(Before::taken).unwrap_or_default();
    let catalog = CatalogStore::new(repo, &options.cluster);
    let shared = CopyShared {
        ctx,
        repo,
        cluster: &options.cluster,
        id,
        pgdata: source.pgdata,
        compression: options.compression,
        check_pages: (source.control.data_checksum_version != 0).then_some(start),
        relation_segment_blocks: source.control.relation_segment_blocks,
        next_pack: AtomicU32::new(1),
        remains: match repo.keys().writes_only() {
            None => Remains::load(repo, &catalog, others.clone(), ctx, options.jobs)?,
            // A writer cannot read what was left; it stores everything again.
            Some(_) => Remains::default(),
        },
        stop: AtomicBool::new(false),
    };
    let manifest_name = names::manifest(&options.cluster, id);
    let manifest = ManifestWriter::create(repo.store().as_ref(), repo.keys(), &manifest_name)?;
    // Without known changes everything is read and compared anyway.
    let known = before.as_ref().is_some_and(|b| b.changes.is_some());
    let recheck = (options.verify_incremental && known).then_some(start);
    let done = dispatch::copy_all(&shared, source.control.major, manifest, before, others, recheck, options.jobs)?;
    kept.check()?;
    let (mut manifest, mut packs) = (done.manifest, done.packs);
    packs.sort_by_key(|(number, _)| *number);
    for (number, print) in &packs {
        manifest.push(&Item::PackDone(base::number_of_own(*number), print.clone()))?;
    }
    let known = ground.parent().map(|p| &p.packs);
    for (index, id) in &done.summary.used {
        let print = known.and_then(|packs| packs.get(id)).or_else(|| shared.remains.fingerprint(id));
        let print = print.expect("taken over from the earlier manifest, or read as a whole");
        manifest.push(&Item::PackDone(*index, print.clone()))?;
    }
    let resumed = Resumed { backups: shared.remains.used_of(), bytes: shared.remains.used_bytes() };
    Ok(Copied {
        resumed,
        summary: done.summary,
        noticed: done.noticed,
        rechecked: done.rechecked,
        manifest: manifest.finish()?,
        packs,
    })
}

fn wait_for_wal(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    source: &SourceFacts<'_>,
    stopped: &StoppedBackup,
    archiver: &Connection,
) -> Result<()> {
    let wal = WalArchive::new(repo, &options.cluster, source.control.system_id);
    source::push_histories(source.pgdata, &wal)?;
    let history = source::history(source.pgdata, &wal, stopped.timeline)?;
    let size = source.control.segment_size;
    let names = WalPath::new(&history, size).segments(stopped.start_lsn, stopped.stop_lsn);
    let mut describe = || source::describe_archiver(archiver);
    let own = Some(options.pgdata.as_path());
    archive::wait_archived(ctx, &wal, &names, size, options.archive_timeout, own, &mut describe)?;
    Ok(())
}
