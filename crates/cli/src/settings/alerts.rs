//! `[alerts]`: who is told of trouble, how, and after how long; what counts as trouble.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgark_dr::alert::{Email, Level, Routing, Severity, Sink, SinkKind, Text, Tls, check_address, check_mailbox};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::schema::CommandLine;
use super::units::Span;
use crate::secret::{SECRET_VARIABLES, Secret, SecretSource};

const NO_BACKUP_FOR: Duration = Duration::from_secs(48 * 3600);
const SIZE_JUMP_PERCENT: u32 = 50;
const REMIND_EVERY: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(120);
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
const OPSGENIE: &str = "https://api.opsgenie.com";

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsSection {
    /// By their names.
    pub sinks: BTreeMap<String, SinkSection>,
    /// Who is told after how long; everybody at once when left out.
    pub escalation: Vec<LevelSection>,
    /// Who knows is told again, as long as it lasts and nobody has acknowledged it.
    pub remind_every: Option<Span>,
    /// Longer without a successful backup is trouble.
    pub no_backup_for: Option<Span>,
    /// A backup that is so much larger or smaller than usual is trouble.
    pub size_jump_percent: Option<u32>,
    /// Rules that raise nothing.
    pub disabled: Vec<String>,
    /// Called whenever 'alert run' has looked at everything: somebody else misses the call that does not come.
    pub ping_url: Option<Secret>,
    pub ping_url_file: Option<PathBuf>,
    pub ping_url_command: Option<CommandLine>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSection {
    /// How long an alert has been open
    pub after: Span,
    /// Who is told then
    pub sinks: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Email,
    Slack,
    Teams,
    Pagerduty,
    Opsgenie,
    Alertmanager,
    Webhook,
    Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Least {
    Info,
    Warning,
    Critical,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// From the first byte
    Tls,
    Starttls,
    /// To a server on this machine alone
    None,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SinkSection {
    /// What it is
    pub kind: Kind,
    /// Where it is; of some receivers the address is the secret.
    pub url: Option<Secret>,
    pub url_file: Option<PathBuf>,
    pub url_command: Option<CommandLine>,
    /// Routing key, API key or bearer token.
    pub token: Option<Secret>,
    pub token_file: Option<PathBuf>,
    pub token_command: Option<CommandLine>,
    /// What webhooks are signed with.
    pub secret: Option<Secret>,
    pub secret_file: Option<PathBuf>,
    pub secret_command: Option<CommandLine>,
    /// Of the mail server.
    pub host: Option<String>,
    /// Of the mail server
    pub port: Option<u16>,
    /// Of the mail server
    pub tls: Option<MailTls>,
    /// Of the mail server
    pub user: Option<String>,
    /// Of the mail server
    pub password: Option<Secret>,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<CommandLine>,
    /// The sender
    pub from: Option<String>,
    /// The recipients
    #[serde(default)]
    pub to: Vec<String>,
    /// Gets the alert on its standard input.
    pub command: Option<CommandLine>,
    /// Less serious things it does not get.
    pub severity: Option<Least>,
    /// How long one try may take
    pub timeout: Option<Span>,
    /// Certificates that are believed besides those of the system.
    pub ca_file: Option<PathBuf>,
}

/// What is done about trouble.
#[derive(Clone)]
pub struct AlertSettings {
    pub routing: Routing,
    pub no_backup_for: Duration,
    pub size_jump_percent: u32,
    pub disabled: Vec<String>,
    pub ping: Option<Text>,
}

impl std::fmt::Debug for AlertSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.routing.sinks).finish()
    }
}

type Given<'a> = (&'static str, &'a Option<Secret>, &'a Option<PathBuf>, &'a Option<CommandLine>);

/// One of three, or none.
fn source((name, inline, file, command): Given<'_>) -> Result<SecretSource, String> {
    match (inline, file, command) {
        (None, None, None) => Ok(SecretSource::None),
        (Some(secret), None, None) => Ok(SecretSource::Inline(secret.clone())),
        (None, Some(file), None) if !file.is_absolute() => Err(format!("{name}_file must be an absolute path")),
        (None, Some(file), None) => Ok(SecretSource::File(file.clone())),
        (None, None, Some(command)) => Ok(SecretSource::Command(command.0.clone())),
        _ => Err(format!("of {name}, {name}_file and {name}_command, one is enough")),
    }
}

/// Read when it is used.
pub(super) fn read_later(source: SecretSource) -> Text {
    Arc::new(move || {
        let read = source.read().map_err(|failure| failure.to_string())?;
        let secret = read.ok_or_else(|| "no secret is configured".to_owned())?;
        let text = secret.expose_str().ok_or_else(|| format!("the secret from {source} is no text"))?;
        Ok(Zeroizing::new(text.to_owned()))
    })
}

fn some(given: Given<'_>) -> Result<Option<Text>, String> {
    Ok(match source(given)? {
        SecretSource::None => None,
        source => Some(read_later(source)),
    })
}

impl SinkSection {
    /// # Errors
    /// What is wrong with it, in words.
    fn sink(&self, name: &str) -> Result<Sink, String> {
        let url = || some(("url", &self.url, &self.url_file, &self.url_command));
        let token = || some(("token", &self.token, &self.token_file, &self.token_command));
        let needs = |found: Option<Text>, what: &str| found.ok_or_else(|| format!("it needs {what}"));
        let address = |usual: &str| match source(("url", &self.url, &self.url_file, &self.url_command))? {
            SecretSource::None => Ok(usual.to_owned()),
            SecretSource::Inline(url) => Ok(url.expose_str().unwrap_or_default().to_owned()),
            _ => Err("its url is no secret: write it as url".to_owned()),
        };
        let kind = match self.kind {
            Kind::Email => SinkKind::Email(self.email()?),
            Kind::Slack => SinkKind::Slack { url: needs(url()?, "url_file, the address of an incoming webhook")? },
            Kind::Teams => SinkKind::Teams { url: needs(url()?, "url_file, the address of a workflow")? },
            Kind::Pagerduty => SinkKind::PagerDuty {
                url: address(PAGERDUTY)?,
                routing_key: needs(token()?, "token_file, the routing key")?,
            },
            Kind::Opsgenie => {
                SinkKind::OpsGenie { url: address(OPSGENIE)?, key: needs(token()?, "token_file, the API key")? }
            }
            Kind::Alertmanager => SinkKind::Alertmanager { url: needs(url()?, "url")?, token: token()? },
            Kind::Webhook => SinkKind::Webhook {
                url: needs(url()?, "url or url_file")?,
                secret: some(("secret", &self.secret, &self.secret_file, &self.secret_command))?,
            },
            Kind::Command => {
                let argv = self.command.as_ref().ok_or("it needs command")?.0.clone();
                SinkKind::Command { argv, hidden: SECRET_VARIABLES.to_vec() }
            }
        };
        self.refuse_others()?;
        // What another place holds is looked at when it is read.
        if let Some(url) = self.url.as_ref().and_then(|url| url.expose_str()) {
            let has_token = self.token.is_some() || self.token_file.is_some() || self.token_command.is_some();
            check_address(url, has_token)?;
        }
        let timeout = self.timeout.map_or(TIMEOUT, |t| t.0);
        if timeout.is_zero() || timeout > TIMEOUT_MAX {
            return Err(format!("the timeout is between 1ms and {} s", TIMEOUT_MAX.as_secs()));
        }
        let least = match self.severity {
            None | Some(Least::Info) => Severity::Info,
            Some(Least::Warning) => Severity::Warning,
            Some(Least::Critical) => Severity::Critical,
        };
        Ok(Sink { name: name.to_owned(), kind, least, timeout, ca_file: self.ca_file.clone() })
    }

    fn email(&self) -> Result<Email, String> {
        let host = self.host.clone().ok_or("it needs host, the mail server")?;
        let from = self.from.clone().ok_or("it needs from, an address")?;
        if self.to.is_empty() {
            return Err("it needs to, a list of addresses".into());
        }
        std::iter::once(&from).chain(&self.to).try_for_each(|address| check_mailbox(address))?;
        let tls = match self.tls {
            None | Some(MailTls::Starttls) => Tls::StartTls,
            Some(MailTls::Tls) => Tls::Wrapped,
            Some(MailTls::None) if ["localhost", "127.0.0.1", "::1"].contains(&host.as_str()) => Tls::None,
            Some(MailTls::None) => return Err("without TLS mail goes to a server on this machine alone".into()),
        };
        let password = some(("password", &self.password, &self.password_file, &self.password_command))?;
        let login = match (&self.user, password) {
            (Some(user), Some(password)) => Some((user.clone(), password)),
            (None, None) => None,
            _ => return Err("user and password_file belong together".into()),
        };
        Ok(Email { host, port: self.port, tls, login, from, to: self.to.clone() })
    }

    /// What another kind needs was meant for something.
    fn refuse_others(&self) -> Result<(), String> {
        let (mail, command) = (self.kind == Kind::Email, self.kind == Kind::Command);
        let given = [
            (mail, "host", self.host.is_some()),
            (mail, "port", self.port.is_some()),
            (mail, "tls", self.tls.is_some()),
            (mail, "user", self.user.is_some()),
            (mail, "from", self.from.is_some()),
            (mail, "to", !self.to.is_empty()),
            (command, "command", self.command.is_some()),
            (self.kind == Kind::Webhook, "secret", self.secret.is_some() || self.secret_file.is_some()),
        ];
        match given.iter().find(|(fits, _, is_given)| *is_given && !fits) {
            Some((_, key, _)) => Err(format!("{key} is for sinks of another kind")),
            None => Ok(()),
        }
    }
}

impl AlertsSection {
    /// # Errors
    /// The path of the section below `alerts`, and what is wrong with it.
    pub fn settings(&self) -> Result<AlertSettings, (Vec<String>, String)> {
        let mut sinks = vec![];
        for (name, section) in &self.sinks {
            sinks.push(section.sink(name).map_err(|why| (vec!["sinks".into(), name.clone()], why))?);
        }
        let mut before = None;
        for level in &self.escalation {
            let wrong = |why: String| (vec!["escalation".to_owned()], why);
            if let Some(unknown) = level.sinks.iter().find(|name| !self.sinks.contains_key(*name)) {
                return Err(wrong(format!("there is no sink '{unknown}'")));
            }
            match before {
                None if !level.after.0.is_zero() => return Err(wrong("the first are told after 0s".into())),
                Some(earlier) if level.after.0 <= earlier => {
                    return Err(wrong("each level comes later than the one before".into()));
                }
                _ => before = Some(level.after.0),
            }
        }
        let levels = self.escalation.iter().map(|l| Level { after: l.after.0, sinks: l.sinks.clone() }).collect();
        let remind = self.remind_every.map_or(REMIND_EVERY, |t| t.0);
        let ping = some(("ping_url", &self.ping_url, &self.ping_url_file, &self.ping_url_command));
        Ok(AlertSettings {
            routing: Routing { sinks, levels, remind_every: Some(remind).filter(|t| !t.is_zero()) },
            no_backup_for: self.no_backup_for.map_or(NO_BACKUP_FOR, |t| t.0),
            size_jump_percent: self.size_jump_percent.unwrap_or(SIZE_JUMP_PERCENT),
            disabled: self.disabled.clone(),
            ping: ping.map_err(|why| (vec![], why))?,
        })
    }
}
