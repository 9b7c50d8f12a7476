//! What of a directory is backed up: all of it, but for secrets, which never are, and for what the administrator's patterns
//! leave out.

use super::glob::Pattern;
use crate::error::{EngineError, Result};

/// Files that hold passwords, keys or tokens, by their names in lower case.
const SECRET_NAMES: [&str; 15] = [
    ".env",
    ".envrc",
    ".pgpass",
    "pgpass.conf",
    ".netrc",
    "_netrc",
    ".my.cnf",
    ".git-credentials",
    ".htpasswd",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
];
/// Stores of keys, by how their names end.
const SECRET_ENDS: [&str; 6] = [".p12", ".pfx", ".jks", ".keystore", ".ppk", ".kdbx"];
/// Begins with `.env.` and holds no secret: what an application brings along to show which variables there are.
const EXAMPLE: &str = ".env.example";
/// Private keys are files no larger.
pub const KEY_BYTES_MAX: u64 = 64 * 1024;

/// Whether something of this name is never backed up, be it a file or a directory.
pub fn is_secret_name(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let host_key = name.starts_with("ssh_host_") && name.ends_with("_key");
    name != EXAMPLE
        && (SECRET_NAMES.contains(&name.as_str())
            || name.starts_with(".env.")
            || name.ends_with(".env")
            || SECRET_ENDS.iter().any(|end| name.ends_with(end))
            || host_key)
}

/// Whether a line says that a private key follows: in PEM (RFC 7468), as OpenSSH writes it, or as OpenPGP does.
pub fn holds_a_private_key(content: &[u8]) -> bool {
    let is_mark = |line: &[u8]| {
        let line = line.trim_ascii_end();
        line.starts_with(b"-----BEGIN ")
            && (line.ends_with(b"PRIVATE KEY-----") || line.ends_with(b"PRIVATE KEY BLOCK-----"))
    };
    content.split(|b| *b == b'\n').any(is_mark)
}

#[derive(Clone, Debug, Default)]
pub struct Rules {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Rules {
    pub fn parse(include: &[String], exclude: &[String]) -> Result<Self> {
        Ok(Rules { include: patterns(include)?, exclude: patterns(exclude)? })
    }

    /// Whether a pattern leaves this out, and a directory with all that is in it.
    pub fn excludes(&self, root: &[u8], below: &[u8], is_directory: bool) -> bool {
        self.exclude.iter().any(|p| p.matches(root, below, is_directory))
    }

    /// Whether this is wanted; what lies in a wanted directory is wanted.
    pub fn includes(&self, root: &[u8], below: &[u8], is_directory: bool) -> bool {
        self.include.is_empty() || self.include.iter().any(|p| p.matches(root, below, is_directory))
    }
}

pub fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    let parse = |text: &String| {
        Pattern::parse(text).map_err(|why| {
            EngineError::refused(
                "E-FILES-PATTERN",
                format!("'{}' is no pattern: {why}", text.escape_debug()),
                "'*' and '?' stand for parts of a name, '**' for any number of directories",
            )
        })
    };
    texts.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        for secret in [
            ".env",
            ".ENV",
            ".env.production",
            ".env.local",
            ".env.example.bak",
            "id_rsa",
            "id_ed25519",
            ".pgpass",
            "server.p12",
            "Keys.PFX",
            "ssh_host_rsa_key",
            ".env.",
            "production.env",
        ] {
            assert!(is_secret_name(secret.as_bytes()), "{secret}");
        }
        for fine in [
            ".env.example",
            "env",
            "environment",
            "id_rsa.pub",
            "slides.key",
            "cert.pem",
            "ssh_host_rsa_key.pub",
            "x.envelope",
            ".environment",
            "\u{1F418}",
        ] {
            assert!(!is_secret_name(fine.as_bytes()), "{fine}");
        }
        assert!(is_secret_name(b".env.\xff"));
    }

    #[test]
    fn private_keys_are_known_by_what_they_begin_with() {
        let key = |name: &str| format!("Bag Attributes\n  x\n-----BEGIN {name}-----\r\nMIIB\n-----END {name}-----\n");
        for name in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"]
        {
            assert!(holds_a_private_key(key(name).as_bytes()), "{name}");
        }
        assert!(holds_a_private_key(b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n"));
        for fine in ["CERTIFICATE", "PUBLIC KEY", "CERTIFICATE REQUEST"] {
            assert!(!holds_a_private_key(key(fine).as_bytes()), "{fine}");
        }
        assert!(!holds_a_private_key(b"the line '-----BEGIN PRIVATE KEY-----' in a text"));
    }
}
