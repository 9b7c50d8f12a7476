//! A small repository with every kind of object and item in it, and the way back to what was put in.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use pgark_pg::WalFileName;
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_pg::wal::{Activity, Changes, SegmentExpect, scan_segment};
use pgark_repo::Repository;
use pgark_repo::catalog::{
    BackupEntry, BackupKind, BackupType, CatalogStore, Evidence, JobKind, Lineage, PhysicalFacts,
};
use pgark_repo::codec::{Compression, Decoder, Encoder};
use pgark_repo::crypto::Algorithm;
use pgark_repo::error::{RepoError, Result};
use pgark_repo::keyring::{NewKeys, Unlock};
use pgark_repo::manifest::{
    BadBlock, Chunk, Directory, FileEnd, FileStart, Item, ManifestReader, ManifestWriter, PackId, Part, Symlink,
};
use pgark_repo::names::{self, BackupId, ClusterName};
use pgark_repo::pack::{self, FrameAt, PackReader, PackWriter};
use pgark_repo::record::{BackupRecord, ConfigFile, Owner, TablespaceLink, Totals};
use pgark_repo::store::Store;
use pgark_repo::stream::Fingerprint;
use pgark_repo::wal::{SegmentData, SegmentHasher, WalArchive, WalIndex};

pub const PAGE: usize = 8192;
pub const SEGMENT: usize = 1 << 20;
pub const SYSTEM: SystemId = SystemId(7_123_456_789_012_345_678);

pub fn cluster() -> ClusterName {
    ClusterName::parse("main").unwrap()
}

pub fn backup_id(n: u32) -> BackupId {
    BackupId::parse(&format!("20260822-0315{n:02}F")).unwrap()
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_787_368_500 + second).unwrap()
}

pub fn segment_size() -> SegmentSize {
    SegmentSize::new(SEGMENT as u64).unwrap()
}

pub fn timeline(n: u32) -> TimelineId {
    TimelineId::new(n).unwrap()
}

pub fn segment(n: u64) -> SegmentName {
    SegmentName { timeline: timeline(1), segment: SegmentNo(n) }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Bytes that compress, the same for the same seed.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    (0..).flat_map(|i: u64| format!("row {} of {seed}; ", i / 7).into_bytes()).take(len).collect()
}

pub fn new_keys(encryption: Algorithm, passphrase: Option<&[u8]>, identity: &str) -> NewKeys {
    let plain = encryption == Algorithm::None;
    let recipient = |text: &str| text.parse::<age::x25519::Identity>().unwrap().to_public().to_string();
    let mut unlock = passphrase.filter(|_| !plain).map(Unlock::passphrase).unwrap_or_default();
    if !plain {
        unlock.age_identities = Some(identity.to_owned().into());
    }
    let age_recipients = if plain { vec![] } else { vec![recipient(identity)] };
    NewKeys { encryption, unlock, age_recipients, key_commands: vec![] }
}

pub fn lineage() -> Lineage {
    Lineage {
        system_id: SYSTEM,
        version_num: 150018,
        catalog_version: 202209061,
        segment_size: segment_size(),
        registered: at(0),
    }
}

/// What a restored backup would look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub nodes: BTreeMap<Vec<u8>, Node>,
    pub bad_blocks: Vec<(Vec<u8>, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Directory { mode: u32 },
    Link { target: Vec<u8> },
    File { mode: u32, modified_ns: i64, content: Vec<u8> },
    Vanished,
}

struct Packs<'a> {
    repo: &'a Repository,
    id: &'a BackupId,
    open: Option<PackWriter>,
    number: u32,
    items: Vec<Item>,
    stored: u64,
}

impl Packs<'_> {
    fn begin(&mut self) -> Result<()> {
        let name = names::pack(&cluster(), self.id, self.number);
        self.open = Some(PackWriter::create(&**self.repo.store(), self.repo.keys(), &name)?);
        self.items.push(Item::Pack(self.number, PackId::new(self.id, self.number)));
        Ok(())
    }

    fn frame(&mut self, compression: Compression, plain: &[u8]) -> Result<FrameAt> {
        let mut encoded = vec![];
        let codec = Encoder::new(compression)?.encode(plain, &mut encoded)?;
        let id = self.repo.keys().content_id(plain);
        self.open.as_mut().unwrap().append(codec, plain.len(), id, &mut encoded)
    }

    fn end(&mut self) -> Result<()> {
        let print = self.open.take().unwrap().seal()?.commit()?;
        self.stored += print.size;
        self.items.push(Item::PackDone(self.number, print));
        self.number += 1;
        Ok(())
    }

    fn data(&self, pieces: &[(u32, FrameAt, u32, u32)], plain: &[u8]) -> Chunk {
        let parts =
            pieces.iter().map(|(pack, frame, skip, len)| Part { pack: *pack, frame: *frame, skip: *skip, len: *len });
        Chunk::Data { id: self.repo.keys().content_id(plain), parts: parts.collect() }
    }
}

fn whole(pack: u32, frame: FrameAt) -> (u32, FrameAt, u32, u32) {
    (pack, frame, 0, frame.plain_len)
}

/// Writes the packs, the manifest and the record of a backup whose content depends on its id.
pub fn write_backup(repo: &Repository, id: &BackupId) -> Result<(BackupEntry, Tree)> {
    let seed = id.as_str().bytes().map(u64::from).sum();
    let (big, lz, raw) = (text(seed, 3 * PAGE), text(seed + 1, PAGE), noise(seed, PAGE));
    let mut packs = Packs { repo, id, open: None, number: 0, items: vec![], stored: 0 };
    packs.begin()?;
    let version = packs.frame(Compression::None, b"15\n")?;
    let big_at = packs.frame(Compression::DEFAULT, &big)?;
    let lz_at = packs.frame(Compression::Lz4, &lz)?;
    packs.end()?;
    packs.begin()?;
    let raw_at = packs.frame(Compression::DEFAULT, &raw)?;
    packs.end()?;

    let page = PAGE as u32;
    let mixed = [&big[PAGE..2 * PAGE], &raw[..100], &lz[..]].concat();
    let sparse = [&big[..], &vec![0; 5 * PAGE], &lz[..]].concat();
    let files: Vec<(&str, Vec<Chunk>, Vec<u8>)> = vec![
        ("PG_VERSION", vec![packs.data(&[whole(0, version)], b"15\n")], b"15\n".to_vec()),
        (
            "base/1/100",
            {
                let zero = Chunk::Zero(5 * PAGE as u64);
                vec![packs.data(&[whole(0, big_at)], &big), zero, packs.data(&[whole(0, lz_at)], &lz)]
            },
            sparse,
        ),
        (
            "base/1/200",
            { vec![packs.data(&[(0, big_at, page, page), (1, raw_at, 0, 100), whole(0, lz_at)], &mixed)] },
            mixed,
        ),
        (
            "base/1/250",
            {
                let part = |frame, skip, len| Part { pack: 0, frame, skip, len };
                let ids = [&big, &lz].map(|plain| repo.keys().content_id(plain));
                let parts = vec![part(big_at, 2 * page, page), part(lz_at, 0, 10), part(big_at, 0, 7)];
                vec![Chunk::Patched { parts, frames: vec![ids[0], ids[1], ids[0]] }]
            },
            [&big[2 * PAGE..3 * PAGE], &lz[..10], &big[..7]].concat(),
        ),
        ("base/1/empty", vec![], vec![]),
        ("base/1/raw", vec![packs.data(&[whole(1, raw_at)], &raw)], raw),
    ];
    let tree = tree_of(&files);
    let mut manifest = ManifestWriter::create(&**repo.store(), repo.keys(), &names::manifest(&cluster(), id))?;
    for item in std::mem::take(&mut packs.items) {
        manifest.push(&item)?;
    }
    for item in items_of(&tree, &files) {
        manifest.push(&item)?;
    }
    let manifest = manifest.finish()?;
    let size = files.iter().map(|f| f.2.len() as u64).sum();
    let record =
        record_of(id, manifest, Totals { size_bytes: size, stored_bytes: packs.stored, packs: 2, ..Totals::default() });
    let print = record.store(repo)?;
    Ok((entry_of(&record, print), tree))
}

fn tree_of(files: &[(&str, Vec<Chunk>, Vec<u8>)]) -> Tree {
    let mut tree = Tree::default();
    for path in ["", "base", "base/1", "pg_wal"] {
        tree.nodes.insert(path.into(), Node::Directory { mode: 0o700 });
    }
    tree.nodes.insert(b"base/1/300".to_vec(), Node::Vanished);
    tree.nodes.insert(b"base/1/link".to_vec(), Node::Link { target: b"../../somewhere else".to_vec() });
    for (path, _, content) in files {
        let node = Node::File { mode: 0o600, modified_ns: 1_787_000_000_123_456_789, content: content.clone() };
        tree.nodes.insert(path.as_bytes().to_vec(), node);
    }
    tree.bad_blocks.push((b"base/1/200".to_vec(), 1));
    tree
}

fn items_of(tree: &Tree, files: &[(&str, Vec<Chunk>, Vec<u8>)]) -> Vec<Item> {
    let mut sorted: Vec<_> = tree.nodes.iter().collect();
    sorted.sort_by(|a, b| pgark_repo::manifest::path_order(a.0, b.0));
    let mut items = vec![];
    for (path, node) in sorted {
        let path = path.clone();
        match node {
            Node::Directory { mode } => items.push(Item::Directory(Directory { path, mode: *mode })),
            Node::Link { target } => items.push(Item::Symlink(Symlink { path, target: target.clone() })),
            Node::Vanished => items.push(Item::Vanished(path)),
            Node::File { mode, modified_ns, content } => {
                let chunks = &files.iter().find(|f| f.0.as_bytes() == path).unwrap().1;
                items.push(Item::FileStart(FileStart { path: path.clone(), mode: *mode, modified_ns: *modified_ns }));
                if !chunks.is_empty() {
                    items.push(Item::Chunks(chunks.clone()));
                }
                for (file, block) in tree.bad_blocks.iter().filter(|b| b.0 == path) {
                    items.push(Item::BadBlock(BadBlock { file: file.clone(), block: *block }));
                }
                items.push(Item::FileEnd(FileEnd { size: content.len() as u64 }));
            }
        }
    }
    items
}

/// Reads a listed backup through record, manifest and packs, and checks everything that a restore checks.
pub fn read_backup(repo: &Repository, entry: &BackupEntry) -> Result<(BackupRecord, Tree)> {
    let record = BackupRecord::load(repo, &cluster(), &entry.id, &entry.record)?;
    let tree = read_tree(repo, &entry.id, &record.manifest)?;
    Ok((record, tree))
}

pub fn read_tree(repo: &Repository, id: &BackupId, print: &Fingerprint) -> Result<Tree> {
    let name = names::manifest(&cluster(), id);
    let mut reader = ManifestReader::open(repo.store().clone(), repo.keys(), &name)?;
    let mut tree = Tree::default();
    let mut file: Option<(FileStart, Vec<u8>)> = None;
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Directory(d) => drop(tree.nodes.insert(d.path, Node::Directory { mode: d.mode })),
            Item::Symlink(s) => drop(tree.nodes.insert(s.path, Node::Link { target: s.target })),
            Item::Vanished(path) => drop(tree.nodes.insert(path, Node::Vanished)),
            Item::BadBlock(b) => tree.bad_blocks.push((b.file, b.block)),
            Item::FileStart(start) => file = Some((start, vec![])),
            Item::Chunks(chunks) => {
                for chunk in &chunks {
                    file.as_mut().unwrap().1.extend(read_chunk(repo, &reader, chunk)?);
                }
            }
            Item::FileEnd(_) => {
                let (start, content) = file.take().unwrap();
                let node = Node::File { mode: start.mode, modified_ns: start.modified_ns, content };
                tree.nodes.insert(start.path, node);
            }
            Item::Pack(..) => {}
            Item::Attributes(_) | Item::HardLink(_) => panic!("of backups of files alone"),
            Item::PackDone(index, print) => {
                let id = reader.pack(index).unwrap();
                let name = names::pack(&cluster(), &id.backup, id.number);
                pack::verify(repo.store(), repo.keys(), &name, &print)?;
            }
        }
    }
    if reader.fingerprint() != *print {
        return Err(RepoError::corrupt(name, "not the manifest that the record names"));
    }
    Ok(tree)
}

fn read_chunk(repo: &Repository, reader: &ManifestReader, chunk: &Chunk) -> Result<Vec<u8>> {
    let mut content = vec![];
    for (n, part) in chunk.parts().iter().enumerate() {
        let pack = reader.pack(part.pack).unwrap();
        let name = names::pack(&cluster(), &pack.backup, pack.number);
        let plain = read_frame(&PackReader::open(repo.store().clone(), repo.keys(), &name)?, &part.frame)?;
        if matches!(chunk, Chunk::Patched { frames, .. } if repo.keys().content_id(&plain) != frames[n]) {
            return Err(RepoError::corrupt("a frame", "not what was read from the database"));
        }
        let from = part.skip as usize;
        content.extend_from_slice(&plain[from..from + part.len as usize]);
    }
    match chunk {
        Chunk::Zero(len) => content.resize(usize::try_from(*len).unwrap(), 0),
        Chunk::Data { id, .. } if repo.keys().content_id(&content) != *id => {
            return Err(RepoError::corrupt("a chunk", "not what was read from the database"));
        }
        _ => {}
    }
    Ok(content)
}

pub fn read_frame(reader: &PackReader, at: &FrameAt) -> Result<Vec<u8>> {
    let (mut stored, mut plain) = (vec![], vec![]);
    reader.fetch(at.offset, at.stored_len as usize, &mut stored)?;
    reader.decode(at, &mut stored, &mut Decoder::new()?, &mut plain)?;
    Ok(plain)
}

fn record_of(id: &BackupId, manifest: Fingerprint, totals: Totals) -> BackupRecord {
    BackupRecord {
        id: id.clone(),
        cluster: cluster(),
        kind: BackupKind::Physical,
        backup_type: BackupType::Full,
        program: "pgark 0.1.0".into(),
        system_id: SYSTEM,
        version_num: 150018,
        catalog_version: 202209061,
        segment_size: segment_size(),
        block_size: 8192,
        data_checksums: true,
        timeline: timeline(1),
        lsn_start: Lsn(0x20_0028),
        lsn_stop: Lsn(0x20_0138),
        started: at(0),
        finished: at(60),
        from_standby: false,
        backup_label: b"START WAL LOCATION: 0/200028 (file 000000010000000000000002)\n".to_vec(),
        pg_control: noise(99, 512),
        tablespaces: vec![TablespaceLink { oid: 16385, location: b"/srv/fast disk".to_vec(), in_place: false }],
        config_files: vec![ConfigFile {
            name: "pg_hba.conf".into(),
            path: "/etc/postgresql/pg_hba.conf".into(),
            content: b"local all all peer\n".to_vec(),
        }],
        owner: Owner { uid: 70, gid: 70, mode: 0o700 },
        manifest,
        totals,
        bad_blocks: 1,
        vanished_files: 1,
        base: None,
        full_because: None,
        warnings: vec!["1 page of base/1/200 fails its checksum".into()],
    }
}

fn entry_of(r: &BackupRecord, record: Fingerprint) -> BackupEntry {
    BackupEntry {
        id: r.id.clone(),
        kind: r.kind,
        backup_type: r.backup_type,
        system_id: r.system_id,
        version_num: r.version_num,
        started: r.started,
        finished: r.finished,
        physical: Some(PhysicalFacts {
            lsn_start: r.lsn_start,
            lsn_stop: r.lsn_stop,
            stopped: r.finished,
            timeline: r.timeline,
            bad_blocks: r.bad_blocks,
            from_standby: r.from_standby,
        }),
        size_bytes: r.totals.size_bytes,
        read_bytes: r.totals.read_bytes,
        stored_bytes: r.totals.stored_bytes,
        database_bytes: None,
        series: None,
        kept: false,
        kept_until: None,
        holds: vec![],
        damaged: None,
        certain: None,
        evidence: Evidence::Stored,
        drilled: None,
        annotations: BTreeMap::from([("ticket".to_owned(), "OPS-17".to_owned())]),
        needs: vec![],
        record,
    }
}

/// A WAL segment as a server of version 15 would leave it after `pg_switch_wal()`: records of several pages,
/// a switch, zeros.
pub fn wal_segment(name: &SegmentName, seed: u64) -> Vec<u8> {
    let start = name.segment.start(segment_size()).0;
    let mut out: Vec<u8> = vec![];
    let header = |out: &mut Vec<u8>, remaining: usize| {
        let long = out.is_empty();
        let info = u16::from(remaining > 0) | if long { 2 } else { 0 };
        out.extend(0xD110u16.to_le_bytes());
        out.extend(info.to_le_bytes());
        out.extend(name.timeline.get().to_le_bytes());
        out.extend((start + out.len() as u64 - 8).to_le_bytes());
        out.extend(u32::try_from(remaining).unwrap().to_le_bytes());
        out.extend([0; 4]);
        if long {
            out.extend(SYSTEM.0.to_le_bytes());
            out.extend((SEGMENT as u32).to_le_bytes());
            out.extend((PAGE as u32).to_le_bytes());
        }
    };
    let mut previous = start.saturating_sub(100);
    for n in 0..30u64 {
        let last = n == 29;
        let main = if last { vec![] } else { noise(seed * 100 + n, 90 + (n as usize * 37) % 150) };
        if out.len().is_multiple_of(PAGE) {
            header(&mut out, 0);
        }
        let mut body = record(previous, if last { 0x40 } else { 0x20 }, &main);
        previous = start + out.len() as u64;
        while out.len() % PAGE + body.len() > PAGE {
            let rest = body.split_off(PAGE - out.len() % PAGE);
            out.append(&mut body);
            header(&mut out, rest.len());
            body = rest;
        }
        out.append(&mut body);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out.resize(SEGMENT, 0);
    out
}

/// One record of the resource manager XLOG: a no-op with data, or a switch.
fn record(previous: u64, info: u8, main: &[u8]) -> Vec<u8> {
    let head = if main.is_empty() { 0 } else { 2 };
    let mut body = u32::try_from(24 + head + main.len()).unwrap().to_le_bytes().to_vec();
    body.extend([0; 4]);
    body.extend(previous.to_le_bytes());
    body.extend([info, 0, 0, 0, 0, 0, 0, 0]);
    if !main.is_empty() {
        body.extend([255, u8::try_from(main.len()).unwrap()]);
        body.extend_from_slice(main);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body[24..]), &body[..20]);
    body[20..24].copy_from_slice(&crc.to_le_bytes());
    body
}

pub fn index_of(name: &SegmentName, bytes: &[u8]) -> WalIndex {
    let expect =
        SegmentExpect { timeline: name.timeline, segment: name.segment, size: segment_size(), system_id: Some(SYSTEM) };
    let scan = scan_segment(bytes, expect, &mut ()).unwrap();
    let mut index = WalIndex::new(&scan, Activity::default(), *name, String::new(), String::new());
    let mut hasher = SegmentHasher::new(index.valid_bytes());
    hasher.update(bytes);
    (_, index.content, index.valid_content) = hasher.finish();
    index
}

pub fn archive(repo: &Repository) -> WalArchive {
    WalArchive::new(repo, &cluster(), SYSTEM)
}

pub fn read_segment(archive: &WalArchive, name: &SegmentName) -> Result<(WalIndex, Vec<u8>)> {
    let mut reader = archive.open_segment(name, segment_size())?;
    let mut bytes = vec![];
    while let Some(block) = reader.next()? {
        bytes.extend_from_slice(block);
    }
    Ok((reader.index, bytes))
}

pub const HISTORY: &[u8] = b"1\t0/300000\tno recovery target specified\n";
pub const BACKUP_HISTORY: &[u8] = b"START WAL LOCATION: 0/200028 (file 000000010000000000000002)\nLABEL: nightly\n";

pub fn history_file() -> WalFileName {
    WalFileName::History(timeline(2))
}

pub fn backup_history_file() -> WalFileName {
    WalFileName::parse("000000010000000000000002.00000028.backup").unwrap()
}

pub fn push_wal(repo: &Repository, numbers: &[u64]) -> Result<()> {
    let archive = archive(repo);
    for n in numbers {
        let bytes = wal_segment(&segment(*n), *n);
        let (_, copy) = archive.push_segment(
            &index_of(&segment(*n), &bytes),
            &Changes::default(),
            &mut SegmentData::Memory(&bytes),
        )?;
        archive.acknowledge(&[(segment(*n), copy)])?;
    }
    Ok(())
}

pub fn push_side_files(repo: &Repository) -> Result<()> {
    let archive = archive(repo);
    archive.push_side_file(&history_file(), HISTORY)?;
    archive.acknowledge_history(timeline(2))?;
    archive.push_side_file(&backup_history_file(), BACKUP_HISTORY)?;
    Ok(())
}

/// Backups 1 to `backups`, segments 2 to 4, the `.partial` of 5, side files.
pub fn fill(repo: &Repository, backups: u32) -> Result<BTreeMap<BackupId, Tree>> {
    let catalog = CatalogStore::new(repo, &cluster());
    catalog.register(&lineage(), false)?;
    let mut trees = BTreeMap::new();
    for n in 1..=backups {
        let claim = catalog.claim(JobKind::Backup, &backup_id(n), at(0))?;
        let (entry, tree) = write_backup(repo, &backup_id(n))?;
        claim.commit_backup(&entry)?;
        trees.insert(entry.id, tree);
    }
    push_wal(repo, &[2, 3, 4])?;
    push_side_files(repo)?;
    let bytes = wal_segment(&segment(5), 5);
    archive(repo).push_partial(&index_of(&segment(5), &bytes), &mut SegmentData::Memory(&bytes))?;
    Ok(trees)
}

pub fn partial_object() -> pgark_repo::store::ObjectName {
    let place = names::WalPlace { cluster: cluster(), system_id: SYSTEM };
    place.file(timeline(1), &format!("{}.partial", segment(5).format(segment_size()))).unwrap()
}

pub fn init(store: Arc<dyn Store>, new: &NewKeys) -> Repository {
    Repository::init(store, new).unwrap().0
}
