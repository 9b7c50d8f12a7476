//! The shape of `pgark.toml`: one struct per section. A key that is not here is an error.
//!
//! Invariant: every field is a key a user may write, under the same name; nothing is interpreted here but its type.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use pgark_repo::parity::Percent;
use pgark_repo::store::LockMode;
use serde::{Deserialize, Serialize};

use super::alerts::AlertsSection;
use super::recover::Recover;
use super::repo_url::RepoUrl;
use super::schedule::Schedule;
use super::server::Server;
use super::space::{Capacity, FreeSpace, PriceSection};
use super::units::{ByteSize, Span};
use crate::secret::{Secret, split_command};

/// libpq's keywords but for those that hold secrets (PostgreSQL 18, `PQconninfoOptions` in fe-connect.c).
pub const LIBPQ_KEYWORDS: &[&str] = &[
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_issuer",
    "oauth_scope",
    "options",
    "passfile",
    "port",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslkeylogfile",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Keys that hold a secret; each also exists with `_file` and `_command`.
pub const SECRET_KEYS: &[&str] = &["passphrase", "password", "sslpassword", "oauth_client_secret", "token", "secret"];

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    pub repos: BTreeMap<String, RepoSection>,
    /// Already laid under every cluster; kept so that it is checked even when there is no cluster.
    #[serde(skip_serializing)]
    pub defaults: ClusterSection,
    pub clusters: BTreeMap<String, ClusterSection>,
    pub prices: BTreeMap<String, PriceSection>,
    pub schedules: Vec<Schedule>,
    pub server: Server,
    pub local: Local,
    pub alerts: AlertsSection,
}

/// What is of this machine alone.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Local {
    /// Where audit records, notifications and incidents wait; not to be lost.
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RepoSection {
    /// Where it lies
    pub url: RepoUrl,
    /// Unlocks the repository's key
    pub passphrase: Option<Secret>,
    pub passphrase_file: Option<PathBuf>,
    pub passphrase_command: Option<CommandLine>,
    /// With what data is sealed
    #[serde(default)]
    pub encryption: Encryption,
    /// Backups and archiving fail when this one of several repositories does.
    #[serde(default)]
    pub required: bool,
    /// Written beside backups and WAL, so that damaged sectors heal: "1%" to "20%" of their size.
    pub parity: Option<Percent>,
    /// New objects are locked; S3 alone.
    pub lock: Option<LockMode>,
    /// What kept backups need stays locked for at least so long.
    pub lock_days: Option<u32>,
    /// This client removes nothing from the repository.
    #[serde(default)]
    pub append_only: bool,
    /// Programs that wrap the repository's key, by the name under which the key ring knows them.
    #[serde(default)]
    pub key_commands: BTreeMap<String, KeyCommand>,
    /// What may be stored, where the store does not tell or less is allowed.
    pub capacity: Option<Capacity>,
    /// `check` warns when less is free, or when it is full within so many days.
    pub warn_free: Option<FreeSpace>,
    /// and when it is full within so many days
    pub warn_days: Option<u32>,
    /// What a backup leaves for WAL.
    pub wal_reserve: Option<ByteSize>,
    /// Class of packs from an age on, for `repo-lifecycle` and cost estimates.
    #[serde(default)]
    pub class_after: BTreeMap<Span, String>,
    /// Classes that must be thawed before reading are accepted.
    #[serde(default)]
    pub allow_archive_classes: bool,
    /// A table of `prices`.
    pub prices: Option<String>,
}

/// Each gets what it is to wrap or unwrap on its standard input and gives the result on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyCommand {
    /// Wraps a key
    pub wrap_command: CommandLine,
    /// Unwraps it again
    pub unwrap_command: CommandLine,
    /// How long either may take
    pub timeout: Option<Span>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    #[default]
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    None,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// The data directory, when it is on this machine
    pub pgdata: Option<PathBuf>,
    /// Written directly under the cluster; gathered here before the types are read.
    pub libpq: BTreeMap<String, LibpqValue>,
    /// Of the connection; rather in a password file of libpq
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<CommandLine>,
    /// Of the client certificate's key
    pub sslpassword: Option<Secret>,
    pub sslpassword_file: Option<PathBuf>,
    pub sslpassword_command: Option<CommandLine>,
    /// Of libpq's OAuth
    pub oauth_client_secret: Option<Secret>,
    pub oauth_client_secret_file: Option<PathBuf>,
    pub oauth_client_secret_command: Option<CommandLine>,
    /// Names of repositories: the first is read from, all are written to; all that are configured when left out
    pub repos: Vec<String>,
    /// The loss that is accepted
    pub rpo: Option<Span>,
    /// How long a recovery may take
    pub rto: Option<Span>,
    /// Parallel workers; as many as there are cores when left out
    pub jobs: Option<NonZeroU32>,
    /// At most so much is read or written per second
    pub bandwidth_limit: Option<ByteSize>,
    /// Where WAL may wait while the repository is away
    pub wal_spool: Option<PathBuf>,
    /// How much of it
    pub wal_spool_max: Option<ByteSize>,
    /// Whether `archive-push` decodes what it has compressed, and compares, before it is stored
    pub wal_recheck: bool,
    pub logical: Option<Logical>,
    pub system: Option<System>,
    pub retention: Retention,
    pub recover: Option<Recover>,
    pub checks: Vec<Check>,
    /// As whom checks are asked: a role without privileges.
    pub check_user: Option<String>,
    /// Where `restore-table` makes a cluster for a while.
    pub scratch_dir: Option<PathBuf>,
    pub drill: Option<Drill>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logical {
    /// Which are dumped
    pub databases: Vec<String>,
    /// All that take connections are dumped
    pub all_databases: bool,
    /// Roles, tablespaces and settings go along
    pub globals: bool,
    /// These schemas alone
    pub schemas: Vec<String>,
    /// These tables alone
    pub tables: Vec<String>,
    /// The directory of `pg_dump` and `pg_restore`; otherwise they are looked for.
    pub pg_bin: Option<PathBuf>,
    /// Use client programs although they have holes that are known.
    pub allow_old_client: bool,
    /// How long a dump waits for a lock.
    pub lock_wait: Option<Span>,
    /// Where temporary files go.
    pub scratch: Option<PathBuf>,
    /// What is written down of a database when it is dumped, to compare a restored one with.
    pub truth: Option<TruthSetting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TruthSetting {
    /// Nothing
    None,
    /// Every object, and how many rows each table has
    Counts,
    /// The contents of tables and large objects as well
    Hashes,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct System {
    /// What names of exports begin with.
    pub prefix: Option<String>,
    /// The database that belongs to it
    pub database: Option<String>,
    /// Roles, tablespaces and settings go along unless this says no.
    pub globals: Option<bool>,
    /// Configuration files
    pub config_files: Vec<PathBuf>,
    /// Directories with files
    pub directories: Vec<PathBuf>,
    /// Patterns; empty: everything.
    pub include: Vec<String>,
    /// Patterns of what is left out
    pub exclude: Vec<String>,
    /// Directories on which another file system is mounted are left out.
    pub one_file_system: bool,
    /// `DB_HOST`, `BACKUP_DIR` and the like are read from the environment.
    pub deployment_variables: bool,
}

/// The rules for every kind of backup, and those of one kind where they differ.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    // serde cannot refuse unknown keys in a flattened struct, so the rules are written out in both.
    /// The newest so many
    pub keep_last: Option<u32>,
    /// All of so many days
    pub keep_days: Option<u32>,
    /// The last one of each of so many days that have one
    pub keep_daily: Option<u32>,
    /// The last one of each of so many weeks, from Monday on
    pub keep_weekly: Option<u32>,
    /// The last one of each of so many months
    pub keep_monthly: Option<u32>,
    /// The last one of each of so many years
    pub keep_yearly: Option<u32>,
    /// All of this time, and what recovery to its first moment begins with
    pub window: Option<Span>,
    /// WAL for recovery to every moment of this time
    pub wal: Option<Span>,
    /// The oldest go beyond so many, whatever other rules say
    pub max_backups: Option<u32>,
    /// So many stay, whatever other rules say
    pub min_backups: Option<u32>,
    /// How long objects of what has expired stay; a day when left out
    pub gc_grace: Option<Span>,
    /// In which days begin; UTC when left out
    pub time_zone: Option<String>,
    pub physical: Option<RetentionRules>,
    pub logical: Option<RetentionRules>,
    pub files: Option<RetentionRules>,
    pub system: Option<RetentionRules>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionRules {
    /// The newest so many
    pub keep_last: Option<u32>,
    /// All of so many days
    pub keep_days: Option<u32>,
    /// The last one of each of so many days that have one
    pub keep_daily: Option<u32>,
    /// The last one of each of so many weeks, from Monday on
    pub keep_weekly: Option<u32>,
    /// The last one of each of so many months
    pub keep_monthly: Option<u32>,
    /// The last one of each of so many years
    pub keep_yearly: Option<u32>,
    /// All of this time, and what recovery to its first moment begins with
    pub window: Option<Span>,
    /// WAL for recovery to every moment of this time
    pub wal: Option<Span>,
    /// The oldest go beyond so many, whatever other rules say
    pub max_backups: Option<u32>,
    /// So many stay, whatever other rules say
    pub min_backups: Option<u32>,
    /// How long objects of what has expired stay; a day when left out
    pub gc_grace: Option<Span>,
    /// In which days begin; UTC when left out
    pub time_zone: Option<String>,
}

impl Retention {
    /// The rules that hold for one kind: its own where it has them, the general ones elsewhere.
    pub fn rules(&self, kind: Kind) -> RetentionRules {
        let own = match kind {
            Kind::Physical => &self.physical,
            Kind::Logical => &self.logical,
            Kind::Files => &self.files,
            Kind::System => &self.system,
        };
        let own = own.clone().unwrap_or_default();
        RetentionRules {
            keep_last: own.keep_last.or(self.keep_last),
            keep_days: own.keep_days.or(self.keep_days),
            keep_daily: own.keep_daily.or(self.keep_daily),
            keep_weekly: own.keep_weekly.or(self.keep_weekly),
            keep_monthly: own.keep_monthly.or(self.keep_monthly),
            keep_yearly: own.keep_yearly.or(self.keep_yearly),
            window: own.window.or(self.window),
            wal: own.wal.or(self.wal),
            max_backups: own.max_backups.or(self.max_backups),
            min_backups: own.min_backups.or(self.min_backups),
            gc_grace: own.gc_grace.or(self.gc_grace),
            time_zone: own.time_zone.or_else(|| self.time_zone.clone()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Physical,
    Logical,
    Files,
    System,
}

impl From<pgark_repo::catalog::BackupKind> for Kind {
    fn from(kind: pgark_repo::catalog::BackupKind) -> Self {
        use pgark_repo::catalog::BackupKind;
        match kind {
            BackupKind::Physical => Self::Physical,
            BackupKind::Logical => Self::Logical,
            BackupKind::Files => Self::Files,
            BackupKind::System => Self::System,
        }
    }
}

impl From<Kind> for pgark_repo::catalog::BackupKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Physical => Self::Physical,
            Kind::Logical => Self::Logical,
            Kind::Files => Self::Files,
            Kind::System => Self::System,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupType {
    Full,
    Incr,
    Diff,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// How it is called in reports
    pub name: String,
    /// Where it is asked; in the only one when left out
    pub database: Option<String>,
    /// The question
    pub sql: String,
    /// The answer, as psql prints it
    pub expect: String,
    /// Where names without a schema are looked for; `public` when left out.
    pub schemas: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// In which the rehearsed cluster is made.
    pub dir: PathBuf,
    /// The newest one, or any of the last 31 days
    pub backup: Option<DrillBackup>,
    /// What is rehearsed
    pub kind: Option<DrillKind>,
    /// `check` warns when the last good rehearsal is older.
    pub every: Option<Span>,
    /// How long recovery may take, and reading each database.
    pub timeout: Option<Span>,
    /// Of `shared_preload_libraries`, those that the rehearsed server loads.
    #[serde(default)]
    pub libraries: Vec<String>,
    /// The directory of the server's programs; otherwise they are looked for.
    pub pg_bin: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DrillBackup {
    Latest,
    Random,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DrillKind {
    /// Files and WAL, to any moment
    #[default]
    Physical,
    /// Dumps of databases
    Logical,
}

/// A program and its arguments, written as an array or as one string that is split without a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CommandLine(pub Vec<String>);

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<CommandLine, D::Error> {
        let words = match StringOrList::deserialize(deserializer) {
            Ok(StringOrList::One(text)) => split_command(&text).map_err(serde::de::Error::custom)?,
            Ok(StringOrList::Many(words)) => words,
            Err(_) => return Err(serde::de::Error::custom("expected a command: an array of strings, or one string")),
        };
        match words.first() {
            Some(program) if !program.is_empty() => Ok(CommandLine(words)),
            _ => Err(serde::de::Error::custom("the command is empty")),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StringOrList {
    One(String),
    Many(Vec<String>),
}

/// libpq takes every value as text; `port = 5432` is what people write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LibpqValue(pub String);

impl<'de> Deserialize<'de> for LibpqValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<LibpqValue, D::Error> {
        let value = match Scalar::deserialize(deserializer) {
            Ok(Scalar::Text(text)) => text,
            Ok(Scalar::Number(number)) => number.to_string(),
            Ok(Scalar::Flag(flag)) => u8::from(flag).to_string(),
            Err(_) => return Err(serde::de::Error::custom("expected a string or an integer")),
        };
        if value.contains('\0') {
            return Err(serde::de::Error::custom("a connection setting holds no NUL character"));
        }
        Ok(LibpqValue(value))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(i64),
    Flag(bool),
}
