//! What the archive holds, as ranges of segments per timeline. A range that ends and another that begins
//! later on the same timeline is a gap, on record.

use pgark_pg::value::{SegmentName, SegmentNo, TimelineId};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalHead {
    timelines: Vec<TimelineSpan>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSpan {
    pub timeline: TimelineId,
    /// The timeline's history file was archived.
    pub history: bool,
    /// First and last segment number of each range, ascending, never touching.
    pub ranges: Vec<(u64, u64)>,
    /// Segments that were first pushed unfinished, and the number of the copy that holds them now; ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<(u64, u32)>,
}

impl WalHead {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let head: WalHead = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let sorted = head.timelines.windows(2).all(|w| matches!(w, [a, b] if a.timeline < b.timeline));
        let apart = |r: &[(u64, u64)]| {
            r.iter().all(|(a, b)| a <= b)
                && r.windows(2).all(|w| matches!(w, [a, b] if a.1.checked_add(1).is_some_and(|n| n < b.0)))
        };
        let ascending = |c: &[(u64, u32)]| c.windows(2).all(|w| matches!(w, [a, b] if a.0 < b.0));
        if sorted && head.timelines.iter().all(|t| apart(&t.ranges) && ascending(&t.copies)) {
            Ok(head)
        } else {
            Err("its ranges are not in order".into())
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a head is plain data")
    }

    pub fn timelines(&self) -> &[TimelineSpan] {
        &self.timelines
    }

    pub fn timeline(&self, timeline: TimelineId) -> Option<&TimelineSpan> {
        self.timelines.iter().find(|t| t.timeline == timeline)
    }

    fn span(&mut self, timeline: TimelineId) -> &mut TimelineSpan {
        let at = match self.timelines.binary_search_by_key(&timeline, |t| t.timeline) {
            Ok(i) => i,
            Err(i) => {
                self.timelines.insert(i, TimelineSpan { timeline, history: false, ranges: vec![], copies: vec![] });
                i
            }
        };
        &mut self.timelines[at]
    }

    /// Returns whether anything changed. A copy never gives way to one with a lower number.
    pub fn add_segment(&mut self, name: &SegmentName, copy: u32) -> bool {
        let newer = copy > self.copy_of(name);
        let span = self.span(name.timeline);
        if newer {
            match span.copies.binary_search_by_key(&name.segment.0, |c| c.0) {
                Ok(i) => span.copies[i].1 = copy,
                Err(i) => span.copies.insert(i, (name.segment.0, copy)),
            }
        }
        span.add(name.segment.0) | newer
    }

    /// Which copy of a segment counts.
    pub fn copy_of(&self, name: &SegmentName) -> u32 {
        let span = self.timeline(name.timeline);
        let found = span.and_then(|s| s.copies.iter().find(|c| c.0 == name.segment.0));
        found.map_or(0, |c| c.1)
    }

    pub fn add_history(&mut self, timeline: TimelineId) -> bool {
        let span = self.span(timeline);
        !std::mem::replace(&mut span.history, true)
    }
}

impl TimelineSpan {
    fn add(&mut self, n: u64) -> bool {
        if self.contains(SegmentNo(n)) {
            return false;
        }
        self.ranges.push((n, n));
        self.ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for (a, b) in self.ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if last.1 + 1 == a => last.1 = b,
                _ => merged.push((a, b)),
            }
        }
        self.ranges = merged;
        true
    }

    pub fn contains(&self, segment: SegmentNo) -> bool {
        self.ranges.iter().any(|(a, b)| (*a..=*b).contains(&segment.0))
    }

    pub fn first(&self) -> Option<SegmentNo> {
        self.ranges.first().map(|r| SegmentNo(r.0))
    }

    pub fn last(&self) -> Option<SegmentNo> {
        self.ranges.last().map(|r| SegmentNo(r.1))
    }

    /// The last segment of the unbroken run that contains `from`.
    pub fn unbroken_to(&self, from: SegmentNo) -> Option<SegmentNo> {
        self.ranges.iter().find(|(a, b)| (*a..=*b).contains(&from.0)).map(|r| SegmentNo(r.1))
    }

    /// Segments missing between ranges, first and last of each hole.
    pub fn gaps(&self) -> Vec<(SegmentNo, SegmentNo)> {
        self.ranges
            .windows(2)
            .filter_map(|w| match w {
                [a, b] => Some((SegmentNo(a.1 + 1), SegmentNo(b.0 - 1))),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_say_what_a_set_would(pushes in proptest::collection::vec((1u32..3, 0u64..40), 0..80)) {
            let mut head = WalHead::default();
            let mut oracle = BTreeSet::new();
            for (t, n) in pushes {
                let timeline = TimelineId::new(t).unwrap();
                prop_assert_eq!(head.add_segment(&SegmentName { timeline, segment: SegmentNo(n) }, 0), oracle.insert((t, n)));
            }
            let head = WalHead::from_bytes(&head.to_bytes()).unwrap();
            for t in 1..3 {
                let span = head.timeline(TimelineId::new(t).unwrap());
                for n in 0..42 {
                    let there = oracle.contains(&(t, n));
                    prop_assert_eq!(span.is_some_and(|s| s.contains(SegmentNo(n))), there);
                    let end = (n..).take_while(|m| oracle.contains(&(t, *m))).last().map(SegmentNo);
                    prop_assert_eq!(span.and_then(|s| s.unbroken_to(SegmentNo(n))), end);
                }
            }
        }
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        for bad in ["[[3,2]]", "[[1,2],[3,4]]", "[[5,6],[1,2]]"] {
            let text = format!("{{\"timelines\":[{{\"timeline\":1,\"history\":false,\"ranges\":{bad}}}]}}");
            assert!(WalHead::from_bytes(text.as_bytes()).is_err(), "{bad}");
        }
    }
}
