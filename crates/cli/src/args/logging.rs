//! The log on stderr.
//!
//! Invariant: a log that cannot be written never blocks or fails a job.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use super::{GlobalArgs, LogFormat};
use crate::failure::Failure;

/// Starts the log on stderr. Keep the guard to the end of the program: it writes out what is still waiting.
///
/// # Errors
/// When the log was already started.
pub fn start_log(global: &GlobalArgs) -> Result<LogGuard, Failure> {
    let failed = |why: String| Failure::failed("E-INTERNAL", format!("the log cannot be started: {why}"));
    let (writer, guard) = LossyWriter::new(io::stderr());
    let subscriber = subscriber(global.log_format, global.level(), global.color.for_stderr(), writer);
    tracing::subscriber::set_global_default(subscriber).map_err(|error| failed(error.to_string()))?;
    Ok(guard)
}

fn subscriber(
    format: LogFormat,
    level: LevelFilter,
    color: bool,
    writer: LossyWriter,
) -> impl tracing::Subscriber + Send + Sync {
    // What our libraries have to say matters only when something is wrong, or when everything is wanted.
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let filter = Targets::new().with_target("pgark", level).with_default(others);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(color).log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => layer.with_filter(filter).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(layer)
}

/// Log lines that may wait for a slow stderr; what comes on top is dropped and counted.
const LINES_WAITING_MAX: usize = 1024;

/// How long the end of the program waits for a slow stderr.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Hands lines to a thread, so that a stderr nobody reads cannot stop a backup. The first line starts it: most calls of
/// `archive_command` have nothing to say.
#[derive(Clone)]
struct LossyWriter {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    /// What the thread does, until it is started.
    idle: Arc<Mutex<Option<Drain>>>,
}

type Drain = Box<dyn FnOnce() + Send>;

/// Writes out the log when dropped, as far as stderr takes it.
pub struct LogGuard {
    stop: SyncSender<Vec<u8>>,
    stopped: Receiver<()>,
    idle: Arc<Mutex<Option<Drain>>>,
}

impl LossyWriter {
    fn new(mut to: impl Write + Send + 'static) -> (LossyWriter, LogGuard) {
        let (lines, waiting) = mpsc::sync_channel::<Vec<u8>>(LINES_WAITING_MAX);
        let (done, stopped) = mpsc::sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        let drain: Drain = Box::new(move || {
            // An empty line is the end: the subscriber lives as long as the program and never hangs up.
            while let Ok(line) = waiting.recv() {
                if line.is_empty() {
                    break;
                }
                let lost = lost.swap(0, Ordering::Relaxed);
                let note = if lost > 0 { format!("{lost} log lines were dropped\n") } else { String::new() };
                // Nobody is left to tell when stderr is gone; the job goes on.
                let _ = to.write_all(note.as_bytes()).and_then(|()| to.write_all(&line)).and_then(|()| to.flush());
            }
            let _ = done.send(());
        });
        let idle = Arc::new(Mutex::new(Some(drain)));
        let guard = LogGuard { stop: lines.clone(), stopped, idle: Arc::clone(&idle) };
        (LossyWriter { lines, dropped, idle }, guard)
    }

    /// Where no thread can be started, this line and all later ones are dropped.
    fn start(&self) {
        let drain = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(drain) = drain {
            let _ = std::thread::Builder::new().name("log".into()).spawn(drain);
        }
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let nothing_was_said = self.idle.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        // When the queue is full of lines nobody takes, there is nothing to wait for.
        if !nothing_was_said && self.stop.try_send(Vec::new()).is_ok() {
            let _ = self.stopped.recv_timeout(DRAIN_DEADLINE);
        }
    }
}

impl Write for LossyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An empty line would be taken for the end.
        if !bytes.is_empty() {
            self.start();
            if let Err(TrySendError::Full(_)) = self.lines.try_send(bytes.to_vec()) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LossyWriter {
    type Writer = LossyWriter;

    fn make_writer(&'a self) -> LossyWriter {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: LevelFilter) -> String {
        let shared = Shared::default();
        let (writer, guard) = LossyWriter::new(shared.clone());
        let subscriber = subscriber(format, level, false, writer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "pgark", "bad name \u{1b}[31mx");
            tracing::info!(target: "pgark_repo::store", "ours");
            tracing::info!(target: "other", "theirs");
        });
        drop(guard);
        let bytes = shared.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn the_log_has_what_the_level_asks_for_and_no_escape_sequences() {
        let text = logged(LogFormat::Text, LevelFilter::INFO);
        assert!(text.contains("ours") && !text.contains("theirs") && !text.contains('\u{1b}'), "{text:?}");
        assert!(!logged(LogFormat::Text, LevelFilter::WARN).contains("ours"));
        let json = logged(LogFormat::Json, LevelFilter::INFO);
        for line in json.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("each line is a document");
            assert!(value.get("level").is_some(), "{line}");
        }
        assert_eq!(json.lines().count(), 2);
    }

    #[test]
    fn a_stderr_nobody_reads_drops_lines_instead_of_blocking() {
        struct Stuck(Receiver<()>, mpsc::Sender<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.1.send(());
                // Blocks until the other side is gone.
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        let (mut writer, guard) = LossyWriter::new(Stuck(stuck, begun));
        writer.write_all(b"first\n").expect("never fails");
        // From here on the thread is stuck, and takes no line from the queue.
        has_begun.recv().expect("the first line is written");
        for _ in 0..LINES_WAITING_MAX + 10 {
            writer.write_all(b"line\n").expect("never fails");
        }
        assert!(writer.dropped.load(Ordering::Relaxed) >= 9);
        drop(release);
        drop(guard);
    }
}
