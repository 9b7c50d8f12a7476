//! Reading numbers and strings from untrusted bytes: every step can run out, nothing is indexed.

pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub fn put_bytes(out: &mut Vec<u8>, b: &[u8]) {
    put_varint(out, b.len() as u64);
    out.extend_from_slice(b);
}

/// Signed numbers near zero stay short.
pub fn put_zigzag(out: &mut Vec<u8>, v: i64) {
    put_varint(out, ((v << 1) ^ (v >> 63)) as u64);
}

#[derive(Clone)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (now, later) = self.rest.split_at_checked(n)?;
        self.rest = later;
        Some(now)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The shortest form only: one value has one encoding.
    pub fn varint(&mut self) -> Option<u64> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let part = u64::from(b & 0x7f);
            if shift == 63 && part > 1 {
                return None;
            }
            v |= part << shift;
            if b & 0x80 == 0 {
                return (b != 0 || shift == 0).then_some(v);
            }
        }
        None
    }

    pub fn varint32(&mut self) -> Option<u32> {
        self.varint()?.try_into().ok()
    }

    pub fn zigzag(&mut self) -> Option<i64> {
        let v = self.varint()?;
        Some((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    pub fn bytes(&mut self, max: usize) -> Option<&'a [u8]> {
        let n = usize::try_from(self.varint()?).ok().filter(|n| *n <= max)?;
        self.take(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(u in any::<u64>(), i in any::<i64>(), b in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = vec![];
            put_varint(&mut out, u);
            put_zigzag(&mut out, i);
            put_bytes(&mut out, &b);
            let mut c = Cursor::new(&out);
            prop_assert_eq!(c.varint(), Some(u));
            prop_assert_eq!(c.zigzag(), Some(i));
            prop_assert_eq!(c.bytes(300), Some(&b[..]));
            prop_assert!(c.is_empty());
        }

        #[test]
        fn whatever_parses_as_a_varint_is_its_only_form(b in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut c = Cursor::new(&b);
            if let Some(v) = c.varint() {
                let mut again = vec![];
                put_varint(&mut again, v);
                prop_assert_eq!(&again[..], &b[..b.len() - c.remaining()]);
            }
        }
    }
}
