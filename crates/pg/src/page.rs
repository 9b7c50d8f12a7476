//! Data pages: header, checksum, and the verdict on a page read while the server may be writing it.
//!
//! Invariant: a verdict never blames a page that recovery will replace anyway (its LSN is not before the backup's
//! start), and never passes a page that PostgreSQL would refuse when it reads it.

use crate::bytes::{array, u16_at, u32_at};
use crate::value::{BlockNo, Lsn};

/// `BLCKSZ` of every build we support; `pg_control` is checked against it.
pub const PAGE_SIZE: usize = 8192;

/// `N_SUMS` in storage/checksum_impl.h: independent FNV-1a sums, so that the loop vectorises.
const LANES: usize = 32;
const ROW: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets` in storage/checksum_impl.h.
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// `PD_VALID_FLAG_BITS`
const VALID_FLAGS: u16 = 0x0007;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageVerdict {
    /// All zero: allocated, never written.
    New,
    Ok,
    /// Changed since the backup began; the WAL of the backup holds a full image, so a torn copy is repaired.
    NotChecked,
    /// The checksum is wrong. Read the page again before believing it: it may have been read while it was written.
    Bad {
        expected: u16,
        found: u16,
    },
    /// The header is impossible, or the page is not all zero but claims to be new. Also to be read again.
    BadHeader,
}

/// One FNV-1a step on all lanes.
#[inline(always)]
fn step(sums: &mut [u32; LANES], row: &[u32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        let mixed = *sum ^ *value;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[inline(always)]
fn lanes(row: &[u8; ROW]) -> [u32; LANES] {
    let (words, _) = row.as_chunks::<4>();
    let mut values = [0u32; LANES];
    for (value, word) in values.iter_mut().zip(words) {
        *value = u32::from_le_bytes(*word);
    }
    values
}

/// `pg_checksum_page`: never 0. `block` counts from the start of the relation fork, over all its segment files.
/// The field `pd_checksum` itself counts as zero.
pub fn page_checksum(page: &[u8; PAGE_SIZE], block: BlockNo) -> u16 {
    let (rows, _) = page.as_chunks::<ROW>();
    let mut rows = rows.iter();
    let mut sums = BASE_OFFSETS;
    if let Some(first) = rows.next() {
        let mut values = lanes(first);
        // pd_checksum is the low half of the third word.
        if let Some(word) = values.get_mut(2) {
            *word &= 0xFFFF_0000;
        }
        step(&mut sums, &values);
    }
    for row in rows {
        step(&mut sums, &lanes(row));
    }
    step(&mut sums, &[0; LANES]);
    step(&mut sums, &[0; LANES]);
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block.0;
    // The remainder is below 65535, so the conversion always succeeds.
    u16::try_from(folded % 65535 + 1).unwrap_or(u16::MAX)
}

/// The rule of PostgreSQL's base backup (basebackup.c, `verify_page_checksum`) together with the header check of
/// `PageIsVerified` (bufpage.c). `page` is one whole page; anything else is `BadHeader`. `start` is the backup's start
/// position. Only for clusters with page checksums on.
pub fn check_page(page: &[u8], block: BlockNo, start: Lsn) -> PageVerdict {
    let Ok(page) = <&[u8; PAGE_SIZE]>::try_from(page) else {
        return PageVerdict::BadHeader;
    };
    let Some(header) = Header::parse(page) else {
        return PageVerdict::BadHeader;
    };
    if header.upper == 0 {
        return if is_all_zero(page) { PageVerdict::New } else { PageVerdict::BadHeader };
    }
    if header.lsn >= start {
        return PageVerdict::NotChecked;
    }
    let expected = page_checksum(page, block);
    if expected != header.checksum {
        return PageVerdict::Bad { expected, found: header.checksum };
    }
    if header.is_sane() { PageVerdict::Ok } else { PageVerdict::BadHeader }
}

/// `pd_lsn`: the WAL position of the last logged change. `None` if there are fewer than eight bytes.
pub fn page_lsn(page: &[u8]) -> Option<Lsn> {
    let high = u32_at(page, 0)?;
    let low = u32_at(page, 4)?;
    Some(Lsn(u64::from(high) << 32 | u64::from(low)))
}

/// Fast over whole pages; right for any length.
pub fn is_all_zero(bytes: &[u8]) -> bool {
    let (rows, rest) = bytes.as_chunks::<ROW>();
    // Folding a row with OR has no branch inside, so it vectorises; one branch per row stops early.
    rows.iter().all(|row| row.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// `PageHeaderData` without what we do not need.
struct Header {
    lsn: Lsn,
    checksum: u16,
    flags: u16,
    lower: u16,
    upper: u16,
    special: u16,
}

impl Header {
    fn parse(page: &[u8; PAGE_SIZE]) -> Option<Self> {
        let bytes: [u8; 24] = array(page, 0)?;
        Some(Self {
            lsn: page_lsn(&bytes)?,
            checksum: u16_at(&bytes, 8)?,
            flags: u16_at(&bytes, 10)?,
            lower: u16_at(&bytes, 12)?,
            upper: u16_at(&bytes, 14)?,
            special: u16_at(&bytes, 16)?,
        })
    }

    fn is_sane(&self) -> bool {
        self.flags & !VALID_FLAGS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && usize::from(self.special) <= PAGE_SIZE
            && self.special.is_multiple_of(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one word at a time, as checksum_impl.h spells it.
    fn slow_checksum(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
        let mut page = *page;
        page[8] = 0;
        page[9] = 0;
        let mut sums = BASE_OFFSETS;
        let word = |i: usize| u32::from_le_bytes(page[i * 4..i * 4 + 4].try_into().unwrap());
        for row in 0..PAGE_SIZE / ROW + 2 {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let value = if row < PAGE_SIZE / ROW { word(row * LANES + lane) } else { 0 };
                let mixed = *sum ^ value;
                *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
            }
        }
        (sums.iter().fold(block, |all, sum| all ^ sum) % 65535 + 1) as u16
    }

    fn noise(seed: u64) -> [u8; PAGE_SIZE] {
        let mut state = seed | 1;
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
    }

    /// A page as PageInit leaves it, with a right checksum.
    fn valid(block: u32, lsn: u64) -> [u8; PAGE_SIZE] {
        let mut page = noise(7);
        page[0..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[10..12].copy_from_slice(&4u16.to_le_bytes());
        page[12..14].copy_from_slice(&28u16.to_le_bytes());
        page[14..16].copy_from_slice(&8000u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        let sum = page_checksum(&page, BlockNo(block));
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn checksum_equals_the_definition() {
        for seed in 0..50 {
            let page = noise(seed);
            let block = (seed as u32).wrapping_mul(131_072);
            assert_eq!(page_checksum(&page, BlockNo(block)), slow_checksum(&page, block));
        }
    }

    #[test]
    fn verdicts_follow_the_base_backup_rule() {
        let start = Lsn(0x1_0000_1000);
        let good = valid(9, 0x1_0000_0FFF);
        assert_eq!(check_page(&good, BlockNo(9), start), PageVerdict::Ok);
        assert!(matches!(check_page(&good, BlockNo(10), start), PageVerdict::Bad { .. }));
        assert_eq!(check_page(&good, BlockNo(10), Lsn(0x1_0000_0FFF)), PageVerdict::NotChecked);
        assert_eq!(check_page(&[0; PAGE_SIZE], BlockNo(0), start), PageVerdict::New);
        let mut claims_new = [0; PAGE_SIZE];
        claims_new[5000] = 1;
        assert_eq!(check_page(&claims_new, BlockNo(0), start), PageVerdict::BadHeader);
        assert_eq!(check_page(&good[..8191], BlockNo(9), start), PageVerdict::BadHeader);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let start = Lsn(u64::MAX);
        let good = valid(3, 1);
        for byte in 0..PAGE_SIZE {
            let mut page = good;
            page[byte] ^= 1 << (byte % 8);
            assert_ne!(check_page(&page, BlockNo(3), start), PageVerdict::Ok, "byte {byte}");
        }
    }

    #[test]
    fn a_checksum_of_zero_is_wrong_and_an_impossible_header_is_refused() {
        let start = Lsn(u64::MAX);
        let mut page = valid(3, 1);
        page[8] = 0;
        page[9] = 0;
        assert!(matches!(check_page(&page, BlockNo(3), start), PageVerdict::Bad { found: 0, .. }));
        let mut page = valid(3, 1);
        page[16..18].copy_from_slice(&9000u16.to_le_bytes());
        let sum = page_checksum(&page, BlockNo(3));
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(check_page(&page, BlockNo(3), start), PageVerdict::BadHeader);
    }

    #[test]
    fn all_zero_sees_a_single_bit_anywhere() {
        assert!(is_all_zero(&[]));
        assert!(is_all_zero(&[0; PAGE_SIZE]));
        for at in [0, 127, 128, 8191] {
            let mut page = [0; PAGE_SIZE];
            page[at] = 0x80;
            assert!(!is_all_zero(&page), "{at}");
        }
        assert!(!is_all_zero(&[0, 0, 1]));
    }

    #[test]
    fn page_lsn_is_high_word_first() {
        assert_eq!(page_lsn(&[1, 0, 0, 0, 2, 0, 0, 0]), Some(Lsn(0x1_0000_0002)));
        assert_eq!(page_lsn(&[0; 7]), None);
    }
}
