//! HTTP: one table of routes (`routes`), from which the router, the rights and the OpenAPI document are made.
//!
//! Invariant: a request reaches a handler only through `answer`, which asks the table what it takes. What is not in the table is
//! not there; what needs a token and has none learns nothing. Pages are answers of the same handlers, shown to people.

mod api;
mod compat;
mod knowledge;
mod metrics;
mod openapi;
mod page;
mod routes;
mod session;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::RawPathParams;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::access::{Caller, Right};
use crate::events::{Events, Listening};
use crate::lookup::Lookups;
use crate::printing::NotPrinted;
use crate::serve::Shared;
use crate::state::{State, StateError};
pub use openapi::document as openapi;
use routes::{ROUTES, Route};
use session::{Session, Sessions};

/// Of a request; there is none that needs more.
const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Answers that are made at the same time; more wait.
const THREADS_MAX: usize = 16;
/// How long requests that are under way have when the server ends.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    pub state: State,
    pub config: Shared,
    pub lookups: Lookups,
    events: Events,
    sessions: Sessions,
    listen: SocketAddr,
    /// The loop has begun, and has not been told to end.
    ready: Arc<AtomicBool>,
}

/// A request that may do what it asks for.
struct Asked<'a> {
    caller: Option<&'a Caller>,
    /// Of a browser.
    session: Option<&'a Session>,
    path: Vec<(String, String)>,
    query: Vec<(String, String)>,
    headers: &'a HeaderMap,
    body: Value,
    /// Of pages.
    form: Vec<(String, String)>,
    now: Timestamp,
}

enum Answer {
    Json(StatusCode, Value),
    Text(&'static str, String),
    Page { status: StatusCode, html: String, cookies: Vec<String> },
    Goto { to: String, cookies: Vec<String> },
    Asset(&'static str, &'static str),
    Events(Listening),
}

/// Why there is no answer.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    message: String,
    hint: Option<String>,
}

type Handler = fn(&Api, &Asked<'_>) -> Result<Answer, Problem>;

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, code: code.into(), message: message.into(), hint: None }
    }

    /// What a command said, when it could not do what was asked.
    fn said(why: NotPrinted) -> Problem {
        let NotPrinted { code, message, hint } = why;
        Problem { status: StatusCode::UNPROCESSABLE_ENTITY, code: code.into(), message, hint }
    }

    fn wrong(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "E-REQUEST", message)
    }

    /// Also what the caller may not know of.
    fn not_found() -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "E-NOT-FOUND", "there is nothing here")
    }

    fn not_allowed() -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "E-NOT-ALLOWED", "the role of this token does not allow that")
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Problem {
        match error {
            StateError::NotFound { .. } => Problem::not_found(),
            // What is wrong with our files is for the log, not for who asks.
            other => {
                tracing::error!(target: "pgark", error = %other, "a request cannot be answered");
                Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "E-SERVER-STATE",
                    "the state of the server cannot be used",
                )
            }
        }
    }
}

impl Asked<'_> {
    fn path(&self, name: &str) -> Option<&str> {
        self.path.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A field of a form that was filled in.
    fn field(&self, name: &str) -> Option<&str> {
        let field = self.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        field.filter(|value| !value.is_empty())
    }

    /// Routes without a caller ask for none.
    fn caller(&self) -> Result<&Caller, Problem> {
        self.caller.ok_or_else(Problem::not_found)
    }

    /// The same caller asks for something else.
    fn again(&self, query: Vec<(String, String)>) -> Asked<'_> {
        let Asked { caller, session, headers, now, .. } = *self;
        Asked { caller, session, path: self.path.clone(), query, headers, body: Value::Null, form: vec![], now }
    }

    fn sees(&self, cluster: &str) -> bool {
        self.caller.is_some_and(|c| c.sees(cluster))
    }
}

/// A server that answers until it is dropped.
pub struct Serving {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    events: Events,
}

impl Serving {
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(listen: SocketAddr, state: State, config: Shared, lookups: Lookups) -> std::io::Result<Serving> {
        let socket = TcpListener::bind(listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(THREADS_MAX)
            .thread_name("http")
            .enable_all()
            .build()?;
        let ready = Arc::new(AtomicBool::new(true));
        let events = Events::default();
        let sessions = Sessions::default();
        let api = Api {
            state,
            config,
            lookups,
            events: events.clone(),
            sessions,
            listen: address,
            ready: Arc::clone(&ready),
        };
        let router = router(api);
        runtime.spawn(async move {
            let served = match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => axum::serve(socket, router).await,
                Err(e) => Err(e),
            };
            if let Err(error) = served {
                tracing::error!(target: "pgark", %error, "requests are no longer answered");
            }
        });
        Ok(Serving { runtime: Some(runtime), address, ready, events })
    }

    /// Where the loop of the server tells what happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `/health/ready` says no from now on.
    pub fn drains(&self) {
        self.ready.store(false, Ordering::SeqCst);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(ENDS_WITHIN);
        }
    }
}

fn router(api: Api) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let api = api.clone();
        let filter = MethodFilter::try_from(route.method()).unwrap_or(MethodFilter::GET);
        let handler = move |path: RawPathParams, request: axum::extract::Request| {
            let api = api.clone();
            let path = path.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            async move { received(api, route, path, request).await }
        };
        router = router.route(route.path, on(filter, handler));
    }
    router.fallback(async || written(Err(Problem::not_found()))).method_not_allowed_fallback(async || {
        written(Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "E-METHOD", "this cannot be done with it")))
    })
}

async fn received(
    api: Api,
    route: &'static Route,
    path: Vec<(String, String)>,
    request: axum::extract::Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_BYTES_MAX)).await;
    let body = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            return written(Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "E-REQUEST-SIZE",
                "the request is too large",
            )));
        }
        Err(_) => {
            return written(Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "E-REQUEST-TIME",
                "the request is too slow",
            )));
        }
    };
    // Handlers ask SQLite and wait for jobs.
    let made = tokio::task::spawn_blocking(move || {
        let made = answer(&api, route, path, &parts.uri, &parts.headers, &body);
        if route.page { made.or_else(|problem| Ok(page::problem(&problem, &parts.uri))) } else { made }
    });
    written(made.await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "E-INTERNAL", "the server hit an internal error"))
    }))
}

/// The one way to a handler.
fn answer(
    api: &Api,
    route: &Route,
    path: Vec<(String, String)>,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Answer, Problem> {
    addressed_to_us(api, headers)?;
    let now = Timestamp::now();
    let (caller, session) = match route.right {
        Right::Anyone => (None, None),
        _ => identified(api, route, headers, now)?,
    };
    if let Some(caller) = &caller {
        let cluster = path.iter().find(|(key, _)| key == "cluster").map(|(_, value)| value.as_str());
        if let Some(cluster) = cluster
            && (!caller.sees(cluster) || !api.config.get().clusters.iter().any(|c| c.name == cluster))
        {
            return Err(Problem::not_found());
        }
        // Routes that find their cluster in a job compare it themselves, once more.
        let allowed = match (cluster, route.finds_cluster) {
            (Some(_), _) => caller.may(route.right, cluster),
            (None, true) => caller.role.may(route.right),
            (None, false) => caller.may(route.right, None),
        };
        if !allowed {
            return Err(Problem::not_allowed());
        }
    }
    let is_form = route.page && route.method() == Method::POST;
    let form: Vec<(String, String)> =
        if is_form { form_urlencoded::parse(body).into_owned().collect() } else { vec![] };
    if let (true, Some(session)) = (is_form, &session) {
        let word = form.iter().find(|(key, _)| key == "csrf").map_or("", |(_, value)| value.as_str());
        if !session.has_word(word) {
            return Err(forged());
        }
    }
    let body = match (body.is_empty(), is_form || route.method() == Method::GET) {
        (true, _) | (_, true) => Value::Null,
        (false, false) => serde_json::from_slice(body).map_err(|_| Problem::wrong("the body is no JSON"))?,
    };
    let query = query(uri)?;
    let (caller, session) = (caller.as_ref(), session.as_ref());
    (route.handler)(api, &Asked { caller, session, path, query, headers, body, form, now })
}

fn forged() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "E-FORM",
        "this form was not made by this server, or has expired: load the page again",
    )
}

/// By a token, or by the cookie of a session; which is good for reading and for pages, whose forms have a word of their own.
fn identified(
    api: &Api,
    route: &Route,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<(Option<Caller>, Option<Session>), Problem> {
    let reads = route.method() == Method::GET;
    if !headers.contains_key(header::AUTHORIZATION)
        && (reads || route.page)
        && let Some((caller, session)) = api.sessions.caller(&api.state, headers, now)?
    {
        return Ok((Some(caller), Some(session)));
    }
    Ok((Some(caller(api, headers, now)?), None))
}

/// A page of somebody else's that a browser shows can send requests here, by a name that it points to us; with `Host` and `Origin`
/// it says so.
fn addressed_to_us(api: &Api, headers: &HeaderMap) -> Result<(), Problem> {
    let port = api.listen.port();
    let ours = ["localhost".to_owned(), "127.0.0.1".into(), "[::1]".into(), api.listen.ip().to_string()];
    let is_ours = |host: &str| ours.iter().any(|name| host == name || host == format!("{name}:{port}"));
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if !text(header::HOST).is_some_and(is_ours) {
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "E-HOST", "the request is for another host"));
    }
    match text(header::ORIGIN) {
        Some(origin) if !origin.strip_prefix("http://").is_some_and(is_ours) => {
            Err(Problem::new(StatusCode::FORBIDDEN, "E-ORIGIN", "the request comes from a page of somebody else"))
        }
        _ => Ok(()),
    }
}

fn caller(api: &Api, headers: &HeaderMap, now: Timestamp) -> Result<Caller, Problem> {
    let nobody =
        || Problem::new(StatusCode::UNAUTHORIZED, "E-TOKEN", "a valid token is needed: 'Authorization: Bearer …'");
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).ok_or_else(nobody)?;
    let (scheme, token) = given.split_once(' ').ok_or_else(nobody)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(nobody());
    }
    api.state.caller(token.trim(), now)?.ok_or_else(nobody)
}

fn query(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    pairs.map(|q| q.0).map_err(|_| Problem::wrong("the query cannot be read"))
}

/// Nothing is loaded from elsewhere, nothing in a page is a script or a style of its own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn written(made: Result<Answer, Problem>) -> Response {
    let json = "application/json";
    let (status, kind, body, cookies) = match made {
        Ok(Answer::Json(status, value)) => (status, json, Body::from(value.to_string()), vec![]),
        Ok(Answer::Text(kind, text)) => (StatusCode::OK, kind, Body::from(text), vec![]),
        Ok(Answer::Page { status, html, cookies }) => (status, "text/html; charset=utf-8", Body::from(html), cookies),
        Ok(Answer::Asset(kind, text)) => (StatusCode::OK, kind, Body::from(text), vec![]),
        Ok(Answer::Events(listening)) => {
            let next = |mut listening: Listening| async move {
                let text = listening.next().await?;
                Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), listening))
            };
            let body = Body::from_stream(futures_util::stream::unfold(listening, next));
            (StatusCode::OK, "text/event-stream", body, vec![])
        }
        Ok(Answer::Goto { to, cookies }) => {
            let mut response = response(StatusCode::SEE_OTHER, "text/plain", Body::empty(), &cookies);
            let to = HeaderValue::from_str(&to).unwrap_or(HeaderValue::from_static("/"));
            response.headers_mut().insert(header::LOCATION, to);
            return response;
        }
        Err(problem) => {
            let mut error = json!({"code": problem.code, "message": problem.message});
            if let Some(hint) = problem.hint {
                error["hint"] = hint.into();
            }
            (problem.status, json, Body::from(json!({"schema": 1, "error": error}).to_string()), vec![])
        }
    };
    response(status, kind, body, &cookies)
}

fn response(status: StatusCode, kind: &'static str, body: Body, cookies: &[String]) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // With 'no-referrer' browsers would send the forms of our own pages with 'Origin: null'.
        (header::REFERRER_POLICY, "same-origin"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    for cookie in cookies.iter().filter_map(|c| HeaderValue::from_str(c).ok()) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
