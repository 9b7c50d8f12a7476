//! Where things are in a repository. The layout is made for people too: `ls` shows clusters, backups and WAL.

use std::fmt;

use pgark_pg::value::{SegmentName, SegmentSize, SystemId, TimelineId};
use serde::{Deserialize, Serialize};

use crate::audit::JournalName;
use crate::catalog::BackupKind;
use crate::crypto::ObjectKind;
use crate::error::{RepoError, Result};
use crate::report::ReportId;
use crate::store::{ObjectName, StoreError};

/// The name people give a cluster: letters, digits, `.`, `_`, `-`; 1 to 64 bytes; no leading dot or dash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    pub fn parse(s: &str) -> Result<Self> {
        let good = (1..=64).contains(&s.len())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !s.starts_with(['.', '-']);
        if good {
            Ok(ClusterName(s.to_owned()))
        } else {
            Err(RepoError::Invalid { what: "cluster name", value: s.escape_debug().to_string() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterName {
    type Error = RepoError;
    fn try_from(s: String) -> Result<Self> {
        ClusterName::parse(&s)
    }
}

impl From<ClusterName> for String {
    fn from(c: ClusterName) -> String {
        c.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `YYYYMMDD-HHMMSS` in UTC and a letter for what it is: unique within a cluster, sorted by time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    pub fn new(at: jiff::Timestamp, letter: char) -> Self {
        let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
        BackupId(format!("{}{letter}", utc.strftime("%Y%m%d-%H%M%S")))
    }

    pub fn parse(s: &str) -> Result<Self> {
        let b = s.as_bytes();
        let digits = |part: Option<&[u8]>| part.is_some_and(|p| p.iter().all(u8::is_ascii_digit));
        let good = b.len() == 16
            && digits(b.get(..8))
            && b.get(8) == Some(&b'-')
            && digits(b.get(9..15))
            && b.get(15).is_some_and(|l| b"FILSD".contains(l));
        if good {
            Ok(BackupId(s.to_owned()))
        } else {
            Err(RepoError::Invalid { what: "backup id", value: s.escape_debug().to_string() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// By its letter.
    pub fn kind(&self) -> BackupKind {
        match self.0.as_bytes().last() {
            Some(b'L') => BackupKind::Logical,
            Some(b'D') => BackupKind::Files,
            Some(b'S') => BackupKind::System,
            _ => BackupKind::Physical,
        }
    }

    /// The moment in the id, the part that orders ids; None for digits that are no date.
    pub fn time(&self) -> Option<jiff::Timestamp> {
        let digits = self.0.get(..15)?;
        let civil = jiff::civil::DateTime::strptime("%Y%m%d-%H%M%S", digits).ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    }
}

impl TryFrom<String> for BackupId {
    type Error = RepoError;
    fn try_from(s: String) -> Result<Self> {
        BackupId::parse(&s)
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn object(path: String) -> ObjectName {
    ObjectName::parse(&path).expect("built from validated parts")
}

pub const KEYRING: &str = "keyring";
pub const CLUSTERS: &str = "clusters";
pub const AUDIT: &str = "audit";

pub fn cluster_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}")
}

pub fn catalog_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/catalog")
}

/// Whether an object is a version of some cluster's catalog, or a copy of one.
pub fn is_of_catalog(object: &str) -> bool {
    let mut parts = object.strip_prefix(&format!("{CLUSTERS}/")).into_iter().flat_map(|rest| rest.split('/')).skip(1);
    matches!(parts.next(), Some("catalog" | "catalog-mirror"))
}

pub fn backups_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/backups")
}

pub fn backup_dir(cluster: &ClusterName, id: &BackupId) -> String {
    format!("{CLUSTERS}/{cluster}/backups/{id}")
}

pub fn reports_dir(cluster: &ClusterName) -> String {
    format!("{CLUSTERS}/{cluster}/reports")
}

pub fn report(cluster: &ClusterName, id: &ReportId) -> ObjectName {
    object(format!("{}/{id}", reports_dir(cluster)))
}

pub fn audit_journal(journal: &JournalName) -> String {
    format!("{AUDIT}/{journal}")
}

/// 256 records lie in one directory, so that the end of a journal is found with two short listings.
pub fn audit_record(journal: &JournalName, number: u64) -> ObjectName {
    let digits = format!("{number:016x}");
    let dir = digits.get(..14).unwrap_or_default();
    object(format!("{}/{dir}/{digits}", audit_journal(journal)))
}

/// Whether an object of the trail lies in the directory of a journal.
pub fn is_below_a_journal(name: &ObjectName) -> bool {
    let mut parts = name.as_str().split('/').skip(1);
    parts.next().is_some_and(|journal| JournalName::parse(journal).is_ok()) && parts.next().is_some()
}

/// The number of a record from its name.
pub fn audit_number(name: &ObjectName) -> Option<u64> {
    match name.as_str().split('/').collect::<Vec<_>>().as_slice() {
        [AUDIT, journal, dir, digits] => {
            let number = u64::from_str_radix(digits, 16).ok().filter(|n| format!("{n:016x}") == **digits)?;
            (digits.starts_with(dir) && dir.len() == 14 && JournalName::parse(journal).is_ok()).then_some(number)
        }
        _ => None,
    }
}

pub fn manifest(cluster: &ClusterName, id: &BackupId) -> ObjectName {
    object(format!("{}/manifest", backup_dir(cluster, id)))
}

pub fn record(cluster: &ClusterName, id: &BackupId) -> ObjectName {
    object(format!("{}/record", backup_dir(cluster, id)))
}

pub fn pack(cluster: &ClusterName, id: &BackupId, number: u32) -> ObjectName {
    object(format!("{}/packs/{number:06}", backup_dir(cluster, id)))
}

/// The number of a pack from the last part of its name.
pub fn pack_number(last_part: &str) -> Option<u32> {
    (last_part.len() >= 6 && last_part.bytes().all(|b| b.is_ascii_digit())).then(|| last_part.parse().ok())?
}

/// The number of the pack that an object is or belongs to.
pub fn principal_pack_of(name: &ObjectName) -> Option<u32> {
    let (dir, last) = name.as_str().rsplit_once('/')?;
    dir.ends_with("/packs").then(|| pack_number(principal(last)))?
}

/// The number of a pack from its whole name; None for objects that are no packs.
pub fn pack_of(name: &ObjectName) -> Option<u32> {
    let (dir, last) = name.as_str().rsplit_once('/')?;
    dir.ends_with("/packs").then(|| pack_number(last))?
}

/// What an object is, by its name: objects of backups and of WAL, which are written once and stay. None for the
/// versions of registers, which come and go, and for what is none of ours.
pub fn lasting_kind(name: &ObjectName) -> Option<ObjectKind> {
    if principal(name.as_str()) != name.as_str() {
        return None;
    }
    let parts: Vec<&str> = name.as_str().split('/').collect();
    match parts.as_slice() {
        [CLUSTERS, _, "backups", _, "packs", _] => Some(ObjectKind::Pack),
        [CLUSTERS, _, "backups", _, "manifest"] => Some(ObjectKind::Manifest),
        [CLUSTERS, _, "backups", _, "record"] => Some(ObjectKind::BackupRecord),
        [CLUSTERS, _, "reports", id] if ReportId::parse(id).is_ok() => Some(ObjectKind::Report),
        [AUDIT, ..] => audit_number(name).map(|_| ObjectKind::Audit),
        [CLUSTERS, _, "wal", _, "head" | "head-mirror", _] => None,
        [CLUSTERS, _, "wal", _, "history", _] => Some(ObjectKind::WalSideFile),
        [CLUSTERS, _, "wal", _, "conflicts", _] => Some(ObjectKind::WalSegment),
        [CLUSTERS, _, "wal", _, _, _, file] if file.ends_with(".backup") => Some(ObjectKind::WalSideFile),
        [CLUSTERS, _, "wal", _, _, _, _] => Some(ObjectKind::WalSegment),
        _ => None,
    }
}

/// The cluster that an object belongs to.
pub fn cluster_of(name: &ObjectName) -> Option<&str> {
    let (top, rest) = name.as_str().split_once('/')?;
    rest.split_once('/').map(|(cluster, _)| cluster).filter(|_| top == CLUSTERS || top == AUDIT)
}

/// The name of a later seal of an object: the same content, sealed anew under a newer generation of the key.
pub fn later_seal(name: &ObjectName, generation: u32) -> Result<ObjectName> {
    Ok(ObjectName::parse(&format!("{name}.g{generation}"))?)
}

/// The object of which this names a later seal, and the generation of that.
pub fn split_seal(name: &ObjectName) -> Option<(ObjectName, u32)> {
    let (object, number) = seal_suffix(name.as_str())?;
    let object = ObjectName::parse(object).ok()?;
    lasting_kind(&object).map(|_| (object, number))
}

fn seal_suffix(name: &str) -> Option<(&str, u32)> {
    let (object, generation) = name.rsplit_once(".g")?;
    let number = generation.parse().ok().filter(|g: &u32| *g > 1 && g.to_string() == generation)?;
    Some((object, number))
}

const PARITY: &str = ".parity";
const HEALED: &str = ".healed";

/// Where the parity of an object lies: beside it. `InvalidName` when there is no room for the longer name.
pub fn parity(name: &ObjectName) -> std::result::Result<ObjectName, StoreError> {
    ObjectName::parse(&format!("{name}{PARITY}"))
}

/// The name of the object whose parity this is.
pub fn protected_by(name: &str) -> Option<&str> {
    name.strip_suffix(PARITY).filter(|n| !n.ends_with('/'))
}

/// Where a repair keeps the healed bytes of an object while it takes the damaged ones away.
pub fn healed(name: &ObjectName) -> std::result::Result<ObjectName, StoreError> {
    ObjectName::parse(&format!("{name}{HEALED}"))
}

/// The name of the object of which these are healed bytes.
pub fn healed_from(name: &str) -> Option<&str> {
    name.strip_suffix(HEALED).filter(|n| !n.ends_with('/'))
}

/// The object that this one lies beside, or beside a seal of which, belongs to and goes with; itself where it is no
/// companion.
pub fn principal(name: &str) -> &str {
    let Some(beside) = protected_by(name).or_else(|| healed_from(name)) else { return name };
    seal_suffix(beside).map_or(beside, |(object, _)| object)
}

/// Whether an object gets parity: what backups and WAL consist of. Registers have their mirrors.
pub fn deserves_parity(name: &ObjectName) -> bool {
    let object = split_seal(name).map_or_else(|| name.clone(), |(object, _)| object);
    let parts: Vec<&str> = object.as_str().split('/').collect();
    match parts.as_slice() {
        [CLUSTERS, _, "backups", _, file] => matches!(*file, "manifest" | "record"),
        [CLUSTERS, _, "backups", _, "packs", file] => pack_number(file).is_some(),
        [CLUSTERS, _, "wal", _, "history", file] => file.ends_with(".history"),
        [CLUSTERS, _, "wal", _, timeline, _, file] => timeline.len() == 8 && principal(file) == *file,
        _ => false,
    }
}

/// All WAL of one system identifier of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalPlace {
    pub cluster: ClusterName,
    pub system_id: SystemId,
}

impl WalPlace {
    pub fn dir(&self) -> String {
        format!("{CLUSTERS}/{}/wal/{}", self.cluster, self.system_id)
    }

    pub fn head_dir(&self) -> String {
        format!("{}/head", self.dir())
    }

    pub fn timeline_dir(&self, timeline: TimelineId) -> String {
        format!("{}/{}", self.dir(), timeline.hex())
    }

    /// `file` is a checked WAL file name of this timeline (a segment, `.partial` or `.backup`).
    pub fn file(&self, timeline: TimelineId, file: &str) -> Result<ObjectName> {
        let log = file.get(8..16).unwrap_or("other");
        Ok(ObjectName::parse(&format!("{}/{log}/{file}", self.timeline_dir(timeline)))?)
    }

    /// The first copy of a segment has its plain name. Later ones, with a number, replaced one that had been pushed
    /// before PostgreSQL had finished the segment.
    pub fn segment(&self, name: &SegmentName, size: SegmentSize, copy: u32) -> Result<ObjectName> {
        let plain = name.format(size);
        self.file(name.timeline, &if copy == 0 { plain } else { format!("{plain}.r{copy}") })
    }

    pub fn history(&self, timeline: TimelineId) -> ObjectName {
        object(format!("{}/history/{}.history", self.dir(), timeline.hex()))
    }

    pub fn conflict(&self, file: &str, fingerprint: &str) -> Result<ObjectName> {
        Ok(ObjectName::parse(&format!("{}/conflicts/{file}-{fingerprint}", self.dir()))?)
    }
}

/// The segment and its copy from the last part of an object's name.
pub fn segment_copy(last_part: &str, size: SegmentSize) -> Option<(SegmentName, u32)> {
    let (plain, copy) = split_copy(last_part);
    Some((SegmentName::parse(plain, size).ok()?, copy))
}

/// The WAL file's name without the number of the copy.
pub fn without_copy(last_part: &str) -> &str {
    split_copy(last_part).0
}

fn split_copy(last_part: &str) -> (&str, u32) {
    let copy = last_part.split_once(".r").and_then(|(plain, n)| {
        let copy = n.parse().ok().filter(|c: &u32| *c > 0 && c.to_string() == n)?;
        Some((plain, copy))
    });
    copy.unwrap_or((last_part, 0))
}

/// Segments in one `xlogid` directory; here so that layout decisions stay in this file.
pub fn segments_per_dir(size: SegmentSize) -> u64 {
    size.per_log_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", ".x", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(ClusterName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ClusterName::parse("prod-1.eu_west").is_ok());
        for bad in ["", "20260101-000000", "20260101-000000X", "../../etc/passwdF", "20260101_000000F"] {
            assert!(BackupId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_later_seal_is_known_by_its_name() {
        let dir = "clusters/main/backups/20260822-031500F";
        let wal = "clusters/main/wal/7/00000001/00000000/000000010000000000000003";
        let of = |name: &str| split_seal(&object(name.to_owned()));
        for (name, kind) in [
            (format!("{dir}/packs/000001"), ObjectKind::Pack),
            (format!("{dir}/manifest"), ObjectKind::Manifest),
            (format!("{dir}/record"), ObjectKind::BackupRecord),
            (wal.to_owned(), ObjectKind::WalSegment),
            (format!("{wal}.r2"), ObjectKind::WalSegment),
            (format!("{wal}.partial"), ObjectKind::WalSegment),
            (format!("{wal}.00000028.backup"), ObjectKind::WalSideFile),
            ("clusters/main/wal/7/history/00000002.history".to_owned(), ObjectKind::WalSideFile),
            ("clusters/main/wal/7/conflicts/000000010000000000000003-0123".to_owned(), ObjectKind::WalSegment),
        ] {
            let name = object(name);
            assert_eq!((lasting_kind(&name), split_seal(&name)), (Some(kind), None), "{name}");
            assert_eq!(split_seal(&later_seal(&name, 12).unwrap()), Some((name, 12)));
        }
        for other in [".g1", ".g0", ".g02", ".g+2", ".g", ".gx", ".g4294967296"] {
            assert_eq!(of(&format!("{wal}{other}")), None, "{other}");
        }
        for register in ["keyring/0000000000000001", "clusters/main/catalog/1", "clusters/main/wal/7/head/1", "probe/1"]
        {
            assert_eq!((lasting_kind(&object(register.into())), of(&format!("{register}.g2"))), (None, None));
        }
    }

    #[test]
    fn backup_ids_carry_the_utc_time() {
        let id = BackupId::new("2026-08-22T03:15:00Z".parse().unwrap(), 'F');
        assert_eq!(id.as_str(), "20260822-031500F");
        assert_eq!(BackupId::parse(id.as_str()).unwrap(), id);
        assert_eq!(id.time(), Some("2026-08-22T03:15:00Z".parse().unwrap()));
        assert_eq!(BackupId::parse("20269922-031500F").unwrap().time(), None);
    }
}
