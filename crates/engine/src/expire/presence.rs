//! A look at what is listed: is it there, as far as names and sizes tell? What cannot be found does not count as a backup;
//! nor does it go, because a store that shows too little must not make anything disappear.

use std::collections::{BTreeMap, BTreeSet};

use pgark_repo::catalog::BackupEntry;
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::BackupRecord;
use pgark_repo::store::StoreError;
use pgark_repo::{RepoError, Repository};

use super::wal::Archive;
use crate::ctx::Ctx;
use crate::error::Result;

pub struct Look<'a> {
    pub repo: &'a Repository,
    pub cluster: &'a ClusterName,
    pub ctx: &'a Ctx,
    packs: BTreeMap<BackupId, BTreeSet<u32>>,
}

impl<'a> Look<'a> {
    pub fn new(repo: &'a Repository, cluster: &'a ClusterName, ctx: &'a Ctx) -> Self {
        Look { repo, cluster, ctx, packs: BTreeMap::new() }
    }

    /// What of a backup is not there, if anything. Trouble on the way to it is an error.
    pub fn missing(&mut self, entry: &BackupEntry, archive: Option<&Archive>) -> Result<Option<String>> {
        self.ctx.check_cancelled()?;
        let record = match BackupRecord::load(self.repo, self.cluster, &entry.id, &entry.record) {
            Ok(record) => record,
            Err(e) if e.is_damage() => return Ok(Some(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let manifest = names::manifest(self.cluster, &entry.id);
        match self.repo.store().stat(&manifest) {
            Ok(stat) if stat.size == record.manifest.size => {}
            Ok(stat) => return Ok(Some(format!("{manifest} has {} bytes, not {}", stat.size, record.manifest.size))),
            Err(e @ StoreError::NotFound { .. }) => return Ok(Some(e.to_string())),
            Err(e) => return Err(RepoError::from(e).into()),
        }
        let own = self.packs_of(&entry.id)?.len() as u64;
        if own < record.totals.packs {
            return Ok(Some(format!("{} of its {} packs are missing", record.totals.packs - own, record.totals.packs)));
        }
        for of in &entry.needs {
            let there = self.packs_of(&of.backup)?;
            let wanted = of.packs.iter().flat_map(|(a, b)| *a..=*b);
            if let Some(number) = wanted.into_iter().find(|n| !there.contains(n)) {
                return Ok(Some(format!("{} is missing", names::pack(self.cluster, &of.backup, number))));
            }
        }
        match archive {
            Some(archive) if archive.has_wal_of(entry) => Ok(None),
            _ => Ok(Some("WAL that it needs to become consistent is not in the archive".into())),
        }
    }

    fn packs_of(&mut self, id: &BackupId) -> Result<&BTreeSet<u32>> {
        if !self.packs.contains_key(id) {
            let mut found = BTreeSet::new();
            self.repo.store().list(&format!("{}/packs", names::backup_dir(self.cluster, id)), &mut |stat| {
                found.extend(names::pack_of(&stat.name));
                Ok(())
            })?;
            self.packs.insert(id.clone(), found);
        }
        Ok(&self.packs[id])
    }
}
