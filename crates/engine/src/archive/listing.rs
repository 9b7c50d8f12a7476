//! What the archive holds, by its own words: timelines, unbroken ranges, gaps, and single segments on demand.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, TimelineId};
use pgark_repo::RepoError;
use pgark_repo::wal::index::Ending;
use pgark_repo::wal::{TimelineSpan, WalArchive, WalHead, WalIndex};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::info::Gap;
use crate::restore::resolve::to_timestamp;

/// Segments looked at, from either end of a range, to find one with a commit in it.
const LOOKS_FOR_TIME: u64 = 64;

#[derive(Clone, Debug)]
pub struct TimelineListing {
    pub timeline: TimelineId,
    /// None for the first timeline, and where the history file is missing.
    pub begins: Option<Switch>,
    pub history_missing: bool,
    /// It is there, and a writer's secret does not open it.
    pub history_unopened: bool,
    pub ranges: Vec<RangeListing>,
    pub gaps: Vec<Gap>,
    /// Stretches that retention has given up.
    pub expired: Vec<(SegmentNo, SegmentNo)>,
}

/// Where a timeline left another one.
#[derive(Clone, Debug)]
pub struct Switch {
    pub parent: TimelineId,
    pub lsn: Lsn,
    pub reason: String,
}

#[derive(Clone, Debug)]
pub struct RangeListing {
    pub first: SegmentNo,
    pub last: SegmentNo,
    pub from_lsn: Lsn,
    /// End of the valid WAL; None where a writer's secret does not open the last segment.
    pub to_lsn: Option<Lsn>,
    /// Of the first and of the last transaction near the ends; None when there is none.
    pub from_time: Option<Timestamp>,
    pub to_time: Option<Timestamp>,
    /// A writer's secret does not open all that was looked at: there may be transactions that it does not see.
    pub unopened: bool,
}

/// One segment, by its index.
#[derive(Clone, Debug)]
pub struct SegmentListing {
    pub name: SegmentName,
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub ending: Ending,
    pub records: u64,
    pub transaction_ends: u64,
    pub from_time: Option<Timestamp>,
    pub to_time: Option<Timestamp>,
    /// None where a writer looks: they are not for it to know.
    pub restore_points: Option<Vec<String>>,
}

/// Segments, and how many there are besides that a writer's secret does not open.
#[derive(Clone, Debug, Default)]
pub struct SegmentsListing {
    pub segments: Vec<SegmentListing>,
    pub unopened: usize,
}

pub fn timelines(wal: &WalArchive, head: &WalHead, size: SegmentSize) -> Result<Vec<TimelineListing>> {
    head.timelines().iter().map(|span| timeline(wal, head, span, size)).collect()
}

fn timeline(wal: &WalArchive, head: &WalHead, span: &TimelineSpan, size: SegmentSize) -> Result<TimelineListing> {
    let timeline = span.timeline;
    let missing = timeline.get() > 1 && !span.history;
    let begins = if missing { Ok(None) } else { switch(wal, timeline) };
    let unopened = matches!(begins, Err(EngineError::Repo(RepoError::WriteOnly { .. })));
    let begins = if unopened { None } else { begins? };
    let index = |segment| {
        let name = SegmentName { timeline, segment: SegmentNo(segment) };
        index_if_open(wal, head, &name, size)
    };
    let ranges = span.ranges.iter().map(|&(first, last)| {
        let (mut from_time, mut unopened) = (None, false);
        let mut look = |n, of: &dyn Fn(&WalIndex) -> Option<i64>| {
            let found = index(n)?;
            unopened |= found.is_none();
            Ok::<_, EngineError>(found.and_then(|i| time(of(&i))))
        };
        for n in first..=last.min(first.saturating_add(LOOKS_FOR_TIME)) {
            from_time = look(n, &|i| i.min_time)?;
            if from_time.is_some() {
                break;
            }
        }
        let mut to_time = None;
        for n in (first.max(last.saturating_sub(LOOKS_FOR_TIME))..=last).rev() {
            to_time = look(n, &|i| i.max_time)?;
            if to_time.is_some() {
                break;
            }
        }
        let (from_lsn, to_lsn) = (SegmentNo(first).start(size), index(last)?.map(|i| i.valid_end));
        let (first, last) = (SegmentNo(first), SegmentNo(last));
        Ok(RangeListing { first, last, from_lsn, to_lsn, from_time, to_time, unopened })
    });
    let gaps = span.gaps().into_iter().map(|(first, last)| Gap { timeline, first, last }).collect();
    let expired = span.expired.iter().map(|(a, b)| (SegmentNo(*a), SegmentNo(*b))).collect();
    let ranges = ranges.collect::<Result<_>>()?;
    let (history_missing, history_unopened) = (missing, unopened);
    Ok(TimelineListing { timeline, begins, history_missing, history_unopened, ranges, gaps, expired })
}

/// Where `timeline` begins.
pub fn switch(wal: &WalArchive, timeline: TimelineId) -> Result<Option<Switch>> {
    let history = super::history(wal, timeline)?;
    Ok(history.entries.last().map(|e| Switch {
        parent: e.timeline,
        lsn: e.switch,
        reason: String::from_utf8_lossy(&e.reason).into_owned(),
    }))
}

pub fn segments(
    ctx: &Ctx,
    wal: &WalArchive,
    head: &WalHead,
    size: SegmentSize,
    timeline: Option<TimelineId>,
    jobs: usize,
) -> Result<SegmentsListing> {
    let spans = head.timelines().iter().filter(|s| timeline.is_none_or(|t| t == s.timeline));
    let names: Vec<SegmentName> = spans.flat_map(names_of).collect();
    let points = wal.keys().writes_only().is_none();
    let found = each_index(ctx, &names, jobs, &|name| index_if_open(wal, head, name, size))?;
    let segments: Vec<_> = found.iter().flatten().map(|index| SegmentListing::new(index, points)).collect();
    Ok(SegmentsListing { unopened: names.len() - segments.len(), segments })
}

impl SegmentListing {
    fn new(index: &WalIndex, points: bool) -> Self {
        SegmentListing {
            name: index.segment_name(),
            from_lsn: index.start(),
            to_lsn: index.valid_end,
            ending: index.ending,
            records: index.records,
            transaction_ends: index.transaction_ends,
            from_time: time(index.min_time),
            to_time: time(index.max_time),
            restore_points: points
                .then(|| index.restore_points.iter().map(|p| String::from_utf8_lossy(&p.name).into_owned()).collect()),
        }
    }
}

/// Every segment that the head has of a timeline, in order.
pub fn names_of(span: &TimelineSpan) -> Vec<SegmentName> {
    let name = |n| SegmentName { timeline: span.timeline, segment: SegmentNo(n) };
    span.ranges.iter().flat_map(|(first, last)| (*first..=*last).map(name)).collect()
}

pub fn time(micros: Option<i64>) -> Option<Timestamp> {
    micros.map(|t| to_timestamp(PgTimestamp(t)))
}

fn index_by_head(
    wal: &WalArchive,
    head: &WalHead,
    name: &SegmentName,
    size: SegmentSize,
) -> pgark_repo::Result<WalIndex> {
    wal.object_index(&wal.object_of(head, name, size)?)
}

/// None where a writer's secret does not open it.
fn index_if_open(wal: &WalArchive, head: &WalHead, name: &SegmentName, size: SegmentSize) -> Result<Option<WalIndex>> {
    match index_by_head(wal, head, name, size) {
        Err(RepoError::WriteOnly { .. }) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// The indexes of these segments, in this order.
pub fn indexes(
    ctx: &Ctx,
    wal: &WalArchive,
    head: &WalHead,
    size: SegmentSize,
    names: &[SegmentName],
    jobs: usize,
) -> Result<Vec<WalIndex>> {
    each_index(ctx, names, jobs, &|name| Ok(index_by_head(wal, head, name, size)?))
}

fn each_index<T: Send>(
    ctx: &Ctx,
    names: &[SegmentName],
    jobs: usize,
    look: &(dyn Fn(&SegmentName) -> Result<T> + Sync),
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<(usize, Result<T>)>> = Mutex::default();
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(n) else { return };
            let index = ctx.check_cancelled().and_then(|()| look(name));
            let failed = index.is_err();
            found.lock().expect("no thread panics with the lock").push((n, index));
            if failed {
                next.store(names.len(), Ordering::Relaxed);
            }
        }
    };
    let threads = NonZeroUsize::new(jobs.min(names.len())).map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut found = found.into_inner().expect("the threads are gone");
    found.sort_unstable_by_key(|(n, _)| *n);
    found.into_iter().map(|(_, index)| index).collect()
}
