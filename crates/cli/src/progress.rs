//! Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing with `-q`.
//!
//! Invariant: progress never fails or delays a job. It is called from many threads at once.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
pub use pgark_engine::ctx::ProgressSink;

use crate::failure::escape;
use crate::output::{human_bytes, human_duration};

/// A line is due after this time …
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// … or after this share of the whole, …
const LINE_PERCENT: u64 = 5;
/// … but never two within this time.
const LINE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The bar is drawn this often without news, so that elapsed time moves on.
const BAR_TICK: Duration = Duration::from_millis(200);

/// The sink that suits the surroundings.
pub fn for_stderr(quiet: bool) -> Arc<dyn ProgressSink> {
    if quiet {
        Arc::new(Silent)
    } else if io::stderr().is_terminal() {
        Arc::new(Bar::default())
    } else {
        Arc::new(Lines::new(io::stderr(), Instant::now))
    }
}

/// Says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl ProgressSink for Silent {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn end(&self) {}
}

/// A bar with bytes, rate and time left.
#[derive(Debug, Default)]
pub struct Bar {
    current: Mutex<Option<ProgressBar>>,
}

impl Bar {
    fn with<T>(&self, act: impl FnOnce(&mut Option<ProgressBar>) -> T) -> T {
        act(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse is our mistake; without it there is still a plain bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl ProgressSink for Bar {
    fn begin(&self, what: &str, total_bytes: Option<u64>) {
        let bar = match total_bytes {
            Some(total) => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style(
                "{msg} [{wide_bar}] {percent}%  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}",
            )),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style("{msg} {spinner} {decimal_bytes}  {decimal_bytes_per_sec}  {elapsed}")),
        };
        bar.set_message(escape(what).into_owned());
        bar.enable_steady_tick(BAR_TICK);
        let previous = self.with(|current| current.replace(bar));
        if let Some(previous) = previous {
            previous.finish_and_clear();
        }
    }

    fn advance(&self, bytes: u64) {
        self.with(|current| current.as_ref().inspect(|bar| bar.inc(bytes)).is_some());
    }

    fn note(&self, line: &str) {
        let line = escape(line);
        let bar = self.with(|current| current.clone());
        match bar {
            Some(bar) => bar.suspend(|| write_line(&mut io::stderr(), &line)),
            None => write_line(&mut io::stderr(), &line),
        }
    }

    fn end(&self) {
        if let Some(bar) = self.with(Option::take) {
            bar.finish_and_clear();
        }
    }
}

/// A stderr that is gone or full must not fail the job.
fn write_line(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

/// One line each 10 s or 5 %.
#[derive(Debug)]
pub struct Lines<W> {
    /// Outside the lock: every worker adds to it for every frame.
    done: AtomicU64,
    state: Mutex<LineState<W>>,
    now: fn() -> Instant,
}

#[derive(Debug)]
struct LineState<W> {
    to: W,
    phase: Option<Phase>,
}

#[derive(Debug)]
struct Phase {
    what: String,
    total: Option<u64>,
    started: Instant,
    told_at: Instant,
    told_bytes: u64,
}

impl<W: Write + Send> Lines<W> {
    pub fn new(to: W, now: fn() -> Instant) -> Lines<W> {
        Lines { done: AtomicU64::new(0), state: Mutex::new(LineState { to, phase: None }), now }
    }
}

impl<W: Write + Send> ProgressSink for Lines<W> {
    fn begin(&self, what: &str, total: Option<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.done.store(0, Ordering::Relaxed);
        let now = (self.now)();
        let what = escape(what).into_owned();
        let size = total.map_or(String::new(), |t| format!(" ({})", human_bytes(t)));
        write_line(&mut state.to, &format!("{what}{size}"));
        state.phase = Some(Phase { what, total, started: now, told_at: now, told_bytes: 0 });
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        // Whoever finds the lock taken leaves the telling to the one who holds it.
        let Ok(mut state) = self.state.try_lock() else { return };
        let LineState { to, phase: Some(phase) } = &mut *state else { return };
        let now = (self.now)();
        if phase.is_due(done, now) {
            write_line(to, &phase.line(done, now));
            phase.told_at = now;
            phase.told_bytes = done;
        }
    }

    fn note(&self, line: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        write_line(&mut state.to, &escape(line));
    }

    fn end(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(phase) = state.phase.take() else { return };
        let done = self.done.load(Ordering::Relaxed);
        let took = (self.now)().saturating_duration_since(phase.started);
        let line = format!("{}: done, {} in {}", phase.what, human_bytes(done), human_duration(took));
        write_line(&mut state.to, &line);
    }

    fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(phase) = state.phase.take() else { return };
        let done = self.done.load(Ordering::Relaxed);
        write_line(&mut state.to, &format!("{}: stopped after {}", phase.what, human_bytes(done)));
    }
}

impl Phase {
    fn is_due(&self, done: u64, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.told_at);
        let share = self.total.map_or(u64::MAX, |total| (total / 100).saturating_mul(LINE_PERCENT).max(1));
        silent >= LINE_INTERVAL || silent >= LINE_INTERVAL_MIN && done.saturating_sub(self.told_bytes) >= share
    }

    fn line(&self, done: u64, now: Instant) -> String {
        let took = now.saturating_duration_since(self.started);
        let millis = took.as_millis().max(1);
        let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
        let speed = human_bytes(rate);
        let Some(total) = self.total.filter(|total| *total > 0) else {
            return format!("{}: {}, {speed}/s", self.what, human_bytes(done));
        };
        let percent = u128::from(done.min(total)) * 100 / u128::from(total);
        let left = Duration::from_secs(total.saturating_sub(done) / rate.max(1));
        let (done, total) = (human_bytes(done), human_bytes(total));
        format!("{}: {percent} %, {done} of {total}, {speed}/s, {} left", self.what, human_duration(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::OnceLock;

    thread_local! {
        static SECONDS: Cell<u64> = const { Cell::new(0) };
    }

    fn clock() -> Instant {
        static START: OnceLock<Instant> = OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(SECONDS.get())
    }

    fn told(lines: &Lines<Vec<u8>>) -> Vec<String> {
        let state = lines.state.lock().expect("not poisoned");
        String::from_utf8_lossy(&state.to).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_comes_with_every_twentieth_of_the_whole() {
        let lines = Lines::new(Vec::new(), clock);
        lines.begin("reading", Some(100_000_000));
        for _ in 0..100 {
            SECONDS.set(SECONDS.get() + 1);
            lines.advance(1_000_000);
        }
        lines.end();
        let told = told(&lines);
        assert_eq!(told.len(), 1 + 20 + 1, "{told:#?}");
        assert_eq!(told.get(1).map(String::as_str), Some("reading: 5 %, 5.0 MB of 100.0 MB, 1.0 MB/s, 1m 35s left"));
        assert_eq!(told.last().map(String::as_str), Some("reading: done, 100.0 MB in 1m 40s"));
    }

    #[test]
    fn a_slow_job_tells_every_ten_seconds_and_a_fast_one_hardly_ever() {
        let slow = Lines::new(Vec::new(), clock);
        slow.begin("reading", None);
        for _ in 0..30 {
            SECONDS.set(SECONDS.get() + 1);
            slow.advance(1);
        }
        assert_eq!(told(&slow).len(), 1 + 3);
        let fast = Lines::new(Vec::new(), clock);
        fast.begin("reading", Some(1000));
        (0..1000).for_each(|_| fast.advance(1));
        fast.end();
        assert_eq!(told(&fast).len(), 2);
    }

    #[test]
    fn notes_are_escaped_and_an_empty_total_is_no_division_by_zero() {
        let lines = Lines::new(Vec::new(), clock);
        lines.begin("nothing", Some(0));
        SECONDS.set(SECONDS.get() + 11);
        lines.advance(0);
        lines.note("table \u{1b}[2J\nx");
        assert_eq!(told(&lines), ["nothing (0 B)", "nothing: 0 B, 0 B/s", "table \\u{1b}[2J\\nx"]);
    }

    #[test]
    fn a_writer_that_is_gone_fails_nothing() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let lines = Lines::new(Gone, clock);
        lines.begin("reading", Some(10));
        SECONDS.set(SECONDS.get() + 11);
        lines.advance(10);
        lines.end();
        assert_eq!(lines.done.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn the_bar_counts_what_all_threads_report() {
        let bar = Bar::default();
        bar.begin("reading", Some(4000));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| bar.advance(1)));
            }
        });
        assert_eq!(bar.with(|b| b.as_ref().map(ProgressBar::position)), Some(4000));
        bar.end();
        assert!(bar.with(|b| b.is_none()));
    }
}
