//! What is in one object, for people: opened and decoded, as far as it is a stream. Nothing else of the program reads
//! objects this way.

use crate::crypto::ObjectKind;
use crate::error::{RepoError, Result};
use crate::limits::REGISTER_MARKS_MAX;
use crate::names::{ClusterName, KEYRING, WalPlace, split_seal, without_copy};
use crate::repository::Repository;
use crate::store::ObjectName;
use crate::stream::{Source, StreamReader};
use crate::wal::WalArchive;

const PIECE_BYTES: usize = 4 * 1024 * 1024;
const MARK_BYTES: usize = 8;

/// How an object is shown, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Bytes as they are: packs, which have no order of their own, and the key ring, which is not sealed.
    AsIs,
    Stream(ObjectKind),
    /// A version of a register: marks come before its value.
    Register(ObjectKind),
    Wal(WalPlace),
}

/// Hands out the object's bytes as stored.
pub fn stored(repo: &Repository, name: &ObjectName, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    // A seal that is named is shown with all that lies there.
    let store = if split_seal(name).is_some() { repo.bare_store() } else { repo.store() };
    let found = store.find(name)?;
    let size = found.size;
    let mut buffer = vec![];
    let mut at = 0;
    while at < size {
        let len = usize::try_from((size - at).min(PIECE_BYTES as u64)).expect("at most a piece");
        buffer.resize(len, 0);
        store.read_at(&found.name, at, &mut buffer)?;
        take(&buffer)?;
        at += len as u64;
    }
    Ok(())
}

/// Hands out what the object holds: JSON of records, catalogs and heads, items of manifests, the bytes of WAL files. Packs
/// and key rings come as they are stored. An error after the first bytes means that they must not be used.
pub fn content(repo: &Repository, name: &ObjectName, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    // Any seal of an object shows the object.
    let object = split_seal(name);
    let name = object.as_ref().map_or(name, |(object, _)| object);
    match form(name) {
        Form::AsIs => stored(repo, name, take),
        Form::Stream(kind) => stream(repo, kind, name, take),
        Form::Register(kind) => {
            let mut plain = vec![];
            stream(repo, kind, name, &mut |bytes| {
                plain.extend_from_slice(bytes);
                Ok(())
            })?;
            let marks = plain.first().map(|n| usize::from(*n)).filter(|n| (1..=REGISTER_MARKS_MAX).contains(n));
            let value = marks.and_then(|n| plain.get(1 + n * MARK_BYTES..));
            take(value.ok_or_else(|| RepoError::corrupt(name, "its marks do not parse"))?)
        }
        Form::Wal(place) => {
            let mut reader = WalArchive::new(repo, &place.cluster, place.system_id).open_object(name)?;
            while let Some(bytes) = reader.next()? {
                take(bytes)?;
            }
            Ok(())
        }
    }
}

fn stream(
    repo: &Repository,
    kind: ObjectKind,
    name: &ObjectName,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut reader = StreamReader::new(repo.keys(), kind, name, Source::object(repo.store().clone(), name)?)?;
    while let Some(block) = reader.next_block()? {
        take(block)?;
    }
    Ok(())
}

fn form(name: &ObjectName) -> Form {
    let parts: Vec<&str> = name.as_str().split('/').collect();
    match parts.as_slice() {
        ["clusters", _, "catalog" | "catalog-mirror", _] => Form::Register(ObjectKind::Catalog),
        ["clusters", _, "backups", _, "manifest"] => Form::Stream(ObjectKind::Manifest),
        ["clusters", _, "backups", _, "record"] => Form::Stream(ObjectKind::BackupRecord),
        ["clusters", _, "reports", _] => Form::Stream(ObjectKind::Report),
        ["audit", _, _, _] => Form::Stream(ObjectKind::Audit),
        ["clusters", _, "wal", _, "head" | "head-mirror", _] => Form::Register(ObjectKind::WalHead),
        ["clusters", _, "wal", _, "history", _] => Form::Stream(ObjectKind::WalSideFile),
        ["clusters", cluster, "wal", system, .., file] => match (ClusterName::parse(cluster), system.parse()) {
            (Ok(cluster), Ok(system_id)) if !without_copy(file).ends_with(".backup") => {
                Form::Wal(WalPlace { cluster, system_id })
            }
            _ => Form::Stream(ObjectKind::WalSideFile),
        },
        [first, ..] if first.starts_with(KEYRING) => Form::AsIs,
        _ => Form::AsIs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_how_its_object_is_shown() {
        let of = |name: &str| form(&ObjectName::parse(name).unwrap());
        assert_eq!(of("clusters/main/catalog/0000000000000001"), Form::Register(ObjectKind::Catalog));
        assert_eq!(of("clusters/main/backups/20260822-031500F/record"), Form::Stream(ObjectKind::BackupRecord));
        assert_eq!(of("clusters/main/reports/20260822-031500-0a1b2c3d"), Form::Stream(ObjectKind::Report));
        assert_eq!(of("clusters/main/backups/20260822-031500F/packs/000001"), Form::AsIs);
        assert!(matches!(of("clusters/main/wal/7/00000001/00000000/000000010000000000000003"), Form::Wal(_)));
        assert!(matches!(of("clusters/main/wal/7/00000001/00000000/000000010000000000000003.r1"), Form::Wal(_)));
        let backup = of("clusters/main/wal/7/00000001/00000000/000000010000000000000003.00000028.backup");
        assert_eq!(backup, Form::Stream(ObjectKind::WalSideFile));
        assert_eq!(of("keyring-mirror/0000000000000001"), Form::AsIs);
    }
}
