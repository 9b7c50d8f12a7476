//! What a reader met missing or damaged in one repository, while another one had it, is put back.

use std::collections::BTreeMap;

use pgark_pg::value::{SegmentSize, SystemId};
use pgark_repo::catalog::BackupEntry;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::store::ObjectName;

use super::Act;
use super::object::{Known, expected, from_others, lineages_of};
use crate::ctx::Ctx;
use crate::several::Member;
use crate::sources::{Sources, TroubleKind, joined};

/// What became of an object that was missing or damaged.
#[derive(Clone, Debug)]
pub struct Mended {
    pub repository: String,
    pub object: String,
    /// The repository that the bytes came from, or why it could not be mended.
    pub outcome: std::result::Result<String, String>,
}

/// Puts back what a reader met missing or damaged. `backup` is what was read, and protected from deletion.
pub fn mend(sources: &Sources, cluster: &ClusterName, backup: Option<&BackupId>, ctx: &Ctx) -> Vec<Mended> {
    let members = sources.members();
    let objects = objects_in_trouble(sources);
    if objects.is_empty() {
        return vec![];
    }
    let catalogs = sources.catalogs(cluster).unwrap_or_default();
    let listed = joined(&catalogs);
    let lineages = listed.as_ref().map(lineages_of).unwrap_or_default();
    let entries: Vec<BackupEntry> =
        listed.iter().flat_map(|c| &c.backups).filter(|b| Some(&b.id) == backup).cloned().collect();
    let mut mended = vec![];
    for (n, member) in &members {
        let own: Vec<&ObjectName> = objects.iter().filter(|(k, _)| k == n).map(|(_, name)| name).collect();
        if own.is_empty() {
            continue;
        }
        let others: Vec<Member> = members.iter().filter(|(k, _)| k != n).map(|(_, m)| m.clone()).collect();
        let books: Vec<Member> = std::iter::once(member).chain(&others).cloned().collect();
        let expected = expected(&books, cluster, &entries);
        let known = Known { cluster, lineages: &lineages, expected: &expected, act: Act::Repair };
        for name in own {
            let outcome = match ctx.check_cancelled() {
                Ok(()) => put_back(member, &others, &known, name),
                Err(e) => Err(e.to_string()),
            };
            mended.push(Mended { repository: member.name.clone(), object: name.to_string(), outcome });
        }
    }
    mended
}

/// As `mend` for who holds the keys to the WAL alone.
pub fn mend_wal(sources: &Sources, cluster: &ClusterName, system_id: SystemId, size: SegmentSize) -> Vec<Mended> {
    let members = sources.members();
    let lineages = [(system_id, size)];
    let expected = BTreeMap::new();
    let known = Known { cluster, lineages: &lineages, expected: &expected, act: Act::Repair };
    let one = |(n, name): (usize, ObjectName)| {
        let member = members.iter().find(|(k, _)| *k == n).map(|(_, m)| m)?;
        let others: Vec<Member> = members.iter().filter(|(k, _)| *k != n).map(|(_, m)| m.clone()).collect();
        let outcome = put_back(member, &others, &known, &name);
        Some(Mended { repository: member.name.clone(), object: name.to_string(), outcome })
    };
    objects_in_trouble(sources).into_iter().filter_map(one).collect()
}

fn put_back(
    member: &Member,
    others: &[Member],
    known: &Known<'_>,
    name: &ObjectName,
) -> std::result::Result<String, String> {
    if !member.repo.store().may_delete() {
        return Err("this client only appends to that repository, or looks at its past".to_owned());
    }
    // The trouble may be told of one seal; all of them stand for the object.
    let object = names::split_seal(name).map_or_else(|| name.clone(), |(object, _)| object);
    let done = from_others(&member.repo, others, known, &object);
    done.map_err(|why| if why.is_empty() { "there is no other repository".to_owned() } else { why.join("; ") })
}

/// Without the registers: each of them is put back by its next change.
fn objects_in_trouble(sources: &Sources) -> Vec<(usize, ObjectName)> {
    let is_register = |name: &str| {
        let parent = name.rsplit('/').nth(1).unwrap_or_default();
        ["keyring", "catalog", "head"].contains(&parent.trim_end_matches("-mirror"))
    };
    let found =
        sources.troubles().into_iter().filter(|t| matches!(t.kind, TroubleKind::Missing | TroubleKind::Damaged));
    let named = found.filter_map(|t| Some((t.source, ObjectName::parse(&t.object?).ok()?)));
    named.filter(|(_, name)| !is_register(name.as_str())).collect()
}
