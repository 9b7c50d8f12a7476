//! The truth of a database beside its dump: read in the snapshot of the dump, at the same time, and stored as a part like it.
//!
//! Invariant: a dump does not fail because its truth cannot be had; that there is none is said, and in the record.

use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope as Threads, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use pgark_repo::record::TruthPart;

use super::Job;
use super::dump::{DumpDone, DumpOf, outside};
use crate::cluster::SnapshotSession;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::parts::{Finished, PartSink, nameless};
use crate::truth::{DocumentSink, Observation, Scope, Summary, TruthOptions};

/// How long counting may take: the snapshot is held meanwhile.
const WITHIN: Duration = Duration::from_secs(24 * 3600);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 256 * 1024;

/// What is written down of a database when it is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Nothing: what is restored cannot be compared.
    None,
    /// Every object, and how many rows each table has.
    Counts,
    /// The contents of tables and large objects as well.
    Hashes,
}

pub(super) fn truth_path(path: &str) -> String {
    format!("{path}/truth")
}

/// What the thread hands back: the session in any case.
type Outcome = (SnapshotSession, Result<(Summary, std::fs::File)>);

/// The thread that reads, seen from the one that dumps. It stops when this is dropped.
struct Beside<'s> {
    handle: Option<ScopedJoinHandle<'s, Outcome>>,
    /// Positions of sequences were read.
    ready: Receiver<()>,
    /// None: everything.
    go: Sender<Option<Scope>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Job<'_> {
    /// None when the truth could not even be begun, and with it the snapshot was lost; `warnings` says why.
    pub(super) fn dump_with_truth<'d>(
        &self,
        of: DumpOf<'d>,
        session: SnapshotSession,
        sink: &mut PartSink<'_>,
        stop: &AtomicBool,
        warnings: &mut Vec<String>,
    ) -> Result<Option<DumpDone<'d>>> {
        let options = TruthOptions {
            hashes: self.options.truth == Truth::Hashes,
            jobs: (self.options.jobs / self.workers()).max(1),
            within: WITHIN,
        };
        let aside = self.ctx.aside();
        let shown = of.database.name.escape_debug().to_string();
        let lacking = |e: EngineError| {
            format!(
                "'{shown}': what it holds was not written down, so that a restored database cannot be compared with it: {e}"
            )
        };
        let read = thread::scope(|threads| {
            let mut beside = self.read_beside(threads, session, &of, &options, &aside);
            if !self.wait_until_ready(&beside, stop)? {
                warnings.push(lacking(self.join(&mut beside, stop)?.1.err().unwrap_or(EngineError::Cancelled)));
                return Ok(None);
            }
            // Which tables there are in a selection is known when it was dumped.
            let partial = !self.options.schemas.is_empty() || !self.options.tables.is_empty();
            if !partial {
                beside.go.send(None).map_err(|_| EngineError::Cancelled)?;
            }
            let (part, said, toc) = self.run_pg_dump(&of, sink, stop)?;
            if let Some(toc) = &toc {
                let scope = Scope::of(toc, None, &of.database.encoding);
                beside.go.send(Some(scope)).map_err(|_| EngineError::Cancelled)?;
            }
            let (session, read) = self.join(&mut beside, stop)?;
            session.end()?;
            Ok::<_, EngineError>(Some((part, said, outside(toc.as_ref()), read)))
        })?;
        let Some((part, said, keys_outside, read)) = read else { return Ok(None) };
        let truth = match read {
            Ok((summary, file)) => {
                warnings.extend(unread(&shown, &summary));
                let part = self.store(&of, file, sink)?;
                Some((self.facts(&of, &summary, &part), part))
            }
            Err(e) => {
                self.ctx.check_cancelled()?;
                warnings.push(lacking(e));
                None
            }
        };
        Ok(Some(DumpDone { of, part, said, keys_outside, truth }))
    }

    fn read_beside<'s>(
        &'s self,
        threads: &'s Threads<'s, '_>,
        session: SnapshotSession,
        of: &'s DumpOf<'_>,
        options: &'s TruthOptions,
        aside: &'s Ctx,
    ) -> Beside<'s> {
        let (say_ready, ready) = bounded(1);
        let (go, may_go) = bounded(1);
        let stop = aside.cancel_flag();
        let handle = threads.spawn(move || {
            let read = || {
                let connect = &self.options.connect;
                let observation = Observation::begin(&session, connect, &of.database.name, options, aside)?;
                say_ready.send(()).map_err(|_| EngineError::Cancelled)?;
                let scope: Option<Scope> = may_go.recv().map_err(|_| EngineError::Cancelled)?;
                let scratch = &self.options.scratch;
                let failed = |e| EngineError::file("writing a temporary file in", scratch, e);
                let mut document = DocumentSink::new(BufWriter::new(nameless(scratch).map_err(failed)?));
                let summary = observation.finish(&session, scope.as_ref(), &mut document)?;
                let mut file = document.finish(&summary)?.into_inner().map_err(|e| failed(e.into_error()))?;
                file.seek(SeekFrom::Start(0)).map_err(failed)?;
                Ok((summary, file))
            };
            let read = read();
            // Whoever waits for the beginning waits no more.
            drop(say_ready);
            (session, read)
        });
        Beside { handle: Some(handle), ready, go, stop }
    }

    /// False when there will be none.
    fn wait_until_ready(&self, beside: &Beside<'_>, stop: &AtomicBool) -> Result<bool> {
        loop {
            match beside.ready.recv_timeout(LOOK_EVERY) {
                Ok(()) => return Ok(true),
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => self.look(stop)?,
            }
        }
    }

    fn look(&self, stop: &AtomicBool) -> Result<()> {
        self.ctx.check_cancelled()?;
        if stop.load(Ordering::Relaxed) { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    fn join(&self, beside: &mut Beside<'_>, stop: &AtomicBool) -> Result<Outcome> {
        let handle = beside.handle.take().expect("joined once");
        while !handle.is_finished() {
            self.look(stop)?;
            thread::sleep(LOOK_EVERY);
        }
        Ok(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    fn store(&self, of: &DumpOf<'_>, mut file: std::fs::File, sink: &mut PartSink<'_>) -> Result<Finished> {
        sink.write(&truth_path(&of.path), of.taken, &mut || {
            let mut buffer = vec![];
            let read = file.by_ref().take(READ_BYTES as u64).read_to_end(&mut buffer);
            read.map_err(|e| EngineError::file("reading a temporary file in", &self.options.scratch, e))?;
            Ok((!buffer.is_empty()).then_some(buffer))
        })
    }

    fn facts(&self, of: &DumpOf<'_>, summary: &Summary, part: &Finished) -> TruthPart {
        TruthPart {
            path: truth_path(&of.path),
            bytes: part.size(),
            hashed: self.options.truth == Truth::Hashes,
            objects: summary.objects,
            tables: summary.tables,
            rows: summary.rows,
            unread: summary.unread,
            duration_ms: u64::try_from(summary.took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn unread(shown: &str, summary: &Summary) -> Option<String> {
    (summary.unread > 0).then(|| {
        let examples = summary.examples.join("; ");
        format!("'{shown}': {} objects were not counted and cannot be compared later: {examples}", summary.unread)
    })
}
