//! The names of files in `pg_wal` and in a WAL archive.
//!
//! Invariant: a name is either exactly what PostgreSQL writes (upper-case digits, fixed lengths) or refused. A lower-case
//! or longer name is never taken for a segment.

use std::fmt;

use crate::bytes::hex8;
use crate::value::{SegmentNo, SegmentSize, TimelineId, ValueError};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the name of a WAL segment, partial segment, timeline history or backup history file")]
pub struct NameError(pub String);

/// The three numbers in a segment name, before the segment size is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RawSegment {
    pub timeline: TimelineId,
    pub log: u32,
    pub seg: u32,
}

impl RawSegment {
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        let (timeline, rest) = name.split_at_checked(8)?;
        let (log, seg) = rest.split_at_checked(8)?;
        Some(Self { timeline: TimelineId::new(hex8(timeline)?)?, log: hex8(log)?, seg: hex8(seg)? })
    }

    /// An error if the last part is too large for segments of this size: the name belongs to another cluster.
    pub fn number(self, size: SegmentSize) -> Result<SegmentNo, ValueError> {
        let seg = u64::from(self.seg);
        if seg >= size.per_log_file() {
            return Err(ValueError::SegmentOutOfRange { seg: self.seg, size: size.bytes() });
        }
        Ok(SegmentNo(u64::from(self.log) * size.per_log_file() + seg))
    }
}

impl fmt::Display for RawSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.seg)
    }
}

/// Every kind of file that PostgreSQL hands to `archive_command`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WalFileName {
    /// `000000010000000A000000FF`
    Segment(RawSegment),
    /// `….partial`: the last segment of the old timeline after a promotion. Never a substitute for the segment.
    Partial(RawSegment),
    /// `00000002.history`
    History(TimelineId),
    /// `….00000028.backup`: written by the primary when a backup stops.
    BackupHistory { segment: RawSegment, offset: u32 },
}

impl WalFileName {
    pub fn parse(name: &str) -> Result<Self, NameError> {
        Self::recognise(name.as_bytes()).ok_or_else(|| NameError(name.chars().take(64).collect()))
    }

    fn recognise(name: &[u8]) -> Option<Self> {
        if let Some(timeline) = name.strip_suffix(b".history") {
            return TimelineId::new(hex8(timeline)?).map(Self::History);
        }
        if let Some(segment) = name.strip_suffix(b".partial") {
            return RawSegment::parse(segment).map(Self::Partial);
        }
        if let Some(stem) = name.strip_suffix(b".backup") {
            let (segment, offset) = stem.split_at_checked(24)?;
            let offset = hex8(offset.strip_prefix(b".")?)?;
            return Some(Self::BackupHistory { segment: RawSegment::parse(segment)?, offset });
        }
        RawSegment::parse(name).map(Self::Segment)
    }

    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } => segment.timeline,
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_archived_name_round_trips() {
        for name in [
            "000000010000000A000000FF",
            "0000000A0000000200000001.partial",
            "0000000B.history",
            "000000010000000000000002.00000028.backup",
        ] {
            assert_eq!(WalFileName::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for name in [
            "",
            ".history",
            "00000000.history",
            "0000000b.history",
            "000000010000000A000000F",
            "000000010000000A000000FFF",
            "000000010000000a000000ff",
            "000000000000000A000000FF",
            "000000010000000A000000FF.partial.partial",
            "000000010000000A000000FF.Partial",
            "000000010000000000000002.28.backup",
            "000000010000000000000002-00000028.backup",
            "00000001000000000000000\u{e9}",
            "+00000010000000A000000FF",
            "RECOVERYHISTORY",
        ] {
            assert!(WalFileName::parse(name).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(name in "[0-9A-Fa-f.]{0,26}(\\.partial|\\.history|\\.backup)?") {
            if let Ok(parsed) = WalFileName::parse(&name) {
                prop_assert_eq!(parsed.to_string(), name);
            }
        }

        #[test]
        fn any_text_is_safe(name in "\\PC{0,50}") {
            if let Ok(parsed) = WalFileName::parse(&name) {
                prop_assert_eq!(parsed.to_string(), name);
            }
        }
    }
}
