//! What the first screen says of a cluster: can we recover, to when, how long would it take, proven when. Pure.
//!
//! Invariant: what was not looked at, or not measured, is never good, and a backup speaks for what it holds alone. The facts are
//! made once for each document, so that a page of many clusters reads no documents.

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

/// What the newest moment would be recovered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Means {
    #[default]
    None,
    /// A physical backup and WAL: the whole cluster.
    Wal,
    /// What this one holds, and nothing else.
    Backup(String),
}

/// The facts of one document of `info`.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub pg_version: Value,
    pub from: Option<Timestamp>,
    /// The newest moment that a restore reaches: of the last transaction in archived WAL, or the end of the physical backup after
    /// it. Where nobody takes physical backups, when the newest dump was begun.
    pub until: Option<Timestamp>,
    pub means: Means,
    /// Where there are dumps alone: of which databases. Null where that is not known.
    pub databases: Value,
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

/// What was read at least once.
pub fn read(document: Option<&Document>) -> Option<&Value> {
    document.map(|d| &d.document).filter(|document| !document.is_null())
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
    /// Of a cluster that has this document, if any.
    pub fn of(document: Option<&Document>, name: &str) -> Known {
        let Some(Document { document, refreshed, failed, error }) = document else { return Known::default() };
        let said = if document.is_null() { Known::default() } else { Known::said(document, *refreshed, name) };
        Known { failed: *failed, error: error.clone(), ..said }
    }

    /// Of a document that was printed just now.
    pub fn said(document: &Value, refreshed: Timestamp, name: &str) -> Known {
        let found = of_cluster(document, name);
        let complete = list(found, "backups").iter().filter(|b| b.get("complete") == Some(&Value::Bool(true)));
        let complete: Vec<&Value> = complete.collect();
        let backups: Vec<&Value> = complete.iter().copied().filter(|b| is_usable(b)).collect();
        let (from, until, means) = reach(list(found, "windows"), &complete);
        let proven = backups.iter().filter_map(|b| Some((time(b, "drilled")?, b.get("id")?.as_str()?)));
        let drill = found.get("drill").unwrap_or(&Value::Null);
        let problems = list(found, "problems").iter().filter_map(Value::as_str).map(str::to_owned);
        Known {
            pg_version: found.get("pg_version").cloned().unwrap_or(Value::Null),
            from,
            until,
            means,
            databases: found.get("databases").cloned().unwrap_or(Value::Null),
            last_backup: backups.iter().filter_map(|b| time(b, "finished")).max(),
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

    /// Why what is said here need not hold any more. None when it was looked at just now.
    pub fn why_old(&self, now: Timestamp) -> Option<String> {
        match (self.refreshed, &self.error) {
            (None, error) => Some(error.clone().unwrap_or_else(|| "the repository was not read yet".into())),
            (Some(_), Some(error)) => Some(format!("the repository could not be read: {error}")),
            (Some(at), None) if now.duration_since(at) > STALE_AFTER => {
                Some("the repository was not read for more than 10 minutes".into())
            }
            (Some(_), None) => None,
        }
    }

    /// It was read, and nothing is there that could be restored.
    fn has_nothing(&self) -> bool {
        // What could not be found out of backups that are there is among the problems.
        let is_found_out = self.problems.is_empty() || self.last_backup.is_none();
        self.refreshed.is_some() && self.until.is_none() && is_found_out
    }

    /// None where that is not known at the moment.
    pub fn can_recover(&self, now: Timestamp) -> Option<bool> {
        match (self.has_nothing(), self.why_old(now)) {
            (true, _) => Some(false),
            (false, None) => self.until.map(|_| true),
            (false, Some(_)) => None,
        }
    }

    /// What a recovery now would lose, in seconds, the begun one counted. None where that is not known at the moment.
    pub fn loss_s(&self, now: Timestamp) -> Option<i64> {
        let until = self.until.filter(|_| self.why_old(now).is_none())?;
        let loss = now.duration_since(until).max(SignedDuration::ZERO);
        Some(loss.as_secs().saturating_add(i64::from(loss.subsec_nanos() > 0)))
    }

    /// None where that is not known at the moment.
    pub fn meets_rpo(&self, rpo: Duration, now: Timestamp) -> Option<bool> {
        match self.has_nothing() {
            true => Some(false),
            false => self.loss_s(now).map(|loss| loss <= whole_seconds(rpo)),
        }
    }

    /// None where that is not known at the moment, or was never measured.
    pub fn meets_rto(&self, rto: Duration, now: Timestamp) -> Option<bool> {
        let expected = self.expected_ms.filter(|_| self.why_old(now).is_none())?;
        Some(u128::from(expected) <= rto.as_millis())
    }

    /// The standing, and what keeps it from being better.
    pub fn standing(&self, rpo: Option<Duration>, rto: Option<Duration>, now: Timestamp) -> (Standing, Vec<String>) {
        let old = self.why_old(now);
        if self.refreshed.is_none() {
            return (Standing::Unknown, old.into_iter().collect());
        }
        let mut standing = Standing::Good;
        let mut why = vec![];
        let mut found = |at_least: Standing, reason: String| {
            standing = standing.max(at_least);
            why.push(reason);
        };
        match (self.has_nothing(), self.until, self.last_backup) {
            (true, _, Some(_)) => {
                let why =
                    "no physical backup can be restored: damaged, or without its WAL; others restore what they hold";
                found(Standing::NotRecoverable, why.into());
            }
            (true, _, None) => found(Standing::NotRecoverable, "there is no backup that can be restored".into()),
            (false, None, _) => found(Standing::Unknown, "what can be recovered could not be found out".into()),
            (false, Some(_), _) => {}
        }
        if let Some(why) = old {
            found(Standing::Unknown, why);
        }
        // Without anything to restore the loss is no question.
        if self.until.is_some() && rpo.is_some_and(|rpo| self.meets_rpo(rpo, now) == Some(false)) {
            let perhaps = if self.means == Means::Wal { ", or nothing was written since" } else { "" };
            found(Standing::AtRisk, format!("a recovery now would lose more than the RPO accepts{perhaps}"));
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

/// As it is compared and shown.
pub fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn is_usable(backup: &Value) -> bool {
    backup.get("damaged").is_none_or(Value::is_null)
}

/// How much a kind of backup speaks for: the whole cluster, databases, no database.
fn rank(backup: &Value) -> u8 {
    match backup.get("kind").and_then(Value::as_str) {
        Some("physical") => 0,
        Some("files") => 2,
        _ => 1,
    }
}

/// From when to when, and with what. A kind is no substitute for one that speaks for more.
fn reach(windows: &[Value], complete: &[&Value]) -> (Option<Timestamp>, Option<Timestamp>, Means) {
    let until = windows.iter().filter_map(|w| time(w, "to_time")).max();
    let kind = complete.iter().map(|b| rank(b)).min();
    if until.is_some() || kind == Some(0) {
        let from = windows.iter().filter_map(|w| time(w, "from_time")).min();
        return (from, until, until.map_or(Means::None, |_| Means::Wal));
    }
    // A dump is of the moment at which it was begun, or later.
    let of = |b: &Value| Some((time(b, "started").or_else(|| time(b, "finished"))?, b.get("id")?.as_str()?.to_owned()));
    let own = || complete.iter().filter(|b| Some(rank(b)) == kind && is_usable(b)).filter_map(|b| of(b));
    let from = own().map(|(at, _)| at).min();
    match own().max() {
        Some((until, id)) => (from, Some(until), Means::Backup(id)),
        None => (None, None, Means::None),
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
        assert_eq!((gone.can_recover(now), gone.meets_rpo(HOUR, now)), (Some(false), Some(false)));
        // That it could not be found out is neither.
        let undetermined = Known { until: None, last_backup: Some(now), problems: vec!["x".into()], ..known(now) };
        assert_eq!((standing(&undetermined), undetermined.can_recover(now)), (Standing::Unknown, None));
        let empty = Known { until: None, problems: vec!["x".into()], ..known(now) };
        assert_eq!((standing(&empty), empty.can_recover(now)), (Standing::NotRecoverable, Some(false)));
    }

    #[test]
    fn what_was_not_read_just_now_is_neither_yes_nor_kept() {
        let now = Timestamp::now();
        let said = |k: &Known| (k.can_recover(now), k.meets_rpo(HOUR, now), k.meets_rto(HOUR, now), k.loss_s(now));
        assert_eq!(said(&known(now)), (Some(true), Some(true), Some(true), Some(0)));
        let away = Known { error: Some("away".into()), ..known(now) };
        let old = Known { refreshed: Some(now - SignedDuration::from_hours(1)), ..known(now) };
        for unknown in [Known::default(), away, old] {
            assert_eq!(said(&unknown), (None, None, None, None), "{unknown:?}");
        }
    }

    /// Once, by the seconds that are shown.
    #[test]
    fn the_loss_is_compared_with_the_rpo_in_one_way() {
        let now = Timestamp::now();
        let rpo = Duration::from_secs(5);
        for (ms, shown) in [(0, 0), (4001, 5), (5000, 5), (5001, 6), (5999, 6), (6000, 6)] {
            let known = Known { until: Some(now - SignedDuration::from_millis(ms)), ..known(now) };
            let (standing, why) = known.standing(Some(rpo), None, now);
            assert_eq!(known.loss_s(now), Some(shown), "{ms}");
            assert_eq!(known.meets_rpo(rpo, now), Some(shown <= 5), "{ms}");
            assert_eq!(standing == Standing::Good, shown <= 5, "{ms} {why:?}");
            assert_eq!(why.is_empty(), shown <= 5, "{ms} {why:?}");
        }
    }

    #[test]
    fn a_backup_speaks_for_what_it_holds_alone() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
        let ago = |hours: i64| now - SignedDuration::from_hours(hours);
        let backup = |kind: &str, hours: i64| {
            json!({"id": format!("{kind}{hours}"), "kind": kind, "complete": true, "damaged": null,
                "started": ago(hours), "finished": ago(hours - 1)})
        };
        let said = |windows: Value, backups: &[Value], problems: &[&str]| {
            let cluster = json!({"name": "a", "windows": windows, "backups": backups, "problems": problems});
            Known::said(&json!({"clusters": [cluster]}), now, "a")
        };
        let window = json!([{"from_time": ago(9), "to_time": ago(5)}]);
        // WAL is lost since five hours, whatever was dumped since.
        let whole = [backup("physical", 10), backup("logical", 2), backup("system", 3), backup("files", 2)];
        let known = said(window, &whole, &[]);
        assert_eq!((known.from, known.until, &known.means), (Some(ago(9)), Some(ago(5)), &Means::Wal));
        assert_eq!((known.last_backup, known.meets_rpo(HOUR, now)), (Some(ago(1)), Some(false)));
        assert_eq!(known.standing(Some(HOUR), None, now).0, Standing::AtRisk);
        // Without its WAL a physical backup is none, and a dump does not take its place.
        let known = said(json!([]), &whole, &[]);
        assert_eq!((known.until, known.can_recover(now)), (None, Some(false)));
        let (standing, why) = known.standing(None, None, now);
        assert_eq!(standing, Standing::NotRecoverable);
        assert!(why.iter().any(|why| why.contains("others restore what they hold")), "{why:?}");
        let known = said(json!([]), &whole, &["the recoverable windows are unknown: x"]);
        assert_eq!((known.until, known.standing(None, None, now).0), (None, Standing::Unknown));
        // Where there are no others, dumps count from when they were begun, and files for no database.
        let known = said(json!([]), whole.get(1..).unwrap_or_default(), &[]);
        assert_eq!((known.from, known.until), (Some(ago(3)), Some(ago(2))));
        assert_eq!((&known.means, known.can_recover(now)), (&Means::Backup("logical2".into()), Some(true)));
        let known = said(json!([]), whole.get(3..).unwrap_or_default(), &[]);
        assert_eq!((known.until, &known.means), (Some(ago(2)), &Means::Backup("files2".into())));
    }
}
