//! `completions` and `man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Outcome};
use crate::failure::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

pub fn completions(args: CompletionsArgs) -> Result<Outcome, Failure> {
    let mut out = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), "pgark", &mut out);
    output::text(&String::from_utf8_lossy(&out))?;
    Ok(Exit::Done)
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the pages of all commands there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the reference of all commands as one document in Markdown
    #[arg(long, conflicts_with = "dir")]
    markdown: bool,
}

pub fn man(args: ManArgs) -> Result<Outcome, Failure> {
    let failed = |e: std::io::Error| Failure::failed("E-FILE", format!("writing the manual: {e}"));
    match args.dir {
        None if args.markdown => output::text(&super::markdown::reference(Cli::command()))?,
        Some(dir) => clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?,
        None => {
            let mut out = vec![];
            clap_mangen::Man::new(Cli::command()).render(&mut out).map_err(failed)?;
            output::text(&String::from_utf8_lossy(&out))?;
        }
    }
    Ok(Exit::Done)
}
