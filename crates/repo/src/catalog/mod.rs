//! The catalog of a cluster: which backups exist and which jobs are under way. It is what verification starts
//! from: what it lists must be there, whatever a listing of the store shows.
//!
//! Invariant: a backup exists from the moment the catalog lists it, and that one change also proves that its
//! writer still held its claim. Nothing that a listed backup needs is removed before the catalog stops
//! listing it.

pub mod holder;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};

use crate::crypto::ObjectKind;
use crate::error::{RepoError, Result};
use crate::manifest::PackId;
use crate::names::{BackupId, ClusterName, catalog_dir};
use crate::register::{Mirror, Register, RegisterProblem};
use crate::repository::Repository;
use crate::store::Store;
use crate::stream::Fingerprint;

pub use holder::Holder;

/// How long a claim lasts without being renewed, seconds.
pub const CLAIM_TTL_SECONDS: i64 = 300;
pub const CLAIM_RENEW_SECONDS: u64 = 60;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Catalog {
    pub cluster: ClusterName,
    /// What was registered under this name, the one in force last.
    pub lineages: Vec<Lineage>,
    /// Counts claims; a claim's number is its fence.
    pub fence: u64,
    pub jobs: Vec<Job>,
    pub backups: Vec<BackupEntry>,
    /// Backups whose objects are to be removed: deleted ones and the remains of interrupted ones.
    pub removing: Vec<BackupId>,
    /// The last id that was given out, also to a backup that never came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_id: Option<BackupId>,
}

/// One system identifier that was backed up under the cluster's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    pub system_id: SystemId,
    /// `server_version_num` when it was registered.
    pub version_num: u32,
    pub catalog_version: u32,
    pub segment_size: SegmentSize,
    pub registered: Timestamp,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupKind {
    Physical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupType {
    #[serde(rename = "full")]
    Full,
    /// Takes over from an earlier backup what did not change since.
    #[serde(rename = "incr")]
    Incremental,
}

/// Packs of another backup that one needs. They stay when that backup is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacksOf {
    pub backup: BackupId,
    /// First and last number of each run, ascending.
    pub packs: Vec<(u32, u32)>,
}

impl PacksOf {
    pub fn contains(&self, number: u32) -> bool {
        self.packs.iter().any(|(a, b)| (*a..=*b).contains(&number))
    }

    /// From pack ids in any order.
    pub fn gather(ids: impl IntoIterator<Item = PackId>) -> Vec<PacksOf> {
        let ids: BTreeSet<PackId> = ids.into_iter().collect();
        let mut all: Vec<PacksOf> = vec![];
        for id in ids {
            match all.last_mut() {
                Some(of) if of.backup == id.backup => match of.packs.last_mut() {
                    Some(run) if run.1.checked_add(1) == Some(id.number) => run.1 = id.number,
                    _ => of.packs.push((id.number, id.number)),
                },
                _ => all.push(PacksOf { backup: id.backup, packs: vec![(id.number, id.number)] }),
            }
        }
        all
    }
}

/// What has been proven of a backup, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Every object was durably stored and its WAL is complete.
    Stored,
    /// Every byte was read back, authenticated, decoded and compared.
    Authenticated,
    /// A server was started on it.
    Started,
    /// WAL was replayed to the planned end.
    Replayed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupEntry {
    pub id: BackupId,
    pub kind: BackupKind,
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    pub system_id: SystemId,
    pub version_num: u32,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub lsn_start: Lsn,
    pub lsn_stop: Lsn,
    /// When the server said that the backup is at its end, by the server's clock: no earlier moment can be restored.
    pub stopped: Timestamp,
    pub timeline: TimelineId,
    /// Bytes of the files as restored.
    pub size_bytes: u64,
    pub read_bytes: u64,
    /// Bytes added to the repository.
    pub stored_bytes: u64,
    pub bad_blocks: u64,
    pub from_standby: bool,
    pub kept: bool,
    pub kept_until: Option<Timestamp>,
    pub evidence: Evidence,
    pub annotations: BTreeMap<String, String>,
    /// What this one needs of others.
    pub needs: Vec<PacksOf>,
    pub record: Fingerprint,
}

impl Catalog {
    pub fn lineage(&self) -> Option<&Lineage> {
        self.lineages.last()
    }

    pub fn lineage_of(&self, system_id: SystemId) -> Option<&Lineage> {
        self.lineages.iter().find(|l| l.system_id == system_id)
    }

    pub fn backup(&self, id: &BackupId) -> Option<&BackupEntry> {
        self.backups.iter().find(|b| b.id == *id)
    }

    /// Whether a listed backup other than its own needs this pack.
    fn is_needed(&self, id: &BackupId, pack: u32) -> bool {
        self.backups.iter().flat_map(|b| &b.needs).any(|n| n.backup == *id && n.contains(pack))
    }
}

/// The catalog of one cluster in one repository.
#[derive(Clone)]
pub struct CatalogStore {
    register: Register,
    cluster: ClusterName,
    store: Arc<dyn Store>,
}

impl CatalogStore {
    pub fn new(repo: &Repository, cluster: &ClusterName) -> Self {
        let dir = catalog_dir(cluster);
        let store = repo.store().clone();
        let register = Register::sealed(store.clone(), repo.keys(), ObjectKind::Catalog, dir, Mirror::Yes);
        CatalogStore { register, cluster: cluster.clone(), store }
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn decode(&self, value: &[u8]) -> Result<Catalog> {
        let object = catalog_dir(&self.cluster);
        let catalog: Catalog = serde_json::from_slice(value).map_err(|e| RepoError::corrupt(&object, e))?;
        if catalog.cluster != self.cluster {
            return Err(RepoError::corrupt(object, "the catalog of another cluster"));
        }
        Ok(catalog)
    }

    pub fn try_read(&self) -> Result<Option<Catalog>> {
        self.register.read()?.map(|v| self.decode(&v.value)).transpose()
    }

    pub fn read(&self) -> Result<Catalog> {
        self.try_read()?
            .ok_or_else(|| RepoError::NoCluster { url: self.store.url(), cluster: self.cluster.to_string() })
    }

    /// Where the catalog itself lies.
    pub fn register_of_books(&self) -> Register {
        self.register.clone()
    }

    pub fn check(&self) -> Result<Vec<RegisterProblem>> {
        self.register.check_with(&mut |v| self.decode(v).map(drop))
    }

    /// One atomic change. `change` returns None to leave things as they are, and may run more than once.
    pub fn update<T>(&self, mut change: impl FnMut(&mut Catalog) -> Result<Option<T>>) -> Result<Option<T>> {
        let mut outcome = None;
        self.register.update(|version| {
            let version = version
                .ok_or_else(|| RepoError::NoCluster { url: self.store.url(), cluster: self.cluster.to_string() })?;
            let mut catalog = self.decode(&version.value)?;
            outcome = change(&mut catalog)?;
            Ok(outcome.is_some().then(|| encode(&catalog)))
        })?;
        Ok(outcome)
    }

    /// Registers a cluster, or another lineage of it when `adopt` says so. Returns whether anything changed.
    pub fn register(&self, lineage: &Lineage, adopt: bool) -> Result<bool> {
        let mut changed = false;
        self.register.update(|version| {
            let Some(version) = version else {
                changed = true;
                return Ok(Some(encode(&Catalog {
                    cluster: self.cluster.clone(),
                    lineages: vec![lineage.clone()],
                    fence: 0,
                    last_id: None,
                    jobs: vec![],
                    backups: vec![],
                    removing: vec![],
                })));
            };
            let mut catalog = self.decode(&version.value)?;
            changed = false;
            match catalog.lineage() {
                Some(l) if l.system_id == lineage.system_id => return Ok(None),
                Some(l) if !adopt => {
                    return Err(RepoError::Busy {
                        what: format!("the name '{}'", self.cluster),
                        holder: format!("the cluster with system identifier {}", l.system_id),
                    });
                }
                _ => {}
            }
            changed = true;
            catalog.lineages.retain(|l| l.system_id != lineage.system_id);
            catalog.lineages.push(lineage.clone());
            Ok(Some(encode(&catalog)))
        })?;
        Ok(changed)
    }

    /// Claims the right to run a job. A claim of a process that is gone, or that was not renewed in time, is
    /// taken over: its holder finds out before it commits. Returns the remains that are to be cleaned up too.
    pub fn claim(&self, kind: JobKind, backup: &BackupId, now: Timestamp) -> Result<Claim> {
        let holder = Holder::this_process()?;
        let fence = self.update(|c| {
            drop_dead_jobs(c, now);
            if let Some(other) = c.jobs.iter().find(|j| excludes(j, kind, backup)) {
                return Err(RepoError::Busy { what: format!("cluster '{}'", c.cluster), holder: other.describe() });
            }
            if kind != JobKind::Backup && c.backup(backup).is_none() && !c.removing.contains(backup) {
                return Err(RepoError::NoBackup { cluster: c.cluster.to_string(), id: backup.to_string() });
            }
            if kind == JobKind::Backup && (c.backup(backup).is_some() || c.removing.contains(backup)) {
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

fn encode(catalog: &Catalog) -> Vec<u8> {
    serde_json::to_vec(catalog).expect("a catalog is plain data")
}

/// The remains of interrupted backups go where deleted backups go.
fn drop_dead_jobs(c: &mut Catalog, now: Timestamp) {
    let (dead, alive): (Vec<Job>, Vec<Job>) = std::mem::take(&mut c.jobs).into_iter().partition(|j| j.is_dead(now));
    c.jobs = alive;
    for job in dead {
        let remains = job.kind == JobKind::Backup && c.backup(&job.backup).is_none();
        if remains && !c.removing.contains(&job.backup) {
            c.removing.push(job.backup);
        }
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

    /// The backup comes into existence, and the claim ends, in one step.
    pub fn commit_backup(self, entry: &BackupEntry) -> Result<()> {
        assert!(self.kind == JobKind::Backup && entry.id == self.backup, "one commits what one claimed");
        self.change(|c| {
            c.jobs.retain(|j| j.fence != self.fence);
            c.backups.push(entry.clone());
            c.backups.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(())
        })
    }

    /// Gives up: what was written so far is to be removed.
    pub fn abandon(self) -> Result<()> {
        self.change(|c| {
            c.jobs.retain(|j| j.fence != self.fence);
            let unlisted = c.backup(&self.backup).is_none();
            if self.kind == JobKind::Backup && unlisted && !c.removing.contains(&self.backup) {
                c.removing.push(self.backup.clone());
            }
            Ok(())
        })
    }

    /// The backup is no longer listed; its objects may go now.
    pub fn unlist(&self) -> Result<()> {
        assert!(self.kind == JobKind::Delete, "one deletes under a claim to delete");
        self.change(|c| {
            c.backups.retain(|b| b.id != self.backup);
            if !c.removing.contains(&self.backup) {
                c.removing.push(self.backup.clone());
            }
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

impl CatalogStore {
    /// Removes the objects of backups that are not listed any more, but for packs that listed ones need: the id stays
    /// in `removing` as long as there are such. Every call is complete in itself: what a
    /// crash leaves is found again.
    pub fn sweep(&self) -> Result<Vec<BackupId>> {
        let catalog = self.read()?;
        let mut done = vec![];
        for id in &catalog.removing {
            let dir = crate::names::backup_dir(&self.cluster, id);
            let mut objects = vec![];
            self.store.list(&dir, &mut |stat| {
                objects.push(stat.name);
                Ok(())
            })?;
            // Who took over the claim of a paused writer sees objects appear after the listing: the entry
            // stays until a pass finds nothing.
            let empty = objects.is_empty();
            for name in objects {
                if crate::names::pack_of(&name).is_some_and(|number| catalog.is_needed(id, number)) {
                    continue;
                }
                match self.store.delete(&name) {
                    Err(crate::store::StoreError::NotFound { .. }) | Ok(()) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if empty {
                done.push(id.clone());
            }
        }
        if !done.is_empty() {
            self.update(|c| {
                c.removing.retain(|id| !done.contains(id));
                Ok(Some(()))
            })?;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
