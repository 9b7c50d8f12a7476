//! What is known of the clusters as metrics: of the server's `/metrics`, and of a file for node_exporter.
//!
//! Labels are names of the settings and a few words, never ids: the number of series does not grow with time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::figures::{Newest, Room};
use crate::known::Known;
use crate::serve::ClusterConfig;

/// The last line of OpenMetrics.
const END: &str = "# EOF\n";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCluster {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    cluster: String,
    kind: String,
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBuild {
    version: String,
}

pub type Seconds = Gauge<f64, AtomicU64>;

/// In OpenMetrics.
pub fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// In the text format of Prometheus, which the textfile collector of node_exporter reads: ours have no types that it does not know.
pub fn textfile(registry: &Registry) -> Result<String, fmt::Error> {
    let text = text(registry)?;
    Ok(text.strip_suffix(END).unwrap_or(&text).to_owned())
}

struct Families<'a>(&'a mut Registry);

impl Families<'_> {
    fn of_cluster(&mut self, name: &str, help: &str) -> Family<OfCluster, Seconds> {
        let family = Family::<OfCluster, Seconds>::default();
        self.0.register(name, help, family.clone());
        family
    }

    fn of_kind(&mut self, name: &str, help: &str) -> Family<OfKind, Seconds> {
        let family = Family::<OfKind, Seconds>::default();
        self.0.register(name, help, family.clone());
        family
    }
}

/// Each cluster with what `info` said of it last, and the room of its repository.
pub fn of_clusters(known: &[(&ClusterConfig, Arc<Known>, Room)]) -> Registry {
    let mut registry = Registry::with_prefix("pgark");
    // A gauge and no info, which the textfile collector does not know.
    let build = Family::<OfBuild, Gauge>::default();
    build.get_or_create(&OfBuild { version: env!("CARGO_PKG_VERSION").to_owned() }).set(1);
    registry.register("build_info", "Version of the program", build);
    let families = &mut Families(&mut registry);
    let up = families.of_cluster("repo_readable", "Whether the repository could be read at the last look");
    let looked = families.of_cluster("repo_last_read_timestamp_seconds", "When the repository was read last");
    let rpo = families.of_cluster("rpo_seconds", "The loss that is accepted");
    let rto = families.of_cluster("rto_seconds", "How long a recovery may take");
    let of_info = OfInfo::registered(families);
    for (cluster, known, room) in known {
        let label = OfCluster { cluster: cluster.name.clone() };
        set(&rpo, &label, cluster.rpo.map(|d| d.as_secs_f64()));
        set(&rto, &label, cluster.rto.map(|d| d.as_secs_f64()));
        if known.refreshed.is_some() || known.failed.is_some() {
            set(&up, &label, Some(f64::from(u8::from(known.failed.is_none()))));
        }
        if let Some(refreshed) = known.refreshed {
            set(&looked, &label, Some(seconds(refreshed)));
            of_info.tell(&label, known, room);
        }
    }
    registry
}

/// What a document of `info` says.
struct OfInfo {
    recoverable: Family<OfCluster, Seconds>,
    from: Family<OfCluster, Seconds>,
    until: Family<OfCluster, Seconds>,
    gaps: Family<OfCluster, Seconds>,
    backups: Family<OfCluster, Seconds>,
    damaged: Family<OfCluster, Seconds>,
    expected: Family<OfCluster, Seconds>,
    drilled: Family<OfCluster, Seconds>,
    drill_green: Family<OfCluster, Seconds>,
    used: Family<OfCluster, Seconds>,
    free: Family<OfCluster, Seconds>,
    total: Family<OfCluster, Seconds>,
    full: Family<OfCluster, Seconds>,
    last: Family<OfKind, Seconds>,
    last_size: Family<OfKind, Seconds>,
    last_stored: Family<OfKind, Seconds>,
    last_duration: Family<OfKind, Seconds>,
}

impl OfInfo {
    fn registered(families: &mut Families<'_>) -> OfInfo {
        let mut of = |name, help| families.of_cluster(name, help);
        let (from, until) = ("recovery_window_start_timestamp_seconds", "recovery_window_end_timestamp_seconds");
        OfInfo {
            recoverable: of("recoverable", "Whether anything could be recovered, as of the last read"),
            from: of(from, "The earliest moment that can be recovered"),
            until: of(until, "The latest moment that can be recovered"),
            gaps: of("wal_gap_segments", "Missing WAL segments between those that are there"),
            backups: of("backups", "Complete backups"),
            damaged: of("backups_damaged", "Backups that are known not to be restorable"),
            expected: of("recovery_expected_seconds", "How long a recovery would take, by the drills"),
            drilled: of("restore_drill_last_success_timestamp_seconds", "When a drill was green last"),
            drill_green: of("restore_drill_last_green", "Whether the last drill was green"),
            used: of("repo_used_bytes", "What the repository holds, as far as it was counted"),
            free: of("repo_free_bytes", "What can still be stored in the repository"),
            total: of("repo_size_bytes", "What the store of the repository holds at most"),
            full: of("repo_full_timestamp_seconds", "When the repository is full, if it grows as it did"),
            last: families.of_kind("backup_last_success_timestamp_seconds", "When the newest backup was finished"),
            last_size: families.of_kind("backup_last_size_bytes", "The size of what the newest backup restores"),
            last_stored: families.of_kind("backup_last_stored_bytes", "What the newest backup added to the repository"),
            last_duration: families.of_kind("backup_last_duration_seconds", "How long the newest backup took"),
        }
    }

    fn tell(&self, label: &OfCluster, known: &Known, room: &Room) {
        let of = &known.figures;
        let recoverable = known.refreshed.and_then(|at| known.can_recover(at));
        set(&self.recoverable, label, recoverable.map(|can| f64::from(u8::from(can))));
        set(&self.from, label, known.from.map(seconds));
        set(&self.until, label, known.until.map(seconds));
        set(&self.gaps, label, Some(of.gap_segments));
        set(&self.backups, label, count(of.complete));
        set(&self.damaged, label, count(of.damaged));
        set(&self.expected, label, known.expected_ms.map(|ms| Duration::from_millis(ms).as_secs_f64()));
        set(&self.drilled, label, of.drilled.map(seconds));
        set(&self.drill_green, label, of.drill_green.map(|green| f64::from(u8::from(green))));
        set(&self.used, label, room.used_bytes);
        set(&self.free, label, room.free_bytes);
        set(&self.total, label, room.total_bytes);
        set(&self.full, label, room.full_at.map(seconds));
        for newest in &of.newest {
            let Newest { kind, r#type, .. } = newest;
            let label = OfKind { cluster: label.cluster.clone(), kind: kind.clone(), r#type: r#type.clone() };
            self.last.get_or_create(&label).set(seconds(newest.finished));
            self.last_size.get_or_create(&label).set(newest.size_bytes);
            self.last_stored.get_or_create(&label).set(newest.stored_bytes);
            self.last_duration.get_or_create(&label).set(newest.took_s.unwrap_or(0.0));
        }
    }
}

fn set(family: &Family<OfCluster, Seconds>, label: &OfCluster, value: Option<f64>) {
    if let Some(value) = value {
        family.get_or_create(label).set(value);
    }
}

fn count(number: usize) -> Option<f64> {
    u32::try_from(number).ok().map(f64::from)
}

pub fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}
