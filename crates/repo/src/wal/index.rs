//! The index in front of each archived segment: what one needs to know of it without reading it.

use pgark_pg::value::{Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_pg::wal::{Activity, Leading, SegmentScan, Tail};
use serde::{Deserialize, Serialize};

use crate::crypto::hex_bytes;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalIndex {
    pub system_id: SystemId,
    pub timeline: TimelineId,
    pub segment: SegmentNo,
    pub segment_size: SegmentSize,
    /// Major version of PostgreSQL by the pages' magic number.
    pub major: u32,
    /// BLAKE3 of all bytes.
    pub content: String,
    /// BLAKE3 of the bytes up to `valid_end`.
    pub valid_content: String,
    /// End of the valid WAL: of the last whole record, of the switch, or of the segment when a record crosses it.
    pub valid_end: Lsn,
    /// Start of the first record that begins here, and where it says the one before begins.
    pub first_record: Option<Lsn>,
    pub first_prev: Lsn,
    /// Start and end of the last record that begins and ends here.
    pub last_record: Option<(Lsn, Lsn)>,
    /// The rest of a record that began in an earlier segment.
    pub leading: Option<Fragment>,
    /// The record that the segment before left unfinished was given up.
    pub overwrites_crossing: bool,
    /// The beginning of a record that ends in a later segment.
    pub crossing: Option<Crossing>,
    pub ending: Ending,
    pub records: u64,
    pub transaction_ends: u64,
    /// Commit and abort times in WAL order, and their extremes; microseconds since 2000-01-01 UTC.
    pub first_time: Option<i64>,
    pub last_time: Option<i64>,
    pub min_time: Option<i64>,
    pub max_time: Option<i64>,
    pub min_xid: Option<u32>,
    pub max_xid: Option<u32>,
    pub restore_points: Vec<RestorePoint>,
    pub restore_points_overflow: bool,
    /// Time of the last checkpoint record, seconds since 1970.
    pub checkpoint_time: Option<i64>,
    pub min_wal_level: Option<i32>,
    pub full_page_writes_off: bool,
    /// Records that are intact and that we could not decode: the index may be missing what they say.
    pub undecodable: u64,
    /// A page with WAL of this segment beyond where its records end: something before it is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_after_end: Option<Lsn>,
    /// What happened when; None where nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Bytes of the changed blocks that follow the index; None when they were not kept. Set when it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Full; the next segment goes on.
    Filled,
    /// Full; a record goes on in the next segment.
    Crossing,
    /// PostgreSQL switched to the next segment.
    Switch,
    /// The valid WAL ends inside: the cluster stopped writing to this segment.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Bytes of the record that were still to come at the start of this segment.
    pub total: u32,
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
    /// The record ends here and all of what was missing is in `data`.
    pub complete: bool,
    /// Where the record ends, if it ends here.
    pub end: Option<Lsn>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossing {
    pub start: Lsn,
    pub total: u32,
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    pub lsn: Lsn,
    pub end: Lsn,
    pub time: i64,
    #[serde(with = "hex_bytes")]
    pub name: Vec<u8>,
}

impl WalIndex {
    /// `content` and `valid_content` as a `SegmentHasher` made them of the same bytes.
    pub fn new(
        scan: &SegmentScan,
        activity: Activity,
        name: SegmentName,
        content: String,
        valid_content: String,
    ) -> Self {
        let micros = |t: Option<PgTimestamp>| t.map(|t| t.0);
        let (ending, crossing) = match &scan.tail {
            Tail::Filled => (Ending::Filled, None),
            Tail::Switch => (Ending::Switch, None),
            Tail::Ended { .. } => (Ending::Ended, None),
            Tail::Crossing { start, total_len, data } => {
                (Ending::Crossing, Some(Crossing { start: *start, total: *total_len, data: data.clone() }))
            }
        };
        WalIndex {
            system_id: scan.system_id,
            timeline: name.timeline,
            segment: name.segment,
            segment_size: scan.segment_size,
            major: scan.major.number(),
            content,
            valid_content,
            valid_end: valid_end(scan, &name),
            first_record: scan.first_record,
            first_prev: scan.first_prev,
            last_record: scan.last_record,
            leading: scan.leading.as_ref().map(|l| Fragment {
                total: l.total_remaining,
                data: l.data.clone(),
                complete: l.complete,
                end: l.end,
            }),
            overwrites_crossing: scan.overwrites_crossing,
            crossing,
            ending,
            records: scan.records,
            transaction_ends: scan.transaction_ends,
            first_time: micros(scan.first_time),
            last_time: micros(scan.last_time),
            min_time: micros(scan.min_time),
            max_time: micros(scan.max_time),
            min_xid: scan.min_xid,
            max_xid: scan.max_xid,
            restore_points: scan
                .restore_points
                .iter()
                .map(|(lsn, end, time, name)| RestorePoint { lsn: *lsn, end: *end, time: time.0, name: name.clone() })
                .collect(),
            restore_points_overflow: scan.restore_points_overflow,
            checkpoint_time: scan.checkpoints_last_time,
            min_wal_level: scan.min_wal_level,
            full_page_writes_off: scan.full_page_writes_off,
            undecodable: scan.undecodable,
            wal_after_end: scan.wal_after_end,
            activity: Some(activity),
            changes_bytes: None,
        }
    }

    pub fn segment_name(&self) -> SegmentName {
        SegmentName { timeline: self.timeline, segment: self.segment }
    }

    pub fn start(&self) -> Lsn {
        self.segment.start(self.segment_size)
    }

    pub fn end(&self) -> Lsn {
        self.segment.end(self.segment_size)
    }

    /// Bytes from the start of the segment to the end of its valid WAL.
    pub fn valid_bytes(&self) -> u64 {
        self.valid_end.0.saturating_sub(self.start().0)
    }

    /// Where the last record begins: what the first one after this segment names as the record before it. A
    /// record that was given up after a crash is passed over, so there are two possibilities.
    pub fn last_starts(&self) -> [Option<Lsn>; 2] {
        [self.crossing.as_ref().map(|c| c.start), self.last_record.map(|r| r.0)]
    }

    /// The parts that the WAL reader needs to put together a record across two segments.
    pub fn tail_and_leading(&self) -> (Option<Tail>, Option<Leading>) {
        let tail =
            self.crossing.as_ref().map(|c| Tail::Crossing { start: c.start, total_len: c.total, data: c.data.clone() });
        let leading = self.leading.as_ref().map(|l| Leading {
            total_remaining: l.total,
            data: l.data.clone(),
            complete: l.complete,
            end: l.end,
        });
        (tail, leading)
    }

    /// What of it the writer of the cluster may know later on: identity, hashes, ends and times, and nothing of what the
    /// records say.
    pub fn facts(&self) -> WalIndex {
        WalIndex {
            leading: self.leading.clone().map(|l| Fragment { data: vec![], complete: false, ..l }),
            crossing: self.crossing.clone().map(|c| Crossing { data: vec![], ..c }),
            min_xid: None,
            max_xid: None,
            restore_points: vec![],
            restore_points_overflow: self.restore_points_overflow || !self.restore_points.is_empty(),
            activity: None,
            changes_bytes: None,
            ..self.clone()
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an index is plain data")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let index: WalIndex = serde_json::from_slice(bytes).map_err(|e| format!("its index does not parse: {e}"))?;
        let inside = |l: Lsn| (index.start()..=index.end()).contains(&l);
        let fine = inside(index.valid_end)
            && index.first_record.is_none_or(inside)
            && index.last_record.is_none_or(|(a, b)| inside(a) && inside(b) && a < b)
            && index.crossing.as_ref().is_none_or(|c| inside(c.start));
        if fine { Ok(index) } else { Err("its index contradicts itself".into()) }
    }
}

/// A record that crosses the end makes every byte of the segment count.
fn valid_end(scan: &SegmentScan, name: &SegmentName) -> Lsn {
    match scan.tail {
        Tail::Crossing { .. } | Tail::Filled => name.segment.end(scan.segment_size),
        Tail::Switch | Tail::Ended { .. } => scan.end,
    }
}

/// Hashes a segment as a whole and up to the end of its valid WAL.
pub struct SegmentHasher {
    all: blake3::Hasher,
    /// As it was where the valid WAL ended.
    valid: Option<blake3::Hasher>,
    valid_bytes: u64,
    read: u64,
}

impl SegmentHasher {
    pub fn new(valid_bytes: u64) -> Self {
        SegmentHasher { all: blake3::Hasher::new(), valid: None, valid_bytes, read: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let left = self.valid_bytes.saturating_sub(self.read);
        self.read += bytes.len() as u64;
        match usize::try_from(left).ok().and_then(|left| bytes.split_at_checked(left)) {
            Some((before, after)) if self.valid.is_none() => {
                self.all.update(before);
                self.valid = Some(self.all.clone());
                self.all.update(after);
            }
            _ => drop(self.all.update(bytes)),
        }
    }

    /// Bytes seen, hash of all of them, hash of the valid ones.
    pub fn finish(self) -> (u64, String, String) {
        let text = |h: &blake3::Hasher| h.finalize().to_hex().to_string();
        let all = text(&self.all);
        let valid = self.valid.as_ref().map_or_else(|| all.clone(), text);
        (self.read, all, valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_hashes_are_those_of_their_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..3000), valid in 0usize..3500, step in 1usize..900) {
            let mut hasher = SegmentHasher::new(valid as u64);
            bytes.chunks(step).for_each(|part| hasher.update(part));
            let text = |part: &[u8]| blake3::hash(part).to_hex().to_string();
            let expected = (bytes.len() as u64, text(&bytes), text(&bytes[..valid.min(bytes.len())]));
            prop_assert_eq!(hasher.finish(), expected);
        }
    }
}
