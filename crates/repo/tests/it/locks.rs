//! Versions and object lock: what is written cannot be removed, and what was removed can be read.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgark_repo::store::{
    Ability, Capability, CloudStore, LockMode, LockPolicy, PastStore, Retention, Store, StoreError, StoreErrorKind,
};
use pgark_testkit::{FaultyHttp, HttpFault, ObjectServer, ObjectServerKind, skip};

use crate::cloud::options_at;
use crate::common::name;

fn locked(server: &ObjectServer, mode: LockMode, days: u32) -> CloudStore {
    let mut options = options_at(server, ObjectServerKind::Moto, server.address(), "prod", &[]);
    options.lock = LockPolicy::new(mode, days);
    CloudStore::open(options).unwrap()
}

fn write(store: &dyn Store, object: &str, bytes: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
    let mut writer = store.create(&name(object)).unwrap();
    content.chunks(1 << 20).for_each(|piece| writer.write(piece).unwrap());
    writer.finish().unwrap();
    content
}

/// Every second counts: versions are told apart by it.
fn next_second() -> Timestamp {
    let now = Timestamp::now();
    std::thread::sleep(Duration::from_millis(1100));
    now
}

fn of(capabilities: &[Capability], what: &str) -> (Ability, String) {
    let found = capabilities.iter().find(|c| c.name == what).unwrap_or_else(|| panic!("no {what}"));
    (found.state, found.reason.clone())
}

#[test]
fn what_is_written_cannot_be_removed_and_is_read_after_everything_was_deleted() {
    let server = match ObjectServer::start_locking() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let store = locked(&server, LockMode::Compliance, 30);
    store.put_new(&name("a/small"), b"small").unwrap();
    let large = write(&store, "a/large", 20 << 20);
    store.put_new(&name("probe/x"), b"unlocked").unwrap();
    let before = next_second();

    let lock = store.object_lock().unwrap();
    let least = lock.policy().until(Timestamp::now()) - jiff::SignedDuration::from_secs(120);
    for object in ["a/small", "a/large"] {
        let told = lock.retention(&name(object), None).unwrap().unwrap();
        assert_eq!(told.mode, LockMode::Compliance);
        assert!(told.until > least, "{object}: {}", told.until);
    }
    assert_eq!(lock.retention(&name("probe/x"), None).unwrap(), None);

    // It is the lock that protects: what has none goes.
    let unlocked = server.versions().into_iter().find(|v| v.key.contains("/probe/")).unwrap();
    assert_eq!(server.delete_version(&unlocked), 204);

    // The attack, with the very credentials of the backup host: versions, names, content.
    for version in server.versions().iter().filter(|v| v.key.contains("/a/")) {
        assert_eq!(server.delete_version(version), 403, "{version:?}");
        assert_eq!(server.overwrite(&version.key, "encrypted by somebody else"), 200);
        assert_eq!(server.delete(&version.key), 204);
    }
    store.put_new(&name("a/later"), b"later").unwrap();
    assert_eq!(store.read(&name("a/small"), 100).unwrap_err().kind(), StoreErrorKind::NotFound);

    let options = options_at(&server, ObjectServerKind::Moto, server.address(), "prod", &[]);
    let past = PastStore::open(options, before).unwrap();
    assert_eq!(past.read(&name("a/small"), 100).unwrap(), b"small");
    assert_eq!(past.read(&name("a/large"), 64 << 20).unwrap(), large);
    let mut part = vec![0; 1000];
    past.read_at(&name("a/large"), (9 << 20) + 3, &mut part).unwrap();
    assert_eq!(part, large[(9 << 20) + 3..][..1000]);
    assert_eq!(past.read_at(&name("a/small"), 4, &mut part).unwrap_err().kind(), StoreErrorKind::Truncated);
    assert_eq!(past.read(&name("a/large"), 100).unwrap_err().kind(), StoreErrorKind::TooLarge);
    assert_eq!(past.stat(&name("a/large")).unwrap().size, 20 << 20);
    assert_eq!(past.stat(&name("a/later")).unwrap_err().kind(), StoreErrorKind::NotFound);
    assert_eq!(past.stat(&name("a/smal")).unwrap_err().kind(), StoreErrorKind::NotFound);
    let mut seen = vec![];
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        seen.push((stat.name.to_string(), stat.size));
        Ok(())
    };
    past.list("a", &mut visit).unwrap();
    assert_eq!(seen, [("a/large".to_owned(), 20 << 20), ("a/small".to_owned(), 5)]);
    assert_eq!(past.list_dirs("").unwrap(), ["a"]);
    // And nothing is written into the past.
    assert!(matches!(past.put_new(&name("a/x"), b"x"), Err(StoreError::ReadOnly)));
    assert!(matches!(past.delete(&name("a/small")), Err(StoreError::ReadOnly)));
    assert!(past.create(&name("a/x")).is_err());
}

#[test]
fn the_past_is_read_over_many_pages() {
    let server = match ObjectServer::start_locking() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let options = || options_at(&server, ObjectServerKind::Moto, server.address(), "prod", &[]);
    let store = CloudStore::open(options()).unwrap();
    // A page has 1000 versions; each name has two and a mark, so that pages end in the middle of a name.
    let names: Vec<String> = (0..700).map(|n| format!("d{}/{n:04}", n % 3)).collect();
    for n in &names {
        store.put_new(&name(n), n.as_bytes()).unwrap();
    }
    let before = next_second();
    for n in &names {
        server.overwrite(&format!("prod/{n}"), "other");
        server.delete(&format!("prod/{n}"));
    }
    let past = PastStore::open(options(), before).unwrap();
    let mut seen = vec![];
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        seen.push(stat.name.to_string());
        Ok(())
    };
    past.list("", &mut visit).unwrap();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(seen, sorted);
    assert_eq!(past.list_dirs("").unwrap(), ["d0", "d1", "d2"]);
    for n in names.iter().step_by(97) {
        assert_eq!(past.read(&name(n), 100).unwrap(), n.as_bytes());
        // Without what listing has remembered.
        let fresh = PastStore::open(options(), before).unwrap();
        assert_eq!(fresh.read(&name(n), 100).unwrap(), n.as_bytes());
    }
}

#[test]
fn a_lock_is_extended_and_never_by_less() {
    let server = match ObjectServer::start_locking() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let short = locked(&server, LockMode::Governance, 1);
    short.put_new(&name("a/x"), b"x").unwrap();
    let long = locked(&server, LockMode::Governance, 90);
    let lock = long.object_lock().unwrap();
    let until = lock.policy().until(Timestamp::now());
    let mut versions = vec![];
    lock.versions("a", &mut |of_name| {
        versions.extend_from_slice(of_name);
        Ok(())
    })
    .unwrap();
    assert_eq!(versions.len(), 1);
    lock.retain(&versions[0].name, &versions[0].id, Retention { mode: LockMode::Governance, until }).unwrap();
    let told = lock.retention(&versions[0].name, Some(&versions[0].id)).unwrap().unwrap();
    assert_eq!((told.mode, told.until), (LockMode::Governance, until));
}

#[test]
fn a_bucket_shows_what_it_can_do() {
    let server = match ObjectServer::start_locking() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let found = locked(&server, LockMode::Compliance, 7).probe();
    assert_eq!(of(&found, Capability::VERSIONS).0, Ability::Yes, "{found:?}");
    assert_eq!(of(&found, Capability::LOCK).0, Ability::Yes, "{found:?}");
    // Without a lock in the settings nothing is locked to try it.
    let options = || options_at(&server, ObjectServerKind::Moto, server.address(), "prod", &[]);
    let found = CloudStore::open(options()).unwrap().probe();
    assert_eq!(of(&found, Capability::LOCK).0, Ability::NotChecked, "{found:?}");
    // Of its probes it left the one that is locked, and nothing that could be removed.
    let left: Vec<_> = server.versions().into_iter().filter(|v| !v.is_marker).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].key.contains("/probe/lock-"), "{left:?}");
}

#[test]
fn a_bucket_without_versions_is_told_as_such() {
    let server = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let found = locked(&server, LockMode::Compliance, 7).probe();
    assert_eq!(of(&found, Capability::VERSIONS).0, Ability::No, "{found:?}");
    assert_eq!(of(&found, Capability::LOCK).0, Ability::No, "{found:?}");
}

/// As some stores do: every request succeeds.
#[test]
fn a_store_that_takes_the_lock_and_forgets_it_is_found_out() {
    let server = match ObjectServer::start_locking() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let proxy = FaultyHttp::before(server.address());
    proxy.fail("PUT", "/probe/lock-", 1, HttpFault::WithoutHeaders("x-amz-object-lock"));
    let mut options = options_at(&server, ObjectServerKind::Moto, proxy.address(), "prod", &[]);
    options.lock = LockPolicy::new(LockMode::Compliance, 7);
    let found = CloudStore::open(options).unwrap().probe();
    assert_eq!(proxy.left(), 0);
    let (state, reason) = of(&found, Capability::LOCK);
    assert_eq!(state, Ability::No, "{reason}");
    assert!(reason.contains("removed"), "{reason}");
}

#[test]
fn credentials_that_may_not_remove_versions_are_no_proof_of_a_lock() {
    let server = match ObjectServer::start_locking() {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let proxy = FaultyHttp::before(server.address());
    let denied = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    proxy.fail("DELETE", "versionId=", 100, HttpFault::Answer(403, denied.into()));
    let mut options = options_at(&server, ObjectServerKind::Moto, proxy.address(), "prod", &[]);
    options.lock = LockPolicy::new(LockMode::Compliance, 7);
    let found = CloudStore::open(options).unwrap().probe();
    assert_eq!(of(&found, Capability::VERSIONS).0, Ability::Yes, "{found:?}");
    assert_eq!(of(&found, Capability::LOCK).0, Ability::NotChecked, "{found:?}");
}

#[test]
fn stores_that_do_not_know_the_requests_are_not_checked() {
    for kind in [ObjectServerKind::S3s, ObjectServerKind::Azurite, ObjectServerKind::Gcs] {
        let server = match ObjectServer::start(kind) {
            Ok(server) => server,
            Err(why) => skip!("{why}"),
        };
        let store: Arc<dyn Store> =
            Arc::new(CloudStore::open(options_at(&server, kind, server.address(), "prod", &[])).unwrap());
        let found = store.probe();
        for what in [Capability::VERSIONS, Capability::LOCK] {
            let (state, reason) = of(&found, what);
            assert_ne!(state, Ability::Yes, "{kind:?} {what}: {reason}");
            assert!(!reason.is_empty());
        }
    }
}

#[test]
fn locks_are_refused_where_they_cannot_be() {
    let server = match ObjectServer::start(ObjectServerKind::Gcs) {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let mut options = options_at(&server, ObjectServerKind::Gcs, server.address(), "prod", &[]);
    options.lock = LockPolicy::new(LockMode::Compliance, 7);
    assert!(CloudStore::open(options).is_err());
    let mut options = options_at(&server, ObjectServerKind::Moto, server.address(), "prod", &[("checksum", "none")]);
    options.lock = LockPolicy::new(LockMode::Compliance, 7);
    assert!(CloudStore::open(options).is_err());
}
