//! The PostgreSQL programs that dump and restore: which are there, which fit the server, and which are known to be unsafe.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::child::output_of;
use crate::error::{EngineError, Result};

/// Where packages put them. `*` stands for any directory name that begins and ends so.
const WELL_KNOWN: [&str; 6] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/usr/local/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
];
/// The first minor of each major without the holes that a dump can use: CVE-2024-7348 (who may create objects runs code as the
/// role that dumps), CVE-2025-8714 and CVE-2025-8715 (what a dump holds runs code where it is restored). Source: PostgreSQL's
/// release notes of 2024-08-08 and 2025-08-14, <https://www.postgresql.org/support/security/>. Majors after these never had them.
const FIRST_SAFE: [(u32, u32); 5] = [(13, 22), (14, 19), (15, 14), (16, 10), (17, 6)];
const VERSION_WITHIN: Duration = Duration::from_secs(20);

/// As `pg_dump --version` says it: 15.18. A version under development has no minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ToolVersion {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for ToolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl ToolVersion {
    /// Of the last words of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn parse(text: &str) -> Option<Self> {
        let number = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
        let digits = |s: &str| s.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        Some(ToolVersion { major: digits(major)?, minor: digits(minor).unwrap_or(0) })
    }

    /// The first safe minor of its major, where this one is older.
    fn is_unsafe_before(self) -> Option<ToolVersion> {
        let (_, minor) = FIRST_SAFE.iter().find(|(major, _)| *major == self.major)?;
        (self.minor < *minor).then_some(ToolVersion { major: self.major, minor: *minor })
    }
}

/// Whether programs with known holes are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldClient {
    Refuse,
    /// Somebody takes responsibility; said as a warning.
    Accept,
}

#[derive(Clone, Debug)]
pub struct ToolOptions {
    /// Looked at before all others, and alone when it is named.
    pub dir: Option<PathBuf>,
    /// The directories of `PATH`.
    pub path: Vec<PathBuf>,
    pub old: OldClient,
}

#[derive(Clone, Debug)]
pub struct Tools {
    pub version: ToolVersion,
    pub dump: PathBuf,
    pub restore: PathBuf,
}

/// The first whose `pg_restore` begins with a setting that older servers do not know (`transaction_timeout`, in
/// `_doSetFixedOutputState` of pg_backup_archiver.c), and whose dumps no older `pg_restore` reads.
const FIRST_FOR_ITSELF: u32 = 17;

impl Tools {
    /// Whether what they dump and load can go into a server of this major.
    pub fn load_into(&self, server: u32) -> bool {
        dump_fits(self.version.major, server)
    }

    /// # Errors
    /// `E-CLIENT-NEW`: `pg_restore` would fail with its first statement.
    pub fn check_load_into(&self, server: u32) -> Result<()> {
        if self.load_into(server) {
            return Ok(());
        }
        Err(EngineError::refused(
            "E-CLIENT-NEW",
            format!(
                "{} is {}, which cannot load into PostgreSQL {server}: it sets transaction_timeout, which came with \
                 {FIRST_FOR_ITSELF}",
                self.restore.display(),
                self.version
            ),
            format!("install the client programs of PostgreSQL {server} (postgresql-client-{server})"),
        ))
    }
}

/// Whether what this major's `pg_dump` wrote can be loaded into that server by any `pg_restore`.
pub fn dump_fits(by: u32, server: u32) -> bool {
    server >= FIRST_FOR_ITSELF || by < FIRST_FOR_ITSELF
}

/// Of a dump that no program there is loads into the server. `instead`: the newest one that fits.
pub fn no_program_for(by: u32, server: u32, instead: Option<&str>) -> EngineError {
    let hint = match instead {
        Some(id) => {
            format!("restore {id}, the newest backup whose dump fits, or into PostgreSQL {FIRST_FOR_ITSELF} or newer")
        }
        None => format!("restore it into PostgreSQL {FIRST_FOR_ITSELF} or newer"),
    };
    EngineError::refused(
        "E-CLIENT-NEW",
        format!(
            "the dump was made by pg_dump {by}: no older pg_restore reads it, and none that does loads into PostgreSQL {server} \
             (it sets transaction_timeout, which came with {FIRST_FOR_ITSELF})"
        ),
        hint,
    )
}

/// The programs of the server's own major, the newest minor; else of the nearest newer one. A program that is newer than the
/// server writes and restores settings that the server may not know, so nearer is better.
pub fn find(options: &ToolOptions, server: u32, warnings: &mut Vec<String>) -> Result<Tools> {
    let looked = candidates(options);
    let mut found: Vec<Tools> = vec![];
    let mut passed = vec![];
    for dir in &looked {
        match look(dir) {
            Ok(Some(tools)) => found.push(tools),
            Ok(None) => {}
            Err(why) => passed.push(format!("{}: {why}", dir.display())),
        }
    }
    passed.extend(
        found.iter().filter(|t| t.version.major < server).map(|t| format!("{} is {}", t.dump.display(), t.version)),
    );
    let fits = |t: &&Tools| t.version.major >= server;
    let best = found.iter().filter(fits).min_by_key(|t| (t.version.major, std::cmp::Reverse(t.version.minor)));
    let Some(best) = best else {
        let dirs: Vec<String> = looked.iter().map(|d| d.display().to_string()).collect();
        let but = if passed.is_empty() { String::new() } else { format!("; {}", passed.join("; ")) };
        return Err(EngineError::refused(
            "E-CLIENT-NONE",
            format!(
                "no pg_dump and pg_restore of PostgreSQL {server} or newer: looked in {}{but}",
                if dirs.is_empty() { "no directory".to_owned() } else { dirs.join(", ") }
            ),
            format!(
                "install the client programs of PostgreSQL {server} (postgresql-client-{server}), or name their \
                 directory with --pg-bin or logical.pg_bin"
            ),
        ));
    };
    if let Some(safe) = best.version.is_unsafe_before() {
        let what = format!(
            "{} is version {}, in which a dump can run code (CVE-2024-7348, CVE-2025-8714, CVE-2025-8715)",
            best.dump.display(),
            best.version
        );
        match options.old {
            OldClient::Accept => warnings.push(format!("{what}; update it to {safe}")),
            OldClient::Refuse => {
                let hint = format!(
                    "update the client programs to {safe} or newer; logical.allow_old_client = true accepts them"
                );
                return Err(EngineError::refused("E-CLIENT-UNSAFE", what, hint));
            }
        }
    }
    Ok(best.clone())
}

fn candidates(options: &ToolOptions) -> Vec<PathBuf> {
    if let Some(dir) = &options.dir {
        return vec![dir.clone()];
    }
    let mut all: Vec<PathBuf> = options.path.iter().filter(|d| d.is_absolute()).cloned().collect();
    all.extend(WELL_KNOWN.iter().flat_map(|pattern| expand(pattern)));
    let mut seen = std::collections::HashSet::new();
    all.retain(|dir| dir.is_dir() && seen.insert(dir.clone()));
    all
}

/// The directories that a pattern with one `*` in one component stands for.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let rest = after.trim_start_matches('/');
    let Ok(entries) = std::fs::read_dir(parent) else { return vec![] };
    let named = |name: &OsStr| name.to_str().is_some_and(|n| n.starts_with(prefix));
    let mut dirs: Vec<PathBuf> =
        entries.flatten().filter(|e| named(&e.file_name())).map(|e| e.path().join(rest)).collect();
    dirs.sort();
    dirs
}

/// None where there is nothing of the kind.
fn look(dir: &Path) -> std::result::Result<Option<Tools>, String> {
    let (dump, restore) = (dir.join("pg_dump"), dir.join("pg_restore"));
    if !dump.is_file() || !restore.is_file() {
        return Ok(None);
    }
    // Debian's wrapper chooses a version by rules of its own.
    let real = dump.canonicalize().map_err(|e| e.to_string())?;
    if real.file_name() == Some(OsStr::new("pg_wrapper")) {
        return Ok(None);
    }
    let version = |program: &Path| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null());
        let text =
            output_of(command, VERSION_WITHIN).map_err(|e| format!("{} does not run: {e}", program.display()))?;
        ToolVersion::parse(&text).ok_or_else(|| format!("{} names no version", program.display()))
    };
    let (version, other) = (version(&dump)?, version(&restore)?);
    if version != other {
        return Err(format!("pg_dump is {version} and pg_restore is {other}"));
    }
    Ok(Some(Tools { version, dump, restore }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_read_from_what_the_programs_say() {
        let of = |text| ToolVersion::parse(text).map(|v| (v.major, v.minor));
        assert_eq!(of("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(of("pg_restore (PostgreSQL) 18beta1\n"), Some((18, 0)));
        assert_eq!(of("pg_dump (EDB) 15.18"), None);
    }

    fn fake(version: &str) -> tempdir::Dir {
        let dir = tempdir::Dir::new();
        for program in ["pg_dump", "pg_restore"] {
            let path = dir.0.join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        dir
    }

    mod tempdir {
        pub struct Dir(pub std::path::PathBuf);
        impl Dir {
            pub fn new() -> Self {
                static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
                let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let dir = std::env::temp_dir().join(format!("pgark-tools-{}-{n}", std::process::id()));
                std::fs::create_dir(&dir).unwrap();
                Dir(dir)
            }
        }
        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    fn options(dir: &Path, old: OldClient) -> ToolOptions {
        ToolOptions { dir: Some(dir.to_owned()), path: vec![], old }
    }

    #[test]
    fn programs_older_than_the_server_or_with_known_holes_are_refused() {
        let dir = fake("15.18");
        let of = |dir: &tempdir::Dir, server| find(&options(&dir.0, OldClient::Refuse), server, &mut vec![]);
        assert_eq!(of(&dir, 15).unwrap().version, ToolVersion { major: 15, minor: 18 });
        assert!(of(&dir, 14).is_ok());
        let error = of(&dir, 16).unwrap_err();
        assert!(error.code() == "E-CLIENT-NONE" && error.to_string().contains("is 15.18"), "{error}");
        let old = fake("15.13");
        let error = of(&old, 15).unwrap_err();
        assert!(error.code() == "E-CLIENT-UNSAFE" && error.hint().unwrap().contains("15.14"), "{error}");
        let mut warnings = vec![];
        assert!(find(&options(&old.0, OldClient::Accept), 15, &mut warnings).is_ok() && warnings.len() == 1);
        assert!(of(&fake("18.0"), 18).is_ok());
        let nowhere = find(&options(Path::new("/nonexistent"), OldClient::Refuse), 15, &mut vec![]).unwrap_err();
        assert!(nowhere.to_string().contains("/nonexistent"), "{nowhere}");
    }

    #[test]
    fn programs_from_17_on_load_into_17_and_newer_alone() {
        let tools = |major| Tools {
            version: ToolVersion { major, minor: 11 },
            dump: "/x/pg_dump".into(),
            restore: "/x/pg_restore".into(),
        };
        for (client, server, fits) in [(15, 13, true), (16, 16, true), (17, 16, false), (18, 13, false), (18, 17, true)]
        {
            assert_eq!(tools(client).check_load_into(server).is_ok(), fits, "{client} into {server}");
        }
        let error = tools(17).check_load_into(16).unwrap_err();
        assert!(error.code() == "E-CLIENT-NEW" && error.hint().unwrap().contains("postgresql-client-16"), "{error}");
        assert!(!dump_fits(18, 15) && dump_fits(18, 17) && dump_fits(16, 13));
    }

    #[test]
    fn the_nearest_version_is_taken_and_of_it_the_newest_minor() {
        let dirs = [fake("17.6"), fake("16.10"), fake("16.11"), fake("15.18")];
        // Packages of this machine are looked at as well, so the server is one that none of them is for.
        let path = dirs.iter().map(|d| d.0.clone()).collect();
        let options = ToolOptions { dir: None, path, old: OldClient::Refuse };
        let tools = find(&options, 16, &mut vec![]).unwrap();
        assert_eq!(tools.version, ToolVersion { major: 16, minor: 11 });
    }
}
