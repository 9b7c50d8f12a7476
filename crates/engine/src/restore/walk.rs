//! Looking through archived WAL along a path, in order, reading only the segments that can hold what is
//! looked for.

use std::collections::HashMap;

use pgark_pg::value::{Lsn, PgTimestamp, SegmentName, SegmentNo};
use pgark_pg::wal::{Record, RecordSink, SegmentExpect, Tail, TransactionEnd, Walker, join_crossing};
use pgark_repo::RepoError;
use pgark_repo::wal::{WalHead, WalIndex};

use crate::archive::{Archives, WalPath};
use crate::error::{EngineError, Result};

/// A record that was found, and the end of the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRecord {
    pub start: Lsn,
    pub end: Lsn,
    /// Where replay stands when it stops before this record.
    pub before_end: Lsn,
    pub time: Option<PgTimestamp>,
}

/// What a search sees of a record.
pub struct Seen {
    pub start: Lsn,
    pub transaction: Option<TransactionEnd>,
    pub restore_point: Option<Vec<u8>>,
    /// Where a tablespace is made.
    pub tablespace: Option<Vec<u8>>,
}

pub struct WalView<'a> {
    archives: &'a Archives,
    pub path: WalPath,
    pub head: &'a WalHead,
    indexes: HashMap<SegmentName, WalIndex>,
}

/// Indexes kept while planning; one may hold some tens of KiB of a record.
const INDEXES_MAX: usize = 256;

impl<'a> WalView<'a> {
    pub fn new(archives: &'a Archives, path: WalPath, head: &'a WalHead) -> Self {
        WalView { archives, path, head, indexes: HashMap::new() }
    }

    pub fn segment_of(&self, lsn: Lsn) -> SegmentNo {
        SegmentNo::containing(lsn, self.path.size())
    }

    /// The last segment of the unbroken stretch that begins with the segment of `from`.
    pub fn last_segment(&self, from: Lsn) -> Option<SegmentNo> {
        self.path.unbroken_to(self.head, self.segment_of(from))
    }

    pub fn index(&mut self, segment: SegmentNo) -> Result<WalIndex> {
        let name = self.path.name(segment);
        if let Some(i) = self.indexes.get(&name) {
            return Ok(i.clone());
        }
        let index = self.archives.index(&name, self.path.size())?;
        if self.indexes.len() >= INDEXES_MAX {
            self.indexes.clear();
        }
        self.indexes.insert(name, index.clone());
        Ok(index)
    }

    /// The last record that ends in the stretch from `from` to `last`.
    pub fn last_record(&mut self, from: Lsn, last: SegmentNo) -> Result<Option<FoundRecord>> {
        let mut at = last;
        loop {
            let index = self.index(at)?;
            if let Some((start, end)) = index.last_record {
                // A switch record fills the rest of its segment.
                let end =
                    end.max(if index.ending == pgark_repo::wal::index::Ending::Switch { index.end() } else { end });
                return Ok(Some(FoundRecord { start, end, before_end: start, time: None }));
            }
            if at <= self.segment_of(from) {
                return Ok(None);
            }
            if let Some(found) = self.crossing_record(at)? {
                return Ok(Some(found.0));
            }
            at = SegmentNo(at.0 - 1);
        }
    }

    /// The record that began in an earlier segment and ends in `segment`.
    fn crossing_record(&mut self, segment: SegmentNo) -> Result<Option<(FoundRecord, Seen)>> {
        let index = self.index(segment)?;
        let (_, Some(leading)) = index.tail_and_leading() else { return Ok(None) };
        let Some(end) = leading.end else { return Ok(None) };
        let mut before = segment;
        let crossing = loop {
            if before.0 == 0 {
                return Ok(None);
            }
            before = SegmentNo(before.0 - 1);
            let timeline = self.path.timeline_of(before);
            if !self.head.timeline(timeline).is_some_and(|t| t.contains(before)) {
                return Ok(None);
            }
            let earlier = self.index(before)?;
            if let (Some(tail @ Tail::Crossing { .. }), _) = earlier.tail_and_leading() {
                break (tail, earlier);
            }
            if earlier.first_record.is_some() {
                return Ok(None);
            }
        };
        let (tail, earlier) = crossing;
        let Tail::Crossing { start, .. } = tail else { return Ok(None) };
        let before_end = earlier.last_record.map_or(start, |r| r.1);
        let mut found = FoundRecord { start, end, before_end, time: None };
        let mut seen = Seen { start, transaction: None, restore_point: None, tablespace: None };
        // Records too long to be kept in the indexes are never commits of interest: those are short.
        if let Some(major) = pgark_pg::Major::from_version_num(index.major * 10_000)
            && let Ok(Some(owned)) = join_crossing(&tail, &leading, major)
            && let Ok(record) = owned.as_record()
        {
            seen = look(&record);
            found.time = seen.transaction.as_ref().map(|t| t.time);
        }
        Ok(Some((found, seen)))
    }

    /// The first record from `from` on that `wanted` accepts, up to the end of segment `last`. `may_hold` says
    /// by the index alone whether a segment needs to be read.
    pub fn find(
        &mut self,
        from: Lsn,
        last: SegmentNo,
        may_hold: &dyn Fn(&WalIndex) -> bool,
        wanted: &mut dyn FnMut(&Seen) -> bool,
    ) -> Result<Option<FoundRecord>> {
        for n in self.segment_of(from).0..=last.0 {
            let segment = SegmentNo(n);
            let index = self.index(segment)?;
            let first = n == self.segment_of(from).0;
            let crossing = if first { None } else { self.crossing_record(segment)? };
            if let Some((found, seen)) = &crossing
                && seen.start >= from
                && wanted(seen)
            {
                return Ok(Some(found.clone()));
            }
            if index.undecodable == 0 && !may_hold(&index) {
                continue;
            }
            let before = match (&crossing, index.leading.as_ref().and_then(|l| l.end)) {
                (Some((c, _)), _) => c.end,
                (None, Some(end)) => end,
                (None, None) => index.start(),
            };
            if let Some(found) = self.search_segment(segment, from, before, wanted)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn search_segment(
        &mut self,
        segment: SegmentNo,
        from: Lsn,
        before: Lsn,
        wanted: &mut dyn FnMut(&Seen) -> bool,
    ) -> Result<Option<FoundRecord>> {
        let name = self.path.name(segment);
        let size = self.path.size();
        let system_id = Some(self.archives.system_id());
        let found = self.archives.with_segment(&name, size, &mut |reader| {
            let expect = SegmentExpect { timeline: name.timeline, segment, size, system_id };
            let mut walker = Walker::new(expect);
            let mut search = Search { from, before_end: before, wanted: &mut *wanted, found: None };
            while let Some(bytes) = reader.next()? {
                if bytes.is_empty() {
                    continue;
                }
                walker.feed(bytes, &mut search).map_err(|e| {
                    EngineError::Repo(RepoError::corrupt(name.format(size), format!("archived WAL: {e}")))
                })?;
            }
            Ok(search.found)
        })?;
        found.ok_or_else(|| RepoError::corrupt(name.format(size), "the archive does not hold it any more").into())
    }
}

struct Search<'s> {
    from: Lsn,
    before_end: Lsn,
    wanted: &'s mut dyn FnMut(&Seen) -> bool,
    found: Option<FoundRecord>,
}

impl RecordSink for Search<'_> {
    fn record(&mut self, rec: &Record<'_>) {
        if self.found.is_some() {
            return;
        }
        if rec.start >= self.from {
            let seen = look(rec);
            if (self.wanted)(&seen) {
                let time = seen.transaction.map(|t| t.time);
                self.found = Some(FoundRecord { start: rec.start, end: rec.end, before_end: self.before_end, time });
            }
        }
        self.before_end = rec.end;
    }
}

/// Records that do not decode have neither a time nor a name that could be a target.
fn look(rec: &Record<'_>) -> Seen {
    Seen {
        start: rec.start,
        transaction: rec.transaction_end().ok().flatten(),
        restore_point: rec.restore_point().ok().flatten().map(|p| p.name.to_vec()),
        // One that cannot be read is made somewhere all the same.
        tablespace: rec.tablespace_made().unwrap_or_else(|_| Some(b"an unknown place".to_vec())),
    }
}
