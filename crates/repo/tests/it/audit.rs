//! The audit trail: nobody takes a record out, changes or exchanges one without being seen; those who only write go on with it.

use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::audit::{Checked, Event, Head, Journal, JournalName, What, Who, check, journals};
use pgark_repo::crypto::{Algorithm, ObjectKind, generation_of};
use pgark_repo::error::RepoError;
use pgark_repo::keyring::{self, Change, SlotSecret, Unlock};
use pgark_repo::store::{MemoryStore, ObjectName, Store};
use pgark_repo::stream::seal_bytes;

use crate::common::{ALGORITHMS, fresh_identity, memory_repository};
use crate::keys::unlock;
use crate::sample::{self, at, cluster};

fn event(word: &str) -> Event {
    let what = What::Attempt { command: "backup".into(), arguments: vec![word.to_owned()] };
    Event::new(at(0), Some("main".into()), Who::default(), what).unwrap()
}

fn of_cluster() -> JournalName {
    JournalName::Cluster(cluster())
}

fn filled(algorithm: Algorithm, records: u64) -> (Arc<MemoryStore>, Repository) {
    let (store, repo) = memory_repository(algorithm);
    let journal = Journal::new(&repo, of_cluster());
    for n in 0..records {
        journal.append(&event(&n.to_string()), None).unwrap();
    }
    (store, repo)
}

fn checked(repo: &Repository, known: &[Head]) -> Checked {
    check(&Journal::new(repo, of_cluster()), known, &mut |_| Ok(())).unwrap()
}

fn faults(repo: &Repository, known: &[Head]) -> Vec<String> {
    checked(repo, known).faults.into_iter().map(|f| f.what).collect()
}

fn object(number: u64) -> ObjectName {
    let digits = format!("{number:016x}");
    ObjectName::parse(&format!("audit/main/{}/{digits}", &digits[..14])).unwrap()
}

fn exchange(store: &dyn Store, name: &ObjectName, bytes: &[u8]) {
    store.delete(name).unwrap();
    store.put_new(name, bytes).unwrap();
}

#[test]
fn records_are_a_chain_that_is_found_again() {
    for algorithm in ALGORITHMS {
        let (_, repo) = filled(algorithm, 300);
        assert_eq!(journals(&repo).unwrap(), [of_cluster()]);
        let journal = Journal::new(&repo, of_cluster());
        assert_eq!(journal.object(255), object(255), "a directory ends after 256 numbers");
        let head = journal.head().unwrap().unwrap();
        assert_eq!(head.number, 300);
        let all = checked(&repo, std::slice::from_ref(&head));
        assert_eq!((all.records, all.first, all.head.as_ref()), (300, 1, Some(&head)));
        assert!(all.faults.is_empty(), "{:?}", all.faults);
        // The same number is never given twice, also to who has not seen the newest.
        let old = journal.read(299).unwrap().head();
        assert_eq!(journal.append(&event("late"), Some(&old)).unwrap().number, 301);
        assert!(faults(&repo, &[head, old]).is_empty());
    }
}

#[test]
fn many_at_once_make_one_chain() {
    let (_, repo) = filled(Algorithm::Aes256Gcm, 0);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let repo = repo.clone();
            scope.spawn(move || {
                for n in 0..12 {
                    Journal::new(&repo, of_cluster()).append(&event(&format!("{writer}.{n}")), None).unwrap();
                }
            });
        }
    });
    let mut words = vec![];
    let all = check(&Journal::new(&repo, of_cluster()), &[], &mut |opened| {
        let What::Attempt { arguments, .. } = &opened.record.event.what else { panic!("an attempt") };
        words.extend(arguments.clone());
        Ok(())
    });
    assert!(all.unwrap().faults.is_empty());
    words.sort();
    words.dedup();
    assert_eq!(words.len(), 48, "each is there once");
}

#[test]
fn what_is_removed_changed_or_exchanged_is_seen() {
    for algorithm in ALGORITHMS {
        let site = || filled(algorithm, 8);
        let told = |damage: &dyn Fn(&dyn Store, &Repository), known: u64| {
            let (store, repo) = site();
            let head = Journal::new(&repo, of_cluster()).read(known).unwrap().head();
            damage(&*store, &repo);
            faults(&repo, &[head])
        };
        assert!(told(&|_, _| (), 8).is_empty());
        assert_eq!(told(&|s, _| s.delete(&object(4)).unwrap(), 2), ["record 4 is missing"]);
        assert_eq!(told(&|s, _| s.delete(&object(1)).unwrap(), 8), ["record 1 is missing"]);
        let first = |s: &dyn Store, _: &Repository| (1..4).for_each(|n| s.delete(&object(n)).unwrap());
        assert_eq!(told(&first, 8), ["records 1 to 3 are missing"]);
        // The end, for who remembers it; a head that is older says nothing of it.
        let end = |s: &dyn Store, _: &Repository| (7..9).for_each(|n| s.delete(&object(n)).unwrap());
        assert_eq!(told(&end, 8), ["the end is cut off: records 7 to 8 are missing"]);
        assert!(told(&end, 6).is_empty());
        // Cut off, and gone on with.
        let regrown = |s: &dyn Store, repo: &Repository| {
            end(s, repo);
            (0..4).for_each(|_| drop(Journal::new(repo, of_cluster()).append(&event("new"), None).unwrap()));
        };
        assert_eq!(told(&regrown, 8), ["record 8 is not the one that was remembered"]);
        let anew = |s: &dyn Store, repo: &Repository| {
            (1..9).for_each(|n| s.delete(&object(n)).unwrap());
            (0..9).for_each(|_| drop(Journal::new(repo, of_cluster()).append(&event("new"), None).unwrap()));
        };
        assert_eq!(told(&anew, 8), ["the journal was begun anew: record 8 is of another chain than it was"]);
        let nothing = |s: &dyn Store, _: &Repository| (1..9).for_each(|n| s.delete(&object(n)).unwrap());
        assert_eq!(told(&nothing, 8), ["the end is cut off: records 1 to 8 are missing"]);
        let flipped = |s: &dyn Store, _: &Repository| {
            let mut bytes = s.read(&object(5), 1 << 20).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            exchange(s, &object(5), &bytes);
        };
        assert!(told(&flipped, 8)[0].contains("is damaged"));
        let swapped = |s: &dyn Store, _: &Repository| {
            let (a, b) = (s.read(&object(5), 1 << 20).unwrap(), s.read(&object(6), 1 << 20).unwrap());
            exchange(s, &object(5), &b);
            exchange(s, &object(6), &a);
        };
        assert!(told(&swapped, 8).iter().all(|f| f.contains("another name")), "{:?}", told(&swapped, 8));
        // Who holds the key makes a record that opens, and not one that the next one continues.
        let forged = |s: &dyn Store, repo: &Repository| {
            let mut record = Journal::new(repo, of_cluster()).read(5).unwrap().record;
            record.event = event("forged");
            let text = serde_json::to_vec(&record).unwrap();
            exchange(s, &object(5), &seal_bytes(repo.keys(), ObjectKind::Audit, &object(5), &text).unwrap());
        };
        assert_eq!(told(&forged, 8), ["record 6 does not continue record 5: one of them was exchanged"]);
    }
}

#[test]
fn what_was_removed_by_age_is_not_missing_and_no_more_may_be() {
    let (store, repo) = filled(Algorithm::Aes256Gcm, 6);
    let journal = Journal::new(&repo, of_cluster());
    let (old, young) = (journal.read(2).unwrap().head(), journal.read(6).unwrap().head());
    let before = journal.read(3).unwrap().hash;
    let what = What::Shortened { first: 4, before };
    journal.append(&Event::new(at(0), None, Who::default(), what).unwrap(), None).unwrap();
    // Interrupted in the middle of it.
    journal.remove(2).unwrap();
    assert!(faults(&repo, &[]).is_empty(), "{:?}", faults(&repo, &[]));
    for number in 1..4 {
        journal.remove(number).unwrap();
    }
    let all = checked(&repo, &[old, young]);
    assert_eq!((all.first, all.records, all.heads_too_old), (4, 4, 1));
    assert!(all.faults.is_empty(), "{:?}", all.faults);
    store.delete(&object(4)).unwrap();
    assert_eq!(faults(&repo, &[]), ["record 4 is missing"]);
}

#[test]
fn a_writer_goes_on_with_a_chain_that_it_cannot_read() {
    let (memory, repo) = filled(Algorithm::Aes256Gcm, 3);
    sample::fill(&repo, 1).unwrap();
    let store: Arc<dyn Store> = memory;
    let identity = fresh_identity();
    let to = identity.parse::<age::x25519::Identity>().unwrap().to_public().to_string();
    keyring::edit(&store, &unlock(), |ring| {
        ring.add_writer(&cluster(), &SlotSecret::Age(&to), Some("host"))?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let writer = Repository::open(store.clone(), &Unlock::age_identities(&identity)).unwrap();
    let reader = Repository::open(store.clone(), &unlock()).unwrap();
    let (of_writer, of_reader) = (Journal::new(&writer, of_cluster()), Journal::new(&reader, of_cluster()));
    // What was there before says nothing to a writer; so `key add --writer` adds a record that does.
    assert!(matches!(of_writer.append(&event("x"), None), Err(RepoError::WriteOnly { .. })));
    of_reader.open_to_writer(|| Ok(event("writer"))).unwrap();
    of_reader.open_to_writer(|| panic!("once is enough")).unwrap();
    let fifth = of_writer.append(&event("by the writer"), None).unwrap();
    assert_eq!((fifth.number, of_writer.head().unwrap()), (5, Some(fifth.clone())));
    assert!(matches!(of_writer.read(5), Err(RepoError::WriteOnly { .. })), "it reads nothing");
    // A process from before there was a writer does not lock it out.
    let stale = Journal::new(&repo, of_cluster()).append(&event("stale"), None).unwrap();
    assert_eq!(of_writer.append(&event("again"), None).unwrap().number, stale.number + 1);
    assert!(faults(&reader, &[fifth]).is_empty(), "{:?}", faults(&reader, &[]));
    let bytes = store.read(&object(6), 1 << 20).unwrap();
    let header: [u8; 64] = bytes[..64].try_into().unwrap();
    assert_eq!((header[9], generation_of(&header)), (2, Some(1)));
    // Neither the journal of the repository nor that of another cluster.
    for other in ["@", "other"] {
        let journal = Journal::new(&writer, JournalName::parse(other).unwrap());
        assert!(matches!(journal.append(&event("x"), None), Err(RepoError::WriteOnly { .. })), "{other}");
    }
}
