//! What settings make of a recovery from a dump.

use std::rc::Rc;

use pgark_dr::recover::logical::Logical;
use pgark_dr::recover::{Opening, Recovery};
use pgark_engine::logical::restore::{Old, Replace, RestoreDatabase, RestoreOptions, Validation};
use pgark_engine::logical::select::Selection;
use pgark_engine::logical::{LogicalOptions, Wanted};
use pgark_repo::codec::Compression;

use super::backup_logical::{LOCK_WAIT, scratch, tool_options, truth};
use super::context::{CONNECT_TIMEOUT, Context};
use super::delete::parse_id;
use super::recover::RESTORE_WITHIN;
use super::validate::{CHECK_WITHIN, ask_as, configured_checks};
use crate::failure::Failure;
use crate::settings::recover::Recover;

/// The one that is named; or the only one that is dumped.
pub fn database(context: &Context, settings: &Recover) -> Result<String, Failure> {
    let dumped = context.cluster_settings()?.logical.clone().unwrap_or_default().databases;
    match (&settings.database, dumped.as_slice()) {
        (Some(name), _) => Ok(name.clone()),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(Failure::usage("E-DATABASE-NONE", "nothing says which database is recovered")
            .hint("set database in [clusters.NAME.recover]")),
    }
}

pub fn logical(context: &Context, settings: &Recover, recovery: &Rc<Recovery>) -> Result<Logical, Failure> {
    let opening = &recovery.opening;
    Ok(Logical {
        recovery: recovery.clone(),
        options: restore_options(context, settings, opening)?,
        safety: safety_options(context, opening)?,
        database: opening.database.clone().unwrap_or_default(),
        restore_within: settings.restore_timeout.map_or(RESTORE_WITHIN, |s| s.0),
        safety_within: settings.safety_timeout.map_or(RESTORE_WITHIN, |s| s.0),
    })
}

pub fn restore_options(context: &Context, settings: &Recover, opening: &Opening) -> Result<RestoreOptions, Failure> {
    let configured = context.cluster_settings()?.logical.clone().unwrap_or_default();
    let name = opening.database.clone().unwrap_or_default();
    Ok(RestoreOptions {
        cluster: context.cluster()?,
        backup: opening.backup.as_ref().map(|id| parse_id(id)).transpose()?,
        // What was taken since may hold what is to be undone.
        not_after: Some(opening.declared),
        run: None,
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        database: Some(RestoreDatabase {
            to: name.clone(),
            name,
            // The backup of what is replaced is a step of its own.
            replace: Replace::Replace { safety: None, old: Old::Keep },
            selection: Selection::default(),
        }),
        globals: false,
        tools: tool_options(None, &configured),
        scratch: scratch(&configured),
        jobs: context.jobs(),
        validate: Some(Validation {
            checks: configured_checks(context)?,
            ask_as: ask_as(None, context)?,
            check_within: settings.check_timeout.map_or(CHECK_WITHIN, |s| s.0),
            within: settings.restore_timeout.map_or(RESTORE_WITHIN, |s| s.0),
        }),
    })
}

fn safety_options(context: &Context, opening: &Opening) -> Result<LogicalOptions, Failure> {
    let configured = context.cluster_settings()?.logical.clone().unwrap_or_default();
    Ok(LogicalOptions {
        cluster: context.cluster()?,
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        databases: Wanted::Named(vec![opening.database.clone().unwrap_or_default()]),
        globals: false,
        schemas: vec![],
        tables: vec![],
        tools: tool_options(None, &configured),
        lock_wait: configured.lock_wait.map_or(LOCK_WAIT, |s| s.0),
        scratch: scratch(&configured),
        jobs: context.jobs(),
        compression: Compression::DEFAULT,
        truth: truth(None, &configured),
        keep: false,
        annotations: Default::default(),
        files: None,
    })
}
