//! The text of a backup's record, properly sealed.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::crypto::ObjectKind;
use pgark_repo::names;
use pgark_repo::record::BackupRecord;

fuzz_target!(|plain: &[u8]| {
    let (repo, cluster, id) = (world::repository(), world::cluster(), world::backup_id());
    let print = world::put(&repo, ObjectKind::BackupRecord, &names::record(&cluster, &id), plain);
    if let Ok(record) = BackupRecord::load(&repo, &cluster, &id, &print) {
        assert!(record.id == id && record.cluster == cluster);
    }
});
