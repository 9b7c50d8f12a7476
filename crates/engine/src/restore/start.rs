//! Starting a restored directory, watching recovery to its planned end, and only then letting it open for
//! writing. That a server started says nothing: recovery may die later, or end early.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_pg::value::Lsn;

use super::resolve::to_timestamp;
use super::{RestorePlan, TargetAction};
use crate::cluster::{ConnectOptions, Connection, Deadline, PauseState, forget_recovery, promote, recovery_state};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

pub const LOG_FILE: &str = "pgark-recovery.log";
const POLL: Duration = Duration::from_millis(200);
const PROMOTE_DEADLINE: Duration = Duration::from_secs(300);
const STOP_DEADLINE: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// So long a server takes to end after its sessions did.
const ENDING: Duration = Duration::from_secs(10);
/// Lines of the log in which a failure of `restore_command` is looked for before what it led to.
const SAID_BEFORE: usize = 6;

#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Directory with `postgres`; searched for when None.
    pub bin: Option<PathBuf>,
    pub port: Option<u16>,
    /// Where the socket goes; the data directory when None.
    pub socket_dir: Option<PathBuf>,
    /// How long recovery may take.
    pub within: Duration,
    /// Settings that overrule every file of the restored cluster.
    pub settings: Vec<(String, String)>,
    /// As whom recovery is watched; by default as libpq decides.
    pub role: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Started {
    pub reached: Lsn,
    pub promoted: bool,
    pub running: bool,
    pub port: u16,
    pub socket_dir: PathBuf,
    pub pid: u32,
    /// When the last transaction ended that was replayed; None when there was none.
    pub last_replayed: Option<Timestamp>,
}

/// Runs recovery and does what the plan's action says. An error leaves the cluster stopped and unopened.
pub fn start(
    to: &Path,
    plan: &RestorePlan,
    action: TargetAction,
    options: &StartOptions,
    ctx: &Ctx,
) -> Result<Started> {
    let bin = find_bin(options, plan)?;
    let socket_dir = options.socket_dir.clone().unwrap_or_else(|| to.to_owned());
    let port = options.port.unwrap_or(5432);
    ctx.progress.note("starting PostgreSQL to recover");
    let mut server = Server::launch(&bin, to, &socket_dir, port, &options.settings)?;
    let connect = connect_options(&socket_dir, port, options.role.as_deref());
    let (reached, last_replayed) = wait_for_end(&mut server, &connect, plan, options, ctx)?;
    let done = |server: &Server, promoted, running| Started {
        reached,
        promoted,
        running,
        port,
        socket_dir: socket_dir.clone(),
        pid: server.child.id(),
        last_replayed,
    };
    match action {
        TargetAction::Pause => {
            server.stop_on_drop = false;
            Ok(done(&server, false, true))
        }
        TargetAction::Shutdown => {
            server.stop()?;
            Ok(done(&server, false, false))
        }
        TargetAction::Promote => {
            ctx.progress.note("the planned end is reached: promoting");
            let promoted = Connection::open(&connect, CONNECT_TIMEOUT)
                .and_then(|conn| promote(&conn, PROMOTE_DEADLINE).map(|()| conn));
            // A server that cannot fetch a history ends while it is promoted.
            let conn = promoted.map_err(|e| server.gone(ENDING).unwrap_or_else(|| e.into()))?;
            server.stop_on_drop = false;
            if let Err(e) = forget_recovery(&conn) {
                ctx.progress.note(&format!("the recovery settings stay in postgresql.auto.conf: {e}"));
            }
            remove_secret(to)?;
            Ok(done(&server, true, true))
        }
    }
}

/// Starts a cluster that has nothing to recover, and waits until it answers. It goes on running.
pub fn start_new(
    bin: &Path,
    data: &Path,
    socket_dir: &Path,
    settings: &[(String, String)],
    within: Duration,
    connect: &ConnectOptions,
    ctx: &Ctx,
) -> Result<()> {
    let mut server = Server::launch(bin, data, socket_dir, 5432, settings)?;
    let deadline = Deadline::after(within);
    loop {
        ctx.check_cancelled()?;
        if let Some(how) = server.ended() {
            let what = format!("PostgreSQL ended while it started ({how}){}", server.complaint());
            return Err(EngineError::failed("E-START", what, "look at the installation of this server"));
        }
        match Connection::open(connect, CONNECT_TIMEOUT) {
            Ok(_) => break,
            Err(e) if deadline.has_passed() => return Err(e.into()),
            Err(_) => std::thread::sleep(POLL),
        }
    }
    server.stop_on_drop = false;
    Ok(())
}

/// Recovery is over; the keys to the WAL are not needed any more.
pub fn remove_secret(to: &Path) -> Result<()> {
    let path = to.join(super::settings::RESTORE_FILE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(EngineError::file("removing", path, e)),
        _ => Ok(()),
    }
}

fn connect_options(socket_dir: &Path, port: u16, role: Option<&str>) -> ConnectOptions {
    let pairs = [
        ("host", socket_dir.to_string_lossy().into_owned()),
        ("port", port.to_string()),
        ("dbname", "postgres".into()),
    ];
    // Whoever names a role names a superuser: of what a role or a database sets, no library is loaded.
    let options = role.map(|_| ("options", "-c session_preload_libraries= -c local_preload_libraries=".to_owned()));
    let role = role.map(|role| ("user", role.to_owned()));
    ConnectOptions::new(pairs.into_iter().chain(role).chain(options).map(|(k, v)| (k.to_owned(), v)))
}

fn find_bin(options: &StartOptions, plan: &RestorePlan) -> Result<PathBuf> {
    let major = plan.record.version_num / 10_000;
    find_server(options.bin.as_deref(), major).map_err(|searched| {
        let searched: Vec<String> = searched.iter().map(|p| p.display().to_string()).collect();
        EngineError::failed(
            "E-PG-BIN",
            format!("no PostgreSQL {major} server found in {}", searched.join(", ")),
            "install it, or say where it is with --pg-bin; the directory is restored and can be started by hand",
        )
    })
}

/// The directory with the server programs of this major version: the one given, else the usual places. An error
/// lists where it was searched for.
pub fn find_server(given: Option<&Path>, major: u32) -> std::result::Result<PathBuf, Vec<PathBuf>> {
    let candidates: Vec<PathBuf> = match given {
        Some(dir) => vec![dir.to_owned()],
        None => vec![
            format!("/usr/lib/postgresql/{major}/bin").into(),
            format!("/usr/pgsql-{major}/bin").into(),
            format!("/usr/local/pgsql-{major}/bin").into(),
            "/usr/local/pgsql/bin".into(),
            "/usr/local/bin".into(),
            "/usr/bin".into(),
        ],
    };
    let found = candidates.iter().find(|dir| version_of(&dir.join("postgres")) == Some(major)).cloned();
    found.ok_or(candidates)
}

fn version_of(postgres: &Path) -> Option<u32> {
    let out = Command::new(postgres).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let version = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The server in the foreground of a process group of its own; no shell is involved.
fn launch(bin: &Path, to: &Path, socket_dir: &Path, port: u16, settings: &[(String, String)]) -> Result<Child> {
    let log_path = to.join(LOG_FILE);
    let failed = |e| EngineError::file("creating", &log_path, e);
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).map_err(failed)?;
    let meta = std::fs::metadata(to).map_err(|e| EngineError::file("looking at", to, e))?;
    let mut command = Command::new(bin.join("postgres"));
    command
        .arg("-D")
        .arg(to)
        .args(["-p", &port.to_string()])
        .arg("-k")
        .arg(socket_dir)
        .args(["-c", "hot_standby=on", "-c", "recovery_target_action=pause", "-c", "logging_collector=off"])
        // At a restartpoint it would clear the archive of the original.
        .args(["-c", "archive_cleanup_command="])
        .args(["-c", "log_destination=stderr", "-c"])
        // The one that is configured may be the original's.
        .arg(format!("external_pid_file={}", to.join("pgark-recovery.pid").display()))
        .args(settings.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]))
        .stdin(Stdio::null())
        .stderr(log.try_clone().map_err(failed)?)
        .stdout(log)
        .process_group(0)
        .current_dir(to);
    if rustix::process::geteuid().is_root() {
        if meta.uid() == 0 {
            return Err(EngineError::refused(
                "E-ROOT",
                "PostgreSQL does not run as root, and root owns the directory",
                "restore as the postgres user",
            ));
        }
        std::os::unix::fs::chown(&log_path, Some(meta.uid()), Some(meta.gid())).map_err(failed)?;
        command.uid(meta.uid()).gid(meta.gid());
    }
    command.spawn().map_err(|e| EngineError::file("starting", bin.join("postgres"), e))
}

struct Server {
    child: Child,
    dir: PathBuf,
    /// Where in its log this start begins.
    log_from: usize,
    stop_on_drop: bool,
}

impl Server {
    fn launch(bin: &Path, dir: &Path, socket_dir: &Path, port: u16, settings: &[(String, String)]) -> Result<Self> {
        let written = std::fs::metadata(dir.join(LOG_FILE)).map_or(0, |meta| meta.len());
        let log_from = usize::try_from(written).unwrap_or(usize::MAX);
        let child = launch(bin, dir, socket_dir, port, settings)?;
        Ok(Server { child, dir: dir.to_owned(), log_from, stop_on_drop: true })
    }

    /// Some(how it ended) when it did.
    fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(e) => Some(e.to_string()),
        }
    }

    /// The failure, when the server ended during recovery, or does so within this time.
    fn gone(&mut self, within: Duration) -> Option<EngineError> {
        let deadline = Deadline::after(within);
        let how = loop {
            match self.ended() {
                Some(how) => break how,
                None if deadline.has_passed() => return None,
                None => std::thread::sleep(POLL),
            }
        };
        Some(EngineError::failed(
            "E-RECOVERY",
            format!("PostgreSQL ended during recovery ({how}){}", self.complaint()),
            format!("see {}; the cluster was not opened", self.dir.join(LOG_FILE).display()),
        ))
    }

    /// What the server complained of since it was started, and what the command that fetches WAL said before that.
    fn complaint(&self) -> String {
        let log = std::fs::read(self.dir.join(LOG_FILE)).unwrap_or_default();
        complaint_in(&String::from_utf8_lossy(log.get(self.log_from..).unwrap_or_default()))
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| EngineError::failed("E-PROCESS", "the server has no process id", ""))?;
        rustix::process::kill_process(pid, signal)
            .map_err(|e| EngineError::file("stopping the server in", &self.dir, e))
    }

    /// PostgreSQL's "fast" shutdown.
    fn stop(&mut self) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        self.signal(rustix::process::Signal::INT)?;
        let deadline = Deadline::after(STOP_DEADLINE);
        while self.ended().is_none() {
            if deadline.has_passed() {
                self.signal(rustix::process::Signal::QUIT)?;
                return Err(EngineError::failed(
                    "E-STOP",
                    "the recovered server did not stop in time",
                    "look at its log",
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stop_on_drop
            && let Err(e) = self.stop()
        {
            tracing::error!(%e, "the server that did not recover as planned could not be stopped");
        }
    }
}

/// The last complaint in the log. One that `restore_command` gave a reason for says more than any other: a session that
/// comes too early or too late has a complaint of its own.
fn complaint_in(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    let said_before = |at: usize| {
        let near = lines.get(at.saturating_sub(SAID_BEFORE)..at).unwrap_or_default();
        near.iter().rev().find(|line| line.starts_with("E-"))
    };
    let complaints = lines.iter().enumerate().rev().filter(|(_, l)| l.contains("FATAL:") || l.contains("PANIC:"));
    let mut all = complaints.map(|(at, line)| (line, said_before(at))).collect::<Vec<_>>().into_iter();
    match all.clone().find(|(_, said)| said.is_some()).or_else(|| all.next()) {
        Some((line, Some(said))) => format!(": {line}; {said}"),
        Some((line, None)) => format!(": {line}"),
        None => String::new(),
    }
}

fn wait_for_end(
    server: &mut Server,
    connect: &ConnectOptions,
    plan: &RestorePlan,
    options: &StartOptions,
    ctx: &Ctx,
) -> Result<(Lsn, Option<Timestamp>)> {
    let began = Instant::now();
    let mut connection: Option<Connection> = None;
    loop {
        ctx.check_cancelled()?;
        if let Some(gone) = server.gone(Duration::ZERO) {
            return Err(gone);
        }
        if began.elapsed() > options.within {
            return Err(EngineError::failed(
                "E-RECOVERY-TIMEOUT",
                format!("recovery did not reach its end within {} s", options.within.as_secs()),
                "give it more time with --recovery-timeout; the cluster was not opened",
            ));
        }
        std::thread::sleep(POLL);
        let state = match connection.take().map_or_else(|| Connection::open(connect, CONNECT_TIMEOUT), Ok) {
            Ok(c) => {
                let state = recovery_state(&c);
                connection = state.is_ok().then_some(c);
                state
            }
            Err(e) => Err(e),
        };
        let Ok(state) = state else { continue };
        if !state.in_recovery {
            return Err(short(plan, state.replay_lsn, "the server opened by itself"));
        }
        if state.pause == Some(PauseState::Paused) {
            let reached = state.replay_lsn.unwrap_or(Lsn::INVALID);
            return if same_place(reached, plan.stop.end) {
                Ok((reached, state.last_replayed_time.map(to_timestamp)))
            } else {
                Err(short(plan, Some(reached), "recovery stopped elsewhere"))
            };
        }
    }
}

fn short(plan: &RestorePlan, reached: Option<Lsn>, what: &str) -> EngineError {
    let reached = reached.map_or("nothing".to_owned(), |l| l.to_string());
    EngineError::failed(
        "E-RECOVERY-END",
        format!("{what}: it reached {reached}, planned was {}", plan.stop.end),
        "the cluster was stopped and not promoted; 'pgark verify' checks the archive",
    )
}

/// The end of a record and the start of the next differ by a page header where a page ends.
fn same_place(a: Lsn, b: Lsn) -> bool {
    const PAGE: u64 = 8192;
    const LONGEST_HEADER: u64 = 40;
    let page_start = |l: Lsn| if l.0 % PAGE <= LONGEST_HEADER { l.0 - l.0 % PAGE } else { l.0 };
    page_start(a) == page_start(b)
}

#[cfg(test)]
mod tests {
    use super::complaint_in;

    #[test]
    fn a_complaint_names_what_the_command_that_fetches_wal_said() {
        let log = "LOG:  starting\nFATAL:  the database system is starting up\nE-REPO-DAMAGED repository b: x is damaged\n\
                   HINT: repair it\nFATAL:  could not restore file \"00000002.history\" from archive\n\
                   LOG:  startup process exited\nLOG:  closing\nLOG:  more\nLOG:  more\nLOG:  more\n\
                   FATAL:  the database system is shutting down\n";
        let said = complaint_in(log);
        assert!(said.starts_with(": FATAL:  could not restore file"), "{said}");
        assert!(said.ends_with("; E-REPO-DAMAGED repository b: x is damaged"), "{said}");
        assert_eq!(complaint_in("LOG:  a\nFATAL:  no memory left\n"), ": FATAL:  no memory left");
        assert_eq!(complaint_in("LOG:  a\n"), "");
    }
}
