//! Local users, and signing in with a password.
//!
//! Invariant: a password is nowhere; what is kept is argon2id of it, with its own salt and cost. Looking up a user who is not there
//! takes as long as one who is.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Result, State, StateError, optional_time, sessions, text, time};
use crate::access::{Caller, Grant, Means, Role, Token};

pub const SCHEMA: &str = "
create table if not exists users (
    name text primary key, salt blob not null, hash blob not null, memory_kib integer not null, passes integer not null,
    lanes integer not null, role text not null, cluster text, created text not null, changed text not null, last_used text
) strict;
";

const COLUMNS: &str = "name, role, cluster, created, changed, last_used";
/// Shorter ones are found by trying, however slow that is.
pub const PASSWORD_BYTES_MIN: usize = 12;
pub const PASSWORD_BYTES_MAX: usize = 1024;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// RFC 9106, 4, the second recommendation; in one lane, since that is what we have. Some 0.2 s.
const COST: Cost = Cost { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
/// What was written by others into our database does not exhaust the machine.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
const PASSES_MAX: u32 = 16;

#[derive(Clone, Copy)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// As it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserRecord {
    pub name: String,
    pub role: Role,
    pub cluster: Option<String>,
    pub created: Timestamp,
    /// The password, last.
    pub changed: Timestamp,
    pub last_used: Option<Timestamp>,
}

impl UserRecord {
    pub fn caller(self) -> Caller {
        let grants = vec![Grant { role: self.role, cluster: self.cluster }];
        Caller { means: Means::User, id: self.name.clone(), name: self.name, grants }
    }
}

type Hash = Zeroizing<[u8; HASH_BYTES]>;

fn hashed(password: &[u8], salt: &[u8], cost: Cost) -> Result<Hash> {
    let failed = |e: argon2::Error| StateError::Content(format!("a password cannot be hashed: {e}"));
    if cost.memory_kib > MEMORY_KIB_MAX || cost.passes > PASSES_MAX {
        return Err(StateError::Content("the cost of a password is beyond what is sensible".into()));
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(HASH_BYTES)).map_err(failed)?;
    let mut hash = Zeroizing::new([0; HASH_BYTES]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password, salt, hash.as_mut_slice()).map_err(failed)?;
    Ok(hash)
}

fn new_hash(password: &[u8]) -> Result<([u8; SALT_BYTES], Hash)> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)?;
    Ok((salt, hashed(password, &salt, COST)?))
}

impl State {
    /// # Errors
    /// `Exists` when there is one of this name.
    pub fn add_user(
        &self,
        name: &str,
        role: Role,
        cluster: Option<&str>,
        password: &[u8],
        now: Timestamp,
    ) -> Result<UserRecord> {
        let (salt, hash) = new_hash(password)?;
        let Cost { memory_kib, passes, lanes } = COST;
        let (role, at) = (role.word(), text(now));
        let added = self.connection().execute(
            "insert into users (name, salt, hash, memory_kib, passes, lanes, role, cluster, created, changed)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) on conflict do nothing",
            params![name, salt, hash.as_slice(), memory_kib, passes, lanes, role, cluster, at],
        )?;
        match added {
            0 => Err(StateError::Exists { what: "user", id: name.to_owned() }),
            _ => self.user(name),
        }
    }

    /// Ends the user's sessions too.
    pub fn change_password(&self, name: &str, password: &[u8], now: Timestamp) -> Result<UserRecord> {
        let (salt, hash) = new_hash(password)?;
        let Cost { memory_kib, passes, lanes } = COST;
        {
            let mut connection = self.connection();
            let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            change.execute(
                "update users set salt = ?2, hash = ?3, memory_kib = ?4, passes = ?5, lanes = ?6, changed = ?7 where name = ?1",
                params![name, salt, hash.as_slice(), memory_kib, passes, lanes, text(now)],
            )?;
            sessions::end_all(&change, name)?;
            change.commit()?;
        }
        self.user(name)
    }

    /// And the user's sessions.
    pub fn remove_user(&self, name: &str) -> Result<UserRecord> {
        let user = self.user(name)?;
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        change.execute("delete from users where name = ?1", [name])?;
        sessions::end_all(&change, name)?;
        change.commit()?;
        Ok(user)
    }

    pub fn users(&self) -> Result<Vec<UserRecord>> {
        let connection = self.connection();
        let mut query = connection.prepare(&format!("select {COLUMNS} from users order by name"))?;
        let mut rows = query.query([])?;
        let mut users = vec![];
        while let Some(row) = rows.next()? {
            users.push(record(row)?);
        }
        Ok(users)
    }

    pub fn user(&self, name: &str) -> Result<UserRecord> {
        let found = find(&self.connection(), name)?;
        found.ok_or_else(|| StateError::NotFound { what: "user", id: name.escape_debug().to_string() })
    }

    /// A session, if the password is this user's. As slow for a user who is not there; the database is not held meanwhile.
    pub fn sign_in(
        &self,
        name: &str,
        password: &[u8],
        lasts: SignedDuration,
        now: Timestamp,
    ) -> Result<Option<(Token, UserRecord)>> {
        let query = "select salt, hash, memory_kib, passes, lanes from users where name = ?1";
        let row = |row: &Row<'_>| {
            let cost = Cost { memory_kib: row.get(2)?, passes: row.get(3)?, lanes: row.get(4)? };
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?, cost))
        };
        let known = self.connection().query_row(query, [name], row).optional()?;
        let is_known = known.is_some();
        let (salt, expected, cost) = known.unwrap_or_else(|| (vec![0; SALT_BYTES], vec![0; HASH_BYTES], COST));
        let given = hashed(password, &salt, cost)?;
        let is_equal = verify_slices_are_equal(given.as_slice(), &expected).is_ok();
        if !(is_known && is_equal) {
            return Ok(None);
        }
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        // One whose password was changed while this was compared is not signed in with the old one.
        let hash: Option<Vec<u8>> =
            change.query_row("select hash from users where name = ?1", [name], |row| row.get(0)).optional()?;
        if hash != Some(expected) {
            return Ok(None);
        }
        let session = sessions::begin(&change, Means::User, name, lasts, now)?;
        change.execute("update users set last_used = ?2 where name = ?1", params![name, text(now)])?;
        change.commit()?;
        drop(connection);
        Ok(Some((session, self.user(name)?)))
    }

    /// Whether a token or a user is there that could ask for something.
    pub fn somebody_may_ask(&self, now: Timestamp) -> Result<bool> {
        let query = "select exists (select 1 from users)
            or exists (select 1 from tokens where revoked is null and (expires is null or expires > ?1))";
        Ok(self.connection().query_row(query, [text(now)], |row| row.get(0))?)
    }
}

pub(super) fn find(connection: &Connection, name: &str) -> Result<Option<UserRecord>> {
    let mut query = connection.prepare(&format!("select {COLUMNS} from users where name = ?1"))?;
    let mut rows = query.query([name])?;
    rows.next()?.map(record).transpose()
}

fn record(row: &Row<'_>) -> Result<UserRecord> {
    Ok(UserRecord {
        name: row.get(0)?,
        role: row.get::<_, String>(1)?.parse().map_err(StateError::Content)?,
        cluster: row.get(2)?,
        created: time(&row.get::<_, String>(3)?)?,
        changed: time(&row.get::<_, String>(4)?)?,
        last_used: optional_time(row.get(5)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOURS: SignedDuration = SignedDuration::from_hours(12);

    #[test]
    fn a_session_ends_with_time_with_disuse_with_the_password_and_with_the_user() {
        let scratch = pgark_testkit::Scratch::new("users");
        let state = State::open(&scratch.join("state")).expect("opened");
        let now = Timestamp::now();
        let at = |hours: i64| now + SignedDuration::from_hours(hours);
        state.add_user("ada", Role::Operator, Some("a"), b"correct horse battery", now).expect("added");
        let again = state.add_user("ada", Role::Admin, None, b"something else here", now);
        assert!(matches!(again, Err(StateError::Exists { .. })), "{again:?}");
        let sign_in = |name: &str, password: &str| {
            let made = state.sign_in(name, password.as_bytes(), HOURS, now).expect("asked");
            made.map(|(session, _)| session.expose().to_owned())
        };
        assert!(sign_in("ada", "correct horse batter").is_none() && sign_in("bob", "correct horse battery").is_none());
        let session = sign_in("ada", "correct horse battery").expect("signed in");
        let who = |session: &str, at: Timestamp| state.session_caller(session, at).expect("asked");
        let ada = who(&session, now).expect("ada");
        let own = Grant { role: Role::Operator, cluster: Some("a".into()) };
        assert_eq!((ada.identity().as_str(), ada.grants), ("user:ada", vec![own]));
        assert_eq!(who("pgark_other", now), None);
        assert!(who(&session, at(1)).is_some() && who(&session, at(2)).is_some(), "used in between");
        assert_eq!(who(&session, at(5)), None, "not used for too long");
        let session = sign_in("ada", "correct horse battery").expect("signed in");
        (1..12).for_each(|hour| assert!(who(&session, at(hour)).is_some(), "{hour}"));
        assert_eq!(who(&session, at(12)), None, "however much it is used");
        let session = sign_in("ada", "correct horse battery").expect("signed in");
        state.change_password("ada", b"another long password", now).expect("changed");
        assert_eq!(who(&session, now), None);
        assert!(sign_in("ada", "correct horse battery").is_none());
        let session = sign_in("ada", "another long password").expect("signed in");
        state.sign_out(&session).expect("out");
        assert_eq!(who(&session, now), None);
        let session = sign_in("ada", "another long password").expect("signed in");
        state.remove_user("ada").expect("removed");
        assert_eq!(who(&session, now), None);
        assert!(matches!(state.remove_user("ada"), Err(StateError::NotFound { .. })));
    }
}
