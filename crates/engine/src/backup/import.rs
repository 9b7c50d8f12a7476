//! A base backup that lies in a directory becomes a backup in the repository: an export of ours, or what pg_basebackup
//! wrote. It goes the way of every backup, but for where label, WAL and times come from.
//!
//! Invariant: nothing is listed that was not compared with PostgreSQL's list of checksums, and whose WAL is not in the
//! archive, unbroken.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use pgark_pg::control::ControlFile;
use pgark_pg::value::{Lsn, SegmentName, TimelineId};
use pgark_pg::{BackupFrom, BackupLabel, TimelineHistory};
use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, Claim, Lineage, WalNeed};
use pgark_repo::codec::{Compression, Recheck, WalEncoding};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::wal::WalArchive;

use super::base::Wanted;
use super::claim::KeptClaim;
use super::finish::write_record;
use super::job::{BackupJob, give_up, new_id};
use super::pg_list::{PgList, not_a_backup};
use super::room::RoomOptions;
use super::{BackupOptions, BackupReport, Ground, SourceFacts, copy_files, source};
use crate::archive::{self, WalPath, push};
use crate::capacity::SpaceRules;
use crate::cluster::{ConnectOptions, StoppedBackup};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::export::facts::{self, Facts};
use crate::restore::resolve::from_timestamp;
use crate::restore::space::running_postmaster;

/// What a directory says of itself.
const SMALL_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

pub struct ImportOptions {
    pub cluster: ClusterName,
    /// The data directory, or the directory in which an export has it.
    pub from: PathBuf,
    pub jobs: usize,
    pub compression: Compression,
    pub keep: bool,
    pub annotations: BTreeMap<String, String>,
}

/// What would be imported.
pub struct ImportPlan {
    pub id: BackupId,
    pub data: PathBuf,
    pub control: ControlFile,
    pub timeline: TimelineId,
    pub lsn_start: Lsn,
    pub lsn_stop: Lsn,
    pub wal: Vec<SegmentName>,
    pub size_bytes: u64,
    pub files: usize,
    /// Whether the cluster's name is new in the repository.
    pub registers: bool,
    list: PgList,
    label: Vec<u8>,
    from_standby: bool,
    facts: Option<Facts>,
}

/// Looks at what the directory says and at the catalog; reads no contents and changes nothing.
pub fn plan(options: &ImportOptions, repo: &Repository, ctx: &Ctx) -> Result<ImportPlan> {
    let (data, facts) = locate(&options.from)?;
    if running_postmaster(&data).is_some() {
        return Err(not_a_backup(&data, "a server runs on it"));
    }
    if !data.join("global/pg_control").is_file() {
        return Err(not_a_backup(&data, "it has no global/pg_control"));
    }
    let control = source::parse_control(&data, &source::read_control(&data)?)?;
    let list = PgList::read(&data)?;
    let label = small(&data.join("backup_label"))?.ok_or_else(|| not_a_backup(&data, "it has no backup_label"))?;
    let parsed = BackupLabel::parse(&label).map_err(|e| not_a_backup(&data, e))?;
    if parsed.incremental_from.is_some() {
        return Err(not_a_backup(
            &data,
            "an incremental backup of PostgreSQL: put it together with pg_combinebackup first",
        ));
    }
    let (timeline, lsn_start, lsn_stop) =
        list.wal_span().ok_or_else(|| not_a_backup(&data, "its list does not say which WAL it needs"))?;
    if lsn_start != parsed.start || !list.is_of(control.system_id) {
        return Err(not_a_backup(&data, "backup_label, pg_control and the list are not of one backup"));
    }
    // What an export says of itself is taken for what it cannot be wrong about.
    let facts =
        facts.filter(|f| f.system_id == control.system_id && f.lsn_start == lsn_start && f.lsn_stop == lsn_stop);
    let store = CatalogStore::new(repo, &options.cluster);
    let registers = match store.read() {
        Ok(catalog) => {
            if catalog.lineage().is_none_or(|l| l.system_id != control.system_id) {
                return Err(source::other_lineage(&options.cluster, &control));
            }
            if let Some(newer) = catalog.physical().iter().find(|b| b.lsn_stop >= lsn_stop) {
                return Err(EngineError::refused(
                    "E-IMPORT-ORDER",
                    format!("backup {} of '{}' is as new or newer (lsn {})", newer.id, options.cluster, newer.lsn_stop),
                    "ids and retention go by the order in which backups come in: import it under another --cluster name, \
                     which a configuration that has clusters must have, too: [clusters.NAME]",
                ));
            }
            false
        }
        Err(pgark_repo::RepoError::NoCluster { .. }) => true,
        Err(e) => return Err(e.into()),
    };
    let path = WalPath::new(&history(&data, timeline)?, control.segment_size);
    let wal = path.segments(lsn_start, lsn_stop);
    let missing = wal.iter().map(|n| n.format(control.segment_size)).find(|n| !data.join("pg_wal").join(n).is_file());
    if let Some(name) = missing {
        return Err(EngineError::refused(
            "E-IMPORT-WAL",
            format!("{}: wal segment {name}, which the backup needs, is not in its pg_wal", data.display()),
            "pg_basebackup -X stream or -X fetch brings it along; otherwise put it there from the archive",
        ));
    }
    let id = if registers { BackupId::new(ctx.now(), 'F') } else { new_id(&store, ctx.now(), 'F')? };
    Ok(ImportPlan {
        id,
        timeline,
        lsn_start,
        lsn_stop,
        wal,
        size_bytes: list.size_bytes(),
        files: list.files(),
        registers,
        list,
        label,
        from_standby: parsed.from == BackupFrom::Standby,
        facts,
        data,
        control,
    })
}

pub fn run(options: &ImportOptions, plan: &ImportPlan, repo: &Repository, ctx: &Ctx) -> Result<BackupReport> {
    ctx.progress.begin("comparing with backup_manifest", Some(plan.size_bytes));
    let same = plan.list.compare(&plan.data, ctx);
    ctx.progress.end();
    same?;
    let catalog = CatalogStore::new(repo, &options.cluster);
    catalog.register(&lineage(plan, ctx), false)?;
    let started = ctx.now();
    let id = new_id(&catalog, started, 'F')?;
    let BackupJob { claim, kept, .. } = BackupJob::begin(&catalog, repo, ctx, &id, None, started)?;
    let outcome = under_claim(options, plan, repo, ctx, &claim, &kept);
    drop(kept);
    match outcome {
        Ok(report) => {
            claim.commit_backup(&report.entry)?;
            Ok(report)
        }
        Err(e) => {
            give_up(&catalog, claim, &e);
            Err(e)
        }
    }
}

fn under_claim(
    options: &ImportOptions,
    plan: &ImportPlan,
    repo: &Repository,
    ctx: &Ctx,
    claim: &Claim,
    kept: &KeptClaim,
) -> Result<BackupReport> {
    let (system_id, size) = (plan.control.system_id, plan.control.segment_size);
    claim.need_wal(WalNeed { system_id, timeline: plan.timeline, from: plan.lsn_start, to: Some(plan.lsn_stop) })?;
    let archive = WalArchive::new(repo, &options.cluster, system_id);
    source::push_histories(&plan.data, &archive)?;
    for name in &plan.wal {
        ctx.check_cancelled()?;
        let path = plan.data.join("pg_wal").join(name.format(size));
        let what = push::PushOptions {
            path: &path,
            encoding: WalEncoding { compression: options.compression, recheck: Recheck::Yes },
            damaged: push::Damaged::Refuse,
            jobs: options.jobs,
            ahead: None,
        };
        push::push(repo, &options.cluster, &what)?;
    }
    // They are there: this compares them with each other and with the directory's own.
    let own = Some(plan.data.as_path());
    archive::wait_archived(ctx, &archive, &plan.wal, size, Duration::ZERO, own, &mut String::new)?;
    let last = plan.wal.last().map(|name| archive.index(name, size)).transpose()?;
    if let Some(end) = last.map(|index| index.valid_end).filter(|end| *end < plan.lsn_stop) {
        return Err(EngineError::refused(
            "E-IMPORT-WAL",
            format!("{}: its WAL ends at {end}, before the backup does ({})", plan.data.display(), plan.lsn_stop),
            "a segment in its pg_wal is damaged or unfinished: put the whole one there",
        ));
    }
    kept.check()?;
    let backup = backup_options(options, plan);
    let facts = plan.facts.as_ref();
    let mut owner = source::owner(&plan.data)?;
    owner.mode = facts.map_or(owner.mode, |f| f.owner.mode);
    let source = SourceFacts {
        pgdata: &plan.data,
        control: &plan.control,
        owner,
        config_files: vec![],
        version_num: lineage(plan, ctx).version_num,
    };
    ctx.progress.begin("import", Some(plan.size_bytes));
    let ground = Ground::Full(None);
    let copied = copy_files(&backup, repo, ctx, claim.backup(), plan.lsn_start, &source, None, &ground, kept);
    ctx.progress.end();
    let mut copied = copied?;
    // An export's links are relative; where tablespaces were is in what it says of itself.
    for tablespace in copied.noticed.tablespaces.iter_mut().filter(|t| !t.in_place) {
        if let Some(known) = facts.and_then(|f| f.tablespaces.iter().find(|t| t.oid == tablespace.oid)) {
            tablespace.location = known.location.clone();
        }
    }
    // Without knowing when it ended, a moment that is surely later: what lies between needs an earlier backup, or an LSN.
    let stopped_at = facts.map_or(ctx.now(), |f| f.stopped).min(ctx.now());
    let stopped = StoppedBackup {
        start_lsn: plan.lsn_start,
        stop_lsn: plan.lsn_stop,
        backup_label: plan.label.clone(),
        tablespace_map: None,
        start_timeline: plan.timeline,
        timeline: plan.timeline,
        in_recovery: plan.from_standby,
        stop_time: from_timestamp(stopped_at),
        notices: vec![],
    };
    let started: Timestamp = facts.map_or(ctx.now(), |f| f.started).min(ctx.now());
    let pg_control = source::read_control(&plan.data)?;
    write_record(&backup, repo, ctx, claim, &source, started, &copied, &stopped, pg_control, None, None)
}

fn lineage(plan: &ImportPlan, ctx: &Ctx) -> Lineage {
    let major = plan.control.major;
    let said = plan.facts.as_ref().map(|f| f.version_num).filter(|n| n / 10_000 == major.number());
    Lineage {
        system_id: plan.control.system_id,
        version_num: said.unwrap_or(major.number() * 10_000),
        catalog_version: plan.control.catalog_version,
        segment_size: plan.control.segment_size,
        registered: ctx.now(),
    }
}

/// As for a backup that reads this directory; nothing is asked of a server.
fn backup_options(options: &ImportOptions, plan: &ImportPlan) -> BackupOptions {
    BackupOptions {
        cluster: options.cluster.clone(),
        pgdata: plan.data.clone(),
        connect: ConnectOptions::new([]),
        connect_timeout: Duration::ZERO,
        wanted: Wanted::Full,
        jobs: options.jobs,
        compression: options.compression,
        verify_incremental: false,
        keep: options.keep,
        annotations: options.annotations.clone(),
        archive_timeout: Duration::ZERO,
        // What is read is not what will be stored: whoever imports knows what else lies there.
        room: RoomOptions { rules: SpaceRules::default(), ignore: true, others: vec![] },
    }
}

/// The data directory, and what an export says of itself.
fn locate(from: &Path) -> Result<(PathBuf, Option<Facts>)> {
    let from = std::path::absolute(from).map_err(|e| EngineError::file("looking at", from, e))?;
    let meta = match fs::metadata(&from) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(not_a_backup(&from, "it is not there")),
        other => other.map_err(|e| EngineError::file("looking at", &from, e))?,
    };
    if !meta.is_dir() {
        return Err(not_a_backup(&from, "not a directory: unpack it first, with tar"));
    }
    match small(&from.join(facts::FILE))? {
        None => Ok((from, None)),
        Some(bytes) => {
            let facts: Facts =
                serde_json::from_slice(&bytes).map_err(|e| not_a_backup(&from, format!("{}: {e}", facts::FILE)))?;
            if facts.schema != 1 {
                return Err(not_a_backup(&from, "exported by a newer pgark"));
            }
            Ok((from.join("data"), Some(facts)))
        }
    }
}

/// A small file's content; None when it is not there.
fn small(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |e| EngineError::file("reading", path, e);
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut bytes = vec![];
    file.take(SMALL_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > SMALL_FILE_BYTES_MAX {
        true => Err(not_a_backup(path, "far too large for its kind")),
        false => Ok(Some(bytes)),
    }
}

fn history(data: &Path, timeline: TimelineId) -> Result<TimelineHistory> {
    if timeline.get() == 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    let path = data.join(format!("pg_wal/{}.history", timeline.hex()));
    let bytes = small(&path)?.ok_or_else(|| not_a_backup(&path, "the history of its timeline is missing"))?;
    TimelineHistory::parse(timeline, &bytes).map_err(|e| not_a_backup(&path, e))
}
