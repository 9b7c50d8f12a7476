//! The WAL half of a verification: every acknowledged segment, whether neighbours belong together, what a lost one
//! takes with it, and the small files beside them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_pg::names::WalFileName;
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, TimelineId};
use pgark_repo::RepoError;
use pgark_repo::catalog::{Lineage, PhysicalBackup};
use pgark_repo::names::{self, BackupId};
use pgark_repo::wal::{WalArchive, WalHead, WalIndex};

use super::parity::stranger;
use super::{Depth, LostWindow, ProblemKind, Verify, kind_of};
use crate::archive::{self, WalPath};
use crate::error::{EngineError, Result};

/// The last transaction time of each segment that is whole: all that is kept of them, for there may be millions.
type Whole = BTreeMap<SegmentName, Option<i64>>;

/// What tells whether the next segment continues this one.
struct Ends {
    name: SegmentName,
    has_records: bool,
    last_starts: [Option<Lsn>; 2],
}

impl Ends {
    fn of(name: SegmentName, index: &WalIndex) -> Self {
        Ends { name, has_records: index.first_record.is_some(), last_starts: index.last_starts() }
    }

    fn are_followed_by(&self, name: &SegmentName, after: &WalIndex) -> bool {
        let next = (self.name.timeline, self.name.segment.next()) == (name.timeline, name.segment);
        let known: Vec<&Lsn> = self.last_starts.iter().flatten().collect();
        let says_something = next && self.has_records && after.first_record.is_some();
        !says_something || known.is_empty() || known.contains(&&after.first_prev)
    }
}

/// Notes of one kind; more of them are counted.
const UNACKNOWLEDGED_NAMED: u64 = 100;

impl Verify<'_> {
    pub(super) fn wal(&mut self, lineage: &Lineage, backups: &[&PhysicalBackup]) -> Result<()> {
        let wal = WalArchive::new(self.repo, &self.options.cluster, lineage.system_id);
        let head = match wal.head() {
            Ok(h) => h,
            // Reported with the registers already; every segment is now a stranger.
            Err(e) if e.is_damage() => WalHead::default(),
            Err(e) => return Err(e.into()),
        };
        let mut good = Whole::new();
        let mut before: Option<Ends> = None;
        let mut bad: Vec<(SegmentName, ProblemKind, String)> = vec![];
        let total: u64 = head.timelines().iter().flat_map(|t| &t.ranges).map(|(a, b)| b - a + 1).sum();
        self.ctx.progress.begin("verify WAL", Some(total.saturating_mul(lineage.segment_size.bytes())));
        for span in head.timelines() {
            if span.history {
                self.history_file(&wal, span.timeline, backups, lineage, &head)?;
            }
            for n in span.ranges.iter().flat_map(|(a, b)| *a..=*b) {
                let name = SegmentName { timeline: span.timeline, segment: SegmentNo(n) };
                if !self.wanted_segment(&name, lineage, backups) {
                    continue;
                }
                self.ctx.check_cancelled()?;
                let object = wal.object_of(&head, &name, lineage.segment_size)?;
                self.claimed.insert(&object);
                self.report.objects_checked += 1;
                self.replaced_copies(&wal, &head, &name, lineage)?;
                let checked = self.unsteady.read(object.as_str(), || self.segment(&wal, &name, lineage));
                self.report.bytes_checked += checked.as_ref().map_or(0, |(_, bytes)| *bytes);
                let checked = checked.map(|(index, _)| index);
                let checked = self.opened(&object, checked).and_then(|index| {
                    self.parity.check(self.repo, &object)?;
                    Ok(index)
                });
                match checked {
                    Ok(None) => before = None,
                    Ok(Some(index)) => {
                        match before.as_ref().filter(|b| !b.are_followed_by(&name, &index)) {
                            Some(b) => {
                                let what = format!("does not continue {}", b.name.format(lineage.segment_size));
                                bad.push((name, ProblemKind::Broken, what));
                            }
                            None => drop(good.insert(name, index.last_time)),
                        }
                        before = Some(Ends::of(name, &index));
                    }
                    Err(e) if e.is_damage() => bad.push((name, kind_of(&e), e.to_string())),
                    Err(e) => return Err(e.into()),
                }
                self.ctx.progress.advance(lineage.segment_size.bytes());
            }
            for (first, last) in span.gaps() {
                self.gap(&wal, span.timeline, first, last, lineage, backups, &head);
            }
        }
        self.ctx.progress.end();
        for (name, kind, what) in bad {
            let object = wal.object_of(&head, &name, lineage.segment_size)?.to_string();
            let (lost, windows) =
                self.effect(&wal, &head, name.timeline, name.segment, name.segment, lineage, backups, &good);
            self.problem(&object, kind, what, lost, windows);
        }
        self.own_wal(&wal, &head, lineage, backups)?;
        self.side_files(&wal, &head, lineage)
    }

    /// What each backup needs to become consistent must be on record: the head may have lost what the catalog still knows of.
    fn own_wal(
        &mut self,
        wal: &WalArchive,
        head: &WalHead,
        lineage: &Lineage,
        backups: &[&PhysicalBackup],
    ) -> Result<()> {
        for b in backups.iter().filter(|b| b.system_id == lineage.system_id) {
            let told = |p: &super::Problem| p.kind == ProblemKind::Gap && p.backups.contains(&b.id);
            if self.report.problems.iter().any(told) {
                continue;
            }
            let path = match archive::history(wal, b.timeline) {
                Ok(history) => Some(WalPath::new(&history, lineage.segment_size)),
                // That it is missing is told as such; the segments are looked for on the backup's own timeline.
                Err(e) if e.is_damage() || e.code() == "E-HISTORY-MISSING" => None,
                // A writer cannot read what is from before its time.
                Err(EngineError::Repo(RepoError::WriteOnly { .. })) => None,
                Err(e) => return Err(e),
            };
            let (first, last) = b.segments(lineage.segment_size);
            let names = (first.0..=last.0).map(|n| match &path {
                Some(path) => path.name(SegmentNo(n)),
                None => SegmentName { timeline: b.timeline, segment: SegmentNo(n) },
            });
            let unknown = |n: &SegmentName| !head.timeline(n.timeline).is_some_and(|t| t.contains(n.segment));
            let unknown: Vec<SegmentName> = names.filter(unknown).collect();
            let Some(first) = unknown.first() else { continue };
            let object = wal.object_of(head, first, lineage.segment_size)?;
            let what = format!(
                "{} WAL segments that the backup needs to become consistent are not in the archive, this one first",
                unknown.len()
            );
            self.problem(object.as_str(), ProblemKind::Missing, what, vec![b.id.clone()], vec![]);
        }
        Ok(())
    }

    /// When one backup is verified, its WAL from start to stop; otherwise all.
    fn wanted_segment(&self, name: &SegmentName, lineage: &Lineage, backups: &[&PhysicalBackup]) -> bool {
        if self.options.only.is_none() {
            return true;
        }
        let (start, end) = (name.segment.start(lineage.segment_size), name.segment.end(lineage.segment_size));
        backups.iter().any(|b| b.system_id == lineage.system_id && start < b.lsn_stop && end > b.lsn_start)
    }

    /// Its index, and how many bytes of it were read.
    fn segment(&self, wal: &WalArchive, name: &SegmentName, lineage: &Lineage) -> Result<(WalIndex, u64), RepoError> {
        if self.by_books() {
            return wal.index(name, lineage.segment_size).map(|index| (index, 0));
        }
        let mut reader = wal.open_segment(name, lineage.segment_size)?;
        let index = reader.index.clone();
        if self.options.depth == Depth::Quick {
            return reader.check_length().map(|()| (index, 0));
        }
        let mut read = 0;
        while let Some(bytes) = reader.next()? {
            read += bytes.len() as u64;
        }
        Ok((index, read))
    }

    /// The unfinished copies that a longer one replaced: nothing depends on them, and a copy of the repository has none, but what
    /// is there is ours.
    fn replaced_copies(
        &mut self,
        wal: &WalArchive,
        head: &WalHead,
        name: &SegmentName,
        lineage: &Lineage,
    ) -> Result<()> {
        for copy in head.first_copy(name)..head.copy_of(name) {
            let object = wal.place().segment(name, lineage.segment_size, copy)?;
            match self.repo.store().find(&object) {
                Ok(_) => {}
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(RepoError::from(e).into()),
            }
            self.claimed.insert(&object);
            self.report.objects_checked += 1;
            let read = self.unsteady.read(object.as_str(), || self.read_through(wal, &object));
            let read = self.opened(&object, read).map(drop);
            match read.and_then(|()| self.parity.check(self.repo, &object)) {
                Ok(()) => {}
                Err(e) if e.is_damage() => self.problem(object.as_str(), kind_of(&e), e, vec![], vec![]),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn history_file(
        &mut self,
        wal: &WalArchive,
        timeline: TimelineId,
        backups: &[&PhysicalBackup],
        lineage: &Lineage,
        head: &WalHead,
    ) -> Result<()> {
        let object = wal.place().history(timeline).to_string();
        self.claimed.insert(&object);
        self.report.objects_checked += 1;
        let read = self.opened(&wal.place().history(timeline), wal.history(timeline));
        match read {
            Ok(bytes) => {
                self.report.bytes_checked += bytes.map_or(0, |b| b.len() as u64);
                self.parity.check(self.repo, &wal.place().history(timeline))?;
                Ok(())
            }
            Err(e) if e.is_damage() => {
                // Without it nobody knows where this timeline began: nothing on it can be recovered.
                let span = head.timeline(timeline);
                let ends = span.and_then(|s| s.first().zip(s.last()));
                let windows =
                    ends.map(|(a, b)| lost(timeline, a.start(lineage.segment_size), b.end(lineage.segment_size)));
                let on_it = backups.iter().filter(|b| b.timeline == timeline && b.system_id == lineage.system_id);
                let ids = on_it.map(|b| b.id.clone()).collect();
                self.problem(&object, kind_of(&e), e, ids, windows.into_iter().collect());
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn gap(
        &mut self,
        wal: &WalArchive,
        timeline: TimelineId,
        first: SegmentNo,
        last: SegmentNo,
        lineage: &Lineage,
        backups: &[&PhysicalBackup],
        head: &WalHead,
    ) {
        let name = |segment| SegmentName { timeline, segment }.format(lineage.segment_size);
        let (ids, windows) = self.effect(wal, head, timeline, first, last, lineage, backups, &Whole::new());
        if ids.is_empty() && windows.is_empty() {
            return;
        }
        let object = format!("{}/{}..{}", wal.place().timeline_dir(timeline), name(first), name(last));
        self.problem(
            &object,
            ProblemKind::Gap,
            "these segments never got into this repository, later ones did",
            ids,
            windows,
        );
    }

    /// What is lost with these segments: backups that need them to be consistent, and every target from there
    /// on until a later backup makes a new beginning.
    #[allow(clippy::too_many_arguments)]
    fn effect(
        &self,
        wal: &WalArchive,
        head: &WalHead,
        timeline: TimelineId,
        first: SegmentNo,
        last: SegmentNo,
        lineage: &Lineage,
        backups: &[&PhysicalBackup],
        good: &Whole,
    ) -> (Vec<BackupId>, Vec<LostWindow>) {
        let size = lineage.segment_size;
        let (start, end) = (first.start(size), last.end(size));
        let mut ids = vec![];
        let mut windows: Vec<LostWindow> = vec![];
        for target in head.timelines() {
            let Ok(history) = archive::history(wal, target.timeline) else { continue };
            let path = WalPath::new(&history, size);
            if path.timeline_of(first) != timeline {
                continue;
            }
            let mut on_path: Vec<&&PhysicalBackup> = backups
                .iter()
                .filter(|b| b.system_id == lineage.system_id && path.contains(b.timeline, b.lsn_stop))
                .collect();
            on_path.sort_by_key(|b| b.lsn_stop);
            for b in &on_path {
                if b.lsn_start < end && start < b.lsn_stop && !ids.contains(&b.id) {
                    ids.push(b.id.clone());
                }
            }
            let reachable_before = on_path.iter().any(|b| b.lsn_start <= start);
            let next = on_path.iter().find(|b| b.lsn_start >= end);
            let archive_end = target.last().map_or(end, |l| l.end(size));
            let until = next.map_or(archive_end, |b| b.lsn_stop).min(archive_end.max(end));
            if !reachable_before || until <= start {
                continue;
            }
            let from_time = times_before(good, timeline, first);
            let to_time = next.map(|b| b.finished);
            let window = LostWindow { timeline: target.timeline, from_lsn: start, to_lsn: until, from_time, to_time };
            if !windows.contains(&window) {
                windows.push(window);
            }
        }
        (ids, windows)
    }

    /// Everything else below the WAL directory: whole segments, partial ones and small files must open.
    fn side_files(&mut self, wal: &WalArchive, head: &WalHead, lineage: &Lineage) -> Result<()> {
        if self.options.only.is_some() {
            return Ok(());
        }
        let (mut found, mut expired, claimed) = (vec![], 0u64, &self.claimed);
        let (conflicts, books) = (format!("{}/conflicts/", wal.place().dir()), wal.head_register());
        let listed = self.repo.store().list(&wal.place().dir(), &mut |stat| {
            let name = stat.name.as_str();
            let segment = names::segment_copy(names::principal(stat.name.basename()), lineage.segment_size);
            let has_expired = segment.is_some_and(|(n, copy)| copy < head.expired_below(&n));
            let is_parity = names::protected_by(name).is_some() && claimed.contains(names::principal(name));
            if claimed.contains(name) || is_parity || books.owns(name) {
            } else if has_expired && !name.starts_with(&conflicts) {
                expired += u64::from(names::principal(name) == name);
            } else {
                found.push(stat.name);
            }
            Ok(())
        });
        self.strange(listed)?;
        let mut unacknowledged = 0u64;
        for object in found {
            let name = object.as_str();
            if self.is_companion(name)? {
                continue;
            }
            self.report.objects_checked += 1;
            if name.starts_with(&conflicts) {
                let outcome = self.read_through(wal, &object);
                let outcome = self.opened(&object, outcome);
                let what = outcome
                    .err()
                    .map_or("another segment of the same name was refused and kept here".into(), |e| e.to_string());
                self.problem(name, ProblemKind::Conflict, what, vec![], vec![]);
                continue;
            }
            let plain = names::without_copy(object.basename());
            let file = WalFileName::parse(plain);
            let outcome = match &file {
                Ok(WalFileName::Partial(_)) => self.read_through(wal, &object),
                Ok(f @ WalFileName::BackupHistory { .. }) => wal.side_file(f).map(drop),
                // A push that was interrupted before PostgreSQL had its answer: it will push the file again.
                Ok(WalFileName::Segment(_)) => {
                    self.unacknowledged(&mut unacknowledged, name);
                    self.read_through(wal, &object)
                }
                Ok(f @ WalFileName::History(_)) => {
                    self.unacknowledged(&mut unacknowledged, name);
                    wal.side_file(f).map(drop)
                }
                _ => {
                    let no_name = "no name that pgark gives to an object: somebody put it here";
                    let what = if names::principal(name) == name { no_name } else { stranger(name) };
                    self.problem(name, ProblemKind::Unexpected, what, vec![], vec![]);
                    continue;
                }
            };
            let outcome = self.opened(&object, outcome).map(drop);
            match outcome.and_then(|()| self.parity.check(self.repo, &object)) {
                Ok(()) => {}
                // No book names it, and it went after it was listed.
                Err(e) if e.is_not_found() => {}
                Err(e) if e.is_damage() => self.problem(name, kind_of(&e), e, vec![], vec![]),
                Err(e) => return Err(e.into()),
            }
        }
        if unacknowledged > UNACKNOWLEDGED_NAMED {
            let more = unacknowledged - UNACKNOWLEDGED_NAMED;
            self.report.notes.push(format!("{more} more WAL files are stored and were not acknowledged"));
        }
        if expired > 0 {
            self.report
                .notes
                .push(format!("{expired} WAL segments have expired and were not checked: 'pgark expire' removes them"));
        }
        Ok(())
    }

    fn unacknowledged(&mut self, count: &mut u64, name: &str) {
        *count += 1;
        if *count <= UNACKNOWLEDGED_NAMED {
            self.report.notes.push(format!("{name} is stored and was not acknowledged: a push was interrupted"));
        }
    }

    fn read_through(&self, wal: &WalArchive, object: &pgark_repo::store::ObjectName) -> Result<(), RepoError> {
        if self.by_books() {
            return wal.object_index(object).map(drop);
        }
        let mut reader = wal.open_object(object)?;
        if self.options.depth == Depth::Full {
            while reader.next()?.is_some() {}
        }
        Ok(())
    }
}

/// The last commit that is still reachable before this segment.
fn times_before(good: &Whole, timeline: TimelineId, first: SegmentNo) -> Option<Timestamp> {
    let before = good.range(..SegmentName { timeline, segment: first }).rev();
    let last = before.filter(|(n, _)| n.timeline == timeline).find_map(|(_, time)| *time)?;
    Some(crate::restore::resolve::to_timestamp(pgark_pg::value::PgTimestamp(last)))
}

fn lost(timeline: TimelineId, from_lsn: Lsn, to_lsn: Lsn) -> LostWindow {
    LostWindow { timeline, from_lsn, to_lsn, from_time: None, to_time: None }
}
