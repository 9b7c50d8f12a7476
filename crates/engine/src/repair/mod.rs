//! What was found missing or damaged in one repository, by a verification or on the way of a reader, replaced by the same
//! bytes: made again from its parity, taken from another copy of the repository, or put together from the data directory.
//! Parity that is missing or damaged is written anew.
//!
//! Invariant: a damaged object is removed only when the bytes that replace it were read as a whole and found to be exactly
//! those that were written once, and when they lie durably elsewhere. What cannot be replaced stays as it is.

mod mend;
mod object;

use std::collections::BTreeSet;
use std::path::Path;

use pgark_pg::names::WalFileName;
use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, Claim, JobKind};
use pgark_repo::keyring;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::parity;
use pgark_repo::store::ObjectName;
use pgark_repo::wal::WalArchive;

use crate::backup::claim::KeptClaim;
use crate::ctx::Ctx;
use crate::error::Result;
use crate::rescue;
use crate::several::Member;
use crate::verify::{Problem, ProblemKind, VerifyReport};

use object::{Known, complete, expected, from_data, from_others, heal, lineages_of, seals_of, whole};

pub use mend::{Mended, mend, mend_wal};

#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// Objects that are whole again.
    pub repaired: Vec<String>,
    /// What could not be repaired, and why.
    pub left: Vec<(String, String)>,
    /// Objects that have parity now.
    pub protected: Vec<ObjectName>,
    /// Backups that were affected and should be verified again.
    pub backups: BTreeSet<BackupId>,
    /// When nothing is changed: what could be repaired, and from what.
    pub possible: Vec<(String, String)>,
}

/// Whether what can be repaired is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Repair,
    /// Everything but the change: right bytes are looked for, and compared.
    LookOnly,
}

impl RepairReport {
    /// There was nothing to take anything from.
    pub fn had_no_source(&self) -> bool {
        let nothing_done = self.repaired.is_empty() && self.protected.is_empty();
        nothing_done && self.left.iter().all(|(_, why)| why == NO_SOURCE)
    }
}

/// What a repair takes the right bytes from, beside parity.
pub struct RepairFrom<'a> {
    pub others: &'a [Member],
    /// The cluster's own directory: its unchanged pages are asked when nothing else can help.
    pub data: Option<&'a Path>,
    pub act: Act,
}

/// Replaces what `found` says is missing or damaged in `repo`.
pub fn repair(
    repo: &Repository,
    from: &RepairFrom<'_>,
    cluster: &ClusterName,
    found: &VerifyReport,
    ctx: &Ctx,
) -> Result<RepairReport> {
    if from.act == Act::Repair {
        crate::error::refuse_append_only(repo)?;
    }
    let catalog = CatalogStore::new(repo, cluster);
    let mut report = RepairReport::default();
    let books = registers(repo, &catalog, found, from.act, &mut report)?;
    let listed = catalog.read()?;
    let lineages = lineages_of(&listed);
    let expected = expected(&sources(repo, from.others), cluster, &listed.backups);
    let known = Known { cluster, lineages: &lineages, expected: &expected, act: from.act };
    let damage = |p: &&Problem| matches!(p.kind, ProblemKind::Missing | ProblemKind::Damaged);
    for problem in found.problems.iter().filter(damage).filter(|p| !books.contains(&p.object)) {
        ctx.check_cancelled()?;
        let pins = match from.act {
            Act::Repair => pin(&catalog, &problem.backups, ctx)?,
            Act::LookOnly => vec![],
        };
        let outcome = one(repo, from, &known, problem);
        for (kept, pin) in pins {
            drop(kept);
            if let Err(e) = pin.release() {
                tracing::warn!(%e, "the claim ends by itself");
            }
        }
        match outcome {
            Ok(source) if from.act == Act::LookOnly => report.possible.push((problem.object.clone(), source)),
            Ok(from) => {
                tracing::info!(object = problem.object, from, "repaired");
                report.repaired.push(problem.object.clone());
                report.backups.extend(problem.backups.iter().cloned());
            }
            Err(why) => report.left.push((problem.object.clone(), why)),
        }
    }
    if from.act == Act::LookOnly {
        return Ok(report);
    }
    remove_leftovers(repo, found, &mut report);
    for name in &found.parity_missing {
        ctx.check_cancelled()?;
        match write_parity(repo, name) {
            Ok(()) => report.protected.push(name.clone()),
            Err(why) => report.left.push((names::parity(name).map_or(name.to_string(), |p| p.to_string()), why)),
        }
    }
    Ok(report)
}

/// Nobody may delete what is being mended.
fn pin(catalog: &CatalogStore, backups: &[BackupId], ctx: &Ctx) -> Result<Vec<(KeptClaim, Claim)>> {
    let mut pins = vec![];
    for id in backups {
        let pin = catalog.claim(JobKind::Restore, id, ctx.now())?;
        pins.push((KeptClaim::new(pin.clone(), ctx), pin));
    }
    Ok(pins)
}

/// Key ring, catalog and heads: each copy is written anew as the other one has it. Returns the objects that were dealt with.
fn registers(
    repo: &Repository,
    catalog: &CatalogStore,
    found: &VerifyReport,
    act: Act,
    report: &mut RepairReport,
) -> Result<BTreeSet<String>> {
    let ring = keyring::register(repo.store().clone());
    let books = catalog.register_of_books();
    let listed = catalog.read()?;
    let heads = listed.lineages.iter().map(|l| WalArchive::new(repo, catalog.cluster(), l.system_id));
    let heads: Vec<WalArchive> = heads.collect();
    let is_of_book = |object: &str| {
        ring.owns(object) || books.owns(object) || heads.iter().any(|wal| wal.head_register().owns(object))
    };
    let hurt: BTreeSet<String> =
        found.problems.iter().map(|p| p.object.clone()).filter(|object| is_of_book(object)).collect();
    if hurt.is_empty() {
        return Ok(hurt);
    }
    if act == Act::Repair {
        report.repaired.extend(repo.mend_keyring()?);
        report.repaired.extend(catalog.mend()?);
        for wal in &heads {
            report.repaired.extend(wal.head_register().mend(&mut |_| Ok(()))?);
        }
        tracing::info!(mended = ?report.repaired, "copies of registers were written anew");
    }
    // Somebody else's change may have put them back, too.
    let mut left = repo.check_keyring()?;
    left.extend(catalog.check()?);
    for wal in &heads {
        left.extend(wal.head_register().check()?);
    }
    for object in &hurt {
        match left.iter().find(|p| p.object == *object) {
            None if report.repaired.contains(object) => {}
            None => report.repaired.push(object.clone()),
            Some(p) if p.has_other => report.possible.push((object.clone(), "its other copy".into())),
            Some(p) => report.left.push((object.clone(), p.what.clone())),
        }
    }
    Ok(hurt)
}

/// Where books may be read, in the order in which they are asked.
fn sources(repo: &Repository, others: &[Member]) -> Vec<Member> {
    let parity = Member { name: PARITY.into(), repo: repo.healing(), required: false };
    std::iter::once(parity).chain(others.iter().cloned()).collect()
}

const NO_SOURCE: &str = "it has no parity, there is no other repository, and no data directory";

/// Of the source that needs no other repository.
const PARITY: &str = "its parity";

/// What the verified bytes give. An object that is gone meanwhile needs none.
fn write_parity(repo: &Repository, name: &ObjectName) -> std::result::Result<(), String> {
    let store = &**repo.bare_store();
    let percent = store.parity().ok_or("no parity is configured for this repository")?;
    parity::protect(store, name, percent).map_err(|e| e.to_string())
}

/// Healed bytes that an interrupted repair left beside objects that are whole.
fn remove_leftovers(repo: &Repository, found: &VerifyReport, report: &mut RepairReport) {
    let strangers = found.problems.iter().filter(|p| p.kind == ProblemKind::Unexpected).map(|p| &p.object);
    let healed: Vec<&String> = strangers.filter(|object| names::healed_from(object).is_some()).collect();
    let served = |object: &&&String| {
        let principal = names::principal(object);
        let damaged = found.problems.iter().any(|p| p.object == principal);
        !damaged || report.repaired.iter().any(|repaired| repaired == principal)
    };
    let gone: Vec<&String> = healed.iter().filter(served).copied().chain(&found.leftovers).collect();
    for object in gone {
        match ObjectName::parse(object).and_then(|name| repo.bare_store().delete(&name)) {
            Ok(()) => report.repaired.push(object.clone()),
            // The repair of the object has just taken it away.
            Err(e) if e.is_not_found() => report.repaired.push(object.clone()),
            Err(e) => report.left.push((object.clone(), e.to_string())),
        }
    }
}

/// Returns where the bytes came from.
fn one(
    repo: &Repository,
    from: &RepairFrom<'_>,
    known: &Known<'_>,
    problem: &Problem,
) -> std::result::Result<String, String> {
    if rescue::owns(&problem.object) {
        let mended = if known.act == Act::Repair { rescue::mend(&**repo.store(), &problem.object) } else { Ok(()) };
        return mended.map(|()| "what pgark brings".to_owned()).map_err(|e| e.to_string());
    }
    let name = ObjectName::parse(&problem.object).map_err(|_| "it is no single object".to_owned())?;
    if let Some(protected) = names::protected_by(name.as_str()) {
        let protected = ObjectName::parse(protected).map_err(|e| e.to_string())?;
        let written = if known.act == Act::Repair { write_parity(repo, &protected) } else { Ok(()) };
        return written.map(|()| "the object that it protects".to_owned());
    }
    let mut why = vec![];
    for seal in seals_of(repo, &name) {
        // An interrupted repair has got so far.
        match complete(repo, &name, &seal, known) {
            Some(Ok(())) => return Ok("an interrupted repair".to_owned()),
            Some(Err(e)) => why.push(e.to_string()),
            None => {}
        }
    }
    match from_parity(repo, known, &name) {
        Ok(()) => return Ok(PARITY.to_owned()),
        Err(said) => why.extend(said),
    }
    match from_others(repo, from.others, known, &name) {
        Ok(source) => return Ok(source),
        Err(said) => why.extend(said),
    }
    if let Some(data) = from.data {
        let books: Vec<&Repository> = std::iter::once(repo).chain(from.others.iter().map(|m| &m.repo)).collect();
        let users = problem.backups.iter().cloned().collect();
        match from_data(repo, &books, &users, known, &name, data) {
            Ok(()) => return Ok(format!("the data directory {}", data.display())),
            Err(e) => why.push(format!("{}: {e}", data.display())),
        }
    }
    if is_backup_history(&name) {
        let removed = if known.act == Act::Repair { repo.store().delete(&name) } else { Ok(()) };
        return removed
            .map(|()| "nothing: no recovery reads it, and it is removed".to_owned())
            .map_err(|e| e.to_string());
    }
    Err(if why.is_empty() { NO_SOURCE.to_owned() } else { why.join("; ") })
}

/// PostgreSQL writes these for people; pgark's own books say the same.
fn is_backup_history(name: &ObjectName) -> bool {
    matches!(WalFileName::parse(names::without_copy(name.basename())), Ok(WalFileName::BackupHistory { .. }))
}

fn from_parity(repo: &Repository, known: &Known<'_>, name: &ObjectName) -> std::result::Result<(), Vec<String>> {
    let healing = repo.healing();
    if !healing.store().heal(name) {
        return Err(healing.store().notices());
    }
    let healed = whole(&healing, name, known).and_then(|(seal, bytes)| match known.act {
        Act::Repair => heal(repo, name, &seal, &bytes),
        Act::LookOnly => Ok(()),
    });
    healed.map_err(|e| vec![format!("{PARITY}: {e}")])
}
