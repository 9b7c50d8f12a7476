//! Streams a manifest into files: one thread reads it and creates the files, several fetch, open, decode, compare and
//! write their contents.
//!
//! Invariant: nothing reaches a file that was not compared with the content id in the manifest.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use pgark_pg::page::is_all_zero;
use pgark_repo::codec::Decoder;
use pgark_repo::crypto::{ContentId, KeySet};
use pgark_repo::direct::{ALIGNMENT, AlignedBuffer, set_direct};
use pgark_repo::limits::FRAME_BYTES_MAX;
use pgark_repo::manifest::{Chunk, Item, PackId, Part};
use pgark_repo::names::ClusterName;
use pgark_repo::pack::PackReader;
use pgark_repo::store::ObjectName;
use pgark_repo::{RepoError, names};
use rustix::fs::OFlags;

use super::books::Books;
use super::roots::Roots;
use super::window::{Use, Window, fetch};
use super::{RestoreOptions, RestorePlan, RestoreReport};
use crate::backup::copy::read_full;
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::sources::Sources;

/// Plain bytes that one worker takes at a time, at most, and those that all of them may hold.
const JOB_BYTES: u64 = 4 * 1024 * 1024;
const JOB_BYTES_TOTAL: u64 = 64 * 1024 * 1024;
/// Chunks that one worker takes at a time.
const JOB_CHUNKS: usize = 64;
/// Decoded frames that a worker keeps because chunks take parts of them: pages that were changed between backups lie
/// together in frames of their own.
const FRAMES_KEPT: usize = 8;
/// What is gathered of one file before it is written.
const RUN_BYTES: usize = 2 * FRAME_BYTES_MAX;
/// Read or written at a time where a file is to hold zeros.
const ZEROS_BYTES: usize = 1024 * 1024;
/// From this size on, writes go past the page cache.
const DIRECT_BYTES: usize = 256 * 1024;
/// Of the source's own past; they would change what the restored server does.
const SKIPPED: [&[u8]; 2] = [b"standby.signal", b"recovery.signal"];

/// One chunk and where it goes.
struct Write1 {
    path: Arc<[u8]>,
    offset: u64,
    chunk: Chunk,
}

struct Shared<'a> {
    sources: &'a Sources,
    keys: KeySet,
    cluster: &'a ClusterName,
    ctx: &'a Ctx,
    roots: &'a Roots,
    pack_names: RwLock<HashMap<u32, ObjectName>>,
    /// By source and index.
    packs: Mutex<HashMap<(usize, u32), Arc<PackReader>>>,
    /// Packs of which something was missing or damaged in this source: the others are asked first.
    bad: Mutex<BTreeSet<(usize, u32)>>,
    written: AtomicU64,
    /// The files may be there already: only what differs is fetched and written.
    over: bool,
    unchanged: AtomicU64,
    stop: AtomicBool,
}

impl Shared<'_> {
    fn declare(&self, index: u32, id: &PackId) {
        let name = names::pack(self.cluster, &id.backup, id.number);
        self.pack_names.write().expect("no thread panics with the lock").insert(index, name);
    }

    /// Whom to ask for a frame of this pack, in turn.
    fn order(&self, pack: u32) -> Vec<usize> {
        let mut order = self.sources.order();
        if order.len() > 1 {
            let bad = self.bad.lock().expect("no thread panics with the lock");
            order.sort_by_key(|n| bad.contains(&(*n, pack)));
        }
        order
    }
}

pub fn write_files(
    options: &RestoreOptions,
    plan: &RestorePlan,
    sources: &Sources,
    ctx: &Ctx,
    roots: &Roots,
    over: bool,
) -> Result<RestoreReport> {
    let shared = Shared {
        sources,
        keys: sources.first()?.keys().clone(),
        cluster: &options.cluster,
        ctx,
        roots,
        pack_names: RwLock::default(),
        packs: Mutex::default(),
        bad: Mutex::default(),
        written: AtomicU64::new(0),
        over,
        unchanged: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    // Direct writes wait for the disk: while one worker waits, another one decodes.
    let jobs = options.jobs.max(1) * 2;
    let (tx, rx) = bounded::<Vec<Write1>>(2 * jobs);
    let mut report = RestoreReport {
        bytes_restored: 0,
        bytes_written: 0,
        files: 0,
        warnings: vec![],
        troubles: vec![],
        mended: vec![],
    };
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                let rx = rx.clone();
                let shared = &shared;
                scope.spawn(move || work(shared, &rx).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed)))
            })
            .collect();
        drop(rx);
        let streamed = stream_manifest(&shared, plan, jobs, tx, &mut report);
        if streamed.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        let mut outcome = Ok(());
        for w in workers {
            let done = w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = outcome.and(done);
        }
        // A worker's error is why the stream ended, when both failed.
        outcome.and(streamed)
    })?;
    report.bytes_restored = shared.written.load(Ordering::Relaxed);
    report.bytes_written = report.bytes_restored - shared.unchanged.load(Ordering::Relaxed).min(report.bytes_restored);
    Ok(report)
}

fn stream_manifest(
    shared: &Shared<'_>,
    plan: &RestorePlan,
    workers: usize,
    jobs: Sender<Vec<Write1>>,
    report: &mut RestoreReport,
) -> Result<()> {
    let mut manifest = Books::open(shared.sources, shared.cluster, &plan.backup.id)?;
    let mut batch = Batch { jobs, writes: vec![], bytes: 0, job_bytes: JOB_BYTES_TOTAL / workers.max(1) as u64 };
    while let Some(item) = manifest.next_item()? {
        shared.ctx.check_cancelled()?;
        match item {
            Item::Directory(d) => shared.roots.make_dir(&d.path, d.mode)?,
            Item::Symlink(s) => report.warnings.push(format!(
                "{} was a symbolic link to {} and is not restored",
                show(&s.path),
                show(&s.target)
            )),
            Item::FileStart(start) => {
                let skip = SKIPPED.contains(&start.path.as_slice());
                restore_file(shared, &mut manifest, &mut batch, &start.path, start.mode, skip)?;
                report.files += u64::from(!skip);
            }
            Item::Pack(index, id) => {
                shared.declare(index, &id);
            }
            Item::PackDone(..) | Item::Vanished(_) | Item::BadBlock(_) => {}
            Item::Attributes(_) | Item::HardLink(_) => {
                let name = names::manifest(shared.cluster, &plan.backup.id);
                return Err(RepoError::corrupt(name, "it has what a physical backup does not have").into());
            }
            Item::Chunks(_) | Item::FileEnd(_) => unreachable!("consumed with their file; the reader checks the order"),
        }
    }
    batch.flush()?;
    if manifest.fingerprint() != plan.record.manifest {
        return Err(RepoError::corrupt(
            names::manifest(shared.cluster, &plan.backup.id),
            "not the manifest of this backup",
        )
        .into());
    }
    Ok(())
}

/// Creates the file and hands out its chunks.
fn restore_file(
    shared: &Shared<'_>,
    manifest: &mut Books<'_>,
    batch: &mut Batch,
    path: &[u8],
    mode: u32,
    skip: bool,
) -> Result<()> {
    let file = match (skip, shared.over) {
        (true, _) => None,
        (false, false) => Some(shared.roots.create_file(path)?),
        (false, true) => Some(shared.roots.open_or_create(path)?),
    };
    let path: Arc<[u8]> = path.into();
    let mut offset = 0u64;
    while let Some(item) = manifest.next_item()? {
        match item {
            Item::Chunks(chunks) => {
                for chunk in chunks {
                    let len = chunk.len();
                    if file.is_some() && (shared.over || !chunk.parts().is_empty()) {
                        batch.push(Write1 { path: path.clone(), offset, chunk })?;
                    } else {
                        shared.ctx.progress.advance(len);
                    }
                    offset += len;
                }
            }
            Item::Pack(index, id) => {
                shared.declare(index, &id);
            }
            Item::FileEnd(end) => {
                if let Some(file) = &file {
                    let failed = |e: std::io::Error| shared.roots.error("writing", &path, e);
                    file.set_len(end.size).map_err(failed)?;
                    shared.roots.set_mode(file, &path, mode)?;
                    shared.written.fetch_add(end.size, Ordering::Relaxed);
                }
                return Ok(());
            }
            _ => {}
        }
    }
    Err(RepoError::corrupt("manifest", "ends within a file").into())
}

struct Batch {
    jobs: Sender<Vec<Write1>>,
    writes: Vec<Write1>,
    bytes: u64,
    job_bytes: u64,
}

impl Batch {
    fn push(&mut self, w: Write1) -> Result<()> {
        self.bytes += w.chunk.len();
        self.writes.push(w);
        if self.bytes >= self.job_bytes.min(JOB_BYTES) || self.writes.len() >= JOB_CHUNKS {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let writes = std::mem::take(&mut self.writes);
        // Nobody receives any more when a worker failed; its error is the one that is reported.
        if writes.is_empty() { Ok(()) } else { self.jobs.send(writes).map_err(|_| EngineError::Cancelled) }
    }
}

fn work(shared: &Shared<'_>, jobs: &Receiver<Vec<Write1>>) -> Result<()> {
    let mut worker = Worker {
        shared,
        decoder: Decoder::new()?,
        window: None,
        run: Run { file: None, offset: 0, len: 0, buffer: AlignedBuffer::new(RUN_BYTES) },
        frames: VecDeque::new(),
        scratch: vec![],
        present: vec![],
    };
    for job in jobs {
        if shared.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        shared.ctx.check_cancelled()?;
        worker.job(&job)?;
    }
    Ok(())
}

/// Neighbouring chunks of one file, put together before they are written.
struct Run {
    file: Option<(Arc<[u8]>, File)>,
    offset: u64,
    len: usize,
    buffer: AlignedBuffer,
}

impl Run {
    /// Whether a chunk of `len` bytes can be appended.
    fn continues(&self, w: &Write1, len: usize) -> bool {
        let same = self.file.as_ref().is_some_and(|(p, _)| Arc::ptr_eq(p, &w.path));
        same && self.offset + self.len as u64 == w.offset && self.len + len <= self.buffer.capacity()
    }

    fn write_out(&mut self) -> std::io::Result<()> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        let bytes = &self.buffer.bytes()[..self.len];
        let whole = self.len - self.len % ALIGNMENT;
        let aligned = self.offset.is_multiple_of(ALIGNMENT as u64);
        let mut done = 0;
        if aligned && whole >= DIRECT_BYTES && set_direct(file, true)? {
            let written = file.write_all_at(&bytes[..whole], self.offset);
            set_direct(file, false)?;
            match written {
                Ok(()) => done = whole,
                // Offered and then refused, as some file systems do: everything goes the ordinary way.
                Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {}
                Err(e) => return Err(e),
            }
        }
        file.write_all_at(&bytes[done..], self.offset + done as u64)?;
        self.offset += self.len as u64;
        self.len = 0;
        Ok(())
    }
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    decoder: Decoder,
    /// Stored bytes that were fetched together. Whole frames are decrypted in place there.
    window: Option<Window>,
    run: Run,
    /// The last frames of which chunks took a part, the latest at the end.
    frames: VecDeque<Frame>,
    scratch: Vec<u8>,
    /// What a file holds already.
    present: Vec<u8>,
}

/// A decoded frame.
struct Frame {
    pack: u32,
    offset: u64,
    id: ContentId,
    plain: Vec<u8>,
}

impl Worker<'_> {
    fn job(&mut self, job: &[Write1]) -> Result<()> {
        for (i, w) in job.iter().enumerate() {
            if self.shared.over && self.is_there(w)? {
                self.shared.unchanged.fetch_add(w.chunk.len(), Ordering::Relaxed);
                self.shared.ctx.progress.advance(w.chunk.len());
                continue;
            }
            if let Chunk::Zero(len) = w.chunk {
                self.write_zeros(w, len)?;
                continue;
            }
            let len = usize::try_from(w.chunk.len()).expect("chunks are bounded");
            if !self.run.continues(w, len) {
                self.begin_run(w)?;
            }
            self.load(w, &job[i..], self.run.len, len)?;
            self.run.len += len;
            self.shared.ctx.progress.advance(len as u64);
        }
        self.end_run()?;
        self.run.file = None;
        Ok(())
    }

    /// Whether the file has this content already. Of a chunk put together from several frames only a comparison with them
    /// can tell, so it is written again.
    fn is_there(&mut self, w: &Write1) -> Result<bool> {
        self.end_run()?;
        self.open_for(w)?;
        let Some((_, file)) = &self.run.file else { return Ok(false) };
        let failed = |e| self.shared.roots.error("reading", &w.path, e);
        match &w.chunk {
            Chunk::Patched { .. } => Ok(false),
            Chunk::Data { id, .. } => {
                let len = usize::try_from(w.chunk.len()).expect("chunks are bounded");
                self.present.resize(len, 0);
                let got = read_full(file, w.offset, &mut self.present).map_err(failed)?;
                Ok(got == len && self.shared.keys.content_id(&self.present) == *id)
            }
            Chunk::Zero(len) => {
                let (mut at, end) = (w.offset, w.offset + len);
                self.present.resize(ZEROS_BYTES, 0);
                while at < end {
                    let want = usize::try_from(end - at).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
                    let got = read_full(file, at, &mut self.present[..want]).map_err(failed)?;
                    if !is_all_zero(&self.present[..got]) {
                        return Ok(false);
                    }
                    // Beyond the end: the file is made longer, and what is new there is zero.
                    if got < want {
                        return Ok(true);
                    }
                    at += want as u64;
                }
                Ok(true)
            }
        }
    }

    fn write_zeros(&mut self, w: &Write1, len: u64) -> Result<()> {
        let Some((_, file)) = &self.run.file else { return Ok(()) };
        self.present.clear();
        self.present.resize(ZEROS_BYTES, 0);
        let mut at = w.offset;
        while at < w.offset + len {
            let want = usize::try_from(w.offset + len - at).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
            file.write_all_at(&self.present[..want], at).map_err(|e| self.shared.roots.error("writing", &w.path, e))?;
            at += want as u64;
        }
        self.shared.ctx.progress.advance(len);
        Ok(())
    }

    /// Puts a chunk's bytes, compared with the manifest, into the run at `from`.
    fn load(&mut self, w: &Write1, upcoming: &[Write1], from: usize, len: usize) -> Result<()> {
        let differs = || {
            let what = "its content is not what the manifest lists";
            EngineError::Repo(RepoError::corrupt(format!("pack data of {}", show(&w.path)), what))
        };
        let id = match &w.chunk {
            Chunk::Zero(_) => return Ok(()),
            Chunk::Patched { parts, frames } => {
                let mut at = from;
                for (p, id) in parts.iter().zip(frames) {
                    if self.load_part(p, upcoming, at)? != *id {
                        return Err(differs());
                    }
                    at += p.len as usize;
                }
                return Ok(());
            }
            Chunk::Data { id, parts } => {
                match parts.as_slice() {
                    [p] if p.skip == 0 && p.len == p.frame.plain_len => self.load_whole(p, upcoming, from)?,
                    parts => {
                        let mut at = from;
                        for p in parts {
                            self.load_part(p, upcoming, at)?;
                            at += p.len as usize;
                        }
                    }
                }
                id
            }
        };
        let bytes = &self.run.buffer.bytes()[from..from + len];
        if self.shared.keys.content_id(bytes) == *id { Ok(()) } else { Err(differs()) }
    }

    fn begin_run(&mut self, w: &Write1) -> Result<()> {
        self.end_run()?;
        self.open_for(w)?;
        self.run.offset = w.offset;
        Ok(())
    }

    fn open_for(&mut self, w: &Write1) -> Result<()> {
        if self.run.file.as_ref().is_none_or(|(p, _)| !Arc::ptr_eq(p, &w.path)) {
            let flags = if self.shared.over { OFlags::RDWR } else { OFlags::WRONLY };
            let file = self.shared.roots.open(&w.path, flags, 0);
            let file = file.map_err(|e| self.shared.roots.error("opening", &w.path, e))?;
            self.run.file = Some((w.path.clone(), file));
        }
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        let path = self.run.file.as_ref().map(|(p, _)| p.clone()).unwrap_or_default();
        self.shared.ctx.pace(self.run.len as u64);
        self.run.write_out().map_err(|e| self.shared.roots.error("writing", &path, e))
    }

    fn pack(&self, source: usize, index: u32) -> Result<Arc<PackReader>> {
        if let Some(p) = self.shared.packs.lock().expect("no thread panics with the lock").get(&(source, index)) {
            return Ok(p.clone());
        }
        let name = self.shared.pack_names.read().expect("no thread panics with the lock").get(&index).cloned();
        let name = name.ok_or_else(|| RepoError::corrupt("manifest", "an undeclared pack"))?;
        let repo = self.shared.sources.repo(source)?;
        let reader = Arc::new(PackReader::open(repo.store().clone(), repo.keys(), &name)?);
        let mut packs = self.shared.packs.lock().expect("no thread panics with the lock");
        Ok(packs.entry((source, index)).or_insert(reader).clone())
    }

    /// Runs `load` with one source after another until one has what is wanted of this pack.
    fn any_source<T>(&mut self, pack: u32, mut load: impl FnMut(&mut Self, usize) -> Result<T>) -> Result<T> {
        let sources = self.shared.sources;
        let mut failed: Option<EngineError> = None;
        for n in self.shared.order(pack) {
            match load(self, n) {
                Ok(value) => return Ok(value),
                Err(e) if sources.passes(n, &e) => {
                    self.window = None;
                    self.shared.bad.lock().expect("no thread panics with the lock").insert((n, pack));
                    // Damage says more than silence: an older backup may do instead.
                    if failed.as_ref().is_none_or(|f| !f.is_damage() && e.is_damage()) {
                        failed = Some(sources.named(n, e));
                    }
                }
                Err(e) => return Err(sources.named(n, e)),
            }
        }
        Err(failed.unwrap_or(EngineError::Cancelled))
    }

    /// Decodes a whole frame into the run at `to`.
    fn load_whole(&mut self, part: &Part, upcoming: &[Write1], to: usize) -> Result<()> {
        let at = part.frame;
        self.any_source(part.pack, |worker, source| {
            let pack = worker.pack(source, part.pack)?;
            let stored = fetch(&mut worker.window, source, &pack, part, parts_of(upcoming), Use::InPlace)?;
            let plain = &mut worker.run.buffer.bytes_mut()[to..to + at.plain_len as usize];
            Ok(pack.decode_into(&at, stored, &mut worker.decoder, plain)?)
        })
    }

    /// Copies a part of a frame into the run at `to` and returns the content id of the frame, which is kept for the
    /// chunks that take other parts of it.
    fn load_part(&mut self, part: &Part, upcoming: &[Write1], to: usize) -> Result<ContentId> {
        let at = part.frame;
        let kept = self.frames.iter().position(|f| (f.pack, f.offset) == (part.pack, at.offset));
        let frame = match kept.and_then(|i| self.frames.remove(i)) {
            Some(frame) => frame,
            None => {
                let mut plain = match self.frames.len() {
                    FRAMES_KEPT.. => self.frames.pop_front().map(|f| f.plain).unwrap_or_default(),
                    _ => vec![],
                };
                self.any_source(part.pack, |worker, source| {
                    let pack = worker.pack(source, part.pack)?;
                    worker.scratch.clear();
                    worker.scratch.extend_from_slice(fetch(
                        &mut worker.window,
                        source,
                        &pack,
                        part,
                        parts_of(upcoming),
                        Use::Copy,
                    )?);
                    Ok(pack.decode(&at, &mut worker.scratch, &mut worker.decoder, &mut plain)?)
                })?;
                let id = self.shared.keys.content_id(&plain);
                Frame { pack: part.pack, offset: at.offset, id, plain }
            }
        };
        let (from, len) = (part.skip as usize, part.len as usize);
        let bytes = frame.plain.get(from..from + len);
        let bytes = bytes.ok_or_else(|| RepoError::corrupt("manifest", "a part beyond its frame"))?;
        self.run.buffer.bytes_mut()[to..to + len].copy_from_slice(bytes);
        let id = frame.id;
        self.frames.push_back(frame);
        Ok(id)
    }
}

fn parts_of(writes: &[Write1]) -> impl Iterator<Item = &Part> {
    writes.iter().flat_map(|w| w.chunk.parts())
}
