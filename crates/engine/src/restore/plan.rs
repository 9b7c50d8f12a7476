//! The plan of a restore: which backup, along which timelines, to which record. Nothing is written here.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, PgTimestamp, SegmentName, SegmentNo, TimelineId};
use pgark_repo::RepoError;
use pgark_repo::catalog::{Catalog, Lineage, PhysicalBackup};
use pgark_repo::names::BackupId;
use pgark_repo::record::BackupRecord;
use pgark_repo::wal::{WalArchive, WalHead};

use super::resolve::{Resolved, StopAt, from_timestamp, resolve};
use super::walk::WalView;
use super::{RestoreOptions, Target, TimelineChoice};
use crate::archive::{Archives, Continuity, WalPath};
use crate::error::{EngineError, Result};
use crate::sources::{Sources, TroubleKind, joined};

#[derive(Clone, Debug)]
pub struct RestorePlan {
    pub backup: PhysicalBackup,
    /// Numbers of the sources that list this backup.
    pub holders: Vec<usize>,
    pub record: BackupRecord,
    pub target: Target,
    pub stop: StopAt,
    pub path: WalPath,
    /// The timeline on which replay stops.
    pub timeline: TimelineId,
    pub wal_from: SegmentName,
    pub wal_to: SegmentName,
    /// The newest timeline that any repository has WAL or the history of.
    pub newest_timeline: TimelineId,
    /// Said to the person who restores: fall-backs, ambiguities.
    pub notes: Vec<String>,
}

/// End of what is said of a backup that holds damaged pages.
pub const DAMAGED_IN_SOURCE: &str = "pages that were damaged in the source";

/// Which WAL is counted on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wal {
    /// What was acknowledged.
    Booked,
    /// Of that, what the store still lists.
    Present,
}

/// `avoid`: backups that turned out to be damaged.
pub fn plan(options: &RestoreOptions, sources: &Sources, avoid: &[BackupId]) -> Result<RestorePlan> {
    match plan_by(options, sources, avoid, Wal::Booked) {
        // Somebody removed what the books have. What lies before it can be reached all the same.
        // Not so everything that is archived: without what is gone it would end early.
        Err(e) if e.repo().is_some_and(RepoError::is_not_found) && !matches!(options.target, Target::Latest) => {
            plan_by(options, sources, avoid, Wal::Present)
        }
        planned => planned,
    }
}

/// What the plan is made by.
struct Books<'a> {
    options: &'a RestoreOptions,
    sources: &'a Sources,
    catalogs: &'a [(usize, Catalog)],
    /// What any of them lists.
    all: &'a Catalog,
    by: Wal,
}

fn plan_by(options: &RestoreOptions, sources: &Sources, avoid: &[BackupId], by: Wal) -> Result<RestorePlan> {
    let catalogs = sources.catalogs(&options.cluster)?;
    let all = joined(&catalogs).expect("there is at least one");
    notice_lost_archives(sources, options, &catalogs)?;
    let books = Books { options, sources, catalogs: &catalogs, all: &all, by };
    if let Some((id, at)) = options.backup.as_ref().and_then(|id| Some((id, books.damaged(id)?))) {
        let note = format!("DEGRADED: backup {id} was found damaged at {at}");
        return books.plan(avoid, vec![note]);
    }
    let physical = all.physical();
    let damaged = physical.iter().filter(|b| books.damaged(&b.id).is_some() && !avoid.contains(&b.id));
    let damaged: Vec<BackupId> = damaged.map(|b| b.id.clone()).collect();
    if damaged.is_empty() {
        return books.plan(avoid, vec![]);
    }
    let others: Vec<BackupId> = avoid.iter().chain(&damaged).cloned().collect();
    match books.plan(&others, vec![]) {
        // Better tried than refused: much of it may be whole.
        Err(EngineError::Refused { .. }) => {
            let note =
                |id: &BackupId| format!("DEGRADED: backup {id} was found damaged, and no other reaches the target");
            books.plan(avoid, damaged.iter().map(note).collect())
        }
        planned => planned,
    }
}

/// A repository that lists backups and knows of no WAL has lost its archive: whatever the others have of it, that is told.
fn notice_lost_archives(sources: &Sources, options: &RestoreOptions, catalogs: &[(usize, Catalog)]) -> Result<()> {
    if catalogs.len() < 2 {
        return Ok(());
    }
    for (n, catalog) in catalogs {
        let system_ids = catalog.physical().into_iter().map(|b| b.system_id).collect::<BTreeSet<_>>();
        for system_id in system_ids {
            let head =
                sources.repo(*n).and_then(|repo| Ok(WalArchive::new(&repo, &options.cluster, system_id).head()?));
            match head {
                Ok(head) if head.timelines().is_empty() => {
                    sources.remember(
                        *n,
                        TroubleKind::Missing,
                        None,
                        "it lists backups, and its WAL archive is gone".into(),
                    );
                }
                Ok(_) => {}
                Err(e) if sources.passes(*n, &e) => {}
                Err(e) => return Err(sources.named(*n, e)),
            }
        }
    }
    Ok(())
}

impl Books<'_> {
    /// When it was found damaged, if it was in every repository that lists it.
    fn damaged(&self, id: &BackupId) -> Option<Timestamp> {
        let found: Option<Vec<Timestamp>> =
            self.catalogs.iter().filter_map(|(_, c)| c.backup(id)).map(|b| b.damaged).collect();
        found?.into_iter().max()
    }

    fn plan(&self, avoid: &[BackupId], mut notes: Vec<String>) -> Result<RestorePlan> {
        let Books { options, sources, catalogs, all, by } = *self;
        let candidates = candidates(all, options, avoid)?;
        let lineage = lineage(all, &candidates[0])?;
        let wal = Archives::new(sources, &options.cluster, lineage.system_id);
        let head = match by {
            Wal::Booked => wal.head()?,
            Wal::Present => wal.present_head(lineage.segment_size)?,
        };
        notes.extend(avoid.iter().map(|id| format!("DEGRADED: backup {id} is damaged and was not used")));
        for timeline in timelines(options.timeline, &head, &candidates) {
            let history = wal.history(timeline)?;
            let path = WalPath::new(&history, lineage.segment_size);
            let on_path: Vec<&PhysicalBackup> =
                candidates.iter().filter(|b| path.contains(b.timeline, b.lsn_stop)).collect();
            if on_path.is_empty() {
                continue;
            }
            let mut view = WalView::new(&wal, path, &head);
            let Some((backup, stop)) = choose(&mut view, &on_path, &options.target)? else {
                return Err(before_first(&on_path, options));
            };
            if options.timeline == TimelineChoice::Latest {
                refuse_ambiguous(&wal, &head, &view.path, options)?;
            }
            // What another one lacks of it is not missing there.
            let lists = |c: &Catalog| c.backup(&backup.id).is_some_and(|b| b.record == backup.record);
            let holders: Vec<usize> = catalogs.iter().filter(|(_, c)| lists(c)).map(|(n, _)| *n).collect();
            let load = sources
                .only(&holders)
                .each(|_, repo| Ok(BackupRecord::load(repo, &options.cluster, &backup.id, &backup.record)?));
            let record = match load {
                Err(e) if e.is_damage() && options.backup.is_none() => {
                    let avoid: Vec<BackupId> = avoid.iter().cloned().chain([backup.id.clone()]).collect();
                    return self.plan(&avoid, vec![]);
                }
                other => other?,
            };
            let plan = finish(view, backup, record, stop, options, notes)?;
            let stretch = plan.path.segments(plan.backup.lsn_start, plan.stop.read_to);
            wal.refuse_two_histories(&stretch, lineage.segment_size)?;
            return Ok(RestorePlan { holders, ..plan });
        }
        notes.clear();
        Err(EngineError::refused(
            "E-TIMELINE",
            match options.timeline {
                TimelineChoice::Number(n) => format!("no backup lies on the history of timeline {n}"),
                _ => "no backup lies on the history of any archived timeline".to_owned(),
            },
            "'pgark info' shows timelines and the backups on them",
        ))
    }
}

/// Newest first. All of one lineage.
fn candidates(catalog: &Catalog, options: &RestoreOptions, avoid: &[BackupId]) -> Result<Vec<PhysicalBackup>> {
    if let Some(id) = &options.backup {
        let found = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(catalog, id))?;
        let physical = found.as_physical().ok_or_else(|| {
            EngineError::refused(
                "E-BACKUP-KIND",
                format!("{id} is a {} backup", found.kind),
                format!("restore it with --kind {}", found.kind),
            )
        })?;
        return Ok(vec![physical]);
    }
    let current = catalog.lineage().map(|l| l.system_id);
    let mut all: Vec<PhysicalBackup> =
        catalog.physical().into_iter().filter(|b| Some(b.system_id) == current && !avoid.contains(&b.id)).collect();
    all.sort_by(|a, b| (b.lsn_stop, &b.id).cmp(&(a.lsn_stop, &a.id)));
    if all.is_empty() {
        let (message, hint) = if avoid.is_empty() {
            (format!("there is no physical backup of '{}'", options.cluster), "take one with 'pgark backup'")
        } else {
            (
                format!("every backup of '{}' that could serve is damaged", options.cluster),
                "'pgark verify' lists the damage",
            )
        };
        return Err(EngineError::refused("E-BACKUP-NONE", message, hint));
    }
    Ok(all)
}

fn lineage<'c>(catalog: &'c Catalog, backup: &PhysicalBackup) -> Result<&'c Lineage> {
    catalog.lineage_of(backup.system_id).ok_or_else(|| {
        EngineError::failed(
            "E-LINEAGE",
            format!("backup {} is of an unregistered cluster", backup.id),
            "'pgark verify' checks the catalog",
        )
    })
}

/// The timelines to try, best first.
fn timelines(choice: TimelineChoice, head: &WalHead, candidates: &[PhysicalBackup]) -> Vec<TimelineId> {
    let mut all: Vec<TimelineId> = match choice {
        TimelineChoice::Number(n) => vec![n],
        TimelineChoice::Current => candidates.iter().map(|b| b.timeline).collect(),
        // A timeline of which only the history is archived has nothing to replay yet.
        TimelineChoice::Latest => {
            let with_wal = head.timelines().iter().filter(|t| t.last().is_some()).map(|t| t.timeline);
            with_wal.chain(candidates.iter().map(|b| b.timeline)).collect()
        }
    };
    all.sort_unstable();
    all.dedup();
    all.reverse();
    all
}

/// The newest backup from which the target can be reached. A missing segment after a backup is not held
/// against older ones only if the target itself cannot be reached from the newer.
fn choose<'b>(
    view: &mut WalView<'_>,
    on_path: &[&'b PhysicalBackup],
    target: &Target,
) -> Result<Option<(&'b PhysicalBackup, StopAt)>> {
    let mut first_failure = None;
    for backup in on_path {
        match resolve(view, backup, target) {
            Ok(Resolved::At(stop)) => return Ok(Some((backup, stop))),
            Ok(Resolved::BackupTooNew) => {}
            // The target may lie before the trouble: an older backup can tell.
            Err(e) if matches!(e, EngineError::Refused { .. }) => first_failure = first_failure.or(Some(e)),
            Err(e) => return Err(e),
        }
        if matches!(target, Target::Latest | Target::Immediate) && first_failure.is_some() {
            break;
        }
    }
    first_failure.map_or(Ok(None), Err)
}

fn before_first(on_path: &[&PhysicalBackup], options: &RestoreOptions) -> EngineError {
    let oldest = on_path.last().expect("checked by the caller");
    EngineError::refused(
        "E-TARGET-BEFORE",
        format!(
            "the target ({}) lies before backup {} is consistent (lsn {}, at {})",
            options.target, oldest.id, oldest.lsn_stop, oldest.stopped
        ),
        "'pgark info' shows the time windows that can be restored",
    )
}

fn finish(
    mut view: WalView<'_>,
    backup: &PhysicalBackup,
    record: BackupRecord,
    stop: StopAt,
    options: &RestoreOptions,
    mut notes: Vec<String>,
) -> Result<RestorePlan> {
    let segments = view.path.segments(backup.lsn_start, stop.read_to);
    let mut continuity = Continuity::default();
    for name in &segments {
        let index = view.index(name.segment)?;
        continuity.push(&index)?;
        if index.min_wal_level == Some(0) {
            return Err(EngineError::refused(
                "E-WAL-MINIMAL",
                format!("WAL at {} was written with wal_level=minimal: changes are missing from it", index.start()),
                "choose a target before it, or a backup after it",
            ));
        }
    }
    let timeline = view.path.timeline_at(Lsn(stop.end.0.saturating_sub(1)));
    if backup.bad_blocks > 0 {
        notes.push(format!("backup {} holds {} {DAMAGED_IN_SOURCE}", backup.id, backup.bad_blocks));
    }
    let name = |segment: Option<&SegmentName>| *segment.expect("there is at least one");
    let newest_timeline = view.head.timelines().last().map_or(timeline, |t| t.timeline.max(timeline));
    Ok(RestorePlan {
        newest_timeline,
        holders: vec![],
        backup: backup.clone(),
        record,
        target: options.target.clone(),
        timeline,
        wal_from: name(segments.first()),
        wal_to: name(segments.last()),
        stop,
        path: view.path.clone(),
        notes,
    })
}

/// Does the same moment also exist on a branch that the chosen path does not follow? Then only the person who
/// asks knows which one is meant.
fn refuse_ambiguous(wal: &Archives, head: &WalHead, path: &WalPath, options: &RestoreOptions) -> Result<()> {
    let Target::Time { at, .. } = &options.target else { return Ok(()) };
    let wanted = from_timestamp(*at);
    for span in head.timelines() {
        let Some(branch) = branch_times(wal, head, path, span.timeline)? else { continue };
        if branch.0 <= wanted && wanted <= branch.1 {
            return Err(EngineError::refused(
                "E-TARGET-AMBIGUOUS",
                format!("{at} exists both on timeline {} and on timeline {}", path.target(), span.timeline),
                format!(
                    "say which one is meant: --target-timeline {} or --target-timeline {}",
                    path.target(),
                    span.timeline
                ),
            ));
        }
    }
    Ok(())
}

/// First and last transaction time of the WAL of `timeline` that is not on the path.
fn branch_times(
    wal: &Archives,
    head: &WalHead,
    path: &WalPath,
    timeline: TimelineId,
) -> Result<Option<(PgTimestamp, PgTimestamp)>> {
    let size = path.size();
    let from = match path.ranges().iter().find(|r| r.timeline == timeline) {
        Some(range) => match range.end {
            Some(end) => end,
            None => return Ok(None),
        },
        None => wal.history(timeline)?.path_to_target().last().map_or(Lsn(0), |r| r.begin),
    };
    let Some(span) = head.timeline(timeline) else { return Ok(None) };
    let own = WalPath::new(&pgark_pg::history::TimelineHistory::root(timeline), size);
    let mut view = WalView::new(wal, own, head);
    let mut times: Option<(PgTimestamp, PgTimestamp)> = None;
    let first = SegmentNo::containing(from, size);
    let segments = span.ranges.iter().flat_map(|(a, b)| *a..=*b).filter(|n| *n >= first.0);
    for n in segments {
        let segment = SegmentNo(n);
        let start = from.max(segment.start(size));
        // Only where the branch begins does a segment hold both.
        if n == first.0 {
            view.find(start, segment, &|_| true, &mut |seen| {
                if let Some(t) = &seen.transaction {
                    let (a, b) = times.unwrap_or((t.time, t.time));
                    times = Some((a.min(t.time), b.max(t.time)));
                }
                false
            })?;
            continue;
        }
        let index = view.index(segment)?;
        if let (Some(min), Some(max)) = (index.min_time, index.max_time) {
            let (min, max) = (PgTimestamp(min), PgTimestamp(max));
            let (a, b) = times.unwrap_or((min, max));
            times = Some((a.min(min), b.max(max)));
        }
    }
    Ok(times)
}
