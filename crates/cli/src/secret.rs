//! Secrets and where they come from.
//!
//! Invariant: a [`Secret`] never appears in `Debug`, `Display` or serialized output, and its memory is wiped when it is
//! dropped. Nothing here accepts a secret from a command line.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::program::{self, ProgramError};

/// The largest secret, in bytes: a key file with its certificate chain fits.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

/// How long a `*_command` may take.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// Variables that hold secrets in clear text; no child process may inherit them unless it is meant to.
pub const SECRET_VARIABLES: &[&str] = &[
    "BACKUP_ENCRYPTION_KEY",
    "DB_PASSWORD",
    "PGARK_PASSPHRASE",
    "PGARK_NEW_PASSPHRASE",
    "PGPASSWORD",
    "PGSSLPASSWORD",
];

const REDACTED: &str = "(not shown)";

/// A value that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for the one place that uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, as libpq wants it. `None` when it is not UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(|text| Secret::new(text.into_bytes()))
    }
}

/// Where a secret comes from. Nothing is read before [`SecretSource::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    None,
    File(PathBuf),
    /// Program and arguments; never a shell.
    Command(Vec<String>),
    /// Taken from this variable when the settings were loaded.
    Environment {
        variable: String,
        value: Secret,
    },
    /// In clear text in the configuration file.
    Inline(Secret),
}

impl SecretSource {
    /// The secret, or `None` when no source is configured.
    ///
    /// # Errors
    /// `E-SECRET-…` when the source cannot be used; the message never contains the secret.
    pub fn read(&self) -> Result<Option<Secret>, Failure> {
        let secret = match self {
            SecretSource::None => return Ok(None),
            SecretSource::File(path) => read_file(path)?,
            SecretSource::Command(argv) => run_command(argv, COMMAND_DEADLINE)?,
            SecretSource::Environment { value, .. } | SecretSource::Inline(value) => value.clone(),
        };
        if secret.expose().is_empty() {
            return Err(Failure::usage("E-SECRET-EMPTY", format!("the secret from {self} is empty"))
                .hint("put the secret there, on the first line, or name another place"));
        }
        Ok(Some(secret))
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::None => f.write_str("nowhere"),
            SecretSource::File(path) => write!(f, "file {}", path.display()),
            SecretSource::Command(argv) => write!(f, "command {}", argv.first().map_or("", String::as_str)),
            SecretSource::Environment { variable, .. } => write!(f, "variable {variable}"),
            SecretSource::Inline(_) => f.write_str("the configuration file"),
        }
    }
}

/// The flags that exist only to be refused.
pub const REFUSED_FLAGS: &[&str] = &["--passphrase", "--password"];

/// A secret in the arguments of a process is public.
pub fn secret_on_command_line() -> Failure {
    let message = "a passphrase on a command line can be read by every user of this machine";
    let hint = "use --passphrase-file FILE, PGARK_PASSPHRASE_FILE or PGARK_PASSPHRASE_COMMAND, \
                and change the passphrase if this one was real";
    Failure::usage("E-SECRET-ARGV", message).hint(hint)
}

fn read_file(path: &Path) -> Result<Secret, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::usage("E-SECRET-FILE", format!("secret file {} cannot be read: {error}", path.display()))
            .hint("check the name, and that the user who runs this may read it")
    };
    let file = File::open(path).map_err(unreadable)?;
    // The opened file is asked, not the path, so that nobody can exchange it in between.
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_dir() {
        return Err(Failure::usage("E-SECRET-FILE", format!("secret file {} is a directory", path.display()))
            .hint("name the file in it"));
    }
    if mode & 0o077 != 0 {
        let message = format!("secret file {} has mode {mode:04o}: others can reach it", path.display());
        return Err(Failure::refused("E-SECRET-MODE", message).hint(format!("chmod 0600 '{}'", path.display())));
    }
    let bytes = program::read_bounded(file, SECRET_BYTES_MAX).map_err(unreadable)?;
    let bytes = bytes.ok_or_else(|| too_long(&format!("secret file {}", path.display())))?;
    Ok(without_newline(bytes))
}

fn too_long(source: &str) -> Failure {
    Failure::usage("E-SECRET-SIZE", format!("{source} gave more than {SECRET_BYTES_MAX} bytes"))
}

/// Takes off exactly one line end, the one an editor adds.
fn without_newline(mut bytes: Zeroizing<Vec<u8>>) -> Secret {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Secret(bytes)
}

fn run_command(argv: &[String], deadline: Duration) -> Result<Secret, Failure> {
    let name = argv.first().map_or("", String::as_str);
    match program::run(argv, &[], SECRET_BYTES_MAX, deadline) {
        Ok(bytes) => Ok(without_newline(bytes)),
        Err(ProgramError::TooLong) => Err(too_long(&format!("secret command '{name}'"))),
        Err(ProgramError::Empty) => Err(Failure::usage("E-SECRET-COMMAND", "the secret command is empty")),
        Err(e) => Err(Failure::failed("E-SECRET-COMMAND", format!("secret command '{name}' {e}"))),
    }
}

/// Splits a command written as one string, with the quotes of a shell but no shell: what only a shell could do is
/// refused, because the program would get it as an argument.
pub fn split_command(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => quoted(&mut chars, '\'', word.get_or_insert_default())?,
            '"' => quoted(&mut chars, '"', word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("it ends with a backslash")?),
            '|' | '&' | ';' | '<' | '>' | '$' | '`' | '(' | ')' | '*' => {
                return Err(format!(
                    "'{c}' needs a shell, and none is used; write [\"sh\", \"-c\", \"…\"] if you mean it"
                ));
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.is_empty() { Err("it is empty".into()) } else { Ok(words) }
}

fn quoted(chars: &mut std::str::Chars<'_>, quote: char, word: &mut String) -> Result<(), String> {
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next() {
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some(c) => word.extend(['\\', c]),
                None => break,
            },
            '$' | '`' if quote == '"' => {
                return Err(format!("'{c}' needs a shell, and none is used; put it in single quotes"));
            }
            c => word.push(c),
        }
    }
    Err(format!("a {quote} is not closed"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::settings::testing::TempDir;

    fn file(dir: &TempDir, bytes: &[u8], mode: u32) -> SecretSource {
        let path = dir.path().join(format!("secret-{mode:o}"));
        std::fs::write(&path, bytes).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode set");
        SecretSource::File(path)
    }

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(String::from).to_vec()
    }

    #[test]
    fn a_secret_file_loses_exactly_one_line_end() {
        let dir = TempDir::new();
        for (content, expected) in
            [(&b"s\n\n"[..], &b"s\n"[..]), (b"s\r\n", b"s"), (b" s ", b" s "), (b"s\n", b"s"), (b"s\r", b"s\r")]
        {
            let secret = file(&dir, content, 0o600).read().expect("readable").expect("present");
            assert_eq!(secret.expose(), expected);
        }
    }

    #[test]
    fn a_secret_file_others_can_reach_is_refused_with_a_hint() {
        let dir = TempDir::new();
        for mode in [0o640, 0o604, 0o644, 0o620, 0o666, 0o601] {
            let failure = file(&dir, b"hunter2", mode).read().expect_err("refused");
            assert_eq!((&*failure.code, failure.exit.code()), ("E-SECRET-MODE", 4), "{mode:o}");
            assert!(failure.to_text().contains("HINT: chmod 0600"), "{}", failure.to_text());
            assert!(!failure.to_text().contains("hunter2"));
        }
        for mode in [0o600, 0o400] {
            assert!(file(&dir, b"hunter2", mode).read().is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn missing_empty_and_oversized_secrets_are_errors() {
        let dir = TempDir::new();
        let missing = SecretSource::File(dir.path().join("absent")).read().expect_err("missing");
        assert_eq!(missing.code, "E-SECRET-FILE");
        assert_eq!(file(&dir, b"\n", 0o600).read().expect_err("empty").code, "E-SECRET-EMPTY");
        let big = vec![b'x'; SECRET_BYTES_MAX + 1];
        assert_eq!(file(&dir, &big, 0o400).read().expect_err("too long").code, "E-SECRET-SIZE");
    }

    #[test]
    fn no_rendering_shows_the_secret() {
        let secret = Secret::new(b"hunter2".to_vec());
        let source = SecretSource::Environment { variable: "PGARK_PASSPHRASE".into(), value: secret.clone() };
        let json = serde_json::to_string(&secret).expect("serializes");
        for shown in [format!("{secret:?} {secret} {source:?} {source}"), json] {
            assert!(!shown.contains("hunter2") && !shown.contains("104"), "{shown}");
        }
    }

    #[test]
    fn a_command_gives_its_output() {
        let secret = run_command(&sh("printf 's3cret\\n'"), COMMAND_DEADLINE).expect("runs");
        assert_eq!(secret.expose(), b"s3cret");
    }

    #[test]
    fn a_command_that_fails_floods_or_cannot_start_is_an_error_without_its_output() {
        let failing = run_command(&sh("echo hunter2; exit 3"), COMMAND_DEADLINE).expect_err("exit 3");
        assert!(failing.message.contains("exit status: 3") && !failing.to_text().contains("hunter2"), "{failing}");
        let flood = run_command(&sh("head -c 70000 /dev/zero"), COMMAND_DEADLINE).expect_err("too long");
        assert_eq!(flood.code, "E-SECRET-SIZE", "{flood}");
        let absent = run_command(&["/nonexistent/program".into()], COMMAND_DEADLINE).expect_err("absent");
        assert!(absent.message.contains("cannot be started"), "{absent}");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_everything_it_started() {
        let started = Instant::now();
        // The child of the shell keeps the pipe open after the shell itself is gone.
        let failure = run_command(&sh("sleep 60 & wait"), Duration::from_millis(200)).expect_err("deadline");
        assert!(failure.message.contains("took longer"), "{failure}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_command_string_is_split_without_a_shell() {
        let words = split_command(r#"pass show 'my db/pass phrase' "a \"b\"" c\ d ''"#).expect("splits");
        assert_eq!(words, ["pass", "show", "my db/pass phrase", "a \"b\"", "c d", ""]);
        for wrong in ["pass x | head -1", "echo $HOME", "echo \"$HOME\"", "echo 'a", "  ", "a\\", "a > b"] {
            assert!(split_command(wrong).is_err(), "{wrong}");
        }
        assert_eq!(split_command("echo '$HOME'").expect("quoted"), ["echo", "$HOME"]);
    }
}
