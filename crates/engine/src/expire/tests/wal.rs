//! Which WAL stays, over random trees of timelines: by what recovery needs, and by what nothing accounts for.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use pgark_pg::history::{HistoryEntry, TimelineHistory};
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Evidence, PhysicalBackup, PhysicalFacts, WalNeed};
use pgark_repo::crypto::KeySet;
use pgark_repo::names::ClusterName;
use pgark_repo::store::MemoryStore;
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::{WalArchive, WalHead};

use super::super::policy::{Branch, Policy};
use super::super::wal::{Archive, Kept, Timeline};
use super::random::{Random, START, at, id};
use crate::archive::WalPath;

const CASES: u64 = 8000;
const SYSTEM: SystemId = SystemId(1);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn timeline(n: u32) -> TimelineId {
    TimelineId::new(n).unwrap()
}

fn lsn(segment: u64, part: u64) -> Lsn {
    Lsn((segment << 20) + part)
}

pub fn entry(n: usize, timeline: TimelineId, start: Lsn, stop: Lsn, time: Timestamp) -> BackupEntry {
    BackupEntry {
        id: id(n),
        kind: BackupKind::Physical,
        backup_type: BackupType::Full,
        system_id: SYSTEM,
        version_num: 150018,
        started: time,
        finished: time,
        physical: Some(PhysicalFacts {
            lsn_start: start,
            lsn_stop: stop,
            stopped: time,
            timeline,
            bad_blocks: 0,
            from_standby: false,
        }),
        size_bytes: 0,
        read_bytes: 0,
        stored_bytes: 0,
        database_bytes: None,
        series: None,
        kept: false,
        kept_until: None,
        holds: vec![],
        damaged: None,
        certain: None,
        evidence: Evidence::Stored,
        drilled: None,
        annotations: BTreeMap::new(),
        needs: vec![],
        record: Fingerprint { size: 0, blake3: String::new() },
    }
}

struct Case {
    archive: Archive,
    entries: Vec<(PhysicalBackup, bool)>,
    policy: Policy,
    at: Timestamp,
    needs: Vec<WalNeed>,
}

fn case(seed: u64) -> Case {
    let mut r = Random(seed);
    let mut histories: BTreeMap<u32, Vec<HistoryEntry>> = BTreeMap::from([(1, vec![])]);
    let mut spans: BTreeMap<u32, (u64, u64)> = BTreeMap::from([(1, (1, 5 + r.below(40)))]);
    for t in 2..2 + r.below(4) as u32 {
        let parent = 1 + r.below(u64::from(t) - 1) as u32;
        let (first, last) = spans[&parent];
        let switch = lsn(first + r.below(last - first + 1), r.pick(&[0, 100, (1 << 20) - 8]));
        let mut entries = histories[&parent].clone();
        entries.push(HistoryEntry { timeline: timeline(parent), switch, reason: vec![] });
        histories.insert(t, entries);
        let begin = SegmentNo::containing(switch, size()).0;
        spans.insert(t, (begin, begin + r.below(25)));
    }
    let mut head = WalHead::default();
    for (t, (first, last)) in &spans {
        for n in *first..=*last {
            if !r.one_in(25) {
                head.add_segment(&SegmentName { timeline: timeline(*t), segment: SegmentNo(n) }, 0);
            }
        }
    }
    // Time goes with the position: a day per segment.
    let time = |segment: u64| START + segment as i64 * 86_400;
    let mut entries = vec![];
    for n in 0..r.below(8) as usize {
        let t = 1 + r.below(spans.len() as u64) as u32;
        let (first, last) = spans[&t];
        let start = first + r.below(last - first + 1);
        // On a new timeline, not before it began.
        let switch = histories[&t].last().map_or(Lsn(0), |e| e.switch);
        let from = lsn(start, 40).max(switch);
        let stop = Lsn(from.0 + r.pick(&[200, 1 << 20, 3 << 20]));
        entries.push((entry(n, timeline(t), from, stop, at(time(start))).as_physical().unwrap(), !r.one_in(5)));
    }
    let mut timelines = vec![];
    for (t, history) in &histories {
        let path = WalPath::new(&TimelineHistory { target: timeline(*t), entries: history.clone() }, size());
        let mut on: Vec<&PhysicalBackup> =
            entries.iter().map(|(e, _)| e).filter(|e| path.contains(e.timeline, e.lsn_stop)).collect();
        on.sort_by_key(|e| (e.lsn_stop, &e.id));
        let last_time = (!r.one_in(6)).then(|| at(time(spans[t].1)));
        let backups = on.iter().map(|e| e.id.clone()).collect();
        let path = (!r.one_in(12)).then_some(path);
        timelines.push(Timeline { timeline: timeline(*t), path, branch: Branch { last_time, backups } });
    }
    let mut span = |one_in: u64| r.one_in(one_in).then(|| std::time::Duration::from_secs(r.below(40) * 86_400));
    let policy = Policy { wal: span(2), window: span(4), ..Policy::none() };
    let needs = (0..r.below(2)).map(|_| WalNeed {
        system_id: SYSTEM,
        timeline: timeline(1 + r.below(spans.len() as u64) as u32),
        from: lsn(r.below(40), 0),
        to: r.one_in(2).then(|| lsn(r.below(60), 9)),
    });
    let needs = needs.collect();
    let at = at(time(r.below(60)));
    let is_current = !r.one_in(4);
    let archive = Archive {
        system_id: SYSTEM,
        size: size(),
        head,
        timelines,
        is_current,
        is_behind: false,
        notes: vec![],
        wal: nowhere(),
    };
    Case { archive, entries, policy, at, needs }
}

fn nowhere() -> WalArchive {
    let repo = Repository::open_for_wal(Arc::new(MemoryStore::new()), KeySet::unencrypted());
    WalArchive::new(&repo, &ClusterName::parse("c").unwrap(), SYSTEM)
}

#[test]
fn what_recovery_needs_stays_and_nothing_else() {
    let (mut gone, mut stayed) = (0, 0);
    for seed in 0..CASES {
        let c = case(seed);
        let kept: Vec<Kept<'_>> =
            c.entries.iter().map(|(entry, good)| Kept { entry, time: entry.finished, good: *good }).collect();
        let going = c.archive.going(&kept, &c.needs, &c.policy, c.at);
        let mut after = c.archive.head.clone();
        after.expire(1, &going);
        let place = format!("case {seed} of {CASES}, seed {seed}");
        recovery_is_as_before(&c, &after, &place);
        for span in c.archive.head.timelines() {
            for n in span.ranges.iter().flat_map(|(a, b)| *a..=*b) {
                let name = SegmentName { timeline: span.timeline, segment: SegmentNo(n) };
                let stays = after.timeline(span.timeline).unwrap().contains(SegmentNo(n));
                let justified = Oracle(&c).justifies(&name);
                assert_eq!(stays, justified, "{place}: {name:?}\n{:?}\n{:#?}", c.policy, c.entries);
                *(if stays { &mut stayed } else { &mut gone }) += 1;
            }
        }
    }
    assert!(gone > 50_000 && stayed > 50_000, "{gone} {stayed}");
}

/// Every backup is as consistent as before, and from where recovery has to begin it reaches as far.
fn recovery_is_as_before(c: &Case, after: &WalHead, place: &str) {
    let oracle = Oracle(c);
    for t in &c.archive.timelines {
        let Some(path) = &t.path else { continue };
        for (e, _) in c.entries.iter().filter(|(e, _)| e.timeline == t.timeline) {
            for name in path.segments(e.lsn_start, e.lsn_stop) {
                let had = |head: &WalHead| head.timeline(name.timeline).is_some_and(|s| s.contains(name.segment));
                assert_eq!(had(after), had(&c.archive.head), "{place}: {name:?} of backup {}", e.id);
            }
        }
        if let Some(base) = oracle.base(t) {
            let from = SegmentNo::containing(base.lsn_start, size());
            assert_eq!(path.unbroken_to(after, from), path.unbroken_to(&c.archive.head, from), "{place}: {}", base.id);
        }
    }
}

struct Oracle<'a>(&'a Case);

impl Oracle<'_> {
    fn cutoff(&self) -> Option<i64> {
        let p = &self.0.policy;
        let seconds = [p.wal, p.window].into_iter().flatten().map(|s| s.as_secs() as i64).max()?;
        Some(self.0.at.as_second() - seconds)
    }

    fn is_alive(&self, t: &Timeline) -> bool {
        let Some(cutoff) = self.cutoff() else { return true };
        t.branch.last_time.is_none_or(|l| l.as_second() >= cutoff)
    }

    /// Where the WAL that stays on this timeline begins.
    fn base(&self, t: &Timeline) -> Option<&PhysicalBackup> {
        if !self.is_alive(t) {
            return None;
        }
        let path = t.path.as_ref()?;
        let on = |good_only: bool| -> Vec<&PhysicalBackup> {
            let wanted = self
                .0
                .entries
                .iter()
                .filter(|(e, good)| (*good || !good_only) && path.contains(e.timeline, e.lsn_stop));
            wanted.map(|(e, _)| e).collect()
        };
        let on = if on(true).is_empty() { on(false) } else { on(true) };
        let ended = |e: &&&PhysicalBackup| self.cutoff().is_some_and(|c| e.finished.as_second() <= c);
        let position = |e: &&&PhysicalBackup| (e.lsn_stop, e.id.clone());
        on.iter().filter(ended).max_by_key(position).or(on.iter().min_by_key(position)).copied()
    }

    fn justifies(&self, name: &SegmentName) -> bool {
        let within = |from: Lsn, to: Lsn| {
            let last = Lsn(to.0.saturating_sub(1).max(from.0));
            (SegmentNo::containing(from, size())..=SegmentNo::containing(last, size())).contains(&name.segment)
        };
        let path_of = |t: TimelineId| self.0.archive.timelines.iter().find(|x| x.timeline == t)?.path.as_ref();
        let of_a_backup = self.0.entries.iter().any(|(e, _)| {
            let on_path = path_of(e.timeline).is_some_and(|p| p.name(name.segment) == *name);
            within(e.lsn_start, e.lsn_stop) && (e.timeline == name.timeline || on_path)
        });
        let of_a_job = self.0.needs.iter().any(|need| match path_of(need.timeline) {
            Some(path) => self.is_on(path, name, need.from, need.to),
            None => true,
        });
        of_a_backup || of_a_job || self.0.archive.timelines.iter().any(|t| self.of_timeline(t, name))
    }

    fn of_timeline(&self, t: &Timeline, name: &SegmentName) -> bool {
        let own = t.timeline == name.timeline;
        let Some(path) = &t.path else { return own };
        if !self.is_alive(t) {
            return false;
        }
        if let Some(base) = self.base(t) {
            return self.is_on(path, name, base.lsn_start, None);
        }
        let oldest = |good_only: bool| self.0.entries.iter().find(|(_, good)| *good || !good_only).map(|(e, _)| e);
        let of_use = match (self.cutoff(), oldest(true).or(oldest(false))) {
            (Some(_), _) => true,
            (None, Some(e)) => t.branch.last_time.is_none_or(|l| l >= e.finished),
            (None, None) => self.0.archive.is_current,
        };
        own && of_use
    }

    /// Whether a recovery along the path from there on could read it.
    fn is_on(&self, path: &WalPath, name: &SegmentName, from: Lsn, to: Option<Lsn>) -> bool {
        let (start, end) = (name.segment.start(size()), name.segment.end(size()));
        let first = path.ranges()[0].timeline;
        end > from
            && to.is_none_or(|to| start <= to)
            && path.ranges().iter().any(|r| {
                r.timeline == name.timeline
                    && (r.timeline == first || end > r.begin)
                    && r.end.is_none_or(|e| start <= e)
            })
    }
}
