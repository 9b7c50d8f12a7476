//! What happened when, from the indexes of the archived WAL: commits by period, restore points, and what one looks for
//! after an accident, each with the place to restore to just before it.
//!
//! Invariant: an event has a time only if its transaction's commit was seen; one that was rolled back is no event.
//! Counts of rows are of the segments in which a transaction did a lot, so they are lower bounds.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_pg::Major;
use pgark_pg::value::{Lsn, SegmentName, SegmentSize, TimelineId};
use pgark_pg::wal::{
    Activity, Finish, Record, RecordSink, SegmentExpect, TableWork, TransactionEndKind, TransactionWork, Walker,
    join_crossing,
};
use pgark_repo::RepoError;
use pgark_repo::wal::{WalArchive, WalHead, WalIndex};

use super::listing::{indexes, names_of, switch, time};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::info::Gap;

/// Indexes read at a time when looking back for the start of the period.
const BATCH: usize = 64;
/// Segments searched for the end of a transaction that a listed one left open.
const SEARCHED_MAX: usize = 256;
const WAL_LEVEL_MINIMAL: i32 = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    RestorePoint(String),
    /// Relation files that went with a commit, and nothing came in their place.
    Drop,
    /// As many files were created as went, with next to nothing in them: TRUNCATE, or a rewrite of empty tables.
    Truncate,
    /// As many files were created as went, and filled: VACUUM FULL, CLUSTER, REINDEX, ALTER TABLE, or TRUNCATE and a load
    /// in one transaction.
    Rewrite,
    Delete,
    Update,
    CreateDatabase,
    DropDatabase,
    WalLevelMinimal,
    FullPageWritesOff,
    TimelineSwitch {
        parent: TimelineId,
        reason: String,
    },
    Gap(Gap),
}

#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub timeline: TimelineId,
    /// Recovery that stops before the record at this place does not have it.
    pub lsn: Lsn,
    /// Of the commit, the restore point or the switch. None when it is not known.
    pub time: Option<Timestamp>,
    pub xid: Option<u32>,
    /// Rows deleted or updated, or files that went.
    pub count: u64,
    pub tables: Vec<TableWork>,
}

/// Transactions committed in a period on a timeline.
#[derive(Clone, Copy, Debug)]
pub struct Commits {
    pub timeline: TimelineId,
    pub minute: Timestamp,
    pub commits: u64,
}

#[derive(Clone, Debug, Default)]
pub struct WalHistory {
    /// In WAL order, timeline by timeline.
    pub events: Vec<Event>,
    pub commits: Vec<Commits>,
    pub segments: u64,
    /// What the indexes had no room for.
    pub not_listed: u64,
}

pub struct HistoryOptions {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub jobs: usize,
}

struct Reader<'a> {
    ctx: &'a Ctx,
    wal: &'a WalArchive,
    head: &'a WalHead,
    size: SegmentSize,
    options: &'a HistoryOptions,
}

pub fn wal_history(
    ctx: &Ctx,
    wal: &WalArchive,
    head: &WalHead,
    size: SegmentSize,
    options: &HistoryOptions,
) -> Result<WalHistory> {
    let reader = Reader { ctx, wal, head, size, options };
    let mut out = WalHistory::default();
    for span in head.timelines() {
        let indexes = reader.recent(&names_of(span))?;
        let begin = if span.timeline.get() > 1 && span.history { switch(wal, span.timeline)? } else { None };
        let mut found = Found::default();
        if let Some(s) = &begin {
            let kind = EventKind::TimelineSwitch { parent: s.parent, reason: s.reason.clone() };
            found.event(kind, s.lsn, None);
        }
        reader.timeline(&indexes, begin.map(|s| s.lsn), &mut found)?;
        for (first, last) in span.gaps() {
            let gap = Gap { timeline: span.timeline, first, last };
            found.event(EventKind::Gap(gap), first.start(size), None);
        }
        out.segments += indexes.len() as u64;
        out.not_listed += found.not_listed;
        let inside = |t: Timestamp| options.from.is_none_or(|f| t >= f) && options.to.is_none_or(|to| t <= to);
        found.events.retain(|e| e.time.is_none_or(inside));
        found.events.sort_by_key(|e| e.lsn);
        out.events.extend(found.events.into_iter().map(|e| Event { timeline: span.timeline, ..e }));
        let minutes = found.commits.into_iter().filter_map(|(minute, commits)| {
            let minute = time(Some(Activity::minute(minute).0))?;
            inside(minute).then_some(Commits { timeline: span.timeline, minute, commits })
        });
        out.commits.extend(minutes);
    }
    Ok(out)
}

/// What was found on one timeline.
#[derive(Default)]
struct Found {
    events: Vec<Event>,
    commits: BTreeMap<i64, u64>,
    not_listed: u64,
    /// Transactions whose end has not been seen, and the number of the segment they were last seen in.
    open: BTreeMap<u32, (TransactionWork, usize)>,
    /// Databases created and dropped, whose transactions have not ended.
    databases: BTreeMap<u32, Vec<usize>>,
    /// Events that never became true.
    rolled_back: Vec<usize>,
}

impl Found {
    fn event(&mut self, kind: EventKind, lsn: Lsn, time: Option<Timestamp>) -> &mut Event {
        let timeline = TimelineId::new(1).expect("not 0");
        self.events.push(Event { kind, timeline, lsn, time, xid: None, count: 0, tables: vec![] });
        self.events.last_mut().expect("just pushed")
    }

    fn activity(&mut self, activity: Activity, segment: usize) {
        self.not_listed += activity.not_listed;
        for (minute, commits) in activity.commits {
            *self.commits.entry(minute).or_default() += commits;
        }
        for d in activity.databases {
            let kind = if d.dropped { EventKind::DropDatabase } else { EventKind::CreateDatabase };
            let event = self.event(kind, d.lsn, None);
            event.xid = Some(d.xid);
            event.tables = vec![TableWork { spc: d.spc, db: d.db, ..TableWork::default() }];
            let at = self.events.len() - 1;
            self.databases.entry(d.xid).or_default().push(at);
            self.open
                .entry(d.xid)
                .or_insert_with(|| (TransactionWork { xid: d.xid, ..Default::default() }, segment))
                .1 = segment;
        }
        for mut work in activity.transactions {
            if let Some((before, _)) = self.open.remove(&work.xid) {
                work.merge(&before);
            }
            match work.commit {
                Some(finish) => self.committed(&work, finish),
                None => drop(self.open.insert(work.xid, (work, segment))),
            }
        }
    }

    fn committed(&mut self, work: &TransactionWork, finish: Finish) {
        let at = time(Some(finish.time));
        for n in self.databases.remove(&work.xid).unwrap_or_default() {
            if let Some(event) = self.events.get_mut(n) {
                event.time = at;
            }
        }
        let tables = |wanted: &dyn Fn(&TableWork) -> bool| work.tables.iter().filter(|t| wanted(t)).copied().collect();
        let mut add = |kind, count, tables: Vec<TableWork>| {
            // What a subtransaction did in another segment may have been told before.
            let known =
                self.events.iter().rposition(|e| e.kind == kind && e.lsn == finish.lsn && e.xid == Some(work.xid));
            let event = match known {
                Some(n) => &mut self.events[n],
                None => self.event(kind, finish.lsn, at),
            };
            event.xid = Some(work.xid);
            event.count += count;
            event.tables.extend(tables);
        };
        if work.dropped > 0 {
            let kind = match () {
                () if work.created < work.dropped => EventKind::Drop,
                () if work.written <= work.created => EventKind::Truncate,
                () => EventKind::Rewrite,
            };
            add(kind, work.dropped, tables(&|t| t.dropped));
        }
        if work.deleted >= Activity::MASS_ROWS {
            add(EventKind::Delete, work.deleted, tables(&|t| t.deleted > 0));
        }
        if work.updated >= Activity::MASS_ROWS {
            add(EventKind::Update, work.updated, tables(&|t| t.updated > 0));
        }
    }

    /// Counts what the subtransactions have left open to their transaction.
    fn join_subtransactions(&mut self, end: &Ended) {
        for xid in &end.subs {
            if let Some((below, segment)) = self.open.remove(xid) {
                let open = || (TransactionWork { xid: end.xid, ..TransactionWork::default() }, segment);
                self.open.entry(end.xid).or_insert_with(open).0.merge(&below);
            }
            if let Some(events) = self.databases.remove(xid) {
                self.databases.entry(end.xid).or_default().extend(events);
            }
        }
    }

    fn ended(&mut self, end: &Ended) {
        self.join_subtransactions(end);
        let Some((work, _)) = self.open.remove(&end.xid) else { return };
        match end.commit {
            Some(finish) => self.committed(&work, finish),
            None => self.rolled_back.extend(self.databases.remove(&end.xid).unwrap_or_default()),
        }
    }
}

/// The end of a transaction.
struct Ended {
    xid: u32,
    subs: Vec<u32>,
    commit: Option<Finish>,
}

impl Ended {
    /// A record that does not decode ends nothing that could be named.
    fn of(record: &Record<'_>) -> Option<Self> {
        let end = record.transaction_end().ok().flatten()?;
        let committed = matches!(end.kind, TransactionEndKind::Commit | TransactionEndKind::CommitPrepared);
        let commit = committed.then_some(Finish { lsn: record.start, time: end.time.0 });
        Some(Ended { xid: end.xid, subs: record.subtransactions().unwrap_or_default(), commit })
    }
}

impl Reader<'_> {
    /// The indexes from the segment on in which the period begins. A segment with an earlier commit alone is no proof
    /// that all before are earlier, since clocks jump; a whole batch of them is taken for one.
    fn recent(&self, names: &[SegmentName]) -> Result<Vec<WalIndex>> {
        let mut batches = vec![];
        for batch in names.rchunks(BATCH.max(self.options.jobs * 8)) {
            let read = indexes(self.ctx, self.wal, self.head, self.size, batch, self.options.jobs)?;
            let latest = read.iter().filter_map(|i| time(i.max_time)).max();
            batches.push(read);
            if let (Some(from), Some(latest)) = (self.options.from, latest)
                && latest < from
            {
                break;
            }
        }
        Ok(batches.into_iter().rev().flatten().collect())
    }

    fn timeline(&self, indexes: &[WalIndex], begin: Option<Lsn>, found: &mut Found) -> Result<()> {
        let mut before: Option<&WalIndex> = None;
        for (n, index) in indexes.iter().enumerate() {
            self.ctx.check_cancelled()?;
            // The first segment of a timeline repeats what its parent wrote before the switch.
            let repeats = begin.filter(|lsn| *lsn > index.start() && *lsn <= index.end());
            if repeats.is_none()
                && let Some(record) = before.and_then(|b| crossing(b, index))
            {
                let mut alone = Activity::default();
                record.as_record().iter().for_each(|r| alone.record(r));
                let end = record.as_record().ok().and_then(|r| Ended::of(&r));
                end.iter().for_each(|end| found.join_subtransactions(end));
                found.activity(alone.finish(), n);
                end.iter().for_each(|end| found.ended(end));
            }
            let activity = match &index.activity {
                Some(activity) if repeats.is_none() => activity.clone(),
                _ => self.walk(index, repeats.unwrap_or(Lsn::INVALID))?,
            };
            found.activity(activity, n);
            self.states(index, found);
            before = Some(index);
        }
        self.find_ends(indexes, found)
    }

    /// What the index says beside the activity.
    fn states(&self, index: &WalIndex, found: &mut Found) {
        for p in &index.restore_points {
            let name = String::from_utf8_lossy(&p.name).into_owned();
            found.event(EventKind::RestorePoint(name), p.lsn, time(Some(p.time)));
        }
        found.not_listed += u64::from(index.restore_points_overflow);
        let around = time(index.min_time);
        if index.min_wal_level == Some(WAL_LEVEL_MINIMAL) {
            found.event(EventKind::WalLevelMinimal, index.start(), around);
        }
        if index.full_page_writes_off {
            found.event(EventKind::FullPageWritesOff, index.start(), around);
        }
    }

    /// Looks for the ends of what is open in the WAL after it.
    fn find_ends(&self, indexes: &[WalIndex], found: &mut Found) -> Result<()> {
        let Some(first) = found.open.values().map(|(_, segment)| *segment).min() else { return Ok(()) };
        let candidates = indexes.iter().enumerate().skip(first).filter(|(_, i)| i.transaction_ends > 0);
        for (n, index) in candidates.take(SEARCHED_MAX) {
            if found.open.is_empty() {
                break;
            }
            let before = n.checked_sub(1).and_then(|n| indexes.get(n));
            let mut ends: Vec<Ended> = vec![];
            if let Some(record) = before.and_then(|b| crossing(b, index)) {
                ends.extend(record.as_record().ok().and_then(|r| Ended::of(&r)));
            }
            self.each_record(index, &mut |record| ends.extend(Ended::of(record)))?;
            ends.iter().for_each(|end| found.ended(end));
        }
        let rolled_back = std::mem::take(&mut found.rolled_back);
        let mut at = 0..;
        found.events.retain(|e| {
            let undone = at.next().is_some_and(|n| rolled_back.contains(&n));
            // A database whose directory went is gone, whatever became of the transaction.
            !undone || e.kind != EventKind::CreateDatabase
        });
        found.databases.clear();
        // What is still open is told without a time, but only if it did something that is told.
        for (work, _) in std::mem::take(&mut found.open).into_values() {
            if work.deleted.max(work.updated) >= Activity::MASS_ROWS {
                let finish = Finish { lsn: work.from, time: 0 };
                let known = found.events.len();
                found.committed(&work, finish);
                found.events.iter_mut().skip(known).for_each(|e| e.time = None);
            }
        }
        Ok(())
    }

    fn walk(&self, index: &WalIndex, from: Lsn) -> Result<Activity> {
        let mut activity = Activity::default();
        self.each_record(index, &mut |record| {
            if record.start >= from {
                activity.record(record);
            }
        })?;
        Ok(activity.finish())
    }

    fn each_record(&self, index: &WalIndex, see: &mut dyn FnMut(&Record<'_>)) -> Result<()> {
        let name = index.segment_name();
        let mut reader = self.wal.open_object(&self.wal.object_of(self.head, &name, self.size)?)?;
        let expect = SegmentExpect {
            timeline: name.timeline,
            segment: name.segment,
            size: self.size,
            system_id: Some(index.system_id),
        };
        let mut walker = Walker::new(expect);
        let mut sink = |record: &Record<'_>| see(record);
        while let Some(bytes) = reader.next()? {
            walker.feed(bytes, &mut sink).map_err(|e| {
                EngineError::Repo(RepoError::corrupt(name.format(self.size), format!("archived WAL: {e}")))
            })?;
        }
        Ok(())
    }
}

/// The record that begins in one segment and ends in the next. One too large for the indexes to keep is no commit.
fn crossing(before: &WalIndex, after: &WalIndex) -> Option<pgark_pg::wal::OwnedRecord> {
    if before.segment.next() != after.segment || after.overwrites_crossing {
        return None;
    }
    let ((Some(tail), _), (_, Some(leading))) = (before.tail_and_leading(), after.tail_and_leading()) else {
        return None;
    };
    let major = Major::from_version_num(after.major * 10_000)?;
    join_crossing(&tail, &leading, major).ok().flatten()
}
