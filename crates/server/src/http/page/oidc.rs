//! Signing in by a provider of OpenID Connect: to it, and back.
//!
//! Who comes back is on the way from another site, and browsers hold our session back from what such a way leads to
//! (`SameSite=Strict`). So the answer is a page, and the way goes on from there.

use axum::http::StatusCode;
use jiff::SignedDuration;
use maud::{DOCTYPE, Markup, html};

use super::answer;
use super::parts::Text;
use super::sign::{next, shown};
use crate::http::api::Made;
use crate::http::session::{flow, flow_cookie, kept};
use crate::http::{Answer, Api, Asked, Problem, Turn};
use crate::oidc::{ASKING_MAX, FLOW_LASTS, OidcConfig, OidcError, Returned, SignedIn};

pub fn begin(api: &Api, asked: &Asked<'_>) -> Made {
    let config = api.config.get();
    let oidc = config.web.oidc.as_ref().ok_or_else(Problem::not_found)?;
    let next = next(asked.query("next"));
    api.limits.may_begin(asked.from.address).map_err(Problem::too_many)?;
    let _turn = Turn::take(&api.oidc.asking, ASKING_MAX)?;
    match api.oidc.begin(oidc, next) {
        Ok(begun) => {
            let cookie = flow(&begun.browser, FLOW_LASTS.as_secs(), asked.from.is_https);
            Ok(Answer::Goto { to: begun.to, cookies: vec![cookie] })
        }
        Err(error) => shown(api, asked, next, Some(&problem(asked, error))),
    }
}

pub fn returned(api: &Api, asked: &Asked<'_>) -> Made {
    let config = api.config.get();
    let oidc = config.web.oidc.as_ref().ok_or_else(Problem::not_found)?;
    api.limits.may_fail(asked.from.address).map_err(Problem::too_many)?;
    let _turn = Turn::take(&api.oidc.asking, ASKING_MAX)?;
    let over = flow("", 0, asked.from.is_https);
    match signed_in(api, asked, oidc) {
        Ok((session, next)) => {
            api.limits.was_right(asked.from.address);
            let cookie = kept(&session, seconds(oidc), asked.from.is_https);
            Ok(going_on(&next, vec![cookie, over]))
        }
        Err(problem) => with_cookie(shown(api, asked, "/", Some(&problem))?, over),
    }
}

/// The session, and where to go on.
fn signed_in(api: &Api, asked: &Asked<'_>, oidc: &OidcConfig) -> Result<(String, String), Problem> {
    let address = asked.from.address;
    let given = Returned {
        state: asked.query("state").unwrap_or_default(),
        browser: flow_cookie(asked.headers).unwrap_or_default(),
        code: asked.query("code"),
        error: asked.query("error"),
        issuer: asked.query("iss"),
    };
    let SignedIn { person, next, leaving } = api.oidc.finish(oidc, &given).map_err(|error| problem(asked, error))?;
    let (name, subject) = (person.name.escape_debug().to_string(), person.subject.clone());
    let groups = person.groups.join(", ").escape_debug().to_string();
    let Some(caller) = oidc.caller(person.clone()) else {
        let claim = &oidc.groups_claim;
        tracing::warn!(target: "pgark", %address, person = %name, %subject, %groups, claim, "a sign-in failed: no group is mapped to a role");
        let message = format!("the provider knows you as {name}, and none of your groups has a role here");
        return Err(Problem::new(StatusCode::FORBIDDEN, "E-OIDC-GROUP", message)
            .hint("ask who looks after this server: [[server.oidc.roles]] says which groups may do what, and its log has those that you came with"));
    };
    let session = api.state.sign_in_person(&person, SignedDuration::from_secs(seconds(oidc)), asked.now)?;
    if let Some(leaving) = leaving {
        api.state.keep_leaving(session.expose(), &leaving)?;
    }
    tracing::info!(target: "pgark", %address, by = caller.shown(), %groups, "signed in by the provider");
    Ok((session.expose().to_owned(), next))
}

fn seconds(oidc: &OidcConfig) -> i64 {
    i64::try_from(oidc.session.as_secs()).unwrap_or(i64::MAX)
}

/// What somebody without a session is told; all of it is in the log.
fn problem(asked: &Asked<'_>, error: OidcError) -> Problem {
    tracing::warn!(target: "pgark", address = %asked.from.address, %error, "a sign-in by the provider failed");
    let new = |status, code, message: &str| Problem::new(status, code, message);
    match error {
        OidcError::State => new(StatusCode::FORBIDDEN, "E-OIDC-STATE", &error.to_string())
            .hint("begin again on this page; cookies have to be allowed, and ten minutes are enough"),
        OidcError::Refused(_) => new(StatusCode::FORBIDDEN, "E-OIDC-REFUSED", &error.to_string())
            .hint("begin again, or ask who looks after the provider"),
        OidcError::Provider(_) => {
            new(StatusCode::BAD_GATEWAY, "E-OIDC-PROVIDER", "the provider cannot be reached, or cannot be used")
                .hint("the server's log says why; a password or a token signs in as ever")
        }
        OidcError::Token(_) => new(StatusCode::FORBIDDEN, "E-OIDC-TOKEN", "the provider's ID token is not right")
            .hint("begin again; the server's log says what is wrong with it"),
        OidcError::Claims(why) => new(StatusCode::FORBIDDEN, "E-OIDC-CLAIM", &why)
            .hint("name_claim and groups_claim in [server.oidc] name claims that the provider puts into the ID token"),
    }
}

fn going_on(next: &str, cookies: Vec<String>) -> Answer {
    let said = html! { p { "You are signed in. " a href=(next) { "Go on" } } };
    on_its_way("Signed in", next, &said, cookies)
}

/// The answer to a form may lead nowhere else (`form-action` of the policy), and a page may.
pub(super) fn leaving(to: &str, name: &str, cookies: Vec<String>) -> Answer {
    let said = html! {
        p { "You are signed out here. " a href=(to) { "Sign out at " (Text(name)) ", too" } }
        p { a href="/sign-in" { "Stay here" } }
    };
    on_its_way("Signed out", to, &said, cookies)
}

/// A page that goes on by itself.
fn on_its_way(title: &str, to: &str, said: &Markup, cookies: Vec<String>) -> Answer {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="refresh" content={ "0; url=" (to) };
                title { (title) " – pgark" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/app.css";
            }
            body { main #main { h1 { (title) } (said) } }
        }
    };
    answer(StatusCode::OK, page, cookies)
}

fn with_cookie(made: Answer, cookie: String) -> Made {
    Ok(match made {
        Answer::Page { status, html, mut cookies } => {
            cookies.push(cookie);
            Answer::Page { status, html, cookies }
        }
        other => other,
    })
}
