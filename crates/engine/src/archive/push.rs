//! `archive_command`: one WAL file into the repository. PostgreSQL forgets the file once we say yes, so yes is
//! said last.

use std::io::Read;
use std::path::Path;

use pgark_pg::names::{RawSegment, WalFileName};
use pgark_pg::value::Lsn;
use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::codec::Compression;
use pgark_repo::limits::SIDE_FILE_BYTES_MAX;
use pgark_repo::names::ClusterName;
use pgark_repo::wal::{Pushed, SegmentData, WalArchive, WalHead, WalIndex};

use super::ahead::Ahead;
use super::segment::{Prepared, not_wal, open, prepare, segment_name};
use crate::error::{EngineError, Result};

#[derive(Clone, Debug)]
pub struct PushReport {
    pub file: String,
    pub outcome: Pushed,
}

/// Whether a segment with a damaged place in its middle is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damaged {
    Refuse,
    Accept,
}

/// What `archive_command` was called with, and how.
pub struct PushOptions<'a> {
    pub path: &'a Path,
    pub compression: Compression,
    pub damaged: Damaged,
    pub jobs: usize,
    /// None: this file and no other.
    pub ahead: Option<Ahead>,
}

pub fn push(repo: &Repository, cluster: &ClusterName, options: &PushOptions<'_>) -> Result<PushReport> {
    let path = options.path;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let parsed = super::parse_name(&name)?;
    let catalog = CatalogStore::new(repo, cluster).read()?;
    let outcome = match &parsed {
        WalFileName::Segment(raw) => segment(repo, &catalog, raw, options)?,
        WalFileName::Partial(raw) => {
            let mut prepared = prepare(&catalog, path, raw, options.compression, 1)?;
            let archive = archive(repo, &catalog, &prepared, options);
            let Prepared { index, data, .. } = &mut prepared;
            archive.push_partial(index, &mut data.borrow())?
        }
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => side_file(repo, &catalog, path, &parsed)?,
    };
    Ok(PushReport { file: name, outcome })
}

fn archive(repo: &Repository, catalog: &Catalog, of: &Prepared, options: &PushOptions<'_>) -> WalArchive {
    WalArchive::new(repo, &catalog.cluster, of.index.system_id).with_compression(options.compression)
}

fn segment(repo: &Repository, catalog: &Catalog, raw: &RawSegment, options: &PushOptions<'_>) -> Result<Pushed> {
    let Some(ahead) = &options.ahead else {
        let mut prepared = prepare(catalog, options.path, raw, options.compression, options.jobs)?;
        let archive = archive(repo, catalog, &prepared, options);
        let head = archive.head()?;
        if archive.is_archived(&head, &prepared.index)? {
            return Ok(Pushed::AlreadyThere);
        }
        let (pushed, copy) = store(&archive, &head, options.path, &mut prepared, options.damaged)?;
        archive.acknowledge(&[(prepared.index.segment_name(), copy)])?;
        return Ok(pushed);
    };
    let lineage = catalog.lineage().ok_or_else(|| not_wal(options.path, "no cluster is registered"))?;
    let archive = WalArchive::new(repo, &catalog.cluster, lineage.system_id).with_compression(options.compression);
    let head = archive.head()?;
    if ahead.has(options.path) {
        let name = segment_name(raw, lineage, options.path)?;
        if head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)) {
            return Ok(Pushed::AlreadyThere);
        }
    }
    let push_one = |path: &Path, raw: &RawSegment, threads: usize| {
        let mut prepared = prepare(catalog, path, raw, options.compression, threads)?;
        let name = prepared.index.segment_name();
        if archive.is_archived(&head, &prepared.index)? {
            return Ok((Pushed::AlreadyThere, (name, head.copy_of(&name))));
        }
        let (pushed, copy) = store(&archive, &head, path, &mut prepared, options.damaged)?;
        Ok((pushed, (name, copy)))
    };
    ahead.push(options.path, raw, options.jobs, &push_one, &|done| Ok(archive.acknowledge(done)?))
}

/// Durable when it returns; not yet acknowledged.
fn store(
    archive: &WalArchive,
    head: &WalHead,
    path: &Path,
    prepared: &mut Prepared,
    damaged: Damaged,
) -> Result<(Pushed, u32)> {
    let Prepared { index, changes, data } = prepared;
    if let Some(later) = index.wal_after_end
        && damaged == Damaged::Refuse
    {
        return Err(broken(path, index, later));
    }
    match archive.push_segment_after(head, index, changes, &mut data.borrow()) {
        Err(e @ RepoError::Conflict { .. }) => Err(keep_evidence(archive, path, index, &mut data.borrow(), e)),
        other => Ok(other?),
    }
}

/// WAL that PostgreSQL wrote, and that nobody can replay past the damage.
fn broken(path: &Path, index: &WalIndex, later: Lsn) -> EngineError {
    EngineError::refused(
        "E-WAL-DAMAGED",
        format!(
            "{}: its records end at {}, and WAL goes on at {later}: what lies between is damaged",
            path.display(),
            index.valid_end
        ),
        "recovery cannot pass this place. Is there a good copy, on a standby perhaps? Archive that one. If not: \
         'pgark archive-push --accept-damaged PATH' lets archiving go on; then take a backup at once",
    )
}

/// Other WAL of the same name is there: the first one stays, ours is put aside, and the answer is no.
fn keep_evidence(
    archive: &WalArchive,
    path: &Path,
    index: &WalIndex,
    data: &mut SegmentData<'_>,
    conflict: RepoError,
) -> EngineError {
    let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or("segment");
    match archive.keep_conflict(file_name, index, data) {
        Ok(object) => {
            tracing::error!(%object, "two different wal segments have the same name; the second is kept as evidence")
        }
        Err(e) => tracing::error!(%e, "the conflicting wal segment could not be kept as evidence"),
    }
    conflict.into()
}

fn side_file(repo: &Repository, catalog: &Catalog, path: &Path, name: &WalFileName) -> Result<Pushed> {
    let lineage = catalog.lineage().ok_or_else(|| not_wal(path, "no cluster is registered"))?;
    let mut bytes = vec![];
    let file = open(path)?;
    let limit = SIDE_FILE_BYTES_MAX as u64;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| EngineError::file("reading", path, e))?;
    if bytes.len() > SIDE_FILE_BYTES_MAX {
        return Err(not_wal(path, "it is far too large for its kind"));
    }
    let archive = WalArchive::new(repo, &catalog.cluster, lineage.system_id);
    push_side_file(&archive, name, &bytes)
}

pub fn push_side_file(archive: &WalArchive, name: &WalFileName, bytes: &[u8]) -> Result<Pushed> {
    if let WalFileName::History(timeline) = name {
        let refused = |why: &dyn std::fmt::Display| {
            EngineError::refused("E-HISTORY", format!("{name} does not parse: {why}"), "check the server's pg_wal")
        };
        let history = pgark_pg::history::TimelineHistory::parse(*timeline, bytes).map_err(|e| refused(&e))?;
        if history.entries.is_empty() {
            return Err(refused(&"it names no timeline before this one"));
        }
    }
    let outcome = archive.push_side_file(name, bytes)?;
    if let WalFileName::History(timeline) = name {
        archive.acknowledge_history(*timeline)?;
    }
    Ok(outcome)
}
