//! Slots and generations of the key: everything stays readable, whatever is interrupted, and nothing else opens it.

use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::{Algorithm, KeySet};
use pgark_repo::error::{RepoError, Result};
use pgark_repo::keyring::{self, Change, CopySlots, Fate, Keyring, Secrets, SlotError, Unlock};
use pgark_repo::names;
use pgark_repo::store::fault::{Fault, Op, When};
use pgark_repo::store::{FaultStore, MemoryStore, Store};
use zeroize::Zeroizing;

use crate::common::{self, fresh_identity, keys, memory_repository, name, objects};
use crate::crash::{self, FAULTS, Scenario, backup, committed_backups_are_whole, memory, one_backup, open, push};
use crate::key_commands::with_vault;
use crate::sample::{self, archive, backup_id, cluster};

fn recipient(identity: &str) -> String {
    identity.parse::<age::x25519::Identity>().unwrap().to_public().to_string()
}

/// What `common::keys` opens with.
pub fn unlock() -> Unlock {
    keys(Algorithm::Aes256Gcm).unlock
}

/// A deletion that fails leaves an older ring, which the next run removes.
fn gone(gone: bool) -> Result<()> {
    if gone { Ok(()) } else { Err(RepoError::Invalid { what: "sequence", value: "an older ring stays".into() }) }
}

/// As `pgark key rotate` does it; a key that was rotated is not rotated again.
fn rotate(store: &Arc<dyn Store>, unlock: &Unlock, drop: &[String]) -> Result<()> {
    keyring::edit(store, unlock, |ring| {
        if ring.generation() > 1 {
            return Ok(Change::Leave(()));
        }
        ring.rotate(Secrets { unlock, passphrases: &[] }, drop)?;
        Ok(Change::Write(()))
    })?;
    gone(keyring::retire_older(store, unlock)?)
}

fn add(store: &Arc<dyn Store>, identity: &str) -> Result<()> {
    let to = recipient(identity);
    keyring::edit(store, &unlock(), |ring| {
        if ring.slots().iter().any(|s| s.recipient.as_ref() == Some(&to)) {
            return Ok(Change::Leave(()));
        }
        ring.add_age(&to, Some("the other one"))?;
        Ok(Change::Write(()))
    })
}

fn remove(store: &Arc<dyn Store>, identity: &str) -> Result<()> {
    let to = recipient(identity);
    keyring::edit(store, &unlock(), |ring| {
        let Some(slot) = ring.slots().into_iter().find(|s| s.recipient.as_ref() == Some(&to)) else {
            return Ok(Change::Leave(()));
        };
        ring.remove_slot(&slot.id, &ring.proven(&unlock())?)?;
        Ok(Change::Write(()))
    })?;
    gone(keyring::retire_older(store, &unlock())?)
}

pub fn ring(store: &Arc<dyn Store>) -> Keyring {
    keyring::read(store, &unlock()).unwrap()
}

/// Rings in the store, old and new.
fn rings(store: &Arc<dyn Store>) -> Vec<Vec<u8>> {
    let of_ring = objects(&**store).into_iter().filter(|n| n.as_str().starts_with("keyring"));
    of_ring.map(|n| store.read(&n, 1 << 20).unwrap()).collect()
}

#[test]
fn adding_a_slot_can_be_interrupted_anywhere() {
    let other = fresh_identity();
    Scenario {
        name: "key add",
        before: &one_backup,
        sequence: &|store, _| add(store, &other),
        after: &|store| {
            assert_eq!(ring(store).slots().len(), 2);
            let theirs = Repository::open(store.clone(), &Unlock::age_identities(&other)).unwrap();
            assert!(theirs.master() == open(store).unwrap().master());
            assert!(theirs.check_keyring().unwrap().is_empty());
        },
        repeats_exactly: true,
    }
    .sweep(&memory, &FAULTS);
}

#[test]
fn removing_a_slot_can_be_interrupted_anywhere_and_no_ring_that_it_opens_stays() {
    let other = fresh_identity();
    let theirs = Unlock::age_identities(&other);
    Scenario {
        name: "key remove",
        before: &|store| {
            let trees = one_backup(store);
            add(store, &other).unwrap();
            assert!(Repository::open(store.clone(), &theirs).is_ok());
            trees
        },
        sequence: &|store, _| remove(store, &other),
        after: &|store| {
            assert_eq!(ring(store).slots().len(), 1);
            assert!(open(store).unwrap().check_keyring().unwrap().is_empty());
            let rings = rings(store);
            assert!(rings.len() >= 2);
            for bytes in rings {
                assert!(matches!(Keyring::open(&bytes, &theirs), Err(RepoError::WrongKey { .. })));
                assert!(Keyring::open(&bytes, &unlock()).is_ok());
            }
        },
        repeats_exactly: true,
    }
    .sweep(&memory, &FAULTS);
}

#[test]
fn a_rotation_can_be_interrupted_anywhere_and_old_and_new_stay_readable() {
    let dropped = fresh_identity();
    Scenario {
        name: "key rotate",
        before: &|store| {
            let trees = one_backup(store);
            add(store, &dropped).unwrap();
            trees
        },
        sequence: &|store, _| {
            let ring = keyring::read(store, &unlock())?;
            let of = |s: &keyring::SlotInfo| s.recipient.as_ref() == Some(&recipient(&dropped));
            let drop: Vec<String> = ring.slots().iter().filter(|s| of(s)).map(|s| s.id.clone()).collect();
            rotate(store, &unlock(), &drop)
        },
        after: &|store| {
            let ring = ring(store);
            assert_eq!((ring.generation(), ring.slots().len(), ring.masters().len()), (2, 1, 2));
            let repo = open(store).unwrap();
            assert!(repo.check_keyring().unwrap().is_empty());
            assert!(CatalogStore::new(&repo, &cluster()).check().unwrap().is_empty());
            for bytes in rings(store) {
                assert!(Keyring::open(&bytes, &Unlock::age_identities(&dropped)).is_err());
            }
        },
        repeats_exactly: true,
    }
    .sweep(&memory, &FAULTS);
}

/// Of the header of an object.
fn generation_of(store: &Arc<dyn Store>, object: &pgark_repo::store::ObjectName) -> u32 {
    let bytes = store.read(object, 1 << 30).unwrap();
    u32::from_le_bytes(bytes[12..16].try_into().unwrap())
}

#[test]
fn after_a_rotation_new_data_is_under_the_new_key_and_backups_of_both_are_read() {
    let store = memory();
    let trees = one_backup(&store);
    let before = open(&store).unwrap();
    rotate(&store, &unlock(), &[]).unwrap();
    committed_backups_are_whole(&store, &trees, "after the rotation");
    backup(&store, 0).unwrap();
    push(&store, 0).unwrap();
    committed_backups_are_whole(&store, &trees, "after more was written");
    let pack = |n| names::pack(&cluster(), &backup_id(n), 0);
    assert_eq!((generation_of(&store, &pack(1)), generation_of(&store, &pack(10))), (1, 2));
    let after = open(&store).unwrap();
    assert_eq!(after.keys().generation(), 2);
    // An incremental backup compares what it reads with content ids of earlier backups.
    assert_eq!(before.keys().content_id(b"the same content"), after.keys().content_id(b"the same content"));
    assert!(before.master() != after.master());
}

#[test]
fn a_job_that_runs_during_a_rotation_reads_what_is_written_after_it_and_is_readable() {
    let store = memory();
    let trees = one_backup(&store);
    let running = open(&store).unwrap();
    let catalog = CatalogStore::new(&running, &cluster());
    let claim = catalog.claim(pgark_repo::catalog::JobKind::Backup, &backup_id(7), sample::at(100)).unwrap();
    rotate(&store, &unlock(), &[]).unwrap();
    // Packs and record are sealed under the old key, the head that it reads under the new one.
    let (entry, _) = sample::write_backup(&running, &backup_id(7)).unwrap();
    assert_eq!(running.keys().generation(), 1);
    push(&store, 0).unwrap();
    assert_eq!(archive(&running).head().unwrap().timeline(sample::timeline(1)).unwrap().ranges, [(2, 6)]);
    assert_eq!(running.keys().generation(), 2, "the job goes on with the new key");
    claim.commit_backup(&entry).unwrap();
    committed_backups_are_whole(&store, &trees, "after the job");
    let catalog = CatalogStore::new(&open(&store).unwrap(), &cluster());
    assert!(catalog.read().unwrap().backup(&backup_id(7)).is_some());
    assert!(catalog.check().unwrap().is_empty());
    assert!(running.check_keyring().unwrap().is_empty());
}

#[test]
fn a_job_whose_secret_was_dropped_meanwhile_fails_with_that_reason() {
    let store = memory();
    one_backup(&store);
    let other = fresh_identity();
    add(&store, &other).unwrap();
    let theirs = Repository::open(store.clone(), &Unlock::age_identities(&other)).unwrap();
    let id = ring(&store).slots().into_iter().find(|s| s.label.is_some()).unwrap().id;
    rotate(&store, &unlock(), &[id]).unwrap();
    push(&store, 0).unwrap();
    let error = archive(&theirs).head().err();
    assert!(matches!(error, Some(RepoError::WrongKey { .. })), "{error:?}");
    // What it still writes is read by those who have the key.
    let old = archive(&theirs).place().head_dir();
    assert!(!old.is_empty());
    sample::write_backup(&theirs, &backup_id(8)).unwrap();
    let manifest = names::manifest(&cluster(), &backup_id(8));
    assert_eq!(generation_of(&store, &manifest), 1);
    let repo = open(&store).unwrap();
    assert!(pgark_repo::manifest::ManifestReader::open(store.clone(), repo.keys(), &manifest).is_ok());
}

#[test]
fn a_recovering_server_is_told_that_the_key_was_rotated() {
    let store = memory();
    one_backup(&store);
    let before = open(&store).unwrap();
    let of_file = |repo: &Repository| {
        let keys = KeySet::from_wal_keys(repo.encryption(), repo.keys().generation(), &repo.keys().wal_keys());
        Repository::open_for_wal(store.clone(), keys)
    };
    let recovering = of_file(&before);
    rotate(&store, &unlock(), &[]).unwrap();
    assert!(archive(&recovering).head().is_ok(), "what was there stays readable");
    push(&store, 0).unwrap();
    let error = archive(&recovering).head().err();
    assert!(matches!(error, Some(RepoError::NewerKey { generation: 2, known: 1, .. })), "{error:?}");
    let renewed = of_file(&open(&store).unwrap());
    assert_eq!(archive(&renewed).head().unwrap().timeline(sample::timeline(1)).unwrap().ranges, [(2, 6)]);
    for n in [2, 6] {
        assert!(sample::read_segment(&archive(&renewed), &sample::segment(n)).is_ok());
    }
}

#[test]
fn a_header_that_claims_a_newer_key_is_damage_and_a_foreign_ring_is_not_believed() {
    let store = Arc::new(MemoryStore::new());
    let shared: Arc<dyn Store> = store.clone();
    one_backup(&shared);
    let repo = open(&shared).unwrap();
    let object = names::record(&cluster(), &backup_id(1));
    let mut bytes = shared.read(&object, 1 << 20).unwrap();
    bytes[12] = 2;
    let entry = CatalogStore::new(&repo, &cluster()).read().unwrap().backups.remove(0);
    shared.delete(&object).unwrap();
    shared.put_new(&object, &bytes).unwrap();
    let load = || pgark_repo::record::BackupRecord::load(&repo, &cluster(), &entry.id, &entry.record).err();
    assert!(matches!(load(), Some(RepoError::Corrupt { .. })), "{:?}", load());
    // Recipients are public: anybody can make a ring that our identity opens, with a key of theirs.
    let forged = {
        let theirs: Arc<dyn Store> = Arc::new(MemoryStore::new());
        sample::init(theirs.clone(), &keys(Algorithm::Aes256Gcm));
        rotate(&theirs, &unlock(), &[]).unwrap();
        rings(&theirs).remove(0)
    };
    for dir in ["keyring", "keyring-mirror"] {
        shared.put_new(&name(&format!("{dir}/{:016x}", 9)), &forged).unwrap();
    }
    assert!(matches!(load(), Some(RepoError::Corrupt { .. })), "{:?}", load());
    assert_eq!(repo.keys().generation(), 1);
}

#[test]
fn the_last_slot_and_the_only_one_that_opens_are_not_removed() {
    let (store, _) = memory_repository(Algorithm::Aes256Gcm);
    let store: Arc<dyn Store> = store;
    let slot = ring(&store).slots().remove(0);
    let attempt = |id: &str| {
        let before = rings(&store);
        let done = keyring::edit(&store, &unlock(), |ring| {
            ring.remove_slot(id, &ring.proven(&unlock())?)?;
            Ok(Change::Write(()))
        });
        assert!(rings(&store) == before, "a refusal changes nothing");
        done.err()
    };
    let slot_error = |e: Option<RepoError>| match e {
        Some(RepoError::Slot(e)) => e,
        e => panic!("{e:?}"),
    };
    assert_eq!(slot_error(attempt(&slot.id)), SlotError::Last { id: slot.id.clone() });
    add(&store, &fresh_identity()).unwrap();
    assert_eq!(slot_error(attempt(&slot.id)), SlotError::Unproven { id: slot.id.clone() });
    assert_eq!(slot_error(attempt("00000000")), SlotError::None { id: "00000000".into() });
    // Dropping what is at hand in a rotation would lock the caller out.
    let done = rotate(&store, &unlock(), std::slice::from_ref(&slot.id)).err();
    assert_eq!(slot_error(done), SlotError::LockedOut);
    let all: Vec<String> = ring(&store).slots().into_iter().map(|s| s.id).collect();
    assert!(matches!(slot_error(rotate(&store, &unlock(), &all).err()), SlotError::Last { .. }));
    assert_eq!(ring(&store).generation(), 1);
}

#[test]
fn a_rotation_refuses_to_lock_out_a_slot_whose_secret_is_not_there() {
    let (store, _) = memory_repository(Algorithm::Aes256Gcm);
    let store: Arc<dyn Store> = store;
    let mine = with_vault(unlock(), 0x5a);
    keyring::edit(&store, &mine, |ring| {
        ring.add_passphrase(b"of the other one", None)?;
        ring.add_command("vault", &mine, Some("kms"))?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let ids: Vec<String> = ring(&store).slots().into_iter().map(|s| s.id).collect();
    let fates = |unlock: &Unlock, passphrases: &[Zeroizing<Vec<u8>>]| {
        let fates = ring(&store).fates(Secrets { unlock, passphrases }, &[]).unwrap();
        fates.into_iter().map(|f| f.fate).collect::<Vec<_>>()
    };
    let passphrase = [Zeroizing::new(b"of the other one".to_vec())];
    assert_eq!(fates(&unlock(), &[]), [Fate::Rewrapped, Fate::Locked, Fate::Locked]);
    assert_eq!(fates(&mine, &passphrase), [Fate::Rewrapped; 3]);
    let locked = rotate(&store, &unlock(), &[]).err();
    let Some(RepoError::Slot(SlotError::Locked { slots })) = locked else { panic!("{locked:?}") };
    assert!(slots.contains(&ids[1]) && slots.contains(&ids[2]) && slots.contains("kms"), "{slots}");
    keyring::edit(&store, &mine, |ring| {
        ring.rotate(Secrets { unlock: &mine, passphrases: &passphrase }, &[])?;
        Ok(Change::Write(()))
    })
    .unwrap();
    // Each of the three opens both generations.
    let vault_alone = with_vault(Unlock::default(), 0x5a);
    for unlock in [unlock(), Unlock::passphrase(b"of the other one"), vault_alone] {
        let ring = keyring::read(&store, &unlock).unwrap();
        assert_eq!((ring.generation(), ring.masters().len()), (2, 2));
    }
    assert_eq!(ring(&store).slots().into_iter().map(|s| s.id).collect::<Vec<_>>(), ids);
}

#[test]
fn a_store_that_keeps_old_rings_is_told_of() {
    let inner = memory();
    one_backup(&inner);
    let other = fresh_identity();
    add(&inner, &other).unwrap();
    let faulty = Arc::new(FaultStore::new(inner, 1));
    faulty.inject(&[Op::Delete], When::From(1), Fault::Fail);
    let store: Arc<dyn Store> = faulty;
    let slot = ring(&store).slots().into_iter().find(|s| s.label.is_some()).unwrap();
    keyring::edit(&store, &unlock(), |ring| {
        ring.remove_slot(&slot.id, &ring.proven(&unlock())?)?;
        Ok(Change::Write(()))
    })
    .unwrap();
    assert!(!keyring::retire_older(&store, &unlock()).unwrap());
    assert_eq!(keyring::left_over(&store, ring(&store).masters()).unwrap(), [slot]);
}

#[test]
fn every_flipped_bit_of_a_rotated_ring_is_found() {
    let (store, _) = memory_repository(Algorithm::Aes256Gcm);
    let store: Arc<dyn Store> = store;
    let mine = with_vault(unlock(), 3);
    keyring::edit(&store, &mine, |ring| {
        ring.add_command("vault", &mine, Some("kms"))?;
        ring.rotate(Secrets { unlock: &mine, passphrases: &[] }, &[])?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let good = Repository::ring_bytes(&store).unwrap();
    let masters = ring(&store).masters().to_vec();
    Keyring::open_with_masters(&good, &masters).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Keyring::open_with_masters(&bytes, &masters).is_err(), "bit {bit}");
        if bit % 97 == 0 {
            assert!(Keyring::open(&bytes, &mine).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn an_unencrypted_repository_has_no_keys_to_change() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Repository::init(store.clone(), &common::keys(Algorithm::None)).unwrap();
    let none = Unlock::default();
    let refused = |e: Option<RepoError>| matches!(e, Some(RepoError::Slot(SlotError::NotEncrypted)));
    let edit =
        |f: &dyn Fn(&mut Keyring) -> Result<()>| keyring::edit(&store, &none, |ring| f(ring).map(Change::Write)).err();
    assert!(refused(edit(&|r| r.add_passphrase(b"p", None).map(drop))));
    assert!(refused(edit(&|r| r.remove_slot("00000000", &[]).map(drop))));
    assert!(refused(edit(&|r| r.rotate(Secrets { unlock: &none, passphrases: &[] }, &[]).map(drop))));
}

#[test]
fn two_changes_at_once_both_come_about() {
    let store = memory();
    crash::one_backup(&store);
    let (a, b) = (fresh_identity(), fresh_identity());
    std::thread::scope(|scope| {
        for identity in [&a, &b] {
            scope.spawn(|| add(&store, identity).unwrap());
        }
    });
    for identity in [&a, &b] {
        assert!(Repository::open(store.clone(), &Unlock::age_identities(identity)).is_ok());
    }
    assert_eq!(ring(&store).slots().len(), 3);
}

#[test]
fn writers_that_race_with_rotations_write_nothing_that_cannot_be_read() {
    const SEGMENTS: std::ops::Range<u64> = 5..45;
    let store = memory();
    let trees = one_backup(&store);
    std::thread::scope(|scope| {
        // One that opened before all of them and goes on, and one that opens anew each time, as PostgreSQL's archiver.
        let early = open(&store).unwrap();
        scope.spawn(move || {
            for n in SEGMENTS.step_by(2) {
                sample::push_wal(&early, &[n]).unwrap();
            }
        });
        let again = store.clone();
        scope.spawn(move || {
            for n in SEGMENTS.skip(1).step_by(2) {
                sample::push_wal(&open(&again).unwrap(), &[n]).unwrap();
            }
        });
        for _ in 0..6 {
            keyring::edit(&store, &unlock(), |ring| {
                ring.rotate(Secrets { unlock: &unlock(), passphrases: &[] }, &[])?;
                Ok(Change::Write(()))
            })
            .unwrap();
            keyring::retire_older(&store, &unlock()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    assert_eq!(ring(&store).generation(), 7);
    committed_backups_are_whole(&store, &trees, "after the race");
    let head = archive(&open(&store).unwrap()).head().unwrap();
    let ranges = &head.timeline(sample::timeline(1)).unwrap().ranges;
    assert_eq!(ranges.iter().map(|(a, b)| b - a + 1).sum::<u64>(), SEGMENTS.end - 2);
}

#[test]
fn a_damaged_copy_of_the_ring_is_not_carried_on() {
    for dir in ["keyring", "keyring-mirror"] {
        let store = memory();
        let trees = one_backup(&store);
        let object = name(&format!("{dir}/{:016x}", 1));
        let mut bytes = store.read(&object, 1 << 20).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        store.delete(&object).unwrap();
        store.put_new(&object, &bytes).unwrap();
        assert_eq!(open(&store).unwrap().check_keyring().unwrap().len(), 1, "{dir}");
        rotate(&store, &unlock(), &[]).unwrap();
        assert!(open(&store).unwrap().check_keyring().unwrap().is_empty(), "{dir}");
        assert!(rings(&store).iter().all(|ring| Keyring::open(ring, &unlock()).is_ok()), "{dir}");
        committed_backups_are_whole(&store, &trees, dir);
    }
}

#[test]
fn a_ring_of_a_newer_program_is_neither_read_nor_written_over() {
    let store = Arc::new(MemoryStore::new());
    let shared: Arc<dyn Store> = store.clone();
    one_backup(&shared);
    for ring in objects(&*shared).into_iter().filter(|n| n.as_str().starts_with("keyring")) {
        let newer = |bytes: &mut Vec<u8>| {
            let text = b"\"version\":1";
            let at = bytes.windows(text.len()).position(|w| w == text).unwrap();
            bytes[at + text.len() - 1] = b'9';
        };
        store.damage(&ring, newer).unwrap();
    }
    let before = objects(&*shared);
    let refused = |e: Option<RepoError>| assert!(matches!(e, Some(RepoError::Unsupported { found: 9, .. })), "{e:?}");
    refused(open(&shared).err());
    refused(push(&shared, 0).err());
    refused(rotate(&shared, &unlock(), &[]).err());
    refused(Repository::init(shared.clone(), &keys(Algorithm::Aes256Gcm)).err());
    assert_eq!(objects(&*shared), before);
}

/// A repository with one slot, and a copy of it.
fn repository_and_copy() -> (Arc<dyn Store>, Arc<dyn Store>) {
    let store = memory();
    one_backup(&store);
    let copy = memory();
    open(&store).unwrap().open_copy(copy.clone()).unwrap();
    (store, copy)
}

#[test]
fn a_newer_ring_is_not_carried_over_where_a_slot_of_the_copy_would_go() {
    let (store, copy) = repository_and_copy();
    let other = fresh_identity();
    let theirs = Unlock::age_identities(&other);
    add(&copy, &other).unwrap();
    rotate(&store, &unlock(), &[]).unwrap();
    let slot = ring(&copy).slots().into_iter().find(|s| s.label.is_some()).unwrap();
    let before = rings(&copy);
    let refused = open(&store).unwrap().open_copy(copy.clone()).err().unwrap();
    assert!(matches!(&refused, RepoError::CopySlots { slots, .. } if slots.contains(&slot.id)), "{refused}");
    assert!(rings(&copy) == before && Repository::open(copy.clone(), &theirs).is_ok());
    // It goes when it is named, and no ring that it opens is left.
    let drop = [slot.id];
    let slots = CopySlots { drop: &drop, ..CopySlots::default() };
    open(&store).unwrap().open_copy_with(copy.clone(), &slots).unwrap();
    assert_eq!(ring(&copy).generation(), 2);
    assert!(rings(&copy).iter().all(|ring| Keyring::open(ring, &theirs).is_err()));
}

#[test]
fn a_newer_ring_takes_the_place_of_one_whose_secrets_it_knows() {
    let (store, copy) = repository_and_copy();
    let other = fresh_identity();
    let passphrase = Unlock { passphrase: Unlock::passphrase(b"p").passphrase, ..unlock() };
    // By itself in each: the slots are others, and the secrets the same.
    for one in [&store, &copy] {
        add(one, &other).unwrap();
        keyring::edit(one, &unlock(), |ring| ring.add_passphrase(b"p", None).map(Change::Write)).unwrap();
    }
    rotate(&store, &passphrase, &[]).unwrap();
    let source = open(&store).unwrap();
    assert!(matches!(source.open_copy(copy.clone()).err(), Some(RepoError::CopySlots { .. })), "nobody has shown that");
    let slots = CopySlots { own: &|| passphrase.clone(), drop: &[] };
    source.open_copy_with(copy.clone(), &slots).unwrap();
    for secret in [Unlock::age_identities(&other), Unlock::passphrase(b"p"), unlock()] {
        assert_eq!(keyring::read(&copy, &secret).unwrap().generation(), 2);
    }
}

#[test]
fn copies_that_were_rotated_each_on_its_own_are_told_as_that_and_stay_as_they_are() {
    let (store, copy) = repository_and_copy();
    for one in [&store, &copy] {
        rotate(one, &unlock(), &[]).unwrap();
    }
    let before = [rings(&store), rings(&copy)];
    let told = |from: &Arc<dyn Store>, to: &Arc<dyn Store>| {
        let refused = open(from).unwrap().open_copy(to.clone()).err().unwrap();
        assert!(matches!(&refused, RepoError::WrongKey { why } if why.contains("each on its own")), "{refused}");
    };
    told(&store, &copy);
    told(&copy, &store);
    // Also where one of them went on.
    keyring::edit(&store, &unlock(), |ring| {
        ring.rotate(Secrets { unlock: &unlock(), passphrases: &[] }, &[]).map(Change::Write)
    })
    .unwrap();
    told(&store, &copy);
    assert!(before[1] == rings(&copy));
}
