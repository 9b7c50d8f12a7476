//! What `backup` and `import` say.

use jiff::Timestamp;
use pgark_engine::backup::BackupReport;
use pgark_engine::files::FilesReport;
use pgark_engine::logical::LogicalReport;
use serde::Serialize;

use super::{BaseDocument, database, globals, type_name};
use crate::failure::SCHEMA;

#[derive(Serialize)]
pub struct BackupDocument {
    schema: u32,
    id: String,
    cluster: String,
    kind: &'static str,
    #[serde(rename = "type")]
    backup_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<BaseDocument>,
    /// Why a backup that was to be incremental is a full one.
    #[serde(skip_serializing_if = "Option::is_none")]
    full_because: Option<String>,
    started: Timestamp,
    finished: Timestamp,
    /// Of a physical backup.
    lsn_start: Option<String>,
    lsn_stop: Option<String>,
    timeline: Option<u32>,
    size_bytes: u64,
    read_bytes: u64,
    stored_bytes: u64,
    bad_blocks: u64,
    from_standby: bool,
    /// Of a logical backup: the databases, what no earlier backup had of their dumps, and the program that made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    logical: Option<serde_json::Value>,
    /// Of a backup of files or of a system: what is in it, and what was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<serde_json::Value>,
    /// Interrupted backups of which something could be used, and how many stored bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed: Option<serde_json::Value>,
    /// What --verify-incremental found, where there was something to compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    verify_incremental: Option<serde_json::Value>,
    repos: Vec<RepoOutcome>,
    /// Where objects are locked: what became of the locks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    locks: Vec<serde_json::Value>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
pub struct RepoOutcome {
    pub name: String,
    pub ok: bool,
}

impl BackupDocument {
    pub fn locked(mut self, locks: Vec<serde_json::Value>, warnings: impl Iterator<Item = String>) -> Self {
        self.locks = locks;
        self.warnings.extend(warnings);
        self
    }

    pub fn new(cluster: &str, report: &BackupReport, repos: Vec<RepoOutcome>, lacking: Vec<String>) -> Self {
        let e = &report.entry;
        BackupDocument {
            schema: SCHEMA,
            id: e.id.to_string(),
            cluster: cluster.into(),
            kind: "physical",
            backup_type: type_name(e.backup_type),
            base: report.base.as_ref().map(BaseDocument::new),
            full_because: report.full_because.clone(),
            started: e.started,
            finished: e.finished,
            lsn_start: Some(e.lsn_start.to_string()),
            lsn_stop: Some(e.lsn_stop.to_string()),
            timeline: Some(e.timeline.get()),
            size_bytes: e.size_bytes,
            read_bytes: e.read_bytes,
            stored_bytes: e.stored_bytes,
            bad_blocks: e.bad_blocks,
            from_standby: e.from_standby,
            logical: None,
            files: None,
            resumed: (!report.resumed.backups.is_empty()).then(|| {
                let ids: Vec<String> = report.resumed.backups.iter().map(ToString::to_string).collect();
                serde_json::json!({"backups": ids, "stored_bytes": report.resumed.bytes})
            }),
            verify_incremental: report.rechecked.as_ref().map(|r| {
                serde_json::json!({"pages": r.pages, "hints": r.hints, "changed_later": r.later, "wrong": r.wrong,
                    "examples": r.examples})
            }),
            repos,
            locks: vec![],
            warnings: report.warnings.iter().cloned().chain(lacking).collect(),
        }
    }

    pub fn files(cluster: &str, report: &FilesReport, repos: Vec<RepoOutcome>, lacking: Vec<String>) -> Self {
        let e = &report.entry;
        let mut files = super::super::backup_files::document(&report.files);
        files["new_bytes"] = report.new_bytes.into();
        files["compared_with"] = report.base.as_ref().map(ToString::to_string).into();
        BackupDocument {
            schema: SCHEMA,
            id: e.id.to_string(),
            cluster: cluster.into(),
            kind: e.kind.as_str(),
            backup_type: type_name(e.backup_type),
            base: None,
            full_because: None,
            started: e.started,
            finished: e.finished,
            lsn_start: None,
            lsn_stop: None,
            timeline: None,
            size_bytes: e.size_bytes,
            read_bytes: e.read_bytes,
            stored_bytes: e.stored_bytes,
            bad_blocks: 0,
            from_standby: false,
            logical: None,
            files: Some(files),
            resumed: None,
            verify_incremental: None,
            repos,
            locks: vec![],
            warnings: report.warnings.iter().cloned().chain(lacking).collect(),
        }
    }

    pub fn logical(cluster: &str, report: &LogicalReport, repos: Vec<RepoOutcome>, lacking: Vec<String>) -> Self {
        let e = &report.entry;
        BackupDocument {
            schema: SCHEMA,
            id: e.id.to_string(),
            cluster: cluster.into(),
            kind: e.kind.as_str(),
            backup_type: type_name(e.backup_type),
            base: None,
            full_because: None,
            started: e.started,
            finished: e.finished,
            lsn_start: None,
            lsn_stop: None,
            timeline: None,
            size_bytes: e.size_bytes,
            read_bytes: e.read_bytes,
            stored_bytes: e.stored_bytes,
            bad_blocks: 0,
            from_standby: false,
            logical: Some(serde_json::json!({
                "databases": report.databases.iter().map(database).collect::<Vec<_>>(),
                "globals": report.globals.as_ref().map(globals), "new_bytes": report.new_bytes,
                "compared_with": report.base.as_ref().map(ToString::to_string),
                "pg_dump": report.tools.dump.to_string_lossy(), "pg_dump_version": report.tools.version.to_string(),
                "notes": report.notes,
            })),
            files: report.files.as_ref().map(super::super::backup_files::document),
            resumed: None,
            verify_incremental: None,
            repos,
            locks: vec![],
            warnings: report.warnings.iter().cloned().chain(lacking).collect(),
        }
    }
}
