//! Runs the pgark program the way its users do: another user, an environment, arguments, an exit code, JSON.
//!
//! Invariant: every run has a deadline, and what came out is kept whole, so that a failed expectation shows it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::TestCluster;
use crate::os::{Scratch, as_postgres, run_bounded};

const LIMIT: Duration = Duration::from_secs(240);

/// The program with its environment.
#[derive(Debug, Clone)]
pub struct Pgark {
    binary: PathBuf,
    repo: PathBuf,
    passphrase_file: PathBuf,
    env: BTreeMap<OsString, OsString>,
}

impl Pgark {
    /// A program that works on `repo` with a passphrase of its own.
    pub fn new(binary: impl AsRef<Path>, scratch: &Scratch, repo: &Path) -> Pgark {
        let binary = reachable(binary.as_ref(), scratch);
        let passphrase_file = scratch.join("passphrase");
        if !passphrase_file.exists() {
            scratch.file("passphrase", b"correct horse battery staple\n", 0o600);
        }
        let pgark =
            Pgark { binary, repo: repo.to_owned(), passphrase_file: passphrase_file.clone(), env: BTreeMap::new() };
        pgark
            .env("PGARK_REPO", repo)
            .env("PGARK_PASSPHRASE_FILE", passphrase_file)
            .env("PGARK_CLUSTER", "main")
            .env("PGARK_STATE_DIR", scratch.join("state"))
            .env("PGARK_JOBS", "2")
    }

    /// The same with the connection and data directory of `cluster`.
    pub fn on(&self, cluster: &TestCluster) -> Pgark {
        let mut pgark = self.clone();
        // 15 is found where its package puts it.
        if let (Ok(clients), true) = (cluster.server().clients(), cluster.server().major() != 15) {
            pgark = pgark.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", clients.display()));
        }
        pgark
            .env("PGDATA", cluster.data_dir())
            .env("PGHOST", cluster.socket_dir())
            .env("PGPORT", cluster.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
    }

    /// The program with a machine clock that is wrong by `offset`, as libfaketime writes it.
    pub fn with_clock(&self, scratch: &Scratch, libfaketime: &Path, offset: &str) -> Pgark {
        // Preloaded by a script: what changes the user on the way must not load it, or its semaphores would be root's.
        let line = format!("export LD_PRELOAD='{}' FAKETIME='{offset}'", libfaketime.display());
        self.after(scratch, &format!("pgark{offset}"), &line)
    }

    /// The program after a line of shell, such as `umask 000`, by a script of this name.
    pub fn after(&self, scratch: &Scratch, name: &str, line: &str) -> Pgark {
        let script = format!("#!/bin/sh\n{line}\nexec '{}' \"$@\"\n", self.binary.display());
        Pgark { binary: scratch.file(name, script.as_bytes(), 0o755), ..self.clone() }
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Pgark {
        self.env.insert(name.into(), value.as_ref().to_owned());
        self
    }

    pub fn without_env(mut self, name: &str) -> Pgark {
        self.env.remove(OsStr::new(name));
        self
    }

    pub fn repo(&self) -> &Path {
        &self.repo
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn passphrase_file(&self) -> &Path {
        &self.passphrase_file
    }

    /// An `archive_command` that needs nothing from the server's environment.
    pub fn archive_command(&self) -> String {
        let of_a_cloud = |name: &OsStr| {
            let name = name.to_string_lossy();
            name.starts_with("AWS_") || name.starts_with("GOOGLE_") || name == "PGARK_CONFIG"
        };
        let access = self.env.iter().filter(|(name, _)| of_a_cloud(name));
        let access: String = access.map(|(name, value)| format!("{}='{}' ", name.display(), value.display())).collect();
        format!(
            "{access}{} archive-push --repo \"{}\" --passphrase-file {} --cluster main \"%p\"",
            self.binary.display(),
            self.repo.display(),
            self.passphrase_file.display()
        )
    }

    /// The command without running it, for tests that trace or interrupt it. The environment must be added again to a
    /// wrapper with [`Pgark::environment`].
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = as_postgres(&self.binary);
        command.args(arguments).envs(&self.env);
        command
    }

    pub fn environment(&self) -> &BTreeMap<OsString, OsString> {
        &self.env
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        let arguments: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let shown = arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        run_outcome(&shown, self.command(&arguments))
    }

    /// Runs with `--json` and gives the document, after checking the exit code and the schema number.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let mut words: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        words.push("--json".into());
        let outcome = self.run(&words).expect_code(0);
        let document = outcome.json();
        assert_eq!(document["schema"], 1, "{outcome}");
        document
    }

    /// Takes a backup of this type (`full`, `incr`) and gives its id.
    pub fn backup(&self, kind: &str) -> String {
        let document = self.json(["backup", "--type", kind]);
        document["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
    }

    /// The entry of one backup in `info --json`.
    pub fn backup_info(&self, id: &str) -> Value {
        let info = self.json(["info"]);
        let found = info["clusters"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|cluster| cluster["backups"].as_array().into_iter().flatten())
            .find(|backup| backup["id"] == id);
        found.unwrap_or_else(|| panic!("{id} is not in {info}")).clone()
    }
}

/// Runs a prepared command to its end and keeps what it said.
pub(crate) fn run_outcome(shown: &str, command: Command) -> Outcome {
    let started = Instant::now();
    let output = run_bounded(command, b"", LIMIT).unwrap_or_else(|error| panic!("{shown}: {error}"));
    let Some(status) = output.status else {
        panic!("HANG: {shown} did not end within {LIMIT:?}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    Outcome {
        shown: shown.to_owned(),
        code: status.code(),
        signal: status.signal(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: started.elapsed(),
    }
}

/// What one run did.
#[derive(Debug, Clone)]
pub struct Outcome {
    shown: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    pub fn expect_code(self, code: i32) -> Outcome {
        assert_eq!(self.code, Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// Done, perhaps with warnings.
    pub fn succeeded(&self) -> bool {
        matches!(self.code, Some(0 | 3))
    }

    /// The one JSON document on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not one JSON document: {error}\n{self}"))
    }

    /// The program reported a failure in its own words: an exit code of the table, no panic, no signal.
    pub fn failed_cleanly(&self) -> bool {
        !self.stderr.contains("panicked at") && matches!(self.code, Some(1 | 4 | 5 | 10..=12 | 20 | 21))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "pgark {} ended with code {:?}, signal {:?} after {:?}",
            self.shown, self.code, self.signal, self.took
        )?;
        writeln!(f, "--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// The path itself when every directory above lets other users through, else a copy in the scratch directory.
fn reachable(binary: &Path, scratch: &Scratch) -> PathBuf {
    let binary = binary.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    let open =
        binary.ancestors().all(|step| fs::metadata(step).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0));
    if open {
        return binary;
    }
    let copy = scratch.join("pgark");
    if !copy.exists() {
        fs::copy(&binary, &copy).expect("copy the program");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("mode of the program");
    }
    copy
}
