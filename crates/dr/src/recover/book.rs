//! Where the journal of a cluster's recovery is: one at a time, put away under the name of the recovery when it has ended.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgark_engine::error::{EngineError, Result};

use super::Opening;
use crate::journal::{Event, Journal, Line};

/// The journal of the recovery that is under way, or was.
pub fn path(dir: &Path, cluster: &str) -> PathBuf {
    dir.join(format!("recovery-{cluster}.journal"))
}

/// What of a recovery stands in the journal.
#[derive(Clone, Debug)]
pub enum Found {
    None,
    Unfinished(Opening),
    /// It ended, and was not put away.
    Ended(Opening),
}

/// Looks and changes nothing.
pub fn look(dir: &Path, cluster: &str) -> Result<Found> {
    let path = path(dir, cluster);
    match path.try_exists() {
        Ok(false) => Ok(Found::None),
        _ => {
            let lines = Journal::look(&path)?;
            readable(&lines, &path)?;
            Ok(found(&lines))
        }
    }
}

pub fn found(lines: &[Line]) -> Found {
    let Some(opening) = opening(lines) else { return Found::None };
    match lines.iter().any(|l| matches!(l.event, Event::Ended { .. })) {
        true => Found::Ended(opening),
        false => Found::Unfinished(opening),
    }
}

/// A journal whose beginning cannot be understood is not one that nothing was done in.
fn readable(lines: &[Line], path: &Path) -> Result<()> {
    if lines.is_empty() || opening(lines).is_some() {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-JOURNAL-DAMAGED",
        format!("{} does not begin with what a recovery of this version writes", path.display()),
        "another version of pgark may have begun it: go on with that one; or look how things are, and put the file away",
    ))
}

pub fn opening(lines: &[Line]) -> Option<Opening> {
    match &lines.first()?.event {
        Event::Opened { plan, .. } => serde_json::from_value(plan.clone()).ok(),
        _ => None,
    }
}

/// A new one. What has ended is put away first.
///
/// # Errors
/// When there is one under way, or one that was cut off.
pub fn begin(dir: &Path, opening: &Opening, at: Timestamp) -> Result<Journal> {
    std::fs::create_dir_all(dir).map_err(|e| EngineError::file("making", dir, e))?;
    let path = path(dir, &opening.cluster);
    let mut journal = Journal::open(&path)?;
    readable(journal.lines(), &path)?;
    match found(journal.lines()) {
        Found::Unfinished(other) => return Err(unfinished(&other)),
        Found::Ended(other) => {
            put_away(&mut journal, dir, &other)?;
            journal = Journal::open(&path)?;
        }
        Found::None => {}
    }
    let plan = serde_json::to_value(opening).map_err(|e| internal(&e))?;
    let what = format!("recovery {} of {}", opening.id, opening.cluster);
    journal.append(at, Event::Opened { what, plan })?;
    Ok(journal)
}

/// One that was cut off.
///
/// # Errors
/// Also when there is none.
pub fn go_on(dir: &Path, cluster: &str, by: &str, at: Timestamp) -> Result<(Journal, Opening)> {
    let none = || {
        EngineError::refused(
            "E-RECOVER-NONE",
            format!("no recovery of '{cluster}' was interrupted: there is no journal of one in {}", dir.display()),
            "'pgark recover' begins one",
        )
    };
    let path = path(dir, cluster);
    if !path.exists() {
        return Err(none());
    }
    let mut journal = Journal::open(&path)?;
    readable(journal.lines(), &path)?;
    let opening = match found(journal.lines()) {
        Found::Unfinished(opening) => opening,
        Found::Ended(opening) => {
            let state = journal.ended().map_or("?", |(state, _)| state);
            return Err(EngineError::refused(
                "E-RECOVER-NONE",
                format!("recovery {} of '{cluster}' has ended: {state}", opening.id),
                "'pgark report list' shows its report; 'pgark recover' begins another one",
            ));
        }
        Found::None => return Err(none()),
    };
    journal.append(at, Event::Resumed { by: by.to_owned() })?;
    Ok((journal, opening))
}

pub fn put_away(journal: &mut Journal, dir: &Path, opening: &Opening) -> Result<()> {
    journal.put_away(&dir.join(format!("recovery-{}-{}.journal", opening.cluster, opening.id)))
}

pub fn unfinished(other: &Opening) -> EngineError {
    EngineError::refused(
        "E-RECOVER-UNFINISHED",
        format!("recovery {} of '{}', begun {} by {}, has not ended", other.id, other.cluster, other.began, other.by),
        "'pgark recover --resume' goes on with it, 'pgark recover --abandon' takes back what can be; nothing was changed",
    )
}

fn internal(e: &serde_json::Error) -> EngineError {
    EngineError::failed("E-INTERNAL", format!("the plan cannot be written as JSON: {e}"), "")
}
