//! What is told of a table that was brought back.

use serde::Serialize;

use super::over::Carry;
use crate::cluster::{Deadline, ForeignKey, KeyState, LeftOut, SequenceState, TableSession};
use crate::error::Result;
use crate::logical::select::LeftKey;

#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub rows: u64,
    pub text_bytes: u64,
    pub dump_bytes: u64,
    /// Where recovery ended; of a dump, the moment that it is of.
    pub reached: String,
    pub owner: String,
    /// Whether the owner of the original exists and owns the rescued table.
    pub owner_kept: bool,
    pub foreign_keys: Vec<ForeignKeyReport>,
    pub sequences: Vec<SequenceReport>,
    pub left_out: Vec<LeftOutReport>,
    pub notes: Vec<String>,
    pub recovery_ms: u64,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct ForeignKeyReport {
    pub name: String,
    pub definition: String,
    pub refers_to: String,
    /// Rows without a counterpart in the live database; None when that could not be found out.
    pub orphans: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_checked: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SequenceReport {
    pub column: String,
    pub sequence: String,
    pub last_value: String,
    pub furthest: Option<String>,
    /// The sequence of the live table of the original's name, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_last_value: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LeftOutReport {
    pub what: String,
    pub name: String,
    pub definition: String,
}

pub(super) fn report_left_out(left: LeftOut) -> LeftOutReport {
    LeftOutReport { what: left.what.to_owned(), name: left.name, definition: left.definition }
}

pub(super) fn key_report(
    here: &TableSession,
    carry: &Carry<'_>,
    key: &ForeignKey,
    deadline: Deadline,
) -> Result<ForeignKeyReport> {
    let (orphans, not_checked) = match here.orphans(carry.rescued, key, deadline)? {
        KeyState::Checked { orphans } => (Some(orphans), None),
        KeyState::NotChecked { reason } => (None, Some(reason)),
    };
    Ok(ForeignKeyReport {
        name: key.name.clone(),
        definition: key.definition.clone(),
        refers_to: key.refers_to.to_string(),
        orphans,
        not_checked,
    })
}

/// Of one that stayed in the dump. `encoding`: of the database that was dumped.
pub(super) fn left_key_report(
    here: &TableSession,
    carry: &Carry<'_>,
    key: &LeftKey,
    encoding: &str,
    deadline: Deadline,
) -> Result<ForeignKeyReport> {
    let statement = std::str::from_utf8(&key.definition).ok().filter(|s| s.is_ascii() || encoding == "UTF8");
    match statement.and_then(pgark_pg::foreign_key::ForeignKey::parse) {
        Some(parsed) => key_report(here, carry, &ForeignKey::of_dump(parsed)?, deadline),
        None => Ok(ForeignKeyReport {
            name: key.name.clone(),
            definition: String::from_utf8_lossy(&key.definition).trim_end().to_owned(),
            refers_to: "another table".to_owned(),
            orphans: None,
            not_checked: Some("what the dump says of it is not understood".to_owned()),
        }),
    }
}

pub(super) fn sequences(here: &TableSession, carry: &Carry<'_>) -> Result<Vec<SequenceReport>> {
    let live = here.sequences(carry.table)?;
    let report = |state: SequenceState| {
        let of_live = live.iter().find(|l| l.column == state.column);
        SequenceReport {
            live_last_value: of_live.map(|l| l.last_value.clone()),
            column: state.column,
            sequence: state.sequence,
            last_value: state.last_value,
            furthest: state.furthest,
        }
    };
    Ok(here.sequences(carry.rescued)?.into_iter().map(report).collect())
}
