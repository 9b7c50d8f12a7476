//! Reading little-endian numbers from bytes that may be short or hostile.
//!
//! Invariant: no function here can panic; a read past the end is `None`. PostgreSQL writes its files in the byte order
//! of the machine; all machines we support are little-endian, and a foreign byte order shows as a bad magic or CRC.

/// The `N` bytes at `offset`.
#[inline]
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[inline]
pub(crate) fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

#[inline]
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

#[inline]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

#[inline]
pub(crate) fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array(bytes, offset).map(i32::from_le_bytes)
}

#[inline]
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

#[inline]
pub(crate) fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    array(bytes, offset).map(i64::from_le_bytes)
}

/// A decimal `u32` as PostgreSQL writes it: digits only, no sign, no leading zero unless the number is `0`.
pub(crate) fn decimal_u32(text: &[u8]) -> Option<u32> {
    let leading_zero = text.len() > 1 && text.first() == Some(&b'0');
    if text.is_empty() || leading_zero {
        return None;
    }
    text.iter().try_fold(0u32, |n, c| {
        let digit = c.is_ascii_digit().then(|| u32::from(c - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// Exactly eight upper-case hexadecimal digits.
pub(crate) fn hex8(text: &[u8]) -> Option<u32> {
    if text.len() != 8 {
        return None;
    }
    text.iter().try_fold(0u32, |n, c| {
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'A'..=b'F' => c - b'A' + 10,
            _ => return None,
        };
        Some(n << 4 | u32::from(digit))
    })
}
