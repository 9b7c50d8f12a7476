//! Copying file contents into packs. Each worker thread carries one buffer through reading, page checks,
//! hashing, compressing and sealing while it is in the cache, and writes to a pack of its own.
//!
//! Invariant: what a chunk says is what was read: the encoder decodes its bytes again and compares.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_channel::Sender;
use pgark_pg::page::{PAGE_SIZE, PageVerdict, check_page, is_all_zero};
use pgark_pg::relpath::RelSegment;
use pgark_pg::value::{BlockNo, Lsn};
use pgark_repo::Repository;
use pgark_repo::codec::{Compression, Encoder};
use pgark_repo::crypto::ContentId;
use pgark_repo::limits::{FRAME_BYTES, PACK_BYTES};
use pgark_repo::manifest::{Chunk, Part};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::{FrameAt, PackWriter, SealedPack};

use super::base::{BeforeFile, number_of_own};
use super::cache;
use super::remains::Remains;
use super::scan::FoundFile;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// A run is what one worker takes at a time: long enough for sequential reading, short enough to share.
pub const RUN_BYTES: u64 = 4 * 1024 * 1024;
/// Files up to this size travel together in one frame.
pub const BUNDLE_FILE_BYTES_MAX: u64 = (FRAME_BYTES / 2) as u64;

/// What all workers of one backup share.
pub struct CopyShared<'a> {
    pub ctx: &'a Ctx,
    pub repo: &'a Repository,
    pub cluster: &'a ClusterName,
    pub id: &'a BackupId,
    pub pgdata: &'a Path,
    pub compression: Compression,
    /// The backup's start, when page checksums are to be checked.
    pub check_pages: Option<Lsn>,
    pub relation_segment_blocks: u32,
    pub next_pack: AtomicU32,
    pub remains: Remains,
    /// Set when anything failed: the others stop.
    pub stop: AtomicBool,
}

pub struct OpenFile {
    pub file: File,
    pub found: FoundFile,
}

pub enum Unit {
    /// A piece of a large file, and the file as an earlier backup has it.
    Run { ticket: u64, file: Arc<OpenFile>, offset: u64, len: u64, before: Option<Arc<BeforeFile>> },
    /// Whole small files.
    Bundle { ticket: u64, files: Vec<(FoundFile, Option<BeforeFile>)> },
    /// Single blocks of a relation's file, at most a frame of them.
    Patch { ticket: u64, file: Arc<OpenFile>, blocks: Vec<u32> },
}

impl Unit {
    pub fn ticket(&self) -> u64 {
        match self {
            Unit::Run { ticket, .. } | Unit::Bundle { ticket, .. } | Unit::Patch { ticket, .. } => *ticket,
        }
    }
}

pub enum Done {
    Run(Copied),
    Bundle(Vec<Option<Copied>>),
    Patch(PatchFrame),
}

/// The blocks of a `Unit::Patch`, one after another in a frame.
pub struct PatchFrame {
    pub pack: u32,
    pub frame: FrameAt,
    pub id: ContentId,
    pub bad_blocks: Vec<u32>,
    pub read: u64,
}

/// A copied piece of a file; None in a bundle stands for a file that vanished.
#[derive(Debug, Default)]
pub struct Copied {
    pub chunks: Vec<Chunk>,
    /// Block numbers within the file whose checksum is wrong.
    pub bad_blocks: Vec<u32>,
    /// Bytes read.
    pub read: u64,
}

impl Copied {
    fn push(&mut self, chunk: Chunk) {
        if let (Some(Chunk::Zero(before)), Chunk::Zero(more)) = (self.chunks.last_mut(), &chunk) {
            *before += more;
        } else {
            self.chunks.push(chunk);
        }
    }

    /// Bytes of the file that the chunks make up.
    pub fn covered(&self) -> u64 {
        self.chunks.iter().map(Chunk::len).sum()
    }
}

/// Opens for reading without following a link in the last part, and without waiting on a pipe.
pub fn open_source(pgdata: &Path, path: &[u8]) -> Result<Option<File>> {
    let full = pgdata.join(OsString::from_vec(path.to_vec()));
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("open flags are small");
    match OpenOptions::new().read(true).custom_flags(flags).open(&full) {
        Ok(f) => Ok(Some(f)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(EngineError::file("opening", full, e)),
    }
}

/// Reads until `buf` is full or the file ends; returns the number of bytes.
pub fn read_full(file: &File, mut offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                offset += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

pub struct Worker<'a> {
    shared: &'a CopyShared<'a>,
    encoder: Encoder,
    plain: Vec<u8>,
    stored: Vec<u8>,
    pack: Option<(u32, PackWriter)>,
    commits: Sender<(u32, SealedPack)>,
}

impl<'a> Worker<'a> {
    pub fn new(shared: &'a CopyShared<'a>, commits: Sender<(u32, SealedPack)>) -> Result<Self> {
        Ok(Worker {
            shared,
            encoder: Encoder::new(shared.compression)?,
            plain: vec![0; FRAME_BYTES],
            stored: vec![],
            pack: None,
            commits,
        })
    }

    pub fn unit(&mut self, unit: &Unit) -> Result<Done> {
        self.shared.ctx.check_cancelled()?;
        match unit {
            Unit::Run { file, offset, len, before, .. } => {
                Ok(Done::Run(self.run(file, *offset, *len, before.as_deref())?))
            }
            Unit::Patch { file, blocks, .. } => Ok(Done::Patch(self.patch(file, blocks)?)),
            Unit::Bundle { files, .. } => Ok(Done::Bundle(self.bundle(files)?)),
        }
    }

    /// The last pack goes to be committed.
    pub fn finish(mut self) -> Result<()> {
        self.close_pack()
    }

    fn run(&mut self, file: &OpenFile, offset: u64, len: u64, before: Option<&BeforeFile>) -> Result<Copied> {
        let mut copied = Copied::default();
        let mut plain = std::mem::take(&mut self.plain);
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(FRAME_BYTES).min(FRAME_BYTES);
            let got = self.read_piece(&file.file, &file.found, at, &mut plain[..want], &mut copied.bad_blocks)?;
            if got > 0 {
                let chunk = self.store_chunk(&plain[..got], at, before)?;
                copied.push(chunk);
            }
            copied.read += got as u64;
            self.shared.ctx.progress.advance(got as u64);
            at += got as u64;
            if got < want {
                break;
            }
        }
        self.plain = plain;
        Ok(copied)
    }

    /// Fills `buf` from the file. A relation file that became shorter is filled up with zeros, as PostgreSQL's
    /// own base backup does: replay of the WAL puts that right. Other files end where they end.
    fn read_piece(
        &self,
        file: &File,
        found: &FoundFile,
        offset: u64,
        buf: &mut [u8],
        bad: &mut Vec<u32>,
    ) -> Result<usize> {
        let failed = |e| EngineError::file("reading", Path::new(&super::scan::show(&found.path)), e);
        self.shared.ctx.pace(buf.len() as u64);
        let mut got = cache::read_sparing(file, offset, buf).map_err(failed)?;
        if let Some(relation) = &found.relation {
            buf[got..].fill(0);
            if let Some(start) = self.shared.check_pages {
                self.check_pages(file, relation, offset, &mut buf[..got], start, bad).map_err(failed)?;
            }
            got = buf.len();
        }
        Ok(got)
    }

    fn check_pages(
        &self,
        file: &File,
        relation: &RelSegment,
        offset: u64,
        buf: &mut [u8],
        start: Lsn,
        bad: &mut Vec<u32>,
    ) -> std::io::Result<()> {
        for (i, page) in buf.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let block = u32::try_from(offset / PAGE_SIZE as u64).unwrap_or(u32::MAX).saturating_add(i as u32);
            let absolute = relation.segment.wrapping_mul(self.shared.relation_segment_blocks).wrapping_add(block);
            let is_bad = |p: &[u8]| {
                matches!(check_page(p, BlockNo(absolute), start), PageVerdict::Bad { .. } | PageVerdict::BadHeader)
            };
            if !is_bad(page) {
                continue;
            }
            // Perhaps it was being written while we read it. Content that stays the same is damage.
            let mut again = vec![0u8; PAGE_SIZE];
            let position = u64::from(block) * PAGE_SIZE as u64;
            if read_full(file, position, &mut again)? < PAGE_SIZE {
                continue;
            }
            if is_bad(&again) && again == page {
                bad.push(block);
            }
            page.copy_from_slice(&again);
        }
        Ok(())
    }

    /// Stores what lies at `offset` of a file, unless the earlier backup has the same there.
    fn store_chunk(&mut self, plain: &[u8], offset: u64, before: Option<&BeforeFile>) -> Result<Chunk> {
        if is_all_zero(plain) {
            return Ok(Chunk::Zero(plain.len() as u64));
        }
        let id = self.shared.repo.keys().content_id(plain);
        if let Some(chunk) = before.and_then(|b| b.same(offset, &id, plain.len())) {
            return Ok(chunk);
        }
        let (pack, frame) = self.store_frame(plain, id)?;
        let len = frame.plain_len;
        Ok(Chunk::Data { id, parts: vec![Part { pack, frame, skip: 0, len }] })
    }

    /// Returns the pack, as the manifest calls it, and the place in it.
    fn store_frame(&mut self, plain: &[u8], id: ContentId) -> Result<(u32, FrameAt)> {
        if let Some(stored) = self.shared.remains.find(&id, plain.len()) {
            return Ok(stored);
        }
        let codec = self.encoder.encode(plain, &mut self.stored)?;
        if self.pack.as_ref().is_some_and(|(_, w)| w.size() >= PACK_BYTES) {
            self.close_pack()?;
        }
        let (number, writer) = match &mut self.pack {
            Some(p) => p,
            none => {
                let number = self.shared.next_pack.fetch_add(1, Ordering::Relaxed);
                let name = names::pack(self.shared.cluster, self.shared.id, number);
                none.insert((
                    number,
                    PackWriter::create(self.shared.repo.store().as_ref(), self.shared.repo.keys(), &name)?,
                ))
            }
        };
        let at = writer.append(codec, plain.len(), id, &mut self.stored)?;
        Ok((number_of_own(*number), at))
    }

    fn patch(&mut self, file: &OpenFile, blocks: &[u32]) -> Result<PatchFrame> {
        let mut plain = std::mem::take(&mut self.plain);
        let mut bad_blocks = vec![];
        let mut used = 0;
        for run in blocks.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let Some(first) = run.first() else { continue };
            let (from, len) = (used, run.len() * PAGE_SIZE);
            used += len;
            let buf = plain.get_mut(from..used).expect("a patch is at most a frame");
            self.read_piece(&file.file, &file.found, u64::from(*first) * PAGE_SIZE as u64, buf, &mut bad_blocks)?;
        }
        self.shared.ctx.progress.advance(used as u64);
        let id = self.shared.repo.keys().content_id(&plain[..used]);
        let (pack, frame) = self.store_frame(&plain[..used], id)?;
        self.plain = plain;
        Ok(PatchFrame { pack, frame, id, bad_blocks, read: used as u64 })
    }

    fn close_pack(&mut self) -> Result<()> {
        if let Some((number, writer)) = self.pack.take() {
            // Nobody receives any more when committing failed; that error is reported by the committer.
            self.commits.send((number, writer.seal()?)).map_err(|_| EngineError::Cancelled)?;
        }
        Ok(())
    }

    fn bundle(&mut self, files: &[(FoundFile, Option<BeforeFile>)]) -> Result<Vec<Option<Copied>>> {
        let keys = self.shared.repo.keys();
        let mut out: Vec<Option<Copied>> = Vec::with_capacity(files.len());
        let mut all: Vec<u8> = Vec::with_capacity(FRAME_BYTES);
        let mut places: Vec<(usize, ContentId, usize, usize)> = vec![];
        for (i, (found, before)) in files.iter().enumerate() {
            let Some(file) = open_source(self.shared.pgdata, &found.path)? else {
                out.push(None);
                continue;
            };
            let mut copied = Copied::default();
            let from = all.len();
            let size = usize::try_from(found.size).expect("bundled files are small");
            all.resize(from + size, 0);
            let got = self.read_piece(&file, found, 0, &mut all[from..], &mut copied.bad_blocks)?;
            all.truncate(from + got);
            self.shared.ctx.progress.advance(got as u64);
            copied.read = got as u64;
            if got > 0 && is_all_zero(&all[from..]) {
                copied.push(Chunk::Zero(got as u64));
                all.truncate(from);
            } else if got > 0 {
                let id = keys.content_id(&all[from..]);
                match before.as_ref().and_then(|b| b.same(0, &id, got)) {
                    Some(chunk) => {
                        copied.push(chunk);
                        all.truncate(from);
                    }
                    None => places.push((i, id, from, got)),
                }
            }
            out.push(Some(copied));
        }
        if all.is_empty() {
            return Ok(out);
        }
        let whole = keys.content_id(&all);
        let (pack, frame) = self.store_frame(&all, whole)?;
        for (i, id, from, got) in places {
            let len = |n: usize| u32::try_from(n).expect("frames are small");
            let part = Part { pack, frame, skip: len(from), len: len(got) };
            if let Some(Some(copied)) = out.get_mut(i) {
                copied.push(Chunk::Data { id, parts: vec![part] });
            }
        }
        Ok(out)
    }
}
