//! A bounded place on this machine for WAL that the repository cannot take at the moment.
//!
//! Invariant: a file is in the spool under its own name, whole and durable, before PostgreSQL may forget it, and leaves it
//! only when the repository has it. It goes to the repository in the order in which PostgreSQL archived it. What does
//! not fit is refused, so that PostgreSQL keeps it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgark_pg::names::WalFileName;

use crate::error::{EngineError, Result};

const TEMP_SUFFIX: &str = ".pgark-tmp";
const COPY_BYTES: usize = 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Spool {
    pub dir: PathBuf,
    pub max_bytes: u64,
}

/// What waits in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spooled {
    pub files: u64,
    pub bytes: u64,
}

impl Spool {
    fn failed(&self, what: &'static str, path: &Path, e: io::Error) -> EngineError {
        EngineError::file(what, path, e)
    }

    /// WAL files, in the order in which they were archived: names of one kind ascend with the WAL, and a timeline's
    /// history comes before its segments.
    pub fn waiting(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(self.failed("listing", &self.dir, e)),
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(|e| self.failed("listing", &self.dir, e))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Ok(parsed) = WalFileName::parse(name) {
                let history = matches!(parsed, WalFileName::History(_));
                let timeline = name.get(..8).unwrap_or_default().to_owned();
                found.push(((timeline, !history, name.to_owned()), entry.path()));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    pub fn spooled(&self) -> Result<Spooled> {
        let mut all = Spooled::default();
        for path in self.waiting()? {
            let len = fs::metadata(&path).map_err(|e| self.failed("looking at", &path, e))?.len();
            all = Spooled { files: all.files + 1, bytes: all.bytes + len };
        }
        Ok(all)
    }

    /// Keeps a file of `pg_wal`; durable when it returns.
    pub fn keep(&self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        super::parse_name(name.to_str().unwrap_or_default())?;
        let to = self.dir.join(name);
        match fs::symlink_metadata(&to) {
            Ok(_) if same_bytes(path, &to).map_err(|e| self.failed("comparing", &to, e))? => return Ok(()),
            Ok(_) => {
                return Err(EngineError::refused(
                    "E-SPOOL-CONFLICT",
                    format!("{} is in the spool with other content", to.display()),
                    "are two servers using one spool? 'pgark archive-push' of the one in the spool shows which is right",
                ));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(self.failed("looking at", &to, e)),
        }
        let size = fs::metadata(path).map_err(|e| self.failed("looking at", path, e))?.len();
        let there = self.spooled()?;
        if there.bytes.saturating_add(size) > self.max_bytes {
            return Err(EngineError::failed(
                "E-SPOOL-FULL",
                format!("the spool {} holds {} bytes of {}", self.dir.display(), there.bytes, self.max_bytes),
                "PostgreSQL keeps its WAL until the repository takes it again",
            ));
        }
        self.copy(path, &to).map_err(|e| self.failed("spooling into", &to, e))
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => {
                if let Some(above) = self.dir.parent() {
                    File::open(above)?.sync_all()?;
                }
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let mut temp = to.as_os_str().to_owned();
        temp.push(TEMP_SUFFIX);
        let temp = PathBuf::from(temp);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        let copied = each_block(File::open(from)?, &mut |bytes| file.write_all(bytes)).and_then(|()| file.sync_all());
        if let Err(e) = copied.and_then(|()| fs::rename(&temp, to)).and_then(|()| File::open(&self.dir)?.sync_all()) {
            let _gone_or_overwritten = fs::remove_file(&temp);
            return Err(e);
        }
        Ok(())
    }

    /// Hands every file to `push`, in order, and removes those that it took. Stops at the first that it did not.
    pub fn drain(&self, push: &mut dyn FnMut(&Path) -> Result<()>) -> Result<u64> {
        let mut drained = 0;
        for path in self.waiting()? {
            push(&path)?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(self.failed("removing", &path, e)),
                _ => drained += 1,
            }
        }
        Ok(drained)
    }
}

fn each_block(mut from: File, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut block = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&block[..n])?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let hash = |path: &Path| {
        let mut hasher = blake3::Hasher::new();
        each_block(File::open(path)?, &mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok::<_, io::Error>(hasher.finalize())
    };
    Ok(hash(a)? == hash(b)?)
}
