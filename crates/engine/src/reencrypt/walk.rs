//! What there is to be sealed anew: objects of backups and WAL, a directory at a time, so that memory does not grow with
//! the archive.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pgark_repo::audit::{self, JournalName};
use pgark_repo::catalog::{Catalog, PacksOf};
use pgark_repo::crypto::{HEADER_BYTES, generation_of};
use pgark_repo::names::{self, BackupId, ClusterName, WalPlace};
use pgark_repo::store::{ObjectName, StoreErrorKind};
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::Result;

/// A directory of the store.
pub struct Place {
    pub dir: String,
    /// Of a backup that is not listed: the packs that listed ones need. None: everything.
    pub only: Option<Vec<PacksOf>>,
}

/// An object, and which seals of it are in the store.
pub struct Seals {
    pub name: ObjectName,
    /// Generation in the name (0: the first seal, which has none) and bytes as stored.
    pub sizes: BTreeMap<u32, u64>,
}

/// How an object is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Under the newest key; other seals of it may go one day.
    New,
    /// Under this older key alone.
    Old(u32),
    /// It has no header of ours, or went away meanwhile.
    Nothing,
}

impl Seals {
    /// The seal of this generation by its name.
    pub fn seal(&self, generation: u32) -> Result<ObjectName, RepoError> {
        if generation == 0 { Ok(self.name.clone()) } else { names::later_seal(&self.name, generation) }
    }

    /// Bytes of the newest seal.
    pub fn size(&self) -> u64 {
        self.sizes.last_key_value().map_or(0, |(_, size)| *size)
    }

    /// Seals that the one under the newest key makes superfluous.
    pub fn superseded(&self, newest: u32) -> impl Iterator<Item = (u32, u64)> {
        let has_newest = self.sizes.contains_key(&newest);
        self.sizes.iter().filter(move |(g, _)| has_newest && **g < newest).map(|(g, size)| (*g, *size))
    }

    pub fn standing(&self, repo: &Repository, newest: u32) -> Result<Standing, RepoError> {
        let Some((last, _)) = self.sizes.last_key_value() else { return Ok(Standing::Nothing) };
        if *last >= newest {
            return Ok(Standing::New);
        }
        Ok(match generation_at(repo, &self.seal(*last)?)? {
            Some(generation) if generation < newest => Standing::Old(generation),
            Some(_) => Standing::New,
            None => Standing::Nothing,
        })
    }
}

/// What the header of an object says; None for what is no object of ours, or gone.
pub fn generation_at(repo: &Repository, name: &ObjectName) -> Result<Option<u32>, RepoError> {
    let mut header = [0; HEADER_BYTES];
    match repo.bare_store().read_at(name, 0, &mut header) {
        Ok(()) => Ok(generation_of(&header)),
        Err(e) if matches!(e.kind(), StoreErrorKind::NotFound | StoreErrorKind::Truncated) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Where objects of this cluster lie that stay. Also: the backups whose remains are on their way out and are left alone.
pub fn places(repo: &Repository, cluster: &ClusterName, catalog: &Catalog) -> Result<(Vec<Place>, Vec<BackupId>)> {
    let store = repo.bare_store();
    let (mut places, mut left) = (vec![], vec![]);
    for part in store.list_dirs(&names::backups_dir(cluster)).map_err(RepoError::from)? {
        let Ok(id) = BackupId::parse(&part) else { continue };
        let dir = names::backup_dir(cluster, &id);
        if catalog.backup(&id).is_some() || catalog.expired.iter().any(|e| e.backup == id) {
            places.push(Place { dir, only: None });
            continue;
        }
        let needs = catalog.backups.iter().flat_map(|b| &b.needs).filter(|n| n.backup == id);
        let only: Vec<PacksOf> = needs.cloned().collect();
        if catalog.has_remains(&id) {
            left.push(id);
        }
        if !only.is_empty() {
            places.push(Place { dir, only: Some(only) });
        }
    }
    places.push(Place { dir: names::reports_dir(cluster), only: None });
    // Also those of names that nobody has registered: they would keep old keys in use.
    let registered = repo.clusters()?;
    let is_anothers = |j: &JournalName| matches!(j, JournalName::Cluster(c) if c != cluster && registered.contains(c));
    let journals = audit::journals(repo)?.into_iter().filter(|j| !is_anothers(j));
    places.extend(journals.map(|j| Place { dir: names::audit_journal(&j), only: None }));
    for lineage in &catalog.lineages {
        let dir = WalPlace { cluster: cluster.clone(), system_id: lineage.system_id }.dir();
        for part in store.list_dirs(&dir).map_err(RepoError::from)? {
            let dir = format!("{dir}/{part}");
            match part.as_str() {
                "head" | "head-mirror" => {}
                "history" | "conflicts" => places.push(Place { dir, only: None }),
                _ => {
                    let logs = store.list_dirs(&dir).map_err(RepoError::from)?;
                    places.extend(logs.iter().map(|log| Place { dir: format!("{dir}/{log}"), only: None }));
                }
            }
        }
    }
    Ok((places, left))
}

/// The objects of a place, with their seals.
pub fn objects(repo: &Repository, place: &Place) -> Result<Vec<Seals>> {
    let mut found: BTreeMap<ObjectName, Seals> = BTreeMap::new();
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        let (name, generation) = names::split_seal(&stat.name).unwrap_or((stat.name, 0));
        let wanted = match &place.only {
            None => names::lasting_kind(&name).is_some(),
            Some(only) => names::pack_of(&name).is_some_and(|number| only.iter().any(|n| n.contains(number))),
        };
        if wanted {
            let seals = found.entry(name.clone()).or_insert(Seals { name, sizes: BTreeMap::new() });
            seals.sizes.insert(generation, stat.size);
        }
        Ok(())
    };
    repo.bare_store().list(&place.dir, &mut visit).map_err(RepoError::from)?;
    Ok(found.into_values().collect())
}

/// Runs `work` on each, several at once; the first error ends it.
pub fn each<T: Sync>(items: &[T], jobs: usize, ctx: &Ctx, work: &(dyn Fn(&T) -> Result<()> + Sync)) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<crate::EngineError>> = Mutex::default();
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = ctx.check_cancelled().and_then(|()| work(item)) {
                next.store(items.len(), Ordering::Relaxed);
                failure.lock().expect("no thread panics with the lock").get_or_insert(e);
                return;
            }
        }
    };
    thread::scope(|scope| {
        (1..jobs.min(items.len())).for_each(|_| drop(scope.spawn(run)));
        run();
    });
    failure.into_inner().expect("the threads are gone").map_or(Ok(()), Err)
}
