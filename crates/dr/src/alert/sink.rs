//! Who is told, and how.
//!
//! Invariant: a secret is read when it is used and is in no error; what a receiver answers is not shown.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_engine::ctx::Ctx;
use zeroize::Zeroizing;

use super::{Alert, Said, Severity, email, http, payload};
use crate::program;

/// A secret, or an address that holds one; read each time. The error says where from, and not what.
pub type Text = Arc<dyn Fn() -> Result<Zeroizing<String>, String> + Send + Sync>;

#[derive(Clone)]
pub struct Sink {
    pub name: String,
    pub kind: SinkKind,
    /// Less serious things it does not get.
    pub least: Severity,
    pub timeout: Duration,
    /// Certificates that are believed besides those of the system.
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone)]
pub enum SinkKind {
    Email(Email),
    Slack {
        url: Text,
    },
    Teams {
        url: Text,
    },
    PagerDuty {
        url: String,
        routing_key: Text,
    },
    OpsGenie {
        url: String,
        key: Text,
    },
    Alertmanager {
        url: Text,
        token: Option<Text>,
    },
    /// Signed with the secret.
    Webhook {
        url: Text,
        secret: Option<Text>,
    },
    /// Gets the document on its standard input. No shell. `hidden`: variables that it does not get.
    Command {
        argv: Vec<String>,
        hidden: Vec<&'static str>,
    },
}

#[derive(Clone)]
pub struct Email {
    pub host: String,
    pub port: Option<u16>,
    pub tls: Tls,
    pub login: Option<(String, Text)>,
    pub from: String,
    pub to: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// From the first byte.
    Wrapped,
    /// Asked for and insisted on.
    StartTls,
    /// Within this machine alone.
    None,
}

impl SinkKind {
    pub fn as_str(&self) -> &'static str {
        match self {
            SinkKind::Email(_) => "email",
            SinkKind::Slack { .. } => "slack",
            SinkKind::Teams { .. } => "teams",
            SinkKind::PagerDuty { .. } => "pagerduty",
            SinkKind::OpsGenie { .. } => "opsgenie",
            SinkKind::Alertmanager { .. } => "alertmanager",
            SinkKind::Webhook { .. } => "webhook",
            SinkKind::Command { .. } => "command",
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink({}, {})", self.name, self.kind.as_str())
    }
}

/// What is said.
pub struct Told<'a> {
    pub alert: &'a Alert,
    pub said: Said,
    /// The same each time it is tried.
    pub delivery: &'a str,
    pub at: Timestamp,
}

impl Sink {
    /// # Errors
    /// Why it was not taken, in words that hold no secret.
    pub fn tell(&self, told: &Told<'_>, within: Duration) -> Result<(), String> {
        let ca = self.ca_file.as_deref();
        let post = |url: &str, body: serde_json::Value| http::Post::json(url, &body).send(ca, within);
        match &self.kind {
            SinkKind::Email(email) => email::send(email, told, ca, within),
            SinkKind::Slack { url } => post(&url()?, payload::slack(told)),
            SinkKind::Teams { url } => post(&url()?, payload::teams(told)),
            SinkKind::PagerDuty { url, routing_key } => post(url, payload::pagerduty(told, &routing_key()?)),
            SinkKind::OpsGenie { url, key } => {
                let (path, body) = payload::opsgenie(told);
                let url = format!("{}{path}", url.trim_end_matches('/'));
                let authorization = Zeroizing::new(format!("GenieKey {}", &*key()?));
                http::Post::json(&url, &body).secret_header("authorization", &authorization)?.send(ca, within)
            }
            SinkKind::Alertmanager { url, token } => {
                let url = format!("{}/api/v2/alerts", url()?.trim_end_matches('/'));
                let mut post = http::Post::json(&url, &payload::alertmanager(told));
                if let Some(token) = token {
                    let bearer = Zeroizing::new(format!("Bearer {}", &*token()?));
                    post = post.secret_header("authorization", &bearer)?;
                }
                post.send(ca, within)
            }
            SinkKind::Webhook { url, secret } => {
                let mut post = http::Post::json(&url()?, &payload::document(told));
                post = post.header("x-pgark-delivery", told.delivery)?;
                if let Some(secret) = secret {
                    let time = told.at.as_second().to_string();
                    let signature = payload::signature(secret()?.as_bytes(), &time, post.body());
                    post = post.header("x-pgark-timestamp", &time)?.header("x-pgark-signature", &signature)?;
                }
                post.send(ca, within)
            }
            SinkKind::Command { argv, hidden } => {
                let body = serde_json::to_vec(&payload::document(told)).map_err(|e| e.to_string())?;
                let ended = program::run_told(argv, hidden, within, body, &Ctx::silent());
                if ended.succeeded() { Ok(()) } else { Err(ended.told()) }
            }
        }
    }
}
