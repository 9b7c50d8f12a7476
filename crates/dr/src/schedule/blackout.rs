//! Windows in which nothing starts.

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Windows that follow each other without a break, more than all of a week.
const STEPS_MAX: usize = 64;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

#[derive(Clone, Debug)]
pub struct Blackouts {
    windows: Vec<Window>,
    zone: TimeZone,
}

/// Begins on these days, and ends before the same time of the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// Monday first.
    days: [bool; 7],
    from: Time,
    to: Time,
}

impl Blackouts {
    pub fn parse(texts: &[String], zone: TimeZone) -> Result<Blackouts, String> {
        let windows = texts.iter().map(|text| Window::parse(text)).collect::<Result<_, _>>()?;
        let blackouts = Blackouts { windows, zone };
        let somewhere =
            jiff::civil::date(2025, 1, 6).at(0, 0, 0, 0).to_zoned(TimeZone::UTC).map_err(|e| e.to_string())?;
        let begin = somewhere.timestamp();
        let weeks = |t: Timestamp| t.duration_since(begin).as_hours() > 8 * 24;
        if blackouts.step_out(begin).is_none_or(weeks) {
            return Err("the windows leave no time".into());
        }
        Ok(blackouts)
    }

    /// The end of the window that this moment lies in.
    pub fn end(&self, at: Timestamp) -> Option<Timestamp> {
        let out = self.after(at);
        (out > at).then_some(out)
    }

    /// This moment, or the end of the windows it lies in.
    pub fn after(&self, at: Timestamp) -> Timestamp {
        self.step_out(at).unwrap_or(at)
    }

    fn step_out(&self, mut at: Timestamp) -> Option<Timestamp> {
        for _ in 0..STEPS_MAX {
            match self.windows.iter().filter_map(|w| w.end(at, &self.zone)).max() {
                Some(end) => at = end,
                None => return Some(at),
            }
        }
        None
    }
}

impl Window {
    /// `mon-fri 08:00-18:00`, `sat,sun 00:00-24:00`, `22:00-04:00`.
    fn parse(text: &str) -> Result<Window, String> {
        let wrong = || format!("'{text}' is not such as \"mon-fri 08:00-18:00\" or \"22:00-04:00\"");
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, times) = match words.as_slice() {
            [times] => ([true; 7], *times),
            [days, times] => (parse_days(days).ok_or_else(wrong)?, *times),
            _ => return Err(wrong()),
        };
        let (from, to) = times.split_once('-').ok_or_else(wrong)?;
        let from = parse_time(from).ok_or_else(wrong)?;
        let to = if to == "24:00" { Time::midnight() } else { parse_time(to).ok_or_else(wrong)? };
        if from == to && !times.ends_with("24:00") {
            return Err(format!("'{text}' begins when it ends; all of a day is 00:00-24:00"));
        }
        Ok(Window { days, from, to })
    }

    fn end(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let today = at.to_zoned(zone.clone()).date();
        let yesterday = today.checked_sub(1.day()).ok()?;
        [yesterday, today].into_iter().filter_map(|date| self.on(date, zone)).find_map(|(from, to)| {
            let inside = from <= at && at < to;
            inside.then_some(to)
        })
    }

    fn on(&self, date: Date, zone: &TimeZone) -> Option<(Timestamp, Timestamp)> {
        let weekday = usize::try_from(date.weekday().to_monday_zero_offset()).ok()?;
        if !self.days.get(weekday).copied().unwrap_or(false) {
            return None;
        }
        let last = if self.to <= self.from { date.checked_add(1.day()).ok()? } else { date };
        let instant = |date: Date, time: Time| zone.to_timestamp(date.to_datetime(time)).ok();
        Some((instant(date, self.from)?, instant(last, self.to)?))
    }
}

/// `HH:MM`.
pub fn parse_time(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let number = |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok());
    Time::new(number(hour)??, number(minute)??, 0, 0).ok()
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| DAYS.iter().position(|d| d.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let mut at = first;
        loop {
            *days.get_mut(at)? = true;
            if at == last {
                break;
            }
            at = (at + 1) % days.len();
        }
    }
    Some(days)
}
