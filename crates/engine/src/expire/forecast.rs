//! When each backup will go: the rules are asked again and again, as if backups were taken on as they were so far.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pgark_pg::value::SystemId;
use pgark_repo::catalog::Evidence;
use pgark_repo::names::BackupId;

use super::policy::{Branch, Candidate, Policy, Reason, Verdicts, decide};

const DAY: i64 = 86_400;
/// Intervals between the newest backups that the usual one is taken from.
const INTERVALS: usize = 10;
/// So many backups are foreseen at the usual interval, and after that one per day, for about ten years.
const STEPS_NEAR: usize = 400;
const STEPS_FAR: usize = 3700;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    Now,
    /// If backups go on as they were taken so far.
    About(Timestamp),
    /// As far as was looked ahead, it stays.
    NotBefore(Timestamp),
    /// Somebody has to do something first: lift a hold, delete it, prove a newer one.
    NotByItself,
}

pub fn forecast(
    candidates: &[Candidate],
    branches: &[Branch],
    current: SystemId,
    policy: &Policy,
    now: &Verdicts,
) -> BTreeMap<BackupId, Goes> {
    let mut goes: BTreeMap<BackupId, Goes> =
        now.all.iter().map(|v| (v.id.clone(), if v.stays() { Goes::NotByItself } else { Goes::Now })).collect();
    let waits_for_somebody = |r: &Reason| matches!(r, Reason::Kept | Reason::Hold(_) | Reason::Unseen(_));
    let mut open: BTreeSet<BackupId> = now
        .all
        .iter()
        .filter(|v| v.stays() && !v.reasons.iter().any(waits_for_somebody))
        .map(|v| v.id.clone())
        .collect();
    let mut world = World::new(candidates, branches, current, now);
    let usual = usual_interval(candidates);
    for step in 0..STEPS_NEAR + STEPS_FAR {
        if open.is_empty() {
            break;
        }
        let interval = if step < STEPS_NEAR { usual } else { usual.max(DAY) };
        if !world.take_backup(interval) {
            break;
        }
        let Ok(verdicts) = decide(&world.candidates, &world.branches, current, policy, world.time) else { break };
        let gone: BTreeSet<&BackupId> = verdicts.all.iter().filter(|v| !v.stays()).map(|v| &v.id).collect();
        for id in open.clone().iter().filter(|id| gone.contains(id)) {
            open.remove(id);
            goes.insert(id.clone(), Goes::About(world.time));
        }
        world.candidates.retain(|c| !gone.contains(&c.id));
    }
    // A proof of an older one stays the last one until somebody proves a newer one.
    let proof = |v: &&super::policy::Verdict| v.reasons.iter().any(|r| matches!(r, Reason::Proven(_)));
    let proven: BTreeSet<&BackupId> = now.all.iter().filter(proof).map(|v| &v.id).collect();
    for id in open.iter().filter(|id| !proven.contains(id)) {
        goes.insert(id.clone(), Goes::NotBefore(world.time));
    }
    goes
}

/// The median of the newest intervals between good backups, seconds.
fn usual_interval(candidates: &[Candidate]) -> i64 {
    let times: Vec<i64> = candidates.iter().filter(|c| c.good).map(|c| c.at.as_second()).collect();
    let mut between: Vec<i64> = times
        .windows(2)
        .rev()
        .take(INTERVALS)
        .filter_map(|w| Some(w.get(1)? - w.first()?))
        .filter(|d| *d > 0)
        .collect();
    between.sort_unstable();
    between.get(between.len() / 2).copied().unwrap_or(DAY)
}

struct World {
    candidates: Vec<Candidate>,
    branches: Vec<Branch>,
    current: SystemId,
    time: Timestamp,
}

impl World {
    fn new(candidates: &[Candidate], branches: &[Branch], current: SystemId, now: &Verdicts) -> Self {
        let stays: BTreeSet<&BackupId> = now.all.iter().filter(|v| v.stays()).map(|v| &v.id).collect();
        // What is in use now is not so for ever.
        let free = |c: &Candidate| Candidate { in_use: None, ..c.clone() };
        let candidates: Vec<Candidate> = candidates.iter().filter(|c| stays.contains(&c.id)).map(free).collect();
        let mut branches = branches.to_vec();
        let newest = candidates.iter().rfind(|c| c.good && c.system_id == current).map(|c| c.id.clone());
        // Where it goes on: on every timeline that has the newest one, as nobody can know.
        let goes_on = |b: &Branch| newest.as_ref().is_some_and(|id| b.backups.contains(id));
        if !branches.iter().any(goes_on) {
            branches.push(Branch { last_time: None, backups: newest.clone().into_iter().collect() });
        }
        World { candidates, branches, current, time: now.at }
    }

    /// False when time is up.
    fn take_backup(&mut self, interval: i64) -> bool {
        let Ok(time) = Timestamp::from_second(self.time.as_second().saturating_add(interval)) else { return false };
        self.time = time;
        let id = BackupId::new(time, 'S');
        let newest = self.candidates.iter().rfind(|c| c.good && c.system_id == self.current).map(|c| c.id.clone());
        for b in &mut self.branches {
            if newest.as_ref().is_none_or(|n| b.backups.contains(n)) {
                b.backups.push(id.clone());
                b.last_time = b.last_time.map(|t| t.max(time));
            }
        }
        self.candidates.push(Candidate {
            id,
            system_id: self.current,
            at: time,
            evidence: Evidence::Stored,
            good: true,
            kept: false,
            kept_until: None,
            holds: vec![],
            in_use: None,
            unseen: None,
        });
        true
    }
}
