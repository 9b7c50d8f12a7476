//! Signing in with a name and a password, and out again.

use axum::http::StatusCode;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::json;

use super::api::{Made, ok};
use super::gate::{COOKIE, cookie};
use super::{Answer, Api, Asked, Problem, Turn};
use crate::state::users::PASSWORD_BYTES_MAX;

/// Each takes 64 MiB and a core for a while.
const COMPARED_MAX: usize = 2;
const NAME_BYTES_MAX: usize = 63;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    name: String,
    password: String,
}

/// The same answer for a user who is not there and for a password that is not right.
pub fn sign_in(api: &Api, asked: &Asked<'_>) -> Made {
    // What was sent is not repeated: it may be a password in the wrong place.
    let wrong = |_| Problem::wrong("what is sent is a name and a password, and nothing else");
    let given: SignIn = serde_json::from_value(asked.body.clone()).map_err(wrong)?;
    if given.name.len() > NAME_BYTES_MAX || given.password.len() > PASSWORD_BYTES_MAX {
        return Err(nobody());
    }
    let address = asked.from.address;
    api.limits.may_fail(address).map_err(Problem::too_many)?;
    api.limits.may_sign_in(&given.name, address).map_err(Problem::too_many)?;
    let lasts = SignedDuration::try_from(api.config.get().web.session).unwrap_or(SignedDuration::ZERO);
    let made = {
        let _turn = Turn::take(&api.comparing, COMPARED_MAX)?;
        api.state.sign_in(&given.name, given.password.as_bytes(), lasts, asked.now)?
    };
    let name = given.name.escape_debug();
    let Some((session, user)) = made else {
        tracing::warn!(target: "pgark", %address, user = %name, "a sign-in failed");
        return Err(nobody());
    };
    api.limits.was_right(address);
    api.limits.signed_in(&given.name, address);
    tracing::info!(target: "pgark", %address, user = %name, "signed in");
    let cookie = kept(session.expose(), lasts.as_secs(), asked.from.is_https);
    let document = json!({"schema": 1, "name": user.name, "role": user.role, "cluster": user.cluster});
    Ok(Answer::Cookie(document, cookie))
}

fn nobody() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "E-SIGN-IN", "the name or the password is wrong")
        .hint("'pgark user list' has the names, on the host of the server; 'pgark user passwd' sets a password")
}

pub fn sign_out(api: &Api, asked: &Asked<'_>) -> Made {
    match cookie(asked.headers) {
        Some(session) => api.state.sign_out(session)?,
        None => return Err(Problem::wrong("there is no session to end")),
    }
    let document = json!({"schema": 1, "status": "ok"});
    Ok(Answer::Cookie(document, kept("", 0, asked.from.is_https)))
}

/// Not for scripts, not with requests of other sites, and not in the clear once it was made under TLS.
fn kept(session: &str, seconds: i64, is_https: bool) -> String {
    let secure = if is_https { "; Secure" } else { "" };
    format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}

pub fn users(api: &Api, _: &Asked<'_>) -> Made {
    ok(json!({"users": api.state.users()?}))
}
