//! The directory of the demonstration: what lies where in it, and how it is emptied.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pgark_engine::EngineError;
use pgark_engine::restore::settings::{quote, shell_word};
use zeroize::Zeroizing;

use crate::command::context::engine_failure;
use crate::failure::Failure;

const PASSPHRASE_BYTES: usize = 24;

pub struct Place {
    pub dir: PathBuf,
    pub program: PathBuf,
    /// Names the socket of the source; the recovered server has the next one.
    pub port: u16,
}

impl Place {
    pub fn new(dir: &Path) -> Result<Self, Failure> {
        let program =
            std::env::current_exe().map_err(|e| Failure::failed("E-SYSTEM", format!("this program's path: {e}")))?;
        let mut random = [0u8; 2];
        getrandom::fill(&mut random).map_err(|e| Failure::failed("E-SYSTEM", format!("random bytes: {e}")))?;
        // Nothing listens on it: in a private directory any number is free.
        let port = 20_000 + u16::from_le_bytes(random) % 40_000;
        Ok(Place { dir: dir.to_owned(), program, port })
    }

    pub fn source(&self) -> PathBuf {
        self.dir.join("source")
    }

    pub fn recovered(&self) -> PathBuf {
        self.dir.join("recovered")
    }

    pub fn recovered_port(&self) -> u16 {
        self.port + 1
    }

    pub fn repository(&self) -> PathBuf {
        self.dir.join("repository")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("pgark.toml")
    }

    fn passphrase_file(&self) -> PathBuf {
        self.dir.join("passphrase")
    }

    /// Writes passphrase and configuration, and returns the passphrase.
    pub fn write_settings(&self) -> Result<Zeroizing<String>, Failure> {
        let passphrase = random_hex::<PASSPHRASE_BYTES>()?;
        write_private(&self.passphrase_file(), passphrase.as_bytes())?;
        let text = |path: &Path| -> Result<String, Failure> {
            let text = path.to_str().ok_or_else(|| {
                Failure::refused("E-DEMO-DIR", format!("{} is not valid UTF-8", path.display()))
                    .hint("choose another one with --dir")
            })?;
            Ok(toml::Value::String(text.to_owned()).to_string())
        };
        let config = format!(
            "[repos.demo]\nurl = {}\npassphrase_file = {}\n\n[clusters.main]\npgdata = {}\nhost = {}\nport = {}\nrepos = [\"demo\"]\n",
            text(&self.repository())?,
            text(&self.passphrase_file())?,
            text(&self.source())?,
            text(&self.dir)?,
            self.port
        );
        write_private(&self.config(), config.as_bytes())?;
        Ok(passphrase)
    }

    /// What is added to the `postgresql.conf` of the source.
    pub fn server_settings(&self) -> Result<String, Failure> {
        let word = |path: &Path| shell_word(path).map_err(engine_failure);
        let archive = format!(
            "{} archive-push --config {} --repo {} --passphrase-file {} \"%p\"",
            word(&self.program)?,
            word(&self.config())?,
            word(&self.repository())?,
            word(&self.passphrase_file())?
        );
        let sockets = self.dir.to_string_lossy();
        Ok(format!(
            "\n# Added by pgark demo.\nlisten_addresses = ''\nunix_socket_directories = {}\nport = {}\nwal_level = replica\n\
             archive_mode = on\narchive_command = {}\nmax_connections = 20\nshared_buffers = '64MB'\nmax_wal_size = '2GB'\n\
             logging_collector = off\nlog_destination = 'stderr'\n",
            quote(&sockets),
            self.port,
            quote(&archive)
        ))
    }
}

pub fn random_hex<const N: usize>() -> Result<Zeroizing<String>, Failure> {
    let mut bytes = Zeroizing::new([0u8; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|e| Failure::failed("E-SYSTEM", format!("random bytes: {e}")))?;
    Ok(Zeroizing::new(bytes.iter().map(|b| format!("{b:02x}")).collect()))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut f| f.write_all(bytes)).map_err(|e| failed("writing", path, &e))
}

/// Removes everything in the directory and leaves the directory.
pub fn empty(dir: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| failed("listing", dir, &e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed("listing", dir, &e))?;
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let removed = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &entry.path(), &e)),
            _ => {}
        }
    }
    Ok(())
}

/// Bytes of all files below a directory.
pub fn bytes_below(dir: &Path) -> Result<u64, Failure> {
    let mut total = 0u64;
    for entry in fs::read_dir(dir).map_err(|e| failed("listing", dir, &e))? {
        let entry = entry.map_err(|e| failed("listing", dir, &e))?;
        let meta = entry.metadata().map_err(|e| failed("looking at", &entry.path(), &e))?;
        total += if meta.is_dir() { bytes_below(&entry.path())? } else { meta.len() };
    }
    Ok(total)
}

pub fn failed(what: &'static str, path: &Path, error: &io::Error) -> Failure {
    let source = error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error);
    engine_failure(EngineError::file(what, path, source))
}
