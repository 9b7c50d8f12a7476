//! The provider: what it says of itself, its keys, and the exchange of a code for an ID token.
//!
//! Invariants: it is asked over https, or on this machine; redirects are not followed; an answer has a size and a time. No MAC and
//! no `none` is a signature here, so that neither the client's secret nor a public key is ever taken for one.

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClient, CoreClientAuthMethod, CoreGrantType, CoreIdToken,
    CoreIdTokenVerifier, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
    CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{
    AdditionalProviderMetadata, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId, ClientSecret,
    DiscoveryError, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, HttpResponse, IssuerUrl, Nonce,
    PkceCodeVerifier, ProviderMetadata, RedirectUrl, RequestTokenError, SignatureVerificationError, TokenResponse,
};
use pgark_dr::probe::with_causes;
use reqwest::{Certificate, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::claims::shown;
use super::{OidcConfig, OidcError};

/// Of one request; a sign-in has at most five.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 1 << 20;
const CA_BYTES_MAX: u64 = 1 << 20;
/// Then it is read again what the provider says of itself.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// What rustls says of a certificate that nobody has signed whom we believe.
const NOT_BELIEVED: &str = "invalid peer certificate: UnknownIssuer";

/// Signatures that are verified with a public key.
const SIGNATURES: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

type OwnClient =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// Whether an address can be asked: https, or http on this machine.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<(), String> {
    let url = Url::parse(address).map_err(|e| format!("it is no URL: {e}"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("it has a host and a path, and nothing else".into());
    }
    is_safe(&url)
}

pub(super) fn is_safe(url: &Url) -> Result<(), String> {
    match url.scheme() {
        "https" if url.has_host() => Ok(()),
        "http" if url.host_str().is_some_and(is_this_machine) => Ok(()),
        _ => Err("it begins with https://, or with http:// and names this machine".into()),
    }
}

/// As it stands in an address.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}

/// How the provider is asked.
pub struct Asking(reqwest::Client);

/// Why there is no answer, without the address that was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unanswered(String);

impl Asking {
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(config: &OidcConfig) -> Result<Asking, String> {
        let mut builder = reqwest::Client::builder()
            .timeout(ASKED_WITHIN)
            .connect_timeout(CONNECT_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("pgark/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca_file {
            let unusable = |why: String| format!("the certificates in {} cannot be used: {why}", path.display());
            let found = Certificate::from_pem_bundle(&read(path).map_err(unusable)?).map_err(|e| unusable(told(e)))?;
            if found.is_empty() {
                return Err(unusable("it holds none in PEM".into()));
            }
            builder = builder.tls_certs_merge(found);
        }
        builder.build().map(Asking).map_err(told)
    }

    /// Waits, on a runtime of its own: a thread that may wait asks.
    fn wait<T>(&self, what: impl Future<Output = Result<T, OidcError>>) -> Result<T, OidcError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| OidcError::Provider(format!("nothing can be asked: {e}")))?;
        runtime.block_on(what)
    }

    fn http(&self) -> impl Fn(HttpRequest) -> AnswerTo {
        let client = self.0.clone();
        move |request| Box::pin(answered(client.clone(), request))
    }
}

type AnswerTo = std::pin::Pin<Box<dyn Future<Output = Result<HttpResponse, Unanswered>>>>;

async fn answered(client: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, Unanswered> {
    let failed = |e: reqwest::Error| Unanswered(told(e));
    let request = reqwest::Request::try_from(request).map_err(failed)?;
    // Where else the provider sends us.
    is_safe(request.url()).map_err(|why| Unanswered(format!("an address that it names cannot be asked: {why}")))?;
    let mut answer = client.execute(request).await.map_err(failed)?;
    let mut made = openidconnect::http::Response::builder().status(answer.status());
    if let Some(kind) = answer.headers().get(reqwest::header::CONTENT_TYPE) {
        made = made.header(reqwest::header::CONTENT_TYPE, kind);
    }
    let mut body = vec![];
    while let Some(part) = answer.chunk().await.map_err(failed)? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(Unanswered(format!("its answer has more than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&part);
    }
    made.body(body).map_err(|e| Unanswered(e.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = vec![];
    file.take(CA_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// With what caused it, and without the address.
fn told(error: reqwest::Error) -> String {
    let why = with_causes(&error.without_url());
    if !why.contains(NOT_BELIEVED) {
        return why;
    }
    format!("{why}; ca_file in [server.oidc] names certificates that are believed beside those of the system")
}

/// What is known of the provider, which is asked when somebody signs in.
#[derive(Default)]
pub struct Provider(Mutex<Option<Arc<Known>>>);

/// What it said of itself.
pub struct Known {
    metadata: Metadata,
    /// Where browsers are sent to be signed out, if it says so and they can be (RP-Initiated Logout 1.0, 2.1).
    pub end_session: Option<String>,
    read: Instant,
}

/// Whatever it is: what cannot be used keeps nobody from signing in.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct More {
    #[serde(default)]
    end_session_endpoint: Value,
}

impl AdditionalProviderMetadata for More {}

/// `CoreProviderMetadata`, and more.
type Metadata = ProviderMetadata<
    More,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

fn end_session(metadata: &Metadata) -> Option<String> {
    let given = &metadata.additional_metadata().end_session_endpoint;
    let url = given.as_str().map(|text| Url::parse(text).map_err(|e| e.to_string()));
    match url.map(|url| url.and_then(|url| is_safe(&url).map(|()| url))) {
        Some(Ok(url)) => Some(url.into()),
        None if given.is_null() => None,
        Some(Err(_)) | None => {
            let issuer = metadata.issuer().as_str();
            tracing::warn!(target: "pgark", issuer, "end_session_endpoint of the provider cannot be used: people are signed out here alone");
            None
        }
    }
}

impl Provider {
    /// # Errors
    /// When nothing is known, and nothing can be learned.
    pub fn known(&self, config: &OidcConfig, asking: &Asking) -> Result<Arc<Known>, OidcError> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_good =
            |known: &Arc<Known>| known.metadata.issuer().as_str() == config.issuer && known.read.elapsed() < KNOWN_FOR;
        match kept.filter(is_good) {
            Some(known) => Ok(known),
            None => self.read(config, asking),
        }
    }

    #[cfg(test)]
    pub fn last(&self) -> Option<Arc<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks, whatever is known.
    ///
    /// # Errors
    /// When it does not answer, or what it answers cannot be.
    pub fn read(&self, config: &OidcConfig, asking: &Asking) -> Result<Arc<Known>, OidcError> {
        let failed =
            |why: String| OidcError::Provider(format!("{} cannot be asked what it is: {}", config.issuer, shown(&why)));
        let issuer = IssuerUrl::new(config.issuer.clone()).map_err(|e| failed(e.to_string()))?;
        let http = asking.http();
        let asked = async { Metadata::discover_async(issuer, &http).await.map_err(|e| failed(discovery(&e))) };
        let metadata = asking.wait(asked)?;
        // The one address of it that browsers are sent to.
        is_safe(metadata.authorization_endpoint().url())
            .map_err(|why| failed(format!("authorization_endpoint: {why}")))?;
        let end_session = end_session(&metadata);
        let known = Arc::new(Known { metadata, end_session, read: Instant::now() });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&known));
        Ok(known)
    }
}

fn discovery(error: &DiscoveryError<Unanswered>) -> String {
    match error {
        DiscoveryError::Request(why) => why.to_string(),
        DiscoveryError::Response(.., why) => why.clone(),
        other => with_causes(other),
    }
}

impl Known {
    /// # Errors
    /// When our own address cannot be one.
    pub fn client(&self, config: &OidcConfig, secret: Option<ClientSecret>) -> Result<OwnClient, OidcError> {
        let redirect = RedirectUrl::new(config.callback());
        let redirect = redirect.map_err(|e| OidcError::Provider(format!("url in [server.oidc]: {e}")))?;
        let methods = self.metadata.token_endpoint_auth_methods_supported();
        let takes = |method| methods.is_none_or(|all| all.contains(&method));
        let is_in_body =
            !takes(CoreClientAuthMethod::ClientSecretBasic) && takes(CoreClientAuthMethod::ClientSecretPost);
        let client =
            CoreClient::from_provider_metadata(self.metadata.clone(), ClientId::new(config.client_id.clone()), secret);
        let how = if is_in_body { AuthType::RequestBody } else { AuthType::BasicAuth };
        Ok(client.set_redirect_uri(redirect).set_auth_type(how))
    }

    /// # Errors
    /// When the provider gives no ID token for the code.
    pub fn exchange(
        &self,
        config: &OidcConfig,
        asking: &Asking,
        code: &str,
        verifier: PkceCodeVerifier,
    ) -> Result<CoreIdToken, OidcError> {
        let failed = |why: String| OidcError::Provider(format!("{} gives no token: {}", config.issuer, shown(&why)));
        let secret = config.client_secret.as_ref().map(|read| read()).transpose().map_err(failed)?;
        let client = self.client(config, secret.map(|secret| ClientSecret::new(secret.to_string())))?;
        let request =
            client.exchange_code(AuthorizationCode::new(code.to_owned())).map_err(|e| failed(e.to_string()))?;
        let request = request.set_pkce_verifier(verifier);
        let http = asking.http();
        let asked = async {
            request.request_async(&http).await.map_err(|error| match error {
                RequestTokenError::ServerResponse(said) => failed(said.to_string()),
                RequestTokenError::Request(why) => failed(why.to_string()),
                // What could not be read may hold a token.
                RequestTokenError::Parse(at, _) => failed(format!("its answer cannot be read at '{}'", at.path())),
                RequestTokenError::Other(why) => failed(why),
            })
        };
        let answer = asking.wait(asked)?;
        answer.id_token().cloned().ok_or_else(|| failed("its answer has no ID token".into()))
    }

    /// The claims of a token that is right.
    ///
    /// # Errors
    /// What is not.
    pub fn verified(&self, config: &OidcConfig, token: &CoreIdToken, nonce: &Nonce) -> Result<Value, NotVerified> {
        let verifier = CoreIdTokenVerifier::new_public_client(
            ClientId::new(config.client_id.clone()),
            self.metadata.issuer().clone(),
            self.metadata.jwks().clone(),
        );
        let claims = token.claims(&verifier.set_allowed_algs(SIGNATURES), nonce).map_err(NotVerified::Claims)?;
        // Core 1.0, 3.1.3.7, 5.
        if claims.authorized_party().is_some_and(|party| party.as_str() != config.client_id) {
            return Err(NotVerified::Party);
        }
        payload(token).ok_or(NotVerified::Payload)
    }
}

/// Why a token is not believed.
#[derive(Debug, thiserror::Error)]
pub enum NotVerified {
    #[error("{}", with_causes(.0))]
    Claims(ClaimsVerificationError),
    #[error("it was made for another client")]
    Party,
    #[error("it cannot be read")]
    Payload,
}

impl NotVerified {
    /// The provider may have other keys by now.
    pub fn is_of_the_key(&self) -> bool {
        use SignatureVerificationError::{CryptoError, NoMatchingKey};
        let NotVerified::Claims(ClaimsVerificationError::SignatureVerification(why)) = self else { return false };
        matches!(why, NoMatchingKey | CryptoError(_))
    }
}

/// All claims, those that only we know too. Of a token that was verified, as it was signed.
fn payload(token: &CoreIdToken) -> Option<Value> {
    let text = token.to_string();
    let payload = URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_or_of_this_machine() {
        for good in [
            "https://id.example.org",
            "https://id.example.org/realms/a/",
            "http://127.0.0.1:1",
            "http://[::1]:1/x",
            "http://localhost",
        ] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for bad in [
            "http://id.example.org",
            "http://127.0.0.1.example.org",
            "http://localhost.example.org",
            "https://user@id.example.org",
            "https://id.example.org?x=1",
            "https://id.example.org#x",
            "ftp://localhost",
            "id.example.org",
            "file:///etc/passwd",
            "",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
