//! The record of a backup that consists of named parts: dumps of databases, what belongs to all of them, files.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_pg::value::SystemId;
use serde::{Deserialize, Serialize};

use super::Totals;
use crate::catalog::{BackupKind, BackupType};
use crate::crypto::hex_bytes;
use crate::error::{RepoError, Result};
use crate::names::{BackupId, ClusterName, record};
use crate::repository::Repository;
use crate::stream::Fingerprint;

/// Of every kind but physical.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartsRecord {
    pub id: BackupId,
    pub cluster: ClusterName,
    pub kind: BackupKind,
    #[serde(rename = "type")]
    pub backup_type: BackupType,
    /// Of the program that wrote it.
    pub program: String,
    pub system_id: SystemId,
    /// Of the server, when the backup began.
    pub version_num: u32,
    pub started: Timestamp,
    pub finished: Timestamp,
    pub from_standby: bool,
    /// In the order of their parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabaseDump>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub globals: Option<GlobalsPart>,
    /// Of a backup of files, or of a system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesPart>,
    pub manifest: Fingerprint,
    pub totals: Totals,
    /// The backup whose content was taken over where it was the same; need not exist any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BackupId>,
    /// Said to the person who took the backup.
    pub warnings: Vec<String>,
}

/// Directories and files beside the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesPart {
    /// In the order of their parts.
    pub roots: Vec<FilesRoot>,
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    /// Content of the files.
    pub size_bytes: u64,
    /// Patterns by which it was chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// What is not in the backup although it lies there, by why; and as many of them by name as `limits` allows.
    pub left_out: Vec<LeftOut>,
    pub left_out_counts: BTreeMap<LeftOutWhy, u64>,
    /// Files that were being written while they were read.
    pub changed: Vec<HexPath>,
    pub changed_count: u64,
}

/// What was named to be backed up: in the manifest it lies under `config` or `files` and its own path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRoot {
    pub section: Section,
    /// Absolute.
    #[serde(with = "hex_bytes")]
    pub path: Vec<u8>,
    pub is_directory: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    Config,
    Files,
}

impl Section {
    /// Its directory in a manifest, in an export and where it is restored to.
    pub fn as_str(self) -> &'static str {
        match self {
            Section::Config => "config",
            Section::Files => "files",
        }
    }
}

impl FilesRoot {
    /// Where it lies in a manifest.
    pub fn part(&self) -> Vec<u8> {
        [self.section.as_str().as_bytes(), &self.path].concat()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    #[serde(with = "hex_bytes")]
    pub path: Vec<u8>,
    pub why: LeftOutWhy,
    /// What the system said, where it said something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Why something is not in a backup of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutWhy {
    /// By its name or its beginning it holds a secret.
    Secret,
    /// By a pattern of the administrator's.
    Excluded,
    /// A socket, a pipe or a device: it holds nothing.
    Special,
    /// It was there, and then it was not.
    Vanished,
    /// It lies in another file system, and these are not entered.
    OtherFileSystem,
    /// The repository itself, or a data directory of PostgreSQL's.
    Own,
    /// It was named and is not there.
    Missing,
    /// It could not be read.
    Unreadable,
}

/// A path whose bytes need not be text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexPath(#[serde(with = "hex_bytes")] pub Vec<u8>);

/// One database: what `create database` has to be told, and its dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseDump {
    pub name: String,
    pub oid: u32,
    /// The directory of its parts in the manifest.
    pub path: String,
    /// The transaction snapshot by which everything of it was read, and when that was taken, by the server's clock.
    pub snapshot: String,
    pub taken: Timestamp,
    pub owner: String,
    pub encoding: String,
    /// As `pg_database.datlocprovider`.
    pub locale_provider: String,
    pub collate: String,
    pub ctype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icu_rules: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collation_version: Option<String>,
    pub tablespace: String,
    /// -1: no limit.
    pub connection_limit: i32,
    pub is_template: bool,
    pub allow_connections: bool,
    /// `pg_database.datacl`; None: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Vec<Grant>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    pub settings: Vec<DatabaseSetting>,
    /// It has no schema `public`, which every new database has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_public: bool,
    /// `pg_database_size`; absent where the role may not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The version of the program that dumped it, such as `15.18`.
    pub dumped_by: String,
    /// Bytes of the dump.
    pub dump_bytes: u64,
    /// Entries in the dump's table of contents, and those of them that are contents of tables.
    pub entries: u64,
    pub table_data: u64,
    /// What the database held, taken in the snapshot of the dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<TruthPart>,
    /// Only these; both empty: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// Foreign keys of these to tables that are not in the dump: no load of it can make them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys_outside: Vec<KeyOutside>,
}

/// A foreign key of a table in a dump to one that is not. Names for people: `schema.table`, what is not UTF-8 is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOutside {
    pub name: String,
    pub table: String,
    pub refers_to: String,
}

/// A truth beside its dump; its own figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruthPart {
    /// Its part in the manifest.
    pub path: String,
    pub bytes: u64,
    /// Whether contents are hashed, too.
    pub hashed: bool,
    pub objects: u64,
    /// Tables whose rows were counted, and all of their rows.
    pub tables: u64,
    pub rows: u64,
    /// Objects that could not be read.
    pub unread: u64,
    pub duration_ms: u64,
}

/// A right on a database or a tablespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// None: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grantee: Option<String>,
    /// `CONNECT`, `CREATE`, `TEMPORARY`.
    pub privilege: String,
    pub grantable: bool,
}

/// `alter database … set`, or `alter role … in database … set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSetting {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

/// What belongs to the cluster and not to one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalsPart {
    /// Its part in the manifest.
    pub path: String,
    pub roles: u64,
    pub tablespaces: u64,
    /// Whether password hashes are in it; only a superuser can read them.
    pub passwords: bool,
}

impl DatabaseDump {
    /// Whether the dump is of parts of the database.
    pub fn is_partial(&self) -> bool {
        !self.schemas.is_empty() || !self.tables.is_empty()
    }
}

impl PartsRecord {
    /// Writes the record; durable when this returns.
    pub fn store(&self, repo: &Repository) -> Result<Fingerprint> {
        super::store(repo, &record(&self.cluster, &self.id), self)
    }

    /// Reads it back, and compares it with what the catalog knows of it.
    pub fn load(repo: &Repository, cluster: &ClusterName, id: &BackupId, expected: &Fingerprint) -> Result<Self> {
        match super::Record::load(repo, cluster, id, expected)? {
            super::Record::Parts(rec) => Ok(*rec),
            super::Record::Physical(_) => Err(RepoError::corrupt(record(cluster, id), "of a physical backup")),
        }
    }

    pub fn database(&self, name: &str) -> Option<&DatabaseDump> {
        self.databases.iter().find(|d| d.name == name)
    }
}
