//! What a directory is that somebody restored into, and how far it has come: by its files alone.

use std::io::ErrorKind;
use std::path::Path;

use pgark_pg::control::{ControlFile, ControlState};
use pgark_pg::value::{SystemId, TimelineId};

use super::files::{INCOMPLETE, unfinished};
use crate::error::{EngineError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// Nothing, or what an interrupted restore left.
    Nothing,
    /// All files are there, and no server has run on them.
    Restored,
    /// A server has run on them, and recovery has not ended.
    Recovering,
    /// A cluster of its own.
    Open { system_id: SystemId, timeline: TimelineId, in_order: bool },
}

/// # Errors
/// When its files cannot be read or understood.
pub fn state(dir: &Path) -> Result<Lies> {
    let path = dir.join("global/pg_control");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Lies::Nothing),
        Err(e) => return Err(EngineError::file("reading", path, e)),
    };
    let control = ControlFile::parse(&bytes).map_err(|e| {
        EngineError::failed("E-PG-CONTROL", format!("{}: {e}", path.display()), "look at this directory")
    })?;
    if dir.join(INCOMPLETE).exists() && unfinished(dir).is_some() {
        return Ok(Lies::Nothing);
    }
    if control.is_poisoned() {
        return Ok(Lies::Restored);
    }
    if ["recovery.signal", "standby.signal", "backup_label"].iter().any(|name| dir.join(name).exists()) {
        return Ok(Lies::Recovering);
    }
    Ok(Lies::Open {
        system_id: control.system_id,
        timeline: control.checkpoint_timeline,
        in_order: control.state == ControlState::ShutDown,
    })
}
