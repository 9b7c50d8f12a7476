//! What of a directory is backed up: all of it, but for secrets, which never are, and for what the administrator's patterns
//! leave out.

use super::glob::Pattern;
use crate::error::{EngineError, Result};

/// Files that hold passwords, keys or tokens, by their names in lower case; copies of them, too.
const SECRET_NAMES: [&str; 20] = [
    ".envrc",
    ".pgpass",
    "pgpass.conf",
    ".netrc",
    "_netrc",
    ".my.cnf",
    ".git-credentials",
    ".htpasswd",
    ".npmrc",
    ".pypirc",
    ".dockercfg",
    ".dockerconfigjson",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    "id_xmss",
    "identity.agekey",
];
/// Stores of keys, by how their names end.
const SECRET_ENDS: [&str; 6] = [".p12", ".pfx", ".jks", ".keystore", ".ppk", ".kdbx"];
/// Names that end so hold no secret: what an application brings along to show which variables there are.
const EXAMPLES: [&str; 4] = [".example", ".sample", ".template", ".dist"];
/// Behind a name, in a copy that an editor or a person made.
const COPIES: [&str; 9] = ["~", ".bak", ".old", ".orig", ".save", ".swp", ".backup", ".copy", "_backup"];
/// Private keys are files no larger.
pub const KEY_BYTES_MAX: u64 = 64 * 1024;

/// Whether something of this name is never backed up, be it a file or a directory.
pub fn is_secret_name(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let whole = name.as_str();
    let secret = |name: &str| {
        is_environment(name)
            || SECRET_NAMES.contains(&name)
            || SECRET_ENDS.iter().any(|end| name.ends_with(end))
            || name.starts_with("ssh_host_") && name.ends_with("_key")
    };
    is_environment(whole) || originals(whole).into_iter().any(secret)
}

/// As `is_secret_name`, where only the directory makes it a secret.
pub fn is_secret_in(directory: &[u8], name: &[u8]) -> bool {
    let lower = |text: &[u8]| String::from_utf8_lossy(text).to_ascii_lowercase();
    lower(directory) == ".docker" && originals(&lower(name)).contains(&"config.json")
}

/// The names of what this may be a copy of.
fn originals(name: &str) -> [&str; 2] {
    let hidden = name.strip_prefix(".#").or_else(|| name.strip_prefix('#')).unwrap_or(name);
    let name = hidden.trim_end_matches('#');
    // Vim: `.NAME.swp`, then `.NAME.swo` and so on; of a NAME that begins with a dot `NAME.swp`, or one dot more.
    let edited = name.rsplit_once('.').filter(|(_, end)| end.len() == 3 && end.starts_with("sw"));
    let edited = edited.map_or(name, |(edited, _)| edited);
    let bare = if edited == name { name } else { edited.strip_prefix('.').unwrap_or(edited) };
    [edited, bare].map(|mut name| {
        while let Some(shorter) = COPIES.iter().find_map(|end| name.strip_suffix(end)).filter(|n| !n.is_empty()) {
            name = shorter;
        }
        name
    })
}

/// `.env` and what is called after it: `.env.production`, `.env-prod`, `production.env`, `env.local`; not what is an example.
fn is_environment(name: &str) -> bool {
    if EXAMPLES.iter().any(|end| name.ends_with(end) || name.ends_with(&end.replace('.', "-"))) {
        return false;
    }
    let after = name.strip_prefix(".env");
    after.is_some_and(|rest| !rest.starts_with(char::is_alphabetic))
        || name.ends_with(".env")
        || matches!(name, "env.local" | "env.production" | "env.prod" | "env.staging" | "env.development")
}

/// Whether a private key is in it: in PEM (RFC 7468), as OpenSSH writes it, or as OpenPGP does. On lines of its own, also indented or
/// behind a byte order mark, or within something else, such as a string of JSON, with the key behind it.
pub fn holds_a_private_key(content: &[u8]) -> bool {
    let mark = |content: &[u8]| {
        if holds_another_key(content) {
            return true;
        }
        let begins = content.windows(BEGIN.len()).enumerate().filter(|(_, w)| *w == BEGIN);
        begins.into_iter().any(|(at, _)| {
            let (before, from) = content.split_at(at);
            begins_a_key(before, from.get(BEGIN.len()..).unwrap_or_default())
        })
    };
    match content {
        // Two bytes for each character.
        [0xff, 0xfe, rest @ ..] | [0xfe, 0xff, rest @ ..] => {
            mark(&rest.iter().copied().filter(|b| *b != 0).collect::<Vec<u8>>())
        }
        _ => mark(content),
    }
}

/// Keys of age by their prefix, of PuTTY and of SSH2 (RFC 4716 has no private ones, but this is how they are written) by their first line.
fn holds_another_key(content: &[u8]) -> bool {
    let age = content.windows(AGE.len()).enumerate().any(|(at, w)| {
        let rest = content.get(at + AGE.len()..).unwrap_or_default();
        w.eq_ignore_ascii_case(AGE) && rest.iter().take_while(|b| b.is_ascii_alphanumeric()).count() >= AGE_CHARS_MIN
    });
    age || content.split(|b| *b == b'\n').any(|line| {
        let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii();
        let putty = line.strip_prefix(PUTTY).is_some_and(|n| n.first().is_some_and(u8::is_ascii_digit));
        putty || line.starts_with(SSH2) && line.ends_with(b"PRIVATE KEY ----")
    })
}

const AGE: &[u8] = b"AGE-SECRET-KEY-";
/// What makes it a key and not a mention; there are 59.
const AGE_CHARS_MIN: usize = 40;
const PUTTY: &[u8] = b"PuTTY-User-Key-File-";
const SSH2: &[u8] = b"---- BEGIN SSH2 ";
const BEGIN: &[u8] = b"-----BEGIN ";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Of what stands between the dashes; the longest one is `ENCRYPTED PRIVATE KEY`.
const LABEL_BYTES_MAX: usize = 64;
/// So much of a key makes a mark within a text more than a mention.
const KEY_CHARS_MIN: usize = 16;

/// `rest`: what follows `-----BEGIN `.
fn begins_a_key(before: &[u8], rest: &[u8]) -> bool {
    let label = rest.get(..rest.len().min(LABEL_BYTES_MAX)).unwrap_or_default();
    let Some(length) = label.windows(5).position(|w| w == b"-----") else { return false };
    let label = label.get(..length).unwrap_or_default();
    if !(label.ends_with(b"PRIVATE KEY") || label.ends_with(b"PRIVATE KEY BLOCK")) {
        return false;
    }
    let after = rest.get(length + 5..).unwrap_or_default();
    let line = before.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    let line_ends = after.iter().find(|b| !matches!(b, b' ' | b'\t' | b'\r')).is_none_or(|b| *b == b'\n');
    line.trim_ascii().is_empty() && line_ends || is_key(after)
}

/// After a line break, be it one or the two characters `\n`.
fn is_key(after: &[u8]) -> bool {
    let mut rest = after;
    let mut broken = false;
    loop {
        rest = match rest {
            [b'\n' | b'\r', more @ ..] | [b'\\', b'n' | b'r', more @ ..] => {
                broken = true;
                more
            }
            [b' ' | b'\t' | b'\\', more @ ..] => more,
            _ => break,
        };
    }
    let headers: [&[u8]; 4] = [b"Proc-Type:", b"DEK-Info:", b"Version:", b"Comment:"];
    let is_body = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    broken && (headers.iter().any(|h| rest.starts_with(h)) || rest.iter().take_while(is_body).count() >= KEY_CHARS_MIN)
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
            "id_rsa",
            "id_ed25519",
            ".pgpass",
            "server.p12",
            "Keys.PFX",
            "ssh_host_rsa_key",
            ".env.",
            "production.env",
            ".env~",
            "#.env#",
            ".#.env",
            ".env.swp",
            "..env.swp",
            ".env-prod",
            ".env_backup",
            ".env.example.bak",
            ".env2",
            "production.env.bak",
            "env.local",
            ".pgpass~",
            ".netrc.bak",
            "id_rsa~",
            "id_rsa.bak",
            "id_ed25519.old~",
            "server.p12.bak",
            ".npmrc",
            ".pypirc",
            ".dockercfg",
            ".pgpass.swp",
            "..pgpass.swp",
            ".netrc.swo",
            ".git-credentials.swp",
            ".my.cnf.swn",
            ".htpasswd.swp",
            ".npmrc.swp",
            ".pypirc.swp",
            ".dockercfg.swp",
            ".envrc.swp",
            ".id_rsa.swp",
            ".pgpass~.swp",
        ] {
            assert!(is_secret_name(secret.as_bytes()), "{secret}");
        }
        for fine in [
            ".env.example",
            ".env.sample",
            ".env-template",
            ".env.dist",
            ".environment.bak",
            ".notes.swp",
            "env.js",
            "config.json",
            "~",
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
        assert!(is_secret_in(b".docker", b"config.json") && is_secret_in(b".Docker", b"config.json~"));
        assert!(!is_secret_in(b"docker", b"config.json") && !is_secret_in(b".docker", b"daemon.json"));
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
        assert!(!holds_a_private_key(b"it begins with -----BEGIN PRIVATE KEY-----\nand then the key follows"));
        assert!(!holds_a_private_key(b"-----BEGIN "));
        let age = format!("# created: today\nAGE-SECRET-KEY-1{}\n", "Q".repeat(58));
        for key in [
            age.as_str(),
            "PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\n",
            "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: x\n",
        ] {
            assert!(holds_a_private_key(key.as_bytes()), "{key}");
        }
        for fine in [
            "an age key begins with AGE-SECRET-KEY-1 and more",
            "see PuTTY-User-Key-File-3: in a text",
            "---- BEGIN SSH2 PUBLIC KEY ----\n",
        ] {
            assert!(!holds_a_private_key(fine.as_bytes()), "{fine}");
        }
    }

    #[test]
    fn private_keys_are_known_behind_other_things_and_within_them() {
        let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ";
        let end = "-----END PRIVATE KEY-----";
        for text in [
            format!("\u{feff}-----BEGIN PRIVATE KEY-----\r\n{body}\r\n{end}\r\n"),
            format!("key: |\n    -----BEGIN PRIVATE KEY-----\n    {body}\n    {end}\n"),
            format!("\t-----BEGIN OPENSSH PRIVATE KEY-----\n\t{body}\n"),
            format!(
                "{{\"type\": \"service_account\", \"private_key\": \"-----BEGIN PRIVATE KEY-----\\n{body}\\n{end}\\n\"}}"
            ),
            format!("{{\"key\": \"{{\\\"private_key\\\": \\\"-----BEGIN PRIVATE KEY-----\\\\n{body}\\\"}}\"}}"),
            format!("KEY=\"-----BEGIN RSA PRIVATE KEY-----\n{body}\n"),
            "x = '-----BEGIN RSA PRIVATE KEY-----\\r\\nProc-Type: 4,ENCRYPTED\\r\\n'".to_owned(),
        ] {
            assert!(holds_a_private_key(text.as_bytes()), "{text}");
            assert!(!holds_a_private_key(text.replace("PRIVATE", "PUBLIC").as_bytes()), "{text}");
        }
        let text = format!("-----BEGIN PRIVATE KEY-----\r\n{body}\r\n");
        let two: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.bytes().flat_map(|b| [b, 0])).collect();
        assert!(holds_a_private_key(&two));
    }
}
