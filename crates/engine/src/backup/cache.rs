//! Reading beside a server without taking its page cache away: what was in the cache stays there, what had to be fetched
//! for us goes again.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::copy::read_full;

/// Reads as `read_full` does. Bytes that were not in the cache before are dropped from it afterwards.
pub fn read_sparing(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let cached = match preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
        Ok(n) if n == buf.len() => return Ok(n),
        Ok(n) => n,
        Err(Errno::AGAIN) => 0,
        // This file system or kernel does not tell what it has; then its cache is left as it is.
        Err(_) => return read_full(file, offset, buf),
    };
    let rest = buf.get_mut(cached..).unwrap_or_default();
    let from = offset + cached as u64;
    let fetched = read_full(file, from, rest)?;
    if let Some(len) = NonZeroU64::new(fetched as u64) {
        // Advice is not an obligation: a refusal costs cache and nothing else.
        let _refused = fadvise(file, from, Some(len), Advice::DontNeed);
    }
    Ok(cached + fetched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use rustix::fs::{Mode, OFlags, open};

    #[test]
    fn bytes_are_those_of_the_file_wherever_they_come_from() {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let mut file = File::from(open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR).expect("a file"));
        let bytes: Vec<u8> = (0..600_000u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&bytes).expect("write");
        file.sync_all().expect("sync");
        let size = bytes.len() as u64;
        for drop_first in [false, true] {
            if drop_first {
                fadvise(&file, 0, None, Advice::DontNeed).expect("drop the cache");
            }
            for (offset, len) in [(0, 262_144), (262_144, 262_144), (100, 4), (size - 10, 50), (size, 5), (size + 9, 5)]
            {
                let mut buf = vec![1; len];
                let got = read_sparing(&file, offset, &mut buf).expect("read");
                let from = usize::try_from(offset.min(size)).expect("small");
                let expected = bytes.get(from..(from + len).min(bytes.len())).expect("inside");
                assert_eq!(&buf[..got], expected, "{offset}+{len}");
            }
        }
    }
}
