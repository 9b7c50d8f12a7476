//! Each kind of backup is judged by itself: a dump of today is no reason for a physical backup to go, nor the other way round.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use pgark_pg::value::SystemId;
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::BackupId;

use super::ExpireOptions;
use super::forecast::{self, Goes};
use super::policy::{self, Branch, Candidate, FromTheFuture, Policy, Verdict, Verdicts};

/// As `policy::decide`; verdicts are in the order of the candidates. How late it is for the rules is told of physical
/// backups, because WAL goes by it, and of the others where there are none.
pub fn decide(
    candidates: &[Candidate],
    branches: &[Branch],
    current: SystemId,
    options: &ExpireOptions,
    now: Timestamp,
) -> Result<Verdicts, FromTheFuture> {
    let mut found: HashMap<BackupId, Verdict> = HashMap::new();
    let mut at = Timestamp::MIN;
    for (kind, of_kind, policy) in by_kind(candidates, options) {
        let verdicts = policy::decide(&of_kind, branches_of(kind, branches), current, &policy, now)?;
        if kind == BackupKind::Physical || at == Timestamp::MIN {
            at = verdicts.at;
        }
        found.extend(verdicts.all.into_iter().map(|v| (v.id.clone(), v)));
    }
    let all = candidates.iter().filter_map(|c| found.remove(&c.id)).collect();
    Ok(Verdicts { at, all })
}

/// As `forecast::forecast`.
pub fn forecast(
    candidates: &[Candidate],
    branches: &[Branch],
    current: SystemId,
    options: &ExpireOptions,
    now: &Verdicts,
) -> BTreeMap<BackupId, Goes> {
    let of = |(kind, of_kind, policy): (BackupKind, Vec<Candidate>, Policy)| {
        let all = now.all.iter().filter(|v| v.id.kind() == kind).cloned().collect();
        let at = match kind {
            BackupKind::Physical => now.at,
            _ => of_kind.iter().map(|c| c.at).max().unwrap_or(now.at),
        };
        forecast::forecast(&of_kind, branches_of(kind, branches), current, &policy, &Verdicts { at, all })
    };
    by_kind(candidates, options).flat_map(of).collect()
}

/// The kinds of which there is something; without rules for one, all of it stays.
fn by_kind<'a>(
    candidates: &'a [Candidate],
    options: &'a ExpireOptions,
) -> impl Iterator<Item = (BackupKind, Vec<Candidate>, Policy)> + 'a {
    BackupKind::ALL.into_iter().filter_map(|kind| {
        let of_kind: Vec<Candidate> = candidates.iter().filter(|c| c.id.kind() == kind).cloned().collect();
        let policy = options.policy_of(kind).cloned().unwrap_or_else(Policy::none);
        (!of_kind.is_empty()).then_some((kind, of_kind, policy))
    })
}

/// Timelines are for what stands in the WAL.
fn branches_of(kind: BackupKind, branches: &[Branch]) -> &[Branch] {
    match kind {
        BackupKind::Physical => branches,
        _ => &[],
    }
}
