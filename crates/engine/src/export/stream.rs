//! Reads a backup's manifest and its contents, in the order of the manifest, ahead of whoever writes them.

use std::collections::VecDeque;

use crossbeam_channel::Sender;
use pgark_repo::manifest::{Chunk, FileStart, Item, ManifestReader};
use pgark_repo::record::manifest_reader;
use pgark_repo::{RepoError, Repository, names};

use super::content::ContentReader;
use crate::backup::scan::show;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::restore::RestorePlan;

/// Zeros are handed out in pieces of this size.
const ZEROS_BYTES: u64 = 256 * 1024;

pub enum Piece {
    Directory {
        path: Vec<u8>,
        mode: u32,
    },
    /// As many bytes as `size` follow in `Data`.
    File {
        path: Vec<u8>,
        mode: u32,
        modified: i64,
        size: u64,
    },
    Data(Vec<u8>),
    Warning(String),
}

/// A tar says how long a file is before it has its content, the manifest says it after: a second reader of the manifest
/// is always one file ahead.
struct Sizes {
    manifest: ManifestReader,
}

impl Sizes {
    /// The size of the next file.
    fn next(&mut self) -> Result<u64> {
        while let Some(item) = self.manifest.next_item()? {
            if let Item::FileEnd(end) = item {
                return Ok(end.size);
            }
        }
        Err(RepoError::corrupt("manifest", "its two readings differ").into())
    }
}

struct Streamer<'a> {
    ctx: &'a Ctx,
    manifest: ManifestReader,
    sizes: Sizes,
    content: ContentReader<'a>,
    out: Sender<Piece>,
    /// Files that are left out.
    skip: &'a [&'a [u8]],
}

pub fn stream(plan: &RestorePlan, repo: &Repository, ctx: &Ctx, skip: &[&[u8]], out: Sender<Piece>) -> Result<()> {
    let cluster = &plan.record.cluster;
    let mut streamer = Streamer {
        ctx,
        manifest: manifest_reader(repo, cluster, &plan.backup.id)?,
        sizes: Sizes { manifest: manifest_reader(repo, cluster, &plan.backup.id)? },
        content: ContentReader::new(repo, cluster)?,
        out,
        skip,
    };
    streamer.run()?;
    if streamer.manifest.fingerprint() != plan.record.manifest {
        let name = names::manifest(cluster, &plan.backup.id);
        return Err(RepoError::corrupt(name, "not the manifest of this backup").into());
    }
    Ok(())
}

impl Streamer<'_> {
    fn run(&mut self) -> Result<()> {
        while let Some(item) = self.manifest.next_item()? {
            self.ctx.check_cancelled()?;
            match item {
                Item::Directory(d) => self.send(Piece::Directory { path: d.path, mode: d.mode })?,
                Item::Symlink(s) => self.send(Piece::Warning(format!(
                    "{} was a symbolic link to {} and is left out",
                    show(&s.path),
                    show(&s.target)
                )))?,
                Item::FileStart(start) => self.file(start)?,
                Item::Pack(index, id) => self.content.declare(index, id),
                Item::PackDone(..) | Item::Vanished(_) | Item::BadBlock(_) => {}
                Item::Attributes(_) | Item::HardLink(_) => {
                    return Err(RepoError::corrupt("manifest", "it has what a physical backup does not have").into());
                }
                Item::Chunks(_) | Item::FileEnd(_) => {
                    unreachable!("consumed with their file; the reader checks the order")
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, start: FileStart) -> Result<()> {
        let size = self.sizes.next()?;
        let wanted = !self.skip.contains(&start.path.as_slice());
        let path = start.path;
        if wanted {
            let modified = start.modified_ns.div_euclid(1_000_000_000);
            self.send(Piece::File { path: path.clone(), mode: start.mode, modified, size })?;
        }
        while let Some(item) = self.manifest.next_item()? {
            match item {
                Item::Chunks(chunks) if wanted => self.chunks(&path, chunks)?,
                Item::Pack(index, id) => self.content.declare(index, id),
                Item::FileEnd(_) => return Ok(()),
                _ => {}
            }
        }
        Err(RepoError::corrupt("manifest", "ends within a file").into())
    }

    fn chunks(&mut self, path: &[u8], chunks: Vec<Chunk>) -> Result<()> {
        let mut chunks = VecDeque::from(chunks);
        while let Some(first) = chunks.front() {
            self.ctx.check_cancelled()?;
            if let Chunk::Zero(len) = *first {
                let mut left = len;
                while left > 0 {
                    let n = left.min(ZEROS_BYTES);
                    self.send(Piece::Data(vec![0; usize::try_from(n).expect("a piece")]))?;
                    left -= n;
                }
            } else {
                let bytes = self.content.read(path, chunks.make_contiguous())?;
                self.send(Piece::Data(bytes))?;
            }
            chunks.pop_front();
        }
        Ok(())
    }

    /// Nobody receives any more when the writer failed; its error is the one that is reported.
    fn send(&self, piece: Piece) -> Result<()> {
        self.out.send(piece).map_err(|_| EngineError::Cancelled)
    }
}
