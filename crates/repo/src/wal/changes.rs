//! The changed blocks of a segment as they are kept behind its index.

use std::collections::BTreeMap;

use pgark_pg::relpath::{Fork, RelFork};
use pgark_pg::wal::{Changes, DatabaseDir, RelationChanges};
use roaring::RoaringBitmap;

use crate::manifest::bytes::{Cursor, put_bytes, put_varint};

/// Longest reason why a segment's changes are unusable.
const REASON_BYTES_MAX: usize = 4096;

pub fn encode(changes: &Changes) -> Vec<u8> {
    let mut out = vec![];
    let reason = changes.unusable.as_deref().unwrap_or_default();
    let end = (0..=REASON_BYTES_MAX.min(reason.len())).rev().find(|n| reason.is_char_boundary(*n));
    let reason = reason.get(..end.unwrap_or(0)).unwrap_or_default();
    put_bytes(&mut out, reason.as_bytes());
    put_varint(&mut out, changes.databases.len() as u64);
    for dir in &changes.databases {
        put_varint(&mut out, dir.spc.into());
        put_varint(&mut out, dir.db.into());
    }
    put_varint(&mut out, changes.relations.len() as u64);
    for (rel, c) in &changes.relations {
        for number in [rel.spc, rel.db, rel.rel] {
            put_varint(&mut out, number.into());
        }
        put_varint(&mut out, c.limit.map_or(0, |l| u64::from(l) + 1));
        let mut blocks = c.blocks.clone();
        blocks.optimize();
        let mut bytes = Vec::with_capacity(blocks.serialized_size());
        blocks.serialize_into(&mut bytes).expect("writing to memory");
        put_bytes(&mut out, &bytes);
    }
    out
}

/// None when the bytes are not the changes of any segment.
pub fn decode(bytes: &[u8]) -> Option<Changes> {
    let mut c = Cursor::new(bytes);
    let reason = std::str::from_utf8(c.bytes(REASON_BYTES_MAX)?).ok()?;
    let unusable = (!reason.is_empty()).then(|| reason.to_owned());
    let mut databases = std::collections::BTreeSet::new();
    for _ in 0..c.varint()? {
        databases.insert(DatabaseDir { spc: c.varint32()?, db: c.varint32()? });
    }
    let mut relations = BTreeMap::new();
    for _ in 0..c.varint()? {
        let rel = RelFork { spc: c.varint32()?, db: c.varint32()?, rel: c.varint32()?, fork: Fork::Main };
        let limit = match c.varint()? {
            0 => None,
            n => Some(u32::try_from(n - 1).ok()?),
        };
        let mut stored = c.bytes(bytes.len())?;
        let blocks = RoaringBitmap::deserialize_from(&mut stored).ok()?;
        if !stored.is_empty() || relations.insert(rel, RelationChanges { limit, blocks }).is_some() {
            return None;
        }
    }
    c.is_empty().then_some(Changes { relations, databases, unusable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relation() -> impl Strategy<Value = (RelFork, RelationChanges)> {
        let numbers = (0u32..3, any::<u32>(), 0u32..50);
        let blocks = proptest::collection::vec((any::<u32>(), 1u32..5000), 0..20);
        (numbers, proptest::option::of(any::<u32>()), blocks).prop_map(|((spc, db, rel), limit, runs)| {
            let mut blocks = RoaringBitmap::new();
            for (from, len) in runs {
                blocks.insert_range(from..=from.saturating_add(len));
            }
            (RelFork { spc, db, rel, fork: Fork::Main }, RelationChanges { limit, blocks })
        })
    }

    proptest! {
        #[test]
        fn changes_come_back(relations in proptest::collection::btree_map(0u8..9, relation(), 0..9), reason in ".{0,20}",
                             dirs in proptest::collection::btree_set((any::<u32>(), any::<u32>()), 0..5)) {
            let changes = Changes {
                relations: relations.into_values().collect(),
                databases: dirs.into_iter().map(|(spc, db)| DatabaseDir { spc, db }).collect(),
                unusable: (!reason.is_empty()).then_some(reason),
            };
            prop_assert_eq!(decode(&encode(&changes)), Some(changes));
        }

        #[test]
        fn a_long_reason_is_cut_between_characters(pad in 0usize..4) {
            let reason = format!("{}{}", "x".repeat(pad), "ß€".repeat(REASON_BYTES_MAX));
            let changes = Changes { unusable: Some(reason), ..Changes::default() };
            let back = decode(&encode(&changes)).and_then(|c| c.unusable);
            prop_assert!(back.is_some_and(|r| r.len() > REASON_BYTES_MAX - 4 && r.len() <= REASON_BYTES_MAX));
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&raw);
        }

        #[test]
        fn damaged_bytes_never_panic(one in relation(), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let changes = Changes { relations: [one].into(), ..Changes::default() };
            let mut bytes = encode(&changes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = decode(&bytes);
            let _ = decode(&bytes[..at]);
        }
    }
}
