//! The JSON documents, as scripts rely on them. Wire types only; the engine's own types are free to change.

use jiff::Timestamp;
use pgark_engine::backup::BackupReport;
use pgark_engine::files::FilesReport;
use pgark_engine::info::{ClusterInfo, Window};
use pgark_engine::logical::LogicalReport;
use pgark_engine::repair::Mended;
use pgark_engine::restore::RestorePlan;
use pgark_engine::restore::RestoreReport;
use pgark_engine::restore::resolve::StopHow;
use pgark_engine::sources::{Trouble, TroubleKind};
use pgark_engine::verify::{Depth, ProblemKind, VerifyReport};
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Evidence};
use pgark_repo::record::{Base, DatabaseDump, GlobalsPart, Method, TruthPart};
use serde::Serialize;

use super::rehearsed::Rehearsed;
use crate::failure::{Failure, SCHEMA};

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
        let mut files = super::backup_files::document(&report.files);
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
            files: report.files.as_ref().map(super::backup_files::document),
            resumed: None,
            verify_incremental: None,
            repos,
            locks: vec![],
            warnings: report.warnings.iter().cloned().chain(lacking).collect(),
        }
    }
}

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
    /// What has expired and is still on the disk.
    expired: serde_json::Value,
    /// The last rehearsal, and how long a recovery would take.
    drill: serde_json::Value,
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

impl InfoDocument {
    pub fn new(
        clusters: &[ClusterInfo],
        rehearsed: &[Rehearsed],
        repository: serde_json::Value,
        passed_over: &[Failure],
    ) -> Self {
        let why = |f: &Failure| serde_json::json!({"code": f.code, "message": f.message});
        let passed_over = passed_over.iter().map(why).collect();
        let clusters = clusters.iter().zip(rehearsed).map(|(c, r)| cluster_document(c, r.document())).collect();
        InfoDocument { schema: SCHEMA, clusters, repository, passed_over }
    }
}

pub fn version_text(num: u32) -> String {
    match num % 10_000 {
        0 => (num / 10_000).to_string(),
        minor => format!("{}.{minor}", num / 10_000),
    }
}

fn cluster_document(c: &ClusterInfo, drill: serde_json::Value) -> ClusterDocument {
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
        expired: serde_json::json!({"backups": c.expired_backups.len(), "segments": c.expired_segments,
            "due": c.expired_due, "ids": c.expired_backups.iter().map(|e| serde_json::json!({"id": e.backup.to_string(),
                "since": e.since, "due": e.due})).collect::<Vec<_>>()}),
        drill,
        problems: c.problems.clone(),
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

#[derive(Serialize)]
pub struct VerifyDocument {
    schema: u32,
    ok: bool,
    depth: &'static str,
    backups: Vec<String>,
    objects_checked: u64,
    bytes_checked: u64,
    problems: Vec<ProblemDocument>,
    /// Present, and archived by the store: their content was not checked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unchecked: Vec<UncheckedDocument>,
    /// Objects that were made right again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repaired: Vec<String>,
    /// What a repair would make right, where only that was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repairable: Vec<serde_json::Value>,
    parity: ParityDocument,
    notes: Vec<String>,
}

/// Objects by their parity: `present` was compared unless the depth is quick, `missing` is counted where parity is to be
/// written.
#[derive(Serialize)]
struct ParityDocument {
    present: u64,
    missing: u64,
}

#[derive(Serialize)]
struct UncheckedDocument {
    object: String,
    why: String,
    backups: Vec<String>,
}

#[derive(Serialize)]
struct ProblemDocument {
    object: String,
    kind: &'static str,
    what: String,
    backups: Vec<String>,
    windows: Vec<WindowDocument>,
}

pub fn problem_kind(k: ProblemKind) -> &'static str {
    match k {
        ProblemKind::Missing => "missing",
        ProblemKind::Damaged => "damaged",
        ProblemKind::Unexpected => "unexpected",
        ProblemKind::Gap => "gap",
        ProblemKind::Broken => "broken",
        ProblemKind::Conflict => "conflict",
    }
}

impl VerifyDocument {
    pub fn new(r: &VerifyReport, depth: Depth, repaired: Vec<String>, repairable: &[(String, String)]) -> Self {
        let problem = |p: &pgark_engine::verify::Problem| ProblemDocument {
            object: p.object.clone(),
            kind: problem_kind(p.kind),
            what: p.what.clone(),
            backups: p.backups.iter().map(ToString::to_string).collect(),
            windows: p
                .windows
                .iter()
                .map(|w| WindowDocument {
                    timeline: w.timeline.get(),
                    from_time: w.from_time,
                    to_time: w.to_time,
                    from_lsn: w.from_lsn.to_string(),
                    to_lsn: w.to_lsn.to_string(),
                    backups: vec![],
                })
                .collect(),
        };
        let unchecked = |u: &pgark_engine::verify::Unchecked| UncheckedDocument {
            object: u.object.clone(),
            why: u.why.clone(),
            backups: u.backups.iter().map(ToString::to_string).collect(),
        };
        VerifyDocument {
            schema: SCHEMA,
            ok: r.problems.is_empty() && r.unchecked.is_empty(),
            depth: match depth {
                Depth::Full => "full",
                Depth::Quick if r.by_books => "books",
                Depth::Quick => "quick",
            },
            backups: r.backups_checked.iter().map(ToString::to_string).collect(),
            objects_checked: r.objects_checked,
            bytes_checked: r.bytes_checked,
            problems: r.problems.iter().map(problem).collect(),
            unchecked: r.unchecked.iter().map(unchecked).collect(),
            repaired,
            repairable: repairable.iter().map(|(o, from)| serde_json::json!({"object": o, "from": from})).collect(),
            parity: ParityDocument { present: r.parity_present, missing: r.parity_missing.len() as u64 },
            notes: r.remarks(),
        }
    }
}
