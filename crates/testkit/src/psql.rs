//! Questions to a server through psql, and the quoting that keeps names from being read as anything else.
//!
//! Invariant: a database name reaches libpq only as a quoted keyword of a connection string, because libpq expands a
//! bare name that contains `=` and psql takes one with a leading dash for an option.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::os::{as_postgres, run_bounded};

pub(crate) const PSQL: &str = "/usr/lib/postgresql/15/bin/psql";

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub socket_dir: std::path::PathBuf,
    pub port: u16,
}

/// A libpq connection string for `database` on a unix socket.
pub fn connection_string(socket_dir: &Path, port: u16, database: &str) -> String {
    format!(
        "host={} port={port} user=postgres connect_timeout=10 dbname={}",
        quote_keyword(&socket_dir.to_string_lossy()),
        quote_keyword(database)
    )
}

fn quote_keyword(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A literal that means the same whatever `standard_conforming_strings` says.
pub fn quote_literal(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

pub(crate) fn psql_command(address: &Address, database: &str) -> Command {
    let mut command = as_postgres(PSQL);
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
    command.arg(format!("--dbname={}", connection_string(&address.socket_dir, address.port, database)));
    command
}

/// The output of `sql`, without the last newline, or what psql complained about.
pub(crate) fn try_psql(address: &Address, database: &str, sql: &str) -> Result<String, String> {
    let output = run_bounded(psql_command(address, database), sql.as_bytes(), Duration::from_secs(120))
        .map_err(|error| error.to_string())?;
    if output.status.is_some_and(|status| status.success()) {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_name_with_an_equals_sign_stays_one_keyword() {
        let text = connection_string(Path::new("/tmp/s"), 7, "port=1 dbname=it's\\");
        assert_eq!(text, r"host='/tmp/s' port=7 user=postgres connect_timeout=10 dbname='port=1 dbname=it\'s\\'");
    }

    #[test]
    fn identifiers_and_literals_double_their_own_quote() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("a'b\\c"), "E'a''b\\\\c'");
    }
}
