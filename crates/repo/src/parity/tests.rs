//! What a medium can do to an object and its parity, and what must come of it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use proptest::prelude::*;
use reed_solomon_simd::engine::DefaultEngine;
use reed_solomon_simd::rate::{HighRateEncoder, RateEncoder};

use super::index::{PAGE_BYTES, parse_page, print_of_name};
use super::*;
use crate::limits::{PARITY_SECTION_SHARDS, PARITY_SHARD_BYTES};
use crate::names;
use crate::store::fault::{Fault, Op, When};
use crate::store::forward::forward_to_inner;
use crate::store::{FaultStore, MemoryStore, ObjectName, Store, StoreError, conformance};

const SHARD: usize = PARITY_SHARD_BYTES;
const PACK: &str = "clusters/main/backups/20260101-000000F/packs/000001";

fn name() -> ObjectName {
    ObjectName::parse(PACK).unwrap()
}

fn parity_name() -> ObjectName {
    names::parity(&name()).unwrap()
}

fn percent(n: u8) -> Percent {
    Percent::new(n).unwrap()
}

/// Bytes that repeat nowhere.
fn content(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn stored(len: usize, n: u8) -> (Arc<MemoryStore>, Vec<u8>) {
    let store = Arc::new(MemoryStore::new());
    let bytes = content(len);
    let writing = ParityStore::new(store.clone(), percent(n));
    writing.put_new(&name(), &bytes).unwrap();
    assert!(writing.notices().is_empty());
    (store, bytes)
}

/// As a healing store shows it.
fn read_healed(store: &Arc<MemoryStore>) -> Result<Vec<u8>, StoreError> {
    let healing = HealingStore::new(store.clone());
    healing.heal(&name());
    healing.read(&name(), u64::MAX)
}

fn parity_shards(len: usize, n: usize) -> usize {
    let data = len.div_ceil(SHARD);
    (data * n).div_ceil(100).max(data.min(2))
}

fn flip(store: &MemoryStore, object: &ObjectName, at: usize) {
    store.damage(object, |b| b[at] ^= 0x40).unwrap();
}

#[test]
fn streamed_parity_is_that_of_the_crate_and_has_the_size_it_says() {
    for len in [1, 63, 64, 4096, 4097, 3 * SHARD, 70 * SHARD + 5, 600 * SHARD + 1, 1100 * SHARD + 100] {
        for n in [1, 5, 20] {
            let (store, bytes) = stored(len, n);
            let parity = store.read(&parity_name(), u64::MAX).unwrap();
            let page = parse_page(&parity[..parity.len().min(PAGE_BYTES)], &print_of_name(&name())).unwrap();
            let s = page.section;
            assert_eq!(parity.len() as u64, s.section_bytes(), "{len} {n}");
            assert_eq!(s.parity_shards(), if len <= SHARD { 1 } else { parity_shards(len, n.into()) });
            let shard = s.shard();
            let mut encoder =
                HighRateEncoder::new(s.data_shards(), s.width(), shard, DefaultEngine::new(), None).unwrap();
            for data in bytes.chunks(shard) {
                let mut padded = data.to_vec();
                padded.resize(shard, 0);
                encoder.add_original_shard(&padded).unwrap();
            }
            let result = encoder.encode().unwrap();
            let at = usize::try_from(s.parity_at()).unwrap();
            for (i, ours) in parity[at..at + s.parity_shards() * shard].chunks(shard).enumerate() {
                assert!(result.recovery(i) == Some(ours), "{len} {n} {i}");
            }
            assert_eq!(check(&*store, &name()).unwrap(), ParityState::Whole);
        }
    }
}

#[test]
fn pieces_of_any_size_give_the_same_parity() {
    let bytes = content(300 * SHARD + 77);
    let encode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut out = vec![];
        let mut take = |b: &[u8]| {
            out.extend_from_slice(b);
            Ok(())
        };
        let mut encoder = ParityEncoder::new(&name(), percent(1));
        pieces.for_each(|p| encoder.write(p, &mut take).unwrap());
        encoder.finish(&mut take).unwrap();
        out
    };
    let whole = encode(&mut std::iter::once(&bytes[..]));
    for size in [1000, 4095, 4096, 65537] {
        assert!(encode(&mut bytes.chunks(size)) == whole, "{size}");
    }
}

#[test]
fn sections_of_a_large_object_heal_one_by_one() {
    let section = PARITY_SECTION_SHARDS * SHARD;
    let len = 2 * section + 5000;
    let (store, bytes) = stored(len, 1);
    assert_eq!(check(&*store, &name()).unwrap(), ParityState::Whole);
    // At both ends of each section, and the end of the object is cut off.
    for at in [0, section - 1, section, 2 * section - 1] {
        flip(&store, &name(), at);
    }
    store.damage(&name(), |b| b.truncate(len - 4000)).unwrap();
    // The front of the second section's index and all of the first one's are gone.
    let parity = store.read(&parity_name(), u64::MAX).unwrap();
    let first = parse_page(&parity[..PAGE_BYTES], &print_of_name(&name())).unwrap().section;
    let second = usize::try_from(first.section_bytes()).unwrap();
    let index = usize::try_from(first.index_bytes()).unwrap();
    store.damage(&parity_name(), |b| b[..index].fill(0)).unwrap();
    store.damage(&parity_name(), |b| b[second..second + 2 * PAGE_BYTES].fill(0xff)).unwrap();
    assert!(read_healed(&store).unwrap() == bytes);
}

#[test]
fn one_sector_more_than_there_is_parity_says_so_and_changes_nothing() {
    let shards = 100;
    let (store, _) = stored(shards * SHARD, 5);
    for i in 0..6 {
        flip(&store, &name(), i * 17 * SHARD + 9);
    }
    let damaged = store.read(&name(), u64::MAX).unwrap();
    match heal(&*store, &name()) {
        Err(HealError::TooMuch { damaged: 6, shards: 100, parity: 5 }) => {}
        other => panic!("{other:?}"),
    }
    assert!(read_healed(&store).unwrap() == damaged, "as it is, not something in between");
    let healing = HealingStore::new(store.clone());
    assert!(!healing.heal(&name()) && !healing.heal(&name()));
    assert_eq!(healing.notices().len(), 1, "told once");
}

#[test]
fn an_object_that_was_cut_or_grew_has_its_length_again() {
    let len = 200 * SHARD + 1234;
    let (store, bytes) = stored(len, 5);
    // Ten shards and the short one are more than the parity; nine and the short one are not.
    for cut in [1, 1234, 1235, 9 * SHARD + 1234, 10 * SHARD + 1233] {
        store.damage(&name(), |b| b.truncate(len - cut)).unwrap();
        assert!(read_healed(&store).unwrap() == bytes, "{cut}");
        store.damage(&name(), |b| b.clone_from(&bytes)).unwrap();
    }
    store.damage(&name(), |b| b.truncate(len - 12 * SHARD)).unwrap();
    assert!(matches!(heal(&*store, &name()), Err(HealError::TooMuch { .. })));
    store
        .damage(&name(), |b| {
            b.clone_from(&bytes);
            b.extend_from_slice(b"and something more");
        })
        .unwrap();
    assert!(read_healed(&store).unwrap() == bytes);
}

#[test]
fn an_object_that_ends_in_zeros_gets_them_back() {
    let store = Arc::new(MemoryStore::new());
    let mut bytes = content(20 * SHARD);
    bytes[18 * SHARD + 5..].fill(0);
    ParityStore::new(store.clone(), percent(20)).put_new(&name(), &bytes).unwrap();
    store.damage(&name(), |b| b.truncate(18 * SHARD + 100)).unwrap();
    assert!(read_healed(&store).unwrap() == bytes);
}

#[test]
fn a_small_object_that_is_gone_comes_back() {
    for len in [1, 100, SHARD, 2 * SHARD] {
        let (store, bytes) = stored(len, 1);
        store.delete(&name()).unwrap();
        assert!(read_healed(&store).unwrap() == bytes, "{len}");
    }
    let (store, _) = stored(3 * SHARD, 1);
    store.delete(&name()).unwrap();
    assert!(read_healed(&store).is_err_and(|e| e.is_not_found()));
}

#[test]
fn parity_heals_no_other_object_and_its_absence_is_no_damage() {
    let (store, _) = stored(10 * SHARD, 5);
    let other = ObjectName::parse("clusters/main/backups/20260101-000000F/packs/000002").unwrap();
    let parity = store.read(&parity_name(), u64::MAX).unwrap();
    store.put_new(&names::parity(&other).unwrap(), &parity).unwrap();
    store.put_new(&other, &content(10 * SHARD)).unwrap();
    assert!(matches!(heal(&*store, &other), Err(HealError::ParityDamaged)));
    assert_eq!(check(&*store, &other).unwrap(), ParityState::Damaged);
    store.delete(&parity_name()).unwrap();
    assert!(matches!(heal(&*store, &name()), Err(HealError::NoParity)));
    assert_eq!(check(&*store, &name()).unwrap(), ParityState::Missing);
    let healing = HealingStore::new(store);
    assert!(!healing.heal(&name()) && healing.notices().is_empty());
}

#[test]
fn every_byte_of_parity_is_checked_and_protect_makes_it_right_again() {
    let (store, _) = stored(3 * SHARD + 10, 5);
    let good = store.read(&parity_name(), u64::MAX).unwrap();
    for at in (0..good.len()).step_by(97).chain([good.len() - 1]) {
        flip(&store, &parity_name(), at);
        assert_eq!(check(&*store, &name()).unwrap(), ParityState::Damaged, "{at}");
        store.damage(&parity_name(), |b| b.clone_from(&good)).unwrap();
    }
    for change in [|b: &mut Vec<u8>| b.truncate(50), |b: &mut Vec<u8>| b.push(0), |b: &mut Vec<u8>| b.clear()] {
        store.damage(&parity_name(), change).unwrap();
        assert_eq!(check(&*store, &name()).unwrap(), ParityState::Damaged);
        protect(&*store, &name(), percent(5)).unwrap();
        assert!(store.read(&parity_name(), u64::MAX).unwrap() == good);
    }
    store.delete(&parity_name()).unwrap();
    protect(&*store, &name(), percent(5)).unwrap();
    assert!(store.read(&parity_name(), u64::MAX).unwrap() == good);
}

#[test]
fn parity_that_was_left_behind_is_replaced_by_that_of_the_new_object() {
    let (store, _) = stored(5 * SHARD, 5);
    store.delete(&name()).unwrap();
    let bytes = content(6 * SHARD);
    ParityStore::new(store.clone(), percent(5)).put_new(&name(), &bytes).unwrap();
    assert_eq!(check(&*store, &name()).unwrap(), ParityState::Whole);
    // Whoever comes second with a name changes nothing.
    let again = ParityStore::new(store.clone(), percent(5)).put_new(&name(), &content(7 * SHARD));
    assert!(again.is_err_and(|e| e.is_already_exists()));
    assert_eq!(check(&*store, &name()).unwrap(), ParityState::Whole);
}

#[test]
fn parity_that_cannot_be_written_is_said_and_the_object_stays() {
    let bytes = content(50 * SHARD);
    // Creating, writing or committing the parity fails; the object comes first in each.
    for (op, nth) in [(Op::Create, 2), (Op::Write, 2), (Op::Finish, 2)] {
        let inner = Arc::new(MemoryStore::new());
        let faulty = Arc::new(FaultStore::new(inner.clone(), 1));
        faulty.inject(&[op], When::Nth(nth), Fault::NoSpace);
        let store = ParityStore::new(faulty, percent(5));
        store.put_new(&name(), &bytes).unwrap();
        let notices = store.notices();
        assert!(notices.len() == 1 && notices[0].contains("has no parity"), "{op:?} {notices:?}");
        assert!(store.notices().is_empty(), "told once");
        assert!(inner.read(&name(), u64::MAX).unwrap() == bytes);
        assert_eq!(check(&*inner, &name()).unwrap(), ParityState::Missing);
    }
    // When the object itself fails, nothing is left of either.
    let inner = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultStore::new(inner.clone(), 1));
    faulty.inject(&[Op::Finish], When::Nth(1), Fault::NoSpace);
    assert!(ParityStore::new(faulty, percent(5)).put_new(&name(), &bytes).is_err());
    let mut all = 0;
    let mut count = |_| {
        all += 1;
        Ok(())
    };
    inner.list("", &mut count).unwrap();
    assert_eq!(all, 0);
}

#[test]
fn what_has_a_mirror_gets_no_parity() {
    let deserving = [
        PACK,
        "clusters/c/backups/20260101-000000F/manifest",
        "clusters/c/backups/20260101-000000F/record",
        "clusters/c/wal/7/00000001/00000000/000000010000000000000001",
        "clusters/c/wal/7/00000001/00000000/000000010000000000000001.r1",
        "clusters/c/wal/7/history/00000002.history",
    ];
    let others = [
        "keyring/0000000000000001",
        "clusters/c/catalog/0000000000000001",
        "clusters/c/catalog-mirror/0000000000000001",
        "clusters/c/wal/7/head/0000000000000001",
        "clusters/c/wal/7/conflicts/000000010000000000000001-0123456789abcdef",
        "probe/1-2",
    ];
    for text in deserving {
        let object = ObjectName::parse(text).unwrap();
        assert!(names::deserves_parity(&object), "{text}");
        let parity = names::parity(&object).unwrap();
        assert!(!names::deserves_parity(&parity), "{parity}");
        assert_eq!(names::protected_by(parity.as_str()), Some(text));
    }
    for text in others {
        assert!(!names::deserves_parity(&ObjectName::parse(text).unwrap()), "{text}");
    }
}

#[test]
fn the_wrappers_keep_what_a_store_promises() {
    conformance::conformance(&|| Arc::new(ParityStore::new(Arc::new(MemoryStore::new()), percent(5))));
    conformance::conformance(&|| Arc::new(HealingStore::new(Arc::new(MemoryStore::new()))));
}

#[test]
fn a_share_is_a_whole_percentage() {
    assert_eq!("5%".parse::<Percent>().unwrap().to_string(), "5%");
    for bad in ["", "5", "0%", "21%", "-1%", "5.5%", "%", "300%"] {
        assert!(bad.parse::<Percent>().is_err(), "{bad}");
    }
}

/// A disk of which sectors cannot be read.
struct BadDisk {
    inner: Arc<MemoryStore>,
    bad: BTreeSet<(ObjectName, u64)>,
}

impl BadDisk {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }
}

impl Store for BadDisk {
    forward_to_inner!(put_new create stat list list_dirs delete free_bytes url sweep_abandoned);

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let sectors = offset / 4096..=(offset + buf.len().max(1) as u64 - 1) / 4096;
        if self.bad.iter().any(|(n, s)| n == name && sectors.contains(s)) {
            return Err(StoreError::io(
                "read",
                name,
                io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
            ));
        }
        self.inner.read_at(name, offset, buf)
    }
    fn read(&self, name: &ObjectName, max: u64) -> Result<Vec<u8>, StoreError> {
        let mut bytes = self.inner.read(name, max)?;
        self.read_at(name, 0, &mut bytes)?;
        Ok(bytes)
    }
}

/// Checksums of a page are lost in both copies, and one of the shards that they were of is damaged.
#[test]
fn shards_of_which_nobody_knows_the_checksum_are_made_again_as_far_as_parity_reaches() {
    let (store, bytes) = stored(5000 * SHARD, 20);
    let parity = store.read(&parity_name(), u64::MAX).unwrap();
    let s = parse_page(&parity[..PAGE_BYTES], &print_of_name(&name())).unwrap().section;
    for at in s.page_at(3) {
        flip(&store, &parity_name(), usize::try_from(at).unwrap() + 100);
    }
    flip(&store, &name(), 1600 * SHARD);
    flip(&store, &name(), 20 * SHARD);
    assert!(read_healed(&store).unwrap() == bytes);
}

#[test]
fn sectors_that_cannot_be_read_are_read_around() {
    let len = 400 * SHARD + 3;
    let (store, bytes) = stored(len, 5);
    // The front copy of the index is gone with the first sector, the others hold parity.
    let bad = [0, 7, 8, 9, 300, 400].map(|s| (name(), s));
    let bad_parity = [0, 3, 5].map(|s| (parity_name(), s));
    let disk = Arc::new(BadDisk { inner: store, bad: bad.into_iter().chain(bad_parity).collect() });
    assert!(disk.read(&name(), u64::MAX).is_err_and(|e| e.is_unreadable()));
    let healing = HealingStore::new(disk);
    assert!(healing.heal(&name()), "{:?}", healing.notices());
    assert!(healing.read(&name(), u64::MAX).unwrap() == bytes);
    // Ranges that begin and end anywhere, over sound and healed sectors.
    for (at, n) in
        [(0, 1), (4095, 2), (4096 * 6 + 1, 4096 * 4), (4096 * 7 + 100, 200), (len - 3, 3), (len - 5000, 5000)]
    {
        let mut buf = vec![0; n];
        healing.read_at(&name(), at as u64, &mut buf).unwrap();
        assert!(buf == bytes[at..at + n], "{at}+{n}");
    }
    assert!(healing.read_at(&name(), len as u64, &mut [0]).is_err());
    assert_eq!(healing.stat(&name()).unwrap().size, len as u64);
}

/// What happens to a store's bytes.
#[derive(Clone, Debug)]
enum Harm {
    Flip(prop::sample::Index),
    Zeros(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Harm::Flip),
        (any::<prop::sample::Index>(), 1usize..3 * SHARD).prop_map(|(i, n)| Harm::Zeros(i, n)),
        any::<prop::sample::Index>().prop_map(Harm::Cut),
    ]
}

impl Harm {
    fn apply(&self, b: &mut Vec<u8>) {
        if b.is_empty() {
            return;
        }
        match self {
            Harm::Flip(i) => {
                let at = i.index(b.len());
                b[at] ^= 1;
            }
            Harm::Zeros(i, n) => {
                let at = i.index(b.len());
                let end = b.len().min(at + n);
                b[at..end].fill(0);
            }
            Harm::Cut(i) => b.truncate(i.index(b.len())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any pattern of damaged shards, of the object and of its parity, up to the limit heals exactly; one more does not.
    #[test]
    fn any_damage_within_the_limit_heals_exactly(
        len in 1usize..150 * SHARD, n in 1u8..=20, picks in proptest::collection::vec(any::<prop::sample::Index>(), 40),
        of_parity in 0usize..40,
    ) {
        let (store, bytes) = stored(len, n);
        let parity = store.read(&parity_name(), u64::MAX).unwrap();
        let s = parse_page(&parity[..parity.len().min(PAGE_BYTES)], &print_of_name(&name())).unwrap().section;
        let (limit, data, at) = (s.parity_shards(), s.data_shards(), usize::try_from(s.parity_at()).unwrap());
        let lost_parity: BTreeSet<usize> = picks.iter().take(of_parity.min(limit - 1)).map(|p| p.index(limit)).collect();
        for shard in &lost_parity {
            flip(&store, &parity_name(), at + shard * s.shard() + 1);
        }
        let left = limit - lost_parity.len();
        let lost: BTreeSet<usize> = picks.iter().rev().map(|p| p.index(data)).chain(0..data).take(left.min(data)).collect();
        let hit = |shard: usize| flip(&store, &name(), (shard * s.shard() + 11).min(len - 1));
        lost.iter().for_each(|shard| hit(*shard));
        prop_assert!(read_healed(&store).unwrap() == bytes);
        if let Some(one_more) = (0..data).find(|d| !lost.contains(d)).filter(|_| lost.len() == left) {
            hit(one_more);
            let is_too_much = matches!(heal(&*store, &name()), Err(HealError::TooMuch { .. }));
            prop_assert!(is_too_much);
        }
    }

    /// Whatever happens to either, what is handed out as healed is what was written, or nothing is.
    #[test]
    fn nothing_else_is_ever_made_of_it(
        len in 1usize..40 * SHARD, object in proptest::collection::vec(harm(), 0..3),
        parity in proptest::collection::vec(harm(), 0..4),
    ) {
        let (store, bytes) = stored(len, 10);
        object.iter().for_each(|h| store.damage(&name(), |b| h.apply(b)).unwrap());
        parity.iter().for_each(|h| store.damage(&parity_name(), |b| h.apply(b)).unwrap());
        match heal(&*store, &name()) {
            Ok(_) => prop_assert!(read_healed(&store).unwrap() == bytes),
            Err(HealError::NothingWrong) => prop_assert!(store.read(&name(), u64::MAX).unwrap() == bytes),
            Err(_) => {}
        }
    }

    /// Foreign bytes are refused, and with sound checksums they can at most make wrong bytes, which seals refuse.
    #[test]
    fn hostile_parity_neither_panics_nor_takes_memory(
        header in proptest::collection::vec(any::<u8>(), 52), prints in 0usize..600,
    ) {
        let (store, _) = stored(3 * SHARD, 5);
        let mut page = b"PGARKPAR\x01\x05".to_vec();
        page.extend_from_slice(&header[..2]);
        page.extend_from_slice(&0u32.to_le_bytes());
        page.extend_from_slice(&header[4..36]);
        page.truncate(48);
        page.extend_from_slice(&print_of_name(&name()));
        page.resize(64 + prints * 8, 7);
        let sum = blake3::hash(&page);
        page.extend_from_slice(&sum.as_bytes()[..16]);
        store.damage(&parity_name(), |b| *b = page).unwrap();
        let _ = heal(&*store, &name());
        prop_assert!(check(&*store, &name()).unwrap() == ParityState::Damaged);
    }
}
