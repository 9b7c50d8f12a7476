//! Users, scratch directories, bounded waiting and bounded children.
//!
//! Invariant: PostgreSQL and pgark run as the OS user `postgres` when the tests run as root (PostgreSQL refuses root),
//! and as ourselves otherwise; no child outlives its deadline.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

const POLL: Duration = Duration::from_millis(20);

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Numeric user and group of the OS user `postgres`.
fn postgres_ids() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Hands one path (not its contents) to the user that PostgreSQL runs as; a link itself is not followed.
pub fn give_to_postgres(path: &Path) {
    if !is_root() {
        return;
    }
    let (uid, gid) = postgres_ids().expect("the OS user postgres exists");
    let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_symlink());
    let done =
        if is_link { std::os::unix::fs::lchown(path, Some(uid), Some(gid)) } else { chown(path, Some(uid), Some(gid)) };
    done.unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
}

/// A command that runs as the user of PostgreSQL with an environment of its own: no `PG*` or `PGARK_*` of the
/// developer reaches it.
pub fn as_postgres(program: impl AsRef<OsStr>) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env_clear().current_dir("/");
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("HOME", "/nonexistent");
    // Coverage runs write their counters where the variable says; without it they would litter the working directory.
    if let Some(profile) = env::var_os("LLVM_PROFILE_FILE") {
        command.env("LLVM_PROFILE_FILE", profile);
    }
    command
}

/// A directory for one test, readable and writable by PostgreSQL, removed at the end.
///
/// Declare it before the clusters that live in it, so that it is dropped after them. `PGARK_TEST_DIR` chooses the
/// parent and `PGARK_TEST_KEEP=1` keeps the directory for a look afterwards.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new(label: &str) -> Scratch {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let parent = env::var_os("PGARK_TEST_DIR").map_or_else(env::temp_dir, PathBuf::from);
        let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        // Unix socket paths end at 107 bytes, so names here are short.
        let path = parent.join(format!("pgark-{label}-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode of the scratch directory");
        give_to_postgres(&path);
        Scratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside that does not exist yet.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A new directory inside, mode 0700, owned by the user of PostgreSQL.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("mode");
        give_to_postgres(&path);
        path
    }

    /// A new file inside with this content and mode, owned by the user of PostgreSQL.
    pub fn file(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        give_to_postgres(&path);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if env::var_os("PGARK_TEST_KEEP").is_some_and(|value| value == "1") {
            eprintln!("kept: {}", self.path.display());
            return;
        }
        // A child that is just dying may still create a file, so one failure is not the end.
        if fs::remove_dir_all(&self.path).is_err()
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Polls until `probe` gives a value; panics with `what` when `limit` passes.
pub fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain until {what}");
        thread::sleep(POLL);
    }
}

/// Runs a child with its output captured. `None` as status means it had to be killed at the deadline.
///
/// The child leads a process group of its own, and the whole group is killed at the deadline: a grandchild that keeps
/// the pipe open must not hang the test.
pub fn run_bounded(mut command: Command, stdin: &[u8], limit: Duration) -> io::Result<BoundedOutput> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    if let Some(mut pipe) = child.stdin.take() {
        // A child that does not read its input closes the pipe; that is its business.
        match pipe.write_all(stdin) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let status = wait_bounded(&mut child, limit)?;
    Ok(BoundedOutput { status, stdout: out.join().unwrap_or_default(), stderr: err.join().unwrap_or_default() })
}

#[derive(Debug)]
pub struct BoundedOutput {
    pub status: Option<ExitStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe
            && let Err(error) = pipe.read_to_end(&mut all)
        {
            eprintln!("reading a child's output: {error}");
        }
        all
    })
}

fn wait_bounded(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            kill_group(child.id());
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn pid(number: u32) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(number).ok()?)
}

fn kill_group(leader: u32) {
    if let Some(leader) = pid(leader) {
        // It may be gone already; then there is nothing to kill.
        rustix::process::kill_process_group(leader, rustix::process::Signal::KILL).ok();
    }
}

pub(crate) fn kill(number: u32) {
    if let Some(number) = pid(number) {
        rustix::process::kill_process(number, rustix::process::Signal::KILL).ok();
    }
}

pub(crate) fn is_alive(number: u32) -> bool {
    // A zombie still answers to signal 0, so the state in /proc decides.
    fs::read_to_string(format!("/proc/{number}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// Whether a process that we may look at works in `directory`; a zombie works nowhere.
pub(crate) fn any_process_in(directory: &Path) -> bool {
    let list = fs::read_dir("/proc").expect("/proc");
    list.filter_map(Result::ok).any(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory))
}

/// Runs to the end and panics with everything the child said when it fails.
pub(crate) fn must(what: &str, command: Command) -> String {
    let output = run_bounded(command, b"", Duration::from_secs(180)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status {
        Some(status) if status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Some(status) => panic!("{what}: {status}\n{stderr}"),
        None => panic!("{what}: did not end in time\n{stderr}"),
    }
}
