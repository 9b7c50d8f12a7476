//! Whether the recovered cluster is right: read by amcheck, compared with a truth where there is one, and asked.

use std::fs::File;
use std::io::BufReader;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgark_engine::cluster::{ConnectOptions, Connection, inspect};
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::logical::is_remains;
use pgark_engine::restore::settings::quote;
use pgark_engine::restore::start::start_new;
use pgark_engine::truth::TruthReader;
use pgark_engine::validate::{
    Check, CheckKind, Contents, Expectations, Outcome as Verdict, Report, Tally, UserCheck, ValidateOptions, validate,
};
use serde_json::{Value, json};

use super::{CONNECTS_WITHIN, MOMENT, Physical, Place, Private, STOPS_WITHIN, conf, fact, lost, postmaster};
use crate::recover::logical::VALIDATION;
use crate::recover::machine::{At, Effect, Failure, State, Step, said};
use crate::recover::steps::{RESTORE, VALIDATE};

/// How long a server may take to start that has nothing to recover.
const STARTS_WITHIN: Duration = Duration::from_secs(300);
/// Databases that every cluster has.
const OF_EVERY_CLUSTER: [&str; 2] = ["postgres", "template1"];
/// Files of another cluster, which a setting names.
const ELSEWHERE: &str = "SELECT name, setting FROM pg_file_settings WHERE name = 'data_directory' AND setting <> $1";

/// In the order in which the files are read; the last one counts.
const STANDBYS: &str = "SELECT setting FROM pg_file_settings WHERE name = 'synchronous_standby_names' ORDER BY seqno";

type Truth = TruthReader<BufReader<File>>;

pub struct Validate(pub Rc<Physical>);

impl Step for Validate {
    fn name(&self) -> &'static str {
        VALIDATE
    }

    fn what(&self) -> String {
        let found = &self.0.examination;
        let truths = if found.truths.is_empty() { "" } else { ", compare with the truth" };
        format!("read tables and indexes{truths}, ask {} checks as a role without privileges", found.checks.len())
    }

    fn deadline(&self) -> Duration {
        self.0.examination.within + STARTS_WITHIN + STOPS_WITHIN * 2 + MOMENT
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let dir = self.0.dir();
        postmaster::stop(dir, STOPS_WITHIN, at.ctx)?;
        let looked = self.with_server(at);
        let stopped = postmaster::stop(dir, STOPS_WITHIN, &at.ctx.aside());
        let (reports, notes) = looked?;
        stopped?;
        conf::close_door(dir)?;
        let failed: Vec<String> = reports.iter().filter_map(wrong).collect();
        let unchecked = reports.iter().any(|r| r.outcome == Verdict::NotChecked);
        let mut warnings = notes;
        if unchecked {
            warnings.push("what was restored could not be checked completely".to_owned());
        }
        let checks: usize = reports.iter().map(|r| r.checks.len()).sum();
        let told = format!("{checks} checks in {} databases", reports.len());
        let facts = json!({"told": told, "validations": reports, "warnings": warnings});
        if failed.is_empty() {
            return Ok(facts);
        }
        *at.notes.borrow_mut() = facts;
        Err(EngineError::failed(
            VALIDATION,
            format!("what was restored is not right: {}", failed.join("; ")),
            "the report tells what differs; the application was not started on it",
        ))
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        if acted.is_none() {
            postmaster::stop(self.0.dir(), STOPS_WITHIN, at.ctx)?;
        }
        Ok(said(acted))
    }

    fn goes_back(&self, failure: &Failure, _: bool) -> bool {
        failure.step == VALIDATE
    }

    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        postmaster::stop(self.0.dir(), STOPS_WITHIN, at.ctx)?;
        conf::close_door(self.0.dir())?;
        let what = format!("what was restored is in {}; no server runs in it", self.0.dir().display());
        Ok(json!({"told": what}))
    }

    fn state(&self) -> State {
        State::Halted
    }
}

fn wrong(report: &Report) -> Option<String> {
    let failed = report.checks.iter().filter(|c| c.outcome == Verdict::Failed);
    let names: Vec<String> = failed.map(|c| c.name.escape_debug().to_string()).collect();
    (!names.is_empty()).then(|| format!("{}: {}", report.database.lossy().escape_debug(), names.join(", ")))
}

impl Validate {
    fn with_server(&self, at: &At<'_>) -> Result<(Vec<Report>, Vec<String>)> {
        let dir = self.0.dir();
        let id = fact(at, RESTORE, "backup").and_then(Value::as_str).ok_or_else(|| lost(RESTORE))?;
        let version = version_in(dir)?;
        at.ctx.progress.note(&format!("starting what was restored from {id}, for ourselves alone"));
        let Private { settings, connect, .. } = self.0.private(version)?;
        let bin = self.0.programs(version)?;
        start_new(&bin, dir, dir, &settings, STARTS_WITHIN, &connect, at.ctx)?;
        self.look(&connect, at.ctx)
    }

    fn look(&self, connect: &ConnectOptions, ctx: &Ctx) -> Result<(Vec<Report>, Vec<String>)> {
        let began = Instant::now();
        let conn = Connection::open(connect, CONNECTS_WITHIN)?;
        self.keeps_to_its_place(&conn)?;
        let databases = inspect(&conn)?.databases.unwrap_or_default();
        let mut notes: Vec<String> = self.waits(&conn)?.into_iter().collect();
        drop(conn);
        let mut names = vec![];
        for database in databases {
            match std::str::from_utf8(&database.name) {
                Ok("template0") => {}
                // What a restore of ours put aside.
                Ok(name) if is_remains(name) => {}
                Ok(name) if database.allow_connections => names.push(name.to_owned()),
                _ => notes.push(format!(
                    "database '{}' was not looked at: nobody can connect to it",
                    String::from_utf8_lossy(&database.name).escape_debug()
                )),
            }
        }
        let mut truths = self.truths()?;
        let (checks, nowhere) = self.placed(&names);
        let mut reports = vec![];
        for name in &names {
            ctx.check_cancelled()?;
            ctx.progress.note(&format!("looking at database '{}'", name.escape_debug()));
            let at = truths.iter().position(|t| t.header().database.0 == name.as_bytes());
            let truth = at.map(|n| truths.swap_remove(n));
            reports.push(validate(connect, truth, &self.how(name, &checks, began), ctx)?);
        }
        if let Some(truth) = truths.first() {
            let name = truth.header().database.lossy().escape_debug().to_string();
            return Err(EngineError::failed(
                VALIDATION,
                format!("there is a truth of database '{name}', and no such database"),
                "",
            ));
        }
        if let Some(first) = reports.first_mut().filter(|_| !nowhere.is_empty()) {
            first.checks.extend(nowhere);
            first.outcome = Report::judge(&first.checks);
        }
        Ok((reports, notes))
    }

    /// A file that it brought may send it into the directory of the original.
    fn keeps_to_its_place(&self, conn: &Connection) -> Result<()> {
        let own = self.0.dir().to_string_lossy();
        match conn.query(ELSEWHERE, &[&own])?.first() {
            None => Ok(()),
            Some(row) => Err(EngineError::failed(
                "E-RECOVER-SETTINGS",
                format!(
                    "its settings send it elsewhere: {} = '{}'",
                    row.text("name")?,
                    row.text("setting")?.escape_debug()
                ),
                "take that out of its postgresql.conf, and begin again",
            )),
        }
    }

    /// Commits that wait for a standby wait for ever when none follows.
    fn waits(&self, conn: &Connection) -> Result<Option<String>> {
        let rows = conn.query(STANDBYS, &[])?;
        let settings = rows.iter().map(|row| row.text("setting")).collect::<std::result::Result<Vec<_>, _>>()?;
        let last = settings.last().filter(|s| !s.is_empty());
        let brought = settings.iter().rev().find(|s| !s.is_empty());
        Ok(match (self.0.place, last, brought) {
            (Place::Own, Some(names), _) => Some(format!(
                "commits wait for synchronous standbys ({names}), which may not follow the recovered cluster: when none does, \
                 ALTER SYSTEM SET synchronous_standby_names = '', and reload"
            )),
            (Place::New, None, Some(names)) => Some(format!(
                "commits of the new instance wait for no standby; when some follow it: ALTER SYSTEM SET \
                 synchronous_standby_names = {}, and reload",
                quote(names)
            )),
            _ => None,
        })
    }

    fn truths(&self) -> Result<Vec<Truth>> {
        let open = |path: &std::path::PathBuf| {
            let file = File::open(path).map_err(|e| EngineError::file("reading", path, e))?;
            TruthReader::open(BufReader::new(file))
        };
        self.0.examination.truths.iter().map(open).collect()
    }

    fn how(&self, name: &str, checks: &[UserCheck], began: Instant) -> ValidateOptions {
        let examination = &self.0.examination;
        ValidateOptions {
            database: name.to_owned(),
            backup: None,
            made_from: None,
            expect: Expectations { physical: true, contents: Contents::IfHashed, scope: None, settings_left: false },
            jobs: examination.jobs,
            within: examination.within.saturating_sub(began.elapsed()).max(Duration::from_secs(1)),
            examiners: examination.examiners,
            unexamined: "left out as configured",
            checks: checks.to_vec(),
            ask_as: examination.ask_as.clone(),
            check_within: examination.check_within,
        }
    }

    /// Each check with its database, and those that have none. One that names none is meant for the only one there is.
    fn placed(&self, names: &[String]) -> (Vec<UserCheck>, Vec<Check>) {
        let own: Vec<&String> = names.iter().filter(|n| !OF_EVERY_CLUSTER.contains(&n.as_str())).collect();
        let (mut placed, mut nowhere) = (vec![], vec![]);
        for check in &self.0.examination.checks {
            let mut tally = Tally::new(&check.name, CheckKind::User);
            match (&check.database, own.as_slice()) {
                (Some(name), _) if names.contains(name) => {
                    placed.push(check.clone());
                    continue;
                }
                (Some(name), _) => tally.failed(format!("there is no database '{}'", name.escape_debug())),
                (None, [only]) => {
                    placed.push(UserCheck { database: Some((*only).clone()), ..check.clone() });
                    continue;
                }
                (None, several) => tally.not_checked(&format!("it names no database, and there are {}", several.len())),
            }
            nowhere.push(tally.finish());
        }
        (placed, nowhere)
    }
}

/// Of the major version, as the server writes it into its directory.
pub fn version_in(dir: &std::path::Path) -> Result<u32> {
    let path = dir.join("PG_VERSION");
    let text = std::fs::read_to_string(&path).map_err(|e| EngineError::file("reading", &path, e))?;
    let major: Option<u32> = text.trim().parse().ok();
    major.map(|m| m.saturating_mul(10_000)).ok_or_else(|| {
        EngineError::failed("E-RECOVER-PLACE", format!("{} does not hold a major version", path.display()), "")
    })
}
