//! `[server]`: where it listens, who may ask, what it keeps.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pgark_server::access::Role;
use pgark_server::http::tls::TlsFiles;
use pgark_server::serve::{CertificateRule, WebConfig};
use pgark_server::state::Keep;
use serde::{Deserialize, Serialize};

use super::oidc::OidcSection;
use super::units::Span;

const HOUR: Duration = Duration::from_secs(3600);
const REQUESTS_PER_SECOND: u32 = 200;
const REQUESTS_PER_SECOND_MAX: u32 = 100_000;
const APPROVE_WITHIN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
pub(super) const SESSION_MIN: Duration = Duration::from_secs(60);
pub(super) const SESSION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port; others than of the loopback need TLS and somebody who may ask
    pub listen: SocketAddr,
    /// Jobs, tokens and users; mode 0700, of the user that the server runs as
    pub state_dir: PathBuf,
    /// That it is asked by, beside localhost and its addresses.
    pub names: Vec<String>,
    /// Addresses of proxies that say in `X-Forwarded-For` for whom they ask.
    pub trusted_proxies: Vec<IpAddr>,
    /// Of one address, and of one caller; five seconds' worth at once.
    pub requests_per_second: u32,
    /// What restores or removes waits for a yes of somebody else.
    pub require_second_person: bool,
    /// For how long.
    pub approve_within: Span,
    /// How long one who has signed in stays so.
    pub session: Span,
    /// The history of jobs: what is within both this, in days, and `keep_jobs` is kept
    pub keep_jobs_days: u32,
    /// So many of them
    pub keep_jobs: u32,
    /// How it is asked in secret; in the clear when left out
    pub tls: Option<TlsSection>,
    /// Who else signs people in, by OpenID Connect; only users and tokens when left out
    pub oidc: Option<OidcSection>,
}

/// All in PEM.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// Of the server, with those that lead to its authority
    pub certificate: PathBuf,
    /// Readable by the user that the server runs as alone
    pub key: PathBuf,
    /// Who signs certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// Whether nobody is answered without one
    #[serde(default)]
    pub require_client_certificate: bool,
    /// What those that are signed may do.
    #[serde(default)]
    pub clients: Vec<TlsClient>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsClient {
    /// As `openssl x509 -noout -subject -nameopt RFC2253` prints it.
    pub subject: String,
    /// What it may do
    pub role: Role,
    /// Every cluster when left out.
    pub cluster: Option<String>,
}

impl Default for Server {
    fn default() -> Server {
        let keep = Keep::default();
        Server {
            listen: (Ipv4Addr::LOCALHOST, 7432).into(),
            state_dir: "/var/lib/pgark-server".into(),
            names: vec![],
            trusted_proxies: vec![],
            requests_per_second: REQUESTS_PER_SECOND,
            require_second_person: false,
            approve_within: Span(HOUR),
            session: Span(12 * HOUR),
            keep_jobs_days: keep.days,
            keep_jobs: keep.jobs,
            tls: None,
            oidc: None,
        }
    }
}

/// What cannot be, and where.
pub struct Wrong {
    pub path: Vec<String>,
    pub message: String,
    pub hint: String,
}

impl Server {
    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |path: &[&str], message: &str, hint: &str| {
            let path = path.iter().map(|p| (*p).to_owned()).collect();
            Err(Wrong { path, message: message.to_owned(), hint: hint.to_owned() })
        };
        if let Some(index) = self.names.iter().position(|name| !is_host(name)) {
            let hint = "names of hosts without a port, such as backup.example.org";
            return wrong(&["names", &index.to_string()], "this is no name of a host", hint);
        }
        if !(1..=REQUESTS_PER_SECOND_MAX).contains(&self.requests_per_second) {
            let message = format!("it is between 1 and {REQUESTS_PER_SECOND_MAX}");
            return wrong(&["requests_per_second"], &message, "200 when it is left out");
        }
        if self.approve_within.0.is_zero() || self.approve_within.0 > APPROVE_WITHIN_MAX {
            return wrong(&["approve_within"], "it is longer than nothing, and at most 30d", "1h when it is left out");
        }
        if !(SESSION_MIN..=SESSION_MAX).contains(&self.session.0) {
            return wrong(&["session"], "it is between 1m and 30d", "12h when it is left out");
        }
        for (key, value) in [("keep_jobs_days", self.keep_jobs_days), ("keep_jobs", self.keep_jobs)] {
            if value == 0 {
                return wrong(&[key], "some history is kept", "90 days and 10000 jobs when they are left out");
            }
        }
        if let Some(oidc) = &self.oidc {
            oidc.check(&self.names)?;
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        if tls.require_client_certificate && tls.client_ca.is_none() {
            let path = ["tls", "require_client_certificate"];
            return wrong(&path, "nothing says who signs them", "client_ca = \"/etc/pgark/clients.crt\"");
        }
        if !tls.clients.is_empty() && tls.client_ca.is_none() {
            return wrong(&["tls", "clients"], "nothing says who signs them", "client_ca = \"/etc/pgark/clients.crt\"");
        }
        let same = |client: &TlsClient| tls.clients.iter().filter(|c| c.subject == client.subject).count() > 1;
        if let Some(index) = tls.clients.iter().position(|c| !c.subject.contains('=') || same(c)) {
            let hint = "each subject once, such as \"CN=prometheus,O=Example\"";
            return wrong(&["tls", "clients", &index.to_string(), "subject"], "this cannot be a subject", hint);
        }
        Ok(())
    }

    pub fn tls_files(&self) -> Option<TlsFiles> {
        self.tls.as_ref().map(|tls| TlsFiles {
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            client_required: tls.require_client_certificate,
        })
    }

    pub fn keep(&self) -> Keep {
        Keep { days: self.keep_jobs_days, jobs: self.keep_jobs }
    }

    pub fn web(&self) -> WebConfig {
        let clients = self.tls.iter().flat_map(|tls| &tls.clients);
        let rule =
            |c: &TlsClient| CertificateRule { subject: c.subject.clone(), role: c.role, cluster: c.cluster.clone() };
        WebConfig {
            names: self.names.clone(),
            trusted_proxies: self.trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
            requests_per_second: self.requests_per_second,
            certificates: clients.map(rule).collect(),
            require_second_person: self.require_second_person,
            approve_within: self.approve_within.0,
            session: self.session.0,
            oidc: self.oidc.as_ref().map(OidcSection::config),
        }
    }
}

fn is_host(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (1..=253).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with(['-', '.'])
}
