//! An unencrypted repository in memory, into which a target puts bytes under the name that a reader asks for.
//! Without encryption every checksum can be computed, so that the fuzzer gets past the seals.

#![allow(dead_code)]

use std::sync::Arc;

use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use pgark_repo::Repository;
use pgark_repo::crypto::{Algorithm, ObjectKind};
use pgark_repo::keyring::{NewKeys, Unlock};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::store::{MemoryStore, ObjectName};
use pgark_repo::stream::{Fingerprint, seal_bytes};
use pgark_repo::wal::WalArchive;

pub const SYSTEM: SystemId = SystemId(7_123_456_789_012_345_678);

pub fn repository() -> Repository {
    let new = NewKeys { encryption: Algorithm::None, unlock: Unlock::default(), age_recipients: vec![], key_commands: vec![] };
    Repository::init(Arc::new(MemoryStore::new()), &new).unwrap().0
}

pub fn cluster() -> ClusterName {
    ClusterName::parse("main").unwrap()
}

pub fn backup_id() -> BackupId {
    BackupId::parse("20260822-031501F").unwrap()
}

pub fn segment_size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub fn segment() -> SegmentName {
    SegmentName { timeline: TimelineId::new(1).unwrap(), segment: SegmentNo(2) }
}

pub fn archive(repo: &Repository) -> WalArchive {
    WalArchive::new(repo, &cluster(), SYSTEM)
}

pub fn print_of(bytes: &[u8]) -> Fingerprint {
    Fingerprint { size: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
}

/// Seals `plain` and stores it as `name`.
pub fn put(repo: &Repository, kind: ObjectKind, name: &ObjectName, plain: &[u8]) -> Fingerprint {
    let sealed = seal_bytes(repo.keys(), kind, name, plain).unwrap();
    repo.store().put_new(name, &sealed).unwrap();
    print_of(&sealed)
}

/// The first version of a register, as it is stored: one mark, then the value.
pub fn put_register(repo: &Repository, kind: ObjectKind, dir: &str, value: &[u8]) {
    let name = ObjectName::parse(&format!("{dir}/{:016x}", 1)).unwrap();
    put(repo, kind, &name, &[&[1u8][..], &[7; 8], value].concat());
}
