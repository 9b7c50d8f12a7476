//! A directory tree as a value, to prove that a refusal left its target untouched.
//!
//! Names, kinds, modes, owners, sizes, modification times, link targets and contents are compared; links are never
//! followed and special files never opened.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The entries of a tree by relative path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    content: Vec<u8>,
}

impl Tree {
    /// Panics with the first differences when the tree is not the same any more.
    pub fn assert_same(&self, now: &Tree, what: &str) {
        let gone = self.0.keys().filter(|path| !now.0.contains_key(*path));
        let new = now.0.keys().filter(|path| !self.0.contains_key(*path));
        let changed = self.0.iter().filter(|(path, entry)| now.0.get(*path).is_some_and(|other| other != *entry));
        let differences: Vec<String> = gone
            .map(|path| format!("gone: {}", path.display()))
            .chain(new.map(|path| format!("new: {}", path.display())))
            .chain(changed.map(|(path, _)| format!("changed: {}", path.display())))
            .take(10)
            .collect();
        assert!(differences.is_empty(), "{what}: the tree changed\n{}", differences.join("\n"));
    }

    /// But for what lies below this name.
    pub fn without(mut self, top: &str) -> Tree {
        self.0.retain(|path, _| !path.starts_with(top));
        self
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}

/// A repository as a tree, but for its audit trail, which tells of refusals too.
pub fn repository_tree(root: &Path) -> Tree {
    tree_of(root).without("audit")
}

/// Reads a whole tree; `root` may be a file, a link, or absent (which is an empty tree).
pub fn tree_of(root: &Path) -> Tree {
    let mut entries = BTreeMap::new();
    visit(root, root, &mut entries);
    Tree(entries)
}

fn visit(root: &Path, path: &Path, entries: &mut BTreeMap<PathBuf, Entry>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let kind = meta.file_type();
    let content = if kind.is_file() {
        fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    } else if kind.is_symlink() {
        fs::read_link(path).map(|target| target.as_os_str().as_bytes().to_vec()).unwrap_or_default()
    } else {
        Vec::new()
    };
    let relative = path.strip_prefix(root).unwrap_or(path).to_owned();
    let entry = Entry {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        content,
    };
    entries.insert(relative, entry);
    if kind.is_dir() {
        let list = fs::read_dir(path).unwrap_or_else(|error| panic!("list {}: {error}", path.display()));
        for child in list {
            visit(root, &child.expect("directory entry").path(), entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn a_changed_byte_and_a_new_name_are_seen() {
        let scratch = Scratch::new("tree");
        fs::write(scratch.join("a"), b"one").expect("write");
        let before = tree_of(scratch.path());
        assert_eq!(before, tree_of(scratch.path()));
        fs::write(scratch.join("a"), b"two").expect("write");
        assert_ne!(before, tree_of(scratch.path()));
        let before = tree_of(scratch.path());
        std::os::unix::fs::symlink("nowhere", scratch.join("b")).expect("link");
        assert_ne!(before, tree_of(scratch.path()));
    }
}
