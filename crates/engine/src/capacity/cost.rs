//! What a repository costs in a month, by prices from the configuration. Pure.
//!
//! An estimate: which class an object is in is taken from the rules and its age, not asked of the store. Taxes, minimum
//! storage times, versions that a bucket keeps and the cost of changing classes are not part of it.

use std::collections::BTreeMap;

use super::growth::{Rates, Trend};
use super::usage::{ClusterUsage, Usage};

/// What clouds bill as a gigabyte.
const GB: f64 = (1u64 << 30) as f64;
const DAYS_PER_MONTH: f64 = 30.0;
/// Requests are at most so large.
const PART_BYTES: f64 = (8u64 << 20) as f64;
/// Requests that one push of a segment takes: see `docs/storage.md`.
const REQUESTS_PER_SEGMENT: f64 = 25.0;
pub const FORECAST_DAYS: [u32; 3] = [30, 90, 365];

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prices {
    pub currency: String,
    /// Per GB and month, by class.
    pub storage: BTreeMap<String, f64>,
    /// Per GB that is read, by class.
    pub retrieval: BTreeMap<String, f64>,
    pub write_requests_1000: f64,
    pub read_requests_1000: f64,
    /// Per GB that leaves the cloud.
    pub egress: f64,
}

/// Which class an object is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    pub written: String,
    /// From so many days on packs are in this class; ascending.
    pub after: Vec<(u32, String)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    pub currency: String,
    pub storage: Vec<ClassCost>,
    /// Storage of a month as it is now.
    pub storage_month: f64,
    /// Writes of a month; None: not enough history.
    pub requests_month: Option<f64>,
    /// Storage of a month after so many days; None: not enough history.
    pub forecast: Vec<(u32, Option<f64>)>,
    pub restores: Vec<RestoreCost>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ClassCost {
    pub class: String,
    pub bytes: u64,
    pub month: f64,
}

/// Of fetching the newest backup of a cluster, without WAL.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreCost {
    pub cluster: String,
    /// Of all packs that it needs something of.
    pub bytes: u64,
    pub requests: f64,
    pub retrieval: f64,
    pub egress: f64,
    pub total: f64,
}

/// # Errors
/// A class that has no price.
pub fn cost(usage: &Usage, rates: &Rates, trend: &Trend, classes: &Classes, prices: &Prices) -> Result<Cost, String> {
    let now = by_class(usage, classes, 0);
    let mut storage = vec![];
    for (class, bytes) in &now {
        let month = bytes / GB * storage_price(prices, class)?;
        storage.push(ClassCost { class: class.clone(), bytes: *bytes as u64, month });
    }
    let storage_month = storage.iter().map(|s| s.month).sum();
    let mut forecast = vec![];
    for days in FORECAST_DAYS {
        let then = after(usage, rates, trend, classes, days);
        let priced = then.map(|then| priced(&then, prices)).transpose()?;
        forecast.push((days, priced));
    }
    let requests_month = (rates.clusters > 0 && rates.lacking.is_empty()).then(|| {
        let packs = rates.backups_bytes / PART_BYTES;
        (packs + rates.wal_segments * REQUESTS_PER_SEGMENT) * DAYS_PER_MONTH / 1000.0 * prices.write_requests_1000
    });
    let restores = usage
        .clusters
        .iter()
        .filter(|(_, of)| of.newest_backup.objects > 0)
        .map(|(name, of)| restore(name, of, classes, prices));
    Ok(Cost {
        currency: prices.currency.clone(),
        storage,
        storage_month,
        requests_month,
        forecast,
        restores: restores.collect(),
    })
}

fn storage_price(prices: &Prices, class: &str) -> Result<f64, String> {
    prices.storage.get(class).copied().ok_or_else(|| format!("class {class} has no price"))
}

fn priced(classes: &BTreeMap<String, f64>, prices: &Prices) -> Result<f64, String> {
    classes.iter().try_fold(0.0, |sum, (class, bytes)| Ok(sum + bytes / GB * storage_price(prices, class)?))
}

impl Classes {
    fn at(&self, age_days: u32) -> &str {
        let found = self.after.iter().rev().find(|(days, _)| age_days >= *days);
        found.map_or(&self.written, |(_, class)| class)
    }
}

/// Bytes by class, with all packs so many days older than they are.
fn by_class(usage: &Usage, classes: &Classes, older: u32) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, f64> = BTreeMap::new();
    let mut packs = 0;
    for (age, bytes) in usage.clusters.values().flat_map(|c| &c.packs_by_age) {
        *all.entry(classes.at(age.saturating_add(older)).to_owned()).or_default() += *bytes as f64;
        packs += bytes;
    }
    *all.entry(classes.written.clone()).or_default() += usage.counted().saturating_sub(packs) as f64;
    all
}

fn after(usage: &Usage, rates: &Rates, trend: &Trend, classes: &Classes, days: u32) -> Option<BTreeMap<String, f64>> {
    match trend {
        Trend::NotEnough(_) => None,
        // What expires makes room for what is new: the mixture of ages stays as it is.
        Trend::Counted { bytes_per_day, .. } => {
            let now = usage.counted() as f64;
            let then = (now + bytes_per_day * f64::from(days)).max(0.0);
            let factor = if now > 0.0 { then / now } else { 1.0 };
            let mut all = by_class(usage, classes, 0);
            all.values_mut().for_each(|bytes| *bytes *= factor);
            Some(all)
        }
        Trend::Added { .. } => {
            let mut all = by_class(usage, classes, days);
            for age in 0..days {
                *all.entry(classes.at(age).to_owned()).or_default() += rates.backups_bytes;
            }
            *all.entry(classes.written.clone()).or_default() += rates.wal_bytes * f64::from(days);
            Some(all)
        }
    }
}

fn restore(name: &str, of: &ClusterUsage, classes: &Classes, prices: &Prices) -> RestoreCost {
    let gb = of.newest_backup.bytes as f64 / GB;
    // Which of the packs are old is not known: each may be in the class that costs most to read.
    let reachable = of.packs_by_age.keys().map(|age| classes.at(*age));
    let dearest = reachable.filter_map(|class| prices.retrieval.get(class)).copied().fold(0.0, f64::max);
    let requests = (of.newest_backup.bytes as f64 / PART_BYTES).ceil().max(of.newest_backup.objects as f64);
    let requests = requests / 1000.0 * prices.read_requests_1000;
    let (retrieval, egress) = (gb * dearest, gb * prices.egress);
    let total = requests + retrieval + egress;
    RestoreCost { cluster: name.to_owned(), bytes: of.newest_backup.bytes, requests, retrieval, egress, total }
}

#[cfg(test)]
mod tests {
    use super::super::usage::Amount;
    use super::*;

    const GIB: u64 = 1 << 30;

    fn usage(packs: &[(u32, u64)], wal: u64) -> Usage {
        let bytes = packs.iter().map(|p| p.1).sum();
        let of = ClusterUsage {
            packs: Amount { objects: packs.len() as u64, bytes },
            wal: Amount { objects: 1, bytes: wal },
            newest_backup: Amount { objects: 16, bytes: 100 * GIB },
            packs_by_age: packs.iter().copied().collect(),
            ..ClusterUsage::default()
        };
        Usage { clusters: [("main".to_owned(), of)].into(), ..Usage::default() }
    }

    fn classes() -> Classes {
        Classes { written: "STANDARD".into(), after: vec![(30, "IA".into()), (90, "GLACIER_IR".into())] }
    }

    fn prices() -> Prices {
        let of = |all: [(&str, f64); 3]| all.iter().map(|(c, p)| ((*c).to_owned(), *p)).collect();
        Prices {
            currency: "EUR".into(),
            storage: of([("STANDARD", 0.02), ("IA", 0.01), ("GLACIER_IR", 0.004)]),
            retrieval: of([("STANDARD", 0.0), ("IA", 0.01), ("GLACIER_IR", 0.03)]),
            write_requests_1000: 0.005,
            read_requests_1000: 0.0004,
            egress: 0.09,
        }
    }

    fn rates() -> Rates {
        Rates { backups_bytes: GIB as f64, wal_bytes: 0.0, wal_segments: 10.0, clusters: 1, ..Rates::default() }
    }

    fn added() -> Trend {
        Trend::Added { bytes_per_day: GIB as f64, backups: 5, span_days: 5.0 }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn packs_cost_by_their_age_and_everything_else_as_it_was_written() {
        let usage = usage(&[(0, 100 * GIB), (29, 100 * GIB), (30, 100 * GIB), (400, 100 * GIB)], 50 * GIB);
        let cost = cost(&usage, &rates(), &added(), &classes(), &prices()).unwrap();
        let found: Vec<(&str, u64)> = cost.storage.iter().map(|s| (s.class.as_str(), s.bytes / GIB)).collect();
        assert_eq!(found, [("GLACIER_IR", 100), ("IA", 100), ("STANDARD", 250)]);
        near(cost.storage_month, 0.4 + 1.0 + 5.0);
    }

    #[test]
    fn without_expiry_what_is_there_ages_and_what_is_added_comes_on_top() {
        let usage = usage(&[(0, 100 * GIB)], 0);
        let cost = cost(&usage, &rates(), &added(), &classes(), &prices()).unwrap();
        let of = |days| cost.forecast.iter().find(|f| f.0 == days).unwrap().1.unwrap();
        near(of(30), 100.0 * 0.01 + 30.0 * 0.02);
        near(of(90), 100.0 * 0.004 + 30.0 * 0.02 + 60.0 * 0.01);
        near(of(365), 100.0 * 0.004 + 30.0 * 0.02 + 60.0 * 0.01 + 275.0 * 0.004);
    }

    #[test]
    fn a_counted_trend_keeps_the_mixture_of_classes() {
        let usage = usage(&[(0, 50 * GIB), (100, 50 * GIB)], 0);
        let steady = Trend::Counted { bytes_per_day: 0.0, samples: 9, span_days: 9.0 };
        let now = cost(&usage, &rates(), &steady, &classes(), &prices()).unwrap();
        near(now.forecast[2].1.unwrap(), now.storage_month);
        let doubled = Trend::Counted { bytes_per_day: 100.0 * GIB as f64 / 30.0, samples: 9, span_days: 9.0 };
        let grown = cost(&usage, &rates(), &doubled, &classes(), &prices()).unwrap();
        near(grown.forecast[0].1.unwrap(), 2.0 * now.storage_month);
        let gone = Trend::Counted { bytes_per_day: -1e15, samples: 9, span_days: 9.0 };
        near(cost(&usage, &rates(), &gone, &classes(), &prices()).unwrap().forecast[0].1.unwrap(), 0.0);
    }

    #[test]
    fn what_is_not_known_is_not_priced() {
        let usage = usage(&[(0, GIB)], 0);
        let unknown = Rates { lacking: vec![("main".into(), "young".into())], ..Rates::default() };
        let cost = cost(&usage, &unknown, &Trend::NotEnough("young".into()), &classes(), &prices()).unwrap();
        assert_eq!(cost.requests_month, None);
        assert!(cost.forecast.iter().all(|f| f.1.is_none()));
        let mut cheaper = prices();
        cheaper.storage.remove("STANDARD");
        let missing = super::cost(&usage, &rates(), &added(), &classes(), &cheaper).unwrap_err();
        assert!(missing.contains("STANDARD"), "{missing}");
    }

    #[test]
    fn a_restore_pays_requests_retrieval_and_the_way_out() {
        let usage = usage(&[(100, 100 * GIB)], 0);
        let cost = cost(&usage, &rates(), &added(), &classes(), &prices()).unwrap();
        let [restore] = cost.restores.as_slice() else { panic!("one cluster") };
        near(restore.requests, 12_800.0 / 1000.0 * 0.0004);
        near(restore.retrieval, 3.0);
        near(restore.egress, 9.0);
        near(restore.total, restore.requests + 12.0);
        near(cost.requests_month.unwrap(), (128.0 + 250.0) * 30.0 / 1000.0 * 0.005);
    }
}
