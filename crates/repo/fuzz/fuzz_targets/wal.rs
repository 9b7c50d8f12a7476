//! A WAL object: the first half of the input as its index, the second as its data, properly sealed.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::codec::Compression;
use pgark_repo::crypto::ObjectKind;
use pgark_repo::stream::{Sink, StreamWriter};
use pgark_repo::wal::WalIndex;

fuzz_target!(|input: &[u8]| {
    let (index, data) = input.split_at(input.len() - input.len() / 2);
    for text in [input, index] {
        if let Ok(index) = WalIndex::from_bytes(text) {
            let _ = (index.tail_and_leading(), index.last_starts(), index.segment_name().format(index.segment_size));
            assert!(index.valid_bytes() <= index.segment_size.bytes());
        }
    }
    let repo = world::repository();
    let archive = world::archive(&repo);
    let name = world::segment();
    let object = archive.place().file(name.timeline, &name.format(world::segment_size())).unwrap();
    let sink = Sink::Object(repo.store().create(&object).unwrap());
    let mut w = StreamWriter::new(repo.keys(), ObjectKind::WalSegment, &object, sink, Compression::DEFAULT).unwrap();
    w.write_block(index).unwrap();
    w.write(data).unwrap();
    w.finish().unwrap();
    if let Ok(mut reader) = archive.open_segment(&name, world::segment_size()) {
        while let Ok(Some(_)) = reader.next() {}
    }
});
