//! How full a repository is, how fast it grows, and when it will be full if that goes on.
//!
//! Invariant: nothing is guessed in silence. What could not be found out is told with its reason, and every figure
//! says how it was reckoned.

pub mod classes;
pub mod cost;
pub mod growth;
pub mod usage;

use std::fmt;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::store::Store;

use crate::ctx::Ctx;
use crate::error::Result;
use growth::{Forecast, Rates, Sample, Trend};
use usage::Usage;

/// What the administrator says about a repository's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceRules {
    pub capacity: Capacity,
    /// Less than this is a warning.
    pub warn_free: FreeLow,
    /// Being full within so many days is a warning; 0: never.
    pub warn_days: u32,
    /// What a backup leaves for WAL; None: by what is known of the WAL.
    pub wal_reserve: Option<u64>,
}

/// What may be stored, where the store does not tell or somebody allows less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    AsTheStoreTells,
    Unlimited,
    Bytes(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeLow {
    Percent(u8),
    Bytes(u64),
}

/// Below this the disk is as good as full.
const FULL_BYTES: u64 = 16 * 1024 * 1024;
const FREE_FILES_LOW: u64 = 1000;

impl Default for SpaceRules {
    fn default() -> Self {
        SpaceRules {
            capacity: Capacity::AsTheStoreTells,
            warn_free: FreeLow::Percent(5),
            warn_days: 14,
            wal_reserve: None,
        }
    }
}

/// What can still be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    Known { free_bytes: u64, total_bytes: Option<u64>, free_files: Option<u64>, by: LimitedBy },
    Unlimited,
    Unknown(String),
}

/// What sets the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    Store,
    Setting,
}

/// A repository's room.
#[derive(Clone, Debug)]
pub struct Measured {
    pub at: Timestamp,
    pub usage: Usage,
    pub room: Room,
    /// What is added, by the catalogs.
    pub rates: Rates,
    pub trend: Trend,
    pub forecast: Forecast,
}

/// Counts and reckons. `history`: what was counted before, oldest first. Counting the objects may take long on large
/// repositories, so it ends after `count_for`; with no time at all nothing but the room is asked for, since the catalogs of all
/// clusters are many too.
pub fn measure(
    repo: &Repository,
    rules: &SpaceRules,
    history: &[Sample],
    count_for: Duration,
    ctx: &Ctx,
) -> Result<Measured> {
    let at = ctx.now();
    let (usage, rates) = match count_for.is_zero() {
        true => (Usage { incomplete: true, ..Usage::default() }, Rates::unknown("the objects were not counted")),
        false => counted(repo, Instant::now() + count_for, at)?,
    };
    let room = room(repo.store().as_ref(), rules, usage.total());
    let mut samples = history.to_vec();
    samples.extend(usage.total().map(|bytes| Sample { at, bytes }));
    let trend = Trend::reckon(&samples, &rates, at);
    let forecast = growth::forecast(&room, &trend, at);
    Ok(Measured { at, usage, room, rates, trend, forecast })
}

fn counted(repo: &Repository, deadline: Instant, at: Timestamp) -> Result<(Usage, Rates)> {
    let mut catalogs = vec![];
    for name in repo.clusters()? {
        catalogs.push(CatalogStore::new(repo, &name).read()?);
    }
    let usage = Usage::count(repo.store().as_ref(), &catalogs, at, deadline)?;
    let rates = rates(&catalogs, &usage, at);
    Ok((usage, rates))
}

fn rates(catalogs: &[Catalog], usage: &Usage, at: Timestamp) -> Rates {
    Rates::sum(catalogs.iter().map(|c| {
        let segments = usage.clusters.get(c.cluster.as_str()).map(|of| of.segments).unwrap_or_default();
        (
            c.cluster.to_string(),
            growth::rate(&c.backups, segments.mean_bytes(), c.lineage().map(|l| l.segment_size), at),
        )
    }))
}

/// `used`: by everything in the repository; None when it was not counted.
pub fn room(store: &dyn Store, rules: &SpaceRules, used: Option<u64>) -> Room {
    let told = match store.space() {
        Ok(told) => told,
        Err(e) => return Room::Unknown(e.to_string()),
    };
    let of_store = told.map(|s| (s.free_bytes, s.total_bytes));
    let free_files = told.and_then(|s| s.free_files);
    match (rules.capacity, of_store) {
        (Capacity::AsTheStoreTells | Capacity::Unlimited, Some((free_bytes, total_bytes))) => {
            Room::Known { free_bytes, total_bytes, free_files, by: LimitedBy::Store }
        }
        (Capacity::AsTheStoreTells, None) => Room::Unknown(
            "the store does not tell: set the repository's 'capacity' to a size or to \"unlimited\"".into(),
        ),
        (Capacity::Unlimited, None) => Room::Unlimited,
        (Capacity::Bytes(capacity), of_store) => {
            let Some(used) = used else {
                return Room::Unknown("what the repository holds was not counted to the end".into());
            };
            let left = capacity.saturating_sub(used);
            match of_store {
                Some((free_bytes, total_bytes)) if free_bytes < left => {
                    Room::Known { free_bytes, total_bytes, free_files, by: LimitedBy::Store }
                }
                _ => {
                    let total_bytes = Some(capacity);
                    Room::Known { free_bytes: left, total_bytes, free_files, by: LimitedBy::Setting }
                }
            }
        }
    }
}

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    Fine,
    Low,
    Full,
}

impl Room {
    pub fn free_bytes(&self) -> Option<u64> {
        match self {
            Room::Known { free_bytes, .. } => Some(*free_bytes),
            Room::Unlimited | Room::Unknown(_) => None,
        }
    }

    /// None: it is not known how much is free.
    pub fn grade(&self, rules: &SpaceRules) -> Option<Grade> {
        match self {
            Room::Unknown(_) => None,
            Room::Unlimited => Some(Grade::Fine),
            Room::Known { free_bytes, total_bytes, free_files, .. } => {
                let low = match (rules.warn_free, total_bytes) {
                    (FreeLow::Bytes(bytes), _) => *free_bytes < bytes,
                    (FreeLow::Percent(percent), Some(total)) => {
                        u128::from(*free_bytes) * 100 < u128::from(*total) * u128::from(percent)
                    }
                    // A share of what nobody knows.
                    (FreeLow::Percent(_), None) => false,
                };
                let low = low || free_files.is_some_and(|files| files < FREE_FILES_LOW);
                let full = *free_bytes < FULL_BYTES || *free_files == Some(0);
                Some(if full {
                    Grade::Full
                } else if low {
                    Grade::Low
                } else {
                    Grade::Fine
                })
            }
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Room::Known { free_bytes, total_bytes, free_files, by } => {
                write!(f, "{} free", bytes(*free_bytes))?;
                if let Some(total) = total_bytes.filter(|t| *t > 0) {
                    let percent = *free_bytes as f64 * 100.0 / total as f64;
                    write!(f, " of {} ({percent:.0} %)", bytes(total))?;
                }
                if *by == LimitedBy::Setting {
                    write!(f, " by the configured capacity")?;
                }
                match free_files.filter(|files| *files < FREE_FILES_LOW) {
                    Some(files) => write!(f, ", room for {files} more files only"),
                    None => Ok(()),
                }
            }
            Room::Unlimited => f.write_str("unlimited, as configured"),
            Room::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

/// For messages; powers of ten.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let found = UNITS.iter().find(|(_, unit)| bytes as f64 >= *unit);
    found.map_or_else(|| format!("{bytes} bytes"), |(name, unit)| format!("{:.1} {name}", bytes as f64 / unit))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgark_repo::store::MemoryStore;

    use super::*;

    const TB: u64 = 1_000_000_000_000;

    fn rules(capacity: Capacity) -> SpaceRules {
        SpaceRules { capacity, ..SpaceRules::default() }
    }

    fn known(free_bytes: u64, total: u64) -> Room {
        Room::Known { free_bytes, total_bytes: Some(total), free_files: None, by: LimitedBy::Store }
    }

    #[test]
    fn a_store_that_does_not_tell_has_the_room_that_was_configured_and_no_other() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        assert!(matches!(room(&*store, &rules(Capacity::AsTheStoreTells), Some(1)), Room::Unknown(_)));
        assert_eq!(room(&*store, &rules(Capacity::Unlimited), None), Room::Unlimited);
        let of = |used| room(&*store, &rules(Capacity::Bytes(TB)), used);
        assert_eq!(of(Some(TB / 4)).free_bytes(), Some(TB / 4 * 3));
        assert_eq!(of(Some(2 * TB)).free_bytes(), Some(0));
        assert!(matches!(of(None), Room::Unknown(_)), "what was not counted is not free");
    }

    #[test]
    fn unknown_room_is_never_graded_fine() {
        assert_eq!(Room::Unknown(String::new()).grade(&SpaceRules::default()), None);
    }

    #[test]
    fn the_grade_goes_by_the_rule_and_by_files() {
        let percent = SpaceRules { warn_free: FreeLow::Percent(10), ..SpaceRules::default() };
        let size = SpaceRules { warn_free: FreeLow::Bytes(TB), ..SpaceRules::default() };
        assert_eq!(known(TB, 10 * TB).grade(&percent), Some(Grade::Fine));
        assert_eq!(known(TB - 1, 10 * TB).grade(&percent), Some(Grade::Low));
        assert_eq!(known(TB, 2 * TB).grade(&size), Some(Grade::Fine));
        assert_eq!(known(TB - 1, 2 * TB).grade(&size), Some(Grade::Low));
        assert_eq!(known(FULL_BYTES - 1, TB).grade(&size), Some(Grade::Full));
        let files = |n| Room::Known { free_bytes: TB, total_bytes: None, free_files: Some(n), by: LimitedBy::Store };
        assert_eq!(files(0).grade(&percent), Some(Grade::Full));
        assert_eq!(files(FREE_FILES_LOW - 1).grade(&percent), Some(Grade::Low));
        assert!(files(7).to_string().contains("7 more files"));
    }

    #[test]
    fn sizes_are_told_in_powers_of_ten() {
        let shown = [999, 1000, 1_550_000, 2_000_000_000_000].map(bytes);
        assert_eq!(shown, ["999 bytes", "1.0 kB", "1.6 MB", "2.0 TB"]);
    }
}
