//! Object lock: versions of objects that nobody can remove before a date, where a store has that.
//!
//! Invariant: an object counts as locked only when the store says so when it is asked for it, never because a request
//! to lock it was accepted.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ObjectName, StoreError};

/// Locks are set for longer than promised, so that they need not be extended by every run.
const SURPLUS_DAYS_MAX: u32 = 10;
pub const LOCK_DAYS_MAX: u32 = 3650;

/// Who may remove a locked version before its time.
/// The stronger one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockMode {
    /// Whoever has a right of its own for that.
    Governance,
    /// Nobody, the owner of the account included.
    Compliance,
}

impl LockMode {
    pub fn name(self) -> &'static str {
        match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [LockMode::Governance, LockMode::Compliance].into_iter().find(|m| m.name().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_lowercase())
    }
}

/// How a repository's objects are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockPolicy {
    mode: LockMode,
    days: u32,
}

impl LockPolicy {
    /// None unless the days are 1 to [`LOCK_DAYS_MAX`]: nothing takes back a lock that is too long.
    pub fn new(mode: LockMode, days: u32) -> Option<Self> {
        (1..=LOCK_DAYS_MAX).contains(&days).then_some(LockPolicy { mode, days })
    }

    pub fn mode(&self) -> LockMode {
        self.mode
    }

    pub fn days(&self) -> u32 {
        self.days
    }

    /// Until when what is written or extended now is locked, whole seconds.
    pub fn until(&self, now: Timestamp) -> Timestamp {
        let surplus = (self.days / 3).clamp(1, SURPLUS_DAYS_MAX);
        after(now, self.days + surplus)
    }

    /// What is locked for less than this is extended.
    pub fn at_least(&self, now: Timestamp) -> Timestamp {
        after(now, self.days)
    }
}

fn after(now: Timestamp, days: u32) -> Timestamp {
    let later = Duration::from_secs(u64::from(days) * 24 * 3600);
    let later = now.checked_add(later).unwrap_or(Timestamp::MAX);
    Timestamp::from_second(later.as_second()).unwrap_or(later)
}

/// What a store says of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub mode: LockMode,
    pub until: Timestamp,
}

/// One version of an object, or a mark that it was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    pub name: ObjectName,
    /// The store's word for it.
    pub id: String,
    /// None for a delete marker.
    pub size: Option<u64>,
    pub modified: Timestamp,
    /// Whether it is what is read under the name.
    pub is_latest: bool,
}

pub type VisitVersions<'a> = dyn FnMut(&[ObjectVersion]) -> Result<(), StoreError> + 'a;

/// What a store whose objects are locked can do beside.
pub trait ObjectLock: Send + Sync {
    fn policy(&self) -> LockPolicy;

    /// All versions below the directory-like `prefix`, those of one name at a time, newest first; names ascend.
    fn versions(&self, prefix: &str, visit: &mut VisitVersions<'_>) -> Result<(), StoreError>;

    /// None: not locked. Asks for the current version when no version is named.
    fn retention(&self, name: &ObjectName, version: Option<&str>) -> Result<Option<Retention>, StoreError>;

    fn retain(&self, name: &ObjectName, version: &str, retention: Retention) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_longer_than_promised_and_extended_when_it_is_shorter() {
        let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
        let policy = LockPolicy::new(LockMode::Compliance, 30).unwrap();
        assert_eq!(policy.until(now), "2026-02-10T00:00:00Z".parse().unwrap());
        assert_eq!(policy.at_least(now), "2026-01-31T00:00:00Z".parse().unwrap());
        let short = LockPolicy::new(LockMode::Governance, 1).unwrap();
        assert_eq!(short.until(now), "2026-01-03T00:00:00Z".parse().unwrap());
        let long = LockPolicy::new(LockMode::Governance, 3650).unwrap();
        assert_eq!(long.until(now).as_second() - long.at_least(now).as_second(), 10 * 24 * 3600);
        assert!(LockPolicy::new(LockMode::Compliance, 0).is_none());
        assert!(LockPolicy::new(LockMode::Compliance, LOCK_DAYS_MAX + 1).is_none());
    }
}
