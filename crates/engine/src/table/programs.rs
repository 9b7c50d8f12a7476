//! PostgreSQL's own programs, run so that no name and no setting of the environment becomes something else.
//!
//! Invariants: no shell; a connection is one `--dbname=` with every value quoted, so that libpq expands no name; the environment holds
//! nothing but a path and a language; a password lies in a file that its owner alone can read, and is removed with the scratch directory.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cluster::Connection;
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

const POLL: Duration = Duration::from_millis(50);
/// What is kept of what a program complains about, and of a list that it prints.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// One value of a connection string (libpq, "Connection Strings"): quoted, with backslashes before quotes and backslashes.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

pub fn connection_string<'a>(keywords: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let parts: Vec<String> = keywords.into_iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
    parts.join(" ")
}

/// Keywords that a libpq of 13 knows; values of ours are theirs.
const OLD_KEYWORDS: [&str; 25] = [
    "host",
    "port",
    "dbname",
    "user",
    "connect_timeout",
    "options",
    "application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslmode",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "requirepeer",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssencmode",
    "channel_binding",
];
/// Later ones: the major version that knows them, and what goes without saying.
const NEW_KEYWORDS: [(&str, u32, &str); 7] = [
    ("sslcrldir", 14, ""),
    ("sslsni", 14, "1"),
    ("require_auth", 16, ""),
    ("sslcertmode", 16, "allow"),
    ("load_balance_hosts", 16, "disable"),
    ("gssdelegation", 16, "0"),
    ("sslnegotiation", 17, "postgres"),
];

/// The same server and database that a session of ours has, for a program of this major version. A password goes into a file in
/// `dir`.
pub fn connection_of(conn: &Connection, major: u32, dir: &Path) -> Result<String> {
    let mut keywords = vec![];
    for (name, value) in conn.effective_options() {
        let newer = NEW_KEYWORDS.iter().find(|(new, ..)| *new == name);
        match newer {
            None if OLD_KEYWORDS.contains(&name.as_str()) => keywords.push((name, value)),
            Some((_, since, _)) if major >= *since => keywords.push((name, value)),
            Some((_, since, default)) if value != *default => {
                return Err(EngineError::refused(
                    "E-PG-CLIENTS",
                    format!("the connection needs {name}={value}, which programs know from PostgreSQL {since} on"),
                    "reach the server without that setting for this command",
                ));
            }
            // Resolved already (service, password file), of no use to a program, or what it does anyway.
            _ => {}
        }
    }
    if let Some(password) = conn.used_password() {
        let path = dir.join("passfile");
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        let failed = |e: std::io::Error| EngineError::file("writing", &path, e);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let line = zeroize::Zeroizing::new(format!("*:*:*:*:{escaped}\n"));
        file.write_all(line.as_bytes()).map_err(failed)?;
        let text = path.to_str().ok_or_else(|| EngineError::refused("E-SCRATCH-DIR", "its name is not UTF-8", ""))?;
        keywords.push(("passfile".to_owned(), text.to_owned()));
    }
    Ok(connection_string(keywords.iter().map(|(name, value)| (name.as_str(), value.as_str()))))
}

/// A name for `pg_dump --table`: quoted, nothing in it is a pattern.
pub fn exact_pattern(schema: &str, name: &str) -> String {
    let part = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    format!("{}.{}", part(schema), part(name))
}

/// Runs it to its end in `dir`; returns what it printed. It is ended when the operation is cancelled.
pub fn run(program: &Path, arguments: &[OsString], dir: &Path, ctx: &Ctx) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(|e| EngineError::file("starting", program, e))?;
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let status = wait(&mut child, ctx);
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    let status = status?;
    if status.success() {
        return Ok(out);
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(EngineError::failed(
        "E-PG-PROGRAM",
        format!("{name} ended with {status}: {}", err.trim()),
        "nothing was left in the live database: what it loads, it loads in one transaction",
    ))
}

fn wait(child: &mut Child, ctx: &Ctx) -> Result<std::process::ExitStatus> {
    let failed = |e: std::io::Error| EngineError::failed("E-SYSTEM", format!("waiting for a program: {e}"), "");
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        if let Err(cancelled) = ctx.check_cancelled() {
            // It may have ended meanwhile.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            return Err(cancelled);
        }
        std::thread::sleep(POLL);
    }
}

/// Reads to the end and keeps the beginning.
fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut kept = vec![];
        if let Some(mut pipe) = pipe {
            // What cannot be read is missing from a message, no more.
            let _ = pipe.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut kept);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_value() {
        let text = connection_string([("dbname", "port=1 dbname='x\\"), ("host", "/tmp/a b")]);
        assert_eq!(text, r"dbname='port=1 dbname=\'x\\' host='/tmp/a b'");
        assert_eq!(exact_pattern("a.b", "it\"s *"), "\"a.b\".\"it\"\"s *\"");
    }
}
