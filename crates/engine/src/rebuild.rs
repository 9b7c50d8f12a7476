//! A damaged pack put together again from the data directory: pages that have not changed since the backup are what its
//! frames hold.
//!
//! Invariant: what is read from the data directory is only proposed. It counts when the whole pack comes out with the
//! fingerprint that its backup's manifest has of it, or the seal of it which says, authenticated, that it is that pack. Nothing is written here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pgark_repo::RepoError;
use pgark_repo::crypto::{ContentId, KeySet};
use pgark_repo::manifest::{Chunk, Item, Part};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::FrameAt;
use pgark_repo::seals::{origin_of_bytes, tail_of};
use pgark_repo::store::ObjectName;
use pgark_repo::stream::Fingerprint;
use pgark_repo::wreck::Wreck;
use pgark_repo::{Repository, record::manifest_reader};

use crate::backup::copy::read_full;
use crate::backup::scan::show;
use crate::error::{EngineError, Result};

/// Places in the data directory that are tried for one piece of a frame: several backups may have it.
const PLACES_MAX: usize = 4;

/// Where a piece of a frame's content was read from.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    path: Vec<u8>,
    offset: u64,
    /// Of exactly this piece, where the manifest has it.
    id: Option<ContentId>,
}

/// By first byte in the frame and length.
type Pieces = BTreeMap<(u32, u32), Vec<Place>>;

/// The newest seal of the pack: its name, and its bytes as they were stored, as far as the data directory still has the pages
/// of its damaged frames. `from` is where manifests are read, `users` the backups that need the pack.
pub fn pack(
    repo: &Repository,
    from: &[&Repository],
    cluster: &ClusterName,
    users: &BTreeSet<BackupId>,
    name: &ObjectName,
    expected: &Fingerprint,
    data: &Path,
) -> Result<(ObjectName, Vec<u8>)> {
    // A later seal has the frames in the same places, under the key that its header has; its tail says which pack it is.
    let seal = repo.store().find(name).map_err(RepoError::from)?.name;
    let mut left = repo.bare_store().read(&seal, expected.size.saturating_mul(2)).map_err(RepoError::from)?;
    let tail_len = usize::try_from(tail_of(&seal)).unwrap_or(usize::MAX);
    let tail = left.split_off(left.len().saturating_sub(tail_len));
    let mut known: Vec<FrameAt> = vec![];
    each_part(from, cluster, users, name, &mut |part, _| {
        if known.last() != Some(&part.frame) {
            known.push(part.frame);
        }
    })?;
    known.sort_by_key(|at| at.offset);
    known.dedup();
    let wreck = Wreck::open(repo.keys(), name, left, expected.size, &known)?;
    let damaged = wreck.damaged();
    let mut pieces: BTreeMap<u64, Pieces> = damaged.iter().map(|(at, _)| (at.offset, Pieces::new())).collect();
    each_part(from, cluster, users, name, &mut |part, place| {
        if let Some(pieces) = pieces.get_mut(&part.frame.offset) {
            let places = pieces.entry((part.skip, part.len)).or_default();
            if places.len() < PLACES_MAX && !places.contains(&place) {
                places.push(place);
            }
        }
    })?;
    let mut contents = vec![];
    for (at, id) in &damaged {
        let pieces = pieces.get(&at.offset).cloned().unwrap_or_default();
        contents.push(content(repo.keys(), at, *id, &pieces, data)?);
    }
    let with_tail = |bytes: &[u8]| [bytes, &tail].concat();
    let is_whole =
        |bytes: &[u8]| origin_of_bytes(repo.keys(), &seal, &with_tail(bytes)).is_ok_and(|written| written == *expected);
    let whole = with_tail(&wreck.rebuild(repo.keys(), &contents, &is_whole)?);
    Ok((seal, whole))
}

/// Every part of the pack that the manifests use, and where its content lay.
fn each_part(
    from: &[&Repository],
    cluster: &ClusterName,
    users: &BTreeSet<BackupId>,
    pack: &ObjectName,
    take: &mut dyn FnMut(&Part, Place),
) -> Result<()> {
    for user in users {
        let mut failed = None;
        // A manifest that cannot be read anywhere is another problem than this one.
        let read = from.iter().any(|repo| match each_part_of(repo, cluster, user, pack, take) {
            Ok(()) => true,
            Err(e) => {
                failed = Some(e);
                false
            }
        });
        if let Some(e) = failed.filter(|_| !read) {
            tracing::info!(backup = %user, %e, "its manifest cannot tell what the pack holds");
        }
    }
    Ok(())
}

fn each_part_of(
    repo: &Repository,
    cluster: &ClusterName,
    user: &BackupId,
    pack: &ObjectName,
    take: &mut dyn FnMut(&Part, Place),
) -> Result<()> {
    let mut manifest = manifest_reader(repo, cluster, user)?;
    let (mut indexes, mut path, mut at) = (BTreeSet::new(), vec![], 0);
    while let Some(item) = manifest.next_item()? {
        match item {
            Item::Pack(index, id) if names::pack(cluster, &id.backup, id.number) == *pack => {
                indexes.insert(index);
            }
            Item::FileStart(file) => (path, at) = (file.path, 0),
            Item::Chunks(chunks) => {
                for chunk in chunks {
                    let mut offset = at;
                    for part in chunk.parts() {
                        if indexes.contains(&part.pack) {
                            let id = match &chunk {
                                Chunk::Data { id, parts } if parts.len() == 1 => Some(*id),
                                _ => None,
                            };
                            take(part, Place { path: path.clone(), offset, id });
                        }
                        offset += u64::from(part.len);
                    }
                    at += chunk.len();
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the frame held, when every piece of it is still there.
fn content(keys: &KeySet, at: &FrameAt, id: Option<ContentId>, pieces: &Pieces, data: &Path) -> Result<Vec<u8>> {
    let mut plain = vec![0; at.plain_len as usize];
    let mut end = 0;
    let mut changed = None;
    for ((skip, len), places) in pieces {
        let (from, to) = (*skip as usize, *skip as usize + *len as usize);
        // Pieces that overlap are those of several backups.
        if to <= end {
            continue;
        }
        if from > end {
            break;
        }
        let Some(room) = plain.get_mut(from..to) else { break };
        let found = places.iter().any(|place| {
            let read = File::open(data.join(OsStr::from_bytes(&place.path)));
            let read = read.and_then(|file| read_full(&file, place.offset, room));
            matches!(read, Ok(got) if got == room.len()) && place.id.is_none_or(|id| keys.content_id(room) == id)
        });
        if !found {
            changed = places.first().map(|place| show(&place.path));
            break;
        }
        end = to;
    }
    let whole = end == plain.len() && id.is_none_or(|id| keys.content_id(&plain) == id);
    if whole {
        return Ok(plain);
    }
    let what = match changed.or_else(|| pieces.values().flatten().next().map(|place| show(&place.path))) {
        Some(path) => format!("{path} has changed in the data directory since the backup"),
        None => "no listed backup tells what the data directory had there".to_owned(),
    };
    Err(EngineError::failed("E-REPAIR", what, ""))
}
