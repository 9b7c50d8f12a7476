//! Timeline history files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::{Lsn, TimelineHistory, TimelineId};

fuzz_target!(|data: &[u8]| {
    let target = TimelineId::new(1000).expect("not zero");
    if let Ok(history) = TimelineHistory::parse(target, data) {
        let again = TimelineHistory::parse(target, &history.serialise()).expect("what we write parses");
        assert_eq!(again.path_to_target(), history.path_to_target());
        for lsn in [0, 1 << 32, u64::MAX] {
            assert!(history.contains(history.timeline_at(Lsn(lsn))));
        }
    }
});
