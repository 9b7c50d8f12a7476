//! A parity object of the fuzzer's bytes, and the same bytes as the first page of an index whose magic, name and checksum
//! are right: the rest of the header, then checksums. The first byte says how much of the input is that page. Whatever it
//! says, healing ends and takes bounded memory, and no checksum of ours agrees with it.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::names;
use pgark_repo::parity::{self, ParityState};
use pgark_repo::store::ObjectName;

fuzz_target!(|input: &[u8]| {
    let [share, input @ ..] = input else { return };
    let repo = world::repository();
    let store = &**repo.store();
    for (number, sealed) in [(0, false), (1, true)] {
        let name = names::pack(&world::cluster(), &world::backup_id(), number);
        store.put_new(&name, &[7; 9000]).unwrap();
        let bytes = if sealed { page(&name, *share, input) } else { input.to_vec() };
        store.put_new(&names::parity(&name).unwrap(), &bytes).unwrap();
        let _ = parity::heal(store, &name);
        assert!(parity::check(store, &name).unwrap() == ParityState::Damaged);
    }
});

fn page(name: &ObjectName, share: u8, input: &[u8]) -> Vec<u8> {
    let (page, rest) = input.split_at(input.len() * usize::from(share) / 256);
    let (header, prints) = page.split_at(page.len().min(39));
    let mut bytes = b"PGARKPAR\x01".to_vec();
    bytes.extend(header);
    bytes.resize(48, 0);
    bytes.extend(&blake3::hash(name.as_str().as_bytes()).as_bytes()[..16]);
    bytes.extend(&prints[..prints.len() / 8 * 8]);
    let checksum = blake3::hash(&bytes);
    bytes.extend(&checksum.as_bytes()[..16]);
    bytes.extend(rest);
    bytes
}
