//! A sealed stream: header, then blocks of compressed, sealed plaintext, the last one marked. Written and read
//! front to back in constant memory. A cut, reordered, repeated or extended stream does not open.
//!
//! It can be read from its first block alone, which is how WAL objects show their index. What an object says to the writer
//! of its cluster is a block before that one, under a key of its own.

use std::sync::Arc;

use crate::codec::{Codec, Compression, Decoder, Encoder};
use crate::crypto::{Form, HEADER_BYTES, KeySet, ObjectKey, ObjectKind, Purpose, TAG_BYTES, form_of};
use crate::error::{RepoError, Result, say_unsteady, with_healing};
use crate::limits::{BLOCK_BYTES, BLOCK_BYTES_MAX};
use crate::names::split_seal;
use crate::seals::{AnewWriter, Place, TAIL_BYTES, origin};
use crate::store::{ObjectName, ObjectWriter, Store};

const BLOCK_HEADER_BYTES: usize = 12;
const FLAG_LAST: u8 = 1;
/// What one read of the store fetches ahead.
const READ_AHEAD: usize = 1024 * 1024;

/// Where a stream's bytes go.
pub enum Sink {
    Object(Box<dyn ObjectWriter>),
    Memory(Vec<u8>),
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Sink::Object(w) => Ok(w.write(bytes)?),
            Sink::Memory(v) => {
                v.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// What was written: enough for others to recognise exactly these bytes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint {
    pub size: u64,
    pub blake3: String,
}

pub struct StreamWriter {
    sink: Sink,
    key: ObjectKey,
    encoder: Encoder,
    hasher: blake3::Hasher,
    size: u64,
    block: u64,
    plain: Vec<u8>,
    stored: Vec<u8>,
}

impl StreamWriter {
    pub fn new(
        keys: &KeySet,
        kind: ObjectKind,
        name: &ObjectName,
        sink: Sink,
        compression: Compression,
    ) -> Result<Self> {
        Self::new_in(keys.form_of_new(name), keys, kind, name, sink, compression)
    }

    /// As `new`, whoever writes to the cluster.
    pub fn new_in(
        form: Form,
        keys: &KeySet,
        kind: ObjectKind,
        name: &ObjectName,
        sink: Sink,
        compression: Compression,
    ) -> Result<Self> {
        let (header, key) = keys.new_object_in(form, kind, name)?;
        let mut w = StreamWriter {
            sink,
            key,
            encoder: Encoder::new(compression)?,
            hasher: blake3::Hasher::new(),
            size: 0,
            block: 0,
            plain: Vec::with_capacity(BLOCK_BYTES),
            stored: Vec::new(),
        };
        w.emit(&header)?;
        Ok(w)
    }

    /// Whether `facts` has to be called before anything is written.
    pub fn has_facts(&self) -> bool {
        self.key.has_facts()
    }

    /// What the writer of the cluster may know of the object: a block of its own, before all others.
    pub fn facts(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(self.block == 0 && self.plain.is_empty(), "facts come first");
        assert!(bytes.len() <= BLOCK_BYTES_MAX, "a block is bounded by its reader");
        let codec = self.encoder.encode(bytes, &mut self.stored)?;
        self.seal_as(Purpose::Facts, codec, bytes.len())
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.sink.write(bytes)
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = BLOCK_BYTES - self.plain.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.plain.extend_from_slice(now);
            bytes = later;
            if self.plain.len() == BLOCK_BYTES {
                self.end_block()?;
            }
        }
        Ok(())
    }

    /// One block of its own, whatever its size up to the reader's limit.
    pub fn write_block(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= BLOCK_BYTES_MAX, "a block is bounded by its reader");
        if !self.plain.is_empty() {
            self.end_block()?;
        }
        self.plain.extend_from_slice(bytes);
        self.end_block()
    }

    /// One block that somebody has encoded already.
    pub fn write_encoded(&mut self, plain_len: usize, codec: Codec, encoded: &[u8]) -> Result<()> {
        assert!(plain_len <= BLOCK_BYTES_MAX, "a block is bounded by its reader");
        if !self.plain.is_empty() {
            self.end_block()?;
        }
        self.stored.clear();
        self.stored.extend_from_slice(encoded);
        self.seal_block(codec, plain_len, false)
    }

    pub fn end_block(&mut self) -> Result<()> {
        self.put_block(false)
    }

    fn put_block(&mut self, last: bool) -> Result<()> {
        let codec = self.encoder.encode(&self.plain, &mut self.stored)?;
        let plain_len = self.plain.len();
        self.plain.clear();
        self.seal_block(codec, plain_len, last)
    }

    fn seal_block(&mut self, codec: Codec, plain_len: usize, last: bool) -> Result<()> {
        assert!(self.block > 0 || !self.has_facts(), "facts come first");
        self.seal_as(if last { Purpose::LastBlock } else { Purpose::Block }, codec, plain_len)
    }

    fn seal_as(&mut self, purpose: Purpose, codec: Codec, plain_len: usize) -> Result<()> {
        let last = purpose == Purpose::LastBlock;
        let header = block_header(self.stored.len() + TAG_BYTES, plain_len, codec, last);
        self.key.seal(purpose, self.block, &header, &mut self.stored, 0);
        self.block += 1;
        let stored = std::mem::take(&mut self.stored);
        self.emit(&header)?;
        self.emit(&stored)?;
        self.stored = stored;
        Ok(())
    }

    /// Writes what remains as the last block. The object is not committed yet.
    pub fn seal(mut self) -> Result<(Sink, Fingerprint)> {
        self.put_block(true)?;
        let print = Fingerprint { size: self.size, blake3: self.hasher.finalize().to_hex().to_string() };
        Ok((self.sink, print))
    }

    /// Seals and commits an object that was created in a store.
    pub fn finish(self) -> Result<Fingerprint> {
        match self.seal()? {
            (Sink::Object(w), print) => {
                w.finish()?;
                Ok(print)
            }
            (Sink::Memory(_), _) => unreachable!("finish is called for objects in a store"),
        }
    }
}

fn block_header(stored: usize, plain: usize, codec: Codec, last: bool) -> [u8; BLOCK_HEADER_BYTES] {
    let mut h = [0u8; BLOCK_HEADER_BYTES];
    let len = |n: usize| u32::try_from(n).expect("blocks are bounded").to_le_bytes();
    h[..4].copy_from_slice(&len(stored));
    h[4..8].copy_from_slice(&len(plain));
    h[8] = codec as u8;
    h[9] = if last { FLAG_LAST } else { 0 };
    h
}

/// A small value as one sealed object in memory.
pub fn seal_bytes(keys: &KeySet, kind: ObjectKind, name: &ObjectName, plain: &[u8]) -> Result<Vec<u8>> {
    seal_bytes_in(keys.form_of_new(name), keys, kind, name, plain)
}

/// As `seal_bytes`, whoever writes to the cluster.
pub fn seal_bytes_in(form: Form, keys: &KeySet, kind: ObjectKind, name: &ObjectName, plain: &[u8]) -> Result<Vec<u8>> {
    let mut w = StreamWriter::new_in(form, keys, kind, name, Sink::Memory(Vec::new()), Compression::DEFAULT)?;
    w.write(plain)?;
    match w.seal()?.0 {
        Sink::Memory(v) => Ok(v),
        Sink::Object(_) => unreachable!("sealed into memory"),
    }
}

/// The inverse of `seal_bytes`; `max` bounds the plaintext.
pub fn open_bytes(keys: &KeySet, kind: ObjectKind, name: &ObjectName, sealed: Vec<u8>, max: usize) -> Result<Vec<u8>> {
    StreamReader::new(keys, kind, name, Source::memory(sealed))?.read_to_end(max)
}

/// Sequential bytes of one object.
pub struct Source {
    store: Option<Arc<dyn Store>>,
    name: Option<ObjectName>,
    size: u64,
    fetched: u64,
    window: Vec<u8>,
    used: usize,
    read_ahead: usize,
}

impl Source {
    pub fn object(store: Arc<dyn Store>, name: &ObjectName) -> Result<Self> {
        Self::object_with_read_ahead(store, name, READ_AHEAD)
    }

    /// A small first read serves those who want the first block only.
    pub fn object_with_read_ahead(store: Arc<dyn Store>, name: &ObjectName, read_ahead: usize) -> Result<Self> {
        let found = store.find(name)?;
        Ok(Source {
            store: Some(store),
            name: Some(found.name),
            size: found.size,
            fetched: 0,
            window: vec![],
            used: 0,
            read_ahead,
        })
    }

    pub fn memory(bytes: Vec<u8>) -> Self {
        let size = bytes.len() as u64;
        Source { store: None, name: None, size, fetched: size, window: bytes, used: 0, read_ahead: 0 }
    }

    /// What follows the object where it is a later seal.
    pub(crate) fn tail(&self) -> Result<Option<[u8; TAIL_BYTES]>> {
        let (Some(store), Some(name)) = (&self.store, &self.name) else { return Ok(None) };
        if split_seal(name).is_none() {
            return Ok(None);
        }
        let mut tail = [0; TAIL_BYTES];
        store.read_at(name, self.size, &mut tail)?;
        Ok(Some(tail))
    }

    /// Of the next byte that is taken.
    fn position(&self) -> u64 {
        self.size - self.remaining()
    }

    /// Begins again at `position`; false where it was never read from a store.
    fn again(&mut self, position: u64) -> bool {
        if self.store.is_none() {
            return false;
        }
        (self.fetched, self.used) = (position.min(self.size), 0);
        self.window.clear();
        true
    }

    /// As `again`, when the store could heal the object.
    fn heal(&mut self, position: u64) -> Result<bool> {
        let (Some(store), Some(name)) = (&self.store, &self.name) else { return Ok(false) };
        if !store.heal(name) {
            return Ok(false);
        }
        self.size = store.stat(name)?.size;
        Ok(self.again(position))
    }

    fn remaining(&self) -> u64 {
        (self.window.len() - self.used) as u64 + (self.size - self.fetched)
    }

    /// Passes over `n` bytes; false when fewer are left.
    fn skip(&mut self, n: u64) -> bool {
        if self.remaining() < n {
            return false;
        }
        let here = ((self.window.len() - self.used) as u64).min(n);
        self.used += usize::try_from(here).expect("within the window");
        self.fetched += n - here;
        true
    }

    /// The next `n` bytes, or None when fewer are left. `n` is bounded by the caller.
    pub(crate) fn take(&mut self, n: usize) -> Result<Option<&mut [u8]>> {
        if self.remaining() < n as u64 {
            return Ok(None);
        }
        if self.window.len() - self.used < n {
            self.window.drain(..self.used);
            self.used = 0;
            let have = self.window.len();
            let want = (n - have).max(self.read_ahead);
            let want = usize::try_from((self.size - self.fetched).min(want as u64)).unwrap_or(want);
            self.window.resize(have + want, 0);
            if let (Some(store), Some(name)) = (&self.store, &self.name) {
                store.read_at(name, self.fetched, &mut self.window[have..])?;
            }
            self.fetched += want as u64;
        }
        let from = self.used;
        self.used += n;
        Ok(Some(&mut self.window[from..from + n]))
    }
}

/// A block's header, and what it was sealed with.
type Opened = ([u8; BLOCK_HEADER_BYTES], Purpose, u64);

pub struct StreamReader {
    source: Source,
    key: ObjectKey,
    form: Form,
    /// What the object says to the writer of its cluster; once the first block was asked for.
    facts: Option<Vec<u8>>,
    object: String,
    decoder: Decoder,
    hasher: blake3::Hasher,
    block: u64,
    done: bool,
    /// A block, still compressed.
    opened: Vec<u8>,
    plain: Vec<u8>,
    /// What was first written, when this is a later seal of it that was read to its end.
    origin: Option<Fingerprint>,
}

impl StreamReader {
    pub fn new(keys: &KeySet, kind: ObjectKind, name: &ObjectName, mut source: Source) -> Result<Self> {
        let header = source.take(HEADER_BYTES)?.ok_or_else(|| RepoError::corrupt(name, "shorter than its header"))?;
        let key = keys.open_object(header, kind, name)?;
        let form = header.first_chunk().and_then(form_of).unwrap_or(Form::Readers);
        let mut hasher = blake3::Hasher::new();
        hasher.update(header);
        let (object, decoder) = (name.to_string(), Decoder::new()?);
        Ok(StreamReader {
            source,
            key,
            form,
            facts: None,
            object,
            decoder,
            hasher,
            block: 0,
            done: false,
            opened: vec![],
            plain: vec![],
            origin: None,
        })
    }

    pub fn open(store: Arc<dyn Store>, keys: &KeySet, kind: ObjectKind, name: &ObjectName) -> Result<Self> {
        with_healing(&*store, name, || Self::new(keys, kind, name, Source::object(store.clone(), name)?))
    }

    /// What the object says to the writer of its cluster; None where it says nothing, or nothing was read yet.
    pub fn facts(&self) -> Option<&[u8]> {
        self.facts.as_deref()
    }

    /// The next block's plaintext, or None after the last one.
    pub fn next_block(&mut self) -> Result<Option<&[u8]>> {
        if self.block == 0 && self.key.has_facts() {
            self.decode_next()?;
            self.facts = Some(self.plain.clone());
        }
        Ok(if self.decode_next()? { Some(&self.plain) } else { None })
    }

    /// Whether there was another block; its plaintext is in `plain`.
    fn decode_next(&mut self) -> Result<bool> {
        let mut opened = std::mem::take(&mut self.opened);
        let next = self.next_opened(&mut opened);
        self.opened = opened;
        let Some((header, _, _)) = next? else { return Ok(false) };
        let object = &self.object;
        let bad = |what: &str| RepoError::corrupt(object, what);
        let [_, _, _, _, p0, p1, p2, p3, codec, ..] = header;
        let plain_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
        let codec = Codec::from_byte(codec).ok_or_else(|| bad("unknown codec"))?;
        self.decoder.decode(codec, &self.opened, plain_len, &mut self.plain).map_err(|e| bad(&e))?;
        Ok(true)
    }

    /// Replaces `opened` by the next block, authenticated and still compressed; its header, and what it was sealed with.
    fn next_opened(&mut self, opened: &mut Vec<u8>) -> Result<Option<Opened>> {
        if self.done {
            return Ok(None);
        }
        let (position, hasher) = (self.source.position(), self.hasher.clone());
        let first = match self.open_block(opened) {
            Err(e) if e.is_damage() => e,
            other => return other.map(Some),
        };
        if self.source.again(position) {
            self.hasher = hasher.clone();
            match self.open_block(opened) {
                Err(e) if e.is_damage() => {}
                other => return other.inspect(|_| say_unsteady(&self.object, &first)).map(Some),
            }
        }
        if !self.source.heal(position)? {
            return Err(first);
        }
        self.hasher = hasher;
        self.open_block(opened).map(Some)
    }

    fn open_block(&mut self, opened: &mut Vec<u8>) -> Result<Opened> {
        let object = &self.object;
        let bad = |what: &str| RepoError::corrupt(object, what);
        let header: [u8; BLOCK_HEADER_BYTES] = match self.source.take(BLOCK_HEADER_BYTES)? {
            Some(h) => (&*h).try_into().map_err(|_| bad("truncated"))?,
            None => return Err(bad("truncated")),
        };
        let [s0, s1, s2, s3, p0, p1, p2, p3, _, flags, ..] = header;
        let stored_len = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
        let plain_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
        let last = flags & FLAG_LAST != 0;
        if plain_len > BLOCK_BYTES_MAX || stored_len > plain_len + TAG_BYTES {
            return Err(bad("a block is larger than any we write"));
        }
        let stored = self.source.take(stored_len)?.ok_or_else(|| bad("truncated"))?;
        self.hasher.update(&header).update(stored);
        let block = self.block;
        let purpose = match block {
            0 if self.key.has_facts() && last => return Err(bad("it ends with what it says to a writer")),
            0 if self.key.has_facts() => Purpose::Facts,
            _ if last => Purpose::LastBlock,
            _ => Purpose::Block,
        };
        let n = self.key.open(purpose, block, &header, stored).ok_or_else(|| bad("a block fails its seal"))?;
        opened.clear();
        opened.extend_from_slice(&stored[..n]);
        if last && self.source.remaining() != 0 {
            return Err(bad("bytes after the end"));
        }
        if last && let Some(tail) = self.source.tail()? {
            self.origin = Some(origin(&self.key, &self.object, &self.stored(), &tail)?);
        }
        self.block += 1;
        self.done = last;
        Ok((header, purpose, block))
    }

    /// Whether the rest of the object has the length that its blocks declare. Opens nothing.
    pub fn check_length(mut self) -> Result<()> {
        let object = self.object.clone();
        let bad = |what: &str| RepoError::corrupt(&object, what);
        while !self.done {
            let header = self.source.take(BLOCK_HEADER_BYTES)?.ok_or_else(|| bad("truncated"))?;
            let mut c = crate::manifest::bytes::Cursor::new(header);
            let stored_len = c.u32().ok_or_else(|| bad("truncated"))?;
            self.done = header.get(9).is_some_and(|flags| flags & FLAG_LAST != 0);
            if stored_len as usize > BLOCK_BYTES_MAX + TAG_BYTES || !self.source.skip(stored_len.into()) {
                return Err(bad("truncated"));
            }
        }
        if self.source.remaining() == 0 { Ok(()) } else { Err(bad("bytes after the end")) }
    }

    /// Everything that is left, at most `max` bytes.
    pub fn read_to_end(&mut self, max: usize) -> Result<Vec<u8>> {
        let mut all = vec![];
        let object = self.object.clone();
        while let Some(block) = self.next_block()? {
            if all.len() + block.len() > max {
                return Err(RepoError::corrupt(object, "larger than any we write"));
            }
            all.extend_from_slice(block);
        }
        Ok(all)
    }

    /// What was read so far; of the whole object, as it was first written, once the last block was returned.
    pub fn fingerprint(&self) -> Fingerprint {
        self.origin.clone().unwrap_or_else(|| self.stored())
    }

    fn stored(&self) -> Fingerprint {
        Fingerprint { size: self.source.size, blake3: self.hasher.finalize().to_hex().to_string() }
    }
}

/// What an object says to the writer of its cluster, by the keys of that writer or of a reader. Nothing after it is looked at.
///
/// # Errors
/// `WriteOnly` for an object that says nothing.
pub fn read_facts(keys: &KeySet, kind: ObjectKind, name: &ObjectName, mut source: Source) -> Result<Vec<u8>> {
    let bad = |what: &str| RepoError::corrupt(name, what);
    let header = source.take(HEADER_BYTES)?.ok_or_else(|| bad("shorter than its header"))?;
    let key = keys.open_facts(header, kind, name)?;
    let header: [u8; BLOCK_HEADER_BYTES] = match source.take(BLOCK_HEADER_BYTES)? {
        Some(h) => (&*h).try_into().map_err(|_| bad("truncated"))?,
        None => return Err(bad("truncated")),
    };
    let mut c = crate::manifest::bytes::Cursor::new(&header);
    let fields = (|| Some((c.u32()? as usize, c.u32()? as usize, c.byte()?)))();
    let (stored_len, plain_len, codec) = fields.ok_or_else(|| bad("truncated"))?;
    if plain_len > BLOCK_BYTES_MAX || stored_len > plain_len + TAG_BYTES {
        return Err(bad("a block is larger than any we write"));
    }
    let stored = source.take(stored_len)?.ok_or_else(|| bad("truncated"))?;
    let n = key.open(&header, stored).ok_or_else(|| bad("what it says to a writer fails its seal"))?;
    let codec = Codec::from_byte(codec).ok_or_else(|| bad("unknown codec"))?;
    let mut plain = vec![];
    Decoder::new()?.decode(codec, stored.get(..n).unwrap_or_default(), plain_len, &mut plain).map_err(|e| bad(&e))?;
    Ok(plain)
}

/// See `seals::seal_into`. Blocks are not decompressed.
pub(crate) fn seal_into(
    from: &Place<'_>,
    to: &Place<'_>,
    kind: ObjectKind,
    name: &ObjectName,
) -> Result<(AnewWriter, Fingerprint)> {
    let mut reader = StreamReader::open(from.store.clone(), from.keys, kind, name)?;
    let mut anew = AnewWriter::create(to, reader.form, kind, name)?;
    let mut plain = vec![];
    while let Some((header, purpose, block)) = reader.next_opened(&mut plain)? {
        anew.put(&header)?;
        anew.seal(purpose, block, &header, &mut plain)?;
    }
    Ok((anew, reader.fingerprint()))
}

/// See `seals::print_of`.
pub(crate) fn print_of(
    store: &Arc<dyn Store>,
    keys: &KeySet,
    kind: ObjectKind,
    name: &ObjectName,
    seal: &ObjectName,
) -> Result<Fingerprint> {
    let mut reader = StreamReader::new(keys, kind, name, Source::object(store.clone(), seal)?)?;
    while reader.next_block()?.is_some() {}
    Ok(reader.fingerprint())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Algorithm, Key32};
    use proptest::prelude::*;

    fn key_sets() -> Vec<KeySet> {
        let master = vec![(1, Key32([7; 32]))];
        let content = crate::crypto::content_key(&master[0].1);
        vec![
            KeySet::unencrypted(),
            KeySet::from_masters(Algorithm::Aes256Gcm, &master, &content),
            KeySet::from_masters(Algorithm::ChaCha20Poly1305, &master, &content),
        ]
    }

    fn name(s: &str) -> ObjectName {
        ObjectName::parse(s).unwrap()
    }

    #[test]
    fn what_was_sealed_comes_back_and_only_under_its_name_and_kind() {
        let text = b"sealed ".repeat(100_000);
        for keys in key_sets() {
            let sealed = seal_bytes(&keys, ObjectKind::Catalog, &name("a/b"), &text).unwrap();
            let open = |kind, n: &str| open_bytes(&keys, kind, &name(n), sealed.clone(), 1 << 20);
            assert!(open(ObjectKind::Catalog, "a/b").unwrap() == text);
            assert!(open(ObjectKind::Catalog, "a/c").is_err());
            assert!(open(ObjectKind::Manifest, "a/b").is_err());
            assert!(open_bytes(&keys, ObjectKind::Catalog, &name("a/b"), sealed.clone(), 1000).is_err());
        }
    }

    #[test]
    fn what_was_altered_while_it_was_compressed_is_never_stored() {
        let altered: fn(&mut Vec<u8>) = |out| out.iter_mut().for_each(|byte| *byte ^= 0xff);
        let text = b"sealed ".repeat(100_000);
        for keys in key_sets() {
            let memory = Arc::new(crate::store::MemoryStore::new());
            let store: Arc<dyn Store> = memory.clone();
            let sink = Sink::Object(store.create(&name("m")).unwrap());
            let mut w = StreamWriter::new(&keys, ObjectKind::Manifest, &name("m"), sink, Compression::DEFAULT).unwrap();
            w.write_block(b"right").unwrap();
            w.encoder = Encoder::new(Compression::DEFAULT).unwrap().altering(altered);
            assert!(matches!(w.write(&text), Err(RepoError::Altered)));
            drop(w);
            assert!(store.stat(&name("m")).unwrap_err().is_not_found());
        }
    }

    #[test]
    fn a_repository_cannot_talk_us_out_of_encryption() {
        let sets = key_sets();
        let plain = seal_bytes(&sets[0], ObjectKind::Catalog, &name("a"), b"x").unwrap();
        assert!(open_bytes(&sets[1], ObjectKind::Catalog, &name("a"), plain, 10).is_err());
        let sealed = seal_bytes(&sets[1], ObjectKind::Catalog, &name("a"), b"x").unwrap();
        assert!(open_bytes(&sets[0], ObjectKind::Catalog, &name("a"), sealed, 10).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        for keys in key_sets() {
            let mut w =
                StreamWriter::new(&keys, ObjectKind::Manifest, &name("m"), Sink::Memory(vec![]), Compression::DEFAULT)
                    .unwrap();
            w.write_block(b"first").unwrap();
            w.write_block(b"second, a little longer").unwrap();
            let Sink::Memory(good) = w.seal().unwrap().0 else { panic!() };
            let read = |bytes: Vec<u8>| open_bytes(&keys, ObjectKind::Manifest, &name("m"), bytes, 1000);
            assert_eq!(read(good.clone()).unwrap(), b"firstsecond, a little longer");
            for bit in 0..good.len() * 8 {
                let mut b = good.clone();
                b[bit / 8] ^= 1 << (bit % 8);
                assert!(read(b).is_err(), "bit {bit}");
            }
            for len in 0..good.len() {
                assert!(read(good[..len].to_vec()).is_err(), "cut at {len}");
            }
            let mut longer = good.clone();
            longer.push(0);
            assert!(read(longer).is_err());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), header in any::<bool>()) {
            let keys = &key_sets()[1];
            let n = name("x");
            let mut all = if header { keys.new_object(ObjectKind::Catalog, &n).unwrap().0.to_vec() } else { vec![] };
            all.extend(bytes);
            prop_assert!(open_bytes(keys, ObjectKind::Catalog, &n, all, 1 << 20).is_err());
        }
    }
}
