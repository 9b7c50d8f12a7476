//! A pack: frames as they are, then a table and a footer that are sealed properly around the fuzzer's bytes; and the
//! bytes alone behind a valid header. The first byte says how much of the input is frames.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::crypto::{ObjectKind, Purpose, TAG_BYTES};
use pgark_repo::names;
use pgark_repo::pack;

fuzz_target!(|input: &[u8]| {
    let [share, input @ ..] = input else { return };
    let repo = world::repository();
    for (number, sealed) in [(0, false), (1, true)] {
        let name = names::pack(&world::cluster(), &world::backup_id(), number);
        let (header, key) = repo.keys().new_object(ObjectKind::Pack, &name).unwrap();
        let mut bytes = header.to_vec();
        if sealed {
            let (frames, table) = input.split_at(input.len() * usize::from(*share) / 256);
            bytes.extend(frames);
            let (count, table) = table.split_at_checked(4).unwrap_or((&[0; 4], &[]));
            let offset = bytes.len() as u64;
            let mut footer = offset.to_le_bytes().to_vec();
            footer.extend(u32::try_from(table.len() + TAG_BYTES).unwrap().to_le_bytes());
            footer.extend(count);
            footer.extend(b"PGARKTOC");
            let mut table = table.to_vec();
            key.seal(Purpose::TableOfContents, offset, &footer, &mut table, 0);
            bytes.extend(table);
            bytes.extend(footer);
        } else {
            bytes.extend(input);
        }
        repo.store().put_new(&name, &bytes).unwrap();
        let _ = pack::verify(repo.store(), repo.keys(), &name, &world::print_of(&bytes));
    }
});
