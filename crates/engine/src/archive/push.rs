//! `archive_command`: one WAL file into the repository. PostgreSQL forgets the file once we say yes, so yes is
//! said last.

use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use pgark_pg::names::{RawSegment, WalFileName};
use pgark_pg::value::{Lsn, SegmentName, SystemId};
use pgark_repo::RepoError;
use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::codec::WalEncoding;
use pgark_repo::limits::SIDE_FILE_BYTES_MAX;
use pgark_repo::names::ClusterName;
use pgark_repo::wal::{Pushed, SegmentData, StagedHead, WalArchive, WalHead, WalIndex};

use super::ahead::Ahead;
use super::early::Early;
use super::segment::{Prepared, lineage_with, not_wal, open, prepare, segment_name, system_id_of};
use crate::error::{EngineError, Result};
use crate::several::{HasMember, Member, Present};

#[derive(Debug)]
pub struct PushReport {
    pub file: String,
    /// In the first repository that took it.
    pub outcome: Pushed,
    /// Repositories that could not take it, and why. They lack it until somebody completes them.
    pub away: Vec<(String, EngineError)>,
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
    pub encoding: WalEncoding,
    pub damaged: Damaged,
    pub jobs: usize,
    /// None: this file and no other.
    pub ahead: Option<Ahead>,
}

/// Into one repository.
pub fn push(repo: &Repository, cluster: &ClusterName, options: &PushOptions<'_>) -> Result<PushReport> {
    let one = Member { name: repo.store().url(), repo: repo.clone(), required: true };
    push_to_all(&[one], cluster, options, None)
}

/// Reads the file once and stores it in every repository. One that cannot be reached or written to, is damaged, or is of
/// another cluster, is passed over unless it is required; at least one must take the file. Other WAL of the same name in one
/// of them is an error all the same. `early` may have begun to read it.
pub fn push_to_all(
    members: &[Member],
    cluster: &ClusterName,
    options: &PushOptions<'_>,
    early: Option<Early>,
) -> Result<PushReport> {
    let path = options.path;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let parsed = super::parse_name(&name)?;
    let present = Present::new(members);
    let mut targets = vec![];
    for (n, member) in members.iter().enumerate() {
        let catalog = CatalogStore::new(&member.repo, cluster).read().map_err(EngineError::from);
        if let Some(catalog) = present.keep(n, catalog)? {
            targets.push(Target { member: n, repo: &member.repo, catalog });
        }
    }
    let targets = of_this_cluster(&present, targets, path, &parsed)?;
    let outcome = match &parsed {
        WalFileName::Segment(raw) => segment(&present, &targets, raw, options, early)?,
        WalFileName::Partial(raw) => present.each(&targets, |target| {
            let mut prepared = prepare(&target.catalog, path, raw, options.encoding, 1)?;
            let archive = target.archive(prepared.index.system_id, options);
            let Prepared { index, data, .. } = &mut prepared;
            Ok(archive.push_partial(index, &mut data.borrow())?)
        })?,
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => {
            present.each(&targets, |target| side_file(target.repo, &target.catalog, path, &parsed))?
        }
    };
    Ok(PushReport { file: name, outcome, away: present.away() })
}

/// Without those that have another cluster under this name. History files do not say of which one they are: where the
/// repositories differ, the segments beside the file do.
fn of_this_cluster<'a>(
    present: &Present<'_>,
    targets: Vec<Target<'a>>,
    path: &Path,
    name: &WalFileName,
) -> Result<Vec<Target<'a>>> {
    let mut ids: Vec<Option<SystemId>> = targets.iter().map(|t| t.catalog.lineage().map(|l| l.system_id)).collect();
    ids.dedup();
    let found = match name {
        _ if targets.len() < 2 => return Ok(targets),
        WalFileName::Segment(_) | WalFileName::Partial(_) => system_id_of(path)?,
        _ if ids.len() < 2 => return Ok(targets),
        _ => system_id_beside(path)?,
    };
    let mut own = vec![];
    for target in targets {
        let fits = lineage_with(&target.catalog, found, path).map(drop);
        own.extend(present.keep(target.member, fits)?.map(|()| target));
    }
    Ok(own)
}

/// Of the WAL segments in the directory of this file.
fn system_id_beside(path: &Path) -> Result<SystemId> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(dir).map_err(|e| EngineError::file("reading", dir, e))?;
    let is_segment = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        matches!(WalFileName::parse(name), Ok(WalFileName::Segment(_)))
    };
    let mut segments = entries.flatten().map(|entry| entry.path()).filter(is_segment);
    segments.find_map(|segment| system_id_of(&segment).ok()).ok_or_else(|| {
        not_wal(path, "the repositories have different clusters under this name, and nothing says which is right")
    })
}

/// A repository under its name in this operation.
struct Target<'a> {
    member: usize,
    repo: &'a Repository,
    catalog: Catalog,
}

impl Target<'_> {
    fn archive(&self, system_id: SystemId, options: &PushOptions<'_>) -> WalArchive {
        WalArchive::new(self.repo, &self.catalog.cluster, system_id).with_compression(options.encoding.compression)
    }
}

impl HasMember for Target<'_> {
    fn member(&self) -> usize {
        self.member
    }
}

/// The archive of a target, and its head as it was at the beginning.
struct Place<'a> {
    target: &'a Target<'a>,
    archive: WalArchive,
    head: WalHead,
    /// Its next one, prepared while the only segment of this call is being stored.
    staged: Mutex<Option<StagedHead>>,
}

/// What was pushed of a segment: the number of the copy in each place; none where the place is away.
type Copies = Vec<Option<u32>>;

fn segment(
    present: &Present<'_>,
    targets: &[Target<'_>],
    raw: &RawSegment,
    options: &PushOptions<'_>,
    early: Option<Early>,
) -> Result<Pushed> {
    let first = targets.first().ok_or_else(|| present.nobody())?;
    let mut places = vec![];
    for target in targets {
        let lineage = target.catalog.lineage().ok_or_else(|| not_wal(options.path, "no cluster is registered"))?;
        let archive = target.archive(lineage.system_id, options);
        if let Some(head) = present.keep(target.member, archive.head().map_err(EngineError::from))? {
            places.push(Place { target, archive, head, staged: Mutex::default() });
        }
    }
    let early = Mutex::new(early);
    let push_one = |path: &Path, raw: &RawSegment, threads: usize| {
        let early = early.lock().expect("no thread panics with the lock").take_if(|early| early.is_of(path));
        let read = early.zip(first.catalog.lineage()).and_then(|(early, lineage)| early.finish(lineage));
        let mut prepared = match read {
            Some(prepared) => prepared,
            None => prepare(&first.catalog, path, raw, options.encoding, threads)?,
        };
        let mut outcome = None;
        let mut copies: Copies = vec![];
        for place in &places {
            let stored = match present.is_here(place.target.member) {
                true => {
                    let stored = store_in(place, path, &mut prepared, options.damaged, threads > 1);
                    present.keep(place.target.member, stored)?
                }
                false => None,
            };
            copies.push(stored.as_ref().map(|(_, copy)| *copy));
            outcome = outcome.or(stored.map(|(pushed, _)| pushed));
        }
        Ok((outcome.ok_or_else(|| present.nobody())?, (prepared.index.segment_name(), copies)))
    };
    let acknowledge = |done: &[(SegmentName, Copies)]| {
        for (n, place) in places.iter().enumerate() {
            // What failed in a place ends what it can acknowledge: no hole before what counts.
            let own = done.iter().map_while(|(name, copies)| Some((*name, (*copies.get(n)?)?)));
            let own: Vec<(SegmentName, u32)> = own.collect();
            if own.len() < done.len() && present.is_here(place.target.member) {
                return Err(present.nobody());
            }
            if !own.is_empty() {
                let staged = place.staged.lock().expect("no thread panics with the lock").take();
                let acknowledged = place.archive.acknowledge_staged(staged, &own).map_err(EngineError::from);
                present.keep(place.target.member, acknowledged)?;
            }
        }
        present.somebody()
    };
    let Some(ahead) = &options.ahead else {
        let (pushed, done) = push_one(options.path, raw, options.jobs)?;
        acknowledge(&[done])?;
        return Ok(pushed);
    };
    if ahead.has(options.path) {
        let lineage = first.catalog.lineage().ok_or_else(|| not_wal(options.path, "no cluster is registered"))?;
        let name = segment_name(raw, lineage, options.path)?;
        let there = |p: &Place<'_>| p.head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment));
        if !places.is_empty() && places.iter().all(there) {
            return Ok(Pushed::AlreadyThere);
        }
    }
    ahead.push(options.path, raw, options.jobs, &push_one, &acknowledge)
}

fn store_in(
    place: &Place<'_>,
    path: &Path,
    prepared: &mut Prepared,
    damaged: Damaged,
    alone: bool,
) -> Result<(Pushed, u32)> {
    let own = place.archive.place().system_id;
    if prepared.index.system_id != own {
        return Err(not_wal(path, &format!("the repository has the cluster {own} under this name")));
    }
    if place.archive.is_archived(&place.head, &prepared.index)? {
        return Ok((Pushed::AlreadyThere, place.head.copy_of(&prepared.index.segment_name())));
    }
    if !alone {
        return store(&place.archive, &place.head, path, prepared, damaged);
    }
    let segment = prepared.index.segment_name();
    let copy = place.head.next_copy(&segment);
    std::thread::scope(|scope| {
        // Without another thread the head is prepared later.
        let stage = || place.archive.stage(segment, copy);
        let staging = std::thread::Builder::new().name("head".into()).spawn_scoped(scope, stage).ok();
        let stored = store(&place.archive, &place.head, path, prepared, damaged)?;
        let staged = staging.map(|s| s.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        match staged.unwrap_or(Ok(None)) {
            Ok(staged) => *place.staged.lock().expect("no thread panics with the lock") = staged,
            Err(RepoError::Store(e)) if e.is_durability() => return Err(RepoError::Store(e).into()),
            Err(e) => tracing::debug!(%e, "the next head was not prepared"),
        }
        Ok(stored)
    })
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
