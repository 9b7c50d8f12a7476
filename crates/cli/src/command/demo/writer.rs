//! The application: inserts numbered payments, each a transaction of its own, and keeps a ledger of them outside the
//! database.
//!
//! Invariant: an entry is in the ledger before its INSERT is sent, so no row can exist that the ledger does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgark_engine::Ctx;
use pgark_engine::cluster::{ClusterError, Connection, Deadline};

use super::place::random_hex;
use super::server::{Server, pg};
use crate::command::context::engine_failure;
use crate::failure::Failure;

const POLL: Duration = Duration::from_millis(10);
/// Between two payments: the demo is about the backup, not about the disk.
const PACE: Duration = Duration::from_millis(1);
const PAYMENTS_WITHIN: Duration = Duration::from_secs(60);

/// What became of a payment, as far as the application can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// PostgreSQL said it is committed.
    Acknowledged(Instant),
    /// PostgreSQL refused it: it must not exist.
    Refused,
    /// No answer: it may exist or not, and both are right.
    InDoubt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: u64,
    pub content: String,
    pub fate: Fate,
}

pub struct Ledger {
    pub entries: Vec<Entry>,
    /// The error that ended the writing, and when it came.
    pub alarm: Option<(Instant, String)>,
}

struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// Stopped when dropped.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Ledger, Failure>>>,
}

impl Writer {
    pub fn start(server: &Server) -> Result<Self, Failure> {
        let conn = server.open()?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), acknowledged: AtomicU64::new(0) });
        let thread = std::thread::Builder::new().name("writer".into()).spawn({
            let shared = shared.clone();
            move || write(&conn, &shared)
        });
        let thread = thread.map_err(|e| Failure::failed("E-SYSTEM", format!("starting a thread: {e}")))?;
        Ok(Writer { shared, thread: Some(thread) })
    }

    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more payments are committed.
    pub fn wait_for_more(&self, more: u64, ctx: &Ctx) -> Result<(), Failure> {
        let wanted = self.acknowledged() + more;
        self.wait(ctx, "payments are not written", || self.acknowledged() >= wanted)
    }

    /// Waits for the error that ends the writing, and returns the ledger.
    pub fn alarm(mut self, ctx: &Ctx) -> Result<Ledger, Failure> {
        let finished = || self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let deadline = Deadline::after(PAYMENTS_WITHIN);
        while !finished() {
            ctx.check_cancelled().map_err(engine_failure)?;
            if deadline.has_passed() {
                return Err(Failure::failed("E-DEMO-WRITER", "the writer did not notice that its table is gone"));
            }
            std::thread::sleep(POLL);
        }
        let panicked = || Failure::failed("E-INTERNAL", "the writer panicked");
        self.thread.take().ok_or_else(panicked)?.join().map_err(|_| panicked())?
    }

    fn wait(&self, ctx: &Ctx, otherwise: &str, reached: impl Fn() -> bool) -> Result<(), Failure> {
        let deadline = Deadline::after(PAYMENTS_WITHIN);
        while !reached() {
            ctx.check_cancelled().map_err(engine_failure)?;
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || deadline.has_passed() {
                return Err(
                    Failure::failed("E-DEMO-WRITER", otherwise).hint("--keep leaves the server's log to look at")
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whatever it says, the story has failed for another reason already.
            let _ = thread.join();
        }
    }
}

fn write(conn: &Connection, shared: &Shared) -> Result<Ledger, Failure> {
    let mut ledger = Ledger { entries: vec![], alarm: None };
    let mut id = 0u64;
    while !shared.stop.load(Ordering::Relaxed) {
        id += 1;
        let amount = id * 7919 % 100_000;
        let content = format!("{}.{:02} EUR, reference {}", amount / 100, amount % 100, random_hex::<12>()?.as_str());
        ledger.entries.push(Entry { id, content: content.clone(), fate: Fate::InDoubt });
        let inserted = insert(conn, id, &content);
        let now = Instant::now();
        let fate = match &inserted {
            Ok(()) => Fate::Acknowledged(now),
            Err(e) => fate_of(e),
        };
        if let Some(entry) = ledger.entries.last_mut() {
            entry.fate = fate;
        }
        match inserted {
            Ok(()) => shared.acknowledged.fetch_add(1, Ordering::Relaxed),
            Err(e) => {
                ledger.alarm = Some((now, pg(e).message));
                return Ok(ledger);
            }
        };
        std::thread::sleep(PACE);
    }
    Ok(ledger)
}

fn insert(conn: &Connection, id: u64, content: &str) -> Result<(), ClusterError> {
    let sql = "INSERT INTO public.payments (id, content) VALUES ($1::bigint, $2::text)";
    match conn.execute(sql, &[&id.to_string(), content])? {
        1 => Ok(()),
        n => Err(ClusterError::Unexpected { message: format!("an insert of one row touched {n}") }),
    }
}

/// Only an answer of the server's rules a commit out.
fn fate_of(error: &ClusterError) -> Fate {
    match error {
        ClusterError::Query { .. } | ClusterError::Denied { .. } => Fate::Refused,
        _ => Fate::InDoubt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_the_server_rules_a_commit_out() {
        let refused = ClusterError::Query { sqlstate: "42P01".into(), message: "gone".into() };
        assert_eq!(fate_of(&refused), Fate::Refused);
        assert_eq!(fate_of(&ClusterError::Lost { message: "reset".into() }), Fate::InDoubt);
        assert_eq!(fate_of(&ClusterError::Timeout { doing: "insert" }), Fate::InDoubt);
    }
}
