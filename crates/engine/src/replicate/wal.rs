//! WAL from one archive to another: every segment is authenticated as a whole before it is written, and the copy's head
//! names it only when it is durable there.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pgark_pg::names::WalFileName;
use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_pg::wal::Changes;
use pgark_repo::catalog::{CatalogStore, Lineage, PhysicalBackup};
use pgark_repo::names::ClusterName;
use pgark_repo::seals::{Anew, seal_into};
use pgark_repo::store::{ObjectName, StoreError};
use pgark_repo::wal::{Pushed, SegmentData, WalArchive, WalHead};
use pgark_repo::{RepoError, Repository};

use super::ReplicateReport;
use super::objects::place;
use crate::archive::kinship::{Beside, OTHER_HISTORY};
use crate::archive::push::push_side_file;
use crate::archive::{WalPath, history};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Segments that the head learns of together.
const BATCH: usize = 64;
/// Longer objects are not held in memory: they are read twice.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
const OTHER_SEGMENT: &str = "the index is of another segment";

/// WAL of one system identifier that the copy lacks.
pub struct WalToCopy {
    pub system_id: SystemId,
    pub segment_size: SegmentSize,
    /// Ascending, with the number of the copy that counts.
    pub segments: Vec<(SegmentName, u32)>,
    /// Of these, those that have expired in the copy: there they get names that were never used.
    pub again: BTreeSet<SegmentName>,
    pub histories: Vec<TimelineId>,
}

/// What the copy's own retention gave up stays away, but for what follows `again_from`, where a backup begins that is brought
/// back.
pub fn to_copy(
    from: &Repository,
    to: Option<&Repository>,
    cluster: &ClusterName,
    lineage: &Lineage,
    again_from: Option<SegmentNo>,
) -> Result<WalToCopy> {
    let head = WalArchive::new(from, cluster, lineage.system_id).head()?;
    let there = match to {
        // What the head names and the store has lost is copied too.
        Some(to) => {
            let archive = WalArchive::new(to, cluster, lineage.system_id);
            archive.present(&archive.head()?, lineage.segment_size)?
        }
        None => WalHead::default(),
    };
    let (mut segments, mut again, mut histories) = (vec![], BTreeSet::new(), vec![]);
    for span in head.timelines() {
        let known = there.timeline(span.timeline);
        if span.history && !known.is_some_and(|k| k.history) {
            histories.push(span.timeline);
        }
        for number in span.ranges.iter().flat_map(|(first, last)| *first..=*last) {
            let name = SegmentName { timeline: span.timeline, segment: SegmentNo(number) };
            let copy = head.copy_of(&name);
            if known.is_some_and(|k| k.is_expired(name.segment)) {
                if again_from.is_some_and(|first| name.segment >= first) {
                    segments.push((name, copy));
                    again.insert(name);
                }
                continue;
            }
            if !known.is_some_and(|k| k.contains(name.segment)) || there.copy_of(&name) < copy {
                segments.push((name, copy));
            }
        }
    }
    Ok(WalToCopy { system_id: lineage.system_id, segment_size: lineage.segment_size, segments, again, histories })
}

pub fn copy(
    from: &Repository,
    to: &Repository,
    cluster: &ClusterName,
    part: &WalToCopy,
    jobs: usize,
    ctx: &Ctx,
    report: &mut ReplicateReport,
) -> Result<()> {
    let (source, target) =
        (WalArchive::new(from, cluster, part.system_id), WalArchive::new(to, cluster, part.system_id));
    for timeline in &part.histories {
        push_side_file(&target, &WalFileName::History(*timeline), &source.history(*timeline)?)?;
        report.objects += 1;
    }
    let size = part.segment_size;
    let segments = of_one_history(&source, &target, part, report)?;
    ctx.progress.begin("copy of WAL", Some(segments.len() as u64 * size.bytes()));
    for batch in segments.chunks(BATCH) {
        ctx.check_cancelled()?;
        let head = target.head()?;
        let large = Mutex::default();
        let copier = Copier { from, to, source: &source, target: &target, head, again: &part.again, size, large };
        let mut done = vec![];
        for (segment, outcome) in batch.iter().zip(copier.copy_batch(batch, jobs, ctx)) {
            match outcome {
                Ok((bytes, copy)) => {
                    done.push((segment.0, copy));
                    report.segments += 1;
                    report.objects += u64::from(bytes > 0);
                    report.bytes += bytes;
                }
                // What is wrong with one segment is told, and the others go on.
                Err(e) if e.is_damage() || e.repo().is_some_and(|e| e.is_not_found() || is_conflict(e)) => {
                    report.failed.push((segment.0.format(size), e.to_string()));
                }
                Err(e) => return Err(e),
            }
        }
        target.acknowledge(&done)?;
    }
    ctx.progress.end();
    Ok(())
}

/// Without the runs of segments that are not of the history which the copy has: behind WAL of another one they would be
/// taken for its continuation.
fn of_one_history(
    source: &WalArchive,
    target: &WalArchive,
    part: &WalToCopy,
    report: &mut ReplicateReport,
) -> Result<Vec<(SegmentName, u32)>> {
    let size = part.segment_size;
    let (here, there) = (Beside::of(source, size)?, Beside::of(target, size)?);
    let goes_on = |(a, _): &(SegmentName, u32), (b, _): &(SegmentName, u32)| {
        a.timeline == b.timeline && a.segment.next() == b.segment
    };
    let mut admitted = vec![];
    for run in part.segments.chunk_by(goes_on) {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
        match there.admit_run(&here, first, last) {
            Ok(()) => admitted.extend_from_slice(run),
            Err(e) if e.code() == OTHER_HISTORY => {
                let what = match run.len() {
                    1 => first.format(size),
                    _ => format!("{} to {}", first.format(size), last.format(size)),
                };
                report.failed.push((what, format!("{}: {e}", e.code())));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(admitted)
}

fn is_conflict(e: &RepoError) -> bool {
    matches!(e, RepoError::Conflict { .. })
}

/// Bytes written, and the number of the copy there.
type Copied = Result<(u64, u32)>;

struct Copier<'a> {
    from: &'a Repository,
    to: &'a Repository,
    source: &'a WalArchive,
    target: &'a WalArchive,
    /// Of the target.
    head: WalHead,
    again: &'a BTreeSet<SegmentName>,
    size: SegmentSize,
    /// One at a time is held in memory.
    large: Mutex<()>,
}

impl Copier<'_> {
    fn copy_batch(&self, batch: &[(SegmentName, u32)], jobs: usize, ctx: &Ctx) -> Vec<Copied> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Copied>>> = Mutex::new(batch.iter().map(|_| None).collect());
        let work = || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some((name, copy)) = batch.get(n) else { return };
                let result = ctx.check_cancelled().and_then(|()| self.copy_one(name, *copy));
                ctx.progress.advance(self.size.bytes());
                if let Some(slot) = results.lock().expect("no thread panics with the lock").get_mut(n) {
                    *slot = Some(result);
                }
            }
        };
        thread::scope(|scope| {
            (1..jobs.min(batch.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        let results = results.into_inner().expect("the threads are gone");
        results.into_iter().map(|r| r.unwrap_or(Err(EngineError::Cancelled))).collect()
    }

    /// Returns the bytes written, none when the copy has the segment already, and the number of the copy there.
    fn copy_one(&self, name: &SegmentName, copy: u32) -> Result<(u64, u32)> {
        if self.again.contains(name) {
            return self.copy_again(name, copy).map_err(|e| e.in_repository(&self.from.store().url()));
        }
        if self.from.id() != self.to.id() {
            return Ok((self.copy_anew(name, copy)?, copy));
        }
        // What the target says is named already.
        let bytes = self.copy_named(name, copy).map_err(|e| e.in_repository(&self.from.store().url()))?;
        Ok((bytes, copy))
    }

    /// Of a segment that has expired there: whoever removes the old one may be late, so it is sealed under a new name.
    fn copy_again(&self, name: &SegmentName, copy: u32) -> Result<(u64, u32)> {
        let object = self.source.place().segment(name, self.size, copy)?;
        let _alone = (self.size.bytes() > MEMORY_BYTES_MAX).then(|| self.large.lock());
        let mut reader = self.source.open_object(&object)?;
        if reader.index.segment_name() != *name {
            return Err(RepoError::corrupt(&object, OTHER_SEGMENT).into());
        }
        let mut bytes = vec![];
        while let Some(block) = reader.next()? {
            bytes.extend_from_slice(block);
        }
        let not_kept =
            || Changes { unusable: Some("they were not kept with the segment".into()), ..Changes::default() };
        let changes = reader.changes()?.unwrap_or_else(not_kept);
        let mut data = SegmentData::Memory(&bytes);
        let pushed = self.target.push_segment_after(&self.head, &reader.index, &changes, &mut data);
        let (pushed, copy) = pushed.map_err(|e| self.in_target(e))?;
        let stored =
            || self.to.store().stat(&self.target.place().segment(name, self.size, copy)?).map_err(RepoError::from);
        match pushed {
            Pushed::Stored | Pushed::Longer => Ok((stored().map_err(|e| self.in_target(e))?.size, copy)),
            Pushed::AlreadyThere | Pushed::SameRecords => Ok((0, copy)),
        }
    }

    /// Into a repository with keys of its own.
    fn copy_anew(&self, name: &SegmentName, copy: u32) -> Result<u64> {
        let object = self.source.place().segment(name, self.size, copy)?;
        let content = self.whole(&object, name)?;
        if self.to.store().stat(&object).is_ok() {
            return self.compare(&object, &content);
        }
        match seal_into(&place(self.from), &place(self.to), &object, None)? {
            Anew::Sealed(bytes) => Ok(bytes),
            Anew::There => self.compare(&object, &content),
        }
    }

    /// Reads all of the segment; returns what it holds.
    fn whole(&self, object: &ObjectName, name: &SegmentName) -> Result<String> {
        let mut reader = self.source.open_object(object)?;
        if reader.index.segment_name() != *name {
            return Err(RepoError::corrupt(object, OTHER_SEGMENT).into());
        }
        while reader.next()?.is_some() {}
        Ok(reader.index.content)
    }

    fn copy_named(&self, name: &SegmentName, copy: u32) -> Result<u64> {
        let object = self.source.place().segment(name, self.size, copy)?;
        let store = self.from.store();
        let stored = store.stat(&object).map_err(RepoError::from)?.size;
        if stored > MEMORY_BYTES_MAX {
            self.whole(&object, name)?;
            return self.put_large(&object, stored);
        }
        let bytes = store.read(&object, MEMORY_BYTES_MAX).map_err(RepoError::from)?;
        let mut reader = self.source.open_bytes(&object, bytes.clone())?;
        if reader.index.segment_name() != *name {
            return Err(RepoError::corrupt(&object, OTHER_SEGMENT).into());
        }
        while reader.next()?.is_some() {}
        match self.to.store().put_new(&object, &bytes) {
            Ok(()) => Ok(bytes.len() as u64),
            Err(StoreError::AlreadyExists { .. }) => self.compare(&object, &reader.index.content),
            Err(e) => Err(self.in_target(RepoError::from(e))),
        }
    }

    fn put_large(&self, object: &ObjectName, stored: u64) -> Result<u64> {
        let found = self.from.store().find(object).map_err(RepoError::from)?;
        let failed = |e: StoreError| self.in_target(RepoError::from(e));
        let mut writer = self.to.store().create(object).map_err(failed)?;
        let mut buffer = vec![0; 4 * 1024 * 1024];
        let mut at = 0;
        while at < stored {
            let len = usize::try_from((stored - at).min(buffer.len() as u64)).expect("at most the buffer");
            self.from.store().read_at(&found.name, at, &mut buffer[..len]).map_err(RepoError::from)?;
            writer.write(&buffer[..len]).map_err(failed)?;
            at += len as u64;
        }
        match writer.finish() {
            Ok(()) => Ok(stored),
            Err(StoreError::AlreadyExists { .. }) => {
                let content = self.source.open_object(object)?.index.content;
                self.compare(object, &content)
            }
            Err(e) => Err(self.in_target(RepoError::from(e))),
        }
    }

    fn in_target(&self, e: RepoError) -> EngineError {
        EngineError::from(e).in_repository(&self.to.store().url())
    }

    /// The copy may have got the same segment from PostgreSQL itself, sealed on its own.
    fn compare(&self, object: &ObjectName, content: &str) -> Result<u64> {
        let same = || -> Result<bool, RepoError> {
            let mut there = self.target.open_object(object)?;
            while there.next()?.is_some() {}
            Ok(there.index.content == content)
        };
        match same() {
            Ok(true) => Ok(0),
            Ok(false) => Err(self.in_target(RepoError::Conflict { object: object.to_string() })),
            Err(e) => Err(self.in_target(e)),
        }
    }
}

/// Of the segments at both ends of what a backup needs, one that is of another history in the copy.
pub fn of_other_history(
    source: &WalArchive,
    target: &WalArchive,
    entry: &PhysicalBackup,
    repo: &Repository,
) -> Result<Option<String>> {
    let catalog = CatalogStore::new(repo, &target.place().cluster).read()?;
    let Some(size) = catalog.lineage_of(entry.system_id).map(|l| l.segment_size) else { return Ok(None) };
    let path = WalPath::new(&history(target, entry.timeline)?, size);
    let names = path.segments(entry.lsn_start, entry.lsn_stop);
    let (here, there) = (Beside::of(source, size)?, Beside::of(target, size)?);
    for name in names.first().into_iter().chain(names.last()) {
        if there.has_same(&here, name)? == Some(false) {
            return Ok(Some(name.format(size)));
        }
    }
    Ok(None)
}

/// The first segment that a backup needs and the archive does not name.
pub fn missing(archive: &WalArchive, entry: &PhysicalBackup, repo: &Repository) -> Result<Option<String>> {
    let catalog = CatalogStore::new(repo, &archive.place().cluster).read()?;
    let Some(lineage) = catalog.lineage_of(entry.system_id) else { return Ok(Some("(none at all)".into())) };
    missing_of(archive, entry, lineage.segment_size)
}

/// As `missing`, where the catalog does not tell the size of segments.
pub fn missing_of(archive: &WalArchive, entry: &PhysicalBackup, size: SegmentSize) -> Result<Option<String>> {
    let path = WalPath::new(&history(archive, entry.timeline)?, size);
    let head = archive.head()?;
    let names = path.segments(entry.lsn_start, entry.lsn_stop);
    let missing = names.iter().find(|n| !head.timeline(n.timeline).is_some_and(|t| t.contains(n.segment)));
    Ok(missing.map(|n| n.format(size)))
}
