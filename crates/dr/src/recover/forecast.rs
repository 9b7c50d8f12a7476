//! How long each step is likely to take, by what the recoveries before it took.

use std::collections::BTreeMap;
use std::time::Duration;

use pgark_engine::ctx::Ctx;
use pgark_engine::error::Result;
use pgark_engine::reports;
use pgark_repo::Repository;
use pgark_repo::names::ClusterName;
use serde::{Deserialize, Serialize};

use super::report::{Report, StepOutcome};
use super::steps::{REPORT, RESTORE, SAFETY, VALIDATE};
use super::{Planned, WHAT};

/// The newest reports are looked through; older machines do not tell how fast this one is.
const REPORTS: usize = 200;
const RUNS_MAX: usize = 10;

/// What a step took each time.
#[derive(Clone, Debug, Default)]
pub struct History(BTreeMap<String, Vec<Run>>);

#[derive(Clone, Copy, Debug)]
struct Run {
    took_ms: u64,
    bytes: Option<u64>,
}

/// For one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub step: String,
    pub what: String,
    /// None when nothing like it was measured.
    pub expected_ms: Option<u64>,
    /// How many runs that is made of.
    pub measured: usize,
}

pub fn history(repo: &Repository, cluster: &ClusterName, kind: &str, ctx: &Ctx) -> Result<History> {
    let mut history = History::default();
    for (_, found) in reports::newest(repo, cluster, REPORTS, ctx)? {
        let Ok(stored) = found else { continue };
        // One of another version, perhaps: it tells us nothing.
        let report =
            (stored.what == WHAT).then(|| serde_json::from_value::<Report>(stored.report)).and_then(|r| r.ok());
        if let Some(report) = report.filter(|r| r.kind == kind) {
            history.add(&report);
        }
    }
    Ok(history)
}

impl History {
    pub fn add(&mut self, report: &Report) {
        for step in report.steps.iter().filter(|s| s.outcome == StepOutcome::Done) {
            let runs = self.0.entry(step.name.clone()).or_default();
            if let Some(took_ms) = step.took_ms.filter(|_| runs.len() < RUNS_MAX) {
                runs.push(Run { took_ms, bytes: report.bytes_restored.filter(|b| *b > 0) });
            }
        }
    }

    /// `bytes`: how much is to be restored, where that is known.
    pub fn expect(&self, steps: &[Planned], bytes: Option<u64>) -> Vec<Expected> {
        let of = |step: &Planned| {
            let runs = self.0.get(&step.name).map_or(&[][..], Vec::as_slice);
            let scaled = [RESTORE, SAFETY, VALIDATE].contains(&step.name.as_str());
            let mut all: Vec<u64> = runs.iter().map(|run| run.scaled(bytes.filter(|_| scaled))).collect();
            all.sort_unstable();
            Expected {
                step: step.name.clone(),
                what: step.what.clone(),
                expected_ms: all.get(all.len() / 2).copied(),
                measured: all.len(),
            }
        };
        steps.iter().map(of).collect()
    }
}

impl Run {
    /// As long as so many bytes take at the same rate. Less than it took is not promised: not all of it is bytes.
    fn scaled(&self, bytes: Option<u64>) -> u64 {
        let (Some(now), Some(then)) = (bytes, self.bytes) else { return self.took_ms };
        let scaled = u128::from(self.took_ms) * u128::from(now) / u128::from(then.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX).max(self.took_ms)
    }
}

/// Of all steps, and whether one of them is not known.
pub fn total(expected: &[Expected]) -> (Duration, bool) {
    let known = expected.iter().filter_map(|e| e.expected_ms).sum();
    // What writes the report cannot tell of itself, and keeps nobody waiting.
    let unknown = expected.iter().any(|e| e.expected_ms.is_none() && e.step != REPORT);
    (Duration::from_millis(known), unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_scaled_by_bytes_and_unknown_where_nothing_was_measured() {
        let run = |took_ms, bytes| Run { took_ms, bytes };
        let mut history = History::default();
        history.0.insert(RESTORE.into(), vec![run(100, Some(10)), run(300, Some(10)), run(200, Some(10))]);
        history.0.insert("stop".into(), vec![run(7, Some(10))]);
        let planned = |name: &str| Planned { name: name.into(), what: String::new() };
        let steps = [planned(RESTORE), planned("stop"), planned("smoke")];
        let of = |bytes| history.expect(&steps, bytes).iter().map(|e| e.expected_ms).collect::<Vec<_>>();
        assert_eq!(of(Some(20)), [Some(400), Some(7), None]);
        assert_eq!(of(Some(5)), [Some(200), Some(7), None]);
        assert_eq!(of(None), [Some(200), Some(7), None]);
        assert_eq!(total(&history.expect(&steps, None)), (Duration::from_millis(207), true));
    }
}
