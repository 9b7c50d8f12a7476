//! Alerts that reach people: what was raised, whom it was told, and what has still to be told.
//!
//! Invariant: an alert and all that has to be told of it are one file, which is on the disk before anybody is told. So what was
//! raised survives whatever kills us, and is told at least once to each; nothing that goes wrong with telling changes what a
//! command did.

mod book;
mod deliver;
mod email;
mod http;
pub mod payload;
pub mod rules;
mod sink;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use book::{AlertError, Book, Raised};
pub use deliver::{Delivered, Which, ping};
pub use email::check_mailbox;
pub use http::check_address;
pub use sink::{Email, Sink, SinkKind, Text, Tls, Told};

pub const SCHEMA: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// What somebody has to know. The same key is the same trouble, however often it is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub key: String,
    pub rule: String,
    pub cluster: String,
    pub severity: Severity,
    /// One line.
    pub summary: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub schema: u32,
    pub id: String,
    pub host: String,
    #[serde(flatten)]
    pub finding: Finding,
    pub opened: Timestamp,
    /// When it was seen last, and how often.
    pub seen: Timestamp,
    pub count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
    /// Of the escalation, how far it has come.
    pub level: usize,
    /// When people were told last because it lasts.
    pub reminded: Timestamp,
    pub deliveries: Vec<Delivery>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    pub by: String,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Firing,
    Acknowledged,
    Resolved,
    Test,
}

impl Said {
    pub fn as_str(self) -> &'static str {
        match self {
            Said::Firing => "firing",
            Said::Acknowledged => "acknowledged",
            Said::Resolved => "resolved",
            Said::Test => "test",
        }
    }
}

/// One thing to be told to one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub id: String,
    pub sink: String,
    pub said: Said,
    pub created: Timestamp,
    pub attempts: u32,
    pub next: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<Timestamp>,
    /// It was tried for long enough.
    #[serde(default)]
    pub given_up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Delivery {
    pub fn is_open(&self) -> bool {
        self.delivered.is_none() && !self.given_up
    }
}

impl Alert {
    pub fn is_open(&self) -> bool {
        self.resolved.is_none()
    }

    pub fn waiting(&self) -> usize {
        self.deliveries.iter().filter(|d| d.is_open()).count()
    }
}

/// Who is told after how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    pub after: Duration,
    pub sinks: Vec<String>,
}

/// Whom to tell, and when.
#[derive(Clone, Default)]
pub struct Routing {
    pub sinks: Vec<Sink>,
    /// By time, the first at once; without one all sinks are told at once.
    pub levels: Vec<Level>,
    /// Who is told again while it lasts and nobody has acknowledged it.
    pub remind_every: Option<Duration>,
}

impl Routing {
    pub fn sink(&self, name: &str) -> Option<&Sink> {
        self.sinks.iter().find(|sink| sink.name == name)
    }

    fn after(&self, level: usize) -> Option<Duration> {
        self.levels.get(level).map(|l| l.after)
    }

    /// Those of one level that want to know of something so serious.
    fn at(&self, level: usize, severity: Severity) -> Vec<&Sink> {
        let wants = |sink: &&Sink| severity >= sink.least;
        match self.levels.get(level) {
            Some(l) => self.sinks.iter().filter(|s| l.sinks.contains(&s.name)).filter(wants).collect(),
            None if self.levels.is_empty() && level == 0 => self.sinks.iter().filter(wants).collect(),
            None => vec![],
        }
    }
}
