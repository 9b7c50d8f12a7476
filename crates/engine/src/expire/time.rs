//! What time it is for an expiry, by the clocks there are.

use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore, Doubt, Reading};
use pgark_repo::names::ClusterName;

use super::{ExpirePlan, Gap, policy};
use crate::clock;
use crate::ctx::Ctx;
use crate::error::Result;

/// For a plan that is only shown: what a run would learn from the clock of the store when it writes. Where that cannot be asked,
/// the plan says so. A client that removes nothing has no run.
///
/// # Errors
/// As the run would refuse.
pub fn ask_the_store(
    plan: &mut ExpirePlan,
    cluster: &ClusterName,
    gap: Gap,
    repo: &Repository,
    ctx: &Ctx,
) -> Result<()> {
    if !repo.store().has_own_clock() || !repo.store().may_delete() || !plan.changes() {
        return Ok(());
    }
    match clock::by_probe(repo, ctx) {
        Ok(reading) => {
            let catalog = CatalogStore::new(repo, cluster).read()?;
            Time::of(&catalog, &reading, gap).map(drop)
        }
        Err(e) => {
            plan.notes.push(format!("the clock of the store was not asked, as a run does: {e}"));
            Ok(())
        }
    }
}

/// What time it is for an expiry.
pub(super) struct Time {
    pub now: Timestamp,
    pub doubt: Option<Doubt>,
    /// Nothing waits by a clock that is in doubt.
    pub certain: bool,
}

impl Time {
    /// # Errors
    /// When clocks contradict each other, or did so when the last backup was made, and nobody accepts that.
    pub fn of(catalog: &Catalog, reading: &Reading, gap: Gap) -> Result<Time> {
        let judged = catalog.judge(reading);
        if gap == Gap::Accept {
            return Ok(Time { now: reading.wall, doubt: judged.doubt, certain: true });
        }
        let on_record = catalog.clock.as_ref().and_then(|c| c.doubt);
        // That nothing confirms the time since the last backup makes no backup older: age ends with that one.
        match on_record.or(judged.doubt.filter(Doubt::is_contradiction)) {
            Some(doubt) if on_record.is_some() => Err(clock::refusal_on_record(&doubt)),
            Some(doubt) => Err(clock::refusal(&doubt)),
            None => Ok(Time { now: judged.time, doubt: judged.doubt, certain: judged.doubt.is_none() }),
        }
    }

    /// Whether the grace is over of what expired then and is due then.
    pub fn is_over(&self, hurry: Option<Duration>, since: Timestamp, due: Timestamp) -> bool {
        match hurry {
            Some(grace) => grace.is_zero() || (self.certain && since <= policy::before(self.now, grace)),
            None => due <= since || (self.certain && due <= self.now),
        }
    }

    /// What there is to accept; only when somebody does, as everything else was refused.
    pub fn accepted(&self, catalog: &Catalog) -> Option<Doubt> {
        let on_record = catalog.clock.as_ref().and_then(|c| c.doubt);
        self.certain.then(|| on_record.or(self.doubt))?
    }
}
