//! Damage to one object of a repository directory, undone when dropped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::os::give_to_postgres;

/// What is done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// One bit at this fraction of the file (0 = first byte, 1000 = last byte).
    FlipBit {
        per_mille: u64,
    },
    /// The file keeps this fraction of its length.
    Truncate {
        per_mille: u64,
    },
    Delete,
    /// The bytes of this other file under this name, and the other way round.
    SwapWith(PathBuf),
}

/// A damaged file; dropping it puts the old content back.
#[derive(Debug)]
pub struct Damaged {
    before: Vec<(PathBuf, Vec<u8>, u32)>,
}

impl Damaged {
    /// Damages `path`. A change that would leave every byte as it was is a mistake of the test and panics.
    pub fn apply(path: &Path, damage: &Damage) -> Damaged {
        let mut before = vec![remember(path)];
        let content = before.first().map(|(_, bytes, _)| bytes.clone()).unwrap_or_default();
        let place = |per_mille: u64| {
            let last = u64::try_from(content.len()).expect("length").saturating_sub(1);
            usize::try_from(last * per_mille / 1000).expect("offset")
        };
        match damage {
            Damage::FlipBit { per_mille } => {
                let mut changed = content.clone();
                let byte = changed.get_mut(place(*per_mille)).expect("an object with content");
                *byte ^= 1 << (per_mille % 8);
                overwrite(path, &changed);
            }
            Damage::Truncate { per_mille } => {
                let length = place(*per_mille);
                overwrite(path, content.get(..length).expect("a shorter length"));
            }
            Damage::Delete => fs::remove_file(path).expect("delete an object"),
            Damage::SwapWith(other) => {
                let there = remember(other);
                assert_ne!(there.1, content, "swapping equal objects changes nothing");
                overwrite(path, &there.1);
                overwrite(other, &content);
                before.push(there);
            }
        }
        Damaged { before }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        for (path, content, mode) in &self.before {
            // A read-only object is replaced, not written through.
            fs::remove_file(path).ok();
            fs::write(path, content).expect("undo the damage");
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("mode");
            give_to_postgres(path);
        }
    }
}

fn remember(path: &Path) -> (PathBuf, Vec<u8>, u32) {
    let content = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let mode = fs::metadata(path).expect("metadata").permissions().mode();
    (path.to_owned(), content, mode)
}

/// Writes in place where the mode allows it, so that owner and mode stay.
fn overwrite(path: &Path, content: &[u8]) {
    let mode = fs::metadata(path).expect("metadata").permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o200)).expect("mode");
    fs::write(path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

/// Every regular file below `root`, sorted.
pub fn objects_under(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(root, &mut found);
    found.sort();
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let list = fs::read_dir(directory).unwrap_or_else(|error| panic!("list {}: {error}", directory.display()));
    for entry in list {
        let entry = entry.expect("directory entry");
        let kind = entry.file_type().expect("kind of an entry");
        if kind.is_dir() {
            collect(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scratch, tree_of};

    #[test]
    fn damage_changes_the_object_and_is_undone() {
        let scratch = Scratch::new("tamper");
        let one = scratch.file("one", b"0123456789", 0o400);
        let two = scratch.file("two", b"abcdef", 0o600);
        let damages = [
            Damage::FlipBit { per_mille: 0 },
            Damage::FlipBit { per_mille: 1000 },
            Damage::Truncate { per_mille: 500 },
            Damage::Truncate { per_mille: 0 },
            Damage::Delete,
            Damage::SwapWith(two.clone()),
        ];
        for damage in damages {
            let damaged = Damaged::apply(&one, &damage);
            assert_ne!(fs::read(&one).ok(), Some(b"0123456789".to_vec()), "{damage:?}");
            drop(damaged);
            assert_eq!(fs::read(&one).expect("read"), b"0123456789", "{damage:?}");
            assert_eq!(fs::read(&two).expect("read"), b"abcdef", "{damage:?}");
        }
        assert_eq!(tree_of(scratch.path()).paths().count(), 3);
        assert_eq!(objects_under(scratch.path()), [one, two]);
    }
}
