//! Files back from a backup: into a new directory, or to where they were. Everything is written beside first, and compared on its
//! way: until all of it is there and on the disk, nothing of the old was touched.

mod exchange;
mod journal;
mod stage;
mod undo;

use std::path::{Path, PathBuf};

use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, CatalogStore};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{FilesPart, FilesRoot, PartsRecord, Section};

pub use stage::{Staged, stage};
pub use undo::{Undone, undo};

use super::job::FilesJob;
use super::rules::patterns;
use super::tree::Written;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::foreign;
use crate::logical::restore::{SAFETY, is_damage};
use crate::parts::Source;

#[derive(Clone, Debug)]
pub struct RestoreOptions {
    pub cluster: ClusterName,
    /// None: the newest of `kind`; where that is damaged, the one before.
    pub backup: Option<BackupId>,
    pub kind: BackupKind,
    /// Without an id, backups of other places are passed over when there are some of this series: that of the configuration.
    pub series: Option<String>,
    pub sections: Vec<Section>,
    /// Only what matches one of them; empty: everything.
    pub paths: Vec<String>,
    pub destination: Destination,
}

#[derive(Clone, Debug)]
pub enum Destination {
    /// A directory that is absent or empty: `config/…` and `files/…` in it.
    Directory(PathBuf),
    /// Where it was.
    InPlace {
        /// What is there is backed up first, with these options.
        safety: Option<Box<FilesJob>>,
        old: Old,
    },
}

/// What becomes of what was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    Remove,
    Keep,
}

#[derive(Clone, Debug)]
pub struct RestorePlan {
    pub record: PartsRecord,
    /// Of the backup, in the wanted sections.
    pub roots: Vec<FilesRoot>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    pub written: Written,
    /// Names that were there and were replaced, and names beside them that the backup does not have: they stay.
    pub replaced: u64,
    pub others: u64,
    pub safety: Option<BackupId>,
    /// What was replaced, where it was kept.
    pub kept: Vec<PathBuf>,
    pub warnings: Vec<String>,
}

impl RestorePlan {
    pub fn files(&self) -> &FilesPart {
        self.record.files.as_ref().expect("a plan is of a backup with files")
    }
}

/// Looks at everything and changes nothing.
pub fn plan(options: &RestoreOptions, repo: &Repository, avoid: &[BackupId]) -> Result<RestorePlan> {
    patterns(&options.paths)?;
    let mut notes: Vec<String> =
        avoid.iter().map(|id| format!("DEGRADED: backup {id} is damaged and was not used")).collect();
    let record = choose(options, repo, avoid, &mut notes)?;
    let part = record.files.as_ref().expect("it was chosen for its files");
    let roots: Vec<FilesRoot> = part.roots.iter().filter(|r| options.sections.contains(&r.section)).cloned().collect();
    for root in &roots {
        check_root(&record, root)?;
    }
    if let Destination::Directory(to) = &options.destination {
        check_empty(to)?;
        foreign::refuse(to, "E-FILES-PLACE")?;
    }
    Ok(RestorePlan { roots, notes, record })
}

/// A root of a record decides where things are written to.
fn check_root(record: &PartsRecord, root: &FilesRoot) -> Result<()> {
    let fine = root.path.starts_with(b"/")
        && root.path.get(1..).is_some_and(|p| !p.is_empty() && pgark_repo::manifest::check_path(p));
    match fine {
        true => Ok(()),
        false => {
            let name = pgark_repo::names::record(&record.cluster, &record.id);
            Err(pgark_repo::RepoError::corrupt(name, "a path that cannot be").into())
        }
    }
}

fn check_empty(to: &Path) -> Result<()> {
    let refused = |why: &str| {
        let hint = "give a directory that is empty or does not exist; nothing was changed";
        Err(EngineError::refused("E-TARGET-NOT-EMPTY", format!("{} {why}", to.display()), hint))
    };
    match std::fs::symlink_metadata(to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(EngineError::file("looking at", to, e)),
        Ok(meta) if !meta.is_dir() => refused("is not a directory"),
        Ok(_) => match std::fs::read_dir(to).map_err(|e| EngineError::file("listing", to, e))?.next() {
            None => Ok(()),
            Some(_) => refused("is not empty"),
        },
    }
}

fn choose(
    options: &RestoreOptions,
    repo: &Repository,
    avoid: &[BackupId],
    notes: &mut Vec<String>,
) -> Result<PartsRecord> {
    let catalog = CatalogStore::new(repo, &options.cluster).read()?;
    let open = |entry: &BackupEntry| -> Result<PartsRecord> {
        let record = PartsRecord::load(repo, &options.cluster, &entry.id, &entry.record)?;
        if record.files.is_none() {
            return Err(wrong_kind(&entry.id, entry.kind));
        }
        crate::restore::thaw::check_one(repo, &options.cluster, entry)?;
        Source { repo, cluster: &options.cluster, record: &record }.check()?;
        Ok(record)
    };
    if let Some(id) = &options.backup {
        let entry = catalog.backup(id).ok_or_else(|| crate::expire::revive::not_listed(&catalog, id))?;
        if matches!(entry.kind, BackupKind::Physical | BackupKind::Logical) {
            return Err(wrong_kind(id, entry.kind));
        }
        return open(entry);
    }
    let mut passed: Vec<String> = vec![];
    let of_kind = |b: &&BackupEntry| b.kind == options.kind && !b.annotations.contains_key(SAFETY);
    let configured = |b: &&BackupEntry| b.series.is_some() && b.series == options.series;
    let has_configured = catalog.backups.iter().filter(of_kind).any(|b| configured(&b));
    let ordinary = |b: &&BackupEntry| of_kind(b) && (!has_configured || configured(b));
    if let Some(newer) = catalog.backups.iter().rfind(of_kind).filter(|b| !ordinary(b)) {
        notes.push(format!(
            "backup {} is newer and of other places than the configuration names: it is taken by its id alone",
            newer.id
        ));
    }
    for entry in catalog.backups.iter().rev().filter(ordinary).filter(|b| !avoid.contains(&b.id)) {
        match open(entry) {
            Ok(record) => {
                notes.append(&mut passed);
                return Ok(record);
            }
            Err(e) if is_damage(&e) => {
                passed.push(format!("DEGRADED: backup {} is damaged and was not used: {e}", entry.id));
            }
            Err(e) => return Err(e),
        }
    }
    let damaged = avoid.len() + passed.len();
    let but = if damaged > 0 { format!("; {damaged} are damaged") } else { String::new() };
    Err(EngineError::refused(
        "E-BACKUP-NONE",
        format!("'{}' has no {} backup{but}", options.cluster, options.kind),
        "'pgark info' lists the backups",
    ))
}

fn wrong_kind(id: &BackupId, kind: BackupKind) -> EngineError {
    EngineError::refused(
        "E-BACKUP-KIND",
        format!("{id} is a {kind} backup and holds no files"),
        "'pgark info' lists the backups with their kinds",
    )
}

/// Restores. `announce` is shown the plan before anything is written, and again when another backup had to be taken.
pub fn run(
    options: &RestoreOptions,
    repo: &Repository,
    ctx: &Ctx,
    announce: &mut dyn FnMut(&RestorePlan),
) -> Result<(RestorePlan, RestoreReport)> {
    let mut avoid = vec![];
    loop {
        let plan = plan(options, repo, &avoid)?;
        announce(&plan);
        match stage(options, &plan, repo, ctx) {
            Err(e) if is_damage(&e) && options.backup.is_none() => {
                ctx.progress.note(&format!("DEGRADED: backup {} is damaged: {e}", plan.record.id));
                avoid.push(plan.record.id);
            }
            Err(e) => return Err(e),
            Ok(staged) => {
                let report = staged.place(options, &plan, repo, ctx)?;
                return Ok((plan, report));
            }
        }
    }
}
