//! `repo-ls` and `repo-get`: the repository as it lies there.

use std::io::Write;

use clap::Args;
use pgark_repo::RepoError;
use pgark_repo::browse;
use pgark_repo::store::ObjectName;
use serde_json::json;

use super::Outcome;
use super::context::{Context, engine_failure};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Below this, such as clusters/main/backups; everything when left out
    #[arg(default_value = "")]
    path: String,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// The object, as 'repo-ls' names it
    object: String,
    /// The bytes as they are stored, sealed and compressed
    #[arg(long)]
    raw: bool,
}

/// One line for each object, or with --json one document with all of them.
pub fn list(args: &ListArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let settings = context.repo_settings()?;
    let prefix = args.path.trim_end_matches('/');
    if !prefix.is_empty() {
        parse(prefix)?;
    }
    let store = context.open_store(&settings, crate::store::Missing::Refuse)?;
    let mut objects = vec![];
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let mut count = 0u64;
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        count += 1;
        if global.json {
            objects.push(json!({"object": stat.name.as_str(), "size_bytes": stat.size}));
        } else if failed.is_none() {
            failed = writeln!(out, "{:>14}  {}", stat.size, stat.name).err();
        }
        Ok(())
    };
    store.list(prefix, &mut visit).map_err(|e| engine_failure(RepoError::from(e).into()))?;
    if let Some(e) = failed {
        return Err(Failure::failed("E-OUTPUT", format!("writing the list: {e}")));
    }
    if global.json {
        output::result(global.form(), &json!({"schema": SCHEMA, "objects": objects}), String::new)?;
    }
    if count == 0 {
        output::warning(&format!("nothing lies under '{prefix}' in {}", store.url()));
    }
    Ok(Exit::Done)
}

const LISTED: &str = "'pgark repo-ls' lists the names";

fn parse(name: &str) -> Result<ObjectName, Failure> {
    ObjectName::parse(name).map_err(|e| Failure::usage("E-REPO-NAME", e.to_string()).hint(LISTED))
}

/// The content on standard output.
pub fn get(args: &GetArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let name = parse(&args.object)?;
    let (_, repo) = context.open_first()?;
    let mut out = std::io::stdout().lock();
    let mut take = |bytes: &[u8]| {
        out.write_all(bytes).map_err(|source| RepoError::System { what: "writing to standard output", source })
    };
    let done = match args.raw {
        true => browse::stored(&repo, &name, &mut take),
        false => browse::content(&repo, &name, &mut take),
    };
    done.map_err(|e| match e.is_not_found() {
        true => Failure::refused("E-REPO-MISSING", e.to_string()).hint(LISTED),
        false => engine_failure(e.into()),
    })?;
    out.flush().map_err(|e| Failure::failed("E-OUTPUT", format!("writing to standard output: {e}")))?;
    Ok(Exit::Done)
}
