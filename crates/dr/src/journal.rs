//! What a recovery has done and is about to do, in a file that survives whatever kills it.
//!
//! Invariant: a step runs only after the line that says so is on the disk. Lines are chained by hash, so that one that was
//! changed or taken out is noticed; of the last one, which may have been cut off by a crash, nothing is believed unless it is
//! whole.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgark_engine::error::{EngineError, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// A journal is a few lines for each step; what is longer is none of ours.
const JOURNAL_BYTES_MAX: u64 = 16 * 1024 * 1024;
const MODE: u32 = 0o600;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The first line: what this is the journal of.
    Opened { what: String, plan: serde_json::Value },
    /// Written before the step runs.
    Begins { step: String, facts: serde_json::Value },
    /// It was checked that the step took effect.
    Done { step: String, facts: serde_json::Value },
    Failed {
        step: String,
        code: String,
        why: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
        #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
        facts: serde_json::Value,
    },
    /// The step was taken back, or was found not to have taken effect.
    Undone { step: String, facts: serde_json::Value },
    /// The step could not be taken back.
    Left { step: String, why: String },
    /// Somebody goes on after it was cut off.
    Resumed { by: String },
    /// The state that all of it ended in.
    Ended { state: String, why: String },
}

impl Event {
    pub fn step(&self) -> Option<&str> {
        match self {
            Event::Begins { step, .. }
            | Event::Done { step, .. }
            | Event::Failed { step, .. }
            | Event::Undone { step, .. }
            | Event::Left { step, .. } => Some(step),
            Event::Opened { .. } | Event::Resumed { .. } | Event::Ended { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub n: u64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: Event,
    /// BLAKE3 of the line before this one, with its line feed; of nothing for the first.
    pub after: String,
}

/// An open journal; nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
    last_hash: String,
}

impl Journal {
    /// Opens it, or makes it. A line that a crash cut off is taken away.
    pub fn open(path: &Path) -> Result<Journal> {
        let failed = |what: &'static str| move |e| EngineError::file(what, path, e);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(MODE);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let mut file = options.open(path).map_err(failed("opening"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(path)),
            Err(e) => return Err(EngineError::file("locking", path, e)),
        }
        // It was given another name while we waited for it: somebody has just ended it.
        let (held, named) = (file.metadata().map_err(failed("looking at"))?, std::fs::metadata(path).ok());
        if named.is_none_or(|n| (n.dev(), n.ino()) != (held.dev(), held.ino())) {
            return Err(in_use(path));
        }
        let (lines, whole, last_hash) = read(&mut file, path)?;
        let there = file.metadata().map_err(failed("looking at"))?.len();
        if there > whole {
            tracing::warn!(target: "pgark", path = %path.display(), "the last line of the journal was cut off: it is taken away");
            file.set_len(whole).and_then(|()| file.sync_all()).map_err(failed("shortening"))?;
        }
        if whole == 0 {
            sync_dir(path)?;
        }
        Ok(Journal { path: path.to_owned(), file, lines, last_hash })
    }

    /// Reads a journal that somebody else may be writing.
    pub fn look(path: &Path) -> Result<Vec<Line>> {
        let mut file = File::open(path).map_err(|e| EngineError::file("opening", path, e))?;
        read(&mut file, path).map(|(lines, ..)| lines)
    }

    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the line is durable. After an error nothing more may be done: what is on the disk is not known.
    pub fn append(&mut self, at: Timestamp, event: Event) -> Result<()> {
        let line = Line { n: self.lines.len() as u64, at, event, after: self.last_hash.clone() };
        let mut text = serde_json::to_string(&line)
            .map_err(|e| EngineError::file("writing", &self.path, std::io::Error::other(e)))?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| EngineError::file("writing", &self.path, e))?;
        self.last_hash = hash(text.as_bytes());
        self.lines.push(line);
        Ok(())
    }

    /// The hash of the last line: of a journal that says the same, nothing was taken away.
    pub fn head(&self) -> &str {
        &self.last_hash
    }

    /// Gives it a name under which it stays. It is still held.
    pub fn put_away(&mut self, path: &Path) -> Result<()> {
        std::fs::rename(&self.path, path).map_err(|e| EngineError::file("renaming", &self.path, e))?;
        self.path = path.to_owned();
        sync_dir(path)
    }

    /// The last that is known of a step.
    pub fn last_of(&self, step: &str) -> Option<&Event> {
        self.lines.iter().rev().map(|l| &l.event).find(|e| e.step() == Some(step))
    }

    pub fn ended(&self) -> Option<(&str, &str)> {
        self.lines.iter().rev().find_map(|l| match &l.event {
            Event::Ended { state, why } => Some((state.as_str(), why.as_str())),
            _ => None,
        })
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The whole lines, how many bytes they are, and the hash of the last.
fn read(file: &mut File, path: &Path) -> Result<(Vec<Line>, u64, String)> {
    let failed = |e| EngineError::file("reading", path, e);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut bytes = vec![];
    Read::by_ref(file).take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > JOURNAL_BYTES_MAX {
        return Err(damaged(path, "it is larger than a journal can be"));
    }
    let (mut lines, mut whole, mut last) = (vec![], 0, hash(b""));
    for text in bytes.split_inclusive(|b| *b == b'\n').filter(|t| t.ends_with(b"\n")) {
        let n = lines.len();
        let line: Line = serde_json::from_slice(text).map_err(|e| damaged(path, &format!("line {}: {e}", n + 1)))?;
        if line.n != n as u64 || line.after != last {
            return Err(damaged(path, &format!("line {} does not follow the one before it", n + 1)));
        }
        whole += text.len() as u64;
        last = hash(text);
        lines.push(line);
    }
    Ok((lines, whole, last))
}

fn sync_dir(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| EngineError::file("syncing", dir, e))
}

fn in_use(path: &Path) -> EngineError {
    EngineError::refused(
        "E-RECOVERY-RUNNING",
        format!("a recovery is under way: {} is in use", path.display()),
        "wait for it, or end it first: it stops in a state from which it can go on",
    )
}

fn damaged(path: &Path, why: &str) -> EngineError {
    EngineError::refused(
        "E-JOURNAL-DAMAGED",
        format!("{} cannot be believed: {why}", path.display()),
        "look at it: it says what was done; then move it away, and begin anew from the state that the service is in",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_testkit::Scratch;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn begins(step: &str) -> Event {
        Event::Begins { step: step.into(), facts: json!({ "pid": 17 }) }
    }

    fn three(path: &Path) -> Journal {
        let mut journal = Journal::open(path).expect("opens");
        journal.append(at(1), Event::Opened { what: "recover main".into(), plan: json!([]) }).expect("writes");
        journal.append(at(2), begins("stop")).expect("writes");
        journal.append(at(3), Event::Done { step: "stop".into(), facts: json!(null) }).expect("writes");
        journal
    }

    #[test]
    fn lines_come_back_and_go_on() {
        let dir = Scratch::new("journal");
        let path = dir.path().join("journal");
        let lines = three(&path).lines().to_vec();
        let mut again = Journal::open(&path).expect("opens");
        assert_eq!(again.lines(), lines);
        again.append(at(4), begins("restore")).expect("writes");
        assert_eq!(again.last_of("stop"), Some(&Event::Done { step: "stop".into(), facts: json!(null) }));
        assert_eq!(again.last_of("restore"), Some(&begins("restore")));
        assert_eq!((again.last_of("start"), again.ended()), (None, None));
        assert_eq!(Journal::look(&path).expect("reads").len(), 4);
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = Scratch::new("journal");
        let path = dir.path().join("journal");
        let first = three(&path);
        assert_eq!(Journal::open(&path).expect_err("in use").code(), "E-RECOVERY-RUNNING");
        assert_eq!(Journal::look(&path).expect("reads").len(), 3);
        drop(first);
        Journal::open(&path).expect("free again");
    }

    #[test]
    fn whatever_a_crash_leaves_of_the_last_line_is_no_line() {
        let dir = Scratch::new("journal");
        let path = dir.path().join("journal");
        let lines = three(&path).lines().to_vec();
        let bytes = std::fs::read(&path).expect("bytes");
        let last_begins = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n').expect("lines") + 1;
        for cut in last_begins..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("cut");
            let mut journal = Journal::open(&path).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            assert_eq!(journal.lines(), &lines[..2], "cut at {cut}");
            journal.append(at(9), begins("again")).expect("writes");
            drop(journal);
            assert_eq!(Journal::open(&path).expect("opens").lines().len(), 3, "cut at {cut}");
        }
    }

    #[test]
    fn what_was_changed_is_not_believed() {
        let dir = Scratch::new("journal");
        let path = dir.path().join("journal");
        drop(three(&path));
        let whole = std::fs::read_to_string(&path).expect("text");
        let parts: Vec<&str> = whole.split_inclusive('\n').collect();
        let [opened, stop, done] = parts.as_slice() else { panic!("{parts:?}") };
        let swapped = [opened, done, stop].map(|s| (*s).to_owned()).concat();
        let changed = whole.replace("17", "18");
        for text in [swapped, changed, format!("{opened}{done}"), format!("{whole}{stop}"), format!("{whole}x\n")] {
            std::fs::write(&path, &text).expect("written");
            assert_eq!(Journal::open(&path).expect_err(&text).code(), "E-JOURNAL-DAMAGED");
        }
        // Lines that are missing at the end cannot be noticed in the file alone: the report has the hash of the last.
        std::fs::write(&path, format!("{opened}{stop}")).expect("written");
        assert_eq!(Journal::open(&path).expect("opens").lines().len(), 2);
    }
}
