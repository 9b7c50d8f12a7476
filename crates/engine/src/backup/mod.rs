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
pub mod plan;
pub mod recheck;
mod remains;
pub mod scan;
pub mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, TimelineId};
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, CatalogStore, Claim, Evidence, JobKind, PacksOf};
use pgark_repo::codec::Compression;
use pgark_repo::manifest::{Item, ManifestWriter};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{BackupRecord, Base, Method};
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::WalArchive;

use crate::archive::{self, WalPath};
use crate::cluster::{BackupSession, ConnectOptions, Connection, Deadline, StoppedBackup};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use assemble::Summary;
use base::{Before, Parent, Wanted};
use changed::Stretch;
use claim::KeptClaim;
use copy::CopyShared;
use recheck::Rechecked;
use remains::Remains;
use scan::Noticed;
use source::SourceCluster;

/// How long PostgreSQL's checkpoint at the start may take.
const START_DEADLINE: Duration = Duration::from_secs(3600);
/// Temporary files of dead processes go when they are older; live ones are recognised besides.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);
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
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct BackupReport {
    pub entry: BackupEntry,
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
    Ok(BackupPlan {
        id: new_id(&CatalogStore::new(repo, &options.cluster), ctx.now(), ground.backup_type())?,
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
    let id = new_id(&catalog, started, ground.backup_type())?;
    let claim = catalog.claim(JobKind::Backup, &id, started)?;
    remove_remains(&catalog)?;
    repo.store().sweep_abandoned(ABANDONED_AFTER)?;
    let kept = KeptClaim::new(claim.clone(), ctx);
    let outcome = under_claim(options, repo, ctx, source, &ground, &claim, &kept, started);
    drop(kept);
    match outcome {
        Ok(mut report) => {
            claim.commit_backup(&report.entry)?;
            if let Ground::Full(reason) = ground {
                report.full_because = reason;
            }
            report.warnings.extend(warnings);
            report.warnings.dedup();
            Ok(report)
        }
        Err(e) => {
            give_up(&catalog, claim, &e);
            Err(e)
        }
    }
}

/// Everything between the claim and the commit.
#[allow(clippy::too_many_arguments)]
fn under_claim(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    source: SourceCluster,
    ground: &Ground,
    claim: &Claim,
    kept: &KeptClaim,
    started: Timestamp,
) -> Result<BackupReport> {
    let id = claim.backup();
    check_still_listed(repo, options, ground)?;
    let (total, _, _) = source.measure()?;
    source.check_space(repo, total)?;
    let archiver = Connection::open(&options.connect, options.connect_timeout)?;
    ctx.progress.note("starting: waiting for PostgreSQL's checkpoint");
    let label = format!("pgark {id}");
    let session = BackupSession::start(source.connection, &label, true, Deadline::after(START_DEADLINE))?;
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
            (Some(base), Some(before))
        }
        None => (None, None),
    };
    ctx.progress.begin("backup", Some(total));
    let copied = copy_files(options, repo, ctx, id, session.start_lsn(), &source, before, ground, kept)?;
    ctx.progress.end();
    kept.check()?;
    let pg_control = source::read_control(&options.pgdata)?;
    let stopped = session.stop(Deadline::after(STOP_DEADLINE))?;
    ctx.progress.note("waiting for the last WAL segment to arrive");
    wait_for_wal(options, repo, ctx, &source, &stopped, &archiver)?;
    kept.check()?;
    let record = write_record(options, repo, ctx, claim, &source, started, &copied, &stopped, pg_control, base)?;
    kept.check()?;
    Ok(record)
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
        remains: Remains::load(repo, &catalog, others.clone(), ctx, options.jobs)?,
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
    let history = archive::history(&wal, stopped.timeline)?;
    let size = source.control.segment_size;
    let names = WalPath::new(&history, size).segments(stopped.start_lsn, stopped.stop_lsn);
    let mut describe = || source::describe_archiver(archiver);
    archive::wait_archived(ctx, &wal, &names, size, options.archive_timeout, &mut describe)?;
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn write_record(
    options: &BackupOptions,
    repo: &Repository,
    ctx: &Ctx,
    claim: &Claim,
    source: &SourceFacts<'_>,
    started: Timestamp,
    copied: &Copied,
    stopped: &StoppedBackup,
    pg_control: Vec<u8>,
    base: Option<Base>,
) -> Result<BackupReport> {
    let id = claim.backup().clone();
    let control = source.control;
    let mut totals = copied.summary.totals.clone();
    totals.packs = copied.packs.len() as u64;
    totals.stored_bytes = copied.packs.iter().map(|(_, p)| p.size).sum::<u64>() + copied.manifest.size;
    totals.size_bytes += pg_control.len() as u64;
    totals.read_bytes += pg_control.len() as u64;
    let warnings = warnings(copied, stopped);
    let backup_type = if base.is_some() { BackupType::Incremental } else { BackupType::Full };
    let finished = ctx.now();
    let record = BackupRecord {
        id: id.clone(),
        cluster: options.cluster.clone(),
        kind: BackupKind::Physical,
        backup_type,
        program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
        system_id: control.system_id,
        version_num: source.version_num,
        catalog_version: control.catalog_version,
        segment_size: control.segment_size,
        block_size: control.block_size,
        data_checksums: control.data_checksum_version != 0,
        timeline: stopped.timeline,
        lsn_start: stopped.start_lsn,
        lsn_stop: stopped.stop_lsn,
        started,
        finished,
        from_standby: stopped.in_recovery,
        backup_label: stopped.backup_label.clone(),
        pg_control,
        tablespaces: copied.noticed.tablespaces.clone(),
        config_files: source.config_files.clone(),
        owner: source.owner.clone(),
        manifest: copied.manifest.clone(),
        totals: totals.clone(),
        bad_blocks: copied.summary.bad_blocks,
        vanished_files: copied.summary.vanished,
        warnings: warnings.clone(),
        base: base.clone(),
    };
    let print = record.store(repo)?;
    let entry = BackupEntry {
        id,
        kind: BackupKind::Physical,
        backup_type,
        system_id: control.system_id,
        version_num: record.version_num,
        started,
        finished,
        lsn_start: record.lsn_start,
        lsn_stop: record.lsn_stop,
        stopped: crate::restore::resolve::to_timestamp(stopped.stop_time),
        timeline: record.timeline,
        size_bytes: totals.size_bytes,
        read_bytes: totals.read_bytes,
        stored_bytes: totals.stored_bytes + print.size,
        bad_blocks: record.bad_blocks,
        from_standby: record.from_standby,
        kept: options.keep,
        kept_until: None,
        evidence: Evidence::Stored,
        annotations: options.annotations.clone(),
        needs: PacksOf::gather(copied.summary.used.iter().map(|(_, id)| id.clone())),
        record: print,
    };
    Ok(BackupReport {
        entry,
        vanished_files: record.vanished_files,
        base,
        full_because: None,
        rechecked: copied.rechecked.clone(),
        resumed: copied.resumed.clone(),
        warnings,
    })
}

fn warnings(copied: &Copied, stopped: &StoppedBackup) -> Vec<String> {
    let mut all = copied.noticed.warnings.clone();
    let bad = copied.summary.bad_blocks;
    if bad > 0 {
        let examples = copied.summary.bad_examples.join(", ");
        all.push(format!("{bad} pages of the source have wrong checksums: {examples}"));
    }
    if let Some(r) = copied.rechecked.as_ref().filter(|r| r.wrong > 0) {
        all.push(format!(
            "{} pages differ from the earlier backup although the WAL does not say that they changed: {}. Their files \
             were read as a whole. Take a full backup, and report this",
            r.wrong,
            r.examples.join(", ")
        ));
    }
    let notices = stopped.notices.iter().filter(|n| n.severity == "WARNING");
    all.extend(notices.map(|n| format!("PostgreSQL: {}", n.message)));
    all
}

/// The id for a backup of this moment; later than every one that was given out, so that ids order backups even when
/// several are made within a second or the clock is set back.
fn new_id(catalog: &CatalogStore, now: Timestamp, backup_type: BackupType) -> Result<BackupId> {
    let known = catalog.read()?;
    let listed = known.backups.iter().map(|b| &b.id);
    let given_out = listed
        .chain(&known.removing)
        .chain(&known.interrupted)
        .chain(known.jobs.iter().map(|j| &j.backup))
        .chain(&known.last_id);
    let last = given_out.filter_map(BackupId::time).map(|t| t.as_second().saturating_add(1)).max();
    let second = now.as_second().max(last.unwrap_or(i64::MIN));
    let at = Timestamp::from_second(second).map_err(|e| {
        EngineError::failed("E-CLOCK", format!("the clock says {now}: {e}"), "set the clock of this machine")
    })?;
    let letter = match backup_type {
        BackupType::Full => 'F',
        BackupType::Incremental => 'I',
    };
    Ok(BackupId::new(at, letter))
}

/// What interrupted backups left. Two passes: the second sees that nothing is left.
pub fn remove_remains(catalog: &CatalogStore) -> Result<()> {
    catalog.sweep()?;
    catalog.sweep()?;
    Ok(())
}

/// The backup failed; its error is what counts. What it has stored stays for the next one, unless the room is needed.
/// What cannot be cleaned up now is cleaned up by the next one.
fn give_up(catalog: &CatalogStore, claim: Claim, because: &EngineError) {
    let keep = !is_full(because);
    let cleaned = claim.abandon(keep).map_err(EngineError::from).and_then(|()| remove_remains(catalog));
    if let Err(e) = cleaned {
        tracing::warn!(%e, "the remains of the failed backup stay until the next one");
    }
}

fn is_full(error: &EngineError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        let kind = e.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = e.source();
    }
    false
}
