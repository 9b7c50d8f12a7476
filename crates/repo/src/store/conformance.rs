//! What every store has to do, as a program: each store's tests run it, so that the code above may forget which
//! one it has. Panics with what was expected; needs a fresh, empty store from each call of `make`.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{ObjectName, Store, StoreError, StoreErrorKind};

const RACERS: usize = 16;
const ROUNDS: usize = 20;
/// More than two pages of an object store's listing.
const MANY: usize = 2600;
const LARGE: usize = 5 * 1024 * 1024;

pub fn conformance(make: &dyn Fn() -> Arc<dyn Store>) {
    conformance_despite(make, &[]);
}

/// What a server is known to do wrong; everything else is asked of it all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It fails on a name that other objects lie below, instead of not finding it; no name of a repository is both.
    FailsOnDirectories,
    /// Of those who create a name at the same time, several may be told that they did.
    CreatesTwice,
}

pub fn conformance_despite(make: &dyn Fn() -> Arc<dyn Store>, flaws: &[Flaw]) {
    objects_come_back_exactly(&*make());
    a_taken_name_keeps_its_first_bytes(&*make());
    what_is_missing_is_not_found(&*make(), flaws);
    reads_are_bounded(&*make());
    read_at_is_exact(&*make());
    streamed_objects_appear_when_finished(&*make());
    an_unfinished_writer_leaves_nothing(&*make());
    finish_never_replaces(&*make());
    lists_are_sorted_and_complete(&*make());
    prefixes_are_directories(&*make());
    a_visitor_can_stop_a_list(&*make());
    deleted_objects_are_gone(&*make());
    if !flaws.contains(&Flaw::CreatesTwice) {
        one_of_many_racers_wins(&make());
    }
    racing_deletes_and_puts_do_not_fail(&make());
    finished_objects_survive_the_sweep(&*make());
}

fn name(name: &str) -> ObjectName {
    ObjectName::parse(name).expect("a valid name")
}

fn put(store: &dyn Store, object: &str, bytes: &[u8]) {
    store.put_new(&name(object), bytes).unwrap_or_else(|e| panic!("put_new {object}: {e}"));
}

fn get(store: &dyn Store, object: &str) -> Vec<u8> {
    store.read(&name(object), u64::MAX).unwrap_or_else(|e| panic!("read {object}: {e}"))
}

fn listed(store: &dyn Store, prefix: &str) -> Vec<String> {
    let mut names = vec![];
    let mut visit = |stat: super::ObjectStat| {
        names.push(stat.name.to_string());
        Ok(())
    };
    store.list(prefix, &mut visit).unwrap_or_else(|e| panic!("list {prefix:?}: {e}"));
    names
}

fn dirs(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list_dirs(prefix).unwrap_or_else(|e| panic!("list_dirs {prefix:?}: {e}"))
}

#[track_caller]
fn expect_kind<T>(result: Result<T, StoreError>, kind: StoreErrorKind, object: &str) {
    match result {
        Ok(_) => panic!("{kind:?} expected for {object}, but it succeeded"),
        Err(e) => assert_eq!((e.kind(), e.object()), (kind, Some(object)), "{e}"),
    }
}

/// Bytes that are nowhere the same, so that a shifted or repeated read shows.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

fn objects_come_back_exactly(store: &dyn Store) {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    for (object, len) in [("empty", 0), ("one", 1), ("a/b/c=1+2@x-y_z.w", 4096), (&long, 10), ("large", LARGE)] {
        let bytes = pattern(len);
        put(store, object, &bytes);
        assert!(get(store, object) == bytes, "{object} came back different");
        let stat = store.stat(&name(object)).unwrap_or_else(|e| panic!("stat {object}: {e}"));
        assert_eq!((stat.name.as_str(), stat.size), (object, len as u64));
    }
    assert!(!store.url().is_empty());
    let free = store.free_bytes().expect("free_bytes");
    let space = store.space().expect("space");
    assert_eq!(space.is_some(), free.is_some());
    if let Some((free, total)) = space.and_then(|s| Some((s.free_bytes, s.total_bytes?))) {
        assert!(free <= total, "{free} bytes are free of {total}");
    }
}

fn a_taken_name_keeps_its_first_bytes(store: &dyn Store) {
    put(store, "a/taken", b"first");
    for bytes in [&b"second"[..], b"first", b""] {
        expect_kind(store.put_new(&name("a/taken"), bytes), StoreErrorKind::AlreadyExists, "a/taken");
        assert_eq!(get(store, "a/taken"), b"first");
    }
    assert_eq!(listed(store, ""), ["a/taken"]);
}

fn what_is_missing_is_not_found(store: &dyn Store, flaws: &[Flaw]) {
    put(store, "dir/object", b"x");
    let mut names = vec!["none", "no/where/at/all", "dir/objec"];
    if !flaws.contains(&Flaw::FailsOnDirectories) {
        names.extend(["dir", "dir/object/below"]);
    }
    for missing in names {
        let n = name(missing);
        expect_kind(store.read(&n, 10), StoreErrorKind::NotFound, missing);
        expect_kind(store.read_at(&n, 0, &mut [0]), StoreErrorKind::NotFound, missing);
        expect_kind(store.stat(&n), StoreErrorKind::NotFound, missing);
        expect_kind(store.delete(&n), StoreErrorKind::NotFound, missing);
    }
    assert_eq!(get(store, "dir/object"), b"x");
}

fn reads_are_bounded(store: &dyn Store) {
    put(store, "ten", &pattern(10));
    assert_eq!(store.read(&name("ten"), 10).expect("exactly max"), pattern(10));
    match store.read(&name("ten"), 9) {
        Err(StoreError::TooLarge { object, size: 10, max: 9 }) => assert_eq!(object, "ten"),
        other => panic!("TooLarge expected, got {other:?}"),
    }
    expect_kind(store.read(&name("ten"), 0), StoreErrorKind::TooLarge, "ten");
    put(store, "empty", b"");
    assert_eq!(store.read(&name("empty"), 0).expect("empty is not larger than 0"), b"");
}

fn read_at_is_exact(store: &dyn Store) {
    let bytes = pattern(100_000);
    put(store, "r", &bytes);
    for (from, len) in [(0, 1), (0, 100_000), (99_999, 1), (4095, 2), (50_001, 40_000), (100_000, 0), (0, 0)] {
        let mut buf = vec![0xaa; len];
        store.read_at(&name("r"), from as u64, &mut buf).unwrap_or_else(|e| panic!("read_at {from}+{len}: {e}"));
        assert!(buf == bytes[from..from + len], "{from}+{len} is different");
    }
    for (from, len) in [(100_000, 1), (99_999, 2), (0, 100_001), (200_000, 1), (100_001, 0), (u64::MAX, 10)] {
        expect_kind(store.read_at(&name("r"), from, &mut vec![0; len]), StoreErrorKind::Truncated, "r");
    }
}

fn streamed_objects_appear_when_finished(store: &dyn Store) {
    let bytes = pattern(LARGE);
    let mut writer = store.create(&name("s/large")).expect("create");
    for piece in [&bytes[..12], &bytes[12..12], &bytes[12..1_000_000], &bytes[1_000_000..]] {
        writer.write(piece).expect("write");
        assert!(listed(store, "").is_empty(), "visible before finish");
        expect_kind(store.stat(&name("s/large")), StoreErrorKind::NotFound, "s/large");
    }
    assert_eq!(writer.written(), LARGE as u64);
    writer.finish().expect("finish");
    assert!(get(store, "s/large") == bytes);

    // Settled before it is finished, settled twice, written on, and never settled again.
    for (object, pieces) in [("s/settled", [10, 20]), ("s/settled-large", [1_200_000, 1_200_100])] {
        let bytes = pattern(pieces[1]);
        let mut writer = store.create(&name(object)).expect("create");
        writer.write(&bytes[..pieces[0]]).expect("write");
        writer.settle().expect("settle");
        writer.settle().expect("settle again");
        expect_kind(store.stat(&name(object)), StoreErrorKind::NotFound, object);
        writer.write(&bytes[pieces[0]..]).expect("write on");
        writer.finish().expect("finish");
        assert!(get(store, object) == bytes);
        store.delete(&name(object)).expect("delete");
    }

    store.create(&name("s/empty")).expect("create").finish().expect("finish");
    assert_eq!(get(store, "s/empty"), b"");
    assert_eq!(listed(store, "s"), ["s/empty", "s/large"]);
}

fn an_unfinished_writer_leaves_nothing(store: &dyn Store) {
    let mut writer = store.create(&name("u/deep/x")).expect("create");
    writer.write(&pattern(100_000)).expect("write");
    drop(writer);
    assert!(listed(store, "").is_empty());
    assert!(dirs(store, "").is_empty());
    expect_kind(store.read(&name("u/deep/x"), 10), StoreErrorKind::NotFound, "u/deep/x");
    put(store, "u/deep/x", b"later");
    assert_eq!(get(store, "u/deep/x"), b"later");
    assert_eq!(store.sweep_abandoned(Duration::ZERO).expect("sweep"), 0);
}

fn finish_never_replaces(store: &dyn Store) {
    let mut first = store.create(&name("f/x")).expect("create");
    let mut second = store.create(&name("f/x")).expect("two writers may begin");
    first.write(b"first").expect("write");
    second.write(b"second").expect("write");
    second.finish().expect("finish");
    expect_kind(first.finish(), StoreErrorKind::AlreadyExists, "f/x");
    assert_eq!(get(store, "f/x"), b"second");

    let late = store.create(&name("f/x")).and_then(|mut w| w.write(b"late").and_then(|()| w.finish()));
    expect_kind(late, StoreErrorKind::AlreadyExists, "f/x");
    assert_eq!(get(store, "f/x"), b"second");
    assert_eq!(listed(store, ""), ["f/x"]);
}

fn lists_are_sorted_and_complete(store: &dyn Store) {
    let mut names: Vec<String> = (0..MANY).map(|i| format!("many/{:08x}", i.wrapping_mul(2_654_435_761))).collect();
    // '-', '.' and '+' sort before the slash, digits and letters after it.
    let around = ["a", "b-x", "b.x", "b+x", "b/x", "b/x.y/z", "b0", "b=x", "bb/x", "B", "c/d-e/f", "c/d/e", "many0/x"];
    names.extend(around.iter().map(|s| s.to_string()));
    for n in &names {
        put(store, n, n.as_bytes());
    }
    names.sort();
    assert!(listed(store, "") == names, "the list is not the sorted set of names");
    let below: Vec<_> = names.iter().filter(|n| n.starts_with("many/")).cloned().collect();
    assert_eq!(below.len(), MANY);
    assert!(listed(store, "many") == below);
    assert_eq!(dirs(store, ""), ["b", "bb", "c", "many", "many0"]);
    assert_eq!(dirs(store, "c"), ["d", "d-e"]);
    let mut sizes_right = true;
    let mut visit = |stat: super::ObjectStat| {
        sizes_right &= stat.size == stat.name.as_str().len() as u64;
        Ok(())
    };
    store.list("", &mut visit).expect("list");
    assert!(sizes_right, "a listed size is wrong");
}

fn prefixes_are_directories(store: &dyn Store) {
    for n in ["a/x", "a/y/z", "ab/x", "a.b"] {
        put(store, n, b"");
    }
    assert_eq!(listed(store, "a"), ["a/x", "a/y/z"]);
    assert_eq!(listed(store, "a/y"), ["a/y/z"]);
    assert_eq!(dirs(store, ""), ["a", "ab"]);
    assert_eq!(dirs(store, "a"), ["y"]);
    for empty in ["a/x", "a/y/z", "b", "a/none", "none/none", "ab/x/y", "A"] {
        assert!(listed(store, empty).is_empty(), "{empty} has objects");
        assert!(dirs(store, empty).is_empty(), "{empty} has directories");
    }
    for bad in ["a/", "/", "/a", "..", "a/../ab", ".", "a//y"] {
        expect_kind(store.list(bad, &mut |_| Ok(())), StoreErrorKind::InvalidName, bad);
        expect_kind(store.list_dirs(bad), StoreErrorKind::InvalidName, bad);
    }
}

fn a_visitor_can_stop_a_list(store: &dyn Store) {
    for n in ["v/1", "v/2", "v/3"] {
        put(store, n, b"");
    }
    let mut seen = 0;
    let mut visit = |stat: super::ObjectStat| {
        seen += 1;
        if seen == 2 { Err(StoreError::not_found(stat.name)) } else { Ok(()) }
    };
    expect_kind(store.list("", &mut visit), StoreErrorKind::NotFound, "v/2");
    assert_eq!(seen, 2);
    // Deleting what is visited is how expiry works.
    let mut delete = |stat: super::ObjectStat| store.delete(&stat.name);
    store.list("v", &mut delete).expect("delete while listing");
    assert!(listed(store, "").is_empty());
}

fn deleted_objects_are_gone(store: &dyn Store) {
    for n in ["d/e/1", "d/e/2", "d/3"] {
        put(store, n, b"old");
    }
    store.delete(&name("d/e/1")).expect("delete");
    assert_eq!(listed(store, "d"), ["d/3", "d/e/2"]);
    expect_kind(store.read(&name("d/e/1"), 10), StoreErrorKind::NotFound, "d/e/1");
    expect_kind(store.delete(&name("d/e/1")), StoreErrorKind::NotFound, "d/e/1");
    store.delete(&name("d/e/2")).expect("delete");
    assert!(dirs(store, "d").is_empty(), "an empty directory is left");
    assert_eq!(listed(store, ""), ["d/3"]);
    store.delete(&name("d/3")).expect("delete");
    assert!(listed(store, "").is_empty());
    assert!(dirs(store, "").is_empty());
    put(store, "d/e/1", b"new");
    assert_eq!(get(store, "d/e/1"), b"new");
}

pub fn one_of_many_racers_wins(store: &Arc<dyn Store>) {
    for round in 0..ROUNDS {
        let object = name(&format!("race/{round}/x"));
        let (barrier, wins) = (Barrier::new(RACERS), AtomicUsize::new(0));
        let winner = AtomicUsize::new(usize::MAX);
        std::thread::scope(|scope| {
            for racer in 0..RACERS {
                let (object, barrier, wins, winner) = (&object, &barrier, &wins, &winner);
                scope.spawn(move || {
                    let bytes = [u8::try_from(racer).expect("few racers"); 1000];
                    barrier.wait();
                    match store.put_new(object, &bytes) {
                        Ok(()) => {
                            wins.fetch_add(1, Ordering::SeqCst);
                            winner.store(racer, Ordering::SeqCst);
                        }
                        Err(e) => assert_eq!(e.kind(), StoreErrorKind::AlreadyExists, "{e}"),
                    }
                    // Whoever lost finds the whole of what won.
                    assert_eq!(store.read(object, 1000).expect("the winner's bytes").len(), 1000);
                });
            }
        });
        assert_eq!(wins.load(Ordering::SeqCst), 1, "round {round}: not exactly one winner");
        let bytes = get(&**store, object.as_str());
        assert!(bytes.iter().all(|&b| usize::from(b) == winner.load(Ordering::SeqCst)), "not the winner's bytes");
    }
    assert_eq!(listed(&**store, "").len(), ROUNDS);
}

/// Deleting the last object of a directory takes the directory along; writers must not notice.
fn racing_deletes_and_puts_do_not_fail(store: &Arc<dyn Store>) {
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for racer in 0..4 {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for i in 0..ROUNDS * 5 {
                    let object = name(&format!("churn/a/b/{racer}-{i}"));
                    store.put_new(&object, b"x").unwrap_or_else(|e| panic!("put_new: {e}"));
                    store.delete(&object).unwrap_or_else(|e| panic!("delete: {e}"));
                }
            });
        }
    });
    assert!(listed(&**store, "").is_empty());
}

fn finished_objects_survive_the_sweep(store: &dyn Store) {
    put(store, "k/tmp-1", b"kept");
    let mut writer = store.create(&name("k/live")).expect("create");
    writer.write(b"li").expect("write");
    store.sweep_abandoned(Duration::from_secs(3600)).expect("sweep");
    writer.write(b"ve").expect("write");
    writer.finish().expect("a writer at work is not swept away");
    assert_eq!((get(store, "k/tmp-1"), get(store, "k/live")), (b"kept".to_vec(), b"live".to_vec()));
}
