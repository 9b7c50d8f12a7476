//! What retention gives up, on record before anything of it is removed.
//!
//! Invariant: one change takes backups off the list, decides which WAL goes, and proves that no listed backup and no
//! running job needs any of it. What is decided is never taken back: who applies or completes it late does no harm.

use jiff::Timestamp;
use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize, SystemId};
use serde::{Deserialize, Serialize};

use super::{BackupEntry, Catalog, Claim, JobKind, PhysicalBackup, Reading};
use crate::error::{RepoError, Result};
use crate::names::BackupId;
use crate::wal::SegmentRange;
use crate::wal::head::{merged, subtract};

/// A legal hold on a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Names it too.
    pub reason: String,
    pub since: Timestamp,
}

/// A backup that is not listed any more and whose objects are still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredBackup {
    pub backup: BackupId,
    pub since: Timestamp,
    /// When its objects may go.
    pub due: Timestamp,
    /// By which it can be listed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Box<BackupEntry>>,
}

/// A decision to expire WAL. The head applies decisions in the order of their numbers, each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalExpiry {
    /// The fence of the claim under which it was made.
    pub number: u64,
    pub system_id: SystemId,
    pub since: Timestamp,
    /// When the objects may go.
    pub due: Timestamp,
    /// The removal has begun: nothing of it comes back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
    pub ranges: Vec<SegmentRange>,
}

/// What one expiry gives up.
#[derive(Clone, Debug)]
pub struct Expiry {
    pub backups: Vec<BackupId>,
    /// By system identifier.
    pub wal: Vec<(SystemId, Vec<SegmentRange>)>,
    pub since: Timestamp,
    pub due: Timestamp,
    /// The backups that were listed when this was decided, as they were: who has changed meanwhile was decided wrongly.
    pub seen: Vec<BackupEntry>,
    /// The last claim that was known then.
    pub seen_fence: u64,
    /// The clocks just now.
    pub reading: Reading,
}

impl Claim {
    /// The first phase: nothing is removed yet.
    pub fn expire(&self, expiry: &Expiry) -> Result<()> {
        assert!(self.kind() == JobKind::Expire, "one expires under a claim to expire");
        self.change(|c| {
            c.refuse_changed(expiry, self.fence())?;
            c.advance_clock(&expiry.reading);
            let (since, due) = (expiry.since, expiry.due);
            let (going, staying) =
                std::mem::take(&mut c.backups).into_iter().partition(|b| expiry.backups.contains(&b.id));
            c.backups = staying;
            let going: Vec<BackupEntry> = going;
            c.expired.extend(going.into_iter().map(|entry| {
                let backup = entry.id.clone();
                ExpiredBackup { backup, since, due, entry: Some(Box::new(entry)) }
            }));
            c.wal_expiries.extend(expiry.wal.iter().filter(|(_, ranges)| !ranges.is_empty()).map(
                |(system_id, ranges)| WalExpiry {
                    number: self.fence(),
                    system_id: *system_id,
                    since,
                    due,
                    removing: false,
                    ranges: ranges.clone(),
                },
            ));
            Ok(())
        })
    }

    /// Our clock is right and the time has passed, whatever other clocks say: somebody takes responsibility for that.
    pub fn accept_clock(&self, reading: &Reading) -> Result<()> {
        self.change(|c| {
            c.accept_clock(reading);
            Ok(())
        })
    }

    /// The objects of these may go now.
    pub fn release_expired(&self, due: &dyn Fn(&ExpiredBackup) -> bool) -> Result<()> {
        self.change(|c| {
            let (going, staying) = std::mem::take(&mut c.expired).into_iter().partition(|e| due(e));
            let going: Vec<ExpiredBackup> = going;
            c.expired = staying;
            for gone in &going {
                c.give_up(&gone.backup);
                c.remove(&gone.backup);
            }
            Ok(())
        })
    }

    /// The objects of these decisions may go from now on, and none of them is taken back any more.
    pub fn begin_wal_removal(&self, due: &dyn Fn(&WalExpiry) -> bool) -> Result<()> {
        self.change(|c| {
            c.wal_expiries.iter_mut().for_each(|e| e.removing |= due(e));
            Ok(())
        })
    }

    /// Lists a backup again that has expired, with this mark, and takes WAL back that the head has taken back already.
    pub fn revive(&self, id: &BackupId, kept_until: Option<Timestamp>, wal: &[SegmentRange]) -> Result<BackupEntry> {
        assert!(self.kind() == JobKind::Expire, "expired backups belong to who expires");
        self.change(|c| {
            let gone = || RepoError::NoBackup { cluster: c.cluster.to_string(), id: id.to_string() };
            let at = c.expired.iter().position(|e| e.backup == *id).ok_or_else(gone)?;
            let mut entry = *c.expired[at].entry.clone().ok_or_else(gone)?;
            c.expired.remove(at);
            (entry.kept, entry.kept_until) = (kept_until.is_none(), kept_until);
            for e in c.wal_expiries.iter_mut().filter(|e| e.system_id == entry.system_id && !e.removing) {
                e.ranges = without(&e.ranges, wal);
            }
            c.wal_expiries.retain(|e| !e.ranges.is_empty());
            c.backups.push(entry.clone());
            c.backups.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(entry)
        })
    }

    /// Nothing is left to be done for these. A decision stays as long as a backup runs that began before it, because
    /// that one's commit must meet it.
    pub fn finish_wal_expiries(&self, done: &[(SystemId, u64)]) -> Result<()> {
        self.change(|c| {
            let oldest = c.jobs.iter().filter(|j| j.kind == JobKind::Backup).map(|j| j.fence).min();
            c.wal_expiries.retain(|e| !done.contains(&(e.system_id, e.number)) || oldest.is_some_and(|o| o < e.number));
            Ok(())
        })
    }
}

impl Catalog {
    /// A backup whose WAL was expired while it ran must not come to be.
    pub(super) fn refuse_expired_wal(&self, entry: &BackupEntry) -> Result<()> {
        let Some(lineage) = self.lineage_of(entry.system_id) else { return Ok(()) };
        let Some(physical) = entry.as_physical() else { return Ok(()) };
        let lost = self
            .wal_expiries
            .iter()
            .filter(|e| e.system_id == entry.system_id)
            .any(|e| e.ranges.iter().any(|r| uses(&physical, r, lineage.segment_size)));
        if lost { Err(RepoError::Expired { what: format!("wal of backup {}", entry.id) }) } else { Ok(()) }
    }

    fn refuse_changed(&self, expiry: &Expiry, own_fence: u64) -> Result<()> {
        let changed = |what: String| RepoError::Busy { what: format!("cluster '{}'", self.cluster), holder: what };
        for seen in &expiry.seen {
            let now = self.backup(&seen.id).ok_or_else(|| changed(format!("a deletion of {}", seen.id)))?;
            if !same_standing(seen, now) {
                return Err(changed(format!("a change of {}", seen.id)));
            }
        }
        for job in self.jobs.iter().filter(|j| j.fence != own_fence) {
            let reads = |id: &Option<BackupId>| id.as_ref().is_some_and(|id| expiry.backups.contains(id));
            let new = job.fence > expiry.seen_fence;
            // Along a history that is not known here: whatever lies at or after its beginning counts.
            let wal = job.needs.wal.as_ref().filter(|_| new).is_some_and(|need| {
                let size = self.lineage_of(need.system_id).map(|l| l.segment_size);
                let first = size.map_or(SegmentNo(0), |size| SegmentNo::containing(need.from, size));
                expiry.wal.iter().any(|(s, ranges)| *s == need.system_id && ranges.iter().any(|r| r.last >= first))
            });
            if reads(&job.backup) || reads(&job.needs.base) || wal {
                return Err(changed(job.describe()));
            }
        }
        for entry in self.physical().iter().filter(|b| !expiry.backups.contains(&b.id)) {
            let Some(lineage) = self.lineage_of(entry.system_id) else { continue };
            let ranges = expiry.wal.iter().filter(|(s, _)| *s == entry.system_id).flat_map(|(_, r)| r);
            if ranges.into_iter().any(|r| uses(entry, r, lineage.segment_size)) {
                return Err(changed(format!("backup {}, which needs WAL that was to expire", entry.id)));
            }
        }
        Ok(())
    }
}

fn without(ranges: &[SegmentRange], others: &[SegmentRange]) -> Vec<SegmentRange> {
    let of = |r: &SegmentRange| {
        let timeline = r.timeline;
        let others: Vec<(u64, u64)> =
            others.iter().filter(|o| o.timeline == timeline).map(|o| (o.first.0, o.last.0)).collect();
        let rest = subtract(&[(r.first.0, r.last.0)], &merged(others));
        rest.into_iter().map(move |(a, b)| SegmentRange { timeline, first: SegmentNo(a), last: SegmentNo(b) })
    };
    ranges.iter().flat_map(of).collect()
}

/// Whether retention would judge both alike.
fn same_standing(a: &BackupEntry, b: &BackupEntry) -> bool {
    let of = |e: &BackupEntry| (e.kept, e.kept_until, e.holds.clone(), e.damaged, e.evidence, e.record.clone());
    of(a) == of(b)
}

/// Whether a backup needs one of these segments to become consistent.
fn uses(entry: &PhysicalBackup, range: &SegmentRange, size: SegmentSize) -> bool {
    let (first, last) = entry.segments(size);
    range.timeline == entry.timeline && range.first <= last && first <= range.last
}

impl BackupEntry {
    /// Whether somebody said that it stays; `marks`: `Catalog::time_of_marks`.
    pub fn is_held(&self, marks: Timestamp) -> bool {
        self.kept || !self.holds.is_empty() || self.kept_until.is_some_and(|until| until > marks)
    }
}

impl WalExpiry {
    pub fn contains(&self, name: &SegmentName) -> bool {
        self.ranges.iter().any(|r| r.contains(name))
    }
}
