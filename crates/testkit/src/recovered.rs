//! A restored data directory, started by hand as an operator would: `pg_ctl -o "-p PORT -k DIR"` and no environment.
//!
//! Invariant: the start status of `pg_ctl` is never taken for the end of recovery; only a server that answers, or one
//! that is gone, decides.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{end_server, postmaster_of};
use crate::os::{Scratch, as_postgres, run_bounded, wait_until};
use crate::psql::{Address, connection_string, try_psql};
use crate::servers::Server;

const RECOVERY_LIMIT: Duration = Duration::from_secs(180);

/// How recovery of a restored directory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The server accepts writes.
    Promoted,
    /// Replay stopped at its target and waits.
    Paused,
    /// The server is not running: it refused to start, died, or shut down as it was told.
    Down,
}

/// A server on a restored directory. Dropping it stops the server; the directory stays for its owner to remove.
#[derive(Debug)]
pub struct Recovered {
    server: Server,
    data: PathBuf,
    address: Address,
    log: PathBuf,
    ending: Ending,
}

impl Recovered {
    /// Starts `data` and waits until its recovery has ended one way or another.
    pub fn start(server: &Server, scratch: &Scratch, data: &Path) -> Recovered {
        let name = data.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let socket_dir = scratch.join(format!("s-{name}"));
        if !socket_dir.exists() {
            scratch.dir(format!("s-{name}"));
        }
        let log = socket_dir.join("log");
        let address = Address { socket_dir, port: 54_321 };
        let mut command = as_postgres(server.program("pg_ctl"));
        command.args(["start", "-w", "-t", "170", "-s", "-D"]).arg(data).arg("-l").arg(&log);
        command.arg("-o").arg(format!("-p {} -k {}", address.port, address.socket_dir.display()));
        let output = run_bounded(command, b"", RECOVERY_LIMIT).expect("run pg_ctl");
        let mut recovered =
            Recovered { server: server.clone(), data: data.to_owned(), address, log, ending: Ending::Down };
        // pg_ctl also fails when the server shut down by itself, for instance at a target with the action shutdown.
        let started = output.status.is_some_and(|status| status.success());
        if started || postmaster_of(data).is_some() {
            recovered.ending = recovered.wait_for_the_end();
        }
        recovered
    }

    fn wait_for_the_end(&self) -> Ending {
        wait_until(&format!("recovery ends ({})", self.data.display()), RECOVERY_LIMIT, || {
            if postmaster_of(&self.data).is_none() {
                return Some(Ending::Down);
            }
            let sql = "select pg_is_in_recovery(), pg_is_in_recovery() and pg_is_wal_replay_paused()";
            match try_psql(&self.address, "postgres", sql).as_deref() {
                Ok("f|f") => Some(Ending::Promoted),
                Ok("t|t") => Some(Ending::Paused),
                // Starting up, replaying, or on its way down: look again.
                _ => None,
            }
        })
    }

    pub fn ending(&self) -> Ending {
        self.ending
    }

    pub fn expect(self, ending: Ending) -> Recovered {
        assert_eq!(self.ending, ending, "server log:\n{}", self.log());
        self
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    pub fn connection_string(&self, database: &str) -> String {
        connection_string(&self.address.socket_dir, self.address.port, database)
    }

    pub fn psql(&self, sql: &str) -> String {
        self.psql_db("postgres", sql)
    }

    pub fn psql_db(&self, database: &str, sql: &str) -> String {
        self.try_psql_db(database, sql)
            .unwrap_or_else(|error| panic!("psql in {database:?}: {error}\n{sql}\nserver log:\n{}", self.log()))
    }

    pub fn try_psql_db(&self, database: &str, sql: &str) -> Result<String, String> {
        try_psql(&self.address, database, sql)
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Every heap and index of every database checked with `pg_amcheck` (15 only: the other majors come without it).
    /// Returns false when this server has no `pg_amcheck`.
    pub fn amcheck(&self) -> bool {
        if self.server.major() != 15 {
            return false;
        }
        let mut command = as_postgres(self.server.program("pg_amcheck"));
        command.args(["--all", "--install-missing", "--heapallindexed", "--username=postgres"]);
        command.arg("--host").arg(&self.address.socket_dir).arg(format!("--port={}", self.address.port));
        let output = run_bounded(command, b"", Duration::from_secs(180)).expect("run pg_amcheck");
        assert!(
            output.status.is_some_and(|status| status.success()) && output.stdout.is_empty(),
            "pg_amcheck found damage:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        true
    }

    /// Stops the server in order and lets `pg_checksums` read every page.
    pub fn verify_checksums(self) {
        if self.server.major() != 15 || self.psql("show data_checksums") == "off" {
            return;
        }
        let mut stop = as_postgres(self.server.program("pg_ctl"));
        stop.args(["stop", "-w", "-s", "-m", "fast", "-D"]).arg(&self.data);
        crate::os::must("pg_ctl stop", stop);
        let mut check = as_postgres(self.server.program("pg_checksums"));
        check.args(["--check", "-D"]).arg(&self.data);
        crate::os::must("pg_checksums --check", check);
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        end_server(&self.server, &self.data);
    }
}
