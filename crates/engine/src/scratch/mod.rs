//! A directory for a cluster that lives for one command, and its end.
//!
//! Invariants: a scratch directory is made by us, 0700, with a marker in it that is locked as long as its command lives; only a
//! directory with our marker, of our user, that nobody holds, is ever removed. Its end is the business of another process, the keeper,
//! which waits for ours to end, in whatever way: when we are killed, it stops what runs in there and removes it all the same. What both
//! leave behind when the machine stops is found by the next command.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::{EngineError, Result};

pub mod server;
mod superuser;
pub mod tablespaces;

pub use superuser::bootstrap_superuser;

pub const PREFIX: &str = "pgark-scratch-";
const MARKER: &str = "pgark-scratch.json";
/// The hidden command of this program that keeps a scratch directory.
pub const KEEPER: &str = "scratch-keeper";
/// A socket's name must fit into `sun_path` (108 bytes) together with `/s/.s.PGSQL.65535.lock`.
const DIR_BYTES_MAX: usize = 80;
const POLL: Duration = Duration::from_millis(50);
/// How long processes may take to stop before they are killed, and then to be gone.
const STOP_WAIT: Duration = Duration::from_secs(20);
const KILL_WAIT: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Marker {
    pgark_scratch: u32,
    pid: u32,
}

/// Ends when it is dropped; `end` does the same and tells how it went.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    keeper: Option<Child>,
    /// Held open: its lock says that we live.
    marker: Option<File>,
}

impl Scratch {
    /// A new directory in `base`, which must exist. `program` is this program.
    pub fn make(base: &Path, program: &Path) -> Result<Self> {
        let mut random = [0u8; 6];
        getrandom::fill(&mut random)
            .map_err(|e| EngineError::failed("E-SYSTEM", format!("no random bytes: {e}"), ""))?;
        let base = fs::canonicalize(base).map_err(|e| EngineError::file("looking at", base, e))?;
        let dir = base.join(format!("{PREFIX}{}", pgark_repo::crypto::hex(&random)));
        if dir.as_os_str().len() > DIR_BYTES_MAX {
            return Err(EngineError::refused(
                "E-SCRATCH-DIR",
                format!("{} is too long a name for a unix socket in it", dir.display()),
                "choose a directory with a shorter name",
            ));
        }
        let failed = |e: std::io::Error| EngineError::file("making the scratch directory", &dir, e);
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        let mut scratch = Scratch { dir: dir.clone(), keeper: None, marker: None };
        let mut marker =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(MARKER)).map_err(failed)?;
        rustix::fs::flock(&marker, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
        let text =
            serde_json::to_vec(&Marker { pgark_scratch: 1, pid: std::process::id() }).map_err(|e| failed(e.into()))?;
        marker.write_all(&text).and_then(|()| marker.sync_all()).map_err(failed)?;
        scratch.marker = Some(marker);
        scratch.keeper = Some(start_keeper(&dir, program)?);
        for part in ["s", "ts"] {
            DirBuilder::new().mode(0o700).create(dir.join(part)).map_err(failed)?;
        }
        Ok(scratch)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the data directory goes; not made yet.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub fn tablespace(&self, oid: u32) -> PathBuf {
        self.dir.join("ts").join(oid.to_string())
    }

    /// Stops what runs in it and removes it.
    pub fn end(mut self) -> Result<()> {
        self.close()
    }

    fn close(&mut self) -> Result<()> {
        let marker = self.marker.take();
        drop(marker);
        match self.keeper.take() {
            Some(mut keeper) => {
                // The end of its input is what it waits for.
                drop(keeper.stdin.take());
                let status = keeper.wait().map_err(|e| EngineError::file("waiting for the keeper of", &self.dir, e))?;
                if status.success() {
                    return Ok(());
                }
                // Whoever ended it left the rest to us.
                match claim(&self.dir)? {
                    Some(_held) => remove(&self.dir),
                    None => Err(stays(&self.dir, &format!("its keeper ended with {status}"))),
                }
            }
            // It was not started, so nothing else was.
            None if self.dir.exists() => remove(&self.dir),
            None => Ok(()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(target: "pgark", %error, "the scratch directory could not be removed");
        }
    }
}

fn stays(dir: &Path, why: &str) -> EngineError {
    EngineError::failed(
        "E-SCRATCH-STAYS",
        format!("the scratch directory {} stays: {why}", dir.display()),
        "the next run of this command tries again to remove it",
    )
}

/// In a session of its own, so that an interrupt of the terminal does not reach it.
fn start_keeper(dir: &Path, program: &Path) -> Result<Child> {
    let mut command = Command::new(program);
    command.arg(KEEPER).arg("--").arg(dir).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    command.spawn().map_err(|e| EngineError::file("starting", program, e))
}

/// The keeper: waits until its input ends, which it does when the process that gives it is gone. Then it removes the directory.
pub fn keep(dir: &Path, mut input: impl Read) -> Result<()> {
    let mut nothing = [0u8; 64];
    // An input that fails has ended, too.
    while input.read(&mut nothing).is_ok_and(|n| n > 0) {}
    let began = Instant::now();
    loop {
        if let Some(_held) = claim(dir)? {
            return remove(dir);
        }
        // Another command may be removing it.
        if !dir.exists() {
            return Ok(());
        }
        if began.elapsed() > STOP_WAIT + KILL_WAIT {
            return Err(stays(dir, "it is not ours, or somebody holds it"));
        }
        std::thread::sleep(POLL);
    }
}

/// Removes what earlier commands left in `base`, and tells what it removed. What is in use, or not ours, is passed over.
pub fn sweep(base: &Path) -> Result<Vec<PathBuf>> {
    let base = match fs::canonicalize(base) {
        Ok(base) => base,
        Err(e) => return Err(EngineError::file("looking at", base, e)),
    };
    let mut removed = vec![];
    for entry in fs::read_dir(&base).map_err(|e| EngineError::file("listing", &base, e))? {
        let entry = entry.map_err(|e| EngineError::file("listing", &base, e))?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dir = entry.path();
        if let Some(_held) = claim(&dir)? {
            remove(&dir)?;
            removed.push(dir);
        }
    }
    Ok(removed)
}

/// The lock on the marker of a directory that is ours and that nobody else holds.
fn claim(dir: &Path) -> Result<Option<File>> {
    let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    let ours = |meta: &fs::Metadata| meta.uid() == geteuid().as_raw() && !meta.file_type().is_symlink();
    let is_dir = fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && ours(&meta));
    let marker = dir.join(MARKER);
    let is_file = fs::symlink_metadata(&marker).is_ok_and(|meta| meta.is_file() && ours(&meta));
    if !(named && is_dir && is_file) {
        return Ok(None);
    }
    let failed = |e: std::io::Error| EngineError::file("reading", &marker, e);
    let mut file = File::open(&marker).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(e) if e == rustix::io::Errno::WOULDBLOCK => return Ok(None),
        Err(e) => return Err(failed(e.into())),
    }
    let mut text = vec![];
    Read::by_ref(&mut file).take(4096).read_to_end(&mut text).map_err(failed)?;
    // A marker that was cut off by a failure is of a directory in which nothing was done yet.
    let known = text.is_empty() || serde_json::from_slice::<Marker>(&text).is_ok_and(|m| m.pgark_scratch == 1);
    Ok(known.then_some(file))
}

/// The marker goes last, so that an interruption leaves what can be recognised.
fn remove(dir: &Path) -> Result<()> {
    stop_processes(dir)?;
    let failed = |e: std::io::Error| EngineError::file("removing", dir, e);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        } else {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    match fs::remove_file(dir.join(MARKER)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    fs::remove_dir(dir).map_err(failed)
}

/// Whatever works in the directory: the server and its children, and the programs that were run for it.
fn stop_processes(dir: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        let found = processes_in(dir);
        if found.is_empty() {
            return Ok(());
        }
        let late = began.elapsed() > STOP_WAIT;
        if began.elapsed() > STOP_WAIT + KILL_WAIT {
            return Err(stays(dir, &format!("process {} works in it and does not end", found[0].0)));
        }
        for (pid, server) in found {
            // PostgreSQL's "immediate" shutdown: what is in there is of no use any more.
            let signal = if late {
                Signal::KILL
            } else if server {
                Signal::QUIT
            } else {
                Signal::TERM
            };
            if let Some(pid) = Pid::from_raw(pid) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, signal);
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Processes of ours that work in the directory or below: their ids, and whether they are PostgreSQL.
fn processes_in(dir: &Path) -> Vec<(i32, bool)> {
    let Ok(list) = fs::read_dir("/proc") else { return vec![] };
    let own = std::process::id();
    let works_there = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        if pid == own || !cwd.starts_with(dir) {
            return None;
        }
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some((i32::try_from(pid).ok()?, name.trim() == "postgres"))
    };
    list.filter_map(std::result::Result::ok).filter_map(works_there).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Base(PathBuf);

    impl Base {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("pgark-sweep-{name}-{}", std::process::id()));
            fs::create_dir(&dir).expect("made");
            Base(fs::canonicalize(dir).expect("there"))
        }

        fn scratch(&self, name: &str, marker: &[u8]) -> PathBuf {
            let dir = self.0.join(name);
            fs::create_dir(&dir).expect("made");
            fs::write(dir.join(MARKER), marker).expect("written");
            fs::create_dir(dir.join("data")).expect("made");
            fs::write(dir.join("data/file"), b"x").expect("written");
            dir
        }
    }

    impl Drop for Base {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const OURS: &[u8] = br#"{"pgark_scratch":1,"pid":1}"#;

    #[test]
    fn only_abandoned_directories_of_ours_are_removed() {
        let base = Base::new("only");
        let abandoned = base.scratch("pgark-scratch-aa", OURS);
        let cut_off = base.scratch("pgark-scratch-ab", b"");
        let other_name = base.scratch("pgark-drill-aa", OURS);
        let other_marker = base.scratch("pgark-scratch-bb", b"{\"something\":\"else\"}");
        let no_marker = base.scratch("pgark-scratch-cc", OURS);
        fs::remove_file(no_marker.join(MARKER)).expect("removed");
        let held = base.scratch("pgark-scratch-dd", OURS);
        let lock = File::open(held.join(MARKER)).expect("opened");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locked");
        let link = base.0.join("pgark-scratch-ee");
        std::os::unix::fs::symlink(&other_name, &link).expect("linked");
        let mut removed = sweep(&base.0).expect("swept");
        removed.sort();
        assert_eq!(removed, [abandoned.clone(), cut_off.clone()]);
        assert!(!abandoned.exists() && !cut_off.exists());
        for stays in [&other_name, &other_marker, &no_marker, &held] {
            assert!(stays.join("data/file").exists(), "{}", stays.display());
        }
        assert!(link.symlink_metadata().is_ok());
        drop(lock);
        assert_eq!(sweep(&base.0).expect("swept"), [held]);
    }

    #[test]
    fn what_works_in_an_abandoned_directory_is_stopped() {
        let base = Base::new("stop");
        let dir = base.scratch("pgark-scratch-ff", OURS);
        let mut child = Command::new("sleep").arg("600").current_dir(dir.join("data")).spawn().expect("started");
        let reaper = std::thread::spawn(move || child.wait().expect("ended"));
        assert_eq!(sweep(&base.0).expect("swept"), [dir]);
        assert!(!reaper.join().expect("joined").success());
    }

    #[test]
    fn a_link_inside_is_removed_and_not_followed() {
        let base = Base::new("link");
        let dir = base.scratch("pgark-scratch-11", OURS);
        let outside = base.0.join("outside");
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("precious"), b"x").expect("written");
        std::os::unix::fs::symlink(&outside, dir.join("link")).expect("linked");
        std::os::unix::fs::symlink(&outside, dir.join("data/link")).expect("linked");
        assert_eq!(sweep(&base.0).expect("swept"), [dir]);
        assert!(outside.join("precious").exists());
    }
}
