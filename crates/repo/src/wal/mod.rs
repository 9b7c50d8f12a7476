//! The WAL archive of one system identifier: an object per segment with a sealed index in front, history and
//! other small files, and the head, which says what the archive holds.
//!
//! Invariant: a segment is acknowledged only after it and the head that names it are durable; what the head
//! names must exist; what is beyond the head is provably beyond the archive's end.

mod acknowledge;
pub mod changes;
pub mod head;
pub mod index;

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use pgark_pg::names::WalFileName;
use pgark_pg::value::{SegmentName, SegmentSize, SystemId, TimelineId};
use pgark_pg::wal::Changes;

use crate::codec::{Codec, Compression, Decoder};
use crate::crypto::{KeySet, ObjectKind};
use crate::error::{RepoError, Result, with_healing};
use crate::limits::{BLOCK_BYTES, SEGMENT_COPIES_MAX, SIDE_FILE_BYTES_MAX};
use crate::names::{self, ClusterName, WalPlace};
use crate::register::{Mirror, Register, Version};
use crate::repository::Repository;
use crate::store::{ObjectName, Store, StoreError};
use crate::stream::{Sink, Source, StreamReader, StreamWriter, open_bytes, read_facts, seal_bytes};

pub use acknowledge::StagedHead;
pub use head::{SegmentRange, TimelineSpan, WalHead};
pub use index::{Ending, SegmentHasher, WalIndex};

/// Enough for the index of nearly every segment in one small read.
const INDEX_READ_AHEAD: usize = 32 * 1024;

#[derive(Clone)]
pub struct WalArchive {
    store: Arc<dyn Store>,
    keys: KeySet,
    place: WalPlace,
    head: Register,
    compression: Compression,
}

/// What became of a file that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Stored,
    /// The same bytes were there already.
    AlreadyThere,
    /// The archive's copy holds the same WAL records (and possibly more); the bytes after them differ.
    SameRecords,
    /// The archive had the beginning of this segment, pushed before PostgreSQL had finished it; this copy holds more
    /// and takes its place.
    Longer,
}

/// The bytes of a segment that is pushed; they may have to be read more than once.
pub enum SegmentData<'a> {
    Memory(&'a [u8]),
    /// In blocks that are compressed already, all but the last of `BLOCK_BYTES`.
    Encoded(&'a [EncodedBlock]),
    /// Compared with the index each time, since somebody may write to it.
    File(&'a mut std::fs::File),
}

/// A block of a segment, compressed.
pub struct EncodedBlock {
    pub plain_len: usize,
    pub codec: Codec,
    pub encoded: Bytes,
}

impl EncodedBlock {
    fn decode(&self, decoder: &mut Decoder, out: &mut Vec<u8>) -> Result<()> {
        let failed = |e: String| RepoError::System { what: "compression", source: std::io::Error::other(e) };
        decoder.decode(self.codec, &self.encoded, self.plain_len, out).map_err(failed)
    }
}

impl SegmentData<'_> {
    /// Hands out the first `limit` bytes in order, in blocks of which all but the last are full.
    pub fn each<E: From<RepoError>>(
        &mut self,
        limit: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            SegmentData::Memory(bytes) => {
                let end = usize::try_from(limit).unwrap_or(usize::MAX).min(bytes.len());
                bytes[..end].chunks(BLOCK_BYTES).try_for_each(take)
            }
            SegmentData::Encoded(blocks) => {
                let (mut left, mut plain, mut decoder) = (limit, vec![], Decoder::new()?);
                for block in *blocks {
                    let end = usize::try_from(left).unwrap_or(usize::MAX).min(block.plain_len);
                    if end == 0 {
                        break;
                    }
                    left -= end as u64;
                    block.decode(&mut decoder, &mut plain)?;
                    take(plain.get(..end).unwrap_or(&plain))?;
                }
                Ok(())
            }
            SegmentData::File(file) => {
                let reading = |source| RepoError::System { what: "reading WAL", source };
                file.seek(SeekFrom::Start(0)).map_err(reading)?;
                let mut block = Vec::with_capacity(BLOCK_BYTES);
                let mut left = limit;
                loop {
                    block.clear();
                    let want = left.min(BLOCK_BYTES as u64);
                    let got = file.take(want).read_to_end(&mut block).map_err(reading)?;
                    left -= got as u64;
                    if got == 0 {
                        return Ok(());
                    }
                    take(&block)?;
                }
            }
        }
    }
}

impl WalArchive {
    pub fn new(repo: &Repository, cluster: &ClusterName, system_id: SystemId) -> Self {
        let place = WalPlace { cluster: cluster.clone(), system_id };
        let head =
            Register::sealed(repo.books().clone(), repo.keys(), ObjectKind::WalHead, place.head_dir(), Mirror::Yes);
        let (store, keys) = (repo.store().clone(), repo.keys().clone());
        WalArchive { store, keys, place, head, compression: Compression::DEFAULT }
    }

    pub fn with_compression(self, compression: Compression) -> Self {
        WalArchive { compression, ..self }
    }

    pub fn place(&self) -> &WalPlace {
        &self.place
    }

    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    pub fn head_register(&self) -> &Register {
        &self.head
    }

    /// The object that holds this segment by the head.
    pub fn object_of(&self, head: &WalHead, name: &SegmentName, size: SegmentSize) -> Result<ObjectName> {
        self.place.segment(name, size, head.copy_of(name))
    }

    /// When a segment was stored, by the store's clock; None where it does not say.
    pub fn stored_at(&self, head: &WalHead, name: &SegmentName, size: SegmentSize) -> Result<Option<jiff::Timestamp>> {
        let modified = self.store.stat(&self.object_of(head, name, size)?)?.modified;
        Ok(modified.and_then(|time| jiff::Timestamp::try_from(time).ok()))
    }

    /// Stores a whole segment; `data` yields exactly the bytes that `index` was made from. Returns which copy of the
    /// segment holds it, for `acknowledge`.
    pub fn push_segment(
        &self,
        index: &WalIndex,
        changes: &Changes,
        data: &mut SegmentData<'_>,
    ) -> Result<(Pushed, u32)> {
        self.push_segment_as(0, index, changes, data)
    }

    /// As `push_segment`, with what the head says about the segment: one that has expired gets a name that was never
    /// used, because whoever removes the old one may be late.
    pub fn push_segment_after(
        &self,
        head: &WalHead,
        index: &WalIndex,
        changes: &Changes,
        data: &mut SegmentData<'_>,
    ) -> Result<(Pushed, u32)> {
        let name = index.segment_name();
        let first = head.next_copy(&name);
        if let Some(before) = first.checked_sub(1) {
            match self.compare(&self.place.segment(&name, index.segment_size, before)?, index, data) {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        self.push_segment_as(first, index, changes, data)
    }

    fn push_segment_as(
        &self,
        first: u32,
        index: &WalIndex,
        changes: &Changes,
        data: &mut SegmentData<'_>,
    ) -> Result<(Pushed, u32)> {
        let changes = changes::encode(changes);
        let mut outcome = Pushed::Stored;
        for copy in first..=first.saturating_add(SEGMENT_COPIES_MAX) {
            let object = self.place.segment(&index.segment_name(), index.segment_size, copy)?;
            match self.put_wal_file(&object, index, Some(&changes), data)? {
                Pushed::Longer => outcome = Pushed::Longer,
                Pushed::Stored => return Ok((outcome, copy)),
                there => return Ok((there, copy)),
            }
        }
        let name = index.segment_name().format(index.segment_size);
        Err(RepoError::Conflict { object: format!("{name} (pushed unfinished more than {SEGMENT_COPIES_MAX} times)") })
    }

    /// Stores a `.partial` segment under its own name; it never stands in for the whole one.
    pub fn push_partial(&self, index: &WalIndex, data: &mut SegmentData<'_>) -> Result<Pushed> {
        let file = format!("{}.partial", index.segment_name().format(index.segment_size));
        let object = self.place.file(index.timeline, &file)?;
        match self.put_wal_file(&object, index, None, data)? {
            Pushed::Longer => Err(RepoError::Conflict { object: object.to_string() }),
            pushed => Ok(pushed),
        }
    }

    /// `Longer` says that an unfinished beginning of the same segment has the name, and that nothing was stored.
    fn put_wal_file(
        &self,
        name: &ObjectName,
        index: &WalIndex,
        changes: Option<&[u8]>,
        data: &mut SegmentData<'_>,
    ) -> Result<Pushed> {
        let sink = Sink::Object(self.store.create(name)?);
        let mut w = StreamWriter::new(&self.keys, ObjectKind::WalSegment, name, sink, self.compression)?;
        put_facts(&mut w, index)?;
        let index_in_front = WalIndex { changes_bytes: changes.map(|c| c.len() as u64), ..index.clone() };
        w.write_block(&index_in_front.to_bytes())?;
        for part in changes.unwrap_or_default().chunks(BLOCK_BYTES) {
            w.write_block(part)?;
        }
        let mut size = 0;
        let mut hasher = None;
        if let SegmentData::Encoded(blocks) = data {
            for block in *blocks {
                size += block.plain_len as u64;
                w.write_encoded(block.plain_len, block.codec, &block.encoded)?;
            }
        } else {
            hasher = matches!(data, SegmentData::File(_)).then(blake3::Hasher::new);
            data.each(u64::MAX, &mut |bytes| {
                size += bytes.len() as u64;
                if let Some(h) = &mut hasher {
                    h.update(bytes);
                }
                w.write(bytes)
            })?;
        }
        let changed = hasher.is_some_and(|h| h.finalize().to_hex().as_str() != index.content);
        if size != index.segment_size.bytes() || changed {
            return Err(RepoError::Conflict { object: format!("{name} (it changed while it was read)") });
        }
        match w.finish() {
            Ok(_) => Ok(Pushed::Stored),
            Err(RepoError::Store(StoreError::AlreadyExists { .. })) => self.compare(name, index, data),
            Err(e) => Err(e),
        }
    }

    /// Whether the segment that the head names holds this WAL already.
    pub fn is_archived(&self, head: &WalHead, index: &WalIndex) -> Result<bool> {
        let name = index.segment_name();
        if !head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)) {
            return Ok(false);
        }
        match self.copy_index(&name, index.segment_size, head.copy_of(&name)) {
            Ok(found) => Ok(found.content == index.content),
            // It was lost, and comes back.
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether the segment of this name that the head names holds our records. None: it is an unfinished beginning of ours.
    pub fn agrees(&self, head: &WalHead, ours: &WalIndex, data: &mut SegmentData<'_>) -> Result<Option<bool>> {
        let object = self.object_of(head, &ours.segment_name(), ours.segment_size)?;
        match self.compare(&object, ours, data) {
            Ok(Pushed::Longer) => Ok(None),
            Ok(_) => Ok(Some(true)),
            Err(RepoError::Conflict { .. }) => Ok(Some(false)),
            Err(e) => Err(e),
        }
    }

    /// The name is taken: is that the same WAL?
    fn compare(&self, name: &ObjectName, ours: &WalIndex, data: &mut SegmentData<'_>) -> Result<Pushed> {
        let stored = self.object_index(name)?;
        if stored.content == ours.content {
            return Ok(Pushed::AlreadyThere);
        }
        // After a crash or a promotion PostgreSQL may push a segment again whose records are the same and
        // whose unused rest is not.
        let may_read = self.keys.writes_only().is_none();
        if !may_read && ours.valid_end == stored.valid_end && ours.valid_content == stored.valid_content {
            return Ok(Pushed::SameRecords);
        }
        if may_read && ours.valid_end <= stored.valid_end {
            let mut reader = self.open_object(name)?;
            let mut hasher = SegmentHasher::new(ours.valid_bytes());
            while let Some(bytes) = reader.next()? {
                hasher.update(bytes);
            }
            if hasher.finish().2 == ours.valid_content {
                return Ok(Pushed::SameRecords);
            }
        } else if ours.valid_end > stored.valid_end && stored.ending == Ending::Ended {
            let mut hasher = SegmentHasher::new(stored.valid_bytes());
            data.each(stored.valid_bytes(), &mut |bytes| {
                hasher.update(bytes);
                Ok::<(), RepoError>(())
            })?;
            if hasher.finish().2 == stored.valid_content {
                return Ok(Pushed::Longer);
            }
        }
        Err(RepoError::Conflict { object: name.to_string() })
    }

    /// Keeps what could not be archived because its name was taken, for the investigation.
    pub fn keep_conflict(&self, file: &str, index: &WalIndex, data: &mut SegmentData<'_>) -> Result<ObjectName> {
        let print = index.content.get(..16).unwrap_or("unknown");
        let name = self.place.conflict(file, print)?;
        let sink = Sink::Object(self.store.create(&name)?);
        let mut w = StreamWriter::new(&self.keys, ObjectKind::WalSegment, &name, sink, self.compression)?;
        put_facts(&mut w, index)?;
        w.write_block(&index.to_bytes())?;
        data.each(u64::MAX, &mut |bytes| w.write(bytes))?;
        match w.finish() {
            Ok(_) | Err(RepoError::Store(StoreError::AlreadyExists { .. })) => Ok(name),
            Err(e) => Err(e),
        }
    }

    /// History and backup-history files: small, immutable.
    pub fn push_side_file(&self, file: &WalFileName, bytes: &[u8]) -> Result<Pushed> {
        let name = self.side_file_object(file)?;
        let sealed = seal_bytes(&self.keys, ObjectKind::WalSideFile, &name, bytes)?;
        match self.store.put_new(&name, &sealed) {
            Ok(()) => Ok(Pushed::Stored),
            Err(StoreError::AlreadyExists { .. }) if self.side_file(file)? == bytes => Ok(Pushed::AlreadyThere),
            Err(StoreError::AlreadyExists { .. }) => Err(RepoError::Conflict { object: name.to_string() }),
            Err(e) => Err(e.into()),
        }
    }

    fn side_file_object(&self, file: &WalFileName) -> Result<ObjectName> {
        match file {
            WalFileName::History(timeline) => Ok(self.place.history(*timeline)),
            WalFileName::BackupHistory { segment, .. } => self.place.file(segment.timeline, &file.to_string()),
            WalFileName::Segment(_) | WalFileName::Partial(_) => {
                Err(RepoError::Invalid { what: "side file", value: file.to_string() })
            }
        }
    }

    pub fn side_file(&self, file: &WalFileName) -> Result<Vec<u8>> {
        let name = self.side_file_object(file)?;
        with_healing(&*self.store, &name, || {
            let sealed = self.store.read(&name, 2 * SIDE_FILE_BYTES_MAX as u64)?;
            open_bytes(&self.keys, ObjectKind::WalSideFile, &name, sealed, SIDE_FILE_BYTES_MAX)
        })
    }

    /// Whether the head says that this history file is archived.
    pub fn has_history(&self, file: &WalFileName) -> Result<bool> {
        let WalFileName::History(timeline) = file else { return Ok(false) };
        Ok(self.head()?.timeline(*timeline).is_some_and(|t| t.history))
    }

    pub fn history(&self, timeline: TimelineId) -> Result<Vec<u8>> {
        self.side_file(&WalFileName::History(timeline))
    }

    /// Opens a segment: the index is read and checked, the data follows on demand.
    pub fn open_segment(&self, name: &SegmentName, size: SegmentSize) -> Result<SegmentReader> {
        let first = self.open_copy(name, size, 0);
        let replaceable = match &first {
            Ok(reader) => reader.index.ending == Ending::Ended,
            Err(e) => e.is_damage(),
        };
        if !replaceable {
            return first;
        }
        match self.head()?.copy_of(name) {
            0 => first,
            copy => self.open_copy(name, size, copy),
        }
    }

    fn open_copy(&self, name: &SegmentName, size: SegmentSize, copy: u32) -> Result<SegmentReader> {
        let object = self.place.segment(name, size, copy)?;
        let reader = self.open_object(&object)?;
        if reader.index.segment_name() != *name || reader.index.segment_size != size {
            return Err(RepoError::corrupt(object, "the index is of another segment"));
        }
        Ok(reader)
    }

    /// Of the copy that counts. To a writer of the cluster: what the index says to it.
    pub fn index(&self, name: &SegmentName, size: SegmentSize) -> Result<WalIndex> {
        if self.keys.writes_only().is_none() {
            return Ok(self.open_segment(name, size)?.index);
        }
        self.copy_index(name, size, self.head()?.copy_of(name))
    }

    fn copy_index(&self, name: &SegmentName, size: SegmentSize, copy: u32) -> Result<WalIndex> {
        let object = self.place.segment(name, size, copy)?;
        let index = self.object_index(&object)?;
        if index.segment_name() != *name || index.segment_size != size {
            return Err(RepoError::corrupt(object, "the index is of another segment"));
        }
        Ok(index)
    }

    /// The index of any object that holds WAL; to a writer of the cluster, what it says to it.
    ///
    /// # Errors
    /// `WriteOnly` to a writer, for what was archived when the cluster had none.
    pub fn object_index(&self, object: &ObjectName) -> Result<WalIndex> {
        if self.keys.writes_only().is_none() {
            return Ok(self.open_object(object)?.index);
        }
        with_healing(&*self.store, object, || {
            let source = Source::object_with_read_ahead(self.store.clone(), object, INDEX_READ_AHEAD)?;
            let facts = read_facts(&self.keys, ObjectKind::WalSegment, object, source)?;
            let index = WalIndex::from_bytes(&facts).map_err(|e| RepoError::corrupt(object, e))?;
            if index.system_id != self.place.system_id {
                return Err(RepoError::corrupt(object, "WAL of another cluster"));
            }
            Ok(index)
        })
    }

    /// Opens any object that holds WAL (a segment, a `.partial`, the evidence of a conflict).
    pub fn open_object(&self, object: &ObjectName) -> Result<SegmentReader> {
        with_healing(&*self.store, object, || {
            self.open_source(object, Source::object_with_read_ahead(self.store.clone(), object, INDEX_READ_AHEAD)?)
        })
    }

    /// As `open_object`, from the object's bytes.
    pub fn open_bytes(&self, object: &ObjectName, bytes: Vec<u8>) -> Result<SegmentReader> {
        self.open_source(object, Source::memory(bytes))
    }

    fn open_source(&self, object: &ObjectName, source: Source) -> Result<SegmentReader> {
        let mut stream = StreamReader::new(&self.keys, ObjectKind::WalSegment, object, source)?;
        let block = stream.next_block()?.ok_or_else(|| RepoError::corrupt(object, "empty"))?;
        let index = WalIndex::from_bytes(block).map_err(|e| RepoError::corrupt(object, e))?;
        if index.system_id != self.place.system_id {
            return Err(RepoError::corrupt(object, "WAL of another cluster"));
        }
        // What a writer goes by has to be true too.
        if stream.facts().is_some_and(|facts| WalIndex::from_bytes(facts).ok() != Some(index.facts())) {
            return Err(RepoError::corrupt(object, "what it says to a writer is not what its index says"));
        }
        // A reference to a block takes more room in the WAL than in the changes.
        let bytes = Some(index.changes_bytes.unwrap_or(0)).filter(|n| *n <= index.segment_size.bytes());
        let bytes = bytes.and_then(|n| usize::try_from(n).ok());
        let bytes = bytes.ok_or_else(|| RepoError::corrupt(object, "its changes are larger than any we write"))?;
        let mut encoded = vec![];
        while encoded.len() < bytes {
            let block = stream.next_block()?.ok_or_else(|| RepoError::corrupt(object, "ends within its changes"))?;
            encoded.extend_from_slice(block);
        }
        if encoded.len() != bytes {
            return Err(RepoError::corrupt(object, "its changes are longer than its index says"));
        }
        let hasher = Some(SegmentHasher::new(index.valid_bytes()));
        Ok(SegmentReader { index, changes: encoded, stream, hasher, object: object.clone() })
    }

    pub fn head(&self) -> Result<WalHead> {
        self.head_of(self.head.read()?.as_ref())
    }

    fn head_of(&self, version: Option<&Version>) -> Result<WalHead> {
        let Some(version) = version else { return Ok(WalHead::default()) };
        WalHead::from_bytes(&version.value).map_err(|e| RepoError::corrupt(self.place.head_dir(), e))
    }

    /// What of the head a listing of the store shows to be there, by name. Says nothing about content.
    pub fn present(&self, head: &WalHead, size: SegmentSize) -> Result<WalHead> {
        let mut seen = WalHead::default();
        for span in head.timelines() {
            if span.history {
                seen.add_history(span.timeline);
            }
            seen.copy_expired(span);
            let dir = self.place.timeline_dir(span.timeline);
            self.store.list(&dir, &mut |stat| {
                if let Some((name, copy)) = names::segment_copy(stat.name.basename(), size)
                    && span.contains(name.segment)
                    && head.copy_of(&name) == copy
                {
                    seen.add_segment(&name, copy);
                }
                Ok(())
            })?;
        }
        Ok(seen)
    }
}

/// In front of the index, where the cluster has a writer.
fn put_facts(w: &mut StreamWriter, index: &WalIndex) -> Result<()> {
    if w.has_facts() { w.facts(&index.facts().to_bytes()) } else { Ok(()) }
}

/// Reads one segment's bytes; at the end they have been compared with the index.
pub struct SegmentReader {
    pub index: WalIndex,
    /// Still encoded.
    changes: Vec<u8>,
    stream: StreamReader,
    hasher: Option<SegmentHasher>,
    object: ObjectName,
}

impl SegmentReader {
    /// What the segment's own records change; None when that was not kept, and has to be read from the WAL.
    pub fn changes(&self) -> Result<Option<Changes>> {
        if self.index.changes_bytes.is_none() {
            return Ok(None);
        }
        let decoded = changes::decode(&self.changes);
        decoded.map(Some).ok_or_else(|| RepoError::corrupt(&self.object, "its changes do not parse"))
    }

    /// Whether the object has the length that its blocks declare; reads next to nothing and checks no content.
    pub fn check_length(self) -> Result<()> {
        self.stream.check_length()
    }

    /// The next bytes of the segment, or None after the last, when all of it has been checked.
    #[expect(clippy::should_implement_trait, reason = "what it returns borrows from it, as no iterator's can")]
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        match self.stream.next_block()? {
            Some(block) => {
                if let Some(h) = &mut self.hasher {
                    h.update(block);
                }
                Ok(Some(block))
            }
            None => {
                if let Some((n, content, valid)) = self.hasher.take().map(SegmentHasher::finish) {
                    let same = n == self.index.segment_size.bytes()
                        && content == self.index.content
                        && valid == self.index.valid_content;
                    if !same {
                        return Err(RepoError::corrupt(&self.object, "not the WAL that was archived"));
                    }
                }
                Ok(None)
            }
        }
    }
}
