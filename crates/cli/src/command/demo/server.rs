//! A PostgreSQL server of ours: made, started in the foreground of its own process group, and stopped by its process
//! id. No shell is involved.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pgark_engine::Ctx;
use pgark_engine::cluster::{ClusterError, ConnectOptions, Connection, Deadline};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, test_kill_process, waitpid};

use super::place::{Place, failed};
use crate::command::context::{CONNECT_TIMEOUT, engine_failure};
use crate::failure::Failure;

const POLL: Duration = Duration::from_millis(50);
const START_WITHIN: Duration = Duration::from_secs(60);
/// For PostgreSQL's "fast" shutdown, and once more for its "immediate" one.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Loading and hashing a large data set.
const STATEMENT_WITHIN: Duration = Duration::from_secs(3600);

pub fn pg(error: ClusterError) -> Failure {
    engine_failure(error.into())
}

/// Stopped when dropped.
pub struct Server {
    pub connect: ConnectOptions,
    dir: PathBuf,
    pid: Option<Pid>,
}

impl Server {
    /// Takes over a server that this process started.
    pub fn adopt(dir: PathBuf, pid: u32, sockets: &Path, port: u16) -> Result<Self, Failure> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::failed("E-PROCESS", "the server has no process id"))?;
        Ok(Server { connect: connect_options(sockets, port), dir, pid: Some(pid) })
    }

    pub fn open(&self) -> Result<Connection, Failure> {
        Connection::open(&self.connect, CONNECT_TIMEOUT).map_err(pg)
    }

    /// Lets it run on.
    pub fn leave(mut self) {
        self.pid = None;
    }

    pub fn stop(&mut self) -> Result<(), Failure> {
        let Some(pid) = self.pid.take() else { return Ok(()) };
        for signal in [Signal::INT, Signal::QUIT] {
            if ended(pid)? {
                return Ok(());
            }
            kill_process(pid, signal).map_err(|e| self.unstoppable(e))?;
            let deadline = Deadline::after(STOP_WITHIN);
            while !deadline.has_passed() {
                if ended(pid)? {
                    return Ok(());
                }
                std::thread::sleep(POLL);
            }
        }
        Err(self.unstoppable("it does not end"))
    }

    fn unstoppable(&self, why: impl std::fmt::Display) -> Failure {
        Failure::failed("E-STOP", format!("the server in {} was not stopped: {why}", self.dir.display()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(failure) = self.stop() {
            tracing::error!(target: "pgark", %failure, "a server of the demo may still run");
        }
    }
}

/// Whether our child is gone. Collecting it here and nowhere else keeps its number from being given to another.
fn ended(pid: Pid) -> Result<bool, Failure> {
    match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(status) => Ok(status.is_some()),
        Err(Errno::CHILD) => Ok(true),
        Err(Errno::INTR) => Ok(false),
        Err(e) => Err(Failure::failed("E-PROCESS", format!("waiting for the server: {e}"))),
    }
}

pub fn connect_options(sockets: &Path, port: u16) -> ConnectOptions {
    let pairs = [
        ("host", sockets.to_string_lossy().into_owned()),
        ("port", port.to_string()),
        ("dbname", "postgres".to_owned()),
    ];
    let mut options = ConnectOptions::new(pairs.map(|(k, v)| (k.to_owned(), v)));
    options.statement_timeout = STATEMENT_WITHIN;
    options
}

/// `initdb`, settings, start, and the wait until it answers.
pub fn create(bin: &Path, place: &Place, ctx: &Ctx) -> Result<Server, Failure> {
    let dir = place.source();
    let initdb = bin.join("initdb");
    let made = Command::new(&initdb)
        .args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-sync", "-D"])
        .arg(&dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed("starting", &initdb, &e))?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        let said = said.trim().lines().last().unwrap_or("no message").to_owned();
        return Err(Failure::failed("E-DEMO-INITDB", format!("initdb ended with {}: {said}", made.status)));
    }
    let conf = dir.join("postgresql.conf");
    let settings = place.server_settings()?;
    let written = OpenOptions::new().append(true).open(&conf).and_then(|mut f| f.write_all(settings.as_bytes()));
    written.map_err(|e| failed("writing", &conf, &e))?;
    let mut server = launch(bin, &dir, place)?;
    wait_until_it_answers(&mut server, ctx, &place.dir.join("source.log"))?;
    Ok(server)
}

fn launch(bin: &Path, dir: &Path, place: &Place) -> Result<Server, Failure> {
    let log_path = place.dir.join("source.log");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let log = log.map_err(|e| failed("creating", &log_path, &e))?;
    let program = bin.join("postgres");
    let child = Command::new(&program)
        .arg("-D")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(|e| failed("creating", &log_path, &e))?)
        .stderr(log)
        // Ctrl-C on the terminal is for us alone.
        .process_group(0)
        .current_dir(dir)
        .spawn()
        .map_err(|e| failed("starting", &program, &e))?;
    Server::adopt(dir.to_owned(), child.id(), &place.dir, place.port)
}

fn wait_until_it_answers(server: &mut Server, ctx: &Ctx, log: &Path) -> Result<(), Failure> {
    let deadline = Deadline::after(START_WITHIN);
    loop {
        ctx.check_cancelled().map_err(engine_failure)?;
        let last = match Connection::open(&server.connect, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(e) => e,
        };
        let pid = server.pid;
        if pid.is_some_and(|pid| ended(pid).unwrap_or(false)) {
            server.pid = None;
            return Err(Failure::failed("E-DEMO-START", format!("PostgreSQL did not start{}", complaint(log))));
        }
        if deadline.has_passed() {
            return Err(pg(last));
        }
        std::thread::sleep(POLL);
    }
}

/// The last complaint in a server's log; a log that cannot be read has none.
fn complaint(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let worst = text.lines().rev().find(|l| l.contains("FATAL:") || l.contains("PANIC:"));
    worst.map(|l| format!(": {}", l.trim())).unwrap_or_default()
}

/// Servers of an inner process that died without stopping them. The number in `postmaster.pid` counts only when that
/// process works in this very directory.
pub fn stop_left_behind(dir: &Path) -> Result<(), Failure> {
    for name in ["source", "recovered"] {
        let data = dir.join(name);
        let Some(pid) = postmaster(&data) else { continue };
        match kill_process(pid, Signal::QUIT) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => {
                return Err(Failure::failed(
                    "E-STOP",
                    format!("the server in {} was not stopped: {e}", data.display()),
                ));
            }
        }
        let deadline = Deadline::after(STOP_WITHIN);
        while test_kill_process(pid).is_ok() && postmaster(&data).is_some() && !deadline.has_passed() {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

fn postmaster(data: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == fs::canonicalize(data).ok()?).then(|| Pid::from_raw(pid)).flatten()
}
