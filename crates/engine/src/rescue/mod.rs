//! What lies in every repository for the day on which there is no pgark: a small program in Python and the description
//! of the format. Nothing of it is ever read back to be used, let alone run.

use std::collections::{BTreeMap, BTreeSet};

use pgark_repo::RepoError;
use pgark_repo::store::{ObjectName, Store, StoreErrorKind};

use crate::error::Result;
use crate::verify::ProblemKind;

pub const DIR: &str = "rescue";
/// By name; all of them are text.
const FILES: [(&str, &str); 3] = [
    ("README.txt", include_str!("README.txt")),
    ("extract.py", include_str!("extract.py")),
    ("format.md", include_str!("../../../../docs/format.md")),
];
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Objects are never replaced, so each state of the files has a directory, named by their content.
fn dir_of<'a>(contents: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = blake3::Hasher::new();
    for content in contents {
        hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
    }
    let print: String = hasher.finalize().to_hex().chars().take(32).collect();
    format!("{DIR}/{print}")
}

fn own_dir() -> String {
    dir_of(FILES.iter().map(|(_, text)| text.as_bytes()))
}

fn object(dir: &str, file: &str) -> Result<ObjectName> {
    let name = ObjectName::parse(&format!("{dir}/{file}"));
    Ok(name.map_err(RepoError::from)?)
}

/// Puts there what this version brings and what is not there yet.
pub fn place(store: &dyn Store) -> Result<()> {
    let dir = own_dir();
    for (file, text) in FILES {
        let name = object(&dir, file)?;
        match store.stat(&name) {
            Ok(_) => {}
            Err(e) if e.kind() == StoreErrorKind::NotFound => match store.put_new(&name, text.as_bytes()) {
                Err(e) if e.kind() != StoreErrorKind::AlreadyExists => return Err(e.into()),
                _ => {}
            },
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Whether the files are there, of this version or of another one.
pub fn is_there(store: &dyn Store) -> Result<bool> {
    if store.stat(&object(&own_dir(), "extract.py")?).is_ok() {
        return Ok(true);
    }
    let mut found = false;
    store.list(DIR, &mut |stat| {
        found |= stat.name.as_str().ends_with("/extract.py");
        Ok(())
    })?;
    Ok(found)
}

/// Whether an object is one of these, by its name alone.
pub fn owns(name: &str) -> bool {
    name.split_once('/').is_some_and(|(top, _)| top == DIR)
}

/// What is wrong with these objects: of this version's files every byte is known, those of others must fit the name of
/// their directory.
pub fn check(store: &dyn Store, names: &[String]) -> Result<Vec<(String, ProblemKind, String)>> {
    let mut dirs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (dir, file) in names.iter().filter_map(|n| n.rsplit_once('/')) {
        dirs.entry(dir).or_default().insert(file);
    }
    let own = own_dir();
    let mut problems = vec![];
    for (dir, files) in dirs {
        let mut contents = vec![];
        for (file, text) in FILES {
            let name = object(dir, file)?;
            match store.read(&name, FILE_BYTES_MAX) {
                Ok(bytes) if dir == own && bytes != text.as_bytes() => {
                    let what = "not what this version of pgark wrote: do not run it";
                    problems.push((name.to_string(), ProblemKind::Damaged, what.to_owned()));
                    contents.push(bytes);
                }
                Ok(bytes) => contents.push(bytes),
                Err(e) => {
                    let missing = e.kind() == StoreErrorKind::NotFound;
                    let kind = if missing { ProblemKind::Missing } else { ProblemKind::Damaged };
                    problems.push((name.to_string(), kind, e.to_string()));
                }
            }
        }
        let whole = contents.len() == FILES.len();
        if dir != own && whole && dir_of(contents.iter().map(Vec::as_slice)) != dir {
            let what = "its files are not those that it was named by: do not run them";
            problems.push((dir.to_owned(), ProblemKind::Damaged, what.to_owned()));
        }
        for file in files.into_iter().filter(|f| FILES.iter().all(|(known, _)| known != f)) {
            let what = "pgark puts no such file here";
            problems.push((format!("{dir}/{file}"), ProblemKind::Unexpected, what.to_owned()));
        }
    }
    Ok(problems)
}

/// As `check`, of all that lies there.
pub fn look(store: &dyn Store) -> Result<Vec<(String, ProblemKind, String)>> {
    let mut names = vec![];
    store.list(DIR, &mut |stat| {
        names.push(stat.name.to_string());
        Ok(())
    })?;
    check(store, &names)
}

/// What `check` found wrong is removed, and this version's files are put there: those of others nobody needs beside them.
pub fn mend(store: &dyn Store, found: &str) -> Result<()> {
    let dir = if found.matches('/').count() > 1 { found.rsplit_once('/').map_or(found, |(dir, _)| dir) } else { found };
    let hurt: Vec<&str> = if dir == own_dir() { vec![found] } else { vec![dir] };
    let mut gone = vec![];
    store.list(dir, &mut |stat| {
        let name = stat.name.as_str();
        let is_hurt =
            hurt.iter().any(|hurt| name == *hurt || name.strip_prefix(hurt).is_some_and(|r| r.starts_with('/')));
        if is_hurt && FILES.iter().any(|(file, _)| stat.name.basename() == *file) {
            gone.push(stat.name);
        }
        Ok(())
    })?;
    for name in gone {
        store.delete(&name)?;
    }
    place(store)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use pgark_repo::crypto::hex;
    use pgark_repo::store::MemoryStore;

    use super::*;

    #[test]
    fn the_documentation_names_the_sum_of_the_program() {
        let sum = hex(digest(&SHA256, FILES[1].1.as_bytes()).as_ref());
        assert!(include_str!("../../../../docs/export.md").contains(&sum), "docs/export.md must name {sum}");
    }

    #[test]
    fn the_files_are_put_once_and_checked() {
        let store = MemoryStore::new();
        place(&store).unwrap();
        place(&store).unwrap();
        let names: Vec<String> = FILES.iter().map(|(f, _)| format!("{}/{f}", own_dir())).collect();
        assert_eq!(check(&store, &names).unwrap(), vec![]);

        // Another version's files are known by the name of their directory; others there are strangers.
        let other = dir_of([&b"a"[..], b"b", b"c"].into_iter());
        for (file, text) in [("README.txt", "a"), ("extract.py", "b"), ("format.md", "c"), ("more", "d")] {
            store.put_new(&object(&other, file).unwrap(), text.as_bytes()).unwrap();
        }
        let names: Vec<String> = ["README.txt", "more"].iter().map(|f| format!("{other}/{f}")).collect();
        let found = check(&store, &names).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0.as_str(), found[0].1), (format!("{other}/more").as_str(), ProblemKind::Unexpected));

        store.delete(&object(&own_dir(), "extract.py").unwrap()).unwrap();
        store.put_new(&object(&own_dir(), "extract.py").unwrap(), b"evil").unwrap();
        store.delete(&object(&other, "extract.py").unwrap()).unwrap();
        store.put_new(&object(&other, "extract.py").unwrap(), b"evil").unwrap();
        let names: Vec<String> = [own_dir(), other.clone()].iter().map(|d| format!("{d}/README.txt")).collect();
        let found = check(&store, &names).unwrap();
        assert!(found.len() == 2 && found.iter().all(|(_, kind, _)| *kind == ProblemKind::Damaged), "{found:?}");

        // A repair needs nobody else for this.
        found.iter().for_each(|(object, ..)| mend(&store, object).unwrap());
        store.delete(&object(&other, "more").unwrap()).unwrap();
        assert_eq!(look(&store).unwrap(), vec![]);
        assert!(store.stat(&object(&other, "README.txt").unwrap()).unwrap_err().is_not_found());
        for (file, text) in FILES {
            assert_eq!(store.read(&object(&own_dir(), file).unwrap(), FILE_BYTES_MAX).unwrap(), text.as_bytes());
        }
    }
}
