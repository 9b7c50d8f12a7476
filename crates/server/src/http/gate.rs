//! What every request has to pass before it reaches a handler: is it for us, from a page of ours, not too large, not too often; and
//! who asks.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use jiff::Timestamp;

use super::listen::Peer;
use super::session::cookie;
use super::{Api, Problem};
use crate::access::{Caller, Grant, Means};

pub const HEADER_BYTES_MAX: usize = 16 * 1024;
const URI_BYTES_MAX: usize = 4096;
const PATH_WORD_BYTES_MAX: usize = 128;
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Where a request comes from, when those that only pass it on are left out.
#[derive(Clone, Debug)]
pub struct Origin {
    pub address: IpAddr,
    /// As whoever asks sees it.
    pub is_https: bool,
}

/// A proxy that is trusted says for whom it asks; the last of its words is the one that it put there itself.
pub fn origin(api: &Api, peer: &Peer, headers: &HeaderMap) -> Origin {
    let direct = Origin { address: peer.address, is_https: peer.is_tls };
    if !api.config.get().web.trusted_proxies.contains(&peer.address) {
        return direct;
    }
    let text = |name: &str| headers.get_all(name).iter().next_back().and_then(|v| v.to_str().ok());
    let address = text(FORWARDED_FOR).and_then(|all| all.rsplit(',').next()?.trim().parse().ok());
    let is_https = text(FORWARDED_PROTO).map_or(peer.is_tls, |scheme| scheme.trim().eq_ignore_ascii_case("https"));
    Origin { address: address.unwrap_or(peer.address), is_https }
}

/// # Errors
/// 414 and 431.
pub fn fits(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    if uri.path_and_query().map_or(0, |p| p.as_str().len()) > URI_BYTES_MAX {
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "E-REQUEST-SIZE", "the address is too long")
            .hint(format!("it may have {URI_BYTES_MAX} bytes")));
    }
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > HEADER_BYTES_MAX {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Problem::new(status, "E-REQUEST-SIZE", "the head of the request is too large")
            .hint(format!("it may have {HEADER_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// What is put into a path is a name or an id: no separators, no dots that lead elsewhere, nothing else that files or queries
/// could take for more.
///
/// # Errors
/// 404: nothing has such a name.
pub fn is_plain(path: &[(String, String)]) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain = |value: &str| {
        (1..=PATH_WORD_BYTES_MAX).contains(&value.len()) && !value.starts_with('.') && value.chars().all(allowed)
    };
    if path.iter().all(|(_, value)| plain(value)) { Ok(()) } else { Err(Problem::not_found()) }
}

/// A page of somebody else's that a browser shows can send requests here, by a name that it points to us; with `Host` and `Origin`
/// it says so. An address is no name, and cannot be pointed elsewhere.
///
/// # Errors
/// 421 and 403.
pub fn addressed_to_us(api: &Api, peer: &Peer, from: &Origin, headers: &HeaderMap) -> Result<(), Problem> {
    let config = api.config.get();
    let port = peer.local.port();
    let local = match peer.local.ip().to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let fixed = ["localhost", "127.0.0.1", "[::1]", local.as_str()];
    let is_ours = |host: &str| {
        let own = fixed.iter().any(|name| host == *name || host == format!("{name}:{port}"));
        // A proxy passes on the name that it was asked by, whatever its own port.
        let name = host.rsplit_once(':').filter(|(_, p)| p.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
        own || config.web.names.iter().any(|n| n.eq_ignore_ascii_case(name))
    };
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // What another server on this machine shows has our address, without a port where its own is that of the scheme.
    let is_of_host = |origin: &str| !fixed.contains(&origin) || text(header::HOST) == Some(origin);
    if headers.get_all(header::HOST).iter().count() != 1 || !text(header::HOST).is_some_and(is_ours) {
        let status = StatusCode::MISDIRECTED_REQUEST;
        return Err(Problem::new(status, "E-HOST", "the request is for another host")
            .hint("names in [server] has the names that it is asked by"));
    }
    let scheme = if from.is_https { "https://" } else { "http://" };
    match text(header::ORIGIN) {
        Some(origin) if !origin.strip_prefix(scheme).is_some_and(|host| is_ours(host) && is_of_host(host)) => {
            Err(of_another_page())
        }
        _ => Ok(()),
    }
}

fn of_another_page() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "E-ORIGIN", "the request comes from a page of somebody else")
}

/// What a browser sends by itself, whoever's page asks it to, is no proof that somebody wants what is asked for.
///
/// # Errors
/// 403.
pub fn wanted(caller: &Caller, by_cookie: bool, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let sent_by_itself = by_cookie || caller.means == Means::Certificate;
    if !sent_by_itself || method == Method::GET {
        return Ok(());
    }
    // An Origin that is there was found to be ours.
    let site = headers.get("sec-fetch-site").map(|v| v.to_str().unwrap_or_default());
    match (site, headers.contains_key(header::ORIGIN)) {
        (Some("same-origin"), _) | (None, true) => Ok(()),
        // Not from a browser: those send a cookie with one of both.
        (None, false) if !by_cookie => Ok(()),
        (None, false) => Err(of_another_page().hint("a request with the cookie needs Origin or Sec-Fetch-Site")),
        (Some(_), _) => Err(of_another_page()),
    }
}

/// Who asks, and whether a cookie says so. Of an `Authorization` that is wrong nothing else makes up.
///
/// # Errors
/// 401 and 429.
pub fn caller(
    api: &Api,
    peer: &Peer,
    from: &Origin,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<(Caller, bool), Problem> {
    let (found, by_cookie) = match (headers.get(header::AUTHORIZATION), cookie(headers), &peer.subject) {
        (Some(given), ..) => {
            let token = given.to_str().ok().and_then(|g| g.split_once(' '));
            let token =
                token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
            let look = |token: &str| Ok(api.state.caller(token, now)?);
            (guessed(api, from, token, look)?, false)
        }
        (None, Some(session), _) => (guessed(api, from, Some(session), |session| signed_in(api, session, now))?, true),
        (None, None, Some(subject)) => (of_certificate(api, subject), false),
        (None, None, None) => (None, false),
    };
    let caller = found.ok_or_else(nobody)?;
    api.limits.of_caller(&caller.identity()).map_err(Problem::too_many)?;
    Ok((caller, by_cookie))
}

/// A user, a token, or somebody whom the provider signed in: with the rights that they have now.
fn signed_in(api: &Api, session: &str, now: Timestamp) -> Result<Option<Caller>, Problem> {
    if let Some(caller) = api.state.session_caller(session, now)? {
        return Ok(Some(caller));
    }
    let config = api.config.get();
    let Some(oidc) = &config.web.oidc else { return Ok(None) };
    Ok(api.state.person(session, now)?.and_then(|person| oidc.caller(person)))
}

fn nobody() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "E-TOKEN", "a valid token, session or certificate is needed")
        .hint("send 'Authorization: Bearer TOKEN'; 'pgark token create' makes one")
}

/// Wrong ones are counted, so that nobody tries many. Right ones are looked up first and pay nothing: whoever guesses from the
/// same address, as every process of this machine does, locks nobody out. What is looked up has 256 random bits; a password,
/// which has fewer, pays before it is compared (`signin`).
///
/// # Errors
/// 429, and those of `look`.
pub fn guessed<T>(
    api: &Api,
    from: &Origin,
    given: Option<&str>,
    look: impl Fn(&str) -> Result<Option<T>, Problem>,
) -> Result<Option<T>, Problem> {
    let found = given.map(look).transpose()?.flatten();
    if found.is_none() {
        api.limits.may_fail(from.address).map_err(Problem::too_many)?;
    }
    Ok(found)
}

fn of_certificate(api: &Api, subject: &str) -> Option<Caller> {
    let config = api.config.get();
    let rule = config.web.certificates.iter().find(|rule| rule.subject == subject);
    if rule.is_none() {
        tracing::info!(target: "pgark", subject, "a certificate that has no role here");
    }
    let rule = rule?;
    Some(Caller {
        means: Means::Certificate,
        id: subject.to_owned(),
        name: subject.to_owned(),
        grants: vec![Grant { role: rule.role, cluster: rule.cluster.clone() }],
    })
}
