//! The second phase of deletion: objects of what retention gave up, once they are due.
//!
//! Invariant: what is removed here was given up on record, and nothing can come to need it again: an id is given out
//! once, a segment that is archived again after it expired gets another name. So a process that slept, and whose claim
//! is lost, can at worst remove what is to go anyway; that it looks at its claim keeps even that from happening.

use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use pgark_pg::WalFileName;
use pgark_pg::names::RawSegment;
use pgark_pg::value::{SegmentName, SegmentSize};

use crate::catalog::{CatalogStore, Claim, Swept, WalExpiry, locked_until};
use crate::error::Result;
use crate::names::{self, ClusterName};
use crate::repository::Repository;
use crate::store::{ObjectStat, StoreError};
use crate::wal::{SegmentRange, WalArchive, WalHead};

/// A claim that was seen to hold is believed for so long.
const CLAIM_BELIEVED: Duration = Duration::from_secs(1);

/// What was removed, and what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub objects: u64,
    pub bytes: u64,
    /// The store keeps versions of what was removed until then, by object lock.
    pub locked_until: Option<Timestamp>,
    /// Backups and WAL segments that have expired and are not due yet.
    pub waiting_backups: u64,
    pub waiting_segments: u64,
}

/// Removes what is due; `due` is asked with the moment of the decision and the moment that was decided.
pub fn collect(
    repo: &Repository,
    cluster: &ClusterName,
    claim: &Claim,
    due: &dyn Fn(Timestamp, Timestamp) -> bool,
) -> Result<Collected> {
    let catalog = CatalogStore::new(repo, cluster).thrifty();
    let followed = apply_what_fits(repo, &catalog)?;
    let mut still_ours = guard(claim);
    let mut done = Collected::default();
    if catalog.read()?.expired.iter().any(|e| due(e.since, e.due)) {
        claim.release_expired(&|e| due(e.since, e.due))?;
    }
    // The second pass sees that nothing is left.
    for _ in 0..2 {
        done.add(&catalog.sweep_while(&mut still_ours)?);
    }
    if !followed {
        apply_pending(repo, &catalog)?;
    }
    let begins = |e: &WalExpiry| !e.removing && due(e.since, e.due);
    if catalog.read()?.wal_expiries.iter().any(begins) {
        claim.begin_wal_removal(&begins)?;
    }
    let before = catalog.read()?;
    let mut finished = vec![];
    for expiry in before.wal_expiries.iter().filter(|e| e.removing) {
        let Some(lineage) = before.lineage_of(expiry.system_id) else { continue };
        let wal = WalArchive::new(repo, cluster, expiry.system_id);
        let job = WalRemoval { repo, wal: &wal, head: wal.head()?, expiry, size: lineage.segment_size };
        done.add(&job.pass(&mut still_ours)?);
        if job.pass(&mut still_ours)?.objects == 0 {
            finished.push((expiry.system_id, expiry.number));
        }
    }
    if !finished.is_empty() {
        claim.finish_wal_expiries(&finished)?;
    }
    let waits = before.wal_expiries.iter().filter(|e| !e.removing);
    done.waiting_segments = waits.flat_map(|e| &e.ranges).map(SegmentRange::count).sum();
    done.waiting_backups = before.expired.len() as u64;
    Ok(done)
}

/// Brings every head up to the decisions of the catalog, in their order.
pub fn apply_pending(repo: &Repository, catalog: &CatalogStore) -> Result<()> {
    let mut pending = catalog.read()?.wal_expiries;
    pending.sort_by_key(|e| e.number);
    for e in pending {
        WalArchive::new(repo, catalog.cluster(), e.system_id).expire(e.number, &e.ranges)?;
    }
    Ok(())
}

/// As `apply_pending`, but a head that has no room is left for later: what backups hold can go before it. Returns whether all
/// have followed.
pub fn apply_what_fits(repo: &Repository, catalog: &CatalogStore) -> Result<bool> {
    match apply_pending(repo, catalog) {
        Err(e) if e.is_no_space() => Ok(false),
        other => other.map(|()| true),
    }
}

/// Puts back the second copies of the books that a full disk left out, as far as there is room now.
pub fn complete_books(repo: &Repository, cluster: &ClusterName) -> Result<()> {
    let complete = || -> Result<()> {
        let catalog = CatalogStore::new(repo, cluster);
        catalog.mend()?;
        for lineage in &catalog.read()?.lineages {
            WalArchive::new(repo, cluster, lineage.system_id).head_register().mend(&mut |_| Ok(()))?;
        }
        Ok(())
    };
    match complete() {
        Err(e) if e.is_no_space() => Ok(()),
        other => other,
    }
}

/// Room on a disk that is full, without writing anything first: what is off all lists goes. Returns what went.
pub fn make_room(repo: &Repository, cluster: &ClusterName) -> Result<Swept> {
    let catalog = CatalogStore::new(repo, cluster);
    match catalog.sweep_while(&mut || Ok(())) {
        // Everything was removed; only that nothing is left could not be put on record.
        Err(e) if e.is_no_space() => Ok(Swept::default()),
        other => other,
    }
}

/// To be asked before each deletion: says whether the claim still holds; by both clocks, as one of them stands still while a machine sleeps.
pub fn guard(claim: &Claim) -> impl FnMut() -> Result<()> + use<> {
    let claim = claim.clone();
    let mut seen: Option<(Instant, SystemTime)> = None;
    move || {
        let fresh = |(i, s): (Instant, SystemTime)| {
            i.elapsed() < CLAIM_BELIEVED && s.elapsed().is_ok_and(|e| e < CLAIM_BELIEVED)
        };
        if !seen.is_some_and(fresh) {
            let now = (Instant::now(), SystemTime::now());
            claim.check()?;
            seen = Some(now);
        }
        Ok(())
    }
}

struct WalRemoval<'a> {
    repo: &'a Repository,
    wal: &'a WalArchive,
    head: WalHead,
    expiry: &'a WalExpiry,
    size: SegmentSize,
}

impl WalRemoval<'_> {
    fn pass(&self, still_ours: &mut dyn FnMut() -> Result<()>) -> Result<Swept> {
        let mut swept = Swept::default();
        for range in &self.expiry.ranges {
            for object in self.objects(range)? {
                still_ours()?;
                let locked = locked_until(&**self.repo.store(), &object.name)?;
                match self.repo.store().delete(&object.name) {
                    Err(StoreError::NotFound { .. }) => {}
                    Ok(()) => {
                        swept.objects += 1;
                        swept.bytes += object.size;
                        swept.locked_until = swept.locked_until.max(locked);
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(swept)
    }

    fn objects(&self, range: &SegmentRange) -> Result<Vec<ObjectStat>> {
        let store = self.repo.store();
        let dir = self.wal.place().timeline_dir(range.timeline);
        let mut found = vec![];
        let log = |n: u64| n / self.size.per_log_file();
        // The file that PostgreSQL left unfinished lies one beyond the last whole one.
        let logs = log(range.first.0)..=log(range.last.0.saturating_add(1));
        for part in store.list_dirs(&dir)? {
            if !u64::from_str_radix(&part, 16).is_ok_and(|n| logs.contains(&n)) {
                continue;
            }
            store.list(&format!("{dir}/{part}"), &mut |stat| {
                if self.is_expired(range, stat.name.basename()) {
                    found.push(stat);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    fn is_expired(&self, range: &SegmentRange, file: &str) -> bool {
        let file = names::principal(file);
        if let Some((name, copy)) = names::segment_copy(file, self.size) {
            return range.contains(&name) && copy < self.head.expired_below(&name);
        }
        let Some(span) = self.head.timeline(range.timeline) else { return false };
        let number = |raw: &RawSegment| {
            let segment = raw.number(self.size).ok().filter(|_| raw.timeline == range.timeline)?;
            Some(SegmentName { timeline: raw.timeline, segment })
        };
        match WalFileName::parse(file) {
            Ok(WalFileName::BackupHistory { segment, .. }) => {
                number(&segment).is_some_and(|n| range.contains(&n) && span.is_expired(n.segment))
            }
            Ok(WalFileName::Partial(raw)) => number(&raw).is_some_and(|n| {
                let whole_timeline = span.ranges.is_empty() && span.end() == Some(range.last);
                let tail = whole_timeline && n.segment == range.last.next();
                tail || (range.contains(&n) && span.is_expired(n.segment))
            }),
            _ => false,
        }
    }
}

impl Collected {
    fn add(&mut self, swept: &Swept) {
        self.objects += swept.objects;
        self.bytes += swept.bytes;
        self.locked_until = self.locked_until.max(swept.locked_until);
    }
}
