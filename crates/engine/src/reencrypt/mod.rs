//! Seals anew, under the newest master key, what is there under older ones; then the older seals go. The database is not
//! needed, the books do not change, and whatever runs goes on.
//!
//! Invariant: at every moment each object that something needs has a seal that reads whole. An older seal goes only after
//! the newer one was read back from front to back, a time of grace is over, and no job is left that began before.

pub mod retire;
mod walk;

use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::catalog::{Catalog, CatalogStore, Claim, Resealed};
use pgark_repo::crypto::Algorithm;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::seals::{self, Anew, TAIL_BYTES};
use pgark_repo::store::ObjectName;
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository, gc};

use crate::backup::claim::KeptClaim;
use crate::backup::job::remove_remains;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::expire::policy::before;
use walk::{Place, Seals, Standing};

#[derive(Clone, Copy, Debug)]
pub struct ReencryptOptions {
    pub jobs: usize,
    /// How long an older seal stays beside the newer one, for readers that are under way.
    pub grace: Duration,
}

/// Objects, and their bytes as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub objects: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn sum<'a>(all: impl Iterator<Item = &'a Amount>) -> Amount {
        all.fold(Amount::default(), |s, a| Amount { objects: s.objects + a.objects, bytes: s.bytes + a.bytes })
    }
}

#[derive(Clone, Debug)]
pub struct ReencryptPlan {
    /// Of the master key under which everything will be.
    pub generation: u32,
    pub clusters: Vec<ClusterPlan>,
    /// Room in the store, where it can tell.
    pub free_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct ClusterPlan {
    pub cluster: ClusterName,
    /// To be sealed anew.
    pub old: Amount,
    /// Older seals beside newer ones, which are to be removed.
    pub superseded: Amount,
    /// What is left of backups that are not listed, and is not sealed anew.
    pub remains: Vec<BackupId>,
}

impl ReencryptPlan {
    /// What will be stored in addition until the older seals go.
    pub fn needed_bytes(&self) -> u64 {
        let old = Amount::sum(self.clusters.iter().map(|c| &c.old));
        old.bytes + old.objects * TAIL_BYTES as u64
    }

    pub fn is_empty(&self) -> bool {
        self.clusters.iter().all(|c| c.old.objects + c.superseded.objects == 0)
    }
}

#[derive(Clone, Debug, Default)]
pub struct ReencryptReport {
    pub sealed: Amount,
    /// Older seals that went, and that are still there.
    pub removed: Amount,
    pub waiting: Amount,
    /// Per cluster: why they wait.
    pub waits_for: Vec<(ClusterName, String)>,
    /// Objects that could not be sealed anew, or whose newer seal does not read back, and why.
    pub failed: Vec<(String, String)>,
    /// Books of which an older version, under an older key, stays in the store.
    pub books_left: Vec<String>,
    pub remains: Vec<BackupId>,
}

/// Looks at the header of each object and changes nothing.
pub fn plan(repo: &Repository, options: &ReencryptOptions, ctx: &Ctx) -> Result<ReencryptPlan> {
    if repo.encryption() == Algorithm::None {
        return Err(RepoError::Slot(pgark_repo::keyring::SlotError::NotEncrypted).into());
    }
    let mut clusters = vec![];
    // Whoever reads a catalog of a newer generation gets its key: the newest is known after that.
    let mut catalogs = vec![];
    for cluster in repo.clusters()? {
        catalogs.extend(CatalogStore::new(repo, &cluster).try_read()?.map(|catalog| (cluster, catalog)));
    }
    let generation = repo.keys().generation();
    for (cluster, catalog) in catalogs {
        ctx.progress.begin(&format!("looking through {cluster}"), None);
        let (places, remains) = walk::places(repo, &cluster, &catalog)?;
        let found = Mutex::new((Amount::default(), Amount::default()));
        for place in &places {
            walk::each(&walk::objects(repo, place)?, options.jobs, ctx, &|seals| {
                let standing = seals.standing(repo, generation)?;
                let mut found = found.lock().expect("no thread panics with the lock");
                if matches!(standing, Standing::Old(_)) {
                    found.0.add(seals.size());
                }
                seals.superseded(generation).for_each(|(_, size)| found.1.add(size));
                Ok(())
            })?;
        }
        ctx.progress.end();
        let (old, superseded) = found.into_inner().expect("the threads are gone");
        clusters.push(ClusterPlan { cluster, old, superseded, remains });
    }
    let free_bytes = repo.bare_store().free_bytes().map_err(RepoError::from)?;
    Ok(ReencryptPlan { generation, clusters, free_bytes })
}

/// Room that is left free beside what is stored, for the WAL that arrives meanwhile.
const SPARE_BYTES: u64 = 256 * 1024 * 1024;

/// Seals anew what the plan found, and whatever else is under an older key by now; then removes older seals whose time
/// is over. Can be interrupted anywhere and repeated.
///
/// # Errors
/// `E-REPO-APPEND-ONLY` and `E-REENCRYPT-SPACE`, refused: nothing was begun.
pub fn run(repo: &Repository, options: &ReencryptOptions, plan: &ReencryptPlan, ctx: &Ctx) -> Result<ReencryptReport> {
    crate::error::refuse_append_only(repo)?;
    let needed = plan.needed_bytes();
    if let Some(free) = plan.free_bytes.filter(|free| needed > 0 && *free < needed.saturating_add(SPARE_BYTES)) {
        return Err(EngineError::refused(
            "E-REENCRYPT-SPACE",
            format!("{needed} bytes are sealed anew beside what is there, and the repository has room for {free}"),
            "make room; what was sealed anew earlier gives its room back when its grace is over",
        ));
    }
    let mut report = ReencryptReport::default();
    for part in &plan.clusters {
        ctx.check_cancelled()?;
        let catalog = CatalogStore::new(repo, &part.cluster);
        let claim = catalog.claim_reencryption(ctx.now())?;
        let kept = KeptClaim::new(claim.clone(), ctx);
        let work = Work { repo, options, ctx, catalog: &catalog, claim: &claim, kept: &kept, part };
        let outcome = work.run(&mut report);
        drop(kept);
        let released = claim.release();
        outcome?;
        released?;
    }
    Ok(report)
}

struct Work<'a> {
    repo: &'a Repository,
    options: &'a ReencryptOptions,
    ctx: &'a Ctx,
    catalog: &'a CatalogStore,
    claim: &'a Claim,
    kept: &'a KeptClaim,
    part: &'a ClusterPlan,
}

impl Work<'_> {
    fn run(&self, report: &mut ReencryptReport) -> Result<()> {
        // The books first: who reads them from now on has the newest key, and looks for newer seals.
        self.seal_books(report)?;
        let generation = self.repo.keys().generation();
        self.claim.remove_interrupted()?;
        remove_remains(self.catalog)?;
        let sealed_before = report.sealed.objects;
        self.seal_objects(generation, report)?;
        self.kept.check()?;
        let done = self.catalog.read()?.resealed.filter(|r| r.generation == generation);
        let done = match done {
            Some(done) if report.sealed.objects == sealed_before => done,
            _ => self.claim.resealed(generation, self.ctx.now())?,
        };
        self.remove_older(generation, &done, report)?;
        report.books_left.clear();
        self.seal_books(report)
    }

    fn seal_books(&self, report: &mut ReencryptReport) -> Result<()> {
        let generation = self.repo.keys().generation();
        let mut books = vec![self.catalog.register_of_books()];
        for lineage in &self.catalog.read()?.lineages {
            books.push(WalArchive::new(self.repo, &self.part.cluster, lineage.system_id).head_register().clone());
        }
        for register in books {
            if !register.seal_anew(generation)? {
                report.books_left.push(register.dir().to_owned());
            }
        }
        Ok(())
    }

    fn seal_objects(&self, generation: u32, report: &mut ReencryptReport) -> Result<()> {
        let (places, remains) = walk::places(self.repo, &self.part.cluster, &self.catalog.read()?)?;
        report.remains.extend(remains);
        let progress = &self.ctx.progress;
        progress.begin(&format!("sealing {} anew", self.part.cluster), Some(self.part.old.bytes));
        let shared = Mutex::new(report);
        let one = |seals: &Seals| -> Result<()> {
            if !matches!(seals.standing(self.repo, generation)?, Standing::Old(_)) {
                return Ok(());
            }
            let outcome = seals::seal_anew(self.repo.store(), self.repo.keys(), &seals.name);
            progress.advance(seals.size());
            let mut report = shared.lock().expect("no thread panics with the lock");
            match outcome {
                Ok(Anew::Sealed(bytes)) => report.sealed.add(bytes),
                Ok(Anew::There) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) if e.is_damage() => report.failed.push((seals.name.to_string(), e.to_string())),
                Err(e) => return Err(e.into()),
            }
            Ok(())
        };
        for place in &places {
            self.kept.check()?;
            walk::each(&walk::objects(self.repo, place)?, self.options.jobs, self.ctx, &one)?;
        }
        progress.end();
        Ok(())
    }

    /// Why older seals have to stay for now.
    fn must_wait(&self, done: &Resealed) -> Result<Option<String>> {
        let (now, catalog) = (self.ctx.now(), self.catalog.read()?);
        if !is_over(done.since, self.options.grace, now) {
            return Ok(Some(format!("the time of grace: sealed anew at {}", done.since)));
        }
        let earlier =
            |j: &&pgark_repo::catalog::Job| j.fence <= done.fence && j.fence != self.claim.fence() && !j.is_dead(now);
        Ok(catalog.jobs.iter().find(earlier).map(|j| format!("a job that began earlier: {}", j.describe())))
    }

    fn remove_older(&self, generation: u32, done: &Resealed, report: &mut ReencryptReport) -> Result<()> {
        let wait = self.must_wait(done)?;
        let catalog: Catalog = self.catalog.read()?;
        let places: Vec<Place> = walk::places(self.repo, &self.part.cluster, &catalog)?.0;
        let progress = &self.ctx.progress;
        if wait.is_none() {
            progress.begin(&format!("reading back and removing older seals of {}", self.part.cluster), None);
        }
        let still_ours = Mutex::new(gc::guard(self.claim));
        let shared = Mutex::new(report);
        let one = |seals: &Seals| -> Result<()> {
            let older: Vec<(u32, u64)> = seals.superseded(generation).collect();
            if older.is_empty() {
                return Ok(());
            }
            if wait.is_some() {
                let mut report = shared.lock().expect("no thread panics with the lock");
                older.iter().for_each(|(_, size)| report.waiting.add(*size));
                return Ok(());
            }
            if let Err(e) = self.read_back(seals, generation, &older, &still_ours)? {
                let mut report = shared.lock().expect("no thread panics with the lock");
                report.failed.push((seals.name.to_string(), e.to_string()));
                return Ok(());
            }
            for (g, size) in older {
                self.delete(&seals.seal(g)?, &still_ours)?;
                shared.lock().expect("no thread panics with the lock").removed.add(size);
                progress.advance(size);
            }
            Ok(())
        };
        for place in &places {
            walk::each(&walk::objects(self.repo, place)?, self.options.jobs, self.ctx, &one)?;
        }
        let report = shared.into_inner().expect("the threads are gone");
        match wait {
            Some(why) if report.waiting.objects > 0 => report.waits_for.push((self.part.cluster.clone(), why)),
            Some(_) => {}
            None => progress.end(),
        }
        Ok(())
    }

    /// Reads the newest seal from front to back. One that does not read goes away again when an older one does, so that
    /// the next run makes it anew.
    fn read_back(
        &self,
        seals: &Seals,
        generation: u32,
        older: &[(u32, u64)],
        still_ours: &Mutex<impl FnMut() -> Result<(), RepoError>>,
    ) -> Result<Result<(), RepoError>> {
        let (store, keys) = (self.repo.bare_store(), self.repo.keys());
        let newest = seals.seal(generation)?;
        let wrong = match seals::print_of(store, keys, &newest) {
            Ok(_) => return Ok(Ok(())),
            Err(e) if e.is_damage() => e,
            Err(e) => return Err(e.into()),
        };
        for (g, _) in older {
            if seals::print_of(store, keys, &seals.seal(*g)?).is_ok() {
                self.delete(&newest, still_ours)?;
                break;
            }
        }
        Ok(Err(wrong))
    }

    fn delete(
        &self,
        seal: &ObjectName,
        still_ours: &Mutex<impl FnMut() -> Result<(), RepoError>>,
    ) -> Result<(), RepoError> {
        (still_ours.lock().expect("no thread panics with the lock"))()?;
        // Its parity goes after it.
        for object in std::iter::once(seal.clone()).chain(names::parity(seal)) {
            match self.repo.bare_store().delete(&object) {
                Ok(()) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Whether something of so long ago is over.
fn is_over(since: Timestamp, grace: Duration, now: Timestamp) -> bool {
    since <= before(now, grace)
}
