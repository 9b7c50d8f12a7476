//! The flags every command takes.
//!
//! Invariant: no secret can be given on the command line; the flags that look like it exist only to say so.

mod limits;
mod logging;

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgAction, Args, ValueEnum};
use jiff::Timestamp;
use pgark_dr::trail::Trail;
use serde::Serialize;
use tracing::level_filters::LevelFilter;

use crate::failure::Failure;
use crate::notices::Notices;
use crate::output::{self, ColorChoice, Form};
use crate::secret::secret_on_command_line;
use crate::settings::Overrides;
use crate::settings::in_force::Texts;
pub use limits::{PriorityArgs, RateArgs};
pub use logging::start_log;

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
    /// Given by the server to its processes: its settings are on the standard input.
    #[arg(long, hide = true, global = true)]
    pub settings_in_force: bool,

    /// Those.
    #[arg(skip)]
    pub in_force: Option<Arc<Texts>>,

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
            in_force: self.in_force.clone(),
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
}
