//! Writing parts into packs, and the manifest that lists them. A writer has a pack of its own; several may write at the same
//! time, each one part after another.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use pgark_pg::page::is_all_zero;
use pgark_repo::Repository;
use pgark_repo::catalog::PacksOf;
use pgark_repo::codec::{Compression, Encoder};
use pgark_repo::crypto::ContentId;
use pgark_repo::limits::{CHUNKS_PER_ITEM, FRAME_BYTES, PACK_BYTES};
use pgark_repo::manifest::{Chunk, Directory, FileEnd, FileStart, Item, ManifestWriter, PackId, Part, path_order};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::{FrameAt, PackWriter};
use pgark_repo::record::Totals;
use pgark_repo::stream::Fingerprint;

use super::before::{Known, KnownTree, Parent};
use super::chunker::{CHUNK_BYTES_MAX, Chunker};
use super::spool::Spool;
use super::{PART_DIR_MODE, PART_MODE};
use crate::backup::base::{number_of_other, number_of_own, position_of_other};
use crate::ctx::Ctx;
use crate::error::Result;

/// Chunks of earlier parts that are held to find the same content again, by all writers together: about 100 MB, and 16 GB of
/// dumps. What is further away than half of it is stored again.
const KNOWN_CHUNKS_MAX: usize = 1_000_000;
/// Chunks that wait for their frame to be full: a part that changes little fills one slowly.
const WAITING_CHUNKS_MAX: usize = 16 * 1024;
/// Read and cut at once.
const BUFFER_BYTES: usize = 1024 * 1024;

pub struct WriterOptions {
    pub compression: Compression,
    /// For what does not fit into memory.
    pub scratch: PathBuf,
    pub jobs: usize,
}

/// What all writers of one backup share.
pub struct Writer<'a> {
    ctx: &'a Ctx,
    repo: &'a Repository,
    cluster: &'a ClusterName,
    id: &'a BackupId,
    options: WriterOptions,
    parent: Option<&'a Parent>,
    chunker: Chunker,
    next_pack: AtomicU32,
    others: Others,
    packs: Mutex<Vec<(u32, Fingerprint)>>,
    frames: AtomicU64,
}

/// Packs of other backups, by how the new manifest calls them.
#[derive(Default)]
pub(crate) struct Others {
    inner: Mutex<(Vec<PackId>, HashMap<PackId, u32>)>,
}

impl Others {
    pub fn number(&self, id: &PackId) -> u32 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = inner.1.get(id) {
            return *number;
        }
        let number = number_of_other(inner.0.len());
        inner.0.push(id.clone());
        inner.1.insert(id.clone(), number);
        number
    }

    fn id(&self, number: u32) -> Option<PackId> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.get(position_of_other(number)?).cloned()
    }
}

/// A part that was written, for the manifest.
pub struct Finished {
    path: String,
    modified: Timestamp,
    chunks: Spool,
    /// Bytes of it that were stored now; the rest was there.
    pub new_bytes: u64,
}

impl Finished {
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn size(&self) -> u64 {
        self.chunks.size
    }
}

impl<'a> Writer<'a> {
    pub fn new(
        ctx: &'a Ctx,
        repo: &'a Repository,
        cluster: &'a ClusterName,
        id: &'a BackupId,
        parent: Option<&'a Parent>,
        options: WriterOptions,
    ) -> Self {
        Writer {
            ctx,
            repo,
            cluster,
            id,
            parent,
            chunker: Chunker::new(repo.keys()),
            options,
            next_pack: AtomicU32::new(1),
            others: Others::default(),
            packs: Mutex::default(),
            frames: AtomicU64::new(0),
        }
    }

    pub fn sink(&self) -> Result<PartSink<'_>> {
        Ok(PartSink {
            shared: self,
            encoder: Encoder::new(self.options.compression)?,
            stored: vec![],
            pack: None,
            frame: Vec::with_capacity(FRAME_BYTES),
            buffer: Vec::with_capacity(BUFFER_BYTES + CHUNK_BYTES_MAX),
        })
    }

    /// Writes the manifest of these parts, in whatever order they come.
    pub fn manifest(self, mut parts: Vec<Finished>) -> Result<PartList> {
        parts.sort_by(|a, b| path_order(a.path.as_bytes(), b.path.as_bytes()));
        let mut list = self.begin_manifest()?;
        for part in parts {
            list.part(part)?;
        }
        list.finish()
    }

    /// A manifest that is written as things become known, in its order.
    pub fn begin_manifest(&self) -> Result<ManifestOf<'_>> {
        let name = names::manifest(self.cluster, self.id);
        let manifest = ManifestWriter::create(self.repo.store().as_ref(), self.repo.keys(), &name)?;
        Ok(ManifestOf {
            writer: self,
            manifest,
            declared: HashSet::new(),
            made: BTreeSet::new(),
            totals: Totals::default(),
        })
    }

    /// Everything that the earlier backup has under a directory, as one run.
    pub(crate) fn known_tree(&self, top: &[u8]) -> Result<Option<KnownTree>> {
        self.parent.map(|p| p.tree(self.repo, top, KNOWN_CHUNKS_MAX)).transpose()
    }
}

/// The manifest as it was written.
pub struct PartList {
    pub manifest: Fingerprint,
    pub totals: Totals,
    pub needs: Vec<PacksOf>,
}

pub struct ManifestOf<'a> {
    writer: &'a Writer<'a>,
    manifest: ManifestWriter,
    declared: HashSet<u32>,
    made: BTreeSet<Vec<u8>>,
    totals: Totals,
}

impl ManifestOf<'_> {
    pub fn part(&mut self, part: Finished) -> Result<()> {
        for (at, _) in part.path.match_indices('/') {
            if let Some(dir) = part.path.get(..at) {
                self.made_directory(dir.as_bytes())?;
            }
        }
        let modified_ns = i64::try_from(part.modified.as_nanosecond()).unwrap_or(0);
        let start = FileStart { path: part.path.into_bytes(), mode: PART_MODE, modified_ns };
        self.file(start, part.chunks)
    }

    /// A directory that nothing is known of, once.
    pub fn made_directory(&mut self, path: &[u8]) -> Result<()> {
        if self.made.insert(path.to_vec()) {
            self.directory(Directory { path: path.to_vec(), mode: PART_DIR_MODE })?;
        }
        Ok(())
    }

    pub fn directory(&mut self, directory: Directory) -> Result<()> {
        self.manifest.push(&Item::Directory(directory))?;
        self.totals.directories += 1;
        Ok(())
    }

    /// A link, or the attributes of what was pushed last.
    pub fn item(&mut self, item: &Item) -> Result<()> {
        Ok(self.manifest.push(item)?)
    }

    pub(crate) fn file(&mut self, start: FileStart, chunks: Spool) -> Result<()> {
        let size = chunks.size;
        self.manifest.push(&Item::FileStart(start))?;
        let (writer, manifest, declared) = (self.writer, &mut self.manifest, &mut self.declared);
        chunks.read(CHUNKS_PER_ITEM, &mut |chunks| {
            for part in chunks.iter().flat_map(Chunk::parts) {
                if declared.insert(part.pack) {
                    let id = match position_of_other(part.pack) {
                        None => PackId::new(writer.id, part.pack / 2),
                        Some(_) => writer.others.id(part.pack).expect("numbered when it was taken over"),
                    };
                    manifest.push(&Item::Pack(part.pack, id))?;
                }
            }
            Ok(manifest.push(&Item::Chunks(chunks))?)
        })?;
        self.manifest.push(&Item::FileEnd(FileEnd { size }))?;
        self.totals.files += 1;
        self.totals.size_bytes += size;
        self.totals.read_bytes += size;
        Ok(())
    }

    /// When all sinks are finished: the packs, and the end.
    pub fn finish(self) -> Result<PartList> {
        let ManifestOf { writer, mut manifest, declared, mut totals, .. } = self;
        let mut own = std::mem::take(&mut *writer.packs.lock().unwrap_or_else(PoisonError::into_inner));
        own.sort_by_key(|(number, _)| *number);
        for (number, print) in &own {
            let index = number_of_own(*number);
            // A pack whose last frame turned out not to be needed is declared all the same: it must not be a stranger.
            if !declared.contains(&index) {
                manifest.push(&Item::Pack(index, PackId::new(writer.id, *number)))?;
            }
            manifest.push(&Item::PackDone(index, print.clone()))?;
        }
        let mut used = vec![];
        let mut foreign: Vec<u32> = declared.into_iter().filter(|n| position_of_other(*n).is_some()).collect();
        foreign.sort_unstable();
        for index in foreign {
            let id = writer.others.id(index).expect("numbered when it was taken over");
            let print = writer.parent.and_then(|p| p.fingerprint(&id)).expect("taken over from the parent's manifest");
            manifest.push(&Item::PackDone(index, print.clone()))?;
            used.push(id);
        }
        let manifest = manifest.finish()?;
        totals.packs = own.len() as u64;
        totals.frames = writer.frames.load(Ordering::Relaxed);
        totals.stored_bytes = own.iter().map(|(_, p)| p.size).sum::<u64>() + manifest.size;
        Ok(PartList { manifest, totals, needs: PacksOf::gather(used) })
    }
}

/// Writes parts one after another.
pub struct PartSink<'a> {
    shared: &'a Writer<'a>,
    encoder: Encoder,
    stored: Vec<u8>,
    pack: Option<(u32, PackWriter)>,
    /// New chunks, one after another, that will be one frame.
    frame: Vec<u8>,
    /// Not cut yet.
    buffer: Vec<u8>,
}

/// A chunk whose place may not be known yet.
pub(super) enum Waiting {
    Placed(Chunk),
    InFrame { id: ContentId, skip: usize, len: usize },
}

impl Waiting {
    pub(super) fn len(&self) -> u64 {
        match self {
            Waiting::Placed(chunk) => chunk.len(),
            Waiting::InFrame { len, .. } => *len as u64,
        }
    }

    /// Once its frame is stored.
    pub(super) fn placed(self, frame: Option<(u32, FrameAt)>) -> Chunk {
        match self {
            Waiting::Placed(chunk) => chunk,
            Waiting::InFrame { id, skip, len } => {
                let (pack, frame) = frame.expect("what waits for a frame is in it");
                let small = |n: usize| u32::try_from(n).expect("frames are small");
                Chunk::Data { id, parts: vec![Part { pack, frame, skip: small(skip), len: small(len) }] }
            }
        }
    }
}

/// The part that is being written.
struct Open {
    known: Option<Known>,
    waiting: Vec<Waiting>,
    chunks: Spool,
    new_bytes: u64,
}

/// For those who cut and queue by themselves.
impl<'a> PartSink<'a> {
    pub(super) fn shared(&self) -> &'a Writer<'a> {
        self.shared
    }

    pub(super) fn frame_len(&self) -> usize {
        self.frame.len()
    }

    /// Returns where in the frame it begins.
    pub(super) fn add_to_frame(&mut self, plain: &[u8]) -> usize {
        let skip = self.frame.len();
        self.frame.extend_from_slice(plain);
        skip
    }

    pub(super) fn end_shared_frame(&mut self) -> Result<Option<(u32, FrameAt)>> {
        let stored = if self.frame.is_empty() { None } else { Some(self.store_frame()?) };
        self.frame.clear();
        Ok(stored)
    }
}

impl Writer<'_> {
    pub(super) fn scratch(&self) -> &std::path::Path {
        &self.options.scratch
    }

    pub(super) fn others(&self) -> &Others {
        &self.others
    }

    pub(super) fn content_id(&self, plain: &[u8]) -> ContentId {
        self.repo.keys().content_id(plain)
    }

    /// Of the first chunk of these bytes.
    pub(super) fn chunk_length(&self, bytes: &[u8]) -> usize {
        self.chunker.cut(bytes).unwrap_or(bytes.len())
    }
}

impl PartSink<'_> {
    /// Takes a part from `next`, which fills a buffer and ends with an empty one.
    pub fn write(
        &mut self,
        path: &str,
        modified: Timestamp,
        next: &mut dyn FnMut() -> Result<Option<Vec<u8>>>,
    ) -> Result<Finished> {
        let shared = self.shared;
        let window = KNOWN_CHUNKS_MAX / shared.options.jobs.max(1);
        let known = shared.parent.map_or(Ok(None), |p| p.part(shared.repo, path, window))?;
        let chunks = Spool::new(&shared.options.scratch);
        let mut open = Open { known, waiting: vec![], chunks, new_bytes: 0 };
        self.buffer.clear();
        while let Some(bytes) = next()? {
            shared.ctx.check_cancelled()?;
            shared.ctx.pace(bytes.len() as u64);
            shared.ctx.progress.advance(bytes.len() as u64);
            self.buffer.extend_from_slice(&bytes);
            self.cut(&mut open, CHUNK_BYTES_MAX)?;
        }
        self.cut(&mut open, 0)?;
        self.end_frame(&mut open)?;
        Ok(Finished { path: path.to_owned(), modified, chunks: open.chunks, new_bytes: open.new_bytes })
    }

    /// The last pack goes to the store.
    pub fn finish(mut self) -> Result<()> {
        self.close_pack()
    }

    /// Takes chunks off the buffer as long as at least `reserve` bytes and something is there.
    fn cut(&mut self, open: &mut Open, reserve: usize) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = buffer.as_slice();
        while rest.len() >= reserve && !rest.is_empty() {
            let len = self.shared.chunker.cut(rest).unwrap_or(rest.len());
            let (chunk, after) = rest.split_at(len);
            self.chunk(open, chunk)?;
            rest = after;
        }
        let from = buffer.len() - rest.len();
        self.buffer = buffer;
        self.buffer.drain(..from);
        Ok(())
    }

    fn chunk(&mut self, open: &mut Open, plain: &[u8]) -> Result<()> {
        if is_all_zero(plain) {
            open.waiting.push(Waiting::Placed(Chunk::Zero(plain.len() as u64)));
        } else {
            let id = self.shared.repo.keys().content_id(plain);
            let same = match &mut open.known {
                Some(known) => known.find(&id, plain.len(), &self.shared.others)?,
                None => None,
            };
            match same {
                Some(chunk) => open.waiting.push(Waiting::Placed(chunk)),
                None => {
                    if self.frame.len() + plain.len() > FRAME_BYTES {
                        self.end_frame(open)?;
                    }
                    open.waiting.push(Waiting::InFrame { id, skip: self.frame.len(), len: plain.len() });
                    self.frame.extend_from_slice(plain);
                    open.new_bytes += plain.len() as u64;
                }
            }
        }
        if open.waiting.len() >= WAITING_CHUNKS_MAX { self.end_frame(open) } else { Ok(()) }
    }

    /// Stores the frame, if there is one; then the place of everything that waits is known.
    fn end_frame(&mut self, open: &mut Open) -> Result<()> {
        let stored = self.end_shared_frame()?;
        open.waiting.drain(..).try_for_each(|waiting| open.chunks.push(waiting.placed(stored)))
    }

    fn store_frame(&mut self) -> Result<(u32, FrameAt)> {
        let shared = self.shared;
        let plain = self.frame.as_slice();
        let codec = self.encoder.encode(plain, &mut self.stored)?;
        let id = shared.repo.keys().content_id(plain);
        let len = plain.len();
        if self.pack.as_ref().is_some_and(|(_, w)| w.size() >= PACK_BYTES) {
            self.close_pack()?;
        }
        let (number, writer) = match &mut self.pack {
            Some(pack) => pack,
            none => {
                let number = shared.next_pack.fetch_add(1, Ordering::Relaxed);
                let name = names::pack(shared.cluster, shared.id, number);
                none.insert((number, PackWriter::create(shared.repo.store().as_ref(), shared.repo.keys(), &name)?))
            }
        };
        let at = writer.append(codec, len, id, &mut self.stored)?;
        shared.frames.fetch_add(1, Ordering::Relaxed);
        Ok((number_of_own(*number), at))
    }

    fn close_pack(&mut self) -> Result<()> {
        if let Some((number, writer)) = self.pack.take() {
            let print = writer.seal()?.commit()?;
            self.shared.packs.lock().unwrap_or_else(PoisonError::into_inner).push((number, print));
        }
        Ok(())
    }
}
