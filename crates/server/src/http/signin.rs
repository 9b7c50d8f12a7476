//! Signing in with a name and a password, or with a token, and out again.

use axum::http::StatusCode;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::json;

use super::api::{Made, ok};
use super::gate::guessed;
use super::session::{cookie, kept};
use super::{Answer, Api, Asked, Problem, Turn};
use crate::access::Caller;
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

pub fn sign_in(api: &Api, asked: &Asked<'_>) -> Made {
    // What was sent is not repeated: it may be a password in the wrong place.
    let wrong = |_| Problem::wrong("what is sent is a name and a password, and nothing else");
    let given: SignIn = serde_json::from_value(asked.body.clone()).map_err(wrong)?;
    let (user, cookie) = by_password(api, asked, &given.name, &given.password)?;
    let own = user.strongest();
    let (role, cluster) = (own.map(|o| o.role), own.and_then(|o| o.cluster.as_deref()));
    let document = json!({"schema": 1, "name": user.name, "role": role, "cluster": cluster});
    Ok(Answer::Cookie(document, cookie))
}

/// Who it is, and what the browser is to keep. The same answer for a user who is not there and for a password that is not right.
pub fn by_password(api: &Api, asked: &Asked<'_>, name: &str, password: &str) -> Result<(Caller, String), Problem> {
    if name.len() > NAME_BYTES_MAX || password.len() > PASSWORD_BYTES_MAX {
        return Err(nobody());
    }
    let address = asked.from.address;
    api.limits.may_fail(address).map_err(Problem::too_many)?;
    api.limits.may_sign_in(name, address).map_err(Problem::too_many)?;
    let lasts = lasts(api);
    let made = {
        let _turn = Turn::take(&api.comparing, COMPARED_MAX)?;
        api.state.sign_in(name, password.as_bytes(), lasts, asked.now)?
    };
    let shown = name.escape_debug();
    let Some((session, user)) = made else {
        tracing::warn!(target: "pgark", %address, user = %shown, "a sign-in failed");
        return Err(nobody());
    };
    api.limits.was_right(address);
    api.limits.signed_in(name, address);
    tracing::info!(target: "pgark", %address, user = %shown, "signed in");
    Ok((user.caller(), kept(session.expose(), lasts.as_secs(), asked.from.is_https)))
}

/// As with a password; the session ends with the token.
pub fn by_token(api: &Api, asked: &Asked<'_>, token: &str) -> Result<(Caller, String), Problem> {
    let address = asked.from.address;
    let lasts = lasts(api);
    let look = |token: &str| Ok(api.state.sign_in_by_token(token, lasts, asked.now)?);
    let Some((session, caller)) = guessed(api, &asked.from, Some(token), look)? else {
        tracing::warn!(target: "pgark", %address, "a sign-in with a token failed");
        let message = "this token is not known, has expired or was revoked";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "E-TOKEN", message).hint(
            "'pgark token list' has those that hold, on the host of the server; 'pgark token create' makes one",
        ));
    };
    tracing::info!(target: "pgark", %address, id = %caller.id, name = %caller.name, "signed in with a token");
    Ok((caller, kept(session.expose(), lasts.as_secs(), asked.from.is_https)))
}

fn lasts(api: &Api) -> SignedDuration {
    SignedDuration::try_from(api.config.get().web.session).unwrap_or(SignedDuration::ZERO)
}

fn nobody() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "E-SIGN-IN", "the name or the password is wrong")
        .hint("'pgark user list' has the names, on the host of the server; 'pgark user passwd' sets a password")
}

pub fn sign_out(api: &Api, asked: &Asked<'_>) -> Made {
    let session = cookie(asked.headers).ok_or_else(|| Problem::wrong("there is no session to end"))?;
    let document = json!({"schema": 1, "status": "ok", "end_session": ended(api, session)?});
    Ok(Answer::Cookie(document, kept("", 0, asked.from.is_https)))
}

/// The session is over. Where a browser goes to be signed out by the provider, too, if one signed in and signs out.
pub fn ended(api: &Api, session: &str) -> Result<Option<String>, Problem> {
    let config = api.config.get();
    let leaving = match &config.web.oidc {
        Some(oidc) => api.state.leaving(session)?.and_then(|leaving| leaving.address(oidc)),
        None => None,
    };
    api.state.sign_out(session)?;
    Ok(leaving)
}

pub fn users(api: &Api, _: &Asked<'_>) -> Made {
    ok(json!({"users": api.state.users()?}))
}
