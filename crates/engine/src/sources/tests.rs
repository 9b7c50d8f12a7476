use super::*;
use pgark_repo::crypto::KeySet;
use pgark_repo::store::{MemoryStore, ObjectName};

/// Opens after so many seconds, and fails then when nothing lies there.
fn source(name: &str, seconds: u64, object: Option<&[u8]>) -> Source {
    let store = MemoryStore::new();
    let there = object.is_some();
    if let Some(bytes) = object {
        pgark_repo::store::Store::put_new(&store, &name_of("x"), bytes).expect("put");
    }
    let repo = Repository::open_for_wal(Arc::new(store), KeySet::unencrypted());
    let open = move |_: Option<&Repository>| {
        thread::sleep(Duration::from_secs(seconds));
        if there { Ok(repo.clone()) } else { Err(Unopened::Other("gone".into())) }
    };
    Source { name: name.into(), remote: true, witness: true, open: Box::new(open) }
}

fn name_of(text: &str) -> ObjectName {
    ObjectName::parse(text).expect("a name")
}

fn read(sources: &Sources, wanted: &'static [u8]) -> Asked<Vec<u8>> {
    let job = |repo: &Repository| Ok(repo.store().read(&name_of("x"), 100)?);
    sources.ask(&BTreeSet::new(), false, job, move |bytes| bytes == wanted).expect("an answer")
}

#[test]
fn whoever_hangs_is_passed_over_after_seconds_and_told() {
    let sources = Sources::new(vec![source("hangs", 60, Some(b"a")), source("works", 0, Some(b"a"))]);
    let began = Instant::now();
    sources.open_all().expect("one of them works");
    assert!(began.elapsed() < PATIENCE + Duration::from_secs(3));
    assert_eq!(sources.order(), [1]);
    let troubles = sources.troubles();
    assert_eq!(troubles.iter().map(|t| (&*t.repository, t.kind)).collect::<Vec<_>>(), [("hangs", TroubleKind::Away)]);
}

#[test]
fn the_one_that_answers_first_is_asked_first_and_local_ones_before_all() {
    let local = Source { remote: false, ..source("local", 2, Some(b"a")) };
    let sources = Sources::new(vec![source("far", 1, Some(b"a")), source("near", 0, Some(b"a")), local]);
    sources.open_all().expect("all of them work");
    assert_eq!(sources.order(), [2, 1, 0]);
    assert!(sources.troubles().is_empty());
}

#[test]
fn nobody_is_given_up_while_nobody_has_answered() {
    let slow = PATIENCE.as_secs() + 2;
    let sources = Sources::new(vec![source("gone", 0, None), source("slow", slow, Some(b"a"))]);
    sources.open_all().expect("the second works");
    assert_eq!(sources.order(), [1]);
    // And for a single question.
    let sources = Sources::new(vec![source("slow", slow, Some(b"a")), source("other", 0, Some(b"b"))]);
    let asked = read(&sources, b"a");
    assert_eq!(asked.found.map(|(n, _)| n), Some(0));
}

#[test]
fn who_is_away_is_not_taken_for_one_that_has_nothing() {
    let sources = Sources::new(vec![source("gone", 0, None), source("other", 0, Some(b"b"))]);
    let asked = read(&sources, b"a");
    assert!(asked.found.is_none());
    assert_eq!((asked.silent, asked.rest.len()), (vec!["gone".to_owned()], 1));
    // Also when it is known to be away, and not asked again.
    assert_eq!(read(&sources, b"a").silent, ["gone"]);
    assert!(Sources::new(vec![source("gone", 0, None)]).open_all().is_err());
}
