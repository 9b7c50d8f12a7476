//! Connection strings: of libpq (`host=a port=1`), of .NET (`Host=a;Port=1`), and addresses (`postgresql://a:1/d`, also with
//! `jdbc:` before it). Only host, port and database are replaced; what else they hold stays, byte for byte.

use pgark_engine::error::{EngineError, Result};

/// Where the database is now. What is None stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub database: Option<String>,
}

/// The connection string with another target.
pub fn redirected(old: &str, to: &Target) -> Result<String> {
    let new = if let Some((scheme, rest)) = old.split_once("://") {
        url(scheme, rest, to)
    } else if let Some(database) = old.strip_prefix("jdbc:postgresql:") {
        // The short form: on this machine.
        url("jdbc:postgresql", &format!("/{}", database.trim_start_matches('/')), to)
    } else if old.contains(';') {
        pairs(old, to, ';', &["host", "server", "data source"], &["database", "initial catalog", "db"])
    } else {
        pairs(old, to, ' ', &["host", "hostaddr"], &["dbname"])
    };
    new.map_err(|why| {
        EngineError::refused(
            "E-REPOINT-CONNECTION",
            // It may hold a password.
            format!("the connection string in the file cannot be changed: {why}"),
            "give the whole new value as value = in [clusters.NAME.recover.repoint]",
        )
    })
}

fn url(scheme: &str, rest: &str, to: &Target) -> Result<String, &'static str> {
    if !matches!(scheme, "postgres" | "postgresql" | "jdbc:postgresql") && !scheme.starts_with("postgresql+") {
        return Err("its scheme is not one of PostgreSQL");
    }
    let (place, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let (user, host_port) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
    if host_port.contains(',') {
        return Err("it names several hosts");
    }
    let named_in_query =
        |name: &str| query.trim_start_matches('?').split('&').any(|p| p.split('=').next() == Some(name));
    if ["host", "port", "dbname", "hostaddr"].iter().any(|n| named_in_query(n)) {
        return Err("it has its host behind the question mark");
    }
    let port_at = match host_port.rfind(']') {
        Some(bracket) => host_port.get(bracket..).and_then(|t| t.find(':')).map(|at| bracket + at),
        None => host_port.rfind(':'),
    };
    let (host, port) = host_port.split_at(port_at.unwrap_or(host_port.len()));
    let host = to.host.as_deref().map_or(Ok(host.to_owned()), url_host)?;
    let port = to.port.map_or(port.to_owned(), |p| format!(":{p}"));
    let path = match to.database.as_deref() {
        Some(name) => format!("/{}", percent_encoded(name)),
        None => path.to_owned(),
    };
    Ok(format!("{scheme}://{user}{host}{port}{path}{query}"))
}

fn url_host(host: &str) -> Result<String, &'static str> {
    if host.starts_with('/') {
        return Ok(percent_encoded(host));
    }
    let v6 = host.contains(':') && host.bytes().all(|b| b.is_ascii_hexdigit() || b":.%".contains(&b));
    let good = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    match (v6, good) {
        (true, _) => Ok(format!("[{host}]")),
        (_, true) => Ok(host.to_owned()),
        _ => Err("the new host is no name and no address"),
    }
}

fn percent_encoded(text: &str) -> String {
    let encoded = |b: u8| match b {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    text.bytes().map(encoded).collect()
}

/// `name=value` one behind the other. A value in quotes may hold the separator.
fn pairs(old: &str, to: &Target, separator: char, hosts: &[&str], databases: &[&str]) -> Result<String, &'static str> {
    let port = to.port.map(|p| p.to_string());
    let wanted = [(hosts, to.host.as_deref()), (&["port"], port.as_deref()), (databases, to.database.as_deref())];
    let mut parts: Vec<String> = split(old, separator)?.into_iter().map(str::to_owned).collect();
    if parts.iter().any(|part| !part.trim().is_empty() && !part.contains('=')) {
        return Err("it is neither an address nor names with their values");
    }
    for (names, value) in wanted {
        let Some(value) = value else { continue };
        if value.contains([separator, '\'', '"', '\\', '=', ' ']) || value.is_empty() {
            return Err("the new host, port or database has characters that would need quotes");
        }
        let mut set = 0;
        for part in &mut parts {
            let Some((name, old_value)) = part.split_once('=') else { continue };
            if !names.contains(&name.trim().to_ascii_lowercase().as_str()) {
                continue;
            }
            if old_value.contains(',') {
                return Err("it names several hosts");
            }
            *part = format!("{name}={value}");
            set += 1;
        }
        match set {
            1 => {}
            // Behind the last one that says something.
            0 => {
                let name = names.first().copied().unwrap_or_default();
                let name = if separator == ';' { capital(name) } else { name.to_owned() };
                let end = parts.iter().rposition(|p| !p.trim().is_empty()).map_or(0, |last| last + 1);
                parts.insert(end, format!("{name}={value}"));
            }
            _ => return Err("it names a host, a port or a database twice"),
        }
    }
    Ok(parts.join(&separator.to_string()))
}

fn capital(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|first| first.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

fn split(text: &str, separator: char) -> Result<Vec<&str>, &'static str> {
    let (mut parts, mut from, mut quote) = (vec![], 0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (_, '\\') => return Err("it has a backslash"),
            (None, c) if c == separator => {
                parts.push(text.get(from..at).unwrap_or_default());
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    if quote.is_some() {
        return Err("its quotes are not closed");
    }
    parts.push(text.get(from..).unwrap_or_default());
    Ok(parts)
}
