//! Stored frames that lie side by side in a pack, fetched by one read.

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
}

/// The stored bytes of a frame, from what was fetched or by fetching the frames that follow it along with it.
pub fn fetch<'w, 'p>(
    window: &'w mut Option<Window>,
    source: usize,
    pack: &PackReader,
    part: &Part,
    upcoming: impl Iterator<Item = &'p Part>,
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
        *window = Some(Window { source, pack: part.pack, offset: at.offset, bytes });
    }
    let missing = || RepoError::corrupt(pack.name(), "a frame outside of what was fetched");
    let window = window.as_mut().ok_or_else(missing)?;
    let from = usize::try_from(at.offset - window.offset).map_err(|_| missing())?;
    Ok(window.bytes.get_mut(from..from + at.stored_len as usize).ok_or_else(missing)?)
}

fn window_holds(window: Option<&Window>, source: usize, pack: u32, at: &FrameAt) -> bool {
    window.is_some_and(|w| {
        let end = w.offset + w.bytes.len() as u64;
        w.source == source && w.pack == pack && at.offset >= w.offset && at.offset + u64::from(at.stored_len) <= end
    })
}

/// Stored bytes from this part on that belong to the coming chunks and lie side by side. Frames in the window are
/// decrypted in place, so each is used once from it.
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
