//! What one repository lists and another one never got. What that one gave up by itself is not missing.

use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::wal::head::{TimelineSpan, subtract};
use pgark_repo::wal::{WalArchive, WalHead};

use super::keys_apart;
use crate::error::Result;
use crate::several::Member;

/// So many segments behind the end of an archive may still be on their way into it.
const ON_THEIR_WAY: u64 = 10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    pub backups: Vec<BackupId>,
    pub segments: u64,
    /// It has given up a key that the other one still holds: nothing comes over until that one has done so, too.
    pub keys_apart: bool,
}

impl Lacks {
    pub fn is_nothing(&self) -> bool {
        self.backups.is_empty() && self.segments == 0
    }

    /// For people, with what brings it.
    pub fn describe(&self, from: &str, to: &str) -> String {
        let ids: Vec<String> = self.backups.iter().map(ToString::to_string).collect();
        let backups = match ids.as_slice() {
            [] => None,
            [one] => Some(format!("backup {one}")),
            many => Some(format!("{} backups ({})", many.len(), many.join(", "))),
        };
        let segments = (self.segments > 0).then(|| format!("{} WAL segments", self.segments));
        let what: Vec<String> = backups.into_iter().chain(segments).collect();
        let first = match self.keys_apart {
            true => format!("'pgark key reencrypt --repo {from}', 'pgark key retire --repo {from}' and then "),
            false => String::new(),
        };
        format!(
            "lacks {} that repository {from} has: {first}'pgark replicate --from {from} --to {to}' brings that",
            what.join(" and ")
        )
    }
}

/// By the books of both alone.
pub fn lacks(from: &Repository, to: &Repository, cluster: &ClusterName) -> Result<Lacks> {
    let source = CatalogStore::new(from, cluster).read()?;
    let target = CatalogStore::new(to, cluster).read()?;
    let missing = source.backups.iter().filter(|b| b.damaged.is_none());
    let missing = missing.filter(|b| target.backup(&b.id).is_none() && !target.has_given_up(&b.id));
    let mut lacks =
        Lacks { backups: missing.map(|b| b.id.clone()).collect(), segments: 0, keys_apart: keys_apart(from, to) };
    for lineage in &source.lineages {
        let head = |repo| WalArchive::new(repo, cluster, lineage.system_id).head();
        lacks.segments += segments(&head(from)?, &head(to)?);
    }
    Ok(lacks)
}

fn segments(from: &WalHead, to: &WalHead) -> u64 {
    let newest = to.timelines().iter().map(|t| t.timeline).max();
    from.timelines()
        .iter()
        .map(|span| of_timeline(span, to.timeline(span.timeline), newest > Some(span.timeline)))
        .sum()
}

fn of_timeline(span: &TimelineSpan, known: Option<&TimelineSpan>, is_past: bool) -> u64 {
    let missing = known.map_or(span.ranges.clone(), |k| subtract(&subtract(&span.ranges, &k.ranges), &k.expired));
    let end = known.and_then(TimelineSpan::end);
    let (mut behind, mut within) = (0u64, 0u64);
    for (first, last) in missing {
        let count = last - first + 1;
        if is_past || end.is_some_and(|end| last < end.0) { within += count } else { behind += count }
    }
    if behind > ON_THEIR_WAY { within + behind } else { within }
}

/// One of several repositories, and what it lacks of what another one has.
pub struct Lacking<'a> {
    pub to: &'a Member,
    pub from: &'a Member,
    pub found: Result<Lacks>,
}

/// Each compared with each; those that lack nothing are left out.
pub fn among<'a>(members: &'a [Member], cluster: &ClusterName) -> Vec<Lacking<'a>> {
    let pairs = members.iter().flat_map(|to| members.iter().map(move |from| (to, from)));
    let pairs = pairs.filter(|(to, from)| to.name != from.name);
    let all = pairs.map(|(to, from)| Lacking { to, from, found: lacks(&from.repo, &to.repo, cluster) });
    all.filter(|l| !l.found.as_ref().is_ok_and(Lacks::is_nothing)).collect()
}
