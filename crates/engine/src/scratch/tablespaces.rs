//! Tablespaces that recovery itself would make, where the original made them: on the machine of the original that is its own directory,
//! and replay begins with emptying it.

use pgark_pg::value::{Lsn, SegmentNo};
use pgark_repo::names::ClusterName;

use crate::archive::Archives;
use crate::error::{EngineError, Result};
use crate::restore::RestorePlan;
use crate::restore::walk::WalView;
use crate::sources::Sources;

/// Where the WAL of this plan makes the first one, if it does. Reads all of that WAL.
pub fn made_by_replay(plan: &RestorePlan, cluster: &ClusterName, sources: &Sources) -> Result<Option<String>> {
    let wal = Archives::new(sources, cluster, plan.backup.system_id);
    let head = wal.head()?;
    let mut view = WalView::new(&wal, plan.path.clone(), &head);
    let last = SegmentNo::containing(Lsn(plan.stop.read_to.0.saturating_sub(1)), plan.record.segment_size);
    let mut place = None;
    view.find(plan.backup.lsn_start, last, &|_| true, &mut |seen| {
        match &seen.tablespace {
            Some(path) if !path.is_empty() && seen.start < plan.stop.end => {
                place = Some(String::from_utf8_lossy(path).escape_debug().to_string());
            }
            _ => {}
        }
        place.is_some()
    })?;
    Ok(place)
}

/// For who would have to replay it.
pub fn refuse_made_by_replay(plan: &RestorePlan, cluster: &ClusterName, sources: &Sources) -> Result<()> {
    let Some(place) = made_by_replay(plan, cluster, sources)? else { return Ok(()) };
    Err(EngineError::refused(
        "E-SCRATCH-TABLESPACE",
        format!(
            "a tablespace was made in {place} after backup {} began: recovery would work in that directory",
            plan.backup.id
        ),
        "choose a target before that, or a later backup",
    ))
}
