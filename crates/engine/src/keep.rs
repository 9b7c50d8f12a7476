//! Marks that protect a backup: kept, kept until a moment, legal holds.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_repo::catalog::{BackupEntry, CatalogStore, Hold};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::expire::revive::not_listed;

/// Longest reason of a hold, characters.
const REASON_MAX: usize = 500;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    Keep,
    KeepUntil(Timestamp),
    /// Stays until it is lifted by the same reason; several may be on one backup.
    Hold(String),
    /// Takes `Keep` and `KeepUntil` away. Holds stay.
    Unkeep,
    LiftHold(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Make,
    /// Only find out whether it could be made.
    Try,
}

/// Longest key and value of a note, and most notes on a backup.
const NOTE_BYTES_MAX: usize = 1000;
const NOTES_MAX: usize = 100;

/// Sets notes; an empty value takes one away. Returns all notes as they are then.
pub fn annotate(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    notes: &[(String, String)],
    change: Change,
) -> Result<BTreeMap<String, String>> {
    let catalog = CatalogStore::new(repo, cluster);
    let none = || RepoError::NoBackup { cluster: cluster.to_string(), id: id.to_string() };
    let apply = |before: &BTreeMap<String, String>| {
        let mut all = before.clone();
        for (key, value) in notes {
            match value.is_empty() {
                true => drop(all.remove(key)),
                false => drop(all.insert(key.clone(), value.clone())),
            }
        }
        all
    };
    let listed = catalog.read()?;
    let now = apply(&listed.backup(id).ok_or_else(|| not_listed(&listed, id))?.annotations);
    let long = notes.iter().any(|(k, v)| k.len() > NOTE_BYTES_MAX || v.len() > NOTE_BYTES_MAX);
    if now.len() > NOTES_MAX || long {
        return Err(EngineError::refused(
            "E-ANNOTATION",
            format!("a backup has at most {NOTES_MAX} notes, of at most {NOTE_BYTES_MAX} bytes"),
            "keep longer texts elsewhere and note where",
        ));
    }
    if change == Change::Try {
        return Ok(now);
    }
    let written = catalog.update(|c| {
        let entry = c.backups.iter_mut().find(|b| b.id == *id).ok_or_else(none)?;
        let after = apply(&entry.annotations);
        let changed = after != entry.annotations;
        entry.annotations = after.clone();
        Ok(changed.then_some(after))
    })?;
    Ok(written.unwrap_or(now))
}

/// The backup's entry as it is then.
pub fn mark(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
    mark: &Mark,
    change: Change,
    ctx: &Ctx,
) -> Result<BackupEntry> {
    check(mark, ctx.now())?;
    let catalog = CatalogStore::new(repo, cluster);
    let none = || RepoError::NoBackup { cluster: cluster.to_string(), id: id.to_string() };
    let listed = catalog.read()?;
    let found = listed.backup(id).ok_or_else(|| not_listed(&listed, id))?;
    let mut refused = None;
    let mut marked = None;
    let mut apply = |entry: &mut BackupEntry| match set(entry, mark, ctx.now()) {
        Ok(()) => marked = Some(entry.clone()),
        Err(e) => refused = Some(e),
    };
    match change {
        Change::Try => apply(&mut found.clone()),
        Change::Make => drop(catalog.update(|c| {
            let entry = c.backups.iter_mut().find(|b| b.id == *id).ok_or_else(none)?;
            let before = entry.clone();
            apply(entry);
            // What was refused, and what was so already, is not written.
            Ok((*entry != before).then_some(()))
        })?),
    }
    match (refused, marked) {
        (Some(e), _) => Err(e),
        (None, marked) => Ok(marked.ok_or_else(none)?),
    }
}

pub(crate) fn check(mark: &Mark, now: Timestamp) -> Result<()> {
    match mark {
        Mark::KeepUntil(until) if *until <= now => Err(EngineError::refused(
            "E-KEEP-UNTIL",
            format!("{until} is over: it is {now}"),
            "give a time in the future, or leave it out to keep the backup until 'pgark unkeep'",
        )),
        Mark::Hold(reason) if reason.trim().is_empty() || reason.chars().count() > REASON_MAX => {
            Err(EngineError::refused(
                "E-HOLD-REASON",
                format!("a legal hold needs a reason of at most {REASON_MAX} characters"),
                "such as the number of the case: it lifts the hold again",
            ))
        }
        _ => Ok(()),
    }
}

fn set(entry: &mut BackupEntry, mark: &Mark, now: Timestamp) -> Result<()> {
    match mark {
        Mark::Keep => entry.kept = true,
        Mark::KeepUntil(until) => entry.kept_until = Some(*until),
        Mark::Unkeep => (entry.kept, entry.kept_until) = (false, None),
        Mark::Hold(reason) => {
            if !entry.holds.iter().any(|h| h.reason == *reason) {
                entry.holds.push(Hold { reason: reason.clone(), since: now });
            }
        }
        Mark::LiftHold(reason) => {
            let before = entry.holds.len();
            entry.holds.retain(|h| h.reason != *reason);
            if entry.holds.len() == before {
                let known: Vec<String> = entry.holds.iter().map(|h| format!("'{}'", h.reason)).collect();
                let known = if known.is_empty() {
                    "it is under none".into()
                } else {
                    format!("it is under {}", known.join(", "))
                };
                return Err(EngineError::refused(
                    "E-HOLD-UNKNOWN",
                    format!("backup {} is under no legal hold '{reason}': {known}", entry.id),
                    "a hold is lifted by exactly the reason it was given; 'pgark info ID' shows it",
                ));
            }
        }
    }
    Ok(())
}
