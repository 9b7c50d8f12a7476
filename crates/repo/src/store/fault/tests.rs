#![allow(clippy::unwrap_used)]

use super::*;
use crate::store::conformance::conformance;
use crate::store::{MemoryStore, StoreErrorKind};

fn name(s: &str) -> ObjectName {
    ObjectName::parse(s).unwrap()
}

fn fault_store() -> (Arc<MemoryStore>, FaultStore) {
    let inner = Arc::new(MemoryStore::new());
    (Arc::clone(&inner), FaultStore::new(inner, 7))
}

fn names(store: &dyn Store) -> Vec<String> {
    let mut names = vec![];
    let mut visit = |stat: ObjectStat| {
        names.push(stat.name.to_string());
        Ok(())
    };
    store.list("", &mut visit).unwrap();
    names
}

#[test]
fn without_rules_it_conforms() {
    conformance(&|| Arc::new(FaultStore::new(Arc::new(MemoryStore::new()), 1)));
}

#[test]
fn the_nth_operation_of_a_kind_fails_without_effect() {
    let (inner, store) = fault_store();
    store.inject(&[Op::PutNew], When::Nth(2), Fault::Fail);
    store.put_new(&name("a"), b"1").unwrap();
    store.read(&name("a"), 1).unwrap();
    let e = store.put_new(&name("b"), b"2").unwrap_err();
    assert_eq!((e.kind(), e.object()), (StoreErrorKind::Io, Some("b")));
    store.put_new(&name("c"), b"3").unwrap();
    assert_eq!(names(&*inner), ["a", "c"]);
}

#[test]
fn a_lost_reply_leaves_the_effect() {
    let (inner, store) = fault_store();
    store.inject(Op::COMMITS, When::From(1), Fault::LoseReply);
    assert!(store.put_new(&name("a"), b"1").is_err());
    let mut w = store.create(&name("b")).unwrap();
    w.write(b"2").unwrap();
    assert!(w.finish().is_err());
    assert_eq!(inner.read(&name("b"), 9).unwrap(), b"2");
    assert!(store.delete(&name("a")).is_err());
    assert_eq!(names(&*inner), ["b"]);
    // A refusal of the store itself stays what it is.
    assert!(store.put_new(&name("b"), b"1").unwrap_err().is_already_exists());
}

#[test]
fn a_full_store_takes_nothing_but_still_reads_and_deletes() {
    let (inner, store) = fault_store();
    store.inject(Op::WRITES, When::From(3), Fault::NoSpace);
    store.put_new(&name("a"), b"1").unwrap();
    let mut w = store.create(&name("b")).unwrap();
    assert_eq!(w.write(b"2").unwrap_err().kind(), StoreErrorKind::NoSpace);
    assert_eq!(w.written(), 0);
    assert!(w.finish().is_err());
    assert_eq!(store.put_new(&name("c"), b"").unwrap_err().kind(), StoreErrorKind::NoSpace);
    assert_eq!(store.read(&name("a"), 9).unwrap(), b"1");
    store.delete(&name("a")).unwrap();
    assert!(names(&*inner).is_empty());
}

#[test]
fn a_read_can_lie_once() {
    let bytes = vec![0u8; 1000];
    let (_, store) = fault_store();
    store.put_new(&name("a"), &bytes).unwrap();
    store.inject(Op::READS, When::Nth(1), Fault::FlipBit);
    store.inject(Op::READS, When::Nth(2), Fault::FlipBit);
    store.inject(Op::READS, When::Nth(3), Fault::Truncate);
    store.inject(Op::READS, When::Nth(4), Fault::Truncate);
    let ones = |b: &[u8]| b.iter().map(|b| b.count_ones()).sum::<u32>();
    assert_eq!(ones(&store.read(&name("a"), 1000).unwrap()), 1);
    let mut buf = [0; 100];
    store.read_at(&name("a"), 0, &mut buf).unwrap();
    assert_eq!(ones(&buf), 1);
    assert!(store.read(&name("a"), 1000).unwrap().len() < 1000);
    assert_eq!(store.read_at(&name("a"), 0, &mut buf).unwrap_err().kind(), StoreErrorKind::Truncated);
    assert_eq!(store.read(&name("a"), 1000).unwrap(), bytes);
}

#[test]
fn a_list_can_hide_objects_that_can_be_read() {
    let (_, store) = fault_store();
    for n in ["a/x", "a/y", "b/x"] {
        store.put_new(&name(n), b"1").unwrap();
    }
    store.hide(|n| n == "a/y" || n == "b");
    assert_eq!(names(&store), ["a/x", "b/x"]);
    assert_eq!(store.list_dirs("").unwrap(), ["a"]);
    assert_eq!(store.read(&name("a/y"), 1).unwrap(), b"1");
    store.heal();
    assert_eq!(names(&store), ["a/x", "a/y", "b/x"]);
}

#[test]
fn after_a_crash_nothing_works_until_the_restart() {
    for (fault, survivors) in [(Fault::CrashBefore, vec!["a"]), (Fault::CrashAfter, vec!["a", "b"])] {
        let (inner, store) = fault_store();
        store.inject(Op::ALL, When::Nth(4), fault);
        store.put_new(&name("a"), b"1").unwrap();
        let mut w = store.create(&name("c")).unwrap();
        w.write(b"3").unwrap();
        assert!(store.put_new(&name("b"), b"2").is_err());
        assert!(store.crashed());
        assert!(w.write(b"3").is_err());
        assert!(w.finish().is_err());
        assert!(store.read(&name("a"), 1).is_err());
        assert!(store.list("", &mut |_| Ok(())).is_err());
        assert!(store.delete(&name("a")).is_err());
        assert_eq!(names(&*inner), survivors);
        store.heal();
        assert_eq!(names(&store), survivors);
    }
}

#[test]
fn the_log_tells_what_happened() {
    let (_, store) = fault_store();
    store.inject(&[Op::Stat], When::Nth(1), Fault::CrashAfter);
    store.put_new(&name("a"), b"1").unwrap();
    assert!(store.read(&name("b"), 1).is_err());
    assert!(store.stat(&name("a")).is_err());
    assert!(store.list("a", &mut |_| Ok(())).is_err());
    let entry = |op, object: &str, outcome| LogEntry { op, object: object.to_owned(), outcome };
    let expected = [
        entry(Op::PutNew, "a", Outcome::Done),
        entry(Op::Read, "b", Outcome::Refused),
        entry(Op::Stat, "a", Outcome::Injected(Fault::CrashAfter)),
        entry(Op::List, "a", Outcome::Dead),
    ];
    assert_eq!(store.log(), expected);
    assert_eq!((store.count(Op::READS), store.count(Op::ALL)), (1, 4));
    store.clear_log();
    assert_eq!(store.count(Op::ALL), 0);
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let run = |seed| {
        let store = FaultStore::new(Arc::new(MemoryStore::new()), seed);
        store.inject(Op::ALL, When::PerThousand(300), Fault::Fail);
        (0..200).map(|i| store.put_new(&name(&i.to_string()), b"").is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let failed = run(1).iter().filter(|ok| !**ok).count();
    assert!((20..120).contains(&failed), "{failed} of 200 failed");
}
