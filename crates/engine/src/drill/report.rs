//! What a rehearsal found, as it is stored and shown.
//!
//! Invariants: one reason makes it red; without a reason, one thing that was not checked keeps it from being green.

use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::{BackupId, ClusterName};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::validate::{self, Check, Outcome};

pub const SCHEMA: u32 = 1;
/// Further reasons are counted.
const REASONS_MAX: usize = 200;
/// Of the details of a check, as a reason.
const DETAILS_IN_A_REASON: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that belongs to a rehearsal was done, and all of it was right.
    Green,
    /// Nothing wrong was found, and something was not checked.
    NotProven,
    Red,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Green => "green",
            Verdict::NotProven => "not proven",
            Verdict::Red => "red",
        }
    }
}

/// Why it is red.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: String,
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// From the repository into the directory; of a dump, into the database.
    Restore,
    /// Start, replay of WAL, opening; of a dump, making a cluster.
    Recover,
    /// Reading and comparing it. It does not keep a service waiting that is back already.
    Check,
}

impl StepKind {
    pub fn as_str(self) -> &'static str {
        match self {
            StepKind::Restore => "restore",
            StepKind::Recover => "recover",
            StepKind::Check => "check",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub step: StepKind,
    pub duration_ms: u64,
    /// Bytes of files or of dumps; of WAL.
    pub bytes: u64,
}

/// What was to be kept, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ms: Option<u64>,
    /// None: it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_ms: Option<u64>,
}

impl Objective {
    pub fn is_missed(&self) -> bool {
        self.target_ms.zip(self.measured_ms).is_some_and(|(target, measured)| measured > target)
    }
}

/// What was rehearsed and how it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub cluster: ClusterName,
    pub verdict: Verdict,
    pub kind: BackupKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_finished: Option<Timestamp>,
    pub target: String,
    /// Where recovery ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<String>,
    /// What was committed by then is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_to: Option<Timestamp>,
    /// PostgreSQL of the restored cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version_num: Option<u32>,
    pub started: Timestamp,
    pub duration_ms: u64,
    pub steps: Vec<Step>,
    /// Age of what was recovered at the beginning of the rehearsal, or before the moment that was asked for.
    pub rpo: Objective,
    /// Of restoring and recovering.
    pub rto: Objective,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_reasons: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Of the cluster as a whole.
    pub checks: Vec<Check>,
    pub databases: Vec<validate::Report>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Report {
    pub fn new(cluster: &ClusterName, kind: BackupKind, target: String, started: Timestamp) -> Self {
        Report {
            schema: SCHEMA,
            cluster: cluster.clone(),
            verdict: Verdict::NotProven,
            kind,
            backup: None,
            backup_finished: None,
            target,
            reached: None,
            recovered_to: None,
            server_version_num: None,
            started,
            duration_ms: 0,
            steps: vec![],
            rpo: Objective::default(),
            rto: Objective::default(),
            reasons: vec![],
            more_reasons: 0,
            not_checked: vec![],
            notes: vec![],
            checks: vec![],
            databases: vec![],
        }
    }

    pub fn fail(&mut self, code: &str, what: impl Into<String>) {
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(Reason { code: code.to_owned(), what: what.into() });
        } else {
            self.more_reasons += 1;
        }
    }

    pub fn failed_by(&mut self, what: &str, error: &EngineError) {
        let what = if what.is_empty() { error.to_string() } else { format!("{what}: {error}") };
        self.fail(error.code(), what);
    }

    pub fn not_checked(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.not_checked.contains(&what) {
            self.not_checked.push(what);
        }
    }

    pub fn step(&mut self, step: StepKind, took: Duration, bytes: u64) {
        self.steps.push(Step { step, duration_ms: millis(took), bytes });
    }

    /// Of all steps of this kind: how long they took, and for how many bytes.
    pub fn of(&self, kind: StepKind) -> Option<(u64, u64)> {
        let steps = self.steps.iter().filter(|s| s.step == kind);
        steps.map(|s| (s.duration_ms, s.bytes)).reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)))
    }

    /// A check of the cluster.
    pub fn check(&mut self, check: Check) {
        self.judge("", &check);
        self.checks.push(check);
    }

    /// What was found in one database.
    pub fn database(&mut self, found: validate::Report) {
        let name = format!("database '{}': ", found.database.lossy().escape_debug());
        found.checks.iter().for_each(|check| self.judge(&name, check));
        if found.outcome == Outcome::NotChecked && !found.checks.iter().any(|c| c.outcome == Outcome::Ok) {
            self.not_checked(format!("{name}nothing"));
        }
        self.databases.push(found);
    }

    fn judge(&mut self, of: &str, check: &Check) {
        match check.outcome {
            Outcome::Ok => {}
            Outcome::Failed => {
                let first: Vec<&str> = check.details.iter().take(DETAILS_IN_A_REASON).map(String::as_str).collect();
                self.fail("E-DRILL-CHECK", format!("{of}{}: {}", check.name, first.join("; ")));
            }
            Outcome::NotChecked if check.expected => {}
            Outcome::NotChecked => {
                let why = check.reasons.first().map_or("no reason was given", String::as_str);
                self.not_checked(format!("{of}{}: {why}", check.name));
            }
        }
    }

    /// The last word.
    pub fn conclude(&mut self, took: Duration) {
        self.duration_ms = millis(took);
        let waited = [StepKind::Restore, StepKind::Recover].map(|kind| self.of(kind));
        if self.reached.is_some() && waited.iter().any(Option::is_some) {
            self.rto.measured_ms = Some(waited.iter().flatten().map(|(ms, _)| ms).sum());
        }
        if self.rto.is_missed() {
            let (ms, target) = (self.rto.measured_ms.unwrap_or(0), self.rto.target_ms.unwrap_or(0));
            self.fail("E-DRILL-RTO", format!("restoring and recovering took {ms} ms, and the rto is {target} ms"));
        }
        self.verdict = if !self.reasons.is_empty() {
            Verdict::Red
        } else if self.not_checked.is_empty() && self.reached.is_some() && !self.databases.is_empty() {
            Verdict::Green
        } else {
            Verdict::NotProven
        };
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let backup = self.backup.as_ref().map_or("no backup".to_owned(), |id| format!("backup {id}"));
        let why = match self.verdict {
            Verdict::Green => format!("restored, recovered and checked in {} s", self.duration_ms.div_ceil(1000)),
            Verdict::NotProven => match self.not_checked.as_slice() {
                [] => "nothing was proven".to_owned(),
                [one] => format!("not checked: {one}"),
                [first, more @ ..] => format!("not checked: {first}, and {} more", more.len()),
            },
            Verdict::Red => {
                let first = self.reasons.first().map_or(String::new(), |r| format!("{} {}", r.code, r.what));
                match self.reasons.len() {
                    0 | 1 => first,
                    n => format!("{first}, and {} more", n - 1),
                }
            }
        };
        format!("{} drill of {backup} to {}: {why}", self.verdict.as_str(), self.target)
    }
}

pub fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::Text;
    use crate::validate::CheckKind;

    fn check(name: &str, outcome: Outcome, expected: bool) -> Check {
        Check {
            name: name.to_owned(),
            kind: CheckKind::Storage,
            outcome,
            checked: 1,
            failed: 0,
            not_checked: 0,
            reasons: vec!["why".to_owned()],
            expected,
            details: vec!["public.t: broken".to_owned()],
            notes: vec![],
            more: 0,
        }
    }

    fn database(checks: Vec<Check>) -> validate::Report {
        validate::Report {
            schema: 1,
            database: Text::from("app"),
            server_version_num: 150_018,
            size_bytes: 1,
            started: Timestamp::UNIX_EPOCH,
            duration_ms: 1,
            against: None,
            outcome: validate::Report::judge(&checks),
            checks,
        }
    }

    fn rehearsal(checks: Vec<Check>) -> Report {
        let name = ClusterName::parse("main").expect("a name");
        let mut report = Report::new(&name, BackupKind::Physical, "latest".into(), Timestamp::UNIX_EPOCH);
        report.reached = Some("0/3000000".into());
        report.step(StepKind::Restore, Duration::from_secs(3), 7);
        report.step(StepKind::Recover, Duration::from_secs(2), 5);
        report.step(StepKind::Check, Duration::from_secs(60), 0);
        report.database(database(checks));
        report
    }

    fn verdict(checks: Vec<Check>) -> Verdict {
        let mut report = rehearsal(checks);
        report.conclude(Duration::from_secs(70));
        report.verdict
    }

    #[test]
    fn green_is_when_nothing_is_wrong_and_nothing_was_left_out() {
        let ok = || check("heaps", Outcome::Ok, false);
        assert_eq!(verdict(vec![ok(), check("contents", Outcome::NotChecked, true)]), Verdict::Green);
        assert_eq!(verdict(vec![ok(), check("indexes", Outcome::NotChecked, false)]), Verdict::NotProven);
        assert_eq!(verdict(vec![ok(), check("indexes", Outcome::Failed, false)]), Verdict::Red);
        assert_eq!(verdict(vec![]), Verdict::NotProven, "nothing was looked at");
        assert_eq!(verdict(vec![check("contents", Outcome::NotChecked, true)]), Verdict::NotProven);
        let mut nothing = rehearsal(vec![ok()]);
        nothing.reached = None;
        nothing.conclude(Duration::ZERO);
        assert_eq!((nothing.verdict, nothing.rto.measured_ms), (Verdict::NotProven, None));
    }

    #[test]
    fn the_service_waits_for_restore_and_recovery_and_not_for_the_checks() {
        let mut report = rehearsal(vec![check("heaps", Outcome::Ok, false)]);
        report.rto.target_ms = Some(5000);
        report.conclude(Duration::from_secs(70));
        assert_eq!((report.rto.measured_ms, report.verdict), (Some(5000), Verdict::Green));
        let mut late = rehearsal(vec![check("heaps", Outcome::Ok, false)]);
        late.rto.target_ms = Some(4999);
        late.conclude(Duration::from_secs(70));
        assert_eq!(late.reasons.first().map(|r| r.code.as_str()), Some("E-DRILL-RTO"));
        assert!(late.summary().starts_with("red drill of no backup to latest: E-DRILL-RTO"), "{}", late.summary());
    }
}
