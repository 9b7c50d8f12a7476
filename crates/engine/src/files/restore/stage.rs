//! Everything that was wanted, read out of the repository and written beside its place.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, Claim, Needs};
use pgark_repo::record::FilesRoot;
use rustix::fs::{Mode, OFlags};

use super::journal;
use super::{Destination, RestoreOptions, RestorePlan};
use crate::backup::claim::KeptClaim;
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::files::attributes::{self, NotApplied, modified_ns};
use crate::files::glob::Pattern;
use crate::files::owners::Owners;
use crate::files::place::{Placing, STAGING, make_staging, open_dir, remove_tree};
use crate::files::rules::patterns;
use crate::files::tree::{TreeWriter, Want, Written};
use crate::parts::Source;
use crate::restore::run::claim_to_read;

/// Everything that was wanted, written beside its place and on the disk. Goes away again unless it is placed.
pub struct Staged {
    pub(super) places: Vec<StagedAt>,
    pub(super) written: Written,
}

pub(super) struct StagedAt {
    /// The directory in which it was staged, and the name of the staging there.
    pub dir: File,
    pub dir_path: PathBuf,
    pub name: String,
    pub staging: File,
    /// Directories that were made for it, innermost last.
    pub made: Vec<PathBuf>,
    pub what: What,
    /// Of the directory, before anything was made in it.
    pub modified_ns: i64,
    /// What was there may be in it: it is not removed.
    pub placed: Cell<bool>,
}

pub(super) enum What {
    /// All of it goes up one level.
    Whole,
    /// A directory that goes over the one in which it was staged.
    Directory { part: Vec<u8> },
    /// A file, or a link, that goes beside its staging.
    Name { part: Vec<u8> },
}

impl Drop for StagedAt {
    fn drop(&mut self) {
        if self.placed.get() {
            return;
        }
        if let Err(e) = remove_tree(self.dir.as_fd(), self.name.as_bytes()) {
            tracing::warn!(path = %self.dir_path.join(&self.name).display(), %e, "what was staged stays");
            return;
        }
        // As it was, its time included.
        if let Err(e) = rustix::fs::futimens(&self.dir, &attributes::times(self.modified_ns)) {
            tracing::debug!(path = %self.dir_path.display(), %e, "the time of a directory is another one");
        }
        for dir in self.made.iter().rev() {
            // Somebody may have put something there by now.
            if let Err(e) = std::fs::remove_dir(dir) {
                tracing::debug!(path = %dir.display(), %e, "a directory that was made stays");
            }
        }
    }
}

impl What {
    /// Below the staging, the directory whose entries go into the one in which it was staged.
    pub fn source(&self) -> &[u8] {
        match self {
            What::Whole => b"",
            What::Directory { part } => part,
            What::Name { part } => part.get(..part.iter().rposition(|b| *b == b'/').unwrap_or(0)).unwrap_or_default(),
        }
    }
}

/// Reads all that is wanted out of the repository. Changes nothing but for new directories, which go when it fails.
pub fn stage(options: &RestoreOptions, plan: &RestorePlan, repo: &Repository, ctx: &Ctx) -> Result<Staged> {
    let catalog = CatalogStore::new(repo, &options.cluster);
    let claim = claim_to_read(&catalog, &plan.record.id, Needs::default(), ctx)?;
    let kept = claim.clone().map(|claim| KeptClaim::new(claim, ctx));
    ctx.progress.begin("restoring files", Some(plan.files().size_bytes));
    let staged = stage_all(options, plan, repo, ctx);
    ctx.progress.end();
    drop(kept);
    if let Some(Err(e)) = claim.map(Claim::release) {
        tracing::warn!(%e, "the claim ends by itself");
    }
    staged
}

fn stage_all(options: &RestoreOptions, plan: &RestorePlan, repo: &Repository, ctx: &Ctx) -> Result<Staged> {
    let source = Source { repo, cluster: &options.cluster, record: &plan.record };
    let chosen = Chosen { roots: &plan.roots, patterns: patterns(&options.paths)? };
    let mut staged = Staged { places: vec![], written: Written::default() };
    let name = format!("{STAGING}{}", plan.record.id);
    match &options.destination {
        Destination::Directory(to) => {
            let made = make_directories(to, Mode::RWXU)?;
            let at = StagedAt::new(to, name, made, What::Whole)?;
            staged.written = write(&source, &at, ctx, &|path, is_dir| chosen.want(path, is_dir))?;
            staged.places.push(at);
        }
        Destination::InPlace { .. } => {
            for (n, root) in plan.roots.iter().enumerate() {
                staged.places.push(StagedAt::of_root(root, &name, n)?);
            }
            // From any one of them all can be cleared away.
            journal::begin(&staged.places)?;
            for (root, at) in plan.roots.iter().zip(&staged.places) {
                let part = root.part();
                let want = |path: &[u8], is_dir: bool| match related(&part, path) {
                    Related::Within | Related::Same => chosen.want(path, is_dir),
                    // Without attributes: it is not part of the backup.
                    Related::Above => Want::OnTheWay,
                    Related::No => Want::No,
                };
                let written = write(&source, at, ctx, &want)?;
                add(&mut staged.written, written);
                at.check()?;
            }
        }
    }
    if !options.paths.is_empty() && staged.written.files + staged.written.symlinks + staged.written.hard_links == 0 {
        return Err(EngineError::refused(
            "E-SELECT-NONE",
            format!("backup {} has nothing that matches {}", plan.record.id, options.paths.join(", ")),
            "patterns are of absolute paths, of paths below what was backed up, or of names alone",
        ));
    }
    ctx.progress.note("waiting for the disk");
    for at in &staged.places {
        rustix::fs::syncfs(&at.staging).map_err(|e| EngineError::file("syncing", &at.dir_path, e))?;
    }
    Ok(staged)
}

fn write(source: &Source<'_>, at: &StagedAt, ctx: &Ctx, want: &dyn Fn(&[u8], bool) -> Want) -> Result<Written> {
    let shown = at.dir_path.join(&at.name);
    let dir = at.staging.try_clone().map_err(|e| EngineError::file("opening", &shown, e))?;
    TreeWriter::new(*source, &shown, dir, ctx)?.write(want)
}

fn add(all: &mut Written, more: Written) {
    all.files += more.files;
    all.directories += more.directories;
    all.symlinks += more.symlinks;
    all.hard_links += more.hard_links;
    all.bytes += more.bytes;
    add_not(&mut all.not, more.not);
    all.changed.extend(more.changed);
}

pub(super) fn add_not(all: &mut NotApplied, more: NotApplied) {
    all.owners += more.owners;
    all.set_id += more.set_id;
    all.xattrs += more.xattrs;
}

/// What is wanted of a backup.
struct Chosen<'a> {
    roots: &'a [FilesRoot],
    patterns: Vec<Pattern>,
}

enum Related {
    Same,
    Within,
    Above,
    No,
}

/// How `path` lies to the part of a root.
fn related(part: &[u8], path: &[u8]) -> Related {
    let below = |a: &[u8], b: &[u8]| b.strip_prefix(a).is_some_and(|rest| rest.starts_with(b"/"));
    match () {
        () if part == path => Related::Same,
        () if below(part, path) => Related::Within,
        () if below(path, part) => Related::Above,
        () => Related::No,
    }
}

impl Chosen<'_> {
    fn want(&self, path: &[u8], is_directory: bool) -> Want {
        let mut found = Want::No;
        for root in self.roots {
            let part = root.part();
            let below = match related(&part, path) {
                Related::No => continue,
                Related::Above => {
                    found = Want::OnTheWay;
                    continue;
                }
                Related::Same => b"".as_slice(),
                Related::Within => path.get(part.len() + 1..).unwrap_or_default(),
            };
            return match self.patterns.is_empty() || self.selects(root, below, is_directory) {
                true => Want::Yes,
                false if is_directory => Want::OnTheWay,
                false => Want::No,
            };
        }
        found
    }

    /// It, or a directory that it lies in.
    fn selects(&self, root: &FilesRoot, below: &[u8], is_directory: bool) -> bool {
        let above =
            below.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| below.get(..at).unwrap_or_default());
        let top = (!below.is_empty()).then_some(b"".as_slice());
        let mut directories = above.chain(top);
        let matches = |path: &[u8], dir: bool| self.patterns.iter().any(|p| p.matches(&root.path, path, dir));
        directories.any(|d| matches(d, true)) || matches(below, is_directory)
    }
}

/// Makes what is missing of a path; returns what was made, outermost first.
fn make_directories(path: &Path, last: Mode) -> Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = vec![];
    for dir in path.ancestors().filter(|p| !p.as_os_str().is_empty()) {
        match std::fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => break,
            Ok(_) => {
                return Err(EngineError::file("opening", dir, std::io::Error::from(std::io::ErrorKind::NotADirectory)));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing.push(dir),
            Err(e) => return Err(EngineError::file("looking at", dir, e)),
        }
    }
    let mut made = vec![];
    for dir in missing.into_iter().rev() {
        let mode = if dir == path { last } else { Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH };
        rustix::fs::mkdir(dir, mode).map_err(|e| EngineError::file("creating the directory", dir, e))?;
        made.push(dir.to_owned());
    }
    Ok(made)
}

impl StagedAt {
    fn new(dir_path: &Path, name: String, made: Vec<PathBuf>, what: What) -> Result<Self> {
        // The last component is no link; what the administrator has above it is.
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir_path, flags, Mode::empty());
        let dir = File::from(dir.map_err(|e| EngineError::file("opening", dir_path, e))?);
        let meta = dir.metadata().map_err(|e| EngineError::file("looking at", dir_path, e))?;
        let staging = make_staging(&dir, &name, dir_path)?;
        let modified_ns = modified_ns(&meta);
        let at = StagedAt {
            dir,
            dir_path: dir_path.to_owned(),
            name,
            staging,
            made,
            what,
            modified_ns,
            placed: Cell::new(false),
        };
        if !matches!(at.what, What::Whole) {
            journal::begin(std::slice::from_ref(&at))?;
        }
        Ok(at)
    }

    fn of_root(root: &FilesRoot, name: &str, n: usize) -> Result<Self> {
        let path = Path::new(std::ffi::OsStr::from_bytes(&root.path));
        let part = root.part();
        let there = std::fs::symlink_metadata(path).ok();
        if root.is_directory {
            if there.as_ref().is_some_and(|m| !m.is_dir()) {
                return Err(EngineError::refused(
                    "E-FILES-PLACE",
                    format!("{} was a directory, and is none", path.display()),
                    "move it away, or restore with --to DIR; nothing was changed",
                ));
            }
            let made = make_directories(path, Mode::RWXU)?;
            return StagedAt::new(path, name.to_owned(), made, What::Directory { part });
        }
        if there.is_some_and(|m| m.is_dir()) {
            return Err(EngineError::refused(
                "E-FILES-PLACE",
                format!("{} was a file, and is a directory", path.display()),
                "move it away, or restore with --to DIR; nothing was changed",
            ));
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let made = make_directories(parent, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH)?;
        StagedAt::new(parent, format!("{name}-{n}"), made, What::Name { part })
    }

    /// The staged directory whose entries go into `dir`; None when nothing of it was wanted.
    pub fn source(&self) -> Result<Option<File>> {
        let below = self.what.source();
        match open_dir(&self.staging, below) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(EngineError::file("opening", self.dir_path.join(&self.name).join(show(below)), e)),
        }
    }

    /// Before anything is touched.
    fn check(&self) -> Result<()> {
        let Some(source) = self.source()? else { return Ok(()) };
        let owners = Owners::default();
        Placing::new(&self.dir, &source, &self.dir_path, &owners, false).check()
    }
}
