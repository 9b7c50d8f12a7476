//! The catalog of a cluster: which backups exist and which jobs are under way. It is what verification starts
//! from: what it lists must be there, whatever a listing of the store shows.
//!
//! Invariant: a backup exists from the moment the catalog lists it, and that one change also proves that its
//! writer still held its claim. Nothing that a listed backup needs is removed before the catalog stops
//! listing it.

mod claims;
pub mod clock;
mod expiry;
mod gave_up;
pub mod holder;
mod kind;
mod lost;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use pgark_pg::value::{SegmentSize, SystemId};
use serde::{Deserialize, Serialize};

use crate::crypto::ObjectKind;
use crate::error::{RepoError, Result};
use crate::manifest::PackId;
use crate::names::{BackupId, ClusterName, catalog_dir};
use crate::register::{Mirror, Register, RegisterProblem};
use crate::repository::Repository;
use crate::store::{ObjectName, Store, StoreError};
use crate::stream::Fingerprint;

pub use claims::{CLAIM_RENEW_SECONDS, CLAIM_TTL_SECONDS, Claim, Job, JobKind, Needs, WalNeed};
pub use clock::{CLOCK_TOLERANCE_SECONDS, ClusterClock, Doubt, Reading, StoreTime, Uptime, Witness};
pub use expiry::{ExpiredBackup, Expiry, Hold, WalExpiry};
pub use gave_up::GaveUp;
pub use holder::Holder;
pub use kind::{BackupKind, PhysicalBackup, PhysicalFacts};
pub use lost::LostCatalog;

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
    /// Interrupted backups whose packs the next one may use, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interrupted: Vec<BackupId>,
    /// Backups that retention took off the list. Their objects are there until they are due, and then go to `removing`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expired: Vec<ExpiredBackup>,
    /// Backups that were listed and went for good. Absent in what older versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<GaveUp>,
    /// Decisions to expire WAL of which something is still to be done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wal_expiries: Vec<WalExpiry>,
    /// When everything there was had been sealed under this generation of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resealed: Option<Resealed>,
    /// The last id that was given out, also to a backup that never came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_id: Option<BackupId>,
    /// Absent before the first backup that was made with a look at several clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClusterClock>,
}

/// How far sealing anew has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resealed {
    pub generation: u32,
    /// When the last object was sealed anew. What it was made of may go some time after.
    pub since: Timestamp,
    /// The last claim by then: who holds an earlier one may still read what the later seals were made of.
    pub fence: u64,
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
    /// A rehearsal restored it, and found everything that it looked for, with nothing left unchecked.
    Drilled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEntry {
    pub id: BackupId,
    pub kind: BackupKind,
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    pub system_id: SystemId,
    pub version_num: u32,
    pub started: Timestamp,
    pub finished: Timestamp,
    /// Of a physical backup, and of no other.
    #[serde(flatten)]
    pub physical: Option<PhysicalFacts>,
    /// Bytes of the files as restored.
    pub size_bytes: u64,
    pub read_bytes: u64,
    /// Bytes added to the repository.
    pub stored_bytes: u64,
    /// Bytes that the databases of a logical backup took on their server, where that is known of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_bytes: Option<u64>,
    /// Which backups it can stand in for: those of the same series, which are of the same things. None: all of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    pub kept: bool,
    pub kept_until: Option<Timestamp>,
    /// Legal holds: each stays until it is lifted by its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Hold>,
    /// When a verification found that it cannot be restored; None again when one found it whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<Timestamp>,
    /// When it ended at least, where the clocks did not agree on when that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certain: Option<Timestamp>,
    pub evidence: Evidence,
    /// When a rehearsal proved it last; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drilled: Option<Timestamp>,
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

    /// In the order of their ids.
    pub fn physical(&self) -> Vec<PhysicalBackup> {
        self.backups.iter().filter_map(BackupEntry::as_physical).collect()
    }

    pub fn backup(&self, id: &BackupId) -> Option<&BackupEntry> {
        self.backups.iter().find(|b| b.id == *id)
    }

    pub fn expired(&self, id: &BackupId) -> Option<&ExpiredBackup> {
        self.expired.iter().find(|e| e.backup == *id)
    }

    /// Whether a listed backup other than its own needs this pack, or one that has expired and can be listed again.
    pub fn is_needed(&self, id: &BackupId, pack: u32) -> bool {
        let expired = self.expired.iter().filter_map(|e| e.entry.as_deref());
        let all = self.backups.iter().chain(expired);
        all.flat_map(|b| &b.needs).any(|n| n.backup == *id && n.contains(pack))
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
        let register = Register::sealed(repo.books().clone(), repo.keys(), ObjectKind::Catalog, dir, Mirror::Yes);
        CatalogStore { register, cluster: cluster.clone(), store }
    }

    /// For changes that make room, see `Register::thrifty`.
    pub fn thrifty(self) -> Self {
        CatalogStore { register: self.register.thrifty(), ..self }
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
        let expired = catalog.expired.iter().filter_map(|e| e.entry.as_deref());
        if let Some(wrong) = catalog.backups.iter().chain(expired).find(|b| !b.has_the_facts_of_its_kind()) {
            return Err(RepoError::corrupt(
                object,
                format!("what it says of backup {} does not fit its kind", wrong.id),
            ));
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

    /// Writes copies anew that are missing or damaged, as the other copy has them. Returns their names.
    pub fn mend(&self) -> Result<Vec<String>> {
        self.register.mend(&mut |v| self.decode(v).map(drop))
    }

    /// When its newest version was written, by the store's clock; None where that does not tell.
    pub fn written(&self) -> Result<Option<StoreTime>> {
        let modified = self.register.written()?.and_then(|at| Timestamp::try_from(at).ok());
        Ok(modified.map(|at| StoreTime { at, own: self.store.has_own_clock() }))
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
                    lineages: vec![lineage.clone()],
                    ..Catalog::empty(self.cluster.clone())
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
}

fn encode(catalog: &Catalog) -> Vec<u8> {
    serde_json::to_vec(catalog).expect("a catalog is plain data")
}

impl CatalogStore {
    /// Removes the objects of backups that are not listed any more, but for packs that listed ones need: the id stays
    /// in `removing` as long as there are such. Every call is complete in itself: what a
    /// crash leaves is found again.
    pub fn sweep(&self) -> Result<Vec<BackupId>> {
        self.sweep_while(&mut || Ok(())).map(|swept| swept.done)
    }

    /// As `sweep`; `still_ours` is asked before each deletion, and its error ends the sweep.
    pub fn sweep_while(&self, still_ours: &mut dyn FnMut() -> Result<()>) -> Result<Swept> {
        let mut swept = Swept::default();
        if !self.store.may_delete() {
            return Ok(swept);
        }
        let catalog = self.read()?;
        for id in &catalog.removing {
            let dir = crate::names::backup_dir(&self.cluster, id);
            let mut objects = vec![];
            self.store.list(&dir, &mut |stat| {
                objects.push(stat);
                Ok(())
            })?;
            // Who took over the claim of a paused writer sees objects appear after the listing: the entry
            // stays until a pass finds nothing.
            let empty = objects.is_empty();
            for stat in objects {
                // In the order of the listing, so that parity goes after its object.
                if crate::names::principal_pack_of(&stat.name).is_some_and(|number| catalog.is_needed(id, number)) {
                    continue;
                }
                still_ours()?;
                let locked = locked_until(&*self.store, &stat.name)?;
                match self.store.delete(&stat.name) {
                    Err(crate::store::StoreError::NotFound { .. }) => {}
                    Ok(()) => {
                        swept.objects += 1;
                        swept.bytes += stat.size;
                        swept.locked_until = swept.locked_until.max(locked);
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            if empty {
                swept.done.push(id.clone());
            }
        }
        if !swept.done.is_empty() {
            self.update(|c| {
                c.removing.retain(|id| !swept.done.contains(id));
                Ok(Some(()))
            })?;
        }
        Ok(swept)
    }
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub objects: u64,
    pub bytes: u64,
    /// The store keeps versions of what was removed until then, whoever removes them.
    pub locked_until: Option<Timestamp>,
    /// Nothing is left of these.
    pub done: Vec<BackupId>,
}

/// Until when the store keeps an object that is removed now.
pub(crate) fn locked_until(store: &dyn Store, name: &ObjectName) -> Result<Option<Timestamp>> {
    let Some(lock) = store.object_lock() else { return Ok(None) };
    match lock.retention(name, None) {
        Ok(told) => Ok(told.map(|t| t.until)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests;
