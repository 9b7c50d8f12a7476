//! Writing a tree out of a manifest into a new directory. A directory is held open from its item to its last entry, and names are
//! made in it: there is no path that a link could lead astray, whatever the manifest says.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use pgark_repo::manifest::{Attributes, Chunk, HardLink, Item, ManifestReader};
use pgark_repo::record::manifest_reader;
use pgark_repo::{RepoError, names};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::attributes::{NotApplied, apply_to_open, times};
use super::owners::Owners;
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{PartReader, Source};
use crate::restore::roots::open_beneath;

/// Each level holds a directory open; more than a backup goes down, with what lies above its roots.
const DEPTH_MAX: usize = 700;

/// What of a backup is written, by its path in the manifest.
pub type Wanted<'a> = dyn Fn(&[u8], bool) -> Want + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It is.
    Yes,
    /// A directory, when something in it is.
    OnTheWay,
    No,
}

#[derive(Clone, Debug, Default)]
pub struct Written {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    pub bytes: u64,
    pub not: NotApplied,
    /// Files that were being written while they were backed up.
    pub changed: Vec<Vec<u8>>,
}

/// Files that a report names.
const NAMED_MAX: usize = 1000;

/// A directory that is being filled.
struct Level {
    /// In the manifest; of the target itself empty.
    path: Vec<u8>,
    dir: File,
    mode: u32,
    attributes: Option<Attributes>,
}

/// Directories that are wanted when something in them is.
struct Lazy {
    path: Vec<u8>,
    mode: u32,
    attributes: Option<Attributes>,
}

pub struct TreeWriter<'a> {
    source: Source<'a>,
    reader: PartReader<'a>,
    ctx: &'a Ctx,
    owners: Owners,
    /// The target, for errors.
    target: PathBuf,
    levels: Vec<Level>,
    lazy: Vec<Lazy>,
    /// What the attributes that come next belong to.
    last: Last,
    /// Where files are that were not wanted by their first name.
    elsewhere: HashMap<Vec<u8>, Vec<u8>>,
    written: Written,
}

enum Last {
    Nothing,
    File(File, u32, Vec<u8>),
    Symlink(Vec<u8>),
    /// The innermost directory.
    Directory,
    Lazy,
}

impl<'a> TreeWriter<'a> {
    /// Into this directory, which is new.
    pub fn new(source: Source<'a>, target: &Path, dir: File, ctx: &'a Ctx) -> Result<Self> {
        Ok(TreeWriter {
            source,
            reader: PartReader::new(&source)?,
            ctx,
            owners: Owners::of_this_machine(),
            target: target.to_owned(),
            levels: vec![Level { path: vec![], dir, mode: 0o700, attributes: None }],
            lazy: vec![],
            last: Last::Nothing,
            elsewhere: HashMap::new(),
            written: Written::default(),
        })
    }

    /// Writes what is wanted, all of it compared with the manifest, and the manifest with the record.
    pub fn write(mut self, wanted: &Wanted<'_>) -> Result<Written> {
        self.pass(wanted)?;
        Ok(self.written)
    }

    fn open_manifest(&self) -> Result<ManifestReader> {
        Ok(manifest_reader(self.source.repo, self.source.cluster, &self.source.record.id)?)
    }

    fn corrupt(&self, what: impl std::fmt::Display) -> EngineError {
        RepoError::corrupt(names::manifest(self.source.cluster, &self.source.record.id), what).into()
    }

    fn failed(&self, what: &'static str, path: &[u8]) -> impl Fn(std::io::Error) -> EngineError + use<> {
        let path = self.target.join(show(path));
        move |e| EngineError::file(what, &path, e)
    }

    fn pass(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        let mut manifest = self.open_manifest()?;
        let mut attributes_wanted = false;
        while let Some(item) = manifest.next_item()? {
            self.ctx.check_cancelled()?;
            if let Some(path) = item.path() {
                attributes_wanted = false;
                self.end_last()?;
                self.leave(path)?;
                let is_directory = matches!(item, Item::Directory(_));
                let want = wanted(path, is_directory);
                if want == Want::Yes || want == Want::OnTheWay && is_directory {
                    attributes_wanted = true;
                    self.item(item, want == Want::OnTheWay)?;
                }
                continue;
            }
            match item {
                Item::Attributes(a) if attributes_wanted => self.attributes(a)?,
                Item::Chunks(chunks) => {
                    if let Last::File(file, _, path) = &mut self.last {
                        let content = Content { ctx: self.ctx, file, path, target: &self.target };
                        content.write(&mut self.reader, &manifest, &chunks)?;
                    }
                }
                Item::FileEnd(end) => {
                    if let Last::File(file, _, path) = &self.last {
                        let failed = self.failed("writing", path);
                        // A hole at the end is no more than a length.
                        rustix::fs::ftruncate(file, end.size).map_err(|e| failed(e.into()))?;
                        self.written.bytes += end.size;
                    }
                }
                _ => {}
            }
        }
        self.end_last()?;
        self.leave_to(1)?;
        if manifest.fingerprint() != self.source.record.manifest {
            return Err(self.corrupt("not the manifest of this backup"));
        }
        Ok(())
    }

    fn item(&mut self, item: Item, on_the_way: bool) -> Result<()> {
        match item {
            Item::Directory(d) if on_the_way => {
                self.lazy.push(Lazy { path: d.path, mode: d.mode, attributes: None });
                self.last = Last::Lazy;
            }
            Item::Directory(d) => {
                self.make_lazy()?;
                self.directory(d.path, d.mode)?;
                self.last = Last::Directory;
            }
            Item::Symlink(s) => {
                self.make_lazy()?;
                let (dir, name) = self.place(&s.path)?;
                let failed = self.failed("making the link", &s.path);
                rustix::fs::symlinkat(s.target.as_slice(), dir, name).map_err(|e| failed(e.into()))?;
                self.written.symlinks += 1;
                self.last = Last::Symlink(s.path);
            }
            Item::FileStart(f) => {
                self.make_lazy()?;
                let file = self.create(&f.path)?;
                self.written.files += 1;
                self.last = Last::File(file, f.mode, f.path);
            }
            Item::HardLink(link) => {
                self.make_lazy()?;
                self.hard_link(link)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The directory in which `path` is made, and its name there. Parents come before: what is in no directory of the backup is
    /// in none.
    fn place<'p>(&self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p [u8])> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(cut) => (path.get(..cut).unwrap_or_default(), path.get(cut + 1..).unwrap_or_default()),
            None => (b"".as_slice(), path),
        };
        match self.levels.last() {
            Some(level) if level.path == parent && !name.is_empty() => Ok((level.dir.as_fd(), name)),
            _ => Err(self.corrupt(format!("{} lies in no directory of the backup", show(path)))),
        }
    }

    fn make_lazy(&mut self) -> Result<()> {
        for lazy in std::mem::take(&mut self.lazy) {
            self.directory(lazy.path, lazy.mode)?;
            if let Some(level) = self.levels.last_mut() {
                level.attributes = lazy.attributes;
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: Vec<u8>, mode: u32) -> Result<()> {
        if self.levels.len() > DEPTH_MAX {
            return Err(self.corrupt("directories deeper than any backup goes"));
        }
        let (at, name) = self.place(&path)?;
        let failed = self.failed("creating the directory", &path);
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700)).map_err(|e| failed(e.into()))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(at, name, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        self.written.directories += 1;
        self.levels.push(Level { path, dir: File::from(dir), mode, attributes: None });
        Ok(())
    }

    fn create(&self, path: &[u8]) -> Result<File> {
        let (at, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = self.failed("creating", path);
        let made = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR);
        Ok(File::from(made.map_err(|e| failed(e.into()))?))
    }

    fn hard_link(&mut self, link: HardLink) -> Result<()> {
        let failed = self.failed("linking", &link.path);
        let target = self.elsewhere.get(&link.target).unwrap_or(&link.target).clone();
        let top = self.levels.first().map(|l| l.dir.as_fd()).expect("the target is open to the end");
        let (above, name) = match target.iter().rposition(|b| *b == b'/') {
            Some(cut) => (target.get(..cut).unwrap_or_default(), target.get(cut + 1..).unwrap_or_default()),
            None => (b".".as_slice(), target.as_slice()),
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let there = open_beneath(top, above, flags, Mode::empty())
            .and_then(|dir| Ok((rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?, dir)));
        match there {
            Ok((stat, dir)) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                let (at, new) = self.place(&link.path)?;
                rustix::fs::linkat(&dir, name, at, new, AtFlags::empty()).map_err(|e| failed(e.into()))?;
                self.written.hard_links += 1;
                Ok(())
            }
            Ok(_) => Err(self.corrupt(format!("{} is a link to what is no file", show(&link.path)))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.file_of_link(link),
            Err(e) => Err(failed(e)),
        }
    }

    /// The file was not wanted by the name under which it comes first: it is written under this one.
    fn file_of_link(&mut self, link: HardLink) -> Result<()> {
        let mut file = self.create(&link.path)?;
        let mut manifest = self.open_manifest()?;
        let mut found: Option<u32> = None;
        while let Some(item) = manifest.next_item()? {
            match (item, found) {
                (Item::FileStart(start), None) if start.path == link.target => found = Some(start.mode),
                (Item::Chunks(chunks), Some(_)) => {
                    let content = Content { ctx: self.ctx, file: &mut file, path: &link.path, target: &self.target };
                    content.write(&mut self.reader, &manifest, &chunks)?;
                }
                (Item::FileEnd(end), Some(_)) => {
                    let failed = self.failed("writing", &link.path);
                    rustix::fs::ftruncate(&file, end.size).map_err(|e| failed(e.into()))?;
                    self.written.bytes += end.size;
                }
                (Item::Attributes(a), Some(mode)) => {
                    let failed = self.failed("setting the attributes of", &link.path);
                    apply_to_open(&file, mode, &a, &self.owners, &mut self.written.not).map_err(failed)?;
                    self.written.files += 1;
                    self.elsewhere.insert(link.target, link.path);
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(self.corrupt(format!("{} is a link to a file that it does not have", show(&link.path))))
    }

    fn attributes(&mut self, a: Attributes) -> Result<()> {
        match &mut self.last {
            Last::Nothing => {}
            Last::File(file, mode, path) => {
                let target = self.target.join(show(path));
                apply_to_open(file, *mode, &a, &self.owners, &mut self.written.not)
                    .map_err(|e| EngineError::file("setting the attributes of", target, e))?;
                if a.changed && self.written.changed.len() < NAMED_MAX {
                    self.written.changed.push(path.clone());
                }
                self.last = Last::Nothing;
            }
            Last::Symlink(path) => {
                let path = std::mem::take(path);
                self.attributes_of_link(&path, &a)?;
            }
            Last::Directory => {
                if let Some(level) = self.levels.last_mut() {
                    level.attributes = Some(a);
                }
            }
            Last::Lazy => {
                if let Some(lazy) = self.lazy.last_mut() {
                    lazy.attributes = Some(a);
                }
            }
        }
        Ok(())
    }

    fn attributes_of_link(&mut self, path: &[u8], a: &Attributes) -> Result<()> {
        let failed = self.failed("setting the attributes of", path);
        let (uid, gid) = self.owners.here(a);
        let (dir, name) = self.place(path)?;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let not_ours = match rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => false,
            Err(Errno::PERM | Errno::INVAL) => true,
            Err(e) => return Err(failed(e.into())),
        };
        match rustix::fs::utimensat(dir, name, &times(a.modified_ns), AtFlags::SYMLINK_NOFOLLOW) {
            // Not every file system keeps times of links.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(failed(e.into())),
        }
        self.written.not.owners += u64::from(not_ours);
        Ok(())
    }

    /// A file without attributes keeps the mode that its beginning says.
    fn end_last(&mut self) -> Result<()> {
        if let Last::File(file, mode, path) = std::mem::replace(&mut self.last, Last::Nothing) {
            let failed = self.failed("setting the attributes of", &path);
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)).map_err(|e| failed(e.into()))?;
        }
        Ok(())
    }

    /// Directories that `path` does not lie in are done.
    fn leave(&mut self, path: &[u8]) -> Result<()> {
        let within = |dir: &[u8]| dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"));
        let keep = self.levels.iter().take_while(|l| within(&l.path)).count();
        let lazy = self.lazy.iter().take_while(|l| within(&l.path)).count();
        self.lazy.truncate(lazy);
        self.leave_to(keep.max(1))
    }

    fn leave_to(&mut self, keep: usize) -> Result<()> {
        while self.levels.len() > keep {
            let Some(level) = self.levels.pop() else { break };
            let failed = self.failed("setting the attributes of", &level.path);
            match &level.attributes {
                Some(a) => {
                    apply_to_open(&level.dir, level.mode, a, &self.owners, &mut self.written.not).map_err(failed)?
                }
                None => rustix::fs::fchmod(&level.dir, Mode::from_raw_mode(level.mode & 0o777))
                    .map_err(|e| failed(e.into()))?,
            }
        }
        Ok(())
    }
}

/// Content on its way into a file.
struct Content<'a> {
    ctx: &'a Ctx,
    file: &'a mut File,
    path: &'a [u8],
    target: &'a Path,
}

impl Content<'_> {
    fn write(self, reader: &mut PartReader<'_>, manifest: &ManifestReader, chunks: &[Chunk]) -> Result<()> {
        let failed = |e: std::io::Error| EngineError::file("writing", self.target.join(show(self.path)), e);
        let mut buffer = vec![];
        for chunk in chunks {
            self.ctx.check_cancelled()?;
            if let Chunk::Zero(len) = chunk {
                // What is not written reads as zeros.
                let at = rustix::fs::tell(&*self.file).map_err(|e| failed(e.into()))?;
                let to = at.checked_add(*len).filter(|n| i64::try_from(*n).is_ok());
                let to = to.ok_or_else(|| failed(std::io::ErrorKind::FileTooLarge.into()))?;
                rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Start(to)).map_err(|e| failed(e.into()))?;
                continue;
            }
            let file = &mut *self.file;
            let ctx = self.ctx;
            let mut put = |bytes: &[u8]| {
                ctx.pace(bytes.len() as u64);
                ctx.progress.advance(bytes.len() as u64);
                file.write_all(bytes).map_err(failed)?;
                Ok(ControlFlow::Continue(()))
            };
            let go_on = reader.chunk(manifest, chunk, &mut buffer, &mut put, &mut 0)?;
            assert!(go_on.is_continue(), "nobody asked to stop");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
