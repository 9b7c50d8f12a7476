//! The manifest: every directory, link and file of a backup, sorted, and for each chunk of a file where its
//! bytes are. Written and read as a stream; memory does not grow with the number of files.
//!
//! Invariant: an item that parses is within its limits: paths are relative, without `.`, `..` or empty parts,
//! in strictly ascending order; chunks cover their file exactly.

pub mod bytes;
mod item;

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::Compression;
use crate::crypto::{KeySet, ObjectKind};
use crate::error::{RepoError, Result};
use crate::limits::FRAME_BYTES_MAX;
use crate::names::BackupId;
use crate::store::{ObjectName, Store};
use crate::stream::{Fingerprint, Sink, StreamReader, StreamWriter};

pub use item::{
    Attributes, BadBlock, Chunk, Directory, FileEnd, FileStart, HardLink, Item, PackId, Part, Symlink, check_path,
    path_order,
};
use item::{ItemState, decode_item, encode_item};

/// Writes items in the order given and checks that the order is right: a wrong manifest is our own mistake.
pub struct ManifestWriter {
    stream: StreamWriter,
    state: ItemState,
    buffer: Vec<u8>,
    last_path: Option<Vec<u8>>,
}

impl ManifestWriter {
    pub fn create(store: &dyn Store, keys: &KeySet, name: &ObjectName) -> Result<Self> {
        let sink = Sink::Object(store.create(name)?);
        let stream = StreamWriter::new(keys, ObjectKind::Manifest, name, sink, Compression::DEFAULT)?;
        Ok(ManifestWriter { stream, state: ItemState::default(), buffer: vec![], last_path: None })
    }

    pub fn push(&mut self, item: &Item) -> Result<()> {
        if let Some(path) = item.path() {
            assert!(check_path(path), "paths are checked when they are scanned");
            if let Some(last) = &self.last_path {
                assert!(path_order(last, path).is_lt(), "manifest items are pushed in order");
            }
            self.last_path = Some(path.to_vec());
        }
        self.buffer.clear();
        encode_item(&mut self.state, item, &mut self.buffer);
        let len = self.buffer.len();
        let mut head = Vec::with_capacity(5);
        bytes::put_varint(&mut head, len as u64);
        self.stream.write(&head)?;
        self.stream.write(&self.buffer)
    }

    pub fn finish(self) -> Result<Fingerprint> {
        self.stream.finish()
    }
}

/// Reads items one by one. Everything is checked here, so that callers can rely on it.
pub struct ManifestReader {
    stream: StreamReader,
    state: ItemState,
    object: String,
    pending: Vec<u8>,
    used: usize,
    ended: bool,
    last_path: Option<Vec<u8>>,
    /// Some(bytes covered by chunks) while a file is open.
    open_file: Option<u64>,
    /// Whether the item before is one whose attributes may follow.
    may_have_attributes: bool,
    packs: HashMap<u32, PackId>,
}

/// The most that one item can take: 4096 chunks of the largest form stay below it.
const ITEM_BYTES_MAX: usize = 16 * 1024 * 1024;

impl ManifestReader {
    pub fn open(store: Arc<dyn Store>, keys: &KeySet, name: &ObjectName) -> Result<Self> {
        Ok(Self::new(StreamReader::open(store, keys, ObjectKind::Manifest, name)?, name))
    }

    pub fn new(stream: StreamReader, name: &ObjectName) -> Self {
        ManifestReader {
            stream,
            state: ItemState::default(),
            object: name.to_string(),
            pending: vec![],
            used: 0,
            ended: false,
            last_path: None,
            open_file: None,
            may_have_attributes: false,
            packs: HashMap::new(),
        }
    }

    fn bad(&self, what: &str) -> RepoError {
        RepoError::corrupt(&self.object, what)
    }

    /// The pack behind an index that an item used.
    pub fn pack(&self, index: u32) -> Option<&PackId> {
        self.packs.get(&index)
    }

    pub fn next_item(&mut self) -> Result<Option<Item>> {
        let Some(raw) = self.next_raw()? else {
            if self.open_file.is_some() {
                return Err(self.bad("ends within a file"));
            }
            return Ok(None);
        };
        let item = decode_item(&mut self.state, &raw).ok_or_else(|| self.bad("an item does not parse"))?;
        self.check(&item)?;
        Ok(Some(item))
    }

    /// Of the whole object, once `next_item` returned None.
    pub fn fingerprint(&self) -> Fingerprint {
        self.stream.fingerprint()
    }

    fn check(&mut self, item: &Item) -> Result<()> {
        if let Some(path) = item.path() {
            if !check_path(path) {
                return Err(self.bad("a path leaves the data directory"));
            }
            if self.last_path.as_ref().is_some_and(|last| !path_order(last, path).is_lt()) {
                return Err(self.bad("paths are not in order"));
            }
            self.last_path = Some(path.to_vec());
        }
        if matches!(item, Item::BadBlock(b) if b.file.is_empty() || !check_path(&b.file)) {
            return Err(self.bad("a path leaves the data directory"));
        }
        let had_attributes = std::mem::replace(
            &mut self.may_have_attributes,
            matches!(item, Item::Directory(_) | Item::Symlink(_) | Item::FileEnd(_)),
        );
        match (item, self.open_file) {
            (Item::Attributes(_), None) if had_attributes => {}
            (Item::HardLink(link), None) => {
                if link.target.is_empty() || !check_path(&link.target) || path_order(&link.target, &link.path).is_ge() {
                    return Err(self.bad("a hard link to what does not come before it"));
                }
            }
            (Item::Pack(index, id), _) => {
                if self.packs.insert(*index, id.clone()).is_some() {
                    return Err(self.bad("a pack is declared twice"));
                }
            }
            (Item::PackDone(index, _), _) => {
                if !self.packs.contains_key(index) {
                    return Err(self.bad("an undeclared pack"));
                }
            }
            (Item::FileStart(_), None) => self.open_file = Some(0),
            (Item::Chunks(chunks), Some(mut covered)) => {
                for chunk in chunks {
                    if !chunk.parts().is_empty() && chunk.len() > FRAME_BYTES_MAX as u64 {
                        return Err(self.bad("a chunk larger than any we write"));
                    }
                    if chunk.parts().iter().any(|p| !self.packs.contains_key(&p.pack)) {
                        return Err(self.bad("a chunk in an undeclared pack"));
                    }
                    covered = covered.checked_add(chunk.len()).ok_or_else(|| self.bad("a file of impossible size"))?;
                }
                self.open_file = Some(covered);
            }
            (Item::FileEnd(end), Some(covered)) => {
                if end.size != covered {
                    return Err(self.bad("chunks do not cover their file"));
                }
                self.open_file = None;
            }
            (Item::Directory(_) | Item::Symlink(_) | Item::Vanished(_), None) | (Item::BadBlock(_), _) => {}
            _ => return Err(self.bad("items in an impossible order")),
        }
        Ok(())
    }

    fn next_raw(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut c = bytes::Cursor::new(self.pending.get(self.used..).unwrap_or_default());
            let before = c.remaining();
            if let Some(len) = c.varint() {
                let len = usize::try_from(len).ok().filter(|n| *n <= ITEM_BYTES_MAX);
                let len = len.ok_or_else(|| self.bad("an item larger than any we write"))?;
                if let Some(raw) = c.take(len) {
                    self.used += before - c.remaining();
                    return Ok(Some(raw.to_vec()));
                }
            } else if before >= 10 {
                return Err(self.bad("an item length does not parse"));
            }
            if self.ended {
                return if before == 0 { Ok(None) } else { Err(self.bad("ends within an item")) };
            }
            self.pending.drain(..self.used);
            self.used = 0;
            match self.stream.next_block()? {
                Some(block) => self.pending.extend_from_slice(block),
                None => self.ended = true,
            }
        }
    }
}

/// A pack of a manifest's table once the whole manifest was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackUse {
    pub id: PackId,
    pub fingerprint: Fingerprint,
    /// Stored bytes of it that the manifest uses; of a frame that is used in part, in proportion.
    pub used_bytes: u64,
}

/// Reads a whole manifest for the packs it needs; authenticates everything on the way.
pub fn packs_of(mut reader: ManifestReader) -> Result<(Vec<PackUse>, Fingerprint)> {
    let mut uses = vec![];
    let mut used: HashMap<u32, u64> = HashMap::new();
    while let Some(item) = reader.next_item()? {
        match item {
            Item::PackDone(index, fingerprint) => {
                let id = reader.pack(index).expect("checked by the reader").clone();
                let used_bytes = used.get(&index).copied().unwrap_or(0);
                uses.push(PackUse { id, fingerprint, used_bytes });
            }
            Item::Chunks(chunks) => {
                for part in chunks.iter().flat_map(Chunk::parts) {
                    let plain = u64::from(part.frame.plain_len).max(1);
                    let share = u64::from(part.frame.stored_len) * u64::from(part.len) / plain;
                    *used.entry(part.pack).or_default() += share;
                }
            }
            _ => {}
        }
    }
    if uses.len() != reader.packs.len() {
        return Err(reader.bad("a pack without its fingerprint"));
    }
    Ok((uses, reader.fingerprint()))
}

impl PackId {
    pub fn new(backup: &BackupId, number: u32) -> Self {
        PackId { backup: backup.clone(), number }
    }
}
