//! Jobs and claims: who may change a cluster's backups.
//!
//! Invariant: of jobs that exclude each other one is under way; who was taken for dead finds out before it commits.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupEntry, Catalog, CatalogStore, Holder, PacksOf};
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
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub kind: JobKind,
    /// The backup being made, restored or deleted.
    pub backup: BackupId,
    pub fence: u64,
    pub holder: Holder,
    pub started: Timestamp,
    pub renewed: Timestamp,
}

impl CatalogStore {
    /// Claims the right to run a job. A claim of a process that is gone, or that was not renewed in time, is
    /// taken over: its holder finds out before it commits. Returns the remains that are to be cleaned up too.
    pub fn claim(&self, kind: JobKind, backup: &BackupId, now: Timestamp) -> Result<Claim> {
        self.claim_with(kind, backup, now, |c| c.has_remains(backup))
    }

    /// As for a new backup, to copy one of another repository under its own id. What lies in its place already, left by an
    /// earlier try or needed by others, is its own from now on.
    pub fn claim_copy(&self, backup: &BackupId, now: Timestamp) -> Result<Claim> {
        self.claim_with(JobKind::Backup, backup, now, |c| {
            c.interrupted.retain(|id| id != backup);
            c.removing.retain(|id| id != backup);
            false
        })
    }

    fn claim_with(
        &self,
        kind: JobKind,
        backup: &BackupId,
        now: Timestamp,
        is_taken: impl Fn(&mut Catalog) -> bool,
    ) -> Result<Claim> {
        let holder = Holder::this_process()?;
        let fence = self.update(|c| {
            drop_dead_jobs(c, now);
            if let Some(other) = c.jobs.iter().find(|j| excludes(j, kind, backup)) {
                return Err(RepoError::Busy { what: format!("cluster '{}'", c.cluster), holder: other.describe() });
            }
            if kind != JobKind::Backup && c.backup(backup).is_none() && !c.has_remains(backup) {
                return Err(RepoError::NoBackup { cluster: c.cluster.to_string(), id: backup.to_string() });
            }
            if kind == JobKind::Backup && (c.backup(backup).is_some() || is_taken(c)) {
                // Two backups under one name would share objects, and the remains of one take the other along.
                return Err(RepoError::Conflict { object: crate::names::backup_dir(&c.cluster, backup) });
            }
            c.fence = c.fence.checked_add(1).ok_or_else(|| RepoError::corrupt(&c.cluster, "its fence is used up"))?;
            if kind == JobKind::Backup {
                c.last_id = c.last_id.take().max(Some(backup.clone()));
            }
            let (fence, holder) = (c.fence, holder.clone());
            c.jobs.push(Job { kind, backup: backup.clone(), fence, holder, started: now, renewed: now });
            Ok(Some(fence))
        })?;
        let fence = fence.expect("the change always returns a value");
        Ok(Claim { catalog: self.clone(), fence, kind, backup: backup.clone() })
    }
}

/// What interrupted backups have stored stays for the next one.
fn drop_dead_jobs(c: &mut Catalog, now: Timestamp) {
    let (dead, alive): (Vec<Job>, Vec<Job>) = std::mem::take(&mut c.jobs).into_iter().partition(|j| j.is_dead(now));
    c.jobs = alive;
    for job in dead {
        let remains = job.kind == JobKind::Backup && c.backup(&job.backup).is_none();
        if remains {
            c.interrupt(&job.backup);
        }
    }
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

    fn remove(&mut self, id: &BackupId) {
        self.interrupted.retain(|i| i != id);
        if !self.removing.contains(id) {
            self.removing.push(id.clone());
        }
    }

    /// Whether objects of a backup may be there although it is not listed.
    pub fn has_remains(&self, id: &BackupId) -> bool {
        self.removing.contains(id) || self.interrupted.contains(id)
    }
}

fn excludes(running: &Job, kind: JobKind, backup: &BackupId) -> bool {
    match (running.kind, kind) {
        (JobKind::Restore, JobKind::Delete) | (JobKind::Delete, JobKind::Restore) => running.backup == *backup,
        (JobKind::Restore, _) | (_, JobKind::Restore) => false,
        _ => true,
    }
}

impl Job {
    pub fn is_dead(&self, now: Timestamp) -> bool {
        let age = now.as_second() - self.renewed.as_second();
        self.holder.is_gone() || age > CLAIM_TTL_SECONDS
    }

    pub fn describe(&self) -> String {
        let what = match self.kind {
            JobKind::Backup => "backup",
            JobKind::Restore => "restore of",
            JobKind::Delete => "deletion of",
        };
        format!("{what} {} (process {} on {}, since {})", self.backup, self.holder.pid, self.holder.host, self.started)
    }
}

/// The right to run a job, held until it is released, committed or lost.
#[derive(Clone)]
pub struct Claim {
    catalog: CatalogStore,
    fence: u64,
    kind: JobKind,
    backup: BackupId,
}

impl Claim {
    pub fn backup(&self) -> &BackupId {
        &self.backup
    }

    fn fenced(&self) -> RepoError {
        RepoError::Fenced {
            what: format!("cluster '{}'", self.catalog.cluster),
            why: "another process took over; this one was thought dead".into(),
        }
    }

    fn change<T>(&self, mut f: impl FnMut(&mut Catalog) -> Result<T>) -> Result<T> {
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
                if c.backup(&of.backup).is_none() && !c.has_remains(&of.backup) && of.backup != self.backup {
                    c.removing.push(of.backup.clone());
                }
            }
            Ok(())
        })
    }

    /// The backup comes into existence, and the claim ends, in one step.
    pub fn commit_backup(self, entry: &BackupEntry) -> Result<()> {
        assert!(self.kind == JobKind::Backup && entry.id == self.backup, "one commits what one claimed");
        self.change(|c| {
            c.jobs.retain(|j| j.fence != self.fence);
            c.backups.push(entry.clone());
            // What it needs of them, it says itself from now on.
            for id in c.interrupted.clone() {
                c.remove(&id);
            }
            c.backups.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(())
        })
    }

    /// Gives up: what was written so far is kept for the next backup, or else is to be removed.
    pub fn abandon(self, keep: bool) -> Result<()> {
        self.change(|c| {
            c.jobs.retain(|j| j.fence != self.fence);
            match (self.kind == JobKind::Backup && c.backup(&self.backup).is_none(), keep) {
                (true, true) => c.interrupt(&self.backup),
                (true, false) => {
                    c.remove(&self.backup);
                    c.interrupted.clone().iter().for_each(|id| c.remove(id));
                }
                (false, _) => {}
            }
            Ok(())
        })
    }

    /// The backup is no longer listed; its objects may go now.
    pub fn unlist(&self) -> Result<()> {
        assert!(self.kind == JobKind::Delete, "one deletes under a claim to delete");
        self.change(|c| {
            c.backups.retain(|b| b.id != self.backup);
            c.remove(&self.backup);
            Ok(())
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
