//! Verification starts from what must exist: the catalog's backups and the head's WAL. Every object of theirs
//! is read, authenticated, decoded and compared; what is damaged or gone is reported with the backups and the
//! time windows it takes away. Objects that nobody claims are reported too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use jiff::Timestamp;
use pgark_pg::names::WalFileName;
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, TimelineId};
use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, Evidence, Lineage};
use pgark_repo::keyring;
use pgark_repo::manifest::{PackUse, packs_of};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack;
use pgark_repo::record::{BackupRecord, manifest_reader};
use pgark_repo::register::RegisterProblem;
use pgark_repo::wal::{WalArchive, WalHead, WalIndex};
use pgark_repo::{RepoError, Repository};

use crate::archive::{self, WalPath};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every byte.
    Full,
    /// Presence and size of what is listed; says nothing about content.
    Quick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    Missing,
    Damaged,
    /// Stored, and claimed by nothing that is listed.
    Unexpected,
    /// WAL that was never archived although earlier and later WAL was.
    Gap,
    /// Neighbouring WAL that does not belong together.
    Broken,
    /// Two different segments were pushed under one name.
    Conflict,
}

#[derive(Clone, Debug)]
pub struct Problem {
    pub object: String,
    pub kind: ProblemKind,
    pub what: String,
    /// Backups that cannot be restored any more.
    pub backups: Vec<BackupId>,
    /// Targets that cannot be reached any more.
    pub windows: Vec<LostWindow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostWindow {
    pub timeline: TimelineId,
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub from_time: Option<Timestamp>,
    pub to_time: Option<Timestamp>,
}

#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    pub objects_checked: u64,
    pub bytes_checked: u64,
    pub backups_checked: Vec<BackupId>,
    pub problems: Vec<Problem>,
    /// What is no damage and worth knowing.
    pub notes: Vec<String>,
}

#[derive(Clone)]
pub struct VerifyOptions {
    pub cluster: ClusterName,
    /// One backup and its WAL; otherwise everything.
    pub only: Option<BackupId>,
    pub depth: Depth,
    pub jobs: usize,
}

pub fn verify(options: &VerifyOptions, repo: &Repository, ctx: &Ctx) -> Result<VerifyReport> {
    let catalog_store = CatalogStore::new(repo, &options.cluster);
    let catalog = catalog_store.read()?;
    let mut v =
        Verify { options, repo, ctx, catalog: &catalog, claimed: BTreeSet::new(), report: VerifyReport::default() };
    v.registers(&catalog_store)?;
    let backups: Vec<&BackupEntry> = v.selected()?;
    let damaged = v.backups(&backups)?;
    for lineage in &catalog.lineages {
        v.wal(lineage, &backups)?;
    }
    if options.only.is_none() {
        v.strangers()?;
    }
    let mut report = v.report;
    if options.depth == Depth::Full {
        raise_evidence(&catalog_store, &backups, &damaged, &report)?;
    }
    report.problems.sort_by(|a, b| a.object.cmp(&b.object));
    Ok(report)
}

struct Verify<'a> {
    options: &'a VerifyOptions,
    repo: &'a Repository,
    ctx: &'a Ctx,
    catalog: &'a Catalog,
    /// Names of objects that something listed needs, or that belong to the books.
    claimed: BTreeSet<String>,
    report: VerifyReport,
}

/// What is kept of each segment's index: little, for there may be very many.
#[derive(Default)]
struct Facts {
    has_records: bool,
    first_prev: Lsn,
    last_starts: [Option<Lsn>; 2],
    last_time: Option<i64>,
}

impl Facts {
    fn of(index: &WalIndex) -> Self {
        Facts {
            has_records: index.first_record.is_some(),
            first_prev: index.first_prev,
            last_starts: index.last_starts(),
            last_time: index.last_time,
        }
    }

    fn is_followed_by(&self, after: &Facts) -> bool {
        let known: Vec<&Lsn> = self.last_starts.iter().flatten().collect();
        !after.has_records || known.is_empty() || known.contains(&&after.first_prev)
    }
}

/// One object to be read in full.
enum Check {
    Pack { object: PackUse, users: Vec<BackupId> },
}

impl<'a> Verify<'a> {
    fn problem(
        &mut self,
        object: &str,
        kind: ProblemKind,
        what: impl ToString,
        backups: Vec<BackupId>,
        windows: Vec<LostWindow>,
    ) {
        self.report.problems.push(Problem { object: object.into(), kind, what: what.to_string(), backups, windows });
    }

    fn selected(&self) -> Result<Vec<&'a BackupEntry>> {
        match &self.options.only {
            None => Ok(self.catalog.backups.iter().collect()),
            Some(id) => {
                let none = || RepoError::NoBackup { cluster: self.options.cluster.to_string(), id: id.to_string() };
                Ok(vec![self.catalog.backup(id).ok_or_else(none)?])
            }
        }
    }

    /// Key ring, catalog and WAL head: each has its copies.
    fn registers(&mut self, catalog: &CatalogStore) -> Result<()> {
        let mut found: Vec<RegisterProblem> = self.repo.check_keyring()?;
        found.extend(catalog.check()?);
        for lineage in &self.catalog.lineages {
            let wal = WalArchive::new(self.repo, &self.options.cluster, lineage.system_id);
            found.extend(wal.head_register().check()?);
        }
        self.report.objects_checked += 3;
        for p in found {
            let kind = if p.missing { ProblemKind::Missing } else { ProblemKind::Damaged };
            // Another copy still says what this one did; nothing is lost yet.
            self.problem(&p.object, kind, p.what, vec![], vec![]);
        }
        Ok(())
    }

    /// Returns the backups that cannot be restored.
    fn backups(&mut self, backups: &[&'a BackupEntry]) -> Result<BTreeSet<BackupId>> {
        let mut damaged = BTreeSet::new();
        let mut packs: BTreeMap<String, Check> = BTreeMap::new();
        for entry in backups {
            self.ctx.check_cancelled()?;
            self.report.backups_checked.push(entry.id.clone());
            let (cluster, id) = (&self.options.cluster, &entry.id);
            let (record_name, manifest_name) = (names::record(cluster, id), names::manifest(cluster, id));
            self.claimed.insert(record_name.to_string());
            self.claimed.insert(manifest_name.to_string());
            let record = BackupRecord::load(self.repo, cluster, id, &entry.record);
            let Some(record) = self.sorted(record.map_err(Into::into), record_name.as_str(), id, &mut damaged)? else {
                continue;
            };
            let uses = manifest_reader(self.repo, cluster, id).and_then(packs_of).map_err(EngineError::from);
            let Some((uses, print)) = self.sorted(uses, manifest_name.as_str(), id, &mut damaged)? else { continue };
            self.report.bytes_checked += print.size + entry.record.size;
            if print != record.manifest {
                damaged.insert(id.clone());
                let what = "not the manifest that this backup wrote";
                self.problem(manifest_name.as_str(), ProblemKind::Damaged, what, vec![id.clone()], vec![]);
                continue;
            }
            for object in uses {
                let name = names::pack(cluster, &object.id.backup, object.id.number).to_string();
                self.claimed.insert(name.clone());
                let Check::Pack { users, .. } = packs.entry(name).or_insert(Check::Pack { object, users: vec![] });
                users.push(id.clone());
            }
        }
        self.packs(packs, &mut damaged)?;
        Ok(damaged)
    }

    /// Damage goes to the report; trouble on the way to the object ends the verification.
    fn sorted<T>(
        &mut self,
        r: Result<T>,
        object: &str,
        id: &BackupId,
        damaged: &mut BTreeSet<BackupId>,
    ) -> Result<Option<T>> {
        self.report.objects_checked += 1;
        match r {
            Ok(v) => Ok(Some(v)),
            Err(EngineError::Repo(e)) if e.is_damage() => {
                damaged.insert(id.clone());
                self.problem(object, kind_of(&e), e, vec![id.clone()], vec![]);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn packs(&mut self, packs: BTreeMap<String, Check>, damaged: &mut BTreeSet<BackupId>) -> Result<()> {
        let list: Vec<(String, Check)> = packs.into_iter().collect();
        let total = list.iter().map(|(_, Check::Pack { object, .. })| object.fingerprint.size).sum();
        self.ctx.progress.begin("verify packs", Some(total));
        let next = AtomicUsize::new(0);
        let bytes = AtomicU64::new(0);
        let found: Mutex<Vec<(usize, RepoError)>> = Mutex::default();
        thread::scope(|scope| -> Result<()> {
            let (list, next, bytes, found) = (&list, &next, &bytes, &found);
            let this = &*self;
            let workers: Vec<_> = (0..this.options.jobs.max(1))
                .map(|_| {
                    scope.spawn(move || -> Result<()> {
                        loop {
                            this.ctx.check_cancelled()?;
                            let i = next.fetch_add(1, Ordering::Relaxed);
                            let Some((_, Check::Pack { object, .. })) = list.get(i) else { return Ok(()) };
                            match this.check_pack(object) {
                                Ok(n) => drop(bytes.fetch_add(n, Ordering::Relaxed)),
                                Err(e) if e.is_damage() => {
                                    found.lock().expect("no thread panics with the lock").push((i, e))
                                }
                                Err(e) => return Err(e.into()),
                            }
                            this.ctx.progress.advance(object.fingerprint.size);
                        }
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        self.ctx.progress.end();
        self.report.objects_checked += list.len() as u64;
        self.report.bytes_checked += bytes.load(Ordering::Relaxed);
        for (i, e) in found.into_inner().expect("the workers are gone") {
            let Some((name, Check::Pack { users, .. })) = list.get(i) else { continue };
            damaged.extend(users.iter().cloned());
            self.problem(name, kind_of(&e), e, users.clone(), vec![]);
        }
        Ok(())
    }

    fn check_pack(&self, object: &PackUse) -> Result<u64, RepoError> {
        let name = names::pack(&self.options.cluster, &object.id.backup, object.id.number);
        match self.options.depth {
            Depth::Full => pack::verify(self.repo.store(), self.repo.keys(), &name, &object.fingerprint),
            Depth::Quick => {
                let size = self.repo.store().stat(&name)?.size;
                if size == object.fingerprint.size {
                    Ok(0)
                } else {
                    Err(RepoError::corrupt(&name, format!("{size} bytes, {} were written", object.fingerprint.size)))
                }
            }
        }
    }

    fn wal(&mut self, lineage: &Lineage, backups: &[&BackupEntry]) -> Result<()> {
        let wal = WalArchive::new(self.repo, &self.options.cluster, lineage.system_id);
        let head = match wal.head() {
            Ok(h) => h,
            // Reported with the registers already; every segment is now a stranger.
            Err(e) if e.is_damage() => WalHead::default(),
            Err(e) => return Err(e.into()),
        };
        let mut good: BTreeMap<SegmentName, Facts> = BTreeMap::new();
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
                let object = wal.place().file(name.timeline, &name.format(lineage.segment_size))?;
                self.claimed.insert(object.to_string());
                self.report.objects_checked += 1;
                match self.segment(&wal, &name, lineage) {
                    Ok(index) => drop(good.insert(name, Facts::of(&index))),
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
        self.continuity(&mut good, &mut bad, lineage);
        for (name, kind, what) in bad {
            let object = wal.place().file(name.timeline, &name.format(lineage.segment_size))?.to_string();
            let (lost, windows) =
                self.effect(&wal, &head, name.timeline, name.segment, name.segment, lineage, backups, &good);
            self.problem(&object, kind, what, lost, windows);
        }
        self.side_files(&wal)
    }

    /// When one backup is verified, its WAL from start to stop; otherwise all.
    fn wanted_segment(&self, name: &SegmentName, lineage: &Lineage, backups: &[&BackupEntry]) -> bool {
        if self.options.only.is_none() {
            return true;
        }
        let (start, end) = (name.segment.start(lineage.segment_size), name.segment.end(lineage.segment_size));
        backups.iter().any(|b| b.system_id == lineage.system_id && start < b.lsn_stop && end > b.lsn_start)
    }

    fn segment(&mut self, wal: &WalArchive, name: &SegmentName, lineage: &Lineage) -> Result<WalIndex, RepoError> {
        let mut reader = wal.open_segment(name, lineage.segment_size)?;
        let index = reader.index.clone();
        if self.options.depth == Depth::Quick {
            return reader.check_length().map(|()| index);
        }
        while let Some(bytes) = reader.next()? {
            self.report.bytes_checked += bytes.len() as u64;
        }
        Ok(index)
    }

    fn continuity(
        &mut self,
        good: &mut BTreeMap<SegmentName, Facts>,
        bad: &mut Vec<(SegmentName, ProblemKind, String)>,
        lineage: &Lineage,
    ) {
        let mut breaks = vec![];
        for (name, index) in good.iter() {
            let Some(before) = name.segment.0.checked_sub(1) else { continue };
            let before = SegmentName { timeline: name.timeline, segment: SegmentNo(before) };
            if let Some(b) = good.get(&before)
                && b.has_records
                && !b.is_followed_by(index)
            {
                breaks.push((*name, format!("does not continue {}", before.format(lineage.segment_size))));
            }
        }
        for (name, what) in breaks {
            good.remove(&name);
            bad.push((name, ProblemKind::Broken, what));
        }
    }

    fn history_file(
        &mut self,
        wal: &WalArchive,
        timeline: TimelineId,
        backups: &[&BackupEntry],
        lineage: &Lineage,
        head: &WalHead,
    ) -> Result<()> {
        let object = wal.place().history(timeline).to_string();
        self.claimed.insert(object.clone());
        self.report.objects_checked += 1;
        match wal.history(timeline) {
            Ok(bytes) => {
                self.report.bytes_checked += bytes.len() as u64;
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
        backups: &[&BackupEntry],
        head: &WalHead,
    ) {
        let name = |segment| SegmentName { timeline, segment }.format(lineage.segment_size);
        let (ids, windows) = self.effect(wal, head, timeline, first, last, lineage, backups, &BTreeMap::new());
        if ids.is_empty() && windows.is_empty() {
            return;
        }
        let object = format!("{}/{}..{}", wal.place().timeline_dir(timeline), name(first), name(last));
        self.problem(&object, ProblemKind::Gap, "these segments were never archived, later ones were", ids, windows);
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
        backups: &[&BackupEntry],
        good: &BTreeMap<SegmentName, Facts>,
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
            let mut on_path: Vec<&&BackupEntry> = backups
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
    fn side_files(&mut self, wal: &WalArchive) -> Result<()> {
        if self.options.only.is_some() {
            return Ok(());
        }
        let mut found = vec![];
        self.repo.store().list(&wal.place().dir(), &mut |stat| {
            found.push(stat.name);
            Ok(())
        })?;
        let conflicts = format!("{}/conflicts/", wal.place().dir());
        for object in found {
            let name = object.as_str();
            if self.claimed.contains(name) || wal.head_register().owns(name) {
                continue;
            }
            self.claimed.insert(name.to_owned());
            self.report.objects_checked += 1;
            if name.starts_with(&conflicts) {
                let outcome = self.read_through(wal, &object);
                let what = outcome
                    .err()
                    .map_or("another segment of the same name was refused and kept here".into(), |e| e.to_string());
                self.problem(name, ProblemKind::Conflict, what, vec![], vec![]);
                continue;
            }
            let file = WalFileName::parse(object.basename());
            let outcome = match &file {
                Ok(WalFileName::Partial(_)) => self.read_through(wal, &object),
                Ok(f @ WalFileName::BackupHistory { .. }) => wal.side_file(f).map(drop),
                // A push that was interrupted before PostgreSQL had its answer: it will push the file again.
                Ok(WalFileName::Segment(_)) => {
                    self.report
                        .notes
                        .push(format!("{name} is stored and was not acknowledged: a push was interrupted"));
                    self.read_through(wal, &object)
                }
                Ok(f @ WalFileName::History(_)) => {
                    self.report
                        .notes
                        .push(format!("{name} is stored and was not acknowledged: a push was interrupted"));
                    wal.side_file(f).map(drop)
                }
                _ => {
                    let what = "no name that pgark gives to an object: somebody put it here";
                    self.problem(name, ProblemKind::Unexpected, what, vec![], vec![]);
                    continue;
                }
            };
            match outcome {
                Ok(()) => {}
                Err(e) if e.is_damage() => self.problem(name, kind_of(&e), e, vec![], vec![]),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn read_through(&self, wal: &WalArchive, object: &pgark_repo::store::ObjectName) -> Result<(), RepoError> {
        let mut reader = wal.open_object(object)?;
        if self.options.depth == Depth::Full {
            while reader.next()?.is_some() {}
        }
        Ok(())
    }

    /// Objects of the cluster, and at the top of the repository, that nothing listed accounts for.
    fn strangers(&mut self) -> Result<()> {
        let dir = names::cluster_dir(&self.options.cluster);
        let books = [
            keyring::register(self.repo.store().clone()),
            CatalogStore::new(self.repo, &self.options.cluster).register_of_books(),
        ];
        let mut found = vec![];
        self.repo.store().list("", &mut |stat| {
            found.push(stat.name.to_string());
            Ok(())
        })?;
        for name in found {
            let ours = name.starts_with(&format!("{dir}/")) || !name.starts_with("clusters/");
            if !ours || self.claimed.contains(&name) || books.iter().any(|b| b.owns(&name)) {
                continue;
            }
            if name.starts_with(&format!("{dir}/wal/")) {
                continue;
            }
            let id = name.strip_prefix(&format!("{dir}/backups/")).and_then(|r| r.split('/').next());
            let id = id.and_then(|i| BackupId::parse(i).ok());
            // An interrupted or running backup is accounted for by its job; its remains go with the next one.
            let known = id.as_ref().is_some_and(|id| {
                self.catalog.removing.contains(id) || self.catalog.jobs.iter().any(|j| j.backup == *id)
            });
            if known {
                continue;
            }
            let what =
                "nothing that is listed accounts for this object: the catalog lost an entry, or somebody put it here";
            self.problem(&name, ProblemKind::Unexpected, what, id.into_iter().collect(), vec![]);
        }
        Ok(())
    }
}

/// The last commit that is still reachable before this segment.
fn times_before(good: &BTreeMap<SegmentName, Facts>, timeline: TimelineId, first: SegmentNo) -> Option<Timestamp> {
    let before = good.range(..SegmentName { timeline, segment: first }).rev();
    let last = before.filter(|(n, _)| n.timeline == timeline).find_map(|(_, i)| i.last_time)?;
    Some(crate::restore::resolve::to_timestamp(pgark_pg::value::PgTimestamp(last)))
}

fn lost(timeline: TimelineId, from_lsn: Lsn, to_lsn: Lsn) -> LostWindow {
    LostWindow { timeline, from_lsn, to_lsn, from_time: None, to_time: None }
}

fn kind_of(e: &RepoError) -> ProblemKind {
    if e.is_not_found() { ProblemKind::Missing } else { ProblemKind::Damaged }
}

/// Backups of which every byte was just compared have earned it.
fn raise_evidence(
    catalog: &CatalogStore,
    backups: &[&BackupEntry],
    damaged: &BTreeSet<BackupId>,
    report: &VerifyReport,
) -> Result<()> {
    let hurt: BTreeSet<&BackupId> = report.problems.iter().flat_map(|p| &p.backups).chain(damaged).collect();
    let proven: Vec<&BackupId> = backups.iter().map(|b| &b.id).filter(|id| !hurt.contains(id)).collect();
    let changes = |b: &BackupEntry| proven.contains(&&b.id) && b.evidence < Evidence::Authenticated;
    catalog.update(|c| {
        if !c.backups.iter().any(changes) {
            return Ok(None);
        }
        for b in c.backups.iter_mut().filter(|b| changes(b)) {
            b.evidence = Evidence::Authenticated;
        }
        Ok(Some(()))
    })?;
    Ok(())
}
