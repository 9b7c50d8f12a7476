//! How far back what a plan restores lies: all that was committed until then is in it.

use jiff::Timestamp;
use pgark_pg::value::PgTimestamp;
use pgark_repo::names::ClusterName;

use super::resolve::{StopHow, to_timestamp};
use super::{RestorePlan, Target};
use crate::archive::Archives;
use crate::error::Result;
use crate::sources::Sources;

/// By commits and checkpoints in the WAL. On a server on which nothing happened this is long ago, and nothing is lost.
pub fn reach(plan: &RestorePlan, cluster: &ClusterName, sources: &Sources) -> Result<Timestamp> {
    let backup = plan.backup.stopped;
    match (&plan.target, plan.stop.how) {
        (_, StopHow::Consistent) => return Ok(backup),
        (Target::Time { at, .. }, _) => return Ok(backup.max(*at)),
        _ => {}
    }
    if let Some(time) = plan.stop.time {
        return Ok(backup.max(time));
    }
    let wal = Archives::new(sources, cluster, plan.record.system_id);
    for name in plan.path.segments(plan.backup.lsn_start, plan.stop.end).iter().rev() {
        let index = wal.index(name, plan.record.segment_size)?;
        // Of one that is replayed in part, times may be of what is not.
        if index.last_record.is_some_and(|(_, end)| end > plan.stop.end) {
            continue;
        }
        let commit = index.max_time.map(|t| to_timestamp(PgTimestamp(t)));
        let checkpoint = index.checkpoint_time.and_then(|s| Timestamp::from_second(s).ok());
        if let Some(time) = commit.max(checkpoint) {
            return Ok(backup.max(time));
        }
    }
    Ok(backup)
}
