//! How a tar is compressed, and what the result's SHA-256 is.

use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};
use flate2::GzBuilder;
use flate2::write::GzEncoder;
use pgark_repo::crypto::hex;

/// Named by the end of the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Tar,
    Gzip,
    Zstd,
}

const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

impl Packing {
    pub fn of_name(name: &str) -> Option<Self> {
        let ends = |words: &[&str]| words.iter().any(|w| name.ends_with(w));
        match () {
            () if ends(&[".tar"]) => Some(Packing::Tar),
            () if ends(&[".tar.gz", ".tgz"]) => Some(Packing::Gzip),
            () if ends(&[".tar.zst", ".tzst"]) => Some(Packing::Zstd),
            () => None,
        }
    }
}

pub enum Packer<W: Write> {
    Tar(Hashed<W>),
    Gzip(GzEncoder<Hashed<W>>),
    Zstd(zstd::Encoder<'static, Hashed<W>>),
}

impl<W: Write> Packer<W> {
    pub fn new(packing: Packing, out: W) -> io::Result<Self> {
        let out = Hashed { out, hash: Context::new(&SHA256), size: 0 };
        Ok(match packing {
            Packing::Tar => Packer::Tar(out),
            // Without a time: the same backup gives the same bytes.
            Packing::Gzip => Packer::Gzip(GzBuilder::new().mtime(0).write(out, flate2::Compression::new(GZIP_LEVEL))),
            Packing::Zstd => {
                let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Packer::Zstd(encoder)
            }
        })
    }

    /// Size and SHA-256 of what was written; flushed.
    pub fn finish(self) -> io::Result<(u64, String)> {
        let mut hashed = match self {
            Packer::Tar(out) => out,
            Packer::Gzip(encoder) => encoder.finish()?,
            Packer::Zstd(encoder) => encoder.finish()?,
        };
        hashed.out.flush()?;
        Ok((hashed.size, hex(hashed.hash.finish().as_ref())))
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packer::Tar(out) => out.write(bytes),
            Packer::Gzip(out) => out.write(bytes),
            Packer::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Packer::Tar(out) => out.flush(),
            Packer::Gzip(out) => out.flush(),
            Packer::Zstd(out) => out.flush(),
        }
    }
}

pub struct Hashed<W> {
    out: W,
    hash: Context,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(bytes.get(..n).unwrap_or_default());
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
