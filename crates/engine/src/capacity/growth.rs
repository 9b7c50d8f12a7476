//! How fast a repository grows. Pure.
//!
//! Two ways: what was counted over the last weeks says how it really grows, expiry included. Where that is missing, the
//! catalogs say what backups and WAL add, as if nothing were removed; the repository is then full at the earliest at the
//! moment that is told.

use std::fmt;

use jiff::Timestamp;
use pgark_pg::value::SegmentSize;
use pgark_repo::catalog::{BackupEntry, PhysicalBackup};

use super::{Room, bytes};

const DAY_SECONDS: f64 = 86_400.0;
/// What is older says little about tomorrow.
const WINDOW_DAYS: i64 = 30;
/// Less says nothing.
const BACKUPS_MIN: usize = 3;
const BACKUPS_SPAN_DAYS_MIN: f64 = 2.0;
const SAMPLES_MIN: usize = 4;
const SAMPLES_SPAN_DAYS_MIN: f64 = 3.0;
/// Beyond this a forecast is no more than a number.
pub const FORECAST_DAYS_MAX: u64 = 3650;

/// What was in the repository at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at: Timestamp,
    pub bytes: u64,
}

/// What is added in a day, by the catalog of one cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub backups_bytes: f64,
    /// None: no segment was seen that could tell its size.
    pub wal_bytes: Option<f64>,
    pub wal_segments: f64,
    /// Backups between the first and the last of which it was reckoned, both counted.
    pub backups: usize,
    pub span_days: f64,
}

/// The clusters of a repository together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    pub backups_bytes: f64,
    pub wal_bytes: f64,
    pub wal_segments: f64,
    /// The fewest of any cluster.
    pub backups: usize,
    pub span_days: f64,
    /// Clusters of which not enough is known, and why.
    pub lacking: Vec<(String, String)>,
    pub clusters: usize,
}

impl Rates {
    pub fn sum(all: impl IntoIterator<Item = (String, Result<Rate, String>)>) -> Rates {
        let mut sum = Rates { backups: usize::MAX, span_days: f64::INFINITY, ..Rates::default() };
        for (name, rate) in all {
            match rate {
                Ok(rate) => {
                    sum.clusters += 1;
                    sum.backups_bytes += rate.backups_bytes;
                    sum.wal_bytes += rate.wal_bytes.unwrap_or(0.0);
                    sum.wal_segments += rate.wal_segments;
                    sum.backups = sum.backups.min(rate.backups);
                    sum.span_days = sum.span_days.min(rate.span_days);
                    if rate.wal_bytes.is_none() {
                        sum.lacking.push((name, "the size of its WAL was not seen".into()));
                    }
                }
                Err(why) => sum.lacking.push((name, why)),
            }
        }
        if sum.clusters == 0 {
            (sum.backups, sum.span_days) = (0, 0.0);
        }
        sum
    }

    pub fn unknown(why: &str) -> Rates {
        Rates { lacking: vec![(String::new(), why.to_owned())], ..Rates::default() }
    }

    pub fn bytes_per_day(&self) -> f64 {
        self.backups_bytes + self.wal_bytes
    }
}

/// What the backups and the WAL of one cluster add in a day.
///
/// # Errors
/// Why that cannot be told.
pub fn rate(
    backups: &[BackupEntry],
    segment_bytes: Option<u64>,
    segment_size: Option<SegmentSize>,
    now: Timestamp,
) -> Result<Rate, String> {
    let mut all: Vec<&BackupEntry> = backups.iter().filter(|b| b.finished <= now).collect();
    all.sort_by_key(|b| (b.finished, b.id.clone()));
    let recent = |b: &&&BackupEntry| now.as_second() - b.finished.as_second() <= WINDOW_DAYS * 86_400;
    let young = all.iter().filter(recent).count();
    // Somebody who backs up once a month has no more than one in the window.
    let used = if young >= BACKUPS_MIN { all.split_at(all.len() - young).1 } else { &all[..] };
    let (Some(first), Some(last)) = (used.first(), used.last()) else { return Err("there is no backup yet".into()) };
    let span_days = (last.finished.as_second() - first.finished.as_second()) as f64 / DAY_SECONDS;
    if used.len() < BACKUPS_MIN || span_days < BACKUPS_SPAN_DAYS_MIN {
        return Err(format!(
            "{} backups over {span_days:.1} days; {BACKUPS_MIN} over {BACKUPS_SPAN_DAYS_MIN:.0} days are needed",
            used.len()
        ));
    }
    // The first one only says when the stretch began.
    let stored: f64 = used.iter().skip(1).map(|b| b.stored_bytes as f64).sum();
    let (mut wal, mut wal_days) = (0.0, 0.0);
    let physical: Vec<PhysicalBackup> = used.iter().filter_map(|b| b.as_physical()).collect();
    for pair in physical.windows(2) {
        let [a, b] = pair else { continue };
        // After a recovery to an earlier moment positions begin again further back.
        if a.system_id == b.system_id && b.lsn_stop >= a.lsn_stop {
            wal += (b.lsn_stop.0 - a.lsn_stop.0) as f64;
            wal_days += (b.finished.as_second() - a.finished.as_second()) as f64 / DAY_SECONDS;
        }
    }
    let segment_size = segment_size.map_or(0.0, |s| s.bytes() as f64);
    let per_day = if wal_days > 0.0 && segment_size > 0.0 { wal / segment_size / wal_days } else { 0.0 };
    let wal_bytes = match segment_bytes {
        Some(mean) => Some(per_day * mean as f64),
        None if per_day == 0.0 => Some(0.0),
        None => None,
    };
    Ok(Rate { backups_bytes: stored / span_days, wal_bytes, wal_segments: per_day, backups: used.len(), span_days })
}

/// How the repository grows.
#[derive(Clone, Debug, PartialEq)]
pub enum Trend {
    /// As it was counted again and again; less than 0 when it shrinks.
    Counted {
        bytes_per_day: f64,
        samples: usize,
        span_days: f64,
    },
    /// What is added, as if nothing were removed.
    Added {
        bytes_per_day: f64,
        backups: usize,
        span_days: f64,
    },
    NotEnough(String),
}

impl Trend {
    pub fn reckon(samples: &[Sample], rates: &Rates, now: Timestamp) -> Trend {
        let recent: Vec<&Sample> = samples
            .iter()
            .filter(|s| s.at <= now && now.as_second() - s.at.as_second() <= WINDOW_DAYS * 86_400)
            .collect();
        let times = recent.iter().map(|s| s.at.as_second());
        let span_days = match (times.clone().min(), times.max()) {
            (Some(first), Some(last)) => (last - first) as f64 / DAY_SECONDS,
            _ => 0.0,
        };
        if recent.len() >= SAMPLES_MIN && span_days >= SAMPLES_SPAN_DAYS_MIN {
            return Trend::Counted { bytes_per_day: slope(&recent), samples: recent.len(), span_days };
        }
        if rates.clusters == 0 {
            let why =
                rates.lacking.first().map_or_else(|| "no cluster is registered".to_owned(), |(_, why)| why.clone());
            return Trend::NotEnough(why);
        }
        if let Some((name, why)) = rates.lacking.first() {
            return Trend::NotEnough(format!("cluster {name}: {why}"));
        }
        Trend::Added { bytes_per_day: rates.bytes_per_day(), backups: rates.backups, span_days: rates.span_days }
    }

    pub fn bytes_per_day(&self) -> Option<f64> {
        match self {
            Trend::Counted { bytes_per_day, .. } | Trend::Added { bytes_per_day, .. } => Some(*bytes_per_day),
            Trend::NotEnough(_) => None,
        }
    }
}

/// Least squares, bytes per day.
fn slope(samples: &[&Sample]) -> f64 {
    let n = samples.len() as f64;
    let start = samples.iter().map(|s| s.at.as_second()).min().unwrap_or_default();
    let points: Vec<(f64, f64)> =
        samples.iter().map(|s| ((s.at.as_second() - start) as f64 / DAY_SECONDS, s.bytes as f64)).collect();
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let (over, under) =
        points.iter().fold((0.0, 0.0), |(o, u), (x, y)| (o + (x - mx) * (y - my), u + (x - mx) * (x - mx)));
    if under > 0.0 { over / under } else { 0.0 }
}

impl fmt::Display for Trend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |b: &f64| bytes(b.abs() as u64);
        match self {
            Trend::Counted { bytes_per_day, samples, span_days } => {
                let grows = if *bytes_per_day < 0.0 { "shrinks" } else { "grows" };
                write!(
                    f,
                    "{grows} by {} a day, as counted {samples} times over {span_days:.0} days",
                    size(bytes_per_day)
                )
            }
            Trend::Added { bytes_per_day, backups, span_days } => write!(
                f,
                "{} a day are added, by {backups} backups over {span_days:.0} days and the WAL between them; what expires \
                 is not taken off",
                size(bytes_per_day)
            ),
            Trend::NotEnough(why) => write!(f, "not enough history: {why}"),
        }
    }
}

/// When the repository is full if it goes on as it did.
#[derive(Clone, Debug, PartialEq)]
pub enum Forecast {
    Full {
        at: Timestamp,
        days: u64,
        /// Nothing was taken off for what expires: it may last longer.
        earliest: bool,
    },
    /// Not within `FORECAST_DAYS_MAX`.
    Far,
    Unlimited,
    Unknown(String),
}

pub fn forecast(room: &Room, trend: &Trend, now: Timestamp) -> Forecast {
    let free = match room {
        Room::Known { free_bytes, .. } => *free_bytes,
        Room::Unlimited => return Forecast::Unlimited,
        Room::Unknown(_) => return Forecast::Unknown("how much is free is not known".into()),
    };
    let rate = match trend {
        Trend::NotEnough(why) => return Forecast::Unknown(format!("not enough history: {why}")),
        Trend::Counted { bytes_per_day, .. } | Trend::Added { bytes_per_day, .. } => *bytes_per_day,
    };
    let days = free as f64 / rate;
    if rate <= 0.0 || days > FORECAST_DAYS_MAX as f64 {
        return Forecast::Far;
    }
    let seconds = (days * DAY_SECONDS) as i64;
    match Timestamp::from_second(now.as_second().saturating_add(seconds)) {
        Ok(at) => Forecast::Full { at, days: days as u64, earliest: matches!(trend, Trend::Added { .. }) },
        Err(_) => Forecast::Far,
    }
}

impl Forecast {
    /// Whether it is full within so many days.
    pub fn is_within(&self, days_max: u32) -> bool {
        matches!(self, Forecast::Full { days, .. } if *days < u64::from(days_max))
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Forecast::Full { at, days, earliest } => {
                let day = at.to_zoned(jiff::tz::TimeZone::UTC).date();
                let (how, if_not) =
                    if *earliest { ("at the earliest ", ", if nothing expires before") } else { ("", "") };
                write!(f, "full {how}in {days} days, on {day}{if_not}")
            }
            Forecast::Far => write!(f, "not full within {} years", FORECAST_DAYS_MAX / 365),
            Forecast::Unlimited => f.write_str("never full, as configured"),
            Forecast::Unknown(why) => write!(f, "when it is full cannot be told: {why}"),
        }
    }
}

#[cfg(test)]
pub mod tests;
