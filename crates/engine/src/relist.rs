//! Lists backups that lie in the repository and that no catalog lists: after all copies of the catalog were lost, or its last
//! change was.
//!
//! Each backup's record and manifest say what it consists of; both are sealed under their names. What the catalog alone
//! knew is lost with it: marks, notes, proofs, and that a backup was given up. So every backup that comes back this way is
//! under a hold: no retention takes it before somebody has looked.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pgark_pg::value::SegmentSize;
use pgark_repo::catalog::{
    BackupEntry, BackupKind, Catalog, CatalogStore, Evidence, Hold, Lineage, LostCatalog, PacksOf, PhysicalFacts,
};
use pgark_repo::manifest::packs_of;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{Record, manifest_reader};
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::WalArchive;
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};
use crate::expire::presence::Look;
use crate::replicate::wal::missing_of;

/// Of the hold under which backups come back.
pub const HOLD: &str = "listed anew from its record";

/// Claims that were made in a lost version are fewer.
const CLAIMS_LOST_MAX: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Plan {
    /// Why the catalog cannot be read; None when it can.
    pub lost: Option<String>,
    /// The catalog as it was before its last change is there.
    pub has_before: bool,
    /// Backups that will be listed again. Oldest first.
    pub found: Vec<BackupEntry>,
    /// Backups of which something lies there and that cannot be listed, and why.
    pub left: Vec<(BackupId, String)>,
    /// What is not known of the cluster itself.
    pub notes: Vec<String>,
    replaces: Option<LostCatalog>,
    catalog: Catalog,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.lost.is_none() && self.found.is_empty()
    }
}

/// # Errors
/// A store that does not answer, a key that does not open the repository, nothing of such a cluster.
pub fn plan(repo: &Repository, cluster: &ClusterName, ctx: &Ctx) -> Result<Plan> {
    repo.require_reader("records of backups")?;
    let store = CatalogStore::new(repo, cluster);
    let lost = store.lost()?;
    let before = match &lost {
        None => Some(store.read()?),
        Some(lost) => lost.before.clone(),
    };
    let ids = ids_there(repo, cluster)?;
    if lost.is_some() && before.is_none() && ids.is_empty() {
        return Err(RepoError::NoCluster { url: repo.store().url(), cluster: cluster.to_string() }.into());
    }
    let mut plan = Plan {
        lost: lost.as_ref().map(|l| l.why().to_owned()),
        has_before: before.is_some(),
        found: vec![],
        left: vec![],
        notes: vec![],
        replaces: lost,
        catalog: before.unwrap_or_else(|| Catalog::empty(cluster.clone())),
    };
    // The change that was lost may be the one that listed it.
    let mut known = plan.catalog.clone();
    if plan.replaces.is_some() {
        known.jobs.clear();
    }
    let mut search = Search { repo, cluster, ctx, look: Look::new(repo, cluster, ctx)?, lineages: BTreeMap::new() };
    for id in ids.iter().filter(|id| !is_known(&known, id)) {
        ctx.check_cancelled()?;
        match search.entry(id)? {
            Ok(entry) => plan.found.push(entry),
            Err(why) => plan.left.push((id.clone(), why)),
        }
    }
    if plan.replaces.is_some() {
        for lineage in search.lineages.into_values() {
            if plan.catalog.lineage_of(lineage.system_id).is_none() {
                plan.catalog.lineages.push(lineage);
            }
        }
        if plan.catalog.lineages.is_empty() {
            plan.notes
                .push("no physical backup tells which server this was: register it again with 'pgark init'".into());
        }
        let second = u64::try_from(ctx.now().as_second()).unwrap_or(0);
        plan.catalog.fence = plan.catalog.fence.saturating_add(CLAIMS_LOST_MAX).max(second);
        plan.catalog.last_id = plan.catalog.last_id.take().max(ids.into_iter().max());
    }
    Ok(plan)
}

/// Lists what the plan found. Returns how many backups are listed now that were not.
pub fn run(repo: &Repository, cluster: &ClusterName, plan: &Plan) -> Result<usize> {
    let store = CatalogStore::new(repo, cluster);
    if let Some(lost) = &plan.replaces {
        let mut catalog = plan.catalog.clone();
        catalog.jobs.retain(|job| !plan.found.iter().any(|entry| job.backup.as_ref() == Some(&entry.id)));
        add(&mut catalog, &plan.found);
        if !store.replace_lost(lost, &catalog)? {
            return Err(EngineError::failed(
                "E-CATALOG-CHANGED",
                "the catalog is not as it was found: it can be read again, or somebody else has put another one there",
                "run this again: it begins with what is there now",
            ));
        }
        return Ok(plan.found.len());
    }
    let added = store.update(|catalog| {
        let added = add(catalog, &plan.found);
        Ok((added > 0).then_some(added))
    })?;
    Ok(added.unwrap_or(0))
}

fn add(catalog: &mut Catalog, found: &[BackupEntry]) -> usize {
    let mut added = 0;
    for entry in found {
        if !is_known(catalog, &entry.id) {
            catalog.backups.push(entry.clone());
            added += 1;
        }
    }
    catalog.backups.sort_by(|a, b| a.id.cmp(&b.id));
    added
}

/// Whether the catalog has decided on it.
fn is_known(catalog: &Catalog, id: &BackupId) -> bool {
    catalog.backup(id).is_some()
        || catalog.expired(id).is_some()
        || catalog.has_remains(id)
        || catalog.jobs.iter().any(|j| j.backup.as_ref() == Some(id))
}

fn ids_there(repo: &Repository, cluster: &ClusterName) -> Result<BTreeSet<BackupId>> {
    let dir = names::backups_dir(cluster);
    let mut ids = BTreeSet::new();
    repo.store()
        .list(&dir, &mut |stat| {
            let path = stat.name.as_str().strip_prefix(&dir).and_then(|rest| rest.strip_prefix('/'));
            ids.extend(path.and_then(|p| p.split('/').next()).and_then(|id| BackupId::parse(id).ok()));
            Ok(())
        })
        .map_err(RepoError::from)?;
    Ok(ids)
}

struct Search<'a> {
    repo: &'a Repository,
    cluster: &'a ClusterName,
    ctx: &'a Ctx,
    look: Look<'a>,
    /// By system identifier, as the records tell.
    lineages: BTreeMap<u64, Lineage>,
}

impl Search<'_> {
    /// The entry of a backup that is whole, or why it is not.
    fn entry(&mut self, id: &BackupId) -> Result<std::result::Result<BackupEntry, String>> {
        let (record, print) = match Record::find(self.repo, self.cluster, id) {
            Ok(found) => found,
            Err(e) if e.is_not_found() => {
                return Ok(Err("it has no record: it was never finished, or is half removed".into()));
            }
            Err(e) if e.is_damage() => return Ok(Err(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let uses = match manifest_reader(self.repo, self.cluster, id).and_then(packs_of) {
            Ok((uses, _)) => uses,
            Err(e) if e.is_damage() => return Ok(Err(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let others = uses.into_iter().map(|u| u.id).filter(|pack| pack.backup != *id);
        let entry = entry_of(&record, print, PacksOf::gather(others), self.ctx.now());
        if let Some(missing) = self.look.missing(&entry)? {
            return Ok(Err(missing));
        }
        if let Record::Physical(r) = &record {
            let lineage = Lineage {
                system_id: r.system_id,
                version_num: r.version_num,
                catalog_version: r.catalog_version,
                segment_size: r.segment_size,
                registered: r.started,
            };
            self.lineages.entry(r.system_id.0).or_insert(lineage);
            if let Some(why) = self.lacks_wal(&entry, r.segment_size)? {
                return Ok(Err(why));
            }
        }
        Ok(Ok(entry))
    }

    fn lacks_wal(&self, entry: &BackupEntry, size: SegmentSize) -> Result<Option<String>> {
        let archive = WalArchive::new(self.repo, self.cluster, entry.system_id);
        let physical = entry.as_physical().expect("it has the facts of one");
        match missing_of(&archive, &physical, size) {
            Ok(missing) => Ok(missing.map(|name| format!("the archive has no segment {name}, which it needs"))),
            Err(e) if e.is_damage() => Ok(Some(format!("whether its WAL is there cannot be seen: {e}"))),
            Err(e) => Err(e),
        }
    }
}

/// What the record says, and nothing that only the catalog knew.
fn entry_of(record: &Record, print: Fingerprint, needs: Vec<PacksOf>, now: Timestamp) -> BackupEntry {
    let (id, kind, backup_type, system_id, version_num, started, finished, physical) = match record {
        Record::Physical(r) => {
            // The server's own time of the end is not in the record.
            let facts = PhysicalFacts {
                lsn_start: r.lsn_start,
                lsn_stop: r.lsn_stop,
                stopped: r.finished,
                timeline: r.timeline,
                bad_blocks: r.bad_blocks,
                from_standby: r.from_standby,
            };
            (&r.id, r.kind, r.backup_type, r.system_id, r.version_num, r.started, r.finished, Some(facts))
        }
        Record::Parts(r) => (&r.id, r.kind, r.backup_type, r.system_id, r.version_num, r.started, r.finished, None),
    };
    let totals = record.totals();
    BackupEntry {
        id: id.clone(),
        kind,
        backup_type,
        system_id,
        version_num,
        started,
        finished,
        size_bytes: totals.size_bytes,
        read_bytes: totals.read_bytes,
        stored_bytes: totals.stored_bytes + print.size,
        physical,
        database_bytes: match record {
            Record::Parts(r) if !r.databases.is_empty() => r.databases.iter().map(|d| d.size_bytes).sum(),
            _ => None,
        },
        // What it was asked for is not known, so it stands in for no other.
        series: (kind != BackupKind::Physical).then(|| format!("listed-anew-{id}")),
        kept: false,
        kept_until: None,
        holds: vec![Hold { reason: HOLD.into(), since: now }],
        damaged: None,
        certain: None,
        evidence: Evidence::Stored,
        drilled: None,
        annotations: BTreeMap::new(),
        needs,
        record: print,
    }
}
