//! Guided recovery: from a stopped application to one that answers again, step by step, each written down before it runs.
//!
//! Invariant: whatever happens, the journal says what was done, data that was there before is there until the new one was found
//! right, and no application is started on what was not. It knows nothing of settings and prints nothing.

pub mod application;
pub mod book;
pub mod forecast;
pub mod logical;
pub mod machine;
pub mod physical;
mod render;
mod repointing;
pub mod report;
pub mod steps;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::Repository;
use pgark_repo::names::ClusterName;
use serde::{Deserialize, Serialize};

use crate::probe::Probe;
use crate::service::Service;

pub use machine::{Ended, Failure, Machine, State, Step, Wish};
pub use render::{to_html, to_markdown};
pub use report::Report;
use report::span;

/// `StoredReport::what` of reports of recoveries.
pub const WHAT: &str = "recover";

/// What every recovery has, whatever it restores.
pub struct Recovery {
    pub cluster: ClusterName,
    pub repo: Repository,
    pub service: Option<Service>,
    pub ready: Vec<Ask>,
    pub smoke: Vec<Ask>,
    /// Users of the operating system who may; empty: whoever can run this.
    pub operators: Vec<String>,
    pub notify: Option<Notify>,
    /// Where reports and the journal are.
    pub dir: PathBuf,
    pub opening: Opening,
}

/// A question to the application.
#[derive(Clone, Debug)]
pub struct Ask {
    pub probe: Probe,
    /// How long it is asked again when the answer is not right; zero: once.
    pub within: Duration,
    /// One try.
    pub each: Duration,
}

/// A program that gets the report so far on its standard input.
#[derive(Clone, Debug)]
pub struct Notify {
    pub command: Vec<String>,
    pub within: Duration,
    /// Variables of the environment that it does not get.
    pub hidden: Vec<&'static str>,
}

/// The first line of the journal: what this recovery is. Going on takes it from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// By the time it began.
    pub id: String,
    pub cluster: String,
    /// `logical`, `physical`.
    pub kind: String,
    pub database: Option<String>,
    /// The backup that was asked for; None: the newest that can be used.
    pub backup: Option<String>,
    /// The moment that was asked for, of physical ones.
    #[serde(default, skip_serializing_if = "Aim::is_latest")]
    pub aim: Aim,
    /// The directory that the cluster is restored into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PathBuf>,
    /// What truths to compare with, beside what is asked of every recovery.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truths: Vec<PathBuf>,
    pub began: Timestamp,
    /// When the incident was declared: the clock of the recovery time runs from here.
    pub declared: Timestamp,
    pub rpo_ms: Option<u64>,
    pub rto_ms: Option<u64>,
    pub by: String,
    pub reason: Option<String>,
    #[serde(default)]
    pub safety_backup: Safety,
    pub steps: Vec<Planned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub name: String,
    pub what: String,
}

/// Where recovery is to end, as it was typed; a time with its zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub immediate: bool,
    #[serde(default)]
    pub exclusive: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<String>,
}

impl Aim {
    pub fn is_latest(&self) -> bool {
        *self == Aim::default()
    }
}

/// Whether what is replaced is backed up before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Safety {
    /// That it cannot be is told, and the recovery goes on: what is replaced is kept.
    #[default]
    Try,
    Required,
    Off,
}

impl Opening {
    /// `20260822-031500-042R`, with milliseconds: one that is refused takes no time.
    pub fn id_of(at: Timestamp) -> String {
        format!("{}-{:03}R", at.strftime("%Y%m%d-%H%M%S"), at.subsec_millisecond())
    }

    pub fn rpo(&self) -> Option<Duration> {
        self.rpo_ms.map(Duration::from_millis)
    }

    pub fn rto(&self) -> Option<Duration> {
        self.rto_ms.map(Duration::from_millis)
    }
}

/// A target and what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    pub target_ms: Option<u64>,
    pub measured_ms: u64,
    /// None when there is no target.
    pub met: Option<bool>,
}

impl Goal {
    pub fn judge(target_ms: Option<u64>, from: Timestamp, to: Timestamp) -> Goal {
        let span = to.as_millisecond().saturating_sub(from.as_millisecond());
        let measured_ms = u64::try_from(span).unwrap_or(0);
        Goal { target_ms, measured_ms, met: target_ms.map(|target| measured_ms <= target) }
    }

    pub fn missed(&self) -> bool {
        self.met == Some(false)
    }

    /// Of a recovery point, for people.
    pub fn lost(&self) -> String {
        let verdict = match self.met {
            Some(true) => " (within the objective)",
            Some(false) => " (the recovery point objective is MISSED)",
            None => "",
        };
        format!("{} before the incident was declared{verdict}", span(self.measured_ms))
    }
}
