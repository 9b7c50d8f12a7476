//! Which archived WAL stays: what each kept backup needs to be consistent, always; and from where on everything stays.
//!
//! Invariant: WAL goes only where it is known what it belongs to. A timeline whose history is missing is left alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, Lineage, PhysicalBackup, WalNeed};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::wal::head::{merged, subtract};
use pgark_repo::wal::{SegmentRange, SegmentReader, TimelineSpan, WalArchive, WalHead};

use super::policy::{self, Branch, Policy};
use crate::archive::{self, WalPath};
use crate::error::Result;
use crate::restore::resolve::to_timestamp;

/// Segments looked at, from the end of a timeline, to find one with a transaction in it.
pub(super) const LOOKS_FOR_TIME: usize = 64;

/// The archive of one lineage, and what is known of its timelines.
pub struct Archive {
    pub system_id: SystemId,
    pub size: SegmentSize,
    /// With everything that the catalog has decided, applied or not.
    pub head: WalHead,
    pub timelines: Vec<Timeline>,
    pub is_current: bool,
    /// Something that the catalog has decided was not applied.
    pub is_behind: bool,
    pub notes: Vec<String>,
    pub wal: WalArchive,
}

pub struct Timeline {
    pub timeline: TimelineId,
    /// None: its history is missing.
    pub path: Option<WalPath>,
    pub branch: Branch,
}

/// Segments by timeline, in order and apart.
type Segments = BTreeMap<TimelineId, Vec<(u64, u64)>>;

impl Archive {
    pub fn load(repo: &Repository, cluster: &ClusterName, catalog: &Catalog, lineage: &Lineage) -> Result<Self> {
        let wal = WalArchive::new(repo, cluster, lineage.system_id);
        let mut head = wal.head()?;
        let mut pending: Vec<_> = catalog.wal_expiries.iter().filter(|e| e.system_id == lineage.system_id).collect();
        pending.sort_by_key(|e| e.number);
        let mut is_behind = false;
        for e in pending {
            is_behind |= head.expire(e.number, &e.ranges);
        }
        let physical = catalog.physical();
        let of_lineage: Vec<&PhysicalBackup> = physical.iter().filter(|b| b.system_id == lineage.system_id).collect();
        let mut archive = Archive {
            system_id: lineage.system_id,
            size: lineage.segment_size,
            timelines: vec![],
            is_current: catalog.lineage().is_some_and(|l| l.system_id == lineage.system_id),
            is_behind,
            notes: vec![],
            head,
            wal: wal.clone(),
        };
        for span in archive.head.timelines() {
            let has_backup = of_lineage.iter().any(|b| b.timeline == span.timeline);
            if span.ranges.is_empty() && !has_backup {
                continue;
            }
            let path = match archive::history(&wal, span.timeline) {
                Ok(history) => Some(WalPath::new(&history, archive.size)),
                Err(e) if e.code() == "E-HISTORY-MISSING" => {
                    archive.notes.push(format!("all WAL of timeline {} stays: {e}", span.timeline));
                    None
                }
                Err(e) => return Err(e),
            };
            let mut on: Vec<&&PhysicalBackup> = of_lineage
                .iter()
                .filter(|b| match &path {
                    Some(path) => path.contains(b.timeline, b.lsn_stop),
                    None => b.timeline == span.timeline,
                })
                .collect();
            on.sort_by_key(|b| (b.lsn_stop, &b.id));
            let backed_up = on.iter().filter(|b| b.timeline == span.timeline).map(|b| b.finished).max();
            let written = if span.ranges.is_empty() {
                backed_up
            } else {
                last_time(&wal, &archive.head, span, archive.size)?.map(|t| t.max(backed_up.unwrap_or(t)))
            };
            let branch = Branch { last_time: written, backups: on.iter().map(|b| b.id.clone()).collect() };
            archive.timelines.push(Timeline { timeline: span.timeline, path, branch });
        }
        Ok(archive)
    }

    pub fn path_of(&self, timeline: TimelineId) -> Option<&WalPath> {
        self.timelines.iter().find(|t| t.timeline == timeline)?.path.as_ref()
    }

    /// Whether everything from start to stop is archived.
    pub fn has_wal_of(&self, b: &PhysicalBackup) -> bool {
        let held = |name: &SegmentName| self.head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment));
        self.segments_of(b).all(|name| held(&name))
    }

    /// What of the stored objects that hold it is missing, does not open or is too short. Contents are not read.
    pub fn damaged_wal_of(&self, b: &PhysicalBackup) -> Result<Option<String>> {
        for name in self.segments_of(b) {
            match self.wal.open_segment(&name, self.size).and_then(SegmentReader::check_length) {
                Ok(()) => {}
                Err(e) if e.is_damage() => return Ok(Some(format!("WAL that it needs: {e}"))),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    fn segments_of(&self, b: &PhysicalBackup) -> impl Iterator<Item = SegmentName> + '_ {
        let path = self.path_of(b.timeline);
        let (first, last) = b.segments(self.size);
        let timeline = b.timeline;
        (first.0..=last.0).map(move |n| match path {
            Some(path) => path.name(SegmentNo(n)),
            None => SegmentName { timeline, segment: SegmentNo(n) },
        })
    }

    /// What of the archive goes when these backups stay. `kept` is in the order of ids, with the times that the rules
    /// take for theirs.
    pub fn going(&self, kept: &[Kept<'_>], needs: &[WalNeed], policy: &Policy, at: Timestamp) -> Vec<SegmentRange> {
        let staying = self.staying(kept, needs, policy, at);
        let none = vec![];
        let of = |span: &TimelineSpan| {
            let timeline = span.timeline;
            let going = subtract(&span.ranges, staying.get(&timeline).unwrap_or(&none));
            going.into_iter().map(move |(a, b)| SegmentRange { timeline, first: SegmentNo(a), last: SegmentNo(b) })
        };
        self.head.timelines().iter().flat_map(of).collect()
    }

    fn staying(&self, kept: &[Kept<'_>], needs: &[WalNeed], policy: &Policy, at: Timestamp) -> Segments {
        let mut out = Stay::default();
        let mine: Vec<&Kept<'_>> = kept.iter().filter(|k| k.entry.system_id == self.system_id).collect();
        for k in &mine {
            self.segments_of(k.entry).for_each(|name| out.add(name.timeline, name.segment.0, name.segment.0));
            let (first, last) = k.entry.segments(self.size);
            out.add(k.entry.timeline, first.0, last.0);
        }
        for need in needs.iter().filter(|n| n.system_id == self.system_id) {
            match self.path_of(need.timeline) {
                Some(path) => out.add_path(path, need.from, need.to),
                None => self.head.timelines().iter().for_each(|t| out.add(t.timeline, 0, u64::MAX)),
            }
        }
        let span = policy.window.max(policy.wal);
        let oldest = mine.iter().filter(|k| k.good).chain(&mine).next().map(|k| k.time);
        for t in &self.timelines {
            let Some(path) = &t.path else {
                out.add(t.timeline, 0, u64::MAX);
                continue;
            };
            // Without a rule for WAL it stays from the oldest backup on.
            let cutoff = match span {
                Some(span) => policy::before(at, span),
                None => Timestamp::MIN,
            };
            if span.is_some() && !t.branch.is_alive(cutoff) {
                continue;
            }
            let find = |id: &BackupId| mine.iter().find(|k| k.entry.id == *id);
            let on: Vec<(Lsn, Timestamp, bool)> =
                t.branch.backups.iter().filter_map(find).map(|k| (k.entry.lsn_start, k.time, k.good)).collect();
            let good: Vec<(Lsn, Timestamp)> = on.iter().filter(|b| b.2).map(|b| (b.0, b.1)).collect();
            let any: Vec<(Lsn, Timestamp)> = on.iter().map(|b| (b.0, b.1)).collect();
            match policy::base(if good.is_empty() { &any } else { &good }, cutoff) {
                Some(from) => out.add_path(path, from, None),
                // No backup leads to this timeline. It may be new; or what once led to it is gone.
                None => {
                    let of_use = match (span, oldest) {
                        (Some(_), _) => true,
                        (None, Some(oldest)) => t.branch.is_alive(oldest),
                        (None, None) => self.is_current,
                    };
                    if of_use {
                        out.add(t.timeline, 0, u64::MAX);
                    }
                }
            }
        }
        out.0.into_iter().map(|(t, ranges)| (t, merged(ranges))).collect()
    }
}

/// A backup that stays.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    pub entry: &'a PhysicalBackup,
    pub time: Timestamp,
    pub good: bool,
}

#[derive(Default)]
struct Stay(Segments);

impl Stay {
    fn add(&mut self, timeline: TimelineId, first: u64, last: u64) {
        let ranges = self.0.entry(timeline).or_default();
        // Backups come in order: what follows on is one range, however many there are.
        match ranges.last_mut() {
            Some(r) if r.0 <= first && first <= r.1.saturating_add(1) => r.1 = r.1.max(last),
            _ => ranges.push((first, last)),
        }
    }

    /// Everything along the path; of each timeline that it leaves, the segment in which it does too.
    fn add_path(&mut self, path: &WalPath, from: Lsn, to: Option<Lsn>) {
        let segment = |lsn: Lsn| SegmentNo::containing(lsn, path.size()).0;
        let end = to.map_or(u64::MAX, segment);
        for (i, r) in path.ranges().iter().enumerate() {
            let begin = if i == 0 { 0 } else { segment(r.begin) };
            let (first, last) = (begin.max(segment(from)), r.end.map_or(u64::MAX, segment).min(end));
            if first <= last {
                self.add(r.timeline, first, last);
            }
        }
    }
}

/// When the last transaction on this timeline ended; else when its last segment was stored, by the store's clock. None
/// when neither is known.
fn last_time(wal: &WalArchive, head: &WalHead, span: &TimelineSpan, size: SegmentSize) -> Result<Option<Timestamp>> {
    let segments = span.ranges.iter().rev().flat_map(|(a, b)| (*a..=*b).rev()).take(LOOKS_FOR_TIME);
    for n in segments {
        let name = SegmentName { timeline: span.timeline, segment: SegmentNo(n) };
        match wal.open_object(&wal.object_of(head, &name, size)?) {
            Ok(reader) => {
                if let Some(time) = reader.index.max_time {
                    return Ok(Some(to_timestamp(pgark_pg::value::PgTimestamp(time))));
                }
            }
            // Whether anything younger is in it, nobody can tell.
            Err(e) if e.is_damage() => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
    let Some(segment) = span.last() else { return Ok(None) };
    let name = SegmentName { timeline: span.timeline, segment };
    wal.stored_at(head, &name, size).map_err(Into::into)
}
