//! Kills and error codes at a chosen system call, with strace's injection.
//!
//! strace counts `when=N` per system call and per thread, so a sweep goes over pairs (system call, N); one counter over
//! a whole set of calls would visit fewer points than it claims.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::os::{Scratch, as_postgres, run_bounded};
use crate::pgark::{Outcome, Pgark, run_outcome};

/// Every call through which a program changes or makes durable what is on a disk.
pub const IO_SYSCALLS: &[&str] = &[
    "openat",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "ftruncate",
    "fallocate",
    "fchmod",
    "fchmodat",
    "chmod",
    "utimensat",
    "copy_file_range",
];

/// The N-th call of one system call in a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub syscall: &'static str,
    pub when: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    Enospc,
    Eio,
    /// A quota.
    Edquot,
    /// A network file system, of what another host has removed.
    Estale,
    Exdev,
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL at the entry of the call.
    Kill,
    /// The call fails once.
    Fail(Errno),
    /// The call fails from here on: a disk that stays full.
    FailFromHere(Errno),
}

/// Whether strace exists and may trace on this machine.
pub fn strace_works() -> Result<(), String> {
    let mut command = as_postgres("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "trace=openat", "/bin/true"]);
    let output = run_bounded(command, b"", Duration::from_secs(20)).map_err(|error| format!("strace: {error}"))?;
    if output.status.is_some_and(|status| status.success()) {
        Ok(())
    } else {
        Err(format!("strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn wrapped(pgark: &Pgark, options: &[String], arguments: &[&OsStr]) -> Command {
    let mut command = as_postgres("strace");
    command.args(["-f", "-qq", "-e", "signal=none"]).args(options);
    command.arg("--").arg(pgark.binary()).args(arguments);
    command.envs(pgark.environment());
    command
}

/// Runs pgark once under strace and lists every point it passes; the run itself must succeed.
pub fn points_of<S: AsRef<OsStr>>(pgark: &Pgark, scratch: &Scratch, arguments: &[S]) -> Vec<Point> {
    let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    let log = scratch.file("strace.log", b"", 0o666);
    let options = vec![
        "-o".to_owned(),
        log.display().to_string(),
        "-e".to_owned(),
        format!("trace={}", IO_SYSCALLS.iter().map(|name| format!("?{name}")).collect::<Vec<_>>().join(",")),
    ];
    let outcome = run_outcome("under strace", wrapped(pgark, &options, &arguments));
    assert!(outcome.succeeded(), "the traced run failed: {outcome}");
    let text = fs::read_to_string(&log).expect("strace log");
    let mut per_thread: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        *per_thread.entry((thread, name)).or_default() += 1;
    }
    let mut points = Vec::new();
    for &syscall in IO_SYSCALLS {
        let most = per_thread.iter().filter(|((_, name), _)| *name == syscall).map(|(_, count)| *count).max();
        points.extend((1..=most.unwrap_or(0)).map(|when| Point { syscall, when }));
    }
    points
}

/// Runs pgark with one fault injected.
pub fn traced<S: AsRef<OsStr>>(pgark: &Pgark, point: Point, fault: Fault, arguments: &[S]) -> Outcome {
    traced_without(pgark, None, Some((point, fault)), arguments)
}

/// Kills pgark at a point of its first thread; what it starts is left alone.
pub fn killed_alone<S: AsRef<OsStr>>(pgark: &Pgark, point: Point, arguments: &[S]) -> Outcome {
    let Point { syscall, when } = point;
    let mut command = as_postgres("strace");
    command.args(["-qq", "-e", "signal=none", "-o", "/dev/null", "-e", &format!("trace={syscall}")]);
    command.args(["-e", &format!("inject={syscall}:signal=SIGKILL:when={when}"), "--"]);
    command.arg(pgark.binary()).args(arguments).envs(pgark.environment());
    run_outcome(&format!("killed at {point:?}"), command)
}

/// Runs pgark where a system call is not supported (EINVAL, always), and perhaps with a fault at another one.
pub fn traced_without<S: AsRef<OsStr>>(
    pgark: &Pgark,
    lacking: Option<&'static str>,
    fault: Option<(Point, Fault)>,
    arguments: &[S],
) -> Outcome {
    let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    let name = |errno| match errno {
        Errno::Enospc => "ENOSPC",
        Errno::Eio => "EIO",
        Errno::Edquot => "EDQUOT",
        Errno::Estale => "ESTALE",
        Errno::Exdev => "EXDEV",
    };
    let at = fault.map(|(point, fault)| {
        let (what, plus) = match fault {
            Fault::Kill => ("signal=SIGKILL".to_owned(), ""),
            Fault::Fail(errno) => (format!("error={}", name(errno)), ""),
            Fault::FailFromHere(errno) => (format!("error={}", name(errno)), "+"),
        };
        (point.syscall, format!("inject={}:{what}:when={}{plus}", point.syscall, point.when))
    });
    let never = lacking.map(|syscall| (syscall, format!("inject={syscall}:error=EINVAL")));
    let both: Vec<(&str, String)> = never.into_iter().chain(at).collect();
    let traced: Vec<&str> = both.iter().map(|(syscall, _)| *syscall).collect();
    let mut options =
        vec!["-o".to_owned(), "/dev/null".to_owned(), "-e".to_owned(), format!("trace={}", traced.join(","))];
    options.extend(both.iter().flat_map(|(_, inject)| ["-e".to_owned(), inject.clone()]));
    run_outcome(&format!("without {lacking:?}, {fault:?}"), wrapped(pgark, &options, &arguments))
}
