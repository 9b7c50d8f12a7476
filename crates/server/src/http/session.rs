//! Sessions of browsers: who is the caller of this cookie.
//!
//! A session is a random id in a cookie that no script reads and no other site sends; what is kept of it is a hash, in memory, for
//! a bounded time. It is no right of its own: at each request it is asked again whether the one who began it is still there.
//! A cookie is good for reading, and for the forms of our pages, which carry a word of the session that only our pages know.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};

use crate::access::Caller;
use crate::state::{Result, State};

const COOKIE: &str = "pgark_session";
/// Of the form that signs in, when there is no session yet.
const FORM_COOKIE: &str = "pgark_form";
const LASTS: SignedDuration = SignedDuration::from_hours(12);
const IDLE: SignedDuration = SignedDuration::from_hours(1);
const SESSIONS_MAX: usize = 1000;
const RANDOM_BYTES: usize = 32;

/// Who began a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Token { id: String },
}

impl Who {
    /// The caller, as long as there is such a one.
    fn caller(&self, state: &State, now: Timestamp) -> Result<Option<Caller>> {
        match self {
            Who::Token { id } => state.caller_of(id, now),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Session {
    who: Who,
    /// What the forms of its pages carry.
    pub csrf: String,
    begun: Timestamp,
    used: Timestamp,
}

impl Session {
    fn is_over(&self, now: Timestamp) -> bool {
        now.duration_since(self.begun) > LASTS || now.duration_since(self.used) > IDLE
    }

    pub fn has_word(&self, given: &str) -> bool {
        hash(given) == hash(&self.csrf)
    }
}

/// To be cloned freely.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<blake3::Hash, Session>>>);

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<blake3::Hash, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cookie that is to be set.
    pub fn begin(&self, who: Who, now: Timestamp) -> Result<String> {
        let (id, csrf) = (random()?, random()?);
        let mut all = self.all();
        all.retain(|_, session| !session.is_over(now));
        if all.len() >= SESSIONS_MAX
            && let Some(idlest) = all.iter().min_by_key(|(_, s)| s.used).map(|(id, _)| *id)
        {
            all.remove(&idlest);
        }
        all.insert(hash(&id), Session { who, csrf, begun: now, used: now });
        Ok(cookie(COOKIE, &id))
    }

    /// Who sent this cookie, if it is of a session that is not over.
    pub fn caller(&self, state: &State, headers: &HeaderMap, now: Timestamp) -> Result<Option<(Caller, Session)>> {
        let Some(id) = sent(headers, COOKIE).map(hash) else { return Ok(None) };
        let Some(session) = self.all().get(&id).filter(|s| !s.is_over(now)).cloned() else { return Ok(None) };
        let Some(caller) = session.who.caller(state, now)? else {
            self.all().remove(&id);
            return Ok(None);
        };
        if let Some(session) = self.all().get_mut(&id) {
            session.used = now;
        }
        Ok(Some((caller, session)))
    }

    /// Ends it. The cookie that is to be set.
    pub fn end(&self, headers: &HeaderMap) -> String {
        if let Some(id) = sent(headers, COOKIE).map(hash) {
            self.all().remove(&id);
        }
        format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
    }
}

/// A word for the form that signs in, and the cookie that it is compared with.
pub fn form_word() -> Result<(String, String)> {
    let word = random()?;
    let cookie = cookie(FORM_COOKIE, &word);
    Ok((word, cookie))
}

/// Whether the form that signs in was one of ours.
pub fn is_form_word(headers: &HeaderMap, given: &str) -> bool {
    !given.is_empty() && sent(headers, FORM_COOKIE).is_some_and(|sent| hash(sent) == hash(given))
}

/// Gone with the browser at the latest; never to be had by a script, never sent along by another site.
fn cookie(name: &str, value: &str) -> String {
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict")
}

fn sent<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

/// Compared without telling by the time it takes.
fn hash(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}

fn random() -> Result<String> {
    let mut bytes = [0_u8; RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::access::Role;

    fn sending(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().expect("a pair");
        let line = format!("other=x; {pair}; theme=dark");
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&line).expect("a header"))])
    }

    #[test]
    fn a_session_ends_with_its_time_its_token_and_its_sign_out() {
        let scratch = pgark_testkit::Scratch::new("sessions");
        let state = State::open(&scratch.join("state")).expect("opened");
        let now = Timestamp::now();
        let sessions = Sessions::default();
        let (_, token) = state.create_token("n", Role::Operator, Some("a"), None, now).expect("made");
        let begin = || sessions.begin(Who::Token { id: token.id.clone() }, now).expect("begun");
        let caller = |cookie: &str, at: Timestamp| {
            sessions.caller(&state, &sending(cookie), at).expect("readable").map(|(caller, _)| caller.role)
        };
        let cookie = begin();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        assert_eq!(caller(&cookie, now), Some(Role::Operator));
        assert_eq!(caller("pgark_session=guess", now), None);
        assert_eq!(caller("pgark_sessionx=guess", now), None);
        let mut at = now;
        for _ in 0..12 {
            at = at + SignedDuration::from_mins(59);
            assert_eq!(caller(&cookie, at), Some(Role::Operator), "it is used");
        }
        assert_eq!(caller(&cookie, now + SignedDuration::from_mins(12 * 60 + 1)), None, "it is old");
        let idle = begin();
        assert_eq!(caller(&idle, now + SignedDuration::from_mins(61)), None);
        let ended = begin();
        sessions.end(&sending(&ended));
        assert_eq!(caller(&ended, now), None);
        let revoked = begin();
        state.revoke_token(&token.id, now).expect("revoked");
        assert_eq!(caller(&revoked, now), None);
        for _ in 0..SESSIONS_MAX + 5 {
            begin();
        }
        assert_eq!(sessions.all().len(), SESSIONS_MAX);
    }

    #[test]
    fn words_of_forms_are_compared() {
        let (word, cookie) = form_word().expect("random");
        assert!(is_form_word(&sending(&cookie), &word));
        assert!(!is_form_word(&sending(&cookie), "other") && !is_form_word(&sending(&cookie), ""));
        assert!(!is_form_word(&HeaderMap::new(), &word) && !is_form_word(&HeaderMap::new(), ""));
    }
}
