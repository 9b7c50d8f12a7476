//! The keys of a repository: what opens it, and which master key seals new data. Each change is planned by the code
//! that does it, on a ring in memory.
//!
//! Invariant: no change is written that what is at hand would not open; no master key is ever given up, so whatever
//! was written stays readable.

pub mod copies;

use std::sync::Arc;

use jiff::Timestamp;
use pgark_repo::catalog::{CatalogStore, JobKind};
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{self, Change, Keyring, Secrets, SlotError, SlotFate, SlotInfo, SlotSecret, Unlock};
use pgark_repo::names::ClusterName;
use pgark_repo::store::Store;
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository};
use zeroize::Zeroizing;

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Change nothing.
    Plan,
    Run,
}

#[derive(Clone, Debug)]
pub struct KeyList {
    pub repository_id: String,
    pub encryption: Algorithm,
    /// Of the master key for new data; 0 without encryption.
    pub generation: u32,
    pub newest_since: Timestamp,
    /// Of the master keys for older data.
    pub older_generations: Vec<u32>,
    pub slots: Vec<SlotInfo>,
    /// Slots that something at hand opens.
    pub proven: Vec<String>,
    /// Removed slots that an older ring in the store still has; None when that cannot be told by what opened the ring.
    pub left_over: Option<Vec<SlotInfo>>,
}

pub fn list(store: &Arc<dyn Store>, unlock: &Unlock) -> Result<KeyList> {
    let ring = keyring::read(store, unlock)?;
    Ok(KeyList {
        repository_id: ring.repository_id(),
        encryption: ring.encryption(),
        generation: ring.generation(),
        newest_since: ring.newest_since(),
        older_generations: ring.masters().iter().map(|(g, _)| *g).filter(|g| *g < ring.generation()).collect(),
        slots: ring.slots(),
        proven: ring.proven(unlock)?,
        left_over: match ring.is_writers() {
            true => None,
            false => Some(keyring::left_over(store, ring.masters())?),
        },
    })
}

/// What a new slot is opened with.
pub enum NewSlot {
    Passphrase(Zeroizing<Vec<u8>>),
    /// An age recipient.
    Age(String),
    /// The name of a configured key command.
    Command(String),
}

impl NewSlot {
    fn secret<'a>(&'a self, unlock: &'a Unlock) -> SlotSecret<'a> {
        match self {
            NewSlot::Passphrase(p) => SlotSecret::Passphrase(p),
            NewSlot::Age(recipient) => SlotSecret::Age(recipient),
            NewSlot::Command(name) => SlotSecret::Command(name, unlock),
        }
    }
}

/// What a new slot opens.
#[derive(Clone, Debug)]
pub enum Opens {
    Everything,
    /// Nothing: it adds WAL and backups of this cluster.
    Writer(ClusterName),
}

impl Opens {
    fn writer(&self) -> Option<&ClusterName> {
        match self {
            Opens::Everything => None,
            Opens::Writer(cluster) => Some(cluster),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Added {
    pub slot: SlotInfo,
    /// False: it was there before, and nothing was changed.
    pub added: bool,
    /// Whether it was seen to open. Only the owner of an age identity can see that.
    pub proven: bool,
}

pub fn add(
    store: &Arc<dyn Store>,
    unlock: &Unlock,
    new: &NewSlot,
    opens: &Opens,
    label: Option<&str>,
    mode: Mode,
) -> Result<Added> {
    if let Opens::Writer(cluster) = opens {
        // For a name that nobody has registered there are no books to open to it.
        CatalogStore::new(&Repository::open(store.clone(), unlock)?, cluster).read()?;
    }
    let added = add_slot(store, unlock, new, opens, label, mode)?;
    if let (Opens::Writer(cluster), Mode::Run) = (opens, mode) {
        open_books(&Repository::open(store.clone(), unlock)?, cluster)?;
    }
    Ok(added)
}

/// Brings the registers of a cluster into the form that its writer reads. What is done already is left alone, so whoever was
/// interrupted repeats it.
fn open_books(repo: &Repository, cluster: &ClusterName) -> Result<()> {
    let catalog = CatalogStore::new(repo, cluster);
    catalog.register_of_books().open_to_writer()?;
    for lineage in &catalog.read()?.lineages {
        WalArchive::new(repo, cluster, lineage.system_id).head_register().open_to_writer()?;
    }
    crate::audit::open_to_writer(repo, cluster)?;
    Ok(())
}

fn add_slot(
    store: &Arc<dyn Store>,
    unlock: &Unlock,
    new: &NewSlot,
    opens: &Opens,
    label: Option<&str>,
    mode: Mode,
) -> Result<Added> {
    change(store, unlock, mode, |ring| {
        if let Some(slot) = slot_of(ring, new)? {
            if slot.writer.as_ref() != opens.writer() {
                return Err(SlotError::Taken { slot: slot.describe() }.into());
            }
            let proven = !matches!(new, NewSlot::Age(_));
            return Ok(Change::Leave(Added { slot, added: false, proven }));
        }
        let secret = new.secret(unlock);
        let slot = match opens {
            Opens::Everything => ring.add_reader(&secret, label)?,
            Opens::Writer(cluster) => ring.add_writer(cluster, &secret, label)?,
        };
        let proven = match new {
            NewSlot::Passphrase(p) => {
                let opens = ring.slot_of_passphrase(p)?.is_some_and(|s| s.id == slot.id);
                if !opens {
                    return Err(SlotError::LockedOut.into());
                }
                true
            }
            NewSlot::Age(_) => false,
            // The program was made to unwrap what it wrapped.
            NewSlot::Command(_) => true,
        };
        Ok(Change::Write(Added { slot, added: true, proven }))
    })
}

/// The slot that the same secret opens already, so that a repeated command changes nothing.
fn slot_of(ring: &Keyring, new: &NewSlot) -> pgark_repo::Result<Option<SlotInfo>> {
    let slots = ring.slots();
    Ok(match new {
        NewSlot::Passphrase(p) => ring.slot_of_passphrase(p)?,
        NewSlot::Age(recipient) => slots.into_iter().find(|s| s.recipient.as_deref() == Some(recipient.trim())),
        NewSlot::Command(name) => slots.into_iter().find(|s| s.command.as_ref() == Some(name)),
    })
}

#[derive(Clone, Debug)]
pub struct Removed {
    pub slot: SlotInfo,
    pub remaining: usize,
    /// False when an older ring, which the removed slot opens, can still be read from the store.
    pub older_rings_gone: bool,
}

pub fn remove(store: &Arc<dyn Store>, unlock: &Unlock, id: &str, mode: Mode) -> Result<Removed> {
    let removed = change(store, unlock, mode, |ring| {
        let slot = match ring.remove_slot(id, &ring.proven(unlock)?) {
            Ok(slot) => slot,
            // An interrupted removal: what is left of it still has to go.
            Err(RepoError::Slot(SlotError::None { .. })) => {
                let left = keyring::left_over(store, ring.masters())?.into_iter().find(|s| s.id == id);
                let slot = left.ok_or_else(|| SlotError::None { id: id.to_owned() })?;
                return Ok(Change::Leave((slot, ring.slots().len())));
            }
            Err(e) => return Err(e),
        };
        Ok(Change::Write((slot, ring.slots().len())))
    });
    let (slot, remaining) = removed?;
    let older_rings_gone = mode == Mode::Plan || keyring::retire_older(store, unlock)?;
    Ok(Removed { slot, remaining, older_rings_gone })
}

pub struct RotateOptions<'a> {
    pub unlock: &'a Unlock,
    /// Passphrases of slots that `unlock` does not open.
    pub passphrases: &'a [Zeroizing<Vec<u8>>],
    /// Slots that do not get the new key.
    pub drop: &'a [String],
    pub running_restores: RunningRestores,
}

/// A recovering server holds the keys to the WAL as they were: it cannot read what is archived after a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunningRestores {
    Refuse,
    Allow,
}

#[derive(Clone, Debug)]
pub struct Rotated {
    /// Of the new master key.
    pub generation: u32,
    pub slots: Vec<SlotFate>,
    /// Jobs that go on: what they write before they meet the new key is still under the old one.
    pub running: Vec<String>,
    /// False when an older ring can still be read that opens with a slot which the new one has not: it also gives away the
    /// older keys to a secret that was dropped.
    pub older_rings_gone: bool,
}

pub fn rotate(store: &Arc<dyn Store>, options: &RotateOptions<'_>, mode: Mode, ctx: &Ctx) -> Result<Rotated> {
    let RotateOptions { unlock, passphrases, drop, .. } = *options;
    let given = Secrets { unlock, passphrases };
    let running = running_jobs(store, options, ctx)?;
    let (generation, slots) = change(store, unlock, mode, |ring| {
        let slots = ring.rotate(given, drop)?;
        Ok(Change::Write((ring.generation(), slots)))
    })?;
    // Where nothing is removed, an older ring stays; it opens nothing to anybody but those whom the new one knows.
    let older_rings_gone = mode == Mode::Plan
        || keyring::retire_older(store, unlock)?
        || keyring::left_over(store, keyring::read(store, unlock)?.masters())?.is_empty();
    Ok(Rotated { generation, slots, running, older_rings_gone })
}

fn running_jobs(store: &Arc<dyn Store>, options: &RotateOptions<'_>, ctx: &Ctx) -> Result<Vec<String>> {
    let repo = Repository::open(store.clone(), options.unlock)?;
    let mut running = vec![];
    for cluster in repo.clusters()? {
        let Some(catalog) = CatalogStore::new(&repo, &cluster).try_read()? else { continue };
        for job in catalog.jobs.iter().filter(|j| !j.is_dead(ctx.now())) {
            if job.kind == JobKind::Restore && options.running_restores == RunningRestores::Refuse {
                let what = format!("cluster '{cluster}'");
                return Err(RepoError::Busy { what, holder: job.describe() }.into());
            }
            running.push(format!("{cluster}: {}", job.describe()));
        }
    }
    Ok(running)
}

fn change<T>(
    store: &Arc<dyn Store>,
    unlock: &Unlock,
    mode: Mode,
    mut change: impl FnMut(&mut Keyring) -> pgark_repo::Result<Change<T>>,
) -> Result<T> {
    if mode == Mode::Run {
        return keyring::edit(store, unlock, change).map_err(EngineError::from);
    }
    match change(&mut keyring::read(store, unlock)?)? {
        Change::Write(value) | Change::Leave(value) => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FailureClass;
    use pgark_pg::value::{SegmentSize, SystemId};
    use pgark_repo::catalog::{CLAIM_TTL_SECONDS, Holder, Job, Lineage};
    use pgark_repo::keyring::NewKeys;
    use pgark_repo::names::{BackupId, ClusterName};
    use pgark_repo::store::{AppendOnlyStore, MemoryStore};

    /// A repository in which a restore runs that was last heard of so many seconds ago.
    fn restoring(unlock: &Unlock, ctx: &Ctx, silent_seconds: i64) -> Arc<dyn Store> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let encryption = Algorithm::Aes256Gcm;
        let new = NewKeys { encryption, unlock: unlock.clone(), age_recipients: vec![], key_commands: vec![] };
        let (repo, _) = Repository::init(store.clone(), &new).unwrap();
        let catalog = CatalogStore::new(&repo, &ClusterName::parse("main").unwrap());
        let lineage = Lineage {
            system_id: SystemId(7),
            version_num: 150_000,
            catalog_version: 202_209_061,
            segment_size: SegmentSize::new(1 << 24).unwrap(),
            registered: ctx.now(),
        };
        catalog.register(&lineage, false).unwrap();
        let renewed = Timestamp::from_second(ctx.now().as_second() - silent_seconds).unwrap();
        let (kind, holder) = (JobKind::Restore, Holder::this_process().unwrap());
        let backup = BackupId::parse("20260822-031500F").unwrap();
        let job =
            Job { kind, backup: Some(backup), needs: Default::default(), fence: 1, holder, started: renewed, renewed };
        catalog
            .update(|c| {
                c.jobs.push(job.clone());
                Ok(Some(()))
            })
            .unwrap();
        store
    }

    #[test]
    fn a_rotation_waits_for_a_restore_that_runs_unless_told_otherwise() {
        let (unlock, ctx) = (Unlock::passphrase(b"p"), Ctx::silent());
        let rotated = |silent_seconds, running_restores| {
            let store = restoring(&unlock, &ctx, silent_seconds);
            let options = RotateOptions { unlock: &unlock, passphrases: &[], drop: &[], running_restores };
            let done = rotate(&store, &options, Mode::Run, &ctx);
            (done, keyring::read(&store, &unlock).unwrap().generation())
        };
        let (refused, generation) = rotated(0, RunningRestores::Refuse);
        assert_eq!((refused.unwrap_err().class(), generation), (FailureClass::Locked, 1));
        let (done, generation) = rotated(0, RunningRestores::Allow);
        assert_eq!((done.unwrap().running.len(), generation), (1, 2));
        // One that died is no reason to wait.
        let (done, generation) = rotated(CLAIM_TTL_SECONDS + 1, RunningRestores::Refuse);
        assert_eq!((done.unwrap().running.len(), generation), (0, 2));
    }

    #[test]
    fn a_rotation_tells_of_older_rings_only_where_a_slot_that_is_gone_opens_one() {
        let (unlock, ctx) = (Unlock::passphrase(b"p"), Ctx::silent());
        let store = restoring(&unlock, &ctx, CLAIM_TTL_SECONDS + 1);
        let store: Arc<dyn Store> = Arc::new(AppendOnlyStore::new(store));
        let rotated = |drop: &[String]| {
            let running_restores = RunningRestores::Refuse;
            let options = RotateOptions { unlock: &unlock, passphrases: &[], drop, running_restores };
            rotate(&store, &options, Mode::Run, &ctx).unwrap()
        };
        assert!(rotated(&[]).older_rings_gone);
        let new = NewSlot::Passphrase(Zeroizing::new(b"q".to_vec()));
        let added = add(&store, &unlock, &new, &Opens::Everything, None, Mode::Run).unwrap();
        assert!(!rotated(&[added.slot.id]).older_rings_gone);
    }

    #[test]
    fn a_plan_changes_nothing() {
        let (unlock, ctx) = (Unlock::passphrase(b"p"), Ctx::silent());
        let store = restoring(&unlock, &ctx, CLAIM_TTL_SECONDS + 1);
        let before = Repository::ring_bytes(&store).unwrap();
        let slot = list(&store, &unlock).unwrap().slots.remove(0);
        let new = NewSlot::Passphrase(Zeroizing::new(b"q".to_vec()));
        assert!(add(&store, &unlock, &new, &Opens::Everything, Some("label"), Mode::Plan).unwrap().added);
        assert!(remove(&store, &unlock, &slot.id, Mode::Plan).is_err());
        let running_restores = RunningRestores::Refuse;
        let options = RotateOptions { unlock: &unlock, passphrases: &[], drop: &[], running_restores };
        assert_eq!(rotate(&store, &options, Mode::Plan, &ctx).unwrap().generation, 2);
        assert!(Repository::ring_bytes(&store).unwrap() == before);
    }
}
