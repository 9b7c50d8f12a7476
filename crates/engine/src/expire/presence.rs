//! A look at what is listed: is it there, as far as names and sizes tell? And of what others would go for: does its manifest
//! open, and has every pack the size that it wrote? What cannot be found does not count as a backup; nor does it go,
//! because a store that shows too little must not make anything disappear.

use std::collections::BTreeMap;

use pgark_repo::catalog::{BackupEntry, Catalog, JobKind};
use pgark_repo::manifest::{PackUse, packs_of};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{Record, manifest_reader};
use pgark_repo::stream::Fingerprint;
use pgark_repo::{RepoError, Repository};

use super::wal::Archive;
use crate::ctx::Ctx;
use crate::error::Result;

pub struct Look<'a> {
    repo: &'a Repository,
    cluster: &'a ClusterName,
    ctx: &'a Ctx,
    listed: BTreeMap<BackupId, Listed>,
    /// Fingerprints of manifests, by the records that were read.
    manifests: BTreeMap<BackupId, Fingerprint>,
}

/// Sizes of a backup's objects.
#[derive(Default)]
struct Listed {
    packs: BTreeMap<u32, u64>,
    manifest: Option<u64>,
}

impl<'a> Look<'a> {
    /// Lists everything once.
    pub fn new(repo: &'a Repository, cluster: &'a ClusterName, ctx: &'a Ctx) -> Result<Self> {
        let mut listed: BTreeMap<BackupId, Listed> = BTreeMap::new();
        let dir = names::backups_dir(cluster);
        repo.store().list(&dir, &mut |stat| {
            let path = stat.name.as_str().strip_prefix(&dir).and_then(|rest| rest.strip_prefix('/'));
            let Some((id, rest)) = path.and_then(|p| p.split_once('/')) else { return Ok(()) };
            let Ok(id) = BackupId::parse(id) else { return Ok(()) };
            let of = listed.entry(id).or_default();
            if let Some(number) = names::pack_of(&stat.name) {
                of.packs.insert(number, stat.size);
            } else if rest == "manifest" {
                of.manifest = Some(stat.size);
            }
            Ok(())
        })?;
        Ok(Look { repo, cluster, ctx, listed, manifests: BTreeMap::new() })
    }

    /// Whether objects are there that belong to nothing any more, and nobody is at work who may be removing them.
    pub fn has_remains(&self, catalog: &Catalog) -> bool {
        let now = self.ctx.now();
        if catalog.jobs.iter().any(|j| j.kind != JobKind::Restore && !j.is_dead(now)) {
            return false;
        }
        let of_use = |id: &BackupId, l: &Listed| {
            l.manifest.is_none() && !l.packs.is_empty() && l.packs.keys().all(|pack| catalog.is_needed(id, *pack))
        };
        catalog.removing.iter().any(|id| self.listed.get(id).is_some_and(|l| !of_use(id, l)))
    }

    /// What of a backup's objects is not there, if anything. Trouble on the way to it is an error.
    pub fn missing(&mut self, entry: &BackupEntry) -> Result<Option<String>> {
        self.ctx.check_cancelled()?;
        let record = match Record::load(self.repo, self.cluster, &entry.id, &entry.record) {
            Ok(record) => record,
            Err(e) if e.is_damage() => return Ok(Some(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let none = Listed::default();
        let own = self.listed.get(&entry.id).unwrap_or(&none);
        let manifest = names::manifest(self.cluster, &entry.id);
        match own.manifest {
            Some(size) if size == record.manifest().size => {}
            Some(size) => return Ok(Some(format!("{manifest} has {size} bytes, not {}", record.manifest().size))),
            None => return Ok(Some(format!("{manifest} is missing"))),
        }
        let packs = own.packs.len() as u64;
        if packs < record.totals().packs {
            let missing = record.totals().packs - packs;
            return Ok(Some(format!("{missing} of its {} packs are missing", record.totals().packs)));
        }
        for of in &entry.needs {
            let there = &self.listed.get(&of.backup).unwrap_or(&none).packs;
            let wanted = of.packs.iter().flat_map(|(a, b)| *a..=*b);
            if let Some(number) = wanted.into_iter().find(|n| !there.contains_key(n)) {
                return Ok(Some(format!("{} is missing", names::pack(self.cluster, &of.backup, number))));
            }
        }
        self.manifests.insert(entry.id.clone(), record.manifest().clone());
        Ok(None)
    }

    /// As `missing`, its WAL included.
    pub fn missing_with_wal(&mut self, entry: &BackupEntry, archive: Option<&Archive>) -> Result<Option<String>> {
        if let Some(what) = self.missing(entry)? {
            return Ok(Some(what));
        }
        let Some(physical) = entry.as_physical() else { return Ok(None) };
        match archive {
            Some(archive) if archive.has_wal_of(&physical) => Ok(None),
            _ => Ok(Some("WAL that it needs to become consistent is not in the archive".into())),
        }
    }

    /// As `missing`, of a backup of which nothing is: reads its whole manifest. No pack is read.
    pub fn damaged(&self, id: &BackupId) -> Result<Option<String>> {
        self.ctx.check_cancelled()?;
        let packs = manifest_reader(self.repo, self.cluster, id).and_then(packs_of);
        let (packs, print) = match packs {
            Ok(packs) => packs,
            Err(e) if is_about_it(&e) => return Ok(Some(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let manifest = names::manifest(self.cluster, id);
        if self.manifests.get(id) != Some(&print) {
            return Ok(Some(format!("{manifest} is not the one that the backup wrote")));
        }
        let wrong = packs.iter().find_map(|PackUse { id, fingerprint, .. }| {
            let name = names::pack(self.cluster, &id.backup, id.number);
            match self.listed.get(&id.backup).and_then(|l| l.packs.get(&id.number)) {
                Some(size) if *size == fingerprint.size => None,
                Some(size) => Some(format!("{name} has {size} bytes, not {}", fingerprint.size)),
                None => Some(format!("{name} is missing")),
            }
        });
        Ok(wrong)
    }
}

/// A manifest that does not open under the key of everything else is damaged, too.
fn is_about_it(e: &RepoError) -> bool {
    e.is_damage() || matches!(e, RepoError::WrongKey { .. })
}
