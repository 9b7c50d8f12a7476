//! Writes the stored sample of a key ring of the second generation, which carries on that of the sample `aes`:
//! `cargo run --example make_rotated_golden -- DIRECTORY` with the directory of the samples. Made once; see make_golden.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use pgark_repo::keyring::{self, Change, KeyCommands, Secrets, Unlock};
use pgark_repo::store::{MemoryStore, ObjectName, Store};
use zeroize::Zeroizing;

/// As the test that reads the sample has it.
struct Reversed;

impl KeyCommands for Reversed {
    fn knows(&self, name: &str) -> bool {
        name == "reversed"
    }

    fn wrap(&self, _: &str, plain: &[u8]) -> pgark_repo::Result<Vec<u8>> {
        Ok(plain.iter().rev().copied().collect())
    }

    fn unwrap(&self, _: &str, wrapped: &[u8]) -> pgark_repo::Result<Zeroizing<Vec<u8>>> {
        Ok(wrapped.iter().rev().copied().collect::<Vec<_>>().into())
    }
}

fn main() {
    let Some(dir) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("usage: make_rotated_golden DIRECTORY");
        std::process::exit(2);
    };
    let to = dir.join("rotated-ring");
    assert!(!to.exists(), "{} is there: samples are never made again", to.display());
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let first = ObjectName::parse("keyring/0000000000000001").unwrap();
    store.put_new(&first, &std::fs::read(dir.join("aes").join(first.as_str())).unwrap()).unwrap();
    let identity = std::fs::read_to_string(dir.join("age-identity.txt")).unwrap();
    let unlock = Unlock {
        passphrase: Some(Zeroizing::new(b"golden".to_vec())),
        age_identities: Some(Zeroizing::new(identity)),
        commands: Some(Arc::new(Reversed)),
    };
    keyring::edit(&store, &unlock, |ring| {
        ring.add_command("reversed", &unlock, Some("of the sample"))?;
        ring.rotate(Secrets { unlock: &unlock, passphrases: &[] }, &[])?;
        Ok(Change::Write(()))
    })
    .unwrap();
    let second = ObjectName::parse("keyring/0000000000000002").unwrap();
    std::fs::write(to, store.read(&second, 1 << 20).unwrap()).unwrap();
}
