//! Which file of a data directory belongs to which relation.
//!
//! Invariant: a path is a relation's only if PostgreSQL itself could have written exactly that name; everything else is
//! `Other` and is handled as an opaque file. It knows names alone, not what is on disk.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bytes::decimal_u32;

/// `GLOBALTABLESPACE_OID`
pub const GLOBAL_TABLESPACE: u32 = 1664;
/// `DEFAULTTABLESPACE_OID`
pub const DEFAULT_TABLESPACE: u32 = 1663;

/// `ForkNumber`, in PostgreSQL's numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fork {
    Main,
    Fsm,
    Vm,
    Init,
}

impl Fork {
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Main,
            1 => Self::Fsm,
            2 => Self::Vm,
            3 => Self::Init,
            _ => return None,
        })
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Main => 0,
            Self::Fsm => 1,
            Self::Vm => 2,
            Self::Init => 3,
        }
    }

    /// What follows the relation number in a file name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Fsm => "_fsm",
            Self::Vm => "_vm",
            Self::Init => "_init",
        }
    }
}

/// One fork of one relation. `db` is 0 for the shared relations in `global`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RelFork {
    pub spc: u32,
    pub db: u32,
    pub rel: u32,
    pub fork: Fork,
}

impl fmt::Display for RelFork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}{}", self.spc, self.db, self.rel, self.fork.suffix())
    }
}

/// One file of a relation fork; `segment` counts files of `RELSEG_SIZE` blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RelSegment {
    pub rel: RelFork,
    pub segment: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PathClass {
    Relation(RelSegment),
    /// A file of a temporary relation; never backed up.
    TempRelation,
    /// `global/pg_control`
    Control,
    Other,
}

/// `path` is relative to the data directory, with `/` between its parts.
pub fn classify(path: &[u8]) -> PathClass {
    if path == b"global/pg_control" {
        return PathClass::Control;
    }
    let Some((spc, db, name)) = split(path) else {
        return PathClass::Other;
    };
    // Shared relations are never temporary.
    if db != 0 && is_temp_name(name) {
        return PathClass::TempRelation;
    }
    match file_name(name) {
        Some((rel, fork, segment)) => PathClass::Relation(RelSegment { rel: RelFork { spc, db, rel, fork }, segment }),
        None => PathClass::Other,
    }
}

/// (tablespace, database, file name) of a path inside a relation directory.
fn split(path: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut parts = path.split(|byte| *byte == b'/');
    let found = match parts.next()? {
        b"global" => (GLOBAL_TABLESPACE, 0, parts.next()?),
        b"base" => (DEFAULT_TABLESPACE, oid(parts.next()?)?, parts.next()?),
        b"pg_tblspc" => {
            let spc = oid(parts.next()?)?;
            is_version_dir(parts.next()?).then_some(())?;
            (spc, oid(parts.next()?)?, parts.next()?)
        }
        _ => return None,
    };
    parts.next().is_none().then_some(found)
}

fn oid(text: &[u8]) -> Option<u32> {
    decimal_u32(text).filter(|oid| *oid != 0)
}

/// `PG_<major>_<catalog version>` of any version.
pub(crate) fn is_version_dir(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"PG_") else {
        return false;
    };
    let mut parts = rest.split(|byte| *byte == b'_');
    let numbers = parts.next().and_then(oid).is_some() && parts.next().and_then(oid).is_some();
    numbers && parts.next().is_none()
}

/// `parse_filename_for_nontemp_relation` (reinit.c): `<number>[_<fork>][.<segment>]`.
fn file_name(name: &[u8]) -> Option<(u32, Fork, u32)> {
    let (stem, segment) = match split_once(name, b'.') {
        Some((stem, segment)) => (stem, oid(segment)?),
        None => (name, 0),
    };
    let (rel, fork) = match split_once(stem, b'_') {
        Some((rel, fork)) => (rel, fork_suffix(fork)?),
        None => (stem, Fork::Main),
    };
    Some((oid(rel)?, fork, segment))
}

fn fork_suffix(text: &[u8]) -> Option<Fork> {
    Some(match text {
        b"fsm" => Fork::Fsm,
        b"vm" => Fork::Vm,
        b"init" => Fork::Init,
        _ => return None,
    })
}

/// `looks_like_temp_rel_name` (fd.c): `t<backend>_<number>[_<fork>][.<segment>]`; it is content with any digits.
fn is_temp_name(name: &[u8]) -> bool {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let Some((backend, rest)) = name.strip_prefix(b"t").and_then(|rest| split_once(rest, b'_')) else {
        return false;
    };
    let (stem, segment) = match split_once(rest, b'.') {
        Some((stem, segment)) => (stem, Some(segment)),
        None => (rest, None),
    };
    let (rel, fork) = match split_once(stem, b'_') {
        Some((rel, fork)) => (rel, Some(fork)),
        None => (stem, None),
    };
    digits(backend) && digits(rel) && segment.is_none_or(digits) && fork.is_none_or(|fork| fork_suffix(fork).is_some())
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relation(spc: u32, db: u32, rel: u32, fork: Fork, segment: u32) -> PathClass {
        PathClass::Relation(RelSegment { rel: RelFork { spc, db, rel, fork }, segment })
    }

    #[test]
    fn relation_files_are_recognised() {
        for (path, class) in [
            ("global/1262", relation(1664, 0, 1262, Fork::Main, 0)),
            ("global/1262_vm", relation(1664, 0, 1262, Fork::Vm, 0)),
            ("base/5/16384", relation(1663, 5, 16384, Fork::Main, 0)),
            ("base/5/16384.131", relation(1663, 5, 16384, Fork::Main, 131)),
            ("base/5/16384_fsm", relation(1663, 5, 16384, Fork::Fsm, 0)),
            ("base/5/16384_vm.1", relation(1663, 5, 16384, Fork::Vm, 1)),
            ("base/4294967295/4294967295_init", relation(1663, u32::MAX, u32::MAX, Fork::Init, 0)),
            ("pg_tblspc/16390/PG_15_202209061/5/16391", relation(16390, 5, 16391, Fork::Main, 0)),
            ("base/5/t3_16384", PathClass::TempRelation),
            ("base/5/t3_16384_vm.2", PathClass::TempRelation),
            ("pg_tblspc/9/PG_15_202209061/5/t10_7", PathClass::TempRelation),
            ("global/pg_control", PathClass::Control),
        ] {
            assert_eq!(classify(path.as_bytes()), class, "{path}");
        }
    }

    #[test]
    fn everything_else_is_an_opaque_file() {
        for path in [
            "",
            "base",
            "base/5",
            "base/5/",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/016384",
            "base/5/0",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384.",
            "base/5/16384_",
            "base/5/16384_xx",
            "base/5/+16384",
            "base/5/16384_vm_fsm",
            "base/5/4294967296",
            "base/05/16384",
            "base/5/1/2",
            "base/5/16384.1_vm",
            "base/5/t3",
            "base/5/t_16384",
            "global/t3_16384",
            "global/pg_control.old",
            "pg_tblspc/9/16384",
            "pg_tblspc/9/PG_15/5/16391",
            "pg_tblspc/9/PG_15_2_3/5/16391",
            "pg_xact/0000",
            "./base/5/1",
            "/base/5/1",
        ] {
            assert_eq!(classify(path.as_bytes()), PathClass::Other, "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_a_relation_prints_its_own_path(path in "(base/[0-9]{1,3}|global)/[0-9]{0,4}(_fsm|_vm|_init|_x)?(\\.[0-9]{0,3})?") {
            if let PathClass::Relation(RelSegment { rel, segment }) = classify(path.as_bytes()) {
                let dir = if rel.db == 0 { "global".to_string() } else { format!("base/{}", rel.db) };
                let tail = if segment == 0 { String::new() } else { format!(".{segment}") };
                prop_assert_eq!(format!("{dir}/{}{}{tail}", rel.rel, rel.fork.suffix()), path);
            }
        }

        #[test]
        fn any_bytes_are_safe(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            classify(&path);
        }
    }
}
