//! Directories that others keep: nothing may be written into them.

use std::path::Path;

use crate::error::{EngineError, Result};

/// What PostgreSQL or a repository keeps is nobody else's: neither expects foreign files, and both may remove them.
/// `code` is that of the refusal.
pub fn refuse(to: &Path, code: &'static str) -> Result<()> {
    let there = to.ancestors().find_map(|dir| std::fs::canonicalize(dir).ok()).unwrap_or_else(|| to.to_owned());
    for dir in there.ancestors() {
        let what = match () {
            () if dir.join("PG_VERSION").exists() && dir.join("global/pg_control").exists() => {
                "a data directory of PostgreSQL"
            }
            () if has_key_ring(dir) => "a repository",
            () => continue,
        };
        return Err(EngineError::refused(
            code,
            format!("{} lies in {}, which is {what}", to.display(), dir.display()),
            "give a directory elsewhere; nothing was changed",
        ));
    }
    Ok(())
}

/// A directory that cannot be listed is none that a restore could write into.
fn has_key_ring(dir: &Path) -> bool {
    let is_version = |name: &std::ffi::OsStr| {
        let name = name.as_encoded_bytes();
        name.len() == 16 && name.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
    };
    ["keyring", "keyring-mirror"].iter().any(|ring| {
        let found = std::fs::read_dir(dir.join(ring));
        found.is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|e| is_version(&e.file_name()))))
    })
}
