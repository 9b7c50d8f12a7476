//! The side of a job that is its own process: it says that it has begun before it does anything, and how it ended.
//!
//! `started` is made by whoever comes first: the child, which then runs; or a server that took over from one that is gone, after
//! which the child that comes late does nothing. So no job runs that a server has declared ended.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Process;

/// Names the directory of the job to the child. No variable: what the child starts would inherit it, and is no job.
pub const DIR_FLAG: &str = "--job-dir";
pub const RESULT: &str = "result";
pub const LOG: &str = "log";
const STARTED: &str = "started";
const ENDED: &str = "ended";
/// Of a log, what is shown.
const TAIL_BYTES: u64 = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    Process(Process),
    /// A server gave the job up before a process had begun.
    Revoked,
}

/// What the child wrote down when it ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub code: i32,
    /// Older versions left it out.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

/// The job that this process is.
#[derive(Debug)]
pub struct Running(PathBuf);

/// Says that the job begins.
///
/// # Errors
/// When it must not: it was given up, or it is being run already; or when that cannot be written down.
pub fn enter(dir: &Path) -> std::io::Result<Running> {
    let own = process(std::process::id().cast_signed())
        .ok_or_else(|| std::io::Error::other("/proc does not tell who we are"))?;
    match claim(dir, &Claim::Process(own))? {
        None => Ok(Running(dir.to_owned())),
        Some(_) => Err(std::io::Error::other("the job was given up, or is being run by another process")),
    }
}

impl Running {
    /// The last thing that is done.
    ///
    /// # Errors
    /// When it cannot be written down: the server will say that the job was interrupted.
    pub fn end(self, code: i32) -> std::io::Result<()> {
        let text = serde_json::to_vec(&End { code, at: Some(Timestamp::now()) }).map_err(std::io::Error::other)?;
        write_whole(&self.0, ENDED, &text, |from, to| fs::rename(from, to))
    }
}

/// Makes the claim, or says whose it is already.
pub(super) fn claim(dir: &Path, claim: &Claim) -> std::io::Result<Option<Claim>> {
    let text = serde_json::to_vec(claim).map_err(std::io::Error::other)?;
    match write_whole(dir, STARTED, &text, |from, to| fs::hard_link(from, to)) {
        Ok(()) => Ok(None),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let found = fs::read(dir.join(STARTED))?;
            serde_json::from_slice(&found).map(Some).map_err(std::io::Error::other)
        }
        Err(e) => Err(e),
    }
}

/// Who runs it, if somebody said so.
#[cfg(test)]
fn claimed(dir: &Path) -> Option<Claim> {
    serde_json::from_slice(&fs::read(dir.join(STARTED)).ok()?).ok()
}

/// With which exit code the child said that it ended, and when.
pub(super) fn ended(dir: &Path) -> Option<End> {
    let file = dir.join(ENDED);
    let end: End = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
    let written = || Timestamp::try_from(fs::metadata(&file).ok()?.modified().ok()?).ok();
    Some(End { at: end.at.or_else(written), ..end })
}

/// Whether a process, or a server that gave it up, has said so.
pub(crate) fn is_claimed(dir: &Path) -> bool {
    dir.join(STARTED).exists()
}

/// Under its name only when it is on the disk.
pub(crate) fn write_whole(
    dir: &Path,
    name: &str,
    text: &[u8],
    place: impl Fn(&Path, &Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let beside = dir.join(format!("{name}.{}", std::process::id()));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    let placed = place(&beside, &dir.join(name));
    if beside.exists() {
        fs::remove_file(&beside)?;
    }
    placed?;
    File::open(dir)?.sync_all()
}

/// A process that is there now; `None` when there is none, or one that has ended and was not yet waited for.
pub fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, which may hold anything; the third is the state, the 22nd when it was started.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let ticks = fields.nth(18)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
    Some(Process { pid, ticks, boot })
}

impl Process {
    pub fn is_alive(&self) -> bool {
        process(self.pid).as_ref() == Some(self)
    }
}

/// The end of a file, in whole lines, with control characters made harmless.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<(Vec<u8>, bool)> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = vec![];
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok((bytes, size > TAIL_BYTES))
    };
    // A log that cannot be read shows as none; the job's state does not depend on it.
    let (bytes, cut) = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let whole = if cut { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    whole.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_child_and_server_has_the_job() {
        let scratch = pgark_testkit::Scratch::new("job-claim");
        let (one, two) = (scratch.dir("one"), scratch.dir("two"));
        let running = enter(&one).expect("free");
        assert!(matches!(claim(&one, &Claim::Revoked).expect("readable"), Some(Claim::Process(p)) if p.is_alive()));
        assert!(ended(&one).is_none());
        let before = Timestamp::now();
        running.end(3).expect("written");
        let end = ended(&one).expect("it said so");
        assert!(end.code == 3 && end.at.is_some_and(|at| (before..=Timestamp::now()).contains(&at)), "{end:?}");
        // As an older version wrote it: when that was is told by the file.
        fs::write(one.join(ENDED), r#"{"code": 3}"#).expect("written");
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        File::options().write(true).open(one.join(ENDED)).and_then(|f| f.set_modified(long_ago)).expect("dated");
        assert!(ended(&one).and_then(|end| end.at).is_some_and(|at| at < before));
        assert_eq!(claim(&two, &Claim::Revoked).expect("free"), None);
        enter(&two).expect_err("it was given up");
        assert_eq!(claimed(&two), Some(Claim::Revoked));
        let names = |dir: &Path| fs::read_dir(dir).expect("listed").count();
        assert_eq!((names(&one), names(&two)), (2, 1), "nothing is left over");
    }

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let own = process(std::process::id().cast_signed()).expect("we run");
        assert!(own.is_alive());
        assert!(!Process { ticks: own.ticks + 1, ..own.clone() }.is_alive());
        assert!(!Process { boot: "another".into(), ..own }.is_alive());
    }
}
