//! The items of a manifest, properly sealed.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::crypto::ObjectKind;
use pgark_repo::limits::FRAME_BYTES_MAX;
use pgark_repo::manifest::{Item, ManifestReader, check_path, packs_of};
use pgark_repo::names;

fuzz_target!(|plain: &[u8]| {
    let repo = world::repository();
    let name = names::manifest(&world::cluster(), &world::backup_id());
    world::put(&repo, ObjectKind::Manifest, &name, plain);
    let open = || ManifestReader::open(repo.store().clone(), repo.keys(), &name).unwrap();
    let mut reader = open();
    while let Ok(Some(item)) = reader.next_item() {
        assert!(item.path().is_none_or(check_path));
        if let Item::Chunks(chunks) = item {
            for c in &chunks {
                assert!(c.parts().is_empty() || c.len() <= FRAME_BYTES_MAX as u64);
                assert!(c.parts().iter().all(|p| reader.pack(p.pack).is_some()));
            }
        }
    }
    let _ = packs_of(open());
});
