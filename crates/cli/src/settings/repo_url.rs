//! Where a repository lives: `/path`, `file:///path`, `s3://bucket/prefix`, `az://…`, `gs://…`, `sftp://user@host/path`,
//! each with options as a query.
//!
//! Invariant: a [`RepoUrl`] holds no secret, so it may be shown anywhere; what could hold one is refused, without
//! repeating it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use pgark_repo::store::SftpOptions;

use super::nearest::nearest;
use super::units::serde_as_text;

/// The moment as of which a bucket with versions is read.
pub const AS_OF: &str = "as_of";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    File,
    S3,
    Azure,
    Gcs,
    Sftp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoUrl {
    pub scheme: Scheme,
    /// The login name, `sftp` only.
    pub user: Option<String>,
    /// Bucket, container or host; none for `file`.
    pub host: Option<String>,
    /// `sftp` only.
    pub port: Option<u16>,
    /// Absolute for `file` and `sftp`; for object stores the prefix, without slashes at its ends, possibly empty.
    pub path: String,
    pub options: BTreeMap<String, String>,
}

impl Scheme {
    const ALL: &[Scheme] = &[Scheme::File, Scheme::S3, Scheme::Azure, Scheme::Gcs, Scheme::Sftp];

    pub fn is_object_store(self) -> bool {
        matches!(self, Scheme::S3 | Scheme::Azure | Scheme::Gcs)
    }

    pub fn name(self) -> &'static str {
        match self {
            Scheme::File => "file",
            Scheme::S3 => "s3",
            Scheme::Azure => "az",
            Scheme::Gcs => "gs",
            Scheme::Sftp => "sftp",
        }
    }

    /// The options this kind of store understands. None of them is a secret.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Scheme::File => &[],
            Scheme::S3 => &[
                "allow_http",
                AS_OF,
                "ca_file",
                "checksum",
                "conditional_writes",
                "endpoint",
                "path_style",
                "profile",
                "proxy",
                "region",
                "sse",
                "sse_kms_key_id",
                "storage_class",
                "timeout",
            ],
            Scheme::Azure => &[
                "account",
                "allow_http",
                "ca_file",
                "conditional_writes",
                "emulator",
                "endpoint",
                "proxy",
                "storage_class",
                "timeout",
            ],
            Scheme::Gcs => {
                &["allow_http", "ca_file", "conditional_writes", "endpoint", "proxy", "storage_class", "timeout"]
            }
            Scheme::Sftp => SftpOptions::NAMES,
        }
    }
}

/// Words that mark an option as a secret, whatever else its name says.
const SECRET_WORDS: &[&str] = &["secret", "password", "passphrase", "token", "access_key", "account_key", "sas", "sig"];

impl FromStr for RepoUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<RepoUrl, String> {
        if text.chars().any(char::is_control) {
            return Err("a repository URL holds no control characters".into());
        }
        let Some((scheme, rest)) = text.split_once("://") else { return local_path(text) };
        let scheme = Scheme::ALL.iter().copied().find(|s| s.name() == scheme).ok_or_else(|| unknown_scheme(scheme))?;
        let (location, query) = rest.split_once('?').map_or((rest, ""), |(l, q)| (l, q));
        if location.contains('#') || query.contains('#') {
            return Err("'#' in a repository URL is written %23".into());
        }
        let (authority, path) = match location.find('/') {
            Some(slash) => location.split_at_checked(slash).unwrap_or((location, "")),
            None => (location, ""),
        };
        let authority = Authority::parse(scheme, authority)?;
        let path = path_of(scheme, &decode(path)?)?;
        let options = options_of(scheme, query)?;
        Ok(RepoUrl { scheme, user: authority.user, host: authority.host, port: authority.port, path, options })
    }
}

impl RepoUrl {
    /// True when the text can only be meant as a place, not as the name of a configured repository.
    pub fn looks_like_url(text: &str) -> bool {
        text.contains("://") || text.starts_with('/')
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Whether this kind of store has such an option.
    pub fn has_option(&self, name: &str) -> bool {
        self.scheme.options().contains(&name)
    }

    pub fn without(&self, option: &str) -> RepoUrl {
        let mut url = self.clone();
        url.options.remove(option);
        url
    }
}

fn local_path(text: &str) -> Result<RepoUrl, String> {
    if !text.starts_with('/') {
        return Err(format!("'{text}' is neither an absolute path nor a URL with one of {}", scheme_list()));
    }
    // A path is taken as it is: it may hold '?' and '%'.
    let path = path_of(Scheme::File, text)?;
    Ok(RepoUrl { scheme: Scheme::File, user: None, host: None, port: None, path, options: BTreeMap::new() })
}

fn unknown_scheme(scheme: &str) -> String {
    // Only a plain word is repeated: what stands before "://" could be anything.
    let plain = scheme.len() <= 16 && scheme.chars().all(|c| c.is_ascii_alphanumeric());
    let word = if plain { format!("'{scheme}' ") } else { String::new() };
    format!("the scheme {word}is not one of {}", scheme_list())
}

fn scheme_list() -> String {
    Scheme::ALL.iter().map(|s| format!("{}://", s.name())).collect::<Vec<_>>().join(", ")
}

struct Authority {
    user: Option<String>,
    host: Option<String>,
    port: Option<u16>,
}

impl Authority {
    fn parse(scheme: Scheme, text: &str) -> Result<Authority, String> {
        let (user, host_port) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, text),
        };
        if user.is_some_and(|u| u.contains(':') || u.to_ascii_lowercase().contains("%3a")) {
            return Err("a password does not belong in a repository URL; \
                        use an identity file, an agent or the cloud's own credential chain"
                .into());
        }
        if user.is_some() && scheme != Scheme::Sftp {
            return Err(format!("a {}:// URL has no user; credentials come from the standard chain", scheme.name()));
        }
        if scheme == Scheme::File {
            let local = host_port.is_empty() || host_port == "localhost";
            return if local {
                Ok(Authority { user: None, host: None, port: None })
            } else {
                Err("a file URL has three slashes: file:///absolute/path".into())
            };
        }
        let (host, port) = host_and_port(host_port)?;
        if port.is_some() && scheme != Scheme::Sftp {
            return Err(format!("a {}:// URL names a bucket; a port belongs in ?endpoint=", scheme.name()));
        }
        let user = user.map(decode).transpose()?.filter(|u| !u.is_empty());
        Ok(Authority { user, host: Some(host), port })
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match (text.starts_with('['), text.rsplit_once(':')) {
        (true, Some((host, port))) if host.ends_with(']') => (host, Some(port)),
        (false, Some((host, port))) => (host, Some(port)),
        _ => (text, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '$');
    if host.is_empty() || !host.chars().all(allowed) {
        return Err("the bucket or host in the URL is missing or holds characters that cannot be".into());
    }
    let port = port.map(|p| p.parse::<u16>().map_err(|_| "the port in the URL is not a number up to 65535".to_owned()));
    Ok((host.to_owned(), port.transpose()?))
}

fn path_of(scheme: Scheme, path: &str) -> Result<String, String> {
    if path.chars().any(char::is_control) {
        return Err("a repository path holds no control characters".into());
    }
    if path.split('/').any(|part| part == "..") {
        return Err("a repository path has no '..' in it".into());
    }
    match scheme {
        Scheme::File | Scheme::Sftp if !path.starts_with('/') => {
            Err(format!("a {}:// URL needs an absolute path", scheme.name()))
        }
        Scheme::File | Scheme::Sftp => {
            let trimmed = path.trim_end_matches('/');
            Ok(if trimmed.is_empty() { "/".into() } else { trimmed.to_owned() })
        }
        Scheme::S3 | Scheme::Azure | Scheme::Gcs => Ok(path.trim_matches('/').to_owned()),
    }
}

fn options_of(scheme: Scheme, query: &str) -> Result<BTreeMap<String, String>, String> {
    let mut options = BTreeMap::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("a URL option is written name=value")?;
        let name = decode(name)?;
        if !scheme.options().contains(&name.as_str()) {
            return Err(unknown_option(scheme, &name));
        }
        let value = decode(value)?;
        if name == "endpoint" && has_userinfo(&value) {
            return Err("the endpoint in the URL names a user or password; \
                        use the cloud's own credential chain"
                .into());
        }
        if has_userinfo(&value) {
            return Err(format!(
                "the URL option '{name}' names a user or password; a proxy with a password belongs in HTTPS_PROXY"
            ));
        }
        if options.insert(name.clone(), value).is_some() {
            return Err(format!("the URL option '{name}' is given twice"));
        }
    }
    Ok(options)
}

fn has_userinfo(endpoint: &str) -> bool {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    rest.split(['/', '?']).next().is_some_and(|authority| authority.contains('@'))
}

fn unknown_option(scheme: Scheme, name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    if SECRET_WORDS.iter().any(|word| lower.contains(word)) {
        return "a secret does not belong in a repository URL; use the cloud's own credential chain".into();
    }
    let near = nearest(name, scheme.options().iter().copied()).map(|n| format!("; did you mean '{n}'?"));
    format!("unknown option '{name}' in a {}:// URL{}", scheme.name(), near.unwrap_or_default())
}

fn decode(text: &str) -> Result<String, String> {
    let wrong =
        || "a '%' in a repository URL is followed by two hexadecimal digits, and the result is UTF-8".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16)).ok_or_else(wrong);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| wrong())?);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn encode(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || keep.contains(c) {
            encoded.push(c);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scheme == Scheme::File && self.options.is_empty() {
            return f.write_str(&self.path);
        }
        write!(f, "{}://", self.scheme.name())?;
        if let Some(user) = &self.user {
            write!(f, "{}@", encode(user, ""))?;
        }
        match self.host.as_deref() {
            Some(host) if host.contains(':') => write!(f, "[{host}]")?,
            Some(host) => f.write_str(host)?,
            None => {}
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        let slash = if self.path.is_empty() || self.path.starts_with('/') { "" } else { "/" };
        write!(f, "{slash}{}", encode(&self.path, "/"))?;
        for (index, (name, value)) in self.options.iter().enumerate() {
            write!(f, "{}{name}={}", if index == 0 { '?' } else { '&' }, encode(value, ":/"))?;
        }
        Ok(())
    }
}

serde_as_text!(RepoUrl);

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RepoUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_kind_of_url_is_read_and_shown_again() {
        let same = [
            "/var/lib/pgark",
            "s3://bucket/a/b?endpoint=http://127.0.0.1:9000&path_style=true&region=eu-1",
            "s3://bucket",
            "az://container/prefix",
            "gs://bucket/prefix",
            "sftp://backup@host.example:2222/srv/pgark?identity_file=/etc/key",
            "sftp://[::1]:22/srv",
        ];
        for text in same {
            assert_eq!(url(text).to_string(), text);
            assert_eq!(url(&url(text).to_string()), url(text));
        }
        assert_eq!(url("file:///var/lib/pgark/"), url("/var/lib/pgark"));
        assert_eq!(url("file:///a%20b%3Fc"), url("/a b?c"));
    }

    #[test]
    fn the_parts_are_told_apart() {
        let sftp = url("sftp://me@host:22/srv");
        assert_eq!((sftp.user.as_deref(), sftp.host.as_deref(), sftp.port), (Some("me"), Some("host"), Some(22)));
        assert_eq!(sftp.path, "/srv");
        let s3 = url("s3://bucket/pre/fix/?region=eu-1");
        assert_eq!(
            (s3.host.as_deref(), s3.path.as_str(), s3.option("region")),
            (Some("bucket"), "pre/fix", Some("eu-1"))
        );
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        let urls = [
            "sftp://me:hunter2@host/srv",
            "sftp://me%3Ahunter2@host/srv",
            "s3://key:hunter2@bucket/x",
            "s3://hunter2@bucket/x",
            "s3://bucket/x?secret_access_key=hunter2",
            "az://c/x?sas_token=hunter2",
            "s3://bucket?endpoint=http://u:hunter2@host",
            "s3://bucket?proxy=http://u:hunter2@host:3128",
            "hunter2@x://y",
        ];
        for text in urls {
            let error = text.parse::<RepoUrl>().expect_err(text);
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_not_a_repository_is_an_error() {
        let wrong = [
            "relative/path",
            "",
            "ftp://host/x",
            "file://host/x",
            "file://relative",
            "s3://",
            "s3:///prefix",
            "sftp://host",
            "sftp://host:x/srv",
            "s3://bucket:9000/x",
            "/a/../b",
            "s3://b/../c",
            "s3://b?region",
            "s3://b?region=a&region=b",
            "file:///a%zz",
            "file:///a%2",
            "file:///a%ff",
            "s3://bu cket/x",
            "/a\nb",
            "file:///a%0ab",
            "s3://b/x#frag",
        ];
        for text in wrong {
            assert!(text.parse::<RepoUrl>().is_err(), "{text}");
        }
        let error = "s3://b?regoin=x".parse::<RepoUrl>().expect_err("unknown option");
        assert!(error.contains("did you mean 'region'"), "{error}");
    }
}
