//! Writing a backup's files. Everything is opened relative to the target without following links, and
//! `pg_control` appears last: until then PostgreSQL refuses to start on the directory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use pgark_pg::control::ControlFile;
use pgark_pg::exclude::required_dirs;
use pgark_repo::codec::Decoder;
use pgark_repo::manifest::{Chunk, Item, ManifestReader, PackId, Part};
use pgark_repo::names::ClusterName;
use pgark_repo::pack::{FrameAt, PackReader};
use pgark_repo::record::{BackupRecord, manifest_reader};
use pgark_repo::store::ObjectName;
use pgark_repo::{RepoError, Repository, names};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::settings::{RESTORE_FILE, RestoreFile, auto_conf};
use super::space::PlacedTablespace;
use super::{RestoreOptions, RestorePlan, RestoreReport};
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Present while a restore is under way; says which tablespaces are part of it.
pub const INCOMPLETE: &str = "pgark-restore.incomplete";
/// Plain bytes one worker takes at a time, and chunks at most.
const JOB_BYTES: u64 = 4 * 1024 * 1024;
const JOB_CHUNKS: usize = 64;
/// Stored bytes fetched by one read.
const FETCH_BYTES: usize = 8 * 1024 * 1024;

const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
/// Of the source's own past; they would change what the restored server does.
const SKIPPED: [&[u8]; 2] = [b"standby.signal", b"recovery.signal"];

pub fn run(
    options: &RestoreOptions,
    plan: &RestorePlan,
    places: &[PlacedTablespace],
    repo: &Repository,
    ctx: &Ctx,
) -> Result<RestoreReport> {
    let roots = Roots::create(&options.to, places, &plan.record)?;
    ctx.progress.begin("restore", Some(plan.record.totals.size_bytes));
    let mut report = write_files(options, plan, repo, ctx, &roots)?;
    ctx.progress.end();
    roots.link_tablespaces(places)?;
    for dir in required_dirs(major(&plan.record)?) {
        roots.make_dir(dir.as_bytes(), 0o700)?;
    }
    write_settings(options, plan, repo, &roots)?;
    ctx.progress.note("waiting for the disk");
    roots.sync()?;
    complete(plan, &roots)?;
    report.bytes_restored += plan.record.pg_control.len() as u64;
    Ok(report)
}

/// Whether the directory holds the remains of a restore that did not finish, and nothing that was ever started.
/// Returns the tablespace directories that were part of it.
pub fn unfinished(to: &Path) -> Option<Vec<PathBuf>> {
    let marker = fs::read(to.join(INCOMPLETE)).ok()?;
    let locations: Vec<PathBuf> = serde_json::from_slice(&marker).ok()?;
    let never_started = match fs::read(to.join("global/pg_control")) {
        Ok(bytes) => ControlFile::parse(&bytes).is_ok_and(|c| c.is_poisoned()),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    never_started.then_some(locations)
}

/// Empties a directory without following links.
pub fn empty_dir(path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| EngineError::file("removing the remains of a restore from", path, e);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let mut marker = None;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == INCOMPLETE {
            marker = Some(entry.path());
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        } else {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    // Last, so that an interruption leaves what can be recognised again.
    marker.map_or(Ok(()), fs::remove_file).map_err(failed)
}

fn major(record: &BackupRecord) -> Result<pgark_pg::Major> {
    pgark_pg::Major::from_version_num(record.version_num).ok_or_else(|| {
        EngineError::failed("E-PG-UNSUPPORTED", format!("the backup is of PostgreSQL {}", record.version_num), "use a newer pgark")
    })
}

/// The directories that are written to, held open.
struct Roots {
    path: PathBuf,
    main: OwnedFd,
    tablespaces: HashMap<u32, (PathBuf, OwnedFd)>,
    owner: Option<(u32, u32)>,
}

impl Roots {
    fn create(to: &Path, places: &[PlacedTablespace], record: &BackupRecord) -> Result<Self> {
        let owner = owner_for_root(to, record);
        let main = open_root(to, record.owner.mode, owner)?;
        let mut roots = Roots { path: to.to_owned(), main, tablespaces: HashMap::new(), owner };
        let locations: Vec<&Path> = places.iter().map(|p| p.location.as_path()).collect();
        let marker = serde_json::to_vec(&locations).map_err(|e| {
            EngineError::failed("E-TABLESPACE-PATH", format!("a tablespace path is not valid UTF-8: {e}"), "map it with --tablespace-map")
        })?;
        roots.write_file(INCOMPLETE.as_bytes(), &marker, 0o600)?;
        rustix::fs::fsync(&roots.main).map_err(|e| EngineError::file("syncing", to, e))?;
        for p in places {
            let fd = open_root(&p.location, 0o700, owner)?;
            roots.tablespaces.insert(p.oid, (p.location.clone(), fd));
        }
        Ok(roots)
    }

    /// The directory that holds `path`, and the path from there.
    fn locate<'p>(&self, path: &'p [u8]) -> (BorrowedFd<'_>, &'p [u8]) {
        let below = path.strip_prefix(b"pg_tblspc/").and_then(|rest| {
            let cut = rest.iter().position(|b| *b == b'/')?;
            let oid: u32 = std::str::from_utf8(&rest[..cut]).ok()?.parse().ok()?;
            let (_, fd) = self.tablespaces.get(&oid)?;
            Some((fd.as_fd(), &rest[cut + 1..]))
        });
        below.unwrap_or((self.main.as_fd(), path))
    }

    fn error(&self, what: &'static str, path: &[u8], e: impl Into<std::io::Error>) -> EngineError {
        EngineError::file(what, self.path.join(show(path)), e)
    }

    fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> std::io::Result<File> {
        let (root, rel) = self.locate(path);
        Ok(File::from(open_beneath(root, rel, flags, Mode::from_raw_mode(mode))?))
    }

    fn create_file(&self, path: &[u8]) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.open(path, flags, 0o600).map_err(|e| self.error("creating", path, e))
    }

    fn set_mode(&self, file: &File, path: &[u8], mode: u32) -> Result<()> {
        let failed = |e: rustix::io::Errno| self.error("setting the attributes of", path, e);
        // Neither set-id bits nor access for others belong into a data directory.
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o750)).map_err(failed)?;
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        }
        Ok(())
    }

    fn write_file(&self, path: &[u8], content: &[u8], mode: u32) -> Result<()> {
        let mut file = self.create_file(path)?;
        file.write_all(content).map_err(|e| self.error("writing", path, e))?;
        self.set_mode(&file, path, mode)
    }

    fn make_dir(&self, path: &[u8], mode: u32) -> Result<()> {
        let (root, rel) = self.locate(path);
        let failed = |e: rustix::io::Errno| self.error("creating the directory", path, e);
        let (parent, name) = match rel.iter().rposition(|b| *b == b'/') {
            Some(i) => (open_beneath(root, &rel[..i], OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()), &rel[i + 1..]),
            None => (open_beneath(root, b".", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()), rel),
        };
        let parent = parent.map_err(|e| self.error("creating the directory", path, e))?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let dir = open_beneath(parent.as_fd(), name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
            .map_err(|e| self.error("creating the directory", path, e))?;
        self.set_mode(&File::from(dir), path, mode | 0o700)
    }

    fn link_tablespaces(&self, places: &[PlacedTablespace]) -> Result<()> {
        for p in places {
            let path = format!("pg_tblspc/{}", p.oid);
            let failed = |e: rustix::io::Errno| self.error("linking the tablespace", path.as_bytes(), e);
            let dir = open_beneath(self.main.as_fd(), b"pg_tblspc", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
                .map_err(|e| self.error("linking the tablespace", path.as_bytes(), e))?;
            let name = p.oid.to_string();
            // The backup lists the link's place as a directory; it was made empty.
            match rustix::fs::unlinkat(&dir, &*name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(failed(e)),
            }
            rustix::fs::symlinkat(&p.location, &dir, &*name).map_err(failed)?;
        }
        Ok(())
    }

    /// Everything written so far is on the disk, or this fails.
    fn sync(&self) -> Result<()> {
        let all = self.tablespaces.values().map(|(p, fd)| (p, fd)).chain([(&self.path, &self.main)]);
        for (path, fd) in all {
            rustix::fs::syncfs(fd).map_err(|e| EngineError::file("syncing", path, e))?;
        }
        Ok(())
    }
}

/// Who will own the files when root restores: whoever owns the directory, or did when it was backed up.
fn owner_for_root(to: &Path, record: &BackupRecord) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let existing = fs::metadata(to).ok().map(|m| (m.uid(), m.gid())).filter(|(uid, _)| *uid != 0);
    Some(existing.unwrap_or((record.owner.uid, record.owner.gid)))
}

fn open_root(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| EngineError::file("preparing", path, e);
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode((mode & 0o750) | 0o700)).map_err(failed)?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(fd)
}

fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags, mode, resolve) {
            // The kernel could not be sure that nobody renamed a directory meanwhile.
            Err(rustix::io::Errno::AGAIN) => {}
            Err(rustix::io::Errno::NOSYS) => return open_step_by_step(root, path, flags, mode),
            other => return Ok(other?),
        }
    }
}

/// For kernels before 5.6: each part opened without following a link. Paths have no `..`: manifests are checked.
fn open_step_by_step(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> std::io::Result<OwnedFd> {
    let dir_flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.split(|b| *b == b'/').peekable();
    while let Some(part) = parts.next() {
        let here = at.as_ref().map_or(root, |fd| fd.as_fd());
        let next = if parts.peek().is_some() {
            rustix::fs::openat(here, part, dir_flags, Mode::empty())?
        } else {
            rustix::fs::openat(here, part, flags, mode)?
        };
        at = Some(next);
    }
    at.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))
}

/// One chunk and where it goes.
struct Write1 {
    path: Arc<[u8]>,
    offset: u64,
    chunk: Chunk,
}

struct Shared<'a> {
    repo: &'a Repository,
    cluster: &'a ClusterName,
    ctx: &'a Ctx,
    roots: &'a Roots,
    pack_names: RwLock<HashMap<u32, ObjectName>>,
    packs: Mutex<HashMap<u32, Arc<PackReader>>>,
    written: AtomicU64,
    stop: AtomicBool,
}

impl Shared<'_> {
    fn declare(&self, index: u32, id: &PackId) {
        let name = names::pack(self.cluster, &id.backup, id.number);
        self.pack_names.write().expect("no thread panics with the lock").insert(index, name);
    }
}

fn write_files(
    options: &RestoreOptions,
    plan: &RestorePlan,
    repo: &Repository,
    ctx: &Ctx,
    roots: &Roots,
) -> Result<RestoreReport> {
    let shared = Shared {
        repo,
        cluster: &options.cluster,
        ctx,
        roots,
        pack_names: RwLock::default(),
        packs: Mutex::default(),
        written: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let jobs = options.jobs.max(1);
    let (tx, rx) = bounded::<Vec<Write1>>(2 * jobs);
    let mut report = RestoreReport { bytes_restored: 0, files: 0, warnings: vec![] };
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                let rx = rx.clone();
                let shared = &shared;
                scope.spawn(move || work(shared, &rx).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed)))
            })
            .collect();
        drop(rx);
        let streamed = stream_manifest(&shared, plan, tx, &mut report);
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
    Ok(report)
}

fn stream_manifest(
    shared: &Shared<'_>,
    plan: &RestorePlan,
    jobs: Sender<Vec<Write1>>,
    report: &mut RestoreReport,
) -> Result<()> {
    let mut manifest = manifest_reader(shared.repo, shared.cluster, &plan.backup.id)?;
    let mut batch = Batch { jobs, writes: vec![], bytes: 0 };
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
            Item::Chunks(_) | Item::FileEnd(_) => unreachable!("consumed with their file; the reader checks the order"),
        }
    }
    batch.flush()?;
    if manifest.fingerprint() != plan.record.manifest {
        return Err(RepoError::corrupt(names::manifest(shared.cluster, &plan.backup.id), "not the manifest of this backup").into());
    }
    Ok(())
}

/// Creates the file and hands out its chunks.
fn restore_file(
    shared: &Shared<'_>,
    manifest: &mut ManifestReader,
    batch: &mut Batch,
    path: &[u8],
    mode: u32,
    skip: bool,
) -> Result<()> {
    let file = if skip { None } else { Some(shared.roots.create_file(path)?) };
    let path: Arc<[u8]> = path.into();
    let mut offset = 0u64;
    while let Some(item) = manifest.next_item()? {
        match item {
            Item::Chunks(chunks) => {
                for chunk in chunks {
                    let len = chunk.len();
                    if file.is_some() && matches!(chunk, Chunk::Data { .. }) {
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
}

impl Batch {
    fn push(&mut self, w: Write1) -> Result<()> {
        self.bytes += w.chunk.len();
        self.writes.push(w);
        if self.bytes >= JOB_BYTES || self.writes.len() >= JOB_CHUNKS { self.flush() } else { Ok(()) }
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
        plain: vec![],
        bundle: None,
        scratch: vec![],
        chunk: vec![],
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

struct Worker<'a> {
    shared: &'a Shared<'a>,
    decoder: Decoder,
    /// Stored bytes that were fetched together: pack, offset, bytes. Whole frames are decrypted in place there,
    /// each once.
    window: Option<(u32, u64, Vec<u8>)>,
    plain: Vec<u8>,
    /// The last frame of which several chunks take a part: pack, offset, plaintext.
    bundle: Option<(u32, u64, Vec<u8>)>,
    scratch: Vec<u8>,
    chunk: Vec<u8>,
}

impl Worker<'_> {
    fn job(&mut self, job: &[Write1]) -> Result<()> {
        let mut open: Option<(Arc<[u8]>, File)> = None;
        for (i, w) in job.iter().enumerate() {
            if open.as_ref().is_none_or(|(p, _)| !Arc::ptr_eq(p, &w.path)) {
                let file = self.shared.roots.open(&w.path, OFlags::WRONLY, 0);
                open = Some((w.path.clone(), file.map_err(|e| self.shared.roots.error("opening", &w.path, e))?));
            }
            let Chunk::Data { id, parts } = &w.chunk else { continue };
            let Some((_, file)) = &open else { continue };
            let whole = match parts.as_slice() {
                [p] if p.skip == 0 && p.len == p.frame.plain_len => Some(p),
                _ => None,
            };
            self.chunk.clear();
            if let Some(p) = whole {
                self.load_whole(p, &job[i..])?;
            } else {
                for p in parts {
                    self.append_part(p, &job[i..])?;
                }
            }
            let bytes = if whole.is_some() { &self.plain } else { &self.chunk };
            if self.shared.repo.keys().content_id(bytes) != *id {
                let what = "its content is not what the manifest lists";
                return Err(RepoError::corrupt(format!("pack data of {}", show(&w.path)), what).into());
            }
            file.write_all_at(bytes, w.offset).map_err(|e| self.shared.roots.error("writing", &w.path, e))?;
            self.shared.ctx.progress.advance(bytes.len() as u64);
        }
        Ok(())
    }

    fn pack(&self, index: u32) -> Result<Arc<PackReader>> {
        if let Some(p) = self.shared.packs.lock().expect("no thread panics with the lock").get(&index) {
            return Ok(p.clone());
        }
        let name = self.shared.pack_names.read().expect("no thread panics with the lock").get(&index).cloned();
        let name = name.ok_or_else(|| RepoError::corrupt("manifest", "an undeclared pack"))?;
        let reader = Arc::new(PackReader::open(self.shared.repo.store().clone(), self.shared.repo.keys(), &name)?);
        let mut packs = self.shared.packs.lock().expect("no thread panics with the lock");
        Ok(packs.entry(index).or_insert(reader).clone())
    }

    /// Brings a frame's plaintext into `plain`.
    fn load_whole(&mut self, part: &Part, upcoming: &[Write1]) -> Result<()> {
        let at = part.frame;
        let pack = self.pack(part.pack)?;
        let stored = fetch(&mut self.window, &pack, part, upcoming)?;
        Ok(pack.decode(&at, stored, &mut self.decoder, &mut self.plain)?)
    }

    /// Appends a part of a frame to `chunk`; the frame is kept for the chunks that take other parts of it.
    fn append_part(&mut self, part: &Part, upcoming: &[Write1]) -> Result<()> {
        let at = part.frame;
        if !self.bundle.as_ref().is_some_and(|(p, o, _)| (*p, *o) == (part.pack, at.offset)) {
            let pack = self.pack(part.pack)?;
            self.scratch.clear();
            self.scratch.extend_from_slice(fetch(&mut self.window, &pack, part, upcoming)?);
            let mut plain = self.bundle.take().map(|b| b.2).unwrap_or_default();
            pack.decode(&at, &mut self.scratch, &mut self.decoder, &mut plain)?;
            self.bundle = Some((part.pack, at.offset, plain));
        }
        let (from, to) = (part.skip as usize, part.skip as usize + part.len as usize);
        let bytes = self.bundle.as_ref().and_then(|(_, _, plain)| plain.get(from..to));
        self.chunk.extend_from_slice(bytes.ok_or_else(|| RepoError::corrupt("manifest", "a part beyond its frame"))?);
        Ok(())
    }
}

/// The stored bytes of a frame, from what was fetched or by fetching the frames that follow it along with it.
fn fetch<'w>(
    window: &'w mut Option<(u32, u64, Vec<u8>)>,
    pack: &PackReader,
    part: &Part,
    upcoming: &[Write1],
) -> Result<&'w mut [u8]> {
    let at = part.frame;
    if !window_holds(window.as_ref(), part.pack, &at) {
        let len = contiguous(part, upcoming);
        let mut bytes = window.take().map(|(_, _, b)| b).unwrap_or_default();
        pack.fetch(at.offset, len, &mut bytes)?;
        *window = Some((part.pack, at.offset, bytes));
    }
    let missing = || RepoError::corrupt(pack.name(), "a frame outside of what was fetched");
    let (_, start, bytes) = window.as_mut().ok_or_else(missing)?;
    let from = usize::try_from(at.offset - *start).map_err(|_| missing())?;
    Ok(bytes.get_mut(from..from + at.stored_len as usize).ok_or_else(missing)?)
}

fn window_holds(window: Option<&(u32, u64, Vec<u8>)>, pack: u32, at: &FrameAt) -> bool {
    window.is_some_and(|(p, start, bytes)| {
        *p == pack && at.offset >= *start && at.offset + u64::from(at.stored_len) <= start + bytes.len() as u64
    })
}

/// Stored bytes from this part on that belong to the coming chunks and lie side by side. Frames in the window are
/// decrypted in place, so each is used once from it.
fn contiguous(part: &Part, upcoming: &[Write1]) -> usize {
    let mut end = part.frame.offset + u64::from(part.frame.stored_len);
    let mut len = part.frame.stored_len as usize;
    for p in upcoming.iter().flat_map(|w| w.chunk.parts()) {
        if p.pack == part.pack && p.frame.offset == end && len + p.frame.stored_len as usize <= FETCH_BYTES {
            end += u64::from(p.frame.stored_len);
            len += p.frame.stored_len as usize;
        }
    }
    len
}

fn write_settings(options: &RestoreOptions, plan: &RestorePlan, repo: &Repository, roots: &Roots) -> Result<()> {
    let mut original = vec![];
    match roots.open(AUTO_CONF, OFlags::RDONLY, 0) {
        Ok(mut f) => drop(f.read_to_end(&mut original).map_err(|e| roots.error("reading", AUTO_CONF, e))?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(roots.error("reading", AUTO_CONF, e)),
    }
    let content = auto_conf(&original, options, plan)?;
    roots.replace(AUTO_CONF, &content)?;
    roots.write_file(b"recovery.signal", b"", 0o600)?;
    roots.write_file(b"backup_label", &plan.record.backup_label, 0o600)?;
    let file = RestoreFile::new(plan, &options.cluster, repo.store().url(), repo.keys());
    roots.write_file(RESTORE_FILE.as_bytes(), &file.to_bytes(), 0o600)?;
    for config in &plan.record.config_files {
        let there = roots.open(config.name.as_bytes(), OFlags::RDONLY, 0).is_ok();
        if !there && ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].contains(&config.name.as_str()) {
            roots.write_file(config.name.as_bytes(), &local_config(&config.name, &config.content), 0o600)?;
        }
    }
    Ok(())
}

/// A configuration that lay elsewhere names files elsewhere: those settings must not act here.
fn local_config(name: &str, content: &[u8]) -> Vec<u8> {
    let mut out = content.to_vec();
    if name == "postgresql.conf" {
        out.extend_from_slice(
            b"\n# Set by pgark restore: this file lay outside the data directory.\n\
              hba_file = ''\nident_file = ''\nexternal_pid_file = ''\n",
        );
    }
    out
}

impl Roots {
    /// Replaces a file that the backup brought.
    fn replace(&self, path: &[u8], content: &[u8]) -> Result<()> {
        let (root, rel) = self.locate(path);
        match rustix::fs::unlinkat(root, rel, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => self.write_file(path, content, 0o600),
            Err(e) => Err(self.error("replacing", path, e)),
        }
    }
}

/// The moment at which the directory becomes a cluster. The checkpoint in `pg_control` is made invalid: only
/// `backup_label` knows where recovery must begin, and without it PostgreSQL must not start.
fn complete(plan: &RestorePlan, roots: &Roots) -> Result<()> {
    let control = ControlFile::poison(&plan.record.pg_control)
        .map_err(|e| RepoError::corrupt(names::record(&plan.record.cluster, &plan.backup.id), e))?;
    let temp: &[u8] = b"global/pg_control.pgark-tmp";
    let path: &[u8] = b"global/pg_control";
    roots.write_file(temp, &control, 0o600)?;
    let failed = |e: rustix::io::Errno| roots.error("writing", path, e);
    let file = roots.open(temp, OFlags::RDONLY, 0).map_err(|e| roots.error("writing", path, e))?;
    rustix::fs::fsync(&file).map_err(failed)?;
    let global = open_beneath(roots.main.as_fd(), b"global", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
        .map_err(|e| roots.error("writing", path, e))?;
    rustix::fs::renameat(&global, "pg_control.pgark-tmp", &global, "pg_control").map_err(failed)?;
    rustix::fs::fsync(&global).map_err(failed)?;
    rustix::fs::unlinkat(&roots.main, INCOMPLETE, AtFlags::empty()).map_err(failed)?;
    rustix::fs::fsync(&roots.main).map_err(failed)
}
