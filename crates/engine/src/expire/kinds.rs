//! Each kind of backup is judged by itself: a dump of today is no reason for a physical backup to go, nor the other way round. Of
//! a kind, each series is: a dump of one database is no reason for that of another to go.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use pgark_pg::value::SystemId;
use pgark_repo::catalog::BackupKind;
use pgark_repo::names::BackupId;

use super::ExpireOptions;
use super::forecast::{self, Goes};
use super::policy::{self, Branch, Candidate, FromTheFuture, Policy, Verdict, Verdicts};

/// The series of each backup that has one.
pub type Series = BTreeMap<BackupId, String>;

/// As `policy::decide`; verdicts are in the order of the candidates. How late it is for the rules is told of physical
/// backups, because WAL goes by it, and of the others where there are none.
pub fn decide(
    candidates: &[Candidate],
    series: &Series,
    branches: &[Branch],
    current: SystemId,
    options: &ExpireOptions,
    now: Timestamp,
) -> Result<Verdicts, FromTheFuture> {
    let mut found: HashMap<BackupId, Verdict> = HashMap::new();
    let mut at = Timestamp::MIN;
    for (kind, of_series, policy) in by_series(candidates, series, options) {
        let verdicts = policy::decide(&of_series, branches_of(kind, branches), current, &policy, now)?;
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
    series: &Series,
    branches: &[Branch],
    current: SystemId,
    options: &ExpireOptions,
    now: &Verdicts,
) -> BTreeMap<BackupId, Goes> {
    let of = |(kind, of_series, policy): (BackupKind, Vec<Candidate>, Policy)| {
        let ids: HashSet<&BackupId> = of_series.iter().map(|c| &c.id).collect();
        let all = now.all.iter().filter(|v| ids.contains(&v.id)).cloned().collect();
        let at = match kind {
            BackupKind::Physical => now.at,
            _ => of_series.iter().map(|c| c.at).max().unwrap_or(now.at),
        };
        forecast::forecast(&of_series, branches_of(kind, branches), current, &policy, &Verdicts { at, all })
    };
    by_series(candidates, series, options).into_iter().flat_map(of).collect()
}

/// The series of which there is something; without rules for a kind, all of it stays.
fn by_series(
    candidates: &[Candidate],
    series: &Series,
    options: &ExpireOptions,
) -> Vec<(BackupKind, Vec<Candidate>, Policy)> {
    let mut all = vec![];
    for kind in BackupKind::ALL {
        let mut of_kind: BTreeMap<Option<&String>, Vec<Candidate>> = BTreeMap::new();
        for candidate in candidates.iter().filter(|c| c.id.kind() == kind) {
            of_kind.entry(series.get(&candidate.id)).or_default().push(candidate.clone());
        }
        let policy = options.policy_of(kind).cloned().unwrap_or_else(Policy::none);
        all.extend(of_kind.into_values().map(|of_series| (kind, of_series, policy.clone())));
    }
    all
}

/// Timelines are for what stands in the WAL.
fn branches_of(kind: BackupKind, branches: &[Branch]) -> &[Branch] {
    match kind {
        BackupKind::Physical => branches,
        _ => &[],
    }
}
