//! Signing in and out.

use axum::http::{StatusCode, Uri};
use maud::html;

use super::oidc::leaving;
use super::parts::{Text, segment};
use super::{Page, Place, answer, trouble, whole};
use crate::http::api::Made;
use crate::http::session::{cookie, forged, form_word, is_form_word, kept};
use crate::http::signin::{by_password, by_token, ended};
use crate::http::{Answer, Api, Asked, Problem};

/// Where to go on afterwards: a path of ours, or the first screen.
pub fn next(given: Option<&str>) -> &str {
    let is_ours = |to: &&str| {
        to.starts_with('/') && !to.starts_with("//") && to.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
    };
    given.filter(is_ours).unwrap_or("/")
}

/// The form, and what was wanted in the first place.
pub fn asking_for(uri: &Uri) -> String {
    match uri.path_and_query().map(|p| p.as_str()) {
        Some("/") | None => "/sign-in".into(),
        Some(wanted) => format!("/sign-in?next={}", segment(wanted)),
    }
}

pub fn form(api: &Api, asked: &Asked<'_>) -> Made {
    shown(api, asked, next(asked.query("next")), None)
}

/// With what went wrong, so that one can try again, or in another way.
pub fn shown(api: &Api, asked: &Asked<'_>, next: &str, problem: Option<&Problem>) -> Made {
    let config = api.config.get();
    let (word, cookie) = form_word(asked.from.is_https)?;
    let hidden = html! {
        input type="hidden" name="word" value=(word);
        input type="hidden" name="next" value=(next);
    };
    let body = html! {
        div.sign-in {
            h1 { "Sign in" }
            @if let Some(problem) = problem { (trouble(problem)) }
            // A link: what a form leads to elsewhere would have to be in the policy.
            @if let Some(oidc) = &config.web.oidc {
                p { a.button.primary href={ "/sign-in/oidc?next=" (segment(next)) } { "Sign in with " (Text(&oidc.name)) } }
                h2 { "With a password" }
            }
            form #with-password method="post" action="/sign-in" {
                (hidden)
                label for="name" { "Name" }
                input #name type="text" name="name" required autocomplete="username" autocapitalize="off" spellcheck="false" autofocus;
                label for="password" { "Password" }
                input #password type="password" name="password" required autocomplete="current-password";
                button.primary type="submit" { "Sign in" }
            }
            h2 { "With a token" }
            form #with-token method="post" action="/sign-in" {
                (hidden)
                label for="token" { "Token" }
                input #token type="password" name="token" required autocomplete="off" spellcheck="false" aria-describedby="token-help";
                p.help #token-help { "‘pgark token create --role operator --name NAME’ makes one, and shows it once." }
                button type="submit" { "Sign in with the token" }
            }
        }
    };
    let page = Page { title: "Sign in", place: Place::Elsewhere, body };
    let status = match problem.map(|p| p.status) {
        None => StatusCode::OK,
        // With 401 a browser would ask for a password of its own.
        Some(StatusCode::UNAUTHORIZED) => StatusCode::FORBIDDEN,
        Some(status) => status,
    };
    Ok(answer(status, whole(&page, None), vec![cookie]))
}

pub fn sign_in(api: &Api, asked: &Asked<'_>) -> Made {
    if !is_form_word(asked.headers, asked.field("word").unwrap_or_default()) {
        return Err(forged());
    }
    let next = next(asked.field("next"));
    let field = |name: &str| asked.field(name).unwrap_or_default();
    let signed_in = match asked.field("token") {
        Some(token) => by_token(api, asked, token.trim()),
        None => by_password(api, asked, field("name"), field("password")),
    };
    match signed_in {
        Ok((_, cookie)) => Ok(Answer::Goto { to: next.to_owned(), cookies: vec![cookie] }),
        Err(problem) => shown(api, asked, next, Some(&problem)),
    }
}

pub fn sign_out(api: &Api, asked: &Asked<'_>) -> Made {
    let to = match cookie(asked.headers) {
        Some(session) => ended(api, session)?,
        None => None,
    };
    let cookies = vec![kept("", 0, asked.from.is_https)];
    let config = api.config.get();
    Ok(match (to, &config.web.oidc) {
        (Some(to), Some(oidc)) => leaving(&to, &oidc.name, cookies),
        _ => Answer::Goto { to: "/sign-in".into(), cookies },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_on_to_pages_of_ours_alone() {
        for (given, goes) in [
            (Some("/jobs?x=1"), "/jobs?x=1"),
            (Some("//evil.example"), "/"),
            (Some("/\\evil.example"), "/"),
            (Some("https://evil.example"), "/"),
            (Some("/a\r\nSet-Cookie: x"), "/"),
            (None, "/"),
        ] {
            assert_eq!(next(given), goes, "{given:?}");
        }
        assert_eq!(asking_for(&"/jobs?x=1".parse().expect("a path")), "/sign-in?next=%2Fjobs%3Fx%3D1");
    }
}
