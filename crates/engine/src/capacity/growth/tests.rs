use std::collections::BTreeMap;

use pgark_pg::value::{Lsn, SystemId, TimelineId};
use pgark_repo::catalog::{BackupKind, BackupType, Catalog, Evidence, PhysicalFacts};
use pgark_repo::names::BackupId;
use pgark_repo::stream::Fingerprint;

use super::super::LimitedBy;
use super::*;

const DAY: i64 = 86_400;
const MB: u64 = 1_000_000;
pub const NOW: i64 = 1_780_000_000;

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// A backup that ended so many days ago.
pub fn backup(days_ago: i64, stored_bytes: u64, lsn: u64) -> BackupEntry {
    let time = at(NOW - days_ago * DAY);
    BackupEntry {
        id: BackupId::new(time, 'I'),
        kind: BackupKind::Physical,
        backup_type: BackupType::Incremental,
        system_id: SystemId(7),
        version_num: 150_000,
        started: time,
        finished: time,
        physical: Some(PhysicalFacts {
            lsn_start: Lsn(lsn),
            lsn_stop: Lsn(lsn),
            stopped: time,
            timeline: TimelineId::new(1).unwrap(),
            bad_blocks: 0,
            from_standby: false,
        }),
        size_bytes: 100 * stored_bytes,
        read_bytes: stored_bytes,
        stored_bytes,
        database_bytes: None,
        series: None,
        kept: false,
        kept_until: None,
        holds: vec![],
        damaged: None,
        certain: None,
        evidence: Evidence::Stored,
        drilled: None,
        annotations: BTreeMap::new(),
        needs: vec![],
        record: Fingerprint { size: 1, blake3: String::new() },
    }
}

pub fn full(days_ago: i64, stored_bytes: u64) -> BackupEntry {
    BackupEntry { backup_type: BackupType::Full, ..backup(days_ago, stored_bytes, 0) }
}

pub fn catalog(backups: Vec<BackupEntry>) -> Catalog {
    let (jobs, none) = (serde_json::json!([]), serde_json::json!([]));
    serde_json::from_value(serde_json::json!({
        "cluster": "main", "lineages": none, "fence": 0, "jobs": jobs, "backups": backups, "removing": none,
    }))
    .unwrap()
}

fn rate_of(backups: &[BackupEntry], segment: Option<u64>) -> Result<Rate, String> {
    rate(backups, segment, Some(SegmentSize::DEFAULT), at(NOW))
}

/// Daily, 10 MB each, ten segments of WAL between them.
fn daily(count: i64) -> Vec<BackupEntry> {
    let segment = SegmentSize::DEFAULT.bytes();
    (0..count).map(|n| backup(count - 1 - n, 10 * MB, 10 * segment * n as u64)).collect()
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found} is not {expected}");
}

#[test]
fn backups_and_the_wal_between_them_give_the_rate_of_a_day() {
    let rate = rate_of(&daily(8), Some(MB)).unwrap();
    near(rate.backups_bytes, 10.0 * MB as f64);
    near(rate.wal_segments, 10.0);
    near(rate.wal_bytes.unwrap(), 10.0 * MB as f64);
    assert_eq!(rate.backups, 8);
}

#[test]
fn too_little_history_is_said_and_gives_no_figure() {
    assert!(rate_of(&[], Some(MB)).unwrap_err().contains("no backup"));
    assert!(rate_of(&daily(2), Some(MB)).unwrap_err().contains("2 backups"));
    let hourly: Vec<_> = (0..9).map(|n| BackupEntry { finished: at(NOW - n * 3600), ..backup(0, MB, 0) }).collect();
    assert!(rate_of(&hourly, Some(MB)).unwrap_err().contains("0.3 days"));
    assert!(rate_of(&daily(3), Some(MB)).is_ok());
}

#[test]
fn the_wal_of_segments_that_nobody_saw_is_not_taken_for_nothing() {
    assert_eq!(rate_of(&daily(5), None).unwrap().wal_bytes, None);
    let sum = Rates::sum([("a".into(), rate_of(&daily(5), None))]);
    assert!(matches!(Trend::reckon(&[], &sum, at(NOW)), Trend::NotEnough(_)));
}

#[test]
fn a_step_back_of_the_wal_position_is_passed_over() {
    let mut backups = daily(8);
    let segment = SegmentSize::DEFAULT.bytes();
    // After the fourth the cluster was recovered to its beginning and goes on at the same pace.
    for (n, b) in backups.iter_mut().enumerate().skip(4) {
        b.physical.as_mut().unwrap().lsn_stop = Lsn((n as u64 - 4) * 10 * segment);
    }
    near(rate_of(&backups, Some(MB)).unwrap().wal_segments, 10.0);
}

#[test]
fn old_backups_count_only_where_there_are_too_few_new_ones() {
    let mut backups: Vec<_> = (0..5).map(|n| backup(400 + n, 1000 * MB, 0)).collect();
    backups.extend((0..5).map(|n| backup(n, MB, 0)));
    near(rate_of(&backups, None).unwrap().backups_bytes, MB as f64);
    let monthly: Vec<_> = (0..5).map(|n| backup(n * 30, 30 * MB, 0)).collect();
    near(rate_of(&monthly, None).unwrap().backups_bytes, MB as f64);
}

#[test]
fn backups_from_the_future_do_not_count() {
    let mut backups = daily(8);
    backups.push(backup(-100, 10 * MB, 0));
    near(rate_of(&backups, Some(MB)).unwrap().backups_bytes, 10.0 * MB as f64);
}

fn samples(count: i64, per_day: i64) -> Vec<Sample> {
    let bytes = |n: i64| u64::try_from(1_000_000_000 + n * per_day).unwrap();
    (0..count).map(|n| Sample { at: at(NOW - (count - 1 - n) * DAY), bytes: bytes(n) }).collect()
}

fn rates() -> Rates {
    Rates::sum([("main".to_owned(), rate_of(&daily(8), Some(MB)))])
}

#[test]
fn what_was_counted_goes_before_what_the_catalog_says() {
    let Trend::Counted { bytes_per_day, samples: n, .. } = Trend::reckon(&samples(10, -5000), &rates(), at(NOW)) else {
        panic!("counted")
    };
    near(bytes_per_day, -5000.0);
    assert_eq!(n, 10);
    for few in [samples(3, 5), samples(0, 5)] {
        let trend = Trend::reckon(&few, &rates(), at(NOW));
        near(trend.bytes_per_day().unwrap(), 20.0 * MB as f64);
        assert!(matches!(trend, Trend::Added { backups: 8, .. }));
    }
    let old: Vec<_> = samples(10, 5).iter().map(|s| Sample { at: at(s.at.as_second() - 60 * DAY), ..*s }).collect();
    assert!(matches!(Trend::reckon(&old, &rates(), at(NOW)), Trend::Added { .. }));
}

#[test]
fn one_cluster_without_history_leaves_the_sum_unknown() {
    let two = Rates::sum([("a".into(), rate_of(&daily(8), Some(MB))), ("b".into(), rate_of(&[], None))]);
    let Trend::NotEnough(why) = Trend::reckon(&[], &two, at(NOW)) else { panic!("unknown") };
    assert!(why.contains("cluster b"), "{why}");
}

fn room(free_bytes: u64) -> Room {
    Room::Known { free_bytes, total_bytes: None, free_files: None, by: LimitedBy::Store }
}

#[test]
fn the_forecast_is_what_is_free_by_what_is_added() {
    let added = Trend::Added { bytes_per_day: 1e9, backups: 5, span_days: 5.0 };
    let found = forecast(&room(10_000_000_000), &added, at(NOW));
    assert_eq!(found, Forecast::Full { at: at(NOW + 10 * DAY), days: 10, earliest: true });
    assert!(found.is_within(11) && !found.is_within(10) && !found.is_within(0));
    let shrinking = Trend::Counted { bytes_per_day: -1.0, samples: 9, span_days: 9.0 };
    assert_eq!(forecast(&room(1), &shrinking, at(NOW)), Forecast::Far);
    let still = Trend::Counted { bytes_per_day: 0.0, samples: 9, span_days: 9.0 };
    assert_eq!(forecast(&room(0), &still, at(NOW)), Forecast::Far);
    assert_eq!(forecast(&room(u64::MAX), &added, at(NOW)), Forecast::Far);
}

#[test]
fn a_forecast_without_its_figures_is_unknown_and_warns_of_nothing() {
    let added = Trend::Added { bytes_per_day: 1e9, backups: 5, span_days: 5.0 };
    for unknown in [
        forecast(&Room::Unknown("x".into()), &added, at(NOW)),
        forecast(&room(1), &Trend::NotEnough("young".into()), at(NOW)),
    ] {
        assert!(matches!(unknown, Forecast::Unknown(_)) && !unknown.is_within(u32::MAX));
    }
    assert_eq!(forecast(&Room::Unlimited, &added, at(NOW)), Forecast::Unlimited);
}
