//! Files into the repository: each is read from an open handle, and looked at before and after.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgark_repo::manifest::FileStart;
use pgark_repo::record::{FilesPart, LeftOutWhy, Section};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::attributes::modified_ns;
use super::job::only_secrets;
use super::owners::Owners;
use super::rules::{KEY_BYTES_MAX, Rules, holds_a_private_key};
use super::scan::{Looked, Place, Scan, show_path};
use super::{FilesOptions, Root};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{ManifestOf, TreeSink, Writer};

const READ_BYTES: usize = 1024 * 1024;
/// Of the timestamps of file systems: two changes within it may have the same time (`CONFIG_HZ`, at worst 100).
const TIME_GRAIN: Duration = Duration::from_millis(20);
/// Blocks of `stat`.
const BLOCK_BYTES: u64 = 512;

/// Writes the roots of a backup into its manifest, section by section.
pub(crate) struct FilesWriter<'a> {
    ctx: &'a Ctx,
    options: &'a FilesOptions,
    roots: Vec<Root>,
    rules: Rules,
    owners: Owners,
    own: HashSet<(u64, u64)>,
    part: FilesPart,
    pub warnings: Vec<String>,
    pub new_bytes: u64,
}

impl<'a> FilesWriter<'a> {
    pub fn new(options: &'a FilesOptions, ctx: &'a Ctx) -> Result<Self> {
        let identity = |path: &std::path::PathBuf| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        Ok(FilesWriter {
            ctx,
            options,
            roots: options.roots()?,
            rules: Rules::parse(&options.include, &options.exclude)?,
            owners: Owners::of_this_machine(),
            own: options.own.iter().filter_map(identity).collect(),
            part: FilesPart {
                include: options.include.clone(),
                exclude: options.exclude.clone(),
                ..FilesPart::default()
            },
            warnings: vec![],
            new_bytes: 0,
        })
    }

    /// Sections come in the order of their names.
    pub fn section<'w>(&mut self, section: Section, writer: &'w Writer<'w>, list: &mut ManifestOf<'w>) -> Result<()> {
        let roots: Vec<Root> = self.roots.iter().filter(|r| r.section == section).cloned().collect();
        if roots.is_empty() {
            return Ok(());
        }
        let sink = TreeSink::new(writer.sink()?, list, section.as_str().as_bytes())?;
        let mut scan = Scan {
            ctx: self.ctx,
            rules: &self.rules,
            owners: &self.owners,
            one_file_system: self.options.one_file_system,
            own: &self.own,
            sink,
            named_bytes: self.part.left_out.iter().map(|l| l.path.len()).sum(),
            part: &mut self.part,
            warnings: &mut self.warnings,
            hard_links: HashMap::new(),
            above: HashSet::new(),
            buffer: vec![],
        };
        for root in &roots {
            if let Some(is_directory) = scan.root(root)? {
                scan.part.roots.push(root.record(is_directory));
            }
        }
        self.new_bytes += scan.sink.finish()?;
        Ok(())
    }

    /// What is in the backup.
    ///
    /// # Errors
    /// When nothing of what was named is there.
    pub fn finish(self) -> Result<(FilesPart, Vec<String>, u64)> {
        if self.part.roots.is_empty() {
            let secret =
                |root: &&Root| self.part.left_out.iter().any(|l| l.why == LeftOutWhy::Secret && l.path == root.path);
            let secrets: Vec<&Root> = self.roots.iter().filter(secret).collect();
            if !secrets.is_empty() {
                return Err(only_secrets(secrets.iter().map(|root| root.as_path())));
            }
            let names: Vec<String> = self.roots.iter().map(|r| r.as_path().display().to_string()).collect();
            return Err(EngineError::failed(
                "E-FILES-NONE",
                format!("nothing of what is to be backed up is there: {}", names.join(", ")),
                "check the paths, and that their file systems are mounted",
            ));
        }
        Ok((self.part, self.warnings, self.new_bytes))
    }
}

/// How reading a file ended.
enum Read {
    Whole,
    /// It was written meanwhile.
    Changed,
    Secret,
    Failed(Errno),
}

impl Scan<'_, '_, '_> {
    pub(super) fn file(&mut self, at: BorrowedFd<'_>, name: &[u8], place: &Place<'_>) -> Result<Looked> {
        // A pipe in its place must not make us wait, nor a terminal ours.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        for last in [false, true] {
            let file = match rustix::fs::openat(at, name, flags, Mode::empty()) {
                Ok(fd) => File::from(fd),
                Err(Errno::NOENT | Errno::LOOP) => return Ok(Looked::Changed),
                Err(e) => {
                    self.leave_out(place, LeftOutWhy::Unreadable, Some(e));
                    return Ok(Looked::Done);
                }
            };
            let meta = file.metadata().map_err(|e| EngineError::file("looking at", show_path(place), e))?;
            if !meta.is_file() {
                return Ok(Looked::Changed);
            }
            self.sink.begin(&place.path)?;
            let read = self.content(&file, &meta)?;
            match read {
                Read::Whole => {}
                Read::Changed if last => self.note_changed(place),
                Read::Changed => {
                    self.sink.abandon();
                    continue;
                }
                Read::Secret => {
                    self.sink.abandon();
                    self.leave_out_because(place, LeftOutWhy::Secret, "a private key");
                    return Ok(Looked::Done);
                }
                Read::Failed(e) => {
                    self.sink.abandon();
                    self.leave_out(place, LeftOutWhy::Unreadable, Some(e));
                    return Ok(Looked::Done);
                }
            }
            let mut attributes = self.attributes(&file, &meta, place);
            attributes.changed = matches!(read, Read::Changed);
            let start =
                FileStart { path: place.path.clone(), mode: meta.mode() & 0o7777, modified_ns: modified_ns(&meta) };
            self.part.files += 1;
            self.part.size_bytes += self.sink.end(start, attributes)?;
            self.note_links(&meta, place);
            return Ok(Looked::Done);
        }
        Ok(Looked::Done)
    }

    fn content(&mut self, file: &File, before: &Metadata) -> Result<Read> {
        wait_for_the_clock(before);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        let read = self.extents(file, before, &mut buffer);
        self.buffer = buffer;
        match read? {
            Read::Whole => {}
            other => return Ok(other),
        }
        let after = file.metadata().map_err(|e| EngineError::file("looking at", "an open file", e))?;
        let same = |a: &Metadata, b: &Metadata| {
            (a.len(), a.mtime(), a.mtime_nsec(), a.ctime(), a.ctime_nsec())
                == (b.len(), b.mtime(), b.mtime_nsec(), b.ctime(), b.ctime_nsec())
        };
        Ok(if same(before, &after) { Read::Whole } else { Read::Changed })
    }

    /// As many bytes as there were when it was opened, and holes as holes.
    fn extents(&mut self, file: &File, before: &Metadata, buffer: &mut [u8]) -> Result<Read> {
        let size = before.len();
        let has_holes = before.blocks().saturating_mul(BLOCK_BYTES) < size;
        let mut at = 0;
        while at < size {
            let (data, end) = match has_holes {
                true => match extent(file.as_fd(), at, size) {
                    Ok(found) => found,
                    Err(e) => return Ok(Read::Failed(e)),
                },
                false => (at, size),
            };
            if data > at {
                self.sink.hole(data - at)?;
                at = data;
            }
            while at < end {
                self.ctx.check_cancelled()?;
                let wanted = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
                let piece = buffer.get_mut(..wanted).unwrap_or_default();
                let n = match file.read_at(piece, at) {
                    Ok(0) => return Ok(Read::Changed),
                    Ok(n) => n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(e) => return Ok(Read::Failed(Errno::from_io_error(&e).unwrap_or(Errno::IO))),
                };
                let piece = piece.get(..n).unwrap_or_default();
                if size <= KEY_BYTES_MAX && at == 0 && holds_a_private_key(piece) {
                    return Ok(Read::Secret);
                }
                self.ctx.pace(n as u64);
                self.ctx.progress.advance(n as u64);
                self.sink.data(piece)?;
                at += n as u64;
            }
        }
        Ok(Read::Whole)
    }
}

/// The next stretch of data from here on, within the file as it was when it was opened.
fn extent(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<(u64, u64), Errno> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(n) => n.min(size),
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => return Ok((size, size)),
        // Not every file system can tell.
        Err(Errno::INVAL) => return Ok((at, size)),
        Err(e) => return Err(e),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(end) if end > data => Ok((data, end.min(size))),
        Ok(_) => Ok((data, size)),
        Err(e) => Err(e),
    }
}

/// A file that was changed this very moment could be changed again without its time telling: its next change must have
/// another time.
fn wait_for_the_clock(meta: &Metadata) {
    let changed = u64::try_from(meta.ctime()).ok().zip(u32::try_from(meta.ctime_nsec()).ok());
    let Some((seconds, nanoseconds)) = changed else { return };
    let Some(changed) = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds)) else { return };
    let Ok(age) = SystemTime::now().duration_since(changed) else { return };
    if let Some(left) = TIME_GRAIN.checked_sub(age) {
        std::thread::sleep(left);
    }
}
