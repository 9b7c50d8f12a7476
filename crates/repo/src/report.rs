//! Reports: what a restore or a validation found, beside the backups. One small sealed object each, written once.
//!
//! Invariant: a report is in no list: that one was taken away cannot be seen here. What is there is authenticated before it is
//! believed.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypto::ObjectKind;
use crate::error::{RepoError, Result};
use crate::limits::REPORT_BYTES_MAX;
use crate::names::{self, BackupId, ClusterName};
use crate::repository::Repository;
use crate::store::{ObjectName, StoreError};
use crate::stream::{Fingerprint, StreamReader, open_bytes, seal_bytes};

pub const SCHEMA: u32 = 1;

/// `YYYYMMDD-HHMMSS-` in UTC and eight hex digits: sorted by time, and no two alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReportId(String);

impl ReportId {
    fn new(at: Timestamp, random: [u8; 4]) -> Self {
        let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
        ReportId(format!("{}-{}", utc.strftime("%Y%m%d-%H%M%S"), crate::crypto::hex(&random)))
    }

    pub fn parse(s: &str) -> Result<Self> {
        let b = s.as_bytes();
        let all = |part: Option<&[u8]>, is: fn(&u8) -> bool| part.is_some_and(|p| p.iter().all(is));
        let is_hex = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c);
        let good = b.len() == 24
            && all(b.get(..8), u8::is_ascii_digit)
            && b.get(8) == Some(&b'-')
            && all(b.get(9..15), u8::is_ascii_digit)
            && b.get(15) == Some(&b'-')
            && all(b.get(16..), is_hex);
        if good {
            Ok(ReportId(s.to_owned()))
        } else {
            Err(RepoError::Invalid { what: "report id", value: s.escape_debug().to_string() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The moment in the id; None for digits that are no date.
    pub fn time(&self) -> Option<Timestamp> {
        let civil = jiff::civil::DateTime::strptime("%Y%m%d-%H%M%S", self.0.get(..15)?).ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    }
}

impl TryFrom<String> for ReportId {
    type Error = RepoError;
    fn try_from(s: String) -> Result<Self> {
        ReportId::parse(&s)
    }
}

impl From<ReportId> for String {
    fn from(id: ReportId) -> String {
        id.0
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What it asks of people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Everything was as it should be.
    Info,
    /// Something could not be checked.
    Warning,
    /// What was restored is not what was backed up: somebody has to be told.
    Incident,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredReport {
    pub schema: u32,
    pub id: ReportId,
    pub cluster: ClusterName,
    /// What was done: `restore`, `restored`, `validate`, `drill`, `recover`.
    pub what: String,
    pub severity: Severity,
    pub written: Timestamp,
    /// Of the program that wrote it.
    pub program: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// One line for people.
    pub summary: String,
    /// As the operation wrote it.
    pub report: serde_json::Value,
}

/// What a report says, before it has an id.
#[derive(Clone, Debug)]
pub struct NewReport {
    pub what: &'static str,
    pub severity: Severity,
    pub backup: Option<BackupId>,
    pub database: Option<String>,
    pub summary: String,
    pub report: serde_json::Value,
}

impl StoredReport {
    /// Writes a report; durable when this returns.
    pub fn store(repo: &Repository, cluster: &ClusterName, new: NewReport, at: Timestamp) -> Result<Self> {
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|e| RepoError::System { what: "random numbers", source: std::io::Error::other(e.to_string()) })?;
        let id = ReportId::new(at, random);
        let name = names::report(cluster, &id);
        let report = StoredReport {
            schema: SCHEMA,
            id,
            cluster: cluster.clone(),
            what: new.what.into(),
            severity: new.severity,
            written: at,
            program: concat!("pgark ", env!("CARGO_PKG_VERSION")).into(),
            backup: new.backup,
            database: new.database,
            summary: new.summary,
            report: new.report,
        };
        let text = serde_json::to_vec(&report).map_err(|e| RepoError::corrupt(&name, e))?;
        if text.len() > REPORT_BYTES_MAX {
            return Err(RepoError::Invalid { what: "report", value: format!("{} bytes", text.len()) });
        }
        let sealed = seal_bytes(repo.keys(), ObjectKind::Report, &name, &text)?;
        let mut writer = repo.store().create(&name)?;
        writer.write(&sealed)?;
        writer.finish()?;
        Ok(report)
    }

    /// Reads it; also how many bytes it takes.
    pub fn load(repo: &Repository, cluster: &ClusterName, id: &ReportId) -> Result<(Self, Fingerprint)> {
        let name = names::report(cluster, id);
        let mut reader = StreamReader::open(repo.store().clone(), repo.keys(), ObjectKind::Report, &name)?;
        let text = reader.read_to_end(REPORT_BYTES_MAX)?;
        Ok((Self::parse(&text, &name, cluster, id)?, reader.fingerprint()))
    }

    /// Whether these bytes, without the tail of a later seal, are the report of this name.
    ///
    /// # Errors
    /// When they are not.
    pub fn check(repo: &Repository, cluster: &ClusterName, name: &ObjectName, sealed: Vec<u8>) -> Result<()> {
        let id = ReportId::parse(name.basename())?;
        let text = open_bytes(repo.keys(), ObjectKind::Report, name, sealed, REPORT_BYTES_MAX)?;
        Self::parse(&text, name, cluster, &id).map(drop)
    }

    fn parse(text: &[u8], name: &ObjectName, cluster: &ClusterName, id: &ReportId) -> Result<Self> {
        let report: StoredReport = serde_json::from_slice(text).map_err(|e| RepoError::corrupt(name, e))?;
        if report.schema != SCHEMA {
            return Err(RepoError::Unsupported { object: name.to_string(), found: report.schema, known: SCHEMA });
        }
        if report.id != *id || report.cluster != *cluster {
            return Err(RepoError::corrupt(name, "another report"));
        }
        Ok(report)
    }
}

/// All that are there, the oldest first.
pub fn list(repo: &Repository, cluster: &ClusterName) -> Result<Vec<ReportId>> {
    let dir = names::reports_dir(cluster);
    let mut found = vec![];
    repo.store().list(&dir, &mut |stat| {
        let last = stat.name.as_str().rsplit('/').next().unwrap_or_default();
        found.extend(ReportId::parse(last).ok());
        Ok(())
    })?;
    found.sort();
    found.dedup();
    Ok(found)
}

/// Removes one, with all of its seals. It need not be there.
pub fn remove(repo: &Repository, cluster: &ClusterName, id: &ReportId) -> Result<()> {
    match repo.store().delete(&names::report(cluster, id)) {
        Err(e) if !StoreError::is_not_found(&e) => Err(e.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sorted_by_time_and_nothing_else_is_one() {
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        let early = ReportId::new(at("2026-08-22T03:15:00Z"), [0xff; 4]);
        let late = ReportId::new(at("2026-08-22T03:15:01Z"), [0; 4]);
        assert_eq!(early.as_str(), "20260822-031500-ffffffff");
        assert!(early < late && early.time() == Some(at("2026-08-22T03:15:00Z")));
        assert_eq!(ReportId::parse(late.as_str()).unwrap(), late);
        for wrong in [
            "",
            "latest",
            "20260822-031500F",
            "20260822-031500-FFFFFFFF",
            "20260822-031500-ffffffff.g2",
            "../../x/x-aaaaaaaaaaaaaaaa",
        ] {
            assert!(ReportId::parse(wrong).is_err(), "{wrong}");
        }
    }
}
