//! The blocks of a sealed stream behind a valid header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_repo::crypto::{KeySet, ObjectKind};
use pgark_repo::store::ObjectName;
use pgark_repo::stream::{Source, StreamReader, open_bytes};

fuzz_target!(|bytes: &[u8]| {
    let keys = KeySet::unencrypted();
    let name = ObjectName::parse("x").unwrap();
    let (header, _) = keys.new_object(ObjectKind::Manifest, &name).unwrap();
    let object = [&header[..], bytes].concat();
    let _ = open_bytes(&keys, ObjectKind::Manifest, &name, object.clone(), 1 << 20);
    assert!(open_bytes(&keys, ObjectKind::Catalog, &name, object, 1 << 20).is_err());
    if let Ok(mut reader) = StreamReader::new(&keys, ObjectKind::Manifest, &name, Source::memory(bytes.to_vec())) {
        while let Ok(Some(_)) = reader.next_block() {}
    }
});
