//! Looks at the clocks there are, and says what is wrong with them.

use jiff::Timestamp;
use pgark_repo::catalog::{CatalogStore, Doubt, Reading, StoreTime, Witness};
use pgark_repo::store::ObjectName;
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// By this machine alone.
pub fn here(ctx: &Ctx) -> Reading {
    Reading { wall: ctx.now(), uptime: (ctx.uptime)(), store: None, server: None }
}

/// With the store's clock, by an object that was written just now.
pub fn with_object(repo: &Repository, written: &ObjectName, ctx: &Ctx) -> Result<Reading> {
    let modified = repo.store().stat(written)?.modified;
    let at = modified.and_then(|at| Timestamp::try_from(at).ok());
    Ok(Reading { store: at.map(|at| StoreTime { at, own: repo.store().has_own_clock() }), ..here(ctx) })
}

/// With the store's clock, by the catalog, when it was changed just now.
pub fn with_catalog(catalog: &CatalogStore, ctx: &Ctx) -> Result<Reading> {
    Ok(Reading { store: catalog.written()?, ..here(ctx) })
}

/// With the store's clock, by an object that is written for it and removed again.
///
/// # Errors
/// Where nothing may be written or removed.
pub fn by_probe(repo: &Repository, ctx: &Ctx) -> Result<Reading> {
    let store = repo.store();
    let name = format!("probe/clock-{}-{}", std::process::id(), ctx.now().as_nanosecond());
    let name = ObjectName::parse(&name).map_err(RepoError::from)?;
    store.put_new(&name, b"what time is it").map_err(RepoError::from)?;
    let reading = with_object(repo, &name, ctx);
    store.delete(&name).map_err(RepoError::from)?;
    reading
}

/// In words.
pub fn describe(doubt: &Doubt) -> String {
    let Doubt { wall, other, .. } = doubt;
    match doubt.by {
        Witness::Store => format!("the clock of this machine says {wall}, that of the repository {other}"),
        Witness::Server => format!("the clock of this machine says {wall}, that of the database server {other}"),
        Witness::Uptime => {
            format!("the clock says {wall}, and by the time since the machine was started it is {other}")
        }
        Witness::Record => {
            format!("the clock says {wall}, and the repository was written to at {other}, which is later")
        }
        Witness::Nothing => {
            format!("the clock went on from {other} to {wall} without anything that confirms it: it may have jumped")
        }
    }
}

/// As `describe`, of what the last backup met.
pub fn describe_on_record(doubt: &Doubt) -> String {
    format!("when the last backup was made, {}", describe(doubt))
}

/// As `refusal`, for what the last backup met. The clocks may be right by now; a backup says so.
pub fn refusal_on_record(doubt: &Doubt) -> EngineError {
    match refusal(doubt) {
        EngineError::Refused { code, .. } => EngineError::refused(
            code,
            format!("{}: nothing expires", describe_on_record(doubt)),
            "are the clocks right now? then take a backup, which settles it; or --accept-gap",
        ),
        other => other,
    }
}

/// Why nothing expires.
pub fn refusal(doubt: &Doubt) -> EngineError {
    let (code, hint) = match doubt.by {
        Witness::Store | Witness::Server | Witness::Uptime => (
            "E-EXPIRE-CLOCKS",
            "set the clocks right, then take a backup; if this machine's is right and stays so, --accept-gap",
        ),
        Witness::Record => (
            "E-EXPIRE-CLOCK",
            "set the clock of this machine right; if it is and that of the record was not, --accept-gap",
        ),
        Witness::Nothing => (
            "E-EXPIRE-GAP",
            "if that time has really passed, repeat with --accept-gap; otherwise set the clock right and take a backup",
        ),
    };
    EngineError::refused(code, format!("{}: nothing expires", describe(doubt)), hint)
}
