//! The JSON documents, as scripts rely on them. Wire types only; the engine's own types are free to change.

mod backup;
mod info;
mod restore;
mod verify;

use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Evidence};
use pgark_repo::record::{Base, DatabaseDump, GlobalsPart, Method, TruthPart};
use serde::Serialize;

pub use backup::{BackupDocument, RepoOutcome};
pub use info::{InfoDocument, WindowDocument};
pub use restore::{RepositoryTrouble, RestoreDocument, StartedDocument};
pub use verify::{VerifyDocument, problem_kind};

pub fn database(d: &DatabaseDump) -> serde_json::Value {
    serde_json::json!({"name": d.name, "taken": d.taken, "size_bytes": d.size_bytes, "dump_bytes": d.dump_bytes,
        "entries": d.entries, "tables": d.table_data, "keys_outside": d.keys_outside, "owner": d.owner, "encoding": d.encoding, "snapshot": d.snapshot,
        "schemas_selected": d.schemas, "tables_selected": d.tables, "truth": d.truth.as_ref().map(truth)})
}

fn truth(t: &TruthPart) -> serde_json::Value {
    serde_json::json!({"part": t.path, "bytes": t.bytes, "hashed": t.hashed, "objects": t.objects, "tables": t.tables,
        "rows": t.rows, "unread": t.unread, "duration_ms": t.duration_ms})
}

pub fn globals(g: &GlobalsPart) -> serde_json::Value {
    serde_json::json!({"roles": g.roles, "tablespaces": g.tablespaces, "passwords": g.passwords})
}

/// What an incremental backup took over from.
#[derive(Serialize)]
pub struct BaseDocument {
    backup: String,
    /// `blocks`: only what the WAL says has changed was read; `contents`: everything was read and compared.
    method: &'static str,
    /// Why everything was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl BaseDocument {
    pub fn new(base: &Base) -> Self {
        let method = match base.method {
            Method::Blocks => "blocks",
            Method::Contents => "contents",
        };
        BaseDocument { backup: base.backup.to_string(), method, reason: base.reason.clone() }
    }
}

/// What people look for: how a physical backup was taken, and otherwise what it holds.
pub fn kind_name(entry: &BackupEntry) -> &'static str {
    match entry.kind {
        BackupKind::Physical => type_name(entry.backup_type),
        kind => kind.as_str(),
    }
}

pub fn type_name(backup_type: BackupType) -> &'static str {
    match backup_type {
        BackupType::Full => "full",
        BackupType::Incremental => "incr",
    }
}

pub fn holds(b: &BackupEntry) -> Vec<serde_json::Value> {
    b.holds.iter().map(|h| serde_json::json!({"reason": h.reason, "since": h.since})).collect()
}

pub fn evidence(e: Evidence) -> &'static str {
    match e {
        Evidence::Stored => "stored",
        Evidence::Authenticated => "authenticated",
        Evidence::Started => "started",
        Evidence::Replayed => "replayed",
        Evidence::Drilled => "drilled",
    }
}

pub fn version_text(num: u32) -> String {
    match num % 10_000 {
        0 => (num / 10_000).to_string(),
        minor => format!("{}.{minor}", num / 10_000),
    }
}
