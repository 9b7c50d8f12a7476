//! Settings of a recovered cluster in its `postgresql.auto.conf`, which overrules the files that it brought. Only while no server
//! writes it, or for lines that nobody else writes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use pgark_engine::error::{EngineError, Result};
use pgark_engine::restore::settings::{quote, sets};

const FILE: &str = "postgresql.auto.conf";
/// The access rules of the server that nobody but us reaches.
pub const HBA: &str = "pgark-hba.conf";
const HELD: [&str; 2] = ["archive_command", "archive_library"];
const FOR_NOBODY: &[u8] = b"synchronous_standby_names = ''";
/// What the recovery alone needed.
const RECOVERY: [&str; 8] = [
    "restore_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "recovery_target_time",
];

/// These settings, and no others of these names.
pub fn set(data: &Path, pairs: &[(&str, String)]) -> Result<()> {
    rewrite(data, |old| {
        let mut new = without(old, |line| pairs.iter().any(|(name, _)| sets(line, name)));
        for (name, value) in pairs {
            new.extend_from_slice(format!("{name} = {}\n", quote(value)).as_bytes());
        }
        new
    })
}

/// Commits wait for nobody. What the cluster brought is before it, and can still be read there.
pub fn wait_for_nobody(data: &Path) -> Result<()> {
    rewrite(data, |old| {
        let mut new = without(old, |line| line.trim_ascii_end() == FOR_NOBODY);
        new.extend_from_slice(FOR_NOBODY);
        new.push(b'\n');
        new
    })
}

pub fn forget_recovery(data: &Path) -> Result<()> {
    rewrite(data, |old| without(old, |line| RECOVERY.iter().any(|name| sets(line, name))))
}

/// Whether WAL is kept from being archived.
pub fn is_held(data: &Path) -> Result<bool> {
    Ok(read(data)?.split_inclusive(|b| *b == b'\n').any(holds))
}

/// Takes that back; what the cluster brought counts again.
pub fn release(data: &Path) -> Result<()> {
    rewrite(data, |old| without(old, holds))
}

/// `archive_command = ''`, as we and PostgreSQL write it.
fn holds(line: &[u8]) -> bool {
    HELD.iter().any(|name| sets(line, name)) && line.trim_ascii_end().ends_with(b"= ''")
}

fn without(old: &[u8], not: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut new: Vec<u8> = old.split_inclusive(|b| *b == b'\n').filter(|l| !not(l)).flatten().copied().collect();
    if new.last().is_some_and(|b| *b != b'\n') {
        new.push(b'\n');
    }
    new
}

fn read(data: &Path) -> Result<Vec<u8>> {
    let path = data.join(FILE);
    match fs::read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(vec![]),
        read => read.map_err(|e| EngineError::file("reading", path, e)),
    }
}

fn rewrite(data: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<()> {
    let old = read(data)?;
    let new = change(&old);
    if new == old { Ok(()) } else { write(data, FILE, &new) }
}

/// As a whole, durable, and of the owner of the directory.
pub fn write(data: &Path, name: &str, content: &[u8]) -> Result<()> {
    let (path, new) = (data.join(name), data.join(format!("{name}.pgark-new")));
    let failed = |e| EngineError::file("writing", &path, e);
    let owner = fs::metadata(data).map_err(failed)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(failed)?;
    let mine = file.metadata().map_err(failed)?;
    if (mine.uid(), mine.gid()) != (owner.uid(), owner.gid()) {
        fchown(&file, Some(owner.uid()), Some(owner.gid())).map_err(failed)?;
    }
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, &path).map_err(failed)?;
    File::open(data).and_then(|d| d.sync_all()).map_err(failed)
}

/// Lets everybody in who reaches the socket, which lies in a directory of the owner's alone.
pub fn open_door(data: &Path) -> Result<()> {
    write(data, HBA, b"local all all trust\n")
}

pub fn close_door(data: &Path) -> Result<()> {
    let path = data.join(HBA);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(EngineError::file("removing", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_testkit::Scratch;

    #[test]
    fn what_a_cluster_brought_counts_again_when_it_is_released() {
        let dir = Scratch::new("conf");
        let own = "# by hand\narchive_command = 'cp %p /a''b'\nwork_mem = '8MB'\nPORT = 5432\n";
        let held = format!(
            "{own}restore_command = 'x'\nrecovery_target_lsn = '0/1'\narchive_command = ''\narchive_library = ''"
        );
        dir.file(FILE, held.as_bytes(), 0o600);
        let text = || fs::read_to_string(dir.path().join(FILE)).expect("text");
        assert!(is_held(dir.path()).expect("readable"));
        forget_recovery(dir.path()).expect("written");
        set(dir.path(), &[("port", "6000".into()), ("unix_socket_directories", "/it's".into())]).expect("written");
        assert_eq!(text().matches("recovery_target").count() + text().matches("restore_command").count(), 0);
        release(dir.path()).expect("written");
        assert!(!is_held(dir.path()).expect("readable"));
        let expected = own.replace("PORT = 5432\n", "") + "port = '6000'\nunix_socket_directories = '/it''s'\n";
        assert_eq!(text(), expected);
        assert!(!is_held(&dir.path().join("nowhere")).expect("there is none"));
        dir.file(FILE, b"synchronous_standby_names = 's1'\n", 0o600);
        wait_for_nobody(dir.path()).expect("written");
        wait_for_nobody(dir.path()).expect("and once more");
        assert_eq!(text(), "synchronous_standby_names = 's1'\nsynchronous_standby_names = ''\n");
    }
}
