//! Giving older master keys up. The header of every object in the store says under which key it is; only when none is
//! under an older one do the older ones leave the key ring.
//!
//! Invariant: a key that something still needs stays in the ring, or is put back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::catalog::{CatalogStore, JobKind};
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{self, Change, SlotError, Unlock};
use pgark_repo::store::{ObjectName, Store};
use pgark_repo::{RepoError, Repository, names};

use super::{is_over, walk};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::keys::Mode;
use crate::rescue;

/// Names that a proof lists of each sort.
const LISTED_MAX: usize = 100;

pub struct RetireOptions<'a> {
    pub unlock: &'a Unlock,
    pub jobs: usize,
    /// How long the newest key must have been in force: commands that began before may still write under an older one.
    pub grace: Duration,
}

/// Under which key each object of the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Of the newest master key.
    pub generation: u32,
    pub objects: u64,
    pub by_generation: BTreeMap<u32, u64>,
    /// The first of those under an older key.
    pub old: Vec<(String, u32)>,
    /// Files that are no objects of ours: no key of this repository opens them.
    pub strange: Vec<String>,
    pub strange_count: u64,
}

impl Proof {
    pub fn old_count(&self) -> u64 {
        self.by_generation.iter().filter(|(g, _)| **g < self.generation).map(|(_, n)| n).sum()
    }
}

#[derive(Clone, Debug)]
pub struct Retired {
    pub proof: Proof,
    /// Generations that left the ring, or would.
    pub generations: Vec<u32>,
    /// False when an older key ring, which still has them, can be read from the store.
    pub older_rings_gone: bool,
}

/// Reads the header of every object. Holds all their names in memory, about 100 bytes each.
pub fn prove(repo: &Repository, jobs: usize, ctx: &Ctx) -> Result<Proof> {
    let mut all: Vec<ObjectName> = vec![];
    let ring = |name: &str| name.starts_with(&format!("{}/", names::KEYRING)) || name.starts_with("keyring-mirror/");
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        // Neither is sealed: what is for people without us, and parity, which is made of sealed bytes.
        let unsealed = rescue::owns(stat.name.as_str()) || names::protected_by(stat.name.as_str()).is_some();
        if !ring(stat.name.as_str()) && !unsealed {
            all.push(stat.name);
        }
        Ok(())
    };
    repo.bare_store().list("", &mut visit).map_err(RepoError::from)?;
    ctx.progress.note(&format!("reading the headers of {} objects", all.len()));
    let proof = Mutex::new(Proof { generation: repo.keys().generation(), ..Proof::default() });
    walk::each(&all, jobs, ctx, &|name| {
        let found = walk::generation_at(repo, name)?;
        // Gone meanwhile, or none of ours.
        let is_there = found.is_some() || repo.bare_store().stat(name).is_ok();
        let mut p = proof.lock().expect("no thread panics with the lock");
        match found {
            Some(generation) => {
                p.objects += 1;
                *p.by_generation.entry(generation).or_default() += 1;
                if generation < p.generation && p.old.len() < LISTED_MAX {
                    p.old.push((name.to_string(), generation));
                }
            }
            None if is_there => {
                p.strange_count += 1;
                if p.strange.len() < LISTED_MAX {
                    p.strange.push(name.to_string());
                }
            }
            None => {}
        }
        Ok(())
    })?;
    let mut proof = proof.into_inner().expect("the threads are gone");
    proof.old.sort();
    proof.strange.sort();
    Ok(proof)
}

/// A plan looks, and refuses nothing.
///
/// # Errors
/// `E-KEY-IN-USE` when something is under an older key, `E-KEY-YOUNG` and `E-LOCKED` when something may yet be written
/// under one. Nothing was changed then.
pub fn retire(store: &Arc<dyn Store>, options: &RetireOptions<'_>, mode: Mode, ctx: &Ctx) -> Result<Retired> {
    let repo = Repository::open(store.clone(), options.unlock)?;
    if repo.encryption() == Algorithm::None {
        return Err(RepoError::Slot(SlotError::NotEncrypted).into());
    }
    let ring = keyring::read(store, options.unlock)?;
    let generations: Vec<u32> = ring.masters().iter().map(|(g, _)| *g).filter(|g| *g < ring.generation()).collect();
    if mode == Mode::Run && !generations.is_empty() {
        refuse_writers(&repo, ring.newest_since(), options, ctx)?;
    }
    let proof = prove(&repo, options.jobs, ctx)?;
    if mode == Mode::Plan {
        return Ok(Retired { proof, generations, older_rings_gone: true });
    }
    refuse_in_use(&proof, "")?;
    if generations.is_empty() {
        return Ok(Retired { proof, generations, older_rings_gone: true });
    }
    let retired = keyring::edit(store, options.unlock, |ring| {
        if ring.generation() != proof.generation {
            let holder = "a rotation of the key".into();
            return Err(RepoError::Busy { what: "the key ring".into(), holder });
        }
        Ok(Change::Write(ring.retire()?))
    })?;
    // What was written between the look and the change would be lost with the key.
    let again = prove(&repo, options.jobs, ctx)?;
    if again.old_count() > 0 {
        keyring::edit(store, options.unlock, |ring| {
            ring.readmit(&retired)?;
            Ok(Change::Write(()))
        })?;
        refuse_in_use(&again, "; the older keys were put back into the key ring")?;
    }
    let older_rings_gone = keyring::retire_older(store, options.unlock)?;
    Ok(Retired { proof: again, generations, older_rings_gone })
}

/// What other repositories are copies of this one, and have not got its newest key? Once the older ones are given up here, no
/// key ring of this one opens what they hold, and nothing is copied between them any more.
///
/// # Errors
/// `E-KEY-COPY`, refused; and trouble with one of the repositories. `from`: what this one is called.
pub fn refuse_copies_behind(store: &Arc<dyn Store>, from: &str, others: &[(String, Arc<dyn Store>)]) -> Result<()> {
    let ours = Repository::ring_bytes(store)?;
    for (name, other) in others {
        let theirs = match Repository::ring_bytes(other) {
            Ok(ring) => ring,
            Err(RepoError::NoRepository { .. }) => continue,
            Err(e) => return Err(EngineError::from(e).in_repository(name)),
        };
        let is_copy = keyring::peek_repository_id(&theirs)? == keyring::peek_repository_id(&ours)?;
        let (here, there) = (keyring::peek_generation(&ours)?, keyring::peek_generation(&theirs)?);
        if is_copy && there < here {
            return Err(EngineError::refused(
                "E-KEY-COPY",
                format!(
                    "repository {name} is a copy and has generation {there} of the key, this one {here}: it would be cut off"
                ),
                format!(
                    "'pgark replicate --from {from} --to {name}' brings it the newer key ring; then 'pgark key reencrypt' there, \
                     too. One that is gone for good must be taken out of repos"
                ),
            ));
        }
    }
    Ok(())
}

fn refuse_in_use(proof: &Proof, more: &str) -> Result<()> {
    let Some((first, generation)) = proof.old.first() else { return Ok(()) };
    let count = proof.old_count();
    Err(EngineError::refused(
        "E-KEY-IN-USE",
        format!("{count} objects are under older keys, such as {first} (generation {generation}){more}"),
        "'pgark key reencrypt' seals them anew and removes the older seals after the time of grace; 'pgark key retire \
         --dry-run' lists them",
    ))
}

/// Whoever opened the repository before the rotation may not know of the newest key yet.
fn refuse_writers(repo: &Repository, since: Timestamp, options: &RetireOptions<'_>, ctx: &Ctx) -> Result<()> {
    let now = ctx.now();
    for cluster in repo.clusters()? {
        let Some(catalog) = CatalogStore::new(repo, &cluster).try_read()? else { continue };
        let writes = |j: &&pgark_repo::catalog::Job| {
            matches!(j.kind, JobKind::Backup | JobKind::Copy | JobKind::Reencrypt) && !j.is_dead(now)
        };
        if let Some(job) = catalog.jobs.iter().find(writes) {
            return Err(RepoError::Busy { what: format!("cluster '{cluster}'"), holder: job.describe() }.into());
        }
    }
    if !is_over(since, options.grace, now) {
        return Err(EngineError::refused(
            "E-KEY-YOUNG",
            format!("the newest key is in force since {since}: commands that began before may still use an older one"),
            "wait, or give --grace 0s when nothing runs that was started before the rotation",
        ));
    }
    Ok(())
}
