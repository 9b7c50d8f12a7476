//! The program: arguments, settings, one command, an exit code. Rules about backups live in the engine.

mod args;
mod aws_profile;
mod command;
mod failure;
mod key_cache;
mod key_commands;
mod key_pin;
mod nested;
mod notices;
mod output;
mod program;
mod progress;
mod prompt;
mod secret;
mod settings;
mod space;
mod store;

use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;

use pgark_server::jobs::child;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::command::{Cli, Outcome};
use crate::failure::{Exit, Failure, is_archive_get, wants_json};
use crate::output::Form;
use crate::settings::in_force::Texts;

fn main() -> ExitCode {
    keep_memory_private();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let archive_get = is_archive_get(&argv);
    // Rust ends a panicking program with 101, which PostgreSQL would take for the end of the archive.
    let mut job = None;
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| run(&argv, &mut job))).unwrap_or_else(|_| {
        Err(Failure::failed("E-INTERNAL", "the program hit an internal error; please report it with the lines above"))
    });
    let exit = match outcome {
        Ok(outcome) => outcome,
        Err(failure) => {
            let failure = if archive_get { failure.for_archive_get() } else { failure };
            let form = if wants_json(&argv) { Form::Json } else { Form::Text };
            output::failure(form, &failure);
            failure.exit
        }
    };
    if let Some(Err(e)) = job.map(|job| job.end(exit.code().into())) {
        output::warning(&format!("how the job ended cannot be written down: {e}"));
    }
    exit.into()
}

/// Keys are in it: no core of it is written, and no other program of this user looks into it. What it starts is not touched by
/// that.
fn keep_memory_private() {
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        output::warning(&format!("a core dump of this process would hold its keys: {e}"));
    }
}

fn run(argv: &[OsString], job: &mut Option<child::Running>) -> Result<Outcome, Failure> {
    let mut cli = match Cli::read(&args::spelled_out(argv)) {
        Ok(cli) => cli,
        Err(e) => {
            output::text(&Failure::from_clap(&e, argv)?)?;
            return Ok(Exit::Done);
        }
    };
    // A job of the server says so before it does anything, and how it ended when nothing more happens. By an argument, since what
    // it starts inherits variables and is no job.
    if let Some(dir) = &cli.global.job_dir {
        let given_up = |e: std::io::Error| Failure::new("E-JOB-GIVEN-UP", Exit::Cancelled, e.to_string());
        *job = Some(child::enter(dir).map_err(given_up)?);
    }
    if cli.global.settings_in_force {
        cli.global.in_force = Some(Arc::new(Texts::taken()?));
    }
    let _log = args::start_log(&cli.global)?;
    command::run(cli, argv)
}
