//! `init`: the repository with its key, and the cluster's name in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgark_pg::control::ControlFile;
use pgark_repo::catalog::{CatalogStore, Lineage};
use pgark_repo::keyring::NewKeys;
use pgark_repo::names::ClusterName;
use pgark_repo::repository::Created;
use pgark_repo::store::Store;
use pgark_repo::{RepoError, Repository};

use crate::backup::source::{parse_control, read_control};
use crate::cluster::{ConnectOptions, Connection, Inspection, inspect};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// Where the cluster's identity comes from.
pub enum Identity<'a> {
    Directory(&'a Path),
    Server(&'a ConnectOptions, Duration),
}

pub struct Registered {
    pub repository: Repository,
    pub repository_created: bool,
    pub cluster_registered: bool,
    pub lineage: Lineage,
    /// Of the running server, when it could be asked.
    pub inspection: Option<Inspection>,
}

pub fn init(
    store: Arc<dyn Store>,
    keys: &NewKeys,
    cluster: &ClusterName,
    identity: &[Identity<'_>],
    adopt: bool,
    ctx: &Ctx,
) -> Result<Registered> {
    let (lineage, inspection) = identify(identity, ctx)?;
    let (repository, created) = Repository::init(store, keys)?;
    repository.require_reader("the registration of clusters")?;
    let catalog = CatalogStore::new(&repository, cluster);
    let cluster_registered = catalog.register(&lineage, adopt).map_err(|e| match e {
        RepoError::Busy { what, holder } => EngineError::refused(
            "E-CLUSTER-SYSTEM",
            format!("{what} belongs to {holder}, this one is {}", lineage.system_id),
            "use another --cluster name, or --adopt when this cluster is its successor (an upgrade, a new initdb)",
        ),
        e => e.into(),
    })?;
    crate::rescue::place(&**repository.store())?;
    let repository_created = created == Created::Now;
    Ok(Registered { repository, repository_created, cluster_registered, lineage, inspection })
}

/// The first source that answers; the last one's error when none does.
fn identify(sources: &[Identity<'_>], ctx: &Ctx) -> Result<(Lineage, Option<Inspection>)> {
    let mut found: Option<(Lineage, Option<Inspection>)> = None;
    let mut failure = None;
    for source in sources {
        let answer = match source {
            Identity::Directory(dir) => from_directory(dir, ctx).map(|l| (l, None)),
            Identity::Server(options, timeout) => from_server(options, *timeout, ctx).map(|(l, i)| (l, Some(i))),
        };
        match (answer, &mut found) {
            (Ok((lineage, inspection)), Some((before, seen))) => {
                if before.system_id != lineage.system_id {
                    return Err(EngineError::refused(
                        "E-CLUSTER-MISMATCH",
                        "the connected server and the data directory are different clusters",
                        "check --pgdata against the host and port of the connection",
                    ));
                }
                before.version_num = lineage.version_num;
                *seen = inspection;
            }
            (Ok(answer), none) => *none = Some(answer),
            (Err(e), _) => failure = Some(e),
        }
    }
    found.ok_or_else(|| {
        failure.unwrap_or_else(|| {
            EngineError::refused(
                "E-CLUSTER-UNKNOWN",
                "neither a data directory nor a server is known",
                "give --pgdata or a connection",
            )
        })
    })
}

fn from_directory(pgdata: &Path, ctx: &Ctx) -> Result<Lineage> {
    let control: ControlFile = parse_control(pgdata, &read_control(pgdata)?)?;
    Ok(Lineage {
        system_id: control.system_id,
        version_num: control.major.number() * 10_000,
        catalog_version: control.catalog_version,
        segment_size: control.segment_size,
        registered: ctx.now(),
    })
}

fn from_server(options: &ConnectOptions, timeout: Duration, ctx: &Ctx) -> Result<(Lineage, Inspection)> {
    let inspection = inspect(&Connection::open(options, timeout)?)?;
    let (Some(system_id), Some(segment_size)) = (inspection.system_id, inspection.wal_segment_size) else {
        return Err(EngineError::refused(
            "E-PG-RIGHTS",
            "the connected role may not read the system identifier and the wal segment size",
            "grant it pg_monitor",
        ));
    };
    let lineage = Lineage {
        system_id,
        version_num: inspection.version_num,
        catalog_version: inspection.major.catalog_version(),
        segment_size,
        registered: ctx.now(),
    };
    Ok((lineage, inspection))
}
