//! What `info` says of a repository; of a single backup it says it itself.

use jiff::Timestamp;
use pgark_engine::info::{ClusterInfo, Dumped, Window};
use pgark_engine::verify::LostWindow;
use pgark_repo::catalog::BackupEntry;
use serde::Serialize;

use super::super::rehearsed::Rehearsed;
use super::{evidence, holds, type_name, version_text};
use crate::failure::{Failure, SCHEMA};

#[derive(Serialize)]
pub struct InfoDocument {
    schema: u32,
    clusters: Vec<ClusterDocument>,
    /// Used and free space of the repository that was read, growth, forecast, cost.
    repository: serde_json::Value,
    /// Why others, which would have been read before it, were not.
    passed_over: Vec<serde_json::Value>,
}

#[derive(Serialize)]
struct ClusterDocument {
    name: String,
    system_id: String,
    pg_version: String,
    windows: Vec<WindowDocument>,
    gaps: Vec<GapDocument>,
    backups: Vec<BackupLine>,
    /// Where there are dumps alone: of which databases. Null otherwise, and where that is not known.
    databases: Option<Vec<DatabaseLine>>,
    /// What has expired and is still on the disk.
    expired: serde_json::Value,
    /// The last rehearsal, and how long a recovery would take.
    drill: serde_json::Value,
    /// Backups whose own WAL is not there.
    unrestorable: Vec<String>,
    problems: Vec<String>,
}

#[derive(Serialize)]
pub struct WindowDocument {
    timeline: u32,
    from_time: Option<Timestamp>,
    to_time: Option<Timestamp>,
    from_lsn: String,
    to_lsn: String,
    /// Those it can be restored from, oldest first. What `verify` found lost names none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    backups: Vec<String>,
}

#[derive(Serialize)]
struct GapDocument {
    timeline: u32,
    from_segment: String,
    to_segment: String,
    segments: u64,
}

#[derive(Serialize)]
struct DatabaseLine {
    database: String,
    /// The newest dump that has it, and when that was begun.
    backup: String,
    time: Timestamp,
    partial: bool,
}

#[derive(Serialize)]
struct BackupLine {
    id: String,
    kind: &'static str,
    #[serde(rename = "type")]
    backup_type: &'static str,
    started: Option<Timestamp>,
    finished: Option<Timestamp>,
    complete: bool,
    running: bool,
    lsn_start: Option<String>,
    lsn_stop: Option<String>,
    timeline: Option<u32>,
    size_bytes: u64,
    stored_bytes: u64,
    /// What the databases of a logical backup took on their server.
    #[serde(skip_serializing_if = "Option::is_none")]
    database_bytes: Option<u64>,
    bad_blocks: u64,
    from_standby: bool,
    kept: bool,
    kept_until: Option<Timestamp>,
    holds: Vec<serde_json::Value>,
    damaged: Option<Timestamp>,
    evidence: Option<&'static str>,
    drilled: Option<Timestamp>,
    annotations: std::collections::BTreeMap<String, String>,
}

impl From<&Window> for WindowDocument {
    fn from(w: &Window) -> Self {
        WindowDocument {
            timeline: w.timeline.get(),
            from_time: w.from_time,
            to_time: w.to_time,
            from_lsn: w.from_lsn.to_string(),
            to_lsn: w.to_lsn.to_string(),
            backups: w.backups.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What cannot be restored any more, whichever backup it began with.
impl From<&LostWindow> for WindowDocument {
    fn from(w: &LostWindow) -> Self {
        WindowDocument {
            timeline: w.timeline.get(),
            from_time: w.from_time,
            to_time: w.to_time,
            from_lsn: w.from_lsn.to_string(),
            to_lsn: w.to_lsn.to_string(),
            backups: vec![],
        }
    }
}

impl InfoDocument {
    pub fn new(
        clusters: &[ClusterInfo],
        rehearsed: &[Rehearsed],
        dumped: &[Option<Vec<Dumped>>],
        repository: serde_json::Value,
        passed_over: &[Failure],
    ) -> Self {
        let why = |f: &Failure| serde_json::json!({"code": f.code, "message": f.message});
        let passed_over = passed_over.iter().map(why).collect();
        let each = clusters.iter().zip(rehearsed).zip(dumped);
        let clusters = each.map(|((c, r), dumped)| cluster_document(c, r.document(), dumped.as_deref())).collect();
        InfoDocument { schema: SCHEMA, clusters, repository, passed_over }
    }
}

fn cluster_document(c: &ClusterInfo, drill: serde_json::Value, dumped: Option<&[Dumped]>) -> ClusterDocument {
    let database = |d: &Dumped| DatabaseLine {
        database: d.database.clone(),
        backup: d.backup.to_string(),
        time: d.begun,
        partial: d.is_partial,
    };
    let gap = |g: &pgark_engine::info::Gap| {
        let (from_segment, to_segment) = g.names(c.segment_size);
        GapDocument { timeline: g.timeline.get(), from_segment, to_segment, segments: g.last.0 - g.first.0 + 1 }
    };
    let mut backups: Vec<BackupLine> = c.backups.iter().map(complete_line).collect();
    backups.extend(c.incomplete.iter().map(|i| BackupLine {
        id: i.id.to_string(),
        kind: i.id.kind().as_str(),
        backup_type: if i.id.as_str().ends_with('I') { "incr" } else { "full" },
        started: i.started,
        finished: None,
        complete: false,
        running: i.running,
        lsn_start: None,
        lsn_stop: None,
        timeline: None,
        size_bytes: 0,
        stored_bytes: 0,
        database_bytes: None,
        bad_blocks: 0,
        from_standby: false,
        kept: false,
        kept_until: None,
        holds: vec![],
        damaged: None,
        evidence: None,
        drilled: None,
        annotations: Default::default(),
    }));
    ClusterDocument {
        name: c.name.to_string(),
        system_id: c.system_id.to_string(),
        pg_version: version_text(c.version_num),
        windows: c.windows.iter().map(WindowDocument::from).collect(),
        gaps: c.gaps.iter().map(gap).collect(),
        backups,
        databases: dumped.map(|all| all.iter().map(database).collect()),
        expired: serde_json::json!({"backups": c.expired_backups.len(), "segments": c.expired_segments,
            "due": c.expired_due, "ids": c.expired_backups.iter().map(|e| serde_json::json!({"id": e.backup.to_string(),
                "since": e.since, "due": e.due})).collect::<Vec<_>>()}),
        drill,
        unrestorable: c.unrestorable().iter().map(ToString::to_string).collect(),
        problems: c.problems.iter().chain(&c.not_opened).cloned().collect(),
    }
}

fn complete_line(b: &BackupEntry) -> BackupLine {
    let physical = b.physical.as_ref();
    BackupLine {
        id: b.id.to_string(),
        kind: b.kind.as_str(),
        backup_type: type_name(b.backup_type),
        started: Some(b.started),
        finished: Some(b.finished),
        complete: true,
        running: false,
        lsn_start: physical.map(|p| p.lsn_start.to_string()),
        lsn_stop: physical.map(|p| p.lsn_stop.to_string()),
        timeline: physical.map(|p| p.timeline.get()),
        size_bytes: b.size_bytes,
        stored_bytes: b.stored_bytes,
        database_bytes: b.database_bytes,
        bad_blocks: b.bad_blocks(),
        from_standby: physical.is_some_and(|p| p.from_standby),
        // A hold keeps it too.
        kept: b.kept || !b.holds.is_empty(),
        kept_until: b.kept_until,
        holds: holds(b),
        damaged: b.damaged,
        evidence: Some(evidence(b.evidence)),
        drilled: b.drilled,
        annotations: b.annotations.clone(),
    }
}
