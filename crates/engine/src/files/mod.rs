//! Backups of directories and files beside the database, and back.
//!
//! Invariant: nothing is read through a link and nothing is written through one; every name is opened relative to the directory
//! that it was found in. Secrets are never read into a backup. What is not in a backup although it was asked for is told by name.

pub mod attributes;
mod backup;
pub mod glob;
mod job;
pub mod owners;
mod place;
pub mod restore;
pub mod rules;
mod scan;
mod tree;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgark_repo::record::{FilesPart, FilesRoot, LeftOutWhy, Section};

use crate::error::{EngineError, Result};

pub(crate) use backup::FilesWriter;
pub use job::{FilesJob, FilesPlan, FilesReport, plan, run};
pub(crate) use job::{check_base, look_at_roots, roots_in};

/// What of the file system is backed up.
#[derive(Clone, Debug, Default)]
pub struct FilesOptions {
    /// Files, or directories, with the configuration.
    pub config: Vec<PathBuf>,
    /// What the application keeps in files.
    pub files: Vec<PathBuf>,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Directories on which another file system is mounted are left out.
    pub one_file_system: bool,
    /// Directories that are left out wherever they are met: repositories, data directories.
    pub own: Vec<PathBuf>,
}

impl FilesOptions {
    /// Of an ordinary backup of these places; the catalog tells by it which backups can stand in for each other.
    pub fn series(&self) -> String {
        crate::series::of_files(self, &Default::default())
    }

    /// What was named, sorted, each once; what lies in another one that was named is covered by it.
    pub fn roots(&self) -> Result<Vec<Root>> {
        let mut all = vec![];
        for (section, paths) in [(Section::Config, &self.config), (Section::Files, &self.files)] {
            let mut named = paths.iter().map(|p| clean(p)).collect::<Result<Vec<Vec<u8>>>>()?;
            named.sort_by(|a, b| pgark_repo::manifest::path_order(a, b));
            named.dedup();
            let mut kept: Vec<Vec<u8>> = vec![];
            for path in named {
                let covered = kept.iter().any(|k| path.strip_prefix(k.as_slice()).is_some_and(|r| r.starts_with(b"/")));
                if !covered {
                    kept.push(path);
                }
            }
            all.extend(kept.into_iter().map(|path| Root { section, path }));
        }
        if all.is_empty() {
            return Err(EngineError::refused(
                "E-FILES-NONE",
                "no directory or file is named",
                "set directories and config_files in [clusters.NAME.system], or give --path",
            ));
        }
        Ok(all)
    }
}

/// What was named, as an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub section: Section,
    pub path: Vec<u8>,
}

impl Root {
    pub fn as_path(&self) -> &Path {
        Path::new(std::ffi::OsStr::from_bytes(&self.path))
    }

    pub fn record(&self, is_directory: bool) -> FilesRoot {
        FilesRoot { section: self.section, path: self.path.clone(), is_directory }
    }
}

/// Without what says nothing: `//`, `/.` and a `/` at the end. Not the root directory, and nothing with `..`, which a link on the
/// way would make mean something else.
fn clean(path: &Path) -> Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    let parts: Vec<&[u8]> = bytes.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if !bytes.starts_with(b"/") || parts.is_empty() || parts.contains(&b"..".as_slice()) {
        return Err(EngineError::refused(
            "E-FILES-PATH",
            format!("{} cannot be backed up by this name", path.display()),
            "give absolute paths without '..', and not '/' itself",
        ));
    }
    let clean: Vec<u8> = parts.iter().flat_map(|p| [b"/", *p]).flatten().copied().collect();
    // Its place in the manifest is longer by the name of its section.
    if clean.len() + 16 >= pgark_repo::limits::PATH_BYTES_MAX {
        return Err(EngineError::refused(
            "E-FILES-PATH",
            format!("{} is too long", path.display()),
            "at most 4079 bytes",
        ));
    }
    Ok(clean)
}

/// Said to the person who took the backup; what is here makes it end with warnings.
pub fn warnings(part: &FilesPart) -> Vec<String> {
    let mut out = vec![];
    let count = |why: LeftOutWhy| part.left_out_counts.get(&why).copied().unwrap_or(0);
    let named = |why: LeftOutWhy| part.left_out.iter().filter(move |l| l.why == why).take(WARNED_BY_NAME);
    for (why, what) in [(LeftOutWhy::Missing, "is not there"), (LeftOutWhy::Unreadable, "could not be read")] {
        for l in named(why) {
            let detail = l.detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default();
            out.push(format!("{} {what} and is not in the backup{detail}", crate::backup::scan::show(&l.path)));
        }
        let more = count(why).saturating_sub(WARNED_BY_NAME as u64);
        if more > 0 {
            out.push(format!("{more} more {what}; 'pgark info ID' lists them"));
        }
    }
    for path in part.changed.iter().take(WARNED_BY_NAME) {
        let shown = crate::backup::scan::show(&path.0);
        out.push(format!(
            "{shown} was being written while it was read, twice: what is in the backup may be of no one moment"
        ));
    }
    let more = part.changed_count.saturating_sub(WARNED_BY_NAME as u64);
    if more > 0 {
        out.push(format!("{more} more files were being written while they were read; 'pgark info ID' lists them"));
    }
    out
}

/// Paths that warnings name, of each kind.
const WARNED_BY_NAME: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_twice_or_lies_within_another_is_taken_once() {
        let options = FilesOptions {
            config: vec!["/etc/app.conf".into(), "/srv/app/x.yml".into(), "/etc/app.conf".into()],
            files: vec!["/srv/app/".into(), "/srv//app/uploads/.".into(), "/srv/app-data".into(), "/srv/app".into()],
            ..FilesOptions::default()
        };
        let roots = options.roots().unwrap();
        let shown: Vec<&str> = roots.iter().map(|r| std::str::from_utf8(&r.path).unwrap()).collect();
        assert_eq!(shown, ["/etc/app.conf", "/srv/app/x.yml", "/srv/app", "/srv/app-data"]);
        assert_eq!(roots[2].record(true).part(), b"files/srv/app");
        for bad in ["srv", "/", "/srv/../etc", "", "/..", "."] {
            assert!(FilesOptions { files: vec![bad.into()], ..FilesOptions::default() }.roots().is_err(), "{bad}");
        }
        assert!(FilesOptions::default().roots().is_err());
    }
}
