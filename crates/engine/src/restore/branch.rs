//! Whether a server has written what the path of a plan leaves out: by its files and by what of it is archived.

use std::path::Path;

use jiff::Timestamp;
use pgark_pg::control::ControlFile;
use pgark_pg::value::{Lsn, PgTimestamp, SegmentNo, SystemId, TimelineId};
use pgark_repo::names::ClusterName;
use serde::{Deserialize, Serialize};

use super::resolve::to_timestamp;
use super::{RestorePlan, Target};
use crate::archive::{Archives, WalPath};
use crate::error::{EngineError, Result};
use crate::sources::Sources;

/// Where a server stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub system_id: u64,
    pub timeline: u32,
    /// It has written at least up to here.
    pub written: u64,
}

/// By the control file. Of one that runs or was killed, more may be in its WAL.
pub fn position(data: &Path) -> Result<Position> {
    let path = data.join("global/pg_control");
    let bytes = std::fs::read(&path).map_err(|e| EngineError::file("reading", &path, e))?;
    let control = ControlFile::parse(&bytes).map_err(|e| {
        EngineError::failed("E-PG-CONTROL", format!("{}: {e}", path.display()), "look at this directory")
    })?;
    Ok(Position {
        system_id: control.system_id.0,
        timeline: control.checkpoint_timeline.get(),
        written: control.checkpoint.0,
    })
}

/// A server whose own WAL a plan leaves out from some point on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parted {
    pub timeline: TimelineId,
    /// Up to here the plan restores what the server had.
    pub at: Lsn,
    /// The server has written at least up to here.
    pub written: Lsn,
}

impl RestorePlan {
    /// None: what it had written is on the path of the plan.
    ///
    /// # Errors
    /// Also when the history of its timeline is not archived: `E-HISTORY-MISSING`.
    pub fn parted(&self, server: &Position, cluster: &ClusterName, sources: &Sources) -> Result<Option<Parted>> {
        let Some(timeline) = TimelineId::new(server.timeline) else { return Ok(None) };
        if SystemId(server.system_id) != self.record.system_id || timeline == self.path.target() {
            return Ok(None);
        }
        let wal = Archives::new(sources, cluster, self.record.system_id);
        let own = WalPath::new(&wal.history(timeline)?, self.path.size());
        let Some(at) = common(&own, &self.path) else { return Ok(None) };
        // What was asked for may lie before they part.
        if self.stop.end <= at && self.target != Target::Latest {
            return Ok(None);
        }
        let written = Lsn(server.written).max(archived(&wal, timeline, &own)?);
        Ok((at < written).then_some(Parted { timeline, at, written }))
    }

    /// The last moment before `lsn` that its WAL tells of.
    pub fn moment_before(&self, lsn: Lsn, cluster: &ClusterName, sources: &Sources) -> Result<Option<Timestamp>> {
        let wal = Archives::new(sources, cluster, self.record.system_id);
        let head = wal.head()?;
        let size = self.path.size();
        // The one of `lsn` itself may tell of what came after it.
        for n in (0..SegmentNo::containing(lsn, size).0).rev() {
            let name = self.path.name(SegmentNo(n));
            if !head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)) {
                return Ok(None);
            }
            let index = wal.index(&name, size)?;
            let commit = index.max_time.map(|t| to_timestamp(PgTimestamp(t)));
            let checkpoint = index.checkpoint_time.and_then(|s| Timestamp::from_second(s).ok());
            if let Some(time) = commit.max(checkpoint) {
                return Ok(Some(time));
            }
        }
        Ok(None)
    }
}

/// Up to where both are the same; None: to the end of both.
fn common(a: &WalPath, b: &WalPath) -> Option<Lsn> {
    for (one, other) in a.ranges().iter().zip(b.ranges()) {
        if one.timeline != other.timeline {
            return Some(one.begin.min(other.begin));
        }
        match (one.end, other.end) {
            (one, other) if one == other => {}
            (Some(one), Some(other)) => return Some(one.min(other)),
            (one, other) => return one.or(other),
        }
    }
    None
}

/// How far the archive knows what was written on the timeline.
fn archived(wal: &Archives, timeline: TimelineId, own: &WalPath) -> Result<Lsn> {
    let head = wal.head()?;
    let Some(last) = head.timeline(timeline).and_then(|t| t.last()) else { return Ok(Lsn(0)) };
    let name = pgark_pg::value::SegmentName { timeline, segment: last };
    let index = wal.index(&name, own.size())?;
    Ok(index.last_record.map_or(index.start(), |(_, end)| end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_pg::history::TimelineHistory;
    use pgark_pg::value::SegmentSize;

    #[test]
    fn two_histories_part_where_the_first_of_them_left_the_common_timeline() {
        let path = |timeline: u32, text: &str| {
            let timeline = TimelineId::new(timeline).expect("a timeline");
            let history = TimelineHistory::parse(timeline, text.as_bytes()).expect("a history");
            WalPath::new(&history, SegmentSize::DEFAULT)
        };
        let root = WalPath::new(&TimelineHistory::root(TimelineId::new(1).expect("one")), SegmentSize::DEFAULT);
        let (two, three) = (path(2, "1\t0/3000000\tx\n"), path(3, "1\t0/2000000\tx\n"));
        let four = path(4, "1\t0/3000000\tx\n2\t0/5000000\tx\n");
        assert_eq!(common(&root, &root), None);
        assert_eq!(common(&root, &two), Some(Lsn(0x300_0000)));
        assert_eq!(common(&two, &three), Some(Lsn(0x200_0000)));
        assert_eq!(common(&four, &two), Some(Lsn(0x500_0000)));
        assert_eq!(common(&two, &four), Some(Lsn(0x500_0000)));
    }
}
