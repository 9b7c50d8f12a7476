//! The index of a section of a parity object: how it was made, and a checksum of every shard, so that the damaged ones
//! are known. It lies before the parity shards and once more behind them, in pages that each carry all of the header:
//! one sound page says where everything is.

use crate::limits::{PARITY_SECTION_BYTES_MAX, PARITY_SHARD_BYTES_MAX};
use crate::manifest::bytes::Cursor;
use crate::store::ObjectName;

pub const PAGE_BYTES: usize = 4096;
pub const MAGIC: &[u8; 8] = b"PGARKPAR";
const VERSION: u8 = 1;
pub const HEADER_BYTES: usize = 64;
const PRINT_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 16;
const PRINTS_PER_PAGE: usize = (PAGE_BYTES - HEADER_BYTES - CHECKSUM_BYTES) / PRINT_BYTES;
const FLAG_LAST: u8 = 1;
/// Shards that one code can hold: it computes with 16-bit numbers.
const CODE_SHARDS_MAX: u64 = 65536;

/// The first bytes of a shard's BLAKE3. It finds damage; authenticity is the object's own business.
pub type Print = [u8; PRINT_BYTES];

pub fn print_of(shard: &[u8]) -> Print {
    let hash = blake3::hash(shard);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Ties parity to its object: a parity object under another name says nothing.
pub fn print_of_name(name: &ObjectName) -> [u8; 16] {
    let hash = blake3::hash(name.as_str().as_bytes());
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// What one section protects, and how. A section is complete in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    pub percent: u8,
    /// Power of two: the code was computed in chunks of 2^this shards.
    pub width_log2: u8,
    /// The object ends with it.
    pub last: bool,
    /// The stretch of the object that it protects.
    pub data_at: u64,
    pub data_len: u64,
    /// Where the section begins in the parity object.
    pub section_at: u64,
    pub shard_bytes: u32,
    pub parity_shards: u32,
    pub name: [u8; 16],
}

impl Section {
    pub fn shard(&self) -> usize {
        self.shard_bytes as usize
    }

    pub fn width(&self) -> usize {
        1 << self.width_log2
    }

    /// Shards of the object. Checked to be few.
    pub fn data_shards(&self) -> usize {
        usize::try_from(self.data_len.div_ceil(u64::from(self.shard_bytes))).unwrap_or(usize::MAX)
    }

    pub fn parity_shards(&self) -> usize {
        self.parity_shards as usize
    }

    pub fn shards(&self) -> usize {
        self.data_shards() + self.parity_shards()
    }

    pub fn pages(&self) -> usize {
        self.shards().div_ceil(PRINTS_PER_PAGE)
    }

    pub fn index_bytes(&self) -> u64 {
        (self.shards() * PRINT_BYTES + self.pages() * (HEADER_BYTES + CHECKSUM_BYTES)) as u64
    }

    pub fn parity_at(&self) -> u64 {
        self.section_at + self.index_bytes()
    }

    pub fn section_bytes(&self) -> u64 {
        2 * self.index_bytes() + self.parity_shards() as u64 * u64::from(self.shard_bytes)
    }

    /// Where the two copies of a page lie.
    pub fn page_at(&self, page: usize) -> [u64; 2] {
        let within = (page * PAGE_BYTES) as u64;
        let behind = self.section_at + self.section_bytes() - self.index_bytes();
        [self.section_at + within, behind + within]
    }

    pub fn page_bytes(&self, page: usize) -> usize {
        HEADER_BYTES + CHECKSUM_BYTES + self.prints_in(page) * PRINT_BYTES
    }

    /// Number of the first shard of a page.
    pub fn first_print(page: usize) -> usize {
        page * PRINTS_PER_PAGE
    }

    fn prints_in(&self, page: usize) -> usize {
        self.shards().saturating_sub(Self::first_print(page)).min(PRINTS_PER_PAGE)
    }

    fn header(&self, page: u32) -> [u8; HEADER_BYTES] {
        let mut h = [0u8; HEADER_BYTES];
        h[..8].copy_from_slice(MAGIC);
        h[8] = VERSION;
        h[9] = self.percent;
        h[10] = self.width_log2;
        h[11] = if self.last { FLAG_LAST } else { 0 };
        h[12..16].copy_from_slice(&page.to_le_bytes());
        h[16..24].copy_from_slice(&self.data_at.to_le_bytes());
        h[24..32].copy_from_slice(&self.data_len.to_le_bytes());
        h[32..40].copy_from_slice(&self.section_at.to_le_bytes());
        h[40..44].copy_from_slice(&self.shard_bytes.to_le_bytes());
        h[44..48].copy_from_slice(&self.parity_shards.to_le_bytes());
        h[48..].copy_from_slice(&self.name);
        h
    }

    /// The index with all its pages. `prints`: of the object's shards, then of the parity shards.
    pub fn encode_index(&self, prints: &[Print]) -> Vec<u8> {
        assert!(prints.len() == self.shards(), "each shard has its checksum");
        let mut out = Vec::with_capacity(usize::try_from(self.index_bytes()).unwrap_or_default());
        for (page, prints) in prints.chunks(PRINTS_PER_PAGE).enumerate() {
            let begin = out.len();
            out.extend_from_slice(&self.header(u32::try_from(page).expect("a section has few pages")));
            out.extend_from_slice(prints.as_flattened());
            let checksum = checksum(&out[begin..]);
            out.extend_from_slice(&checksum);
        }
        out
    }

    /// The section's own limits, before anything is allocated by what it says.
    fn is_possible(&self) -> bool {
        let shard = u64::from(self.shard_bytes);
        if shard == 0 || !shard.is_multiple_of(64) || shard > PARITY_SHARD_BYTES_MAX || self.width_log2 > 15 {
            return false;
        }
        let (data, parity) = (self.data_len.div_ceil(shard), u64::from(self.parity_shards));
        data > 0
            && parity > 0
            && parity <= self.width() as u64
            && self.width() as u64 + data <= CODE_SHARDS_MAX
            && parity * shard <= PARITY_SECTION_BYTES_MAX
            && self.data_at.checked_add(self.data_len).is_some()
            && self.section_at.checked_add(CODE_SHARDS_MAX * 2 * PARITY_SHARD_BYTES_MAX).is_some()
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    blake3::hash(bytes).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// One sound page: what it says of its section, its number, and its checksums.
pub struct Page {
    pub section: Section,
    pub number: usize,
    pub prints: Vec<Print>,
}

/// A page at the beginning of `bytes`, which may go on behind it. None for everything that is not a sound page of this
/// object's parity.
pub fn parse_page(bytes: &[u8], name: &[u8; 16]) -> Option<Page> {
    let mut c = Cursor::new(bytes);
    if &c.array::<8>()? != MAGIC || c.byte()? != VERSION {
        return None;
    }
    let (percent, width_log2, flags, number) = (c.byte()?, c.byte()?, c.byte()?, c.u32()?);
    let section = Section {
        percent,
        width_log2,
        last: flags & FLAG_LAST != 0,
        data_at: c.u64()?,
        data_len: c.u64()?,
        section_at: c.u64()?,
        shard_bytes: c.u32()?,
        parity_shards: c.u32()?,
        name: c.array()?,
    };
    if flags > FLAG_LAST || section.name != *name || !section.is_possible() {
        return None;
    }
    let number = usize::try_from(number).ok().filter(|n| *n < section.pages())?;
    let stored = c.take(section.prints_in(number) * PRINT_BYTES)?;
    let (covered, _) = bytes.split_at_checked(HEADER_BYTES + stored.len())?;
    if c.array()? != checksum(covered) {
        return None;
    }
    let prints = stored.as_chunks::<PRINT_BYTES>().0.to_vec();
    Some(Page { section, number, prints })
}
