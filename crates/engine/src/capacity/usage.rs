//! What takes up a repository's room, by kind, as the store lists it.
//!
//! Only objects are seen: not the remains of writers that died, unfinished uploads, or versions that a bucket keeps.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use pgark_repo::catalog::{BackupEntry, Catalog};
use pgark_repo::names::{AUDIT, CLUSTERS, KEYRING, pack_number};
use pgark_repo::store::{ObjectStat, Store, StoreError};

use crate::error::Result;
use crate::rescue;

/// Clusters that are told apart; what more there are is counted as "other".
const CLUSTERS_MAX: usize = 1000;
/// Packs that are older count as of this age.
pub const AGE_DAYS_MAX: u32 = 4000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub objects: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub fn mean_bytes(&self) -> Option<u64> {
        self.bytes.checked_div(self.objects)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterUsage {
    pub packs: Amount,
    /// Manifests and records.
    pub manifests: Amount,
    /// Segments, history files and the head.
    pub wal: Amount,
    /// The segments among that.
    pub segments: Amount,
    pub catalog: Amount,
    /// The packs that the newest backup needs.
    pub newest_backup: Amount,
    /// Bytes of packs by their age in whole days.
    pub packs_by_age: BTreeMap<u32, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub clusters: BTreeMap<String, ClusterUsage>,
    pub keys: Amount,
    pub other: Amount,
    /// The figures are what was seen until time was up.
    pub incomplete: bool,
}

impl ClusterUsage {
    pub fn bytes(&self) -> u64 {
        [self.packs, self.manifests, self.wal, self.catalog].iter().map(|a| a.bytes).sum()
    }
}

impl Usage {
    /// Looks at the names and sizes of all objects, until `deadline`.
    pub fn count(store: &dyn Store, catalogs: &[Catalog], now: Timestamp, deadline: Instant) -> Result<Usage> {
        let newest: BTreeMap<&str, &BackupEntry> =
            catalogs.iter().filter_map(|c| Some((c.cluster.as_str(), c.backups.last()?))).collect();
        let mut usage = Usage::default();
        for dir in store.list_dirs("")? {
            // What else lies there is not ours.
            if ![CLUSTERS, AUDIT, "probe", rescue::DIR].contains(&dir.as_str()) && !dir.starts_with(KEYRING) {
                continue;
            }
            let mut late = false;
            let listed = store.list(&dir, &mut |stat| {
                late = Instant::now() >= deadline;
                if late {
                    return Err(StoreError::ReadOnly); // ends the listing
                }
                usage.add(&stat, &newest, now);
                Ok(())
            });
            if late {
                usage.incomplete = true;
                return Ok(usage);
            }
            listed?;
        }
        Ok(usage)
    }

    fn add(&mut self, stat: &ObjectStat, newest: &BTreeMap<&str, &BackupEntry>, now: Timestamp) {
        let parts: Vec<&str> = stat.name.as_str().split('/').collect();
        let [CLUSTERS, cluster, rest @ ..] = parts.as_slice() else {
            let keys = parts.first().is_some_and(|first| first.starts_with(KEYRING));
            return if keys { self.keys.add(stat.size) } else { self.other.add(stat.size) };
        };
        if !self.clusters.contains_key(*cluster) && self.clusters.len() >= CLUSTERS_MAX {
            return self.other.add(stat.size);
        }
        let of = self.clusters.entry((*cluster).to_owned()).or_default();
        match rest {
            ["backups", backup, "packs", number] => {
                of.packs.add(stat.size);
                let age = of.packs_by_age.entry(age_days(stat, now)).or_default();
                *age = age.saturating_add(stat.size);
                if newest.get(cluster).is_some_and(|b| needs(b, backup, number)) {
                    of.newest_backup.add(stat.size);
                }
            }
            ["backups", ..] => of.manifests.add(stat.size),
            ["wal", ..] => {
                of.wal.add(stat.size);
                if is_segment(rest) {
                    of.segments.add(stat.size);
                }
            }
            ["catalog" | "catalog-mirror", ..] => of.catalog.add(stat.size),
            _ => self.other.add(stat.size),
        }
    }

    /// None when not everything was counted.
    pub fn total(&self) -> Option<u64> {
        (!self.incomplete).then(|| self.counted())
    }

    /// What was counted, be it everything or not.
    pub fn counted(&self) -> u64 {
        let clusters: u64 = self.clusters.values().map(ClusterUsage::bytes).sum();
        clusters.saturating_add(self.keys.bytes).saturating_add(self.other.bytes)
    }
}

/// Without a date, as from now: what is young stays in its class.
fn age_days(stat: &ObjectStat, now: Timestamp) -> u32 {
    let modified = stat.modified.and_then(|m| Timestamp::try_from(m).ok()).unwrap_or(now);
    let seconds = now.as_second().saturating_sub(modified.as_second());
    u32::try_from(seconds.max(0) / 86_400).unwrap_or(AGE_DAYS_MAX).min(AGE_DAYS_MAX)
}

fn needs(entry: &BackupEntry, backup: &str, number: &str) -> bool {
    let Some(number) = pack_number(number) else { return false };
    entry.id.as_str() == backup || entry.needs.iter().any(|n| n.backup.as_str() == backup && n.contains(number))
}

/// `wal/SYSTEM/TIMELINE/LOG/SEGMENT`; side files are told by their dots, but a copy of a segment has one too.
fn is_segment(rest: &[&str]) -> bool {
    let ["wal", _, _, _, file] = rest else { return false };
    let plain = pgark_repo::names::without_copy(file);
    plain.len() == 24 && plain.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgark_repo::store::{MemoryStore, ObjectName};

    use super::*;

    fn store() -> MemoryStore {
        let store = MemoryStore::new();
        for (name, bytes) in [
            ("keyring/0000000000000001", 3),
            ("keyring-mirror/0000000000000001", 3),
            ("probe/1-x", 5),
            ("somebody/else", 1000),
            ("clusters/a/catalog/0000000000000001", 7),
            ("clusters/a/catalog-mirror/0000000000000001", 7),
            ("clusters/a/backups/20260101-000000F/packs/000001", 100),
            ("clusters/a/backups/20260101-000000F/packs/000002", 50),
            ("clusters/a/backups/20260101-000000F/manifest", 10),
            ("clusters/a/backups/20260101-000000F/record", 1),
            ("clusters/a/wal/7/00000001/00000000/000000010000000000000003", 40),
            ("clusters/a/wal/7/00000001/00000000/000000010000000000000003.r1", 20),
            ("clusters/a/wal/7/00000001/00000000/000000010000000000000003.00000028.backup", 2),
            ("clusters/a/wal/7/head/0000000000000001", 4),
            ("clusters/b/backups/20260101-000000F/packs/000001", 9),
        ] {
            store.put_new(&ObjectName::parse(name).unwrap(), &vec![0; bytes]).unwrap();
        }
        store
    }

    #[test]
    fn every_object_counts_once_under_its_kind_and_other_peoples_do_not() {
        let later = Instant::now() + Duration::from_secs(60);
        let usage = Usage::count(&store(), &[], Timestamp::now(), later).unwrap();
        let a = &usage.clusters["a"];
        let amount = |objects, bytes| Amount { objects, bytes };
        assert_eq!(a.packs, amount(2, 150));
        assert_eq!(a.manifests, amount(2, 11));
        assert_eq!(a.wal, amount(4, 66));
        assert_eq!(a.segments, amount(2, 60));
        assert_eq!(a.catalog, amount(2, 14));
        assert_eq!((usage.keys, usage.other), (amount(2, 6), amount(1, 5)));
        assert_eq!(usage.clusters["b"].packs, amount(1, 9));
        assert_eq!(usage.total(), Some(150 + 11 + 66 + 14 + 6 + 5 + 9));
        assert_eq!(a.packs_by_age.values().sum::<u64>(), 150);
    }

    #[test]
    fn what_was_not_counted_to_the_end_is_no_total() {
        let usage = Usage::count(&store(), &[], Timestamp::now(), Instant::now()).unwrap();
        assert!(usage.incomplete);
        assert_eq!(usage.total(), None);
    }

    #[test]
    fn age_is_in_whole_days_and_never_negative() {
        let now: Timestamp = "2026-08-22T00:00:00Z".parse().unwrap();
        let aged = |seconds: i64| {
            let at = Timestamp::from_second(now.as_second() - seconds).unwrap();
            let name = ObjectName::parse("a").unwrap();
            age_days(&ObjectStat { name, size: 1, modified: Some(at.into()) }, now)
        };
        assert_eq!([aged(0), aged(86_399), aged(86_400), aged(-5), aged(1 << 30)], [0, 0, 1, 0, AGE_DAYS_MAX]);
    }
}
