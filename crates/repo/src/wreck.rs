//! A damaged pack put together again. What seals a frame follows from the pack's header and the frame's offset, and the
//! same content compressed in the same way gives the same bytes; so who has the content of a frame can make the very bytes
//! that were written.
//!
//! Invariant: what comes out is what was written by a fingerprint of it, or nothing comes out. Sealing other bytes under a nonce
//! that was used happens in memory alone.

use crate::codec::{Codec, Compression, Decoder, Encoder};
use crate::crypto::{ContentId, HEADER_BYTES, KeySet, ObjectKey, ObjectKind, Purpose, TAG_BYTES};
use crate::error::{RepoError, Result};
use crate::manifest::bytes::put_varint;
use crate::pack::{FOOTER_BYTES, FrameAt, footer, parse_footer, parse_table};
use crate::store::ObjectName;

/// Whole frames that tell how the pack was compressed.
const SAMPLES: usize = 4;

pub struct Wreck {
    name: ObjectName,
    key: ObjectKey,
    bytes: Vec<u8>,
    frames: Vec<WreckFrame>,
    /// Encoded form and plaintext of whole frames.
    samples: Vec<(Codec, Vec<u8>, Vec<u8>)>,
}

struct WreckFrame {
    at: FrameAt,
    id: Option<ContentId>,
    whole: bool,
}

impl Wreck {
    /// `bytes` are what is left, `known` the frames that manifests know of, should the table be damaged too.
    ///
    /// # Errors
    /// When the header does not open, or nothing says where the frames are.
    pub fn open(keys: &KeySet, name: &ObjectName, bytes: Vec<u8>, size: u64, known: &[FrameAt]) -> Result<Self> {
        let bad = |what: &str| RepoError::corrupt(name, what);
        let size = usize::try_from(size).map_err(|_| bad("too large"))?;
        let header = bytes.get(..HEADER_BYTES).ok_or_else(|| bad("shorter than its header"))?;
        let key = keys.open_object(header, ObjectKind::Pack, name)?;
        let mut bytes = bytes;
        // What was cut off is as good as damaged.
        bytes.resize(size, 0);
        let frames = match table(&key, name, &bytes) {
            Some(frames) => frames,
            None => {
                by_manifests(known, size).ok_or_else(|| bad("neither its table nor the manifests list all frames"))?
            }
        };
        let mut wreck = Wreck { name: name.clone(), key, bytes, frames, samples: vec![] };
        wreck.look(keys)?;
        Ok(wreck)
    }

    /// Which frames are whole.
    fn look(&mut self, keys: &KeySet) -> Result<()> {
        let (mut decoder, mut plain) = (Decoder::new()?, vec![]);
        for frame in &mut self.frames {
            let (from, len) = place(&frame.at);
            let Some(stored) = self.bytes.get(from..from + len) else { continue };
            let mut opened = stored.to_vec();
            let Some(n) = self.key.open(Purpose::Frame, frame.at.offset, &frame.at.aad(), &mut opened) else {
                continue;
            };
            opened.truncate(n);
            if decoder.decode(frame.at.codec, &opened, frame.at.plain_len as usize, &mut plain).is_err() {
                continue;
            }
            let id = keys.content_id(&plain);
            if frame.id.is_some_and(|listed| listed != id) {
                continue;
            }
            (frame.id, frame.whole) = (Some(id), true);
            if self.samples.len() < SAMPLES {
                self.samples.push((frame.at.codec, opened, plain.clone()));
            }
        }
        Ok(())
    }

    /// Frames whose content is wanted, and its content id where that is known.
    pub fn damaged(&self) -> Vec<(FrameAt, Option<ContentId>)> {
        self.frames.iter().filter(|f| !f.whole).map(|f| (f.at, f.id)).collect()
    }

    /// The pack as it was written, or sealed anew; `is_whole` knows it when it sees it. `contents` has the plaintext of each
    /// damaged frame, in their order.
    ///
    /// # Errors
    /// When these are not what was written, or this program compresses in another way.
    pub fn rebuild(mut self, keys: &KeySet, contents: &[Vec<u8>], is_whole: &dyn Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let damaged: Vec<usize> = (0..self.frames.len()).filter(|n| !self.frames[*n].whole).collect();
        if damaged.len() != contents.len() {
            return Err(RepoError::corrupt(&self.name, "not every damaged frame is at hand"));
        }
        for (n, plain) in damaged.iter().zip(contents) {
            self.frames[*n].id = Some(keys.content_id(plain));
        }
        for compression in self.compressions()? {
            let Some(bytes) = self.build(&damaged, contents, compression)? else { continue };
            if is_whole(&bytes) {
                return Ok(bytes);
            }
        }
        Err(RepoError::corrupt(&self.name, "what was put together is not what was written"))
    }

    /// The ways of compressing that make of the whole frames what is stored of them.
    fn compressions(&self) -> Result<Vec<Compression>> {
        let levels = [1, 3].into_iter().chain(2..=2).chain(4..=19).chain(-7..=-1);
        let all = levels.map(Compression::Zstd).chain([Compression::Lz4, Compression::None]);
        let mut fitting = vec![];
        for compression in all {
            let (mut encoder, mut out) = (Encoder::new(compression)?, vec![]);
            let mut fits = true;
            for (codec, encoded, plain) in &self.samples {
                fits = fits && encoder.encode(plain, &mut out)? == *codec && out == *encoded;
            }
            if fits {
                fitting.push(compression);
            }
        }
        Ok(fitting)
    }

    fn build(&self, damaged: &[usize], contents: &[Vec<u8>], compression: Compression) -> Result<Option<Vec<u8>>> {
        let mut bytes = self.bytes.clone();
        let (mut encoder, mut encoded) = (Encoder::new(compression)?, vec![]);
        for (frame, plain) in damaged.iter().filter_map(|n| self.frames.get(*n)).zip(contents) {
            let codec = encoder.encode(plain, &mut encoded)?;
            let (from, len) = place(&frame.at);
            if codec != frame.at.codec || encoded.len() + TAG_BYTES != len || plain.len() != frame.at.plain_len as usize
            {
                return Ok(None);
            }
            self.key.seal(Purpose::Frame, frame.at.offset, &frame.at.aad(), &mut encoded, 0);
            let Some(room) = bytes.get_mut(from..from + len) else { return Ok(None) };
            room.copy_from_slice(&encoded);
        }
        let end = self.frames.last().map_or(HEADER_BYTES as u64, |f| f.at.offset + u64::from(f.at.stored_len));
        let mut table = vec![];
        for frame in &self.frames {
            let Some(id) = frame.id else { return Ok(None) };
            put_varint(&mut table, u64::from(frame.at.stored_len));
            put_varint(&mut table, u64::from(frame.at.plain_len));
            table.push(frame.at.codec as u8);
            table.extend_from_slice(&id.0);
        }
        let footer = footer(end, table.len(), self.frames.len());
        self.key.seal(Purpose::TableOfContents, end, &footer, &mut table, 0);
        bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(&footer);
        Ok(Some(bytes))
    }
}

fn place(at: &FrameAt) -> (usize, usize) {
    (usize::try_from(at.offset).unwrap_or(usize::MAX / 2), at.stored_len as usize)
}

fn table(key: &ObjectKey, name: &ObjectName, bytes: &[u8]) -> Option<Vec<WreckFrame>> {
    let footer_at = bytes.len().checked_sub(FOOTER_BYTES)?;
    let footer = bytes.get(footer_at..)?;
    let (offset, len, frames) = parse_footer(name, footer, footer_at as u64).ok()?;
    let mut sealed = bytes.get(usize::try_from(offset).ok()?..footer_at)?.to_vec();
    debug_assert_eq!(sealed.len(), len as usize);
    let n = key.open(Purpose::TableOfContents, offset, footer, &mut sealed)?;
    let entries = parse_table(name, sealed.get(..n)?, frames, offset).ok()?;
    Some(entries.into_iter().map(|e| WreckFrame { at: e.at, id: Some(e.id), whole: false }).collect())
}

/// Side by side from the header to where a table of exactly so many frames fits.
fn by_manifests(known: &[FrameAt], size: usize) -> Option<Vec<WreckFrame>> {
    let mut known = known.to_vec();
    known.sort_by_key(|at| at.offset);
    known.dedup();
    let mut end = HEADER_BYTES as u64;
    let mut table_len = TAG_BYTES + FOOTER_BYTES;
    for at in &known {
        if at.offset != end || !at.check_limits() {
            return None;
        }
        end += u64::from(at.stored_len);
        let mut lengths = vec![];
        put_varint(&mut lengths, u64::from(at.stored_len));
        put_varint(&mut lengths, u64::from(at.plain_len));
        table_len += lengths.len() + 1 + 16;
    }
    let fits = !known.is_empty() && end.checked_add(table_len as u64) == Some(size as u64);
    fits.then(|| known.into_iter().map(|at| WreckFrame { at, id: None, whole: false }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Algorithm, Key32};
    use crate::pack::PackWriter;
    use crate::store::{MemoryStore, Store};
    use crate::stream::Fingerprint;

    struct Written {
        keys: KeySet,
        name: ObjectName,
        bytes: Vec<u8>,
        print: Fingerprint,
        frames: Vec<FrameAt>,
        plains: Vec<Vec<u8>>,
    }

    /// Frames that compress well, a little, and not at all.
    fn written(algorithm: Algorithm, compression: Compression) -> Written {
        let master = vec![(1, Key32([7; 32]))];
        let keys = match algorithm {
            Algorithm::None => KeySet::unencrypted(),
            a => KeySet::from_masters(a, &master, &crate::crypto::content_key(&master[0].1)),
        };
        let store = MemoryStore::new();
        let name = ObjectName::parse("clusters/c/backups/b/packs/000001").unwrap();
        let mut writer = PackWriter::create(&store, &keys, &name).unwrap();
        let mut encoder = Encoder::new(compression).unwrap();
        let text = |seed: u32| (0..20_000u32).flat_map(|i| (i / (seed + 3)).to_le_bytes()).collect::<Vec<u8>>();
        let noise: Vec<u8> =
            (0..40_000u32).flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..2].to_vec()).collect();
        let plains = vec![text(0), noise, text(40), vec![9; 5000], text(7)];
        let mut frames = vec![];
        for plain in &plains {
            let mut encoded = vec![];
            let codec = encoder.encode(plain, &mut encoded).unwrap();
            frames.push(writer.append(codec, plain.len(), keys.content_id(plain), &mut encoded).unwrap());
        }
        let print = writer.seal().unwrap().commit().unwrap();
        let bytes = store.read(&name, 1 << 30).unwrap();
        Written { keys, name, bytes, print, frames, plains }
    }

    fn is_whole(w: &Written, bytes: &[u8]) -> bool {
        blake3::hash(bytes).to_hex().as_str() == w.print.blake3 && bytes.len() as u64 == w.print.size
    }

    fn mend(w: &Written, damaged: Vec<u8>, known: &[FrameAt]) -> Result<Vec<u8>> {
        let wreck = Wreck::open(&w.keys, &w.name, damaged, w.print.size, known)?;
        let plain = |at: FrameAt| {
            let n = w.frames.iter().position(|f| *f == at).expect("a frame of the pack");
            w.plains[n].clone()
        };
        let contents: Vec<Vec<u8>> = wreck.damaged().into_iter().map(|(at, _)| plain(at)).collect();
        wreck.rebuild(&w.keys, &contents, &|bytes| is_whole(w, bytes))
    }

    #[test]
    fn the_very_bytes_come_back_wherever_the_damage_is() {
        for algorithm in [Algorithm::None, Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            for compression in [Compression::Zstd(1), Compression::Zstd(9), Compression::Lz4, Compression::None] {
                let w = written(algorithm, compression);
                for at in (HEADER_BYTES..w.bytes.len()).step_by(w.bytes.len() / 23) {
                    let mut damaged = w.bytes.clone();
                    damaged[at] ^= 4;
                    assert!(mend(&w, damaged, &w.frames).unwrap() == w.bytes, "{algorithm:?} {compression:?} {at}");
                }
                for cut in [HEADER_BYTES, w.bytes.len() / 2, w.bytes.len() - 1] {
                    assert!(mend(&w, w.bytes[..cut].to_vec(), &w.frames).unwrap() == w.bytes, "cut at {cut}");
                }
                // Everything but the header.
                let mut damaged = w.bytes.clone();
                damaged[HEADER_BYTES..].fill(0);
                assert!(mend(&w, damaged, &w.frames).unwrap() == w.bytes);
            }
        }
    }

    #[test]
    fn nothing_comes_out_that_was_not_written() {
        let w = written(Algorithm::Aes256Gcm, Compression::DEFAULT);
        let whole = |bytes: &[u8]| is_whole(&w, bytes);
        let mut damaged = w.bytes.clone();
        let first = usize::try_from(w.frames[0].offset).unwrap();
        damaged[first + 5] ^= 1;
        let wreck =
            |bytes: &[u8], known: &[FrameAt]| Wreck::open(&w.keys, &w.name, bytes.to_vec(), w.print.size, known);
        // Other content, of the same length.
        let mut other = w.plains[0].clone();
        other[100] ^= 1;
        assert!(wreck(&damaged, &[]).unwrap().rebuild(&w.keys, &[other], &whole).is_err());
        assert!(wreck(&damaged, &[]).unwrap().rebuild(&w.keys, &[], &whole).is_err());
        // The header is what the keys follow from.
        let mut beheaded = w.bytes.clone();
        beheaded[20] ^= 1;
        assert!(wreck(&beheaded, &w.frames).is_err());
        // Without the table, every frame must be known.
        let end = w.bytes.len();
        damaged[end - 30] ^= 1;
        assert!(wreck(&damaged, &w.frames[1..]).is_err());
        assert!(wreck(&damaged, &[]).is_err());
    }
}
