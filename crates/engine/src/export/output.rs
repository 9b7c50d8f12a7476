//! Where an export goes: a new file that only its owner reads, or a stream.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::ExportReport;
use crate::error::{EngineError, Result};

pub enum Destination {
    File(PathBuf),
    /// Whoever reads it has to look at the exit code: what was cut short has no end.
    Stream(RefCell<Box<dyn Write>>),
}

/// What fills a destination.
type Fill<'a> = dyn FnMut(&mut dyn Write) -> Result<ExportReport> + 'a;

impl Destination {
    pub(super) fn write(&self, fill: &mut Fill<'_>) -> Result<ExportReport> {
        match self {
            Destination::Stream(out) => fill(&mut *out.borrow_mut()),
            Destination::File(path) => {
                check_free(path)?;
                let part = part_of(path);
                let outcome = write_file(path, &part, fill);
                if outcome.is_err()
                    && let Err(e) = fs::remove_file(&part)
                    && e.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %part.display(), %e, "an unfinished export stays");
                }
                outcome
            }
        }
    }
}

fn write_file(path: &Path, part: &Path, fill: &mut Fill<'_>) -> Result<ExportReport> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part);
    let file = created.map_err(|e| EngineError::file("creating", part, e))?;
    let failed = |e: std::io::Error| EngineError::file("writing", part, e);
    let mut out = BufWriter::with_capacity(1024 * 1024, file);
    let report = fill(&mut out)?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    // A link, unlike a renaming, never replaces what is there.
    match fs::hard_link(part, path) {
        Ok(()) => fs::remove_file(part).map_err(failed)?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(taken(path)),
        // File systems without links.
        Err(_) => {
            check_free(path)?;
            fs::rename(part, path).map_err(failed)?;
        }
    }
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| EngineError::file("syncing", dir, e))?;
    Ok(report)
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    path.with_file_name(name)
}

fn taken(path: &Path) -> EngineError {
    EngineError::refused(
        "E-EXPORT-EXISTS",
        format!("{} exists already", path.display()),
        "an export replaces nothing: give another name, or remove what is there",
    )
}

pub fn check_free(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(EngineError::file("looking at", path, e)),
        Ok(_) => Err(taken(path)),
    }
}

/// A file without a name: it goes with this process.
pub fn nameless(dir: &Path) -> Result<File> {
    let failed = |e: std::io::Error| EngineError::file("creating a temporary file in", dir, e);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => return Ok(fd.into()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {}
        Err(e) => return Err(failed(e.into())),
    }
    let path = dir.join(format!(".pgark-export-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}
