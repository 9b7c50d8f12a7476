//! The blocks of a sealed stream behind a valid header: as they are, and with right seals, so that the codecs are
//! reached. There the input is a row of blocks: codec, flags, plain length (three bytes), stored length (two), bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_repo::crypto::{HEADER_BYTES, KeySet, ObjectKind, Purpose, TAG_BYTES};
use pgark_repo::limits::BLOCK_BYTES_MAX;
use pgark_repo::store::ObjectName;
use pgark_repo::stream::{Source, StreamReader, open_bytes};

fuzz_target!(|bytes: &[u8]| {
    let keys = KeySet::unencrypted();
    let name = ObjectName::parse("x").unwrap();
    let (header, _) = keys.new_object(ObjectKind::Manifest, &name).unwrap();
    read(&keys, &name, [&header[..], bytes].concat());
    read(&keys, &name, sealed(&keys, &name, bytes));
});

fn read(keys: &KeySet, name: &ObjectName, object: Vec<u8>) {
    let whole = open_bytes(keys, ObjectKind::Manifest, name, object.clone(), 1 << 20);
    assert!(open_bytes(keys, ObjectKind::Catalog, name, object.clone(), 1 << 20).is_err());
    let open = |object| StreamReader::new(keys, ObjectKind::Manifest, name, Source::memory(object));
    let Ok(mut reader) = open(object.clone()) else { return };
    let mut plain = 0;
    while let Ok(Some(block)) = reader.next_block() {
        assert!(block.len() <= BLOCK_BYTES_MAX);
        plain += block.len();
    }
    if let Ok(whole) = whole {
        assert!(whole.len() == plain);
        assert!(open(object).unwrap().check_length().is_ok());
    }
}

fn sealed(keys: &KeySet, name: &ObjectName, mut rest: &[u8]) -> Vec<u8> {
    let (header, key) = keys.new_object(ObjectKind::Manifest, name).unwrap();
    assert!(header.len() == HEADER_BYTES);
    let mut object = header.to_vec();
    let mut position = 0;
    while let [codec, flags, p0, p1, p2, s0, s1, after @ ..] = rest {
        let (stored, after) = after.split_at(after.len().min(usize::from(u16::from_le_bytes([*s0, *s1]))));
        rest = after;
        let length = u32::try_from(stored.len() + TAG_BYTES).unwrap().to_le_bytes();
        let header = [&length[..], &[*p0, *p1, *p2, 0, *codec % 4, *flags, 0, 0]].concat();
        let mut stored = stored.to_vec();
        let purpose = if flags & 1 != 0 { Purpose::LastBlock } else { Purpose::Block };
        key.seal(purpose, position, &header, &mut stored, 0);
        object.extend(header);
        object.extend(stored);
        position += 1;
    }
    object
}
