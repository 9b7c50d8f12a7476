//! Bytes that nobody honest wrote. Without encryption an attacker can compute every checksum, so decoders must
//! stand bytes that pass them: no panic, no wrong success, nothing allocated by a length that was only declared.

use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::codec::Codec;
use pgark_repo::crypto::{Algorithm, KeySet, ObjectKind, Purpose, TAG_BYTES};
use pgark_repo::keyring::{Keyring, Unlock};
use pgark_repo::limits::{BLOCK_BYTES_MAX, FRAME_BYTES_MAX, KEYRING_SLOTS_MAX, PACK_TOC_BYTES_MAX, REGISTER_BYTES_MAX};
use pgark_repo::manifest::{Item, ManifestReader};
use pgark_repo::names;
use pgark_repo::pack;
use pgark_repo::record::BackupRecord;
use pgark_repo::store::{LocalStore, MemoryStore, ObjectName, Store};
use pgark_repo::stream::{Fingerprint, open_bytes, seal_bytes};
use pgark_repo::wal::{WalHead, WalIndex};
use proptest::prelude::*;

use crate::common::{TestDir, keys, memory_repository, name, objects};
use crate::meter::Meter;
use crate::sample::{self, archive, backup_id, cluster, segment};

fn plain_keys() -> KeySet {
    KeySet::unencrypted()
}

fn print_of(bytes: &[u8]) -> Fingerprint {
    Fingerprint { size: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
}

/// An unencrypted repository in which these bytes, properly sealed, are the only object of their kind.
fn with_object(kind: ObjectKind, object: &ObjectName, plain: &[u8]) -> (Repository, Fingerprint) {
    let (store, repo) = memory_repository(Algorithm::None);
    let sealed = seal_bytes(repo.keys(), kind, object, plain).unwrap();
    store.put_new(object, &sealed).unwrap();
    (repo, print_of(&sealed))
}

/// Reads a manifest to its end or its first error; returns how many items there were.
fn drain(mut reader: ManifestReader) -> pgark_repo::Result<usize> {
    let mut n = 0;
    while let Some(item) = reader.next_item()? {
        if let Item::Chunks(chunks) = &item {
            for c in chunks {
                assert!(!c.is_empty(), "an empty chunk");
                assert!(c.parts().is_empty() || c.len() <= FRAME_BYTES_MAX as u64, "a chunk larger than a frame");
            }
        }
        if let Some(path) = item.path() {
            assert!(pgark_repo::manifest::check_path(path));
        }
        n += 1;
    }
    Ok(n)
}

fn read_manifest(plain: &[u8]) -> pgark_repo::Result<usize> {
    let object = names::manifest(&cluster(), &backup_id(1));
    let (repo, _) = with_object(ObjectKind::Manifest, &object, plain);
    drain(ManifestReader::open(repo.store().clone(), repo.keys(), &object)?)
}

fn read_record(plain: &[u8]) -> pgark_repo::Result<BackupRecord> {
    let object = names::record(&cluster(), &backup_id(1));
    let (repo, print) = with_object(ObjectKind::BackupRecord, &object, plain);
    BackupRecord::load(&repo, &cluster(), &backup_id(1), &print)
}

/// A register's value as it is stored: one mark, then the value.
fn with_mark(value: &[u8]) -> Vec<u8> {
    [&[1u8][..], &[7; 8], value].concat()
}

fn read_catalog(stored: &[u8]) -> pgark_repo::Result<()> {
    let object = name(&format!("{}/{:016x}", names::catalog_dir(&cluster()), 1));
    let (repo, _) = with_object(ObjectKind::Catalog, &object, stored);
    CatalogStore::new(&repo, &cluster()).read().map(drop)
}

fn read_head(stored: &[u8]) -> pgark_repo::Result<WalHead> {
    let (_, repo) = memory_repository(Algorithm::None);
    let object = name(&format!("{}/{:016x}", archive(&repo).place().head_dir(), 1));
    let (repo, _) = with_object(ObjectKind::WalHead, &object, stored);
    archive(&repo).head()
}

fn read_wal(index: &[u8], data: &[u8]) -> pgark_repo::Result<Vec<u8>> {
    let (store, repo) = memory_repository(Algorithm::None);
    let object = archive(&repo).place().file(sample::timeline(1), &segment(2).format(sample::segment_size())).unwrap();
    let sink = pgark_repo::stream::Sink::Memory(vec![]);
    let compression = pgark_repo::codec::Compression::DEFAULT;
    let mut w =
        pgark_repo::stream::StreamWriter::new(repo.keys(), ObjectKind::WalSegment, &object, sink, compression).unwrap();
    w.write_block(index).unwrap();
    w.write(data).unwrap();
    let pgark_repo::stream::Sink::Memory(sealed) = w.seal().unwrap().0 else { panic!("sealed into memory") };
    store.put_new(&object, &sealed).unwrap();
    Ok(sample::read_segment(&archive(&repo), &segment(2))?.1)
}

/// What honest writers put into the objects, to start mutations from.
struct Honest {
    manifest: Vec<u8>,
    record: Vec<u8>,
    catalog: Vec<u8>,
    head: Vec<u8>,
    index: Vec<u8>,
    ring: Vec<u8>,
}

fn honest() -> &'static Honest {
    static HONEST: std::sync::OnceLock<Honest> = std::sync::OnceLock::new();
    HONEST.get_or_init(|| {
        let (store, repo) = memory_repository(Algorithm::None);
        sample::fill(&repo, 1).unwrap();
        let manifest = names::manifest(&cluster(), &backup_id(1));
        let sealed = store.read(&manifest, u64::MAX).unwrap();
        let manifest = open_bytes(repo.keys(), ObjectKind::Manifest, &manifest, sealed, 1 << 20).unwrap();
        let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
        let entry = &catalog.backups[0];
        let record = BackupRecord::load(&repo, &cluster(), &entry.id, &entry.record).unwrap();
        let index = sample::index_of(&segment(2), &sample::wal_segment(&segment(2), 2)).to_bytes();
        let head = archive(&repo).head().unwrap().to_bytes();
        let ring = Repository::ring_bytes(&(store as Arc<dyn Store>)).unwrap();
        let json = |v: serde_json::Result<Vec<u8>>| v.unwrap();
        Honest {
            manifest,
            record: json(serde_json::to_vec(&record)),
            catalog: json(serde_json::to_vec(&catalog)),
            head,
            index,
            ring,
        }
    })
}

#[test]
fn honest_bytes_are_read() {
    let h = honest();
    assert!(read_manifest(&h.manifest).unwrap() > 15);
    read_record(&h.record).unwrap();
    read_catalog(&with_mark(&h.catalog)).unwrap();
    assert!(!read_head(&with_mark(&h.head)).unwrap().timelines().is_empty());
    assert_eq!(read_wal(&h.index, &sample::wal_segment(&segment(2), 2)).unwrap().len(), sample::SEGMENT);
    Keyring::open(&h.ring, &Unlock::default()).unwrap();
}

/// A change that leaves most of the bytes as they were.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Cut(usize, usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

const NASTY: [&str; 10] = [
    "18446744073709551615",
    "-1",
    "0",
    "1e400",
    "null",
    "[]",
    "{}",
    "\"\"",
    "\"\\u0000../..\"",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

fn change() -> impl Strategy<Value = Change> {
    let insert = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..12),
        prop::sample::select(&NASTY[..]).prop_map(|s| s.as_bytes().to_vec()),
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, b)| Change::Set(at, b)),
        (any::<usize>(), 1usize..40).prop_map(|(at, n)| Change::Cut(at, n)),
        (any::<usize>(), insert).prop_map(|(at, b)| Change::Insert(at, b)),
        (any::<usize>(), 1usize..200).prop_map(|(at, n)| Change::Repeat(at, n)),
    ]
}

fn apply(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for c in changes {
        let len = out.len().max(1);
        match c {
            Change::Set(at, b) => {
                if let Some(byte) = out.get_mut(at % len) {
                    *byte = *b;
                }
            }
            Change::Cut(at, n) => {
                let from = (at % len).min(out.len());
                out.drain(from..(from + n).min(out.len()));
            }
            Change::Insert(at, b) => {
                let from = (at % len).min(out.len());
                out.splice(from..from, b.iter().copied());
            }
            Change::Repeat(at, n) => {
                let from = (at % len).min(out.len());
                let piece = out[from..(from + n).min(out.len())].to_vec();
                out.splice(from..from, piece);
            }
        }
    }
    out
}

/// A JSON text with one number or string replaced.
fn replace_value(text: &[u8], which: usize, by: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(text).into_owned();
    let colons: Vec<_> = text.match_indices(':').map(|m| m.0 + 1).collect();
    let Some(&from) = colons.get(which % colons.len().max(1)) else { return text.into_bytes() };
    let to = text[from..].find([',', '}']).map_or(text.len(), |n| from + n);
    format!("{}{by}{}", &text[..from], &text[to..]).into_bytes()
}

fn read_all_json(h: &Honest, mutate: &dyn Fn(&[u8]) -> Vec<u8>) {
    if let Ok(r) = read_record(&mutate(&h.record)) {
        assert_eq!((r.id, r.cluster), (backup_id(1), cluster()));
    }
    let _ = read_catalog(&with_mark(&mutate(&h.catalog)));
    if let Ok(head) = read_head(&with_mark(&mutate(&h.head))) {
        check_head(&head);
    }
    if let Ok(index) = WalIndex::from_bytes(&mutate(&h.index)) {
        use_index(&index);
    }
    let _ = Keyring::open(&mutate(&h.ring), &Unlock::default());
}

/// Whatever a head says, one can ask it everything.
fn check_head(head: &WalHead) {
    let mut again = head.clone();
    for span in head.timelines() {
        let _ = (span.first(), span.last(), span.gaps());
        for (a, b) in &span.ranges {
            assert_eq!(span.unbroken_to(pgark_pg::value::SegmentNo(*a)), Some(pgark_pg::value::SegmentNo(*b)));
        }
        for n in [0, 1, u64::MAX - 1, u64::MAX] {
            let name = pgark_pg::value::SegmentName { timeline: span.timeline, segment: pgark_pg::value::SegmentNo(n) };
            again.add_segment(&name, 0);
        }
    }
    assert_eq!(WalHead::from_bytes(&again.to_bytes()).as_ref(), Ok(&again));
}

fn use_index(index: &WalIndex) {
    let _ = (index.tail_and_leading(), index.last_starts(), index.segment_name().format(index.segment_size));
    assert!(index.valid_bytes() <= index.segment_size.bytes());
    assert_eq!(WalIndex::from_bytes(&index.to_bytes()).as_ref(), Ok(index));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_manifests_never_panic(changes in prop::collection::vec(change(), 1..4)) {
        let _ = read_manifest(&apply(&honest().manifest, &changes));
    }

    #[test]
    fn mutated_texts_never_panic(changes in prop::collection::vec(change(), 1..4)) {
        read_all_json(honest(), &|text| apply(text, &changes));
    }

    #[test]
    fn texts_with_a_nasty_value_never_panic(which in any::<usize>(), by in prop::sample::select(&NASTY[..])) {
        read_all_json(honest(), &|text| replace_value(text, which, by));
    }

    #[test]
    fn random_plaintext_never_panics(plain in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = read_manifest(&plain);
        prop_assert!(read_record(&plain).is_err());
        prop_assert!(read_catalog(&plain).is_err());
        prop_assert!(read_head(&plain).is_err());
        prop_assert!(WalIndex::from_bytes(&plain).is_err());
        prop_assert!(Keyring::open(&plain, &Unlock::default()).is_err());
        prop_assert!(Keyring::open(&plain, &Unlock::passphrase(b"x")).is_err());
    }

    /// Properly sealed frames, table and footer around whatever the attacker likes.
    #[test]
    fn forged_packs_never_panic(
        frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), 0u8..4, 0u32..5000), 0..5),
        table_noise in prop::collection::vec(change(), 0..2),
        footer_noise in prop::collection::vec((0usize..24, any::<u8>()), 0..2),
    ) {
        let (bytes, honest) = forge_pack(&frames, &table_noise, &footer_noise);
        let verified = verify_forged(&bytes);
        prop_assert!(verified.is_err() || honest);
    }

    #[test]
    fn random_objects_never_panic(
        kind in prop::sample::select(&[ObjectKind::Pack, ObjectKind::Manifest, ObjectKind::WalSegment][..]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let object = name("x");
        let (header, _) = plain_keys().new_object(kind, &object).unwrap();
        let bytes = [&header[..], &rest].concat();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        store.put_new(&object, &bytes).unwrap();
        prop_assert!(pack::verify(&store, &plain_keys(), &object, &print_of(&bytes)).is_err());
        prop_assert!(open_bytes(&plain_keys(), kind, &object, bytes, 1 << 20).is_err());
    }
}

/// Returns the pack and whether everything in it is as an honest writer would have it.
fn forge_pack(frames: &[(Vec<u8>, u8, u32)], table_noise: &[Change], footer_noise: &[(usize, u8)]) -> (Vec<u8>, bool) {
    use pgark_repo::manifest::bytes::put_varint;
    let keys = plain_keys();
    let (header, key) = keys.new_object(ObjectKind::Pack, &name("p")).unwrap();
    let (mut bytes, mut table) = (header.to_vec(), vec![]);
    let mut honest = true;
    for (content, codec, declared) in frames {
        let exact = *codec == Codec::None as u8;
        let plain_len = if exact { u32::try_from(content.len()).unwrap() } else { *declared };
        honest &= exact;
        let mut aad = vec![*codec];
        aad.extend(plain_len.to_le_bytes());
        let mut stored = content.clone();
        key.seal(Purpose::Frame, bytes.len() as u64, &aad, &mut stored, 0);
        bytes.extend(&stored);
        put_varint(&mut table, stored.len() as u64);
        put_varint(&mut table, plain_len.into());
        table.push(*codec);
        table.extend(keys.content_id(content).0);
    }
    let forged = apply(&table, table_noise);
    honest &= forged == table;
    let mut table = forged;
    let offset = bytes.len() as u64;
    let mut footer = offset.to_le_bytes().to_vec();
    footer.extend(u32::try_from(table.len() + TAG_BYTES).unwrap().to_le_bytes());
    footer.extend(u32::try_from(frames.len()).unwrap().to_le_bytes());
    footer.extend(b"PGARKTOC");
    let true_footer = footer.clone();
    footer_noise.iter().for_each(|(at, b)| footer[*at] = *b);
    honest &= footer == true_footer;
    key.seal(Purpose::TableOfContents, offset, &footer, &mut table, 0);
    (bytes.into_iter().chain(table).chain(footer).collect(), honest)
}

fn verify_forged(bytes: &[u8]) -> pgark_repo::Result<u64> {
    let meter = Meter::new(Arc::new(MemoryStore::new()));
    meter.put_new(&name("p"), bytes).unwrap();
    let store: Arc<dyn Store> = meter.clone();
    let verified = pack::verify(&store, &plain_keys(), &name("p"), &print_of(bytes));
    assert!(meter.largest() <= bytes.len() as u64, "{} wanted of {}", meter.largest(), bytes.len());
    verified
}

#[test]
fn an_honest_pack_verifies() {
    let frames = [(vec![1; 100], 0, 0), (vec![2; 50], 0, 0)];
    let (bytes, honest) = forge_pack(&frames, &[], &[]);
    assert!(honest);
    assert_eq!(verify_forged(&bytes).unwrap(), bytes.len() as u64);
}

#[test]
fn declared_block_lengths_are_limited_before_anything_is_read() {
    let keys = plain_keys();
    let object = name("x");
    let max = u32::try_from(BLOCK_BYTES_MAX).unwrap();
    for (stored, plain) in
        [(u32::MAX, u32::MAX), (u32::MAX, 0), (0, u32::MAX), (max + 17, max), (max, max), (16, max + 1), (17, 0)]
    {
        let (header, _) = keys.new_object(ObjectKind::Manifest, &object).unwrap();
        let mut bytes = header.to_vec();
        bytes.extend(stored.to_le_bytes());
        bytes.extend(plain.to_le_bytes());
        bytes.extend([0, 1, 0, 0]);
        bytes.extend([0; 64]);
        let meter = Meter::new(Arc::new(MemoryStore::new()));
        meter.put_new(&object, &bytes).unwrap();
        let opened = ManifestReader::open(meter.clone(), &keys, &object).and_then(drain);
        assert!(opened.is_err(), "{stored} {plain}");
        assert!(meter.largest() <= bytes.len() as u64, "{stored} {plain}: {} bytes wanted", meter.largest());
    }
}

#[test]
fn declared_item_lengths_are_limited() {
    use pgark_repo::manifest::bytes::put_varint;
    for len in [17 << 20, 1 << 32, u64::MAX] {
        let mut plain = vec![];
        put_varint(&mut plain, len);
        assert!(read_manifest(&plain).is_err());
        // Within an item: a path, a number of chunks, a number of parts.
        for head in [vec![1], vec![4], vec![4, 1, 255], vec![7], vec![2, 0]] {
            let mut item = head;
            put_varint(&mut item, len);
            let mut plain = vec![u8::try_from(item.len()).unwrap()];
            plain.extend(item);
            assert!(read_manifest(&plain).is_err());
        }
    }
}

/// Files with a hole of a terabyte behind what was written: no reader takes memory for them.
#[test]
fn objects_of_a_terabyte_are_refused_in_bounded_memory() {
    const TERABYTE: u64 = 1 << 40;
    let bound = [REGISTER_BYTES_MAX, PACK_TOC_BYTES_MAX as u64, BLOCK_BYTES_MAX as u64].into_iter().max().unwrap();
    for encryption in [Algorithm::None, Algorithm::Aes256Gcm] {
        let dir = TestDir::new();
        let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.0).unwrap());
        let repo = sample::init(store.clone(), &keys(encryption));
        sample::fill(&repo, 1).unwrap();
        let entry = CatalogStore::new(&repo, &cluster()).read().unwrap().backups.remove(0);
        let record = BackupRecord::load(&repo, &cluster(), &entry.id, &entry.record).unwrap();
        for object in objects(&*store) {
            let file = std::fs::File::options().write(true).open(dir.0.join(object.as_str())).unwrap();
            file.set_len(TERABYTE).unwrap();
        }
        let meter = Meter::new(store.clone());
        assert!(Repository::open(meter.clone(), &keys(encryption).unlock).is_err());
        let shared: Arc<dyn Store> = meter.clone();
        let object = names::manifest(&cluster(), &entry.id);
        assert!(sample_readers(&repo, &shared, &object, &record.manifest));
        assert!(meter.largest() <= bound, "{} bytes wanted", meter.largest());
    }
}

/// True when each typed reader refuses.
fn sample_readers(repo: &Repository, store: &Arc<dyn Store>, manifest: &ObjectName, print: &Fingerprint) -> bool {
    let wal = repo.keys().wal_keys();
    let metered = Repository::open_for_wal(store.clone(), repo.keys().clone());
    assert!(wal.len() <= 1);
    let archive = archive(&metered);
    let pack = names::pack(&cluster(), &backup_id(1), 0);
    let huge = Fingerprint { size: 1 << 40, blake3: print.blake3.clone() };
    CatalogStore::new(&metered, &cluster()).read().is_err()
        && BackupRecord::load(&metered, &cluster(), &backup_id(1), print).is_err()
        && ManifestReader::open(store.clone(), repo.keys(), manifest).and_then(drain).is_err()
        && pack::verify(store, repo.keys(), &pack, print).is_err()
        && pack::verify(store, repo.keys(), &pack, &huge).is_err()
        && sample::read_segment(&archive, &segment(2)).is_err()
        && archive.head().is_err()
        && archive.history(sample::timeline(2)).is_err()
}

#[test]
fn a_key_ring_cannot_ask_for_endless_work() {
    let ring = Keyring::create(&sample::new_keys(Algorithm::Aes256Gcm, Some(b"x"), crate::common::identity())).unwrap();
    let text = String::from_utf8(ring.to_bytes()).unwrap();
    let unlock = Unlock::passphrase(b"x");
    for (from, to) in [
        ("\"memory_kib\":65536", "\"memory_kib\":4294967295"),
        ("\"memory_kib\":65536", "\"memory_kib\":1048577"),
        ("\"memory_kib\":65536", "\"memory_kib\":8"),
        ("\"passes\":3", "\"passes\":1000000"),
        ("\"passes\":3", "\"passes\":1"),
        ("\"lanes\":4", "\"lanes\":16777215"),
        ("\"lanes\":4", "\"lanes\":0"),
    ] {
        assert!(text.contains(from), "{text}");
        let opened = Keyring::open(text.replace(from, to).as_bytes(), &unlock);
        assert!(matches!(opened, Err(pgark_repo::RepoError::Corrupt { .. })), "{to}");
    }
    let from = text.find("\"slots\":[").unwrap() + "\"slots\":[".len();
    let slot = &text[from..from + text[from..].find('}').unwrap() + 1];
    let many = format!("{}{}{}", &text[..from], format!("{slot},").repeat(KEYRING_SLOTS_MAX), &text[from..]);
    let opened = Keyring::open(many.as_bytes(), &Unlock::passphrase(b"wrong"));
    assert!(matches!(opened, Err(pgark_repo::RepoError::Corrupt { .. })));
}

#[test]
fn a_register_of_the_last_number_is_an_error_when_changed() {
    let (store, repo) = memory_repository(Algorithm::None);
    let object = name(&format!("{}/{:016x}", names::catalog_dir(&cluster()), u64::MAX));
    let sealed = seal_bytes(repo.keys(), ObjectKind::Catalog, &object, &with_mark(&honest().catalog)).unwrap();
    store.put_new(&object, &sealed).unwrap();
    let catalog = CatalogStore::new(&repo, &cluster());
    assert_eq!(catalog.read().unwrap().cluster, cluster());
    let changed = catalog.update(|c| {
        c.jobs.clear();
        Ok(Some(()))
    });
    assert!(matches!(changed, Err(pgark_repo::RepoError::Corrupt { .. })), "{changed:?}");
}

#[test]
fn names_that_only_look_like_versions_are_none() {
    let (store, repo) = memory_repository(Algorithm::None);
    CatalogStore::new(&repo, &cluster()).register(&sample::lineage(), false).unwrap();
    for last in ["+00000000000000f", "FFFFFFFFFFFFFFFF", "00000000000000009", "fffffffffffffff", "0000_0000_0000_1"] {
        store.put_new(&name(&format!("{}/{last}", names::catalog_dir(&cluster()))), b"x").unwrap();
    }
    assert_eq!(CatalogStore::new(&repo, &cluster()).read().unwrap().lineages.len(), 1);
}
