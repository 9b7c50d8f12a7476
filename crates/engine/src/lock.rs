//! Object lock: everything that kept backups need stays locked for at least as long as was promised.
//!
//! Invariant: what is counted as locked is what the store said when it was asked for each version by itself, after the lock
//! was set. An object that ought to be there and is not, or that somebody put another over, is a problem that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::register::Register;
use pgark_repo::store::lock::ObjectVersion;
use pgark_repo::store::{ObjectLock, ObjectName, Retention, StoreError, StoreErrorKind};
use pgark_repo::wal::head::intersect;
use pgark_repo::wal::{WalArchive, WalHead};
use pgark_repo::{RepoError, Repository, keyring};

use crate::audit::journals_of;
use crate::ctx::Ctx;
use crate::error::Result;

/// Requests under way: each waits for the network, not for us.
const WORKERS: usize = 16;
/// Problems that are told one by one.
const PROBLEMS_SHOWN: usize = 10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockReport {
    /// Versions that were looked at.
    pub versions: u64,
    /// Of them, those whose lock was made longer.
    pub extended: u64,
    /// The earliest end of a lock.
    pub until: Option<Timestamp>,
    /// What is not locked as it should be, at most some.
    pub problems: Vec<String>,
    pub problems_in_all: u64,
}

impl LockReport {
    fn add_problem(&mut self, what: String) {
        self.problems_in_all += 1;
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(what);
        }
    }

    fn add(&mut self, seen: Result<Seen, String>) {
        self.versions += 1;
        match seen {
            Ok(seen) => {
                self.extended += u64::from(seen.extended);
                self.until = Some(self.until.map_or(seen.until, |u| u.min(seen.until)));
            }
            Err(what) => self.add_problem(what),
        }
    }
}

struct Seen {
    until: Timestamp,
    extended: bool,
}

/// Looks at the lock of everything that listed backups need, and extends those that end too early. None where the
/// repository's objects are not locked.
pub fn extend(repo: &Repository, cluster: &ClusterName, ctx: &Ctx) -> Result<Option<LockReport>> {
    let Some(lock) = repo.store().object_lock() else { return Ok(None) };
    let needed = Needed::of(repo, cluster)?;
    ctx.progress.note("looking at the locks of everything that backups need");
    let now = ctx.now();
    let report = Mutex::new(LockReport::default());
    let failure: Mutex<Option<StoreError>> = Mutex::default();
    let (send, receive) = sync_channel::<ObjectVersion>(WORKERS * 4);
    let receive = Mutex::new(receive);
    let listed = std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(version) = next(&receive) {
                    match look_at(lock, &version, now) {
                        Ok(seen) => report.lock().unwrap_or_else(PoisonError::into_inner).add(seen),
                        Err(e) => *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(e),
                    }
                }
            });
        }
        let mut listing = Listing {
            needed: &needed,
            seen: BTreeSet::new(),
            segments: 0,
            problems: vec![],
            deleted: BTreeMap::new(),
            here: None,
        };
        let mut outcome = Ok(());
        for prefix in needed.prefixes(cluster) {
            outcome = lock.versions(&prefix, &mut |versions| {
                let failed = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                failed.map_or(Ok(()), Err)?;
                for version in listing.choose(versions) {
                    // The workers end after us, not before.
                    let gone = |_| StoreError::Io {
                        operation: "lock",
                        object: version.name.to_string(),
                        source: std::io::Error::other("nobody is left to look at it"),
                    };
                    send.send(version.clone()).map_err(gone)?;
                }
                Ok(())
            });
            if outcome.is_err() || ctx.check_cancelled().is_err() {
                break;
            }
        }
        drop(send);
        outcome.map(|()| listing)
    });
    ctx.check_cancelled()?;
    let listing = listed.map_err(RepoError::from)?;
    if let Some(e) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(RepoError::from(e).into());
    }
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    listing.conclude(&Needed::of(repo, cluster)?, &mut report);
    Ok(Some(report))
}

/// The backup whose lock ends first, and when; as far as its record tells. None where nothing is locked or listed.
pub fn soonest(repo: &Repository, cluster: &ClusterName) -> Result<Option<(BackupId, Option<Timestamp>)>> {
    let Some(lock) = repo.store().object_lock() else { return Ok(None) };
    let mut soonest: Option<(BackupId, Option<Timestamp>)> = None;
    for entry in CatalogStore::new(repo, cluster).read()?.backups {
        let record = repo.store().find(&names::record(cluster, &entry.id)).map_err(RepoError::from)?.name;
        let told = lock.retention(&record, None).map_err(RepoError::from)?;
        let until = told.filter(|t| t.mode >= lock.policy().mode()).map(|t| t.until);
        if soonest.as_ref().is_none_or(|(_, earliest)| until < *earliest) {
            soonest = Some((entry.id, until));
        }
    }
    Ok(soonest)
}

fn next(receive: &Mutex<Receiver<ObjectVersion>>) -> Option<ObjectVersion> {
    receive.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Of one version; an inner error is a lock that is not as it should be.
fn look_at(lock: &dyn ObjectLock, version: &ObjectVersion, now: Timestamp) -> Result<Result<Seen, String>, StoreError> {
    let policy = lock.policy();
    let least = policy.at_least(now);
    let (name, id) = (&version.name, version.id.as_str());
    let told = match lock.retention(name, Some(id)) {
        Ok(told) => told,
        Err(e) if e.kind() == StoreErrorKind::NotFound => return Ok(Err(format!("{name} was removed meanwhile"))),
        Err(e) => return Err(e),
    };
    if let Some(told) = told.filter(|t| t.mode >= policy.mode() && t.until >= least) {
        return Ok(Ok(Seen { until: told.until, extended: false }));
    }
    // Neither shorter nor weaker than it is.
    let ours = Retention { mode: policy.mode(), until: policy.until(now) };
    let wanted = told.map_or(ours, |t| Retention { mode: t.mode.max(ours.mode), until: t.until.max(ours.until) });
    lock.retain(name, id, wanted)?;
    Ok(match lock.retention(name, Some(id))? {
        Some(now) if now.mode >= policy.mode() && now.until >= least => Ok(Seen { until: now.until, extended: true }),
        _ => Err(format!("the store took a lock on {name}, and does not say that it is locked")),
    })
}

/// What kept backups, and those who read them, need.
struct Needed {
    catalog: Catalog,
    /// Directories of registers, and the version that was in force.
    registers: Vec<(String, u64)>,
    /// Names that must be there.
    named: BTreeSet<ObjectName>,
    archives: Vec<(WalArchive, WalHead)>,
}

impl Needed {
    fn of(repo: &Repository, cluster: &ClusterName) -> Result<Self> {
        let books = CatalogStore::new(repo, cluster);
        let catalog = books.read()?;
        let mut named = BTreeSet::new();
        let mut registers = in_force(&keyring::register(repo.store().clone()))?;
        registers.extend(in_force(&books.register_of_books())?);
        let mut archives = vec![];
        for lineage in &catalog.lineages {
            let wal = WalArchive::new(repo, cluster, lineage.system_id);
            registers.extend(in_force(wal.head_register())?);
            let head = wal.head()?;
            named.extend(head.timelines().iter().filter(|t| t.history).map(|t| wal.place().history(t.timeline)));
            archives.push((wal, head));
        }
        for entry in &catalog.backups {
            named.insert(names::manifest(cluster, &entry.id));
            named.insert(names::record(cluster, &entry.id));
            for of in &entry.needs {
                let packs = of.packs.iter().flat_map(|(a, b)| *a..=*b);
                named.extend(packs.map(|n| names::pack(cluster, &of.backup, n)));
            }
        }
        Ok(Needed { catalog, registers, named, archives })
    }

    fn prefixes(&self, cluster: &ClusterName) -> Vec<String> {
        let journals = journals_of(cluster).map(|journal| names::audit_journal(&journal));
        let mut all = vec![names::KEYRING.into(), format!("{}-mirror", names::KEYRING), names::cluster_dir(cluster)];
        all.extend(journals);
        all
    }

    /// Whether it must be there, named or not: own packs of backups, and segments.
    fn must_have(&self, name: &ObjectName) -> bool {
        self.named.contains(name) || self.is_own_pack(name) || (self.is_segment(name) && self.is_wal(name))
    }

    /// Whether it is to be locked while it is there.
    fn wants(&self, name: &ObjectName) -> bool {
        self.must_have(name) || self.is_wal(name) || self.is_register(name) || names::audit_number(name).is_some()
    }

    /// The version that was in force, the one before, and what came since. Those that were replaced go by themselves.
    fn is_register(&self, name: &ObjectName) -> bool {
        let number = u64::from_str_radix(name.basename(), 16).ok();
        let is_late = |from: u64| number.is_some_and(|n| n.saturating_add(1) >= from);
        self.registers.iter().any(|(dir, from)| *dir == name.parent() && is_late(*from))
    }

    fn is_own_pack(&self, name: &ObjectName) -> bool {
        let dir = names::backups_dir(&self.catalog.cluster);
        let rest = name.as_str().strip_prefix(&dir).and_then(|r| r.strip_prefix('/'));
        let id = rest.and_then(|r| r.split_once('/')).and_then(|(id, _)| BackupId::parse(id).ok());
        id.is_some_and(|id| self.catalog.backup(&id).is_some()) && names::pack_of(name).is_some()
    }

    /// Segments in the copy that counts, and what lies beside them.
    fn is_wal(&self, name: &ObjectName) -> bool {
        self.archives.iter().any(|(wal, head)| {
            let size = self.catalog.lineage_of(wal.place().system_id).map(|l| l.segment_size);
            let rest = name.as_str().strip_prefix(&wal.place().dir()).and_then(|r| r.strip_prefix('/'));
            let (Some(size), Some(rest)) = (size, rest) else { return false };
            let is_timeline = rest.split('/').next().is_some_and(|d| d.len() == 8);
            match names::segment_copy(name.basename(), size) {
                Some((segment, copy)) if is_timeline => {
                    head.timeline(segment.timeline).is_some_and(|t| t.contains(segment.segment))
                        && head.copy_of(&segment) == copy
                }
                _ => is_timeline || rest.starts_with("history/"),
            }
        })
    }

    fn segments_also_in(&self, other: &Needed) -> u64 {
        let mut count = 0;
        for ((_, head), (_, later)) in self.archives.iter().zip(&other.archives) {
            for span in head.timelines() {
                let later = later.timeline(span.timeline).map_or(&[][..], |s| &s.ranges);
                count += intersect(&span.ranges, later).map(|(a, b)| b - a + 1).sum::<u64>();
            }
        }
        count
    }

    fn is_segment(&self, name: &ObjectName) -> bool {
        let size = |wal: &WalArchive| self.catalog.lineage_of(wal.place().system_id).map(|l| l.segment_size);
        !self.named.contains(name)
            && self.archives.iter().any(|(wal, _)| {
                name.as_str().starts_with(&format!("{}/", wal.place().dir()))
                    && size(wal).is_some_and(|s| names::segment_copy(name.basename(), s).is_some())
            })
    }
}

/// Where the copies of a register are, and the number of the version in force.
fn in_force(register: &Register) -> Result<Vec<(String, u64)>> {
    let number = register.read()?.map_or(0, |v| v.number);
    Ok(register.dirs().into_iter().map(|dir| (dir, number)).collect())
}

struct Listing<'a> {
    needed: &'a Needed,
    /// Of those with a name.
    seen: BTreeSet<ObjectName>,
    segments: u64,
    problems: Vec<(ObjectName, String)>,
    /// Objects of which a seal was deleted, and none was met that is there.
    deleted: BTreeMap<ObjectName, String>,
    /// The last object of which a seal was met that is there.
    here: Option<ObjectName>,
}

impl Listing<'_> {
    /// Of the versions of one name, those to lock: all of them, since which is the true one is known only to who reads it.
    fn choose<'v>(&mut self, versions: &'v [ObjectVersion]) -> impl Iterator<Item = &'v ObjectVersion> + use<'v> {
        let deleted = versions.first().is_some_and(|v| v.size.is_none());
        // Any seal of an object stands for it.
        let object = versions.first().map(|v| names::split_seal(&v.name).map_or_else(|| v.name.clone(), |(o, _)| o));
        let object = object.filter(|name| self.needed.must_have(name) || (!deleted && self.needed.wants(name)));
        if let Some(name) = object.as_ref().filter(|name| self.needed.must_have(name)) {
            let known = self.here.as_ref() == Some(name);
            if self.needed.named.contains(name) {
                self.seen.insert(name.clone());
            } else if self.needed.is_segment(name) && !deleted && !known {
                self.segments += 1;
            }
            let over = versions.windows(2).any(|pair| pair.iter().all(|v| v.size.is_some()));
            if deleted && !known {
                self.deleted.insert(name.clone(), format!("{name} was deleted; its versions are still there"));
            } else if over {
                self.problems.push((name.clone(), format!("another object was put over {name}")));
            }
            if !deleted {
                self.deleted.remove(name);
                self.here = Some(name.clone());
            }
        }
        let wanted = object.is_some();
        versions.iter().filter(move |v| wanted && v.size.is_some())
    }

    /// What is not needed any more was removed meanwhile by who may.
    fn conclude(self, still: &Needed, report: &mut LockReport) {
        let problems = self.problems.into_iter().chain(self.deleted);
        problems.filter(|(name, _)| still.must_have(name)).for_each(|(_, p)| report.add_problem(p));
        for name in self.needed.named.difference(&self.seen).filter(|name| still.must_have(name)) {
            report.add_problem(format!("{name} is missing"));
        }
        let archived = self.needed.segments_also_in(still);
        if self.segments < archived {
            report.add_problem(format!("{} archived WAL segments are missing", archived - self.segments));
        }
    }
}
