//! Signing in and out.

use axum::http::{StatusCode, Uri};
use maud::html;

use super::parts::segment;
use super::{Page, Place, answer, trouble, whole};
use crate::http::api::Made;
use crate::http::session::{Who, form_word, is_form_word};
use crate::http::{Answer, Api, Asked, Problem, forged};

/// Where to go on afterwards: a path of ours, or the first screen.
fn next(given: Option<&str>) -> &str {
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

pub fn form(_: &Api, asked: &Asked<'_>) -> Made {
    shown(next(asked.query("next")), None)
}

fn shown(next: &str, problem: Option<&Problem>) -> Made {
    let (word, cookie) = form_word()?;
    let body = html! {
        div.sign-in {
            h1 { "Sign in" }
            @if let Some(problem) = problem { (trouble(problem)) }
            form method="post" action="/sign-in" {
                input type="hidden" name="word" value=(word);
                input type="hidden" name="next" value=(next);
                label for="token" { "Token" }
                input #token type="password" name="token" required autocomplete="current-password" spellcheck="false"
                    aria-describedby="token-help" autofocus;
                p.help #token-help { "‘pgark token create --role operator --name NAME’ makes one, and shows it once." }
                button.primary type="submit" { "Sign in" }
            }
        }
    };
    let page = Page { title: "Sign in", place: Place::Elsewhere, body };
    let status = problem.map_or(StatusCode::OK, |p| p.status);
    Ok(answer(status, whole(&page, None), vec![cookie]))
}

pub fn sign_in(api: &Api, asked: &Asked<'_>) -> Made {
    if !is_form_word(asked.headers, asked.field("word").unwrap_or_default()) {
        return Err(forged());
    }
    let next = next(asked.field("next"));
    let token = asked.field("token").unwrap_or_default().trim();
    let Some(caller) = api.state.caller(token, asked.now)? else {
        // No 401: that one would be sent to this form again.
        let wrong =
            Problem::new(StatusCode::FORBIDDEN, "E-TOKEN", "this token is not known, has expired or was revoked");
        return shown(next, Some(&wrong));
    };
    tracing::info!(target: "pgark", id = %caller.token_id, name = %caller.name, "signed in to the dashboard");
    let cookie = api.sessions.begin(Who::Token { id: caller.token_id }, asked.now)?;
    Ok(Answer::Goto { to: next.to_owned(), cookies: vec![cookie] })
}

pub fn sign_out(api: &Api, asked: &Asked<'_>) -> Made {
    Ok(Answer::Goto { to: "/sign-in".into(), cookies: vec![api.sessions.end(asked.headers)] })
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
