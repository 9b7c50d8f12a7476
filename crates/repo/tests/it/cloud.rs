//! Object stores, on real servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgark_repo::store::conformance::{Flaw, conformance_despite, one_of_many_racers_wins};
use pgark_repo::store::{CloudKind, CloudOptions, CloudStore, Store};
use pgark_testkit::{BUCKET, FaultyHttp, ObjectServer, ObjectServerKind, skip};

/// A store on this server, reached by `address`, below a prefix of its own.
pub fn store_at(
    server: &ObjectServer,
    kind: ObjectServerKind,
    address: SocketAddr,
    prefix: &str,
    more: &[(&str, &str)],
) -> Arc<dyn Store> {
    Arc::new(CloudStore::open(options_at(server, kind, address, prefix, more)).expect("a store"))
}

pub fn options_at(
    server: &ObjectServer,
    kind: ObjectServerKind,
    address: SocketAddr,
    prefix: &str,
    more: &[(&str, &str)],
) -> CloudOptions {
    let (kind, options): (_, Vec<(&str, String)>) = match kind {
        ObjectServerKind::Azurite => {
            let endpoint = format!("http://{address}/devstoreaccount1");
            (CloudKind::Azure, vec![("emulator", "true".into()), ("endpoint", endpoint)])
        }
        ObjectServerKind::Gcs => (CloudKind::Gcs, vec![("endpoint", format!("http://{address}"))]),
        _ => (CloudKind::S3, vec![("endpoint", format!("http://{address}")), ("region", "us-east-1".into())]),
    };
    let more = more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    let options: BTreeMap<String, String> = options.into_iter().map(|(n, v)| (n.to_owned(), v)).chain(more).collect();
    CloudOptions {
        kind,
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        url: server.url(prefix),
        options,
        environment: server.environment(),
        lock: None,
    }
}

fn conforms(kind: ObjectServerKind) {
    let server = match ObjectServer::start(kind) {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let made = AtomicUsize::new(0);
    let make =
        || store_at(&server, kind, server.address(), &format!("run-{}", made.fetch_add(1, Ordering::SeqCst)), &[]);
    // Both look whether an object is there and then create it. s3s-fs keeps objects as files: it answers 500 where a
    // directory lies.
    let flaws: &[Flaw] = match kind {
        ObjectServerKind::Moto => &[Flaw::CreatesTwice],
        ObjectServerKind::S3s => &[Flaw::FailsOnDirectories, Flaw::CreatesTwice],
        _ => &[],
    };
    conformance_despite(&make, flaws);
}

#[test]
fn a_bucket_of_moto_is_a_store() {
    conforms(ObjectServerKind::Moto);
}

/// moto, seeing one request at a time, does as S3 does.
#[test]
fn one_of_many_racers_wins_an_object_of_s3() {
    let server = match ObjectServer::start(ObjectServerKind::Moto) {
        Ok(server) => server,
        Err(why) => skip!("{why}"),
    };
    let relay = FaultyHttp::before(server.address());
    relay.one_at_a_time();
    one_of_many_racers_wins(&store_at(&server, ObjectServerKind::Moto, relay.address(), "race", &[]));
}

#[test]
fn a_bucket_of_s3s_fs_is_a_store() {
    conforms(ObjectServerKind::S3s);
}

#[test]
fn a_container_of_azurite_is_a_store() {
    conforms(ObjectServerKind::Azurite);
}

#[test]
fn a_bucket_of_google_cloud_storage_is_a_store() {
    conforms(ObjectServerKind::Gcs);
}
