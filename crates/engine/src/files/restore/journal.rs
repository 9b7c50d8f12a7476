//! What an exchange is about to do, written down before its first step: with it, another process can put everything back.
//!
//! A file in each staging directory, JSON lines: the header, the steps in their order, and their number. Invariants: it is whole or
//! not there; when it says "exchanging" in one of the places of a restore, it is there in all of them; nothing is taken out of a
//! staging before it says "placed" or has another name.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

use pgark_repo::manifest::Attributes;
use pgark_repo::record::HexPath;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::stage::{StagedAt, What};
use crate::error::{EngineError, Result};
use crate::files::place::{Placing, Step};

const NAME: &str = ".pgark-journal";
pub const NEW_NAME: &str = ".pgark-journal.new";
const SCHEMA: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing of what is there was touched.
    Staging,
    Exchanging,
    /// All of it is in place; what was replaced is to be cleared away.
    Placed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    schema: u32,
    pub state: State,
    /// All places of the restore; while they are made its own alone.
    pub places: Vec<PlaceRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRecord {
    /// The directory, and the name of the staging in it.
    pub dir: HexPath,
    pub name: String,
    /// Below the staging: what goes into the directory.
    pub source: HexPath,
    pub with_top: bool,
    /// Directories that were made for it, outermost first.
    pub made: Vec<HexPath>,
    pub modified_ns: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Enter { path: HexPath, mode: u32, kept: Kept },
    Move { path: HexPath, new: u64 },
    Exchange { path: HexPath, new: u64, directory: bool },
    End { steps: u64 },
}

/// Attributes of a directory.
#[derive(Serialize, Deserialize)]
struct Kept {
    uid: u32,
    gid: u32,
    user: HexPath,
    group: HexPath,
    modified_ns: i64,
    xattrs: Vec<(HexPath, HexPath)>,
}

pub struct Journal {
    pub header: Header,
    pub steps: Vec<Step>,
}

/// Before anything is written into them.
pub fn begin(places: &[StagedAt]) -> Result<()> {
    mark(places, State::Staging)
}

/// Before the first step of any of them. A place of which nothing was wanted has no steps.
pub fn write(places: &[StagedAt], placings: &[(&StagedAt, Placing<'_>)]) -> Result<()> {
    let header = Header { schema: SCHEMA, state: State::Exchanging, places: places.iter().map(record).collect() };
    for at in places {
        let own = placings.iter().find(|(of, _)| std::ptr::eq(*of, at));
        replace(at, &header, own.map_or(&[], |(_, placing)| placing.steps.as_slice()))?;
    }
    Ok(())
}

pub fn mark_placed(places: &[StagedAt]) -> Result<()> {
    mark(places, State::Placed)
}

fn mark(places: &[StagedAt], state: State) -> Result<()> {
    let header = Header { schema: SCHEMA, state, places: places.iter().map(record).collect() };
    places.iter().try_for_each(|at| replace(at, &header, &[]))
}

fn record(at: &StagedAt) -> PlaceRecord {
    let path = |path: &std::path::Path| HexPath(path.as_os_str().as_bytes().to_vec());
    PlaceRecord {
        dir: path(&at.dir_path),
        name: at.name.clone(),
        source: HexPath(at.what.source().to_vec()),
        with_top: matches!(at.what, What::Directory { .. }),
        made: at.made.iter().map(|made| path(made)).collect(),
        modified_ns: at.modified_ns,
    }
}

fn replace(at: &StagedAt, header: &Header, steps: &[Step]) -> Result<()> {
    let shown = at.dir_path.join(&at.name).join(NAME);
    let failed = |e: std::io::Error| EngineError::file("writing", &shown, e);
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&at.staging, NEW_NAME, flags, Mode::RUSR | Mode::WUSR);
    let mut to = BufWriter::new(File::from(file.map_err(|e| failed(e.into()))?));
    line(&mut to, header).map_err(failed)?;
    let mut written = 0;
    for step in steps.iter().filter_map(as_line) {
        line(&mut to, &step).map_err(failed)?;
        written += 1;
    }
    line(&mut to, &Line::End { steps: written }).map_err(failed)?;
    let file = to.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    rustix::fs::renameat(&at.staging, NEW_NAME, &at.staging, NAME).map_err(|e| failed(e.into()))?;
    at.staging.sync_all().map_err(failed)
}

fn line(to: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.write_all(b"\n")
}

/// What is needed to undo it; None for a step of which nothing is left to undo.
fn as_line(step: &Step) -> Option<Line> {
    let hex = |bytes: &[u8]| HexPath(bytes.to_vec());
    Some(match step {
        Step::Leave { .. } => return None,
        Step::Move { path, new } => Line::Move { path: hex(path), new: *new },
        Step::Exchange { path, new, directory } => Line::Exchange { path: hex(path), new: *new, directory: *directory },
        Step::Enter { path, mode, before } => {
            let xattrs = before.xattrs.iter().map(|(name, value)| (hex(name), hex(value))).collect();
            let Attributes { uid, gid, modified_ns, .. } = *before;
            let (user, group) = (hex(&before.user), hex(&before.group));
            Line::Enter { path: hex(path), mode: *mode, kept: Kept { uid, gid, user, group, modified_ns, xattrs } }
        }
    })
}

fn as_step(line: Line) -> Option<Step> {
    Some(match line {
        Line::End { .. } => return None,
        Line::Move { path, new } => Step::Move { path: path.0, new },
        Line::Exchange { path, new, directory } => Step::Exchange { path: path.0, new, directory },
        Line::Enter { path, mode, kept } => {
            let Kept { uid, gid, user, group, modified_ns, xattrs } = kept;
            let xattrs = xattrs.into_iter().map(|(name, value)| (name.0, value.0)).collect();
            let before = Attributes { uid, gid, user: user.0, group: group.0, modified_ns, changed: false, xattrs };
            Step::Enter { path: path.0, mode, before }
        }
    })
}

/// None when there is none.
pub fn read(staging: &File, shown: &std::path::Path) -> Result<Option<Journal>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(staging, NAME, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(EngineError::file("opening", shown.join(NAME), e)),
    };
    let damaged = |why: String| {
        EngineError::failed(
            "E-FILES-JOURNAL",
            format!("{} is not what a restore wrote: {why}", shown.join(NAME).display()),
            "move the directory away, do not remove it, and look into it: it may hold files that were replaced",
        )
    };
    let mut lines = BufReader::new(file).lines();
    let mut next = || -> Result<String> {
        let line = lines.next().ok_or_else(|| damaged("it ends too early".into()))?;
        line.map_err(|e| EngineError::file("reading", shown.join(NAME), e))
    };
    let header: Header = serde_json::from_str(&next()?).map_err(|e| damaged(e.to_string()))?;
    if header.schema != SCHEMA {
        return Err(damaged(format!("it is of form {}, and this version knows {SCHEMA}", header.schema)));
    }
    let mut steps = vec![];
    loop {
        let line: Line = serde_json::from_str(&next()?).map_err(|e| damaged(e.to_string()))?;
        if let Line::End { steps: written } = line {
            return match written == steps.len() as u64 {
                true => Ok(Some(Journal { header, steps })),
                false => Err(damaged("steps are missing".into())),
            };
        }
        steps.extend(as_step(line));
    }
}
