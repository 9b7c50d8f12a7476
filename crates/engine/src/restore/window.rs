//! Stored frames that lie side by side in a pack, fetched by one read.
//!
//! Invariant: what is handed out to be decrypted in place is handed out once. Equal chunks of a backup may be one frame, so
//! that a frame is wanted again while its window is still held.

use std::collections::BTreeSet;

use pgark_repo::RepoError;
use pgark_repo::manifest::Part;
use pgark_repo::pack::{FrameAt, PackReader};

use crate::error::Result;

/// Stored bytes fetched by one read.
const FETCH_BYTES: usize = 8 * 1024 * 1024;

/// Stored bytes of one pack from one source.
pub struct Window {
    source: usize,
    pack: u32,
    offset: u64,
    bytes: Vec<u8>,
    /// Where frames begin that were decrypted in place.
    spent: BTreeSet<u64>,
}

/// What the caller does with a frame's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Copy,
    InPlace,
}

/// The stored bytes of a frame, from what was fetched or by fetching the frames that follow it along with it.
pub fn fetch<'w, 'p>(
    window: &'w mut Option<Window>,
    source: usize,
    pack: &PackReader,
    part: &Part,
    upcoming: impl Iterator<Item = &'p Part>,
    used: Use,
) -> Result<&'w mut [u8]> {
    let at = part.frame;
    if !window_holds(window.as_ref(), source, part.pack, &at) {
        let len = contiguous(part, upcoming);
        let mut bytes = window.take().map(|w| w.bytes).unwrap_or_default();
        match pack.fetch(at.offset, len, &mut bytes) {
            // What follows may have been cut off; this frame need not be.
            Err(e) if e.is_damage() && len > at.stored_len as usize => {
                pack.fetch(at.offset, at.stored_len as usize, &mut bytes)?;
            }
            fetched => fetched?,
        }
        *window = Some(Window { source, pack: part.pack, offset: at.offset, bytes, spent: BTreeSet::new() });
    }
    let missing = || RepoError::corrupt(pack.name(), "a frame outside of what was fetched");
    let window = window.as_mut().ok_or_else(missing)?;
    if used == Use::InPlace {
        window.spent.insert(at.offset);
    }
    let from = usize::try_from(at.offset - window.offset).map_err(|_| missing())?;
    Ok(window.bytes.get_mut(from..from + at.stored_len as usize).ok_or_else(missing)?)
}

fn window_holds(window: Option<&Window>, source: usize, pack: u32, at: &FrameAt) -> bool {
    window.is_some_and(|w| {
        let end = w.offset + w.bytes.len() as u64;
        let within = at.offset >= w.offset && at.offset + u64::from(at.stored_len) <= end;
        w.source == source && w.pack == pack && within && !w.spent.contains(&at.offset)
    })
}

/// Stored bytes from this part on that belong to the coming chunks and lie side by side.
fn contiguous<'p>(part: &Part, upcoming: impl Iterator<Item = &'p Part>) -> usize {
    let mut end = part.frame.offset + u64::from(part.frame.stored_len);
    let mut len = part.frame.stored_len as usize;
    for p in upcoming {
        if p.pack == part.pack && p.frame.offset == end && len + p.frame.stored_len as usize <= FETCH_BYTES {
            end += u64::from(p.frame.stored_len);
            len += p.frame.stored_len as usize;
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgark_repo::codec::{Codec, Decoder};
    use pgark_repo::crypto::{Algorithm, Key32, KeySet};
    use pgark_repo::pack::PackWriter;
    use pgark_repo::store::{MemoryStore, ObjectName, Store};

    use super::*;

    #[test]
    fn a_frame_that_several_chunks_share_is_opened_for_each_of_them() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let keys = KeySet::from_masters(Algorithm::Aes256Gcm, &[(1, Key32([7; 32]))], &Key32([8; 32]));
        let name = ObjectName::parse("clusters/c/backups/20260822-081500F/packs/000001").expect("a name");
        let mut writer = PackWriter::create(store.as_ref(), &keys, &name).expect("a pack");
        let plains: Vec<Vec<u8>> = (1..4u8).map(|n| vec![n; 8192]).collect();
        let parts: Vec<Part> = plains
            .iter()
            .map(|plain| {
                let frame = writer.append(Codec::None, plain.len(), keys.content_id(plain), &mut plain.clone());
                Part { pack: 0, frame: frame.expect("a frame"), skip: 0, len: 8192 }
            })
            .collect();
        writer.seal().and_then(|sealed| sealed.commit()).expect("committed");
        let pack = PackReader::open(store, &keys, &name).expect("it opens");
        let (mut window, mut decoder) = (None, Decoder::new().expect("a decoder"));
        for (n, used) in
            [(0, Use::InPlace), (1, Use::Copy), (0, Use::InPlace), (1, Use::InPlace), (2, Use::InPlace), (2, Use::Copy)]
        {
            let stored = fetch(&mut window, 0, &pack, &parts[n], parts[n + 1..].iter(), used).expect("fetched");
            let mut plain = vec![];
            let opened = match used {
                Use::InPlace => pack.decode(&parts[n].frame, stored, &mut decoder, &mut plain),
                Use::Copy => pack.decode(&parts[n].frame, &mut stored.to_vec(), &mut decoder, &mut plain),
            };
            opened.unwrap_or_else(|e| panic!("frame {n}: {e}"));
            assert!(plain == plains[n], "frame {n}");
        }
    }
}
