//! A writer of a cluster: what it makes opens to readers, and nothing that anybody made opens to it but books.

use std::sync::Arc;

use pgark_pg::wal::Changes;
use pgark_repo::Repository;
use pgark_repo::catalog::{CatalogStore, JobKind};
use pgark_repo::crypto::{Algorithm, Form, KeySet, ObjectKind, form_of, generation_of};
use pgark_repo::error::RepoError;
use pgark_repo::keyring::{self, Change, Keyring, Secrets, SlotSecret, Unlock};
use pgark_repo::names::{self, ClusterName};
use pgark_repo::seals;
use pgark_repo::store::{MemoryStore, ObjectName, Store, StoreErrorKind};
use pgark_repo::stream::{StreamReader, seal_bytes};
use pgark_repo::wal::{Pushed, SegmentData};

use crate::common::{fresh_identity, memory_repository, name, objects};
use crate::keys::unlock;
use crate::sample::{self, archive, at, backup_id, cluster, index_of, segment, segment_size, wal_segment};

const CONTENT: [ObjectKind; 5] =
    [ObjectKind::Pack, ObjectKind::Manifest, ObjectKind::BackupRecord, ObjectKind::WalSegment, ObjectKind::Report];
const BOOKS: [ObjectKind; 3] = [ObjectKind::WalSideFile, ObjectKind::WalHead, ObjectKind::Catalog];

fn recipient(identity: &str) -> String {
    identity.parse::<age::x25519::Identity>().unwrap().to_public().to_string()
}

/// As `pgark key add --writer` does it.
fn add_writer(store: &Arc<dyn Store>, of: &ClusterName, identity: &str) {
    let to = recipient(identity);
    keyring::edit(store, &unlock(), |ring| {
        ring.add_writer(of, &SlotSecret::Age(&to), Some("host"))?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let repo = Repository::open(store.clone(), &unlock()).unwrap();
    CatalogStore::new(&repo, of).register_of_books().open_to_writer().unwrap();
    archive(&repo).head_register().open_to_writer().unwrap();
}

struct Site {
    store: Arc<dyn Store>,
    reader: Repository,
    writer: Repository,
    identity: String,
}

/// Two backups and WAL from before there was a writer.
fn site(encryption: Algorithm) -> Site {
    let (memory, repo) = memory_repository(encryption);
    sample::fill(&repo, 2).unwrap();
    let store: Arc<dyn Store> = memory;
    let identity = fresh_identity();
    add_writer(&store, &cluster(), &identity);
    let writer = Repository::open(store.clone(), &Unlock::age_identities(&identity)).unwrap();
    let reader = Repository::open(store.clone(), &unlock()).unwrap();
    Site { store, reader, writer, identity }
}

fn push(repo: &Repository, n: u64, seed: u64) -> Result<(Pushed, u32), RepoError> {
    let bytes = wal_segment(&segment(n), seed);
    let (index, archive) = (index_of(&segment(n), &bytes), archive(repo));
    let head = archive.head()?;
    if archive.is_archived(&head, &index)? {
        return Ok((Pushed::AlreadyThere, head.copy_of(&segment(n))));
    }
    archive.push_segment_after(&head, &index, &Changes::default(), &mut SegmentData::Memory(&bytes))
}

fn back_up(repo: &Repository, n: u32) -> sample::Tree {
    let catalog = CatalogStore::new(repo, &cluster());
    let claim = catalog.claim(JobKind::Backup, &backup_id(n), at(0)).unwrap();
    let (entry, tree) = sample::write_backup(repo, &backup_id(n)).unwrap();
    claim.commit_backup(&entry).unwrap();
    tree
}

fn is_write_only<T>(outcome: Result<T, RepoError>) -> bool {
    matches!(outcome, Err(RepoError::WriteOnly { .. }))
}

fn header(store: &Arc<dyn Store>, object: &ObjectName) -> [u8; 64] {
    let mut header = [0; 64];
    store.read_at(object, 0, &mut header).unwrap();
    header
}

fn objects_of_clusters(store: &Arc<dyn Store>) -> Vec<ObjectName> {
    objects(&**store).into_iter().filter(|n| names::cluster_of(n).is_some()).collect()
}

#[test]
fn what_a_writer_made_reads_as_what_a_reader_made() {
    for encryption in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
        let Site { store, reader, writer, .. } = site(encryption);
        assert_eq!(writer.keys().writes_only(), Some(cluster()));
        assert!(reader.keys().writes_only().is_none() && writer.encryption() == encryption);
        let tree = back_up(&writer, 3);
        for n in [6, 7] {
            let (pushed, copy) = push(&writer, n, n).unwrap();
            assert_eq!(pushed, Pushed::Stored);
            archive(&writer).acknowledge(&[(segment(n), copy)]).unwrap();
        }
        let bytes = wal_segment(&segment(8), 8);
        archive(&writer).push_partial(&index_of(&segment(8), &bytes), &mut SegmentData::Memory(&bytes)).unwrap();
        // What a reader adds to such a cluster, the writer can go on from.
        push(&reader, 9, 9).unwrap();
        assert_eq!(push(&writer, 9, 9).unwrap().0, Pushed::AlreadyThere);
        let mixed = back_up(&reader, 4);

        let catalog = CatalogStore::new(&reader, &cluster()).read().unwrap();
        for (n, tree) in [(3, &tree), (4, &mixed)] {
            let (record, found) = sample::read_backup(&reader, catalog.backup(&backup_id(n)).unwrap()).unwrap();
            assert_eq!((&record.id, &found), (&backup_id(n), tree));
        }
        for n in [2, 6, 7, 9] {
            let (index, found) = sample::read_segment(&archive(&reader), &segment(n)).unwrap();
            assert!(found == wal_segment(&segment(n), n) && index == index_of_stored(&index, n));
        }
        // With the keys that a restore leaves beside a recovering server, too.
        let keys = KeySet::from_wal_keys(reader.encryption(), reader.keys().generation(), &reader.keys().wal_keys());
        let recovering = Repository::open_for_wal(store.clone(), keys);
        assert!(sample::read_segment(&archive(&recovering), &segment(6)).unwrap().1 == wal_segment(&segment(6), 6));
        assert!(archive(&recovering).head().unwrap() == archive(&writer).head().unwrap());
        assert!(CatalogStore::new(&recovering, &cluster()).read().is_err());
    }
}

fn index_of_stored(found: &pgark_repo::wal::WalIndex, n: u64) -> pgark_repo::wal::WalIndex {
    let index = index_of(&segment(n), &wal_segment(&segment(n), n));
    pgark_repo::wal::WalIndex { changes_bytes: found.changes_bytes, ..index }
}

#[test]
fn a_writers_keys_open_no_content_of_any_object_in_the_store() {
    let Site { store, writer, .. } = site(Algorithm::Aes256Gcm);
    back_up(&writer, 3);
    push(&writer, 6, 6).unwrap();
    push(&writer, 7, 7).unwrap();
    let all = objects_of_clusters(&store);
    let (mut books, mut content, mut facts) = (0, 0, 0);
    for object in &all {
        let header = header(&store, object);
        let real = names::lasting_kind(object);
        for kind in CONTENT {
            let outcome = writer.keys().open_object(&header, kind, object);
            assert!(outcome.is_err(), "{object} as {kind:?}");
            if real == Some(kind) {
                assert!(is_write_only(outcome), "{object}");
                content += 1;
            }
            // Whatever the header were to say of itself.
            for version in [1, 2, 3] {
                for kind in CONTENT {
                    let mut forged = header;
                    (forged[8], forged[9]) = (kind as u8, version);
                    assert!(writer.keys().open_object(&forged, kind, object).is_err(), "{object}");
                }
            }
        }
        for kind in BOOKS {
            books += u32::from(writer.keys().open_object(&header, kind, object).is_ok());
        }
        facts += u32::from(writer.keys().open_facts(&header, ObjectKind::WalSegment, object).is_ok());
    }
    // Nine packs, manifests and records, of three backups; three segments of before, a .partial, two that it pushed.
    assert_eq!((content, facts), (12 + 6, 2), "{all:?}");
    // Catalog and head, two versions of each with a mirror, but for those of a version that was not put back.
    assert!((6..=8).contains(&books), "{books}");
    // The facts tell neither what records hold nor where they point to.
    let index =
        archive(&writer).object_index(&archive(&writer).place().segment(&segment(6), segment_size(), 0).unwrap());
    let index = index.unwrap();
    assert!(index.restore_points.is_empty() && index.activity.is_none() && index.changes_bytes.is_none());
    assert!(index.crossing.is_none_or(|c| c.data.is_empty()) && index.leading.is_none_or(|l| l.data.is_empty()));
    // Its keys have nothing to derive others from.
    let keys = writer.keys().current();
    assert!(keys.masters().is_empty() && writer.keys().wal_keys().is_empty() && writer.master().is_none());
}

#[test]
fn a_writer_finds_its_own_wal_again_and_tells_it_from_other_wal() {
    let Site { writer, reader, .. } = site(Algorithm::Aes256Gcm);
    assert_eq!(push(&writer, 6, 6).unwrap().0, Pushed::Stored);
    // Killed before the head was written: nothing is remembered but what is in the store.
    assert_eq!(push(&writer, 6, 6).unwrap().0, Pushed::AlreadyThere);
    assert!(matches!(push(&writer, 6, 60), Err(RepoError::Conflict { .. })));
    archive(&writer).acknowledge(&[(segment(6), 0)]).unwrap();
    assert_eq!(push(&writer, 6, 6).unwrap().0, Pushed::AlreadyThere);
    assert!(matches!(push(&writer, 6, 60), Err(RepoError::Conflict { .. })));
    // An unfinished beginning gives way.
    let whole = wal_segment(&segment(7), 7);
    let mut early = whole.clone();
    early[2000..].fill(0);
    let early_index = index_of(&segment(7), &early);
    assert!(early_index.valid_end < index_of(&segment(7), &whole).valid_end);
    let push_early = |repo: &Repository| {
        archive(repo).push_segment(&early_index, &Changes::default(), &mut SegmentData::Memory(&early))
    };
    assert_eq!(push_early(&writer).unwrap(), (Pushed::Stored, 0));
    assert_eq!(push_early(&writer).unwrap(), (Pushed::AlreadyThere, 0));
    // The same records and another rest.
    let mut bytes = early.clone();
    *bytes.last_mut().unwrap() = 1;
    let index = index_of(&segment(7), &bytes);
    let outcome = archive(&writer).push_segment(&index, &Changes::default(), &mut SegmentData::Memory(&bytes));
    assert_eq!(outcome.unwrap().0, Pushed::SameRecords);
    assert_eq!(push(&writer, 7, 7).unwrap(), (Pushed::Longer, 1));
    assert_eq!(push(&writer, 7, 7).unwrap(), (Pushed::AlreadyThere, 1));
    archive(&writer).acknowledge(&[(segment(7), 1)]).unwrap();
    assert!(sample::read_segment(&archive(&reader), &segment(7)).unwrap().1 == whole);
    // What was archived before there was a writer it cannot compare, and does not pretend to.
    assert!(is_write_only(push(&writer, 3, 3)));
    assert!(is_write_only(push(&writer, 3, 30)));
    let history = sample::history_file();
    assert!(is_write_only(archive(&writer).push_side_file(&history, sample::HISTORY)));
    // Small files of its own time it reads.
    let later = pgark_pg::WalFileName::History(sample::timeline(3));
    assert_eq!(archive(&writer).push_side_file(&later, b"x").unwrap(), Pushed::Stored);
    assert_eq!(archive(&writer).push_side_file(&later, b"x").unwrap(), Pushed::AlreadyThere);
    assert!(matches!(archive(&writer).push_side_file(&later, b"y"), Err(RepoError::Conflict { .. })));
    assert_eq!(archive(&reader).side_file(&later).unwrap(), b"x");
}

#[test]
fn a_writer_removes_nothing_but_old_versions_of_books() {
    let Site { store, writer, .. } = site(Algorithm::Aes256Gcm);
    back_up(&writer, 3);
    for object in objects(&*store) {
        for refused in [writer.store().delete(&object), writer.bare_store().discard(&object)] {
            assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::AppendOnly, "{object}");
        }
    }
    assert!(!writer.store().may_delete());
    let versions = |dir: &str| objects(&*store).iter().filter(|n| n.as_str().starts_with(dir)).count();
    let before = versions("clusters/main/wal/7123456789012345678/head/");
    for n in 6..12 {
        let (_, copy) = push(&writer, n, n).unwrap();
        archive(&writer).acknowledge(&[(segment(n), copy)]).unwrap();
    }
    assert_eq!((before, versions("clusters/main/wal/7123456789012345678/head/")), (2, 2));
}

#[test]
fn a_writer_of_one_cluster_neither_reads_nor_makes_anything_of_another() {
    let Site { store, reader, writer, .. } = site(Algorithm::Aes256Gcm);
    let other = ClusterName::parse("other").unwrap();
    CatalogStore::new(&reader, &other).register(&sample::lineage(), false).unwrap();
    let identity = fresh_identity();
    add_writer(&store, &other, &identity);
    let theirs = Repository::open(store.clone(), &Unlock::age_identities(&identity)).unwrap();
    assert!(CatalogStore::new(&theirs, &other).read().is_ok() && CatalogStore::new(&writer, &cluster()).read().is_ok());
    assert!(is_write_only(CatalogStore::new(&writer, &other).read()));
    assert!(is_write_only(CatalogStore::new(&theirs, &cluster()).read()));
    for kind in CONTENT.iter().chain(&BOOKS) {
        for place in ["clusters/other/x", "clusters/other/catalog/0000000000000009", "keyring/1", "x"] {
            assert!(writer.keys().new_object(*kind, &name(place)).is_err(), "{kind:?} {place}");
        }
    }
    // What it made does not open in the place of another cluster, whatever its name there.
    for kind in CONTENT.iter().chain(&BOOKS) {
        let (header, _) = writer.keys().new_object(*kind, &name("clusters/main/x")).unwrap();
        assert!(reader.keys().open_object(&header, *kind, &name("clusters/main/x")).is_ok());
        assert!(reader.keys().open_object(&header, *kind, &name("clusters/other/x")).is_err());
        assert!(reader.keys().open_object(&header, *kind, &name("clusters/main/y")).is_err());
        assert!(reader.keys().open_object(&header, *kind, &name("x")).is_err());
    }
}

#[test]
fn a_rotation_needs_no_secret_of_a_writer_who_goes_on_and_reads_its_facts_of_before() {
    let Site { store, reader, writer, identity } = site(Algorithm::Aes256Gcm);
    push(&writer, 6, 6).unwrap();
    let seen = [reader.keys().current().marks(), writer.keys().current().marks()];
    keyring::edit(&store, &unlock(), |ring| {
        ring.rotate(Secrets { unlock: &unlock(), passphrases: &[] }, &[])?;
        Ok(Change::Write(()))
    })
    .unwrap();
    // Under the old key, until it meets the new one.
    push(&writer, 7, 7).unwrap();
    let now = Repository::open(store.clone(), &unlock()).unwrap();
    CatalogStore::new(&now, &cluster())
        .update(|c| {
            c.fence += 1;
            Ok(Some(()))
        })
        .unwrap();
    assert_eq!(writer.keys().generation(), 1);
    CatalogStore::new(&writer, &cluster()).read().unwrap();
    assert_eq!(writer.keys().generation(), 2);
    push(&writer, 8, 8).unwrap();
    let again = Repository::open(store.clone(), &Unlock::age_identities(&identity)).unwrap();
    let held = Keyring::open_held(&Repository::ring_bytes(&store).unwrap(), &again.keys().current()).unwrap();
    assert!(held.is_writers() && held.generation() == 2);
    for n in [6, 7, 8] {
        assert_eq!(push(&again, n, n).unwrap().0, Pushed::AlreadyThere);
        let object = archive(&again).place().segment(&segment(n), segment_size(), 0).unwrap();
        assert_eq!(generation_of(&header(&store, &object)), Some(if n == 8 { 2 } else { 1 }));
        assert!(sample::read_segment(&archive(&reader), &segment(n)).is_ok());
    }
    // Sealed anew, objects stay of their form, and the writer still finds what it pushed.
    for object in objects_of_clusters(&store) {
        let is_old = generation_of(&header(&store, &object)) == Some(1) && names::lasting_kind(&object).is_some();
        if !is_old {
            continue;
        }
        let form = form_of(&header(&store, &object));
        seals::seal_anew(now.store(), now.keys(), &object).unwrap();
        let later = names::later_seal(&object, 2).unwrap();
        assert_eq!((form_of(&header(&store, &later)), generation_of(&header(&store, &later))), (form, Some(2)));
        store.delete(&object).unwrap();
    }
    assert!(archive(&now).head_register().seal_anew(2).unwrap());
    keyring::edit(&store, &unlock(), |ring| {
        ring.retire()?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let last = Repository::open(store.clone(), &Unlock::age_identities(&identity)).unwrap();
    assert_eq!(last.keys().generations(), [2]);
    // Hosts that have seen nothing but the key that is gone know the ring by its mark, which stays over later changes.
    let knows = |n: usize| {
        let opened =
            [unlock(), Unlock::age_identities(&identity)].map(|by| Repository::open(store.clone(), &by).unwrap());
        for (seen, now) in seen.iter().zip(opened) {
            let marks = now.keys().current().marks();
            assert!(marks.len() == n && marks.starts_with(seen), "{}", now.keys().generation());
        }
    };
    knows(2);
    for n in [6, 7, 8] {
        assert_eq!(push(&last, n, n).unwrap().0, Pushed::AlreadyThere);
        assert!(matches!(push(&last, n, 90), Err(RepoError::Conflict { .. })));
        let reader = Repository::open(store.clone(), &unlock()).unwrap();
        assert!(sample::read_segment(&archive(&reader), &segment(n)).unwrap().1 == wal_segment(&segment(n), n));
    }
    for (n, retires) in [(3, false), (3, true), (4, false)] {
        keyring::edit(&store, &unlock(), |ring| {
            if retires {
                assert_eq!(ring.retire()?.len(), 1);
            } else {
                ring.rotate(Secrets { unlock: &unlock(), passphrases: &[] }, &[])?;
            }
            Ok(Change::Write(()))
        })
        .unwrap();
        knows(n);
    }
}

#[test]
fn a_reader_that_began_before_there_was_a_writer_leaves_the_books_readable_to_it() {
    let (memory, stale) = memory_repository(Algorithm::Aes256Gcm);
    sample::fill(&stale, 1).unwrap();
    let store: Arc<dyn Store> = memory;
    let identity = fresh_identity();
    add_writer(&store, &cluster(), &identity);
    let writer = Repository::open(store.clone(), &Unlock::age_identities(&identity)).unwrap();
    back_up(&stale, 2);
    sample::push_wal(&stale, &[6]).unwrap();
    assert_eq!(CatalogStore::new(&writer, &cluster()).read().unwrap().backups.len(), 2);
    assert!(archive(&writer).head().unwrap().timeline(sample::timeline(1)).unwrap().contains(segment(6).segment));
    assert!(writer.check_keyring().unwrap().is_empty());
    assert!(CatalogStore::new(&writer, &cluster()).check().unwrap().is_empty());
}

#[test]
fn a_ring_says_that_it_has_a_writer_and_one_without_stays_what_it_was() {
    let (memory, repo) = memory_repository(Algorithm::Aes256Gcm);
    sample::fill(&repo, 1).unwrap();
    let store: Arc<dyn Store> = memory;
    let version = |store: &Arc<dyn Store>| {
        let ring = String::from_utf8(Repository::ring_bytes(store).unwrap()).unwrap();
        let version = ring.split_once("\"version\":").unwrap().1.chars().next().unwrap();
        (version, ring.contains("writer"))
    };
    assert_eq!(version(&store), ('1', false));
    assert!(objects_of_clusters(&store).iter().all(|n| form_of(&header(&store, n)) == Some(Form::Readers)));
    let identity = fresh_identity();
    add_writer(&store, &cluster(), &identity);
    assert_eq!(version(&store), ('2', true));
    // Whoever changes a byte of the slot keeps the writer out, and is found out by readers.
    let ring = String::from_utf8(Repository::ring_bytes(&store).unwrap()).unwrap();
    let at = ring.find("\"keys\":\"").unwrap() + 40;
    let mut bytes = ring.into_bytes();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    assert!(Keyring::open(&bytes, &Unlock::age_identities(&identity)).is_err());
    assert!(Keyring::open(&bytes, &unlock()).is_err());
    // Without the part that makes it a writer's, a slot opens nothing.
    let text = String::from_utf8(Repository::ring_bytes(&store).unwrap()).unwrap();
    let from = text.find(",\"writer\":{").unwrap();
    let to = from + text[from..].find('}').unwrap();
    let without = format!("{}{}", &text[..from], &text[to + 1..]);
    assert!(Keyring::open(without.as_bytes(), &Unlock::age_identities(&identity)).is_err());
    // Nor does a ring grow a writer where nothing is encrypted.
    let plain: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let repo = sample::init(plain.clone(), &crate::common::keys(Algorithm::None));
    sample::fill(&repo, 1).unwrap();
    let refused = keyring::edit(&plain, &Unlock::default(), |ring| {
        ring.add_writer(&cluster(), &SlotSecret::Age(&recipient(&identity)), None)?;
        Ok(Change::Write(()))
    });
    assert!(matches!(refused, Err(RepoError::Slot(_))));
}

#[test]
fn a_writer_changes_no_key() {
    let Site { store, writer, identity, .. } = site(Algorithm::Aes256Gcm);
    let own = Unlock::age_identities(&identity);
    let before = Repository::ring_bytes(&store).unwrap();
    let change = |change: &dyn Fn(&mut Keyring) -> Result<(), RepoError>| {
        keyring::edit(&store, &own, |ring| {
            change(ring)?;
            Ok(Change::Write(()))
        })
    };
    assert!(is_write_only(change(&|ring| ring.add_age(&recipient(&fresh_identity()), None).map(drop))));
    assert!(is_write_only(change(&|ring| {
        ring.add_writer(&cluster(), &SlotSecret::Age(&recipient(&fresh_identity())), None).map(drop)
    })));
    assert!(is_write_only(change(&|ring| {
        let id = ring.slots()[0].id.clone();
        ring.remove_slot(&id, std::slice::from_ref(&id)).map(drop)
    })));
    assert!(is_write_only(change(&|ring| ring.rotate(Secrets { unlock: &own, passphrases: &[] }, &[]).map(drop))));
    assert!(is_write_only(change(&|ring| ring.retire().map(drop))));
    assert!(writer.open_copy(Arc::new(MemoryStore::new())).is_err());
    assert!(Repository::ring_bytes(&store).unwrap() == before);
}

#[test]
fn books_and_content_of_the_writers_form_stay_apart() {
    let Site { reader, writer, .. } = site(Algorithm::Aes256Gcm);
    let object = name("clusters/main/wal/7/history/00000002.history");
    let sealed = seal_bytes(writer.keys(), ObjectKind::WalSideFile, &object, b"1\t0/1\tx\n").unwrap();
    for kind in CONTENT.iter().chain(&BOOKS).filter(|k| **k != ObjectKind::WalSideFile) {
        let mut forged = sealed.clone();
        forged[8] = *kind as u8;
        let source = pgark_repo::stream::Source::memory(forged);
        assert!(StreamReader::new(reader.keys(), *kind, &object, source).is_err(), "{kind:?}");
    }
}
