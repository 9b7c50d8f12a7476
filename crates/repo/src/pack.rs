//! A pack: frames of one run, one after another, and at the end a sealed table of what is inside.
//! Never rewritten. Any frame can be read alone by its offset.

use std::sync::Arc;

use crate::codec::{Codec, Decoder};
use crate::crypto::{ContentId, Form, HEADER_BYTES, KeySet, ObjectKey, ObjectKind, Purpose, TAG_BYTES, form_of};
use crate::error::{RepoError, Result, say_unsteady, with_healing};
use crate::limits::{FRAME_BYTES_MAX, PACK_TOC_BYTES_MAX};
use crate::manifest::bytes::{Cursor, put_varint};
use crate::seals::{AnewWriter, Place, origin};
use crate::store::{ObjectName, ObjectStat, ObjectWriter, Store};
use crate::stream::{Fingerprint, Source};

pub(crate) const FOOTER_BYTES: usize = 24;
const FOOTER_MAGIC: &[u8; 8] = b"PGARKTOC";

/// Where a frame lies in its pack, and how to decode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAt {
    pub offset: u64,
    /// With the tag.
    pub stored_len: u32,
    pub plain_len: u32,
    pub codec: Codec,
}

impl FrameAt {
    pub(crate) fn aad(&self) -> [u8; 5] {
        let mut a = [0u8; 5];
        a[0] = self.codec as u8;
        a[1..].copy_from_slice(&self.plain_len.to_le_bytes());
        a
    }

    pub fn check_limits(&self) -> bool {
        self.plain_len as usize <= FRAME_BYTES_MAX
            && self.stored_len as usize >= TAG_BYTES
            && self.stored_len as usize <= self.plain_len as usize + TAG_BYTES
    }
}

pub struct PackWriter {
    writer: Box<dyn ObjectWriter>,
    key: ObjectKey,
    hasher: blake3::Hasher,
    offset: u64,
    table: Vec<u8>,
    frames: u32,
}

impl PackWriter {
    pub fn create(store: &dyn Store, keys: &KeySet, name: &ObjectName) -> Result<Self> {
        let (header, key) = keys.new_object(ObjectKind::Pack, name)?;
        let mut writer = store.create(name)?;
        writer.write(&header)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        Ok(PackWriter { writer, key, hasher, offset: HEADER_BYTES as u64, table: vec![], frames: 0 })
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.offset
    }

    /// Seals `encoded` (which is consumed: it holds ciphertext afterwards) and appends it.
    pub fn append(&mut self, codec: Codec, plain_len: usize, id: ContentId, encoded: &mut Vec<u8>) -> Result<FrameAt> {
        let len = |n: usize| u32::try_from(n).expect("frames are bounded");
        let (stored_len, plain_len) = (len(encoded.len() + TAG_BYTES), len(plain_len));
        let at = FrameAt { offset: self.offset, stored_len, plain_len, codec };
        debug_assert!(at.check_limits());
        self.key.seal(Purpose::Frame, at.offset, &at.aad(), encoded, 0);
        self.writer.write(encoded)?;
        self.hasher.update(encoded);
        self.offset += u64::from(stored_len);
        put_varint(&mut self.table, u64::from(stored_len));
        put_varint(&mut self.table, u64::from(plain_len));
        self.table.push(codec as u8);
        self.table.extend_from_slice(&id.0);
        self.frames += 1;
        Ok(at)
    }

    /// Writes the table. What is returned still has to be committed, possibly on another thread:
    /// that is where the waiting for the disk happens.
    pub fn seal(mut self) -> Result<SealedPack> {
        let mut table = std::mem::take(&mut self.table);
        let footer = footer(self.offset, table.len(), self.frames as usize);
        self.key.seal(Purpose::TableOfContents, self.offset, &footer, &mut table, 0);
        for part in [&table[..], &footer] {
            self.writer.write(part)?;
            self.hasher.update(part);
        }
        let size = self.offset + table.len() as u64 + FOOTER_BYTES as u64;
        let print = Fingerprint { size, blake3: self.hasher.finalize().to_hex().to_string() };
        Ok(SealedPack { writer: self.writer, print })
    }
}

/// The end of a pack whose table begins at `offset`.
pub(crate) fn footer(offset: u64, table_len: usize, frames: usize) -> [u8; FOOTER_BYTES] {
    let number = |n: usize| u32::try_from(n).expect("packs are bounded").to_le_bytes();
    let mut footer = [0u8; FOOTER_BYTES];
    footer[..8].copy_from_slice(&offset.to_le_bytes());
    footer[8..12].copy_from_slice(&number(table_len + TAG_BYTES));
    footer[12..16].copy_from_slice(&number(frames));
    footer[16..].copy_from_slice(FOOTER_MAGIC);
    footer
}

pub struct SealedPack {
    writer: Box<dyn ObjectWriter>,
    print: Fingerprint,
}

impl SealedPack {
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.print
    }

    /// Durable and visible when this returns.
    pub fn commit(self) -> Result<Fingerprint> {
        self.writer.finish()?;
        Ok(self.print)
    }
}

/// Opens frames of one pack. Cheap to keep, safe to share between threads.
pub struct PackReader {
    store: Arc<dyn Store>,
    name: ObjectName,
    /// The seal that is read, and its size.
    seal: ObjectStat,
    key: ObjectKey,
    form: Form,
}

impl PackReader {
    pub fn open(store: Arc<dyn Store>, keys: &KeySet, name: &ObjectName) -> Result<Self> {
        with_healing(&*store, name, || Self::open_at(store.clone(), keys, name, store.find(name)?))
    }

    fn open_at(store: Arc<dyn Store>, keys: &KeySet, name: &ObjectName, seal: ObjectStat) -> Result<Self> {
        let mut header = [0u8; HEADER_BYTES];
        store.read_at(&seal.name, 0, &mut header)?;
        let key = keys.open_object(&header, ObjectKind::Pack, name)?;
        let form = form_of(&header).unwrap_or(Form::Readers);
        Ok(PackReader { store, name: name.clone(), seal, key, form })
    }

    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Fetches `len` stored bytes at `offset`: one or more neighbouring frames.
    pub fn fetch(&self, offset: u64, len: usize, buf: &mut Vec<u8>) -> Result<()> {
        buf.resize(len, 0);
        with_healing(&*self.store, &self.seal.name, || Ok(self.store.read_at(&self.seal.name, offset, buf)?))
    }

    /// Opens and decodes one frame from its stored bytes (which are overwritten).
    pub fn decode(&self, at: &FrameAt, stored: &mut [u8], decoder: &mut Decoder, plain: &mut Vec<u8>) -> Result<()> {
        if at.check_limits() {
            plain.resize(at.plain_len as usize, 0);
        }
        self.decode_into(at, stored, decoder, plain)
    }

    /// As `decode`, into memory of exactly the frame's length.
    pub fn decode_into(&self, at: &FrameAt, stored: &mut [u8], decoder: &mut Decoder, plain: &mut [u8]) -> Result<()> {
        let first = match self.decode_once(at, stored, decoder, plain) {
            Err(e) if e.is_damage() => e,
            other => return other,
        };
        let mut again = || -> Result<()> {
            self.store.read_at(&self.seal.name, at.offset, stored)?;
            self.decode_once(at, stored, decoder, plain)
        };
        match again() {
            Err(e) if e.is_damage() => {}
            other => return other.inspect(|()| say_unsteady(&self.seal.name, &first)),
        }
        if self.store.heal(&self.seal.name) { again() } else { Err(first) }
    }

    fn decode_once(&self, at: &FrameAt, stored: &mut [u8], decoder: &mut Decoder, plain: &mut [u8]) -> Result<()> {
        let bad = |what: String| RepoError::corrupt(&self.name, format!("frame at {}: {what}", at.offset));
        let fits = stored.len() == at.stored_len as usize && plain.len() == at.plain_len as usize;
        if !at.check_limits() || !fits {
            return Err(bad("its lengths are out of bounds".into()));
        }
        let n =
            self.key.open(Purpose::Frame, at.offset, &at.aad(), stored).ok_or_else(|| bad("fails its seal".into()))?;
        decoder.decode_into(at.codec, &stored[..n], plain).map_err(bad)
    }
}

/// One frame as the pack's own table lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    pub at: FrameAt,
    pub id: ContentId,
}

/// Decodes a pack's table from its footer and sealed bytes.
pub(crate) fn parse_table(name: &ObjectName, plain: &[u8], frames: u32, table_offset: u64) -> Result<Vec<TableEntry>> {
    let bad = || RepoError::corrupt(name, "its table of contents does not parse");
    let mut c = Cursor::new(plain);
    let mut offset = HEADER_BYTES as u64;
    let mut out = vec![];
    for _ in 0..frames {
        let stored_len = u32::try_from(c.varint().ok_or_else(bad)?).map_err(|_| bad())?;
        let plain_len = u32::try_from(c.varint().ok_or_else(bad)?).map_err(|_| bad())?;
        let codec = c.byte().and_then(Codec::from_byte).ok_or_else(bad)?;
        let id = ContentId(c.array().ok_or_else(bad)?);
        let at = FrameAt { offset, stored_len, plain_len, codec };
        if !at.check_limits() {
            return Err(bad());
        }
        offset += u64::from(stored_len);
        out.push(TableEntry { at, id });
    }
    if !c.is_empty() || offset != table_offset { Err(bad()) } else { Ok(out) }
}

/// As `read_whole`, and compares the whole with the fingerprint that the manifest has of it.
pub fn verify(store: &Arc<dyn Store>, keys: &KeySet, name: &ObjectName, expected: &Fingerprint) -> Result<u64> {
    let size = store.stat(name)?.size;
    if size != expected.size {
        return Err(RepoError::corrupt(name, format!("{size} bytes, {} were written", expected.size)));
    }
    let (print, _) = read_whole(store, keys, name)?;
    if print == *expected { Ok(size) } else { Err(RepoError::corrupt(name, "not the pack that its backup wrote")) }
}

/// Bytes of a pack that are read at once.
const READ_AHEAD: usize = 4 * 1024 * 1024;

/// Reads a whole pack front to back: every byte is authenticated, every frame decoded and compared with its content id.
pub fn read_whole(store: &Arc<dyn Store>, keys: &KeySet, name: &ObjectName) -> Result<(Fingerprint, Vec<TableEntry>)> {
    read_whole_at(store, keys, name, &store.find(name)?.name)
}

/// As `read_whole`, that seal of it.
pub(crate) fn read_whole_at(
    store: &Arc<dyn Store>,
    keys: &KeySet,
    name: &ObjectName,
    seal: &ObjectName,
) -> Result<(Fingerprint, Vec<TableEntry>)> {
    let bad = |what: &str| RepoError::corrupt(name, what);
    let reader = PackReader::open_at(store.clone(), keys, name, store.find(seal)?)?;
    let table = read_table(&reader)?.entries;
    let (mut decoder, mut plain) = (Decoder::new()?, vec![]);
    let print = read_through(&reader, &table, &mut |entry, stored| {
        plain.resize(entry.at.plain_len as usize, 0);
        reader.decode_into(&entry.at, stored, &mut decoder, &mut plain)?;
        if keys.content_id(&plain) != entry.id {
            return Err(bad(&format!("frame at {} is not what was read from the database", entry.at.offset)));
        }
        Ok(())
    })?;
    Ok((print, table))
}

/// Hands out every frame as it is stored, in order. Returns the fingerprint of the pack as it was first written.
fn read_through(
    reader: &PackReader,
    table: &[TableEntry],
    take: &mut dyn FnMut(&TableEntry, &mut [u8]) -> Result<()>,
) -> Result<Fingerprint> {
    let (name, size) = (&reader.name, reader.seal.size);
    let mut hasher = blake3::Hasher::new();
    let mut source = Source::object_with_read_ahead(reader.store.clone(), &reader.seal.name, READ_AHEAD)?;
    let short = || RepoError::corrupt(name, "it ends before its table says");
    hasher.update(source.take(HEADER_BYTES)?.ok_or_else(short)?);
    let mut at = HEADER_BYTES as u64;
    for entry in table {
        let stored = source.take(entry.at.stored_len as usize)?.ok_or_else(short)?;
        hasher.update(stored);
        take(entry, stored)?;
        at += u64::from(entry.at.stored_len);
    }
    let tail = usize::try_from(size - at).map_err(|_| RepoError::corrupt(name, "table too large"))?;
    hasher.update(source.take(tail)?.ok_or_else(short)?);
    let stored = Fingerprint { size, blake3: hasher.finalize().to_hex().to_string() };
    match source.tail()? {
        Some(tail) => origin(&reader.key, name, &stored, &tail),
        None => Ok(stored),
    }
}

/// See `seals::seal_into`. Frames are not decompressed.
pub(crate) fn seal_into(from: &Place<'_>, to: &Place<'_>, name: &ObjectName) -> Result<(AnewWriter, Fingerprint)> {
    let reader = PackReader::open(from.store.clone(), from.keys, name)?;
    let Table { entries, mut plain, footer, offset } = read_table(&reader)?;
    let mut anew = AnewWriter::create(to, reader.form, ObjectKind::Pack, name)?;
    let mut frame = vec![];
    let print = read_through(&reader, &entries, &mut |entry, stored| {
        let (at, aad) = (entry.at.offset, entry.at.aad());
        let opened = reader.key.open(Purpose::Frame, at, &aad, stored);
        let n = opened.ok_or_else(|| RepoError::corrupt(name, format!("frame at {at}: fails its seal")))?;
        frame.clear();
        frame.extend_from_slice(&stored[..n]);
        anew.seal(Purpose::Frame, at, &aad, &mut frame)
    })?;
    anew.seal(Purpose::TableOfContents, offset, &footer, &mut plain)?;
    anew.put(&footer)?;
    Ok((anew, print))
}

struct Table {
    entries: Vec<TableEntry>,
    plain: Vec<u8>,
    footer: Vec<u8>,
    offset: u64,
}

fn read_table(reader: &PackReader) -> Result<Table> {
    let bad = |what: &str| RepoError::corrupt(&reader.name, what);
    let footer_at = reader
        .seal
        .size
        .checked_sub(FOOTER_BYTES as u64)
        .filter(|at| *at >= HEADER_BYTES as u64)
        .ok_or_else(|| bad("shorter than an empty pack"))?;
    let mut footer = vec![];
    reader.fetch(footer_at, FOOTER_BYTES, &mut footer)?;
    let (offset, len, frames) = parse_footer(&reader.name, &footer, footer_at)?;
    let mut plain = vec![];
    reader.fetch(offset, len as usize, &mut plain)?;
    let n = reader
        .key
        .open(Purpose::TableOfContents, offset, &footer, &mut plain)
        .ok_or_else(|| bad("its table of contents fails its seal"))?;
    plain.truncate(n);
    let entries = parse_table(&reader.name, &plain, frames, offset)?;
    Ok(Table { entries, plain, footer, offset })
}

/// Where the table begins, its stored length, and the number of frames.
pub(crate) fn parse_footer(name: &ObjectName, footer: &[u8], footer_at: u64) -> Result<(u64, u32, u32)> {
    let bad = |what: &str| RepoError::corrupt(name, what);
    let mut c = Cursor::new(footer);
    let fields = (|| Some((c.u64()?, c.u32()?, c.u32()?, c.array::<8>()?)))();
    let (offset, len, frames, magic) = fields.ok_or_else(|| bad("footer does not parse"))?;
    if &magic != FOOTER_MAGIC || offset.checked_add(u64::from(len)) != Some(footer_at) {
        return Err(bad("footer damaged"));
    }
    if len as usize > PACK_TOC_BYTES_MAX || offset < HEADER_BYTES as u64 {
        return Err(bad("its table of contents is larger than any we write"));
    }
    Ok((offset, len, frames))
}
