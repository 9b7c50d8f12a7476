//! One table out of one server and into the other, by PostgreSQL's own programs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::over::Carry;
use super::programs;
use crate::cluster::{TableName, TableSession};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

pub(super) fn dump(there: &TableSession, carry: &Carry<'_>, source: &TableName, ctx: &Ctx) -> Result<PathBuf> {
    let file = carry.dir.join("table.dump");
    let connection = programs::connection_of(there.connection(), carry.tools.version.major, carry.dir)?;
    let pattern = programs::exact_pattern(&source.schema, &source.name);
    let mut arguments: Vec<OsString> = [
        "--format=custom",
        "--compress=1",
        "--no-sync",
        "--strict-names",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        "--no-security-labels",
        "--no-tablespaces",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(format!("--table={pattern}").into());
    arguments.push(format!("--file={}", file.display()).into());
    arguments.push(format!("--dbname={connection}").into());
    programs::run(&carry.tools.dump, &arguments, carry.dir, ctx)?;
    // What the list says is what would be loaded: this one table, and what belongs to it.
    let list = ["--list".into(), "--".into(), file.clone().into_os_string()];
    let listed = programs::run(&carry.tools.restore, &list, carry.dir, ctx)?;
    let tables = listed
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("TABLE") && !line.contains(" TABLE DATA "))
        .count();
    if tables != 1 {
        return Err(EngineError::failed(
            "E-TABLE-DUMP",
            format!("the dump holds {tables} tables instead of one"),
            "please report this",
        ));
    }
    Ok(file)
}

pub(super) fn load(here: &TableSession, carry: &Carry<'_>, dump: &Path, owner_kept: bool, ctx: &Ctx) -> Result<()> {
    let dir = carry.dir.join("live");
    std::fs::create_dir(&dir).map_err(|e| EngineError::file("making", &dir, e))?;
    let connection = programs::connection_of(here.connection(), carry.tools.version.major, &dir)?;
    let mut arguments: Vec<OsString> =
        ["--single-transaction", "--exit-on-error", "--no-privileges", "--no-tablespaces"].map(OsString::from).to_vec();
    if !owner_kept {
        arguments.push("--no-owner".into());
    }
    arguments.push(format!("--dbname={connection}").into());
    arguments.push("--".into());
    arguments.push(dump.as_os_str().to_owned());
    programs::run(&carry.tools.restore, &arguments, carry.dir, ctx).map(drop)
}
