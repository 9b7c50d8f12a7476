//! Jobs and claims: who may change a cluster's backups.
//!
//! Invariant: of jobs that exclude each other one is under way; who was taken for dead finds out before it commits.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use pgark_pg::value::{Lsn, SystemId, TimelineId};

use super::{BackupEntry, BackupKind, Catalog, CatalogStore, Doubt, Holder, PacksOf, Reading, Resealed};
use crate::error::{RepoError, Result};
use crate::names::BackupId;

/// How long a claim lasts without being renewed, seconds.
pub const CLAIM_TTL_SECONDS: i64 = 300;
pub const CLAIM_RENEW_SECONDS: u64 = 60;

/// Remains of interrupted backups kept for the next one; older ones are removed.
const INTERRUPTED_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Backup,
    Restore,
    Delete,
    /// Takes off the list what retention gives up, and removes what is due.
    Expire,
    /// Copies a backup of another repository into this one.
    Copy,
    /// Seals anew what is under an older key.
    Reencrypt,
}

/// What a job relies on beside its own backup: retention keeps it meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The backup that a new one takes over from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BackupId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalNeed>,
}

/// A stretch of WAL along the history of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalNeed {
    pub system_id: SystemId,
    pub timeline: TimelineId,
    pub from: Lsn,
    /// None: all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Lsn>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub kind: JobKind,
    /// The backup being made, restored or deleted; None for an expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    #[serde(default)]
    pub needs: Needs,
    pub fence: u64,
    pub holder: Holder,
    pub started: Timestamp,
    pub renewed: Timestamp,
}

impl CatalogStore {
    /// Claims the right to run a job. A claim of a process that is gone, or that was not renewed in time, is
    /// taken over: its holder finds out before it commits. Returns the remains that are to be cleaned up too.
    pub fn claim(&self, kind: JobKind, backup: &BackupId, now: Timestamp) -> Result<Claim> {
        self.claim_with(kind, backup, Needs::default(), now)
    }

    /// To copy a backup of another repository under its own id, alone but for restores. What lies in its place already, left
    /// by an earlier try or needed by others, is its own from now on.
    pub fn claim_copy(&self, backup: &BackupId, now: Timestamp) -> Result<Claim> {
        self.take(JobKind::Copy, Some(backup), Needs::default(), now, &|c| {
            if c.backup(backup).is_some() {
                return Err(RepoError::Conflict { object: crate::names::backup_dir(&c.cluster, backup) });
            }
            c.interrupted.retain(|id| id != backup);
            c.removing.retain(|id| id != backup);
            c.expired.retain(|e| e.backup != *backup);
            c.take_back(backup);
            Ok(())
        })
    }

    /// As `claim`, and from the same moment on nobody takes away what the job needs.
    pub fn claim_with(&self, kind: JobKind, backup: &BackupId, needs: Needs, now: Timestamp) -> Result<Claim> {
        self.take(kind, Some(backup), needs, now, &|c| {
            if kind != JobKind::Backup && c.backup(backup).is_none() && !c.has_remains(backup) {
                return Err(RepoError::NoBackup { cluster: c.cluster.to_string(), id: backup.to_string() });
            }
            if kind == JobKind::Backup && (c.backup(backup).is_some() || c.has_remains(backup)) {
                // Two backups under one name would share objects, and the remains of one take the other along.
                return Err(RepoError::Conflict { object: crate::names::backup_dir(&c.cluster, backup) });
            }
            Ok(())
        })
    }

    /// Claims the right to expire, beside running backups and restores. A claim that this very process was given
    /// without hearing of it, on a full disk, is replaced.
    pub fn claim_expiry(&self, now: Timestamp) -> Result<Claim> {
        self.take(JobKind::Expire, None, Needs::default(), now, &|_| Ok(()))
    }

    /// Claims the right to seal anew, beside running backups and restores: nothing is deleted meanwhile. As for an expiry,
    /// a claim that this very process was given without hearing of it is replaced.
    pub fn claim_reencryption(&self, now: Timestamp) -> Result<Claim> {
        self.take(JobKind::Reencrypt, None, Needs::default(), now, &|_| Ok(()))
    }

    fn take(
        &self,
        kind: JobKind,
        backup: Option<&BackupId>,
        needs: Needs,
        now: Timestamp,
        check: &dyn Fn(&mut Catalog) -> Result<()>,
    ) -> Result<Claim> {
        let holder = Holder::this_process()?;
        let fence = self.update(|c| {
            drop_dead_jobs(c, now);
            let alone = matches!(kind, JobKind::Expire | JobKind::Reencrypt);
            c.jobs.retain(|j| !(alone && j.kind == kind && j.holder == holder));
            if let Some(other) = c.jobs.iter().find(|j| excludes(j, kind, backup)) {
                return Err(RepoError::Busy { what: format!("cluster '{}'", c.cluster), holder: other.describe() });
            }
            check(c)?;
            c.fence = c.fence.checked_add(1).ok_or_else(|| RepoError::corrupt(&c.cluster, "its fence is used up"))?;
            if kind.makes_a_backup() {
                c.last_id = c.last_id.take().max(backup.cloned());
            }
            let (fence, holder, needs) = (c.fence, holder.clone(), needs.clone());
            c.jobs.push(Job { kind, backup: backup.cloned(), needs, fence, holder, started: now, renewed: now });
            Ok(Some(fence))
        })?;
        let fence = fence.expect("the change always returns a value");
        Ok(Claim { catalog: self.clone(), fence, kind, backup: backup.cloned() })
    }
}

/// What interrupted backups have stored stays for the next one.
fn drop_dead_jobs(c: &mut Catalog, now: Timestamp) {
    let (dead, alive): (Vec<Job>, Vec<Job>) = std::mem::take(&mut c.jobs).into_iter().partition(|j| j.is_dead(now));
    c.jobs = alive;
    for job in dead.into_iter().filter(|j| j.kind.makes_a_backup()) {
        let Some(id) = job.backup.filter(|id| c.backup(id).is_none()) else { continue };
        match keeps_remains(job.kind, &id) {
            true => c.interrupt(&id),
            false => c.remove(&id),
        }
    }
}

/// Whether a later backup can use what an interrupted one has stored: a dump is another one each time. A copy goes on from it
/// always.
fn keeps_remains(job: JobKind, id: &BackupId) -> bool {
    job == JobKind::Copy || id.kind() == BackupKind::Physical
}

impl Catalog {
    /// Remembers the remains of a backup. Nobody removes them before they go to `removing`, which happens in the same
    /// change in which a backup that uses them is listed.
    fn interrupt(&mut self, id: &BackupId) {
        if !self.interrupted.contains(id) && !self.removing.contains(id) {
            self.interrupted.push(id.clone());
        }
        let surplus = self.interrupted.len().saturating_sub(INTERRUPTED_MAX);
        let old: Vec<BackupId> = self.interrupted.drain(..surplus).collect();
        old.iter().for_each(|id| self.remove(id));
    }

    pub(super) fn remove(&mut self, id: &BackupId) {
        self.interrupted.retain(|i| i != id);
        if !self.removing.contains(id) {
            self.removing.push(id.clone());
        }
    }

    /// Whether objects of a backup may be there although it is not listed.
    pub fn has_remains(&self, id: &BackupId) -> bool {
        self.removing.contains(id) || self.interrupted.contains(id) || self.expired.iter().any(|e| e.backup == *id)
    }
}

impl JobKind {
    fn makes_a_backup(self) -> bool {
        matches!(self, JobKind::Backup | JobKind::Copy)
    }
}

fn excludes(running: &Job, kind: JobKind, backup: Option<&BackupId>) -> bool {
    match (running.kind, kind) {
        (JobKind::Restore, JobKind::Delete) | (JobKind::Delete, JobKind::Restore) => running.backup.as_ref() == backup,
        (JobKind::Restore, _) | (_, JobKind::Restore) => false,
        // What either needs is in the catalog, and every change of it says whether it still holds.
        (JobKind::Backup, JobKind::Expire) | (JobKind::Expire, JobKind::Backup) => false,
        // Both only add objects; what a backup reads stays until it has ended.
        (JobKind::Backup, JobKind::Reencrypt) | (JobKind::Reencrypt, JobKind::Backup) => false,
        _ => true,
    }
}

impl Job {
    pub fn is_dead(&self, now: Timestamp) -> bool {
        let age = now.as_second() - self.renewed.as_second();
        self.holder.is_gone() || age > CLAIM_TTL_SECONDS
    }

    pub fn describe(&self) -> String {
        let id = self.backup.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
        let what = match self.kind {
            JobKind::Backup => "backup",
            JobKind::Restore => "restore of",
            JobKind::Delete => "deletion of",
            JobKind::Expire => "expiry",
            JobKind::Copy => "copy of",
            JobKind::Reencrypt => "reencryption",
        };
        format!("{what}{id} (process {} on {}, since {})", self.holder.pid, self.holder.host, self.started)
    }
}

/// The right to run a job, held until it is released, committed or lost.
#[derive(Clone)]
pub struct Claim {
    catalog: CatalogStore,
    fence: u64,
    kind: JobKind,
    backup: Option<BackupId>,
}

impl Claim {
    /// The backup that the job is about; every job but an expiry has one.
    pub fn backup(&self) -> &BackupId {
        self.backup.as_ref().expect("not asked of an expiry")
    }

    pub fn fence(&self) -> u64 {
        self.fence
    }

    pub(super) fn kind(&self) -> JobKind {
        self.kind
    }

    /// From now on retention leaves this WAL alone.
    pub fn need_wal(&self, wal: WalNeed) -> Result<()> {
        self.change(|c| {
            c.jobs.iter_mut().filter(|j| j.fence == self.fence).for_each(|j| j.needs.wal = Some(wal));
            Ok(())
        })
    }

    fn fenced(&self) -> RepoError {
        RepoError::Fenced {
            what: format!("cluster '{}'", self.catalog.cluster),
            why: "another process took over; this one was thought dead".into(),
        }
    }

    pub(super) fn change<T>(&self, mut f: impl FnMut(&mut Catalog) -> Result<T>) -> Result<T> {
        let done = self.catalog.update(|c| {
            if !c.jobs.iter().any(|j| j.fence == self.fence) {
                return Err(self.fenced());
            }
            f(c).map(Some)
        })?;
        Ok(done.expect("the change always returns a value"))
    }

    /// Says that we are alive; an error when the claim was lost.
    pub fn renew(&self, now: Timestamp) -> Result<()> {
        self.change(|c| {
            c.jobs.iter_mut().filter(|j| j.fence == self.fence).for_each(|j| j.renewed = now);
            Ok(())
        })
    }

    /// An error when the claim was lost.
    pub fn check(&self) -> Result<()> {
        let held = self.catalog.read()?.jobs.iter().any(|j| j.fence == self.fence);
        if held { Ok(()) } else { Err(self.fenced()) }
    }

    /// Makes sure that packs in the places of other backups are removed when nobody needs them any more, although those
    /// backups were never listed here. To be called before such packs are written.
    pub fn house(&self, needs: &[PacksOf]) -> Result<()> {
        self.change(|c| {
            for of in needs {
                if c.backup(&of.backup).is_none() && !c.has_remains(&of.backup) && of.backup != *self.backup() {
                    c.removing.push(of.backup.clone());
                }
            }
            Ok(())
        })
    }

    /// The backup comes into existence, and the claim ends, in one step. Its time is taken for what it says.
    pub fn commit_backup(self, entry: &BackupEntry) -> Result<()> {
        self.commit(entry, None).map(drop)
    }

    /// As `commit_backup`, for a backup that has just been made: its time is what these clocks agree on.
    pub fn commit_backup_at(self, entry: &BackupEntry, reading: &Reading) -> Result<Option<Doubt>> {
        self.commit(entry, Some(reading))
    }

    fn commit(self, entry: &BackupEntry, reading: Option<&Reading>) -> Result<Option<Doubt>> {
        assert!(self.kind.makes_a_backup() && entry.id == *self.backup(), "one commits what one claimed");
        self.change(|c| {
            c.refuse_expired_wal(entry)?;
            c.jobs.retain(|j| j.fence != self.fence);
            let mut entry = entry.clone();
            let doubt = reading.and_then(|reading| c.time_backup(&mut entry, reading));
            c.backups.push(entry);
            // What it needs of them, it says itself from now on. Those of another kind wait for one of theirs.
            let physical = |id: &BackupId| id.kind() == BackupKind::Physical;
            let own = physical(self.backup());
            c.interrupted.clone().iter().filter(|id| physical(id) == own).for_each(|id| c.remove(id));
            c.backups.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(doubt)
        })
    }

    /// Gives up: what was written so far is kept for the next backup, or else is to be removed.
    pub fn abandon(self, keep: bool) -> Result<()> {
        self.change(|c| {
            c.jobs.retain(|j| j.fence != self.fence);
            let Some(id) = self.backup.as_ref().filter(|id| self.kind.makes_a_backup() && c.backup(id).is_none())
            else {
                return Ok(());
            };
            if !keeps_remains(self.kind, id) {
                c.remove(id);
            } else if keep {
                c.interrupt(id);
            } else {
                c.remove(id);
                c.interrupted.clone().iter().for_each(|id| c.remove(id));
            }
            Ok(())
        })
    }

    /// The backup is no longer listed, nor waits for its grace; its objects may go now.
    pub fn unlist(&self) -> Result<()> {
        assert!(self.kind == JobKind::Delete, "one deletes under a claim to delete");
        self.change(|c| {
            c.backups.retain(|b| b.id != *self.backup());
            c.expired.retain(|e| e.backup != *self.backup());
            c.give_up(self.backup());
            c.remove(self.backup());
            Ok(())
        })
    }

    /// Gives up what interrupted backups have left, which nobody has sealed anew; not while a backup runs that may use it.
    /// Returns whether nothing of the kind is left on record.
    pub fn remove_interrupted(&self) -> Result<bool> {
        self.change(|c| {
            if c.jobs.iter().any(|j| j.kind.makes_a_backup()) {
                return Ok(c.interrupted.is_empty());
            }
            for id in c.interrupted.clone() {
                c.remove(&id);
            }
            Ok(true)
        })
    }

    /// Puts on record that all there is was sealed under this generation, the last of it now.
    pub fn resealed(&self, generation: u32, now: Timestamp) -> Result<Resealed> {
        assert!(self.kind == JobKind::Reencrypt, "one seals anew under a claim to do so");
        self.change(|c| {
            let done = Resealed { generation, since: now, fence: c.fence };
            c.resealed = Some(done.clone());
            Ok(done)
        })
    }

    /// The job is over and nothing of it remains to be done.
    pub fn release(self) -> Result<()> {
        self.change(|c| {
            c.jobs.retain(|j| j.fence != self.fence);
            Ok(())
        })
    }
}
