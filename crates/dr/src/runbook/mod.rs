//! The written procedure, made of the configuration: what is to be done, by whom, with which commands. Pure.
//!
//! Invariant: every command in it is one of this program's, spelled out; no secret is in it, only where it is kept.

mod render;
mod scenarios;

use serde::Serialize;

use crate::recover::forecast::Expected;
pub use render::{to_html, to_markdown};
pub use scenarios::document;

/// What the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub cluster: String,
    /// The configuration files, the first of which commands name.
    pub config: Vec<String>,
    pub made: String,
    pub program: String,
    pub rpo: Option<String>,
    pub rto: Option<String>,
    pub repos: Vec<RepoFacts>,
    pub contacts: Vec<ContactFacts>,
    pub operators: Vec<String>,
    pub checks: Vec<String>,
    pub pgdata: Option<String>,
    /// Databases that are dumped; None when there are no dumps.
    pub dumps: Option<Vec<String>>,
    /// Files and directories of a system.
    pub system: bool,
    pub recover: Option<RecoverFacts>,
}

#[derive(Clone, Debug, Default)]
pub struct RepoFacts {
    pub name: String,
    pub url: String,
    /// Where its passphrase comes from.
    pub opened_with: String,
    pub locked: bool,
    pub append_only: bool,
}

#[derive(Clone, Debug, Default)]
pub struct ContactFacts {
    pub name: String,
    pub role: Option<String>,
    pub phone: Option<String>,
    pub email: Option<String>,
}

/// Of a guided recovery.
#[derive(Clone, Debug, Default)]
pub struct RecoverFacts {
    /// None: the whole cluster.
    pub database: Option<String>,
    /// The directory that a cluster is restored into, and whether it is its own.
    pub place: Option<String>,
    pub in_place: bool,
    /// The server that is replaced can be proved to be stopped.
    pub fenced: bool,
    /// The application is pointed to a new instance.
    pub repoints: bool,
    pub service: Option<String>,
    pub report_dir: String,
    pub steps: Vec<Expected>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Document {
    pub title: String,
    pub about: Vec<String>,
    pub sections: Vec<Section>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "block")]
pub enum Block {
    Text {
        text: String,
    },
    /// Done one after the other.
    Steps {
        steps: Vec<Doing>,
    },
    List {
        items: Vec<String>,
    },
    Table {
        head: Vec<String>,
        rows: Vec<Vec<String>>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doing {
    pub text: String,
    pub commands: Vec<String>,
}
