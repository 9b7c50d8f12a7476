//! An SSH server of its own on loopback, with SFTP, for one test; a proxy that can stop forwarding; and a way to fail
//! at a given packet.
//!
//! It runs as the user of PostgreSQL when the tests run as root, else as ourselves, and lets that user alone in.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::os::{Scratch, as_postgres, give_to_postgres, is_root, run_bounded, wait_until};

const SSHD: &str = "/usr/sbin/sshd";
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";
const FAULT: &str = include_str!("sftp_fault.py");
/// As `docs/immutability.md` says it.
const APPEND_ONLY_REQUESTS: &str =
    "open,close,read,write,stat,lstat,fstat,opendir,readdir,realpath,mkdir,fsync,hardlink,statvfs,limits";
const START: Duration = Duration::from_secs(20);

/// Which program answers on the SFTP subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subsystem {
    /// OpenSSH's own, inside sshd.
    Internal,
    /// The same, and it obeys only what an account needs that adds files and never changes one.
    AppendOnly,
    /// The same behind a program that obeys [`Sshd::fail_at`] and [`Sshd::hide`].
    Faulty,
}

/// Ended when dropped, with all its connections. Declare it after the directory it lives in.
#[derive(Debug)]
pub struct Sshd {
    child: Child,
    dir: PathBuf,
    port: u16,
    user: String,
}

impl Sshd {
    /// A server that listens, or why this machine cannot have one.
    pub fn start(scratch: &Scratch, subsystem: Subsystem) -> Result<Sshd, String> {
        for program in [SSHD, SFTP_SERVER, "/usr/bin/ssh", "/usr/bin/ssh-keygen", "/usr/bin/python3"] {
            if !Path::new(program).exists() {
                return Err(format!("{program} is not installed (openssh-server, openssh-client, python3)"));
            }
        }
        let dir = scratch.dir("sshd");
        for key in ["host_key", "other_host_key", "client_key", "other_client_key"] {
            make_key(&dir, key)?;
        }
        fs::copy(dir.join("client_key.pub"), dir.join("authorized_keys")).map_err(|e| e.to_string())?;
        fs::write(dir.join("fault.py"), FAULT).map_err(|e| e.to_string())?;
        let port = free_port();
        let shown = dir.display();
        let subsystem = match subsystem {
            Subsystem::Internal => "internal-sftp".to_owned(),
            Subsystem::AppendOnly => format!("internal-sftp -p {APPEND_ONLY_REQUESTS}"),
            Subsystem::Faulty => format!("/usr/bin/python3 {shown}/fault.py {shown} {SFTP_SERVER}"),
        };
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {shown}/host_key\nPidFile none\n\
             AuthorizedKeysFile {shown}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nMaxStartups 100\nSubsystem sftp {subsystem}\n"
        );
        fs::write(dir.join("config"), config).map_err(|e| e.to_string())?;
        for host in [format!("[127.0.0.1]:{port}"), "*".to_owned()] {
            let name = if host == "*" { "known_hosts_any" } else { "known_hosts" };
            let line = format!("{host} {}\n", public_key(&dir, "host_key"));
            fs::write(dir.join(name), line).map_err(|e| e.to_string())?;
            let line = format!("{host} {}\n", public_key(&dir, "other_host_key"));
            fs::write(dir.join(format!("{name}_wrong")), line).map_err(|e| e.to_string())?;
        }
        fs::write(dir.join("known_hosts_empty"), "").map_err(|e| e.to_string())?;
        for entry in fs::read_dir(&dir).map_err(|e| e.to_string())? {
            give_to_postgres(&entry.map_err(|e| e.to_string())?.path());
        }
        let log = fs::File::create(dir.join("log")).map_err(|e| e.to_string())?;
        let mut command = as_postgres(SSHD);
        command.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let child = command.spawn().map_err(|e| e.to_string())?;
        let user = if is_root() { "postgres".to_owned() } else { whoami() };
        let mut sshd = Sshd { child, dir, port, user };
        sshd.wait()?;
        Ok(sshd)
    }

    fn wait(&mut self) -> Result<(), String> {
        let ended = wait_until("sshd listens", START, || {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Some(false);
            }
            matches!(self.child.try_wait(), Ok(Some(_))).then_some(true)
        });
        if ended {
            return Err(format!("sshd did not start: {}", self.log()));
        }
        Ok(())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host_key`, `client_key`, `known_hosts`, `known_hosts_any`, `…_wrong`, `known_hosts_empty`, `other_client_key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Type and base64 of the host key.
    pub fn host_key(&self) -> String {
        public_key(&self.dir, "host_key")
    }

    pub fn other_host_key(&self) -> String {
        public_key(&self.dir, "other_host_key")
    }

    /// The URL of a directory on it, with everything a client needs. `more` begins with `&` or is empty.
    pub fn url(&self, path: &Path, more: &str) -> String {
        self.url_through(self.port, path, more)
    }

    /// The same through a proxy that listens on `port`.
    pub fn url_through(&self, port: u16, path: &Path, more: &str) -> String {
        let (key, known) = (self.file("client_key"), self.file("known_hosts_any"));
        format!(
            "sftp://{}@127.0.0.1:{port}{}?identity_file={}&known_hosts={}&ssh_config=/dev/null{more}",
            self.user,
            path.display(),
            key.display(),
            known.display()
        )
    }

    /// At the `nth` packet of this kind (a number, or an extension's name) that a connection sees from now on, once. What
    /// the actions mean is told in `sftp_fault.py`.
    pub fn fail_at(&self, kind: &str, nth: u32, action: &str) {
        let (new, rule) = (self.dir.join("rule.new"), self.dir.join("rule"));
        fs::write(&new, format!("{kind} {nth} {action}\n")).expect("write the rule");
        give_to_postgres(&new);
        fs::rename(&new, &rule).expect("set the rule");
    }

    /// True when the rule has been obeyed, and not before.
    pub fn failed(&self) -> bool {
        !self.dir.join("rule").exists()
    }

    /// Extensions that clients do not get to see from now on.
    pub fn hide(&self, extensions: &[&str]) {
        fs::write(self.dir.join("hide"), extensions.join("\n")).expect("write what is hidden");
    }

    /// What somebody gets from `sftp` with the client's key, for one command of it: its exit code and words.
    pub fn sftp(&self, command: &str) -> (Option<i32>, String) {
        let mut sftp = as_postgres("/usr/bin/sftp");
        sftp.args(["-b", "-", "-F", "/dev/null", "-P", &self.port.to_string(), "-i"]).arg(self.file("client_key"));
        sftp.args(["-o", &format!("UserKnownHostsFile={}", self.file("known_hosts_any").display())]);
        sftp.arg(format!("{}@127.0.0.1", self.user));
        let output = run_bounded(sftp, format!("{command}\n").as_bytes(), START).expect("sftp runs");
        let words = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.and_then(|s| s.code()), String::from_utf8_lossy(&words).into_owned())
    }

    /// Kills every connection, not the server; gives how many processes that were.
    pub fn kill_connections(&self) -> usize {
        let victims = self.sessions();
        victims.iter().for_each(|&victim| signal(victim, Signal::KILL));
        victims.len()
    }

    /// Of each connection, also of those whose parents have gone.
    fn sessions(&self) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = descendants(self.child.id()).into_iter().collect();
        for orphan in stand_ins(&self.dir) {
            found.insert(orphan);
            found.extend(descendants(orphan));
        }
        found
    }

    /// Ends it with all that it started; panics when something of that stays.
    pub fn stop(self) {
        let dir = self.dir.clone();
        drop(self);
        wait_until("what stood before the SFTP server has ended", START, || stand_ins(&dir).is_empty().then_some(()));
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // So that nothing begins while its sessions are ended.
        signal(self.child.id(), Signal::STOP);
        self.kill_connections();
        // It may be gone already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes of `sftp_fault.py` for the server in this directory.
fn stand_ins(dir: &Path) -> Vec<u32> {
    let script = dir.join("fault.py");
    let runs_it = |process: &u32| {
        let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == script.as_os_str().as_bytes())
    };
    processes().into_iter().filter(runs_it).collect()
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

fn make_key(dir: &Path, name: &str) -> Result<(), String> {
    let mut command = Command::new("/usr/bin/ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "pgark-test", "-f"]).arg(dir.join(name));
    let status = command.status().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("ssh-keygen ended with {status}")) }
}

fn public_key(dir: &Path, name: &str) -> String {
    let line = fs::read_to_string(dir.join(format!("{name}.pub"))).expect("a public key");
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its number").port()
}

fn whoami() -> String {
    let output = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn signal(process: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        // It may be gone already; then there is nothing to do.
        kill_process(pid, signal).ok();
    }
}

/// All processes below this one.
fn descendants(of: u32) -> Vec<u32> {
    let mut parents = vec![];
    for process in processes() {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (process, parent)));
    }
    let mut found = vec![of];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(process, _)| *process));
        next += 1;
    }
    found.split_off(1)
}

/// Forwards connections to a port on loopback until told otherwise.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
    forwarded: Arc<AtomicU64>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

const FORWARD: u8 = 0;
const SWALLOW: u8 = 1;
const REFUSE: u8 = 2;

impl Proxy {
    pub fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        let proxy = Proxy { port, mode: Arc::default(), forwarded: Arc::default(), streams: Arc::default() };
        let (mode, forwarded, streams) =
            (Arc::clone(&proxy.mode), Arc::clone(&proxy.forwarded), Arc::clone(&proxy.streams));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if mode.load(Ordering::SeqCst) == REFUSE {
                    continue;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { continue };
                let copies = [&client, &server].map(|stream| stream.try_clone().expect("a second handle"));
                streams.lock().unwrap_or_else(PoisonError::into_inner).extend(copies);
                for (from, to, counts) in [
                    (client.try_clone().expect("handle"), server.try_clone().expect("handle"), true),
                    (server, client, false),
                ] {
                    let (mode, forwarded) = (Arc::clone(&mode), Arc::clone(&forwarded));
                    thread::spawn(move || pass_on(from, to, &mode, counts.then_some(&*forwarded)));
                }
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that went to the server.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::SeqCst)
    }

    /// From now on everything is taken and nothing passed on, on old and new connections.
    pub fn swallow(&self) {
        self.mode.store(SWALLOW, Ordering::SeqCst);
    }

    /// Ends the connections there are, and new ones at once.
    pub fn refuse(&self) {
        self.mode.store(REFUSE, Ordering::SeqCst);
        self.cut();
    }

    pub fn forward(&self) {
        self.mode.store(FORWARD, Ordering::SeqCst);
    }

    /// Ends the connections there are.
    pub fn cut(&self) {
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8, count: Option<&AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if mode.load(Ordering::SeqCst) != FORWARD {
            continue;
        }
        let Some(bytes) = buffer.get(..n) else { break };
        if to.write_all(bytes).is_err() {
            break;
        }
        if let Some(count) = count {
            count.fetch_add(n as u64, Ordering::SeqCst);
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
