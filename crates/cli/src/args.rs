//! The flags every command takes, and the log.
//!
//! Invariant: no secret can be given on the command line; the flags that look like it exist only to say so. A log that
//! cannot be written never blocks or fails a job.

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use jiff::Timestamp;
use pgark_dr::trail::Trail;
use pgark_engine::ctx::Ctx;
use pgark_engine::pace::Pace;
use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::failure::Failure;
use crate::notices::Notices;
use crate::output::{self, ColorChoice, Form};
use crate::secret::secret_on_command_line;
use crate::settings::Overrides;
use crate::settings::units::ByteSize;

/// Flatten once at the top of the command line: all are accepted after the subcommand.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Repository by its configured name, or as a path or URL; the first is read from, all are written to
    /// [env: PGARK_REPO]
    #[arg(long = "repo", value_name = "NAME|URL", global = true, action = ArgAction::Append)]
    pub repo: Vec<String>,

    /// Read the repository as it was at this moment: in an S3 bucket that keeps versions, also what was deleted since
    #[arg(long, value_name = "TIME", global = true)]
    pub repo_target_time: Option<Timestamp>,

    /// File with the passphrase of the repository key [env: PGARK_PASSPHRASE_FILE]
    #[arg(long, value_name = "FILE", global = true)]
    pub passphrase_file: Option<PathBuf>,

    /// File with an age identity (AGE-SECRET-KEY-…) that opens the repository [env: PGARK_AGE_IDENTITY_FILE]
    #[arg(long, value_name = "FILE", global = true)]
    pub age_identity_file: Option<PathBuf>,

    /// Only to be refused.
    #[arg(long, hide = true, global = true, num_args = 0..=1, default_missing_value = "", alias = "password",
          value_parser = Given::parse)]
    passphrase: Option<Given>,

    /// Cluster [env: PGARK_CLUSTER] [default: main]
    #[arg(short = 'c', long, value_name = "NAME", global = true, alias = "stanza")]
    pub cluster: Option<String>,

    /// The cluster's data directory, when it is on this machine [env: PGDATA]
    #[arg(long, value_name = "DIR", global = true)]
    pub pgdata: Option<PathBuf>,

    /// Parallel workers [env: PGARK_JOBS] [default: number of cores]
    #[arg(short = 'j', long, value_name = "N", global = true)]
    pub jobs: Option<NonZeroU32>,

    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,

    /// Form of the log on standard error
    #[arg(long, value_name = "FORM", global = true, default_value = "text")]
    pub log_format: LogFormat,

    /// Log more; twice for details
    #[arg(short = 'v', long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Log errors only and show no progress; commands that change something say nothing else, a backup its id
    #[arg(short = 'q', long, global = true)]
    pub quiet: bool,

    /// Configuration file [env: PGARK_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// What people are told.
    #[arg(skip)]
    pub notices: Notices,

    /// What the audit trail is told.
    #[arg(skip)]
    pub trail: Trail,
    /// Given by the server to its jobs: where they say that they run, and how they ended.
    #[arg(long, hide = true, global = true)]
    pub job_dir: Option<PathBuf>,

    /// Colours
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto")]
    pub color: ColorChoice,
}

/// `restore --kind system --config` means the configuration of the backup. Everywhere else `--config` is followed by the file of
/// ours; a file is never called like a flag.
pub fn spelled_out(argv: &[OsString]) -> Vec<OsString> {
    let is_restore = argv.iter().skip(1).any(|word| word == "restore");
    let is_system = argv.windows(2).any(|w| matches!(w, [a, b] if a == "--kind" && (b == "system" || b == "files")))
        || argv.iter().any(|word| word == "--kind=system" || word == "--kind=files");
    let bare = |n: usize| argv.get(n + 1).is_none_or(|next| next.as_encoded_bytes().starts_with(b"-"));
    let word = |(n, word): (usize, &OsString)| match is_restore && is_system && word == "--config" && bare(n) {
        true => OsString::from("--config-files"),
        false => word.clone(),
    };
    argv.iter().enumerate().map(word).collect()
}

/// That something was given; what it was is not kept.
#[derive(Debug, Clone, Copy)]
struct Given;

impl Given {
    fn parse(_: &str) -> Result<Given, std::convert::Infallible> {
        Ok(Given)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// For every command that changes something.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct DryRunArgs {
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// For every command that destroys something.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ConfirmArgs {
    /// Do it without asking
    #[arg(short = 'y', long)]
    pub yes: bool,
}

/// For commands that move much data beside a server.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct RateArgs {
    /// Read or write at most so much of the data directory per second, such as 50MB [setting: bandwidth_limit]
    #[arg(long, value_name = "SIZE")]
    limit_rate: Option<ByteSize>,
}

impl RateArgs {
    /// The flag, or else the cluster's setting.
    pub fn apply(&self, configured: Option<u64>, ctx: &mut Ctx) -> Result<(), Failure> {
        if let Some(bytes) = self.limit_rate.map(|size| size.0).or(configured) {
            let rate = NonZeroU64::new(bytes)
                .ok_or_else(|| Failure::usage("E-LIMIT", "a limit of 0 bytes per second moves nothing"))?;
            ctx.limit(Some(Pace::new(rate)));
        }
        Ok(())
    }
}

/// Not for what starts a server, which would inherit it.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct PriorityArgs {
    /// Give way to other processes on the processor: 1 to 19, as nice(1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=19))]
    nice: Option<u8>,
    /// Give way on the disks: idle, or 0 to 7 of the best-effort class, as ionice(1), which must be installed
    #[arg(long, value_name = "CLASS")]
    ionice: Option<IoClass>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IoClass {
    Idle,
    BestEffort(u8),
}

impl std::str::FromStr for IoClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("idle", _) => Ok(IoClass::Idle),
            (_, Ok(level @ 0..=7)) => Ok(IoClass::BestEffort(level)),
            _ => Err("it is 'idle' or a level from 0 to 7".into()),
        }
    }
}

impl PriorityArgs {
    /// To be called before any thread is started: threads inherit what this one has.
    ///
    /// # Errors
    /// When the system refuses; a limit that was asked for and does not hold would do harm.
    pub fn apply(&self) -> Result<(), Failure> {
        if let Some(level) = self.nice {
            rustix::process::nice(i32::from(level))
                .map_err(|e| Failure::failed("E-LIMIT", format!("the priority cannot be lowered: {e}")))?;
        }
        if let Some(class) = self.ionice {
            let mut command = std::process::Command::new("ionice");
            match class {
                IoClass::Idle => command.args(["-c", "3"]),
                IoClass::BestEffort(level) => command.args(["-c", "2", "-n", &level.to_string()]),
            };
            let failed = |why: String| {
                Failure::failed("E-LIMIT", format!("the disk priority cannot be lowered: {why}"))
                    .hint("ionice is part of util-linux")
            };
            let done = command.arg("-p").arg(std::process::id().to_string()).output();
            let done = done.map_err(|e| failed(format!("ionice: {e}")))?;
            if !done.status.success() {
                return Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
            }
        }
        Ok(())
    }
}

impl GlobalArgs {
    /// What the flags say about the settings.
    ///
    /// # Errors
    /// `E-SECRET-ARGV` when a secret was given on the command line.
    pub fn overrides(&self) -> Result<Overrides, Failure> {
        if self.passphrase.is_some() {
            return Err(secret_on_command_line());
        }
        Ok(Overrides {
            config: self.config.clone(),
            repos: self.repo.clone(),
            passphrase_file: self.passphrase_file.clone(),
            cluster: self.cluster.clone(),
            pgdata: self.pgdata.clone(),
            jobs: self.jobs,
            repo_target_time: self.repo_target_time,
        })
    }

    /// Whether a command that was done as asked has nothing to say: its exit code does.
    pub fn says_nothing(&self) -> bool {
        self.quiet && !self.json
    }

    /// Prints what a command did that was done as asked.
    pub fn report<T: Serialize>(&self, document: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.says_nothing() { Ok(()) } else { output::result(self.form(), document, text) }
    }

    pub fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Text }
    }

    fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        }
    }
}

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
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        global: GlobalArgs,
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Command {
        Expire {
            #[command(flatten)]
            dry_run: DryRunArgs,
            #[command(flatten)]
            confirm: ConfirmArgs,
        },
    }

    fn parse(line: &str) -> Line {
        Line::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_bare_config_is_the_configuration_of_a_backup() {
        let spelled = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            spelled_out(&words).iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        let of_a_backup = "pgark restore X --kind system --config-files --files";
        assert_eq!(spelled("pgark restore X --kind system --config --files"), of_a_backup);
        assert_eq!(spelled("pgark restore X --kind=files --config"), "pgark restore X --kind=files --config-files");
        for same in [
            "pgark restore X --kind system --config /etc/pgark.toml --files",
            "pgark restore X --kind logical --config --yes",
            "pgark backup --kind system --config",
        ] {
            assert_eq!(spelled(same), same);
        }
    }

    #[test]
    fn flags_follow_the_subcommand() {
        let line = parse("pgark expire --repo a --repo s3://b --stanza x -j 3 --json -vv --dry-run -y --config /c");
        let overrides = line.global.overrides().expect("no secret");
        assert_eq!((overrides.repos, overrides.cluster), (vec!["a".into(), "s3://b".into()], Some("x".into())));
        assert_eq!((overrides.jobs, overrides.config), (NonZeroU32::new(3), Some("/c".into())));
        assert_eq!((line.global.form(), line.global.level()), (Form::Json, LevelFilter::DEBUG));
        let Command::Expire { dry_run, confirm } = line.command;
        assert!(dry_run.dry_run && confirm.yes);
    }

    #[test]
    fn a_passphrase_on_the_command_line_is_refused_and_not_repeated() {
        for line in
            ["pgark expire --passphrase hunter2", "pgark expire --passphrase=hunter2", "pgark expire --password"]
        {
            let global = parse(line).global;
            assert!(!format!("{global:?}").contains("hunter2"));
            let failure = global.overrides().expect_err(line);
            assert_eq!((&*failure.code, failure.exit.code()), ("E-SECRET-ARGV", 2));
            assert!(failure.to_text().contains("--passphrase-file") && !failure.to_text().contains("hunter2"));
        }
        let help = Line::try_parse_from(["pgark", "expire", "--help"]).expect_err("help").to_string();
        assert!(help.contains("--passphrase-file") && !help.contains("--passphrase ") && !help.contains("stanza"));
    }

    #[test]
    fn wrong_values_are_usage_errors() {
        for line in ["pgark expire -j 0", "pgark expire -j x", "pgark expire -q -v", "pgark expire --color pink"] {
            assert!(Line::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

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
