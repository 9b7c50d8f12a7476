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
    /// Sees everything, and says yes to what points applications to another database
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
    /// Saying to which database an application goes
    Repoint,
    /// Saying yes to what somebody else asked for; to what of it, is compared with the job
    Approve,
    Administer,
}

/// What a role is shown to be allowed to.
pub const RIGHTS: [Right; 5] = [Right::View, Right::Operate, Right::Recover, Right::Repoint, Right::Administer];
pub const ROLES: [Role; 5] = [Role::Viewer, Role::Operator, Role::RecoveryOperator, Role::AppAdmin, Role::Admin];

impl Role {
    pub fn may(self, right: Right) -> bool {
        match right {
            Right::Anyone | Right::View => true,
            Right::Operate => matches!(self, Role::Operator | Role::RecoveryOperator | Role::Admin),
            Right::Recover => matches!(self, Role::RecoveryOperator | Role::Admin),
            Right::Repoint => matches!(self, Role::AppAdmin | Role::Admin),
            Right::Approve => self.may(Right::Recover) || self.may(Right::Repoint),
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
    /// Signed in by a provider of OpenID Connect
    Oidc,
}

impl Means {
    pub fn word(self) -> &'static str {
        match self {
            Means::Token => "token",
            Means::User => "user",
            Means::Certificate => "certificate",
            Means::Oidc => "oidc",
        }
    }
}

/// A role, and what of the clusters it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    pub role: Role,
    /// None: every cluster.
    pub cluster: Option<String>,
}

impl Grant {
    fn may(&self, right: Right, cluster: Option<&str>) -> bool {
        let in_scope = match (&self.cluster, cluster) {
            (None, _) => true,
            (Some(own), Some(asked)) => own == asked,
            // What is about no cluster in particular shows of each caller's own alone; changing it takes all.
            (Some(_), None) => matches!(right, Right::Anyone | Right::View),
        };
        in_scope && self.role.may(right)
    }
}

/// Who asks, once it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub means: Means,
    /// Of a token its id, of a user the name, of a certificate its subject, of somebody else's word for a person what it calls them.
    pub id: String,
    pub name: String,
    /// One of tokens, users and certificates; of people in groups, one for each group. They add up. Without any nothing is allowed.
    pub grants: Vec<Grant>,
}

impl Caller {
    /// Told apart from all others, whatever those are called.
    pub fn identity(&self) -> String {
        format!("{}:{}", self.means.word(), self.id)
    }

    /// For lists and logs.
    pub fn shown(&self) -> String {
        match self.means {
            // Who signs people in may let them choose what they are called, and may not let them choose who they are.
            Means::Oidc if self.name != self.id => format!("oidc {} ({})", self.name, self.id),
            means => format!("{} {}", means.word(), self.name),
        }
    }

    pub fn may(&self, right: Right, cluster: Option<&str>) -> bool {
        self.grants.iter().any(|grant| grant.may(right, cluster))
    }

    /// On some cluster.
    pub fn may_somewhere(&self, right: Right) -> bool {
        self.grants.iter().any(|grant| grant.role.may(right))
    }

    pub fn sees(&self, cluster: &str) -> bool {
        self.may(Right::View, Some(cluster))
    }

    pub fn sees_all(&self) -> bool {
        self.grants.iter().any(|grant| grant.cluster.is_none())
    }

    /// The clusters that it is for; None: every cluster.
    pub fn clusters(&self) -> Option<Vec<String>> {
        let named = || self.grants.iter().filter_map(|grant| grant.cluster.clone()).collect();
        (!self.sees_all()).then(named)
    }

    /// What it may do on a cluster with the strongest of its roles; the first of equals.
    pub fn strongest(&self) -> Option<&Grant> {
        let strength = |grant: &Grant| RIGHTS.iter().filter(|right| grant.role.may(**right)).count();
        self.grants.iter().rev().max_by_key(|grant| strength(grant))
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
    /// None: every cluster.
    pub clusters: Option<Vec<String>>,
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
        let role = self.role;
        let grants = match self.clusters {
            None => vec![Grant { role, cluster: None }],
            Some(all) => all.into_iter().map(|cluster| Grant { role, cluster: Some(cluster) }).collect(),
        };
        Caller { means: Means::Token, id: self.id, name: self.name, grants }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_grow_with_roles_and_end_at_the_cluster() {
        let allowed = |role: Role| RIGHTS.map(|right| role.may(right));
        assert_eq!(allowed(Role::Viewer), [true, false, false, false, false]);
        assert_eq!(allowed(Role::Operator), [true, true, false, false, false]);
        assert_eq!(allowed(Role::RecoveryOperator), [true, true, true, false, false]);
        assert_eq!(allowed(Role::AppAdmin), [true, false, false, true, false]);
        assert_eq!(allowed(Role::Admin), [true; 5]);
        let approvers = ROLES.into_iter().filter(|role| role.may(Right::Approve));
        assert!(approvers.eq([Role::RecoveryOperator, Role::AppAdmin, Role::Admin]));
        let caller = |cluster: Option<&str>| Caller {
            means: Means::Token,
            id: "t".into(),
            name: "n".into(),
            grants: vec![Grant { role: Role::Admin, cluster: cluster.map(str::to_owned) }],
        };
        for right in RIGHTS {
            assert!(caller(None).may(right, Some("a")) && caller(None).may(right, None));
            assert!(caller(Some("a")).may(right, Some("a")) && !caller(Some("a")).may(right, Some("b")));
        }
        assert!(!caller(Some("a")).may(Right::Administer, None));
    }

    #[test]
    fn several_grants_add_up_and_none_allows_nothing() {
        let grant = |role: Role, cluster: Option<&str>| Grant { role, cluster: cluster.map(str::to_owned) };
        let caller = |grants: &[Grant]| Caller {
            means: Means::Oidc,
            id: "4711".into(),
            name: "ada".into(),
            grants: grants.to_vec(),
        };
        let both = caller(&[grant(Role::Viewer, None), grant(Role::Admin, Some("a"))]);
        assert!(both.sees("b") && both.sees_all() && both.clusters().is_none());
        assert!(both.may(Right::Administer, Some("a")) && !both.may(Right::Operate, Some("b")));
        assert!(!both.may(Right::Administer, None), "of no cluster in particular, and one's own is no more than one");
        assert!(both.may_somewhere(Right::Administer));
        assert_eq!(both.strongest(), Some(&grant(Role::Admin, Some("a"))));
        let some = caller(&[grant(Role::Viewer, Some("a")), grant(Role::AppAdmin, Some("b"))]);
        assert!(some.sees("a") && some.sees("b") && !some.sees("c"));
        assert_eq!(some.clusters(), Some(vec!["a".to_owned(), "b".to_owned()]));
        let nobody = caller(&[]);
        assert!(
            !nobody.may(Right::View, None) && !nobody.may_somewhere(Right::View) && nobody.clusters() == Some(vec![])
        );
        assert_eq!((both.identity().as_str(), both.shown().as_str()), ("oidc:4711", "oidc ada (4711)"));
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, two) = (Token::random().expect("random"), Token::random().expect("random"));
        assert!(one.expose().starts_with(TOKEN_PREFIX) && one.expose().len() == 49, "{}", one.expose().len());
        assert_ne!(token_hash(one.expose()), token_hash(two.expose()));
    }
}
