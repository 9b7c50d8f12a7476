//! Where an SFTP store lies and how it is reached, from the parts of its URL.
//!
//! Invariant: what ends up in the arguments of ssh cannot be read by it as anything but the one value it is, and is
//! no secret.

use std::collections::BTreeMap;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(900);
const CONNECTIONS: usize = 4;
/// `MaxStartups` of OpenSSH begins to turn connections away at ten.
const CONNECTIONS_MAX: u64 = 10;

/// Key types of OpenSSH, for `host_key`.
const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

#[derive(Clone, Debug)]
pub struct SftpOptions {
    pub(super) url: String,
    pub(super) user: Option<String>,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// Absolute, without a slash at its end; `/` for the top.
    pub(super) path: String,
    pub(super) identity_file: Option<String>,
    pub(super) known_hosts: Option<String>,
    /// Type and base64, as in a line of `known_hosts`.
    pub(super) host_key: Option<String>,
    pub(super) ssh_config: Option<String>,
    /// How long the server may be silent while it owes an answer, and how long connecting may take.
    pub(super) timeout: Duration,
    /// How long one operation may take, repeated attempts included.
    pub(super) deadline: Duration,
    pub(super) connections: usize,
    /// Files are made such that the account cannot change them any more.
    pub(super) append_only: bool,
}

/// The parts of `sftp://user@host:port/path`; `url` is the whole of it, for messages and for opening it again.
#[derive(Clone, Copy, Debug)]
pub struct SftpPlace<'a> {
    pub url: &'a str,
    pub user: Option<&'a str>,
    pub host: &'a str,
    pub port: Option<u16>,
    pub path: &'a str,
}

impl SftpOptions {
    pub fn append_only(self, append_only: bool) -> Self {
        SftpOptions { append_only, ..self }
    }

    /// The URL without its options, for messages.
    pub(super) fn place(&self) -> &str {
        self.url.split('?').next().unwrap_or_default()
    }

    /// The options of the URL that are understood here.
    pub const NAMES: &'static [&'static str] =
        &["connections", "deadline", "host_key", "identity_file", "known_hosts", "ssh_config", "timeout"];

    /// Fails with what is wrong, for a person.
    pub fn new(place: SftpPlace<'_>, options: &BTreeMap<String, String>) -> Result<Self, String> {
        let host = plain_word("host", place.host)?;
        let user = place.user.map(|user| plain_word("user", user)).transpose()?;
        if !place.path.starts_with('/') {
            return Err("the path in an sftp:// URL is absolute".into());
        }
        let mut parsed = SftpOptions {
            url: place.url.to_owned(),
            user,
            host,
            port: place.port,
            path: place.path.to_owned(),
            identity_file: None,
            known_hosts: None,
            host_key: None,
            ssh_config: None,
            timeout: TIMEOUT,
            deadline: DEADLINE,
            connections: CONNECTIONS,
            append_only: false,
        };
        for (name, value) in options {
            match name.as_str() {
                "identity_file" => parsed.identity_file = Some(plain_path(name, value)?),
                "known_hosts" => parsed.known_hosts = Some(plain_path(name, value)?),
                "ssh_config" => parsed.ssh_config = Some(plain_path(name, value)?),
                "host_key" => parsed.host_key = Some(host_key(value)?),
                "timeout" => parsed.timeout = Duration::from_secs(number(name, value, 1, 3600)?),
                "deadline" => parsed.deadline = Duration::from_secs(number(name, value, 1, 86_400)?),
                "connections" => {
                    parsed.connections = usize::try_from(number(name, value, 1, CONNECTIONS_MAX)?).unwrap_or(1);
                }
                _ => return Err(format!("unknown option '{name}' in an sftp:// URL")),
            }
        }
        if parsed.host_key.is_some() && parsed.known_hosts.is_some() {
            return Err("'host_key' and 'known_hosts' exclude each other".into());
        }
        Ok(parsed)
    }
}

/// ssh hands user and host to programs of its configuration, some of them through a shell.
fn plain_word(what: &str, word: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._@+:\\$".contains(c);
    if word.is_empty() || word.starts_with('-') || !word.chars().all(allowed) || word.contains("\\$") {
        return Err(format!("the {what} in an sftp:// URL is empty or holds characters that cannot be"));
    }
    if what == "host" && word.contains(['@', '\\', '$', '+']) {
        return Err("the host in an sftp:// URL holds characters that cannot be".into());
    }
    Ok(word.to_owned())
}

/// ssh splits at spaces and expands `%`, `~` and `${}` in paths.
fn plain_path(what: &str, path: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._@+=:,/".contains(c);
    if !path.starts_with('/') || !path.chars().all(allowed) {
        return Err(format!("'{what}' in an sftp:// URL is an absolute path of letters, digits and -._@+=:,/"));
    }
    Ok(path.to_owned())
}

/// `ssh-ed25519 AAAA…`, the two separated by a space or a colon.
fn host_key(value: &str) -> Result<String, String> {
    let wrong = || {
        "'host_key' in an sftp:// URL is the server's public key: its type, ':' and its base64, such as \
         ssh-ed25519:AAAA…; not a fingerprint"
            .to_owned()
    };
    let (key_type, base64) = value.split_once([' ', ':']).ok_or_else(wrong)?;
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    if !KEY_TYPES.contains(&key_type) || !base64.starts_with("AAAA") || !base64.chars().all(is_base64) {
        return Err(wrong());
    }
    Ok(format!("{key_type} {base64}"))
}

fn number(what: &str, text: &str, min: u64, max: u64) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| format!("'{what}' in an sftp:// URL is a whole number from {min} to {max}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(user: Option<&str>, host: &str, options: &[(&str, &str)]) -> Result<SftpOptions, String> {
        let place = SftpPlace { url: "sftp://x", user, host, port: None, path: "/srv" };
        SftpOptions::new(place, &options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect())
    }

    #[test]
    fn nothing_can_be_read_by_ssh_as_something_else() {
        for host in ["-oProxyCommand=x", "", "a b", "a;b", "a$(b)", "u@h", "a`b`", "a\nb"] {
            assert!(parsed(None, host, &[]).is_err(), "{host}");
        }
        for user in ["-x", "", "a b", "a;b", "$(x)", "a'b", "a\"", "a|b", "a\\$x"] {
            assert!(parsed(Some(user), "h", &[]).is_err(), "{user}");
        }
        for path in ["relative", "~/key", "/a b", "/a%h", "/a\"", "/${HOME}", "/a\\", "none"] {
            for option in ["identity_file", "known_hosts", "ssh_config"] {
                assert!(parsed(None, "h", &[(option, path)]).is_err(), "{path}");
            }
        }
        for host in ["h", "backup.example.org", "10.0.0.1", "fe80::1", "my_host"] {
            assert!(parsed(Some("me.you@example"), host, &[("identity_file", "/etc/pgark/id_ed25519")]).is_ok());
        }
    }

    #[test]
    fn a_pinned_key_is_a_key_and_not_a_fingerprint() {
        let pinned = |key| parsed(None, "h", &[("host_key", key)]).map(|o| o.host_key.unwrap());
        assert_eq!(pinned("ssh-ed25519:AAAAC3+/x=").unwrap(), "ssh-ed25519 AAAAC3+/x=");
        assert_eq!(pinned("ssh-ed25519 AAAAC3").unwrap(), "ssh-ed25519 AAAAC3");
        for wrong in ["SHA256:abc", "ssh-ed25519", "ssh-ed25519:AAAA\nx", "other:AAAA", "ssh-ed25519:AAAA x", ""] {
            assert!(pinned(wrong).is_err(), "{wrong}");
        }
        assert!(parsed(None, "h", &[("host_key", "ssh-rsa:AAAA"), ("known_hosts", "/x")]).is_err());
    }

    #[test]
    fn numbers_have_bounds() {
        let good = parsed(None, "h", &[("timeout", "5"), ("deadline", "60"), ("connections", "2")]).unwrap();
        assert_eq!((good.timeout.as_secs(), good.deadline.as_secs(), good.connections), (5, 60, 2));
        for (name, value) in
            [("timeout", "0"), ("timeout", "5s"), ("connections", "11"), ("deadline", "-1"), ("x", "1")]
        {
            assert!(parsed(None, "h", &[(name, value)]).is_err(), "{name}={value}");
        }
    }
}
