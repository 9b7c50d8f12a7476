//! Whether a server works in a directory, by its processes and its files: what a service manager says is one thing, what runs
//! another. And the end of one that was left there.

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgark_engine::cluster::{ConnectOptions, Connection};
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use rustix::process::{Pid, Signal, kill_process};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long one that was told to end at once may take.
const DIES_WITHIN: Duration = Duration::from_secs(20);

/// What a postmaster writes of itself (`miscadmin.h`, `LOCK_FILE_LINE_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    pub port: Option<u16>,
    pub socket_dir: Option<PathBuf>,
    /// It says that it takes connections.
    pub ready: bool,
}

/// The server that works in this directory.
pub fn running(data: &Path) -> Option<Running> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let line = |n: usize| text.lines().nth(n).map(str::trim).filter(|l| !l.is_empty());
    let pid = line(0)?.parse().ok()?;
    processes(data).contains(&pid).then(|| Running {
        pid,
        port: line(3).and_then(|p| p.parse().ok()),
        socket_dir: line(4).map(PathBuf::from),
        ready: line(7) == Some("ready"),
    })
}

/// Processes of PostgreSQL that work in this directory; also children whose server is gone.
pub fn processes(data: &Path) -> Vec<u32> {
    let (Ok(data), Ok(list)) = (fs::canonicalize(data), fs::read_dir("/proc")) else { return vec![] };
    let works_there = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        // Of one that is dead and was not asked for yet, there is no directory any more.
        let there = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data);
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        (there && ["postgres", "postmaster"].contains(&name.trim())).then_some(pid)
    };
    list.filter_map(std::result::Result::ok).filter_map(works_there).collect()
}

/// The process that started this one; None when there is none of that number.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name comes before, in parentheses, and may hold any.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Whether anybody takes connections at this address, whoever may log in there.
pub fn listens(at: &ConnectOptions, within: Duration) -> bool {
    let of = |name: &str| at.keywords.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let port: u16 = of("port").and_then(|p| p.parse().ok()).unwrap_or(5432);
    match of("hostaddr").or(of("host")).filter(|host| !host.is_empty()) {
        Some(dir) if dir.starts_with('/') => UnixStream::connect(format!("{dir}/.s.PGSQL.{port}")).is_ok(),
        Some(host) => {
            let mut all = (host, port).to_socket_addrs().into_iter().flatten();
            all.any(|at| TcpStream::connect_timeout(&at, within).is_ok())
        }
        // Where libpq looks then, it knows alone.
        None => Connection::open(at, within).is_ok(),
    }
}

/// Ends what works there: in order, and at once when that takes too long.
pub fn stop(data: &Path, within: Duration, ctx: &Ctx) -> Result<bool> {
    let Some(first) = running(data) else { return gone(data, DIES_WITHIN, ctx).map(|()| false) };
    signal(first.pid, Signal::INT);
    if gone(data, within, ctx).is_err() {
        ctx.check_cancelled()?;
        signal(first.pid, Signal::QUIT);
        gone(data, DIES_WITHIN, ctx)?;
    }
    Ok(true)
}

/// It may have ended meanwhile.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn gone(data: &Path, within: Duration, ctx: &Ctx) -> Result<()> {
    let until = Instant::now() + within;
    loop {
        let left = processes(data);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let first = left.first().copied().unwrap_or_default();
            return Err(EngineError::failed(
                "E-RECOVER-SERVER",
                format!("process {first} of a server works in {} and does not end", data.display()),
                "end it by hand, and go on",
            ));
        }
        ctx.check_cancelled()?;
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_testkit::Scratch;

    #[test]
    fn whoever_listens_is_there() {
        let dir = Scratch::new("listens");
        let path = dir.path().display().to_string();
        let within = Duration::from_secs(5);
        let at = |host: &str, port: u16| {
            ConnectOptions::new([("host".to_owned(), host.to_owned()), ("port".to_owned(), port.to_string())])
        };
        assert!(!listens(&at(&path, 7000), within));
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join(".s.PGSQL.7000")).expect("a socket");
        assert!(listens(&at(&path, 7000), within) && !listens(&at(&path, 7001), within));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = tcp.local_addr().expect("its address").port();
        assert!(listens(&at("127.0.0.1", port), within));
        drop(tcp);
        assert!(!listens(&at("127.0.0.1", port), within));
    }

    #[test]
    fn a_process_has_the_parent_that_started_it() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        assert_eq!(parent(child.id()), Some(std::process::id()));
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert_eq!(parent(child.id()), None);
    }

    #[test]
    fn a_file_of_a_server_that_is_gone_is_no_server() {
        let dir = Scratch::new("postmaster");
        assert_eq!(running(dir.path()), None);
        // Some process has this number, and does not work here.
        let lines = format!("{}\n{}\n1\n5433\n/tmp\nlocalhost\n1 2\nready\n", std::process::id(), dir.path().display());
        dir.file("postmaster.pid", lines.as_bytes(), 0o600);
        assert_eq!((running(dir.path()), processes(dir.path())), (None, vec![]));
        assert!(!stop(dir.path(), Duration::from_secs(1), &Ctx::silent()).expect("nothing to stop"));
    }
}
