//! The record of a backup: everything about it but its list of files. Small, sealed, and the last object that
//! a backup writes before the catalog lists it.

mod parts;

use jiff::Timestamp;
use pgark_pg::value::{Lsn, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};

use crate::catalog::{BackupKind, BackupType};
use crate::crypto::{KeySet, ObjectKind, hex_bytes};
use crate::error::{RepoError, Result};
use crate::limits::RECORD_BYTES_MAX;
use crate::names::{BackupId, ClusterName, record};
use crate::repository::Repository;
use crate::store::ObjectName;
use crate::stream::{Fingerprint, StreamReader, seal_bytes};

pub use parts::{
    DatabaseDump, DatabaseSetting, FilesPart, FilesRoot, GlobalsPart, Grant, HexPath, KeyOutside, LeftOut, LeftOutWhy,
    PartsRecord, Section, TruthPart,
};

/// Of a physical backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupRecord {
    pub id: BackupId,
    pub cluster: ClusterName,
    pub kind: BackupKind,
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    /// Of the program that wrote it.
    pub program: String,
    pub system_id: SystemId,
    pub version_num: u32,
    pub catalog_version: u32,
    pub segment_size: SegmentSize,
    pub block_size: u32,
    pub data_checksums: bool,
    pub timeline: TimelineId,
    pub lsn_start: Lsn,
    pub lsn_stop: Lsn,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub from_standby: bool,
    /// Byte for byte as PostgreSQL handed it out.
    #[serde(with = "hex_bytes")]
    pub backup_label: Vec<u8>,
    /// `pg_control` as it was when everything else had been read; restored last.
    #[serde(with = "hex_bytes")]
    pub pg_control: Vec<u8>,
    pub tablespaces: Vec<TablespaceLink>,
    /// Configuration files that lie outside the data directory.
    pub config_files: Vec<ConfigFile>,
    pub owner: Owner,
    pub manifest: Fingerprint,
    pub totals: Totals,
    pub bad_blocks: u64,
    pub vanished_files: u64,
    /// Said to the person who took the backup.
    pub warnings: Vec<String>,
    /// What an incremental backup took over from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Why a writer's backup is a full one although another was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_because: Option<String>,
}

/// How an incremental backup found out what had changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Need not exist any more: what was taken over is in the manifest.
    pub backup: BackupId,
    pub method: Method,
    /// Why everything had to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The WAL says which blocks changed; only those were read.
    Blocks,
    /// Everything was read and compared by its content.
    Contents,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceLink {
    pub oid: u32,
    #[serde(with = "hex_bytes")]
    pub location: Vec<u8>,
    /// A directory inside `pg_tblspc` instead of a link (`allow_in_place_tablespaces`).
    pub in_place: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// `postgresql.conf`, `pg_hba.conf` or `pg_ident.conf`.
    pub name: String,
    pub path: String,
    #[serde(with = "hex_bytes")]
    pub content: Vec<u8>,
}

/// Who owned the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits of the data directory.
    pub mode: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub files: u64,
    pub directories: u64,
    /// Content of the files as restored.
    pub size_bytes: u64,
    pub read_bytes: u64,
    /// Packs, manifest and record.
    pub stored_bytes: u64,
    pub packs: u64,
    pub frames: u64,
}

impl BackupRecord {
    /// Writes the record; durable when this returns.
    pub fn store(&self, repo: &Repository) -> Result<Fingerprint> {
        store(repo, &record(&self.cluster, &self.id), self)
    }

    /// Reads it back, and compares it with what the catalog knows of it.
    pub fn load(repo: &Repository, cluster: &ClusterName, id: &BackupId, expected: &Fingerprint) -> Result<Self> {
        match Record::load(repo, cluster, id, expected)? {
            Record::Physical(rec) => Ok(*rec),
            Record::Parts(rec) => Err(RepoError::corrupt(
                record(cluster, id),
                format!("of a {} backup, and not of a physical one", rec.kind),
            )),
        }
    }
}

/// The record of any backup.
#[derive(Clone, Debug)]
pub enum Record {
    Physical(Box<BackupRecord>),
    Parts(Box<PartsRecord>),
}

impl Record {
    /// Reads it, and compares it with what the catalog knows of it.
    pub fn load(repo: &Repository, cluster: &ClusterName, id: &BackupId, expected: &Fingerprint) -> Result<Self> {
        let (text, print) = read(repo, &record(cluster, id))?;
        if print != *expected {
            return Err(RepoError::corrupt(record(cluster, id), "not the record that the catalog lists"));
        }
        Self::parse(&text, cluster, id)
    }

    /// Reads it without a catalog: that it was written under this name is all that is known.
    pub fn find(repo: &Repository, cluster: &ClusterName, id: &BackupId) -> Result<(Self, Fingerprint)> {
        let (text, print) = read(repo, &record(cluster, id))?;
        Ok((Self::parse(&text, cluster, id)?, print))
    }

    fn parse(text: &[u8], cluster: &ClusterName, id: &BackupId) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            id: BackupId,
            cluster: ClusterName,
            kind: BackupKind,
        }
        let name = record(cluster, id);
        let wrong = |e| RepoError::corrupt(&name, e);
        let head: Head = serde_json::from_slice(text).map_err(wrong)?;
        if head.id != *id || head.cluster != *cluster {
            return Err(RepoError::corrupt(name, "the record of another backup"));
        }
        if head.kind != id.kind() {
            return Err(RepoError::corrupt(name, "the record of a backup of another kind"));
        }
        Ok(match head.kind {
            BackupKind::Physical => Record::Physical(serde_json::from_slice(text).map_err(wrong)?),
            _ => Record::Parts(serde_json::from_slice(text).map_err(wrong)?),
        })
    }

    pub fn manifest(&self) -> &Fingerprint {
        match self {
            Record::Physical(r) => &r.manifest,
            Record::Parts(r) => &r.manifest,
        }
    }

    pub fn totals(&self) -> &Totals {
        match self {
            Record::Physical(r) => &r.totals,
            Record::Parts(r) => &r.totals,
        }
    }
}

fn read(repo: &Repository, name: &ObjectName) -> Result<(Vec<u8>, Fingerprint)> {
    let mut reader = StreamReader::open(repo.store().clone(), repo.keys(), ObjectKind::BackupRecord, name)?;
    let text = reader.read_to_end(RECORD_BYTES_MAX)?;
    Ok((text, reader.fingerprint()))
}

/// Durable when this returns.
fn store(repo: &Repository, name: &ObjectName, value: &impl Serialize) -> Result<Fingerprint> {
    let text = serde_json::to_vec(value).expect("a record is plain data");
    let sealed = seal_bytes(repo.keys(), ObjectKind::BackupRecord, name, &text)?;
    repo.store().put_new(name, &sealed)?;
    Ok(Fingerprint { size: sealed.len() as u64, blake3: blake3::hash(&sealed).to_hex().to_string() })
}

/// The keys are needed by those who open manifests; here so that callers need one import.
pub fn manifest_reader(
    repo: &Repository,
    cluster: &ClusterName,
    id: &BackupId,
) -> Result<crate::manifest::ManifestReader> {
    let keys: &KeySet = repo.keys();
    crate::manifest::ManifestReader::open(repo.store().clone(), keys, &crate::names::manifest(cluster, id))
}
