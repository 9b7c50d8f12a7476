//! What opens a repository.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::Result;

/// Programs that wrap and unwrap a key for a KMS or a vault, by the names under which slots know them. What they
/// are comes from the client's configuration; a repository carries a name and a wrapped key, never a command.
pub trait KeyCommands: Send + Sync {
    fn knows(&self, name: &str) -> bool;

    /// # Errors
    /// `KeyCommand` when the program is not configured or fails.
    fn wrap(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>>;

    /// # Errors
    /// As `wrap`.
    fn unwrap(&self, name: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>>;
}

#[derive(Default, Clone)]
pub struct Unlock {
    pub passphrase: Option<Zeroizing<Vec<u8>>>,
    /// Text of age identities (`AGE-SECRET-KEY-…`), one per line, `#` comments allowed.
    pub age_identities: Option<Zeroizing<String>>,
    /// None when the client has no such program.
    pub commands: Option<Arc<dyn KeyCommands>>,
}

impl Unlock {
    pub fn passphrase(p: &[u8]) -> Self {
        Unlock { passphrase: Some(Zeroizing::new(p.to_vec())), ..Unlock::default() }
    }

    pub fn age_identities(text: &str) -> Self {
        Unlock { age_identities: Some(Zeroizing::new(text.to_owned())), ..Unlock::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.passphrase.is_none() && self.age_identities.is_none() && self.commands.is_none()
    }
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unlock(…)")
    }
}
