//! Asking the application whether it is there, and whether what it says is right.
//!
//! No redirect is followed: an application that sends its visitors to a sign-in page has not answered. Answers are judged and
//! not shown, since they may hold anything.

use std::fmt;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgark_engine::ctx::Ctx;
use pgark_engine::error::{EngineError, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Of an answer, more is not read.
const BODY_BYTES_MAX: usize = 1024 * 1024;
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[derive(Clone, Debug)]
pub enum Probe {
    /// `HOST:PORT` accepts connections.
    Tcp(String),
    Http(Box<HttpProbe>),
}

#[derive(Clone, Debug)]
pub struct HttpProbe {
    pub url: Url,
    pub method: Method,
    /// Empty: 200 to 299.
    pub statuses: Vec<u16>,
    /// Until the whole answer is here.
    pub latency_max: Option<Duration>,
    /// JSON pointers (RFC 6901) and what is to be found there.
    pub json: Vec<(String, Value)>,
    pub contains: Option<String>,
    pub headers: Vec<(String, String)>,
    /// Headers whose value is in a file.
    pub secret_headers: Vec<(String, PathBuf)>,
    /// PEM; believed besides those of the system.
    pub ca_file: Option<PathBuf>,
}

/// What was found by one try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub ok: bool,
    pub status: Option<u16>,
    pub latency_ms: u64,
    /// Of what is not as it should be.
    pub why: Vec<String>,
}

impl Found {
    /// The application answered that it failed.
    pub fn is_server_error(&self) -> bool {
        self.status.is_some_and(|s| (500..600).contains(&s))
    }

    fn not(why: impl Into<String>, began: Instant) -> Found {
        Found { ok: false, status: None, latency_ms: millis(began.elapsed()), why: vec![why.into()] }
    }
}

impl fmt::Display for Probe {
    /// Without what may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Tcp(address) => f.write_str(address),
            Probe::Http(probe) => {
                let url = &probe.url;
                let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
                write!(f, "{} {}://{}{port}{}", probe.method, url.scheme(), url.host_str().unwrap_or("?"), url.path())
            }
        }
    }
}

impl Probe {
    /// One try, which takes no longer than this.
    ///
    /// # Errors
    /// When it cannot be tried: a file is missing, a header is none. That nobody answers is no error.
    pub fn try_once(&self, within: Duration) -> Result<Found> {
        match self {
            Probe::Tcp(address) => Ok(tcp(address, within)),
            Probe::Http(probe) => probe.try_once(within),
        }
    }

    /// Tries until it is as it should be, or the time has come; what the last try found.
    pub fn until_ok(&self, deadline: Duration, each: Duration, pause: Duration, ctx: &Ctx) -> Result<Found> {
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let found = self.try_once(each.min(left.max(Duration::from_millis(1))))?;
            if found.ok || Instant::now() + pause >= until {
                return Ok(found);
            }
            ctx.check_cancelled()?;
            std::thread::sleep(pause);
        }
    }
}

/// An address that can be asked.
///
/// # Errors
/// What is wrong with it; without the address, which may hold a secret.
pub fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("the address cannot be read: {e}"))?;
    match (url.scheme(), url.host_str(), url.password()) {
        ("http" | "https", Some(_), None) => Ok(url),
        ("http" | "https", Some(_), Some(_)) => {
            Err("a password does not belong into an address: header_files takes headers from files".into())
        }
        _ => Err("the address begins with http:// or https://".into()),
    }
}

/// # Errors
/// That there is no such method.
pub fn method(name: &str) -> Result<Method, String> {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS];
    known
        .into_iter()
        .find(|m| m.as_str() == name)
        .ok_or_else(|| "the method is GET, HEAD, POST, PUT, DELETE or OPTIONS".into())
}

fn tcp(address: &str, within: Duration) -> Found {
    let began = Instant::now();
    let all = match address.to_socket_addrs() {
        Ok(all) => all,
        Err(e) => return Found::not(format!("{address}: {e}"), began),
    };
    let mut why = vec![];
    for at in all {
        let left = within.saturating_sub(began.elapsed());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&at, left) {
            Ok(_) => return Found { ok: true, status: None, latency_ms: millis(began.elapsed()), why: vec![] },
            Err(e) => why.push(format!("{at}: {e}")),
        }
    }
    Found { why, ..Found::not("", began) }
}

impl HttpProbe {
    fn try_once(&self, within: Duration) -> Result<Found> {
        let (headers, client) = (self.header_map()?, self.client(within)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| EngineError::failed("E-PROBE", format!("no runtime: {e}"), ""))?;
        let began = Instant::now();
        let request = client.request(self.method.clone(), self.url.clone()).headers(headers);
        let answer = runtime.block_on(async {
            let mut answer = request.send().await?;
            let (status, mut body) = (answer.status().as_u16(), vec![]);
            while let Some(chunk) = answer.chunk().await? {
                let room = BODY_BYTES_MAX - body.len();
                body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
                if chunk.len() > room {
                    break;
                }
            }
            Ok::<_, reqwest::Error>((status, body))
        });
        Ok(match answer {
            Ok((status, body)) => self.judge(status, &body, began.elapsed()),
            Err(e) if e.is_timeout() => Found::not(format!("no answer within {} s", within.as_secs_f32()), began),
            Err(e) => Found::not(with_causes(&e.without_url()), began),
        })
    }

    fn judge(&self, status: u16, body: &[u8], took: Duration) -> Found {
        let mut why = vec![];
        let expected = match self.statuses.as_slice() {
            [] => (200..300).contains(&status),
            some => some.contains(&status),
        };
        if !expected {
            why.push(format!("status {status}"));
        }
        if let Some(limit) = self.latency_max.filter(|limit| took > *limit) {
            why.push(format!("it took {} ms, and may take {}", millis(took), millis(limit)));
        }
        if let Some(text) = &self.contains
            && !String::from_utf8_lossy(body).contains(text.as_str())
        {
            why.push(format!("the answer does not contain {text:?}"));
        }
        if !self.json.is_empty() {
            match serde_json::from_slice::<Value>(body) {
                Ok(document) => why.extend(self.json.iter().filter_map(|(pointer, value)| {
                    let found = document.pointer(pointer);
                    (found != Some(value)).then(|| match found {
                        None => format!("{pointer} is not in the answer"),
                        Some(_) => format!("{pointer} is not {value}"),
                    })
                })),
                Err(_) => why.push("the answer is not JSON".into()),
            }
        }
        Found { ok: why.is_empty(), status: Some(status), latency_ms: millis(took), why }
    }

    fn header_map(&self) -> Result<HeaderMap> {
        let mut map = HeaderMap::new();
        let mut add = |name: &str, value: &str, secret: bool| {
            let bad = |what: &str| {
                EngineError::refused(
                    "E-PROBE-HEADER",
                    format!("{what} of header {:?} cannot be sent", name),
                    "a header is one line of visible characters",
                )
            };
            let key = HeaderName::try_from(name).map_err(|_| bad("the name"))?;
            let mut value = HeaderValue::from_str(value).map_err(|_| bad("the value"))?;
            value.set_sensitive(secret);
            map.append(key, value);
            Ok::<_, EngineError>(())
        };
        for (name, value) in &self.headers {
            add(name, value, false)?;
        }
        for (name, path) in &self.secret_headers {
            let text = small_file(path)?;
            add(name, text.trim_end_matches(['\r', '\n']), true)?;
        }
        Ok(map)
    }

    fn client(&self, within: Duration) -> Result<reqwest::Client> {
        let failed =
            |e: reqwest::Error| EngineError::failed("E-PROBE", with_causes(&e), "look at the settings of the probe");
        let mut builder = reqwest::Client::builder()
            .timeout(within)
            .connect_timeout(within)
            .redirect(reqwest::redirect::Policy::none())
            // A proxy of the environment would answer in the application's place.
            .no_proxy()
            .user_agent(concat!("pgark/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.ca_file {
            let pem = small_file(path)?;
            for certificate in Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)? {
                builder = builder.tls_certs_merge([certificate]);
            }
        }
        builder.build().map_err(failed)
    }
}

fn small_file(path: &PathBuf) -> Result<String> {
    use std::io::Read;
    let failed = |e| EngineError::file("reading", path, e);
    let mut text = String::new();
    std::fs::File::open(path).and_then(|f| f.take(SECRET_BYTES_MAX).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

/// An error with what caused it, which says more.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
