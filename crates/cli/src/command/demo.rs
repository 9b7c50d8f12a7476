//! `demo`
use clap::Args;

use super::Outcome;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};

#[derive(Debug, Args)]
pub struct DemoArgs {}

pub fn run(_args: DemoArgs, _global: &GlobalArgs) -> Result<Outcome, Failure> {
    Ok(Exit::Done)
}
