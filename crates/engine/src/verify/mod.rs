//! Verification starts from what must exist: the catalog's backups and the head's WAL. Every object of theirs
//! is read, authenticated, decoded and compared; what is damaged or gone is reported with the backups and the
//! time windows it takes away. Objects that nobody claims are reported too.

mod books;
mod meanwhile;
mod parity;
mod report;
mod reports;
mod trail;
mod unsteady;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use jiff::Timestamp;
use pgark_repo::catalog::{BackupEntry, Catalog, CatalogStore, Evidence, PhysicalBackup};
use pgark_repo::crypto::ObjectKind;
use pgark_repo::keyring;
use pgark_repo::manifest::{PackUse, packs_of};
use pgark_repo::names::{self, BackupId};
use pgark_repo::pack;
use pgark_repo::record::{Record, manifest_reader};
use pgark_repo::register::RegisterProblem;
use pgark_repo::store::{ObjectName, StoreError, StoreErrorKind};
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::rescue;

use self::books::Unopened;
use self::parity::ParityFindings;
use self::unsteady::Unsteady;
pub use report::{Depth, LostWindow, Names, Problem, ProblemKind, Unchecked, VerifyOptions, VerifyReport};

pub fn verify(options: &VerifyOptions, repo: &Repository, ctx: &Ctx) -> Result<VerifyReport> {
    let by_books = repo.keys().writes_only().is_some();
    if options.depth == Depth::Full {
        repo.require_reader("the content of backups and WAL")?;
    }
    let catalog_store = CatalogStore::new(repo, &options.cluster);
    let catalog = catalog_store.read()?;
    let parity = ParityFindings::list(repo, &names::cluster_dir(&options.cluster), options.depth)?;
    let report = VerifyReport { by_books, ..VerifyReport::default() };
    let (claimed, unopened, unsteady) = Default::default();
    let mut v = Verify { options, repo, ctx, catalog: &catalog, claimed, parity, unopened, unsteady, report };
    v.registers(&catalog_store)?;
    let backups: Vec<&BackupEntry> = v.selected()?;
    let mut damaged = match by_books {
        false => v.backups(&backups)?,
        true => v.presence_of_backups(&backups).map(|()| BTreeSet::new())?,
    };
    let physical: Vec<PhysicalBackup> = backups.iter().filter_map(|b| b.as_physical()).collect();
    for lineage in &catalog.lineages {
        v.wal(lineage, &physical.iter().collect::<Vec<_>>())?;
    }
    if options.only.is_none() && !by_books {
        v.reports()?;
        v.trail()?;
        v.strangers()?;
    }
    v.settle_with_the_present(&catalog_store, &mut damaged)?;
    v.report_parity();
    v.report_unopened();
    v.report_unsteady();
    let mut report = VerifyReport { accounted: v.claimed, ..v.report };
    if !by_books {
        match record_findings(&catalog_store, options.depth, &backups, &damaged, &report, ctx.now()) {
            Err(EngineError::Repo(RepoError::Store(e)))
                if matches!(e.kind(), StoreErrorKind::Denied | StoreErrorKind::ReadOnly | StoreErrorKind::NoSpace) =>
            {
                report.notes.push(format!("that these backups were verified could not be recorded: {e}"));
            }
            other => other?,
        }
    }
    report.problems.sort_by(|a, b| a.object.cmp(&b.object));
    Ok(report)
}

struct Verify<'a> {
    options: &'a VerifyOptions,
    repo: &'a Repository,
    ctx: &'a Ctx,
    catalog: &'a Catalog,
    /// Objects that something listed needs, or that belong to the books.
    claimed: Names,
    parity: ParityFindings,
    unopened: Unopened,
    unsteady: Unsteady,
    report: VerifyReport,
}

/// One object to be read in full.
enum Check {
    Pack { object: PackUse, users: Vec<BackupId> },
}

impl<'a> Verify<'a> {
    fn problem(
        &mut self,
        object: &str,
        kind: ProblemKind,
        what: impl ToString,
        backups: Vec<BackupId>,
        windows: Vec<LostWindow>,
    ) {
        self.report.problems.push(Problem { object: object.into(), kind, what: what.to_string(), backups, windows });
    }

    fn selected(&self) -> Result<Vec<&'a BackupEntry>> {
        match &self.options.only {
            None => Ok(self.catalog.backups.iter().collect()),
            Some(id) => {
                let found = self.catalog.backup(id);
                Ok(vec![found.ok_or_else(|| crate::expire::revive::not_listed(self.catalog, id))?])
            }
        }
    }

    /// Key ring, catalog and WAL head: each has its copies.
    fn registers(&mut self, catalog: &CatalogStore) -> Result<()> {
        let mut found: Vec<RegisterProblem> = self.repo.check_keyring()?;
        found.extend(catalog.check()?);
        for lineage in &self.catalog.lineages {
            let wal = WalArchive::new(self.repo, &self.options.cluster, lineage.system_id);
            found.extend(wal.head_register().check()?);
        }
        self.report.objects_checked += 3;
        for p in found {
            let kind = if p.missing { ProblemKind::Missing } else { ProblemKind::Damaged };
            // Another copy still says what this one did; nothing is lost yet.
            self.problem(&p.object, kind, p.what, vec![], vec![]);
        }
        Ok(())
    }

    /// Returns the backups that cannot be restored.
    fn backups(&mut self, backups: &[&'a BackupEntry]) -> Result<BTreeSet<BackupId>> {
        let mut damaged = BTreeSet::new();
        let mut packs: BTreeMap<String, Check> = BTreeMap::new();
        for entry in backups {
            self.ctx.check_cancelled()?;
            self.report.backups_checked.push(entry.id.clone());
            let (cluster, id) = (&self.options.cluster, &entry.id);
            let (record_name, manifest_name) = (names::record(cluster, id), names::manifest(cluster, id));
            self.claimed.insert(&record_name);
            self.claimed.insert(&manifest_name);
            let load = || Record::load(self.repo, cluster, id, &entry.record);
            let record = self.unsteady.read(record_name.as_str(), load);
            let Some(record) = self.sorted(record.map_err(Into::into), record_name.as_str(), id, &mut damaged)? else {
                continue;
            };
            self.parity.check(self.repo, &record_name)?;
            let read = || manifest_reader(self.repo, cluster, id).and_then(packs_of);
            let uses = self.unsteady.read(manifest_name.as_str(), read).map_err(EngineError::from);
            let Some((uses, print)) = self.sorted(uses, manifest_name.as_str(), id, &mut damaged)? else { continue };
            self.report.bytes_checked += print.size + entry.record.size;
            if print != *record.manifest() {
                damaged.insert(id.clone());
                let what = "not the manifest that this backup wrote";
                self.problem(manifest_name.as_str(), ProblemKind::Damaged, what, vec![id.clone()], vec![]);
                continue;
            }
            self.parity.check(self.repo, &manifest_name)?;
            for object in uses {
                let name = names::pack(cluster, &object.id.backup, object.id.number).to_string();
                self.claimed.insert(&name);
                let Check::Pack { users, .. } = packs.entry(name).or_insert(Check::Pack { object, users: vec![] });
                users.push(id.clone());
            }
        }
        self.packs(packs, &mut damaged)?;
        Ok(damaged)
    }

    /// Damage goes to the report; trouble on the way to the object ends the verification.
    fn sorted<T>(
        &mut self,
        r: Result<T>,
        object: &str,
        id: &BackupId,
        damaged: &mut BTreeSet<BackupId>,
    ) -> Result<Option<T>> {
        self.report.objects_checked += 1;
        match r {
            Ok(v) => Ok(Some(v)),
            Err(EngineError::Repo(e)) if e.is_damage() => {
                damaged.insert(id.clone());
                self.problem(object, kind_of(&e), e, vec![id.clone()], vec![]);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn packs(&mut self, packs: BTreeMap<String, Check>, damaged: &mut BTreeSet<BackupId>) -> Result<()> {
        let list: Vec<(String, Check)> = packs.into_iter().collect();
        let total = list.iter().map(|(_, Check::Pack { object, .. })| object.fingerprint.size).sum();
        self.ctx.progress.begin("verify packs", Some(total));
        let next = AtomicUsize::new(0);
        let bytes = AtomicU64::new(0);
        let found: Mutex<Vec<(usize, RepoError)>> = Mutex::default();
        thread::scope(|scope| -> Result<()> {
            let (list, next, bytes, found) = (&list, &next, &bytes, &found);
            let this = &*self;
            let workers: Vec<_> = (0..this.options.jobs.max(1))
                .map(|_| {
                    scope.spawn(move || -> Result<()> {
                        loop {
                            this.ctx.check_cancelled()?;
                            let i = next.fetch_add(1, Ordering::Relaxed);
                            let Some((name, Check::Pack { object, .. })) = list.get(i) else { return Ok(()) };
                            match this.unsteady.read(name, || this.check_pack(object)) {
                                Ok(n) => drop(bytes.fetch_add(n, Ordering::Relaxed)),
                                Err(e) if e.is_damage() || is_withheld(&e) => {
                                    found.lock().expect("no thread panics with the lock").push((i, e))
                                }
                                Err(e) => return Err(e.into()),
                            }
                            this.ctx.progress.advance(object.fingerprint.size);
                        }
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        self.ctx.progress.end();
        self.report.objects_checked += list.len() as u64;
        self.report.bytes_checked += bytes.load(Ordering::Relaxed);
        for (i, e) in found.into_inner().expect("the workers are gone") {
            let Some((name, Check::Pack { users, .. })) = list.get(i) else { continue };
            if is_withheld(&e) {
                self.report.objects_checked -= 1;
                let (object, why, backups) = (name.clone(), e.to_string(), users.clone());
                self.report.unchecked.push(Unchecked { object, why, backups });
                continue;
            }
            damaged.extend(users.iter().cloned());
            self.problem(name, kind_of(&e), e, users.clone(), vec![]);
        }
        Ok(())
    }

    fn check_pack(&self, object: &PackUse) -> Result<u64, RepoError> {
        let name = names::pack(&self.options.cluster, &object.id.backup, object.id.number);
        let read = match self.options.depth {
            Depth::Full => match pack::verify(self.repo.store(), self.repo.keys(), &name, &object.fingerprint) {
                // That it is there with the right length can be seen.
                Err(e) if is_withheld(&e) => {
                    self.check_size(object, &name)?;
                    return Err(e);
                }
                read => read?,
            },
            Depth::Quick => {
                self.check_size(object, &name)?;
                0
            }
        };
        self.parity.check(self.repo, &name)?;
        Ok(read)
    }

    /// A list that met something that is no object has shown everything else.
    fn strange(&mut self, listed: std::result::Result<(), StoreError>) -> Result<()> {
        match listed {
            Err(StoreError::Strange { object, what }) => {
                if !self.report.problems.iter().any(|p| p.object == object) {
                    self.problem(&object, ProblemKind::Damaged, format!("it is no object: {what}"), vec![], vec![]);
                }
                Ok(())
            }
            other => Ok(other.map_err(RepoError::from)?),
        }
    }

    fn check_size(&self, object: &PackUse, name: &ObjectName) -> Result<(), RepoError> {
        match self.repo.store().stat(name)?.size {
            size if size == object.fingerprint.size => Ok(()),
            size => Err(RepoError::corrupt(name, format!("{size} bytes, {} were written", object.fingerprint.size))),
        }
    }

    /// Objects of the cluster, and at the top of the repository, that nothing listed accounts for.
    fn strangers(&mut self) -> Result<()> {
        let dir = names::cluster_dir(&self.options.cluster);
        let books = [
            keyring::register(self.repo.store().clone()),
            CatalogStore::new(self.repo, &self.options.cluster).register_of_books(),
        ];
        let (own, wal, claimed) = (format!("{dir}/"), format!("{dir}/wal/"), &self.claimed);
        let mut found: Vec<String> = vec![];
        let listed = self.repo.store().list("", &mut |stat| {
            let name = stat.name.as_str();
            let of_trail = names::lasting_kind(&stat.name) == Some(ObjectKind::Audit)
                || names::split_seal(&stat.name).is_some_and(|(object, _)| names::audit_number(&object).is_some());
            let ours = name.starts_with(&own) || !(name.starts_with("clusters/") || of_trail);
            let is_parity = names::protected_by(name).is_some() && claimed.contains(names::principal(name));
            let known =
                claimed.contains(name) || is_parity || name.starts_with(&wal) || books.iter().any(|b| b.owns(name));
            if ours && !known {
                found.push(name.to_owned());
            }
            Ok(())
        });
        self.strange(listed)?;
        let (rescue, found): (Vec<String>, Vec<String>) = found.into_iter().partition(|name| rescue::owns(name));
        if rescue.is_empty() {
            let what = "the extractor for the day without pgark is not in rescue/: 'pgark init' or 'pgark replicate' puts it there";
            self.report.notes.push(what.to_owned());
        }
        for (object, kind, what) in rescue::check(&**self.repo.store(), &rescue)? {
            self.problem(&object, kind, what, vec![], vec![]);
        }
        let probes = found.iter().filter(|name| is_probe(name)).count();
        if probes > 0 {
            self.report.notes.push(format!("{probes} objects in probe/ were left by checks, and are needed by nobody"));
        }
        for name in found.into_iter().filter(|name| !is_probe(name)) {
            if self.is_companion(&name)? {
                continue;
            }
            let id = name.strip_prefix(&format!("{dir}/backups/")).and_then(|r| r.split('/').next());
            let id = id.and_then(|i| BackupId::parse(i).ok());
            // An interrupted or running backup is accounted for by its job; its remains go with the next one.
            let known = id.as_ref().is_some_and(|id| {
                self.catalog.has_remains(id) || self.catalog.jobs.iter().any(|j| j.backup.as_ref() == Some(id))
            });
            if known {
                continue;
            }
            self.problem(&name, ProblemKind::Unexpected, parity::stranger(&name), vec![], vec![]);
        }
        Ok(())
    }
}

/// Of a `check` that was killed, or of a client that removes nothing.
fn is_probe(name: &str) -> bool {
    name.starts_with("probe/")
}

/// It is there, and its bytes are not to be had by us now.
fn is_withheld(e: &RepoError) -> bool {
    matches!(e, RepoError::Store(e) if matches!(e.kind(), StoreErrorKind::Archived | StoreErrorKind::Denied))
}

fn kind_of(e: &RepoError) -> ProblemKind {
    if e.is_not_found() { ProblemKind::Missing } else { ProblemKind::Damaged }
}

/// What somebody else than `verify` found that cannot be restored: it is not counted on, nor built upon.
pub(crate) fn note_damage(catalog: &CatalogStore, id: &BackupId, now: Timestamp) -> Result<()> {
    catalog.update(|c| {
        let mut found = c.backups.iter_mut().filter(|b| b.id == *id && b.damaged.is_none());
        Ok(found.next().map(|b| b.damaged = Some(now)))
    })?;
    Ok(())
}

/// Backups of which every byte was just compared have earned it; those that cannot be restored are not counted on by
/// retention, however little was looked at.
fn record_findings(
    catalog: &CatalogStore,
    depth: Depth,
    backups: &[&BackupEntry],
    damaged: &BTreeSet<BackupId>,
    report: &VerifyReport,
    now: Timestamp,
) -> Result<()> {
    // What lies there besides takes nothing from a backup.
    let harm = |p: &&Problem| !matches!(p.kind, ProblemKind::Unexpected | ProblemKind::Conflict);
    let hurt = report.problems.iter().filter(harm).flat_map(|p| &p.backups).chain(damaged);
    let hurt: BTreeSet<&BackupId> = hurt.collect();
    let unread: BTreeSet<&BackupId> = report.unchecked.iter().flat_map(|u| &u.backups).collect();
    let proven = |id: &&BackupId| depth == Depth::Full && !hurt.contains(id) && !unread.contains(id);
    let proven = backups.iter().map(|b| &b.id).filter(proven);
    let proven: Vec<&BackupId> = proven.collect();
    let changes = |b: &BackupEntry| {
        let proven = proven.contains(&&b.id) && (b.evidence < Evidence::Authenticated || b.damaged.is_some());
        proven || (hurt.contains(&b.id) && b.damaged.is_none())
    };
    catalog.update(|c| {
        if !c.backups.iter().any(changes) {
            return Ok(None);
        }
        for b in c.backups.iter_mut().filter(|b| changes(b)) {
            if hurt.contains(&b.id) {
                b.damaged = Some(now);
            } else {
                b.evidence = b.evidence.max(Evidence::Authenticated);
                b.damaged = None;
            }
        }
        Ok(Some(()))
    })?;
    Ok(())
}
