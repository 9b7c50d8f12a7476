//! The text of a catalog, properly sealed: read, and changed once.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::ObjectKind;
use pgark_repo::names;

fuzz_target!(|value: &[u8]| {
    let (repo, cluster) = (world::repository(), world::cluster());
    world::put_register(&repo, ObjectKind::Catalog, &names::catalog_dir(&cluster), value);
    let catalog = CatalogStore::new(&repo, &cluster);
    if let Ok(read) = catalog.read() {
        assert!(read.cluster == cluster);
        let _ = catalog.sweep();
        let now = "2026-08-22T03:15:00Z".parse().unwrap();
        let _ = catalog.claim(pgark_repo::catalog::JobKind::Backup, &world::backup_id(), now);
        assert!(catalog.read().is_ok());
    }
});
