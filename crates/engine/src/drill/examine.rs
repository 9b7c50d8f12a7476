//! What is looked at in a rehearsed cluster: every database, its tables and indexes, the libraries its functions need, and the
//! administrators' own questions.
//!
//! Invariant: what is there and was not looked at is in the report; so is what was to be looked at and is not there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{DrillOptions, Report, is_finding};
use crate::cluster::{AskAs, ConnectOptions, Connection, Database, Examiners, inspect};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::logical::is_remains;
use crate::scratch::server::session;
use crate::truth::TruthReader;
use crate::validate::{
    Check, CheckKind, Contents, Expectations, Report as Validation, Tally, UserCheck, ValidateOptions, ask_all,
    validate,
};

/// Databases that every cluster has.
const OF_EVERY_CLUSTER: [&str; 2] = ["postgres", "template1"];

type StoredTruth = TruthReader<BufReader<File>>;

/// Truths that somebody brought along, by the name of their database.
pub struct Truths(Vec<(Vec<u8>, StoredTruth)>);

impl Truths {
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut all: Vec<(Vec<u8>, StoredTruth)> = vec![];
        for path in paths {
            let file = File::open(path).map_err(|e| EngineError::file("reading", path, e))?;
            let reader = TruthReader::open(BufReader::new(file))?;
            let name = reader.header().database.0.clone();
            if all.iter().any(|(known, _)| *known == name) {
                return Err(EngineError::refused(
                    "E-TRUTH-ONE",
                    format!("two truths are about database '{}'", String::from_utf8_lossy(&name).escape_debug()),
                    "give one of them",
                ));
            }
            all.push((name, reader));
        }
        Ok(Truths(all))
    }

    fn take(&mut self, name: &str) -> Option<StoredTruth> {
        let at = self.0.iter().position(|(known, _)| known == name.as_bytes())?;
        Some(self.0.swap_remove(at).1)
    }
}

/// A rehearsed cluster that runs.
pub struct Cluster<'a> {
    pub options: &'a DrillOptions,
    pub connect: &'a ConnectOptions,
    pub ctx: &'a Ctx,
}

impl Cluster<'_> {
    pub fn examine(&self, truths: &mut Truths, report: &mut Report) -> Result<()> {
        let conn = session(self.connect, self.ctx)?;
        let found = inspect(&conn)?;
        let Some(databases) = found.databases else {
            return Err(EngineError::failed("E-DRILL-DATABASES", "the databases of the cluster cannot be listed", ""));
        };
        drop(conn);
        let names = self.names(&databases, report);
        let checks = self.placed(&names, report);
        for name in &names {
            let (recorded, compared) = match truths.take(name) {
                Some(truth) => (Some(truth), true),
                None => (None, false),
            };
            let how = self.how(name, &checks, true);
            self.one(&how, |how| validate(self.connect, recorded, how, self.ctx), report)?;
            if !compared && !OF_EVERY_CLUSTER.contains(&name.as_str()) {
                report.notes.push(format!(
                    "database '{}' was compared with nothing: there is no truth of it at this moment",
                    name.escape_debug()
                ));
            }
        }
        for (name, _) in &truths.0 {
            let name = String::from_utf8_lossy(name);
            report.fail(
                "E-DRILL-DATABASE",
                format!("there is a truth of database '{}', and no such database", name.escape_debug()),
            );
        }
        Ok(())
    }

    /// Validates one database, looks for the libraries of its functions, and asks the checks. What PostgreSQL cannot do there is a
    /// reason.
    pub fn one(
        &self,
        how: &ValidateOptions,
        validate: impl FnOnce(&ValidateOptions) -> Result<Validation>,
        report: &mut Report,
    ) -> Result<()> {
        let shown = how.database.escape_debug();
        self.ctx.progress.note(&format!("examining database '{shown}'"));
        let looked = self.look(how, validate);
        self.ctx.check_cancelled()?;
        match looked {
            Ok(database) => report.database(database),
            Err(e) if is_finding(&e) => report.failed_by(&format!("database '{shown}'"), &e),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn look(
        &self,
        how: &ValidateOptions,
        validate: impl FnOnce(&ValidateOptions) -> Result<Validation>,
    ) -> Result<Validation> {
        let conn = session(&self.connect.to_database(&how.database), self.ctx)?;
        let installed = libraries(&conn)?;
        let mut database = validate(&ValidateOptions { checks: vec![], ..how.clone() })?;
        database.checks.push(installed);
        // A role without privileges cannot say that it wants no libraries, so the database must not name any. It has been compared.
        for statement in NO_LIBRARIES {
            conn.query(statement, &[])?;
        }
        drop(conn);
        database.checks.extend(ask_all(&self.connect.without("options"), how, None, self.ctx)?);
        database.outcome = Validation::judge(&database.checks);
        Ok(database)
    }

    pub fn how(&self, name: &str, checks: &[UserCheck], physical: bool) -> ValidateOptions {
        ValidateOptions {
            database: name.to_owned(),
            backup: None,
            made_from: None,
            expect: Expectations { physical, contents: Contents::IfHashed, scope: None, settings_left: false },
            jobs: self.options.jobs,
            within: self.options.within,
            examiners: Examiners::Borrowed,
            unexamined: "it was not asked for",
            checks: checks.to_vec(),
            // It is a server of ours, which lets everybody in.
            ask_as: AskAs::Made,
            check_within: self.options.check_within,
        }
    }

    /// Those that can be looked at.
    fn names(&self, databases: &[Database], report: &mut Report) -> Vec<String> {
        let mut names = vec![];
        for database in databases {
            let shown = String::from_utf8_lossy(&database.name).escape_debug().to_string();
            match std::str::from_utf8(&database.name) {
                Ok("template0") => {}
                Ok(name) if is_remains(name) => {
                    report.notes.push(format!(
                        "database '{shown}' is not examined: a restore left it; drop it when nobody needs it"
                    ));
                }
                _ if !database.allow_connections => {
                    report.not_checked(format!("database '{shown}': it does not allow connections"));
                }
                Ok(name) => names.push(name.to_owned()),
                Err(_) => report.not_checked(format!("database '{shown}': its name is not UTF-8")),
            }
        }
        names
    }

    /// Each check with its database. One that names none is meant for the only one there is.
    fn placed(&self, names: &[String], report: &mut Report) -> Vec<UserCheck> {
        let own: Vec<&String> = names.iter().filter(|n| !OF_EVERY_CLUSTER.contains(&n.as_str())).collect();
        let own = if own.is_empty() { names.iter().filter(|n| *n == "postgres").collect() } else { own };
        let mut placed = vec![];
        for check in &self.options.checks {
            match (&check.database, own.as_slice()) {
                (Some(name), _) if names.contains(name) => placed.push(check.clone()),
                (Some(name), _) => {
                    let mut tally = Tally::new(&check.name, CheckKind::User);
                    tally.failed(format!("there is no database '{}'", name.escape_debug()));
                    report.check(tally.finish());
                }
                (None, [only]) => placed.push(UserCheck { database: Some((*only).clone()), ..check.clone() }),
                (None, several) => {
                    let mut tally = Tally::new(&check.name, CheckKind::User);
                    tally.not_checked(&format!("it names no database, and the cluster has {}", several.len()));
                    report.check(tally.finish());
                }
            }
        }
        if self.options.checks.is_empty() {
            report.notes.push("no checks of your own are configured".to_owned());
        }
        placed
    }
}

/// What databases and roles set for their sessions, without the libraries that they name.
const NO_LIBRARIES: [&str; 2] = [
    "UPDATE pg_db_role_setting SET setconfig = ARRAY(SELECT c FROM unnest(setconfig) AS c \
     WHERE split_part(c, '=', 1) NOT IN ('session_preload_libraries', 'local_preload_libraries')) \
     WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))",
    "DELETE FROM pg_db_role_setting WHERE cardinality(setconfig) = 0",
];
const LIBRARIES_WITHIN: Duration = Duration::from_secs(60);
/// Of functions in C: what `CREATE FUNCTION` calls the object file.
const LIBRARIES: &str = "SELECT DISTINCT p.probin AS file FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang \
                         WHERE l.lanname = 'c' AND p.probin IS NOT NULL ORDER BY 1";
const PLACES: &str = "SELECT current_setting('dynamic_library_path') AS path, \
                      (SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR') AS own";
const ENDINGS: [&str; 3] = ["", ".so", ".dylib"];

/// Whether the files are there that functions in C are loaded from. They are not loaded: that would run code of somebody.
fn libraries(conn: &Connection) -> Result<Check> {
    let mut tally = Tally::new("libraries of functions are installed", CheckKind::Catalog);
    let row = conn.query_one(PLACES, &[])?;
    let own = row.text("own")?.to_owned();
    let path = row.text("path")?.replace("$libdir", &own);
    let deadline = crate::cluster::Deadline::after(LIBRARIES_WITHIN);
    let mut seen = BTreeSet::new();
    for row in conn.query_by(LIBRARIES, &[], deadline)? {
        let file = row.text("file")?.to_owned();
        if !seen.insert(file.clone()) {
            continue;
        }
        if is_there(&file, &own, &path) {
            tally.ok();
        } else {
            tally.failed(format!("{file} is not installed here: functions that need it fail"));
        }
    }
    if seen.is_empty() {
        tally.left_out("no function needs one");
    }
    Ok(tally.finish())
}

/// `expand_dynamic_library_name` in `dfmgr.c`.
fn is_there(file: &str, own: &str, path: &str) -> bool {
    let with_ending = |place: PathBuf| {
        ENDINGS.iter().any(|ending| {
            let mut full = place.clone().into_os_string();
            full.push(ending);
            Path::new(&full).is_file()
        })
    };
    if file.contains('/') {
        return with_ending(PathBuf::from(file.replace("$libdir", own)));
    }
    path.split(':').filter(|dir| !dir.is_empty()).any(|dir| with_ending(Path::new(dir).join(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_where_postgresql_does() {
        let dir = std::env::temp_dir().join(format!("pgark-libraries-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("made");
        std::fs::write(dir.join("known.so"), b"").expect("written");
        let own = dir.to_string_lossy().into_owned();
        let path = format!("/nowhere:{own}");
        for (file, there) in
            [("$libdir/known", true), ("known", true), ("known.so", true), ("$libdir/other", false), ("other", false)]
        {
            assert_eq!(is_there(file, &own, &path), there, "{file}");
        }
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
