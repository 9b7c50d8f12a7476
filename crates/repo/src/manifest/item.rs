//! One item of a manifest, and its bytes.

use std::cmp::Ordering;

use crate::codec::Codec;
use crate::crypto::{ContentId, hex, unhex};
use crate::limits::{
    CHUNK_PARTS_MAX, CHUNKS_PER_ITEM, FRAME_BYTES_MAX, OWNER_NAME_BYTES_MAX, PATH_BYTES_MAX, XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX, XATTRS_MAX,
};
use crate::names::BackupId;
use crate::pack::FrameAt;
use crate::stream::Fingerprint;

use super::bytes::{Cursor, put_bytes, put_varint, put_zigzag};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Directory(Directory),
    Symlink(Symlink),
    /// A file begins; its chunks and its end follow.
    FileStart(FileStart),
    Chunks(Vec<Chunk>),
    FileEnd(FileEnd),
    /// Was listed and then removed by PostgreSQL before it could be read.
    Vanished(Vec<u8>),
    BadBlock(BadBlock),
    /// Declares the pack that chunks call by this index.
    Pack(u32, PackId),
    /// The pack as it was committed.
    PackDone(u32, Fingerprint),
    /// Of the directory, link or file just before: what files have and data directories do not need.
    Attributes(Attributes),
    /// Another name of a file before.
    HardLink(HardLink),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Kept as found; tablespace links are in the backup's record, not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symlink {
    pub path: Vec<u8>,
    pub target: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStart {
    pub path: Vec<u8>,
    pub mode: u32,
    /// Nanoseconds since 1970, of the source.
    pub modified_ns: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEnd {
    pub size: u64,
}

/// Who owns something, and what else its file system keeps of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub uid: u32,
    pub gid: u32,
    /// As they were called there; empty where they had no name.
    pub user: Vec<u8>,
    pub group: Vec<u8>,
    /// Nanoseconds since 1970; of a file the same as its beginning says.
    pub modified_ns: i64,
    /// Whether the file was being written while it was read: its content is of no one moment.
    pub changed: bool,
    /// Extended attributes in the order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardLink {
    pub path: Vec<u8>,
    /// The path of the file, which comes earlier.
    pub target: Vec<u8>,
}

/// A page whose checksum did not match its content in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// Of the file that this item follows or lies within.
    pub file: Vec<u8>,
    /// Block number in that file.
    pub block: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId {
    pub backup: BackupId,
    pub number: u32,
}

/// A run of a file's content, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// So many zero bytes, stored nowhere.
    Zero(u64),
    /// At most a frame's worth of content, put together from these parts; `id` is that of the content.
    Data { id: ContentId, parts: Vec<Part> },
    /// As `Data`, but nobody has seen the content as a whole: pages of several backups. `frames` has the content id of
    /// each part's frame.
    Patched { parts: Vec<Part>, frames: Vec<ContentId> },
}

/// `len` bytes of a frame's plaintext from `skip` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub pack: u32,
    pub frame: FrameAt,
    pub skip: u32,
    pub len: u32,
}

impl Chunk {
    pub fn len(&self) -> u64 {
        match self {
            Chunk::Zero(n) => *n,
            Chunk::Data { parts, .. } | Chunk::Patched { parts, .. } => parts.iter().map(|p| u64::from(p.len)).sum(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn parts(&self) -> &[Part] {
        match self {
            Chunk::Zero(_) => &[],
            Chunk::Data { parts, .. } | Chunk::Patched { parts, .. } => parts,
        }
    }
}

impl Item {
    /// Of items that are sorted by path.
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Item::Directory(d) => Some(&d.path),
            Item::Symlink(s) => Some(&s.path),
            Item::FileStart(f) => Some(&f.path),
            Item::Vanished(p) => Some(p),
            Item::HardLink(l) => Some(&l.path),
            _ => None,
        }
    }
}

/// Relative, no empty part, no `.` or `..`, no NUL. The empty path is the data directory itself.
pub fn check_path(path: &[u8]) -> bool {
    path.len() < PATH_BYTES_MAX
        && !path.contains(&0)
        && (path.is_empty() || path.split(|b| *b == b'/').all(|p| !p.is_empty() && p != b"." && p != b".."))
}

/// The order of a walk that visits a directory's entries sorted and goes into each as it comes:
/// by components, so that `a/b` comes before `a.b`.
pub fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |c: &u8| if *c == b'/' { 0u16 } else { u16::from(*c) + 1 };
    a.iter().map(key).cmp(b.iter().map(key))
}

const DIRECTORY: u8 = 1;
const SYMLINK: u8 = 2;
const FILE_START: u8 = 3;
const CHUNKS: u8 = 4;
const FILE_END: u8 = 5;
const VANISHED: u8 = 6;
const BAD_BLOCK: u8 = 7;
const PACK: u8 = 8;
const PACK_DONE: u8 = 9;
const ATTRIBUTES: u8 = 10;
const HARD_LINK: u8 = 11;

const ATTRIBUTES_CHANGED: u8 = 1;

const PART_SAME_FRAME: u8 = 1;
const PART_FOLLOWS: u8 = 2;
const PART_WHOLE: u8 = 4;

/// What the previous part said, so that the next one can be short. Same on both sides.
#[derive(Default)]
pub(super) struct ItemState {
    last: Option<(u32, FrameAt)>,
}

pub(super) fn encode_item(state: &mut ItemState, item: &Item, out: &mut Vec<u8>) {
    match item {
        Item::Directory(d) => {
            out.push(DIRECTORY);
            put_bytes(out, &d.path);
            put_varint(out, d.mode.into());
        }
        Item::Symlink(s) => {
            out.push(SYMLINK);
            put_bytes(out, &s.path);
            put_bytes(out, &s.target);
        }
        Item::FileStart(f) => {
            out.push(FILE_START);
            put_bytes(out, &f.path);
            put_varint(out, f.mode.into());
            put_zigzag(out, f.modified_ns);
        }
        Item::Chunks(chunks) => {
            assert!(chunks.len() <= CHUNKS_PER_ITEM, "long files are split into several items");
            out.push(CHUNKS);
            put_varint(out, chunks.len() as u64);
            for c in chunks {
                encode_chunk(state, c, out);
            }
        }
        Item::FileEnd(end) => {
            out.push(FILE_END);
            put_varint(out, end.size);
        }
        Item::Vanished(path) => {
            out.push(VANISHED);
            put_bytes(out, path);
        }
        Item::BadBlock(b) => {
            out.push(BAD_BLOCK);
            put_bytes(out, &b.file);
            put_varint(out, b.block.into());
        }
        Item::Pack(index, id) => {
            out.push(PACK);
            put_varint(out, (*index).into());
            put_bytes(out, id.backup.as_str().as_bytes());
            put_varint(out, id.number.into());
        }
        Item::PackDone(index, print) => {
            out.push(PACK_DONE);
            put_varint(out, (*index).into());
            put_varint(out, print.size);
            out.extend_from_slice(&unhex(&print.blake3).expect("made by us"));
        }
        Item::Attributes(a) => encode_attributes(a, out),
        Item::HardLink(l) => {
            out.push(HARD_LINK);
            put_bytes(out, &l.path);
            put_bytes(out, &l.target);
        }
    }
}

fn encode_attributes(a: &Attributes, out: &mut Vec<u8>) {
    assert!(a.are_within_limits(), "attributes are checked when they are read");
    out.push(ATTRIBUTES);
    out.push(if a.changed { ATTRIBUTES_CHANGED } else { 0 });
    put_varint(out, a.uid.into());
    put_varint(out, a.gid.into());
    put_bytes(out, &a.user);
    put_bytes(out, &a.group);
    put_zigzag(out, a.modified_ns);
    put_varint(out, a.xattrs.len() as u64);
    for (name, value) in &a.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

fn decode_attributes(c: &mut Cursor) -> Option<Attributes> {
    let flags = c.byte()?;
    let (uid, gid) = (c.varint32()?, c.varint32()?);
    let user = c.bytes(OWNER_NAME_BYTES_MAX)?.to_vec();
    let group = c.bytes(OWNER_NAME_BYTES_MAX)?.to_vec();
    let modified_ns = c.zigzag()?;
    let n = usize::try_from(c.varint()?).ok().filter(|n| *n <= XATTRS_MAX)?;
    let mut xattrs = Vec::with_capacity(n);
    for _ in 0..n {
        let name = c.bytes(XATTR_NAME_BYTES_MAX)?.to_vec();
        xattrs.push((name, c.bytes(XATTR_VALUE_BYTES_MAX)?.to_vec()));
    }
    let changed = flags == ATTRIBUTES_CHANGED;
    let found = Attributes { uid, gid, user, group, modified_ns, changed, xattrs };
    (flags & !ATTRIBUTES_CHANGED == 0 && found.are_within_limits()).then_some(found)
}

impl Attributes {
    /// What may stand in a manifest: one encoding for one set of attributes, and nothing that is no name.
    pub fn are_within_limits(&self) -> bool {
        let owner = |name: &[u8]| name.len() <= OWNER_NAME_BYTES_MAX && !name.contains(&0);
        let one = |(name, value): &(Vec<u8>, Vec<u8>)| {
            (1..=XATTR_NAME_BYTES_MAX).contains(&name.len())
                && !name.contains(&0)
                && value.len() <= XATTR_VALUE_BYTES_MAX
        };
        let ascending = self.xattrs.is_sorted_by(|a, b| a.0 < b.0);
        owner(&self.user)
            && owner(&self.group)
            && self.xattrs.len() <= XATTRS_MAX
            && self.xattrs.iter().all(one)
            && ascending
    }
}

/// Added to the number of parts.
const PATCHED: u8 = 0x80;

fn encode_chunk(state: &mut ItemState, chunk: &Chunk, out: &mut Vec<u8>) {
    let parts = chunk.parts();
    let number = u8::try_from(parts.len()).ok().filter(|n| usize::from(*n) <= CHUNK_PARTS_MAX);
    let number = number.expect("a chunk has not too many parts");
    match chunk {
        Chunk::Zero(len) => {
            out.push(0);
            put_varint(out, *len);
        }
        Chunk::Data { id, parts } => {
            assert!(!parts.is_empty(), "a chunk has parts");
            out.push(number);
            out.extend_from_slice(&id.0);
            encode_parts(state, parts, out);
        }
        Chunk::Patched { parts, frames } => {
            assert!(!parts.is_empty() && parts.len() == frames.len(), "a chunk has parts, each of a known frame");
            out.push(number | PATCHED);
            frames.iter().for_each(|id| out.extend_from_slice(&id.0));
            encode_parts(state, parts, out);
        }
    }
}

fn encode_parts(state: &mut ItemState, parts: &[Part], out: &mut Vec<u8>) {
    for p in parts {
        let same = state.last == Some((p.pack, p.frame));
        let follows =
            state.last.is_some_and(|(k, f)| k == p.pack && f.offset + u64::from(f.stored_len) == p.frame.offset);
        let whole = p.skip == 0 && p.len == p.frame.plain_len;
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.push(flag(same, PART_SAME_FRAME) | flag(follows, PART_FOLLOWS) | flag(whole, PART_WHOLE));
        if !same {
            if !follows {
                put_varint(out, p.pack.into());
                put_varint(out, p.frame.offset);
            }
            put_varint(out, p.frame.stored_len.into());
            put_varint(out, p.frame.plain_len.into());
            out.push(p.frame.codec as u8);
        }
        if !whole {
            put_varint(out, p.skip.into());
            put_varint(out, p.len.into());
        }
        state.last = Some((p.pack, p.frame));
    }
}

/// None when the bytes are not an item, or an item beyond its limits.
pub(super) fn decode_item(state: &mut ItemState, raw: &[u8]) -> Option<Item> {
    let mut c = Cursor::new(raw);
    let path = |c: &mut Cursor| c.bytes(PATH_BYTES_MAX).map(<[u8]>::to_vec);
    let item = match c.byte()? {
        DIRECTORY => Item::Directory(Directory { path: path(&mut c)?, mode: c.varint32()? }),
        SYMLINK => Item::Symlink(Symlink { path: path(&mut c)?, target: path(&mut c)? }),
        FILE_START => Item::FileStart(FileStart { path: path(&mut c)?, mode: c.varint32()?, modified_ns: c.zigzag()? }),
        CHUNKS => {
            let n = usize::try_from(c.varint()?).ok().filter(|n| *n <= CHUNKS_PER_ITEM)?;
            let mut chunks = Vec::with_capacity(n);
            for _ in 0..n {
                chunks.push(decode_chunk(state, &mut c)?);
            }
            Item::Chunks(chunks)
        }
        FILE_END => Item::FileEnd(FileEnd { size: c.varint()? }),
        VANISHED => Item::Vanished(path(&mut c)?),
        BAD_BLOCK => Item::BadBlock(BadBlock { file: path(&mut c)?, block: c.varint32()? }),
        PACK => {
            let index = c.varint32()?;
            let backup = BackupId::parse(std::str::from_utf8(c.bytes(16)?).ok()?).ok()?;
            Item::Pack(index, PackId { backup, number: c.varint32()? })
        }
        PACK_DONE => {
            let index = c.varint32()?;
            let size = c.varint()?;
            Item::PackDone(index, Fingerprint { size, blake3: hex(&c.array::<32>()?) })
        }
        ATTRIBUTES => Item::Attributes(decode_attributes(&mut c)?),
        HARD_LINK => Item::HardLink(HardLink { path: path(&mut c)?, target: path(&mut c)? }),
        _ => return None,
    };
    c.is_empty().then_some(item)
}

fn decode_chunk(state: &mut ItemState, c: &mut Cursor) -> Option<Chunk> {
    let byte = c.byte()?;
    let (n, patched) = (usize::from(byte & !PATCHED), byte & PATCHED != 0);
    if byte == 0 {
        return c.varint().filter(|len| *len > 0).map(Chunk::Zero);
    }
    if n == 0 || n > CHUNK_PARTS_MAX {
        return None;
    }
    let ids = if patched { n } else { 1 };
    let ids = (0..ids).map(|_| c.array().map(ContentId)).collect::<Option<Vec<ContentId>>>()?;
    let mut parts = Vec::with_capacity(n);
    for _ in 0..n {
        parts.push(decode_part(state, c)?);
    }
    let len: u64 = parts.iter().map(|p| u64::from(p.len)).sum();
    if len > FRAME_BYTES_MAX as u64 {
        return None;
    }
    if patched { Some(Chunk::Patched { parts, frames: ids }) } else { Some(Chunk::Data { id: *ids.first()?, parts }) }
}

fn decode_part(state: &mut ItemState, c: &mut Cursor) -> Option<Part> {
    let flags = c.byte()?;
    let (pack, frame) = if flags & PART_SAME_FRAME != 0 {
        state.last?
    } else {
        let (pack, offset) = if flags & PART_FOLLOWS != 0 {
            let (pack, f) = state.last?;
            (pack, f.offset.checked_add(f.stored_len.into())?)
        } else {
            (c.varint32()?, c.varint()?)
        };
        let (stored_len, plain_len) = (c.varint32()?, c.varint32()?);
        (pack, FrameAt { offset, stored_len, plain_len, codec: Codec::from_byte(c.byte()?)? })
    };
    let (skip, len) = if flags & PART_WHOLE != 0 { (0, frame.plain_len) } else { (c.varint32()?, c.varint32()?) };
    let inside = skip.checked_add(len).is_some_and(|end| end <= frame.plain_len) && len > 0;
    let known = flags & !(PART_SAME_FRAME | PART_FOLLOWS | PART_WHOLE) == 0;
    if !inside || !known || !frame.check_limits() || frame.offset.checked_add(frame.stored_len.into()).is_none() {
        return None;
    }
    state.last = Some((pack, frame));
    Some(Part { pack, frame, skip, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_is_that_of_a_sorted_walk() {
        let mut paths = [&b"base.old"[..], b"base/1/2", b"base", b"base/1", b"base/10", b"base-x", b"", b"\xff"];
        paths.sort_by(|a, b| path_order(a, b));
        assert_eq!(paths, [&b""[..], b"base", b"base/1", b"base/1/2", b"base/10", b"base-x", b"base.old", b"\xff"]);
    }

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        for bad in [&b"/a"[..], b"a/", b"a//b", b"..", b"a/../b", b"./a", b"a/.", b"a\0b", &[b'a'; 4096]] {
            assert!(!check_path(bad), "{bad:?}");
        }
        for good in [&b""[..], b"a", b"a/b", b"...", b"a/..b", b"\xff\n"] {
            assert!(check_path(good), "{good:?}");
        }
    }

    fn frame() -> impl Strategy<Value = FrameAt> {
        (0u64..1 << 50, 1u32..262_144, prop_oneof![Just(Codec::None), Just(Codec::Zstd)]).prop_map(
            |(offset, plain_len, codec)| FrameAt { offset, stored_len: plain_len.div_ceil(2) + 16, plain_len, codec },
        )
    }

    fn chunk() -> impl Strategy<Value = Chunk> {
        let part = (0u32..5, frame(), any::<bool>()).prop_map(|(pack, frame, whole)| {
            let (skip, len) =
                if whole { (0, frame.plain_len) } else { (frame.plain_len / 2, frame.plain_len.div_ceil(2)) };
            Part { pack, frame, skip, len }
        });
        let parts = proptest::collection::vec(part, 1..5).boxed();
        prop_oneof![
            (1u64..1 << 40).prop_map(Chunk::Zero),
            (any::<[u8; 16]>(), parts.clone()).prop_map(|(id, parts)| Chunk::Data { id: ContentId(id), parts }),
            (any::<[u8; 15]>(), parts).prop_map(|(id, parts)| {
                let frame = |n: usize| ContentId([&id[..], &[n as u8]].concat().try_into().unwrap());
                Chunk::Patched { frames: (0..parts.len()).map(frame).collect(), parts }
            }),
        ]
    }

    fn attributes() -> impl Strategy<Value = Attributes> {
        let name = || proptest::collection::vec(1u8..=255, 0..20);
        let xattrs = proptest::collection::btree_map(
            proptest::collection::vec(1u8..=255, 1..20),
            proptest::collection::vec(any::<u8>(), 0..40),
            0..5,
        );
        (any::<(u32, u32, i64, bool)>(), name(), name(), xattrs).prop_map(
            |((uid, gid, modified_ns, changed), user, group, xattrs)| Attributes {
                uid,
                gid,
                user,
                group,
                modified_ns,
                changed,
                xattrs: xattrs.into_iter().collect(),
            },
        )
    }

    #[test]
    fn attributes_beyond_their_limits_are_no_item() {
        let long = vec![b'x'; XATTR_VALUE_BYTES_MAX + 1];
        let encode = |xattrs: &[(&[u8], &[u8])], count: u64, flags: u8| {
            let mut raw = vec![ATTRIBUTES, flags, 0, 0, 0, 0, 0];
            put_varint(&mut raw, count);
            for (name, value) in xattrs {
                put_bytes(&mut raw, name);
                put_bytes(&mut raw, value);
            }
            decode_item(&mut ItemState::default(), &raw)
        };
        assert!(encode(&[(b"user.a", b"1"), (b"user.b", b"")], 2, 1).is_some());
        assert_eq!(encode(&[(b"user.a", b"1")], 1, 2), None, "an unknown flag");
        assert_eq!(encode(&[(b"user.b", b""), (b"user.a", b"1")], 2, 0), None, "out of order");
        assert_eq!(encode(&[(b"user.a", b""), (b"user.a", b"1")], 2, 0), None, "twice");
        assert_eq!(encode(&[(b"", b"1")], 1, 0), None, "without a name");
        assert_eq!(encode(&[(b"a\0b", b"1")], 1, 0), None);
        assert_eq!(encode(&[(b"user.a", &long)], 1, 0), None);
        assert_eq!(encode(&[], XATTRS_MAX as u64 + 1, 0), None);
        assert_eq!(encode(&[], u64::MAX, 0), None, "nothing is allocated for what is not there");
    }

    proptest! {
        #[test]
        fn items_come_back(chunks in proptest::collection::vec(chunk(), 0..40), mode in any::<u32>(), t in any::<i64>()) {
            let items = [
                Item::FileStart(FileStart { path: b"base/1/2".to_vec(), mode, modified_ns: t }),
                Item::Chunks(chunks.clone()),
                Item::Chunks(chunks),
                Item::FileEnd(FileEnd { size: 77 }),
                Item::PackDone(3, Fingerprint { size: 9, blake3: "ab".repeat(32) }),
            ];
            let (mut enc, mut dec) = (ItemState::default(), ItemState::default());
            for item in &items {
                let mut raw = vec![];
                encode_item(&mut enc, item, &mut raw);
                let back = decode_item(&mut dec, &raw);
                prop_assert_eq!(back.as_ref(), Some(item));
            }
        }

        #[test]
        fn attributes_come_back(a in attributes()) {
            let item = Item::Attributes(a);
            let link = Item::HardLink(HardLink { path: b"files/b".to_vec(), target: b"files/a".to_vec() });
            let mut state = ItemState::default();
            for item in [item, link] {
                let mut raw = vec![];
                encode_item(&mut state, &item, &mut raw);
                let back = decode_item(&mut state, &raw);
                prop_assert_eq!(back.as_ref(), Some(&item));
                // One byte more or less is no item.
                prop_assert_eq!(decode_item(&mut state, &[&raw[..], &[0]].concat()), None);
                prop_assert_eq!(decode_item(&mut state, &raw[..raw.len() - 1]), None);
            }
        }

        #[test]
        fn random_attributes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            for kind in [ATTRIBUTES, HARD_LINK] {
                if let Some(Item::Attributes(a)) = decode_item(&mut ItemState::default(), &[&[kind], &raw[..]].concat()) {
                    prop_assert!(a.are_within_limits());
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut s = ItemState { last: Some((1, FrameAt { offset: u64::MAX - 5, stored_len: 20, plain_len: 9, codec: Codec::None })) };
            let _ = decode_item(&mut s, &raw);
        }
    }
}
