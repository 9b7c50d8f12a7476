//! An exchange that was interrupted is undone, with its journal, by whoever comes after.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgark_repo::record::HexPath;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::exchange::put_aside;
use super::journal::{self, Journal, PlaceRecord, State};
use super::stage::{StagedAt, What};
use crate::error::{EngineError, Result};
use crate::files::attributes;
use crate::files::owners::Owners;
use crate::files::place::{Placing, REPLACED, STAGING, UNDONE, open_dir, open_staging, remove_tree};
use crate::files::scan::names;

/// What became of an interrupted restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undone {
    /// Nothing had been touched; what was written beside is gone.
    NotBegun,
    /// This many names are what they were again. What the restore had put there, and what came to it since, is here.
    PutBack { names: u64, kept: Vec<PathBuf> },
    /// Everything had been put in place, and stays; what it replaced is here.
    WasPlaced { kept: Vec<PathBuf> },
}

/// `staging`: the directory `.pgark-restore-…` that the restore left, any one of them. Needs no repository.
///
/// # Errors
/// `E-FILES-BUSY` while the restore runs; `E-FILES-JOURNAL` where it is not known what had been done. Then nothing is changed.
/// What somebody else changed meanwhile is not put back; then what is in the stagings stays there.
pub fn undo(staging: &Path) -> Result<Undone> {
    let (dir, name) = parts(staging)?;
    let hex = |path: &Path| HexPath(path.as_os_str().as_bytes().to_vec());
    let (source, made) = (hex(Path::new("")), vec![]);
    let own = PlaceRecord { dir: hex(&dir), name, source, with_top: false, made, modified_ns: 0 };
    let Some((at, journal)) = open(&own)? else {
        return Err(EngineError::refused(
            "E-FILES-UNDO",
            format!("{} is not there", staging.display()),
            "nothing is left of an interrupted restore there",
        ));
    };
    let Some(journal) = journal else {
        let failed = |e: Errno| EngineError::file("listing", staging, e);
        return match names(at.staging.as_fd()).map_err(failed)?.iter().all(|name| name == journal::NEW_NAME.as_bytes())
        {
            // It had only just been made.
            true => remove_tree(at.dir.as_fd(), at.name.as_bytes()).map(|()| Undone::NotBegun).map_err(failed),
            false => Err(unknown(format!("{} has no journal", staging.display()))),
        };
    };
    // It is opened again, with its lock, as one of all places.
    let own = journal.header.places;
    drop(at);
    let found = own.iter().map(open).collect::<Result<Vec<_>>>()?;
    let has = |state| found.iter().flatten().any(|(_, j)| j.as_ref().is_some_and(|j| j.header.state == state));
    if has(State::Placed) {
        return was_placed(found);
    }
    if !has(State::Exchanging) {
        // Dropped, each of them removes itself; of one without a journal it is not known that a restore made it.
        found.iter().flatten().filter(|(_, journal)| journal.is_some()).for_each(|(at, _)| at.placed.set(false));
        return Ok(Undone::NotBegun);
    }
    put_back(&own, found)
}

type Opened = Option<(StagedAt, Option<Journal>)>;

fn put_back(places: &[PlaceRecord], found: Vec<Opened>) -> Result<Undone> {
    let (mut all, mut gone) = (vec![], vec![]);
    for (place, opened) in places.iter().zip(found) {
        let shown = path_of(&place.dir.0).join(&place.name);
        match opened {
            Some((at, Some(journal))) => all.push((place, at, journal)),
            Some((_, None)) => return Err(unknown(format!("{} has no journal", shown.display()))),
            None => gone.push(shown),
        }
    }
    let owners = Owners::of_this_machine();
    let (mut put_back, mut moved) = (0, std::collections::BTreeSet::new());
    for (place, at, journal) in all.iter_mut().rev() {
        let source = match open_dir(&at.staging, &place.source.0) {
            Ok(source) => source,
            // Nothing of it was wanted.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && journal.steps.is_empty() => continue,
            Err(e) => return Err(EngineError::file("opening", at.dir_path.join(&at.name), e)),
        };
        let mut placing = Placing::new(&at.dir, &source, &at.dir_path, &owners, place.with_top);
        placing.steps = std::mem::take(&mut journal.steps);
        if let Some(gone) = gone.first() {
            // Removed before anything was exchanged, perhaps.
            let failed = |e| EngineError::file("looking at", &at.dir_path, e);
            match placing.is_begun().map_err(failed)? {
                true => return Err(unknown(format!("{} is no longer there", gone.display()))),
                false => continue,
            }
        }
        let names = placing.put_back().map_err(|(path, e)| {
            EngineError::failed(
                "E-FILES-UNDO",
                format!("{} could not be put back: {e}", path.display()),
                format!(
                    "what was there before the restore is in {}; see to it, and try again",
                    at.dir_path.join(&at.name).display()
                ),
            )
        })?;
        put_back += names;
        if names > 0 {
            moved.insert(at.dir_path.join(&at.name));
        }
    }
    for (_, at, _) in &all {
        rustix::fs::syncfs(&at.staging).map_err(|e| EngineError::file("syncing", &at.dir_path, e))?;
    }
    let mut kept = vec![];
    for (n, (_, at, _)) in all.iter().enumerate() {
        // Dropped, it removes itself, and the directories that were made for it. What served for a while may have got content
        // that is nowhere else: that is put aside.
        if !moved.contains(&at.dir_path.join(&at.name)) {
            at.placed.set(false);
            continue;
        }
        let id = at.name.strip_prefix(STAGING).unwrap_or(&at.name);
        let aside = put_aside(at, &format!("{UNDONE}{id}-{n}"));
        let aside = aside.map_err(|e| EngineError::file("renaming", at.dir_path.join(&at.name), e))?;
        rustix::fs::futimens(&at.dir, &attributes::times(at.modified_ns))
            .map_err(|e| EngineError::file("setting the time of", &at.dir_path, e))?;
        kept.push(at.dir_path.join(aside));
    }
    Ok(Undone::PutBack { names: put_back, kept })
}

/// What was replaced may be the only copy of it: it is put aside, and not removed.
fn was_placed(found: Vec<Opened>) -> Result<Undone> {
    let mut kept = vec![];
    for (n, (at, _)) in found.into_iter().flatten().enumerate() {
        let id = at.name.strip_prefix(STAGING).unwrap_or(&at.name);
        let aside = put_aside(&at, &format!("{REPLACED}{id}-{n}"));
        let aside = aside.map_err(|e| EngineError::file("renaming", at.dir_path.join(&at.name), e))?;
        kept.push(at.dir_path.join(aside));
    }
    Ok(Undone::WasPlaced { kept })
}

/// The directory in which it lies, and its name.
fn parts(staging: &Path) -> Result<(PathBuf, String)> {
    let name = staging.file_name().and_then(OsStr::to_str).filter(|name| name.starts_with(STAGING));
    match (staging.parent(), name) {
        (Some(dir), Some(name)) => Ok((dir.to_owned(), name.to_owned())),
        _ => Err(EngineError::refused(
            "E-FILES-UNDO",
            format!("{} is no directory that a restore left", staging.display()),
            format!("name the directory that begins with {STAGING}"),
        )),
    }
}

/// A journal is believed only as far as a restore of this user can have written it.
fn open(place: &PlaceRecord) -> Result<Opened> {
    let dir_path = path_of(&place.dir.0);
    if !place.name.starts_with(STAGING) || place.name.contains('/') {
        return Err(unknown(format!("'{}' is no name that a restore gives", place.name.escape_debug())));
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(&dir_path, flags, Mode::empty()) {
        Ok(dir) => File::from(dir),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(EngineError::file("opening", dir_path, e)),
    };
    if let Err(Errno::NOENT) = rustix::fs::statat(&dir, &*place.name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        return Ok(None);
    }
    let staging = open_staging(&dir, &place.name, &dir_path)?;
    let stat = rustix::fs::fstat(&staging).map_err(|e| EngineError::file("looking at", &dir_path, e))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
        return Err(EngineError::refused(
            "E-FILES-UNDO",
            format!("{} is not of this user alone", dir_path.join(&place.name).display()),
            "run this as the user that ran the restore",
        ));
    }
    let journal = journal::read(&staging, &dir_path.join(&place.name))?;
    let part = place.source.0.clone();
    let at = StagedAt {
        dir,
        dir_path,
        name: place.name.clone(),
        staging,
        made: place.made.iter().map(|made| path_of(&made.0)).collect(),
        what: What::Directory { part },
        modified_ns: place.modified_ns,
        // Until everything is as it was.
        placed: Cell::new(true),
    };
    Ok(Some((at, journal)))
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn unknown(why: String) -> EngineError {
    EngineError::refused(
        "E-FILES-JOURNAL",
        format!("{why}: what the restore had done is not known"),
        "it may hold the only copy of files that were replaced: move it away, do not remove it, and look into it",
    )
}
