//! What the demonstration reached, as one document and as a page to read.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, TimelineId};
use pgark_repo::catalog::BackupEntry;
use serde::Serialize;

use super::place::Place;
use super::proof::{RowProof, TableProof};
use crate::failure::{SCHEMA, escape};
use crate::output::{human_bytes, human_duration, timestamp};

/// From the alarm to the proof, part by part.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    pub wal: Duration,
    pub verify: Duration,
    pub restore: Duration,
    pub recovery: Duration,
    pub proof: Duration,
    pub all: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    pub payments: RowProof,
    pub tables: Vec<TableProof>,
}

impl Proof {
    pub fn holds(&self) -> bool {
        self.payments.holds() && !self.tables.is_empty() && self.tables.iter().all(|t| t.identical)
    }
}

/// What was measured.
pub struct Facts<'a> {
    pub pg_version: String,
    pub entry: &'a BackupEntry,
    pub copied_in: Duration,
    pub backup_took: Duration,
    pub payments_meanwhile: u64,
    pub wal_segments: u64,
    pub wal_bytes: u64,
    pub repository_bytes: u64,
    pub dropped_at: Timestamp,
    pub dropped_by: u64,
    pub objects_checked: u64,
    pub bytes_checked: u64,
    pub reached: Lsn,
    pub timeline: TimelineId,
    pub proof: Proof,
    pub parts: Parts,
    pub total: Duration,
    pub kept: Option<Kept>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    pub proven: bool,
    pg_version: String,
    backup: BackupFigures,
    wal: WalFigures,
    verify: VerifyFigures,
    disaster: DisasterFigures,
    proof: Proof,
    rpo: Rpo,
    rto: Rto,
    total_ms: u64,
    kept: Option<Kept>,
}

#[derive(Debug, Serialize)]
struct BackupFigures {
    id: String,
    size_bytes: u64,
    stored_bytes: u64,
    /// Size before by size after.
    compression_ratio: f64,
    copy_ms: u64,
    duration_ms: u64,
    /// While files were copied, in units of 1000.
    mb_per_second: f64,
    payments_committed_meanwhile: u64,
}

#[derive(Debug, Serialize)]
struct WalFigures {
    segments: u64,
    bytes: u64,
    /// Backup and WAL, as they lie in the repository.
    repository_bytes: u64,
}

#[derive(Debug, Serialize)]
struct VerifyFigures {
    objects_checked: u64,
    bytes_checked: u64,
}

#[derive(Debug, Serialize)]
struct DisasterFigures {
    dropped_at: String,
    xid: u64,
    recovered_to_lsn: String,
    timeline: u32,
}

#[derive(Debug, Serialize)]
struct Rpo {
    rows_lost: u64,
    /// Between the last acknowledged payment and the newest recovered one; null when none is back.
    seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Rto {
    seconds: f64,
    wal_ms: u64,
    verify_ms: u64,
    restore_ms: u64,
    recovery_ms: u64,
    proof_ms: u64,
}

/// Where to look at what `--keep` left.
#[derive(Debug, Serialize)]
pub struct Kept {
    directory: String,
    source: String,
    recovered: String,
    repository: String,
    stop: Vec<String>,
}

impl Kept {
    pub fn new(place: &Place, bin: &Path) -> Self {
        let dir = place.dir.display();
        let stop = |data: &Path| format!("{} -D {} -m immediate stop", bin.join("pg_ctl").display(), data.display());
        Kept {
            directory: dir.to_string(),
            source: format!("psql -h {dir} -p {} postgres", place.port),
            recovered: format!("psql -h {dir} -p {} postgres", place.recovered_port()),
            repository: format!("{} info --config {}", place.program.display(), place.config().display()),
            stop: vec![stop(&place.recovered()), stop(&place.source()), format!("rm -r {dir}")],
        }
    }

    fn text(&self) -> String {
        format!(
            "\nKept in {}, both servers run. As the user who owns it:\n  the source      {}\n  the recovered   {}\n  the repository  {}\n  to end it       {}\n",
            self.directory,
            self.source,
            self.recovered,
            self.repository,
            self.stop.join(" && ")
        )
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Two digits after the point.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Report {
    pub fn new(f: Facts<'_>) -> Self {
        let rows = &f.proof.payments;
        Report {
            schema: SCHEMA,
            proven: f.proof.holds(),
            pg_version: f.pg_version,
            backup: BackupFigures {
                id: f.entry.id.to_string(),
                size_bytes: f.entry.size_bytes,
                stored_bytes: f.entry.stored_bytes,
                compression_ratio: rounded(f.entry.size_bytes as f64 / f.entry.stored_bytes.max(1) as f64),
                copy_ms: millis(f.copied_in),
                duration_ms: millis(f.backup_took),
                mb_per_second: rounded(f.entry.read_bytes as f64 / 1e6 / f.copied_in.as_secs_f64().max(0.001)),
                payments_committed_meanwhile: f.payments_meanwhile,
            },
            wal: WalFigures { segments: f.wal_segments, bytes: f.wal_bytes, repository_bytes: f.repository_bytes },
            verify: VerifyFigures { objects_checked: f.objects_checked, bytes_checked: f.bytes_checked },
            disaster: DisasterFigures {
                dropped_at: timestamp(f.dropped_at),
                xid: f.dropped_by,
                recovered_to_lsn: f.reached.to_string(),
                timeline: f.timeline.get(),
            },
            rpo: Rpo { rows_lost: rows.missing, seconds: rows.lost_time.map(|t| rounded(t.as_secs_f64())) },
            rto: Rto {
                seconds: rounded(f.parts.all.as_secs_f64()),
                wal_ms: millis(f.parts.wal),
                verify_ms: millis(f.parts.verify),
                restore_ms: millis(f.parts.restore),
                recovery_ms: millis(f.parts.recovery),
                proof_ms: millis(f.parts.proof),
            },
            proof: f.proof,
            total_ms: millis(f.total),
            kept: f.kept,
        }
    }

    pub fn text(&self) -> String {
        let (b, w, d, rows) = (&self.backup, &self.wal, &self.disaster, &self.proof.payments);
        let time = |ms: u64| human_duration(Duration::from_millis(ms));
        let same = self.proof.tables.iter().filter(|t| t.identical).count();
        let lost = self.rpo.seconds.map_or("nothing came back".to_owned(), |s| format!("{s} s"));
        let r = &self.rto;
        let lines = [
            ("PostgreSQL", self.pg_version.clone()),
            (
                "backup",
                format!(
                    "{} of {}, {} payments committed meanwhile",
                    b.id,
                    human_bytes(b.size_bytes),
                    b.payments_committed_meanwhile
                ),
            ),
            (
                "throughput",
                format!("{:.0} MB/s; {} of {} in all", b.mb_per_second, time(b.copy_ms), time(b.duration_ms)),
            ),
            ("stored", format!("{}, encrypted, {:.1} times smaller", human_bytes(b.stored_bytes), b.compression_ratio)),
            (
                "WAL archived",
                format!(
                    "{} segments, {}; repository {}",
                    w.segments,
                    human_bytes(w.bytes),
                    human_bytes(w.repository_bytes)
                ),
            ),
            (
                "verified",
                format!("{} objects, {}", self.verify.objects_checked, human_bytes(self.verify.bytes_checked)),
            ),
            ("disaster", format!("DROP TABLE payments at {}, transaction {}", d.dropped_at, d.xid)),
            ("recovered to", format!("{} on timeline {}, just before it", d.recovered_to_lsn, d.timeline)),
            (
                "payments",
                format!(
                    "{} of {} identical, {} missing, {} different, {} unknown",
                    rows.identical, rows.acknowledged, rows.missing, rows.different, rows.unknown
                ),
            ),
            ("other tables", format!("{same} of {} identical", self.proof.tables.len())),
            ("RPO reached", format!("{lost}, {} rows lost", self.rpo.rows_lost)),
            ("RTO reached", format!("{:.1} s from the alarm to the proof", r.seconds)),
            (
                "",
                format!(
                    "WAL {}, verify {}, restore {}, recovery {}, proof {}",
                    time(r.wal_ms),
                    time(r.verify_ms),
                    time(r.restore_ms),
                    time(r.recovery_ms),
                    time(r.proof_ms)
                ),
            ),
            ("whole demo", time(self.total_ms)),
        ];
        let verdict = if self.proven {
            "PROVEN: everything committed before the DROP TABLE is back, row by row"
        } else {
            "NOT PROVEN: what came back is not what was committed before the DROP TABLE"
        };
        let mut out = format!("\n{verdict}\n");
        for (name, value) in &lines {
            out += &format!("  {name:<13}{value}\n");
        }
        for example in &rows.examples {
            out += &format!("  DIFFERENCE   {}\n", escape(example));
        }
        out + &self.kept.as_ref().map(Kept::text).unwrap_or_default()
    }
}
