//! One table out of one server and into the other, by PostgreSQL's own programs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::over::Carry;
use crate::cluster::{Connection, Handover, TableName, TableSession};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::child::{self, Running};
use crate::logical::restore::read_toc;

pub(super) fn dump(there: &TableSession, carry: &Carry<'_>, source: &TableName, ctx: &Ctx) -> Result<PathBuf> {
    let file = carry.dir.join("table.dump");
    let conn = there.connection();
    let mut command = reaching(conn, &conn.handover(), &carry.tools.dump)?;
    command.args([
        "--format=custom",
        "--compress=1",
        "--no-sync",
        "--strict-names",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        "--no-security-labels",
        "--no-tablespaces",
    ]);
    command.arg(format!("--table={}", exact_pattern(source)));
    command.arg(format!("--file={}", file.display()));
    run(command, carry.dir, ctx)?;
    // What it holds is what would be loaded: this one table, and what belongs to it.
    let dumped = File::open(&file).map_err(|e| EngineError::file("opening", &file, e))?;
    let tables = read_toc(&dumped)?.entries.iter().filter(|entry| entry.kind == b"TABLE").count();
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
    let conn = here.connection();
    let mut command = reaching(conn, &conn.handover_to_write()?, &carry.tools.restore)?;
    command.args(["--single-transaction", "--exit-on-error", "--no-privileges", "--no-tablespaces"]);
    if !owner_kept {
        command.arg("--no-owner");
    }
    command.arg("--").arg(dump);
    run(command, carry.dir, ctx)
}

/// A program that goes where this session is.
fn reaching(conn: &Connection, handover: &Handover, program: &Path) -> Result<Command> {
    let database = conn.effective_options().into_iter().find(|(name, _)| name == "dbname").map(|(_, value)| value);
    child::command(program, handover, &database.unwrap_or_default())
}

fn run(mut command: Command, dir: &Path, ctx: &Ctx) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    command.current_dir(dir).stdout(Stdio::null());
    let (status, said) = Running::start(command)?.wait_for(ctx)?;
    match status.success() {
        true => Ok(()),
        false => Err(EngineError::failed(
            "E-PG-PROGRAM",
            format!("{name} ended with {status}: {}", said.lines.join("; ")),
            "nothing was left in the live database: what it loads, it loads in one transaction",
        )),
    }
}

/// For `pg_dump --table`: quoted, nothing in it is a pattern.
fn exact_pattern(table: &TableName) -> String {
    let part = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    format!("{}.{}", part(&table.schema), part(&table.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_pattern() {
        let table = TableName { schema: "a.b".to_owned(), name: "it\"s *".to_owned() };
        assert_eq!(exact_pattern(&table), "\"a.b\".\"it\"\"s *\"");
    }
}
