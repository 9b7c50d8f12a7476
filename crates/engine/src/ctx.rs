//! What an operation gets from outside: time, progress, and the wish to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use pgark_repo::catalog::Uptime;

use crate::error::{EngineError, Result};
use crate::pace::Pace;

/// Where an operation tells how far it is. Called from many threads.
pub trait ProgressSink: Send + Sync {
    fn begin(&self, what: &str, total_bytes: Option<u64>);
    fn advance(&self, bytes: u64);
    /// Something worth a line of its own.
    fn note(&self, line: &str);
    fn end(&self);
    /// It ended before it was done.
    fn stop(&self) {
        self.end();
    }
    fn end_as(&self, is_done: bool) {
        if is_done { self.end() } else { self.stop() }
    }
}

pub struct NoProgress;

impl ProgressSink for NoProgress {
    fn begin(&self, _what: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _line: &str) {}
    fn end(&self) {}
}

#[derive(Clone)]
pub struct Ctx {
    pub progress: Arc<dyn ProgressSink>,
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// How long this machine has been running; None where that is not known.
    pub uptime: Arc<dyn Fn() -> Option<Uptime> + Send + Sync>,
    cancelled: Arc<AtomicBool>,
    pace: Option<Arc<Pace>>,
}

impl Ctx {
    pub fn new(progress: Arc<dyn ProgressSink>) -> Self {
        let (clock, uptime) = (Arc::new(Timestamp::now), Arc::new(Uptime::now));
        Ctx { progress, clock, uptime, cancelled: Arc::default(), pace: None }
    }

    pub fn silent() -> Self {
        Self::new(Arc::new(NoProgress))
    }

    /// Whole seconds: what catalogs and ids are made of.
    pub fn now(&self) -> Timestamp {
        let now = (self.clock)();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }

    /// Set by whoever wants the operation to stop at the next safe point.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// For work beside this one that may be stopped alone. It is silent; whoever asks for it hands the wish to stop on.
    #[must_use]
    pub fn aside(&self) -> Ctx {
        Ctx { progress: Arc::new(NoProgress), cancelled: Arc::default(), ..self.clone() }
    }

    /// From here on, what is read from or written to a data directory keeps within this.
    pub fn limit(&mut self, pace: Option<Pace>) {
        self.pace = pace.map(Arc::new);
    }

    /// To be called before so many bytes of a data directory are read or written.
    pub fn pace(&self, bytes: u64) {
        if let Some(pace) = &self.pace {
            pace.take(bytes, &|| self.cancelled.load(Ordering::Relaxed));
        }
    }

    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(EngineError::Cancelled) } else { Ok(()) }
    }
}
