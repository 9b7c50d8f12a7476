//! `truth`: what a database holds, as a document.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use pgark_engine::Ctx;
use pgark_engine::cluster::ConnectOptions;
use pgark_engine::truth::{Summary, TruthOptions, take};
use serde::Serialize;

use super::Outcome;
use super::context::{Context, engine_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct TruthArgs {
    /// The database
    #[arg(long, value_name = "NAME")]
    database: String,
    /// The file to write, which must not exist; '-' for standard output
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Hash the rows of every table and every large object as well, which reads all of them
    #[arg(long)]
    hash: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// How long it may take
    #[arg(long, value_name = "TIME", default_value = "24h")]
    timeout: Span,
}

/// Another server than the configured one.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerArgs {
    /// Server, or directory of its socket, instead of the configured one
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Port instead of the configured one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Role instead of the configured one
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl ServerArgs {
    pub fn apply(&self, options: ConnectOptions) -> ConnectOptions {
        let with = |options: ConnectOptions, keyword: &str, value: Option<String>| match value {
            Some(value) => options.with(keyword, &value),
            None => options,
        };
        // A service or an address would overrule the host.
        let options = if self.host.is_some() { options.without("service").without("hostaddr") } else { options };
        let options = with(options, "host", self.host.clone());
        let options = with(options, "port", self.port.map(|port| port.to_string()));
        with(options, "user", self.user.clone())
    }
}

#[derive(Serialize)]
struct TruthDocument {
    schema: u32,
    database: String,
    to: String,
    hashed: bool,
    objects: u64,
    tables: u64,
    rows: u64,
    text_bytes: u64,
    duration_ms: u64,
    unread: u64,
    examples: Vec<String>,
}

pub fn run(args: &TruthArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let to_stdout = args.to == Path::new("-");
    if to_stdout && global.json {
        return Err(Failure::usage("E-TRUTH-STDOUT", "standard output cannot hold both the truth and a document")
            .hint("give a file, or leave --json out"));
    }
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let connect = args.server.apply(context.connect_options()?);
    let options = TruthOptions { hashes: args.hash, jobs: context.jobs(), within: args.timeout.0 };
    let summary = if to_stdout {
        let (summary, _) =
            take(&connect, &args.database, &options, &context.ctx, std::io::stdout().lock()).map_err(engine_failure)?;
        done(args, &summary).lines().for_each(|line| context.ctx.progress.note(line));
        summary
    } else {
        let summary = into_file(&connect, args, &options, &context.ctx)?;
        if !global.says_nothing() {
            output::result(global.form(), &document(args, &summary), || done(args, &summary))?;
        }
        summary
    };
    summary.examples.iter().for_each(|example| output::warning(&format!("not read: {example}")));
    Ok(if summary.unread > 0 { Exit::Warnings } else { Exit::Done })
}

/// Under a name of its own until it is whole.
fn into_file(
    connect: &ConnectOptions,
    args: &TruthArgs,
    options: &TruthOptions,
    ctx: &Ctx,
) -> Result<Summary, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::failed("E-TRUTH-WRITE", format!("{}: {e}", args.to.display()));
    if args.to.symlink_metadata().is_ok() {
        return Err(Failure::refused("E-TRUTH-EXISTS", format!("{} is there already", args.to.display()))
            .hint("give a file that does not exist"));
    }
    let mut partial = args.to.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
    let file = file.map_err(|e| Failure::failed("E-TRUTH-WRITE", format!("{}: {e}", partial.display())))?;
    let written = take(connect, &args.database, options, ctx, BufWriter::new(file)).map_err(engine_failure).and_then(
        |(summary, file)| {
            let file: File = file.into_inner().map_err(|e| failed(&e))?;
            file.sync_all().map_err(|e| failed(&e))?;
            std::fs::hard_link(&partial, &args.to).map_err(|e| failed(&e))?;
            Ok(summary)
        },
    );
    let removed = std::fs::remove_file(&partial);
    let summary = written?;
    removed.map_err(|e| failed(&e))?;
    Ok(summary)
}

fn document(args: &TruthArgs, summary: &Summary) -> TruthDocument {
    TruthDocument {
        schema: SCHEMA,
        database: args.database.clone(),
        to: args.to.to_string_lossy().into_owned(),
        hashed: args.hash,
        objects: summary.objects,
        tables: summary.tables,
        rows: summary.rows,
        text_bytes: summary.text_bytes,
        duration_ms: u64::try_from(summary.took.as_millis()).unwrap_or(u64::MAX),
        unread: summary.unread,
        examples: summary.examples.clone(),
    }
}

fn done(args: &TruthArgs, summary: &Summary) -> String {
    let hashed =
        if args.hash { format!(", {} of text hashed", human_bytes(summary.text_bytes)) } else { String::new() };
    format!(
        "{} objects, {} rows in {} tables{hashed}, in {}\n",
        summary.objects,
        summary.rows,
        summary.tables,
        human_duration(summary.took)
    )
}

/// Writes a file that must not exist, readable by its owner alone.
pub fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed("E-FILE", format!("writing {}: {e}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}
