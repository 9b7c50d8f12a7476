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
use std::process::ExitCode;

use clap::Parser;

use crate::command::{Cli, Outcome};
use crate::failure::{Exit, Failure, is_archive_get, wants_json};
use crate::output::Form;

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let archive_get = is_archive_get(&argv);
    // Rust ends a panicking program with 101, which PostgreSQL would take for the end of the archive.
    let outcome = std::panic::catch_unwind(|| run(&argv)).unwrap_or_else(|_| {
        Err(Failure::failed("E-INTERNAL", "the program hit an internal error; please report it with the lines above"))
    });
    match outcome {
        Ok(outcome) => outcome.into(),
        Err(failure) => {
            let failure = if archive_get { failure.for_archive_get() } else { failure };
            let form = if wants_json(&argv) { Form::Json } else { Form::Text };
            output::failure(form, &failure);
            failure.exit.into()
        }
    }
}

fn run(argv: &[OsString]) -> Result<Outcome, Failure> {
    let cli = match Cli::try_parse_from(args::spelled_out(argv)) {
        Ok(cli) => cli,
        Err(e) => {
            output::text(&Failure::from_clap(&e, argv)?)?;
            return Ok(Exit::Done);
        }
    };
    let _log = args::start_log(&cli.global)?;
    command::run(cli, argv)
}
