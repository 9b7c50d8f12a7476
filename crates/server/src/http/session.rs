//! What a browser keeps and sends back: the session, and the word that forms carry.
//!
//! A session (`state/sessions.rs`) is a secret in a cookie that no script reads and no other site sends. Browsers send it with
//! whatever asks for it; so the forms of our pages carry a word that only our pages know. It is made of the secret: whoever has
//! the one could make the other, and nothing has to be kept.

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Problem;
use crate::state::Result;

/// Of sessions, and what a browser sends it as.
pub const COOKIE: &str = "pgark_session";
/// Of the form that signs in, when there is no session yet.
const FORM_COOKIE: &str = "pgark_form";
/// Of a sign-in by the provider that is under way.
const FLOW_COOKIE: &str = "pgark_oidc";
/// What a word is made for (`blake3::derive_key`).
const WORD: &str = "pgark 2026-11-22 15:00:00 word of the forms of a session";
const RANDOM_BYTES: usize = 32;

/// Of a browser.
pub struct Session {
    /// What the forms of its pages carry.
    pub csrf: String,
}

impl Session {
    pub fn of(secret: &str) -> Session {
        Session { csrf: URL_SAFE_NO_PAD.encode(blake3::derive_key(WORD, secret.as_bytes())) }
    }

    pub fn has_word(&self, given: &str) -> bool {
        hash(given) == hash(&self.csrf)
    }
}

/// The session that a browser sends.
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    sent(headers, COOKIE)
}

/// Not for scripts, not with requests of other sites, and not in the clear once it was made under TLS.
pub fn kept(session: &str, seconds: i64, is_https: bool) -> String {
    let secure = if is_https { "; Secure" } else { "" };
    format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}

/// A word for the form that signs in, and the cookie that it is compared with, which goes with the browser.
pub fn form_word(is_https: bool) -> Result<(String, String)> {
    let mut bytes = [0_u8; RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    let word = URL_SAFE_NO_PAD.encode(bytes);
    let secure = if is_https { "; Secure" } else { "" };
    let cookie = format!("{FORM_COOKIE}={word}; Path=/sign-in; HttpOnly; SameSite=Strict{secure}");
    Ok((word, cookie))
}

/// Whether the form that signs in was one of ours.
pub fn is_form_word(headers: &HeaderMap, given: &str) -> bool {
    !given.is_empty() && sent(headers, FORM_COOKIE).is_some_and(|sent| hash(sent) == hash(given))
}

/// What a browser keeps while the provider signs somebody in. It comes back with the provider's answer, which is a request from
/// elsewhere: with `Strict` it would not. Nothing is done with it but that.
pub fn flow(secret: &str, seconds: u64, is_https: bool) -> String {
    let secure = if is_https { "; Secure" } else { "" };
    format!("{FLOW_COOKIE}={secret}; Path=/sign-in/oidc; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}")
}

pub fn flow_cookie(headers: &HeaderMap) -> Option<&str> {
    sent(headers, FLOW_COOKIE)
}

pub fn forged() -> Problem {
    let message = "this form was not made by this server, or has expired";
    Problem::new(StatusCode::FORBIDDEN, "E-FORM", message).hint("load the page again")
}

fn sent<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Compared without telling by the time it takes.
fn hash(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn sending(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().expect("a pair");
        let line = format!("other=x; pgark_sessionx=y; {pair}; theme=dark");
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&line).expect("a header"))])
    }

    #[test]
    fn the_word_of_a_session_is_its_own_and_tells_nothing_of_it() {
        let (one, two) = (Session::of("pgark_one"), Session::of("pgark_two"));
        assert!(one.has_word(&Session::of("pgark_one").csrf));
        assert!(!one.has_word(&two.csrf) && !one.has_word("") && !one.has_word("pgark_one"));
        let sent = sending(&kept("pgark_one", 60, true));
        assert_eq!(cookie(&sent), Some("pgark_one"));
        assert_eq!(cookie(&sending("pgark_form=x")), None);
        assert!(kept("x", 60, true).ends_with("; Secure") && !kept("x", 60, false).contains("Secure"));
    }

    #[test]
    fn words_of_forms_are_compared() {
        let (word, cookie) = form_word(true).expect("random");
        assert!(cookie.contains("HttpOnly; SameSite=Strict; Secure"), "{cookie}");
        assert!(is_form_word(&sending(&cookie), &word));
        assert!(!is_form_word(&sending(&cookie), "other") && !is_form_word(&sending(&cookie), ""));
        assert!(!is_form_word(&HeaderMap::new(), &word) && !is_form_word(&HeaderMap::new(), ""));
    }
}
