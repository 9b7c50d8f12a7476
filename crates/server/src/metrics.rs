//! What is known of the clusters as metrics: of the server's `/metrics`, and of a file for node_exporter.
//!
//! Labels are names of the settings and a few words, never ids: the number of series does not grow with time.

use std::fmt;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::Value;

use crate::known::{of_cluster, time};
use crate::serve::ClusterConfig;
use crate::state::Document;

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

/// Each cluster with what `info` said of it last.
pub fn of_clusters(known: &[(&ClusterConfig, Option<Document>)]) -> Registry {
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
    for (cluster, info) in known {
        let label = OfCluster { cluster: cluster.name.clone() };
        set(&rpo, &label, cluster.rpo.map(|d| d.as_secs_f64()));
        set(&rto, &label, cluster.rto.map(|d| d.as_secs_f64()));
        let Some(info) = info else { continue };
        set(&up, &label, Some(f64::from(u8::from(info.failed.is_none()))));
        if !info.document.is_null() {
            set(&looked, &label, Some(seconds(info.refreshed)));
            of_info.tell(
                &label,
                of_cluster(info, &cluster.name),
                info.document.get("repository").unwrap_or(&Value::Null),
            );
        }
    }
    registry
}

/// What a document of `info` says.
struct OfInfo {
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

    fn tell(&self, label: &OfCluster, found: &Value, repository: &Value) {
        let list = |key: &str| found.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let windows = list("windows");
        set(&self.from, label, windows.iter().filter_map(|w| time(w, "from_time")).min().map(seconds));
        set(&self.until, label, windows.iter().filter_map(|w| time(w, "to_time")).max().map(seconds));
        set(&self.gaps, label, Some(list("gaps").iter().filter_map(|g| g.get("segments")?.as_f64()).sum()));
        let complete: Vec<&Value> =
            list("backups").iter().filter(|b| b.get("complete") == Some(&Value::Bool(true))).collect();
        let is_damaged = |b: &&&Value| b.get("damaged").is_some_and(|d| !d.is_null());
        set(&self.backups, label, count(complete.len()));
        set(&self.damaged, label, count(complete.iter().filter(is_damaged).count()));
        let drill = found.get("drill").unwrap_or(&Value::Null);
        let forecasts = drill.get("forecasts").and_then(Value::as_array);
        let slowest = forecasts.into_iter().flatten().filter_map(|f| f.get("expected_ms")?.as_f64()).reduce(f64::max);
        set(&self.expected, label, slowest.map(|ms| ms / 1000.0));
        set(&self.drilled, label, time(drill, "last_green").map(seconds));
        let verdict = drill.pointer("/last/verdict").and_then(Value::as_str);
        set(&self.drill_green, label, verdict.map(|v| f64::from(u8::from(v == "green"))));
        let number = |path: &str| repository.pointer(path).and_then(Value::as_f64);
        set(&self.used, label, number("/used/bytes"));
        set(&self.free, label, number("/free/bytes"));
        set(&self.total, label, number("/free/total_bytes"));
        set(&self.full, label, repository.get("forecast").and_then(|f| time(f, "full_at")).map(seconds));
        complete.into_iter().for_each(|backup| self.tell_of_backup(&label.cluster, backup));
    }

    /// The newest one of each kind stays.
    fn tell_of_backup(&self, cluster: &str, backup: &Value) {
        let word = |key: &str| backup.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(finished) = time(backup, "finished") else { return };
        let label = OfKind { cluster: cluster.to_owned(), kind: word("kind"), r#type: word("type") };
        if self.last.get_or_create(&label).get() > seconds(finished) {
            return;
        }
        let number = |key: &str| backup.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        self.last.get_or_create(&label).set(seconds(finished));
        self.last_size.get_or_create(&label).set(number("size_bytes"));
        self.last_stored.get_or_create(&label).set(number("stored_bytes"));
        let took = time(backup, "started").map_or(0.0, |at| seconds(finished) - seconds(at));
        self.last_duration.get_or_create(&label).set(took);
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
