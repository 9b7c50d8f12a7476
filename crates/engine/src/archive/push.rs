//! `archive_command`: one WAL file into the repository. PostgreSQL forgets the file once we say yes, so yes is
//! said last.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use crossbeam_channel::{Sender, bounded};

use pgark_pg::names::{RawSegment, WalFileName};
use pgark_pg::value::{Lsn, SegmentName, SegmentSize, SystemId};
use pgark_pg::wal::{Changes, SegmentExpect, WAL_PAGE_SIZE, Walker};
use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore, Lineage};
use pgark_repo::codec::{Compression, Encoder};
use pgark_repo::limits::{BLOCK_BYTES, SIDE_FILE_BYTES_MAX};
use pgark_repo::names::ClusterName;
use pgark_repo::wal::{EncodedBlock, Pushed, SegmentData, WalArchive, WalIndex};

use super::ahead::Ahead;
use crate::error::{EngineError, Result};

/// Bytes of the first page that tell which cluster's WAL a file is.
const LONG_HEADER_BYTES: usize = 40;
/// Larger segments are read from their file each time they are needed.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Blocks of a segment that is kept in memory.
const BLOCKS_MAX: usize = MEMORY_BYTES_MAX as usize / BLOCK_BYTES;

#[derive(Clone, Debug)]
pub struct PushReport {
    pub file: String,
    pub outcome: Pushed,
}

/// Whether a segment with a damaged place in its middle is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damaged {
    Refuse,
    Accept,
}

/// What `archive_command` was called with, and how.
pub struct PushOptions<'a> {
    pub path: &'a Path,
    pub compression: Compression,
    pub damaged: Damaged,
    pub jobs: usize,
    /// None: this file and no other.
    pub ahead: Option<Ahead>,
}

pub fn push(repo: &Repository, cluster: &ClusterName, options: &PushOptions<'_>) -> Result<PushReport> {
    let path = options.path;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let parsed = super::parse_name(&name)?;
    let catalog = CatalogStore::new(repo, cluster).read()?;
    let outcome = match &parsed {
        WalFileName::Segment(raw) => segment(repo, &catalog, raw, options)?,
        WalFileName::Partial(raw) => {
            let mut memory = vec![];
            let mut prepared = prepare(&catalog, path, raw, options.compression, 1, &mut memory)?;
            let archive = archive(repo, &catalog, &prepared, options);
            let Prepared { index, data, .. } = &mut prepared;
            archive.push_partial(index, &mut data.borrow())?
        }
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => side_file(repo, &catalog, path, &parsed)?,
    };
    Ok(PushReport { file: name, outcome })
}

fn archive(repo: &Repository, catalog: &Catalog, of: &Prepared<'_>, options: &PushOptions<'_>) -> WalArchive {
    WalArchive::new(repo, &catalog.cluster, of.index.system_id).with_compression(options.compression)
}

fn segment(repo: &Repository, catalog: &Catalog, raw: &RawSegment, options: &PushOptions<'_>) -> Result<Pushed> {
    let Some(ahead) = &options.ahead else {
        let mut memory = vec![];
        let mut prepared = prepare(catalog, options.path, raw, options.compression, options.jobs, &mut memory)?;
        let archive = archive(repo, catalog, &prepared, options);
        if archive.is_archived(&archive.head()?, &prepared.index)? {
            return Ok(Pushed::AlreadyThere);
        }
        let (pushed, copy) = store(&archive, options.path, &mut prepared, options.damaged)?;
        archive.acknowledge(&[(prepared.index.segment_name(), copy)])?;
        return Ok(pushed);
    };
    let lineage = catalog.lineage().ok_or_else(|| not_wal(options.path, "no cluster is registered"))?;
    let archive = WalArchive::new(repo, &catalog.cluster, lineage.system_id).with_compression(options.compression);
    let head = archive.head()?;
    if ahead.has(options.path) {
        let name = segment_name(raw, lineage, options.path)?;
        if head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)) {
            return Ok(Pushed::AlreadyThere);
        }
    }
    let push_one = |path: &Path, raw: &RawSegment, threads: usize, memory: &mut Vec<u8>| {
        let mut prepared = prepare(catalog, path, raw, options.compression, threads, memory)?;
        let name = prepared.index.segment_name();
        if archive.is_archived(&head, &prepared.index)? {
            return Ok((Pushed::AlreadyThere, (name, head.copy_of(&name))));
        }
        let (pushed, copy) = store(&archive, path, &mut prepared, options.damaged)?;
        Ok((pushed, (name, copy)))
    };
    ahead.push(options.path, raw, options.jobs, &push_one, &|done| Ok(archive.acknowledge(done)?))
}

/// A WAL file that is what its name says, with its index.
struct Prepared<'a> {
    index: WalIndex,
    changes: Changes,
    data: Held<'a>,
}

/// Where a segment's bytes are meanwhile.
enum Held<'a> {
    Memory(Vec<EncodedBlock<'a>>),
    /// A segment too large for that.
    File(File),
}

impl Held<'_> {
    fn borrow(&mut self) -> SegmentData<'_> {
        match self {
            Held::Memory(blocks) => SegmentData::Encoded(blocks),
            Held::File(file) => SegmentData::File(file),
        }
    }
}

fn segment_name(raw: &RawSegment, lineage: &Lineage, path: &Path) -> Result<SegmentName> {
    let segment = raw.number(lineage.segment_size).map_err(|e| {
        EngineError::failed(
            "E-WAL-NAME",
            format!("{}: {e}", path.display()),
            "is the wal segment size of the cluster right?",
        )
    })?;
    Ok(SegmentName { timeline: raw.timeline, segment })
}

/// Reads and checks the file; `threads` compress what was read meanwhile.
fn prepare<'a>(
    catalog: &Catalog,
    path: &Path,
    raw: &RawSegment,
    compression: Compression,
    threads: usize,
    memory: &'a mut Vec<u8>,
) -> Result<Prepared<'a>> {
    let mut file = open(path)?;
    let lineage = lineage_of(catalog, &mut file, path)?;
    let name = segment_name(raw, lineage, path)?;
    let (size, system_id) = (lineage.segment_size, lineage.system_id);
    if size.bytes() > MEMORY_BYTES_MAX {
        let (index, changes) = index_segment(&mut SegmentData::File(&mut file), path, &name, size, system_id)?;
        return Ok(Prepared { index, changes, data: Held::File(file) });
    }
    memory.resize(usize::try_from(size.bytes()).expect("compared with a limit"), 0);
    let (to_encode, work) = bounded::<(usize, &'a [u8])>(BLOCKS_MAX);
    let encoded: Mutex<Vec<(usize, EncodedBlock<'a>)>> = Mutex::default();
    let encode = || -> Result<()> {
        let mut encoder = Encoder::new(compression)?;
        let mut scratch = vec![];
        for (n, plain) in &work {
            let codec = encoder.encode(plain, &mut scratch)?;
            let block = EncodedBlock { plain, codec, encoded: scratch.clone() };
            encoded.lock().expect("no thread panics with the lock").push((n, block));
        }
        Ok(())
    };
    let indexed = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(encode)).collect();
        let read = read_blocks(&mut file, path, memory, &to_encode);
        let indexed = read.and_then(|mut blocks| {
            index_segment_of(&mut |take| blocks.try_for_each(|b| take(b?)), path, &name, size, system_id)
        });
        drop(to_encode);
        let mut outcome = encode();
        for h in helpers {
            outcome = outcome.and(h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcome.and(indexed)
    });
    let (mut index, changes) = indexed?;
    let mut blocks = encoded.into_inner().expect("the threads are gone");
    blocks.sort_unstable_by_key(|(n, _)| *n);
    let blocks: Vec<EncodedBlock<'a>> = blocks.into_iter().map(|(_, block)| block).collect();
    hash_valid(&mut index, &mut SegmentData::Encoded(&blocks))?;
    Ok(Prepared { index, changes, data: Held::Memory(blocks) })
}

/// Reads a file of exactly `memory`'s length in blocks, each handed to whoever compresses as soon as it is there.
fn read_blocks<'a, 'f>(
    file: &'f mut File,
    path: &'f Path,
    memory: &'a mut [u8],
    to_encode: &'f Sender<(usize, &'a [u8])>,
) -> Result<impl Iterator<Item = Result<&'a [u8]>> + use<'a, 'f>> {
    let found = file.metadata().map_err(|e| EngineError::file("looking at", path, e))?.len();
    if found != memory.len() as u64 {
        return Err(not_wal(path, &format!("it has {found} bytes instead of {}", memory.len())));
    }
    Ok(memory.chunks_mut(BLOCK_BYTES).enumerate().map(move |(n, block)| {
        file.read_exact(block).map_err(|e| EngineError::file("reading", path, e))?;
        let block: &'a [u8] = block;
        to_encode.send((n, block)).expect("the receiver outlives the reading");
        Ok(block)
    }))
}

/// Durable when it returns; not yet acknowledged.
fn store(archive: &WalArchive, path: &Path, prepared: &mut Prepared<'_>, damaged: Damaged) -> Result<(Pushed, u32)> {
    let Prepared { index, changes, data } = prepared;
    if let Some(later) = index.wal_after_end
        && damaged == Damaged::Refuse
    {
        return Err(broken(path, index, later));
    }
    match archive.push_segment(index, changes, &mut data.borrow()) {
        Err(e @ RepoError::Conflict { .. }) => Err(keep_evidence(archive, path, index, &mut data.borrow(), e)),
        other => Ok(other?),
    }
}

/// Opens what should be an ordinary file; a pipe under its name must not make us wait.
fn open(path: &Path) -> Result<File> {
    let failed = |e| EngineError::file("opening", path, e);
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() { Ok(file) } else { Err(not_wal(path, "it is not an ordinary file")) }
}

/// WAL that PostgreSQL wrote, and that nobody can replay past the damage.
fn broken(path: &Path, index: &WalIndex, later: Lsn) -> EngineError {
    EngineError::refused(
        "E-WAL-DAMAGED",
        format!(
            "{}: its records end at {}, and WAL goes on at {later}: what lies between is damaged",
            path.display(),
            index.valid_end
        ),
        "recovery cannot pass this place. Is there a good copy, on a standby perhaps? Archive that one. If not: \
         'pgark archive-push --accept-damaged PATH' lets archiving go on; then take a backup at once",
    )
}

fn rewind(file: &mut File, path: &Path) -> Result<()> {
    file.seek(SeekFrom::Start(0)).map(drop).map_err(|e| EngineError::file("reading", path, e))
}

/// Other WAL of the same name is there: the first one stays, ours is put aside, and the answer is no.
fn keep_evidence(
    archive: &WalArchive,
    path: &Path,
    index: &WalIndex,
    data: &mut SegmentData<'_>,
    conflict: RepoError,
) -> EngineError {
    let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or("segment");
    match archive.keep_conflict(file_name, index, data) {
        Ok(object) => {
            tracing::error!(%object, "two different wal segments have the same name; the second is kept as evidence")
        }
        Err(e) => tracing::error!(%e, "the conflicting wal segment could not be kept as evidence"),
    }
    conflict.into()
}

/// The lineage a WAL file belongs to, by the system identifier in its first page.
fn lineage_of<'a>(catalog: &'a Catalog, file: &mut File, path: &Path) -> Result<&'a Lineage> {
    let mut header = [0u8; LONG_HEADER_BYTES];
    file.read_exact(&mut header).map_err(|_| not_wal(path, "it is shorter than a page header"))?;
    rewind(file, path)?;
    let found = system_id(&header).ok_or_else(|| not_wal(path, "its first page has no system identifier"))?;
    let current = catalog.lineage().ok_or_else(|| not_wal(path, "no cluster is registered"))?;
    if found == current.system_id {
        return Ok(current);
    }
    Err(EngineError::refused(
        "E-WAL-SYSTEM",
        format!(
            "{} is of the cluster with system identifier {found}; '{}' is {}",
            path.display(),
            catalog.cluster,
            current.system_id
        ),
        "is another server archiving under this name? after an upgrade, 'pgark init --adopt' registers the new cluster",
    ))
}

/// `xlp_sysid` of a long page header (XLogLongPageHeaderData in access/xlog_internal.h).
fn system_id(header: &[u8; LONG_HEADER_BYTES]) -> Option<SystemId> {
    const XLP_LONG_HEADER: u8 = 0x02;
    let bytes: [u8; 8] = header.get(24..32)?.try_into().ok()?;
    (header.get(2)? & XLP_LONG_HEADER != 0).then(|| SystemId(u64::from_le_bytes(bytes)))
}

fn not_wal(path: &Path, why: &str) -> EngineError {
    EngineError::refused(
        "E-WAL-INVALID",
        format!("{} is not a wal segment of this cluster: {why}", path.display()),
        "PostgreSQL must pass %p; a damaged segment in pg_wal means that the server's disk is failing",
    )
}

/// Walks the segment once: checks that it is what its name says, makes its index, and notes the blocks it changes.
pub fn index_segment(
    data: &mut SegmentData<'_>,
    path: &Path,
    name: &SegmentName,
    size: SegmentSize,
    system_id: SystemId,
) -> Result<(WalIndex, Changes)> {
    let (mut index, changes) = index_segment_of(&mut |take| data.each(u64::MAX, take), path, name, size, system_id)?;
    hash_valid(&mut index, data)?;
    Ok((index, changes))
}

/// Calls its argument with each block of a segment.
type EachBlock<'a> = dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a;

/// As `index_segment`, but `valid_content` is not yet right where the valid WAL ends before the segment.
fn index_segment_of(
    each: &mut EachBlock<'_>,
    path: &Path,
    name: &SegmentName,
    size: SegmentSize,
    system_id: SystemId,
) -> Result<(WalIndex, Changes)> {
    let expect = SegmentExpect { timeline: name.timeline, segment: name.segment, size, system_id: Some(system_id) };
    let mut walker = Walker::new(expect);
    let mut changes = Changes::default();
    let mut hasher = blake3::Hasher::new();
    let mut total = 0u64;
    each(&mut |bytes| {
        total += bytes.len() as u64;
        if bytes.len() % WAL_PAGE_SIZE != 0 || total > size.bytes() {
            return Err(not_wal(path, "its size is not that of a segment"));
        }
        hasher.update(bytes);
        walker.feed(bytes, &mut changes).map_err(|e| not_wal(path, &e.to_string()))
    })?;
    if total != size.bytes() {
        return Err(not_wal(path, &format!("it has {total} bytes instead of {}", size.bytes())));
    }
    let scan = walker.finish().map_err(|e| not_wal(path, &e.to_string()))?;
    let content = hasher.finalize().to_hex().to_string();
    Ok((WalIndex::new(&scan, *name, content.clone(), content), changes))
}

fn hash_valid(index: &mut WalIndex, data: &mut SegmentData<'_>) -> Result<()> {
    if index.valid_bytes() >= index.segment_size.bytes() {
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    data.each(index.valid_bytes(), &mut |bytes| {
        hasher.update(bytes);
        Ok::<(), EngineError>(())
    })?;
    index.valid_content = hasher.finalize().to_hex().to_string();
    Ok(())
}

fn side_file(repo: &Repository, catalog: &Catalog, path: &Path, name: &WalFileName) -> Result<Pushed> {
    let lineage = catalog.lineage().ok_or_else(|| not_wal(path, "no cluster is registered"))?;
    let mut bytes = vec![];
    let file = open(path)?;
    let limit = SIDE_FILE_BYTES_MAX as u64;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| EngineError::file("reading", path, e))?;
    if bytes.len() > SIDE_FILE_BYTES_MAX {
        return Err(not_wal(path, "it is far too large for its kind"));
    }
    let archive = WalArchive::new(repo, &catalog.cluster, lineage.system_id);
    push_side_file(&archive, name, &bytes)
}

pub fn push_side_file(archive: &WalArchive, name: &WalFileName, bytes: &[u8]) -> Result<Pushed> {
    if let WalFileName::History(timeline) = name {
        let refused = |why: &dyn std::fmt::Display| {
            EngineError::refused("E-HISTORY", format!("{name} does not parse: {why}"), "check the server's pg_wal")
        };
        let history = pgark_pg::history::TimelineHistory::parse(*timeline, bytes).map_err(|e| refused(&e))?;
        if history.entries.is_empty() {
            return Err(refused(&"it names no timeline before this one"));
        }
    }
    let outcome = archive.push_side_file(name, bytes)?;
    if let WalFileName::History(timeline) = name {
        archive.acknowledge_history(*timeline)?;
    }
    Ok(outcome)
}
