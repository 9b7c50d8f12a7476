//! The text of a WAL head, properly sealed: read, asked everything, and changed.
#![no_main]

mod world;

use libfuzzer_sys::fuzz_target;
use pgark_pg::value::{SegmentName, SegmentNo};
use pgark_repo::crypto::ObjectKind;
use pgark_repo::wal::WalHead;

fuzz_target!(|value: &[u8]| {
    let repo = world::repository();
    let archive = world::archive(&repo);
    world::put_register(&repo, ObjectKind::WalHead, &archive.place().head_dir(), value);
    let Ok(mut head) = archive.head() else { return };
    for span in head.timelines().to_vec() {
        let _ = (span.first(), span.last(), span.gaps());
        for (n, copy) in [(0, 0), (1, 1), (u64::MAX - 1, 0), (u64::MAX, u32::MAX)] {
            head.add_segment(&SegmentName { timeline: span.timeline, segment: SegmentNo(n) }, copy);
        }
    }
    assert!(WalHead::from_bytes(&head.to_bytes()).as_ref() == Ok(&head));
    archive.acknowledge(&[(world::segment(), 0)]).unwrap();
});
