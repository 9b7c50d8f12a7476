//! What was written beside is exchanged with what is there, and what was replaced is cleared away.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use pgark_repo::Repository;
use pgark_repo::record::Section;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::stage::{Staged, StagedAt, What, add_not};
use super::{Destination, Old, RestoreOptions, RestorePlan, RestoreReport, journal};
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::files::FilesOptions;
use crate::files::attributes::{self, modified_ns};
use crate::files::job::{FilesJob, FilesReport, run as back_up};
use crate::files::owners::Owners;
use crate::files::place::{Placing, REPLACED, remove_tree};
use crate::logical::restore::SAFETY;

impl Staged {
    /// Puts it in place; a failure leaves everything as it was.
    pub fn place(
        mut self,
        options: &RestoreOptions,
        plan: &RestorePlan,
        repo: &Repository,
        ctx: &Ctx,
    ) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        let old = match &options.destination {
            Destination::Directory(_) => Old::Remove,
            Destination::InPlace { safety, old } => {
                let made: Vec<&PathBuf> = self.places.iter().flat_map(|at| &at.made).collect();
                match safety_backup(safety.as_deref(), plan, &made, repo, ctx)? {
                    None => *old,
                    Some(safety) => {
                        report.safety = Some(safety.entry.id);
                        let whole = safety.warnings.is_empty();
                        report.warnings.extend(safety.warnings);
                        // What it could not read is nowhere else.
                        if whole { *old } else { Old::Keep }
                    }
                }
            }
        };
        let owners = Owners::of_this_machine();
        let sources = self.places.iter().map(StagedAt::source).collect::<Result<Vec<Option<File>>>>()?;
        let mut placings = vec![];
        for (at, source) in self.places.iter().zip(&sources) {
            let Some(source) = source else { continue };
            let with_top = matches!(at.what, What::Directory { .. });
            let mut placing = Placing::new(&at.dir, source, &at.dir_path, &owners, with_top);
            placing.plan()?;
            placings.push((at, placing));
        }
        let journaled = matches!(options.destination, Destination::InPlace { .. });
        if journaled {
            journal::write(&self.places, &placings)?;
        }
        // From now on what was there may be in the staging: it goes when all of it is in place, or back where it was.
        self.places.iter().for_each(|at| at.placed.set(true));
        if let Err(e) = placings.iter_mut().try_for_each(|(_, placing)| placing.place()) {
            // Those before are put back as well.
            let e = placings.iter_mut().rev().fold(e, |e, (_, placing)| placing.undo(e));
            let stuck = placings.iter().any(|(_, placing)| placing.stuck);
            self.places.iter().for_each(|at| at.placed.set(stuck));
            return Err(e);
        }
        let mut old = old;
        for (_, placing) in &placings {
            // What is in a directory that gave way to a file need not be in any backup.
            if placing.directories_replaced > 0 {
                old = Old::Keep;
            }
            report.replaced += placing.replaced;
            report.others += if placing.with_top { placing.others } else { 0 };
            add_not(&mut self.written.not, placing.not);
        }
        drop(placings);
        drop(sources);
        if journaled && let Err(e) = journal::mark_placed(&self.places) {
            // Then a clean-up that is interrupted is not finished by itself.
            report.warnings.push(e.to_string());
        }
        self.clean_up(old, plan, &mut report);
        report.warnings.extend(self.written.not.warnings());
        for path in self.written.changed.iter().take(20) {
            report.warnings.push(format!("{} was being written while it was backed up: look at it", show(path)));
        }
        report.written = self.written;
        Ok(report)
    }

    /// From here on everything is in place, and nothing is undone.
    fn clean_up(&self, old: Old, plan: &RestorePlan, report: &mut RestoreReport) {
        let keep = old == Old::Keep && report.replaced > 0;
        for (n, at) in self.places.iter().enumerate() {
            at.placed.set(true);
            // The staging was in it: its time was set, and goes with the removal.
            let set = match at.what {
                What::Directory { .. } => at.dir.metadata().ok(),
                _ => None,
            };
            let mut left = at.name.clone();
            let done = put_aside(at, &format!("{REPLACED}{}-{n}", plan.record.id)).and_then(|aside| {
                left = aside;
                if keep {
                    report.kept.push(at.dir_path.join(&left));
                    return Ok(());
                }
                remove_tree(at.dir.as_fd(), left.as_bytes())
            });
            let timed = match &set {
                Some(meta) => rustix::fs::futimens(&at.dir, &attributes::times(modified_ns(meta))),
                None => Ok(()),
            };
            let synced = done.and(timed).and_then(|()| rustix::fs::syncfs(&at.dir));
            if let Err(e) = synced {
                report.warnings.push(format!(
                    "what was replaced is still in {}: {}",
                    at.dir_path.join(&left).display(),
                    std::io::Error::from(e)
                ));
            }
        }
    }
}

/// At once, so that no staging is ever there of which something was removed. Returns the name that it got.
pub(super) fn put_aside(at: &StagedAt, name: &str) -> rustix::io::Result<String> {
    let names = std::iter::once(name.to_owned()).chain((2..).map(|n| format!("{name}.{n}")));
    for aside in names {
        match rustix::fs::renameat_with(&at.dir, &*at.name, &at.dir, &*aside, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(aside),
            Err(Errno::EXIST) => {}
            // Over a directory that is not empty, a plain rename fails as well.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                match rustix::fs::renameat(&at.dir, &*at.name, &at.dir, &*aside) {
                    Ok(()) => return Ok(aside),
                    Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EXIST)
}

/// What is there now, as far as there is anything.
fn safety_backup(
    job: Option<&FilesJob>,
    plan: &RestorePlan,
    made: &[&PathBuf],
    repo: &Repository,
    ctx: &Ctx,
) -> Result<Option<FilesReport>> {
    let Some(job) = job else { return Ok(None) };
    let of = |section: Section| -> Vec<PathBuf> {
        let roots = plan.roots.iter().filter(|r| r.section == section);
        let paths = roots.map(|r| PathBuf::from(std::ffi::OsStr::from_bytes(&r.path)));
        // What was made just now for the restore is not what was there.
        paths.filter(|p| std::fs::symlink_metadata(p).is_ok() && !made.contains(&p)).collect()
    };
    let files = FilesOptions {
        config: of(Section::Config),
        files: of(Section::Files),
        include: vec![],
        exclude: plan.files().exclude.clone(),
        ..job.files.clone()
    };
    if files.config.is_empty() && files.files.is_empty() {
        return Ok(None);
    }
    ctx.progress.note("backing up the files as they are now");
    let mut job = FilesJob { files, ..job.clone() };
    job.annotations.insert(SAFETY.into(), format!("before the restore of {}", plan.record.id));
    let report = back_up(&job, repo, ctx).map_err(|e| {
        EngineError::failed(
            "E-SAFETY-BACKUP",
            format!("the files as they are now could not be backed up, and were not touched: {}: {e}", e.code()),
            "see to that first, or go on without it: --no-safety-backup",
        )
    })?;
    Ok(Some(report))
}
