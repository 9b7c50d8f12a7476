//! Which backups can stand in for each other: those that were asked for the same things. A dump of one database is no reason for
//! the dump of another to go, nor one of a table for one of the whole; and what was taken just before a restore, of the state
//! that was to be left behind, is no reason for anything.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::files::FilesOptions;
use crate::logical::restore::SAFETY;
use crate::logical::{LogicalOptions, Wanted};

pub fn of_databases(options: &LogicalOptions) -> String {
    let databases = match &options.databases {
        Wanted::All => Value::Null,
        Wanted::Named(names) => sorted(names.iter().map(String::as_str)),
    };
    let what = json!({
        "databases": databases, "schemas": sorted(options.schemas.iter().map(String::as_str)),
        "tables": sorted(options.tables.iter().map(String::as_str)), "files": options.files.as_ref().map(places),
    });
    name(&what, &options.annotations)
}

pub fn of_files(files: &FilesOptions, annotations: &BTreeMap<String, String>) -> String {
    name(&json!({ "files": places(files) }), annotations)
}

/// What is included and left out may change without it becoming another series.
fn places(files: &FilesOptions) -> Value {
    let all = files.config.iter().chain(&files.files).map(|p| hexadecimal(p));
    let mut all: Vec<String> = all.collect();
    all.sort_unstable();
    all.dedup();
    json!(all)
}

/// Paths need not be UTF-8.
fn hexadecimal(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    let mut all: Vec<&str> = names.collect();
    all.sort_unstable();
    all.dedup();
    json!(all)
}

/// Short, because the catalog has it for each backup.
fn name(what: &Value, annotations: &BTreeMap<String, String>) -> String {
    let hash = blake3::hash(what.to_string().as_bytes()).to_hex();
    let short = hash.get(..16).unwrap_or(&hash);
    if annotations.contains_key(SAFETY) { format!("{SAFETY}-{short}") } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(config: &[&str], of: &[&str], exclude: &[&str]) -> FilesOptions {
        FilesOptions {
            config: config.iter().map(Into::into).collect(),
            files: of.iter().map(Into::into).collect(),
            include: vec![],
            exclude: exclude.iter().map(|e| (*e).to_owned()).collect(),
            one_file_system: false,
            own: vec![],
        }
    }

    #[test]
    fn the_same_places_are_one_series() {
        let (none, mut safety) = (BTreeMap::new(), BTreeMap::new());
        safety.insert(SAFETY.to_owned(), "before the restore of x".to_owned());
        let one = of_files(&files(&["/a"], &["/b", "/c"], &[]), &none);
        assert_eq!(one, of_files(&files(&["/a"], &["/c", "/b"], &["*.tmp"]), &none));
        assert_ne!(one, of_files(&files(&["/a"], &["/b"], &[]), &none));
        let before = of_files(&files(&["/a"], &["/b", "/c"], &[]), &safety);
        assert!(before != one && before.starts_with("safety-"), "{before}");
    }
}
