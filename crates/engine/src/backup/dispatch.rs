//! Shares the work of copying between threads: one walks the directory, several copy, one commits packs, one
//! writes the manifest. Every channel is bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use pgark_pg::major::Major;
use pgark_repo::limits::FRAME_BYTES;
use pgark_repo::manifest::{Directory, Item, ManifestWriter, Symlink};
use pgark_repo::pack::SealedPack;
use pgark_repo::stream::Fingerprint;

use super::assemble::{Assembler, Expected, Summary, check_may_vanish};
use super::copy::{BUNDLE_FILE_BYTES_MAX, CopyShared, Done, OpenFile, RUN_BYTES, Unit, Worker, open_source};
use super::scan::{Found, FoundFile, Noticed, scan};
use crate::error::{EngineError, Result};

/// How many manifest items may be announced ahead of the copying.
const EXPECTED_AHEAD: usize = 4096;
/// A bundle goes out at the latest when so much was announced after its first file: the manifest waits for it.
const BUNDLE_LAG_ITEMS: usize = 1024;
const BUNDLE_LAG_RUNS: usize = 64;
const RESULTS_AHEAD: usize = 256;
/// Packs that wait for the disk; each worker has one more in hand.
const COMMITS_AHEAD: usize = 2;

pub struct Dispatched {
    pub manifest: ManifestWriter,
    pub summary: Summary,
    pub noticed: Noticed,
    pub packs: Vec<(u32, Fingerprint)>,
}

pub fn copy_all(shared: &CopyShared<'_>, major: Major, manifest: ManifestWriter, jobs: usize) -> Result<Dispatched> {
    let jobs = jobs.max(1);
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
            Assembler::new(manifest, shared.id, result_rx).run(&expected_rx).inspect_err(|_| stop(shared))
        });
        let walked = Dispatcher::new(shared, unit_tx, expected_tx).walk(major);

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
            (Some(noticed), Some(packs), Some((manifest, summary))) => {
                Ok(Dispatched { manifest, summary, noticed, packs })
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
        let ticket = match &unit {
            Unit::Run { ticket, .. } | Unit::Bundle { ticket, .. } => *ticket,
        };
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

struct Dispatcher<'a> {
    shared: &'a CopyShared<'a>,
    units: Sender<Unit>,
    expected: Sender<Expected>,
    next_ticket: u64,
    bundle: Vec<FoundFile>,
    bundle_ticket: u64,
    bundle_bytes: u64,
    /// Announced since the bundle's first file.
    lag_items: usize,
    lag_runs: usize,
}

impl<'a> Dispatcher<'a> {
    fn new(shared: &'a CopyShared<'a>, units: Sender<Unit>, expected: Sender<Expected>) -> Self {
        Dispatcher {
            shared,
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

    fn walk(mut self, major: Major) -> Result<Noticed> {
        let noticed =
            scan(self.shared.pgdata, major, &mut |found| self.found(found)).inspect_err(|_| stop(self.shared))?;
        self.flush_bundle()?;
        Ok(noticed)
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
            Found::File(f) if f.size > BUNDLE_FILE_BYTES_MAX => self.large(f)?,
            Found::File(f) if f.size == 0 => {
                self.announce(Expected::Large { found: f, first_ticket: 0, runs: 0 })?;
            }
            Found::File(f) => self.small(f)?,
        }
        if self.lag_items > BUNDLE_LAG_ITEMS || self.lag_runs > BUNDLE_LAG_RUNS {
            self.flush_bundle()?;
        }
        Ok(())
    }

    fn large(&mut self, found: FoundFile) -> Result<()> {
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
            self.send(Unit::Run { ticket, file: file.clone(), offset, len })?;
            self.lag_runs += 1;
        }
        Ok(())
    }

    fn send(&self, unit: Unit) -> Result<()> {
        self.units.send(unit).map_err(|_| EngineError::Cancelled)
    }

    fn small(&mut self, found: FoundFile) -> Result<()> {
        if self.bundle_bytes + found.size > FRAME_BYTES as u64 {
            self.flush_bundle()?;
        }
        if self.bundle.is_empty() {
            self.bundle_ticket = self.ticket();
            (self.lag_items, self.lag_runs) = (0, 0);
        }
        let (ticket, index) = (self.bundle_ticket, self.bundle.len());
        self.bundle_bytes += found.size;
        self.bundle.push(found.clone());
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
