use std::sync::Arc;

use super::*;
use crate::crypto::Algorithm;
use crate::keyring::{NewKeys, Unlock};
use crate::store::MemoryStore;
use pgark_pg::value::{Lsn, TimelineId};

fn catalog() -> CatalogStore {
    let new = NewKeys {
        encryption: Algorithm::None,
        unlock: Unlock::default(),
        age_recipients: vec![],
        key_commands: vec![],
    };
    let (repo, _) = Repository::init(Arc::new(MemoryStore::new()), &new).unwrap();
    let store = CatalogStore::new(&repo, &ClusterName::parse("main").unwrap());
    store.register(&lineage(1), false).unwrap();
    store
}

fn lineage(system_id: u64) -> Lineage {
    Lineage {
        system_id: SystemId(system_id),
        version_num: 150018,
        catalog_version: 202209061,
        segment_size: SegmentSize::new(16 << 20).unwrap(),
        registered: Timestamp::UNIX_EPOCH,
    }
}

fn id(n: u32) -> BackupId {
    BackupId::parse(&format!("20260101-0000{n:02}F")).unwrap()
}

fn entry(id: &BackupId) -> BackupEntry {
    BackupEntry {
        id: id.clone(),
        kind: BackupKind::Physical,
        backup_type: BackupType::Full,
        system_id: SystemId(1),
        version_num: 150018,
        started: Timestamp::UNIX_EPOCH,
        finished: Timestamp::UNIX_EPOCH,
        physical: Some(PhysicalFacts {
            lsn_start: Lsn(1),
            lsn_stop: Lsn(2),
            stopped: Timestamp::UNIX_EPOCH,
            timeline: TimelineId::new(1).unwrap(),
            bad_blocks: 0,
            from_standby: false,
        }),
        size_bytes: 0,
        read_bytes: 0,
        stored_bytes: 0,
        database_bytes: None,
        series: None,
        kept: false,
        kept_until: None,
        holds: vec![],
        damaged: None,
        certain: None,
        evidence: Evidence::Stored,
        drilled: None,
        annotations: BTreeMap::new(),
        needs: vec![],
        record: Fingerprint { size: 0, blake3: String::new() },
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_name_belongs_to_one_system_identifier_until_another_is_adopted() {
    let c = catalog();
    assert!(!c.register(&lineage(1), false).unwrap());
    assert!(matches!(c.register(&lineage(2), false), Err(RepoError::Busy { .. })));
    assert!(c.register(&lineage(2), true).unwrap());
    assert_eq!(c.read().unwrap().lineage().unwrap().system_id, SystemId(2));
    assert!(c.read().unwrap().lineage_of(SystemId(1)).is_some());
}

#[test]
fn one_backup_at_a_time() {
    let c = catalog();
    let first = c.claim(JobKind::Backup, &id(1), at(0)).unwrap();
    assert!(matches!(c.claim(JobKind::Backup, &id(2), at(1)), Err(RepoError::Busy { .. })));
    first.commit_backup(&entry(&id(1))).unwrap();
    assert!(c.read().unwrap().backup(&id(1)).is_some());
    c.claim(JobKind::Backup, &id(2), at(2)).unwrap();
}

#[test]
fn who_slept_too_long_cannot_commit() {
    let c = catalog();
    let sleeper = c.claim(JobKind::Backup, &id(1), at(0)).unwrap();
    let late = at(CLAIM_TTL_SECONDS + 1);
    let next = c.claim(JobKind::Backup, &id(2), late).unwrap();
    assert!(matches!(sleeper.check(), Err(RepoError::Fenced { .. })));
    assert!(matches!(sleeper.commit_backup(&entry(&id(1))), Err(RepoError::Fenced { .. })));
    // What it has stored stays for the next one, and is to go once that one is there.
    assert_eq!(c.read().unwrap().interrupted, [id(1)]);
    assert!(c.sweep().unwrap().is_empty() && c.read().unwrap().removing.is_empty());
    next.commit_backup(&entry(&id(2))).unwrap();
    assert_eq!(c.read().unwrap().removing, [id(1)]);
    assert!(c.read().unwrap().interrupted.is_empty());
}

#[test]
fn a_renewed_claim_lasts() {
    let c = catalog();
    let claim = c.claim(JobKind::Backup, &id(1), at(0)).unwrap();
    claim.renew(at(CLAIM_TTL_SECONDS)).unwrap();
    assert!(matches!(c.claim(JobKind::Backup, &id(2), at(CLAIM_TTL_SECONDS + 9)), Err(RepoError::Busy { .. })));
}

#[test]
fn a_backup_being_restored_cannot_be_deleted() {
    let c = catalog();
    c.claim(JobKind::Backup, &id(1), at(0)).unwrap().commit_backup(&entry(&id(1))).unwrap();
    let restore = c.claim(JobKind::Restore, &id(1), at(1)).unwrap();
    assert!(matches!(c.claim(JobKind::Delete, &id(1), at(1)), Err(RepoError::Busy { .. })));
    restore.release().unwrap();
    let delete = c.claim(JobKind::Delete, &id(1), at(1)).unwrap();
    delete.unlist().unwrap();
    assert!(c.read().unwrap().backup(&id(1)).is_none());
    delete.release().unwrap();
    assert_eq!(c.sweep().unwrap(), [id(1)]);
    assert!(c.read().unwrap().removing.is_empty());
    assert!(matches!(c.claim(JobKind::Restore, &id(1), at(2)), Err(RepoError::NoBackup { .. })));
}
