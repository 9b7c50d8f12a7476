//! People whom somebody else signs in: a provider of OpenID Connect, by the authorization code flow with PKCE.
//!
//! Invariants: of a person nothing is believed but what an ID token says whose signature, issuer, audience, time and nonce were
//! verified. What somebody may do is in our settings alone: the provider says in which groups they are. It is asked when somebody
//! signs in, and never otherwise, so that nothing else waits for it: what it takes to sign them out there, too, is kept since then. What it answers is bounded in size and time, and no error
//! repeats a code, a token or a secret.

mod claims;
mod flows;
mod leaving;
mod provider;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use openidconnect::core::{CoreAuthenticationFlow, CoreIdToken};
use openidconnect::{Nonce, PkceCodeChallenge, Scope};
use zeroize::Zeroizing;

use crate::access::{Caller, Grant, Means, Role};
pub use flows::FLOW_LASTS;
use flows::{Flow, Flows};
pub use leaving::Leaving;
pub use provider::check_address;
use provider::{Asking, Provider};

/// Where the provider sends people back to, on this server.
pub const CALLBACK: &str = "/sign-in/oidc/callback";
/// Where it sends those whom it has signed out.
pub const LEFT: &str = "/sign-in";
/// Each waits for the provider; everything else is answered meanwhile.
pub const ASKING_MAX: usize = 4;

/// Read when it is needed, so that it can be exchanged, and is kept nowhere.
pub type ReadSecret = Arc<dyn Fn() -> Result<Zeroizing<String>, String> + Send + Sync>;

/// The settings of `[server.oidc]`.
#[derive(Clone)]
pub struct OidcConfig {
    /// Exactly as it calls itself.
    pub issuer: String,
    pub client_id: String,
    /// None: a public client, protected by PKCE alone.
    pub client_secret: Option<ReadSecret>,
    /// As browsers reach this server; never taken from a request.
    pub url: String,
    /// On the button.
    pub name: String,
    /// Beside `openid`.
    pub scopes: Vec<String>,
    /// What somebody is called. None: `preferred_username`, `email` or `sub`, the first that is there.
    pub name_claim: Option<String>,
    pub groups_claim: String,
    pub roles: Vec<GroupRule>,
    /// How long one who has signed in stays so.
    pub session: Duration,
    /// Certificates that are believed beside those of the system.
    pub ca_file: Option<PathBuf>,
}

/// What members of a group may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRule {
    pub group: String,
    pub grant: Grant,
}

impl GroupRule {
    pub fn new(group: &str, role: Role, cluster: Option<&str>) -> GroupRule {
        GroupRule { group: group.to_owned(), grant: Grant { role, cluster: cluster.map(str::to_owned) } }
    }
}

impl fmt::Debug for OidcConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OidcConfig { issuer, client_id, url, roles, .. } = self;
        f.debug_struct("OidcConfig")
            .field("issuer", issuer)
            .field("client_id", client_id)
            .field("url", url)
            .field("roles", roles)
            .finish_non_exhaustive()
    }
}

/// Somebody as an ID token told of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Whose word it was.
    pub issuer: String,
    /// `sub`: never given to somebody else by this issuer (Core 1.0, 2).
    pub subject: String,
    pub name: String,
    pub groups: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("this sign-in was not begun here by this browser, has been used, or took too long")]
    State,
    #[error("the provider did not sign in: {0}")]
    Refused(String),
    #[error("{0}")]
    Provider(String),
    #[error("the ID token is not right: {0}")]
    Token(String),
    #[error("{0}")]
    Claims(String),
}

impl OidcConfig {
    fn callback(&self) -> String {
        format!("{}{CALLBACK}", self.url.trim_end_matches('/'))
    }

    /// Where the provider sends those whom it has signed out.
    fn left(&self) -> String {
        format!("{}{LEFT}", self.url.trim_end_matches('/'))
    }

    /// What the settings of now give somebody; None when that is nothing, or when it was another one's word.
    pub fn caller(&self, person: Person) -> Option<Caller> {
        let Person { issuer, subject, name, groups } = person;
        let rules = self.roles.iter().filter(|rule| groups.contains(&rule.group));
        let mut grants: Vec<Grant> = vec![];
        for rule in rules {
            if !grants.contains(&rule.grant) {
                grants.push(rule.grant.clone());
            }
        }
        let is_somebody = issuer == self.issuer && !grants.is_empty();
        is_somebody.then_some(Caller { means: Means::Oidc, id: subject, name, grants })
    }

    /// Whether it can be used, as far as that can be said without asking anybody.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if let Some(secret) = &self.client_secret {
            secret()?;
        }
        Asking::new(self).map(|_| ())
    }
}

/// Where a browser goes to be signed in, and what it is to bring back.
pub struct Begun {
    pub to: String,
    pub browser: String,
}

/// Who was signed in.
pub struct SignedIn {
    pub person: Person,
    /// Where they wanted to go.
    pub next: String,
    /// None: the provider signs nobody out.
    pub leaving: Option<Leaving>,
}

/// What the provider sent a browser back with.
pub struct Returned<'a> {
    pub state: &'a str,
    /// Of our cookie.
    pub browser: &'a str,
    pub code: Option<&'a str>,
    pub error: Option<&'a str>,
    /// Whose answer it claims to be (RFC 9207).
    pub issuer: Option<&'a str>,
}

/// Sign-ins that are under way, and what is known of the provider.
#[derive(Default)]
pub struct Oidc {
    flows: Flows,
    provider: Provider,
    /// Who waits for the provider.
    pub asking: Arc<AtomicUsize>,
}

impl Oidc {
    /// Where the provider signs people out, as far as it was asked.
    #[cfg(test)]
    pub(crate) fn signs_out(&self) -> Option<String> {
        self.provider.last().and_then(|known| known.end_session.clone())
    }

    /// # Errors
    /// When nothing can be learned of the provider.
    pub fn begin(&self, config: &OidcConfig, next: &str) -> Result<Begun, OidcError> {
        let known = self.provider.known(config, &Asking::new(config).map_err(OidcError::Provider)?)?;
        let client = known.client(config, None)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (state, browser, nonce) = (flows::secret()?, flows::secret()?, flows::secret()?);
        let (own_state, own_nonce) = (state.clone(), nonce.clone());
        let mut request = client.authorize_url(
            CoreAuthenticationFlow::AuthorizationCode,
            move || openidconnect::CsrfToken::new(own_state),
            move || Nonce::new(own_nonce),
        );
        for scope in config.scopes.iter().filter(|scope| *scope != "openid") {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        let (to, ..) = request.set_pkce_challenge(challenge).url();
        let flow = Flow {
            browser: flows::hash(&browser),
            nonce,
            verifier,
            next: next.to_owned(),
            issuer: config.issuer.clone(),
            client_id: config.client_id.clone(),
        };
        self.flows.add(&state, flow, Instant::now());
        Ok(Begun { to: to.into(), browser })
    }

    /// Who it is, and where they wanted to go. However it ends, what was begun is used up.
    ///
    /// # Errors
    /// Why nobody is signed in.
    pub fn finish(&self, config: &OidcConfig, returned: &Returned<'_>) -> Result<SignedIn, OidcError> {
        let flow = self.flows.take(returned.state, Instant::now()).ok_or(OidcError::State)?;
        let is_same = flow.issuer == config.issuer && flow.client_id == config.client_id;
        if !is_same || flow.browser != flows::hash(returned.browser) {
            return Err(OidcError::State);
        }
        if returned.issuer.is_some_and(|issuer| issuer != config.issuer) {
            return Err(OidcError::Token("another provider answered".into()));
        }
        if let Some(error) = returned.error {
            return Err(OidcError::Refused(claims::shown(error)));
        }
        let code = returned.code.ok_or_else(|| OidcError::Refused("it gave no code".into()))?;
        let asking = Asking::new(config).map_err(OidcError::Provider)?;
        let known = self.provider.known(config, &asking)?;
        let token = known.exchange(config, &asking, code, flow.verifier)?;
        let nonce = Nonce::new(flow.nonce);
        let claims = self.verified(config, &asking, &known, &token, &nonce)?;
        let person = claims::person(config, &claims).map_err(OidcError::Claims)?;
        let leaving = known.end_session.clone().map(|end_session| Leaving {
            issuer: config.issuer.clone(),
            client_id: config.client_id.clone(),
            end_session,
            id_token: token.to_string(),
        });
        Ok(SignedIn { person, next: flow.next, leaving })
    }

    /// Keys are exchanged now and then: with one that is not known, or does not fit any longer, they are read once more.
    fn verified(
        &self,
        config: &OidcConfig,
        asking: &Asking,
        known: &provider::Known,
        token: &CoreIdToken,
        nonce: &Nonce,
    ) -> Result<serde_json::Value, OidcError> {
        let refused = |why: provider::NotVerified| OidcError::Token(claims::shown(&why.to_string()));
        match known.verified(config, token, nonce) {
            Err(why) if why.is_of_the_key() => {
                self.provider.read(config, asking)?.verified(config, token, nonce).map_err(refused)
            }
            found => found.map_err(refused),
        }
    }
}
