//! Durations and sizes as people write them in settings and flags: `1h30m`, `7d`, `10MB`, `1GiB`.
//!
//! `kB`, `MB`, `GB`, `TB` are powers of 1000, `KiB` … `TiB` of 1024. A year is 365 days; there is no month, because `m`
//! is the minute.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const SPAN_UNITS_MS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 7 * 86_400_000),
    ("y", 365 * 86_400_000),
];

/// What is added to the time of today must still be a time.
const SPAN_YEARS_MAX: u64 = 1000;

/// The units a span is written back in, largest first.
const SPAN_UNITS_SHOWN: &[(&str, u128)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let wrong = || format!("'{text}' is not a duration such as \"30s\", \"1h30m\" or \"7d\"");
        let mut rest = text.trim();
        if rest.starts_with('-') {
            return Err(format!("'{text}' is negative, and a duration is not"));
        }
        let long = || format!("'{text}' is longer than {SPAN_YEARS_MAX} years");
        if rest.is_empty() {
            return Err(wrong());
        }
        let mut total_ms: u64 = 0;
        while !rest.is_empty() {
            let (number, after) = leading_number(rest).ok_or_else(wrong)?;
            let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at_checked(end).ok_or_else(wrong)?;
            let (_, unit_ms) = SPAN_UNITS_MS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            total_ms = number.checked_mul(*unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(long)?;
            rest = after.trim_start();
        }
        if total_ms > SPAN_YEARS_MAX * 365 * 86_400_000 {
            return Err(long());
        }
        Ok(Span(Duration::from_millis(total_ms)))
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let wrong = || format!("'{text}' is not a size such as \"10MB\" or \"1GiB\"");
        let (number, unit) = leading_number(text.trim()).ok_or_else(wrong)?;
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(wrong)?;
        number.checked_mul(*factor).map(ByteSize).ok_or_else(wrong)
    }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, unit_ms) in SPAN_UNITS_SHOWN {
            let count = rest / unit_ms;
            rest %= unit_ms;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZE_UNITS.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.copied().unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// Serde by way of the text form.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use serde_as_text;

serde_as_text!(Span);
serde_as_text!(ByteSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_back() {
        let cases = [("30s", 30, "30s"), ("1h30m", 5400, "1h30m"), ("7d", 604_800, "7d"), ("90min", 5400, "1h30m")];
        let more =
            [("1w", 604_800, "7d"), ("7y", 7 * 365 * 86_400, "2555d"), ("0s", 0, "0s"), ("1d 2h", 93_600, "1d2h")];
        for (text, seconds, shown) in cases.into_iter().chain(more) {
            let span: Span = text.parse().expect(text);
            assert_eq!((span.0.as_secs(), span.to_string().as_str()), (seconds, shown));
        }
        for wrong in ["", "7", "d", "-1h", "1.5h", "1M", "1h30", "99999999999y", "1 ", "ü"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_tell_powers_of_ten_from_powers_of_two() {
        let cases =
            [("10MB", 10_000_000, "10MB"), ("1GiB", 1 << 30, "1GiB"), ("512", 512, "512B"), ("4 kB", 4000, "4kB")];
        for (text, bytes, shown) in cases {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for wrong in ["", "MB", "1 XB", "1.5GB", "-1", "99999999999999TiB", "1mb"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }
}
