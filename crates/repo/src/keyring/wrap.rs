//! Wrapping one key under another, and keys made of passphrases.

use argon2::{Algorithm as Argon2Algorithm, Argon2, Params, Version as Argon2Version};
use aws_lc_rs::aead;
use zeroize::Zeroizing;

use crate::crypto::{Key32, derive, fill_random};
use crate::error::{RepoError, Result};
use crate::names::KEYRING;

/// What we write, and what we accept from a ring: not so weak that the passphrase is easily guessed, not so
/// strong that opening exhausts the machine.
const KDF_MEMORY_KIB_RANGE: std::ops::RangeInclusive<u32> = 19 * 1024..=1024 * 1024;
const KDF_PASSES_RANGE: std::ops::RangeInclusive<u32> = 2..=16;
const KDF_LANES_RANGE: std::ops::RangeInclusive<u32> = 1..=16;

/// Cost of deriving a key from a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfCost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl KdfCost {
    pub const WRITTEN: KdfCost = KdfCost { memory_kib: 64 * 1024, passes: 3, lanes: 4 };

    /// # Errors
    /// `Corrupt` for what a ring must not ask for.
    pub fn check(self) -> Result<()> {
        let fine = KDF_MEMORY_KIB_RANGE.contains(&self.memory_kib)
            && KDF_PASSES_RANGE.contains(&self.passes)
            && KDF_LANES_RANGE.contains(&self.lanes);
        if fine {
            Ok(())
        } else {
            Err(RepoError::corrupt(KEYRING, "key derivation parameters outside of what is safe"))
        }
    }
}

pub fn argon2id(passphrase: &[u8], salt: &[u8], cost: KdfCost) -> Result<Key32> {
    let failed = |e: argon2::Error| RepoError::Invalid { what: "key derivation", value: e.to_string() };
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(failed)?;
    let mut out = [0u8; 32];
    Argon2::new(Argon2Algorithm::Argon2id, Argon2Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut out)
        .map_err(failed)?;
    Ok(Key32(out))
}

/// A wrapping key is used once: its salt is random, so a fixed nonce is right.
fn wrapping_cipher(kek: &Key32) -> aead::LessSafeKey {
    let unbound = aead::UnboundKey::new(&aead::AES_256_GCM, &kek.0).expect("32 bytes");
    aead::LessSafeKey::new(unbound)
}

fn wrapping_key(kek: &Key32, salt: &[u8]) -> Key32 {
    derive(&kek.0, salt, &[b"pgark v1 key wrap"])
}

pub fn wrap(kek: &Key32, aad: &[u8], key: &Key32) -> Result<Vec<u8>> {
    wrap_bytes(kek, aad, &key.0)
}

/// `plain` is short: it holds keys.
pub fn wrap_bytes(kek: &Key32, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
    let mut salt = [0u8; 16];
    fill_random(&mut salt)?;
    let mut sealed = Zeroizing::new(plain.to_vec());
    let nonce = aead::Nonce::assume_unique_for_key([0; 12]);
    let tag = wrapping_cipher(&wrapping_key(kek, &salt))
        .seal_in_place_separate_tag(nonce, aead::Aad::from(aad), &mut sealed)
        .expect("keys are below the cipher's limit");
    Ok([&salt[..], &sealed, tag.as_ref()].concat())
}

pub fn unwrap(kek: &Key32, aad: &[u8], wrapped: &[u8]) -> Option<Key32> {
    Some(Key32(unwrap_bytes(kek, aad, wrapped)?.as_slice().try_into().ok()?))
}

pub fn unwrap_bytes(kek: &Key32, aad: &[u8], wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (salt, sealed) = wrapped.split_at_checked(16)?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let nonce = aead::Nonce::assume_unique_for_key([0; 12]);
    let cipher = wrapping_cipher(&wrapping_key(kek, salt));
    let n = cipher.open_in_place(nonce, aead::Aad::from(aad), &mut sealed).ok()?.len();
    sealed.truncate(n);
    Some(sealed)
}
