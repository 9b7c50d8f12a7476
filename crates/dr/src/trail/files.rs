//! Small files that must not be lost: private, whole or not there, durable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::Path;

pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| *dir != above).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.iter().rev().try_for_each(|dir| give(dir))?;
    sync(dir.parent())
}

/// What root makes belongs to whoever the directory belongs to in which it lies.
pub(crate) fn give(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    match owner.uid() {
        0 => Ok(()),
        uid => lchown(path, Some(uid), Some(owner.gid())),
    }
}

/// Under another name first; durable when this returns.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    give(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync(path.parent())
}

pub(crate) fn sync(dir: Option<&Path>) -> io::Result<()> {
    dir.map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
