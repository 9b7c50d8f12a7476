//! The one table of PostgreSQL major versions that we support.
//!
//! Invariant: everything that differs by major and fits in a table is here. An unknown version is `None`, never the
//! nearest known one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In serde its plain number, for example 15.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum Major {
    V13,
    V14,
    V15,
    V16,
    V17,
    V18,
}

struct Row {
    major: Major,
    number: u32,
    /// `XLOG_PAGE_MAGIC` (access/xlog_internal.h)
    wal_magic: u16,
    /// `PG_CONTROL_VERSION` (catalog/pg_control.h)
    control_version: u32,
    /// `CATALOG_VERSION_NO` (catalog/catversion.h)
    catalog_version: u32,
}

const fn row(major: Major, number: u32, wal_magic: u16, control_version: u32, catalog_version: u32) -> Row {
    Row { major, number, wal_magic, control_version, catalog_version }
}

const TABLE: [Row; 6] = [
    row(Major::V13, 13, 0xD106, 1300, 202_007_201),
    row(Major::V14, 14, 0xD10D, 1300, 202_107_181),
    row(Major::V15, 15, 0xD110, 1300, 202_209_061),
    row(Major::V16, 16, 0xD113, 1300, 202_307_071),
    row(Major::V17, 17, 0xD116, 1700, 202_406_281),
    row(Major::V18, 18, 0xD118, 1800, 202_506_291),
];

impl Major {
    /// Every supported version, oldest first.
    pub const ALL: [Major; 6] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    fn row(self) -> &'static Row {
        let [v13, v14, v15, v16, v17, v18] = &TABLE;
        match self {
            Self::V13 => v13,
            Self::V14 => v14,
            Self::V15 => v15,
            Self::V16 => v16,
            Self::V17 => v17,
            Self::V18 => v18,
        }
    }

    fn find(test: impl Fn(&Row) -> bool) -> Option<Self> {
        TABLE.iter().find(|row| test(row)).map(|row| row.major)
    }

    /// From `server_version_num`, for example 150018.
    pub fn from_version_num(version: u32) -> Option<Self> {
        Self::find(|row| row.number == version / 10_000)
    }

    /// From a plain major number, for example 15 (the content of `PG_VERSION`).
    pub fn from_number(number: u32) -> Option<Self> {
        Self::find(|row| row.number == number)
    }

    pub fn from_wal_magic(magic: u16) -> Option<Self> {
        Self::find(|row| row.wal_magic == magic)
    }

    /// 13 to 16 share one control version, so the catalog version decides, and both must fit.
    pub fn from_control_version(control: u32, catalog: u32) -> Option<Self> {
        Self::find(|row| row.control_version == control && row.catalog_version == catalog)
    }

    pub fn number(self) -> u32 {
        self.row().number
    }

    pub fn wal_magic(self) -> u16 {
        self.row().wal_magic
    }

    pub fn control_version(self) -> u32 {
        self.row().control_version
    }

    pub fn catalog_version(self) -> u32 {
        self.row().catalog_version
    }

    /// The directory this version uses in each tablespace, for example `PG_15_202209061`.
    pub fn tablespace_dir(self) -> String {
        format!("PG_{}_{}", self.number(), self.catalog_version())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL {0} is not supported (13 to 18 are)")]
pub struct UnsupportedMajor(pub u32);

impl TryFrom<u32> for Major {
    type Error = UnsupportedMajor;

    fn try_from(number: u32) -> Result<Self, UnsupportedMajor> {
        Self::from_number(number).ok_or(UnsupportedMajor(number))
    }
}

impl From<Major> for u32 {
    fn from(major: Major) -> u32 {
        major.number()
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lookup_finds_its_own_row() {
        for major in Major::ALL {
            assert_eq!(major.row().major, major);
            assert_eq!(Major::from_version_num(major.number() * 10_000 + 9), Some(major));
            assert_eq!(Major::from_number(major.number()), Some(major));
            assert_eq!(Major::from_wal_magic(major.wal_magic()), Some(major));
            assert_eq!(Major::from_control_version(major.control_version(), major.catalog_version()), Some(major));
        }
        assert_eq!(Major::V15.tablespace_dir(), "PG_15_202209061");
    }

    #[test]
    fn unknown_versions_are_not_guessed() {
        assert_eq!(Major::from_version_num(90_624), None);
        assert_eq!(Major::from_version_num(190_000), None);
        assert_eq!(Major::from_wal_magic(0xD121), None);
        assert_eq!(Major::from_control_version(1300, 202_406_281), None);
    }
}
