//! What a physical backup leaves out: the rules of PostgreSQL's own base backup (basebackup.c, `excludeDirContents`,
//! `excludeFiles`, `sendDir`), and our own files.
//!
//! Invariant: when in doubt a file is included. PostgreSQL applies its list of names at every depth; we apply the names
//! of the top directory only there, so that a user's directory of the same name further down is not lost. Unlogged
//! relations cannot be seen from one name and are the scanner's business.

use crate::major::Major;
use crate::relpath::{PathClass, classify, is_version_dir};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DirRule {
    /// Descend.
    Include,
    /// Record the directory, but nothing in it. `required_dirs` says what a restore must create inside.
    ContentsExcluded,
    /// As if it did not exist.
    Excluded,
}

const TOP_CONTENTS_EXCLUDED: [&[u8]; 8] = [
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
    b"pg_wal",
];

const TOP_FILES_EXCLUDED: [&[u8]; 11] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b"pgark-restore.toml",
    b"pgark-restore.key",
    b"pgark-recovery.log",
    b"pgark-recovery.pid",
];

/// Directories that PostgreSQL needs and that lie inside a directory whose contents are excluded.
pub fn required_dirs(major: Major) -> &'static [&'static str] {
    if major >= Major::V17 { &["pg_wal/archive_status", "pg_wal/summaries"] } else { &["pg_wal/archive_status"] }
}

/// The rule for the directory `path`, relative to the data directory. Under a tablespace only the directory of `major`
/// belongs to this cluster; another version's is left by a `pg_upgrade` or owned by another cluster.
pub fn dir_rule(path: &[u8], major: Major) -> DirRule {
    let mut parent_excluded = false;
    let mut parts = path.split(|byte| *byte == b'/').enumerate();
    let Some((_, top)) = parts.next() else {
        return DirRule::Include;
    };
    let contents_excluded = TOP_CONTENTS_EXCLUDED.contains(&top);
    parent_excluded |= is_temp(top) || is_old_wal(top);
    for (depth, part) in parts {
        let foreign_version =
            depth == 2 && top == b"pg_tblspc" && is_version_dir(part) && part != major.tablespace_dir().as_bytes();
        parent_excluded |= contents_excluded || foreign_version || is_temp(part);
    }
    match (parent_excluded, contents_excluded) {
        (true, _) => DirRule::Excluded,
        (false, true) => DirRule::ContentsExcluded,
        (false, false) => DirRule::Include,
    }
}

/// Whether the file `path`, relative to the data directory, is left out. True also for every file below an excluded
/// directory, except that the tablespace rule of `dir_rule` is not repeated here.
pub fn file_excluded(path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/');
    let top = parts.next().unwrap_or_default();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let is_top = parts.next().is_none();
    if is_top {
        return TOP_FILES_EXCLUDED.contains(&top) || is_old_wal(top) || excluded_anywhere(name);
    }
    TOP_CONTENTS_EXCLUDED.contains(&top)
        || is_old_wal(top)
        || path.split(|byte| *byte == b'/').any(is_temp)
        || excluded_anywhere(name)
        || classify(path) == PathClass::TempRelation
}

/// WAL that a restore over an existing cluster put aside.
fn is_old_wal(name: &[u8]) -> bool {
    name.starts_with(b"pgark-old-wal.")
}

/// `PG_TEMP_FILE_PREFIX`: sort files, materialised results, and the directory they lie in.
fn is_temp(name: &[u8]) -> bool {
    name.starts_with(b"pgsql_tmp")
}

/// The relation cache is rebuilt at start; its temporary files have the same prefix. `.DS_Store` as PostgreSQL 17 does.
fn excluded_anywhere(name: &[u8]) -> bool {
    name.starts_with(b"pg_internal.init") || is_temp(name) || name == b".DS_Store"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_follow_the_base_backup() {
        for (path, rule) in [
            ("base", DirRule::Include),
            ("base/5", DirRule::Include),
            ("pg_wal", DirRule::ContentsExcluded),
            ("pg_wal/archive_status", DirRule::Excluded),
            ("pg_replslot", DirRule::ContentsExcluded),
            ("pg_replslot/standby1", DirRule::Excluded),
            ("pg_subtrans", DirRule::ContentsExcluded),
            ("pg_stat", DirRule::Include),
            ("pg_logical/snapshots", DirRule::Include),
            ("base/pgsql_tmp", DirRule::Excluded),
            ("base/pgsql_tmp/pgsql_tmp12.0.fileset", DirRule::Excluded),
            ("pg_tblspc/16390", DirRule::Include),
            ("pg_tblspc/16390/PG_15_202209061", DirRule::Include),
            ("pg_tblspc/16390/PG_15_202209061/5", DirRule::Include),
            ("pg_tblspc/16390/PG_14_202107181", DirRule::Excluded),
            ("pg_tblspc/16390/PG_14_202107181/5", DirRule::Excluded),
            ("mine/pg_notify", DirRule::Include),
        ] {
            assert_eq!(dir_rule(path.as_bytes(), Major::V15), rule, "{path}");
        }
    }

    #[test]
    fn files_follow_the_base_backup() {
        for path in [
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "pgark-restore.toml",
            "pgark-restore.key",
            "pgark-recovery.log",
            "pgark-recovery.pid",
            "pgark-old-wal.1",
            "pgark-old-wal.1/000000010000000000000001",
            "base/5/pg_internal.init",
            "global/pg_internal.init.123",
            "base/pgsql_tmp/pgsql_tmp7.0",
            "base/5/t3_16384_fsm",
            "pg_wal/000000010000000000000001",
            "pg_notify/0000",
            "pg_tblspc/1/PG_15_202209061/pgsql_tmp/pgsql_tmp1.2",
            "base/5/.DS_Store",
        ] {
            assert!(file_excluded(path.as_bytes()), "{path}");
        }
        for path in [
            "PG_VERSION",
            "postgresql.auto.conf",
            "current_logfiles",
            "global/pg_control",
            "base/5/16384",
            "base/5/16384_init",
            "pg_xact/0000",
            "conf.d/postmaster.opts",
            "mine/backup_label",
            "backup_label.old",
            "standby.signal",
            "global/pg_filenode.map",
            "pg_stat/pgstat.stat",
            "pgark-restore.toml.mine",
        ] {
            assert!(!file_excluded(path.as_bytes()), "{path}");
        }
    }
}
