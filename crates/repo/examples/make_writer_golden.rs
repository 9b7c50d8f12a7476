//! Writes the stored sample of a repository that a writer has filled: `cargo run --example make_writer_golden -- DIRECTORY`
//! with the directory of the samples. Made once; see make_golden.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::PathBuf;
use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{self, Change, SlotSecret, Unlock};
use pgark_repo::store::{LocalStore, Store};

#[path = "../tests/it/expected.rs"]
mod expected;
#[path = "../tests/it/sample.rs"]
mod sample;

fn main() {
    let Some(dir) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("usage: make_writer_golden DIRECTORY");
        std::process::exit(2);
    };
    let to = dir.canonicalize().unwrap().join("writer");
    assert!(!to.exists(), "{} is there: samples are never made again", to.display());
    let identity = std::fs::read_to_string(dir.join("age-identity.txt")).unwrap();
    let identity = identity.lines().find(|l| !l.starts_with('#')).unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::create(&to).unwrap());
    let new = sample::new_keys(Algorithm::Aes256Gcm, Some(expected::PASSPHRASE), identity);
    let reader = sample::init(store.clone(), &new);
    let catalog = CatalogStore::new(&reader, &sample::cluster());
    catalog.register(&sample::lineage(), false).unwrap();
    keyring::edit(&store, &new.unlock, |ring| {
        let secret = SlotSecret::Passphrase(expected::WRITER_PASSPHRASE);
        ring.add_writer(&sample::cluster(), &secret, Some("of the sample"))?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let reader = Repository::open(store.clone(), &new.unlock).unwrap();
    CatalogStore::new(&reader, &sample::cluster()).register_of_books().open_to_writer().unwrap();
    let writer = Repository::open(store, &Unlock::passphrase(expected::WRITER_PASSPHRASE)).unwrap();
    sample::fill(&writer, 1).unwrap();
}
