//! Timeline history files: which timelines lead to a timeline, and where each was left.
//!
//! Invariant: the timelines of a history strictly increase and end below the target. Switch points need not increase:
//! PostgreSQL records the timeline it was *asked* to follow as the parent, even if recovery stopped before that
//! timeline began, so the lookups follow `tliOfPointInHistory` (timeline.c) instead of assuming order.

use std::fmt::Write;

use crate::bytes::decimal_u32;
use crate::value::{Lsn, TimelineId};

/// A history larger than this is refused: each line is about 100 bytes.
pub const HISTORY_BYTES_MAX: usize = 1 << 20;
pub const HISTORY_ENTRIES_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("timeline history has {0} bytes or entries, more than is plausible")]
    TooLarge(usize),
    #[error("line {line} of the timeline history is not 'timeline, switch point, reason'")]
    Line { line: usize },
    #[error("line {line} of the timeline history names timeline {timeline}, which does not follow the one before")]
    Order { line: usize, timeline: TimelineId },
    #[error("the history of timeline {target} names timeline {timeline} as an ancestor")]
    BeyondTarget { target: TimelineId, timeline: TimelineId },
}

/// One ancestor: `timeline` was left at `switch`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HistoryEntry {
    pub timeline: TimelineId,
    pub switch: Lsn,
    pub reason: Vec<u8>,
}

/// A piece of the WAL path to a timeline: `timeline` is valid from `begin` up to, not including, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TimelineRange {
    pub timeline: TimelineId,
    pub begin: Lsn,
    /// `None` for the target itself.
    pub end: Option<Lsn>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TimelineHistory {
    pub target: TimelineId,
    /// Oldest first, without the target.
    pub entries: Vec<HistoryEntry>,
}

impl TimelineHistory {
    /// The history of a timeline that has no ancestors, as timeline 1 of every cluster.
    pub fn root(target: TimelineId) -> Self {
        Self { target, entries: Vec::new() }
    }

    /// Parses the content of `<target>.history`. Empty lines and lines that begin with `#` are ignored.
    pub fn parse(target: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        if content.len() > HISTORY_BYTES_MAX {
            return Err(HistoryError::TooLarge(content.len()));
        }
        let mut history = Self::root(target);
        for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let text = line.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let line = index + 1;
            let entry = parse_line(text).ok_or(HistoryError::Line { line })?;
            history.push(entry, line)?;
        }
        Ok(history)
    }

    fn push(&mut self, entry: HistoryEntry, line: usize) -> Result<(), HistoryError> {
        let timeline = entry.timeline;
        if self.entries.last().is_some_and(|last| last.timeline >= timeline) {
            return Err(HistoryError::Order { line, timeline });
        }
        if timeline >= self.target {
            return Err(HistoryError::BeyondTarget { target: self.target, timeline });
        }
        if self.entries.len() >= HISTORY_ENTRIES_MAX {
            return Err(HistoryError::TooLarge(self.entries.len()));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The content of a history file. A line break inside a reason becomes a space.
    pub fn serialise(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for entry in &self.entries {
            let mut start = String::new();
            // Writing to a String cannot fail.
            let _ = write!(start, "{}\t{}\t", entry.timeline, entry.switch);
            content.extend_from_slice(start.as_bytes());
            content.extend(entry.reason.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
            content.push(b'\n');
        }
        content
    }

    /// Whether `timeline` is the target or one of its ancestors.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.target || self.entry(timeline).is_some()
    }

    /// Where the path leaves `timeline`; `None` for the target and for a timeline that is not on the path.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.entry(timeline).map(|entry| entry.switch)
    }

    /// The timeline whose WAL holds position `lsn` on the path to the target; a switch point belongs to the child.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        // Newest first, as tliOfPointInHistory.
        let newest_first = self.path_to_target().into_iter().rev();
        newest_first
            .filter(|range| range.begin <= lsn && range.end.is_none_or(|end| lsn < end))
            .map(|range| range.timeline)
            .next()
            .unwrap_or(self.target)
    }

    /// The path, oldest timeline first, ending with the target. A timeline that recovery never entered has an empty
    /// range (`end` not after `begin`).
    pub fn path_to_target(&self) -> Vec<TimelineRange> {
        let mut begin = Lsn::INVALID;
        let mut path = Vec::with_capacity(self.entries.len() + 1);
        for entry in &self.entries {
            path.push(TimelineRange { timeline: entry.timeline, begin, end: Some(entry.switch) });
            begin = entry.switch;
        }
        path.push(TimelineRange { timeline: self.target, begin, end: None });
        path
    }

    fn entry(&self, timeline: TimelineId) -> Option<&HistoryEntry> {
        let index = self.entries.binary_search_by_key(&timeline, |entry| entry.timeline).ok()?;
        self.entries.get(index)
    }
}

fn parse_line(text: &[u8]) -> Option<HistoryEntry> {
    let (timeline, rest) = word(text)?;
    let (switch, reason) = word(rest)?;
    Some(HistoryEntry {
        timeline: TimelineId::new(decimal_u32(timeline)?)?,
        switch: std::str::from_utf8(switch).ok()?.parse().ok()?,
        reason: reason.to_vec(),
    })
}

/// The first word, and the rest without the white space between.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end)?;
    (!word.is_empty()).then(|| (word, rest.trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    const THREE: &[u8] = b"1\t0/3000000\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-03-01 12:00:00+00\n";

    #[test]
    fn a_real_history_answers_every_question() {
        let history = TimelineHistory::parse(timeline(3), THREE).unwrap();
        assert_eq!(history.entries.len(), 2);
        assert_eq!(history.entries[1].reason, b"before 2026-03-01 12:00:00+00");
        assert!(history.contains(timeline(1)) && history.contains(timeline(3)) && !history.contains(timeline(4)));
        assert_eq!(history.switch_point(timeline(2)), Some(Lsn(0x50000A0)));
        assert_eq!(history.switch_point(timeline(3)), None);
        for (lsn, expected) in [(0, 1), (0x2FFFFFF, 1), (0x3000000, 2), (0x500009F, 2), (0x50000A0, 3), (u64::MAX, 3)] {
            assert_eq!(history.timeline_at(Lsn(lsn)), timeline(expected), "{lsn:X}");
        }
        assert_eq!(TimelineHistory::parse(timeline(3), &history.serialise()).unwrap(), history);
    }

    #[test]
    fn recovery_that_stopped_before_its_parent_began_skips_the_parent() {
        let history = TimelineHistory::parse(timeline(3), b"1\t0/3000000\t\n2\t0/2000000\tbefore x\n").unwrap();
        assert_eq!(history.timeline_at(Lsn(0x1FFFFFF)), timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x2000000)), timeline(3));
        assert_eq!(history.timeline_at(Lsn(0x3000000)), timeline(3));
    }

    #[test]
    fn damaged_histories_are_refused() {
        for content in [
            &b"1"[..],
            b"1\tx",
            b"1\t0/0/0\t",
            b"0\t0/1\t",
            b"+1\t0/1\t",
            b"2\t0/1\t\n1\t0/2\t",
            b"1\t0/1\t\n1\t0/2\t",
            b"3\t0/1\t",
            b"4\t0/1\t",
            b"4294967296\t0/1\t",
            b"\xff\t0/1\t",
        ] {
            assert!(TimelineHistory::parse(timeline(3), content).is_err(), "{content:?}");
        }
        assert!(TimelineHistory::parse(timeline(3), &vec![b'\n'; HISTORY_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn timeline_one_has_an_empty_history() {
        let history = TimelineHistory::parse(timeline(1), b"# nothing\n").unwrap();
        assert_eq!(history.timeline_at(Lsn(5)), timeline(1));
        assert_eq!(history.path_to_target(), [TimelineRange { timeline: timeline(1), begin: Lsn(0), end: None }]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe_and_what_parses_round_trips(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(history) = TimelineHistory::parse(timeline(9), &content) {
                let again = TimelineHistory::parse(timeline(9), &history.serialise()).unwrap();
                prop_assert_eq!(again.path_to_target(), history.path_to_target());
            }
        }

        #[test]
        fn a_mangled_history_is_safe(at in 0..THREE.len(), byte: u8, lsn: u64) {
            let mut content = THREE.to_vec();
            content[at] = byte;
            if let Ok(history) = TimelineHistory::parse(timeline(3), &content) {
                prop_assert!(history.contains(history.timeline_at(Lsn(lsn))));
            }
        }
    }
}
