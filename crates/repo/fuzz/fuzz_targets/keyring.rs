//! A key ring as found, opened without a key and with an age identity (a passphrase would cost a derivation each).
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgark_repo::keyring::{Keyring, Unlock, peek_repository_id};

fuzz_target!(|bytes: &[u8]| {
    let _ = peek_repository_id(bytes);
    if let Ok(ring) = Keyring::open(bytes, &Unlock::default()) {
        let again = ring.to_bytes();
        assert!(Keyring::open(&again, &Unlock::default()).is_ok());
    }
    let unlock = Unlock::age_identities("# none\n");
    assert!(Keyring::open(bytes, &unlock).is_err());
});
