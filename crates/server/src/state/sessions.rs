//! Sessions: who has signed in, with a password or with a token.
//!
//! Invariant: of a session a hash is kept, as of a token. It is no right of its own: at each request it is asked again what the
//! user, or the token, that began it may do, and whether it is still there.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Result, State, StateError, by_the_way, text, time, users};
use crate::access::{Caller, Means, Token, token_hash};

/// A table that came later, and that programs without it pass over. `who` is the name of a user, or the id of a token.
pub const SCHEMA: &str = "
create table if not exists sessions (
    hash blob primary key, means text not null, who text not null, created text not null, expires text not null,
    last_used text not null
) strict;
";

/// A session that nobody uses ends.
pub const IDLE: SignedDuration = SignedDuration::from_hours(2);
/// When one was used last is kept no finer.
pub const USED_EVERY_S: i64 = 60;
/// Of one user, or begun with one token; the oldest go.
pub const OF_ONE_MAX: u32 = 20;

impl State {
    /// A session, if this token is valid; it ends with the token.
    pub fn sign_in_by_token(
        &self,
        token: &str,
        lasts: SignedDuration,
        now: Timestamp,
    ) -> Result<Option<(Token, Caller)>> {
        let Some(caller) = self.caller(token, now)? else { return Ok(None) };
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let session = begin(&change, Means::Token, &caller.id, lasts, now)?;
        change.commit()?;
        Ok(Some((session, caller)))
    }

    /// Who has signed in to this session, as long as it lasts; the rights are those of now.
    pub fn session_caller(&self, session: &str, now: Timestamp) -> Result<Option<Caller>> {
        let hash = token_hash(session);
        let query = "select means, who, expires, last_used from sessions where hash = ?1";
        let row = |row: &Row<'_>| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?))
        };
        let found = self.connection().query_row(query, [hash], row).optional()?;
        let Some((means, who, expires, used)) = found else { return Ok(None) };
        let since = now.duration_since(time(&used)?);
        let caller = match means.as_str() {
            _ if now >= time(&expires)? || since > IDLE => None,
            "user" => users::find(&self.connection(), &who)?.map(users::UserRecord::caller),
            "token" => self.caller_of(&who, now)?,
            other => return Err(StateError::Content(format!("'{other}' as what a session was begun with"))),
        };
        let connection = self.connection();
        if caller.is_none() {
            by_the_way(connection.execute("delete from sessions where hash = ?1", [hash]))?;
        } else if since.as_secs() >= USED_EVERY_S {
            let change = "update sessions set last_used = ?2 where hash = ?1";
            by_the_way(connection.execute(change, params![hash, text(now)]))?;
        }
        Ok(caller)
    }

    pub fn sign_out(&self, session: &str) -> Result<()> {
        let (connection, hash) = (self.connection(), token_hash(session));
        connection.execute("delete from sessions where hash = ?1", [hash])?;
        connection.execute("delete from people where hash = ?1", [hash])?;
        connection.execute("delete from leavings where hash = ?1", [hash])?;
        Ok(())
    }
}

/// Within a transaction. The session, which nobody can be told again.
pub fn begin(change: &Connection, means: Means, who: &str, lasts: SignedDuration, now: Timestamp) -> Result<Token> {
    let session = Token::random()?;
    let (means, ends) = (means.word(), now.checked_add(lasts).unwrap_or(now));
    change.execute("delete from sessions where expires <= ?1", [text(now)])?;
    change.execute(
        "insert into sessions (hash, means, who, created, expires, last_used) values (?1, ?2, ?3, ?4, ?5, ?4)",
        params![token_hash(session.expose()), means, who, text(now), text(ends)],
    )?;
    let oldest = "delete from sessions where means = ?1 and who = ?2 and hash not in
        (select hash from sessions where means = ?1 and who = ?2 order by rowid desc limit ?3)";
    change.execute(oldest, params![means, who, OF_ONE_MAX])?;
    Ok(session)
}

/// Those of a user whose password was changed, or who is gone.
pub fn end_all(change: &Connection, user: &str) -> Result<()> {
    change.execute("delete from sessions where means = 'user' and who = ?1", [user])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Grant, Role};

    const HOURS: SignedDuration = SignedDuration::from_hours(12);

    #[test]
    fn a_session_begun_with_a_token_is_the_token_and_ends_with_it() {
        let scratch = pgark_testkit::Scratch::new("sessions");
        let state = State::open(&scratch.join("state")).expect("opened");
        let now = Timestamp::now();
        let at = |hours: i64| now + SignedDuration::from_hours(hours);
        let sign_in = |token: &str| {
            let made = state.sign_in_by_token(token, HOURS, now).expect("asked");
            made.map(|(session, _)| session.expose().to_owned())
        };
        let who = |session: &str, at: Timestamp| state.session_caller(session, at).expect("asked");
        let (token, record) = state.create_token("n", Role::Operator, Some("a"), Some(at(1)), now).expect("made");
        assert_eq!(sign_in("pgark_nobody"), None);
        let session = sign_in(token.expose()).expect("signed in");
        let caller = who(&session, now).expect("somebody");
        assert_eq!(caller.identity(), format!("token:{}", record.id));
        assert_eq!(caller.grants, [Grant { role: Role::Operator, cluster: Some("a".into()) }]);
        assert_eq!(state.caller(&session, now).expect("asked"), None, "a session is no token");
        assert_eq!(who(token.expose(), now), None, "nor a token a session");
        assert_eq!(who(&session, at(1)), None, "the token has expired");
        assert_eq!(who(&session, now), None, "and it does not come back");
        let session = sign_in(token.expose()).expect("signed in");
        state.revoke_token(&record.id, now).expect("revoked");
        assert_eq!(who(&session, now), None);
        assert_eq!(sign_in(token.expose()), None);
        // A user who is called like a token is somebody else.
        let (token, record) = state.create_token("n", Role::Viewer, None, None, now).expect("made");
        let all: Vec<String> = (0..=OF_ONE_MAX).map(|_| sign_in(token.expose()).expect("signed in")).collect();
        end_all(&state.connection(), &record.id).expect("ended");
        let lasting = all.iter().filter(|session| who(session, now).is_some()).count();
        assert!(lasting == all.len() - 1 && who(&all[0], now).is_none(), "{lasting}: the oldest went");
    }
}
