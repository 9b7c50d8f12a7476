//! `backup_label` and `tablespace_map`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::{BackupLabel, format_tablespace_map, parse_tablespace_map};

fuzz_target!(|data: &[u8]| {
    if let Ok(label) = BackupLabel::parse(data) {
        assert_eq!(label.start_timeline, label.start_segment.timeline);
    }
    if let Ok(map) = parse_tablespace_map(data) {
        assert_eq!(parse_tablespace_map(&format_tablespace_map(&map)), Ok(map));
    }
});
