//! Which WAL files a recovery reads: along the history of its target timeline, each segment from the newest
//! timeline that had begun by then.

use pgark_pg::history::{TimelineHistory, TimelineRange};
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use pgark_repo::wal::WalHead;

#[derive(Clone, Debug)]
pub struct WalPath {
    ranges: Vec<TimelineRange>,
    size: SegmentSize,
}

impl WalPath {
    pub fn new(history: &TimelineHistory, size: SegmentSize) -> Self {
        WalPath { ranges: history.path_to_target(), size }
    }

    pub fn ranges(&self) -> &[TimelineRange] {
        &self.ranges
    }

    pub fn size(&self) -> SegmentSize {
        self.size
    }

    pub fn target(&self) -> TimelineId {
        self.ranges.last().expect("a path has its target").timeline
    }

    /// Whether WAL of `timeline` up to `lsn` lies on the path.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.ranges.iter().any(|r| r.timeline == timeline && r.end.is_none_or(|end| lsn <= end))
    }

    /// The timeline whose file holds this segment. A segment in which a timeline begins is read from the new
    /// timeline: its file repeats the old bytes up to the switch.
    pub fn timeline_of(&self, segment: SegmentNo) -> TimelineId {
        let begun = |r: &&TimelineRange| SegmentNo::containing(r.begin, self.size) <= segment;
        let range = self.ranges.iter().rev().find(begun).or(self.ranges.first());
        range.expect("a path has its target").timeline
    }

    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let holds = |r: &&TimelineRange| r.begin <= lsn && r.end.is_none_or(|end| lsn < end);
        self.ranges.iter().find(holds).map_or(self.target(), |r| r.timeline)
    }

    pub fn name(&self, segment: SegmentNo) -> SegmentName {
        SegmentName { timeline: self.timeline_of(segment), segment }
    }

    /// The segments that hold the bytes from `from` up to, not including, `to`; at least the one of `from`.
    pub fn segments(&self, from: Lsn, to: Lsn) -> Vec<SegmentName> {
        let first = SegmentNo::containing(from, self.size);
        let last = SegmentNo::containing(Lsn(to.0.saturating_sub(1).max(from.0)), self.size);
        (first.0..=last.0).map(|n| self.name(SegmentNo(n))).collect()
    }

    /// The last segment that the archive has without a hole from `from` on, following the path.
    pub fn unbroken_to(&self, head: &WalHead, from: SegmentNo) -> Option<SegmentNo> {
        let mut at = from;
        let mut last = None;
        loop {
            let timeline = self.timeline_of(at);
            let Some(run_end) = head.timeline(timeline).and_then(|t| t.unbroken_to(at)) else { return last };
            // Where the path leaves this timeline, the next one's file takes over.
            let next_timeline = self.ranges.iter().map(|r| SegmentNo::containing(r.begin, self.size)).find(|s| *s > at);
            let end = match next_timeline {
                Some(s) if s.0 <= run_end.0 => SegmentNo(s.0 - 1),
                _ => run_end,
            };
            last = Some(end);
            at = end.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_pg::history::HistoryEntry;

    fn tli(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn path() -> WalPath {
        let size = SegmentSize::new(1 << 20).unwrap();
        let entry =
            |t, mb: u64, plus| HistoryEntry { timeline: tli(t), switch: Lsn((mb << 20) + plus), reason: vec![] };
        let history = TimelineHistory { target: tli(5), entries: vec![entry(1, 10, 100), entry(3, 20, 0)] };
        WalPath::new(&history, size)
    }

    #[test]
    fn a_segment_is_read_from_the_newest_timeline_that_had_begun() {
        let p = path();
        for (segment, timeline) in [(0, 1), (9, 1), (10, 3), (19, 3), (20, 5), (99, 5)] {
            assert_eq!(p.timeline_of(SegmentNo(segment)), tli(timeline), "{segment}");
        }
    }

    #[test]
    fn the_unbroken_stretch_follows_the_path_and_stops_at_the_hole() {
        let p = path();
        let mut head = WalHead::default();
        let mut add = |t, from: u64, to: u64| {
            for n in from..=to {
                head.add_segment(&SegmentName { timeline: tli(t), segment: SegmentNo(n) }, 0);
            }
        };
        add(1, 3, 14); // the old timeline went on after it was left
        add(3, 10, 19);
        add(5, 20, 22);
        add(5, 24, 30);
        assert_eq!(p.unbroken_to(&head, SegmentNo(4)), Some(SegmentNo(22)));
        assert_eq!(p.unbroken_to(&head, SegmentNo(2)), None);
        assert_eq!(p.unbroken_to(&head, SegmentNo(23)), None);
        assert_eq!(p.unbroken_to(&head, SegmentNo(24)), Some(SegmentNo(30)));
    }
}
