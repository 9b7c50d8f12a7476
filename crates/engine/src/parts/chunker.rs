//! Where a stream is cut: where a rolling hash of the last 64 bytes says so. An insertion or a deletion moves what follows, and
//! the cuts move with it.
//!
//! The method is FastCDC (Xia et al., 2016 and 2020): a gear hash, no cut before the minimum, a harder condition before the
//! usual length and an easier one after it. The table is made of the repository's content-id key, so that lengths of chunks
//! tell nobody what is in them.

use pgark_repo::crypto::KeySet;

/// No chunk is shorter, but for the last one of a part.
pub const CHUNK_BYTES_MIN: usize = 4 * 1024;
/// The usual length. Shorter chunks find more of what is the same, and cost a manifest entry of about 30 bytes each.
const CHUNK_BYTES_USUAL: usize = 16 * 1024;
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// One bit more and one bit less than the usual length asks for.
const HARD: u64 = top_bits(CHUNK_BYTES_USUAL.ilog2() + 1);
const EASY: u64 = top_bits(CHUNK_BYTES_USUAL.ilog2() - 1);

/// The hash is shifted to the left, so its highest bits depend on most bytes.
const fn top_bits(n: u32) -> u64 {
    u64::MAX << (u64::BITS - n)
}

pub struct Chunker {
    gear: [u64; 256],
}

impl Chunker {
    pub fn new(keys: &KeySet) -> Self {
        let mut gear = [0; 256];
        for (byte, entry) in (0u8..=255).zip(&mut gear) {
            let id = keys.content_id(&[b"pgark v1 gear ".as_slice(), &[byte]].concat());
            let half = id.0.first_chunk().expect("an id has 16 bytes");
            *entry = u64::from_le_bytes(*half);
        }
        Chunker { gear }
    }

    /// The length of the first chunk of `data`; None when it may go on beyond `data`. At the end of the part what is left is
    /// the last chunk.
    pub fn cut(&self, data: &[u8]) -> Option<usize> {
        let end = data.len().min(CHUNK_BYTES_MAX);
        let usual = end.min(CHUNK_BYTES_USUAL);
        let mut hash = 0u64;
        let mut find = |from: usize, to: usize, mask: u64| {
            let bytes = data.get(from..to)?;
            let found = bytes.iter().position(|b| {
                hash = (hash << 1).wrapping_add(self.gear[usize::from(*b)]);
                hash & mask == 0
            });
            found.map(|n| from + n + 1)
        };
        // The hash forgets what is more than 64 bytes ago, so it need not see the first bytes.
        find(CHUNK_BYTES_MIN, usual, HARD)
            .or_else(|| find(usual.max(CHUNK_BYTES_MIN), end, EASY))
            .or_else(|| (data.len() >= CHUNK_BYTES_MAX).then_some(CHUNK_BYTES_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, mut seed: u64) -> Vec<u8> {
        std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .take(n)
        .collect()
    }

    fn chunks(data: &[u8]) -> Vec<&[u8]> {
        let chunker = Chunker::new(&KeySet::unencrypted());
        let (mut out, mut rest) = (vec![], data);
        while let Some(n) = chunker.cut(rest) {
            let (chunk, more) = rest.split_at(n);
            out.push(chunk);
            rest = more;
        }
        out.push(rest);
        out
    }

    #[test]
    fn chunks_are_the_whole_and_within_their_bounds() {
        let data = noise(3_000_000, 1);
        let all = chunks(&data);
        assert_eq!(all.concat(), data);
        let inner = &all[..all.len() - 1];
        assert!(inner.iter().all(|c| (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&c.len())));
        let mean = data.len() / all.len();
        assert!((CHUNK_BYTES_USUAL / 2..CHUNK_BYTES_USUAL * 2).contains(&mean), "{mean}");
        // Nothing to be found in it: cut at the maximum.
        assert!(chunks(&vec![7; 300_000]).iter().take(4).all(|c| c.len() == CHUNK_BYTES_MAX));
    }

    #[test]
    fn an_insertion_changes_the_chunks_around_it_alone() {
        let data = noise(2_000_000, 2);
        let changed = [&data[..700_000], b"a row more\n", &data[700_000..]].concat();
        let before: std::collections::HashSet<&[u8]> = chunks(&data).into_iter().collect();
        let new = chunks(&changed).into_iter().filter(|c| !before.contains(c)).count();
        assert!((1..=3).contains(&new), "{new} new chunks");
    }

    #[test]
    fn what_has_been_seen_so_far_decides_however_it_came_in() {
        let data = noise(400_000, 3);
        let chunker = Chunker::new(&KeySet::unencrypted());
        let whole = chunker.cut(&data).unwrap();
        assert_eq!(chunker.cut(&data[..whole]), Some(whole));
        assert_eq!(chunker.cut(&data[..whole - 1]), None);
    }
}
