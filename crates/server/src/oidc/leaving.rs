//! Signing out at the provider, too: where a browser goes for it (OpenID Connect RP-Initiated Logout 1.0, 2).
//!
//! Invariant: our session is over before that, and whether or not the provider does its part. What is said there is what the provider
//! gave at the sign-in, to the address that it named then; nothing of a request is in it.

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::OidcConfig;
use super::provider::is_safe;

/// Longer addresses are refused on the way. Without the hint the provider asks whether somebody wants to be signed out.
const ADDRESS_BYTES_MAX: usize = 8000;

/// What it takes, from the sign-in on. No `Debug`: the ID token is nothing for a log.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Leaving {
    pub issuer: String,
    pub client_id: String,
    pub end_session: String,
    pub id_token: String,
}

impl Leaving {
    /// Where a browser goes; None when the settings of now name another provider, or another client.
    pub fn address(&self, config: &OidcConfig) -> Option<String> {
        if self.issuer != config.issuer || self.client_id != config.client_id {
            return None;
        }
        let mut url = Url::parse(&self.end_session).ok().filter(|url| is_safe(url).is_ok())?;
        url.query_pairs_mut()
            .append_pair("client_id", &self.client_id)
            .append_pair("post_logout_redirect_uri", &config.left());
        let mut hinted = url.clone();
        hinted.query_pairs_mut().append_pair("id_token_hint", &self.id_token);
        let fits = hinted.as_str().len() <= ADDRESS_BYTES_MAX;
        Some(if fits { hinted } else { url }.into())
    }
}
