//! Data pages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_pg::{BlockNo, Lsn, PAGE_SIZE, PageVerdict, check_page, is_all_zero, page_checksum, page_lsn};

fuzz_target!(|data: &[u8]| {
    let _ = page_lsn(data);
    assert_eq!(is_all_zero(data), data.iter().all(|byte| *byte == 0));
    assert!(data.len() == PAGE_SIZE || check_page(data, BlockNo(0), Lsn(0)) == PageVerdict::BadHeader);
    let mut page = [0u8; PAGE_SIZE];
    let length = data.len().min(PAGE_SIZE);
    page[..length].copy_from_slice(&data[..length]);
    let sum = page_checksum(&page, BlockNo(7));
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    let verdict = check_page(&page, BlockNo(7), Lsn(u64::MAX));
    assert!(!matches!(verdict, PageVerdict::Bad { .. }));
});
