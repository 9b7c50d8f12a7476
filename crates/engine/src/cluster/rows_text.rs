//! Rows as `COPY … TO STDOUT` sends them, counted and hashed here, to the same figures as the server's own statements give.
//!
//! Invariants: a line is written as `record_out` writes the row (`rowtypes.c`), and hashed as `hashtextextended` does with the collation
//! "C" (`hash_bytes_extended`, `hashfn.c`, little-endian); whoever uses it has compared a hash of the server with one made here.

use super::{ClusterError, RowsHash};

/// The second seed of `content`; the first is 0.
pub(super) const SECOND_SEED: u64 = 8117;

/// Counts, and sums of hashes that do not wrap.
#[derive(Debug, Default)]
pub(super) struct RowSums {
    pub rows: u64,
    a: i128,
    b: i128,
    text_bytes: u64,
    line: Vec<u8>,
}

impl RowSums {
    pub fn count(&mut self) {
        self.rows += 1;
    }

    /// One line of COPY's text format, with its line feed, of so many columns.
    pub fn hash(&mut self, line: &[u8], columns: usize) -> Result<(), ClusterError> {
        self.rows += 1;
        self.line.clear();
        self.line.push(b'(');
        let fields = line.strip_suffix(b"\n").unwrap_or(line).split(|byte| *byte == b'\t');
        let mut seen = 0;
        for field in fields.take(if columns == 0 { 0 } else { usize::MAX }) {
            if seen > 0 {
                self.line.push(b',');
            }
            seen += 1;
            if field != b"\\N" {
                put_value(&unescaped(field)?, &mut self.line);
            }
        }
        if seen != columns {
            return Err(ClusterError::Unexpected { message: format!("a row of {seen} columns instead of {columns}") });
        }
        self.line.push(b')');
        self.a += i128::from(hash_text(&self.line, 0));
        self.b += i128::from(hash_text(&self.line, SECOND_SEED));
        self.text_bytes += self.line.len() as u64;
        Ok(())
    }

    pub fn finish(&self) -> RowsHash {
        RowsHash { a: self.a.to_string(), b: self.b.to_string(), text_bytes: self.text_bytes }
    }
}

/// As `CopyAttributeOutText` writes it: nothing else is escaped.
fn unescaped(field: &[u8]) -> Result<Vec<u8>, ClusterError> {
    let mut value = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        value.push(match (byte, byte == &b'\\') {
            (byte, false) => *byte,
            (_, true) => match bytes.next() {
                Some(b'b') => 8,
                Some(b't') => b'\t',
                Some(b'n') => b'\n',
                Some(b'v') => 11,
                Some(b'f') => 12,
                Some(b'r') => b'\r',
                Some(b'\\') => b'\\',
                _ => return Err(ClusterError::Unexpected { message: "a row with an unknown escape".to_owned() }),
            },
        });
    }
    Ok(value)
}

fn put_value(value: &[u8], line: &mut Vec<u8>) {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'(' | b')' | b',' | b' ' | 9..=13);
    if !value.is_empty() && !value.iter().any(special) {
        line.extend_from_slice(value);
        return;
    }
    line.push(b'"');
    for byte in value {
        if matches!(byte, b'"' | b'\\') {
            line.push(*byte);
        }
        line.push(*byte);
    }
    line.push(b'"');
}

/// `hashtextextended(text COLLATE "C", seed)` of a little-endian server.
pub(super) fn hash_text(bytes: &[u8], seed: u64) -> i64 {
    // PostgreSQL numbers lengths in 32 bits, and no text is longer.
    #[allow(clippy::cast_possible_truncation)]
    let (length, high, low) = (bytes.len() as u32, (seed >> 32) as u32, seed as u32);
    let start = 0x9e37_79b9_u32.wrapping_add(length).wrapping_add(3_923_095);
    let mut state = [start; 3];
    if seed != 0 {
        state[0] = state[0].wrapping_add(high);
        state[1] = state[1].wrapping_add(low);
        mix(&mut state);
    }
    let mut chunks = bytes.chunks_exact(12);
    for chunk in &mut chunks {
        add(&mut state, chunk, 0);
        mix(&mut state);
    }
    // The lowest byte of the third word is reserved for the length.
    add(&mut state, chunks.remainder(), 1);
    finish(&mut state);
    (u64::from(state[1]) << 32 | u64::from(state[2])).cast_signed()
}

/// Adds up to 12 bytes as three little-endian words; those of the third begin at this byte of it.
fn add([a, b, c]: &mut [u32; 3], bytes: &[u8], third: usize) {
    for (at, byte) in bytes.iter().enumerate() {
        let byte = u32::from(*byte);
        match at {
            0..4 => *a = a.wrapping_add(byte << (8 * at)),
            4..8 => *b = b.wrapping_add(byte << (8 * (at - 4))),
            _ => *c = c.wrapping_add(byte << (8 * (at - 8 + third))),
        }
    }
}

fn mix([a, b, c]: &mut [u32; 3]) {
    *a = a.wrapping_sub(*c) ^ c.rotate_left(4);
    *c = c.wrapping_add(*b);
    *b = b.wrapping_sub(*a) ^ a.rotate_left(6);
    *a = a.wrapping_add(*c);
    *c = c.wrapping_sub(*b) ^ b.rotate_left(8);
    *b = b.wrapping_add(*a);
    *a = a.wrapping_sub(*c) ^ c.rotate_left(16);
    *c = c.wrapping_add(*b);
    *b = b.wrapping_sub(*a) ^ a.rotate_left(19);
    *a = a.wrapping_add(*c);
    *c = c.wrapping_sub(*b) ^ b.rotate_left(4);
    *b = b.wrapping_add(*a);
}

fn finish([a, b, c]: &mut [u32; 3]) {
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(14));
    *a = (*a ^ *c).wrapping_sub(c.rotate_left(11));
    *b = (*b ^ *a).wrapping_sub(a.rotate_left(25));
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(16));
    *a = (*a ^ *c).wrapping_sub(c.rotate_left(4));
    *b = (*b ^ *a).wrapping_sub(a.rotate_left(14));
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(24));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL 15 tells them: text, `hashtextextended(text COLLATE "C", 0)`, and the same with 8117.
    const TOLD: [(&str, i64, i64); 8] = [
        ("", -6939563903564495251, 2843347895097571217),
        ("a", 3591986179850072241, -2504134295508146433),
        ("pgark", -7057524427824627861, 5846993274983652233),
        ("eight by", 6215683781062124846, -7709342714420476267),
        ("nine byte", 1604556585140322116, -5823623744539387502),
        ("eleven byte", -1446953353892728106, 6194494702142982558),
        ("twelve bytes", -7123776401673968163, 6760500018506989373),
        ("pgark, and more than twelve bytes", 7948170320451832227, -7470203031060146911),
    ];

    #[test]
    fn texts_are_hashed_as_postgresql_hashes_them() {
        for (text, first, second) in TOLD {
            assert_eq!(
                (hash_text(text.as_bytes(), 0), hash_text(text.as_bytes(), SECOND_SEED)),
                (first, second),
                "{text}"
            );
        }
    }

    #[test]
    fn a_line_of_a_copy_becomes_the_text_of_a_row() {
        let cases: [(&[u8], usize, &[u8]); 6] = [
            (b"1\t\\N\tx\n", 3, b"(1,,x)"),
            (b"\n", 0, b"()"),
            (b"\n", 1, b"(\"\")"),
            (b"a\\tb\t\\\\N\n", 2, b"(\"a\tb\",\"\\\\N\")"),
            (b"\\b\t\"\n", 2, b"(\x08,\"\"\"\")"),
            (b"\xc3\xa9 \t(,)\n", 2, b"(\"\xc3\xa9 \",\"(,)\")"),
        ];
        for (line, columns, expected) in cases {
            let mut sums = RowSums::default();
            sums.hash(line, columns).expect("a row");
            assert_eq!(sums.line, expected, "{}", line.escape_ascii());
        }
        assert!(RowSums::default().hash(b"1\t2\n", 3).is_err());
        assert!(RowSums::default().hash(b"\\q\n", 1).is_err());
    }
}
