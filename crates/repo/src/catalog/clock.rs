//! The time of a cluster, by which backups grow old and what has expired waits: what several clocks agree on, and while
//! they do not, no more than has passed for certain since they last did.
//!
//! Invariant: a clock that runs ahead makes nothing older. Its backups get the time that is certain, and the doubt stays
//! until the clocks agree again or somebody says that the time has really passed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupEntry, Catalog};

/// Clocks that agree differ by less, seconds.
pub const CLOCK_TOLERANCE_SECONDS: i64 = 300;
/// How much time may pass by one clock alone, without another one to confirm it, seconds: across a restart of the machine.
const ALONE_SECONDS: i64 = 3 * 86_400;
/// The same, in intervals between backups.
const ALONE_INTERVALS: i64 = 4;
const DAY_SECONDS: i64 = 86_400;

/// Time since a machine was started, which goes on while it sleeps and which no setting of a clock changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// Changes with every start.
    pub boot: String,
    pub seconds: i64,
}

impl Uptime {
    /// None where the system does not tell.
    pub fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/uptime").ok()?;
        let seconds = text.split(['.', ' ']).next()?.parse().ok()?;
        Some(Uptime { boot: super::holder::boot_id().ok()?, seconds })
    }
}

/// What the clocks said at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// This machine's.
    pub wall: Timestamp,
    pub uptime: Option<Uptime>,
    pub store: Option<StoreTime>,
    /// The database server's.
    pub server: Option<Timestamp>,
}

/// The store's clock, by the date of what was just written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreTime {
    pub at: Timestamp,
    /// Not this machine's: what it agrees with is confirmed.
    pub own: bool,
}

/// As of the last moment at which the clocks agreed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterClock {
    pub time: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<Uptime>,
    /// By how much the store's clock, and the server's, may be ahead of ours because somebody said that ours is right, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub store_offset: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub server_offset: i64,
    /// The last interval between backups, seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Doubt>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Two clocks that do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    pub by: Witness,
    /// What our clock said.
    pub wall: Timestamp,
    /// What it is by the witness.
    pub other: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// The clock of the repository's store.
    Store,
    /// The database server's.
    Server,
    /// The time since the machine was started.
    Uptime,
    /// The clock is set back: `other` is on record.
    Record,
    /// Nothing confirms that so much time has passed since `other`.
    Nothing,
}

impl Doubt {
    /// Whether clocks contradict each other, as opposed to nothing confirming one.
    pub fn is_contradiction(&self) -> bool {
        self.by != Witness::Nothing
    }
}

/// What time it is for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub time: Timestamp,
    pub doubt: Option<Doubt>,
}

impl Reading {
    pub fn judge(&self, clock: Option<&ClusterClock>) -> Judged {
        let offset = |by: fn(&ClusterClock) -> i64| clock.map_or(0, by);
        let store = self.store.map(|s| plus(s.at, -offset(|c| c.store_offset)));
        let server = self.server.map(|s| plus(s, -offset(|c| c.server_offset)));
        let others = [(Witness::Store, store), (Witness::Server, server)];
        let differing = others.into_iter().find_map(|(by, at)| {
            let other = at.filter(|at| !agree(*at, self.wall))?;
            Some(Doubt { by, wall: self.wall, other })
        });
        // Where they differ, it is no later than by any of them.
        let earliest = differing.map_or(self.wall, |d| d.other.min(self.wall));
        let confirmed = self.store.is_some_and(|s| s.own) && store.is_some_and(|at| agree(at, earliest));
        let judged = match clock {
            Some(clock) => self.since(clock, earliest, confirmed),
            None => Judged { time: earliest, doubt: None },
        };
        Judged { doubt: differing.or(judged.doubt), ..judged }
    }

    /// What is to be kept on record of it.
    pub fn after(&self, before: Option<ClusterClock>) -> (ClusterClock, Judged) {
        let judged = self.judge(before.as_ref());
        let before = before.unwrap_or_else(|| ClusterClock::at(judged.time));
        let clock = match judged.doubt {
            None => ClusterClock { time: judged.time, uptime: self.uptime.clone(), doubt: None, ..before },
            // The first one, so that a clock that was set back since is known to have been.
            Some(doubt) => ClusterClock { doubt: before.doubt.or(Some(doubt)), ..before },
        };
        (clock, judged)
    }

    /// By what is on record and this machine, when it is `wall`; `confirmed`: by the clock of another one.
    fn since(&self, clock: &ClusterClock, wall: Timestamp, confirmed: bool) -> Judged {
        let doubt = |by, other| Some(Doubt { by, wall, other });
        let ahead = wall.max(clock.time);
        if let Some(passed) = self.passed_since(clock) {
            let other = plus(clock.time, passed);
            return match agree(wall, other) {
                true => Judged { time: ahead, doubt: None },
                false => Judged { time: other, doubt: doubt(Witness::Uptime, other) },
            };
        }
        if confirmed {
            return Judged { time: wall, doubt: None };
        }
        let alone = ALONE_SECONDS.max(clock.interval().saturating_mul(ALONE_INTERVALS));
        let passed = wall.as_second() - clock.time.as_second();
        let doubt = if passed < -CLOCK_TOLERANCE_SECONDS {
            doubt(Witness::Record, clock.time)
        } else if passed > alone {
            doubt(Witness::Nothing, clock.time)
        } else {
            // A clock that was seen ahead and was not set back since is still ahead, however the machine was started.
            clock.doubt.filter(|d| d.other < d.wall && d.wall <= wall).map(|d| Doubt { wall, ..d })
        };
        Judged { time: if doubt.is_none() { ahead } else { clock.time }, doubt }
    }

    /// Seconds, when the machine was not started since.
    fn passed_since(&self, clock: &ClusterClock) -> Option<i64> {
        let (now, then) = (self.uptime.as_ref()?, clock.uptime.as_ref()?);
        (now.boot == then.boot).then(|| now.seconds.saturating_sub(then.seconds).max(0))
    }
}

fn agree(a: Timestamp, b: Timestamp) -> bool {
    (a.as_second() - b.as_second()).abs() <= CLOCK_TOLERANCE_SECONDS
}

fn plus(at: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_second(at.as_second().saturating_add(seconds)).unwrap_or(at)
}

impl ClusterClock {
    fn at(time: Timestamp) -> Self {
        ClusterClock { time, uptime: None, store_offset: 0, server_offset: 0, interval: 0, doubt: None }
    }

    fn interval(&self) -> i64 {
        if self.interval > 0 { self.interval } else { DAY_SECONDS }
    }
}

impl BackupEntry {
    /// When it ended, as far as that is certain.
    pub fn time(&self) -> Timestamp {
        self.certain.unwrap_or(self.finished)
    }
}

impl Catalog {
    /// What time it is by this reading.
    pub fn judge(&self, reading: &Reading) -> Judged {
        reading.judge(self.clock_then().as_ref())
    }

    /// As of the last agreement; where there is no record of that, or a copied backup is younger, as of the newest backup.
    fn clock_then(&self) -> Option<ClusterClock> {
        // One that was made in doubt is no agreement.
        let newest = self.backups.iter().filter(|b| b.certain.is_none()).map(|b| b.finished).max();
        match &self.clock {
            None => newest.map(ClusterClock::at),
            Some(clock) => Some(match newest.filter(|t| *t > plus(clock.time, CLOCK_TOLERANCE_SECONDS)) {
                Some(newest) => ClusterClock { time: newest, uptime: None, ..clock.clone() },
                None => clock.clone(),
            }),
        }
    }

    /// The latest time of a listed backup.
    pub fn newest_time(&self) -> Option<Timestamp> {
        self.backups.iter().map(BackupEntry::time).max()
    }

    /// Up to when marks such as 'kept until' have run out: a backup must have been made since, so that a clock alone ends
    /// none.
    pub fn time_of_marks(&self, now: Timestamp) -> Timestamp {
        self.newest_time().map_or(now, |newest| newest.min(now))
    }

    /// Goes on from this reading, or keeps its doubt on record.
    fn read_clock(&mut self, reading: &Reading) -> Judged {
        let (clock, judged) = reading.after(self.clock_then());
        self.clock = Some(clock);
        judged
    }

    /// Goes on from this reading when nothing speaks against it.
    pub(super) fn advance_clock(&mut self, reading: &Reading) {
        if self.judge(reading).doubt.is_none() {
            self.read_clock(reading);
        }
    }

    /// A new backup, by the clocks of its end.
    pub(super) fn time_backup(&mut self, entry: &mut BackupEntry, reading: &Reading) -> Option<Doubt> {
        let before = self.newest_time();
        let judged = self.read_clock(reading);
        match judged.doubt {
            Some(_) => entry.certain = Some(judged.time),
            None => {
                if let (Some(clock), Some(before)) = (&mut self.clock, before) {
                    clock.interval = (judged.time.as_second() - before.as_second()).max(0);
                }
            }
        }
        judged.doubt
    }

    /// Somebody says that our clock is right and that the time has passed.
    pub(super) fn accept_clock(&mut self, reading: &Reading) {
        let offset = |other: Timestamp, wall: Timestamp| {
            let ahead = other.as_second() - wall.as_second();
            if ahead.abs() > CLOCK_TOLERANCE_SECONDS { ahead } else { 0 }
        };
        let before = self.clock_then();
        let server = before.as_ref().and_then(|c| c.doubt).filter(|d| d.by == Witness::Server);
        let server_before = before.as_ref().map_or(0, |c| c.server_offset);
        self.clock = Some(ClusterClock {
            time: reading.wall,
            uptime: reading.uptime.clone(),
            store_offset: reading.store.map_or(0, |s| offset(s.at, reading.wall)),
            server_offset: server.map_or(server_before, |d| server_before + offset(d.other, d.wall)),
            interval: before.map_or(0, |c| c.interval),
            doubt: None,
        });
        self.backups.iter_mut().for_each(|b| b.certain = None);
    }

    /// Whether there is anything to accept.
    pub fn is_clock_in_doubt(&self) -> bool {
        self.clock.as_ref().is_some_and(|c| c.doubt.is_some()) || self.backups.iter().any(|b| b.certain.is_some())
    }
}

#[cfg(test)]
mod tests;
