//! File names and paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::{Lsn, Major, SegmentName, SegmentSize, SystemId, WalFileName, classify, dir_rule, file_excluded};

fuzz_target!(|data: &[u8]| {
    let _ = (classify(data), dir_rule(data, Major::V15), file_excluded(data));
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = WalFileName::parse(text) {
        assert_eq!(name.to_string(), text);
    }
    for mib in [1u64, 16, 1024] {
        let size = SegmentSize::new(mib << 20).expect("a valid size");
        if let Ok(name) = SegmentName::parse(text, size) {
            assert_eq!(name.format(size), text);
        }
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
    }
    let _ = text.parse::<SystemId>();
});
