//! Whether a restore may write where it is asked to. Looks only; what it refuses stays as it is.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pgark_repo::record::TablespaceLink;

use super::delta;
use super::{RestoreOptions, RestorePlan, TablespaceMap};
use crate::error::{EngineError, Result};
use crate::foreign;

/// Room for WAL and what PostgreSQL writes while it recovers.
const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// Where each tablespace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTablespace {
    pub oid: u32,
    pub location: PathBuf,
}

/// Decides where tablespaces go and refuses what must not be written to.
pub fn check_target(options: &RestoreOptions, plan: &RestorePlan) -> Result<Vec<PlacedTablespace>> {
    if !options.to.is_absolute() {
        return Err(refused(
            "E-TARGET-PATH",
            &options.to,
            "is not an absolute path",
            "give the full path of the directory",
        ));
    }
    let over = options.delta && delta::check(&options.to, &plan.record)?;
    if !over {
        check_empty(&options.to, "E-TARGET-NOT-EMPTY")?;
        not_within_another(&options.to)?;
    }
    let places = place_tablespaces(options, &plan.record.tablespaces)?;
    for place in &places {
        if !(over && delta::is_own_tablespace(&options.to, place)) {
            not_within_another(&place.location)?;
            check_empty(&place.location, "E-TABLESPACE-NOT-EMPTY")?;
        }
    }
    let all: Vec<&Path> =
        std::iter::once(options.to.as_path()).chain(places.iter().map(|p| p.location.as_path())).collect();
    for (i, a) in all.iter().enumerate() {
        for b in all.iter().skip(i + 1) {
            if a == b || b.starts_with(a) && *a != options.to || a.starts_with(b) {
                return Err(refused(
                    "E-TABLESPACE-OVERLAP",
                    b,
                    &format!("overlaps {}", a.display()),
                    "give each tablespace a directory of its own with --tablespace-map",
                ));
            }
        }
    }
    if !over {
        check_space(&options.to, plan.record.totals.size_bytes)?;
    }
    Ok(places)
}

fn refused(code: &'static str, path: &Path, what: &str, hint: &str) -> EngineError {
    EngineError::refused(code, format!("{} {what}", path.display()), hint)
}

fn not_within_another(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |above| foreign::refuse(above, "E-TARGET-PLACE"))
}

/// Absent or an empty directory; never a link, never anything else.
fn check_empty(path: &Path, code: &'static str) -> Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(m) => m,
        Err(e) if e.kind() == ErrorKind::NotFound => return check_parent(path),
        Err(e) => return Err(EngineError::file("looking at", path, e)),
    };
    if meta.file_type().is_symlink() {
        return Err(refused("E-TARGET-LINK", path, "is a symbolic link", "give the directory itself"));
    }
    if !meta.is_dir() {
        return Err(refused(
            "E-TARGET-PATH",
            path,
            "is not a directory",
            "give a directory that is empty or does not exist",
        ));
    }
    if let Some(pid) = running_postmaster(path) {
        return Err(refused(
            "E-TARGET-RUNNING",
            path,
            &format!("is the data directory of a running PostgreSQL (process {pid})"),
            "restore into another directory, or stop that server first",
        ));
    }
    let mut entries = fs::read_dir(path).map_err(|e| EngineError::file("listing", path, e))?;
    match entries.next() {
        None => Ok(()),
        Some(Err(e)) => Err(EngineError::file("listing", path, e)),
        Some(Ok(_)) => Err(refused(
            code,
            path,
            "is not empty",
            "give a directory that is empty or does not exist; nothing was changed",
        )),
    }
}

fn check_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(parent) {
        Ok(m) if m.is_dir() => Ok(()),
        Ok(_) => Err(refused("E-TARGET-PATH", parent, "is not a directory", "")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(refused("E-TARGET-PATH", parent, "does not exist", "create the parent directory first"))
        }
        Err(e) => Err(EngineError::file("looking at", parent, e)),
    }
}

/// The process in `postmaster.pid`, if it lives.
pub fn running_postmaster(pgdata: &Path) -> Option<u32> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

fn place_tablespaces(options: &RestoreOptions, links: &[TablespaceLink]) -> Result<Vec<PlacedTablespace>> {
    use std::os::unix::ffi::OsStrExt;
    let mut unused: Vec<&TablespaceMap> = options.tablespace_map.iter().collect();
    let mut places = vec![];
    for link in links.iter().filter(|l| !l.in_place) {
        let original = Path::new(std::ffi::OsStr::from_bytes(&link.location));
        let is_it = |old: &str| old == link.oid.to_string() || Path::new(old) == original;
        let new_place = |m: &TablespaceMap| m.readings.iter().find(|(old, _)| is_it(old)).map(|(_, new)| new.clone());
        let location = unused.iter().find_map(|m| new_place(m)).unwrap_or_else(|| original.to_owned());
        unused.retain(|m| new_place(m).is_none());
        if !location.is_absolute() {
            return Err(refused(
                "E-TABLESPACE-PATH",
                &location,
                "is not an absolute path",
                "tablespaces need the full path",
            ));
        }
        places.push(PlacedTablespace { oid: link.oid, location });
    }
    if let Some(map) = unused.first() {
        let known: Vec<String> = links
            .iter()
            .filter(|l| !l.in_place)
            .map(|l| format!("{} at {}", l.oid, String::from_utf8_lossy(&l.location)))
            .collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(EngineError::refused(
            "E-TABLESPACE-UNKNOWN",
            format!("'{}' names no tablespace of the backup", map.given),
            format!("OLD is the path or the OID of a tablespace; the backup has: {known}"),
        ));
    }
    Ok(places)
}

fn check_space(to: &Path, bytes: u64) -> Result<()> {
    let existing = to.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).map_err(|e| EngineError::file("looking at", existing, e))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = bytes.saturating_add(SPARE_BYTES);
    if free < needed {
        return Err(refused(
            "E-TARGET-SPACE",
            to,
            &format!("has {free} bytes free, the restore needs about {needed}"),
            "free space there or choose another directory; nothing was changed",
        ));
    }
    Ok(())
}
