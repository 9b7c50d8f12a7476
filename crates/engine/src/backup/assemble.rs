//! Puts what many workers copied in any order into a manifest in one order. The dispatcher says first what is
//! to come; the results follow. What waits is bounded by the channels' lengths.

use std::collections::{HashMap, HashSet};

use crossbeam_channel::Receiver;
use pgark_repo::limits::CHUNKS_PER_ITEM;
use pgark_repo::manifest::{BadBlock, Chunk, FileEnd, FileStart, Item, ManifestWriter, PackId};
use pgark_repo::names::BackupId;
use pgark_repo::record::Totals;

use super::copy::{Copied, Done};
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
    /// A file of a bundle.
    Small {
        found: FoundFile,
        ticket: u64,
        index: usize,
    },
}

pub struct Assembler<'a> {
    manifest: ManifestWriter,
    id: &'a BackupId,
    results: Receiver<(u64, Result<Done>)>,
    early: HashMap<u64, Done>,
    bundles: HashMap<u64, Vec<Option<Copied>>>,
    declared: HashSet<u32>,
    pub summary: Summary,
}

#[derive(Debug, Default)]
pub struct Summary {
    pub totals: Totals,
    pub bad_blocks: u64,
    /// The first of them, for people.
    pub bad_examples: Vec<String>,
    pub vanished: u64,
}

const BAD_EXAMPLES_MAX: usize = 20;

impl<'a> Assembler<'a> {
    pub fn new(manifest: ManifestWriter, id: &'a BackupId, results: Receiver<(u64, Result<Done>)>) -> Self {
        Assembler {
            manifest,
            id,
            results,
            early: HashMap::new(),
            bundles: HashMap::new(),
            declared: HashSet::new(),
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
        self.end(found, size)
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
        self.end(found, size)
    }

    fn start(&mut self, found: &FoundFile) -> Result<()> {
        let (path, mode, modified_ns) = (found.path.clone(), found.mode, found.modified_ns);
        Ok(self.manifest.push(&Item::FileStart(FileStart { path, mode, modified_ns }))?)
    }

    fn end(&mut self, found: &FoundFile, size: u64) -> Result<()> {
        self.summary.totals.files += 1;
        self.summary.totals.size_bytes += size;
        self.summary.totals.read_bytes += size.min(found.size);
        Ok(self.manifest.push(&Item::FileEnd(FileEnd { size }))?)
    }

    fn content(&mut self, found: &FoundFile, copied: Copied) -> Result<u64> {
        let size = copied.covered();
        for chunk in &copied.chunks {
            for part in chunk.parts() {
                if self.declared.insert(part.pack) {
                    self.manifest.push(&Item::Pack(part.pack, PackId::new(self.id, part.pack)))?;
                }
            }
            self.summary.totals.frames += u64::from(matches!(chunk, Chunk::Data { .. }));
        }
        for piece in copied.chunks.chunks(CHUNKS_PER_ITEM) {
            self.manifest.push(&Item::Chunks(piece.to_vec()))?;
        }
        for block in copied.bad_blocks {
            self.summary.bad_blocks += 1;
            if self.summary.bad_examples.len() < BAD_EXAMPLES_MAX {
                self.summary.bad_examples.push(format!("{} block {block}", super::scan::show(&found.path)));
            }
            self.manifest.push(&Item::BadBlock(BadBlock { file: found.path.clone(), block }))?;
        }
        Ok(size)
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
