//! Damage of every kind to every object: a reader reports it, or returns what is right from the second copy.
//! It never returns anything else.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::catalog::{BackupEntry, CatalogStore};
use pgark_repo::crypto::Algorithm;
use pgark_repo::error::Result;
use pgark_repo::keyring::{Keyring, Unlock};
use pgark_repo::manifest::{Chunk, Item, ManifestReader, packs_of};
use pgark_repo::names;
use pgark_repo::pack::{self, FrameAt, PackReader};
use pgark_repo::record::BackupRecord;
use pgark_repo::store::{MemoryStore, ObjectName, Store};
use pgark_repo::stream::Fingerprint;

use crate::common::{ALGORITHMS, fresh_identity, identity, keys, memory_repository, name, objects};
use crate::sample::{self, archive, cluster};

/// Objects below this size have each of their bits flipped.
const EXHAUSTIVE_BYTES: usize = 4096;
const SAMPLED_BITS: usize = 3000;
const CUTS: usize = 100;

/// The typed reader of an object, and where a second copy of its content is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Keyring,
    Catalog,
    Head,
    Record(usize),
    Manifest(usize),
    Pack(usize),
    Segment(u64),
    Partial,
    History,
    BackupHistory,
}

impl Kind {
    fn of(object: &ObjectName) -> Kind {
        let text = object.as_str();
        let backup = |text: &str| (1..=2).find(|n| text.contains(sample::backup_id(*n).as_str())).unwrap() as usize - 1;
        let segment = |n: &u64| text.ends_with(&sample::segment(*n).format(sample::segment_size()));
        match text {
            _ if text.starts_with("keyring") => Kind::Keyring,
            _ if text.contains("/catalog") => Kind::Catalog,
            _ if text.contains("/head") => Kind::Head,
            _ if text.ends_with("/record") => Kind::Record(backup(text)),
            _ if text.ends_with("/manifest") => Kind::Manifest(backup(text)),
            _ if text.contains("/packs/") => Kind::Pack(backup(text)),
            _ if text.ends_with(".partial") => Kind::Partial,
            _ if text.ends_with(".history") => Kind::History,
            _ if text.ends_with(".backup") => Kind::BackupHistory,
            _ => Kind::Segment((2..=4).find(segment).unwrap_or_else(|| panic!("{text} is of no known kind"))),
        }
    }

    fn family(&self) -> std::mem::Discriminant<Kind> {
        std::mem::discriminant(self)
    }

    fn has_mirror(&self) -> bool {
        matches!(self, Kind::Keyring | Kind::Catalog | Kind::Head)
    }
}

struct Subject {
    store: Arc<MemoryStore>,
    repo: Repository,
    entries: Vec<BackupEntry>,
    records: Vec<BackupRecord>,
    packs: BTreeMap<ObjectName, Fingerprint>,
    frames: BTreeMap<ObjectName, Vec<(FrameAt, Vec<u8>)>>,
    /// What each reader returns of the undamaged repository.
    good: BTreeMap<ObjectName, Vec<u8>>,
}

impl Subject {
    fn new(encryption: Algorithm) -> Self {
        let (store, repo) = memory_repository(encryption);
        sample::fill(&repo, 2).unwrap();
        let entries = CatalogStore::new(&repo, &cluster()).read().unwrap().backups;
        let load = |e: &BackupEntry| BackupRecord::load(&repo, &cluster(), &e.id, &e.record).unwrap();
        let records: Vec<_> = entries.iter().map(load).collect();
        let mut packs = BTreeMap::new();
        for e in &entries {
            for p in packs_of(pgark_repo::record::manifest_reader(&repo, &cluster(), &e.id).unwrap()).unwrap().0 {
                packs.insert(names::pack(&cluster(), &p.id.backup, p.id.number), p.fingerprint);
            }
        }
        let mut subject =
            Subject { store, repo, entries, records, packs, frames: BTreeMap::new(), good: BTreeMap::new() };
        subject.frames = subject.find_frames();
        for object in objects(&*subject.store) {
            subject.good.insert(object.clone(), subject.read(&object).unwrap());
        }
        subject
    }

    fn find_frames(&self) -> BTreeMap<ObjectName, Vec<(FrameAt, Vec<u8>)>> {
        let mut out: BTreeMap<ObjectName, Vec<(FrameAt, Vec<u8>)>> = BTreeMap::new();
        for e in &self.entries {
            let mut reader = pgark_repo::record::manifest_reader(&self.repo, &cluster(), &e.id).unwrap();
            while let Some(item) = reader.next_item().unwrap() {
                let Item::Chunks(chunks) = item else { continue };
                for part in chunks.iter().flat_map(Chunk::parts) {
                    let pack = reader.pack(part.pack).unwrap();
                    let object = names::pack(&cluster(), &pack.backup, pack.number);
                    let pack = PackReader::open(self.store.clone(), self.repo.keys(), &object).unwrap();
                    let plain = sample::read_frame(&pack, &part.frame).unwrap();
                    out.entry(object).or_default().push((part.frame, plain));
                }
            }
        }
        out
    }

    /// Reads the object through its typed reader, as far as that reads.
    fn read(&self, object: &ObjectName) -> Result<Vec<u8>> {
        let repo = &self.repo;
        let archive = archive(repo);
        Ok(match Kind::of(object) {
            Kind::Keyring => {
                let unlock = keys(repo.encryption()).unlock;
                let opened = Repository::open(self.store.clone(), &unlock)?;
                format!("{} {:?} {:?}", opened.id(), opened.encryption(), opened.slots()).into_bytes()
            }
            Kind::Catalog => json(&CatalogStore::new(repo, &cluster()).read()?),
            Kind::Head => archive.head()?.to_bytes(),
            Kind::Record(n) => {
                json(&BackupRecord::load(repo, &cluster(), &self.entries[n].id, &self.entries[n].record)?)
            }
            Kind::Manifest(n) => self.read_manifest(n)?,
            Kind::Pack(_) => {
                pack::verify(repo.store(), repo.keys(), object, &self.packs[object])?.to_le_bytes().to_vec()
            }
            Kind::Segment(n) => sample::read_segment(&archive, &sample::segment(n))?.1,
            Kind::Partial => {
                let mut reader = archive.open_object(&sample::partial_object())?;
                let mut bytes = vec![];
                while let Some(block) = reader.next()? {
                    bytes.extend_from_slice(block);
                }
                bytes
            }
            Kind::History => archive.history(sample::timeline(2))?,
            Kind::BackupHistory => archive.side_file(&sample::backup_history_file())?,
        })
    }

    fn read_manifest(&self, n: usize) -> Result<Vec<u8>> {
        let object = names::manifest(&cluster(), &self.entries[n].id);
        let mut reader = ManifestReader::open(self.store.clone(), self.repo.keys(), &object)?;
        let mut text = String::new();
        while let Some(item) = reader.next_item()? {
            text += &format!("{item:?}\n");
        }
        match reader.fingerprint() == self.records[n].manifest {
            true => Ok(text.into_bytes()),
            false => Err(pgark_repo::RepoError::corrupt(object, "another manifest than the record names")),
        }
    }

    /// After damage: an error, or from the mirror what is right; and a frame is right or an error.
    fn judge(&self, object: &ObjectName, what: &dyn Fn() -> String) {
        match self.read(object) {
            Err(_) => {}
            Ok(read) => {
                assert!(read == self.good[object], "{object}: {}: wrong data were returned", what());
                assert!(Kind::of(object).has_mirror(), "{object}: {}: nobody noticed", what());
            }
        }
        let Some(frames) = self.frames.get(object) else { return };
        let Ok(reader) = PackReader::open(self.store.clone(), self.repo.keys(), object) else { return };
        for (at, good) in frames {
            if let Ok(plain) = sample::read_frame(&reader, at) {
                assert!(plain == *good, "{object}: {}: the frame at {} is wrong", what(), at.offset);
            }
        }
    }

    fn bytes(&self, object: &ObjectName) -> Vec<u8> {
        self.store.read(object, u64::MAX).unwrap()
    }

    fn set(&self, object: &ObjectName, bytes: &[u8]) {
        match self.store.damage(object, |b| *b = bytes.to_vec()) {
            Ok(()) => {}
            Err(e) => {
                assert!(e.is_not_found());
                self.store.put_new(object, bytes).unwrap();
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.good.keys()
    }

    /// Problems that a check of this object's register reports; None for objects that are in no register.
    fn problems(&self, object: &ObjectName) -> Option<usize> {
        let found = match Kind::of(object) {
            Kind::Keyring => self.repo.check_keyring(),
            Kind::Catalog => CatalogStore::new(&self.repo, &cluster()).check(),
            Kind::Head => archive(&self.repo).head_register().check(),
            _ => return None,
        };
        Some(found.unwrap().len())
    }
}

/// A value as text, for comparing it.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// All of a small object's bits; of a larger one its first and last ones and some between.
fn bits_to_flip(len: usize) -> Vec<usize> {
    let bits = len * 8;
    if len < EXHAUSTIVE_BYTES {
        return (0..bits).collect();
    }
    let step = (bits / SAMPLED_BITS).max(1) | 1;
    let edges = (0..1024).chain(bits - 1024..bits);
    edges.chain((0..bits).step_by(step)).collect()
}

fn every_flipped_bit(encryption: Algorithm) {
    let subject = Subject::new(encryption);
    for object in subject.names() {
        let len = subject.bytes(object).len();
        for bit in bits_to_flip(len) {
            subject.store.damage(object, |b| flip(b, bit)).unwrap();
            subject.judge(object, &|| format!("bit {bit} of {len} bytes flipped"));
            // A check that finds something waits and looks again: here and there is enough.
            if [0, len * 4, len * 8 - 1].contains(&bit) {
                assert_ne!(subject.problems(object), Some(0), "{object}: a check overlooks bit {bit}");
            }
            subject.store.damage(object, |b| flip(b, bit)).unwrap();
        }
        assert!(subject.read(object).unwrap() == subject.good[object]);
        assert!(matches!(subject.problems(object), None | Some(0)), "{object}");
    }
}

#[test]
fn every_flipped_bit_is_found_without_encryption() {
    every_flipped_bit(Algorithm::None);
}

#[test]
fn every_flipped_bit_is_found_with_aes() {
    every_flipped_bit(Algorithm::Aes256Gcm);
}

#[test]
fn every_flipped_bit_is_found_with_chacha() {
    every_flipped_bit(Algorithm::ChaCha20Poly1305);
}

#[test]
fn every_cut_and_every_addition_is_found() {
    for encryption in ALGORITHMS {
        let subject = Subject::new(encryption);
        for object in subject.names() {
            let good = subject.bytes(object);
            let step = good.len().div_ceil(CUTS);
            for len in (0..good.len()).step_by(step).chain([good.len() - 1]) {
                subject.set(object, &good[..len]);
                subject.judge(object, &|| format!("cut to {len} of {} bytes", good.len()));
                if len == 0 || len == good.len() - 1 {
                    assert_ne!(subject.problems(object), Some(0), "{object}: a check overlooks the cut at {len}");
                }
            }
            for extra in [&[0][..], b"\n", &[0; 100], &good] {
                subject.set(object, &[&good, extra].concat());
                subject.judge(object, &|| format!("{} bytes added", extra.len()));
            }
            subject.set(object, &good);
        }
    }
}

#[test]
fn what_is_deleted_or_renamed_is_missed() {
    for encryption in ALGORITHMS {
        let subject = Subject::new(encryption);
        for object in subject.names() {
            let good = subject.bytes(object);
            subject.store.delete(object).unwrap();
            subject.judge(object, &|| "deleted".into());
            assert_ne!(subject.problems(object), Some(0), "{object}: a check overlooks that it is gone");

            let other = beside(object);
            subject.store.put_new(&other, &good).unwrap();
            subject.judge(object, &|| format!("renamed to {other}"));
            subject.store.delete(&other).unwrap();
            subject.set(object, &good);
        }
    }
}

/// A free name of the same kind: of a register, a version that is yet to come.
fn beside(object: &ObjectName) -> ObjectName {
    let (dir, last) = object.as_str().rsplit_once('/').unwrap();
    match u64::from_str_radix(last, 16) {
        Ok(n) if last.len() == 16 => name(&format!("{dir}/{:016x}", n + 16)),
        _ => name(&format!("{dir}/{last}0")),
    }
}

#[test]
fn swapped_objects_are_told_apart() {
    for encryption in ALGORITHMS {
        let subject = Subject::new(encryption);
        let names: Vec<_> = subject.names().collect();
        for (i, a) in names.iter().enumerate() {
            for b in &names[i + 1..] {
                let (good_a, good_b) = (subject.bytes(a), subject.bytes(b));
                if Kind::of(a).family() != Kind::of(b).family() || good_a == good_b {
                    continue;
                }
                subject.set(a, &good_b);
                subject.set(b, &good_a);
                subject.judge(a, &|| format!("swapped with {b}"));
                subject.judge(b, &|| format!("swapped with {a}"));
                subject.set(a, &good_a);
                subject.set(b, &good_b);
            }
        }
    }
}

#[test]
fn an_object_of_another_kind_is_refused() {
    let subject = Subject::new(Algorithm::Aes256Gcm);
    for object in subject.names() {
        let good = subject.bytes(object);
        for other in subject.names().filter(|o| Kind::of(o).family() != Kind::of(object).family()) {
            subject.set(object, &subject.bytes(other));
            subject.judge(object, &|| format!("replaced by {other}"));
        }
        subject.set(object, &good);
    }
}

#[test]
fn objects_of_another_repository_are_refused() {
    for encryption in ALGORITHMS {
        let (subject, other) = (Subject::new(encryption), Subject::new(encryption));
        for object in subject.names() {
            let linked = matches!(Kind::of(object), Kind::Record(_) | Kind::Manifest(_) | Kind::Pack(_));
            let good = subject.bytes(object);
            // Without a key, whoever can write can forge what nothing else vouches for. Registers have other names
            // only if the other repository has changed more often.
            let bytes = match other.store.read(object, u64::MAX) {
                Ok(bytes) if bytes != good && (linked || encryption != Algorithm::None) => bytes,
                Ok(_) => continue,
                Err(e) => panic!("the repositories have the same objects: {e}"),
            };
            // Another repository's key ring opens only with that repository's key: here both have the same.
            if Kind::of(object) == Kind::Keyring {
                continue;
            }
            subject.set(object, &bytes);
            subject.judge(object, &|| "replaced by the same object of another repository".into());
            subject.set(object, &good);
        }
    }
}

#[test]
fn the_key_ring_of_another_repository_does_not_open_with_our_key() {
    let (store, _) = memory_repository(Algorithm::Aes256Gcm);
    let unlock = |text: &str| Unlock::age_identities(text);
    assert!(Repository::open(store.clone(), &unlock(identity())).is_ok());
    let error = Repository::open(store, &unlock(&fresh_identity())).err();
    assert!(matches!(error, Some(pgark_repo::RepoError::WrongKey { .. })), "{error:?}");
}

#[test]
fn every_flipped_bit_of_a_key_ring_is_found_by_itself() {
    for encryption in ALGORITHMS {
        let (store, repo) = memory_repository(encryption);
        let good = Repository::ring_bytes(&(store as Arc<dyn Store>)).unwrap();
        let unlock = keys(encryption).unlock;
        let open = |bytes: &[u8]| match repo.master() {
            Some(m) => Keyring::open_with_master(bytes, m).map(drop),
            None => Keyring::open(bytes, &unlock).map(drop),
        };
        open(&good).unwrap();
        Keyring::open(&good, &unlock).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            flip(&mut bytes, bit);
            assert!(open(&bytes).is_err(), "{encryption:?}: bit {bit}");
            assert!(Keyring::open(&bytes, &unlock).is_err(), "{encryption:?}: bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Keyring::open(&good[..len], &unlock).is_err(), "{encryption:?}: cut to {len}");
        }
    }
}

#[test]
fn a_passphrase_opens_no_damaged_ring() {
    let new = sample::new_keys(Algorithm::Aes256Gcm, Some(b"golden"), identity());
    let good = Keyring::create(&new).unwrap().to_bytes();
    let unlock = Unlock::passphrase(b"golden");
    Keyring::open(&good, &unlock).unwrap();
    // Few, because each may cost a derivation of the key.
    for bit in (0..good.len() * 8).step_by(good.len() * 8 / 24) {
        let mut bytes = good.clone();
        flip(&mut bytes, bit);
        assert!(Keyring::open(&bytes, &unlock).is_err(), "bit {bit}");
    }
}

#[test]
fn a_register_whose_newest_version_is_gone_twice_fails_its_check() {
    for encryption in ALGORITHMS {
        let subject = Subject::new(encryption);
        for dir in [names::catalog_dir(&cluster()), archive(&subject.repo).place().head_dir()] {
            let newest = subject.names().filter(|o| o.parent() == dir).max().unwrap().clone();
            let mirror = name(&newest.as_str().replace(&dir, &format!("{dir}-mirror")));
            subject.store.delete(&newest).unwrap();
            subject.store.delete(&mirror).unwrap();
            assert_ne!(
                subject.problems(&newest),
                Some(0),
                "{dir}: a check overlooks the fall back to an older version"
            );
        }
    }
}
