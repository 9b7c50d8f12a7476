//! Measures the page functions on one core: `cargo run --release -p pgark-pg --example page_speed`.

use std::hint::black_box;
use std::time::Instant;

use pgark_pg::{BlockNo, Lsn, PAGE_SIZE, PageVerdict, check_page, is_all_zero, page_checksum};

const ROUNDS: usize = 200;
const PAGES: usize = 256;

fn main() {
    let mut pages = vec![[0u8; PAGE_SIZE]; PAGES];
    for (number, page) in pages.iter_mut().enumerate() {
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = ((number * 31 + at * 7 + at / 256) % 251).to_le_bytes()[0];
        }
    }
    let zero = vec![[0u8; PAGE_SIZE]; PAGES];
    report("page_checksum", &pages, |page, block| u64::from(page_checksum(page, block)));
    report("check_page", &pages, |page, block| u64::from(check_page(page, block, Lsn(u64::MAX)) == PageVerdict::Ok));
    report("is_all_zero", &zero, |page, _| u64::from(is_all_zero(page)));
}

/// Prints the best of ten runs: other work on the machine only ever slows a run down.
fn report(name: &str, pages: &[[u8; PAGE_SIZE]], work: impl Fn(&[u8; PAGE_SIZE], BlockNo) -> u64) {
    let mut best = f64::MAX;
    for _ in 0..10 {
        let started = Instant::now();
        for round in 0..ROUNDS {
            for (page, block) in pages.iter().zip(0u32..) {
                black_box(work(black_box(page), BlockNo(block)));
            }
            black_box(round);
        }
        best = best.min(started.elapsed().as_secs_f64());
    }
    println!("{name}: {:.1} GB/s", (ROUNDS * PAGES * PAGE_SIZE) as f64 / best / 1e9);
}
