//! A throw-away PostgreSQL cluster on a unix socket of its own.
//!
//! Invariant: only the postmaster that runs in our own data directory is ever signalled, and it is gone after `drop`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::os::{self, Scratch, as_postgres, give_to_postgres, must, run_bounded, wait_until};
use crate::psql::{Address, connection_string, quote_identifier, quote_literal, try_psql};
use crate::servers::Server;

const START_LIMIT: Duration = Duration::from_secs(90);

/// How `pg_ctl stop` ends the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    Fast,
    Immediate,
}

/// What a new cluster looks like. `wal_segsize_mb` and checksums are fixed at `initdb`.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    server: Server,
    wal_segsize_mb: u32,
    checksums: bool,
    conf: Vec<String>,
    tablespaces: Vec<(String, String)>,
    archive_command: String,
}

impl ClusterBuilder {
    pub fn wal_segsize_mb(mut self, megabytes: u32) -> Self {
        self.wal_segsize_mb = megabytes;
        self
    }

    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// One more line of `postgresql.conf`.
    pub fn conf(mut self, line: impl Into<String>) -> Self {
        self.conf.push(line.into());
        self
    }

    /// A tablespace of this name in a directory of this name.
    pub fn tablespace(mut self, name: &str, directory: &str) -> Self {
        self.tablespaces.push((name.to_owned(), directory.to_owned()));
        self
    }

    pub fn archive_command(mut self, command: impl Into<String>) -> Self {
        self.archive_command = command.into();
        self
    }

    /// Runs `initdb`, writes the configuration, starts the server and creates the tablespaces.
    pub fn start(self, scratch: &Scratch, name: &str) -> TestCluster {
        let home = scratch.dir(name);
        let data = home.join("data");
        let mut initdb = as_postgres(self.server.program("initdb"));
        initdb.arg("-D").arg(&data);
        initdb.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync"]);
        initdb.arg(format!("--wal-segsize={}", self.wal_segsize_mb));
        match (self.checksums, self.server.major()) {
            (true, _) => drop(initdb.arg("--data-checksums")),
            (false, 18..) => drop(initdb.arg("--no-data-checksums")),
            (false, _) => {}
        }
        must("initdb", initdb);
        let mut cluster = TestCluster::at(&self.server, home, data);
        cluster.append_conf(&self.settings());
        cluster.start();
        for (tablespace, directory) in &self.tablespaces {
            cluster.create_tablespace(tablespace, directory);
        }
        cluster
    }

    /// `fsync = off`: the machine does not lose power in these tests, the repository's file system does.
    fn settings(&self) -> String {
        let mut text = String::from(
            "shared_buffers = 32MB\nmax_connections = 40\nlisten_addresses = ''\nfsync = off\n\
             wal_level = replica\nmax_wal_senders = 8\nhot_standby = on\nmax_wal_size = 256MB\n\
             track_commit_timestamp = on\ntimezone = 'UTC'\nlc_messages = 'C'\n",
        );
        if !self.archive_command.is_empty() {
            text.push_str(&format!(
                "archive_mode = on\narchive_command = '{}'\n",
                self.archive_command.replace('\\', "\\\\").replace('\'', "''")
            ));
        }
        for line in &self.conf {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// A running (or stopped) cluster of our own.
#[derive(Debug)]
pub struct TestCluster {
    server: Server,
    home: PathBuf,
    data: PathBuf,
    port: u16,
}

impl TestCluster {
    pub fn builder(server: &Server) -> ClusterBuilder {
        ClusterBuilder {
            server: server.clone(),
            wal_segsize_mb: 16,
            checksums: true,
            conf: Vec::new(),
            tablespaces: Vec::new(),
            archive_command: String::new(),
        }
    }

    fn at(server: &Server, home: PathBuf, data: PathBuf) -> TestCluster {
        // The port only names the socket; it still differs per cluster so that a mixed-up address cannot answer.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        let mut cluster = TestCluster { server: server.clone(), home, data, port };
        cluster.append_conf("");
        cluster
    }

    /// Appends to `postgresql.conf`; the address lines come with every call because the last one wins.
    pub fn append_conf(&mut self, lines: &str) {
        let path = self.data.join("postgresql.conf");
        let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open postgresql.conf");
        let address = format!("port = {}\nunix_socket_directories = '{}'\n", self.port, self.home.display());
        file.write_all(format!("\n{lines}\n{address}").as_bytes()).expect("write postgresql.conf");
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    pub fn socket_dir(&self) -> &Path {
        &self.home
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> Address {
        Address { socket_dir: self.home.clone(), port: self.port }
    }

    pub fn connection_string(&self, database: &str) -> String {
        connection_string(&self.home, self.port, database)
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Command {
        let mut command = as_postgres(self.server.program("pg_ctl"));
        command.args(arguments).arg("-D").arg(&self.data);
        command
    }

    pub fn start(&mut self) {
        let log = self.home.join("log");
        let mut command = self.pg_ctl(&["start", "-w", "-t", "90", "-s"]);
        command.arg("-l").arg(&log);
        let output = run_bounded(command, b"", START_LIMIT).expect("run pg_ctl");
        assert!(output.status.is_some_and(|status| status.success()), "server does not start:\n{}", self.log());
    }

    pub fn stop(&mut self, mode: StopMode) {
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        must("pg_ctl stop", self.pg_ctl(&["stop", "-w", "-t", "90", "-s", "-m", mode]));
    }

    /// SIGKILL to the postmaster: what a crash of the machine looks like to its clients. The cluster can be started
    /// again afterwards.
    pub fn kill(&mut self) {
        let pid = self.postmaster().expect("the server runs");
        os::kill(pid);
        let data = self.data.canonicalize().expect("the data directory");
        wait_until("the postmaster and its children are gone", START_LIMIT, || {
            (!os::any_process_in(&data)).then_some(())
        });
        // A zombie whose parent is slow to reap it would pass for a running server at the next start.
        fs::remove_file(self.data.join("postmaster.pid")).expect("remove the stale postmaster.pid");
        let lock = self.home.join(format!(".s.PGSQL.{}.lock", self.port));
        fs::remove_file(lock).expect("remove the stale lock of the socket");
    }

    pub fn reload(&self) {
        self.psql("select pg_reload_conf()");
    }

    pub fn promote(&self) {
        self.psql("select pg_promote(true, 90)");
        wait_until("the promotion ends", START_LIMIT, || {
            (self.psql("select pg_is_in_recovery()") == "f").then_some(())
        });
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    pub fn psql(&self, sql: &str) -> String {
        self.psql_db("postgres", sql)
    }

    /// Panics with the server's answer on any error.
    pub fn psql_db(&self, database: &str, sql: &str) -> String {
        self.try_psql_db(database, sql).unwrap_or_else(|error| panic!("psql in {database:?}: {error}\n{sql}"))
    }

    pub fn try_psql_db(&self, database: &str, sql: &str) -> Result<String, String> {
        try_psql(&self.address(), database, sql)
    }

    /// Ends the current WAL segment and waits until the archiver has stored it. Returns the segment's name.
    pub fn switch_and_archive(&self) -> String {
        // Something must be in the segment, or there is nothing to switch.
        let segment = self.psql(
            "select pg_logical_emit_message(false, 'test', 'x') is null \\g /dev/null\n\
             select pg_walfile_name(pg_switch_wal())",
        );
        self.wait_archived(&segment);
        segment
    }

    pub fn wait_archived(&self, segment: &str) {
        let done = self.data.join("pg_wal/archive_status").join(format!("{segment}.done"));
        let file = self.data.join("pg_wal").join(segment);
        let what = format!("{segment} is archived (server log: {})", self.home.join("log").display());
        wait_until(&what, Duration::from_secs(150), || (done.exists() || !file.exists()).then_some(()));
    }

    pub fn create_tablespace(&self, name: &str, directory: &str) -> PathBuf {
        let path = self.home.join(directory);
        fs::create_dir(&path).expect("directory of a tablespace");
        give_to_postgres(&path);
        self.psql(&format!(
            "create tablespace {} location {}",
            quote_identifier(name),
            quote_literal(&path.to_string_lossy())
        ));
        path
    }

    /// A streaming standby: the stopped data directory is copied, which works alike for every major.
    pub fn standby(&mut self, scratch: &Scratch, name: &str) -> TestCluster {
        let home = scratch.dir(name);
        let data = home.join("data");
        self.stop(StopMode::Fast);
        let mut copy = as_postgres("cp");
        copy.arg("-a").arg(&self.data).arg(&data);
        must("copy the data directory", copy);
        self.start();
        let mut standby = TestCluster::at(&self.server, home, data);
        let primary = self.connection_string("postgres").replace('\'', "''");
        standby.append_conf(&format!("primary_conninfo = '{primary}'\nrecovery_target_timeline = 'latest'"));
        let signal = standby.data.join("standby.signal");
        fs::write(&signal, b"").expect("standby.signal");
        give_to_postgres(&signal);
        standby.start();
        standby
    }

    /// Waits until this standby has replayed all that `primary` has written so far.
    pub fn wait_caught_up(&self, primary: &TestCluster) {
        let lsn = primary.psql("select pg_current_wal_lsn()");
        let sql = format!("select pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
        wait_until("the standby has caught up", START_LIMIT, || (self.psql(&sql) == "t").then_some(()));
    }

    /// The pid in `postmaster.pid`, when that process really works in our data directory.
    fn postmaster(&self) -> Option<u32> {
        postmaster_of(&self.data)
    }
}

pub(crate) fn postmaster_of(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == data.canonicalize().ok()?).then_some(pid)
}

/// Ends the postmaster of `data`, whatever state it is in.
pub(crate) fn end_server(server: &Server, data: &Path) {
    let Some(pid) = postmaster_of(data) else { return };
    let mut stop = as_postgres(server.program("pg_ctl"));
    stop.args(["stop", "-w", "-t", "20", "-s", "-m", "immediate", "-D"]).arg(data);
    let stopped = run_bounded(stop, b"", Duration::from_secs(30));
    if !stopped.is_ok_and(|output| output.status.is_some_and(|status| status.success())) && os::is_alive(pid) {
        os::kill(pid);
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        end_server(&self.server, &self.data);
    }
}
