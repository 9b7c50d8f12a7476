//! When jobs run: from the settings of a schedule and the moment up to which it was looked at, to what is due now.
//!
//! Pure: time comes in as an argument, and what was done before does too. A run has a *planned* moment, which is the calendar's,
//! moved by the schedule's jitter and out of its blackout windows. Of several that were missed, one is made up for.

mod blackout;
mod calendar;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use blackout::Blackouts;
pub use blackout::parse_time;
use calendar::Calendar;

/// A run that starts later than this after its planned moment was missed, and is made up for or passed over.
pub const LATE: Duration = Duration::from_secs(5 * 60);
pub const JITTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// For jobs whose schedule says nothing.
pub const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// More are not counted.
pub const MISSED_MAX: u32 = 1000;

/// What is written in the settings.
#[derive(Clone, Debug)]
pub struct Spec {
    /// By which it is known in lists, logs and the server's memory.
    pub name: String,
    pub when: When,
    /// IANA; UTC when left out.
    pub time_zone: Option<String>,
    /// Each schedule starts up to so much later, always by the same span.
    pub jitter: Duration,
    pub catch_up: CatchUp,
    /// How long a run may take.
    pub deadline: Duration,
    /// `[DAYS ]HH:MM-HH:MM`, in the schedule's zone: nothing starts then.
    pub blackout: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// minute, hour, day of month, month, day of week; or `@daily` and the like.
    Cron(String),
    Every(Every, Time),
}

/// All but daily ones are on a Sunday, which is the first of its month from monthly on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    Day,
    Week,
    Month,
    /// January, April, July, October
    Quarter,
    /// January, July
    HalfYear,
    /// January
    Year,
}

/// After a time in which nothing could be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// One run, however many were missed
    Once,
    /// The next one at its time
    Skip,
}

/// What is wrong with a specification, and in which of its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub key: &'static str,
    pub message: String,
}

#[derive(Clone, Debug)]
pub struct Schedule {
    name: String,
    calendar: Calendar,
    zone: TimeZone,
    /// Of the calendar's moments to those that are planned.
    shift: SignedDuration,
    blackouts: Blackouts,
    catch_up: CatchUp,
    deadline: Duration,
}

/// What is known of a schedule's past.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// What was planned until here was started or passed over. At first: when the schedule was first seen.
    pub considered: Timestamp,
    pub running: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Start it, and take this moment for considered.
    Now {
        planned: Timestamp,
        /// Planned between what was considered and this, and not made up for.
        passed_over: u32,
        /// It was missed, and is made up for.
        late: bool,
    },
    /// Missed, and not to be made up for: take this moment for considered.
    PassOver {
        missed: u32,
        next: Option<Timestamp>,
    },
    /// It still runs. What becomes due meanwhile is passed over: take the moment of its end for considered.
    Running,
    /// Missed, and to be made up for when the blackout ends.
    Blackout {
        until: Timestamp,
    },
    Later {
        next: Option<Timestamp>,
    },
}

impl Schedule {
    /// # Errors
    /// `Wrong` for a calendar that says nothing or never comes, an unknown zone, windows that leave no time.
    pub fn new(spec: &Spec) -> Result<Schedule, Wrong> {
        let wrong = |key: &'static str| move |message: String| Wrong { key, message };
        let zone_name = spec.time_zone.as_deref().unwrap_or("UTC");
        let zone = TimeZone::get(zone_name).map_err(|_| wrong("time_zone")("no such time zone".into()))?;
        let (key, pattern) = match &spec.when {
            When::Cron(text) => ("cron", text.clone()),
            When::Every(every, at) => ("every", every.cron(*at)),
        };
        let calendar = Calendar::parse(&pattern, zone.clone()).map_err(wrong(key))?;
        if spec.jitter > JITTER_MAX {
            return Err(wrong("jitter")("it is at most 24h".into()));
        }
        if spec.deadline.is_zero() {
            return Err(wrong("deadline")("it is longer than 0s".into()));
        }
        let blackouts = Blackouts::parse(&spec.blackout, zone.clone()).map_err(wrong("blackout"))?;
        Ok(Schedule {
            name: spec.name.clone(),
            shift: jitter(&spec.name, spec.jitter),
            calendar,
            zone,
            blackouts,
            catch_up: spec.catch_up,
            deadline: spec.deadline,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// How long a run may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The first planned moment after this one; `None` at the end of the calendar.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        // A later moment of the calendar is never planned earlier, so the last one that is not after is a place to begin.
        let before = self.last_of_calendar(after);
        let mut at = match before {
            Some(moment) => self.calendar.after(moment)?,
            None => self.calendar.after(Timestamp::MIN)?,
        };
        loop {
            let planned = self.planned(at);
            if planned > after {
                return Some(planned);
            }
            at = self.calendar.after(at)?;
        }
    }

    /// The planned moments after this one, at most so many.
    pub fn upcoming(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        let mut all = vec![];
        let mut last = after;
        while all.len() < count {
            let Some(next) = self.next_after(last) else { break };
            all.push(next);
            last = next;
        }
        all
    }

    /// The last planned moment that is not after this one.
    pub fn last_until(&self, until: Timestamp) -> Option<Timestamp> {
        self.last_of_calendar(until).map(|moment| self.planned(moment))
    }

    /// What is to be done at `now`.
    pub fn due(&self, past: Past, now: Timestamp) -> Due {
        if past.running {
            return Due::Running;
        }
        let (missed, planned) = self.missed(past.considered, now);
        let Some(planned) = planned else { return Due::Later { next: self.next_after(now.max(past.considered)) } };
        let late = now.duration_since(planned) > signed(LATE);
        if late && self.catch_up == CatchUp::Skip {
            return Due::PassOver { missed, next: self.next_after(now) };
        }
        if let Some(until) = self.blackouts.end(now) {
            return Due::Blackout { until };
        }
        Due::Now { planned, passed_over: missed.saturating_sub(1), late }
    }

    /// Since when a successful run is overdue: it was planned after the last success, and its deadline has passed. Runs that
    /// were planned before `known_since` are nobody's.
    pub fn overdue(
        &self,
        known_since: Timestamp,
        last_success: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let after = last_success.map_or(known_since, |at| at.max(known_since));
        let due = self.next_after(after)?.checked_add(signed(self.deadline)).ok()?;
        (due < now).then_some(due)
    }

    /// How many were planned after `considered` and until `now`, and the last of them.
    fn missed(&self, considered: Timestamp, now: Timestamp) -> (u32, Option<Timestamp>) {
        let Some(mut moment) = self.last_of_calendar(now) else { return (0, None) };
        let last = self.planned(moment);
        if last <= considered {
            return (0, None);
        }
        let (mut count, mut seen) = (1, last);
        while count < MISSED_MAX {
            let Some(earlier) = self.calendar.before(moment) else { break };
            let planned = self.planned(earlier);
            if planned <= considered {
                break;
            }
            // Those that a blackout put together are one.
            count += u32::from(planned < seen);
            (moment, seen) = (earlier, planned);
        }
        (count, Some(last))
    }

    /// The last moment of the calendar that is planned at or before `until`.
    fn last_of_calendar(&self, until: Timestamp) -> Option<Timestamp> {
        let mut moment = self.calendar.until(until)?;
        while self.planned(moment) > until {
            moment = self.calendar.before(moment)?;
        }
        Some(moment)
    }

    /// When a moment of the calendar is planned; monotone.
    fn planned(&self, moment: Timestamp) -> Timestamp {
        let moved = moment.checked_add(self.shift).unwrap_or(Timestamp::MAX);
        self.blackouts.after(moved)
    }
}

impl Every {
    fn cron(self, at: Time) -> String {
        let days = match self {
            Every::Day => "* * *",
            Every::Week => "* * SUN",
            Every::Month => "* * SUN#1",
            Every::Quarter => "* 1,4,7,10 SUN#1",
            Every::HalfYear => "* 1,7 SUN#1",
            Every::Year => "* 1 SUN#1",
        };
        format!("{} {} {days}", at.minute(), at.hour())
    }
}

/// The same for one name every time, so that the distance between runs stays what the calendar says.
fn jitter(name: &str, most: Duration) -> SignedDuration {
    let hash = blake3::hash(name.as_bytes());
    let number = hash.as_bytes().iter().take(8).fold(0_u64, |n, byte| (n << 8) | u64::from(*byte));
    let seconds = number % (most.as_secs() + 1);
    SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0))
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}
