//! The code itself: Reed-Solomon over GF(2^16) as Leopard computes it, with the object's shards taken in as they come.
//!
//! The crate's own encoder wants all shards in memory at once. Its high-rate code is a sum over chunks of as many shards as
//! there can be parity, so two chunks are all that has to be held; the tests compare both.

use reed_solomon_simd::engine::{DefaultEngine, Engine, ShardsRefMut};
use reed_solomon_simd::rate::{HighRateDecoder, RateDecoder};

/// What the code computes with at once.
pub type Lane = [u8; 64];
pub const LANE_BYTES: usize = 64;

/// Memory for putting shards together again: of a large section they are computed a strip at a time.
const DECODE_BYTES: usize = 32 * 1024 * 1024;

/// The parity of a section while its shards arrive.
pub struct Sum {
    engine: DefaultEngine,
    /// Shards in a chunk; a power of two.
    width: usize,
    lanes: usize,
    chunks: usize,
    sum: Vec<Lane>,
}

impl Sum {
    pub fn new(width: usize, shard_bytes: usize) -> Self {
        assert!(width.is_power_of_two() && shard_bytes.is_multiple_of(LANE_BYTES));
        Sum { engine: DefaultEngine::new(), width, lanes: shard_bytes / LANE_BYTES, chunks: 0, sum: vec![] }
    }

    /// Takes in the next chunk, of which the first `shards` are used; all of it is overwritten.
    pub fn add(&mut self, chunk: &mut [Lane], shards: usize) {
        assert!(chunk.len() == self.width * self.lanes && shards <= self.width);
        chunk[shards * self.lanes..].fill([0; LANE_BYTES]);
        self.chunks += 1;
        let skew = self.chunks * self.width;
        self.engine.ifft(&mut ShardsRefMut::new(self.width, self.lanes, chunk), 0, self.width, shards, skew);
        if self.sum.is_empty() {
            self.sum.extend_from_slice(chunk);
            return;
        }
        for (into, from) in self.sum.as_flattened_mut().iter_mut().zip(chunk.as_flattened()) {
            *into ^= from;
        }
    }

    /// So many parity shards, one after another.
    pub fn finish(mut self, parity: usize) -> Vec<Lane> {
        assert!(parity <= self.width && self.chunks > 0);
        let mut shards = ShardsRefMut::new(self.width, self.lanes, &mut self.sum);
        self.engine.fft(&mut shards, 0, self.width, parity, 0);
        self.sum.truncate(parity * self.lanes);
        self.sum
    }
}

/// Where the decoder gets its shards from.
pub trait Shards {
    type Error;

    /// Shows each sound shard of the object, by number, in order.
    fn each(&mut self, show: &mut dyn FnMut(usize, &[u8])) -> Result<(), Self::Error>;
}

/// A section's shape, as the decoder needs it.
#[derive(Clone, Copy)]
pub struct Shape {
    pub width: usize,
    pub data_shards: usize,
    pub shard_bytes: usize,
}

/// Makes the shards in `missing` from all others and from as many parity shards, given with their numbers. Memory is
/// bounded: when a strip of all shards at a time is too much, they are shown several times.
///
/// # Errors
/// Those of the source; None when the code refuses what it was given.
pub fn restore<S: Shards>(
    shape: Shape,
    missing: &[usize],
    parity: &[(usize, Vec<u8>)],
    sound: &mut S,
) -> Result<Option<Vec<Vec<u8>>>, S::Error> {
    let work = (shape.width + shape.data_shards).next_power_of_two();
    let strip = (DECODE_BYTES / work / LANE_BYTES * LANE_BYTES).clamp(LANE_BYTES, shape.shard_bytes);
    let mut restored = vec![Vec::with_capacity(shape.shard_bytes); missing.len()];
    for begin in (0..shape.shard_bytes).step_by(strip) {
        let range = begin..shape.shard_bytes.min(begin + strip);
        let decoder =
            HighRateDecoder::new(shape.data_shards, shape.width, range.len(), DefaultEngine::new(), None).ok();
        let Some(mut decoder) = decoder else { return Ok(None) };
        let mut accepted = true;
        sound.each(&mut |number, shard| {
            let strip = shard.get(range.clone());
            accepted &= strip.is_some_and(|s| decoder.add_original_shard(number, s).is_ok());
        })?;
        for (number, shard) in parity {
            let strip = shard.get(range.clone());
            accepted &= strip.is_some_and(|s| decoder.add_recovery_shard(*number, s).is_ok());
        }
        let Some(decoded) = decoder.decode().ok().filter(|_| accepted) else { return Ok(None) };
        for (number, into) in missing.iter().zip(&mut restored) {
            match decoded.restored_original(*number) {
                Some(strip) => into.extend_from_slice(strip),
                None => return Ok(None),
            }
        }
    }
    Ok(Some(restored))
}
