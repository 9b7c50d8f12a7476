//! What the first screen says of a cluster: can we recover, to when, how long would it take, proven when. Pure.
//!
//! Invariant: what was not looked at, or not measured, is never good. The facts are made once for each document, so that a page
//! of many clusters reads no documents.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use crate::figures::Figures;
use crate::state::Document;

/// What was read longer ago is not known any more: ten rounds of the refresher.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// Rehearsals are due twice a year at least.
pub const PROVEN_FOR: SignedDuration = SignedDuration::from_hours(190 * 24);

/// The facts of one document of `info`.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub pg_version: Value,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub last_backup: Option<Timestamp>,
    pub proven: Option<(Timestamp, String)>,
    pub expected_ms: Option<u64>,
    pub last_drill: Value,
    pub backups: usize,
    pub gaps: usize,
    pub problems: Vec<String>,
    pub refreshed: Option<Timestamp>,
    pub failed: Option<Timestamp>,
    pub error: Option<String>,
    pub figures: Figures,
}

/// The answer in one word, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Good,
    /// It can be recovered, as far as is known: nobody has tried, or measured.
    NotProven,
    /// It can be recovered, and something that was asked for is missed.
    AtRisk,
    Unknown,
    NotRecoverable,
}

/// What a document of `info` says of a cluster.
pub fn of_cluster<'a>(document: &'a Value, name: &str) -> &'a Value {
    list(document, "clusters").iter().find(|c| c.get("name").is_some_and(|n| n == name)).unwrap_or(&Value::Null)
}

pub fn time(value: &Value, key: &str) -> Option<Timestamp> {
    value.get(key)?.as_str()?.parse().ok()
}

pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// How old what is shown is, and whether newer could not be had.
pub fn source(document: Option<&Document>) -> Value {
    match document {
        None => json!({"refreshed": null, "failed": null, "error": null}),
        Some(d) if d.document.is_null() => json!({"refreshed": null, "failed": d.failed, "error": d.error}),
        Some(d) => json!({"refreshed": d.refreshed, "failed": d.failed, "error": d.error}),
    }
}

impl Known {
    pub fn of(document: Option<&Document>, name: &str) -> Known {
        let Some(Document { document, refreshed, failed, error }) = document else { return Known::default() };
        let said = if document.is_null() { Known::default() } else { Known::said(document, *refreshed, name) };
        Known { failed: *failed, error: error.clone(), ..said }
    }

    /// Of a document that was printed just now.
    pub fn said(document: &Value, refreshed: Timestamp, name: &str) -> Known {
        let found = of_cluster(document, name);
        let usable =
            |b: &&Value| b.get("complete") == Some(&Value::Bool(true)) && b.get("damaged").is_none_or(Value::is_null);
        let backups: Vec<&Value> = list(found, "backups").iter().filter(usable).collect();
        let windows = list(found, "windows");
        let finished = || backups.iter().filter_map(|b| time(b, "finished"));
        let until = windows.iter().filter_map(|w| time(w, "to_time")).max().max(finished().max());
        let from = windows.iter().filter_map(|w| time(w, "from_time")).min().or_else(|| finished().min());
        let proven = backups.iter().filter_map(|b| Some((time(b, "drilled")?, b.get("id")?.as_str()?)));
        let drill = found.get("drill").unwrap_or(&Value::Null);
        let problems = list(found, "problems").iter().filter_map(Value::as_str).map(str::to_owned);
        Known {
            pg_version: found.get("pg_version").cloned().unwrap_or(Value::Null),
            from,
            until,
            last_backup: finished().max(),
            proven: proven.max_by_key(|(at, _)| *at).map(|(at, id)| (at, id.to_owned())),
            expected_ms: list(drill, "forecasts").iter().filter_map(|f| f.get("expected_ms")?.as_u64()).max(),
            last_drill: drill.get("last").cloned().unwrap_or(Value::Null),
            backups: list(found, "backups").len(),
            gaps: list(found, "gaps").len(),
            problems: problems.collect(),
            refreshed: Some(refreshed),
            failed: None,
            error: None,
            figures: Figures::of(document, found),
        }
    }

    pub fn loss(&self, now: Timestamp) -> Option<SignedDuration> {
        self.until.map(|at| now.duration_since(at).max(SignedDuration::ZERO))
    }

    /// The standing, and what keeps it from being better.
    pub fn standing(&self, rpo: Option<Duration>, rto: Option<Duration>, now: Timestamp) -> (Standing, Vec<String>) {
        let Some(refreshed) = self.refreshed else {
            let why = self.error.clone().unwrap_or_else(|| "the repository was not read yet".into());
            return (Standing::Unknown, vec![why]);
        };
        let mut standing = Standing::Good;
        let mut why = vec![];
        let mut found = |at_least: Standing, reason: String| {
            standing = standing.max(at_least);
            why.push(reason);
        };
        if self.until.is_none() {
            found(Standing::NotRecoverable, "there is no backup that can be restored".into());
        }
        if let Some(error) = &self.error {
            found(Standing::Unknown, format!("the repository could not be read: {error}"));
        } else if now.duration_since(refreshed) > STALE_AFTER {
            found(Standing::Unknown, "the repository was not read for more than 10 minutes".into());
        }
        if let (Some(loss), Some(rpo)) = (self.loss(now), rpo)
            && loss.unsigned_abs() > rpo
        {
            found(Standing::AtRisk, "a recovery now would lose more than the RPO accepts".into());
        }
        match (self.expected_ms, rto) {
            (Some(ms), Some(rto)) if u128::from(ms) > rto.as_millis() => {
                found(Standing::AtRisk, "a recovery is expected to take longer than the RTO accepts".into());
            }
            (None, Some(_)) => {
                found(Standing::NotProven, "how long a recovery takes was not measured".into());
            }
            _ => {}
        }
        if self.gaps > 0 {
            found(Standing::AtRisk, "WAL is missing: some moments cannot be recovered".into());
        }
        for problem in &self.problems {
            found(Standing::AtRisk, problem.clone());
        }
        match &self.proven {
            None => found(Standing::NotProven, "no backup was rehearsed".into()),
            Some((at, _)) if now.duration_since(*at) > PROVEN_FOR => {
                found(Standing::NotProven, "the last proof is older than half a year".into());
            }
            Some(_) => {}
        }
        if self.last_drill.get("verdict").is_some_and(|v| v == "red") {
            found(Standing::AtRisk, "the last drill was red".into());
        }
        (standing, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn known(now: Timestamp) -> Known {
        Known {
            until: Some(now),
            proven: Some((now, "20260101-000000F".into())),
            expected_ms: Some(1000),
            refreshed: Some(now),
            ..Known::default()
        }
    }

    #[test]
    fn only_what_was_looked_at_measured_and_proven_is_good() {
        let now = Timestamp::now();
        let standing = |known: &Known| known.standing(Some(HOUR), Some(HOUR), now).0;
        let ago = |hours: i64| now - SignedDuration::from_hours(hours);
        let good = known(now);
        assert_eq!(standing(&good), Standing::Good);
        assert_eq!(standing(&Known::default()), Standing::Unknown);
        assert_eq!(standing(&Known { until: None, ..known(now) }), Standing::NotRecoverable);
        assert_eq!(standing(&Known { proven: None, ..known(now) }), Standing::NotProven);
        assert_eq!(standing(&Known { proven: Some((ago(200 * 24), "x".into())), ..known(now) }), Standing::NotProven);
        assert_eq!(standing(&Known { expected_ms: None, ..known(now) }), Standing::NotProven);
        assert_eq!(good.standing(None, None, now).0, Standing::Good);
        assert_eq!(standing(&Known { until: Some(ago(2)), ..known(now) }), Standing::AtRisk);
        assert_eq!(standing(&Known { expected_ms: Some(3_600_001), ..known(now) }), Standing::AtRisk);
        assert_eq!(standing(&Known { gaps: 1, ..known(now) }), Standing::AtRisk);
        assert_eq!(standing(&Known { problems: vec!["x".into()], ..known(now) }), Standing::AtRisk);
        assert_eq!(standing(&Known { last_drill: json!({"verdict": "red"}), ..known(now) }), Standing::AtRisk);
        assert_eq!(standing(&Known { error: Some("away".into()), ..known(now) }), Standing::Unknown);
        assert_eq!(standing(&Known { refreshed: Some(ago(1)), ..known(now) }), Standing::Unknown);
        // That nothing is there is worse than that nobody looked again.
        let gone = Known { until: None, refreshed: Some(ago(1)), ..known(now) };
        assert_eq!(standing(&gone), Standing::NotRecoverable);
    }
}
