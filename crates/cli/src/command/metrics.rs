//! `metrics`: what the server's `/metrics` says of the clusters, for machines without one.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use pgark_server::known::Known;
use pgark_server::serve::Shared;
use pgark_server::{metrics, refresh};

use super::context::Context;
use super::{Outcome, serve};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Write them there, in one step, for node_exporter's textfile collector; its name ends with .prom
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,
}

/// Of all configured clusters, or of the one that is named.
pub fn run(args: &MetricsArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if args.textfile.as_ref().is_some_and(|file| file.extension().is_none_or(|e| e != "prom")) {
        return Err(Failure::usage("E-METRICS-FILE", "the name of the file does not end with .prom")
            .hint("node_exporter reads no other files"));
    }
    let context = Context::new(global)?.admitting_writers();
    let program = serve::program(global, Shared::default())?;
    let mut config = serve::config(&context.settings)?;
    if let Some(name) = &global.cluster {
        config.clusters.retain(|c| c.name == *name);
    }
    let look = |name: &str| Arc::new(Known::of(Some(&refresh::look(&program, name)), name));
    let looked = config.clusters.iter().map(|c| (c, look(&c.name)));
    let known: Vec<_> = looked.map(|(c, known)| (c, Arc::clone(&known), known.figures.room.clone())).collect();
    let mut exit = Exit::Done;
    for (cluster, known, _) in &known {
        if let Some(why) = &known.error {
            output::warning(&format!("cluster {}: {why}", cluster.name));
            exit = Exit::Warnings;
        }
    }
    let registry = metrics::of_clusters(&known);
    let text = metrics::textfile(&registry)
        .map_err(|e| Failure::failed("E-INTERNAL", format!("the metrics cannot be written: {e}")))?;
    match &args.textfile {
        None => output::text(&text)?,
        Some(file) => replace(file, &text)
            .map_err(|e| Failure::failed("E-FILE", format!("{} cannot be written: {e}", file.display())))?,
    }
    Ok(exit)
}

/// Who reads it meanwhile reads the old one or the new one. Everybody may read it: there is nothing secret in it.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let part = file.with_file_name(name);
    let written = || {
        let mut open = OpenOptions::new();
        let mut to = open.write(true).create_new(true).mode(0o644).open(&part)?;
        to.write_all(text.as_bytes())?;
        to.sync_all()?;
        std::fs::rename(&part, file)
    };
    let done = written();
    if done.is_err() {
        // What is left of it, if anything is.
        let _ = std::fs::remove_file(&part);
    }
    done
}
