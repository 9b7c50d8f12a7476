//! Requests to receivers of alerts: no redirects, a deadline, and of the answer its status alone.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Method, Url};

const CA_BYTES_MAX: u64 = 1 << 20;

pub(super) struct Post {
    url: String,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Whether it holds what must not go over a network in the open.
    is_secret: bool,
}

impl Post {
    pub fn json(url: &str, body: &serde_json::Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        Post { url: url.to_owned(), headers, body: body.to_string().into_bytes(), is_secret: false }
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Result<Self, String> {
        let value = HeaderValue::from_str(value).map_err(|_| format!("the value for {name} cannot be sent"))?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    pub fn secret_header(mut self, name: &'static str, value: &str) -> Result<Self, String> {
        let mut value = HeaderValue::from_str(value).map_err(|_| format!("the secret for {name} cannot be sent"))?;
        value.set_sensitive(true);
        self.headers.insert(HeaderName::from_static(name), value);
        self.is_secret = true;
        Ok(self)
    }

    pub fn send(self, ca_file: Option<&Path>, within: Duration) -> Result<(), String> {
        let url = parsed(&self.url)?;
        if self.is_secret && url.scheme() == "http" && !is_this_machine(&url) {
            return Err("a secret is sent over https alone".into());
        }
        request(Method::POST, url, self.headers, self.body, ca_file, within)
    }
}

pub(super) fn get(url: &str, within: Duration) -> Result<(), String> {
    request(Method::GET, parsed(url)?, HeaderMap::new(), vec![], None, within)
}

/// The address itself may be the secret, so no error repeats it.
fn parsed(url: &str) -> Result<Url, String> {
    let url = Url::parse(url.trim()).map_err(|e| format!("the address is no URL: {e}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("the address begins with {other}:, and not with https:")),
    }
}

/// Whether an address that stands in the settings can be used at all.
///
/// # Errors
/// What is wrong with it, without the address.
pub fn check_address(url: &str, with_secret: bool) -> Result<(), String> {
    let url = parsed(url)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a name or a password stands in the address: give the whole of it in a file, as url_file".into());
    }
    if with_secret && url.scheme() == "http" && !is_this_machine(&url) {
        return Err("a secret is sent over https alone".into());
    }
    Ok(())
}

fn is_this_machine(url: &Url) -> bool {
    super::email::is_this_machine(url.host_str().unwrap_or_default())
}

fn request(
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
    ca_file: Option<&Path>,
    within: Duration,
) -> Result<(), String> {
    let mut builder = reqwest::Client::builder()
        .timeout(within)
        .connect_timeout(within)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("pgark/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = ca_file {
        for certificate in Certificate::from_pem_bundle(&certificates(path)?).map_err(told)? {
            builder = builder.tls_certs_merge([certificate]);
        }
    }
    let client = builder.build().map_err(told)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let status = runtime.block_on(async {
        let sent = client.request(method, url).headers(headers).body(body).send().await;
        sent.map(|answer| answer.status()).map_err(told)
    })?;
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("the receiver answered {status}")),
    }
}

pub(super) fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut bytes = vec![];
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(CA_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// With what caused it, and without the address.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
