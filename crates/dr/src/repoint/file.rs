//! The file itself: read, replaced as a whole, and put back.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use pgark_engine::error::{EngineError, Result};
use rustix::fs::Access;
use rustix::process::{getegid, geteuid, getgroups};
use serde::{Deserialize, Serialize};

use super::{Edit, Format, Stands, edited};

/// A configuration file is not larger.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What was done, for the way back. Holds no value: one may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repointed {
    pub file: PathBuf,
    /// The file as it was.
    pub kept: PathBuf,
    pub before: String,
    pub after: String,
}

/// What would be written, and where the old file would stay: beside it, under this ending. Changes nothing.
pub fn plan(file: &Path, format: Format, edits: &[Edit], kept_as: &str) -> Result<(Repointed, String)> {
    // A link stays a link.
    let file = fs::canonicalize(file).map_err(|e| EngineError::file("looking for", file, e))?;
    let text = read(&file)?;
    let edited = edited(format, &text, edits).map_err(|e| in_file(&file, e))?;
    writable(&file)?;
    let kept = beside(&file, kept_as);
    Ok((Repointed { file, kept, before: hash(&text), after: hash(&edited) }, edited))
}

/// Sets the values that the edits make of the old ones.
pub fn repoint(file: &Path, format: Format, edits: &[Edit], kept_as: &str) -> Result<Repointed> {
    let (done, edited) = plan(file, format, edits, kept_as)?;
    match read(&done.kept) {
        // An earlier try got this far.
        Ok(there) if hash(&there) == done.before => {}
        Ok(_) => return Err(in_the_way(&done.kept)),
        Err(EngineError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            write_like(&done.file, &done.kept, &read(&done.file)?)?;
        }
        Err(e) => return Err(e),
    }
    replace(&done.file, &edited)?;
    Ok(done)
}

/// Which of the two it is now.
pub fn stands(done: &Repointed) -> Result<Stands> {
    let now = hash(&read(&done.file)?);
    Ok(match (now == done.after, now == done.before) {
        (true, _) => Stands::New,
        (_, true) => Stands::Old,
        _ => Stands::Other(format!("{} was changed by somebody else", done.file.display())),
    })
}

/// Puts the old file back, unless somebody has changed the new one meanwhile.
pub fn take_back(done: &Repointed) -> Result<()> {
    let now = read(&done.file)?;
    if hash(&now) == done.before {
        return Ok(());
    }
    let old = read(&done.kept)?;
    if hash(&old) != done.before || hash(&now) != done.after {
        return Err(EngineError::refused(
            "E-REPOINT-CHANGED",
            format!(
                "{} was changed by somebody else; how it was before is in {}",
                done.file.display(),
                done.kept.display()
            ),
            "compare the two, and put right what is wrong",
        ));
    }
    replace(&done.file, &old)
}

/// Which file a refusal is about.
fn in_file(file: &Path, e: EngineError) -> EngineError {
    match e {
        EngineError::Refused { code, message, hint } => {
            EngineError::Refused { code, message: format!("{}: {message}", file.display()), hint }
        }
        other => other,
    }
}

/// Whether it can be exchanged for a file with the same owner.
fn writable(file: &Path) -> Result<()> {
    let refused = |why: String, hint: &str| Err(EngineError::refused("E-REPOINT-WRITE", why, hint));
    let dir = file.parent().unwrap_or(Path::new("/"));
    if rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let why = format!("{} cannot be replaced: its directory cannot be written to", file.display());
        return refused(why, "run this as a user who may, or change the value by a command");
    }
    let (model, me) = (fs::metadata(file).map_err(|e| EngineError::file("looking at", file, e))?, geteuid());
    let groups = getgroups().unwrap_or_default();
    let of_group = |gid: u32| getegid().as_raw() == gid || groups.iter().any(|g| g.as_raw() == gid);
    if me.is_root() || model.uid() == me.as_raw() && of_group(model.gid()) {
        return Ok(());
    }
    let why = format!(
        "{} cannot be replaced: it belongs to user {} and group {}, and a new one could not",
        file.display(),
        model.uid(),
        model.gid()
    );
    refused(why, "run this as its owner or as root, or change the value by a command")
}

fn read(path: &Path) -> Result<String> {
    let failed = |e| EngineError::file("reading", path, e);
    let mut bytes = vec![];
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("it is not an ordinary file")));
    }
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is larger than 4 MiB")));
    }
    String::from_utf8(bytes).map_err(|_| failed(std::io::Error::other("it is not UTF-8")))
}

fn replace(file: &Path, text: &str) -> Result<()> {
    let new = beside(file, "new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(EngineError::file("removing", &new, e)),
        _ => {}
    }
    write_like(file, &new, text)?;
    fs::rename(&new, file).map_err(|e| EngineError::file("renaming", &new, e))?;
    sync_dir(file)
}

/// With owner and mode of another file, durable.
fn write_like(like: &Path, path: &Path, text: &str) -> Result<()> {
    let failed = |e| EngineError::file("writing", path, e);
    let model = fs::metadata(like).map_err(|e| EngineError::file("looking at", like, e))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mine = file.metadata().map_err(failed)?;
    if (mine.uid(), mine.gid()) != (model.uid(), model.gid()) {
        fchown(&file, Some(model.uid()), Some(model.gid())).map_err(failed)?;
    }
    file.set_permissions(Permissions::from_mode(model.mode() & 0o7777)).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    sync_dir(path)
}

fn sync_dir(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| EngineError::file("syncing", dir, e))
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".pgark-{suffix}"));
    file.with_file_name(name)
}

pub(super) fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn in_the_way(path: &Path) -> EngineError {
    EngineError::refused(
        "E-REPOINT-CHANGED",
        format!("{} is there already and holds something else", path.display()),
        "it is what an earlier recovery kept: move it away",
    )
}
