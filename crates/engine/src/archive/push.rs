//! `archive_command`: one WAL file into the repository. PostgreSQL forgets the file once we say yes, so yes is
//! said last.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use pgark_pg::names::{RawSegment, WalFileName};
use pgark_pg::value::{Lsn, SegmentName, SegmentSize, SystemId};
use pgark_pg::wal::{Changes, SegmentExpect, WAL_PAGE_SIZE, Walker};
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore, Lineage};
use pgark_repo::limits::SIDE_FILE_BYTES_MAX;
use pgark_repo::names::ClusterName;
use pgark_repo::wal::{Pushed, SegmentData, WalArchive, WalIndex};
use pgark_repo::{RepoError, codec::Compression};

use super::ahead::Ahead;
use crate::error::{EngineError, Result};

/// Bytes of the first page that tell which cluster's WAL a file is.
const LONG_HEADER_BYTES: usize = 40;
/// Larger segments are read from their file each time they are needed.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

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
            let mut prepared = prepare(&catalog, path, raw)?;
            let archive = archive(repo, &catalog, &prepared, options);
            let (index, data) = prepared.parts();
            archive.push_partial(index, &mut data.borrow())?
        }
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => side_file(repo, &catalog, path, &parsed)?,
    };
    Ok(PushReport { file: name, outcome })
}

fn archive(repo: &Repository, catalog: &Catalog, of: &Prepared, options: &PushOptions<'_>) -> WalArchive {
    WalArchive::new(repo, &catalog.cluster, of.index.system_id).with_compression(options.compression)
}

fn segment(repo: &Repository, catalog: &Catalog, raw: &RawSegment, options: &PushOptions<'_>) -> Result<Pushed> {
    let Some(ahead) = &options.ahead else {
        let mut prepared = prepare(catalog, options.path, raw)?;
        let archive = archive(repo, catalog, &prepared, options);
        let (pushed, copy) = store(&archive, options.path, &mut prepared, options.damaged)?;
        archive.acknowledge(&[(prepared.index.segment_name(), copy)])?;
        return Ok(pushed);
    };
    let lineage = catalog.lineage().ok_or_else(|| not_wal(options.path, "no cluster is registered"))?;
    let archive = WalArchive::new(repo, &catalog.cluster, lineage.system_id).with_compression(options.compression);
    if ahead.has(options.path) {
        let name = segment_name(raw, lineage, options.path)?;
        if archive.head()?.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)) {
            return Ok(Pushed::AlreadyThere);
        }
    }
    let push_one = |path: &Path, raw: &RawSegment| -> Result<(Pushed, (SegmentName, u32))> {
        let mut prepared = prepare(catalog, path, raw)?;
        let (pushed, copy) = store(&archive, path, &mut prepared, options.damaged)?;
        Ok((pushed, (prepared.index.segment_name(), copy)))
    };
    ahead.push(options.path, raw, &push_one, &|done| Ok(archive.acknowledge(done)?))
}

/// A WAL file that is what its name says, with its index.
struct Prepared {
    index: WalIndex,
    changes: Changes,
    data: Held,
}

/// Where a segment's bytes are meanwhile.
enum Held {
    Memory(Vec<u8>),
    /// A segment too large for that.
    File(File),
}

impl Held {
    fn borrow(&mut self) -> SegmentData<'_> {
        match self {
            Held::Memory(bytes) => SegmentData::Memory(bytes),
            Held::File(file) => SegmentData::File(file),
        }
    }
}

impl Prepared {
    fn parts(&mut self) -> (&WalIndex, &mut Held) {
        (&self.index, &mut self.data)
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

fn prepare(catalog: &Catalog, path: &Path, raw: &RawSegment) -> Result<Prepared> {
    let mut file = open(path)?;
    let lineage = lineage_of(catalog, &mut file, path)?;
    let name = segment_name(raw, lineage, path)?;
    let mut data = if lineage.segment_size.bytes() <= MEMORY_BYTES_MAX {
        let mut bytes = Vec::with_capacity(usize::try_from(lineage.segment_size.bytes()).unwrap_or(0) + 1);
        let limit = lineage.segment_size.bytes() + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(|e| EngineError::file("reading", path, e))?;
        Held::Memory(bytes)
    } else {
        Held::File(file)
    };
    let (index, changes) = index_segment(&mut data.borrow(), path, &name, lineage.segment_size, lineage.system_id)?;
    Ok(Prepared { index, changes, data })
}

/// Durable when it returns; not yet acknowledged.
fn store(archive: &WalArchive, path: &Path, prepared: &mut Prepared, damaged: Damaged) -> Result<(Pushed, u32)> {
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
    let expect = SegmentExpect { timeline: name.timeline, segment: name.segment, size, system_id: Some(system_id) };
    let mut walker = Walker::new(expect);
    let mut changes = Changes::default();
    let mut hasher = blake3::Hasher::new();
    let mut total = 0u64;
    data.each(u64::MAX, &mut |bytes| {
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
    let mut index = WalIndex::new(&scan, *name, content.clone(), content);
    if index.valid_bytes() < total {
        let mut hasher = blake3::Hasher::new();
        data.each(index.valid_bytes(), &mut |bytes| {
            hasher.update(bytes);
            Ok::<(), EngineError>(())
        })?;
        index.valid_content = hasher.finalize().to_hex().to_string();
    }
    Ok((index, changes))
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
