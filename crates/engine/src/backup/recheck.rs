//! `--verify-incremental`: reads what the WAL says has not changed, and compares it with the earlier backup.
//!
//! Invariant: a page passes only if it is the earlier one, differs in what PostgreSQL changes without WAL (hint bits and
//! the checksum over them), or was changed after this backup began, so that replay repeats the change.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use pgark_pg::page::{PAGE_SIZE, page_lsn};
use pgark_pg::value::Lsn;
use pgark_repo::codec::Decoder;
use pgark_repo::limits::FRAME_BYTES;
use pgark_repo::manifest::{Chunk, Part};
use pgark_repo::pack::PackReader;
use pgark_repo::{RepoError, Repository, names};

use super::base::{BeforeFile, Others, is_worn, position_of_other};
use super::cache::read_sparing;
use super::copy::{CopyShared, open_source};
use super::scan::{FoundFile, show};
use crate::error::{EngineError, Result};

/// A page that seems wrong is read again so often: PostgreSQL may be writing it.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);
/// Examples named in the report.
const EXAMPLES_MAX: usize = 10;
/// Layout fields of a page header (`PageHeaderData` in storage/bufpage.h): lower, upper, special, size and version.
const LAYOUT: std::ops::Range<usize> = 12..20;
const PACKS_OPEN: usize = 64;

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Pages that were to be taken over.
    pub pages: u64,
    /// Pages that differ in hints alone.
    pub hints: u64,
    /// Pages changed after this backup began.
    pub later: u64,
    /// Pages whose change the WAL does not tell. Their files were read as a whole instead.
    pub wrong: u64,
    pub examples: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Same,
    Hints,
    Later,
    Wrong,
}

pub struct Recheck<'a> {
    shared: &'a CopyShared<'a>,
    /// Where this backup began.
    start: Lsn,
    others: Others,
    packs: HashMap<u32, Arc<PackReader>>,
    decoder: Decoder,
    pub found: Rechecked,
}

impl<'a> Recheck<'a> {
    pub fn new(shared: &'a CopyShared<'a>, start: Lsn, others: Others) -> Result<Self> {
        let (packs, found) = (HashMap::new(), Rechecked::default());
        Ok(Recheck { shared, start, others, packs, decoder: Decoder::new()?, found })
    }

    /// Compares all of a file but the `changed` blocks, ascending. False when the plan is wrong.
    pub fn file(&mut self, found: &FoundFile, changed: &[u32], before: &BeforeFile) -> Result<bool> {
        let Some(file) = open_source(self.shared.pgdata, &found.path)? else { return Ok(true) };
        let wrong_before = self.found.wrong;
        let (mut now, mut then) = (vec![], vec![]);
        let mut at = 0;
        for chunk in &before.chunks {
            let mut left = chunk.len();
            // Runs of zeros may be long.
            while left > 0 && at < found.size {
                self.shared.ctx.check_cancelled()?;
                let len = left.min(FRAME_BYTES as u64);
                if is_worn(chunk) {
                    // Not taken over.
                    (at, left) = (at + len, left - len);
                    continue;
                }
                now.resize(usize::try_from(len).expect("at most a frame"), 0);
                let got = self.read(&file, found, at, &mut now)?;
                if let Some(now) = now.get(..got)
                    && !self.is_same(chunk, now)
                {
                    self.content(chunk, &mut then)?;
                    self.pages(&file, found, at, changed, now, &then)?;
                } else {
                    self.found.pages += (got / PAGE_SIZE) as u64;
                }
                at += len;
                left -= len;
            }
        }
        Ok(self.found.wrong == wrong_before)
    }

    fn read(&self, file: &File, found: &FoundFile, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.shared.ctx.pace(buf.len() as u64);
        // What was cut off meanwhile, replay cuts off too.
        let limit = usize::try_from(found.size.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        read_sparing(file, at, &mut buf[..limit])
            .map_err(|e| EngineError::file("reading", std::path::Path::new(&show(&found.path)), e))
    }

    fn is_same(&self, chunk: &Chunk, now: &[u8]) -> bool {
        match chunk {
            Chunk::Data { id, .. } => chunk.len() == now.len() as u64 && self.shared.repo.keys().content_id(now) == *id,
            Chunk::Zero(_) => pgark_pg::page::is_all_zero(now),
            Chunk::Patched { .. } => false,
        }
    }

    fn pages(
        &mut self,
        file: &File,
        found: &FoundFile,
        at: u64,
        changed: &[u32],
        now: &[u8],
        then: &[u8],
    ) -> Result<()> {
        let first = u32::try_from(at / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        for ((block, now), then) in (first..).zip(now.chunks_exact(PAGE_SIZE)).zip(then.chunks(PAGE_SIZE)) {
            if changed.binary_search(&block).is_ok() {
                continue;
            }
            self.found.pages += 1;
            let mut verdict = compare(now, then, self.start);
            let mut again = vec![0; PAGE_SIZE];
            for _ in 0..LOOKS {
                if verdict != Verdict::Wrong {
                    break;
                }
                std::thread::sleep(PAUSE);
                let got = self.read(file, found, u64::from(block) * PAGE_SIZE as u64, &mut again)?;
                verdict = if got < PAGE_SIZE { Verdict::Later } else { compare(&again, then, self.start) };
            }
            match verdict {
                Verdict::Same => {}
                Verdict::Hints => self.found.hints += 1,
                Verdict::Later => self.found.later += 1,
                Verdict::Wrong => {
                    self.found.wrong += 1;
                    if self.found.examples.len() < EXAMPLES_MAX {
                        self.found.examples.push(format!("{} block {block}", show(&found.path)));
                    }
                }
            }
        }
        Ok(())
    }

    /// The earlier content of a chunk; of a run of zeros, a frame of them.
    fn content(&mut self, chunk: &Chunk, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        if let Chunk::Zero(_) = chunk {
            out.resize(FRAME_BYTES, 0);
        }
        let mut plain = vec![];
        for (n, part) in chunk.parts().iter().enumerate() {
            let pack = self.pack(part)?;
            let mut stored = vec![];
            pack.fetch(part.frame.offset, part.frame.stored_len as usize, &mut stored)?;
            pack.decode(&part.frame, &mut stored, &mut self.decoder, &mut plain)?;
            let listed = match chunk {
                Chunk::Patched { frames, .. } => frames.get(n),
                _ => None,
            };
            let from = part.skip as usize;
            let bytes = plain.get(from..from + part.len as usize);
            match bytes {
                Some(bytes) if listed.is_none_or(|id| self.shared.repo.keys().content_id(&plain) == *id) => {
                    out.extend_from_slice(bytes);
                }
                _ => return Err(RepoError::corrupt(pack.name(), "not what the earlier backup lists").into()),
            }
        }
        if let Chunk::Data { id, .. } = chunk
            && self.shared.repo.keys().content_id(out) != *id
        {
            return Err(RepoError::corrupt("the earlier backup", "its content is not what its manifest lists").into());
        }
        Ok(())
    }

    fn pack(&mut self, part: &Part) -> Result<Arc<PackReader>> {
        if let Some(pack) = self.packs.get(&part.pack) {
            return Ok(pack.clone());
        }
        let repo: &Repository = self.shared.repo;
        let id = {
            let others = self.others.lock().expect("no thread panics with the lock");
            position_of_other(part.pack).and_then(|n| others.get(n).cloned())
        };
        let id = id.ok_or_else(|| RepoError::corrupt("the earlier backup's manifest", "an undeclared pack"))?;
        let name = names::pack(self.shared.cluster, &id.backup, id.number);
        let pack = Arc::new(PackReader::open(repo.store().clone(), repo.keys(), &name)?);
        if self.packs.len() >= PACKS_OPEN {
            self.packs.clear();
        }
        self.packs.insert(part.pack, pack.clone());
        Ok(pack)
    }
}

/// WAL-logged changes move a page's LSN; hints alone move neither that nor what lies where on the page.
fn compare(now: &[u8], then: &[u8], start: Lsn) -> Verdict {
    if now == then {
        return Verdict::Same;
    }
    let (lsn, before) = (page_lsn(now), page_lsn(then));
    match lsn {
        Some(lsn) if lsn >= start => Verdict::Later,
        _ if lsn == before && now.get(LAYOUT) == then.get(LAYOUT) => Verdict::Hints,
        _ => Verdict::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64, lower: u8, body: u8) -> Vec<u8> {
        let mut page = vec![body; PAGE_SIZE];
        page[..24].fill(0);
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[12] = lower;
        page
    }

    #[test]
    fn only_hints_and_what_replay_repeats_may_differ() {
        let start = Lsn(0x5_0000_0000);
        let old = page(100, 40, 1);
        for (new, verdict) in [
            (old.clone(), Verdict::Same),
            (page(100, 40, 2), Verdict::Hints),
            (page(100, 44, 2), Verdict::Wrong),
            (page(200, 40, 1), Verdict::Wrong),
            (page(50, 40, 1), Verdict::Wrong),
            (page(start.0, 44, 2), Verdict::Later),
            (page(start.0 + 8, 40, 1), Verdict::Later),
        ] {
            assert_eq!(compare(&new, &old, start), verdict);
        }
    }
}
