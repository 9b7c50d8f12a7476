//! What the archive holds, as ranges of segments per timeline. A range that ends and another that begins
//! later on the same timeline is a gap, on record.

use pgark_pg::value::{SegmentName, SegmentNo, TimelineId};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalHead {
    timelines: Vec<TimelineSpan>,
    /// Number of the last decision of the catalog to expire WAL that is part of this. A decision that comes late, from a
    /// process that slept, is not applied twice.
    #[serde(default, skip_serializing_if = "is_zero")]
    expiry: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
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
    /// Archived once and given up by retention: neither gaps nor damage. As `ranges`, and apart from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expired: Vec<(u64, u64)>,
    /// Segments that were archived again after they had expired, and the first copy made since: those with lower numbers
    /// are gone, or going. Ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renewed: Vec<(u64, u32)>,
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
        let in_order =
            |t: &TimelineSpan| apart(&t.ranges) && apart(&t.expired) && ascending(&t.copies) && ascending(&t.renewed);
        if !sorted || !head.timelines.iter().all(in_order) {
            return Err("its ranges are not in order".into());
        }
        if head.timelines.iter().any(|t| intersect(&t.ranges, &t.expired).next().is_some()) {
            return Err("a segment is both archived and expired".into());
        }
        Ok(head)
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
                self.timelines.insert(i, TimelineSpan::new(timeline));
                i
            }
        };
        &mut self.timelines[at]
    }

    /// Returns whether anything changed. A copy never gives way to one with a lower number, and a segment that has
    /// expired stays so but for a copy that was made since.
    pub fn add_segment(&mut self, name: &SegmentName, copy: u32) -> bool {
        let newer = copy > self.copy_of(name);
        let span = self.span(name.timeline);
        if span.is_expired(name.segment) {
            if !newer {
                return false;
            }
            span.expired = subtract(&span.expired, &[(name.segment.0, name.segment.0)]);
            match span.renewed.binary_search_by_key(&name.segment.0, |c| c.0) {
                Ok(i) => span.renewed[i].1 = copy,
                Err(i) => span.renewed.insert(i, (name.segment.0, copy)),
            }
        }
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

    /// The number of the copy by which a segment is to be stored: names of copies that have expired are not used again.
    pub fn next_copy(&self, name: &SegmentName) -> u32 {
        let expired = self.timeline(name.timeline).is_some_and(|t| t.is_expired(name.segment));
        if expired { self.copy_of(name).saturating_add(1) } else { 0 }
    }

    /// The first copy of a segment that has not expired.
    pub fn first_copy(&self, name: &SegmentName) -> u32 {
        let span = self.timeline(name.timeline);
        let found = span.and_then(|s| s.renewed.iter().find(|c| c.0 == name.segment.0));
        found.map_or(0, |c| c.1)
    }

    /// Copies of a segment with lower numbers than this have expired.
    pub fn expired_below(&self, name: &SegmentName) -> u32 {
        self.next_copy(name).max(self.first_copy(name))
    }

    /// The last decision to expire WAL that is part of this.
    pub fn expiry(&self) -> u64 {
        self.expiry
    }

    /// Applies a decision, once. Returns whether it is new. What was not archived by then is not concerned.
    pub fn expire(&mut self, number: u64, ranges: &[SegmentRange]) -> bool {
        if number <= self.expiry {
            return false;
        }
        self.expiry = number;
        for r in ranges {
            let span = self.span(r.timeline);
            let going: Vec<(u64, u64)> = intersect(&span.ranges, &[(r.first.0, r.last.0)]).collect();
            span.ranges = subtract(&span.ranges, &going);
            span.expired.extend(going);
            span.expired = merged(std::mem::take(&mut span.expired));
        }
        true
    }

    /// Takes back what had expired and was not removed, once. Names and copies are what they were.
    pub fn revive(&mut self, number: u64, ranges: &[SegmentRange]) -> bool {
        if number <= self.expiry {
            return false;
        }
        self.expiry = number;
        for r in ranges {
            let span = self.span(r.timeline);
            let coming: Vec<(u64, u64)> = intersect(&span.expired, &[(r.first.0, r.last.0)]).collect();
            span.expired = subtract(&span.expired, &coming);
            span.ranges.extend(coming);
            span.ranges = merged(std::mem::take(&mut span.ranges));
        }
        true
    }

    /// What of these was expired, for a view of the head that is made anew.
    pub(super) fn copy_expired(&mut self, from: &TimelineSpan) {
        let span = self.span(from.timeline);
        (span.expired, span.renewed) = (from.expired.clone(), from.renewed.clone());
    }

    /// What any of several archives of one cluster has. Which copy of a segment counts is each one's own affair.
    pub fn joined<'a>(heads: impl IntoIterator<Item = &'a WalHead>) -> WalHead {
        let mut all = WalHead::default();
        for span in heads.into_iter().flat_map(|h| &h.timelines) {
            let own = all.span(span.timeline);
            own.history |= span.history;
            own.ranges.extend(&span.ranges);
            own.expired.extend(&span.expired);
        }
        for span in &mut all.timelines {
            span.ranges = merged(std::mem::take(&mut span.ranges));
            span.expired = subtract(&merged(std::mem::take(&mut span.expired)), &span.ranges);
        }
        all
    }

    pub fn add_history(&mut self, timeline: TimelineId) -> bool {
        let span = self.span(timeline);
        !std::mem::replace(&mut span.history, true)
    }
}

/// A stretch of segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRange {
    pub timeline: TimelineId,
    pub first: SegmentNo,
    pub last: SegmentNo,
}

impl SegmentRange {
    pub fn count(&self) -> u64 {
        (self.last.0 - self.first.0).saturating_add(1)
    }

    pub fn contains(&self, name: &SegmentName) -> bool {
        name.timeline == self.timeline && (self.first..=self.last).contains(&name.segment)
    }
}

/// Ranges in ascending order that neither overlap nor touch, from any.
pub fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (a, b) in ranges {
        match out.last_mut() {
            Some(last) if last.1.saturating_add(1) >= a => last.1 = last.1.max(b),
            _ => out.push((a, b)),
        }
    }
    out
}

/// What both have in common. Both in order.
pub fn intersect<'a>(a: &'a [(u64, u64)], b: &'a [(u64, u64)]) -> impl Iterator<Item = (u64, u64)> + 'a {
    let (mut i, mut k) = (0, 0);
    std::iter::from_fn(move || {
        loop {
            let (x, y) = (a.get(i)?, b.get(k)?);
            let common = (x.0.max(y.0), x.1.min(y.1));
            if x.1 <= y.1 {
                i += 1;
            } else {
                k += 1;
            }
            if common.0 <= common.1 {
                return Some(common);
            }
        }
    })
}

/// `a` without `b`. Both in order.
pub fn subtract(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = vec![];
    for &(first, last) in a {
        let mut from = Some(first);
        for (x, y) in intersect(&[(first, last)], b) {
            if let Some(f) = from.filter(|f| *f < x) {
                out.push((f, x - 1));
            }
            from = y.checked_add(1);
        }
        if let Some(f) = from.filter(|f| *f <= last) {
            out.push((f, last));
        }
    }
    out
}

impl TimelineSpan {
    fn new(timeline: TimelineId) -> Self {
        let (ranges, copies, expired, renewed) = Default::default();
        TimelineSpan { timeline, history: false, ranges, copies, expired, renewed }
    }

    fn add(&mut self, n: u64) -> bool {
        if self.contains(SegmentNo(n)) {
            return false;
        }
        self.ranges.push((n, n));
        self.ranges = merged(std::mem::take(&mut self.ranges));
        true
    }

    pub fn is_expired(&self, segment: SegmentNo) -> bool {
        self.expired.iter().any(|(a, b)| (*a..=*b).contains(&segment.0))
    }

    /// The last segment that was ever archived.
    pub fn end(&self) -> Option<SegmentNo> {
        self.last().max(self.expired.last().map(|r| SegmentNo(r.1)))
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

    /// Segments between ranges that were never archived, first and last of each stretch.
    pub fn gaps(&self) -> Vec<(SegmentNo, SegmentNo)> {
        let holes: Vec<(u64, u64)> = self
            .ranges
            .windows(2)
            .filter_map(|w| match w {
                [a, b] => Some((a.1 + 1, b.0 - 1)),
                _ => None,
            })
            .collect();
        subtract(&holes, &self.expired).into_iter().map(|(a, b)| (SegmentNo(a), SegmentNo(b))).collect()
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

    proptest! {
        #[test]
        fn heads_together_say_what_any_of_them_says(
            heads in proptest::collection::vec(
                (proptest::collection::vec((1u32..3, 0u64..20), 0..30), proptest::option::of((0u64..20, 0u64..6))),
                1..4,
            )
        ) {
            let timeline = |t| TimelineId::new(t).unwrap();
            let heads: Vec<WalHead> = heads.into_iter().map(|(pushes, expiry)| {
                let mut head = WalHead::default();
                for (t, n) in pushes {
                    head.add_segment(&SegmentName { timeline: timeline(t), segment: SegmentNo(n) }, 0);
                }
                if let Some((first, more)) = expiry {
                    let (first, last) = (SegmentNo(first), SegmentNo(first + more));
                    head.expire(1, &[SegmentRange { timeline: timeline(1), first, last }]);
                }
                head
            }).collect();
            let all = WalHead::from_bytes(&WalHead::joined(&heads).to_bytes()).unwrap();
            for t in 1..3 {
                for n in 0..30 {
                    let has = |h: &WalHead| h.timeline(timeline(t)).is_some_and(|s| s.contains(SegmentNo(n)));
                    let gone = |h: &WalHead| h.timeline(timeline(t)).is_some_and(|s| s.is_expired(SegmentNo(n)));
                    prop_assert_eq!(has(&all), heads.iter().any(has));
                    prop_assert_eq!(gone(&all), heads.iter().any(gone) && !heads.iter().any(has));
                }
            }
        }
    }

    proptest! {
        /// Pushes and expiries in any order, with a map of each segment's state beside.
        #[test]
        fn what_expires_is_neither_archived_nor_a_gap(
            steps in proptest::collection::vec((0..3u8, 0u64..24, 0u64..8), 0..60),
        ) {
            let timeline = TimelineId::new(1).unwrap();
            let mut head = WalHead::default();
            let mut live = BTreeSet::new();
            let mut gone = BTreeSet::new();
            for (number, (what, n, len)) in (1u64..).zip(steps) {
                let range = SegmentRange { timeline, first: SegmentNo(n), last: SegmentNo(n + len) };
                if what == 0 {
                    let name = SegmentName { timeline, segment: SegmentNo(n) };
                    let copy = head.next_copy(&name);
                    if gone.contains(&n) {
                        prop_assert!(!head.add_segment(&name, copy - 1), "a name that has expired came back");
                        prop_assert!(copy > 0);
                    }
                    head.add_segment(&name, copy);
                    prop_assert_eq!(head.expired_below(&name) > 0, head.first_copy(&name) > 0);
                    live.insert(n);
                    gone.remove(&n);
                } else if what == 1 {
                    let copies: Vec<u32> =
                        (n..=n + len).map(|s| head.copy_of(&SegmentName { timeline, segment: SegmentNo(s) })).collect();
                    prop_assert!(head.revive(number, &[range]));
                    prop_assert!(!head.expire(number, &[range]), "a late expiry takes it away again");
                    let (coming, staying): (BTreeSet<u64>, BTreeSet<u64>) =
                        gone.into_iter().partition(|s| (n..=n + len).contains(s));
                    gone = staying;
                    live.extend(coming);
                    for (s, copy) in (n..=n + len).zip(copies) {
                        prop_assert_eq!(head.copy_of(&SegmentName { timeline, segment: SegmentNo(s) }), copy);
                    }
                } else {
                    prop_assert!(head.expire(number, &[range]));
                    prop_assert!(!head.expire(number, &[range]), "applied twice");
                    let (going, staying): (BTreeSet<u64>, BTreeSet<u64>) =
                        live.into_iter().partition(|s| (n..=n + len).contains(s));
                    live = staying;
                    gone.extend(going);
                }
                head = WalHead::from_bytes(&head.to_bytes()).unwrap();
            }
            let Some(span) = head.timeline(timeline) else { return Ok(()) };
            let gaps = span.gaps();
            for n in 0..40 {
                let s = SegmentNo(n);
                prop_assert_eq!(span.contains(s), live.contains(&n));
                prop_assert_eq!(span.is_expired(s), gone.contains(&n));
                let between = live.first().is_some_and(|f| *f < n) && live.last().is_some_and(|l| n < *l);
                let gap = between && !live.contains(&n) && !gone.contains(&n);
                prop_assert_eq!(gaps.iter().any(|(a, b)| (*a..=*b).contains(&s)), gap, "{}", n);
            }
            prop_assert_eq!(span.end().map(|e| e.0), live.iter().chain(&gone).max().copied());
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
