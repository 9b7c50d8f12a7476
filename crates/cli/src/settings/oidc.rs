//! `[server.oidc]`: who else signs people in, and what members of its groups may do.

use std::path::PathBuf;
use std::time::Duration;

use pgark_server::access::Role;
use pgark_server::oidc::{GroupRule, OidcConfig, check_address};
use serde::{Deserialize, Serialize};

use super::alerts::read_later;
use super::server::{SESSION_MAX, SESSION_MIN, Wrong};
use super::units::Span;
use crate::secret::SecretSource;

const SESSION: Duration = Duration::from_secs(8 * 3600);
const NAME_CHARS_MAX: usize = 63;

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSection {
    /// The provider, exactly as it calls itself: `https://…`; `http://` on this machine alone
    pub issuer: String,
    /// What the provider calls this server
    pub client_id: String,
    /// File with the secret that the provider gave this client, mode 0600; none for a public client
    pub client_secret_file: Option<PathBuf>,
    /// This server as browsers reach it, such as `https://backup.example.org`; the provider has to know this, followed by `/sign-in/oidc/callback`
    pub url: String,
    /// On the button of the sign-in page; the host of `issuer` when left out
    pub name: Option<String>,
    /// What the provider is asked for, beside `openid`
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// Claim that has the name of a person; otherwise the first of `preferred_username`, `email`, `sub` that is there
    pub name_claim: Option<String>,
    /// Claim of the ID token that has the groups, or a path to it such as `realm_access.roles`
    #[serde(default = "groups_claim")]
    pub groups_claim: String,
    /// How long one who has signed in stays so
    #[serde(default = "session")]
    pub session: Span,
    /// Certificates that are believed of the provider beside those of the system, in PEM
    pub ca_file: Option<PathBuf>,
    /// What members of groups may do; it adds up. Who is in none of them is not let in
    #[serde(default)]
    pub roles: Vec<OidcRole>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OidcRole {
    /// As the claim has it
    pub group: String,
    /// What its members may do
    pub role: Role,
    /// On these; every cluster when left out
    pub clusters: Option<Vec<String>>,
}

fn scopes() -> Vec<String> {
    ["profile", "email"].map(str::to_owned).into()
}

fn groups_claim() -> String {
    "groups".into()
}

fn session() -> Span {
    Span(SESSION)
}

impl OidcSection {
    /// `names` are those that the server is asked by.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self, names: &[String]) -> Result<(), Wrong> {
        let wrong = |path: &[&str], message: String, hint: &str| {
            let path = ["oidc"].iter().chain(path).map(|p| (*p).to_owned()).collect();
            Err(Wrong { path, message, hint: hint.to_owned() })
        };
        if let Err(why) = check_address(&self.issuer) {
            return wrong(
                &["issuer"],
                why,
                "the address of the provider, such as \"https://id.example.org/realms/main\"",
            );
        }
        if let Err(why) = check_address(&self.url) {
            return wrong(&["url"], why, "this server as browsers reach it, such as \"https://backup.example.org\"");
        }
        if !answers_as(&self.url, names) {
            let hint = "names in [server] has the names that the server answers to, beside localhost and its addresses";
            return wrong(&["url"], "the server does not answer to this name".into(), hint);
        }
        if self.client_id.is_empty() || self.client_id.chars().any(char::is_control) {
            return wrong(&["client_id"], "this cannot be a client".into(), "what the provider calls this server");
        }
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'));
        if let Some(index) = self.scopes.iter().position(|scope| !is_word(scope)) {
            return wrong(&["scopes", &index.to_string()], "this is no scope".into(), "words such as \"profile\"");
        }
        for (key, claim) in [("name_claim", self.name_claim.as_ref()), ("groups_claim", Some(&self.groups_claim))] {
            if claim.is_some_and(|claim| claim.trim().is_empty()) {
                return wrong(&[key], "this cannot be a claim".into(), "the name of a claim in the ID token");
            }
        }
        let name = self.button();
        if name.trim().is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return wrong(
                &["name"],
                format!("it has 1 to {NAME_CHARS_MAX} characters"),
                "what people call the provider",
            );
        }
        if !(SESSION_MIN..=SESSION_MAX).contains(&self.session.0) {
            return wrong(&["session"], "it is between 1m and 30d".into(), "8h when it is left out");
        }
        if self.roles.is_empty() {
            let hint = "[[server.oidc.roles]] with group = \"dba\" and role = \"operator\", for example";
            return wrong(&["roles"], "nobody could sign in: no group has a role".into(), hint);
        }
        for (index, rule) in self.roles.iter().enumerate() {
            let index = index.to_string();
            if rule.group.is_empty() {
                return wrong(&["roles", &index, "group"], "this cannot be a group".into(), "as the claim has it");
            }
            if rule.clusters.as_ref().is_some_and(Vec::is_empty) {
                let hint = "left out, it is every cluster";
                return wrong(&["roles", &index, "clusters"], "a role on no cluster is none".into(), hint);
            }
        }
        Ok(())
    }

    fn button(&self) -> String {
        self.name.clone().unwrap_or_else(|| host(&self.issuer).to_owned())
    }

    pub fn config(&self) -> OidcConfig {
        let of_rule = |rule: &OidcRole| -> Vec<GroupRule> {
            match &rule.clusters {
                None => vec![GroupRule::new(&rule.group, rule.role, None)],
                Some(all) => all.iter().map(|c| GroupRule::new(&rule.group, rule.role, Some(c))).collect(),
            }
        };
        OidcConfig {
            issuer: self.issuer.clone(),
            client_id: self.client_id.clone(),
            client_secret: self.client_secret_file.clone().map(|file| read_later(SecretSource::File(file))),
            url: self.url.clone(),
            name: self.button(),
            scopes: self.scopes.clone(),
            name_claim: self.name_claim.clone(),
            groups_claim: self.groups_claim.clone(),
            roles: self.roles.iter().flat_map(of_rule).collect(),
            session: self.session.0,
            ca_file: self.ca_file.clone(),
        }
    }
}

/// Of an address that was checked.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    port.map_or(authority, |(host, _)| host)
}

/// Otherwise nobody who comes back would be answered. An address may be one of ours.
fn answers_as(url: &str, names: &[String]) -> bool {
    let host = host(url);
    let is_address = host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    is_address || host.eq_ignore_ascii_case("localhost") || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_addresses() {
        for (address, found) in [
            ("https://id.example.org", "id.example.org"),
            ("https://id.example.org:8443/realms/a:1", "id.example.org"),
            ("http://[::1]:8080/x", "[::1]"),
            ("http://[::1]", "[::1]"),
            ("http://127.0.0.1:1", "127.0.0.1"),
        ] {
            assert_eq!(host(address), found);
        }
        let names = ["backup.example.org".to_owned()];
        assert!(
            answers_as("https://Backup.example.org:8443/pgark", &names) && answers_as("http://127.0.0.1:7432", &[])
        );
        assert!(!answers_as("https://backup.example.org", &[]));
    }
}
