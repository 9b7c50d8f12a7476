//! A table out of one database and into another under a new name, compared on both sides. Where it comes from is a scratch one:
//! what is in the way there is changed.

use std::path::Path;
use std::time::{Duration, Instant};

use super::carry::{dump, load};
use super::report::{TableReport, key_report, report_left_out, sequences};
use super::{SUFFIX, millis, with_suffix};
use crate::cluster::{Answer, Companion, Deadline, Found, LeftOut, RowsHash, TableName, TableSession};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::tools::Tools;
use crate::scratch::server;

pub(super) struct Carry<'a> {
    pub table: &'a TableName,
    pub rescued: &'a TableName,
    pub tools: &'a Tools,
    /// Nobody else's: for the dump, and for passwords of connections.
    pub dir: &'a Path,
    /// How long each step may take.
    pub within: Duration,
}

impl Carry<'_> {
    /// The table as it was then, if the live database can take it.
    pub fn look(&self, there: &TableSession, here: &TableSession) -> Result<Found> {
        let Some(found) = there.find(self.table)? else {
            return Err(match there.other_kind(self.table)? {
                Some(kind) => EngineError::refused(
                    "E-TABLE-NONE",
                    format!("{} was {kind} at that moment, and no table", self.table),
                    "name the table that holds the rows",
                ),
                None => EngineError::refused(
                    "E-TABLE-NONE",
                    format!("there was no table {} at that moment", self.table),
                    match there.alike(self.table)?.as_slice() {
                        [] => "choose another moment: 'pgark wal history' tells when tables were dropped".to_owned(),
                        alike => format!(
                            "there was {}; a name without quotes is read in lower case, as SQL does: write it as here, within '…'",
                            alike.join(", ")
                        ),
                    },
                ),
            });
        };
        let unknown = here.unknown_types(&there.column_types(found.oid)?)?;
        if !unknown.is_empty() {
            return Err(EngineError::refused(
                "E-TABLE-TYPE",
                format!("the live database has no type {}", unknown.join(", ")),
                "create it first, as it was then; nothing was changed",
            ));
        }
        // A copy of it, and the dump.
        let needed = found.size_bytes.saturating_mul(if found.must_copy { 2 } else { 1 });
        server::room(self.dir, needed, "choose another directory with --scratch-dir")?;
        Ok(found)
    }

    pub fn over(&self, there: &TableSession, here: &TableSession, found: Found, ctx: &Ctx) -> Result<TableReport> {
        let began = Instant::now();
        let deadline = || Deadline::after(self.within);
        let keys = there.foreign_keys(found.oid)?;
        ctx.progress.note("taking the table out of where it was restored");
        let (source, left_out, mut notes) = take_out(there, here, self, &found, deadline())?;
        let before = rows_of(there, &source, deadline())?;
        let dump = dump(there, self, &source, ctx)?;
        let dump_bytes = std::fs::metadata(&dump).map_err(|e| EngineError::file("looking at", &dump, e))?.len();
        let owner_kept = here.role_exists(&found.owner)?;
        ctx.progress.note("loading it into the live database");
        load(here, self, &dump, owner_kept, ctx)?;
        let after = rows_of(here, self.rescued, deadline())?;
        let compared = before.1.is_some() && after.1.is_some();
        if !compared {
            notes.push(
                "its rows were counted, and their contents not compared: that takes a database in UTF-8".to_owned(),
            );
        }
        if before.0 != after.0 || compared && before.1 != after.1 {
            here.drop_table(self.rescued, deadline())?;
            return Err(EngineError::failed(
                "E-TABLE-DIFFERS",
                format!(
                    "{} was loaded with other rows than it was dumped with: {} and {}",
                    self.rescued, after.0, before.0
                ),
                "it was dropped again; please report this",
            ));
        }
        let foreign_keys = keys.iter().map(|key| key_report(here, self, key, deadline())).collect::<Result<_>>()?;
        Ok(TableReport {
            rows: before.0,
            text_bytes: before.1.map_or(0, |hash| hash.text_bytes),
            dump_bytes,
            reached: String::new(),
            owner: found.owner,
            owner_kept,
            foreign_keys,
            sequences: sequences(here, self)?,
            left_out: left_out.into_iter().map(report_left_out).collect(),
            notes,
            recovery_ms: 0,
            duration_ms: millis(began.elapsed()),
        })
    }
}

/// Under the names it is to have, without what hangs on it. Returns its place in the scratch one.
fn take_out(
    there: &TableSession,
    here: &TableSession,
    carry: &Carry<'_>,
    found: &Found,
    deadline: Deadline,
) -> Result<(TableName, Vec<LeftOut>, Vec<String>)> {
    there.still()?;
    let mut notes = vec![];
    let (source, mut original) = (carry.rescued.clone(), carry.table.clone());
    // It takes the name of one that is gone.
    let same_name = source == original;
    if !same_name && there.name_is_taken(&source)? {
        // At that moment something had the name; it is in nobody's way in a scratch one.
        let aside = free_name(there, here, &source.schema, &source.name)?;
        there.rename(Companion::Table, &source.schema, &source.name, &aside, deadline)?;
    }
    if found.must_copy {
        let left_out = there.surroundings(found.oid, &original)?;
        if same_name {
            let aside = free_name(there, here, &source.schema, &source.name)?;
            there.rename(Companion::Table, &source.schema, &source.name, &aside, deadline)?;
            original.name = aside;
        }
        there.copy_into_plain(&original, &source.name, &found.owner, deadline)?;
        notes.push(
            "it is partitioned, has or is a child, or is a materialized view: its rows are in one plain table without defaults".to_owned(),
        );
        return Ok((source, left_out, notes));
    }
    let left_out = there.strip(&original, found.oid, deadline)?;
    for (kind, schema, name) in there.companions(found.oid)? {
        if same_name && !here.name_is_taken(&TableName { schema: schema.clone(), name: name.clone() })? {
            continue;
        }
        let free = free_name(there, here, &schema, &name)?;
        there.rename(kind, &schema, &name, &free, deadline)?;
    }
    if !same_name {
        there.rename(Companion::Table, &original.schema, &original.name, &source.name, deadline)?;
    }
    notes.push("nobody but its owner may read it: what was granted on the original was not granted on it".to_owned());
    Ok((source, left_out, notes))
}

/// A name for something that comes along, free in both databases.
fn free_name(there: &TableSession, here: &TableSession, schema: &str, name: &str) -> Result<String> {
    for n in 1..1000 {
        let suffix = if n == 1 { SUFFIX.to_owned() } else { format!("{SUFFIX}{n}") };
        let candidate = TableName { schema: schema.to_owned(), name: with_suffix(name, &suffix) };
        if !there.name_is_taken(&candidate)? && !here.name_is_taken(&candidate)? {
            return Ok(candidate.name);
        }
    }
    Err(EngineError::refused(
        "E-TABLE-EXISTS",
        format!("no free name like {name}{SUFFIX}"),
        "drop what was rescued earlier",
    ))
}

/// Where columns are generated, of the others; no hash where none could be made without running functions of its owner.
fn rows_of(session: &TableSession, table: &TableName, deadline: Deadline) -> Result<(u64, Option<RowsHash>)> {
    match session.rows(table, deadline)? {
        Answer::Rows { rows, hash, given } => Ok((rows, given.or(hash))),
        _ => Err(EngineError::failed("E-TABLE-ROWS", format!("the rows of {table} could not be counted"), "")),
    }
}
