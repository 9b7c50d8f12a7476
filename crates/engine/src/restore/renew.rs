//! New keys for a server that recovers while the repository's key is rotated: its key file is written anew.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use pgark_repo::Repository;
use pgark_repo::crypto::KeySet;

use super::settings::{RESTORE_FILE, RestoreFile};
use crate::error::{EngineError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Of the newest key in the file, before and now.
    pub before: u32,
    pub now: u32,
}

/// What `run` would do.
pub fn plan(repo: &Repository, dir: &Path) -> Result<Renewed> {
    Ok(renewed(repo, dir)?.1)
}

/// Puts the keys to the WAL as they are now into a restored directory. The file is exchanged in one step: a
/// `restore_command` that runs meanwhile reads the old or the new one.
pub fn run(repo: &Repository, dir: &Path) -> Result<Renewed> {
    let (file, report) = renewed(repo, dir)?;
    let path = dir.join(RESTORE_FILE);
    let temporary = dir.join(format!("{RESTORE_FILE}.tmp-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let owner = std::fs::metadata(&path)?;
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        // The server's user has to read it, whoever runs this.
        fchown(&new, Some(owner.uid()), Some(owner.gid()))?;
        new.write_all(&file.to_bytes())?;
        new.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|e| {
        // It may never have been made, or be the new file already.
        let _ = std::fs::remove_file(&temporary);
        EngineError::file("writing", &path, e)
    })?;
    Ok(report)
}

fn renewed(repo: &Repository, dir: &Path) -> Result<(RestoreFile, Renewed)> {
    let path = dir.join(RESTORE_FILE);
    if !path.exists() {
        return Err(EngineError::refused(
            "E-RESTORE-FILE",
            format!("{} is no directory that pgark restored: it has no {RESTORE_FILE}", dir.display()),
            "name the data directory of a server that recovers from this repository",
        ));
    }
    let file = RestoreFile::read(&path)?;
    let (url, now) = (repo.store().url(), repo.keys().wal_keys());
    let held =
        file.places().iter().find(|place| place.repository == url).map(|place| file.keys_of(place)).transpose()?;
    let carries_on =
        |held: &KeySet| held.algorithm() == repo.encryption() && held.wal_keys().iter().all(|key| now.contains(key));
    let Some(held) = held.filter(carries_on) else {
        return Err(EngineError::refused(
            "E-RESTORE-FILE",
            format!("{} belongs to another repository: {}", path.display(), file.repository),
            "choose the repository that the directory was restored from, with --repo",
        ));
    };
    let report = Renewed { before: held.generation(), now: repo.keys().generation() };
    Ok((file.with_keys(&url, repo.keys()), report))
}
