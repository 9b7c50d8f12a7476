//! What a repository holds of a cluster: backups, the windows that can be recovered to, and the gaps.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pgark_pg::history::TimelineHistory;
use pgark_pg::value::{Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_repo::catalog::{
    BackupEntry, BackupKind, CatalogStore, ExpiredBackup, Job, JobKind, Lineage, PhysicalBackup,
};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::PartsRecord;
use pgark_repo::wal::{SegmentRange, WalArchive, WalHead};
use pgark_repo::{RepoError, Repository};

use crate::archive::{self, Archives, WalPath};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::resolve::to_timestamp;
use crate::restore::walk::WalView;

#[derive(Clone, Debug)]
pub struct ClusterInfo {
    pub name: ClusterName,
    pub system_id: SystemId,
    pub version_num: u32,
    pub segment_size: SegmentSize,
    pub windows: Vec<Window>,
    pub gaps: Vec<Gap>,
    pub backups: Vec<BackupEntry>,
    /// What retention has given up and not yet removed: backups, and WAL segments.
    pub expired_backups: Vec<ExpiredBackup>,
    pub expired_segments: u64,
    /// When the last of that is due.
    pub expired_due: Option<Timestamp>,
    /// Under way, or interrupted and not yet cleaned up.
    pub incomplete: Vec<Incomplete>,
    /// What could not be determined, and why.
    pub problems: Vec<String>,
    /// What a writer's secret is not for.
    pub not_opened: Vec<String>,
}

impl ClusterInfo {
    /// Physical backups of the system in force that no window begins with: WAL that they themselves need is not there. None where
    /// the windows are not all known.
    pub fn unrestorable(&self) -> Vec<BackupId> {
        if !self.problems.is_empty() || !self.not_opened.is_empty() {
            return vec![];
        }
        let served: BTreeSet<&BackupId> = self.windows.iter().flat_map(|w| &w.backups).collect();
        let own = self.backups.iter().filter(|b| b.as_physical().is_some() && b.system_id == self.system_id);
        let lost = own.filter(|b| b.damaged.is_none() && !served.contains(&b.id));
        lost.map(|b| b.id.clone()).collect()
    }
}

/// Every moment from the first backup's end to the end of unbroken WAL can be restored, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub timeline: TimelineId,
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub from_time: Option<Timestamp>,
    pub to_time: Option<Timestamp>,
    /// The backups that serve it, oldest first.
    pub backups: Vec<BackupId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub timeline: TimelineId,
    pub first: SegmentNo,
    pub last: SegmentNo,
}

#[derive(Clone, Debug)]
pub struct Incomplete {
    pub id: BackupId,
    pub started: Option<Timestamp>,
    pub running: bool,
}

/// `only`: one cluster; otherwise all of them.
pub fn info(repo: &Repository, only: Option<&ClusterName>, ctx: &Ctx) -> Result<Vec<ClusterInfo>> {
    let names = match (only, repo.keys().writes_only()) {
        (Some(n), _) => vec![n.clone()],
        // The books of others are not for it to read.
        (None, Some(own)) => vec![own],
        (None, None) => repo.clusters()?,
    };
    names.iter().map(|n| cluster(repo, n, ctx)).collect()
}

/// Of so many series the newest dump is looked into.
const SERIES_MAX: usize = 32;

/// A database that can be restored from a dump, and the newest one that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    pub database: String,
    /// Some of its schemas or tables alone.
    pub is_partial: bool,
    pub backup: BackupId,
    /// The moment that the dump is of, or a little later.
    pub begun: Timestamp,
}

/// Where dumps are all there is of a cluster's databases: of which they are, by the newest one of each series. One object is read for
/// each. None where there are physical backups, which are of all databases, and where the records are not for us to open.
///
/// # Errors
/// When a record cannot be read.
pub fn dumped(repo: &Repository, info: &ClusterInfo) -> Result<Option<Vec<Dumped>>> {
    if info.backups.iter().any(|b| b.kind == BackupKind::Physical) {
        return Ok(None);
    }
    let mut found: BTreeMap<(String, bool), Dumped> = BTreeMap::new();
    for backup in newest_of_series(&info.backups).into_iter().take(SERIES_MAX) {
        let record = match PartsRecord::load(repo, &info.name, &backup.id, &backup.record) {
            Err(RepoError::WriteOnly { .. }) => return Ok(None),
            record => record?,
        };
        for dump in &record.databases {
            let (database, is_partial) = (dump.name.clone(), dump.is_partial());
            found.entry((database.clone(), is_partial)).or_insert_with(|| Dumped {
                database,
                is_partial,
                backup: backup.id.clone(),
                begun: backup.started,
            });
        }
    }
    Ok(Some(found.into_values().collect()))
}

/// The newest first; what was found damaged restores nothing.
fn newest_of_series(backups: &[BackupEntry]) -> Vec<&BackupEntry> {
    let mut dumps: Vec<&BackupEntry> = backups
        .iter()
        .filter(|b| matches!(b.kind, BackupKind::Logical | BackupKind::System) && b.damaged.is_none())
        .collect();
    dumps.sort_by_key(|b| std::cmp::Reverse(b.started));
    let mut seen = vec![];
    dumps.retain(|b| {
        let series = (b.kind, b.series.clone());
        let is_new = !seen.contains(&series);
        seen.push(series);
        is_new
    });
    dumps
}

fn cluster(repo: &Repository, name: &ClusterName, ctx: &Ctx) -> Result<ClusterInfo> {
    let catalog = CatalogStore::new(repo, name).read()?;
    let lineage = catalog
        .lineage()
        .ok_or_else(|| RepoError::NoCluster { url: repo.store().url(), cluster: name.to_string() })?
        .clone();
    let now = ctx.now();
    let mut incomplete: Vec<Incomplete> = catalog
        .jobs
        .iter()
        .filter(|j| j.kind == JobKind::Backup)
        .filter_map(|j: &Job| {
            Some(Incomplete { id: j.backup.clone()?, started: Some(j.started), running: !j.is_dead(now) })
        })
        .collect();
    let left = catalog.interrupted.iter().map(|id| Incomplete { id: id.clone(), started: None, running: false });
    incomplete.extend(left);
    let found = windows(repo, name, &lineage, &catalog.physical());
    let unknown = |e: EngineError| format!("the recoverable windows are unknown: {e}");
    let ((windows, gaps, unopened), problems) = match found {
        Ok(found) => (found, vec![]),
        Err(e) => (Default::default(), vec![unknown(e)]),
    };
    let due = catalog.expired.iter().map(|e| e.due).chain(catalog.wal_expiries.iter().map(|e| e.due));
    let segments = catalog.wal_expiries.iter().flat_map(|e| &e.ranges).map(SegmentRange::count);
    Ok(ClusterInfo {
        expired_backups: catalog.expired.clone(),
        expired_segments: segments.sum(),
        expired_due: due.max(),
        name: name.clone(),
        system_id: lineage.system_id,
        version_num: lineage.version_num,
        segment_size: lineage.segment_size,
        windows,
        gaps,
        backups: catalog.backups,
        incomplete,
        problems,
        not_opened: unopened.describe(),
    })
}

/// What a writer's secret does not open, because it is from before there was a writer.
#[derive(Default)]
struct Unopened {
    backups: usize,
    timelines: Vec<TimelineId>,
}

impl Unopened {
    fn describe(&self) -> Vec<String> {
        let before = "from before there was a writer, and are not for it to open";
        let mut all = vec![];
        if self.backups > 0 {
            all.push(format!("the recoverable windows of {} backups rest on WAL segments {before}", self.backups));
        }
        for timeline in &self.timelines {
            all.push(format!("the recoverable windows on timeline {timeline} rest on files {before}"));
        }
        all
    }
}

fn windows(
    repo: &Repository,
    name: &ClusterName,
    lineage: &Lineage,
    backups: &[PhysicalBackup],
) -> Result<(Vec<Window>, Vec<Gap>, Unopened)> {
    let wal = WalArchive::new(repo, name, lineage.system_id);
    // A window must not promise what is no longer there.
    let head = wal.present(&wal.head()?, lineage.segment_size)?;
    let archives = Archives::one(&wal);
    let gaps = gaps(&head);
    let mut out: Vec<Window> = vec![];
    let mut unopened = Unopened::default();
    for span in head.timelines().iter().filter(|t| t.last().is_some()) {
        let history = match archive::history(&wal, span.timeline) {
            Err(EngineError::Repo(RepoError::WriteOnly { .. })) => {
                unopened.timelines.push(span.timeline);
                continue;
            }
            found => found?,
        };
        let path = WalPath::new(&history, lineage.segment_size);
        let mut on_path: Vec<&PhysicalBackup> = backups
            .iter()
            // What is known to be damaged is no promise.
            .filter(|b| b.system_id == lineage.system_id && b.damaged.is_none())
            .filter(|b| path.contains(b.timeline, b.lsn_stop))
            .collect();
        on_path.sort_by_key(|b| b.lsn_stop);
        // One for all of them, since most end with the same segment.
        let mut view = WalView::new(&archives, path, &head);
        for backup in on_path {
            let found = match window(&mut view, &history, backup) {
                Err(EngineError::Repo(RepoError::WriteOnly { .. })) => {
                    unopened.backups += 1;
                    continue;
                }
                found => found?,
            };
            let Some(window) = found else { continue };
            match out.iter_mut().find(|w| w.timeline == window.timeline && w.to_lsn == window.to_lsn) {
                Some(known) => known.backups.push(backup.id.clone()),
                None => out.push(window),
            }
        }
    }
    Ok((out, gaps, unopened))
}

/// What can be reached from one backup along one timeline's history, whose path the view has.
fn window(view: &mut WalView<'_>, history: &TimelineHistory, backup: &PhysicalBackup) -> Result<Option<Window>> {
    let Some(last) = view.last_segment(backup.lsn_start) else { return Ok(None) };
    // A window on a timeline ends on it; what ends before it began is the window of an older one.
    if view.path.timeline_of(last) != history.target {
        return Ok(None);
    }
    let Some(end) = view.last_record(backup.lsn_start, last)? else { return Ok(None) };
    if end.end < backup.lsn_stop {
        return Ok(None);
    }
    let mut to_time = None;
    let mut at = last;
    while to_time.is_none() && at >= view.segment_of(backup.lsn_stop) {
        to_time = view.index(at)?.max_time.map(|t| to_timestamp(PgTimestamp(t)));
        if at.0 == 0 {
            break;
        }
        at = SegmentNo(at.0 - 1);
    }
    Ok(Some(Window {
        timeline: history.target,
        from_lsn: backup.lsn_stop,
        to_lsn: end.end,
        from_time: Some(backup.stopped),
        to_time: to_time.map(|t| t.max(backup.stopped)).or(Some(backup.stopped)),
        backups: vec![backup.id.clone()],
    }))
}

fn gaps(head: &WalHead) -> Vec<Gap> {
    let of = |t: &pgark_repo::wal::TimelineSpan| {
        let timeline = t.timeline;
        t.gaps().into_iter().map(move |(first, last)| Gap { timeline, first, last }).collect::<Vec<_>>()
    };
    head.timelines().iter().flat_map(of).collect()
}

impl Gap {
    /// Name of its first and of its last missing segment.
    pub fn names(&self, size: SegmentSize) -> (String, String) {
        let name = |segment| SegmentName { timeline: self.timeline, segment }.format(size);
        (name(self.first), name(self.last))
    }
}
