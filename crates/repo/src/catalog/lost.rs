//! A catalog of whose newest version no copy can be read.

use super::{Catalog, CatalogStore, encode};
use crate::error::Result;
use crate::register::Lost;

/// What is left of it.
#[derive(Clone, Debug)]
pub struct LostCatalog {
    register: Lost,
    /// As it was before the last change, where that can be read.
    pub before: Option<Catalog>,
}

impl LostCatalog {
    pub fn why(&self) -> &str {
        &self.register.why
    }
}

impl CatalogStore {
    /// None when it can be read.
    ///
    /// # Errors
    /// As `Register::lost`.
    pub fn lost(&self) -> Result<Option<LostCatalog>> {
        let Some(register) = self.register.lost(&mut |value| self.decode(value).map(drop))? else { return Ok(None) };
        let before = register.before.as_ref().map(|v| self.decode(&v.value)).transpose()?;
        Ok(Some(LostCatalog { register, before }))
    }

    /// False when somebody else put another one there.
    pub fn replace_lost(&self, lost: &LostCatalog, catalog: &Catalog) -> Result<bool> {
        self.register.replace_lost(&lost.register, &mut |value| self.decode(value).map(drop), encode(catalog))
    }
}

impl Catalog {
    /// Of a cluster of which nothing is known yet.
    pub fn empty(cluster: crate::names::ClusterName) -> Self {
        Catalog {
            cluster,
            lineages: vec![],
            fence: 0,
            last_id: None,
            jobs: vec![],
            backups: vec![],
            removing: vec![],
            interrupted: vec![],
            expired: vec![],
            gave_up: Some(super::GaveUp::default()),
            wal_expiries: vec![],
            resealed: None,
            clock: None,
        }
    }
}
