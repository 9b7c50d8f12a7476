//! What makes a restored directory recover to the planned end: the settings in `postgresql.auto.conf`, and a
//! private file that lets `restore_command` fetch WAL without any other configuration.

use std::path::Path;

use pgark_pg::value::{Lsn, SegmentSize, SystemId, TimelineId};
use pgark_repo::crypto::{Algorithm, Key32, KeySet, hex, unhex};
use pgark_repo::names::ClusterName;
use serde::{Deserialize, Serialize};

use super::resolve::StopHow;
use super::{AccessVariables, ArchiveMode, Bound, ReadFrom, RestoreOptions, RestorePlan};
use crate::error::{EngineError, Result};

pub const RESTORE_FILE: &str = "pgark-restore.key";

/// The keys to the WAL of one repository, in hex.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalKeys {
    generation: u32,
    keys: Vec<(u32, String)>,
}

impl std::fmt::Debug for WalKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WalKeys(generation {})", self.generation)
    }
}

impl From<&KeySet> for WalKeys {
    fn from(keys: &KeySet) -> Self {
        let wal = keys.wal_keys().iter().map(|(g, k)| (*g, hex(&k.0))).collect();
        WalKeys { generation: keys.generation(), keys: wal }
    }
}

impl WalKeys {
    fn key_set(&self, encryption: Algorithm) -> Result<KeySet> {
        if encryption == Algorithm::None {
            return Ok(KeySet::unencrypted());
        }
        let bad = || EngineError::failed("E-RESTORE-FILE", "a key in the restore file does not parse", "");
        let key = |text: &str| Some(Key32(unhex(text)?.try_into().ok()?));
        let keys = self.keys.iter().map(|(g, k)| Some((*g, key(k)?))).collect::<Option<Vec<_>>>();
        Ok(KeySet::from_wal_keys(encryption, self.generation, &keys.ok_or_else(bad)?))
    }

    /// With those of `other` that are newer than all of these.
    fn with_newer(&self, other: &WalKeys) -> Self {
        let newer = other.keys.iter().filter(|(generation, _)| *generation > self.generation);
        let keys = self.keys.iter().chain(newer).cloned().collect();
        WalKeys { generation: self.generation.max(other.generation), keys }
    }
}

/// Everything `archive-get` needs; opens WAL and nothing else of the repository.
#[derive(Clone, Serialize, Deserialize)]
pub struct RestoreFile {
    pub schema: u32,
    pub repository: String,
    pub cluster: ClusterName,
    pub system_id: SystemId,
    pub segment_size: SegmentSize,
    pub planned_end: Lsn,
    pub encryption: Algorithm,
    /// `generation` and `keys`: of the first repository, and of those of `others` that have none of their own.
    #[serde(flatten)]
    keys: WalKeys,
    /// Variables that give access to the repository's store.
    #[serde(default)]
    pub access: AccessVariables,
    /// Further copies of the repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<ReadFrom>,
    /// That the plan knew of.
    #[serde(default)]
    pub newest_timeline: Option<TimelineId>,
}

impl RestoreFile {
    /// `repository`: the URL of the one to ask first.
    pub fn new(plan: &RestorePlan, options: &RestoreOptions, repository: String, keys: &KeySet) -> Self {
        let (own, others): (Vec<ReadFrom>, Vec<ReadFrom>) =
            options.places.iter().cloned().partition(|place| place.repository == repository);
        RestoreFile {
            access: own.into_iter().next().map(|place| place.access).unwrap_or_default(),
            others,
            newest_timeline: Some(plan.newest_timeline),
            schema: 1,
            repository,
            cluster: options.cluster.clone(),
            system_id: plan.record.system_id,
            segment_size: plan.record.segment_size,
            planned_end: plan.stop.read_to,
            encryption: keys.algorithm(),
            keys: keys.into(),
        }
    }

    /// The same with the keys of `repository` as they are now; those that are copies of it get the newer ones of them, too.
    pub fn with_keys(self, repository: &str, keys: &KeySet) -> Self {
        let (encryption, now) = (keys.algorithm(), WalKeys::from(keys));
        let renewed = |place: ReadFrom| {
            let own = place.keys.as_ref().unwrap_or(&self.keys);
            let keys = if place.repository == repository { now.clone() } else { own.with_newer(&now) };
            ReadFrom { keys: Some(keys), ..place }
        };
        let others = self.others.iter().cloned().map(renewed).collect();
        let keys = if self.repository == repository { now.clone() } else { self.keys.with_newer(&now) };
        RestoreFile { encryption, keys, others, ..self }
    }

    /// All repositories, the one to ask first in front.
    pub fn places(&self) -> Vec<ReadFrom> {
        let (repository, access) = (self.repository.clone(), self.access.clone());
        let first = ReadFrom { repository, access, witness: true, keys: Some(self.keys.clone()) };
        std::iter::once(first).chain(self.others.iter().cloned()).collect()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("plain data")
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| EngineError::file("reading", path, e))?;
        let bad = |e: &dyn std::fmt::Display| {
            EngineError::failed("E-RESTORE-FILE", format!("{}: {e}", path.display()), "restore the cluster again")
        };
        let file: RestoreFile = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
        if file.schema != 1 {
            return Err(bad(&"written by a newer pgark"));
        }
        Ok(file)
    }

    /// To the WAL of one of the places.
    pub fn keys_of(&self, place: &ReadFrom) -> Result<KeySet> {
        place.keys.as_ref().unwrap_or(&self.keys).key_set(self.encryption)
    }
}

/// Settings of the source that must not act on a restored copy, whatever their value.
const REMOVED: [&str; 15] = [
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "recovery_end_command",
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "standby_mode",
];

/// The new content of `postgresql.auto.conf`, from what the backup holds.
pub fn auto_conf(original: &[u8], options: &RestoreOptions, plan: &RestorePlan) -> Result<Vec<u8>> {
    let mut out = vec![];
    let mut removed: Vec<&str> = REMOVED.to_vec();
    if options.archive_mode == ArchiveMode::Off {
        removed.extend(["archive_mode", "archive_command", "archive_library"]);
    }
    for line in original.split_inclusive(|b| *b == b'\n') {
        if !removed.iter().any(|name| sets(line, name)) {
            out.extend_from_slice(line);
        }
    }
    if out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n');
    }
    out.extend_from_slice(b"# Recovery settings written by pgark restore.\n");
    for (name, value) in recovery_settings(options, plan)? {
        out.extend_from_slice(format!("{name} = {}\n", quote(&value)).as_bytes());
    }
    Ok(out)
}

/// The content of `postgresql.auto.conf` for a copy that starts by itself: no recovery settings, no archiving.
pub fn without_recovery(original: &[u8]) -> Vec<u8> {
    let removed = REMOVED.iter().chain(&["archive_mode", "archive_command", "archive_library"]);
    let keep = |line: &&[u8]| !removed.clone().any(|name| sets(line, name));
    let mut out: Vec<u8> = original.split_inclusive(|b| *b == b'\n').filter(keep).flatten().copied().collect();
    if out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n');
    }
    out.extend_from_slice(b"# Written by pgark export: a copy must not archive into the history of the original.\n");
    out.extend_from_slice(b"archive_mode = 'off'\n");
    out
}

/// Whether a line of a configuration file sets this parameter (names are case-insensitive).
pub fn sets(line: &[u8], name: &str) -> bool {
    let line = line.trim_ascii_start();
    let Some((word, rest)) = line.split_at_checked(name.len()) else { return false };
    word.eq_ignore_ascii_case(name.as_bytes()) && rest.first().is_none_or(|b| *b == b'=' || b.is_ascii_whitespace())
}

fn recovery_settings(options: &RestoreOptions, plan: &RestorePlan) -> Result<Vec<(&'static str, String)>> {
    // The keys to the WAL are of no use once recovery is over. The command runs in the data directory, so that in a
    // copy of the directory it is the copy's.
    let end = format!("rm -f {RESTORE_FILE}");
    let mut set = vec![("restore_command", restore_command(options)?), ("recovery_end_command", end)];
    match plan.stop.how {
        StopHow::Consistent => set.push(("recovery_target", "immediate".into())),
        StopHow::Record { start, bound } => {
            set.push(("recovery_target_lsn", start.to_string()));
            let inclusive = if bound == Bound::Inclusive { "on" } else { "off" };
            set.push(("recovery_target_inclusive", inclusive.into()));
        }
    }
    set.push(("recovery_target_timeline", plan.path.target().to_string()));
    set.push(("recovery_target_action", options.action.as_str().into()));
    if options.archive_mode == ArchiveMode::Off {
        set.push(("archive_mode", "off".into()));
    }
    if options.archive_mode == ArchiveMode::Held {
        set.extend(hold(plan.record.version_num));
    }
    Ok(set)
}

/// Keeps a server whose `archive_mode` is on from archiving; it marks what waits (`XLogArchiveNotify`, `pgarch.c`).
pub fn hold(version_num: u32) -> Vec<(&'static str, String)> {
    let library = (version_num >= 150_000).then(|| ("archive_library", String::new()));
    std::iter::once(("archive_command", String::new())).chain(library).collect()
}

fn restore_command(options: &RestoreOptions) -> Result<String> {
    let file = options.to.join(RESTORE_FILE);
    let (program, file) = (shell_word(&options.program)?, shell_word(&file)?);
    Ok(format!("{program} archive-get --restore-file {file} %f \"%p\""))
}

/// One word for the shell and for PostgreSQL's `%` expansion, whatever bytes the path has.
pub fn shell_word(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        EngineError::refused(
            "E-TARGET-PATH",
            format!("{} is not valid UTF-8: PostgreSQL's configuration cannot name it", path.display()),
            "choose another directory",
        )
    })?;
    Ok(format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%")))
}

/// A value for a configuration file (guc-file.l: a quote is doubled, backslash escapes).
pub fn quote(value: &str) -> String {
    let mut out = String::from("'");
    for c in value.chars() {
        match c {
            '\'' => out.push_str("''"),
            '\\' => out.push_str(r"\\"),
            '\n' => out.push_str(r"\n"),
            '\r' => out.push_str(r"\r"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_survive_shell_and_configuration() {
        let word = shell_word(Path::new("/tmp/it's 100% \\ odd\n$HOME")).unwrap();
        assert_eq!(word, "'/tmp/it'\\''s 100%% \\ odd\n$HOME'");
        assert_eq!(quote("it's \\ \n"), r"'it''s \\ \n'");
    }

    #[test]
    fn only_whole_names_are_removed() {
        assert!(sets(b"Restore_Command = 'x'\n", "restore_command"));
        assert!(sets(b"  restore_command='x'", "restore_command"));
        assert!(!sets(b"recovery_target_lsn = '1'", "recovery_target"));
        assert!(!sets(b"#restore_command = 'x'", "restore_command"));
    }
}
