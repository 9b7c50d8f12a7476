//! WAL archiving: pushing segments, fetching them, and knowing which ones a stretch of WAL consists of.

pub mod ahead;
pub mod archives;
pub mod early;
pub mod events;
pub mod get;
pub(crate) mod kinship;
pub mod listing;
pub mod path;
pub mod prefetch;
pub mod pressure;
pub mod push;
pub mod salvage;
pub mod segment;
pub mod spool;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pgark_pg::history::TimelineHistory;
use pgark_pg::names::WalFileName;
use pgark_pg::value::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use pgark_repo::catalog::CatalogStore;
use pgark_repo::names::ClusterName;
use pgark_repo::wal::{SegmentData, WalArchive, WalHead, WalIndex};
use pgark_repo::{RepoError, Repository};

use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

pub use archives::Archives;
pub use path::WalPath;

/// How long the wait between two looks at the archive may grow.
const POLL_MAX: Duration = Duration::from_millis(250);

/// The history of a timeline as archived; timeline 1 has none.
pub fn history(archive: &WalArchive, timeline: TimelineId) -> Result<TimelineHistory> {
    if timeline.get() == 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    match archive.history(timeline) {
        Ok(bytes) => parse_history(timeline, &bytes),
        Err(e) if e.is_not_found() => Err(no_history(timeline)),
        Err(e) => Err(e.into()),
    }
}

fn parse_history(timeline: TimelineId, bytes: &[u8]) -> Result<TimelineHistory> {
    TimelineHistory::parse(timeline, bytes).map_err(|e| {
        EngineError::failed(
            "E-HISTORY",
            format!("the history of timeline {timeline} does not parse: {e}"),
            "the file was archived by PostgreSQL as it is: check the server's pg_wal",
        )
    })
}

fn no_history(timeline: TimelineId) -> EngineError {
    EngineError::refused(
        "E-HISTORY-MISSING",
        format!("the history file of timeline {timeline} is not in the archive"),
        format!(
            "archive {}.history from the pg_wal of a server on this timeline with 'pgark archive-push'",
            timeline.hex()
        ),
    )
}

/// Whether retention has decided to give up none of these since they were looked at; to be asked once they are pinned.
pub fn check_kept(
    repo: &Repository,
    cluster: &ClusterName,
    system_id: SystemId,
    names: &[SegmentName],
    size: SegmentSize,
) -> Result<()> {
    all_kept(&kept_head(repo, cluster, system_id)?, names, size)
}

/// The head as it is when all that was decided is carried out.
pub(crate) fn kept_head(repo: &Repository, cluster: &ClusterName, system_id: SystemId) -> Result<WalHead> {
    let catalog = CatalogStore::new(repo, cluster).read()?;
    let mut head = WalArchive::new(repo, cluster, system_id).head()?;
    let mut pending: Vec<_> = catalog.wal_expiries.iter().filter(|e| e.system_id == system_id).collect();
    pending.sort_by_key(|e| e.number);
    for e in pending {
        head.expire(e.number, &e.ranges);
    }
    Ok(head)
}

pub(crate) fn all_kept(head: &WalHead, names: &[SegmentName], size: SegmentSize) -> Result<()> {
    let expired = |n: &&SegmentName| head.timeline(n.timeline).is_some_and(|t| t.is_expired(n.segment));
    match names.iter().find(expired) {
        Some(name) => Err(RepoError::Expired { what: format!("wal segment {}", name.format(size)) }.into()),
        None => Ok(()),
    }
}

/// Waits until every segment of `names` is archived, and checks that they are one unbroken stretch of WAL, and that of
/// the server whose data directory `own` is, as far as it still has them: after a return to an earlier copy of the machine
/// the archive holds other WAL under the same names. `describe_archiver` says what PostgreSQL reports about archiving, for
/// the message when time runs out.
pub fn wait_archived(
    ctx: &Ctx,
    archive: &WalArchive,
    names: &[SegmentName],
    size: SegmentSize,
    within: Duration,
    own: Option<&Path>,
    describe_archiver: &mut dyn FnMut() -> String,
) -> Result<()> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        ctx.check_cancelled()?;
        let head = archive.head()?;
        let missing = names.iter().find(|n| !head.timeline(n.timeline).is_some_and(|t| t.contains(n.segment)));
        let missing = match (missing, own) {
            (None, Some(own)) => unfinished(archive, &head, names, size, own)?,
            (missing, _) => missing,
        };
        let Some(missing) = missing else { break };
        if began.elapsed() > within {
            return Err(EngineError::failed(
                "E-WAL-TIMEOUT",
                format!(
                    "wal segment {} did not arrive in the repository within {} s{}",
                    missing.format(size),
                    within.as_secs(),
                    describe_archiver()
                ),
                "check archive_command and the server log; 'pgark check' tests archiving end to end",
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    }
    let mut continuity = Continuity::default();
    names.iter().try_for_each(|n| continuity.push(&archive.index(n, size)?))
}

/// Compares the first and the last of the segments with the server's own files. Returns one of which the archive has only
/// the beginning.
fn unfinished<'n>(
    archive: &WalArchive,
    head: &WalHead,
    names: &'n [SegmentName],
    size: SegmentSize,
    own: &Path,
) -> Result<Option<&'n SegmentName>> {
    let ends = [names.first(), names.last().filter(|_| names.len() > 1)];
    for name in ends.into_iter().flatten() {
        match agrees(archive, head, name, size, own)? {
            Some(true) => {}
            None => return Ok(Some(name)),
            Some(false) => {
                return Err(EngineError::refused(
                    kinship::OTHER_HISTORY,
                    format!(
                        "the archive has other WAL under the name {} than this server: the server was set back to an \
                         earlier copy of itself, or is a second one of the same origin",
                        name.format(size)
                    ),
                    "nothing of this server can be archived under these names. To go on from here, start it once as a \
                     recovered cluster, so that it begins a new timeline (recovery.signal, then promote), and take a \
                     full backup; or register it under another cluster name",
                ));
            }
        }
    }
    Ok(None)
}

/// True also where the server does not have the segment any more: PostgreSQL removes what is archived.
fn agrees(
    archive: &WalArchive,
    head: &WalHead,
    name: &SegmentName,
    size: SegmentSize,
    own: &Path,
) -> Result<Option<bool>> {
    let path = own.join("pg_wal").join(name.format(size));
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let Some(before) = inode(&path) else { return Ok(Some(true)) };
    let mut file = segment::open(&path)?;
    let mut data = SegmentData::File(&mut file);
    let indexer = segment::Indexer::new(&path, *name, size, archive.place().system_id);
    let found =
        segment::index_segment(&mut data, indexer).and_then(|(index, _)| Ok(archive.agrees(head, &index, &mut data)?));
    // Recycled while it was read: it was archived before.
    if inode(&path) != Some(before) {
        return Ok(Some(true));
    }
    match found {
        // A file that was made in advance, as on a standby that has not received so much.
        Err(e) if e.code() == "E-WAL-INVALID" => Ok(Some(true)),
        found => found,
    }
}

/// Checks that segments, given in order, are one unbroken stretch: each first record names the last one before it.
#[derive(Default)]
pub struct Continuity {
    before: Option<WalIndex>,
}

impl Continuity {
    pub fn push(&mut self, index: &WalIndex) -> Result<()> {
        if let Some(b) = &self.before
            && !follows(b, index)
        {
            let name = |i: &WalIndex| i.segment_name().format(i.segment_size);
            return Err(EngineError::failed(
                "E-WAL-BROKEN",
                format!("wal segment {} does not continue {}", name(index), name(b)),
                "one of them is of another history of this cluster: 'pgark verify' shows what can still be recovered",
            ));
        }
        // A segment wholly inside one long record says nothing about order.
        if index.first_record.is_some() || self.before.is_none() {
            self.before = Some(index.clone());
        }
        Ok(())
    }
}

/// Whether the one can lie right behind the other in one history.
pub(crate) fn follows(before: &WalIndex, after: &WalIndex) -> bool {
    let Some(_) = after.first_record else { return true };
    let known: Vec<Lsn> = before.last_starts().into_iter().flatten().collect();
    known.is_empty() || known.contains(&after.first_prev)
}

/// What a name of a WAL file means, strictly.
pub fn parse_name(name: &str) -> Result<WalFileName> {
    WalFileName::parse(name).map_err(|e| {
        EngineError::failed(
            "E-WAL-NAME",
            format!("'{}' is not the name of a wal file: {e}", name.escape_debug()),
            "PostgreSQL passes %f or %p: check archive_command or restore_command",
        )
    })
}
