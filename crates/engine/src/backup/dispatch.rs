//! Shares the work of copying between threads: one walks the directory, several copy, one commits packs, one
//! writes the manifest. Every channel is bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use pgark_pg::major::Major;
use pgark_pg::page::PAGE_SIZE;
use pgark_pg::value::Lsn;
use pgark_repo::limits::FRAME_BYTES;
use pgark_repo::manifest::{Directory, Item, ManifestWriter, Symlink};
use pgark_repo::pack::SealedPack;
use pgark_repo::stream::Fingerprint;

use super::assemble::{Assembler, Expected, PIECES_MAX, Piece, PieceSlice, Summary, check_may_vanish};
use super::base::{Before, BeforeFile, Others};
use super::compose::{Slice, Window, compose};
use super::copy::{BUNDLE_FILE_BYTES_MAX, CopyShared, Done, OpenFile, RUN_BYTES, Unit, Worker, open_source};
use super::plan::{FileFacts, FilePlan, plan_file};
use super::recheck::{Recheck, Rechecked};
use super::scan::{Found, FoundFile, Noticed, scan};
use crate::error::{EngineError, Result};

/// How many manifest items may be announced ahead of the copying.
const EXPECTED_AHEAD: usize = 4096;
/// A bundle goes out at the latest when so much was announced after its first file: the manifest waits for it.
const BUNDLE_LAG_ITEMS: usize = 1024;
const BUNDLE_LAG_RUNS: usize = 64;
const RESULTS_AHEAD: usize = 256;
const PAGE_BYTES: u32 = PAGE_SIZE as u32;
/// Blocks that share a frame.
const PATCH_BLOCKS: usize = FRAME_BYTES / PAGE_SIZE;
/// Packs that wait for the disk; each worker has one more in hand.
const COMMITS_AHEAD: usize = 2;

pub struct Dispatched {
    pub manifest: ManifestWriter,
    pub summary: Summary,
    pub noticed: Noticed,
    pub rechecked: Option<Rechecked>,
    pub packs: Vec<(u32, Fingerprint)>,
}

/// With `before`, what did not change since that backup is taken over from it.
pub fn copy_all(
    shared: &CopyShared<'_>,
    major: Major,
    manifest: ManifestWriter,
    before: Option<Before>,
    others: Others,
    recheck: Option<Lsn>,
    jobs: usize,
) -> Result<Dispatched> {
    let jobs = jobs.max(1);
    let recheck = recheck.map(|start| Recheck::new(shared, start, others.clone())).transpose()?;
    let (unit_tx, unit_rx) = bounded::<Unit>(2 * jobs);
    let (expected_tx, expected_rx) = bounded::<Expected>(EXPECTED_AHEAD);
    let (result_tx, result_rx) = bounded::<(u64, Result<Done>)>(RESULTS_AHEAD);
    let (commit_tx, commit_rx) = bounded::<(u32, SealedPack)>(COMMITS_AHEAD);
    thread::scope(|scope| {
        let mut workers = vec![];
        for _ in 0..jobs {
            let (units, results, commits) = (unit_rx.clone(), result_tx.clone(), commit_tx.clone());
            workers.push(scope.spawn(move || work(shared, &units, &results, commits)));
        }
        drop((unit_rx, result_tx, commit_tx));
        let committer = scope.spawn(move || commit_packs(shared, commit_rx));
        let assembler = scope.spawn(move || {
            Assembler::new(manifest, shared.id, others, result_rx).run(&expected_rx).inspect_err(|_| stop(shared))
        });
        let walked = Dispatcher::new(shared, before, recheck, unit_tx, expected_tx).walk(major);

        // Whoever failed first has the error that matters; the others only noticed that somebody did.
        let mut outcome = Ok(());
        let mut note = |r: Result<()>| {
            if (outcome.is_ok() || matches!(outcome, Err(EngineError::Cancelled)))
                && let Err(e) = r
            {
                outcome = Err(e);
            }
        };
        let noticed = walked.map_err(&mut |e| note(Err(e))).ok();
        for w in workers {
            note(join(w));
        }
        let packs = join(committer).map_err(|e| note(Err(e))).ok();
        let assembled = join(assembler).map_err(|e| note(Err(e))).ok();
        outcome?;
        match (noticed, packs, assembled) {
            (Some((noticed, rechecked)), Some(packs), Some((manifest, summary))) => {
                Ok(Dispatched { manifest, summary, noticed, rechecked, packs })
            }
            _ => Err(EngineError::Cancelled),
        }
    })
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn stop(shared: &CopyShared<'_>) {
    shared.stop.store(true, Ordering::Relaxed);
}

fn work(
    shared: &CopyShared<'_>,
    units: &Receiver<Unit>,
    results: &Sender<(u64, Result<Done>)>,
    commits: Sender<(u32, SealedPack)>,
) -> Result<()> {
    let mut worker = Worker::new(shared, commits)?;
    for unit in units {
        if shared.stop.load(Ordering::Relaxed) {
            return Err(EngineError::Cancelled);
        }
        let ticket = unit.ticket();
        let done = worker.unit(&unit);
        let failed = done.is_err();
        if failed {
            stop(shared);
        }
        if results.send((ticket, done)).is_err() || failed {
            return Err(EngineError::Cancelled);
        }
    }
    worker.finish()
}

fn commit_packs(shared: &CopyShared<'_>, packs: Receiver<(u32, SealedPack)>) -> Result<Vec<(u32, Fingerprint)>> {
    let mut done = vec![];
    for (number, pack) in packs {
        let print = pack.commit().inspect_err(|_| stop(shared))?;
        done.push((number, print));
    }
    Ok(done)
}

/// What is being announced of a mixed file.
struct Pieces {
    /// None when nothing of it is read.
    file: Option<Arc<OpenFile>>,
    list: Vec<Piece>,
    /// The ticket and blocks of a patch that is not yet sent.
    patch: Option<(u64, Vec<u32>)>,
}

impl Pieces {
    fn file(&self) -> Arc<OpenFile> {
        self.file.clone().expect("opened when there is something to read")
    }
}

struct Dispatcher<'a> {
    shared: &'a CopyShared<'a>,
    before: Option<Before>,
    recheck: Option<Recheck<'a>>,
    units: Sender<Unit>,
    expected: Sender<Expected>,
    next_ticket: u64,
    bundle: Vec<(FoundFile, Option<BeforeFile>)>,
    bundle_ticket: u64,
    bundle_bytes: u64,
    /// Announced since the bundle's first file.
    lag_items: usize,
    lag_runs: usize,
}

impl<'a> Dispatcher<'a> {
    fn new(
        shared: &'a CopyShared<'a>,
        before: Option<Before>,
        recheck: Option<Recheck<'a>>,
        units: Sender<Unit>,
        expected: Sender<Expected>,
    ) -> Self {
        Dispatcher {
            shared,
            before,
            recheck,
            units,
            expected,
            next_ticket: 0,
            bundle: vec![],
            bundle_ticket: 0,
            bundle_bytes: 0,
            lag_items: 0,
            lag_runs: 0,
        }
    }

    fn walk(mut self, major: Major) -> Result<(Noticed, Option<Rechecked>)> {
        let noticed =
            scan(self.shared.pgdata, major, &mut |found| self.found(found)).inspect_err(|_| stop(self.shared))?;
        self.flush_bundle()?;
        Ok((noticed, self.recheck.map(|r| r.found)))
    }

    fn announce(&mut self, e: Expected) -> Result<()> {
        self.lag_items += 1;
        self.expected.send(e).map_err(|_| EngineError::Cancelled)
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn found(&mut self, found: Found) -> Result<()> {
        if self.shared.stop.load(Ordering::Relaxed) {
            return Err(EngineError::Cancelled);
        }
        match found {
            Found::Directory { path, mode } => {
                self.announce(Expected::Item(Item::Directory(Directory { path, mode })))?
            }
            Found::Symlink { path, target } => {
                self.announce(Expected::Item(Item::Symlink(Symlink { path, target })))?
            }
            Found::Vanished(path) => self.announce(Expected::Item(Item::Vanished(path)))?,
            Found::File(f) => self.file(f)?,
        }
        if self.lag_items > BUNDLE_LAG_ITEMS || self.lag_runs > BUNDLE_LAG_RUNS {
            self.flush_bundle()?;
        }
        Ok(())
    }

    fn file(&mut self, found: FoundFile) -> Result<()> {
        let before = self.before.as_mut().map(|b| b.file(&found.path)).transpose()?.flatten();
        if found.size == 0 {
            return self.announce(Expected::Large { found, first_ticket: 0, runs: 0 });
        }
        let changes = self.before.as_ref().and_then(|b| b.changes.as_ref());
        if let (Some(changes), Some(before)) = (changes, &before) {
            let facts =
                FileFacts { relation: found.relation.as_ref(), size: found.size, size_before: Some(before.size) };
            let plan = plan_file(&facts, changes, self.shared.relation_segment_blocks);
            let list = match &plan {
                FilePlan::Unchanged => Some(&[][..]),
                FilePlan::Blocks(list) if found.size > BUNDLE_FILE_BYTES_MAX => Some(&list[..]),
                FilePlan::Blocks(_) | FilePlan::Whole => None,
            };
            if let Some(list) = list
                && self.recheck.as_mut().map_or(Ok(true), |r| r.file(&found, list, before))?
            {
                return self.mixed(found, list, before);
            }
        }
        if found.size > BUNDLE_FILE_BYTES_MAX { self.large(found, before) } else { self.small(found, before) }
    }

    /// A file of which parts are taken over from an earlier backup.
    fn mixed(&mut self, found: FoundFile, changed: &[u32], before: &BeforeFile) -> Result<()> {
        let windows = compose(found.size, changed, before);
        let units = windows.iter().filter(|w| !matches!(w, Window::Keep(_))).count();
        if self.lag_runs + units > BUNDLE_LAG_RUNS {
            self.flush_bundle()?;
        }
        let file = if units == 0 { None } else { open_source(self.shared.pgdata, &found.path)? };
        if units > 0 && file.is_none() {
            check_may_vanish(&found)?;
            return self.announce(Expected::Item(Item::Vanished(found.path)));
        }
        self.announce(Expected::Mixed(found.clone()))?;
        let mut pieces =
            Pieces { file: file.map(|file| Arc::new(OpenFile { file, found })), list: vec![], patch: None };
        let mut windows = windows.into_iter().peekable();
        while let Some(window) = windows.next() {
            match window {
                Window::Keep(chunk) => {
                    self.shared.ctx.progress.advance(chunk.len());
                    pieces.list.push(Piece::Keep(chunk));
                }
                Window::Read { offset, mut len } => {
                    while let Some(Window::Read { len: more, .. }) = windows.peek()
                        && len + more <= RUN_BYTES
                    {
                        len += more;
                        windows.next();
                    }
                    let ticket = self.ticket();
                    let file = pieces.file();
                    self.send_counted(Unit::Run { ticket, file, offset, len, before: None })?;
                    pieces.list.push(Piece::Run { ticket });
                }
                Window::Mix(slices) => self.mix(&mut pieces, slices)?,
            }
            if pieces.list.len() >= PIECES_MAX {
                self.announce_pieces(&mut pieces)?;
            }
        }
        self.announce_pieces(&mut pieces)?;
        self.announce(Expected::MixedEnd)
    }

    fn mix(&mut self, pieces: &mut Pieces, slices: Vec<Slice>) -> Result<()> {
        let mut out = vec![];
        for slice in slices {
            match slice {
                Slice::Old { part, frame } => {
                    self.shared.ctx.progress.advance(part.len.into());
                    out.push(PieceSlice::Old { part, frame });
                }
                Slice::New { block, count } => {
                    for block in block..block + count {
                        let (ticket, at) = self.patch_block(pieces, block)?;
                        let (skip, page) = (at * PAGE_BYTES, PAGE_BYTES);
                        match out.last_mut() {
                            Some(PieceSlice::New { ticket: t, skip: s, len }) if *t == ticket && *s + *len == skip => {
                                *len += page;
                            }
                            _ => out.push(PieceSlice::New { ticket, skip, len: page }),
                        }
                    }
                }
            }
        }
        pieces.list.push(Piece::Mix(out));
        Ok(())
    }

    /// Puts a block into the patch under way; returns its ticket and the block's place in it.
    fn patch_block(&mut self, pieces: &mut Pieces, block: u32) -> Result<(u64, u32)> {
        if pieces.patch.as_ref().is_some_and(|(_, blocks)| blocks.len() >= PATCH_BLOCKS) {
            self.send_patch(pieces)?;
        }
        let next = self.next_ticket;
        let (ticket, blocks) = match &mut pieces.patch {
            Some(patch) => patch,
            none => {
                self.next_ticket += 1;
                none.insert((next, vec![]))
            }
        };
        blocks.push(block);
        Ok((*ticket, u32::try_from(blocks.len() - 1).expect("a frame of blocks")))
    }

    fn send_patch(&mut self, pieces: &mut Pieces) -> Result<()> {
        let Some((ticket, blocks)) = pieces.patch.take() else { return Ok(()) };
        let file = pieces.file();
        self.send_counted(Unit::Patch { ticket, file, blocks })
    }

    /// What is announced must be under way, or the manifest would wait for it for ever.
    fn announce_pieces(&mut self, pieces: &mut Pieces) -> Result<()> {
        self.send_patch(pieces)?;
        let list = std::mem::take(&mut pieces.list);
        if list.is_empty() { Ok(()) } else { self.announce(Expected::Pieces(list)) }
    }

    fn send_counted(&mut self, unit: Unit) -> Result<()> {
        self.lag_runs += 1;
        self.send(unit)
    }

    fn large(&mut self, found: FoundFile, before: Option<BeforeFile>) -> Result<()> {
        let before = before.map(Arc::new);
        let Some(file) = open_source(self.shared.pgdata, &found.path)? else {
            check_may_vanish(&found)?;
            return self.announce(Expected::Item(Item::Vanished(found.path)));
        };
        let runs = found.size.div_ceil(RUN_BYTES);
        if self.lag_runs as u64 + runs > BUNDLE_LAG_RUNS as u64 {
            self.flush_bundle()?;
        }
        let first_ticket = self.next_ticket;
        self.announce(Expected::Large { found: found.clone(), first_ticket, runs })?;
        let file = Arc::new(OpenFile { file, found });
        for n in 0..runs {
            let ticket = self.ticket();
            let offset = n * RUN_BYTES;
            let len = RUN_BYTES.min(file.found.size - offset);
            self.send_counted(Unit::Run { ticket, file: file.clone(), offset, len, before: before.clone() })?;
        }
        Ok(())
    }

    fn send(&self, unit: Unit) -> Result<()> {
        self.units.send(unit).map_err(|_| EngineError::Cancelled)
    }

    fn small(&mut self, found: FoundFile, before: Option<BeforeFile>) -> Result<()> {
        if self.bundle_bytes + found.size > FRAME_BYTES as u64 {
            self.flush_bundle()?;
        }
        if self.bundle.is_empty() {
            self.bundle_ticket = self.ticket();
            (self.lag_items, self.lag_runs) = (0, 0);
        }
        let (ticket, index) = (self.bundle_ticket, self.bundle.len());
        self.bundle_bytes += found.size;
        self.bundle.push((found.clone(), before));
        self.announce(Expected::Small { found, ticket, index })
    }

    fn flush_bundle(&mut self) -> Result<()> {
        (self.lag_items, self.lag_runs, self.bundle_bytes) = (0, 0, 0);
        if self.bundle.is_empty() {
            return Ok(());
        }
        let files = std::mem::take(&mut self.bundle);
        self.send(Unit::Bundle { ticket: self.bundle_ticket, files })
    }
}
