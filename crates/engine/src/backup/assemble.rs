//! Puts what many workers copied in any order into a manifest in one order. The dispatcher says first what is
//! to come; the results follow. What waits is bounded by the channels' lengths.

use std::collections::{HashMap, HashSet};

use crossbeam_channel::Receiver;
use pgark_repo::crypto::ContentId;
use pgark_repo::limits::CHUNKS_PER_ITEM;
use pgark_repo::manifest::{BadBlock, Chunk, FileEnd, FileStart, Item, ManifestWriter, PackId, Part};
use pgark_repo::names::BackupId;
use pgark_repo::record::Totals;

use super::base::{Others, position_of_other};
use super::copy::{Copied, Done, PatchFrame};
use super::scan::FoundFile;
use crate::error::{EngineError, Result};

/// The next thing in the manifest, and which results make it up.
pub enum Expected {
    Item(Item),
    /// An empty file, or one in pieces whose tickets follow one another.
    Large {
        found: FoundFile,
        first_ticket: u64,
        runs: u64,
    },
    /// A file in pieces of different kinds begins.
    Mixed(FoundFile),
    /// More of the file that began; at most `PIECES_MAX`.
    Pieces(Vec<Piece>),
    /// The file that began is complete.
    MixedEnd,
    /// A file of a bundle.
    Small {
        found: FoundFile,
        ticket: u64,
        index: usize,
    },
}

/// How many pieces are announced at once: together with the channel's length this bounds what waits.
pub const PIECES_MAX: usize = 64;

pub enum Piece {
    /// As an earlier backup has it.
    Keep(Chunk),
    /// All that this ticket's run copied.
    Run {
        ticket: u64,
    },
    Mix(Vec<PieceSlice>),
}

pub enum PieceSlice {
    Old {
        part: Part,
        frame: ContentId,
    },
    /// Bytes of the frame that this ticket's patch wrote.
    New {
        ticket: u64,
        skip: u32,
        len: u32,
    },
}

pub struct Assembler<'a> {
    manifest: ManifestWriter,
    id: &'a BackupId,
    results: Receiver<(u64, Result<Done>)>,
    early: HashMap<u64, Done>,
    bundles: HashMap<u64, Vec<Option<Copied>>>,
    declared: HashSet<u32>,
    others: Others,
    /// The patch that the last slices were of; later slices are of later patches.
    patch: Option<(u64, PatchFrame)>,
    /// Bytes of the mixed file so far.
    size: u64,
    pub summary: Summary,
}

#[derive(Debug, Default)]
pub struct Summary {
    pub totals: Totals,
    pub bad_blocks: u64,
    /// The first of them, for people.
    pub bad_examples: Vec<String>,
    pub vanished: u64,
    /// Packs of other backups that were used.
    pub used: Vec<(u32, PackId)>,
}

const BAD_EXAMPLES_MAX: usize = 20;

impl<'a> Assembler<'a> {
    pub fn new(
        manifest: ManifestWriter,
        id: &'a BackupId,
        others: Others,
        results: Receiver<(u64, Result<Done>)>,
    ) -> Self {
        Assembler {
            manifest,
            id,
            results,
            early: HashMap::new(),
            bundles: HashMap::new(),
            declared: HashSet::new(),
            others,
            patch: None,
            size: 0,
            summary: Summary::default(),
        }
    }

    pub fn run(mut self, expected: &Receiver<Expected>) -> Result<(ManifestWriter, Summary)> {
        for next in expected {
            match next {
                Expected::Item(item) => {
                    match &item {
                        Item::Directory(_) => self.summary.totals.directories += 1,
                        Item::Vanished(_) => self.summary.vanished += 1,
                        _ => {}
                    }
                    self.manifest.push(&item)?;
                }
                Expected::Large { found, first_ticket, runs } => self.large(&found, first_ticket, runs)?,
                Expected::Mixed(found) => self.mixed(&found, expected)?,
                Expected::Pieces(_) | Expected::MixedEnd => unreachable!("consumed with their file"),
                Expected::Small { found, ticket, index } => self.small(&found, ticket, index)?,
            }
        }
        Ok((self.manifest, self.summary))
    }

    fn result(&mut self, ticket: u64) -> Result<Done> {
        loop {
            if let Some(done) = self.early.remove(&ticket) {
                return Ok(done);
            }
            // All workers gone without this result: one of them failed and its error came before.
            let (t, done) = self.results.recv().map_err(|_| EngineError::Cancelled)?;
            self.early.insert(t, done?);
        }
    }

    fn large(&mut self, found: &FoundFile, first_ticket: u64, runs: u64) -> Result<()> {
        self.start(found)?;
        let mut size = 0;
        let mut ended = false;
        for n in 0..runs {
            let Done::Run(copied) = self.result(first_ticket + n)? else { unreachable!("a run's ticket") };
            // The file shrank while it was read: what comes after its end is not part of it.
            if ended {
                continue;
            }
            let whole = (found.size - n * super::copy::RUN_BYTES).min(super::copy::RUN_BYTES);
            ended = copied.covered() < whole;
            size += self.content(found, copied)?;
        }
        self.end(size)
    }

    fn mixed(&mut self, found: &FoundFile, expected: &Receiver<Expected>) -> Result<()> {
        self.size = 0;
        self.start(found)?;
        loop {
            // The walk ends in the middle of a file only when it failed; its error came before.
            match expected.recv().map_err(|_| EngineError::Cancelled)? {
                Expected::Pieces(pieces) => pieces.into_iter().try_for_each(|p| self.piece(found, p))?,
                Expected::MixedEnd => return self.end(self.size),
                _ => unreachable!("a file's pieces are announced together"),
            }
        }
    }

    fn small(&mut self, found: &FoundFile, ticket: u64, index: usize) -> Result<()> {
        if !self.bundles.contains_key(&ticket) {
            let Done::Bundle(files) = self.result(ticket)? else { unreachable!("a bundle's ticket") };
            // The files of a bundle come in order, so the one before is used up.
            self.bundles.clear();
            self.bundles.insert(ticket, files);
        }
        let slot = self.bundles.get_mut(&ticket).and_then(|b| b.get_mut(index));
        let Some(copied) = slot.and_then(Option::take) else {
            check_may_vanish(found)?;
            self.summary.vanished += 1;
            return Ok(self.manifest.push(&Item::Vanished(found.path.clone()))?);
        };
        self.start(found)?;
        let size = self.content(found, copied)?;
        self.end(size)
    }

    fn start(&mut self, found: &FoundFile) -> Result<()> {
        let (path, mode, modified_ns) = (found.path.clone(), found.mode, found.modified_ns);
        Ok(self.manifest.push(&Item::FileStart(FileStart { path, mode, modified_ns }))?)
    }

    fn end(&mut self, size: u64) -> Result<()> {
        self.summary.totals.files += 1;
        self.summary.totals.size_bytes += size;
        Ok(self.manifest.push(&Item::FileEnd(FileEnd { size }))?)
    }

    /// Declares a pack when a chunk uses it for the first time.
    fn declare(&mut self, pack: u32) -> Result<()> {
        if !self.declared.insert(pack) {
            return Ok(());
        }
        let id = match position_of_other(pack) {
            None => PackId::new(self.id, pack / 2),
            Some(n) => {
                let others = self.others.lock().expect("no thread panics with the lock");
                let id = others.get(n).expect("numbered when it was taken over").clone();
                self.summary.used.push((pack, id.clone()));
                id
            }
        };
        Ok(self.manifest.push(&Item::Pack(pack, id))?)
    }

    fn chunks(&mut self, chunks: &[Chunk]) -> Result<()> {
        for part in chunks.iter().flat_map(Chunk::parts) {
            self.declare(part.pack)?;
        }
        self.summary.totals.frames += chunks.iter().filter(|c| !c.parts().is_empty()).count() as u64;
        for piece in chunks.chunks(CHUNKS_PER_ITEM) {
            self.manifest.push(&Item::Chunks(piece.to_vec()))?;
        }
        Ok(())
    }

    fn piece(&mut self, found: &FoundFile, piece: Piece) -> Result<()> {
        let chunk = match piece {
            Piece::Keep(chunk) => chunk,
            Piece::Run { ticket } => {
                let Done::Run(copied) = self.result(ticket)? else { unreachable!("a run's ticket") };
                self.size += self.content(found, copied)?;
                return Ok(());
            }
            Piece::Mix(slices) => self.mixed_chunk(found, slices)?,
        };
        self.size += chunk.len();
        self.chunks(&[chunk])
    }

    fn mixed_chunk(&mut self, found: &FoundFile, slices: Vec<PieceSlice>) -> Result<Chunk> {
        let (mut parts, mut frames) = (vec![], vec![]);
        for slice in slices {
            match slice {
                PieceSlice::Old { part, frame } => {
                    parts.push(part);
                    frames.push(frame);
                }
                PieceSlice::New { ticket, skip, len } => {
                    let patch = self.patch(found, ticket)?;
                    parts.push(Part { pack: patch.pack, frame: patch.frame, skip, len });
                    frames.push(patch.id);
                }
            }
        }
        Ok(Chunk::Patched { parts, frames })
    }

    fn patch(&mut self, found: &FoundFile, ticket: u64) -> Result<&PatchFrame> {
        if self.patch.as_ref().is_none_or(|(t, _)| *t != ticket) {
            let Done::Patch(mut patch) = self.result(ticket)? else { unreachable!("a patch's ticket") };
            self.summary.totals.read_bytes += patch.read;
            self.bad_blocks(found, std::mem::take(&mut patch.bad_blocks))?;
            self.patch = Some((ticket, patch));
        }
        Ok(&self.patch.as_ref().expect("just put there").1)
    }

    fn content(&mut self, found: &FoundFile, copied: Copied) -> Result<u64> {
        let size = copied.covered();
        self.summary.totals.read_bytes += copied.read.min(size);
        self.chunks(&copied.chunks)?;
        self.bad_blocks(found, copied.bad_blocks)?;
        Ok(size)
    }

    fn bad_blocks(&mut self, found: &FoundFile, blocks: Vec<u32>) -> Result<()> {
        for block in blocks {
            self.summary.bad_blocks += 1;
            if self.summary.bad_examples.len() < BAD_EXAMPLES_MAX {
                self.summary.bad_examples.push(format!("{} block {block}", super::scan::show(&found.path)));
            }
            self.manifest.push(&Item::BadBlock(BadBlock { file: found.path.clone(), block }))?;
        }
        Ok(())
    }
}

/// A relation's file may be dropped at any time. A cluster without these files is none.
pub fn check_may_vanish(found: &FoundFile) -> Result<()> {
    let name = found.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    if found.relation.is_none() && matches!(name, b"PG_VERSION" | b"pg_filenode.map") && !in_database(&found.path) {
        return Err(EngineError::failed(
            "E-BACKUP-VANISHED",
            format!("{} vanished during the backup", super::scan::show(&found.path)),
            "the data directory is not in order: check the server, then run the backup again",
        ));
    }
    Ok(())
}

/// Files of a database may go with it.
fn in_database(path: &[u8]) -> bool {
    path.starts_with(b"base/") || path.starts_with(b"pg_tblspc/")
}
