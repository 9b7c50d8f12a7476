//! Which timeline is meant, when the archive has more than the one that the replaced server was on.

use std::path::Path;

use jiff::Timestamp;
use pgark_engine::archive::salvage::Leftovers;
use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::branch::{Parted, Position, position};
use pgark_engine::restore::reach::reach;
use pgark_engine::restore::{RestorePlan, TimelineChoice};

use super::{Physical, fact};
use crate::recover::machine::At;
use crate::recover::steps::SALVAGE;

/// What the replaced server had, and the plan leaves out.
pub struct LeftOut {
    pub why: String,
    /// Until then nothing of it is left out; None: nobody knows.
    pub point: Option<Timestamp>,
}

/// Where the server that is replaced was stopped, by its control file and the WAL that it had not archived yet.
pub fn stopped_at(data: &Path, left: &Leftovers) -> Result<Position> {
    let found = position(data)?;
    Ok(Position { timeline: left.newest_timeline().unwrap_or(0).max(found.timeline), ..found })
}

/// Before anything is touched: whoever asks has to say which one is meant.
pub fn before(physical: &Physical, plan: &RestorePlan) -> Result<()> {
    // One that cannot be read has nothing to say.
    let Some(Ok(server)) = physical.old_data.as_deref().map(position) else { return Ok(()) };
    // A younger one is brought into the archive before the backup is chosen.
    if server.timeline > plan.path.target().get() {
        return Ok(());
    }
    match plan.parted(&server, &physical.options.cluster, &physical.sources) {
        Ok(Some(parted)) if physical.options.timeline == TimelineChoice::Latest => {
            Err(ambiguous(plan, &parted, "; nothing was changed"))
        }
        Err(e) if e.code() != NO_HISTORY => Err(e),
        _ => Ok(()),
    }
}

const NO_HISTORY: &str = "E-HISTORY-MISSING";

fn ambiguous(plan: &RestorePlan, parted: &Parted, then: &str) -> EngineError {
    let (own, newest) = (parted.timeline, plan.path.target());
    EngineError::refused(
        "E-TARGET-AMBIGUOUS",
        format!(
            "the server that is replaced is on timeline {own} and has written up to {}; timeline {newest}, the newest in the archive, has nothing of that behind {}",
            parted.written, parted.at
        ),
        format!(
            "say which one is meant: --target-timeline {own} for what that server had, or --target-timeline {newest}{then}"
        ),
    )
}

/// Once its WAL is archived.
///
/// # Errors
/// When nobody said which timeline is meant, and that server's is an older one.
pub fn left_out(physical: &Physical, plan: &RestorePlan, at: &At<'_>) -> Result<Option<LeftOut>> {
    let server = fact(at, SALVAGE, "server").and_then(|v| serde_json::from_value::<Position>(v.clone()).ok());
    let Some(server) = server else { return Ok(None) };
    let (cluster, sources) = (&physical.options.cluster, &physical.sources);
    let parted = match plan.parted(&server, cluster, sources) {
        Ok(None) => return Ok(None),
        Ok(Some(parted)) => parted,
        Err(e) if e.code() == NO_HISTORY => {
            let why = format!(
                "what the replaced server wrote on timeline {} is NOT restored: nothing of that timeline is archived",
                server.timeline
            );
            return Ok(Some(LeftOut { why, point: None }));
        }
        Err(e) => return Err(e),
    };
    if physical.options.timeline == TimelineChoice::Latest && parted.timeline < plan.path.target() {
        return Err(ambiguous(plan, &parted, ""));
    }
    let why = format!(
        "what the replaced server wrote on timeline {} behind {} is NOT restored: it had written up to {}, and timeline {} does not have that",
        parted.timeline,
        parted.at,
        parted.written,
        plan.path.target()
    );
    let reached = reach(plan, cluster, sources)?;
    let point = plan.moment_before(parted.at, cluster, sources)?.map(|point| point.min(reached));
    Ok(Some(LeftOut { why, point }))
}
