//! The earlier backup that an incremental one takes over from: chosen, checked, and read beside the walk through the
//! data directory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use pgark_pg::ControlFile;
use pgark_pg::wal::Changes;
use pgark_repo::catalog::{BackupEntry, BackupKind, BackupType, Catalog};
use pgark_repo::crypto::ContentId;
use pgark_repo::manifest::{Chunk, Item, ManifestReader, PackId, PackUse, packs_of, path_order};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::record::{BackupRecord, manifest_reader};
use pgark_repo::stream::Fingerprint;
use pgark_repo::{RepoError, Repository};

use crate::error::{EngineError, Result};

/// What the person asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Full,
    /// Since the last backup.
    Incremental,
    /// Since the last full backup.
    Differential,
}

/// An earlier backup that is whole, as far as a look at sizes can tell.
pub struct Parent {
    pub record: BackupRecord,
    pub packs: HashMap<PackId, Fingerprint>,
    /// Packs that are there for this line of backups alone, of which it uses little: what is used of them is read and
    /// stored anew, so that they can go.
    pub worn: HashSet<PackId>,
}

/// A pack of whose bytes less is used is worn.
const WORN_PERCENT: u64 = 25;
/// So much of worn packs is stored anew by one backup, at most.
const RENEWED_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The backup to take over from, or why there is none. `notes` gets what was passed over.
pub fn choose(
    wanted: Wanted,
    repo: &Repository,
    cluster: &ClusterName,
    catalog: &Catalog,
    control: &ControlFile,
    notes: &mut Vec<String>,
) -> Result<std::result::Result<Parent, String>> {
    let mut candidates = catalog.backups.iter().rev().filter(|b| {
        b.kind == BackupKind::Physical
            && b.system_id == control.system_id
            && (wanted == Wanted::Incremental || b.backup_type == BackupType::Full)
    });
    let Some(mut entry) = candidates.next() else {
        return Ok(Err("there is no earlier backup of this cluster".into()));
    };
    loop {
        match open(repo, cluster, catalog, entry) {
            Ok(parent) if parent.record.catalog_version != control.catalog_version => {
                return Ok(Err(format!("backup {} is of another version of PostgreSQL", entry.id)));
            }
            Ok(parent) => return Ok(Ok(parent)),
            Err(e) if e.is_damage() => notes.push(format!("backup {} is damaged and not built upon: {e}", entry.id)),
            Err(e) => return Err(e.into()),
        }
        match candidates.next() {
            Some(older) => entry = older,
            None => return Ok(Err("no earlier backup is whole".into())),
        }
    }
}

fn open(
    repo: &Repository,
    cluster: &ClusterName,
    catalog: &Catalog,
    entry: &BackupEntry,
) -> std::result::Result<Parent, RepoError> {
    let record = BackupRecord::load(repo, cluster, &entry.id, &entry.record)?;
    let (uses, print) = packs_of(manifest_reader(repo, cluster, &entry.id)?)?;
    if print != record.manifest {
        return Err(RepoError::corrupt(names::manifest(cluster, &entry.id), "not the manifest of this backup"));
    }
    check_presence(repo, cluster, &uses)?;
    let worn = worn(catalog, &uses);
    Ok(Parent { record, packs: uses.into_iter().map(|u| (u.id, u.fingerprint)).collect(), worn })
}

/// Of backups that are still listed nothing would be gained.
pub(crate) fn worn(catalog: &Catalog, uses: &[PackUse]) -> HashSet<PackId> {
    let mut candidates: Vec<&PackUse> = uses
        .iter()
        .filter(|u| catalog.backup(&u.id.backup).is_none() && u.used_bytes * 100 < u.fingerprint.size * WORN_PERCENT)
        .collect();
    candidates.sort_by_key(|u| (u.used_bytes, u.id.clone()));
    let mut total = 0;
    let affordable = candidates.into_iter().take_while(|u| {
        total += u.used_bytes;
        total <= RENEWED_BYTES_MAX
    });
    affordable.map(|u| u.id.clone()).collect()
}

/// A new backup must not rest on what is not there any more.
pub(crate) fn check_presence(
    repo: &Repository,
    cluster: &ClusterName,
    uses: &[PackUse],
) -> std::result::Result<(), RepoError> {
    let mut sizes: BTreeMap<&BackupId, HashMap<u32, u64>> = BTreeMap::new();
    for PackUse { id, fingerprint, .. } in uses {
        if !sizes.contains_key(&id.backup) {
            let mut found = HashMap::new();
            repo.store().list(&format!("{}/packs", names::backup_dir(cluster, &id.backup)), &mut |stat| {
                found.extend(names::pack_of(&stat.name).map(|n| (n, stat.size)));
                Ok(())
            })?;
            sizes.insert(&id.backup, found);
        }
        let size = sizes.get(&id.backup).and_then(|s| s.get(&id.number));
        if size != Some(&fingerprint.size) {
            let what = size.map_or("is missing".to_owned(), |n| format!("has {n} bytes, not {}", fingerprint.size));
            return Err(RepoError::corrupt(names::pack(cluster, &id.backup, id.number), what));
        }
    }
    Ok(())
}

/// A file as the earlier backup has it. Its chunks call packs by the new manifest's numbers.
#[derive(Clone, Debug, Default)]
pub struct BeforeFile {
    pub size: u64,
    pub chunks: Vec<Chunk>,
    starts: Vec<u64>,
}

impl BeforeFile {
    pub fn new(chunks: Vec<Chunk>) -> Self {
        let mut size = 0;
        let starts = chunks.iter().map(|c| {
            size += c.len();
            size - c.len()
        });
        let starts = starts.collect();
        BeforeFile { size, chunks, starts }
    }

    /// The chunk at this offset if it has this content.
    pub fn same(&self, offset: u64, content: &ContentId, len: usize) -> Option<Chunk> {
        let chunk = self.chunks.get(self.starts.binary_search(&offset).ok()?)?;
        if is_worn(chunk) {
            return None;
        }
        let same = matches!(chunk, Chunk::Data { id, .. } if id == content) && chunk.len() == len as u64;
        same.then(|| chunk.clone())
    }
}

/// Whether a chunk lies, at least in part, in a worn pack.
pub fn is_worn(chunk: &Chunk) -> bool {
    chunk.parts().iter().any(|p| p.pack == WORN)
}

/// Stands for every worn pack; the new manifest refers to none of them.
const WORN: u32 = u32::MAX;

/// Packs of other backups, in the order of the numbers that the new manifest calls them by.
pub type Others = Arc<Mutex<Vec<PackId>>>;

/// The earlier backup's files, asked for in the order of the walk.
pub struct Before {
    reader: ManifestReader,
    expected: Fingerprint,
    object: String,
    pending: Option<Item>,
    ended: bool,
    /// Packs of the earlier manifest as the new one calls them.
    numbers: HashMap<u32, u32>,
    taken: Others,
    worn: HashSet<PackId>,
    /// None: everything is read and compared by content.
    pub changes: Option<Changes>,
}

impl Before {
    pub fn open(repo: &Repository, cluster: &ClusterName, parent: &Parent, changes: Option<Changes>) -> Result<Self> {
        let id = &parent.record.id;
        Ok(Before {
            reader: manifest_reader(repo, cluster, id)?,
            expected: parent.record.manifest.clone(),
            object: names::manifest(cluster, id).to_string(),
            pending: None,
            ended: false,
            numbers: HashMap::new(),
            taken: Others::default(),
            worn: parent.worn.clone(),
            changes,
        })
    }

    pub fn taken(&self) -> Others {
        self.taken.clone()
    }

    fn next(&mut self) -> Result<Option<Item>> {
        if let Some(item) = self.pending.take() {
            return Ok(Some(item));
        }
        if self.ended {
            return Ok(None);
        }
        let item = self.reader.next_item()?;
        if item.is_none() {
            self.ended = true;
            if self.reader.fingerprint() != self.expected {
                return Err(RepoError::corrupt(&self.object, "it changed since it was checked").into());
            }
        }
        Ok(item)
    }

    /// The file of this path; paths are asked for in ascending order.
    pub fn file(&mut self, path: &[u8]) -> Result<Option<BeforeFile>> {
        while let Some(item) = self.next()? {
            let order = item.path().map(|p| path_order(p, path));
            match (order, item) {
                (Some(std::cmp::Ordering::Greater), item) => {
                    self.pending = Some(item);
                    return Ok(None);
                }
                (Some(std::cmp::Ordering::Equal), Item::FileStart(_)) => return self.content().map(Some),
                _ => {}
            }
        }
        Ok(None)
    }

    fn content(&mut self) -> Result<BeforeFile> {
        let mut all = vec![];
        loop {
            match self.next()? {
                Some(Item::Chunks(chunks)) => {
                    for mut chunk in chunks {
                        self.translate(&mut chunk)?;
                        all.push(chunk);
                    }
                }
                Some(Item::FileEnd(_)) => return Ok(BeforeFile::new(all)),
                Some(_) => {}
                None => return Err(RepoError::corrupt(&self.object, "ends within a file").into()),
            }
        }
    }

    fn translate(&mut self, chunk: &mut Chunk) -> Result<()> {
        let (Chunk::Data { parts, .. } | Chunk::Patched { parts, .. }) = chunk else { return Ok(()) };
        for part in parts {
            part.pack = match self.numbers.get(&part.pack) {
                Some(n) => *n,
                None => {
                    let id = self.reader.pack(part.pack);
                    let id =
                        id.ok_or_else(|| EngineError::from(RepoError::corrupt(&self.object, "an undeclared pack")))?;
                    if self.worn.contains(id) {
                        self.numbers.insert(part.pack, WORN);
                        part.pack = WORN;
                        continue;
                    }
                    let mut taken = self.taken.lock().expect("no thread panics with the lock");
                    let n = number_of_other(taken.len());
                    taken.push(id.clone());
                    self.numbers.insert(part.pack, n);
                    n
                }
            };
        }
        Ok(())
    }
}

/// How a manifest calls its own packs: even numbers. Those of other backups are odd.
pub fn number_of_own(pack: u32) -> u32 {
    pack.saturating_mul(2)
}

/// How a manifest calls the pack at this place among the others'.
pub fn number_of_other(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX / 2).saturating_mul(2) + 1
}

/// The position among the others' packs, or None for an own pack.
pub fn position_of_other(number: u32) -> Option<usize> {
    (number % 2 == 1).then_some(number as usize / 2)
}
