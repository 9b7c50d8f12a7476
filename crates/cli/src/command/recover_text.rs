//! What `recover` says: how it ended, and what it would do.

use std::time::Duration;

use jiff::Timestamp;
use pgark_dr::recover::Goal;
use pgark_dr::recover::forecast::Expected;
use pgark_dr::recover::report::{Report, StepOutcome};
use pgark_dr::recover::steps::REPORT;
use serde::Serialize;

use crate::failure::escape;
use crate::output::{Align, Table, human_duration, timestamp};

pub fn text(report: &Report, file: Option<&str>, stored: &Option<String>) -> String {
    let mut table =
        Table::new(&[("step", Align::Left), ("outcome", Align::Left), ("took", Align::Right), ("", Align::Left)]);
    for step in &report.steps {
        let outcome = match step.outcome {
            StepOutcome::Done => "done",
            StepOutcome::Failed => "FAILED",
            StepOutcome::Undone => "taken back",
            StepOutcome::Left => "NOT taken back",
            StepOutcome::Begun => "cut off",
            StepOutcome::NotReached => "not reached",
        };
        let took = step.took_ms.map(|ms| human_duration(Duration::from_millis(ms))).unwrap_or_default();
        table.row([step.name.as_str(), outcome, &took, step.told.as_deref().unwrap_or_default()]);
    }
    let mut out = format!("{}\n\n{}", escape(&report.summary()), table.to_text());
    let goal = |name: &str, goal: &Option<Goal>| {
        let Some(goal) = goal else { return String::new() };
        let measured = human_duration(Duration::from_millis(goal.measured_ms));
        let target = goal.target_ms.map(|ms| human_duration(Duration::from_millis(ms)));
        match (target, goal.met) {
            (Some(target), Some(false)) => format!("{name} {measured}: objective {target} MISSED\n"),
            (Some(target), _) => format!("{name} {measured}, objective {target} met\n"),
            (None, _) => format!("{name} {measured}, no objective is set\n"),
        }
    };
    out += "\n";
    out += &goal("data lost (RPO)", &report.rpo.filter(|_| report.took_place()));
    out += &goal("time taken (RTO)", &report.rto);
    if let Some(failure) = &report.failure {
        out += &format!("state {}: step {} failed\n", report.state.as_str(), failure.step);
    }
    out.extend(report.left.iter().map(|l| format!("{}\n", escape(l))));
    out.extend(file.map(|f| format!("report: {f}.json, .md and .html\n")));
    out.extend(stored.iter().map(|id| format!("the repository has it as report {id}\n")));
    out
}

#[derive(Serialize)]
pub struct PlanDocument<'a> {
    pub schema: u32,
    pub cluster: &'a str,
    pub kind: &'a str,
    pub database: Option<&'a str>,
    /// The directory that a cluster is restored into.
    pub place: Option<String>,
    pub backup: Option<String>,
    pub recovery_point: Option<Timestamp>,
    /// Why no backup could be chosen.
    pub problem: Option<String>,
    /// A recovery that was cut off.
    pub unfinished: Option<&'a str>,
    pub rto_ms: Option<u64>,
    pub expected_ms: u64,
    /// Whether every step was measured before.
    pub complete: bool,
    pub steps: &'a [Expected],
}

pub fn plan_text(plan: &PlanDocument<'_>, total: Duration, unknown: bool) -> String {
    let mut table = Table::new(&[("step", Align::Left), ("expected", Align::Right), ("", Align::Left)]);
    for step in plan.steps {
        let expected = match step.expected_ms {
            Some(ms) => human_duration(Duration::from_millis(ms)),
            None if step.step == REPORT => String::new(),
            None => "unknown".into(),
        };
        table.row([step.step.as_str(), &expected, &step.what]);
    }
    let mut out = format!("would recover '{}'", escape(plan.cluster));
    out.extend(plan.database.map(|d| format!(", database '{}'", d.escape_debug())));
    out.extend(plan.place.as_ref().map(|p| format!(" into {}", escape(p))));
    out.extend(plan.backup.as_ref().map(|id| format!(", from backup {id}")));
    out.extend(plan.recovery_point.map(|p| format!(" of {}", timestamp(p))));
    out += &format!("\n\n{}\n", table.to_text());
    out += &match (unknown, total.is_zero()) {
        (true, true) => "expected: unknown".to_owned(),
        (true, false) => format!("expected: {}, and the steps that were never measured", human_duration(total)),
        (false, _) => format!("expected: {}", human_duration(total)),
    };
    out += &match plan.rto_ms {
        Some(rto) => format!("; objective {}\n", human_duration(Duration::from_millis(rto))),
        None => "; no objective is set (rto)\n".to_owned(),
    };
    out
}
