//! The effective settings: flags over `PGARK_*` variables over `pgark.toml` over defaults, each value with its origin.
//!
//! Invariant: every command and the server get their settings from [`Settings::load`], so they cannot differ. Nothing
//! here reads a secret, connects or looks at a repository.

pub mod alerts;
pub mod explain;
pub mod files;
pub mod in_force;
pub mod nearest;
pub mod oidc;
pub mod recover;
pub mod repo_url;
pub mod repoint;
pub mod schedule;
pub mod schema;
pub mod server;
pub mod space;
pub mod units;

mod de;
mod deployment;
mod resolve;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod tree;
pub mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::parity::Percent;
use pgark_repo::store::LockPolicy;

use crate::failure::Failure;
use crate::secret::SecretSource;
use alerts::AlertSettings;
use explain::Entry;
use files::Environment;
use in_force::Texts;
use nearest::nearest;
use recover::Recover;
use repo_url::RepoUrl;
use schedule::Schedule;
use schema::{Check, Drill, Encryption, KeyCommand, Logical, Retention, System};
use server::Server;
use space::{PriceSection, SpaceSettings};
use tree::Location;

pub const DEFAULT_CLUSTER: &str = "main";

/// What the flags say.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    /// Names or URLs.
    pub repos: Vec<String>,
    pub passphrase_file: Option<PathBuf>,
    pub cluster: Option<String>,
    pub pgdata: Option<PathBuf>,
    pub jobs: Option<NonZeroU32>,
    /// Repositories are read as they were then.
    pub repo_target_time: Option<Timestamp>,
    /// What the server goes by, in place of the files.
    pub in_force: Option<Arc<Texts>>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Flag(&'static str),
    Variable(&'static str),
    File(Location),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "flag {name}"),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::File(at) => write!(f, "{at}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    pub value: T,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RepoSettings {
    /// The configured name; the URL itself for a repository that is not configured.
    pub name: String,
    pub url: RepoUrl,
    pub passphrase: SecretSource,
    pub encryption: Encryption,
    /// Backups and archiving fail when this one of several does.
    pub required: bool,
    pub parity: Option<Percent>,
    pub protection: Protection,
    pub key_commands: BTreeMap<String, KeyCommand>,
    pub space: SpaceSettings,
}

/// What a client does so that nobody can remove what it stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protection {
    pub lock: Option<LockPolicy>,
    /// This client removes nothing.
    pub append_only: bool,
}

#[derive(Debug, Clone)]
pub struct ClusterSettings {
    pub name: String,
    pub pgdata: Option<PathBuf>,
    /// libpq keywords without secrets.
    pub libpq: Vec<(String, String)>,
    /// libpq keywords whose value is a secret.
    pub libpq_secrets: Vec<(String, SecretSource)>,
    /// Names of configured repositories: the first is read from, all are written to.
    pub repos: Vec<String>,
    pub rpo: Option<Duration>,
    pub rto: Option<Duration>,
    /// Bytes per second.
    pub bandwidth_limit: Option<u64>,
    /// Where WAL may wait while the repository is away, and how many bytes of it.
    pub wal_spool: Option<PathBuf>,
    pub wal_spool_max: Option<u64>,
    /// Whether compressed WAL is decoded again and compared before it is stored.
    pub wal_recheck: bool,
    pub logical: Option<Logical>,
    pub system: Option<System>,
    pub retention: Retention,
    pub recover: Option<Recover>,
    pub checks: Vec<Check>,
    pub check_user: Option<String>,
    pub scratch_dir: Option<PathBuf>,
    pub drill: Option<Drill>,
    /// Said by a variable of the deployment.
    pub backups_enabled: bool,
}

#[derive(Debug)]
pub struct Settings {
    /// What was read.
    pub texts: Texts,
    /// It was handed to us: the files may be others by now.
    pub is_handed: bool,
    /// What the user should change, though it works.
    pub warnings: Vec<String>,
    pub repos: BTreeMap<String, RepoSettings>,
    pub clusters: BTreeMap<String, ClusterSettings>,
    /// Price tables by name.
    pub prices: BTreeMap<String, PriceSection>,
    pub schedules: Vec<Schedule>,
    pub server: Server,
    pub alerts: AlertSettings,
    /// Where this user's host keeps what must not be lost; None where there is no home.
    pub state_dir: Option<PathBuf>,
    /// The name of the cluster this command is about.
    pub selected_cluster: Sourced<String>,
    /// Parallel workers.
    pub jobs: Sourced<NonZeroU32>,
    /// Repositories chosen by flag or variable; `None` leaves the choice to the cluster.
    chosen_repos: Option<Sourced<Vec<RepoSettings>>>,
    entries: Vec<Entry>,
}

impl Settings {
    /// Reads and merges everything, and checks it.
    ///
    /// # Errors
    /// `E-CONFIG-…`, `E-REPO-…` or `E-CLUSTER-…`, with file, line and column where a file is to blame.
    pub fn load(overrides: &Overrides, environment: &Environment) -> Result<Settings, Failure> {
        resolve::settings(overrides, environment)
    }

    /// The cluster this command is about.
    ///
    /// # Errors
    /// `E-CLUSTER-UNKNOWN` when the configuration has clusters, but not this one.
    pub fn cluster(&self) -> Result<&ClusterSettings, Failure> {
        let name = &self.selected_cluster.value;
        self.clusters.get(name).ok_or_else(|| {
            let known = self.clusters.keys().map(String::as_str);
            let hint = match nearest(name, known.clone()) {
                Some(near) => format!("did you mean '-c {near}'?"),
                None => format!(
                    "configured are: {}; a new one gets a section [clusters.{name}]",
                    known.collect::<Vec<_>>().join(", ")
                ),
            };
            let origin = &self.selected_cluster.origin;
            Failure::usage("E-CLUSTER-UNKNOWN", format!("cluster '{name}' ({origin}) is not configured")).hint(hint)
        })
    }

    /// A repository by its configured name or URL.
    pub fn repo(&self, text: &str) -> Result<RepoSettings, Failure> {
        resolve::repo(&self.repos, text)
    }

    /// Those that the cluster's settings and this command name.
    pub fn repos_of_cluster(&self) -> Vec<RepoSettings> {
        let chosen = self.chosen_repos.iter().flat_map(|c| c.value.iter().cloned());
        chosen.chain(self.configured_repos()).collect()
    }

    /// Those that the cluster's settings name, in their order.
    pub fn configured_repos(&self) -> Vec<RepoSettings> {
        let of_cluster = self.clusters.get(&self.selected_cluster.value).map_or(&[][..], |c| &c.repos);
        of_cluster.iter().filter_map(|name| self.repos.get(name)).cloned().collect()
    }

    /// The repositories this command uses, never none: the first is read from, all are written to.
    ///
    /// # Errors
    /// `E-REPO-NONE` when none is configured or named, `E-REPO-CHOICE` when there are several and nothing chooses.
    pub fn selected_repos(&self) -> Result<Vec<RepoSettings>, Failure> {
        if let Some(chosen) = &self.chosen_repos {
            return Ok(chosen.value.clone());
        }
        let repos = self.configured_repos();
        if !repos.is_empty() {
            return Ok(repos);
        }
        let mut all = self.repos.values();
        match (all.next(), all.next()) {
            (Some(only), None) => Ok(vec![only.clone()]),
            (None, _) => Err(Failure::usage("E-REPO-NONE", "no repository is configured")
                .hint("name one with --repo /path or --repo s3://bucket/prefix, or add [repos.main] to pgark.toml")),
            (Some(_), Some(_)) => {
                let names = self.repos.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let message = format!("there are several repositories ({names}) and nothing says which are meant");
                let hint = format!("add repos = […] to [clusters.{}], or use --repo", self.selected_cluster.value);
                Err(Failure::usage("E-REPO-CHOICE", message).hint(hint))
            }
        }
    }
}
