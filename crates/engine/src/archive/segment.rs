//! Reading a WAL segment once: checked against its name, indexed, hashed, its changes noted, and compressed meanwhile.
//!
//! Invariant: what is kept in memory is the compressed form of exactly the bytes that were indexed, so that a file that
//! changes under us cannot be archived under the index of another.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bytes::BytesMut;

use pgark_pg::names::RawSegment;
use pgark_pg::value::{SegmentName, SegmentSize, SystemId};
use pgark_pg::wal::{Activity, Changes, SegmentExpect, WAL_PAGE_SIZE, Walker};
use pgark_repo::catalog::{Catalog, Lineage};
use pgark_repo::codec::{Encoder, WalEncoding};
use pgark_repo::limits::BLOCK_BYTES;
use pgark_repo::wal::{EncodedBlock, SegmentData, WalIndex};

use crate::error::{EngineError, Result};
use crate::several::OTHER_CLUSTER;

/// Bytes of the first page that tell which cluster's WAL a file is.
const LONG_HEADER_BYTES: usize = 40;
/// Larger segments are read from their file each time they are needed.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A WAL file that is what its name says, with its index.
pub struct Prepared {
    pub index: WalIndex,
    pub changes: Changes,
    pub data: Held,
}

/// Where a segment's bytes are meanwhile.
pub enum Held {
    Memory(Vec<EncodedBlock>),
    /// A segment too large for that.
    File(File),
}

impl Held {
    pub fn borrow(&mut self) -> SegmentData<'_> {
        match self {
            Held::Memory(blocks) => SegmentData::Encoded(blocks),
            Held::File(file) => SegmentData::File(file),
        }
    }
}

pub fn segment_name(raw: &RawSegment, lineage: &Lineage, path: &Path) -> Result<SegmentName> {
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
pub fn prepare(
    catalog: &Catalog,
    path: &Path,
    raw: &RawSegment,
    encoding: WalEncoding,
    threads: usize,
) -> Result<Prepared> {
    let mut file = open(path)?;
    let lineage = lineage_of(catalog, &mut file, path)?;
    let name = segment_name(raw, lineage, path)?;
    let indexer = Indexer::new(path, name, lineage.segment_size, lineage.system_id);
    if lineage.segment_size.bytes() > MEMORY_BYTES_MAX {
        let (index, changes) = index_segment(&mut SegmentData::File(&mut file), indexer)?;
        return Ok(Prepared { index, changes, data: Held::File(file) });
    }
    in_memory(file, indexer, encoding, threads)
}

/// The same before any catalog is read, taking the file's word for its cluster and size: for whoever compares both with the
/// catalog before the result is used. None for a segment that would not be kept in memory.
pub fn prepare_unchecked(
    path: &Path,
    raw: &RawSegment,
    encoding: WalEncoding,
    threads: usize,
) -> Result<Option<Prepared>> {
    let mut file = open(path)?;
    let bytes = file.metadata().map_err(|e| EngineError::file("looking at", path, e))?.len();
    let system_id = read_system_id(&mut file, path)?;
    let Some(size) = SegmentSize::new(bytes).ok().filter(|_| bytes <= MEMORY_BYTES_MAX) else { return Ok(None) };
    let Ok(segment) = raw.number(size) else { return Ok(None) };
    let indexer = Indexer::new(path, SegmentName { timeline: raw.timeline, segment }, size, system_id);
    in_memory(file, indexer, encoding, threads).map(Some)
}

fn in_memory(file: File, indexer: Indexer<'_>, encoding: WalEncoding, threads: usize) -> Result<Prepared> {
    let (path, size) = (indexer.path, indexer.size.bytes());
    let found = file.metadata().map_err(|e| EngineError::file("looking at", path, e))?.len();
    if found != size {
        return Err(not_wal(path, &format!("it has {found} bytes instead of {size}")));
    }
    let blocks = usize::try_from(found).expect("compared with a limit") / BLOCK_BYTES;
    let (mut indexed, encoded) = read_and_encode(file, blocks, indexer, encoding, threads)?;
    indexed.hash_valid(&mut SegmentData::Encoded(&encoded))?;
    Ok(Prepared { index: indexed.index, changes: indexed.changes, data: Held::Memory(encoded) })
}

/// What a block contributes to the hash of its segment: that of the subtree over it. Blocks are a power of two of bytes, and
/// begin at a multiple of that, so the hash of the segment follows from these in any order.
fn hash_block(n: usize, block: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset((n * BLOCK_BYTES) as u64).update(block);
    hasher.finalize_non_root()
}

/// The hash of a segment, from those of its blocks. A segment is 2 to the power of n blocks, and at least four.
fn hash_segment(mut row: Vec<ChainingValue>) -> blake3::Hash {
    while row.len() > 2 {
        row = row.chunks_exact(2).map(|two| merge_subtrees_non_root(&two[0], &two[1], Mode::Hash)).collect();
    }
    merge_subtrees_root(&row[0], &row[1], Mode::Hash)
}

/// The file, up to where it was read. Blocks are read and walked in their order, by whichever thread is free.
struct Reading<'a> {
    file: File,
    indexer: Indexer<'a>,
    next: usize,
    blocks: usize,
}

impl Reading<'_> {
    /// The number of the block that is now in the buffer; None when there are no more, or one could not be read.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        if self.next == self.blocks {
            return Ok(None);
        }
        let n = self.next;
        // Until it has succeeded: after a failure the others are to stop.
        self.next = self.blocks;
        let path = self.indexer.path;
        self.file.read_exact(buffer).map_err(|e| EngineError::file("reading", path, e))?;
        self.indexer.feed(buffer)?;
        self.next = n + 1;
        Ok(Some(n))
    }
}

/// A block's number, hash and compressed form.
type Done = (usize, ChainingValue, EncodedBlock);

/// What a thread has for all of its blocks: fresh memory for each costs more than copying.
struct Encoding {
    encoder: Encoder,
    plain: Vec<u8>,
    block: Vec<u8>,
    /// Room for the compressed form of a whole segment. What is not written to takes no memory; a heap that grows with
    /// each block stops the other threads each time.
    encoded: BytesMut,
    done: Vec<Done>,
}

impl Encoding {
    fn new(encoding: WalEncoding, blocks: usize) -> Result<Self> {
        Ok(Encoding {
            encoder: Encoder::for_wal(encoding)?,
            plain: vec![0; BLOCK_BYTES],
            block: vec![],
            encoded: BytesMut::with_capacity(blocks * BLOCK_BYTES),
            done: Vec::with_capacity(blocks),
        })
    }

    /// Takes block after block. What one thread reads it compresses itself, while the block is in its processor's cache.
    fn run(mut self, reading: &Mutex<Reading<'_>>) -> Result<Vec<Done>> {
        let next = |plain: &mut [u8]| reading.lock().expect("no thread panics with the lock").read(plain);
        while let Some(n) = next(&mut self.plain)? {
            let hash = hash_block(n, &self.plain);
            let codec = self.encoder.encode(&self.plain, &mut self.block)?;
            self.encoded.extend_from_slice(&self.block);
            let encoded = self.encoded.split().freeze();
            self.done.push((n, hash, EncodedBlock { plain_len: self.plain.len(), codec, encoded }));
        }
        Ok(self.done)
    }
}

fn read_and_encode(
    file: File,
    blocks: usize,
    indexer: Indexer<'_>,
    encoding: WalEncoding,
    threads: usize,
) -> Result<(Indexed, Vec<EncodedBlock>)> {
    let reading = Mutex::new(Reading { file, indexer, next: 0, blocks });
    let run = || Encoding::new(encoding, blocks)?.run(&reading);
    let mut done = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut done = run();
        for helper in helpers {
            let others = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done = done.and_then(|mut done| {
                done.extend(others?);
                Ok(done)
            });
        }
        done
    })?;
    done.sort_unstable_by_key(|(n, ..)| *n);
    let (hashes, encoded) = done.into_iter().map(|(_, hash, block)| (hash, block)).unzip();
    let indexer = reading.into_inner().expect("the threads are gone").indexer;
    Ok((indexer.finish(hash_segment(hashes))?, encoded))
}

/// Opens what should be an ordinary file; a pipe under its name must not make us wait.
pub fn open(path: &Path) -> Result<File> {
    let failed = |e| EngineError::file("opening", path, e);
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() { Ok(file) } else { Err(not_wal(path, "it is not an ordinary file")) }
}

fn rewind(file: &mut File, path: &Path) -> Result<()> {
    file.seek(SeekFrom::Start(0)).map(drop).map_err(|e| EngineError::file("reading", path, e))
}

/// The lineage a WAL file belongs to, by the system identifier in its first page.
pub fn lineage_of<'a>(catalog: &'a Catalog, file: &mut File, path: &Path) -> Result<&'a Lineage> {
    lineage_with(catalog, read_system_id(file, path)?, path)
}

/// The lineage in force, when it is that of `found`.
pub fn lineage_with<'a>(catalog: &'a Catalog, found: SystemId, path: &Path) -> Result<&'a Lineage> {
    let current = catalog.lineage().ok_or_else(|| not_wal(path, "no cluster is registered"))?;
    if found == current.system_id {
        return Ok(current);
    }
    Err(EngineError::refused(
        OTHER_CLUSTER,
        format!(
            "{} is of the cluster with system identifier {found}; '{}' is {}",
            path.display(),
            catalog.cluster,
            current.system_id
        ),
        "is another server archiving under this name? after an upgrade, 'pgark init --adopt' registers the new cluster",
    ))
}

/// The system identifier in the first page of a WAL file.
pub fn system_id_of(path: &Path) -> Result<SystemId> {
    read_system_id(&mut open(path)?, path)
}

/// Leaves the file at its beginning.
fn read_system_id(file: &mut File, path: &Path) -> Result<SystemId> {
    let mut header = [0u8; LONG_HEADER_BYTES];
    file.read_exact(&mut header).map_err(|_| not_wal(path, "it is shorter than a page header"))?;
    rewind(file, path)?;
    system_id(&header).ok_or_else(|| not_wal(path, "its first page has no system identifier"))
}

/// `xlp_sysid` of a long page header (XLogLongPageHeaderData in access/xlog_internal.h).
fn system_id(header: &[u8; LONG_HEADER_BYTES]) -> Option<SystemId> {
    const XLP_LONG_HEADER: u8 = 0x02;
    let bytes: [u8; 8] = header.get(24..32)?.try_into().ok()?;
    (header.get(2)? & XLP_LONG_HEADER != 0).then(|| SystemId(u64::from_le_bytes(bytes)))
}

pub fn not_wal(path: &Path, why: &str) -> EngineError {
    EngineError::refused(
        "E-WAL-INVALID",
        format!("{} is not a wal segment of this cluster: {why}", path.display()),
        "PostgreSQL must pass %p; a damaged segment in pg_wal means that the server's disk is failing",
    )
}

/// Walks a segment once: checks that it is what its name says, makes its index, and notes the blocks it changes.
pub fn index_segment(data: &mut SegmentData<'_>, mut indexer: Indexer<'_>) -> Result<(WalIndex, Changes)> {
    let mut hasher = blake3::Hasher::new();
    data.each(u64::MAX, &mut |bytes| {
        hasher.update(bytes);
        indexer.feed(bytes)
    })?;
    let mut indexed = indexer.finish(hasher.finalize())?;
    indexed.hash_valid(data)?;
    Ok((indexed.index, indexed.changes))
}

/// Makes the index of a segment whose bytes it is fed in order, whole blocks at a time.
pub struct Indexer<'a> {
    path: &'a Path,
    name: SegmentName,
    size: SegmentSize,
    walker: Walker,
    seen: (Changes, Activity),
    total: u64,
}

/// A segment's index, in which `valid_content` is not right yet.
struct Indexed {
    index: WalIndex,
    changes: Changes,
}

impl<'a> Indexer<'a> {
    pub fn new(path: &'a Path, name: SegmentName, size: SegmentSize, system_id: SystemId) -> Self {
        let expect = SegmentExpect { timeline: name.timeline, segment: name.segment, size, system_id: Some(system_id) };
        Indexer { path, name, size, walker: Walker::new(expect), seen: Default::default(), total: 0 }
    }

    fn feed(&mut self, block: &[u8]) -> Result<()> {
        self.total += block.len() as u64;
        if !block.len().is_multiple_of(WAL_PAGE_SIZE) || self.total > self.size.bytes() {
            return Err(not_wal(self.path, "its size is not that of a segment"));
        }
        self.walker.feed(block, &mut self.seen).map_err(|e| not_wal(self.path, &e.to_string()))
    }

    fn finish(self, content: blake3::Hash) -> Result<Indexed> {
        if self.total != self.size.bytes() {
            return Err(not_wal(self.path, &format!("it has {} bytes instead of {}", self.total, self.size.bytes())));
        }
        let scan = self.walker.finish().map_err(|e| not_wal(self.path, &e.to_string()))?;
        let content = content.to_hex().to_string();
        let (changes, activity) = self.seen;
        let index = WalIndex::new(&scan, activity.finish(), self.name, content.clone(), content);
        Ok(Indexed { index, changes })
    }
}

impl Indexed {
    /// Where the valid WAL ends before the segment does, hashes what is before that.
    fn hash_valid(&mut self, data: &mut SegmentData<'_>) -> Result<()> {
        let valid = self.index.valid_bytes();
        if valid >= self.index.segment_size.bytes() {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        data.each(valid, &mut |bytes| {
            hasher.update(bytes);
            Ok::<(), EngineError>(())
        })?;
        self.index.valid_content = hasher.finalize().to_hex().to_string();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_segment_follows_from_those_of_its_blocks() {
        for blocks in [4, 8, 64] {
            let bytes: Vec<u8> = (0..blocks * BLOCK_BYTES / 4).flat_map(|n| (n as u32).to_le_bytes()).collect();
            let hashes = bytes.chunks(BLOCK_BYTES).enumerate().map(|(n, block)| hash_block(n, block)).collect();
            assert_eq!(hash_segment(hashes), blake3::hash(&bytes), "{blocks}");
        }
    }
}
