//! The table of contents of a dump in PostgreSQL's custom format, as `pg_dump` 13 to 18 writes it: versions 1.14 to 1.16 of the
//! format (pg_backup_archiver.c: ReadHead, ReadToc; pg_backup_custom.c: _ReadExtraToc).
//!
//! Nothing in it is believed: lengths are compared with what is there before anything is made of them.

/// Entries of one dump; more are refused. A database with a million tables has some ten million.
const ENTRIES_MAX: u64 = 20_000_000;
/// Dependencies of one entry.
const DEPENDENCIES_MAX: usize = 1_000_000;

const MAGIC: &[u8] = b"PGDMP";
const CUSTOM: u8 = 1;
/// The kind of its entry.
pub const FOREIGN_KEY: &[u8] = b"FK CONSTRAINT";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpToc {
    /// Of the format: 1.14 is `(1, 14)`.
    pub version: (u8, u8),
    pub database: Vec<u8>,
    pub entries: Vec<TocEntry>,
    /// Bytes that the header and the entries take: the data begins here.
    pub length: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocEntry {
    pub id: u32,
    /// Such as `TABLE`, `TABLE DATA`, `INDEX`.
    pub kind: Vec<u8>,
    pub name: Vec<u8>,
    /// Empty for what is in none.
    pub schema: Vec<u8>,
    pub owner: Vec<u8>,
    pub has_data: bool,
    /// The statement that creates it, in the encoding of the dump; kept of foreign keys alone.
    pub definition: Vec<u8>,
    /// Ids of entries that have to come first.
    pub depends_on: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TocProblem {
    /// Not a dump in this format.
    Foreign,
    /// A version of the format that is not known here.
    Version(u8, u8),
    /// More bytes are needed.
    Short,
    /// It contradicts itself.
    Malformed,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    int_bytes: usize,
    offset_bytes: usize,
}

type Result<T> = std::result::Result<T, TocProblem>;

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).ok_or(TocProblem::Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(TocProblem::Short)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1)?.first().copied().ok_or(TocProblem::Short)
    }

    /// A sign, then the amount, lowest byte first.
    fn int(&mut self) -> Result<i64> {
        let negative = self.byte()? != 0;
        let amount = self.take(self.int_bytes)?;
        let value = amount.iter().rev().fold(0i64, |value, byte| (value << 8) | i64::from(*byte));
        Ok(if negative { -value } else { value })
    }

    /// None: NULL, written as a length of -1.
    fn text(&mut self) -> Result<Option<&'a [u8]>> {
        match self.int()? {
            -1 => Ok(None),
            n => self.take(usize::try_from(n).map_err(|_| TocProblem::Malformed)?).map(Some),
        }
    }

    fn id(&mut self) -> Result<u32> {
        u32::try_from(self.int()?).map_err(|_| TocProblem::Malformed)
    }
}

impl DumpToc {
    /// Reads the beginning of a dump.
    ///
    /// # Errors
    /// `Short` when more bytes may help.
    pub fn parse(bytes: &[u8]) -> Result<DumpToc> {
        let mut r = Reader { bytes, at: 0, int_bytes: 4, offset_bytes: 8 };
        let begins = bytes.get(..MAGIC.len().min(bytes.len())).unwrap_or_default();
        if !MAGIC.starts_with(begins) {
            return Err(TocProblem::Foreign);
        }
        r.take(MAGIC.len())?;
        let version = (r.byte()?, r.byte()?);
        r.byte()?;
        if version.0 != 1 || !(14..=16).contains(&version.1) {
            return Err(TocProblem::Version(version.0, version.1));
        }
        r.int_bytes = usize::from(r.byte()?);
        r.offset_bytes = usize::from(r.byte()?);
        if r.int_bytes != 4 || r.offset_bytes != 8 || r.byte()? != CUSTOM {
            return Err(TocProblem::Foreign);
        }
        if version.1 >= 15 {
            r.byte()?;
        } else {
            r.int()?;
        }
        // When it was made: seconds, minutes, hours, day, month, year, summer time.
        for _ in 0..7 {
            r.int()?;
        }
        let database = r.text()?.unwrap_or_default().to_vec();
        r.text()?;
        r.text()?;
        let count = u64::try_from(r.int()?).ok().filter(|n| *n <= ENTRIES_MAX).ok_or(TocProblem::Malformed)?;
        let mut entries = vec![];
        for _ in 0..count {
            entries.push(entry(&mut r, version.1)?);
        }
        Ok(DumpToc { version, database, entries, length: r.at as u64 })
    }
}

fn entry(r: &mut Reader<'_>, minor: u8) -> Result<TocEntry> {
    let id = r.id()?;
    let has_data = r.int()? != 0;
    // The object's catalog and number.
    r.text()?;
    r.text()?;
    let name = r.text()?.unwrap_or_default().to_vec();
    let kind = r.text()?.unwrap_or_default().to_vec();
    r.int()?;
    let definition = r.text()?.filter(|_| kind == FOREIGN_KEY).unwrap_or_default().to_vec();
    // What drops it, what copies into it.
    for _ in 0..2 {
        r.text()?;
    }
    let schema = r.text()?.unwrap_or_default().to_vec();
    // Tablespace and access method.
    r.text()?;
    r.text()?;
    if minor >= 16 {
        r.int()?;
    }
    let owner = r.text()?.unwrap_or_default().to_vec();
    // Whether it has OIDS, once.
    r.text()?;
    let mut depends_on = vec![];
    while let Some(text) = r.text()? {
        let number = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
        depends_on.push(number.filter(|_| depends_on.len() < DEPENDENCIES_MAX).ok_or(TocProblem::Malformed)?);
    }
    // Whether the place of the data is known, and the place.
    r.byte()?;
    r.take(r.offset_bytes)?;
    Ok(TocEntry { id, kind, name, schema, owner, has_data, definition, depends_on })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn int(out: &mut Vec<u8>, n: i32) {
        out.push(u8::from(n < 0));
        out.extend(n.unsigned_abs().to_le_bytes());
    }

    fn text(out: &mut Vec<u8>, t: Option<&str>) {
        int(out, t.map_or(-1, |t| i32::try_from(t.len()).unwrap()));
        out.extend(t.unwrap_or_default().as_bytes());
    }

    fn dump(minor: u8, names: &[&str]) -> Vec<u8> {
        let mut out = [b"PGDMP".as_slice(), &[1, minor, 0, 4, 8, 1]].concat();
        if minor >= 15 {
            out.push(0)
        } else {
            int(&mut out, 0)
        }
        (0..7).for_each(|n| int(&mut out, n));
        ["app", "15.18", "15.18"].iter().for_each(|t| text(&mut out, Some(t)));
        int(&mut out, i32::try_from(names.len()).unwrap());
        for (n, name) in names.iter().enumerate() {
            int(&mut out, n as i32 + 1);
            int(&mut out, 1);
            [Some("1259"), Some("16384"), Some(name), Some("TABLE")].iter().for_each(|t| text(&mut out, *t));
            int(&mut out, 2);
            [Some("create"), Some("drop"), None, Some("public"), None, Some("heap")]
                .iter()
                .for_each(|t| text(&mut out, *t));
            if minor >= 16 {
                int(&mut out, 114);
            }
            [Some("keeper"), Some("false"), Some("3"), Some("4"), None].iter().for_each(|t| text(&mut out, *t));
            out.push(1);
            out.extend([0; 8]);
        }
        out
    }

    #[test]
    fn every_version_is_read_whatever_names_are_made_of() {
        for minor in 14..=16 {
            let bytes = dump(minor, &["orders", "new\nline; --", "🐘"]);
            let toc = DumpToc::parse(&[bytes.as_slice(), b"data"].concat()).unwrap();
            assert_eq!((toc.version, toc.length), ((1, minor), bytes.len() as u64));
            let second = &toc.entries[1];
            assert_eq!(
                (second.id, second.name.as_slice(), second.schema.as_slice()),
                (2, "new\nline; --".as_bytes(), b"public".as_slice())
            );
            assert!(second.has_data && second.owner == b"keeper" && second.depends_on == [3, 4]);
            assert!(second.definition.is_empty(), "of foreign keys alone");
            for cut in 0..bytes.len() {
                assert_eq!(DumpToc::parse(&bytes[..cut]), Err(TocProblem::Short), "{cut}");
            }
        }
        assert_eq!(DumpToc::parse(&dump(13, &[])), Err(TocProblem::Version(1, 13)));
        assert_eq!(DumpToc::parse(b"SELECT 1"), Err(TocProblem::Foreign));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400), minor in 14u8..17, at in 0usize..200, flip in any::<u8>()) {
            let mut bytes = dump(minor, &["a", "b"]);
            if let Some(b) = bytes.get_mut(at) { *b ^= flip; }
            bytes.extend(tail);
            let _ = DumpToc::parse(&bytes);
        }
    }
}
