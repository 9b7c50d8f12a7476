//! Connections: how many there are, how long each may take to say what it wants, and how they end.
//!
//! Invariant: nothing that a client does or leaves undone holds a connection for ever. Each step has a time: the handshake, the
//! head of a request, its body (`received`), taking the answer.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Sleep;

use super::tls::{self, Tls};
use super::{HEADER_BYTES_MAX, Problem};
use axum::http::StatusCode;

const CONNECTIONS_MAX: usize = 512;
const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// After `accept` failed, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Beyond this nothing is read at all; up to it an answer says what is wrong.
const BUFFER_BYTES_MAX: usize = 4 * HEADER_BYTES_MAX;
const HEADERS_MAX: usize = 64;

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub handshake: Duration,
    /// The head of a request; also how long a connection may be idle.
    pub head: Duration,
    pub body: Duration,
    /// Without a byte of the answer being taken.
    pub taken: Duration,
    /// Requests that are under way when the server ends.
    pub end: Duration,
}

impl Default for Times {
    fn default() -> Times {
        let seconds = Duration::from_secs;
        Times { handshake: seconds(10), head: seconds(30), body: seconds(10), taken: seconds(30), end: seconds(5) }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// Ours, that the connection came in at.
    pub local: SocketAddr,
    pub is_tls: bool,
    /// Of the client's certificate, which was verified.
    pub subject: Option<String>,
}

#[derive(Default)]
struct Connections(Mutex<HashMap<IpAddr, usize>>);

/// Of a connection, as long as it lives.
struct Place {
    of: Arc<Connections>,
    address: IpAddr,
}

impl Connections {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = all.values().sum();
        let own = all.entry(address).or_default();
        if total >= CONNECTIONS_MAX || *own >= CONNECTIONS_PER_ADDRESS_MAX {
            if *own == 0 {
                all.remove(&address);
            }
            return None;
        }
        *own += 1;
        Some(Place { of: Arc::clone(self), address })
    }

    fn are_gone(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.address);
            }
        }
    }
}

/// Until it is told to stop; then until every connection has got the answer that it waits for, or as long as that may take.
pub async fn accept(
    socket: TcpListener,
    router: Router,
    tls: Option<Tls>,
    mut stop: watch::Receiver<bool>,
    times: Times,
) {
    let connections = Arc::new(Connections::default());
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = told(&mut stop) => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(target: "pgark", %error, "a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = connections.enter(from.ip().to_canonical()) else {
            turn_away(stream, tls.is_some());
            continue;
        };
        let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
        tokio::spawn(async move {
            let address = place.address;
            if let Err(error) = connection(stream, address, router, tls, stop, times).await {
                tracing::debug!(target: "pgark", %address, error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(socket);
    let gone = async {
        while !connections.are_gone() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    // What is not over by then is cut off.
    let _ = tokio::time::timeout(times.end, gone).await;
}

/// When the server is to end; also when nobody could tell any more.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Says why, where that can be said without waiting for anybody.
fn turn_away(stream: TcpStream, is_tls: bool) {
    if is_tls {
        return;
    }
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "E-SERVER-BUSY", "there are too many connections")
        .hint("try again in a moment");
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(&problem.on_the_wire());
    }
}

async fn connection(
    stream: TcpStream,
    address: IpAddr,
    router: Router,
    tls: Option<Tls>,
    stop: watch::Receiver<bool>,
    times: Times,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().map_err(|e| e.to_string())?;
    let peer = Peer { address, local, is_tls: tls.is_some(), subject: None };
    let Some(tls) = tls else { return conversation(stream, peer, router, stop, times).await };
    let handshake = tokio_rustls::TlsAcceptor::from(tls.get()).accept(stream);
    let stream = tokio::time::timeout(times.handshake, handshake).await;
    let stream = stream.map_err(|_| "the handshake took too long".to_owned())?.map_err(|e| e.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates();
    let subject = certificates.and_then(|all| all.first()).and_then(tls::subject);
    conversation(stream, Peer { subject, ..peer }, router, stop, times).await
}

async fn conversation<S>(
    stream: S,
    peer: Peer,
    router: Router,
    mut stop: watch::Receiver<bool>,
    times: Times,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = Arc::new(peer);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(Arc::clone(&peer));
        Box::pin(router.call(request))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(times.head)
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let mut connection =
        http.serve_connection(TokioIo::new(Timed { stream, within: times.taken, stuck: None }), service);
    let mut stopping = pin!(told(&mut stop));
    let mut is_told = false;
    let ended = poll_fn(|context| {
        if !is_told && stopping.as_mut().poll(context).is_ready() {
            is_told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(context)
    })
    .await;
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    // One that was merely idle is closed without a word.
    if ended.as_ref().is_err_and(hyper::Error::is_timeout) && !parts.read_buf.is_empty() {
        let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "E-REQUEST-TIME", "the request is too slow")
            .hint(format!("its head has {} s", times.head.as_secs()));
        stream.write_all(&problem.on_the_wire()).await.map_err(|e| e.to_string())?;
    }
    stream.shutdown().await.map_err(|e| e.to_string())?;
    ended.map_err(|e| e.to_string())
}

/// A stream whose other end has to take what is written.
struct Timed<S> {
    stream: S,
    within: Duration,
    /// Since the other end takes nothing.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    fn in_time<T>(&mut self, polled: Poll<std::io::Result<T>>, context: &mut Context<'_>) -> Poll<std::io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        let within = self.within;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        match stuck.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.in_time(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.in_time(ended, context)
    }
}
