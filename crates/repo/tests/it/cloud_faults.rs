//! Object stores that fail: an operation ends exactly as it says, or in a clean error.

use std::sync::Arc;

use pgark_repo::store::{ObjectName, Store, StoreErrorKind};
use pgark_testkit::{FaultyHttp, HttpFault, ObjectServer, ObjectServerKind, skip};

use crate::cloud::store_at;

struct Rig {
    proxy: FaultyHttp,
    store: Arc<dyn Store>,
    /// The same repository without the proxy: what is really there.
    truth: Arc<dyn Store>,
    _server: ObjectServer,
}

macro_rules! rig_or_skip {
    ($kind:expr) => {{
        match ObjectServer::start($kind) {
            Ok(server) => {
                let proxy = FaultyHttp::before(server.address());
                let store = store_at(&server, $kind, proxy.address(), "faults", &[("timeout", "2")]);
                let truth = store_at(&server, $kind, server.address(), "faults", &[]);
                Rig { proxy, store, truth, _server: server }
            }
            Err(why) => skip!("{why}"),
        }
    }};
}

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn passing() -> Vec<HttpFault> {
    let answer = |status: u16, code: &str| {
        HttpFault::Answer(status, format!("<Error><Code>{code}</Code><Message>try again</Message></Error>"))
    };
    vec![
        answer(503, "SlowDown"),
        answer(429, "TooManyRequests"),
        answer(500, "InternalError"),
        HttpFault::BreakBefore,
        HttpFault::BreakAfter,
    ]
}

/// Every passing fault, once and twice in a row, in creating, reading, listing and deleting.
fn passing_faults_are_outlived(kind: ObjectServerKind) {
    let rig = rig_or_skip!(kind);
    for (round, fault) in passing().into_iter().enumerate() {
        for times in [1, 2] {
            let object = name(&format!("o/{round}-{times}"));
            let content = bytes(10_000 + round);
            rig.proxy.fail("PUT", object.as_str(), times, fault.clone());
            rig.store.put_new(&object, &content).unwrap_or_else(|e| panic!("{fault:?} x{times}: {e}"));
            assert_eq!(rig.truth.read(&object, 1 << 20).unwrap(), content, "{fault:?}");
            // Whoever comes later is told the truth. With other bytes: one that brings the same, and whose first try is lost
            // on a busy machine, cannot know that it was not the first.
            let second = rig.store.put_new(&object, b"other bytes").unwrap_err();
            assert_eq!(second.kind(), StoreErrorKind::AlreadyExists, "{fault:?}");

            rig.proxy.fail("GET", object.as_str(), times, fault.clone());
            assert_eq!(rig.store.read(&object, 1 << 20).unwrap(), content, "{fault:?}");
            let mut part = vec![0; 100];
            rig.proxy.fail("GET", object.as_str(), times, fault.clone());
            rig.store.read_at(&object, 5_000, &mut part).unwrap();
            assert_eq!(part, content[5_000..5_100]);

            rig.proxy.fail("GET", "list", times, fault.clone());
            let mut listed = 0;
            rig.store
                .list("o", &mut |_| {
                    listed += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(listed, round * 2 + times, "{fault:?}");
            assert_eq!(rig.proxy.left(), 0, "a fault was not met: {:?}", rig.proxy.seen().last());
        }
    }
    rig.proxy.fail("", "o/0-1", 1, HttpFault::BreakBefore);
    rig.store.delete(&name("o/0-1")).unwrap();
    assert!(rig.truth.stat(&name("o/0-1")).unwrap_err().is_not_found());
}

#[test]
fn passing_faults_of_an_s3_store_are_outlived() {
    passing_faults_are_outlived(ObjectServerKind::S3s);
}

#[test]
fn passing_faults_of_an_azure_store_are_outlived() {
    passing_faults_are_outlived(ObjectServerKind::Azurite);
}

#[test]
fn passing_faults_of_a_google_store_are_outlived() {
    passing_faults_are_outlived(ObjectServerKind::Gcs);
}

#[test]
fn a_lost_answer_to_a_creation_that_lost_the_race_is_not_ours() {
    let rig = rig_or_skip!(ObjectServerKind::Moto);
    let object = name("race/x");
    rig.truth.put_new(&object, b"theirs").unwrap();
    rig.proxy.fail("PUT", "race/x", 1, HttpFault::BreakAfter);
    let refused = rig.store.put_new(&object, b"ours!!").unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::AlreadyExists, "{refused}");
    assert_eq!(rig.truth.read(&object, 100).unwrap(), b"theirs");
}

#[test]
fn an_upload_in_parts_survives_faults_at_each_step() {
    upload_survives(ObjectServerKind::Moto);
}

#[test]
fn an_upload_in_parts_to_google_survives_faults_at_each_step() {
    upload_survives(ObjectServerKind::Gcs);
}

fn upload_survives(kind: ObjectServerKind) {
    let rig = rig_or_skip!(kind);
    let content = bytes(20 << 20);
    let told = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>oh</Message></Error>");
    let steps: [(&str, &str, HttpFault); 6] = [
        ("POST", "uploads", HttpFault::BreakBefore),
        ("PUT", "partNumber=2", HttpFault::BreakAfter),
        ("PUT", "partNumber=3", HttpFault::Answer(503, told("SlowDown"))),
        ("POST", "uploadId", HttpFault::BreakBefore),
        // The upload is completed, and nobody hears of it.
        ("POST", "uploadId", HttpFault::BreakAfter),
        // An error inside a success.
        ("POST", "uploadId", HttpFault::Answer(200, told("InternalError"))),
    ];
    for (n, (method, part, fault)) in steps.into_iter().enumerate() {
        let object = name(&format!("parts/{n}"));
        rig.proxy.fail(method, part, 1, fault.clone());
        let mut writer = rig.store.create(&object).unwrap();
        content.chunks(3 << 20).for_each(|piece| writer.write(piece).unwrap());
        assert!(rig.truth.stat(&object).unwrap_err().is_not_found(), "visible before it is finished");
        writer.finish().unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert_eq!(rig.proxy.left(), 0, "{fault:?} was not met");
        assert!(rig.truth.read(&object, 1 << 30).unwrap() == content, "{fault:?}");
        // A second writer of the name is told.
        let mut writer = rig.store.create(&object).unwrap();
        content.chunks(3 << 20).for_each(|piece| writer.write(piece).unwrap());
        assert_eq!(writer.finish().unwrap_err().kind(), StoreErrorKind::AlreadyExists);
    }
}

#[test]
fn an_answer_that_ends_early_is_asked_for_again() {
    let rig = rig_or_skip!(ObjectServerKind::Moto);
    let content = bytes(200_000);
    rig.truth.put_new(&name("cut"), &content).unwrap();
    rig.proxy.fail("GET", "cut", 2, HttpFault::CutBody(777));
    assert!(rig.store.read(&name("cut"), 1 << 20).unwrap() == content);
    rig.proxy.fail("GET", "cut", 1, HttpFault::CutBody(0));
    let mut part = vec![0; 50_000];
    rig.store.read_at(&name("cut"), 100_000, &mut part).unwrap();
    assert!(part == content[100_000..150_000]);
    assert_eq!(rig.proxy.left(), 0);
}

#[test]
fn a_body_that_was_changed_on_the_way_is_not_stored() {
    let rig = rig_or_skip!(ObjectServerKind::S3s);
    let content = bytes(50_000);
    rig.proxy.fail("PUT", "flip", 1, HttpFault::FlipRequest);
    let outcome = rig.store.put_new(&name("flip"), &content);
    match rig.truth.read(&name("flip"), 1 << 20) {
        Ok(found) => assert!(outcome.is_ok() && found == content),
        Err(e) => assert!(outcome.is_err() && e.is_not_found(), "{e}"),
    }
}

#[test]
fn a_store_that_says_nothing_is_given_up() {
    let rig = rig_or_skip!(ObjectServerKind::Moto);
    rig.truth.put_new(&name("there"), b"x").unwrap();
    rig.proxy.fail("", "there", usize::MAX, HttpFault::Silence);
    let gone = rig.store.read(&name("there"), 10).unwrap_err();
    assert_eq!(gone.kind(), StoreErrorKind::Io, "{gone}");
    assert!(gone.to_string().contains("no answer"), "{gone}");
    let tries = rig.proxy.seen().len();
    assert!((2..=5).contains(&tries), "{tries} tries");
}

#[test]
fn refusals_are_not_repeated() {
    let rig = rig_or_skip!(ObjectServerKind::Moto);
    let told =
        |code: &str| format!("<Error><Code>{code}</Code><Message>The provided token has expired.</Message></Error>");
    for (status, code) in [(403, "ExpiredToken"), (400, "ExpiredToken"), (403, "AccessDenied"), (401, "Unauthorized")] {
        let before = rig.proxy.seen().len();
        rig.proxy.fail("", "denied", 9, HttpFault::Answer(status, told(code)));
        let refused = rig.store.read(&name("denied"), 10).unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Denied, "{refused}");
        assert!(refused.to_string().contains(code), "{refused}");
        assert_eq!(rig.proxy.seen().len() - before, 1, "{code}");
        rig.proxy.forget_faults();
    }
    rig.proxy.fail("GET", "list", 9, HttpFault::Answer(404, "<Error><Code>NoSuchBucket</Code></Error>".into()));
    let missing = rig.store.list("", &mut |_| Ok(())).unwrap_err();
    assert_eq!(missing.kind(), StoreErrorKind::Io, "{missing}");
    rig.proxy.fail("", "denied", 9, HttpFault::Answer(404, "<Error><Code>NoSuchBucket</Code></Error>".into()));
    assert_eq!(rig.store.read(&name("denied"), 10).unwrap_err().kind(), StoreErrorKind::Io);
}

/// An object that is there and cannot be read: neither damage, nor a matter of rights, nor worth another try.
fn archived_objects_are_told_as_such(kind: ObjectServerKind, status: u16, code: &str) {
    let rig = rig_or_skip!(kind);
    let object = name("a/archived");
    rig.truth.put_new(&object, &bytes(100)).unwrap();
    let answer = HttpFault::Answer(status, format!("<Error><Code>{code}</Code><Message>not now</Message></Error>"));
    rig.proxy.fail("GET", object.as_str(), 2, answer);
    assert_eq!(rig.store.read(&object, 100).unwrap_err().kind(), StoreErrorKind::Archived);
    let mut part = [0; 10];
    let error = rig.store.read_at(&object, 0, &mut part).unwrap_err();
    assert!(error.kind() == StoreErrorKind::Archived && error.to_string().contains(code), "{error}");
    // Each read asked once, so that the next one is answered by the store.
    assert!(rig.store.read(&object, 100).unwrap() == bytes(100));
}

#[test]
fn archived_objects_of_s3_are_told_as_such() {
    archived_objects_are_told_as_such(ObjectServerKind::Moto, 403, "InvalidObjectState");
}

#[test]
fn archived_blobs_of_azure_are_told_as_such() {
    archived_objects_are_told_as_such(ObjectServerKind::Azurite, 409, "BlobArchived");
}
