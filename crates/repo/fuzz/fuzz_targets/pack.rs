//! A pack: frames as they are, then a table and a footer that are sealed properly around the fuzzer's bytes; and the
//! bytes alone behind a valid header. The first byte says how much of the input is frames. Then once more as a row of
//! frames that are sealed too, so that the codecs are reached: codec, plain length (three bytes), stored length (two),
//! bytes.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_repo::Repository;
use pgark_repo::codec::Codec;
use pgark_repo::crypto::{ObjectKind, Purpose, TAG_BYTES};
use pgark_repo::limits::FRAME_BYTES_MAX;
use pgark_repo::names;
use pgark_repo::pack::{self, PackWriter};

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
    sealed_frames(&repo, input);
});

fn sealed_frames(repo: &Repository, mut rest: &[u8]) {
    let name = names::pack(&world::cluster(), &world::backup_id(), 2);
    let mut writer = PackWriter::create(&**repo.store(), repo.keys(), &name).unwrap();
    let mut sound = true;
    while let [codec, p0, p1, p2, s0, s1, after @ ..] = rest {
        let (stored, after) = after.split_at(after.len().min(usize::from(u16::from_le_bytes([*s0, *s1]))));
        rest = after;
        let codec = Codec::from_byte(codec % 3).unwrap();
        let plain = (u32::from_le_bytes([*p0, *p1, *p2, 0]) as usize).clamp(stored.len(), FRAME_BYTES_MAX);
        sound &= codec == Codec::None && plain == stored.len();
        writer.append(codec, plain, repo.keys().content_id(stored), &mut stored.to_vec()).unwrap();
    }
    let print = writer.seal().unwrap().commit().unwrap();
    assert!(pack::verify(repo.store(), repo.keys(), &name, &print).is_ok() || !sound);
}
