//! Settings of a repository's room, classes and prices.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use pgark_engine::capacity::cost::{Classes, Prices};
use pgark_engine::capacity::{self, FreeLow, SpaceRules};
use serde::{Deserialize, Serialize};

use super::repo_url::Scheme;
use super::schema::RepoSection;
use super::units::{ByteSize, Span, serde_as_text};

/// `"2TB"` or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    Unlimited,
    Bytes(ByteSize),
}

/// `"10%"` or `"50GB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpace {
    Percent(u8),
    Bytes(ByteSize),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PriceSection {
    /// As it is printed: "EUR".
    pub currency: String,
    /// Per GB and month, by class.
    pub storage: BTreeMap<String, f64>,
    /// Per GB that is read, by class.
    #[serde(default)]
    pub retrieval: BTreeMap<String, f64>,
    /// Per 1000
    #[serde(default)]
    pub write_requests: f64,
    /// Per 1000
    #[serde(default)]
    pub read_requests: f64,
    /// Per GB that leaves the cloud
    #[serde(default)]
    pub egress: f64,
}

/// What a repository's settings say about room and cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpaceSettings {
    pub rules: SpaceRules,
    /// By age in days, ascending.
    pub class_after: Vec<(u32, String)>,
    pub allow_archive_classes: bool,
    pub prices: Option<String>,
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "unlimited" {
            return Ok(Capacity::Unlimited);
        }
        text.parse().map(Capacity::Bytes).map_err(|why| format!("{why}, nor \"unlimited\""))
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Capacity::Unlimited => f.write_str("unlimited"),
            Capacity::Bytes(size) => size.fmt(f),
        }
    }
}

impl FromStr for FreeSpace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            return text.parse().map(FreeSpace::Bytes).map_err(|why| format!("{why}, nor a share such as \"10%\""));
        };
        let number = percent.trim().parse().ok().filter(|p| *p <= 100);
        number.map(FreeSpace::Percent).ok_or_else(|| format!("'{text}' is not a share such as \"10%\""))
    }
}

impl fmt::Display for FreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreeSpace::Percent(percent) => write!(f, "{percent}%"),
            FreeSpace::Bytes(size) => size.fmt(f),
        }
    }
}

serde_as_text!(Capacity);
serde_as_text!(FreeSpace);

impl SpaceSettings {
    pub fn of(section: &RepoSection) -> Self {
        let default = SpaceRules::default();
        let rules = SpaceRules {
            capacity: match section.capacity {
                None => capacity::Capacity::AsTheStoreTells,
                Some(Capacity::Unlimited) => capacity::Capacity::Unlimited,
                Some(Capacity::Bytes(size)) => capacity::Capacity::Bytes(size.0),
            },
            warn_free: match section.warn_free {
                None => default.warn_free,
                Some(FreeSpace::Percent(percent)) => FreeLow::Percent(percent),
                Some(FreeSpace::Bytes(size)) => FreeLow::Bytes(size.0),
            },
            warn_days: section.warn_days.unwrap_or(default.warn_days),
            wal_reserve: section.wal_reserve.map(|size| size.0),
        };
        let mut class_after: Vec<(u32, String)> =
            section.class_after.iter().map(|(age, class)| (days(*age), class.clone())).collect();
        class_after.sort();
        SpaceSettings {
            rules,
            class_after,
            allow_archive_classes: section.allow_archive_classes,
            prices: section.prices.clone(),
        }
    }

    pub fn classes(&self, scheme: Scheme, written: Option<&str>) -> Classes {
        let written = written.map_or_else(|| default_class(scheme).to_owned(), str::to_owned);
        Classes { written, after: self.class_after.clone() }
    }
}

/// Whole days; validation has seen that it is no less and no part of one.
fn days(age: Span) -> u32 {
    u32::try_from(age.0.as_secs() / 86_400).unwrap_or(u32::MAX)
}

/// The class of what is written without naming one.
pub fn default_class(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::S3 | Scheme::Gcs | Scheme::File | Scheme::Sftp => "STANDARD",
        Scheme::Azure => "Hot",
    }
}

/// Classes in which objects can be read at once, as the clouds name them.
pub fn immediate_classes(scheme: Scheme) -> &'static [&'static str] {
    match scheme {
        Scheme::S3 => &["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"],
        Scheme::Azure => &["Cool", "Cold"],
        Scheme::Gcs => &["NEARLINE", "COLDLINE", "ARCHIVE"],
        Scheme::File | Scheme::Sftp => &[],
    }
}

/// Classes whose objects must be restored, for hours, before they can be read.
pub fn archive_classes(scheme: Scheme) -> &'static [&'static str] {
    match scheme {
        Scheme::S3 => &["GLACIER", "DEEP_ARCHIVE"],
        Scheme::Azure => &["Archive"],
        Scheme::Gcs | Scheme::File | Scheme::Sftp => &[],
    }
}

/// Why nothing can be written in this class: new objects include the catalog and the key ring.
pub fn refused_class(scheme: Scheme, class: &str) -> Option<String> {
    let archives = archive_classes(scheme).iter().any(|known| known.eq_ignore_ascii_case(class));
    archives.then(|| {
        format!("objects of class {} cannot be read at once: no repository can work there", class.escape_debug())
    })
}

/// What there is instead.
pub const LATER_CLASS: &str = "class_after moves packs later; docs/capacity.md tells which classes there are";

impl From<&PriceSection> for Prices {
    fn from(section: &PriceSection) -> Self {
        Prices {
            currency: section.currency.clone(),
            storage: section.storage.clone(),
            retrieval: section.retrieval.clone(),
            write_requests_1000: section.write_requests,
            read_requests_1000: section.read_requests,
            egress: section.egress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_a_size_or_unlimited_and_a_threshold_a_size_or_a_share() {
        for (text, shown) in [("2TB", "2TB"), (" unlimited ", "unlimited"), ("0", "0B")] {
            assert_eq!(text.parse::<Capacity>().expect(text).to_string(), shown);
        }
        for (text, shown) in [("10%", "10%"), ("7 %", "7%"), ("50GB", "50GB")] {
            assert_eq!(text.parse::<FreeSpace>().expect(text).to_string(), shown);
        }
        for wrong in ["", "none", "-1", "2 XB"] {
            assert!(wrong.parse::<Capacity>().is_err(), "{wrong}");
        }
        for wrong in ["", "%", "101%", "-1%", "1.5%", "ten"] {
            assert!(wrong.parse::<FreeSpace>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_class_is_both_read_at_once_and_thawed_first() {
        for scheme in [Scheme::S3, Scheme::Azure, Scheme::Gcs, Scheme::File, Scheme::Sftp] {
            let both = immediate_classes(scheme).iter().filter(|c| archive_classes(scheme).contains(c));
            assert_eq!(both.count(), 0, "{scheme:?}");
        }
    }
}
