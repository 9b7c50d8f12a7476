//! Writes the stored samples of the format: `cargo run --example make_golden -- DIRECTORY`. The directory must
//! not exist: samples are added for a new version of the format, never made again.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::catalog::CatalogStore;
use pgark_repo::crypto::Algorithm;
use pgark_repo::store::LocalStore;

#[path = "../tests/it/expected.rs"]
mod expected;
#[path = "../tests/it/sample.rs"]
mod sample;

fn main() {
    let Some(dir) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("usage: make_golden DIRECTORY");
        std::process::exit(2);
    };
    if let Err(e) = std::fs::create_dir(&dir) {
        eprintln!("{}: {e}", dir.display());
        std::process::exit(1);
    }
    let dir = dir.canonicalize().unwrap();
    let identity = age::x25519::Identity::generate();
    let identity = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
    std::fs::write(dir.join("age-identity.txt"), format!("# for these samples alone\n{identity}\n")).unwrap();
    let samples = [("plain", Algorithm::None), ("aes", Algorithm::Aes256Gcm), ("chacha", Algorithm::ChaCha20Poly1305)];
    for (which, encryption) in samples {
        let store = Arc::new(LocalStore::create(dir.join(which)).unwrap());
        let new = sample::new_keys(encryption, Some(expected::PASSPHRASE), &identity);
        let repo = sample::init(store, &new);
        sample::fill(&repo, 1).unwrap();
        if encryption == Algorithm::None {
            write_expected(&repo, &dir.join("expected"));
        }
    }
}

fn put(path: PathBuf, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn write_expected(repo: &Repository, dir: &Path) {
    let catalog = CatalogStore::new(repo, &sample::cluster()).read().unwrap();
    put(dir.join("catalog.json"), expected::catalog(&catalog).as_bytes());
    let (record, tree) = sample::read_backup(repo, &catalog.backups[0]).unwrap();
    put(dir.join("record.json"), expected::record(&record).as_bytes());
    put(dir.join("tree.txt"), expected::tree(&tree).as_bytes());
    for (path, node) in &tree.nodes {
        if let sample::Node::File { content, .. } = node {
            put(dir.join("files").join(std::str::from_utf8(path).unwrap()), content);
        }
    }
    let wal = dir.join("wal");
    let archive = sample::archive(repo);
    for n in expected::GOLDEN_SEGMENTS {
        let name = sample::segment(n).format(sample::segment_size());
        let (index, bytes) = sample::read_segment(&archive, &sample::segment(n)).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        put(wal.join(&name), &bytes[..used]);
        put(wal.join(format!("{name}.index.json")), expected::pretty(&index).as_bytes());
    }
    put(wal.join("head.json"), &archive.head().unwrap().to_bytes());
    put(wal.join("00000002.history"), &archive.history(sample::timeline(2)).unwrap());
    let backup = sample::backup_history_file();
    put(wal.join(backup.to_string()), &archive.side_file(&backup).unwrap());
}
