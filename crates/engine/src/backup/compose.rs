//! How a changed file is put together from what an earlier backup has and what is read now, a frame's length at a time.

use pgark_pg::page::PAGE_SIZE;
use pgark_repo::crypto::ContentId;
use pgark_repo::limits::FRAME_BYTES;
use pgark_repo::manifest::{Chunk, Part};

use super::base::{BeforeFile, is_worn};

/// A window that would be put together from more frames is read and stored anew: a restore has to fetch and decode each.
const FRAMES_MAX: usize = 3;
/// Above this share of changed blocks a window is read and stored as a whole.
const MOSTLY_CHANGED_PERCENT: usize = 75;

/// One window of a file, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Window {
    /// As the earlier backup has it.
    Keep(Chunk),
    /// Read and store all of it.
    Read {
        offset: u64,
        len: u64,
    },
    Mix(Vec<Slice>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slice {
    Old {
        part: Part,
        frame: ContentId,
    },
    /// So many blocks from this one on, to be read.
    New {
        block: u32,
        count: u32,
    },
}

/// Composes a file of `size` bytes; `changed` are the blocks to be read, ascending.
pub fn compose(size: u64, changed: &[u32], before: &BeforeFile) -> Vec<Window> {
    let mut windows = vec![];
    let mut old = Cursor { chunks: &before.chunks, start: 0 };
    let mut rest = changed;
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(FRAME_BYTES as u64);
        let end_block = block_of(offset + len);
        let (now, later) = rest.split_at(rest.partition_point(|b| *b < end_block));
        rest = later;
        old.forward(offset);
        windows.push(window(offset, len, now, &old));
        offset += len;
    }
    windows
}

fn block_of(offset: u64) -> u32 {
    u32::try_from(offset.div_ceil(PAGE_SIZE as u64)).unwrap_or(u32::MAX)
}

fn window(offset: u64, len: u64, changed: &[u32], old: &Cursor<'_>) -> Window {
    let read = Window::Read { offset, len };
    if changed.is_empty()
        && let Some(chunk) = old.exactly(offset, len)
    {
        return Window::Keep(chunk);
    }
    let blocks = block_of(offset + len) - block_of(offset);
    if changed.len() * 100 > blocks as usize * MOSTLY_CHANGED_PERCENT {
        return read;
    }
    match slices(offset, len, changed, old) {
        Some(slices) if frames(&slices) <= FRAMES_MAX => Window::Mix(slices),
        _ => read,
    }
}

/// Frames that a restore needs for these; what is read now goes into one.
fn frames(slices: &[Slice]) -> usize {
    let mut places: Vec<Option<(u32, u64)>> = slices
        .iter()
        .map(|slice| match slice {
            Slice::Old { part, .. } => Some((part.pack, part.frame.offset)),
            Slice::New { .. } => None,
        })
        .collect();
    places.sort_unstable();
    places.dedup();
    places.len()
}

fn slices(offset: u64, len: u64, changed: &[u32], old: &Cursor<'_>) -> Option<Vec<Slice>> {
    let page = PAGE_SIZE as u64;
    let mut slices = vec![];
    let mut at = offset;
    for block in changed {
        let from = u64::from(*block) * page;
        old.slices(at, from - at, &mut slices)?;
        match slices.last_mut() {
            Some(Slice::New { block: first, count }) if *first + *count == *block => *count += 1,
            _ => slices.push(Slice::New { block: *block, count: 1 }),
        }
        at = from + page;
    }
    old.slices(at, (offset + len).checked_sub(at)?, &mut slices)?;
    Some(slices)
}

/// A place in the earlier file: the chunks from the one that holds it on.
struct Cursor<'a> {
    chunks: &'a [Chunk],
    start: u64,
}

impl Cursor<'_> {
    fn forward(&mut self, offset: u64) {
        while let [first, rest @ ..] = self.chunks {
            if self.start + first.len() > offset {
                break;
            }
            self.start += first.len();
            self.chunks = rest;
        }
    }

    /// The chunk that is this window and nothing else; of a run of zeros, as much as is needed.
    fn exactly(&self, offset: u64, len: u64) -> Option<Chunk> {
        match self.chunks.first()? {
            Chunk::Zero(n) => (self.start + n >= offset + len).then_some(Chunk::Zero(len)),
            chunk if is_worn(chunk) => None,
            chunk => (self.start == offset && chunk.len() == len).then(|| chunk.clone()),
        }
    }

    /// What lies at `at` as parts of frames; None when it cannot be said as such.
    fn slices(&self, at: u64, len: u64, out: &mut Vec<Slice>) -> Option<()> {
        let (mut start, mut at, mut left) = (self.start, at, len);
        for chunk in self.chunks {
            if left == 0 {
                break;
            }
            let end = start + chunk.len();
            if end > at {
                let take = left.min(end - at);
                slices_of(chunk, at - start, take, out)?;
                at += take;
                left -= take;
            }
            start = end;
        }
        (left == 0).then_some(())
    }
}

/// The bytes from `skip` on of a chunk whose frames' content ids are known.
fn slices_of(chunk: &Chunk, skip: u64, len: u64, out: &mut Vec<Slice>) -> Option<()> {
    if is_worn(chunk) {
        return None;
    }
    let (mut skip, mut left) = (u32::try_from(skip).ok()?, u32::try_from(len).ok()?);
    let known: Vec<(Part, ContentId)> = match chunk {
        Chunk::Zero(_) => return None,
        Chunk::Data { id, parts } => match parts.as_slice() {
            [p] if p.skip == 0 && p.len == p.frame.plain_len => vec![(*p, *id)],
            _ => return None,
        },
        Chunk::Patched { parts, frames } => parts.iter().copied().zip(frames.iter().copied()).collect(),
    };
    for (part, frame) in known {
        if left == 0 {
            break;
        }
        if skip >= part.len {
            skip -= part.len;
            continue;
        }
        let take = left.min(part.len - skip);
        out.push(Slice::Old { part: Part { skip: part.skip + skip, len: take, ..part }, frame });
        (skip, left) = (0, left - take);
    }
    (left == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_repo::codec::Codec;
    use pgark_repo::pack::FrameAt;
    use proptest::prelude::*;

    const PAGE: u64 = PAGE_SIZE as u64;
    const FRAME: u64 = FRAME_BYTES as u64;

    /// A frame whose number says which window of the earlier file it holds.
    fn data(window: u64, len: u64) -> Chunk {
        let len = u32::try_from(len).unwrap();
        let frame = FrameAt { offset: window * 1_000_000, stored_len: len, plain_len: len, codec: Codec::None };
        let part = Part { pack: 1, frame, skip: 0, len };
        Chunk::Data { id: ContentId([window as u8; 16]), parts: vec![part] }
    }

    fn before(blocks: u64, zero_window: Option<u64>) -> BeforeFile {
        let size = blocks * PAGE;
        let windows = (0..size.div_ceil(FRAME)).map(|w| {
            let len = FRAME.min(size - w * FRAME);
            if Some(w) == zero_window { Chunk::Zero(len) } else { data(w, len) }
        });
        BeforeFile::new(windows.collect())
    }

    /// Where each block of the composed file comes from: Some(block of the earlier file), or None when read now.
    fn sources(windows: &[Window]) -> Vec<Option<u64>> {
        let mut out: Vec<Option<u64>> = vec![];
        let of = |part: &Part| part.frame.offset / 1_000_000 * FRAME / PAGE + u64::from(part.skip) / PAGE;
        for window in windows {
            let first = out.len() as u64;
            match window {
                Window::Keep(Chunk::Zero(n)) => out.extend((0..n.div_ceil(PAGE)).map(|i| Some(first + i))),
                Window::Keep(chunk) => {
                    for part in chunk.parts() {
                        out.extend((0..u64::from(part.len) / PAGE).map(|i| Some(of(part) + i)));
                    }
                }
                Window::Read { offset, len } => {
                    assert_eq!(*offset, first * PAGE);
                    out.extend((0..len.div_ceil(PAGE)).map(|_| None));
                }
                Window::Mix(slices) => {
                    for slice in slices {
                        match slice {
                            Slice::Old { part, frame } => {
                                assert_eq!(u64::from(frame.0[0]), part.frame.offset / 1_000_000);
                                assert!(part.skip + part.len <= part.frame.plain_len);
                                out.extend((0..u64::from(part.len) / PAGE).map(|i| Some(of(part) + i)));
                            }
                            Slice::New { block, count } => {
                                assert_eq!(u64::from(*block), out.len() as u64);
                                out.extend((0..*count).map(|_| None));
                            }
                        }
                    }
                }
            }
        }
        out
    }

    /// What was composed, as the earlier file of the next round; read blocks get frames of their own.
    fn as_before(windows: &[Window]) -> BeforeFile {
        let chunks: Vec<Chunk> = windows
            .iter()
            .map(|w| match w {
                Window::Keep(chunk) => chunk.clone(),
                Window::Read { offset, len } => data(offset / FRAME, *len),
                Window::Mix(slices) => {
                    let known = slices.iter().map(|s| match s {
                        Slice::Old { part, frame } => (*part, *frame),
                        Slice::New { block, count } => {
                            let Chunk::Data { id, parts } = data(u64::from(*block) * PAGE / FRAME, FRAME) else {
                                unreachable!()
                            };
                            let skip = (u64::from(*block) * PAGE % FRAME) as u32;
                            (Part { skip, len: count * PAGE as u32, ..parts[0] }, id)
                        }
                    });
                    let (parts, frames) = known.unzip();
                    Chunk::Patched { parts, frames }
                }
            })
            .collect();
        BeforeFile::new(chunks)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_block_is_read_or_is_its_own_predecessor(
            blocks in 1u64..140, zero in proptest::option::of(0u64..4),
            rounds in proptest::collection::vec((1u64..160, proptest::collection::btree_set(0u32..160, 0..30)), 1..4),
        ) {
            let mut old = before(blocks, zero);
            for (now, changed) in rounds {
                let was = old.size / PAGE;
                let must: Vec<u32> = (0..now as u32).filter(|b| changed.contains(b) || u64::from(*b) >= was).collect();
                let windows = compose(now * PAGE, &must, &old);
                let sources = sources(&windows);
                prop_assert_eq!(sources.len() as u64, now);
                for (block, source) in sources.iter().enumerate() {
                    if let Some(from) = source {
                        prop_assert_eq!(*from, block as u64);
                        prop_assert!(!must.contains(&(block as u32)));
                    }
                }
                if must.is_empty() && now == was {
                    prop_assert!(windows.iter().all(|w| matches!(w, Window::Keep(_))), "{:?}", windows);
                }
                for w in &windows {
                    if let Window::Mix(slices) = w {
                        prop_assert!(frames(slices) <= FRAMES_MAX && slices.len() <= 32);
                    }
                }
                old = as_before(&windows);
            }
        }
    }

    #[test]
    fn one_changed_block_costs_one_slice_and_not_the_window() {
        let windows = compose(2 * FRAME, &[33], &before(64, None));
        assert_eq!(windows[0], Window::Keep(data(0, FRAME)));
        let Window::Mix(slices) = &windows[1] else { panic!("{windows:?}") };
        assert!(matches!(slices[..], [Slice::Old { .. }, Slice::New { block: 33, count: 1 }, Slice::Old { .. }]));
        // A file that shared a frame with others, and one that was all zeros, are read.
        assert!(matches!(compose(2 * FRAME, &[33], &before(64, Some(1)))[1], Window::Read { .. }));
    }
}
