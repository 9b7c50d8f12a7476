//! `config check` and `config explain`.

use clap::{Args, Subcommand};

use super::Outcome;
use super::context::Context;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read the configuration, with the server's certificates, and say what is wrong, or what is in force
    Check,
    /// Show the effective value of a key, or of all, and where it came from
    Explain {
        /// Such as clusters.main.pgdata; every key when left out
        key: Option<String>,
    },
}

/// Certificates and keys that the server could not use.
fn tls(context: &Context) -> Result<(), Failure> {
    let Some(files) = context.settings.server.tls_files() else { return Ok(()) };
    match pgark_server::http::tls::load(&files) {
        Ok(_) => Ok(()),
        Err(e) => Err(super::serve::tls_failure(&e)),
    }
}

pub fn run(args: ConfigArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    match args.command {
        ConfigCommand::Check => {
            tls(&context)?;
            super::serve::check_oidc(&context.settings)?;
            let report = context.settings.check_report();
            output::result(global.form(), &report, || report.to_text())?;
        }
        ConfigCommand::Explain { key } => {
            let report = context.settings.explain(key.as_deref())?;
            output::result(global.form(), &report, || report.to_text())?;
        }
    }
    Ok(Exit::Done)
}
