//! What it takes to sign a person out at the provider, too.
//!
//! Invariant: the ID token among it is read by nobody but who has the session. It is sealed with a key that is made of the session's
//! secret, of which a hash alone is kept.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Result, State, StateError};
use crate::access::token_hash;
use crate::oidc::Leaving;

/// A table that came later, and that programs without it pass over: by those people are signed out here alone.
pub const SCHEMA: &str = "create table if not exists leavings (hash blob primary key, sealed blob not null) strict;";

/// What the key is made for (`blake3::derive_key`).
const KEY: &str = "pgark 2026-11-22 20:45:00 what it takes to sign out at the provider";

impl State {
    /// Of a session that has just begun.
    pub fn keep_leaving(&self, session: &str, leaving: &Leaving) -> Result<()> {
        let mut sealed = serde_json::to_vec(leaving).map_err(|e| StateError::Content(e.to_string()))?;
        key(session)
            .and_then(|key| key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).ok())
            .ok_or_else(|| StateError::Content("what cannot be sealed".into()))?;
        let change = "insert into leavings (hash, sealed) values (?1, ?2)";
        self.connection().execute(change, params![token_hash(session), sealed])?;
        Ok(())
    }

    /// None: it was not begun with a provider that signs people out.
    pub fn leaving(&self, session: &str) -> Result<Option<Leaving>> {
        let query = "select sealed from leavings where hash = ?1";
        let found: Option<Vec<u8>> =
            self.connection().query_row(query, [token_hash(session)], |row| row.get(0)).optional()?;
        let opened = found.and_then(|mut sealed| {
            let plain = key(session)?.open_in_place(nonce(), Aad::empty(), &mut sealed).ok()?;
            serde_json::from_slice(plain).ok()
        });
        Ok(opened)
    }
}

/// Those of sessions that are over.
pub fn forget(change: &Connection) -> rusqlite::Result<()> {
    change.execute("delete from leavings where hash not in (select hash from people)", []).map(|_| ())
}

fn key(session: &str) -> Option<LessSafeKey> {
    let key = blake3::derive_key(KEY, session.as_bytes());
    UnboundKey::new(&AES_256_GCM, &key).ok().map(LessSafeKey::new)
}

/// Each key is of one session, and seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::oidc::Person;

    #[test]
    fn what_it_takes_to_leave_is_for_who_has_the_session_alone() {
        let scratch = pgark_testkit::Scratch::new("leaving");
        let state = State::open(&scratch.join("state")).expect("opened");
        let now = Timestamp::now();
        let text = |text: &str| text.to_owned();
        let ada = Person { issuer: text("i"), subject: text("4711"), name: text("ada"), groups: vec![] };
        let sign_in = || {
            let session = state.sign_in_person(&ada, SignedDuration::from_hours(8), now).expect("signed in");
            session.expose().to_owned()
        };
        let leaving = Leaving {
            issuer: text("i"),
            client_id: text("c"),
            end_session: text("https://id.example.org/end"),
            id_token: text("canary.of.an-id-token"),
        };
        let (one, two) = (sign_in(), sign_in());
        state.keep_leaving(&one, &leaving).expect("kept");
        let of = |session: &str| state.leaving(session).expect("asked");
        assert!(of(&one) == Some(leaving) && of(&two).is_none());
        for entry in std::fs::read_dir(state.dir()).expect("listed").flatten().filter(|e| e.path().is_file()) {
            let bytes = std::fs::read(entry.path()).expect("read");
            assert!(!bytes.windows(6).any(|w| w == b"canary"), "{}", entry.path().display());
        }
        state.sign_out(&one).expect("out");
        assert!(of(&one).is_none());
    }
}
