//! What the backup before has of a part, by content. The new part is expected to go through the same content in about the same
//! order, so a window of the old one is held: as far as it fits, all of it.

use std::collections::{HashMap, HashSet, VecDeque};

use pgark_repo::catalog::{BackupKind, Catalog};
use pgark_repo::codec::Codec;
use pgark_repo::crypto::ContentId;
use pgark_repo::manifest::{Chunk, Item, ManifestReader, PackId, Part, packs_of, path_order};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::FrameAt;
use pgark_repo::record::{PartsRecord, manifest_reader};
use pgark_repo::stream::Fingerprint;
use pgark_repo::{RepoError, Repository};

use super::write::Others;
use crate::backup::base::{check_presence, worn};
use crate::error::Result;

/// An earlier backup whose content may be taken over; all of it was there a moment ago.
pub struct Parent {
    pub record: PartsRecord,
    packs: HashMap<PackId, Fingerprint>,
    /// Packs that are there for this line of backups alone, of which it uses little: what is used of them is stored anew.
    worn: HashSet<PackId>,
}

/// The newest whole backup of this kind that has as many of these parts as any. `notes` gets what was passed over.
pub fn choose_parent(
    repo: &Repository,
    cluster: &ClusterName,
    catalog: &Catalog,
    kind: BackupKind,
    counts: &dyn Fn(&PartsRecord) -> usize,
    notes: &mut Vec<String>,
) -> Result<Option<Parent>> {
    let mut best: Option<(usize, Parent)> = None;
    let candidates = catalog.backups.iter().rev().filter(|b| b.kind == kind && b.damaged.is_none());
    for entry in candidates.take(PARENTS_LOOKED_AT) {
        let opened = PartsRecord::load(repo, cluster, &entry.id, &entry.record);
        let found = match opened {
            Ok(record) => counts(&record),
            Err(e) if e.is_damage() => {
                notes.push(format!("backup {} is damaged and not built upon: {e}", entry.id));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if found <= best.as_ref().map_or(0, |(n, _)| *n) {
            continue;
        }
        match Parent::open(repo, cluster, catalog, &entry.id) {
            Ok(parent) => best = Some((found, parent)),
            Err(e) if e.is_damage() => {
                notes.push(format!("backup {} is damaged and not built upon: {e}", entry.id));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(best.map(|(_, parent)| parent))
}

/// Selections of databases change from one backup to the next, and not for ever.
const PARENTS_LOOKED_AT: usize = 8;

impl Parent {
    fn open(
        repo: &Repository,
        cluster: &ClusterName,
        catalog: &Catalog,
        id: &BackupId,
    ) -> std::result::Result<Self, RepoError> {
        let none = || RepoError::NoBackup { cluster: cluster.to_string(), id: id.to_string() };
        let entry = catalog.backup(id).ok_or_else(none)?;
        let record = PartsRecord::load(repo, cluster, id, &entry.record)?;
        let (uses, print) = packs_of(manifest_reader(repo, cluster, id)?)?;
        if print != record.manifest {
            return Err(RepoError::corrupt(names::manifest(cluster, id), "not the manifest of this backup"));
        }
        check_presence(repo, cluster, &uses)?;
        let worn = worn(catalog, &uses);
        Ok(Parent { record, packs: uses.into_iter().map(|u| (u.id, u.fingerprint)).collect(), worn })
    }

    pub fn fingerprint(&self, pack: &PackId) -> Option<&Fingerprint> {
        self.packs.get(pack)
    }

    /// The part of this path, held in at most so many chunks.
    pub(super) fn part(&self, repo: &Repository, path: &str, window: usize) -> Result<Option<Known>> {
        let (cluster, id) = (&self.record.cluster, &self.record.id);
        let mut reader = manifest_reader(repo, cluster, id)?;
        while let Some(item) = reader.next_item()? {
            if matches!(&item, Item::FileStart(start) if start.path == path.as_bytes()) {
                return Ok(Some(Known::new(reader, self.worn.clone(), window)));
            }
        }
        Ok(None)
    }

    /// Everything below a directory, of which at most so many chunks are held.
    pub(super) fn tree(&self, repo: &Repository, top: &[u8], window: usize) -> Result<KnownTree> {
        let reader = manifest_reader(repo, &self.record.cluster, &self.record.id)?;
        let mut known = Known::new(reader, self.worn.clone(), window);
        known.tree = Some(Tree { top: [top, b"/"].concat(), current: vec![], path: vec![] });
        Ok(KnownTree(known))
    }
}

#[derive(Clone, Copy)]
struct Place {
    id: ContentId,
    /// In the earlier manifest.
    pack: u32,
    frame: FrameAt,
    skip: u32,
    len: u32,
}

/// A window of an earlier part.
pub(super) struct Known {
    reader: ManifestReader,
    ended: bool,
    places: VecDeque<Place>,
    /// The number of the first place, counted from the beginning of the part.
    first: u64,
    by_id: HashMap<ContentId, u64>,
    waiting: VecDeque<Chunk>,
    /// Chunks asked for, and the number of the last one that was found: where the new part is in the old one.
    asked: u64,
    at: u64,
    window: usize,
    worn: HashSet<PackId>,
    numbers: HashMap<u32, u32>,
    /// None: it ends with its file.
    tree: Option<Tree>,
}

/// Many files, one after another, in the order of the manifest.
struct Tree {
    /// What their paths begin with.
    top: Vec<u8>,
    /// The file that is being read of the earlier backup, and the one that is being looked for.
    current: Vec<u8>,
    path: Vec<u8>,
}

/// What the earlier backup has below a directory. The new tree is expected to be much like the old one: a file is found wherever
/// it has moved to within the window, and where it was however large the tree is.
pub(crate) struct KnownTree(Known);

impl KnownTree {
    /// From now on chunks of this file are asked for; files come in the order of the manifest.
    pub fn enter(&mut self, path: &[u8]) -> Result<()> {
        let known = &mut self.0;
        while !known.ended && known.is_before(path) {
            known.read_one()?;
        }
        known.asked = 0;
        known.at = known.first + known.places.len() as u64;
        if let Some(tree) = &mut known.tree {
            tree.path = path.to_vec();
        }
        Ok(())
    }

    pub fn find(&mut self, id: &ContentId, len: usize, others: &Others) -> Result<Option<Chunk>> {
        self.0.find(id, len, others)
    }
}

impl Known {
    fn new(reader: ManifestReader, worn: HashSet<PackId>, window: usize) -> Self {
        Known {
            reader,
            ended: false,
            places: VecDeque::new(),
            first: 0,
            by_id: HashMap::new(),
            waiting: VecDeque::new(),
            asked: 0,
            at: 0,
            window: window.max(2),
            worn,
            numbers: HashMap::new(),
            tree: None,
        }
    }

    /// The same content as the earlier part has it, in terms of the new manifest.
    pub fn find(&mut self, id: &ContentId, len: usize, others: &Others) -> Result<Option<Chunk>> {
        self.asked += 1;
        self.advance()?;
        let Some(number) = self.by_id.get(id).copied() else { return Ok(None) };
        let place = number.checked_sub(self.first).and_then(|n| self.places.get(usize::try_from(n).ok()?)).copied();
        let Some(place) = place.filter(|p| p.id == *id && p.len as usize == len) else { return Ok(None) };
        self.at = self.at.max(number);
        let Some(pack) = self.number(place.pack, others) else { return Ok(None) };
        let part = Part { pack, frame: place.frame, skip: place.skip, len: place.len };
        Ok(Some(Chunk::Data { id: *id, parts: vec![part] }))
    }

    /// How the new manifest calls a pack of the old one; None for one that is to go.
    fn number(&mut self, old: u32, others: &Others) -> Option<u32> {
        if let Some(number) = self.numbers.get(&old) {
            return Some(*number);
        }
        let id = self.reader.pack(old).filter(|id| !self.worn.contains(id))?;
        let number = others.number(id);
        self.numbers.insert(old, number);
        Some(number)
    }

    /// The window goes along, by what was found and, where nothing is found, by what was asked.
    fn advance(&mut self) -> Result<()> {
        let read = self.first + self.places.len() as u64;
        let asked = if self.tree.is_some() { self.at.saturating_add(self.asked) } else { self.asked };
        let wanted = self.at.max(asked.min(read)) + self.window as u64 / 2;
        while !self.ended && (self.places.len() < self.window || self.lags(wanted)) {
            self.read_one()?;
        }
        Ok(())
    }

    /// Whether more is to be read although the window is full: of a tree not beyond the file that is looked for.
    fn lags(&self, wanted: u64) -> bool {
        let beyond = self.tree.as_ref().is_some_and(|t| path_order(&t.current, &t.path).is_gt());
        !beyond && self.first + (self.places.len() as u64) < wanted
    }

    /// Whether the window is full, and ends before this file.
    fn is_before(&self, path: &[u8]) -> bool {
        let before = self.tree.as_ref().is_some_and(|t| path_order(&t.current, path).is_lt());
        before && self.places.len() >= self.window
    }

    /// The next chunk goes into the window.
    fn read_one(&mut self) -> Result<()> {
        let Some(chunk) = self.next_chunk()? else {
            self.ended = true;
            return Ok(());
        };
        let Chunk::Data { id, parts } = &chunk else { return Ok(()) };
        let [part] = parts.as_slice() else { return Ok(()) };
        let number = self.first + self.places.len() as u64;
        let Part { pack, frame, skip, len } = *part;
        self.places.push_back(Place { id: *id, pack, frame, skip, len });
        self.by_id.insert(*id, number);
        if self.places.len() > self.window {
            self.forget_first();
        }
        Ok(())
    }

    fn forget_first(&mut self) {
        let Some(gone) = self.places.pop_front() else { return };
        if self.by_id.get(&gone.id) == Some(&self.first) {
            self.by_id.remove(&gone.id);
        }
        self.first += 1;
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        while self.waiting.is_empty() {
            match (self.reader.next_item()?, &mut self.tree) {
                (Some(Item::Chunks(chunks)), None) => self.waiting.extend(chunks),
                (Some(Item::Chunks(chunks)), Some(t)) if t.current.starts_with(&t.top) => self.waiting.extend(chunks),
                (Some(Item::FileStart(start)), Some(tree)) => tree.current = start.path,
                (None, _) | (Some(Item::FileEnd(_)), None) => return Ok(None),
                _ => {}
            }
        }
        Ok(self.waiting.pop_front())
    }
}

/// So that a place stays small: a million of them are held.
const _: () = assert!(std::mem::size_of::<Place>() <= 64 && std::mem::size_of::<Codec>() == 1);
