//! HTTP: one table of routes (`routes`), from which the router, the rights and the OpenAPI document are made.
//!
//! Invariant: a request reaches a handler only through `answer`, which asks the table what it takes. What is not in the table is
//! not there; what needs a token and has none learns nothing. Pages are answers of the same handlers, shown to people.

mod acknowledge;
mod api;
mod approve;
mod compat;
mod gate;
mod kept;
mod knowledge;
mod limits;
mod listen;
mod metrics;
mod openapi;
mod page;
mod problem;
mod routes;
mod session;
mod signin;
#[cfg(test)]
mod tests;
pub mod tls;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::RawPathParams;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use jiff::Timestamp;
use serde_json::Value;

use crate::access::{Caller, Means, Right};
use crate::events::{Events, Listening};
use crate::lookup::Lookups;
use crate::oidc::Oidc;
use crate::serve::{Config, Shared};
use crate::state::State;
use gate::{HEADER_BYTES_MAX, Origin};
use kept::Kept;
use limits::Limits;
use listen::{Peer, Times};
pub use openapi::document as openapi;
use problem::Problem;
use routes::{ROUTES, Route};
use session::Session;
use tls::{Tls, TlsError};

/// Of a request; there is none that needs more.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Answers that are made at the same time; more wait.
const THREADS_MAX: usize = 16;

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    pub state: State,
    pub config: Shared,
    pub lookups: Lookups,
    events: Events,
    /// The loop has begun, and has not been told to end.
    ready: Arc<AtomicBool>,
    unwritten: Unwritten,
    limits: Arc<Limits>,
    /// Answers that wait for a job.
    waiting: Arc<AtomicUsize>,
    /// Passwords that are being compared.
    comparing: Arc<AtomicUsize>,
    oidc: Arc<Oidc>,
    /// How all clusters stand, as a page.
    standings: Kept,
}

impl Api {
    fn new(state: State, config: Shared, lookups: Lookups) -> Api {
        let limits = Arc::new(Limits::new(config.get().web.requests_per_second));
        let (events, ready) = (Events::default(), Arc::new(AtomicBool::new(true)));
        let (waiting, comparing, oidc, standings) = Default::default();
        let unwritten = Unwritten::default();
        Api { state, config, lookups, events, ready, unwritten, limits, waiting, comparing, oidc, standings }
    }
}

/// When the loop could last not write something down.
#[derive(Clone, Default)]
struct Unwritten(Arc<Mutex<Option<Instant>>>);

impl Unwritten {
    /// For somewhat longer than the loop takes to find it again.
    const LASTS: Duration = Duration::from_secs(90);

    fn is_now(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < Unwritten::LASTS)
    }

    fn found(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// A place among those who do something costly at the same time.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(of: &Arc<AtomicUsize>, max: usize) -> Result<Turn, Problem> {
        if of.fetch_add(1, Ordering::SeqCst) < max {
            return Ok(Turn(Arc::clone(of)));
        }
        of.fetch_sub(1, Ordering::SeqCst);
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "E-SERVER-BUSY", "too many wait for this already");
        Err(Problem { retry_after: Some(1), ..problem }.hint("try again in a moment"))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request that may do what it asks for.
struct Asked<'a> {
    caller: Option<&'a Caller>,
    from: Origin,
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
    /// With what a browser is to keep.
    Cookie(Value, String),
    Page {
        status: StatusCode,
        html: String,
        cookies: Vec<String>,
    },
    Goto {
        to: String,
        cookies: Vec<String>,
    },
    Asset(&'static str, &'static str),
    Events(Listening),
}

type Handler = fn(&Api, &Asked<'_>) -> Result<Answer, Problem>;

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
        let (from, path) = (self.from.clone(), self.path.clone());
        Asked { caller, from, session, path, query, headers, body: Value::Null, form: vec![], now }
    }

    /// The same caller sends this.
    fn sending(&self, body: Value) -> Asked<'_> {
        Asked { body, ..self.again(vec![]) }
    }

    fn sees(&self, cluster: &str) -> bool {
        self.caller.is_some_and(|c| c.sees(cluster))
    }
}

/// A server that answers until it is dropped.
pub struct Serving {
    runtime: Option<tokio::runtime::Runtime>,
    accepting: Option<tokio::task::JoinHandle<()>>,
    stop: tokio::sync::watch::Sender<bool>,
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    unwritten: Unwritten,
    events: Events,
    tls: Option<Tls>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    #[error("it cannot be listened on: {0}")]
    Listen(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Serving {
    /// # Errors
    /// When the address cannot be listened on, or a certificate or key cannot be used.
    pub fn start(listen: SocketAddr, state: State, config: Shared, lookups: Lookups) -> Result<Serving, ServingError> {
        Serving::start_in_time(listen, state, config, lookups, Times::default())
    }

    fn start_in_time(
        listen: SocketAddr,
        state: State,
        config: Shared,
        lookups: Lookups,
        times: Times,
    ) -> Result<Serving, ServingError> {
        let tls = config.get().tls.as_ref().map(Tls::new).transpose()?;
        let socket = TcpListener::bind(listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(THREADS_MAX)
            .thread_name("http")
            .enable_all()
            .build()?;
        let api = Api::new(state, config, lookups);
        let (ready, unwritten, events) = (Arc::clone(&api.ready), api.unwritten.clone(), api.events.clone());
        let router = router(&api, times);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let socket = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(socket)?
        };
        let accepting = runtime.spawn(listen::accept(socket, router, tls.clone(), stopped, times));
        let (runtime, accepting) = (Some(runtime), Some(accepting));
        Ok(Serving { runtime, accepting, stop, address, ready, unwritten, events, tls })
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

    /// `/health/ready` says no for a while. Gives whether it did not already.
    pub fn unwritten(&self) -> bool {
        let is_new = !self.unwritten.is_now();
        self.unwritten.found();
        is_new
    }

    /// What of new settings is looked at before they are in force: certificates, which are then used for new connections.
    ///
    /// # Errors
    /// What cannot be used; what is in force stays.
    pub fn reload(&self, config: &Config) -> Result<(), String> {
        match (&self.tls, &config.tls) {
            (Some(tls), Some(files)) => tls.reload(files).map_err(|e| e.to_string()),
            (None, None) => Ok(()),
            _ => Err("[server.tls] comes or goes with the next start alone".into()),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.events.end();
        let _ = self.stop.send(true);
        if let (Some(runtime), Some(accepting)) = (self.runtime.take(), self.accepting.take()) {
            // It ends by itself, and in time.
            let _ = runtime.block_on(accepting);
            runtime.shutdown_timeout(Duration::ZERO);
        }
    }
}

fn router(api: &Api, times: Times) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let api = api.clone();
        let filter = MethodFilter::try_from(route.method()).unwrap_or(MethodFilter::GET);
        let handler = move |path: RawPathParams, request: axum::extract::Request| {
            let api = api.clone();
            let path = path.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            async move { received(api, route, path, request, times.body).await }
        };
        router = router.route(route.path, on(filter, handler));
    }
    router.fallback(async || written(Err(Problem::not_found()))).method_not_allowed_fallback(async || {
        written(Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "E-METHOD", "this cannot be done with it")
            .hint("/api/v1/openapi.json has what can be done")))
    })
}

async fn received(
    api: Api,
    route: &'static Route,
    path: Vec<(String, String)>,
    request: axum::extract::Request,
    body_within: Duration,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(peer) = parts.extensions.get::<Arc<Peer>>().map(Arc::clone) else {
        return written(Err(Problem::not_found()));
    };
    // Before anything is read.
    let passed = gate::fits(&parts.uri, &parts.headers).and_then(|()| {
        api.limits.request(gate::origin(&api, &peer, &parts.headers).address).map_err(Problem::too_many)
    });
    if let Err(problem) = passed {
        return written(Err(problem));
    }
    let body = match tokio::time::timeout(body_within, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "E-REQUEST-SIZE", "the request is too large");
            return written(Err(problem.hint(format!("a body may have {BODY_BYTES_MAX} bytes"))));
        }
        Err(_) => {
            let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "E-REQUEST-TIME", "the request is too slow");
            return written(Err(problem.hint(format!("a body has {} s", body_within.as_secs()))));
        }
    };
    // Handlers ask SQLite and wait for jobs.
    let made = tokio::task::spawn_blocking(move || {
        let made = answer(&api, &peer, route, path, &parts.uri, &parts.headers, &body);
        if route.page { made.or_else(|problem| Ok(page::problem(&problem, &parts.uri))) } else { made }
    });
    written(made.await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "E-INTERNAL", "the server hit an internal error"))
    }))
}

/// The one way to a handler.
fn answer(
    api: &Api,
    peer: &Peer,
    route: &Route,
    path: Vec<(String, String)>,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Answer, Problem> {
    let from = gate::origin(api, peer, headers);
    gate::addressed_to_us(api, peer, &from, headers)?;
    gate::is_plain(&path)?;
    let now = Timestamp::now();
    let (caller, by_cookie) = match route.right {
        Right::Anyone => (None, false),
        _ => {
            let (caller, by_cookie) = gate::caller(api, peer, &from, headers, now)?;
            gate::wanted(&caller, by_cookie, &route.method(), headers)?;
            (Some(caller), by_cookie)
        }
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
            (None, true) => caller.may_somewhere(route.right),
            (None, false) => caller.may(route.right, None),
        };
        if !allowed {
            return Err(Problem::not_allowed());
        }
    }
    let is_form = route.page && route.method() == Method::POST;
    let form: Vec<(String, String)> =
        if is_form { form_urlencoded::parse(body).into_owned().collect() } else { vec![] };
    let session = if by_cookie { session::cookie(headers).map(Session::of) } else { None };
    if let (true, Some(caller)) = (is_form, &caller) {
        let word = form.iter().find(|(key, _)| key == "csrf").map_or("", |(_, value)| value.as_str());
        // A program that sends a token sends it by no mistake.
        let is_ours = session.as_ref().map_or(caller.means == Means::Token, |session| session.has_word(word));
        if !is_ours {
            return Err(session::forged());
        }
    }
    let body = match (body.is_empty(), is_form || route.method() == Method::GET) {
        (true, _) | (_, true) => Value::Null,
        (false, false) => serde_json::from_slice(body).map_err(|_| Problem::wrong("the body is no JSON"))?,
    };
    let query = query(uri)?;
    let (caller, session) = (caller.as_ref(), session.as_ref());
    (route.handler)(api, &Asked { caller, from, session, path, query, headers, body, form, now })
}

fn streamed(listening: Listening) -> Body {
    let next = |mut listening: Listening| async move {
        let text = listening.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), listening))
    };
    Body::from_stream(futures_util::stream::unfold(listening, next))
}

fn query(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    pairs.map(|q| q.0).map_err(|_| Problem::wrong("the query cannot be read"))
}

/// Nothing is loaded from elsewhere, nothing in a page is a script or a style of its own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn written(made: Result<Answer, Problem>) -> Response {
    let mut more = vec![];
    let json = "application/json";
    let (status, kind, body) = match made {
        Ok(Answer::Json(status, value)) => (status, json, Body::from(value.to_string())),
        Ok(Answer::Text(kind, text)) => (StatusCode::OK, kind, Body::from(text)),
        Ok(Answer::Asset(kind, text)) => (StatusCode::OK, kind, Body::from(text)),
        Ok(Answer::Cookie(value, cookie)) => {
            more.push((header::SET_COOKIE, cookie));
            (StatusCode::OK, json, Body::from(value.to_string()))
        }
        Ok(Answer::Page { status, html, cookies }) => {
            more.extend(cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie)));
            (status, "text/html; charset=utf-8", Body::from(html))
        }
        Ok(Answer::Goto { to, cookies }) => {
            more.extend(cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie)));
            more.push((header::LOCATION, to));
            (StatusCode::SEE_OTHER, "text/plain", Body::empty())
        }
        Ok(Answer::Events(listening)) => (StatusCode::OK, "text/event-stream", streamed(listening)),
        Err(problem) => {
            more.extend(problem.retry_after.map(|s| (header::RETRY_AFTER, s.to_string())));
            if problem.status == StatusCode::UNAUTHORIZED {
                more.push((header::WWW_AUTHENTICATE, "Bearer".into()));
            }
            (problem.status, json, Body::from(problem.document().to_string()))
        }
    };
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
    // Ours, and always of characters that a header takes.
    for (name, value) in more {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().append(name, value);
        }
    }
    response
}
