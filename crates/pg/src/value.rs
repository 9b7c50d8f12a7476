//! PostgreSQL's numbers, each with a type of its own so that two of them cannot be confused.
//!
//! Invariant: a value that exists is in range (`TimelineId` is not zero, `SegmentSize` is a power of two that
//! PostgreSQL accepts). The text and serde forms are stable: our file formats and JSON output use them.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::RawSegment;

/// A text or number that is not a valid PostgreSQL value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("'{0}' is not an LSN such as 16/B374D848")]
    Lsn(String),
    #[error("timeline 0 does not exist")]
    Timeline,
    #[error("{0} is not a WAL segment size: a power of two between 1 MiB and 1 GiB")]
    SegmentSize(u64),
    #[error("'{0}' is not the name of a WAL segment")]
    SegmentName(String),
    #[error("WAL segment part {seg:08X} cannot occur with segments of {size} bytes")]
    SegmentOutOfRange { seg: u32, size: u64 },
    #[error("'{0}' is not a system identifier")]
    SystemId(String),
}

/// A position in the WAL, in bytes since the cluster was initialised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to here; `None` if `earlier` is later.
    pub fn checked_sub(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ValueError;

    /// Accepts what `pg_lsn` accepts: one to eight hexadecimal digits on each side of the slash.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let half = |part: &str| {
            let plausible = (1..=8).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_hexdigit());
            plausible.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ValueError::Lsn(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Lsn {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

/// A timeline number; never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline `initdb` creates; it has no history file.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    pub fn new(timeline: u32) -> Option<Self> {
        NonZeroU32::new(timeline).map(Self)
    }

    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Eight upper-case digits, as in file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.get())
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = ValueError;

    fn try_from(timeline: u32) -> Result<Self, ValueError> {
        Self::new(timeline).ok_or(ValueError::Timeline)
    }
}

impl From<TimelineId> for u32 {
    fn from(timeline: TimelineId) -> u32 {
        timeline.get()
    }
}

/// The size of a WAL segment of one cluster, chosen at `initdb`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB. For tests and examples: a real size is read from `pg_control`.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    pub fn new(bytes: u64) -> Result<Self, ValueError> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        if valid { Ok(Self(bytes)) } else { Err(ValueError::SegmentSize(bytes)) }
    }

    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Segments per 4 GiB, `XLogSegmentsPerXLogId`.
    pub fn per_log_file(self) -> u64 {
        (1 << 32) / self.0
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = ValueError;

    fn try_from(bytes: u64) -> Result<Self, ValueError> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.0
    }
}

/// The number of a WAL segment: its start position divided by the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    pub fn containing(lsn: Lsn, size: SegmentSize) -> Self {
        Self(lsn.0 / size.bytes())
    }

    /// The first position of the segment. Saturates where no LSN exists.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.saturating_mul(size.bytes()))
    }

    /// The first position after the segment. Saturates where no LSN exists.
    pub fn end(self, size: SegmentSize) -> Lsn {
        self.next().start(size)
    }

    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A segment of one timeline: what a WAL file name says once the segment size is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SegmentName {
    pub timeline: TimelineId,
    pub segment: SegmentNo,
}

impl SegmentName {
    /// 24 upper-case hexadecimal digits, `XLogFileName`.
    pub fn format(self, size: SegmentSize) -> String {
        let per_log_file = size.per_log_file();
        format!("{:08X}{:08X}{:08X}", self.timeline.get(), self.segment.0 / per_log_file, self.segment.0 % per_log_file)
    }

    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, ValueError> {
        let raw = RawSegment::parse(name.as_bytes())
            .ok_or_else(|| ValueError::SegmentName(name.chars().take(64).collect()))?;
        Ok(Self { timeline: raw.timeline, segment: raw.number(size)? })
    }
}

/// The identifier `initdb` gives a cluster. One cluster = one system identifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        digits
            .then(|| text.parse().ok())
            .flatten()
            .map(SystemId)
            .ok_or_else(|| ValueError::SystemId(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for SystemId {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<SystemId> for String {
    fn from(id: SystemId) -> String {
        id.to_string()
    }
}

/// The number of a block within a relation fork, counted over all its 1 GiB segment files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockNo(pub u32);

/// `TimestampTz`: microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgTimestamp(pub i64);

/// 1970-01-01 to 2000-01-01 in microseconds.
const EPOCH_SHIFT_MICROS: i64 = 946_684_800_000_000;

impl PgTimestamp {
    /// Microseconds since 1970-01-01 UTC; saturates beyond what fits.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_SHIFT_MICROS)
    }

    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(EPOCH_SHIFT_MICROS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_round_trips_and_rejects_nonsense() {
        for text in ["0/0", "0/15D68C50", "A/FF", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        assert_eq!("0/0000000a".parse::<Lsn>().unwrap(), Lsn(10));
        for text in ["", "/", "0/", "/0", "0", "+1/0", "1/-1", "0/123456789", "0/0/0", " 0/0", "g/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn segment_numbers_cross_the_log_file_boundary() {
        for (mib, name) in
            [(1, "0000000A0000000100000FFF"), (16, "0000000A00000001000000FF"), (1024, "0000000A0000000100000003")]
        {
            let size = SegmentSize::new(mib << 20).unwrap();
            let last = SegmentName::parse(name, size).unwrap();
            assert_eq!(last.timeline.get(), 10);
            assert_eq!(last.format(size), name);
            let next = SegmentName { segment: last.segment.next(), ..last };
            assert_eq!(next.format(size), "0000000A0000000200000000");
            assert_eq!(last.segment.end(size), Lsn(2 << 32));
            assert_eq!(SegmentNo::containing(Lsn((2 << 32) - 1), size), last.segment);
        }
        assert!(SegmentName::parse("000000010000000100000100", SegmentSize::DEFAULT).is_err());
        assert!(SegmentName::parse("000000000000000100000000", SegmentSize::DEFAULT).is_err());
        assert!(SegmentName::parse("0000000a0000000100000000", SegmentSize::DEFAULT).is_err());
    }

    #[test]
    fn segment_size_is_a_power_of_two_that_postgresql_accepts() {
        for bytes in [0, 1, 1 << 19, 3 << 20, 1 << 31, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        assert_eq!(SegmentSize::new(1 << 30).unwrap().per_log_file(), 4);
    }

    #[test]
    fn timestamps_shift_by_thirty_years() {
        assert_eq!(PgTimestamp(0).unix_micros(), 946_684_800_000_000);
        assert_eq!(PgTimestamp::from_unix_micros(0), PgTimestamp(-946_684_800_000_000));
        assert_eq!(PgTimestamp(i64::MAX).unix_micros(), i64::MAX);
    }

    #[test]
    fn system_identifier_text_is_decimal_only() {
        assert_eq!("18446744073709551615".parse::<SystemId>().unwrap(), SystemId(u64::MAX));
        assert!("+1".parse::<SystemId>().is_err());
        assert!("18446744073709551616".parse::<SystemId>().is_err());
    }
}
