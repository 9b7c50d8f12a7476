//! A key that was opened once, kept beside the passphrase that opens it.

use super::wrap::{unwrap, wrap};
use crate::crypto::{Key32, derive};
use crate::error::Result;

/// A master key wrapped for a cache beside a passphrase file, so that not every call pays for the slow key
/// derivation. Bound to this very ring: a changed ring makes the cache worthless. Whoever can read the cache and
/// guess the passphrase can check a guess quickly, so it is made only where the passphrase itself lies in a file of
/// the same owner.
pub fn seal_for_cache(passphrase: &[u8], ring: &[u8], master: &Key32) -> Result<Vec<u8>> {
    wrap(&cache_key(passphrase, ring), b"cache", master)
}

pub fn open_from_cache(passphrase: &[u8], ring: &[u8], cached: &[u8]) -> Option<Key32> {
    unwrap(&cache_key(passphrase, ring), b"cache", cached)
}

/// What to call the cached key of this ring.
pub fn ring_name(ring: &[u8]) -> String {
    blake3::hash(ring).to_hex().as_str().chars().take(32).collect()
}

fn cache_key(passphrase: &[u8], ring: &[u8]) -> Key32 {
    derive(passphrase, blake3::hash(ring).as_bytes(), &[b"pgark v1 key cache"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_key_opens_with_its_passphrase_and_ring_only() {
        let master = Key32([5; 32]);
        let cached = seal_for_cache(b"p", b"ring", &master).unwrap();
        assert!(open_from_cache(b"p", b"ring", &cached) == Some(master));
        assert!(open_from_cache(b"q", b"ring", &cached).is_none());
        assert!(open_from_cache(b"p", b"other ring", &cached).is_none());
        assert!(open_from_cache(b"p", b"ring", &cached[..20]).is_none());
    }
}
