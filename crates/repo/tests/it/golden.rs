//! Repositories that were written once and are kept: every later build reads them, byte for byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{KeyCommands, Unlock};
use pgark_repo::store::{LocalStore, MemoryStore, Store};
use zeroize::Zeroizing;

use crate::common::{name, objects};
use crate::expected::{self, GOLDEN_SEGMENTS, PASSPHRASE, WRITER_PASSPHRASE};
use crate::sample::{self, archive, cluster, read_backup};

const REPOSITORIES: [(&str, Algorithm); 4] = [
    ("plain", Algorithm::None),
    ("aes", Algorithm::Aes256Gcm),
    ("chacha", Algorithm::ChaCha20Poly1305),
    ("writer", Algorithm::Aes256Gcm),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/format/v1")
}

fn file(path: &str) -> Vec<u8> {
    let path = golden().join("expected").join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn store(which: &str) -> Arc<dyn Store> {
    Arc::new(LocalStore::open(golden().join(which)).unwrap())
}

fn identity() -> String {
    std::fs::read_to_string(golden().join("age-identity.txt")).unwrap()
}

fn by_identity() -> Unlock {
    Unlock::age_identities(&identity())
}

fn repositories() -> impl Iterator<Item = (&'static str, Repository)> {
    REPOSITORIES.into_iter().map(|(which, encryption)| {
        let unlock = if encryption == Algorithm::None { Unlock::default() } else { by_identity() };
        let repo = Repository::open(store(which), &unlock).unwrap_or_else(|e| panic!("{which}: {e}"));
        assert_eq!(repo.encryption(), encryption);
        (which, repo)
    })
}

#[track_caller]
fn same(which: &str, path: &str, found: &[u8]) {
    assert!(found == file(path), "{which}: {path} came back different:\n{}", String::from_utf8_lossy(found));
}

#[test]
fn each_slot_of_the_key_ring_opens() {
    for which in ["aes", "chacha"] {
        let a = Repository::open(store(which), &Unlock::passphrase(PASSPHRASE)).unwrap();
        let b = Repository::open(store(which), &by_identity()).unwrap();
        assert!(a.master() == b.master() && a.master().is_some());
        assert_eq!(a.slots().iter().map(|s| s.kind).collect::<Vec<_>>(), ["passphrase", "age"]);
        assert!(Repository::open(store(which), &Unlock::passphrase(b"silver")).is_err());
        assert!(Repository::open(store(which), &Unlock::default()).is_err());
        assert!(a.check_keyring().unwrap().is_empty());
    }
}

/// What made the wrapped key of the command slot of the sample.
struct Reversed;

impl KeyCommands for Reversed {
    fn knows(&self, name: &str) -> bool {
        name == "reversed"
    }
    fn wrap(&self, _: &str, plain: &[u8]) -> pgark_repo::Result<Vec<u8>> {
        Ok(plain.iter().rev().copied().collect())
    }
    fn unwrap(&self, _: &str, wrapped: &[u8]) -> pgark_repo::Result<Zeroizing<Vec<u8>>> {
        Ok(wrapped.iter().rev().copied().collect::<Vec<_>>().into())
    }
}

#[test]
fn a_ring_of_the_second_generation_opens_by_each_slot_and_reads_the_first() {
    let rotated: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let aes = store("aes");
    for object in objects(&*aes).iter().filter(|o| !o.as_str().starts_with("keyring")) {
        rotated.put_new(object, &aes.read(object, 1 << 30).unwrap()).unwrap();
    }
    let ring = std::fs::read(golden().join("rotated-ring")).unwrap();
    for dir in ["keyring", "keyring-mirror"] {
        rotated.put_new(&name(&format!("{dir}/{:016x}", 2)), &ring).unwrap();
    }
    let by_command = Unlock { commands: Some(Arc::new(Reversed)), ..Unlock::default() };
    let first = Repository::open(aes, &by_identity()).unwrap();
    for unlock in [Unlock::passphrase(PASSPHRASE), by_identity(), by_command] {
        let repo = Repository::open(rotated.clone(), &unlock).unwrap();
        assert_eq!(repo.keys().generation(), 2);
        let slots: Vec<_> = repo.slots().iter().map(|s| (s.kind, s.label.as_deref())).collect();
        assert_eq!(slots, [("passphrase", None), ("age", None), ("command", Some("of the sample"))]);
        assert!(repo.keys().content_id(b"x") == first.keys().content_id(b"x"));
        assert!(repo.master() != first.master());
        let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
        same("rotated", "catalog.json", expected::catalog(&catalog).as_bytes());
        let (_, tree) = read_backup(&repo, &catalog.backups[0]).unwrap();
        same("rotated", "tree.txt", expected::tree(&tree).as_bytes());
    }
}

#[test]
fn the_writer_of_the_sample_reads_books_and_facts_and_no_content() {
    let writer = Repository::open(store("writer"), &Unlock::passphrase(WRITER_PASSPHRASE)).unwrap();
    assert_eq!(writer.keys().writes_only(), Some(cluster()));
    let catalog = CatalogStore::new(&writer, &cluster()).read().unwrap();
    same("writer", "catalog.json", expected::catalog(&catalog).as_bytes());
    let archive = archive(&writer);
    same("writer", "wal/head.json", &archive.head().unwrap().to_bytes());
    same("writer", "wal/00000002.history", &archive.history(sample::timeline(2)).unwrap());
    for n in GOLDEN_SEGMENTS {
        let name = sample::segment(n).format(sample::segment_size());
        let text = String::from_utf8(file(&format!("wal/{name}.index.json"))).unwrap();
        let expected: pgark_repo::wal::WalIndex = serde_json::from_str(&text).unwrap();
        assert_eq!(archive.index(&sample::segment(n), sample::segment_size()).unwrap(), expected.facts());
        assert!(sample::read_segment(&archive, &sample::segment(n)).is_err());
    }
    assert!(read_backup(&writer, &catalog.backups[0]).is_err());
    let kinds: Vec<_> = writer.slots().iter().map(|s| (s.kind, s.writer.clone())).collect();
    assert_eq!(kinds, [("passphrase", None), ("age", None), ("passphrase", Some(cluster()))]);
}

#[test]
fn the_catalog_is_read() {
    for (which, repo) in repositories() {
        assert_eq!(repo.clusters().unwrap(), [cluster()]);
        let store = CatalogStore::new(&repo, &cluster());
        same(which, "catalog.json", expected::catalog(&store.read().unwrap()).as_bytes());
        assert!(store.check().unwrap().is_empty());
    }
}

#[test]
fn backups_are_read_to_the_last_byte() {
    for (which, repo) in repositories() {
        let catalog = CatalogStore::new(&repo, &cluster()).read().unwrap();
        assert_eq!(catalog.backups.len(), 1);
        let (record, tree) = read_backup(&repo, &catalog.backups[0]).unwrap();
        same(which, "record.json", expected::record(&record).as_bytes());
        same(which, "tree.txt", expected::tree(&tree).as_bytes());
        let mut files = 0;
        for (path, node) in &tree.nodes {
            if let sample::Node::File { content, .. } = node {
                same(which, &format!("files/{}", std::str::from_utf8(path).unwrap()), content);
                files += 1;
            }
        }
        assert_eq!(files, 6);
    }
}

#[test]
fn items_of_every_kind_and_every_codec_are_in_the_samples() {
    for (which, repo) in repositories() {
        assert_eq!(expected::variety(&repo).unwrap(), expected::VARIETY, "{which}");
    }
}

#[test]
fn wal_is_read_to_the_last_byte() {
    for (which, repo) in repositories() {
        let archive = archive(&repo);
        for n in GOLDEN_SEGMENTS {
            let name = sample::segment(n).format(sample::segment_size());
            let (mut index, bytes) = sample::read_segment(&archive, &sample::segment(n)).unwrap();
            if which == "writer" {
                // Made later than the others, with what indexes have got since.
                assert!(index.activity.take().is_some());
            }
            same(which, &format!("wal/{name}.index.json"), expected::pretty(&index).as_bytes());
            let mut wanted = file(&format!("wal/{name}"));
            assert!(wanted.len() <= sample::SEGMENT);
            wanted.resize(sample::SEGMENT, 0);
            assert!(bytes == wanted, "{which}: {name} came back different");
        }
        same(which, "wal/head.json", &archive.head().unwrap().to_bytes());
        assert!(archive.head_register().check().unwrap().is_empty());
        same(which, "wal/00000002.history", &archive.history(sample::timeline(2)).unwrap());
        let backup = sample::backup_history_file();
        same(which, &format!("wal/{backup}"), &archive.side_file(&backup).unwrap());
        let mut partial = archive.open_object(&sample::partial_object()).unwrap();
        let mut len = 0;
        while let Some(block) = partial.next().unwrap() {
            len += block.len();
        }
        assert_eq!(len, sample::SEGMENT, "{which}");
    }
}

#[test]
fn the_samples_stay_small_and_whole() {
    let mut total = 0;
    let mut files = 0;
    for (which, _) in REPOSITORIES {
        let mut visit = |stat: pgark_repo::store::ObjectStat| {
            total += stat.size;
            files += 1;
            Ok(())
        };
        store(which).list("", &mut visit).unwrap();
    }
    assert!(files >= 65, "{files} objects: some are missing");
    assert!(total < 2_000_000, "{total} bytes");
}
