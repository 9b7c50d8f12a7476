//! One object on its way into a local store: a temporary file beside its place, fsynced, then given its name by
//! `link`, which cannot replace anything, then the directory fsynced.
//!
//! Nothing is left for `close` to report: what fsync has acknowledged has been written out.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self, Advice, AtFlags, FileType, FlockOperation, RenameFlags};
use rustix::io::Errno;

use super::root::{Root, Sys, file_type, fsync_dir};
use super::system_error;
use crate::direct::{ALIGNMENT, AlignedBuffer, set_direct};
use crate::store::{ObjectName, ObjectWriter, StoreError};

/// What marks a file as unfinished; object names cannot start with a dot.
pub(super) const TEMP_PREFIX: &str = ".tmp-";

/// What is gathered before it is written, as long as the object may be a small one: fresh memory costs more than a call.
const SMALL_BUFFER_BYTES: usize = 128 * 1024;
/// What of an object goes through the page cache; the rest is written past it.
const CACHED_BYTES: u64 = 2 * 1024 * 1024;
/// So much of it the disk begins to write while the rest is still being made.
const AHEAD_BYTES: u64 = 512 * 1024;
/// What is gathered of the rest.
const BUFFER_BYTES: usize = 1024 * 1024;

pub(super) struct LocalWriter {
    root: Arc<Root>,
    dir: OwnedFd,
    file: File,
    temp: String,
    name: ObjectName,
    written: u64,
    buffer: AlignedBuffer,
    buffered: usize,
    direct: Direct,
    state: State,
    /// All that was written is durable.
    settled: bool,
}

#[derive(PartialEq, Eq)]
enum Direct {
    Untried,
    On,
    Off,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// A write failed: what the file holds is unknown.
    Spoiled,
    /// The temporary name is gone.
    Named,
}

impl LocalWriter {
    pub(super) fn create(root: &Arc<Root>, name: &ObjectName) -> Result<Self, StoreError> {
        let temp = temp_name(name)?;
        let (dir, file) = root.create_file(name.parent(), &temp).map_err(|e| {
            // A full disk may have had room for the directories and not for the file. What cannot be tidied
            // away is an empty directory: harmless, and `e` is what the caller has to know.
            let _ = root.prune(name.parent());
            system_error("create", name, e)
        })?;
        // Shows the sweeper that we live. Where there are no locks it has to go by the age alone.
        let _ = fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(LocalWriter {
            root: Arc::clone(root),
            dir,
            file: file.into(),
            temp,
            name: name.clone(),
            written: 0,
            buffer: AlignedBuffer::new(SMALL_BUFFER_BYTES),
            buffered: 0,
            direct: Direct::Untried,
            state: State::Open,
            settled: false,
        })
    }

    /// From now on as on a file that was opened for reading.
    #[cfg(test)]
    pub(super) fn fail_writes(&mut self) {
        self.file = File::open("/dev/null").expect("/dev/null");
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(Errno) -> StoreError {
        let name = self.name.clone();
        move |e| system_error(operation, &name, e)
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        if self.state != State::Open {
            let why = io::Error::other("an earlier write failed");
            return Err(StoreError::io("finish", &self.name, why));
        }
        if !self.settled {
            self.make_durable()?;
        }
        let named = self.link_or_rename();
        if !matches!(named, Ok(()) | Err(Errno::EXIST)) {
            named.map_err(self.failed("link"))?;
        }
        // Also when we lost: whoever finds the winner's object may rely on it, and the winner may have died
        // between naming it and this.
        fsync_dir(&self.dir).map_err(|e| not_durable(&self.name, e))?;
        match named {
            Ok(()) => Ok(()),
            Err(_) => Err(self.taken()),
        }
    }

    fn make_durable(&mut self) -> Result<(), StoreError> {
        if self.direct == Direct::On {
            // Only what is no multiple of a block has to go through the page cache.
            let whole = self.buffered - self.buffered % ALIGNMENT;
            self.write_buffered(0..whole)?;
            set_direct(&self.file, false).map_err(self.failed("write"))?;
            self.direct = Direct::Off;
            self.write_buffered(whole..self.buffered)?;
        } else {
            self.write_buffered(0..self.buffered)?;
        }
        self.buffered = 0;
        fs::fsync(&self.file).map_err(self.failed("fsync"))
    }

    fn link_or_rename(&mut self) -> Sys<()> {
        let name = self.name.basename();
        if self.root.hard_links() {
            match fs::linkat(&self.dir, &self.temp, &self.dir, name, AtFlags::empty()) {
                // EXDEV: also said of two names in one directory, by file systems that put files where they like.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::NOSYS | Errno::XDEV) => {
                    self.root.without_hard_links();
                }
                // NFS repeats a request whose reply was lost, and then finds the name taken, by us.
                Err(Errno::EXIST) if !self.is_ours()? => return Err(Errno::EXIST),
                Ok(()) | Err(Errno::EXIST) => {
                    self.state = State::Named;
                    match fs::unlinkat(&self.dir, &self.temp, AtFlags::empty()) {
                        // In an append-only directory nothing can be removed; the object has its name all the same.
                        Err(Errno::PERM | Errno::ACCESS) => {
                            tracing::debug!(temp = %self.temp, "the temporary name stays for the sweeper");
                        }
                        other => other?,
                    }
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        fs::renameat_with(&self.dir, &self.temp, &self.dir, name, RenameFlags::NOREPLACE)?;
        self.state = State::Named;
        Ok(())
    }

    fn is_ours(&self) -> Sys<bool> {
        let ours = fs::fstat(&self.file)?;
        match self.stat_name() {
            Ok(there) => Ok((ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn stat_name(&self) -> Sys<fs::Stat> {
        fs::statat(&self.dir, self.name.basename(), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn taken(&self) -> StoreError {
        match self.stat_name().map(|stat| file_type(&stat)) {
            Ok(FileType::RegularFile) => StoreError::already_exists(&self.name),
            Ok(FileType::Directory) => system_error("link", &self.name, Errno::ISDIR),
            Ok(_) => StoreError::io("link", &self.name, io::Error::other("not a regular file")),
            // Taken a moment ago and deleted since.
            Err(Errno::NOENT) => StoreError::already_exists(&self.name),
            Err(e) => system_error("stat", &self.name, e),
        }
    }
}

impl LocalWriter {
    /// What fsync would otherwise wait for. To Linux, memory that is not needed any more is memory to be written out.
    fn write_ahead(&self, in_file: u64) {
        let last = NonZeroU64::new(AHEAD_BYTES);
        // Advice is not an obligation: a refusal costs time and nothing else.
        let _refused = fs::fadvise(&self.file, in_file - AHEAD_BYTES, last, Advice::DontNeed);
    }

    fn write_buffered(&mut self, part: Range<usize>) -> Result<(), StoreError> {
        let bytes = &self.buffer.bytes()[part];
        let mut written = write_from(&self.file, bytes);
        if self.direct == Direct::On
            && let Err((done, e)) = &written
            && Errno::from_io_error(e) == Some(Errno::INVAL)
        {
            // Offered and then refused, as some network file systems do.
            let rest = &bytes[*done..];
            set_direct(&self.file, false).map_err(self.failed("write"))?;
            self.direct = Direct::Off;
            written = write_from(&self.file, rest);
        }
        written.map_err(|(_, e)| {
            self.state = State::Spoiled;
            match Errno::from_io_error(&e) {
                Some(errno) => system_error("write", &self.name, errno),
                None => StoreError::io("write", &self.name, e),
            }
        })
    }
}

/// The name can be seen and may be lost again, whatever the reason: also one that would be space or a right, had it come before.
pub(super) fn not_durable(name: &ObjectName, e: Errno) -> StoreError {
    StoreError::io("fsync directory of", name, e.into())
}

/// Writes all, or says how much was written before the error.
fn write_from(mut file: &File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((done, e)),
        }
    }
    Ok(())
}

impl ObjectWriter for LocalWriter {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        if self.state != State::Open {
            return Err(StoreError::io("write", &self.name, io::Error::other("an earlier write failed")));
        }
        self.written += bytes.len() as u64;
        self.settled = false;
        while !bytes.is_empty() {
            let n = bytes.len().min(self.buffer.capacity() - self.buffered);
            self.buffer.bytes_mut()[self.buffered..self.buffered + n].copy_from_slice(&bytes[..n]);
            self.buffered += n;
            bytes = &bytes[n..];
            if self.buffered == self.buffer.capacity() {
                // Until it has succeeded: whatever fails, bytes are missing.
                self.state = State::Spoiled;
                self.write_buffered(0..self.buffered)?;
                self.buffered = 0;
                let in_file = self.written - bytes.len() as u64;
                if self.direct != Direct::On && in_file.is_multiple_of(AHEAD_BYTES) {
                    self.write_ahead(in_file);
                }
                if self.direct == Direct::Untried && in_file >= CACHED_BYTES {
                    let on = set_direct(&self.file, true).map_err(self.failed("write"))?;
                    self.direct = if on { Direct::On } else { Direct::Off };
                    self.buffer = AlignedBuffer::new(BUFFER_BYTES);
                }
                self.state = State::Open;
            }
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        self.written
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        if self.state != State::Open {
            return Err(StoreError::io("write", &self.name, io::Error::other("an earlier write failed")));
        }
        // Until it has succeeded: after an error of fsync nobody knows what is durable.
        self.state = State::Spoiled;
        self.make_durable()?;
        self.state = State::Open;
        self.settled = true;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.commit()
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        if self.state != State::Named {
            // The object has failed or was given up already; what cannot be removed now, the sweeper will.
            let _ = fs::unlinkat(&self.dir, &self.temp, AtFlags::empty());
            let _ = self.root.prune(self.name.parent());
        }
    }
}

fn temp_name(name: &ObjectName) -> Result<String, StoreError> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(|e| StoreError::io("create", name, io::Error::other(e)))?;
    Ok(format!("{TEMP_PREFIX}{:032x}", u128::from_le_bytes(random)))
}
