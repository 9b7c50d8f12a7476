//! A database back from a dump, in its place: the steps between the stopped application and the one that starts.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::cluster::{Connection, provision};
use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::logical::restore::{self, RestoreOptions, RestorePlan, SAFETY as SAFETY_NOTE};
use pgark_engine::logical::{self as dumps, LogicalOptions};
use pgark_engine::validate::Outcome as Verdict;
use pgark_repo::RepoError;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::names::BackupId;
use pgark_repo::record::PartsRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::application::{StopService, Until, answers, still_stopped};
use super::machine::{At, Effect, Failure, State, Step, within};
use super::report::PLACED;
use super::steps::{self, PREFLIGHT, RESTORE, SAFETY};
use super::{Goal, Recovery, Safety};

const MOMENT: Duration = Duration::from_secs(300);
/// The code of a database that is not what was backed up.
pub const VALIDATION: &str = "E-RECOVER-VALIDATION";

/// What the steps have in common.
pub struct Logical {
    pub recovery: Rc<Recovery>,
    /// In place, with validation; without a safety backup, which is a step of its own.
    pub options: RestoreOptions,
    /// How what is there is backed up before.
    pub safety: LogicalOptions,
    pub database: String,
    pub restore_within: Duration,
    pub safety_within: Duration,
}

/// All of them, in their order.
pub fn all(logical: Logical) -> Vec<Box<dyn Step>> {
    let recovery = logical.recovery.clone();
    let logical = Rc::new(logical);
    let mut all: Vec<Box<dyn Step>> =
        vec![Box::new(Preflight(logical.clone())), Box::new(steps::Authorise(recovery.clone()))];
    if let Some(service) = &recovery.service {
        all.push(Box::new(StopService { service: service.clone(), until: Until::Stopped, way_back: None }));
    }
    if recovery.opening.safety_backup != Safety::Off {
        all.push(Box::new(SafetyBackup(logical.clone())));
    }
    let chosen = logical.clone();
    let judge = move |_: &At<'_>| chosen.plan().map(|plan| chosen.judged(&plan.record, &plan.notes).told());
    all.extend(steps::choose(&recovery, String::new(), judge));
    all.push(Box::new(Restore(logical)));
    all.extend(steps::after_restore(&recovery, Until::Stopped, false));
    all
}

impl Logical {
    fn plan(&self) -> Result<RestorePlan> {
        restore::plan(&self.options, &self.recovery.repo, &[])
    }

    /// A session beside the database.
    fn session(&self) -> Result<Connection> {
        let beside = if self.database == "postgres" { "template1" } else { "postgres" };
        Ok(Connection::open(&self.options.connect.to_database(beside), self.options.connect_timeout)?)
    }

    fn databases(&self) -> Result<Vec<String>> {
        let session = self.session()?;
        let rows = session.query("SELECT datname::text AS name FROM pg_database", &[])?;
        rows.iter().map(|row| Ok(row.text("name")?.to_owned())).collect()
    }

    /// What the restore with this tag calls what it loads, or puts aside; those that are there.
    fn of_run(&self, prefix: &str, run: &str) -> Result<Vec<String>> {
        let ours = |name: &String| backup_of(name, prefix, run).is_some();
        Ok(self.databases()?.into_iter().filter(ours).collect())
    }

    /// What shows that what was restored took its place, which is one transaction: the name that it gave to what it replaced, or its
    /// own where nothing was.
    fn placed(&self, before: &Before) -> Result<Option<String>> {
        Ok(match before.was_there {
            true => self.of_run(ASIDE, &before.run)?.into_iter().next(),
            false => self.databases()?.contains(&self.database).then(|| self.database.clone()),
        })
    }

    /// How old what can be restored is, and whether that is in the bounds.
    fn judged(&self, record: &PartsRecord, notes: &[String]) -> Chosen {
        let dump = record.database(&self.database);
        let opening = &self.recovery.opening;
        let point = dump.map_or(record.started, |d| d.taken);
        let mut warnings: Vec<String> = notes.iter().filter(|n| n.starts_with("DEGRADED")).cloned().collect();
        if point > opening.declared {
            warnings.push(format!(
                "backup {} was taken after the incident was declared: it may hold what this is to undo",
                record.id
            ));
        }
        Chosen {
            backup: record.id.to_string(),
            recovery_point: point,
            rpo: Goal::judge(opening.rpo_ms, point, opening.declared),
            bytes: dump.map_or(0, |d| d.dump_bytes),
            warnings,
        }
    }

    /// The same of a backup that was restored before this was cut off.
    fn judged_again(&self, backup: &str) -> Result<Chosen> {
        let cluster = &self.recovery.cluster;
        let id = BackupId::parse(backup).map_err(|e| EngineError::failed("E-INTERNAL", e.to_string(), ""))?;
        let catalog = CatalogStore::new(&self.recovery.repo, cluster).read()?;
        let entry = catalog
            .backup(&id)
            .ok_or_else(|| RepoError::NoBackup { cluster: cluster.to_string(), id: backup.into() })?;
        Ok(self.judged(&PartsRecord::load(&self.recovery.repo, cluster, &id, &entry.record)?, &[]))
    }
}

/// The backup in a name that the restore with this tag has given.
fn backup_of<'n>(name: &'n str, prefix: &str, run: &str) -> Option<&'n str> {
    let id = name.strip_prefix(prefix)?.strip_suffix(run)?.strip_suffix('_')?;
    (!run.is_empty() && BackupId::parse(id).is_ok()).then_some(id)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Chosen {
    backup: String,
    recovery_point: Timestamp,
    rpo: Goal,
    bytes: u64,
    warnings: Vec<String>,
}

impl Chosen {
    fn told(&self) -> Value {
        let point = self.recovery_point.strftime("%Y-%m-%dT%H:%M:%SZ");
        let told = format!("backup {} of {point}, {}", self.backup, self.rpo.lost());
        json!({"told": told, "backup": self.backup, "recovery_point": self.recovery_point, "rpo": self.rpo,
            "bytes": self.bytes, "warnings": self.warnings})
    }
}

/// Looks whether everything is there that this needs, before anything is touched.
struct Preflight(Rc<Logical>);

impl Step for Preflight {
    fn name(&self) -> &'static str {
        PREFLIGHT
    }

    fn what(&self) -> String {
        "see that server, programs, backup and service manager are there; nothing is touched".into()
    }

    fn deadline(&self) -> Duration {
        MOMENT
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let plan = self.0.plan()?;
        let mut told = vec![
            format!("backup {} can be used", plan.record.id),
            format!("{} {}", plan.tools.restore.display(), plan.tools.version),
        ];
        if let Some(service) = &self.0.recovery.service {
            told.push(answers(service, at.ctx)?);
        }
        Ok(json!({"told": told.join("; ")}))
    }

    fn state(&self) -> State {
        State::Refused
    }
}

/// What is about to be replaced, as it is now. One that was cut off is no backup, and is taken again.
struct SafetyBackup(Rc<Logical>);

impl Step for SafetyBackup {
    fn name(&self) -> &'static str {
        SAFETY
    }

    fn what(&self) -> String {
        let or = match self.0.recovery.opening.safety_backup {
            Safety::Required => "",
            Safety::Try | Safety::Off => ", if it can be",
        };
        format!("back up '{}' as it is now{or}", self.0.database.escape_debug())
    }

    fn deadline(&self) -> Duration {
        // That it takes too long is judged like every other failure of it.
        self.0.safety_within + MOMENT
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let (logical, required) = (&self.0, self.0.recovery.opening.safety_backup == Safety::Required);
        if !provision::database_exists(&logical.session()?, &logical.database)? {
            return Ok(json!({"told": "there is no such database: there is nothing to back up"}));
        }
        let mut options = logical.safety.clone();
        let note = format!("before recovery {}", logical.recovery.opening.id);
        options.annotations.insert(SAFETY_NOTE.into(), note);
        match within(at.ctx, logical.safety_within, |ctx| dumps::run(&options, &logical.recovery.repo, ctx)) {
            Ok(report) => {
                let id = report.entry.id.to_string();
                Ok(json!({"told": format!("as it was it is in backup {id}"), "safety": id,
                    "left": [format!("the database as it was before is in backup {id}")]}))
            }
            Err(EngineError::Cancelled) => Err(EngineError::Cancelled),
            Err(e) if required => Err(EngineError::failed(
                "E-SAFETY-BACKUP",
                format!("the database as it is now could not be backed up, and was not touched: {}: {e}", e.code()),
                "see to that first; or recover with safety_backup = \"try\": what is replaced is kept in any case",
            )),
            Err(e) => {
                let why = format!("what is replaced could not be backed up before: {}: {e}; it is kept", e.code());
                Ok(json!({"told": why, "warnings": [why]}))
            }
        }
    }

    fn state(&self) -> State {
        State::Halted
    }
}

/// Loads it beside what is there, compares it with what was backed up, asks the checks, and only then puts it in its place.
struct Restore(Rc<Logical>);

/// What was there before it began.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Before {
    was_there: bool,
    /// The end of the names that it gives.
    run: String,
}

const LOADING: &str = "pgark_restore_";
const ASIDE: &str = "pgark_replaced_";

impl Restore {
    fn notes(&self, at: &At<'_>, facts: Value) {
        *at.notes.borrow_mut() = facts;
    }

    /// Where what it replaced is.
    fn left(&self, before: &Before) -> Result<Vec<String>> {
        Ok(self.0.of_run(ASIDE, &before.run)?.iter().map(|aside| self.kept(aside)).collect())
    }

    fn kept(&self, aside: &str) -> String {
        format!(
            "the database that was replaced is there as '{aside}', without connections; when it is not needed any more: drop database \"{aside}\""
        )
    }
}

fn read(before: &Value) -> Before {
    serde_json::from_value(before.clone()).unwrap_or_default()
}

impl Step for Restore {
    fn name(&self) -> &'static str {
        RESTORE
    }

    fn what(&self) -> String {
        let checks = match self.0.options.validate.as_ref().map_or(0, |v| v.checks.len()) {
            0 => String::new(),
            n => format!(", ask {n} checks"),
        };
        format!(
            "load '{}' beside what is there, compare it with what was backed up{checks}, put it in its place, keep what was there",
            self.0.database.escape_debug()
        )
    }

    fn deadline(&self) -> Duration {
        self.0.restore_within
    }

    fn before(&mut self, _: &At<'_>) -> Result<Value> {
        let was_there = self.0.databases()?.contains(&self.0.database);
        let before = Before { was_there, run: restore::run_tag()? };
        serde_json::to_value(before).map_err(|e| EngineError::failed("E-INTERNAL", e.to_string(), ""))
    }

    fn act(&mut self, at: &At<'_>) -> Result<Value> {
        let mut announce = |plan: &RestorePlan| {
            at.ctx.progress.note(&format!("backup {}", plan.record.id));
        };
        let before = read(at.before);
        let options = RestoreOptions { run: Some(before.run.clone()), ..self.0.options.clone() };
        // Loading takes its time, and somebody may have started the application meanwhile.
        let again = RefCell::new(None);
        let may_place = |ctx: &Ctx| {
            let service = self.0.recovery.service.as_ref();
            let told = service.map(|service| still_stopped(service, ctx)).transpose()?;
            *again.borrow_mut() = told.flatten();
            Ok(())
        };
        let restored = restore::run_until(&options, &self.0.recovery.repo, at.ctx, &mut announce, &may_place);
        let (plan, report) = restored.inspect_err(|_| {
            // It may have lost the server just when names were exchanged.
            if let (Ok(placed), Ok(left)) = (self.0.placed(&before), self.left(&before)) {
                self.notes(at, json!({PLACED: placed.is_some(), "left": left}));
            }
        })?;
        let mut facts = self.0.judged(&plan.record, &plan.notes).told();
        let validation = serde_json::to_value(&report.validation).unwrap_or(Value::Null);
        let stored = report.stored.as_ref().map(ToString::to_string);
        if let Some(fields) = facts.as_object_mut() {
            fields.insert("validation".into(), validation);
            fields.insert("stored".into(), json!(stored));
            fields.insert("kept".into(), json!(report.kept));
            if let Some(Value::Array(warnings)) = fields.get_mut("warnings") {
                warnings.extend(report.warnings.iter().map(|w| json!(w)));
                warnings.extend(
                    again
                        .take()
                        .map(|told| json!(format!("{told}; what it wrote is in the database that was replaced"))),
                );
                if report.validation.as_ref().is_some_and(|v| v.outcome == Verdict::NotChecked) {
                    warnings.push(json!("what was restored could not be checked completely"));
                }
            }
        }
        let found = match report.validation.as_ref().map(|v| v.outcome) {
            Some(Verdict::Ok) => "found to be what was backed up",
            Some(Verdict::Failed) => "found NOT to be what was backed up",
            Some(Verdict::NotChecked) | None => "not checked completely",
        };
        let Some(fields) = facts.as_object_mut() else { return Ok(facts) };
        fields.insert("told".into(), json!(format!("backup {} loaded, {found}", plan.record.id)));
        if let Some(loaded) = &report.not_placed {
            let drop = format!(
                "what was restored, and is not what was backed up, is there as '{loaded}': to be looked at, and dropped"
            );
            fields.insert("left".into(), json!([drop]));
            let failed: Vec<String> = failed_checks(report.validation.as_ref());
            self.notes(at, facts);
            return Err(EngineError::failed(
                VALIDATION,
                format!(
                    "what was restored from backup {} is not what was backed up: {}; '{}' is as it was, and what was restored is there as '{loaded}'",
                    plan.record.id,
                    failed.join(", "),
                    self.0.database.escape_debug()
                ),
                "the report tells what differs; the application was not started",
            ));
        }
        fields.insert("left".into(), json!(report.kept.iter().map(|aside| self.kept(aside)).collect::<Vec<_>>()));
        Ok(facts)
    }

    fn check(&mut self, at: &At<'_>, acted: Option<&Value>) -> Result<Effect> {
        let before = read(at.before);
        if let Some(facts) = acted {
            let is_there = self.0.databases()?.contains(&self.0.database);
            return Ok(if is_there { Effect::Took(facts.clone()) } else { Effect::None });
        }
        match self.0.placed(&before)? {
            Some(name) => {
                let told = "it took its place before this was cut off, as nothing does that is found wrong";
                // Where nothing was replaced, no name tells the backup.
                let mut facts = match backup_of(&name, ASIDE, &before.run) {
                    Some(id) => self.0.judged_again(id)?.told(),
                    None => json!({"warnings": []}),
                };
                let Some(fields) = facts.as_object_mut() else { return Ok(Effect::Took(facts)) };
                fields.insert("told".into(), json!(told));
                fields.insert("left".into(), json!(self.left(&before)?));
                fields.insert("kept".into(), json!(before.was_there.then_some(name)));
                if let Some(Value::Array(warnings)) = fields.get_mut("warnings") {
                    warnings.push(json!("the restore was cut off at its end: what comparing it found is in its own report, if that was stored"));
                }
                Ok(Effect::Took(facts))
            }
            None if self.0.of_run(LOADING, &before.run)?.is_empty() => Ok(Effect::None),
            None => Ok(Effect::Partly),
        }
    }

    fn goes_back(&self, failure: &Failure, done: bool) -> bool {
        // A failure of its own has tidied up, or left something to be looked at; what took its place was found right.
        failure.is_abandoned() && !done
    }

    /// Removes what was being loaded. What is in its place stays: it was found right.
    fn undo(&mut self, at: &At<'_>) -> Result<Value> {
        let before = read(at.before);
        let session = self.0.session()?;
        let mut told = vec![];
        for name in self.0.of_run(LOADING, &before.run)? {
            provision::drop_database(&session, &name)?;
            told.push(format!("'{name}' is removed"));
        }
        let placed = self.0.placed(&before)?;
        told.extend(placed.as_ref().map(|_| "what was restored had taken its place, and stays".to_owned()));
        let told = if told.is_empty() { "nothing of it was there".into() } else { told.join("; ") };
        Ok(json!({"told": told, PLACED: placed.is_some(), "left": self.left(&before)?}))
    }

    fn state(&self) -> State {
        State::Halted
    }
}

fn failed_checks(report: Option<&pgark_engine::validate::Report>) -> Vec<String> {
    let checks = report.iter().flat_map(|r| &r.checks).filter(|c| c.outcome == Verdict::Failed);
    checks.map(|c| c.name.escape_debug().to_string()).collect()
}
