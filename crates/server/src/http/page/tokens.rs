//! Tokens: who has which, a new one, and taking one back. For who administers every cluster.
//!
//! A token is in the answer to the form that made it, and in nothing else: it is in no address and no list, and the page is not kept.

use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde_json::{Value, json};

use super::parts::{self, Text, Tone, empty, pill, segment, since, word};
use super::{Page, Place, answer, csrf, told, trouble, whole};
use crate::access::{Means, ROLES, Role};
use crate::http::api::{self, Made};
use crate::http::{Answer, Api, Asked, Problem};
use crate::known::{list, time};

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Told before it is over.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
const NEVER: &str = "never";
/// How long a new one may be valid, as the form has it.
const LASTS: [(&str, &str); 6] =
    [("1", "1 day"), ("7", "7 days"), ("30", "30 days"), ("90", "90 days"), ("365", "1 year"), (NEVER, "for ever")];
const LASTS_AT_FIRST: &str = "90";

pub fn all(api: &Api, asked: &Asked<'_>) -> Made {
    Ok(answer(StatusCode::OK, page(api, asked, None)?, vec![]))
}

/// The one page that has the token; or the form once more, with what is wrong.
pub fn create(api: &Api, asked: &Asked<'_>) -> Made {
    match made(api, asked) {
        Ok(token) => once(&token, asked),
        Err(problem) if problem.status == StatusCode::BAD_REQUEST => {
            Ok(answer(problem.status, page(api, asked, Some(&problem))?, vec![]))
        }
        Err(problem) => Err(problem),
    }
}

pub fn revoke(api: &Api, asked: &Asked<'_>) -> Made {
    told(api::revoke_token(api, asked))?;
    Ok(Answer::Goto { to: "/tokens".into(), cookies: vec![] })
}

fn made(api: &Api, asked: &Asked<'_>) -> Result<Value, Problem> {
    let field = |name: &str| asked.field(name).unwrap_or_default().trim();
    let mut body = json!({"name": field("name"), "role": field("role")});
    match field("scope") {
        "all" => {}
        "some" => body["clusters"] = chosen(asked).into(),
        _ => return Err(Problem::wrong("say for which clusters the token is")),
    }
    // What is left out is no wish for one that never ends.
    if field("lasts") != NEVER {
        let days = field("lasts").parse::<u16>().map_err(|_| Problem::wrong("say how long the token is valid"))?;
        let expires = asked.now.checked_add(DAY * i32::from(days));
        body["expires"] = expires.map_err(|_| Problem::wrong("that is too far away"))?.to_string().into();
    }
    told(api::create_token(api, &asked.sending(body)))
}

fn page(api: &Api, asked: &Asked<'_>, problem: Option<&Problem>) -> Result<Markup, Problem> {
    let tokens = told(api::tokens(api, asked))?;
    let clusters = told(api::clusters(api, asked))?;
    let is_valid = |t: &&Value| state(t, asked.now) != State::Over;
    let (mut valid, mut over): (Vec<&Value>, Vec<&Value>) = list(&tokens, "tokens").iter().partition(is_valid);
    valid.reverse();
    over.reverse();
    let body = html! {
        h1 { "Tokens" }
        p { "A token signs a program or a person in, with one role. The server keeps no token, and shows each one once." }
        @if let Some(problem) = problem { (trouble(problem)) }
        h2 { "Valid" }
        @if valid.is_empty() { (empty("There is no valid token: users, certificates or a provider sign people in.")) } @else {
            (table(&valid, "Valid tokens, the newest first", asked))
        }
        @if asked.session.is_some() { (form(list(&clusters, "clusters"), asked)) }
        @if !over.is_empty() {
            details.what {
                summary { "Revoked or expired (" (over.len()) ")" }
                (table(&over, "Tokens that are over, the newest first", asked))
            }
        }
    };
    Ok(whole(&Page { title: "Tokens", place: Place::Tokens, body }, Some(asked)))
}

/// Boxes that were ticked.
fn chosen<'a>(asked: &'a Asked<'_>) -> Vec<&'a str> {
    asked.form.iter().filter(|(key, _)| key == "cluster").map(|(_, name)| name.as_str()).collect()
}

/// As it is shown.
fn clusters_of(token: &Value) -> String {
    match token.get("clusters").and_then(Value::as_array) {
        None => "all".into(),
        Some(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Valid,
    Ending,
    Over,
}

fn state(token: &Value, now: Timestamp) -> State {
    match (time(token, "revoked"), time(token, "expires")) {
        (Some(_), _) => State::Over,
        (None, Some(at)) if at <= now => State::Over,
        (None, Some(at)) if at.duration_since(now) < SOON => State::Ending,
        (None, _) => State::Valid,
    }
}

fn table(tokens: &[&Value], name: &str, asked: &Asked<'_>) -> Markup {
    html! {
        table.cards {
            caption.hidden { (name) }
            thead { tr { th scope="col" { "Name" } th scope="col" { "Role" } th scope="col" { "Clusters" } th scope="col" { "State" } th scope="col" { "Last used" } th scope="col" { "Made" } } }
            tbody { @for token in tokens { (row(token, asked)) } }
        }
    }
}

fn row(token: &Value, asked: &Asked<'_>) -> Markup {
    let (id, state) = (word(token, "id"), state(token, asked.now));
    let is_own = asked.caller.is_some_and(|c| c.means == Means::Token && c.id == id);
    html! {
        tr {
            th scope="row" {
                (Text(word(token, "name"))) span.sub { (Text(id)) }
                @if is_own { span.sub { "you are signed in with it" } }
            }
            td data-name="Role" { (Text(word(token, "role"))) }
            td.break data-name="Clusters" { (Text(&clusters_of(token))) }
            td data-name="State" {
                div {
                    @match (time(token, "revoked"), time(token, "expires"), state) {
                        (Some(at), ..) => { (pill(Tone::Unknown, "revoked")) span.sub { (parts::moment(at)) } },
                        (None, Some(at), State::Over) => { (pill(Tone::Unknown, "expired")) span.sub { (parts::moment(at)) } },
                        (None, Some(at), State::Ending) => { (pill(Tone::Warn, "ends soon")) span.sub { (since(at, asked.now)) } },
                        (None, Some(at), State::Valid) => { (pill(Tone::Good, "valid")) span.sub { "until " (parts::moment(at)) } },
                        (None, None, _) => { (pill(Tone::Good, "valid")) span.sub { "for ever" } },
                    }
                    @if state != State::Over && asked.session.is_some() { (revoking(token, is_own, asked)) }
                }
            }
            td data-name="Last used" { @match time(token, "last_used") { Some(at) => (since(at, asked.now)), None => span.unknown { "never" } } }
            td data-name="Made" { @if let Some(at) = time(token, "created") { (parts::moment(at)) } }
        }
    }
}

/// In two steps, since it cannot be undone.
fn revoking(token: &Value, is_own: bool, asked: &Asked<'_>) -> Markup {
    html! {
        details {
            summary { "Revoke" span.hidden { " the token " (Text(word(token, "name"))) } }
            form method="post" action={ "/tokens/" (segment(word(token, "id"))) "/revoke" } {
                (csrf(asked))
                p.help {
                    "Who uses it is refused from then on. It cannot be undone."
                    @if is_own { " You are signed out with it." }
                }
                button.danger type="submit" { "Revoke " (Text(word(token, "name"))) }
            }
        }
    }
}

/// What was filled in stays when something is wrong with it.
fn form(clusters: &[Value], asked: &Asked<'_>) -> Markup {
    let given = |name: &str| asked.field(name).unwrap_or_default();
    let role = asked.field("role").unwrap_or(Role::Viewer.word());
    let lasts = asked.field("lasts").unwrap_or(LASTS_AT_FIRST);
    let chosen = chosen(asked);
    html! {
        section aria-labelledby="new-h" {
            h2 #new-h { "A new token" }
            form.stacked method="post" action="/tokens" {
                (csrf(asked))
                label for="name" { "Whose it is" }
                input #name type="text" name="name" value=(given("name")) required maxlength="63" pattern="[A-Za-z0-9._\\-]+" autocomplete="off" autocapitalize="off"
                    spellcheck="false" aria-describedby="name-help";
                p.help #name-help { "One person or program, for lists and logs: letters, digits, ‘-’, ‘_’ and ‘.’." }
                label for="role" { "Role" }
                select #role name="role" aria-describedby="role-help" {
                    @for one in ROLES { option value=(one.word()) selected[one.word() == role] { (one.word()) ": " (does(one)) } }
                }
                p.help #role-help { "The least that is enough." }
                fieldset {
                    legend { "Clusters" }
                    label { input type="radio" name="scope" value="some" required checked[given("scope") != "all"]; " these alone" }
                    div.boxes {
                        @for name in clusters.iter().map(|c| word(c, "name")) {
                            label { input type="checkbox" name="cluster" value=(name) checked[chosen.contains(&name)]; " " (Text(name)) }
                        }
                    }
                    label { input type="radio" name="scope" value="all" checked[given("scope") == "all"]; " all, also those that come later" }
                }
                label for="lasts" { "Valid for" }
                select #lasts name="lasts" { @for (days, name) in LASTS { option value=(days) selected[days == lasts] { (name) } } }
                button.primary type="submit" { "Make the token" }
            }
        }
    }
}

/// What a role may do, in short.
fn does(role: Role) -> &'static str {
    match role {
        Role::Viewer => "sees",
        Role::Operator => "backs up, verifies, rehearses",
        Role::RecoveryOperator => "restores and recovers as well",
        Role::AppAdmin => "sees, and says yes to what points applications elsewhere",
        Role::Admin => "everything, tokens too",
    }
}

fn once(token: &Value, asked: &Asked<'_>) -> Made {
    let name = word(token, "name");
    let body = html! {
        h1 { "The new token" }
        div.notice.warn role="status" {
            p { strong { "It is shown this once." } " Copy it to where it is used: the server does not know it any more." }
        }
        h2 #token-h { "Token of " (Text(name)) }
        pre.command tabindex="0" role="region" aria-labelledby="token-h" { code #token data-copied { (word(token, "token")) } }
        p { button.quiet type="button" data-copy hidden { "Copy" } }
        dl.facts {
            div { dt { "Role" } dd { (Text(word(token, "role"))) } }
            div { dt { "Clusters" } dd { (Text(&clusters_of(token))) } }
            div { dt { "Valid" } dd { @match time(token, "expires") { Some(at) => { "until " (parts::moment(at)) }, None => "for ever" } } }
        }
        p { a href="/tokens" { "All tokens" } }
    };
    Ok(answer(
        StatusCode::CREATED,
        whole(&Page { title: "A new token", place: Place::Tokens, body }, Some(asked)),
        vec![],
    ))
}
