//! Files back from a backup: into a new directory, or to where they were. Everything is written beside first, and compared on its
//! way: until all of it is there and on the disk, nothing of the old was touched.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, BackupKind, CatalogStore, Claim, Needs};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::{FilesPart, FilesRoot, PartsRecord, Section};
use rustix::fs::{Mode, OFlags};

use super::FilesOptions;
use super::attributes::{NotApplied, modified_ns};
use super::glob::Pattern;
use super::job::{FilesJob, FilesReport, run as back_up};
use super::owners::Owners;
use super::place::{Placing, REPLACED, STAGING, make_staging, open_dir, remove_tree};
use super::rules::patterns;
use super::tree::{TreeWriter, Want, Written};
use crate::backup::claim::KeptClaim;
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::restore::{SAFETY, is_damage};
use crate::parts::Source;
use crate::restore::run::claim_to_read;

#[derive(Clone, Debug)]
pub struct RestoreOptions {
    pub cluster: ClusterName,
    /// None: the newest of `kind`; where that is damaged, the one before.
    pub backup: Option<BackupId>,
    pub kind: BackupKind,
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
    let ordinary = |b: &&BackupEntry| b.kind == options.kind && !b.annotations.contains_key(SAFETY);
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

/// Everything that was wanted, written beside its place and on the disk. Goes away again unless it is placed.
pub struct Staged {
    places: Vec<StagedAt>,
    written: Written,
}

struct StagedAt {
    /// The directory in which it was staged, and the name of the staging there.
    dir: File,
    dir_path: PathBuf,
    name: String,
    staging: File,
    /// Directories that were made for it, innermost last.
    made: Vec<PathBuf>,
    what: What,
    /// Of the directory, before anything was made in it.
    modified_ns: i64,
    placed: bool,
}

enum What {
    /// All of it goes up one level.
    Whole,
    /// A directory that goes over the one in which it was staged.
    Directory { part: Vec<u8> },
    /// A file, or a link, that goes beside its staging.
    Name { part: Vec<u8> },
}

impl Drop for StagedAt {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        use std::os::fd::AsFd;
        if let Err(e) = remove_tree(self.dir.as_fd(), self.name.as_bytes()) {
            tracing::warn!(path = %self.dir_path.join(&self.name).display(), %e, "what was staged stays");
            return;
        }
        // As it was, its time included.
        if let Err(e) = rustix::fs::futimens(&self.dir, &super::attributes::times(self.modified_ns)) {
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
                let at = StagedAt::of_root(root, &name, n)?;
                let part = root.part();
                let want = |path: &[u8], is_dir: bool| match related(&part, path) {
                    Related::Within | Related::Same => chosen.want(path, is_dir),
                    // Without attributes: it is not part of the backup.
                    Related::Above => Want::OnTheWay,
                    Related::No => Want::No,
                };
                let written = write(&source, &at, ctx, &want)?;
                add(&mut staged.written, written);
                at.check()?;
                staged.places.push(at);
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

fn add_not(all: &mut NotApplied, more: NotApplied) {
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
        Ok(StagedAt { dir, dir_path: dir_path.to_owned(), name, staging, made, what, modified_ns, placed: false })
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
    fn source(&self) -> Result<Option<File>> {
        let below = match &self.what {
            What::Whole => b"".as_slice(),
            What::Directory { part } => part,
            What::Name { part } => part.get(..part.iter().rposition(|b| *b == b'/').unwrap_or(0)).unwrap_or_default(),
        };
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
        // From now on what was there may be in the staging: it goes when all of it is in place, or back where it was.
        self.places.iter_mut().for_each(|at| at.placed = true);
        let mut placings = vec![];
        let mut trouble = None;
        let pairs = self.places.iter().zip(&sources).filter_map(|(at, source)| Some((at, source.as_ref()?)));
        for (at, source) in pairs {
            let with_top = matches!(at.what, What::Directory { .. });
            let mut placing = Placing::new(&at.dir, source, &at.dir_path, &owners, with_top);
            let placed = placing.place();
            placings.push(placing);
            if let Err(e) = placed {
                // Those before are put back as well.
                trouble = Some(placings.iter_mut().rev().fold(e, |e, placing| placing.undo(e)));
                break;
            }
        }
        if let Some(e) = trouble {
            let stuck = placings.iter().any(|placing| placing.stuck);
            drop(placings);
            self.places.iter_mut().for_each(|at| at.placed = stuck);
            return Err(e);
        }
        let mut old = old;
        for placing in &placings {
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
        self.clean_up(old, plan, &mut report);
        report.warnings.extend(self.written.not.warnings());
        for path in self.written.changed.iter().take(20) {
            report.warnings.push(format!("{} was being written while it was backed up: look at it", show(path)));
        }
        report.written = self.written;
        Ok(report)
    }

    /// From here on everything is in place, and nothing is undone.
    fn clean_up(&mut self, old: Old, plan: &RestorePlan, report: &mut RestoreReport) {
        use std::os::fd::AsFd;
        for (n, at) in self.places.iter_mut().enumerate() {
            at.placed = true;
            // The staging was in it: its time was set, and goes with the removal.
            let set = match at.what {
                What::Directory { .. } => at.dir.metadata().ok(),
                _ => None,
            };
            let done = if old == Old::Keep && report.replaced > 0 {
                let kept = format!("{REPLACED}{}-{n}", plan.record.id);
                report.kept.push(at.dir_path.join(&kept));
                rustix::fs::renameat(&at.dir, &*at.name, &at.dir, &*kept)
            } else {
                remove_tree(at.dir.as_fd(), at.name.as_bytes())
            };
            let timed = match &set {
                Some(meta) => rustix::fs::futimens(&at.dir, &super::attributes::times(modified_ns(meta))),
                None => Ok(()),
            };
            let synced = done.and(timed).and_then(|()| rustix::fs::syncfs(&at.dir));
            if let Err(e) = synced {
                report.warnings.push(format!(
                    "what was replaced is still in {}: {}",
                    at.dir_path.join(&at.name).display(),
                    std::io::Error::from(e)
                ));
            }
        }
    }
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
