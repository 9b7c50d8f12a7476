//! Compression of one frame or block. One instance per thread: it keeps its contexts between frames.
//!
//! Invariant: what is encoded decodes to what was given, or is an error: a library, memory or processor that alters it is
//! found before anything is stored. Only WAL can be encoded without that.

use zstd::zstd_safe::CParameter;

use crate::error::{RepoError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    None = 0,
    Zstd = 1,
    Lz4 = 2,
    // 3 is reserved for a transform that knows PostgreSQL's pages.
}

impl Codec {
    pub fn from_byte(b: u8) -> Option<Self> {
        match b {
            0 => Some(Codec::None),
            1 => Some(Codec::Zstd),
            2 => Some(Codec::Lz4),
            _ => None,
        }
    }
}

/// How new data is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd(i32),
}

impl Compression {
    pub const DEFAULT: Compression = Compression::Zstd(1);

    pub fn parse(s: &str) -> Option<Self> {
        match s {
            "none" => Some(Compression::None),
            "lz4" => Some(Compression::Lz4),
            "zstd" => Some(Compression::DEFAULT),
            _ => {
                let level: i32 = s.strip_prefix("zstd:")?.parse().ok()?;
                (-7..=19).contains(&level).then_some(Compression::Zstd(level))
            }
        }
    }
}

/// Whether what was encoded is decoded again and compared with what was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    Yes,
    No,
}

/// How a WAL segment is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalEncoding {
    pub compression: Compression,
    pub recheck: Recheck,
}

pub struct Encoder {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    again: Option<Again>,
    alter: Option<fn(&mut Vec<u8>)>,
}

/// For decoding what was just encoded.
struct Again {
    decoder: Decoder,
    plain: Vec<u8>,
}

impl Encoder {
    pub fn new(compression: Compression) -> Result<Self> {
        Self::with(compression, Recheck::Yes)
    }

    fn with(compression: Compression, recheck: Recheck) -> Result<Self> {
        let zstd = match compression {
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level).map_err(codec_failure)?),
            _ => None,
        };
        let again = match recheck {
            Recheck::Yes => Some(Again { decoder: Decoder::new()?, plain: vec![] }),
            Recheck::No => None,
        };
        Ok(Encoder { compression, zstd, again, alter: None })
    }

    /// For tests: a machine that alters what was encoded.
    #[must_use]
    pub fn altering(self, alter: fn(&mut Vec<u8>)) -> Self {
        Encoder { alter: Some(alter), ..self }
    }

    /// For WAL, where level 1 does better with longer matches alone: the same size, and a fifth to a third less time. Most
    /// matches in WAL are whole pages and tuples; a table of 32 KiB stays in the processor's first cache.
    pub fn for_wal(encoding: WalEncoding) -> Result<Self> {
        let mut encoder = Encoder::with(encoding.compression, encoding.recheck)?;
        if let (Some(z), Compression::Zstd(1)) = (&mut encoder.zstd, encoding.compression) {
            z.set_parameter(CParameter::MinMatch(7)).map_err(codec_failure)?;
            z.set_parameter(CParameter::HashLog(13)).map_err(codec_failure)?;
        }
        Ok(encoder)
    }

    /// Replaces `out` by the encoded form of `plain`; stored as it is where compression gains nothing. `Altered` when it does not
    /// decode to `plain`.
    pub fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        let codec = self.encode_once(plain, out)?;
        if let Some(alter) = self.alter {
            alter(out);
        }
        let same = self.again.as_mut().is_none_or(|again| again.is_same(codec, out, plain));
        if same { Ok(codec) } else { Err(RepoError::Altered) }
    }

    fn encode_once(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<Codec> {
        out.clear();
        let codec = match (&mut self.zstd, self.compression) {
            (Some(z), _) => {
                // Room for the tag too, so that sealing does not move the bytes.
                out.reserve(zstd::zstd_safe::compress_bound(plain.len()) + crate::crypto::TAG_BYTES);
                z.compress_to_buffer(plain, out).map_err(codec_failure)?;
                Codec::Zstd
            }
            (None, Compression::Lz4) => {
                out.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
                let n = lz4_flex::block::compress_into(plain, out)
                    .map_err(|e| codec_failure(std::io::Error::other(e.to_string())))?;
                out.truncate(n);
                Codec::Lz4
            }
            _ => Codec::None,
        };
        if codec == Codec::None || out.len() >= plain.len() - plain.len() / 32 {
            out.clear();
            out.extend_from_slice(plain);
            return Ok(Codec::None);
        }
        Ok(codec)
    }
}

impl Again {
    fn is_same(&mut self, codec: Codec, encoded: &[u8], plain: &[u8]) -> bool {
        if codec == Codec::None {
            return encoded == plain;
        }
        self.decoder.decode(codec, encoded, plain.len(), &mut self.plain).is_ok() && self.plain == plain
    }
}

fn codec_failure(source: std::io::Error) -> RepoError {
    RepoError::System { what: "compression", source }
}

pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    pub fn new() -> Result<Self> {
        Ok(Decoder { zstd: zstd::bulk::Decompressor::new().map_err(codec_failure)? })
    }

    /// Replaces `out` by exactly `plain_len` decoded bytes; anything else is an error.
    /// `plain_len` must already be checked against the caller's limit.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<(), String> {
        if out.len() != plain_len {
            out.clear();
            out.resize(plain_len, 0);
        }
        self.decode_into(codec, stored, out)
    }

    /// Fills `out` with the decoded bytes; more or fewer of them are an error.
    pub fn decode_into(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
        let n = match codec {
            Codec::None if stored.len() == out.len() => {
                out.copy_from_slice(stored);
                stored.len()
            }
            Codec::None => stored.len(),
            Codec::Zstd => self.zstd.decompress_to_buffer(stored, out).map_err(|e| format!("zstd: {e}"))?,
            Codec::Lz4 => lz4_flex::block::decompress_into(stored, out).map_err(|e| format!("lz4: {e}"))?,
        };
        if n == out.len() { Ok(()) } else { Err(format!("{n} bytes decoded, {} expected", out.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_returns_what_it_was_given() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|i| (i / 50).to_le_bytes()).collect();
        for c in [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(-3)] {
            let mut out = vec![9; 3];
            let codec = Encoder::new(c).unwrap().encode(&text, &mut out).unwrap();
            let mut back = vec![];
            Decoder::new().unwrap().decode(codec, &out, text.len(), &mut back).unwrap();
            assert!(back == text);
            assert!(c == Compression::None || out.len() < text.len() / 2);
        }
    }

    #[test]
    fn what_was_altered_while_it_was_encoded_is_not_handed_out() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|i| (i / 50).to_le_bytes()).collect();
        let noise: Vec<u8> = blake3::hash(b"noise").as_bytes().to_vec();
        let alterations: [fn(&mut Vec<u8>); 2] =
            [|out| out.iter_mut().for_each(|byte| *byte ^= 0xff), |out| out.truncate(out.len() - 1)];
        for c in [Compression::None, Compression::Lz4, Compression::DEFAULT, Compression::Zstd(-3)] {
            for alter in alterations {
                for plain in [&text, &noise] {
                    let altered = Encoder::new(c).unwrap().altering(alter).encode(plain, &mut vec![]);
                    assert!(matches!(altered, Err(RepoError::Altered)), "{c:?}: {altered:?}");
                }
                let wal = WalEncoding { compression: c, recheck: Recheck::Yes };
                let altered = Encoder::for_wal(wal).unwrap().altering(alter).encode(&text, &mut vec![]);
                assert!(matches!(altered, Err(RepoError::Altered)), "{c:?}: {altered:?}");
                let unseen = Encoder::for_wal(WalEncoding { recheck: Recheck::No, ..wal }).unwrap();
                assert!(unseen.altering(alter).encode(&text, &mut vec![]).is_ok(), "it is not looked at");
            }
        }
    }

    #[test]
    fn a_declared_length_that_is_wrong_is_an_error() {
        let mut out = vec![];
        let codec = Encoder::new(Compression::DEFAULT).unwrap().encode(&[7; 5000], &mut out).unwrap();
        let mut d = Decoder::new().unwrap();
        for wrong in [0, 1, 4999, 5001, 100_000] {
            assert!(d.decode(codec, &out, wrong, &mut vec![]).is_err(), "{wrong}");
        }
    }
}
