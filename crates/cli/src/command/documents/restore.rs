//! What `restore` says of a physical backup.

use jiff::Timestamp;
use pgark_engine::repair::Mended;
use pgark_engine::restore::resolve::StopHow;
use pgark_engine::restore::{RestorePlan, RestoreReport};
use pgark_engine::sources::{Trouble, TroubleKind};
use serde::Serialize;

use crate::failure::SCHEMA;

#[derive(Serialize)]
pub struct RestoreDocument {
    schema: u32,
    backup: String,
    target: String,
    resolved: ResolvedDocument,
    wal: WalSpan,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_restored: Option<u64>,
    /// Of those, bytes that had to be fetched; fewer only with --delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_written: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What one repository lacked and another one had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryTrouble>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<StartedDocument>,
}

#[derive(Serialize)]
pub struct RepositoryTrouble {
    repository: String,
    /// missing, damaged or away
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    what: String,
    /// Whether the object is whole again in this repository.
    repaired: bool,
}

impl RepositoryTrouble {
    pub fn all(report: &RestoreReport) -> Vec<Self> {
        let repaired = |t: &Trouble| {
            let same = |m: &&Mended| m.repository == t.repository && Some(&m.object) == t.object.as_ref();
            report.mended.iter().find(same).is_some_and(|m| m.outcome.is_ok())
        };
        let one = |t: &Trouble| RepositoryTrouble {
            repository: t.repository.clone(),
            kind: match t.kind {
                TroubleKind::Missing => "missing",
                TroubleKind::Damaged => "damaged",
                TroubleKind::Away => "away",
                TroubleKind::Foreign => "foreign",
            },
            object: t.object.clone(),
            what: t.what.clone(),
            repaired: repaired(t),
        };
        report.troubles.iter().map(one).collect()
    }
}

#[derive(Serialize)]
struct ResolvedDocument {
    time: Option<Timestamp>,
    lsn: String,
    timeline: u32,
}

#[derive(Serialize)]
struct WalSpan {
    from: String,
    to: String,
}

#[derive(Serialize)]
pub struct StartedDocument {
    pub reached: String,
    pub promoted: bool,
    pub running: bool,
    pub port: u16,
    pub socket_dir: String,
    pub pid: u32,
}

impl RestoreDocument {
    pub fn new(plan: &RestorePlan) -> Self {
        let size = plan.record.segment_size;
        let time = match (&plan.target, plan.stop.how) {
            (pgark_engine::restore::Target::Time { at, .. }, StopHow::Record { .. }) => Some(*at),
            _ => plan.stop.time,
        };
        RestoreDocument {
            schema: SCHEMA,
            backup: plan.backup.id.to_string(),
            target: plan.target.to_string(),
            resolved: ResolvedDocument { time, lsn: plan.stop.end.to_string(), timeline: plan.timeline.get() },
            wal: WalSpan { from: plan.wal_from.format(size), to: plan.wal_to.format(size) },
            notes: plan.notes.clone(),
            bytes_restored: None,
            bytes_written: None,
            duration_ms: None,
            repositories: vec![],
            started: None,
        }
    }
}
