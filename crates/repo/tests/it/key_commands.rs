//! Slots that a program of the client wraps: what it may see, what it may answer, and when it is away.

use std::sync::Arc;

use pgark_repo::Repository;
use pgark_repo::crypto::Algorithm;
use pgark_repo::error::{RepoError, Result};
use pgark_repo::keyring::{self, Change, KeyCommands, Keyring, NewKeys, Unlock};
use pgark_repo::limits::WRAPPED_KEY_BYTES_MAX;
use pgark_repo::store::{MemoryStore, Store};
use zeroize::Zeroizing;

use crate::common::memory_repository;
use crate::keys::{ring, unlock};
use crate::sample;

/// Turns every byte over; refuses what another one wrapped.
struct Vault(u8);

impl KeyCommands for Vault {
    fn knows(&self, name: &str) -> bool {
        name == "vault"
    }

    fn wrap(&self, _: &str, plain: &[u8]) -> Result<Vec<u8>> {
        Ok([b"vault:", &plain.iter().map(|b| b ^ self.0).collect::<Vec<_>>()[..]].concat())
    }

    fn unwrap(&self, name: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let failed = || RepoError::KeyCommand { name: name.into(), why: "not wrapped by this vault".into() };
        let wrapped = wrapped.strip_prefix(b"vault:").ok_or_else(failed)?;
        Ok(wrapped.iter().map(|b| b ^ self.0).chain(*b"\n").collect::<Vec<_>>().into())
    }
}

pub fn with_vault(mut unlock: Unlock, mask: u8) -> Unlock {
    unlock.commands = Some(Arc::new(Vault(mask)));
    unlock
}

#[test]
fn a_key_command_that_gives_nothing_back_or_is_away_makes_and_opens_no_slot() {
    struct Liar;
    impl KeyCommands for Liar {
        fn knows(&self, _: &str) -> bool {
            true
        }
        fn wrap(&self, _: &str, plain: &[u8]) -> Result<Vec<u8>> {
            Ok(plain.to_vec())
        }
        fn unwrap(&self, _: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
            Ok(wrapped[1..].to_vec().into())
        }
    }
    let (store, _) = memory_repository(Algorithm::Aes256Gcm);
    let store: Arc<dyn Store> = store;
    let mut lied = unlock();
    lied.commands = Some(Arc::new(Liar));
    let add = |unlock: &Unlock, name: &str| {
        keyring::edit(&store, unlock, |ring| {
            ring.add_command(name, unlock, None)?;
            Ok(Change::Write(()))
        })
    };
    assert!(matches!(add(&lied, "liar"), Err(RepoError::KeyCommand { .. })));
    assert!(matches!(add(&lied, "a name; with a shell"), Err(RepoError::Invalid { .. })));
    let mine = with_vault(unlock(), 1);
    assert!(matches!(add(&mine, "unknown"), Err(RepoError::KeyCommand { .. })));
    add(&mine, "vault").unwrap();
    let alone = |mask| with_vault(Unlock::default(), mask);
    assert!(keyring::read(&store, &alone(1)).is_ok());
    assert!(matches!(keyring::read(&store, &alone(2)), Err(RepoError::WrongKey { .. })));
    // A vault that fails is told, and keeps nobody else out.
    let mut away = Unlock { commands: Some(Arc::new(Away)), ..Unlock::default() };
    assert!(matches!(keyring::read(&store, &away), Err(RepoError::KeyCommand { .. })));
    away.age_identities = unlock().age_identities;
    assert!(keyring::read(&store, &away).is_ok());
    assert_eq!(ring(&store).slots().len(), 2);
}

struct Away;

impl KeyCommands for Away {
    fn knows(&self, _: &str) -> bool {
        true
    }
    fn wrap(&self, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        Err(RepoError::KeyCommand { name: name.into(), why: "away".into() })
    }
    fn unwrap(&self, name: &str, _: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        Err(RepoError::KeyCommand { name: name.into(), why: "away".into() })
    }
}

#[test]
fn a_repository_can_be_made_for_a_key_command_alone() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let unlock = with_vault(Unlock::default(), 9);
    let commands = vec!["vault".to_owned()];
    let new = NewKeys { encryption: Algorithm::Aes256Gcm, unlock, age_recipients: vec![], key_commands: commands };
    let (repo, _) = Repository::init(store.clone(), &new).unwrap();
    sample::fill(&repo, 1).unwrap();
    assert!(Repository::open(store.clone(), &new.unlock).is_ok());
    assert!(matches!(Repository::open(store, &Unlock::default()), Err(RepoError::KeyRequired)));
    let none = NewKeys { key_commands: vec![], ..new };
    assert!(matches!(Keyring::create(&none), Err(RepoError::KeyRequired)));
}

#[test]
fn a_key_command_is_not_fed_more_than_it_could_have_made() {
    struct Fed;
    impl KeyCommands for Fed {
        fn knows(&self, _: &str) -> bool {
            true
        }
        fn wrap(&self, _: &str, plain: &[u8]) -> Result<Vec<u8>> {
            Ok(plain.to_vec())
        }
        fn unwrap(&self, _: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
            assert!(wrapped.len() <= WRAPPED_KEY_BYTES_MAX, "{} bytes", wrapped.len());
            Ok(wrapped.to_vec().into())
        }
    }
    let unlock = Unlock { commands: Some(Arc::new(Fed)), ..Unlock::default() };
    let mut new = sample::new_keys(Algorithm::Aes256Gcm, None, crate::common::identity());
    (new.unlock, new.key_commands) = (unlock.clone(), vec!["fed".into()]);
    let text = String::from_utf8(Keyring::create(&new).unwrap().to_bytes()).unwrap();
    Keyring::open(text.as_bytes(), &unlock).unwrap();
    let at = text.find("\"command\":\"fed\",\"wrapped\":\"").unwrap() + "\"command\":\"fed\",\"wrapped\":\"".len();
    let more = format!("{}{}{}", &text[..at], "ab".repeat(100_000), &text[at..]);
    let opened = Keyring::open(more.as_bytes(), &unlock);
    assert!(matches!(opened, Err(RepoError::Corrupt { .. })));
}
