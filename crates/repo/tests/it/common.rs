//! What several of these tests need.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use pgark_repo::Repository;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::NewKeys;
use pgark_repo::store::{MemoryStore, ObjectName, Store};

use crate::sample;

pub const ALGORITHMS: [Algorithm; 3] = [Algorithm::None, Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

/// One for the whole run.
pub fn identity() -> &'static str {
    static IDENTITY: OnceLock<String> = OnceLock::new();
    IDENTITY.get_or_init(fresh_identity)
}

pub fn fresh_identity() -> String {
    use age::secrecy::ExposeSecret;
    age::x25519::Identity::generate().to_string().expose_secret().to_owned()
}

/// Opened by an age identity, so that no slow key derivation is in the way.
pub fn keys(encryption: Algorithm) -> NewKeys {
    sample::new_keys(encryption, None, identity())
}

pub fn memory_repository(encryption: Algorithm) -> (Arc<MemoryStore>, Repository) {
    let store = Arc::new(MemoryStore::new());
    let repo = sample::init(store.clone(), &keys(encryption));
    (store, repo)
}

pub fn name(s: &str) -> ObjectName {
    ObjectName::parse(s).unwrap()
}

pub fn objects(store: &dyn Store) -> Vec<ObjectName> {
    let mut names = vec![];
    let mut visit = |stat: pgark_repo::store::ObjectStat| {
        names.push(stat.name);
        Ok(())
    };
    store.list("", &mut visit).unwrap();
    names
}

/// A directory that goes away with its owner.
pub struct TestDir(pub PathBuf);

impl TestDir {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pgark-repo-it-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        TestDir(path)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // Whatever stays is in the system's directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
