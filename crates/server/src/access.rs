//! Who may do what: roles, what of the clusters they are for, tokens.
//!
//! Invariant: a token is told once, when it is made; what is kept of it is a hash. It has 256 random bits, so that the hash
//! needs no salt and nobody finds it by trying.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a token begins with, so that scanners for leaked secrets know it.
pub const TOKEN_PREFIX: &str = "pgark_";
const TOKEN_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees everything of its clusters
    Viewer,
    /// Backs up, verifies, rehearses
    Operator,
    /// Restores and recovers as well
    RecoveryOperator,
    /// Sees everything, and points applications to what was restored
    AppAdmin,
    /// Everything, tokens too
    Admin,
}

/// What a request does; what a role may do is a set of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Without a token
    Anyone,
    View,
    /// Jobs that write into a repository or read all of it
    Operate,
    /// Jobs that restore, or remove backups by name
    Recover,
    Administer,
}

pub const ROLES: [Role; 5] = [Role::Viewer, Role::Operator, Role::RecoveryOperator, Role::AppAdmin, Role::Admin];

impl Role {
    pub fn may(self, right: Right) -> bool {
        match right {
            Right::Anyone | Right::View => true,
            Right::Operate => matches!(self, Role::Operator | Role::RecoveryOperator | Role::Admin),
            Right::Recover => matches!(self, Role::RecoveryOperator | Role::Admin),
            Right::Administer => self == Role::Admin,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::RecoveryOperator => "recovery-operator",
            Role::AppAdmin => "app-admin",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        ROLES.into_iter().find(|role| role.word() == text).ok_or_else(|| format!("'{text}' is no role"))
    }
}

/// What somebody showed to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    Token,
    /// Signed in with a password
    User,
    /// Of a client, on the connection
    Certificate,
}

impl Means {
    pub fn word(self) -> &'static str {
        match self {
            Means::Token => "token",
            Means::User => "user",
            Means::Certificate => "certificate",
        }
    }
}

/// Who asks, once it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub means: Means,
    /// Of a token its id, of a user the name, of a certificate its subject.
    pub id: String,
    pub name: String,
    pub role: Role,
    /// None: every cluster.
    pub cluster: Option<String>,
}

impl Caller {
    /// Told apart from all others, whatever those are called.
    pub fn identity(&self) -> String {
        format!("{}:{}", self.means.word(), self.id)
    }

    /// For lists and logs.
    pub fn shown(&self) -> String {
        format!("{} {}", self.means.word(), self.name)
    }

    pub fn may(&self, right: Right, cluster: Option<&str>) -> bool {
        let in_scope = match (&self.cluster, cluster) {
            (None, _) => true,
            (Some(own), Some(asked)) => own == asked,
            // What is about no cluster in particular shows of each caller's own alone; changing it takes all.
            (Some(_), None) => matches!(right, Right::Anyone | Right::View),
        };
        in_scope && self.role.may(right)
    }

    pub fn sees(&self, cluster: &str) -> bool {
        self.may(Right::View, Some(cluster))
    }
}

/// A token as it is told once.
pub struct Token(String);

impl Token {
    /// # Errors
    /// When the system has no random bytes.
    pub fn random() -> Result<Token, getrandom::Error> {
        let mut bytes = [0_u8; TOKEN_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Token(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// To be told to who asked for it, and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What is kept of a token, and looked up by. Two hashes tell nothing of how alike their tokens are, so that the time of a look-up
/// tells nothing either.
pub fn token_hash(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

/// A token as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenRecord {
    pub id: String,
    pub name: String,
    pub role: Role,
    pub cluster: Option<String>,
    pub created: Timestamp,
    pub expires: Option<Timestamp>,
    pub revoked: Option<Timestamp>,
    pub last_used: Option<Timestamp>,
}

impl TokenRecord {
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|at| now < at)
    }

    pub fn caller(self) -> Caller {
        Caller { means: Means::Token, id: self.id, name: self.name, role: self.role, cluster: self.cluster }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_grow_with_roles_and_end_at_the_cluster() {
        let rights = [Right::View, Right::Operate, Right::Recover, Right::Administer];
        let allowed = |role: Role| rights.map(|right| role.may(right));
        assert_eq!(allowed(Role::Viewer), [true, false, false, false]);
        assert_eq!(allowed(Role::Operator), [true, true, false, false]);
        assert_eq!(allowed(Role::RecoveryOperator), [true, true, true, false]);
        assert_eq!(allowed(Role::AppAdmin), [true, false, false, false]);
        assert_eq!(allowed(Role::Admin), [true; 4]);
        let caller = |cluster: Option<&str>| Caller {
            means: Means::Token,
            id: "t".into(),
            name: "n".into(),
            role: Role::Admin,
            cluster: cluster.map(str::to_owned),
        };
        for right in rights {
            assert!(caller(None).may(right, Some("a")) && caller(None).may(right, None));
            assert!(caller(Some("a")).may(right, Some("a")) && !caller(Some("a")).may(right, Some("b")));
        }
        assert!(!caller(Some("a")).may(Right::Administer, None));
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, two) = (Token::random().expect("random"), Token::random().expect("random"));
        assert!(one.expose().starts_with(TOKEN_PREFIX) && one.expose().len() == 49, "{}", one.expose().len());
        assert_ne!(token_hash(one.expose()), token_hash(two.expose()));
    }
}
