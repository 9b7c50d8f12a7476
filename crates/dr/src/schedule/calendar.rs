//! Moments of a cron expression in a time zone.
//!
//! Invariant: an expression whose hours are written out runs once for each of its times, whatever the clocks do: a time that does
//! not exist, when clocks go forward; one that exists twice, the first time. One whose hours are `*` or a step follows real
//! time: in the hour that comes twice it runs twice, so that no two runs are further apart than it says.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan, Zoned};

/// Hours that come twice in the zones of this century: up to three, in Antarctica.
const FOLD_HOURS_MAX: i64 = 4;

#[derive(Clone, Debug)]
pub struct Calendar {
    cron: Cron,
    zone: TimeZone,
    /// Its hours are written out.
    at_fixed_hours: bool,
}

impl Calendar {
    pub fn parse(pattern: &str, zone: TimeZone) -> Result<Calendar, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|e| e.to_string().to_lowercase())?;
        let at_fixed_hours = match pattern.trim().strip_prefix('@') {
            Some(word) => !word.eq_ignore_ascii_case("hourly"),
            None => pattern.split_whitespace().nth(1).is_some_and(|hours| !hours.contains(['*', '/', '?'])),
        };
        let calendar = Calendar { cron, zone, at_fixed_hours };
        let begin = jiff::civil::date(2024, 1, 1).at(0, 0, 0, 0);
        match calendar.cron.find_next_occurrence(&begin, true) {
            // A leap day comes every eight years at least.
            Ok(at) if at.year() < 2034 => Ok(calendar),
            _ => Err("such a day never comes".into()),
        }
    }

    /// The first moment after this one.
    pub fn after(&self, after: Timestamp) -> Option<Timestamp> {
        let here = after.to_zoned(self.zone.clone());
        if !self.at_fixed_hours {
            return self.cron.find_next_occurrence(&here, false).ok().map(|z: Zoned| z.timestamp());
        }
        let mut civil = here.datetime();
        loop {
            civil = self.cron.find_next_occurrence(&civil, false).ok()?;
            let moment = self.moment(civil)?;
            if moment > after {
                return Some(moment);
            }
        }
    }

    /// The last moment that is not after this one.
    pub fn until(&self, until: Timestamp) -> Option<Timestamp> {
        let here = until.to_zoned(self.zone.clone());
        if !self.at_fixed_hours {
            return self.cron.find_previous_occurrence(&here, true).ok().map(|z: Zoned| z.timestamp());
        }
        let mut civil = here.datetime().checked_add(FOLD_HOURS_MAX.hours()).ok()?;
        loop {
            civil = self.cron.find_previous_occurrence(&civil, false).ok()?;
            let moment = self.moment(civil)?;
            if moment <= until {
                return Some(moment);
            }
        }
    }

    /// The last moment before this one.
    pub fn before(&self, before: Timestamp) -> Option<Timestamp> {
        self.until(before.checked_sub(jiff::SignedDuration::from_nanos(1)).ok()?)
    }

    /// When clocks show this time first, or would if they did not go forward over it.
    fn moment(&self, civil: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } => {
                // Read by the clocks of after, it comes before the change; the change is what follows.
                let before = ambiguous.earlier().ok()?;
                self.zone.following(before).next().map(|change| change.timestamp())
            }
            _ => ambiguous.earlier().ok(),
        }
    }
}
