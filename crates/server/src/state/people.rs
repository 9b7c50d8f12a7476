//! Sessions of people whom a provider of OpenID Connect signed in.
//!
//! As other sessions (`sessions.rs`), of which a hash is kept; beside it what the ID token said, since nobody can be asked again.
//! That is no right: what it gives is in the settings, and looked up at each request.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension, Row, params};

use super::sessions::{IDLE, OF_ONE_MAX, USED_EVERY_S};
use super::{Result, State, StateError, by_the_way, leaving, text, time};
use crate::access::{Token, token_hash};
use crate::oidc::Person;

/// A table that came later, and that programs without it pass over: for those these people are not signed in.
pub const SCHEMA: &str = "
create table if not exists people (
    hash blob primary key, issuer text not null, subject text not null, name text not null, groups text not null,
    created text not null, expires text not null, last_used text not null
) strict;
";

impl State {
    /// The session, which nobody can be told again.
    pub fn sign_in_person(&self, person: &Person, lasts: SignedDuration, now: Timestamp) -> Result<Token> {
        let session = Token::random()?;
        let Person { issuer, subject, name, groups } = person;
        let ends = now.checked_add(lasts).unwrap_or(now);
        let groups = serde_json::json!(groups).to_string();
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        change.execute("delete from people where expires <= ?1", [text(now)])?;
        change.execute(
            "insert into people (hash, issuer, subject, name, groups, created, expires, last_used)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?6)",
            params![token_hash(session.expose()), issuer, subject, name, groups, text(now), text(ends)],
        )?;
        let oldest = "delete from people where issuer = ?1 and subject = ?2 and hash not in
            (select hash from people where issuer = ?1 and subject = ?2 order by rowid desc limit ?3)";
        change.execute(oldest, params![issuer, subject, OF_ONE_MAX])?;
        leaving::forget(&change)?;
        change.commit()?;
        Ok(session)
    }

    /// Who was signed in to this session, as long as it lasts.
    pub fn person(&self, session: &str, now: Timestamp) -> Result<Option<Person>> {
        let hash = token_hash(session);
        let query = "select issuer, subject, name, groups, expires, last_used from people where hash = ?1";
        let row = |row: &Row<'_>| {
            let person = (row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            Ok((person, row.get::<_, String>(3)?, row.get::<_, String>(4)?, row.get::<_, String>(5)?))
        };
        let connection = self.connection();
        let found = connection.query_row(query, [hash], row).optional()?;
        let Some(((issuer, subject, name), groups, expires, used)) = found else { return Ok(None) };
        let since = now.duration_since(time(&used)?);
        if now >= time(&expires)? || since > IDLE {
            by_the_way(connection.execute("delete from people where hash = ?1", [hash]))?;
            return Ok(None);
        }
        if since.as_secs() >= USED_EVERY_S {
            let change = "update people set last_used = ?2 where hash = ?1";
            by_the_way(connection.execute(change, params![hash, text(now)]))?;
        }
        let groups = serde_json::from_str(&groups).map_err(|e| StateError::Content(format!("groups: {e}")))?;
        Ok(Some(Person { issuer, subject, name, groups }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_stays_signed_in_for_a_while_and_is_who_the_token_said() {
        let scratch = pgark_testkit::Scratch::new("people");
        let state = State::open(&scratch.join("state")).expect("opened");
        let now = Timestamp::now();
        let at = |hours: i64| now + SignedDuration::from_hours(hours);
        let ada = Person {
            issuer: "https://id.example.org".into(),
            subject: "4711".into(),
            name: "ada".into(),
            groups: vec!["dba".into(), "a \"quoted\" group".into()],
        };
        let sign_in = || {
            let session = state.sign_in_person(&ada, SignedDuration::from_hours(8), now).expect("signed in");
            session.expose().to_owned()
        };
        let who = |session: &str, at: Timestamp| state.person(session, at).expect("asked");
        let session = sign_in();
        assert_eq!(who(&session, now), Some(ada.clone()));
        assert_eq!(state.session_caller(&session, now).expect("asked"), None, "it is no user's");
        (1..8).for_each(|hour| assert!(who(&session, at(hour)).is_some(), "{hour}"));
        assert_eq!(who(&session, at(8)), None, "however much it is used");
        let session = sign_in();
        assert_eq!(who(&session, at(3)), None, "not used for too long");
        assert_eq!(who(&session, now), None, "and it does not come back");
        let session = sign_in();
        state.sign_out(&session).expect("out");
        assert_eq!(who(&session, now), None);
        let all: Vec<String> = (0..=OF_ONE_MAX).map(|_| sign_in()).collect();
        let lasting = all.iter().filter(|session| who(session, now).is_some()).count();
        assert!(lasting == all.len() - 1 && who(&all[0], now).is_none(), "{lasting}: the oldest went");
    }
}
