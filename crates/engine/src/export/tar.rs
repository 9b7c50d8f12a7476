//! POSIX tar (pax) with nothing in it that depends on when or where it is written. Knows nothing of backups.

use std::io::{self, Write};

const BLOCK: usize = 512;
const NAME_MAX: usize = 100;
/// The largest numbers that fit their fields in octal; beyond them a pax record carries the number.
const SIZE_MAX: u64 = 0o77_777_777_777;
const ID_MAX: u32 = 0o7_777_777;
/// Who owns everything in it, by name: unpacked by root on another machine, this user is looked for first.
const OWNER: &str = "postgres";

pub struct Entry<'a> {
    pub path: &'a [u8],
    pub kind: EntryKind<'a>,
    /// Permission bits.
    pub mode: u32,
    pub owner: (u32, u32),
    /// User and group by name; of PostgreSQL's files there are none.
    pub names: Option<(&'a [u8], &'a [u8])>,
    /// Written as GNU tar and bsdtar do.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Seconds since 1970; what is before counts as 1970.
    pub modified: i64,
}

pub enum EntryKind<'a> {
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: &'a [u8],
    },
    /// Of a file that came before.
    HardLink {
        target: &'a [u8],
    },
}

pub struct TarWriter<W> {
    out: W,
    /// Of the file under way: bytes to come, and its padding.
    left: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    pub fn new(out: W) -> Self {
        TarWriter { out, left: 0, padding: 0 }
    }

    /// Begins an entry. A file's content follows in `data` calls, exactly as many bytes as were announced.
    pub fn begin(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.check_whole()?;
        let (size, flag, target): (u64, u8, &[u8]) = match entry.kind {
            EntryKind::File { size } => (size, b'0', b""),
            EntryKind::Directory => (0, b'5', b""),
            EntryKind::Symlink { target } => (0, b'2', target),
            EntryKind::HardLink { target } => (0, b'1', target),
        };
        let mut path = entry.path.to_vec();
        if flag == b'5' {
            path.push(b'/');
        }
        let mut records = pax_records(&path, target, size, entry.owner);
        for (name, value) in entry.xattrs {
            // In the record the name ends with the first '='.
            if let Some(name) = std::str::from_utf8(name).ok().filter(|n| !n.contains('=')) {
                record(&mut records, &format!("SCHILY.xattr.{name}"), value);
            }
        }
        if !records.is_empty() {
            let name = b"pax-header";
            self.put(&header(name, b"", 0o644, (0, 0), None, records.len() as u64, 0, b'x'))?;
            self.put(&records)?;
            self.put(&[0; BLOCK][..padding(records.len() as u64)])?;
        }
        self.put(&header(&path, target, entry.mode & 0o7777, entry.owner, entry.names, size, entry.modified, flag))?;
        self.left = size;
        self.padding = padding(size);
        Ok(())
    }

    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file is longer than it was announced"));
        };
        self.put(bytes)?;
        self.left = left;
        if left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.put(&[0; BLOCK][..padding])?;
        }
        Ok(())
    }

    /// The end of the archive; what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.check_whole()?;
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn check_whole(&self) -> io::Result<()> {
        match self.left {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a file is shorter than it was announced")),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }
}

fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).expect("below a block");
    if over == 0 { 0 } else { BLOCK - over }
}

/// What does not fit the header. A name of at most 100 bytes stands there as it is, whatever its bytes.
fn pax_records(path: &[u8], target: &[u8], size: u64, owner: (u32, u32)) -> Vec<u8> {
    let mut out = vec![];
    let number = |n: u64| n.to_string().into_bytes();
    if owner.1 > ID_MAX {
        record(&mut out, "gid", &number(owner.1.into()));
    }
    if target.len() > NAME_MAX {
        record(&mut out, "linkpath", target);
    }
    if path.len() > NAME_MAX {
        record(&mut out, "path", path);
    }
    if size > SIZE_MAX {
        record(&mut out, "size", &number(size));
    }
    if owner.0 > ID_MAX {
        record(&mut out, "uid", &number(owner.0.into()));
    }
    out
}

/// "LENGTH KEY=VALUE\n", where the length counts itself.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[expect(clippy::too_many_arguments, reason = "the fields of a header")]
fn header(
    path: &[u8],
    target: &[u8],
    mode: u32,
    owner: (u32, u32),
    names: Option<(&[u8], &[u8])>,
    size: u64,
    modified: i64,
    flag: u8,
) -> [u8; BLOCK] {
    let mut h = [0u8; BLOCK];
    let mut text = |at: usize, max: usize, bytes: &[u8]| {
        let n = bytes.len().min(max);
        h[at..at + n].copy_from_slice(&bytes[..n]);
    };
    let seconds = u64::try_from(modified).unwrap_or(0).min(SIZE_MAX);
    text(0, NAME_MAX, path);
    text(100, 8, format!("{mode:07o}\0").as_bytes());
    text(108, 8, format!("{:07o}\0", if owner.0 > ID_MAX { 0 } else { owner.0 }).as_bytes());
    text(116, 8, format!("{:07o}\0", if owner.1 > ID_MAX { 0 } else { owner.1 }).as_bytes());
    text(124, 12, format!("{:011o}\0", if size > SIZE_MAX { 0 } else { size }).as_bytes());
    text(136, 12, format!("{seconds:011o}\0").as_bytes());
    text(148, 8, b"        ");
    text(156, 1, &[flag]);
    text(157, NAME_MAX, target);
    text(257, 8, b"ustar\x0000");
    if flag != b'x' {
        let (user, group) = names.unwrap_or((OWNER.as_bytes(), OWNER.as_bytes()));
        // A name that does not fit would be another one: the number counts then.
        text(265, 31, if user.len() < 32 { user } else { b"" });
        text(297, 31, if group.len() < 32 { group } else { b"" });
    }
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    h
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, expected) in [(3, "12 path=xxx\n"), (90, "99 path="), (91, "101 path=")] {
            let mut out = vec![];
            record(&mut out, "path", &vec![b'x'; value]);
            assert!(out.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(&out));
            let said: usize = String::from_utf8_lossy(&out).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, out.len());
        }
    }

    #[test]
    fn what_does_not_fit_a_header_is_in_a_pax_record() {
        assert!(pax_records(&[b'a'; 100], b"t", SIZE_MAX, (ID_MAX, ID_MAX)).is_empty());
        let all = pax_records(&[b'a'; 101], &[b'b'; 101], SIZE_MAX + 1, (u32::MAX, u32::MAX));
        let text = String::from_utf8(all).unwrap();
        for key in ["path=aaa", "linkpath=bbb", "size=8589934592\n", "uid=4294967295\n", "gid=4294967295\n"] {
            assert!(text.contains(key), "{key} in {text}");
        }
    }

    #[test]
    fn more_than_was_announced_is_refused() {
        let mut tar = TarWriter::new(vec![]);
        let kind = EntryKind::File { size: 2 };
        tar.begin(&Entry { path: b"a", kind, mode: 0o600, owner: (0, 0), names: None, xattrs: &[], modified: -5 })
            .unwrap();
        assert!(tar.data(b"abc").is_err());
        tar.data(b"ab").unwrap();
        assert_eq!(tar.finish().unwrap().len(), 512 * 4);
        let mut short = TarWriter::new(vec![]);
        let kind = EntryKind::File { size: 2 };
        short
            .begin(&Entry { path: b"a", kind, mode: 0o600, owner: (0, 0), names: None, xattrs: &[], modified: 0 })
            .unwrap();
        assert!(short.finish().is_err());
    }
}
