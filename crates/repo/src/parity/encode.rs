//! From an object's bytes, as they are written, to its parity object. The same bytes always give the same parity.

use super::Percent;
use super::code::{LANE_BYTES, Lane, Sum};
use super::index::{Print, Section, print_of, print_of_name};
use crate::limits::{PARITY_SECTION_SHARDS, PARITY_SHARD_BYTES};
use crate::store::{ObjectName, StoreError};

/// Where parity goes.
pub type Out<'a> = dyn FnMut(&[u8]) -> Result<(), StoreError> + 'a;

/// Holds two chunks of at most as many shards as there is parity for a section: 8 MiB at 5 percent, 32 MiB at 20, and less
/// for small objects.
pub struct ParityEncoder {
    name: [u8; 16],
    percent: Percent,
    /// What has not been taken into the sum.
    buffer: Vec<Lane>,
    filled: usize,
    sum: Option<Sum>,
    prints: Vec<Print>,
    /// Of the section that is being filled.
    data_at: u64,
    data_len: u64,
    section_at: u64,
}

/// Parity shards for so many shards: at least two, where one would not be all of them.
fn parity_shards(data_shards: usize, percent: Percent) -> usize {
    (data_shards * usize::from(percent.get())).div_ceil(100).max(data_shards.min(2))
}

fn full_width(percent: Percent) -> usize {
    parity_shards(PARITY_SECTION_SHARDS, percent).next_power_of_two()
}

impl ParityEncoder {
    pub fn new(name: &ObjectName, percent: Percent) -> Self {
        let name = print_of_name(name);
        let (data_at, data_len, section_at) = (0, 0, 0);
        let (buffer, sum, prints) = (vec![], None, vec![]);
        ParityEncoder { name, percent, buffer, filled: 0, sum, prints, data_at, data_len, section_at }
    }

    /// The next bytes of the object. Parity comes out a section at a time, so mostly none does.
    pub fn write(&mut self, mut bytes: &[u8], out: &mut Out<'_>) -> Result<(), StoreError> {
        let chunk = full_width(self.percent) * PARITY_SHARD_BYTES;
        while !bytes.is_empty() {
            if self.filled == chunk {
                self.take_in_chunk();
            }
            if self.data_len == (PARITY_SECTION_SHARDS * PARITY_SHARD_BYTES) as u64 {
                self.end_section(false, out)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(chunk - self.filled));
            let lanes = (self.filled + now.len()).div_ceil(LANE_BYTES);
            self.buffer.resize(lanes, [0; LANE_BYTES]);
            self.buffer.as_flattened_mut()[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            self.data_len += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// The object has ended. An empty one has no parity.
    pub fn finish(mut self, out: &mut Out<'_>) -> Result<(), StoreError> {
        if self.data_len > 0 { self.end_section(true, out) } else { Ok(()) }
    }

    fn take_in_chunk(&mut self) {
        let width = full_width(self.percent);
        let shards = self.print_buffer(PARITY_SHARD_BYTES);
        self.buffer.resize(width * (PARITY_SHARD_BYTES / LANE_BYTES), [0; LANE_BYTES]);
        self.sum.get_or_insert_with(|| Sum::new(width, PARITY_SHARD_BYTES)).add(&mut self.buffer, shards);
        self.buffer.clear();
        self.filled = 0;
    }

    /// Fills the last shard up with zeros; notes the checksums and returns the number of shards.
    fn print_buffer(&mut self, shard_bytes: usize) -> usize {
        let shards = self.filled.div_ceil(shard_bytes);
        self.buffer.resize(shards * (shard_bytes / LANE_BYTES), [0; LANE_BYTES]);
        self.prints.extend(self.buffer.as_flattened().chunks_exact(shard_bytes).map(print_of));
        shards
    }

    fn end_section(&mut self, last: bool, out: &mut Out<'_>) -> Result<(), StoreError> {
        let (shard_bytes, width, parity) = match self.sum.is_some() {
            true => self.end_large(),
            false => self.end_small(),
        };
        let parity: &[u8] = parity.as_flattened();
        self.prints.extend(parity.chunks_exact(shard_bytes).map(print_of));
        let u32_of = |n: usize| u32::try_from(n).expect("sections are small");
        let section = Section {
            percent: self.percent.get(),
            width_log2: u8::try_from(width.ilog2()).expect("less than 32"),
            last,
            data_at: self.data_at,
            data_len: self.data_len,
            section_at: self.section_at,
            shard_bytes: u32_of(shard_bytes),
            parity_shards: u32_of(parity.len() / shard_bytes),
            name: self.name,
        };
        let index = section.encode_index(&self.prints);
        for part in [&index, parity, &index] {
            out(part)?;
        }
        self.data_at += self.data_len;
        self.data_len = 0;
        self.section_at += section.section_bytes();
        self.prints.clear();
        Ok(())
    }

    fn end_large(&mut self) -> (usize, usize, Vec<Lane>) {
        if self.filled > 0 {
            self.take_in_chunk();
        }
        let sum = self.sum.take().expect("the caller has looked");
        (PARITY_SHARD_BYTES, full_width(self.percent), sum.finish(parity_shards(self.prints.len(), self.percent)))
    }

    /// All of it is in the buffer, so the code can be as narrow as the parity is.
    fn end_small(&mut self) -> (usize, usize, Vec<Lane>) {
        let shard_bytes = PARITY_SHARD_BYTES.min(self.filled.next_multiple_of(LANE_BYTES));
        let shards = self.print_buffer(shard_bytes);
        let parity = parity_shards(shards, self.percent);
        let width = parity.next_power_of_two();
        let chunk_lanes = width * (shard_bytes / LANE_BYTES);
        self.buffer.resize(shards.div_ceil(width) * chunk_lanes, [0; LANE_BYTES]);
        let mut sum = Sum::new(width, shard_bytes);
        for (number, chunk) in self.buffer.chunks_exact_mut(chunk_lanes).enumerate() {
            sum.add(chunk, width.min(shards - number * width));
        }
        self.buffer.clear();
        self.filled = 0;
        (shard_bytes, width, sum.finish(parity))
    }
}
