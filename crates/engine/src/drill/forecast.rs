//! How long a recovery would take, by what rehearsals and restores of the same cluster measured.
//!
//! Invariants: without a measurement there is no figure. Each measurement gives one: what it took, scaled to what there is now; of what
//! was so little that its time says nothing about more, a floor is taken.

use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::report::{ReportId, StoredReport};

use super::{Report, StepKind, Verdict, WHAT};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::info::ClusterInfo;
use crate::reports;
use crate::restore::timed::{self, Timed, Took};

/// Measurements that are used.
const USED_MAX: usize = 12;
/// Less than this takes as long as it takes to begin.
const FLOOR_BYTES: u64 = 64 << 20;
/// So many measurements, so close together, on so much as there is now, are reliable.
const MANY: usize = 3;
const SPREAD_MAX: f64 = 2.0;
const GROWTH_MAX: f64 = 2.0;

/// One rehearsal, without its details.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub id: ReportId,
    pub at: Timestamp,
    pub kind: BackupKind,
    pub verdict: Verdict,
    pub backup: Option<BackupId>,
    pub summary: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    restore: (u64, u64),
    recover: (u64, u64),
}

/// Of one cluster, the newest first.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub held: Vec<Held>,
    /// Of rehearsals and of restores.
    measured: Vec<(BackupKind, Measured)>,
    /// Reports that cannot be read.
    pub unread: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    Low,
    Fair,
}

impl Confidence {
    pub fn as_str(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Fair => "fair",
        }
    }
}

/// From the beginning of a restore until the database takes connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    pub kind: BackupKind,
    pub expected: Duration,
    pub least: Duration,
    pub most: Duration,
    /// So many rehearsals and restores.
    pub measurements: usize,
    pub confidence: Confidence,
}

/// The rehearsals and restores of a cluster, from its newest reports, of which `most` are opened.
pub fn history(repo: &Repository, cluster: &ClusterName, most: usize, ctx: &Ctx) -> Result<History> {
    let mut history = History::default();
    for (id, found) in reports::newest(repo, cluster, most, ctx)? {
        let read = found.and_then(|stored| history.take(id, stored));
        history.unread += usize::from(read.is_err());
    }
    Ok(history)
}

fn inside<T: serde::de::DeserializeOwned>(id: &ReportId, report: serde_json::Value) -> Result<T> {
    serde_json::from_value(report).map_err(|e| EngineError::failed("E-REPORT-FORM", format!("report {id}: {e}"), ""))
}

impl History {
    fn take(&mut self, id: ReportId, stored: StoredReport) -> Result<()> {
        match stored.what.as_str() {
            timed::WHAT => {
                let Timed { restore, recover, .. } = inside(&id, stored.report)?;
                let pair = |took: Took| (took.duration_ms, took.bytes);
                let measured = Measured { restore: pair(restore), recover: pair(recover) };
                self.measured.push((BackupKind::Physical, measured));
            }
            WHAT => {
                let report: Report = inside(&id, stored.report)?;
                // One that did not get there has measured nothing.
                let steps = report.of(StepKind::Restore).zip(report.of(StepKind::Recover));
                let measured = report.reached.as_ref().and(steps);
                let measured = measured.map(|(restore, recover)| (report.kind, Measured { restore, recover }));
                self.measured.extend(measured);
                self.held.push(Held {
                    id,
                    at: report.started,
                    kind: report.kind,
                    verdict: report.verdict,
                    backup: report.backup,
                    summary: stored.summary,
                });
            }
            _ => {}
        }
        Ok(())
    }

    pub fn last(&self) -> Option<&Held> {
        self.held.first()
    }

    pub fn last_green(&self) -> Option<&Held> {
        self.held.iter().find(|h| h.verdict == Verdict::Green)
    }

    /// For each kind of backup that there is and that was rehearsed or restored.
    pub fn forecasts(&self, cluster: &ClusterInfo) -> Vec<Forecast> {
        BackupKind::ALL.iter().filter_map(|kind| self.forecast(*kind, loads(cluster, *kind)?)).collect()
    }

    fn forecast(&self, kind: BackupKind, load: Load) -> Option<Forecast> {
        let of_kind = self.measured.iter().filter(|(of, _)| *of == kind);
        let used: Vec<Measured> = of_kind.map(|(_, measured)| *measured).take(USED_MAX).collect();
        let mut times: Vec<f64> =
            used.iter().map(|m| scaled(m.restore, load.restore) + scaled(m.recover, load.replay)).collect();
        times.sort_by(f64::total_cmp);
        let (least, most) = (*times.first()?, *times.last()?);
        let expected = *times.get(times.len() / 2)?;
        let largest = used.iter().map(|m| m.restore.1).max().unwrap_or(0).max(FLOOR_BYTES);
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let growth = load.restore as f64 / largest as f64;
        let close = used.len() >= MANY && most <= least * SPREAD_MAX && growth <= GROWTH_MAX;
        let ms = |ms: f64| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX);
        Some(Forecast {
            kind,
            expected: ms(expected),
            least: ms(least),
            most: ms(most),
            measurements: used.len(),
            confidence: if close { Confidence::Fair } else { Confidence::Low },
        })
    }
}

/// What would have to be restored and replayed now.
#[derive(Debug, Clone, Copy)]
struct Load {
    restore: u64,
    replay: u64,
}

/// Of the newest backup of this kind.
fn loads(cluster: &ClusterInfo, kind: BackupKind) -> Option<Load> {
    let newest = cluster.backups.iter().rfind(|b| b.kind == kind)?;
    let replay = newest.as_physical().map_or(0, |backup| {
        let end = cluster.windows.iter().filter(|w| w.backups.contains(&backup.id)).map(|w| w.to_lsn.0).max();
        end.unwrap_or(backup.lsn_stop.0).saturating_sub(backup.lsn_start.0)
    });
    Some(Load { restore: newest.size_bytes, replay })
}

/// Milliseconds for so many bytes, when it took so many for others.
fn scaled((ms, bytes): (u64, u64), now: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "an estimate in milliseconds")]
    let (ms, bytes, now) = (ms as f64, bytes.max(FLOOR_BYTES) as f64, now.max(FLOOR_BYTES) as f64);
    ms * now / bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(restore: (u64, u64), recover: (u64, u64)) -> (BackupKind, Measured) {
        (BackupKind::Physical, Measured { restore, recover })
    }

    fn history(measured: Vec<(BackupKind, Measured)>) -> History {
        History { measured, ..History::default() }
    }

    const GB: u64 = 1 << 30;

    #[test]
    fn what_was_measured_is_scaled_to_what_there_is() {
        let history = history(vec![
            measured((100_000, 10 * GB), (50_000, GB)),
            measured((120_000, 10 * GB), (50_000, GB)),
            measured((90_000, 10 * GB), (50_000, GB)),
        ]);
        let found =
            history.forecast(BackupKind::Physical, Load { restore: 20 * GB, replay: 2 * GB }).expect("measured");
        assert_eq!(
            (found.expected, found.least, found.most),
            (Duration::from_secs(300), Duration::from_secs(280), Duration::from_secs(340))
        );
        assert_eq!((found.measurements, found.confidence), (3, Confidence::Fair));
        let larger = history.forecast(BackupKind::Physical, Load { restore: 21 * GB, replay: 0 }).expect("measured");
        assert_eq!(larger.confidence, Confidence::Low, "nobody has restored so much yet");
        assert_eq!(history.forecast(BackupKind::Logical, Load { restore: GB, replay: 0 }), None);
    }

    #[test]
    fn little_says_nothing_about_much() {
        let history = history(vec![measured((4000, 20 << 20), (2000, 1 << 20))]);
        let same = history.forecast(BackupKind::Physical, Load { restore: 10 << 20, replay: 0 }).expect("measured");
        assert_eq!((same.expected, same.confidence), (Duration::from_secs(6), Confidence::Low));
        let more = history.forecast(BackupKind::Physical, Load { restore: 128 << 20, replay: 0 }).expect("measured");
        assert_eq!(more.expected, Duration::from_secs(10));
        assert_eq!(History::default().forecast(BackupKind::Physical, Load { restore: 1, replay: 0 }), None);
    }
}
