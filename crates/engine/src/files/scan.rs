//! The walk through what is backed up, in the order of the manifest. Every name is opened relative to its directory's handle and
//! without following a link: a directory that somebody replaces by a link while we walk leads nowhere.
//!
//! One directory's names are in memory per level.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use pgark_repo::limits::{LEFT_OUT_BYTES_MAX, LEFT_OUT_MAX};
use pgark_repo::manifest::{Attributes, Directory, HardLink, Item, Symlink, check_path};
use pgark_repo::record::{FilesPart, HexPath, LeftOut, LeftOutWhy};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Root;
use super::attributes::of_open;
use super::owners::Owners;
use super::place::{REPLACED, STAGING, UNDONE};
use super::rules::{Rules, is_secret_in, is_secret_name};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{PART_DIR_MODE, TreeSink};

/// Each level holds a directory open.
const DEPTH_MAX: usize = 256;
/// Names of files with several links that are remembered; further ones are stored as files of their own.
const HARD_LINKS_MAX: usize = 1_000_000;
/// How often something is looked at again that was another thing a moment ago.
const ATTEMPTS: usize = 3;

/// Goes through the roots of one section.
pub(super) struct Scan<'s, 'w, 'l> {
    pub ctx: &'s Ctx,
    pub rules: &'s Rules,
    pub owners: &'s Owners,
    pub one_file_system: bool,
    /// Directories that are left out, by what they are and not by their names.
    pub own: &'s HashSet<(u64, u64)>,
    pub sink: TreeSink<'w, 'l>,
    pub part: &'s mut FilesPart,
    pub warnings: &'s mut Vec<String>,
    /// Bytes of the paths that `part` names.
    pub named_bytes: usize,
    /// Where files lie that have further names.
    pub hard_links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories above what was named.
    pub above: HashSet<Vec<u8>>,
    pub buffer: Vec<u8>,
}

/// Where the walk is.
pub(super) struct Place<'p> {
    pub root: &'p Root,
    /// Of the manifest.
    pub path: Vec<u8>,
    /// Below the root; empty for the root itself.
    pub below: Vec<u8>,
    /// Whether a pattern asked for it, or for what it lies in.
    pub wanted: bool,
    pub depth: usize,
    /// The file system of the root.
    pub device: u64,
}

impl Place<'_> {
    /// As the administrator knows it.
    pub fn source(&self) -> Vec<u8> {
        match self.below.as_slice() {
            b"" => self.root.path.clone(),
            below => [&self.root.path, b"/".as_slice(), below].concat(),
        }
    }
}

/// What became of something that was looked at.
pub(super) enum Looked {
    Done,
    /// It is not what it was when its kind was asked for.
    Changed,
}

impl Scan<'_, '_, '_> {
    /// Returns whether it is a directory; None when nothing of it is in the backup.
    pub fn root(&mut self, root: &Root) -> Result<Option<bool>> {
        let section = root.section.as_str().as_bytes();
        let path = [section, &root.path].concat();
        let cut = root.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let (parent, name) =
            (root.path.get(..cut.max(1)).unwrap_or(b"/"), root.path.get(cut + 1..).unwrap_or_default());
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let mut place = Place { root, path, below: vec![], wanted: false, depth: 0, device: 0 };
        let opened = rustix::fs::open(parent, flags, Mode::empty());
        let stat = opened.and_then(|fd| Ok((rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?, fd)));
        let (stat, fd) = match stat {
            Ok(found) => found,
            Err(e @ (Errno::NOENT | Errno::NOTDIR)) => {
                self.leave_out(&place, LeftOutWhy::Missing, Some(e));
                return Ok(None);
            }
            Err(e) => {
                self.leave_out(&place, LeftOutWhy::Unreadable, Some(e));
                return Ok(None);
            }
        };
        refuse_link(root, &stat)?;
        place.device = device(&stat);
        place.wanted = self.rules.includes(&root.path, b"", true);
        self.directories_above(&place.path)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let before = self.items();
        self.entry(fd.as_fd(), name, &place)?;
        Ok((self.items() > before).then_some(is_directory))
    }

    fn items(&self) -> u64 {
        self.part.files + self.part.directories + self.part.symlinks + self.part.hard_links
    }

    fn directories_above(&mut self, path: &[u8]) -> Result<()> {
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let above = path.get(..at).unwrap_or_default();
            if self.above.insert(above.to_vec()) {
                self.sink.item(Item::Directory(Directory { path: above.to_vec(), mode: PART_DIR_MODE }))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, at: BorrowedFd<'_>, name: &[u8], place: &Place<'_>) -> Result<()> {
        self.ctx.check_cancelled()?;
        if [STAGING, REPLACED, UNDONE].iter().any(|own| name.starts_with(own.as_bytes())) {
            self.leave_out(place, LeftOutWhy::Own, None);
            return Ok(());
        }
        let above = place.path.rsplit(|b| *b == b'/').nth(1).unwrap_or_default();
        if is_secret_name(name) || is_secret_in(above, name) {
            self.leave_out(place, LeftOutWhy::Secret, None);
            return Ok(());
        }
        if !check_path(&place.path) {
            self.leave_out(place, LeftOutWhy::Unreadable, Some(Errno::NAMETOOLONG));
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let stat = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(e @ Errno::NOENT) => {
                    self.leave_out(place, LeftOutWhy::Vanished, Some(e));
                    return Ok(());
                }
                Err(e) => {
                    self.leave_out(place, LeftOutWhy::Unreadable, Some(e));
                    return Ok(());
                }
            };
            if let Looked::Done = self.look(at, name, place, &stat)? {
                return Ok(());
            }
        }
        self.leave_out_because(place, LeftOutWhy::Unreadable, "something else took its place again and again");
        Ok(())
    }

    fn look(&mut self, at: BorrowedFd<'_>, name: &[u8], place: &Place<'_>, stat: &Stat) -> Result<Looked> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_directory = kind == FileType::Directory;
        let (root, below) = (&place.root.path, &place.below);
        if self.rules.excludes(root, below, is_directory)
            || !is_directory && !place.wanted && !self.rules.includes(root, below, false)
        {
            self.leave_out(place, LeftOutWhy::Excluded, None);
            return Ok(Looked::Done);
        }
        match kind {
            FileType::Directory => self.subdirectory(at, name, place),
            FileType::RegularFile => self.hard_link_or_file(at, name, place, stat),
            FileType::Symlink => self.symlink(at, name, place, stat),
            _ => {
                self.leave_out(place, LeftOutWhy::Special, None);
                Ok(Looked::Done)
            }
        }
    }

    fn subdirectory(&mut self, at: BorrowedFd<'_>, name: &[u8], place: &Place<'_>) -> Result<Looked> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(at, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Looked::Changed),
            Err(e) => {
                self.leave_out(place, LeftOutWhy::Unreadable, Some(e));
                return Ok(Looked::Done);
            }
        };
        let meta = dir.metadata().map_err(|e| EngineError::file("looking at", show_path(place), e))?;
        let left_out = if self.own.contains(&(meta.dev(), meta.ino())) || is_data_directory(dir.as_fd()) {
            Some(LeftOutWhy::Own)
        } else if self.one_file_system && meta.dev() != place.device {
            Some(LeftOutWhy::OtherFileSystem)
        } else if place.depth >= DEPTH_MAX {
            self.leave_out_because(place, LeftOutWhy::Unreadable, "it lies too deep");
            return Ok(Looked::Done);
        } else {
            None
        };
        if let Some(why) = left_out {
            self.leave_out(place, why, None);
            return Ok(Looked::Done);
        }
        self.directory(&dir, &meta, place)?;
        Ok(Looked::Done)
    }

    fn directory(&mut self, dir: &File, meta: &Metadata, place: &Place<'_>) -> Result<()> {
        // The listing comes first: one that cannot be read is no empty directory.
        let names = match names(dir.as_fd()) {
            Ok(names) => names,
            Err(e) => {
                self.leave_out(place, LeftOutWhy::Unreadable, Some(e));
                return Ok(());
            }
        };
        let attributes = self.attributes(dir, meta, place);
        self.sink.item(Item::Directory(Directory { path: place.path.clone(), mode: meta.mode() & 0o7777 }))?;
        self.sink.item(Item::Attributes(attributes))?;
        self.part.directories += 1;
        let wanted = place.wanted || self.rules.includes(&place.root.path, &place.below, true);
        for name in names {
            let join = |dir: &[u8]| if dir.is_empty() { name.clone() } else { [dir, b"/", &name].concat() };
            let child = Place {
                root: place.root,
                path: join(&place.path),
                below: join(&place.below),
                wanted,
                depth: place.depth + 1,
                device: place.device,
            };
            self.entry(dir.as_fd(), &name, &child)?;
        }
        Ok(())
    }

    fn symlink(&mut self, at: BorrowedFd<'_>, name: &[u8], place: &Place<'_>, stat: &Stat) -> Result<Looked> {
        let target = match rustix::fs::readlinkat(at, name, vec![]) {
            Ok(target) => target.into_bytes(),
            Err(Errno::NOENT | Errno::INVAL) => return Ok(Looked::Changed),
            Err(e) => {
                self.leave_out(place, LeftOutWhy::Unreadable, Some(e));
                return Ok(Looked::Done);
            }
        };
        let seconds = stat.st_mtime;
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let attributes = Attributes {
            uid: stat.st_uid,
            gid: stat.st_gid,
            user: self.owners.user(stat.st_uid),
            group: self.owners.group(stat.st_gid),
            modified_ns: seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
            ..Attributes::default()
        };
        self.sink.item(Item::Symlink(Symlink { path: place.path.clone(), target }))?;
        self.sink.item(Item::Attributes(attributes))?;
        self.part.symlinks += 1;
        Ok(Looked::Done)
    }

    fn hard_link_or_file(&mut self, at: BorrowedFd<'_>, name: &[u8], place: &Place<'_>, stat: &Stat) -> Result<Looked> {
        if stat.st_nlink > 1
            && let Some(target) = self.hard_links.get(&(device(stat), stat.st_ino))
        {
            let link = HardLink { path: place.path.clone(), target: target.clone() };
            self.sink.item(Item::HardLink(link))?;
            self.part.hard_links += 1;
            return Ok(Looked::Done);
        }
        self.file(at, name, place)
    }

    /// A file that is in the backup now, and has further names.
    pub(super) fn note_links(&mut self, meta: &Metadata, place: &Place<'_>) {
        if meta.nlink() > 1 && self.hard_links.len() < HARD_LINKS_MAX {
            self.hard_links.insert((meta.dev(), meta.ino()), place.path.clone());
        }
    }

    pub(super) fn attributes(&mut self, file: &File, meta: &Metadata, place: &Place<'_>) -> Attributes {
        let (attributes, why) = of_open(file, meta, self.owners);
        if let Some(why) = why
            && self.warnings.len() < WARNINGS_MAX
        {
            let shown = show_path(place);
            self.warnings.push(format!("the extended attributes of {shown} are not in the backup: {why}"));
        }
        attributes
    }

    pub(super) fn leave_out(&mut self, place: &Place<'_>, why: LeftOutWhy, e: Option<Errno>) {
        let detail = e.map(|e| std::io::Error::from(e).to_string());
        self.note_left_out(place, why, detail);
    }

    pub(super) fn leave_out_because(&mut self, place: &Place<'_>, why: LeftOutWhy, detail: &str) {
        self.note_left_out(place, why, Some(detail.to_owned()));
    }

    fn note_left_out(&mut self, place: &Place<'_>, why: LeftOutWhy, detail: Option<String>) {
        *self.part.left_out_counts.entry(why).or_default() += 1;
        let path = place.source();
        if self.may_name(&path, self.part.left_out.len()) {
            self.part.left_out.push(LeftOut { path, why, detail });
        }
    }

    pub(super) fn note_changed(&mut self, place: &Place<'_>) {
        self.part.changed_count += 1;
        let path = place.source();
        if self.may_name(&path, self.part.changed.len()) {
            self.part.changed.push(HexPath(path));
        }
    }

    fn may_name(&mut self, path: &[u8], already: usize) -> bool {
        let fits = already < LEFT_OUT_MAX && self.named_bytes + path.len() <= LEFT_OUT_BYTES_MAX;
        self.named_bytes += if fits { path.len() } else { 0 };
        fits
    }
}

/// Of one kind, that a record holds.
const WARNINGS_MAX: usize = 100;

/// A link that was named would be backed up as a link, and what it leads to would be missing.
pub(super) fn refuse_link(root: &Root, stat: &Stat) -> Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(());
    }
    let path = root.as_path();
    let leads = std::fs::canonicalize(path).map(|p| p.display().to_string());
    Err(EngineError::refused(
        "E-FILES-LINK",
        format!("{} is a symbolic link", path.display()),
        format!("name what it leads to: {}", leads.unwrap_or_else(|e| format!("it leads nowhere ({e})"))),
    ))
}

pub(super) fn device(stat: &Stat) -> u64 {
    stat.st_dev
}

/// Files of a running server are worth nothing without the WAL that belongs to them: that is what physical backups are for.
fn is_data_directory(dir: BorrowedFd<'_>) -> bool {
    let there = |path: &str| rustix::fs::statat(dir, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    there("PG_VERSION") && there("global/pg_control")
}

/// Sorted.
pub(super) fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = vec![];
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn show_path(place: &Place<'_>) -> String {
    crate::backup::scan::show(&place.source())
}
