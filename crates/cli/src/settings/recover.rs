//! `[clusters.NAME.recover]`: what a recovery stops, restores, starts and asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_dr::probe::{HttpProbe, Probe};
use pgark_dr::recover::{Ask, Safety};
use pgark_dr::service::{Kind as ServiceKind, Service};
use serde::{Deserialize, Serialize};

use super::repoint::RepointSection;
use super::schema::{CommandLine, Kind};
use super::units::Span;
use crate::secret::SECRET_VARIABLES;

const STOP_WITHIN: Duration = Duration::from_secs(30);
const START_WITHIN: Duration = Duration::from_secs(30);
/// Applications that die of a database that they do not know do it within the first seconds.
const STEADY_FOR: Duration = Duration::from_secs(5);
const READY_WITHIN: Duration = Duration::from_secs(60);
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    /// What is restored
    pub kind: Kind,
    /// Which is recovered
    pub database: Option<String>,
    /// Reports, and the journal of the recovery that is under way.
    pub report_dir: Option<PathBuf>,
    pub service: Option<ServiceControl>,
    /// Users of the operating system who may recover; everybody who can, when it is left out.
    #[serde(default)]
    pub operators: Vec<String>,
    /// Whether the database is backed up before it is replaced.
    pub safety_backup: Option<SafetySetting>,
    /// How long restoring and comparing may take.
    pub restore_timeout: Option<Span>,
    /// How long one of the checks may take.
    pub check_timeout: Option<Span>,
    /// How long the backup of what is replaced may take.
    pub safety_timeout: Option<Span>,
    /// Asked until the application is ready.
    #[serde(default)]
    pub ready: Vec<ProbeSection>,
    /// Asked once it is ready: whether it works.
    #[serde(default)]
    pub smoke: Vec<ProbeSection>,
    /// Gets the report as JSON on its standard input, however it ended.
    pub notify: Option<CommandLine>,
    /// How long that may take
    pub notify_timeout: Option<Span>,
    /// Who is called, in this order.
    #[serde(default)]
    pub contacts: Vec<Contact>,
    /// Where a whole cluster is restored to: a new instance in this directory,
    pub to: Option<PathBuf>,
    /// or in its own place.
    #[serde(default)]
    pub in_place: bool,
    /// Of the new instance.
    pub port: Option<u16>,
    /// Where its socket is
    pub socket_dir: Option<PathBuf>,
    /// Under which the application and we reach the new instance; its socket when left out.
    pub address: Option<String>,
    /// The directory of the server's programs; otherwise they are looked for.
    pub pg_bin: Option<PathBuf>,
    /// Of tablespaces: the old place, or the OID, and the new place.
    #[serde(default)]
    pub tablespaces: BTreeMap<String, PathBuf>,
    /// How the recovered cluster is started; by pg_ctl when left out.
    pub server: Option<ServiceControl>,
    /// How the server is stopped that a new instance replaces.
    pub fence: Option<ServiceControl>,
    /// Whether nothing goes on when that cannot be proved to be stopped.
    #[serde(default)]
    pub fence_required: bool,
    /// Whether it is started again when the application goes back to it; it is when left out.
    pub restart_old: Option<bool>,
    /// How long recovery may take until its planned end.
    pub recovery_timeout: Option<Span>,
    /// How long reading the recovered cluster may take.
    pub validate_timeout: Option<Span>,
    /// What reads its tables and indexes.
    pub amcheck: Option<AmcheckSetting>,
    /// How long it is waited until its WAL is archived again.
    pub archive_timeout: Option<Span>,
    /// Places in which it stands where the application's database is.
    #[serde(default)]
    pub repoint: Vec<RepointSection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AmcheckSetting {
    /// Also installed for the moment, in a transaction that is rolled back
    Borrowed,
    Installed,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SafetySetting {
    /// When it cannot be, that is told
    Try,
    /// Without it nothing is replaced
    Required,
    Off,
}

impl From<SafetySetting> for Safety {
    fn from(setting: SafetySetting) -> Safety {
        match setting {
            SafetySetting::Try => Safety::Try,
            SafetySetting::Required => Safety::Required,
            SafetySetting::Off => Safety::Off,
        }
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// Who
    pub name: String,
    /// For what
    pub role: Option<String>,
    /// Number
    pub phone: Option<String>,
    /// Address
    pub email: Option<String>,
}

/// How the application is stopped and started: one service manager, or commands.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceControl {
    /// Stops it
    pub stop: Option<CommandLine>,
    /// Starts it
    pub start: Option<CommandLine>,
    /// Ends with 0 when it runs, with 1 to 3 when it does not, as init scripts do.
    pub status: Option<CommandLine>,
    /// Run when it does not stop, and `force` allows it.
    pub kill: Option<CommandLine>,
    /// A unit of systemd
    pub systemd: Option<String>,
    /// A container
    pub docker: Option<String>,
    /// The service of a Compose project, whose file is `compose_file`.
    pub compose: Option<String>,
    /// and the Compose file that it belongs to
    pub compose_file: Option<PathBuf>,
    /// Such as deploy/app
    pub kubernetes: Option<String>,
    /// In which it is
    pub namespace: Option<String>,
    /// A service of Windows
    pub windows: Option<String>,
    /// How long stopping may take
    pub stop_timeout: Option<Span>,
    /// How long starting may take
    pub start_timeout: Option<Span>,
    /// How long it has to be seen running after it has started.
    pub steady_for: Option<Span>,
    /// What does not stop may be killed.
    pub force: bool,
    /// Open while it runs, closed when it does not.
    pub ports: Vec<String>,
    /// It is not stopped before, and begins anew when it points to the new instance.
    pub keep_running: bool,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeSection {
    /// HOST:PORT that takes connections.
    pub tcp: Option<String>,
    /// What is asked
    pub url: Option<String>,
    /// GET when left out
    pub method: Option<String>,
    /// Status codes that are right; 200 to 299 when left out.
    pub status: Vec<u16>,
    /// Until the whole answer is there.
    pub max_latency: Option<Span>,
    /// Text that the answer contains.
    pub contains: Option<String>,
    /// JSON pointers, and the strings, numbers or booleans that are there.
    pub json: BTreeMap<String, Expected>,
    /// That go along
    pub headers: BTreeMap<String, String>,
    /// Headers whose value is in a file.
    pub header_files: BTreeMap<String, PathBuf>,
    /// Certificates that are believed besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// How long it is asked again when the answer is not right.
    pub timeout: Option<Span>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Expected {
    Flag(bool),
    Number(i64),
    Text(String),
}

impl ServiceControl {
    /// Whether it says what is stopped and started.
    pub fn names_something(&self) -> bool {
        let managers = [&self.systemd, &self.docker, &self.compose, &self.kubernetes, &self.windows];
        let commands = [&self.stop, &self.start, &self.status, &self.kill];
        managers.iter().any(|m| m.is_some()) || commands.iter().any(|c| c.is_some())
    }

    /// # Errors
    /// What is wrong with it, in words.
    pub fn service(&self, log_dir: &Path, name: &str) -> Result<Service, String> {
        let command = |c: &Option<CommandLine>| c.clone().map(|c| c.0);
        let kind = match self {
            ServiceControl { systemd: Some(unit), .. } => ServiceKind::Systemd(unit.clone()),
            ServiceControl { windows: Some(name), .. } => ServiceKind::Windows(name.clone()),
            ServiceControl { docker: Some(name), .. } => ServiceKind::Docker(name.clone()),
            ServiceControl { compose: Some(service), compose_file, .. } => ServiceKind::Compose {
                file: compose_file.as_ref().and_then(|f| f.to_str()).ok_or("compose needs compose_file")?.to_owned(),
                service: service.clone(),
            },
            ServiceControl { kubernetes: Some(object), namespace, .. } => {
                ServiceKind::Kubernetes { object: object.clone(), namespace: namespace.clone() }
            }
            _ => ServiceKind::Commands {
                stop: command(&self.stop).ok_or("stop is missing")?,
                start: command(&self.start).ok_or("start is missing")?,
                status: command(&self.status).ok_or(
                    "status is missing: without it nobody could prove that the application stopped; it ends with 0 when it \
                     runs, with 1 to 3 when it does not",
                )?,
                kill: command(&self.kill),
            },
        };
        let port = |text: &String| text.parse::<SocketAddr>().map_err(|_| format!("'{text}' is no ADDRESS:PORT"));
        Ok(Service {
            kind,
            stop_within: self.stop_timeout.map_or(STOP_WITHIN, |s| s.0),
            start_within: self.start_timeout.map_or(START_WITHIN, |s| s.0),
            steady_for: self.steady_for.map_or(STEADY_FOR, |s| s.0),
            force: self.force,
            ports: self.ports.iter().map(port).collect::<Result<_, _>>()?,
            hidden: SECRET_VARIABLES.to_vec(),
            start_log: log_dir.join(format!("application-{name}.log")),
        })
    }
}

/// What a probe is for, which decides how long it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    UntilReady,
    Once,
}

impl ProbeSection {
    /// # Errors
    /// What is wrong with it, in words.
    pub fn ask(&self, asking: Asking) -> Result<Ask, String> {
        let probe = match (&self.tcp, &self.url) {
            (Some(address), None) => {
                let is_address = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Probe::Tcp(is_address.then(|| address.clone()).ok_or(format!("'{address}' is no HOST:PORT"))?)
            }
            (None, Some(url)) => Probe::Http(Box::new(self.http(url)?)),
            _ => return Err("either tcp or url says what is asked".into()),
        };
        let within = self.timeout.map(|s| s.0).unwrap_or(match asking {
            Asking::UntilReady => READY_WITHIN,
            Asking::Once => Duration::ZERO,
        });
        // Slower than allowed is told as that, with how slow.
        let each = self.max_latency.map_or(ANSWERS_WITHIN, |s| s.0 * 4).max(ANSWERS_WITHIN);
        Ok(Ask { probe, within, each })
    }

    fn http(&self, url: &str) -> Result<HttpProbe, String> {
        let parsed = pgark_dr::probe::url(url)?;
        let method = self.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        let value = |expected: &Expected| match expected {
            Expected::Flag(flag) => (*flag).into(),
            Expected::Number(number) => (*number).into(),
            Expected::Text(text) => text.clone().into(),
        };
        if let Some(pointer) = self.json.keys().find(|p| !p.is_empty() && !p.starts_with('/')) {
            return Err(format!("'{pointer}' is no JSON pointer: it begins with '/'"));
        }
        Ok(HttpProbe {
            url: parsed,
            method: pgark_dr::probe::method(&method)?,
            statuses: self.status.clone(),
            latency_max: self.max_latency.map(|s| s.0),
            json: self.json.iter().map(|(pointer, expected)| (pointer.clone(), value(expected))).collect(),
            contains: self.contains.clone(),
            headers: self.headers.clone().into_iter().collect(),
            secret_headers: self.header_files.clone().into_iter().collect(),
            ca_file: self.ca_file.clone(),
        })
    }
}
