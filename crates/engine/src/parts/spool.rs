//! The chunks of a part until its manifest is written: parts are made side by side, and a manifest lists one after another. In
//! memory up to a limit, then in a file without a name. A place in a pack and a content id are all that is in it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pgark_repo::codec::Codec;
use pgark_repo::crypto::ContentId;
use pgark_repo::manifest::{Chunk, Part};
use pgark_repo::pack::FrameAt;

use crate::error::{EngineError, Result};

/// Chunks of one part that are held in memory, about 15 MB: 4 GB of a dump.
const CHUNKS_IN_MEMORY: usize = 256 * 1024;
const ENTRY_BYTES: usize = 46;

pub struct Spool {
    dir: PathBuf,
    memory: Vec<Chunk>,
    file: Option<BufWriter<File>>,
    /// Bytes that the chunks make up.
    pub size: u64,
    pub chunks: u64,
}

impl Spool {
    /// `dir` is where the file goes, should there be one.
    pub fn new(dir: &Path) -> Self {
        Spool { dir: dir.to_owned(), memory: vec![], file: None, size: 0, chunks: 0 }
    }

    /// A chunk of zeros, or one that lies whole in one frame.
    pub fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.size += chunk.len();
        if let (Chunk::Zero(n), Some(Chunk::Zero(before))) = (&chunk, self.memory.last_mut()) {
            *before += n;
            return Ok(());
        }
        self.chunks += 1;
        self.memory.push(chunk);
        if self.memory.len() >= CHUNKS_IN_MEMORY { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> Result<()> {
        let failed = |dir: &Path| {
            let dir = dir.to_owned();
            move |e: std::io::Error| EngineError::file("writing a temporary file in", &dir, e)
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::new(nameless(&self.dir).map_err(failed(&self.dir))?)),
        };
        for chunk in self.memory.drain(..) {
            file.write_all(&encode(&chunk)).map_err(failed(&self.dir))?;
        }
        Ok(())
    }

    /// Hands them out in the order in which they came, at most `batch` at a time.
    pub fn read(self, batch: usize, take: &mut dyn FnMut(Vec<Chunk>) -> Result<()>) -> Result<()> {
        if let Some(file) = self.file {
            let failed = |e: std::io::Error| EngineError::file("reading a temporary file in", &self.dir, e);
            let mut file = file.into_inner().map_err(|e| failed(e.into_error()))?;
            let length = file.stream_position().map_err(failed)?;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            let mut reader = BufReader::new(file);
            let mut left = length / ENTRY_BYTES as u64;
            while left > 0 {
                let n = left.min(batch as u64);
                let mut chunks = vec![];
                for _ in 0..n {
                    let mut entry = [0; ENTRY_BYTES];
                    reader.read_exact(&mut entry).map_err(failed)?;
                    let bad = || failed(std::io::Error::other("its content changed"));
                    chunks.push(decode(&entry).ok_or_else(bad)?);
                }
                take(chunks)?;
                left -= n;
            }
        }
        self.memory.chunks(batch).try_for_each(|chunks| take(chunks.to_vec()))
    }
}

/// A file of mode 0600 that is gone when it is closed, whatever happens.
pub(crate) fn nameless(dir: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let made = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match made {
        Ok(fd) => Ok(File::from(fd)),
        // Not every file system has them.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let mut random = [0u8; 16];
            getrandom::fill(&mut random).map_err(|e| std::io::Error::other(e.to_string()))?;
            let path = dir.join(format!(".pgark-{}", pgark_repo::crypto::hex(&random)));
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
            std::fs::remove_file(&path)?;
            Ok(File::from(file))
        }
        Err(e) => Err(e.into()),
    }
}

fn encode(chunk: &Chunk) -> [u8; ENTRY_BYTES] {
    let mut out = Vec::with_capacity(ENTRY_BYTES);
    match chunk {
        Chunk::Zero(n) => {
            out.push(0);
            out.extend(n.to_le_bytes());
            out.resize(ENTRY_BYTES, 0);
        }
        Chunk::Data { id, parts } => {
            let [part] = parts.as_slice() else { unreachable!("chunks of parts lie in one frame each") };
            out.push(1);
            out.extend(id.0);
            out.extend(part.pack.to_le_bytes());
            out.extend(part.frame.offset.to_le_bytes());
            for n in [part.frame.stored_len, part.frame.plain_len, part.skip, part.len] {
                out.extend(n.to_le_bytes());
            }
            out.push(part.frame.codec as u8);
        }
        Chunk::Patched { .. } => unreachable!("only data files are patched"),
    }
    out.try_into().expect("every entry has the same length")
}

fn decode(entry: &[u8; ENTRY_BYTES]) -> Option<Chunk> {
    let mut c = pgark_repo::manifest::bytes::Cursor::new(entry);
    if c.byte()? == 0 {
        return Some(Chunk::Zero(c.u64()?));
    }
    let id = ContentId(c.array()?);
    let (pack, offset) = (c.u32()?, c.u64()?);
    let (stored_len, plain_len, skip, len) = (c.u32()?, c.u32()?, c.u32()?, c.u32()?);
    let codec = Codec::from_byte(c.byte()?)?;
    let frame = FrameAt { offset, stored_len, plain_len, codec };
    Some(Chunk::Data { id, parts: vec![Part { pack, frame, skip, len }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u32) -> Chunk {
        if n.is_multiple_of(1000) {
            return Chunk::Zero(u64::from(n) + 1);
        }
        let frame = FrameAt { offset: u64::from(n) << 20, stored_len: n, plain_len: n + 1, codec: Codec::Zstd };
        let id = ContentId([n as u8; 16]);
        Chunk::Data { id, parts: vec![Part { pack: n % 7, frame, skip: n / 2, len: n + 3 }] }
    }

    #[test]
    fn what_went_to_the_disk_comes_back_in_order() {
        let mut spool = Spool::new(&std::env::temp_dir());
        let count = CHUNKS_IN_MEMORY as u32 * 2 + 12_345;
        (0..count).for_each(|n| spool.push(chunk(n)).unwrap());
        assert!(spool.file.is_some() && spool.memory.len() == 12_345 && spool.chunks == u64::from(count));
        let size = spool.size;
        let mut next = 0;
        let mut bytes = 0;
        spool
            .read(4096, &mut |chunks| {
                assert!(chunks.len() <= 4096);
                for c in chunks {
                    bytes += c.len();
                    assert_eq!(c, chunk(next));
                    next += 1;
                }
                Ok(())
            })
            .unwrap();
        assert_eq!((next, bytes), (count, size));
    }
}
