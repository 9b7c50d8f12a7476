//! What a validation found: checks, each ok, failed, or not checked for a reason.
//!
//! Invariant: a check of which any part was not done is not "ok".

use jiff::Timestamp;
use pgark_repo::names::BackupId;
use serde::{Deserialize, Serialize};

use crate::truth::Text;

pub const SCHEMA: u32 = 1;
/// Details kept of one check; of the others only the number.
pub const DETAILS_MAX: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Compared with the truth, or looked at by itself.
    Catalog,
    Rows,
    Contents,
    Sequences,
    /// Heaps and indexes read by amcheck and pg_visibility.
    Storage,
    /// Of the configuration.
    User,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    Failed,
    NotChecked,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub kind: CheckKind,
    pub outcome: Outcome,
    /// Objects that were looked at.
    pub checked: u64,
    pub failed: u64,
    pub not_checked: u64,
    /// Why something was not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Nothing was checked because it was so asked for, or because there cannot be anything to check.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expected: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// What is no defect, but worth knowing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Further failures, which are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What the database was compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Against {
    /// That the truth was stored with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    pub database: Text,
    pub taken: Timestamp,
    pub server_version_num: u32,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub database: Text,
    pub server_version_num: u32,
    pub size_bytes: u64,
    pub started: Timestamp,
    pub duration_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    pub outcome: Outcome,
    pub checks: Vec<Check>,
}

impl Report {
    /// There should have been a truth, and there is none: what it would have told counts as not checked.
    pub fn not_compared(&mut self, why: &str) {
        let mut tally = Tally::new("comparison with the backup", CheckKind::Catalog);
        tally.not_checked(why);
        self.checks.insert(0, tally.finish());
        self.outcome = Report::judge(&self.checks);
    }

    /// What was to be the same as in the truth, and was not compared, or not all of it.
    pub fn not_compared_with(&self) -> Vec<&str> {
        let compares = |kind| !matches!(kind, CheckKind::Storage | CheckKind::User);
        let open = self.checks.iter().filter(|c| c.outcome == Outcome::NotChecked && compares(c.kind));
        open.map(|c| c.name.as_str()).collect()
    }

    /// Failed when any check failed; "not checked" when something was not checked that nobody asked to leave out.
    pub fn judge(checks: &[Check]) -> Outcome {
        if checks.iter().any(|c| c.outcome == Outcome::Failed) {
            Outcome::Failed
        } else if checks.iter().any(|c| c.outcome == Outcome::NotChecked && !c.expected)
            || !checks.iter().any(|c| c.outcome == Outcome::Ok)
        {
            Outcome::NotChecked
        } else {
            Outcome::Ok
        }
    }
}

/// A check under way.
#[derive(Debug, Clone)]
pub struct Tally {
    check: Check,
    unexpected: bool,
}

impl Tally {
    pub fn new(name: &str, kind: CheckKind) -> Self {
        let check = Check {
            name: name.to_owned(),
            kind,
            outcome: Outcome::Ok,
            checked: 0,
            failed: 0,
            not_checked: 0,
            reasons: vec![],
            expected: false,
            details: vec![],
            notes: vec![],
            more: 0,
        };
        Tally { check, unexpected: false }
    }

    pub fn ok(&mut self) {
        self.check.checked += 1;
    }

    pub fn failed(&mut self, detail: String) {
        self.check.checked += 1;
        self.check.failed += 1;
        push(&mut self.check.details, &mut self.check.more, detail);
    }

    /// Found as it should be, with something to say about it.
    pub fn noted(&mut self, note: String) {
        self.check.checked += 1;
        push(&mut self.check.notes, &mut 0, note);
    }

    /// What nobody asked to leave out.
    pub fn not_checked(&mut self, reason: &str) {
        self.unexpected = true;
        self.left_out(reason);
    }

    /// By choice, or because there is nothing that could be checked.
    pub fn left_out(&mut self, reason: &str) {
        self.check.not_checked += 1;
        if !self.check.reasons.iter().any(|r| r == reason) && self.check.reasons.len() < DETAILS_MAX {
            self.check.reasons.push(reason.to_owned());
        }
    }

    pub fn finish(mut self) -> Check {
        self.check.outcome = if self.check.failed > 0 {
            Outcome::Failed
        } else if self.check.not_checked > 0 {
            Outcome::NotChecked
        } else {
            Outcome::Ok
        };
        self.check.expected = self.check.outcome == Outcome::NotChecked && !self.unexpected;
        self.check
    }
}

fn push(to: &mut Vec<String>, more: &mut u64, text: String) {
    if to.len() < DETAILS_MAX {
        to.push(text);
    } else {
        *more += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_checked_is_never_ok() {
        let mut tally = Tally::new("rows", CheckKind::Rows);
        tally.ok();
        assert_eq!(tally.clone().finish().outcome, Outcome::Ok);
        tally.not_checked("denied");
        let part = tally.clone().finish();
        assert_eq!((part.outcome, part.expected), (Outcome::NotChecked, false));
        assert_eq!(Report::judge(&[part]), Outcome::NotChecked);
        tally.failed("gone".into());
        assert_eq!(Report::judge(&[tally.finish()]), Outcome::Failed);
        let mut chosen = Tally::new("contents", CheckKind::Contents);
        chosen.left_out("not asked for");
        let chosen = chosen.finish();
        assert_eq!((chosen.outcome, chosen.expected), (Outcome::NotChecked, true));
        assert_eq!(Report::judge(&[chosen]), Outcome::NotChecked, "nothing at all was checked");
        assert_eq!(Report::judge(&[]), Outcome::NotChecked);
    }

    #[test]
    fn details_are_bounded_and_counted() {
        let mut tally = Tally::new("rows", CheckKind::Rows);
        (0..DETAILS_MAX + 7).for_each(|n| tally.failed(n.to_string()));
        let check = tally.finish();
        assert_eq!((check.details.len(), check.more, check.failed), (DETAILS_MAX, 7, DETAILS_MAX as u64 + 7));
    }
}
