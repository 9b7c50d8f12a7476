//! `demo`: a throw-away cluster, a backup under writes, a disaster, recovery to just before it, and the proof.
//!
//! Two processes. The outer one makes the directory, starts this program again inside it (as the OS user postgres
//! when it is root itself, because PostgreSQL refuses root; with a clean environment, because neither `PG*` nor
//! `PGARK_*` variables may reach the demonstration), passes signals on, and removes what is left. The inner one tells
//! the story.
//!
//! Invariant: unless `--keep` is given, no server runs and no file is left when the outer process ends. Only SIGKILL
//! prevents that; the directory printed at the start can then be deleted, and a PostgreSQL whose directory is gone
//! ends by itself within a minute.

mod load;
mod place;
mod proof;
mod report;
mod server;
mod story;
mod supervise;
mod writer;

use std::path::PathBuf;

use clap::Args;
use pgark_engine::restore::start::find_server;
use pgark_pg::Major;

use super::Outcome;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where everything lives meanwhile, absent or empty; a fresh private directory when left out
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave everything in place and running, and say where and how to look
    #[arg(long)]
    keep: bool,
    /// Directory with the postgres and initdb programs; the newest installed version when left out
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Size of the data set: 1 is about 130 MB
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// The inner process: tell the story in this directory
    #[arg(long, value_name = "DIR", hide = true)]
    inside: Option<PathBuf>,
}

pub fn run(args: DemoArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    // Settings mean nothing here, but a secret on the command line is refused everywhere.
    global.overrides()?;
    match &args.inside {
        Some(dir) => story::run(dir, &args, global),
        None => supervise::run(&args, global),
    }
}

/// The newest supported server there is.
fn newest_server(args: &DemoArgs) -> Result<PathBuf, Failure> {
    let given = args.pg_bin.as_deref();
    let found = Major::ALL.iter().rev().find_map(|major| find_server(given, major.number()).ok());
    let found = found.filter(|bin| bin.join("initdb").exists());
    found.ok_or_else(|| {
        let place = given.map_or("the usual places".to_owned(), |dir| dir.display().to_string());
        Failure::new(
            "E-PG-BIN",
            Exit::Refused,
            format!("no PostgreSQL 13 to 18 server with initdb was found in {place}"),
        )
        .hint("install the server package, or say with --pg-bin where postgres and initdb are")
    })
}
