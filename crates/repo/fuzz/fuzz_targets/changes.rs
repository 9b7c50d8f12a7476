//! The changed blocks that are kept behind the index of a WAL segment: read, merged with themselves, written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_repo::wal::changes::{decode, encode};

fuzz_target!(|bytes: &[u8]| {
    let Some(changes) = decode(bytes) else { return };
    // A reason that is too long is cut when it is written; one that was read is not.
    assert!(decode(&encode(&changes)).as_ref() == Some(&changes));
    let mut twice = changes.clone();
    twice.merge(&changes);
    for (rel, changed) in &changes.relations {
        let merged = &twice.relations[rel];
        assert!(merged.limit == changed.limit);
        for block in changed.blocks.iter().take(100).chain(changed.limit).chain([u32::MAX]) {
            assert!(merged.contains(block) == changed.contains(block));
        }
    }
});
